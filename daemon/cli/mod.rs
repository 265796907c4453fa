//! The commands that a person types.
//!
//! Invariant: a command only asks the node's own HTTP address and prints; what it prints is what the page shows.
//! Invariant: no text of the cluster reaches a terminal with control characters in it.

pub(crate) mod check;
pub(crate) mod decide;
pub(crate) mod diff;
pub(crate) mod down;
pub(crate) mod explain;
pub(crate) mod history;
pub(crate) mod image;
pub(crate) mod image_build;
pub(crate) mod kubeconfig;
pub(crate) mod plan;
pub(crate) mod status;
pub(crate) mod sync;
pub(crate) mod up;

mod ask;
mod ink;
mod progress;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

pub(crate) use ask::At;
pub(crate) use ink::Ink;

/// Makes this machine hold what Git says.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// The configuration [default: ./config.toml if it is there, else the defaults]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The data directory, instead of the configuration's
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// What to do; without one it is `up`
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Start the node here and bring its applications up (this is what runs without a command)
    Up,
    /// Show every application and object; succeeds only when all is in sync and healthy
    Status {
        /// The document of the status page's /status
        #[arg(long)]
        json: bool,
        /// Wait up to so many seconds for everything to be in sync and healthy
        #[arg(long, value_name = "SECONDS")]
        wait: Option<u64>,
    },
    /// Show what a sync would change, field by field; succeeds only when nothing would
    Diff {
        /// Only this application
        application: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a sync will do: pods rolled, data that would go, room that is missing; changes nothing
    Plan {
        /// Only this application
        application: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Save what is live into a file, for --against
        #[arg(long, value_name = "FILE", conflicts_with = "against")]
        save: Option<PathBuf>,
        /// Plan against a saved state, without a node
        #[arg(long, value_name = "FILE")]
        against: Option<PathBuf>,
    },
    /// Tell why an object is as it is: from the commit and its file down to the last log lines
    Explain {
        /// As `deployment/web`, `pod/web-1`, `cm/conf`
        object: String,
        /// Its namespace
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Let go what waits for a confirmation: namespaces, claims, large prunes
    Confirm {
        /// Which application; may be left out when there is one
        application: Option<String>,
    },
    /// Let the newest revision through that waits for approval or a window
    Approve {
        /// Which application; may be left out when there is one
        application: Option<String>,
    },
    /// Go back to an earlier revision; self-healing goes on, and the next commit is tried by itself
    Rollback {
        /// Which application
        application: String,
        /// Its first digits, as in `holdfast history`; the last healthy one when left out
        revision: Option<String>,
    },
    /// End a rollback: the newest revision is applied again
    Resume {
        /// Which application; may be left out when there is one
        application: Option<String>,
    },
    /// Make again what was pruned in the last seven days
    Undo {
        /// Which application
        application: String,
        /// Which object, as `configmap/web`; all that went last when left out
        object: Option<String>,
        /// Only list what can be brought back
        #[arg(long)]
        list: bool,
    },
    /// Show every sync: commit, author, what it did, how long each part took, how it ended
    History {
        /// Only this application
        application: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Look at the source and at everything live anew, now
    Sync {
        /// Only this application
        application: Option<String>,
    },
    /// Check a directory of manifests or a kustomization, without a node; succeeds only when there are no defects
    Check {
        /// The directory or file
        #[arg(default_value = ".")]
        path: PathBuf,
        /// For objects that name no namespace
        #[arg(long, value_name = "NAME", default_value = "default")]
        namespace: String,
        /// A variable of the manifests: NAME=VALUE; may be repeated
        #[arg(long = "set", value_name = "NAME=VALUE")]
        variables: Vec<String>,
        /// As JSON
        #[arg(long, conflicts_with = "sarif")]
        json: bool,
        /// As SARIF, which forges show beside the lines of a change
        #[arg(long)]
        sarif: bool,
    },
    /// Take away what the node made on this machine: containers, links, packet rules, cgroups, mounts
    Down,
    /// Print the administrator's kubeconfig
    Kubeconfig {
        /// Where it lies, instead of what it says
        #[arg(long)]
        path: bool,
    },
    /// Print the configuration that is in force
    Config,
    /// The images that this machine holds
    Image {
        /// Print what was done as JSON
        #[arg(long, global = true)]
        json: bool,
        /// What to do with them
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Print the version
    Version,
}

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// For people.
    Text,
    /// For scripts.
    Json,
    /// For forges.
    Sarif,
}

impl Form {
    pub(crate) fn of(json: bool, sarif: bool) -> Form {
        match (json, sarif) {
            (_, true) => Form::Sarif,
            (true, _) => Form::Json,
            _ => Form::Text,
        }
    }
}

/// What to do with images.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum ImageCommand {
    /// List them
    #[command(visible_alias = "ls")]
    List,
    /// Build one from a Dockerfile
    Build(image_build::Build),
    /// Take images from an OCI layout (a directory or tar) or a `docker save` archive
    Load {
        /// The directory or archive; `-` reads an archive from standard input
        path: PathBuf,
    },
    /// Write images as an archive
    Save {
        /// As listed: names, or the beginnings of ids
        #[arg(required = true)]
        images: Vec<String>,
        /// Where to, instead of standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// oci, which `docker load` reads too, or docker, for older readers
        #[arg(long, value_name = "FORMAT", default_value = "oci", value_parser = ["oci", "docker"])]
        format: String,
    },
    /// Fetch one from its registry
    Pull {
        /// As in a manifest: nginx:1.27, registry.local:5000/app@sha256:…
        reference: String,
    },
    /// Send one to a registry
    Push {
        /// As listed
        image: String,
        /// The name it gets there, if it is another
        to: Option<String>,
    },
    /// Give one a further name
    Tag {
        /// As listed
        image: String,
        /// The further name
        name: String,
    },
    /// Take names away; what no name and no container needs any more is freed
    #[command(visible_alias = "rm")]
    Remove {
        /// As listed: names, or the beginnings of ids
        #[arg(required = true)]
        references: Vec<String>,
    },
    /// Free what nothing needs: layers of old builds, of images without a name
    Prune {
        /// Also images that no pod uses
        #[arg(long, short)]
        all: bool,
    },
    /// Print everything there is to know of one, as JSON
    Inspect {
        /// As listed
        image: String,
    },
}

/// Does what only asks a node that runs.
pub(crate) async fn run(command: Command, at: &At) -> ExitCode {
    let ink = Ink::of_stdout();
    let done = match command {
        Command::Status { json, wait } => status::run(at, json, wait.map(Duration::from_secs), ink).await,
        Command::Diff { application, json } => diff::run(at, application.as_deref(), json, ink).await,
        Command::Plan { save: Some(file), .. } => plan::save(at, &file).await,
        Command::Plan { application, json, .. } => plan::run(at, application.as_deref(), json, ink).await,
        Command::Explain { object, namespace, json } => {
            explain::run(at, &object, &namespace, json, ink).await
        }
        Command::Confirm { application } => decide::run(at, "/confirm", application.as_deref(), &[]).await,
        Command::Approve { application } => decide::run(at, "/approve", application.as_deref(), &[]).await,
        Command::Resume { application } => decide::run(at, "/resume", application.as_deref(), &[]).await,
        Command::Rollback { application, revision } => {
            let more = revision.map(|revision| ("revision", revision));
            decide::run(at, "/rollback", Some(&application), more.as_slice()).await
        }
        Command::Undo { application, object: _, list: true } => decide::pruned(at, &application, ink).await,
        Command::Undo { application, object, list: false } => {
            let more = object.map(|object| ("object", object));
            decide::run(at, "/undo", Some(&application), more.as_slice()).await
        }
        Command::History { application, json } => history::run(at, application.as_deref(), json, ink).await,
        Command::Sync { application } => sync::run(at, application.as_deref()).await,
        Command::Kubeconfig { path } => kubeconfig::run(at, path),
        Command::Version => {
            println!("holdfast {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Up | Command::Down | Command::Config | Command::Check { .. } | Command::Image { .. } => {
            unreachable!("main runs these itself")
        }
    };
    done.unwrap_or_else(|error| error.tell())
}

#[cfg(test)]
mod tests;
