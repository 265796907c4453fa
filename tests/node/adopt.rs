//! The daemon may die; containers live on, and the next start finds nothing to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::demo::node_address;
use super::machine;
use super::node::{Node, PATIENCE, get, name, stays, until};

/// The processes of each of the demo's running pods.
fn processes(node: &Node) -> BTreeMap<String, BTreeSet<String>> {
    let pods = node.pods("app=kubia");
    let of = |pod: &Value| machine::containers_of(pod["metadata"]["uid"].as_str().unwrap());
    pods.iter().map(|pod| (name(pod), of(pod))).collect()
}

/// What must not change: every object but leases and the node's own heartbeat, by its version.
fn versions(node: &Node) -> BTreeMap<String, String> {
    let kinds = "deployments,replicasets,jobs,pods,services,endpointslices,configmaps,events";
    let text = node.kubectl(&["get", kinds, "-A", "-o", "json"]);
    let list: Value = serde_json::from_str(&text).unwrap();
    let line = |object: &Value| {
        let metadata = &object["metadata"];
        let id = format!("{} {}/{}", object["kind"], metadata["namespace"], metadata["name"]);
        (id, metadata["resourceVersion"].as_str().unwrap().to_owned())
    };
    list["items"].as_array().unwrap().iter().map(line).collect()
}

fn difference(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> String {
    let changed = after.iter().filter(|(id, version)| before.get(*id) != Some(version));
    let gone = before.keys().filter(|id| !after.contains_key(*id)).map(|id| format!("{id} is gone"));
    changed.map(|(id, version)| format!("{id} at {version}")).chain(gone).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_killed_daemon_leaves_everything_running_and_the_next_adopts_it() {
    let mut node = Node::demo();
    let before = processes(&node);
    assert!(before.len() == 3 && before.values().all(|pids| !pids.is_empty()), "{before:?}");
    let versions_before = versions(&node);
    assert_eq!(node.end(Signal::SIGKILL), 137);
    // Without the daemon: requests to the machine itself, still spread by the kernel.
    for address in [Ipv4Addr::LOCALHOST, node_address()] {
        assert_eq!(get((address, node.node_port), "/").unwrap().0, 200);
    }
    node.up();
    node.good();
    assert_eq!(processes(&node), before, "the same processes run");
    stays("nothing is written for what was already so", Duration::from_secs(3), || {
        let told = difference(&versions_before, &versions(&node));
        if told.is_empty() { Ok(()) } else { Err(told) }
    });
    let pods = node.ready("app=kubia", 3);
    assert!(pods.iter().all(|pod| pod["status"]["containerStatuses"][0]["restartCount"] == 0), "{pods:?}");
    assert_eq!(processes(&node), before);
    // And what was adopted is still governed.
    node.edit("deployment.yaml", "replicas: 3", "replicas: 1");
    node.ready("app=kubia", 1);
}

#[test]
fn a_daemon_killed_ten_times_in_a_row_loses_nothing() {
    let mut node = Node::demo();
    let before = processes(&node);
    for round in 0_u64..10 {
        node.end(Signal::SIGKILL);
        if round % 2 == 0 {
            node.spawn();
            // Killed anywhere in its start: the moment is what differs between rounds, not what is waited for.
            std::thread::sleep(Duration::from_millis(7 * round));
        } else {
            node.up();
        }
    }
    node.end(Signal::SIGKILL);
    node.up();
    node.good();
    assert_eq!(processes(&node), before);
}

#[test]
fn what_happened_while_the_daemon_was_away_is_made_good() {
    let mut node = Node::demo();
    node.end(Signal::SIGKILL);
    node.edit("deployment.yaml", "replicas: 3", "replicas: 4");
    let victim = machine::shims(&node)
        .into_iter()
        .flat_map(machine::children)
        .find(|pid| machine::proc_file(*pid, "cmdline").contains("kubia"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim.unwrap()), Signal::SIGKILL).unwrap();
    node.up();
    let pods = node.ready("app=kubia", 4);
    let restarts: Vec<&Value> =
        pods.iter().map(|pod| &pod["status"]["containerStatuses"][0]["restartCount"]).collect();
    assert_eq!(restarts.iter().filter(|count| ***count == 1).count(), 1, "{restarts:?}");
    node.good();
}

#[test]
fn an_exit_code_is_kept_while_the_daemon_is_away() {
    let mut node = Node::new();
    let job = "apiVersion: v1\nkind: Pod\nmetadata: {name: brief}\nspec:\n  restartPolicy: Never\n  containers:\n  \
               - {name: brief, image: 'busybox:1', command: [sh, -c, 'while [ ! -e /data/go ]; do sleep 0.05; done; exit 7'],\n     \
               volumeMounts: [{name: data, mountPath: /data}]}\n  volumes: [{name: data, emptyDir: {}}]\n";
    node.up();
    node.load_busybox();
    node.save("brief.yaml", job);
    node.kubectl_wait_running("brief");
    let uid = node.object("pod", "brief")["metadata"]["uid"].as_str().unwrap().to_owned();
    let process = machine::processes_of(&uid).into_iter().find(|pid| !machine::is_shim(*pid)).unwrap();
    node.end(Signal::SIGKILL);
    std::fs::write(format!("/proc/{process}/root/data/go"), "").unwrap();
    until("the container ends", PATIENCE, || {
        let left = machine::containers_of(&uid);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    node.up();
    let ended = until("the exit code is told", PATIENCE, || {
        let status = node.object("pod", "brief")["status"].clone();
        if status["phase"] == "Failed" { Ok(status) } else { Err(status.to_string()) }
    });
    assert_eq!(ended["containerStatuses"][0]["state"]["terminated"]["exitCode"], 7, "{ended}");
}

#[test]
fn ctrl_c_says_what_it_leaves_running() {
    let mut node = Node::demo();
    let before = processes(&node);
    assert_eq!(node.end(Signal::SIGINT), 0, "{}", node.log());
    let log = node.log();
    let last: Vec<&str> = log.lines().rev().take(8).collect();
    let told = last.join("\n").to_lowercase();
    assert!(told.contains("running") && told.contains("holdfast down"), "{told}");
    let still: BTreeSet<String> = before.values().flatten().cloned().collect();
    for process in still {
        let pid = process.split('@').next().unwrap().parse().unwrap();
        assert_eq!(machine::birth(pid).as_ref(), Some(&process), "it runs on");
    }
    node.up();
    assert_eq!(processes(&node), before);
}
