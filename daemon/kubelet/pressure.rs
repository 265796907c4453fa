//! When the machine runs short, and which pod goes then: pure.

use jiff::{SignedDuration, Timestamp};

use crate::Config;

/// A condition stays this long after the last time it was seen, so that it does not flap, as documented.
const STAYS: SignedDuration = SignedDuration::from_mins(5);
/// Pods of this priority and above are the system's own and stay.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What the machine can run short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Signal {
    Memory,
    Disk,
    Inodes,
    Pids,
}

impl Signal {
    /// As events name it.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Signal::Memory => "memory",
            Signal::Disk => "ephemeral-storage",
            Signal::Inodes => "inodes",
            Signal::Pids => "pids",
        }
    }

    pub(crate) fn condition(self) -> Condition {
        match self {
            Signal::Memory => Condition::Memory,
            Signal::Disk | Signal::Inodes => Condition::Disk,
            Signal::Pids => Condition::Pid,
        }
    }
}

/// A condition of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Condition {
    Memory,
    Disk,
    Pid,
}

impl Condition {
    pub(crate) const ALL: [Condition; 3] = [Condition::Memory, Condition::Disk, Condition::Pid];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Condition::Memory => "MemoryPressure",
            Condition::Disk => "DiskPressure",
            Condition::Pid => "PIDPressure",
        }
    }

    /// What keeps new pods away while it holds.
    pub(crate) fn taint(self) -> &'static str {
        match self {
            Condition::Memory => "node.kubernetes.io/memory-pressure",
            Condition::Disk => "node.kubernetes.io/disk-pressure",
            Condition::Pid => "node.kubernetes.io/pid-pressure",
        }
    }

    /// Reason and message of the condition.
    pub(crate) fn words(self, holds: bool) -> (&'static str, &'static str) {
        match (self, holds) {
            (Condition::Memory, true) => {
                ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
            }
            (Condition::Memory, false) => {
                ("KubeletHasSufficientMemory", "kubelet has sufficient memory available")
            }
            (Condition::Disk, true) => ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            (Condition::Disk, false) => ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            (Condition::Pid, true) => ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            (Condition::Pid, false) => ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        }
    }
}

/// What there is of something, and how much of it is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) all: u64,
    pub(crate) left: u64,
}

impl Amount {
    /// Bytes of the file system that holds this path.
    pub(crate) fn of_disk(path: &std::path::Path) -> Amount {
        nix::sys::statvfs::statvfs(path).map_or_else(
            |_| Amount::default(),
            |stat| Amount {
                all: stat.blocks() * stat.fragment_size(),
                left: stat.blocks_available() * stat.fragment_size(),
            },
        )
    }
}

/// The machine at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) memory: Amount,
    pub(crate) disk: Amount,
    pub(crate) inodes: Amount,
    pub(crate) pids: Amount,
}

/// Something is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Short {
    pub(crate) signal: Signal,
    pub(crate) least: u64,
    pub(crate) left: u64,
}

/// What is short, in the order in which it is acted on: memory before all else.
pub(crate) fn short(sample: &Sample, config: &Config) -> Vec<Short> {
    let percent = |amount: Amount, percent: u8| amount.all / 100 * u64::from(percent);
    let bounds = [
        (Signal::Memory, sample.memory, config.eviction_memory_mib << 20),
        (Signal::Disk, sample.disk, config.eviction_disk_mib << 20),
        (Signal::Inodes, sample.inodes, percent(sample.inodes, config.eviction_inodes_percent)),
        (Signal::Pids, sample.pids, percent(sample.pids, config.eviction_pids_percent)),
    ];
    // What the machine cannot tell of (some file systems have no inodes to count) is never short.
    let known = bounds.into_iter().filter(|(_, amount, _)| amount.all > 0);
    known
        .filter(|(_, amount, least)| amount.left < *least)
        .map(|(signal, amount, least)| Short { signal, least, left: amount.left })
        .collect()
}

/// Whether a condition holds, given when it was last seen.
pub(crate) fn holds(seen: Option<Timestamp>, now: Timestamp) -> bool {
    seen.is_some_and(|seen| now.duration_since(seen) < STAYS)
}

/// A pod that could go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) uid: String,
    pub(crate) priority: i32,
    /// Of what is short.
    pub(crate) used: u64,
    pub(crate) asked: u64,
}

/// Who goes: those above their requests first, then by priority, then by how far they are above, as documented.
pub(crate) fn victim(candidates: &[Candidate]) -> Option<&Candidate> {
    let order = |candidate: &Candidate| {
        let within = candidate.used <= candidate.asked;
        let above = candidate.used.saturating_sub(candidate.asked);
        (within, candidate.priority, std::cmp::Reverse(above), candidate.uid.clone())
    };
    let ordinary = candidates.iter().filter(|candidate| candidate.priority < CRITICAL_PRIORITY);
    ordinary.min_by_key(|candidate| order(candidate))
}

/// `100Mi`, `12345`: as quantities are told.
pub(crate) fn quantity(signal: Signal, amount: u64) -> String {
    match signal {
        Signal::Memory | Signal::Disk if amount.is_multiple_of(1 << 20) => format!("{}Mi", amount >> 20),
        Signal::Memory | Signal::Disk => format!("{}Ki", amount >> 10),
        Signal::Inodes | Signal::Pids => amount.to_string(),
    }
}

/// The message of the evicted pod's status.
pub(crate) fn message(short: &Short, used: u64, asked: u64) -> String {
    let resource = short.signal.resource();
    let told = |amount| quantity(short.signal, amount);
    let mut message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        told(short.least),
        told(short.left)
    );
    if used > asked {
        message.push_str(&format!(
            "Pod was using {}, request is {}, has larger consumption of {resource}. ",
            told(used),
            told(asked)
        ));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(uid: &str, priority: i32, used: u64, asked: u64) -> Candidate {
        Candidate { uid: uid.to_owned(), priority, used, asked }
    }

    #[test]
    fn who_uses_more_than_it_asked_for_goes_first() {
        let check = |candidates: &[Candidate], wanted: Option<&str>| {
            assert_eq!(victim(candidates).map(|candidate| candidate.uid.as_str()), wanted);
        };
        let (modest, greedy) = (candidate("modest", 0, 50, 60), candidate("greedy", 100, 70, 60));
        check(&[modest.clone(), greedy.clone()], Some("greedy"));
        check(&[candidate("low", 1, 70, 60), greedy.clone()], Some("low"));
        check(&[candidate("more", 100, 90, 60), greedy], Some("more"));
        check(&[candidate("system", CRITICAL_PRIORITY, 90, 0), modest], Some("modest"));
        check(&[candidate("system", CRITICAL_PRIORITY, 90, 0)], None);
    }

    #[test]
    fn what_is_below_its_bound_is_short() {
        let plenty = Amount { all: 1 << 40, left: 1 << 39 };
        let mut sample = Sample { memory: plenty, disk: plenty, inodes: plenty, pids: plenty };
        let config = Config::default();
        assert_eq!(short(&sample, &config), []);
        sample.memory.left = 50 << 20;
        sample.inodes = Amount::default();
        let least = 100 << 20;
        let found = short(&sample, &config);
        assert_eq!(found, [Short { signal: Signal::Memory, least, left: 50 << 20 }]);
        let told = message(&found[0], 30 << 20, 0);
        assert!(told.starts_with(
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. "
        ));
        assert!(told.contains("Pod was using 30Mi, request is 0Mi"), "{told}");
    }

    #[test]
    fn a_condition_stays_a_while() {
        let now: Timestamp = "2026-11-25T12:00:00Z".parse().expect("a time");
        assert!(!holds(None, now));
        assert!(holds(Some(now - SignedDuration::from_secs(299)), now));
        assert!(!holds(Some(now - SignedDuration::from_secs(300)), now));
    }
}
