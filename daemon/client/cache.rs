//! One shared, always current copy per kind, and who is told when an object of it changes.
//!
//! Invariant: objects are whole but for `metadata.managedFields`.
//! Invariant: listeners are called after the copy holds the change, so that whoever they wake sees it.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::fmt::{self, Debug, Display};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use imbl::OrdMap;
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Names an object of a known kind. Cluster-scoped objects have an empty namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Empty for objects of the cluster.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl Key {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Key {
        Key { namespace: namespace.into(), name: name.into() }
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What a cache can hold: any kind that can be read from an answer.
pub trait Object: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static> Object for K {}

/// The key of an object.
pub fn key_of<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

type Listener<K> = Box<dyn FnMut(&Arc<K>) + Send>;

/// The current objects of one kind. Cheap to clone.
pub struct Cache<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    present: watch::Sender<Present<K>>,
    listeners: Mutex<Vec<Listener<K>>>,
}

struct Present<K> {
    objects: OrdMap<Key, Arc<K>>,
    synced: bool,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Cache { shared: Arc::clone(&self.shared) }
    }
}

impl<K> fmt::Debug for Cache<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("objects", &self.shared.present.borrow().objects.len()).finish()
    }
}

impl<K: Send + Sync + 'static> Cache<K> {
    fn new() -> Cache<K> {
        let present = Present { objects: OrdMap::new(), synced: false };
        Cache {
            shared: Arc::new(Shared { present: watch::Sender::new(present), listeners: Mutex::default() }),
        }
    }

    /// All objects of now, in the order of their keys. O(1); does not change afterwards.
    pub fn snapshot(&self) -> OrdMap<Key, Arc<K>> {
        self.shared.present.borrow().objects.clone()
    }

    /// One object, as it is now.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.shared.present.borrow().objects.get(key).cloned()
    }

    /// Returns when the first list has arrived: before that, "not there" means nothing.
    pub async fn synced(&self) {
        let mut present = self.shared.present.subscribe();
        // The sender lives in self, so the wait can only end by the condition.
        let _ = present.wait_for(|present| present.synced).await;
    }

    /// Calls the listener with every object that is there, and from now on with each object that appears, changes
    /// (before and after) or vanishes (as it last was). A listener only wakes queues: it must not block.
    pub fn listen(&self, mut listener: impl FnMut(&Arc<K>) + Send + 'static) {
        // The lock is taken first: a change that arrives meanwhile is told to this listener as well.
        let mut listeners = self.listeners();
        for object in self.snapshot().values() {
            listener(object);
        }
        listeners.push(Box::new(listener));
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Listener<K>>> {
        self.shared.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, old: Option<Arc<K>>, new: Option<Arc<K>>) {
        for listener in self.listeners().iter_mut() {
            for object in [&old, &new].into_iter().flatten() {
                listener(object);
            }
        }
    }

    fn put(&self, key: Key, object: Arc<K>) {
        let mut old = None;
        self.shared.present.send_modify(|present| old = present.objects.insert(key, Arc::clone(&object)));
        self.tell(old, Some(object));
    }

    fn remove(&self, key: &Key) {
        let mut old = None;
        self.shared.present.send_modify(|present| old = present.objects.remove(key));
        self.tell(old, None);
    }

    /// Replaces everything after a (re)list: what was not listed has vanished.
    fn replace(&self, listed: BTreeMap<Key, Arc<K>>) {
        let mut before = OrdMap::new();
        self.shared.present.send_modify(|present| {
            before = std::mem::replace(
                &mut present.objects,
                listed.iter().map(|(k, v)| (k.clone(), Arc::clone(v))).collect(),
            );
            present.synced = true;
        });
        for (key, old) in &before {
            self.tell(Some(Arc::clone(old)), listed.get(key).cloned());
        }
        for (_, new) in listed.into_iter().filter(|(key, _)| !before.contains_key(key)) {
            self.tell(None, Some(new));
        }
    }
}

/// The caches of one door, made when first asked for. Cheap to clone.
#[derive(Clone)]
pub struct Caches {
    client: Client,
    stop: CancellationToken,
    made: Arc<Mutex<Made>>,
}

/// Caches by the type they hold and, for kinds known by name only, that name; each with what ends its watch.
type Made = BTreeMap<(TypeId, String), (Box<dyn Any + Send>, CancellationToken)>;

impl fmt::Debug for Caches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caches").finish_non_exhaustive()
    }
}

impl Caches {
    /// Caches that are kept current until the token is cancelled.
    pub fn new(client: Client, stop: CancellationToken) -> Caches {
        Caches { client, stop, made: Arc::default() }
    }

    /// Caches behind another door, kept current as long as these are.
    pub fn beside(&self, client: Client) -> Caches {
        Caches::new(client, self.stop.clone())
    }

    /// The cache of a kind known at compile time.
    pub fn of<K>(&self) -> Cache<K>
    where
        K: Object + Resource<DynamicType = ()>,
    {
        self.made("typed", || Api::all(self.client.clone()), |api| watcher::watcher(api, config()).boxed())
    }

    /// The cache of a kind known by its name only, whole objects.
    pub fn dynamic(&self, kind: &kube::api::ApiResource) -> Cache<kube::api::DynamicObject> {
        self.made(
            &named(kind),
            || Api::all_with(self.client.clone(), kind),
            |api| watcher::watcher(api, config()).boxed(),
        )
    }

    /// The cache of a kind known by its name only, metadata only: much smaller.
    pub fn metadata(
        &self,
        kind: &kube::api::ApiResource,
    ) -> Cache<PartialObjectMeta<kube::api::DynamicObject>> {
        self.made(
            &named(kind),
            || Api::<PartialObjectMeta<kube::api::DynamicObject>>::all_with(self.client.clone(), kind),
            |api| watcher::watcher(api, config()).boxed(),
        )
    }

    /// Ends the caches of a kind that is served no more; what they held has vanished. Asked for again, they begin anew.
    pub fn forget(&self, kind: &kube::api::ApiResource) {
        let name = named(kind);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|(_, known), (_, stop)| {
            let gone = *known == name;
            if gone {
                stop.cancel();
            }
            !gone
        });
    }

    /// The client behind the caches.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    fn made<K, A>(
        &self,
        name: &str,
        api: impl FnOnce() -> Api<A>,
        watch: impl FnOnce(Api<A>) -> futures::stream::BoxStream<'static, watcher::Result<Event<K>>>,
    ) -> Cache<K>
    where
        K: Resource + Send + Sync + 'static,
    {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let id = (TypeId::of::<K>(), name.to_owned());
        if let Some(cache) = made.get(&id).and_then(|(any, _)| any.downcast_ref::<Cache<K>>()) {
            return cache.clone();
        }
        let cache = Cache::<K>::new();
        let stop = self.stop.child_token();
        made.insert(id, (Box::new(cache.clone()), stop.clone()));
        let (kept, ending, events) = (cache.clone(), self.stop.clone(), watch(api()));
        tokio::spawn(async move {
            keep_current(&kept, events, stop).await;
            if !ending.is_cancelled() {
                // The kind is gone, not the process.
                kept.replace(BTreeMap::new());
            }
        });
        cache
    }
}

fn named(kind: &kube::api::ApiResource) -> String {
    format!("{}/{}", kind.api_version, kind.plural)
}

fn config() -> watcher::Config {
    watcher::Config::default().streaming_lists()
}

async fn keep_current<K: Resource + Send + Sync + 'static>(
    cache: &Cache<K>,
    events: futures::stream::BoxStream<'static, watcher::Result<Event<K>>>,
    stop: CancellationToken,
) {
    let mut events = std::pin::pin!(events.default_backoff());
    let mut listed = BTreeMap::new();
    loop {
        let event = tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => return,
            // Cancel-safe per docs of StreamExt::next.
            event = events.next() => event,
        };
        match event {
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(object))) => {
                listed.insert(key_of(&object), lean(object));
            }
            Some(Ok(Event::InitDone)) => cache.replace(std::mem::take(&mut listed)),
            Some(Ok(Event::Apply(object))) => cache.put(key_of(&object), lean(object)),
            Some(Ok(Event::Delete(object))) => cache.remove(&key_of(&object)),
            Some(Err(error)) => {
                // A watch that ended with 410 or with the connection starts again by itself.
                warn!(kind = std::any::type_name::<K>(), error = %error, "watch broke, will list again");
            }
            None => return,
        }
    }
}

/// Without the account of field owners, which no room reads and which is the larger half of a small object.
fn lean<K: Resource>(mut object: K) -> Arc<K> {
    object.meta_mut().managed_fields = None;
    Arc::new(object)
}
