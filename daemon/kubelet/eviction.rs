//! Looks after the machine while pods run on it: what is short, who goes, which pods use more disk than they may.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::quantity::Quantity as Quantities;
use client::Weight;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use reconcile::Tasks;
use tracing::warn;

use crate::act::{Kubelet, lock};
use crate::files::Content;
use crate::pressure::{self, Amount, Candidate, Condition, Sample, Short, Signal};
use crate::{machine, plan, resize, rules};

/// How often the machine is looked at while pods run: of a disk that fills nobody notifies.
const LOOK: Duration = Duration::from_secs(10);

/// Starts the watch.
pub(crate) fn start(kubelet: &Arc<Kubelet>, tasks: &Tasks) {
    let kubelet = Arc::clone(kubelet);
    tasks.spawn("kubelet-pressure", move |stop| async move {
        let mut seen = BTreeMap::new();
        let mut changes = kubelet.parts.runtime.changes();
        loop {
            let idle = kubelet.parts.runtime.sandboxes().is_empty() && seen.is_empty();
            tokio::select! {
                biased;
                // Cancel-safe: a token stays cancelled.
                () = stop.cancelled() => return,
                // Cancel-safe per docs of broadcast::Receiver::recv: without pods nothing wakes but the first of them.
                _ = changes.recv(), if idle => {}
                () = tokio::time::sleep(LOOK), if !idle => kubelet.look(&mut seen).await,
            }
        }
    });
}

impl Kubelet {
    async fn look(self: &Arc<Self>, seen: &mut BTreeMap<Condition, Timestamp>) {
        let now = self.parts.clock.now();
        let sample = self.sample();
        let short = pressure::short(&sample, &self.parts.config);
        for one in &short {
            seen.insert(one.signal.condition(), now);
        }
        self.tell_pressure(seen, now).await;
        seen.retain(|_, time| pressure::holds(Some(*time), now));
        self.evict_for_limits().await;
        // One at a time: what its end frees is seen before the next one goes.
        let ending = self.living_pods().iter().any(|pod| {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            self.book.notes(uid).evicted.is_some()
        });
        if let (Some(first), false) = (short.first(), ending) {
            self.evict_one(first).await;
        }
    }

    fn sample(&self) -> Sample {
        let inodes = nix::sys::statvfs::statvfs(&self.parts.pods_dir).map_or_else(
            |_| Amount::default(),
            |stat| Amount { all: stat.files(), left: stat.files_available() },
        );
        let disk = Amount::of_disk(&self.parts.pods_dir);
        Sample { memory: machine::memory(), disk, inodes, pids: machine::pids() }
    }

    /// Brings the node's conditions up to date.
    async fn tell_pressure(&self, seen: &BTreeMap<Condition, Timestamp>, now: Timestamp) {
        let held =
            Condition::ALL.map(|condition| (condition, pressure::holds(seen.get(&condition).copied(), now)));
        let told = std::mem::replace(&mut *lock(&self.pressure), held.into());
        if told == held.into() {
            return;
        }
        for (condition, holds) in held {
            if told.get(&condition) != Some(&holds) {
                let (reason, message) = condition.words(holds);
                warn!(condition = condition.name(), holds, message, "the node's condition changed");
                let about = ObjectReference {
                    kind: Some("Node".to_owned()),
                    name: Some(self.parts.node_name.clone()),
                    uid: Some(self.parts.node_name.clone()),
                    ..ObjectReference::default()
                };
                let told = format!("Node {} status is now: {reason}", self.parts.node_name);
                self.events.tell_of(about, Weight::Normal, reason, &told);
            }
        }
        if let Err(error) = crate::node::register(self).await {
            // Told again in the next round.
            lock(&self.pressure).clear();
            warn!(error = %error, "the node's conditions could not be told");
        }
    }

    async fn evict_one(&self, short: &Short) {
        let mut candidates = Vec::new();
        for pod in self.living_pods() {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
            let used = match short.signal {
                Signal::Memory | Signal::Pids => {
                    let Ok(usage) = self.parts.runtime.usage(&uid).await else { continue };
                    if short.signal == Signal::Pids {
                        usage.total.pids
                    } else {
                        usage.total.memory_working_set_bytes
                    }
                }
                Signal::Disk | Signal::Inodes => self.disk_use(&pod, &uid).await.total(),
            };
            let asked = match short.signal {
                Signal::Pids => 0,
                signal => u64::try_from(resize::asked(&pod, signal.resource()) / 1000).unwrap_or(0),
            };
            candidates.push(Candidate { uid, priority, used, asked });
        }
        if let Some(victim) = pressure::victim(&candidates) {
            self.evict(&victim.uid, &pressure::message(short, victim.used, victim.asked));
        } else {
            warn!(
                resource = short.signal.resource(),
                "the node is short of something and no pod can go for it"
            );
        }
    }

    fn living_pods(&self) -> Vec<Arc<Pod>> {
        let uids: Vec<String> = lock(&self.keys).keys().cloned().collect();
        let pods = uids.iter().filter_map(|uid| self.pod(uid));
        pods.filter(|pod| !plan::has_ended(pod) && pod.metadata.deletion_timestamp.is_none()).collect()
    }

    pub(crate) fn evict(&self, uid: &str, message: &str) {
        let Some(pod) = self.pod(uid) else { return };
        self.book.write(uid, |notes| {
            notes.evicted.get_or_insert(("Evicted".to_owned(), message.to_owned()));
        });
        self.events.tell(&*pod, Weight::Warning, "Evicted", message);
        self.queue.wake(uid.to_owned());
    }

    /// Pods that have more on the disk than they may, by a volume's, a container's or their own limit.
    async fn evict_for_limits(&self) {
        for pod in self.living_pods().iter().filter(|pod| limits_disk(pod)) {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            if self.book.notes(uid).evicted.is_none()
                && let Some(why) = self.disk_use(pod, uid).await.excess(pod)
            {
                self.evict(uid, &why);
            }
        }
    }

    /// What a pod has on the disk. Walks its files: asked for only where a limit or a shortage wants it.
    pub(crate) async fn disk_use(&self, pod: &Pod, uid: &str) -> DiskUse {
        let written = self.parts.runtime.written(uid).await.unwrap_or_default();
        let files = self.files(pod, uid).unwrap_or_default();
        let (places, logs) = (self.places(uid), self.log_dir(pod));
        let names: Vec<String> =
            rules::members(pod).iter().map(|member| member.container.name.clone()).collect();
        let walked = tokio::task::spawn_blocking(move || {
            let own = files.volumes.iter().filter(|(_, content)| {
                matches!(
                    content,
                    Content::Empty | Content::Memory { .. } | Content::Files { secret: false, .. }
                )
            });
            let volumes = own.map(|(name, content)| (name.clone(), size(&places.volume(name, content))));
            let logs = names.into_iter().map(|name| (name.clone(), size(&logs.join(name))));
            (volumes.collect(), logs.collect())
        });
        let (volumes, logs): (BTreeMap<_, _>, BTreeMap<_, _>) = walked.await.unwrap_or_default();
        DiskUse { written, volumes, logs }
    }
}

/// Bytes on the disk, by what they belong to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DiskUse {
    /// What containers wrote beside their volumes, by container.
    pub(crate) written: BTreeMap<String, u64>,
    pub(crate) volumes: BTreeMap<String, u64>,
    pub(crate) logs: BTreeMap<String, u64>,
}

impl DiskUse {
    pub(crate) fn total(&self) -> u64 {
        [&self.written, &self.volumes, &self.logs].into_iter().flat_map(BTreeMap::values).sum()
    }

    /// The first limit that is exceeded, in the documented words.
    fn excess(&self, pod: &Pod) -> Option<String> {
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let limit = volume.empty_dir.as_ref().and_then(|empty| empty.size_limit.as_ref());
            if let Some((limit, most)) = limit.and_then(|limit| Some((limit, bytes(&limit.0)?)))
                && most > 0
                && self.volumes.get(&volume.name).is_some_and(|used| *used > most)
            {
                return Some(format!(
                    "Usage of EmptyDir volume \"{}\" exceeds the limit \"{}\". ",
                    volume.name, limit.0
                ));
            }
        }
        let (mut sum, mut all_bounded) = (0, true);
        for member in rules::members(pod) {
            let name = &member.container.name;
            let Some((limit, most)) =
                storage_limit(&member).and_then(|limit| Some((limit.clone(), bytes(&limit)?)))
            else {
                all_bounded &= member.role != rules::Role::Main;
                continue;
            };
            sum += most;
            let used = |of: &BTreeMap<String, u64>| of.get(name).copied().unwrap_or(0);
            if used(&self.written) + used(&self.logs) > most {
                return Some(format!(
                    "Container {name} exceeded its local ephemeral storage limit \"{limit}\". "
                ));
            }
        }
        (all_bounded && sum > 0 && self.total() > sum).then(|| {
            format!("Pod ephemeral local storage usage exceeds the total limit of containers {sum}. ")
        })
    }
}

fn bytes(text: &str) -> Option<u64> {
    Quantities::parse(text).ok().and_then(|amount| u64::try_from(amount.as_milli() / 1000).ok())
}

fn storage_limit(member: &rules::Member<'_>) -> Option<String> {
    let limits = member.container.resources.as_ref()?.limits.as_ref()?;
    limits.get("ephemeral-storage").map(|limit| limit.0.clone())
}

fn limits_disk(pod: &Pod) -> bool {
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.any(|volume| volume.empty_dir.as_ref().is_some_and(|empty| empty.size_limit.is_some()))
        || rules::members(pod).iter().any(|member| storage_limit(member).is_some())
}

/// What a directory takes on the disk; what vanishes meanwhile takes nothing.
fn size(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let one = |entry: std::fs::DirEntry| {
        let Ok(meta) = entry.metadata() else { return 0 };
        let own = meta.blocks() * 512;
        if meta.is_dir() { own + size(&entry.path()) } else { own }
    };
    entries.flatten().map(one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_exceeded_is_told_in_the_documented_words() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "spec": {
                "containers": [{ "name": "c", "image": "i", "resources": { "limits": { "ephemeral-storage": "2Mi" } } }],
                "volumes": [{ "name": "v", "emptyDir": { "sizeLimit": "1Mi" } }],
            }
        }))
        .expect("a pod");
        assert!(limits_disk(&pod));
        let used = |written: u64, volume: u64| DiskUse {
            written: [("c".to_owned(), written)].into(),
            volumes: [("v".to_owned(), volume)].into(),
            logs: BTreeMap::new(),
        };
        assert_eq!(used(1 << 20, 1 << 20).excess(&pod), None);
        let check = |used: DiskUse, words: &str| assert_eq!(used.excess(&pod).as_deref(), Some(words));
        check(used(0, 2 << 20), "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ");
        check(used(3 << 20, 0), "Container c exceeded its local ephemeral storage limit \"2Mi\". ");
        check(
            used((2 << 20) - 1, 1 << 20),
            "Pod ephemeral local storage usage exceeds the total limit of containers 2097152. ",
        );
    }
}
