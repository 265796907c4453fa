//! The steps that make a layer: `RUN`, `COPY`, `ADD`, `WORKDIR`.

use super::cache::{self, Stored};
use super::copy::{self, Copied, Copy, Ignore, Origin};
use super::layer::{Attributes, LayerWriter, write_changes};
use super::script::{Step, announced};
use super::settings::shell;
use super::view::View;
use super::words::split;
use super::{Bind, Dish, Kitchen, News, Program};
use crate::error::{chain, disk};
use crate::image::{Descriptor, OCI_LAYER};
use crate::shelf::Shelf;
use crate::stock::blocking;
use crate::unpack::unpack;
use serde_json::{Value, json};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a document that names its own interpreter is seen; in memory, so that no layer keeps it.
const SCRIPT: &str = "/dev/holdfast-build-script";
/// What the runtime puts into every container, and makes where the image has no place for it.
const OWN: [&str; 6] = ["dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf"];

/// A time as image documents spell it.
pub(super) fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// An entry of an image's history.
pub(super) fn history(created: i64, by: &str, empty: bool) -> Value {
    let mut entry = json!({"created": time(created), "created_by": by});
    if empty {
        entry["empty_layer"] = true.into();
    }
    entry
}

impl Kitchen<'_> {
    /// Puts what a step gave on top.
    fn top(&mut self, dish: &mut Dish, step: &Step, stored: Vec<Stored>) {
        let created = self.recipe.epoch.or(stored.first().map(|layer| layer.created));
        let created = created.unwrap_or_else(|| dish.created());
        dish.history.push(history(created, &step.told(), stored.is_empty()));
        let digests = stored.iter().filter_map(Stored::digests).flat_map(|(blob, diff)| [blob, diff]);
        self.pins.push(self.images.shelf.pin(digests.collect()));
        dish.layers.extend(stored);
    }

    /// A step's key: the layers below, and what it is given.
    fn key(&self, dish: &Dish, parts: &[String]) -> String {
        let below = dish.layers.iter().map(|layer| layer.diff_id.as_str());
        let epoch = self.recipe.epoch.map(|epoch| epoch.to_string()).unwrap_or_default();
        cache::key(below.chain(["", &epoch]).chain(parts.iter().map(String::as_str)))
    }

    fn cached(&self, key: &str) -> Option<Vec<Stored>> {
        let found = cache::find(&self.images.shelf.disk, key).filter(|_| !self.recipe.no_cache)?;
        (self.tell)(News::Cached);
        Some(found)
    }

    /// Writes a layer and keeps it; an empty one is none.
    async fn keep(
        &self,
        key: String,
        write: impl FnOnce(&mut LayerWriter) -> io::Result<()> + Send + 'static,
    ) -> Result<Vec<Stored>, String> {
        let (shelf, epoch) = (self.images.shelf.clone(), self.recipe.epoch);
        blocking("write a layer", move || {
            let mut writer = LayerWriter::new(&shelf.disk, epoch)?;
            write(&mut writer).map_err(disk("write a layer in", shelf.disk.dir()))?;
            let stored = match writer.is_empty() {
                true => Vec::new(),
                false => vec![shelve(&shelf, writer, epoch)?],
            };
            cache::keep(&shelf.disk, &key, &stored)?;
            Ok(stored)
        })
        .await
        .map_err(|error| chain(&error))
    }

    pub(super) async fn copy(&mut self, at: usize, dish: &mut Dish, step: &Step) -> Result<(), String> {
        let copy = self.copy_of(dish, step)?;
        let from = step.flags.iter().find(|(name, _)| name == "from").and_then(|(_, value)| value.clone());
        let nothing = Ignore::default();
        let (view, ignore) = match &from {
            None => (self.context.clone(), &self.ignore),
            Some(name) => (self.view_of(at, &self.word(dish, name)?).await?, &nothing),
        };
        let image = dish.view(self.images);
        let origin = Origin { view: &view, ignore, owned_by_root: from.is_none() };
        let copied: Copied = copy::plan(&copy, &origin, &image)?;
        let sum = copied.sum().map_err(|error| error.to_string())?;
        let key = self.key(dish, &["COPY".to_owned(), sum]);
        let stored = match self.cached(&key) {
            Some(stored) => stored,
            None => self.keep(key, move |writer| copied.write(writer)).await?,
        };
        self.top(dish, step, stored);
        Ok(())
    }

    /// The tree that `--from` names: a stage above, or an image.
    async fn view_of(&self, at: usize, name: &str) -> Result<View, String> {
        if let Some(stage) = self.find_stage(name, at) {
            return self
                .done
                .get(&stage)
                .map(|dish| dish.view(self.images))
                .ok_or_else(|| format!("--from={name}: variables cannot name a stage"));
        }
        let reference = name.parse().map_err(|error| format!("--from={name}: {}", chain(&error)))?;
        Ok(View::new(&self.have(&reference).await?.layers))
    }

    fn copy_of(&self, dish: &Dish, step: &Step) -> Result<Copy, String> {
        let mut words = match step.list() {
            Some(list) => list,
            None => split(&step.rest, self.script.escape),
        };
        let last = words.pop().unwrap_or_default();
        let destination = absolute(&dish.config.working_dir, &self.word(dish, &last)?);
        let mut copy = Copy { destination, unpacks: step.name == "ADD", ..Copy::default() };
        let mut documents = step.documents.iter();
        for word in &words {
            if announced(word).is_some() {
                let document = documents.next().ok_or("a document is missing")?;
                let text = match document.expands {
                    true => self.document(dish, &document.text)?,
                    false => document.text.clone(),
                };
                copy.documents.push((document.name.clone(), text));
                continue;
            }
            let source = self.word(dish, word)?;
            if step.name == "ADD"
                && ["http://", "https://", "git://", "git@"].iter().any(|s| source.starts_with(s))
            {
                return Err(format!(
                    "ADD {source}: nothing is downloaded: RUN curl, or put it into the context"
                ));
            }
            copy.sources.push(source);
        }
        if copy.sources.is_empty() && copy.documents.is_empty() {
            return Err(format!("{} needs a source and a destination", step.name));
        }
        for (flag, value) in &step.flags {
            let value = self.word(dish, value.as_deref().unwrap_or_default())?;
            match flag.as_str() {
                "chown" => copy.owner = Some(owner(&value, &dish.view(self.images))?),
                "chmod" => {
                    let mode = u32::from_str_radix(&value, 8).ok().filter(|mode| *mode <= 0o7777);
                    copy.mode =
                        Some(mode.ok_or_else(|| format!("--chmod={value}: use octal digits, as 0755"))?);
                }
                // A layer here depends on nothing below it but its parents' attributes; there is nothing to unlink.
                _ => {}
            }
        }
        Ok(copy)
    }

    /// A document's text with variables put in; its quotes are its own.
    fn document(&self, dish: &Dish, text: &str) -> Result<String, String> {
        let escaped = text.replace('\'', "\u{1}").replace('"', "\u{2}");
        Ok(self.word(dish, &escaped)?.replace('\u{1}', "'").replace('\u{2}', "\""))
    }

    pub(super) async fn work_dir(&mut self, dish: &mut Dish, step: &Step) -> Result<(), String> {
        let path = absolute(&dish.config.working_dir, &self.word(dish, step.rest.trim())?);
        dish.config.working_dir = format!("/{}", copy::plain(Path::new(&path)).display());
        let view = dish.view(self.images);
        let mut missing = Vec::new();
        let (place, node) = view.find(Path::new(&path)).map_err(|error| error.to_string())?;
        if node.is_none() {
            for dir in place.ancestors().filter(|dir| !dir.as_os_str().is_empty()) {
                let (_, node) = view.find(dir).map_err(|error| error.to_string())?;
                let there = node.and_then(|node| node.real);
                let attributes = there
                    .map_or(Attributes { mode: 0o755, ..Attributes::default() }, |(_, meta)| {
                        Attributes::of(&meta)
                    });
                missing.insert(0, (dir.to_owned(), attributes));
            }
        }
        let key = self.key(dish, &["WORKDIR".to_owned(), path]);
        let stored = match self.cached(&key) {
            Some(stored) => stored,
            None => {
                let write = move |writer: &mut LayerWriter| {
                    missing.iter().try_for_each(|(dir, attributes)| writer.directory(dir, *attributes))
                };
                self.keep(key, write).await?
            }
        };
        self.top(dish, step, stored);
        Ok(())
    }

    pub(super) async fn run(&mut self, dish: &mut Dish, step: &Step) -> Result<(), String> {
        let (args, script) = command(dish, step);
        let mut program = Program {
            layers: dish.directories(self.images),
            args,
            env: self.environment(dish),
            cwd: dish.config.working_dir.clone(),
            user: dish.config.user.clone(),
            network: !self.recipe.no_network,
            mounts: Vec::new(),
        };
        if program.layers.is_empty() {
            return Err("there is nothing to run in an empty image: FROM one, or COPY first".to_owned());
        }
        for (flag, value) in &step.flags {
            let value = value.as_deref().unwrap_or_default();
            match (flag.as_str(), value) {
                ("network", "none") => program.network = false,
                ("network", "default" | "host") => {}
                ("network", other) => {
                    return Err(format!("--network={other} is not served: none, default or host"));
                }
                _ => program.mounts.push(self.mount(dish, value)?),
            }
        }
        let text = script.clone().unwrap_or_default();
        let given = format!(
            "{:?}{:?}{}{}{}{:?}",
            program.args, program.env, program.cwd, program.user, program.network, step.flags
        );
        let key = self.key(dish, &["RUN".to_owned(), given, text]);
        if let Some(stored) = self.cached(&key) {
            self.top(dish, step, stored);
            return Ok(());
        }
        let _script = match script {
            Some(text) => Some(self.script_file(&text, &mut program)?),
            None => None,
        };
        let leave_out = stubs(&program, &dish.view(self.images));
        let tell = self.tell;
        let ran = self.runner.run(program, &|bytes| tell(News::Output(bytes.to_vec()))).await?;
        if ran.code != 0 {
            return Err(format!("{} ended with exit code {}", step.told(), ran.code));
        }
        let changes = ran.changes.clone();
        let stored = self.keep(key, move |writer| write_changes(writer, &changes, &leave_out)).await?;
        drop(ran);
        self.top(dish, step, stored);
        Ok(())
    }

    fn script_file(&self, text: &str, program: &mut Program) -> Result<tempfile::NamedTempFile, String> {
        let file = self.images.shelf.disk.scratch().map_err(|error| chain(&error))?;
        std::fs::write(file.path(), text)
            .and_then(|()| std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o755)))
            .map_err(|error| format!("write the step's script: {error}"))?;
        let source = Some(file.path().to_owned());
        program.mounts.push(Bind { source, target: SCRIPT.to_owned(), read_only: true });
        Ok(file)
    }

    fn mount(&self, dish: &Dish, value: &str) -> Result<Bind, String> {
        let mut pairs = self.flag_pairs(dish, value)?;
        let mut take = |names: &[&str]| names.iter().find_map(|name| pairs.remove(*name));
        let kind = take(&["type"]).unwrap_or_else(|| "bind".to_owned());
        let target = take(&["target", "dst", "destination"]);
        let id = take(&["id"]);
        let source = take(&["source", "src"]);
        let read_only = take(&["readonly", "ro"]).is_some_and(|value| value != "false");
        let required = take(&["required"]).is_some_and(|value| value != "false");
        let _writes = take(&["rw", "readwrite", "sharing"]);
        if let Some(other) = pairs.keys().next() {
            return Err(format!("--mount=type={kind} with {other} is not served"));
        }
        let needs_target = || format!("--mount=type={kind} needs a target");
        match kind.as_str() {
            "tmpfs" => Ok(Bind { source: None, target: target.ok_or_else(needs_target)?, read_only: false }),
            "bind" => {
                let inside = copy::plain(Path::new(&source.unwrap_or_default()));
                let source = Some(self.recipe.context.join(inside));
                Ok(Bind { source, target: target.ok_or_else(needs_target)?, read_only: true })
            }
            "cache" => {
                let target = target.ok_or_else(needs_target)?;
                let id = cache::key([id.as_deref().unwrap_or(&target)]);
                let dir = self.images.shelf.disk.dir().join("mounts").join(&id[..16]);
                std::fs::create_dir_all(&dir)
                    .map_err(|error| format!("create {}: {error}", dir.display()))?;
                Ok(Bind { source: Some(dir), target, read_only })
            }
            "secret" => {
                let id = id.ok_or("--mount=type=secret needs an id")?;
                let target = target.unwrap_or_else(|| format!("/run/secrets/{id}"));
                match self.recipe.secrets.get(&id) {
                    Some(file) => Ok(Bind { source: Some(file.clone()), target, read_only: true }),
                    None if required => Err(format!("secret {id:?} was not given: --secret {id}=FILE")),
                    // As documented: a secret that is not required may be missing; nothing is there then.
                    None => Ok(Bind {
                        source: None,
                        target: format!("/dev/holdfast-no-secret-{}", &cache::key([id.as_str()])[..8]),
                        read_only: true,
                    }),
                }
            }
            other => Err(format!("--mount=type={other} is not served: bind, cache, secret and tmpfs are")),
        }
    }
}

/// What a `RUN` starts; a document with an interpreter of its own comes as a file.
fn command(dish: &Dish, step: &Step) -> (Vec<String>, Option<String>) {
    if let Some(list) = step.list() {
        return (list, None);
    }
    let text = step.rest.trim();
    if let ([document], true) = (step.documents.as_slice(), announced(text).is_some()) {
        if document.text.starts_with("#!") {
            return (vec![SCRIPT.to_owned()], Some(document.text.clone()));
        }
        return ([shell(&dish.config), vec![document.text.clone()]].concat(), None);
    }
    let mut whole = text.to_owned();
    for document in &step.documents {
        whole.push_str(&format!("\n{}{}\n", document.text, document.name));
    }
    ([shell(&dish.config), vec![whole]].concat(), None)
}

/// Paths that only the run itself made, where the image has nothing.
fn stubs(program: &Program, view: &View) -> Vec<PathBuf> {
    let missing = |path: &Path| view.find(path).is_ok_and(|(_, node)| node.is_none());
    let mut out: Vec<PathBuf> = OWN[..3].iter().map(PathBuf::from).collect();
    out.extend(OWN[3..].iter().map(PathBuf::from).filter(|path| missing(path)));
    for mount in &program.mounts {
        let target = copy::plain(Path::new(&mount.target));
        // The topmost directory that had to be made for it.
        let made = target.ancestors().filter(|path| !path.as_os_str().is_empty() && missing(path)).last();
        out.extend(made.map(Path::to_owned));
    }
    out
}

/// Makes a written layer a blob and a directory of the shelf.
fn shelve(shelf: &Arc<Shelf>, writer: LayerWriter, epoch: Option<i64>) -> Result<Stored, crate::Error> {
    let (file, digest, size) = writer.finish()?;
    let _pin = shelf.pin(vec![digest.clone()]);
    if !shelf.disk.has_blob(&digest) {
        shelf.disk.keep_blob(file, &digest)?;
    }
    if !shelf.disk.has_layer(&digest) {
        let dir = shelf.disk.scratch_dir()?;
        unpack(&digest, shelf.disk.open_blob(&digest)?, dir.path(), &shelf.config)?;
        shelf.disk.keep_layer(dir, &digest)?;
    }
    let blob = Descriptor {
        media_type: OCI_LAYER.into(),
        digest: digest.to_string(),
        size,
        ..Descriptor::default()
    };
    let created = epoch.unwrap_or_else(|| jiff::Timestamp::now().as_second());
    Ok(Stored { blob, diff_id: digest.to_string(), created })
}

/// A path from where the work is.
fn absolute(base: &str, path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", base.trim_end_matches('/')) }
}

/// `user`, `user:group`, numbers or names of the image.
fn owner(text: &str, image: &View) -> Result<(u32, u32), String> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let row = |file: &str, name: &str| -> Option<Vec<String>> {
        let text = image.text(file);
        let mut rows = text.lines().map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>());
        rows.find(|row| row.first().is_some_and(|first| first == name))
    };
    let number = |row: &Vec<String>, at: usize| row.get(at).and_then(|text| text.parse::<u32>().ok());
    let user_row = row("/etc/passwd", user);
    let uid = match (&user_row, user.parse()) {
        (Some(row), _) => number(row, 2),
        (None, Ok(uid)) => Some(uid),
        (None, Err(_)) => None,
    };
    let uid = uid.ok_or_else(|| format!("--chown={text}: the image's /etc/passwd has no user {user:?}"))?;
    if group.is_empty() {
        // As Docker: a number alone is the group as well.
        return Ok((uid, user_row.and_then(|row| number(&row, 3)).unwrap_or(uid)));
    }
    let gid = row("/etc/group", group).and_then(|row| number(&row, 2)).or_else(|| group.parse().ok());
    gid.map(|gid| (uid, gid))
        .ok_or_else(|| format!("--chown={text}: the image's /etc/group has no group {group:?}"))
}
