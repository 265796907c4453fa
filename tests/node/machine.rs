//! What a node leaves on a machine, looked at from outside: processes, cgroups, links, routes, mounts, packet tables.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::node::{Node, ok, until};

/// All processes.
pub(crate) fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).collect()
}

/// A file of a process; empty when it is gone.
pub(crate) fn proc_file(pid: i32, file: &str) -> String {
    fs::read(format!("/proc/{pid}/{file}"))
        .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// A process' state and start time: together with its pid what identifies it for ever.
pub(crate) fn birth(pid: i32) -> Option<String> {
    let stat = proc_file(pid, "stat");
    let rest: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if rest.first() == Some(&"Z") { None } else { rest.get(19).map(|start| format!("{pid}@{start}")) }
}

/// The processes in the cgroups of a pod.
pub(crate) fn processes_of(uid: &str) -> Vec<i32> {
    let mut found = pids();
    found.retain(|pid| birth(*pid).is_some() && proc_file(*pid, "cgroup").contains(uid));
    found
}

/// The processes of a pod's containers, shim excluded, each with its birth.
pub(crate) fn containers_of(uid: &str) -> BTreeSet<String> {
    let mut found = processes_of(uid);
    found.retain(|pid| !is_shim(*pid));
    found.into_iter().filter_map(birth).collect()
}

/// Whether a process is the parent of a pod.
pub(crate) fn is_shim(pid: i32) -> bool {
    proc_file(pid, "comm").trim().starts_with("holdfast-shim")
}

/// The shims of a node.
pub(crate) fn shims(node: &Node) -> Vec<i32> {
    let data = node.data().display().to_string();
    let mut found = pids();
    found.retain(|pid| birth(*pid).is_some() && is_shim(*pid) && proc_file(*pid, "cmdline").contains(&data));
    found
}

/// The four characters in the names of everything an instance makes, read from its pods' cgroups.
pub(crate) fn instance(node: &Node) -> String {
    let found = until("a process of the node is in a cgroup of its own", 20, || {
        let all: Vec<i32> = shims(node);
        let inside = all.iter().flat_map(|pid| children(*pid)).chain(all.iter().copied());
        let groups = inside.map(|pid| proc_file(pid, "cgroup")).collect::<String>();
        let place = groups.find("/holdfast-").ok_or_else(|| format!("shims {all:?} in {groups:?}"))?;
        let name = &groups[place + "/holdfast-".len()..];
        Ok(name.chars().take_while(char::is_ascii_alphanumeric).collect::<String>())
    });
    assert_eq!(found.len(), 4, "an instance's name has four characters: {found}");
    found
}

/// The direct children of a process.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let text = proc_file(pid, &format!("task/{pid}/children"));
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Everything on the machine that carries the instance's name or lies in or leads to its data directory.
pub(crate) fn traces(instance: &str, data: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let data = data.display().to_string();
    for pid in pids() {
        let command = proc_file(pid, "cmdline").replace('\0', " ");
        let ours =
            proc_file(pid, "cgroup").contains(&format!("holdfast-{instance}")) || command.contains(&data);
        if ours && birth(pid).is_some() {
            found.insert(format!("process {pid} {command}"));
        }
    }
    groups(Path::new("/sys/fs/cgroup"), 2, &mut |path| {
        if path.display().to_string().contains(&format!("holdfast-{instance}")) {
            found.insert(format!("cgroup {}", path.display()));
        }
    });
    let prefix = format!("hf{instance}");
    for line in ok("ip", &["-o", "link"]).lines().filter(|line| line.contains(&prefix)) {
        found.insert(format!("link {line}"));
    }
    let routes = ok("ip", &["route", "show", "table", "all"]);
    // A link's own address comes a second later, when the kernel has found that nobody else has it; it goes with the link.
    for line in routes.lines().filter(|line| line.contains(&prefix) && !line.starts_with("local fe80:")) {
        found.insert(format!("route {line}"));
    }
    for line in
        fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(&data))
    {
        found.insert(format!("mount {line}"));
    }
    for line in ok("nft", &["list", "tables"]).lines().filter(|line| line.contains(instance)) {
        found.insert(format!("packet {line}"));
    }
    // What instances tell each other of ranges and of settings that are to be put back.
    for entry in fs::read_dir("/run/holdfast").into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if text.contains(instance) {
            found.insert(format!("claim in {}", entry.path().display()));
        }
    }
    for line in fs::read_to_string("/proc/net/unix").unwrap().lines().filter(|line| line.contains(&data)) {
        found.insert(format!("socket {line}"));
    }
    found
}

fn groups(dir: &Path, depth: usize, tell: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            tell(&path);
            if depth > 1 {
                groups(&path, depth - 1, tell);
            }
        }
    }
}

/// The files of a directory, each with its size and the time of its last change.
pub(crate) fn files(dir: &Path) -> BTreeSet<(PathBuf, u64, std::time::SystemTime)> {
    let mut found = BTreeSet::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            if metadata.is_dir() {
                open.push(entry.path());
            } else {
                found.insert((entry.path(), metadata.len(), metadata.modified().unwrap()));
            }
        }
    }
    found
}
