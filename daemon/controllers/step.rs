//! The effects controllers have on the cluster, and the one place where they are done.
//!
//! Invariant: a step done twice is the same as once: derived names, uid preconditions, resource versions; what exists
//! already or is gone already is success.
//! Invariant: an event is told after the effect it speaks of, and a failure to tell it fails nothing.

use client::{Caches, Clock, Recorder, Weight};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use http::{Method, Request};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::core::PartialObjectMeta;
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::Error;

/// Who the controllers are in `metadata.managedFields`.
const MANAGER: &str = "holdfast-controllers";
/// Requests of one batch under way at once: enough to share the disk's syncs, few enough that others get their turn.
const AT_ONCE: usize = 64;

/// The door, and who tells of what was done through it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Door {
    client: Client,
    events: Recorder,
}

impl Door {
    /// Through the client of these caches; what is told is written until the token is cancelled.
    pub(crate) fn new(caches: &Caches, clock: Clock, stop: CancellationToken) -> Door {
        let client = caches.client();
        Door { events: Recorder::new(client.clone(), "controllers", clock, stop), client }
    }
}

impl std::ops::Deref for Door {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// One effect with every choice made.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Creates an object whose name is derived from its owner.
    Create { at: Place, object: Value, note: Option<Note> },
    /// Replaces an object or its subresource; fails with a conflict when it is no longer the one that was read.
    Put { at: Place, part: Part, object: Value },
    /// Merges into an object; fails with a conflict when the patch names another version than the live one.
    Patch { at: Place, part: Part, patch: Value, note: Option<Note> },
    /// Deletes exactly the object with this uid.
    Delete { at: Place, uid: String, propagation: Propagation, note: Option<Note> },
    /// Tells an event.
    Record(Note),
    /// Steps that know nothing of each other, at once.
    Together(Vec<Step>),
}

/// Where an object lives.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place {
    /// `v1`, `apps/v1`.
    pub(crate) api_version: String,
    /// `Pod`.
    pub(crate) kind: String,
    /// `pods`.
    pub(crate) plural: String,
    /// `None`: of the cluster.
    pub(crate) namespace: Option<String>,
    /// `metadata.name`.
    pub(crate) name: String,
}

/// What of an object is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The object itself.
    Whole,
    /// `/status`.
    Status,
    /// `/finalize` of a namespace.
    Finalize,
    /// `/scale`.
    Scale,
    /// `/approval` of a certificate request.
    Approval,
}

/// What a deletion does to dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Propagation {
    /// They are collected afterwards.
    Background,
    /// They go first.
    Foreground,
    /// They stay.
    Orphan,
    /// As in the background, and nobody is waited for.
    AtOnce,
}

/// An event about an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Note {
    /// The object it is about.
    pub(crate) about: ObjectReference,
    /// Who tells it.
    pub(crate) component: &'static str,
    /// A warning says that someone should look.
    pub(crate) warning: bool,
    /// One word in CamelCase.
    pub(crate) reason: &'static str,
    /// A sentence.
    pub(crate) message: String,
    /// What is told instead when the effect fails; its error is added.
    pub(crate) failure: Option<(&'static str, String)>,
    /// When.
    pub(crate) at: Timestamp,
}

impl Place {
    /// The place of an object of a known kind.
    pub(crate) fn of<K: Resource<DynamicType = ()>>(object: &K) -> Place {
        Place::named::<K>(object.meta(), object.meta().name.clone().unwrap_or_default())
    }

    /// A place of that kind in the namespace of `beside`.
    pub(crate) fn named<K: Resource<DynamicType = ()>>(beside: &ObjectMeta, name: String) -> Place {
        Place {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            plural: K::plural(&()).into_owned(),
            namespace: beside.namespace.clone(),
            name,
        }
    }

    /// The path of all objects of that kind and namespace.
    pub(crate) fn collection(&self) -> String {
        let root = if self.api_version.contains('/') { "/apis" } else { "/api" };
        match &self.namespace {
            Some(namespace) => format!("{root}/{}/namespaces/{namespace}/{}", self.api_version, self.plural),
            None => format!("{root}/{}/{}", self.api_version, self.plural),
        }
    }

    /// The path of the object.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

impl Part {
    fn path(self) -> &'static str {
        match self {
            Part::Whole => "",
            Part::Status => "/status",
            Part::Finalize => "/finalize",
            Part::Scale => "/scale",
            Part::Approval => "/approval",
        }
    }
}

impl Note {
    /// An event about an object of a known kind.
    pub(crate) fn about<K: Resource<DynamicType = ()>>(object: &K, now: Timestamp) -> Note {
        let meta = object.meta();
        let about = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: None,
        };
        Note::of(about, now)
    }

    /// An event about any object.
    pub(crate) fn of(about: ObjectReference, now: Timestamp) -> Note {
        Note {
            about,
            component: "",
            warning: false,
            reason: "",
            message: String::new(),
            failure: None,
            at: now,
        }
    }

    /// That all is as wanted.
    pub(crate) fn says(mut self, component: &'static str, reason: &'static str, message: String) -> Note {
        (self.component, self.reason, self.message) = (component, reason, message);
        self
    }

    /// That someone should look.
    pub(crate) fn warns(self, component: &'static str, reason: &'static str, message: String) -> Note {
        let mut note = self.says(component, reason, message);
        note.warning = true;
        note
    }

    /// What to say when the effect fails.
    pub(crate) fn or_else(mut self, reason: &'static str, message: impl Into<String>) -> Note {
        self.failure = Some((reason, message.into()));
        self
    }

    fn failed(&self, error: &kube::Error) -> Option<Note> {
        let (reason, message) = self.failure.clone()?;
        let message = format!("{message}: {}", said(error));
        Some(Note { warning: true, reason, message, failure: None, ..self.clone() })
    }
}

/// Why the cluster refused something, in its own words.
pub(crate) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => reconcile::chain(other),
    }
}

/// A time as objects keep it.
pub(crate) fn whole_seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// A time as the API writes it: whole seconds.
pub(crate) fn seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

impl Step {
    /// Creates an object of a known kind.
    pub(crate) fn create<K: Resource<DynamicType = ()> + Serialize>(object: &K, note: Option<Note>) -> Step {
        Step::Create { at: Place::of(object), object: value(object), note }
    }

    /// Replaces the status with the one in `object`, if the object is still the one that was read.
    pub(crate) fn status<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Step {
        Step::Put { at: Place::of(object), part: Part::Status, object: value(object) }
    }

    /// Merges into an object, if it is still the one that was read.
    pub(crate) fn patch<K: Resource<DynamicType = ()>>(object: &K, mut patch: Value) -> Step {
        let meta = object.meta();
        patch["metadata"]["uid"] = json!(meta.uid);
        patch["metadata"]["resourceVersion"] = json!(meta.resource_version);
        Step::Patch { at: Place::of(object), part: Part::Whole, patch, note: None }
    }

    /// Deletes an object; dependents are collected afterwards.
    pub(crate) fn delete<K: Resource<DynamicType = ()>>(object: &K, note: Option<Note>) -> Step {
        Step::Delete {
            at: Place::of(object),
            uid: object.meta().uid.clone().unwrap_or_default(),
            propagation: Propagation::Background,
            note,
        }
    }

    /// The same step, told by an event when it is done.
    pub(crate) fn with(self, note: Note) -> Step {
        match self {
            Step::Patch { at, part, patch, .. } => Step::Patch { at, part, patch, note: Some(note) },
            Step::Create { at, object, .. } => Step::Create { at, object, note: Some(note) },
            Step::Delete { at, uid, propagation, .. } => {
                Step::Delete { at, uid, propagation, note: Some(note) }
            }
            other => other,
        }
    }
}

fn value<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Value {
    serde_json::to_value(object).expect("a Kubernetes object can be written as JSON")
}

/// Does a step. `done` hears of every creation and deletion that the cluster has accepted.
pub(crate) fn act<'a>(
    client: &'a Door,
    step: Step,
    done: &'a (dyn Fn(Done<'_>) + Send + Sync),
) -> BoxFuture<'a, Result<(), Error>> {
    async move {
        match step {
            Step::Create { at, object, note } => create(client, &at, &object, note, done).await,
            Step::Put { at, part, object } => {
                let path = format!("{}{}", at.path(), part.path());
                gone_is_done(put(client, &path, &object, done).await)
                    .map_err(|source| Error::Update { what: at.to_string(), source: Box::new(source) })
            }
            Step::Patch { at, part, patch, note } => {
                let path = format!("{}{}", at.path(), part.path());
                let answer = gone_is_done(send(client, Method::PATCH, &path, &patch).await);
                tell(client, note, &answer);
                answer.map_err(|source| Error::Update { what: at.to_string(), source: Box::new(source) })
            }
            Step::Delete { at, uid, propagation, note } => {
                delete(client, &at, &uid, propagation, note, done).await
            }
            Step::Record(note) => {
                record(client, note);
                Ok(())
            }
            Step::Together(steps) => {
                let acts = stream::iter(steps.into_iter().map(|step| act(client, step, done)));
                let answers: Vec<Result<(), Error>> = acts.buffer_unordered(AT_ONCE).collect().await;
                answers.into_iter().collect()
            }
        }
    }
    .boxed()
}

/// What the cluster has accepted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Done<'a> {
    /// An object with this name exists now.
    Created { name: &'a str },
    /// The object with this uid is on its way out.
    Deleted { uid: &'a str },
    /// The key's own object has this resourceVersion now.
    Written { version: &'a str },
}

async fn create(
    client: &Door,
    at: &Place,
    object: &Value,
    note: Option<Note>,
    done: &(dyn Fn(Done<'_>) + Send + Sync),
) -> Result<(), Error> {
    let answer = send(client, Method::POST, &at.collection(), object).await;
    match answer {
        Ok(()) => {
            done(Done::Created { name: &at.name });
            tell(client, note, &Ok(()));
            Ok(())
        }
        Err(error) if client::is_already_exists(&error) => {
            same_owner(client, at, object).await?;
            done(Done::Created { name: &at.name });
            Ok(())
        }
        // Nothing can be made in a namespace that goes away, and nothing has to.
        Err(error) if namespace_ends(&error) => Ok(()),
        Err(error) => {
            let answer = Err(error);
            tell(client, note, &answer);
            answer.map_err(|error| Error::Create { what: at.to_string(), source: Box::new(error) })
        }
    }
}

/// A derived name that exists is our own work, unless someone else took it: then only another name helps, and that is
/// found when the caches show who has it.
async fn same_owner(client: &Client, at: &Place, object: &Value) -> Result<(), Error> {
    let request = Request::get(at.path()).body(Vec::new()).expect("a path made of names");
    let live: Value = match client.request(request).await {
        Ok(live) => live,
        Err(error) if client::is_not_found(&error) => return Ok(()),
        Err(error) => return Err(Error::Create { what: at.to_string(), source: Box::new(error) }),
    };
    if controller_uid(&live) == controller_uid(object) {
        Ok(())
    } else {
        Err(Error::NameTaken { what: at.to_string() })
    }
}

fn controller_uid(object: &Value) -> Option<&str> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|owner| owner["controller"] == json!(true))?["uid"].as_str()
}

async fn delete(
    client: &Door,
    at: &Place,
    uid: &str,
    propagation: Propagation,
    note: Option<Note>,
    done: &(dyn Fn(Done<'_>) + Send + Sync),
) -> Result<(), Error> {
    let policy = match propagation {
        Propagation::Background | Propagation::AtOnce => "Background",
        Propagation::Foreground => "Foreground",
        Propagation::Orphan => "Orphan",
    };
    let mut body = json!({
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": {"uid": uid},
        "propagationPolicy": policy,
    });
    if propagation == Propagation::AtOnce {
        body["gracePeriodSeconds"] = json!(0);
    }
    let answer = match send(client, Method::DELETE, &at.path(), &body).await {
        // Another object has the name now: the one that was meant is gone.
        Err(error) if client::is_conflict(&error) || client::is_not_found(&error) => Ok(()),
        answer => {
            if answer.is_ok() {
                done(Done::Deleted { uid });
            }
            tell(client, note, &answer);
            answer
        }
    };
    answer.map_err(|source| Error::Delete { what: at.to_string(), source: Box::new(source) })
}

/// Tells of an effect, or why it did not come to be.
fn tell(door: &Door, note: Option<Note>, answer: &Result<(), kube::Error>) {
    let note = match answer {
        Ok(()) => note,
        Err(error) => note.and_then(|note| note.failed(error)),
    };
    if let Some(note) = note {
        record(door, note);
    }
}

fn record(door: &Door, note: Note) {
    let weight = if note.warning { Weight::Warning } else { Weight::Normal };
    door.events.of(note.component).tell_of(note.about, weight, note.reason, &note.message);
}

fn gone_is_done(answer: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match answer {
        Err(error) if client::is_not_found(&error) => Ok(()),
        answer => answer,
    }
}

fn namespace_ends(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

async fn put(
    client: &Client,
    path: &str,
    object: &Value,
    done: &(dyn Fn(Done<'_>) + Send + Sync),
) -> Result<(), kube::Error> {
    let written: PartialObjectMeta = ask(client, Method::PUT, path, object).await?;
    if let Some(version) = &written.metadata.resource_version {
        done(Done::Written { version });
    }
    Ok(())
}

async fn send(client: &Client, method: Method, path: &str, body: &Value) -> Result<(), kube::Error> {
    ask::<IgnoredAny>(client, method, path, body).await.map(drop)
}

async fn ask<T: DeserializeOwned>(
    client: &Client,
    method: Method,
    path: &str,
    body: &Value,
) -> Result<T, kube::Error> {
    let content = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let mark = if method == Method::DELETE { String::new() } else { format!("?fieldManager={MANAGER}") };
    let request = Request::builder()
        .method(method)
        .uri(format!("{path}{mark}"))
        .header("content-type", content)
        .body(body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// The reference by which an object is controlled by `owner`.
pub(crate) fn controlled_by<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
