//! `git push` into the node with real git: checked, told, deployed, and fetched again.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::git::{config_map, shows};
use super::node::Node;

/// Runs git; whether it succeeded, and what it said on standard error.
fn git(dir: &Path, args: &[&str]) -> (bool, String) {
    let mut command = Command::new("git");
    command.current_dir(dir).args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]).args(args);
    command
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0");
    let output = command.output().unwrap_or_else(|error| panic!("run git: {error}"));
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn commit(work: &Path, files: &[(&str, String)]) {
    for (name, text) in files {
        fs::write(work.join(name), text).unwrap();
    }
    for args in [&["add", "-A"][..], &["commit", "-q", "-m", "change"]] {
        let (done, said) = git(work, args);
        assert!(done, "git {args:?}: {said}");
    }
}

#[test]
fn a_push_is_checked_told_and_deployed_and_can_be_fetched_again() {
    let mut node = Node::new();
    let token = node.path("token");
    fs::write(&token, "t0ken\n").unwrap();
    let web = node.web;
    node.configure(&format!(
        "[[application]]\nname = \"home\"\npush = {{}}\n[[application]]\nname = \"locked\"\nnamespace = \"kube-system\"\npush = {{ token = {{ file = {token:?} }} }}\n"
    ));
    node.up();
    let work = node.path("work");
    fs::create_dir_all(&work).unwrap();
    assert!(git(&work, &["init", "-q", "-b", "main"]).0);
    let url = format!("http://127.0.0.1:{web}/git/home");

    commit(&work, &[("a.yaml", config_map("a", "1"))]);
    let (done, said) = git(&work, &["push", &url, "main"]);
    assert!(done, "{said}");
    for words in ["remote: + ConfigMap default/a created", "is in sync and healthy", "main -> main"] {
        assert!(said.contains(words), "{words} is not in:\n{said}");
    }
    shows(&node, "a", "1");

    // A defect: told with its line, and nothing moves.
    commit(
        &work,
        &[("b.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndat: {}\n".to_owned())],
    );
    let (done, said) = git(&work, &["push", &url, "main"]);
    assert!(!done && said.contains("remote: error: b.yaml:4") && said.contains("one defect"), "{said}");
    assert!(node.find("configmap", "b").is_none());

    // Mended on top, and forced over.
    commit(&work, &[("b.yaml", config_map("b", "2")), ("a.yaml", config_map("a", "3"))]);
    let (done, said) = git(&work, &["push", &url, "main"]);
    assert!(done && said.contains("remote: ~ ConfigMap default/a changed"), "{said}");
    shows(&node, "b", "2");
    assert!(git(&work, &["commit", "-q", "--amend", "-m", "other"]).0);
    assert!(!git(&work, &["push", &url, "main"]).0, "not a fast-forward");
    assert!(git(&work, &["push", "-f", &url, "main"]).0);

    // Another branch is kept and deploys nothing.
    let (done, said) = git(&work, &["push", &url, "main:refs/heads/side"]);
    assert!(done && said.contains("nothing is deployed"), "{said}");
    let (done, said) = git(node.path("work").parent().unwrap(), &["clone", "-q", &url, "copy"]);
    assert!(done, "{said}");
    assert_eq!(fs::read_to_string(node.path("copy").join("b.yaml")).unwrap(), config_map("b", "2"));
    assert!(!git(&work, &["push", &url, ":main"]).0, "the deployed ref is not deleted");

    // A repository with a token serves nobody without it.
    let locked = |user: &str| format!("http://{user}127.0.0.1:{web}/git/locked.git");
    assert!(!git(&work, &["push", &locked(""), "main"]).0);
    assert!(!git(&work, &["push", &locked("me:wrong@"), "main"]).0);
    let (done, said) = git(&work, &["push", &locked("me:t0ken@"), "main"]);
    assert!(done, "{said}");
}
