//! The network of a real machine.
//!
//! Invariant: an address is in use as long as its route may exist; of one id never two changes run at once.
//! Invariant: dropping or closing it leaves everything as it is; only `remove_all` takes away.

use crate::cidr::{Cidr, free_address};
use crate::machine::{self, Locked, Machine};
use crate::netlink::{Batch, Socket};
use crate::notice::Notice;
use crate::rtnl::{self, LOOPBACK};
use crate::rules::{Layout, Rules};
use crate::services::{Changes, ServiceTable};
use crate::veth::{self, Names, Wire};
use crate::{Addresses, Attachment, Config, Error, Network};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use tokio::sync::{oneshot, watch};

/// Links, addresses, routes and packet rules of the kernel this process runs on.
pub struct LinuxNetwork {
    inner: Arc<Inner>,
    sweep: mpsc::Sender<Sweep>,
    _notice: Notice,
}

struct Inner {
    instance: String,
    names: Names,
    /// As they were at the opening; `node` tells the machine's address of now.
    addresses: Addresses,
    node: watch::Sender<Ipv4Addr>,
    /// Everything was taken away: nothing is to be set up again.
    removed: AtomicBool,
    state: Mutex<State>,
    /// Told when an id is no longer busy.
    idle: Condvar,
    rules: Mutex<Rules>,
}

struct State {
    attachments: BTreeMap<String, Attachment>,
    /// Ids that a thread is working on, with the address they will have.
    busy: BTreeMap<String, Option<Ipv4Addr>>,
    /// The address handed out last.
    last: Ipv4Addr,
}

/// What the sweeper is asked.
enum Sweep {
    /// There may be garbage.
    Garbage,
    /// Answer when all garbage before this is gone.
    Done(oneshot::Sender<()>),
}

impl LinuxNetwork {
    /// Opens the machine's network in this thread's network namespace: chooses or remembers the ranges, binds the
    /// fixed addresses, finds the attachments there are. Doing it after a crash changes nothing that is right.
    pub async fn open(config: Config) -> Result<Arc<LinuxNetwork>, Error> {
        run("network-open", move || LinuxNetwork::open_here(&config)).await.map(Arc::new)
    }

    /// Ends this process's part and leaves links and rules to work on.
    pub async fn close(&self) {
        let (done, finished) = oneshot::channel();
        // A sweeper that is gone has nothing left to sweep.
        if self.sweep.send(Sweep::Done(done)).is_ok() {
            let _ = finished.await;
        }
    }

    /// Takes away everything of this instance: links, rules, routes, addresses, changed settings. Attachments of
    /// namespaces that live on are cut off.
    pub async fn remove_all(&self) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        run("network-remove", move || inner.remove_all()).await
    }

    /// The machine's primary address, now and whenever it changes.
    pub fn node(&self) -> watch::Receiver<Ipv4Addr> {
        self.inner.node.subscribe()
    }

    fn open_here(config: &Config) -> Result<LinuxNetwork, Error> {
        let names = Names::new(&config.name)?;
        let refused = |attempt: &str| {
            let attempt = attempt.to_owned();
            |source| Error::Link { attempt, source }
        };
        let socket = Socket::route().map_err(refused("open a netlink socket"))?;
        let mut locked = Locked::take()?;
        let machine = Machine::observe(&socket)?;
        let ranges = machine::settle(config, &names.prefix, &machine, &mut locked)?;
        let addresses = machine::addresses(ranges, &machine);
        bind(&socket, &addresses).map_err(refused("bind the network's own addresses on lo"))?;
        locked.open_outward(&machine, &config.name)?;
        drop(locked);

        let (attachments, garbage) = veth::recover(&names, &machine);
        veth::discard(&names, &garbage).map_err(refused("discard links that a crash left half-made"))?;
        let last = attachments.values().map(|attachment| attachment.ip).max();
        let state = State { attachments, busy: BTreeMap::new(), last: last.unwrap_or(addresses.gateway) };
        let rules = Rules::open(Layout {
            table: format!("holdfast-{}", config.name),
            links: names.prefix.clone(),
            pod_cidr: ranges.pod_cidr,
            service_cidr: ranges.service_cidr,
            dns: addresses.dns,
            gateway: addresses.gateway,
        })?;
        let sweep = start_sweeper(names.garbage)?;
        // What a process before this one did not come to remove.
        let _ = sweep.send(Sweep::Garbage);
        let inner = Arc::new(Inner {
            instance: config.name.clone(),
            names,
            addresses,
            node: watch::Sender::new(addresses.node),
            removed: AtomicBool::new(false),
            state: Mutex::new(state),
            idle: Condvar::new(),
            rules: Mutex::new(rules),
        });
        let noticing = Arc::downgrade(&inner);
        let notice = Notice::of_addresses(move || {
            if let Some(inner) = noticing.upgrade() {
                inner.addresses_changed();
            }
        });
        let notice = notice.map_err(refused("watch this machine's addresses"))?;
        Ok(LinuxNetwork { inner, sweep, _notice: notice })
    }
}

#[async_trait]
impl Network for LinuxNetwork {
    async fn attach(&self, id: &str, netns: &Path, want: Option<Ipv4Addr>) -> Result<Attachment, Error> {
        if id.is_empty() || id.len() > 250 {
            return Err(Error::Id { id: id.to_owned() });
        }
        let (inner, id, netns) = (Arc::clone(&self.inner), id.to_owned(), PathBuf::from(netns));
        run("network-attach", move || inner.attach(&id, &netns, want)).await
    }

    async fn detach(&self, id: &str) -> Result<(), Error> {
        let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
        run("network-detach", move || inner.detach(&id)).await?;
        // Removing a link waits long inside the kernel; nothing waits for that.
        let _ = self.sweep.send(Sweep::Garbage);
        Ok(())
    }

    fn attachments(&self) -> BTreeMap<String, Attachment> {
        self.inner.state().attachments.clone()
    }

    fn attachment(&self, id: &str) -> Option<Attachment> {
        self.inner.state().attachments.get(id).cloned()
    }

    async fn apply_services(&self, table: &ServiceTable) -> Result<Changes, Error> {
        let (inner, table) = (Arc::clone(&self.inner), table.clone());
        run("network-rules", move || inner.rules().apply(table)).await
    }

    fn addresses(&self) -> Addresses {
        Addresses { node: *self.inner.node.borrow(), ..self.inner.addresses }
    }
}

impl Inner {
    /// A link that got its address after the opening must let answers pass as well.
    fn addresses_changed(&self) {
        if let Err(error) = self.look_outward() {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            tracing::warn!(%error, source, "a changed address of this machine was not taken in");
        }
    }

    fn look_outward(&self) -> Result<(), Error> {
        let attempt = || "open a netlink socket".to_owned();
        let socket = Socket::route().map_err(|source| Error::Link { attempt: attempt(), source })?;
        let mut locked = Locked::take()?;
        if self.removed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let machine = Machine::observe(&socket)?;
        locked.open_outward(&machine, &self.instance)?;
        let node = machine.primary().unwrap_or(self.addresses.gateway);
        self.node.send_if_modified(|present| std::mem::replace(present, node) != node);
        Ok(())
    }

    fn attach(&self, id: &str, netns: &Path, want: Option<Ipv4Addr>) -> Result<Attachment, Error> {
        let mut state = self.wait_until_idle(id);
        let known = state.attachments.get(id).cloned();
        state.busy.insert(id.to_owned(), known.as_ref().map(|known| known.ip));
        drop(state);
        let made = self.attach_alone(id, netns, want, known);
        let mut state = self.state();
        state.busy.remove(id);
        match &made {
            Ok(attachment) => state.attachments.insert(id.to_owned(), attachment.clone()),
            // A wire that was there before and could not be made again is none.
            Err(_) => state.attachments.remove(id),
        };
        self.idle.notify_all();
        made
    }

    fn attach_alone(
        &self,
        id: &str,
        netns: &Path,
        want: Option<Ipv4Addr>,
        known: Option<Attachment>,
    ) -> Result<Attachment, Error> {
        if let Some(known) = &known {
            let there = veth::exists(&known.link)
                .map_err(|source| Error::Link { attempt: format!("look for link {}", known.link), source })?;
            if there {
                return Ok(known.clone());
            }
        }
        // A namespace that ended took its link along: the attachment is made again, with the address it had.
        let ip = self.reserve(id, want.or(known.map(|known| known.ip)))?;
        let link = self.names.link(id);
        let group = self.names.group;
        veth::make(&Wire { id, link: &link, ip, source: self.addresses.gateway, group, netns })?;
        Ok(veth::attachment(ip, link))
    }

    fn detach(&self, id: &str) -> Result<(), Error> {
        let mut state = self.wait_until_idle(id);
        let Some(known) = state.attachments.get(id).cloned() else { return Ok(()) };
        state.busy.insert(id.to_owned(), Some(known.ip));
        drop(state);
        let unmade = veth::unmake(&self.names, &known).map_err(|source| Error::Link {
            attempt: format!("remove link {} of attachment {id}", known.link),
            source,
        });
        let mut state = self.state();
        state.busy.remove(id);
        if unmade.is_ok() {
            state.attachments.remove(id);
        }
        self.idle.notify_all();
        unmade
    }

    /// Picks an address and notes it under the busy id.
    fn reserve(&self, id: &str, want: Option<Ipv4Addr>) -> Result<Ipv4Addr, Error> {
        let mut state = self.state();
        let ip = pick(&state, self.addresses.pod_cidr, id, want)?;
        if want.is_none() {
            state.last = ip;
        }
        state.busy.insert(id.to_owned(), Some(ip));
        Ok(ip)
    }

    fn remove_all(&self) -> Result<(), Error> {
        let refused = |what: &str, source| Error::Link {
            attempt: format!("remove {what} of {}", self.instance),
            source,
        };
        self.removed.store(true, Ordering::SeqCst);
        self.rules().remove()?;
        for group in [self.names.group, self.names.garbage] {
            veth::remove_group(group).map_err(|source| refused("links", source))?;
        }
        let mut batch = Batch::new();
        rtnl::remove_route(&mut batch, self.addresses.service_cidr, LOOPBACK);
        rtnl::remove_address(&mut batch, LOOPBACK, self.addresses.dns);
        rtnl::remove_address(&mut batch, LOOPBACK, self.addresses.gateway);
        Socket::route()
            .and_then(|socket| veth::forgiving(&socket, batch))
            .map_err(|source| refused("route and addresses", source))?;
        self.state().attachments.clear();
        Locked::take()?.release(&self.instance)
    }

    fn wait_until_idle(&self, id: &str) -> MutexGuard<'_, State> {
        let state = self.state();
        self.idle
            .wait_while(state, |state| state.busy.contains_key(id))
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pick(state: &State, pool: Cidr, id: &str, want: Option<Ipv4Addr>) -> Result<Ipv4Addr, Error> {
    let others = state.attachments.iter().filter(|(other, _)| *other != id).map(|(other, it)| (other, it.ip));
    let coming = state
        .busy
        .iter()
        .filter(|(other, _)| *other != id)
        .filter_map(|(other, ip)| ip.map(|ip| (other, ip)));
    let used: BTreeMap<Ipv4Addr, &String> = others.chain(coming).map(|(other, ip)| (ip, other)).collect();
    let Some(ip) = want else {
        let used: BTreeSet<Ipv4Addr> = used.into_keys().collect();
        return free_address(pool, &used, state.last)
            .ok_or_else(|| Error::Exhausted { pod_cidr: pool, id: id.to_owned() });
    };
    let why = match used.get(&ip) {
        Some(other) => format!("taken by {other}"),
        None if !pool.contains(ip) => format!("outside {pool}"),
        None => return Ok(ip),
    };
    Err(Error::Address { ip, id: id.to_owned(), why })
}

/// The gateway's and the DNS server's address, and a way for services: what starts on this machine needs a route
/// before its destination can be changed, also where there is no default route.
fn bind(socket: &Socket, addresses: &Addresses) -> io::Result<()> {
    let mut batch = Batch::new();
    rtnl::add_address(&mut batch, LOOPBACK, addresses.gateway);
    rtnl::add_address(&mut batch, LOOPBACK, addresses.dns);
    rtnl::add_route(&mut batch, addresses.service_cidr, LOOPBACK, addresses.gateway);
    socket.all(batch).map(|_| ())
}

/// One thread removes what is garbage, all there is at once.
fn start_sweeper(group: u32) -> Result<mpsc::Sender<Sweep>, Error> {
    let (sender, asked) = mpsc::channel::<Sweep>();
    let sweep = move || {
        while let Ok(first) = asked.recv() {
            let all: Vec<Sweep> = std::iter::once(first).chain(asked.try_iter()).collect();
            if let Err(error) = veth::remove_group(group) {
                tracing::warn!(%error, "links of removed attachments could not be freed, will retry with the next");
            }
            for waiting in all {
                if let Sweep::Done(answer) = waiting {
                    // Whoever asked may have gone.
                    let _ = answer.send(());
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("network-sweep".to_owned()).spawn(sweep);
    thread.map_err(|source| Error::Thread { attempt: "remove links", source })?;
    Ok(sender)
}

/// Runs blocking work in a thread of its own: it may change the thread's network namespace.
async fn run<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (sender, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Whoever asked may have gone; what was done is recorded all the same.
        let _ = sender.send(work());
    });
    thread.map_err(|source| Error::Thread { attempt: name, source })?;
    match result.await {
        Ok(result) => result,
        Err(_) => {
            Err(Error::Thread { attempt: name, source: io::Error::other("it ended without an answer") })
        }
    }
}
