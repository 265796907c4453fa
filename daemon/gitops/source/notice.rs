//! File notification: what was touched below some paths, and when it has become quiet.
//!
//! Invariant: bounded however much is written: a path is remembered once.
//! Invariant: a file that somebody holds open for writing is given longer than one that was closed or renamed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::time::Instant;

use crate::Error;

/// How the last event on a path left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Touch {
    /// Closed after writing, or moved here: complete.
    Done,
    /// Created or written and still open, or removed and perhaps about to be written anew.
    Unsettled,
}

/// How long quiet has to last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quiet {
    /// When everything touched is complete.
    pub(crate) done: Duration,
    /// When something is not.
    pub(crate) unsettled: Duration,
    /// At most this long after the first event.
    pub(crate) most: Duration,
}

/// Tells what is touched below some paths.
pub(crate) struct Notice {
    shared: Arc<Shared>,
    _watcher: RecommendedWatcher,
}

#[derive(Default)]
struct Shared {
    touched: Mutex<BTreeMap<PathBuf, Touch>>,
    arrived: tokio::sync::Notify,
}

impl Notice {
    /// Watches these paths, each alone or with all below it. `of_interest` says which paths count.
    pub(crate) fn new(
        paths: &[(PathBuf, RecursiveMode)],
        of_interest: impl Fn(&Path, &EventKind) -> bool + Send + 'static,
    ) -> Result<Notice, Error> {
        let shared = Arc::new(Shared::default());
        let told = Arc::clone(&shared);
        let on_event = move |event: notify::Result<Event>| told.note(event, &of_interest);
        let path_of = || paths.first().map(|(path, _)| path.clone()).unwrap_or_default();
        let mut watcher = notify::recommended_watcher(on_event)
            .map_err(|source| Error::Watch { path: path_of(), source })?;
        for (path, mode) in paths {
            watcher.watch(path, *mode).map_err(|source| Error::Watch { path: path.clone(), source })?;
        }
        Ok(Notice { shared, _watcher: watcher })
    }

    /// Waits for the next touch, then until it is quiet. Returns what was touched. Cancel-safe: what was touched is
    /// forgotten only at the return.
    /// How long quiet has to last is asked at the first touch.
    pub(crate) async fn settled(&self, quiet: impl Fn() -> Quiet) -> Vec<PathBuf> {
        while self.lock().is_empty() {
            self.shared.arrived.notified().await;
        }
        let quiet = quiet();
        let latest = Instant::now() + quiet.most;
        loop {
            let worst = self.lock().values().copied().max();
            let wait = if worst == Some(Touch::Done) { quiet.done } else { quiet.unsettled };
            let until = (Instant::now() + wait).min(latest);
            let more = tokio::time::timeout_at(until, self.shared.arrived.notified()).await.is_ok();
            if !more || Instant::now() >= latest {
                return std::mem::take(&mut *self.lock()).into_keys().collect();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Touch>> {
        self.shared.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn note(&self, event: notify::Result<Event>, of_interest: &impl Fn(&Path, &EventKind) -> bool) {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        let before = touched.len();
        let mut any = false;
        match event {
            Ok(event) => {
                if event.need_rescan() {
                    touched.insert(PathBuf::new(), Touch::Unsettled);
                    any = true;
                }
                let Some(touch) = touch(&event.kind) else { return };
                for path in event.paths.into_iter().filter(|path| of_interest(path, &event.kind)) {
                    touched.insert(path, touch);
                    any = true;
                }
            }
            // Part of a tree may be unwatched now: look at all of it.
            Err(_) => {
                touched.insert(PathBuf::new(), Touch::Unsettled);
                any = true;
            }
        }
        if any || touched.len() > before {
            self.arrived.notify_one();
        }
    }
}

fn touch(kind: &EventKind) -> Option<Touch> {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Touch::Done),
        EventKind::Access(_) => None,
        EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both) | ModifyKind::Metadata(_)) => {
            Some(Touch::Done)
        }
        _ => Some(Touch::Unsettled),
    }
}

/// Whether the event may be about a directory, so that a name without `.yaml` still counts.
pub(crate) fn may_be_directory(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::Create(CreateKind::Folder | CreateKind::Any)
            | EventKind::Remove(RemoveKind::Folder | RemoveKind::Any)
            | EventKind::Modify(ModifyKind::Name(_) | ModifyKind::Metadata(_))
            | EventKind::Any
            | EventKind::Other
    )
}

/// The nearest directory above (or at) a path that exists.
pub(crate) fn nearest_existing(path: &Path) -> PathBuf {
    let mut at = path;
    loop {
        if at.is_dir() {
            return at.to_path_buf();
        }
        match at.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => at = parent,
            Some(_) => return PathBuf::from("."),
            None => return PathBuf::from("/"),
        }
    }
}
