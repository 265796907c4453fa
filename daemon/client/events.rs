//! Events about objects, as `kubectl describe` shows them.
//!
//! Invariant: an event never holds up the work it tells of: it is handed to a task, and dropped when that is far behind.
//! Invariant: the name is derived from what is told, so that the same thing told again counts up instead of piling up.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{Clock, is_already_exists};

/// How many events may wait to be written.
const WAITING: usize = 1000;

/// Whether an event is worth a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Things go as they should.
    Normal,
    /// Something is wrong.
    Warning,
}

/// Tells of what one component did. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    component: &'static str,
    clock: Clock,
    waiting: mpsc::Sender<Event>,
}

impl Recorder {
    /// A recorder and the task that writes what it tells, until the token is cancelled.
    pub fn new(client: Client, component: &'static str, clock: Clock, stop: CancellationToken) -> Recorder {
        let (waiting, told) = mpsc::channel(WAITING);
        tokio::spawn(write_all(client, clock, told, stop));
        Recorder { component, clock, waiting }
    }

    /// Tells of something about a typed object.
    pub fn tell<K>(&self, about: &K, weight: Weight, reason: &str, message: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        self.tell_of(about.object_ref(&()), weight, reason, message);
    }

    /// Tells of something about any object.
    pub fn tell_of(&self, about: ObjectReference, weight: Weight, reason: &str, message: &str) {
        let mut hasher = DefaultHasher::new();
        (self.component, &about.uid, &about.field_path, reason, message).hash(&mut hasher);
        let now = Time(self.clock.now());
        let namespace = about
            .namespace
            .clone()
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or_else(|| "default".to_owned());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:016x}", about.name.as_deref().unwrap_or_default(), hasher.finish())),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            type_: Some(match weight {
                Weight::Normal => "Normal".to_owned(),
                Weight::Warning => "Warning".to_owned(),
            }),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            involved_object: about,
            source: Some(EventSource { component: Some(self.component.to_owned()), host: None }),
            reporting_component: Some(self.component.to_owned()),
            reporting_instance: Some(String::new()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        };
        if self.waiting.try_send(event).is_err() {
            debug!(reason, message, "an event was dropped: too many wait to be written");
        }
    }
}

async fn write_all(client: Client, clock: Clock, mut told: mpsc::Receiver<Event>, stop: CancellationToken) {
    loop {
        let event = tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => return,
            // Cancel-safe per docs of mpsc::Receiver::recv.
            event = told.recv() => event,
        };
        let Some(event) = event else { return };
        if let Err(error) = write(&client, clock, &event).await {
            warn!(event = event.name_any(), error = %error, "event not written");
        }
    }
}

async fn write(client: &Client, clock: Clock, event: &Event) -> Result<(), kube::Error> {
    let api: Api<Event> = Api::namespaced(client.clone(), &event.namespace().unwrap_or_default());
    match api.create(&PostParams::default(), event).await {
        Err(error) if is_already_exists(&error) => {}
        Ok(_) => return Ok(()),
        // The namespace is going or gone: nobody is left to read it.
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => return Ok(()),
        Err(error) => return Err(error),
    }
    let name = event.name_any();
    let count = api.get(&name).await?.count.unwrap_or(1).saturating_add(1);
    let again = json!({ "count": count, "lastTimestamp": Time(clock.now()) });
    api.patch(&name, &PatchParams::default(), &Patch::Merge(again)).await.map(|_| ())
}
