//! Reads what there is of one pod, and wakes the loop when something of it changes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use client::{Cache, Key};
use k8s_openapi::api::core::v1::Pod;
use reconcile::Tasks;
use runtime::{Phase, SandboxState};
use tokio::sync::broadcast::error::RecvError;

use crate::act::{Kubelet, lock};
use crate::book::{Begun, Notes, Probed};
use crate::env::{Facts, Sources};
use crate::plan::View;
use crate::resize::{self, Room};
use crate::{admit, rules, security, volumes};

/// Most bytes of last words that are told, as documented.
const LAST_WORDS_BYTES: u64 = 4096;

impl Kubelet {
    pub(crate) fn view(&self, uid: &str) -> View {
        let pod = self.pod(uid);
        let sandbox = self.parts.runtime.sandbox(uid);
        if let (Some(pod), Some(sandbox)) = (&pod, &sandbox) {
            self.book.write(uid, |notes| take_over(notes, pod, sandbox));
        }
        let mut notes = self.book.notes(uid);
        let ip = self.parts.network.attachment(uid).map(|attachment| attachment.ip.to_string());
        let places = self.places(uid);
        if notes.files_hold.is_none() {
            notes.files_hold = places.hold();
        }
        let files = pod.as_ref().map(|pod| self.files(pod, uid));
        let refused = pod.as_ref().and_then(|pod| crate::refuse::refused(pod));
        let rejected = pod
            .as_ref()
            .and_then(|pod| self.rejected(pod).or_else(|| self.admission(pod, uid, sandbox.is_some())));
        let (files_wanted, missing) = match files {
            Some(Ok(files)) => (files.hash(), None),
            Some(Err(why)) => (0, Some(why)),
            None => (0, None),
        };
        let mut last_words = BTreeMap::new();
        for state in sandbox.iter().flat_map(|sandbox| &sandbox.containers) {
            if let (Phase::Exited { code, .. }, Some(pod)) = (&state.phase, &pod)
                && let Some(words) = self.last_words(pod, &state.name, state.attempt, *code)
            {
                last_words.insert((state.name.clone(), state.attempt), words);
            }
        }
        let blocked = pod.as_ref().map(|pod| self.blocked(pod, uid, sandbox.as_ref())).unwrap_or_default();
        let tokens = pod.as_ref().map(|pod| self.token_renewals(pod, uid)).unwrap_or_default();
        View {
            images: pod.as_ref().map(|pod| self.images_of(pod)).unwrap_or_default(),
            pod: pod.map(|pod| (*pod).clone()),
            sandbox,
            ip,
            host_ip: self.parts.network.addresses().node.to_string(),
            refused,
            rejected,
            missing,
            blocked,
            files_wanted,
            tokens,
            room: self.room(uid, &notes),
            notes,
            last_words,
            probing: lock(&self.probing)
                .get(uid)
                .map(|all| all.iter().map(|probing| probing.wanted.clone()).collect())
                .unwrap_or_default(),
            has_files: places.exist(),
            crash_backoff_seconds: self.parts.config.crash_backoff_seconds,
        }
    }

    /// Why this node will never run the pod: reason and message.
    fn rejected(&self, pod: &Pod) -> Option<(String, String)> {
        let spec = pod.spec.as_ref()?;
        let allowed = &self.parts.config.allowed_unsafe_sysctls;
        security::forbidden_sysctl(spec, allowed)
            .or_else(|| security::unconfinable(spec, security::has_apparmor()))
    }

    /// Why the node does not take the pod; judged once, before anything of the pod is made.
    fn admission(&self, pod: &Pod, uid: &str, has_sandbox: bool) -> Option<(String, String)> {
        let _turn = lock(&self.admitting);
        if let Some(known) = self.book.notes(uid).admission {
            return known.err();
        }
        // What was begun before the daemon was started again was taken then.
        let begun = has_sandbox || crate::plan::has_ended(pod) || is_begun(pod);
        let gone = pod.metadata.deletion_timestamp.is_some();
        let refusal = if begun || gone { None } else { admit::refusal(pod, &self.offer(uid)) };
        self.book.write(uid, |notes| {
            notes.admission = Some(refusal.clone().map_or(Ok(()), Err));
        });
        if let Some((reason, message)) = &refusal {
            let message = message.strip_prefix("Pod was rejected: ").unwrap_or(message);
            self.events.tell(pod, client::Weight::Warning, reason, message);
        }
        refusal
    }

    /// The node as it is for one more pod.
    fn offer(&self, uid: &str) -> admit::Offer {
        let allocatable = BTreeMap::from([
            ("cpu".to_owned(), i128::from(self.allocatable_cpu_milli())),
            ("memory".to_owned(), i128::from(self.allocatable_memory_bytes()) * 1000),
            ("ephemeral-storage".to_owned(), i128::from(self.machine_disk_bytes) * 1000),
            ("pods".to_owned(), i128::from(self.parts.config.max_pods) * 1000),
        ]);
        let keys: Vec<String> = lock(&self.keys).keys().filter(|other| *other != uid).cloned().collect();
        let mut taken: BTreeMap<String, i128> = BTreeMap::new();
        for other in keys {
            let Some(pod) = self.pod(&other).filter(|pod| !crate::plan::has_ended(pod)) else { continue };
            if self.book.has_admitted(&other) || is_begun(&pod) {
                let applied = self.book.applied(&other);
                let given = resize::as_given(&pod, &applied);
                for name in allocatable.keys() {
                    *taken.entry(name.clone()).or_default() += admit::asked(&given, name);
                }
            }
        }
        let name = self.parts.node_name.clone();
        let node = self.nodes.get(&Key::new("", &name));
        let labels = node.map(|node| node.metadata.labels.clone().unwrap_or_default());
        admit::Offer { name, labels, allocatable, taken }
    }

    /// What the configuration of containers that do not run lacks. Asked anew in each round, so that a container starts the
    /// moment that what it waited for is there.
    fn blocked(&self, pod: &Pod, uid: &str, sandbox: Option<&SandboxState>) -> BTreeMap<String, String> {
        let runs = |name: &str| {
            let mut states = sandbox.iter().flat_map(|sandbox| &sandbox.containers);
            states.any(|state| state.name == name && matches!(state.phase, Phase::Running { .. }))
        };
        let idle = rules::members(pod).into_iter().filter(|member| !runs(&member.container.name));
        let here = idle.filter(|member| {
            member.container.image.as_ref().is_some_and(|image| self.image(image).is_some())
        });
        here.filter_map(|member| {
            let why = self.container_spec(pod, uid, &member, 0).err()?;
            Some((member.container.name.clone(), why))
        })
        .collect()
    }

    fn images_of(&self, pod: &Pod) -> BTreeMap<String, Option<String>> {
        let members = rules::members(pod);
        let names = members.iter().filter_map(|member| member.container.image.clone());
        let names = names.chain(volumes::images(pod).into_iter().map(|(name, _)| name));
        names.map(|name| (name.clone(), self.image(&name).map(|image| image.id.clone()))).collect()
    }

    pub(crate) fn sources(&self, uid: &str) -> Sources {
        Sources {
            config_maps: self.config_maps.snapshot(),
            secrets: self.secrets.snapshot(),
            services: self.services.snapshot(),
            claims: self.claims.as_ref().map(Cache::snapshot).unwrap_or_default(),
            volumes: self.volumes.as_ref().map(Cache::snapshot).unwrap_or_default(),
            tokens: self.token_texts(uid),
            env_files: [].into(),
        }
    }

    /// What the node has, and what its other pods ask for; looked up only where a resize could need it.
    fn room(&self, uid: &str, notes: &Notes) -> Room {
        if notes.applied.is_empty() {
            return Room::default();
        }
        let allocatable = BTreeMap::from([
            ("cpu".to_owned(), i128::from(self.allocatable_cpu_milli())),
            ("memory".to_owned(), i128::from(self.allocatable_memory_bytes()) * 1000),
        ]);
        let keys: Vec<String> = lock(&self.keys).keys().filter(|other| *other != uid).cloned().collect();
        let mut taken: BTreeMap<String, i128> = BTreeMap::new();
        for other in keys {
            let Some(pod) = self.pod(&other).filter(|pod| !crate::plan::has_ended(pod)) else { continue };
            let applied = self.book.applied(&other);
            let given = resize::as_given(&pod, &applied);
            for name in allocatable.keys() {
                *taken.entry(name.clone()).or_default() += resize::asked(&given, name);
            }
        }
        Room { taken, allocatable }
    }

    pub(crate) fn facts(&self, uid: &str) -> Facts {
        let host_ip = self.parts.network.addresses().node.to_string();
        let own = self.parts.network.attachment(uid).map(|attachment| attachment.ip.to_string());
        let on_host = self.pod(uid).is_some_and(|pod| rules::is_host_network(&pod));
        Facts {
            pod_ip: own.unwrap_or_else(|| if on_host { host_ip.clone() } else { String::new() }),
            host_ip,
            machine_cpu_milli: self.allocatable_cpu_milli(),
            machine_memory_bytes: self.allocatable_memory_bytes(),
            machine_disk_bytes: self.machine_disk_bytes,
        }
    }

    /// The directory of a pod's logs, as the kubelet names it.
    pub(crate) fn log_dir(&self, pod: &Pod) -> PathBuf {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        let meta = &pod.metadata;
        self.parts.logs_dir.join(format!(
            "{}_{}_{}",
            part(&meta.namespace),
            part(&meta.name),
            part(&meta.uid)
        ))
    }

    pub(crate) fn log_path(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
        self.log_dir(pod).join(container).join(format!("{attempt}.log"))
    }

    /// What a container left at its termination message path, or the end of its log when it failed and asked for that.
    fn last_words(&self, pod: &Pod, container: &str, attempt: u32, code: i32) -> Option<String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut words = String::new();
        if let Ok(mut file) = fs::File::open(self.places(uid).last_words(container, attempt)) {
            let mut bytes = Vec::new();
            let length = file.metadata().map_or(0, |meta| meta.len());
            // A file shorter than that is read from its beginning.
            let _ = file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS_BYTES)));
            // What cannot be read is not told.
            let _ = file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes);
            words = String::from_utf8_lossy(&bytes).into_owned();
        }
        let fallback = rules::find(pod, container)?.container.termination_message_policy.as_deref()
            == Some("FallbackToLogsOnError");
        if words.is_empty() && fallback && code != 0 {
            words = crate::logs::end_of(&self.log_path(pod, container, attempt), 2048);
        }
        (!words.is_empty()).then_some(words)
    }
}

/// The kubelet has told of the pod before.
fn is_begun(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| status.start_time.is_some())
}

/// After a restart of the daemon a container is as ready as it was told to be, until a probe finds otherwise.
fn take_over(notes: &mut Notes, pod: &Pod, sandbox: &SandboxState) {
    let told = pod.status.iter().flat_map(|status| {
        status.container_statuses.iter().chain(status.init_container_statuses.iter()).flatten()
    });
    for status in told {
        let attempt = u32::try_from(status.restart_count).unwrap_or(0);
        let same = sandbox.containers.iter().any(|state| {
            state.name == status.name
                && state.attempt == attempt
                && matches!(state.phase, Phase::Running { .. })
        });
        if same && !notes.probes.contains_key(&status.name) {
            let probed = Probed {
                attempt,
                ready: Some(status.ready),
                started: status.started == Some(true),
                must_restart: None,
            };
            notes.probes.insert(status.name.clone(), probed);
        }
        if same && !notes.begun.contains_key(&status.name) {
            let begun = Begun { attempt, image: status.image.clone(), user: status.user.clone() };
            notes.begun.insert(status.name.clone(), begun);
        }
        if same && !notes.applied.contains_key(&status.name) {
            let given = resize::resizable(status.resources.as_ref());
            notes.applied.insert(status.name.clone(), (attempt, given));
        }
    }
}

/// Pods, runtime, images, ConfigMaps and Secrets: each wakes the pods that it concerns.
pub(crate) fn wake_on_changes(kubelet: &Arc<Kubelet>, tasks: &Tasks) {
    let node = kubelet.parts.node_name.clone();
    let (weak, queue) = (Arc::downgrade(kubelet), kubelet.queue.clone());
    kubelet.pods.listen(move |pod| {
        let ours = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&node);
        let (Some(uid), Some(kubelet)) = (pod.metadata.uid.clone().filter(|_| ours), weak.upgrade()) else {
            return;
        };
        lock(&kubelet.keys).insert(uid.clone(), client::key_of(&**pod));
        if crate::plan::has_ended(pod) {
            kubelet.wake_deferred();
        }
        queue.wake(uid);
    });
    let weak = Arc::downgrade(kubelet);
    kubelet.config_maps.listen(move |map| {
        if let Some(kubelet) = weak.upgrade() {
            kubelet.wake_users(&client::key_of(&**map), |pod, name| uses(pod, name, "configMap"));
        }
    });
    let weak = Arc::downgrade(kubelet);
    kubelet.secrets.listen(move |secret| {
        if let Some(kubelet) = weak.upgrade() {
            kubelet.wake_users(&client::key_of(&**secret), |pod, name| uses(pod, name, "secret"));
        }
    });
    wake_on_claims(kubelet);
    wake_on_runtime(kubelet, tasks);
}

/// Claims and the volumes bound to them wake the pods that wait for them.
fn wake_on_claims(kubelet: &Arc<Kubelet>) {
    let uses_claim = |pod: &Pod, name: &str| {
        let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        volumes.any(|volume| volumes::claim(pod, volume).is_some_and(|(claim, _)| claim == name))
    };
    if let Some(claims) = &kubelet.claims {
        let weak = Arc::downgrade(kubelet);
        claims.listen(move |claim| {
            if let Some(kubelet) = weak.upgrade() {
                kubelet.wake_users(&client::key_of(&**claim), uses_claim);
            }
        });
    }
    if let Some(volumes) = &kubelet.volumes {
        let weak = Arc::downgrade(kubelet);
        volumes.listen(move |volume| {
            let claimed = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            if let (Some(kubelet), Some(claimed)) = (weak.upgrade(), claimed) {
                let part = |part: &Option<String>| part.clone().unwrap_or_default();
                kubelet.wake_users(&Key::new(part(&claimed.namespace), part(&claimed.name)), uses_claim);
            }
        });
    }
}

fn wake_on_runtime(kubelet: &Arc<Kubelet>, tasks: &Tasks) {
    let (mut changes, mut images) = (kubelet.parts.runtime.changes(), kubelet.parts.images.changed());
    let all = Arc::clone(kubelet);
    tasks.spawn("kubelet-wakes", move |stop| async move {
        all.wake_all();
        loop {
            tokio::select! {
                biased;
                // Cancel-safe: a token stays cancelled.
                () = stop.cancelled() => return,
                // Cancel-safe per docs of broadcast::Receiver::recv.
                change = changes.recv() => match change {
                    Ok(uid) => all.queue.wake(uid),
                    Err(RecvError::Lagged(_)) => all.wake_all(),
                    Err(RecvError::Closed) => return,
                },
                // Cancel-safe per docs of watch::Receiver::changed.
                Ok(()) = images.changed() => all.wake_all(),
            }
        }
    });
}

impl Kubelet {
    /// Everything there is, in the cluster or only on this machine: also sandboxes whose pods are gone.
    fn wake_all(&self) {
        let known: Vec<String> = lock(&self.keys).keys().cloned().collect();
        let here = self.parts.runtime.sandboxes().into_keys();
        let attached = self.parts.network.attachments().into_keys();
        let left = fs::read_dir(&self.parts.pods_dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        known.into_iter().chain(here).chain(attached).chain(left).for_each(|uid| self.queue.wake(uid));
    }

    /// Room has become free: pods whose resize waits for some look again.
    pub(crate) fn wake_deferred(&self) {
        let known: Vec<String> = lock(&self.keys).keys().cloned().collect();
        for uid in known {
            if self.pod(&uid).is_some_and(|pod| resize::is_deferred(&pod)) {
                self.queue.wake(uid);
            }
        }
    }

    fn wake_users(&self, key: &Key, uses: impl Fn(&Pod, &str) -> bool) {
        // A statement of its own, so that the lock is free again in the loop.
        let known: Vec<String> = lock(&self.keys).keys().cloned().collect();
        for uid in known {
            if let Some(pod) = self.pod(&uid)
                && pod.metadata.namespace.as_deref() == Some(&key.namespace)
                && uses(&pod, &key.name)
            {
                self.queue.wake(uid);
            }
        }
    }
}

/// Whether a pod takes files or variables from this object. Reading the pod as JSON finds every place at once; a name
/// that is found without being used costs one empty plan.
fn uses(pod: &Pod, name: &str, kind: &str) -> bool {
    let text = serde_json::to_string(&pod.spec).unwrap_or_default();
    text.contains(kind) && text.contains(&format!("\"{name}\""))
}
