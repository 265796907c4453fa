//! GitOps: source → build → plan → act → health → history, for each application, for ever.
//!
//! Invariant: nothing below `source` sees Git or a disk; nothing below `build` sees YAML.
//! Invariant: an error never prunes. What cannot be read, built or reached leaves the last good state as it is.
//! Invariant: the engine knows the cluster only through the door.

use std::path::PathBuf;

mod act;
mod application;
mod apply;
mod archive;
mod build;
mod check;
mod config;
mod decide;
mod defined;
mod diff;
mod engine;
mod evidence;
mod explain;
mod forecast;
mod guard;
mod health;
mod history;
mod hooks;
mod ignore;
mod live;
mod marks;
mod notices;
mod order;
mod plan;
mod policy;
mod preview;
mod push;
mod remote;
mod secret;
mod source;
mod state;
mod status;
mod tell;
mod waiting;

pub use archive::Tombstone;
pub use build::{Defect, Id};
pub use check::{Findings, check};
pub use config::{Application, PushInto, Seconds};
pub use diff::{Change, ChangeKind, Diff, FieldChange, PlannedHook};
pub use engine::{Engine, Parts};
pub use explain::{Explanation, Link};
pub use forecast::{Effect, EffectKind};
pub use notices::{Channel, Forge, ForgeKind, Notice, Notify};
pub use policy::{Ignore, OnRemoval, Policy, Window};
pub use push::{Answer, Caller, Denied};
pub use remote::Target;
pub use secret::{Secret, SecretError};
pub use source::{Auth, Service, Verify};
pub use state::{objects_of, without_withheld};
pub use status::{
    Condition, Decisions, HealthStatus, HookStatus, ObjectStatus, Outcome, PhaseStatus, Pin, Quarantine,
    RevisionStatus, Source, Status, SyncStatus, Tally,
};

/// The one label that the engine puts on a user's objects: the name of their application.
pub const APPLICATION_LABEL: &str = "holdfast.dev/application";
/// The field manager of everything the engine applies.
pub const FIELD_MANAGER: &str = "holdfast";

/// What was tried, on what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A declaration in config.toml that cannot be followed.
    #[error("application {application}: {why}")]
    Config {
        /// Its name.
        application: String,
        /// What is wrong and the way out.
        why: String,
    },
    /// No application of this name is declared.
    #[error("there is no application {0}; `holdfast status` lists them")]
    NoApplication(String),
    /// The application's source has not been read successfully yet.
    #[error("the source of application {0} was not read yet; see its status for why")]
    NoSnapshot(String),
    /// File notification could not be set up.
    #[error("watch {path}")]
    Watch {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: notify::Error,
    },
    /// A directory cannot be read.
    #[error("read directory {path}; what came from it stays as it is until it is back")]
    ReadDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// More or larger files than an application may have.
    #[error("{path} holds more than {most} {what}; point the application at a smaller directory")]
    TooMuch {
        /// The directory or repository.
        path: String,
        /// The limit.
        most: usize,
        /// Of what.
        what: &'static str,
    },
    /// A repository on this machine cannot be opened.
    #[error("open repository {repository}; name a Git repository, bare or with a .git in it")]
    OpenRepository {
        /// Its path.
        repository: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A repository of a form that is not read.
    #[error("repository {repository} {why}")]
    RepositoryForm {
        /// Its path or URL, without secrets.
        repository: String,
        /// What about it, and the way out.
        why: &'static str,
    },
    /// The ref is not there.
    #[error("no ref {reference} in {repository}; it has {has}")]
    NoRef {
        /// As configured.
        reference: String,
        /// Path or URL, without secrets.
        repository: String,
        /// Some that are there.
        has: String,
    },
    /// The path is not in the commit.
    #[error("no directory {path} at {reference} of {repository}; push it, or correct `path`")]
    NoPath {
        /// As configured.
        path: String,
        /// As configured.
        reference: String,
        /// Path or URL, without secrets.
        repository: String,
    },
    /// An object of a repository cannot be read.
    #[error("read {what} of {repository}")]
    ReadRepository {
        /// `commit 1234567`.
        what: String,
        /// Path or URL, without secrets.
        repository: String,
        /// Why.
        #[source]
        source: git2::Error,
    },
    /// A server cannot be reached or refuses.
    #[error("reach {url}; check the address, the network and the credentials")]
    Reach {
        /// Without secrets.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A server answers with a status that is not success.
    #[error("{url} answers {status}; {help}")]
    Refused {
        /// Without secrets.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The way out.
        help: &'static str,
    },
    /// What a server or `ssh` says is not the Git protocol.
    #[error("talk Git with {url}: {why}")]
    Protocol {
        /// Without secrets.
        url: String,
        /// What was said or expected.
        why: String,
    },
    /// A program cannot be started.
    #[error("start {program} for {url}; install openssh-client or use https")]
    Spawn {
        /// `ssh`.
        program: &'static str,
        /// Without secrets.
        url: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What a person asked for cannot be done.
    #[error("{application}: {why}")]
    Denied {
        /// Which application.
        application: String,
        /// Why not, and the way out.
        why: String,
    },
    /// The engine's own files.
    #[error("write {path}")]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A request through the door failed.
    #[error("{verb} {what}")]
    Door {
        /// `apply`, `get`, …
        verb: &'static str,
        /// The object.
        what: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// What the door gave cannot be read, or what is to be sent cannot be written.
    #[error("read or write {what} as JSON")]
    Json {
        /// The object.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A commit whose signature does not hold.
    #[error("commit {commit} of {repository} is not deployed: {why}")]
    Unverified {
        /// As hex.
        commit: String,
        /// Path or URL, without secrets.
        repository: String,
        /// What about its signature.
        why: String,
    },
    /// A task of this process ended too early.
    #[error("{0} was cut off")]
    CutOff(&'static str),
}
