//! One transaction of nftables as netlink messages: tables, chains, rules, maps and their elements.
//!
//! Invariant: a transaction takes effect as a whole or not at all.

mod userdata;

use crate::netlink::{ACK, Batch, CREATE, Socket};
use std::io;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const FAMILY_IP: u8 = 2;

const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

/// An element of a list; the same number in every list.
const LIST_ELEMENT: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// Elements per message: an attribute cannot be longer than 64 KiB.
const CHUNK: usize = 500;

/// A 32 bit register, 0 to 7.
#[derive(Clone, Copy)]
pub(crate) struct Reg(pub(crate) u32);

impl Reg {
    fn number(self) -> u32 {
        // NFT_REG32_00
        8 + self.0
    }
}

/// A type of value as `nft` shows it; concatenations are packed six bits each.
#[derive(Clone, Copy)]
pub(crate) enum Type {
    /// What `numgen` gives: to `nft` an integer, which only user data tells the width of.
    Random = 4,
    Address = 7,
    Protocol = 12,
    Port = 13,
}

/// What a set's elements look like.
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) key: &'static [Type],
    pub(crate) data: Data,
}

/// What a key leads to.
pub(crate) enum Data {
    /// A plain set.
    Nothing,
    Values(&'static [Type]),
    Verdict,
}

/// One element: its key, and what it leads to.
pub(crate) struct Elem {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Value,
}

pub(crate) enum Value {
    Nothing,
    Bytes(Vec<u8>),
    Goto(String),
}

#[derive(Clone, Copy)]
pub(crate) enum Meta {
    Oif = 5,
    IifName = 6,
    L4Proto = 16,
}

#[derive(Clone, Copy)]
pub(crate) enum Ct {
    State = 0,
    Status = 2,
}

#[derive(Clone, Copy)]
pub(crate) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// One expression of a rule. A rule ends early where a lookup or a comparison does not match.
///
/// `nft` lists a rule only if each part of a lookup's key was loaded from a packet, its metadata or a generator: it takes
/// what a map gave for zero bits wide, and release 1.0.6 aborts there.
pub(crate) enum Expr {
    /// The source or destination address of the packet.
    Source(Reg),
    Destination(Reg),
    DestinationPort(Reg),
    Meta(Meta, Reg),
    Ct(Ct, Reg),
    /// What kind of address the destination is, as routing sees it (`RTN_*`).
    DestinationKind(Reg),
    /// A random number below the modulus.
    Random(u32, Reg),
    /// Keeps only the bits of the mask.
    Mask(Reg, Vec<u8>),
    Equal(Reg, Vec<u8>),
    Different(Reg, Vec<u8>),
    /// Goes on only if the key that starts at the register is in the set.
    In(&'static str, Reg),
    /// Loads what the key leads to.
    Map(&'static str, Reg, Reg),
    /// Does what the key's verdict says.
    VerdictMap(&'static str, Reg),
    Load(Reg, Vec<u8>),
    /// New destination address and port.
    Dnat(Reg, Reg),
    /// New source address.
    Snat(Reg),
    Masquerade,
    Jump(&'static str),
    Return,
    Drop,
    RejectWithReset,
    RejectAsUnreachable,
}

/// Messages that take effect together.
pub(crate) struct Transaction<'a> {
    batch: Batch,
    table: &'a str,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(table: &'a str) -> Transaction<'a> {
        let mut batch = Batch::new();
        batch.begin(BATCH_BEGIN, 0, &[0, 0, 0, SUBSYSTEM as u8]);
        Transaction { batch, table }
    }

    pub(crate) fn add_table(&mut self) {
        self.begin(NEW_TABLE, CREATE);
        self.batch.text(1, self.table);
    }

    pub(crate) fn delete_table(&mut self) {
        self.begin(DELETE_TABLE, 0);
        self.batch.text(1, self.table);
    }

    pub(crate) fn add_chain(&mut self, name: &str) {
        self.begin(NEW_CHAIN, CREATE);
        self.batch.text(1, self.table);
        self.batch.text(3, name);
    }

    /// A chain that packets enter at a hook; `kind` is `nat` or `filter`.
    pub(crate) fn add_base_chain(&mut self, name: &str, kind: &str, hook: Hook, priority: i32) {
        self.add_chain(name);
        let nested = self.batch.open(4);
        self.batch.be32(1, hook as u32);
        self.batch.be32(2, priority.cast_unsigned());
        self.batch.close(nested);
        self.batch.text(7, kind);
    }

    pub(crate) fn add_rule(&mut self, chain: &str, expressions: &[Expr]) {
        // NLM_F_APPEND: rules stand in the order in which they are added.
        self.begin(NEW_RULE, CREATE | libc::NLM_F_APPEND as u16);
        self.batch.text(1, self.table);
        self.batch.text(2, chain);
        let list = self.batch.open(4);
        for expression in expressions {
            let element = self.batch.open(LIST_ELEMENT);
            write_expression(&mut self.batch, expression);
            self.batch.close(element);
        }
        self.batch.close(list);
    }

    pub(crate) fn add_set(&mut self, set: &Set, id: u32) {
        const MAP: u32 = 8;
        const VERDICT: u32 = 0xffff_ff00;
        self.begin(NEW_SET, CREATE);
        self.batch.text(1, self.table);
        self.batch.text(2, set.name);
        self.batch.be32(4, packed(set.key));
        self.batch.be32(5, width(set.key));
        self.batch.be32(10, id);
        match set.data {
            Data::Nothing => self.batch.be32(3, 0),
            Data::Values(types) => {
                self.batch.be32(3, MAP);
                self.batch.be32(6, packed(types));
                self.batch.be32(7, width(types));
                self.batch.attr(13, &userdata::of_map(set.key, types));
            }
            Data::Verdict => {
                self.batch.be32(3, MAP);
                self.batch.be32(6, VERDICT);
                self.batch.be32(7, 0);
            }
        }
    }

    pub(crate) fn add_elements(&mut self, set: &str, elements: &[Elem]) {
        self.elements(NEW_ELEMENT, CREATE, set, elements);
    }

    pub(crate) fn delete_elements(&mut self, set: &str, elements: &[Elem]) {
        self.elements(DELETE_ELEMENT, 0, set, elements);
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &str, elements: &[Elem]) {
        for chunk in elements.chunks(CHUNK) {
            self.begin(kind, flags);
            self.batch.text(1, self.table);
            self.batch.text(2, set);
            let list = self.batch.open(3);
            for element in chunk {
                let nested = self.batch.open(LIST_ELEMENT);
                write_element(&mut self.batch, element);
                self.batch.close(nested);
            }
            self.batch.close(list);
        }
    }

    /// Hands the transaction to the kernel and waits for its answer.
    pub(crate) fn commit(mut self, socket: &Socket) -> io::Result<()> {
        self.batch.begin(BATCH_END, 0, &[0, 0, 0, SUBSYSTEM as u8]);
        socket.all(self.batch).map(|_| ())
    }

    fn begin(&mut self, kind: u16, flags: u16) {
        // Errors are answered without being asked for; no answer means that all went well.
        self.batch.begin(SUBSYSTEM << 8 | kind, flags, &[FAMILY_IP, 0, 0, 0]);
    }
}

/// Whether there is a table of that name.
pub(crate) fn table_exists(socket: &Socket, table: &str) -> io::Result<bool> {
    let mut batch = Batch::new();
    batch.begin(SUBSYSTEM << 8 | GET_TABLE, ACK, &[FAMILY_IP, 0, 0, 0]);
    batch.text(1, table);
    match socket.all(batch) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn packed(types: &[Type]) -> u32 {
    types.iter().fold(0, |packed, kind| packed << 6 | *kind as u32)
}

/// Each part of a concatenation fills a register.
fn width(types: &[Type]) -> u32 {
    4 * u32::try_from(types.len()).expect("a handful of parts")
}

fn write_element(batch: &mut Batch, element: &Elem) {
    let key = batch.open(1);
    batch.attr(DATA_VALUE, &element.key);
    batch.close(key);
    match &element.value {
        Value::Nothing => {}
        Value::Bytes(bytes) => write_value(batch, 2, bytes),
        Value::Goto(chain) => write_verdict(batch, 2, GOTO, Some(chain)),
    }
}

const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;
const DROP: i32 = 0;

fn write_value(batch: &mut Batch, kind: u16, bytes: &[u8]) {
    let data = batch.open(kind);
    batch.attr(DATA_VALUE, bytes);
    batch.close(data);
}

fn write_verdict(batch: &mut Batch, kind: u16, code: i32, chain: Option<&str>) {
    let data = batch.open(kind);
    let verdict = batch.open(DATA_VERDICT);
    batch.be32(1, code.cast_unsigned());
    if let Some(chain) = chain {
        batch.text(2, chain);
    }
    batch.close(verdict);
    batch.close(data);
}

fn write_expression(batch: &mut Batch, expression: &Expr) {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    match expression {
        Expr::Source(to) => payload(batch, NETWORK, 12, 4, *to),
        Expr::Destination(to) => payload(batch, NETWORK, 16, 4, *to),
        Expr::DestinationPort(to) => payload(batch, TRANSPORT, 2, 2, *to),
        Expr::Meta(key, to) => numbers(batch, "meta", &[(1, to.number()), (2, *key as u32)]),
        Expr::Ct(key, to) => numbers(batch, "ct", &[(1, to.number()), (2, *key as u32)]),
        // Result: address type; flag: of the destination.
        Expr::DestinationKind(to) => numbers(batch, "fib", &[(1, to.number()), (2, 3), (3, 2)]),
        Expr::Random(modulus, to) => {
            numbers(batch, "numgen", &[(1, to.number()), (2, *modulus), (3, 1), (4, 0)])
        }
        Expr::Mask(reg, mask) => bitwise(batch, *reg, mask),
        Expr::Equal(reg, bytes) => compare(batch, *reg, 0, bytes),
        Expr::Different(reg, bytes) => compare(batch, *reg, 1, bytes),
        Expr::In(set, from) => lookup(batch, set, *from, None),
        Expr::Map(set, from, to) => lookup(batch, set, *from, Some(to.number())),
        Expr::VerdictMap(set, from) => lookup(batch, set, *from, Some(0)),
        Expr::Load(to, bytes) => named(batch, "immediate", |batch| {
            batch.be32(1, to.number());
            write_value(batch, 2, bytes);
        }),
        Expr::Dnat(address, port) => {
            let (address, port) = (address.number(), port.number());
            numbers(batch, "nat", &[(1, 1), (2, FAMILY_IP.into()), (3, address), (5, port)]);
        }
        Expr::Snat(address) => numbers(batch, "nat", &[(1, 0), (2, FAMILY_IP.into()), (3, address.number())]),
        Expr::Masquerade => numbers(batch, "masq", &[]),
        Expr::Jump(chain) => verdict(batch, JUMP, Some(chain)),
        Expr::Return => verdict(batch, RETURN, None),
        Expr::Drop => verdict(batch, DROP, None),
        Expr::RejectWithReset => numbers(batch, "reject", &[(1, 1)]),
        Expr::RejectAsUnreachable => named(batch, "reject", |batch| {
            batch.be32(1, 0);
            // ICMP code: port unreachable.
            batch.attr(2, &[3]);
        }),
    }
}

fn named(batch: &mut Batch, name: &str, contents: impl FnOnce(&mut Batch)) {
    batch.text(1, name);
    let data = batch.open(2);
    contents(batch);
    batch.close(data);
}

fn numbers(batch: &mut Batch, name: &str, attributes: &[(u16, u32)]) {
    named(batch, name, |batch| attributes.iter().for_each(|(kind, value)| batch.be32(*kind, *value)));
}

fn payload(batch: &mut Batch, base: u32, offset: u32, length: u32, to: Reg) {
    numbers(batch, "payload", &[(1, to.number()), (2, base), (3, offset), (4, length)]);
}

fn compare(batch: &mut Batch, reg: Reg, operation: u32, bytes: &[u8]) {
    named(batch, "cmp", |batch| {
        batch.be32(1, reg.number());
        batch.be32(2, operation);
        write_value(batch, 3, bytes);
    });
}

fn bitwise(batch: &mut Batch, reg: Reg, mask: &[u8]) {
    named(batch, "bitwise", |batch| {
        batch.be32(1, reg.number());
        batch.be32(2, reg.number());
        batch.be32(3, u32::try_from(mask.len()).expect("a mask is as wide as a register"));
        write_value(batch, 4, mask);
        write_value(batch, 5, &vec![0; mask.len()]);
    });
}

fn lookup(batch: &mut Batch, set: &str, from: Reg, to: Option<u32>) {
    named(batch, "lookup", |batch| {
        batch.text(1, set);
        batch.be32(2, from.number());
        if let Some(to) = to {
            batch.be32(3, to);
        }
    });
}

fn verdict(batch: &mut Batch, code: i32, chain: Option<&str>) {
    named(batch, "immediate", |batch| {
        batch.be32(1, 0);
        write_verdict(batch, 2, code, chain);
    });
}
