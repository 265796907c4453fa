//! A kustomization on the whole node: rendered, followed beside its directory, and what should be written otherwise told.

use std::fs;

use super::git::shows;
use super::node::{Node, PATIENCE, same, until};

#[test]
fn a_kustomization_is_followed_with_its_base_and_check_says_the_same() {
    let mut node = Node::new();
    let (base, over) = (node.path("base"), node.path("over"));
    for dir in [&base, &over] {
        fs::create_dir_all(dir).unwrap();
    }
    let base_file = "resources: [a.yaml]\n";
    fs::write(base.join("kustomization.yaml"), base_file).unwrap();
    let manifest = |value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  value: \"{value}\"\n")
    };
    fs::write(base.join("a.yaml"), manifest("1")).unwrap();
    fs::write(over.join("kustomization.yaml"), "bases: [../base]\nnamePrefix: p-\n").unwrap();
    node.configure(&format!("[[application]]\nname = \"over\"\ndir = {over:?}\n"));
    node.up();
    shows(&node, "p-a", "1");
    fs::write(base.join("a.yaml"), manifest("2")).unwrap();
    shows(&node, "p-a", "2");
    until("the old spelling is told", PATIENCE, || {
        let status = node.application("over");
        same(status["advice"][0]["message"].as_str(), Some("bases is an old spelling"))
    });
    // Broken, it holds what is live; check tells the same line without the node.
    fs::write(base.join("kustomization.yaml"), "resources: [a.yaml, nope.yaml]\n").unwrap();
    until("the missing file is told", PATIENCE, || {
        let status = node.application("over");
        same(status["defects"][0]["line"].as_u64(), Some(1))
    });
    let said = node.holdfast(&["check", over.to_str().unwrap()]);
    assert!(said.code == 1 && said.all().contains("kustomization.yaml:1"), "{}", said.all());
    assert!(node.find("configmap", "p-a").is_some());
}
