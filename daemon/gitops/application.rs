//! One application: what it remembers between rounds, how its view is read and its steps are done.
//!
//! Invariant: memory only saves work. Without it the next round reads the same from the source and the door.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::health::{Health, HealthCode};
use api::kinds::{self, Kind};
use client::Cache;
use futures::StreamExt;
use jiff::Timestamp;
use kube::Client;
use kube::api::DynamicObject;
use reconcile::chain;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::info;

use crate::Error;
use crate::act::{self, Run};
use crate::build::{Builder, Built, Defaults, Defect, Id, Object};
use crate::config::{Application, Origin};
use crate::diff::{self, Change, ChangeKind, Diff};
use crate::health::{self, Around};
use crate::live::{self, Seen, Watched};
use crate::plan::{Failure, Gone, Live, Removal, Step, Verdict, View, Wanted, prune_hold};
use crate::source::{Snapshot, Sourced};
use crate::status::{ObjectStatus, Source, Status, seconds};

/// Requests that one application has under way at once.
const AT_ONCE: usize = 16;
/// The wait after an object's first failure; it doubles up to the most.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const MOST_RETRY: Duration = Duration::from_secs(60);
/// Kinds that are made anew when they differ in what cannot change; others with the annotation.
const MADE_ANEW: [&str; 2] = ["Job", "Pod"];
const RECREATE: &str = "holdfast.dev/recreate";

/// Kinds without a rule, such as a ConfigMap.
const HEALTHY: Health = Health { code: HealthCode::Healthy, message: String::new() };

pub(crate) struct Follower {
    application: Application,
    source: Source,
    sourced: watch::Receiver<Arc<Sourced>>,
    watched: Arc<Watched>,
    names: Arc<BTreeSet<String>>,
    door: Client,
    memory: Mutex<Memory>,
}

/// What all applications of an engine share.
#[derive(Clone)]
pub(crate) struct Neighbourhood {
    pub(crate) watched: Arc<Watched>,
    /// The names of all applications.
    pub(crate) names: Arc<BTreeSet<String>>,
    pub(crate) door: Client,
}

struct Memory {
    builder: Option<Builder>,
    built: Option<(Arc<Snapshot>, Arc<Built>)>,
    told: Option<Status>,
    told_at: Option<Timestamp>,
    seen: BTreeMap<Id, Seen>,
    /// The text and the live form for which a dry run gave this verdict.
    verdicts: BTreeMap<Id, (u64, u64, Verdict)>,
    failures: BTreeMap<Id, Failure>,
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
            Origin::Git { location, reference, .. } => Source {
                kind: "git".to_owned(),
                location: location.shown(),
                reference: reference.clone(),
                ..Source::default()
            },
        };
        let builder = builder(&application);
        let memory = Memory {
            builder: Some(builder),
            built: None,
            told: None,
            told_at: None,
            seen: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            failures: BTreeMap::new(),
        };
        let Neighbourhood { watched, names, door } = around.clone();
        Follower { application, source, sourced, watched, names, door, memory: Mutex::new(memory) }
    }

    pub(crate) fn told(&self) -> Option<Status> {
        self.lock().told.clone()
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
    }

    /// Reads everything the plan looks at.
    pub(crate) async fn observe(&self) -> Result<View, Error> {
        let told = self.remembered().await?;
        let sourced = Arc::clone(&self.sourced.borrow());
        let built = self.built(&sourced).await?;
        let inventory = told.inventory();
        let wanted: BTreeSet<&Id> = built.objects.iter().map(|object| &object.id).collect();
        let rest: Vec<&ObjectStatus> =
            inventory.iter().filter(|(id, _)| !wanted.contains(id)).map(|(_, object)| *object).collect();
        let eyes = self.eyes(&built.objects, &rest).await;
        let gone = rest.into_iter().map(|told| self.gone(told, &eyes)).collect();
        let desired = futures::stream::iter(built.objects.iter().cloned())
            .map(|object| self.wanted(object, &eyes))
            .buffered(AT_ONCE)
            .collect::<Vec<Wanted>>()
            .await;
        self.wait_for(&desired);
        Ok(View {
            application: self.application.clone(),
            source: self.source_now(&sourced, &told),
            sourced,
            defects: built.defects.clone(),
            kept_back: built.kept_back.clone(),
            unread: built.unread.clone(),
            desired,
            gone,
            told_at: self.lock().told_at,
            told,
        })
    }

    /// Does one step. What fails with one object is remembered for that object.
    pub(crate) async fn act(&self, step: Step, now: Timestamp) -> Result<(), Error> {
        match step {
            Step::Report(status) => self.report(*status, now).await,
            Step::Apply(objects) => {
                futures::stream::iter(objects)
                    .for_each_concurrent(AT_ONCE, |object| self.apply(object, now))
                    .await;
                Ok(())
            }
            Step::Delete(removals) => {
                let deleted = futures::stream::iter(removals)
                    .map(|removal| self.delete(removal))
                    .buffer_unordered(AT_ONCE)
                    .collect::<Vec<Result<(), Error>>>()
                    .await;
                deleted.into_iter().collect()
            }
        }
    }

    /// The status told last; the first time it is read through the door, where an earlier daemon left it.
    async fn remembered(&self) -> Result<Status, Error> {
        if let Some(told) = self.lock().told.clone() {
            return Ok(told);
        }
        let object = act::declare(&self.door, &self.application.name, &self.spec()).await?;
        let status = object.get("status").cloned().unwrap_or(Value::Null);
        let told: Status = if status.is_null() {
            Status::default()
        } else {
            let what = || format!("the status of application {}", self.application.name);
            serde_json::from_value(status).map_err(|source| Error::Json { what: what(), source })?
        };
        self.lock().told = Some(told.clone());
        Ok(told)
    }

    fn spec(&self) -> Value {
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
        json!({"source": source, "policy": {"prune": app.prune, "selfHeal": !app.suspend}, "suspend": app.suspend})
    }

    /// The objects of the snapshot; built when it changed.
    async fn built(&self, sourced: &Sourced) -> Result<Arc<Built>, Error> {
        let Some(snapshot) = sourced.snapshot.clone() else { return Ok(Arc::default()) };
        let mut builder = {
            let mut memory = self.lock();
            if let Some((of, built)) = &memory.built
                && Arc::ptr_eq(of, &snapshot)
            {
                return Ok(Arc::clone(built));
            }
            memory.builder.take().unwrap_or_else(|| builder(&self.application))
        };
        let of = Arc::clone(&snapshot);
        let build = tokio::task::spawn_blocking(move || {
            let built = builder.build(&of);
            (builder, built)
        });
        let (builder, built) = build.await.map_err(|_| Error::CutOff("building the objects"))?;
        let built = Arc::new(built);
        let wanted: BTreeSet<&Id> = built.objects.iter().map(|object| &object.id).collect();
        let mut memory = self.lock();
        memory.builder = Some(builder);
        memory.verdicts.retain(|id, _| wanted.contains(id));
        memory.failures.retain(|id, _| wanted.contains(id));
        memory.built = Some((snapshot, Arc::clone(&built)));
        Ok(built)
    }

    /// The caches of the kinds in question, and what is around them.
    async fn eyes(&self, objects: &[Object], rest: &[&ObjectStatus]) -> Eyes {
        let wanted = objects.iter().map(|object| object.kind);
        let gone = rest.iter().filter_map(|told| kind_of(told));
        let kinds: BTreeMap<(&str, &str), &'static Kind> =
            wanted.chain(gone).map(|kind| ((kind.group.as_str(), kind.kind.as_str()), kind)).collect();
        let mut eyes = Eyes { caches: BTreeMap::new(), around: Around::default() };
        let looks_deeper = kinds.keys().any(|(_, kind)| health::has_pods(kind) || *kind == "Service");
        for (name, kind) in kinds {
            eyes.caches.insert(name, self.watched.of(kind).await);
        }
        if looks_deeper {
            eyes.around = self.watched.around().await;
        }
        eyes
    }

    fn gone(&self, told: &ObjectStatus, eyes: &Eyes) -> Gone {
        let kind = kind_of(told);
        let live = kind.and_then(|kind| self.live(&told.id(), kind, eyes)).map(|(live, _)| live);
        Gone { told: told.clone(), kind, live }
    }

    async fn wanted(&self, object: Object, eyes: &Eyes) -> Wanted {
        let Some((live, seen)) = self.live(&object.id, object.kind, eyes) else {
            let failure =
                self.lock().failures.get(&object.id).filter(|known| known.hash == object.hash).cloned();
            let verdict = failure.map_or(Verdict::Missing, Verdict::Failed);
            return Wanted { object, live: None, verdict };
        };
        let verdict = self.verdict(&object, &seen).await;
        Wanted { object, live: Some(live), verdict }
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
        let verdict = match act::apply(&self.door, object, Run::Dry).await {
            Ok(after) if Seen::of(&after).digest == seen.digest => Verdict::Same,
            // The cache lags behind the server: what is live now decides.
            Ok(after) if Seen::of(&after).version != seen.version => match act::get(&self.door, object).await
            {
                Ok(live) if Seen::of(&live).digest == Seen::of(&after).digest => return Verdict::Same,
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
        let namespaces = unsettled.map(|wanted| wanted.object.id.namespace.clone()).collect();
        self.watched.wait_for(&self.application.name, namespaces);
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

    async fn report(&self, status: Status, now: Timestamp) -> Result<(), Error> {
        match act::report(&self.door, &self.application.name, &status).await {
            Ok(()) => {}
            Err(Error::Door { source, .. }) if client::is_not_found(&source) => {
                act::declare(&self.door, &self.application.name, &self.spec()).await?;
                act::report(&self.door, &self.application.name, &status).await?;
            }
            Err(error) => return Err(error),
        }
        let mut memory = self.lock();
        memory.told = Some(status);
        memory.told_at = Some(now);
        Ok(())
    }

    async fn apply(&self, object: Object, now: Timestamp) {
        let applied = act::apply(&self.door, &object, Run::Real).await;
        match applied {
            Ok(after) => {
                info!(application = self.application.name, object = %object.id, file = %object.file, line = object.line, "applied");
                let seen = Seen::of(&after);
                let mut memory = self.lock();
                memory.failures.remove(&object.id);
                memory.verdicts.insert(object.id.clone(), (object.hash, seen.digest, Verdict::Same));
                if !memory.seen.contains_key(&object.id) {
                    self.watched.made(&object.id, seen);
                }
            }
            Err(error) => self.failed(&object, &error, now),
        }
    }

    fn failed(&self, object: &Object, error: &kube::Error, now: Timestamp) {
        let mut memory = self.lock();
        let tries = memory
            .failures
            .get(&object.id)
            .filter(|known| known.hash == object.hash)
            .map_or(0, |known| known.tries);
        if let (Some(why), Some(seen)) = (immutable(object, error), memory.seen.get(&object.id)) {
            let verdict = (object.hash, seen.digest, Verdict::Immutable(why));
            memory.verdicts.insert(object.id.clone(), verdict);
            return;
        }
        let (path, message, help) = told_by(error);
        let place = path.and_then(|path| memory.builder.as_ref().map(|builder| builder.place(object, &path)));
        let (line, column) = place.unwrap_or((object.line, 0));
        let wait = FIRST_RETRY.saturating_mul(2u32.saturating_pow(tries.min(16))).min(MOST_RETRY);
        let defect = Defect {
            file: object.file.to_string(),
            line,
            column,
            message: format!("{}: {message}", object.id),
            help,
            object: Some(object.id.to_string()),
        };
        let failure = Failure { hash: object.hash, defect, tries: tries + 1, retry_at: now + wait };
        memory.failures.insert(object.id.clone(), failure);
    }

    async fn delete(&self, removal: Removal) -> Result<(), Error> {
        info!(application = self.application.name, object = %removal.id, why = removal.why, "delete");
        let deleted = act::delete(&self.door, &removal).await;
        deleted.map_err(|source| Error::Door {
            verb: "delete",
            what: removal.id.to_string(),
            source: Box::new(source),
        })
    }

    /// What a sync would change now.
    pub(crate) async fn diff(&self) -> Result<Diff, Error> {
        let view = self.observe().await?;
        let Some(snapshot) = view.sourced.snapshot.clone() else {
            return Err(Error::NoSnapshot(self.application.name.clone()));
        };
        let mut changes = Vec::new();
        for wanted in &view.desired {
            changes.extend(self.change(wanted).await);
        }
        for gone in &view.gone {
            let ours =
                gone.live.as_ref().is_some_and(|live| live.owner.as_deref() == Some(&self.application.name));
            if ours {
                let hold = prune_hold(&view, gone);
                changes.push(Change {
                    object: gone.told.id(),
                    kind: if hold.is_some() { ChangeKind::Hold } else { ChangeKind::Prune },
                    file: gone.told.file.clone(),
                    line: gone.told.line,
                    reason: hold.unwrap_or_else(|| "no file wants it any more".to_owned()),
                    fields: Vec::new(),
                });
            }
        }
        changes.sort_by(|a, b| a.object.cmp(&b.object));
        let (application, revision) = (self.application.name.clone(), snapshot.revision.clone());
        Ok(Diff { application, revision, changes, defects: view.defects })
    }

    async fn change(&self, wanted: &Wanted) -> Option<Change> {
        let object = &wanted.object;
        let empty = Value::Null;
        let (kind, reason, fields) = match &wanted.verdict {
            Verdict::Same => return None,
            Verdict::Missing => {
                (ChangeKind::Create, String::new(), diff::fields(&object.id.kind, &empty, &object.value))
            }
            Verdict::Immutable(why) => (ChangeKind::Recreate, why.clone(), Vec::new()),
            Verdict::Failed(failure) => (ChangeKind::Fail, failure.defect.message.clone(), Vec::new()),
            Verdict::Taken(defect) => (ChangeKind::Fail, defect.message.clone(), Vec::new()),
            Verdict::Differs => {
                let cache = self.watched.of(object.kind).await;
                let live = cache.get(&live::key(&object.id)).map(|live| whole(&live, object.kind));
                match act::apply(&self.door, object, Run::Dry).await {
                    Ok(after) => {
                        let fields = diff::fields(&object.id.kind, live.as_ref().unwrap_or(&empty), &after);
                        (ChangeKind::Change, String::new(), fields)
                    }
                    Err(error) => (ChangeKind::Fail, told_by(&error).1, Vec::new()),
                }
            }
        };
        Some(Change {
            object: object.id.clone(),
            kind,
            file: object.file.to_string(),
            line: object.line,
            reason,
            fields,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // Memory only saves work: whatever a panic left in it is checked by the next round.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Eyes {
    caches: BTreeMap<(&'static str, &'static str), Cache<DynamicObject>>,
    around: Around,
}

fn taken(object: &Object, other: &str) -> Verdict {
    Verdict::Taken(Defect {
        file: object.file.to_string(),
        line: object.line,
        column: 0,
        message: format!("{} is kept by application {other} already", object.id),
        help: "remove it from one of the two".to_owned(),
        object: Some(object.id.to_string()),
    })
}

fn builder(application: &Application) -> Builder {
    Builder::new(Defaults { namespace: application.namespace.clone(), application: application.name.clone() })
}

fn kind_of(told: &ObjectStatus) -> Option<&'static Kind> {
    kinds::by_kind(&kinds::api_version(&told.group, &told.version), &told.kind)
}

/// A cached object as the API gives it.
fn whole(object: &DynamicObject, kind: &Kind) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        // Items of a list come without them; health rules go by them.
        fields.insert("apiVersion".to_owned(), json!(kind.api_version()));
        fields.insert("kind".to_owned(), json!(kind.kind));
    }
    value
}

/// Whether the object is refused for a field that cannot change, and may be made anew.
fn immutable(object: &Object, error: &kube::Error) -> Option<String> {
    let kube::Error::Api(status) = error else { return None };
    let fixed = status.code == 422
        && ["immutable", "may not change fields", "may not be changed", "cannot be changed"]
            .iter()
            .any(|words| status.message.contains(words));
    let allowed = MADE_ANEW.contains(&object.id.kind.as_str())
        || object.value["metadata"]["annotations"][RECREATE] == "true";
    (fixed && allowed).then(|| status.message.lines().next().unwrap_or_default().to_owned())
}

/// The field, the sentence and the way out of an answer that is no success.
fn told_by(error: &kube::Error) -> (Option<String>, String, String) {
    let kube::Error::Api(status) = error else {
        return (None, chain(error), "it is tried again by itself".to_owned());
    };
    let cause = status.details.as_ref().and_then(|details| details.causes.first());
    let field = cause.map(|cause| cause.field.clone()).filter(|field| !field.is_empty());
    let help = match status.code {
        404 if status.message.contains("namespaces") => {
            "add the Namespace to the files, or create it".to_owned()
        }
        422 if status.message.contains("immutable") => {
            format!(
                "revert the field, or add the annotation {RECREATE}: \"true\" to have the object deleted and made again"
            )
        }
        422 | 400 => "correct the file".to_owned(),
        403 => "ask whoever set the policy".to_owned(),
        _ => "it is tried again by itself".to_owned(),
    };
    (field, status.message.clone(), help)
}
