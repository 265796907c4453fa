//! The controllers of the cluster itself, under the same faults.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, ServiceAccount};

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
