//! What anyone changes behind Git's back is put back at once.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::machine;
use super::node::{Node, PATIENCE, get, name, same, until};

#[test]
fn a_deleted_pod_is_replaced() {
    let node = Node::demo();
    let victim = name(&node.ready("app=kubia", 3)[0]);
    node.kubectl(&["delete", "pod", &victim, "--wait=false"]);
    until("another pod has its place", PATIENCE, || {
        let names: Vec<String> = node.pods("app=kubia").iter().map(name).collect();
        if names.len() == 3 && !names.contains(&victim) { Ok(()) } else { Err(names.join(" ")) }
    });
    node.ready("app=kubia", 3);
    node.good();
}

#[test]
fn a_scaled_deployment_is_scaled_back() {
    let node = Node::demo();
    node.kubectl(&["scale", "deployment/kubia", "--replicas=1"]);
    until("the file's number is back", PATIENCE, || {
        let replicas = node.object("deployment", "kubia")["spec"]["replicas"].as_u64();
        same(replicas, Some(3))
    });
    node.ready("app=kubia", 3);
    node.good();
}

#[test]
fn an_edited_field_is_put_back_and_a_foreign_one_left() {
    let node = Node::demo();
    let edit = r#"{"spec":{"template":{"spec":{"containers":[{"name":"kubia","image":"kubia:none"}]}}}}"#;
    node.kubectl(&["patch", "deployment", "kubia", "-p", edit]);
    node.kubectl(&["annotate", "deployment", "kubia", "example.org/note=mine"]);
    until("the file's image is back", PATIENCE, || {
        let found = node.object("deployment", "kubia");
        same(found["spec"]["template"]["spec"]["containers"][0]["image"].as_str(), Some("kubia:1"))
    });
    node.ready("app=kubia", 3);
    node.good();
    let found = node.object("deployment", "kubia");
    assert_eq!(found["metadata"]["annotations"]["example.org/note"], "mine", "{found:#}");
}

#[test]
fn a_person_who_edits_with_an_editor_is_corrected() {
    let node = Node::demo();
    let mut command = node.kubectl_command(&["edit", "configmap", "kubia"]);
    let edited = command.env("KUBE_EDITOR", "sed -i s/Hello/Goodbye/").output().unwrap();
    assert!(edited.status.success(), "{}", String::from_utf8_lossy(&edited.stderr));
    assert!(String::from_utf8_lossy(&edited.stdout).contains("edited"));
    until("the file's value is back", PATIENCE, || {
        let found = node.object("configmap", "kubia");
        same(found["data"]["greeting"].as_str(), Some("Hello from a ConfigMap"))
    });
}

#[test]
fn a_killed_process_is_started_again_in_its_pod() {
    let node = Node::demo();
    let pod = node.ready("app=kubia", 3).remove(0);
    let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
    let process: i32 = machine::processes_of(&uid)
        .into_iter()
        .find(|pid| machine::proc_file(*pid, "cmdline").contains("kubia") && !machine::is_shim(*pid))
        .unwrap_or_else(|| panic!("{} runs kubia", name(&pod)));
    kill(Pid::from_raw(process), Signal::SIGKILL).unwrap();
    until("the container was started again", PATIENCE, || {
        let status = node.object("pod", &name(&pod))["status"]["containerStatuses"][0].clone();
        let again = status["restartCount"] == 1 && status["ready"] == true;
        if again { Ok(()) } else { Err(status.to_string()) }
    });
    let after = node.object("pod", &name(&pod));
    assert_eq!(after["metadata"]["uid"], uid.as_str());
    let last = &after["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&137.into(), &"Error".into()), "{last}");
    node.good();
}

#[test]
fn a_deleted_service_is_back_and_answers() {
    let node = Node::demo();
    let before = node.object("service", "kubia")["metadata"]["uid"].clone();
    node.kubectl(&["delete", "service", "kubia"]);
    let after = until("the service is back", PATIENCE, || {
        let found = node.find("service", "kubia").ok_or("there is none")?;
        if found["metadata"]["uid"] == before { Err("it is the old one".to_owned()) } else { Ok(found) }
    });
    assert_eq!(after["spec"]["ports"][0]["nodePort"], node.node_port);
    until("it answers", PATIENCE, || {
        get((std::net::Ipv4Addr::LOCALHOST, node.node_port), "/").and_then(|(code, _)| same(code, 200))
    });
    node.good();
}

#[test]
fn a_deleted_deployment_is_made_anew() {
    let node = Node::demo();
    let before: Vec<String> =
        node.ready("app=kubia", 3).iter().map(|pod| pod["metadata"]["uid"].to_string()).collect();
    node.kubectl(&["delete", "deployment", "kubia"]);
    until("three new pods are ready", PATIENCE, || {
        let pods = node.list("pods", "app=kubia");
        let fresh = pods.iter().filter(|pod| !before.contains(&pod["metadata"]["uid"].to_string()));
        let ready = fresh.filter(|pod| super::node::is_ready(pod)).count();
        if ready == 3 && pods.len() == 3 {
            return Ok(());
        }
        Err(pods.iter().map(super::node::brief).collect::<Vec<_>>().join(", "))
    });
    node.good();
}

#[test]
fn diff_tells_the_change_and_changes_nothing() {
    let node = Node::new();
    let manifests = node.manifests();
    node.configure(&format!(
        "[[application]]\nname = \"demo\"\ndir = {manifests:?}\nallow_empty = true\nsuspend = true\n"
    ));
    node.save("a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {value: \"new\"}\n");
    let mut node = node;
    node.up();
    let said = until("diff knows the file", PATIENCE, || {
        let said = node.holdfast(&["diff"]);
        if said.all().contains("a.yaml") { Ok(said) } else { Err(said.all()) }
    });
    assert!(said.all().contains("ConfigMap") && said.all().contains("default/a"), "{}", said.all());
    assert!(node.find("configmap", "a").is_none(), "a suspended application changes nothing");
    let waited = node.holdfast(&["status", "--wait", "1"]);
    assert_ne!(waited.code, 0, "{}", waited.all());
}
