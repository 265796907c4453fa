//! What this machine has: processors, memory, its kernel.

use std::fs;

use k8s_openapi::api::core::v1::{ContainerUser, LinuxContainerUser};

use crate::pressure::Amount;

/// Thousandths of processors.
pub(crate) fn cpu_milli() -> i64 {
    std::thread::available_parallelism().map_or(1000, |count| i64::try_from(count.get()).unwrap_or(1) * 1000)
}

/// All memory, bytes.
pub(crate) fn memory_bytes() -> i64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib =
        line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<i64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Size of the file system that holds this path, bytes.
pub(crate) fn disk_bytes(path: &std::path::Path) -> i64 {
    nix::sys::statvfs::statvfs(path)
        .map_or(0, |stat| i64::try_from(stat.blocks() * stat.fragment_size()).unwrap_or(i64::MAX))
}

/// A line `Name:   123 kB` of /proc/meminfo, in bytes.
fn meminfo(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Memory, and what of it can be had without swapping.
pub(crate) fn memory() -> Amount {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let all = meminfo(&text, "MemTotal");
    Amount { all, left: meminfo(&text, "MemAvailable").min(all) }
}

/// Process ids, and how many of them are free.
pub(crate) fn pids() -> Amount {
    let number = |path: &str| line(path).parse::<u64>().ok();
    let bounds = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
    let all = bounds.into_iter().flatten().min().unwrap_or(0);
    let load = line("/proc/loadavg");
    let used = load.split_whitespace().nth(3).and_then(|text| text.split_once('/')?.1.parse::<u64>().ok());
    Amount { all, left: all.saturating_sub(used.unwrap_or(0)) }
}

/// Time that all processors together have worked, nanoseconds.
pub(crate) fn cpu_nanos() -> u64 {
    let total = line("/proc/stat");
    let ticks: Vec<u64> = total.split_whitespace().skip(1).filter_map(|text| text.parse().ok()).collect();
    // user, nice, system, then idle and waiting for the disk, then interrupts and what a hypervisor took.
    let busy: u64 =
        ticks.iter().enumerate().filter(|(at, _)| matches!(at, 0..=2 | 5..=7)).map(|(_, ticks)| ticks).sum();
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    let hertz = hertz.and_then(|hertz| u64::try_from(hertz).ok()).unwrap_or(100).max(1);
    busy.saturating_mul(1_000_000_000 / hertz)
}

/// Bytes that a process's network namespace received and sent, loopback left out.
pub(crate) fn traffic(pid: u32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    let rows = text.lines().filter_map(|line| line.split_once(':'));
    let real = rows.filter(|(name, _)| name.trim() != "lo");
    let pairs = real.filter_map(|(_, numbers)| {
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|text| text.parse().ok()).collect();
        Some((*numbers.first()?, *numbers.get(8)?))
    });
    Some(pairs.fold((0, 0), |(received, sent), (more, also)| (received + more, sent + also)))
}

/// First line of a small file of the machine.
pub(crate) fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}

/// The name of the installed system, `Debian GNU/Linux 12 (bookworm)`.
pub(crate) fn os_image() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or_default().trim_matches('"').to_owned()
}

/// As whom a process runs.
pub(crate) fn user_of(pid: u32) -> Option<ContainerUser> {
    user_in(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn user_in(status: &str) -> Option<ContainerUser> {
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let first = |name| line(name)?.split_whitespace().next()?.parse::<i64>().ok();
    let gid = first("Gid:")?;
    let others = line("Groups:")?.split_whitespace().filter_map(|group| group.parse().ok());
    // The first group is told among the others too, as the documentation shows it.
    let mut groups: Vec<i64> = std::iter::once(gid).chain(others).collect();
    groups.sort_unstable();
    groups.dedup();
    let linux = LinuxContainerUser { uid: first("Uid:")?, gid, supplemental_groups: Some(groups) };
    Some(ContainerUser { linux: Some(linux) })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    #[test]
    fn user_and_groups_of_a_process_are_those_that_the_kernel_tells() {
        let text = "Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t3000\t3000\t3000\t3000\nGroups:\t4000 5000 \n";
        let linux = user_in(text).unwrap().linux.unwrap();
        assert_eq!(
            (linux.uid, linux.gid, linux.supplemental_groups),
            (1000, 3000, Some(vec![3000, 4000, 5000]))
        );
        assert!(user_in("Name:\tx\n").is_none());
    }
}
