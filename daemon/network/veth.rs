//! One attachment's wire: a routed veth pair, made and taken away.
//!
//! Inside stand `eth0` with a /32 and a default route to a next hop that exists only as a permanent neighbour; outside
//! stand a route to that one address and the other end. No address is shared, nothing is bridged.
//!
//! Invariant: a link carries its attachment's id as its alias and its address as its route; nothing else records it.

use crate::cidr::Cidr;
use crate::netlink::{Batch, Socket};
use crate::rtnl::{self, LOOPBACK, LinkSetting, VethPair};
use crate::{Attachment, Error};
use nix::sched::{CloneFlags, setns};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The next hop inside. Link-local: it is nobody's address anywhere else.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The host's end of every pair. They never meet on one wire.
const HOST_MAC: [u8; 6] = [0xee; 6];
const INSIDE: &str = "eth0";

/// The names of an instance's links.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// How their names begin.
    pub(crate) prefix: String,
    /// The group of those in use.
    pub(crate) group: u32,
    /// The group of those to be removed.
    pub(crate) garbage: u32,
}

/// What is to be made.
pub(crate) struct Wire<'a> {
    pub(crate) id: &'a str,
    pub(crate) link: &'a str,
    pub(crate) ip: Ipv4Addr,
    /// The source of what this machine itself sends there.
    pub(crate) source: Ipv4Addr,
    pub(crate) group: u32,
    pub(crate) netns: &'a Path,
}

impl Names {
    /// The names for an instance of exactly four characters of `a-z0-9`.
    pub(crate) fn new(instance: &str) -> Result<Names, Error> {
        let digits: Option<Vec<u32>> =
            instance.chars().map(|c| c.to_digit(36).filter(|_| !c.is_ascii_uppercase())).collect();
        match digits {
            Some(digits) if digits.len() == 4 => {
                // Two group numbers of its own for each name, away from those that people choose.
                let number = digits.iter().fold(0, |number, digit| number * 36 + digit);
                let group = 0x4000_0000 | number << 1;
                Ok(Names { prefix: format!("hf{instance}"), group, garbage: group | 1 })
            }
            _ => Err(Error::Name { name: instance.to_owned() }),
        }
    }

    /// The host's end for an id: the prefix and a hash, as long as a link's name may be (15 bytes).
    pub(crate) fn link(&self, id: &str) -> String {
        // FNV-1a: stable across versions of Rust, which a crash between two versions needs.
        let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("{}{:08x}", self.prefix, (hash >> 32) ^ (hash & 0xffff_ffff))
    }
}

/// Makes the wire. The calling thread is in another network namespace afterwards and must end.
pub(crate) fn make(wire: &Wire<'_>) -> Result<(), Error> {
    let host = Socket::route().map_err(|source| refused(wire, "open a netlink socket for", source))?;
    let netns = open_namespace(wire.netns)?;
    make_pair(&host, wire, &netns).map_err(|source| refused(wire, "create", source))?;
    let rest = outside(&host, wire)
        .map_err(|source| refused(wire, "route to", source))
        .and_then(|()| enter(wire.netns, netns))
        .and_then(|()| inside(wire).map_err(|source| refused(wire, "configure the inner end of", source)));
    if rest.is_err() {
        let mut batch = Batch::new();
        rtnl::remove_link(&mut batch, wire.link);
        // The error that matters is the one that led here.
        let _ = host.all(batch);
    }
    rest
}

/// Makes the attachment lead nowhere and marks its link as garbage. Both may be gone already.
pub(crate) fn unmake(names: &Names, attachment: &Attachment) -> io::Result<()> {
    let socket = Socket::route()?;
    let Some(link) = find(&socket, &attachment.link)? else { return Ok(()) };
    let mut batch = Batch::new();
    rtnl::remove_route(&mut batch, Cidr::around(attachment.ip, 32), link);
    rtnl::regroup_link(&mut batch, link, names.garbage);
    forgiving(&socket, batch)
}

/// Removes the links of a group. None there is success.
pub(crate) fn remove_group(group: u32) -> io::Result<()> {
    let mut batch = Batch::new();
    rtnl::remove_group(&mut batch, group);
    forgiving(&Socket::route()?, batch)
}

/// Whether the host's end is there.
pub(crate) fn exists(link: &str) -> io::Result<bool> {
    Ok(find(&Socket::route()?, link)?.is_some())
}

/// The attachments that the kernel holds, and the links of ours that are none (left by a crash half-way).
pub(crate) fn recover(
    names: &Names,
    machine: &crate::machine::Machine,
) -> (BTreeMap<String, Attachment>, Vec<u32>) {
    let mut attachments = BTreeMap::new();
    let mut garbage = Vec::new();
    for link in machine.links.iter().filter(|link| link.name.starts_with(&names.prefix)) {
        let route = machine
            .routes
            .iter()
            .find(|route| route.link == Some(link.index) && route.ours && route.destination.prefix() == 32);
        match (&link.alias, route) {
            (Some(id), Some(route)) if names.link(id) == link.name => {
                attachments.insert(id.clone(), attachment(route.destination.base(), link.name.clone()));
            }
            _ => garbage.push(link.index),
        }
    }
    (attachments, garbage)
}

/// Marks links as garbage.
pub(crate) fn discard(names: &Names, links: &[u32]) -> io::Result<()> {
    let mut batch = Batch::new();
    for link in links {
        rtnl::regroup_link(&mut batch, *link, names.garbage);
    }
    if links.is_empty() { Ok(()) } else { forgiving(&Socket::route()?, batch) }
}

/// An attachment as it always is.
pub(crate) fn attachment(ip: Ipv4Addr, link: String) -> Attachment {
    Attachment { ip, prefix: 32, gateway: GATEWAY, link }
}

/// Sends a batch for which "it is not there" is success.
pub(crate) fn forgiving(socket: &Socket, batch: Batch) -> io::Result<()> {
    let gone = |error: &io::Error| {
        matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENOENT))
    };
    let (verdicts, _) = socket.send(batch)?;
    verdicts.into_iter().filter_map(Result::err).find(|error| !gone(error)).map_or(Ok(()), Err)
}

fn make_pair(host: &Socket, wire: &Wire<'_>, netns: &OwnedFd) -> io::Result<()> {
    let [a, b, c, d] = wire.ip.octets();
    let pair = VethPair {
        name: wire.link,
        mac: HOST_MAC,
        group: wire.group,
        peer_name: INSIDE,
        peer_mac: [0x0a, 0x58, a, b, c, d],
        peer_netns: netns,
    };
    let create = || {
        let mut batch = Batch::new();
        rtnl::add_veth(&mut batch, &pair);
        host.all(batch).map(|_| ())
    };
    match create() {
        // A link of an attachment before this one, whose removal is not done, or that an earlier process left.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            let mut batch = Batch::new();
            rtnl::remove_link(&mut batch, wire.link);
            forgiving(host, batch)?;
            create()
        }
        other => other,
    }
}

fn outside(host: &Socket, wire: &Wire<'_>) -> io::Result<()> {
    let link = find(host, wire.link)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    let mut batch = Batch::new();
    let settings = [
        // What comes from inside may go on to elsewhere, whatever the machine's default for links is.
        (LinkSetting::Forwarding, 1),
        // Nobody inside speaks with another's address.
        (LinkSetting::RpFilter, 1),
        // Answers to a node port asked for on 127.0.0.1.
        (LinkSetting::RouteLocalnet, 1),
    ];
    let [a, b, c, d] = wire.ip.octets();
    rtnl::add_neighbour(&mut batch, link, wire.ip, [0x0a, 0x58, a, b, c, d]);
    rtnl::add_route(&mut batch, Cidr::around(wire.ip, 32), link, wire.source);
    // Last: with its alias the attachment is complete for whoever recovers it.
    rtnl::set_link(&mut batch, wire.link, wire.id, &settings);
    host.all(batch).map(|_| ())
}

fn inside(wire: &Wire<'_>) -> io::Result<()> {
    let socket = Socket::route()?;
    let link = find(&socket, INSIDE)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    let mut batch = Batch::new();
    rtnl::link_up(&mut batch, LOOPBACK);
    rtnl::link_up(&mut batch, link);
    rtnl::add_address(&mut batch, link, wire.ip);
    rtnl::add_neighbour(&mut batch, link, GATEWAY, HOST_MAC);
    rtnl::add_default_route(&mut batch, GATEWAY, link);
    socket.all(batch).map(|_| ())
}

fn find(socket: &Socket, name: &str) -> io::Result<Option<u32>> {
    let mut batch = Batch::new();
    rtnl::get_link(&mut batch, name);
    match socket.all(batch) {
        Ok(answers) => Ok(answers.iter().find_map(rtnl::link).map(|link| link.index)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn open_namespace(path: &Path) -> Result<OwnedFd, Error> {
    File::open(path)
        .map(OwnedFd::from)
        .map_err(|source| Error::Namespace { path: PathBuf::from(path), source })
}

fn enter(path: &Path, netns: OwnedFd) -> Result<(), Error> {
    setns(netns, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| Error::Namespace { path: PathBuf::from(path), source: errno.into() })
}

fn refused(wire: &Wire<'_>, verb: &str, source: io::Error) -> Error {
    Error::Link { attempt: format!("{verb} link {} of attachment {}", wire.link, wire.id), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_instances_are_told_apart() {
        let names = Names::new("ab12").expect("a good name");
        let other = Names::new("ab13").expect("a good name");
        assert_eq!(names.link("x").len(), 14);
        assert!(names.link("x").starts_with("hfab12"));
        assert_ne!(names.link("x"), names.link("y"));
        let groups = [names.group, names.garbage, other.group, other.garbage];
        assert_eq!(groups.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        for bad in ["", "abc", "abcde", "AB12", "ab-1", "äb12"] {
            assert!(Names::new(bad).is_err(), "{bad}");
        }
    }
}
