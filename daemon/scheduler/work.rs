//! Starts the scheduler: what wakes it, what a round sees, and how the books follow what it does.
//!
//! Invariant: there is one round at a time over the pods to be placed; its key is `all`.

use std::fmt::{self, Display};
use std::sync::Arc;

use client::{Cache, Caches, Clock};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Resource;
use reconcile::{Backoff, Plan, Queue, Reconciler, Tasks, Work};
use tokio::sync::Semaphore;

use crate::Error;
use crate::config::{Config, Strategy};
use crate::effects::{self, Came, Door};
use crate::ledger::Ledger;
use crate::plan::{Step, View, plan};
use crate::volumes::Storage;

/// Writes under way at once: enough to share the disk's syncs, few enough that others get their turn.
const AT_ONCE: usize = 64;

/// All pending pods.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct All;

impl Display for All {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("all")
    }
}

/// Gives pods their nodes.
pub(crate) struct Scheduler {
    door: Door,
    seen: Seen,
    ledger: Arc<Ledger>,
    strategy: Strategy,
    turns: Semaphore,
    queue: Queue<All>,
}

#[derive(Clone)]
struct Seen {
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    namespaces: Cache<Namespace>,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    classes: Cache<StorageClass>,
    budgets: Cache<PodDisruptionBudget>,
}

impl Seen {
    async fn synced(self) {
        self.nodes.synced().await;
        self.pods.synced().await;
        self.namespaces.synced().await;
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.budgets.synced().await;
    }
}

/// Starts the scheduler over the caches of one door. Stopped by stopping the tasks.
pub fn start(caches: &Caches, tasks: &Tasks, clock: Clock, config: &Config) {
    let seen = Seen {
        nodes: caches.of(),
        pods: caches.of(),
        namespaces: caches.of(),
        claims: caches.of(),
        volumes: caches.of(),
        classes: caches.of(),
        budgets: caches.of(),
    };
    let (queue, ledger) = (Queue::new(), Arc::<Ledger>::default());
    follow(&seen.nodes, &queue, &ledger, |books, node, nodes| books.node_changed(node, nodes));
    follow(&seen.pods, &queue, &ledger, |books, pod, pods| books.pod_changed(pod, pods));
    follow(&seen.claims, &queue, &ledger, |books, _, _| books.storage_changed());
    follow(&seen.volumes, &queue, &ledger, |books, _, _| books.storage_changed());
    follow(&seen.classes, &queue, &ledger, |books, _, _| books.storage_changed());
    follow(&seen.namespaces, &queue, &ledger, |books, _, _| books.namespaces_changed());
    let synced = seen.clone().synced();
    let scheduler = Scheduler {
        door: Door::new(caches, clock, tasks.token()),
        seen,
        ledger,
        strategy: config.strategy,
        turns: Semaphore::new(AT_ONCE),
        queue: queue.clone(),
    };
    let work = Work {
        reconciler: Arc::new(scheduler),
        queue,
        now: clock.teller(),
        at_once: 1,
        backoff: Backoff::default(),
    };
    tasks.spawn(Scheduler::NAME, |stop| async move {
        tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => return,
            // Cancel-safe: only waits for what other tasks do.
            () = synced => {}
        }
        work.run(stop).await;
    });
}

/// A change goes into the books, and wakes a round when one could come out differently.
fn follow<K: Resource + Send + Sync + 'static>(
    cache: &Cache<K>,
    queue: &Queue<All>,
    ledger: &Arc<Ledger>,
    change: impl Fn(&Ledger, &K, &Cache<K>) -> bool + Send + 'static,
) {
    let (queue, ledger, seen) = (queue.clone(), Arc::clone(ledger), cache.clone());
    cache.listen(move |object| {
        if change(&ledger, object, &seen) {
            queue.wake(All);
        }
    });
}

impl Reconciler for Scheduler {
    type Key = All;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "scheduler";

    async fn observe(&self, _: &All) -> Result<View, Error> {
        Ok(self.ledger.view(View {
            namespaces: self.seen.namespaces.snapshot(),
            storage: Storage {
                claims: self.seen.claims.snapshot(),
                volumes: self.seen.volumes.snapshot(),
                classes: self.seen.classes.snapshot(),
            },
            budgets: self.seen.budgets.snapshot(),
            strategy: self.strategy,
            ..View::default()
        }))
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &All, step: Step) -> Result<(), Error> {
        // Before the wait for a turn: what is planned is taken.
        match &step {
            Step::Bind { ask, node } => self.ledger.assume(ask, node),
            Step::Claim { ask, node, .. } => self.ledger.claim(ask, node),
            Step::Park { ask, causes } => {
                if self.ledger.park(ask, causes.clone()) {
                    self.queue.wake(All);
                }
                return Ok(());
            }
            Step::Explain(_) | Step::Withdraw { .. } => {}
        }
        let _turn = self.turns.acquire().await.expect("turns are never closed");
        match step {
            Step::Bind { ask, node } => {
                if let Err(source) = effects::bind(&self.door, &ask.pod, &node).await {
                    // Done although the answer was lost: then the room it takes stays counted.
                    if !effects::is_bound(&self.door, &ask.pod).await {
                        self.ledger.forget(&ask);
                    }
                    let pod = effects::named(&ask.pod);
                    return Err(Error::Bind { pod, node, source: Box::new(source) });
                }
                Ok(())
            }
            Step::Claim { ask, node, choices } => {
                let claimed = effects::claim(&self.door, &node, &choices).await;
                claimed.map_err(|source| {
                    self.ledger.forget(&ask);
                    let pod = effects::named(&ask.pod);
                    Error::Claim { pod, node, source: Box::new(source) }
                })
            }
            Step::Explain(told) => {
                let came = effects::explain(&self.door, &told).await?;
                if came == Came::ToBe && self.ledger.park(&told.ask, told.causes) {
                    self.queue.wake(All);
                }
                Ok(())
            }
            Step::Withdraw { ask } => effects::withdraw(&self.door, &ask.pod)
                .await
                .map_err(|source| Error::Report { pod: effects::named(&ask.pod), source: Box::new(source) }),
            Step::Park { .. } => Ok(()),
        }
    }
}
