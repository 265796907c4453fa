//! Variables in manifests: `${name}`, `${name:=default}`, `$${name}` for a dollar that stays.
//!
//! They stand for text: what is put in is read as if it were written in the file. Nothing is replaced in an application
//! that declares none.
//!
//! Invariant: a variable without value and default is a defect with its line, never an empty text.

use std::collections::BTreeMap;

/// Annotation of Flux that leaves a file as it is.
const DISABLED: &str = "kustomize.toolkit.fluxcd.io/substitute: disabled";

/// A variable that has no value: its line and name.
pub(super) type Missing = (u32, String);

/// The text with its variables filled in.
pub(super) fn substitute(text: &str, values: &BTreeMap<String, String>) -> Result<String, Vec<Missing>> {
    if text.contains(DISABLED) {
        return Ok(text.to_owned());
    }
    let mut result = String::with_capacity(text.len());
    let mut missing = Vec::new();
    let mut line = 1;
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        line += u32::try_from(before.matches('\n').count()).unwrap_or(0);
        let end = after.find('}').filter(|end| !after[..*end].contains('\n'));
        let variable = end.and_then(|end| parse(&after[..end]).map(|parsed| (parsed, &after[end + 1..])));
        match variable {
            // Written twice, the dollar is meant.
            _ if before.ends_with('$') => {
                result.push_str(before);
                result.push('{');
                rest = after;
            }
            None => {
                result.push_str(before);
                result.push_str("${");
                rest = after;
            }
            Some(((name, default), left)) => {
                result.push_str(before);
                match values.get(name).map(String::as_str).filter(|value| !value.is_empty()).or(default) {
                    Some(value) => result.push_str(value),
                    None if values.contains_key(name) => {}
                    None => missing.push((line, name.to_owned())),
                }
                rest = left;
            }
        }
    }
    result.push_str(rest);
    if missing.is_empty() { Ok(result) } else { Err(missing) }
}

/// The name and the default of what stands between the braces; nothing when that is no variable.
fn parse(inside: &str) -> Option<(&str, Option<&str>)> {
    let (name, default) = match inside.split_once(":=").or_else(|| inside.split_once(":-")) {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let mut letters = name.bytes();
    let first = letters.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    (first && letters.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')).then_some((name, default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in_and_what_is_none_stays() {
        let values = BTreeMap::from([
            ("host".to_owned(), "example.org".to_owned()),
            ("none".to_owned(), String::new()),
        ]);
        for (text, want) in [
            ("a ${host} b", "a example.org b"),
            ("${port:=80}", "80"),
            ("${port:-81}", "81"),
            ("${host:=x}", "example.org"),
            ("${none}|${none:=d}", "|d"),
            ("$${host}", "${host}"),
            ("$(host) $host ${1x} ${a b} ${", "$(host) $host ${1x} ${a b} ${"),
        ] {
            assert_eq!(substitute(text, &values), Ok(want.to_owned()), "{text}");
        }
        assert_eq!(substitute("x\n\n- ${gone}", &values), Err(vec![(3, "gone".to_owned())]));
    }
}
