//! Repositories on other machines: git's own HTTP program behind OpenSSL, and OpenSSH's server, spoken to for real.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use super::git::{Repository, config_map, follow, shows};
use super::node::{Node, PATIENCE, free_port, ok, request, until};

/// A server of a test; ends with it.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(node: &Node, program: &str, args: &[&str]) -> Server {
    let log = fs::File::create(node.path(&format!("{}.log", program.replace('/', "-")))).unwrap();
    // Killed with the thread that runs the test: a test that is broken off leaves no server.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]).args(args);
    let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
    Server(child.unwrap_or_else(|error| panic!("run setpriv {program}: {error}")))
}

fn listens(port: u16) {
    until(&format!("port {port} is served"), PATIENCE, || {
        std::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port))
            .map(drop)
            .map_err(|e| e.to_string())
    });
}

fn script(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn found(program: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file()).unwrap_or_else(
        || {
            panic!(
                "this machine lacks {program} (Debian: {package}); `tests/run` unpacks it beside the build"
            )
        },
    )
}

/// A certificate authority of the test and a certificate for 127.0.0.1 signed by it: `ca.pem`, `server.pem`.
fn certificates(dir: &Path) {
    let file = |name: &str| dir.join(name).display().to_string();
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    let (ca, ca_key) = (file("ca.pem"), file("ca.key"));
    let authority = ["req", "-x509", "-subj", "/CN=test authority", "-keyout", &ca_key, "-out", &ca];
    ok("openssl", &[&authority[..], &new_key[..]].concat());
    let (key, certificate) = (file("server.key"), file("server.crt"));
    let own = [
        "req",
        "-x509",
        "-subj",
        "/CN=127.0.0.1",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-CA",
        &ca,
        "-CAkey",
        &ca_key,
        "-keyout",
        &key,
        "-out",
        &certificate,
    ];
    ok("openssl", &[&own[..], &new_key[..]].concat());
    fs::write(
        file("server.pem"),
        fs::read_to_string(&certificate).unwrap() + &fs::read_to_string(&key).unwrap(),
    )
    .unwrap();
}

/// Serves the directory above the bare repository by git's own program, over TLS, to a user with a password.
fn https(node: &Node) -> (Server, u16) {
    let socat = found("socat", "socat");
    certificates(&node.path(""));
    let root = node.path("www");
    let cgi = format!(
        "#!/bin/sh\nexport GIT_PROJECT_ROOT='{}' GIT_HTTP_EXPORT_ALL=1 GIT_CONFIG_GLOBAL=/dev/null\nexec git http-backend\n",
        node.path("").display()
    );
    script(&root.join("cgi-bin/git"), &cgi);
    fs::write(root.join("httpd.conf"), "/cgi-bin:luke:s3cret\n").unwrap();
    let port = free_port();
    let listen = format!(
        "OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,verify=0,cert={}",
        node.path("server.pem").display()
    );
    let each = format!("EXEC:busybox httpd -i -h {0} -c {0}/httpd.conf", root.display());
    let server = serve(node, socat.to_str().unwrap(), &[&listen, &each]);
    listens(port);
    (server, port)
}

fn hurried(node: &Node) {
    let (code, said) =
        request((std::net::Ipv4Addr::LOCALHOST, node.web), "POST", "/webhook/apps", "{}").unwrap();
    assert!((200..300).contains(&code), "{code} {said}");
}

fn trouble(node: &Node, words: &[&str]) -> String {
    until(&format!("the status tells of {words:?}"), PATIENCE, || {
        let status = node.application("apps")["sync"].to_string();
        if words.iter().all(|word| status.contains(word)) { Ok(status) } else { Err(status) }
    })
}

#[test]
fn over_https_a_commit_is_followed_and_a_stranger_s_certificate_is_not() {
    let mut node = Node::new();
    let repository = Repository::new(&node);
    repository.push("Say one", &[("a.yaml", Some(&config_map("a", "1")))]);
    let (_server, port) = https(&node);
    let at = |who: &str| format!("https://{who}127.0.0.1:{port}/cgi-bin/git/apps.git");
    // The machine does not know the authority yet.
    follow(&node, &at("luke:s3cret@"), "interval = \"1h\"");
    node.up();
    let told = trouble(&node, &["certificate", &port.to_string()]);
    assert!(!told.contains("s3cret"), "{told}");
    node.end(Signal::SIGTERM);
    node.env("SSL_CERT_FILE", node.path("ca.pem").to_str().unwrap());
    node.up();
    shows(&node, "a", "1");
    repository.push("Say two", &[("a.yaml", Some(&config_map("a", "2")))]);
    hurried(&node);
    shows(&node, "a", "2");
    node.good();
    assert!(!node.ok(&["status"]).contains("s3cret"));
    // Without the password the last good state stays, and the way out is told.
    node.end(Signal::SIGTERM);
    follow(&node, &at(""), "interval = \"1h\"");
    node.up();
    trouble(&node, &["401", "credentials"]);
    shows(&node, "a", "2");
}

/// OpenSSH's server for root with keys of the test. Its user for unprivileged work and its login files are seen in its
/// own mount namespace only.
fn sshd(node: &Node) -> (Server, u16) {
    let sshd = found("sshd", "openssh-server");
    let file = |name: &str| node.path(name).display().to_string();
    for key in ["host_key", "user_key"] {
        ok("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &file(key)]);
    }
    let (port, public) = (free_port(), |key: &str| fs::read_to_string(file(&format!("{key}.pub"))).unwrap());
    fs::write(file("authorized_keys"), public("user_key")).unwrap();
    fs::write(file("known_hosts"), format!("[127.0.0.1]:{port} {}", public("host_key"))).unwrap();
    let config = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nPermitRootLogin prohibit-password\n\
         StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\n",
        file("host_key"),
        file("authorized_keys")
    );
    fs::write(file("sshd_config"), config).unwrap();
    let users = fs::read_to_string("/etc/passwd").unwrap();
    fs::write(file("passwd"), users + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n").unwrap();
    let start = format!(
        "mount --bind '{}' /etc/passwd && mount -t tmpfs tmpfs /run && mkdir -p -m 755 /run/sshd && \
         exec '{}' -D -e -f '{}'",
        file("passwd"),
        sshd.display(),
        file("sshd_config")
    );
    let server = serve(node, "unshare", &["--mount", "sh", "-c", &start]);
    listens(port);
    (server, port)
}

#[test]
fn over_ssh_a_commit_is_followed_and_an_unknown_host_is_not() {
    let mut node = Node::new();
    let repository = Repository::new(&node);
    repository.push("Say one", &[("a.yaml", Some(&config_map("a", "1")))]);
    let (_server, port) = sshd(&node);
    // The machine's own ssh, with keys of the test in place of root's.
    let (key, hosts) = (node.path("user_key"), node.path("known_hosts"));
    let ssh = format!(
        "#!/bin/sh\nexec {} -F none -o IdentityFile={} -o IdentitiesOnly=yes -o UserKnownHostsFile={} \
         -o GlobalKnownHostsFile=none -o StrictHostKeyChecking=yes \"$@\"\n",
        found("ssh", "openssh-client").display(),
        key.display(),
        hosts.display()
    );
    script(&node.path("bin/ssh"), &ssh);
    let path = format!("{}:{}", node.path("bin").display(), std::env::var("PATH").unwrap());
    node.env("PATH", &path);
    let known = fs::read_to_string(&hosts).unwrap();
    fs::write(&hosts, "").unwrap();
    follow(&node, &format!("ssh://root@127.0.0.1:{port}{}", repository.bare.display()), "interval = \"1s\"");
    node.up();
    trouble(&node, &["known_hosts"]);
    fs::write(&hosts, known).unwrap();
    shows(&node, "a", "1");
    repository.push("Say two", &[("a.yaml", Some(&config_map("a", "2")))]);
    hurried(&node);
    shows(&node, "a", "2");
    node.good();
    let source = node.application("apps")["source"].clone();
    assert!(source["author"].as_str().unwrap().contains("Luke Marks"), "{source}");
}
