//! Images come from files and registries; each layer is kept once.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

use super::image::{File, Image, busybox, layer};
use super::node::{Node, PATIENCE, free_port, get, same, until};

/// Debian's registry, alone with a directory of its own.
pub(crate) struct Registry {
    child: Child,
    /// Where it listens.
    pub(crate) host: String,
}

impl Registry {
    /// Starts it; it answers when this returns.
    pub(crate) fn start(node: &Node) -> Registry {
        let program = std::env::var_os("PATH").and_then(|path| {
            std::env::split_paths(&path).map(|dir| dir.join("docker-registry")).find(|file| file.is_file())
        });
        let program =
            program.expect("this machine lacks docker-registry; `tests/run` fetches it from Debian");
        let port = free_port();
        let root = node.path("registry");
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            root.display()
        );
        fs::write(node.path("registry.yml"), config).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).arg("serve").arg(node.path("registry.yml"));
        let log = fs::File::create(node.path("registry.log")).unwrap();
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let registry = Registry { child, host: format!("127.0.0.1:{port}") };
        until("the registry answers", PATIENCE, || {
            get((Ipv4Addr::LOCALHOST, port), "/v2/").and_then(|(code, _)| same(code, 200))
        });
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself; it is reaped in any case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn once(name: &str, image: &str, policy: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - {{name: a, image: '{image}', imagePullPolicy: {policy}, command: [cat, /etc/origin]}}\n"
    )
}

pub(crate) fn prints(node: &Node, pod: &str, wanted: &str) {
    node.kubectl(&[
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "--timeout=60s",
        &format!("pod/{pod}"),
    ]);
    assert_eq!(node.kubectl(&["logs", pod]), wanted);
}

#[test]
fn an_image_is_pulled_from_a_registry() {
    let node = Node::empty();
    let registry = Registry::start(&node);
    busybox("x").push(&registry.host, "team/app", "v1", &node.path("blob"));
    let reference = format!("{}/team/app:v1", registry.host);
    node.save("a.yaml", &once("a", &reference, "Always"));
    until("the pod is there", PATIENCE, || {
        node.find("pod", "a").map(|_| ()).ok_or("there is none".to_owned())
    });
    prints(&node, "a", "made by a test\n");
    let events = node.kubectl(&["get", "events", "--field-selector", "involvedObject.name=a"]);
    assert!(events.contains("Pulling") && events.contains("Pulled"), "{events}");
    assert!(node.ok(&["image", "list"]).contains("team/app"), "{}", node.ok(&["image", "list"]));
    // A tag that is not there is named; the registry's answer is told.
    node.save("b.yaml", &once("b", &format!("{}/team/app:absent", registry.host), "IfNotPresent"));
    until("the status names the tag", PATIENCE, || {
        let told = node.ok_or_not(&["status"]);
        if told.contains("team/app:absent") { Ok(()) } else { Err(told) }
    });
    // Without the registry what is here still runs.
    drop(registry);
    node.save("c.yaml", &once("c", &reference, "IfNotPresent"));
    until("the pod is there", PATIENCE, || {
        node.find("pod", "c").map(|_| ()).ok_or("there is none".to_owned())
    });
    prints(&node, "c", "made by a test\n");
}

#[test]
fn images_are_loaded_from_every_kind_of_file() {
    let node = Node::empty();
    busybox("from-dir:1").write_layout_dir(&node.path("layout"));
    busybox("from-tar:1").write_layout_tar(&node.path("layout.tar"));
    busybox("from-docker:1").write_docker_save(&node.path("saved.tar.gz"));
    for (file, name) in [("layout", "from-dir"), ("layout.tar", "from-tar"), ("saved.tar.gz", "from-docker")]
    {
        let said = node.ok(&["image", "load", node.path(file).to_str().unwrap()]);
        assert!(said.contains(name), "{said}");
        node.save(&format!("{name}.yaml"), &once(name, &format!("{name}:1"), "Never"));
        until("the pod is there", PATIENCE, || {
            node.find("pod", name).map(|_| ()).ok_or("there is none".to_owned())
        });
        prints(&node, name, "made by a test\n");
    }
    let listed = node.ok(&["image", "list"]);
    for name in ["from-dir", "from-tar", "from-docker", "kubia"] {
        assert!(listed.contains(name), "{name} is in {listed}");
    }
}

#[test]
fn a_pod_waiting_for_an_image_starts_when_it_is_loaded() {
    let node = Node::empty();
    node.save("late.yaml", &once("late", "late:1", "Never"));
    until("it says what it waits for", PATIENCE, || {
        let told = node.ok_or_not(&["status"]);
        if told.contains("late:1") && told.contains("ErrImageNeverPull") { Ok(()) } else { Err(told) }
    });
    busybox("late:1").write_layout_tar(&node.path("late.tar"));
    node.ok(&["image", "load", node.path("late.tar").to_str().unwrap()]);
    prints(&node, "late", "made by a test\n");
}

#[test]
fn a_file_that_is_no_image_is_refused_by_name() {
    let node = Node::empty();
    fs::write(node.path("not-an-image.tar"), "hello").unwrap();
    let said = node.holdfast(&["image", "load", node.path("not-an-image.tar").to_str().unwrap()]);
    assert!(said.code != 0 && said.all().contains("not-an-image.tar"), "{}", said.all());
    let said = node.holdfast(&["image", "load", "/nowhere/at/all.tar"]);
    assert!(said.code != 0 && said.all().contains("/nowhere/at/all.tar"), "{}", said.all());
}

#[test]
fn a_layer_that_climbs_out_of_its_root_writes_nothing_outside() {
    let node = Node::empty();
    let outside = node.path("outside");
    let target = outside.to_str().unwrap().to_owned();
    // A link that leads out, and a file through it.
    let first = layer(vec![File::Link("exit", &target)]);
    let second = layer(vec![File::Plain("exit/escaped", 0o644, b"no\n".to_vec())]);
    fs::create_dir_all(&outside).unwrap();
    Image::new("climber:1", vec![first, second], serde_json::json!({"Cmd": ["/x"]}))
        .write_layout_tar(&node.path("c.tar"));
    node.holdfast(&["image", "load", node.path("c.tar").to_str().unwrap()]);
    node.save("c.yaml", &once("climber", "climber:1", "Never"));
    until("the pod is there", PATIENCE, || {
        node.find("pod", "climber").map(|_| ()).ok_or("there is none".to_owned())
    });
    until("its container could not start, or it has no image", PATIENCE, || {
        let status = node.object("pod", "climber")["status"].to_string();
        if status.contains("waiting") || status.contains("terminated") { Ok(()) } else { Err(status) }
    });
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing is outside");
}

#[test]
fn an_image_in_use_is_not_removed_and_an_unused_one_is() {
    let node = Node::empty();
    node.load_busybox();
    let said = node.ok(&["image", "remove", "busybox:1"]);
    assert!(said.contains("busybox"), "{said}");
    assert!(!node.ok(&["image", "list"]).contains("busybox"), "{}", node.ok(&["image", "list"]));
    let said = node.holdfast(&["image", "remove", "busybox:1"]);
    assert!(said.code != 0 && said.all().contains("busybox:1"), "{}", said.all());
}
