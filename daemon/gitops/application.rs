//! One application: what it remembers between rounds and how its view is read.
//!
//! Invariant: memory only saves work. Without it the next round reads the same from the source, the archive and the door.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::health::{Health, HealthCode};
use api::kinds::{self, Kind};
use client::{Cache, Caches};
use futures::StreamExt;
use jiff::Timestamp;
use kube::Client;
use kube::api::DynamicObject;
use reconcile::Queue;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::warn;

use crate::Error;
use crate::act::{self, Run};
use crate::apply::{immutable, taken};
use crate::archive::Archive;
use crate::build::{Builder, Built, Defaults, Defect, Id, Object};
use crate::config::{Application, Origin};
use crate::decide::{self, Choice, Chosen, short};
use crate::defined::Defined;
use crate::evidence::{self, Failing};
use crate::health::{self, Around};
use crate::hooks::{HookGone, HookView};
use crate::live::{self, Seen, Watched, whole};
use crate::marks::{self, Apply};
use crate::plan::{Failure, Gone, Live, Verdict, View, Wanted};
use crate::remote::{self, Target};
use crate::source::{Snapshot, Sourced};
use crate::status::{Decisions, ObjectStatus, Source, Status, seconds};
use crate::waiting::Awaited;
use crate::{history, tell};

/// Advice that is told; more of it is in `holdfast check`.
const MOST_ADVICE: usize = 20;
/// Requests that one application has under way at once.
pub(crate) const AT_ONCE: usize = 16;
/// Failing objects whose last words are remembered.
const MOST_EVIDENCE: usize = 100;
/// A cluster that is the target has to answer within this time.
const REACH: std::time::Duration = std::time::Duration::from_secs(10);

/// Kinds without a rule, such as a ConfigMap.
const HEALTHY: Health = Health { code: HealthCode::Healthy, message: String::new() };

pub(crate) struct Follower {
    pub(crate) application: Application,
    source: Source,
    sourced: watch::Receiver<Arc<Sourced>>,
    pub(crate) watched: Arc<Watched>,
    names: Arc<BTreeSet<String>>,
    board: Board,
    /// To the cluster that the objects are applied to.
    pub(crate) door: Client,
    /// To this node, where the application's own object is.
    pub(crate) home: Client,
    pub(crate) around: Neighbourhood,
    pub(crate) archive: Archive,
    /// Not declared any more.
    leaving: bool,
    memory: Mutex<Memory>,
}

/// Whether each application is in sync and healthy, and if not, why: for those that depend on it.
pub(crate) type Board = Arc<Mutex<BTreeMap<String, Result<(), String>>>>;

/// What all applications of an engine share.
#[derive(Clone)]
pub(crate) struct Neighbourhood {
    pub(crate) watched: Arc<Watched>,
    /// The names of all applications.
    pub(crate) names: Arc<BTreeSet<String>>,
    pub(crate) door: Client,
    pub(crate) home: Client,
    pub(crate) board: Board,
    /// Where revisions and what was pruned are kept.
    pub(crate) archives: std::path::PathBuf,
}

impl Neighbourhood {
    /// The same, before another cluster.
    pub(crate) fn far(
        &self,
        caches: &Caches,
        target: &Target,
        queue: &Queue<String>,
    ) -> Result<Neighbourhood, String> {
        let door = remote::door(target)?;
        let watched = Arc::new(Watched::new(caches.beside(door.clone()), queue.clone()));
        Ok(Neighbourhood { door, watched, ..self.clone() })
    }
}

/// What a snapshot gave, with the kinds that the cluster had.
struct Remembered {
    of: Arc<Snapshot>,
    live: Defined,
    built: Arc<Built>,
    content: String,
}

pub(crate) struct Memory {
    pub(crate) builder: Option<Builder>,
    built: Option<Remembered>,
    archived: Option<Arc<Snapshot>>,
    pub(crate) told: Option<Arc<Status>>,
    pub(crate) told_at: Option<Timestamp>,
    /// What was written into the target last.
    pub(crate) inventory: String,
    /// What a person decided and was not told yet.
    pub(crate) decisions: Option<Decisions>,
    /// The decisions that the round under way looks with.
    pub(crate) decided: Option<Decisions>,
    /// A person asked for a sync: what failed is tried again now.
    hurried: bool,
    pub(crate) seen: BTreeMap<Id, Seen>,
    /// The text and the live form for which a dry run gave this verdict.
    pub(crate) verdicts: BTreeMap<Id, (u64, u64, Verdict)>,
    pub(crate) failures: BTreeMap<Id, Failure>,
    /// What was put back of an object, and who had changed it.
    pub(crate) healed: BTreeMap<Id, String>,
    /// What the failing container of an object said last.
    evidence: BTreeMap<Id, (Failing, Vec<String>)>,
}

impl Follower {
    pub(crate) fn new(
        application: Application,
        origin: &Origin,
        sourced: watch::Receiver<Arc<Sourced>>,
        around: &Neighbourhood,
    ) -> Follower {
        let source = match origin {
            Origin::Directory(path) => {
                Source { kind: "dir".to_owned(), location: path.display().to_string(), ..Source::default() }
            }
            // Laid out by the engine as a repository on this machine.
            Origin::Pushed { .. } => Source::default(),
            Origin::Git { location, reference, .. } => Source {
                kind: "git".to_owned(),
                location: location.shown(),
                reference: reference.clone(),
                ..Source::default()
            },
        };
        let memory = Memory {
            builder: Some(builder(&application)),
            built: None,
            archived: None,
            told: None,
            told_at: None,
            inventory: String::new(),
            decisions: None,
            decided: None,
            hurried: false,
            seen: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            failures: BTreeMap::new(),
            healed: BTreeMap::new(),
            evidence: BTreeMap::new(),
        };
        let Neighbourhood { watched, names, door, home, board, archives } = around.clone();
        let around = around.clone();
        let archive = Archive::new(archives.join(&application.name));
        let (leaving, memory) = (false, Mutex::new(memory));
        Follower {
            application,
            source,
            sourced,
            watched,
            names,
            board,
            door,
            home,
            around,
            archive,
            leaving,
            memory,
        }
    }

    /// One whose declaration is gone, and that is to take its objects with it.
    pub(crate) fn leaving(application: Application, around: &Neighbourhood) -> Follower {
        let sourced = Sourced { snapshot: Some(Arc::default()), ..Sourced::default() };
        // Nothing will ever come: what is read is in the archive.
        let (_, sourced) = watch::channel(Arc::new(sourced));
        let origin = Origin::Directory(application.dir.clone().unwrap_or_default());
        Follower { leaving: true, ..Follower::new(application, &origin, sourced, around) }
    }

    pub(crate) fn told(&self) -> Option<Arc<Status>> {
        self.lock().told.clone()
    }

    /// What the source has now.
    pub(crate) fn newest(&self) -> Arc<Sourced> {
        Arc::clone(&self.sourced.borrow())
    }

    /// Decides something for a person; the next round acts on it and tells it.
    pub(crate) fn decide(
        &self,
        decide: impl FnOnce(&Status, &mut Decisions) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut memory = self.lock();
        let Some(told) = memory.told.clone() else {
            return Err(Error::NoSnapshot(self.application.name.clone()));
        };
        let mut decisions = memory.decisions.clone().unwrap_or_else(|| told.decisions.clone());
        decide(&told, &mut decisions)?;
        memory.decisions = Some(decisions);
        Ok(())
    }

    /// The repository it follows, as shown.
    pub(crate) fn repository(&self) -> Option<&str> {
        (self.source.kind == "git").then_some(self.source.location.as_str())
    }

    /// Forgets what dry runs and failures said.
    pub(crate) fn forget(&self) {
        let mut memory = self.lock();
        memory.verdicts.clear();
        memory.failures.clear();
        memory.hurried = true;
    }

    /// A round looks with these decisions: once it is told, they need not be remembered apart.
    pub(crate) fn saw(&self, decisions: &Decisions) {
        let mut memory = self.lock();
        memory.hurried = false;
        memory.decided = Some(decisions.clone());
    }

    /// Reads everything the plan looks at.
    pub(crate) async fn observe(&self, now: Timestamp) -> Result<View, Error> {
        let told = self.remembered().await?;
        self.reach(now).await?;
        let newest = Arc::clone(&self.sourced.borrow());
        let decisions = self.lock().decisions.clone().unwrap_or_else(|| told.decisions.clone());
        let (choice, sourced) = self.chosen(&told, &decisions, &newest, now).await?;
        let mut view = self.look(told, Arc::new(sourced)).await?;
        if let Some(snapshot) = &newest.snapshot {
            view.newest.clone_from(&snapshot.revision);
        }
        view.source = self.source_now(&newest, &view.told);
        (view.choice, view.decisions) = (choice, decisions);
        Ok(view)
    }

    /// Compares one snapshot with what is live.
    pub(crate) async fn look(&self, told: Arc<Status>, sourced: Arc<Sourced>) -> Result<View, Error> {
        self.watched.follow_definitions(&self.application.name);
        let defined = self.watched.defined().await;
        let (built, content) = self.built(&sourced, &told, &defined).await?;
        let (hooks, mut objects): (Vec<Object>, Vec<Object>) =
            built.objects.iter().cloned().partition(|object| marks::hook(&object.value).is_some());
        if self.leaving {
            objects.clear();
        }
        let inventory = told.inventory();
        let wanted: BTreeSet<&Id> = objects.iter().chain(&hooks).map(|object| &object.id).collect();
        let rest: Vec<&ObjectStatus> =
            inventory.iter().filter(|(id, _)| !wanted.contains(id)).map(|(_, object)| *object).collect();
        let old_hooks: Vec<&crate::status::HookStatus> =
            told.hooks.iter().filter(|told| !wanted.contains(&told.id())).collect();
        let kinds = objects.iter().chain(&hooks).map(|object| object.kind);
        let kinds = kinds.chain(rest.iter().filter_map(|told| kind_of(told, &defined)));
        let kinds = kinds.chain(old_hooks.iter().filter_map(|told| kind_of_hook(told, &defined)));
        // Of a kind that the cluster does not have yet nothing can be there.
        let eyes = self.eyes(kinds.filter(|kind| defined.serves(kind))).await;
        let mut defects = built.defects.clone();
        defects.extend(hooks.iter().filter_map(unknown_hook));
        let gone = rest.into_iter().map(|told| self.gone(told, kind_of(told, &defined), &eyes)).collect();
        let hooks_gone = old_hooks
            .into_iter()
            .map(|told| self.hook_gone(told, kind_of_hook(told, &defined), &eyes))
            .collect();
        let mut hooks: Vec<HookView> =
            hooks.into_iter().filter_map(|object| self.hook(object, &eyes)).collect();
        for hook in &mut hooks {
            if let Some(live) = &mut hook.live {
                live.evidence = self.evidence(&hook.object.id, live, &eyes).await;
            }
        }
        let desired = futures::stream::iter(objects)
            .map(|object| {
                let known = inventory.get(&object.id).copied();
                self.wanted(object, known, &eyes)
            })
            .buffered(AT_ONCE)
            .collect::<Vec<Wanted>>()
            .await;
        self.wait_for(&desired);
        let (hurried, told_at) = {
            let memory = self.lock();
            (memory.hurried, memory.told_at)
        };
        Ok(View {
            application: self.application.clone(),
            source: Source::default(),
            newest: sourced.snapshot.as_ref().map(|snapshot| snapshot.revision.clone()).unwrap_or_default(),
            choice: Chosen::default(),
            decisions: told.decisions.clone(),
            blocked: self.blocked(),
            hurried,
            leaving: self.leaving,
            content,
            hooks,
            hooks_gone,
            sourced,
            defects: if self.leaving { Vec::new() } else { defects },
            advice: built.notices.iter().take(MOST_ADVICE).cloned().collect(),
            kept_back: if self.leaving { BTreeMap::new() } else { built.kept_back.clone() },
            unread: if self.leaving { BTreeMap::new() } else { built.unread.clone() },
            desired,
            gone,
            told_at,
            told,
        })
    }

    /// The snapshot to hold, and why it is that one.
    async fn chosen(
        &self,
        told: &Status,
        decisions: &Decisions,
        newest: &Sourced,
        now: Timestamp,
    ) -> Result<(Chosen, Sourced), Error> {
        let mut sourced = newest.clone();
        let held = &told.sync.revision;
        if self.leaving {
            // The hooks of the end are in the last revision that was held.
            let last = self.archived(held).await?;
            sourced.snapshot = last.or(sourced.snapshot);
            return Ok((Chosen::default(), sourced));
        }
        if sourced.snapshot.is_none() && sourced.trouble.is_some() && !held.is_empty() {
            sourced.snapshot = self.archived(held).await?;
            return Ok((Chosen::default(), sourced));
        }
        let Some(snapshot) = &newest.snapshot else { return Ok((Chosen::default(), sourced)) };
        let mut chosen = decide::choose(&self.application, told, decisions, &snapshot.revision, now);
        if let Choice::Earlier { revision, why, .. } = &chosen.choice {
            match self.archived(revision).await? {
                Some(earlier) => sourced.snapshot = Some(earlier),
                None => {
                    let why =
                        format!("{why}; revision {} is not kept on this machine any more", short(revision));
                    chosen.choice = Choice::None { why };
                }
            }
        }
        Ok((chosen, sourced))
    }

    async fn archived(&self, revision: &str) -> Result<Option<Arc<Snapshot>>, Error> {
        let known = self.lock().archived.clone().filter(|known| known.revision == revision);
        if known.is_some() || revision.is_empty() {
            return Ok(known);
        }
        let (archive, wanted) = (self.archive.clone(), revision.to_owned());
        let load = tokio::task::spawn_blocking(move || archive.load(&wanted));
        let loaded = load.await.map_err(|_| Error::CutOff("reading a kept revision"))?.map(Arc::new);
        self.lock().archived.clone_from(&loaded);
        Ok(loaded)
    }

    /// The application whose trouble this one waits out.
    fn blocked(&self) -> Option<String> {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        self.application.depends_on.iter().find_map(|name| match board.get(name) {
            Some(Ok(())) => None,
            Some(Err(why)) => Some(format!("application {name}, which is not there yet: {why}")),
            None => Some(format!("application {name}, which was not read yet")),
        })
    }

    /// Says to those that depend on this application how it is.
    pub(crate) fn post(&self, status: &Status) {
        let healthy = matches!(status.health.code.as_str(), "Healthy" | "Suspended");
        let good = status.sync.state == "Synced" && healthy && status.sync.waits_for.is_empty();
        let why = || match healthy {
            true => status.sync.message.clone(),
            false => status.health.message.clone(),
        };
        let told = if good { Ok(()) } else { Err(why()) };
        self.board.lock().unwrap_or_else(PoisonError::into_inner).insert(self.application.name.clone(), told);
    }

    /// The status told last; the first time it is read through the door, where an earlier daemon left it.
    async fn remembered(&self) -> Result<Arc<Status>, Error> {
        if let Some(told) = self.lock().told.clone() {
            return Ok(told);
        }
        let object = act::declare(&self.home, &self.application.name, &self.spec()).await?;
        let status = object.get("status").cloned().unwrap_or(Value::Null);
        let told: Status = if status.as_object().is_none_or(serde_json::Map::is_empty) {
            self.inventory().await?
        } else {
            let what = || format!("the status of application {}", self.application.name);
            serde_json::from_value(status).map_err(|source| Error::Json { what: what(), source })?
        };
        self.post(&told);
        let told = Arc::new(told);
        self.lock().told = Some(Arc::clone(&told));
        Ok(told)
    }

    /// Whether the target answers: what does not answer must not hold up the other applications.
    async fn reach(&self, now: Timestamp) -> Result<(), Error> {
        let Some(target) = &self.application.target else { return Ok(()) };
        let request = http::Request::get("/version")
            .body(Vec::new())
            .map_err(|_| Error::CutOff("asking the target"))?;
        let answer = tokio::time::timeout(REACH, self.door.request_text(request)).await;
        let why = match answer {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => reconcile::chain(&error),
            Err(_) => format!("no answer within {} s", REACH.as_secs()),
        };
        let message = format!(
            "the cluster of {} cannot be reached, what is there stays: {why}",
            target.kubeconfig.display()
        );
        let mut status = self.lock().told.as_deref().cloned().unwrap_or_default();
        let failed = ("Failed".to_owned(), message.clone());
        if (status.sync.state.clone(), status.sync.message.clone()) != failed {
            (status.sync.state, status.sync.message) = failed;
            let before = status.clone();
            status.carry(&before, now);
            self.report(status, now).await?;
        }
        Err(Error::Denied { application: self.application.name.clone(), why: message })
    }

    /// What an engine left in the target of what it applied there.
    async fn inventory(&self) -> Result<Status, Error> {
        if self.application.target.is_none() {
            return Ok(Status::default());
        }
        let read = act::read_inventory(&self.door, &self.application.namespace, &self.application.name);
        let text = tokio::time::timeout(REACH, read)
            .await
            .map_err(|_| Error::CutOff("reading the target's inventory"))??;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    pub(crate) fn spec(&self) -> Value {
        let app = &self.application;
        let mut source = serde_json::Map::new();
        match self.repository() {
            Some(repository) => {
                source.insert("git".to_owned(), json!(repository));
                source.insert("ref".to_owned(), json!(self.source.reference));
                source.insert("pollSeconds".to_owned(), json!(app.interval.0));
                if let Some(path) = &app.path {
                    source.insert("path".to_owned(), json!(path));
                }
            }
            None => {
                source.insert("dir".to_owned(), json!(self.source.location));
            }
        }
        let policy = json!({"prune": app.prune, "selfHeal": !app.suspend, "onRemoval": app.on_removal});
        json!({"source": source, "policy": policy, "suspend": app.suspend})
    }

    /// The objects of the snapshot, and the name of all that they say; built when it changed.
    async fn built(
        &self,
        sourced: &Sourced,
        told: &Status,
        live: &Defined,
    ) -> Result<(Arc<Built>, String), Error> {
        let Some(snapshot) = sourced.snapshot.clone() else { return Ok((Arc::default(), String::new())) };
        let mut builder = {
            let mut memory = self.lock();
            if let Some(known) = &memory.built
                && Arc::ptr_eq(&known.of, &snapshot)
                && known.live == *live
            {
                return Ok((Arc::clone(&known.built), known.content.clone()));
            }
            memory.builder.take().unwrap_or_else(|| builder(&self.application))
        };
        builder.live(live.clone());
        let (of, archive, keep) = (Arc::clone(&snapshot), self.archive.clone(), kept(told));
        let build = tokio::task::spawn_blocking(move || {
            // Before anything of it is applied: the way back has to be there first.
            let saved = archive.save(&of, &keep);
            (builder.build(&of), builder, saved)
        });
        let (built, builder, saved) = build.await.map_err(|_| Error::CutOff("building the objects"))?;
        if let Err(error) = saved {
            warn!(
                application = self.application.name,
                error = reconcile::chain(&error),
                "the revision is not kept"
            );
        }
        let content = content(&built);
        let built = Arc::new(built);
        let wanted: BTreeSet<&Id> = built.objects.iter().map(|object| &object.id).collect();
        let mut memory = self.lock();
        memory.builder = Some(builder);
        memory.verdicts.retain(|id, _| wanted.contains(id));
        memory.failures.retain(|id, _| wanted.contains(id));
        memory.built = Some(Remembered {
            of: snapshot,
            live: live.clone(),
            built: Arc::clone(&built),
            content: content.clone(),
        });
        Ok((built, content))
    }

    /// The caches of the kinds in question, and what is around them.
    async fn eyes(&self, kinds: impl Iterator<Item = &'static Kind>) -> Eyes {
        let kinds: BTreeMap<(&str, &str), &'static Kind> =
            kinds.map(|kind| ((kind.group.as_str(), kind.kind.as_str()), kind)).collect();
        let mut eyes = Eyes { caches: BTreeMap::new(), around: Around::default() };
        let looks_deeper = kinds.keys().any(|(_, kind)| health::looks_around(kind));
        for (name, kind) in kinds {
            eyes.caches.insert(name, self.watched.of(kind).await);
        }
        if looks_deeper {
            eyes.around = self.watched.around().await;
        }
        eyes
    }

    fn hook(&self, object: Object, eyes: &Eyes) -> Option<HookView> {
        let hook = marks::hook(&object.value)?;
        let live = self.live(&object.id, object.kind, eyes).map(|(live, _)| live);
        let ended = self.watched.ended(&object.id).and_then(|ended| Some((ended.run?, ended.health)));
        let failure = self.lock().failures.get(&object.id).filter(|known| known.hash == object.hash).cloned();
        Some(HookView { object, hook, live, ended, failure })
    }

    fn hook_gone(
        &self,
        told: &crate::status::HookStatus,
        kind: Option<&'static Kind>,
        eyes: &Eyes,
    ) -> HookGone {
        let live = kind.and_then(|kind| self.live(&told.id(), kind, eyes)).map(|(live, _)| live);
        HookGone { told: told.clone(), kind, live }
    }

    fn gone(&self, told: &ObjectStatus, kind: Option<&'static Kind>, eyes: &Eyes) -> Gone {
        let live = kind.and_then(|kind| self.live(&told.id(), kind, eyes)).map(|(live, _)| live);
        Gone { told: told.clone(), kind, live }
    }

    /// The last words of what fails, for whoever reads the status.
    async fn evidence(&self, id: &Id, live: &Live, eyes: &Eyes) -> Vec<String> {
        if live.health.code != HealthCode::Degraded || !(health::has_pods(&id.kind) || id.kind == "Pod") {
            return Vec::new();
        }
        let cache = eyes.caches.get(&(id.group.as_str(), id.kind.as_str()));
        let Some(object) = cache.and_then(|cache| cache.get(&live::key(id))) else { return Vec::new() };
        let failing = match id.kind.as_str() {
            "Pod" => evidence::failing(&object),
            kind => health::pods_of(kind, &object, &id.namespace, &eyes.around)
                .into_iter()
                .find_map(evidence::failing),
        };
        let Some(failing) = failing else { return Vec::new() };
        if let Some((known, lines)) = self.lock().evidence.get(id)
            && *known == failing
        {
            return lines.clone();
        }
        let lines = evidence::last_words(&self.door, &failing).await;
        let mut memory = self.lock();
        // Objects come and go: what is remembered of them is a few lines, and not for ever.
        if memory.evidence.len() > MOST_EVIDENCE {
            memory.evidence.clear();
        }
        memory.evidence.insert(id.clone(), (failing, lines.clone()));
        lines
    }

    async fn wanted(&self, object: Object, told: Option<&ObjectStatus>, eyes: &Eyes) -> Wanted {
        let known = told.and_then(|told| u64::from_str_radix(&told.applied, 16).ok()).unwrap_or_default();
        let how = marks::apply(&object.value);
        let Some((live, seen)) = self.live(&object.id, object.kind, eyes) else {
            let failure =
                self.lock().failures.get(&object.id).filter(|known| known.hash == object.hash).cloned();
            let verdict = match failure {
                _ if how == Apply::Never => Verdict::Left,
                Some(failure) => Verdict::Failed(failure),
                None => self.end(&object, told).map_or(Verdict::Missing, Verdict::Ended),
            };
            return Wanted { object, live: None, verdict, known, healed: None };
        };
        let mut live = live;
        live.evidence = self.evidence(&object.id, &live, eyes).await;
        let verdict = match how {
            Apply::Never => Verdict::Left,
            Apply::Once => Verdict::Same,
            Apply::Always | Apply::Replace => self.verdict(&object, &seen).await,
        };
        let healed = self.lock().healed.get(&object.id).cloned();
        Wanted { object, live: Some(live), verdict, known, healed }
    }

    /// How a Job ended that has deleted itself since.
    fn end(&self, object: &Object, told: Option<&ObjectStatus>) -> Option<Health> {
        if !history::takes_itself_away(object) || !history::was_applied(told, object) {
            return None;
        }
        let seen = self.watched.ended(&object.id).map(|ended| ended.health);
        seen.or_else(|| history::read_end(&told?.ended))
    }

    /// What is live of an object, and what was read off it.
    fn live(&self, id: &Id, kind: &'static Kind, eyes: &Eyes) -> Option<(Live, Seen)> {
        let cache = eyes.caches.get(&(kind.group.as_str(), kind.kind.as_str()))?;
        let Some(object) = cache.get(&live::key(id)) else {
            self.lock().seen.remove(id);
            let seen = self.watched.fresh(id)?;
            let health = seen.health.clone().unwrap_or(HEALTHY);
            return Some((seen.live(health), seen));
        };
        self.watched.seen(id);
        let version = object.metadata.resource_version.as_deref().unwrap_or_default();
        let known = self.lock().seen.get(id).filter(|seen| seen.version == version).cloned();
        let seen = match known {
            Some(seen) => seen,
            None => {
                let seen = Seen::of(&whole(&object, kind));
                self.lock().seen.insert(id.clone(), seen.clone());
                seen
            }
        };
        let health = health::assess(&id.kind, seen.health.clone(), &object, &eyes.around);
        Some((seen.live(health), seen))
    }

    async fn verdict(&self, object: &Object, seen: &Seen) -> Verdict {
        let others = |owner: &&String| **owner != self.application.name && self.names.contains(*owner);
        if let Some(other) = seen.owner.as_ref().filter(others) {
            return taken(object, other);
        }
        {
            let memory = self.lock();
            if let Some(failure) =
                memory.failures.get(&object.id).filter(|failure| failure.hash == object.hash)
            {
                return Verdict::Failed(failure.clone());
            }
            if let Some((text, form, verdict)) = memory.verdicts.get(&object.id)
                && (*text, *form) == (object.hash, seen.digest)
            {
                return verdict.clone();
            }
        }
        let masked = self.masked(object).await;
        let verdict = match act::apply(&self.door, &masked, Run::Dry).await {
            Ok(after) if Seen::of(&after).digest == seen.digest => Verdict::Same,
            // The cache lags behind the server: what is live now decides.
            Ok(after) if Seen::of(&after).version != seen.version => match act::get(&self.door, object).await
            {
                Ok(live) if Seen::of(&live).digest == Seen::of(&after).digest => return Verdict::Same,
                // It is gone; if by its own word, that is told by the watch and is the end of it.
                Err(error) if client::is_not_found(&error) && history::takes_itself_away(object) => {
                    return Verdict::Same;
                }
                _ => return Verdict::Differs,
            },
            Ok(_) => Verdict::Differs,
            Err(error) => match immutable(object, &error) {
                Some(why) => Verdict::Immutable(why),
                // The real one is tried, and its failure told and backed off.
                None => return Verdict::Differs,
            },
        };
        self.lock().verdicts.insert(object.id.clone(), (object.hash, seen.digest, verdict.clone()));
        verdict
    }

    fn wait_for(&self, desired: &[Wanted]) {
        let unsettled = desired.iter().filter(|wanted| {
            let settled = |live: &Live| live.health.code == HealthCode::Healthy;
            !wanted.live.as_ref().is_some_and(settled)
        });
        let places = unsettled.filter_map(|wanted| {
            let id = &wanted.object.id;
            Some((id.namespace.clone(), Awaited::of(&id.kind, &id.name)?))
        });
        self.watched.wait_for(&self.application.name, places.collect());
    }

    fn source_now(&self, sourced: &Sourced, told: &Status) -> Source {
        let Some(snapshot) = &sourced.snapshot else {
            return told.source.clone().with_place(&self.source);
        };
        // The same revision read again, by the next daemon say, is no news.
        let same = told.source.revision == snapshot.revision && !told.source.fetched_at.is_empty();
        let fetched_at = match sourced.fetched_at {
            _ if same => told.source.fetched_at.clone(),
            Some(at) => seconds(at),
            None => String::new(),
        };
        Source {
            revision: snapshot.revision.clone(),
            author: snapshot.author.clone().unwrap_or_default(),
            commit_message: snapshot.message.clone().unwrap_or_default(),
            fetched_at,
            ..self.source.clone()
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Memory> {
        // Memory only saves work: whatever a panic left in it is checked by the next round.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Eyes {
    caches: BTreeMap<(&'static str, &'static str), Cache<DynamicObject>>,
    around: Around,
}

/// The revisions that can be gone back to.
fn kept(told: &Status) -> BTreeSet<String> {
    let history = told.history.iter().map(|known| known.revision.clone());
    let pinned = told.decisions.pinned.iter().map(|pin| pin.revision.clone());
    history.chain(pinned).chain([told.sync.revision.clone()]).collect()
}

/// Differs when any object that the files want differs.
fn content(built: &Built) -> String {
    let mut hashes: Vec<(&Id, u64)> = built.objects.iter().map(|object| (&object.id, object.hash)).collect();
    hashes.sort_unstable();
    let all: Vec<Value> = hashes.into_iter().map(|(id, hash)| json!([id.to_string(), hash])).collect();
    tell::mark(crate::build::hash(&Value::Array(all)))
}

pub(crate) fn builder(application: &Application) -> Builder {
    Builder::new(Defaults {
        namespace: application.namespace.clone(),
        application: application.name.clone(),
        substitute: application.substitute.clone(),
        kinds: Defined::default(),
    })
}

fn unknown_hook(object: &Object) -> Option<Defect> {
    let word = marks::unknown_hook(&object.value)?;
    Some(Defect {
        file: object.file.to_string(),
        line: object.line,
        column: 0,
        message: format!("{} is a hook of phase \"{word}\", which does not exist", object.id),
        help: "write pre-sync, sync, post-sync, sync-failed, pre-delete or post-delete".to_owned(),
        object: Some(object.id.to_string()),
    })
}

fn kind_of(told: &ObjectStatus, defined: &Defined) -> Option<&'static Kind> {
    defined.find(&kinds::api_version(&told.group, &told.version), &told.kind)
}

fn kind_of_hook(told: &crate::status::HookStatus, defined: &Defined) -> Option<&'static Kind> {
    defined.first(|kind| kind.group == told.group && kind.kind == told.kind)
}
