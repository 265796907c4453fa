//! The door for rooms of this process: a request is answered by a function call.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use client::{Body, BoxError};
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;
use tower::Service;

use crate::Inner;
use crate::auth::User;

/// A service that answers as the API server does, for one user. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    inner: Arc<Inner>,
    user: Arc<User>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("user", &self.user.name).finish_non_exhaustive()
    }
}

impl Door {
    pub(crate) fn new(inner: Arc<Inner>, user: User) -> Door {
        Door { inner, user: Arc::new(user) }
    }
}

impl Service<Request<kube::client::Body>> for Door {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let (inner, user) = (Arc::clone(&self.inner), Arc::clone(&self.user));
        let request =
            request.map(|body| body.map_err(|error| -> BoxError { Box::new(error) }).boxed_unsync());
        Box::pin(async move { Ok(crate::answer::answer(inner, user, request).await) })
    }
}
