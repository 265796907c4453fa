//! Metrics of yesterday's HorizontalPodAutoscaler: flat in v2beta1, as today in v2beta2.

use serde_json::{Map, Value, json};

use super::{Changing, served};

pub(super) fn convert(changing: &mut Changing, api_version: &str) {
    changing.object.remove("status");
    scaled(changing);
    if api_version != "autoscaling/v2beta1" {
        return;
    }
    let Some(Value::Array(metrics)) = changing.spec().and_then(|spec| spec.get_mut("metrics")) else {
        return;
    };
    let mut changed = Vec::new();
    for (at, metric) in metrics.iter_mut().enumerate() {
        let fields = ["resource", "containerResource", "pods", "object", "external"];
        for field in fields {
            let Some(Value::Object(source)) = metric.get_mut(field) else { continue };
            let before = source.clone();
            match field {
                "object" => object(source),
                "resource" | "containerResource" => resource(source),
                _ => named(source),
            }
            if *source != before {
                changed.push(format!("spec.metrics[{at}].{field}"));
            }
        }
    }
    for path in changed {
        changing.tell(path, "what is wanted is written under target today, and the metric under metric");
    }
}

/// The thing that is scaled may itself be called differently today.
fn scaled(changing: &mut Changing) {
    let Some(target) = changing.spec().and_then(|spec| spec.get_mut("scaleTargetRef")) else { return };
    let now = served(
        target["apiVersion"].as_str().unwrap_or_default(),
        target["kind"].as_str().unwrap_or_default(),
    );
    if let Some(now) = now {
        target["apiVersion"] = now.into();
        changing.tell("spec.scaleTargetRef.apiVersion", format!("is {now} today"));
    }
}

fn resource(source: &mut Map<String, Value>) {
    if let Some(percent) = source.remove("targetAverageUtilization") {
        source.insert("target".into(), json!({ "type": "Utilization", "averageUtilization": percent }));
    }
    if let Some(value) = source.remove("targetAverageValue") {
        source.insert("target".into(), json!({ "type": "AverageValue", "averageValue": value }));
    }
}

fn named(source: &mut Map<String, Value>) {
    metric(source);
    for (then, of_type, now) in
        [("targetValue", "Value", "value"), ("targetAverageValue", "AverageValue", "averageValue")]
    {
        if let Some(value) = source.remove(then) {
            source.insert("target".into(), json!({ "type": of_type, now: value }));
        }
    }
}

/// `target` meant the object that is measured.
fn object(source: &mut Map<String, Value>) {
    let measured = source.remove("target");
    metric(source);
    let (value, average) = (source.remove("targetValue"), source.remove("averageValue"));
    match (value, average) {
        (_, Some(average)) => {
            source.insert("target".into(), json!({ "type": "AverageValue", "averageValue": average }));
        }
        (Some(value), None) => {
            source.insert("target".into(), json!({ "type": "Value", "value": value }));
        }
        (None, None) => {}
    }
    if let Some(measured) = measured {
        source.insert("describedObject".into(), measured);
    }
}

fn metric(source: &mut Map<String, Value>) {
    let selector = source.remove("selector").or_else(|| source.remove("metricSelector"));
    if let Some(name) = source.remove("metricName") {
        let mut metric = json!({ "name": name });
        if let Some(selector) = selector {
            metric["selector"] = selector;
        }
        source.insert("metric".into(), metric);
    }
}
