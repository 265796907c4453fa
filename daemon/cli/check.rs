//! `holdfast check`: what a directory says, without a node, a network or root.
//!
//! Invariant: the exit code tells what the text tells: 0 sound, 1 defects, 2 not readable.

use std::path::Path;
use std::process::ExitCode;

use gitops::{Defect, Findings};
use serde_json::{Value, json};

use super::Form;
use super::ink::{Ink, Tone, plain};

/// Checks a directory or a file and prints what was found.
pub(crate) fn run(path: &Path, namespace: &str, variables: &[String], form: Form, ink: Ink) -> ExitCode {
    let pair = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    };
    let findings = match gitops::check(path, namespace, variables.iter().map(pair).collect()) {
        Ok(findings) => findings,
        Err(error) => {
            eprintln!("error: {}", reconcile::chain(&error));
            return ExitCode::from(2);
        }
    };
    match form {
        Form::Text => print!("{}", render(&findings, ink)),
        Form::Json => println!("{:#}", json!(findings)),
        Form::Sarif => println!("{:#}", sarif(&findings)),
    }
    if findings.defects.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The findings as text.
pub(crate) fn render(findings: &Findings, ink: Ink) -> String {
    let mut out = String::new();
    for defect in &findings.defects {
        out.push_str(&render_one(defect, Tone::Bad, "error:", ink));
    }
    for notice in &findings.notices {
        out.push_str(&render_one(notice, Tone::Wait, "notice:", ink));
    }
    let count = |number: usize, what: &str| match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    };
    let seen = format!("{} in {}", count(findings.objects, "object"), count(findings.files, "file"));
    let notices = match findings.notices.len() {
        0 => String::new(),
        number => format!(", {}", count(number, "notice")),
    };
    let line = match findings.defects.len() {
        0 => ink.paint(Tone::Ok, &format!("✓ {seen}, no defects{notices}")),
        number => ink.paint(Tone::Bad, &format!("✗ {}{notices}; {seen} are sound", count(number, "defect"))),
    };
    out.push_str(&line);
    out.push('\n');
    out
}

fn render_one(defect: &Defect, tone: Tone, word: &str, ink: Ink) -> String {
    let mut place = plain(&defect.file);
    if defect.line > 0 {
        place.push_str(&format!(":{}", defect.line));
    }
    if defect.column > 0 {
        place.push_str(&format!(":{}", defect.column));
    }
    let message = ink.paint(Tone::Strong, &plain(&defect.message));
    let mut out = format!("{} {message}\n", ink.paint(tone, word));
    out.push_str(&format!("  {} {place}\n", ink.paint(Tone::Soft, "-->")));
    if !defect.help.is_empty() {
        out.push_str(&format!("  {} {}\n", ink.paint(Tone::Soft, "help:"), plain(&defect.help)));
    }
    out
}

/// The findings as SARIF 2.1.0, which forges show beside the lines of a change.
pub(crate) fn sarif(findings: &Findings) -> Value {
    let result = |defect: &Defect, level: &str| {
        let mut text = defect.message.clone();
        if !defect.help.is_empty() {
            text.push_str(&format!(" ({})", defect.help));
        }
        let mut region = json!({"startLine": defect.line.max(1)});
        if defect.column > 0 {
            region["startColumn"] = json!(defect.column);
        }
        json!({
            "ruleId": if level == "error" { "defect" } else { "notice" },
            "level": level,
            "message": {"text": text},
            "locations": [{"physicalLocation": {
                "artifactLocation": {"uri": uri(&defect.file)},
                "region": region,
            }}],
        })
    };
    let errors = findings.defects.iter().map(|defect| result(defect, "error"));
    let notices = findings.notices.iter().map(|notice| result(notice, "warning"));
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "holdfast",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": [
                    {"id": "defect", "shortDescription": {"text": "Keeps an object from being applied"}},
                    {"id": "notice", "shortDescription": {"text": "Works, but should be written otherwise"}},
                ],
            }},
            "results": errors.chain(notices).collect::<Vec<Value>>(),
        }],
    })
}

/// A path as the reference that SARIF wants: relative, and without characters that mean something there.
fn uri(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        let defect = Defect {
            file: "apps/web app.yaml".to_owned(),
            line: 7,
            column: 3,
            message: "unknown field spec.replica".to_owned(),
            help: "did you mean replicas?".to_owned(),
            object: None,
        };
        let notice =
            Defect { line: 0, column: 0, message: "nobody reads it\u{1b}[2J".to_owned(), ..defect.clone() };
        Findings { objects: 3, files: 2, defects: vec![defect], notices: vec![notice] }
    }

    #[test]
    fn findings_read_like_a_compiler_s_and_no_escape_sequence_acts() {
        let text = render(&findings(), Ink { colour: false, width: 100, height: 24 });
        assert_eq!(
            text,
            "error: unknown field spec.replica\n  --> apps/web app.yaml:7:3\n  help: did you mean replicas?\n\
             notice: nobody reads it\u{fffd}[2J\n  --> apps/web app.yaml\n  help: did you mean replicas?\n\
             ✗ 1 defect, 1 notice; 3 objects in 2 files are sound\n"
        );
    }

    #[test]
    fn a_forge_finds_every_line_in_sarif() {
        let document = sarif(&findings());
        let results = &document["runs"][0]["results"];
        let place = &results[0]["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "apps/web%20app.yaml");
        assert_eq!(place["region"], json!({"startLine": 7, "startColumn": 3}));
        assert_eq!((&results[0]["level"], &results[1]["level"]), (&json!("error"), &json!("warning")));
    }
}
