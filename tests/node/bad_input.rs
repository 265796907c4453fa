//! Bad input gets a message that names the thing, the place and the way out; the rest goes on.

use super::node::{Node, PATIENCE, same, until};

const GOOD: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\ndata: {value: \"1\"}\n";

/// One bad file beside a good one: what is told of it, and that the good one, and what was live, stay.
fn check(file: &str, bad: &str, words: &[&str]) {
    let node = Node::with(&[("good.yaml", GOOD), ("live.yaml", &GOOD.replace("good", "live"))]);
    node.save(file, bad);
    until(&format!("{words:?} is told"), PATIENCE, || {
        let told = node.ok_or_not(&["status"]);
        let missing: Vec<&&str> = words.iter().filter(|word| !told.contains(**word)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} is missing in: {told}")) }
    });
    let (_, page) = super::node::get((std::net::Ipv4Addr::LOCALHOST, node.web), "/").unwrap();
    let plain =
        page.replace("&quot;", "\"").replace("&#34;", "\"").replace("&#39;", "'").replace("&#x27;", "'");
    for word in words {
        assert!(plain.contains(word), "{word:?} is on the page: {plain}");
    }
    // The terminal too: each person looks at one of them.
    until("the terminal tells of it", 10, || {
        let log = node.log();
        if words.iter().skip(1).chain(words.first()).any(|word| log.contains(word)) {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert_ne!(node.holdfast(&["status", "--wait", "1"]).code, 0, "not everything is in sync");
    // The rest keeps converging.
    node.edit("good.yaml", "\"1\"", "\"2\"");
    until("the good file is followed", PATIENCE, || {
        same(node.object("configmap", "good")["data"]["value"].as_str(), Some("2"))
    });
    assert!(node.find("configmap", "live").is_some(), "nothing live was pruned");
    std::fs::remove_file(node.manifests().join(file)).unwrap();
    node.good();
}

#[test]
fn a_file_that_is_no_yaml_is_named_with_its_line() {
    check(
        "bad.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: bad\n data: [}\n",
        &["bad.yaml:5"],
    );
}

#[test]
fn a_live_file_that_becomes_no_yaml_prunes_nothing() {
    check("live.yaml", "kind: [unclosed\n", &["live.yaml:"]);
}

#[test]
fn an_unknown_kind_is_named_and_a_like_one_proposed() {
    check(
        "bad.yaml",
        "# first line\napiVersion: apps/v1\nkind: Deploymint\nmetadata: {name: bad}\n",
        &["bad.yaml:", "Deploymint", "Deployment"],
    );
}

#[test]
fn a_kind_kubernetes_has_but_not_this_node_is_refused_by_name() {
    check(
        "bad.yaml",
        "apiVersion: storagemigration.k8s.io/v1beta1\nkind: StorageVersionMigration\nmetadata: {name: bad}\nspec: {resource: {resource: pods}}\n",
        &["bad.yaml:", "StorageVersionMigration"],
    );
}

#[test]
fn an_unknown_field_is_named_with_its_own_line() {
    check(
        "bad.yaml",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: bad\nspec:\n  replica: 3\n  selector: {matchLabels: {a: b}}\n  \
         template:\n    metadata: {labels: {a: b}}\n    spec:\n      containers: [{name: a, image: 'kubia:1'}]\n",
        &["bad.yaml:6", "replica", "replicas"],
    );
}

#[test]
fn a_wrong_type_is_named_with_its_own_line() {
    check(
        "bad.yaml",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: bad\nspec:\n  replicas: many\n  selector: {matchLabels: {a: b}}\n  \
         template:\n    metadata: {labels: {a: b}}\n    spec:\n      containers: [{name: a, image: 'kubia:1'}]\n",
        &["bad.yaml:6", "spec.replicas", "integer"],
    );
}

#[test]
fn a_name_taken_twice_is_told_with_both_places() {
    let again = GOOD.replace("good", "live").replace("\"1\"", "\"other\"");
    check("twice.yaml", &again, &["twice.yaml:", "live.yaml:", "live"]);
}

#[test]
fn an_object_without_a_name_is_told_with_its_place() {
    check(
        "bad.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  labels: {a: b}\n",
        &["bad.yaml:", "metadata.name"],
    );
}

#[test]
fn what_only_the_api_refuses_is_told_with_its_place() {
    check(
        "bad.yaml",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: bad\nspec:\n  ports: [{port: 70000}]\n",
        &["bad.yaml:", "spec.ports[0].port", "70000"],
    );
}

#[test]
fn an_image_that_cannot_be_had_is_named_with_the_way_out() {
    check(
        "bad.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec:\n  containers: [{name: a, image: '127.0.0.1:1/none:1'}]\n",
        &["bad.yaml:", "127.0.0.1:1/none:1"],
    );
}

#[test]
fn a_node_port_in_use_is_named() {
    let node = Node::new();
    let port = node.node_port;
    let taken = std::net::TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    drop(taken);
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  type: NodePort\n  ports: [{{port: 80, nodePort: {port}}}]\n"
        )
    };
    let mut node = node;
    node.save("a.yaml", &service("a"));
    node.up();
    node.good();
    node.save("b.yaml", &service("b"));
    until("the second is refused with the port's number", PATIENCE, || {
        let told = node.ok_or_not(&["status"]);
        let all = told.contains("b.yaml:")
            && told.contains(&port.to_string())
            && told.contains("already allocated");
        if all { Ok(()) } else { Err(told) }
    });
}
