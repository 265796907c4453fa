//! From what pods use to how many there should be.
//!
//! Invariant: a pod that has just started, or is not ready, does not make the others look idle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, HPAScalingRules, MetricSpec, MetricStatus, MetricTarget,
    MetricValueStatus, ResourceMetricSource, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use serde_json::Value;

use super::View;
use crate::pods;

/// How far the load may be from the target without a change, as by default: a tenth.
const TOLERANCE: f64 = 0.1;
/// For how long after its start the cpu of a pod says nothing, as by default.
const CPU_INITIALIZATION: Duration = Duration::from_secs(300);
/// Within which a pod that was never ready is taken to be starting, as by default.
const INITIAL_READINESS: Duration = Duration::from_secs(30);

/// What the containers of a pod use, in thousandths by container and resource.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Usage {
    containers: BTreeMap<String, BTreeMap<String, i64>>,
    /// The end of the time that was measured, and how long it is.
    at: Option<(Timestamp, Duration)>,
}

/// What one metric asks for.
pub(crate) struct Found {
    pub(crate) count: i32,
    pub(crate) name: String,
    pub(crate) status: MetricStatus,
}

type Why = (&'static str, String);

impl Usage {
    /// Reads a PodMetrics.
    pub(crate) fn read(metrics: &Value) -> Usage {
        let mut usage = Usage::default();
        for container in metrics["containers"].as_array().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            let amounts = container["usage"].as_object().into_iter().flatten();
            let read = |(resource, amount): (&String, &Value)| {
                let milli = Quantity::from_value(amount).ok()?.as_milli();
                Some((resource.clone(), i64::try_from(milli).ok()?))
            };
            usage.containers.insert(name, amounts.filter_map(read).collect());
        }
        let window = metrics["window"].as_str().and_then(|text| text.trim_end_matches('s').parse().ok());
        let at = metrics["timestamp"].as_str().and_then(|text| text.parse().ok());
        usage.at = at.map(|at| (at, Duration::from_secs_f64(window.unwrap_or(0.0_f64).max(0.0))));
        usage
    }

    fn of(&self, resource: &str, container: Option<&str>) -> Option<i64> {
        match container {
            Some(name) => self.containers.get(name)?.get(resource).copied(),
            None => self.containers.values().map(|usage| usage.get(resource).copied()).sum(),
        }
    }
}

/// The metric of a scaler that names none: four fifths of the cpu that is asked for.
pub(crate) fn default_metric() -> MetricSpec {
    MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(ResourceMetricSource {
            name: "cpu".to_owned(),
            target: MetricTarget {
                type_: "Utilization".to_owned(),
                average_utilization: Some(80),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    }
}

/// How many replicas one metric asks for.
pub(crate) fn replicas(view: &View, metric: &MetricSpec, current: i32, now: Timestamp) -> Result<Found, Why> {
    let (resource, target, container) = match (&metric.resource, &metric.container_resource) {
        (Some(source), _) => (&source.name, &source.target, None),
        (None, Some(source)) => (&source.name, &source.target, Some(source.container.as_str())),
        (None, None) => {
            let reason = match metric.type_.as_str() {
                "Pods" => "FailedGetPodsMetric",
                "Object" => "FailedGetObjectMetric",
                "External" => "FailedGetExternalMetric",
                _ => "InvalidMetricSourceType",
            };
            let why = format!(
                "metrics of type {} come from an adapter of custom metrics, and there is none: use Resource or ContainerResource",
                metric.type_
            );
            return Err((reason, why));
        }
    };
    let reason =
        if container.is_some() { "FailedGetContainerResourceMetric" } else { "FailedGetResourceMetric" };
    let fail = |why: String| (reason, format!("failed to get {resource} utilization: {why}"));
    let usage = view.usage.as_ref().map_err(|why| {
        fail(format!("unable to get metrics for resource {resource}: unable to fetch metrics from resource metrics API: {why}"))
    })?;
    let group = Group::of(view, usage, (resource, container), now);
    if group.measured.is_empty() {
        let why = "unable to get metrics for resource: no metrics returned from resource metrics API";
        return Err(fail(why.to_owned()));
    }
    let found = match (target.average_utilization, &target.average_value) {
        (Some(wanted), _) => by_utilization(&group, wanted, current, (resource, container)).map_err(fail)?,
        (None, Some(wanted)) => {
            let wanted = Quantity::parse(&wanted.0).ok().and_then(|one| i64::try_from(one.as_milli()).ok());
            by_value(&group, wanted.unwrap_or(0), current)
        }
        (None, None) => return Err(("InvalidMetricSourceType", "the target names no value".to_owned())),
    };
    let subject = match container {
        Some(name) => format!("{resource} container resource of container {name}"),
        None => format!("{resource} resource"),
    };
    let kind = if target.average_utilization.is_some() {
        "utilization (percentage of request)"
    } else {
        "average value"
    };
    Ok(Found { count: found.count, name: format!("{subject} {kind}"), status: status(metric, found.current) })
}

struct Counted {
    count: i32,
    current: MetricValueStatus,
}

/// The pods of a target, by what is known of them.
struct Group {
    pods: Vec<Arc<Pod>>,
    /// Usage of pods that count.
    measured: BTreeMap<String, i64>,
    missing: Vec<Arc<Pod>>,
    unready: Vec<Arc<Pod>>,
    /// How far the load may be above, and below, the target without a change.
    tolerance: (f64, f64),
}

impl Group {
    fn of(
        view: &View,
        usage: &BTreeMap<String, Usage>,
        (resource, container): (&str, Option<&str>),
        now: Timestamp,
    ) -> Group {
        let mut group = Group {
            pods: Vec::new(),
            measured: BTreeMap::new(),
            missing: Vec::new(),
            unready: Vec::new(),
            tolerance: tolerance(view),
        };
        for pod in &view.pods {
            if pods::terminating(pod) || pods::phase(pod) == "Failed" {
                continue;
            }
            group.pods.push(Arc::clone(pod));
            let name = pods::name(&pod.metadata);
            let measured = usage.get(name);
            let amount = measured.and_then(|usage| usage.of(resource, container));
            match (amount, measured) {
                _ if pods::phase(pod) == "Pending" => group.unready.push(Arc::clone(pod)),
                (Some(_), Some(usage)) if resource == "cpu" && is_starting(pod, usage, now) => {
                    group.unready.push(Arc::clone(pod));
                }
                (Some(amount), _) => {
                    group.measured.insert(name.to_owned(), amount);
                }
                (None, _) => group.missing.push(Arc::clone(pod)),
            }
        }
        group
    }

    /// What the measured ones ask for altogether, for one resource.
    fn requests(&self, (resource, container): (&str, Option<&str>)) -> Result<BTreeMap<String, i64>, String> {
        let mut all = BTreeMap::new();
        for pod in &self.pods {
            let name = pods::name(&pod.metadata);
            let spec = pod.spec.as_ref();
            let init = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten());
            let sidecars = init.filter(|one| one.restart_policy.as_deref() == Some("Always"));
            let containers = spec.into_iter().flat_map(|spec| spec.containers.iter()).chain(sidecars);
            let mut sum = 0;
            for one in containers.filter(|one| container.is_none_or(|wanted| one.name == wanted)) {
                sum += request(one, resource).ok_or_else(|| {
                    format!("missing request for {resource} in container {} of Pod {name}", one.name)
                })?;
            }
            all.insert(name.to_owned(), sum);
        }
        Ok(all)
    }
}

/// As the behaviour says, or as by default.
fn tolerance(view: &View) -> (f64, f64) {
    let spec = view.scaler.as_ref().map(|scaler| &scaler.spec);
    let behavior = spec.and_then(|spec| spec.behavior.as_ref());
    let read = |rules: Option<&HPAScalingRules>| {
        let text = rules.and_then(|rules| rules.tolerance.as_ref());
        let milli = text.and_then(|text| Quantity::parse(&text.0).ok()).map(|one| one.as_milli());
        milli.map_or(TOLERANCE, |milli| milli as f64 / 1000.0)
    };
    (
        read(behavior.and_then(|all| all.scale_up.as_ref())),
        read(behavior.and_then(|all| all.scale_down.as_ref())),
    )
}

fn request(container: &Container, resource: &str) -> Option<i64> {
    let requests = container.resources.as_ref()?.requests.as_ref()?;
    let milli = Quantity::parse(&requests.get(resource)?.0).ok()?.as_milli();
    i64::try_from(milli).ok()
}

/// Whether the cpu that was measured is that of a start.
fn is_starting(pod: &Pod, usage: &Usage, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
    let Some((started, ready)) = started.zip(pods::condition(pod, "Ready")) else { return true };
    let since = ready.last_transition_time.as_ref().map_or(started, |time| time.0);
    if started + CPU_INITIALIZATION > now {
        // Ready, but measured while it was not.
        let early = usage.at.is_some_and(|(at, window)| since + window > at);
        return ready.status == "False" || early;
    }
    ready.status == "False" && started + INITIAL_READINESS > since
}

fn by_utilization(
    group: &Group,
    wanted: i32,
    current: i32,
    of: (&str, Option<&str>),
) -> Result<Counted, String> {
    let requests = group.requests(of)?;
    let asked = |name: &str| requests.get(name).copied().unwrap_or(0);
    let used: i64 = group.measured.values().sum();
    let all: i64 = group.measured.keys().map(|name| asked(name)).sum();
    if all == 0 {
        return Err("no requests for this resource".to_owned());
    }
    let utilization = i32::try_from(used * 100 / all).unwrap_or(i32::MAX);
    let count = count(group, f64::from(utilization) / f64::from(wanted.max(1)), current, |measured| {
        let used: i64 = measured.iter().map(|(name, amount)| amount.unwrap_or(asked(name))).sum();
        let all: i64 = measured.keys().map(|name| asked(name)).sum();
        if all == 0 { 0.0 } else { (used * 100 / all) as f64 / f64::from(wanted.max(1)) }
    });
    let average = used / i64::try_from(group.measured.len()).unwrap_or(1).max(1);
    let current = MetricValueStatus {
        average_utilization: Some(utilization),
        average_value: Some(written(average, of.0)),
        value: None,
    };
    Ok(Counted { count, current })
}

fn by_value(group: &Group, wanted: i64, current: i32) -> Counted {
    let used: i64 = group.measured.values().sum();
    let average = used as f64 / group.measured.len().max(1) as f64;
    let wanted = wanted.max(1) as f64;
    let count = count(group, average / wanted, current, |measured| {
        let used: f64 = measured.values().map(|amount| amount.map_or(wanted, |known| known as f64)).sum();
        used / measured.len().max(1) as f64 / wanted
    });
    let average = Written(Quantity::from_milli(average as i64).to_string());
    Counted {
        count,
        current: MetricValueStatus { average_value: Some(average), ..MetricValueStatus::default() },
    }
}

/// The count that brings the load to its target. `again` measures with the pods that are not known: `None` stands for
/// as much as is asked for.
fn count(
    group: &Group,
    ratio: f64,
    current: i32,
    again: impl Fn(&BTreeMap<&str, Option<i64>>) -> f64,
) -> i32 {
    let tolerated = |ratio: f64| ratio <= 1.0 + group.tolerance.0 && ratio >= 1.0 - group.tolerance.1;
    let known = group.measured.len();
    let up = ratio > 1.0;
    if group.missing.is_empty() && (group.unready.is_empty() || !up) {
        return if tolerated(ratio) { current } else { (ratio * known as f64).ceil() as i32 };
    }
    let mut measured: BTreeMap<&str, Option<i64>> =
        group.measured.iter().map(|(name, amount)| (name.as_str(), Some(*amount))).collect();
    for pod in &group.missing {
        measured.insert(pods::name(&pod.metadata), if up { Some(0) } else { None });
    }
    if up {
        measured.extend(group.unready.iter().map(|pod| (pods::name(&pod.metadata), Some(0))));
    }
    let new = again(&measured);
    if tolerated(new) || (ratio < 1.0 && new > 1.0) || (ratio > 1.0 && new < 1.0) {
        return current;
    }
    let wanted = (new * measured.len() as f64).ceil() as i32;
    // What is not known must not turn the direction round.
    if (new < 1.0 && wanted > current) || (new > 1.0 && wanted < current) { current } else { wanted }
}

fn written(milli: i64, resource: &str) -> Written {
    if resource == "cpu" {
        Written(Quantity::from_milli(milli).to_string())
    } else {
        Written((milli / 1000).to_string())
    }
}

fn status(metric: &MetricSpec, current: MetricValueStatus) -> MetricStatus {
    let mut status = MetricStatus { type_: metric.type_.clone(), ..MetricStatus::default() };
    if let Some(source) = &metric.resource {
        status.resource = Some(ResourceMetricStatus { current, name: source.name.clone() });
    } else if let Some(source) = &metric.container_resource {
        let (name, container) = (source.name.clone(), source.container.clone());
        status.container_resource = Some(ContainerResourceMetricStatus { container, current, name });
    }
    status
}
