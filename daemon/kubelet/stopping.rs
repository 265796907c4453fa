//! Lifecycle hooks and signals: how containers are asked to stop, and made to.

use std::sync::Arc;
use std::time::Duration;

use client::Weight;
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};

use crate::act::{Error, Kubelet, reference};
use crate::book::{MustRestart, Probed, Stop};
use crate::ending::Window;
use crate::{hooks, rules};

impl Kubelet {
    /// The grace period of a container begins, with its preStop hook if it has one.
    pub(crate) fn begin_stop(
        self: &Arc<Self>,
        uid: &str,
        state: (&str, u32),
        window: Window,
        why: Option<&str>,
    ) {
        let (container, attempt) = state;
        let pod = self.pod(uid);
        let member = pod.as_ref().and_then(|pod| rules::find(pod, container));
        if let Some(pod) = &pod {
            let message = why.map_or_else(
                || format!("Stopping container {container}"),
                |why| format!("Container {container} {why}, will be restarted"),
            );
            self.events.tell_of(reference(pod, container), Weight::Normal, "Killing", &message);
        }
        let hook = member
            .and_then(|member| member.container.lifecycle.as_ref()?.pre_stop.clone())
            .filter(|_| window.grace_seconds > 0);
        let stop = Stop { attempt, since: window.since, hook_ended: hook.is_none(), asked: None };
        self.book.write(uid, |notes| {
            notes.stops.insert(container.to_owned(), stop);
        });
        if let (Some(hook), Some(pod)) = (hook, pod) {
            let (kubelet, uid, container) = (Arc::clone(self), uid.to_owned(), container.to_owned());
            tokio::spawn(
                async move { kubelet.pre_stop(&uid, &pod, (&container, attempt), window, &hook).await },
            );
        }
        self.queue.wake(uid.to_owned());
    }

    /// Never fails: what its hook does not end in time is stopped without it.
    async fn pre_stop(
        &self,
        uid: &str,
        pod: &Pod,
        state: (&str, u32),
        window: Window,
        hook: &LifecycleHandler,
    ) {
        let (container, attempt) = state;
        let end = window.since + jiff::SignedDuration::from_secs(window.grace_seconds);
        let left = end.duration_since(self.parts.clock.now());
        let left = Duration::try_from(left).unwrap_or(Duration::ZERO);
        let run = self.run_hook(pod, uid, container, hook);
        if let Ok(Err(why)) = tokio::time::timeout(left, run).await {
            let message = format!("PreStopHook failed: {why}");
            self.events.tell_of(reference(pod, container), Weight::Warning, "FailedPreStopHook", &message);
        }
        self.book.write(uid, |notes| {
            let stop = notes.stops.get_mut(container).filter(|stop| stop.attempt == attempt);
            if let Some(stop) = stop {
                stop.hook_ended = true;
            }
        });
        self.queue.wake(uid.to_owned());
    }

    /// Sends a container its stop signal.
    pub(crate) async fn ask_to_stop(&self, uid: &str, container: &str, attempt: u32) -> Result<(), Error> {
        let now = self.parts.clock.now();
        self.book.write(uid, |notes| {
            if let Some(stop) = notes.stops.get_mut(container) {
                stop.asked.get_or_insert(now);
            }
        });
        let signal = self.stop_signal(uid, container);
        let sent = self.signal(uid, container, attempt, signal).await;
        self.queue.wake(uid.to_owned());
        sent
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
        let found =
            rules::find(pod, container).ok_or_else(|| format!("container {container} is not in the pod"))?;
        match hooks::check(&found.container, hook, &ip) {
            hooks::Hook::Sleep(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            hooks::Hook::Check(check) => {
                let asked = self.asker.once(&check, container, uid, &*self.parts.runtime).await;
                asked.map(drop)
            }
        }
    }

    /// Runs the postStart hook; until it has ended the container counts as starting. When it fails the container is ended,
    /// as documented.
    pub(crate) fn after_start(self: &Arc<Self>, uid: &str, pod: &Arc<Pod>, container: &str, attempt: u32) {
        let hook = rules::find(pod, container)
            .and_then(|member| member.container.lifecycle.as_ref()?.post_start.clone());
        let Some(hook) = hook else { return };
        let (kubelet, uid, pod, container) =
            (Arc::clone(self), uid.to_owned(), Arc::clone(pod), container.to_owned());
        tokio::spawn(async move {
            let outcome = kubelet.run_hook(&pod, &uid, &container, &hook).await;
            if let Err(why) = &outcome {
                kubelet.events.tell_of(
                    reference(&pod, &container),
                    Weight::Warning,
                    "FailedPostStartHook",
                    &format!("PostStartHook failed: {why}"),
                );
            }
            kubelet.book.write(&uid, |notes| {
                notes.post_starts.retain(|name, started| (name, *started) != (&container, attempt));
                if outcome.is_err() {
                    let probed = notes.probes.entry(container.clone()).or_default();
                    *probed = Probed { attempt, ..Probed::default() };
                    let why = "failed postStart hook".to_owned();
                    probed.must_restart = Some(MustRestart { why, grace_seconds: None });
                }
            });
            kubelet.queue.wake(uid);
        });
    }

    /// The container's own stop signal, else the image's, else SIGTERM.
    pub(crate) fn stop_signal(&self, uid: &str, container: &str) -> i32 {
        let pod = self.pod(uid);
        let member = pod.as_ref().and_then(|pod| rules::find(pod, container));
        let own = member
            .as_ref()
            .and_then(|member| member.container.lifecycle.as_ref()?.stop_signal.clone())
            .filter(|signal| !signal.is_empty());
        let image = member
            .and_then(|member| member.container.image.as_deref().and_then(|image| self.image(image)))
            .map(|image| image.config.stop_signal.clone());
        signal_number(&own.or(image).unwrap_or_default())
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
}

/// `SIGUSR1`, `USR1`, `10` and `SIGRTMIN+3`, as Dockerfiles and pods spell signals; SIGTERM for what is none.
pub(crate) fn signal_number(name: &str) -> i32 {
    let bare = name.strip_prefix("SIG").unwrap_or(name);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    if let Some(number) = bare.strip_prefix("RTMIN").and_then(offset) {
        return 34 + number;
    }
    if let Some(number) = bare.strip_prefix("RTMAX").and_then(offset) {
        return 64 + number;
    }
    let named = format!("SIG{bare}").parse::<nix::sys::signal::Signal>();
    named.map(|signal| signal as i32).ok().or_else(|| name.parse().ok()).unwrap_or(15)
}
