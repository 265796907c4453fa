//! The runtime on the kernel of this machine.

use std::path::Path;
use std::time::Duration;

use runtime::conformance::{container, ended, exec, suite, until};
use runtime::linux::LinuxRuntime;
use runtime::{ContainerSpec, Error, ExecOrder, ExecSpec, Mount, MountKind, Phase, Resources, Runtime, Size};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

mod bed;
mod kernels;
mod older;
use bed::Bed;

/// The texts of a log's lines on a stream, with their tags.
fn log(path: &Path, stream: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(path).expect("a log");
    let lines = text.lines().map(|line| line.splitn(4, ' ').map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| line[1] == stream).map(|mut line| (line.remove(2), line.remove(2))).collect()
}

/// Runs a script in a container made by `change` and answers the exit code and standard output.
async fn script(
    bed: &Bed,
    runtime: &LinuxRuntime,
    text: &str,
    change: impl FnOnce(&mut ContainerSpec),
) -> (i32, String) {
    runtime.start_sandbox(bed.ground.sandbox("s")).await.expect("a sandbox");
    let attempt = u32::try_from(runtime.sandboxes()["s"].containers.len()).expect("few");
    let mut spec = bed.ground.container("script", &["sh", "-c", text]);
    spec.attempt = attempt;
    spec.log_path = bed.ground.log_dir.join(format!("script.{attempt}.log"));
    change(&mut spec);
    let path = spec.log_path.clone();
    runtime.start_container("s", spec).await.expect("a container");
    let Phase::Exited { code, .. } = ended(runtime, "s", "script", attempt).await.phase else {
        unreachable!()
    };
    let lines: Vec<String> = log(&path, "stdout").into_iter().map(|(_, text)| text).collect();
    (code, lines.join("\n"))
}

#[tokio::test]
async fn linux_behaves_as_the_suite_says() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    assert_eq!(runtime.isolation().await.missing, []);
    suite(&*runtime, &bed.ground).await;
    bed.clean(&runtime).await;
}

#[tokio::test]
async fn a_container_is_confined() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    let (_, status) = script(&bed, &runtime, "cat /proc/self/status; hostname; echo pid $$", |_| {}).await;
    for expected in [
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "Seccomp:\t2",
        "NoNewPrivs:\t0",
        "\ns\n",
        "\npid 1",
    ] {
        assert!(status.contains(expected), "{expected:?} in {status}");
    }
    let denied = [
        "unshare -m true",
        "mount -t tmpfs x /tmp",
        "echo x > /proc/sysrq-trigger",
        "echo 1 > /proc/sys/kernel/panic",
        "mkdir /sys/fs/cgroup/x",
        "mknod /tmp/disk b 254 0 && head -c1 /tmp/disk",
        "hostname other",
    ];
    for line in denied {
        let (code, said) = script(&bed, &runtime, line, |_| {}).await;
        assert_ne!(code, 0, "{line} succeeded: {said}");
    }
    let (code, said) = script(
        &bed,
        &runtime,
        "test ! -s /proc/kcore && ls /sys/firmware | wc -l; ls /proc | grep -c '^[0-9]'",
        |_| {},
    )
    .await;
    assert_eq!((code, said.lines().next()), (0, Some("0")), "{said}");
    let (_, seen) = script(&bed, &runtime, "cat /proc/self/cgroup; ls -d /sys/class/net/*", |_| {}).await;
    assert!(!seen.contains("holdfast"), "{seen}");
    assert!(seen.ends_with("/sys/class/net/lo"), "{seen}");
    let (_, nnp) =
        script(&bed, &runtime, "grep NoNewPrivs /proc/self/status", |spec| spec.no_new_privileges = true)
            .await;
    assert_eq!(nnp, "NoNewPrivs:\t1");
    let (_, free) = script(
        &bed,
        &runtime,
        "grep Seccomp: /proc/self/status; mount -t tmpfs x /tmp && echo mounted; ls /dev/vda",
        |spec| spec.privileged = true,
    )
    .await;
    assert!(free.starts_with("Seccomp:\t0\nmounted"), "{free}");
    bed.clean(&runtime).await;
}

#[tokio::test]
async fn a_container_is_who_and_where_it_was_told() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    let show = "id -u; id -g; id -G; echo $HOME; pwd; echo $HOSTNAME $GREETING; grep CapEff /proc/self/status; echo x > /dev/stdout";
    let (code, said) = script(&bed, &runtime, show, |spec| {
        spec.user_name = Some("web".to_owned());
        spec.user.extra = vec![77];
        spec.cwd = "/made/for/it".to_owned();
        spec.env = vec![("GREETING".to_owned(), "hi there".to_owned())];
    })
    .await;
    let expected = "33\n34\n34 40 77\n/srv\n/made/for/it\ns hi there\nCapEff:\t0000000000000000\nx";
    assert_eq!((code, said.as_str()), (0, expected));
    runtime.start_sandbox(bed.ground.sandbox("s")).await.expect("a sandbox");
    let unknown =
        ContainerSpec { user_name: Some("nobody".to_owned()), ..bed.ground.container("u", &["true"]) };
    let refused = runtime.start_container("s", unknown).await.expect_err("no such user");
    assert_eq!(
        refused.to_string(),
        "start container u: unable to find user nobody: no matching entries in passwd file"
    );
    let refused = runtime.start_container("s", bed.ground.container("x", &["nosuch"])).await;
    assert!(
        matches!(&refused, Err(Error::Start { code: 127, reason, .. }) if reason == "exec: \"nosuch\": executable file not found in $PATH"),
        "{refused:?}"
    );
    let refused = runtime.start_container("s", bed.ground.container("x", &["/etc/passwd"])).await;
    assert!(
        matches!(&refused, Err(Error::Start { code: 126, reason, .. }) if reason == "exec: \"/etc/passwd\": permission denied"),
        "{refused:?}"
    );
    bed.clean(&runtime).await;
}

#[tokio::test]
async fn mounts_are_made_inside_the_root_only() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    let volume = bed.dir.path().join("volume");
    std::fs::create_dir(&volume).expect("a volume");
    std::fs::write(volume.join("file"), "content").expect("a file");
    std::os::unix::fs::symlink("/etc", bed.ground.layers[0].join("trap")).expect("a link");
    let bind = |source: &Path, target: &str, read_only| Mount {
        source: source.to_owned(),
        target: target.to_owned(),
        read_only,
        ..Mount::default()
    };
    let mounts = vec![
        bind(&volume, "/rw", false),
        bind(&volume, "/deep/ro", true),
        bind(&volume.join("file"), "/trap/hosts", true),
        Mount {
            kind: MountKind::Tmpfs { size_bytes: Some(1 << 20) },
            ..bind(Path::new(""), "/cache", false)
        },
    ];
    let line = "cat /etc/hosts; echo; echo new > /rw/new && cat /deep/ro/new; echo no > /deep/ro/no || echo kept; \
                echo in > /cache/x && cat /cache/x; echo no > /x || echo frozen; \
                df -k /cache | tail -n 1 | awk '{print $2}'; mknod /rw/disk b 254 0; head -c1 /rw/disk || echo nodev";
    let (_, said) = script(&bed, &runtime, line, |spec| {
        spec.mounts = mounts;
        spec.read_only_root = true;
    })
    .await;
    assert_eq!(said, "content\nnew\nkept\nin\nfrozen\n1024\nnodev");
    let absent = ContainerSpec {
        mounts: vec![bind(Path::new("/absent"), "/x", false)],
        ..bed.ground.container("m", &["true"])
    };
    let refused = runtime.start_container("s", absent).await.expect_err("no source");
    assert_eq!(
        refused.to_string(),
        "start container m: mount /absent on /x: No such file or directory (os error 2)"
    );
    bed.clean(&runtime).await;
}

#[tokio::test]
async fn logs_hold_every_line_and_are_rotated() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    let (_, said) = script(&bed, &runtime, "echo one; echo two >&2; printf rest", |_| {}).await;
    assert_eq!(said, "one\nrest");
    let path = bed.ground.log_dir.join("script.0.log");
    assert_eq!(log(&path, "stdout")[1], ("P".to_owned(), "rest".to_owned()));
    assert_eq!(log(&path, "stderr"), [("F".to_owned(), "two".to_owned())]);
    let (_, last) = script(&bed, &runtime, "seq 1 2000", |spec| {
        spec.log_max_bytes = 20_000;
        spec.log_files = 3;
    })
    .await;
    assert!(last.ends_with("2000"), "{last}");
    let mut sizes = Vec::new();
    for name in ["script.1.log", "script.1.log.1", "script.1.log.2"] {
        sizes.push(std::fs::metadata(bed.ground.log_dir.join(name)).expect(name).len());
    }
    assert!(sizes.iter().all(|size| *size <= 20_000), "{sizes:?}");
    assert!(!bed.ground.log_dir.join("script.1.log.3").exists());
    bed.clean(&runtime).await;
}

#[tokio::test]
async fn limits_bite_and_an_oom_kill_is_seen() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    runtime.start_sandbox(bed.ground.sandbox("s")).await.expect("a sandbox");
    let hog = "x=0123456789abcdef; while true; do x=$x$x; done";
    let mut spec = bed.ground.container("hog", &["sh", "-c", hog]);
    spec.resources = Resources { memory_bytes: Some(16 << 20), ..Resources::default() };
    runtime.start_container("s", spec).await.expect("a hog");
    let state = ended(&*runtime, "s", "hog", 0).await;
    assert!(matches!(state.phase, Phase::Exited { code: 137, oom_killed: true, .. }), "{state:?}");
    let (_, said) =
        script(&bed, &runtime, "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo reached", |spec| {
            spec.resources = Resources {
                pids: Some(4),
                cpu_shares: Some(512),
                cpu_quota_us: Some(50_000),
                ..Resources::default()
            };
        })
        .await;
    assert!(!said.contains("reached"), "{said}");
    bed.clean(&runtime).await;
}

#[tokio::test]
async fn an_exec_has_streams_or_a_terminal() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    runtime.start_sandbox(bed.ground.sandbox("s")).await.expect("a sandbox");
    let spec = ContainerSpec {
        env: vec![("A".to_owned(), "a".to_owned())],
        ..bed.ground.container("c", &["sleep", "1000"])
    };
    runtime.start_container("s", spec).await.expect("a container");
    let args = |line: &str| vec!["sh".to_owned(), "-c".to_owned(), line.to_owned()];
    let env = vec![("B".to_owned(), "b".to_owned())];
    let spec = ExecSpec {
        args: args("cat; echo $A$B; grep -E 'Seccomp:|CapEff' /proc/self/status; echo oops >&2; exit 7"),
        env,
        stdin: true,
        ..ExecSpec::default()
    };
    let mut exec_ = runtime.exec("s", "c", spec).await.expect("an exec");
    let mut stdin = exec_.stdin.take().expect("an input");
    stdin.write_all(b"from outside\n").await.expect("written");
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    exec_.stdout.read_to_string(&mut out).await.expect("output");
    exec_.stderr.as_mut().expect("stderr").read_to_string(&mut err).await.expect("errors");
    assert_eq!(out, "from outside\nab\nCapEff:\t00000000a80425fb\nSeccomp:\t2\n");
    assert_eq!((err.as_str(), exec_.wait().await.expect("an end").code), ("oops\n", 7));

    let size = Some(Size { width: 100, height: 40 });
    let spec = ExecSpec {
        args: args("stty size; tty; read line; stty size; echo got $line"),
        tty: true,
        stdin: true,
        size,
        ..ExecSpec::default()
    };
    let mut exec_ = runtime.exec("s", "c", spec).await.expect("an exec");
    let mut seen = String::new();
    let mut piece = [0; 256];
    while !seen.contains("/dev/pts/") {
        let n = exec_.stdout.read(&mut piece).await.expect("output");
        assert_ne!(n, 0, "ended early: {seen}");
        seen.push_str(&String::from_utf8_lossy(&piece[..n]));
    }
    assert!(seen.starts_with("40 100\r\n/dev/pts/0"), "{seen:?}");
    exec_.orders.send(ExecOrder::Resize(Size { width: 80, height: 24 })).await.expect("it listens");
    // The order is carried out by a task; the terminal itself tells when.
    for _ in 0..100 {
        let (now, _) = exec(&*runtime, "s", "c", &["stty", "-F", "/dev/pts/0", "size"]).await;
        if now == "24 80\n" {
            break;
        }
    }
    exec_.stdin.as_mut().expect("an input").write_all(b"typed\n").await.expect("written");
    exec_.stdout.read_to_string(&mut seen).await.expect("the rest");
    assert!(seen.contains("24 80\r\n") && seen.ends_with("got typed\r\n"), "{seen:?}");
    assert_eq!(exec_.wait().await.expect("an end").code, 0);
    bed.clean(&runtime).await;
}

#[tokio::test]
async fn a_container_with_a_terminal_logs_what_it_shows() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    let (code, said) = script(&bed, &runtime, "test -t 1 && tty", |spec| spec.tty = true).await;
    assert_eq!((code, said.trim_end()), (0, "/dev/pts/0"));
    bed.clean(&runtime).await;
}

#[tokio::test]
async fn an_end_while_the_daemon_was_away_is_known_after() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    runtime.start_sandbox(bed.ground.sandbox("s")).await.expect("a sandbox");
    let before =
        runtime.start_container("s", bed.ground.container("stays", &["sleep", "1000"])).await.expect("one");
    let gate = bed.dir.path().join("gate");
    std::fs::create_dir(&gate).expect("a directory");
    let mut spec = bed
        .ground
        .container("ends", &["sh", "-c", "while [ ! -e /gate/open ]; do sleep 0.01; done; exit 42"]);
    spec.mounts =
        vec![Mount { source: gate.clone(), target: "/gate".to_owned(), read_only: true, ..Mount::default() }];
    runtime.start_container("s", spec).await.expect("another");
    drop(runtime);
    std::fs::write(gate.join("open"), "").expect("the gate opens");
    let state = bed.config.dir.join("sandboxes/s").join(shim::STATE);
    // The shim writes its last words as soon as the program ends; it is all a daemon that is away can look at.
    while !std::fs::read_to_string(&state).expect("the state file").contains("\"code\":42") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let runtime = bed.open().await;
    assert_eq!(container(&*runtime, "s", "stays", 0), Some(before));
    let ended = container(&*runtime, "s", "ends", 0).expect("it is remembered");
    assert!(matches!(ended.phase, Phase::Exited { code: 42, .. }), "{ended:?}");
    assert_eq!(runtime.sandboxes()["s"].labels["kept"], "label of s");
    bed.clean(&runtime).await;
}

#[tokio::test]
async fn a_sandbox_whose_shim_was_killed_is_seen_and_cleared() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    let state = runtime.start_sandbox(bed.ground.sandbox("s")).await.expect("a sandbox");
    let running = runtime
        .start_container("s", bed.ground.container("c", &["sleep", "1000"]))
        .await
        .expect("a container");
    let Phase::Running { pid } = running.phase else { panic!("{running:?}") };
    let shim = rustix::process::Pid::from_raw(i32::try_from(state.shim_pid).expect("a pid")).expect("a pid");
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).expect("killed");
    until(&*runtime, "s", |state| !state.alive).await;
    let refused = runtime.start_sandbox(bed.ground.sandbox("s")).await;
    assert!(matches!(refused, Err(Error::Lost { .. })), "{refused:?}");
    drop(runtime);
    let runtime = bed.open().await;
    let found = &runtime.sandboxes()["s"];
    assert!(!found.alive);
    assert_eq!((found.labels["kept"].as_str(), found.containers.len()), ("label of s", 1));
    runtime.stop_sandbox("s").await.expect("cleared");
    assert!(std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty(), "{pid} lives");
    assert!(runtime.sandboxes().is_empty());
    runtime.start_sandbox(bed.ground.sandbox("s")).await.expect("a new one");
    bed.clean(&runtime).await;
}

#[tokio::test]
async fn usage_counts_what_runs() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    runtime.start_sandbox(bed.ground.sandbox("s")).await.expect("a sandbox");
    runtime
        .start_container("s", bed.ground.container("c", &["sh", "-c", "while true; do :; done"]))
        .await
        .expect("one");
    let used = runtime.usage("s").await.expect("usage").containers["c"];
    assert!(used.pids == 1 && used.memory_bytes > 0, "{used:?}");
    bed.clean(&runtime).await;
}

#[tokio::test]
async fn containers_of_a_sandbox_share_its_memory_and_its_sysctls() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    let mut spec = bed.ground.sandbox("s");
    spec.sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "81".to_owned());
    runtime.start_sandbox(spec).await.expect("a sandbox");
    let (_, said) = script(
        &bed,
        &runtime,
        "echo here > /dev/shm/x; cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        |_| {},
    )
    .await;
    assert_eq!(said, "81");
    let (_, said) = script(&bed, &runtime, "cat /dev/shm/x", |_| {}).await;
    assert_eq!(said, "here");
    let mut foreign = bed.ground.sandbox("foreign");
    foreign.sysctls.insert("kernel.panic".to_owned(), "1".to_owned());
    let refused = runtime.start_sandbox(foreign).await.expect_err("a sysctl of the host");
    assert_eq!(
        refused.to_string(),
        "start sandbox foreign: set sysctl kernel.panic: it is not the sandbox's own"
    );
    assert_eq!(runtime.sandboxes().len(), 1);
    bed.clean(&runtime).await;
}

#[tokio::test]
async fn a_sandbox_on_the_host_network_stays_in_it() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    let mut spec = bed.ground.sandbox("s");
    spec.host_network = true;
    let state = runtime.start_sandbox(spec).await.expect("a sandbox");
    let namespace = |path: &Path| std::fs::read_link(path).expect("a namespace");
    assert_eq!(namespace(&state.netns), namespace(Path::new("/proc/self/ns/net")));
    let (code, said) =
        script(&bed, &runtime, "mkdir /sys/fs/cgroup/x || mount -o remount,rw /sys || echo frozen", |_| {})
            .await;
    assert_eq!((code, said.as_str()), (0, "frozen"));
    let own = runtime.start_sandbox(bed.ground.sandbox("own")).await.expect("a sandbox");
    assert_ne!(namespace(&own.netns), namespace(Path::new("/proc/self/ns/net")));
    bed.clean(&runtime).await;
}

#[tokio::test]
async fn an_image_of_a_hundred_layers_starts() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    let mut layers = bed.ground.layers.clone();
    for n in 0..100 {
        let layer = bed.dir.path().join(format!("one-of-many-layers-with-a-long-name-{n}"));
        std::fs::create_dir(&layer).expect("a layer");
        std::fs::write(layer.join("top"), n.to_string()).expect("a file");
        layers.push(layer);
    }
    let (_, said) = script(&bed, &runtime, "cat /top", |spec| spec.layers = layers).await;
    assert_eq!(said, "99");
    bed.clean(&runtime).await;
}

#[tokio::test]
async fn an_image_of_several_layers_is_a_volume_whole_or_in_part() {
    let bed = Bed::new();
    let runtime = bed.open().await;
    let layers: Vec<_> = (0..30)
        .map(|n| {
            let layer = bed.dir.path().join(format!("a-layer-of-a-volume-{n}"));
            std::fs::create_dir_all(layer.join("models")).expect("a layer");
            std::fs::write(layer.join("models/top"), n.to_string()).expect("a file");
            std::fs::write(layer.join(format!("only-{n}")), "").expect("a file");
            layer
        })
        .collect();
    let (_, said) = script(
        &bed,
        &runtime,
        "cat /whole/models/top; echo; ls /whole | wc -l; cat /part/top; echo; touch /part/x || cat /single/top",
        |spec| {
            let volume = |layers: &[_], target: &str, sub_path: &str| Mount {
                kind: MountKind::Image { layers: layers.to_vec() },
                target: target.to_owned(),
                sub_path: sub_path.to_owned(),
                read_only: true,
                ..Mount::default()
            };
            spec.mounts = vec![
                volume(&layers, "/whole", ""),
                volume(&layers, "/part", "models"),
                volume(&layers[..1], "/single", "models"),
            ];
        },
    )
    .await;
    assert_eq!(said, "29\n31\n29\n0");
    bed.clean(&runtime).await;
}
