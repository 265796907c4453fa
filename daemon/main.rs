//! holdfast makes a machine hold what Git says. Here: from the command line to a role.
//!
//! Exit codes: 0 done, 1 not done or not well, 2 the command line or the configuration is wrong, 3 no node answers.

mod actions;
mod cli;
mod config;
mod garbage;
mod kitchen;
mod larder;
mod leap;
mod node;
mod offline;
mod ports;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use cli::{At, Cli, Command, Form, Ink};
use futures::{FutureExt, StreamExt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::node::{Lock, Node, NodeError, Places};

/// How long `down` waits for a node that runs to stop.
const STOPPING: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let command = cli.command.clone().unwrap_or(Command::Up);
    // At a terminal `up` draws a table; what the rooms have to say goes below warnings only when asked for.
    let default =
        if matches!(command, Command::Up) && !std::io::stdout().is_terminal() { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("HOLDFAST_LOG").unwrap_or_else(|_| default.into());
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
    rustls::crypto::ring::default_provider().install_default().expect("no provider was installed before");
    if let Command::Check { path, namespace, variables, json, sarif } = &command {
        // It needs no configuration: a CI has none.
        return cli::check::run(path, namespace, variables, Form::of(*json, *sarif), Ink::of_stdout());
    }
    let mut config = match Config::read(cli.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return refuse(2, &error),
    };
    if let Some(data) = &cli.data {
        config.node.data_dir.clone_from(data);
    }
    let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let threads = threads.expect("this process may start threads");
    threads.block_on(async {
        match command {
            Command::Up => up(config, &called(&cli)).await,
            Command::Down => down(&config).await,
            Command::Config => {
                print!("{}", toml::to_string(&config).expect("a configuration is plain data"));
                ExitCode::SUCCESS
            }
            Command::Image { command, json } => cli::image::run(&at(&config), &config, command, json).await,
            Command::Plan { application, json, against: Some(file), .. } => {
                match offline::plan(&config, &file, application.as_deref()).await {
                    Ok(plans) => cli::plan::show(&plans, json, cli::Ink::of_stdout()),
                    Err(why) => {
                        eprintln!("error: {why}");
                        ExitCode::from(2)
                    }
                }
            }
            command => cli::run(command, &at(&config)).await,
        }
    })
}

fn refuse(code: u8, error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {}", reconcile::chain(error));
    ExitCode::from(code)
}

/// Where the node of this configuration is.
fn at(config: &Config) -> At {
    let data = &config.node.data_dir;
    At { web: config.web.listen, token: web::token_path(data), kubeconfig: node::kubeconfig(data) }
}

/// How this program was called, without the command: for telling what to type next.
fn called(cli: &Cli) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "holdfast".to_owned());
    let option = |name: &str, value: &Option<std::path::PathBuf>| {
        value.as_ref().map(|value| format!(" --{name} {}", value.display())).unwrap_or_default()
    };
    format!("{program}{}{}", option("config", &cli.config), option("data", &cli.data))
}

/// Starts the node, shows it coming up, and stops it at SIGINT or SIGTERM. A second signal ends it at once.
async fn up(config: Config, called: &str) -> ExitCode {
    let node = match Node::start(config).await {
        Ok(node) => node,
        Err(error) => return refuse(1, &error),
    };
    for missing in &node.missing {
        tracing::warn!(what = missing.what, why = missing.why, "this machine cannot isolate");
    }
    let mut updates = node.web.updates();
    let view = tokio::spawn(cli::up::live_view(node.web.updates()));
    let broken = tokio::select! {
        () = told_to_stop() => false,
        () = node.broken() => true,
    };
    view.abort();
    let document = updates.next().now_or_never().flatten().unwrap_or_default();
    let stopped = tokio::select! {
        () = node.stop() => true,
        () = told_to_stop() => false,
    };
    if stopped && !broken {
        print!("\n{}", cli::down::stopped(&document, called));
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}

async fn told_to_stop() {
    let listen = |kind| signal(kind).expect("signals can be listened for");
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt()), listen(SignalKind::terminate()));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Stops the node if it runs, then takes away everything it made on this machine.
async fn down(config: &Config) -> ExitCode {
    match take_down(config).await {
        Ok(data) => {
            print!("{}", cli::down::gone(&data));
            ExitCode::SUCCESS
        }
        Err(error) => refuse(1, &error),
    }
}

async fn take_down(config: &Config) -> Result<std::path::PathBuf, NodeError> {
    node::must_be_root()?;
    let places = Places::open(config)?;
    if let Err(NodeError::Taken { pid, .. }) = Lock::take(&places)
        && let Ok(pid) = pid.parse()
    {
        // Gone already is what is wanted.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        Lock::freed(&places, STOPPING).await;
    }
    node::take_down(config, &places).await?;
    Ok(places.data)
}
