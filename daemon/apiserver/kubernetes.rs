//! The Service `kubernetes`: how pods reach this server at `KUBERNETES_SERVICE_HOST`.
//!
//! Invariant: its address is the first of the range, which no other Service gets; it leads to where this server listens now.

use std::net::{Ipv4Addr, SocketAddrV4};

use api::error::ApiError;
use api::kinds::{self, Kind};
use serde_json::{Value, json};

use crate::{Inner, object, write};

const NAME: &str = "kubernetes";
const NAMESPACE: &str = "default";

/// Makes the Service and its endpoints, or brings them up to date. Twice is once.
pub(crate) async fn ensure(inner: &Inner, listens: SocketAddrV4) -> Result<(), ApiError> {
    let first = inner.allocator.first_address();
    put(inner, kinds::by_kind("v1", "Service"), service(first, listens.port())).await?;
    put(inner, kinds::by_kind("discovery.k8s.io/v1", "EndpointSlice"), slice(listens)).await?;
    put(inner, kinds::by_kind("v1", "Endpoints"), endpoints(listens)).await
}

async fn put(inner: &Inner, kind: Option<&'static Kind>, wanted: Value) -> Result<(), ApiError> {
    let Some(kind) = kind else { return Ok(()) };
    let snapshot = inner.store.snapshot();
    let Some(entry) = snapshot.get(&object::key(kind, NAMESPACE, NAME)) else {
        return write::own(inner, kind, NAMESPACE, None, wanted).await;
    };
    let mut live = object::parse(&entry.value);
    for (field, value) in wanted.as_object().into_iter().flatten() {
        if field != "metadata" {
            live[field] = value.clone();
        }
    }
    // A write that changes nothing is not made.
    write::own(inner, kind, NAMESPACE, Some(NAME), live).await
}

fn metadata(labels: Value) -> Value {
    json!({ "name": NAME, "namespace": NAMESPACE, "labels": labels })
}

fn service(address: Ipv4Addr, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": metadata(json!({ "component": "apiserver", "provider": "kubernetes" })),
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "sessionAffinity": "None",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": port }],
        },
    })
}

fn slice(listens: SocketAddrV4) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": metadata(json!({ "kubernetes.io/service-name": NAME })),
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [listens.ip()], "conditions": { "ready": true } }],
        "ports": [{ "name": "https", "port": listens.port(), "protocol": "TCP" }],
    })
}

fn endpoints(listens: SocketAddrV4) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": metadata(json!({ "endpointslice.kubernetes.io/skip-mirror": "true" })),
        "subsets": [{
            "addresses": [{ "ip": listens.ip() }],
            "ports": [{ "name": "https", "port": listens.port(), "protocol": "TCP" }],
        }],
    })
}
