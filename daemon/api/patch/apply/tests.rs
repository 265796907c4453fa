use proptest::prelude::*;
use serde_json::json;

use super::super::{self as patch};
use super::*;
use crate::kinds;

const T1: &str = "2026-11-24T01:00:00Z";
const T2: &str = "2026-11-24T02:00:00Z";

fn deployment() -> &'static Kind {
    kinds::by_kind("apps/v1", "Deployment").unwrap()
}

fn base() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}})
}

fn with(spec: Value) -> Value {
    let mut object = base();
    object["spec"] = spec;
    object
}

fn container(fields: Value) -> Value {
    with(json!({"template": {"spec": {"containers": [fields]}}}))
}

fn applied(live: Option<&Value>, object: &Value, manager: &str, now: &str) -> Value {
    patch::apply(deployment(), live, object, manager, false, None, now).unwrap()
}

fn fields(object: &Value, manager: &str) -> Value {
    let list = object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .find(|entry| entry["manager"] == manager)
        .map_or(Value::Null, |entry| entry["fieldsV1"].clone())
}

fn bare(object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"].as_object_mut().unwrap().remove("managedFields");
    object
}

/// Applies each object in turn by its manager and compares what is left and who owns what.
#[track_caller]
fn check(steps: &[(&str, Value)], spec: Value, owners: &[(&str, Value)]) -> Value {
    let mut live: Option<Value> = None;
    for (manager, object) in steps {
        live = Some(applied(live.as_ref(), object, manager, T1));
    }
    let live = live.unwrap();
    assert_eq!(live["spec"], spec);
    for (manager, expected) in owners {
        assert_eq!(fields(&live, manager), *expected, "fields of {manager}");
    }
    live
}

#[test]
fn what_is_applied_is_owned_field_by_field() {
    let spec = json!({
        "replicas": 3,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
            "containers": [{"name": "web", "image": "a:1", "args": ["x"], "ports": [{"containerPort": 80}]}],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        }},
    });
    let live = check(
        &[("me", with(spec.clone()))],
        spec,
        &[(
            "me",
            json!({"f:spec": {
                "f:replicas": {},
                "f:selector": {},
                "f:template": {"f:metadata": {"f:labels": {"f:app": {}}}, "f:spec": {
                    "f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:name": {}, "f:image": {}, "f:args": {},
                        "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}},
                    "f:volumes": {"k:{\"name\":\"tmp\"}": {".": {}, "f:name": {}, "f:emptyDir": {}}},
                }},
            }}),
        )],
    );
    assert_eq!(live["metadata"]["managedFields"][0]["operation"], "Apply");
    assert_eq!(live["metadata"]["managedFields"][0]["time"], T1);
}

#[test]
fn applying_twice_changes_nothing_not_even_the_time() {
    let object = container(json!({"name": "web", "image": "a:1"}));
    let mut live = applied(None, &object, "me", T1);
    live["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
    assert_eq!(applied(Some(&live), &object, "me", T2), live);
}

#[test]
fn quantities_of_equal_value_are_no_change() {
    let object = |cpu: &str| container(json!({"name": "web", "resources": {"limits": {"cpu": cpu}}}));
    let live = applied(None, &object("500m"), "me", T1);
    assert_eq!(applied(Some(&live), &object("0.5"), "me", T2), live);
    assert_eq!(bare(&applied(Some(&live), &object("0.5"), "other", T2)), bare(&live));
}

#[test]
fn a_field_given_up_is_removed_unless_another_owns_it() {
    let one = with(json!({"replicas": 3, "paused": true, "minReadySeconds": 1}));
    check(&[("me", one.clone()), ("me", with(json!({"paused": true})))], json!({"paused": true}), &[]);
    check(
        &[("me", one), ("you", with(json!({"replicas": 3}))), ("me", with(json!({"paused": true})))],
        json!({"paused": true, "replicas": 3}),
        &[("you", json!({"f:spec": {"f:replicas": {}}})), ("me", json!({"f:spec": {"f:paused": {}}}))],
    );
}

#[test]
fn an_item_given_up_goes_with_all_that_was_defaulted_in_it() {
    let two = |list: Value| with(json!({"template": {"spec": {"containers": list}}}));
    let mut live = applied(None, &two(json!([{"name": "a"}, {"name": "b"}])), "me", T1);
    live["spec"]["template"]["spec"]["containers"][1]["imagePullPolicy"] = json!("Always");
    let live = applied(Some(&live), &two(json!([{"name": "a"}])), "me", T2);
    assert_eq!(live["spec"], json!({"template": {"spec": {"containers": [{"name": "a"}]}}}));
    let gone = applied(Some(&live), &base(), "me", T2);
    assert_eq!(gone.get("spec"), None);
    assert_eq!(gone["metadata"].get("managedFields"), None);
}

#[test]
fn items_of_others_stay_and_the_applied_order_is_kept() {
    let list = |names: &[&str]| {
        let items: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        with(json!({"template": {"spec": {"containers": items}}}))
    };
    let order = |steps: &[(&str, &[&str])]| {
        let steps: Vec<(&str, Value)> =
            steps.iter().map(|(manager, names)| (*manager, list(names))).collect();
        let mut live = None;
        for (manager, object) in &steps {
            live = Some(applied(live.as_ref(), object, manager, T1));
        }
        let list = live.unwrap()["spec"]["template"]["spec"]["containers"].clone();
        list.as_array()
            .unwrap()
            .iter()
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect::<String>()
    };
    assert_eq!(order(&[("me", &["a", "b"]), ("you", &["c"])]), "abc");
    assert_eq!(order(&[("me", &["a", "b", "c"]), ("me", &["c", "a", "b"])]), "cab");
    assert_eq!(order(&[("you", &["x", "y"]), ("me", &["y", "n", "x"])]), "ynx");
    assert_eq!(order(&[("you", &["x", "y", "z"]), ("me", &["z", "x"])]), "yzx");
    assert_eq!(order(&[("me", &["a", "b"]), ("you", &["b", "c"]), ("me", &["a"])]), "abc");
}

#[test]
fn another_value_conflicts_in_kubernetes_words_and_force_takes_over() {
    let mut live = with(json!({"replicas": 1}));
    patch::track_update(deployment(), None, &mut live, "kubectl", None, T1);
    let want = with(json!({"replicas": 3}));
    let error = patch::apply(deployment(), Some(&live), &want, "me", false, None, T2).unwrap_err();
    assert_eq!(error.code(), 409);
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl\" using apps/v1: .spec.replicas"
    );
    let forced = patch::apply(deployment(), Some(&live), &want, "me", true, None, T2).unwrap();
    assert_eq!(forced["spec"]["replicas"], 3);
    assert_eq!(fields(&forced, "kubectl"), Value::Null);
    assert_eq!(fields(&forced, "me"), json!({"f:spec": {"f:replicas": {}}}));

    let live = check(
        &[("a", with(json!({"replicas": 1}))), ("b", container(json!({"name": "w", "image": "x"})))],
        json!({
        "replicas": 1, "template": {"spec": {"containers": [{"name": "w", "image": "x"}]}}}),
        &[],
    );
    let both =
        with(json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "w", "image": "y"}]}}}));
    let error = patch::apply(deployment(), Some(&live), &both, "c", false, None, T2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.replicas\nconflicts with \"b\":\n- .spec.template.spec.containers[name=\"w\"].image"
    );
}

#[test]
fn equal_values_are_owned_together() {
    let object = with(json!({"replicas": 2}));
    let owned = json!({"f:spec": {"f:replicas": {}}});
    check(
        &[("a", object.clone()), ("b", object)],
        json!({"replicas": 2}),
        &[("a", owned.clone()), ("b", owned)],
    );
}

#[test]
fn items_are_found_by_keys_with_their_defaults() {
    let ports = |list: Value| container(json!({"name": "w", "ports": list}));
    let live = check(
        &[
            ("me", ports(json!([{"containerPort": 53}, {"containerPort": 53, "protocol": "UDP"}]))),
            (
                "me",
                ports(
                    json!([{"containerPort": 53, "protocol": "TCP", "name": "dns"}, {"containerPort": 53, "protocol": "UDP"}]),
                ),
            ),
        ],
        json!({"template": {"spec": {"containers": [{"name": "w", "ports": [
            {"containerPort": 53, "protocol": "TCP", "name": "dns"}, {"containerPort": 53, "protocol": "UDP"}]}]}}}),
        &[],
    );
    let twice = ports(json!([{"containerPort": 53}, {"containerPort": 53, "protocol": "TCP"}]));
    let error = patch::apply(deployment(), Some(&live), &twice, "me", false, None, T1).unwrap_err();
    assert_eq!(error.code(), 400);
    assert!(
        error.to_string().contains("duplicate entries for key {\"containerPort\":53,\"protocol\":\"TCP\"}"),
        "{error}"
    );
    let keyless = with(
        json!({"template": {"spec": {"volumes": [{"name": "a"}], "tolerations": [1]}}, "strategy": null}),
    );
    assert_eq!(applied(None, &keyless, "me", T1)["spec"]["template"]["spec"]["tolerations"], json!([1]));
}

#[test]
fn sets_grow_and_shrink_by_owner_and_atomic_maps_are_replaced() {
    let meta = |finalizers: Value| {
        let mut object = base();
        object["metadata"]["finalizers"] = finalizers;
        object
    };
    let live = applied(None, &meta(json!(["a/a", "b/b"])), "me", T1);
    let live = applied(Some(&live), &meta(json!(["c/c"])), "you", T1);
    assert_eq!(live["metadata"]["finalizers"], json!(["a/a", "b/b", "c/c"]));
    assert_eq!(fields(&live, "you"), json!({"f:metadata": {"f:finalizers": {"v:\"c/c\"": {}}}}));
    let live = applied(Some(&live), &meta(json!(["b/b"])), "me", T1);
    assert_eq!(live["metadata"]["finalizers"], json!(["b/b", "c/c"]));
    let selector = |labels: Value| with(json!({"selector": {"matchLabels": labels}}));
    check(
        &[("me", selector(json!({"a": "1"}))), ("me", selector(json!({"b": "2"})))],
        json!({"selector": {"matchLabels": {"b": "2"}}}),
        &[("me", json!({"f:spec": {"f:selector": {}}}))],
    );
}

#[test]
fn status_belongs_to_its_subresource() {
    let mut object = with(json!({"replicas": 1}));
    object["status"] = json!({"replicas": 1});
    let live = applied(None, &object, "me", T1);
    assert_eq!(live.get("status"), None);
    object["spec"]["replicas"] = json!(9);
    let live = patch::apply(deployment(), Some(&live), &object, "ctrl", false, Some("status"), T1).unwrap();
    assert_eq!((&live["spec"]["replicas"], &live["status"]["replicas"]), (&json!(1), &json!(1)));
    assert_eq!(fields(&live, "ctrl"), json!({"f:status": {"f:replicas": {}}}));
    assert_eq!(live["metadata"]["managedFields"][0]["subresource"], "status");
}

#[test]
fn objects_that_carry_managed_fields_cannot_be_applied() {
    let live = applied(None, &with(json!({"replicas": 1})), "me", T1);
    let error = patch::apply(deployment(), Some(&live), &live, "me", false, None, T1).unwrap_err();
    assert_eq!(error.to_string(), "metadata.managedFields must be nil");
}

#[test]
fn a_live_object_without_account_gets_one_at_its_first_apply() {
    let live = with(json!({"replicas": 1, "paused": true}));
    let error = patch::apply(deployment(), Some(&live), &with(json!({"replicas": 2})), "me", false, None, T1)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn applying_nothing_begins_no_account() {
    let live = with(json!({"replicas": 1}));
    assert_eq!(applied(Some(&live), &base(), "me", T1), live);
}

#[test]
fn kubectl_may_overwrite_what_it_applied_from_the_client_side() {
    let mut live = with(json!({"replicas": 1, "paused": true}));
    live["metadata"]["annotations"] = json!({LAST_APPLIED: with(json!({"replicas": 1})).to_string()});
    patch::track_update(deployment(), None, &mut live, "kubectl-client-side-apply", None, T1);
    let want = with(json!({"replicas": 2}));
    let moved = patch::apply(deployment(), Some(&live), &want, "kubectl", false, None, T2).unwrap();
    assert_eq!(moved["spec"]["replicas"], 2);
    let foreign = with(json!({"paused": false}));
    assert!(patch::apply(deployment(), Some(&live), &foreign, "kubectl", false, None, T2).is_err());
}

#[test]
fn an_update_owns_what_it_changed_and_frees_what_it_removed() {
    let mut live = with(
        json!({"replicas": 1, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "w", "image": "x", "resources": {}}]}}}),
    );
    live["metadata"]["labels"] = json!({"a": "b"});
    patch::track_update(deployment(), None, &mut live, "kubectl-create", None, T1);
    assert_eq!(
        fields(&live, "kubectl-create"),
        json!({
            "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:replicas": {}, "f:template": {"f:metadata": {"f:labels": {".": {}, "f:a": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"w\"}": {".": {}, "f:image": {}, "f:name": {}, "f:resources": {}}}}}},
        })
    );
    let mut new = bare(&live);
    new["spec"]["template"]["spec"]["containers"][0]["image"] = json!("y");
    new["metadata"].as_object_mut().unwrap().remove("labels");
    patch::track_update(deployment(), Some(&live), &mut new, "kubectl-edit", None, T2);
    assert_eq!(
        fields(&new, "kubectl-edit"),
        json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"w\"}": {"f:image": {}}}}}}})
    );
    assert_eq!(fields(&new, "kubectl-create").get("f:metadata"), None);
    let mut same = bare(&new);
    patch::track_update(deployment(), Some(&new), &mut same, "someone", None, "2026-11-24T03:00:00Z");
    assert_eq!(same, new, "an update that changes nothing leaves the account alone");
}

#[test]
fn the_account_can_be_cleared_and_stays_bounded() {
    let mut live = with(json!({"replicas": 0}));
    patch::track_update(deployment(), None, &mut live, "create", None, T1);
    for n in 1..=14 {
        let mut new = live.clone();
        new["metadata"]["labels"][format!("l{n}")] = json!("x");
        let now = format!("2026-11-24T01:00:{n:02}Z");
        patch::track_update(deployment(), Some(&live), &mut new, &format!("m{n}"), None, &now);
        live = new;
    }
    assert_eq!(live["metadata"]["managedFields"].as_array().unwrap().len(), 10);
    assert!(fields(&live, "ancient-changes")["f:spec"]["f:replicas"].is_object());
    let mut cleared = live.clone();
    cleared["metadata"]["managedFields"] = json!([{}]);
    patch::track_update(deployment(), Some(&live), &mut cleared, "me", None, T2);
    assert_eq!(cleared["metadata"].get("managedFields"), None);
}

fn object() -> impl Strategy<Value = Value> {
    let container = ("[a-c]", proptest::option::of("[x-z]"), proptest::collection::btree_set(0..3_u16, 0..3));
    let containers = proptest::collection::vec(container, 0..3);
    let labels = proptest::collection::btree_map("[a-c]", "[0-9]", 0..3);
    (containers, labels, proptest::option::of(0..3_u8)).prop_map(|(containers, labels, replicas)| {
        let mut object = with(json!({"template": {"spec": {}}}));
        object["metadata"]["labels"] = json!(labels);
        let mut seen = BTreeSet::new();
        let mut list = Vec::new();
        for (name, image, ports) in containers.into_iter().filter(|(name, ..)| seen.insert(name.clone())) {
            let ports: Vec<Value> = ports.into_iter().map(|port| json!({"containerPort": port})).collect();
            let mut container = json!({"name": name, "ports": ports});
            if let Some(image) = image {
                container["image"] = json!(image);
            }
            list.push(container);
        }
        object["spec"]["template"]["spec"]["containers"] = json!(list);
        if let Some(replicas) = replicas {
            object["spec"]["replicas"] = json!(replicas);
        }
        object
    })
}

fn forced(live: Option<&Value>, object: &Value, manager: &str, now: &str) -> Value {
    patch::apply(deployment(), live, object, manager, true, None, now).unwrap()
}

proptest! {
    #[test]
    fn whatever_the_history_applying_again_changes_nothing(
        history in proptest::collection::vec(("[a-c]", object(), any::<bool>()), 0..5), last in object(),
    ) {
        let mut live: Option<Value> = None;
        for (manager, object, by_apply) in history {
            live = Some(if by_apply {
                forced(live.as_ref(), &object, &manager, T1)
            } else {
                let mut new = object;
                patch::track_update(deployment(), live.as_ref(), &mut new, &manager, None, T1);
                new
            });
        }
        let once = forced(live.as_ref(), &last, "me", T1);
        prop_assert_eq!(&forced(Some(&once), &last, "me", T2), &once);
        prop_assert_eq!(&applied(Some(&once), &last, "me", T2), &once);
    }

    #[test]
    fn what_one_alone_applies_is_what_is_there(first in object(), second in object()) {
        let live = applied(None, &first, "me", T1);
        let live = applied(Some(&live), &second, "me", T1);
        let fresh = applied(None, &second, "me", T1);
        prop_assert_eq!(set_of(Form::of_kind(deployment()), &bare(&live)), set_of(Form::of_kind(deployment()), &bare(&fresh)));
    }

    #[test]
    fn the_account_reads_back_as_written(object in object()) {
        let live = applied(None, &object, "me", T1);
        let mut again = bare(&live);
        Managers::of(&live).write(&mut again);
        prop_assert_eq!(again, live);
    }
}
