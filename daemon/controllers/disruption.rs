//! PodDisruptionBudget: counts how many of the pods it means are healthy, and so how many may be evicted.
//!
//! Invariant: what is not known counts against an eviction: a pod whose eviction was granted counts as gone until it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Cache, Key};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use reconcile::{Plan, Reconciler};

use crate::Error;
use crate::pods::{self, controller, selected};
use crate::step::{self, Door, Step};

/// How long a granted eviction counts although the pod does not go, as documented.
const GRANTED: Duration = Duration::from_secs(120);

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) budget: Option<Arc<PodDisruptionBudget>>,
    /// The pods it means.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// How many pods those who made them want, by their uids.
    pub(crate) scales: BTreeMap<String, i32>,
}

/// What the controller looks at.
#[derive(Clone)]
pub(crate) struct Seen {
    /// Budgets.
    pub(crate) budgets: Cache<PodDisruptionBudget>,
    /// Pods.
    pub(crate) pods: Cache<Pod>,
    /// Who makes pods.
    pub(crate) sets: Cache<ReplicaSet>,
    /// Who makes ReplicaSets.
    pub(crate) deployments: Cache<Deployment>,
    /// Who makes pods.
    pub(crate) stateful: Cache<StatefulSet>,
    /// Who makes pods.
    pub(crate) controllers: Cache<ReplicationController>,
}

/// Keeps the status of budgets.
pub(crate) struct Disruptions {
    client: Door,
    seen: Seen,
}

impl Seen {
    /// Returns when every cache has its first list.
    pub(crate) async fn synced(self) {
        self.budgets.synced().await;
        self.pods.synced().await;
        self.sets.synced().await;
        self.deployments.synced().await;
        self.stateful.synced().await;
        self.controllers.synced().await;
    }

    /// Who decides how many pods like this one there are: its uid, and how many it wants.
    fn scale(&self, pod: &Pod) -> Option<(String, i32)> {
        let owner = controller(&pod.metadata)?;
        let key = |name: &str| Key::new(pod.metadata.namespace.clone().unwrap_or_default(), name);
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let set =
                    self.sets.get(&key(&owner.name)).filter(|set| pods::uid(&set.metadata) == owner.uid)?;
                if let Some(above) = controller(&set.metadata).filter(|above| above.kind == "Deployment") {
                    let deployment = self.deployments.get(&key(&above.name))?;
                    return Some((above.uid.clone(), deployment.spec.as_ref()?.replicas.unwrap_or(1)));
                }
                Some((owner.uid.clone(), set.spec.as_ref()?.replicas.unwrap_or(1)))
            }
            "StatefulSet" => {
                let set = self.stateful.get(&key(&owner.name))?;
                Some((owner.uid.clone(), set.spec.as_ref()?.replicas.unwrap_or(1)))
            }
            "ReplicationController" => {
                let set = self.controllers.get(&key(&owner.name))?;
                Some((owner.uid.clone(), set.spec.as_ref()?.replicas.unwrap_or(1)))
            }
            _ => None,
        }
    }
}

impl Disruptions {
    /// Over these caches.
    pub(crate) fn new(client: Door, seen: Seen) -> Disruptions {
        Disruptions { client, seen }
    }
}

impl Reconciler for Disruptions {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "disruption";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(budget) = self.seen.budgets.get(key) else { return Ok(View::default()) };
        let all = self.seen.pods.snapshot();
        let beside = all.range(Key::new(key.namespace.clone(), "")..);
        let beside = beside.take_while(|(known, _)| known.namespace == key.namespace);
        let pods: Vec<Arc<Pod>> =
            beside.filter(|(_, pod)| means(&budget, &pod.metadata)).map(|(_, pod)| Arc::clone(pod)).collect();
        let scales = pods.iter().filter_map(|pod| self.seen.scale(pod)).collect();
        Ok(View { budget: Some(budget), pods, scales })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &Key, step: Step) -> Result<(), Error> {
        step::act(&self.client, step, &|_| ()).await
    }
}

/// Whether a budget means a pod with this metadata.
pub(crate) fn means(budget: &PodDisruptionBudget, meta: &ObjectMeta) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    budget.metadata.namespace == meta.namespace && selector.is_some_and(|selector| selected(selector, meta))
}

/// Writes what is counted, when it is not what the status says.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let Some(budget) = &view.budget else { return Plan::empty() };
    let known = budget.status.as_ref();
    let granted = known.and_then(|status| status.disrupted_pods.clone()).unwrap_or_default();
    let (granted, again) = still_going(view, granted, now);
    let healthy = view.pods.iter().filter(|pod| {
        !pods::terminating(pod) && !granted.contains_key(pods::name(&pod.metadata)) && pods::ready(pod)
    });
    let healthy = count(healthy.count());
    let (expected, desired) = expected(budget, view);
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    let status = PodDisruptionBudgetStatus {
        conditions: Some(conditions(budget, allowed, now)),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        disrupted_pods: (!granted.is_empty()).then_some(granted),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: budget.metadata.generation,
    };
    let mut plan = if known == Some(&status) {
        Plan::empty()
    } else {
        let mut told = PodDisruptionBudget::clone(budget);
        told.status = Some(status);
        Plan::in_turn(vec![Step::status(&told)])
    };
    if let Some(again) = again {
        plan.look_again(again);
    }
    plan
}

/// The evictions that were granted and are under way, and when the next of them is given up.
fn still_going(
    view: &View,
    mut granted: BTreeMap<String, Time>,
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Timestamp>) {
    let end = |at: &Time| at.0 + GRANTED;
    granted.retain(|name, at| {
        let there = view.pods.iter().find(|pod| pods::name(&pod.metadata) == name);
        there.is_some_and(|pod| !pods::terminating(pod)) && end(at) > now
    });
    let again = granted.values().map(end).min();
    (granted, again)
}

/// How many pods there should be, and how many of them healthy.
fn expected(budget: &PodDisruptionBudget, view: &View) -> (i32, i32) {
    let Some(spec) = &budget.spec else { return (0, 0) };
    let scale: i32 = view.scales.values().sum();
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (scale, (scale - scaled(most, scale)).max(0)),
        (None, Some(IntOrString::Int(least))) => (count(view.pods.len()), *least),
        (None, Some(least)) => (scale, scaled(least, scale)),
        (None, None) => (0, 0),
    }
}

/// A number, or a share of a number rounded up.
fn scaled(value: &IntOrString, of: i32) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            i32::try_from((percent * i64::from(of) + 99).div_euclid(100)).unwrap_or(i32::MAX)
        }
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn conditions(budget: &PodDisruptionBudget, allowed: i32, now: Timestamp) -> Vec<Condition> {
    let known = budget.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let (others, known): (Vec<_>, Vec<_>) = known.cloned().partition(|one| one.type_ != "DisruptionAllowed");
    let (status, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let since =
        known.into_iter().find(|known| known.status == status).map(|known| known.last_transition_time);
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let told = Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        last_transition_time: since.unwrap_or(now),
        observed_generation: budget.metadata.generation,
    };
    others.into_iter().chain([told]).collect()
}
