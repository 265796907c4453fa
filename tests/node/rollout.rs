//! A rolling update never has fewer ready pods, nor more pods, than was promised.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::node::{Node, PATIENCE, brief, get, is_ready, name, until};

fn deployment(greeting: &str, port: u16) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 4
  selector: {{matchLabels: {{app: web}}}}
  strategy: {{rollingUpdate: {{maxSurge: 1, maxUnavailable: 1}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: kubia:1
        env: [{{name: GREETING, value: '{greeting}'}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
        lifecycle: {{preStop: {{sleep: {{seconds: 1}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080, nodePort: {port}}}]
"
    )
}

/// How far the pods ever were from what is promised, from a watch of every change.
#[derive(Default)]
struct Extremes {
    fewest_ready: Option<usize>,
    most_pods: usize,
}

/// Follows the pods' events in a thread until the kubectl that tells them ends.
fn follow(node: &Node) -> (std::process::Child, Arc<Mutex<Extremes>>, std::thread::JoinHandle<()>) {
    let template = "{.object.metadata.name} {.type} {.object.status.conditions[?(@.type=='Ready')].status} \
                    {.object.metadata.deletionTimestamp}{'\\n'}";
    let mut command = node.kubectl_command(&[
        "get",
        "pods",
        "-l",
        "app=web",
        "-w",
        "--output-watch-events",
        "-o",
        &format!("jsonpath={template}"),
    ]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let extremes = Arc::new(Mutex::new(Extremes::default()));
    let seen = extremes.clone();
    let reader = std::thread::spawn(move || {
        let mut all = BTreeSet::new();
        let mut ready = BTreeSet::new();
        for line in lines.map_while(Result::ok) {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let [name, kind, state, leaving] = &words[..] else { continue };
            if kind == "DELETED" || !leaving.is_empty() {
                all.remove(name)
            } else {
                all.insert(name.clone())
            };
            let counts = kind != "DELETED" && state == "True" && leaving.is_empty();
            if counts {
                ready.insert(name.clone())
            } else {
                ready.remove(name)
            };
            let mut extremes = seen.lock().unwrap();
            extremes.most_pods = extremes.most_pods.max(all.len());
            // Only what comes after all were ready once is a promise.
            if ready.len() == 4 || extremes.fewest_ready.is_some() {
                extremes.fewest_ready = Some(extremes.fewest_ready.unwrap_or(usize::MAX).min(ready.len()));
            }
        }
    });
    (child, extremes, reader)
}

#[test]
fn a_rolling_update_keeps_its_promise_and_loses_no_request() {
    let node = Node::with(&[]);
    node.save("web.yaml", &deployment("one", node.node_port));
    node.ready("app=web", 4);
    let (mut watch, extremes, reader) = follow(&node);
    until("the watch knows all four", PATIENCE, || {
        extremes.lock().unwrap().fewest_ready.map(|_| ()).ok_or_else(|| "not yet".to_owned())
    });
    let (over, port) = (Arc::new(AtomicBool::new(false)), node.node_port);
    let client = std::thread::spawn({
        let over = over.clone();
        move || {
            let mut failures = Vec::new();
            let mut asked = 0;
            while !over.load(Ordering::SeqCst) {
                asked += 1;
                match get((Ipv4Addr::LOCALHOST, port), "/") {
                    Ok((200, _)) => {}
                    other => failures.push(format!("{other:?}")),
                }
            }
            (asked, failures)
        }
    });
    node.save("web.yaml", &deployment("two", node.node_port));
    until("all pods are new ones", PATIENCE, || {
        let pods = node.list("pods", "app=web");
        let new = |pod: &serde_json::Value| {
            pod["spec"]["containers"][0]["env"][0]["value"] == "two" && is_ready(pod)
        };
        let told = || pods.iter().map(brief).collect::<Vec<_>>().join(", ");
        if pods.len() == 4 && pods.iter().all(new) { Ok(()) } else { Err(told()) }
    });
    over.store(true, Ordering::SeqCst);
    let (asked, failures) = client.join().unwrap();
    watch.kill().unwrap();
    watch.wait().unwrap();
    reader.join().unwrap();
    let extremes = extremes.lock().unwrap();
    assert!(
        extremes.fewest_ready.unwrap() >= 3,
        "at least 3 of 4 were ready, but {:?}",
        extremes.fewest_ready
    );
    assert!(extremes.most_pods <= 5, "at most 5 pods, but {}", extremes.most_pods);
    assert!(failures.is_empty(), "{} of {asked} requests failed: {:?}", failures.len(), failures.first());
    let (_, body) = get((Ipv4Addr::LOCALHOST, node.node_port), "/").unwrap();
    assert!(body.contains("two"), "{body}");
}

#[test]
fn a_broken_image_never_takes_the_good_pods_away() {
    let node = Node::with(&[]);
    node.save("web.yaml", &deployment("one", node.node_port));
    let before: BTreeSet<String> = node.ready("app=web", 4).iter().map(name).collect();
    node.edit("web.yaml", "kubia:1", "127.0.0.1:1/none:1");
    until("a pod waits for its image and says why", PATIENCE, || {
        let pods = node.list("pods", "app=web").iter().map(brief).collect::<Vec<_>>().join(", ");
        if pods.contains("ErrImagePull") || pods.contains("ImagePullBackOff") { Ok(()) } else { Err(pods) }
    });
    let good = node.pods("app=web").iter().filter(|pod| is_ready(pod)).map(name).collect::<BTreeSet<_>>();
    assert!(good.len() >= 3 && good.is_subset(&before), "{good:?} of {before:?}");
    let told = until("the status names the image", PATIENCE, || {
        let told = node.ok_or_not(&["status"]);
        if told.contains("127.0.0.1:1/none:1") { Ok(told) } else { Err(told) }
    });
    assert!(told.contains("web.yaml"), "{told}");
    node.edit("web.yaml", "127.0.0.1:1/none:1", "kubia:1");
    node.ready("app=web", 4);
    node.good();
}
