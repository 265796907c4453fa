//! Doing what a plan says for one application, object by object.
//!
//! Invariant: what fails with one object is remembered for that object and stops no other.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use reconcile::chain;
use serde_json::Value;
use tracing::{info, warn};

use crate::Error;
use crate::act::{self, Run};
use crate::application::{AT_ONCE, Follower};
use crate::archive::Tombstone;
use crate::build::{Defect, Object};
use crate::history;
use crate::ignore::{self, Rules};
use crate::live::Seen;
use crate::marks::{self, Apply};
use crate::plan::{Failure, Removal, Step, Verdict};
use crate::status::{HealthStatus, ObjectStatus, Status, seconds};

/// The wait after an object's first failure; it doubles up to the most.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const MOST_RETRY: Duration = Duration::from_secs(60);
/// Kinds that are made anew when they differ in what cannot change; others with the annotation.
const MADE_ANEW: [&str; 2] = ["Job", "Pod"];

impl Follower {
    /// Does one step. What fails with one object is remembered for that object.
    pub(crate) async fn act(&self, step: Step, now: Timestamp) -> Result<(), Error> {
        match step {
            Step::Report(status) => self.report(*status, now).await,
            Step::Apply(objects) => {
                futures::stream::iter(objects)
                    .for_each_concurrent(AT_ONCE, |object| self.apply(object, now))
                    .await;
                Ok(())
            }
            Step::Delete(removals) => {
                let deleted = futures::stream::iter(removals)
                    .map(|removal| self.delete(removal, now))
                    .buffer_unordered(AT_ONCE)
                    .collect::<Vec<Result<(), Error>>>()
                    .await;
                deleted.into_iter().collect()
            }
            Step::Forget => act::forget(&self.home, &self.application.name).await,
        }
    }

    pub(crate) async fn report(&self, status: Status, now: Timestamp) -> Result<(), Error> {
        self.keep_inventory(&status).await?;
        match act::report(&self.home, &self.application.name, &status).await {
            Ok(()) => {}
            Err(Error::Door { source, .. }) if client::is_not_found(&source) => {
                act::declare(&self.home, &self.application.name, &self.spec()).await?;
                act::report(&self.home, &self.application.name, &status).await?;
            }
            Err(error) => return Err(error),
        }
        self.post(&status);
        let mut memory = self.lock();
        // Decided since by a person: that is told the next time.
        if memory.decisions == memory.decided {
            memory.decisions = None;
        }
        memory.told = Some(Arc::new(status));
        memory.told_at = Some(now);
        Ok(())
    }

    /// Leaves in the target what was applied there, so that another node can take over.
    async fn keep_inventory(&self, status: &Status) -> Result<(), Error> {
        if self.application.target.is_none() || status.objects.is_empty() && self.lock().inventory.is_empty()
        {
            return Ok(());
        }
        let mut kept =
            Status { objects: status.objects.clone(), hooks: status.hooks.clone(), ..Status::default() };
        kept.sync.revision.clone_from(&status.sync.revision);
        for object in &mut kept.objects {
            *object = ObjectStatus {
                health: HealthStatus::default(),
                message: String::new(),
                waits_for: String::new(),
                sync: String::new(),
                ..object.clone()
            };
        }
        let what = || format!("the inventory of {}", self.application.name);
        let text = serde_json::to_string(&kept).map_err(|source| Error::Json { what: what(), source })?;
        if self.lock().inventory == text {
            return Ok(());
        }
        act::write_inventory(&self.door, &self.application.namespace, &self.application.name, &text).await?;
        self.lock().inventory = text;
        Ok(())
    }

    async fn apply(&self, object: Object, now: Timestamp) {
        let masked = self.masked(&object).await;
        if self.is_drift(&object)
            && let Some(healed) = act::conflicts(&self.door, &masked).await
        {
            info!(application = self.application.name, object = %object.id, healed, "drift");
            self.lock().healed.insert(object.id.clone(), format!("{healed} ({})", seconds(now)));
        }
        let applied = act::apply(&self.door, &masked, Run::Real).await;
        match applied {
            Ok(after) => {
                info!(application = self.application.name, object = %object.id, file = %object.file, line = object.line, "applied");
                let seen = Seen::of(&after);
                let mut memory = self.lock();
                memory.failures.remove(&object.id);
                memory.verdicts.insert(object.id.clone(), (object.hash, seen.digest, Verdict::Same));
                if !memory.seen.contains_key(&object.id) {
                    self.watched.made(&object.id, seen);
                }
            }
            Err(error) => self.failed(&object, &error, now),
        }
    }

    /// Whether this very text was applied before and is live otherwise.
    fn is_drift(&self, object: &Object) -> bool {
        let memory = self.lock();
        let known =
            memory.told.as_ref().and_then(|told| told.objects.iter().find(|known| known.id() == object.id));
        memory.seen.contains_key(&object.id) && history::was_applied(known, object)
    }

    fn failed(&self, object: &Object, error: &kube::Error, now: Timestamp) {
        let mut memory = self.lock();
        let tries = memory
            .failures
            .get(&object.id)
            .filter(|known| known.hash == object.hash)
            .map_or(0, |known| known.tries);
        if let (Some(why), Some(seen)) = (immutable(object, error), memory.seen.get(&object.id)) {
            let verdict = (object.hash, seen.digest, Verdict::Immutable(why));
            memory.verdicts.insert(object.id.clone(), verdict);
            return;
        }
        let (path, message, help) = told_by(error);
        let place = path.and_then(|path| memory.builder.as_ref().map(|builder| builder.place(object, &path)));
        let (line, column) = place.unwrap_or((object.line, 0));
        let wait = FIRST_RETRY.saturating_mul(2u32.saturating_pow(tries.min(16))).min(MOST_RETRY);
        let defect = Defect {
            file: object.file.to_string(),
            line,
            column,
            message: format!("{}: {message}", object.id),
            help,
            object: Some(object.id.to_string()),
        };
        let failure = Failure { hash: object.hash, defect, tries: tries + 1, retry_at: now + wait };
        memory.failures.insert(object.id.clone(), failure);
    }

    /// The object without the fields that its rules leave to others.
    pub(crate) async fn masked(&self, object: &Object) -> Object {
        let rules = Rules::of(object, &self.application.ignore);
        if rules.is_empty() {
            return object.clone();
        }
        match act::get(&self.door, object).await {
            Ok(live) => {
                let value = ignore::mask(&object.value, &live, &rules);
                Object { value: std::sync::Arc::new(value), ..object.clone() }
            }
            // Not there yet: made with what the files say.
            Err(_) => object.clone(),
        }
    }

    async fn delete(&self, removal: Removal, now: Timestamp) -> Result<(), Error> {
        info!(application = self.application.name, object = %removal.id, why = removal.why, "delete");
        if removal.keep {
            self.bury(&removal, now).await;
        }
        let deleted = act::delete(&self.door, &removal).await;
        deleted.map_err(|source| Error::Door {
            verb: "delete",
            what: removal.id.to_string(),
            source: Box::new(source),
        })
    }

    /// Makes an object again that was pruned. Whether it was gone.
    pub(crate) async fn restore(&self, known: &Tombstone) -> Result<bool, Error> {
        let defined = self.watched.defined().await;
        let kind = defined.first(|kind| kind.group == known.id.group && kind.kind == known.id.kind);
        let Some(kind) = kind else {
            let why = format!("kind {} is not served any more", known.id.kind);
            return Err(Error::Denied { application: self.application.name.clone(), why });
        };
        let restored = act::restore(&self.door, kind, &known.id, &again(&known.object)).await;
        restored.map_err(|source| Error::Door {
            verb: "bring back",
            what: known.id.to_string(),
            source: Box::new(source),
        })
    }

    /// Keeps what is about to be pruned, for `holdfast undo`.
    async fn bury(&self, removal: &Removal, now: Timestamp) {
        let Ok(object) = act::get_by(&self.door, removal.kind, &removal.id).await else { return };
        let (file, line, revision) = {
            let memory = self.lock();
            let told = memory.told.as_ref();
            let known = told.and_then(|told| told.objects.iter().find(|known| known.id() == removal.id));
            let place = known.map(|known| (known.file.clone(), known.line)).unwrap_or_default();
            (place.0, place.1, told.map(|told| told.sync.revision.clone()).unwrap_or_default())
        };
        let tombstone = Tombstone { at: now, id: removal.id.clone(), revision, file, line, object };
        let archive = self.archive.clone();
        let buried = tokio::task::spawn_blocking(move || archive.bury(&tombstone)).await;
        if let Ok(Err(error)) = buried {
            warn!(object = %removal.id, error = chain(&error), "what is pruned is not kept");
        }
    }
}

/// An object as it can be made once more: without what the cluster writes, and no longer the application's.
fn again(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in [
            "managedFields",
            "resourceVersion",
            "generation",
            "uid",
            "creationTimestamp",
            "selfLink",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "ownerReferences",
        ] {
            meta.remove(field);
        }
        if let Some(labels) = meta.get_mut("labels").and_then(Value::as_object_mut) {
            labels.remove(crate::APPLICATION_LABEL);
        }
    }
    match object["kind"].as_str() {
        // Its address may be somebody else's by now.
        Some("Service") => {
            if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
                && spec.get("clusterIP").is_some_and(|address| address != "None")
            {
                spec.remove("clusterIP");
                spec.remove("clusterIPs");
            }
        }
        // A job's labels and selector name the one that is gone.
        Some("Job") if object["spec"]["manualSelector"] != true => {
            if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
                spec.remove("selector");
                if let Some(labels) = spec["template"]["metadata"]["labels"].as_object_mut() {
                    labels.retain(|name, _| !name.ends_with("controller-uid") && !name.ends_with("job-name"));
                }
            }
        }
        Some("Pod") => {
            if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
                spec.remove("nodeName");
            }
        }
        _ => {}
    }
    object
}

pub(crate) fn taken(object: &Object, other: &str) -> Verdict {
    Verdict::Taken(Defect {
        file: object.file.to_string(),
        line: object.line,
        column: 0,
        message: format!("{} is kept by application {other} already", object.id),
        help: "remove it from one of the two".to_owned(),
        object: Some(object.id.to_string()),
    })
}

/// Whether the object differs in what cannot change, and may be made anew.
pub(crate) fn immutable(object: &Object, error: &kube::Error) -> Option<String> {
    let kube::Error::Api(status) = error else { return None };
    let fixed = status.code == 422
        && ["immutable", "may not change fields", "may not be changed", "cannot be changed"]
            .iter()
            .any(|words| status.message.contains(words));
    let allowed =
        MADE_ANEW.contains(&object.id.kind.as_str()) || marks::apply(&object.value) == Apply::Replace;
    (fixed && allowed).then(|| status.message.lines().next().unwrap_or_default().to_owned())
}

/// The field, the sentence and the way out of an answer that is no success.
pub(crate) fn told_by(error: &kube::Error) -> (Option<String>, String, String) {
    let kube::Error::Api(status) = error else {
        return (None, chain(error), "it is tried again by itself".to_owned());
    };
    let cause = status.details.as_ref().and_then(|details| details.causes.first());
    let field = cause.map(|cause| cause.field.clone()).filter(|field| !field.is_empty());
    let help = match status.code {
        404 if status.message.contains("namespaces") => {
            "add the Namespace to the files, or create it".to_owned()
        }
        422 if status.message.contains("immutable") => {
            "revert the field, or add the annotation holdfast.dev/apply: replace to have the object deleted and made again"
                .to_owned()
        }
        422 | 400 => "correct the file".to_owned(),
        403 => "ask whoever set the policy".to_owned(),
        _ => "it is tried again by itself".to_owned(),
    };
    (field, status.message.clone(), help)
}
