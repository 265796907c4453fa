//! ServiceAccount and root CA: every namespace has the account `default` and the ConfigMap `kube-root-ca.crt`, by which
//! a pod knows the API server.
//!
//! Invariant: a namespace that is on its way out gets nothing new.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{Cache, Key};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use reconcile::{Plan, Reconciler};
use serde_json::json;

use crate::Error;
use crate::step::{self, Door, Place, Step};

/// The account that a pod has when it names none.
const ACCOUNT: &str = "default";
/// The ConfigMap with the certificate.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) namespace: Option<Arc<Namespace>>,
    /// Whether the account is there.
    pub(crate) account: bool,
    /// The ConfigMap, if it is there.
    pub(crate) root_ca: Option<ConfigMap>,
    /// The certificate as PEM.
    pub(crate) certificate: Arc<str>,
}

/// Gives namespaces what every namespace has.
pub(crate) struct Accounts {
    client: Door,
    namespaces: Cache<Namespace>,
    accounts: Cache<PartialObjectMeta<DynamicObject>>,
    certificate: Arc<str>,
}

impl Accounts {
    /// Over these caches.
    pub(crate) fn new(
        client: Door,
        namespaces: Cache<Namespace>,
        accounts: Cache<PartialObjectMeta<DynamicObject>>,
        certificate: Arc<str>,
    ) -> Accounts {
        Accounts { client, namespaces, accounts, certificate }
    }
}

impl Reconciler for Accounts {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "serviceaccount";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(View::default()) };
        // The content of ConfigMaps is not held in memory for the sake of this one.
        let beside = ObjectMeta { namespace: Some(key.name.clone()), ..ObjectMeta::default() };
        let at = Place::named::<ConfigMap>(&beside, ROOT_CA.to_owned());
        let request = Request::get(at.path()).body(Vec::new()).expect("a path made of names");
        let root_ca = match self.client.request::<ConfigMap>(request).await {
            Ok(live) => Some(live),
            Err(error) if client::is_not_found(&error) => None,
            Err(source) => return Err(Error::Read { what: at.to_string(), source: Box::new(source) }),
        };
        let account = self.accounts.get(&Key::new(key.name.clone(), ACCOUNT)).is_some();
        let certificate = Arc::clone(&self.certificate);
        Ok(View { namespace: Some(namespace), account, root_ca, certificate })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &Key, step: Step) -> Result<(), Error> {
        step::act(&self.client, step, &|_| ()).await
    }
}

/// Makes what is missing, and puts right what says something else.
pub(crate) fn plan(view: &View, _: Timestamp) -> Plan<Step> {
    let alive = |namespace: &&Arc<Namespace>| namespace.metadata.deletion_timestamp.is_none();
    let Some(namespace) = view.namespace.as_ref().filter(alive) else { return Plan::empty() };
    let meta = |name: &str| ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.metadata.name.clone(),
        ..ObjectMeta::default()
    };
    let mut steps = Vec::new();
    if !view.account {
        let account = ServiceAccount { metadata: meta(ACCOUNT), ..ServiceAccount::default() };
        steps.push(Step::create(&account, None));
    }
    let data = BTreeMap::from([("ca.crt".to_owned(), view.certificate.to_string())]);
    let annotations = BTreeMap::from([("kubernetes.io/description".to_owned(), DESCRIPTION.to_owned())]);
    match &view.root_ca {
        None => {
            let metadata = ObjectMeta { annotations: Some(annotations), ..meta(ROOT_CA) };
            let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            steps.push(Step::create(&map, None));
        }
        Some(live) if live.data.as_ref() != Some(&data) || live.binary_data.is_some() => {
            let keys = live.data.iter().flat_map(|data| data.keys()).filter(|key| *key != "ca.crt");
            let mut wanted: serde_json::Map<_, _> = keys.map(|key| (key.clone(), json!(null))).collect();
            wanted.insert("ca.crt".to_owned(), json!(view.certificate));
            steps.push(Step::patch(live, json!({"data": wanted, "binaryData": null})));
        }
        Some(_) => {}
    }
    Plan::together(steps)
}
