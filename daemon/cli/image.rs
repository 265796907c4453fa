//! `holdfast image`: the images that this machine holds, through the node that runs, or directly when none does.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use futures::StreamExt;
use serde_json::Value;
use tokio::sync::mpsc;
use web::{ImageOrder, Pieces};

use super::ImageCommand;
use super::ask::{At, CliError, Lines};
use super::ink::{Cell, Ink, Tone, plain};
use super::progress::Progress;
use super::status::{header, list, text};
use crate::config::Config;
use crate::larder::Larder;
use crate::node::Lock;

/// Who does it.
enum Door<'a> {
    Node(&'a At),
    Alone(Larder, #[expect(dead_code, reason = "held, never read: the directory is ours while it is")] Lock),
}

/// Does it and prints what is there now.
pub(crate) async fn run(at: &At, config: &Config, command: ImageCommand, as_json: bool) -> ExitCode {
    match act(at, config, command, as_json).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.tell(),
    }
}

async fn act(at: &At, config: &Config, command: ImageCommand, as_json: bool) -> Result<(), CliError> {
    let door = door(at, config).await?;
    let ink = Ink::of_stdout();
    let orders = match command {
        ImageCommand::List => {
            let images = door.list().await?;
            print!("{}", if as_json { line(&images) } else { render(&images, ink) });
            return Ok(());
        }
        ImageCommand::Save { images, output, format } => return save(&door, &images, output, &format).await,
        ImageCommand::Load { path } if path == Path::new("-") => return door.load_stdin(as_json, ink).await,
        command => orders(command)?,
    };
    for (order, done) in orders {
        let shows_json = as_json || matches!(order, ImageOrder::Inspect { .. });
        let mut progress = Progress::new(shows_json);
        let outcome = door.obey(order, &mut progress).await;
        progress.end();
        let outcome = outcome?;
        match shows_json {
            true => print!("{}", line(&outcome)),
            false => print!("{}", told(&outcome, &done, ink)),
        }
    }
    Ok(())
}

/// The orders of a command, each with the word that says it was done.
fn orders(command: ImageCommand) -> Result<Vec<(ImageOrder, String)>, CliError> {
    let one = |order, done: &str| Ok(vec![(order, done.to_owned())]);
    match command {
        ImageCommand::Load { path } => {
            // The node's working directory is another.
            let read = |source| CliError::Read {
                path: path.clone(),
                way_out: "name an OCI layout or an archive",
                source,
            };
            one(ImageOrder::Load { path: std::fs::canonicalize(&path).map_err(read)? }, "loaded")
        }
        ImageCommand::Pull { reference } => one(ImageOrder::Pull { reference }, "pulled"),
        ImageCommand::Push { image, to } => one(ImageOrder::Push { image, to }, "pushed"),
        ImageCommand::Tag { image, name } => one(ImageOrder::Tag { image, name }, "tagged"),
        ImageCommand::Remove { references } => {
            let remove = |reference| (ImageOrder::Remove { reference }, "removed".to_owned());
            Ok(references.into_iter().map(remove).collect())
        }
        ImageCommand::Prune { all } => one(ImageOrder::Prune { all }, "removed"),
        ImageCommand::Inspect { image } => one(ImageOrder::Inspect { image }, ""),
        ImageCommand::Build(build) => one(ImageOrder::Build { recipe: build.recipe()? }, "built"),
        ImageCommand::List | ImageCommand::Save { .. } => Ok(Vec::new()),
    }
}

/// The node when one answers; otherwise its data directory, when that is free.
async fn door<'a>(at: &'a At, config: &Config) -> Result<Door<'a>, CliError> {
    match at.get("/images").await {
        Err(CliError::NoNode { page }) => match Larder::alone(config).await {
            Ok((larder, lock)) => Ok(Door::Alone(larder, lock)),
            Err(error) => Err(CliError::Alone { page, reason: reconcile::chain(&error) }),
        },
        Err(error) => Err(error),
        Ok(_) => Ok(Door::Node(at)),
    }
}

impl Door<'_> {
    async fn list(&self) -> Result<Value, CliError> {
        match self {
            Door::Node(at) => at.get("/images").await,
            Door::Alone(larder, _) => Ok(larder.list()),
        }
    }

    async fn obey(&self, order: ImageOrder, progress: &mut Progress) -> Result<Value, CliError> {
        match self {
            Door::Node(at) => ask(at, &order, progress).await,
            Door::Alone(larder, _) => {
                let (tell, mut news) = mpsc::channel(64);
                let hear = async {
                    while let Some(told) = news.recv().await {
                        progress.hear(&told);
                    }
                };
                let (outcome, ()) = tokio::join!(larder.obey(order, tell), hear);
                outcome
                    .map_err(|refusal| CliError::Refused { status: refusal.status, message: refusal.message })
            }
        }
    }

    async fn load_stdin(&self, as_json: bool, ink: Ink) -> Result<(), CliError> {
        let loaded = match self {
            Door::Node(at) => {
                let read = |source| CliError::Read {
                    path: "standard input".into(),
                    way_out: "pipe an archive into it",
                    source,
                };
                let body = tokio::fs::File::open("/dev/stdin").await.map_err(read)?;
                let client = at.client()?.post(format!("{}/images/load", at.page()));
                at.ask(client.bearer_auth(token(&at.token)?).body(reqwest::Body::from(body))).await?
            }
            Door::Alone(..) => {
                let order = ImageOrder::Load { path: "/dev/stdin".into() };
                self.obey(order, &mut Progress::new(as_json)).await?
            }
        };
        print!("{}", if as_json { line(&loaded) } else { told(&loaded, "loaded", ink) });
        Ok(())
    }

    async fn save(&self, images: &[String], format: &str) -> Result<Pieces, CliError> {
        match self {
            Door::Node(at) => {
                let url = format!("{}/images/save", at.page());
                let query = [("images", images.join(",")), ("format", format.to_owned())];
                let url = reqwest::Url::parse_with_params(&url, query).expect("our own path is a URL");
                let answer = at.stream(at.client()?.get(url).bearer_auth(token(&at.token)?)).await?;
                let (send, pieces) = mpsc::channel(4);
                tokio::spawn(async move {
                    let mut bytes = answer.bytes_stream();
                    while let Some(piece) = bytes.next().await {
                        let piece = piece.map(|bytes| bytes.to_vec()).map_err(std::io::Error::other);
                        // The writer may have failed; then nobody wants the rest.
                        if send.send(piece).await.is_err() {
                            return;
                        }
                    }
                });
                Ok(pieces)
            }
            Door::Alone(larder, _) => larder
                .save(images, format)
                .map_err(|refusal| CliError::Refused { status: refusal.status, message: refusal.message }),
        }
    }
}

/// Asks the node and passes its news on.
async fn ask(at: &At, order: &ImageOrder, progress: &mut Progress) -> Result<Value, CliError> {
    let mut fields = serde_json::to_value(order).expect("an order is plain data");
    let name = fields.as_object_mut().and_then(|fields| fields.remove("order")).unwrap_or_default();
    let url = format!("{}/images/{}", at.page(), text(&name));
    let request = at.client()?.post(url).bearer_auth(token(&at.token)?).json(&fields);
    let answer = at.stream(request.header("accept", "application/x-ndjson")).await?;
    let (mut bytes, mut lines) = (answer.bytes_stream(), Lines::default());
    while let Some(chunk) = bytes.next().await {
        let chunk = chunk.map_err(|source| CliError::Ask { page: at.page(), source })?;
        for news in lines.plain(&chunk) {
            if let Some(done) = news.get("done") {
                return Ok(done.clone());
            }
            if let Some(error) = news.get("error") {
                let status = error["status"].as_u64().and_then(|status| u16::try_from(status).ok());
                let message = text(&error["message"]);
                return Err(CliError::Refused { status: status.unwrap_or(500), message });
            }
            progress.hear(&news);
        }
    }
    Err(CliError::Stopped { page: at.page() })
}

async fn save(
    door: &Door<'_>,
    images: &[String],
    output: Option<std::path::PathBuf>,
    format: &str,
) -> Result<(), CliError> {
    let path = output.clone().unwrap_or_else(|| "standard output".into());
    let write = |source| CliError::Read { path: path.clone(), way_out: "the archive is not whole", source };
    if output.is_none() && std::io::stdout().is_terminal() {
        let message = "an archive is nothing for a terminal: use -o FILE, or a pipe".to_owned();
        return Err(CliError::Refused { status: 400, message });
    }
    let mut pieces = door.save(images, format).await?;
    // Whole or not at all: the file gets its name at the end.
    let partial = output.as_ref().map(|path| {
        let mut name = path.clone().into_os_string();
        name.push(".part");
        std::path::PathBuf::from(name)
    });
    let mut out: Box<dyn Write> = match &partial {
        Some(path) => Box::new(std::fs::File::create(path).map_err(write)?),
        None => Box::new(std::io::stdout()),
    };
    let mut copied = Ok(());
    while let (Ok(()), Some(piece)) = (&copied, pieces.recv().await) {
        copied = piece.and_then(|piece| out.write_all(&piece));
    }
    copied = copied.and_then(|()| out.flush());
    if let (Some(partial), Some(path)) = (&partial, &output) {
        copied = match copied {
            Ok(()) => std::fs::rename(partial, path),
            // What is there of it is of no use to anybody.
            Err(error) => std::fs::remove_file(partial).and(Err(error)),
        };
    }
    copied.map_err(write)
}

fn token(path: &Path) -> Result<String, CliError> {
    let way_out = "images are changed by root, with the node's own --config and --data";
    let read = |source| CliError::Read { path: path.to_owned(), way_out, source };
    std::fs::read_to_string(path).map(|token| token.trim().to_owned()).map_err(read)
}

fn line(value: &Value) -> String {
    format!("{}\n", serde_json::to_string_pretty(value).expect("JSON is plain data"))
}

/// What was done, for people.
fn told(outcome: &Value, done: &str, ink: Ink) -> String {
    if outcome.is_array() {
        return format!("{done}\n{}", render(outcome, ink));
    }
    if let Some(digest) = outcome["digest"].as_str() {
        return format!("{done} {}\n  {}\n", plain(&text(&outcome["reference"])), plain(digest));
    }
    let names: String =
        list(&outcome["removed"]).map(|name| format!("{done} {}\n", plain(&text(name)))).collect();
    format!("{names}{} freed\n", bytes(outcome["bytes"].as_u64().unwrap_or_default()))
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

/// In the unit that reads best.
pub(crate) fn bytes(bytes: u64) -> String {
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
