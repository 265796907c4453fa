//! Runs the programs of image builds, each in a sandbox of its own, in a runtime that is there only while one builds.
//!
//! Invariant: after a build nothing of its sandboxes is left; what a killed one left goes with the next, or with `down`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;
use images::{Bind, Program, Ran, Runner, Said};
use nix::sys::stat::Mode;
use runtime::linux::{Config, LinuxRuntime};
use runtime::{
    ContainerSpec, DEFAULT_CAPABILITIES, MASKED_PATHS, Mount, MountKind, Phase, READONLY_PATHS, Runtime,
    SandboxSpec,
};
use tokio::net::unix::pipe;
use tokio::sync::OnceCell;
use tokio::sync::broadcast::error::RecvError;

use crate::node::{self, Places};

const CONTAINER: &str = "run";

/// Where builds run: apart from the pods.
pub(crate) fn config(config: &crate::config::Config, places: &Places) -> Config {
    node::runtime_config(config, places.dir("build"), format!("holdfast-{}-build", places.instance))
}

/// Where builds run.
pub(crate) struct Kitchen {
    config: Config,
    shim: &'static [u8],
    runtime: OnceCell<Arc<LinuxRuntime>>,
    next: AtomicU64,
}

impl Kitchen {
    /// Nothing is made before the first program.
    pub(crate) fn new(config: Config, shim: &'static [u8]) -> Kitchen {
        Kitchen { config, shim, runtime: OnceCell::new(), next: AtomicU64::new(0) }
    }

    /// Takes everything away again.
    pub(crate) async fn close(mut self) -> Result<(), runtime::Error> {
        match self.runtime.take() {
            Some(runtime) => runtime.remove_all().await,
            None => Ok(()),
        }
    }

    /// Takes away what a build that was killed left behind.
    pub(crate) async fn clear(config: Config, shim: &'static [u8]) -> Result<(), runtime::Error> {
        if !config.dir.exists() {
            return Ok(());
        }
        LinuxRuntime::open(config, shim).await?.remove_all().await
    }

    async fn runtime(&self) -> Result<&Arc<LinuxRuntime>, runtime::Error> {
        self.runtime
            .get_or_try_init(|| async {
                Kitchen::clear(self.config.clone(), self.shim).await?;
                LinuxRuntime::open(self.config.clone(), self.shim).await
            })
            .await
    }

    async fn cook(&self, program: Program, said: Said<'_>) -> Result<Ran, String> {
        let told = |error: runtime::Error| reconcile::chain(&error);
        let runtime = self.runtime().await.map_err(told)?;
        let id = format!("build-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let logs = self.config.dir.join("logs");
        let sandbox = SandboxSpec {
            id: id.clone(),
            hostname: "build".to_owned(),
            host_network: program.network,
            log_dir: logs.clone(),
            ..SandboxSpec::default()
        };
        // Its own before it is started: a build that is given up takes the sandbox along.
        let hold = Hold { runtime: Arc::clone(runtime), id: id.clone() };
        runtime.start_sandbox(sandbox).await.map_err(told)?;
        let log = logs.join(&id);
        let pipe = open_pipe(&log).map_err(|error| format!("make a pipe {}: {error}", log.display()))?;
        let mut changes = runtime.changes();
        runtime.start_container(&id, container(program, log)).await.map_err(|error| match error {
            runtime::Error::Start { reason, .. } => reason,
            error => reconcile::chain(&error),
        })?;
        let mut lines = Lines::default();
        let code = loop {
            tokio::select! {
                // The output first, so that a program which says much is heard to its end; both are cancel-safe.
                biased;
                ready = pipe.readable() => {
                    ready.map_err(|error| format!("read what it says: {error}"))?;
                    lines.take(&pipe, said);
                }
                change = changes.recv() => {
                    if matches!(change, Err(RecvError::Closed)) {
                        return Err("the runtime ended".to_owned());
                    }
                    if let Some(code) = ended(runtime, &id)? {
                        break code;
                    }
                }
            }
        };
        // The shim writes the last line before it tells of the end.
        lines.take(&pipe, said);
        Ok(Ran { code, changes: runtime.changes_of(&id, CONTAINER, 0), hold: Box::new(hold) })
    }
}

impl Runner for Kitchen {
    fn run<'a>(&'a self, program: Program, said: Said<'a>) -> BoxFuture<'a, Result<Ran, String>> {
        Box::pin(self.cook(program, said))
    }
}

/// Stops the sandbox when nobody needs it any more.
struct Hold {
    runtime: Arc<LinuxRuntime>,
    id: String,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let (runtime, id) = (Arc::clone(&self.runtime), std::mem::take(&mut self.id));
        tokio::spawn(async move {
            if let Err(error) = runtime.stop_sandbox(&id).await {
                tracing::warn!(
                    id,
                    error = reconcile::chain(&error),
                    "a build's sandbox stays until the next build"
                );
            }
        });
    }
}

fn ended(runtime: &LinuxRuntime, id: &str) -> Result<Option<i32>, String> {
    let sandbox = runtime.sandbox(id).filter(|sandbox| sandbox.alive);
    let sandbox = sandbox.ok_or("its sandbox was killed")?;
    Ok(sandbox.containers.iter().find_map(|container| match container.phase {
        Phase::Exited { code, .. } => Some(code),
        Phase::Running { .. } => None,
    }))
}

/// A pipe in the place of a log file: what is said is heard at once and kept nowhere.
fn open_pipe(path: &Path) -> std::io::Result<pipe::Receiver> {
    nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    // Open for writing too, so that the shim can open its end at any time.
    pipe::OpenOptions::new().read_write(true).open_receiver(path)
}

/// Takes the lines of a container's log apart.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn take(&mut self, pipe: &pipe::Receiver, said: Said<'_>) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read) = pipe.try_read(&mut buffer) {
            self.hear(&buffer[..read], said);
        }
    }

    fn hear(&mut self, bytes: &[u8], said: Said<'_>) {
        self.0.extend_from_slice(bytes);
        let end = self.0.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut text = Vec::new();
        for line in self.0.drain(..end).collect::<Vec<_>>().split_inclusive(|byte| *byte == b'\n') {
            let mut fields = line.splitn(4, |byte| *byte == b' ');
            if let (Some(tag), Some(words)) = (fields.nth(2), fields.next()) {
                text.extend_from_slice(if tag == b"P" { &words[..words.len() - 1] } else { words });
            }
        }
        if !text.is_empty() {
            said(&text);
        }
    }
}

fn container(program: Program, log_path: PathBuf) -> ContainerSpec {
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    let own = ["/etc/resolv.conf", "/etc/hosts"].map(|path| Bind {
        source: Some(path.into()),
        target: path.to_owned(),
        read_only: true,
    });
    let mounts = own.into_iter().chain(program.mounts).map(|bind| Mount {
        kind: if bind.source.is_some() { MountKind::Bind } else { MountKind::Tmpfs { size_bytes: None } },
        source: bind.source.unwrap_or_default(),
        target: bind.target,
        read_only: bind.read_only,
        ..Mount::default()
    });
    ContainerSpec {
        name: CONTAINER.to_owned(),
        layers: program.layers,
        args: program.args,
        env: program.env,
        cwd: program.cwd,
        user_name: Some(program.user).filter(|user| !user.is_empty()),
        mounts: mounts.collect(),
        capabilities: names(DEFAULT_CAPABILITIES),
        masked_paths: names(MASKED_PATHS),
        readonly_paths: names(READONLY_PATHS),
        log_path,
        log_max_bytes: u64::MAX,
        ..ContainerSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn what_a_program_says_is_taken_out_of_the_log_whatever_pieces_it_comes_in() {
        let heard = Mutex::new(Vec::new());
        let said = |bytes: &[u8]| heard.lock().expect("one thread").extend_from_slice(bytes);
        let mut lines = Lines::default();
        lines.hear(b"2026 stdout F one  two\n2026 stderr P lo", &said);
        lines.hear(b"ng\n2026 stderr F er\n2026 stdout F \n", &said);
        assert_eq!(heard.into_inner().expect("one thread"), b"one  two\nlonger\n\n");
    }
}
