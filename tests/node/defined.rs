//! Kinds that users define, and what depends on objects of them.

use super::node::{Node, PATIENCE, until};

const DEFINITION: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, listKind: WidgetList, shortNames: [wg]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, properties: {size: {type: integer, maximum: 9}}}}
";

fn widget(name: &str, size: u8) -> String {
    format!("apiVersion: example.org/v1\nkind: Widget\nmetadata: {{name: {name}}}\nspec: {{size: {size}}}\n")
}

/// A ConfigMap that a widget owns.
fn owned(node: &Node, name: &str, owner: &str) {
    let uid = node.kubectl(&["get", "widget", owner, "-o", "jsonpath={.metadata.uid}"]);
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n  ownerReferences:\n  - {{apiVersion: example.org/v1, \
         kind: Widget, name: {owner}, uid: {uid}, controller: true, blockOwnerDeletion: true}}\n"
    );
    node.kubectl_with(&["create", "-f", "-"], &text);
}

fn gone(node: &Node, kind: &str, name: &str) {
    until(&format!("{kind} {name} is gone"), PATIENCE, || {
        node.find(kind, name).map_or(Ok(()), |object| Err(object.to_string()))
    });
}

#[test]
fn a_definition_and_its_objects_come_and_go_with_their_files() {
    let node = Node::with(&[("a.yaml", &widget("a", 1)), ("z.yaml", DEFINITION)]);
    assert_eq!(node.object("widget", "a")["spec"]["size"], 1);
    node.edit("a.yaml", "size: 1", "size: 2");
    until("the edit is live", PATIENCE, || {
        let size = node.object("widgets.example.org", "a")["spec"]["size"].clone();
        if size == 2 { Ok(()) } else { Err(size.to_string()) }
    });
    node.kubectl(&["patch", "wg", "a", "--type=merge", "-p", "{\"spec\": {\"size\": 7}}"]);
    until("the drift is healed", PATIENCE, || {
        let size = node.object("widget", "a")["spec"]["size"].clone();
        if size == 2 { Ok(()) } else { Err(size.to_string()) }
    });
    // A value that the definition refuses is told, and the live object stays.
    node.edit("a.yaml", "size: 2", "size: 20");
    until("the refusal is told", PATIENCE, || {
        let status = node.ok_or_not(&["status"]);
        if status.contains("spec.size") { Ok(()) } else { Err(status) }
    });
    node.edit("a.yaml", "size: 20", "size: 3");
    node.good();
    std::fs::remove_file(node.manifests().join("a.yaml")).unwrap();
    gone(&node, "widget", "a");
    node.good();
}

#[test]
fn what_objects_of_defined_kinds_own_goes_with_them() {
    let node = Node::empty();
    node.kubectl_with(&["apply", "-f", "-"], DEFINITION);
    node.kubectl(&["wait", "--for=condition=Established", "crd/widgets.example.org", "--timeout=30s"]);
    for (name, cascade) in [("back", "background"), ("fore", "foreground"), ("orphan", "orphan")] {
        node.kubectl_with(&["create", "-f", "-"], &widget(name, 1));
        let dependent = format!("of-{name}");
        owned(&node, &dependent, name);
        node.kubectl(&["delete", "widget", name, &format!("--cascade={cascade}"), "--timeout=30s"]);
        if cascade == "orphan" {
            until("the orphan has no owner", PATIENCE, || {
                let owners = node.object("configmap", &dependent)["metadata"]["ownerReferences"].clone();
                if owners.is_null() { Ok(()) } else { Err(owners.to_string()) }
            });
        } else {
            gone(&node, "configmap", &dependent);
        }
    }
    // A namespace is emptied of them too.
    node.kubectl(&["create", "namespace", "away"]);
    node.kubectl_with(&["create", "-n", "away", "-f", "-"], &widget("b", 1));
    node.kubectl(&["delete", "namespace", "away", "--timeout=30s"]);
    // The definition takes its objects along, and comes back as a new one.
    node.kubectl_with(&["create", "-f", "-"], &widget("c", 1));
    node.kubectl(&["delete", "crd", "widgets.example.org", "--timeout=30s"]);
    assert_ne!(node.try_kubectl(&["get", "widgets"]).code, 0);
    node.kubectl_with(&["apply", "-f", "-"], DEFINITION);
    node.kubectl(&["wait", "--for=condition=Established", "crd/widgets.example.org", "--timeout=30s"]);
    node.kubectl_with(&["create", "-f", "-"], &widget("d", 1));
    owned(&node, "of-d", "d");
    node.kubectl(&["delete", "widget", "d"]);
    gone(&node, "configmap", "of-d");
}
