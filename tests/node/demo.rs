//! The demo comes up and answers from everywhere it should.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::node::{Node, PATIENCE, get, name, ok, pod_ip, request, same, until};

/// One pod that serves its own name over HTTP by busybox, with a Service in front of it.
pub(crate) const ECHO: &str = "
apiVersion: v1
kind: Pod
metadata: {name: echo-pod, labels: {app: echo}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: echo
    image: busybox:1
    command: [sh, -c, 'mkdir -p /www && hostname > /www/index.html && exec busybox httpd -f -p 8080 -h /www']
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080}]
";

/// A pod that only waits to be asked.
pub(crate) const WAITER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: waiter, labels: {app: waiter}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: waiter
    image: busybox:1
    command: [sleep, '100000']
";

/// The address this machine is known by.
pub(crate) fn node_address() -> Ipv4Addr {
    let links = ok("ip", &["-4", "-o", "addr", "show", "scope", "global"]);
    let address = links.split_whitespace().skip_while(|word| *word != "inet").nth(1);
    let address = address.unwrap_or_else(|| panic!("this machine has no address: {links}"));
    address.split('/').next().unwrap().parse().unwrap()
}

fn cluster_ip(node: &Node, service: &str) -> Ipv4Addr {
    node.object("service", service)["spec"]["clusterIP"].as_str().unwrap().parse().unwrap()
}

#[test]
fn the_demo_answers_at_every_address_of_its_service() {
    let node = Node::demo();
    let pods: BTreeSet<String> = node.ready("app=kubia", 3).iter().map(name).collect();
    let doors = [
        (cluster_ip(&node, "kubia"), 80),
        (node_address(), node.node_port),
        (Ipv4Addr::LOCALHOST, node.node_port),
    ];
    for door in doors {
        let mut hit = BTreeSet::new();
        until(&format!("{door:?} spreads requests over all pods"), PATIENCE, || {
            let (code, body) = get(door, "/")?;
            same(code, 200)?;
            assert!(body.contains("Hello from a ConfigMap"), "{body}");
            let pod = body.lines().next().unwrap_or_default().trim_start_matches("You've hit ").to_owned();
            assert!(pods.contains(&pod), "{pod:?} of {pods:?}");
            hit.insert(pod);
            same(&hit, &pods)
        });
    }
    for pod in node.pods("app=kubia") {
        let (code, body) = get((pod_ip(&pod), 8080), "/").unwrap();
        assert_eq!(code, 200);
        assert!(body.contains(&name(&pod)), "{body}");
    }
}

#[test]
fn the_demos_job_runs_to_completion() {
    let node = Node::demo();
    node.kubectl(&["wait", "--for=condition=complete", "--timeout=60s", "job/kubia-hello"]);
    let job = node.object("job", "kubia-hello");
    assert_eq!(job["status"]["succeeded"], 1, "{job:#}");
    let log = node.kubectl(&["logs", "job/kubia-hello"]);
    assert_eq!(log, "step 1 of 5\nstep 2 of 5\nstep 3 of 5\nstep 4 of 5\nstep 5 of 5\ndone\n");
}

#[test]
fn the_terminal_says_what_came_up_and_where_to_look() {
    let node = Node::demo();
    let wanted = [
        format!("127.0.0.1:{}", node.web),
        "kubeconfig".to_owned(),
        "Deployment".to_owned(),
        "kubia".to_owned(),
        node.node_port.to_string(),
    ];
    until("the terminal tells all of it", PATIENCE, || {
        let log = node.log();
        let missing: Vec<&String> = wanted.iter().filter(|word| !log.contains(*word)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} is missing in:\n{log}")) }
    });
}

#[test]
fn page_status_and_command_tell_the_same() {
    let node = Node::demo();
    let web = (Ipv4Addr::LOCALHOST, node.web);
    let waited = node.holdfast(&["status", "--wait", "60"]);
    assert_eq!(waited.code, 0, "{}", waited.all());
    // Time goes on between the two questions.
    let timeless = |text: &str| {
        let mut told: serde_json::Value = serde_json::from_str(text).unwrap();
        told["node"].as_object_mut().unwrap().remove("uptimeSeconds").expect("how long it is up is told");
        told
    };
    let of_command = timeless(&node.ok(&["status", "--json"]));
    let of_page = timeless(&get(web, "/status").unwrap().1);
    assert_eq!(of_command, of_page);
    let application = node.application("demo");
    let text = of_page.to_string();
    for object in application["objects"].as_array().unwrap() {
        assert_eq!(object["sync"], "Synced", "{object}");
        assert_eq!(object["health"]["code"], "Healthy", "{object}");
        assert!(object["file"].as_str().unwrap().ends_with(".yaml"), "{object}");
        assert!(object["line"].as_u64().unwrap() > 0, "{object}");
        assert!(text.contains(&object.to_string()), "{object} is in {text}");
    }
    assert_eq!(application["objects"].as_array().unwrap().len(), 4);
    let (code, page) = get(web, "/").unwrap();
    assert_eq!(code, 200);
    for word in ["demo", "Deployment", "kubia-hello", "ConfigMap", "deployment.yaml", "Healthy", "Synced"] {
        assert!(page.contains(word), "{word} is on the page: {page}");
    }
    let shown = node.ok(&["status"]);
    for word in ["demo", "Deployment", "kubia-hello", "deployment.yaml", "Healthy", "Synced"] {
        assert!(shown.contains(word), "{word} is in: {shown}");
    }
    assert_eq!(get(web, "/healthz").unwrap().0, 200);
    let (code, metrics) = get(web, "/metrics").unwrap();
    assert_eq!(code, 200);
    assert!(metrics.contains("# TYPE"), "{metrics}");
    assert_eq!(request(web, "GET", "/nothing-here", "").unwrap().0, 404);
}

#[test]
fn a_service_answers_from_a_pod_by_name_and_to_the_pod_itself() {
    let mut node = Node::new();
    node.save("echo.yaml", ECHO);
    node.save("waiter.yaml", WAITER);
    node.up();
    node.load_busybox();
    node.good();
    let ip = cluster_ip(&node, "echo").to_string();
    for from in ["waiter", "echo-pod"] {
        for door in [ip.as_str(), "echo", "echo.default", "echo.default.svc.cluster.local"] {
            // Resolved as programs do, by resolv.conf; then asked by address.
            let script = format!(
                "set -- $(/usr/bin/getent ahostsv4 {door}); [ -n \"$1\" ] && printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 $1 80"
            );
            let body = until(&format!("{from} reaches {door}"), PATIENCE, || {
                let said = node.try_kubectl(&["exec", from, "--", "sh", "-c", &script]);
                if said.code == 0 && said.out.contains("200 OK") { Ok(said.out) } else { Err(said.all()) }
            });
            assert!(body.ends_with("\r\n\r\necho-pod\n"), "{from} asked {door}: {body:?}");
        }
    }
    let found = node.kubectl(&["exec", "waiter", "--", "nslookup", "echo.default.svc.cluster.local"]);
    assert!(found.contains(&ip), "{ip} is in {found}");
    let conf = node.kubectl(&["exec", "waiter", "--", "cat", "/etc/resolv.conf"]);
    assert!(conf.contains("search default.svc.cluster.local svc.cluster.local cluster.local"), "{conf}");
    assert!(conf.contains("ndots:5"), "{conf}");
    let absent = node.try_kubectl(&["exec", "waiter", "--", "nslookup", "nobody.default.svc.cluster.local"]);
    assert!(absent.all().contains("NXDOMAIN"), "{}", absent.all());
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let node = Node::empty();
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: lonely}\nspec: {selector: {app: nobody}, ports: [{port: 80}]}\n";
    node.save("lonely.yaml", text);
    until("the service is there", PATIENCE, || {
        node.find("service", "lonely").map(|_| ()).ok_or("it is not".to_owned())
    });
    let address = cluster_ip(&node, "lonely");
    until("the address refuses", PATIENCE, || {
        let begin = std::time::Instant::now();
        let error = get((address, 80), "/").err().ok_or("it answered")?;
        if begin.elapsed().as_secs() < 1 { Ok(()) } else { Err(error) }
    });
}

#[test]
fn two_nodes_live_on_one_machine() {
    let (one, two) = (Node::demo(), Node::demo());
    for node in [&one, &two] {
        let pods: BTreeSet<String> = node.ready("app=kubia", 3).iter().map(name).collect();
        let (_, body) = get((Ipv4Addr::LOCALHOST, node.node_port), "/").unwrap();
        assert!(pods.iter().any(|pod| body.contains(pod)), "{body} of {pods:?}");
        assert_eq!(get((cluster_ip(node, "kubia"), 80), "/").unwrap().0, 200);
    }
    assert_ne!(cluster_ip(&one, "kubia"), cluster_ip(&two, "kubia"));
    assert_ne!(super::machine::instance(&one), super::machine::instance(&two));
    let of_two =
        |node: &Node| node.pods("app=kubia").iter().map(|pod| pod["metadata"]["uid"].to_string()).collect();
    let before: BTreeSet<String> = of_two(&two);
    drop(one);
    assert_eq!(of_two(&two), before);
    assert_eq!(get((cluster_ip(&two, "kubia"), 80), "/").unwrap().0, 200);
    assert_eq!(get((Ipv4Addr::LOCALHOST, two.node_port), "/").unwrap().0, 200);
}
