//! The state of one round: the nodes with what the round has given away so far, and the tallies that it asked for.
//!
//! Invariant: what is given away is seen by every choice after it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::ask::{Ask, Term};
use crate::filter::{Refusal, crowded, unfit};
use crate::near::Neighbours;
use crate::node::NodeView;
use crate::plan::View;
use crate::spread::Spreading;
use crate::tally::{Domains, Tally, Weighs};
use crate::volumes;

/// One round under way.
pub(crate) struct Round<'a> {
    /// What was there at its beginning.
    pub(crate) view: &'a View,
    /// The nodes, by name.
    pub(crate) nodes: Vec<Arc<NodeView>>,
    /// Pods that were promised a node, by its place.
    pub(crate) nominated: BTreeMap<usize, Vec<Arc<Ask>>>,
    /// Volumes that were given away.
    pub(crate) claimed: BTreeSet<String>,
    /// Pods that were told to leave, by uid.
    pub(crate) doomed: BTreeSet<String>,
    /// Where the search for nodes begins.
    pub(crate) next: usize,
    /// Terms of pods that keep others away, and of pods that would rather have others near or far.
    pub(crate) bearers: Bearers,
    /// How many of all nodes have an image, in thousandths.
    pub(crate) images: BTreeMap<String, i64>,
    domains: BTreeMap<String, Arc<Domains>>,
    tallies: Vec<Tally>,
    known: BTreeMap<String, usize>,
}

/// The distinct terms that pods bear, by their ids.
#[derive(Debug, Default)]
pub(crate) struct Bearers {
    /// Of anti-affinity.
    pub(crate) repelling: BTreeMap<Arc<str>, Arc<Term>>,
    /// Of preferences, and of affinity.
    pub(crate) liking: BTreeMap<Arc<str>, Arc<Term>>,
}

/// A number that stands for a tally of this round.
pub(crate) type TallyId = usize;

/// What a pod's terms and constraints need to know of the round; made once per pod.
#[derive(Debug)]
pub(crate) struct Ready {
    /// Pod affinity and anti-affinity.
    pub(crate) neighbours: Neighbours,
    /// Topology spread.
    pub(crate) spreading: Spreading,
}

impl<'a> Round<'a> {
    /// A round over this view.
    pub(crate) fn new(view: &'a View) -> Round<'a> {
        let mut bearers = Bearers::default();
        for class in &view.classes {
            for term in &class.far {
                bearers.repelling.insert(Arc::clone(&term.id), Arc::clone(term));
            }
            for term in class.near.iter().chain(class.liked.iter().map(|(_, term)| term)) {
                bearers.liking.insert(Arc::clone(&term.id), Arc::clone(term));
            }
        }
        let mut round = Round {
            view,
            nodes: view.nodes.as_ref().clone(),
            nominated: BTreeMap::new(),
            claimed: BTreeSet::new(),
            doomed: BTreeSet::new(),
            next: view.start.checked_rem(view.nodes.len()).unwrap_or(0),
            bearers,
            images: BTreeMap::new(),
            domains: BTreeMap::new(),
            tallies: Vec::new(),
            known: BTreeMap::new(),
        };
        for ask in &view.nominated {
            round.nominate(ask, ask.nominated().unwrap_or_default());
        }
        round
    }

    /// The place of a node.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.nodes.binary_search_by(|view| view.name().cmp(name)).ok()
    }

    /// Promises a node to a pod.
    pub(crate) fn nominate(&mut self, ask: &Arc<Ask>, node: &str) {
        if let Some(at) = self.find(node) {
            self.nominated.entry(at).or_default().push(Arc::clone(ask));
        }
    }

    /// Takes such a promise back.
    pub(crate) fn withdraw(&mut self, ask: &Ask) {
        for promised in self.nominated.values_mut() {
            promised.retain(|known| known.uid() != ask.uid());
        }
    }

    /// A pod comes to a node.
    pub(crate) fn take(&mut self, at: usize, ask: &Arc<Ask>) {
        Arc::make_mut(&mut self.nodes[at]).used.take(ask);
        self.recount(at, 1, ask);
    }

    /// A pod leaves a node.
    pub(crate) fn give(&mut self, at: usize, ask: &Arc<Ask>) {
        Arc::make_mut(&mut self.nodes[at]).used.give(ask);
        self.recount(at, -1, ask);
    }

    fn recount(&mut self, at: usize, pods: i64, ask: &Ask) {
        for tally in &mut self.tallies {
            tally.change(at, pods, (ask.id, &ask.class), &self.view.namespaces);
        }
    }

    /// A tally by its number.
    pub(crate) fn tally(&self, id: TallyId) -> &Tally {
        &self.tallies[id]
    }

    /// The tally of this name; counted when it is first asked for.
    pub(crate) fn counted(
        &mut self,
        name: String,
        key: &str,
        weighs: impl FnOnce() -> Weighs,
        eligible: impl FnOnce(&[Arc<NodeView>]) -> Option<Vec<bool>>,
    ) -> TallyId {
        if let Some(id) = self.known.get(&name) {
            return *id;
        }
        let domains = self.domains(key);
        let eligible = eligible(&self.nodes);
        let (classes, namespaces) = (&self.view.classes, &self.view.namespaces);
        let tally = Tally::count(weighs(), domains, eligible, &self.nodes, classes, namespaces);
        self.tallies.push(tally);
        self.known.insert(name, self.tallies.len() - 1);
        self.tallies.len() - 1
    }

    fn domains(&mut self, key: &str) -> Arc<Domains> {
        if let Some(known) = self.domains.get(key) {
            return Arc::clone(known);
        }
        let found = Arc::new(Domains::new(key, &self.nodes));
        self.domains.insert(key.to_owned(), Arc::clone(&found));
        found
    }

    /// What a pod's terms and constraints need.
    pub(crate) fn ready(&mut self, ask: &Ask) -> Ready {
        Ready { neighbours: Neighbours::of(self, ask), spreading: Spreading::of(self, ask) }
    }

    /// Asks one node, with the pods that were promised it and come first, and without them: both must hold.
    pub(crate) fn refusal(&mut self, ask: &Ask, ready: &mut Ready, at: usize) -> Option<Refusal> {
        let first: Vec<Arc<Ask>> = match self.nominated.get(&at) {
            None => Vec::new(),
            Some(promised) => {
                let first = promised.iter();
                first
                    .filter(|other| other.priority >= ask.priority && other.uid() != ask.uid())
                    .cloned()
                    .collect()
            }
        };
        if !first.is_empty() {
            first.iter().for_each(|other| self.take(at, other));
            ready.spreading.refresh(self);
            let refused = self.refusal_now(ask, ready, at);
            first.iter().for_each(|other| self.give(at, other));
            ready.spreading.refresh(self);
            if refused.is_some() {
                return refused;
            }
        }
        self.refusal_now(ask, ready, at)
    }

    /// Asks one node as it is; the order is that of Kubernetes' plugins.
    pub(crate) fn refusal_now(&self, ask: &Ask, ready: &Ready, at: usize) -> Option<Refusal> {
        let view = &self.nodes[at];
        unfit(ask, &view.facts)
            .or_else(|| crowded(ask, view))
            .or_else(|| volumes::refusal(self, ask, at))
            .or_else(|| ready.spreading.refusal(self, at))
            .or_else(|| ready.neighbours.refusal(self, at))
    }
}
