//! Simulated nodes: pods that are bound are ready, pods that are told to go are gone, nothing runs.

use std::sync::Arc;

use client::{Cache, Clock, Key, key_of};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};

/// Pods that are looked after at once.
const AT_ONCE: usize = 64;

/// Makes nodes that take part, in three zones.
///
/// # Errors
/// The first one that could not be made.
pub async fn nodes(client: &Client, count: usize) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    for at in 0..count {
        let name = format!("node-{at:04}");
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name,
            "topology.kubernetes.io/zone": format!("z{}", at % 3)}}});
        let node = serde_json::from_value(node).map_err(kube::Error::SerdeError)?;
        api.create(&PostParams::default(), &node).await?;
        let status = json!({"status": {
            "allocatable": {"cpu": "2000", "memory": "8000Gi", "pods": "20000"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        }});
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
    }
    Ok(())
}

/// Looks after the pods of all nodes until the cache ends.
pub fn kubelets(client: &Client, pods: &Cache<Pod>, clock: Clock) {
    let (wakes, mut woken) = mpsc::unbounded_channel();
    pods.listen(move |pod| drop(wakes.send(key_of(&**pod))));
    let (client, pods) = (client.clone(), pods.clone());
    tokio::spawn(async move {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        while let Some(key) = woken.recv().await {
            let Some(pod) = pods.get(&key) else { continue };
            if !is_due(&pod) {
                continue;
            }
            let turn = Arc::clone(&turns).acquire_owned().await;
            let client = client.clone();
            tokio::spawn(async move {
                look_after(&client, &key, &pod, clock).await;
                drop(turn);
            });
        }
    });
}

fn is_due(pod: &Pod) -> bool {
    let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_some() || (bound && phase.is_none_or(|phase| phase == "Pending"))
}

/// A refusal means that the pod changed meanwhile, and then there is another wake.
async fn look_after(client: &Client, key: &Key, pod: &Pod, clock: Clock) {
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    if pod.metadata.deletion_timestamp.is_some() {
        drop(api.delete(&key.name, &DeleteParams::default().grace_period(0)).await);
        return;
    }
    let now = clock.now().to_string();
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": now}));
    let status = json!({"metadata": {"uid": pod.metadata.uid}, "status": {
        "phase": "Running", "startTime": now, "podIP": "10.1.0.1", "podIPs": [{"ip": "10.1.0.1"}],
        "conditions": conditions,
    }});
    drop(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(status)).await);
}
