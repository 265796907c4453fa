//! Builds the guest programs and puts them where `include_bytes!(concat!(env!("OUT_DIR"), "/NAME"))` finds them.
//!
//! Invariant: runs again only when a guest's source, the lock file or this script changes.

use std::path::{Path, PathBuf};

mod guest;

const PROGRAMS: [(&str, &str); 2] = [("shim", "holdfast-shim"), ("kubia", "kubia")];

fn main() -> Result<(), String> {
    let variable = |name: &str| std::env::var(name).map_err(|error| format!("{name}: {error}"));
    let (workspace, out) =
        (PathBuf::from(variable("CARGO_MANIFEST_DIR")?), PathBuf::from(variable("OUT_DIR")?));
    for source in [
        "daemon/build.rs",
        "daemon/guest.rs",
        "daemon/shim",
        "manifests/kubia/main.rs",
        "manifests/kubia/Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={source}");
    }
    let built = guest::build(&workspace, &out.join("guest"), &variable("TARGET")?, &PROGRAMS)?;
    for (_, name) in PROGRAMS {
        place(&built.join(name), &out.join(name))?;
    }
    Ok(())
}

fn place(from: &Path, to: &Path) -> Result<(), String> {
    std::fs::copy(from, to)
        .map(drop)
        .map_err(|error| format!("copy {} to {}: {error}", from.display(), to.display()))
}
