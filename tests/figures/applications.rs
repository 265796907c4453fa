//! Many applications, many manifests: from cold, after a commit that touches one, and when nothing is to do.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::node::{Node, get, ok, until};
use crate::wire::{Api, block_on};
use crate::{Figure, millis};

const APPLICATIONS: usize = 1000;
const COMMITS: usize = 5;
const PLANS: [(usize, usize); 2] = [(1000, 5), (10_000, 3)];
/// As long as it takes on a machine that does other things as well.
const PATIENCE: u64 = 300;

pub(crate) fn measure() -> Vec<Figure> {
    let mut figures = many("one repository", |name, repository| {
        format!(
            "[[application]]\nname = {name:?}\ngit = {repository:?}\nref = \"main\"\npath = \"apps/{name}\"\n"
        )
    });
    figures.extend(many("directories", |name, repository| {
        format!("[[application]]\nname = {name:?}\ndir = \"{}/apps/{name}\"\n", repository.display())
    }));
    for (manifests, runs) in PLANS {
        figures.push(plan(manifests, runs));
    }
    figures
}

/// What the applications of the published comparison hold, but for the Ingress: nothing of them runs.
fn manifest(name: &str, value: usize) -> String {
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}}}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{value: '{value}'}}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: 0\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    \
         spec: {{containers: [{{name: a, image: 'kubia:1'}}]}}\n"
    )
}

fn git(repository: &Path, args: &[&str]) {
    let dir = repository.display().to_string();
    let me = ["-C", &dir, "-c", "user.name=bench", "-c", "user.email=bench@example.org"];
    ok("git", &[&me[..], args].concat());
}

fn many(of: &str, declare: impl Fn(&str, &Path) -> String) -> Vec<Figure> {
    let mut node = Node::new();
    let repository = node.path("repository");
    let names: Vec<String> = (0..APPLICATIONS).map(|at| format!("app-{at:04}")).collect();
    for name in &names {
        let dir = repository.join("apps").join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("app.yaml"), manifest(name, 0)).unwrap();
    }
    git(&repository, &["init", "--quiet", "--initial-branch", "main"]);
    git(&repository, &["add", "."]);
    git(&repository, &["commit", "--quiet", "--message", "all"]);
    let declared: Vec<String> = names.iter().map(|name| declare(name, &repository)).collect();
    node.configure(&declared.concat());
    let begin = Instant::now();
    node.up();
    until("every application is in sync and healthy", PATIENCE, || {
        let (_, metrics) = get((Ipv4Addr::LOCALHOST, node.web), "/metrics")?;
        let ready = metrics.lines().any(|line| line == "holdfast_ready 1");
        if ready { Ok(()) } else { Err("not all are".to_owned()) }
    });
    let cold = millis(begin.elapsed());
    let touched = block_on(touch(&node, &repository));
    // What the start needed is given back some seconds after the last sync.
    std::thread::sleep(std::time::Duration::from_secs(25));
    let resident = crate::crowd::memory(&node, "VmRSS");
    let name = |what: &str| format!("{APPLICATIONS} applications, {of}: {what}");
    vec![
        Figure::new(name("from cold"), "ms", vec![cold]).aim(10_000.0),
        Figure::new(name("change of one to live"), "ms", touched).aim(100.0),
        Figure::new(name("daemon resident"), "MiB", vec![resident]).aim(100.0),
    ]
}

/// From a commit (and the file that it saves) to the object that it changes.
async fn touch(node: &Node, repository: &Path) -> Vec<f64> {
    let name = format!("app-{:04}", APPLICATIONS / 2);
    let path = format!("/api/v1/namespaces/default/configmaps?fieldSelector=metadata.name%3D{name}");
    let mut watch = Api::of(node).watch(&path).await;
    let mut runs = Vec::new();
    for value in 1..=COMMITS {
        fs::write(repository.join(format!("apps/{name}/app.yaml")), manifest(&name, value)).unwrap();
        let begin = Instant::now();
        git(repository, &["commit", "--quiet", "--all", "--message", "one"]);
        let committed = begin.elapsed();
        let wanted = Value::from(value.to_string());
        while watch.next().await["object"]["data"]["value"] != wanted {}
        // A directory may be quicker than git.
        runs.push(millis(begin.elapsed().saturating_sub(committed)));
    }
    runs
}

/// A diff of everything that is as it should be: read, built, dry-run against live, compared.
fn plan(manifests: usize, runs: usize) -> Figure {
    let mut node = Node::new();
    for at in 0..manifests {
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: many-{at}, labels: {{app: many}}}}\ndata: {{value: '{at}', other: text}}\n"
        );
        fs::write(node.manifests().join(format!("many-{at}.yaml")), text).unwrap();
    }
    node.up();
    let said = node.holdfast(&["status", "--json", "--wait", &PATIENCE.to_string()]);
    assert_eq!(said.code, 0, "{}", said.err);
    let spans = (0..runs).map(|_| {
        let begin = Instant::now();
        let said = node.holdfast(&["diff"]);
        assert_eq!(said.code, 0, "{}", said.all());
        millis(begin.elapsed())
    });
    let figure = Figure::new(format!("plan of {manifests} unchanged manifests"), "ms", spans.collect());
    if manifests == 1000 { figure.aim(50.0) } else { figure }
}
