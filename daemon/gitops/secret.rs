//! Secrets by where they are, so that no configuration holds or prints one.
//!
//! Invariant: what it says is read when it is needed and shown nowhere.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A file or an environment variable that holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// Its text, but for white space around it, is the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The name of an environment variable of the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
}

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("read the secret in {path}")]
    File {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The variable is not set.
    #[error("environment variable {0} is not set, it should hold a secret")]
    Env(String),
    /// It is empty.
    #[error("the secret is empty; write it into the file or variable that the configuration names")]
    Empty,
}

impl Secret {
    /// What is wrong with the declaration itself.
    pub(crate) fn flaw(&self) -> Option<&'static str> {
        match (&self.file, &self.env) {
            (Some(_), Some(_)) => Some("a secret names both `file` and `env`; keep one"),
            (None, None) => Some("a secret names neither `file` nor `env`"),
            _ => None,
        }
    }

    /// Reads the secret.
    ///
    /// # Errors
    /// Where it should be and is not.
    pub fn read(&self) -> Result<String, SecretError> {
        let text = match (&self.file, &self.env) {
            (Some(path), _) => std::fs::read_to_string(path)
                .map_err(|source| SecretError::File { path: path.clone(), source })?,
            (None, Some(name)) => std::env::var(name).map_err(|_| SecretError::Env(name.clone()))?,
            (None, None) => String::new(),
        };
        let text = text.trim();
        if text.is_empty() { Err(SecretError::Empty) } else { Ok(text.to_owned()) }
    }
}
