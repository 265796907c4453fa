//! The network of a machine that gives us none: every attempt says what is missing.
//!
//! So that a node without the rights for namespaces still starts, shows its page and its API, and tells why its pods
//! do not run.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use async_trait::async_trait;

use crate::cidr::Cidr;
use crate::services::{Changes, ServiceTable};
use crate::{Addresses, Attachment, Error, Network};

/// No network, and why.
#[derive(Debug, Clone)]
pub struct AbsentNetwork {
    why: String,
}

impl AbsentNetwork {
    /// `why` is what opening the real network said.
    pub fn new(why: String) -> AbsentNetwork {
        AbsentNetwork { why }
    }

    fn refuse<T>(&self) -> Result<T, Error> {
        Err(Error::Absent { why: self.why.clone() })
    }
}

#[async_trait]
impl Network for AbsentNetwork {
    async fn attach(&self, _: &str, _: &Path, _: Option<Ipv4Addr>) -> Result<Attachment, Error> {
        self.refuse()
    }

    /// Nothing was ever attached.
    async fn detach(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    fn attachments(&self) -> BTreeMap<String, Attachment> {
        BTreeMap::new()
    }

    fn attachment(&self, _: &str) -> Option<Attachment> {
        None
    }

    async fn apply_services(&self, _: &ServiceTable) -> Result<Changes, Error> {
        self.refuse()
    }

    /// Ranges that the API may number Services from; nothing answers at them.
    fn addresses(&self) -> Addresses {
        let pod_cidr = Cidr::around(Ipv4Addr::new(10, 42, 0, 0), 24);
        let service_cidr = Cidr::around(Ipv4Addr::new(10, 43, 0, 0), 20);
        let dns = service_cidr.nth(10).unwrap_or(Ipv4Addr::LOCALHOST);
        Addresses { pod_cidr, service_cidr, dns, gateway: Ipv4Addr::LOCALHOST, node: Ipv4Addr::LOCALHOST }
    }
}
