//! Reading one object.

use api::error::ApiError;
use store::Entry;

use crate::path::Resource;
use crate::{Head, Inner, object};

/// The stored entry, or 404 in Kubernetes' words.
pub(crate) fn entry(inner: &Inner, resource: &Resource) -> Result<Entry<Head>, ApiError> {
    let name = resource.name.as_deref().unwrap_or_default();
    let key = object::key(resource.kind, &resource.namespace, name);
    inner.store.snapshot().get(&key).cloned().ok_or_else(|| ApiError::not_found(resource.kind, name))
}
