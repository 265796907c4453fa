//! Connections into a sandbox's network, made from within it: to what listens on its loopback only, as well.
//!
//! Invariant: the thread that enters the network ends in it and is never used again.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// A program that does not take a connection by then is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a port of `localhost` in the network namespace at this path.
///
/// # Errors
/// When the namespace is gone, or nothing listens there.
pub async fn connect(netns: PathBuf, port: u16) -> io::Result<TcpStream> {
    let (answer, answered) = oneshot::channel();
    std::thread::Builder::new().name("dial".to_owned()).spawn(move || {
        // Whoever asked may have gone.
        let _ = answer.send(within(&netns, port));
    })?;
    let stream = answered.await.map_err(|_| io::Error::other("the thread ended without an answer"))??;
    TcpStream::from_std(stream)
}

fn within(netns: &Path, port: u16) -> io::Result<std::net::TcpStream> {
    let namespace = std::fs::File::open(netns)?;
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))?;
    let local = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let connect = |ip: &IpAddr| std::net::TcpStream::connect_timeout(&SocketAddr::new(*ip, port), PATIENCE);
    let stream = connect(&local[0]).or_else(|error| connect(&local[1]).map_err(|_| error))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}
