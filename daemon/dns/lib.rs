//! Answers for the cluster's names on the cluster's DNS address, and passes other questions on.
//!
//! Invariant: what is answered is one table, built pure from Services and EndpointSlices and swapped as a whole.
//! Invariant: whatever arrives on a socket, the server goes on.

mod answer;
mod forward;
mod serve;
mod table;

use client::{Cache, Caches, Clock};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use network::cidr::Cidr;
use reconcile::{Backoff, Plan, Queue, Reconciler, Tasks, Work};
use serve::Server;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::sync::Arc;
use table::Table;
use tokio::sync::watch;

/// Where and for what the server answers.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address and port, both of UDP and of TCP.
    pub listen: SocketAddrV4,
    /// The cluster's domain, `cluster.local` unless there is a reason.
    pub domain: String,
    /// Addresses whose reverse names are answered here alone, known or not: pods' and services'.
    pub ranges: Vec<Cidr>,
    /// Where the resolvers for other names are listed: `/etc/resolv.conf` of this machine.
    pub resolv_conf: PathBuf,
}

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sockets could not be had.
    #[error("listen for DNS on {protocol} {address}: is another DNS server listening on all addresses?")]
    Listen {
        /// `udp` or `tcp`.
        protocol: &'static str,
        /// The address and port.
        address: SocketAddrV4,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Starts answering. Stopped by stopping the tasks. Until the cluster's objects were listed, its names are answered
/// with SERVFAIL, which makes clients ask again.
pub async fn start(caches: &Caches, tasks: &Tasks, clock: Clock, config: Config) -> Result<(), Error> {
    let server = Server::bind(config).await?;
    let names = server.names(caches.of(), caches.of());
    let queue = names.wakes();
    let (services, slices) = (names.services.clone(), names.slices.clone());
    let work = Work {
        reconciler: Arc::new(names),
        queue: queue.clone(),
        now: clock.teller(),
        at_once: 1,
        backoff: Backoff::default(),
    };
    tasks.spawn(Names::NAME, |stop| async move {
        let synced = async { tokio::join!(services.synced(), slices.synced()) };
        tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => return,
            // Cancel-safe: both only wait for a state.
            _ = synced => {}
        }
        queue.wake(Cluster);
        work.run(stop).await;
    });
    tasks.spawn("dns", |stop| server.run(stop));
    Ok(())
}

/// The one thing that is kept true here: the names of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cluster;

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cluster")
    }
}

/// Keeps the table equal to the objects.
struct Names {
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    config: Arc<Config>,
    table: watch::Sender<Option<Arc<Table>>>,
}

struct View {
    wanted: Table,
    present: Option<Arc<Table>>,
}

#[derive(Debug)]
struct Swap(Table);

impl Reconciler for Names {
    type Key = Cluster;
    type View = View;
    type Step = Swap;
    type Error = Infallible;
    const NAME: &'static str = "dns-names";

    async fn observe(&self, _: &Cluster) -> Result<View, Infallible> {
        let (services, slices) = (self.services.snapshot(), self.slices.snapshot());
        let wanted =
            Table::new(&self.config, services.values().map(|it| &**it), slices.values().map(|it| &**it));
        Ok(View { wanted, present: self.table.borrow().clone() })
    }

    fn plan(view: &View, _: Timestamp) -> Plan<Swap> {
        if view.present.as_deref() == Some(&view.wanted) {
            return Plan::empty();
        }
        Plan::in_turn(vec![Swap(view.wanted.clone())])
    }

    async fn act(&self, _: &Cluster, Swap(table): Swap) -> Result<(), Infallible> {
        self.table.send_replace(Some(Arc::new(table)));
        Ok(())
    }
}

impl Names {
    /// A queue that both kinds wake.
    fn wakes(&self) -> Queue<Cluster> {
        let queue = Queue::new();
        let wakes = queue.clone();
        self.services.listen(move |_| wakes.wake(Cluster));
        let wakes = queue.clone();
        self.slices.listen(move |_| wakes.wake(Cluster));
        queue
    }
}
