//! Reads a Dockerfile into stages and steps, each with its line.
//!
//! Invariant: nothing is expanded or looked up here; a step is what its lines say.

use super::words::split;

/// A Dockerfile.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Script {
    /// What continues a line and takes a character's meaning away.
    pub(crate) escape: char,
    /// The `ARG`s before the first `FROM`.
    pub(crate) arguments: Vec<Step>,
    /// In order.
    pub(crate) stages: Vec<Stage>,
}

/// What one `FROM` begins.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stage {
    /// Behind `AS`.
    pub(crate) name: Option<String>,
    /// The `FROM` itself: its flags and, as `rest`, the image.
    pub(crate) from: Step,
    /// What follows.
    pub(crate) steps: Vec<Step>,
}

/// One instruction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Where it begins, from 1.
    pub(crate) line: usize,
    /// In capitals.
    pub(crate) name: String,
    /// `--name=value` in front of everything else.
    pub(crate) flags: Vec<(String, Option<String>)>,
    /// Everything behind the flags, lines joined.
    pub(crate) rest: String,
    /// The documents that stand below it.
    pub(crate) documents: Vec<Document>,
}

/// What stands between `<<NAME` and `NAME`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Document {
    /// The delimiter.
    pub(crate) name: String,
    /// Its lines, each with its end.
    pub(crate) text: String,
    /// Whether variables are put in: not when the delimiter was quoted.
    pub(crate) expands: bool,
}

/// What is wrong, and on which line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Defect {
    pub(crate) line: usize,
    pub(crate) reason: String,
}

const KNOWN: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

impl Step {
    /// The words of a JSON list, if that is what it is.
    pub(crate) fn list(&self) -> Option<Vec<String>> {
        let text = self.rest.trim();
        if text.starts_with('[') { serde_json::from_str(text).ok() } else { None }
    }

    /// As it is told and kept in an image's history.
    pub(crate) fn told(&self) -> String {
        let mut text = self.name.clone();
        for (name, value) in &self.flags {
            text.push_str(&format!(" --{name}"));
            text.extend(value.iter().flat_map(|value| ["=", value]));
        }
        format!("{text} {}", self.rest.trim())
    }
}

/// Reads the whole text.
pub(crate) fn parse(text: &str) -> Result<Script, Defect> {
    let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line)).peekable();
    let mut script = Script { escape: '\\', ..Script::default() };
    while let Some((name, value)) = lines.peek().and_then(|(_, line)| directive(line)) {
        if name == "escape" {
            script.escape = match value.as_str() {
                "\\" => '\\',
                "`" => '`',
                _ => {
                    let line = lines.peek().map_or(1, |(line, _)| *line);
                    return Err(Defect { line, reason: format!("escape={value}: it is \\ or `") });
                }
            };
        }
        lines.next();
    }
    while let Some((line, first)) = lines.next() {
        if is_empty(first) {
            continue;
        }
        let joined = join(first, &mut lines, script.escape);
        let mut step = instruction(line, &joined, script.escape)?;
        if matches!(step.name.as_str(), "RUN" | "COPY" | "ADD") {
            documents(&mut step, &mut lines, script.escape)?;
        }
        place(&mut script, step)?;
    }
    match script.stages.is_empty() {
        true => Err(Defect { line: 1, reason: "there is no FROM".to_owned() }),
        false => Ok(script),
    }
}

/// One instruction alone, as `ONBUILD` keeps it.
pub(crate) fn parse_step(line: usize, text: &str) -> Result<Step, Defect> {
    instruction(line, text, '\\')
}

fn is_empty(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

/// `# name=value`, on the first lines only.
fn directive(line: &str) -> Option<(String, String)> {
    let (name, value) = line.trim().strip_prefix('#')?.split_once('=')?;
    let name = name.trim().to_ascii_lowercase();
    matches!(name.as_str(), "escape" | "syntax" | "check").then(|| (name, value.trim().to_owned()))
}

/// Takes the lines that continue this one; comments and empty lines between them are no part of it.
fn join<'a>(first: &str, lines: &mut impl Iterator<Item = (usize, &'a str)>, escape: char) -> String {
    let mut joined = String::new();
    let mut line = first.trim_start().to_owned();
    loop {
        match line.trim_end().strip_suffix(escape) {
            Some(part) => joined.push_str(part),
            None => {
                joined.push_str(line.trim_end());
                return joined;
            }
        }
        match lines.find(|(_, line)| !is_empty(line)) {
            Some((_, next)) => line = next.to_owned(),
            None => return joined,
        }
    }
}

fn instruction(line: usize, joined: &str, escape: char) -> Result<Step, Defect> {
    let (name, mut rest) = joined.split_once(char::is_whitespace).unwrap_or((joined, ""));
    let upper = name.to_ascii_uppercase();
    if !KNOWN.contains(&upper.as_str()) {
        return Err(Defect { line, reason: format!("unknown instruction {name:?}") });
    }
    let mut flags = Vec::new();
    rest = rest.trim_start();
    while let Some(word) = rest.strip_prefix("--").and_then(|_| split(rest, escape).into_iter().next()) {
        rest = rest[word.len()..].trim_start();
        let word = &word["--".len()..];
        flags.push(match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word.to_owned(), None),
        });
    }
    if rest.is_empty() {
        return Err(Defect { line, reason: format!("{upper} needs an argument") });
    }
    Ok(Step { line, name: upper, flags, rest: rest.to_owned(), documents: Vec::new() })
}

/// Takes the documents that the step's words announce.
fn documents<'a>(
    step: &mut Step,
    lines: &mut impl Iterator<Item = (usize, &'a str)>,
    escape: char,
) -> Result<(), Defect> {
    if step.list().is_some() {
        return Ok(());
    }
    for word in split(&step.rest, escape) {
        let Some((name, strip, expands)) = announced(&word) else { continue };
        let mut document = Document { name, text: String::new(), expands };
        loop {
            let Some((_, line)) = lines.next() else {
                let reason = format!("the document <<{} does not end", document.name);
                return Err(Defect { line: step.line, reason });
            };
            let line = if strip { line.trim_start_matches('\t') } else { line };
            if line == document.name {
                break;
            }
            document.text.push_str(line);
            document.text.push('\n');
        }
        step.documents.push(document);
    }
    Ok(())
}

/// `<<NAME`, `<<-NAME`, `<<"NAME"`: the name, whether tabs go, whether variables are put in.
pub(crate) fn announced(word: &str) -> Option<(String, bool, bool)> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (rest, strip) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    let bare = rest.trim_matches(['"', '\'']);
    let plain = !bare.is_empty() && !bare.contains(['<', '"', '\'', '(', ')', '$', ';', '&', '|']);
    plain.then(|| (bare.to_owned(), strip, bare == rest))
}

fn place(script: &mut Script, step: Step) -> Result<(), Defect> {
    let defect = |reason: String| Err(Defect { line: step.line, reason });
    if step.name == "FROM" {
        let words: Vec<&str> = step.rest.split_whitespace().collect();
        let (image, name) = match words.as_slice() {
            [image] => (*image, None),
            [image, word, name] if word.eq_ignore_ascii_case("as") => (*image, Some(name.to_lowercase())),
            _ => return defect("FROM is followed by an image and, if wanted, AS and a name".to_owned()),
        };
        if let Some(name) = &name
            && script.stages.iter().any(|stage| stage.name.as_ref() == Some(name))
        {
            return defect(format!("there is a stage {name:?} above already"));
        }
        let from = Step { rest: image.to_owned(), ..step };
        script.stages.push(Stage { name, from, steps: Vec::new() });
        return Ok(());
    }
    match script.stages.last_mut() {
        Some(stage) => stage.steps.push(step),
        None if step.name == "ARG" => script.arguments.push(step),
        None => return defect(format!("{} stands before the first FROM", step.name)),
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    #[test]
    fn a_step_knows_its_line_its_flags_and_its_words() {
        let text = "# syntax=docker/dockerfile:1\nARG V=1\n\nfrom --platform=$P busybox:${V} as Base\n\
            RUN --network=none a && \\\n  # between\n\n  b\nCOPY --chown=1:2 x /y/\n";
        let script = parse(text).unwrap();
        assert_eq!(script.arguments[0].rest, "V=1");
        let stage = &script.stages[0];
        assert_eq!((stage.name.as_deref(), stage.from.rest.as_str()), (Some("base"), "busybox:${V}"));
        assert_eq!(stage.from.flags, [("platform".to_owned(), Some("$P".to_owned()))]);
        assert_eq!((stage.steps[0].line, stage.steps[0].rest.as_str()), (5, "a &&   b"));
        assert_eq!((stage.steps[1].line, stage.steps[1].told().as_str()), (9, "COPY --chown=1:2 x /y/"));
    }

    #[test]
    fn documents_below_a_step_are_its_own() {
        let text = "FROM a\nRUN cat <<-'EOF' > /x && echo \"<<NO\"\n\thi $A\nEOF\nCOPY <<A <<B /d/\n1\nA\n2\nB\nUSER u\n";
        let steps = &parse(text).unwrap().stages[0].steps;
        let document = |name: &str, text: &str, expands| Document {
            name: name.to_owned(),
            text: text.to_owned(),
            expands,
        };
        assert_eq!(steps[0].documents, [document("EOF", "hi $A\n", false)]);
        assert_eq!(steps[1].documents, [document("A", "1\n", true), document("B", "2\n", true)]);
        assert_eq!((steps[2].name.as_str(), steps[2].line), ("USER", 10));
    }

    #[test]
    fn defects_are_told_with_their_line() {
        for (text, line, part) in [
            ("FROM a\nRUNN x", 2, "unknown instruction \"RUNN\""),
            ("RUN x", 1, "before the first FROM"),
            ("", 1, "no FROM"),
            ("FROM a b", 1, "FROM is followed"),
            ("FROM a\n\nRUN", 3, "RUN needs an argument"),
            ("FROM a AS x\nFROM b AS X", 2, "stage \"x\""),
            ("FROM a\nRUN <<EOF\nx\n", 2, "<<EOF does not end"),
        ] {
            let defect = parse(text).unwrap_err();
            assert_eq!(defect.line, line, "{text}");
            assert!(defect.reason.contains(part), "{text}: {}", defect.reason);
        }
    }

    #[test]
    fn a_list_is_json_or_it_is_a_shells_line() {
        let steps = parse("FROM a\nCMD [\"a\", \"b c\"]\nCMD [ -f x ]\n").unwrap().stages.remove(0).steps;
        assert_eq!(steps[0].list(), Some(vec!["a".to_owned(), "b c".to_owned()]));
        assert_eq!(steps[1].list(), None);
    }
}
