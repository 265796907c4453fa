//! Files and requests of strangers, damaged in every way that a few seconds allow.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::kustomize::{self, Files};
use super::{Builder, Defaults, Defined, scalar, substitute, yaml};
use crate::source::Snapshot;

#[path = "../../../tests/damage.rs"]
pub(crate) mod damaged;

const WORDS: [&str; 18] = [
    "---\n",
    "- ",
    ": ",
    "&a ",
    "*a",
    "<<: *a",
    "!!binary ",
    "|\n",
    ">-\n",
    "? ",
    "  ",
    "kind: List\n",
    "${A}",
    "${A:=b}",
    "0777",
    "apiVersion: v1\n",
    "metadata: {name: a}\n",
    "...\n",
];

fn snapshot(name: &str, text: &str) -> Snapshot {
    Snapshot { files: [(Arc::from(name), Arc::from(text.as_bytes()))].into(), ..Snapshot::default() }
}

#[test]
fn damaged_manifests_give_objects_or_defects() {
    let sound = include_str!("golden/sound/all.yaml");
    let anchors = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: &l {x: \"1\"}}\ndata: {<<: *l, on: \"2\"}\n";
    damaged::each_text(&[sound, anchors], &WORDS, 1500, |text| {
        let mut builder = Builder::new(Defaults {
            namespace: "default".to_owned(),
            application: "demo".to_owned(),
            substitute: BTreeMap::new(),
            kinds: Defined::default(),
        });
        let built = builder.build(&snapshot("a.yaml", text));
        for object in &built.objects {
            assert!(object.value.to_string().len() < 4 << 20, "{text:?} grew");
        }
    });
}

#[test]
fn damaged_documents_scalars_and_variables_are_read_or_refused() {
    let values = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
    let texts = [
        "a: ${A} ${B:=c} $${D}\nb: [0o17, 1_000, .inf, 2001-01-01, yes]\n",
        "? [a, b]\n: !!str x\n--- |\n text\n",
    ];
    damaged::each_text(&texts, &WORDS, 6000, |text| {
        let _ = substitute::substitute(text, &values);
        for document in yaml::documents(text).into_iter().flatten() {
            document.root.value();
            document.root.place("a.b[0].c");
        }
        for word in text.split_whitespace() {
            let _ = (scalar::resolve(word), scalar::resolve_for_kustomize(word));
        }
    });
}

#[test]
fn damaged_kustomizations_are_rendered_or_told() {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec:\n      containers:\n      - {name: c, image: \"a:1\"}\n";
    let kustomization = "namePrefix: x-\nnamespace: n\nresources: [web.yaml]\nlabels: [{pairs: {a: b}, includeSelectors: true}]\nimages: [{name: a, newTag: \"2\"}]\nconfigMapGenerator: [{name: c, literals: [k=v], files: [f=web.yaml]}]\npatches:\n- target: {kind: Deploy.*}\n  patch: '[{\"op\": \"add\", \"path\": \"/spec/replicas\", \"value\": 2}]'\n- patch: |\n    apiVersion: apps/v1\n    kind: Deployment\n    metadata: {name: web}\n    spec: {template: {spec: {containers: [{name: c, $patch: delete}]}}}\nreplacements:\n- source: {kind: Deployment, fieldPath: metadata.name}\n  targets: [{select: {kind: ConfigMap}, fieldPaths: [data.k], options: {delimiter: '-', index: 0}}]\nreplicas: [{name: web, count: 3}]\n";
    damaged::each_text(&[kustomization], &WORDS, 1500, |text| {
        let file = |name: &str, text: &str| (Arc::from(name), Arc::from(text.as_bytes()));
        let files: Files =
            [file("kustomization.yaml", text), file("web.yaml", deployment)].into_iter().collect();
        let rendered = kustomize::render(&files, "");
        assert!(rendered.defects.is_empty() || rendered.objects.is_empty(), "{text:?}");
    });
}
