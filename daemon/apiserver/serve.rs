//! HTTPS: accepts connections, reads who the client is from its certificate, answers on the common road.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use client::{Body, BoxError};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::Inner;
use crate::auth::User;
use crate::pki::Pki;

/// A client that says nothing for this long during the handshake is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long connections may take to end their requests at shutdown; watches are cut.
const DRAIN: Duration = Duration::from_millis(500);

/// Why HTTPS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A certificate or key is not usable.
    #[error("read the server's certificates")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// The TLS set-up is refused.
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
    /// The verifier of client certificates is refused.
    #[error("set up the verification of client certificates")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

pub(crate) async fn serve(
    inner: Arc<Inner>,
    listener: TcpListener,
    pki: &Pki,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(pki)?));
    let drain = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => break,
            // Cancel-safe per docs of TcpListener::accept.
            accepted = listener.accept() => accepted,
        };
        match stream {
            Ok((stream, _)) => {
                tokio::spawn(connection(Arc::clone(&inner), acceptor.clone(), stream, drain.watcher()));
            }
            // Out of descriptors, mostly: wait for some to be closed rather than spin.
            Err(error) => {
                warn!(error = %error, "accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    if tokio::time::timeout(DRAIN, drain.shutdown()).await.is_err() {
        debug!("connections were cut at shutdown");
    }
    Ok(())
}

fn tls(pki: &Pki) -> Result<rustls::ServerConfig, ServeError> {
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(pki.ca.as_bytes()) {
        roots.add(cert.map_err(ServeError::Pem)?).map_err(ServeError::Tls)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(ServeError::Verifier)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pki.server.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(pki.server_key.as_bytes()).map_err(ServeError::Pem)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ServeError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.map_err(ServeError::Pem)?, key)
        .map_err(ServeError::Tls)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

async fn connection(
    inner: Arc<Inner>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    drain: hyper_util::server::graceful::Watcher,
) {
    // Small answers must not wait for more to send.
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(error = %error, "TLS handshake failed"),
        Err(_) => return debug!("TLS handshake took too long"),
    };
    let user = Arc::new(user_of(stream.get_ref().1.peer_certificates()));
    let service = service_fn(move |request: Request<Incoming>| {
        let (inner, user) = (Arc::clone(&inner), Arc::clone(&user));
        let request =
            request.map(|body| body.map_err(|error| -> BoxError { Box::new(error) }).boxed_unsync());
        async move { Ok::<Response<Body>, Infallible>(crate::answer::answer(inner, user, request).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    if let Err(error) = drain.watch(connection.into_owned()).await {
        debug!(error = %error, "connection ended");
    }
}

/// Common name and organisations of the client's certificate, which TLS has verified against our CA.
fn user_of(certificates: Option<&[CertificateDer<'_>]>) -> User {
    let parsed = certificates
        .and_then(|chain| chain.first())
        .and_then(|cert| x509_parser::parse_x509_certificate(cert).ok());
    let Some((_, cert)) = parsed else { return User::anonymous() };
    let subject = cert.subject();
    let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok().map(str::to_owned));
    match name {
        Some(name) => User::certified(name, groups),
        None => User::anonymous(),
    }
}
