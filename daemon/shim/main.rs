//! `holdfast-shim`: the parent of one sandbox's containers; outlives the daemon that started it.
//!
//! `holdfast-shim run DIR` reads `DIR/sandbox.json`, goes into the background and says on its standard output how that
//! went; `holdfast-shim probe DIR` says what this machine cannot isolate.
//! Invariant: one thread, no timer, no work unless a descriptor is ready.

use std::io::Write;
use std::path::Path;

use shim::{Birth, Probe};

mod child;
mod connection;
mod identity;
mod log;
mod probe;
mod rootfs;
mod sandbox;
mod seccomp;
mod serve;
mod start;
mod sys;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match (args.get(1).map(String::as_str), args.get(2)) {
        (Some("run"), Some(dir)) => run(Path::new(dir)),
        (Some("probe"), Some(dir)) => say(&Probe { missing: probe::missing(Path::new(dir)) }),
        _ => {
            let _ = writeln!(std::io::stderr(), "usage: holdfast-shim run DIR | probe DIR");
            std::process::exit(2);
        }
    }
}

/// Forks away from the daemon; the parent ends at once, so nobody has to wait for the shim one day.
fn run(dir: &Path) {
    match sys::fork(0, None) {
        Ok(sys::Forked::Parent { .. }) => sys::exit(0),
        Ok(sys::Forked::Child) => {}
        Err(error) => return say(&Birth::Failed(format!("fork: {error}"))),
    }
    match sandbox::Shim::set_up(dir) {
        Ok(shim) => {
            say(&Birth::Ready(shim.state()));
            if shim.detach().is_ok() {
                serve::until_shutdown(shim);
            }
        }
        Err(failure) => say(&Birth::Failed(failure.reason)),
    }
}

fn say<T: serde::Serialize>(thing: &T) {
    let mut text = serde_json::to_vec(thing).unwrap_or_default();
    text.push(b'\n');
    let _ = std::io::stdout().write_all(&text);
}
