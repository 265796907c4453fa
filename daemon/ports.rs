//! The ports that programs of this machine listen on at addresses that others reach.
//!
//! Invariant: what cannot be read is no port.

use std::collections::BTreeSet;
use std::fs;

/// As sockets in state LISTEN have it in `/proc/net/tcp`.
const LISTEN: &str = "0A";
/// Sockets of UDP that are not connected.
const UNCONNECTED: &str = "07";

/// Looks at this machine.
pub(crate) fn listening() -> BTreeSet<(String, u16)> {
    let files = [
        ("TCP", "tcp", LISTEN),
        ("TCP", "tcp6", LISTEN),
        ("UDP", "udp", UNCONNECTED),
        ("UDP", "udp6", UNCONNECTED),
    ];
    let mut all = BTreeSet::new();
    for (protocol, file, state) in files {
        let text = fs::read_to_string(format!("/proc/net/{file}")).unwrap_or_default();
        all.extend(ports(&text, state).map(|port| (protocol.to_owned(), port)));
    }
    all
}

/// The ports of a table of sockets in this state, but for those on loopback addresses.
fn ports<'a>(table: &'a str, state: &'a str) -> impl Iterator<Item = u16> + 'a {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _, has) = (fields.next()?, fields.next()?, fields.next()?);
        let (address, port) = local.split_once(':')?;
        // 127.x.y.z, in the byte order of the machine, and ::1.
        let loopback =
            (address.len() == 8 && address.ends_with("7F")) || address == "00000000000000000000000001000000";
        (has == state && !loopback).then(|| u16::from_str_radix(port, 16).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_listens_for_others_is_a_port_in_use() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 00000000:0016 00000000:0000 0A 00000000:00000000\n\
             1: 0100007F:192B 00000000:0000 0A 00000000:00000000\n\
             2: 0500A8C0:01BB 0600A8C0:C350 01 00000000:00000000\n\
             3: 00000000000000000000000001000000:0277 00000000000000000000000000000000:0000 0A\n";
        assert_eq!(ports(table, LISTEN).collect::<Vec<_>>(), [22]);
    }
}
