//! A node under test: its directory, its ports, its process, and how a person talks to it.
//!
//! Invariant: a dropped node leaves nothing behind, also when its test failed; then its log is shown.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// The program under test.
pub(crate) const HOLDFAST: &str = env!("CARGO_BIN_EXE_holdfast");
/// How long anything may take on a slow, busy machine.
pub(crate) const PATIENCE: u64 = 60;
/// How often a condition is looked at that nobody notifies of.
const LOOK: Duration = Duration::from_millis(25);
/// Lines of the node's log that are shown when its test failed.
const LOG_LINES: usize = 80;

/// A node, running or not.
pub(crate) struct Node {
    dir: TempDir,
    /// The port of the API.
    pub(crate) api: u16,
    /// The port of the status page.
    pub(crate) web: u16,
    /// A node port that no other test uses.
    pub(crate) node_port: u16,
    /// What the daemon finds in its environment beside the tests' own.
    env: Vec<(String, String)>,
    child: Option<Child>,
}

/// What a command said and how it ended.
pub(crate) struct Said {
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
    /// The exit code, 128 + signal as shells have it.
    pub(crate) code: i32,
}

impl Said {
    pub(crate) fn of(output: &Output) -> Said {
        use std::os::unix::process::ExitStatusExt;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let signal = || 128 + output.status.signal().unwrap_or_default();
        Said {
            out: text(&output.stdout),
            err: text(&output.stderr),
            code: output.status.code().unwrap_or_else(signal),
        }
    }

    /// Both streams, for messages and for what may be told on either.
    pub(crate) fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// Looks until a condition holds and answers what it found; fails with the last thing seen.
pub(crate) fn until<T>(what: &str, seconds: u64, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) if Instant::now() > end => panic!("{what}: not within {seconds} s; last seen: {why}"),
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// Whether a condition holds for a while: for what must not happen.
pub(crate) fn stays(what: &str, span: Duration, mut look: impl FnMut() -> Result<(), String>) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        if let Err(why) = look() {
            panic!("{what}: {why}");
        }
        std::thread::sleep(LOOK);
    }
}

/// `Ok` when equal, for [`until`].
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(found: T, wanted: T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{found:?}, wanted {wanted:?}")) }
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, args: &[&str]) -> Said {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    Said::of(&output.unwrap_or_else(|error| panic!("run {program}: {error}")))
}

/// Runs a program that has to succeed.
pub(crate) fn ok(program: &str, args: &[&str]) -> String {
    let said = run(program, args);
    assert_eq!(said.code, 0, "{program} {}: {}", args.join(" "), said.all());
    said.out
}

/// A port nobody listens on, from below the range the kernel gives away itself.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Runs of two test processes at once begin in different places.
    let start = 20_000 + u16::try_from(std::process::id() % 97).unwrap_or_default() * 100;
    for _ in 0..9_700 {
        let port = 20_000 + (start - 20_000 + NEXT.fetch_add(1, Ordering::SeqCst)) % 9_700;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free between 20000 and 29700");
}

/// A node port no other test of this run uses; tests of another run begin elsewhere.
fn free_node_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 41).unwrap_or_default() * 61;
    30_100 + (start + NEXT.fetch_add(1, Ordering::SeqCst)) % 2_600
}

/// GET over plain HTTP: status and body.
pub(crate) fn get(address: (Ipv4Addr, u16), path: &str) -> Result<(u16, String), String> {
    request(address, "GET", path, "")
}

/// One request over plain HTTP, closed after it.
pub(crate) fn request(
    address: (Ipv4Addr, u16),
    method: &str,
    path: &str,
    body: &str,
) -> Result<(u16, String), String> {
    let told = |error: std::io::Error| format!("{method} http://{}:{}{path}: {error}", address.0, address.1);
    let mut stream =
        TcpStream::connect_timeout(&(address.0, address.1).into(), Duration::from_secs(2)).map_err(told)?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(told)?;
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Length: {length}\r\n\r\n", address.0);
    stream.write_all((head + body).as_bytes()).map_err(told)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(told)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no HTTP: {answer:?}"))?;
    let code = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    Ok((code.ok_or_else(|| format!("no status: {head:?}"))?, body.to_owned()))
}

/// The files of manifests/ as the README's first command shows them.
pub(crate) fn demo_files(node_port: u16) -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension() == Some("yaml".as_ref()) {
            let text = fs::read_to_string(&path).unwrap();
            // The demo's own port belongs to who runs the demo on this machine now.
            let text = text.replace("30080", &node_port.to_string());
            files.push((path.file_name().unwrap().to_str().unwrap().to_owned(), text));
        }
    }
    assert!(files.len() >= 4, "manifests/ holds the demo: {files:?}");
    files.sort();
    files
}

/// Fails with the name of what this machine lacks. Nothing is skipped in silence.
fn needs() {
    assert!(nix::unistd::Uid::effective().is_root(), "the tests of the whole node need root");
    for (program, package) in [
        ("kubectl", "kubernetes-client"),
        ("git", "git"),
        ("curl", "curl"),
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("setpriv", "util-linux"),
        ("script", "bsdutils"),
    ] {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
        assert!(found, "this machine lacks {program} (Debian: {package}); `tests/run` installs it");
    }
    let spaces = run("unshare", &["--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "true"]);
    assert_eq!(spaces.code, 0, "this machine lacks namespaces: {}", spaces.all());
}

impl Node {
    /// A node that follows an empty directory; not started.
    pub(crate) fn new() -> Node {
        Node::in_dir(tempfile::Builder::new().prefix("hf-").tempdir().unwrap())
    }

    fn in_dir(dir: TempDir) -> Node {
        needs();
        let node = Node {
            dir,
            api: free_port(),
            web: free_port(),
            node_port: free_node_port(),
            env: Vec::new(),
            child: None,
        };
        fs::create_dir_all(node.manifests()).unwrap();
        fs::create_dir_all(node.path("home")).unwrap();
        let manifests = node.manifests();
        node.configure(&format!(
            "[[application]]\nname = \"demo\"\ndir = {manifests:?}\nallow_empty = true\n"
        ));
        node
    }

    /// A running node that follows an empty directory.
    pub(crate) fn empty() -> Node {
        let mut node = Node::new();
        node.up();
        node
    }

    /// A running node with these manifests, all in sync and healthy.
    pub(crate) fn with(files: &[(&str, &str)]) -> Node {
        let mut node = Node::new();
        files.iter().for_each(|(name, text)| node.save(name, text));
        node.up();
        node.good();
        node
    }

    /// A running node with the demo, all in sync and healthy.
    pub(crate) fn demo() -> Node {
        let mut node = Node::new();
        demo_files(node.node_port).iter().for_each(|(name, text)| node.save(name, text));
        node.up();
        node.good();
        node
    }

    /// Writes config.toml: this node's own addresses, then `rest`.
    pub(crate) fn configure(&self, rest: &str) {
        let (data, api, web) = (self.data(), self.api, self.web);
        // Sections of `rest` come after ours, so a key that has to be in one of ours is put there.
        let (ours, rest) = rest.split_once("---\n").unwrap_or(("", rest));
        let text = format!(
            "[node]\ndata_dir = {data:?}\n{ours}\n[api]\nlisten = \"127.0.0.1:{api}\"\n\
             [web]\nlisten = \"127.0.0.1:{web}\"\n{rest}"
        );
        fs::write(self.config(), text).unwrap();
    }

    /// A path in the node's own directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `node.data_dir`.
    pub(crate) fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// The directory it follows.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.path("manifests")
    }

    /// Its config.toml.
    pub(crate) fn config(&self) -> PathBuf {
        self.path("config.toml")
    }

    /// What it printed so far, over all its starts.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The daemon's process id.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    /// Sets a variable in the daemon's environment, from its next start on.
    pub(crate) fn env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the daemon, without waiting for anything.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "the node runs already");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        // Killed with the thread that runs the test: a test that is broken off leaves no daemon.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", HOLDFAST, "up", "--config"]).arg(self.config());
        command.current_dir(self.dir.path()).envs(self.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts the daemon and waits until kubectl can be used.
    pub(crate) fn up(&mut self) {
        self.spawn();
        until("the node answers", PATIENCE, || {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the node ended with {status}:\n{}", self.log());
            }
            get((Ipv4Addr::LOCALHOST, self.web), "/healthz").and_then(|(code, _)| same(code, 200))
        });
        fs::write(self.path("kubeconfig"), self.ok(&["kubeconfig"])).unwrap();
        until("kubectl reaches the API", PATIENCE, || {
            let said = self.try_kubectl(&["get", "--raw", "/readyz"]);
            if said.code == 0 { Ok(()) } else { Err(said.all()) }
        });
    }

    /// Sends a signal and waits for the daemon's end; its exit code (128 + signal when killed).
    pub(crate) fn end(&mut self, signal: Signal) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let mut child = self.child.take().unwrap();
        // Gone already is as good.
        let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal);
        let status =
            until("the daemon ends", PATIENCE, || child.try_wait().unwrap().ok_or("it runs".to_owned()));
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
    }

    /// Waits for a daemon that ends by itself; its exit code.
    pub(crate) fn ended(&mut self) -> i32 {
        let mut child = self.child.take().unwrap();
        let status = until("the daemon ends by itself", PATIENCE, || {
            child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
        });
        status.code().unwrap_or(-1)
    }

    /// `holdfast ARGS` with this node's config.
    pub(crate) fn holdfast(&self, args: &[&str]) -> Said {
        let mut command = Command::new(HOLDFAST);
        command
            .args(args)
            .arg("--config")
            .arg(self.config())
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        Said::of(&command.output().unwrap())
    }

    /// `holdfast ARGS` that has to succeed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let said = self.holdfast(args);
        assert_eq!(said.code, 0, "holdfast {}: {}", args.join(" "), said.all());
        said.out
    }

    /// `holdfast ARGS`, whatever its exit code; both streams.
    pub(crate) fn ok_or_not(&self, args: &[&str]) -> String {
        self.holdfast(args).all()
    }

    /// kubectl, ready to be given more.
    pub(crate) fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.env("HOME", self.path("home")).env_remove("KUBECONFIG").stdin(Stdio::null());
        command.arg("--kubeconfig").arg(self.path("kubeconfig")).args(args);
        command
    }

    /// `kubectl ARGS`, however it ends.
    pub(crate) fn try_kubectl(&self, args: &[&str]) -> Said {
        Said::of(&self.kubectl_command(args).output().unwrap_or_else(|error| panic!("run kubectl: {error}")))
    }

    /// `kubectl ARGS` that has to succeed.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let said = self.try_kubectl(args);
        assert_eq!(said.code, 0, "kubectl {}: {}", args.join(" "), said.all());
        said.out
    }

    /// `kubectl ARGS` with something on its standard input; it has to succeed.
    pub(crate) fn kubectl_with(&self, args: &[&str], input: &str) -> String {
        let said = self.try_kubectl_with(args, input);
        assert_eq!(said.code, 0, "kubectl {}: {}", args.join(" "), said.all());
        said.out
    }

    /// `kubectl ARGS` with something on its standard input, however it ends.
    pub(crate) fn try_kubectl_with(&self, args: &[&str], input: &str) -> Said {
        let mut command = self.kubectl_command(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Beside the reading: what is echoed back would fill the pipe.
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.as_bytes().to_vec());
        let writer = std::thread::spawn(move || {
            // A kubectl that has ended reads no more; how it ended tells why.
            let _ = stdin.write_all(&input);
        });
        let said = Said::of(&child.wait_with_output().unwrap());
        writer.join().unwrap();
        said
    }

    /// One object, or None when it is not there.
    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<Value> {
        let text = self.kubectl(&["get", kind, name, "--ignore-not-found", "-o", "json"]);
        if text.trim().is_empty() { None } else { Some(serde_json::from_str(&text).unwrap()) }
    }

    /// One object that has to be there.
    pub(crate) fn object(&self, kind: &str, name: &str) -> Value {
        self.find(kind, name).unwrap_or_else(|| panic!("there is no {kind} {name}"))
    }

    /// The objects of a kind in namespace default, by a label selector ("" for all).
    pub(crate) fn list(&self, kind: &str, selector: &str) -> Vec<Value> {
        let text = self.kubectl(&["get", kind, "-l", selector, "-o", "json"]);
        let list: Value = serde_json::from_str(&text).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// Pods with a label that are not on their way out.
    pub(crate) fn pods(&self, selector: &str) -> Vec<Value> {
        let mut pods = self.list("pods", selector);
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        pods
    }

    /// Waits until exactly so many pods of a label are there, each of them ready.
    pub(crate) fn ready(&self, selector: &str, count: usize) -> Vec<Value> {
        until(&format!("{count} pods of {selector} are ready"), PATIENCE, || {
            let pods = self.list("pods", selector);
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            let seen = || pods.iter().map(brief).collect::<Vec<_>>().join(", ");
            if pods.len() == count && ready == count { Ok(pods.clone()) } else { Err(seen()) }
        })
    }

    /// The status of an application as the API has it.
    pub(crate) fn application(&self, name: &str) -> Value {
        self.find("applications.holdfast.dev", name).map_or(Value::Null, |found| found["status"].clone())
    }

    /// `/status` of the status page.
    pub(crate) fn status(&self) -> Result<Value, String> {
        let (code, body) = get((Ipv4Addr::LOCALHOST, self.web), "/status")?;
        same(code, 200)?;
        serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))
    }

    /// Waits until everything declared is in sync and healthy.
    pub(crate) fn good(&self) {
        until("everything is in sync and healthy", PATIENCE, || {
            let status = self.status()?;
            let applications = status["applications"].as_array().cloned().unwrap_or_default();
            let good = |application: &Value| {
                let status = &application["status"];
                status["sync"]["state"] == "Synced"
                    && status["health"]["code"] == "Healthy"
                    && status["defects"].as_array().is_some_and(Vec::is_empty)
            };
            if !applications.is_empty() && applications.iter().all(good) {
                Ok(())
            } else {
                Err(status.to_string())
            }
        });
    }

    /// Saves a manifest as careful editors do: a new file, renamed over the old one.
    pub(crate) fn save(&self, name: &str, text: &str) {
        let path = self.manifests().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let fresh = path.with_file_name(format!(".{}.new", path.file_name().unwrap().to_str().unwrap()));
        fs::write(&fresh, text).unwrap();
        fs::rename(&fresh, &path).unwrap();
    }

    /// Changes a text in a manifest; it has to be there.
    pub(crate) fn edit(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.manifests().join(name)).unwrap();
        assert!(text.contains(from), "{from:?} is in {name}: {text}");
        self.save(name, &text.replace(from, to));
    }
}

/// Whether a pod has the Ready condition and is staying.
pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// A pod in a few words.
pub(crate) fn brief(pod: &Value) -> String {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let leaving = if pod["metadata"]["deletionTimestamp"].is_null() { "" } else { " leaving" };
    let ready = if is_ready(pod) { " ready" } else { "" };
    let statuses = &pod["status"]["containerStatuses"];
    let states: Vec<String> =
        statuses.as_array().into_iter().flatten().map(|status| status["state"].to_string()).collect();
    format!("{name} {}{ready}{leaving} {}", pod["status"]["phase"].as_str().unwrap_or("?"), states.join(" "))
}

/// A name in `metadata`.
pub(crate) fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// The address of a pod.
pub(crate) fn pod_ip(pod: &Value) -> Ipv4Addr {
    pod["status"]["podIP"].as_str().unwrap_or_default().parse().unwrap()
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let from = log.lines().count().saturating_sub(LOG_LINES);
            let tail: Vec<&str> = log.lines().skip(from).collect();
            eprintln!("--- the last lines of the node's log ---\n{}\n---", tail.join("\n"));
        }
        if self.child.is_some() {
            self.end(Signal::SIGKILL);
        }
        // A test that has asked for it already has nothing left here, which is a success too.
        if self.data().exists() {
            let said = self.holdfast(&["down"]);
            if said.code != 0 {
                eprintln!("holdfast down: {}", said.all());
            }
        }
    }
}
