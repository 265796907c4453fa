//! The finer words of an application's declaration: when it may change, what is not its business, what happens at its end.
//!
//! Invariant: pure; a window that cannot be read is refused before anything runs.

use jiff::civil::{Time, Weekday};
use jiff::tz::{Offset, TimeZone};
use jiff::{Span, Timestamp};
use serde::{Deserialize, Serialize};

/// Whether new revisions are applied by themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// At once.
    #[default]
    Automatic,
    /// When a person says `holdfast approve`.
    Manual,
}

/// What becomes of an application's objects when its declaration is removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRemoval {
    /// They stay, and nobody looks after them any more.
    #[default]
    Orphan,
    /// They are deleted, after a confirmation where one is due.
    Prune,
}

/// A time in which new revisions may, or may not, be applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// `"Mon-Fri 22:00-06:00"`, `"Sat,Sun"`, `"09:00-17:00"`. Either this or `deny`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<String>,
    /// The same, for a time in which nothing new is applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny: Option<String>,
    /// `"Europe/Berlin"`, `"+02:00"`; this machine's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
}

/// Fields of some objects that are not put back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ignore {
    /// Of which kind; of all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Of which name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// In which namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// JSON pointers: `"/spec/replicas"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pointers: Vec<String>,
    /// Whatever these field managers own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub managers: Vec<String>,
}

impl Ignore {
    /// Refuses a rule that ignores nothing or cannot be followed.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.pointers.is_empty() && self.managers.is_empty() {
            return Err("an ignore rule names neither pointers nor managers; add one".to_owned());
        }
        match self.pointers.iter().find(|pointer| !pointer.starts_with('/')) {
            Some(wrong) => Err(format!("\"{wrong}\" is no JSON pointer; write it like \"/spec/replicas\"")),
            None => Ok(()),
        }
    }
}

/// A window, parsed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hours {
    allows: bool,
    /// Monday first.
    days: [bool; 7],
    from: Time,
    /// At or before `from`: on the next day.
    to: Time,
    zone: TimeZone,
}

impl Window {
    pub(crate) fn parse(&self) -> Result<Hours, String> {
        let (allows, text) = match (&self.allow, &self.deny) {
            (Some(text), None) => (true, text),
            (None, Some(text)) => (false, text),
            _ => return Err("a window has either `allow` or `deny`".to_owned()),
        };
        let wrong = || {
            format!("\"{text}\" is no window; write \"Mon-Fri 22:00-06:00\", \"Sat,Sun\" or \"09:00-17:00\"")
        };
        let mut days = [true; 7];
        let mut times = (Time::midnight(), Time::midnight());
        for word in text.split_whitespace() {
            if word.contains(':') {
                let (from, to) = word.split_once('-').ok_or_else(wrong)?;
                times = (clock(from).ok_or_else(wrong)?, clock(to).ok_or_else(wrong)?);
            } else {
                days = weekdays(word).ok_or_else(wrong)?;
            }
        }
        if text.trim().is_empty() {
            return Err(wrong());
        }
        Ok(Hours { allows, days, from: times.0, to: times.1, zone: self.zone()? })
    }

    fn zone(&self) -> Result<TimeZone, String> {
        let Some(name) = &self.timezone else { return Ok(TimeZone::system()) };
        if let Some(offset) = offset(name) {
            return Ok(TimeZone::fixed(offset));
        }
        TimeZone::get(name).map_err(|_| {
            format!("timezone \"{name}\" is not known here; write it like \"Europe/Berlin\" or \"+02:00\"")
        })
    }
}

impl Hours {
    /// The begin and end of every occurrence around a moment.
    fn spans(&self, now: Timestamp) -> Vec<(Timestamp, Timestamp)> {
        let today = now.to_zoned(self.zone.clone()).date();
        let at = |date: jiff::civil::Date, time: Time| {
            self.zone
                .to_ambiguous_zoned(date.to_datetime(time))
                .compatible()
                .map(|zoned| zoned.timestamp())
                .ok()
        };
        let mut spans = Vec::new();
        for offset in -1..=8 {
            let Ok(date) = today.checked_add(Span::new().days(offset)) else { continue };
            if !self.days[usize::from(date.weekday().to_monday_zero_offset().unsigned_abs())] {
                continue;
            }
            let Ok(after) = date.checked_add(Span::new().days(i64::from(self.to <= self.from))) else {
                continue;
            };
            if let (Some(from), Some(to)) = (at(date, self.from), at(after, self.to)) {
                spans.push((from, to));
            }
        }
        spans
    }
}

/// Whether new revisions may be applied now, and when that may change.
pub(crate) fn open(windows: &[Hours], now: Timestamp) -> (bool, Option<Timestamp>) {
    let spans: Vec<(bool, Vec<(Timestamp, Timestamp)>)> =
        windows.iter().map(|window| (window.allows, window.spans(now))).collect();
    let holds = |spans: &[(Timestamp, Timestamp)]| spans.iter().any(|(from, to)| *from <= now && now < *to);
    let denied = spans.iter().any(|(allows, spans)| !allows && holds(spans));
    let any_allows = spans.iter().any(|(allows, _)| *allows);
    let allowed = !any_allows || spans.iter().any(|(allows, spans)| *allows && holds(spans));
    let edges = spans.iter().flat_map(|(_, spans)| spans.iter().flat_map(|(from, to)| [*from, *to]));
    (allowed && !denied, edges.filter(|at| *at > now).min())
}

fn clock(text: &str) -> Option<Time> {
    let (hours, minutes) = text.split_once(':')?;
    let (hours, minutes): (i8, i8) = (hours.parse().ok()?, minutes.parse().ok()?);
    if (hours, minutes) == (24, 0) {
        return Some(Time::midnight());
    }
    Time::new(hours, minutes, 0, 0).ok()
}

fn weekdays(text: &str) -> Option<[bool; 7]> {
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut day, last) = (weekday(first)?, weekday(last)?);
        loop {
            days[usize::from(day.to_monday_zero_offset().unsigned_abs())] = true;
            if day == last {
                break;
            }
            day = day.next();
        }
    }
    Some(days)
}

fn weekday(text: &str) -> Option<Weekday> {
    let short = text.get(..3)?.to_ascii_lowercase();
    let day = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"].iter().position(|known| *known == short)?;
    Weekday::from_monday_zero_offset(i8::try_from(day).ok()?).ok()
}

fn offset(text: &str) -> Option<Offset> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ if text == "UTC" => return Some(Offset::UTC),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    fn window(allow: Option<&str>, deny: Option<&str>) -> Window {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Window { allow: owned(allow), deny: owned(deny), timezone: Some("+02:00".to_owned()) }
    }

    fn check(windows: &[Window], now: &str) -> (bool, String) {
        let hours: Vec<Hours> = windows.iter().map(|window| window.parse().unwrap()).collect();
        let (open, next) = open(&hours, now.parse().unwrap());
        (open, next.map(|at| at.to_string()).unwrap_or_default())
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_it_begins_on() {
        let nights = [window(Some("Mon-Fri 22:00-06:00"), None)];
        // 2026-01-02 is a Friday; 20:00 UTC is 22:00 there.
        assert_eq!(check(&nights, "2026-01-02T19:59:59Z"), (false, "2026-01-02T20:00:00Z".to_owned()));
        assert_eq!(check(&nights, "2026-01-02T20:00:00Z"), (true, "2026-01-03T04:00:00Z".to_owned()));
        assert_eq!(check(&nights, "2026-01-03T04:00:00Z"), (false, "2026-01-05T20:00:00Z".to_owned()));
    }

    #[test]
    fn a_denied_time_closes_what_is_open_otherwise() {
        assert_eq!(check(&[], "2026-01-02T12:00:00Z"), (true, String::new()));
        let lunch = [window(None, Some("12:00-13:00"))];
        assert_eq!(check(&lunch, "2026-01-02T10:30:00Z"), (false, "2026-01-02T11:00:00Z".to_owned()));
        assert!(check(&lunch, "2026-01-02T11:00:00Z").0);
        let both = [window(Some("Sat,Sun"), None), window(None, Some("Sun 00:00-12:00"))];
        assert!(check(&both, "2026-01-03T12:00:00Z").0);
        assert!(!check(&both, "2026-01-04T09:00:00Z").0);
        assert!(check(&both, "2026-01-04T10:00:00Z").0);
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for (allow, deny) in [
            (None, None),
            (Some("x"), Some("y")),
            (Some("Mun"), None),
            (Some("25:00-26:00"), None),
            (Some(""), None),
            (Some("22:00"), None),
        ] {
            assert!(window(allow, deny).parse().is_err(), "{allow:?} {deny:?}");
        }
        let nowhere = Window { timezone: Some("Atlantis/Capital".to_owned()), ..window(Some("Mon"), None) };
        assert!(nowhere.parse().unwrap_err().contains("Atlantis"));
    }
}
