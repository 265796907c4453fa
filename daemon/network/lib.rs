//! Gives the pods of one machine addresses and a wire, and turns a table of services into packet rules.
//!
//! Invariant: everything made here carries the instance's name, and `remove_all` leaves nothing of it.
//! Invariant: what the kernel holds is the only record of attachments; the file in `dir` holds the ranges alone.
//! Invariant: nothing here knows what a pod, a Service or a namespace of Kubernetes is.

pub mod absent;
pub mod cidr;
pub mod conformance;
mod conntrack;
pub mod fake;
pub mod linux;
mod machine;
mod netlink;
mod nft;
mod notice;
mod rtnl;
mod rules;
pub mod services;
mod veth;

use crate::cidr::{Cidr, Range};
use crate::services::{Changes, ServiceTable};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Addresses and packet rules of one machine.
#[async_trait]
pub trait Network: Send + Sync {
    /// Gives the network namespace at `netns` an `eth0` and an address; twice is once.
    ///
    /// `want` asks for an address that the attachment had before; it is refused when taken by another or out of range.
    async fn attach(&self, id: &str, netns: &Path, want: Option<Ipv4Addr>) -> Result<Attachment, Error>;

    /// Takes the attachment away and frees its address; one that is not there is success.
    ///
    /// The address no longer leads anywhere when this returns; the kernel may free the link a little later.
    async fn detach(&self, id: &str) -> Result<(), Error>;

    /// Every attachment there is, by id, also those an earlier process made.
    fn attachments(&self) -> BTreeMap<String, Attachment>;

    /// One of them: costs the same however many there are.
    fn attachment(&self, id: &str) -> Option<Attachment>;

    /// Makes the packet rules equal to `table` in one transaction that carries only what changed.
    ///
    /// The first call after the network was opened replaces the rules, whatever was there. Connections that exist keep
    /// the endpoint they have, as long as it is one: UDP flows to an endpoint that is gone are forgotten.
    async fn apply_services(&self, table: &ServiceTable) -> Result<Changes, Error>;

    /// The ranges and fixed addresses of this machine's network.
    fn addresses(&self) -> Addresses;
}

/// What a network is opened with; `[network]` of config.toml.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where attachments get their addresses from.
    pub pod_cidr: Range,
    /// Where services have theirs; nothing in it is handed out here.
    pub service_cidr: Range,
    /// Where the chosen ranges are kept; filled in by the node, not by the operator.
    #[serde(skip)]
    pub dir: PathBuf,
    /// The instance: 4 characters of `a-z0-9`, part of the name of every link and table made; filled in by the node.
    #[serde(skip)]
    pub name: String,
}

/// One namespace's place in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The address of `eth0` inside.
    pub ip: Ipv4Addr,
    /// Always 32 with routed links.
    pub prefix: u8,
    /// The next hop the default route inside points at.
    pub gateway: Ipv4Addr,
    /// The name of the host's end.
    pub link: String,
}

/// The ranges and fixed addresses of one machine's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Attachments' addresses come from here.
    pub pod_cidr: Cidr,
    /// Services' addresses come from here.
    pub service_cidr: Cidr,
    /// Bound on this machine for a DNS server; the tenth address of `service_cidr`, to be given to no service.
    pub dns: Ipv4Addr,
    /// Source of what the machine itself sends to attachments; the first address of `pod_cidr`.
    pub gateway: Ipv4Addr,
    /// The machine's primary address of now, or `gateway` where it has none.
    pub node: Ipv4Addr,
}

/// What could not be done, on what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a change of links, addresses or routes.
    #[error("{attempt} (needs CAP_NET_ADMIN)")]
    Link {
        /// What was attempted, on what.
        attempt: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a transaction of packet rules.
    #[error("{attempt} in nftables table {table} (needs CAP_NET_ADMIN and nf_tables)")]
    Rules {
        /// What was attempted.
        attempt: String,
        /// The table.
        table: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A network namespace could not be entered.
    #[error("enter network namespace {path}")]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A file of ours or of /proc could not be read or written.
    #[error("{attempt} {path}")]
    File {
        /// `read`, `write` or `lock`.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file of chosen ranges does not read as one.
    #[error("parse {path}: remove it to have address ranges chosen anew")]
    Ranges {
        /// The file.
        path: PathBuf,
        /// Where it stops making sense.
        #[source]
        source: serde_json::Error,
    },
    /// A configured or remembered range overlaps one the machine already uses.
    #[error(
        "{what} {cidr} overlaps {taken}, which this machine already uses: set another {what} in config.toml"
    )]
    Overlap {
        /// `pod_cidr` or `service_cidr`.
        what: &'static str,
        /// The range.
        cidr: Cidr,
        /// What it overlaps.
        taken: Cidr,
    },
    /// `auto` found nothing.
    #[error("every private range is in use on this machine: set {what} in config.toml")]
    NoRange {
        /// `pod_cidr` or `service_cidr`.
        what: &'static str,
    },
    /// A range has no room for the addresses the network itself needs.
    #[error("{what} {cidr} is too small: it must be /{most} or larger")]
    TooSmall {
        /// `pod_cidr` or `service_cidr`.
        what: &'static str,
        /// The range.
        cidr: Cidr,
        /// The longest prefix that is possible.
        most: u8,
    },
    /// The instance's name cannot be part of a link's name.
    #[error("network instance name {name:?} must be 4 characters of a-z and 0-9")]
    Name {
        /// The name.
        name: String,
    },
    /// The id cannot be written on a link.
    #[error("attachment id {id:?} must have 1 to 250 bytes")]
    Id {
        /// The id.
        id: String,
    },
    /// The asked address belongs to another attachment or lies outside the range.
    #[error("address {ip} for attachment {id} is {why}")]
    Address {
        /// The address.
        ip: Ipv4Addr,
        /// Who asked.
        id: String,
        /// `taken by X` or `outside <range>`.
        why: String,
    },
    /// All addresses are in use.
    #[error("no free address in {pod_cidr} for attachment {id}: set a larger pod_cidr in config.toml")]
    Exhausted {
        /// The range.
        pod_cidr: Cidr,
        /// Who asked.
        id: String,
    },
    /// The machine gives us no network at all.
    #[error("this machine gives holdfast no network: {why}")]
    Absent {
        /// What opening it said.
        why: String,
    },
    /// A thread could not be started, or ended without an answer.
    #[error("run a thread to {attempt}")]
    Thread {
        /// What it was for.
        attempt: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}
