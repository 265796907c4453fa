//! What this room reads of strangers, damaged in every way that a few seconds allow: a value or an error, never a panic.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::cel::{self, Program};
use crate::cron::Schedule;
use crate::quantity::Quantity;
use crate::select::{Fields, Labels};
use crate::{convert, custom, kinds, legacy, patch, proto, schema, validate};

#[path = "../../tests/damage.rs"]
mod damaged;

const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"a":"1"},"finalizers":["x/y"],
"annotations":{"a":"b"},"managedFields":[{"manager":"me","operation":"Apply","apiVersion":"v1","time":"2026-11-24T01:00:00Z",
"fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:labels":{"f:a":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{}}}}}}]},
"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":80,"protocol":"TCP"}],"env":[{"name":"A","value":"1"}],
"resources":{"limits":{"cpu":"500m","memory":"64Mi"}},"readinessProbe":{"httpGet":{"port":"http"}}}],
"volumes":[{"name":"v","emptyDir":{}}],"tolerations":[{"key":"k","operator":"Exists"}]},"status":{"phase":"Running"}}"#;

const PATCHES: [&str; 5] = [
    r#"{"metadata":{"labels":{"a":null,"b":"2"},"$deleteFromPrimitiveList/finalizers":["x/y"]},"spec":{"$setElementOrder/containers":[{"name":"d"},{"name":"c"}],"containers":[{"name":"d","image":"d"},{"$patch":"delete","name":"c"}]}}"#,
    r#"{"spec":{"volumes":[{"name":"v","$retainKeys":["name","configMap"],"configMap":{"name":"c"}}],"containers":[{"$patch":"replace"},{"name":"x"}]}}"#,
    r#"[{"op":"add","path":"/metadata/labels/b","value":"c"},{"op":"move","from":"/spec","path":"/x"},{"op":"copy","from":"/metadata","path":"/metadata/labels"},{"op":"test","path":"/kind","value":"Pod"},{"op":"remove","path":"/spec/containers/0"}]"#,
    r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"a":"2"}},"spec":{"containers":[{"name":"c","ports":[{"containerPort":53},{"containerPort":53,"protocol":"UDP"}]}]}}"#,
    POD,
];

const PATCH_WORDS: [&str; 14] = [
    "$patch",
    "\"$patch\":\"delete\",",
    "$retainKeys",
    "$setElementOrder/containers",
    "$deleteFromPrimitiveList/",
    "delete",
    "replace",
    "containers",
    "/0",
    "/-",
    "~1",
    "f:",
    "k:{}",
    "{\"a\":",
];

/// JSON that was damaged but is JSON still.
fn each_json(good: &[&str], words: &[&str], count: usize, mut read: impl FnMut(Value)) {
    let mut sound = 0;
    damaged::each_text(good, words, count, |text| {
        if let Ok(value) = serde_json::from_str(text) {
            sound += 1;
            read(value);
        }
    });
    assert!(sound > count / 50, "only {sound} of {count} were JSON still");
}

fn printed(value: &Value) -> usize {
    value.to_string().len()
}

#[test]
fn damaged_patches_leave_the_object_or_change_it_within_bounds() {
    let pod = kinds::by_kind("v1", "Pod").unwrap();
    let object: Value = serde_json::from_str(POD).unwrap();
    each_json(&PATCHES, &PATCH_WORDS, 12_000, |patched| {
        let room = 2 * (printed(&object) + printed(&patched)) + 4096;
        if let Ok(merged) = patch::strategic(pod, &object, &patched) {
            assert!(printed(&merged) <= room, "{patched}");
            let text = merged.to_string();
            let directives =
                ["\"$patch\"", "\"$retainKeys\"", "\"$setElementOrder/", "\"$deleteFromPrimitiveList/"];
            for directive in directives {
                assert!(!text.contains(directive), "{directive} of {patched} was stored: {text}");
            }
        }
        let mut merged = object.clone();
        patch::merge_patch(&mut merged, &patched);
        assert!(printed(&merged) <= room, "{patched}");
        let mut target = object.clone();
        if patch::json_patch(&mut target, &patched).is_err() {
            assert_eq!(target, object, "{patched}");
        }
    });
}

#[test]
fn damaged_objects_are_applied_twice_as_once_or_refused() {
    let pod = kinds::by_kind("v1", "Pod").unwrap();
    let live: Value = serde_json::from_str(POD).unwrap();
    each_json(&PATCHES, &PATCH_WORDS, 6_000, |mut wanted| {
        if let Some(metadata) = wanted.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        let apply = |live: &Value, now: &str| patch::apply(pod, Some(live), &wanted, "you", true, None, now);
        if let Ok(once) = apply(&live, "2026-11-24T02:00:00Z") {
            let twice = apply(&once, "2026-11-24T03:00:00Z").unwrap();
            assert_eq!(twice, once, "{wanted}");
        }
        // A damaged account of owners is what a client may write with any update.
        let mut told = live.clone();
        told["metadata"]["managedFields"] = json!([wanted]);
        let mut new = told.clone();
        patch::track_update(pod, Some(&told), &mut new, "you", None, "2026-11-24T02:00:00Z");
    });
}

#[test]
fn damaged_objects_are_checked_defaulted_and_validated() {
    let rows = ["Pod", "Service", "Node"].map(|kind| kinds::by_kind("v1", kind).unwrap());
    let more = [("apps/v1", "Deployment"), ("batch/v1", "CronJob"), ("networking.k8s.io/v1", "Ingress")];
    let more = more.map(|(version, kind)| kinds::by_kind(version, kind).unwrap());
    let service = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"port":80,"targetPort":"http"}],"selector":{"a":"b"},"type":"NodePort"}}"#;
    let job = r#"{"apiVersion":"batch/v1beta1","kind":"CronJob","metadata":{"name":"a"},"spec":{"schedule":"*/5 * * * *","jobTemplate":{"spec":{"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}}}"#;
    each_json(&[POD, service, job], &["spec", "1", "true", "\"a\"", "{}", "[]"], 6_000, |object| {
        schema::duplicate_fields(object.to_string().as_bytes());
        let _ = legacy::today(&object);
        legacy::gone(&object);
        custom::rows(&object);
        for kind in rows.iter().chain(&more) {
            let mut object = object.clone();
            schema::coerce(kind, &mut object);
            if schema::check_fields(kind, &object).is_empty() {
                schema::defaults(kind, &mut object);
                let once = object.clone();
                schema::defaults(kind, &mut object);
                assert_eq!(object, once, "defaulted twice is defaulted once");
                validate::create(kind, &object);
                validate::update(kind, &object, &object);
                assert_eq!(
                    convert::from_stored(kind, convert::to_stored(kind, &object).into_owned()),
                    object
                );
            }
            schema::prune_unknown(kind, &mut object);
        }
    });
}

#[test]
fn damaged_selectors_quantities_and_schedules_are_read_or_refused() {
    let selectors =
        ["app=web,tier in (a,b),!canary,size>3,x notin (),y==z", "metadata.name=a,status.phase!=Running\\,"];
    let object = std::collections::BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    damaged::each_text(&selectors, &[" in ", "notin", "==", "!=", "exists", "\\,"], 20_000, |text| {
        let _ = Labels::parse(text).map(|labels| labels.matches(&object));
        let _ = Fields::parse(text).map(|fields| fields.matches(|_| None));
    });
    let quantities = ["1.5Gi", "-100m", "1e3", "0.000000001", "9223372036854775807", "1E", "+.5Ki"];
    damaged::each_text(&quantities, &["Ei", "e", "E-", ".", "9", "00000000000"], 20_000, |text| {
        let Ok(quantity) = Quantity::parse(text) else { return };
        let again = Quantity::parse(&quantity.to_string()).unwrap();
        assert_eq!((quantity, quantity.to_string()), (again, again.to_string()), "{text:?}");
    });
    let schedules = ["*/5 0-6,12 1 jan-dec mon", "@every 1h30m", "0 0 31 2 *", "@weekly", "59 23 L * 7"];
    let now: Timestamp = "2026-11-24T01:02:03Z".parse().unwrap();
    damaged::each_text(&schedules, &["*", "/0", "-", "60", "@", "every", "ns", "?"], 5_000, |text| {
        let Ok(schedule) = Schedule::parse(text) else { return };
        let next = schedule.next(now, &TimeZone::UTC);
        assert!(next.is_none_or(|next| next > now), "{text:?} after {now} is {next:?}");
    });
}

#[test]
fn damaged_expressions_end_within_their_budget() {
    let expressions = [
        "self.list.all(x, x > 0) && self.text.startsWith('he') || has(self.map.a)",
        "self.list.map(x, x > 1, x + 1).filter(y, y in [1, 2u, 3.0]).size() == 3 ? 'a' : \"b\"",
        "'a-b'.split('-').join('+').matches('^[a-z]+$') && duration('1h') > duration('1m')",
        "{'a': [1, {'b': null}]}.a[1].?b.orValue(r'\\n') == b'x' && quantity('1Gi').isGreaterThan(quantity('1'))",
        "cel.bind(x, self.n + 1, x * x) > timestamp('2026-01-02T03:04:05Z').getFullYear()",
    ];
    let words = [
        ".all(x,",
        ".map(x, x)",
        ".replace('', 'aa')",
        " + ",
        " * ",
        "self",
        ".n",
        "[0]",
        "?",
        "!",
        "dyn(",
        "'a'",
        ".join()",
    ];
    let object = json!({"n": 3, "list": [1, 2, 3], "text": "hello", "map": {"a": 1}});
    damaged::each_text(&expressions, &words, 12_000, |text| {
        let Ok(program) = Program::compile(text, &["self"]) else { return };
        let mut budget = 100_000;
        if let Ok(value) = program.evaluate(&[("self", cel::json(&object))], &mut budget) {
            assert!(printed(&value.to_json()) <= 2_000_000, "{text:?} grew");
        }
    });
}

#[test]
fn damaged_protobuf_is_read_or_refused() {
    use base64::Engine;
    let rows: Vec<Value> = serde_json::from_str(include_str!("proto/kubectl.json")).unwrap();
    let decode =
        |row: &Value| base64::engine::general_purpose::STANDARD.decode(row["body"].as_str().unwrap());
    let bodies: Vec<Vec<u8>> = rows.iter().map(|row| decode(row).unwrap()).collect();
    let bodies: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
    damaged::each(&bodies, &["\x0a\x7f", "\x12", "\x08", "k8s\0", "\x1a\x00"], 20_000, |body| {
        if let Ok(value) = proto::decode(body) {
            assert!(
                printed(&value) <= 64 * body.len() + 4096,
                "{} bytes grew to {}",
                body.len(),
                printed(&value)
            );
        }
    });
}
