//! ReplicationController: what ReplicaSets were before there were Deployments.

use std::borrow::Cow;

use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::replicas::{Asked, Replicated};

impl Replicated for ReplicationController {
    const NAME: &'static str = "replicationcontroller";
    const COMPONENT: &'static str = "replication-controller";
    const TELLS_LEAVING: bool = false;

    fn asked(&self) -> Option<Asked<'_>> {
        let spec = self.spec.as_ref()?;
        let selector = LabelSelector { match_labels: spec.selector.clone(), match_expressions: None };
        Some(Asked {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            selector: Cow::Owned(selector),
            template: spec.template.as_ref(),
        })
    }

    fn reported(&self) -> Option<ReplicaSetStatus> {
        let status = self.status.clone()?;
        let condition = |known: ReplicationControllerCondition| ReplicaSetCondition {
            type_: known.type_,
            status: known.status,
            reason: known.reason,
            message: known.message,
            last_transition_time: known.last_transition_time,
        };
        Some(ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            terminating_replicas: None,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|all| all.into_iter().map(condition).collect()),
        })
    }

    fn reporting(&self, status: ReplicaSetStatus) -> ReplicationController {
        let condition = |known: ReplicaSetCondition| ReplicationControllerCondition {
            type_: known.type_,
            status: known.status,
            reason: known.reason,
            message: known.message,
            last_transition_time: known.last_transition_time,
        };
        let status = ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|all| all.into_iter().map(condition).collect()),
        };
        ReplicationController { status: Some(status), ..self.clone() }
    }
}
