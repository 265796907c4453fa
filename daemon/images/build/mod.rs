//! Builds images from Dockerfiles: stages in order, one layer per step that changes files, each made once.
//!
//! Invariant: what a layer is depends on the layers below it and on what the step is given, never on when it ran.
//! Invariant: an instruction, flag or form that is not served is an error with its file and line.

pub(crate) mod cache;

mod copy;
#[cfg(test)]
mod damage;
mod layer;
mod script;
mod settings;
mod stage;
mod steps;
mod view;
mod words;

use crate::error::{Error, disk};
use crate::image::{self, Image, ImageConfig, OCI_LAYER};
use crate::reference::Reference;
use crate::shelf::{Origin, Pin};
use crate::stock::{Source, blocking};
use crate::{Images, pack};
use cache::Stored;
use copy::Ignore;
use futures::future::BoxFuture;
use script::{Script, Step};
use settings::Scope;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use view::View;

/// What is to be built.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// The directory that `COPY` takes from.
    pub context: PathBuf,
    /// The Dockerfile; empty means `Dockerfile` in the context.
    pub file: PathBuf,
    /// The names of the image.
    pub names: Vec<String>,
    /// Values for `ARG`s.
    pub arguments: BTreeMap<String, String>,
    /// Labels besides those of the file.
    pub labels: BTreeMap<String, String>,
    /// The stage that is wanted; empty means the last.
    pub target: String,
    /// Files that `RUN --mount=type=secret` may read, by id.
    pub secrets: BTreeMap<String, PathBuf>,
    /// Do every step again.
    pub no_cache: bool,
    /// Ask the registries for base images, also for those that are here.
    pub pull: bool,
    /// Give `RUN` no network.
    pub no_network: bool,
    /// The time of the image and the latest time in its layers, seconds since 1970 (`SOURCE_DATE_EPOCH`).
    pub epoch: Option<i64>,
}

/// A program that a `RUN` starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// Unpacked layers, bottom first.
    pub layers: Vec<PathBuf>,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Where it starts.
    pub cwd: String,
    /// As in an image's configuration.
    pub user: String,
    /// Whether it may use the machine's network.
    pub network: bool,
    /// Mounts besides the standard ones.
    pub mounts: Vec<Bind>,
}

/// A file or directory of the machine that a program sees; fresh memory without a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bind {
    /// On the machine.
    pub source: Option<PathBuf>,
    /// Inside.
    pub target: String,
    /// Whether it cannot be written to.
    pub read_only: bool,
}

/// How a program ended.
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// The upper directory of its overlay.
    pub changes: PathBuf,
    /// Dropped when the changes were taken.
    pub hold: Box<dyn Send>,
}

/// Runs programs on layers: the seam to the container runtime.
pub trait Runner: Send + Sync {
    /// Runs it to its end, passing on what it says; the error tells why it could not start.
    fn run<'a>(&'a self, program: Program, said: Said<'a>) -> BoxFuture<'a, Result<Ran, String>>;
}

/// Hears a program's output.
pub type Said<'a> = &'a (dyn Fn(&[u8]) + Send + Sync);

/// What a build tells on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A step begins.
    Step {
        /// Counted from 1, over all stages that are needed.
        number: usize,
        /// How many there are.
        of: usize,
        /// In the Dockerfile's words.
        text: String,
    },
    /// The step was done before.
    Cached,
    /// What a `RUN` says.
    Output(Vec<u8>),
    /// Something that was not expected and is no error.
    Warning(String),
}

/// Hears the news.
pub type Tell<'a> = &'a (dyn Fn(News) + Send + Sync);

/// A build under way.
struct Kitchen<'a> {
    images: &'a Images,
    recipe: &'a Recipe,
    runner: &'a dyn Runner,
    tell: Tell<'a>,
    script: Script,
    /// As it is told.
    file: String,
    context: View,
    ignore: Ignore,
    /// What the finished stages gave, by their place in the file.
    done: BTreeMap<usize, Dish>,
    /// Keeps the layers that no image needs yet.
    pins: Vec<Pin>,
    number: usize,
    of: usize,
}

/// An image on its way.
#[derive(Debug, Clone, Default)]
struct Dish {
    layers: Vec<Stored>,
    config: ImageConfig,
    history: Vec<serde_json::Value>,
    scope: Scope,
}

impl Dish {
    fn view(&self, images: &Images) -> View {
        View::new(&self.directories(images))
    }

    fn directories(&self, images: &Images) -> Vec<PathBuf> {
        let digests = self.layers.iter().filter_map(Stored::digests);
        digests.map(|(_, diff)| images.shelf.disk.layer_path(&diff)).collect()
    }

    fn created(&self) -> i64 {
        self.layers.iter().map(|layer| layer.created).max().unwrap_or(0)
    }
}

/// Reads the recipe's file, builds its target, and names what came of it.
pub(crate) async fn build(
    images: &Images,
    recipe: &Recipe,
    runner: &dyn Runner,
    tell: Tell<'_>,
) -> Result<Arc<Image>, Error> {
    let names = recipe.names.iter().map(|name| name.parse()).collect::<Result<Vec<Reference>, _>>()?;
    let path = match recipe.file.as_os_str().is_empty() {
        true => recipe.context.join("Dockerfile"),
        false => recipe.file.clone(),
    };
    let file = path.display().to_string();
    let text = std::fs::read_to_string(&path).map_err(disk("read the Dockerfile", &path))?;
    let defect = |defect: script::Defect| Error::Build {
        file: file.clone(),
        line: defect.line,
        reason: defect.reason,
    };
    let script = script::parse(&text).map_err(defect)?;
    let mut kitchen = Kitchen {
        images,
        recipe,
        runner,
        tell,
        script,
        context: View::new(std::slice::from_ref(&recipe.context)),
        ignore: ignore(&recipe.context, &path)?,
        file,
        done: BTreeMap::new(),
        pins: Vec::new(),
        number: 0,
        of: 0,
    };
    let target = kitchen.target()?;
    for at in kitchen.needed(target)? {
        let dish = kitchen.stage(at).await?;
        kitchen.done.insert(at, dish);
    }
    let dish = kitchen.done.remove(&target).expect("the target was among the stages that are needed");
    kitchen.unused_arguments();
    kitchen.serve(dish, names).await
}

/// The rules beside the Dockerfile win over those of the context.
fn ignore(context: &Path, file: &Path) -> Result<Ignore, Error> {
    let mut own = file.as_os_str().to_owned();
    own.push(".dockerignore");
    for path in [PathBuf::from(own), context.join(".dockerignore")] {
        match std::fs::read_to_string(&path) {
            Ok(text) => return Ok(Ignore::parse(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(disk("read", &path)(error)),
        }
    }
    Ok(Ignore::default())
}

impl Kitchen<'_> {
    fn at(&self, step: &Step, reason: impl Into<String>) -> Error {
        Error::Build { file: self.file.clone(), line: step.line, reason: reason.into() }
    }

    /// The stage that is wanted.
    fn target(&self) -> Result<usize, Error> {
        let wanted = &self.recipe.target;
        if wanted.is_empty() {
            return Ok(self.script.stages.len() - 1);
        }
        self.find_stage(wanted, self.script.stages.len()).ok_or_else(|| Error::Build {
            file: self.file.clone(),
            line: 1,
            reason: format!("there is no stage {wanted:?}"),
        })
    }

    /// A stage above `below`, by name or number.
    fn find_stage(&self, name: &str, below: usize) -> Option<usize> {
        let stages = &self.script.stages[..below];
        let lower = name.to_lowercase();
        let named = stages.iter().position(|stage| stage.name.as_ref() == Some(&lower));
        named.or_else(|| name.parse().ok().filter(|at| *at < below))
    }

    fn unused_arguments(&self) {
        let declared = |name: &str| {
            let stages = self.script.stages.iter().flat_map(|stage| &stage.steps);
            let arguments = stages.filter(|step| step.name == "ARG").chain(&self.script.arguments);
            let mut words = arguments.flat_map(|step| step.rest.split_whitespace());
            words.any(|word| word.split('=').next() == Some(name))
        };
        for name in self.recipe.arguments.keys() {
            if !declared(name) && !stage::PREDEFINED.contains(&name.as_str()) {
                (self.tell)(News::Warning(format!("no ARG {name} takes the value that was given for it")));
            }
        }
    }

    /// Writes configuration and manifest, and names the image.
    async fn serve(&self, dish: Dish, names: Vec<Reference>) -> Result<Arc<Image>, Error> {
        let created = self.recipe.epoch.unwrap_or_else(|| dish.created());
        let mut config = dish.config;
        config.labels.extend(self.recipe.labels.clone());
        let file = image::ConfigFile {
            created: Some(steps::time(created)),
            architecture: image::architecture().into(),
            os: "linux".into(),
            config,
            rootfs: image::RootFs {
                kind: "layers".into(),
                diff_ids: dish.layers.iter().map(|layer| layer.diff_id.clone()).collect(),
            },
            history: dish.history,
        };
        let config = serde_json::to_vec(&file).expect("a configuration has only text keys");
        let mut layers: Vec<_> = dish.layers.into_iter().map(|layer| layer.blob).collect();
        for layer in layers.iter_mut().filter(|layer| layer.media_type.is_empty()) {
            layer.media_type = OCI_LAYER.into();
        }
        let manifest = pack::manifest(layers, &config);
        let shelf = self.images.shelf.clone();
        let _pin = shelf.pin(vec![crate::digest::Digest::of(&config)]);
        blocking("write an image's configuration", move || shelf.disk.write_blob(&config)).await?;
        self.images.delivery(names, Source::Here, Origin::Local).stock(manifest).await
    }
}
