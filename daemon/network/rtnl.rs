//! Links, addresses, routes and neighbours: what is asked of the kernel, and what it tells.

use crate::cidr::Cidr;
use crate::netlink::{self, ACK, Answer, Batch, CREATE, DUMP, EXCL, REPLACE, Socket, attribute, u32_at};
use std::io;
use std::net::Ipv4Addr;

/// The routes made here carry this protocol number, so that a person sees whose they are.
const PROTOCOL: u8 = 72;
/// The index of `lo` in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

const INET: u8 = libc::AF_INET as u8;
const UP: u32 = libc::IFF_UP as u32;
const IFINFO: usize = 16;
const IFADDR: usize = 8;
const RTMSG: usize = 12;
/// `RTNH_F_ONLINK` of the kernel's headers.
const ONLINK: u32 = 4;
/// `IFLA_INET_CONF` and `VETH_INFO_PEER` of the kernel's headers.
const INET_CONF: u16 = 1;
const VETH_PEER: u16 = 1;

/// A link as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
}

/// A route as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Cidr,
    pub(crate) link: Option<u32>,
    pub(crate) ours: bool,
    pub(crate) source: Option<Ipv4Addr>,
}

/// An address as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) link: u32,
    pub(crate) ip: Ipv4Addr,
    pub(crate) net: Cidr,
}

/// Per-link settings, by the numbers of `IPV4_DEVCONF_*`.
pub(crate) enum LinkSetting {
    Forwarding = 1,
    RpFilter = 8,
    RouteLocalnet = 26,
}

pub(crate) struct VethPair<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: [u8; 6],
    pub(crate) group: u32,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_mac: [u8; 6],
    pub(crate) peer_netns: &'a std::os::fd::OwnedFd,
}

/// Asks for a pair of links, the peer in another namespace. This end comes up; the peer cannot before the pair is made.
pub(crate) fn add_veth(batch: &mut Batch, pair: &VethPair<'_>) {
    use std::os::fd::AsRawFd;
    batch.begin(libc::RTM_NEWLINK, CREATE | EXCL | ACK, &ifinfo(0, UP, UP));
    batch.text(libc::IFLA_IFNAME, pair.name);
    batch.attr(libc::IFLA_ADDRESS, &pair.mac);
    batch.native(libc::IFLA_GROUP, pair.group);
    let info = batch.open(libc::IFLA_LINKINFO);
    batch.text(libc::IFLA_INFO_KIND, "veth");
    let data = batch.open(libc::IFLA_INFO_DATA);
    let peer = batch.open(VETH_PEER);
    batch.raw(&ifinfo(0, 0, 0));
    batch.text(libc::IFLA_IFNAME, pair.peer_name);
    batch.attr(libc::IFLA_ADDRESS, &pair.peer_mac);
    batch.native(libc::IFLA_NET_NS_FD, pair.peer_netns.as_raw_fd().cast_unsigned());
    batch.close(peer);
    batch.close(data);
    batch.close(info);
}

/// Asks for a note on a link and for settings of its own.
pub(crate) fn set_link(batch: &mut Batch, name: &str, alias: &str, settings: &[(LinkSetting, u32)]) {
    batch.begin(libc::RTM_SETLINK, ACK, &ifinfo(0, 0, 0));
    batch.text(libc::IFLA_IFNAME, name);
    batch.attr(libc::IFLA_IFALIAS, alias.as_bytes());
    let families = batch.open(libc::IFLA_AF_SPEC);
    let inet = batch.open(u16::from(INET));
    let conf = batch.open(INET_CONF);
    for (setting, value) in settings {
        let number = match setting {
            LinkSetting::Forwarding => LinkSetting::Forwarding as u16,
            LinkSetting::RpFilter => LinkSetting::RpFilter as u16,
            LinkSetting::RouteLocalnet => LinkSetting::RouteLocalnet as u16,
        };
        batch.native(number, *value);
    }
    batch.close(conf);
    batch.close(inet);
    batch.close(families);
}

pub(crate) fn link_up(batch: &mut Batch, index: u32) {
    batch.begin(libc::RTM_SETLINK, ACK, &ifinfo(index, UP, UP));
}

/// Moves a link into a group, to be removed with it.
pub(crate) fn regroup_link(batch: &mut Batch, index: u32, group: u32) {
    batch.begin(libc::RTM_SETLINK, ACK, &ifinfo(index, 0, 0));
    batch.native(libc::IFLA_GROUP, group);
}

pub(crate) fn remove_link(batch: &mut Batch, name: &str) {
    batch.begin(libc::RTM_DELLINK, ACK, &ifinfo(0, 0, 0));
    batch.text(libc::IFLA_IFNAME, name);
}

/// Removes all links of a group at once: the kernel waits once, not once per link.
pub(crate) fn remove_group(batch: &mut Batch, group: u32) {
    batch.begin(libc::RTM_DELLINK, ACK, &ifinfo(0, 0, 0));
    batch.native(libc::IFLA_GROUP, group);
}

pub(crate) fn get_link(batch: &mut Batch, name: &str) {
    batch.begin(libc::RTM_GETLINK, 0, &ifinfo(0, 0, 0));
    batch.text(libc::IFLA_IFNAME, name);
}

/// Asks for an address of its own width, /32.
pub(crate) fn add_address(batch: &mut Batch, link: u32, ip: Ipv4Addr) {
    address(batch, libc::RTM_NEWADDR, CREATE | REPLACE | ACK, link, ip);
}

pub(crate) fn remove_address(batch: &mut Batch, link: u32, ip: Ipv4Addr) {
    address(batch, libc::RTM_DELADDR, ACK, link, ip);
}

fn address(batch: &mut Batch, kind: u16, flags: u16, link: u32, ip: Ipv4Addr) {
    let [a, b, c, d] = link.to_ne_bytes();
    batch.begin(kind, flags, &[INET, 32, 0, libc::RT_SCOPE_UNIVERSE, a, b, c, d]);
    batch.attr(libc::IFA_LOCAL, &ip.octets());
    batch.attr(libc::IFA_ADDRESS, &ip.octets());
}

/// Asks for a route straight out of a link, with `source` for what starts on this machine.
pub(crate) fn add_route(batch: &mut Batch, destination: Cidr, link: u32, source: Ipv4Addr) {
    link_route(batch, libc::RTM_NEWROUTE, CREATE | REPLACE | ACK, destination, link);
    batch.attr(libc::RTA_PREFSRC, &source.octets());
}

pub(crate) fn remove_route(batch: &mut Batch, destination: Cidr, link: u32) {
    link_route(batch, libc::RTM_DELROUTE, ACK, destination, link);
}

fn link_route(batch: &mut Batch, kind: u16, flags: u16, destination: Cidr, link: u32) {
    batch.begin(kind, flags, &rtmsg(destination.prefix(), libc::RT_SCOPE_LINK, 0));
    batch.attr(libc::RTA_DST, &destination.base().octets());
    batch.native(libc::RTA_OIF, link);
}

/// Asks for a default route through a next hop that lies behind the link although no range says so.
pub(crate) fn add_default_route(batch: &mut Batch, gateway: Ipv4Addr, link: u32) {
    batch.begin(libc::RTM_NEWROUTE, CREATE | REPLACE | ACK, &rtmsg(0, libc::RT_SCOPE_UNIVERSE, ONLINK));
    batch.attr(libc::RTA_GATEWAY, &gateway.octets());
    batch.native(libc::RTA_OIF, link);
}

/// Says once and for all which hardware address an address has behind a link.
pub(crate) fn add_neighbour(batch: &mut Batch, link: u32, ip: Ipv4Addr, mac: [u8; 6]) {
    let mut fixed = [0u8; 12];
    fixed[0] = INET;
    fixed[4..8].copy_from_slice(&link.to_ne_bytes());
    fixed[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    batch.begin(libc::RTM_NEWNEIGH, CREATE | REPLACE | ACK, &fixed);
    batch.attr(libc::NDA_DST, &ip.octets());
    batch.attr(libc::NDA_LLADDR, &mac);
}

pub(crate) fn links(socket: &Socket) -> io::Result<Vec<Link>> {
    let mut batch = Batch::new();
    batch.begin(libc::RTM_GETLINK, DUMP, &ifinfo(0, 0, 0));
    Ok(socket.all(batch)?.iter().filter_map(link).collect())
}

/// The routes of all tables, without those that only say which addresses are the machine's own.
pub(crate) fn routes(socket: &Socket) -> io::Result<Vec<Route>> {
    let mut batch = Batch::new();
    let mut fixed = [0u8; RTMSG];
    fixed[0] = INET;
    batch.begin(libc::RTM_GETROUTE, DUMP, &fixed);
    Ok(socket.all(batch)?.iter().filter_map(route).collect())
}

pub(crate) fn addresses(socket: &Socket) -> io::Result<Vec<Address>> {
    let mut batch = Batch::new();
    batch.begin(libc::RTM_GETADDR, DUMP, &[INET, 0, 0, 0, 0, 0, 0, 0]);
    Ok(socket.all(batch)?.iter().filter_map(address_of).collect())
}

/// Reads an answer to `get_link` or one of a dump.
pub(crate) fn link(answer: &Answer) -> Option<Link> {
    let (fixed, attributes) = answer.body.split_at_checked(IFINFO)?;
    (answer.kind == libc::RTM_NEWLINK).then_some(())?;
    Some(Link {
        index: u32_at(fixed, 4),
        name: netlink::text(attribute(attributes, libc::IFLA_IFNAME)?),
        alias: attribute(attributes, libc::IFLA_IFALIAS).map(netlink::text),
    })
}

fn route(answer: &Answer) -> Option<Route> {
    let (fixed, attributes) = answer.body.split_at_checked(RTMSG)?;
    (answer.kind == libc::RTM_NEWROUTE && fixed[0] == INET && fixed[7] == libc::RTN_UNICAST).then_some(())?;
    let destination = attribute(attributes, libc::RTA_DST).and_then(ip).unwrap_or(Ipv4Addr::UNSPECIFIED);
    Some(Route {
        destination: Cidr::around(destination, fixed[1]),
        link: attribute(attributes, libc::RTA_OIF).filter(|b| b.len() == 4).map(|b| u32_at(b, 0)),
        ours: fixed[5] == PROTOCOL,
        source: attribute(attributes, libc::RTA_PREFSRC).and_then(ip),
    })
}

fn address_of(answer: &Answer) -> Option<Address> {
    let (fixed, attributes) = answer.body.split_at_checked(IFADDR)?;
    (answer.kind == libc::RTM_NEWADDR && fixed[0] == INET).then_some(())?;
    let net = attribute(attributes, libc::IFA_ADDRESS).and_then(ip)?;
    Some(Address {
        link: u32_at(fixed, 4),
        ip: attribute(attributes, libc::IFA_LOCAL).and_then(ip).unwrap_or(net),
        net: Cidr::around(net, fixed[1]),
    })
}

fn ip(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; IFINFO] {
    let mut bytes = [0u8; IFINFO];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

fn rtmsg(prefix: u8, scope: u8, flags: u32) -> [u8; RTMSG] {
    let mut bytes = [INET, prefix, 0, 0, libc::RT_TABLE_MAIN, PROTOCOL, scope, libc::RTN_UNICAST, 0, 0, 0, 0];
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes
}
