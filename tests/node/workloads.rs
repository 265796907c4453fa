//! StatefulSets, DaemonSets, ReplicationControllers, CronJobs and Jobs as kubectl sees them.

use serde_json::Value;

use super::node::{Node, PATIENCE, name, same, until};

const STATEFUL: &str = "
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: db, image: 'kubia:1', imagePullPolicy: IfNotPresent}]
";

const DAEMON: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: each, image: 'kubia:1', imagePullPolicy: IfNotPresent}]
";

const CRON: &str = "
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: '@every 1s'
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: tick, image: 'kubia:1', imagePullPolicy: IfNotPresent, args: [job, '1']}]
";

const INDEXED: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: count}
spec:
  completions: 3
  parallelism: 2
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers: [{name: count, image: 'kubia:1', imagePullPolicy: IfNotPresent, args: [job, '1']}]
";

const CONTROLLER: &str = "
apiVersion: v1
kind: ReplicationController
metadata: {name: old}
spec:
  replicas: 1
  selector: {app: old}
  template:
    metadata: {labels: {app: old}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: old, image: 'kubia:1', imagePullPolicy: IfNotPresent}]
";

fn apply(node: &Node, manifest: &str) {
    node.kubectl_with(&["apply", "-f", "-"], manifest);
}

fn rolled_out(node: &Node, what: &str) {
    node.kubectl(&["rollout", "status", what, "--timeout=60s"]);
}

#[test]
fn a_stateful_set_has_names_order_and_history() {
    let node = Node::demo();
    apply(&node, STATEFUL);
    rolled_out(&node, "statefulset/db");
    let mut names: Vec<String> = node.pods("app=db").iter().map(name).collect();
    names.sort();
    assert_eq!(names, ["db-0", "db-1"]);
    assert_eq!(node.object("pod", "db-1")["spec"]["hostname"], "db-1");
    assert_eq!(node.object("pod", "db-1")["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "1");
    let first = node.object("statefulset", "db")["status"]["currentRevision"].clone();
    node.kubectl(&["set", "env", "statefulset/db", "COLOR=blue"]);
    rolled_out(&node, "statefulset/db");
    assert_ne!(node.object("statefulset", "db")["status"]["currentRevision"], first);
    node.kubectl(&["rollout", "undo", "statefulset/db"]);
    rolled_out(&node, "statefulset/db");
    assert_eq!(node.object("statefulset", "db")["status"]["currentRevision"], first);
    node.kubectl(&["scale", "statefulset/db", "--replicas=1"]);
    until("one pod", PATIENCE, || {
        same(node.pods("app=db").iter().map(name).collect(), vec!["db-0".to_owned()])
    });
    let endpoints =
        || node.object("endpoints", "db")["subsets"][0]["addresses"].as_array().map_or(0, Vec::len);
    until("one address", PATIENCE, || same(endpoints(), 1));
    node.good();
}

#[test]
fn daemons_controllers_and_jobs_run() {
    let node = Node::demo();
    for manifest in [DAEMON, CRON, INDEXED, CONTROLLER] {
        apply(&node, manifest);
    }
    rolled_out(&node, "daemonset/each");
    let daemons = node.pods("app=each");
    assert_eq!(daemons.len(), 1);
    node.kubectl(&["delete", "pod", &name(&daemons[0])]);
    node.ready("app=each", 1);
    node.kubectl(&["rollout", "restart", "daemonset/each"]);
    rolled_out(&node, "daemonset/each");

    node.kubectl(&["wait", "--for=condition=complete", "job/count", "--timeout=60s"]);
    assert_eq!(node.object("job", "count")["status"]["completedIndexes"], "0-2");

    let made = |job: &Value| job["metadata"]["ownerReferences"][0]["name"] == "tick";
    let done = |job: &&Value| job["status"]["succeeded"] == 1;
    until("a job of the cron job", PATIENCE, || {
        let jobs: Vec<Value> = node.list("jobs", "").into_iter().filter(made).collect();
        if jobs.iter().any(|job| done(&job)) { Ok(()) } else { Err(format!("{} jobs", jobs.len())) }
    });

    node.ready("app=old", 1);
    node.kubectl(&["scale", "rc/old", "--replicas=2"]);
    node.ready("app=old", 2);
    node.kubectl(&["delete", "rc/old"]);
    until("no pod of the controller", PATIENCE, || same(node.pods("app=old").len(), 0));
    node.good();
}
