//! Starting: what a start says when something is wrong.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::node::{HOLDFAST, Node, PATIENCE, get, ok, run, until};

/// Starts a node that has to refuse; what it said.
fn refused(node: &mut Node) -> String {
    node.spawn();
    let code = node.ended();
    let log = node.log();
    assert_ne!(code, 0, "{log}");
    assert!(!log.contains("panicked"), "{log}");
    log
}

fn says(log: &str, words: &[&str]) {
    for word in words {
        assert!(log.contains(word), "{word:?} is in: {log}");
    }
}

#[test]
fn a_config_key_that_does_not_exist_is_named_with_its_line() {
    let mut node = Node::new();
    node.configure("[web]\nlisten_on = \"x\"\n");
    // The table is there twice now, which TOML refuses; so the whole file is ours.
    let text = fs::read_to_string(node.config()).unwrap();
    let (before, _) = text.split_once("[web]").unwrap();
    fs::write(node.config(), format!("{before}[web]\nlisten_on = \"x\"\n")).unwrap();
    let line =
        fs::read_to_string(node.config()).unwrap().lines().position(|l| l.contains("listen_on")).unwrap() + 1;
    let log = refused(&mut node);
    says(&log, &["listen_on", "config.toml", &format!("line {line}"), "`listen`"]);
}

#[test]
fn a_config_that_is_not_there_is_named() {
    let said = run(HOLDFAST, &["up", "--config", "/nowhere/config.toml"]);
    assert_ne!(said.code, 0);
    says(&said.all(), &["/nowhere/config.toml", "No such file"]);
}

#[test]
fn an_unknown_command_is_refused_with_what_there_is() {
    let said = run(HOLDFAST, &["stauts"]);
    assert_ne!(said.code, 0);
    says(&said.all(), &["stauts", "status"]);
}

#[test]
fn a_port_in_use_is_named_with_the_key_that_changes_it() {
    for (which, key) in [("api", "listen"), ("web", "listen")] {
        let mut node = Node::new();
        let port = if which == "api" { node.api } else { node.web };
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let log = refused(&mut node);
        says(&log, &[&format!("127.0.0.1:{port}"), "in use", key]);
        drop(taken);
        node.up();
        node.good();
    }
}

#[test]
fn a_second_daemon_on_the_same_data_is_refused() {
    let mut node = Node::empty();
    let pid = node.pid();
    let other =
        Command::new(HOLDFAST).arg("up").arg("--config").arg(node.config()).stdin(Stdio::null()).output();
    let other = other.unwrap();
    let said = String::from_utf8_lossy(&other.stdout).into_owned() + &String::from_utf8_lossy(&other.stderr);
    assert!(!other.status.success(), "{said}");
    says(&said, &[&node.data().display().to_string()]);
    assert_eq!(node.pid(), pid);
    node.good();
    node.end(Signal::SIGINT);
}

#[test]
fn a_start_without_root_says_what_is_missing() {
    let node = Node::new();
    // nobody may read the config and write the data directory: root is all that is missing.
    let own = |path: &std::path::Path| ok("chown", &["nobody", path.to_str().unwrap()]);
    fs::create_dir_all(node.data()).unwrap();
    [node.path(""), node.data(), node.config(), node.manifests()].iter().for_each(|path| drop(own(path)));
    let program = node.path("holdfast");
    fs::copy(HOLDFAST, &program).unwrap();
    let full =
        fs::read_to_string(node.config()).unwrap().replace("[node]\n", "[node]\nisolation = \"full\"\n");
    fs::write(node.config(), full).unwrap();
    let program = program.to_str().unwrap();
    let config = node.config();
    let args = ["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "--bounding-set", "-all"];
    let args = [&args[..], &["timeout", "30", program, "up", "--config", config.to_str().unwrap()]].concat();
    let said = run("setpriv", &args);
    assert_ne!(said.code, 0, "{}", said.all());
    assert_ne!(said.code, 124, "it did not end: {}", said.all());
    says(&said.all(), &["root"]);
    assert!(!said.all().contains("panicked"), "{}", said.all());
}

#[test]
fn without_the_rights_for_namespaces_full_isolation_is_refused_by_name() {
    let node = Node::new();
    let full =
        fs::read_to_string(node.config()).unwrap().replace("[node]\n", "[node]\nisolation = \"full\"\n");
    fs::write(node.config(), full).unwrap();
    let config = node.config();
    let config = config.to_str().unwrap();
    let bare =
        ["--bounding-set", "-all,+chown,+dac_override,+fowner,+kill,+setuid,+setgid,+net_bind_service"];
    let args = [&bare[..], &["timeout", "30", HOLDFAST, "up", "--config", config]].concat();
    let said = run("setpriv", &args);
    assert!(said.code != 0 && said.code != 124, "{}: {}", said.code, said.all());
    says(&said.all(), &["CAP_"]);
    assert!(!said.all().contains("panicked"), "{}", said.all());
}

#[test]
fn without_the_rights_for_namespaces_the_node_starts_and_says_what_is_missing() {
    let node = Node::new();
    let config = node.config();
    let log = fs::File::create(node.path("log")).unwrap();
    let bare =
        ["--bounding-set", "-all,+chown,+dac_override,+fowner,+kill,+setuid,+setgid,+net_bind_service"];
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).args(bare).args([HOLDFAST, "up", "--config"]).arg(config);
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let mut child = command.spawn().unwrap();
    until("it answers and tells", PATIENCE, || {
        assert!(child.try_wait().unwrap().is_none(), "it ended: {}", node.log());
        get((Ipv4Addr::LOCALHOST, node.web), "/healthz")?;
        if node.log().contains("namespace") { Ok(()) } else { Err(node.log()) }
    });
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_full_disk_is_told_and_outlived() {
    let mut node = Node::new();
    fs::create_dir_all(node.data()).unwrap();
    let data = node.data().display().to_string();
    ok("mount", &["-t", "tmpfs", "-o", "size=64m,mode=755", "holdfast-test", &data]);
    struct Mounted(String);
    impl Drop for Mounted {
        fn drop(&mut self) {
            // Whatever the test did, the mount goes, also under what still uses it.
            run("umount", &["-l", &self.0]);
        }
    }
    let _mounted = Mounted(data.clone());
    node.up();
    node.good();
    let filler = node.data().join("filler");
    run("dd", &["if=/dev/zero", &format!("of={}", filler.display()), "bs=1M"]);
    run("dd", &["if=/dev/zero", &format!("of={}2", filler.display()), "bs=512"]);
    let large = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {{value: \"{}\"}}\n",
        "x".repeat(200_000)
    );
    node.save("a.yaml", &large);
    let told = until("the full disk is told", PATIENCE, || {
        let told = node.log() + &node.ok_or_not(&["status"]);
        if told.contains("No space left") { Ok(told) } else { Err(told) }
    });
    assert!(!told.contains("panicked"), "{told}");
    fs::remove_file(&filler).unwrap();
    fs::remove_file(format!("{}2", filler.display())).unwrap();
    until("the file is applied when there is space again", PATIENCE, || {
        node.find("configmap", "a").map(|_| ()).ok_or_else(|| node.ok_or_not(&["status"]))
    });
    node.good();
    node.end(Signal::SIGINT);
    node.holdfast(&["down"]);
}
