//! Stages: which are needed, what each begins with, and its steps in order.

use super::cache::Stored;
use super::script::{Stage, Step, parse_step};
use super::settings::{self, Scope, look, pairs};
use super::words::{Look, expand, split};
use super::{Dish, Error, Image, Kitchen, News, Reference, steps};
use crate::error::chain;
use crate::image::architecture;
use crate::shelf::documents;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Arguments that need no `ARG` to reach a `RUN`.
pub(crate) const PREDEFINED: [&str; 9] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "SOURCE_DATE_EPOCH",
];

/// What a stage is made on.
enum Base {
    Scratch,
    Stage(usize),
    Image(Reference),
}

impl Kitchen<'_> {
    /// The stages that the target is made of, in order; the others are not built.
    pub(super) fn needed(&mut self, target: usize) -> Result<Vec<usize>, Error> {
        let mut needed = BTreeSet::new();
        let mut open = vec![target];
        while let Some(at) = open.pop() {
            if !needed.insert(at) {
                continue;
            }
            let stage = &self.script.stages[at];
            if let Base::Stage(base) = self.base(at, stage)? {
                open.push(base);
            }
            let copies = stage.steps.iter().flat_map(|step| &step.flags).filter(|(name, _)| name == "from");
            let from = copies.filter_map(|(_, value)| self.find_stage(value.as_deref()?, at));
            open.extend(from);
        }
        self.of = needed.iter().map(|at| 1 + self.script.stages[*at].steps.len()).sum();
        Ok(needed.into_iter().collect())
    }

    /// The arguments above the first `FROM`.
    fn global_arguments(&self) -> Result<BTreeMap<String, String>, Error> {
        let mut known = platform();
        for step in &self.script.arguments {
            for word in split(&step.rest, self.script.escape) {
                let (name, default) = word.split_once('=').unwrap_or((&word, ""));
                let look: Look<'_> = &|name| known.get(name).cloned();
                let default = expand(default, self.script.escape, look).map_err(|e| self.at(step, e))?;
                let value = self.recipe.arguments.get(name).cloned().unwrap_or(default);
                known.insert(name.to_owned(), value);
            }
        }
        Ok(known)
    }

    fn base(&self, at: usize, stage: &Stage) -> Result<Base, Error> {
        let globals = self.global_arguments()?;
        let word = |text: &str| {
            expand(text, self.script.escape, &|name| globals.get(name).cloned())
                .map_err(|e| self.at(&stage.from, e))
        };
        for (flag, value) in &stage.from.flags {
            let value = word(value.as_deref().unwrap_or_default())?;
            let own = format!("linux/{}", architecture());
            if flag != "platform" {
                return Err(self.at(&stage.from, format!("FROM --{flag} is not known")));
            }
            if !value.is_empty() && value != own && !value.starts_with(&format!("{own}/")) {
                return Err(
                    self.at(&stage.from, format!("--platform={value}: this machine builds for {own}"))
                );
            }
        }
        let name = word(&stage.from.rest)?;
        if name == "scratch" {
            return Ok(Base::Scratch);
        }
        let known = self.script.stages[..at]
            .iter()
            .position(|stage| stage.name.as_deref() == Some(&name.to_lowercase()));
        match known {
            Some(base) => Ok(Base::Stage(base)),
            None => name.parse().map(Base::Image).map_err(|e| self.at(&stage.from, chain(&e))),
        }
    }

    pub(super) fn begin(&mut self, step: &Step) {
        self.number += 1;
        (self.tell)(News::Step { number: self.number, of: self.of, text: step.told() });
    }

    /// Builds one stage; those it needs are done.
    pub(super) async fn stage(&mut self, at: usize) -> Result<Dish, Error> {
        let from = self.script.stages[at].from.clone();
        let told = Step {
            rest: match &self.script.stages[at].name {
                Some(name) => format!("{} AS {name}", from.rest),
                None => from.rest.clone(),
            },
            ..from.clone()
        };
        self.begin(&told);
        let mut dish = match self.base(at, &self.script.stages[at])? {
            Base::Scratch => Dish::default(),
            Base::Stage(base) => self.done.get(&base).cloned().unwrap_or_default(),
            Base::Image(reference) => {
                let image = self.have(&reference).await.map_err(|e| self.at(&from, e))?;
                self.dish_of(&image).map_err(|e| self.at(&from, chain(&e)))?
            }
        };
        dish.scope = Scope::default();
        let mut steps = Vec::new();
        for text in std::mem::take(&mut dish.config.on_build) {
            let step = parse_step(from.line, &text);
            steps.push(
                step.map_err(|defect| {
                    self.at(&from, format!("ONBUILD of its base image: {}", defect.reason))
                })?,
            );
        }
        self.of += steps.len();
        steps.extend(self.script.stages[at].steps.iter().cloned());
        for step in steps {
            self.begin(&step);
            self.step(at, &mut dish, &step).await.map_err(|reason| self.at(&step, reason))?;
        }
        Ok(dish)
    }

    /// An image by name: the one that is here, or its registry's.
    pub(super) async fn have(&self, reference: &Reference) -> Result<Arc<Image>, String> {
        match self.images.get(reference).filter(|_| !self.recipe.pull) {
            Some(image) => Ok(image),
            None => self.images.pull(reference, None).await.map_err(|error| chain(&error)),
        }
    }

    fn dish_of(&mut self, image: &Image) -> Result<Dish, Error> {
        let store = &self.images.shelf.disk;
        let read = |digest: &str| {
            let digest = crate::digest::Digest::parse(digest)
                .map_err(|reason| crate::error::content("an image", reason))?;
            store.read_document(&digest)
        };
        let documents = documents("the base image", &read(&image.digest)?, &read(&image.id)?)?;
        let created =
            documents.config.created.as_deref().and_then(|time| time.parse::<jiff::Timestamp>().ok());
        let created = created.map_or(0, |time| time.as_second());
        let mut digests = Vec::new();
        let mut layers = Vec::new();
        for (layer, (blob, diff_id)) in documents.manifest.layers.into_iter().zip(documents.layers) {
            layers.push(Stored { blob: layer, diff_id: diff_id.to_string(), created });
            digests.extend([blob, diff_id]);
        }
        // The base image's name may be taken away while this build still stands on its layers.
        self.pins.push(self.images.shelf.pin(digests));
        Ok(Dish {
            layers,
            config: documents.config.config,
            history: documents.config.history,
            scope: Scope::default(),
        })
    }

    async fn step(&mut self, at: usize, dish: &mut Dish, step: &Step) -> Result<(), String> {
        let refuse =
            |served: &[&str]| match step.flags.iter().find(|(name, _)| !served.contains(&name.as_str())) {
                Some((flag, _)) => Err(format!("{} --{flag} is not served", step.name)),
                None => Ok(()),
            };
        match step.name.as_str() {
            "RUN" => {
                refuse(&["mount", "network"])?;
                return self.run(dish, step).await;
            }
            "COPY" => refuse(&["from", "chown", "chmod", "link"])?,
            "ADD" => refuse(&["chown", "chmod", "link"])?,
            "HEALTHCHECK" => {}
            _ => refuse(&[])?,
        }
        match step.name.as_str() {
            "COPY" | "ADD" => return self.copy(at, dish, step).await,
            "WORKDIR" => return self.work_dir(dish, step).await,
            "ARG" => self.argument(dish, step)?,
            _ => settings::apply(step, self.script.escape, &mut dish.config, &mut dish.scope)?,
        }
        let created = self.recipe.epoch.unwrap_or_else(|| dish.created());
        dish.history.push(steps::history(created, &step.told(), true));
        Ok(())
    }

    fn argument(&self, dish: &mut Dish, step: &Step) -> Result<(), String> {
        let globals = self.global_arguments().map_err(|error| chain(&error))?;
        for word in split(&step.rest, self.script.escape) {
            let known: Look<'_> = &|name| look(&dish.config, &dish.scope, name);
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name, Some(expand(default, self.script.escape, known)?)),
                None => (word.as_str(), None),
            };
            let given = self.recipe.arguments.get(name).cloned();
            let value = given.or(default).or_else(|| globals.get(name).cloned());
            if let Some(value) = value {
                dish.scope.arguments.insert(name.to_owned(), value);
            }
        }
        Ok(())
    }

    /// Names and values that may stand in a step of this stage.
    pub(super) fn word(&self, dish: &Dish, text: &str) -> Result<String, String> {
        expand(text, self.script.escape, &|name| look(&dish.config, &dish.scope, name))
    }

    /// The environment of a `RUN`.
    pub(super) fn environment(&self, dish: &Dish) -> Vec<(String, String)> {
        let mut env: BTreeMap<String, String> = BTreeMap::new();
        for name in PREDEFINED {
            env.extend(self.recipe.arguments.get(name).map(|value| (name.to_owned(), value.clone())));
        }
        env.extend(dish.scope.arguments.clone());
        if let Some(epoch) = self.recipe.epoch {
            env.insert("SOURCE_DATE_EPOCH".to_owned(), epoch.to_string());
        }
        for pair in &dish.config.env {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            env.insert(name.to_owned(), value.to_owned());
        }
        env.into_iter().collect()
    }

    /// The pairs of a flag such as `--mount=type=cache,target=/x`.
    pub(super) fn flag_pairs(&self, dish: &Dish, value: &str) -> Result<BTreeMap<String, String>, String> {
        let words = Step { name: "--mount".to_owned(), rest: value.replace(',', " "), ..Step::default() };
        let bare = |word: &str| if word.contains('=') { word.to_owned() } else { format!("{word}=true") };
        let rest = words.rest.split(' ').map(bare).collect::<Vec<_>>().join(" ");
        let known: Look<'_> = &|name| look(&dish.config, &dish.scope, name);
        pairs(&Step { rest, ..words }, self.script.escape, known).map(|pairs| pairs.into_iter().collect())
    }
}

/// What everybody may ask about the machine that builds and the one that is built for.
fn platform() -> BTreeMap<String, String> {
    let own = format!("linux/{}", architecture());
    let of = |side: &str| {
        [
            (format!("{side}PLATFORM"), own.clone()),
            (format!("{side}OS"), "linux".to_owned()),
            (format!("{side}ARCH"), architecture().to_owned()),
            (format!("{side}VARIANT"), String::new()),
        ]
    };
    of("TARGET").into_iter().chain(of("BUILD")).collect()
}
