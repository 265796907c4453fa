//! The machine's own kubectl, unmodified, finds a cluster here.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::demo::WAITER;
use super::node::{Node, PATIENCE, free_port, get, name, same, until};

/// kubectl's minor version: before 1.30 it knows no WebSocket for exec.
fn minor(node: &Node) -> u32 {
    let text = node.kubectl_command(&["version", "--client", "-o", "json"]).output().unwrap().stdout;
    let version: serde_json::Value = serde_json::from_slice(&text).unwrap();
    version["clientVersion"]["minor"].as_str().unwrap().trim_end_matches('+').parse().unwrap()
}

impl Node {
    /// Waits until a pod runs.
    pub(crate) fn kubectl_wait_running(&self, pod: &str) {
        until(&format!("{pod} runs"), PATIENCE, || {
            let found = self.find("pod", pod).ok_or("there is none")?;
            let phase = found["status"]["phase"].as_str().unwrap_or_default();
            if phase == "Running" { Ok(()) } else { Err(found["status"].to_string()) }
        });
    }

    /// Waits until a pod's container has started, whether or not it has ended since.
    pub(crate) fn kubectl_wait_started(&self, pod: &str) {
        until(&format!("{pod} has started"), PATIENCE, || {
            let found = self.find("pod", pod).ok_or("there is none")?;
            let phase = found["status"]["phase"].as_str().unwrap_or_default();
            if ["Running", "Succeeded", "Failed"].contains(&phase) {
                Ok(())
            } else {
                Err(found["status"].to_string())
            }
        });
    }
}

fn waiter() -> Node {
    let node = Node::empty();
    node.load_busybox();
    node.save("waiter.yaml", WAITER);
    node.kubectl_wait_running("waiter");
    node
}

#[test]
fn get_prints_what_people_know() {
    let node = Node::demo();
    node.ready("app=kubia", 3);
    let first = |args: &[&str]| node.kubectl(args).lines().next().unwrap().to_owned();
    let columns =
        |args: &[&str]| first(args).split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    assert_eq!(columns(&["get", "pods"]), "NAME READY STATUS RESTARTS AGE");
    assert_eq!(
        columns(&["get", "pods", "-o", "wide"]),
        "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES"
    );
    assert_eq!(columns(&["get", "deployments"]), "NAME READY UP-TO-DATE AVAILABLE AGE");
    assert_eq!(columns(&["get", "svc"]), "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE");
    assert_eq!(columns(&["get", "nodes"]), "NAME STATUS ROLES AGE VERSION");
    let pods = node.kubectl(&["get", "po", "-l", "app=kubia", "--no-headers"]);
    assert_eq!(pods.lines().count(), 3);
    assert!(pods.lines().all(|line| line.contains("1/1") && line.contains("Running")), "{pods}");
    let yaml = node.kubectl(&["get", "deploy", "kubia", "-o", "yaml"]);
    assert!(yaml.starts_with("apiVersion: apps/v1\nkind: Deployment\n"), "{yaml}");
    assert!(yaml.contains("terminationGracePeriodSeconds: 5") && yaml.contains("readyReplicas: 3"), "{yaml}");
    let ip = node.kubectl(&["get", "svc", "kubia", "-o", "jsonpath={.spec.clusterIP}"]);
    assert!(ip.parse::<std::net::Ipv4Addr>().is_ok(), "{ip}");
    let everything = node.kubectl(&["get", "all"]);
    for word in [
        "pod/kubia-",
        "service/kubia",
        "deployment.apps/kubia",
        "replicaset.apps/kubia-",
        "job.batch/kubia-hello",
    ] {
        assert!(everything.contains(word), "{word} is in: {everything}");
    }
    assert!(node.kubectl(&["api-resources"]).contains("applications"));
    let ready = node.kubectl(&["get", "nodes", "--no-headers"]);
    assert!(ready.contains(" Ready "), "{ready}");
    let by_field = node.kubectl(&["get", "pods", "--field-selector", "status.phase=Running", "-o", "name"]);
    assert_eq!(by_field.lines().count(), 3, "{by_field}");
    let applications = node.kubectl(&["get", "applications"]);
    assert!(applications.contains("demo") && applications.contains("Synced"), "{applications}");
}

#[test]
fn describe_tells_of_a_pods_events() {
    let node = Node::demo();
    let pod = name(&node.ready("app=kubia", 3)[0]);
    let told = until("describe tells of the start", PATIENCE, || {
        let told = node.kubectl(&["describe", "pod", &pod]);
        let all = ["Scheduled", "Created", "Started"].iter().all(|word| told.contains(word));
        if all { Ok(told) } else { Err(told) }
    });
    let words = told.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in [
        "Image: kubia:1",
        " Ready True ",
        "ContainersReady True",
        "Limits:",
        "ConfigMap (a volume populated by",
    ] {
        assert!(words.contains(word), "{word} is in: {told}");
    }
    let told = node.kubectl(&["describe", "deployment", "kubia"]);
    assert!(told.contains("3 desired | 3 updated | 3 total | 3 available"), "{told}");
    assert!(node.kubectl(&["describe", "node"]).contains("Allocatable"));
    assert!(node.kubectl(&["describe", "service", "kubia"]).contains("Endpoints:"));
}

#[test]
fn watch_tells_of_each_change() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: first}\ndata: {a: \"1\"}\n";
    let node = Node::with(&[("first.yaml", text)]);
    let mut command =
        node.kubectl_command(&["get", "configmaps", "-w", "--output-watch-events", "--no-headers"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let (told, lines) = std::sync::mpsc::channel();
    let out = BufReader::new(child.stdout.take().unwrap()).lines();
    std::thread::spawn(move || out.map_while(Result::ok).try_for_each(|line| told.send(line)));
    let next = |words: &[&str]| {
        let mut seen = Vec::new();
        while !seen.last().is_some_and(|line: &String| words.iter().all(|word| line.contains(word))) {
            let line = lines.recv_timeout(Duration::from_secs(PATIENCE));
            seen.push(line.unwrap_or_else(|_| panic!("no event {words:?}, only {seen:?}")));
        }
    };
    next(&["ADDED", "first"]);
    node.kubectl(&["create", "configmap", "seen", "--from-literal=a=1"]);
    next(&["ADDED", "seen", "1"]);
    node.kubectl(&["patch", "configmap", "seen", "--type=merge", "-p", r#"{"data":{"b":"2"}}"#]);
    next(&["MODIFIED", "seen", "2"]);
    node.kubectl(&["delete", "configmap", "seen"]);
    next(&["DELETED", "seen"]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_person_can_create_scale_roll_and_delete() {
    let node = Node::empty();
    // A typed command: kubectl sends protobuf.
    let said =
        node.kubectl(&["create", "deployment", "web", "--image=kubia:1", "--replicas=2", "--port=8080"]);
    assert_eq!(said, "deployment.apps/web created\n");
    let said = node.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert!(said.contains("successfully rolled out"), "{said}");
    node.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    node.ready("app=web", 3);
    node.kubectl(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]);
    assert_eq!(node.object("service", "web")["spec"]["ports"][0]["targetPort"], 8080);
    node.kubectl(&["set", "env", "deployment/web", "GREETING=set by hand"]);
    node.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let history = node.kubectl(&["rollout", "history", "deployment/web"]);
    assert!(history.contains('2'), "{history}");
    node.kubectl(&["rollout", "undo", "deployment/web"]);
    node.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let found = node.object("deployment", "web");
    assert!(found["spec"]["template"]["spec"]["containers"][0]["env"].is_null(), "{found:#}");
    node.kubectl(&["rollout", "restart", "deployment/web"]);
    node.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    node.kubectl(&["create", "secret", "generic", "s", "--from-literal=key=value"]);
    assert_eq!(node.object("secret", "s")["data"]["key"], "dmFsdWU=");
    node.kubectl(&["create", "namespace", "other"]);
    node.kubectl(&["-n", "other", "create", "configmap", "inside", "--from-literal=a=1"]);
    node.kubectl(&["delete", "namespace", "other", "--timeout=60s"]);
    assert!(node.find("namespace", "other").is_none());
    let said = node.kubectl(&["delete", "deployment", "web"]);
    assert_eq!(said, "deployment.apps \"web\" deleted\n");
    until("its pods are gone", PATIENCE, || same(node.list("pods", "app=web").len(), 0));
    until("its replica sets are gone", PATIENCE, || same(node.list("replicasets", "app=web").len(), 0));
}

#[test]
fn apply_works_on_both_sides() {
    let node = Node::empty();
    let with = |value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {{value: \"{value}\"}}\n")
    };
    assert_eq!(node.kubectl_with(&["apply", "-f", "-"], &with("1")), "configmap/a created\n");
    assert_eq!(node.kubectl_with(&["apply", "-f", "-"], &with("1")), "configmap/a unchanged\n");
    assert_eq!(node.kubectl_with(&["apply", "-f", "-"], &with("2")), "configmap/a configured\n");
    let applied = ["apply", "--server-side", "--field-manager=me", "-f", "-"];
    let said = node.try_kubectl_with(&applied, &with("3"));
    assert_ne!(said.code, 0);
    assert!(said.all().contains("conflict") && said.all().contains(".data.value"), "{}", said.all());
    let forced = [&applied[..2], &["--force-conflicts"], &applied[2..]].concat();
    assert_eq!(node.kubectl_with(&forced, &with("3")), "configmap/a serverside-applied\n");
    assert_eq!(node.object("configmap", "a")["data"]["value"], "3");
    let dry = node.kubectl_with(&["apply", "--dry-run=server", "-f", "-"], &with("4"));
    assert_eq!(dry, "configmap/a configured (server dry run)\n");
    assert_eq!(node.object("configmap", "a")["data"]["value"], "3");
    let unknown = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndatas: {value: x}\n";
    let said = node.try_kubectl_with(&["apply", "-f", "-"], unknown);
    assert!(said.code != 0 && said.all().contains("unknown field \"datas\""), "{}", said.all());
    assert!(node.kubectl(&["explain", "deployment.spec.replicas"]).contains("replicas"));
    let invalid = "apiVersion: v1\nkind: Pod\nmetadata: {name: P}\nspec: {containers: []}\n";
    let said = node.try_kubectl_with(&["create", "-f", "-"], invalid);
    for word in ["is invalid", "metadata.name", "spec.containers: Required value"] {
        assert!(said.all().contains(word), "{word} is in {}", said.all());
    }
}

#[test]
fn logs_are_followed_to_the_end() {
    let node = Node::empty();
    node.load_busybox();
    node.save(
        "talker.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: talker}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - {name: talker, image: 'busybox:1', command: [sh, -c, 'for n in 1 2 3 4 5; do echo line $n; sleep 0.2; done; echo oops >&2']}\n",
    );
    node.kubectl_wait_started("talker");
    let followed = node.kubectl(&["logs", "-f", "talker"]);
    assert_eq!(followed, "line 1\nline 2\nline 3\nline 4\nline 5\noops\n");
    assert_eq!(node.kubectl(&["logs", "talker", "--tail=2"]), "line 5\noops\n");
    let stamped = node.kubectl(&["logs", "talker", "--timestamps", "--tail=1"]);
    assert!(stamped.starts_with("20") && stamped.ends_with(" oops\n"), "{stamped}");
    let said = node.try_kubectl(&["logs", "absent"]);
    assert!(said.code != 0 && said.err.contains("pods \"absent\" not found"), "{}", said.err);
    let said = node.try_kubectl(&["logs", "talker", "-c", "none"]);
    assert!(
        said.code != 0 && said.err.contains("container none is not valid for pod talker"),
        "{}",
        said.err
    );
}

#[test]
fn exec_gives_streams_codes_and_a_terminal() {
    let node = waiter();
    if minor(&node) < 30 {
        // What an older kubectl speaks is refused, and the refusal says what to use.
        let said = node.try_kubectl(&["exec", "waiter", "--", "true"]);
        assert!(said.code != 0 && said.all().contains("WebSocket"), "{}", said.all());
        return;
    }
    let said = node.try_kubectl(&["exec", "waiter", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((said.out.as_str(), said.code), ("out\n", 3), "{}", said.err);
    assert!(said.err.starts_with("err\n"), "{}", said.err);
    let echoed = node.kubectl_with(&["exec", "-i", "waiter", "--", "cat"], "through and back\n");
    assert_eq!(echoed, "through and back\n");
    let large = "0123456789abcdef".repeat(64 << 10);
    assert_eq!(node.kubectl_with(&["exec", "-i", "waiter", "--", "cat"], &large).len(), large.len());
    let said = node.try_kubectl(&["exec", "waiter", "--", "no-such-program"]);
    assert!(said.code != 0 && said.all().contains("no-such-program"), "{}", said.all());
    // A terminal of a known size, as `script` gives it.
    let config = node.path("kubeconfig");
    let line = format!(
        "stty rows 33 cols 77; kubectl --kubeconfig {} exec -it waiter -- sh -c 'tty; for n in $(seq 50); do stty size && break; sleep 0.1; done; sleep 1'",
        config.display()
    );
    // The size is told beside the start, as everywhere in Kubernetes.
    until("the terminal has the size of ours", PATIENCE, || {
        let mut command = Command::new("script");
        command.args(["-qefc", &line, "/dev/null"]).env("HOME", node.path("home"));
        let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = streams.spawn().unwrap();
        // Held open to the end: at the end of its input `script` ends the terminal, whatever still runs in it.
        let input = running.stdin.take();
        let output = running.wait_with_output().unwrap();
        drop(input);
        let shown = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        let terminal = shown.contains("/dev/pts/") || shown.contains("/dev/console");
        if terminal && shown.contains("33 77") { Ok(()) } else { Err(shown) }
    });
    let said = node.try_kubectl(&["exec", "absent", "--", "true"]);
    assert!(said.code != 0 && said.all().contains("pods \"absent\" not found"), "{}", said.all());
}

#[test]
fn without_the_certificate_nothing_is_told() {
    let node = Node::empty();
    let url = format!("https://127.0.0.1:{}/api/v1/secrets", node.api);
    let said =
        super::node::run("curl", &["-sk", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}", &url]);
    assert!(["401", "403"].contains(&said.out.as_str()), "{}", said.all());
    let said = super::node::run("curl", &["-s", "--noproxy", "*", &url]);
    assert_eq!(said.code, 60, "its CA is not one that everybody trusts: {}", said.all());
    let kubeconfig = std::fs::metadata(node.path("kubeconfig")).unwrap();
    assert!(kubeconfig.len() > 0);
    for file in super::machine::files(&node.data()) {
        use std::os::unix::fs::PermissionsExt;
        let text = std::fs::read_to_string(&file.0).unwrap_or_default();
        if text.contains("PRIVATE KEY") {
            let mode = std::fs::metadata(&file.0).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{} is for root only: {mode:o}", file.0.display());
        }
    }
}

const TALKER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: talker
    image: busybox:1
    stdin: true
    stdinOnce: true
    command: [sh, -c, 'while read line; do echo heard $line; done; echo the end; mkdir -p /www; echo page > /www/index.html; httpd -f -p 127.0.0.1:8080 -h /www & httpd -f -p 8081 -h /www']
";

#[test]
fn attach_port_forward_and_proxy_reach_a_program() {
    let node = Node::empty();
    node.load_busybox();
    node.save("talker.yaml", TALKER);
    node.kubectl_wait_running("talker");
    let mut attach = node.kubectl_command(&["attach", "-i", "talker"]);
    let mut attach =
        attach.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = attach.stdin.take().unwrap();
    let mut output = BufReader::new(attach.stdout.take().unwrap()).lines();
    input.write_all(b"one\ntwo\n").unwrap();
    let mut next = || output.next().unwrap().unwrap();
    assert_eq!([next(), next()], ["heard one", "heard two"]);
    // The client's end of input is the program's.
    drop(input);
    assert_eq!(next(), "the end");
    let _ = attach.kill();
    attach.wait().unwrap();
    // On the loopback of the pod, where nothing from outside leads.
    let port = free_port();
    let ports = format!("{port}:8080");
    let mut forward = node.kubectl_command(&["port-forward", "pod/talker", &ports]);
    let mut forward = forward.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the forwarded port answers", PATIENCE, || {
        let (code, body) = get((Ipv4Addr::LOCALHOST, port), "/")?;
        same((code, body.as_str()), (200, "page\n"))
    });
    let _ = forward.kill();
    forward.wait().unwrap();
    let page =
        node.kubectl(&["get", "--raw", "/api/v1/namespaces/default/pods/talker:8081/proxy/index.html"]);
    assert_eq!(page, "page\n");
    let machine = node.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let health = node.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{machine}/proxy/healthz")]);
    assert_eq!(health, "ok");
    // Files go both ways.
    let (from, to) = (node.path("from"), node.path("to"));
    std::fs::write(&from, "carried").unwrap();
    node.kubectl(&["cp", from.to_str().unwrap(), "talker:/www/there"]);
    node.kubectl(&["cp", "talker:/www/there", to.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&to).unwrap(), "carried");
}

#[test]
fn clients_that_speak_spdy_reach_a_program() {
    let node = waiter();
    let spdy = |args: &[&str]| {
        let mut command = node.kubectl_command(args);
        command
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        command
    };
    let said =
        spdy(&["exec", "waiter", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(
        (text(&said.stdout).as_str(), said.status.code()),
        ("out\n", Some(3)),
        "{}",
        text(&said.stderr)
    );
    assert!(text(&said.stderr).starts_with("err\n"), "{}", text(&said.stderr));
    let mut echo = spdy(&["exec", "-i", "waiter", "--", "cat"]);
    let mut echo = echo.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let long = "many words\n".repeat(20_000);
    let (mut stdin, input) = (echo.stdin.take().unwrap(), long.clone());
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let said = echo.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(text(&said.stdout) == long, "{} bytes came back", said.stdout.len());
}
