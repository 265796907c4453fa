//! Moments and spans of time in expressions.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::eval::{Result, error};
use super::value::V;

pub(super) fn of_time<'a>(of: Timestamp, name: &str, arguments: &[V<'a>]) -> Option<Result<V<'a>>> {
    let zone = match arguments {
        [] => TimeZone::UTC,
        [V::Str(name)] => match TimeZone::get(name) {
            Ok(zone) => zone,
            Err(_) => return Some(error(format!("unknown time zone {name}"))),
        },
        _ => return None,
    };
    let local = of.to_zoned(zone);
    let number = match name {
        "getFullYear" => i64::from(local.year()),
        "getMonth" => i64::from(local.month()) - 1,
        "getDate" => i64::from(local.day()),
        "getDayOfMonth" => i64::from(local.day()) - 1,
        "getDayOfWeek" => i64::from(local.weekday().to_sunday_zero_offset()),
        "getDayOfYear" => i64::from(local.day_of_year()) - 1,
        "getHours" => i64::from(local.hour()),
        "getMinutes" => i64::from(local.minute()),
        "getSeconds" => i64::from(local.second()),
        "getMilliseconds" => i64::from(local.millisecond()),
        _ => return None,
    };
    Some(Ok(V::Int(number)))
}

pub(super) fn of_span<'a>(of: SignedDuration, name: &str) -> Option<Result<V<'a>>> {
    Some(Ok(V::Int(match name {
        "getHours" => of.as_hours(),
        "getMinutes" => of.as_mins(),
        "getSeconds" => of.as_secs(),
        "getMilliseconds" => i64::from(of.subsec_millis()),
        _ => return None,
    })))
}

/// Go's durations: `1h30m`, `1.5s`, `-3ms`.
pub(super) fn span(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut total = SignedDuration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let (unit, seconds) =
            [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)]
                .into_iter()
                .find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total = total.checked_add(SignedDuration::try_from_secs_f64(number * seconds).ok()?)?;
    }
    Some(if negative { -total } else { total }).filter(|_| !text.is_empty())
}
