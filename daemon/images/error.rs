//! Says what went wrong with an image: what, on what, and the way out.
//!
//! Invariant: errors are cheap to clone, because callers that share one pull share its failure.

use crate::reference::Reference;
use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why an image operation failed. `Display` never repeats its source; print the chain.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Text that is no image reference, in the words Docker uses.
    #[error("invalid reference format: {text:?}: {reason}")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or directory of the image store, or one given to it, could not be used.
    #[error("{attempt} {}", path.display())]
    Disk {
        /// What was attempted, a verb phrase.
        attempt: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Arc<io::Error>,
    },
    /// Another process has this store open.
    #[error("image store {} is in use by another process: ask that node, or stop it first", dir.display())]
    Locked {
        /// The store's directory.
        dir: PathBuf,
    },
    /// A document (index, manifest, configuration) that cannot be read as what it must be.
    #[error("read {what}")]
    Document {
        /// Which document of which image or file.
        what: String,
        /// Why it cannot be read.
        #[source]
        source: Arc<serde_json::Error>,
    },
    /// Content that breaks a rule of the image formats or one of our limits.
    #[error("{what}: {reason}")]
    Content {
        /// Which image, file or layer.
        what: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// Bytes that are not the ones their digest promises.
    #[error("{what}: content has digest {found}, not {expected}: fetch or export it again")]
    Digest {
        /// Which blob or layer.
        what: String,
        /// The digest that was promised.
        expected: String,
        /// The digest the bytes have.
        found: String,
    },
    /// A layer that could not be unpacked, with the entry it stopped at.
    #[error("unpack layer {layer}: entry {entry:?}")]
    Unpack {
        /// The layer's diff id.
        layer: String,
        /// Path of the entry as the layer spells it.
        entry: String,
        /// What the kernel or the decompressor said.
        #[source]
        source: Arc<io::Error>,
    },
    /// An image that this store does not hold.
    #[error("image {reference} is not in the store: pull it or `holdfast image load` it")]
    NotHeld {
        /// Which image.
        reference: Reference,
    },
    /// The registry has no such image.
    #[error(
        "registry {}: image {reference} not found (404): push it there or `holdfast image load` it",
        reference.registry()
    )]
    NotFound {
        /// Which image.
        reference: Box<Reference>,
    },
    /// The registry wants other credentials than it was given, or any.
    #[error(
        "registry {0}: access to image {reference} denied: it is private or not there; \
         give credentials for {0} (a docker config.json with `auths`), or `holdfast image load` it",
        reference.registry()
    )]
    Denied {
        /// Which image.
        reference: Box<Reference>,
        /// What the registry said.
        #[source]
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// The registry could not be spoken to.
    #[error(
        "registry {}: cannot be reached for image {reference}: check its address and that it runs, \
         or `holdfast image load` the image",
        reference.registry()
    )]
    Unreachable {
        /// Which image.
        reference: Box<Reference>,
        /// What the network said.
        #[source]
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// Any other failure of a pull.
    #[error("registry {}: pull image {reference}: {what}", reference.registry())]
    Pull {
        /// Which image.
        reference: Box<Reference>,
        /// Which part of it.
        what: String,
        /// What the registry or the network said.
        #[source]
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// Credentials that cannot be used.
    #[error("{what}: {reason}")]
    Credentials {
        /// Where the credentials come from.
        what: String,
        /// Why they cannot be used, and the way out.
        reason: String,
    },
    /// A Dockerfile that cannot be built, in the words of the step that failed.
    #[error("{file}:{line}: {reason}")]
    Build {
        /// The Dockerfile.
        file: String,
        /// The line of the instruction.
        line: usize,
        /// What on what, and why.
        reason: String,
    },
    /// The blocking task doing the work ended early: the runtime is shutting down.
    #[error("{attempt}: interrupted by shutdown")]
    Interrupted {
        /// What was being done.
        attempt: &'static str,
    },
}

/// Names the path and the attempt of a failed system call.
pub(crate) fn disk(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Disk { attempt, path, source: Arc::new(source) }
}

/// Content that breaks a rule.
pub(crate) fn content(what: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Content { what: what.into(), reason: reason.into() }
}

/// An error with its causes.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = StdError::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
