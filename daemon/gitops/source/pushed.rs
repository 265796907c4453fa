//! Repositories that the node itself holds, for `git push`: bare, below its data directory, one per application.
//!
//! Invariant: what a push brings lies apart until it is accepted; a refused one leaves nothing behind.
//! Invariant: a ref moves only from where the client saw it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use git2::{Oid, Repository, RepositoryInitOptions};

use super::receive::{Command, Fetch};
use super::repository::{GitDir, Mirror, Reading};
use crate::Error;

/// A repository that is pushed into.
#[derive(Debug, Clone)]
pub(crate) struct Pushed {
    pub(crate) dir: PathBuf,
    /// Full name of the ref that is deployed.
    pub(crate) followed: String,
}

/// What a push brought, apart from the repository until it is accepted.
#[derive(Debug)]
pub(crate) struct Incoming {
    dir: PathBuf,
}

impl Pushed {
    /// The repository, made if it is not there.
    pub(crate) fn open(dir: PathBuf, reference: &str) -> Result<Pushed, Error> {
        let followed = match reference {
            "HEAD" => "refs/heads/main".to_owned(),
            full if full.starts_with("refs/") => full.to_owned(),
            branch => format!("refs/heads/{branch}"),
        };
        let pushed = Pushed { dir, followed };
        if !pushed.dir.join("HEAD").is_file() {
            pushed.repository().and_then(|repository| repository.set_head(&pushed.followed)).map_err(
                |source| Error::ReadRepository {
                    what: "a new repository".to_owned(),
                    repository: pushed.shown(),
                    source,
                },
            )?;
        }
        // What a crash left of a push that was never accepted.
        for entry in fs::read_dir(&pushed.dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("incoming-") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(pushed)
    }

    pub(crate) fn shown(&self) -> String {
        self.dir.display().to_string()
    }

    fn repository(&self) -> Result<Repository, git2::Error> {
        let mut options = RepositoryInitOptions::new();
        options.bare(true).mkpath(true).external_template(false);
        Repository::init_opts(&self.dir, &options)
    }

    pub(crate) fn refs(&self) -> Result<BTreeMap<String, String>, Error> {
        let found = GitDir::find(&self.dir)?;
        found.refs().map_err(|source| Error::OpenRepository { repository: self.shown(), source })
    }

    /// A place for what a push brings.
    pub(crate) fn incoming(&self) -> io::Result<Incoming> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = self.dir.join(format!("incoming-{}-{number}", std::process::id()));
        let info = dir.join("objects/info");
        fs::create_dir_all(&info)?;
        let objects = std::path::absolute(self.dir.join("objects"))?;
        fs::write(info.join("alternates"), format!("{}\n", objects.display()))?;
        Ok(Incoming { dir })
    }

    /// How a pushed commit is read before it is accepted.
    pub(crate) fn reading(&self, incoming: Option<&Incoming>, id: &str, path: &str) -> Reading {
        let mut objects = vec![self.dir.join("objects")];
        objects.extend(incoming.map(|incoming| incoming.dir.join("objects")));
        Reading {
            objects,
            id: id.to_owned(),
            path: path.to_owned(),
            repository: self.shown(),
            reference: self.followed.clone(),
            verify: None,
        }
    }

    /// Takes in what a push brought.
    pub(crate) fn accept(&self, incoming: &Incoming) -> io::Result<()> {
        let (from, to) = (incoming.dir.join("objects/pack"), self.dir.join("objects/pack"));
        fs::create_dir_all(&to)?;
        let mut files: Vec<PathBuf> =
            fs::read_dir(&from).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        // An index makes its pack known, so it comes last.
        files.sort_by_key(|path| path.extension().is_some_and(|end| end == "idx"));
        for path in files {
            if let Some(name) = path.file_name() {
                fs::rename(&path, to.join(name))?;
            }
        }
        Ok(())
    }

    /// Moves a ref, if it still is where the client saw it.
    pub(crate) fn update(&self, command: &Command) -> Result<(), String> {
        let repository = self.repository().map_err(|error| error.message().to_owned())?;
        let now = repository.refname_to_id(&command.name).ok().map(|id| id.to_string());
        if now != command.old {
            return Err("it moved meanwhile; fetch and push again".to_owned());
        }
        let failed = |error: git2::Error| error.message().to_owned();
        let Some(new) = &command.new else {
            if command.name == self.followed {
                return Err("the deployed ref is not deleted; push another commit to it".to_owned());
            }
            return repository
                .find_reference(&command.name)
                .and_then(|mut found| found.delete())
                .map_err(failed);
        };
        let id = Oid::from_str(new).map_err(failed)?;
        if command.name.starts_with("refs/heads/") {
            repository.find_commit(id).map_err(|_| "it is not a commit that was pushed whole".to_owned())?;
        }
        let moved = match &now {
            Some(now) => {
                let now = Oid::from_str(now).map_err(failed)?;
                repository.reference_matching(&command.name, id, true, now, "push")
            }
            None => repository.reference(&command.name, id, false, "push"),
        };
        moved.map(|_| ()).map_err(failed)
    }

    /// Whether all history of a commit is there, so that the repository can be cloned again.
    pub(crate) fn is_whole(&self, incoming: Option<&Incoming>, id: &str) -> bool {
        let reading = self.reading(incoming, id, "");
        let walk = || -> Result<bool, git2::Error> {
            let repository = reading.open()?;
            let mut walk = repository.revwalk()?;
            walk.push(repository.find_object(Oid::from_str(id)?, None)?.peel_to_commit()?.id())?;
            for known in self.refs().unwrap_or_default().values() {
                // A tag on a tree, say, hides nothing.
                let _ = Oid::from_str(known).and_then(|known| walk.hide(known));
            }
            for commit in walk {
                repository.find_commit(commit?)?.tree()?;
            }
            Ok(true)
        };
        walk().unwrap_or(false)
    }

    /// Answers a fetch: the negotiation, and the pack in pieces.
    pub(crate) fn serve(
        &self,
        fetch: &Fetch,
        give: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), git2::Error> {
        let repository = self.repository()?;
        let common: Vec<Oid> = fetch
            .have
            .iter()
            .filter_map(|id| Oid::from_str(id).ok())
            .filter(|id| repository.find_commit(*id).is_ok())
            .collect();
        let answer = match common.last() {
            Some(id) => super::packet(&format!("ACK {id}\n")),
            None => super::packet("NAK\n"),
        };
        if !give(&answer) || !fetch.done {
            return Ok(());
        }
        let mut builder = repository.packbuilder()?;
        let mut walk = repository.revwalk()?;
        for want in &fetch.want {
            let id = Oid::from_str(want)?;
            if let Ok(tag) = repository.find_tag(id) {
                builder.insert_object(tag.id(), None)?;
            }
            walk.push(repository.find_object(id, None)?.peel_to_commit()?.id())?;
        }
        for id in common {
            walk.hide(id)?;
        }
        builder.insert_walk(&mut walk)?;
        builder.foreach(|part| if fetch.side_band { give(&super::band(1, part)) } else { give(part) })?;
        if fetch.side_band {
            give(b"0000");
        }
        Ok(())
    }
}

impl Incoming {
    /// The copy that a pack is stored into.
    pub(crate) fn mirror(&self) -> Mirror {
        Mirror { dir: self.dir.clone() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // What is left is removed when the node starts again.
        let _ = fs::remove_dir_all(self.dir());
    }
}
