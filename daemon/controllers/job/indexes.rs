//! The completed indexes of an Indexed Job as the status writes them: `0-2,5`.
//!
//! Invariant: `parse` of `write` gives the same set.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

use super::INDEX;

/// Reads a list of numbers and ranges; what is not a number is left out.
pub(crate) fn parse(text: &str) -> BTreeSet<i32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<i32>().ok()?..=last.trim().parse::<i32>().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// Writes neighbours as ranges.
pub(crate) fn write(indexes: &BTreeSet<i32>) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let text = |(first, last): (i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    ranges.into_iter().map(text).collect::<Vec<_>>().join(",")
}

/// How many.
pub(crate) fn count(indexes: &BTreeSet<i32>) -> i32 {
    i32::try_from(indexes.len()).unwrap_or(i32::MAX)
}

/// The index that a pod works on.
pub(crate) fn of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_written_as_ranges_and_read_back() {
        for text in ["", "0", "0,1", "0-2,5", "1,3-5,7,8"] {
            assert_eq!(write(&parse(text)), text);
        }
        assert_eq!(parse("0-2,x,5"), BTreeSet::from([0, 1, 2, 5]));
    }
}
