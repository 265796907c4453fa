use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::kinds;

fn pod() -> &'static Kind {
    kinds::by_kind("v1", "Pod").unwrap()
}

#[track_caller]
fn check(target: Value, patched: Value, expected: Value) {
    let merged = patch(pod(), &target, &patched).unwrap();
    assert_eq!(merged, expected);
    assert_eq!(patch(pod(), &merged, &patched).unwrap(), expected, "twice is once");
}

#[track_caller]
fn refuse(kind: &Kind, target: Value, patched: Value, code: u16, part: &str) {
    let error = patch(kind, &target, &patched).unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

fn containers(list: Value) -> Value {
    json!({"spec": {"containers": list}})
}

#[test]
fn maps_merge_and_nulls_remove() {
    check(
        json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
        json!({"metadata": {"labels": {"a": "3", "b": null, "c": "4"}, "annotations": {"x": null}}}),
        json!({"metadata": {"labels": {"a": "3", "c": "4"}, "annotations": {}}}),
    );
    check(
        json!({"spec": {"nodeName": "a"}}),
        json!({"spec": {"nodeName": "b"}}),
        json!({"spec": {"nodeName": "b"}}),
    );
}

#[test]
fn keyed_lists_merge_by_their_key_and_new_items_come_first() {
    check(
        containers(json!([{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}])),
        containers(json!([{"name": "b", "image": "b:2"}, {"name": "c", "image": "c:1"}])),
        containers(
            json!([{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:2"}, {"name": "c", "image": "c:1"}]),
        ),
    );
    check(
        containers(json!([{"name": "a"}])),
        containers(json!([{"name": "new", "image": "n"}])),
        containers(json!([{"name": "new", "image": "n"}, {"name": "a"}])),
    );
    check(
        containers(json!([{"name": "a", "env": [{"name": "X", "value": "1"}], "command": ["a", "b"]}])),
        containers(
            json!([{"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": null}], "command": ["c"]}]),
        ),
        containers(
            json!([{"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X"}], "command": ["c"]}]),
        ),
    );
}

#[test]
fn patch_directives_replace_and_delete() {
    check(
        containers(json!([{"name": "a"}, {"name": "b"}])),
        containers(json!([{"$patch": "delete", "name": "a"}])),
        containers(json!([{"name": "b"}])),
    );
    check(
        containers(json!([{"name": "a"}, {"name": "b"}])),
        containers(json!([{"$patch": "replace"}, {"name": "c", "$patch": "merge"}])),
        containers(json!([{"name": "c"}])),
    );
    check(
        json!({"metadata": {"labels": {"a": "1"}}}),
        json!({"metadata": {"labels": {"$patch": "replace", "b": "2"}}}),
        json!({"metadata": {"labels": {"b": "2"}}}),
    );
    check(
        json!({"metadata": {"labels": {"a": "1"}}}),
        json!({"metadata": {"labels": {"$patch": "delete"}}}),
        json!({"metadata": {"labels": {}}}),
    );
    refuse(
        pod(),
        containers(json!([])),
        containers(json!([{"$patch": "jump", "name": "a"}])),
        400,
        "unknown patch type",
    );
    refuse(
        pod(),
        containers(json!([{"name": "a"}])),
        containers(json!([{"$patch": "delete"}])),
        422,
        "no merge key",
    );
}

#[test]
fn directives_in_new_parts_are_never_stored() {
    check(
        json!({}),
        json!({"spec": {"$retainKeys": ["containers"], "containers": [{"name": "a", "$patch": "merge", "$setElementOrder/env": []}, {"$patch": "delete", "name": "b"}]}}),
        containers(json!([{"name": "a"}])),
    );
}

#[test]
fn retained_keys_drop_the_others() {
    let volume = |of: Value| json!({"spec": {"volumes": [of]}});
    check(
        volume(json!({"name": "v", "emptyDir": {}})),
        volume(json!({"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}})),
        volume(json!({"name": "v", "configMap": {"name": "c"}})),
    );
    refuse(
        pod(),
        volume(json!({"name": "v"})),
        volume(json!({"name": "v", "$retainKeys": ["name"], "configMap": {"name": "c"}})),
        400,
        "configMap is patched but not retained",
    );
}

#[test]
fn lists_of_primitives_merge_as_sets_and_delete_by_directive() {
    let meta = |of: Value| json!({"metadata": of});
    check(
        meta(json!({"finalizers": ["a", "b"]})),
        meta(json!({"finalizers": ["c", "a"]})),
        meta(json!({"finalizers": ["c", "a", "b"]})),
    );
    check(
        meta(json!({"finalizers": ["a", "b"]})),
        meta(json!({"$deleteFromPrimitiveList/finalizers": ["b", "x"]})),
        meta(json!({"finalizers": ["a"]})),
    );
    check(meta(json!({})), meta(json!({"$deleteFromPrimitiveList/finalizers": ["b"]})), meta(json!({})));
}

#[test]
fn element_orders_are_followed() {
    check(
        containers(json!([{"name": "a"}, {"name": "b"}, {"name": "mine"}])),
        json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}], "containers": [{"name": "c", "image": "c"}]}}),
        containers(json!([{"name": "b"}, {"name": "c", "image": "c"}, {"name": "a"}, {"name": "mine"}])),
    );
    check(
        json!({"metadata": {"finalizers": ["a", "b"]}}),
        json!({"metadata": {"$setElementOrder/finalizers": ["b", "a"]}}),
        json!({"metadata": {"finalizers": ["b", "a"]}}),
    );
    refuse(
        pod(),
        containers(json!([{"name": "a"}])),
        json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "c"}]}}),
        422,
        "does not list",
    );
}

#[test]
fn ports_merge_by_port_and_atomic_lists_are_replaced() {
    let service = kinds::by_kind("v1", "Service").unwrap();
    let merged = patch(
        service,
        &json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}], "externalIPs": ["1.1.1.1"]}}),
        &json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 443}], "externalIPs": ["2.2.2.2"]}}),
    );
    let expected = json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 443}], "externalIPs": ["2.2.2.2"]}});
    assert_eq!(merged.unwrap(), expected);
}

#[test]
fn custom_kinds_and_items_without_key_are_refused() {
    let application = kinds::by_kind("holdfast.dev/v1", "Application").unwrap();
    refuse(application, json!({}), json!({"spec": {}}), 415, "unknown format");
    refuse(
        pod(),
        containers(json!([{"name": "a"}])),
        containers(json!([{"image": "x"}])),
        422,
        "declared merge key: name",
    );
    refuse(pod(), json!({}), json!([]), 400, "is an object");
}

fn spec() -> impl Strategy<Value = Value> {
    let container = ("[a-d]", proptest::option::of("[x-z]"), proptest::option::of(0..3_u16)).prop_map(
        |(name, image, port)| {
            let mut container = json!({"name": name});
            if let Some(image) = image {
                container["image"] = json!(image);
            }
            if let Some(port) = port {
                container["ports"] = json!([{"containerPort": port}]);
            }
            container
        },
    );
    let list = proptest::collection::vec(container, 0..4).prop_map(|mut list: Vec<Value>| {
        list.sort_by_key(|c| c["name"].to_string());
        list.dedup_by_key(|c| c["name"].clone());
        list
    });
    (list, proptest::collection::btree_map("[a-c]", "[0-9]", 0..3), any::<bool>()).prop_map(
        |(mut list, labels, turn)| {
            if turn {
                list.reverse();
            }
            json!({"metadata": {"labels": labels}, "spec": {"containers": list}})
        },
    )
}

proptest! {
    #[test]
    fn a_patch_applied_twice_is_the_same_as_once(target in spec(), patched in spec()) {
        let once = patch(pod(), &target, &patched).unwrap();
        prop_assert_eq!(&patch(pod(), &once, &patched).unwrap(), &once);
    }

    #[test]
    fn an_object_patched_with_itself_is_itself(target in spec()) {
        prop_assert_eq!(&patch(pod(), &target, &target).unwrap(), &target);
    }
}
