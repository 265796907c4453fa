//! The real runtime on this machine, in a place of its own, for tests and benches.
//!
//! Invariant: dropping the bed without [`Bed::clean`] leaves things behind only when the test failed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use runtime::conformance::Ground;
use runtime::linux::{Config, Demand, LinuxRuntime};

#[path = "../../guest.rs"]
mod guest;

/// A runtime and where it lives.
pub(crate) struct Bed {
    pub(crate) config: Config,
    pub(crate) ground: Ground,
    pub(crate) dir: tempfile::TempDir,
}

/// The shim program, built once, or as whoever started this program built it.
pub(crate) fn shim() -> &'static [u8] {
    static SHIM: OnceLock<Vec<u8>> = OnceLock::new();
    SHIM.get_or_init(|| {
        if let Some(path) = std::env::var_os("HOLDFAST_SHIM") {
            return std::fs::read(path).expect("the shim");
        }
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let built =
            guest::build(&workspace, &workspace.join("target/guest"), &target, &[("shim", "holdfast-shim")]);
        std::fs::read(built.expect("the shim builds").join("holdfast-shim")).expect("the shim")
    })
}

impl Bed {
    /// A fresh place with a root of busybox.
    pub(crate) fn new() -> Bed {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(rustix::process::geteuid().is_root(), "these tests make namespaces: run them as root");
        let dir = tempfile::Builder::new().prefix("holdfast-runtime-").tempdir().expect("a directory");
        let layer = dir.path().join("layer");
        root(&layer);
        let cgroup = format!("holdfast-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let config = Config { dir: dir.path().join("runtime"), cgroup, isolation: Demand::Full };
        let ground = Ground { layers: vec![layer], log_dir: dir.path().join("logs") };
        Bed { config, ground, dir }
    }

    pub(crate) async fn open(&self) -> Arc<LinuxRuntime> {
        LinuxRuntime::open(self.config.clone(), shim()).await.expect("a runtime")
    }

    /// Removes everything and checks that nothing is left.
    pub(crate) async fn clean(self, runtime: &LinuxRuntime) {
        runtime.remove_all().await.expect("everything goes");
        assert!(!self.config.dir.exists(), "the directory stays");
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(!mounts.contains(&*self.dir.path().to_string_lossy()), "{mounts}");
        assert_eq!(self.processes(), Vec::<String>::new());
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let layout = shim_cgroup();
        let mounts = layout.v1.iter().map(|t| &t.mount).chain(layout.v2.iter().map(|t| &t.mount));
        mounts.map(|mount| mount.join(&self.config.cgroup)).filter(|path| path.exists()).collect()
    }

    /// Command lines that name the directory; the dead that nobody reaped yet have none.
    fn processes(&self) -> Vec<String> {
        let wanted = self.dir.path().to_string_lossy().into_owned();
        let all = std::fs::read_dir("/proc").expect("/proc").flatten();
        all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
            .map(|text| String::from_utf8_lossy(&text).replace('\0', " "))
            .filter(|line| line.contains(&wanted))
            .collect()
    }
}

fn shim_cgroup() -> shim::cgroup::Layout {
    shim::cgroup::detect().expect("the cgroup trees")
}

/// A root with busybox under its usual names.
fn root(layer: &Path) {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
    let busybox = busybox.expect("busybox is missing: apt-get install busybox-static");
    for dir in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
        std::fs::create_dir_all(layer.join(dir)).expect("a directory");
    }
    std::fs::copy(busybox, layer.join("bin/busybox")).expect("busybox");
    let names = Command::new(busybox).arg("--list").output().expect("busybox lists its names");
    for name in String::from_utf8_lossy(&names.stdout).lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", layer.join("bin").join(name)).expect("a link");
    }
    std::fs::write(layer.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
        .expect("passwd");
    std::fs::write(layer.join("etc/group"), "root:x:0:\nweb:x:34:\nlogs:x:40:web\n").expect("group");
}
