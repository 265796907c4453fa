//! Turns an object of one served version into another version of the same resource.
//!
//! Invariant: there and back is the identity, but for what the object's author could not have said in that version.
//! Invariant: what is stored is of the version that `Kind::stored` names; every other version is a view.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use crate::custom;
use crate::kinds::Kind;

type Fields = Map<String, Value>;

/// What v1 of the autoscaler cannot say, it carries in annotations.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

/// `events.k8s.io` and core name the same things differently.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// The stored form of an object of this kind: mostly what it is.
pub fn to_stored<'a>(kind: &Kind, object: &'a Value) -> Cow<'a, Value> {
    if kind.custom().is_none() && kind.is_stored() {
        return Cow::Borrowed(object);
    }
    let mut object = object.clone();
    if let Some(custom) = kind.custom() {
        custom::to_stored(kind, custom, &mut object);
        return Cow::Owned(object);
    }
    if let Value::Object(map) = &mut object {
        match kind.kind.as_str() {
            "Event" => EVENT_FIELDS.iter().for_each(|(new, old)| rename(map, new, old)),
            "HorizontalPodAutoscaler" => autoscaler_to_v2(map),
            _ => {}
        }
        named(map, kind.stored());
    }
    Cow::Owned(object)
}

/// An object of this kind from its stored form.
pub fn from_stored(kind: &Kind, mut object: Value) -> Value {
    if let Some(custom) = kind.custom() {
        if !kind.is_stored() {
            custom::from_stored(kind, custom, &mut object);
        }
        return object;
    }
    if let (false, Value::Object(map)) = (kind.is_stored(), &mut object) {
        match kind.kind.as_str() {
            "Event" => EVENT_FIELDS.iter().for_each(|(new, old)| rename(map, old, new)),
            "HorizontalPodAutoscaler" => autoscaler_to_v1(map),
            _ => {}
        }
        named(map, kind);
    }
    object
}

/// The name of a field that objects can be selected by, in the stored version.
pub fn stored_field(kind: &Kind, field: &str) -> String {
    if kind.is_stored() {
        return field.to_owned();
    }
    let (first, rest) = field.split_once('.').unwrap_or((field, ""));
    let stored = EVENT_FIELDS.iter().find(|(new, _)| *new == first).map_or(first, |(_, old)| old);
    if rest.is_empty() { stored.to_owned() } else { format!("{stored}.{rest}") }
}

fn named(map: &mut Fields, kind: &Kind) {
    map.insert("apiVersion".into(), kind.api_version().into());
    map.insert("kind".into(), kind.kind.clone().into());
}

fn rename(map: &mut Fields, from: &str, to: &str) {
    if let Some(value) = map.remove(from) {
        map.insert(to.into(), value);
    }
}

fn autoscaler_to_v2(map: &mut Fields) {
    let mut metrics: Vec<Value> = Vec::new();
    let mut behavior = None;
    if let Some(percent) = map
        .get_mut("spec")
        .and_then(|spec| spec.as_object_mut())
        .and_then(|spec| spec.remove("targetCPUUtilizationPercentage"))
    {
        metrics.push(json!({ "type": "Resource", "resource": { "name": "cpu",
            "target": { "type": "Utilization", "averageUtilization": percent } } }));
    }
    if let Some(Value::Array(more)) = told(map, METRICS) {
        metrics.extend(more);
    }
    if let Some(told) = told(map, BEHAVIOR) {
        behavior = Some(told);
    }
    let (current, conditions) = (told(map, CURRENT_METRICS), told(map, CONDITIONS));
    if let Some(Value::Object(spec)) = map.get_mut("spec") {
        if !metrics.is_empty() {
            spec.insert("metrics".into(), metrics.into());
        }
        if let Some(behavior) = behavior {
            spec.insert("behavior".into(), behavior);
        }
    }
    let Some(Value::Object(status)) = map.get_mut("status") else { return };
    let mut measured: Vec<Value> = Vec::new();
    if let Some(percent) = status.remove("currentCPUUtilizationPercentage") {
        measured.push(json!({ "type": "Resource", "resource": { "name": "cpu", "current": { "averageUtilization": percent } } }));
    }
    if let Some(Value::Array(more)) = current {
        measured.extend(more);
    }
    if !measured.is_empty() {
        status.insert("currentMetrics".into(), measured.into());
    }
    if let Some(conditions) = conditions {
        status.insert("conditions".into(), conditions);
    }
}

fn autoscaler_to_v1(map: &mut Fields) {
    let mut kept: Vec<(&str, Value)> = Vec::new();
    if let Some(Value::Object(spec)) = map.get_mut("spec") {
        let (percent, rest) = split(spec.remove("metrics"), "target");
        if let Some(percent) = percent {
            spec.insert("targetCPUUtilizationPercentage".into(), percent);
        }
        kept.extend(rest.map(|rest| (METRICS, rest)));
        kept.extend(spec.remove("behavior").map(|behavior| (BEHAVIOR, behavior)));
    }
    if let Some(Value::Object(status)) = map.get_mut("status") {
        let (percent, rest) = split(status.remove("currentMetrics"), "current");
        if let Some(percent) = percent {
            status.insert("currentCPUUtilizationPercentage".into(), percent);
        }
        kept.extend(rest.map(|rest| (CURRENT_METRICS, rest)));
        kept.extend(status.remove("conditions").map(|conditions| (CONDITIONS, conditions)));
    }
    let Some(Value::Object(metadata)) = map.get_mut("metadata") else { return };
    if kept.is_empty() {
        return;
    }
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    for (name, value) in kept {
        annotations[name] = value.to_string().into();
    }
}

/// The first metric when it is what v1 can say, and the others when there are any.
fn split(metrics: Option<Value>, side: &str) -> (Option<Value>, Option<Value>) {
    let Some(Value::Array(mut metrics)) = metrics else { return (None, None) };
    let percent = metrics.first().and_then(|first| {
        let resource = &first["resource"];
        let fields = resource[side].as_object()?;
        let plain = fields
            .iter()
            .all(|(name, value)| name == "averageUtilization" || name == "type" && value == "Utilization");
        (first["type"] == "Resource" && resource["name"] == "cpu" && plain)
            .then(|| fields.get("averageUtilization").cloned())?
    });
    if percent.is_some() {
        metrics.remove(0);
    }
    (percent, (!metrics.is_empty()).then(|| metrics.into()))
}

/// Takes JSON out of an annotation. What is no JSON stays where it is.
fn told(map: &mut Fields, name: &str) -> Option<Value> {
    let metadata = map.get_mut("metadata")?.as_object_mut()?;
    let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
    let value = serde_json::from_str(annotations.get(name)?.as_str()?).ok()?;
    annotations.remove(name);
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::by_kind;

    #[track_caller]
    fn check(api_version: &str, kind: &str, object: Value, stored: Value) {
        let kind = by_kind(api_version, kind).expect("served");
        let mut object = object;
        named(object.as_object_mut().expect("an object"), kind);
        let mut wanted = stored;
        named(wanted.as_object_mut().expect("an object"), kind.stored());
        assert_eq!(*to_stored(kind, &object), wanted);
        assert_eq!(from_stored(kind, wanted), object);
    }

    #[test]
    fn an_event_of_the_newer_group_is_stored_as_an_event_of_core() {
        check(
            "events.k8s.io/v1",
            "Event",
            json!({ "metadata": { "name": "e" }, "regarding": { "kind": "Pod" }, "note": "hello", "reason": "Tested",
                "reportingController": "c", "reportingInstance": "i", "deprecatedCount": 2 }),
            json!({ "metadata": { "name": "e" }, "involvedObject": { "kind": "Pod" }, "message": "hello", "reason": "Tested",
                "reportingComponent": "c", "reportingInstance": "i", "count": 2 }),
        );
        let kind = by_kind("events.k8s.io/v1", "Event").expect("served");
        assert_eq!(stored_field(kind, "regarding.kind"), "involvedObject.kind");
        assert_eq!(stored_field(kind, "type"), "type");
    }

    #[test]
    fn an_autoscaler_keeps_in_annotations_what_version_one_cannot_say() {
        let cpu = json!({ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 50 } } });
        let memory = json!({ "type": "Resource", "resource": { "name": "memory", "target": { "type": "AverageValue", "averageValue": "1Gi" } } });
        check(
            "autoscaling/v1",
            "HorizontalPodAutoscaler",
            json!({ "metadata": { "name": "h" }, "spec": { "maxReplicas": 3, "targetCPUUtilizationPercentage": 50 } }),
            json!({ "metadata": { "name": "h" }, "spec": { "maxReplicas": 3, "metrics": [cpu] } }),
        );
        check(
            "autoscaling/v1",
            "HorizontalPodAutoscaler",
            json!({ "metadata": { "name": "h", "annotations": {
                METRICS: json!([memory]).to_string(), BEHAVIOR: r#"{"scaleDown":{"selectPolicy":"Disabled"}}"# } },
                "spec": { "maxReplicas": 3, "targetCPUUtilizationPercentage": 50 } }),
            json!({ "metadata": { "name": "h" }, "spec": { "maxReplicas": 3, "metrics": [cpu, memory],
                "behavior": { "scaleDown": { "selectPolicy": "Disabled" } } } }),
        );
    }
}
