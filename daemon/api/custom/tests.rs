//! Definitions, and objects of the kinds that they define.

use serde_json::json;

use super::*;

fn definition(schema: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "crontabs.stable.example.com" },
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": { "plural": "crontabs", "kind": "CronTab", "shortNames": ["ct"] },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema },
                "additionalPrinterColumns": [{ "name": "Spec", "type": "string", "jsonPath": ".spec.cronSpec" }] }],
        },
    })
}

fn row_of(schema: Value) -> &'static Kind {
    let mut definition = definition(schema);
    definition::default(&mut definition);
    Box::leak(Box::new(rows(&definition).remove(0)))
}

fn cron() -> Value {
    json!({ "type": "object", "properties": { "spec": {
        "type": "object", "required": ["cronSpec"],
        "properties": {
            "cronSpec": { "type": "string", "pattern": "^[0-9* ]+$" },
            "replicas": { "type": "integer", "minimum": 1, "maximum": 10, "default": 1 },
            "port": { "x-kubernetes-int-or-string": true },
            "kept": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
            "ports": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": { "type": "object", "properties": { "name": { "type": "string" }, "port": { "type": "integer" } } } },
        },
        "x-kubernetes-validations": [
            { "rule": "self.replicas < 9", "message": "too many" },
            { "rule": "self.cronSpec == oldSelf.cronSpec", "messageExpression": "'was ' + oldSelf.cronSpec" },
        ],
    } } })
}

fn object(spec: Value) -> Value {
    json!({ "apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": { "name": "a", "namespace": "default" }, "spec": spec })
}

#[track_caller]
fn check(spec: Value, wanted: &[&str]) {
    let kind = row_of(cron());
    let mut object = object(spec);
    crate::schema::defaults(kind, &mut object);
    let found: Vec<String> = crate::validate::create(kind, &object).iter().map(Defect::to_string).collect();
    assert_eq!(found, wanted);
}

#[test]
fn objects_are_judged_by_their_schema_in_kubernetes_words() {
    check(json!({ "cronSpec": "* *" }), &[]);
    check(json!({}), &["spec.cronSpec: Required value"]);
    check(
        json!({ "cronSpec": 5 }),
        &[
            "spec.cronSpec: Invalid value: \"integer\": spec.cronSpec in body must be of type string: \"integer\"",
        ],
    );
    check(
        json!({ "cronSpec": "x", "replicas": 11 }),
        &[
            "spec.cronSpec: Invalid value: \"x\": spec.cronSpec in body should match '^[0-9* ]+$'",
            "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10",
        ],
    );
    check(json!({ "cronSpec": "*", "replicas": 9 }), &["spec: Invalid value: \"object\": too many"]);
    check(
        json!({ "cronSpec": "*", "ports": [{ "name": "a" }, { "name": "a" }] }),
        &["spec.ports[1]: Duplicate value: {\"name\":\"a\"}"],
    );
}

#[test]
fn rules_about_changes_are_for_changes() {
    let kind = row_of(cron());
    let (old, new) = (
        object(json!({ "cronSpec": "1", "replicas": 1 })),
        object(json!({ "cronSpec": "2", "replicas": 1 })),
    );
    let found: Vec<String> =
        crate::validate::update(kind, &new, &old).iter().map(Defect::to_string).collect();
    assert_eq!(found, ["spec: Invalid value: \"object\": was 1"]);
}

#[test]
fn unknown_fields_are_told_and_pruned_where_the_schema_does_not_keep_them() {
    let kind = row_of(cron());
    let mut given = object(json!({ "cronSpec": "*", "odd": 1, "kept": { "any": { "thing": 1 } } }));
    let told: Vec<String> = crate::schema::check_fields(kind, &given).iter().map(Defect::to_string).collect();
    assert_eq!(told, ["unknown field \"spec.odd\""]);
    crate::schema::prune_unknown(kind, &mut given);
    assert_eq!(given["spec"], json!({ "cronSpec": "*", "kept": { "any": { "thing": 1 } } }));
}

#[test]
fn definitions_that_are_no_good_are_refused() {
    let judge = |change: &dyn Fn(&mut Value)| {
        let mut definition = definition(cron());
        change(&mut definition);
        definition::default(&mut definition);
        definition::check(&definition, None).iter().map(Defect::to_string).collect::<Vec<_>>()
    };
    assert_eq!(judge(&|_| {}), Vec::<String>::new());
    let schema = "spec.versions[0].schema.openAPIV3Schema";
    assert_eq!(
        judge(&|d| d["metadata"]["name"] = "x".into()),
        [
            "metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group (crontabs.stable.example.com)"
        ]
    );
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    let change = |path: &'static str, value: Value| {
        move |d: &mut Value| *d.pointer_mut(&format!("{spec}{path}")).expect(path) = value.clone()
    };
    assert_eq!(
        judge(&change("/properties/cronSpec", json!({}))),
        [format!(
            "{schema}.properties[spec].properties[cronSpec].type: Required value: must not be empty for specified object fields"
        )]
    );
    assert_eq!(
        judge(&change("/properties/replicas/default", json!("x"))).len(),
        1,
        "a default has to be valid"
    );
    let broken = judge(&change("/x-kubernetes-validations/0/rule", json!("self.replicas <")));
    assert!(broken.len() == 1 && broken[0].contains("compilation failed"), "{broken:?}");
}

#[test]
fn rows_print_the_columns_of_their_definition() {
    let kind = row_of(cron());
    let object = object(json!({ "cronSpec": "* *" }));
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    let table = crate::table::table(kind, &[&object], now, crate::table::IncludeObject::None, json!({}));
    assert_eq!(table["columnDefinitions"][1]["name"], "Spec");
    assert_eq!(table["rows"][0]["cells"], json!(["a", "* *"]));
}

#[test]
fn fields_of_custom_kinds_have_owners_down_to_the_items_of_keyed_lists() {
    let kind = row_of(cron());
    let apply = |live: Option<&Value>, spec: Value, manager: &str| {
        crate::patch::apply(kind, live, &object(spec), manager, false, None, "2026-01-01T00:00:00Z")
    };
    let first = apply(None, json!({ "cronSpec": "*", "ports": [{ "name": "a", "port": 1 }] }), "one")
        .expect("applied");
    let second =
        apply(Some(&first), json!({ "ports": [{ "name": "b", "port": 2 }] }), "two").expect("applied");
    assert_eq!(second["spec"]["ports"].as_array().map(Vec::len), Some(2));
    let refused =
        apply(Some(&second), json!({ "ports": [{ "name": "a", "port": 3 }] }), "two").expect_err("conflict");
    assert!(refused.to_string().contains(".spec.ports[name=\"a\"].port"), "{refused}");
}

#[test]
fn versions_are_ordered_as_documented() {
    let mut versions = ["v10beta3", "foo1", "v11alpha2", "v2", "v10", "v3beta1", "v11beta2", "foo10"];
    versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
    assert_eq!(versions[..6], ["v10", "v2", "v11beta2", "v10beta3", "v3beta1", "v11alpha2"]);
}
