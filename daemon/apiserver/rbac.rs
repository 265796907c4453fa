//! Whether a user may do what is asked, by the Roles and bindings in the store.
//!
//! Invariant: rules only allow; what no rule allows is forbidden, in the words that Kubernetes documents.
//! Invariant: a decision is made from one snapshot; what was parsed is kept by the revision that wrote it.

pub(crate) mod bootstrap;
pub(crate) mod escalation;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::error::ApiError;
use api::kinds::{self, Kind};
use api::select::Labels;
use serde::Deserialize;
use store::{Entry, Snapshot};

use crate::auth::User;
use crate::path::{Target, Verb};
use crate::query::Query;
use crate::{Head, Inner, object};

/// The group of Roles and bindings.
pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
/// So many parsed objects are kept; then all are forgotten and parsed anew.
const KEPT: usize = 4096;
/// Roles made of roles made of roles end here, so that a circle ends.
const MAX_PARTS_OF_PARTS: u8 = 4;

/// What is asked, in the words of RBAC. A `path` is asked for where there is no resource.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Attributes<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) path: &'a str,
}

/// Whether, and by which binding.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Decision {
    pub(crate) allowed: bool,
    pub(crate) reason: String,
}

/// One rule of a Role or ClusterRole.
#[derive(Debug, Clone, Deserialize, Default, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Rule {
    pub(crate) verbs: Vec<String>,
    pub(crate) api_groups: Vec<String>,
    pub(crate) resources: Vec<String>,
    pub(crate) resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub(crate) non_resource_urls: Vec<String>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Role {
    rules: Option<Vec<Rule>>,
    aggregation_rule: Option<Aggregation>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Aggregation {
    cluster_role_selectors: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Binding {
    metadata: Named,
    subjects: Option<Vec<Subject>>,
    role_ref: Subject,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct Named {
    name: String,
    namespace: String,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

/// Parsed Roles and bindings by key and revision.
#[derive(Default)]
pub(crate) struct Parsed {
    roles: Kept<Role>,
    bindings: Kept<Binding>,
}

/// By key: the revision that wrote it, and what it says.
type ByKey<T> = HashMap<Arc<str>, (u64, Arc<T>)>;

struct Kept<T>(Mutex<ByKey<T>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept(Mutex::new(HashMap::new()))
    }
}

impl<T: Default + for<'a> Deserialize<'a>> Kept<T> {
    fn of(&self, entry: &Entry<Head>) -> Arc<T> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((modified, parsed)) = kept.get(&entry.key)
            && *modified == entry.modified
        {
            return Arc::clone(parsed);
        }
        if kept.len() >= KEPT {
            kept.clear();
        }
        // What was stored was validated; a form that cannot be read grants nothing.
        let parsed: Arc<T> = Arc::new(serde_json::from_slice(&entry.value).unwrap_or_default());
        kept.insert(Arc::clone(&entry.key), (entry.modified, Arc::clone(&parsed)));
        parsed
    }
}

/// Refuses what the user may not do.
pub(crate) fn check(
    inner: &Inner,
    user: &User,
    verb: Verb,
    target: &Target,
    query: &Query,
) -> Result<(), ApiError> {
    if user.may_everything() {
        return Ok(());
    }
    let mut selected = None;
    let asked = match target {
        Target::Document(path) => Attributes { verb: verb.name(), path, ..Attributes::default() },
        Target::Resource(resource) => {
            if matches!(verb, Verb::List | Verb::Watch | Verb::DeleteCollection) {
                let fields =
                    query.get("fieldSelector").and_then(|text| api::select::Fields::parse(text).ok());
                selected = fields.and_then(|fields| fields.required("metadata.name").map(str::to_owned));
            }
            let kind = resource.kind;
            let own_namespace = kind.kind == "Namespace" && kind.group.is_empty();
            let name = resource.name.as_deref().or(selected.as_deref()).unwrap_or_default();
            Attributes {
                verb: verb.name(),
                group: &kind.group,
                resource: &kind.plural,
                subresource: resource.subresource.as_deref().unwrap_or_default(),
                // A namespace lies in itself, as far as Roles are concerned.
                namespace: if own_namespace { name } else { &resource.namespace },
                name,
                path: "",
            }
        }
    };
    if authorize(inner, user, &asked).allowed {
        return Ok(());
    }
    Err(refusal(user, &asked))
}

/// A WebSocket is opened by GET, but whoever opens one to a pod must be allowed to create it, as with SPDY's POST.
pub(crate) fn check_upgrade(
    inner: &Inner,
    user: &User,
    verb: Verb,
    resource: &crate::path::Resource,
) -> Result<(), ApiError> {
    if verb != Verb::Get || resource.subresource.as_deref() == Some("log") {
        return Ok(());
    }
    check(inner, user, Verb::Create, &Target::Resource(resource.clone()), &Query::default())
}

/// 403 in the documented words.
pub(crate) fn refusal(user: &User, asked: &Attributes<'_>) -> ApiError {
    let who = format!("User {:?} cannot {}", user.name, asked.verb);
    if !asked.path.is_empty() {
        return ApiError {
            code: 403,
            reason: "Forbidden",
            message: format!("forbidden: {who} path {:?}", asked.path),
            details: serde_json::json!({}),
        };
    }
    let scope = match asked.namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let resource = resource_path(asked);
    let why = format!("{who} resource {resource:?} in API group {:?} {scope}", asked.group);
    let of = if asked.group.is_empty() {
        asked.resource.to_owned()
    } else {
        format!("{}.{}", asked.resource, asked.group)
    };
    let message = match asked.name {
        "" => format!("{of} is forbidden: {why}"),
        name => format!("{of} {name:?} is forbidden: {why}"),
    };
    let mut details = serde_json::Map::new();
    for (field, value) in [("name", asked.name), ("group", asked.group), ("kind", asked.resource)] {
        if !value.is_empty() {
            details.insert(field.to_owned(), value.into());
        }
    }
    ApiError { code: 403, reason: "Forbidden", message, details: details.into() }
}

/// The decision of the rules, and of membership in `system:masters`.
pub(crate) fn authorize(inner: &Inner, user: &User, asked: &Attributes<'_>) -> Decision {
    if user.may_everything() {
        return Decision { allowed: true, reason: String::new() };
    }
    let mut decision = Decision::default();
    visit(inner, user, asked.namespace, |granted, rule| {
        decision.allowed = rule.allows(asked);
        if decision.allowed {
            decision.reason = format!("RBAC: allowed by {granted}");
        }
        !decision.allowed
    });
    decision
}

/// Every rule that holds for the user in a namespace (empty: the cluster).
pub(crate) fn rules_of(inner: &Inner, user: &User, namespace: &str) -> Vec<Rule> {
    let mut rules = Vec::new();
    if user.may_everything() {
        let all = || vec!["*".to_owned()];
        rules.push(Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() });
        rules.push(Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() });
    }
    visit(inner, user, namespace, |_, rule| {
        rules.push(rule.clone());
        true
    });
    rules
}

/// Shows each rule and what grants it, until told to stop.
fn visit(inner: &Inner, user: &User, namespace: &str, mut show: impl FnMut(&Granted<'_>, &Rule) -> bool) {
    let snapshot = inner.store.snapshot();
    let places: &[(&'static str, &str)] = match namespace {
        "" => &[("ClusterRoleBinding", "")],
        namespace => &[("ClusterRoleBinding", ""), ("RoleBinding", namespace)],
    };
    for (kind, place) in places {
        let Some(row) = row(kind) else { continue };
        for entry in snapshot.range(&object::prefix(row, place), None) {
            let binding = inner.parsed.bindings.of(entry);
            let subjects = binding.subjects.iter().flatten();
            let mut matching = subjects.filter(|subject| subject.is(user, place));
            let Some(subject) = matching.next() else { continue };
            let granted = Granted { kind, binding: &binding, subject };
            for rule in rules_of_role(inner, &snapshot, &binding.role_ref, place) {
                if !show(&granted, &rule) {
                    return;
                }
            }
        }
    }
}

/// What a binding of a namespace refers to: a Role there, or a ClusterRole.
fn rules_of_role(inner: &Inner, snapshot: &Snapshot<Head>, role: &Subject, namespace: &str) -> Vec<Rule> {
    let (kind, place) = if role.kind == "Role" { ("Role", namespace) } else { ("ClusterRole", "") };
    let Some(row) = row(kind) else { return Vec::new() };
    let Some(entry) = snapshot.get(&object::key(row, place, &role.name)) else { return Vec::new() };
    let role = inner.parsed.roles.of(entry);
    match &role.aggregation_rule {
        // Rules of an aggregated role are whatever its parts say now, however far whoever writes them down has come.
        Some(aggregation) => aggregated(inner, snapshot, row, &entry.key, aggregation, 0),
        None => role.rules.clone().unwrap_or_default(),
    }
}

/// The rules of all parts, each once; parts may be made of parts.
fn aggregated(
    inner: &Inner,
    snapshot: &Snapshot<Head>,
    row: &Kind,
    own: &str,
    aggregation: &Aggregation,
    depth: u8,
) -> Vec<Rule> {
    let selectors: Vec<Labels> =
        aggregation.cluster_role_selectors.iter().filter_map(|one| Labels::from_selector(one).ok()).collect();
    let mut rules: Vec<Rule> = Vec::new();
    for entry in snapshot.range(&object::prefix(row, ""), None) {
        if *entry.key == *own || !selectors.iter().any(|one| one.matches(&entry.head.labels)) {
            continue;
        }
        let part = inner.parsed.roles.of(entry);
        let of_part = match &part.aggregation_rule {
            Some(deeper) if depth < MAX_PARTS_OF_PARTS => {
                aggregated(inner, snapshot, row, &entry.key, deeper, depth + 1)
            }
            Some(_) => Vec::new(),
            None => part.rules.clone().unwrap_or_default(),
        };
        for rule in of_part {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    rules
}

struct Granted<'a> {
    kind: &'a str,
    binding: &'a Binding,
    subject: &'a Subject,
}

impl std::fmt::Display for Granted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Granted { kind, binding, subject } = self;
        let place = |namespace: &str, name: &str| match namespace {
            "" => name.to_owned(),
            namespace => format!("{namespace}/{name}"),
        };
        let bound = place(&binding.metadata.namespace, &binding.metadata.name);
        let role = &binding.role_ref;
        write!(f, "{kind} {bound:?} of {} {:?} to {} ", role.kind, role.name, subject.kind)?;
        match subject.kind.as_str() {
            "ServiceAccount" => write!(f, "{:?}", format!("{}/{}", subject.name, subject.namespace)),
            _ => write!(f, "{:?}", subject.name),
        }
    }
}

impl Subject {
    fn is(&self, user: &User, binding_namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => self.name == user.name,
            "Group" => user.groups.contains(&self.name),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { binding_namespace } else { &self.namespace };
                let rest = user.name.strip_prefix("system:serviceaccount:");
                !namespace.is_empty()
                    && rest.and_then(|rest| rest.split_once(':')) == Some((namespace, self.name.as_str()))
            }
            _ => false,
        }
    }
}

impl Rule {
    fn allows(&self, asked: &Attributes<'_>) -> bool {
        if !has(&self.verbs, asked.verb) {
            return false;
        }
        if !asked.path.is_empty() {
            return self.non_resource_urls.iter().any(|url| path_matches(url, asked.path));
        }
        has(&self.api_groups, asked.group)
            && self.allows_resource(asked)
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == asked.name))
    }

    fn allows_resource(&self, asked: &Attributes<'_>) -> bool {
        let whole = resource_path(asked);
        self.resources.iter().any(|known| {
            known == "*"
                || *known == whole
                || (!asked.subresource.is_empty() && known.strip_prefix("*/") == Some(asked.subresource))
        })
    }
}

/// `pods/log`, or `pods`.
fn resource_path(asked: &Attributes<'_>) -> String {
    match asked.subresource {
        "" => asked.resource.to_owned(),
        subresource => format!("{}/{subresource}", asked.resource),
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == "*" || one == wanted)
}

/// `*`, the path itself, or a prefix with a star at its end.
fn path_matches(known: &str, path: &str) -> bool {
    known == "*" || known == path || known.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

fn row(kind: &str) -> Option<&'static Kind> {
    kinds::by_kind("rbac.authorization.k8s.io/v1", kind)
}

#[cfg(test)]
mod tests;
