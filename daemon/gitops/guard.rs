//! Why an object that the files want no more is not deleted yet.
//!
//! Invariant: pure; nothing is pruned that a person may still have meant to keep.

use std::collections::BTreeMap;

use crate::build::Id;
use crate::marks::Prune;
use crate::plan::{Gone, Verdict, View, Wanted, is_ours};

/// Fewer objects than this are no share of anything.
const FEW: usize = 5;

/// Why something is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) why: String,
    /// A person can lift it.
    pub(crate) confirm: bool,
}

/// What is kept, and why.
pub(crate) fn holds(view: &View) -> BTreeMap<Id, Hold> {
    let mut holds = BTreeMap::new();
    let mut free = Vec::new();
    for gone in &view.gone {
        let id = gone.told.id();
        match prune_hold(view, gone) {
            Some(why) => {
                holds.insert(id, Hold { why, confirm: false });
            }
            None if gone.live.as_ref().is_some_and(|live| is_ours(view, live) && !live.deleting) => {
                free.push(gone);
            }
            None => {}
        }
    }
    if trailer(view) {
        return holds;
    }
    let all = view.desired.len() + view.gone.len();
    let share = usize::from(view.application.prune_share_most);
    let many = free.len() > FEW && free.len() * 100 > all * share;
    for gone in &free {
        let id = gone.told.id();
        let Some(why) = guarded(gone, many.then_some((free.len(), all))) else { continue };
        if !view.decisions.confirmed.contains(&id.to_string()) {
            let why = format!("{why}; `holdfast confirm {}` lets it go", view.application.name);
            holds.insert(id, Hold { why, confirm: true });
        }
    }
    holds
}

/// Why a deletion needs a person's word.
fn guarded(gone: &Gone, many: Option<(usize, usize)>) -> Option<String> {
    let prune = gone.live.as_ref().map_or(Prune::Guarded, |live| live.prune);
    let what = match gone.told.kind.as_str() {
        _ if prune == Prune::Always => return None,
        _ if prune == Prune::Confirm => "its annotation asks for a confirmation",
        "Namespace" => "everything in the namespace would go with it",
        "PersistentVolumeClaim" => "the data on its volume would go with it",
        "PersistentVolume" => "it stands for data",
        "CustomResourceDefinition" => "every object of its kind would go with it",
        _ => return many.map(|(some, all)| format!("{some} of {all} objects would go at once")),
    };
    Some(what.to_owned())
}

/// The commit itself may say that it is meant.
fn trailer(view: &View) -> bool {
    let message =
        view.sourced.snapshot.as_ref().and_then(|snapshot| snapshot.message.as_deref()).unwrap_or_default();
    message.lines().any(|line| {
        line.split_once(':').is_some_and(|(name, value)| {
            name.trim().eq_ignore_ascii_case("Holdfast-Prune") && value.trim().eq_ignore_ascii_case("confirm")
        })
    })
}

/// Why an object that is no longer wanted is not deleted, whatever a person says; nothing if it may be.
fn prune_hold(view: &View, gone: &Gone) -> Option<String> {
    let id = gone.told.id();
    if view.sourced.snapshot.is_none() {
        return Some("the source was not read yet".to_owned());
    }
    if !view.application.prune {
        return Some("prune is off for this application".to_owned());
    }
    if gone.live.as_ref().is_some_and(|live| live.prune == Prune::Never) {
        return Some("its annotation says that it is never pruned".to_owned());
    }
    if view.kept_back.contains_key(&id) {
        return Some(format!("its text in {} has a defect", gone.told.file));
    }
    for (file, bytes) in &view.unread {
        // A lone slash stands for every file: a kustomization that cannot be rendered.
        let below = file.ends_with('/') && (&**file == "/" || gone.told.file.starts_with(&**file));
        if gone.told.file == **file || below {
            return Some(format!("{file} cannot be read"));
        }
        if mentions(bytes, &id.name) {
            return Some(format!("{file}, which cannot be read, names it"));
        }
    }
    // Renamed in its file, and the new one cannot be made: the old one serves until it can.
    let replaces = |other: &Id, file: &str| {
        other.kind == id.kind
            && other.group == id.group
            && other.namespace == id.namespace
            && file == gone.told.file
    };
    let absent = |wanted: &&Wanted| matches!(wanted.verdict, Verdict::Failed(_)) && wanted.live.is_none();
    let failed = view.desired.iter().filter(absent).map(|wanted| (&wanted.object.id, &wanted.object.file));
    let known = view.told.inventory();
    let fresh = view.kept_back.iter().filter(|(other, _)| !known.contains_key(other));
    let successor = failed.chain(fresh).find(|(other, file)| replaces(other, file)).map(|(other, _)| other);
    if let Some(successor) = successor {
        return Some(format!("{successor}, which may be meant to replace it, is not there yet"));
    }
    if view.desired.is_empty() && view.kept_back.is_empty() && !view.application.allow_empty {
        return Some("nothing is left in the source; allow_empty = true would delete all of it".to_owned());
    }
    None
}

fn mentions(text: &[u8], name: &str) -> bool {
    let inside = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'.';
    let name = name.as_bytes();
    text.windows(name.len().max(1)).enumerate().any(|(at, window)| {
        window == name
            && !at.checked_sub(1).and_then(|before| text.get(before)).is_some_and(inside)
            && !text.get(at + name.len()).is_some_and(inside)
    })
}
