//! The seam to what keeps the store's bytes when the process ends.
//!
//! Invariant: a group is there after a crash as a whole or not at all.
//! Invariant: after a synced append everything appended before it is durable too.

use std::{error::Error, sync::Arc};

use bytes::Bytes;

use crate::{Durability, Revision};

/// What a key holds on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The bytes under the key.
    pub value: Bytes,
    /// Revision of the change that made the key exist.
    pub created: Revision,
    /// Revision of the change that wrote `value`.
    pub modified: Revision,
}

/// The new state of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which key.
    pub key: Arc<str>,
    /// None when it was deleted.
    pub stored: Option<Stored>,
}

/// What is written at once, as a whole or not at all. Of two records of one key the later one counts.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// In the order in which they happened.
    pub records: Vec<Record>,
    /// The new ceiling, when it is raised: no revision above the durable ceiling was ever handed out.
    pub ceiling: Option<Revision>,
}

/// One disk (or something that serves as one), used by one writer.
///
/// An append that failed may still have reached the disk: the store writes the keys of such a group again, with what
/// they hold in memory, before anything else. After a failed append the next one must try afresh.
pub trait Disk: Send {
    /// Hands every key that exists to `each` and gives the ceiling, 0 when none was ever written.
    ///
    /// # Errors
    /// A fault when the disk cannot be read or what it holds was not written by this trait.
    fn load(&mut self, each: &mut dyn FnMut(Arc<str>, Stored)) -> Result<Revision, Fault>;

    /// Writes one group. `Journalled` survives the end of the process, `Synced` the end of the machine.
    ///
    /// # Errors
    /// A fault when the disk did not take it; whether the group is there is then open.
    fn append(&mut self, group: &Group, durability: Durability) -> Result<(), Fault>;

    /// Where the bytes are, for messages.
    fn place(&self) -> String;
}

/// What the disk could not do. A clone for every change of a failed group.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{attempted}")]
pub struct Fault {
    /// What was tried on what, and the way out where there is one.
    pub attempted: String,
    /// What the disk answered.
    #[source]
    pub source: Arc<dyn Error + Send + Sync>,
}

impl Fault {
    /// A fault of trying `attempted`.
    pub fn new(attempted: String, source: impl Error + Send + Sync + 'static) -> Fault {
        Fault { attempted, source: Arc::new(source) }
    }
}
