//! Figures of the runtime on this machine, as a table or (`--json`) as JSON: not a test, nothing passes or fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::Runtime;
use runtime::conformance;
use runtime::linux::LinuxRuntime;

#[path = "tests/bed.rs"]
mod bed;
use bed::Bed;

fn main() {
    let json = std::env::args().any(|arg| arg == "--json");
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a tokio runtime");
    let figures = tokio.block_on(measure());
    if json {
        let map: serde_json::Map<String, serde_json::Value> =
            figures.into_iter().map(|(name, value, _)| (name, value.into())).collect();
        println!("{}", serde_json::Value::Object(map));
        return;
    }
    for (name, value, unit) in figures {
        println!("{name:<32} {value:>10.2} {unit}");
    }
}

/// Name, value, unit.
async fn measure() -> Vec<(String, f64, &'static str)> {
    let bed = Bed::new();
    bed::shim();
    let opened = Instant::now();
    let runtime = bed.open().await;
    let mut figures = vec![("open_ms".to_owned(), millis(opened.elapsed()), "ms")];
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for n in 0..20 {
        let (one_up, one_down) = round(&runtime, &bed, n..n + 1).await;
        up.push(one_up);
        down.push(one_down);
    }
    figures.push(("pod_1_up_ms".to_owned(), millis(median(up)), "ms"));
    figures.push(("pod_1_down_ms".to_owned(), millis(median(down)), "ms"));
    figures.extend(parts(&runtime, &bed).await);
    let (alone, whole) = run_true(&runtime, &bed).await;
    figures.push(("true_start_to_exit_ms".to_owned(), millis(alone), "ms, in a pod that is there"));
    figures.push(("pod_of_true_ms".to_owned(), millis(whole), "ms, with its pod made and removed"));
    match crun_run_true(&bed) {
        Some(theirs) => figures.push(("crun_run_true_ms".to_owned(), millis(theirs), "ms")),
        None => eprintln!("no crun here that runs a container, to compare with"),
    }
    for count in [20, 100] {
        let (up, down) = round(&runtime, &bed, 0..count).await;
        figures.push((format!("pods_{count}_up_ms"), millis(up), "ms"));
        figures.push((format!("pods_{count}_down_ms"), millis(down), "ms"));
    }
    for count in [1, 20] {
        figures.push((format!("shim_pss_kib_of_{count}"), pss(&runtime, &bed, count).await, "KiB"));
    }
    bed.clean(&runtime).await;
    figures
}

/// What one pod's time is made of, and an exec in it.
async fn parts(runtime: &Arc<LinuxRuntime>, bed: &Bed) -> Vec<(String, f64, &'static str)> {
    let mut all = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..20 {
        let mut last = Instant::now();
        let mut lap = || std::mem::replace(&mut last, Instant::now()).elapsed();
        runtime.start_sandbox(bed.ground.sandbox("part")).await.expect("a sandbox");
        all[0].push(lap());
        runtime
            .start_container("part", bed.ground.container("c", &["sleep", "1000"]))
            .await
            .expect("a container");
        all[1].push(lap());
        conformance::exec(&**runtime, "part", "c", &["true"]).await;
        all[2].push(lap());
        runtime.stop_sandbox("part").await.expect("stopped");
    }
    let names = ["start_sandbox_ms", "start_container_ms", "exec_true_ms"];
    names.into_iter().zip(all).map(|(name, laps)| (name.to_owned(), millis(median(laps)), "ms")).collect()
}

/// A container of `true` from its start to its known exit, alone and with its pod.
async fn run_true(runtime: &Arc<LinuxRuntime>, bed: &Bed) -> (Duration, Duration) {
    let (mut alone, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let begin = Instant::now();
        runtime.start_sandbox(bed.ground.sandbox("true")).await.expect("a sandbox");
        let start = Instant::now();
        runtime.start_container("true", bed.ground.container("c", &["true"])).await.expect("a container");
        conformance::ended(&**runtime, "true", "c", 0).await;
        alone.push(start.elapsed());
        runtime.stop_sandbox("true").await.expect("stopped");
        whole.push(begin.elapsed());
    }
    (median(alone), median(whole))
}

/// One `crun run` of the same, of twenty; none when there is no crun, or it runs nothing here.
fn crun_run_true(bed: &Bed) -> Option<Duration> {
    const RUNS: u32 = 20;
    let bundle = bed.dir.path().join("bundle");
    std::fs::create_dir_all(&bundle).ok()?;
    let spec = std::process::Command::new("crun").arg("spec").current_dir(&bundle).output().ok()?;
    let text = std::fs::read_to_string(bundle.join("config.json")).ok().filter(|_| spec.status.success())?;
    let mut config: serde_json::Value = serde_json::from_str(&text).ok()?;
    config["process"]["args"] = serde_json::json!(["true"]);
    config["process"]["terminal"] = false.into();
    config["root"]["path"] = bed.ground.layers[0].to_string_lossy().into();
    std::fs::write(bundle.join("config.json"), config.to_string()).ok()?;
    // Debian's crun does not run beside a v2 tree without controllers; in a mount namespace of its own there is none.
    let script = format!(
        "umount -l /sys/fs/cgroup/unified 2> /dev/null; for n in $(seq {RUNS}); do crun run -b '{}' true-$n || exit 1; done",
        bundle.display()
    );
    let begin = Instant::now();
    let ran = std::process::Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().ok()?;
    ran.status.success().then(|| begin.elapsed() / RUNS)
}

/// Starts and stops pods side by side.
async fn round(runtime: &Arc<LinuxRuntime>, bed: &Bed, pods: std::ops::Range<u32>) -> (Duration, Duration) {
    let start = Instant::now();
    futures::future::join_all(pods.clone().map(|n| up(runtime, bed, n))).await;
    let started = start.elapsed();
    let stop = Instant::now();
    futures::future::join_all(pods.map(|n| down(runtime, n))).await;
    (started, stop.elapsed())
}

async fn up(runtime: &Arc<LinuxRuntime>, bed: &Bed, n: u32) {
    let id = format!("pod-{n}");
    runtime.start_sandbox(bed.ground.sandbox(&id)).await.expect("a sandbox");
    let mut spec = bed.ground.container("c", &["sleep", "1000"]);
    spec.log_path = bed.ground.log_dir.join(format!("{id}.log"));
    runtime.start_container(&id, spec).await.expect("a container");
}

async fn down(runtime: &Arc<LinuxRuntime>, n: u32) {
    runtime.stop_sandbox(&format!("pod-{n}")).await.expect("stopped");
}

/// Proportional set size of one of `count` shims.
async fn pss(runtime: &Arc<LinuxRuntime>, bed: &Bed, count: u32) -> f64 {
    futures::future::join_all((0..count).map(|n| up(runtime, bed, n))).await;
    let pid = runtime.sandboxes()["pod-0"].shim_pid;
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps");
    let line = text.lines().find(|line| line.starts_with("Pss:")).expect("a line");
    let value = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    futures::future::join_all((0..count).map(|n| down(runtime, n))).await;
    value
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
