//! A layer over the door that loses requests and answers, for tests of everything that speaks through it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Method, Request, Response};
use tower::Service;

use crate::{Body, BoxError};

/// Which writes go wrong. Reads and watches are left alone: a reader that cannot read does nothing.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// Every nth write is refused with 500 and not done. 0: never.
    pub refuse_every: u64,
    /// Every nth write is done, but the answer is lost: the caller sees 500. 0: never.
    pub lose_every: u64,
}

/// A service whose writes fail as told.
#[derive(Debug, Clone)]
pub struct Faulty<S> {
    inner: S,
    faults: Faults,
    writes: Arc<AtomicU64>,
}

impl<S> Faulty<S> {
    /// Wraps a service.
    pub fn new(inner: S, faults: Faults) -> Faulty<S> {
        Faulty { inner, faults, writes: Arc::default() }
    }
}

impl<S> Service<Request<kube::client::Body>> for Faulty<S>
where
    S: Service<Request<kube::client::Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        if request.method() == Method::GET {
            let answer = self.inner.call(request);
            return Box::pin(async move { answer.await.map_err(Into::into) });
        }
        let write = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        let hit = |every: u64| every > 0 && write.is_multiple_of(every);
        if hit(self.faults.refuse_every) {
            return Box::pin(async { Ok(broken("injected: refused")) });
        }
        let lost = hit(self.faults.lose_every);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await.map_err(Into::into)?;
            Ok(if lost { broken("injected: answer lost") } else { answer })
        })
    }
}

fn broken(message: &str) -> Response<Body> {
    let status = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "InternalError", "code": 500, "message": message,
    });
    let mut response = Response::new(crate::full(status.to_string()));
    *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
    response
}
