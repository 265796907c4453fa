//! Building: kustomizations beside `kubectl kustomize`, and a thousand manifests, each as one run of a program.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::node::run;
use crate::{Figure, median, millis};

const RUNS: usize = 7;
const MANIFESTS: usize = 1000;

pub(crate) fn measure() -> Vec<Figure> {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small");
    tree(&small, 20);
    let large = dir.path().join("large");
    tree(&large, MANIFESTS);
    let mut figures = Vec::new();
    for (name, at) in [("overlay of 20 objects", &small), ("overlay of 1,000 objects", &large)] {
        let over = at.join("over");
        let ours = time(env!("CARGO_BIN_EXE_holdfast"), &["check", over.to_str().unwrap()]);
        let has_kustomize = run("kubectl", &["kustomize", small.join("over").to_str().unwrap()]).code == 0;
        let theirs = has_kustomize.then(|| time("kubectl", &["kustomize", over.to_str().unwrap()]));
        let peer = theirs.map(|runs| ("kubectl kustomize".to_owned(), median(&runs)));
        figures.push(Figure::new(format!("check, {name}"), "ms", ours).peer(peer));
    }
    let plain = large.join("base");
    fs::remove_file(plain.join("kustomization.yaml")).unwrap();
    let runs = time(env!("CARGO_BIN_EXE_holdfast"), &["check", plain.to_str().unwrap()]);
    figures.push(Figure::new("check, 1,000 plain manifests", "ms", runs));
    figures
}

/// A base of Deployments and their ConfigMaps, and an overlay with a prefix, labels, an image and a patch.
fn tree(at: &Path, objects: usize) {
    let (base, over) = (at.join("base"), at.join("over"));
    fs::create_dir_all(&base).unwrap();
    fs::create_dir_all(&over).unwrap();
    let mut resources = String::new();
    for number in 0..objects / 2 {
        let text = format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web-{number}}}\nspec:\n  selector: {{matchLabels: {{app: web-{number}}}}}\n  template:\n    metadata: {{labels: {{app: web-{number}}}}}\n    spec:\n      containers:\n      - name: web\n        image: nginx:1\n        envFrom: [{{configMapRef: {{name: conf-{number}}}}}]\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: conf-{number}}}\ndata: {{a: b}}\n"
        );
        fs::write(base.join(format!("web-{number}.yaml")), text).unwrap();
        resources.push_str(&format!("- web-{number}.yaml\n"));
    }
    fs::write(base.join("kustomization.yaml"), format!("resources:\n{resources}")).unwrap();
    let overlay = "resources: [../base]\nnamePrefix: prod-\nlabels: [{pairs: {env: prod}, includeSelectors: true}]\nimages: [{name: nginx, newTag: \"2\"}]\npatches:\n- target: {kind: Deployment}\n  patch: |-\n    apiVersion: apps/v1\n    kind: Deployment\n    metadata: {name: any}\n    spec: {template: {spec: {containers: [{name: web, env: [{name: A, value: b}]}]}}}\n";
    fs::write(over.join("kustomization.yaml"), overlay).unwrap();
}

fn time(program: &str, args: &[&str]) -> Vec<f64> {
    let once = || {
        let start = Instant::now();
        let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.unwrap().success(), "{program} {args:?}");
        millis(start.elapsed())
    };
    (0..RUNS).map(|_| once()).collect()
}
