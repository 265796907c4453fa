//! Fetches manifests and blobs from a registry, streaming to disk; a blob that breaks off goes on where it was.
//!
//! Invariant: what reaches the shelf has the digest its manifest names, and no more bytes than it names.

use crate::digest::Digest;
use crate::disk::Partial;
use crate::error::{Error, content, disk};
use crate::image::{self, Index};
use crate::registry::{Registry, failure};
use crate::shelf::Shelf;
use crate::stock::blocking;
use futures::StreamExt;
use oci_client::client::BlobResponse;
use oci_client::errors::DigestError;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const WRITE_BYTES: usize = 256 << 10;
const DEPTH_MAX: usize = 3;
/// How often a blob is asked for again in a row without a single byte more.
const FRUITLESS_MAX: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// How an attempt at a blob ended.
enum Attempt {
    Whole,
    /// The connection broke; what came is kept.
    Broken(Error),
}

impl Registry {
    /// The manifest for this machine's platform, followed through indexes. The first host that has it is asked for the
    /// blobs first as well.
    pub(crate) async fn manifest(&mut self) -> Result<Vec<u8>, Error> {
        let mut first = None;
        for at in 0..self.hosts.len() {
            match self.manifest_of(at).await {
                Ok(bytes) => {
                    self.hosts.rotate_left(at);
                    return Ok(bytes);
                }
                Err(error) => {
                    if let Some(mirror) = &self.hosts[at].0 {
                        let error = crate::error::chain(&error);
                        tracing::warn!(mirror, error, "a mirror was of no use");
                    }
                    // The registry's own word is the one to tell; it is asked last.
                    first = Some(error);
                }
            }
        }
        Err(first.expect("there is always the registry itself"))
    }

    async fn manifest_of(&self, host: usize) -> Result<Vec<u8>, Error> {
        let accepted = [image::OCI_MANIFEST, image::DOCKER_MANIFEST, image::OCI_INDEX, image::DOCKER_LIST];
        let mut digest = self.reference.digest().map(str::to_owned);
        let host = &self.hosts[host];
        for _ in 0..DEPTH_MAX {
            let at = self.at(host, digest.as_deref()).await;
            let pulled = self.client.pull_manifest_raw(&at, &host.1, &accepted).await;
            let (bytes, _) = pulled.map_err(|e| failure(&self.reference, "its manifest", e))?;
            if let Some(expected) = digest {
                let found = Digest::of(&bytes).to_string();
                if found != expected {
                    let what = format!("manifest of {}", self.reference);
                    return Err(Error::Digest { what, expected, found });
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
        let (opener, wanted) = (shelf.clone(), digest.clone());
        let mut part = blocking("open a blob", move || opener.disk.partial(&wanted, size)).await?;
        self.advance(part.sum.bytes);
        let (mut host, mut fruitless) = (0, 0);
        loop {
            let before = part.sum.bytes;
            match self.attempt(&mut part, host, digest, size).await? {
                Attempt::Whole => break,
                Attempt::Broken(error) => {
                    fruitless = if part.sum.bytes > before { 0 } else { fruitless + 1 };
                    // A refusal is not a broken connection: asking again would change nothing.
                    let may_pass = matches!(error, Error::Pull { .. } | Error::Unreachable { .. });
                    if may_pass && fruitless < FRUITLESS_MAX && size > part.sum.bytes {
                        tracing::info!(%digest, bytes = part.sum.bytes, error = crate::error::chain(&error), "going on with a blob");
                        tokio::time::sleep(PAUSE * 2_u32.pow(fruitless)).await;
                        continue;
                    }
                    host += 1;
                    fruitless = 0;
                    if host == self.hosts.len() {
                        return Err(error);
                    }
                }
            }
        }
        let found = part.sum.clone().digest();
        let shelf = shelf.clone();
        if found != *digest {
            blocking("drop a blob", move || part.discard()).await?;
            let what = format!("image {}: blob {digest}", self.reference);
            return Err(Error::Digest { what, expected: digest.to_string(), found: found.to_string() });
        }
        let digest = digest.clone();
        blocking("keep a blob", move || shelf.disk.keep_partial(part, &digest)).await
    }

    /// Asks one host for what is missing.
    async fn attempt(
        &self,
        part: &mut Partial,
        host: usize,
        digest: &Digest,
        size: u64,
    ) -> Result<Attempt, Error> {
        let what = || format!("blob {digest}");
        let at = self.at(&self.hosts[host], Some(digest.as_str())).await;
        let have = part.sum.bytes;
        if have > 0 && have == size {
            return Ok(Attempt::Whole);
        }
        let pulled = match have {
            0 => self.client.pull_blob_stream(&at, digest.as_str()).await.map(BlobResponse::Full),
            have => self.client.pull_blob_stream_partial(&at, digest.as_str(), have, None).await,
        };
        let mut stream = match pulled {
            Ok(BlobResponse::Partial(stream)) => stream.stream,
            Ok(BlobResponse::Full(stream)) => {
                part.restart()?;
                stream.stream
            }
            Err(error) => return Ok(Attempt::Broken(failure(&self.reference, &what(), error))),
        };
        let mut out = tokio::io::BufWriter::with_capacity(WRITE_BYTES, part.writer()?);
        let mut broken = None;
        while let Some(bytes) = stream.next().await {
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(error) => {
                    broken = self.broken_stream(digest, error);
                    break;
                }
            };
            if part.sum.bytes + bytes.len() as u64 > size {
                part.discard()?;
                return Err(content(what(), format!("the registry sends more than its {size} bytes")));
            }
            part.sum.update(&bytes);
            out.write_all(&bytes).await.map_err(disk("write", &part.path))?;
            self.advance(bytes.len() as u64);
        }
        out.flush().await.map_err(disk("write", &part.path))?;
        Ok(broken.map_or(Attempt::Whole, Attempt::Broken))
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

    /// The client's own verdict on the bytes is left to ours, which counts those of earlier attempts as well.
    fn broken_stream(&self, digest: &Digest, error: io::Error) -> Option<Error> {
        if error.get_ref().is_some_and(|e| e.is::<DigestError>()) {
            return None;
        }
        Some(Error::Pull {
            reference: Box::new(self.reference.clone()),
            what: format!("blob {digest} ended early"),
            source: Arc::new(error),
        })
    }
}
