//! What goes wrong around pods and images: daemons that die in the middle, full disks, registries that lie or fall silent,
//! containers that write without end.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::image::{File, Image, layer};
use super::images::{Registry, once, prints};
use super::machine;
use super::node::{Node, PATIENCE, free_port, ok, run, same, until};

fn sleeper(name: &str) -> String {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 1,
        "initContainers": [{"name": "i", "image": "busybox:1", "command": ["sh", "-c", "echo once >> /v/inits"],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "containers": [{"name": "c", "image": "busybox:1", "command": ["sleep", "100000"],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}]}})
    .to_string()
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Kills the daemon the moment that something is so, while a pod is being made; then it is started again.
fn kill_when(node: &mut Node, pod: &str, begun: impl Fn(&Node) -> bool + Send) {
    let over = AtomicBool::new(false);
    let pid = node.pid();
    std::thread::scope(|scope| {
        let (shared, over) = (&*node, &over);
        let watcher = scope.spawn(move || {
            let end = Instant::now() + Duration::from_secs(PATIENCE);
            while !begun(shared) && !over.load(Ordering::SeqCst) && Instant::now() < end {
                std::hint::spin_loop();
            }
            // A daemon that is not there any more was not ended by this test, which then fails.
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        });
        // The daemon may die while it answers: what it made then is made, what it did not is made below.
        shared.try_kubectl_with(&["create", "-f", "-"], &sleeper(pod));
        until("the daemon was killed", PATIENCE, || {
            if watcher.is_finished() { Ok(()) } else { Err("the watcher waits".to_owned()) }
        });
        over.store(true, Ordering::SeqCst);
    });
    node.end(Signal::SIGKILL);
    node.up();
    let said = node.try_kubectl_with(&["create", "-f", "-"], &sleeper(pod));
    assert!(said.code == 0 || said.all().contains("AlreadyExists"), "{}", said.all());
}

/// What is there as soon as this step of a pod's start has begun, and is not there yet.
fn step_begins(step: &str, data: &Path) -> Box<dyn Fn(&Node) -> bool + Send> {
    let logs = data.join("logs");
    let count = move |dir: &Path| machine::files(dir).len();
    let dir = match step {
        "files" => data.join("pods"),
        "sandbox" => data.join("runtime/sandboxes"),
        "link" => "/sys/class/net".into(),
        "shim" => return Box::new(|node| !machine::shims(node).is_empty()),
        "init" | "main" => {
            let least = count(&logs) + usize::from(step == "main");
            return Box::new(move |_| count(&logs) > least);
        }
        other => panic!("{other} is no step"),
    };
    let before = entries(&dir);
    Box::new(move |_| entries(&dir) > before)
}

#[test]
fn a_daemon_that_is_killed_at_any_step_of_a_pods_start_goes_on_with_it() {
    let mut node = Node::empty();
    node.load_busybox();
    for step in ["files", "sandbox", "shim", "link", "init", "main"] {
        let pod = format!("killed-at-{step}");
        let begun = step_begins(step, &node.data());
        kill_when(&mut node, &pod, begun);
        until(&format!("{pod} runs"), PATIENCE, || {
            let status = node.object("pod", &pod)["status"].clone();
            let ready = status["containerStatuses"][0]["ready"] == true;
            if ready { Ok(()) } else { Err(status.to_string()) }
        });
        let uid = node.object("pod", &pod)["metadata"]["uid"].as_str().unwrap().to_owned();
        until(&format!("{pod} has one process"), PATIENCE, || same(machine::containers_of(&uid).len(), 1));
        let status = node.object("pod", &pod)["status"].clone();
        assert_eq!(status["containerStatuses"][0]["restartCount"], 0, "{step}: {status}");
        let inits = node.kubectl(&["exec", &pod, "--", "cat", "/v/inits"]);
        assert!(inits.lines().count() >= 1, "{step}: its init container ran: {inits:?}");
        node.kubectl(&["delete", "pod", &pod, "--wait=true"]);
        until(&format!("nothing of {pod} runs"), PATIENCE, || same(machine::processes_of(&uid), Vec::new()));
        until("no shim is left", PATIENCE, || same(machine::shims(&node), Vec::new()));
    }
}

/// A registry of one image that does with the layer's bytes what it is told to.
struct Liar {
    host: String,
    /// How often the layer was asked for.
    asked: Arc<AtomicUsize>,
    honest: Arc<AtomicBool>,
}

#[derive(Clone, Copy)]
enum Lie {
    /// Nothing comes after the head of the answer.
    Stall,
    /// Other bytes, as many as there should be.
    OtherBytes,
    /// The connection ends in the middle.
    DieHalfWay,
}

impl Liar {
    fn open(lie: Lie, image: &Image) -> Liar {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).unwrap();
        let host = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        let (asked, honest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let blobs = Arc::new(image.served());
        let held = Arc::new(Mutex::new(Vec::new()));
        let state = (asked.clone(), honest.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (blobs, held, (asked, honest)) = (blobs.clone(), held.clone(), state.clone());
                std::thread::spawn(move || {
                    let mut stream = stream;
                    let mut head = Vec::new();
                    let mut byte = [0];
                    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                        head.push(byte[0]);
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or_default();
                    let name = path.rsplit('/').next().unwrap_or_default();
                    let Some((kind, body)) = blobs.get(name) else {
                        let status = if path == "/v2/" { "200 OK" } else { "404 Not Found" };
                        let _ = write!(
                            stream,
                            "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                        );
                        return;
                    };
                    let mut body = body.clone();
                    let length = body.len();
                    let lies = kind == "layer" && !honest.load(Ordering::SeqCst);
                    let media = if kind == "layer" { "application/octet-stream" } else { kind.as_str() };
                    let _ = write!(
                        stream,
                        "HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                    );
                    if head.starts_with("HEAD") {
                        return;
                    }
                    asked.fetch_add(usize::from(kind == "layer"), Ordering::SeqCst);
                    match lie {
                        Lie::Stall if lies => held.lock().unwrap().push(stream),
                        Lie::OtherBytes if lies => {
                            let last = body.len() - 1;
                            body[last] ^= 1;
                            let _ = stream.write_all(&body);
                        }
                        Lie::DieHalfWay if lies => drop(stream.write_all(&body[..length / 2])),
                        // Who asked may have gone.
                        _ => drop(stream.write_all(&body)),
                    }
                });
            }
        });
        Liar { host, asked, honest }
    }
}

fn lied_to(lie: Lie, words: &str) {
    let mut node = Node::new();
    node.configure("[images]\nstall_seconds = 1\n[kubelet]\ncrash_backoff_seconds = 1\n");
    node.up();
    let image = super::image::busybox("x");
    let liar = Liar::open(lie, &image);
    let reference = format!("{}/team/app:v1", liar.host);
    node.kubectl_with(&["create", "-f", "-"], &once("asks", &reference, "IfNotPresent"));
    until("the pod says that its image did not come", PATIENCE, || {
        let status = node.object("pod", "asks")["status"].to_string();
        let told = (status.contains("ErrImagePull") || status.contains("ImagePullBackOff"))
            && status.contains(words);
        if told { Ok(()) } else { Err(status) }
    });
    assert!(!node.ok(&["image", "list"]).contains("team/app"), "nothing came of it");
    liar.honest.store(true, Ordering::SeqCst);
    prints(&node, "asks", "made by a test\n");
    assert!(liar.asked.load(Ordering::SeqCst) >= 2, "it was asked again");
}

#[test]
fn a_registry_that_falls_silent_is_given_up_and_asked_again() {
    lied_to(Lie::Stall, "");
}

#[test]
fn a_registry_that_gives_other_bytes_than_it_says_is_not_believed() {
    lied_to(Lie::OtherBytes, "digest");
}

#[test]
fn a_registry_that_dies_in_a_layer_is_asked_again() {
    lied_to(Lie::DieHalfWay, "");
}

/// A small disk for a node's data.
struct Disk(PathBuf);

impl Disk {
    fn mount(dir: &Path, megabytes: usize) -> Disk {
        fs::create_dir_all(dir).unwrap();
        ok("mount", &["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "none", dir.to_str().unwrap()]);
        Disk(dir.to_owned())
    }

    fn resize(&self, megabytes: usize) {
        ok("mount", &["-o", &format!("remount,size={megabytes}m"), self.0.to_str().unwrap()]);
    }

    fn used_megabytes(&self) -> u64 {
        let text = ok("df", &["-m", "--output=used", self.0.to_str().unwrap()]);
        text.lines().nth(1).and_then(|line| line.trim().parse().ok()).unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let said = run("umount", &["--lazy", self.0.to_str().unwrap()]);
        if said.code != 0 {
            eprintln!("umount: {}", said.all());
        }
    }
}

/// Bytes that no compressor makes less of.
fn noise(megabytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..megabytes << 17).flat_map(|_| next().to_le_bytes()).collect()
}

fn large(megabytes: usize, seed: u64) -> Image {
    let mut image = super::image::busybox("x");
    image.add_layer(layer(vec![File::Plain("large", 0o644, noise(megabytes, seed))]));
    image
}

#[test]
fn a_disk_that_fills_up_during_a_pull_is_told_and_the_pull_goes_on_when_there_is_room() {
    let mut node = Node::new();
    let disk = Disk::mount(&node.data(), 48);
    node.configure(
        "[kubelet]\ncrash_backoff_seconds = 1\neviction_disk_mib = 0\neviction_inodes_percent = 0\n",
    );
    node.up();
    let registry = Registry::start(&node);
    large(40, 7).push(&registry.host, "team/large", "v1", &node.path("blob"));
    let before = disk.used_megabytes();
    let reference = format!("{}/team/large:v1", registry.host);
    node.kubectl_with(&["create", "-f", "-"], &once("asks", &reference, "IfNotPresent"));
    until("the pod says that the disk is full", PATIENCE, || {
        let status = node.object("pod", "asks")["status"].to_string();
        if status.contains("No space left on device") { Ok(()) } else { Err(status) }
    });
    assert!(!node.ok(&["image", "list"]).contains("team/large"), "nothing came of it");
    assert!(before < 48, "there was room before: {before} MB were used");
    disk.resize(400);
    prints(&node, "asks", "made by a test\n");
    drop(node);
    drop(disk);
}

#[test]
fn images_that_nobody_uses_make_room_when_the_disk_is_full() {
    let mut node = Node::new();
    let disk = Disk::mount(&node.data(), 200);
    node.configure(
        "[kubelet]\neviction_disk_mib = 0\n[images]\ngc_high_percent = 60\ngc_low_percent = 40\ngc_min_age_seconds = 0\n",
    );
    node.up();
    let registry = Registry::start(&node);
    for number in 0..6u64 {
        let name = format!("team/large-{number}");
        large(20, 11 + number).push(&registry.host, &name, "v1", &node.path("blob"));
        let reference = format!("{}/{name}:v1", registry.host);
        let pod = format!("p{number}");
        node.kubectl_with(&["create", "-f", "-"], &once(&pod, &reference, "IfNotPresent"));
        prints(&node, &pod, "made by a test\n");
        // The last one stays, and with it its image.
        if number < 5 {
            node.kubectl(&["delete", "pod", &pod]);
        }
    }
    until("old images have gone and the one that is named stays", PATIENCE * 3, || {
        let listed = node.ok(&["image", "list"]);
        let left = (0..6).filter(|number| listed.contains(&format!("large-{number}"))).count();
        if left < 6 && listed.contains("large-5") { Ok(()) } else { Err(listed) }
    });
    drop(node);
    drop(disk);
}

fn resident_kib(pid: i32) -> u64 {
    let status = machine::proc_file(pid, "status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[test]
fn a_container_that_writes_without_end_takes_neither_memory_nor_disk() {
    let mut node = Node::new();
    node.configure("[kubelet]\nlog_mib = 1\nlog_files = 3\n");
    node.up();
    node.load_busybox();
    let pod: Value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "talker"}, "spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "image": "busybox:1",
            "command": ["sh", "-c", "yes a-line-of-a-container-that-has-much-to-say | head -c 300000000; echo; echo end"]}]}});
    let before = resident_kib(node.pid());
    node.kubectl_with(&["create", "-f", "-"], &pod.to_string());
    until("it talks", PATIENCE, || {
        let phase = node.object("pod", "talker")["status"]["phase"].clone();
        if phase == "Running" || phase == "Succeeded" { Ok(()) } else { Err(phase.to_string()) }
    });
    let mut follower = node
        .kubectl_command(&["logs", "-f", "talker"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut most = before;
    until("it has said all", PATIENCE * 3, || {
        most = most.max(resident_kib(node.pid()));
        let phase = node.object("pod", "talker")["status"]["phase"].clone();
        if phase == "Succeeded" { Ok(()) } else { Err(phase.to_string()) }
    });
    // Its own end is not what is looked at here.
    let _ = follower.kill();
    let _ = follower.wait();
    assert!(most < before + 40_000, "the daemon grew from {before} to {most} KiB");
    let logs = machine::files(&node.data().join("logs"));
    let bytes: u64 = logs.iter().map(|(_, length, _)| length).sum();
    assert!((1..5 << 20).contains(&bytes), "{bytes} bytes of logs are kept: {logs:?}");
    assert_eq!(node.kubectl(&["logs", "talker", "--tail=1"]), "end\n");
}
