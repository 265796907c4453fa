//! The present: what every key holds, in a map whose clone costs nothing.
//!
//! Invariant: a map once published is never changed; the writer changes its own clone.

use std::{ops::Bound, sync::Arc};

use crate::{Entry, Revision};

pub(crate) type Map<H> = imbl::OrdMap<Arc<str>, Entry<H>>;

/// The map with the revision up to which it holds every change.
pub(crate) struct Present<H> {
    pub(crate) map: Map<H>,
    pub(crate) revision: Revision,
}

/// Entries under `prefix` above `after_key`, in the order of keys. They may outlive the two arguments.
pub(crate) fn range<'a, H>(
    map: &'a Map<H>,
    prefix: &str,
    after_key: Option<&str>,
) -> impl Iterator<Item = &'a Entry<H>> + use<'a, H> {
    let from = match after_key {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    let entries = map.range::<_, str>((from, Bound::Unbounded)).map(|(_, entry)| entry);
    let prefix = prefix.to_owned();
    entries.take_while(move |entry| entry.key.starts_with(&prefix))
}
