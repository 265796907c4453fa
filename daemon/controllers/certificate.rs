//! CertificateSigningRequest: approves the kubelets' own, signs what was approved, and forgets what is old.
//!
//! Invariant: nothing is signed that nobody approved, nor after somebody denied it.
//! Invariant: only a kubelet's client certificate is approved, for those whom RBAC lets ask for one without a person.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client::{Cache, Key};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use reconcile::{Plan, Reconciler};
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

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
/// How long until it is asked again whether a kubelet may have its certificate.
const ASKED_AGAIN: Duration = Duration::from_secs(60);

/// One effect.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// On the cluster.
    Cluster(Box<Step>),
    /// Approves, if the one who asks may have this.
    Approve(Arc<CertificateSigningRequest>, &'static str, Timestamp),
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

impl Certificates {
    /// Whether the one who asks may have a certificate of this kind without a person's approval.
    async fn may(&self, request: &CertificateSigningRequest, kind: &str) -> Result<bool, kube::Error> {
        let spec = &request.spec;
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
                "resourceAttributes": {
                    "group": "certificates.k8s.io", "resource": "certificatesigningrequests",
                    "verb": "create", "subresource": kind, "version": "*",
                },
            },
        });
        let asked = Request::post("/apis/authorization.k8s.io/v1/subjectaccessreviews")
            .header("content-type", "application/json")
            .body(review.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        let answer: Value = self.client.request(asked).await?;
        Ok(answer["status"]["allowed"] == json!(true))
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
            Act::Approve(request, kind, now) => {
                let what = format!("permissions of {}", request.spec.username.as_deref().unwrap_or_default());
                match self.may(&request, kind).await {
                    Ok(true) => approved(&request, kind, now),
                    Ok(false) => return Ok(()),
                    Err(source) => return Err(Error::Read { what, source: Box::new(source) }),
                }
            }
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
    if refused.is_none()
        && approved.is_none()
        && let Some(kind) = kubelets_own(request)
    {
        // Nothing tells of a binding that comes later; such a request is a rare guest and gone after a day.
        let again = due.min(now + ASKED_AGAIN);
        return Plan::in_turn(vec![Act::Approve(Arc::clone(request), kind, now)]).again_at(again);
    }
    Plan::in_turn(acts).again_at(due)
}

/// What kind of request of a kubelet for its own client certificate it is: `nodeclient` asks for any node's,
/// `selfnodeclient` is a node that renews its own.
fn kubelets_own(request: &CertificateSigningRequest) -> Option<&'static str> {
    let spec = &request.spec;
    let usages: BTreeSet<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    let needed = BTreeSet::from(["client auth", "digital signature"]);
    let allowed = BTreeSet::from(["client auth", "digital signature", "key encipherment"]);
    if spec.signer_name != OURS[1] || !(usages == needed || usages == allowed) {
        return None;
    }
    let (_, pem) = parse_x509_pem(&spec.request.0).ok()?;
    let (_, asked) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let subject = &asked.certification_request_info.subject;
    let organizations: Vec<&str> = subject.iter_organization().filter_map(|one| one.as_str().ok()).collect();
    let named = subject.iter_common_name().next()?.as_str().ok()?;
    let has_other_names = asked
        .requested_extensions()
        .into_iter()
        .flatten()
        .any(|extension| matches!(extension, ParsedExtension::SubjectAlternativeName(_)));
    if organizations != ["system:nodes"] || !named.starts_with("system:node:") || has_other_names {
        return None;
    }
    Some(if spec.username.as_deref() == Some(named) { "selfnodeclient" } else { "nodeclient" })
}

fn approved(request: &CertificateSigningRequest, kind: &str, now: Timestamp) -> Step {
    let message = match kind {
        "selfnodeclient" => "Auto approving self kubelet client certificate after SubjectAccessReview.",
        _ => "Auto approving kubelet client certificate after SubjectAccessReview.",
    };
    let known = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut conditions: Vec<_> = known.map(|known| json!(known)).collect();
    conditions.push(json!({
        "type": "Approved", "status": "True", "reason": "AutoApproved", "message": message,
        "lastUpdateTime": seconds(now), "lastTransitionTime": seconds(now),
    }));
    let meta = &request.metadata;
    let patch = json!({
        "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
        "status": {"conditions": conditions},
    });
    Step::Patch { at: Place::of(request), part: Part::Approval, patch, note: None }
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
