//! The sockets: questions by UDP and TCP, many at once, each bounded.
//!
//! Invariant: the number of questions under way and of connections is bounded; what is too much is turned away.

use crate::answer::{Outcome, answer, fit, payload};
use crate::forward::{self, Transport};
use crate::table::Table;
use crate::{Config, Error, Names};
use client::Cache;
use hickory_proto::op::{Message, ResponseCode};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Questions to others under way at once.
const MOST_QUESTIONS: usize = 256;
/// TCP connections at once.
const MOST_CONNECTIONS: usize = 128;
/// How long a TCP client may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// A DNS server that listens, but does not answer before `run`.
pub(crate) struct Server {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<Config>,
    table: watch::Sender<Option<Arc<Table>>>,
    questions: Semaphore,
}

impl Server {
    /// Takes the address, by UDP and by TCP; with port 0 both get the same free one.
    pub(crate) async fn bind(config: Config) -> Result<Server, Error> {
        let refused = |protocol| move |source| Error::Listen { protocol, address: config.listen, source };
        let udp = UdpSocket::bind(config.listen).await.map_err(refused("udp"))?;
        let address = udp.local_addr().map_err(refused("udp"))?;
        let tcp = TcpListener::bind(address).await.map_err(refused("tcp"))?;
        let shared = Shared {
            config: Arc::new(config),
            table: watch::Sender::new(None),
            questions: Semaphore::new(MOST_QUESTIONS),
        };
        Ok(Server { udp: Arc::new(udp), tcp, shared: Arc::new(shared) })
    }

    /// Answers until the token is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let (udp, tcp) = (self.by_udp(), self.by_tcp());
        tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => {}
            // Never end; cut off in the end with the questions under way, which clients repeat.
            () = async { tokio::join!(udp, tcp); } => {}
        }
    }

    /// What keeps this server's table equal to the objects.
    pub(crate) fn names(&self, services: Cache<Service>, slices: Cache<EndpointSlice>) -> Names {
        let (config, table) = (Arc::clone(&self.shared.config), self.shared.table.clone());
        Names { services, slices, config, table }
    }

    async fn by_udp(&self) {
        let mut under_way = JoinSet::new();
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let (length, client) = match self.udp.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // An earlier answer could not be delivered; that is no reason to stop.
                    tracing::debug!(%error, "receive a DNS question by UDP");
                    continue;
                }
            };
            while under_way.try_join_next().is_some() {}
            let (shared, socket) = (Arc::clone(&self.shared), Arc::clone(&self.udp));
            let question = buffer[..length].to_vec();
            let outcome = shared.decide(&question);
            if let Outcome::Answer(message) = &outcome {
                send(&socket, fit(message, payload(&question)), client).await;
                continue;
            }
            under_way.spawn(async move {
                let answer = shared.finish(outcome, &question, Transport::Udp).await;
                send(&socket, answer, client).await;
            });
        }
    }

    async fn by_tcp(&self) {
        let mut connections = JoinSet::new();
        loop {
            match self.tcp.accept().await {
                // Closed at once: the client asks again, or another server.
                Ok(_) if connections.len() >= MOST_CONNECTIONS => {}
                Ok((stream, _)) => {
                    connections.spawn(converse(Arc::clone(&self.shared), stream));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept a DNS connection");
                    // Out of file descriptors, most likely: not to be tried again at once.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }
}

impl Shared {
    fn decide(&self, question: &[u8]) -> Outcome {
        let table = self.table.borrow().clone();
        answer(table.as_deref(), question)
    }

    /// Asks others where that is needed. `None`: nothing is to be sent.
    async fn finish(&self, outcome: Outcome, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let limit = match transport {
            Transport::Udp => payload(question),
            Transport::Tcp => usize::from(u16::MAX),
        };
        let mut message = match outcome {
            Outcome::Silence => return None,
            Outcome::Answer(message) => return fit(&message, limit),
            Outcome::Ask(failure) => {
                let Ok(_one) = self.questions.try_acquire() else { return fit(&failure, limit) };
                let resolvers = self.resolvers().await;
                let passed_on = forward::forward(&resolvers, question, transport).await;
                return passed_on.or_else(|| fit(&failure, limit));
            }
            Outcome::Complete(message, query) => {
                let Ok(_one) = self.questions.try_acquire() else { return fit(&failed(message), limit) };
                let resolvers = self.resolvers().await;
                match forward::ask(&resolvers, query, transport).await {
                    Some(rest) => completed(message, rest),
                    None => failed(message),
                }
            }
        };
        message.metadata.authoritative = false;
        fit(&message, limit)
    }

    async fn resolvers(&self) -> Vec<SocketAddr> {
        forward::resolvers(&self.config.resolv_conf, *self.config.listen.ip()).await
    }
}

fn completed(mut message: Message, rest: Message) -> Message {
    message.metadata.response_code = rest.metadata.response_code;
    message.add_answers(rest.answers);
    message.add_authorities(rest.authorities);
    message
}

fn failed(mut message: Message) -> Message {
    message.metadata.response_code = ResponseCode::ServFail;
    message
}

async fn converse(shared: Arc<Shared>, mut stream: TcpStream) {
    while let Ok(Ok(question)) = timeout(SILENCE, forward::read_framed(&mut stream)).await {
        let outcome = shared.decide(&question);
        let Some(answer) = shared.finish(outcome, &question, Transport::Tcp).await else { return };
        if timeout(SILENCE, forward::write_framed(&mut stream, &answer)).await.is_err() {
            return;
        }
    }
}

async fn send(socket: &UdpSocket, answer: Option<Vec<u8>>, client: SocketAddr) {
    let Some(answer) = answer else { return };
    let sent: io::Result<usize> = socket.send_to(&answer, client).await;
    if let Err(error) = sent {
        tracing::debug!(%client, %error, "send a DNS answer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::{config, table};
    use hickory_proto::op::{Edns, Query};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use std::net::{Ipv4Addr, SocketAddrV4};

    /// A server on a free port of 127.0.0.1 with the table of the other tests, and what lives with it.
    struct Running {
        address: SocketAddr,
        shared: Arc<Shared>,
        _dir: tempfile::TempDir,
    }

    async fn run(resolvers: &str) -> Running {
        let dir = tempfile::tempdir().expect("a directory");
        let resolv_conf = dir.path().join("resolv.conf");
        std::fs::write(&resolv_conf, resolvers).expect("write");
        let listen = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let server = Server::bind(Config { listen, resolv_conf, ..config() }).await.expect("bind");
        let shared = Arc::clone(&server.shared);
        let address = server.udp.local_addr().expect("an address");
        tokio::spawn(server.run(CancellationToken::new()));
        shared.table.send_replace(Some(Arc::new(table())));
        Running { address, shared, _dir: dir }
    }

    fn question(name: &str) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
        message
    }

    async fn by_udp(server: SocketAddr, question: &Message) -> Message {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        socket.send_to(&question.to_vec().expect("bytes"), server).await.expect("send");
        let mut buffer = vec![0; 65535];
        let received = timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
        let length = received.expect("an answer in time").expect("an answer");
        Message::from_vec(&buffer[..length]).expect("readable")
    }

    async fn by_tcp(stream: &mut TcpStream, question: &Message) -> Message {
        forward::write_framed(stream, &question.to_vec().expect("bytes")).await.expect("send");
        Message::from_vec(&forward::read_framed(stream).await.expect("an answer")).expect("readable")
    }

    fn ips(message: &Message) -> Vec<String> {
        message.answers.iter().filter_map(|it| it.data.ip_addr()).map(|ip| ip.to_string()).collect()
    }

    #[tokio::test]
    async fn names_of_the_cluster_are_answered_by_udp_and_tcp() {
        let server = run("").await;
        let asked = question("web.default.svc.cluster.local.");
        let answer = by_udp(server.address, &asked).await;
        assert_eq!((answer.metadata.id, ips(&answer)), (asked.metadata.id, vec!["10.2.0.5".to_owned()]));
        let mut stream = TcpStream::connect(server.address).await.expect("connect");
        for _ in 0..2 {
            assert_eq!(ips(&by_tcp(&mut stream, &asked).await), ["10.2.0.5"]);
        }
        server.shared.table.send_replace(None);
        assert_eq!(by_udp(server.address, &asked).await.metadata.response_code, ResponseCode::ServFail);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_asked_for_again_by_tcp() {
        let server = run("").await;
        let endpoints: Vec<_> =
            (2..60).map(|n| serde_json::json!({"addresses": [format!("10.1.0.{n}")]})).collect();
        let service: Service = serde_json::from_value(serde_json::json!(
            {"metadata": {"namespace": "default", "name": "many"}, "spec": {"clusterIP": "None"}}
        ))
        .expect("a service");
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!(
            {"metadata": {"namespace": "default", "name": "many-1", "labels": {"kubernetes.io/service-name": "many"}},
             "addressType": "IPv4", "endpoints": endpoints}
        ))
        .expect("a slice");
        let table = Table::new(&config(), [service].iter(), [slice].iter());
        server.shared.table.send_replace(Some(Arc::new(table)));
        let mut asked = question("many.default.svc.cluster.local.");
        let answer = by_udp(server.address, &asked).await;
        assert!(answer.metadata.truncation && answer.answers.is_empty());
        let mut stream = TcpStream::connect(server.address).await.expect("connect");
        assert_eq!(ips(&by_tcp(&mut stream, &asked).await).len(), 58);
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        asked.set_edns(edns);
        assert_eq!(ips(&by_udp(server.address, &asked).await).len(), 58);
    }

    #[tokio::test]
    async fn others_names_are_asked_of_the_machines_resolvers() {
        let upstream = UdpSocket::bind("127.9.9.9:53").await.expect("bind (needs root)");
        tokio::spawn(async move {
            let mut buffer = vec![0; 65535];
            while let Ok((length, client)) = upstream.recv_from(&mut buffer).await {
                let mut answer = Message::from_vec(&buffer[..length]).expect("readable").into_response();
                let name = answer.queries[0].name().clone();
                answer.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::new(192, 0, 2, 7)))));
                // What somebody else might send first: another number.
                let mut forged = answer.clone();
                forged.metadata.id = forged.metadata.id.wrapping_add(1);
                forged.answers[0].data = RData::A(A(Ipv4Addr::new(6, 6, 6, 6)));
                for message in [forged, answer] {
                    upstream.send_to(&message.to_vec().expect("bytes"), client).await.expect("send");
                }
            }
        });
        // Nobody listens at the first; the kernel says so at once.
        let server = run("nameserver 127.9.9.8\nnameserver 127.9.9.9\n").await;
        let asked = question("example.com.");
        let answer = by_udp(server.address, &asked).await;
        assert_eq!((answer.metadata.id, ips(&answer)), (asked.metadata.id, vec!["192.0.2.7".to_owned()]));
        assert_eq!(
            ips(&by_udp(server.address, &question("away.default.svc.cluster.local.")).await),
            ["192.0.2.7"]
        );
    }

    #[tokio::test]
    async fn without_resolvers_others_names_fail_at_once() {
        let server = run("# none\n").await;
        let answer = by_udp(server.address, &question("example.com.")).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let server = run("").await;
        let SocketAddr::V4(listen) = server.address else { panic!("an IPv4 address") };
        let error = Server::bind(Config { listen, ..config() }).await.err().expect("in use");
        assert!(error.to_string().contains(&format!("udp {listen}")), "{error}");
    }
}
