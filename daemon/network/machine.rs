//! What the machine already has: its addresses and routes, and what instances before us claimed or changed.
//!
//! Invariant: a setting of the machine is changed only while an instance needs it, and the last one to leave puts
//! back what was there.
//! Invariant: ranges are chosen and settings changed under one lock, so that instances never race.

use crate::cidr::{Cidr, Range, choose};
use crate::netlink::Socket;
use crate::rtnl::{self, Address, LOOPBACK, Link, Route};
use crate::{Addresses, Config, Error};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Shared by all instances of a machine; gone after a reboot, as are the settings it remembers.
const RUN: &str = "/run/holdfast";

/// The machine's links, routes and addresses at one moment.
#[derive(Default)]
pub(crate) struct Machine {
    pub(crate) links: Vec<Link>,
    pub(crate) routes: Vec<Route>,
    pub(crate) addresses: Vec<Address>,
}

/// What instances on this machine share.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    /// Instance → its ranges.
    #[serde(default)]
    pub(crate) ranges: BTreeMap<String, Ranges>,
    /// Link → its `forwarding` before, and the instances that need it.
    #[serde(default)]
    forwarding: BTreeMap<String, Forwarding>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Forwarding {
    before: String,
    users: BTreeSet<String>,
}

/// The ranges of one instance, as kept in its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ranges {
    pub(crate) pod_cidr: Cidr,
    pub(crate) service_cidr: Cidr,
}

/// The claims, held exclusively until dropped.
pub(crate) struct Locked {
    path: PathBuf,
    pub(crate) claims: Claims,
    _lock: Flock<File>,
}

impl Machine {
    pub(crate) fn observe(socket: &Socket) -> Result<Machine, Error> {
        let refused =
            |what: &str, source| Error::Link { attempt: format!("list {what} of this machine"), source };
        Ok(Machine {
            links: rtnl::links(socket).map_err(|source| refused("links", source))?,
            routes: rtnl::routes(socket).map_err(|source| refused("routes", source))?,
            addresses: rtnl::addresses(socket).map_err(|source| refused("addresses", source))?,
        })
    }

    /// The ranges that are in use by others than the instance whose links begin with `prefix`.
    ///
    /// Very wide routes (a default route, or the halves of one that VPNs set) say nothing about what is in use.
    fn taken(&self, prefix: &str, own: Option<&Ranges>) -> Vec<Cidr> {
        let own_address = |ip: Ipv4Addr| {
            own.and_then(fixed_addresses).is_some_and(|(gateway, dns)| ip == gateway || ip == dns)
        };
        let named = |index: Option<u32>| {
            self.links.iter().any(|link| Some(link.index) == index && link.name.starts_with(prefix))
        };
        // Routes of ours to services lie on lo and are known by the claims of their instance.
        let routes = self.routes.iter().filter(|route| {
            route.destination.prefix() >= 8
                && !named(route.link)
                && !(route.ours && route.link == Some(LOOPBACK))
        });
        let addresses = self.addresses.iter().filter(|address| !own_address(address.ip));
        routes.map(|route| route.destination).chain(addresses.map(|address| address.net)).collect()
    }

    /// The machine's primary address: where its default route leads out, else the first that is not its own to itself.
    pub(crate) fn primary(&self) -> Option<Ipv4Addr> {
        let default = self.routes.iter().find(|route| route.destination.prefix() == 0);
        let on_default = || {
            let link = default?.link?;
            self.addresses.iter().find(|address| address.link == link).map(|address| address.ip)
        };
        let any = || self.addresses.iter().find(|address| address.link != LOOPBACK).map(|address| address.ip);
        default.and_then(|route| route.source).or_else(on_default).or_else(any)
    }

    /// The links on which others reach this machine: those with an address.
    fn outward(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| {
            link.index != LOOPBACK && self.addresses.iter().any(|address| address.link == link.index)
        })
    }
}

impl Locked {
    /// Waits for the lock of this network namespace's claims and reads them.
    pub(crate) fn take() -> Result<Locked, Error> {
        let file = |attempt, path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { attempt, path, source }
        };
        let run = Path::new(RUN);
        fs::create_dir_all(run).map_err(file("create", run))?;
        // Link names mean something only within one network namespace.
        let namespace = Path::new("/proc/thread-self/ns/net");
        let inode = fs::metadata(namespace).map_err(file("read", namespace))?.ino();
        let lock_path = run.join("network.lock");
        let lock = File::create(&lock_path).map_err(file("create", &lock_path))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| file("lock", &lock_path)(errno.into()))?;
        let path = run.join(format!("network-{inode}.json"));
        let claims = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| Error::Ranges { path: path.clone(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Claims::default(),
            Err(source) => return Err(file("read", &path)(source)),
        };
        Ok(Locked { path, claims, _lock: lock })
    }

    /// Writes the claims back; none left removes the file.
    pub(crate) fn save(&self) -> Result<(), Error> {
        if self.claims != Claims::default() {
            return write_json(&self.path, &self.claims);
        }
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { attempt: "remove", path: self.path.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// Lets packets that come in on the machine's outward links go on to attachments.
    pub(crate) fn open_outward(&mut self, machine: &Machine, instance: &str) -> Result<(), Error> {
        for link in machine.outward() {
            let before = read_forwarding(&link.name)?;
            if let Some(known) = self.claims.forwarding.get_mut(&link.name) {
                known.users.insert(instance.to_owned());
            } else if before != "1" {
                let users = BTreeSet::from([instance.to_owned()]);
                self.claims
                    .forwarding
                    .insert(link.name.clone(), Forwarding { before: before.clone(), users });
            }
            if before != "1" {
                // Remembered before it is done: a crash between the two must not lose what was there.
                self.save()?;
                write_forwarding(&link.name, "1")?;
            }
        }
        self.save()
    }

    /// Forgets what the instance needed, and puts back what nobody needs any more.
    pub(crate) fn release(&mut self, instance: &str) -> Result<(), Error> {
        self.claims.ranges.remove(instance);
        for (link, forwarding) in &mut self.claims.forwarding {
            if forwarding.users.remove(instance)
                && forwarding.users.is_empty()
                && forwarding_path(link).exists()
            {
                write_forwarding(link, &forwarding.before)?;
            }
        }
        self.claims.forwarding.retain(|_, forwarding| !forwarding.users.is_empty());
        self.save()
    }
}

/// The ranges to use: configured, else remembered, else chosen now; checked against what others use, and remembered.
pub(crate) fn settle(
    config: &Config,
    prefix: &str,
    machine: &Machine,
    locked: &mut Locked,
) -> Result<Ranges, Error> {
    let path = config.dir.join("addresses.json");
    let remembered = read_ranges(&path)?;
    let wanted = |range: Range, remembered: Option<Cidr>| match range {
        Range::Auto => remembered.map_or(Range::Auto, Range::Fixed),
        fixed => fixed,
    };
    let pods = wanted(config.pod_cidr, remembered.map(|ranges| ranges.pod_cidr));
    let services = wanted(config.service_cidr, remembered.map(|ranges| ranges.service_cidr));
    let own = remembered.as_ref().or(locked.claims.ranges.get(&config.name));
    let mut taken = machine.taken(prefix, own);
    let others = locked.claims.ranges.iter().filter(|(name, _)| **name != config.name);
    taken.extend(others.flat_map(|(_, ranges)| [ranges.pod_cidr, ranges.service_cidr]));

    let seed = usize::from_str_radix(&config.name, 36).unwrap_or(0);
    let (pod_cidr, service_cidr) =
        choose(pods, services, &taken, seed).map_err(|what| Error::NoRange { what })?;
    check("pod_cidr", pod_cidr, 29, &taken)?;
    check("service_cidr", service_cidr, 28, &taken)?;
    if pod_cidr.overlaps(service_cidr) {
        return Err(Error::Overlap { what: "service_cidr", cidr: service_cidr, taken: pod_cidr });
    }
    let ranges = Ranges { pod_cidr, service_cidr };
    if remembered != Some(ranges) {
        write_json(&path, &ranges)?;
    }
    locked.claims.ranges.insert(config.name.clone(), ranges);
    locked.save()?;
    Ok(ranges)
}

/// Everything `addresses()` tells.
pub(crate) fn addresses(ranges: Ranges, machine: &Machine) -> Addresses {
    let (gateway, dns) = fixed_addresses(&ranges).expect("ranges were checked for room");
    let node = machine.primary().unwrap_or(gateway);
    Addresses { pod_cidr: ranges.pod_cidr, service_cidr: ranges.service_cidr, dns, gateway, node }
}

/// The gateway's and the DNS server's address. The tenth is where people look for cluster DNS.
fn fixed_addresses(ranges: &Ranges) -> Option<(Ipv4Addr, Ipv4Addr)> {
    Some((ranges.pod_cidr.nth(1)?, ranges.service_cidr.nth(10)?))
}

fn check(what: &'static str, cidr: Cidr, most: u8, taken: &[Cidr]) -> Result<(), Error> {
    if cidr.prefix() > most {
        return Err(Error::TooSmall { what, cidr, most });
    }
    match taken.iter().find(|taken| taken.overlaps(cidr)) {
        Some(taken) => Err(Error::Overlap { what, cidr, taken: *taken }),
        None => Ok(()),
    }
}

fn read_ranges(path: &Path) -> Result<Option<Ranges>, Error> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| Error::Ranges { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { attempt: "read", path: path.to_owned(), source }),
    }
}

/// Writes the file whole or not at all.
/// Replaces the file whole, or leaves it alone when it says the same already: idle writes nothing.
fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let written = || {
        let bytes = serde_json::to_vec(value)?;
        if fs::read(path).is_ok_and(|known| known == bytes) {
            return Ok(());
        }
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let beside = path.with_extension("json.new");
        let mut file = File::create(&beside)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    written().map_err(|source| Error::File { attempt: "write", path: path.to_owned(), source })
}

fn forwarding_path(link: &str) -> PathBuf {
    // A dot in a link's name (a VLAN's) is a slash to sysctl, but its directory has the dot.
    Path::new("/proc/sys/net/ipv4/conf").join(link).join("forwarding")
}

fn read_forwarding(link: &str) -> Result<String, Error> {
    let path = forwarding_path(link);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(Error::File { attempt: "read", path, source }),
    }
}

fn write_forwarding(link: &str, value: &str) -> Result<(), Error> {
    let path = forwarding_path(link);
    fs::write(&path, value).map_err(|source| Error::File { attempt: "write", path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().expect("a test's range parses")
    }

    fn route(destination: &str, link: u32, ours: bool) -> Route {
        Route { destination: cidr(destination), link: Some(link), ours, source: None }
    }

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.to_owned(), alias: None }
    }

    fn machine() -> Machine {
        let address =
            |link, ip: &str, net: &str| Address { link, ip: ip.parse().expect("an address"), net: cidr(net) };
        Machine {
            links: vec![link(1, "lo"), link(2, "eth0"), link(3, "hfab12x"), link(4, "hfcd34x")],
            routes: vec![
                route("0.0.0.0/0", 2, false),
                route("0.0.0.0/1", 2, false),
                route("192.0.2.0/24", 2, false),
                route("10.128.0.2/32", 3, true),
                route("10.129.0.2/32", 4, true),
                route("10.128.128.0/20", 1, true),
            ],
            addresses: vec![
                address(1, "127.0.0.1", "127.0.0.0/8"),
                address(1, "10.128.0.1", "10.128.0.1/32"),
                address(2, "192.0.2.2", "192.0.2.0/24"),
            ],
        }
    }

    #[test]
    fn what_others_use_is_taken_and_what_is_ours_is_not() {
        let own = Ranges { pod_cidr: cidr("10.128.0.0/20"), service_cidr: cidr("10.128.128.0/20") };
        let taken = machine().taken("hfab12", Some(&own));
        let expected = ["192.0.2.0/24", "10.129.0.2/32", "127.0.0.0/8", "192.0.2.0/24"].map(cidr);
        assert_eq!(taken, expected);
    }

    #[test]
    fn the_primary_address_is_where_the_default_route_leads_out() {
        assert_eq!(machine().primary(), Some(Ipv4Addr::new(192, 0, 2, 2)));
        assert_eq!(Machine::default().primary(), None);
    }

    #[test]
    fn a_configured_range_that_is_in_use_is_refused_by_name() {
        let error = check("pod_cidr", cidr("192.0.0.0/16"), 29, &[cidr("192.0.2.0/24")]).expect_err("taken");
        assert!(error.to_string().contains("pod_cidr 192.0.0.0/16 overlaps 192.0.2.0/24"), "{error}");
        let error = check("service_cidr", cidr("10.1.0.0/30"), 28, &[]).expect_err("too small");
        assert!(error.to_string().contains("/28"), "{error}");
    }
}
