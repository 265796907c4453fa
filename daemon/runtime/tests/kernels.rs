//! The same tests on kernels that this machine does not run: User-Mode Linux with only v2 and with only v1 control groups.
//!
//! Invariant: the kernel sees this machine's files read-only; what it writes is in memory and goes with it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::bed;

/// What a kernel is told to mount below `/sys/fs/cgroup`.
const V2: &str = "mount -t cgroup2 none /sys/fs/cgroup";
const V1: &str = "mount -t tmpfs none /sys/fs/cgroup && for tree in cpu,cpuacct memory pids devices freezer; do \
                  mkdir /sys/fs/cgroup/$tree && mount -t cgroup -o $tree none /sys/fs/cgroup/$tree || exit 1; done";

fn kernel() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join("linux.uml")).find(|file| file.is_file()).expect(
        "this machine lacks linux.uml (Debian: user-mode-linux); `tests/run` unpacks it beside the build",
    )
}

/// Boots, runs every other test of this program there, and answers what the console showed.
fn boot(cgroups: &str) -> String {
    let kernel = kernel();
    let dir = tempfile::tempdir().expect("a directory");
    let shim = dir.path().join("shim");
    std::fs::write(&shim, bed::shim()).expect("the shim");
    let program = std::env::current_exe().expect("this program");
    let overlay = overlay(&kernel);
    let init = dir.path().join("init");
    let script = format!(
        "#!/bin/sh\n\
         export PATH=/usr/sbin:/usr/bin:/sbin:/bin\n\
         mount -t proc none /proc && mount -t sysfs none /sys && mount -t tmpfs none /run && \
         mount -t tmpfs none /var/tmp && mount -t devtmpfs none /dev && mkdir -p /dev/pts /dev/shm && \
         mount -t devpts none /dev/pts && mount -t tmpfs none /dev/shm\n\
         busybox insmod {overlay} && {{ {cgroups}; }} && ip link set lo up\n\
         export TMPDIR=/var/tmp HOLDFAST_SHIM={shim}\n\
         {program} --color never --test-threads 1 --skip kernels:: 2>&1\n\
         echo \"ended with $?\"\nbusybox poweroff -f\n",
        overlay = overlay.display(),
        shim = shim.display(),
        program = program.display(),
    );
    std::fs::write(&init, script).expect("init");
    std::fs::set_permissions(&init, PermissionsExt::from_mode(0o755)).expect("init can run");
    let output = Command::new("timeout")
        .args(["--kill-after=5", "240"])
        .arg(&kernel)
        .args(["mem=768M", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "con0=null,fd:1", "con=null"])
        .arg(format!("init={}", init.display()))
        .env("TMPDIR", "/dev/shm")
        .stdin(Stdio::null())
        .output()
        .expect("the kernel runs");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The module, beside its kernel.
fn overlay(kernel: &Path) -> PathBuf {
    let modules = kernel.parent().expect("a file").join("../lib/uml/modules");
    let version =
        std::fs::read_dir(&modules).ok().and_then(|mut all| all.next()?.ok()).map(|found| found.path());
    let module = version.map(|dir| dir.join("kernel/fs/overlayfs/overlay.ko"));
    let module = module.and_then(|path| path.canonicalize().ok());
    module.unwrap_or_else(|| panic!("there is no overlay.ko in {}", modules.display()))
}

fn check(cgroups: &str) {
    let said = boot(cgroups);
    assert!(said.contains("ended with 0"), "{said}");
    let counted = said.lines().find_map(|line| line.trim().strip_prefix("test result: ok. "));
    let passed = counted.and_then(|line| line.split(' ').next()?.parse::<u32>().ok());
    assert!(passed.is_some_and(|count| count > 5), "{said}");
}

#[test]
fn a_kernel_with_only_v2_groups_is_enough() {
    check(V2);
}

#[test]
fn a_kernel_with_only_v1_groups_is_enough() {
    check(V1);
}
