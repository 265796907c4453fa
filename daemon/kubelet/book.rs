//! What a kubelet has to remember of a pod between rounds, and cannot observe: pulls under way, failed starts, probe
//! results, when it asked containers to stop.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

/// Notes on all pods, by uid.
#[derive(Debug, Default)]
pub(crate) struct Book(Mutex<BTreeMap<String, Notes>>);

/// Notes on one pod. Losing them costs a back-off or a probe, nothing else.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Notes {
    /// Pulls, by image as the pod spells it.
    pub(crate) pulls: BTreeMap<String, Pull>,
    /// Starts that failed since the last one that worked, by container.
    pub(crate) failed_starts: BTreeMap<String, FailedStart>,
    /// What the probes found, by container.
    pub(crate) probes: BTreeMap<String, Probed>,
    /// When SIGTERM was sent to the containers of a pod that is going.
    pub(crate) asked_to_stop: Option<Timestamp>,
    /// Containers that were told to stop because of a failed liveness or startup probe, with their attempt.
    pub(crate) unhealthy: BTreeMap<String, (u32, Timestamp)>,
    /// The volumes or generated files could not be made: why.
    pub(crate) files_problem: Option<String>,
    /// Hash of what the volumes hold now.
    pub(crate) files_hold: Option<u64>,
    /// The status last written, so that an old copy in the cache does not make us write it again.
    pub(crate) written: Option<k8s_openapi::api::core::v1::PodStatus>,
    /// Whether the sandbox's problem was told already.
    pub(crate) sandbox_problem: Option<String>,
}

/// A pull under way or failed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Pull {
    /// Bytes are coming in.
    Running,
    /// It failed; the next try is not before `again`.
    Failed { message: String, tries: u32, again: Timestamp },
}

/// A container that could not be started.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FailedStart {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) tries: u32,
    pub(crate) again: Timestamp,
}

/// What the probes of one attempt of a container found.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Probed {
    pub(crate) attempt: u32,
    /// None: no result yet.
    pub(crate) ready: Option<bool>,
    /// The startup probe has succeeded.
    pub(crate) started: bool,
    /// Liveness or startup failed too often: the message.
    pub(crate) must_restart: Option<String>,
}

impl Book {
    pub(crate) fn notes(&self, uid: &str) -> Notes {
        self.lock().get(uid).cloned().unwrap_or_default()
    }

    /// Changes the notes; true when they are different now.
    pub(crate) fn write(&self, uid: &str, change: impl FnOnce(&mut Notes)) -> bool {
        let mut book = self.lock();
        let notes = book.entry(uid.to_owned()).or_default();
        let before = notes.clone();
        change(notes);
        *notes != before
    }

    pub(crate) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Notes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
