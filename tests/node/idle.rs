//! When nothing changes, nothing is done.

use std::time::Duration;

use super::machine;
use super::node::{Node, stays};

fn written(pid: i32) -> u64 {
    let io = machine::proc_file(pid, "io");
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.unwrap_or_else(|| panic!("/proc/{pid}/io: {io}")).parse().unwrap()
}

#[test]
fn an_idle_node_writes_nothing() {
    let node = Node::demo();
    node.ready("app=kubia", 3);
    node.kubectl(&["wait", "--for=condition=complete", "--timeout=60s", "job/kubia-hello"]);
    node.good();
    // The last status of the rollout may still be on its way to the disk.
    let mut last = written(node.pid());
    super::node::until("the node comes to rest", 30, || {
        std::thread::sleep(Duration::from_secs(2));
        let now = written(node.pid());
        let rests = now == last;
        let told = format!("{} bytes in two seconds", now - last);
        last = now;
        if rests { Ok(()) } else { Err(told) }
    });
    let shims = machine::shims(&node);
    assert!(shims.len() >= 3, "each running pod has one");
    let of_shims = || shims.iter().map(|pid| written(*pid)).sum::<u64>();
    let (files, by_shims) = (machine::files(&node.data()), of_shims());
    stays("an idle node writes nothing", Duration::from_secs(6), || {
        let now = written(node.pid());
        if now == last { Ok(()) } else { Err(format!("{} bytes were written", now - last)) }
    });
    assert_eq!(of_shims(), by_shims, "nor do the shims");
    let after = machine::files(&node.data());
    let changed: Vec<_> = after.difference(&files).collect();
    assert!(changed.is_empty(), "no file changes: {changed:?}");
}
