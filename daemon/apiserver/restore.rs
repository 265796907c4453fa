//! Putting objects as they were elsewhere, for looking at a saved state.
//!
//! Invariant: nothing is judged or filled in: what was saved was admitted once.

use api::error::ApiError;
use api::kinds;
use serde_json::Value;
use store::{Change, Durability, Expect, Write};

use crate::Server;
use crate::object::{Head, key, template};

impl Server {
    /// Puts these objects. Says how many; kinds that are not served are passed over.
    ///
    /// # Errors
    /// When the store does not take one.
    pub async fn restore(&self, objects: &[Value]) -> Result<usize, ApiError> {
        let mut put = 0;
        for object in objects {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let Some(kind) = kinds::by_kind(&text(&object["apiVersion"]), &text(&object["kind"])) else {
                continue;
            };
            let meta = &object["metadata"];
            let namespace = if kind.namespaced { text(&meta["namespace"]) } else { String::new() };
            let change = Change {
                key: key(kind, &namespace, &text(&meta["name"])).into(),
                expect: Expect::Any,
                write: Write::Put { value: template(object), head: Head::of(kind, object) },
                durability: Durability::Journalled,
            };
            self.inner.store.commit(change).await.map_err(|error| ApiError::internal(&error))?;
            put += 1;
        }
        Ok(put)
    }
}
