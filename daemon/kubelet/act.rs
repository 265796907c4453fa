//! Does what the plan of a pod says.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client::{Cache, Key, Recorder, Weight, is_not_found};
use images::{Image, Reference};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    ConfigMap, ContainerStatus, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodStatus, Secret,
    Service,
};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use reconcile::{Plan, Queue, Reconciler, Tasks};
use runtime::{Phase, PidNamespace, Propagation, SandboxSpec};
use serde_json::json;
use tracing::debug;

use crate::Parts;
use crate::asking::Asker;
use crate::book::{Begun, Book, FailedStart, FilesProblem, MustRestart, Probed};
use crate::ending::Window;
use crate::etc;
use crate::files::{Files, Places};
use crate::plan::{Step, View};
use crate::pressure::Condition;
use crate::probes::Wanted;
use crate::spec::{self, Ground};
use crate::tokens::Tokens;
use crate::usage::Sample;
use crate::{resize, rules, security, volumes};

/// Pulls and starts that fail are tried again after this, doubling up to five minutes.
const LONGEST_WAIT_SECONDS: i64 = 300;

/// One probe task and what it was made for.
pub(crate) struct Probing {
    pub(crate) wanted: Wanted,
    pub(crate) task: tokio::task::AbortHandle,
}

/// The kubelet of one node.
pub(crate) struct Kubelet {
    pub(crate) parts: Parts,
    pub(crate) queue: Queue<String>,
    pub(crate) book: Book,
    pub(crate) pods: Cache<Pod>,
    pub(crate) config_maps: Cache<ConfigMap>,
    pub(crate) secrets: Cache<Secret>,
    pub(crate) services: Cache<Service>,
    pub(crate) nodes: Cache<Node>,
    /// Held while one pod is judged, so that two never get the same room.
    pub(crate) admitting: Mutex<()>,
    /// None where the API server does not serve them.
    pub(crate) claims: Option<Cache<PersistentVolumeClaim>>,
    pub(crate) volumes: Option<Cache<PersistentVolume>>,
    pub(crate) tokens: Mutex<Tokens>,
    /// Where a pod of a uid is, for pods that were ever bound here.
    pub(crate) keys: Mutex<BTreeMap<String, Key>>,
    pub(crate) events: Recorder,
    pub(crate) probing: Mutex<BTreeMap<String, Vec<Probing>>>,
    pub(crate) asker: Asker,
    /// As at the start of the daemon; pods made later get the machine's resolvers of then.
    host_resolv_conf: String,
    host_hosts: String,
    pub(crate) machine_memory_bytes: i64,
    pub(crate) machine_disk_bytes: i64,
    /// The pressures that hold, as they were told last.
    pub(crate) pressure: Mutex<BTreeMap<Condition, bool>>,
    /// What was measured last.
    pub(crate) usage: Mutex<Option<Sample>>,
}

/// What went wrong with one pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{attempt} of pod {pod}")]
    Runtime { attempt: &'static str, pod: String, source: runtime::Error },
    #[error("{attempt} pod {pod}")]
    Network { attempt: &'static str, pod: String, source: network::Error },
    #[error("{attempt} of pod {pod}")]
    Files { attempt: &'static str, pod: String, source: std::io::Error },
    #[error("{attempt} pod {pod}")]
    Api { attempt: &'static str, pod: String, source: kube::Error },
    #[error("start sandbox of pod {pod}: {why}")]
    Refused { pod: String, why: String },
    #[error("pod {pod} is not here any more")]
    Gone { pod: String },
}

impl Kubelet {
    pub(crate) fn new(parts: Parts, queue: Queue<String>, tasks: &Tasks) -> Kubelet {
        let served = |kind| api::kinds::by_kind("v1", kind).is_some();
        Kubelet {
            queue,
            book: Book::default(),
            pods: parts.caches.of(),
            config_maps: parts.caches.of(),
            secrets: parts.caches.of(),
            services: parts.caches.of(),
            nodes: parts.caches.of(),
            admitting: Mutex::default(),
            claims: served("PersistentVolumeClaim").then(|| parts.caches.of()),
            volumes: served("PersistentVolume").then(|| parts.caches.of()),
            tokens: Mutex::default(),
            keys: Mutex::default(),
            events: Recorder::new(parts.caches.client(), "kubelet", parts.clock, tasks.token())
                .on(&parts.node_name),
            probing: Mutex::default(),
            asker: Asker::new(),
            host_resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            host_hosts: std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
            machine_memory_bytes: crate::machine::memory_bytes(),
            pressure: Mutex::new(Condition::ALL.map(|condition| (condition, false)).into()),
            usage: Mutex::default(),
            machine_disk_bytes: crate::machine::disk_bytes(&parts.pods_dir),
            parts,
        }
    }

    pub(crate) async fn synced(&self) {
        self.pods.synced().await;
        self.config_maps.synced().await;
        self.secrets.synced().await;
        self.services.synced().await;
        self.nodes.synced().await;
        if let (Some(claims), Some(volumes)) = (&self.claims, &self.volumes) {
            claims.synced().await;
            volumes.synced().await;
        }
    }

    pub(crate) fn places(&self, uid: &str) -> Places {
        Places { disk: self.parts.pods_dir.join(uid), memory: self.parts.memory_dir.join(uid) }
    }

    /// The pod of this uid, when it is bound to this node and still there.
    pub(crate) fn pod(&self, uid: &str) -> Option<Arc<Pod>> {
        let key = lock(&self.keys).get(uid).cloned()?;
        let pod = self.pods.get(&key)?;
        let ours =
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&self.parts.node_name);
        (pod.metadata.uid.as_deref() == Some(uid) && ours).then_some(pod)
    }

    pub(crate) fn must(&self, uid: &str) -> Result<Arc<Pod>, Error> {
        self.pod(uid).ok_or_else(|| Error::Gone { pod: uid.to_owned() })
    }

    pub(crate) fn image(&self, image: &str) -> Option<Arc<Image>> {
        self.parts.images.get(&image.parse::<Reference>().ok()?)
    }

    fn names(&self, uid: &str) -> etc::Names {
        etc::Names {
            dns: self.parts.network.addresses().dns.to_string(),
            host_resolv_conf: self.host_resolv_conf.clone(),
            host_hosts: self.host_hosts.clone(),
            ip: self.facts(uid).pod_ip,
        }
    }

    /// The files of a pod that a container is given: as they are to be, or, once they were made, as they are.
    fn files_for_start(&self, pod: &Pod, uid: &str) -> Result<Files, String> {
        match self.files(pod, uid) {
            Err(_) if self.places(uid).hold().is_some() => {
                Ok(volumes::made(pod, &self.sources(uid), &self.facts(uid), &self.names(uid)))
            }
            files => files,
        }
    }

    /// The files of a pod as they are to be, or what is missing for them.
    pub(crate) fn files(&self, pod: &Pod, uid: &str) -> Result<Files, String> {
        volumes::wanted(pod, &self.sources(uid), &self.facts(uid), &self.names(uid))
    }

    async fn start_sandbox(&self, uid: &str) -> Result<(), Error> {
        let pod = self.must(uid)?;
        let meta = &pod.metadata;
        let label = |value: &Option<String>| value.clone().unwrap_or_default();
        let of = pod.spec.as_ref();
        let is = |field: Option<bool>| field == Some(true);
        let pids = match of {
            Some(of) if is(of.host_pid) => PidNamespace::Host,
            Some(of) if is(of.share_process_namespace) => PidNamespace::Sandbox,
            _ => PidNamespace::Container,
        };
        let hostname = match etc::kernel_hostname(&pod) {
            Ok(hostname) => hostname,
            Err(problem) => return self.no_sandbox(uid, &pod, &problem),
        };
        let spec = SandboxSpec {
            id: uid.to_owned(),
            hostname,
            labels: BTreeMap::from([
                ("namespace".to_owned(), label(&meta.namespace)),
                ("name".to_owned(), label(&meta.name)),
                ("uid".to_owned(), uid.to_owned()),
            ]),
            host_network: rules::is_host_network(&pod),
            sysctls: of.map(|of| security::sysctls(of).into_iter().collect()).unwrap_or_default(),
            pids,
            host_ipc: of.is_some_and(|of| is(of.host_ipc)),
            resources: crate::resources::of_pod(&pod, self.parts.config.pod_pids),
            log_dir: self.log_dir(&pod),
        };
        let outcome = self.parts.runtime.start_sandbox(spec).await;
        let problem = outcome.as_ref().err().map(|error| reconcile::chain(error));
        self.book.write(uid, |notes| notes.sandbox_problem.clone_from(&problem));
        if let Some(problem) = &problem {
            self.events.tell(
                &*pod,
                Weight::Warning,
                "FailedCreatePodSandBox",
                &format!("Failed to create pod sandbox: {problem}"),
            );
        }
        outcome.map_err(|source| Error::Runtime { attempt: "start sandbox", pod: name(&pod), source })?;
        if !rules::is_host_network(&pod) {
            self.attach(uid).await?;
        }
        self.queue.wake(uid.to_owned());
        Ok(())
    }

    /// A sandbox that cannot be as the pod wants it.
    fn no_sandbox(&self, uid: &str, pod: &Pod, problem: &str) -> Result<(), Error> {
        let message = format!("Failed to create pod sandbox: {problem}");
        if self.book.write(uid, |notes| notes.sandbox_problem = Some(problem.to_owned())) {
            self.events.tell(pod, Weight::Warning, "FailedCreatePodSandBox", &message);
        }
        Err(Error::Refused { pod: name(pod), why: problem.to_owned() })
    }

    /// The layers of the images that the pod's volumes are made of, as far as they are here.
    fn volume_images(&self, pod: &Pod) -> BTreeMap<String, Vec<std::path::PathBuf>> {
        let named = volumes::images(pod).into_iter();
        named.filter_map(|(name, _)| Some((name.clone(), self.image(&name)?.layers.clone()))).collect()
    }

    /// Gives a running container, and its pod, the resources that the spec names now.
    async fn resize(&self, uid: &str, container: &str, attempt: u32) -> Result<(), Error> {
        let pod = self.must(uid)?;
        let Some(member) = rules::find(&pod, container) else { return Ok(()) };
        let bounds = crate::resources::of_container(&pod, &member.container, self.machine_memory_bytes);
        let of_pod = crate::resources::of_pod(&pod, self.parts.config.pod_pids);
        let runtime = &self.parts.runtime;
        // The pod's bounds go first where they grow and last where they shrink: the kernel refuses the other order.
        let grown = runtime.resize_sandbox(uid, &of_pod).await;
        let outcome = match runtime.resize_container(uid, container, attempt, &bounds).await {
            Ok(()) if grown.is_err() => runtime.resize_sandbox(uid, &of_pod).await,
            outcome => outcome,
        };
        let problem = outcome.as_ref().err().map(|error| reconcile::chain(error));
        if problem.is_none() {
            let message = format!("Container {container} was resized in place");
            self.events.tell_of(reference(&pod, container), Weight::Normal, "ResizeCompleted", &message);
        }
        self.book.write(uid, |notes| {
            if problem.is_none() {
                let given = resize::resizable(member.container.resources.as_ref());
                notes.applied.insert(container.to_owned(), (attempt, given));
            }
            notes.resize_problem.clone_from(&problem);
        });
        self.wake_deferred();
        self.queue.wake(uid.to_owned());
        outcome.map_err(|source| Error::Runtime { attempt: "resize a container", pod: name(&pod), source })
    }

    async fn attach(&self, uid: &str) -> Result<(), Error> {
        let pod = self.must(uid)?;
        let netns = self.parts.runtime.sandbox(uid).map(|sandbox| sandbox.netns);
        let Some(netns) = netns else { return Ok(()) };
        let attached = self.parts.network.attach(uid, &netns, None).await;
        attached.map_err(|source| Error::Network {
            attempt: "give an address to",
            pod: name(&pod),
            source,
        })?;
        self.queue.wake(uid.to_owned());
        Ok(())
    }

    async fn write_files(&self, uid: &str) -> Result<(), Error> {
        let pod = self.must(uid)?;
        let Ok(files) = self.files(&pod, uid) else { return Ok(()) };
        let places = self.places(uid);
        let hash = files.hash();
        let written = tokio::task::spawn_blocking(move || places.write(&files))
            .await
            .expect("writing files does not panic");
        let why = written.as_ref().err().map(ToString::to_string);
        let tries = self.book.notes(uid).files_problem.map_or(0, |problem| problem.tries);
        let again = self.parts.clock.now() + wait(tries, 1);
        self.book.write(uid, |notes| {
            notes.files_hold = if why.is_none() { Some(hash) } else { notes.files_hold };
            notes.files_problem = why.clone().map(|why| FilesProblem { why, tries: tries + 1, again });
        });
        self.queue.wake(uid.to_owned());
        // Ends the round: nothing starts without its files. When they are tried again is the plan's to say.
        written.map_err(|source| Error::Files { attempt: "set up volumes", pod: name(&pod), source })
    }

    async fn start(
        self: &Arc<Self>,
        uid: &str,
        container: &str,
        attempt: u32,
        streak: u32,
    ) -> Result<(), Error> {
        let pod = self.must(uid)?;
        let hook = rules::find(&pod, container).is_some_and(|member| {
            member.container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some())
        });
        self.book.write(uid, |notes| {
            notes.streaks.insert(container.to_owned(), (attempt, streak));
            notes.stops.remove(container);
            // Noted before it runs: the runtime may tell of it before this call returns.
            if hook {
                notes.post_starts.insert(container.to_owned(), attempt);
            }
        });
        let about = || reference(&pod, container);
        match self.try_start(&pod, uid, container, attempt).await {
            Ok(()) => {
                let image = rules::find(&pod, container).and_then(|found| found.container.image.clone());
                let image = image.unwrap_or_default();
                if !self.book.notes(uid).pulls.contains_key(&image) {
                    let message = format!("Container image {image:?} already present on machine");
                    self.events.tell_of(about(), Weight::Normal, "Pulled", &message);
                }
                self.note_begin(&pod, uid, container, attempt);
                let message = format!("Created container: {container}");
                self.events.tell_of(about(), Weight::Normal, "Created", &message);
                self.book.write(uid, |notes| {
                    notes.failed_starts.remove(container);
                    notes.probes.insert(container.to_owned(), Probed { attempt, ..Probed::default() });
                });
                let message = format!("Started container {container}");
                self.events.tell_of(about(), Weight::Normal, "Started", &message);
                self.after_start(uid, &pod, container, attempt);
            }
            Err(problem) => self.not_started(uid, &pod, (container, attempt), problem),
        }
        self.queue.wake(uid.to_owned());
        Ok(())
    }

    /// Notes what a running attempt was given and is.
    fn note_begin(&self, pod: &Pod, uid: &str, container: &str, attempt: u32) {
        let Some(found) = rules::find(pod, container) else { return };
        let image = found.container.image.clone().unwrap_or_default();
        let sandbox = self.parts.runtime.sandbox(uid);
        let states = sandbox.iter().flat_map(|sandbox| &sandbox.containers);
        let user = states.into_iter().find_map(|state| match state.phase {
            Phase::Running { pid } if (state.name.as_str(), state.attempt) == (container, attempt) => {
                crate::machine::user_of(pid)
            }
            _ => None,
        });
        self.book.write(uid, |notes| {
            let given = resize::resizable(found.container.resources.as_ref());
            notes.applied.insert(container.to_owned(), (attempt, given));
            notes.begun.insert(container.to_owned(), Begun { attempt, image, user });
        });
    }

    /// Notes an attempt that did not become a running program.
    fn not_started(&self, uid: &str, pod: &Pod, state: (&str, u32), problem: Problem) {
        let (container, attempt) = state;
        let at = self.parts.clock.now();
        let tries = self.book.notes(uid).failed_starts.get(container).map_or(0, |failed| failed.tries);
        let again = at + wait(tries, self.parts.config.crash_backoff_seconds);
        let (code, message) = match problem {
            Problem::Container { code, message } => (Some(code), message),
            Problem::Machine { message } => (None, message),
        };
        let told = format!("Error: {message}");
        let failed = FailedStart { attempt, message, at, code, again, tries: tries + 1 };
        self.book.write(uid, |notes| {
            notes.failed_starts.insert(container.to_owned(), failed);
            notes.post_starts.remove(container);
        });
        self.events.tell_of(reference(pod, container), Weight::Warning, "Failed", &told);
    }

    /// Everything the runtime has to know of an attempt, or what its configuration lacks.
    pub(crate) fn container_spec(
        &self,
        pod: &Pod,
        uid: &str,
        member: &rules::Member<'_>,
        attempt: u32,
    ) -> Result<runtime::ContainerSpec, String> {
        let container = &member.container;
        let image_name = container.image.as_deref().unwrap_or_default();
        let image =
            self.image(image_name).ok_or_else(|| format!("image {image_name:?} has left this node"))?;
        let facts = self.facts(uid);
        let places = self.places(uid);
        let mut sources = self.sources(uid);
        sources.env_files = crate::env_files::read(pod, container, &places);
        let env = crate::env::variables(pod, container, &sources, &facts)?;
        let files = self.files_for_start(pod, uid)?;
        let ground = Ground {
            pod,
            image: &image,
            env,
            files: &files,
            places: &places,
            machine_memory_bytes: self.machine_memory_bytes,
            seccomp_dir: &security::seccomp_dir(&self.parts.config.seccomp_dir, &self.parts.pods_dir),
            log_path: self.log_path(pod, &container.name, attempt),
            log_max_bytes: self.parts.config.log_mib << 20,
            log_files: self.parts.config.log_files,
            pid_of: member.target.map(str::to_owned),
            volume_images: self.volume_images(pod),
        };
        spec::container(&ground, container, attempt)
    }

    async fn try_start(&self, pod: &Pod, uid: &str, container: &str, attempt: u32) -> Result<(), Problem> {
        let machine = |message: String| Problem::Machine { message };
        let member = rules::find(pod, container);
        let member = member.ok_or_else(|| machine(format!("container {container} is not in the pod")))?;
        let spec = self.container_spec(pod, uid, &member, attempt).map_err(machine)?;
        let both_ways = spec.mounts.iter().filter(|mount| mount.propagation == Propagation::Bidirectional);
        if let Some(why) = both_ways.into_iter().find_map(|mount| crate::files::not_shared(&mount.source)) {
            return Err(machine(why));
        }
        let words = self.places(uid).last_words(container, attempt);
        // Whoever the container runs as may leave its last words.
        let made = std::fs::write(&words, "")
            .and_then(|()| std::fs::set_permissions(&words, std::fs::Permissions::from_mode(0o666)));
        made.map_err(|error| machine(format!("create {}: {error}", words.display())))?;
        match self.parts.runtime.start_container(uid, spec).await {
            Ok(_) => Ok(()),
            Err(runtime::Error::Start { reason, code, .. }) => {
                Err(Problem::Container { code, message: reason })
            }
            Err(other) => Err(machine(reconcile::chain(&other))),
        }
    }

    /// A container that has come to wait for its next start is told of once per wait.
    fn tell_of_waits(&self, pod: &Pod, status: &PodStatus) {
        let reason = |status: &ContainerStatus| {
            status.state.as_ref()?.waiting.as_ref().map(|waiting| {
                (waiting.reason.clone().unwrap_or_default(), waiting.message.clone().unwrap_or_default())
            })
        };
        let lists = [
            &status.container_statuses,
            &status.init_container_statuses,
            &status.ephemeral_container_statuses,
        ];
        let mut told_of_volumes = false;
        for container in lists.into_iter().flatten().flatten() {
            let Some((word, message)) = reason(container) else { continue };
            let known = rules::status(pod, &container.name).and_then(reason);
            let (event, message) = match word.as_str() {
                "CrashLoopBackOff" => {
                    let of_pod = message.rsplit_once("pod=").map_or("", |(_, pod)| pod);
                    let name = &container.name;
                    ("BackOff", format!("Back-off restarting failed container {name} in pod {of_pod}"))
                }
                "ImagePullBackOff" => ("BackOff", message),
                "ErrImageNeverPull" => ("Failed", message),
                "CreateContainerConfigError" => ("Failed", format!("Error: {message}")),
                "ContainerCreating" | "PodInitializing" if !message.is_empty() => {
                    // Told of the pod, once for all its containers.
                    // A token that is on its way is no failure.
                    let late = !message.contains(volumes::NO_TOKEN_YET);
                    if late && known.is_none_or(|(_, known)| known != message) && !told_of_volumes {
                        self.events.tell(pod, Weight::Warning, "FailedMount", &message);
                        told_of_volumes = true;
                    }
                    continue;
                }
                _ => continue,
            };
            if known.is_none_or(|(known, _)| known != word) {
                self.events.tell_of(reference(pod, &container.name), Weight::Warning, event, &message);
            }
        }
    }

    async fn write_status(&self, uid: &str, status: PodStatus) -> Result<(), Error> {
        let pod = self.must(uid)?;
        self.tell_of_waits(&pod, &status);
        let mut value = serde_json::to_value(&status).expect("a status is plain data");
        // A merge patch leaves out what is absent; these have to go away when they no longer hold.
        for field in ["message", "reason"] {
            if value.get(field).is_none() {
                value[field] = serde_json::Value::Null;
            }
        }
        // With the version that it was made from: conditions that others write meanwhile must not be lost.
        let version = pod.metadata.resource_version.as_deref();
        let patch = json!({ "metadata": { "uid": uid, "resourceVersion": version }, "status": value });
        let api: Api<Pod> = Api::namespaced(
            self.parts.caches.client(),
            pod.metadata.namespace.as_deref().unwrap_or_default(),
        );
        match api
            .patch_status(
                pod.metadata.name.as_deref().unwrap_or_default(),
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await
        {
            Ok(_) => {
                self.book.write(uid, |notes| notes.written = Some(status));
                Ok(())
            }
            Err(error) if is_not_found(&error) || client::is_conflict(&error) => Ok(()),
            Err(source) => Err(Error::Api { attempt: "write the status of", pod: name(&pod), source }),
        }
    }

    async fn release(&self, uid: &str) -> Result<(), Error> {
        let Some(pod) = self.pod(uid) else { return Ok(()) };
        let api: Api<Pod> = Api::namespaced(
            self.parts.caches.client(),
            pod.metadata.namespace.as_deref().unwrap_or_default(),
        );
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let options = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        match api.delete(pod.metadata.name.as_deref().unwrap_or_default(), &options).await {
            Err(error) if !is_not_found(&error) && !client::is_conflict(&error) => {
                Err(Error::Api { attempt: "release", pod: name(&pod), source: error })
            }
            _ => Ok(()),
        }
    }

    async fn remove_files(&self, uid: &str) -> Result<(), Error> {
        let places = self.places(uid);
        let removed = tokio::task::spawn_blocking(move || places.remove())
            .await
            .expect("removing files does not panic");
        removed.map_err(|source| Error::Files { attempt: "remove files", pod: uid.to_owned(), source })
    }
}

impl Reconciler for Shared {
    type Key = String;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "kubelet";

    async fn observe(&self, uid: &String) -> Result<View, Error> {
        Ok(self.0.view(uid))
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        crate::plan::plan(view, now)
    }

    async fn act(&self, uid: &String, step: Step) -> Result<(), Error> {
        let kubelet = &self.0;
        let runtime = |attempt, source| Error::Runtime { attempt, pod: uid.clone(), source };
        match step {
            Step::StartSandbox => kubelet.start_sandbox(uid).await,
            Step::StopSandbox => {
                debug!(uid, "stopping sandbox");
                let stopped = kubelet.parts.runtime.stop_sandbox(uid).await;
                kubelet.queue.wake(uid.clone());
                stopped.map_err(|source| runtime("stop sandbox", source))
            }
            Step::Attach => kubelet.attach(uid).await,
            Step::Detach => {
                let detached = kubelet.parts.network.detach(uid).await;
                detached.map_err(|source| Error::Network {
                    attempt: "take the address of",
                    pod: uid.clone(),
                    source,
                })
            }
            Step::WriteFiles => kubelet.write_files(uid).await,
            Step::RemoveFiles => kubelet.remove_files(uid).await,
            Step::Pull { image, why } => {
                kubelet.pull(uid, &image, why);
                Ok(())
            }
            Step::Start { container, attempt, streak } => {
                kubelet.start(uid, &container, attempt, streak).await
            }
            Step::Forget { container, attempt } => {
                let removed = kubelet.parts.runtime.remove_container(uid, &container, attempt).await;
                removed.map_err(|source| runtime("remove an old container", source))
            }
            Step::BeginStop { container, attempt, since, grace_seconds, why } => {
                let window = Window { since, grace_seconds };
                kubelet.begin_stop(uid, (&container, attempt), window, why.as_deref());
                Ok(())
            }
            Step::AskToStop { container, attempt } => kubelet.ask_to_stop(uid, &container, attempt).await,
            Step::Kill { container, attempt } => kubelet.signal(uid, &container, attempt, 9).await,
            Step::Resize { container, attempt } => kubelet.resize(uid, &container, attempt).await,
            Step::MarkRestart { container, attempt, why } => {
                kubelet.book.write(uid, |notes| {
                    let probed = notes.probes.entry(container).or_default();
                    if probed.attempt != attempt {
                        *probed = Probed { attempt, ..Probed::default() };
                    }
                    probed.must_restart = Some(MustRestart { why: why.to_owned(), grace_seconds: None });
                });
                kubelet.queue.wake(uid.clone());
                Ok(())
            }
            Step::FetchToken { key } => kubelet.fetch_token(uid, key).await,
            Step::Probe { wanted } => {
                kubelet.probe(uid, wanted);
                Ok(())
            }
            Step::WriteStatus { status } => kubelet.write_status(uid, *status).await,
            Step::Release => kubelet.release(uid).await,
            Step::ForgetPod => {
                kubelet.book.forget(uid);
                lock(&kubelet.keys).remove(uid);
                lock(&kubelet.tokens).remove(uid);
                kubelet.wake_deferred();
                Ok(())
            }
        }
    }
}

/// The kubelet as the loop sees it; its effects start tasks that hold on to it.
pub(crate) struct Shared(pub(crate) Arc<Kubelet>);

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic cannot leave these maps half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn name(pod: &Pod) -> String {
    client::key_of(pod).to_string()
}

/// The pod, and in it the container that an event is about.
pub(crate) fn reference(pod: &Pod, container: &str) -> k8s_openapi::api::core::v1::ObjectReference {
    let mut reference = kube::Resource::object_ref(pod, &());
    let list = match rules::find(pod, container).map(|member| member.role) {
        Some(rules::Role::Init | rules::Role::Sidecar) => "initContainers",
        Some(rules::Role::Ephemeral) => "ephemeralContainers",
        Some(rules::Role::Main) | None => "containers",
    };
    reference.field_path = Some(format!("spec.{list}{{{container}}}"));
    reference
}

/// Why an attempt did not become a running program.
enum Problem {
    /// Its own: no such program, say. It counts as an end with this code.
    Container { code: i32, message: String },
    /// Ours, or its configuration's: tried again.
    Machine { message: String },
}

pub(crate) fn wait(tries: u32, first_seconds: u32) -> SignedDuration {
    let doubled = i64::from(first_seconds).saturating_mul(1i64 << tries.min(20));
    SignedDuration::from_secs(doubled.min(LONGEST_WAIT_SECONDS))
}
