//! The runtime on Linux: one shim per sandbox, found again after a restart.
//!
//! Invariant: what a shim holds outlives this process; everything here is rebuilt from the directories and the shims.
//! Invariant: starting and stopping of one sandbox never overlap.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use shim::cgroup::{self, Devices, Layout};
use shim::{Answer, Birth, Message, Order, Refusal, State};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::link::{self, Conversation, Link};
use crate::streams::Stream;
use crate::{
    Amount, ContainerSpec, ContainerState, Error, Exec, ExecSpec, Isolation, Missing, Runtime, SandboxSpec,
    SandboxState, Seccomp, Usage, check_name, seccomp, sweep, wire,
};

/// Changes remembered for a slow listener; past that it is told to look at everything.
const CHANGES: usize = 4096;
/// A kill takes milliseconds; a process stuck in the kernel is reported, not waited for.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// Where and how.
#[derive(Debug, Clone)]
pub struct Config {
    /// The runtime's own directory; made if missing.
    pub dir: PathBuf,
    /// The instance's cgroup in each tree, e.g. `holdfast-ab12`.
    pub cgroup: String,
    /// What to do on a machine that cannot isolate everything.
    pub isolation: Demand,
}

/// How much isolation is insisted on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Demand {
    /// Anything missing refuses the start.
    #[default]
    Full,
    /// What is missing is said and gone without.
    BestEffort,
}

/// The runtime on Linux.
pub struct LinuxRuntime {
    config: Config,
    layout: Layout,
    program: PathBuf,
    missing: Vec<Missing>,
    known: Arc<Known>,
    gates: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
    token: CancellationToken,
}

struct Known {
    sandboxes: Mutex<BTreeMap<String, Entry>>,
    changes: broadcast::Sender<String>,
}

struct Entry {
    state: SandboxState,
    /// The protocol that its shim speaks.
    version: u32,
    link: Option<Link>,
}

impl LinuxRuntime {
    /// Finds out what the machine offers and reconnects to the shims that run.
    ///
    /// # Errors
    /// [`Error::Isolation`] when `config.isolation` is full and something is missing; [`Error::Dir`].
    pub async fn open(config: Config, shim: &[u8]) -> Result<Arc<LinuxRuntime>, Error> {
        let dir = |step: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| Error::Dir { step, path, source }
        };
        let sandboxes = config.dir.join("sandboxes");
        make_private(&sandboxes).map_err(dir("create", &sandboxes))?;
        let program =
            install(&config.dir.join("bin"), shim).map_err(dir("write the shim into", &config.dir))?;
        let layout = cgroup::detect().map_err(dir("read", Path::new("/proc/self/mountinfo")))?;
        let missing = look_for_missing(&config, &program, &layout).await;
        if config.isolation == Demand::Full && !missing.is_empty() {
            let words: Vec<String> = missing.iter().map(|m| format!("{} ({})", m.what, m.why)).collect();
            return Err(Error::Isolation { missing: words.join("; ") });
        }
        let known = Arc::new(Known { sandboxes: Mutex::default(), changes: broadcast::channel(CHANGES).0 });
        let (gates, token) = (Mutex::default(), CancellationToken::new());
        let runtime = Arc::new(LinuxRuntime { config, layout, program, missing, known, gates, token });
        let entries = std::fs::read_dir(&sandboxes).map_err(dir("read", &sandboxes))?;
        let dirs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        join_all(dirs.iter().map(|dir| runtime.adopt(dir))).await;
        Ok(runtime)
    }

    /// Stops every sandbox and removes the instance's cgroups and the runtime's directory: nothing stays.
    ///
    /// # Errors
    /// The first sandbox, cgroup or directory that would not go; the others are removed all the same.
    pub async fn remove_all(&self) -> Result<(), Error> {
        let ids: Vec<String> = self.sandboxes().into_keys().collect();
        let outcomes = join_all(ids.iter().map(|id| self.stop_sandbox(id))).await;
        outcomes.into_iter().collect::<Result<(), Error>>()?;
        let (layout, group, dir) = (self.layout.clone(), self.config.cgroup.clone(), self.config.dir.clone());
        let removed =
            block(move || sweep::groups(&layout, &group).and_then(|()| sweep::directory(&dir))).await;
        removed.map_err(|source| Error::Dir { step: "remove", path: self.config.dir.clone(), source })
    }

    /// What a container wrote, on top of its layers: the upper directory of its overlay. There until it is removed.
    #[must_use]
    pub fn changes_of(&self, sandbox: &str, name: &str, attempt: u32) -> PathBuf {
        self.dir_of(sandbox).join(shim::CONTAINERS).join(shim::key(name, attempt)).join("upper")
    }

    async fn adopt(&self, dir: &Path) {
        match link::connect(dir).await {
            Ok((state, link, talk)) => self.know(&state, link, talk),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "a sandbox's shim is gone");
                let read = |name: &str| std::fs::read(dir.join(name)).unwrap_or_default();
                let mut state: State = serde_json::from_slice(&read(shim::STATE)).unwrap_or_else(|_| {
                    // The last start did not get far enough for last words.
                    let spec: shim::Sandbox = serde_json::from_slice(&read(shim::SPEC)).unwrap_or_default();
                    State { labels: spec.labels, ..State::default() }
                });
                state.id =
                    dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let entry = Entry { state: wire::sandbox_state(&state, false), version: 0, link: None };
                self.known.lock().insert(state.id, entry);
            }
        }
    }

    /// Keeps the state and follows the shim from here on.
    fn know(&self, state: &State, link: Link, talk: Conversation) {
        let (id, pid) = (state.id.clone(), state.pid);
        let entry =
            Entry { state: wire::sandbox_state(state, true), version: state.version, link: Some(link) };
        self.known.lock().insert(id.clone(), entry);
        let _ = self.known.changes.send(id.clone());
        let (known, token) = (Arc::clone(&self.known), self.token.clone());
        tokio::spawn(async move {
            let heard = |message| known.hear(&id, message);
            // Ours to drop at any point: a daemon that ends simply stops listening.
            if token.run_until_cancelled(talk.run(heard)).await.is_some() {
                known.lose(&id, pid);
            }
        });
    }

    async fn launch(&self, spec: &SandboxSpec) -> Result<SandboxState, Error> {
        let failed = |reason: String| Error::Sandbox { id: spec.id.clone(), reason };
        let dir = self.dir_of(&spec.id);
        let told = |step: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| Error::Dir { step, path, source }
        };
        make_private(&dir.join(shim::CONTAINERS)).map_err(told("create", &dir))?;
        std::fs::create_dir_all(&spec.log_dir).map_err(told("create", &spec.log_dir))?;
        let whole = shim::Sandbox {
            id: spec.id.clone(),
            hostname: spec.hostname.clone(),
            labels: spec.labels.clone(),
            host_network: spec.host_network,
            host_pid: spec.pids == crate::PidNamespace::Host,
            share_pid: spec.pids == crate::PidNamespace::Sandbox,
            host_ipc: spec.host_ipc,
            sysctls: spec.sysctls.clone(),
            resources: wire::resources(&spec.resources),
            cgroups: self.layout.clone(),
            group: self.config.cgroup.clone(),
        };
        let text = serde_json::to_vec(&whole).map_err(|error| failed(error.to_string()))?;
        std::fs::write(dir.join(shim::SPEC), text).map_err(told("write", &dir))?;
        let output = run(&self.program, "run", &dir).await.map_err(|error| failed(error.to_string()))?;
        match serde_json::from_slice(&output) {
            Ok(Birth::Ready(_)) => {}
            Ok(Birth::Failed(reason)) => return Err(failed(reason)),
            Err(_) => return Err(failed("its shim ended without a word".to_owned())),
        }
        let (state, link, talk) = link::connect(&dir).await.map_err(|error| failed(error.to_string()))?;
        self.know(&state, link, talk);
        Ok(wire::sandbox_state(&state, true))
    }

    /// Removes what a sandbox was made of, the shim included if it does not go by itself.
    async fn clear(&self, id: &str) -> Result<(), Error> {
        let (layout, dir) = (self.layout.clone(), self.dir_of(id));
        let (group, shims) =
            (format!("{}/{id}", self.config.cgroup), format!("{}/shims", self.config.cgroup));
        let swept = block(move || sweep::sandbox(&layout, &group, &shims, &dir)).await;
        swept.map_err(|error| Error::Stop { id: id.to_owned(), reason: error.to_string() })
    }

    fn dir_of(&self, id: &str) -> PathBuf {
        self.config.dir.join("sandboxes").join(id)
    }

    fn gate(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut gates = self.gates.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        gates.retain(|_, gate| gate.strong_count() > 0);
        if let Some(gate) = gates.get(id).and_then(Weak::upgrade) {
            return gate;
        }
        let gate = Arc::default();
        gates.insert(id.to_owned(), Arc::downgrade(&gate));
        gate
    }

    /// Sends an order that is answered by streams.
    async fn streams(
        &self,
        sandbox: &str,
        name: &str,
        order: Order,
        (tty, stdin): (bool, bool),
    ) -> Result<Exec, Error> {
        self.link(sandbox)?;
        let broken = |error: io::Error| Error::Shim { id: sandbox.to_owned(), reason: error.to_string() };
        let started = link::exec(&self.dir_of(sandbox), order).await.map_err(broken)?;
        let started = started.map_err(|answer| match answer {
            Answer::Refused { refusal: Refusal::NotFound, .. } => {
                Error::NoContainer { id: sandbox.to_owned(), name: name.to_owned() }
            }
            Answer::Refused { refusal: Refusal::Unsupported, .. } => {
                let reason = "its pod was started by an older holdfast: start the pod anew".to_owned();
                Error::Exec { name: name.to_owned(), reason, code: 0 }
            }
            Answer::Refused { reason, code, .. } => Error::Exec { name: name.to_owned(), reason, code },
            other => odd(sandbox, &other),
        })?;
        let streams: Result<Vec<Stream>, io::Error> = started.fds.into_iter().map(Stream::new).collect();
        let mut streams = streams.map_err(broken)?;
        // A terminal comes first and may be all there is; an input that was asked for but is not open is not sent.
        let first = (streams.len() > if tty { 0 } else { 2 }).then(|| streams.remove(0));
        let terminal = first.clone().filter(|_| tty);
        let mut streams = streams.into_iter();
        let short = || broken(io::Error::other("it sent too few streams"));
        let stdout = streams.next().or_else(|| terminal.clone()).ok_or_else(short)?;
        let stderr = if tty { None } else { Some(streams.next().ok_or_else(short)?) };
        let (orders, order_receiver) = mpsc::channel(16);
        let (exit_sender, exit) = oneshot::channel();
        tokio::spawn(link::follow((started.stream, started.pid), terminal, order_receiver, exit_sender));
        Ok(Exec {
            stdin: first.filter(|_| stdin).map(|s| Box::new(s) as _),
            stdout: Box::new(stdout),
            stderr: stderr.map(|s| Box::new(s) as _),
            orders,
            exit,
        })
    }

    fn link(&self, id: &str) -> Result<Link, Error> {
        let known = self.known.lock();
        let entry = known.get(id).ok_or_else(|| Error::NoSandbox { id: id.to_owned() })?;
        entry.link.clone().ok_or_else(|| Error::Lost { id: id.to_owned() })
    }

    async fn ask(&self, id: &str, order: Order) -> Result<Answer, Error> {
        self.link(id)?.ask(order).await.ok_or_else(|| Error::Lost { id: id.to_owned() })
    }
}

impl Drop for LinuxRuntime {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.sandboxes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn hear(&self, id: &str, message: Message) {
        if let Some(entry) = self.lock().get_mut(id) {
            let containers = &mut entry.state.containers;
            match message {
                Message::Container(observed) => put(containers, wire::container_state(&observed)),
                Message::Removed { name, attempt } => {
                    containers.retain(|c| (&c.name, c.attempt) != (&name, attempt));
                }
                Message::Reply { .. } | Message::ExecExit { .. } => return,
            }
        }
        let _ = self.changes.send(id.to_owned());
    }

    /// The shim is gone, unless another one has taken its place meanwhile.
    fn lose(&self, id: &str, pid: u32) {
        if let Some(entry) = self.lock().get_mut(id).filter(|entry| entry.state.shim_pid == pid) {
            entry.link = None;
            entry.state.alive = false;
            entry.state.shim_pid = 0;
        }
        let _ = self.changes.send(id.to_owned());
    }
}

#[async_trait]
impl Runtime for LinuxRuntime {
    async fn isolation(&self) -> Isolation {
        Isolation { missing: self.missing.clone() }
    }

    async fn start_sandbox(&self, spec: SandboxSpec) -> Result<SandboxState, Error> {
        check_name("sandbox", &spec.id)?;
        if spec.id == "shims" {
            return Err(Error::Name { what: "sandbox", name: spec.id });
        }
        let gate = self.gate(&spec.id);
        // Held across the start on purpose: it is what makes a second start wait for the first one's answer.
        let _turn = gate.lock().await;
        let there = self.known.lock().get(&spec.id).map(|entry| entry.state.clone());
        match there {
            Some(state) if state.alive => return Ok(state),
            Some(_) => return Err(Error::Lost { id: spec.id }),
            None => {}
        }
        let started = self.launch(&spec).await;
        if started.is_err()
            && let Err(error) = self.clear(&spec.id).await
        {
            tracing::warn!(id = %spec.id, %error, "what a failed start left behind stays");
        }
        started
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), Error> {
        check_name("sandbox", id)?;
        let gate = self.gate(id);
        // Held across the stop on purpose, as above.
        let _turn = gate.lock().await;
        let link = self.known.lock().get(id).and_then(|entry| entry.link.clone());
        if let Some(link) = link {
            let asked = tokio::time::timeout(STOP_PATIENCE, link.ask(Order::Shutdown)).await;
            if !matches!(asked, Ok(Some(Answer::Done))) {
                tracing::debug!(id, ?asked, "the shim did not clear up; doing it from outside");
            }
        }
        self.clear(id).await?;
        if self.known.lock().remove(id).is_some() {
            let _ = self.known.changes.send(id.to_owned());
        }
        Ok(())
    }

    async fn start_container(&self, sandbox: &str, spec: ContainerSpec) -> Result<ContainerState, Error> {
        check_name("container", &spec.name)?;
        let name = spec.name.clone();
        let profile = match &spec.seccomp {
            Seccomp::Profile(path) => Some(path.clone()),
            Seccomp::Default | Seccomp::Unconfined => None,
        };
        let mut container = Box::new(wire::container(spec));
        if let Some(path) = profile {
            let failed = |why: String| Error::Start {
                name: name.clone(),
                reason: format!("load seccomp profile {}: {why}", path.display()),
                code: 128,
            };
            let text = tokio::fs::read(&path).await.map_err(|error| failed(error.to_string()))?;
            container.filter = seccomp::compile(&text).map_err(failed)?;
        }
        let version = self.known.lock().get(sandbox).map_or(shim::VERSION, |entry| entry.version);
        if let Some(what) = wire::unknown_to(version, &container) {
            let reason = format!(
                "{what}: its pod was started by an older holdfast that knows none; start the pod anew"
            );
            return Err(Error::Start { name, reason, code: 128 });
        }
        match self.ask(sandbox, Order::Start { container }).await? {
            // The shim told all its listeners before it answered, so `sandboxes()` knows of it by now.
            Answer::Container(observed) => Ok(wire::container_state(&observed)),
            Answer::Refused { reason, code, .. } => Err(Error::Start { name, reason, code }),
            other => Err(odd(sandbox, &other)),
        }
    }

    async fn signal_container(
        &self,
        sandbox: &str,
        name: &str,
        attempt: u32,
        signal: i32,
    ) -> Result<(), Error> {
        let order = Order::Signal { name: name.to_owned(), attempt, signal };
        done(sandbox, name, self.ask(sandbox, order).await?)
    }

    async fn remove_container(&self, sandbox: &str, name: &str, attempt: u32) -> Result<(), Error> {
        let order = Order::Remove { name: name.to_owned(), attempt };
        done(sandbox, name, self.ask(sandbox, order).await?)
    }

    async fn exec(&self, sandbox: &str, name: &str, spec: ExecSpec) -> Result<Exec, Error> {
        let order = Order::Exec { name: name.to_owned(), exec: wire::exec(&spec) };
        self.streams(sandbox, name, order, (spec.tty, spec.stdin)).await
    }

    async fn attach(&self, sandbox: &str, name: &str, tty: bool, stdin: bool) -> Result<Exec, Error> {
        let order = Order::Attach { name: name.to_owned(), stdin };
        self.streams(sandbox, name, order, (tty, stdin)).await
    }

    async fn close_input(&self, sandbox: &str, name: &str) -> Result<(), Error> {
        let Some(answer) = self.link(sandbox)?.ask(Order::CloseInput { name: name.to_owned() }).await else {
            return Err(Error::Lost { id: sandbox.to_owned() });
        };
        match answer {
            Answer::Done | Answer::Refused { refusal: Refusal::NotFound, .. } => Ok(()),
            other => Err(odd(sandbox, &other)),
        }
    }

    fn sandboxes(&self) -> BTreeMap<String, SandboxState> {
        self.known.lock().iter().map(|(id, entry)| (id.clone(), entry.state.clone())).collect()
    }

    fn sandbox(&self, id: &str) -> Option<SandboxState> {
        self.known.lock().get(id).map(|entry| entry.state.clone())
    }

    fn changes(&self) -> broadcast::Receiver<String> {
        self.known.changes.subscribe()
    }

    async fn resize_container(
        &self,
        sandbox: &str,
        name: &str,
        attempt: u32,
        resources: &crate::Resources,
    ) -> Result<(), Error> {
        self.link(sandbox)?;
        let runs = self.known.lock().get(sandbox).is_some_and(|entry| {
            let mut states = entry.state.containers.iter();
            states.any(|c| {
                c.name == name && c.attempt == attempt && matches!(c.phase, crate::Phase::Running { .. })
            })
        });
        if !runs {
            return Ok(());
        }
        let group = format!("{}/{sandbox}/{}", self.config.cgroup, shim::key(name, attempt));
        let (layout, bounds) = (self.layout.clone(), wire::resources(resources));
        let resized = block(move || layout.update(&group, &bounds)).await;
        resized.map_err(|error| Error::Resize { name: name.to_owned(), reason: error.to_string() })
    }

    async fn resize_sandbox(&self, sandbox: &str, resources: &crate::Resources) -> Result<(), Error> {
        self.link(sandbox)?;
        let group = format!("{}/{sandbox}", self.config.cgroup);
        let (layout, bounds) = (self.layout.clone(), wire::resources(resources));
        let resized = block(move || layout.update(&group, &bounds)).await;
        resized.map_err(|error| Error::Resize { name: "of a sandbox".to_owned(), reason: error.to_string() })
    }

    async fn written(&self, sandbox: &str) -> Result<BTreeMap<String, u64>, Error> {
        let containers = self.known.lock().get(sandbox).map(|entry| entry.state.containers.clone());
        let containers = containers.ok_or_else(|| Error::NoSandbox { id: sandbox.to_owned() })?;
        let dir = self.dir_of(sandbox).join(shim::CONTAINERS);
        let walked = block(move || {
            let mut written = BTreeMap::new();
            for container in containers {
                let upper = dir.join(shim::key(&container.name, container.attempt)).join("upper");
                *written.entry(container.name).or_default() += size(&upper);
            }
            Ok(written)
        });
        walked.await.map_err(|error| Error::Shim { id: sandbox.to_owned(), reason: error.to_string() })
    }

    async fn usage(&self, sandbox: &str) -> Result<Usage, Error> {
        self.link(sandbox)?;
        let group = format!("{}/{sandbox}", self.config.cgroup);
        let containers =
            self.known.lock().get(sandbox).map(|e| e.state.containers.clone()).unwrap_or_default();
        let layout = self.layout.clone();
        block(move || {
            let amount = |group: &str| {
                let used = layout.usage(group);
                Amount {
                    cpu_nanos: used.cpu_nanos,
                    memory_bytes: used.memory_bytes,
                    memory_working_set_bytes: used.working_set_bytes,
                    pids: used.pids,
                }
            };
            let running = containers.iter().filter(|c| matches!(c.phase, crate::Phase::Running { .. }));
            let each = running
                .map(|c| (c.name.clone(), amount(&format!("{group}/{}", shim::key(&c.name, c.attempt)))));
            Ok(Usage { containers: each.collect(), total: amount(&group) })
        })
        .await
        .map_err(|error| Error::Shim { id: sandbox.to_owned(), reason: error.to_string() })
    }
}

/// What a directory takes on the disk; what vanishes meanwhile takes nothing.
fn size(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let one = |entry: std::fs::DirEntry| {
        let Ok(meta) = entry.metadata() else { return 0 };
        let own = meta.blocks() * 512;
        if meta.is_dir() { own + size(&entry.path()) } else { own }
    };
    entries.flatten().map(one).sum()
}

/// Sets a container's state in the list, kept in order of name and attempt.
pub(crate) fn put(containers: &mut Vec<ContainerState>, state: ContainerState) {
    match containers.binary_search_by(|c| (&c.name, c.attempt).cmp(&(&state.name, state.attempt))) {
        Ok(at) => containers[at] = state,
        Err(at) => containers.insert(at, state),
    }
}

fn done(sandbox: &str, name: &str, answer: Answer) -> Result<(), Error> {
    let (id, name) = (sandbox.to_owned(), name.to_owned());
    match answer {
        Answer::Done => Ok(()),
        Answer::Refused { refusal: Refusal::NotFound, .. } => Err(Error::NoContainer { id, name }),
        Answer::Refused { refusal: Refusal::Running, .. } => Err(Error::Running { id, name }),
        Answer::Refused { reason, .. } => {
            Err(Error::Shim { id, reason: format!("container {name}: {reason}") })
        }
        other => Err(odd(sandbox, &other)),
    }
}

fn odd(sandbox: &str, answer: &Answer) -> Error {
    Error::Shim { id: sandbox.to_owned(), reason: format!("it answered {answer:?}") }
}

async fn block<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Makes the instance's cgroups and tries everything else in a child of its own.
async fn look_for_missing(config: &Config, program: &Path, layout: &Layout) -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut add = |what: &str, why: String| missing.push(Missing { what: what.to_owned(), why });
    for controller in layout.missing() {
        add(
            &format!("{controller} limits"),
            format!("no cgroup tree carries the controller {controller}; mount one"),
        );
    }
    let shims = format!("{}/shims", config.cgroup);
    let bounds = cgroup::Resources::default();
    let made = layout
        .delegate("")
        .and_then(|()| layout.create(&config.cgroup, &bounds, Devices::Inherited))
        .and_then(|()| layout.delegate(&config.cgroup))
        .and_then(|()| layout.create(&shims, &bounds, Devices::Inherited));
    if let Err(error) = made {
        add("cgroups", format!("{error}; run as root where the cgroup trees are writable"));
    }
    let dir = config.dir.join("probe");
    let _ = sweep::directory(&dir);
    let probed = run(program, "probe", &dir)
        .await
        .and_then(|output| serde_json::from_slice::<shim::Probe>(&output).map_err(io::Error::from));
    match probed {
        Ok(probe) => probe.missing.into_iter().for_each(|(what, why)| add(&what, why)),
        Err(error) => add("the shim", format!("run {}: {error}", program.display())),
    }
    let _ = sweep::directory(&dir);
    missing
}

/// Runs the shim program to the end of its first process and answers what it printed.
async fn run(program: &Path, role: &str, dir: &Path) -> io::Result<Vec<u8>> {
    let mut command = tokio::process::Command::new(program);
    command.arg(role).arg(dir).env_clear().current_dir("/").stdin(std::process::Stdio::null());
    let mut tries = 0;
    loop {
        match command.output().await {
            // A process that another thread just forked may hold the freshly written program open until its exec.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < 50 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            outcome => return outcome.map(|output| output.stdout),
        }
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Writes the shim once per content: running shims keep the file that they were started from.
fn install(dir: &Path, shim: &[u8]) -> io::Result<PathBuf> {
    make_private(dir)?;
    // FNV-1a: tells versions apart, guards against nothing.
    let hash = shim.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let path = dir.join(format!("holdfast-shim-{hash:016x}"));
    if std::fs::metadata(&path).is_ok_and(|meta| meta.len() == shim.len() as u64) {
        return Ok(path);
    }
    let fresh = dir.join(format!(".shim-{}", std::process::id()));
    std::fs::write(&fresh, shim)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o700))?;
    std::fs::rename(&fresh, &path)?;
    Ok(path)
}
