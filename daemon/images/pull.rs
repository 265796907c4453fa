//! Fetches manifests and blobs from a registry, streaming to disk.
//!
//! Invariant: what reaches the shelf has the digest its manifest names, and no more bytes than it names.

use crate::Config;
use crate::Progress;
use crate::credentials::Credentials;
use crate::digest::{Digest, Sum};
use crate::error::{Error, content, disk};
use crate::image::{self, Index};
use crate::reference::Reference;
use crate::shelf::Shelf;
use crate::stock::blocking;
use futures::StreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const WRITE_BYTES: usize = 256 << 10;
const DEPTH_MAX: usize = 3;

/// All pulls under way.
pub(crate) type Pulls = watch::Sender<BTreeMap<Reference, Progress>>;

/// One image's registry, for one pull.
pub(crate) struct Registry {
    client: oci_client::Client,
    reference: Reference,
    auth: RegistryAuth,
    pulls: Arc<Pulls>,
}

impl Registry {
    /// Prepares a pull: nothing is sent yet.
    pub(crate) fn new(
        reference: &Reference,
        auth: Option<Credentials>,
        config: &Config,
        pulls: Arc<Pulls>,
    ) -> Result<Registry, Error> {
        let auth = match auth {
            None => RegistryAuth::Anonymous,
            Some(Credentials::Basic { username, password }) => RegistryAuth::Basic(username, password),
            Some(Credentials::Bearer { token }) => RegistryAuth::Bearer(token),
        };
        let mut plain = config.insecure.clone();
        if is_local(reference.registry()) {
            plain.push(reference.registry().to_owned());
        }
        let client = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(plain),
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("holdfast/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client =
            oci_client::Client::try_from(client).map_err(|e| failure(reference, "set up a client", e))?;
        pulls.send_modify(|pulls| {
            pulls.insert(reference.clone(), Progress::default());
        });
        Ok(Registry { client, reference: reference.clone(), auth, pulls })
    }

    /// The manifest for this machine's platform, followed through indexes.
    pub(crate) async fn manifest(&self) -> Result<Vec<u8>, Error> {
        let accepted = [image::OCI_MANIFEST, image::DOCKER_MANIFEST, image::OCI_INDEX, image::DOCKER_LIST];
        let mut digest = self.reference.digest().map(str::to_owned);
        for _ in 0..DEPTH_MAX {
            let (registry, repository) =
                (self.reference.registry().to_owned(), self.reference.repository().to_owned());
            let at = match &digest {
                Some(digest) => oci_client::Reference::with_digest(registry, repository, digest.clone()),
                None => {
                    let tag = self.reference.tag().expect("a reference without digest has a tag").to_owned();
                    oci_client::Reference::with_tag(registry, repository, tag)
                }
            };
            let pulled = self.client.pull_manifest_raw(&at, &self.auth, &accepted).await;
            let (bytes, _) = pulled.map_err(|e| failure(&self.reference, "its manifest", e))?;
            if let Some(expected) = digest {
                let found = Digest::of(&bytes).to_string();
                if found != expected {
                    return Err(Error::Digest {
                        what: format!("manifest of {}", self.reference),
                        expected,
                        found,
                    });
                }
            }
            match image::read_index(&bytes) {
                Ok(None) => return Ok(bytes.to_vec()),
                Ok(Some(index)) => digest = Some(self.fitting(&index)?),
                Err(source) => {
                    let what = format!("manifest of {} (it must be schema version 2)", self.reference);
                    return Err(Error::Document { what, source: Arc::new(source) });
                }
            }
        }
        Err(content(format!("image {}", self.reference), "its indexes are nested too deeply"))
    }

    /// Streams one blob to disk and onto the shelf.
    pub(crate) async fn blob(&self, shelf: &Arc<Shelf>, digest: &Digest, size: u64) -> Result<(), Error> {
        let part = || format!("blob {digest}");
        let at = oci_client::Reference::with_digest(
            self.reference.registry().to_owned(),
            self.reference.repository().to_owned(),
            digest.to_string(),
        );
        let pulled = self.client.pull_blob_stream(&at, digest.as_str()).await;
        let mut stream = pulled.map_err(|e| failure(&self.reference, &part(), e))?.stream;
        let scratch = shelf.disk.scratch()?;
        let (file, path) = scratch.into_parts();
        let mut out = tokio::io::BufWriter::with_capacity(WRITE_BYTES, tokio::fs::File::from_std(file));
        let mut sum = Sum::default();
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|e| self.broken_stream(digest, e))?;
            sum.update(&bytes);
            if sum.bytes > size {
                return Err(content(part(), format!("the registry sends more than its {size} bytes")));
            }
            out.write_all(&bytes).await.map_err(disk("write", &path))?;
            self.advance(bytes.len() as u64);
        }
        out.flush().await.map_err(disk("write", &path))?;
        let found = sum.digest();
        if found != *digest {
            let what = format!("image {}: {}", self.reference, part());
            return Err(Error::Digest { what, expected: digest.to_string(), found: found.to_string() });
        }
        let file = out.into_inner().into_std().await;
        let (shelf, digest) = (shelf.clone(), digest.clone());
        blocking("keep a blob", move || {
            let mut file = tempfile::NamedTempFile::from_parts(file, path);
            file.flush().map_err(disk("write", file.path()))?;
            shelf.disk.keep_blob(file, &digest)
        })
        .await
    }

    pub(crate) fn expect(&self, total_bytes: u64, done_bytes: u64) {
        self.pulls.send_modify(|pulls| {
            pulls.insert(self.reference.clone(), Progress { done_bytes, total_bytes });
        });
    }

    fn advance(&self, bytes: u64) {
        self.pulls.send_modify(|pulls| {
            if let Some(progress) = pulls.get_mut(&self.reference) {
                progress.done_bytes += bytes;
            }
        });
    }

    fn fitting(&self, index: &Index) -> Result<String, Error> {
        if let Some(descriptor) = image::fitting(index).first() {
            return Ok(descriptor.digest.clone());
        }
        let (own, offered) = (image::architecture(), image::offered(index));
        Err(content(
            format!("image {}", self.reference),
            format!("it is not made for linux/{own}, only for: {offered}"),
        ))
    }

    fn broken_stream(&self, digest: &Digest, error: std::io::Error) -> Error {
        let found = error.get_ref().and_then(|e| e.downcast_ref::<DigestError>());
        if let Some(DigestError::VerificationError { actual, .. }) = found {
            let what = format!("image {}: blob {digest}", self.reference);
            return Error::Digest { what, expected: digest.to_string(), found: actual.clone() };
        }
        Error::Pull {
            reference: Box::new(self.reference.clone()),
            what: format!("blob {digest} ended early"),
            source: Arc::new(error),
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.pulls.send_modify(|pulls| {
            pulls.remove(&self.reference);
        });
    }
}

fn is_local(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

/// Sorts a failure by what the user can do about it.
fn failure(reference: &Reference, what: &str, error: OciDistributionError) -> Error {
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
