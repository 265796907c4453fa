//! The controllers of the cluster itself, under the same faults.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, ServiceAccount};

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
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
    // Paused time leaps ahead while the store's own thread works: on a busy machine it may be more than was waited for.
    assert!((3599..7200).contains(&waited.as_secs()), "{waited}");
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

/// A kubelet's request for a client certificate, as PEM.
fn kubelets_request(node: &str) -> String {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

#[tokio::test]
async fn a_kubelets_own_request_is_approved_for_those_who_may_and_no_other() {
    let world = World::new(HARD).await;
    let bind = async |group: &str, role: &str| {
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": format!("{group}-{}", role.rsplit(':').next().unwrap())},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}]});
        let request = http::Request::post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings")
            .header("content-type", "application/json");
        world.client.request::<Value>(request.body(binding.to_string().into_bytes()).unwrap()).await.unwrap();
    };
    // Both may ask; for one of them no person has to say yes.
    bind("joiners", "system:node-bootstrapper").await;
    bind("strangers", "system:node-bootstrapper").await;
    bind("joiners", "system:certificates.k8s.io:certificatesigningrequests:nodeclient").await;
    for (user, group) in [("joiner", "joiners"), ("stranger", "strangers")] {
        let mut asks = User::room(user);
        asks.groups = vec![group.to_owned()];
        let door = client::door(world.server.door(asks));
        let text = kubelets_request("n2");
        let request = json!({"metadata": {"name": user}, "spec": {
            "request": k8s_openapi::ByteString(text.into_bytes()),
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
            "usages": ["client auth", "digital signature"]}});
        let requests: Api<CertificateSigningRequest> = Api::all(door);
        requests.create(&PostParams::default(), &serde_json::from_value(request).unwrap()).await.unwrap();
    }
    let reasons = |one: &CertificateSigningRequest| -> Vec<String> {
        let conditions = one.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.map(|known| known.reason.clone().unwrap_or_default()).collect()
    };
    world
        .until("the joiner's is approved", move |all: &[Arc<CertificateSigningRequest>]| {
            all.iter().any(|one| {
                one.metadata.name.as_deref() == Some("joiner")
                    && reasons(one).first().is_some_and(|reason| reason == "AutoApproved")
            })
        })
        .await;
    world.quiet().await;
    let requests: Api<CertificateSigningRequest> = Api::all(world.client.clone());
    let stranger = requests.get("stranger").await.unwrap();
    assert!(stranger.status.and_then(|status| status.conditions).is_none(), "nobody approved it");
}

fn node_condition(node: &Node, kind: &str) -> String {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.find(|known| known.type_ == kind).map(|known| known.status.clone()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_falls_silent_loses_its_pods_after_their_toleration_and_may_come_back() {
    let world = World::at(paused(), NONE).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let leases: Api<Lease> = world.api("kube-node-lease");
    let node = json!({"metadata": {"name": "n2"}});
    nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    let ready =
        json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}});
    nodes.patch_status("n2", &PatchParams::default(), &Patch::Merge(ready.clone())).await.unwrap();
    for (name, seconds) in [("short", json!(30)), ("ever", Value::Null)] {
        let toleration = json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists",
            "effect": "NoExecute", "tolerationSeconds": seconds});
        world
            .create::<Pod>(
                json!({"metadata": {"name": name}, "spec": {"nodeName": "n2", "tolerations": [toleration],
                "containers": [{"name": "c", "image": "run"}]}}),
            )
            .await;
    }
    let unknown = |all: &[Arc<Node>]| {
        all.iter().any(|node| {
            node.metadata.name.as_deref() == Some("n2") && node_condition(node, "Ready") == "Unknown"
        })
    };
    world.until("n2 is unknown", unknown).await;
    world
        .until("only the patient one stays, and is not ready", |pods: &[Arc<Pod>]| {
            pods.len() == 1 && pods.iter().all(|pod| !pods::ready(pod))
        })
        .await;
    // It comes back, and its taints go. The paused clock runs ahead of the store's thread, so one word from the node may be
    // old by the time that it is heard: it is given again until it was.
    let lease = json!({"metadata": {"name": "n2"}, "spec": {"holderIdentity": "n2", "leaseDurationSeconds": 40,
        "renewTime": "2026-11-24T00:10:00.000000Z"}});
    leases.create(&PostParams::default(), &serde_json::from_value(lease).unwrap()).await.unwrap();
    let beats = async {
        for beat in 1_u32.. {
            let renewed = json!({"spec": {"renewTime": format!("2026-11-24T00:10:00.{beat:06}Z")}});
            leases.patch("n2", &PatchParams::default(), &Patch::Merge(renewed)).await.unwrap();
            nodes.patch_status("n2", &PatchParams::default(), &Patch::Merge(ready.clone())).await.unwrap();
        }
    };
    let back = world.until("no taint", |all: &[Arc<Node>]| {
        all.iter().all(|node| node.spec.as_ref().is_none_or(|spec| spec.taints.is_none()))
    });
    tokio::select! {
        () = back => {}
        () = beats => {}
    }
}

#[tokio::test]
async fn a_taint_drives_off_who_does_not_tolerate_it_and_spares_who_waits_when_it_goes() {
    let mut world = World::new(HARD).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let pod = |name: &str, tolerations: Value| {
        json!({"metadata": {"name": name}, "spec": {"nodeName": "n1", "tolerations": tolerations,
            "containers": [{"name": "c", "image": "run"}]}})
    };
    let waits =
        json!([{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3600}]);
    world.create::<Pod>(pod("goes", json!([]))).await;
    world.create::<Pod>(pod("waits", waits)).await;
    world.until("two run", |pods: &[Arc<Pod>]| pods.iter().filter(|pod| is_up(pod)).count() == 2).await;
    let told = Arc::new(Mutex::new(BTreeSet::new()));
    let heard = Arc::clone(&told);
    world.seen.of::<Pod>().listen(move |pod| {
        let why = pods::condition(pod, "DisruptionTarget").and_then(|known| known.reason.clone());
        heard.lock().unwrap().extend(why);
    });
    let taint = Patch::Merge(json!({"spec": {"taints": [{"key": "gpu", "effect": "NoExecute"}]}}));
    nodes.patch("n1", &PatchParams::default(), &taint).await.unwrap();
    world.restart().await;
    world.until("one is gone", |pods: &[Arc<Pod>]| pods.len() == 1).await;
    assert!(told.lock().unwrap().contains("DeletionByTaintManager"));
    let none = Patch::Merge(json!({"spec": {"taints": null}}));
    nodes.patch("n1", &PatchParams::default(), &none).await.unwrap();
    world.quiet().await;
    let waits = world.api::<Pod>("default").get("waits").await.unwrap();
    assert!(waits.metadata.deletion_timestamp.is_none());
    let events = world.api::<Event>("default").list(&Default::default()).await.unwrap();
    let messages: BTreeSet<String> = events.iter().filter_map(|event| event.message.clone()).collect();
    assert!(messages.contains("Cancelling deletion of Pod default/waits"), "{messages:?}");
}
