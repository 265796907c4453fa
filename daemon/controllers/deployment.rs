//! Deployment: moves pods from one template to the next through ReplicaSets, and says how far it is.
//!
//! Invariant: a round never plans fewer available pods than promised (`replicas` minus `maxUnavailable`): a set counts
//! as available what it reports, but no more than what was already asked of it.
//! Invariant: a set that was made smaller gives room to the new one only when its pods are on their way out, so there are
//! never more pods than `replicas` plus `maxSurge`. (Kubernetes counts what was asked for and can exceed it shortly.)
//! Invariant: a ReplicaSet's name follows from the template, so a round that does not see yet what the last one did
//! makes no second set.

mod progress;
mod rollout;
mod sets;

use std::sync::Arc;

use client::{Cache, Key};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use reconcile::{Plan, Reconciler};

use crate::Error;
use crate::claims::claims;
use crate::owned::Owned;
use crate::pods::{self, controller, uid};
use crate::step::{self, Door, Note, Step};

pub(crate) use sets::Sets;

const COMPONENT: &str = "deployment-controller";
/// The number of a template in the history of its Deployment.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// The numbers a template had before it was rolled back to.
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// What the Deployment wanted when the set was last scaled.
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// What the Deployment allowed when the set was last scaled.
const MOST: &str = "deployment.kubernetes.io/max-replicas";

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) deployment: Option<Arc<Deployment>>,
    /// The sets that the Deployment controls, and those of its namespace that nobody controls.
    pub(crate) sets: Vec<Arc<ReplicaSet>>,
    /// The pods of those sets.
    pub(crate) pods: Vec<Arc<Pod>>,
}

/// Keeps Deployments.
pub(crate) struct Deployments {
    client: Door,
    deployments: Cache<Deployment>,
    sets: Owned<ReplicaSet>,
    pods: Owned<Pod>,
}

impl Deployments {
    /// Over these caches.
    pub(crate) fn new(
        client: Door,
        deployments: Cache<Deployment>,
        sets: Owned<ReplicaSet>,
        pods: Owned<Pod>,
    ) -> Deployments {
        Deployments { client, deployments, sets, pods }
    }
}

impl Reconciler for Deployments {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "deployment";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(deployment) = self.deployments.get(key) else { return Ok(View::default()) };
        let sets = self.sets.by(&key.namespace, uid(&deployment.metadata));
        // Only Recreate asks whether pods are still there.
        let pods = if recreates(&deployment) {
            sets.iter().flat_map(|set| self.pods.controlled(&key.namespace, uid(&set.metadata))).collect()
        } else {
            Vec::new()
        };
        Ok(View { deployment: Some(deployment), sets, pods })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &Key, step: Step) -> Result<(), Error> {
        step::act(&self.client, step, &|_| ()).await
    }
}

/// One round: adopt, then either scale or roll, then clean up and report.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let Some(deployment) = &view.deployment else { return Plan::empty() };
    let Some(spec) = &deployment.spec else { return Plan::empty() };
    if pods::selects_all(&spec.selector) {
        let message = "This deployment is selecting all pods. A non-empty selector is required.".to_owned();
        let note = Note::about(&**deployment, now).warns(COMPONENT, "SelectingAll", message);
        return Plan::in_turn(vec![Step::Record(note)]);
    }
    let claims = claims(&**deployment, &spec.selector, &view.sets, |_| true).steps;
    if !claims.is_empty() {
        // What was adopted or let go comes back as a change of the set, and with it the next round.
        return Plan::in_turn(claims);
    }
    let sets = Sets::sort(deployment, &view.sets);
    let (mut steps, collided) = if deployment.metadata.deletion_timestamp.is_some() {
        (Vec::new(), false)
    } else {
        work(view, deployment, &sets, now)
    };
    let report = progress::report(deployment, &sets, collided, now);
    // A step that changes the Deployment itself makes the status that was read an old one; the next round reports.
    let changes_itself =
        steps.iter().any(|step| matches!(step, Step::Patch { at, .. } if at.kind == "Deployment"));
    if !changes_itself && deployment.status.as_ref() != Some(&report.status) {
        let mut reported = Deployment::clone(deployment);
        reported.status = Some(report.status);
        steps.push(Step::status(&reported));
    }
    report.again.into_iter().fold(Plan::in_turn(steps), Plan::again_at)
}

/// What changes sets, and whether the name of the new set is taken by a set of another template.
fn work(view: &View, deployment: &Deployment, sets: &Sets, now: Timestamp) -> (Vec<Step>, bool) {
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    let annotations = rollout::annotations(deployment, sets, paused);
    if !annotations.is_empty() {
        // Scaling the same set in this round would meet the version these make; it is for the next round.
        return (annotations, false);
    }
    if paused {
        let mut steps = rollout::scale(deployment, sets, now);
        steps.extend(rollout::cleanup(deployment, sets));
        return (steps, false);
    }
    if sets.scaling() && !recreates(deployment) {
        return (rollout::scale(deployment, sets, now), false);
    }
    if recreates(deployment) {
        let emptied = rollout::empty_old(deployment, sets, now);
        if !emptied.is_empty() || old_pods_run(view, sets) {
            return (emptied, false);
        }
    }
    let (mut steps, collided) = rollout::grow_new(deployment, sets, now);
    // As Kubernetes: one direction per round, so that each decision sees what the last one did.
    if steps.is_empty() {
        steps = rollout::shrink_old(deployment, sets, now);
    }
    if progress::complete(deployment, sets) {
        steps.extend(rollout::cleanup(deployment, sets));
    }
    (steps, collided)
}

/// Whether old pods go before new ones come.
fn recreates(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// Whether a pod of an older template still exists that has not ended: Recreate waits for the last of them.
fn old_pods_run(view: &View, sets: &Sets) -> bool {
    let new = sets.new.as_ref().map(|set| uid(&set.metadata));
    view.pods.iter().any(|pod| {
        let owner = controller(&pod.metadata).map(|owner| owner.uid.as_str());
        owner != new && owner.is_some() && !pods::finished(pod)
    })
}

/// `replicas` of the Deployment.
fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// How many pods there may be beyond the wanted ones, and how many of those may be missing.
fn fences(deployment: &Deployment) -> (i32, i32) {
    if recreates(deployment) {
        return (0, 0);
    }
    let wanted = wanted(deployment);
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.clone()).unwrap_or_default();
    let surge = resolved(rolling.max_surge.as_ref(), wanted, Rounding::Up);
    let missing = resolved(rolling.max_unavailable.as_ref(), wanted, Rounding::Down);
    // With both at zero nothing could ever move; validation refuses that, but percents can round to it.
    if surge == 0 && missing == 0 { (0, 1) } else { (surge, missing.min(wanted)) }
}

#[derive(Clone, Copy, PartialEq)]
enum Rounding {
    Up,
    Down,
}

/// A number or a percentage of `of`; 25 % when nothing is said.
fn resolved(value: Option<&IntOrString>, of: i32, rounding: Rounding) -> i32 {
    let percent = match value {
        Some(IntOrString::Int(number)) => return (*number).max(0),
        Some(IntOrString::String(text)) => text.trim_end_matches('%').parse::<i64>().unwrap_or(0),
        None => 25,
    };
    let hundredths = percent * i64::from(of);
    let whole = if rounding == Rounding::Up { (hundredths + 99) / 100 } else { hundredths / 100 };
    i32::try_from(whole.max(0)).unwrap_or(i32::MAX)
}
