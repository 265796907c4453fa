//! Builds the programs that run beside and inside containers: small, static, without relocations.
//!
//! Included by the root package's build script, which embeds them, and by the runtime's tests, which run them.
//! Invariant: the nested cargo has a target directory of its own, so it never waits for the one that started it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A position-independent program dirties its relocations in every process; this one shares all it can.
const FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static -C panic=abort";

/// Builds binaries, given as (package, binary), for `target` and answers the directory they are in.
///
/// # Errors
/// What cargo said.
pub(crate) fn build(
    workspace: &Path,
    into: &Path,
    target: &str,
    programs: &[(&str, &str)],
) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace).args(["build", "--quiet", "--profile", "guest", "--target", target]);
    for (package, binary) in programs {
        command.args(["-p", package, "--bin", binary]);
    }
    // What the outer cargo tells its build scripts and compilers is not meant for this one.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let kept =
            ["CARGO_HOME", "CARGO_NET_OFFLINE", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"].contains(&text.as_ref());
        let ours = text.starts_with("CARGO")
            || text.starts_with("RUSTC")
            || text == "RUSTFLAGS"
            || text == "RUSTDOCFLAGS";
        if ours && !kept {
            command.env_remove(&name);
        }
    }
    command.env("CARGO_TARGET_DIR", into).env("RUSTFLAGS", FLAGS);
    let output = command.output().map_err(|error| format!("run cargo: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("build {programs:?} for {target}: {}\n{said}", output.status));
    }
    Ok(into.join(target).join("guest"))
}
