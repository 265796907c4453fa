//! Which events are written: those of one object that are alike are gathered, those that were told before are counted,
//! and nobody fills the cluster with them. The rules and numbers are those documented for Kubernetes' clients.
//!
//! Invariant: pure: the time is an argument, and nothing here knows where events go.
//! Invariant: it remembers a bounded number of things, so that a storm of events costs no memory.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::{SignedDuration, Timestamp};

/// From so many different messages of one kind about one object on, they are told as one.
const SIMILAR: usize = 10;
/// Messages that are further apart than this have nothing to do with each other.
const APART: SignedDuration = SignedDuration::from_secs(600);
/// What one source may tell of one object at once …
const BURST: f64 = 25.0;
/// … and how long until it may tell one more.
const REFILL_SECONDS: f64 = 300.0;
/// How much of each is remembered.
const REMEMBERED: usize = 4096;
/// What is said before the words of an event that stands for many.
const COMBINED: &str = "(combined from similar events): ";

/// What tells one event from another.
#[derive(Debug, Clone, Copy, Hash)]
pub(crate) struct Tale<'a> {
    /// Who tells it: component and host.
    pub(crate) source: (&'a str, &'a str),
    /// Kind, namespace, name, uid of what it is about.
    pub(crate) about: (&'a str, &'a str, &'a str, &'a str),
    /// Which part of it.
    pub(crate) part: &'a str,
    /// `Normal` or `Warning`.
    pub(crate) weight: &'a str,
    /// One word.
    pub(crate) reason: &'a str,
    /// A sentence.
    pub(crate) message: &'a str,
}

/// What is to be written of a tale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// Follows from what is told, so that the same thing told again has the same name.
    pub(crate) id: u64,
    /// What to say.
    pub(crate) message: String,
    /// How often it was told, this time included.
    pub(crate) count: i32,
}

/// What was told lately.
#[derive(Debug, Default)]
pub(crate) struct Correlator {
    similar: Recent<(BTreeSet<u64>, Timestamp)>,
    counts: Recent<i32>,
    budgets: Recent<(f64, Timestamp)>,
}

impl Correlator {
    /// What to write of this tale; `None` when this source has told too much of this object.
    pub(crate) fn correlate(&mut self, tale: Tale<'_>, now: Timestamp) -> Option<Told> {
        let (id, message) = self.gathered(tale, now);
        let count = self.counts.get_or(id, || 0);
        *count = count.saturating_add(1);
        let count = *count;
        self.allowed(tale, now).then_some(Told { id, message, count })
    }

    /// Its own words, or those that stand for all that are like it.
    fn gathered(&mut self, tale: Tale<'_>, now: Timestamp) -> (u64, String) {
        let alike = hash(&("alike", tale.source, tale.about, tale.weight, tale.reason));
        let own = hash(&("own", tale));
        let (messages, last) = self.similar.get_or(alike, || (BTreeSet::new(), now));
        if now.duration_since(*last) > APART {
            messages.clear();
        }
        *last = now;
        messages.insert(hash(&tale.message));
        if messages.len() < SIMILAR {
            return (own, tale.message.to_owned());
        }
        // The set stays at its size: one in, one out.
        messages.pop_first();
        (alike, format!("{COMBINED}{}", tale.message))
    }

    fn allowed(&mut self, tale: Tale<'_>, now: Timestamp) -> bool {
        let (left, last) = self.budgets.get_or(hash(&("budget", tale.source, tale.about)), || (BURST, now));
        let earned = now.duration_since(*last).as_secs_f64().max(0.0) / REFILL_SECONDS;
        *left = (*left + earned).min(BURST);
        *last = now;
        let may = *left >= 1.0;
        if may {
            *left -= 1.0;
        }
        may
    }

    /// That an event was there already and has been counted up to this.
    pub(crate) fn known(&mut self, id: u64, count: i32) {
        *self.counts.get_or(id, || count) = count;
    }
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The things that were asked for last.
#[derive(Debug)]
struct Recent<V> {
    all: BTreeMap<u64, (u64, V)>,
    turn: u64,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Recent { all: BTreeMap::new(), turn: 0 }
    }
}

impl<V> Recent<V> {
    fn get_or(&mut self, key: u64, first: impl FnOnce() -> V) -> &mut V {
        self.turn += 1;
        if self.all.len() >= REMEMBERED && !self.all.contains_key(&key) {
            self.forget_older_half();
        }
        let (turn, value) = self.all.entry(key).or_insert_with(|| (0, first()));
        *turn = self.turn;
        value
    }

    /// Half at a time, so that what is forgotten costs nothing per event.
    fn forget_older_half(&mut self) {
        let mut turns: Vec<u64> = self.all.values().map(|(turn, _)| *turn).collect();
        turns.sort_unstable();
        let middle = turns.get(turns.len() / 2).copied().unwrap_or_default();
        self.all.retain(|_, (turn, _)| *turn >= middle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tale(message: &str) -> Tale<'_> {
        Tale {
            source: ("replicaset-controller", ""),
            about: ("ReplicaSet", "default", "web", "u1"),
            part: "",
            weight: "Normal",
            reason: "SuccessfulCreate",
            message,
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
    }

    #[test]
    fn the_same_thing_told_again_is_counted() {
        let mut known = Correlator::default();
        let first = known.correlate(tale("a"), at(0)).expect("told");
        let again = known.correlate(tale("a"), at(1)).expect("told");
        assert_eq!((first.count, again.count, first.id == again.id), (1, 2, true));
        let other = known.correlate(tale("b"), at(1)).expect("told");
        assert_eq!((other.count, other.id == first.id), (1, false));
    }

    #[test]
    fn the_tenth_that_is_alike_stands_for_all_after_it() {
        let mut known = Correlator::default();
        let told: Vec<Told> =
            (0..15).filter_map(|n| known.correlate(tale(&format!("pod {n}")), at(n))).collect();
        assert!(told[..9].iter().all(|one| one.count == 1 && !one.message.starts_with('(')));
        assert_eq!(told[9].message, "(combined from similar events): pod 9");
        assert_eq!(told[14].message, "(combined from similar events): pod 14");
        assert!(told[9..].iter().all(|one| one.id == told[9].id));
        assert_eq!(told[14].count, 6);
    }

    #[test]
    fn after_ten_quiet_minutes_the_words_are_its_own_again() {
        let mut known = Correlator::default();
        for n in 0..12 {
            known.correlate(tale(&format!("pod {n}")), at(n));
        }
        let later = known.correlate(tale("pod 99"), at(12 + 601)).expect("told");
        assert_eq!((later.message.as_str(), later.count), ("pod 99", 1));
    }

    #[test]
    fn one_source_tells_twenty_five_of_an_object_and_then_one_in_five_minutes() {
        let mut known = Correlator::default();
        let told = (0..1000).filter(|n| known.correlate(tale(&format!("pod {n}")), at(0)).is_some()).count();
        assert_eq!(told, 25);
        assert!(known.correlate(tale("late"), at(299)).is_none());
        assert!(known.correlate(tale("late"), at(301)).is_some());
        assert!(known.correlate(tale("late"), at(302)).is_none());
        let of_another = Tale { about: ("ReplicaSet", "default", "api", "u2"), ..tale("x") };
        assert!(known.correlate(of_another, at(302)).is_some(), "each object has its own budget");
    }

    #[test]
    fn a_clock_that_is_set_back_neither_gives_nor_takes() {
        let mut known = Correlator::default();
        let told = (0..1000_i64).filter(|n| known.correlate(tale(&format!("{n}")), at(-n)).is_some()).count();
        assert_eq!(told, 25);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut known = Correlator::default();
        for n in 0..20_000 {
            let uid = format!("u{n}");
            known.correlate(Tale { about: ("Pod", "default", "p", &uid), ..tale("x") }, at(n));
        }
        assert!(known.counts.all.len() <= REMEMBERED);
        assert!(known.similar.all.len() <= REMEMBERED && known.budgets.all.len() <= REMEMBERED);
    }
}
