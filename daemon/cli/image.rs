//! `holdfast image`: the images that this machine holds.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::ImageCommand;
use super::ask::{At, CliError};
use super::ink::{Cell, Ink, Tone};
use super::status::{header, list, text};

/// Does it and prints what is there now.
///
/// # Errors
/// When the node cannot be asked or refuses, or its token cannot be read.
pub(crate) async fn run(at: &At, command: ImageCommand, ink: Ink) -> Result<ExitCode, CliError> {
    match command {
        ImageCommand::List => print!("{}", render(&at.get("/images").await?, ink)),
        ImageCommand::Load { path } => {
            // The node's working directory is another.
            let read = |source| CliError::Read {
                path: path.clone(),
                way_out: "name an OCI layout or an archive",
                source,
            };
            let path = std::fs::canonicalize(&path).map_err(read)?;
            let loaded = change(at, "load", json!({"path": path})).await?;
            print!("loaded\n{}", render(&loaded, ink));
        }
        ImageCommand::Pull { reference } => {
            let pulled = change(at, "pull", json!({"reference": reference})).await?;
            print!("pulled\n{}", render(&pulled, ink));
        }
        ImageCommand::Remove { reference } => {
            change(at, "remove", json!({"reference": reference})).await?;
            println!("removed {reference}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn change(at: &At, what: &str, body: Value) -> Result<Value, CliError> {
    let token = token(&at.token)?;
    let client = at.client()?;
    at.ask(client.post(format!("{}/images/{what}", at.page())).bearer_auth(token).json(&body)).await
}

fn token(path: &Path) -> Result<String, CliError> {
    let way_out = "images are changed by root, with the node's own --config and --data";
    let read = |source| CliError::Read { path: path.to_owned(), way_out, source };
    std::fs::read_to_string(path).map(|token| token.trim().to_owned()).map_err(read)
}

/// The images as a table.
pub(crate) fn render(images: &Value, ink: Ink) -> String {
    let mut rows = vec![header(&["IMAGE", "ID", "SIZE"])];
    for image in list(images) {
        let names: Vec<String> = list(&image["references"]).map(text).collect();
        let id = text(&image["id"]);
        let id: String = id.trim_start_matches("sha256:").chars().take(12).collect();
        let name = if names.is_empty() { "(no name)".to_owned() } else { names.join(", ") };
        let size = bytes(image["size"].as_u64().unwrap_or_default());
        rows.push(vec![
            Cell::new(Tone::Plain, &name),
            Cell::new(Tone::Soft, &id),
            Cell::new(Tone::Plain, &size),
        ]);
    }
    if rows.len() == 1 {
        return "no images; `holdfast image load PATH` takes an OCI layout or a `docker save` archive\n"
            .to_owned();
    }
    ink.table(&rows, 0)
}

fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}
