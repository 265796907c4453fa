//! Questions about others' names, passed on to the resolvers of this machine.
//!
//! Invariant: only an answer with the number and the question that were sent is taken.
//! Invariant: the server never asks itself.

use hickory_proto::op::{Message, Query};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one resolver may take. Clients ask again after five seconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// As resolvers do: further ones are not asked.
const MOST_RESOLVERS: usize = 3;

/// How the client asked: what does not fit into a datagram is asked for by TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// Passes the question on as it is. `None` when there is nobody to ask or nobody answers.
pub(crate) async fn forward(
    resolvers: &[SocketAddr],
    question: &[u8],
    transport: Transport,
) -> Option<Vec<u8>> {
    for resolver in resolvers {
        match timeout(PATIENCE, exchange(*resolver, question, transport)).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%resolver, %error, "resolver failed, asking the next"),
            Err(_) => tracing::debug!(%resolver, "resolver did not answer in time, asking the next"),
        }
    }
    None
}

/// Asks for one name and gives back the answer.
pub(crate) async fn ask(resolvers: &[SocketAddr], query: Query, transport: Transport) -> Option<Message> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(query);
    let bytes = question.to_vec().ok()?;
    Message::from_vec(&forward(resolvers, &bytes, transport).await?).ok()
}

/// The resolvers that the file lists, without this server.
pub(crate) async fn resolvers(resolv_conf: &Path, own: Ipv4Addr) -> Vec<SocketAddr> {
    match tokio::fs::read_to_string(resolv_conf).await {
        Ok(text) => listed(&text, own),
        Err(error) => {
            tracing::debug!(path = %resolv_conf.display(), %error, "no resolvers for other names");
            Vec::new()
        }
    }
}

fn listed(text: &str, own: Ipv4Addr) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        words.next()?.parse::<IpAddr>().ok()
    };
    text.lines()
        .filter_map(address)
        .filter(|ip| *ip != IpAddr::V4(own))
        .take(MOST_RESOLVERS)
        .map(|ip| SocketAddr::new(ip, 53))
        .collect()
}

async fn exchange(resolver: SocketAddr, question: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
    let asked = Message::from_vec(question).map_err(io::Error::other)?;
    // Hard to guess for whoever wants to answer instead; the kernel picks a port for the same reason.
    let id = Message::query().metadata.id;
    let mut sent = question.to_vec();
    sent[..2].copy_from_slice(&id.to_be_bytes());
    let accept = |answer: &[u8]| {
        let message = Message::from_vec(answer).ok()?;
        (message.metadata.id == id && message.queries == asked.queries).then(|| {
            let mut answer = answer.to_vec();
            answer[..2].copy_from_slice(&asked.metadata.id.to_be_bytes());
            answer
        })
    };
    match transport {
        Transport::Udp => by_udp(resolver, &sent, accept).await,
        Transport::Tcp => by_tcp(resolver, &sent, accept).await,
    }
}

async fn by_udp(
    resolver: SocketAddr,
    question: &[u8],
    accept: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = accept(&buffer[..length]) {
            return Ok(answer);
        }
    }
}

async fn by_tcp(
    resolver: SocketAddr,
    question: &[u8],
    accept: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    write_framed(&mut stream, question).await?;
    let answer = read_framed(&mut stream).await?;
    accept(&answer).ok_or_else(|| io::Error::other("the answer is for another question"))
}

/// A message as TCP carries it: its length before it.
pub(crate) async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// See `read_framed`.
pub(crate) async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_others_read_them() {
        let text = "# comment\nsearch lan\nnameserver 192.0.2.1\nnameserver 10.2.0.10 # us\n nameserver fd00::1\n\
                    nameserver nonsense\noptions ndots:5\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let found: Vec<String> =
            listed(text, Ipv4Addr::new(10, 2, 0, 10)).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[fd00::1]:53", "192.0.2.2:53"]);
    }
}
