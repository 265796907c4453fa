//! What the operator may say about the API server.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// `[api]` of config.toml.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where kubectl reaches the API, HTTPS only.
    pub listen: SocketAddr,
    /// How many requests (watches not counted) may be worked on at once; more get 429 and are to try again.
    pub max_requests_in_flight: usize,
    /// Addresses of Services; filled in by the node from its network, not by the operator.
    #[serde(skip)]
    pub services: ServiceRange,
    /// Who the server is; filled in by the node from its directory.
    #[serde(skip)]
    pub identity: Identity,
}

/// What a server signs with and where pods reach it.
#[derive(Clone, PartialEq, Default)]
pub struct Identity {
    /// The key that signs tokens of ServiceAccounts, as PEM; empty: one that lives as long as the server.
    pub token_key: String,
    /// The CA's certificate, as PEM.
    pub ca: String,
    /// Where pods reach the API: what the Service `kubernetes` leads to. None: there is no such Service.
    pub advertise: Option<std::net::SocketAddrV4>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("advertise", &self.advertise).finish_non_exhaustive()
    }
}

/// The addresses that Services get.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServiceRange {
    /// First address of the network.
    pub network: Ipv4Addr,
    /// Length of the prefix, e.g. 20.
    pub prefix: u8,
    /// The DNS server's address: never given to a Service.
    pub dns: Ipv4Addr,
}

impl Default for ServiceRange {
    fn default() -> Self {
        ServiceRange { network: Ipv4Addr::new(10, 96, 0, 0), prefix: 20, dns: Ipv4Addr::new(10, 96, 0, 10) }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 6443)),
            max_requests_in_flight: 400,
            services: ServiceRange::default(),
            identity: Identity::default(),
        }
    }
}
