//! One loop: takes woken keys, runs their rounds, retries what failed, looks again when a plan asked for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::leaps::leaps;
use crate::{Order, Queue, Reconciler, chain};

/// How long a key that failed waits before its next round.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// Each further failure doubles the wait, up to this.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { first: Duration::from_millis(10), most: Duration::from_secs(60) }
    }
}

impl Backoff {
    fn after(&self, failures: u32) -> Duration {
        self.first.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(20))).min(self.most)
    }
}

/// A reconciler with its queue and its limits: what a task runs.
pub struct Work<R: Reconciler> {
    /// What is kept true.
    pub reconciler: Arc<R>,
    /// Where wakes arrive.
    pub queue: Queue<R::Key>,
    /// The time that plans are given.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// How many keys may be worked on at once.
    pub at_once: usize,
    /// Waits after failures.
    pub backoff: Backoff,
}

struct Round<K> {
    key: K,
    again: Result<Option<Duration>, String>,
}

impl<R: Reconciler> Work<R> {
    /// Runs until the token is cancelled; rounds under way are finished first.
    pub async fn run(self, stop: CancellationToken) {
        let mut state: State<R::Key> = State {
            due: BTreeSet::new(),
            at: BTreeMap::new(),
            running: BTreeSet::new(),
            ready: BTreeSet::new(),
            failures: BTreeMap::new(),
        };
        let mut rounds: JoinSet<Round<R::Key>> = JoinSet::new();
        let mut leaps = leaps();
        loop {
            while rounds.len() < self.at_once {
                let Some(key) = state.next_ready() else { break };
                state.running.insert(key.clone());
                rounds.spawn(round(Arc::clone(&self.reconciler), key, Arc::clone(&self.now)));
            }
            let next_due = state.due.first().map(|(at, _)| *at);
            tokio::select! {
                biased;
                // Cancel-safe: a token stays cancelled.
                () = stop.cancelled() => break,
                // Cancel-safe per docs of JoinSet::join_next: a round is removed only when it is returned.
                Some(ended) = rounds.join_next(), if !rounds.is_empty() => match ended {
                    Ok(round) => state.ended::<R>(round, &self.backoff),
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                },
                // Cancel-safe: Queue::take removes keys only at its return.
                keys = self.queue.take() => state.woken(keys),
                // Cancel-safe per docs of watch::Receiver::changed. Its sender is never dropped.
                Ok(()) = leaps.changed() => state.fire_all(),
                // Cancel-safe: sleeping until a fixed time.
                () = sleep_until(next_due), if next_due.is_some() => state.fire(Instant::now()),
            }
        }
        while rounds.join_next().await.is_some() {}
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

struct State<K> {
    due: BTreeSet<(Instant, K)>,
    at: BTreeMap<K, Instant>,
    running: BTreeSet<K>,
    ready: BTreeSet<K>,
    failures: BTreeMap<K, u32>,
}

impl<K: Ord + Clone + std::fmt::Display> State<K> {
    fn next_ready(&mut self) -> Option<K> {
        let key = self.ready.iter().find(|key| !self.running.contains(*key))?.clone();
        self.ready.remove(&key);
        Some(key)
    }

    fn woken(&mut self, keys: BTreeSet<K>) {
        for key in keys {
            self.forget_timer(&key);
            self.ready.insert(key);
        }
    }

    fn fire(&mut self, now: Instant) {
        while let Some((at, key)) = self.due.first().cloned() {
            if at > now {
                break;
            }
            self.due.pop_first();
            self.at.remove(&key);
            self.ready.insert(key);
        }
    }

    /// Looks again at everything that waits: how long it has to wait is known anew then.
    fn fire_all(&mut self) {
        self.at.clear();
        self.ready.extend(std::mem::take(&mut self.due).into_iter().map(|(_, key)| key));
    }

    fn ended<R: Reconciler>(&mut self, round: Round<K>, backoff: &Backoff) {
        self.running.remove(&round.key);
        let wait = match round.again {
            Ok(again) => {
                self.failures.remove(&round.key);
                again
            }
            Err(error) => {
                let failures = self.failures.entry(round.key.clone()).or_default();
                *failures += 1;
                // A lost race is the common case and over by the next round; only what stays wrong is worth a line.
                // The second, fourth, eighth … failure is told, so that what stays wrong does not fill the log.
                if *failures > 1 && failures.is_power_of_two() {
                    warn!(reconciler = R::NAME, key = %round.key, failures, error, "round failed, will retry");
                } else {
                    debug!(reconciler = R::NAME, key = %round.key, error, "round failed, will retry");
                }
                Some(backoff.after(*failures))
            }
        };
        if let Some(wait) = wait
            && !self.ready.contains(&round.key)
        {
            debug!(reconciler = R::NAME, key = %round.key, ?wait, "will look again");
            self.forget_timer(&round.key);
            let at = Instant::now() + wait;
            self.at.insert(round.key.clone(), at);
            self.due.insert((at, round.key));
        }
    }

    fn forget_timer(&mut self, key: &K) {
        if let Some(at) = self.at.remove(key) {
            self.due.remove(&(at, key.clone()));
        }
    }
}

async fn round<R: Reconciler>(
    reconciler: Arc<R>,
    key: R::Key,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
) -> Round<R::Key> {
    let again = attempt(&*reconciler, &key, &*now).await;
    let again = again.map(|at| at.map(|at| wait_until(at, now()))).map_err(|error| chain(&error));
    Round { key, again }
}

async fn attempt<R: Reconciler>(
    reconciler: &R,
    key: &R::Key,
    now: &(dyn Fn() -> Timestamp + Send + Sync),
) -> Result<Option<Timestamp>, R::Error> {
    let view = reconciler.observe(key).await?;
    let plan = R::plan(&view, now());
    drop(view);
    match plan.order {
        Order::InTurn => {
            for step in plan.steps {
                debug!(reconciler = R::NAME, %key, ?step, "act");
                reconciler.act(key, step).await?;
            }
        }
        Order::Together => {
            let acts = plan.steps.into_iter().map(|step| {
                debug!(reconciler = R::NAME, %key, ?step, "act");
                reconciler.act(key, step)
            });
            join_all(acts).await.into_iter().collect::<Result<Vec<()>, R::Error>>()?;
        }
    }
    Ok(plan.again)
}

/// At least a millisecond, so that a plan that is late by rounding cannot spin.
fn wait_until(at: Timestamp, now: Timestamp) -> Duration {
    let wait = Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO);
    wait.max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests;
