//! The tasks that probe, and what their findings change.

use std::sync::Arc;
use std::time::Duration;

use client::Weight;

use crate::act::{Kubelet, Probing, lock, reference};
use crate::asking::Asked;
use crate::book::{MustRestart, Probed};
use crate::probes::{Kind, Wanted};

impl Kubelet {
    /// Starts the probes that are wanted and not running, ends the others.
    pub(crate) fn probe(self: &Arc<Self>, uid: &str, wanted: Vec<Wanted>) {
        let mut all = lock(&self.probing);
        let running = all.remove(uid).unwrap_or_default();
        let (keep, end): (Vec<_>, Vec<_>) =
            running.into_iter().partition(|probing| wanted.contains(&probing.wanted));
        end.iter().for_each(|probing| probing.task.abort());
        let mut keep = keep;
        for one in wanted
            .iter()
            .filter(|one| !keep.iter().any(|probing| probing.wanted == **one))
            .cloned()
            .collect::<Vec<_>>()
        {
            let task =
                tokio::spawn(Arc::clone(self).keep_probing(uid.to_owned(), one.clone())).abort_handle();
            keep.push(Probing { wanted: one, task });
        }
        keep.sort_by_key(|probing| wanted.iter().position(|one| *one == probing.wanted));
        if !keep.is_empty() {
            all.insert(uid.to_owned(), keep);
        }
    }

    pub(crate) async fn keep_probing(self: Arc<Self>, uid: String, wanted: Wanted) {
        tokio::time::sleep(wanted.initial_delay).await;
        let (mut successes, mut failures) = (0u32, 0u32);
        let mut impatience = Duration::from_millis(10);
        let mut succeeded_once = false;
        loop {
            let outcome = self.asker.probe(&wanted, &uid, &*self.parts.runtime).await;
            match &outcome {
                Ok(_) => (successes, failures, succeeded_once) = (successes + 1, 0, true),
                Err(_) => (successes, failures) = (0, failures + 1),
            }
            let early = !succeeded_once && wanted.kind != Kind::Liveness && impatience < wanted.period;
            self.probed(&uid, &wanted, &outcome, successes, if early { 0 } else { failures });
            let pause = if early { impatience } else { wanted.period };
            failures = if early { 0 } else { failures };
            impatience = (impatience * 2).min(wanted.period);
            tokio::time::sleep(pause).await;
        }
    }

    pub(crate) fn probed(&self, uid: &str, wanted: &Wanted, outcome: &Asked, successes: u32, failures: u32) {
        let changed = self.book.write(uid, |notes| {
            let probed = notes.probes.entry(wanted.container.clone()).or_default();
            if probed.attempt != wanted.attempt {
                *probed = Probed { attempt: wanted.attempt, ..Probed::default() };
            }
            let good = successes >= wanted.success_threshold;
            let bad = failures >= wanted.failure_threshold;
            match wanted.kind {
                Kind::Readiness if good => probed.ready = Some(true),
                Kind::Readiness if bad => probed.ready = Some(false),
                Kind::Startup if good => probed.started = true,
                Kind::Startup | Kind::Liveness if bad => {
                    let why = format!("failed {} probe", wanted.kind.word().to_lowercase());
                    probed.must_restart = Some(MustRestart { why, grace_seconds: wanted.grace_seconds });
                }
                _ => {}
            }
        });
        let told = match outcome {
            Ok(None) => None,
            Ok(Some(warning)) => Some(("ProbeWarning", "warning", warning)),
            Err(message) => Some(("Unhealthy", "failed", message)).filter(|_| failures > 0),
        };
        if let (Some((reason, what, message)), Some(pod)) = (told, self.pod(uid)) {
            let message = format!("{} probe {what}: {message}", wanted.kind.word());
            self.events.tell_of(reference(&pod, &wanted.container), Weight::Warning, reason, &message);
        }
        if changed {
            self.queue.wake(uid.to_owned());
        }
    }
}
