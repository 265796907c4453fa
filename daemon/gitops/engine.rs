//! The engine: one task per source, one loop over the applications.
//!
//! Invariant: an object that cannot be applied is tried again with its own back-off and stops no other.
//! Invariant: an unchanged object costs no request: a dry run is asked for only when its text or its live form changed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client::Caches;
use jiff::Timestamp;
use reconcile::{Backoff, Plan, Queue, Reconciler, Tasks, Work};
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};

use crate::Error;
use crate::application::{Follower, Neighbourhood};
use crate::config::{Application, Origin};
use crate::diff::Diff;
use crate::live::Watched;
use crate::plan::{self, Step, View};
use crate::source::{Directory, Git, Location, Slot, Wanted};
use crate::status::Status;

/// What an engine is made of.
pub struct Parts {
    /// The door, with the shared caches behind it.
    pub caches: Caches,
    /// As declared in config.toml.
    pub applications: Vec<Application>,
    /// Where copies of repositories on other machines are kept.
    pub dir: PathBuf,
    /// The time.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// The program that opens SSH connections, `ssh`.
    pub ssh: OsString,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("applications", &self.applications)
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

/// The GitOps engine. Clone is cheap.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("applications", &self.names()).finish()
    }
}

struct Inner {
    queue: Queue<String>,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    followers: BTreeMap<String, Follower>,
    /// By the location without credentials.
    hurries: BTreeMap<String, Arc<Notify>>,
    sources: Mutex<Vec<Source>>,
    changed: watch::Sender<u64>,
}

enum Source {
    Directory(Directory),
    Git(Git),
}

impl Engine {
    /// Checks the declarations and lays everything out; nothing runs yet.
    ///
    /// # Errors
    /// `Config` for a declaration that cannot be followed or a name that is taken twice.
    pub fn new(parts: Parts) -> Result<Engine, Error> {
        let queue = Queue::new();
        let names = parts.applications.iter().map(|app| app.name.clone()).collect();
        let around = Neighbourhood {
            watched: Arc::new(Watched::new(parts.caches.clone(), queue.clone())),
            names: Arc::new(names),
            door: parts.caches.client(),
        };
        let mut inner = Inner {
            queue: queue.clone(),
            now: Arc::clone(&parts.now),
            followers: BTreeMap::new(),
            hurries: BTreeMap::new(),
            sources: Mutex::default(),
            changed: watch::Sender::new(0),
        };
        let mut repositories: BTreeMap<Location, Git> = BTreeMap::new();
        let mut sources = Vec::new();
        for application in parts.applications {
            let origin = application.origin()?;
            let name = application.name.clone();
            let wake = (queue.clone(), name.clone());
            let (slot, sourced) = Slot::new(move || wake.0.wake(wake.1.clone()), Arc::clone(&parts.now));
            match &origin {
                Origin::Directory(path) => {
                    sources.push(Source::Directory(Directory { path: path.clone(), slot }))
                }
                Origin::Git { location, reference, path } => {
                    let hurry = inner.hurries.entry(location.shown()).or_default();
                    let git = repositories.entry(location.clone()).or_insert_with(|| Git {
                        location: location.clone(),
                        interval: application.interval.duration(),
                        wanted: Vec::new(),
                        mirror: parts.dir.join(mirror_name(location)),
                        ssh: parts.ssh.clone(),
                        hurry: Arc::clone(hurry),
                    });
                    git.interval = git.interval.min(application.interval.duration());
                    git.wanted.push(Wanted { reference: reference.clone(), path: path.clone(), slot });
                }
            }
            let follower = Follower::new(application, &origin, sourced, &around);
            if inner.followers.insert(name.clone(), follower).is_some() {
                let why = "its name is taken twice; every application needs its own".to_owned();
                return Err(Error::Config { application: name, why });
            }
        }
        sources.extend(repositories.into_values().map(Source::Git));
        inner.sources = Mutex::new(sources);
        Ok(Engine { inner: Arc::new(inner) })
    }

    /// Starts the sources and the loop. The second call starts nothing.
    pub fn start(&self, tasks: &Tasks) {
        let sources = std::mem::take(&mut *lock(&self.inner.sources));
        if sources.is_empty() {
            return;
        }
        let work = Work {
            reconciler: Arc::new(Loop { inner: Arc::clone(&self.inner) }),
            queue: self.inner.queue.clone(),
            now: Arc::clone(&self.inner.now),
            at_once: 8,
            backoff: Backoff::default(),
        };
        tasks.spawn("gitops", |stop| work.run(stop));
        for source in sources {
            match source {
                Source::Directory(directory) => {
                    tasks.spawn(format!("source {}", directory.path.display()), |stop| directory.run(stop));
                }
                Source::Git(git) => tasks.spawn(format!("source {}", git.location), |stop| git.run(stop)),
            }
        }
        for name in self.names() {
            self.inner.queue.wake(name);
        }
    }

    /// The names of the applications.
    pub fn names(&self) -> Vec<String> {
        self.inner.followers.keys().cloned().collect()
    }

    /// What an application told last. Nothing before its first round.
    pub fn status(&self, application: &str) -> Option<Status> {
        self.inner.followers.get(application)?.told()
    }

    /// All applications with what they told last.
    pub fn statuses(&self) -> BTreeMap<String, Status> {
        self.names().into_iter().map(|name| (name.clone(), self.status(&name).unwrap_or_default())).collect()
    }

    /// Counts up with every status that is told.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Looks at a repository (by its URL or path) or at an application's source right now. Says how many sources were
    /// hurried. What the caller says of the content is not asked for: a webhook only hurries.
    pub fn hurry(&self, what: &str) -> usize {
        let by_application = self.inner.followers.get(what).and_then(Follower::repository);
        let wanted = plain(what);
        let fits = |known: &&String| Some(known.as_str()) == by_application || plain(known) == wanted;
        let hurried: Vec<&Arc<Notify>> =
            self.inner.hurries.iter().filter(|(known, _)| fits(known)).map(|(_, hurry)| hurry).collect();
        hurried.iter().for_each(|hurry| hurry.notify_one());
        hurried.len()
    }

    /// Looks at the source and at everything live anew, and forgets the waits after failures.
    ///
    /// # Errors
    /// `NoApplication`.
    pub fn sync(&self, application: &str) -> Result<(), Error> {
        self.follower(application)?.forget();
        self.hurry(application);
        self.inner.queue.wake(application.to_owned());
        Ok(())
    }

    /// What a sync would change now. Changes nothing.
    ///
    /// # Errors
    /// `NoApplication`, `NoSnapshot` while the source was never read, `Door` when live cannot be read.
    pub async fn diff(&self, application: &str) -> Result<Diff, Error> {
        self.follower(application)?.diff().await
    }

    fn follower(&self, application: &str) -> Result<&Follower, Error> {
        self.inner.followers.get(application).ok_or_else(|| Error::NoApplication(application.to_owned()))
    }
}

/// A directory name for a repository's copy: stable, and without what a URL may hold.
fn mirror_name(location: &Location) -> String {
    let digest = Sha256::digest(location.shown().as_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// `host/path` of a repository, however it is reached: a webhook names the web address of what may be followed by ssh.
fn plain(url: &str) -> String {
    let rest = url.trim().split_once("://").map_or(url.trim(), |(_, rest)| rest);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or(authority);
    let (host, first) = host.split_once(':').unwrap_or((host, ""));
    // Digits after the colon are a port; anything else begins the path.
    let first = if first.bytes().all(|byte| byte.is_ascii_digit()) { "" } else { first };
    let path = format!("{first}{path}");
    let path = path.trim_matches('/').trim_end_matches(".git").trim_end_matches('/');
    format!("{}/{path}", host.to_ascii_lowercase())
}

struct Loop {
    inner: Arc<Inner>,
}

impl Reconciler for Loop {
    type Key = String;
    type View = Option<View>;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "gitops";

    async fn observe(&self, key: &String) -> Result<Option<View>, Error> {
        // A label may name an application that is no longer declared.
        match self.inner.followers.get(key) {
            Some(follower) => {
                let first = follower.told().is_none();
                let view = follower.observe().await?;
                if first {
                    // What an earlier daemon told is news to whoever looks at this one.
                    self.inner.changed.send_modify(|count| *count += 1);
                }
                Ok(Some(view))
            }
            None => Ok(None),
        }
    }

    fn plan(view: &Option<View>, now: Timestamp) -> Plan<Step> {
        view.as_ref().map_or_else(Plan::empty, |view| plan::plan(view, now))
    }

    async fn act(&self, key: &String, step: Step) -> Result<(), Error> {
        let Some(follower) = self.inner.followers.get(key) else { return Ok(()) };
        let told = matches!(step, Step::Report(_));
        follower.act(step, (self.inner.now)()).await?;
        if told {
            self.inner.changed.send_modify(|count| *count += 1);
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
