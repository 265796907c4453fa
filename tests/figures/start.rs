//! From exec of the binary to an API that answers, and to a demo that is healthy.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::node::{Node, demo_files, get};
use crate::wire::{Api, block_on};
use crate::{Figure, millis};

const RUNS: usize = 5;
/// How often a start is asked whether it is there.
const LOOK: Duration = Duration::from_millis(1);

pub(crate) fn measure() -> Vec<Figure> {
    let (mut first, mut healthy, mut again, mut well) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let mut node = Node::new();
        demo_files(node.node_port).iter().for_each(|(name, text)| node.save(name, text));
        let (api, demo) = once(&mut node);
        first.push(api);
        healthy.push(demo);
        node.end(Signal::SIGKILL);
        let (api, demo) = once(&mut node);
        again.push(api);
        well.push(demo);
    }
    vec![
        Figure::new("first start: exec to API ready", "ms", first).aim(100.0),
        Figure::new("first start: exec to demo healthy", "ms", healthy).aim(1000.0),
        Figure::new("start with the demo running: API ready", "ms", again).aim(100.0),
        Figure::new("start with the demo running: healthy", "ms", well),
    ]
}

fn once(node: &mut Node) -> (f64, f64) {
    let begin = Instant::now();
    node.spawn();
    let ready = block_on(async {
        let file = node.data().join("pki/admin.kubeconfig");
        let mut api = None;
        loop {
            api = api.or_else(|| fs::read_to_string(&file).ok().and_then(|text| Api::parse(&text)));
            if let Some(api) = &api
                && api.get("/readyz").await.is_ok_and(|(code, _)| code == 200)
            {
                return begin.elapsed();
            }
            wait(begin).await;
        }
    });
    let healthy = block_on(async {
        loop {
            let status =
                get((Ipv4Addr::LOCALHOST, node.web), "/status").map(|(_, body)| body).unwrap_or_default();
            let status: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
            let demo = &status["applications"][0]["status"];
            let four = demo["objects"].as_array().is_some_and(|objects| objects.len() == 4);
            if four && demo["sync"]["state"] == "Synced" && demo["health"]["code"] == "Healthy" {
                return begin.elapsed();
            }
            wait(begin).await;
        }
    });
    (millis(ready), millis(healthy))
}

async fn wait(begin: Instant) {
    assert!(begin.elapsed() < Duration::from_secs(60), "the node does not come up");
    tokio::time::sleep(LOOK).await;
}
