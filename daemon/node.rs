//! One node: which rooms run, started from the ground up, stopped from the roof down.
//!
//! Invariant: nothing here decides about the cluster; rooms get what they need and never each other.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use apiserver::{Head, Pki, Server, User};
use client::{Caches, Clock};
use gitops::Engine;
use images::Images;
use network::Network;
use network::absent::AbsentNetwork;
use network::linux::LinuxNetwork;
use nix::fcntl::{Flock, FlockArg};
use reconcile::Tasks;
use runtime::Runtime;
use runtime::linux::{Demand, LinuxRuntime};
use store::Store;
use store::fjall_disk::FjallDisk;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::actions::Actions;
use crate::config::{Config, Isolation};
use crate::garbage::{self, Users};
use crate::kitchen::{self, Kitchen};
use crate::larder::Larder;

/// The program that holds a pod's namespaces; see daemon/shim.
pub(crate) const SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holdfast-shim"));
/// The demo's program; see manifests/kubia.
const KUBIA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kubia"));
/// The name of the demo's image.
const KUBIA_IMAGE: &str = "kubia:1";

/// How long each room may take to stop.
const PATIENCE: Duration = Duration::from_secs(3);
/// A start or a sync is over after this long.
const SETTLED: Duration = Duration::from_secs(10);

/// Why a node did not start, or did not stop clean.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    /// Not root.
    #[error(
        "holdfast needs root to make containers: start it with sudo, or as root (it runs as user {uid} now)"
    )]
    NotRoot {
        /// Who it is.
        uid: u32,
    },
    /// A directory of the node.
    #[error("{attempt} {path}")]
    Directory {
        /// What was tried.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Two daemons on one directory.
    #[error(
        "another holdfast (process {pid}) runs with data directory {path}: stop it first, or choose another with --data DIR"
    )]
    Taken {
        /// The directory.
        path: PathBuf,
        /// Who has it.
        pid: String,
    },
    /// An address that is in use, mostly.
    #[error("listen on {address} for {what}: is another program there? change {key} in the configuration")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// For what.
        what: &'static str,
        /// Which option says so.
        key: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A room did not open.
    #[error("open {room}")]
    Room {
        /// Which.
        room: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Says which room it was.
pub(crate) fn room<E: std::error::Error + Send + Sync + 'static>(
    room: &'static str,
) -> impl Fn(E) -> NodeError {
    move |source| NodeError::Room { room, source: Box::new(source) }
}

/// Where a node keeps its things. All names of one node on the machine come from its data directory.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// The data directory, without symbolic links.
    pub(crate) data: PathBuf,
    /// Four hex digits: part of the name of every cgroup, link and table.
    pub(crate) instance: String,
}

impl Places {
    /// Makes the data directory when it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn open(config: &Config) -> Result<Places, NodeError> {
        let path = &config.node.data_dir;
        let failed = |attempt| move |source| NodeError::Directory { attempt, path: path.clone(), source };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("create the data directory"))?;
        let data = fs::canonicalize(path).map_err(failed("find the data directory"))?;
        let instance = instance(&data);
        Ok(Places { data, instance })
    }

    /// A directory in the data directory.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }

    /// On a tmpfs: what must never reach a disk.
    fn memory(&self) -> PathBuf {
        PathBuf::from(format!("/run/holdfast-{}", self.instance))
    }
}

/// Where the administrator's kubeconfig lies, once a node with this data directory has started.
pub(crate) fn kubeconfig(data: &Path) -> PathBuf {
    data.join("pki").join("admin.kubeconfig")
}

/// # Errors
/// [`NodeError::NotRoot`].
pub(crate) fn must_be_root() -> Result<(), NodeError> {
    let uid = nix::unistd::geteuid();
    if uid.is_root() { Ok(()) } else { Err(NodeError::NotRoot { uid: uid.as_raw() }) }
}

/// FNV-1a, folded to 16 bits: stable for ever, since it is part of names on the machine.
fn instance(path: &Path) -> String {
    let hash = path.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{:04x}", (hash ^ (hash >> 16) ^ (hash >> 32) ^ (hash >> 48)) & 0xffff)
}

/// The lock of a data directory; the file tells who holds it.
pub(crate) struct Lock(
    #[expect(dead_code, reason = "held, never read: dropping it frees the directory")] Flock<fs::File>,
);

impl Lock {
    /// Takes the directory, or says who has it.
    ///
    /// # Errors
    /// [`NodeError::Taken`]; [`NodeError::Directory`] when the file cannot be made.
    pub(crate) fn take(places: &Places) -> Result<Lock, NodeError> {
        let path = places.dir("lock");
        let failed = |source| NodeError::Directory { attempt: "write", path: path.clone(), source };
        let file = fs::OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut held) => {
                held.set_len(0).and_then(|()| write!(held, "{}", std::process::id())).map_err(failed)?;
                Ok(Lock(held))
            }
            Err(_) => Err(NodeError::Taken {
                path: places.data.clone(),
                pid: Lock::holder(places).unwrap_or_default(),
            }),
        }
    }

    /// Waits until nobody holds the directory, at most this long. There is no notification for a lock that is freed.
    pub(crate) async fn freed(places: &Places, patience: Duration) {
        let end = tokio::time::Instant::now() + patience;
        while Lock::take(places).is_err() && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The process that holds, or last held, the directory.
    pub(crate) fn holder(places: &Places) -> Option<String> {
        fs::read_to_string(places.dir("lock"))
            .ok()
            .map(|pid| pid.trim().to_owned())
            .filter(|pid| !pid.is_empty())
    }
}

/// A node that runs.
pub(crate) struct Node {
    /// The status page.
    pub(crate) web: web::Web,
    /// What this machine cannot isolate.
    pub(crate) missing: Vec<runtime::Missing>,
    tasks: Tasks,
    store: Store<Head>,
    _lock: Lock,
}

struct Ground {
    store: Store<Head>,
    network: Arc<dyn Network>,
    /// Why there is no network, if there is none.
    without_network: Option<String>,
    runtime: Arc<LinuxRuntime>,
    images: Images,
}

impl Node {
    /// Starts every room. Returns when the API answers; applications are being brought up by then.
    ///
    /// # Errors
    /// The first thing that is missing, with the way out.
    pub(crate) async fn start(config: Config) -> Result<Node, NodeError> {
        must_be_root()?;
        let places = Places::open(&config)?;
        let lock = Lock::take(&places)?;
        let api_listener = listen(config.api.listen, "the API", "api.listen").await?;
        let web_listener = listen(config.web.listen, "the status page", "web.listen").await?;
        let ground = ground(&config, &places).await?;
        let name = name(&config);
        let clock = Clock::Wall;
        let addresses = ground.network.addresses();
        let mut api_config = config.api.clone();
        api_config.services = apiserver::ServiceRange {
            network: addresses.service_cidr.base(),
            prefix: addresses.service_cidr.prefix(),
            dns: addresses.dns,
        };
        let pod_listener = listen_for_pods(&config, &ground).await?;
        let names = api_names(&name, &addresses);
        let pki = Pki::open(&places.dir("pki"), &names, config.api.listen, clock.now())
            .map_err(room("the certificates"))?;
        api_config.identity = apiserver::Identity {
            token_key: pki.token_key.clone(),
            ca: pki.ca.clone(),
            advertise: Some(SocketAddrV4::new(addresses.gateway, config.api.listen.port()))
                .filter(|_| ground.without_network.is_none()),
        };
        let server = Server::open(ground.store.clone(), &api_config, clock.teller())
            .await
            .map_err(room("the API server"))?;
        let tasks = Tasks::new();
        let root_ca: Arc<str> = pki.ca.as_str().into();
        for (task, listener) in [("api", Some(api_listener)), ("api-for-pods", pod_listener)] {
            let Some(listener) = listener else { continue };
            let (https, pki) = (server.clone(), pki.clone());
            tasks.spawn(task, move |stop| async move {
                if let Err(error) = https.serve(listener, &pki, stop).await {
                    tracing::error!(error = reconcile::chain(&error), "the API is not served");
                }
            });
        }
        // One door and one set of caches for all rooms: a kind is held once, however many look at it.
        let caches = Caches::new(client::door(server.door(User::room("holdfast-node"))), tasks.token());
        let mut missing = ground.runtime.isolation().await.missing;
        missing.extend(
            ground
                .without_network
                .iter()
                .map(|why| runtime::Missing { what: "the network of pods".to_owned(), why: why.clone() }),
        );
        let cluster = controllers::cluster::Parts {
            caches: caches.clone(),
            clock,
            node: name.clone(),
            volumes: places.dir("volumes"),
            listening: Arc::new(crate::ports::listening),
            signer: signer(&pki),
            root_ca,
        };
        controllers::cluster::start(&cluster, &tasks);
        let kubelet = floor_four(&config, &places, &ground, &caches, &tasks, &name, clock).await?;
        server.connect_node(&name, kubelet);
        let engine = Engine::new(gitops::Parts {
            caches: caches.clone(),
            applications: config.application.clone(),
            dir: places.dir("git"),
            now: clock.teller(),
            ssh: "ssh".into(),
        })
        .map_err(room("the applications"))?;
        engine.start(&tasks);
        let synced = engine.changed();
        engine.tell(&tasks, config.notify.clone(), clock).map_err(room("the notices"))?;
        let users = Users {
            images: ground.images.clone(),
            runtime: Arc::clone(&ground.runtime) as Arc<dyn Runtime>,
            caches: caches.clone(),
        };
        garbage::start(users.clone(), &tasks, clock);
        let in_use = Arc::new(move || users.in_use());
        let roof = Roof {
            config: &config,
            places: &places,
            name,
            missing: &missing,
            server,
            engine,
            larder: Larder::new(&config, &places, ground.images, in_use),
            caches,
        };
        let web = roof.web(clock)?;
        web.start(&tasks, web_listener);
        tasks.spawn("settle", move |stop| settle(stop, synced));
        tasks.spawn("leap", crate::leap::follow);
        Ok(Node { web, missing, tasks, store: ground.store, _lock: lock })
    }

    /// Ends when the node is to stop by itself: a room is gone.
    pub(crate) async fn broken(&self) {
        self.tasks.token().cancelled().await;
    }

    /// Stops the rooms, the last started first. Containers and packet rules stay.
    pub(crate) async fn stop(self) {
        self.tasks.stop(PATIENCE).await;
        self.store.close().await;
    }
}

/// Signs with the node's CA.
fn signer(pki: &Pki) -> controllers::cluster::Signer {
    let pki = pki.clone();
    Arc::new(move |asked| {
        pki.sign(&apiserver::Asked {
            request: &asked.request,
            signer: &asked.signer,
            usages: &asked.usages,
            now: asked.now,
            until: asked.until,
        })
    })
}

/// Once a start or a sync is over, most of the program is not needed, nor the memory that it freed: what runs from now on
/// is mapped again as it is used.
async fn settle(stop: CancellationToken, mut synced: watch::Receiver<u64>) {
    let code = shim::code::Code::of_this_program();
    let rounds = async {
        loop {
            tokio::time::sleep(SETTLED).await;
            synced.mark_unchanged();
            shim::code::trim_heap();
            code.let_go();
            if synced.changed().await.is_err() {
                return;
            }
        }
    };
    // Cancel-safe: a token stays cancelled, and nothing is half done between two rounds.
    let _ = stop.run_until_cancelled(rounds).await;
}

/// What the roof terrace shows and asks.
struct Roof<'a> {
    config: &'a Config,
    places: &'a Places,
    name: String,
    missing: &'a [runtime::Missing],
    server: Server,
    engine: Engine,
    larder: Larder,
    caches: Caches,
}

impl Roof<'_> {
    fn web(self, clock: Clock) -> Result<web::Web, NodeError> {
        let token = web::token(&self.places.data).map_err(room("the status page's token"))?;
        let facts = web::Facts {
            name: self.name,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api_address: format!("https://{}", self.config.api.listen),
            page: format!("http://{}/", self.config.web.listen),
            kubeconfig: kubeconfig(&self.places.data).display().to_string(),
            missing: self
                .missing
                .iter()
                .map(|missing| format!("{}: {}", missing.what, missing.why))
                .collect(),
            started: clock.now(),
        };
        let applications = self.engine.names().into_iter().collect();
        let actions = Actions { engine: self.engine, larder: self.larder, server: self.server };
        Ok(web::Web::new(web::Parts {
            node: facts,
            applications,
            caches: self.caches,
            actions: Arc::new(actions),
            spool: self.places.dir("spool"),
            token,
            now: clock.teller(),
        }))
    }
}

/// Floor 4; the answer is the kubelet's door.
async fn floor_four(
    config: &Config,
    places: &Places,
    ground: &Ground,
    shared: &Caches,
    tasks: &Tasks,
    name: &str,
    clock: Clock,
) -> Result<client::NodeDoor, NodeError> {
    let network = Arc::clone(&ground.network);
    scheduler::start(shared, tasks, clock, &config.scheduler);
    controllers::start(shared, tasks, clock);
    let addresses = network.addresses();
    if ground.without_network.is_none() {
        proxy::start(shared, tasks, Arc::clone(&network), clock);
        let dns = dns::Config {
            listen: std::net::SocketAddrV4::new(addresses.dns, 53),
            domain: "cluster.local".to_owned(),
            ranges: vec![addresses.pod_cidr, addresses.service_cidr],
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
        };
        dns::start(shared, tasks, clock, dns).await.map_err(room("the DNS server"))?;
    }
    ingress::start(shared, tasks, clock, &config.ingress, addresses.node.into())
        .await
        .map_err(room("the ingress"))?;
    let parts = kubelet::Parts {
        node_name: name.to_owned(),
        config: config.kubelet.clone(),
        pods_dir: places.dir("pods"),
        memory_dir: places.memory(),
        logs_dir: places.dir("logs"),
        runtime: Arc::clone(&ground.runtime) as Arc<dyn Runtime>,
        network,
        images: ground.images.clone(),
        caches: shared.clone(),
        clock,
    };
    kubelet::start(parts, tasks).await.map_err(room("the kubelet"))
}

/// Floors 0 and 2 know nothing of each other: they open side by side.
async fn ground(config: &Config, places: &Places) -> Result<Ground, NodeError> {
    for dir in ["pods", "logs", "git", "spool", "volumes"] {
        let path = places.dir(dir);
        fs::create_dir_all(&path).map_err(|source| NodeError::Directory {
            attempt: "create",
            path,
            source,
        })?;
    }
    let (store_dir, store_config) = (places.dir("store"), config.store.clone());
    let store = tokio::task::spawn_blocking(move || -> Result<Store<Head>, NodeError> {
        let disk = FjallDisk::open(&store_dir).map_err(room("the store's disk"))?;
        Store::open(Box::new(disk), Head::parse, &store_config).map_err(room("the store"))
    });
    let (images_dir, images_config) = (places.dir("images"), config.images.clone());
    let images = tokio::task::spawn_blocking(move || {
        Images::open(&images_dir, &images_config).map_err(room("the images"))
    });
    let (network, runtime) =
        tokio::join!(LinuxNetwork::open(network_config(config, places)), open_runtime(config, places));
    let images = images.await.expect("opening the images does not panic")?;
    with_demo_image(&images).await?;
    let (network, without_network) = match network {
        Ok(network) => (network as Arc<dyn Network>, None),
        // Without the rights the node still starts and says so, unless it was told not to.
        Err(error) if config.node.isolation == Isolation::BestEffort && lacks_rights(&error) => {
            let why = reconcile::chain(&error);
            (Arc::new(AbsentNetwork::new(why.clone())) as Arc<dyn Network>, Some(why))
        }
        Err(error) => return Err(room("the network")(error)),
    };
    Ok(Ground {
        store: store.await.expect("opening the store does not panic")?,
        network,
        without_network,
        runtime: runtime?,
        images,
    })
}

/// Whether the kernel said EPERM or EACCES, and not that something is wrong.
fn lacks_rights(error: &network::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

fn network_config(config: &Config, places: &Places) -> network::Config {
    network::Config { dir: places.dir("network"), name: places.instance.clone(), ..config.network.clone() }
}

/// For containers in this directory and cgroup.
pub(crate) fn runtime_config(config: &Config, dir: PathBuf, cgroup: String) -> runtime::linux::Config {
    let isolation = match config.node.isolation {
        Isolation::Full => Demand::Full,
        Isolation::BestEffort => Demand::BestEffort,
    };
    runtime::linux::Config { dir, cgroup, isolation }
}

async fn open_runtime(config: &Config, places: &Places) -> Result<Arc<LinuxRuntime>, NodeError> {
    let config = runtime_config(config, places.dir("runtime"), format!("holdfast-{}", places.instance));
    LinuxRuntime::open(config, SHIM).await.map_err(room("the runtime"))
}

/// The demo's image, made from the program that lies inside this one; as a user would make theirs with `image load`.
async fn with_demo_image(images: &Images) -> Result<(), NodeError> {
    let build = images::Build::new(&["/kubia"])
        .layer(images::Layer::base())
        .layer(images::Layer::default().file("/kubia", 0o755, KUBIA));
    let reference: images::Reference = KUBIA_IMAGE.parse().map_err(room("the demo's image"))?;
    let (building, name) = (images.clone(), reference.clone());
    let built = tokio::spawn(async move { building.build(&name, build).await });
    // A known image is looked at beside the start, a missing one is waited for.
    if images.get(&reference).is_none() {
        built.await.expect("building an image does not panic").map_err(room("the demo's image"))?;
    }
    Ok(())
}

async fn listen(
    address: SocketAddr,
    what: &'static str,
    key: &'static str,
) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|source| NodeError::Listen { address, what, key, source })
}

/// Pods reach the API at the network's own address on this machine, unless it is served at every address anyway.
async fn listen_for_pods(config: &Config, ground: &Ground) -> Result<Option<TcpListener>, NodeError> {
    let gateway = ground.network.addresses().gateway;
    let at = config.api.listen;
    if ground.without_network.is_some() || at.ip().is_unspecified() || at.ip() == gateway {
        return Ok(None);
    }
    listen(SocketAddr::new(gateway.into(), at.port()), "the API for pods", "api.listen").await.map(Some)
}

/// The names and addresses that the API is reached by.
fn api_names(name: &str, addresses: &network::Addresses) -> Vec<String> {
    let first = Ipv4Addr::from_bits(addresses.service_cidr.base().to_bits() + 1);
    let service = ["", ".default", ".default.svc", ".default.svc.cluster.local"];
    let service = service.iter().map(|domain| format!("kubernetes{domain}"));
    let addresses = [first, addresses.gateway, addresses.node].map(|address| address.to_string());
    std::iter::once(name.to_owned()).chain(service).chain(addresses).collect()
}

fn name(config: &Config) -> String {
    if !config.node.name.is_empty() {
        return config.node.name.clone();
    }
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let name: String = name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' })
        .collect();
    if name.is_empty() { "node".to_owned() } else { name }
}

/// Takes away everything of a node that is stopped: containers, namespaces, links, packet rules, cgroups, mounts. The
/// data directory keeps its objects, images and logs.
///
/// # Errors
/// The first thing that would not go; calling again goes on.
pub(crate) async fn take_down(config: &Config, places: &Places) -> Result<(), NodeError> {
    let _lock = Lock::take(places)?;
    let (runtime, network) =
        tokio::join!(open_runtime(config, places), LinuxNetwork::open(network_config(config, places)));
    runtime?.remove_all().await.map_err(room("the runtime"))?;
    Kitchen::clear(kitchen::config(config, places), SHIM).await.map_err(room("the runtime of builds"))?;
    network.map_err(room("the network"))?.remove_all().await.map_err(room("the network"))?;
    let path = places.dir("pods");
    kubelet::remove_files(&path, &places.memory()).map_err(|source| NodeError::Directory {
        attempt: "remove",
        path,
        source,
    })?;
    Ok(())
}
