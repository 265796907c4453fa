//! A network in memory, for rooms that need one but no kernel. It passes the same conformance suite.

use crate::cidr::{Cidr, free_address};
use crate::services::{Changes, ServiceTable, plan};
use crate::{Addresses, Attachment, Error, Network};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Remembers what it was told.
pub struct FakeNetwork {
    state: Mutex<State>,
    addresses: Addresses,
}

#[derive(Default)]
struct State {
    attachments: BTreeMap<String, Attachment>,
    last: Option<Ipv4Addr>,
    applied: Option<ServiceTable>,
}

impl FakeNetwork {
    /// A network with these ranges; nothing of the machine is looked at.
    ///
    /// # Panics
    /// When a range has fewer than 16 addresses.
    pub fn new(pod_cidr: Cidr, service_cidr: Cidr) -> FakeNetwork {
        let gateway = pod_cidr.nth(1).expect("a range for tests has room");
        let dns = service_cidr.nth(10).expect("a range for tests has room");
        let addresses = Addresses { pod_cidr, service_cidr, dns, gateway, node: gateway };
        FakeNetwork { state: Mutex::default(), addresses }
    }

    /// The table that was applied last.
    pub fn applied(&self) -> Option<ServiceTable> {
        self.state().applied.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Network for FakeNetwork {
    async fn attach(&self, id: &str, _netns: &Path, want: Option<Ipv4Addr>) -> Result<Attachment, Error> {
        if id.is_empty() || id.len() > 250 {
            return Err(Error::Id { id: id.to_owned() });
        }
        let mut state = self.state();
        if let Some(known) = state.attachments.get(id) {
            return Ok(known.clone());
        }
        let pool = self.addresses.pod_cidr;
        let used: BTreeMap<Ipv4Addr, &String> =
            state.attachments.iter().map(|(id, it)| (it.ip, id)).collect();
        let ip = match want {
            Some(ip) => match used.get(&ip) {
                Some(other) => Err(format!("taken by {other}")),
                None if !pool.contains(ip) => Err(format!("outside {pool}")),
                None => Ok(ip),
            }
            .map_err(|why| Error::Address { ip, id: id.to_owned(), why })?,
            None => {
                let used: BTreeSet<Ipv4Addr> = used.into_keys().collect();
                let last = state.last.unwrap_or(self.addresses.gateway);
                let exhausted = || Error::Exhausted { pod_cidr: pool, id: id.to_owned() };
                let ip = free_address(pool, &used, last).ok_or_else(exhausted)?;
                state.last = Some(ip);
                ip
            }
        };
        let gateway = crate::veth::GATEWAY;
        let attachment = Attachment { ip, prefix: 32, gateway, link: format!("fake-{id}") };
        state.attachments.insert(id.to_owned(), attachment.clone());
        Ok(attachment)
    }

    async fn detach(&self, id: &str) -> Result<(), Error> {
        self.state().attachments.remove(id);
        Ok(())
    }

    fn attachments(&self) -> BTreeMap<String, Attachment> {
        self.state().attachments.clone()
    }

    fn attachment(&self, id: &str) -> Option<Attachment> {
        self.state().attachments.get(id).cloned()
    }

    async fn apply_services(&self, table: &ServiceTable) -> Result<Changes, Error> {
        let mut state = self.state();
        let replaced = state.applied.is_none();
        let elements = plan(&state.applied.take().unwrap_or_default(), table).len();
        state.applied = Some(table.clone());
        Ok(Changes { replaced, elements })
    }

    fn addresses(&self) -> Addresses {
        self.addresses
    }
}
