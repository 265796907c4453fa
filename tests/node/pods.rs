//! What is documented of pods, behaviour by behaviour: the rows of pods/*.yaml, all on one node.
//!
//! A row is a YAML document: `behaviour` (a true sentence), `spec` of a pod, `with` (objects made before it), `metadata`,
//! and `steps`, worked through in turn:
//! `expect` waits until the pod's status holds at least this (a text that starts with `~` is contained in what is there,
//! `!` alone means absent, `>=2` is a number), `log` and `logs` until a container has said exactly this, `events` until each was told,
//! `gone` until the pod is not there; `kubectl` runs a command. `$POD` is the pod's name.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::machine;
use super::node::{Node, PATIENCE, same, until};

/// How often the pods are looked at.
const LOOK: Duration = Duration::from_millis(150);

/// A seccomp profile under which no directory can be made.
const NO_MKDIR: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}"#;

struct Row {
    name: String,
    behaviour: String,
    objects: Vec<Value>,
    steps: Vec<Value>,
    /// The step that is being waited for, and since when.
    at: usize,
    since: Instant,
    /// Why it is still being waited for.
    seen: String,
}

fn documents(text: &str) -> Vec<Value> {
    use serde_yaml::Deserializer;
    let documents = Deserializer::from_str(text).map(|document| {
        let value: serde_yaml::Value = serde::Deserialize::deserialize(document).unwrap();
        serde_json::to_value(value).unwrap()
    });
    documents.filter(|document| !document.is_null()).collect()
}

/// The rows of one file; pods are named after file and place.
fn rows(path: &Path) -> Vec<Row> {
    let file = path.file_stem().unwrap().to_str().unwrap().to_owned();
    let text = fs::read_to_string(path).unwrap();
    let row = |(at, document): (usize, Value)| {
        let behaviour =
            document["behaviour"].as_str().unwrap_or_else(|| panic!("{file} row {at} tells no behaviour"));
        let name = document["name"].as_str().map_or_else(|| format!("{file}-{at}"), str::to_owned);
        let filled = |value: &Value| -> Value {
            serde_json::from_str(&value.to_string().replace("$POD", &name)).unwrap()
        };
        let mut spec = filled(&document["spec"]);
        for (field, default) in
            [("restartPolicy", json!("Never")), ("terminationGracePeriodSeconds", json!(1))]
        {
            if spec[field].is_null() {
                spec[field] = default;
            }
        }
        for list in ["containers", "initContainers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                if container["image"].is_null() {
                    container["image"] = "busybox:1".into();
                }
            }
        }
        let mut metadata = filled(&document["metadata"]);
        metadata["name"] = name.clone().into();
        let mut objects: Vec<Value> = document["with"].as_array().into_iter().flatten().map(filled).collect();
        objects.push(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}));
        let steps =
            document["steps"].as_array().unwrap_or_else(|| panic!("{file} row {at} has steps")).iter();
        Row {
            behaviour: format!("{file}: {behaviour}"),
            objects,
            steps: steps.map(filled).collect(),
            at: 0,
            since: Instant::now(),
            seen: String::new(),
            name,
        }
    };
    documents(&text).into_iter().enumerate().map(row).collect()
}

/// Whether what is there holds at least what is wanted; else the first difference.
fn holds(found: &Value, wanted: &Value, path: &str) -> Result<(), String> {
    let differs = || Err(format!("{path} is {found}, wanted {wanted}"));
    match wanted {
        Value::Object(fields) => fields.iter().try_for_each(|(name, wanted)| match found {
            // Conditions and the like are looked up by their type or name.
            Value::Array(items) => {
                let item = items.iter().find(|item| item["type"] == **name || item["name"] == **name);
                holds(item.unwrap_or(&Value::Null), wanted, &format!("{path}.{name}"))
            }
            _ => holds(&found[name], wanted, &format!("{path}.{name}")),
        }),
        Value::Array(items) => {
            let there = found.as_array().map_or(0, Vec::len);
            if there != items.len() {
                return differs();
            }
            let pairs = items.iter().enumerate();
            pairs.into_iter().try_for_each(|(at, wanted)| holds(&found[at], wanted, &format!("{path}[{at}]")))
        }
        Value::String(text) if text == "!" => {
            if found.is_null() {
                Ok(())
            } else {
                differs()
            }
        }
        Value::String(text) if text.starts_with('~') => match found.as_str() {
            Some(found) if found.contains(&text[1..]) => Ok(()),
            _ => differs(),
        },
        Value::String(text) if text.starts_with(">=") => {
            let least: i64 = text[2..].parse().unwrap();
            if found.as_i64().is_some_and(|found| found >= least) { Ok(()) } else { differs() }
        }
        wanted if found == wanted => Ok(()),
        _ => differs(),
    }
}

impl Row {
    /// Whether the present step is done; else what it waits for.
    fn try_step(&self, node: &Node, pods: &[Value]) -> Result<(), String> {
        let step = &self.steps[self.at];
        let pod = pods.iter().find(|pod| pod["metadata"]["name"] == *self.name);
        if let Some(args) = step["kubectl"].as_array() {
            let args: Vec<&str> = args.iter().map(|arg| arg.as_str().unwrap()).collect();
            let said = node.try_kubectl(&args);
            return if said.code == 0 { Ok(()) } else { Err(said.all()) };
        }
        if step["gone"] == true {
            return if pod.is_none() { Ok(()) } else { Err("it is there".to_owned()) };
        }
        if !step["expect"].is_null() {
            holds(&pod.ok_or("it is not there")?["status"], &step["expect"], "status")?;
        }
        if let Some(wanted) = step["log"].as_str() {
            same_log(node, &[&self.name], wanted)?;
        }
        for (container, wanted) in step["logs"].as_object().into_iter().flatten() {
            same_log(node, &[&self.name, "-c", container], wanted.as_str().unwrap())?;
        }
        if let Some(wanted) = step["events"].as_array() {
            let selector = format!("involvedObject.name={}", self.name);
            let told = node.kubectl(&["get", "events", "--field-selector", &selector]);
            for event in wanted.iter().map(|event| event.as_str().unwrap()) {
                let (reason, message) = event.split_once(": ").unwrap_or((event, ""));
                let mut lines = told.lines();
                if !lines.any(|line| line.contains(reason) && line.contains(message)) {
                    return Err(format!("no event {event:?} among\n{told}"));
                }
            }
        }
        Ok(())
    }
}

fn same_log(node: &Node, args: &[&str], wanted: &str) -> Result<(), String> {
    let said = node.try_kubectl(&[&["logs"], args].concat());
    if said.out == wanted {
        Ok(())
    } else {
        Err(format!("log {:?} {}, wanted {wanted:?}", said.out, said.err))
    }
}

/// Works through all rows side by side; the ones that did not come to their end, each with what it waited for.
fn work(node: &Node, mut rows: Vec<Row>) -> Vec<String> {
    let mut failed = Vec::new();
    while !rows.is_empty() {
        let pods = node.list("pods", "");
        for row in &mut rows {
            while row.at < row.steps.len() {
                match row.try_step(node, &pods) {
                    Ok(()) => (row.at, row.since) = (row.at + 1, Instant::now()),
                    Err(seen) => {
                        row.seen = seen;
                        break;
                    }
                }
            }
        }
        rows.retain(|row| {
            let late = row.at < row.steps.len() && row.since.elapsed().as_secs() > PATIENCE;
            if late {
                failed.push(format!("{} ({}), step {}: {}", row.behaviour, row.name, row.at, row.seen));
            }
            row.at < row.steps.len() && !late
        });
        std::thread::sleep(LOOK);
    }
    failed
}

/// Runs the rows of some files, or of all, on a node of their own.
fn check(files: &[&str]) {
    let mut node = Node::new();
    node.configure(
        "[kubelet]\nmax_pods = 1000\ncrash_backoff_seconds = 1\nallowed_unsafe_sysctls = [\"kernel.msgmnb\"]\n",
    );
    let profiles = node.data().join("seccomp/profiles");
    fs::create_dir_all(&profiles).unwrap();
    fs::write(profiles.join("no-mkdir.json"), NO_MKDIR).unwrap();
    node.up();
    node.load_busybox();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/pods");
    let rows: Vec<Row> = files.iter().flat_map(|file| rows(&dir.join(format!("{file}.yaml")))).collect();
    assert!(!rows.is_empty(), "there are rows");
    let objects: Vec<String> = rows.iter().flat_map(|row| &row.objects).map(Value::to_string).collect();
    node.kubectl_with(&["create", "-f", "-"], &objects.join("\n"));
    let count = rows.len();
    let failed = work(&node, rows);
    assert!(failed.is_empty(), "{} of {count} behaviours do not hold:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn pods_live_as_documented() {
    check(&["lifecycle", "init", "stopping"]);
}

#[test]
fn containers_may_what_is_documented() {
    check(&["security"]);
}

#[test]
fn images_are_had_as_documented() {
    check(&["images"]);
}

#[test]
fn pods_are_probed_as_documented() {
    check(&["probes"]);
}

#[test]
fn containers_see_what_is_documented() {
    check(&["environment", "volumes", "namespaces", "resources"]);
}

#[test]
fn what_pods_keep_and_use_is_as_documented() {
    check(&["storage"]);
}

#[test]
fn use_is_told_to_kubectl_top_and_by_the_nodes_own_paths() {
    let node = Node::with(&[(
        "busy.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: busy, labels: {app: busy}}\nspec:\n  containers:\n  - {name: c, image: 'kubia:1', imagePullPolicy: Never}\n",
    )]);
    let of_pods = node.kubectl(&["top", "pod", "-l", "app=busy", "--no-headers"]);
    assert!(of_pods.starts_with("busy ") && of_pods.contains("Mi"), "{of_pods}");
    let of_containers = node.kubectl(&["top", "pod", "busy", "--containers", "--no-headers"]);
    assert!(of_containers.contains(" c "), "{of_containers}");
    let of_nodes = node.kubectl(&["top", "node", "--no-headers"]);
    assert!(of_nodes.contains('%'), "{of_nodes}");
    let name = node.list("nodes", "")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let raw = |path: &str| node.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{name}/proxy/{path}")]);
    let summary: Value = serde_json::from_str(&raw("stats/summary")).unwrap();
    let pod = &summary["pods"][0];
    assert_eq!(pod["podRef"]["name"], "busy", "{summary:#}");
    assert!(
        pod["memory"]["workingSetBytes"].as_u64() > Some(0)
            && summary["node"]["fs"]["capacityBytes"].as_u64() > Some(0)
    );
    let text = raw("metrics/resource");
    assert!(
        text.contains(
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"default\",pod=\"busy\"}"
        ),
        "{text}"
    );
}

#[test]
fn pods_that_are_gone_leave_nothing_behind() {
    let node = Node::with(&[(
        "stays.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: stays}\nspec:\n  containers:\n  - {name: c, image: 'kubia:1', imagePullPolicy: Never}\n",
    )]);
    let instance = machine::instance(&node);
    let groups = || {
        let found = machine::pids().into_iter().map(|pid| machine::proc_file(pid, "cgroup"));
        found.filter(|text| text.contains(&format!("holdfast-{instance}"))).count()
    };
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().count();
    let left = || {
        let mut traces = machine::traces(&instance, &node.data());
        // The kernel makes a link's own addresses in its own time.
        traces.retain(|trace| !trace.contains(" fe80:") && !trace.contains(" ff00:"));
        let files = |dir: &str| fs::read_dir(node.data().join(dir)).unwrap().count();
        let memory = fs::read_dir(format!("/run/holdfast-{instance}")).map_or(0, Iterator::count);
        (traces, groups(), files("pods"), files("runtime/sandboxes"), memory)
    };
    let (before, open) = (left(), descriptors());
    let pod = |number: usize| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("brief-{number}"), "labels": {"app": "brief"}},
            "spec": {"terminationGracePeriodSeconds": 1, "shareProcessNamespace": number.is_multiple_of(2),
                "containers": [{"name": "c", "image": "kubia:1", "imagePullPolicy": "Never",
                    "volumeMounts": [{"name": "m", "mountPath": "/m"}, {"name": "d", "mountPath": "/d", "subPath": "deep/er"}]}],
                "volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}, {"name": "d", "emptyDir": {}}]}})
    };
    let pods: Vec<String> = (0..60).map(|number| pod(number).to_string()).collect();
    node.kubectl_with(&["create", "-f", "-"], &pods.join("\n"));
    node.ready("app=brief", 60);
    node.kubectl(&["delete", "pod", "-l", "app=brief", "--wait=false"]);
    until("nothing of them is left", PATIENCE, || same(left(), before.clone()));
    until("no descriptor of them is left", PATIENCE, || {
        let now = descriptors();
        if now <= open + 8 { Ok(()) } else { Err(format!("{now} descriptors are open, {open} were before")) }
    });
}

#[test]
fn a_pod_whose_shim_is_killed_is_made_whole() {
    let node = Node::with(&[(
        "whole.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: whole}\nspec:\n  containers:\n  - {name: c, image: 'kubia:1', imagePullPolicy: Never}\n",
    )]);
    for pid in machine::shims(&node) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    until("it runs again, counted as a restart", PATIENCE, || {
        let status = node.object("pod", "whole")["status"]["containerStatuses"][0].clone();
        if status["restartCount"] == 1 && status["ready"] == true { Ok(()) } else { Err(status.to_string()) }
    });
}
