use super::*;
use serde_json::json;

fn item(kind: &str, name: &str, change: ChangeKind, before: Value, after: Value) -> Item {
    let some = |value: Value| (!value.is_null()).then_some(value);
    let id = Id { kind: kind.into(), namespace: "default".into(), name: name.into(), ..Id::default() };
    Item { id, kind: change, before: some(before), after: some(after) }
}

fn pod(name: &str, more: Value) -> Arc<DynamicObject> {
    let mut all = json!({"metadata": {"name": name, "namespace": "default", "labels": {"app": "web"},
        "creationTimestamp": format!("2026-01-01T00:00:0{}Z", name.len() % 10)},
        "spec": {"nodeName": "box", "containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}}}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
        all.extend(more.clone());
    }
    Arc::new(serde_json::from_value(all).expect("a pod"))
}

fn node(cpu: &str) -> Value {
    json!({"metadata": {"name": "box"}, "status": {"allocatable": {"cpu": cpu, "memory": "1Gi", "pods": "110"},
        "images": [{"names": ["docker.io/library/kubia:1"]}]}})
}

fn deployment(image: &str, replicas: i64, rolling: Value) -> Value {
    json!({"spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
        "template": {"spec": {"containers": [{"name": "c", "image": image, "resources": {"requests": {"cpu": "500m"}}}]}}}})
}

fn check(item: Item, world: &World) -> Vec<String> {
    let items = [item];
    let effects = effects(&items, world).remove(0);
    effects
        .into_iter()
        .map(|effect| {
            format!(
                "{:?}: {} [{}] {:?}",
                effect.kind,
                effect.message,
                effect.pods.join(" "),
                effect.unavailable
            )
        })
        .collect()
}

#[test]
fn a_rollout_names_its_pods_in_order_and_the_worst_case() {
    let world = World {
        pods: vec![pod("a", json!({})), pod("bb", json!({}))],
        nodes: vec![node("4")],
        ..World::default()
    };
    let (old, new) = (deployment("kubia:1", 2, json!({})), deployment("kubia:2", 2, json!({})));
    let got = check(item("Deployment", "web", ChangeKind::Change, old, new), &world);
    assert_eq!(
        got,
        [
            "Roll: 2 pods replaced, at most 0 of 2 unavailable, at most 3 at once [bb a] Some(0)",
            "Image: image kubia:2 is not on this machine and is pulled first [] None",
        ]
    );
}

#[test]
fn what_does_not_fit_is_said() {
    let world = World {
        pods: vec![pod("a", json!({})), pod("b", json!({}))],
        nodes: vec![node("1200m")],
        ..World::default()
    };
    let same = deployment("kubia:1", 2, json!({}));
    let more = deployment("kubia:1", 5, json!({}));
    let got = check(item("Deployment", "web", ChangeKind::Change, same.clone(), more), &world);
    assert_eq!(got.len(), 2, "{got:?}");
    assert!(got[0].starts_with("Scale: 3 pods more"), "{got:?}");
    assert!(got[1].starts_with("NoRoom: 2 of 5 pods will fit: each asks for 500m processor"), "{got:?}");
    let stuck = deployment("kubia:1", 2, json!({"maxUnavailable": 0, "maxSurge": 1}));
    let mut next = stuck.clone();
    next["spec"]["template"]["metadata"] = json!({"labels": {"v": "2"}});
    let got = check(item("Deployment", "web", ChangeKind::Change, stuck, next), &world);
    assert!(got.iter().any(|line| line.contains("the rollout will be stuck")), "{got:?}");
}

#[test]
fn configuration_that_no_pod_picks_up_is_said() {
    let env =
        json!({"spec": {"containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "conf"}}]}]}});
    let mount = |sub: Value| {
        json!({"spec": {"volumes": [{"name": "v", "configMap": {"name": "conf"}}],
            "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/x", "subPath": sub}]}]}})
    };
    let pods = vec![
        pod("env", env),
        pod("file", mount(Value::Null)),
        pod("sub", mount(json!("k"))),
        pod("other", json!({})),
    ];
    let world = World { pods, ..World::default() };
    let change = item(
        "ConfigMap",
        "conf",
        ChangeKind::Change,
        json!({"data": {"k": "1"}}),
        json!({"data": {"k": "2"}}),
    );
    let got = check(change, &world);
    assert_eq!(got.len(), 2, "{got:?}");
    assert!(
        got[0].starts_with("Unseen: 2 pods will not see it before a restart") && got[0].contains("[env sub]"),
        "{got:?}"
    );
    assert!(got[1].starts_with("Seen: 1 pod will see it") && got[1].contains("[file]"), "{got:?}");
    let label = item(
        "ConfigMap",
        "conf",
        ChangeKind::Change,
        json!({"data": {"k": "1"}}),
        json!({"data": {"k": "1"}, "x": 1}),
    );
    assert!(check(label, &world).is_empty());
}

#[test]
fn data_that_would_go_is_said() {
    let volumes =
        vec![json!({"metadata": {"name": "pv1"}, "spec": {"persistentVolumeReclaimPolicy": "Delete"}})];
    let world = World { volumes, ..World::default() };
    let claim = json!({"spec": {"volumeName": "pv1"}, "status": {"capacity": {"storage": "1Gi"}}});
    let got = check(item("PersistentVolumeClaim", "data", ChangeKind::Prune, claim, Value::Null), &world);
    assert_eq!(got, ["Data: volume pv1 (1Gi) and the data on it are deleted [] None"]);
    let world = World { pods: vec![pod("a", json!({}))], ..World::default() };
    let gone = item("Deployment", "web", ChangeKind::Prune, deployment("kubia:1", 1, json!({})), Value::Null);
    assert_eq!(check(gone, &world), ["Stop: 1 pod ends [a] Some(1)"]);
}

#[test]
fn a_stateful_set_is_rolled_from_its_last_pod() {
    let world = World {
        pods: vec![pod("db-0", json!({})), pod("db-1", json!({})), pod("db-10", json!({}))],
        ..World::default()
    };
    let set = |image: &str, partition: i64| {
        json!({"spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}, "template": {"spec": {"containers": [{"image": image}]}}}})
    };
    let got = check(item("StatefulSet", "db", ChangeKind::Change, set("a", 0), set("b", 1)), &world);
    assert_eq!(
        got,
        [
            "Roll: 2 pods replaced from the last to the first, 1 at a time, each waited for [db-10 db-1] Some(1)"
        ]
    );
}
