//! Cron schedules as CronJobs write them: five fields with names, lists, ranges and steps, or `@hourly` and `@every 90m`.
//!
//! Invariant: `next` is strictly later than what it is given, and the same for the same arguments.
//! Invariant: a time that the clocks skip is not run, one that they repeat is run twice, as by Kubernetes.

use std::fmt;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

/// When something is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// At the minutes that match every field.
    Fields(Fields),
    /// Again and again after this time, counted from the last.
    Every(SignedDuration),
}

/// The five fields, each a set of the numbers that match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether days of the month and of the week are both said: then one of them is enough.
    either_day: bool,
}

/// Why a schedule cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable(String);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// A schedule that has no time within so many years never has one.
const YEARS: i16 = 5;

/// What one field may hold.
struct Bounds {
    what: &'static str,
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

const MINUTE: Bounds = Bounds { what: "minute", least: 0, most: 59, names: &[] };
const HOUR: Bounds = Bounds { what: "hour", least: 0, most: 23, names: &[] };
const DAY: Bounds = Bounds { what: "day of month", least: 1, most: 31, names: &[] };
const MONTH: Bounds = Bounds { what: "month", least: 1, most: 12, names: &MONTHS };
const WEEKDAY: Bounds = Bounds { what: "day of week", least: 0, most: 6, names: &WEEKDAYS };

impl Schedule {
    /// Reads a schedule.
    pub fn parse(text: &str) -> Result<Schedule, Unreadable> {
        let text = text.trim();
        if let Some(name) = text.strip_prefix('@') {
            return descriptor(name);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            let found = fields.len();
            return Err(Unreadable(format!("expected exactly 5 fields, found {found}: {text:?}")));
        };
        let ((minutes, _), (hours, _)) = (field(minute, &MINUTE)?, field(hour, &HOUR)?);
        let ((days, any_day), (months, _)) = (field(day, &DAY)?, field(month, &MONTH)?);
        let (weekdays, any_weekday) = field(weekday, &WEEKDAY)?;
        let either_day = !any_day && !any_weekday;
        Ok(Schedule::Fields(Fields { minutes, hours, days, months, weekdays, either_day }))
    }

    /// The first time after `after`; `None` when there is none in the next years (31 February).
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Schedule::Fields(fields) => fields.next(after, zone),
            Schedule::Every(wait) => Timestamp::from_second(after.as_second()).ok()?.checked_add(*wait).ok(),
        }
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let minute = after.as_second().div_euclid(60).checked_add(1)?.checked_mul(60)?;
        let mut at = Timestamp::from_second(minute).ok()?.to_zoned(zone.clone());
        let last_year = at.year().checked_add(YEARS)?;
        while at.year() <= last_year {
            at = if !has(self.months, at.month()) {
                month_after(&at)?
            } else if !self.on_day(&at) {
                at.tomorrow().ok()?.start_of_day().ok()?
            } else if !has(self.hours, at.hour()) {
                at.checked_add((60 - i64::from(at.minute())).minutes()).ok()?
            } else if !has(self.minutes, at.minute()) {
                at.checked_add(1.minute()).ok()?
            } else {
                return Some(at.timestamp());
            };
        }
        None
    }

    fn on_day(&self, at: &Zoned) -> bool {
        let day = has(self.days, at.day());
        let weekday = has(self.weekdays, at.weekday().to_sunday_zero_offset());
        if self.either_day { day || weekday } else { day && weekday }
    }
}

fn month_after(at: &Zoned) -> Option<Zoned> {
    at.first_of_month().ok()?.checked_add(1.month()).ok()?.start_of_day().ok()
}

fn has(set: u64, number: i8) -> bool {
    u32::try_from(number).is_ok_and(|number| set & (1 << number) != 0)
}

fn descriptor(name: &str) -> Result<Schedule, Unreadable> {
    let fields = match name {
        "yearly" | "annually" => "0 0 1 1 *",
        "monthly" => "0 0 1 * *",
        "weekly" => "0 0 * * 0",
        "daily" | "midnight" => "0 0 * * *",
        "hourly" => "0 * * * *",
        _ => {
            let wait = name.strip_prefix("every ").and_then(|text| duration(text.trim()));
            return wait
                .map(|wait| Schedule::Every(wait.max(SignedDuration::from_secs(1))))
                .ok_or_else(|| Unreadable(format!("unrecognized descriptor: @{name}")));
        }
    };
    Schedule::parse(fields)
}

/// `1h30m`, `90s`, `1.5h`, in whole seconds.
fn duration(text: &str) -> Option<SignedDuration> {
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |at| digits + at);
        let unit = match &rest[digits..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[unit_end..];
    }
    (!text.is_empty() && seconds < 1e9).then(|| SignedDuration::from_secs(seconds as i64))
}

/// One field as a set of bits, and whether it says "any" (a star without a step).
fn field(text: &str, bounds: &Bounds) -> Result<(u64, bool), Unreadable> {
    let mut bits = 0;
    let mut any = false;
    for part in text.split(',') {
        let (set, star) = range(part, bounds)?;
        bits |= set;
        any |= star;
    }
    Ok((bits, any))
}

fn range(part: &str, bounds: &Bounds) -> Result<(u64, bool), Unreadable> {
    let wrong = |why: &str| Unreadable(format!("{why} in the {} field: {part:?}", bounds.what));
    let (span, step) = match part.split_once('/') {
        Some((span, step)) => (span, Some(step)),
        None => (part, None),
    };
    let step: u32 = match step {
        Some(step) => step.parse().map_err(|_| wrong("a step that is not a number"))?,
        None => 1,
    };
    if step == 0 {
        return Err(wrong("a step of zero"));
    }
    let star = span == "*" || span == "?";
    let (first, last) = if star {
        (bounds.least, bounds.most)
    } else if let Some((first, last)) = span.split_once('-') {
        (
            number(first, bounds).ok_or_else(|| wrong("not a number"))?,
            number(last, bounds).ok_or_else(|| wrong("not a number"))?,
        )
    } else {
        let only = number(span, bounds).ok_or_else(|| wrong("not a number"))?;
        // `5/15` is short for `5-59/15`.
        (only, if part.contains('/') { bounds.most } else { only })
    };
    if first < bounds.least {
        return Err(wrong(&format!("a value below the least, {},", bounds.least)));
    }
    if last > bounds.most {
        return Err(wrong(&format!("a value above the most, {},", bounds.most)));
    }
    if first > last {
        return Err(wrong("a range that begins after its end"));
    }
    let set = (first..=last).step_by(step as usize).fold(0, |set, number| set | (1 << number));
    Ok((set, star && step == 1))
}

fn number(text: &str, bounds: &Bounds) -> Option<u32> {
    let named = bounds.names.iter().position(|name| text.eq_ignore_ascii_case(name));
    match named {
        Some(at) => u32::try_from(at).ok().map(|at| at + bounds.least),
        None => text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    fn check(schedule: &str, zone: &str, after: &str, expected: &[&str]) {
        let parsed = Schedule::parse(schedule).unwrap();
        let zone = TimeZone::get(zone).unwrap();
        let mut at: Timestamp = after.parse().unwrap();
        for wanted in expected {
            at = parsed.next(at, &zone).unwrap();
            assert_eq!(at.to_string(), *wanted, "{schedule} after {after}");
        }
    }

    #[test]
    fn lists_ranges_steps_and_names_are_read() {
        check(
            "*/15 9-10 * * *",
            "UTC",
            "2026-11-24T09:31:00Z",
            &["2026-11-24T09:45:00Z", "2026-11-24T10:00:00Z"],
        );
        check(
            "5/20 * * * *",
            "UTC",
            "2026-11-24T09:31:00Z",
            &["2026-11-24T09:45:00Z", "2026-11-24T10:05:00Z"],
        );
        check(
            "0 12 * JAN,mar Mon-Wed",
            "UTC",
            "2026-11-24T00:00:00Z",
            &["2027-01-04T12:00:00Z", "2027-01-05T12:00:00Z"],
        );
        check("0 0 1 1 ?", "UTC", "2026-11-24T00:00:00Z", &["2027-01-01T00:00:00Z"]);
    }

    #[test]
    fn two_said_days_are_either_or_and_a_star_is_both() {
        check(
            "0 0 13 * fri",
            "UTC",
            "2026-11-24T00:00:00Z",
            &["2026-11-27T00:00:00Z", "2026-12-04T00:00:00Z", "2026-12-11T00:00:00Z", "2026-12-13T00:00:00Z"],
        );
        check(
            "0 0 * * fri",
            "UTC",
            "2026-11-24T00:00:00Z",
            &["2026-11-27T00:00:00Z", "2026-12-04T00:00:00Z"],
        );
    }

    #[test]
    fn descriptors_are_short_for_fields_and_every_counts_from_the_last() {
        check("@hourly", "UTC", "2026-11-24T09:31:10Z", &["2026-11-24T10:00:00Z", "2026-11-24T11:00:00Z"]);
        check("@weekly", "UTC", "2026-11-24T09:31:10Z", &["2026-11-29T00:00:00Z"]);
        check("@yearly", "UTC", "2026-11-24T09:31:10Z", &["2027-01-01T00:00:00Z"]);
        check(
            "@every 1h30m",
            "UTC",
            "2026-11-24T09:31:10Z",
            &["2026-11-24T11:01:10Z", "2026-11-24T12:31:10Z"],
        );
    }

    #[test]
    fn what_the_clocks_skip_is_not_run_and_what_they_repeat_is_run_twice() {
        check("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", &["2026-03-30T00:30:00Z"]);
        check(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"],
        );
        check("0 0 * * *", "America/Santiago", "2026-09-05T12:00:00Z", &["2026-09-07T03:00:00Z"]);
    }

    #[test]
    fn a_day_that_never_comes_is_none() {
        let never = Schedule::parse("0 0 31 2 *").unwrap();
        assert_eq!(never.next("2026-11-24T00:00:00Z".parse().unwrap(), &TimeZone::UTC), None);
        check("0 0 29 2 *", "UTC", "2026-11-24T00:00:00Z", &["2028-02-29T00:00:00Z"]);
    }

    #[test]
    fn what_is_not_a_schedule_is_refused_with_its_field() {
        for (text, why) in [
            ("* * * *", "expected exactly 5 fields, found 4"),
            ("60 * * * *", "above the most, 59, in the minute field"),
            ("* * 0 * *", "below the least, 1, in the day of month field"),
            ("* * * * 7", "above the most, 6, in the day of week field"),
            ("*/0 * * * *", "a step of zero in the minute field"),
            ("5-1 * * * *", "a range that begins after its end"),
            ("* * * foo *", "not a number in the month field"),
            ("@often", "unrecognized descriptor: @often"),
            ("@every soon", "unrecognized descriptor"),
        ] {
            let error = Schedule::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
