//! A disk that is a map in memory: for tests of the store and of everything above it, with the failures of a real one.
//!
//! Invariant: `after_crash` holds exactly the groups up to the last synced one.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    Durability, Revision,
    disk::{Disk, Fault, Group, Stored},
};

/// The platter: clones are the same one, so a test keeps a clone to reopen it, fill it or look at it.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    platter: Arc<Mutex<Platter>>,
}

/// How the disk fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Failure {
    /// It does not.
    #[default]
    None,
    /// Appends fail and leave nothing.
    Full,
    /// Appends fail after the group was written; only the answer says otherwise.
    LateError,
}

/// How often the disk was asked for what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appends {
    /// Synced appends that succeeded.
    pub synced: u64,
    /// Journalled appends that succeeded.
    pub journalled: u64,
    /// Appends that failed.
    pub failed: u64,
}

#[derive(Default)]
struct Platter {
    written: State,
    durable: State,
    /// Written, but not durable yet.
    unsynced: Vec<Group>,
    failure: Failure,
    appends: Appends,
}

#[derive(Clone, Default)]
struct State {
    keys: BTreeMap<Arc<str>, Stored>,
    ceiling: Revision,
}

impl MemoryDisk {
    /// How appends fail from now on.
    pub fn fail(&self, failure: Failure) {
        self.lock().failure = failure;
    }

    /// The disk as it would be found if the power failed now: without what was not synced.
    pub fn after_crash(&self) -> MemoryDisk {
        let durable = self.lock().durable.clone();
        let platter = Platter { written: durable.clone(), durable, ..Platter::default() };
        MemoryDisk { platter: Arc::new(Mutex::new(platter)) }
    }

    /// What it was asked for so far.
    pub fn appends(&self) -> Appends {
        self.lock().appends
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply(&mut self, group: &Group) {
        for record in &group.records {
            match &record.stored {
                Some(stored) => self.keys.insert(record.key.clone(), stored.clone()),
                None => self.keys.remove(&record.key),
            };
        }
        self.ceiling = group.ceiling.unwrap_or(self.ceiling);
    }
}

impl Disk for MemoryDisk {
    fn load(&mut self, each: &mut dyn FnMut(Arc<str>, Stored)) -> Result<Revision, Fault> {
        let platter = self.lock();
        for (key, stored) in &platter.written.keys {
            each(key.clone(), stored.clone());
        }
        Ok(platter.written.ceiling)
    }

    fn append(&mut self, group: &Group, durability: Durability) -> Result<(), Fault> {
        let mut platter = self.lock();
        let full = || {
            let attempted = format!("write {} changes to the disk in memory", group.records.len());
            Fault::new(attempted, io::Error::from(io::ErrorKind::StorageFull))
        };
        if platter.failure == Failure::Full {
            platter.appends.failed += 1;
            return Err(full());
        }
        platter.written.apply(group);
        platter.unsynced.push(group.clone());
        if platter.failure == Failure::LateError {
            platter.appends.failed += 1;
            return Err(full());
        }
        match durability {
            Durability::Synced => {
                platter.appends.synced += 1;
                for group in std::mem::take(&mut platter.unsynced) {
                    platter.durable.apply(&group);
                }
            }
            Durability::Journalled => platter.appends.journalled += 1,
        }
        Ok(())
    }

    fn place(&self) -> String {
        "memory".into()
    }
}
