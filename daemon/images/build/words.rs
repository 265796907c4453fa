//! Words of a Dockerfile: cut at blanks outside of quotes, variables put in.
//!
//! Invariant: what is not understood in a word is an error in words, never text that is passed on.

/// Gives a variable's value.
pub(crate) type Look<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Cuts at blanks outside of quotes; quotes and escapes stay.
pub(crate) fn split(text: &str, escape: char) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        word.push(c);
        if c == escape && quote != Some('\'') {
            word.extend(chars.next());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Takes quotes and escapes away and puts variables in, as a shell would, without cutting.
pub(crate) fn expand(word: &str, escape: char, look: Look<'_>) -> Result<String, String> {
    let chars: Vec<char> = word.chars().collect();
    let mut at = 0;
    let text = Expansion { chars: &chars, escape, look }.until(&mut at, None)?;
    Ok(text)
}

struct Expansion<'a> {
    chars: &'a [char],
    escape: char,
    look: Look<'a>,
}

impl Expansion<'_> {
    /// Up to `end`, which is taken, or to the end of the word.
    fn until(&self, at: &mut usize, end: Option<char>) -> Result<String, String> {
        let mut text = String::new();
        while let Some(&c) = self.chars.get(*at) {
            *at += 1;
            match c {
                _ if Some(c) == end => return Ok(text),
                '\'' => loop {
                    match self.next(at).ok_or("a ' that is not closed")? {
                        '\'' => break,
                        c => text.push(c),
                    }
                },
                '"' => self.quoted(at, &mut text)?,
                '$' => text.push_str(&self.variable(at)?),
                _ if c == self.escape => text.extend(self.next(at).or(Some(c))),
                _ => text.push(c),
            }
        }
        match end {
            Some(end) => Err(format!("a variable's {end} is missing")),
            None => Ok(text),
        }
    }

    fn quoted(&self, at: &mut usize, text: &mut String) -> Result<(), String> {
        loop {
            match self.next(at).ok_or("a \" that is not closed")? {
                '"' => return Ok(()),
                '$' => text.push_str(&self.variable(at)?),
                c if c == self.escape => match self.next(at).ok_or("a \" that is not closed")? {
                    next if next == '"' || next == '$' || next == self.escape => text.push(next),
                    next => text.extend([c, next]),
                },
                c => text.push(c),
            }
        }
    }

    /// What stands behind a `$`.
    fn variable(&self, at: &mut usize) -> Result<String, String> {
        if self.chars.get(*at) != Some(&'{') {
            let name = self.name(at);
            return Ok(if name.is_empty() { "$".to_owned() } else { (self.look)(&name).unwrap_or_default() });
        }
        *at += 1;
        let name = self.name(at);
        if name.is_empty() {
            return Err("${ without a variable's name".to_owned());
        }
        let value = (self.look)(&name);
        let colon = self.chars.get(*at) == Some(&':');
        *at += usize::from(colon);
        let operator = self.next(at).ok_or("a variable's } is missing")?;
        if operator == '}' && !colon {
            return Ok(value.unwrap_or_default());
        }
        if !matches!(operator, '-' | '+' | '?') {
            return Err(format!("${{{name}{operator}…}} is not served: only :- :+ :? - + ? are"));
        }
        let word = self.until(at, Some('}'))?;
        let set = value.filter(|value| !colon || !value.is_empty());
        match (operator, set) {
            ('-', set) => Ok(set.unwrap_or(word)),
            ('+', set) => Ok(set.map_or_else(String::new, |_| word)),
            (_, Some(value)) => Ok(value),
            (_, None) => Err(format!("variable {name} is not set: {word}")),
        }
    }

    fn name(&self, at: &mut usize) -> String {
        let first = *at;
        let part = |c: &&char| c.is_ascii_alphanumeric() || **c == '_';
        *at += self.chars[first..].iter().take_while(part).count();
        self.chars[first..*at].iter().collect()
    }

    fn next(&self, at: &mut usize) -> Option<char> {
        let c = self.chars.get(*at).copied();
        *at += 1;
        c
    }
}

/// Whether a path fits a pattern of `*`, `?`, `[a-z]` and `**`; both relative, cut at slashes.
pub(crate) fn fits(pattern: &str, path: &str) -> bool {
    let parts = |text: &str| text.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let (pattern, path): (Vec<String>, Vec<String>) = (parts(pattern), parts(path));
    fits_parts(&pattern, &path)
}

fn fits_parts(pattern: &[String], path: &[String]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((first, rest)) if first == "**" => (0..=path.len()).any(|skip| fits_parts(rest, &path[skip..])),
        Some((first, rest)) => path.split_first().is_some_and(|(name, below)| {
            fits_name(&first.chars().collect::<Vec<_>>(), &name.chars().collect::<Vec<_>>())
                && fits_parts(rest, below)
        }),
    }
}

fn fits_name(pattern: &[char], name: &[char]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some(('*', rest)) => (0..=name.len()).any(|skip| fits_name(rest, &name[skip..])),
        Some(('?', rest)) => name.split_first().is_some_and(|(_, below)| fits_name(rest, below)),
        Some(('[', rest)) => {
            let Some(end) = rest.iter().skip(1).position(|c| *c == ']').map(|at| at + 1) else {
                return name.first() == Some(&'[') && fits_name(rest, &name[1..]);
            };
            let negated = matches!(rest[0], '^' | '!');
            let set = &rest[usize::from(negated)..end];
            name.split_first()
                .is_some_and(|(c, below)| in_set(set, *c) != negated && fits_name(&rest[end + 1..], below))
        }
        Some(('\\', rest)) if !rest.is_empty() => {
            name.first() == Some(&rest[0]) && fits_name(&rest[1..], &name[1..])
        }
        Some((c, rest)) => name.first() == Some(c) && fits_name(rest, &name[1..]),
    }
}

fn in_set(set: &[char], c: char) -> bool {
    let mut at = 0;
    while at < set.len() {
        if let (Some('-'), Some(last)) = (set.get(at + 1), set.get(at + 2)) {
            if (set[at]..=*last).contains(&c) {
                return true;
            }
            at += 3;
        } else {
            if set[at] == c {
                return true;
            }
            at += 1;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(word: &str, expected: Result<&str, &str>) {
        let look = |name: &str| match name {
            "A" => Some("one two".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let found = expand(word, '\\', &look);
        match expected {
            Ok(text) => assert_eq!(found.as_deref(), Ok(text), "{word}"),
            Err(part) => assert!(found.as_ref().is_err_and(|e| e.contains(part)), "{word}: {found:?}"),
        }
    }

    #[test]
    fn variables_are_put_in_as_a_shell_does() {
        check("x$A-${A}y", Ok("xone two-one twoy"));
        check("$NONE${NONE}", Ok(""));
        check("'$A'\"$A\"", Ok("$Aone two"));
        check("\\$A \\\"", Ok("$A \""));
        check("\"a\\nb\\\"\"", Ok("a\\nb\""));
        check("${NONE:-x${A}}", Ok("xone two"));
        check("${EMPTY:-x}${EMPTY-y}", Ok("x"));
        check("${A:+yes}${NONE:+no}", Ok("yes"));
        check("${NONE:?say so}", Err("variable NONE is not set: say so"));
        check("${A#one}", Err("is not served"));
        check("${A", Err("} is missing"));
        check("'open", Err("not closed"));
        check("100$", Ok("100$"));
    }

    #[test]
    fn words_end_at_blanks_outside_of_quotes() {
        let words = split("A=b  C=\"d e\" F=g\\ h 'i  j'", '\\');
        assert_eq!(words, ["A=b", "C=\"d e\"", "F=g\\ h", "'i  j'"]);
    }

    #[test]
    fn patterns_fit_as_in_a_dockerignore() {
        for (pattern, path, fit) in [
            ("*.go", "a.go", true),
            ("*.go", "x/a.go", false),
            ("**/*.go", "x/y/a.go", true),
            ("**/*.go", "a.go", true),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("dir/**", "dir/a/b", true),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
        ] {
            assert_eq!(fits(pattern, path), fit, "{pattern} {path}");
        }
    }
}
