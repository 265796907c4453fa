//! The disk of one machine: one fjall keyspace in one directory.
//!
//! Memory already holds the present, so fjall's own caches are as small as they get: it is a journal that cleans up
//! after itself, read once at the start.
//!
//! Invariant: after a failed write the database is dropped and opened again before the next one. fjall refuses to go
//! on after such an error, and its journal may end in half a group, which opening cuts off.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{BufMut, Bytes, BytesMut};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::{
    Durability, Revision,
    disk::{Disk, Fault, Group, Stored},
};

const CACHE_BYTES: u64 = 256 << 10;
const MEMTABLE_BYTES: u64 = 4 << 20;
/// The least that fjall allows.
const JOURNAL_BYTES: u64 = 64 << 20;
const OPEN_FILES: usize = 32;

/// First byte of a key in fjall: what the rest is.
const META: u8 = 0;
const OBJECT: u8 = 1;
/// First byte of every value: the form of the rest, so that a later form can be told from this one.
const FORM: u8 = 1;
const HEADER_BYTES: usize = 17;
const CEILING: &[u8] = &[META, b'c'];

/// Bytes in a directory of their own, readable by the owner only: Secrets are among them.
pub struct FjallDisk {
    dir: PathBuf,
    /// None after a failed write.
    open: Option<Open>,
}

struct Open {
    // Dropped before the database, which waits for nobody but its own threads.
    keyspace: Keyspace,
    database: Database,
}

impl FjallDisk {
    /// Opens the directory, making it when it does not exist (its parent must).
    ///
    /// # Errors
    /// A fault when it cannot be made, is in use by another process, or holds something else.
    pub fn open(dir: &Path) -> Result<FjallDisk, Fault> {
        Ok(FjallDisk { dir: dir.into(), open: Some(Open::new(dir)?) })
    }

    /// The open database, opened again after a failure.
    fn opened(&mut self) -> Result<&Open, Fault> {
        let open = match self.open.take() {
            Some(open) => open,
            None => Open::new(&self.dir)?,
        };
        Ok(self.open.insert(open))
    }
}

impl Disk for FjallDisk {
    fn load(&mut self, each: &mut dyn FnMut(Arc<str>, Stored)) -> Result<Revision, Fault> {
        let dir = self.dir.clone();
        let fault = |source| Fault { attempted: format!("read the store in {}", dir.display()), source };
        let open = self.opened()?;
        for item in open.keyspace.prefix([OBJECT]) {
            let (key, value) = item.into_inner().map_err(|error| fault(source_of(error)))?;
            let (key, stored) = decode(&key, &value).map_err(|error| fault(Arc::new(error)))?;
            each(key, stored);
        }
        let ceiling = open.keyspace.get(CEILING).map_err(|error| fault(source_of(error)))?;
        ceiling.map_or(Ok(0), |bytes| revision(&bytes)).map_err(|error| fault(Arc::new(error)))
    }

    fn append(&mut self, group: &Group, durability: Durability) -> Result<(), Fault> {
        let outcome = match self.opened()?.write(group, durability) {
            // It fell ill in the background, since the last write; nothing of this group was written.
            Err(fjall::Error::Poisoned) => {
                self.open = None;
                self.opened()?.write(group, durability)
            }
            outcome => outcome,
        };
        outcome.map_err(|error| {
            self.open = None;
            let attempted = format!(
                "write {} changes to {} (is there space left on that disk?)",
                group.records.len(),
                self.dir.display()
            );
            Fault { attempted, source: source_of(error) }
        })
    }

    fn place(&self) -> String {
        self.dir.display().to_string()
    }
}

impl Open {
    fn new(dir: &Path) -> Result<Open, Fault> {
        make_dir(dir).map_err(|error| Fault::new(format!("make the directory {}", dir.display()), error))?;
        let fault = |error| match error {
            fjall::Error::Locked => Fault {
                attempted: format!(
                    "open the store in {} (another process uses it: stop that one, or take another data directory)",
                    dir.display()
                ),
                source: Arc::new(error),
            },
            error => {
                Fault { attempted: format!("open the store in {}", dir.display()), source: source_of(error) }
            }
        };
        let database = Database::builder(dir)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .max_cached_files(Some(OPEN_FILES))
            .worker_threads(1)
            .open()
            .map_err(fault)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let keyspace = database.keyspace("store", options).map_err(fault)?;
        Ok(Open { keyspace, database })
    }

    fn write(&self, group: &Group, durability: Durability) -> Result<(), fjall::Error> {
        let mode = match durability {
            Durability::Synced => PersistMode::SyncData,
            Durability::Journalled => PersistMode::Buffer,
        };
        if group.records.is_empty() && group.ceiling.is_none() {
            return self.database.persist(mode);
        }
        let mut batch = self.database.batch().durability(Some(mode));
        for record in &group.records {
            let key = [&[OBJECT], record.key.as_bytes()].concat();
            match &record.stored {
                Some(stored) => batch.insert(&self.keyspace, key, encode(stored).as_ref()),
                None => batch.remove(&self.keyspace, key),
            }
        }
        if let Some(ceiling) = group.ceiling {
            batch.insert(&self.keyspace, CEILING, ceiling.to_be_bytes());
        }
        batch.commit()
    }
}

/// Makes the directory and its entry in the parent durable: fjall does so only for what is inside.
fn make_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        outcome => outcome?,
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// The I/O error itself where there is one: fjall's own text is its debug form.
fn source_of(error: fjall::Error) -> Arc<dyn std::error::Error + Send + Sync> {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => Arc::new(error),
        error => Arc::new(error),
    }
}

fn encode(stored: &Stored) -> Bytes {
    let mut value = BytesMut::with_capacity(HEADER_BYTES + stored.value.len());
    value.put_u8(FORM);
    value.put_u64(stored.created);
    value.put_u64(stored.modified);
    value.put_slice(&stored.value);
    value.freeze()
}

fn decode(key: &[u8], value: &[u8]) -> io::Result<(Arc<str>, Stored)> {
    let text = key.get(1..).and_then(|rest| std::str::from_utf8(rest).ok());
    let text = text.ok_or_else(|| damaged(format!("the key {key:?} is not text")))?;
    match value.split_at_checked(HEADER_BYTES) {
        Some((header, rest)) if header[0] == FORM => {
            let stored = Stored {
                value: Bytes::copy_from_slice(rest),
                created: revision(&header[1..9])?,
                modified: revision(&header[9..17])?,
            };
            Ok((Arc::from(text), stored))
        }
        _ => Err(damaged(format!("{text} was not written by this version"))),
    }
}

fn revision(bytes: &[u8]) -> io::Result<Revision> {
    let bytes = bytes.try_into().map_err(|_| damaged(format!("{bytes:?} is not a revision")))?;
    Ok(Revision::from_be_bytes(bytes))
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
