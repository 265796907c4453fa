//! Fetches images, with the pod's own credentials, and notes how it went.

use std::sync::Arc;

use client::{Key, Weight};
use images::{Credentials, Reference};
use k8s_openapi::api::core::v1::Secret;
use tracing::info;

use crate::act::{Kubelet, wait};
use crate::book::Pull;
use crate::container_status;

impl Kubelet {
    /// Starts fetching an image; its end wakes every pod that waits for it.
    pub(crate) fn pull(self: &Arc<Self>, uid: &str, image: &str, why: &str) {
        let tries = match self.book.notes(uid).pulls.get(image) {
            Some(Pull::Failed { tries, .. }) => *tries,
            _ => 0,
        };
        self.book.write(uid, |notes| drop(notes.pulls.insert(image.to_owned(), Pull::Running)));
        let (kubelet, uid, image) = (Arc::clone(self), uid.to_owned(), image.to_owned());
        let reference = match image.parse::<Reference>() {
            Ok(reference) => reference,
            Err(_) => return self.unnameable(&uid, &image, tries),
        };
        info!(image, why, "pulling image");
        if let Some(pod) = self.pod(&uid) {
            self.events.tell(&*pod, Weight::Normal, "Pulling", &format!("Pulling image {image:?}"));
        }
        tokio::spawn(async move {
            let begun = kubelet.parts.clock.now();
            let pulled = match kubelet.credentials(&uid, &reference) {
                Ok(auth) => kubelet.parts.images.pull(&reference, auth).await,
                Err(error) => Err(error),
            };
            let took = kubelet.parts.clock.now().duration_since(begun);
            let outcome = pulled.map(|pulled| {
                let took = took.as_millis();
                format!(
                    "Successfully pulled image {image:?} in {took}ms ({took}ms including waiting). Image size: {} bytes.",
                    pulled.size
                )
            });
            let outcome = outcome.map_err(|error| reconcile::chain(&error));
            let here = kubelet.image(&image).is_some();
            kubelet.pulled(&uid, &image, outcome, tries, here);
        });
    }

    /// A name that cannot be one is told, and looked at again only with the pod.
    fn unnameable(&self, uid: &str, image: &str, tries: u32) {
        let message = container_status::invalid_name(image);
        if let Some(pod) = self.pod(uid) {
            self.events.tell(&*pod, Weight::Warning, "InspectFailed", &message);
            self.events.tell(&*pod, Weight::Warning, "Failed", "Error: InvalidImageName");
        }
        let again = self.parts.clock.now() + wait(tries, self.parts.config.crash_backoff_seconds);
        let failed = Pull::Failed { message, tries: tries + 1, again };
        self.book.write(uid, |notes| drop(notes.pulls.insert(image.to_owned(), failed)));
        self.queue.wake(uid.to_owned());
    }

    /// Of the pod's imagePullSecrets, the first that knows the image's registry. A Secret that is missing is passed over,
    /// as documented.
    pub(crate) fn credentials(
        &self,
        uid: &str,
        reference: &Reference,
    ) -> Result<Option<Credentials>, images::Error> {
        let Some(pod) = self.pod(uid) else { return Ok(None) };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for named in pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten()) {
            let Some(json) =
                self.secrets.get(&Key::new(namespace, &named.name)).and_then(|secret| keys(&secret))
            else {
                continue;
            };
            let origin = format!("imagePullSecret {namespace}/{}", named.name);
            if let Some(found) = Credentials::from_docker_config(&json, reference, &origin)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    pub(crate) fn pulled(
        &self,
        uid: &str,
        image: &str,
        outcome: Result<String, String>,
        tries: u32,
        here: bool,
    ) {
        let pod = self.pod(uid);
        match outcome {
            Ok(message) => {
                self.book.write(uid, |notes| drop(notes.pulls.insert(image.to_owned(), Pull::Running)));
                if let Some(pod) = pod {
                    self.events.tell(&*pod, Weight::Normal, "Pulled", &message);
                }
            }
            Err(message) => {
                // With pull policy Always an image that this machine holds is good enough when its registry is away.
                info!(image, message, here, "image could not be pulled");
                let again = (self.parts.clock).now() + wait(tries, self.parts.config.crash_backoff_seconds);
                let failed = Pull::Failed { message: message.clone(), tries: tries + 1, again };
                self.book.write(uid, |notes| drop(notes.pulls.insert(image.to_owned(), failed)));
                if let Some(pod) = pod {
                    let told = format!("Failed to pull image {image:?}: {message}");
                    self.events.tell(&*pod, Weight::Warning, "Failed", &told);
                    self.events.tell(&*pod, Weight::Warning, "Failed", "Error: ErrImagePull");
                }
            }
        }
        self.queue.wake(uid.to_owned());
    }
}

/// A Secret's docker config.json; the older `.dockercfg` is its inner part.
fn keys(secret: &Secret) -> Option<Vec<u8>> {
    let data = secret.data.as_ref()?;
    let inner = || data.get(".dockercfg").map(|inner| [&b"{\"auths\":"[..], &inner.0, b"}"].concat());
    data.get(".dockerconfigjson").map(|json| json.0.clone()).or_else(inner)
}
