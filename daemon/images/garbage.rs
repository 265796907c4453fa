//! Which images to do without when the disk gets full: pure.
//!
//! Invariant: an image in use, or one that no registry can give again, is never chosen.

use crate::Config;
use std::collections::BTreeSet;

/// An image, as far as this decides about it. Times are seconds of any clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The image's id.
    pub id: String,
    /// What it takes at most; layers may be shared.
    pub bytes: u64,
    /// A registry gave it.
    pub is_pulled: bool,
    /// A container uses it.
    pub is_used: bool,
    /// When it was first seen here.
    pub first_seen: i64,
    /// When it was last seen in use.
    pub last_used: i64,
}

/// How full a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// The whole disk.
    pub total_bytes: u64,
    /// What is left for us.
    pub free_bytes: u64,
}

impl Space {
    /// Percent in use.
    pub fn percent(self) -> u8 {
        let used = self.total_bytes.saturating_sub(self.free_bytes);
        let percent = u128::from(used) * 100 / u128::from(self.total_bytes.max(1));
        u8::try_from(percent).unwrap_or(100)
    }
}

/// The ids of the images to remove.
pub fn spare(held: &[Held], space: Space, config: &Config, now: i64) -> BTreeSet<String> {
    let age = |since: i64| u64::try_from(now - since).unwrap_or(0);
    let unused_since = |image: &Held| image.last_used.max(image.first_seen);
    let mut may_go: Vec<&Held> = held
        .iter()
        .filter(|image| image.is_pulled && !image.is_used)
        .filter(|image| age(unused_since(image)) >= config.gc_min_age_seconds)
        .collect();
    may_go.sort_by_key(|image| (image.last_used, image.first_seen, image.id.clone()));
    let max = config.gc_max_age_seconds;
    let mut gone: BTreeSet<String> = may_go
        .iter()
        .filter(|image| max > 0 && age(unused_since(image)) >= max)
        .map(|image| image.id.clone())
        .collect();
    if space.percent() < config.gc_high_percent {
        return gone;
    }
    let wanted_free = u128::from(space.total_bytes) * u128::from(100 - config.gc_low_percent.min(100)) / 100;
    let mut missing = wanted_free.saturating_sub(u128::from(space.free_bytes));
    for image in may_go {
        if missing == 0 {
            break;
        }
        missing = missing.saturating_sub(u128::from(image.bytes));
        gone.insert(image.id.clone());
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(id: &str, last_used: i64) -> Held {
        Held { id: id.to_owned(), bytes: 10, is_pulled: true, is_used: false, first_seen: 0, last_used }
    }

    fn check(held: &[Held], free: u64, max_age: u64, expected: &[&str]) {
        let config = Config { gc_max_age_seconds: max_age, ..Config::default() };
        let space = Space { total_bytes: 100, free_bytes: free };
        let gone = spare(held, space, &config, 1_000);
        assert_eq!(gone.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_images_unused_for_longest_go_until_there_is_room() {
        let images = [held("new", 800), held("old", 100), held("older", 50), held("fresh", 950)];
        check(&images, 50, 0, &[]);
        check(&images, 16, 0, &[]);
        check(&images, 15, 0, &["older"]);
        check(&images, 5, 0, &["old", "older"]);
        check(&images, 0, 0, &["old", "older"]);
    }

    #[test]
    fn what_runs_and_what_no_registry_gives_again_stays() {
        let used = Held { is_used: true, ..held("used", 0) };
        let local = Held { is_pulled: false, ..held("local", 0) };
        check(&[used, local, held("other", 0)], 0, 1, &["other"]);
    }

    #[test]
    fn age_alone_is_enough_when_the_configuration_says_so() {
        check(&[held("new", 800), held("old", 100)], 90, 600, &["old"]);
        check(&[held("new", 800), held("old", 100)], 90, 0, &[]);
    }
}
