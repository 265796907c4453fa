//! What pods are in the eyes of other pods: those with the same labels and the same terms are one class, and classes
//! are counted where pods would be too many.
//!
//! Invariant: two pods with the same text are the same to every term, every constraint and every owner.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use imbl::Vector;
use k8s_openapi::api::core::v1::{Pod, WeightedPodAffinityTerm};
use serde_json::json;

use crate::ask::{ClassId, Term};

/// A class of pods.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Class {
    /// Equal texts mean equal classes.
    text: String,
    /// Their namespace.
    pub(crate) namespace: String,
    /// Their labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Whether they are on their way out.
    pub(crate) leaving: bool,
    /// The uid of who made them; empty: nobody.
    pub(crate) owner: String,
    /// Beside whom they must be.
    pub(crate) near: Vec<Arc<Term>>,
    /// Beside whom they must not be.
    pub(crate) far: Vec<Arc<Term>>,
    /// Beside whom they would rather be, and by how much; below zero: rather not.
    pub(crate) liked: Vec<(i64, Arc<Term>)>,
}

impl Class {
    /// Of a pod.
    pub(crate) fn of(pod: &Pod) -> Class {
        let meta = &pod.metadata;
        let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
        let near = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let far = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let owner = meta.owner_references.iter().flatten().next();
        let owner = owner.map(|owner| owner.uid.clone()).unwrap_or_default();
        let leaving = meta.deletion_timestamp.is_some();
        let required = |terms: Option<&Vec<_>>| -> Vec<Arc<Term>> {
            terms.into_iter().flatten().map(|term| Arc::new(Term::read(term, pod))).collect()
        };
        let preferred = |terms: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| -> Vec<(i64, Arc<Term>)> {
            let read = |liked: &WeightedPodAffinityTerm| {
                (sign * i64::from(liked.weight), Arc::new(Term::read(&liked.pod_affinity_term, pod)))
            };
            terms.into_iter().flatten().map(read).collect()
        };
        let mut liked = preferred(
            near.and_then(|near| near.preferred_during_scheduling_ignored_during_execution.as_ref()),
            1,
        );
        liked.extend(preferred(
            far.and_then(|far| far.preferred_during_scheduling_ignored_during_execution.as_ref()),
            -1,
        ));
        Class {
            text: json!([meta.namespace, meta.labels, leaving, owner, near, far]).to_string(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            leaving,
            owner,
            near: required(
                near.and_then(|near| near.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            far: required(
                far.and_then(|far| far.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            liked,
        }
    }
}

/// The classes there are, each with a number.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    numbers: HashMap<String, ClassId>,
    members: Vec<usize>,
    free: Vec<ClassId>,
    /// By number; what is at a number that nobody has means nothing.
    pub(crate) all: Vector<Arc<Class>>,
}

impl Classes {
    /// One more pod of this class.
    pub(crate) fn join(&mut self, class: Class) -> (ClassId, Arc<Class>) {
        if let Some(id) = self.numbers.get(&class.text) {
            self.members[*id] += 1;
            return (*id, Arc::clone(&self.all[*id]));
        }
        let (text, class) = (class.text.clone(), Arc::new(class));
        let id = match self.free.pop() {
            Some(id) => {
                self.all.set(id, Arc::clone(&class));
                self.members[id] = 1;
                id
            }
            None => {
                self.all.push_back(Arc::clone(&class));
                self.members.push(1);
                self.all.len() - 1
            }
        };
        self.numbers.insert(text, id);
        (id, class)
    }

    /// One pod less; the number of the last one is given to another class.
    pub(crate) fn leave(&mut self, id: ClassId) {
        self.members[id] -= 1;
        if self.members[id] == 0 {
            self.numbers.remove(&self.all[id].text);
            self.all.set(id, Arc::new(Class::default()));
            self.free.push(id);
        }
    }
}
