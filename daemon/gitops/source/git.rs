//! A repository as a source: one task per repository, shared by all applications that follow it.
//!
//! Invariant: a repository on this machine is noticed, one on another machine is asked once per interval.
//! Invariant: what was fetched stays usable when the repository is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::{EventKind, RecursiveMode};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::location::Location;
use super::notice::{Notice, Quiet, nearest_existing};
use super::pace::Patience;
use super::repository::{GitDir, Index, Mirror, Reading};
use super::transport::{Auth, Ways};
use super::verify::Verify;
use super::{Slot, Snapshot, smart};
use crate::Error;

/// A ref is updated by one rename: it is complete at once.
const QUIET: Quiet = Quiet {
    done: Duration::from_millis(1),
    unsettled: Duration::from_millis(10),
    most: Duration::from_millis(500),
};
/// When file notification cannot be had.
const WITHOUT_WATCH: Duration = Duration::from_secs(5);
/// The first wait after a failure; it doubles up to the interval.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// More packs than this are fetched anew as one.
const MOST_PACKS: usize = 50;

/// What one application wants of a repository.
pub(crate) struct Wanted {
    pub(crate) reference: String,
    pub(crate) path: String,
    pub(crate) verify: Option<Verify>,
    pub(crate) slot: Slot,
    /// What the files in the slot are known by, so that a commit that did not touch them costs nothing.
    pub(crate) index: Mutex<Option<Index>>,
}

/// A repository that applications follow.
pub(crate) struct Git {
    pub(crate) location: Location,
    pub(crate) interval: Duration,
    pub(crate) wanted: Vec<Wanted>,
    /// Where its copy is kept if it lives on another machine.
    pub(crate) mirror: PathBuf,
    /// The program for SSH.
    pub(crate) ssh: std::ffi::OsString,
    pub(crate) auth: Auth,
    pub(crate) patience: Patience,
    /// Asks for a look right now.
    pub(crate) hurry: Arc<Notify>,
}

impl Git {
    /// Follows the repository until stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => {}
            // Dropped only at the end: what was fetched half is fetched again.
            () = self.follow() => {}
        }
    }

    async fn follow(&self) {
        match &self.location {
            Location::Local(path) => self.follow_local(path).await,
            Location::Http(_) | Location::Ssh { .. } => self.follow_remote().await,
        }
    }

    async fn follow_local(&self, path: &Path) {
        loop {
            let found = GitDir::find(path);
            let notice = watch(path, found.as_ref().ok());
            match &found {
                Ok(found) => self.read_local(found).await,
                Err(error) => self.all_in_trouble(error),
            }
            tokio::select! {
                biased;
                // Cancel-safe: a permit that is not taken stays.
                () = self.hurry.notified() => {}
                // Cancel-safe: touches are forgotten only at the return; the watch is made anew before the next read.
                () = settled(&notice) => {}
            }
        }
    }

    async fn read_local(&self, found: &GitDir) {
        let dir = found.clone();
        let read = tokio::task::spawn_blocking(move || (dir.refs(), dir.objects())).await;
        match read {
            Ok((Ok(refs), objects)) => {
                self.read_all(&self.wanted.iter().collect::<Vec<_>>(), &refs, objects).await;
            }
            Ok((Err(source), _)) => {
                self.all_in_trouble(&Error::OpenRepository { repository: self.location.shown(), source });
            }
            Err(_) => self.all_in_trouble(&Error::CutOff("reading the repository")),
        }
    }

    /// Resolves refs, and reads the commits of those whose slots do not hold them, with the repository opened once.
    async fn read_all(&self, all: &[&Wanted], refs: &BTreeMap<String, String>, objects: Vec<PathBuf>) {
        let mut readings = Vec::new();
        for (at, wanted) in all.iter().enumerate() {
            let Some((_, id)) = smart::resolve(refs, &wanted.reference) else {
                wanted.slot.trouble(&self.no_ref(wanted, refs));
                continue;
            };
            if let Some(snapshot) = wanted.slot.snapshot().filter(|snapshot| snapshot.revision == id) {
                wanted.slot.good((*snapshot).clone());
                continue;
            }
            readings.push((at, self.reading(wanted, id, objects.clone()), lock(&wanted.index).clone()));
        }
        let Some((_, first, _)) = readings.first() else { return };
        let open = first.clone();
        let read = tokio::task::spawn_blocking(move || {
            let repository = open.open();
            let read = |(at, reading, known): (usize, Reading, Option<Index>)| match &repository {
                Ok(repository) => (at, reading.read(repository, known.as_ref())),
                Err(_) => (at, reading.snapshot().map(|_| None)),
            };
            readings.into_iter().map(read).collect::<Vec<_>>()
        });
        match read.await {
            Err(_) => all.iter().for_each(|wanted| wanted.slot.trouble(&Error::CutOff("reading the commit"))),
            Ok(results) => {
                for (at, result) in results {
                    self.take(all[at], result);
                }
            }
        }
    }

    fn take(&self, wanted: &Wanted, result: Result<Option<(Snapshot, Index)>, Error>) {
        match result {
            Ok(Some((snapshot, index))) => {
                *lock(&wanted.index) = Some(index);
                wanted.slot.good(snapshot);
            }
            // Untouched: what the slot holds is right, and any trouble is over.
            Ok(None) => {
                if let Some(snapshot) = wanted.slot.snapshot() {
                    wanted.slot.good((*snapshot).clone());
                }
            }
            Err(error) => wanted.slot.trouble(&error),
        }
    }

    fn reading(&self, wanted: &Wanted, id: String, objects: Vec<PathBuf>) -> Reading {
        Reading {
            objects,
            id,
            path: wanted.path.clone(),
            repository: self.location.shown(),
            reference: wanted.reference.clone(),
            verify: wanted.verify.clone(),
        }
    }

    fn no_ref(&self, wanted: &Wanted, refs: &BTreeMap<String, String>) -> Error {
        let names = refs.keys().filter(|name| !name.ends_with("^{}") && *name != "HEAD");
        let short = names.map(|name| name.trim_start_matches("refs/heads/").trim_start_matches("refs/tags/"));
        let names: Vec<&str> = short.take(8).collect();
        let has = if names.is_empty() { "none yet; push a commit".to_owned() } else { names.join(", ") };
        Error::NoRef { reference: wanted.reference.clone(), repository: self.location.shown(), has }
    }

    fn all_in_trouble(&self, error: &Error) {
        for wanted in &self.wanted {
            wanted.slot.trouble(error);
        }
    }

    async fn follow_remote(&self) {
        let mirror = Mirror { dir: self.mirror.clone() };
        // What was fetched before the daemon started: it serves until the network does.
        let last = mirror.last();
        let resolved = |wanted: &&Wanted| smart::resolve(&last, &wanted.reference).is_some();
        let known: Vec<&Wanted> = self.wanted.iter().filter(resolved).collect();
        self.read_all(&known, &last, vec![mirror.objects()]).await;
        let mut retry = FIRST_RETRY;
        loop {
            // Made anew each time: certificates are renewed.
            let ways = Ways::new(self.ssh.clone(), self.auth.clone(), self.patience, &self.location.shown());
            let asked = match &ways {
                Ok(ways) => self.ask(ways, &mirror).await,
                Err(_) => ways.map(drop),
            };
            let wait = match asked {
                Ok(()) => {
                    retry = FIRST_RETRY;
                    self.interval
                }
                Err(error) => {
                    self.all_in_trouble(&error);
                    let wait = retry.min(self.interval);
                    retry = retry.saturating_mul(2);
                    wait
                }
            };
            // Either way it is asked again; a hurry while it is asked is kept as a permit.
            let _ = tokio::time::timeout(wait, self.hurry.notified()).await;
        }
    }

    /// Lists the refs, fetches what has moved, reads what was fetched.
    async fn ask(&self, ways: &Ways, mirror: &Mirror) -> Result<(), Error> {
        let mut connection = Some(ways.connect(&self.location).await?);
        if mirror.packs() > MOST_PACKS {
            mirror.forget()?;
        }
        let refs = connection.as_ref().map(|open| open.advertised.refs.clone()).unwrap_or_default();
        let mut keep = BTreeMap::new();
        let mut asked = BTreeSet::new();
        for wanted in &self.wanted {
            let Some((name, id)) = smart::resolve(&refs, &wanted.reference) else { continue };
            keep.insert(name, id.clone());
            let reading = self.reading(wanted, id.clone(), vec![mirror.objects()]);
            if !asked.insert(id.clone()) || reading.is_here() {
                continue;
            }
            let open = match connection.take() {
                Some(open) => open,
                None => ways.connect(&self.location).await?,
            };
            self.fetch(open, mirror, &id).await?;
        }
        if let Some(open) = connection {
            open.end().await;
        }
        if !keep.is_empty() {
            mirror.remember(&keep)?;
        }
        self.read_all(&self.wanted.iter().collect::<Vec<_>>(), &refs, vec![mirror.objects()]).await;
        Ok(())
    }

    async fn fetch(
        &self,
        open: super::transport::Connection,
        mirror: &Mirror,
        id: &str,
    ) -> Result<(), Error> {
        let objects = vec![mirror.objects()];
        let mut have: Vec<String> = mirror.last().into_values().collect();
        // What is told to be here must be here, or the pack would lack it.
        have.retain(|id| self.reading(&self.wanted[0], id.clone(), objects.clone()).is_here());
        let (sender, receiver) = mpsc::channel(8);
        let storing = mirror.clone();
        let store = tokio::task::spawn_blocking(move || storing.store(receiver));
        let fetched = open.fetch(id, &have, sender).await;
        let stored = store.await.map_err(|_| Error::CutOff("storing the pack"))?;
        fetched?;
        let failed = |source| Error::ReadRepository {
            what: format!("the pack of {}", id.get(..12).unwrap_or(id)),
            repository: self.location.shown(),
            source,
        };
        if let Err(error) = stored {
            // A damaged copy must not stand in the way for ever.
            mirror.forget()?;
            return Err(failed(error));
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn settled(notice: &Result<Notice, Error>) {
    match notice {
        Ok(notice) => {
            notice.settled(|| QUIET).await;
        }
        Err(_) => tokio::time::sleep(WITHOUT_WATCH).await,
    }
}

/// Watches what a push changes; or, while there is no repository, the nearest directory in which it could appear.
fn watch(path: &Path, found: Option<&GitDir>) -> Result<Notice, Error> {
    let Some(dir) = found else {
        return Notice::new(&[(nearest_existing(path), RecursiveMode::NonRecursive)], |_, _| true);
    };
    let mut paths = vec![(dir.common.clone(), RecursiveMode::NonRecursive)];
    if dir.own != dir.common {
        paths.push((dir.own.clone(), RecursiveMode::NonRecursive));
    }
    paths.push((dir.common.join("refs"), RecursiveMode::Recursive));
    if let Some(above) = path.parent() {
        paths.push((nearest_existing(above), RecursiveMode::NonRecursive));
    }
    let (common, own, whole) = (dir.common.clone(), dir.own.clone(), path.to_path_buf());
    Notice::new(&paths, move |touched: &Path, _: &EventKind| {
        let name = touched.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".lock") {
            return false;
        }
        let beside = [&common, &own].into_iter().any(|dir| touched.parent() == Some(dir));
        if beside {
            name == "HEAD" || name == "packed-refs" || name == "refs"
        } else {
            touched.starts_with(&common) || touched == whole
        }
    })
}
