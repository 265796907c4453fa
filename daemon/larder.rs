//! What can be done with the images of this machine, for the running node and for the command line without one.
//!
//! Invariant: nothing that a container uses is removed, whoever asks.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use images::{Builds, Format, Image, Images, InUse, News, Recipe, Reference};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use web::{ImageOrder, Pieces, Refusal};

use crate::config::Config;
use crate::kitchen::{self, Kitchen};
use crate::node::{self, Lock, NodeError, Places, SHIM};

/// Progress is told so often at most.
const PROGRESS: Duration = Duration::from_millis(100);

/// The images and where they are built.
#[derive(Clone)]
pub(crate) struct Larder {
    pub(crate) images: Images,
    /// What must stay.
    pub(crate) in_use: Arc<dyn Fn() -> InUse + Send + Sync>,
    /// Where the next build runs.
    pub(crate) kitchen: Arc<dyn Fn() -> Kitchen + Send + Sync>,
    /// Builds take turns: they share a place on the machine.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
}

type Tell = mpsc::Sender<Value>;

impl Larder {
    /// The images of a node.
    pub(crate) fn new(
        config: &Config,
        places: &Places,
        images: Images,
        in_use: Arc<dyn Fn() -> InUse + Send + Sync>,
    ) -> Larder {
        let build = kitchen::config(config, places);
        let kitchen = Arc::new(move || Kitchen::new(build.clone(), SHIM));
        Larder { images, in_use, kitchen, turn: Arc::default() }
    }

    /// The images of a node that does not run. What its pods ask for is not known then, so no image goes that has a
    /// name.
    ///
    /// # Errors
    /// [`NodeError::Taken`] when it runs after all; what is wrong with the directory.
    pub(crate) async fn alone(config: &Config) -> Result<(Larder, Lock), NodeError> {
        node::must_be_root()?;
        let places = Places::open(config)?;
        let lock = Lock::take(&places)?;
        let (dir, options) = (places.dir("images"), config.images.clone());
        let opened = tokio::task::spawn_blocking(move || Images::open(&dir, &options)).await;
        let images = opened.expect("opening the images does not panic").map_err(node::room("the images"))?;
        let held = images.clone();
        let in_use = move || InUse {
            ids: held.list().iter().map(|image| image.id.clone()).collect(),
            layers: held.list().iter().flat_map(|image| image.layers.clone()).collect(),
        };
        Ok((Larder::new(config, &places, images, Arc::new(in_use)), lock))
    }

    /// Every image: `[{id, digest, references, size}]`.
    pub(crate) fn list(&self) -> Value {
        self.images.list().iter().map(|image| told(image)).collect()
    }

    /// Does it; news go to `tell`.
    pub(crate) async fn obey(&self, order: ImageOrder, tell: Tell) -> Result<Value, Refusal> {
        match order {
            ImageOrder::Load { path } => {
                let loaded = self.images.load(&path).await.map_err(|error| refuse(422, &error))?;
                Ok(loaded.iter().map(|image| told(image)).collect())
            }
            ImageOrder::Pull { reference } => {
                let reference = parse(&reference)?;
                let pulled = self.with_progress(self.images.pull(&reference, None), &tell).await;
                Ok(json!([told(&*pulled.map_err(|error| refuse(502, &error))?)]))
            }
            ImageOrder::Push { image, to } => self.push(&image, to, &tell).await,
            ImageOrder::Tag { image, name } => {
                let image = self.find(&image)?;
                let tagged =
                    self.images.tag(&image, &parse(&name)?).await.map_err(|error| refuse(500, &error))?;
                Ok(json!([told(&tagged)]))
            }
            ImageOrder::Remove { reference } => self.remove(&reference).await,
            ImageOrder::Prune { all } => self.prune(all).await,
            ImageOrder::Inspect { image } => self.inspect(&image).await,
            ImageOrder::Build { recipe } => self.build(recipe, &tell).await,
        }
    }

    /// Begins to write an archive.
    pub(crate) fn save(&self, names: &[String], format: &str) -> Result<Pieces, Refusal> {
        let format = match format {
            "" | "oci" => Format::Oci,
            "docker" => Format::Docker,
            other => {
                let message = format!("there is no format {other:?}: oci or docker");
                return Err(Refusal { status: 400, message });
            }
        };
        let mut chosen: Vec<(Arc<Image>, Vec<Reference>)> = Vec::new();
        for name in names {
            let image = self.find(name)?;
            // By name it is saved under that name, by id under all it has.
            let named = name.parse::<Reference>().ok().filter(|name| image.references.contains(name));
            let named = named.map_or_else(|| image.references.clone(), |name| vec![name]);
            match chosen.iter_mut().find(|(known, _)| known.digest == image.digest) {
                Some((_, known)) => known.extend(named),
                None => chosen.push((image, named)),
            }
        }
        if chosen.is_empty() {
            return Err(Refusal { status: 400, message: "name the images to save".to_owned() });
        }
        let (send, pieces) = mpsc::channel(4);
        let (images, writer) = (self.images.clone(), Channel { send: send.clone(), piece: Vec::new() });
        tokio::spawn(async move {
            if let Err(error) = images.save(chosen, format, writer).await {
                // The reader is told by the break, and may be gone already.
                let _ = send.send(Err(std::io::Error::other(reconcile::chain(&error)))).await;
            }
        });
        Ok(pieces)
    }

    fn find(&self, text: &str) -> Result<Arc<Image>, Refusal> {
        self.images.find(text).ok_or_else(|| Refusal {
            status: 404,
            message: format!(
                "no image {text:?} is here: `holdfast image ls` lists them, `holdfast image pull` fetches one"
            ),
        })
    }

    async fn push(&self, image: &str, to: Option<String>, tell: &Tell) -> Result<Value, Refusal> {
        let found = self.find(image)?;
        let name = parse(&to.unwrap_or_else(|| image.to_owned()))?;
        if name.tag().is_none() {
            let message = format!("push {name}: a registry names what it is sent by a tag");
            return Err(Refusal { status: 400, message });
        }
        let pushed = self.with_progress(self.images.push(&found, &name, None), tell).await;
        let digest = pushed.map_err(|error| refuse(502, &error))?;
        Ok(json!({"reference": name.to_string(), "digest": digest}))
    }

    async fn remove(&self, text: &str) -> Result<Value, Refusal> {
        let names = match text.parse::<Reference>() {
            Ok(name) if self.images.list().iter().any(|image| image.references.contains(&name)) => vec![name],
            _ => self.find(text)?.references.clone(),
        };
        for name in &names {
            self.images.remove(name).await.map_err(|error| refuse(404, &error))?;
        }
        let freed = self.images.evict(&Default::default(), &(self.in_use)(), Builds::Remember).await;
        Ok(told_freed(names, freed.map_err(|error| refuse(500, &error))?.bytes))
    }

    async fn prune(&self, all: bool) -> Result<Value, Refusal> {
        let used = (self.in_use)();
        let unused = self.images.list().into_iter().filter(|image| all && !used.ids.contains(&image.id));
        let gone = unused.map(|image| image.id.clone()).collect();
        let freed = self.images.evict(&gone, &used, Builds::Forget).await;
        let freed = freed.map_err(|error| refuse(500, &error))?;
        Ok(told_freed(freed.references, freed.bytes))
    }

    async fn inspect(&self, name: &str) -> Result<Value, Refusal> {
        let image = self.find(name)?;
        let (manifest, config) = self.images.documents(&image).await.map_err(|error| refuse(500, &error))?;
        let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or_default();
        let mut document = told(&image);
        document["pulled"] = self.images.is_pulled(&image).into();
        document["layers"] = image.layers.iter().map(|layer| layer.display().to_string()).collect();
        document["manifest"] = read(&manifest);
        document["configuration"] = read(&config);
        Ok(document)
    }

    async fn build(&self, recipe: Value, tell: &Tell) -> Result<Value, Refusal> {
        let recipe: Recipe = serde_json::from_value(recipe)
            .map_err(|error| Refusal { status: 400, message: format!("read the recipe: {error}") })?;
        let _turn = self.turn.lock().await;
        let kitchen = (self.kitchen)();
        // A build says more than anyone reads at a time; its news wait here, not in the runtime.
        let (news, mut heard) = mpsc::unbounded_channel();
        let say = move |told: News| drop(news.send(told));
        let passed_on = async {
            while let Some(told) = heard.recv().await {
                if tell.send(spelled(told)).await.is_err() {
                    return;
                }
            }
        };
        let building = async {
            let say = say;
            self.with_progress(self.images.build_file(&recipe, &kitchen, &say), tell).await
        };
        let (built, ()) = tokio::join!(building, passed_on);
        if let Err(error) = kitchen.close().await {
            tracing::warn!(error = reconcile::chain(&error), "something of a build stays until the next one");
        }
        Ok(json!([told(&*built.map_err(|error| refuse(422, &error))?)]))
    }

    /// Tells how far pulls and pushes are while the work goes on.
    async fn with_progress<T>(&self, work: impl Future<Output = T>, tell: &Tell) -> T {
        let mut progress = self.images.progress();
        let telling = async {
            while progress.changed().await.is_ok() {
                let now: Vec<Value> = progress
                    .borrow_and_update()
                    .iter()
                    .map(|(name, p)| json!({"reference": name.to_string(), "done": p.done_bytes, "total": p.total_bytes}))
                    .collect();
                // A reader that is behind misses some of it, as it would on a screen.
                let _ = tell.try_send(json!({"progress": now}));
                tokio::time::sleep(PROGRESS).await;
            }
            std::future::pending::<T>().await
        };
        // The work is the one that counts; what is told of it may be cut anywhere.
        tokio::select! {
            biased;
            done = work => done,
            never = telling => never,
        }
    }
}

fn spelled(news: News) -> Value {
    match news {
        News::Step { number, of, text } => json!({"step": {"number": number, "of": of, "text": text}}),
        News::Cached => json!({"cached": true}),
        News::Output(bytes) => json!({"output": String::from_utf8_lossy(&bytes)}),
        News::Warning(text) => json!({"warning": text}),
    }
}

fn told_freed(names: Vec<Reference>, bytes: u64) -> Value {
    json!({"removed": names.iter().map(ToString::to_string).collect::<Vec<_>>(), "bytes": bytes})
}

pub(crate) fn parse(reference: &str) -> Result<Reference, Refusal> {
    reference.parse().map_err(|error: images::Error| refuse(400, &error))
}

fn told(image: &Image) -> Value {
    let names: Vec<String> = image.references.iter().map(ToString::to_string).collect();
    json!({ "id": image.id, "digest": image.digest, "references": names, "size": image.size })
}

pub(crate) fn refuse(status: u16, error: &dyn std::error::Error) -> Refusal {
    Refusal { status, message: reconcile::chain(error) }
}

/// Passes on what is written, in pieces.
struct Channel {
    send: mpsc::Sender<std::io::Result<Vec<u8>>>,
    piece: Vec<u8>,
}

const PIECE_BYTES: usize = 256 << 10;

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let piece = std::mem::take(&mut self.piece);
        if piece.is_empty() {
            return Ok(());
        }
        self.send.blocking_send(Ok(piece)).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }
}
