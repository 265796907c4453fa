//! CertificateSigningRequest: signs what was approved, and forgets what is old.
//!
//! Invariant: nothing is signed that nobody approved, nor after somebody denied it.

use std::sync::Arc;
use std::time::Duration;

use client::{Cache, Key};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use reconcile::{Plan, Reconciler};
use serde_json::json;

use crate::Error;
use crate::cluster::{Signer, Signing};
use crate::step::{self, Door, Part, Place, Step, seconds};

const OURS: [&str; 3] = [
    "kubernetes.io/kube-apiserver-client",
    "kubernetes.io/kube-apiserver-client-kubelet",
    "kubernetes.io/kubelet-serving",
];
/// A certificate that does not say how long it is to live, and the longest there is: a year.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
const SHORTEST: i32 = 600;
/// How long a request stays that was answered, and one that was not, as documented.
const ANSWERED: Duration = Duration::from_secs(3600);
const WAITING: Duration = Duration::from_secs(24 * 3600);

/// One effect.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// On the cluster.
    Cluster(Box<Step>),
    /// Signs, and writes the certificate or why not.
    Sign(Arc<CertificateSigningRequest>, Signing),
}

/// Signs requests.
pub(crate) struct Certificates {
    client: Door,
    requests: Cache<CertificateSigningRequest>,
    signer: Signer,
}

impl Certificates {
    /// Over this cache.
    pub(crate) fn new(
        client: Door,
        requests: Cache<CertificateSigningRequest>,
        signer: Signer,
    ) -> Certificates {
        Certificates { client, requests, signer }
    }
}

impl Reconciler for Certificates {
    type Key = Key;
    type View = Option<Arc<CertificateSigningRequest>>;
    type Step = Act;
    type Error = Error;
    const NAME: &'static str = "certificatesigningrequest";

    async fn observe(&self, key: &Key) -> Result<Option<Arc<CertificateSigningRequest>>, Error> {
        Ok(self.requests.get(key))
    }

    fn plan(view: &Option<Arc<CertificateSigningRequest>>, now: Timestamp) -> Plan<Act> {
        plan(view.as_ref(), now)
    }

    async fn act(&self, _: &Key, act: Act) -> Result<(), Error> {
        let step = match act {
            Act::Cluster(step) => *step,
            Act::Sign(request, signing) => match (self.signer)(&signing) {
                Ok(certificate) => {
                    let certificate = ByteString(certificate.into_bytes());
                    status(&request, json!({"certificate": certificate}))
                }
                Err(why) => failed(&request, &why, signing.now),
            },
        };
        step::act(&self.client, step, &|_| ()).await
    }
}

/// Signs what was approved; forgets what was answered an hour ago, or waits for a day.
pub(crate) fn plan(request: Option<&Arc<CertificateSigningRequest>>, now: Timestamp) -> Plan<Act> {
    let Some(request) = request else { return Plan::empty() };
    let known = request.status.as_ref();
    let conditions = || known.into_iter().flat_map(|status| status.conditions.iter().flatten());
    let since = |kind: &str| {
        let one = conditions().find(|known| known.type_ == kind)?;
        one.last_update_time.as_ref().map(|time| time.0).or(Some(now))
    };
    let made = request.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let issued = known.and_then(|status| status.certificate.as_ref()).is_some_and(|one| !one.0.is_empty());
    let refused = since("Denied").or_else(|| since("Failed"));
    let approved = since("Approved");
    let due = match (refused, approved) {
        (Some(since), _) => since + ANSWERED,
        (None, Some(since)) if issued => since + ANSWERED,
        _ => made + WAITING,
    };
    if due <= now {
        return Plan::in_turn(vec![Act::Cluster(Box::new(Step::delete(&**request, None)))]);
    }
    let mut acts = Vec::new();
    if refused.is_none() && approved.is_some() && !issued && OURS.contains(&request.spec.signer_name.as_str())
    {
        acts.push(Act::Sign(Arc::clone(request), signing(request, now)));
    }
    Plan::in_turn(acts).again_at(due)
}

fn signing(request: &CertificateSigningRequest, now: Timestamp) -> Signing {
    let spec = &request.spec;
    let asked = spec.expiration_seconds.map(|seconds| seconds.max(SHORTEST));
    let asked = asked.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    Signing {
        request: String::from_utf8_lossy(&spec.request.0).into_owned(),
        signer: spec.signer_name.clone(),
        usages: spec.usages.clone().unwrap_or_default(),
        now,
        until: now + asked.unwrap_or(LONGEST).min(LONGEST),
    }
}

fn failed(request: &CertificateSigningRequest, why: &str, now: Timestamp) -> Step {
    let known = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut conditions: Vec<_> = known.map(|known| json!(known)).collect();
    conditions.push(json!({
        "type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": why,
        "lastUpdateTime": seconds(now), "lastTransitionTime": seconds(now),
    }));
    status(request, json!({"conditions": conditions}))
}

fn status(request: &CertificateSigningRequest, status: serde_json::Value) -> Step {
    let meta = &request.metadata;
    let patch = json!({
        "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version}, "status": status,
    });
    Step::Patch { at: Place::of(request), part: Part::Status, patch, note: None }
}
