//! Reads what there is of one pod, and wakes the loop when something of it changes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use client::Key;
use k8s_openapi::api::core::v1::Pod;
use reconcile::Tasks;
use runtime::{Phase, SandboxState};
use tokio::sync::broadcast::error::RecvError;

use crate::act::{Kubelet, find, lock};
use crate::book::{Notes, Probed};
use crate::env::{Facts, Sources};
use crate::machine;
use crate::plan::{View, is_running};

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
        let mut missing = pod.as_ref().and_then(|pod| crate::refuse::refused(pod));
        let mut files_wanted = 0;
        match files {
            Some(Ok(files)) => files_wanted = files.hash(),
            Some(Err(why)) => missing = missing.or(Some(why)),
            None => {}
        }
        let mut last_words = BTreeMap::new();
        for state in sandbox.iter().flat_map(|sandbox| &sandbox.containers) {
            if let (Phase::Exited { code, .. }, Some(pod)) = (&state.phase, &pod)
                && let Some(words) = self.last_words(pod, &state.name, state.attempt, *code)
            {
                last_words.insert((state.name.clone(), state.attempt), words);
            }
        }
        View {
            images: pod.as_ref().map(|pod| self.images_of(pod)).unwrap_or_default(),
            pod: pod.map(|pod| (*pod).clone()),
            sandbox,
            ip,
            host_ip: self.parts.network.addresses().node.to_string(),
            missing,
            files_wanted,
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

    fn images_of(&self, pod: &Pod) -> BTreeMap<String, Option<String>> {
        let containers = pod
            .spec
            .iter()
            .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        let names = containers.filter_map(|container| container.image.clone());
        names.map(|name| (name.clone(), self.image(&name).map(|image| image.id.clone()))).collect()
    }

    pub(crate) fn sources(&self) -> Sources {
        Sources { config_maps: self.config_maps.snapshot(), secrets: self.secrets.snapshot() }
    }

    pub(crate) fn facts(&self, uid: &str) -> Facts {
        let host_ip = self.parts.network.addresses().node.to_string();
        let own = self.parts.network.attachment(uid).map(|attachment| attachment.ip.to_string());
        let on_host = self.pod(uid).is_some_and(|pod| crate::plan::on_host_network(&pod));
        Facts {
            pod_ip: own.unwrap_or_else(|| if on_host { host_ip.clone() } else { String::new() }),
            host_ip,
            machine_cpu_milli: machine::cpu_milli(),
            machine_memory_bytes: self.machine_memory_bytes,
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
        if let Ok(file) = fs::File::open(self.places(uid).last_words(container, attempt)) {
            let mut bytes = Vec::new();
            // What cannot be read is not told.
            let _ = file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes);
            words = String::from_utf8_lossy(&bytes).into_owned();
        }
        let fallback =
            find(pod, container)?.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        if words.is_empty() && fallback && code != 0 {
            words = crate::logs::end_of(&self.log_path(pod, container, attempt), 2048);
        }
        (!words.is_empty()).then_some(words)
    }
}

/// After a restart of the daemon a container is as ready as it was told to be, until a probe finds otherwise.
fn take_over(notes: &mut Notes, pod: &Pod, sandbox: &SandboxState) {
    let told = pod.status.iter().flat_map(|status| {
        status.container_statuses.iter().chain(status.init_container_statuses.iter()).flatten()
    });
    for status in told {
        let attempt = u32::try_from(status.restart_count).unwrap_or(0);
        let same = sandbox
            .containers
            .iter()
            .any(|state| state.name == status.name && state.attempt == attempt && is_running(state));
        if same && !notes.probes.contains_key(&status.name) {
            let probed = Probed {
                attempt,
                ready: Some(status.ready),
                started: status.started == Some(true),
                must_restart: None,
            };
            notes.probes.insert(status.name.clone(), probed);
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
    wake_on_runtime(kubelet, tasks);
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
