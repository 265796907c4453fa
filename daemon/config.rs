//! Every option: the sum of the rooms' options, parsed and checked, never acted upon.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// config.toml. What the file leaves out has its default; the file in the repository spells every default out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// This node.
    pub(crate) node: Node,
    /// The API server.
    pub(crate) api: apiserver::Config,
    /// The status page.
    pub(crate) web: Web,
    /// The kubelet.
    pub(crate) kubelet: kubelet::Config,
    /// The scheduler.
    pub(crate) scheduler: scheduler::Config,
    /// Addresses.
    pub(crate) network: network::Config,
    /// Ingress.
    pub(crate) ingress: ingress::Config,
    /// Images.
    pub(crate) images: images::Config,
    /// The store.
    pub(crate) store: store::Config,
    /// What is kept true. A file that names none keeps nothing; without any file it is the demo.
    #[serde(default = "Vec::new")]
    pub(crate) application: Vec<gitops::Application>,
    /// Who is told what becomes of the applications.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) notify: Vec<gitops::Notify>,
}

/// `[node]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Node {
    /// The node's name in the cluster; empty means the machine's hostname.
    pub(crate) name: String,
    /// Where everything is kept.
    pub(crate) data_dir: PathBuf,
    /// What to do where this machine cannot isolate containers fully.
    pub(crate) isolation: Isolation,
}

/// How much isolation is insisted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Isolation {
    /// Refuse to start when anything is missing.
    Full,
    /// Start, and say what is missing.
    BestEffort,
}

/// `[web]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Web {
    /// Where the status page answers, plain HTTP.
    pub(crate) listen: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        let demo = "[[application]]\nname = \"demo\"\ndir = \"manifests\"";
        let demo: Applications = toml::from_str(demo).expect("the demo's declaration is ours");
        Config {
            node: Node::default(),
            api: apiserver::Config::default(),
            web: Web::default(),
            kubelet: kubelet::Config::default(),
            scheduler: scheduler::Config::default(),
            network: network::Config::default(),
            ingress: ingress::Config::default(),
            images: images::Config::default(),
            store: store::Config::default(),
            application: demo.application,
            notify: Vec::new(),
        }
    }
}

#[derive(Deserialize)]
struct Applications {
    application: Vec<gitops::Application>,
}

impl Default for Node {
    fn default() -> Self {
        Node {
            name: String::new(),
            data_dir: PathBuf::from("/var/lib/holdfast"),
            isolation: Isolation::BestEffort,
        }
    }
}

impl Default for Web {
    fn default() -> Self {
        Web { listen: SocketAddr::from(([127, 0, 0, 1], 9440)) }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file.
    #[error("read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a wrong type: the source has the line.
    #[error("{path} is no configuration (every key that exists is in the config.toml of the project)")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Line, column and what is wrong.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value that parses but cannot be.
    #[error("{path}: {key}: {why}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// The key, `node.name`.
        key: String,
        /// What is wrong with it.
        why: String,
    },
}

/// The file that is read when none is named, if it is there.
pub(crate) const DEFAULT_FILE: &str = "config.toml";

impl Config {
    /// Reads a configuration. Relative directories of applications are meant from the file's own directory.
    ///
    /// # Errors
    /// When a file that was named cannot be read, or is no configuration.
    pub(crate) fn read(named: Option<&Path>) -> Result<Config, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(path) {
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Config::default());
            }
            text => text.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?,
        };
        let mut config: Config = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let base = path.parent().unwrap_or(Path::new(""));
        for application in &mut config.application {
            if let Some(dir) = &mut application.dir
                && dir.is_relative()
            {
                *dir = base.join(&*dir);
            }
        }
        config.check().map_err(|(key, why)| ConfigError::Value { path: path.to_owned(), key, why })?;
        Ok(config)
    }

    /// What the types cannot say.
    fn check(&self) -> Result<(), (String, String)> {
        for application in &self.application {
            application.check().map_err(|error| ("application".to_owned(), reconcile::chain(&error)))?;
        }
        Ok(())
    }
}
