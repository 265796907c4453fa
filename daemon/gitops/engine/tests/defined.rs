//! Objects of kinds that the files themselves define.

use super::*;

const DEFINITION: &str = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: widgets.example.org}\nspec:\n  \
    group: example.org\n  scope: Namespaced\n  names: {plural: widgets, singular: widget, kind: Widget, listKind: WidgetList}\n  versions:\n  - name: v1\n    \
    served: true\n    storage: true\n    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer}}}}}}\n";

fn widget(size: u8) -> String {
    format!("apiVersion: example.org/v1\nkind: Widget\nmetadata: {{name: w}}\nspec: {{size: {size}}}\n")
}

fn widgets(node: &Node) -> Api<DynamicObject> {
    let resource = kube::api::ApiResource {
        group: "example.org".to_owned(),
        version: "v1".to_owned(),
        api_version: "example.org/v1".to_owned(),
        kind: "Widget".to_owned(),
        plural: "widgets".to_owned(),
    };
    Api::namespaced_with(node.door.clone(), "default", &resource)
}

#[tokio::test]
async fn objects_follow_the_definition_of_their_kind_and_go_with_their_files() {
    let node = Node::with(&[("a.yaml", &widget(1)), ("b.yaml", DEFINITION)], no_faults(), json!({})).await;
    node.until_good(&["widgets.example.org", "w"]).await;
    let size = async || widgets(&node).get("w").await.ok()?.data["spec"]["size"].as_u64();
    assert_eq!(size().await, Some(1));
    node.write("a.yaml", &widget(2));
    node.until_live("the change", async || size().await.filter(|size| *size == 2)).await;
    // Drift of it heals like that of any other object.
    let patch = json!({"spec": {"size": 7}});
    widgets(&node).patch("w", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    node.until_live("the drift is healed", async || size().await.filter(|size| *size == 2)).await;
    node.remove("a.yaml");
    node.until_live("the object is pruned", async || size().await.is_none().then_some(())).await;
    node.until_good(&["widgets.example.org"]).await;
}

#[tokio::test]
async fn an_object_whose_kind_the_cluster_gets_later_is_made_then() {
    let node = Node::with(&[("a.yaml", &widget(1))], no_faults(), json!({})).await;
    node.until("the kind is not known", |status| !status.defects.is_empty()).await;
    let definition: Value = serde_yaml::from_str(DEFINITION).unwrap();
    node.api("CustomResourceDefinition")
        .create(&kube::api::PostParams::default(), &serde_json::from_value(definition).unwrap())
        .await
        .unwrap();
    node.until_good(&["w"]).await;
}
