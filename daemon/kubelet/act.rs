//! Does what the plan of a pod says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client::{Cache, Key, Recorder, Weight, is_not_found};
use images::{Image, Reference};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Container, ContainerStatus, Pod, PodStatus, Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use reconcile::{Plan, Queue, Reconciler, Tasks};
use runtime::{Resources, SandboxSpec};
use serde_json::json;
use tracing::debug;

use crate::Parts;
use crate::book::{Book, FailedStart, Probed};
use crate::files::{self, Files, Places};
use crate::plan::{Step, View};
use crate::probes::Wanted;
use crate::spec::{self, Ground};

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
    /// Where a pod of a uid is, for pods that were ever bound here.
    pub(crate) keys: Mutex<BTreeMap<String, Key>>,
    pub(crate) events: Recorder,
    pub(crate) probing: Mutex<BTreeMap<String, Vec<Probing>>>,
    pub(crate) http: reqwest::Client,
    /// As at the start of the daemon; pods made later get the machine's resolvers of then.
    host_resolv_conf: String,
    pub(crate) machine_memory_bytes: i64,
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
    #[error("pod {pod} is not here any more")]
    Gone { pod: String },
}

impl Kubelet {
    pub(crate) fn new(parts: Parts, queue: Queue<String>, tasks: &Tasks) -> Kubelet {
        // Certificates are not verified, as documented for HTTPS probes; the pod is asked, nothing is told to it.
        let http = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .danger_accept_invalid_certs(true)
            .no_proxy()
            .build();
        Kubelet {
            queue,
            book: Book::default(),
            pods: parts.caches.of(),
            config_maps: parts.caches.of(),
            secrets: parts.caches.of(),
            keys: Mutex::default(),
            events: Recorder::new(parts.caches.client(), "kubelet", parts.clock, tasks.token()),
            probing: Mutex::default(),
            http: http.expect("the options of this client are fixed"),
            host_resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            machine_memory_bytes: crate::machine::memory_bytes(),
            parts,
        }
    }

    pub(crate) async fn synced(&self) {
        self.pods.synced().await;
        self.config_maps.synced().await;
        self.secrets.synced().await;
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

    fn must(&self, uid: &str) -> Result<Arc<Pod>, Error> {
        self.pod(uid).ok_or_else(|| Error::Gone { pod: uid.to_owned() })
    }

    pub(crate) fn image(&self, image: &str) -> Option<Arc<Image>> {
        self.parts.images.get(&image.parse::<Reference>().ok()?)
    }

    /// The files of a pod as they are to be, or what is missing for them.
    pub(crate) fn files(&self, pod: &Pod, uid: &str) -> Result<Files, String> {
        let names = files::Names {
            dns: self.parts.network.addresses().dns.to_string(),
            host_resolv_conf: self.host_resolv_conf.clone(),
            ip: self.facts(uid).pod_ip,
        };
        files::wanted(pod, &self.sources(), &self.facts(uid), &names)
    }

    async fn start_sandbox(&self, uid: &str) -> Result<(), Error> {
        let pod = self.must(uid)?;
        let meta = &pod.metadata;
        let label = |value: &Option<String>| value.clone().unwrap_or_default();
        let spec = SandboxSpec {
            id: uid.to_owned(),
            hostname: files::hostname(&pod),
            labels: BTreeMap::from([
                ("namespace".to_owned(), label(&meta.namespace)),
                ("name".to_owned(), label(&meta.name)),
                ("uid".to_owned(), uid.to_owned()),
            ]),
            host_network: crate::plan::on_host_network(&pod),
            sysctls: BTreeMap::new(),
            resources: Resources::default(),
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
        if !crate::plan::on_host_network(&pod) {
            self.attach(uid).await?;
        }
        self.queue.wake(uid.to_owned());
        Ok(())
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
        let problem = written.as_ref().err().map(ToString::to_string);
        self.book.write(uid, |notes| {
            notes.files_hold = problem.is_none().then_some(hash);
            notes.files_problem.clone_from(&problem);
        });
        if let Some(problem) = &problem {
            self.events.tell(&*pod, Weight::Warning, "FailedMount", &format!("set up volumes: {problem}"));
        }
        written.map_err(|source| Error::Files { attempt: "set up volumes", pod: name(&pod), source })
    }

    async fn start(self: &Arc<Self>, uid: &str, container: &str, attempt: u32) -> Result<(), Error> {
        let pod = self.must(uid)?;
        let started = self.try_start(&pod, uid, container, attempt).await;
        match started {
            Ok(()) => {
                let image = find(&pod, container).and_then(|found| found.image.clone()).unwrap_or_default();
                if !self.book.notes(uid).pulls.contains_key(&image) {
                    let message = format!("Container image {image:?} already present on machine");
                    self.events.tell_of(reference(&pod, container), Weight::Normal, "Pulled", &message);
                }
                self.events.tell_of(
                    reference(&pod, container),
                    Weight::Normal,
                    "Created",
                    &format!("Created container: {container}"),
                );
                self.book.write(uid, |notes| {
                    notes.failed_starts.remove(container);
                    notes.unhealthy.remove(container);
                    notes.probes.insert(container.to_owned(), Probed { attempt, ..Probed::default() });
                });
                self.events.tell_of(
                    reference(&pod, container),
                    Weight::Normal,
                    "Started",
                    &format!("Started container {container}"),
                );
                self.after_start(uid, &pod, container, attempt);
            }
            Err((reason, message)) => {
                let tries =
                    self.book.notes(uid).failed_starts.get(container).map_or(0, |failed| failed.tries);
                let again = self.parts.clock.now() + wait(tries, self.parts.config.crash_backoff_seconds);
                let failed = FailedStart { reason, message: message.clone(), tries: tries + 1, again };
                self.book.write(uid, |notes| drop(notes.failed_starts.insert(container.to_owned(), failed)));
                self.events.tell_of(
                    reference(&pod, container),
                    Weight::Warning,
                    "Failed",
                    &format!("Error: {message}"),
                );
            }
        }
        self.queue.wake(uid.to_owned());
        Ok(())
    }

    /// Starts an attempt; the error is the reason and message that the container's status shows.
    async fn try_start(
        &self,
        pod: &Pod,
        uid: &str,
        container: &str,
        attempt: u32,
    ) -> Result<(), (&'static str, String)> {
        let config = |message: String| ("CreateContainerConfigError", message);
        let found =
            find(pod, container).ok_or_else(|| config(format!("container {container} is not in the pod")))?;
        let image_name = found.image.as_deref().unwrap_or_default();
        let image = self
            .image(image_name)
            .ok_or_else(|| config(format!("image {image_name:?} has left this node")))?;
        let facts = self.facts(uid);
        let env = crate::env::variables(pod, found, &self.sources(), &facts).map_err(config)?;
        let files = self.files(pod, uid).map_err(config)?;
        let places = self.places(uid);
        let words = places.last_words(container, attempt);
        std::fs::write(&words, "").map_err(|error| config(format!("create {}: {error}", words.display())))?;
        let ground = Ground {
            pod,
            image: &image,
            env,
            files: &files,
            places: &places,
            machine_memory_bytes: self.machine_memory_bytes,
            log_path: self.log_path(pod, container, attempt),
            log_max_bytes: self.parts.config.log_mib << 20,
            log_files: self.parts.config.log_files,
        };
        let spec = spec::container(&ground, found, attempt).map_err(config)?;
        self.parts.runtime.start_container(uid, spec).await.map(|_| ()).map_err(|error| match &error {
            runtime::Error::Start { reason, .. } => ("RunContainerError", reason.clone()),
            other => ("CreateContainerError", reconcile::chain(other)),
        })
    }

    /// A container that has come to wait for its next start is told of once per wait.
    fn tell_of_waits(&self, pod: &Pod, status: &PodStatus) {
        let reason = |status: &ContainerStatus| {
            status.state.as_ref()?.waiting.as_ref().map(|waiting| {
                (waiting.reason.clone().unwrap_or_default(), waiting.message.clone().unwrap_or_default())
            })
        };
        let all = |status: &PodStatus| -> Vec<ContainerStatus> {
            status
                .container_statuses
                .iter()
                .chain(status.init_container_statuses.iter())
                .flatten()
                .cloned()
                .collect()
        };
        let before = pod.status.as_ref().map(all).unwrap_or_default();
        for container in all(status) {
            let Some((word, message)) = reason(&container) else { continue };
            let known = before.iter().find(|known| known.name == container.name).and_then(reason);
            let event = match word.as_str() {
                "CrashLoopBackOff" | "ImagePullBackOff" => "BackOff",
                "ErrImageNeverPull" | "CreateContainerConfigError" => "Failed",
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
        let patch = json!({ "metadata": { "uid": uid }, "status": value });
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
            Step::Start { container, attempt } => kubelet.start(uid, &container, attempt).await,
            Step::Forget { container, attempt } => {
                let removed = kubelet.parts.runtime.remove_container(uid, &container, attempt).await;
                removed.map_err(|source| runtime("remove an old container", source))
            }
            Step::Signal { container, attempt, signal } => {
                kubelet.stop_one_unhealthy(uid, &container, attempt, signal).await
            }
            Step::AskToStop { containers } => {
                kubelet.ask_to_stop(uid, containers);
                Ok(())
            }
            Step::Probe { wanted } => {
                kubelet.probe(uid, wanted);
                Ok(())
            }
            Step::WriteStatus { status } => kubelet.write_status(uid, *status).await,
            Step::Release => kubelet.release(uid).await,
            Step::ForgetPod => {
                kubelet.book.forget(uid);
                lock(&kubelet.keys).remove(uid);
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

pub(crate) fn find<'a>(pod: &'a Pod, container: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|known| known.name == container)
}

/// The pod, and in it the container that an event is about.
pub(crate) fn reference(pod: &Pod, container: &str) -> k8s_openapi::api::core::v1::ObjectReference {
    let mut reference = kube::Resource::object_ref(pod, &());
    reference.field_path = Some(format!("spec.containers{{{container}}}"));
    reference
}

pub(crate) fn wait(tries: u32, first_seconds: u32) -> SignedDuration {
    let doubled = i64::from(first_seconds).saturating_mul(1i64 << tries.min(20));
    SignedDuration::from_secs(doubled.min(LONGEST_WAIT_SECONDS))
}
