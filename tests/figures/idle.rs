//! What a node costs that has nothing to do: memory, processor, bytes written.

use std::fs;
use std::time::Duration;

use crate::Figure;
use crate::node::{Node, until};

/// The kernel counts a process' time in these.
const TICKS_PER_SECOND: f64 = 100.0;

fn proc_file(pid: i32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
}

/// The number after a key in a file of lines `Key:   12 kB`.
fn number(text: &str, key: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(f64::NAN)
}

fn written(pid: i32) -> f64 {
    number(&proc_file(pid, "io"), "write_bytes:")
}

fn processor_seconds(pid: i32) -> f64 {
    let stat = proc_file(pid, "stat");
    let rest: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let ticks = |at: usize| rest.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

/// The shims of a node: their command line holds its data directory.
fn shims(node: &Node) -> Vec<i32> {
    let data = node.data().display().to_string();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()));
    pids.filter(|pid| {
        proc_file(*pid, "comm").starts_with("holdfast-shim") && proc_file(*pid, "cmdline").contains(&data)
    })
    .collect()
}

pub(crate) fn measure() -> Vec<Figure> {
    let span = std::env::var("HOLDFAST_IDLE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let span = Duration::from_secs(span);
    let node = Node::demo();
    let pid = node.pid();
    // What the start brought is on the disk when a second passes without a write.
    let mut last = written(pid);
    until("the node comes to rest", 60, || {
        std::thread::sleep(Duration::from_secs(1));
        let before = std::mem::replace(&mut last, written(pid));
        if before.total_cmp(&last).is_eq() {
            Ok(())
        } else {
            Err(format!("{} bytes in a second", last - before))
        }
    });
    let shims = shims(&node);
    let of_shims = |read: fn(i32) -> f64| shims.iter().map(|pid| read(*pid)).sum::<f64>();
    let (bytes, cpu) = (written(pid) + of_shims(written), processor_seconds(pid));
    let cpu_of_shims = of_shims(processor_seconds);
    std::thread::sleep(span);
    let bytes = written(pid) + of_shims(written) - bytes;
    let share = |seconds: f64| 100.0 * seconds / span.as_secs_f64();
    let pss: Vec<f64> =
        shims.iter().map(|pid| number(&proc_file(*pid, "smaps_rollup"), "Pss:") / 1024.0).collect();
    let resident = number(&proc_file(pid, "status"), "VmRSS:") / 1024.0;
    let seconds = span.as_secs();
    vec![
        Figure::new("idle: daemon resident with the demo", "MiB", vec![resident]).aim(40.0),
        Figure::new("idle: shim, PSS per pod", "MiB", pss).aim(0.3),
        Figure::new(format!("idle: written in {seconds} s"), "bytes", vec![bytes]).aim(0.0),
        Figure::new("idle: daemon, share of one processor", "%", vec![share(processor_seconds(pid) - cpu)]),
        Figure::new(
            "idle: all shims, share of one processor",
            "%",
            vec![share(of_shims(processor_seconds) - cpu_of_shims)],
        ),
    ]
}
