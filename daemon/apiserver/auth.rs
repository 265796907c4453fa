//! Who asks, and whether they may.
//!
//! Authentication is by client certificate (common name = user, organisations = groups, as Kubernetes documents) or by
//! being a room of this process. Role-based rules are not served yet: members of `system:masters` may everything,
//! everybody else may read health, version and discovery, and is refused the rest by name.

use api::error::ApiError;

use crate::path::{Target, Verb};

/// Somebody who sends requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// `system:anonymous` when unknown.
    pub name: String,
    /// Groups, e.g. `system:masters`.
    pub groups: Vec<String>,
    /// A room of this process: it bounds its own work, so it is not told to come back later.
    pub(crate) room: bool,
}

impl User {
    /// A room of this process. Rooms may everything; the name shows up as field manager.
    pub fn room(name: &str) -> User {
        User { name: name.to_owned(), groups: vec!["system:masters".to_owned()], room: true }
    }

    /// Nobody known.
    pub fn anonymous() -> User {
        User {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            room: false,
        }
    }
}

pub(crate) fn authorize(user: &User, verb: Verb, target: &Target) -> Result<(), ApiError> {
    if user.groups.iter().any(|group| group == "system:masters") || target.is_public() {
        return Ok(());
    }
    Err(match target {
        Target::Resource(resource) => {
            let why = format!(
                "User \"{}\" cannot {} resource \"{}\"",
                user.name,
                verb.name(),
                resource.kind.plural
            );
            ApiError::forbidden(resource.kind, resource.name.as_deref().unwrap_or_default(), &why)
        }
        Target::Document(path) => ApiError::bad_request(format!(
            "forbidden: User \"{}\" cannot {} path \"{path}\"",
            user.name,
            verb.name()
        )),
    })
}
