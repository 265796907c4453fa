//! Judges schedules of five fields, as the cron library of Kubernetes reads them.
//!
//! Invariant: what passes here has a next time; ranges, steps, lists and names are checked, not only the shape.

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

struct Unit {
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

const FIELDS: [Unit; 5] = [
    Unit { least: 0, most: 59, names: &[] },
    Unit { least: 0, most: 23, names: &[] },
    Unit { least: 1, most: 31, names: &[] },
    Unit { least: 1, most: 12, names: &MONTHS },
    Unit { least: 0, most: 6, names: &DAYS },
];

/// What is wrong with a schedule.
pub(super) fn defect(schedule: &str) -> Option<String> {
    if let Some(word) = schedule.strip_prefix('@') {
        return descriptor(schedule, word);
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Some(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    FIELDS.iter().zip(fields).find_map(|(unit, field)| field.split(',').find_map(|part| unit.defect(part)))
}

fn descriptor(whole: &str, word: &str) -> Option<String> {
    let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
    let every = word.strip_prefix("every ").is_some_and(|span| is_duration(span.trim()));
    (!known.contains(&word) && !every).then(|| format!("unrecognized descriptor: {whole}"))
}

/// `1h30m`, as Go writes durations.
fn is_duration(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let unit = &rest[digits..];
        let units = ["ms", "us", "ns", "h", "m", "s"];
        let Some(unit) = units.iter().find(|known| unit.starts_with(**known)) else { return false };
        if digits == 0 {
            return false;
        }
        rest = &rest[digits + unit.len()..];
    }
    !text.is_empty()
}

impl Unit {
    /// `*`, `5`, `1-5`, `*/15`, `1-30/2`, each with names where there are any.
    fn defect(&self, part: &str) -> Option<String> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (part, None),
        };
        if let Some(step) = step {
            match step.parse::<u32>() {
                Ok(0) => return Some(format!("step of range should be a positive number: {part}")),
                Ok(_) => {}
                Err(_) => return Some(format!("failed to parse int from {step}: {part}")),
            }
        }
        if matches!(range, "*" | "?") {
            return None;
        }
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Some(first), Some(last)) = (self.number(first), self.number(last)) else {
            return Some(format!("failed to parse int from {range}: {part}"));
        };
        if first < self.least {
            return Some(format!("beginning of range ({first}) below minimum ({}): {part}", self.least));
        }
        if last > self.most {
            return Some(format!("end of range ({last}) above maximum ({}): {part}", self.most));
        }
        (first > last).then(|| format!("beginning of range ({first}) beyond end of range ({last}): {part}"))
    }

    fn number(&self, text: &str) -> Option<u32> {
        let at = self.names.iter().position(|name| text.eq_ignore_ascii_case(name));
        match at {
            Some(at) => u32::try_from(at).ok().map(|at| at + self.least),
            None => text.parse().ok(),
        }
    }
}

/// Whether a text has the form of a name in the time zone database; whether it is in there is for those who have one.
pub(super) fn is_zone_name(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '.'))
    };
    text.split('/').all(part) && text.starts_with(|c: char| c.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_that_cron_takes_are_taken() {
        for schedule in [
            "*/5 * * * *",
            "0,15,30,45 * * * *",
            "0 9-17/2 1,15 jan-jun MON-fri",
            "@hourly",
            "@every 1h30m",
            "59 23 31 12 ?",
        ] {
            assert_eq!(defect(schedule), None, "{schedule}");
        }
    }

    #[test]
    fn schedules_that_cron_refuses_say_why() {
        for (schedule, why) in [
            ("error schedule", "expected exactly 5 fields, found 2: [error schedule]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("a * * * *", "failed to parse int from a: a"),
            ("@often", "unrecognized descriptor: @often"),
        ] {
            assert_eq!(defect(schedule).as_deref(), Some(why), "{schedule}");
        }
    }
}
