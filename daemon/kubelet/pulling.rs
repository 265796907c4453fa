//! Fetches images, with the pod's own credentials, and notes how it went.

use std::sync::Arc;

use client::{Key, Weight};
use images::{Credentials, Reference};
use tracing::info;

use crate::act::{Kubelet, wait};
use crate::book::Pull;

impl Kubelet {
    /// Starts fetching an image; its end wakes every pod that waits for it.
    pub(crate) fn pull(self: &Arc<Self>, uid: &str, image: &str, why: &str) {
        let tries = match self.book.notes(uid).pulls.get(image) {
            Some(Pull::Failed { tries, .. }) => *tries,
            _ => 0,
        };
        self.book.write(uid, |notes| drop(notes.pulls.insert(image.to_owned(), Pull::Running)));
        let (kubelet, uid, image) = (Arc::clone(self), uid.to_owned(), image.to_owned());
        info!(image, why, "pulling image");
        if let Some(pod) = self.pod(&uid) {
            self.events.tell(&*pod, Weight::Normal, "Pulling", &format!("Pulling image {image:?}"));
        }
        tokio::spawn(async move {
            let outcome = match image.parse::<Reference>() {
                Ok(reference) => match kubelet.credentials(&uid, &reference) {
                    Ok(auth) => kubelet.parts.images.pull(&reference, auth).await.map(|_| ()),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            let outcome = outcome.map_err(|error| reconcile::chain(&error));
            let here = kubelet.image(&image).is_some();
            kubelet.pulled(&uid, &image, outcome, tries, here);
        });
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
            let secret = self.secrets.get(&Key::new(namespace, &named.name));
            let Some(json) =
                secret.as_ref().and_then(|secret| secret.data.as_ref()?.get(".dockerconfigjson"))
            else {
                continue;
            };
            let origin = format!("imagePullSecret {namespace}/{}", named.name);
            if let Some(found) = Credentials::from_docker_config(&json.0, reference, &origin)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    pub(crate) fn pulled(&self, uid: &str, image: &str, outcome: Result<(), String>, tries: u32, here: bool) {
        let pod = self.pod(uid);
        match outcome {
            Ok(()) => {
                self.book.write(uid, |notes| drop(notes.pulls.insert(image.to_owned(), Pull::Running)));
                if let Some(pod) = pod {
                    self.events.tell(
                        &*pod,
                        Weight::Normal,
                        "Pulled",
                        &format!("Successfully pulled image {image:?}"),
                    );
                }
            }
            Err(message) => {
                // With pull policy Always an image that this machine holds is good enough when its registry is away.
                info!(image, message, here, "image could not be pulled");
                let again = (self.parts.clock).now() + wait(tries, self.parts.config.crash_backoff_seconds);
                let failed = Pull::Failed { message: message.clone(), tries: tries + 1, again };
                self.book.write(uid, |notes| drop(notes.pulls.insert(image.to_owned(), failed)));
                if let Some(pod) = pod {
                    self.events.tell(
                        &*pod,
                        Weight::Warning,
                        "Failed",
                        &format!("Failed to pull image {image:?}: {message}"),
                    );
                }
            }
        }
        self.queue.wake(uid.to_owned());
    }
}
