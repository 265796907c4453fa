//! What a container may not have it does not get, and what happens to it is told.

use std::time::Instant;

use super::node::{Node, PATIENCE, until};

fn pod(name: &str, rest: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n{rest}\n")
}

#[test]
fn a_container_that_takes_too_much_memory_is_shown_as_oom_killed() {
    let node = Node::empty();
    node.load_busybox();
    node.save(
        "hog.yaml",
        &pod(
            "hog",
            "  restartPolicy: Never\n  containers:\n  - name: hog\n    image: busybox:1\n    \
             command: [dd, if=/dev/zero, of=/dev/null, bs=200M, count=1]\n    resources: {limits: {memory: 16Mi}}",
        ),
    );
    let ended = until("the end is told", PATIENCE, || {
        let status = node.find("pod", "hog").ok_or("there is none")?["status"].clone();
        if status["phase"] == "Failed" { Ok(status) } else { Err(status.to_string()) }
    });
    let state = &ended["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&state["reason"], &state["exitCode"]), (&"OOMKilled".into(), &137.into()), "{ended}");
    until("the status tells why", PATIENCE, || {
        let told = node.ok_or_not(&["status"]);
        if told.contains("out of memory") && told.contains("hog.yaml") { Ok(()) } else { Err(told) }
    });
}

#[test]
fn a_container_that_crashes_is_started_again_later_and_later() {
    let node = Node::empty();
    node.save(
        "crash.yaml",
        &pod(
            "crash",
            "  containers: [{name: crash, image: 'kubia:1', args: [crash], imagePullPolicy: Never}]",
        ),
    );
    let begin = Instant::now();
    let status = until("it waits before the third start", PATIENCE, || {
        let status =
            node.find("pod", "crash").ok_or("there is none")?["status"]["containerStatuses"][0].clone();
        let waits = status["state"]["waiting"]["reason"] == "CrashLoopBackOff";
        if waits && status["restartCount"].as_u64() >= Some(1) { Ok(status) } else { Err(status.to_string()) }
    });
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 1, "{status}");
    assert!(status["state"]["waiting"]["message"].as_str().unwrap().contains("back-off"), "{status}");
    until("the third start comes", PATIENCE, || {
        let status = node.object("pod", "crash")["status"]["containerStatuses"][0].clone();
        if status["restartCount"].as_u64() >= Some(2) { Ok(()) } else { Err(status.to_string()) }
    });
    assert!(begin.elapsed().as_secs() >= 10, "the back-off is ten seconds, not {:?}", begin.elapsed());
    let logs = node.try_kubectl(&["logs", "crash", "--previous"]);
    assert!(logs.all().contains("as it was told to"), "{}", logs.all());
    until("the status tells why", PATIENCE, || {
        let told = node.ok_or_not(&["status"]);
        if told.contains("crash.yaml") && told.contains("CrashLoopBackOff") { Ok(()) } else { Err(told) }
    });
    let events = node.kubectl(&["get", "events"]);
    assert!(events.contains("BackOff"), "{events}");
}

#[test]
fn a_container_is_confined_to_what_it_was_given() {
    let node = Node::empty();
    node.load_busybox();
    node.save(
        "cell.yaml",
        &pod(
            "cell",
            "  terminationGracePeriodSeconds: 0\n  containers:\n  - name: cell\n    image: busybox:1\n    command: [sleep, '1000']\n    \
             resources: {limits: {memory: 32Mi, cpu: 500m}}\n    \
             securityContext: {runAsUser: 1000, runAsGroup: 2000, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false}",
        ),
    );
    node.kubectl_wait_running("cell");
    let uid = node.object("pod", "cell")["metadata"]["uid"].as_str().unwrap().to_owned();
    let pid =
        super::machine::processes_of(&uid).into_iter().find(|pid| !super::machine::is_shim(*pid)).unwrap();
    for space in ["pid", "mnt", "uts", "ipc", "net"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "its {space} namespace is its own");
    }
    let status = super::machine::proc_file(pid, "status");
    let line = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("{key} is in {status}")).split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!((line("Uid:"), line("Gid:")), ("1000".to_owned(), "2000".to_owned()));
    assert_eq!((line("Seccomp:"), line("NoNewPrivs:")), ("2".to_owned(), "1".to_owned()));
    assert_eq!(line("CapEff:"), "0000000000000000");
    let root = format!("/proc/{pid}/root");
    assert!(std::path::Path::new(&root).join("etc/origin").exists(), "both layers are there");
    let mounts = super::machine::proc_file(pid, "mountinfo");
    let of_root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(of_root.contains("overlay") && of_root.split(' ').nth(5).unwrap().starts_with("ro"), "{of_root}");
    let groups = super::machine::proc_file(pid, "cgroup");
    assert!(groups.contains(&uid), "{groups}");
    let memory = groups.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path.to_owned()));
    if let Some(path) = memory {
        let limit =
            std::fs::read_to_string(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")).unwrap();
        assert_eq!(limit.trim(), (32 << 20).to_string());
    }
}

#[test]
fn a_failing_liveness_probe_restarts_and_a_failing_readiness_probe_hides() {
    let node = Node::empty();
    node.load_busybox();
    node.save(
        "sick.yaml",
        &(pod(
            "sick",
            "  terminationGracePeriodSeconds: 0\n  containers:\n  - name: sick\n    image: busybox:1\n    \
             command: [sh, -c, 'touch /tmp/live; sleep 1000']\n    volumeMounts: [{name: tmp, mountPath: /tmp}]\n    \
             livenessProbe: {exec: {command: [cat, /tmp/live]}, periodSeconds: 1, failureThreshold: 2}\n    \
             readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1}\n  volumes: [{name: tmp, emptyDir: {}}]",
        ) + "---\napiVersion: v1\nkind: Service\nmetadata: {name: sick}\nspec: {selector: {app: sick}, ports: [{port: 80}]}\n"),
    );
    node.kubectl_wait_running("sick");
    let ready = |wanted: bool| {
        until(&format!("ready is {wanted}"), PATIENCE, || {
            let slices = node.list("endpointslices", "kubernetes.io/service-name=sick");
            let found = slices.iter().any(|slice| slice["endpoints"][0]["conditions"]["ready"] == true);
            super::node::same(found, wanted)
        });
    };
    ready(false);
    node.kubectl(&["exec", "sick", "--", "touch", "/tmp/ready"]);
    ready(true);
    node.kubectl(&["exec", "sick", "--", "sh", "-c", "mv /tmp/live /tmp/dead"]);
    until("the container is restarted", PATIENCE, || {
        let status = node.object("pod", "sick")["status"]["containerStatuses"][0].clone();
        if status["restartCount"].as_u64() >= Some(1) { Ok(()) } else { Err(status.to_string()) }
    });
    let events = node.kubectl(&["get", "events"]);
    assert!(events.contains("Unhealthy") && events.contains("Liveness probe failed"), "{events}");
}

#[test]
fn a_pod_that_fits_nowhere_says_why() {
    let node = Node::empty();
    node.save(
        "big.yaml",
        &pod("big", "  containers: [{name: a, image: 'kubia:1', resources: {requests: {cpu: '1000'}}}]"),
    );
    until("the status tells why", PATIENCE, || {
        let told = node.ok_or_not(&["status"]);
        if told.contains("Insufficient cpu") && told.contains("big.yaml") { Ok(()) } else { Err(told) }
    });
    let described = node.kubectl(&["describe", "pod", "big"]);
    assert!(
        described.contains("FailedScheduling") && described.contains("0/1 nodes are available"),
        "{described}"
    );
}

#[test]
fn secrets_and_config_maps_reach_the_container_in_every_form() {
    let node = Node::empty();
    node.load_busybox();
    node.save(
        "all.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: blue}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {name: hidden}\nstringData: {word: open sesame}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: reader, labels: {a: b}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - name: reader\n    image: busybox:1\n    command: [sh, -c, 'echo $COLOUR $pre_colour $NAME $(AGAIN); cat /s/word; echo; stat -c %a /s/..data/word; cat /c/it; echo; id -u']\n    \
         env:\n    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}\n    \
         - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}\n    - {name: AGAIN, value: 'again $(NAME)'}\n    \
         envFrom: [{prefix: pre_, configMapRef: {name: settings}}]\n    \
         volumeMounts: [{name: s, mountPath: /s}, {name: c, mountPath: /c}]\n  volumes:\n  \
         - {name: s, secret: {secretName: hidden, defaultMode: 0400}}\n  \
         - {name: c, configMap: {name: settings, items: [{key: colour, path: it}]}}\n",
    );
    node.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s", "pod/reader"]);
    let log = node.kubectl(&["logs", "reader"]);
    assert_eq!(log, "blue blue reader again reader\nopen sesame\n400\nblue\n0\n");
}
