//! Where files come from: a snapshot is a value, and nothing below sees Git or a disk again.
//!
//! Invariant: a source that cannot be read keeps giving its last good snapshot, and says why.

mod collect;
#[cfg(test)]
mod damage;
mod directory;
mod git;
mod ignore;
mod location;
mod notice;
mod pace;
mod pushed;
mod receive;
mod repository;
mod smart;
#[cfg(test)]
mod tests;
mod transport;
mod verify;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use reconcile::chain;
use tokio::sync::watch;
use tracing::warn;

use crate::Error;

pub(crate) use directory::{Directory, read};
pub(crate) use git::{Git, Wanted};
pub(crate) use location::Location;
pub(crate) use pace::Patience;
pub(crate) use pushed::{Incoming, Pushed};
pub use receive::Service;
pub(crate) use receive::{Command, Push, PushReader, advertisement, band, fetch, packet, report};
pub(crate) use repository::Reading;
pub(crate) use smart::SEMVER;
pub use transport::Auth;
pub use verify::Verify;

/// A file larger than this is not a manifest.
pub(crate) const MOST_FILE_BYTES: usize = 4 << 20;
/// Files an application may have.
pub(crate) const MOST_FILES: usize = 20_000;
/// Bytes of all files of an application.
pub(crate) const MOST_BYTES: usize = 256 << 20;

/// The files of an application at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The commit, or a hash of the directory's content.
    pub(crate) revision: String,
    /// `name <mail>` of the commit; nothing for a directory.
    pub(crate) author: Option<String>,
    /// The commit's message; nothing for a directory.
    pub(crate) message: Option<String>,
    /// When the commit was made; nothing for a directory.
    pub(crate) committed_at: Option<Timestamp>,
    /// The application's directory, as the names of its files begin; files beside it are those that its kustomizations
    /// refer to.
    pub(crate) root: Arc<str>,
    /// Manifests, and what kustomizations read besides, by the name a person knows them by.
    pub(crate) files: BTreeMap<Arc<str>, Arc<[u8]>>,
    /// Manifests that are there but cannot be read, and why.
    pub(crate) unreadable: BTreeMap<Arc<str>, String>,
}

/// What a source has to tell now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sourced {
    /// The last good snapshot.
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    /// Why it is not newer.
    pub(crate) trouble: Option<String>,
    /// When it was fetched.
    pub(crate) fetched_at: Option<Timestamp>,
}

/// Where a source puts what it has for one application.
pub(crate) struct Slot {
    sender: watch::Sender<Arc<Sourced>>,
    wake: Box<dyn Fn() + Send + Sync>,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Slot {
    /// An empty slot, whose application is woken whenever it has something new.
    pub(crate) fn new(
        wake: impl Fn() + Send + Sync + 'static,
        now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> (Slot, watch::Receiver<Arc<Sourced>>) {
        let (sender, receiver) = watch::channel(Arc::default());
        (Slot { sender, wake: Box::new(wake), now }, receiver)
    }

    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.sender.borrow().snapshot.clone()
    }

    /// The source was read.
    fn good(&self, snapshot: Snapshot) {
        let known = Arc::clone(&self.sender.borrow());
        let same = known.snapshot.as_deref() == Some(&snapshot);
        if same && known.trouble.is_none() {
            return;
        }
        let fetched_at = if same { known.fetched_at } else { Some((self.now)()) };
        let snapshot = if same { known.snapshot.clone() } else { Some(Arc::new(snapshot)) };
        self.sender.send_replace(Arc::new(Sourced { snapshot, trouble: None, fetched_at }));
        (self.wake)();
    }

    /// The source could not be read: the last good snapshot stays.
    fn trouble(&self, error: &Error) {
        let trouble = chain(error);
        let known = Arc::clone(&self.sender.borrow());
        if known.trouble.as_ref() == Some(&trouble) {
            return;
        }
        warn!(error = trouble, "source cannot be read, its last good state stays");
        self.sender.send_replace(Arc::new(Sourced { trouble: Some(trouble), ..(*known).clone() }));
        (self.wake)();
    }
}

/// Whether a file's name says that it is a manifest: not what editors leave beside the files they write.
pub(crate) fn is_manifest(name: &str) -> bool {
    let written = [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end));
    written && !is_passing(name)
}

/// Names of editors' temporary files, and everything hidden.
pub(crate) fn is_passing(name: &str) -> bool {
    name.starts_with('.')
        || name.ends_with('~')
        || name.ends_with(".swp")
        || name.ends_with(".tmp")
        || name == "4913"
        || (name.starts_with('#') && name.ends_with('#'))
}
