//! Saving a file converges the machine, however the editor saves.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::node::{Node, PATIENCE, get, name, same, stays, until};

fn config_map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  value: \"{value}\"\n")
}

fn value(node: &Node, name: &str) -> Result<String, String> {
    let found = node.find("configmap", name).ok_or_else(|| format!("there is no ConfigMap {name}"))?;
    Ok(found["data"]["value"].as_str().unwrap_or_default().to_owned())
}

fn shows(node: &Node, name: &str, wanted: &str) {
    until(&format!("ConfigMap {name} is {wanted}"), PATIENCE, || same(value(node, name)?.as_str(), wanted));
}

fn generation(node: &Node, name: &str) -> String {
    node.object("configmap", name)["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[test]
fn replicas_follow_the_file_and_the_others_stay() {
    let node = Node::demo();
    let before: Vec<String> = node.ready("app=kubia", 3).iter().map(name).collect();
    node.edit("deployment.yaml", "replicas: 3", "replicas: 5");
    let after: Vec<String> = node.ready("app=kubia", 5).iter().map(name).collect();
    assert!(before.iter().all(|pod| after.contains(pod)), "{before:?} are among {after:?}");
    node.edit("deployment.yaml", "replicas: 5", "replicas: 2");
    node.ready("app=kubia", 2);
    node.good();
}

#[test]
fn a_changed_value_is_seen_in_running_pods_without_a_restart() {
    let node = Node::demo();
    let before: Vec<String> = node.ready("app=kubia", 3).iter().map(name).collect();
    node.edit("configmap.yaml", "Hello from a ConfigMap", "Good evening");
    for pod in node.pods("app=kubia") {
        until(&format!("{} shows the new value", name(&pod)), PATIENCE, || {
            let (_, body) = get((super::node::pod_ip(&pod), 8080), "/")?;
            if body.contains("Good evening") { Ok(()) } else { Err(body) }
        });
    }
    let pods = node.ready("app=kubia", 3);
    assert_eq!(pods.iter().map(name).collect::<Vec<_>>(), before);
    assert!(pods.iter().all(|pod| pod["status"]["containerStatuses"][0]["restartCount"] == 0), "{pods:?}");
}

#[test]
fn an_added_file_is_applied_and_a_deleted_one_pruned() {
    let node = Node::with(&[("a.yaml", &config_map("a", "1"))]);
    node.save("more/b.yaml", &config_map("b", "2"));
    shows(&node, "b", "2");
    node.save("c.yml", &config_map("c", "3"));
    shows(&node, "c", "3");
    fs::remove_file(node.manifests().join("more/b.yaml")).unwrap();
    until("b is pruned", PATIENCE, || node.find("configmap", "b").map_or(Ok(()), |b| Err(b.to_string())));
    fs::rename(node.manifests().join("c.yml"), node.manifests().join("d.yaml")).unwrap();
    until("d.yaml is where c comes from", PATIENCE, || {
        let objects = node.application("demo")["objects"].to_string();
        if objects.contains("d.yaml") && !objects.contains("c.yml") { Ok(()) } else { Err(objects) }
    });
    assert_eq!(value(&node, "c").unwrap(), "3");
    assert_eq!(value(&node, "a").unwrap(), "1");
}

#[test]
fn an_object_a_person_made_is_never_pruned() {
    let node = Node::with(&[("a.yaml", &config_map("a", "1"))]);
    node.kubectl(&["create", "configmap", "mine", "--from-literal=value=kept"]);
    node.save("a.yaml", &config_map("b", "1"));
    until("a is pruned", PATIENCE, || node.find("configmap", "a").map_or(Ok(()), |a| Err(a.to_string())));
    shows(&node, "b", "1");
    assert_eq!(value(&node, "mine").unwrap(), "kept");
}

#[test]
fn every_way_of_saving_ends_in_one_convergence() {
    let node = Node::with(&[("a.yaml", &config_map("a", "0"))]);
    let path = node.manifests().join("a.yaml");
    // In place, as echo does.
    fs::write(&path, config_map("a", "in place")).unwrap();
    shows(&node, "a", "in place");
    // As vim does: the old file is moved away, a new one written, the old one deleted.
    let backup = node.manifests().join("a.yaml~");
    fs::rename(&path, &backup).unwrap();
    fs::write(&path, config_map("a", "as vim")).unwrap();
    fs::remove_file(&backup).unwrap();
    shows(&node, "a", "as vim");
    // Renamed over it, as most do.
    node.save("a.yaml", &config_map("a", "renamed"));
    shows(&node, "a", "renamed");
    let uid = node.object("configmap", "a")["metadata"]["uid"].to_string();
    node.good();
    let written = generation(&node, "a");
    // The same content saved again changes nothing.
    node.save("a.yaml", &config_map("a", "renamed"));
    stays("nothing is written", Duration::from_millis(1500), || same(&generation(&node, "a"), &written));
    assert_eq!(node.object("configmap", "a")["metadata"]["uid"].to_string(), uid, "it was never deleted");
}

#[test]
fn a_half_written_file_changes_nothing_until_it_is_whole() {
    let node = Node::with(&[("a.yaml", &config_map("a", "1")), ("b.yaml", &config_map("b", "1"))]);
    let uid = node.object("configmap", "a")["metadata"]["uid"].to_string();
    let path = node.manifests().join("a.yaml");
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata: {value: \"two").unwrap();
    file.sync_all().unwrap();
    until("the defect is told", PATIENCE, || {
        let defects = node.application("demo")["defects"].to_string();
        if defects.contains("a.yaml") { Ok(()) } else { Err(defects) }
    });
    assert_eq!(value(&node, "a").unwrap(), "1");
    node.save("b.yaml", &config_map("b", "2"));
    shows(&node, "b", "2");
    file.write_all(b"\"}\n").unwrap();
    drop(file);
    shows(&node, "a", "two");
    node.good();
    assert_eq!(node.object("configmap", "a")["metadata"]["uid"].to_string(), uid, "it was never deleted");
}

#[test]
fn a_burst_of_a_hundred_saves_ends_at_the_last() {
    let node = Node::with(&[("a.yaml", &config_map("a", "0"))]);
    let before: u64 = generation(&node, "a").parse().unwrap();
    for at in 1..=100 {
        node.save("a.yaml", &config_map("a", &at.to_string()));
    }
    shows(&node, "a", "100");
    node.good();
    let written = generation(&node, "a");
    stays("it rests", Duration::from_millis(1500), || same(&generation(&node, "a"), &written));
    let history = node.application("demo")["history"].as_array().unwrap().len();
    let after: u64 = written.parse().unwrap();
    assert!(history < 50 && after - before < 150, "{history} revisions, from {before} to {after}");
}

#[test]
fn an_added_deployment_answers_through_an_added_service() {
    let node = Node::empty();
    let port = node.node_port;
    for (name, text) in super::node::demo_files(port) {
        node.save(&name, &text);
    }
    until("the service answers", PATIENCE, || {
        get((Ipv4Addr::LOCALHOST, port), "/").and_then(|(code, _)| same(code, 200))
    });
    node.good();
    for file in fs::read_dir(node.manifests()).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    until("everything is pruned", PATIENCE, || {
        let left = node.kubectl(&["get", "deployment,replicaset,job,pod,configmap", "-o", "name"]);
        // Kubernetes puts one ConfigMap into each namespace by itself.
        let left: Vec<&str> = left.lines().filter(|line| !line.contains("kube-root-ca")).collect();
        if left.is_empty() { Ok(()) } else { Err(left.join(" ")) }
    });
}
