//! Which revision is held, and when the policy changes its mind: approval, windows, rollback, quarantine.
//!
//! Invariant: pure; self-healing goes on whatever is decided, only against another revision.
//! Invariant: a decision about one revision never binds the next one.

use jiff::Timestamp;

use crate::config::Application;
use crate::policy::{self, Hours, Policy};
use crate::status::{Decisions, Pin, Quarantine, Status, seconds};

/// Revisions remembered as bad.
const MOST_QUARANTINED: usize = 20;

/// The revision to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The newest.
    #[default]
    Newest,
    /// An earlier one.
    Earlier {
        revision: String,
        /// What the newest waits for.
        why: String,
        /// The way it came: empty, `rollback` or `automatic rollback`.
        trigger: &'static str,
    },
    /// None yet.
    None {
        /// What the newest waits for.
        why: String,
    },
}

/// A choice, and when time alone may change it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) choice: Choice,
    pub(crate) until: Option<Timestamp>,
}

/// Chooses for an application whose source has this newest revision.
pub(crate) fn choose(
    application: &Application,
    told: &Status,
    decisions: &Decisions,
    newest: &str,
    now: Timestamp,
) -> Chosen {
    let name = &application.name;
    let plain = |choice| Chosen { choice, until: None };
    if let Some(known) = decisions.quarantine(newest) {
        let back = decisions.pinned.as_ref().map(|pin| (pin.revision.clone(), pin.automatic));
        let held =
            back.or_else(|| Some((told.sync.revision.clone(), false)).filter(|(held, _)| held != newest));
        let why = format!("revision {} is in quarantine: {}", short(newest), known.reason);
        return plain(match held {
            Some((revision, automatic)) if !revision.is_empty() => {
                let trigger = if automatic { "automatic rollback" } else { "rollback" };
                Choice::Earlier { revision, why, trigger }
            }
            _ => Choice::None { why },
        });
    }
    let held = &told.sync.revision;
    if held == newest {
        return Chosen::default();
    }
    let earlier = |why: String| match held.as_str() {
        "" => Choice::None { why },
        held => Choice::Earlier { revision: held.to_owned(), why, trigger: "" },
    };
    if application.policy == Policy::Manual && decisions.approved != newest {
        return plain(earlier(format!(
            "revision {} waits for approval: holdfast approve {name}",
            short(newest)
        )));
    }
    // Checked when the configuration was read.
    let windows: Vec<Hours> = application.window.iter().filter_map(|window| window.parse().ok()).collect();
    let (open, until) = policy::open(&windows, now);
    if !open && decisions.approved != newest {
        let at = until
            .map_or_else(|| "a window".to_owned(), |at| format!("the window that opens {}", seconds(at)));
        let why = format!("revision {} waits for {at}, or for holdfast approve {name}", short(newest));
        return Chosen { choice: earlier(why), until };
    }
    Chosen::default()
}

/// What the policy decides of the revision that is held: too long without health means quarantine.
pub(crate) fn judge(
    application: &Application,
    told: &Status,
    decisions: &Decisions,
    newest: &str,
    now: Timestamp,
) -> (Decisions, Option<Timestamp>) {
    let mut next = decisions.clone();
    // The next revision is tried by itself: what was decided about the one before is over.
    if next.pinned.is_some() && decisions.quarantine(newest).is_none() {
        next.pinned = None;
    }
    let Some(patience) = application.rollback_after else { return (next, None) };
    let Some(current) = told.history.last().filter(|last| last.revision == newest) else {
        return (next, None);
    };
    if next.quarantine(newest).is_some() {
        return (next, None);
    }
    if current.result == "Healthy" || told.sync.revision != newest || application.suspend {
        return (next, None);
    }
    let Some(begun) = current.started_at.parse::<Timestamp>().ok() else { return (next, None) };
    let due = begun + patience.duration();
    if due > now {
        return (next, Some(due));
    }
    let good = told.history.iter().rev().skip(1);
    let back = good
        .filter(|known| known.result == "Healthy" && known.revision != newest)
        .find(|known| next.quarantine(&known.revision).is_none());
    let Some(back) = back else { return (next, None) };
    let at = seconds(now);
    let trouble = match told.health.message.as_str() {
        "" => told.sync.message.clone(),
        message => message.to_owned(),
    };
    let reason = format!("not healthy within {patience}: {trouble}");
    next.pinned = Some(Pin { revision: back.revision.clone(), automatic: true, at: at.clone() });
    next.quarantined.push(Quarantine { revision: newest.to_owned(), reason, at });
    let surplus = next.quarantined.len().saturating_sub(MOST_QUARANTINED);
    next.quarantined.drain(..surplus);
    (next, None)
}

/// The decisions with which a person goes back to a revision; the newest is not tried again.
pub(crate) fn roll_back(told: &Status, decisions: &Decisions, to: &str, now: Timestamp) -> Decisions {
    let mut next = decisions.clone();
    let newest = &told.source.revision;
    let at = seconds(now);
    next.quarantined.retain(|known| known.revision != to);
    if to == newest {
        next.pinned = None;
        return next;
    }
    next.pinned = Some(Pin { revision: to.to_owned(), automatic: false, at: at.clone() });
    if next.quarantine(newest).is_none() {
        let reason = format!("rolled back to {} by hand", short(to));
        next.quarantined.push(Quarantine { revision: newest.clone(), reason, at });
    }
    next
}

/// The revision that `holdfast rollback` without one means: the last healthy one before what is held.
pub(crate) fn last_good(told: &Status) -> Option<String> {
    let held = &told.sync.revision;
    let mut good =
        told.history.iter().rev().filter(|known| known.result == "Healthy" && known.revision != *held);
    good.next().map(|known| known.revision.clone())
}

/// The revision of the history that a person means by its first digits.
pub(crate) fn named(told: &Status, text: &str) -> Result<String, String> {
    let mut found: Vec<&str> = told
        .history
        .iter()
        .map(|known| known.revision.as_str())
        .chain([told.source.revision.as_str()])
        .filter(|known| known.starts_with(text))
        .collect();
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => Err(format!("no revision {text} is in the history; `holdfast history` lists them")),
        _ => Err(format!("{} revisions begin with {text}; give more of it", found.len())),
    }
}

/// A revision as people say it.
pub(crate) fn short(revision: &str) -> &str {
    let hash = revision.len() >= 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    if hash { &revision[..7] } else { revision }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;
    use crate::status::RevisionStatus;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-01-02T12:00:00Z".parse().unwrap()
    }

    fn application(more: serde_json::Value) -> Application {
        let mut all = json!({"name": "demo", "dir": "x"});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn entry(revision: &str, result: &str, started_at: &str) -> RevisionStatus {
        RevisionStatus {
            revision: revision.into(),
            result: result.into(),
            started_at: started_at.into(),
            ..RevisionStatus::default()
        }
    }

    fn told(held: &str, newest: &str, history: Vec<RevisionStatus>) -> Status {
        let mut status = Status { history, ..Status::default() };
        status.sync.revision = held.into();
        status.source.revision = newest.into();
        status
    }

    fn held(chosen: &Chosen) -> &str {
        match &chosen.choice {
            Choice::Newest => "newest",
            Choice::Earlier { revision, .. } => revision,
            Choice::None { .. } => "none",
        }
    }

    #[test]
    fn a_manual_application_holds_what_was_approved() {
        let app = application(json!({"policy": "manual"}));
        let mut decisions = Decisions::default();
        assert_eq!(held(&choose(&app, &told("", "a", vec![]), &decisions, "a", now())), "none");
        assert_eq!(held(&choose(&app, &told("a", "b", vec![]), &decisions, "b", now())), "a");
        decisions.approved = "b".into();
        assert_eq!(held(&choose(&app, &told("a", "b", vec![]), &decisions, "b", now())), "newest");
        assert_eq!(held(&choose(&app, &told("b", "c", vec![]), &decisions, "c", now())), "b");
        assert_eq!(held(&choose(&app, &told("b", "b", vec![]), &Decisions::default(), "b", now())), "newest");
    }

    #[test]
    fn outside_its_window_a_revision_waits_and_the_one_before_is_held() {
        let app = application(json!({"window": [{"allow": "20:00-21:00", "timezone": "UTC"}]}));
        let chosen = choose(&app, &told("a", "b", vec![]), &Decisions::default(), "b", now());
        assert_eq!(held(&chosen), "a");
        assert_eq!(chosen.until, Some("2026-01-02T20:00:00Z".parse().unwrap()));
        let later = "2026-01-02T20:30:00Z".parse().unwrap();
        assert_eq!(held(&choose(&app, &told("a", "b", vec![]), &Decisions::default(), "b", later)), "newest");
        let approved = Decisions { approved: "b".into(), ..Decisions::default() };
        assert_eq!(held(&choose(&app, &told("a", "b", vec![]), &approved, "b", now())), "newest");
    }

    #[test]
    fn a_revision_that_does_not_become_healthy_in_time_is_taken_back_and_the_next_is_tried() {
        let app = application(json!({"rollback_after": "5m"}));
        let young = told("b", "b", vec![entry("a", "Healthy", ""), entry("b", "", "2026-01-02T11:56:00Z")]);
        let (decisions, due) = judge(&app, &young, &Decisions::default(), "b", now());
        assert!(decisions.is_empty());
        assert_eq!(due, Some("2026-01-02T12:01:00Z".parse().unwrap()));
        let mut old = told("b", "b", vec![entry("a", "Healthy", ""), entry("b", "", "2026-01-02T11:55:00Z")]);
        old.health.message = "no pod runs".into();
        let (decisions, _) = judge(&app, &old, &Decisions::default(), "b", now());
        assert_eq!(decisions.pinned.as_ref().unwrap().revision, "a");
        assert!(decisions.quarantined[0].reason.contains("no pod runs"));
        let chosen = choose(&app, &old, &decisions, "b", now());
        assert!(matches!(chosen.choice, Choice::Earlier { trigger: "automatic rollback", .. }));
        // The next commit is tried, and the pin is gone.
        assert_eq!(held(&choose(&app, &told("a", "c", vec![]), &decisions, "c", now())), "newest");
        let (decisions, _) = judge(&app, &told("a", "c", vec![]), &decisions, "c", now());
        assert!(decisions.pinned.is_none());
        // Once healthy is healthy: what breaks later is no reason.
        let fine =
            told("b", "b", vec![entry("a", "Healthy", ""), entry("b", "Healthy", "2026-01-01T00:00:00Z")]);
        assert!(judge(&app, &fine, &Decisions::default(), "b", now()).0.is_empty());
    }

    #[test]
    fn a_person_goes_back_and_forth() {
        let status = told("b", "b", vec![entry("abc1", "Healthy", ""), entry("b", "Healthy", "")]);
        assert_eq!(named(&status, "abc").unwrap(), "abc1");
        assert!(named(&status, "x").unwrap_err().contains("history"));
        assert_eq!(last_good(&status).unwrap(), "abc1");
        let back = roll_back(&status, &Decisions::default(), "abc1", now());
        let app = application(json!({}));
        assert_eq!(held(&choose(&app, &status, &back, "b", now())), "abc1");
        let forth = roll_back(&told("abc1", "b", vec![]), &back, "b", now());
        assert!(forth.is_empty());
    }
}
