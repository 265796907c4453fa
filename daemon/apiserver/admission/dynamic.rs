//! Admission that users define: ValidatingAdmissionPolicies, and webhooks that change or refuse what is written.
//!
//! Invariant: the order is Kubernetes': mutating webhooks by name after the built-in plugins, then, with the object
//! complete and valid, policies and validating webhooks, all of which are heard; quota comes after them.
//! Invariant: the configuration of admission itself is never shown to it, so that no mistake locks its author out.

mod matching;
mod mutation;
mod policy;
mod webhook;

use api::error::ApiError;
use api::kinds::Kind;
use api::schema;
use serde_json::{Value, json};

use crate::Inner;
use crate::auth::User;
use crate::object::meta;
use crate::path::Resource;
use crate::query::Query;
use crate::write::Asked;

use mutation::Turn;
pub(crate) use policy::noted;

const GROUP_VERSION: &str = "admissionregistration.k8s.io/v1";

/// What is done with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }

    fn options(self) -> Option<&'static str> {
        match self {
            Operation::Create => Some("CreateOptions"),
            Operation::Update => Some("UpdateOptions"),
            Operation::Delete => Some("DeleteOptions"),
            Operation::Connect => None,
        }
    }
}

/// One request as policies and webhooks see it.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a> {
    pub(crate) inner: &'a Inner,
    pub(crate) user: &'a User,
    pub(crate) resource: &'a Resource,
    pub(crate) query: &'a Query,
    pub(crate) operation: Operation,
    /// What is to be; none when it is deleted.
    pub(crate) object: Option<&'a Value>,
    /// What is; none when it is created.
    pub(crate) old: Option<&'a Value>,
}

impl Attributes<'_> {
    fn kind(&self) -> &'static Kind {
        self.resource.kind
    }

    fn subresource(&self) -> &str {
        self.resource.subresource.as_deref().unwrap_or_default()
    }

    fn name(&self) -> &str {
        let named = [self.object, self.old].into_iter().flatten().map(|object| meta(object, "name"));
        let mut named = named.filter(|name| !name.is_empty());
        self.resource.name.as_deref().or_else(|| named.next()).unwrap_or_default()
    }

    /// Of a Namespace it is its own.
    fn namespace(&self) -> &str {
        let kind = self.kind();
        if kind.kind == "Namespace" && kind.group.is_empty() { self.name() } else { &self.resource.namespace }
    }

    /// `admission.k8s.io/v1` `AdmissionRequest` without the objects, which is also what expressions know as `request`.
    fn request(&self, uid: &str) -> Value {
        let kind = self.kind();
        let connect = self.operation == Operation::Connect;
        let shown = match self.object {
            Some(object) if connect => object["kind"].as_str().unwrap_or(&kind.kind),
            _ => kind.kind.as_str(),
        };
        let of_kind = json!({ "group": kind.group, "version": kind.version, "kind": shown });
        let of_resource = json!({ "group": kind.group, "version": kind.version, "resource": kind.plural });
        let mut request = json!({
            "uid": uid, "kind": of_kind, "resource": of_resource, "requestKind": of_kind, "requestResource": of_resource,
            "operation": self.operation.name(), "userInfo": self.user.to_json(),
            "dryRun": self.query.dry_run().unwrap_or(false),
        });
        for (field, value) in [("name", self.name()), ("namespace", self.namespace())] {
            if !value.is_empty() {
                request[field] = value.into();
            }
        }
        if !self.subresource().is_empty() {
            request["subResource"] = self.subresource().into();
            request["requestSubResource"] = self.subresource().into();
        }
        if let Some(options) = self.operation.options() {
            request["options"] = json!({ "apiVersion": "meta.k8s.io/v1", "kind": options });
            if let Some(manager) = self.query.get("fieldManager") {
                request["options"]["fieldManager"] = manager.into();
            }
        }
        request
    }

    /// Whether admission has no say: it is about its own configuration.
    fn is_exempt(&self) -> bool {
        let kind = self.kind();
        kind.group == "admissionregistration.k8s.io"
            && (kind.kind.contains("AdmissionPolicy") || kind.kind.contains("WebhookConfiguration"))
    }
}

/// Lets the mutating webhooks change the object.
pub(crate) async fn mutate(
    request: Attributes<'_>,
    object: &mut Value,
    warnings: &mut Vec<String>,
) -> Result<bool, ApiError> {
    if request.is_exempt() {
        return Ok(false);
    }
    let changed = mutation::mutate(request, object, Turn::First)?;
    if !webhook::mutate(request, object, warnings).await? {
        return Ok(changed);
    }
    mutation::mutate(request, object, Turn::Again)?;
    Ok(true)
}

/// Asks policies and validating webhooks.
pub(crate) async fn validate(request: Attributes<'_>, warnings: &mut Vec<String>) -> Result<(), ApiError> {
    if request.is_exempt() {
        return Ok(());
    }
    policy::judge(request, warnings)?;
    webhook::validate(request, warnings).await
}

/// Asks everybody about the deletion of an object; nobody can change it.
pub(crate) async fn on_delete(
    asked: &crate::write::Asked<'_>,
    old: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    let request = Attributes {
        inner: asked.inner,
        user: asked.user,
        resource: asked.resource,
        query: asked.query,
        operation: Operation::Delete,
        object: None,
        old: Some(old),
    };
    mutate(request, &mut Value::Null, warnings).await?;
    validate(request, warnings).await
}

/// Asks everybody about a connection to a pod, a Service or a node: exec, attach, port-forward and proxy.
pub(crate) async fn on_connect(
    inner: &Inner,
    user: &User,
    resource: &Resource,
    query: &Query,
) -> Result<(), ApiError> {
    let kind = match resource.subresource.as_deref() {
        Some("exec") => "PodExecOptions".to_owned(),
        Some("attach") => "PodAttachOptions".to_owned(),
        Some("portforward") => "PodPortForwardOptions".to_owned(),
        Some("proxy") => format!("{}ProxyOptions", resource.kind.kind),
        _ => return Ok(()),
    };
    let mut options = json!({ "apiVersion": "v1", "kind": kind });
    for flag in ["stdin", "stdout", "stderr", "tty"].into_iter().filter(|flag| query.flag(flag)) {
        options[flag] = true.into();
    }
    if let Some(container) = query.get("container") {
        options["container"] = container.into();
    }
    if kind == "PodExecOptions" {
        options["command"] = query.all("command").into();
    }
    let request = Attributes {
        inner,
        user,
        resource,
        query,
        operation: Operation::Connect,
        object: Some(&options),
        old: None,
    };
    // A connection has no answer that a warning could come with.
    let mut warnings = Vec::new();
    mutate(request, &mut options.clone(), &mut warnings).await?;
    validate(request, &mut warnings).await
}

impl Asked<'_> {
    fn attributes<'a>(&'a self, old: Option<&'a Value>, object: &'a Value) -> Attributes<'a> {
        Attributes {
            inner: self.inner,
            user: self.user,
            resource: self.resource,
            query: self.query,
            operation: if old.is_some() { Operation::Update } else { Operation::Create },
            object: Some(object),
            old,
        }
    }

    /// Lets the webhooks change what is to be written; what they wrote is decoded and defaulted like a client's.
    pub(crate) async fn ask_to_change(
        &mut self,
        old: Option<&Value>,
        object: &mut Value,
    ) -> Result<(), ApiError> {
        if !webhook::may_change(self.inner) && !mutation::may_change(self.inner) {
            return Ok(());
        }
        let (seen, mut told) = (object.clone(), Vec::new());
        let changed = mutate(self.attributes(old, &seen), object, &mut told).await?;
        self.warnings.extend(told);
        if changed {
            let kind = self.resource.kind;
            schema::coerce(kind, object);
            schema::prune_unknown(kind, object);
            schema::defaults(kind, object);
        }
        Ok(())
    }

    /// Asks policies and webhooks whether an object may be written as it is now.
    pub(crate) async fn ask_to_allow(&mut self, old: Option<&Value>, object: &Value) -> Result<(), ApiError> {
        let mut told = Vec::new();
        let allowed = validate(self.attributes(old, object), &mut told).await;
        self.warnings.extend(told);
        allowed
    }
}
