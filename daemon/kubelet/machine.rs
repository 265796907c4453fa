//! What this machine has: processors, memory, its kernel.

use std::fs;

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
