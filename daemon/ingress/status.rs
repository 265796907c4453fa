//! Tells each Ingress where it is served, or why not.
//!
//! Invariant: only Ingresses that this room serves are written; those of others keep what others wrote.

use crate::Error;
use crate::routes::serves;
use client::{Cache, Key, Recorder, Weight};
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{
    Ingress, IngressClass, IngressLoadBalancerIngress, IngressPortStatus,
};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use reconcile::{Plan, Reconciler};
use serde_json::json;
use std::net::IpAddr;
use std::sync::Arc;

/// What stands in the status of an Ingress that asks for TLS.
const NO_TLS: &str = "holdfast.dev/TLSNotServed";

/// Where Ingresses are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
}

/// Keeps the status of Ingresses.
pub(crate) struct Statuses {
    pub(crate) client: Client,
    pub(crate) ingresses: Cache<Ingress>,
    pub(crate) classes: Cache<IngressClass>,
    /// `None`: nothing is served.
    pub(crate) place: Option<Place>,
    pub(crate) recorder: Recorder,
}

/// What there is. Nothing to do for an Ingress that is gone or another's.
pub(crate) struct View {
    ours: Option<Arc<Ingress>>,
    place: Option<Place>,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    Write(Vec<IngressLoadBalancerIngress>),
    Warn { reason: &'static str, message: &'static str },
}

impl Reconciler for Statuses {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "ingress-status";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let classes: Vec<Arc<IngressClass>> = self.classes.snapshot().values().cloned().collect();
        let ours = self.ingresses.get(key).filter(|ingress| serves(ingress, &classes));
        Ok(View { ours, place: self.place })
    }

    fn plan(view: &View, _: Timestamp) -> Plan<Step> {
        plan(view)
    }

    async fn act(&self, key: &Key, step: Step) -> Result<(), Error> {
        match step {
            Step::Write(ingress) => {
                let api: Api<Ingress> = Api::namespaced(self.client.clone(), &key.namespace);
                let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
                match api.patch_status(&key.name, &PatchParams::default(), &patch).await {
                    Err(error) if client::is_not_found(&error) => Ok(()),
                    Err(source) => Err(Error::Status { key: key.clone(), source: Box::new(source) }),
                    Ok(_) => Ok(()),
                }
            }
            Step::Warn { reason, message } => {
                if let Some(ingress) = self.ingresses.get(key) {
                    self.recorder.tell(&*ingress, Weight::Warning, reason, message);
                }
                Ok(())
            }
        }
    }
}

fn plan(view: &View) -> Plan<Step> {
    let Some(ingress) = view.ours.as_ref().filter(|it| it.metadata.deletion_timestamp.is_none()) else {
        return Plan::empty();
    };
    let Some(place) = view.place else {
        let message = "Ingresses are not served on this node: set [ingress] listen in config.toml";
        return Plan::in_turn(vec![Step::Warn { reason: "NotServed", message }]);
    };
    let tls = ingress.spec.as_ref().and_then(|spec| spec.tls.as_ref()).is_some_and(|tls| !tls.is_empty());
    let wanted = wanted(place, tls);
    let status = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    if status.and_then(|balancer| balancer.ingress.as_ref()) == Some(&wanted) {
        return Plan::empty();
    }
    let mut steps = vec![Step::Write(wanted)];
    if tls {
        let message = "spec.tls is not served yet: its hosts are answered by plain HTTP only";
        steps.push(Step::Warn { reason: "TLSNotServed", message });
    }
    Plan::in_turn(steps)
}

fn wanted(place: Place, tls: bool) -> Vec<IngressLoadBalancerIngress> {
    let port = |port: i32, error: Option<&str>| IngressPortStatus {
        port,
        protocol: "TCP".to_owned(),
        error: error.map(str::to_owned),
    };
    let mut ports = vec![port(place.port.into(), None)];
    ports.extend(tls.then(|| port(443, Some(NO_TLS))));
    vec![IngressLoadBalancerIngress { ip: Some(place.ip.to_string()), ports: Some(ports), hostname: None }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const PLACE: Place = Place { ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), port: 80 };

    fn view(spec: serde_json::Value, status: serde_json::Value, place: Option<Place>) -> View {
        let object =
            json!({"metadata": {"namespace": "default", "name": "site"}, "spec": spec, "status": status});
        View { ours: Some(Arc::new(serde_json::from_value(object).expect("an Ingress"))), place }
    }

    #[test]
    fn an_ingress_that_is_served_says_where_and_once() {
        let first = plan(&view(json!({}), json!({}), Some(PLACE)));
        assert_eq!(first.steps, [Step::Write(wanted(PLACE, false))]);
        let stated = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ports": [{"port": 80, "protocol": "TCP"}]}]}});
        assert!(plan(&view(json!({}), stated, Some(PLACE))).is_empty());
    }

    #[test]
    fn tls_that_is_not_served_is_said() {
        let steps = plan(&view(json!({"tls": [{"secretName": "cert"}]}), json!({}), Some(PLACE))).steps;
        let [Step::Write(status), Step::Warn { reason, .. }] = steps.as_slice() else { panic!("{steps:?}") };
        assert_eq!(*reason, "TLSNotServed");
        let ports = status[0].ports.as_ref().expect("ports");
        assert_eq!(ports[1].error.as_deref(), Some(NO_TLS));
    }

    #[test]
    fn where_nothing_is_served_no_address_is_stated() {
        let steps = plan(&view(json!({}), json!({}), None)).steps;
        assert!(matches!(steps.as_slice(), [Step::Warn { reason: "NotServed", .. }]), "{steps:?}");
        assert!(plan(&View { ours: None, place: Some(PLACE) }).is_empty());
    }
}
