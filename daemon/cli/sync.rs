//! `holdfast sync`: look at everything anew, now.

use std::process::ExitCode;

use super::ask::{At, CliError};
use super::status::list;

/// Asks for it; what comes of it is told by `holdfast status`.
///
/// # Errors
/// When the node cannot be asked, or knows no such application.
pub(crate) async fn run(at: &At, application: Option<&str>) -> Result<ExitCode, CliError> {
    let client = at.client()?;
    let request = client.post(at.url("/sync", application));
    let answer = at.ask(request).await?;
    for name in list(&answer["applications"]) {
        println!("{}: looking at its source and at everything live", super::status::text(name));
    }
    println!("follow it with `holdfast status --wait 60`");
    Ok(ExitCode::SUCCESS)
}
