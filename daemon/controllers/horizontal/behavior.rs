//! How fast a count may change: stabilisation, policies, and the limits of the spec.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerSpec};

/// What is remembered at the most, as the longest window that can be asked for.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// What was recommended and done lately, oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Past {
    /// Recommendations before they were held back.
    pub(crate) recommendations: Vec<(Timestamp, i32)>,
    /// Changes of the count.
    pub(crate) changes: Vec<(Timestamp, i32)>,
}

/// A count within what is allowed.
pub(crate) struct Limited {
    pub(crate) count: i32,
    /// `ScalingLimited`.
    pub(crate) condition: (bool, &'static str, String),
    /// What `AbleToScale` says when an earlier recommendation holds the count back.
    pub(crate) stabilized: Option<(&'static str, String)>,
}

impl Past {
    /// One more recommendation.
    pub(crate) fn recommended(&mut self, at: Timestamp, count: i32) {
        self.recommendations.retain(|(known, _)| *known + REMEMBERED > at);
        self.recommendations.push((at, count));
    }

    /// One more change.
    pub(crate) fn scaled(&mut self, at: Timestamp, by: i32) {
        self.changes.retain(|(known, _)| *known + REMEMBERED > at);
        self.changes.push((at, by));
    }
}

/// Rules of one direction with their defaults.
struct Rules {
    window: Duration,
    policies: Vec<HPAScalingPolicy>,
    select: String,
}

/// Holds a proposed count back as far as the behaviour asks.
pub(crate) fn limit(
    spec: &HorizontalPodAutoscalerSpec,
    past: &Past,
    (current, proposed): (i32, i32),
    now: Timestamp,
) -> Limited {
    let behavior = spec.behavior.as_ref();
    let up = rules(behavior.and_then(|all| all.scale_up.as_ref()), Direction::Up);
    let down = rules(behavior.and_then(|all| all.scale_down.as_ref()), Direction::Down);
    let (stable, stabilized) = stabilize(past, &up, &down, (current, proposed), now);
    let (least, most) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
    let within = |count: i32| {
        (false, "DesiredWithinRange", "the desired count is within the acceptable range".to_owned(), count)
    };
    let (holds, reason, message, count) = if stable > current {
        let allowed = up.most_after(past, current, now).max(current);
        let limit = allowed.min(most);
        if stable <= limit {
            within(stable)
        } else if limit == most {
            (
                true,
                "TooManyReplicas",
                "the desired replica count is more than the maximum replica count".to_owned(),
                limit,
            )
        } else {
            (
                true,
                "ScaleUpLimit",
                "the desired replica count is increasing faster than the maximum scale rate".to_owned(),
                limit,
            )
        }
    } else if stable < current {
        let allowed = down.least_after(past, current, now).min(current);
        let limit = allowed.max(least);
        if stable >= limit {
            within(stable)
        } else if limit == least {
            (
                true,
                "TooFewReplicas",
                "the desired replica count is less than the minimum replica count".to_owned(),
                limit,
            )
        } else {
            (
                true,
                "ScaleDownLimit",
                "the desired replica count is decreasing faster than the maximum scale rate".to_owned(),
                limit,
            )
        }
    } else {
        within(stable)
    };
    Limited { count, condition: (holds, reason, message), stabilized }
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Up,
    Down,
}

fn rules(rules: Option<&HPAScalingRules>, direction: Direction) -> Rules {
    let policy =
        |kind: &str, value: i32| HPAScalingPolicy { type_: kind.to_owned(), value, period_seconds: 15 };
    // As documented: up at once by four pods or to the double, down after five minutes to whatever is asked for.
    let (window, policies) = match direction {
        Direction::Up => (0, vec![policy("Pods", 4), policy("Percent", 100)]),
        Direction::Down => (300, vec![policy("Percent", 100)]),
    };
    let seconds = rules.and_then(|rules| rules.stabilization_window_seconds).unwrap_or(window);
    let own = rules.and_then(|rules| rules.policies.clone()).filter(|all| !all.is_empty());
    Rules {
        window: Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
        policies: own.unwrap_or(policies),
        select: rules.and_then(|rules| rules.select_policy.clone()).unwrap_or_else(|| "Max".to_owned()),
    }
}

impl Rules {
    /// The largest count that the policies allow.
    fn most_after(&self, past: &Past, current: i32, now: Timestamp) -> i32 {
        let each = self.policies.iter().map(|policy| {
            let added = changed(past, policy.period_seconds, now, |by| by.max(0));
            let start = current - added;
            match policy.type_.as_str() {
                "Pods" => start.saturating_add(policy.value),
                _ => share(start, 100 + i64::from(policy.value), 99),
            }
        });
        self.choose(each.collect(), current, |all| all.iter().max().copied(), |all| all.iter().min().copied())
    }

    /// The smallest count that the policies allow.
    fn least_after(&self, past: &Past, current: i32, now: Timestamp) -> i32 {
        let each = self.policies.iter().map(|policy| {
            let removed = changed(past, policy.period_seconds, now, |by| (-by).max(0));
            let start = current + removed;
            match policy.type_.as_str() {
                "Pods" => start.saturating_sub(policy.value),
                _ => share(start, 100 - i64::from(policy.value), 0),
            }
        });
        self.choose(each.collect(), current, |all| all.iter().min().copied(), |all| all.iter().max().copied())
    }

    fn choose(
        &self,
        all: Vec<i32>,
        current: i32,
        furthest: impl Fn(&[i32]) -> Option<i32>,
        nearest: impl Fn(&[i32]) -> Option<i32>,
    ) -> i32 {
        let chosen = match self.select.as_str() {
            "Disabled" => None,
            "Min" => nearest(&all),
            _ => furthest(&all),
        };
        chosen.unwrap_or(current)
    }
}

fn share(count: i32, percent: i64, round: i64) -> i32 {
    i32::try_from((i64::from(count) * percent + round).div_euclid(100)).unwrap_or(i32::MAX)
}

fn changed(past: &Past, seconds: i32, now: Timestamp, part: impl Fn(i32) -> i32) -> i32 {
    let period = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    past.changes.iter().filter(|(at, _)| *at + period > now).map(|(_, by)| part(*by)).sum()
}

/// Goes no higher than the lowest recommendation of the one window, and no lower than the highest of the other.
fn stabilize(
    past: &Past,
    up: &Rules,
    down: &Rules,
    (current, proposed): (i32, i32),
    now: Timestamp,
) -> (i32, Option<(&'static str, String)>) {
    let within = |window: Duration| past.recommendations.iter().filter(move |(at, _)| *at + window > now);
    let ceiling = within(up.window).map(|(_, count)| *count).fold(proposed, i32::min);
    let floor = within(down.window).map(|(_, count)| *count).fold(proposed, i32::max);
    let stable = current.max(ceiling).min(floor);
    let told = match stable.cmp(&proposed) {
        std::cmp::Ordering::Equal => ("ReadyForNewScale", "recommended size matches current size".to_owned()),
        std::cmp::Ordering::Greater => (
            "ScaleDownStabilized",
            "recent recommendations were higher than current one, applying the highest recent recommendation"
                .to_owned(),
        ),
        std::cmp::Ordering::Less => (
            "ScaleUpStabilized",
            "recent recommendations were lower than current one, applying the lowest recent recommendation"
                .to_owned(),
        ),
    };
    let unchanged = stable == proposed && proposed != current;
    (stable, (!unchanged).then_some(told))
}
