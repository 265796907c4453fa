//! What every runtime does, told as a suite that runs against any of them.
//!
//! Invariant: uses only the trait; the ground's layers must hold `sh`, `sleep` and `echo` on the default path.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::{
    ContainerSpec, ContainerState, Error, ExecOrder, ExecSpec, Phase, Runtime, SandboxSpec, SandboxState,
};

const SIGKILL: i32 = 9;
const PATIENCE: Duration = Duration::from_secs(20);

/// What the suite stands on.
#[derive(Debug, Clone)]
pub struct Ground {
    /// Layers of a root with a shell.
    pub layers: Vec<PathBuf>,
    /// Where logs go.
    pub log_dir: PathBuf,
}

impl Ground {
    /// A sandbox of that id.
    #[must_use]
    pub fn sandbox(&self, id: &str) -> SandboxSpec {
        let labels = BTreeMap::from([("kept".to_owned(), format!("label of {id}"))]);
        let (id, hostname) = (id.to_owned(), id.to_owned());
        SandboxSpec { id, hostname, labels, log_dir: self.log_dir.clone(), ..SandboxSpec::default() }
    }

    /// A container of that name that runs `args`, as container engines run one by default.
    #[must_use]
    pub fn container(&self, name: &str, args: &[&str]) -> ContainerSpec {
        ContainerSpec {
            name: name.to_owned(),
            layers: self.layers.clone(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            capabilities: crate::DEFAULT_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect(),
            masked_paths: crate::MASKED_PATHS.iter().map(|p| (*p).to_owned()).collect(),
            readonly_paths: crate::READONLY_PATHS.iter().map(|p| (*p).to_owned()).collect(),
            log_path: self.log_dir.join(format!("{name}.log")),
            ..ContainerSpec::default()
        }
    }
}

/// Runs everything, one thing after the other.
pub async fn suite(runtime: &dyn Runtime, ground: &Ground) {
    a_sandbox_started_twice_is_one(runtime, ground).await;
    a_container_lives_and_dies(runtime, ground).await;
    a_program_that_is_not_there_is_said_so(runtime, ground).await;
    an_exec_speaks_and_ends(runtime, ground).await;
    who_attaches_hears_the_end(runtime, ground).await;
    what_is_not_there_is_named(runtime, ground).await;
}

async fn a_sandbox_started_twice_is_one(runtime: &dyn Runtime, ground: &Ground) {
    let spec = ground.sandbox("twice");
    let first = runtime.start_sandbox(spec.clone()).await.expect("a sandbox");
    let second = runtime.start_sandbox(spec.clone()).await.expect("the same sandbox");
    assert_eq!(first, second);
    assert!(first.alive);
    assert_eq!(first.labels, spec.labels);
    assert_eq!(runtime.sandboxes().get("twice"), Some(&first));
    runtime.stop_sandbox("twice").await.expect("stopped");
    runtime.stop_sandbox("twice").await.expect("stopped twice is stopped once");
    assert_eq!(runtime.sandboxes().get("twice"), None);
}

async fn a_container_lives_and_dies(runtime: &dyn Runtime, ground: &Ground) {
    runtime.start_sandbox(ground.sandbox("life")).await.expect("a sandbox");
    let sleeper = ground.container("sleeper", &["sleep", "1000"]);
    let first = runtime.start_container("life", sleeper.clone()).await.expect("a container");
    assert!(matches!(first.phase, Phase::Running { pid } if pid > 1), "{first:?}");
    let again = runtime.start_container("life", sleeper).await.expect("the same container");
    assert_eq!(first, again);
    assert_eq!(container(runtime, "life", "sleeper", 0), Some(first));
    let refused = runtime.remove_container("life", "sleeper", 0).await;
    assert!(matches!(refused, Err(Error::Running { .. })), "{refused:?}");
    let usage = runtime.usage("life").await.expect("its usage");
    assert_eq!(usage.containers.keys().collect::<Vec<_>>(), ["sleeper"]);

    runtime.signal_container("life", "sleeper", 0, SIGKILL).await.expect("killed");
    let ended = ended(runtime, "life", "sleeper", 0).await;
    assert!(matches!(ended.phase, Phase::Exited { code: 137, signal: Some(9), .. }), "{ended:?}");
    runtime.signal_container("life", "sleeper", 0, SIGKILL).await.expect("killing the dead is success");
    let short = ContainerSpec { attempt: 1, ..ground.container("sleeper", &["sh", "-c", "exit 3"]) };
    runtime.start_container("life", short).await.expect("the next attempt");
    let ended = self::ended(runtime, "life", "sleeper", 1).await;
    assert!(
        matches!(ended.phase, Phase::Exited { code: 3, signal: None, oom_killed: false, .. }),
        "{ended:?}"
    );
    for _ in 0..2 {
        runtime.remove_container("life", "sleeper", 0).await.expect("removed");
    }
    until(runtime, "life", |state| state.containers.len() == 1).await;
    runtime.stop_sandbox("life").await.expect("stopped");
}

async fn a_program_that_is_not_there_is_said_so(runtime: &dyn Runtime, ground: &Ground) {
    runtime.start_sandbox(ground.sandbox("absent")).await.expect("a sandbox");
    let refused = runtime.start_container("absent", ground.container("c", &["/missing/program"])).await;
    let expected = "exec: \"/missing/program\": stat /missing/program: no such file or directory";
    assert!(
        matches!(&refused, Err(Error::Start { code: 127, reason, .. }) if reason == expected),
        "{refused:?}"
    );
    assert_eq!(container(runtime, "absent", "c", 0), None);
    runtime
        .start_container("absent", ground.container("c", &["sleep", "1000"]))
        .await
        .expect("a better command");
    runtime.stop_sandbox("absent").await.expect("stopped");
}

async fn an_exec_speaks_and_ends(runtime: &dyn Runtime, ground: &Ground) {
    runtime.start_sandbox(ground.sandbox("talk")).await.expect("a sandbox");
    runtime.start_container("talk", ground.container("c", &["sleep", "1000"])).await.expect("a container");
    let (said, code) = exec(runtime, "talk", "c", &["echo", "hello", "there"]).await;
    assert_eq!((said.as_str(), code), ("hello there\n", 0));
    let (_, code) = exec(runtime, "talk", "c", &["sh", "-c", "exit 4"]).await;
    assert_eq!(code, 4);
    let sleeping = ExecSpec { args: vec!["sleep".to_owned(), "1000".to_owned()], ..ExecSpec::default() };
    let mut running = runtime.exec("talk", "c", sleeping).await.expect("an exec");
    running.orders.send(ExecOrder::Signal(SIGKILL)).await.expect("it listens");
    let exit =
        tokio::time::timeout(PATIENCE, running.wait()).await.expect("it ends").expect("it is told how");
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    let missing = ExecSpec { args: vec!["/missing/program".to_owned()], ..ExecSpec::default() };
    let refused = runtime.exec("talk", "c", missing).await.err();
    assert!(matches!(refused, Some(Error::Exec { code: 127, .. })), "{refused:?}");
    runtime.stop_sandbox("talk").await.expect("stopped");
}

async fn who_attaches_hears_the_end(runtime: &dyn Runtime, ground: &Ground) {
    runtime.start_sandbox(ground.sandbox("heard")).await.expect("a sandbox");
    runtime.start_container("heard", ground.container("c", &["sleep", "1000"])).await.expect("a container");
    let mut attached = runtime.attach("heard", "c", false, false).await.expect("attached");
    runtime.close_input("heard", "c").await.expect("an input that is not open is closed");
    runtime.signal_container("heard", "c", 0, SIGKILL).await.expect("signalled");
    let exit =
        tokio::time::timeout(PATIENCE, attached.wait()).await.expect("it ends").expect("it is told how");
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    ended(runtime, "heard", "c", 0).await;
    let late = runtime.attach("heard", "c", false, false).await.err();
    assert!(matches!(late, Some(Error::NoContainer { .. })), "{late:?}");
    runtime.stop_sandbox("heard").await.expect("stopped");
}

async fn what_is_not_there_is_named(runtime: &dyn Runtime, ground: &Ground) {
    let no_sandbox = runtime.start_container("nowhere", ground.container("c", &["sleep", "1"])).await;
    assert!(matches!(no_sandbox, Err(Error::NoSandbox { .. })), "{no_sandbox:?}");
    runtime.start_sandbox(ground.sandbox("empty")).await.expect("a sandbox");
    let no_container = runtime.signal_container("empty", "c", 0, SIGKILL).await;
    assert!(matches!(no_container, Err(Error::NoContainer { .. })), "{no_container:?}");
    let nothing = ExecSpec { args: vec!["echo".to_owned()], ..ExecSpec::default() };
    let no_exec = runtime.exec("empty", "c", nothing).await.err();
    assert!(matches!(no_exec, Some(Error::NoContainer { .. })), "{no_exec:?}");
    runtime.remove_container("empty", "c", 0).await.expect("nothing to remove is removed");
    let odd = runtime.start_sandbox(ground.sandbox("../up")).await;
    assert!(matches!(odd, Err(Error::Name { .. })), "{odd:?}");
    runtime.stop_sandbox("empty").await.expect("stopped");
}

/// Runs a program to its end: what it said and its exit code.
pub async fn exec(runtime: &dyn Runtime, sandbox: &str, name: &str, args: &[&str]) -> (String, i32) {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let mut running =
        runtime.exec(sandbox, name, ExecSpec { args, ..ExecSpec::default() }).await.expect("an exec");
    let mut said = String::new();
    running.stdout.read_to_string(&mut said).await.expect("its output");
    let exit =
        tokio::time::timeout(PATIENCE, running.wait()).await.expect("it ends").expect("it is told how");
    (said, exit.code)
}

/// A container as observed now.
pub fn container(runtime: &dyn Runtime, sandbox: &str, name: &str, attempt: u32) -> Option<ContainerState> {
    let state = runtime.sandboxes().remove(sandbox)?;
    state.containers.into_iter().find(|c| c.name == name && c.attempt == attempt)
}

/// Waits for a container's end.
pub async fn ended(runtime: &dyn Runtime, sandbox: &str, name: &str, attempt: u32) -> ContainerState {
    let exited = |c: &ContainerState| {
        c.name == name && c.attempt == attempt && !matches!(c.phase, Phase::Running { .. })
    };
    until(runtime, sandbox, |state| state.containers.iter().any(exited)).await;
    container(runtime, sandbox, name, attempt).expect("it was there a moment ago")
}

/// Waits, woken by the runtime's own changes, until a sandbox is as wanted.
pub async fn until(runtime: &dyn Runtime, sandbox: &str, wanted: impl Fn(&SandboxState) -> bool) {
    let mut changes = runtime.changes();
    let arrived = tokio::time::timeout(PATIENCE, async {
        while !runtime.sandboxes().get(sandbox).is_some_and(&wanted) {
            let _ = changes.recv().await;
        }
    });
    assert!(arrived.await.is_ok(), "waited in vain for {sandbox}: {:?}", runtime.sandboxes().get(sandbox));
}
