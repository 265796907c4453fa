//! Lifecycle hooks and signals: how containers are asked to stop, and made to.

use std::sync::Arc;
use std::time::Duration;

use client::Weight;
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};
use tracing::debug;

use crate::act::{Error, Kubelet, find, reference};
use crate::{hooks, probes};

impl Kubelet {
    /// Runs each container's preStop hook, then sends its stop signal. The grace period runs from now, hooks included.
    pub(crate) fn ask_to_stop(self: &Arc<Self>, uid: &str, containers: Vec<(String, u32)>) {
        let now = self.parts.clock.now();
        self.book.write(uid, |notes| notes.asked_to_stop = Some(now));
        for (container, attempt) in containers {
            let (kubelet, uid) = (Arc::clone(self), uid.to_owned());
            tokio::spawn(async move {
                kubelet.stop_container(&uid, &container, attempt).await;
            });
        }
    }

    /// Never fails: what cannot be asked is killed at the end of its grace period.
    pub(crate) async fn stop_container(&self, uid: &str, container: &str, attempt: u32) {
        if let Some(pod) = self.pod(uid) {
            let message = format!("Stopping container {container}");
            self.events.tell_of(reference(&pod, container), Weight::Normal, "Killing", &message);
            let hook = find(&pod, container).and_then(|found| found.lifecycle.as_ref()?.pre_stop.clone());
            if let Some(hook) = hook {
                let grace = pod
                    .metadata
                    .deletion_grace_period_seconds
                    .and_then(|grace| u64::try_from(grace).ok())
                    .unwrap_or(30);
                let run = self.run_hook(&pod, uid, container, &hook);
                let outcome = tokio::time::timeout(Duration::from_secs(grace), run).await;
                if let Ok(Err(why)) = outcome {
                    self.events.tell_of(
                        reference(&pod, container),
                        Weight::Warning,
                        "FailedPreStopHook",
                        &why,
                    );
                }
            }
        }
        let stop = self.stop_signal(uid, container);
        if let Err(error) = self.signal(uid, container, attempt, stop).await {
            debug!(
                uid,
                container,
                error = reconcile::chain(&error),
                "a container could not be asked to stop"
            );
        }
    }

    /// Runs a lifecycle hook in, or against, a container.
    pub(crate) async fn run_hook(
        &self,
        pod: &Pod,
        uid: &str,
        container: &str,
        hook: &LifecycleHandler,
    ) -> Result<(), String> {
        let ip = self.facts(uid).pod_ip;
        let found = find(pod, container).ok_or_else(|| format!("container {container} is not in the pod"))?;
        match hooks::check(found, hook, &ip) {
            hooks::Hook::Sleep(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            hooks::Hook::Check(check) => {
                probes::once(&check, container, uid, &*self.parts.runtime, &self.http).await
            }
        }
    }

    /// Runs the postStart hook; when it fails the container is killed, as documented.
    pub(crate) fn after_start(self: &Arc<Self>, uid: &str, pod: &Arc<Pod>, container: &str, attempt: u32) {
        let Some(hook) = find(pod, container).and_then(|found| found.lifecycle.as_ref()?.post_start.clone())
        else {
            return;
        };
        let (kubelet, uid, pod, container) =
            (Arc::clone(self), uid.to_owned(), Arc::clone(pod), container.to_owned());
        tokio::spawn(async move {
            if let Err(why) = kubelet.run_hook(&pod, &uid, &container, &hook).await {
                kubelet.events.tell_of(
                    reference(&pod, &container),
                    Weight::Warning,
                    "FailedPostStartHook",
                    &why,
                );
                if let Err(error) = kubelet.signal(&uid, &container, attempt, 9).await {
                    debug!(
                        uid,
                        container,
                        error = reconcile::chain(&error),
                        "a container could not be killed"
                    );
                }
            }
        });
    }

    /// The image's own stop signal, SIGTERM when it names none.
    pub(crate) fn stop_signal(&self, uid: &str, container: &str) -> i32 {
        let pod = self.pod(uid);
        let image = pod
            .as_ref()
            .and_then(|pod| find(pod, container)?.image.as_deref().and_then(|image| self.image(image)));
        let wanted = image.map(|image| image.config.stop_signal.clone()).unwrap_or_default();
        let named = if wanted.starts_with("SIG") { wanted.clone() } else { format!("SIG{wanted}") };
        named
            .parse::<nix::sys::signal::Signal>()
            .map(|signal| signal as i32)
            .ok()
            .or_else(|| wanted.parse().ok())
            .unwrap_or(15)
    }

    pub(crate) async fn signal(
        &self,
        uid: &str,
        container: &str,
        attempt: u32,
        signal: i32,
    ) -> Result<(), Error> {
        match self.parts.runtime.signal_container(uid, container, attempt, signal).await {
            Err(runtime::Error::NoSandbox { .. } | runtime::Error::NoContainer { .. }) | Ok(()) => Ok(()),
            Err(source) => Err(Error::Runtime { attempt: "signal a container", pod: uid.to_owned(), source }),
        }
    }

    pub(crate) async fn stop_one_unhealthy(
        &self,
        uid: &str,
        container: &str,
        attempt: u32,
        signal: i32,
    ) -> Result<(), Error> {
        let why = self
            .book
            .notes(uid)
            .probes
            .get(container)
            .and_then(|probed| probed.must_restart.clone())
            .unwrap_or_default();
        if signal != 9
            && let Some(pod) = self.pod(uid)
        {
            self.events.tell_of(
                reference(&pod, container),
                Weight::Normal,
                "Killing",
                &format!("Container {container} {why}, will be restarted"),
            );
        }
        let now = self.parts.clock.now();
        self.book.write(uid, |notes| {
            notes.unhealthy.entry(container.to_owned()).or_insert((attempt, now)).0 = attempt
        });
        let signal = if signal == 15 { self.stop_signal(uid, container) } else { signal };
        self.signal(uid, container, attempt, signal).await
    }
}
