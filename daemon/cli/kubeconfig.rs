//! `holdfast kubeconfig`: what kubectl needs.

use std::process::ExitCode;

use super::ask::{At, CliError};

/// Prints the administrator's kubeconfig, which the node wrote when it first started, or its path.
///
/// # Errors
/// When it is not there or may not be read.
pub(crate) fn run(at: &At, path: bool) -> Result<ExitCode, CliError> {
    let way_out = "a node writes it when it first starts (`holdfast up`); root may read it";
    let read = |source| CliError::Read { path: at.kubeconfig.clone(), way_out, source };
    let text = std::fs::read_to_string(&at.kubeconfig).map_err(read)?;
    if path {
        println!("{}", at.kubeconfig.display())
    } else {
        print!("{text}")
    }
    Ok(ExitCode::SUCCESS)
}
