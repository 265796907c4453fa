//! How fast a running pod and its image are served: unpacking, programs run in it, its log, its restart; and what a
//! thousand pods leave behind.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::image::{File, Image, busybox, layer};
use crate::node::{Node, ok, until};
use crate::peers::{installed, with_podman};
use crate::wire::block_on;
use crate::{Figure, median, millis, pods};

const RUNS: usize = 5;
/// What the large image's layer holds: files of text as programs are, and some that no compressor makes less of.
const TEXTS: usize = 4000;
const NOISES: usize = 40;
const LOG_MEGABYTES: f64 = 300.0;
const ROUNDS: usize = 10;

pub(crate) fn measure() -> Vec<Figure> {
    let mut figures = vec![unpack()];
    let mut node = Node::new();
    node.configure("[kubelet]\nmax_pods = 1000\n");
    node.up();
    node.load_busybox();
    figures.push(exec(&node));
    figures.push(log(&node));
    figures.push(restart(&node));
    drop(node);
    figures.extend(thousand());
    figures
}

/// Bytes that follow from a seed and repeat themselves nowhere.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..bytes / 8).flat_map(|_| next()).collect()
}

fn large(seed: u64) -> (Image, f64) {
    let text = |at: usize| {
        format!("line of file {at} in image {seed}, as texts and programs have many\n").repeat(600)
    };
    let paths: Vec<String> = (0..TEXTS + NOISES).map(|at| format!("usr/share/{}/{at}", at % 97)).collect();
    let files = paths.iter().enumerate().map(|(at, path)| {
        let content = if at < TEXTS { text(at).into_bytes() } else { noise(1 << 20, seed + at as u64) };
        File::Plain(path, 0o644, content)
    });
    let layer = layer(files.collect());
    let megabytes = layer.len() as f64 / 1e6;
    let mut image = busybox(&format!("large-{seed}:1"));
    image.add_layer(layer);
    (image, megabytes)
}

/// An archive of one large layer until its files lie there; skopeo and umoci do the same.
fn unpack() -> Figure {
    let mut node = Node::new();
    node.up();
    let has_peers = installed("skopeo") && installed("umoci");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for seed in 1..=3 {
        let (image, megabytes) = large(seed);
        let archive = node.path("large.tar");
        image.write_layout_tar(&archive);
        let begin = Instant::now();
        node.ok(&["image", "load", archive.to_str().unwrap()]);
        ours.push(megabytes / begin.elapsed().as_secs_f64());
        if has_peers {
            let (layout, bundle) = (node.path("layout"), node.path("bundle"));
            let begin = Instant::now();
            let (from, to) =
                (format!("oci-archive:{}", archive.display()), format!("oci:{}:1", layout.display()));
            ok("skopeo", &["--insecure-policy", "copy", "-q", &from, &to]);
            let named = format!("{}:1", layout.display());
            ok("umoci", &["unpack", "--image", &named, bundle.to_str().unwrap()]);
            theirs.push(megabytes / begin.elapsed().as_secs_f64());
            fs::remove_dir_all(layout).unwrap();
            fs::remove_dir_all(bundle).unwrap();
        }
    }
    let peer = has_peers.then(|| ("skopeo and umoci".to_owned(), median(&theirs)));
    Figure::new("image: archive to unpacked", "MB/s", ours).peer(peer)
}

fn pod(name: &str, policy: &str, script: &str) -> String {
    serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "busybox:1", "command": ["sh", "-c", script]}]}})
    .to_string()
}

/// Loads the tests' image into podman; None when there is none, or it does not work here.
fn podman() -> Option<&'static str> {
    const NAME: &str = "localhost/holdfast-pace:1";
    if !installed("podman") {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("busybox.tar");
    busybox(NAME).write_layout_tar(&archive);
    let loaded = with_podman(&["load", "-q", "-i", archive.to_str().unwrap()]);
    if loaded.code != 0 {
        eprintln!("podman load: {}", loaded.all());
        return None;
    }
    Some(NAME)
}

fn exec(node: &Node) -> Figure {
    node.kubectl_with(&["create", "-f", "-"], &pod("runs", "Never", "sleep 100000"));
    phase(node, "runs", "Running");
    let time = |command: &dyn Fn() -> i32| -> Vec<f64> {
        let once = || {
            let begin = Instant::now();
            assert_eq!(command(), 0, "a program ran in the container");
            millis(begin.elapsed())
        };
        (0..RUNS * 3).map(|_| once()).collect()
    };
    let ours = time(&|| node.try_kubectl(&["exec", "runs", "--", "true"]).code);
    let peer = podman().and_then(|image| {
        let name = "holdfast-pace-exec";
        let said = with_podman(&[
            "run",
            "-d",
            "--rm",
            "--name",
            name,
            "--network",
            "none",
            image,
            "sleep",
            "100000",
        ]);
        if said.code != 0 {
            eprintln!("podman run: {}", said.all());
            return None;
        }
        let theirs = time(&|| with_podman(&["exec", name, "true"]).code);
        with_podman(&["rm", "-f", "-t", "0", name]);
        Some(("podman exec".to_owned(), median(&theirs)))
    });
    Figure::new("kubectl exec of true, kubectl's own start in it", "ms", ours).peer(peer)
}

fn phase(node: &Node, name: &str, wanted: &str) {
    until(&format!("{name} is {wanted}"), 120, || {
        let found = node.object("pod", name)["status"]["phase"].clone();
        if found == wanted { Ok(()) } else { Err(found.to_string()) }
    });
}

/// What a container can say per second; it tells itself how long it took.
fn log(node: &Node) -> Figure {
    let script = format!(
        "s=$(cat /proc/uptime); yes a-line-of-a-container-that-has-much-to-say-about-all-it-does | head -c {LOG_MEGABYTES}000000; e=$(cat /proc/uptime); echo; echo took ${{s%% *}} ${{e%% *}}"
    );
    let seconds = |said: &str| -> Option<f64> {
        let line = said.lines().rev().find(|line| line.starts_with("took "))?;
        let mut words = line.split(' ').skip(1).filter_map(|word| word.parse::<f64>().ok());
        let begin = words.next()?;
        Some(words.next()? - begin)
    };
    let mut ours = Vec::new();
    for round in 0..3 {
        let name = format!("talks-{round}");
        node.kubectl_with(&["create", "-f", "-"], &pod(&name, "Never", &script));
        phase(node, &name, "Succeeded");
        let said = node.kubectl(&["logs", &name, "--tail=2"]);
        ours.push(LOG_MEGABYTES / seconds(&said).unwrap_or(f64::NAN));
        node.kubectl(&["delete", "pod", &name]);
    }
    let peer = podman().and_then(|image| {
        let mut theirs = Vec::new();
        for _ in 0..3 {
            let name = "holdfast-pace-log";
            // Into a file of lines with their times, as ours; podman's own pipe is not measured.
            let args = [
                "run",
                "-d",
                "--name",
                name,
                "--network",
                "none",
                "--log-driver",
                "k8s-file",
                image,
                "sh",
                "-c",
                &script,
            ];
            let said = with_podman(&args);
            with_podman(&["wait", name]);
            let log = with_podman(&["logs", "--tail", "2", name]);
            with_podman(&["rm", "-f", name]);
            theirs.push(LOG_MEGABYTES / seconds(&log.out).filter(|_| said.code == 0)?);
        }
        Some(("podman, k8s-file".to_owned(), median(&theirs)))
    });
    Figure::new("log: what a container can say", "MB/s", ours).peer(peer)
}

/// The processes with this command line.
fn processes(command: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()));
    let is = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|text| text.trim_end_matches('\0').replace('\0', " ") == command)
    };
    pids.filter(is).collect()
}

/// From the end of a container's process to the next one's start.
fn again(command: &str) -> Option<f64> {
    let old = *processes(command).first()?;
    let begin = Instant::now();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(old), nix::sys::signal::Signal::SIGKILL).ok()?;
    while begin.elapsed() < Duration::from_secs(30) {
        if processes(command).into_iter().any(|pid| pid != old) {
            return Some(millis(begin.elapsed()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

fn restart(node: &Node) -> Figure {
    let mut ours = Vec::new();
    for round in 0..RUNS {
        let name = format!("again-{round}");
        let span = format!("{}", 310_000 + round);
        node.kubectl_with(&["create", "-f", "-"], &pod(&name, "Always", &format!("exec sleep {span}")));
        phase(node, &name, "Running");
        ours.extend(again(&format!("sleep {span}")));
        node.kubectl(&["delete", "pod", &name]);
    }
    let peer = podman().and_then(|image| {
        let mut theirs = Vec::new();
        for round in 0..RUNS {
            let (name, span) = ("holdfast-pace-again", format!("{}", 320_000 + round));
            let args = [
                "run",
                "-d",
                "--name",
                name,
                "--restart",
                "always",
                "--network",
                "none",
                image,
                "sleep",
                &span,
            ];
            with_podman(&args);
            theirs.extend(again(&format!("sleep {span}")));
            with_podman(&["rm", "-f", "-t", "0", name]);
        }
        (!theirs.is_empty()).then(|| ("podman --restart always".to_owned(), median(&theirs)))
    });
    Figure::new("crash to the next start", "ms", ours).peer(peer)
}

/// What of the machine is used: mounts, links, groups, processes, and the daemon's descriptors.
fn used(node: &Node) -> [f64; 5] {
    let lines = |path: &str| fs::read_to_string(path).unwrap().lines().count();
    let entries = |path: String| fs::read_dir(path).map_or(0, Iterator::count);
    let data = node.data().display().to_string();
    let mut groups = 0;
    let mut open = vec![Path::new("/sys/fs/cgroup").to_owned()];
    while let Some(dir) = open.pop() {
        let inside = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let dirs: Vec<_> = inside.filter(|path| path.is_dir() && !path.is_symlink()).collect();
        groups += dirs.len();
        open.extend(dirs);
    }
    let commands = fs::read_dir("/proc").unwrap().flatten();
    let shims = commands.filter(|entry| {
        fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|text| text.contains(&data))
    });
    let counts = [
        lines("/proc/self/mountinfo"),
        entries("/sys/class/net".to_owned()),
        groups,
        shims.count(),
        entries(format!("/proc/{}/fd", node.pid())),
    ];
    counts.map(|count| count as f64)
}

fn thousand() -> Vec<Figure> {
    let mut node = Node::new();
    node.up();
    node.load_busybox();
    block_on(pods::round(&node, 20));
    let before = used(&node);
    let begin = Instant::now();
    for _ in 0..ROUNDS {
        block_on(pods::round(&node, 100));
    }
    let seconds = begin.elapsed().as_secs_f64();
    let mut after = used(&node);
    // The kernel takes down namespaces and groups in its own time.
    for _ in 0..100 {
        if after[..4] == before[..4] {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        after = used(&node);
    }
    let mut figures = vec![Figure::new("1,000 pods made and removed, by 100", "s", vec![seconds])];
    for (at, what) in ["mounts", "links", "cgroups", "processes", "descriptors"].into_iter().enumerate() {
        let left = after[at] - before[at];
        figures.push(Figure::new(format!("1,000 pods leave: {what}"), "", vec![left]).aim(0.0));
    }
    figures
}
