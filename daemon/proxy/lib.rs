//! Keeps the machine's packet rules equal to what Services, EndpointSlices and the host ports of pods say.
//!
//! Invariant: the table is a pure function of the objects; the network finds out by itself what changed.
//! Invariant: nothing is applied before all kinds were listed: an endpoint not yet known is not one that is gone.

mod host_ports;
mod table;

use client::{Cache, Caches, Clock};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use network::Network;
use network::services::ServiceTable;
use reconcile::{Backoff, Plan, Queue, Reconciler, Tasks, Work};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use table::table;

/// Starts keeping the rules of `network`. Stopped by stopping the tasks; the rules stay.
pub fn start(caches: &Caches, tasks: &Tasks, network: Arc<dyn Network>, clock: Clock) {
    let (services, slices) = (caches.of::<Service>(), caches.of::<EndpointSlice>());
    let pods = caches.of::<Pod>();
    let queue = Queue::new();
    let wakes = queue.clone();
    services.listen(move |_| wakes.wake(Machine));
    let wakes = queue.clone();
    slices.listen(move |_| wakes.wake(Machine));
    let wakes = queue.clone();
    pods.listen(move |pod| {
        if host_ports::asks(pod) {
            wakes.wake(Machine);
        }
    });
    let proxy = Proxy {
        services: services.clone(),
        slices: slices.clone(),
        pods: pods.clone(),
        network,
        applied: Mutex::default(),
    };
    let work = Work {
        reconciler: Arc::new(proxy),
        queue: queue.clone(),
        now: clock.teller(),
        at_once: 1,
        backoff: Backoff { first: Duration::from_millis(10), most: Duration::from_secs(5) },
    };
    tasks.spawn(Proxy::NAME, |stop| async move {
        let synced = async { tokio::join!(services.synced(), slices.synced(), pods.synced()) };
        tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => return,
            // Cancel-safe: they only wait for a state.
            _ = synced => {}
        }
        // Without any Service there is still an old table to replace.
        queue.wake(Machine);
        work.run(stop).await;
    });
}

/// The one thing that is kept true here: this machine's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Machine;

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("services")
    }
}

struct Proxy {
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    pods: Cache<Pod>,
    network: Arc<dyn Network>,
    /// Nothing before the first success of this process.
    applied: Mutex<Option<Arc<ServiceTable>>>,
}

struct View {
    wanted: Arc<ServiceTable>,
    applied: Option<Arc<ServiceTable>>,
}

#[derive(Debug, PartialEq)]
struct Apply(Arc<ServiceTable>);

impl Reconciler for Proxy {
    type Key = Machine;
    type View = View;
    type Step = Apply;
    type Error = network::Error;
    const NAME: &'static str = "proxy";

    async fn observe(&self, _: &Machine) -> Result<View, network::Error> {
        let (services, slices) = (self.services.snapshot(), self.slices.snapshot());
        let mut wanted = table(services.values().map(|it| &**it), slices.values().map(|it| &**it));
        let pods = self.pods.snapshot();
        host_ports::add(&mut wanted, pods.values().map(|it| &**it), self.network.addresses().node);
        Ok(View { wanted: Arc::new(wanted), applied: self.applied().clone() })
    }

    fn plan(view: &View, _: Timestamp) -> Plan<Apply> {
        if view.applied.as_ref() == Some(&view.wanted) {
            return Plan::empty();
        }
        Plan::in_turn(vec![Apply(Arc::clone(&view.wanted))])
    }

    async fn act(&self, _: &Machine, Apply(table): Apply) -> Result<(), network::Error> {
        self.network.apply_services(&table).await?;
        *self.applied() = Some(table);
        Ok(())
    }
}

impl Proxy {
    fn applied(&self) -> MutexGuard<'_, Option<Arc<ServiceTable>>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
