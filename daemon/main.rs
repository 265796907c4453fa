//! holdfast makes a machine hold what Git says. Here: from the command line to a role.

mod actions;
mod config;
mod node;

use std::path::PathBuf;
use std::process::ExitCode;

use tracing::{error, info};

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HOLDFAST_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    rustls::crypto::ring::default_provider().install_default().expect("no provider was installed before");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("start threads");
    let args: Vec<String> = std::env::args().collect();
    runtime.block_on(async {
        let mut config = match config::Config::read(None) {
            Ok(config) => config,
            Err(error) => {
                error!(error = reconcile::chain(&error), "no configuration");
                return ExitCode::FAILURE;
            }
        };
        if let Some(at) = args.iter().position(|arg| arg == "--data") {
            config.node.data_dir = PathBuf::from(&args[at + 1]);
        }
        if args.get(1).is_some_and(|arg| arg == "down") {
            return match node::take_down(&config).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    error!(error = reconcile::chain(&error), "down");
                    ExitCode::FAILURE
                }
            };
        }
        let begun = std::time::Instant::now();
        let node = match node::Node::start(config).await {
            Ok(node) => node,
            Err(error) => {
                error!(error = reconcile::chain(&error), "not started");
                return ExitCode::FAILURE;
            }
        };
        info!(ms = begun.elapsed().as_millis(), kubeconfig = %node.places.kubeconfig().display(), "ready");
        tokio::signal::ctrl_c().await.expect("ctrl-c");
        node.stop().await;
        ExitCode::SUCCESS
    })
}
