//! The door to the cluster, the caches behind it, and the clock.
//!
//! Invariant: a room speaks to the cluster only through a `kube::Client`; it cannot tell whether behind it is a
//! function call or a machine far away.
//! Invariant: of each kind one watch runs, however many rooms look at it.

mod cache;
mod clock;
mod correlate;
mod events;
pub mod faults;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use tower::Service;

pub use cache::{Cache, Caches, Key, Object, key_of};
pub use clock::Clock;
pub use events::{Recorder, Weight};

/// What a request or an answer carries, in process as well as over the network.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// Any error, for bodies and services.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Answers the kubelet's own HTTP paths (`/containerLogs/…`, `/exec/…`) for one node.
pub type NodeDoor = std::sync::Arc<
    dyn Fn(Request<Body>) -> futures::future::BoxFuture<'static, Response<Body>> + Send + Sync,
>;

/// A body that holds these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A client over any service that answers Kubernetes requests: the API server in this process, or a connection.
pub fn door<S>(service: S) -> kube::Client
where
    S: Service<Request<kube::client::Body>, Response = Response<Body>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    kube::Client::new(service, "default")
}

/// Whether an answer says that the object is not there: for a delete that is success.
pub fn is_not_found(error: &kube::Error) -> bool {
    code(error) == Some(404)
}

/// Whether a create was refused because the object exists: for a derived name that is success.
pub fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}

/// Whether an update lost against a newer version of the object.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "Conflict")
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}
