//! IPv4 ranges: parsing, overlap, choosing a free range, choosing a free address. Pure.
//!
//! Invariant: a `Cidr` has no bits set after its prefix.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 range such as `10.1.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

/// A range as configured: `auto`, or the range itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Range {
    /// Whatever is free on this machine.
    #[default]
    Auto,
    /// This one and no other.
    Fixed(Cidr),
}

/// Why a text is no range.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no IPv4 range such as 10.1.0.0/16 (bits after the prefix must be zero)")]
pub struct NotACidr {
    text: String,
}

impl Cidr {
    /// The range of `prefix` bits around `ip`. A prefix over 32 counts as 32.
    pub fn around(ip: Ipv4Addr, prefix: u8) -> Cidr {
        let prefix = prefix.min(32);
        Cidr { base: ip.to_bits() & mask(prefix), prefix }
    }

    /// Its first address.
    pub fn base(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base)
    }

    /// The number of fixed bits, 0 to 32.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The bits that are fixed, as an address.
    pub fn netmask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    /// Its last address.
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base | !mask(self.prefix))
    }

    /// The address `offset` after the first, where the range has one.
    pub fn nth(self, offset: u32) -> Option<Ipv4Addr> {
        let ip = Ipv4Addr::from_bits(self.base.checked_add(offset)?);
        self.contains(ip).then_some(ip)
    }

    /// Whether the address lies in the range.
    pub fn contains(self, ip: Ipv4Addr) -> bool {
        ip.to_bits() & mask(self.prefix) == self.base
    }

    /// Whether the ranges share an address.
    pub fn overlaps(self, other: Cidr) -> bool {
        let prefix = self.prefix.min(other.prefix);
        self.base & mask(prefix) == other.base & mask(prefix)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Cidr, NotACidr> {
        let parsed = || {
            let (ip, prefix) = text.split_once('/')?;
            let ip: Ipv4Addr = ip.parse().ok()?;
            let prefix: u8 = prefix.parse().ok()?;
            let cidr = Cidr::around(ip, prefix);
            (prefix <= 32 && cidr.base() == ip).then_some(cidr)
        };
        parsed().ok_or_else(|| NotACidr { text: text.to_owned() })
    }
}

impl FromStr for Range {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Range, NotACidr> {
        if text == "auto" { Ok(Range::Auto) } else { text.parse().map(Range::Fixed) }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Range::Auto => f.write_str("auto"),
            Range::Fixed(cidr) => cidr.fmt(f),
        }
    }
}

impl TryFrom<String> for Cidr {
    type Error = NotACidr;

    fn try_from(text: String) -> Result<Cidr, NotACidr> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

impl TryFrom<String> for Range {
    type Error = NotACidr;

    fn try_from(text: String) -> Result<Range, NotACidr> {
        text.parse()
    }
}

impl From<Range> for String {
    fn from(range: Range) -> String {
        range.to_string()
    }
}

/// The first address of `pool` after `last` (wrapping around) that is not in `used`.
///
/// Going on after `last` keeps an address that was just freed out of use for as long as possible: others may still
/// remember it. The first two and the last address are never handed out (range, gateway, broadcast).
pub fn free_address(pool: Cidr, used: &BTreeSet<Ipv4Addr>, last: Ipv4Addr) -> Option<Ipv4Addr> {
    let first = pool.base().to_bits().checked_add(2)?;
    let end = pool.last().to_bits();
    let start = (last.to_bits().saturating_add(1)).clamp(first, end.max(first));
    (start..end).chain(first..start.min(end)).map(Ipv4Addr::from_bits).find(|ip| !used.contains(ip))
}

/// The pod and service ranges that are asked for, choosing free ones for `auto`.
///
/// Choosing looks at blocks of /16 in private space, starting at one that `seed` picks, so that instances that
/// never ran at the same time rarely choose the same. `None` names the range for which nothing was free.
pub fn choose(
    pods: Range,
    services: Range,
    taken: &[Cidr],
    seed: usize,
) -> Result<(Cidr, Cidr), &'static str> {
    let blocks = blocks();
    let free = |offset: u32, other: Option<Cidr>| {
        let at = |i: usize| {
            let block = blocks[(seed.wrapping_add(i)) % blocks.len()];
            Cidr::around(Ipv4Addr::from_bits(block.base + offset), AUTO_PREFIX)
        };
        (0..blocks.len()).map(at).find(|cidr| {
            !taken.iter().any(|taken| taken.overlaps(*cidr))
                && !other.is_some_and(|other| other.overlaps(*cidr))
        })
    };
    let fixed = |range: Range| match range {
        Range::Auto => None,
        Range::Fixed(cidr) => Some(cidr),
    };
    let pod = fixed(pods).or_else(|| free(0, fixed(services))).ok_or("pod_cidr")?;
    let service = fixed(services).or_else(|| free(SERVICE_OFFSET, Some(pod))).ok_or("service_cidr")?;
    Ok((pod, service))
}

/// 4,094 addresses each.
const AUTO_PREFIX: u8 = 20;
/// Services lie in the upper half of a block.
const SERVICE_OFFSET: u32 = 0x8000;

/// Blocks of /16 that `auto` looks at: 10.128 to 10.254, 172.16 to 172.31, 100.64 to 100.127.
fn blocks() -> Vec<Cidr> {
    let block = |a: u8, b: u8| Cidr::around(Ipv4Addr::new(a, b, 0, 0), 16);
    (128..255)
        .map(|b| block(10, b))
        .chain((16..32).map(|b| block(172, b)))
        .chain((64..128).map(|b| block(100, b)))
        .collect()
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().expect("a test's range parses")
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().expect("a test's address parses")
    }

    #[test]
    fn a_range_is_read_and_written_alike_or_refused() {
        for good in ["0.0.0.0/0", "10.1.0.0/16", "10.1.2.3/32"] {
            assert_eq!(cidr(good).to_string(), good);
        }
        for bad in ["", "10.1.0.0", "10.1.0.1/16", "10.1.0.0/33", "10.1.0.0/-1", "fd00::/8", "auto"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        assert_eq!("auto".parse(), Ok(Range::Auto));
    }

    #[test]
    fn ranges_overlap_when_one_holds_the_other() {
        assert!(cidr("10.0.0.0/8").overlaps(cidr("10.3.0.0/16")));
        assert!(cidr("10.3.0.0/16").overlaps(cidr("10.0.0.0/8")));
        assert!(!cidr("10.3.0.0/16").overlaps(cidr("10.4.0.0/16")));
        assert!(cidr("0.0.0.0/0").overlaps(cidr("10.4.0.0/16")));
    }

    #[test]
    fn a_freed_address_is_the_last_to_be_handed_out_again() {
        let pool = cidr("10.1.0.0/29");
        let mut used = BTreeSet::new();
        let mut last = pool.base();
        for expected in ["10.1.0.2", "10.1.0.3", "10.1.0.4"] {
            last = free_address(pool, &used, last).expect("room");
            assert_eq!(last, ip(expected));
            used.insert(last);
        }
        used.remove(&ip("10.1.0.3"));
        for expected in ["10.1.0.5", "10.1.0.6", "10.1.0.3"] {
            last = free_address(pool, &used, last).expect("room");
            assert_eq!(last, ip(expected));
            used.insert(last);
        }
        assert_eq!(free_address(pool, &used, last), None);
    }

    #[test]
    fn auto_avoids_what_the_machine_uses() {
        let (pod, service) = choose(Range::Auto, Range::Auto, &[], 0).expect("free");
        assert_eq!((pod, service), (cidr("10.128.0.0/20"), cidr("10.128.128.0/20")));
        let (pod, service) = choose(Range::Auto, Range::Auto, &[cidr("10.128.3.0/24")], 0).expect("free");
        assert_eq!((pod, service), (cidr("10.129.0.0/20"), cidr("10.128.128.0/20")));
        let (pod, _) = choose(Range::Auto, Range::Auto, &[cidr("10.0.0.0/8")], 0).expect("free");
        assert_eq!(pod, cidr("172.16.0.0/20"));
        let fixed = Range::Fixed(cidr("10.128.0.0/16"));
        let (_, service) = choose(fixed, Range::Auto, &[], 0).expect("free");
        assert_eq!(service, cidr("10.129.128.0/20"));
        assert_eq!(choose(Range::Auto, Range::Auto, &[cidr("0.0.0.0/0")], 0), Err("pod_cidr"));
    }

    proptest! {
        #[test]
        fn an_address_handed_out_is_always_free_and_in_the_pool(
            used in proptest::collection::btree_set(0u32..64, 0..64), last in 0u32..80, prefix in 26u8..33,
        ) {
            let pool = Cidr::around(ip("10.1.0.0"), prefix);
            let used: BTreeSet<Ipv4Addr> =
                used.into_iter().map(|i| Ipv4Addr::from_bits(ip("10.1.0.0").to_bits() + i)).collect();
            let last = Ipv4Addr::from_bits(ip("10.1.0.0").to_bits() + last);
            let room = (2..64u32).filter_map(|i| pool.nth(i)).filter(|ip| *ip != pool.last() && !used.contains(ip)).count();
            match free_address(pool, &used, last) {
                Some(free) => prop_assert!(pool.contains(free) && !used.contains(&free) && free != pool.last()),
                None => prop_assert_eq!(room, 0),
            }
        }
    }
}
