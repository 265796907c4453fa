//! Frees the disk of images that nothing uses, when it gets full or they get old.
//!
//! Invariant: what a pod names, and every layer that a running container's root is made of, counts as used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::{Caches, Clock};
use images::{Builds, Held, Images, InUse};
use k8s_openapi::api::core::v1::Pod;
use reconcile::Tasks;
use runtime::{Phase, Runtime};
use tracing::{info, warn};

/// A burst of changes is looked at once.
const BURST: Duration = Duration::from_secs(5);
/// How often a disk that is filling up is looked at while nothing else happens.
const FILLING: Duration = Duration::from_secs(300);
/// Percent below the limit at which a disk counts as filling up.
const NEAR: u8 = 15;

/// What decides about the images of this machine.
#[derive(Clone)]
pub(crate) struct Users {
    pub(crate) images: Images,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) caches: Caches,
}

impl Users {
    /// Everything that containers use, or soon will.
    pub(crate) fn in_use(&self) -> InUse {
        let mut used = InUse::default();
        for pod in self.caches.of::<Pod>().snapshot().values() {
            for name in names(pod) {
                let id = name.rsplit('@').next().unwrap_or_default();
                used.ids.extend(self.images.find(&name).map(|image| image.id.clone()));
                used.ids.extend(id.starts_with("sha256:").then(|| id.to_owned()));
            }
        }
        for sandbox in self.runtime.sandboxes().values() {
            for container in &sandbox.containers {
                if let Phase::Running { pid } = container.phase {
                    used.layers.extend(layers(Path::new(&format!("/proc/{pid}/mountinfo"))));
                }
            }
        }
        let layers: BTreeSet<&PathBuf> = used.layers.iter().collect();
        let of_running = self.images.list().into_iter().filter(|image| {
            // Every image has its top layer alone; the lower ones may be another's as well.
            image.layers.last().is_some_and(|layer| layers.contains(layer))
        });
        used.ids.extend(of_running.map(|image| image.id.clone()));
        used
    }
}

/// The images that a pod asks for and those it runs.
fn names(pod: &Pod) -> Vec<String> {
    let spec = pod.spec.iter();
    let asked = spec.flat_map(|spec| {
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let of_containers = containers.filter_map(|container| container.image.clone());
        let ephemeral = spec.ephemeral_containers.iter().flatten().filter_map(|c| c.image.clone());
        let volumes =
            spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()?.reference.clone());
        of_containers.chain(ephemeral).chain(volumes).collect::<Vec<_>>()
    });
    let statuses = pod.status.iter().flat_map(|status| {
        let lists = [
            &status.container_statuses,
            &status.init_container_statuses,
            &status.ephemeral_container_statuses,
        ];
        lists.into_iter().flatten().flatten().map(|status| status.image_id.clone()).collect::<Vec<_>>()
    });
    asked.chain(statuses).filter(|name| !name.is_empty()).collect()
}

/// The layers that the overlays of a process's mounts are made of.
fn layers(mountinfo: &Path) -> Vec<PathBuf> {
    // The process may have ended meanwhile.
    let text = fs::read_to_string(mountinfo).unwrap_or_default();
    let overlays = text.lines().filter(|line| line.contains(" - overlay "));
    let words = overlays.flat_map(|line| line.split(['=', ':', ',', ' ']));
    let is_layer =
        |path: &Path| path.is_absolute() && path.parent().is_some_and(|dir| dir.ends_with("images/layers"));
    words.map(PathBuf::from).filter(|path| is_layer(path)).collect()
}

/// Looks whenever images or containers change, and at a disk that fills up from time to time.
pub(crate) fn start(users: Users, tasks: &Tasks, clock: Clock) {
    tasks.spawn("image-garbage", move |stop| async move {
        let mut seen = BTreeMap::new();
        let mut listed = users.images.changed();
        let mut containers = users.runtime.changes();
        loop {
            let next = round(&users, &mut seen, clock).await;
            let again = async {
                match next {
                    Some(after) => tokio::time::sleep(after).await,
                    None => std::future::pending().await,
                }
            };
            // All are cancel-safe: what is missed is a wake-up only, and the round looks at everything.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = listed.changed() => if changed.is_err() { return },
                _ = containers.recv() => {}
                () = again => {}
            }
            if stop.run_until_cancelled(tokio::time::sleep(BURST)).await.is_none() {
                return;
            }
            containers = containers.resubscribe();
        }
    });
}

/// When each image was first seen and last used.
type Seen = BTreeMap<String, (i64, i64)>;

/// Removes what is to go; when to look again though nothing changes.
async fn round(users: &Users, seen: &mut Seen, clock: Clock) -> Option<Duration> {
    let now = clock.now().as_second();
    let used = users.in_use();
    let images = users.images.list();
    let held: Vec<Held> = images
        .iter()
        .map(|image| {
            let is_used = used.ids.contains(&image.id);
            let times = seen.entry(image.id.clone()).or_insert((now, 0));
            if is_used {
                times.1 = now;
            }
            Held {
                id: image.id.clone(),
                bytes: image.size,
                is_pulled: users.images.is_pulled(image),
                is_used,
                first_seen: times.0,
                last_used: times.1,
            }
        })
        .collect();
    seen.retain(|id, _| held.iter().any(|image| image.id == *id));
    let space = match users.images.space() {
        Ok(space) => space,
        Err(error) => {
            warn!(error = reconcile::chain(&error), "the room for images cannot be measured");
            return None;
        }
    };
    let config = users.images.config();
    let gone = images::spare(&held, space, config, now);
    if !gone.is_empty() {
        match users.images.evict(&gone, &used, Builds::Forget).await {
            Ok(freed) => {
                let names: Vec<String> = freed.references.iter().map(ToString::to_string).collect();
                info!(
                    ?names,
                    bytes = freed.bytes,
                    percent = space.percent(),
                    "removed images that nothing uses"
                );
            }
            Err(error) => warn!(error = reconcile::chain(&error), "images could not be removed"),
        }
    }
    let unused: Vec<&Held> =
        held.iter().filter(|image| image.is_pulled && !image.is_used && !gone.contains(&image.id)).collect();
    let oldest = unused.iter().map(|image| image.last_used.max(image.first_seen)).min()?;
    let age = i64::try_from(config.gc_max_age_seconds).unwrap_or(i64::MAX);
    let by_age = (age > 0).then(|| u64::try_from(oldest.saturating_add(age) - now).unwrap_or(0) + 1);
    let filling = space.percent().saturating_add(NEAR) >= config.gc_high_percent;
    let by_space = filling.then_some(FILLING.as_secs());
    by_age.into_iter().chain(by_space).min().map(|seconds| Duration::from_secs(seconds.max(1)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    #[test]
    fn the_layers_of_a_running_root_are_read_from_its_mounts() {
        let file = std::env::temp_dir().join(format!("holdfast-mountinfo-{}", std::process::id()));
        fs::write(
            &file,
            "1 0 0:60 / / rw - overlay overlay rw,lowerdir=/d/images/layers/aa:/d/images/layers/bb,upperdir=/d/up\n\
             2 1 0:61 / /x rw - overlay overlay rw,lowerdir+=/d/images/layers/cc,upperdir=/d/images/other/u\n\
             3 1 0:62 / /proc rw - proc /d/images/layers/no rw\n",
        )
        .unwrap();
        let found = layers(&file);
        fs::remove_file(&file).unwrap();
        assert_eq!(found, ["aa", "bb", "cc"].map(|name| PathBuf::from("/d/images/layers").join(name)));
    }
}
