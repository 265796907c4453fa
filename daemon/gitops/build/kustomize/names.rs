//! Names that changed, corrected wherever other objects call them.
//!
//! Invariant: a reference is rewritten only to an object that was called so, and only when it is clear which one is meant.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::config::Referred;
use super::fields::{Create, visit};
use super::resource::{Gvk, Name, Resource, text};

/// What the rewriting needs to know of an object that may be meant.
struct Candidate {
    now: Name,
    before: Vec<Name>,
    prefixes: Vec<String>,
    suffixes: Vec<String>,
}

/// Rewrites all references.
pub(super) fn correct(resources: &mut [Resource], references: &[Referred]) -> Result<(), (usize, String)> {
    let candidates: Vec<Candidate> = resources
        .iter()
        .map(|resource| Candidate {
            now: resource.current(),
            before: resource.before(),
            prefixes: resource.prefixes.clone(),
            suffixes: resource.suffixes.clone(),
        })
        .collect();
    let mut by_name: HashMap<&str, Vec<&Candidate>> = HashMap::new();
    for candidate in &candidates {
        let names: BTreeSet<&str> = candidate.before.iter().map(|before| before.name.as_str()).collect();
        names.into_iter().for_each(|name| by_name.entry(name).or_default().push(candidate));
    }
    for (at, resource) in resources.iter_mut().enumerate() {
        let original = resource.original().gvk;
        let around = Around {
            referrer: &candidates[at],
            bound: bound_namespaces(resource),
            all: &candidates,
            by_name: &by_name,
        };
        for referred in references {
            for spec in &referred.specs {
                if !original.is_selected(&spec.gvk()) {
                    continue;
                }
                let now = Gvk::of(&resource.value);
                let own = super::fields::FieldSpec {
                    group: now.group,
                    version: now.version,
                    kind: now.kind,
                    ..spec.clone()
                };
                let role = spec.path.ends_with("roleRef/name").then(|| role_kind(&resource.value)).flatten();
                let reference = Reference { to: referred.gvk(), role, around: &around };
                visit(&own, &mut resource.value, Create::Nothing, &mut |place| reference.correct(place))
                    .map_err(|why| (at, why))?;
            }
        }
    }
    Ok(())
}

/// What one object can see of the others.
struct Around<'a> {
    referrer: &'a Candidate,
    /// Namespaces of accounts that it binds.
    bound: BTreeSet<String>,
    all: &'a [Candidate],
    /// By the names that they had before.
    by_name: &'a HashMap<&'a str, Vec<&'a Candidate>>,
}

impl<'a> Around<'a> {
    /// Objects that may be referred to: those of its namespace, those without, and what a role binding names.
    fn reaches(&self, other: &Candidate) -> bool {
        self.referrer.now.is_cluster_scoped()
            || other.now.is_cluster_scoped()
            || other.now.effective() == self.referrer.now.effective()
            || self.bound.contains(&other.now.namespace)
    }

    fn called(&self, name: &str) -> Vec<&'a Candidate> {
        let all = self.by_name.get(name).into_iter().flatten();
        all.copied().filter(|candidate| self.reaches(candidate)).collect()
    }

    /// Those of a namespace, by the one they had at first; by the one they have now where none had it.
    fn called_in(&self, name: &str, namespace: &str) -> Vec<&'a Candidate> {
        let at_first = |candidate: &Candidate| {
            candidate.before.first().unwrap_or(&candidate.now).effective() == namespace
        };
        let now = |candidate: &Candidate| candidate.now.effective() == namespace;
        let any = self.all.iter().any(|candidate| self.reaches(candidate) && at_first(candidate));
        let mut found = self.called(name);
        found.retain(|candidate| if any { at_first(candidate) } else { now(candidate) });
        found
    }
}

fn bound_namespaces(resource: &Resource) -> BTreeSet<String> {
    if text(&resource.value["kind"]) != "RoleBinding" {
        return BTreeSet::new();
    }
    let subjects = resource.value["subjects"].as_array().into_iter().flatten();
    let accounts = subjects.filter(|subject| subject["kind"] == "ServiceAccount");
    accounts.map(|subject| text(&subject["namespace"]).to_owned()).collect()
}

fn role_kind(object: &Value) -> Option<Gvk> {
    let role = object.get("roleRef")?;
    Some(Gvk {
        group: role.get("apiGroup")?.as_str()?.to_owned(),
        version: String::new(),
        kind: role.get("kind")?.as_str()?.to_owned(),
    })
}

struct Reference<'a> {
    to: Gvk,
    role: Option<Gvk>,
    around: &'a Around<'a>,
}

impl Reference<'_> {
    /// A name, a map with a name in it, or a list of either.
    fn correct(&self, place: &mut Value) -> Result<(), String> {
        match place {
            Value::Null => Ok(()),
            Value::Array(items) => items.iter_mut().try_for_each(|item| self.correct(item)),
            Value::Object(map) => {
                let Some(name) = map.get("name").map(super::resource::spelled) else {
                    return Err("no 'name' field in the node that the reference leads to".to_owned());
                };
                let candidates = match map.get("namespace").map(super::resource::spelled) {
                    None => self.around.called(&name),
                    Some(namespace) => self.around.called_in(&name, &namespace),
                };
                let same = |one: &&&Candidate, other: &&Candidate| {
                    one.now.name == other.now.name && one.now.namespace == other.now.namespace
                };
                let Some(meant) = self.meant(&name, candidates, same)? else { return Ok(()) };
                if meant.now.name == name && meant.now.namespace.is_empty() {
                    return Ok(());
                }
                map.insert("name".to_owned(), Value::String(meant.now.name.clone()));
                if !meant.now.namespace.is_empty() {
                    map.insert("namespace".to_owned(), Value::String(meant.now.namespace.clone()));
                }
                Ok(())
            }
            scalar => {
                let name = super::resource::spelled(scalar);
                let same = |one: &&&Candidate, other: &&Candidate| one.now.name == other.now.name;
                if let Some(meant) = self.meant(&name, self.around.called(&name), same)?
                    && meant.now.name != name
                {
                    *scalar = Value::String(meant.now.name.clone());
                }
                Ok(())
            }
        }
    }

    /// The one that is meant, if it is clear.
    fn meant<'c>(
        &self,
        name: &str,
        candidates: Vec<&'c Candidate>,
        same: impl Fn(&&&'c Candidate, &&'c Candidate) -> bool,
    ) -> Result<Option<&'c Candidate>, String> {
        let was = |candidate: &&Candidate| {
            candidate.before.iter().any(|before| before.gvk.is_selected(&self.to))
                && self
                    .role
                    .as_ref()
                    .is_none_or(|role| candidate.before.iter().any(|before| before.gvk.is_selected(role)))
                && self.is_near(candidate)
        };
        let mut left: Vec<&Candidate> = candidates.into_iter().filter(was).collect();
        for open in [true, false] {
            if left.len() > 1 {
                left.retain(|candidate| same_context(candidate, self.around.referrer, open));
            }
        }
        match &left[..] {
            [] => Ok(None),
            [first, rest @ ..] if rest.iter().all(|other| same(&first, other)) => Ok(Some(first)),
            several => {
                let names: Vec<String> = several.iter().map(|candidate| candidate.now.shown()).collect();
                Err(format!("{name} may mean several objects: {}", names.join(", ")))
            }
        }
    }

    fn is_near(&self, candidate: &Candidate) -> bool {
        let referrer = &self.around.referrer.now;
        referrer.is_cluster_scoped()
            || candidate.now.is_cluster_scoped()
            || candidate.now.gvk.kind == "ServiceAccount"
            || candidate.now.effective() == referrer.effective()
    }
}

/// Whether both went through the same kustomizations, as their prefixes and suffixes tell.
fn same_context(one: &Candidate, other: &Candidate, open: bool) -> bool {
    let fits = |a: &[String], b: &[String]| (open && (a.is_empty() || b.is_empty())) || same_ending(a, b);
    fits(&one.prefixes, &other.prefixes) && fits(&one.suffixes, &other.suffixes)
}

fn same_ending(a: &[String], b: &[String]) -> bool {
    let shorter = a.len().min(b.len());
    // An empty list ends like every other.
    a[a.len() - shorter..] == b[b.len() - shorter..]
}
