#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

use std::fmt::Write as _;
use std::process::Command;

use super::super::yaml;
use super::*;

/// A tree of files, and the directory that is rendered.
struct Tree {
    name: String,
    dir: String,
    files: Vec<(String, String)>,
}

/// The trees of a text: `##### name @ dir` begins one, `## path` a file in it.
fn trees(text: &str) -> Vec<Tree> {
    let mut all: Vec<Tree> = Vec::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("##### ") {
            let (name, dir) = head.split_once(" @ ").unwrap_or((head, ""));
            all.push(Tree { name: name.to_owned(), dir: dir.to_owned(), files: Vec::new() });
        } else if let Some(path) = line.strip_prefix("## ") {
            all.last_mut().unwrap().files.push((path.to_owned(), String::new()));
        } else {
            let file = all.last_mut().unwrap().files.last_mut().unwrap();
            file.1.push_str(line);
            file.1.push('\n');
        }
    }
    all
}

fn files(tree: &Tree) -> Files {
    tree.files.iter().map(|(path, text)| (Arc::from(path.as_str()), Arc::from(text.as_bytes()))).collect()
}

/// One line per object, or why there are none.
fn ours(tree: &Tree) -> Result<String, String> {
    let rendered = render(&files(tree), &tree.dir);
    if rendered.defects.is_empty() {
        return Ok(rendered.objects.iter().map(|made| format!("{}\n", made.value)).collect());
    }
    Err(rendered.defects.iter().map(|defect| format!("{defect}\n")).collect())
}

/// What `kubectl kustomize` prints, one line per object; nothing when it refuses.
fn kubectl(tree: &Tree) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in &tree.files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let out = Command::new("kubectl").arg("kustomize").arg(dir.path().join(&tree.dir)).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let documents = yaml::documents(&text).into_iter().map(|document| document.unwrap().root.value());
    let lines = documents.filter(|value| !value.is_null()).map(|value| format!("{value}\n"));
    out.status.success().then(|| lines.collect())
}

/// Whether the machine's kubectl has the kustomize that `trees.expected` was made with, or a newer one.
fn has_kustomize() -> bool {
    let Ok(out) = Command::new("kubectl").args(["version", "--client", "-o", "json"]).output() else {
        return false;
    };
    let version: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    let version = version["kustomizeVersion"].as_str().unwrap_or_default().trim_start_matches('v').to_owned();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next(), parts.next()) >= (Some(5), Some(5))
}

fn expected_file() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("build/kustomize/trees.expected")
}

/// `trees.expected` holds what kustomize 5.5 printed; UPDATE=1 asks the machine's kubectl anew.
fn expected() -> Vec<(String, Option<String>)> {
    let mut all: Vec<(String, Option<String>)> = Vec::new();
    for line in std::fs::read_to_string(expected_file()).unwrap_or_default().lines() {
        if let Some(name) = line.strip_prefix("##### ") {
            all.push((name.to_owned(), Some(String::new())));
        } else if line == "refused" {
            all.last_mut().unwrap().1 = None;
        } else {
            let text = all.last_mut().unwrap().1.as_mut().unwrap();
            text.push_str(line);
            text.push('\n');
        }
    }
    all
}

#[test]
fn every_tree_renders_as_kubectl_kustomize_renders_it() {
    let trees = trees(include_str!("trees.txt"));
    assert!(trees.len() >= 100, "{} trees", trees.len());
    if std::env::var_os("UPDATE").is_some() {
        let mut text = String::new();
        for tree in &trees {
            let said = kubectl(tree).unwrap_or_else(|| "refused\n".to_owned());
            let _ = write!(text, "##### {}\n{said}", tree.name);
        }
        std::fs::write(expected_file(), text).unwrap();
    }
    let expected = expected();
    assert_eq!(trees.len(), expected.len(), "UPDATE=1 asks kubectl for the new ones");
    let mut wrong = String::new();
    for (tree, (name, wanted)) in trees.iter().zip(&expected) {
        assert_eq!(&tree.name, name);
        match (ours(tree), wanted) {
            (Ok(got), Some(wanted)) if got == *wanted => {}
            (Err(_), None) => {}
            (got, wanted) => {
                let _ = writeln!(wrong, "== {name}\nkustomize {wanted:#?}\nours      {got:#?}");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn what_was_expected_is_what_the_machine_s_kubectl_says() {
    if !has_kustomize() {
        // Debian 12 has a kubectl with kustomize 2: the other test compares with what 5.5 said.
        return;
    }
    for (tree, (name, wanted)) in trees(include_str!("trees.txt")).iter().zip(&expected()) {
        assert_eq!(&kubectl(tree), wanted, "{name}");
    }
}
