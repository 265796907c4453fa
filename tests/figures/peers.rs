//! Others doing the same work on the same machine in the same run, where they are installed.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::join_all;
use serde_json::json;
use tempfile::TempDir;

use crate::node::{Said, free_port, run, until};
use crate::{image, median, millis};

/// More pods than this take podman minutes.
const PODMAN_MOST: usize = 20;
const RUNS: usize = 3;

/// `podman kube play` and `kube down` of the same pods.
pub(crate) struct Podman {
    pub(crate) up: (String, f64),
    pub(crate) down: (String, f64),
}

/// Whether a program is here; said when it is not.
pub(crate) fn installed(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        eprintln!("no {program} here to compare with");
    }
    found
}

/// podman with limits that a container may set on any machine, and with runc where that is installed, since crun refuses
/// machines with both versions of cgroups mounted.
pub(crate) fn with_podman(args: &[&str]) -> Said {
    let conf = std::env::temp_dir().join("holdfast-containers.conf");
    let text = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n";
    fs::write(&conf, text).unwrap();
    let set = format!("CONTAINERS_CONF={}", conf.display());
    let mut all = vec![set.as_str(), "podman", "--cgroup-manager", "cgroupfs"];
    if installed("runc") {
        all.extend(["--runtime", "runc"]);
    }
    all.extend(args);
    run("env", &all)
}

/// None when podman is not installed, or would need too long.
pub(crate) fn podman(count: usize) -> Option<Podman> {
    if count > PODMAN_MOST || !installed("podman") {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (archive, file) = (dir.path().join("busybox.tar"), dir.path().join("pods.yaml"));
    image::busybox("localhost/holdfast-bench:1").write_layout_tar(&archive);
    let loaded = with_podman(&["load", "-q", "-i", archive.to_str().unwrap()]);
    if loaded.code != 0 {
        eprintln!("podman load: {}", loaded.all());
        return None;
    }
    let pod = |at: usize| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: holdfast-bench-{at}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             containers: [{{name: web, image: 'localhost/holdfast-bench:1', command: [sleep, '100000']}}]\n"
        )
    };
    fs::write(&file, (0..count).map(pod).collect::<Vec<_>>().join("---\n")).unwrap();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let begin = Instant::now();
        let said = with_podman(&["kube", "play", file.to_str().unwrap()]);
        up.push(millis(begin.elapsed()));
        let begin = Instant::now();
        let gone = with_podman(&["kube", "down", file.to_str().unwrap()]);
        down.push(millis(begin.elapsed()));
        if said.code != 0 || gone.code != 0 {
            eprintln!("podman kube: {}{}", said.all(), gone.all());
            return None;
        }
    }
    with_podman(&["rmi", "-f", "localhost/holdfast-bench:1"]);
    Some(Podman {
        up: ("podman kube play".to_owned(), median(&up)),
        down: ("podman kube down".to_owned(), median(&down)),
    })
}

/// An etcd alone with a directory of its own.
pub(crate) struct Etcd {
    child: Child,
    url: String,
    round: usize,
    _dir: TempDir,
}

impl Etcd {
    /// None when it is not installed or does not start.
    pub(crate) fn start() -> Option<Etcd> {
        if !installed("etcd") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (clients, peers) =
            (format!("http://127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{}", free_port()));
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "etcd", "--data-dir"])
            .arg(Path::new(dir.path()).join("data"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let etcd = Etcd { child, url: clients.clone(), round: 0, _dir: dir };
        let port = clients.rsplit(':').next()?.parse().ok()?;
        until("etcd answers", 30, || {
            let (code, body) = crate::node::get((std::net::Ipv4Addr::LOCALHOST, port), "/health")?;
            if code == 200 && body.contains("true") { Ok(()) } else { Err(body) }
        });
        Some(etcd)
    }

    /// Puts of a kilobyte per second.
    pub(crate) async fn puts(&mut self, clients: usize, span: Duration) -> f64 {
        self.round += 1;
        let done = Arc::new(AtomicUsize::new(0));
        let begin = Instant::now();
        let work = (0..clients).map(|client| {
            let (done, url, round) = (done.clone(), format!("{}/v3/kv/put", self.url), self.round);
            let http = reqwest::Client::builder().no_proxy().build().unwrap();
            async move {
                let value = STANDARD.encode("x".repeat(1000));
                let mut at = 0;
                while begin.elapsed() < span {
                    let key = STANDARD.encode(format!("/bench/{round}/{client}/{at}"));
                    let put =
                        http.post(&url).json(&json!({"key": key, "value": value})).send().await.unwrap();
                    assert!(put.status().is_success(), "{}", put.status());
                    put.bytes().await.unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                    at += 1;
                }
            }
        });
        join_all(work).await;
        f64::from(u32::try_from(done.load(Ordering::Relaxed)).unwrap_or(u32::MAX))
            / begin.elapsed().as_secs_f64()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended by itself; it is reaped in any case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
