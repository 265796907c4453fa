//! Health of kinds that neither run pods nor serve: volumes, autoscalers, definitions, budgets.
//!
//! Invariant: what a controller has not spoken of yet is on its way, not well.

use serde_json::Value;

use super::{Health, HealthCode, condition, count, is, reason, text};

pub(super) fn volume(object: &Value) -> Health {
    match text(&object["status"], "phase") {
        "Bound" => {
            let claim = &object["spec"]["claimRef"];
            Health::healthy(format!("bound to {}/{}", text(claim, "namespace"), text(claim, "name")))
        }
        "Available" => Health::healthy("free"),
        "Released" => Health::healthy("its claim is gone, its data is kept"),
        "Failed" => {
            Health::degraded(format!("could not be reclaimed: {}", text(&object["status"], "message")))
        }
        "Pending" | "" => Health::progressing("is being made"),
        other => Health::new(HealthCode::Unknown, format!("unknown phase {other}")),
    }
}

pub(super) fn autoscaler(object: &Value) -> Health {
    let failing = [
        ("AbleToScale", ["FailedGetScale", "FailedUpdateScale"].as_slice()),
        (
            "ScalingActive",
            [
                "FailedGetResourceMetric",
                "FailedGetContainerResourceMetric",
                "FailedGetObjectMetric",
                "FailedGetPodsMetric",
                "FailedGetExternalMetric",
                "FailedComputeMetricsReplicas",
                "InvalidSelector",
                "InvalidMetricSourceType",
            ]
            .as_slice(),
        ),
    ];
    for (name, reasons) in failing {
        if let Some(known) = condition(object, name).filter(|known| is(known, "False"))
            && reasons.contains(&text(known, "reason"))
        {
            return Health::degraded(reason(known));
        }
    }
    let status = &object["status"];
    if condition(object, "AbleToScale").is_some_and(|known| is(known, "True"))
        || condition(object, "ScalingLimited").is_some_and(|known| is(known, "True"))
    {
        let (now, wanted) = (count(status, "currentReplicas"), count(status, "desiredReplicas"));
        return Health::healthy(format!("{now} replicas, {wanted} wanted"));
    }
    Health::progressing("has not measured yet")
}

pub(super) fn definition(object: &Value) -> Health {
    if let Some(names) = condition(object, "NamesAccepted").filter(|known| is(known, "False")) {
        return Health::degraded(format!("its names are not accepted: {}", reason(names)));
    }
    match condition(object, "Established") {
        Some(known) if is(known, "True") => Health::healthy("served"),
        Some(known) if text(known, "reason") != "Installing" => {
            Health::degraded(format!("not served: {}", reason(known)))
        }
        _ => Health::progressing("is being made known"),
    }
}

pub(super) fn api_service(object: &Value) -> Health {
    match condition(object, "Available") {
        Some(known) if is(known, "True") => Health::healthy("available"),
        Some(known) => Health::progressing(reason(known)),
        None => Health::progressing("has not been looked at yet"),
    }
}

pub(super) fn budget(object: &Value) -> Health {
    let status = &object["status"];
    let (healthy, wanted) = (count(status, "currentHealthy"), count(status, "desiredHealthy"));
    let allowed = count(status, "disruptionsAllowed");
    Health::healthy(format!("{healthy} of {wanted} pods healthy, {allowed} may be disrupted"))
}
