//! What is documented of pods, behaviour by behaviour: the rows of pods/*.yaml, all on one node.
//!
//! A row is a YAML document: `behaviour` (a true sentence), `spec` of a pod, `with` (objects made before it), `metadata`,
//! and `steps`, worked through in turn:
//! `expect` waits until the pod's status holds at least this, `whole` until the pod itself does (a text that starts with
//! `~` is contained in what is there, `!` alone means absent, `>=2` is a number, `#3` so many characters), `log` and `logs`
//! until a container has said exactly this, `events` until each was told, `gone` until the pod is not there; `get` names
//! another object, which then `holds`; `file` is one of the machine, which then `says` something; `kubectl` runs a command,
//! which then `says` exactly this on its standard output or `fails` with this. `stays` looks for so many seconds that what
//! the step expects goes on to be so. `$POD` is the pod's name, `$DIR` a directory of the machine, `$NODE` the node's name.
//! A row with `refused` is never made: the API says this.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::machine;
use super::node::{Node, PATIENCE, free_port, get, name, ok, request, run, same, until};

/// How often the pods are looked at.
const LOOK: Duration = Duration::from_millis(150);

/// A seccomp profile under which no directory can be made.
const NO_MKDIR: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}"#;

struct Row {
    name: String,
    behaviour: String,
    objects: Vec<Value>,
    /// What the API says of the pod instead of making it.
    refused: Option<String>,
    steps: Vec<Value>,
    /// The step that is being waited for, and since when.
    at: usize,
    since: Instant,
    /// Since when what the step expects is so.
    so_since: Option<Instant>,
    /// Why it is still being waited for.
    seen: String,
}

/// The way to the API that costs no program per question: `kubectl proxy`.
struct Door {
    port: u16,
    proxy: Child,
}

impl Door {
    fn open(node: &Node) -> Door {
        let port = free_port();
        let mut command = node.kubectl_command(&["proxy", &format!("--port={port}")]);
        let proxy = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let door = Door { port, proxy };
        until("kubectl proxy answers", PATIENCE, || door.text("/readyz"));
        door
    }

    fn text(&self, path: &str) -> Result<String, String> {
        match get((Ipv4Addr::LOCALHOST, self.port), path)? {
            (200, body) => Ok(body),
            (_, body) => Err(body),
        }
    }

    fn json(&self, path: &str) -> Result<Value, String> {
        serde_json::from_str(&self.text(path)?).map_err(|error| format!("{path}: {error}"))
    }

    fn items(&self, resource: &str) -> Result<Vec<Value>, String> {
        let list = self.json(&format!("/api/v1/namespaces/default/{resource}"))?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // One that has ended already is as good.
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

/// A directory of the machine whose mounts are shared, as `/` is on most machines and not on all.
struct Shared(PathBuf);

impl Shared {
    fn mount(dir: &Path) -> Shared {
        fs::create_dir(dir).unwrap();
        ok("mount", &["-t", "tmpfs", "-o", "mode=0755", "none", dir.to_str().unwrap()]);
        let shared = Shared(dir.to_owned());
        ok("mount", &["--make-shared", dir.to_str().unwrap()]);
        shared
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // With what a row that failed has left in it.
        let said = run("umount", &["--recursive", "--lazy", self.0.to_str().unwrap()]);
        if said.code != 0 {
            eprintln!("umount: {}", said.all());
        }
    }
}

/// What the steps look at, read once per look.
struct Seen {
    pods: Vec<Value>,
    events: Vec<Value>,
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
fn rows(path: &Path, node: &Node, node_name: &str) -> Vec<Row> {
    let dir = node.path("host").display().to_string();
    let file = path.file_stem().unwrap().to_str().unwrap().to_owned();
    let text = fs::read_to_string(path).unwrap();
    let row = |(at, document): (usize, Value)| {
        let behaviour =
            document["behaviour"].as_str().unwrap_or_else(|| panic!("{file} row {at} tells no behaviour"));
        let name = document["name"].as_str().map_or_else(|| format!("{file}-{at}"), str::to_owned);
        let filled = |value: &Value| -> Value {
            let text = value.to_string().replace("$POD", &name).replace("$DIR", &dir);
            serde_json::from_str(&text.replace("$NODE", node_name)).unwrap()
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
        let refused = document["refused"].as_str().map(str::to_owned);
        let steps = document["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert!(refused.is_some() || !steps.is_empty(), "{file} row {at} looks at something");
        Row {
            behaviour: format!("{file}: {behaviour}"),
            objects,
            refused,
            steps: steps.iter().map(filled).collect(),
            at: 0,
            since: Instant::now(),
            so_since: None,
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
        Value::String(text) if text.starts_with('#') => {
            let length: usize = text[1..].parse().unwrap();
            if found.as_str().is_some_and(|found| found.len() == length) { Ok(()) } else { differs() }
        }
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
    fn try_step(&self, node: &Node, door: &Door, seen: &Seen) -> Result<(), String> {
        let step = &self.steps[self.at];
        let pod = seen.pods.iter().find(|pod| pod["metadata"]["name"] == *self.name);
        if let Some(args) = step["kubectl"].as_array() {
            return command(node, args, step);
        }
        if step["gone"] == true {
            return if pod.is_none() { Ok(()) } else { Err("it is there".to_owned()) };
        }
        for (field, part) in [("expect", "/status"), ("whole", "")] {
            if !step[field].is_null() {
                let found = pod.ok_or("it is not there")?.pointer(part).unwrap_or(&Value::Null);
                holds(found, &step[field], if part.is_empty() { "pod" } else { "status" })?;
            }
        }
        if let Some(path) = step["get"].as_str() {
            let found = door.text(path).unwrap_or_else(|refusal| refusal);
            holds(&serde_json::from_str(&found).unwrap_or(Value::Null), &step["holds"], path)?;
        }
        if let Some(path) = step["file"].as_str() {
            let found = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
            said(path, &found, step["says"].as_str().unwrap_or_default())?;
        }
        if let Some(wanted) = step["log"].as_str() {
            same_log(door, &self.name, "", wanted)?;
        }
        for (container, wanted) in step["logs"].as_object().into_iter().flatten() {
            same_log(door, &self.name, container, wanted.as_str().unwrap())?;
        }
        for event in step["events"].as_array().into_iter().flatten().map(|event| event.as_str().unwrap()) {
            self.was_told(event, seen)?;
        }
        Ok(())
    }

    /// Goes on as far as it can now.
    fn go_on(&mut self, node: &Node, door: &Door, seen: &Seen) {
        while self.at < self.steps.len() {
            if let Err(why) = self.try_step(node, door, seen) {
                (self.seen, self.so_since) = (why, None);
                return;
            }
            let stays = Duration::from_secs_f64(self.steps[self.at]["stays"].as_f64().unwrap_or_default());
            if self.so_since.get_or_insert_with(Instant::now).elapsed() < stays {
                self.seen = "it is so, not long enough yet".to_owned();
                return;
            }
            (self.at, self.since, self.so_since) = (self.at + 1, Instant::now(), None);
        }
    }

    fn was_told(&self, event: &str, seen: &Seen) -> Result<(), String> {
        let (reason, message) = event.split_once(": ").unwrap_or((event, ""));
        let mut own = seen.events.iter().filter(|told| told["involvedObject"]["name"] == *self.name);
        let is = |told: &Value| {
            told["reason"] == reason && told["message"].as_str().is_some_and(|text| text.contains(message))
        };
        if own.clone().any(is) {
            return Ok(());
        }
        let told: String =
            own.by_ref().map(|told| format!("{} {}\n", told["reason"], told["message"])).collect();
        Err(format!("no event {event:?} among\n{told}"))
    }
}

/// Runs kubectl: it says what it has to, or fails as it has to.
fn command(node: &Node, args: &[Value], step: &Value) -> Result<(), String> {
    let args: Vec<&str> = args.iter().map(|arg| arg.as_str().unwrap()).collect();
    let found = node.try_kubectl(&args);
    if let Some(wanted) = step["fails"].as_str() {
        let failed = found.code != 0 && found.all().contains(wanted);
        return if failed { Ok(()) } else { Err(format!("exit {} {}", found.code, found.all())) };
    }
    if found.code != 0 {
        return Err(found.all());
    }
    step["says"].as_str().map_or(Ok(()), |wanted| said(&args.join(" "), &found.out, wanted))
}

fn said(who: &str, found: &str, wanted: &str) -> Result<(), String> {
    let good = wanted.strip_prefix('~').map_or(found == wanted, |part| found.contains(part));
    if good { Ok(()) } else { Err(format!("{who} said {found:?}, wanted {wanted:?}")) }
}

fn same_log(door: &Door, pod: &str, container: &str, wanted: &str) -> Result<(), String> {
    let found = door.text(&format!("/api/v1/namespaces/default/pods/{pod}/log?container={container}"))?;
    said("the container", &found, wanted)
}

/// Works through all rows side by side; the ones that did not come to their end, each with what it waited for.
fn work(node: &Node, door: &Door, mut rows: Vec<Row>) -> Vec<String> {
    let mut failed = Vec::new();
    rows.iter_mut().for_each(|row| row.since = Instant::now());
    while !rows.is_empty() {
        let seen = Seen { pods: door.items("pods").unwrap(), events: door.items("events").unwrap() };
        for row in &mut rows {
            row.go_on(node, door, &seen);
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

/// Whether the API made what it has to refuse, or said something else of it.
fn not_refused(door: &Door, row: &Row) -> Option<String> {
    let wanted = row.refused.as_deref()?;
    let (pod, others) = row.objects.split_last()?;
    assert!(others.is_empty(), "{}: what is refused has nothing beside it", row.behaviour);
    let sent = create(door, pod);
    let (code, body) = sent.unwrap_or_else(|error| (0, error));
    let good = (400..500).contains(&code) && body.contains(wanted);
    (!good).then(|| format!("{} ({}): {code} {body}", row.behaviour, row.name))
}

fn create(door: &Door, pod: &Value) -> Result<(u16, String), String> {
    let path = "/api/v1/namespaces/default/pods";
    request((Ipv4Addr::LOCALHOST, door.port), "POST", path, &pod.to_string())
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
    node.ok(&["image", "tag", "busybox:1", "busybox:2"]);
    let _shared = Shared::mount(&node.path("host"));
    let door = Door::open(&node);
    let node_name = name(&door.json("/api/v1/nodes").unwrap()["items"][0]);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/pods");
    let path = |file: &&str| dir.join(format!("{file}.yaml"));
    let rows: Vec<Row> = files.iter().flat_map(|file| rows(&path(file), &node, &node_name)).collect();
    assert!(!rows.is_empty(), "there are rows");
    let count = rows.len();
    let (refused, rows): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.refused.is_some());
    let objects: Vec<String> = rows.iter().flat_map(|row| &row.objects).map(Value::to_string).collect();
    node.kubectl_with(&["create", "-f", "-"], &objects.join("\n"));
    let mut failed: Vec<String> = refused.iter().filter_map(|row| not_refused(&door, row)).collect();
    failed.extend(work(&node, &door, rows));
    assert!(failed.is_empty(), "{} of {count} behaviours do not hold:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn pods_live_as_documented() {
    check(&["lifecycle", "init", "stopping"]);
}

#[test]
fn sidecars_come_first_and_go_last() {
    check(&["sidecars", "hooks"]);
}

#[test]
fn containers_may_what_is_documented() {
    check(&["security", "rights", "hosts"]);
}

#[test]
fn running_pods_are_changed_as_documented() {
    check(&["changes"]);
}

#[test]
fn images_are_had_as_documented() {
    check(&["images"]);
}

#[test]
fn pods_are_probed_as_documented() {
    check(&["probes", "asking"]);
}

#[test]
fn containers_see_what_is_documented() {
    check(&["environment", "volumes", "namespaces", "resources"]);
}

#[test]
fn files_and_variables_are_as_documented() {
    check(&["variables", "files", "emptydirs", "paths"]);
}

#[test]
fn what_pods_keep_and_use_is_as_documented() {
    check(&["storage", "claims"]);
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
    let pods: Vec<String> = (0..100).map(|number| pod(number).to_string()).collect();
    node.kubectl_with(&["create", "-f", "-"], &pods.join("\n"));
    node.ready("app=brief", 100);
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
