//! What a person asks before a change, decides about it, and asks when it went wrong.

use super::node::{Node, PATIENCE, same, until};

const GOOD: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\ndata: {value: \"1\"}\n";

fn job(name: &str, annotation: &str, args: &str) -> String {
    format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: {name}\n  annotations: {{{annotation}}}\nspec:\n  backoffLimit: 0\n  template:\n    spec:\n      restartPolicy: Never\n      containers: [{{name: main, image: \"kubia:1\", args: {args}}}]\n"
    )
}

fn told(node: &Node, args: &[&str], words: &[&str]) {
    until(&format!("{args:?} tells {words:?}"), PATIENCE, || {
        let all = node.holdfast(args).all();
        if words.iter().all(|word| all.contains(word)) { Ok(()) } else { Err(all) }
    });
}

#[test]
fn a_hook_that_fails_holds_the_rest_and_its_last_words_are_told() {
    let node = Node::with(&[("good.yaml", GOOD)]);
    node.good();
    node.edit("good.yaml", "\"1\"", "\"2\"");
    node.save("hook.yaml", &job("migrate", "holdfast.dev/hook: pre-sync", "[\"--nonsense\"]"));
    told(&node, &["status"], &["pre-sync hook Job default/migrate failed"]);
    told(
        &node,
        &["explain", "job/migrate"],
        &["container main", "exit code 2", "usage: kubia", "hook.yaml:1"],
    );
    // What another test of the hook saw before is what is held.
    node.save("hook.yaml", &job("migrate", "holdfast.dev/hook: pre-sync", "[\"job\", \"1\"]"));
    until("the rest follows", PATIENCE, || {
        same(node.object("configmap", "good")["data"]["value"].as_str(), Some("2"))
    });
    node.good();
    assert!(node.ok(&["history"]).contains("pre-sync"), "{}", node.ok(&["history"]));
}

#[test]
fn a_plan_names_the_pods_and_a_rollback_of_a_directory_brings_them_back() {
    let node = Node::demo();
    node.ready("app=kubia", 3);
    let saved = node.path("state.json");
    node.ok(&["plan", "--save", saved.to_str().unwrap()]);
    let before = node.object("deployment", "kubia")["spec"]["template"].clone();
    node.edit("deployment.yaml", "replicas: 3", "replicas: 2");
    until("two replicas", PATIENCE, || {
        same(node.object("deployment", "kubia")["spec"]["replicas"].as_u64(), Some(2))
    });
    node.good();
    let plan = node.holdfast(&["plan", "--against", saved.to_str().unwrap()]).all();
    assert!(plan.contains("spec.replicas: 3 → 2") && plan.contains("1 pod fewer"), "{plan}");
    node.ok(&["rollback", "demo"]);
    until("three again", PATIENCE, || {
        same(node.object("deployment", "kubia")["spec"]["replicas"].as_u64(), Some(3))
    });
    node.good();
    assert_eq!(node.object("deployment", "kubia")["spec"]["template"], before);
    told(&node, &["history"], &["(rollback)"]);
    node.ok(&["resume", "demo"]);
    until("two once more", PATIENCE, || {
        same(node.object("deployment", "kubia")["spec"]["replicas"].as_u64(), Some(2))
    });
}

#[test]
fn a_namespace_is_deleted_after_a_word_and_what_was_pruned_comes_back() {
    let shop = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    let node = Node::with(&[
        ("good.yaml", GOOD),
        ("other.yaml", &GOOD.replace("good", "other")),
        ("shop.yaml", shop),
    ]);
    node.good();
    std::fs::remove_file(node.manifests().join("shop.yaml")).unwrap();
    std::fs::remove_file(node.manifests().join("other.yaml")).unwrap();
    told(&node, &["status"], &["holdfast confirm demo"]);
    until("the small one is pruned", PATIENCE, || same(node.find("configmap", "other").is_some(), false));
    assert!(node.try_kubectl(&["get", "namespace", "shop"]).code == 0, "it waits");
    node.ok(&["confirm", "demo"]);
    until("the namespace goes", PATIENCE, || {
        let said = node.try_kubectl(&["get", "namespace", "shop"]);
        if said.all().contains("not found") { Ok(()) } else { Err(said.all()) }
    });
    told(&node, &["undo", "demo", "--list"], &["ConfigMap default/other", "Namespace shop"]);
    node.ok(&["undo", "demo", "configmap/other"]);
    assert!(node.find("configmap", "other").is_some());
    node.good();
}
