//! What every network must do, the kernel's and the fake alike. Called from tests.

use crate::services::{Changes, Endpoint, Protocol, ServiceKey, ServiceTable};
use crate::{Error, Network};
use std::path::PathBuf;

/// Checks a network that was just opened and has no attachments; `netns` gives a fresh namespace at each call.
///
/// # Panics
/// With what the network does not do.
pub async fn check(network: &dyn Network, netns: &mut dyn FnMut() -> PathBuf) {
    attachments_are_kept_and_freed(network, netns).await;
    addresses_can_be_asked_for(network, netns).await;
    services_are_applied_by_difference(network).await;
}

async fn attachments_are_kept_and_freed(network: &dyn Network, netns: &mut dyn FnMut() -> PathBuf) {
    assert!(network.attachments().is_empty(), "a fresh network has no attachments");
    let addresses = network.addresses();
    let (first, second) = (netns(), netns());
    let a = network.attach("a", &first, None).await.expect("attach a");
    assert!(addresses.pod_cidr.contains(a.ip), "the address comes from the range");
    assert_ne!(a.ip, addresses.gateway, "the gateway's address is not handed out");
    let again = network.attach("a", &first, None).await.expect("attach a again");
    assert_eq!(a, again, "twice is once");
    let b = network.attach("b", &second, None).await.expect("attach b");
    assert_ne!(a.ip, b.ip, "no address is handed out twice");
    assert_eq!(network.attachments().into_keys().collect::<Vec<_>>(), ["a", "b"]);

    network.detach("a").await.expect("detach a");
    network.detach("a").await.expect("what is not there is success");
    assert_eq!(network.attachments().into_keys().collect::<Vec<_>>(), ["b"]);
    let c = network.attach("c", &netns(), None).await.expect("attach c");
    assert_ne!(c.ip, a.ip, "an address that was just freed rests");
    network.detach("b").await.expect("detach b");
    network.detach("c").await.expect("detach c");
    assert!(network.attachments().is_empty(), "detached is gone");
}

async fn addresses_can_be_asked_for(network: &dyn Network, netns: &mut dyn FnMut() -> PathBuf) {
    let addresses = network.addresses();
    let ip = addresses.pod_cidr.nth(9).expect("room");
    let d = network.attach("d", &netns(), Some(ip)).await.expect("attach with an address");
    assert_eq!(d.ip, ip);
    let taken = network.attach("e", &netns(), Some(ip)).await.expect_err("taken");
    assert!(matches!(taken, Error::Address { .. }), "{taken}");
    let outside = network.attach("e", &netns(), Some(addresses.dns)).await.expect_err("outside");
    assert!(matches!(outside, Error::Address { .. }), "{outside}");
    for id in [String::new(), "x".repeat(251)] {
        let refused = network.attach(&id, &netns(), None).await.expect_err("no id");
        assert!(matches!(refused, Error::Id { .. }), "{refused}");
    }
    network.detach("d").await.expect("detach d");
}

async fn services_are_applied_by_difference(network: &dyn Network) {
    let addresses = network.addresses();
    let ip = addresses.service_cidr.nth(20).expect("room");
    let endpoint = |n| Endpoint { ip: addresses.pod_cidr.nth(n).expect("room"), port: 8080 };
    let key = ServiceKey { ip, port: 80, protocol: Protocol::Tcp };
    let mut table = ServiceTable::default();
    table.services.insert(key, vec![endpoint(2), endpoint(3)]);
    table.node_ports.insert((30080, Protocol::Udp), vec![endpoint(2)]);
    let first = network.apply_services(&table).await.expect("apply");
    assert!(first.replaced, "the first table replaces whatever was there");
    assert_eq!(
        network.apply_services(&table).await.expect("apply again"),
        Changes::default(),
        "twice is once"
    );
    table.services.insert(key, vec![endpoint(3)]);
    let second = network.apply_services(&table).await.expect("apply a change");
    assert!(!second.replaced && second.elements > 0 && second.elements < first.elements + 4, "{second:?}");
    let none = network.apply_services(&ServiceTable::default()).await.expect("apply nothing");
    assert!(none.elements > 0, "{none:?}");
}
