//! The network on a real kernel, in network namespaces of its own: the machine's is never touched.
//!
//! Needs root, `ip` and `nft`.

use network::cidr::Range;
use network::fake::FakeNetwork;
use network::linux::LinuxNetwork;
use network::services::{Endpoint, Protocol, ServiceKey, ServiceTable};
use network::{Attachment, Config, Network, conformance};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeSet;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// A thread in a network namespace of its own, which lives as long as this.
struct Namespace {
    path: PathBuf,
    work: Sender<Box<dyn FnOnce() + Send>>,
}

impl Namespace {
    fn new() -> Namespace {
        let (work, todo) = channel::<Box<dyn FnOnce() + Send>>();
        let (ready, path) = channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)");
            let thread = nix::unistd::gettid();
            ready.send(PathBuf::from(format!("/proc/self/task/{thread}/ns/net"))).expect("the test waits");
            todo.into_iter().for_each(|work| work());
        });
        Namespace { path: path.recv().expect("the thread came up"), work }
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, result) = channel();
        self.work.send(Box::new(move || drop(sender.send(work())))).expect("the thread lives");
        result.recv().expect("the work did not panic")
    }

    /// Answers every connection with `name` and the client's address, as long as the process lives.
    fn serve(&self, name: &'static str, port: u16) {
        let listener = self.run(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bind"));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let peer = stream.peer_addr().expect("a peer").ip();
                let _ = stream.write_all(format!("{name} {peer}").as_bytes());
            }
        });
    }

    /// Answers every datagram with `name`.
    fn serve_udp(&self, name: &'static str, port: u16) {
        let socket = self.run(move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bind"));
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), peer);
            }
        });
    }

    /// What the server at that address says: its name and the client it sees.
    fn ask(&self, ip: Ipv4Addr, port: u16) -> io::Result<String> {
        self.run(move || {
            let address = SocketAddr::V4(SocketAddrV4::new(ip, port));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    }

    fn ask_udp(&self, ip: Ipv4Addr, port: u16) -> io::Result<String> {
        self.run(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.connect((ip, port))?;
            socket.send(b"?")?;
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
    }

    fn ip(&self, arguments: &str) -> String {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        self.run(move || {
            let output = Command::new("ip").args(&arguments).output().expect("run ip");
            assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// Runs an async test body in this namespace, threads and all.
    fn block_on<F: Future<Output = ()>>(&self, body: impl FnOnce() -> F + Send + 'static) {
        let done = self.run(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(body())))
        });
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    }
}

/// A namespace as bare as a machine is: `lo` and nothing else.
fn machine() -> Arc<Namespace> {
    let machine = Namespace::new();
    machine.ip("link set lo up");
    Arc::new(machine)
}

/// A machine with a neighbour on 192.0.2.0/24: it is .1, the neighbour .2.
fn machine_with_neighbour() -> (Arc<Namespace>, Namespace) {
    let (machine, neighbour) = (machine(), Namespace::new());
    // `ip` resolves /proc/self by itself, so the namespace is given by its path seen from outside.
    let path = neighbour.path.display().to_string().replace("self", &std::process::id().to_string());
    machine.ip(&format!("link add out0 type veth peer name out0 netns {path}"));
    machine.ip("addr add 192.0.2.1/24 dev out0");
    machine.ip("link set out0 up");
    neighbour.ip("addr add 192.0.2.2/24 dev out0");
    neighbour.ip("link set out0 up");
    (machine, neighbour)
}

async fn open(dir: &Path, name: &str) -> Arc<LinuxNetwork> {
    let config = Config {
        dir: dir.join(name),
        name: name.to_owned(),
        pod_cidr: Range::Auto,
        service_cidr: Range::Auto,
    };
    LinuxNetwork::open(config).await.expect("open the network")
}

/// A pod that answers with its name on port 8080.
async fn pod(network: &dyn Network, name: &'static str) -> (Namespace, Attachment) {
    let pod = Namespace::new();
    let attachment = network.attach(name, &pod.path, None).await.expect("attach");
    pod.serve(name, 8080);
    (pod, attachment)
}

fn tcp(ip: Ipv4Addr, port: u16) -> ServiceKey {
    ServiceKey { ip, port, protocol: Protocol::Tcp }
}

fn to(attachment: &Attachment) -> Endpoint {
    Endpoint { ip: attachment.ip, port: 8080 }
}

/// Runs Debian's `nft` where this thread is, and gives what it prints.
fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().expect("run nft");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "nft {arguments:?}: {} {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Gets `nft` from Debian's packages if it is not there.
fn need_nft() {
    if Command::new("nft").arg("--version").output().is_ok() {
        return;
    }
    for arguments in [&["update", "-q"][..], &["install", "-qy", "--no-install-recommends", "nftables"]] {
        let output =
            Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").output();
        if let Err(error) = output {
            panic!("nft is missing and apt-get cannot be run ({error}): install the package nftables");
        }
    }
    if let Err(error) = Command::new("nft").arg("--version").output() {
        panic!("nft is missing and apt-get could not install it ({error}): install the package nftables");
    }
}

/// Blocking questions must not run on the runtime's thread while its own thread asks.
fn ask_here(ip: Ipv4Addr, port: u16) -> io::Result<String> {
    let address = SocketAddr::V4(SocketAddrV4::new(ip, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn refused_quickly(asked: impl FnOnce() -> io::Result<String>) {
    let begun = Instant::now();
    let error = asked().expect_err("nobody answers");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    // A client that is dropped asks again after a second.
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
}

#[test]
fn the_kernel_passes_the_conformance_suite() {
    machine().block_on(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa01").await;
        let mut namespaces = Vec::new();
        let mut netns = || {
            namespaces.push(Namespace::new());
            namespaces.last().expect("just pushed").path.clone()
        };
        conformance::check(&*network, &mut netns).await;
        network.remove_all().await.expect("remove all");
    });
}

#[tokio::test]
async fn the_fake_passes_the_conformance_suite() {
    let network =
        FakeNetwork::new("10.1.0.0/24".parse().expect("a range"), "10.2.0.0/24".parse().expect("a range"));
    conformance::check(&network, &mut || PathBuf::from("/nowhere")).await;
}

#[test]
fn pods_reach_pods_and_services_with_their_own_address() {
    machine().block_on(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa02").await;
        let (a, at_a) = pod(&*network, "a").await;
        let (_b, at_b) = pod(&*network, "b").await;
        let service = network.addresses().service_cidr.nth(20).expect("room");
        let mut table = ServiceTable::default();
        table.services.insert(tcp(service, 80), vec![to(&at_b)]);
        network.apply_services(&table).await.expect("apply");

        assert_eq!(a.ask(at_b.ip, 8080).expect("pod to pod"), format!("b {}", at_a.ip));
        assert_eq!(a.ask(service, 80).expect("pod to service"), format!("b {}", at_a.ip));
        let gateway = network.addresses().gateway;
        assert_eq!(ask_here(at_b.ip, 8080).expect("node to pod"), format!("b {gateway}"));
        assert_eq!(ask_here(service, 80).expect("node to service"), format!("b {gateway}"));
        network.remove_all().await.expect("remove all");
    });
}

#[test]
fn a_pod_reaches_itself_through_a_service() {
    machine().block_on(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa03").await;
        let (a, at_a) = pod(&*network, "a").await;
        let service = network.addresses().service_cidr.nth(20).expect("room");
        let mut table = ServiceTable::default();
        table.services.insert(tcp(service, 80), vec![to(&at_a)]);
        network.apply_services(&table).await.expect("apply");
        let gateway = network.addresses().gateway;
        assert_eq!(a.ask(service, 80).expect("hairpin"), format!("a {gateway}"));
        network.remove_all().await.expect("remove all");
    });
}

#[test]
fn connections_are_spread_over_all_endpoints() {
    machine().block_on(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa04").await;
        let (_a, at_a) = pod(&*network, "a").await;
        let (_b, at_b) = pod(&*network, "b").await;
        let (_c, at_c) = pod(&*network, "c").await;
        let service = network.addresses().service_cidr.nth(20).expect("room");
        let mut table = ServiceTable::default();
        table.services.insert(tcp(service, 80), vec![to(&at_a), to(&at_b), to(&at_c)]);
        network.apply_services(&table).await.expect("apply");
        // A third of 60 misses one of three with a chance of 3 * (2/3)^60 < 1e-9.
        let answers: BTreeSet<String> = (0..60).map(|_| ask_here(service, 80).expect("an answer")).collect();
        assert_eq!(answers.len(), 3, "{answers:?}");
        network.remove_all().await.expect("remove all");
    });
}

#[test]
fn a_node_port_answers_on_every_address_of_the_machine() {
    let (machine, neighbour) = machine_with_neighbour();
    machine.block_on(move || async move {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa05").await;
        let (a, at_a) = pod(&*network, "a").await;
        let mut table = ServiceTable::default();
        table.node_ports.insert((30080, Protocol::Tcp), vec![to(&at_a)]);
        table.node_ports.insert((30081, Protocol::Udp), vec![Endpoint { ip: at_a.ip, port: 5353 }]);
        network.apply_services(&table).await.expect("apply");
        let (gateway, node) = (network.addresses().gateway, network.addresses().node);
        assert_eq!(node, Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(ask_here(Ipv4Addr::LOCALHOST, 30080).expect("on loopback"), format!("a {gateway}"));
        assert!(ask_here(node, 30080).expect("on the node's address").starts_with("a "));
        assert_eq!(neighbour.ask(node, 30080).expect("from outside"), "a 192.0.2.2");
        assert!(a.ask(node, 30080).expect("from a pod, hairpin").starts_with("a "));
        a.serve_udp("a", 5353);
        assert_eq!(neighbour.ask_udp(node, 30081).expect("udp from outside"), "a");
        network.remove_all().await.expect("remove all");
    });
}

#[test]
fn what_leaves_the_machine_carries_its_address_and_answers_find_back() {
    let (machine, neighbour) = machine_with_neighbour();
    machine.block_on(move || async move {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa06").await;
        let (a, _) = pod(&*network, "a").await;
        neighbour.serve("outside", 80);
        let outside = Ipv4Addr::new(192, 0, 2, 2);
        let service = network.addresses().service_cidr.nth(20).expect("room");
        let mut table = ServiceTable::default();
        table.services.insert(tcp(service, 80), vec![Endpoint { ip: outside, port: 80 }]);
        network.apply_services(&table).await.expect("apply");
        assert_eq!(a.ask(outside, 80).expect("pod to outside"), "outside 192.0.2.1");
        assert_eq!(a.ask(service, 80).expect("pod to an endpoint outside"), "outside 192.0.2.1");
        assert_eq!(ask_here(service, 80).expect("node to an endpoint outside"), "outside 192.0.2.1");
        network.remove_all().await.expect("remove all");
    });
}

#[test]
fn what_nobody_answers_is_refused_at_once() {
    machine().block_on(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa07").await;
        let (a, at_a) = pod(&*network, "a").await;
        let service = network.addresses().service_cidr.nth(20).expect("room");
        let unknown = network.addresses().service_cidr.nth(21).expect("room");
        let mut table = ServiceTable::default();
        table.services.insert(tcp(service, 80), Vec::new());
        table.node_ports.insert((30080, Protocol::Tcp), Vec::new());
        network.apply_services(&table).await.expect("apply");
        for ip in [service, unknown] {
            refused_quickly(|| ask_here(ip, 80));
            refused_quickly(|| a.ask(ip, 80));
        }
        refused_quickly(|| ask_here(Ipv4Addr::LOCALHOST, 30080));
        table.services.insert(tcp(service, 80), vec![to(&at_a)]);
        network.apply_services(&table).await.expect("apply");
        assert!(ask_here(service, 80).expect("answered now").starts_with("a "));
        network.remove_all().await.expect("remove all");
    });
}

#[test]
fn the_nft_program_lists_the_table_and_takes_back_what_it_lists() {
    need_nft();
    machine().block_on(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa16").await;
        let addresses = network.addresses();
        let name = nft(&["list", "tables"]).trim().rsplit(' ').next().expect("a table").to_owned();
        assert!(name.contains("aa16"), "{name}");
        let endpoints = |count: u32| {
            (1..=count)
                .map(|i| Endpoint { ip: addresses.pod_cidr.nth(100 + i).expect("room"), port: 8080 })
                .collect::<Vec<_>>()
        };
        let service = |n: u32| addresses.service_cidr.nth(20 + n).expect("room");
        let mut table = ServiceTable::default();
        for count in [0, 1, 2, 3, 10] {
            table.services.insert(tcp(service(count), 80), endpoints(count));
            let port = 30080 + u16::try_from(count).expect("a small count");
            table.node_ports.insert((port, Protocol::Tcp), endpoints(count));
            table.node_ports.insert((port, Protocol::Udp), endpoints(count));
        }
        let outside = Endpoint { ip: Ipv4Addr::new(192, 0, 2, 7), port: 53 };
        let udp = ServiceKey { ip: service(40), port: 53, protocol: Protocol::Udp };
        table.services.insert(udp, vec![outside]);
        network.apply_services(&table).await.expect("apply");
        check_listing(dir.path(), &name, &table);

        // What changes in place must look like what is written at once.
        table.services.insert(tcp(service(0), 80), endpoints(4));
        table.services.insert(tcp(service(3), 80), Vec::new());
        table.node_ports.remove(&(30082, Protocol::Udp));
        assert!(!network.apply_services(&table).await.expect("apply").replaced);
        check_listing(dir.path(), &name, &table);
        network.remove_all().await.expect("remove all");
        assert_eq!(nft(&["list", "ruleset"]), "");
    });
}

#[test]
fn a_table_that_another_release_left_is_replaced_and_listed() {
    need_nft();
    machine().block_on(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa17").await;
        let name = nft(&["list", "tables"]).trim().rsplit(' ').next().expect("a table").to_owned();
        drop(network);
        // The names are ours, the types, chains and user data are not.
        let left = dir.path().join("left.nft");
        let text = format!(
            "delete table ip {name}
            table ip {name} {{
                map services {{ type ipv4_addr . inet_proto . inet_service : mark; }}
                map service-sizes {{ type mark : verdict; }}
                set remote {{ type ipv4_addr; comment \"other user data\"; }}
                chain prerouting {{ type filter hook input priority 0; ip saddr @remote drop; }}
            }}"
        );
        std::fs::write(&left, text).expect("write");
        nft(&["--file", left.to_str().expect("a plain path")]);

        let network = open(dir.path(), "aa17").await;
        assert!(nft(&["list", "ruleset"]).contains("other user data"), "it works until there are services");
        let mut table = ServiceTable::default();
        let service = network.addresses().service_cidr.nth(20).expect("room");
        let endpoint = Endpoint { ip: network.addresses().pod_cidr.nth(100).expect("room"), port: 8080 };
        table.services.insert(tcp(service, 80), vec![endpoint]);
        assert!(network.apply_services(&table).await.expect("apply").replaced);
        assert!(!nft(&["list", "ruleset"]).contains("other user data"));
        check_listing(dir.path(), &name, &table);
        network.remove_all().await.expect("remove all");
    });
}

/// Expects every front and endpoint in what `nft` lists, and that `nft` would load the listing.
fn check_listing(dir: &Path, name: &str, table: &ServiceTable) {
    assert_eq!(nft(&["list", "tables"]).trim(), format!("table ip {name}"));
    let listing = nft(&["-n", "list", "ruleset"]);
    assert!(listing.starts_with(&format!("table ip {name} {{")), "{listing}");
    // `nft` breaks the lines between elements where it likes.
    let words = listing.split_whitespace().collect::<Vec<_>>().join(" ");
    let has = |text: String| assert!(words.contains(&text), "{text:?} is not in\n{listing}");
    let service = |key: &ServiceKey| format!("{} . {} . {}", key.ip, key.protocol.number(), key.port);
    let services = table.services.iter().map(|(key, all)| ("service", service(key), all));
    let ports = table
        .node_ports
        .iter()
        .map(|((port, protocol), all)| ("port", format!("{} . {port}", protocol.number()), all));
    for (kind, front, all) in services.chain(ports) {
        match all.len() {
            0 => has(front.clone()),
            count => has(format!("{front} : goto {kind}-{count}")),
        }
        for (index, endpoint) in all.iter().enumerate() {
            has(format!("{front} . {index} : {} . {}", endpoint.ip, endpoint.port));
        }
        if !all.is_empty() {
            has(format!("numgen random mod {} map @", all.len()));
        }
    }
    let file = dir.join("listing.nft");
    std::fs::write(&file, format!("flush ruleset\n{listing}")).expect("write");
    // A word of the language among the names would end this, and so would a type it cannot read.
    nft(&["--check", "--file", file.to_str().expect("a plain path")]);
    nft(&["--file", file.to_str().expect("a plain path")]);
    assert_eq!(nft(&["-n", "list", "ruleset"]), listing);
}

#[test]
fn a_udp_client_that_goes_on_sending_is_moved_too() {
    machine().block_on(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa14").await;
        let (a, at_a) = pod(&*network, "a").await;
        let (b, at_b) = pod(&*network, "b").await;
        a.serve_udp("a", 5353);
        b.serve_udp("b", 5353);
        let service = network.addresses().service_cidr.nth(20).expect("room");
        let key = ServiceKey { ip: service, port: 53, protocol: Protocol::Udp };
        let mut table = ServiceTable::default();
        table.services.insert(key, vec![Endpoint { ip: at_a.ip, port: 5353 }]);
        network.apply_services(&table).await.expect("apply");
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        socket.connect((service, 53)).expect("connect");
        let ask = || {
            socket.send(b"?").expect("send");
            let mut buffer = [0; 8];
            let length = socket.recv(&mut buffer).expect("an answer");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        assert_eq!(ask(), "a");
        table.services.insert(key, vec![Endpoint { ip: at_b.ip, port: 5353 }]);
        network.apply_services(&table).await.expect("apply");
        assert_eq!(ask(), "b");
        network.remove_all().await.expect("remove all");
    });
}

#[test]
fn a_pod_cannot_reach_the_loopback_of_its_machine() {
    machine().block_on(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa13").await;
        network.apply_services(&ServiceTable::default()).await.expect("apply");
        let (a, _) = pod(&*network, "a").await;
        // What a privileged pod could do to send 127.0.0.2 out of its namespace.
        a.ip("route del local 127.0.0.0/8 dev lo table local");
        a.ip("route add 127.0.0.2/32 via 169.254.1.1 dev eth0 onlink");
        a.run(|| std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").expect("write"));
        let secret = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5353)).expect("bind");
        secret.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        let gateway = network.addresses().gateway;
        let send = |to: Ipv4Addr| {
            a.run(move || {
                UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|s| s.send_to(b"?", (to, 5353)))
            })
        };
        send(gateway).expect("the machine itself is reached");
        assert!(secret.recv_from(&mut [0; 8]).is_ok());
        send(Ipv4Addr::new(127, 0, 0, 2)).expect("it leaves the pod");
        assert!(secret.recv_from(&mut [0; 8]).is_err(), "and is dropped");
        network.remove_all().await.expect("remove all");
    });
}

#[test]
fn an_update_moves_new_connections_and_leaves_the_old_ones() {
    machine().block_on(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa08").await;
        let (a, at_a) = pod(&*network, "a").await;
        let (_b, at_b) = pod(&*network, "b").await;
        let echo = a.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9090)).expect("bind"));
        std::thread::spawn(move || {
            let (mut stream, _) = echo.accept().expect("a client");
            let mut reader = stream.try_clone().expect("clone");
            io::copy(&mut reader, &mut stream)
        });
        let service = network.addresses().service_cidr.nth(20).expect("room");
        let mut table = ServiceTable::default();
        table.services.insert(tcp(service, 80), vec![to(&at_a)]);
        table.services.insert(tcp(service, 90), vec![Endpoint { ip: at_a.ip, port: 9090 }]);
        network.apply_services(&table).await.expect("apply");
        let mut old = TcpStream::connect((service, 90)).expect("connect");
        assert!(ask_here(service, 80).expect("before").starts_with("a "));

        table.services.insert(tcp(service, 80), vec![to(&at_b)]);
        table.services.insert(tcp(service, 90), vec![to(&at_b)]);
        let changes = network.apply_services(&table).await.expect("apply");
        assert!(!changes.replaced);
        for _ in 0..5 {
            assert!(ask_here(service, 80).expect("after").starts_with("b "));
        }
        old.write_all(b"still").expect("the old connection lives");
        let mut echoed = [0; 5];
        old.read_exact(&mut echoed).expect("and answers");
        assert_eq!(&echoed, b"still");
        network.remove_all().await.expect("remove all");
    });
}

#[test]
fn a_crash_loses_nothing() {
    machine().block_on(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa09").await;
        let (a, at_a) = pod(&*network, "a").await;
        let (_b, at_b) = pod(&*network, "b").await;
        let service = network.addresses().service_cidr.nth(20).expect("room");
        let mut table = ServiceTable::default();
        table.services.insert(tcp(service, 80), vec![to(&at_b)]);
        network.apply_services(&table).await.expect("apply");
        let (before, addresses) = (network.attachments(), network.addresses());
        // What a process that was killed leaves: nothing is closed.
        drop(network);

        assert!(a.ask(service, 80).expect("works while nobody is there").starts_with("b "));
        let network = open(dir.path(), "aa09").await;
        assert_eq!(network.attachments(), before);
        assert_eq!(network.addresses(), addresses);
        assert_eq!(network.attach("a", &a.path, None).await.expect("twice is once"), at_a);
        assert!(a.ask(service, 80).expect("works before the first table").starts_with("b "));
        assert!(network.apply_services(&table).await.expect("apply").replaced);
        assert_eq!(network.apply_services(&table).await.expect("apply").elements, 0);
        assert!(a.ask(service, 80).expect("works after").starts_with("b "));
        let (_c, at_c) = pod(&*network, "c").await;
        assert!(at_c.ip > at_b.ip, "addresses go on where they were");
        network.remove_all().await.expect("remove all");
    });
}

#[test]
fn a_namespace_that_ended_is_attached_anew_with_its_address() {
    machine().block_on(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa10").await;
        let (a, at_a) = pod(&*network, "a").await;
        network.detach("a").await.expect("detach");
        refused_or_unreachable(ask_here(at_a.ip, 8080));
        let again = network.attach("a", &Namespace::new().path, Some(at_a.ip)).await;
        assert_eq!(again.expect("the same id at once").ip, at_a.ip);
        drop(a);
        network.remove_all().await.expect("remove all");
    });
}

fn refused_or_unreachable(answer: io::Result<String>) {
    assert!(answer.is_err(), "{answer:?}");
}

#[test]
fn a_link_that_comes_later_is_taken_in() {
    let machine = machine();
    let path = machine.path.clone();
    machine.block_on(move || async move {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa15").await;
        assert_eq!(network.addresses().node, network.addresses().gateway);
        let mut node = network.node();
        // The machine's own thread runs this test: a new one, in the same namespace, brings the link.
        let namespace = std::fs::File::open(path).expect("the namespace");
        std::thread::spawn(move || {
            nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter");
            std::fs::write("/proc/sys/net/ipv4/conf/default/forwarding", "0").expect("write");
            for arguments in ["link add out0 type veth peer name out1", "addr add 192.0.2.1/24 dev out0"] {
                let status = Command::new("ip").args(arguments.split(' ')).status().expect("run ip");
                assert!(status.success());
            }
        })
        .join()
        .expect("the link is there");
        let changed =
            tokio::time::timeout(Duration::from_secs(10), node.wait_for(|ip| ip.octets()[0] == 192)).await;
        changed.expect("noticed in time").expect("the network lives");
        assert_eq!(network.addresses().node, Ipv4Addr::new(192, 0, 2, 1));
        let forwarding = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/out0/forwarding").expect("read");
        assert_eq!(forwarding().trim(), "1");
        network.remove_all().await.expect("remove all");
        assert_eq!(forwarding().trim(), "0");
    });
}

#[test]
fn two_instances_do_not_touch_each_other() {
    let (machine, _neighbour) = machine_with_neighbour();
    let kernel = Arc::clone(&machine);
    machine.run(|| std::fs::write("/proc/sys/net/ipv4/conf/out0/forwarding", "0").expect("write"));
    let forwarding = || {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/conf/out0/forwarding").expect("read");
        text.trim().to_owned()
    };
    let links =
        |all: String| all.lines().filter_map(|l| Some(l.split(": ").nth(1)?.to_owned())).collect::<Vec<_>>();
    // Of IPv4 only: what IPv6 does on a fresh link changes by itself.
    let routes = |all: String| all.replace("linkdown ", "");
    let seen = || {
        (kernel.ip("-4 -o addr"), routes(kernel.ip("-4 route show table all")), links(kernel.ip("-o link")))
    };
    let before = seen();
    machine.block_on(move || async move {
        let dir = tempfile::tempdir().expect("a directory");
        let (one, two) = tokio::join!(open(dir.path(), "bb01"), open(dir.path(), "bb02"));
        let (of_one, of_two) = (one.addresses(), two.addresses());
        let ranges = [of_one.pod_cidr, of_one.service_cidr, of_two.pod_cidr, of_two.service_cidr];
        for (i, a) in ranges.iter().enumerate() {
            assert!(ranges[i + 1..].iter().all(|b| !a.overlaps(*b)), "{ranges:?}");
        }
        let (a, at_a) = pod(&*one, "same").await;
        let (b, at_b) = pod(&*two, "same").await;
        let service = of_one.service_cidr.nth(20).expect("room");
        let mut table = ServiceTable::default();
        table.services.insert(tcp(service, 80), vec![to(&at_a)]);
        one.apply_services(&table).await.expect("apply");
        two.apply_services(&ServiceTable::default()).await.expect("apply");
        assert!(b.ask(at_a.ip, 8080).is_ok() && a.ask(at_b.ip, 8080).is_ok());
        assert_eq!(forwarding(), "1");

        two.remove_all().await.expect("remove all");
        assert_eq!(forwarding(), "1", "the other still needs it");
        assert!(a.ask(service, 80).is_ok() && ask_here(service, 80).is_ok());
        one.remove_all().await.expect("remove all");
        assert_eq!(forwarding(), "0", "as it was");
    });
    assert_eq!(before, seen(), "nothing is left");
}

#[test]
fn many_attach_at_once() {
    machine().block_on(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa11").await;
        let pods: Vec<(String, Namespace)> =
            (0..20).map(|i| (format!("pod-{i}"), Namespace::new())).collect();
        let begun = Instant::now();
        let alone = network.attach("alone", &Namespace::new().path, None).await.expect("attach");
        let one = begun.elapsed();
        let attaching = pods.iter().map(|(id, pod)| network.attach(id, &pod.path, None));
        let begun = Instant::now();
        let mut ips = BTreeSet::from([alone.ip]);
        for attached in futures::future::join_all(attaching).await {
            ips.insert(attached.expect("attach").ip);
        }
        println!("one attach {one:?}, 20 at once {:?}", begun.elapsed());
        assert_eq!(ips.len(), 21);
        let begun = Instant::now();
        for (id, _) in &pods {
            network.detach(id).await.expect("detach");
        }
        println!("20 detached in {:?}", begun.elapsed());
        network.close().await;
        println!("and freed in {:?}", begun.elapsed());
        network.remove_all().await.expect("remove all");
    });
}

#[test]
fn a_thousand_services_change_at_the_cost_of_one() {
    machine().block_on(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        let network = open(dir.path(), "aa12").await;
        let addresses = network.addresses();
        let (_a, at_a) = pod(&*network, "a").await;
        let mut table = ServiceTable::default();
        for n in 0..1000 {
            let service = addresses.service_cidr.nth(100 + n).expect("room");
            let endpoints =
                (0..10).map(|i| Endpoint { ip: addresses.pod_cidr.nth(100 + i).expect("room"), port: 80 });
            table.services.insert(tcp(service, 80), endpoints.collect());
        }
        let begun = Instant::now();
        let all = network.apply_services(&table).await.expect("apply");
        println!("{} elements in {:?}", all.elements, begun.elapsed());
        let service = addresses.service_cidr.nth(50).expect("room");
        table.services.insert(tcp(service, 80), vec![to(&at_a)]);
        let begun = Instant::now();
        let one = network.apply_services(&table).await.expect("apply");
        println!("{} elements more in {:?}", one.elements, begun.elapsed());
        assert!(one.elements < 5, "{one:?}");
        assert!(ask_here(service, 80).expect("an answer").starts_with("a "));
        network.remove_all().await.expect("remove all");
    });
}
