//! `holdfast down` leaves the machine as it was.

use std::fs;

use nix::sys::signal::Signal;

use super::machine;
use super::node::{Node, PATIENCE, same, until};

fn everything_goes(running: bool) {
    let mut node = Node::demo();
    let instance = machine::instance(&node);
    let while_up = machine::traces(&instance, &node.data());
    for kind in ["process", "cgroup", "link", "route", "packet"] {
        assert!(while_up.iter().any(|trace| trace.starts_with(kind)), "a {kind} is seen: {while_up:#?}");
    }
    assert!(
        !while_up.iter().any(|trace| trace.starts_with("mount")),
        "mounts are the containers' own: {while_up:#?}"
    );
    let outside: Vec<_> =
        fs::read_dir(node.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    if !running {
        node.end(Signal::SIGINT);
    }
    let said = node.holdfast(&["down"]);
    assert_eq!(said.code, 0, "{}", said.all());
    if running {
        assert_eq!(node.ended(), 0, "{}", node.log());
    }
    // Network namespaces and their links are freed by the kernel a moment later.
    until("nothing is left", 20, || {
        let left = machine::traces(&instance, &node.data());
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    });
    let after: Vec<_> =
        fs::read_dir(node.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let beside: Vec<_> = after.iter().filter(|name| !outside.contains(name)).collect();
    assert!(beside.is_empty(), "nothing is written beside the data directory: {beside:?}");
    // Taken away twice is taken away; and a new start is a start.
    assert_eq!(node.holdfast(&["down"]).code, 0);
    node.up();
    node.good();
    node.ready("app=kubia", 3);
}

#[test]
fn down_takes_everything_away_after_the_daemon_has_ended() {
    everything_goes(false);
}

#[test]
fn down_ends_a_running_daemon_and_takes_everything_away() {
    everything_goes(true);
}

#[test]
fn down_finds_what_a_killed_daemon_left() {
    let mut node = Node::demo();
    let instance = machine::instance(&node);
    node.end(Signal::SIGKILL);
    assert_eq!(node.holdfast(&["down"]).code, 0);
    until("nothing is left", 20, || {
        let left = machine::traces(&instance, &node.data());
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    });
}

#[test]
fn down_leaves_another_node_alone() {
    let (one, two) = (Node::demo(), Node::demo());
    let instance = machine::instance(&two);
    // The Job's pod has ended; its sandbox goes a moment later.
    let before = until("only the replicas have a sandbox", PATIENCE, || {
        let traces = machine::traces(&instance, &two.data());
        let shims = traces.iter().filter(|trace| trace.contains("holdfast-shim")).count();
        if shims == 3 { Ok(traces) } else { Err(format!("{traces:#?}")) }
    });
    drop(one);
    until("the other has what it had", PATIENCE, || {
        same(machine::traces(&instance, &two.data()), before.clone())
    });
    two.good();
}
