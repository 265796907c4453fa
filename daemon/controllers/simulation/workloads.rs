//! StatefulSets, DaemonSets, ReplicationControllers and CronJobs in a cluster that refuses and forgets.

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, StatefulSet};
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::{
    Endpoints, Node, PersistentVolumeClaim, ReplicationController, ResourceQuota, Service,
};

use super::*;

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn stateful_set(replicas: i32, more: Value) -> Value {
    let mut set = json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": replicas, "serviceName": "web",
            "selector": {"matchLabels": {"app": "web"}},
            "template": template("v1"),
        },
    });
    for (key, value) in more.as_object().unwrap() {
        set["spec"][key] = value.clone();
    }
    set
}

async fn change<K>(world: &World, name: &str, patch: Value)
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    K: Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    world.api::<K>("default").patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

fn of_image(set: &StatefulSet) -> bool {
    let (spec, status) = (set.spec.clone().unwrap(), set.status.clone().unwrap_or_default());
    status.observed_generation == set.metadata.generation
        && status.update_revision == status.current_revision
        && Some(status.replicas) == spec.replicas
        && status.ready_replicas.unwrap_or(0) == status.replicas
}

/// Sees to it that a number never has two pods that run, and that no pod is up while one before it is not there.
fn order(world: &World) -> Arc<AtomicUsize> {
    let pods: Cache<Pod> = world.seen.of();
    let broken = Arc::new(AtomicUsize::new(0));
    let (seen, count) = (pods.clone(), Arc::clone(&broken));
    pods.listen(move |_| {
        let snapshot = seen.snapshot();
        let there = |n: usize| snapshot.contains_key(&Key::new("default", format!("web-{n}")));
        let numbers = (0..10).filter(|n| there(*n)).count();
        // While it grows, numbers have no hole.
        if !(0..numbers).all(there) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    broken
}

#[tokio::test]
async fn a_stateful_set_grows_rolls_and_shrinks_in_order_under_faults() {
    let mut world = World::new(HARD).await;
    let broken = order(&world);
    let claims = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}}]);
    world.create::<StatefulSet>(stateful_set(4, json!({"volumeClaimTemplates": claims}))).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(40)).await;
        world.restart().await;
    }
    world.until::<StatefulSet>("4 pods", |all| all.iter().any(|set| of_image(set))).await;
    assert_eq!(broken.load(Ordering::Relaxed), 0, "a number was skipped while the set grew");
    let names: BTreeSet<String> =
        world.seen.of::<Pod>().snapshot().keys().map(|key| key.name.clone()).collect();
    assert_eq!(names, (0..4).map(|n| format!("web-{n}")).collect());
    change::<StatefulSet>(&world, "web", json!({"spec": {"template": template("v2")}})).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(40)).await;
        world.restart().await;
    }
    world.until::<StatefulSet>("v2", |all| all.iter().any(|set| of_image(set))).await;
    let image = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
    assert!(world.seen.of::<Pod>().snapshot().values().all(|pod| image(pod) == "v2"));
    change::<StatefulSet>(&world, "web", json!({"spec": {"replicas": 1}})).await;
    world.until::<Pod>("1 pod", |all| all.len() == 1 && pods::name(&all[0].metadata) == "web-0").await;
    world.quiet().await;
    let claims = world.api::<PersistentVolumeClaim>("default").list(&Default::default()).await.unwrap();
    assert_eq!(claims.items.len(), 4, "claims are kept by default");
    let revisions = world.api::<ControllerRevision>("default").list(&Default::default()).await.unwrap();
    let numbers: BTreeSet<i64> = revisions.iter().map(|one| one.revision).collect();
    assert_eq!(numbers, BTreeSet::from([1, 2]));
}

#[tokio::test]
async fn a_parallel_stateful_set_whose_claims_go_with_it_leaves_nothing() {
    let world = World::new(HARD).await;
    let claims = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}}]);
    let more = json!({"podManagementPolicy": "Parallel", "volumeClaimTemplates": claims,
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"}});
    world.create::<StatefulSet>(stateful_set(5, more)).await;
    world.until::<StatefulSet>("5 pods", |all| all.iter().any(|set| of_image(set))).await;
    change::<StatefulSet>(&world, "web", json!({"spec": {"replicas": 2}})).await;
    world.until::<PersistentVolumeClaim>("2 claims", |all| all.len() == 2).await;
    world.api::<StatefulSet>("default").delete("web", &DeleteParams::background()).await.unwrap();
    world.until::<Pod>("no pod", |all| all.is_empty()).await;
    world.until::<PersistentVolumeClaim>("no claim", |all| all.is_empty()).await;
    world.quiet().await;
}

async fn nodes(world: &World, names: &[&str]) {
    let api: Api<Node> = Api::all(world.client.clone());
    for name in names {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        if api.get_opt(name).await.unwrap().is_none() {
            api.create(&PostParams::default(), &node).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_daemon_set_is_on_every_node_and_rolls_within_its_promise() {
    let mut world = World::new(HARD).await;
    nodes(&world, &["n2", "n3", "n4"]).await;
    world
        .create::<DaemonSet>(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template("v1"),
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}},
        }))
        .await;
    let up = |count: i32| {
        move |all: &[Arc<DaemonSet>]| {
            all.iter().any(|set| {
                let status = set.status.clone().unwrap_or_default();
                status.observed_generation == set.metadata.generation
                    && status.desired_number_scheduled == count
                    && status.number_available == Some(count)
                    && status.updated_number_scheduled == Some(count)
            })
        }
    };
    world.until::<DaemonSet>("4 pods", up(4)).await;
    let (least, _) = promise(&world);
    change::<DaemonSet>(&world, "web", json!({"spec": {"template": template("v2")}})).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        world.restart().await;
    }
    world.until::<DaemonSet>("v2", up(4)).await;
    assert!(least.load(Ordering::Relaxed) >= 3, "maxUnavailable 1 of 4: 3 were promised");
    nodes(&world, &["n5"]).await;
    world.until::<DaemonSet>("5 pods", up(5)).await;
    let bound: BTreeSet<String> = world
        .seen
        .of::<Pod>()
        .snapshot()
        .values()
        .filter_map(|pod| pod.spec.as_ref()?.node_name.clone())
        .collect();
    assert_eq!(bound.len(), 5, "one pod on each node");
    world.quiet().await;
}

#[tokio::test]
async fn a_replication_controller_takes_a_pod_that_matches_and_lets_it_go_again() {
    let world = World::new(HARD).await;
    world
        .create::<Pod>(
            json!({"metadata": {"name": "alone", "namespace": "default", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "v1"}]}}),
        )
        .await;
    world
        .create::<ReplicationController>(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"replicas": 2, "selector": {"app": "web"}, "template": template("v1")},
        }))
        .await;
    let owned = |pod: &Pod| pods::controller(&pod.metadata).is_some_and(|owner| owner.name == "web");
    world
        .until::<Pod>("2 pods", move |all| all.len() == 2 && all.iter().all(|pod| owned(pod) && is_up(pod)))
        .await;
    change::<Pod>(&world, "alone", json!({"metadata": {"labels": {"app": "other"}}})).await;
    world
        .until::<Pod>("3 pods, one of them free", move |all| {
            all.len() == 3 && all.iter().filter(|pod| owned(pod)).count() == 2
        })
        .await;
    let orphaned = DeleteParams::orphan();
    world.api::<ReplicationController>("default").delete("web", &orphaned).await.unwrap();
    world.until::<ReplicationController>("no controller", |all| all.is_empty()).await;
    world.until::<Pod>("3 free pods", move |all| all.len() == 3 && !all.iter().any(|pod| owned(pod))).await;
    world.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_cron_job_runs_at_its_times_and_keeps_the_latest() {
    let world = World::at(paused(), NONE).await;
    world
        .create::<CronJob>(json!({
            "metadata": {"name": "tick", "namespace": "default"},
            "spec": {"schedule": "*/5 * * * *", "successfulJobsHistoryLimit": 2, "jobTemplate": {"spec": {"template": {
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "exit-0"}]}}}}},
        }))
        .await;
    let ran = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&ran);
    world.seen.of::<Job>().listen(move |job| {
        let annotations = job.metadata.annotations.clone().unwrap_or_default();
        seen.lock().unwrap().insert(annotations["batch.kubernetes.io/cronjob-scheduled-timestamp"].clone());
    });
    let told = Arc::clone(&ran);
    world.until::<Job>("6 runs", move |_| told.lock().unwrap().len() >= 6).await;
    // A paused clock leaps, so times may be missed; but no Job is for any other time.
    let times: Vec<Timestamp> = ran.lock().unwrap().iter().map(|text| text.parse().unwrap()).collect();
    assert!(times.iter().all(|at| at.as_second() % 300 == 0), "{times:?}");
    let done = |job: &Arc<Job>| job.status.as_ref().is_some_and(|status| status.completion_time.is_some());
    world
        .until::<Job>("the last two", move |all| {
            all.len() <= 3 && all.iter().filter(|job| done(job)).count() == 2
        })
        .await;
    change::<CronJob>(&world, "tick", json!({"spec": {"suspend": true}})).await;
}

#[tokio::test]
async fn workloads_that_are_content_are_left_alone() {
    let mut world = World::new(NONE).await;
    nodes(&world, &["n1"]).await;
    world.create::<StatefulSet>(stateful_set(2, json!({}))).await;
    world
        .create::<DaemonSet>(json!({"metadata": {"name": "each", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "each"}}, "template": {"metadata": {"labels": {"app": "each"}},
                "spec": {"containers": [{"name": "c", "image": "v1"}]}}}}))
        .await;
    world
        .create::<ReplicationController>(json!({"metadata": {"name": "old", "namespace": "default"},
            "spec": {"replicas": 1, "selector": {"app": "old"}, "template": {"metadata": {"labels": {"app": "old"}},
                "spec": {"containers": [{"name": "c", "image": "v1"}]}}}}))
        .await;
    world
        .create::<CronJob>(json!({"metadata": {"name": "never", "namespace": "default"},
            "spec": {"schedule": "0 0 31 2 *", "jobTemplate": {"spec": {"template": {"spec": {
                "restartPolicy": "Never", "containers": [{"name": "c", "image": "exit-0"}]}}}}}}))
        .await;
    world.create::<Job>(job(2, "exit-0", json!({}))).await;
    world
        .until::<Pod>("6 pods", |all| {
            all.iter().filter(|pod| is_up(pod)).count() == 4
                && all.iter().filter(|pod| pods::finished(pod)).count() == 2
        })
        .await;
    world.quiet().await;
    let before = world.server.revision();
    world.restart().await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(world.server.revision(), before, "a restart of the controllers wrote something");
}

#[tokio::test]
async fn endpoints_follow_pods_and_what_somebody_writes_is_mirrored() {
    let world = World::new(HARD).await;
    world.create::<Deployment>(deployment(3, "v1")).await;
    world
        .create::<Service>(json!({"metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}))
        .await;
    let ready = |all: &[Arc<Endpoints>], name: &str| -> usize {
        let of = all.iter().filter(|one| pods::name(&one.metadata) == name);
        of.flat_map(|one| one.subsets.clone().unwrap_or_default())
            .map(|subset| subset.addresses.iter().flatten().count())
            .sum()
    };
    world.until::<Endpoints>("3 addresses", move |all| ready(all, "web") == 3).await;
    change::<Deployment>(&world, "web", json!({"spec": {"replicas": 1}})).await;
    world.until::<Endpoints>("1 address", move |all| ready(all, "web") == 1).await;
    world.api::<Service>("default").delete("web", &DeleteParams::default()).await.unwrap();
    let named = |all: &[Arc<Endpoints>]| all.iter().any(|one| pods::name(&one.metadata) == "web");
    world.until::<Endpoints>("no endpoints", move |all| !named(all)).await;

    world
        .create::<Service>(json!({"metadata": {"name": "far", "namespace": "default"},
            "spec": {"ports": [{"port": 80}]}}))
        .await;
    world
        .create::<Endpoints>(json!({"metadata": {"name": "far", "namespace": "default"},
            "subsets": [{"addresses": [{"ip": "10.9.0.1"}], "ports": [{"port": 8080}]}]}))
        .await;
    let mirrored = |all: &[Arc<EndpointSlice>], ip: &str| {
        let of = all.iter().filter(|one| pods::name(&one.metadata).starts_with("far"));
        of.flat_map(|one| one.endpoints.clone().unwrap_or_default()).any(|one| one.addresses == [ip])
    };
    world.until::<EndpointSlice>("a mirror", move |all| mirrored(all, "10.9.0.1")).await;
    let other = json!({"subsets": [{"addresses": [{"ip": "10.9.0.7"}], "ports": [{"port": 8080}]}]});
    change::<Endpoints>(&world, "far", other).await;
    world
        .until::<EndpointSlice>("the other", move |all| {
            mirrored(all, "10.9.0.7") && !mirrored(all, "10.9.0.1")
        })
        .await;
    world.api::<Endpoints>("default").delete("far", &DeleteParams::default()).await.unwrap();
    let far = |all: &[Arc<EndpointSlice>]| all.iter().any(|one| pods::name(&one.metadata).starts_with("far"));
    world.until::<EndpointSlice>("no mirror", move |all| !far(all)).await;
    world.quiet().await;
}

#[tokio::test]
async fn a_quota_is_never_exceeded_whatever_fails() {
    let mut world = World::new(HARD).await;
    let quota = json!({"metadata": {"name": "few", "namespace": "default"}, "spec": {"hard": {"pods": "5"}}});
    world.create::<ResourceQuota>(quota).await;
    let (_, most) = promise(&world);
    world.create::<Deployment>(deployment(8, "v1")).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        world.restart().await;
    }
    world.until::<Pod>("five are up", |all| all.iter().filter(|pod| is_up(pod)).count() == 5).await;
    world
        .until::<ReplicaSet>("the set says why it has no more", |all| {
            let conditions = all.iter().filter_map(|set| set.status.as_ref()?.conditions.clone()).flatten();
            // The first refusal is told, as by Kubernetes, and here that may be an injected one.
            conditions.into_iter().any(|known| known.type_ == "ReplicaFailure" && known.status == "True")
        })
        .await;
    assert_eq!(most.load(Ordering::Relaxed), 5);
    // One goes, and one more may come: never two.
    let pods = world.api::<Pod>("default");
    let one = pods.list(&Default::default()).await.unwrap().items[0].metadata.clone();
    pods.delete(one.name.as_deref().unwrap(), &DeleteParams::default()).await.unwrap();
    let gone = one.uid.unwrap();
    world
        .until::<Pod>("five others are up", move |all| {
            let up = all.iter().filter(|pod| is_up(pod) && pods::uid(&pod.metadata) != gone);
            up.count() == 5
        })
        .await;
    assert_eq!(most.load(Ordering::Relaxed), 5);
}

#[tokio::test]
async fn an_index_succeeds_once_however_often_the_controllers_start_anew() {
    let mut world = World::new(HARD).await;
    let ended = Arc::new(Mutex::new(std::collections::BTreeMap::<String, BTreeSet<String>>::new()));
    let seen = Arc::clone(&ended);
    world.seen.of::<Pod>().listen(move |pod| {
        let annotations = pod.metadata.annotations.clone().unwrap_or_default();
        let index = annotations.get("batch.kubernetes.io/job-completion-index").cloned();
        if let (Some(index), "Succeeded") = (index, pods::phase(pod)) {
            seen.lock().unwrap().entry(index).or_default().insert(pods::uid(&pod.metadata).to_owned());
        }
    });
    world
        .create::<Job>(job(8, "exit-0", json!({"completionMode": "Indexed", "backoffLimitPerIndex": 1})))
        .await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        world.restart().await;
    }
    let complete = |all: &[Arc<Job>]| {
        all.iter().any(|job| job.status.as_ref().is_some_and(|status| status.completion_time.is_some()))
    };
    world.until::<Job>("completion", complete).await;
    world.quiet().await;
    let status = world.api::<Job>("default").get("work").await.unwrap().status.unwrap();
    assert_eq!((status.completed_indexes.as_deref(), status.succeeded), (Some("0-7"), Some(8)));
    assert_eq!((status.failed, status.active), (None, None));
    let ended = ended.lock().unwrap();
    assert!(ended.values().all(|pods| pods.len() == 1), "an index ran twice: {ended:?}");
    assert_eq!(ended.len(), 8);
}
