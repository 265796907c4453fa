//! The Kubernetes API over the store: authentication, authorization, admission, storage, watch, HTTP.
//!
//! Invariant: every request takes the same road (`answer::answer`), whether it came by function call or over TLS.
//! Invariant: resources are rows of `api::kinds`; there is no code path per kind but `strategy`.
//! Invariant: only this room touches the store.

mod admission;
mod answer;
mod apiservices;
mod auth;
mod config;
mod crd;
mod csr;
mod delete;
mod door;
mod encoding;
mod eviction;
mod kubernetes;
mod list;
mod metrics;
mod negotiate;
mod node;
mod object;
mod path;
mod pki;
mod proxy;
mod query;
mod rbac;
mod read;
mod refusal;
mod restore;
mod reviews;
mod scale;
mod serve;
mod strategy;
mod watch;
mod write;
mod yaml;

use std::sync::Arc;

use jiff::Timestamp;
use store::Store;

pub use auth::{KeyError, User};
pub use config::{Config, Identity, ServiceRange};
pub use csr::Asked;
pub use door::Door;
pub use object::Head;
pub use pki::{Pki, PkiError};
pub use serve::ServeError;

use crate::auth::Tokens;
use crate::list::Continuations;
use crate::node::Nodes;
use crate::strategy::Allocator;

/// The API server of one node. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store<Head>,
    allocator: Allocator,
    quota: admission::quota::Turn,
    nodes: Nodes,
    continuations: Continuations,
    tokens: Tokens,
    /// The CA's certificate, for those who are to trust this server.
    ca: String,
    parsed: rbac::Parsed,
    crds: crd::Registry,
    in_flight: Arc<tokio::sync::Semaphore>,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
    /// A server over this store. Makes the namespaces that every Kubernetes cluster has, when they are missing.
    ///
    /// # Errors
    /// When the namespaces can be neither found nor written.
    pub async fn open(
        store: Store<Head>,
        config: &Config,
        now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> Result<Server, api::error::ApiError> {
        let key = &config.identity.token_key;
        let tokens = if key.is_empty() { Tokens::fresh() } else { Tokens::of_pem(key) };
        let tokens = tokens.map_err(api::error::ApiError::internal)?;
        let inner = Inner {
            store,
            allocator: Allocator::new(config),
            quota: admission::quota::Turn::default(),
            nodes: Nodes::default(),
            continuations: Continuations::default(),
            tokens,
            ca: config.identity.ca.clone(),
            parsed: rbac::Parsed::default(),
            crds: crd::Registry::default(),
            in_flight: Arc::new(tokio::sync::Semaphore::new(config.max_requests_in_flight)),
            now,
        };
        let server = Server { inner: Arc::new(inner) };
        admission::make_first_objects(&server.inner).await?;
        rbac::bootstrap::ensure(&server.inner).await?;
        crd::refresh(&server.inner).await?;
        if let Some(advertised) = config.identity.advertise {
            kubernetes::ensure(&server.inner, advertised).await?;
        }
        Ok(server)
    }

    /// The door for a room of this process: a service that answers requests of this user by a function call.
    pub fn door(&self, user: User) -> Door {
        Door::new(Arc::clone(&self.inner), user)
    }

    /// Tells where the kubelet of a node answers: logs and exec of its pods go there.
    pub fn connect_node(&self, name: &str, door: client::NodeDoor) {
        self.inner.nodes.connect(name, door);
    }

    /// Revision of the newest change: also a measure of how much happened.
    pub fn revision(&self) -> u64 {
        self.inner.store.revision()
    }

    /// Answers HTTPS on this listener until the token is cancelled; connections under way get a moment to end.
    ///
    /// # Errors
    /// When the certificates cannot be used.
    pub async fn serve(
        &self,
        listener: tokio::net::TcpListener,
        pki: &Pki,
        stop: tokio_util::sync::CancellationToken,
    ) -> Result<(), ServeError> {
        serve::serve(Arc::clone(&self.inner), listener, pki, stop).await
    }
}

#[cfg(test)]
mod tests;
