//! What the `nft` program wants to know of a set beyond the numbers of its types: which expression each part of a key
//! or value is taken from. The kernel keeps these bytes and hands them back.
//!
//! Invariant: they are as `nft` itself writes them for a set declared with `typeof`. Without them it lists a number out
//! of `numgen` as a type that it does not take back.

use super::Type;

/// Every kind of attribute below; the same number means different things at different depths.
const KEY_TYPEOF: u8 = 3;
const DATA_TYPEOF: u8 = 4;
const EXPRESSION: u8 = 0;
const CONTENTS: u8 = 1;

/// The numbers `nft` gives to kinds of expressions.
const PAYLOAD: u32 = 7;
const META: u32 = 9;
const CONCATENATION: u32 = 13;
const NUMGEN: u32 = 23;

/// The user data of a map from a concatenation to a concatenation.
pub(super) fn of_map(key: &[Type], value: &[Type]) -> Vec<u8> {
    [attribute(KEY_TYPEOF, &concatenation(key)), attribute(DATA_TYPEOF, &concatenation(value))].concat()
}

fn concatenation(types: &[Type]) -> Vec<u8> {
    let parts: Vec<u8> =
        (0..).zip(types).flat_map(|(index, kind)| attribute(index, &expression_of(*kind))).collect();
    expression(CONCATENATION, &parts)
}

fn expression_of(kind: Type) -> Vec<u8> {
    const IP: u32 = 12;
    const DESTINATION: u32 = 12;
    const TRANSPORT: u32 = 11;
    const DESTINATION_PORT: u32 = 2;
    const L4_PROTOCOL: u32 = 16;
    const RANDOM: u32 = 1;
    // The modulus says nothing about the type: rules have others.
    const MODULUS: u32 = 2;
    match kind {
        Type::Address => expression(PAYLOAD, &numbers(&[IP, DESTINATION])),
        Type::Port => expression(PAYLOAD, &numbers(&[TRANSPORT, DESTINATION_PORT])),
        Type::Protocol => expression(META, &numbers(&[L4_PROTOCOL])),
        Type::Random => expression(NUMGEN, &numbers(&[RANDOM, MODULUS, 0])),
    }
}

fn expression(kind: u32, contents: &[u8]) -> Vec<u8> {
    [attribute(EXPRESSION, &kind.to_ne_bytes()), attribute(CONTENTS, contents)].concat()
}

fn numbers(values: &[u32]) -> Vec<u8> {
    (0..).zip(values).flat_map(|(kind, value)| attribute(kind, &value.to_ne_bytes())).collect()
}

fn attribute(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).expect("a handful of parts is shorter than 256 bytes");
    [&[kind, length], value].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn user_data_is_as_nft_writes_it() {
        // nft --debug=mnl (1.0.6) for a map declared with
        // typeof meta l4proto . th dport . numgen random mod 2 : ip daddr . th dport, without the set's byte order.
        let written = "034a00040d000000 0142 000e 000409000000 0106 000410000000 \
                       0114 000407000000 010c 00040b000000 010402000000 \
                       021a 000417000000 0112 000401000000 010402000000 020400000000 \
                       0434 00040d000000 012c 0014 000407000000 010c 00040c000000 01040c000000 \
                       0114 000407000000 010c 00040b000000 010402000000";
        let made = of_map(&[Type::Protocol, Type::Port, Type::Random], &[Type::Address, Type::Port]);
        let made: String = made.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(made, written.replace(' ', ""));
    }
}
