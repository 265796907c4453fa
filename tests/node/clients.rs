//! Client libraries that nobody here wrote, each as a program uses it.

use std::path::PathBuf;
use std::process::Command;

use super::node::{Node, Said};

/// Where `tests/run` put a library.
fn library(name: &str, package: &str) -> PathBuf {
    let tools = std::env::var_os("HOLDFAST_TEST_TOOLS").map(PathBuf::from).unwrap_or_default();
    let found = tools.join(name);
    assert!(found.is_dir(), "this machine lacks {package} in {}; `tests/run` puts it there", found.display());
    found
}

fn check(program: &str, script: &str, environment: (&str, PathBuf), held: usize) {
    let node = Node::empty();
    node.load_busybox();
    let script = format!("{}/tests/clients/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("timeout");
    command.args(["120", program, &script]).arg(node.path("kubeconfig")).arg("busybox:1");
    let output = command.env(environment.0, environment.1).output().unwrap();
    let said = Said::of(&output);
    assert_eq!(said.code, 0, "{program} {script}: {}", said.all());
    assert_eq!(said.out.matches("held:").count(), held, "{}", said.all());
}

#[test]
fn the_python_client_finds_what_it_expects() {
    check("python3", "client.py", ("PYTHONPATH", library("python", "the package kubernetes of PyPI")), 8);
}

#[test]
fn the_javascript_client_finds_what_it_expects() {
    let packages = library("node", "the package @kubernetes/client-node of npm");
    check("node", "client.mjs", ("CLIENT_NODE", packages), 5);
}
