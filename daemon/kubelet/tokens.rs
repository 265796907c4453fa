//! Service account tokens: asked for through the door, kept in memory, renewed in time.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, PostParams};

use crate::act::{Error, Kubelet, lock, name, wait};
use crate::volumes::{self, TokenKey};

/// A token is renewed when this much of its life is over, in hundredths, and after a day at the latest, as documented.
const RENEWAL_PERCENT: i64 = 80;
const RENEWAL_LATEST: SignedDuration = SignedDuration::from_hours(24);

/// A token and when to ask for the next.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    text: String,
    renew: Timestamp,
}

/// The tokens of all pods, by the pod's uid.
pub(crate) type Tokens = BTreeMap<String, BTreeMap<TokenKey, Token>>;

impl Kubelet {
    /// The tokens that a pod's volumes want: when each is to be renewed, or none for those that are not here.
    pub(crate) fn token_renewals(&self, pod: &Pod, uid: &str) -> BTreeMap<TokenKey, Option<Timestamp>> {
        let tokens = lock(&self.tokens);
        let have = tokens.get(uid);
        let renewal = |key: &TokenKey| have.and_then(|have| have.get(key)).map(|token| token.renew);
        volumes::tokens(pod).into_iter().map(|key| (key.clone(), renewal(&key))).collect()
    }

    pub(crate) fn token_texts(&self, uid: &str) -> BTreeMap<TokenKey, String> {
        let tokens = lock(&self.tokens);
        let have = tokens.get(uid).into_iter().flatten();
        have.map(|(key, token)| (key.clone(), token.text.clone())).collect()
    }

    pub(crate) async fn fetch_token(&self, uid: &str, key: TokenKey) -> Result<(), Error> {
        let pod = self.must(uid)?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let account = account.filter(|account| !account.is_empty()).unwrap_or_else(|| "default".to_owned());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(key.audience.clone()).filter(|one| !one.is_empty()).map(|one| vec![one]),
                expiration_seconds: Some(key.seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: Some(uid.to_owned()),
                }),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.parts.caches.client(), namespace);
        let now = self.parts.clock.now();
        let answer = api.create_token_request(&account, &PostParams::default(), &request).await;
        let answer = answer.map_err(|source| {
            let again = now + wait(0, 1);
            let why = format!("fetch a token of service account {account}: {source}");
            self.book.write(uid, |notes| notes.token_problem = Some((why, again)));
            Error::Api { attempt: "fetch a service account token for", pod: name(&pod), source }
        })?;
        let status = answer.status.unwrap_or_default();
        let expires = status.expiration_timestamp.map_or(now, |time| time.0);
        let life = expires.duration_since(now);
        let part = SignedDuration::from_secs(life.as_secs() * RENEWAL_PERCENT / 100);
        let renew = now + part.min(RENEWAL_LATEST).max(SignedDuration::from_secs(1));
        let token = Token { text: status.token.unwrap_or_default(), renew };
        lock(&self.tokens).entry(uid.to_owned()).or_default().insert(key, token);
        self.book.write(uid, |notes| notes.token_problem = None);
        self.queue.wake(uid.to_owned());
        Ok(())
    }
}
