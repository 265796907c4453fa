//! A shim of an older daemon, as one of protocol 1 was recorded (`shim-1.txt`), and this daemon's runtime.
//!
//! In the recording a line `? order` is followed by what the shim said upon that order, until the next such line.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use runtime::conformance::{container, ended};
use runtime::{Error, Mount, MountKind, Phase, Runtime};
use serde_json::Value;

use crate::bed::Bed;

/// What was said upon each order.
fn recording() -> BTreeMap<String, Vec<Value>> {
    let (mut said, mut order) = (BTreeMap::<String, Vec<Value>>::new(), String::new());
    for line in include_str!("shim-1.txt").lines() {
        match line.strip_prefix("? ") {
            Some(name) => name.clone_into(&mut order),
            None => {
                said.entry(order.clone()).or_default().push(serde_json::from_str(line).expect("a message"))
            }
        }
    }
    said
}

/// Says to a daemon what was said then, with its own numbers.
fn play(stream: UnixStream, said: &BTreeMap<String, Vec<Value>>) {
    let mut out = stream.try_clone().expect("the other direction");
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let request: Value = serde_json::from_str(&line).expect("a request");
        let order = &request["order"];
        let by_name = order.as_object().and_then(|order| order.keys().next().cloned());
        let name = by_name.or(order.as_str().map(str::to_owned)).expect("an order has a name");
        for mut message in said.get(&name).cloned().unwrap_or_default() {
            if message["reply"].is_object() {
                message["reply"]["id"] = request["id"].clone();
            }
            if writeln!(out, "{message}").is_err() {
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_shim_of_an_older_daemon_serves_this_one() {
    let bed = Bed::new();
    let dir = bed.config.dir.join("sandboxes/old");
    std::fs::create_dir_all(&dir).expect("a directory");
    let listener = UnixListener::bind(dir.join("shim.sock")).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || play(stream, &recording()));
        }
    });
    let runtime = bed.open().await;
    let state = runtime.sandbox("old").expect("it is taken over");
    assert!(state.alive);
    assert_eq!(state.labels["kept"], "label of old");
    let started = runtime.start_container("old", bed.ground.container("c", &["sleep", "1000"])).await;
    assert_eq!(started.ok(), container(&*runtime, "old", "c", 0), "it runs");

    let attached = runtime.attach("old", "c", false, false).await;
    let Err(Error::Exec { reason, .. }) = attached else { panic!("an order that it does not know") };
    assert_eq!(reason, "its pod was started by an older holdfast: start the pod anew");
    // It would run the container without what it does not know, and say nothing.
    let mut spec = bed.ground.container("d", &["true"]);
    spec.mounts = vec![Mount {
        kind: MountKind::Image { layers: bed.ground.layers.clone() },
        target: "/image".to_owned(),
        ..Mount::default()
    }];
    let refused = runtime.start_container("old", spec).await.expect_err("a field that it does not know");
    assert_eq!(
        refused.to_string(),
        "start container d: an image as a volume: its pod was started by an older holdfast that knows none; start the pod anew"
    );

    runtime.signal_container("old", "c", 0, 9).await.expect("signalled");
    let Phase::Exited { code, signal, .. } = ended(&*runtime, "old", "c", 0).await.phase else {
        unreachable!("it has ended")
    };
    assert_eq!((code, signal), (137, Some(9)));
    runtime.remove_container("old", "c", 0).await.expect("removed");
    assert_eq!(container(&*runtime, "old", "c", 0), None);
    runtime.stop_sandbox("old").await.expect("stopped");
    bed.clean(&runtime).await;
}
