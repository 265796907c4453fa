//! Events about objects, as `kubectl describe` shows them.
//!
//! Invariant: an event never holds up the work it tells of: it is handed to a task, and dropped when that is far behind.
//! Invariant: the name is derived from what is told, so that the same thing told again counts up instead of piling up.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::correlate::{Correlator, Tale, Told};
use crate::{Clock, is_already_exists, is_not_found};

/// How many events may wait to be written.
const WAITING: usize = 4096;
/// How often one is tried that the cluster could not take, and how long after the first time; each wait doubles.
const TRIES: u32 = 5;
const RETRY: Duration = Duration::from_millis(50);
/// An object's name may have this many characters, and so may an event's, which ends with a point and 16 digits.
const LONGEST: usize = 253 - 17;

/// Whether an event is worth a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Things go as they should.
    Normal,
    /// Something is wrong.
    Warning,
}

/// Tells of what components did. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    component: &'static str,
    host: Arc<str>,
    clock: Clock,
    correlator: Arc<Mutex<Correlator>>,
    waiting: mpsc::Sender<Event>,
}

impl Recorder {
    /// A recorder and the task that writes what it tells, until the token is cancelled.
    pub fn new(client: Client, component: &'static str, clock: Clock, stop: CancellationToken) -> Recorder {
        let (waiting, told) = mpsc::channel(WAITING);
        let correlator = Arc::<Mutex<Correlator>>::default();
        tokio::spawn(write_all(client, Arc::clone(&correlator), told, stop));
        Recorder { component, host: "".into(), clock, correlator, waiting }
    }

    /// The same, as what a part of the machine with this name tells.
    pub fn on(mut self, host: &str) -> Recorder {
        self.host = host.into();
        self
    }

    /// The same, as what another component tells.
    pub fn of(&self, component: &'static str) -> Recorder {
        Recorder { component, ..self.clone() }
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
        self.tell_doing(about, weight, reason, None, message);
    }

    /// Tells of something about any object, and in doing what it came about.
    pub fn tell_doing(
        &self,
        about: ObjectReference,
        weight: Weight,
        reason: &str,
        action: Option<&str>,
        message: &str,
    ) {
        let weight = match weight {
            Weight::Normal => "Normal",
            Weight::Warning => "Warning",
        };
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        let (kind, namespace, name) = (text(&about.kind), text(&about.namespace), text(&about.name));
        let (uid, part) = (text(&about.uid), text(&about.field_path));
        let tale = Tale {
            source: (self.component, &self.host),
            about: (&kind, &namespace, &name, &uid),
            part: &part,
            weight,
            reason,
            message,
        };
        let now = self.clock.now();
        let told = lock(&self.correlator).correlate(tale, now);
        let Some(told) = told else {
            debug!(reason, message, "an event was dropped: its source tells too much of this object");
            return;
        };
        let event = Event {
            type_: Some(weight.to_owned()),
            reason: Some(reason.to_owned()),
            action: action.map(str::to_owned),
            ..self.event(about, told, Time(now))
        };
        if self.waiting.try_send(event).is_err() {
            debug!(reason, message, "an event was dropped: too many wait to be written");
        }
    }

    fn event(&self, about: ObjectReference, told: Told, now: Time) -> Event {
        let begin: String = about.name.iter().flat_map(|name| name.chars()).take(LONGEST).collect();
        // What belongs to the cluster is told of in `default`, as by Kubernetes.
        let namespace = about.namespace.clone().filter(|namespace| !namespace.is_empty());
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{begin}.{:016x}", told.id)),
                namespace: Some(namespace.unwrap_or_else(|| "default".to_owned())),
                ..ObjectMeta::default()
            },
            message: Some(told.message),
            involved_object: about,
            source: Some(EventSource {
                component: Some(self.component.to_owned()),
                host: Some(self.host.to_string()).filter(|host| !host.is_empty()),
            }),
            reporting_component: Some(self.component.to_owned()),
            reporting_instance: Some(self.host.to_string()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(told.count),
            ..Event::default()
        }
    }
}

fn lock(correlator: &Mutex<Correlator>) -> std::sync::MutexGuard<'_, Correlator> {
    // What it remembers is never half written.
    correlator.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write_all(
    client: Client,
    correlator: Arc<Mutex<Correlator>>,
    mut told: mpsc::Receiver<Event>,
    stop: CancellationToken,
) {
    loop {
        let event = tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => break,
            // Cancel-safe per docs of mpsc::Receiver::recv.
            event = told.recv() => event,
        };
        let Some(event) = event else { return };
        let mut tries = 1;
        while let Err(error) = write(&client, &correlator, &event).await {
            if tries == TRIES || matches!(&error, kube::Error::Api(status) if status.code < 500) {
                warn!(event = event.name_any(), error = %error, "event not written");
                break;
            }
            let wait = RETRY * 2_u32.pow(tries);
            tries += 1;
            // Cancel-safe: sleeping; at a stop the event is tried once more without a wait.
            let _ = stop.run_until_cancelled(tokio::time::sleep(wait)).await;
        }
    }
    // What was told before the end is written if it can be.
    while let Ok(event) = told.try_recv() {
        if write(&client, &correlator, &event).await.is_err() {
            return;
        }
    }
}

async fn write(client: &Client, correlator: &Mutex<Correlator>, event: &Event) -> Result<(), kube::Error> {
    let api: Api<Event> = Api::namespaced(client.clone(), &event.namespace().unwrap_or_default());
    let name = event.name_any();
    if event.count > Some(1) {
        match again(&api, event, event.count).await {
            // It went meanwhile: told anew.
            Err(error) if is_not_found(&error) => {}
            answer => return gone_is_done(answer),
        }
    }
    match api.create(&PostParams::default(), event).await {
        Err(error) if is_already_exists(&error) => {}
        answer => return gone_is_done(answer.map(|_| ())),
    }
    // Told by the process before this one, or the answer to an earlier try was lost.
    let count = api.get(&name).await?.count.unwrap_or(1).saturating_add(1);
    let id = name.rsplit('.').next().and_then(|digits| u64::from_str_radix(digits, 16).ok());
    if let Some(id) = id {
        lock(correlator).known(id, count);
    }
    gone_is_done(again(&api, event, Some(count)).await)
}

async fn again(api: &Api<Event>, event: &Event, count: Option<i32>) -> Result<(), kube::Error> {
    let patch = json!({ "count": count, "lastTimestamp": event.last_timestamp, "message": event.message });
    api.patch(&event.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
}

/// The namespace is going or gone: nobody is left to read it.
fn gone_is_done(answer: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match answer {
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => Ok(()),
        answer => answer,
    }
}
