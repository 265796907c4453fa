//! Forgets UDP flows that lead to endpoints which are none any more.
//!
//! The kernel remembers where a flow went. A TCP client notices that nobody answers and connects again; a UDP client
//! that goes on sending would keep its flow, and so the lost endpoint, for ever.
//!
//! Invariant: only flows through a service's address or node port of ours are forgotten.

use crate::netlink::{ACK, Answer, Batch, DUMP, Socket, attribute};
use crate::services::{Endpoint, Protocol, ServiceKey, ServiceTable};
use std::io;
use std::net::Ipv4Addr;

const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
/// `nfgenmsg` for IPv4.
const HEADER: [u8; 4] = [2, 0, 0, 0];

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;

/// A flow: what its client asked for, and who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Flow {
    protocol: u8,
    asked: Endpoint,
    answers: Endpoint,
    /// The contents of the kernel's attribute by which the flow is named.
    original: Vec<u8>,
}

/// Forgets the flows that the table has no endpoint for, and says how many.
pub(crate) fn forget_stale(socket: &Socket, table: &ServiceTable) -> io::Result<usize> {
    let mut batch = Batch::new();
    batch.begin(GET, DUMP, &HEADER);
    let flows: Vec<Flow> =
        socket.all(batch)?.iter().filter_map(flow).filter(|flow| is_stale(flow, table)).collect();
    for flow in &flows {
        let mut batch = Batch::new();
        batch.begin(DELETE, ACK, &HEADER);
        let original = batch.open(TUPLE_ORIGINAL);
        batch.raw(&flow.original);
        batch.close(original);
        match socket.all(batch) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
    }
    Ok(flows.len())
}

fn is_stale(flow: &Flow, table: &ServiceTable) -> bool {
    let udp = Protocol::Udp;
    // Who answers under the address that was asked for is no endpoint: the destination was never changed.
    if flow.protocol != udp.number() || flow.answers == flow.asked {
        return false;
    }
    let Endpoint { ip, port } = flow.asked;
    let by_service = table.services.get(&ServiceKey { ip, port, protocol: udp });
    let endpoints = by_service.or_else(|| table.node_ports.get(&(port, udp)));
    endpoints.is_some_and(|endpoints| !endpoints.contains(&flow.answers))
}

fn flow(answer: &Answer) -> Option<Flow> {
    let attributes = answer.body.get(HEADER.len()..)?;
    let original = attribute(attributes, TUPLE_ORIGINAL)?;
    let (protocol, asked) = end(original, 2, 3)?;
    let (_, answers) = end(attribute(attributes, TUPLE_REPLY)?, 1, 2)?;
    Some(Flow { protocol, asked, answers, original: original.to_vec() })
}

/// One end of a tuple: 1 and 2 name the source, 2 and 3 the destination.
fn end(tuple: &[u8], address: u16, port: u16) -> Option<(u8, Endpoint)> {
    let ip = attribute(attribute(tuple, TUPLE_IP)?, address)?;
    let protocol = attribute(tuple, TUPLE_PROTOCOL)?;
    let number = attribute(protocol, 1)?.first()?;
    let port = attribute(protocol, port)?;
    let ip = Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?);
    Some((*number, Endpoint { ip, port: u16::from_be_bytes(<[u8; 2]>::try_from(port).ok()?) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ip: [u8; 4], port: u16) -> Endpoint {
        Endpoint { ip: ip.into(), port }
    }

    #[test]
    fn only_flows_to_endpoints_that_are_none_are_stale() {
        let (service, pod, gone) = (at([10, 2, 0, 5], 53), at([10, 1, 0, 2], 5353), at([10, 1, 0, 9], 5353));
        let node = at([192, 0, 2, 1], 30053);
        let key = ServiceKey { ip: service.ip, port: service.port, protocol: Protocol::Udp };
        let mut table = ServiceTable::default();
        table.services.insert(key, vec![pod]);
        table.node_ports.insert((node.port, Protocol::Udp), vec![pod]);
        let stale =
            |protocol, asked, answers| is_stale(&Flow { protocol, asked, answers, original: vec![] }, &table);
        for asked in [service, node] {
            assert!(stale(17, asked, gone));
            assert!(!stale(17, asked, pod));
            assert!(!stale(17, asked, asked), "not ours: nothing was translated");
            assert!(!stale(6, asked, gone), "TCP sees to itself");
        }
        assert!(!stale(17, at([192, 0, 2, 9], 53), gone), "not a service");
    }
}
