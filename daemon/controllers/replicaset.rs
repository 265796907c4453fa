//! ReplicaSet: as many pods of one template as asked for.

use std::borrow::Cow;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};

use crate::replicas::{Asked, Replicated};

impl Replicated for ReplicaSet {
    const NAME: &'static str = "replicaset";
    const COMPONENT: &'static str = "replicaset-controller";
    const TELLS_LEAVING: bool = true;

    fn asked(&self) -> Option<Asked<'_>> {
        let spec = self.spec.as_ref()?;
        Some(Asked {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            selector: Cow::Borrowed(&spec.selector),
            template: spec.template.as_ref(),
        })
    }

    fn reported(&self) -> Option<ReplicaSetStatus> {
        self.status.clone()
    }

    fn reporting(&self, status: ReplicaSetStatus) -> ReplicaSet {
        ReplicaSet { status: Some(status), ..self.clone() }
    }
}
