//! What a kubelet has to remember of a pod between rounds, and cannot observe: pulls under way, failed starts, probe
//! results, when it asked containers to stop.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerUser;

use crate::resize::Applied;

/// Notes on all pods, by uid.
#[derive(Debug, Default)]
pub(crate) struct Book(Mutex<BTreeMap<String, Notes>>);

/// Notes on one pod. Losing them costs a back-off or a probe, nothing else.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Notes {
    /// Pulls, by image as the pod spells it.
    pub(crate) pulls: BTreeMap<String, Pull>,
    /// Attempts that did not get as far as a running program, the latest of each container.
    pub(crate) failed_starts: BTreeMap<String, FailedStart>,
    /// What the probes found, by container.
    pub(crate) probes: BTreeMap<String, Probed>,
    /// Containers that are being stopped.
    pub(crate) stops: BTreeMap<String, Stop>,
    /// Containers whose postStart hook runs, with their attempt.
    pub(crate) post_starts: BTreeMap<String, u32>,
    /// How many starts in a row were not followed by a long run, by container: the attempt and the number.
    pub(crate) streaks: BTreeMap<String, (u32, u32)>,
    /// The pod is to end before its time: reason and message of its last status.
    pub(crate) evicted: Option<(String, String)>,
    /// A service account token could not be had: why, and when to ask again.
    pub(crate) token_problem: Option<(String, Timestamp)>,
    /// The resources that a running attempt was given, by container.
    pub(crate) applied: Applied,
    /// The image, as the pod spelled it, and the identity that a running attempt was started with, by container.
    pub(crate) begun: BTreeMap<String, Begun>,
    /// Why a running container could not be given other resources.
    pub(crate) resize_problem: Option<String>,
    /// The volumes or generated files could not be made.
    pub(crate) files_problem: Option<FilesProblem>,
    /// Hash of what the volumes hold now.
    pub(crate) files_hold: Option<u64>,
    /// The status last written, so that an old copy in the cache does not make us write it again.
    pub(crate) written: Option<k8s_openapi::api::core::v1::PodStatus>,
    /// Whether this node took the pod, and if not: reason and message. None: not asked yet.
    pub(crate) admission: Option<Result<(), (String, String)>>,
    /// Whether the sandbox's problem was told already.
    pub(crate) sandbox_problem: Option<String>,
}

/// Why files could not be made, how often that was tried, and when it is tried again.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FilesProblem {
    pub(crate) why: String,
    pub(crate) tries: u32,
    pub(crate) again: Timestamp,
}

/// What an attempt was when it began.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Begun {
    pub(crate) attempt: u32,
    pub(crate) image: String,
    /// Unknown of one that ended before it was looked at.
    pub(crate) user: Option<ContainerUser>,
}

/// A container on its way to its end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stop {
    pub(crate) attempt: u32,
    /// When its grace period began.
    pub(crate) since: Timestamp,
    /// Its preStop hook, if it has one, has ended or has used up the grace period.
    pub(crate) hook_ended: bool,
    /// When its stop signal was sent.
    pub(crate) asked: Option<Timestamp>,
}

/// A pull under way or failed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Pull {
    /// Bytes are coming in.
    Running,
    /// It failed; the next try is not before `again`.
    Failed { message: String, tries: u32, again: Timestamp },
}

/// An attempt whose program could not be started.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FailedStart {
    pub(crate) attempt: u32,
    pub(crate) message: String,
    pub(crate) at: Timestamp,
    /// The exit code that it stands for; none when the runtime failed, not the container.
    pub(crate) code: Option<i32>,
    /// When the runtime failed: the next try is not before.
    pub(crate) again: Timestamp,
    pub(crate) tries: u32,
}

/// What the probes of one attempt of a container found.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Probed {
    pub(crate) attempt: u32,
    /// None: no result yet.
    pub(crate) ready: Option<bool>,
    /// The startup probe has succeeded.
    pub(crate) started: bool,
    /// Liveness or startup failed too often, or the postStart hook failed.
    pub(crate) must_restart: Option<MustRestart>,
}

/// Why one container is to be ended and started again.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MustRestart {
    /// `failed liveness probe`.
    pub(crate) why: String,
    /// The probe's own grace period, where it has one.
    pub(crate) grace_seconds: Option<i64>,
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

    /// What the pod's containers run with.
    pub(crate) fn applied(&self, uid: &str) -> Applied {
        self.lock().get(uid).map(|notes| notes.applied.clone()).unwrap_or_default()
    }

    /// Whether this node took the pod.
    pub(crate) fn has_admitted(&self, uid: &str) -> bool {
        self.lock().get(uid).is_some_and(|notes| notes.admission == Some(Ok(())))
    }

    /// Nothing of the pod is here any more.
    pub(crate) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Notes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
