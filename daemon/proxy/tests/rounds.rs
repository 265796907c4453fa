//! The loop over a door that tells two Services, and a network in memory.

use bytes::Bytes;
use client::{Body, Caches, Clock};
use futures::{StreamExt, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use network::Network;
use network::fake::FakeNetwork;
use network::services::{Changes, ServiceTable};
use network::{Addresses, Attachment, Error};
use reconcile::Tasks;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A door whose watches tell these objects, say that this is all, and stay open.
fn door(services: Value, slices: Value) -> kube::Client {
    let answer = move |request: Request<kube::client::Body>| {
        let (kind, version, objects) = match request.uri().path() {
            "/api/v1/services" => ("Service", "v1", services.clone()),
            _ => ("EndpointSlice", "discovery.k8s.io/v1", slices.clone()),
        };
        let added = objects.as_array().cloned().unwrap_or_default().into_iter();
        let mut events: Vec<Value> = added.map(|object| json!({"type": "ADDED", "object": object})).collect();
        let all = json!({"annotations": {"k8s.io/initial-events-end": "true"}, "resourceVersion": "5"});
        events.push(
            json!({"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": version, "metadata": all}}),
        );
        let frames = events.into_iter().map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
        let body: Body = StreamBody::new(stream::iter(frames).chain(stream::pending())).boxed_unsync();
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    };
    client::door(tower::service_fn(answer))
}

/// A network whose first calls fail.
struct Faulty {
    inner: FakeNetwork,
    failures: AtomicU32,
    /// How many were applied.
    tables: watch::Sender<u32>,
}

#[async_trait::async_trait]
impl Network for Faulty {
    async fn attach(&self, id: &str, netns: &Path, want: Option<Ipv4Addr>) -> Result<Attachment, Error> {
        self.inner.attach(id, netns, want).await
    }

    async fn detach(&self, id: &str) -> Result<(), Error> {
        self.inner.detach(id).await
    }

    fn attachments(&self) -> BTreeMap<String, Attachment> {
        self.inner.attachments()
    }

    fn attachment(&self, id: &str) -> Option<network::Attachment> {
        self.inner.attachment(id)
    }

    async fn apply_services(&self, table: &ServiceTable) -> Result<Changes, Error> {
        if self.failures.fetch_sub(1, Ordering::SeqCst) > 1 {
            let source = std::io::Error::other("injected");
            return Err(Error::Rules { attempt: "apply".to_owned(), table: "t".to_owned(), source });
        }
        let changes = self.inner.apply_services(table).await?;
        self.tables.send_modify(|tables| *tables += 1);
        Ok(changes)
    }

    fn addresses(&self) -> Addresses {
        self.inner.addresses()
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_cluster_says_is_applied_also_after_failures() {
    let meta =
        |name: &str| json!({"namespace": "default", "name": name, "resourceVersion": "1", "uid": name});
    let mut slice_meta = meta("web-1");
    slice_meta["labels"] = json!({"kubernetes.io/service-name": "web"});
    let services = json!([{"apiVersion": "v1", "kind": "Service", "metadata": meta("web"),
        "spec": {"clusterIP": "10.2.0.5", "ports": [{"port": 80}]}}]);
    let slices = json!([{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": slice_meta,
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.1.0.2"]}]}]);

    let range = |text: &str| text.parse().expect("a range");
    let network = Arc::new(Faulty {
        inner: FakeNetwork::new(range("10.1.0.0/24"), range("10.2.0.0/24")),
        failures: AtomicU32::new(4),
        tables: watch::Sender::new(0),
    });
    let (tasks, stop) = (Tasks::new(), CancellationToken::new());
    let caches = Caches::new(door(services, slices), stop.clone());
    proxy::start(&caches, &tasks, Arc::clone(&network) as Arc<dyn Network>, Clock::Wall);

    let mut tables = network.tables.subscribe();
    let applied = tables.wait_for(|tables| *tables > 0);
    let waited = tokio::time::timeout(Duration::from_secs(60), applied).await;
    waited.expect("applied in time").expect("the network lives");
    let table = network.inner.applied().expect("a table was applied");
    let endpoints: Vec<String> =
        table.services.values().flatten().map(|it| format!("{}:{}", it.ip, it.port)).collect();
    assert_eq!(endpoints, ["10.1.0.2:8080"]);
    stop.cancel();
    assert!(tasks.stop(Duration::from_secs(1)).await.is_empty());
}
