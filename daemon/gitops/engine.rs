//! The engine: one task per source, one loop over the applications.
//!
//! Invariant: an object that cannot be applied is tried again with its own back-off and stops no other.
//! Invariant: an unchanged object costs no request: a dry run is asked for only when its text or its live form changed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client::Caches;
use jiff::Timestamp;
use reconcile::{Backoff, Plan, Queue, Reconciler, Tasks, Work};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use tracing::warn;

use crate::application::{Board, Follower, Neighbourhood};
use crate::archive::Tombstone;
use crate::build::Id;
use crate::config::{Application, Origin, PushInto};
use crate::diff::Diff;
use crate::explain::{self, Explanation};
use crate::live::Watched;
use crate::plan::{self, Step, View};
use crate::secret::Secret;
use crate::source::{Auth, Directory, Git, Location, Patience, Pushed, Slot, Snapshot, Wanted};
use crate::status::{Decisions, Status};
use crate::{APPLICATION_LABEL, Error, act, decide, order};

/// The wait before removed applications are looked for again, when that failed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// What was pruned within this time of each other went together.
const TOGETHER: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

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
    followers: BTreeMap<String, Arc<Follower>>,
    /// Applications that are no longer declared and take their objects with them.
    leaving: Mutex<BTreeMap<String, Arc<Follower>>>,
    around: Neighbourhood,
    /// Repositories that the node itself holds.
    pushed: BTreeMap<String, (Pushed, PushInto)>,
    declared: BTreeMap<String, Application>,
    /// By the location without credentials.
    hurries: BTreeMap<String, Arc<Notify>>,
    sources: Mutex<Vec<Source>>,
    changed: watch::Sender<u64>,
}

enum Source {
    Directory(Directory),
    Git(Box<Git>),
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
            home: parts.caches.client(),
            board: Board::default(),
            archives: parts.dir.join("history"),
        };
        let mut inner = Inner {
            queue: queue.clone(),
            now: Arc::clone(&parts.now),
            followers: BTreeMap::new(),
            leaving: Mutex::default(),
            around: around.clone(),
            pushed: BTreeMap::new(),
            declared: parts.applications.iter().map(|app| (app.name.clone(), app.clone())).collect(),
            hurries: BTreeMap::new(),
            sources: Mutex::default(),
            changed: watch::Sender::new(0),
        };
        check_dependencies(&parts.applications)?;
        let mut repositories: BTreeMap<(Location, Auth), Git> = BTreeMap::new();
        let mut targets: BTreeMap<crate::remote::Target, Neighbourhood> = BTreeMap::new();
        let mut sources = Vec::new();
        for application in parts.applications {
            let mut origin = application.origin()?;
            let name = application.name.clone();
            if let (Origin::Pushed { reference, path }, Some(settings)) = (&origin, &application.push) {
                let pushed = Pushed::open(parts.dir.join("pushed").join(format!("{name}.git")), reference)?;
                let location = Location::Local(pushed.dir.clone());
                origin = Origin::Git { location, reference: pushed.followed.clone(), path: path.clone() };
                inner.pushed.insert(name.clone(), (pushed, settings.clone()));
            }
            let wake = (queue.clone(), name.clone());
            let (slot, sourced) = Slot::new(move || wake.0.wake(wake.1.clone()), Arc::clone(&parts.now));
            match &origin {
                Origin::Directory(path) => {
                    sources.push(Source::Directory(Directory { path: path.clone(), slot }))
                }
                Origin::Pushed { .. } => {}
                Origin::Git { location, reference, path } => {
                    let hurry = inner.hurries.entry(location.shown()).or_default();
                    let auth = application.auth.clone().unwrap_or_default();
                    let git = repositories.entry((location.clone(), auth.clone())).or_insert_with(|| Git {
                        location: location.clone(),
                        interval: application.interval.duration(),
                        wanted: Vec::new(),
                        mirror: parts.dir.join(mirror_name(location, &auth)),
                        auth: auth.clone(),
                        patience: Patience::default(),
                        ssh: parts.ssh.clone(),
                        hurry: Arc::clone(hurry),
                    });
                    git.interval = git.interval.min(application.interval.duration());
                    git.wanted.push(Wanted {
                        reference: reference.clone(),
                        path: path.clone(),
                        verify: application.verify.clone(),
                        slot,
                        index: Mutex::default(),
                    });
                }
            }
            let near = match &application.target {
                Some(target) => match targets.get(target) {
                    Some(known) => known.clone(),
                    None => {
                        let far = around
                            .far(&parts.caches, target, &queue)
                            .map_err(|why| Error::Config { application: name.clone(), why })?;
                        targets.insert(target.clone(), far.clone());
                        far
                    }
                },
                None => around.clone(),
            };
            let follower = Arc::new(Follower::new(application, &origin, sourced, &near));
            if inner.followers.insert(name.clone(), follower).is_some() {
                let why = "its name is taken twice; every application needs its own".to_owned();
                return Err(Error::Config { application: name, why });
            }
        }
        sources.extend(repositories.into_values().map(|git| Source::Git(Box::new(git))));
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
        let engine = self.clone();
        tasks.spawn("gitops leavers", |stop| async move {
            // Cancel-safe: the next start looks for them again.
            stop.run_until_cancelled(engine.find_leavers()).await;
        });
        for name in self.names() {
            self.inner.queue.wake(name);
        }
    }

    /// Applications of an earlier configuration that were to take their objects with them.
    async fn find_leavers(&self) {
        let listed = loop {
            match act::applications(&self.inner.around.door).await {
                Ok(listed) => break listed,
                Err(error) => {
                    warn!(
                        error = reconcile::chain(&error),
                        "applications that were removed are not known yet"
                    );
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            }
        };
        for object in listed {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let prunes = object["spec"]["policy"]["onRemoval"] == "prune";
            if name.is_empty() || !prunes || self.inner.followers.contains_key(name) {
                continue;
            }
            let declared = json!({"name": name, "dir": "/", "allow_empty": true, "on_removal": "prune"});
            let Ok(application) = serde_json::from_value::<Application>(declared) else { continue };
            let follower = Arc::new(Follower::leaving(application, &self.inner.around));
            lock(&self.inner.leaving).insert(name.to_owned(), follower);
            self.inner.queue.wake(name.to_owned());
        }
    }

    /// The time, as the engine knows it.
    pub(crate) fn now(&self) -> Timestamp {
        (self.inner.now)()
    }

    /// The door to this node.
    pub(crate) fn door(&self) -> kube::Client {
        self.inner.around.home.clone()
    }

    /// The forges of the applications that name one.
    pub(crate) fn forges(&self) -> BTreeMap<String, crate::notices::Forge> {
        let named = self.inner.followers.iter();
        named
            .filter_map(|(name, follower)| Some((name.clone(), follower.application.commit_status.clone()?)))
            .collect()
    }

    /// The names of the applications.
    pub fn names(&self) -> Vec<String> {
        self.inner.followers.keys().cloned().collect()
    }

    /// What an application told last. Nothing before its first round.
    pub fn status(&self, application: &str) -> Option<Arc<Status>> {
        self.inner.follower(application)?.told()
    }

    /// All applications with what they told last.
    pub fn statuses(&self) -> BTreeMap<String, Arc<Status>> {
        self.names().into_iter().map(|name| (name.clone(), self.status(&name).unwrap_or_default())).collect()
    }

    /// Whether an application's source was read, or is known to be in trouble.
    pub fn is_read(&self, application: &str) -> bool {
        let Some(follower) = self.inner.follower(application) else { return false };
        let sourced = follower.newest();
        (sourced.snapshot.is_some() || sourced.trouble.is_some()) && follower.told().is_some()
    }

    /// Counts up with every status that is told.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Looks at a repository (by its URL or path) or at an application's source right now. Says how many sources were
    /// hurried. What the caller says of the content is not asked for: a webhook only hurries.
    pub fn hurry(&self, what: &str) -> usize {
        let by_application = self.inner.followers.get(what).and_then(|follower| follower.repository());
        let wanted = plain(what);
        let fits = |known: &&String| Some(known.as_str()) == by_application || plain(known) == wanted;
        let hurried: Vec<&Arc<Notify>> =
            self.inner.hurries.iter().filter(|(known, _)| fits(known)).map(|(_, hurry)| hurry).collect();
        hurried.iter().for_each(|hurry| hurry.notify_one());
        hurried.len()
    }

    /// What forges sign the webhooks with of an application, or of those that follow a repository.
    pub fn webhook_secrets(&self, what: &str) -> Vec<Secret> {
        let wanted = plain(what);
        let follows = |name: &str| {
            let repository = self.inner.followers.get(name).and_then(|follower| follower.repository());
            name == what || repository.is_some_and(|known| plain(known) == wanted)
        };
        let fitting = self.inner.declared.values().filter(|app| follows(&app.name));
        fitting.filter_map(|app| app.webhook_secret.clone()).collect()
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
        self.follower(application)?.diff((self.inner.now)()).await
    }

    /// Lets everything be pruned that waits for a person's word now. Says what that is.
    ///
    /// # Errors
    /// `NoApplication`, `Denied` when nothing waits.
    pub fn confirm(&self, application: &str) -> Result<Vec<String>, Error> {
        let mut named = Vec::new();
        self.decide(application, |told, decisions| {
            let waiting = told.objects.iter().filter(|object| object.confirm);
            named = waiting.map(|object| object.id().to_string()).collect();
            decisions.confirmed.extend(named.iter().cloned());
            if named.is_empty() { Err("nothing waits for a confirmation".to_owned()) } else { Ok(()) }
        })?;
        Ok(named)
    }

    /// Lets the newest revision through although the policy or a window holds it. Says which.
    ///
    /// # Errors
    /// `NoApplication`, `Denied` when nothing waits.
    pub fn approve(&self, application: &str) -> Result<String, Error> {
        let mut named = String::new();
        self.decide(application, |told, decisions| {
            named.clone_from(&told.source.revision);
            if named == told.sync.revision || decisions.quarantine(&named).is_some() {
                return Err("no revision waits for approval".to_owned());
            }
            decisions.approved.clone_from(&named);
            Ok(())
        })?;
        Ok(named)
    }

    /// Goes back to a revision of the history, by its first digits; to the last healthy one when none is named.
    /// The next revision of the source is applied again by itself. Says which.
    ///
    /// # Errors
    /// `NoApplication`, `Denied` when there is no such revision.
    pub fn roll_back(&self, application: &str, revision: Option<&str>) -> Result<String, Error> {
        let now = (self.inner.now)();
        let mut named = String::new();
        self.decide(application, |told, decisions| {
            named = match revision {
                Some(text) => decide::named(told, text)?,
                None => decide::last_good(told)
                    .ok_or_else(|| "no other healthy revision is in the history".to_owned())?,
            };
            *decisions = decide::roll_back(told, decisions, &named, now);
            Ok(())
        })?;
        Ok(named)
    }

    /// Forgets rollback and quarantine: the newest revision is applied.
    ///
    /// # Errors
    /// `NoApplication`, `Denied` when there is nothing to forget.
    pub fn resume(&self, application: &str) -> Result<String, Error> {
        let mut named = String::new();
        self.decide(application, |told, decisions| {
            named.clone_from(&told.source.revision);
            if decisions.pinned.is_none() && decisions.quarantined.is_empty() {
                return Err("nothing was rolled back".to_owned());
            }
            decisions.pinned = None;
            decisions.quarantined.clear();
            Ok(())
        })?;
        Ok(named)
    }

    /// What was pruned of an application and can be brought back, the newest first.
    ///
    /// # Errors
    /// `NoApplication`.
    pub async fn pruned(&self, application: &str) -> Result<Vec<Tombstone>, Error> {
        let (archive, now) = (self.follower(application)?.archive.clone(), (self.inner.now)());
        let found = tokio::task::spawn_blocking(move || archive.buried(now)).await;
        found.map_err(|_| Error::CutOff("reading what was pruned"))
    }

    /// Brings back what was pruned: the object of this name (`ConfigMap/web`, `web`), or all of the last minute's.
    /// It belongs to nobody then: no file wants it, and nothing prunes it.
    ///
    /// # Errors
    /// `NoApplication`, `Denied` when there is no such object, `Door` when it cannot be made.
    pub async fn undo(&self, application: &str, what: Option<&str>) -> Result<Vec<String>, Error> {
        let follower = self.follower(application)?;
        let found = self.pruned(application).await?;
        let denied = |why: String| Error::Denied { application: application.to_owned(), why };
        let last = found.first().map(|newest| newest.at);
        let chosen: Vec<&Tombstone> = match what {
            Some(name) => found.iter().filter(|known| is_named(&known.id, name)).collect(),
            None => found
                .iter()
                .filter(|known| last.is_some_and(|last| last.duration_since(known.at) <= TOGETHER))
                .collect(),
        };
        if chosen.is_empty() {
            let all: Vec<String> = found.iter().take(20).map(|known| known.id.to_string()).collect();
            return Err(denied(match all.is_empty() {
                true => "nothing was pruned in the last seven days".to_owned(),
                false => format!("no such object was pruned; there are: {}", all.join(", ")),
            }));
        }
        let mut restored = Vec::new();
        // What others need is made before them: pruned the other way round.
        let mut ordered = chosen;
        ordered.sort_by_key(|known| order::rank(&known.id.kind));
        for known in ordered {
            if follower.restore(known).await? {
                restored.push(known.id.to_string());
            }
        }
        Ok(restored)
    }

    /// Why an object is as it is: the chain from the commit down to the last words of a container.
    ///
    /// # Errors
    /// `Denied` for a kind that is not served, `Door` when the cluster cannot be asked.
    pub async fn explain(&self, kind: &str, name: &str, namespace: &str) -> Result<Explanation, Error> {
        let defined = self.inner.around.watched.defined().await;
        let Some(kind) = explain::kind_named(kind, &defined) else {
            let why = format!("there is no kind {kind}; `kubectl api-resources` lists those there are");
            return Err(Error::Denied { application: "explain".to_owned(), why });
        };
        let namespace = match (kind.namespaced, namespace) {
            (false, _) => "",
            (true, "") => "default",
            (true, given) => given,
        };
        let id = Id {
            group: kind.group.clone(),
            kind: kind.kind.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let knows = |status: &Status| {
            status.objects.iter().any(|known| known.id() == id)
                || status.hooks.iter().any(|known| known.id() == id)
        };
        let keeper =
            self.inner.followers.values().find(|follower| follower.told().is_some_and(|told| knows(&told)));
        let near = keeper.map_or(&self.inner.around, |follower| &follower.around);
        let mut found = explain::gather(near, kind, id.clone()).await?;
        let owner = found
            .above
            .first()
            .and_then(|root| root["metadata"]["labels"][APPLICATION_LABEL].as_str())
            .map(str::to_owned);
        for (application, status) in self.statuses() {
            if owner.as_deref() == Some(&application) || (owner.is_none() && knows(&status)) {
                found.application = Some((application, status));
            } else if found.above.is_empty() && found.tombstone.is_none() {
                let buried = self.pruned(&application).await?;
                found.tombstone = buried.into_iter().find(|known| known.id == id);
            }
        }
        if found.above.is_empty() && found.application.is_none() && found.tombstone.is_none() {
            return Err(Error::Denied {
                application: "explain".to_owned(),
                why: format!("there is no {id}"),
            });
        }
        Ok(explain::assemble(&found))
    }

    fn decide(
        &self,
        application: &str,
        decide: impl FnOnce(&Status, &mut Decisions) -> Result<(), String>,
    ) -> Result<(), Error> {
        let denied = |why: String| Error::Denied { application: application.to_owned(), why };
        self.follower(application)?.decide(|told, decisions| decide(told, decisions).map_err(denied))?;
        self.inner.queue.wake(application.to_owned());
        Ok(())
    }

    /// What a sync to this snapshot would change.
    pub(crate) async fn diff_of(&self, application: &str, snapshot: Arc<Snapshot>) -> Result<Diff, Error> {
        self.follower(application)?.diff_of(snapshot, (self.inner.now)()).await
    }

    /// The repository that the node holds for an application.
    pub(crate) fn pushed(&self, application: &str) -> Option<(Pushed, PushInto)> {
        self.inner.pushed.get(application).cloned()
    }

    /// An application as it is declared.
    pub(crate) fn declared(&self, application: &str) -> Option<&Application> {
        self.inner.declared.get(application)
    }

    fn follower(&self, application: &str) -> Result<Arc<Follower>, Error> {
        self.inner.follower(application).ok_or_else(|| Error::NoApplication(application.to_owned()))
    }
}

impl Inner {
    fn follower(&self, name: &str) -> Option<Arc<Follower>> {
        let declared = self.followers.get(name).cloned();
        declared.or_else(|| lock(&self.leaving).get(name).cloned())
    }

    /// Wakes the applications that wait for this one.
    fn wake_dependents(&self, name: &str) {
        let waiting = self
            .followers
            .values()
            .filter(|follower| follower.application.depends_on.iter().any(|on| on == name));
        waiting.for_each(|follower| self.queue.wake(follower.application.name.clone()));
    }
}

/// An application depends only on what is declared, and never on itself by a detour.
fn check_dependencies(applications: &[Application]) -> Result<(), Error> {
    let by_name: BTreeMap<&str, &Application> =
        applications.iter().map(|application| (application.name.as_str(), application)).collect();
    for application in applications {
        let refuse = |why: String| Err(Error::Config { application: application.name.clone(), why });
        let mut open: Vec<&str> = application.depends_on.iter().map(String::as_str).collect();
        let mut seen = std::collections::BTreeSet::new();
        while let Some(name) = open.pop() {
            let Some(next) = by_name.get(name) else {
                return refuse(format!("depends_on names {name}, which is not declared"));
            };
            if name == application.name {
                return refuse("it depends on itself by a detour; break the circle of depends_on".to_owned());
            }
            if seen.insert(name) {
                open.extend(next.depends_on.iter().map(String::as_str));
            }
        }
    }
    Ok(())
}

/// Whether a person means this object: `web`, `configmap/web`, `ConfigMap default/web`.
fn is_named(id: &Id, text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let kind = id.kind.to_ascii_lowercase();
    [id.name.clone(), format!("{kind}/{}", id.name), id.to_string()]
        .iter()
        .any(|known| known.to_ascii_lowercase() == text)
}

/// A directory name for a repository's copy: stable, and without what a URL may hold.
fn mirror_name(location: &Location, auth: &Auth) -> String {
    let mut text = location.shown();
    if *auth != Auth::default() {
        // Two ways to one repository may show different refs.
        text.push_str(&format!("{auth:?}"));
    }
    let digest = Sha256::digest(text.as_bytes());
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
        match self.inner.follower(key) {
            Some(follower) => {
                let first = follower.told().is_none();
                let view = follower.observe((self.inner.now)()).await?;
                follower.saw(&view.decisions);
                if first {
                    self.inner.wake_dependents(key);
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
        let Some(follower) = self.inner.follower(key) else { return Ok(()) };
        let (told, ends) = (matches!(step, Step::Report(_)), matches!(step, Step::Forget));
        follower.act(step, (self.inner.now)()).await?;
        if ends {
            lock(&self.inner.leaving).remove(key);
        }
        if told {
            self.inner.wake_dependents(key);
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
