//! What is taken on every node and who waits for what, kept current change by change, so that a round costs what is to
//! be placed and not what runs or waits.
//!
//! Invariant: a pod is counted once: as bound when the cache shows its node, as assumed from the moment its binding was
//! asked for until then.
//! Invariant: a pod that waits is looked at again when a change could help it, also when that change came while the
//! round that let it wait was under way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client::{Cache, Key, key_of};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::ask::{Ask, ClassId};
use crate::class::{Class, Classes};
use crate::hints::{Event, helps};
use crate::node::{Facts, NodeView, Used};
use crate::plan::{Causes, View};

/// Pods placed in one round: enough that a round costs little per pod, few enough that the first is bound soon.
const AT_ONCE: usize = 512;

/// The books.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
pub(crate) struct Books {
    /// By name.
    pub(crate) nodes: Arc<Vec<Arc<NodeView>>>,
    /// What pods take of nodes that are not there.
    lost: BTreeMap<String, Used>,
    pub(crate) classes: Classes,
    entries: BTreeMap<Key, Entry>,
    /// Those to be placed in the next round.
    active: BTreeMap<Rank, Arc<Ask>>,
    /// Those that wait for a change.
    parked: BTreeSet<Key>,
    /// Those without a node that were promised one.
    promised: BTreeSet<Key>,
    /// What has happened since the last view was taken.
    recent: Vec<Event>,
    /// How many pods were placed so far.
    placed: usize,
}

#[derive(Debug)]
struct Entry {
    ask: Arc<Ask>,
    place: Place,
}

/// Where a pod is.
#[derive(Debug, Clone, PartialEq)]
enum Place {
    /// To be placed in the next round.
    Active,
    /// Waiting for a change of these kinds.
    Parked(Causes),
    /// Its binding was asked for.
    Assumed(String),
    /// Its volumes on this node were asked for.
    Claiming(String),
    /// The cache shows its node.
    Bound(String),
}

impl Place {
    fn node(&self) -> Option<&str> {
        match self {
            Place::Assumed(node) | Place::Claiming(node) | Place::Bound(node) => Some(node),
            Place::Active | Place::Parked(_) => None,
        }
    }
}

/// The most important first, then the longest waiting.
type Rank = (Reverse<i32>, Option<Timestamp>, Arc<Key>);

fn rank(ask: &Ask) -> Rank {
    let since = ask.pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (Reverse(ask.priority), since, Arc::clone(&ask.key))
}

impl Ledger {
    /// Takes over what a pod is now. The answer is whether a round could come out differently.
    pub(crate) fn pod_changed(&self, told: &Pod, pods: &Cache<Pod>) -> bool {
        let key = key_of(told);
        let live = pods.get(&key);
        self.books().pod(&key, live)
    }

    /// Takes over what a node is now.
    pub(crate) fn node_changed(&self, told: &Node, nodes: &Cache<Node>) -> bool {
        let key = key_of(told);
        let live = nodes.get(&key);
        self.books().node(&key.name, live.as_deref())
    }

    /// Claims, volumes or classes changed.
    pub(crate) fn storage_changed(&self) -> bool {
        let mut books = self.books();
        let claiming = books.entries.iter().filter(|(_, entry)| matches!(entry.place, Place::Claiming(_)));
        let claiming: Vec<Key> = claiming.map(|(key, _)| key.clone()).collect();
        for key in &claiming {
            books.release(key);
        }
        books.happened(Event::Storage) || !claiming.is_empty()
    }

    /// The labels of a namespace changed.
    pub(crate) fn namespaces_changed(&self) -> bool {
        self.books().happened(Event::Namespaces)
    }

    /// Counts a pod on a node before its binding is asked for, unless it is no longer a pod that waits.
    pub(crate) fn assume(&self, ask: &Ask, node: &str) {
        self.books().assume(ask, Place::Assumed(node.to_owned()));
    }

    /// The same while its volumes are made.
    pub(crate) fn claim(&self, ask: &Ask, node: &str) {
        self.books().assume(ask, Place::Claiming(node.to_owned()));
    }

    /// The binding did not come to be.
    pub(crate) fn forget(&self, ask: &Ask) {
        let mut books = self.books();
        let place = books.entry(ask).map(|entry| entry.place.clone());
        if matches!(place, Some(Place::Assumed(_) | Place::Claiming(_))) {
            books.release(&ask.key);
        }
    }

    /// Lets a pod wait until one of these kinds of change could help it. The answer is whether one came already.
    pub(crate) fn park(&self, ask: &Ask, causes: Causes) -> bool {
        let mut books = self.books();
        let Some(entry) = books.entry(ask).filter(|entry| entry.place == Place::Active) else { return false };
        let live = Arc::clone(&entry.ask);
        if books.recent.iter().any(|event| event.is_of(&ask.key) || helps(&books, &live, &causes, event)) {
            return true;
        }
        books.put(&ask.key, live, Place::Parked(causes));
        false
    }

    /// What is there; the rest of the view is given.
    pub(crate) fn view(&self, rest: View) -> View {
        let mut books = self.books();
        books.recent.clear();
        let promised = books.promised.iter().filter_map(|key| books.entries.get(key));
        View {
            nominated: promised.map(|entry| Arc::clone(&entry.ask)).collect(),
            nodes: Arc::clone(&books.nodes),
            classes: books.classes.all.clone(),
            pending: books.active.values().take(AT_ONCE).cloned().collect(),
            more: books.active.len() > AT_ONCE,
            start: books.placed,
            ..rest
        }
    }

    /// The books themselves.
    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Takes over what a pod is now.
    pub(crate) fn pod(&mut self, key: &Key, live: Option<Arc<Pod>>) -> bool {
        let known = self.entries.get(key).map(|entry| entry.ask.pod.metadata.uid.clone());
        let same =
            known.as_ref().is_some_and(|uid| live.as_ref().is_some_and(|pod| pod.metadata.uid == *uid));
        let mut woken = if known.is_some() && !same { self.drop_pod(key) } else { false };
        woken |= match live.as_ref().map(|pod| (pod, stands(pod))) {
            None | Some((_, Stands::Aside)) => self.drop_pod(key),
            Some((pod, Stands::On(node))) => self.bound(key, pod, node.to_owned()),
            Some((pod, Stands::Waiting)) => self.waits(key, pod),
        };
        woken
    }

    /// Takes over what a node is now.
    pub(crate) fn node(&mut self, name: &str, live: Option<&Node>) -> bool {
        let place = self.nodes.binary_search_by(|view| view.name().cmp(name));
        let nodes = Arc::make_mut(&mut self.nodes);
        match (place, live) {
            (Ok(at), Some(live)) => {
                let facts = Facts::read(live);
                let differs = facts.differs(&nodes[at].facts);
                Arc::make_mut(&mut nodes[at]).facts = Arc::new(facts);
                if !differs {
                    return false;
                }
            }
            (Err(at), Some(live)) => {
                let used = self.lost.remove(name).unwrap_or_default();
                nodes.insert(at, Arc::new(NodeView { facts: Arc::new(Facts::read(live)), used }));
            }
            (Ok(at), None) => {
                let gone = nodes.remove(at);
                if !gone.used.pods.is_empty() {
                    self.lost.insert(name.to_owned(), gone.used.clone());
                }
            }
            (Err(_), None) => return false,
        }
        self.happened(Event::Node(name.to_owned()))
    }

    fn waits(&mut self, key: &Key, pod: &Arc<Pod>) -> bool {
        let Some(entry) = self.entries.get(key) else {
            let ask = self.read(pod);
            self.put(key, ask, Place::Active);
            return true;
        };
        let (old, place) = (Arc::clone(&entry.ask), entry.place.clone());
        let renewed = old.renewed(pod);
        let kept = renewed.is_some();
        let ask = match renewed {
            Some(ask) => Arc::new(ask),
            None => {
                let ask = self.read(pod);
                self.classes.leave(old.id);
                ask
            }
        };
        if let Some(node) = place.node() {
            self.give(node, &old);
            self.take(node, &ask);
        }
        let place = match place {
            Place::Parked(_) if !kept => Place::Active,
            other => other,
        };
        let is_active = place == Place::Active;
        let promised = old.nominated().map(str::to_owned);
        let withdrawn = promised.filter(|node| ask.nominated() != Some(node));
        self.put(key, ask, place);
        if !kept {
            self.recent.push(Event::Itself(key.clone()));
        }
        let helped = withdrawn.is_some_and(|node| self.happened(Event::Left { node, class: old.id }));
        // Also when only its status changed: what was to be said about it may have been refused for that.
        helped || is_active
    }

    fn bound(&mut self, key: &Key, pod: &Arc<Pod>, node: String) -> bool {
        let (old, place) = match self.remove(key) {
            Some(entry) => (Some(entry.ask), Some(entry.place)),
            None => (None, None),
        };
        let renewed = old.as_ref().and_then(|old| old.renewed_on(pod));
        let kept = renewed.is_some();
        let ask = match renewed {
            Some(ask) => Arc::new(ask),
            None => self.read(pod),
        };
        let mut woken = false;
        if let Some(old) = &old {
            if let Some(before) = place.as_ref().and_then(Place::node) {
                self.give(before, old);
                self.take(&node, &ask);
                let less = old.demand != ask.demand || old.id != ask.id || before != node;
                if less {
                    let event = Event::Left { node: before.to_owned(), class: old.id };
                    woken |= self.happened(event);
                }
            } else {
                self.take(&node, &ask);
            }
            if !kept {
                self.classes.leave(old.id);
            }
        } else {
            self.take(&node, &ask);
        }
        let new = !matches!(place, Some(Place::Bound(_))) || !kept;
        let class = ask.id;
        self.put(key, ask, Place::Bound(node));
        if new {
            woken |= self.happened(Event::Came { class });
        }
        woken
    }

    fn drop_pod(&mut self, key: &Key) -> bool {
        let Some(entry) = self.remove(key) else { return false };
        let node = entry.place.node().map(str::to_owned);
        let promised = entry.ask.nominated().map(str::to_owned);
        if let Some(node) = &node {
            self.give(node, &entry.ask);
        }
        let left = node.or(promised).map(|node| Event::Left { node, class: entry.ask.id });
        let woken = left.is_some_and(|event| self.happened(event));
        self.classes.leave(entry.ask.id);
        woken
    }

    fn assume(&mut self, ask: &Ask, place: Place) {
        let Some(entry) = self.entry(ask) else { return };
        let live = Arc::clone(&entry.ask);
        if entry.place.node().is_some() {
            return;
        }
        if let Some(node) = place.node() {
            self.take(node, &live);
        }
        self.placed += 1;
        self.put(&ask.key, live, place);
    }

    /// What was assumed is to be tried again.
    fn release(&mut self, key: &Key) {
        let Some(Entry { ask, place }) = self.remove(key) else { return };
        self.put(key, Arc::clone(&ask), Place::Active);
        if let Some(node) = place.node() {
            self.give(node, &ask);
            self.happened(Event::Left { node: node.to_owned(), class: ask.id });
        }
    }

    /// Wakes those whom a change could help. The answer is whether anyone was woken.
    fn happened(&mut self, event: Event) -> bool {
        let helped = self.parked.iter().filter(|key| match self.entries.get(*key) {
            Some(Entry { ask, place: Place::Parked(causes) }) => helps(self, ask, causes, &event),
            _ => false,
        });
        let helped: Vec<Key> = helped.cloned().collect();
        for key in &helped {
            if let Some(entry) = self.remove(key) {
                self.put(key, entry.ask, Place::Active);
            }
        }
        self.recent.push(event);
        // Those that are being looked at may be helped as well; they find out when they are to wait.
        !helped.is_empty()
    }

    /// Where a pod is now; whatever was known of it is replaced.
    fn put(&mut self, key: &Key, ask: Arc<Ask>, place: Place) {
        self.remove(key);
        match &place {
            Place::Active => {
                self.active.insert(rank(&ask), Arc::clone(&ask));
            }
            Place::Parked(_) => {
                self.parked.insert(key.clone());
            }
            Place::Assumed(_) | Place::Claiming(_) | Place::Bound(_) => {}
        }
        if place.node().is_none() && ask.nominated().is_some() {
            self.promised.insert(key.clone());
        }
        self.entries.insert(key.clone(), Entry { ask, place });
    }

    fn remove(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.active.remove(&rank(&entry.ask));
        self.parked.remove(key);
        self.promised.remove(key);
        Some(entry)
    }

    fn entry(&self, ask: &Ask) -> Option<&Entry> {
        self.entries.get(&*ask.key).filter(|entry| entry.ask.uid() == ask.uid())
    }

    fn read(&mut self, pod: &Arc<Pod>) -> Arc<Ask> {
        let classes = &mut self.classes;
        Arc::new(Ask::read(pod, |class: Class| -> (ClassId, Arc<Class>) { classes.join(class) }))
    }

    fn take(&mut self, node: &str, ask: &Arc<Ask>) {
        self.used(node, |used| used.take(ask));
    }

    fn give(&mut self, node: &str, ask: &Ask) {
        self.used(node, |used| used.give(ask));
    }

    fn used(&mut self, node: &str, change: impl FnOnce(&mut Used)) {
        match self.find(node) {
            Some(at) => change(&mut Arc::make_mut(&mut Arc::make_mut(&mut self.nodes)[at]).used),
            None => {
                let used = self.lost.entry(node.to_owned()).or_default();
                change(used);
                if used.pods.is_empty() {
                    self.lost.remove(node);
                }
            }
        }
    }

    /// The place of a node.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.nodes.binary_search_by(|view| view.name().cmp(name)).ok()
    }
}

/// What a pod is to the scheduler.
enum Stands<'a> {
    /// Nothing: it has ended, is on its way out without a node, or has another scheduler.
    Aside,
    /// It takes room on this node.
    On(&'a str),
    /// It waits for a node.
    Waiting,
}

fn stands(pod: &Pod) -> Stands<'_> {
    let spec = pod.spec.as_ref();
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Stands::Aside;
    }
    if let Some(node) = spec.and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty()) {
        return Stands::On(node);
    }
    let scheduler = spec.and_then(|spec| spec.scheduler_name.as_deref());
    let ours = scheduler.is_none_or(|name| name == "default-scheduler");
    if ours && pod.metadata.deletion_timestamp.is_none() { Stands::Waiting } else { Stands::Aside }
}
