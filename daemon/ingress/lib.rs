//! Serves Ingresses: HTTP from one address of this machine to the endpoints behind the Services that rules name.
//!
//! Invariant: what is served is one table, built pure from the objects and swapped as a whole.
//! Invariant: an Ingress states an address only while this room listens on it.

mod proxy;
mod routes;
mod serve;
mod status;

use client::{Cache, Caches, Clock, Key, Recorder, key_of};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use reconcile::{Backoff, Plan, Queue, Reconciler, Tasks, Work};
use routes::Routes;
use serde::{Deserialize, Serialize};
use status::{Place, Statuses};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// `[ingress]` of config.toml.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where HTTP for Ingresses is answered.
    pub listen: Listen,
}

/// An address and port, or `off`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    /// Ingresses are not served; each is told so.
    #[default]
    Off,
    /// They are served here.
    At(SocketAddr),
}

/// A text that is neither `off` nor an address and port.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is neither \"off\" nor an address and port such as 0.0.0.0:80")]
pub struct NotAListen {
    text: String,
}

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port could not be had.
    #[error("listen for Ingresses on {address}: set another [ingress] listen in config.toml, or \"off\"")]
    Listen {
        /// The address and port.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The cluster did not take a status.
    #[error("update the status of Ingress {key}")]
    Status {
        /// Whose.
        key: Key,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Starts serving Ingresses, where that is configured, and telling them so. `node` is this machine's address, stated
/// where `listen` is for all addresses. Stopped by stopping the tasks.
pub async fn start(
    caches: &Caches,
    tasks: &Tasks,
    clock: Clock,
    config: &Config,
    node: IpAddr,
) -> Result<(), Error> {
    let place = match config.listen {
        Listen::Off => None,
        Listen::At(address) => Some(listen(caches, tasks, clock, address, node).await?),
    };
    let (ingresses, classes) = (caches.of::<Ingress>(), caches.of::<IngressClass>());
    let queue = Queue::new();
    let wakes = queue.clone();
    ingresses.listen(move |ingress| wakes.wake(key_of(&**ingress)));
    let (wakes, all) = (queue.clone(), ingresses.clone());
    classes.listen(move |_| all.snapshot().keys().for_each(|key| wakes.wake(key.clone())));
    let recorder = Recorder::new(caches.client(), "ingress", clock, tasks.token());
    let statuses = Statuses {
        client: caches.client(),
        ingresses: ingresses.clone(),
        classes: classes.clone(),
        place,
        recorder,
    };
    let synced = async move {
        tokio::join!(ingresses.synced(), classes.synced());
    };
    spawn(tasks, clock, queue, statuses, synced);
    Ok(())
}

impl TryFrom<String> for Listen {
    type Error = NotAListen;

    fn try_from(text: String) -> Result<Listen, NotAListen> {
        text.parse()
    }
}

impl FromStr for Listen {
    type Err = NotAListen;

    fn from_str(text: &str) -> Result<Listen, NotAListen> {
        if text == "off" {
            return Ok(Listen::Off);
        }
        text.parse().map(Listen::At).map_err(|_| NotAListen { text: text.to_owned() })
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> String {
        match listen {
            Listen::Off => "off".to_owned(),
            Listen::At(address) => address.to_string(),
        }
    }
}

/// Takes the port, starts answering on it and keeping its table.
async fn listen(
    caches: &Caches,
    tasks: &Tasks,
    clock: Clock,
    address: SocketAddr,
    node: IpAddr,
) -> Result<Place, Error> {
    let refused = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    let table = watch::Sender::new(None);
    let tables = table.subscribe();
    tasks.spawn("ingress", |stop| serve::run(listener, tables, stop));

    let served = Served {
        ingresses: caches.of(),
        classes: caches.of(),
        services: caches.of(),
        slices: caches.of(),
        table,
    };
    let queue = served.wakes();
    let (ingresses, classes) = (served.ingresses.clone(), served.classes.clone());
    let (services, slices) = (served.services.clone(), served.slices.clone());
    let first = queue.clone();
    let synced = async move {
        tokio::join!(ingresses.synced(), classes.synced(), services.synced(), slices.synced());
        first.wake(Cluster);
    };
    spawn(tasks, clock, queue, served, synced);
    let ip = if bound.ip().is_unspecified() { node } else { bound.ip() };
    Ok(Place { ip, port: bound.port() })
}

fn spawn<R: Reconciler>(
    tasks: &Tasks,
    clock: Clock,
    queue: Queue<R::Key>,
    reconciler: R,
    synced: impl Future<Output = ()> + Send + 'static,
) {
    let work = Work {
        reconciler: Arc::new(reconciler),
        queue,
        now: clock.teller(),
        at_once: 8,
        backoff: Backoff::default(),
    };
    tasks.spawn(R::NAME, |stop| async move {
        tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => return,
            // Cancel-safe: only waits for a state.
            () = synced => {}
        }
        work.run(stop).await;
    });
}

/// The one thing that is kept true for the server: its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cluster;

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cluster")
    }
}

struct Served {
    ingresses: Cache<Ingress>,
    classes: Cache<IngressClass>,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    table: watch::Sender<Option<Arc<Routes>>>,
}

struct View {
    wanted: Routes,
    present: Option<Arc<Routes>>,
}

#[derive(Debug)]
struct Swap(Routes);

impl Reconciler for Served {
    type Key = Cluster;
    type View = View;
    type Step = Swap;
    type Error = Infallible;
    const NAME: &'static str = "ingress-routes";

    async fn observe(&self, _: &Cluster) -> Result<View, Infallible> {
        let wanted = Routes::new(&routes::Objects {
            ingresses: self.ingresses.snapshot().values().cloned().collect(),
            classes: self.classes.snapshot().values().cloned().collect(),
            services: self.services.snapshot().values().cloned().collect(),
            slices: self.slices.snapshot().values().cloned().collect(),
        });
        Ok(View { wanted, present: self.table.borrow().clone() })
    }

    fn plan(view: &View, _: Timestamp) -> Plan<Swap> {
        if view.present.as_deref() == Some(&view.wanted) {
            return Plan::empty();
        }
        Plan::in_turn(vec![Swap(view.wanted.clone())])
    }

    async fn act(&self, _: &Cluster, Swap(routes): Swap) -> Result<(), Infallible> {
        self.table.send_replace(Some(Arc::new(routes)));
        Ok(())
    }
}

impl Served {
    /// A queue that all four kinds wake.
    fn wakes(&self) -> Queue<Cluster> {
        let queue = Queue::new();
        let wake = || {
            let queue = queue.clone();
            move || queue.wake(Cluster)
        };
        let (ingress, class, service, slice) = (wake(), wake(), wake(), wake());
        self.ingresses.listen(move |_| ingress());
        self.classes.listen(move |_| class());
        self.services.listen(move |_| service());
        self.slices.listen(move |_| slice());
        queue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_listen_is_read_and_written_alike() {
        for text in ["off", "0.0.0.0:80", "[::1]:8080"] {
            assert_eq!(text.parse::<Listen>().map(String::from), Ok(text.to_owned()));
        }
        let error = "80".parse::<Listen>().expect_err("no address");
        assert!(error.to_string().contains("\"80\" is neither"), "{error}");
    }
}
