//! Cases of the controllers of the cluster itself.

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use super::*;
use crate::serviceaccount;
use crate::storage::{self, Act, Ground};

#[test]
fn every_namespace_has_an_account_and_the_certificate() {
    check_all("serviceaccount", |case| {
        let root_ca: Option<Arc<ConfigMap>> = case.one("ConfigMap");
        let view = serviceaccount::View {
            namespace: case.one("Namespace"),
            account: case.objects.iter().any(|object| object["kind"] == "ServiceAccount"),
            root_ca: root_ca.map(Arc::unwrap_or_clone),
            certificate: "the certificate".into(),
        };
        serviceaccount::plan(&view, case.now)
    });
}

fn ground() -> Arc<Ground> {
    Arc::new(Ground { node: "n1".to_owned(), directory: "/data/volumes".into() })
}

fn acts(plan: Plan<Act>) -> Value {
    let act = |act: &Act| match act {
        Act::Cluster(one) => step(one),
        Act::Make(path) => json!({"make directory": path}),
        Act::Remove(path) => json!({"remove directory": path}),
    };
    json!(plan.steps.iter().map(act).collect::<Vec<_>>())
}

fn keyed<K: kube::Resource>(objects: Vec<Arc<K>>) -> imbl::OrdMap<client::Key, Arc<K>> {
    objects.into_iter().map(|object| (client::key_of(&*object), object)).collect()
}

#[test]
fn claims_get_their_volumes() {
    check_each("persistentvolumeclaim", |case| {
        let view = storage::claim::View {
            claim: case.one::<PersistentVolumeClaim>("PersistentVolumeClaim"),
            volumes: keyed(case.all::<PersistentVolume>("PersistentVolume")),
            classes: keyed(case.all::<StorageClass>("StorageClass")),
            ground: ground(),
            told: case.absent.first().cloned(),
        };
        acts(storage::claim::plan(&view, case.now))
    });
}

#[test]
fn volumes_say_what_they_are_and_go_with_their_claims() {
    check_each("persistentvolume", |case| {
        let view = storage::volume::View {
            volume: case.one("PersistentVolume"),
            claim: case.one("PersistentVolumeClaim"),
            ground: ground(),
        };
        acts(storage::volume::plan(&view, case.now))
    });
}

#[test]
fn claims_and_volumes_in_use_stay() {
    check_all("storage-protection", |case| {
        let view = storage::protection::View {
            claim: case.one("PersistentVolumeClaim"),
            volume: case.one("PersistentVolume"),
            pods: case.all("Pod"),
        };
        storage::protection::plan(&view, case.now)
    });
}

#[test]
fn a_pod_gets_the_claims_that_it_declares() {
    check_all("ephemeral-volume", |case| {
        let view =
            storage::ephemeral::View { pod: case.one("Pod"), claims: case.all("PersistentVolumeClaim") };
        storage::ephemeral::plan(&view, case.now)
    });
}

#[test]
fn the_first_class_is_the_default_unless_there_is_one() {
    check_all("storageclass", |case| storage::first_class(&case.all("StorageClass")));
}
