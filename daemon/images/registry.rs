//! One registry, for one pull or push: how it is reached, as whom, and what its refusals mean.
//!
//! Invariant: credentials are sent to the registry that they are for, never to its mirror.

use crate::credentials::Credentials;
use crate::error::{Error, disk};
use crate::image::Descriptor;
use crate::reference::Reference;
use crate::{Config, Progress};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use oci_client::RegistryOperation;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How one registry is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Host {
    /// `docker.io`, `registry.local:5000`.
    pub name: String,
    /// Registries that hold the same images, asked first and in this order.
    pub mirrors: Vec<String>,
    /// A file of certificates (PEM) that are trusted besides the usual ones.
    pub ca: PathBuf,
}

/// All pulls and pushes under way.
pub(crate) type Pulls = watch::Sender<BTreeMap<Reference, Progress>>;

/// Where an image is fetched from, or sent to.
pub(crate) struct Registry {
    pub(crate) client: oci_client::Client,
    pub(crate) reference: Reference,
    /// Mirrors, then the registry itself (`None`), each with who asks.
    pub(crate) hosts: Vec<(Option<String>, RegistryAuth)>,
    pulls: Arc<Pulls>,
}

/// Finds the credentials for an image of a host.
pub(crate) type Known<'a> = &'a dyn Fn(&Reference) -> Result<Option<Credentials>, Error>;

impl Registry {
    /// Prepares: nothing is sent yet. Without `auth` the configured credentials are asked, per host.
    pub(crate) fn new(
        reference: &Reference,
        auth: Option<Credentials>,
        config: &Config,
        known: Known<'_>,
        pulls: Arc<Pulls>,
    ) -> Result<Registry, Error> {
        let host = config.registry.iter().find(|host| host.name == reference.registry());
        let mut hosts = Vec::new();
        let mut names = vec![reference.registry().to_owned()];
        for mirror in host.iter().flat_map(|host| &host.mirrors) {
            let there = reference.at(mirror)?;
            hosts.push((Some(mirror.clone()), as_whom(known(&there)?)));
            names.push(mirror.clone());
        }
        let own = auth.map_or_else(|| known(reference), |auth| Ok(Some(auth)))?;
        hosts.push((None, as_whom(own)));
        let mut plain = config.insecure.clone();
        plain.extend(names.iter().filter(|name| is_local(name)).cloned());
        let mut roots = Vec::new();
        for host in config.registry.iter().filter(|host| names.contains(&host.name)) {
            if !host.ca.as_os_str().is_empty() {
                roots.extend(certificates(&host.ca)?);
            }
        }
        let client = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(plain),
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(Duration::from_secs(config.stall_seconds.max(1))),
            extra_root_certificates: roots,
            use_monolithic_push: true,
            user_agent: concat!("holdfast/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client =
            oci_client::Client::try_from(client).map_err(|e| failure(reference, "set up a client", e))?;
        pulls.send_modify(|pulls| {
            pulls.insert(reference.clone(), Progress::default());
        });
        Ok(Registry { client, reference: reference.clone(), hosts, pulls })
    }

    /// The reference as the client wants it, asked of one of the hosts.
    pub(crate) async fn at(
        &self,
        host: &(Option<String>, RegistryAuth),
        digest: Option<&str>,
    ) -> oci_client::Reference {
        let registry = self.reference.registry().to_owned();
        let repository = self.reference.repository().to_owned();
        let mut at = match digest {
            Some(digest) => oci_client::Reference::with_digest(registry, repository, digest.to_owned()),
            None => {
                let tag = self.reference.tag().expect("a reference without digest has a tag").to_owned();
                oci_client::Reference::with_tag(registry, repository, tag)
            }
        };
        if let Some(mirror) = &host.0 {
            at.set_mirror_registry(mirror.clone());
        }
        self.client.store_auth_if_needed(at.resolve_registry(), &host.1).await;
        at
    }

    pub(crate) fn expect(&self, total_bytes: u64, done_bytes: u64) {
        self.pulls.send_modify(|pulls| {
            pulls.insert(self.reference.clone(), Progress { done_bytes, total_bytes });
        });
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.pulls.send_modify(|pulls| {
            if let Some(progress) = pulls.get_mut(&self.reference) {
                progress.done_bytes += bytes;
            }
        });
    }

    /// The registry itself: mirrors are not written to.
    async fn own(&self, digest: Option<&str>) -> oci_client::Reference {
        let own = self.hosts.last().expect("the registry itself is the last host");
        self.at(own, digest).await
    }

    /// Asks for the right to push before anything is sent.
    pub(crate) async fn may_push(&self) -> Result<(), Error> {
        let at = self.own(None).await;
        let (_, auth) = self.hosts.last().expect("the registry itself is the last host");
        let asked = self.client.auth(&at, auth, RegistryOperation::Push).await;
        asked.map(drop).map_err(|e| failure(&self.reference, "ask to push", e))
    }

    pub(crate) async fn has_blob(&self, digest: &str) -> Result<bool, Error> {
        let at = self.own(None).await;
        let asked = self.client.blob_exists(&at, digest).await;
        asked.map_err(|e| failure(&self.reference, "ask for a blob", e))
    }

    pub(crate) async fn send_blob(
        &self,
        blob: &Descriptor,
        bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), Error> {
        let at = self.own(None).await;
        let (pulls, reference) = (self.pulls.clone(), self.reference.clone());
        let counted = bytes.map(move |chunk| {
            let chunk = chunk.map_err(OciDistributionError::IoError)?;
            pulls.send_modify(|pulls| {
                if let Some(progress) = pulls.get_mut(&reference) {
                    progress.done_bytes += chunk.len() as u64;
                }
            });
            Ok(chunk)
        });
        let sent = self.client.push_blob_stream(&at, counted, &blob.digest, Some(blob.size)).await;
        sent.map(drop).map_err(|e| failure(&self.reference, &format!("send blob {}", blob.digest), e))
    }

    pub(crate) async fn send_manifest(&self, bytes: Vec<u8>, media_type: &str) -> Result<(), Error> {
        let at = self.own(None).await;
        let kind = media_type.parse().map_err(|_| {
            crate::error::content("a manifest", format!("media type {media_type:?} cannot be sent"))
        })?;
        let sent = self.client.push_manifest_raw(&at, bytes, kind).await;
        sent.map(drop).map_err(|e| failure(&self.reference, "send its manifest", e))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.pulls.send_modify(|pulls| {
            pulls.remove(&self.reference);
        });
    }
}

fn as_whom(auth: Option<Credentials>) -> RegistryAuth {
    match auth {
        None => RegistryAuth::Anonymous,
        Some(Credentials::Basic { username, password }) => RegistryAuth::Basic(username, password),
        Some(Credentials::Bearer { token }) => RegistryAuth::Bearer(token),
    }
}

/// One certificate per block of the file, for the client takes them one by one.
fn certificates(path: &PathBuf) -> Result<Vec<Certificate>, Error> {
    const END: &str = "-----END CERTIFICATE-----";
    let text = std::fs::read_to_string(path).map_err(disk("read certificates from", path))?;
    let blocks = text.split_inclusive(END).filter(|block| block.contains("BEGIN CERTIFICATE"));
    let found: Vec<Certificate> = blocks
        .map(|block| Certificate { encoding: CertificateEncoding::Pem, data: block.trim().into() })
        .collect();
    match found.is_empty() {
        true => Err(crate::error::content(path.display().to_string(), "it holds no certificate in PEM form")),
        false => Ok(found),
    }
}

pub(crate) fn is_local(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

/// Sorts a failure by what the user can do about it.
pub(crate) fn failure(reference: &Reference, what: &str, error: OciDistributionError) -> Error {
    use OciDistributionError as E;
    let has = |codes: &[OciErrorCode]| match &error {
        E::RegistryError { envelope, .. } => envelope.errors.iter().any(|e| codes.contains(&e.code)),
        _ => false,
    };
    let reference = Box::new(reference.clone());
    let unknown = [OciErrorCode::ManifestUnknown, OciErrorCode::NameUnknown, OciErrorCode::NotFound];
    if has(&unknown) || matches!(error, E::ImageManifestNotFoundError(_) | E::ServerError { code: 404, .. }) {
        return Error::NotFound { reference };
    }
    let denied = matches!(
        error,
        E::UnauthorizedError { .. } | E::AuthenticationFailure(_) | E::ServerError { code: 401 | 403, .. }
    );
    if denied || has(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
        return Error::Denied { reference, source: Arc::new(error) };
    }
    let unreachable = match &error {
        E::RequestError(request) => is_unreachable(request),
        _ => false,
    };
    if unreachable {
        return Error::Unreachable { reference, source: Arc::new(error) };
    }
    Error::Pull { reference, what: what.to_owned(), source: Arc::new(error) }
}

/// No connection, or none that answered in time: told by the chain, since the HTTP client's type is not ours.
fn is_unreachable(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<std::io::Error>() || error.to_string().contains("timed out") {
            return true;
        }
        next = error.source();
    }
    false
}
