#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

use super::*;
use std::fmt::Write as _;

fn snapshot(files: &[(&str, &str)]) -> Snapshot {
    let files = files.iter().map(|(name, text)| (Arc::from(*name), Arc::from(text.as_bytes()))).collect();
    Snapshot { files, ..Snapshot::default() }
}

fn builder() -> Builder {
    Builder::new(Defaults {
        namespace: "default".to_owned(),
        application: "demo".to_owned(),
        substitute: BTreeMap::new(),
        kinds: Defined::default(),
    })
}

/// Objects, what is kept back, unread files and defects as lines of text.
fn told(built: &Built) -> String {
    let mut text = String::new();
    for object in &built.objects {
        let _ = writeln!(text, "object {}:{} {} wave {}", object.file, object.line, object.id, object.wave);
    }
    for id in built.kept_back.keys() {
        let _ = writeln!(text, "kept back {id}");
    }
    for file in built.unread.keys() {
        let _ = writeln!(text, "unread {file}");
    }
    for defect in &built.defects {
        let _ = writeln!(text, "defect {defect}");
    }
    text
}

/// Each directory of golden/build holds files and `expected.txt`; UPDATE=1 rewrites it.
fn check(name: &str) {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("build/golden").join(name);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        if file != "expected.txt" {
            files.push((file, std::fs::read_to_string(&path).unwrap()));
        }
    }
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let got = told(&builder().build(&snapshot(&files)));
    let expected = dir.join("expected.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&expected, &got).unwrap();
    }
    assert_eq!(got, std::fs::read_to_string(&expected).unwrap_or_default(), "{name}");
}

#[test]
fn sound_files_give_objects_with_their_lines() {
    check("sound");
}

#[test]
fn every_defect_names_its_place_and_the_way_out() {
    check("defects");
}

#[test]
fn a_name_taken_twice_is_told_at_both_places_and_applied_from_neither() {
    check("twice");
}

#[test]
fn what_kubernetes_has_but_this_node_has_not_is_said_so() {
    check("kinds");
}

#[test]
fn yaml_is_read_as_kubernetes_reads_it() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: a, labels: &l {x: \"1\"}}\nstringData: {<<: *l, on: \"2\"}\nimmutable: yes\n";
    let built = builder().build(&snapshot(&[("a.yaml", text)]));
    assert!(built.defects.is_empty(), "{:?}", built.defects);
    let value = &built.objects[0].value;
    assert_eq!(value["immutable"], true);
    assert_eq!(value["stringData"], serde_json::json!({"x": "1", "true": "2"}));
    assert_eq!(value["metadata"]["labels"][crate::APPLICATION_LABEL], "demo");
    assert_eq!(value["metadata"]["namespace"], "default");
}

#[test]
fn an_octal_mode_is_the_number_that_kubernetes_means() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers: [{name: c, image: i}]\n  volumes:\n  - name: v\n    secret: {secretName: s, defaultMode: 0660}\n";
    let built = builder().build(&snapshot(&[("a.yaml", text)]));
    assert_eq!(built.objects[0].value["spec"]["volumes"][0]["secret"]["defaultMode"], 432);
}

#[test]
fn a_bomb_of_aliases_is_refused_quickly() {
    let mut text =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
            .to_owned();
    for level in 1..12 {
        let refs = vec![format!("*a{}", level - 1); 10].join(", ");
        let _ = writeln!(text, "a{level}: &a{level} [{refs}]");
    }
    let built = builder().build(&snapshot(&[("bomb.yaml", &text)]));
    assert!(built.objects.is_empty());
    assert!(built.defects[0].message.contains("too large"), "{:?}", built.defects);
    let deep = "[".repeat(5000);
    let built = builder().build(&snapshot(&[("deep.yaml", &deep)]));
    assert_eq!(built.unread.len(), 1, "{:?}", built.defects);
}

#[test]
fn a_file_whose_bytes_did_not_change_is_not_read_again() {
    let one = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
    let mut builder = builder();
    let first = builder.build(&snapshot(&[("a.yaml", one)]));
    let second = builder.build(&snapshot(&[
        ("a.yaml", one),
        ("b.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n"),
    ]));
    assert!(Arc::ptr_eq(&first.objects[0].value, &second.objects[0].value));
    assert_eq!(second.objects.len(), 2);
}

#[test]
fn a_field_that_the_api_names_is_found_in_its_file() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: z}\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: a\nspec:\n  selector: {matchLabels: {app: a}}\n  template:\n    metadata: {labels: {app: a}}\n    spec:\n      containers:\n      - name: c\n        image: i\n        ports:\n        - containerPort: 99999\n";
    let mut builder = builder();
    let built = builder.build(&snapshot(&[("a.yaml", text)]));
    let deployment = built.objects.iter().find(|object| object.id.kind == "Deployment").unwrap();
    let path = "spec.template.spec.containers[0].ports[0].containerPort";
    assert_eq!(builder.place(deployment, path), (18, 11));
    assert_eq!(builder.place(deployment, "spec.template.spec.containers[0].livenessProbe").0, 15);
}

#[test]
fn any_cut_of_a_sound_file_gives_objects_or_defects_and_never_a_panic() {
    let text = include_str!("golden/sound/all.yaml");
    for (cut, _) in text.char_indices() {
        let built = builder().build(&snapshot(&[("cut.yaml", &text[..cut])]));
        assert!(built.objects.len() <= 8);
    }
}

const CONFIG_MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";

fn names(built: &Built) -> Vec<&str> {
    built.objects.iter().map(|object| object.id.name.as_str()).collect()
}

#[test]
fn a_kustomization_is_rendered_and_its_objects_know_the_lines_they_began_at() {
    let built = builder().build(&Snapshot {
        root: Arc::from("over"),
        ..snapshot(&[
            ("over/kustomization.yaml", "resources: [../base]\nnamePrefix: p-\n"),
            (
                "base/kustomization.yaml",
                "resources: [a.yaml]\nconfigMapGenerator:\n- {name: g, literals: [a=b]}\n",
            ),
            ("base/a.yaml", &format!("# first\n---\n{CONFIG_MAP}")),
            ("over/lost.yaml", CONFIG_MAP),
        ])
    });
    assert_eq!(
        told(&built),
        "object base/a.yaml:3 ConfigMap default/p-a wave 0\nobject base/kustomization.yaml:3 ConfigMap default/p-g-4h2mbtbbt6 wave 0\n"
    );
    assert_eq!(built.notices.len(), 1, "{:?}", built.notices);
    assert_eq!(built.notices[0].file, "over/lost.yaml");
}

#[test]
fn a_broken_kustomization_is_told_with_its_line_and_prunes_nothing() {
    let files = [
        ("kustomization.yaml", "resources:\n- a.yaml\n- nope.yaml\n- https://example.org/x\n"),
        ("a.yaml", CONFIG_MAP),
    ];
    let built = builder().build(&snapshot(&files));
    let lines: Vec<u32> = built.defects.iter().map(|defect| defect.line).collect();
    assert_eq!(lines, [3, 4], "{:?}", built.defects);
    assert!(built.objects.is_empty() && built.unread.contains_key("/"));
}

#[test]
fn plain_files_and_outermost_kustomizations_live_side_by_side() {
    let component = "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\n";
    let named = |name: &str| CONFIG_MAP.replace("name: a", &format!("name: {name}"));
    let built = builder().build(&snapshot(&[
        ("plain.yaml", &named("plain")),
        ("app/base/kustomization.yaml", "resources: [x.yaml]\n"),
        ("app/base/x.yaml", &named("x")),
        ("app/prod/kustomization.yaml", "resources: [../base]\ncomponents: [../comp]\nnameSuffix: -prod\n"),
        ("app/comp/kustomization.yaml", component),
    ]));
    assert!(built.defects.is_empty(), "{:?}", built.defects);
    assert_eq!(names(&built), ["plain", "x-prod"]);
}

#[test]
fn a_defect_of_a_rendered_object_is_told_where_it_is_written() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndta: {}\n";
    let built =
        builder().build(&snapshot(&[("kustomization.yaml", "resources: [a.yaml]\n"), ("a.yaml", text)]));
    assert_eq!((built.defects[0].file.as_str(), built.defects[0].line), ("a.yaml", 4), "{:?}", built.defects);
    assert_eq!(built.kept_back.len(), 1);
}

#[test]
fn yesterday_s_manifest_is_read_in_today_s_form_and_told() {
    let text = "apiVersion: extensions/v1beta1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  template:\n    metadata: {labels: {app: a}}\n    spec: {containers: [{name: c, image: i}]}\n---\napiVersion: policy/v1beta1\nkind: PodSecurityPolicy\nmetadata: {name: p}\n";
    let built = builder().build(&snapshot(&[("a.yaml", text)]));
    assert_eq!(built.objects[0].value["apiVersion"], "apps/v1");
    assert_eq!(built.notices[0].line, 1, "{:?}", built.notices);
    assert_eq!((built.defects.len(), built.defects[0].line), (1, 10), "{:?}", built.defects);
    assert_eq!(built.kept_back.len(), 1);
}

#[test]
fn variables_of_manifests_are_filled_in_and_one_without_value_is_told_with_its_line() {
    let values = BTreeMap::from([("who".to_owned(), "Ada".to_owned())]);
    let defaults = Defaults {
        namespace: "default".to_owned(),
        application: "demo".to_owned(),
        substitute: values,
        kinds: Defined::default(),
    };
    let mut builder = Builder::new(defaults);
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: \"${name:=web}\"}\nspec:\n  terminationGracePeriodSeconds: ${n:=5}\n  containers: [{name: c, image: i, args: [\"${who}\"]}]\n";
    let built = builder.build(&snapshot(&[
        ("kustomization.yaml", "resources: [a.yaml]\nconfigMapGenerator: [{name: g, files: [run.sh]}]\n"),
        ("a.yaml", text),
        ("run.sh", "echo ${HOME}"),
    ]));
    assert!(built.defects.is_empty(), "{:?}", built.defects);
    let pod = built.objects.iter().find(|object| object.id.kind == "Pod").unwrap();
    assert_eq!(
        (pod.id.name.as_str(), &pod.value["spec"]["terminationGracePeriodSeconds"]),
        ("web", &serde_json::json!(5))
    );
    assert_eq!(pod.value["spec"]["containers"][0]["args"][0], "Ada");
    let built = builder.build(&snapshot(&[("b.yaml", &text.replace("${who}", "${nobody}"))]));
    assert_eq!(
        (built.defects[0].line, built.objects.len(), built.unread.len()),
        (6, 0, 1),
        "{:?}",
        built.defects
    );
}

#[test]
fn what_sops_encrypted_is_refused_by_name() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {x: \"ENC[AES256_GCM,data:x]\"}\nsops: {mac: \"ENC[x]\", version: 3.8.1}\n";
    let built = builder().build(&snapshot(&[("a.yaml", text)]));
    assert_eq!(
        (built.defects.len(), built.defects[0].line, built.kept_back.len()),
        (1, 5, 1),
        "{:?}",
        built.defects
    );
}

#[test]
fn a_helm_chart_is_told_in_one_sentence_and_prunes_nothing() {
    let built = builder().build(&snapshot(&[
        ("chart/Chart.yaml", "name: x\n"),
        ("chart/templates/a.yaml", "kind: {{ .Values.kind }}\n"),
        ("plain.yaml", CONFIG_MAP),
    ]));
    assert_eq!(names(&built), ["a"]);
    assert_eq!(built.defects.len(), 1, "{:?}", built.defects);
    assert!(built.unread.contains_key("chart/"));
}

const WIDGETS: &str = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: widgets.example.org}\nspec:\n  \
    group: example.org\n  scope: Namespaced\n  names: {plural: widgets, singular: widget, kind: Widget}\n  versions:\n  - name: v1\n    \
    served: true\n    storage: true\n    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer}}}}}}\n";

#[test]
fn an_object_whose_kind_is_defined_beside_it_is_sound_and_checked() {
    let widget = "apiVersion: example.org/v1\nkind: Widget\nmetadata: {name: a}\nspec:\n  size: 3\n";
    let mut builder = builder();
    // The file with the object is read before the one with the definition.
    let both = builder.build(&snapshot(&[("a.yaml", widget), ("b.yaml", WIDGETS)]));
    let ids: Vec<String> = both.objects.iter().map(|object| object.id.to_string()).collect();
    assert_eq!(
        ids,
        ["Widget default/a", "CustomResourceDefinition widgets.example.org"],
        "{:?}",
        both.defects
    );
    let wrong = widget.replace("size", "sise");
    let told = builder.build(&snapshot(&[("a.yaml", &wrong), ("b.yaml", WIDGETS)]));
    assert!(told.defects[0].to_string().starts_with("a.yaml:5"), "{:?}", told.defects);
    // Without its definition nobody knows it, unless the cluster does.
    let alone = snapshot(&[("a.yaml", widget)]);
    assert_eq!(builder.build(&alone).objects, []);
    builder.live(Defined::of(
        both.objects.iter().map(|object| &*object.value).filter(|value| value["kind"] != "Widget"),
    ));
    assert_eq!(builder.build(&alone).objects.len(), 1);
}
