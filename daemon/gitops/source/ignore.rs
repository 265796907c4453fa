//! Ignore files, in the syntax of `.gitignore`.
//!
//! Invariant: the last rule that fits decides; a file below an ignored directory cannot be brought back, as in Git.

/// One line of an ignore file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pattern: Vec<u8>,
    negated: bool,
    only_directories: bool,
    /// It fits the whole path below its directory, not just the last part.
    anchored: bool,
}

/// The rules of a text.
pub(crate) fn rules(text: &str) -> Vec<Rule> {
    text.lines().filter_map(rule).collect()
}

fn rule(line: &str) -> Option<Rule> {
    let line = line.trim_end();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (negated, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
    let line = line.strip_prefix('\\').unwrap_or(line);
    let (only_directories, line) = line.strip_suffix('/').map_or((false, line), |rest| (true, rest));
    let anchored = line.contains('/');
    let pattern = line.strip_prefix('/').unwrap_or(line);
    Some(Rule { pattern: pattern.as_bytes().to_vec(), negated, only_directories, anchored })
}

/// Whether the rules of the directories above say that a path is left out.
pub(crate) fn is_ignored(all: &[(String, Vec<Rule>)], path: &str, is_directory: bool) -> bool {
    let mut ignored = false;
    for (dir, rules) in all {
        let below = path.strip_prefix(dir.as_str()).unwrap_or(path).trim_start_matches('/');
        let name = below.rsplit('/').next().unwrap_or(below);
        for rule in rules.iter().filter(|rule| is_directory || !rule.only_directories) {
            let text = if rule.anchored { below } else { name };
            if fits(&rule.pattern, text.as_bytes()) {
                ignored = !rule.negated;
            }
        }
    }
    ignored
}

/// `*` and `?` do not cross a slash, `**` does, `[a-z]` is one of a set.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', b'*', b'/', rest @ ..] => {
            fits(rest, text)
                || text.iter().enumerate().any(|(at, byte)| *byte == b'/' && fits(rest, &text[at + 1..]))
        }
        [b'*', b'*'] => true,
        [b'*', rest @ ..] => {
            let end = text.iter().position(|byte| *byte == b'/').unwrap_or(text.len());
            (0..=end).any(|at| fits(rest, &text[at..]))
        }
        [b'?', rest @ ..] => text.split_first().is_some_and(|(byte, left)| *byte != b'/' && fits(rest, left)),
        [b'[', rest @ ..] => match (rest.iter().position(|byte| *byte == b']'), text.split_first()) {
            (Some(end), Some((byte, left))) => is_in(&rest[..end], *byte) && fits(&rest[end + 1..], left),
            _ => false,
        },
        [b'\\', byte, rest @ ..] | [byte, rest @ ..] => {
            text.split_first().is_some_and(|(first, left)| first == byte && fits(rest, left))
        }
    }
}

fn is_in(set: &[u8], byte: u8) -> bool {
    let (negated, set) = match set {
        [b'!' | b'^', rest @ ..] => (true, rest),
        set => (false, set),
    };
    let mut found = false;
    let mut rest = set;
    loop {
        match rest {
            [low, b'-', high, left @ ..] => {
                found |= (*low..=*high).contains(&byte);
                rest = left;
            }
            [one, left @ ..] => {
                found |= *one == byte;
                rest = left;
            }
            [] => return found != negated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_fit_as_git_s_do() {
        for (text, path, is_directory, want) in [
            ("*.md", "docs/a.md", false, true),
            ("*.md", "a.mdx", false, false),
            ("/top.yaml", "top.yaml", false, true),
            ("/top.yaml", "sub/top.yaml", false, false),
            ("build/", "a/build", true, true),
            ("build/", "a/build", false, false),
            ("a/**/z.yaml", "a/b/c/z.yaml", false, true),
            ("a/**/z.yaml", "a/z.yaml", false, true),
            ("**/tests/**", "x/tests/y.yaml", false, true),
            ("*.yaml\n!keep.yaml", "keep.yaml", false, false),
            ("*.yaml\n!keep.yaml", "other.yaml", false, true),
            ("test[0-9].yaml", "test7.yaml", false, true),
            ("test[!0-9].yaml", "test7.yaml", false, false),
            ("# comment\n\n", "comment", false, false),
        ] {
            let all = vec![(String::new(), rules(text))];
            assert_eq!(is_ignored(&all, path, is_directory), want, "{text} {path}");
        }
    }
}
