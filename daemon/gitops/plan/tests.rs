#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

use super::*;
use crate::source::Snapshot;
use serde_json::json;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn id(kind: &str, name: &str) -> Id {
    let namespace = if kind == "Namespace" { "" } else { "default" };
    let group = if kind == "Deployment" {
        "apps"
    } else if kind == "Job" {
        "batch"
    } else {
        ""
    };
    Id { group: group.into(), kind: kind.into(), namespace: namespace.into(), name: name.into() }
}

fn kind(name: &str) -> &'static Kind {
    api::kinds::kinds().iter().find(|kind| kind.kind == name).unwrap()
}

fn live(code: HealthCode) -> Option<Live> {
    let health = Health { code, message: String::new() };
    Some(Live {
        uid: "u".into(),
        owner: Some("demo".into()),
        deleting: false,
        health,
        prune: Prune::Guarded,
        run: None,
        evidence: Vec::new(),
    })
}

fn wanted(what: &str, name: &str, wave: i64, verdict: Verdict) -> Wanted {
    let id = id(what, name);
    let object = Object {
        id,
        kind: kind(what),
        value: Arc::new(json!({})),
        file: Arc::from("a.yaml"),
        line: 1,
        wave,
        hash: 1,
    };
    let live = if verdict == Verdict::Missing { None } else { live(HealthCode::Healthy) };
    Wanted { object, live, verdict, known: 0, healed: None }
}

fn gone(what: &str, name: &str, file: &str) -> Gone {
    let id = id(what, name);
    let told = ObjectStatus {
        group: id.group,
        version: "v1".into(),
        kind: id.kind,
        namespace: id.namespace,
        name: id.name,
        file: file.into(),
        line: 1,
        ..ObjectStatus::default()
    };
    Gone { told, kind: Some(kind(what)), live: live(HealthCode::Healthy) }
}

fn failure(retry_seconds: i64) -> Failure {
    let defect = Defect {
        file: "a.yaml".into(),
        line: 3,
        column: 0,
        message: "refused".into(),
        help: String::new(),
        object: None,
    };
    Failure { hash: 1, defect, tries: 1, retry_at: now() + Duration::from_secs(retry_seconds.unsigned_abs()) }
}

fn view(desired: Vec<Wanted>, gone: Vec<Gone>) -> View {
    let snapshot = Snapshot { revision: "r1".into(), ..Snapshot::default() };
    let application = serde_json::from_value(json!({"name": "demo", "dir": "x"})).unwrap();
    View {
        application,
        source: Source { revision: "r1".into(), ..Source::default() },
        sourced: Arc::new(Sourced { snapshot: Some(Arc::new(snapshot)), trouble: None, fetched_at: None }),
        desired,
        defects: Vec::new(),
        kept_back: BTreeMap::new(),
        unread: BTreeMap::new(),
        advice: Vec::new(),
        gone,
        newest: "r1".into(),
        choice: Chosen::default(),
        decisions: Decisions::default(),
        blocked: None,
        hurried: false,
        leaving: false,
        content: "c1".into(),
        hooks: Vec::new(),
        hooks_gone: Vec::new(),
        told: Arc::default(),
        told_at: None,
    }
}

/// The effects as words, without reports.
fn effects(view: &View) -> Vec<String> {
    let words = |step: Step| match step {
        Step::Report(_) => None,
        Step::Forget => Some("forget".to_owned()),
        Step::Apply(objects) => {
            Some(format!("apply {}", objects.iter().map(|o| o.id.name.clone()).collect::<Vec<_>>().join("+")))
        }
        Step::Delete(removals) => Some(format!(
            "delete {}",
            removals.iter().map(|r| r.id.name.clone()).collect::<Vec<_>>().join("+")
        )),
    };
    plan(view, now()).steps.into_iter().filter_map(words).collect()
}

fn told(view: &View) -> Status {
    let step = plan(view, now()).steps.into_iter().next().unwrap();
    match step {
        Step::Report(status) => *status,
        other => panic!("the first step is {other:?}"),
    }
}

#[test]
fn what_others_need_is_applied_before_them() {
    let view = view(
        vec![
            wanted("Deployment", "web", 0, Verdict::Missing),
            wanted("Service", "svc", 0, Verdict::Missing),
            wanted("ConfigMap", "b", 0, Verdict::Differs),
            wanted("ConfigMap", "a", 0, Verdict::Missing),
            wanted("Namespace", "shop", 7, Verdict::Missing),
            wanted("Secret", "same", 0, Verdict::Same),
        ],
        vec![],
    );
    assert_eq!(effects(&view), ["apply shop", "apply b+a", "apply svc", "apply web"]);
}

#[test]
fn a_later_wave_waits_until_the_earlier_is_healthy() {
    let mut db = wanted("Deployment", "db", -1, Verdict::Same);
    db.live = live(HealthCode::Progressing);
    let view = view(vec![db, wanted("Deployment", "web", 0, Verdict::Missing)], vec![]);
    assert!(effects(&view).is_empty());
    let web = told(&view).objects.into_iter().find(|object| object.name == "web").unwrap();
    assert_eq!(web.waits_for, "Deployment default/db of an earlier wave");
}

#[test]
fn nothing_is_made_in_a_namespace_that_is_going_away() {
    let mut space = wanted("Namespace", "default", 0, Verdict::Same);
    space.live.as_mut().unwrap().deleting = true;
    let view = view(vec![space, wanted("ConfigMap", "a", 0, Verdict::Missing)], vec![]);
    assert!(effects(&view).is_empty());
    assert_eq!(told(&view).objects[0].waits_for, "Namespace default");
}

#[test]
fn in_sync_and_told_is_an_empty_plan() {
    let mut view = view(vec![wanted("ConfigMap", "a", 0, Verdict::Same)], vec![]);
    view.told = Arc::new(told(&view));
    assert!(plan(&view, now()).is_empty());
    assert_eq!(plan(&view, now()).again, None);
    assert!(view.told.is_good());
    assert_eq!(view.told.history[0].result, "Healthy");
}

#[test]
fn what_no_file_wants_is_pruned_after_all_is_applied_and_namespaces_last() {
    let prunes = || {
        vec![
            gone("Namespace", "ns", "b.yaml"),
            gone("ConfigMap", "c", "b.yaml"),
            gone("Deployment", "d", "b.yaml"),
        ]
    };
    let mut same = view(vec![wanted("ConfigMap", "a", 0, Verdict::Same)], prunes());
    assert_eq!(effects(&same), ["delete d", "delete c"], "a namespace needs a person's word");
    same.decisions.confirmed.insert("Namespace ns".into());
    assert_eq!(effects(&same), ["delete d", "delete c", "delete ns"]);
    let pending = view(vec![wanted("ConfigMap", "a", 0, Verdict::Differs)], prunes());
    assert_eq!(effects(&pending), ["apply a"]);
}

#[test]
fn nothing_is_pruned_because_of_an_error() {
    let keep = || wanted("Secret", "keep", 0, Verdict::Same);
    let one = || vec![gone("ConfigMap", "one", "a.yaml")];
    let bytes = |text: &str| Arc::from(text.as_bytes());
    type Change = Box<dyn Fn(&mut View)>;
    let table: Vec<(&str, Change)> = vec![
        (
            "its file cannot be read",
            Box::new(move |v| {
                v.unread.insert("a.yaml".into(), bytes("x"));
            }),
        ),
        (
            "its directory cannot be listed",
            Box::new(move |v| {
                v.gone[0].told.file = "m/sub/a.yaml".into();
                v.unread.insert("m/sub/".into(), bytes(""));
            }),
        ),
        (
            "another unread file names it",
            Box::new(move |v| {
                v.unread.insert("b.yaml".into(), bytes("{name: one"));
            }),
        ),
        (
            "its text has a defect",
            Box::new(|v| {
                v.kept_back.insert(id("ConfigMap", "one"), "a.yaml".into());
            }),
        ),
        (
            "its successor has a defect",
            Box::new(|v| {
                v.kept_back.insert(id("ConfigMap", "next"), "a.yaml".into());
            }),
        ),
        (
            "its successor failed",
            Box::new(|v| {
                v.desired.push(Wanted {
                    live: None,
                    ..wanted("ConfigMap", "next", 0, Verdict::Failed(failure(60)))
                })
            }),
        ),
        ("nothing is left", Box::new(|v| v.desired.clear())),
        (
            "the source was not read",
            Box::new(|v| {
                v.desired.clear();
                v.sourced = Arc::default();
            }),
        ),
        ("prune is off", Box::new(|v| v.application.prune = false)),
        ("suspended", Box::new(|v| v.application.suspend = true)),
        (
            "it carries another application's label",
            Box::new(|v| v.gone[0].live.as_mut().unwrap().owner = Some("other".into())),
        ),
        ("it carries no label", Box::new(|v| v.gone[0].live.as_mut().unwrap().owner = None)),
    ];
    assert_eq!(effects(&view(vec![keep()], one())), ["delete one"]);
    for (case, change) in table {
        let mut view = view(vec![keep()], one());
        change(&mut view);
        assert!(effects(&view).is_empty(), "{case}: {:?}", effects(&view));
    }
    // An unread file that does not name it is no reason.
    let mut other = view(vec![keep()], one());
    other.unread.insert("b.yaml".into(), bytes("name: oneself, phone"));
    assert_eq!(effects(&other), ["delete one"]);
    // Nor is a defect in another file.
    let mut other = view(vec![keep()], one());
    other.kept_back.insert(id("ConfigMap", "new"), "b.yaml".into());
    assert_eq!(effects(&other), ["delete one"]);
    // Nor is one of an object that is there already.
    let mut other = view(vec![keep()], one());
    other.kept_back.insert(id("ConfigMap", "old"), "a.yaml".into());
    Arc::make_mut(&mut other.told).objects = vec![gone("ConfigMap", "old", "a.yaml").told];
    assert_eq!(effects(&other), ["delete one"]);
    let mut emptied = view(vec![], one());
    emptied.application.allow_empty = true;
    assert_eq!(effects(&emptied), ["delete one"]);
}

#[test]
fn a_failure_stops_no_other_and_is_tried_again_in_its_time() {
    let failed =
        |seconds| Wanted { live: None, ..wanted("ConfigMap", "bad", 0, Verdict::Failed(failure(seconds))) };
    let waiting = view(vec![failed(60), wanted("ConfigMap", "good", 0, Verdict::Missing)], vec![]);
    assert_eq!(effects(&waiting), ["apply good"]);
    let mut alone = view(vec![failed(60)], vec![]);
    alone.told = Arc::new(told(&alone));
    let again = plan(&alone, now());
    assert!(again.is_empty());
    assert_eq!(again.again, Some(now() + Duration::from_secs(60)));
    assert_eq!(
        (alone.told.sync.state.as_str(), alone.told.sync.message.as_str()),
        ("Failed", "a.yaml:3: refused")
    );
    assert_eq!(effects(&view(vec![failed(0)], vec![])), ["apply bad"]);
}

#[test]
fn a_job_that_cannot_change_is_deleted_and_then_made() {
    let mut job = wanted("Job", "once", 0, Verdict::Immutable("field is immutable".into()));
    assert_eq!(effects(&view(vec![wanted("Job", "once", 0, job.verdict.clone())], vec![])), ["delete once"]);
    job.live.as_mut().unwrap().deleting = true;
    assert!(effects(&view(vec![job], vec![])).is_empty());
    assert_eq!(effects(&view(vec![wanted("Job", "once", 0, Verdict::Missing)], vec![])), ["apply once"]);
}

#[test]
fn an_object_is_in_the_inventory_before_it_is_made() {
    let view = view(vec![wanted("ConfigMap", "a", 0, Verdict::Missing)], vec![]);
    let steps = plan(&view, now()).steps;
    let Step::Report(status) = &steps[0] else { panic!("{steps:?}") };
    assert_eq!(status.objects[0].id(), id("ConfigMap", "a"));
    assert!(matches!(steps[1], Step::Apply(_)));
}

#[test]
fn the_last_good_state_stays_and_is_told_while_the_source_is_in_trouble() {
    let mut view = view(vec![wanted("ConfigMap", "a", 0, Verdict::Differs)], vec![]);
    let sourced = Sourced { trouble: Some("read directory x: gone".into()), ..(*view.sourced).clone() };
    view.sourced = Arc::new(sourced);
    assert_eq!(effects(&view), ["apply a"], "drift still heals");
    let status = told(&view);
    assert_eq!(status.sync.state, "Failed");
    assert!(status.sync.message.contains("last good state stays"), "{}", status.sync.message);
}

#[test]
fn a_newer_revision_ends_the_history_of_the_older() {
    let mut view = view(vec![wanted("ConfigMap", "a", 0, Verdict::Differs)], vec![]);
    view.told = Arc::new(told(&view));
    assert_eq!(view.told.history[0].result, "");
    let next = Snapshot { revision: "r2".into(), ..Snapshot::default() };
    view.sourced = Arc::new(Sourced { snapshot: Some(Arc::new(next)), ..Sourced::default() });
    let status = told(&view);
    let results: Vec<(&str, &str)> =
        status.history.iter().map(|entry| (entry.revision.as_str(), entry.result.as_str())).collect();
    assert_eq!(results, [("r1", "Superseded"), ("r2", "")]);
}

#[test]
fn the_health_of_an_application_is_that_of_its_worst_object() {
    let mut view = view(
        vec![wanted("ConfigMap", "a", 0, Verdict::Same), wanted("Deployment", "b", 0, Verdict::Same)],
        vec![],
    );
    view.desired[1].live.as_mut().unwrap().health =
        Health { code: HealthCode::Degraded, message: "no pod runs".into() };
    let status = told(&view);
    assert_eq!(status.health.code, "Degraded");
    assert_eq!(status.health.message, "Deployment default/b: no pod runs");
    assert_eq!(status.history[0].result, "Degraded: Deployment default/b: no pod runs");
}

#[test]
fn a_plan_of_a_thousand_unchanged_objects_is_quick() {
    let desired = (0..1000).map(|n| wanted("ConfigMap", &format!("c{n:04}"), 0, Verdict::Same)).collect();
    let mut view = view(desired, vec![]);
    view.told = Arc::new(told(&view));
    let start = std::time::Instant::now();
    assert!(plan(&view, now()).is_empty());
    // Unoptimised, on a busy machine.
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn what_another_application_keeps_is_told_and_left_alone() {
    let defect = Defect { message: "kept by application other already".into(), ..failure(0).defect };
    let view = view(vec![wanted("ConfigMap", "a", 0, Verdict::Taken(defect))], vec![]);
    assert!(effects(&view).is_empty());
    let status = told(&view);
    assert_eq!((status.sync.state.as_str(), status.objects[0].sync.as_str()), ("Failed", "Failed"));
}

#[test]
fn a_large_prune_waits_for_a_persons_word_or_the_commits() {
    let many = || (0..7).map(|n| gone("ConfigMap", &format!("c{n}"), "b.yaml")).collect::<Vec<Gone>>();
    let keep =
        |count: usize| (0..count).map(|n| wanted("Secret", &format!("s{n}"), 0, Verdict::Same)).collect();
    assert!(effects(&view(keep(6), many())).is_empty());
    assert_eq!(effects(&view(keep(7), many())).len(), 1, "half is not more than half");
    let mut said = view(keep(1), many());
    let message = Some("Drop them\n\nholdfast-prune: Confirm\n".to_owned());
    let snapshot = Snapshot { revision: "r1".into(), message, ..Snapshot::default() };
    said.sourced = Arc::new(Sourced { snapshot: Some(Arc::new(snapshot)), ..Sourced::default() });
    assert_eq!(effects(&said).len(), 1);
    let mut kept = view(keep(7), many());
    kept.gone[0].live.as_mut().unwrap().prune = Prune::Never;
    assert_eq!(effects(&kept), ["delete c1+c2+c3+c4+c5+c6"]);
    assert!(told(&view(keep(1), many())).objects.iter().filter(|object| object.confirm).count() == 7);
}
