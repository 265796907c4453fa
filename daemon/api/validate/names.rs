//! The forms that names, labels, keys, ports and hosts must have, and Kubernetes' sentences about them.
//!
//! Invariant: each function returns the rules that a text breaks; an empty list means it is well formed.

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const QUALIFIED: &str = "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

/// `IsDNS1123Subdomain`: the name of most objects.
pub(super) fn subdomain(text: &str) -> Vec<String> {
    let mut broken = longer_than(text, 253);
    if !text.split('.').all(is_label) {
        broken.push(SUBDOMAIN.into());
    }
    broken
}

/// `IsValidPathSegmentName`: roles and their bindings.
pub(super) fn path_segment(text: &str) -> Vec<String> {
    if matches!(text, "." | "..") {
        return vec![format!("may not be {text:?}").replace('"', "'")];
    }
    let forbidden = ['/', '%'].into_iter().filter(|c| text.contains(*c));
    forbidden.map(|c| format!("may not contain '{c}'")).collect()
}

/// `IsDNS1123Label`: namespaces, containers, volumes.
pub(super) fn label(text: &str) -> Vec<String> {
    let mut broken = longer_than(text, 63);
    if !is_label(text) {
        broken.push(LABEL.into());
    }
    broken
}

/// `IsDNS1035Label`: services.
pub(super) fn label_1035(text: &str) -> Vec<String> {
    let mut broken = longer_than(text, 63);
    if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        broken.push(LABEL_1035.into());
    }
    broken
}

/// `IsQualifiedName`: label and annotation keys, finalizers, resource names.
pub(super) fn qualified(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let name = match text.split('/').collect::<Vec<_>>().as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                broken.push("prefix part must be non-empty".into());
            } else {
                broken.extend(subdomain(prefix).into_iter().map(|rule| format!("prefix part {rule}")));
            }
            *name
        }
        _ => return vec![QUALIFIED.into()],
    };
    if name.is_empty() {
        broken.push("name part must be non-empty".into());
    } else {
        broken.extend(longer_than(name, 63).into_iter().map(|rule| format!("name part {rule}")));
    }
    if !is_word(name) {
        broken.push(NAME_PART.into());
    }
    broken
}

/// `IsValidLabelValue`.
pub(super) fn label_value(text: &str) -> Vec<String> {
    let mut broken = longer_than(text, 63);
    if !text.is_empty() && !is_word(text) {
        broken.push(LABEL_VALUE.into());
    }
    broken
}

/// `IsConfigMapKey`.
pub(super) fn config_key(text: &str) -> Vec<String> {
    let mut broken = longer_than(text, 253);
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        broken.push(CONFIG_KEY.into());
    }
    if text == "." {
        broken.push("must not be '.'".into());
    } else if text == ".." {
        broken.push("must not be '..'".into());
    } else if text.starts_with("..") {
        broken.push("must not start with '..'".into());
    }
    broken
}

/// `IsRelaxedEnvVarName`.
pub(super) fn env_name(text: &str) -> Vec<String> {
    let fine = !text.is_empty() && text.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=');
    if fine { Vec::new() } else { vec![ENV_NAME.into()] }
}

/// `IsValidPortName`: an IANA service name.
pub(super) fn port_name(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if text.len() > 15 {
        broken.push("must be no more than 15 characters".into());
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        broken.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        broken.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        broken.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        broken.push("must not begin or end with a hyphen".into());
    }
    broken
}

/// `IsValidPortNum`.
pub(super) fn port_number(number: i64) -> Vec<String> {
    if (1..=65535).contains(&number) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".into()]
    }
}

/// `IsWildcardDNS1123Subdomain`.
pub(super) fn wildcard(text: &str) -> Vec<String> {
    let fine = text.strip_prefix("*.").is_some_and(|rest| rest.split('.').all(is_label));
    let mut broken = longer_than(text, 253);
    if !fine {
        broken.push(WILDCARD.into());
    }
    broken
}

/// `IsValidIP`.
pub(super) fn ip(text: &str) -> Vec<String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(_) => Vec::new(),
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
    }
}

/// The prefix of a generated name: the suffix makes a trailing dash good (`maskTrailingDash`).
pub(super) fn masked(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => prefix.to_owned(),
    }
}

fn longer_than(text: &str, limit: usize) -> Vec<String> {
    if text.len() > limit { vec![format!("must be no more than {limit} characters")] } else { Vec::new() }
}

fn is_label(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn is_word(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rule: fn(&str) -> Vec<String>, good: &[&str], bad: &[&str]) {
        for text in good {
            assert_eq!(rule(text), Vec::<String>::new(), "{text:?} is good");
        }
        for text in bad {
            assert!(!rule(text).is_empty(), "{text:?} is bad");
        }
    }

    #[test]
    fn each_form_takes_the_good_and_refuses_the_bad() {
        let long = "a".repeat(64);
        check(subdomain, &["a", "a.b-c", "1.2"], &["", "A", "a..b", "-a", "a_b", "a."]);
        check(label, &["a", "1a", "a-b"], &["", "a.b", "a-", &long]);
        check(label_1035, &["a1"], &["1a", ""]);
        check(qualified, &["app", "a.b/C_d", "x"], &["", "/a", "a/", "A/b", "a/b/c", &long, "-a"]);
        check(label_value, &["", "Ab.c_d"], &["-", "a b", &long]);
        check(config_key, &["a.b", "_x", "A-1"], &["", "..", "..a", "a/b", "."]);
        check(env_name, &["A", "data-1", "a b"], &["", "A=B", "é"]);
        check(port_name, &["http", "a-1"], &["", "1", "a--b", "-a", "HTTP", "averyveryverylong"]);
        check(wildcard, &["*.a.b"], &["*", "*a.b", "a.*.b"]);
        check(ip, &["10.0.0.1", "::1"], &["10.0.0", "x"]);
    }
}
