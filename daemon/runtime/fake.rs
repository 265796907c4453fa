//! The runtime in memory: programs are played, everything else behaves as on Linux.
//!
//! Invariant: passes the same suite as `LinuxRuntime`. Nothing is played by itself: ends are decided by the play or by
//! [`FakeRuntime::end`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::io::AsyncReadExt;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::linux::put;
use crate::{
    Amount, ContainerSpec, ContainerState, Error, Exec, ExecOrder, ExecSpec, Exit, Isolation, Phase, Runtime,
    SandboxSpec, SandboxState, Usage, check_name,
};

const SIGKILL: i32 = 9;

/// What a program does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Play {
    /// Runs until a signal or [`FakeRuntime::end`].
    Run,
    /// Says this on its standard output and ends with this code at once.
    End {
        /// What an exec's reader sees.
        says: String,
        /// The exit code.
        code: i32,
    },
    /// Cannot be started.
    Refuse {
        /// Why.
        reason: String,
        /// The exit code it stands for.
        code: i32,
    },
}

type Director = dyn Fn(&[String]) -> Play + Send + Sync;

/// The runtime in memory.
pub struct FakeRuntime {
    sandboxes: Mutex<BTreeMap<String, SandboxState>>,
    specs: Mutex<BTreeMap<(String, String, u32), ContainerSpec>>,
    changes: broadcast::Sender<String>,
    play: Box<Director>,
    next_pid: Mutex<u32>,
    attached: Mutex<Vec<Attached>>,
}

/// Who hears of the end of which container and attempt.
type Attached = (String, String, u32, oneshot::Sender<Exit>);

impl Default for FakeRuntime {
    fn default() -> FakeRuntime {
        FakeRuntime::with(play)
    }
}

impl FakeRuntime {
    /// A runtime whose programs do what `play` says of their arguments.
    pub fn with(play: impl Fn(&[String]) -> Play + Send + Sync + 'static) -> FakeRuntime {
        FakeRuntime {
            sandboxes: Mutex::default(),
            specs: Mutex::default(),
            changes: broadcast::channel(4096).0,
            play: Box::new(play),
            next_pid: Mutex::new(1000),
            attached: Mutex::default(),
        }
    }

    /// Ends a container as its program would; nothing happens to one that does not run.
    pub fn end(&self, sandbox: &str, name: &str, attempt: u32, end: Phase) {
        if let Some(state) = lock(&self.sandboxes).get_mut(sandbox) {
            let mut all = state.containers.iter_mut();
            if let Some(container) = all.find(|c| c.name == name && c.attempt == attempt && runs(c)) {
                if let Phase::Exited { code, signal, .. } = end {
                    self.tell_attached((sandbox, name, attempt), Exit { code, signal });
                }
                container.phase = end;
            }
        }
        self.tell(sandbox);
    }

    /// Loses a sandbox's shim, as `kill -9` of it would.
    pub fn lose(&self, sandbox: &str) {
        if let Some(state) = lock(&self.sandboxes).get_mut(sandbox) {
            state.alive = false;
            state.shim_pid = 0;
        }
        self.tell(sandbox);
    }

    /// What a container was started with.
    #[must_use]
    pub fn spec(&self, sandbox: &str, name: &str, attempt: u32) -> Option<ContainerSpec> {
        lock(&self.specs).get(&(sandbox.to_owned(), name.to_owned(), attempt)).cloned()
    }

    fn tell(&self, sandbox: &str) {
        let _ = self.changes.send(sandbox.to_owned());
    }

    fn tell_attached(&self, (sandbox, name, attempt): (&str, &str, u32), exit: Exit) {
        let mut attached = lock(&self.attached);
        let (theirs, others): (Vec<Attached>, Vec<Attached>) = std::mem::take(&mut *attached)
            .into_iter()
            .partition(|(s, n, a, _)| (s.as_str(), n.as_str(), *a) == (sandbox, name, attempt));
        *attached = others;
        for (.., end) in theirs {
            // Whoever attached may have gone.
            let _ = end.send(exit);
        }
    }

    fn pid(&self) -> u32 {
        let mut next = lock(&self.next_pid);
        *next += 1;
        *next
    }
}

/// The play when none is given: `sh -c "exit N"` ends, `echo` echoes, `/missing…` is not there, all else runs.
#[must_use]
pub fn play(args: &[String]) -> Play {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["sh", "-c", line] if line.starts_with("exit ") => {
            Play::End { says: String::new(), code: line[5..].trim().parse().unwrap_or(2) }
        }
        ["echo", rest @ ..] => Play::End { says: format!("{}\n", rest.join(" ")), code: 0 },
        [] => Play::Refuse { reason: "exec: no command was given".to_owned(), code: 127 },
        [program, ..] if program.starts_with("/missing") => {
            let reason = format!("exec: {program:?}: stat {program}: no such file or directory");
            Play::Refuse { reason, code: 127 }
        }
        _ => Play::Run,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn runs(container: &ContainerState) -> bool {
    matches!(container.phase, Phase::Running { .. })
}

fn exited(code: i32, signal: Option<i32>) -> Phase {
    Phase::Exited { code, signal, oom_killed: false, finished_at: Timestamp::now() }
}

fn alive<'a>(
    sandboxes: &'a mut BTreeMap<String, SandboxState>,
    id: &str,
) -> Result<&'a mut SandboxState, Error> {
    let state = sandboxes.get_mut(id).ok_or_else(|| Error::NoSandbox { id: id.to_owned() })?;
    if state.alive { Ok(state) } else { Err(Error::Lost { id: id.to_owned() }) }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn isolation(&self) -> Isolation {
        Isolation::default()
    }

    async fn start_sandbox(&self, spec: SandboxSpec) -> Result<SandboxState, Error> {
        check_name("sandbox", &spec.id)?;
        let pid = self.pid();
        let state = {
            let mut all = lock(&self.sandboxes);
            if let Some(there) = all.get(&spec.id) {
                return if there.alive { Ok(there.clone()) } else { Err(Error::Lost { id: spec.id }) };
            }
            let state = SandboxState {
                id: spec.id.clone(),
                labels: spec.labels,
                shim_pid: pid,
                netns: PathBuf::from(format!("/proc/{pid}/ns/net")),
                created_at: Timestamp::now(),
                containers: Vec::new(),
                alive: true,
            };
            all.insert(spec.id.clone(), state.clone());
            state
        };
        self.tell(&spec.id);
        Ok(state)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), Error> {
        check_name("sandbox", id)?;
        if lock(&self.sandboxes).remove(id).is_some() {
            lock(&self.specs).retain(|(sandbox, ..), _| sandbox != id);
            self.tell(id);
        }
        Ok(())
    }

    async fn start_container(&self, sandbox: &str, spec: ContainerSpec) -> Result<ContainerState, Error> {
        check_name("container", &spec.name)?;
        let pid = self.pid();
        let state = {
            let mut all = lock(&self.sandboxes);
            let state = alive(&mut all, sandbox)?;
            let mut there = state.containers.iter();
            if let Some(there) = there.find(|c| c.name == spec.name && c.attempt == spec.attempt) {
                return Ok(there.clone());
            }
            let phase = match (self.play)(&spec.args) {
                Play::Run => Phase::Running { pid },
                Play::End { code, .. } => exited(code, None),
                Play::Refuse { reason, code } => return Err(Error::Start { name: spec.name, reason, code }),
            };
            let (name, attempt) = (spec.name.clone(), spec.attempt);
            let container =
                ContainerState { name, attempt, started_at: Timestamp::now(), phase, message: String::new() };
            put(&mut state.containers, container.clone());
            container
        };
        lock(&self.specs).insert((sandbox.to_owned(), spec.name.clone(), spec.attempt), spec);
        self.tell(sandbox);
        Ok(state)
    }

    async fn signal_container(
        &self,
        sandbox: &str,
        name: &str,
        attempt: u32,
        signal: i32,
    ) -> Result<(), Error> {
        {
            let mut all = lock(&self.sandboxes);
            let state = alive(&mut all, sandbox)?;
            if !state.containers.iter().any(|c| c.name == name && c.attempt == attempt) {
                return Err(Error::NoContainer { id: sandbox.to_owned(), name: name.to_owned() });
            }
        }
        // Signals that ask for an end get one; the rest is ignored, as by most programs.
        if matches!(signal, SIGKILL | 2 | 3 | 15) {
            self.end(sandbox, name, attempt, exited(128 + signal, Some(signal)));
        }
        Ok(())
    }

    async fn remove_container(&self, sandbox: &str, name: &str, attempt: u32) -> Result<(), Error> {
        {
            let mut all = lock(&self.sandboxes);
            let state = alive(&mut all, sandbox)?;
            let this = |c: &ContainerState| c.name == name && c.attempt == attempt;
            if state.containers.iter().any(|c| this(c) && runs(c)) {
                return Err(Error::Running { id: sandbox.to_owned(), name: name.to_owned() });
            }
            state.containers.retain(|c| !this(c));
        }
        self.tell(sandbox);
        Ok(())
    }

    async fn exec(&self, sandbox: &str, name: &str, spec: ExecSpec) -> Result<Exec, Error> {
        {
            let mut all = lock(&self.sandboxes);
            let state = alive(&mut all, sandbox)?;
            if !state.containers.iter().any(|c| c.name == name && runs(c)) {
                return Err(Error::NoContainer { id: sandbox.to_owned(), name: name.to_owned() });
            }
        }
        let play = (self.play)(&spec.args);
        if let Play::Refuse { reason, code } = play {
            return Err(Error::Exec { name: name.to_owned(), reason, code });
        }
        let (orders, mut received) = mpsc::channel(16);
        let (end, exit) = oneshot::channel();
        let says = if let Play::End { says, .. } = &play { says.clone() } else { String::new() };
        tokio::spawn(async move {
            if let Play::End { code, .. } = play {
                let _ = end.send(Exit { code, signal: None });
                return;
            }
            while let Some(order) = received.recv().await {
                if let ExecOrder::Signal(signal) = order {
                    let _ = end.send(Exit { code: 128 + signal, signal: Some(signal) });
                    return;
                }
            }
            // Nobody is left to end it; it stays, as a program left alone would.
            std::future::pending::<()>().await;
        });
        Ok(Exec {
            stdin: spec.stdin.then(|| Box::new(tokio::io::sink()) as _),
            stdout: Box::new(std::io::Cursor::new(says.into_bytes()).take(u64::MAX)),
            stderr: (!spec.tty).then(|| Box::new(tokio::io::empty()) as _),
            orders,
            exit,
        })
    }

    async fn attach(&self, sandbox: &str, name: &str, tty: bool, stdin: bool) -> Result<Exec, Error> {
        let mut all = lock(&self.sandboxes);
        let state = alive(&mut all, sandbox)?;
        let running = state.containers.iter().find(|c| c.name == name && runs(c));
        let Some(running) = running.map(|container| container.attempt) else {
            return Err(Error::NoContainer { id: sandbox.to_owned(), name: name.to_owned() });
        };
        let (orders, _) = mpsc::channel(16);
        let (end, exit) = oneshot::channel();
        lock(&self.attached).push((sandbox.to_owned(), name.to_owned(), running, end));
        Ok(Exec {
            stdin: stdin.then(|| Box::new(tokio::io::sink()) as _),
            stdout: Box::new(tokio::io::empty()),
            stderr: (!tty).then(|| Box::new(tokio::io::empty()) as _),
            orders,
            exit,
        })
    }

    async fn close_input(&self, sandbox: &str, _: &str) -> Result<(), Error> {
        alive(&mut lock(&self.sandboxes), sandbox).map(|_| ())
    }

    fn sandboxes(&self) -> BTreeMap<String, SandboxState> {
        lock(&self.sandboxes).clone()
    }

    fn sandbox(&self, id: &str) -> Option<SandboxState> {
        lock(&self.sandboxes).get(id).cloned()
    }

    fn changes(&self) -> broadcast::Receiver<String> {
        self.changes.subscribe()
    }

    async fn resize_container(
        &self,
        sandbox: &str,
        name: &str,
        attempt: u32,
        resources: &crate::Resources,
    ) -> Result<(), Error> {
        alive(&mut lock(&self.sandboxes), sandbox)?;
        let key = (sandbox.to_owned(), name.to_owned(), attempt);
        if let Some(spec) = lock(&self.specs).get_mut(&key) {
            spec.resources = resources.clone();
        }
        Ok(())
    }

    async fn resize_sandbox(&self, sandbox: &str, _: &crate::Resources) -> Result<(), Error> {
        alive(&mut lock(&self.sandboxes), sandbox).map(drop)
    }

    async fn written(&self, sandbox: &str) -> Result<BTreeMap<String, u64>, Error> {
        let all = lock(&self.sandboxes);
        let state = all.get(sandbox).ok_or_else(|| Error::NoSandbox { id: sandbox.to_owned() })?;
        Ok(state.containers.iter().map(|container| (container.name.clone(), 0)).collect())
    }

    async fn usage(&self, sandbox: &str) -> Result<Usage, Error> {
        let mut all = lock(&self.sandboxes);
        let state = alive(&mut all, sandbox)?;
        let running = state.containers.iter().filter(|c| runs(c));
        let containers: BTreeMap<String, Amount> =
            running.map(|c| (c.name.clone(), Amount { pids: 1, ..Amount::default() })).collect();
        let pids = containers.len() as u64;
        Ok(Usage { total: Amount { pids, ..Amount::default() }, containers })
    }
}
