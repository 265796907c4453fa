//! Which change could help which pod that waits.
//!
//! Invariant: a hint may wake a pod in vain, but never lets one sleep that could be placed.

use client::Key;

use crate::ask::{Ask, ClassId};
use crate::class::Class;
use crate::filter::{Cause, crowded, unfit};
use crate::ledger::Books;
use crate::plan::Causes;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// A node came, changed or went.
    Node(String),
    /// A pod of this class left a node, or takes less of it.
    Left { node: String, class: ClassId },
    /// A pod of this class is on a node now.
    Came { class: ClassId },
    /// Claims, volumes or classes changed.
    Storage,
    /// Labels of a namespace changed.
    Namespaces,
    /// The pod itself changed.
    Itself(Key),
}

impl Event {
    /// Whether it is about this pod.
    pub(crate) fn is_of(&self, key: &Key) -> bool {
        matches!(self, Event::Itself(known) if known == key)
    }
}

/// Whether an event could help a pod that waits for these causes.
pub(crate) fn helps(books: &Books, ask: &Ask, causes: &Causes, event: &Event) -> bool {
    let has = |cause| causes.contains(&cause);
    match event {
        Event::Node(name) => {
            let Some(at) = books.find(name) else { return has(Cause::Spread) };
            let view = &books.nodes[at];
            let fits = || {
                let wanted = &ask.demand.amounts;
                let large_enough =
                    wanted.named().all(|(name, amount)| amount <= view.facts.allocatable.get(name));
                large_enough && unfit(ask, &view.facts).is_none()
            };
            // Which domains there are decides about spread, whatever this node is.
            !causes.is_empty() && (has(Cause::Spread) || has(Cause::Near) || fits())
        }
        Event::Left { node, class } => {
            let room = || {
                books.find(node).is_some_and(|at| {
                    let view = &books.nodes[at];
                    unfit(ask, &view.facts).is_none() && crowded(ask, view).is_none()
                })
            };
            let near = || books.classes.all.get(*class).is_some_and(|class| concerns(ask, class));
            (has(Cause::Room) && (room() || preempting(ask)))
                || has(Cause::Volumes)
                || ((has(Cause::Far) || has(Cause::Spread) || has(Cause::Near)) && near())
        }
        Event::Came { class } => {
            let concerned = || books.classes.all.get(*class).is_some_and(|class| concerns(ask, class));
            (has(Cause::Near) || has(Cause::Spread)) && concerned()
        }
        Event::Storage => has(Cause::Volumes),
        Event::Namespaces => has(Cause::Near) || has(Cause::Far),
        Event::Itself(key) => *key == *ask.key,
    }
}

/// Whether others were told to leave for this pod: then each that leaves is news.
fn preempting(ask: &Ask) -> bool {
    ask.nominated().is_some()
}

/// Whether pods of a class could be meant by a pod's terms and constraints, or mean it. Which namespaces a selector
/// takes in is not asked: that is for the round to find out.
fn concerns(ask: &Ask, class: &Class) -> bool {
    let own = &ask.class;
    let terms = own.near.iter().chain(&own.far);
    terms.into_iter().any(|term| term.could_match(class))
        || class.far.iter().any(|term| term.could_match(own))
        || ask
            .hard
            .iter()
            .any(|constraint| class.namespace == own.namespace && constraint.labels.matches(&class.labels))
}
