//! The API under a crowd: many clients, many objects, many watchers of one kind.

use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::sync::mpsc;

use crate::api::{config_map, creates, fill, lists};
use crate::node::Node;
use crate::wire::{Api, Watch, block_on};
use crate::{Figure, millis, peers};

const CLIENTS: usize = 64;
const PODS: usize = 50_000;
const WATCHERS: usize = 1000;
const EVENTS: usize = 30;
const RUNS: usize = 3;
const SPAN: Duration = Duration::from_secs(3);

pub(crate) fn measure() -> Vec<Figure> {
    let mut figures = Vec::new();
    let node = Node::empty();
    let runs = (0..RUNS).map(|run| block_on(creates(&node, CLIENTS, run))).collect();
    let peer = peers::Etcd::start()
        .map(|mut etcd| ("etcd, put over its gateway".to_owned(), block_on(etcd.puts(CLIENTS, SPAN))));
    figures.push(
        Figure::new(format!("creates of 1 KB, {CLIENTS} clients"), "1/s", runs).aim(10_000.0).peer(peer),
    );
    drop(node);

    let node = Node::empty();
    let before = memory(&node, "VmRSS");
    block_on(fill(&node, PODS));
    let filled = memory(&node, "VmRSS");
    let each = (filled - before) * 1024.0 / f64::from(u32::try_from(PODS).unwrap_or(u32::MAX));
    figures.push(Figure::new(format!("memory per pod stored, of {PODS}"), "KiB", vec![each]).aim(16.0));
    let (spans, _) = block_on(lists(&node));
    figures.push(Figure::new(format!("list of {PODS} pods"), "ms", spans));
    let grown = memory(&node, "VmHWM") - filled;
    figures.push(Figure::new("grown at most by those lists", "MiB", vec![grown.max(0.0)]));
    drop(node);

    let node = Node::empty();
    let before = memory(&node, "VmRSS");
    let (latencies, resident) = block_on(watched(&node));
    let rank = |share: usize| latencies[(latencies.len() * share / 100).min(latencies.len() - 1)];
    for (name, share) in [("median", 50), ("p99", 99)] {
        let name = format!("create to event, {WATCHERS} watchers, {name}");
        figures.push(Figure::new(name, "ms", vec![rank(share)]));
    }
    let each = (resident - before) * 1024.0 / f64::from(u32::try_from(WATCHERS).unwrap_or(u32::MAX));
    figures.push(Figure::new(format!("memory per watcher, of {WATCHERS}"), "KiB", vec![each]));
    figures
}

/// A line of the daemon's `/proc/PID/status`, in MiB.
pub(crate) fn memory(node: &Node, line: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let found = status.lines().find_map(|text| text.strip_prefix(line)).unwrap_or_default();
    let kib = found.split_whitespace().find_map(|word| word.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// Every watcher's spans from a create to its event, in order of size; and what the daemon holds then.
async fn watched(node: &Node) -> (Vec<f64>, f64) {
    let path = "/api/v1/namespaces/default/configmaps?labelSelector=app%3Dbench";
    // As programs do it: a hundred watches share a connection.
    let apis: Vec<Api> = (0..WATCHERS / 100).map(|_| Api::another(node)).collect();
    let watches = join_all((0..WATCHERS).map(|at| apis[at % apis.len()].watch(path))).await;
    let (seen, mut saw) = mpsc::channel::<Instant>(WATCHERS);
    let readers: Vec<_> = watches.into_iter().map(|watch| tokio::spawn(read(watch, seen.clone()))).collect();
    let api = Api::another(node);
    let mut spans = Vec::new();
    for at in 0..EVENTS {
        let object = config_map(&format!("crowd-{at}"));
        let begin = Instant::now();
        api.create("/api/v1/namespaces/default/configmaps", &object).await;
        for _ in 0..WATCHERS {
            let when = tokio::time::timeout(Duration::from_secs(30), saw.recv()).await;
            spans.push(millis(when.expect("every watcher hears of it").unwrap() - begin));
        }
    }
    let resident = memory(node, "VmRSS");
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    spans.sort_by(f64::total_cmp);
    (spans, resident)
}

/// Tells when each event arrived.
async fn read(mut watch: Watch, seen: mpsc::Sender<Instant>) {
    loop {
        watch.arrives().await;
        if seen.send(Instant::now()).await.is_err() {
            return;
        }
    }
}
