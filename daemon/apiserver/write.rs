//! Create, update and patch: from what a client sent to what is stored.
//!
//! Invariant: whatever the verb, the new object takes the same steps: decode strictly, keep what only the server sets,
//! default, let the kind's strategy speak, validate, record who owns which field, compare and set.

use api::convert;
use api::error::ApiError;
use api::kinds::Kind;
use api::patch;
use api::schema::{self, DefectReason};
use api::validate;
use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Value, json};
use store::{Change, Durability, Expect, Write};

use crate::auth::{self, User};
use crate::object::{self, meta, metadata};
use crate::path::Resource;
use crate::query::{FieldValidation, Query};
use crate::{Head, Inner, admission, csr, rbac, strategy};

/// How often a patch is tried again when other writers come first.
const PATCH_TRIES: usize = 16;
/// How often another name is made up when one is taken.
const NAME_TRIES: usize = 7;
/// The largest object that is stored.
const MAX_OBJECT_BYTES: usize = 3 * 512 * 1024;

/// One writing request, and what it has to warn of.
pub(crate) struct Asked<'a> {
    pub(crate) inner: &'a Inner,
    pub(crate) user: &'a User,
    pub(crate) resource: &'a Resource,
    pub(crate) query: &'a Query,
    pub(crate) headers: &'a HeaderMap,
    /// Fields that the body gives twice: what was decoded from it cannot tell.
    pub(crate) twice: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

/// What is stored now, and whether it is new.
pub(crate) struct Written {
    pub(crate) value: Bytes,
    pub(crate) created: bool,
}

/// How a new version of an object comes about.
enum Origin {
    /// The object, or some fields of it, as the client wants them.
    Update,
    /// Merged by server-side apply, which has recorded the owners of fields already.
    Apply,
}

impl Asked<'_> {
    fn kind(&self) -> &'static Kind {
        self.resource.kind
    }

    fn subresource(&self) -> Option<&str> {
        self.resource.subresource.as_deref()
    }

    pub(crate) fn now(&self) -> String {
        seconds((self.inner.now)())
    }

    /// The field manager: as asked, or the first word of the user agent, or the user.
    fn manager(&self) -> String {
        let agent = self.headers.get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        let agent = agent.and_then(|agent| agent.split('/').next()).filter(|agent| !agent.is_empty());
        self.query.get("fieldManager").or(agent).unwrap_or(&self.user.name).to_owned()
    }

    /// POST to a collection.
    pub(crate) async fn create(&mut self, body: Value) -> Result<Written, ApiError> {
        let object = self.decoded(body)?;
        self.create_from(object, Origin::Update).await
    }

    /// A name that is made up and taken already is made up again.
    async fn create_from(&mut self, object: Value, origin: Origin) -> Result<Written, ApiError> {
        let made_up = meta(&object, "name").is_empty() && !meta(&object, "generateName").is_empty();
        for _ in 0..if made_up { NAME_TRIES } else { 0 } {
            match self.create_once(object.clone(), &origin).await {
                Err(error) if error.reason == "AlreadyExists" => {}
                done => return done,
            }
        }
        self.create_once(object, &origin).await
    }

    async fn create_once(&mut self, mut object: Value, origin: &Origin) -> Result<Written, ApiError> {
        let kind = self.kind();
        if !meta(&object, "resourceVersion").is_empty() {
            return Err(ApiError::bad_request(
                "resourceVersion should not be set on objects to be created".to_owned(),
            ));
        }
        if kind.custom().is_some() && self.inner.crds.is_leaving(kind) {
            let mut refused = ApiError::method_not_allowed();
            refused.message = "create not allowed while custom resource definition is terminating".to_owned();
            return Err(refused);
        }
        self.place(&mut object)?;
        let now = self.now();
        let fields = metadata(&mut object);
        for name in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"] {
            fields.remove(name);
        }
        fields.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
        fields.insert("creationTimestamp".to_owned(), now.clone().into());
        name_it(fields);
        if kind.status {
            object.as_object_mut().expect("has metadata").remove("status");
        }
        if object.get("spec").is_some() || kind.custom().is_some() {
            metadata(&mut object).insert("generation".to_owned(), 1.into());
        }
        schema::defaults(kind, &mut object);
        admission::admit(self.inner, kind, &object)?;
        auth::legacy_secret(self.inner, kind, &mut object)?;
        admission::mutate(self.inner, kind, &mut object).await?;
        self.ask_to_change(None, &mut object).await?;
        let allocation = self.inner.allocator.begin(kind).await;
        strategy::create(self.inner, kind, &mut object)?;
        csr::asked_by(kind, self.user, &mut object);
        let name = meta(&object, "name").to_owned();
        invalid(kind, &name, validate::create(kind, &object))?;
        rbac::escalation::check(self.inner, self.user, kind, None, &object)?;
        admission::validate(self.inner, kind, None, &object, &mut self.warnings)?;
        self.ask_to_allow(None, &object).await?;
        // A webhook that writes to the namespace itself does not wait for its own turn.
        let quota = self.inner.quota.begin(self.inner, kind, &self.resource.namespace).await;
        admission::quota::admit(self.inner, kind, None, &object)?;
        if matches!(origin, Origin::Update) {
            patch::track_update(kind, None, &mut object, &self.manager(), None, &now);
        }
        let value = self.put(&object, Expect::Absent).await.map_err(|error| match error {
            Lost::Race => ApiError::already_exists(kind, &name),
            Lost::Error(error) => error,
        })?;
        drop((allocation, quota));
        if let Some(missing) = kind.unattended() {
            self.warnings.push(format!("{} is stored, but nothing acts on it yet: {missing}", kind.kind));
        }
        Ok(Written { value, created: true })
    }

    /// PUT of an object or a subresource.
    pub(crate) async fn update(&mut self, body: Value) -> Result<Written, ApiError> {
        let object = self.decoded(body)?;
        let sent = meta(&object, "name");
        let named = self.resource.name.as_deref().unwrap_or_default();
        if !sent.is_empty() && sent != named {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({sent}) does not match the name on the URL ({named})"
            )));
        }
        let missing = crate::read::entry(self.inner, self.resource).is_err();
        if missing && self.subresource().is_none() && strategy::is_made_by_update(self.kind()) {
            let mut object = object;
            metadata(&mut object).insert("name".to_owned(), named.into());
            return self.create_from(object, Origin::Update).await;
        }
        self.change(Origin::Update, |_| Ok(object.clone())).await
    }

    /// PATCH of an object or a subresource, of every documented type.
    pub(crate) async fn patch(&mut self, content_type: &str, body: Value) -> Result<Written, ApiError> {
        let kind = self.kind();
        match content_type {
            "application/json-patch+json" => {
                self.change(Origin::Update, |old| {
                    let mut new = old.clone();
                    patch::json_patch(&mut new, &body).map_err(|error| crate::refusal::of_patch(&error))?;
                    Ok(new)
                })
                .await
            }
            "application/merge-patch+json" => {
                self.change(Origin::Update, |old| {
                    let mut new = old.clone();
                    patch::merge_patch(&mut new, &body);
                    Ok(new)
                })
                .await
            }
            "application/strategic-merge-patch+json" => {
                self.change(Origin::Update, |old| {
                    patch::strategic(kind, old, &body).map_err(|error| crate::refusal::of_patch(&error))
                })
                .await
            }
            "application/apply-patch+yaml" => self.apply(body).await,
            _ => Err(ApiError::unsupported_media_type(&PATCH_TYPES)),
        }
    }

    async fn apply(&mut self, body: Value) -> Result<Written, ApiError> {
        let kind = self.kind();
        if self.query.get("fieldManager").is_none() {
            return Err(ApiError::bad_request("PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch".to_owned()));
        }
        let applied = self.decoded(body)?;
        if applied["metadata"].get("managedFields").is_some_and(|fields| !fields.is_null()) {
            return Err(ApiError::bad_request("metadata.managedFields must be nil".to_owned()));
        }
        let (manager, force, now) = (self.manager(), self.query.flag("force"), self.now());
        let subresource = self.subresource().map(str::to_owned);
        let merge = move |live: Option<&Value>| {
            patch::apply(kind, live, &applied, &manager, force, subresource.as_deref(), &now)
                .map_err(|error| crate::refusal::of_apply(&error))
        };
        let missing = crate::read::entry(self.inner, self.resource).is_err();
        if missing && self.resource.subresource.is_none() {
            let mut object = merge(None)?;
            let name = self.resource.name.clone().unwrap_or_default();
            metadata(&mut object).insert("name".to_owned(), name.into());
            return match self.create_from(object, Origin::Apply).await {
                // Somebody created it meanwhile: then it is there to be merged with.
                Err(error) if error.reason == "AlreadyExists" => {
                    self.change(Origin::Apply, |old| merge(Some(old))).await
                }
                other => other,
            };
        }
        self.change(Origin::Apply, |old| merge(Some(old))).await
    }

    /// Changes the stored object until no other writer came first.
    pub(crate) async fn change_fields(
        &mut self,
        mutate: impl Fn(&Value) -> Result<Value, ApiError>,
    ) -> Result<Written, ApiError> {
        self.change(Origin::Update, mutate).await
    }

    async fn change(
        &mut self,
        origin: Origin,
        mutate: impl Fn(&Value) -> Result<Value, ApiError>,
    ) -> Result<Written, ApiError> {
        let kind = self.kind();
        for _ in 0..PATCH_TRIES {
            let entry = crate::read::entry(self.inner, self.resource)?;
            let old = object::parse_as(kind, &entry.value);
            let wanted = mutate(&old)?;
            let pinned = !meta(&wanted, "resourceVersion").is_empty();
            if pinned && meta(&wanted, "resourceVersion") != meta(&old, "resourceVersion") {
                return Err(modified(kind, meta(&old, "name")));
            }
            let allocation = self.inner.allocator.begin(kind).await;
            let Some(new) = self.next_version(&old, wanted, &origin).await? else {
                return Ok(Written { value: entry.value, created: false });
            };
            let quota = self.inner.quota.begin(self.inner, kind, &self.resource.namespace).await;
            if self.subresource() != Some("status") {
                admission::quota::admit(self.inner, kind, Some(&old), &new)?;
            }
            let done = if object::is_terminating(&new) && strategy::nothing_holds(kind, &new) {
                self.remove(&new, Expect::At(entry.modified)).await
            } else {
                self.put(&new, Expect::At(entry.modified)).await
            };
            drop((allocation, quota));
            match done {
                Ok(value) => return Ok(Written { value, created: false }),
                Err(Lost::Error(error)) => return Err(error),
                Err(Lost::Race) => tokio::task::yield_now().await,
            }
        }
        Err(modified(kind, self.resource.name.as_deref().unwrap_or_default()))
    }

    /// The version that follows `old` when a client wants `wanted`; none when nothing would change.
    async fn next_version(
        &mut self,
        old: &Value,
        wanted: Value,
        origin: &Origin,
    ) -> Result<Option<Value>, ApiError> {
        let kind = self.kind();
        let name = meta(old, "name").to_owned();
        let mut new = self.checked(wanted)?;
        if !meta(&new, "uid").is_empty() && meta(&new, "uid") != meta(old, "uid") {
            return Err(wrong_uid(kind, &name, meta(&new, "uid"), meta(old, "uid")));
        }
        new = strategy::keep_what_is_not_written(kind, self.subresource(), old, new);
        let had_managers = new["metadata"].get("managedFields").is_some_and(|fields| !fields.is_null());
        let fields = metadata(&mut new);
        let kept = [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "resourceVersion",
        ];
        for field in kept.into_iter().chain((!had_managers).then_some("managedFields")) {
            match old["metadata"].get(field) {
                Some(value) => fields.insert(field.to_owned(), value.clone()),
                None => fields.remove(field),
            };
        }
        schema::defaults(kind, &mut new);
        self.ask_to_change(Some(old), &mut new).await?;
        strategy::update(self.inner, kind, self.subresource(), old, &mut new)?;
        // A binding is where the pod runs, not what is wanted of it.
        let wanted = new.get("spec").is_some() || kind.custom().is_some();
        let counts = self.subresource() != Some("binding") && wanted;
        if counts && strategy::wanted_state_differs(old, &new) {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            metadata(&mut new).insert("generation".to_owned(), generation.into());
        }
        invalid(kind, &name, validate::update_through(kind, self.subresource(), &new, old))?;
        rbac::escalation::check(self.inner, self.user, kind, Some(old), &new)?;
        if self.subresource() != Some("status") {
            admission::validate(self.inner, kind, Some(old), &new, &mut self.warnings)?;
        }
        self.ask_to_allow(Some(old), &new).await?;
        if matches!(origin, Origin::Update) {
            let (manager, now) = (self.manager(), self.now());
            let subresource = self.subresource().map(str::to_owned);
            patch::track_update(kind, Some(old), &mut new, &manager, subresource.as_deref(), &now);
        }
        Ok((new != *old).then_some(new))
    }

    /// Type and place of a body fit the URL; unknown fields are told, refused or ignored as asked.
    pub(crate) fn decoded(&mut self, body: Value) -> Result<Value, ApiError> {
        let kind = self.kind();
        let mut body = body;
        let Some(object) = body.as_object_mut() else {
            return Err(ApiError::bad_request(format!("the body is no object: expected a {}", kind.kind)));
        };
        let told = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, named) = (told("apiVersion"), told("kind"));
        let served = (kind.api_version(), kind.kind.clone());
        if (!version.is_empty() && version != served.0) || (!named.is_empty() && named != served.1) {
            return Err(ApiError::bad_request(format!(
                "{named} in version {version:?} cannot be handled as a {}: the URL is for {} in version {:?}",
                kind.kind, served.1, served.0
            )));
        }
        object.insert("apiVersion".to_owned(), served.0.into());
        object.insert("kind".to_owned(), served.1.into());
        self.checked(body)
    }

    fn checked(&mut self, mut object: Value) -> Result<Value, ApiError> {
        let kind = self.kind();
        schema::coerce(kind, &mut object);
        let defects = schema::check_fields(kind, &object);
        let (unknown, wrong): (Vec<_>, Vec<_>) =
            defects.into_iter().partition(|defect| defect.reason == DefectReason::Unknown);
        if let Some(first) = wrong.first() {
            return Err(ApiError::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: {}",
                kind.kind, kind.version, kind.kind, first.message
            )));
        }
        // Told once, although a patch is checked again each time that it is tried.
        let twice = std::mem::take(&mut self.twice);
        if unknown.is_empty() && twice.is_empty() {
            return Ok(object);
        }
        let messages: Vec<String> = unknown.into_iter().map(|defect| defect.message).chain(twice).collect();
        match self.query.field_validation()? {
            FieldValidation::Strict => {
                return Err(ApiError::bad_request(format!("strict decoding error: {}", messages.join(", "))));
            }
            FieldValidation::Warn => self.warnings.extend(messages),
            FieldValidation::Ignore => {}
        }
        schema::prune_unknown(kind, &mut object);
        Ok(object)
    }

    /// The namespace of the URL is the object's.
    fn place(&self, object: &mut Value) -> Result<(), ApiError> {
        let said = meta(object, "namespace").to_owned();
        let namespace = &self.resource.namespace;
        if self.kind().namespaced && !said.is_empty() && said != *namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
                    .to_owned(),
            ));
        }
        let fields = metadata(object);
        if self.kind().namespaced {
            fields.insert("namespace".to_owned(), namespace.clone().into());
        } else {
            fields.remove("namespace");
        }
        Ok(())
    }

    async fn put(&self, object: &Value, expect: Expect) -> Result<Bytes, Lost> {
        let kind = self.kind();
        let stored = convert::to_stored(kind, object);
        let template = object::template(&stored);
        if template.size_bytes() > MAX_OBJECT_BYTES {
            return Err(Lost::Error(ApiError::too_large(MAX_OBJECT_BYTES)));
        }
        if self.query.dry_run()? {
            let revision = meta(object, "resourceVersion").parse().ok();
            if matches!(expect, Expect::Absent) && crate::read::entry(self.inner, &self.named(object)).is_ok()
            {
                return Err(Lost::Race);
            }
            return Ok(match revision {
                Some(revision) => template.fill(revision),
                None => stored.to_string().into(),
            });
        }
        let head = Head::of(kind.stored(), &stored);
        let durability = strategy::durability(kind, self.subresource());
        self.commit(object, expect, Write::Put { value: template, head }, durability).await
    }

    /// Removes the object; watchers see it as it last was.
    pub(crate) async fn remove(&self, last: &Value, expect: Expect) -> Result<Bytes, Lost> {
        let stored = convert::to_stored(self.kind(), last);
        let template = object::template(&stored);
        if self.query.dry_run()? {
            return Ok(stored.to_string().into());
        }
        self.commit(last, expect, Write::Delete { last: template }, strategy::durability(self.kind(), None))
            .await
    }

    /// Stores an object that has got the marks of its deletion.
    pub(crate) async fn store_marked(&self, marked: &Value, expect: Expect) -> Result<Bytes, Lost> {
        self.put(marked, expect).await
    }

    async fn commit(
        &self,
        object: &Value,
        expect: Expect,
        write: Write<Head>,
        durability: Durability,
    ) -> Result<Bytes, Lost> {
        let key = object::key(self.kind(), meta(object, "namespace"), meta(object, "name"));
        let change = Change { key: key.into(), expect, write, durability };
        match self.inner.store.commit(change).await {
            Ok(entry) => Ok(entry.value),
            Err(store::Error::Conflict { .. }) => Err(Lost::Race),
            Err(error) => Err(Lost::Error(ApiError::internal(&error))),
        }
    }

    /// The resource of this object, for requests to a collection.
    fn named(&self, object: &Value) -> Resource {
        Resource { name: Some(meta(object, "name").to_owned()), ..self.resource.clone() }
    }
}

/// The server's own writes: creates an object, or updates the one named. An object that exists already is success.
pub(crate) async fn own(
    inner: &Inner,
    kind: &'static Kind,
    namespace: &str,
    name: Option<&str>,
    object: Value,
) -> Result<(), ApiError> {
    let resource =
        Resource { kind, namespace: namespace.to_owned(), name: name.map(str::to_owned), subresource: None };
    let user = User::room(OWN_NAME);
    let mut asked = own_asked(inner, &user, &resource);
    let written = match name {
        Some(_) => asked.update(object).await,
        None => asked.create(object).await,
    };
    match written {
        Err(error) if error.reason != "AlreadyExists" => Err(error),
        _ => Ok(()),
    }
}

/// The server's own write of a status. An object that is gone or changes under it is success: a later round comes.
pub(crate) async fn status(
    inner: &Inner,
    kind: &'static Kind,
    namespace: &str,
    object: Value,
) -> Result<(), ApiError> {
    let resource = Resource {
        kind,
        namespace: namespace.to_owned(),
        name: Some(meta(&object, "name").to_owned()),
        subresource: Some("status".to_owned()),
    };
    match own_asked(inner, &User::room(OWN_NAME), &resource).update(object).await {
        Err(error) if error.code != 404 && error.code != 409 => Err(error),
        _ => Ok(()),
    }
}

/// The server's own deletion of a collection, or of one object. One that is gone already is success.
pub(crate) async fn own_delete(
    inner: &Inner,
    resource: &Resource,
    options: &crate::delete::Options,
) -> Result<(), ApiError> {
    let user = User::room(OWN_NAME);
    let mut asked = own_asked(inner, &user, resource);
    let done = match resource.name {
        Some(_) => crate::delete::one(&mut asked, options).await.map(drop),
        None => crate::delete::collection(&mut asked, options).await.map(drop),
    };
    done.or_else(|error| if error.code == 404 { Ok(()) } else { Err(error) })
}

const OWN_NAME: &str = "holdfast-apiserver";

fn own_asked<'a>(inner: &'a Inner, user: &'a User, resource: &'a Resource) -> Asked<'a> {
    static NOTHING: std::sync::LazyLock<(Query, HeaderMap)> = std::sync::LazyLock::new(Default::default);
    let (query, headers) = &*NOTHING;
    Asked { inner, user, resource, query, headers, twice: Vec::new(), warnings: Vec::new() }
}

/// Why a write did not happen.
pub(crate) enum Lost {
    /// Another writer came first.
    Race,
    /// It cannot be done.
    Error(ApiError),
}

impl From<ApiError> for Lost {
    fn from(error: ApiError) -> Lost {
        Lost::Error(error)
    }
}

/// The documented types of patches.
pub(crate) const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

pub(crate) fn modified(kind: &Kind, name: &str) -> ApiError {
    ApiError::conflict(kind, name, api::error::MODIFIED)
}

pub(crate) fn wrong_uid(kind: &Kind, name: &str, asked: &str, live: &str) -> ApiError {
    ApiError::conflict(
        kind,
        name,
        &format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {live}"),
    )
}

fn invalid(kind: &Kind, name: &str, defects: Vec<api::schema::Defect>) -> Result<(), ApiError> {
    if defects.is_empty() { Ok(()) } else { Err(ApiError::invalid(kind, name, defects)) }
}

/// `generateName` gets five characters of Kubernetes' alphabet.
fn name_it(fields: &mut serde_json::Map<String, Value>) {
    let has_name = fields.get("name").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
    let prefix = fields.get("generateName").and_then(Value::as_str).unwrap_or_default();
    if has_name || prefix.is_empty() {
        return;
    }
    let name = format!("{prefix}{}", random_suffix());
    fields.insert("name".to_owned(), name.into());
}

/// Five characters that spell no word, as Kubernetes ends the names it makes.
pub(crate) fn random_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = uuid::Uuid::new_v4();
    let bytes = random.as_bytes()[..5].iter();
    bytes.map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}

/// Times in objects have whole seconds.
pub(crate) fn seconds(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A body that cannot be stored, for documents that are answered and forgotten.
pub(crate) fn success(kind: &Kind, object: &Value) -> Bytes {
    let details = json!({ "name": meta(object, "name"), "group": kind.group, "kind": kind.plural, "uid": meta(object, "uid") });
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
        .to_string()
        .into()
}
