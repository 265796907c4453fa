//! HorizontalPodAutoscaler: as many replicas as the measured load asks for, within what its behaviour allows.
//!
//! Invariant: what is not measured never moves the count further than what is: missing pods are taken to use nothing
//! when it goes up and everything when it goes down, as documented.

mod behavior;
mod measure;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::select::Labels;
use client::{Cache, Key};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricSpec,
    MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use reconcile::{Plan, Reconciler};
use serde_json::{Value, json};

pub(crate) use behavior::Past;
pub(crate) use measure::Usage;

use crate::Error;
use crate::pods;
use crate::step::{self, Door, Note, Part, Place, Step};

const COMPONENT: &str = "horizontal-pod-autoscaler";
/// How often the load is looked at, as by default.
const PERIOD: Duration = Duration::from_secs(15);

/// What is there.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) scaler: Option<Arc<HorizontalPodAutoscaler>>,
    /// The target's `/scale`, or why it could not be read.
    pub(crate) scale: Option<Result<Value, String>>,
    /// The pods that the target's selector means.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// What their containers use, or why that is not known.
    pub(crate) usage: Result<BTreeMap<String, Usage>, String>,
    /// What was recommended and done lately.
    pub(crate) past: Past,
}

impl Default for View {
    fn default() -> View {
        View {
            scaler: None,
            scale: None,
            pods: Vec::new(),
            usage: Ok(BTreeMap::new()),
            past: Past::default(),
        }
    }
}

/// One effect, and what is to be remembered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Act {
    /// On the cluster.
    Cluster(Box<Step>),
    /// A recommendation before it was held back.
    Recommended(Timestamp, i32),
    /// A change of the count by so many.
    Scaled(Timestamp, i32),
}

/// Keeps counts as the load asks.
pub(crate) struct Scalers {
    client: Door,
    scalers: Cache<HorizontalPodAutoscaler>,
    pods: Cache<Pod>,
    past: Mutex<BTreeMap<Key, Past>>,
}

impl Scalers {
    /// Over these caches.
    pub(crate) fn new(client: Door, scalers: Cache<HorizontalPodAutoscaler>, pods: Cache<Pod>) -> Scalers {
        Scalers { client, scalers, pods, past: Mutex::default() }
    }

    fn past(&self) -> MutexGuard<'_, BTreeMap<Key, Past>> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn get(&self, path: &str) -> Result<Value, String> {
        let request = Request::get(path).body(Vec::new()).map_err(|error| error.to_string())?;
        self.client.request::<Value>(request).await.map_err(|error| reconcile::chain(&error))
    }

    async fn usage(&self, namespace: &str, selector: &str) -> Result<BTreeMap<String, Usage>, String> {
        let encoded: String = selector.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path =
            format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={encoded}");
        let list = self.get(&path).await?;
        let items = list["items"].as_array().into_iter().flatten();
        let read = |item: &Value| Some((item["metadata"]["name"].as_str()?.to_owned(), Usage::read(item)));
        Ok(items.filter_map(read).collect())
    }
}

impl Reconciler for Scalers {
    type Key = Key;
    type View = View;
    type Step = Act;
    type Error = Error;
    const NAME: &'static str = "horizontalpodautoscaler";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(scaler) = self.scalers.get(key) else {
            self.past().remove(key);
            return Ok(View::default());
        };
        let scale = self.get(&scale_path(&scaler)).await;
        let selector = scale.as_ref().ok().and_then(|scale| scale["status"]["selector"].as_str());
        let selector = selector.unwrap_or_default().to_owned();
        let (mut pods, mut usage) = (Vec::new(), Ok(BTreeMap::new()));
        if let Some(labels) = Labels::parse(&selector).ok().filter(|_| !selector.is_empty()) {
            let all = self.pods.snapshot();
            let beside = all.range(Key::new(key.namespace.clone(), "")..);
            let beside = beside.take_while(|(known, _)| known.namespace == key.namespace);
            let none = BTreeMap::new();
            let meant =
                beside.filter(|(_, pod)| labels.matches(pod.metadata.labels.as_ref().unwrap_or(&none)));
            pods = meant.map(|(_, pod)| Arc::clone(pod)).collect();
            usage = self.usage(&key.namespace, &selector).await;
        }
        let past = self.past().get(key).cloned().unwrap_or_default();
        Ok(View { scaler: Some(scaler), scale: Some(scale), pods, usage, past })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Act> {
        plan(view, now)
    }

    async fn act(&self, key: &Key, act: Act) -> Result<(), Error> {
        match act {
            Act::Cluster(step) => step::act(&self.client, *step, &|_| ()).await,
            Act::Recommended(at, count) => {
                self.past().entry(key.clone()).or_default().recommended(at, count);
                Ok(())
            }
            Act::Scaled(at, by) => {
                self.past().entry(key.clone()).or_default().scaled(at, by);
                Ok(())
            }
        }
    }
}

fn scale_path(scaler: &HorizontalPodAutoscaler) -> String {
    format!("{}/scale", scale_place(scaler).path())
}

/// What the scaler concludes in one round.
struct Verdict {
    conditions: BTreeMap<&'static str, (bool, &'static str, String)>,
    metrics: Vec<MetricStatus>,
    current: i32,
    desired: i32,
    acts: Vec<Act>,
}

/// Measures, decides and scales. Looks again after the period, as long as there is something to scale.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Act> {
    let (Some(scaler), Some(scale)) = (&view.scaler, &view.scale) else { return Plan::empty() };
    let note = || Note::about(&**scaler, now);
    let known = scaler.status.clone().unwrap_or_default();
    let mut verdict = Verdict {
        conditions: BTreeMap::new(),
        metrics: Vec::new(),
        current: known.current_replicas.unwrap_or(0),
        desired: known.desired_replicas,
        acts: Vec::new(),
    };
    match scale {
        Err(why) => {
            let message = format!("the HPA controller was unable to get the target's current scale: {why}");
            verdict.conditions.insert("AbleToScale", (false, "FailedGetScale", message));
            tell(&mut verdict, view, note().warns(COMPONENT, "FailedGetScale", why.clone()));
        }
        Ok(scale) => decide(view, scaler, scale, now, &mut verdict),
    }
    finish(scaler, verdict, now)
}

fn decide(
    view: &View,
    scaler: &HorizontalPodAutoscaler,
    scale: &Value,
    now: Timestamp,
    verdict: &mut Verdict,
) {
    let spec = &scaler.spec;
    let able = "the HPA controller was able to get the target's current scale".to_owned();
    verdict.conditions.insert("AbleToScale", (true, "SucceededGetScale", able));
    let current = scale["spec"]["replicas"].as_i64().and_then(|count| i32::try_from(count).ok()).unwrap_or(0);
    let (least, most) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
    verdict.current =
        scale["status"]["replicas"].as_i64().and_then(|count| i32::try_from(count).ok()).unwrap_or(current);
    verdict.desired = current;
    if current == 0 && least != 0 {
        let message = "scaling is disabled since the replica count of the target is zero".to_owned();
        verdict.conditions.insert("ScalingActive", (false, "ScalingDisabled", message));
        return;
    }
    let (wanted, reason) = if current > most {
        (most, "Current number of replicas above Spec.MaxReplicas".to_owned())
    } else if current < least {
        (least, "Current number of replicas below Spec.MinReplicas".to_owned())
    } else {
        let none = Vec::new();
        let metrics = spec.metrics.as_ref().unwrap_or(&none);
        let Some((proposed, reason)) = propose(view, metrics, current, verdict, (scaler, now)) else {
            return;
        };
        let mut past = view.past.clone();
        if past.recommendations.is_empty() {
            // Nothing is remembered after a start: the count that is there was recommended by somebody.
            past.recommended(now, current);
            verdict.acts.push(Act::Recommended(now, current));
        }
        verdict.acts.push(Act::Recommended(now, proposed));
        let limited = behavior::limit(spec, &past, (current, proposed), now);
        verdict.conditions.insert("ScalingLimited", limited.condition);
        if let Some((reason, message)) = limited.stabilized {
            verdict.conditions.insert("AbleToScale", (true, reason, message));
        }
        (limited.count, reason)
    };
    verdict.desired = wanted;
    if wanted == current {
        return;
    }
    let path = scale_place(scaler);
    let patch = json!({"spec": {"replicas": wanted}});
    let message = format!("New size: {wanted}; reason: {reason}");
    let told = Note::about(scaler, now).says(COMPONENT, "SuccessfulRescale", message);
    let told = told.or_else("FailedRescale", "New size could not be set");
    verdict.acts.push(Act::Cluster(Box::new(Step::Patch {
        at: path,
        part: Part::Scale,
        patch,
        note: Some(told),
    })));
    verdict.acts.push(Act::Scaled(now, wanted - current));
    let message = format!("the HPA controller was able to update the target scale to {wanted}");
    verdict.conditions.insert("AbleToScale", (true, "SucceededRescale", message));
}

fn scale_place(scaler: &HorizontalPodAutoscaler) -> Place {
    let target = scaler.spec.scale_target_ref.clone();
    let version = target.api_version.unwrap_or_else(|| "v1".to_owned());
    let plural = api::kinds::by_kind(&version, &target.kind)
        .map_or_else(|| format!("{}s", target.kind.to_lowercase()), |kind| kind.plural.clone());
    let namespace = scaler.metadata.namespace.clone();
    Place { api_version: version, kind: target.kind, plural, namespace, name: target.name }
}

/// The largest count that one of the metrics asks for. Where one cannot be read, the others do not scale down.
fn propose(
    view: &View,
    metrics: &[MetricSpec],
    current: i32,
    verdict: &mut Verdict,
    (scaler, now): (&HorizontalPodAutoscaler, Timestamp),
) -> Option<(i32, String)> {
    let mut best: Option<(i32, String)> = None;
    let mut failed: Option<(&'static str, String)> = None;
    let default = [measure::default_metric()];
    let metrics = if metrics.is_empty() { &default[..] } else { metrics };
    for metric in metrics {
        match measure::replicas(view, metric, current, now) {
            Ok(found) => {
                verdict.metrics.push(found.status);
                if best.as_ref().is_none_or(|(count, _)| found.count > *count) {
                    best = Some((found.count, format!("{} above target", found.name)));
                }
            }
            Err(why) => failed = Some(failed.unwrap_or(why)),
        }
    }
    if let Some((reason, why)) = failed
        && best.as_ref().is_none_or(|(count, _)| *count < current)
    {
        let message = format!("the HPA was unable to compute the replica count: {why}");
        verdict.conditions.insert("ScalingActive", (false, reason, message.clone()));
        tell(verdict, view, Note::about(scaler, now).warns(COMPONENT, reason, why));
        return None;
    }
    let (count, above) = best?;
    let message = format!(
        "the HPA was able to successfully calculate a replica count from {}",
        above.trim_end_matches(" above target")
    );
    verdict.conditions.insert("ScalingActive", (true, "ValidMetricFound", message));
    let reason = if count < current { "All metrics below target".to_owned() } else { above };
    Some((count, reason))
}

/// Tells what is wrong when the status does not say so yet.
fn tell(verdict: &mut Verdict, view: &View, note: Note) {
    let known = view.scaler.as_ref().and_then(|scaler| scaler.status.as_ref());
    let mut known = known.into_iter().flat_map(|status| status.conditions.iter().flatten());
    if !known.any(|known| known.status == "False" && known.reason.as_deref() == Some(note.reason)) {
        verdict.acts.push(Act::Cluster(Box::new(Step::Record(note))));
    }
}

fn finish(scaler: &HorizontalPodAutoscaler, verdict: Verdict, now: Timestamp) -> Plan<Act> {
    let known = scaler.status.clone().unwrap_or_default();
    let scaled = verdict.acts.iter().any(|act| matches!(act, Act::Scaled(..)));
    let seconds = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let status = HorizontalPodAutoscalerStatus {
        conditions: Some(conditions(&known, verdict.conditions, &seconds)),
        current_metrics: (!verdict.metrics.is_empty())
            .then_some(verdict.metrics)
            .or(known.current_metrics.clone()),
        current_replicas: Some(verdict.current),
        desired_replicas: verdict.desired,
        last_scale_time: if scaled { Some(seconds) } else { known.last_scale_time.clone() },
        observed_generation: scaler.metadata.generation,
    };
    let mut acts = verdict.acts;
    if status != known {
        let patch = json!({"metadata": {"uid": pods::uid(&scaler.metadata)}, "status": status});
        let at = Place::of(scaler);
        acts.push(Act::Cluster(Box::new(Step::Patch { at, part: Part::Status, patch, note: None })));
    }
    Plan::in_turn(acts).again_at(now + PERIOD)
}

fn conditions(
    known: &HorizontalPodAutoscalerStatus,
    mut told: BTreeMap<&'static str, (bool, &'static str, String)>,
    now: &Time,
) -> Vec<HorizontalPodAutoscalerCondition> {
    let mut all: Vec<HorizontalPodAutoscalerCondition> = known.conditions.clone().unwrap_or_default();
    let word = |holds: bool| if holds { "True" } else { "False" };
    for one in &mut all {
        let Some((holds, reason, message)) = told.remove(one.type_.as_str()) else { continue };
        if one.status != word(holds) {
            one.last_transition_time = Some(now.clone());
        }
        one.status = word(holds).to_owned();
        one.reason = Some(reason.to_owned());
        one.message = Some(message);
    }
    all.extend(told.into_iter().map(|(kind, (holds, reason, message))| HorizontalPodAutoscalerCondition {
        type_: kind.to_owned(),
        status: word(holds).to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: Some(now.clone()),
    }));
    all
}
