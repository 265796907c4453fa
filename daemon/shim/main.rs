//! `holdfast-shim`: the parent of one sandbox's containers; outlives the daemon that started it.
//!
//! `holdfast-shim run DIR` reads `DIR/sandbox.json`, goes into the background and says on its standard output how that
//! went; `holdfast-shim probe DIR` says what this machine cannot isolate.
//! Invariant: one thread, no timer, no work unless a descriptor is ready.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

use shim::{Birth, Probe};

use crate::child::Step;

mod attach;
mod child;
mod connection;
mod identity;
mod log;
mod memory;
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
    match begin(dir) {
        Ok(Some(shim)) => {
            say(&Birth::Ready(shim.state()));
            if shim.detach().is_ok() {
                serve::until_shutdown(shim);
            }
        }
        Ok(None) => sys::exit(0),
        Err(failure) => say(&Birth::Failed(failure.reason)),
    }
}

/// The shim in the child, `None` in the parent.
fn begin(dir: &Path) -> Result<Option<sandbox::Shim>, child::Fail> {
    let spec = sandbox::read_spec(dir)?;
    // Born in its v2 group: moving there later would wait for every CPU (7 ms and more).
    let group = start::open_unified(&spec.cgroups, &sandbox::shims(&spec))?;
    let forked = sys::fork(0, group.as_ref().map(AsFd::as_fd)).step(|| "fork".to_owned())?;
    if matches!(forked, sys::Forked::Parent { .. }) {
        return Ok(None);
    }
    sandbox::Shim::set_up(spec, dir).map(Some)
}

fn say<T: serde::Serialize>(thing: &T) {
    let mut text = serde_json::to_vec(thing).unwrap_or_default();
    text.push(b'\n');
    let _ = std::io::stdout().write_all(&text);
}
