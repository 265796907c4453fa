//! The controllers of the cluster itself, under the same faults.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, ServiceAccount};

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Event, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::*;

#[tokio::test]
async fn every_namespace_gets_its_account_and_certificate_and_gets_them_back() {
    let mut world = World::new(HARD).await;
    let has = |namespace: &'static str| {
        move |maps: &[Arc<ConfigMap>]| {
            maps.iter().any(|map| {
                map.metadata.namespace.as_deref() == Some(namespace)
                    && map.metadata.name.as_deref() == Some("kube-root-ca.crt")
                    && map.data.as_ref().is_some_and(|data| data["ca.crt"] == CERTIFICATE)
            })
        }
    };
    let account = |namespace: &'static str| {
        move |all: &[Arc<ServiceAccount>]| {
            all.iter().any(|one| {
                one.metadata.namespace.as_deref() == Some(namespace)
                    && one.metadata.name.as_deref() == Some("default")
                    && one.metadata.deletion_timestamp.is_none()
            })
        }
    };
    world.until("the certificate in kube-system", has("kube-system")).await;
    world.restart().await;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let shop = serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap();
    namespaces.create(&PostParams::default(), &shop).await.unwrap();
    world.until("the certificate in shop", has("shop")).await;
    world.until("the account in shop", account("shop")).await;
    let maps: Api<ConfigMap> = world.api("shop");
    maps.delete("kube-root-ca.crt", &DeleteParams::default()).await.unwrap();
    let empty = Patch::Merge(json!({"data": {"ca.crt": "of someone else"}}));
    world
        .api::<ConfigMap>("default")
        .patch("kube-root-ca.crt", &PatchParams::default(), &empty)
        .await
        .unwrap();
    let accounts: Api<ServiceAccount> = world.api("shop");
    accounts.delete("default", &DeleteParams::default()).await.unwrap();
    world.until("the certificate again", move |maps| has("shop")(maps) && has("default")(maps)).await;
    world.until("the account again", account("shop")).await;
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    world
        .until::<Namespace>("shop is gone", |all| {
            all.iter().all(|one| one.metadata.name.as_deref() != Some("shop"))
        })
        .await;
    world.quiet().await;
}

fn claim(phase: &'static str) -> impl Fn(&[Arc<PersistentVolumeClaim>]) -> bool + Send + Sync + 'static {
    move |claims| {
        claims.iter().any(|claim| claim.status.as_ref().and_then(|one| one.phase.as_deref()) == Some(phase))
    }
}

#[tokio::test]
async fn a_claim_gets_a_directory_and_keeps_it_while_a_pod_uses_it() {
    let mut world = World::new(HARD).await;
    world
        .create::<PersistentVolumeClaim>(json!({"metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}))
        .await;
    world
        .until("pending with the default class", |claims: &[Arc<PersistentVolumeClaim>]| {
            claims
                .iter()
                .any(|claim| claim.spec.as_ref().unwrap().storage_class_name.as_deref() == Some("standard"))
        })
        .await;
    world.quiet().await;
    world.restart().await;
    // The scheduler says where.
    let chosen = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "n1"}}});
    let claims: Api<PersistentVolumeClaim> = world.api("default");
    claims.patch("data", &PatchParams::default(), &Patch::Merge(chosen)).await.unwrap();
    world.until("bound", claim("Bound")).await;
    world.quiet().await;
    let volumes: Api<PersistentVolume> = Api::all(world.client.clone());
    let volume = volumes.list(&Default::default()).await.unwrap().items.remove(0);
    let directory = volume.spec.unwrap().local.unwrap().path;
    assert!(std::path::Path::new(&directory).is_dir(), "{directory}");
    assert_eq!(volume.status.unwrap().phase.as_deref(), Some("Bound"));
    world
        .create::<Pod>(json!({"metadata": {"name": "user"}, "spec": {
            "containers": [{"name": "c", "image": "run"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}}))
        .await;
    world.until("the pod runs", |pods: &[Arc<Pod>]| pods.iter().any(|pod| is_up(pod))).await;
    claims.delete("data", &DeleteParams::default()).await.unwrap();
    world.quiet().await;
    assert!(claims.get("data").await.unwrap().metadata.deletion_timestamp.is_some(), "it waits for the pod");
    assert!(std::path::Path::new(&directory).is_dir());
    world.restart().await;
    world.api::<Pod>("default").delete("user", &DeleteParams::default()).await.unwrap();
    world.until("no claim", |claims: &[Arc<PersistentVolumeClaim>]| claims.is_empty()).await;
    world.until("no volume", |volumes: &[Arc<PersistentVolume>]| volumes.is_empty()).await;
    assert!(!std::path::Path::new(&directory).exists());
    world.quiet().await;
}

#[tokio::test]
async fn no_volume_is_given_twice_whatever_fails() {
    let mut world = World::new(HARD).await;
    let volumes: Api<PersistentVolume> = Api::all(world.client.clone());
    for n in 0..8 {
        let volume = json!({"metadata": {"name": format!("v{n}")}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "hand", "capacity": {"storage": "1Gi"},
            "hostPath": {"path": "/x"}, "persistentVolumeReclaimPolicy": "Retain"}});
        volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
    }
    for n in 0..10 {
        world
            .create::<PersistentVolumeClaim>(json!({"metadata": {"name": format!("c{n}")}, "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "hand",
                "resources": {"requests": {"storage": "1Gi"}}}}))
            .await;
        if n == 5 {
            world.restart().await;
        }
    }
    world
        .until("eight are bound", |claims: &[Arc<PersistentVolumeClaim>]| {
            let bound = claims
                .iter()
                .filter(|claim| claim.status.as_ref().and_then(|one| one.phase.as_deref()) == Some("Bound"));
            bound.count() == 8
        })
        .await;
    world.quiet().await;
    let given = volumes.list(&Default::default()).await.unwrap();
    let names: BTreeSet<String> = given
        .iter()
        .map(|one| one.spec.as_ref().unwrap().claim_ref.as_ref().unwrap().name.clone().unwrap())
        .collect();
    assert_eq!(names.len(), 8, "each volume has a claim of its own");
    assert!(given.iter().all(|one| one.status.as_ref().unwrap().phase.as_deref() == Some("Bound")));
}

#[tokio::test]
async fn a_budget_follows_its_pods_whatever_fails() {
    let mut world = World::new(HARD).await;
    world
        .create::<PodDisruptionBudget>(json!({"metadata": {"name": "web"}, "spec": {
            "maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}}))
        .await;
    world.create::<Deployment>(deployment(4, "v1")).await;
    let counts = |expected: i32, healthy: i32, allowed: i32| {
        move |all: &[Arc<PodDisruptionBudget>]| {
            all.iter().filter_map(|one| one.status.as_ref()).any(|status| {
                (status.expected_pods, status.current_healthy, status.disruptions_allowed)
                    == (Some(expected), Some(healthy), Some(allowed))
            })
        }
    };
    world.until("four are healthy", counts(4, 4, 1)).await;
    world.restart().await;
    let fewer = Patch::Merge(json!({"spec": {"replicas": 2}}));
    world.api::<Deployment>("default").patch("web", &PatchParams::default(), &fewer).await.unwrap();
    world.until("two are healthy", counts(2, 2, 1)).await;
    world.quiet().await;
}

#[tokio::test]
async fn a_load_balancer_is_served_by_the_node_but_never_at_a_port_in_use() {
    let world = World::new(HARD).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let address = json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
    nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(address)).await.unwrap();
    for (name, port) in [("web", 80), ("ssh", 22), ("also-web", 80)] {
        world
            .create::<Service>(json!({"metadata": {"name": name},
                "spec": {"type": "LoadBalancer", "ports": [{"port": port}]}}))
            .await;
        world.quiet().await;
    }
    let served = |all: &[Arc<Service>]| -> Vec<String> {
        let has = |one: &&Arc<Service>| {
            let balancer = one.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            balancer.and_then(|balancer| balancer.ingress.as_ref()).is_some_and(|all| !all.is_empty())
        };
        all.iter().filter(has).map(|one| one.metadata.name.clone().unwrap()).collect()
    };
    world.until("web is served", move |all: &[Arc<Service>]| served(all) == ["web"]).await;
    world.api::<Service>("default").delete("web", &DeleteParams::default()).await.unwrap();
    world.until("also-web is served", move |all: &[Arc<Service>]| served(all) == ["also-web"]).await;
    world.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_node_that_is_gone_go_and_so_do_old_events() {
    let world = World::at(paused(), NONE).await;
    world
        .create::<Pod>(json!({"metadata": {"name": "lost"}, "spec": {"nodeName": "n9",
            "containers": [{"name": "c", "image": "run"}]}}))
        .await;
    world
        .create::<Event>(json!({"metadata": {"name": "old"}, "lastTimestamp": world.clock.now().to_string(),
            "involvedObject": {"namespace": "default"}}))
        .await;
    world.until("the pod", |pods: &[Arc<Pod>]| pods.len() == 1).await;
    let begin = world.clock.now();
    world.until("no pod", |pods: &[Arc<Pod>]| pods.is_empty()).await;
    let waited = world.clock.now().duration_since(begin);
    assert!(waited.as_secs() >= 39, "{waited}");
    world.until("no event", |events: &[Arc<Event>]| events.is_empty()).await;
    let waited = world.clock.now().duration_since(begin);
    assert!((3599..3800).contains(&waited.as_secs()), "{waited}");
}

#[tokio::test]
async fn a_request_is_signed_once_it_is_approved_and_fails_with_the_signers_words() {
    let world = World::new(HARD).await;
    let requests: Api<CertificateSigningRequest> = Api::all(world.client.clone());
    for (name, text) in [("good", "Z29vZA=="), ("bad", "YmFk"), ("waits", "Z29vZA==")] {
        let request = json!({"metadata": {"name": name}, "spec": {
            "request": text, "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}});
        requests.create(&PostParams::default(), &serde_json::from_value(request).unwrap()).await.unwrap();
    }
    for name in ["good", "bad"] {
        let mut request = requests.get(name).await.unwrap();
        let approved = json!({"conditions": [{"type": "Approved", "status": "True", "reason": "Test", "message": "",
            "lastUpdateTime": world.clock.now().to_string()}]});
        request.status = serde_json::from_value(approved).unwrap();
        requests.replace_subresource("approval", name, &PostParams::default(), &request).await.unwrap();
    }
    world
        .until("signed and failed", |all: &[Arc<CertificateSigningRequest>]| {
            let status = |name: &str| {
                all.iter()
                    .find(|one| one.metadata.name.as_deref() == Some(name))
                    .and_then(|one| one.status.clone())
            };
            let signed = status("good")
                .and_then(|status| status.certificate)
                .is_some_and(|one| one.0 == CERTIFICATE.as_bytes());
            let why = status("bad").and_then(|status| status.conditions).unwrap_or_default();
            signed
                && why
                    .iter()
                    .any(|one| one.type_ == "Failed" && one.message.as_deref() == Some("it is not good"))
        })
        .await;
    world.quiet().await;
    let waits = requests.get("waits").await.unwrap();
    assert!(waits.status.and_then(|status| status.certificate).is_none(), "nobody approved it");
}
