//! The eviction subresource: deletes a pod unless a PodDisruptionBudget says not now.
//!
//! Invariant: a budget is spent before the pod is deleted, by compare-and-set, so that a crowd of evictions spends no more
//! than there is.

use api::error::ApiError;
use api::kinds::{self, Kind};
use api::select::Labels;
use serde_json::{Value, json};

use crate::delete::{self, Options};
use crate::object::{self, meta};
use crate::path::Resource;
use crate::write::Asked;
use crate::{Inner, read};

const REFUSAL: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// How many pods may be on their way out before the budget's controller has counted again.
const MOST_DISRUPTED: usize = 2000;

/// POST of an Eviction.
pub(crate) async fn evict(asked: &mut Asked<'_>, eviction: &Value) -> Result<Value, ApiError> {
    let named = meta(eviction, "name");
    let name = asked.resource.name.clone().unwrap_or_default();
    if !named.is_empty() && named != name {
        return Err(ApiError::bad_request(format!(
            "name in URL does not match name in Eviction object: {name} != {named}"
        )));
    }
    let options = Options::asked(asked.query, &eviction["deleteOptions"])?;
    let pod = object::parse(&read::entry(asked.inner, asked.resource)?.value);
    if !may_go_at_once(&pod) {
        spend(asked, &pod, options.dry_run).await?;
    }
    delete::one(asked, &options).await?;
    Ok(json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }))
}

/// What does not run, or is going already, takes nothing from anybody.
fn may_go_at_once(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Pending" | "Succeeded" | "Failed"))
        || object::is_terminating(pod)
}

async fn spend(asked: &Asked<'_>, pod: &Value, dry_run: bool) -> Result<(), ApiError> {
    let kind = kinds::by_kind("policy/v1", "PodDisruptionBudget").expect("budgets are served");
    let budgets = budgets(asked.inner, kind, pod);
    let budget = match budgets.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => {
            let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(ApiError::internal(why));
        }
    };
    let ready = is_ready(pod);
    let status = &budget["status"];
    let healthy = status["currentHealthy"].as_i64().unwrap_or(0)
        >= status["desiredHealthy"].as_i64().unwrap_or(0)
        && status["desiredHealthy"].as_i64().unwrap_or(0) > 0;
    let unhealthy_may_go = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" || healthy;
    if !ready && unhealthy_may_go {
        return Ok(());
    }
    let resource = Resource {
        kind,
        namespace: meta(budget, "namespace").to_owned(),
        name: Some(meta(budget, "name").to_owned()),
        subresource: Some("status".to_owned()),
    };
    let now = asked.now();
    let pod_name = meta(pod, "name").to_owned();
    if dry_run {
        return take(budget, &pod_name, &now).map(drop);
    }
    let mut asked = Asked { resource: &resource, twice: Vec::new(), warnings: Vec::new(), ..*asked };
    asked.change_fields(|budget| take(budget, &pod_name, &now)).await.map(drop)
}

/// The budget with one disruption less, or 429.
fn take(budget: &Value, pod: &str, now: &str) -> Result<Value, ApiError> {
    let name = meta(budget, "name");
    let status = &budget["status"];
    let observed = status["observedGeneration"].as_i64().unwrap_or(0);
    if observed < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refused(&cause, Some(10)));
    }
    let allowed = status["disruptionsAllowed"].as_i64().unwrap_or(0);
    let (wanted, live) =
        (status["desiredHealthy"].as_i64().unwrap_or(0), status["currentHealthy"].as_i64().unwrap_or(0));
    if allowed <= 0 {
        let cause =
            format!("The disruption budget {name} needs {wanted} healthy pods and has {live} currently");
        return Err(refused(&cause, None));
    }
    if status["disruptedPods"].as_object().is_some_and(|pods| pods.len() > MOST_DISRUPTED) {
        return Err(refused(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
            None,
        ));
    }
    let mut new = budget.clone();
    new["status"]["disruptionsAllowed"] = (allowed - 1).into();
    if !new["status"]["disruptedPods"].is_object() {
        new["status"]["disruptedPods"] = json!({});
    }
    new["status"]["disruptedPods"][pod] = now.into();
    Ok(new)
}

fn refused(cause: &str, retry_seconds: Option<u32>) -> ApiError {
    let mut error = ApiError::too_many_requests(REFUSAL, retry_seconds.unwrap_or(0));
    error.details["causes"] = json!([{ "reason": "DisruptionBudget", "message": cause }]);
    if retry_seconds.is_none()
        && let Some(details) = error.details.as_object_mut()
    {
        details.remove("retryAfterSeconds");
    }
    error
}

fn budgets(inner: &Inner, kind: &Kind, pod: &Value) -> Vec<Value> {
    let snapshot = inner.store.snapshot();
    let entries = snapshot.range(&object::prefix(kind, meta(pod, "namespace")), None);
    let budgets = entries.map(|entry| object::parse(&entry.value));
    budgets
        .filter(|budget| {
            Labels::from_selector(&budget["spec"]["selector"]).is_ok_and(|s| s.matches_object(pod))
        })
        .collect()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}
