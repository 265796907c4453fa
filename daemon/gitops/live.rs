//! What is live of the objects that applications care about, and the wakes when it changes.
//!
//! Invariant: a change of an object wakes the application its label names; a change of a pod or endpoint wakes only
//! applications that wait for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::health::Health;
use api::kinds::{self, Kind};
use client::{Cache, Caches, Key};
use imbl::OrdMap;
use kube::api::{ApiResource, DynamicObject};
use reconcile::Queue;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::build::{Id, hash};
use crate::defined::{self, Defined};
use crate::health::{self, Around};
use crate::hooks::RUN;
use crate::marks::Prune;
use crate::plan::Live;
use crate::waiting::{Place, Waiting};
use crate::{APPLICATION_LABEL, diff, marks};

/// The cache has seen what was made within this time, or it is looked at again.
const FRESH: Duration = Duration::from_secs(2);

/// The caches in use, and who wants to be woken.
pub(crate) struct Watched {
    caches: Caches,
    queue: Queue<String>,
    known: Mutex<BTreeMap<&'static str, BTreeMap<String, Cache<DynamicObject>>>>,
    waiting: Arc<Mutex<Waiting>>,
    /// The services with a ready endpoint, of these slices.
    served: Mutex<Served>,
    /// Objects just made: their caches may not have them yet.
    fresh: Arc<Mutex<BTreeMap<Id, (Instant, Seen)>>>,
    /// Jobs and pods of ours that have ended, as long as they are there or were just there.
    ended: Arc<Mutex<BTreeMap<Id, Ended>>>,
    /// The kinds that the established definitions of these versions define.
    defined: Mutex<(Vec<String>, Defined)>,
    /// The applications that are woken when those change.
    readers: Arc<Mutex<BTreeSet<String>>>,
}

#[derive(Default)]
struct Served {
    slices: OrdMap<Key, Arc<DynamicObject>>,
    services: Arc<BTreeSet<(String, String)>>,
}

/// What was read off one version of an object.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) version: String,
    pub(crate) uid: String,
    pub(crate) owner: Option<String>,
    pub(crate) deleting: bool,
    /// Differs when more than the status differs.
    pub(crate) digest: u64,
    /// By the rule of its kind alone.
    pub(crate) health: Option<Health>,
    pub(crate) prune: Prune,
    /// The run of a hook that it was made for.
    pub(crate) run: Option<String>,
}

/// How a Job or a hook ended, remembered because its object may be gone at once.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) run: Option<String>,
    pub(crate) health: Health,
}

impl Seen {
    /// Reads an object as the API gives it.
    pub(crate) fn of(object: &Value) -> Seen {
        let meta = &object["metadata"];
        let text = |field: &str| meta[field].as_str().unwrap_or_default().to_owned();
        Seen {
            version: text("resourceVersion"),
            uid: text("uid"),
            owner: meta["labels"][APPLICATION_LABEL].as_str().map(str::to_owned),
            deleting: meta.get("deletionTimestamp").is_some_and(|at| !at.is_null()),
            digest: hash(&diff::comparable(object)),
            health: api::health::assess(object),
            prune: marks::prune(object),
            run: marks::annotation(object, RUN).map(str::to_owned),
        }
    }

    /// For the plan, with the health that its surroundings make of it.
    pub(crate) fn live(&self, health: Health) -> Live {
        Live {
            uid: self.uid.clone(),
            owner: self.owner.clone(),
            deleting: self.deleting,
            health,
            prune: self.prune,
            run: self.run.clone(),
            evidence: Vec::new(),
        }
    }
}

impl Watched {
    pub(crate) fn new(caches: Caches, queue: Queue<String>) -> Watched {
        Watched {
            caches,
            queue,
            known: Mutex::default(),
            waiting: Arc::default(),
            served: Mutex::default(),
            fresh: Arc::default(),
            ended: Arc::default(),
            defined: Mutex::default(),
            readers: Arc::default(),
        }
    }

    /// From now on the application is woken when the kinds beyond the table change.
    pub(crate) fn follow_definitions(&self, application: &str) {
        lock(&self.readers).insert(application.to_owned());
    }

    /// The kinds that the cluster has beyond the table.
    pub(crate) async fn defined(&self) -> Defined {
        let definitions = self.of(defined::row()).await.snapshot();
        let established = definitions.values().filter(|definition| {
            let conditions = definition.data["status"]["conditions"].as_array();
            let established = |one: &Value| one["type"] == "Established" && one["status"] == "True";
            conditions.is_some_and(|conditions| conditions.iter().any(established))
        });
        let established: Vec<&Arc<DynamicObject>> = established.collect();
        let version = |definition: &Arc<DynamicObject>| {
            format!("{:?} {:?}", definition.metadata.uid, definition.metadata.resource_version)
        };
        let versions: Vec<String> = established.iter().copied().map(version).collect();
        let mut known = lock(&self.defined);
        if known.0 != versions {
            let now = Defined::of(established.iter().map(|definition| &definition.data));
            for gone in known.1.without(&now) {
                self.forget(gone);
            }
            *known = (versions, now);
        }
        known.1.clone()
    }

    /// Looks no more at a kind that is gone.
    fn forget(&self, kind: &Kind) {
        if let Some(of_group) = lock(&self.known).get_mut(kind.group.as_str()) {
            of_group.remove(&kind.kind);
        }
        self.caches.forget(&resource(kind));
    }

    /// The current objects of a kind; waits for the first list.
    pub(crate) async fn of(&self, kind: &'static Kind) -> Cache<DynamicObject> {
        let (cache, new) = {
            let mut known = lock(&self.known);
            let of_group = known.entry(&kind.group).or_default();
            match of_group.get(&kind.kind) {
                Some(cache) => (cache.clone(), false),
                None => {
                    let cache = self.caches.dynamic(&resource(kind));
                    of_group.insert(kind.kind.clone(), cache.clone());
                    (cache, true)
                }
            }
        };
        if new {
            // Before any wait: whoever asked first may be gone by the end of it.
            self.listen(kind, &cache);
        }
        cache.synced().await;
        cache
    }

    /// Pods and endpoints, for health.
    pub(crate) async fn around(&self) -> Around {
        let (pods, slices) =
            (kinds::by_kind("v1", "Pod"), kinds::by_kind("discovery.k8s.io/v1", "EndpointSlice"));
        let pods = match pods {
            Some(kind) => self.of(kind).await.snapshot(),
            None => OrdMap::new(),
        };
        let slices = match slices {
            Some(kind) => self.of(kind).await.snapshot(),
            None => OrdMap::new(),
        };
        // Rounds are many, changes of endpoints few.
        let mut served = lock(&self.served);
        if !served.slices.ptr_eq(&slices) {
            *served = Served { services: Arc::new(health::served(&slices)), slices };
        }
        Around { pods, served: Arc::clone(&served.services) }
    }

    /// What an application waits for in pods and endpoints.
    pub(crate) fn wait_for(&self, application: &str, places: BTreeSet<Place>) {
        lock(&self.waiting).set(application, places);
    }

    /// An object was just applied.
    pub(crate) fn made(&self, id: &Id, seen: Seen) {
        let mut fresh = lock(&self.fresh);
        // The cache may have been quicker.
        let known = lock(&self.known);
        let cache = known.get(id.group.as_str()).and_then(|of_group| of_group.get(&id.kind));
        if cache.is_none_or(|cache| cache.get(&key(id)).is_none()) {
            fresh.insert(id.clone(), (Instant::now(), seen));
        }
    }

    /// What was just made and is not in its cache yet.
    pub(crate) fn fresh(&self, id: &Id) -> Option<Seen> {
        let mut fresh = lock(&self.fresh);
        let (at, seen) = fresh.get(id)?.clone();
        if at.elapsed() < FRESH {
            return Some(seen);
        }
        fresh.remove(id);
        None
    }

    /// How an object ended that was last seen ended.
    pub(crate) fn ended(&self, id: &Id) -> Option<Ended> {
        lock(&self.ended).get(id).cloned()
    }

    /// The cache has it now.
    pub(crate) fn seen(&self, id: &Id) {
        lock(&self.fresh).remove(id);
    }

    fn listen(&self, kind: &'static Kind, cache: &Cache<DynamicObject>) {
        let (queue, waiting, fresh) =
            (self.queue.clone(), Arc::clone(&self.waiting), Arc::clone(&self.fresh));
        let ended = Arc::clone(&self.ended);
        let ends = matches!(kind.kind.as_str(), "Job" | "Pod");
        let tells_health = matches!(kind.kind.as_str(), "Pod" | "EndpointSlice");
        let readers = std::ptr::eq(kind, defined::row()).then(|| Arc::clone(&self.readers));
        cache.listen(move |object| {
            let meta = &object.metadata;
            for application in readers.iter().flat_map(|readers| lock(readers).clone()) {
                queue.wake(application);
            }
            if let Some(application) = meta.labels.as_ref().and_then(|labels| labels.get(APPLICATION_LABEL)) {
                queue.wake(application.clone());
                if ends {
                    remember_end(&mut lock(&ended), kind, object);
                }
            }
            if tells_health {
                let concerned = lock(&waiting).concerned(object);
                concerned.into_iter().for_each(|application| queue.wake(application));
            }
            let mut fresh = lock(&fresh);
            if !fresh.is_empty() {
                let namespace = meta.namespace.clone().unwrap_or_default();
                let name = meta.name.clone().unwrap_or_default();
                fresh.remove(&Id { group: kind.group.clone(), kind: kind.kind.clone(), namespace, name });
            }
        });
    }
}

/// Keeps how a run ended until another one is seen.
fn remember_end(ended: &mut BTreeMap<Id, Ended>, kind: &'static Kind, object: &DynamicObject) {
    let meta = &object.metadata;
    let id = Id {
        group: kind.group.clone(),
        kind: kind.kind.clone(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
    };
    let finished = match kind.kind.as_str() {
        "Pod" => matches!(object.data["status"]["phase"].as_str(), Some("Succeeded" | "Failed")),
        _ => {
            let conditions =
                object.data["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
            conditions.iter().any(|known| {
                matches!(known["type"].as_str(), Some("Complete" | "Failed")) && known["status"] == "True"
            })
        }
    };
    let run = meta.annotations.as_ref().and_then(|annotations| annotations.get(RUN)).cloned();
    if finished {
        // How it ended is judged without its deletion.
        let mut value = whole(object, kind);
        if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.remove("deletionTimestamp");
        }
        if let Some(health) = api::health::assess(&value) {
            ended.insert(id, Ended { run, health });
        }
    } else if ended.get(&id).is_some_and(|known| known.run != run || run.is_none()) {
        ended.remove(&id);
    }
}

/// A cached object as the API gives it.
pub(crate) fn whole(object: &DynamicObject, kind: &Kind) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        // Items of a list come without them; health rules go by them.
        fields.insert("apiVersion".to_owned(), json!(kind.api_version()));
        fields.insert("kind".to_owned(), json!(kind.kind));
    }
    value
}

/// The key of an object in its kind's cache.
pub(crate) fn key(id: &Id) -> Key {
    Key::new(id.namespace.clone(), id.name.clone())
}

fn resource(kind: &Kind) -> ApiResource {
    ApiResource {
        group: kind.group.clone(),
        version: kind.version.clone(),
        api_version: kind.api_version(),
        kind: kind.kind.clone(),
        plural: kind.plural.clone(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic cannot leave these maps half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
