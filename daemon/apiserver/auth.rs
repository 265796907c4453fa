//! Who asks: a room of this process, the holder of a client certificate, the bearer of a ServiceAccount's token, or nobody.
//!
//! Invariant: what `system:masters` may is not looked up: rooms and the administrator work with an empty store as well.

mod bound;
mod impersonation;
mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::error::ApiError;
use http::{HeaderMap, header};

use crate::Inner;

pub(crate) use bound::{legacy_secret, request, review};
pub use tokens::KeyError;
pub(crate) use tokens::Tokens;

/// Every user that is known.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// Members may everything.
pub(crate) const MASTERS: &str = "system:masters";
/// The name of nobody.
pub(crate) const ANONYMOUS: &str = "system:anonymous";

/// Somebody who sends requests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// `system:anonymous` when unknown.
    pub name: String,
    /// Groups, e.g. `system:masters`.
    pub groups: Vec<String>,
    /// What tells two users of one name apart: a ServiceAccount's uid. Mostly empty.
    pub uid: String,
    /// What else the authenticator knows: the pod that a token is bound to, and the like.
    pub extra: BTreeMap<String, Vec<String>>,
    /// A room of this process: it bounds its own work, so it is not told to come back later.
    pub(crate) room: bool,
}

impl User {
    /// A room of this process. Rooms may everything; the name shows up as field manager.
    pub fn room(name: &str) -> User {
        User { name: name.to_owned(), groups: vec![MASTERS.to_owned()], room: true, ..User::default() }
    }

    /// Nobody known.
    pub fn anonymous() -> User {
        User {
            name: ANONYMOUS.to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..User::default()
        }
    }

    /// The subject of a client certificate.
    pub(crate) fn certified(name: &str, groups: impl Iterator<Item = String>) -> User {
        User {
            name: name.to_owned(),
            groups: groups.chain([AUTHENTICATED.to_owned()]).collect(),
            ..User::default()
        }
    }

    /// Whether nothing needs to be looked up.
    pub(crate) fn may_everything(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }

    /// As reviews and webhooks show a user.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let mut user = serde_json::json!({ "username": self.name, "groups": self.groups });
        if !self.uid.is_empty() {
            user["uid"] = self.uid.clone().into();
        }
        if !self.extra.is_empty() {
            user["extra"] = serde_json::json!(self.extra);
        }
        user
    }
}

/// The user who sends these headers over a connection of `peer`: a bearer token says more than no certificate, and
/// impersonation headers speak for somebody else, when that is allowed.
pub(crate) fn authenticate(
    inner: &Inner,
    peer: &Arc<User>,
    headers: &HeaderMap,
) -> Result<Arc<User>, ApiError> {
    let mut user = Arc::clone(peer);
    if user.name == ANONYMOUS
        && let Some(token) = bearer(headers)
    {
        user = Arc::new(bound::user_of_token(inner, token).map_err(|_| ApiError::unauthorized())?);
    }
    Ok(impersonation::impersonate(inner, &user, headers)?.map_or(user, Arc::new))
}

/// The token of `Authorization: Bearer`, or of the WebSocket protocol that browsers have to carry it in.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}
