//! One cgroup driver for the three layouts there are: all v1, all v2, or a v2 tree beside v1 controllers.
//!
//! Invariant: a controller is used where the kernel has it; one that is nowhere is left out (the daemon says so).
//! Invariant: a v1 group is entered by writing `0` to `tasks` of oneself, a v2 group by being born in it: writing another
//! pid, or to `cgroup.procs`, waits for RCU (7 ms and more).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The controllers whose limits are set here.
pub const LIMITS: [&str; 3] = ["cpu", "memory", "pids"];
/// v1 controllers with a group per container; `cpuacct` and `devices` have files of their own only on v1.
const WANTED: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "devices"];

/// Bounds; `None` means unbounded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Relative weight, as v1's `cpu.shares`.
    pub cpu_shares: Option<u64>,
    /// Microseconds per period.
    pub cpu_quota_us: Option<u64>,
    /// The period, microseconds.
    pub cpu_period_us: Option<u64>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// Which devices a group may use (v1's devices controller; elsewhere `nodev` mounts stand alone).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// As the parent.
    Inherited,
    /// The standard pseudo devices and terminals.
    Standard,
}

/// The cgroup trees of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Layout {
    /// v1 trees with a wanted controller, in the order they are mounted.
    pub v1: Vec<V1>,
    /// The v2 tree.
    pub v2: Option<V2>,
}

/// One v1 tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct V1 {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The wanted controllers it carries.
    pub controllers: Vec<String>,
}

/// The v2 tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct V2 {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Those of [`LIMITS`] it carries.
    pub controllers: Vec<String>,
}

/// What a group uses; 0 where no controller counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Nanoseconds of CPU.
    pub cpu_nanos: u64,
    /// Bytes charged.
    pub memory_bytes: u64,
    /// The same without inactive file pages.
    pub working_set_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// The trees in `/proc/self/mountinfo`, given the text of the v2 root's `cgroup.controllers` (empty without v2).
#[must_use]
pub fn layout(mountinfo: &str, unified_controllers: impl Fn(&Path) -> String) -> Layout {
    let mut layout = Layout::default();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(mount) = left.split(' ').nth(4).map(unescape) else { continue };
        let mut right = right.split(' ');
        match (right.next(), right.nth(1)) {
            (Some("cgroup2"), _) if layout.v2.is_none() => {
                let text = unified_controllers(&mount);
                let has = |name: &&&str| text.split_whitespace().any(|c| c == **name);
                let controllers = LIMITS.iter().filter(has).map(|c| (*c).to_owned()).collect();
                layout.v2 = Some(V2 { mount, controllers });
            }
            (Some("cgroup"), Some(options)) => {
                let taken = |c: &str| layout.v1.iter().any(|t| t.controllers.iter().any(|have| have == c));
                let controllers: Vec<String> = options
                    .split(',')
                    .filter(|option| WANTED.contains(option) && !taken(option))
                    .map(str::to_owned)
                    .collect();
                if !controllers.is_empty() {
                    layout.v1.push(V1 { mount, controllers });
                }
            }
            _ => {}
        }
    }
    // v2 counts CPU time in every group by itself; a v1 tree only for that would be a group more per container.
    if layout.v2.is_some() {
        layout.v1.retain(|tree| tree.controllers != ["cpuacct"]);
    }
    layout
}

/// The layout of the machine this runs on.
///
/// # Errors
/// When `/proc/self/mountinfo` cannot be read.
pub fn detect() -> io::Result<Layout> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(layout(&mountinfo, |mount| fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default()))
}

impl Layout {
    /// Those of [`LIMITS`] no tree carries.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let on_v2 = |name: &str| self.v2.iter().any(|t| t.controllers.iter().any(|c| c == name));
        LIMITS.into_iter().filter(|name| self.tree(name).is_none() && !on_v2(name)).collect()
    }

    /// Creates the group in every tree and writes its bounds; there already is success.
    ///
    /// # Errors
    /// The file that could not be made or written.
    pub fn create(&self, group: &str, bounds: &Resources, devices: Devices) -> io::Result<()> {
        for tree in &self.v1 {
            make(&tree.mount.join(group))?;
        }
        if let Some(tree) = &self.v2 {
            make(&tree.mount.join(group))?;
        }
        self.write_v1(group, bounds, devices)?;
        self.write_v2(group, bounds)
    }

    /// On v2, lets the groups beneath this one have the controllers. Nothing to do on v1.
    ///
    /// # Errors
    /// The kernel's refusal, e.g. because a process sits in the group itself.
    pub fn delegate(&self, group: &str) -> io::Result<()> {
        let Some(tree) = self.v2.as_ref().filter(|tree| !tree.controllers.is_empty()) else { return Ok(()) };
        let wish = tree.controllers.iter().map(|c| format!("+{c}")).collect::<Vec<_>>().join(" ");
        write(&tree.mount.join(group).join("cgroup.subtree_control"), &wish)
    }

    /// Moves the calling (single-threaded) process into the v1 groups.
    ///
    /// # Errors
    /// The `tasks` file that refused.
    pub fn enter_v1(&self, group: &str) -> io::Result<()> {
        self.v1.iter().try_for_each(|tree| write(&tree.mount.join(group).join("tasks"), "0"))
    }

    /// The v2 group's directory.
    #[must_use]
    pub fn unified(&self, group: &str) -> Option<PathBuf> {
        self.v2.as_ref().map(|tree| tree.mount.join(group))
    }

    /// How many processes of this very group the kernel killed for want of memory.
    #[must_use]
    pub fn oom_kills(&self, group: &str) -> u64 {
        let file = match (self.tree("memory"), &self.v2) {
            (Some(tree), _) => tree.mount.join(group).join("memory.oom_control"),
            (None, Some(tree)) => tree.mount.join(group).join("memory.events"),
            (None, None) => return 0,
        };
        field(&fs::read_to_string(file).unwrap_or_default(), "oom_kill")
    }

    /// Every process in the group and beneath it, in any tree.
    #[must_use]
    pub fn pids(&self, group: &str) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for mount in self.mounts() {
            walk(&mount.join(group), &mut |dir| {
                let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
            });
        }
        found
    }

    /// Kills every process in the group and beneath it. What is forked meanwhile dies too where the kernel does it (v2).
    pub fn kill(&self, group: &str) {
        let at_once = self.unified(group).is_some_and(|dir| write(&dir.join("cgroup.kill"), "1").is_ok());
        if !at_once {
            for pid in self.pids(group).into_iter().filter_map(rustix::process::Pid::from_raw) {
                // Gone already is as good.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    /// Changes the bounds of a group that is there; those that are `None` are lifted.
    ///
    /// # Errors
    /// The file that could not be written, e.g. because more memory is in use than the new bound allows.
    pub fn update(&self, group: &str, bounds: &Resources) -> io::Result<()> {
        let at = |controller: &str| self.tree(controller).map(|tree| tree.mount.join(group));
        if let Some(dir) = at("cpu") {
            write(&dir.join("cpu.shares"), &bounds.cpu_shares.unwrap_or(2).max(2).to_string())?;
            write(&dir.join("cpu.cfs_period_us"), &period(bounds).to_string())?;
            let quota = bounds.cpu_quota_us.map_or("-1".to_owned(), |quota| quota.to_string());
            write(&dir.join("cpu.cfs_quota_us"), &quota)?;
        }
        if let Some(dir) = at("memory") {
            let bytes = bounds.memory_bytes.map_or("-1".to_owned(), |bytes| bytes.to_string());
            let limit = || write(&dir.join("memory.limit_in_bytes"), &bytes);
            // The sum with swap may never be below: which of the two goes first depends on the direction.
            let first = limit();
            let _ = write(&dir.join("memory.memsw.limit_in_bytes"), &bytes);
            first.or_else(|_| limit())?;
        }
        let Some(tree) = &self.v2 else { return Ok(()) };
        let (dir, has) =
            (tree.mount.join(group), |name: &str| tree.controllers.iter().any(|have| have == name));
        if has("cpu") {
            write(&dir.join("cpu.weight"), &weight(bounds.cpu_shares.unwrap_or(2)).to_string())?;
            let quota = bounds.cpu_quota_us.map_or("max".to_owned(), |quota| quota.to_string());
            write(&dir.join("cpu.max"), &format!("{quota} {}", period(bounds)))?;
        }
        if has("memory") {
            let bytes = bounds.memory_bytes.map_or("max".to_owned(), |bytes| bytes.to_string());
            write(&dir.join("memory.max"), &bytes)?;
        }
        Ok(())
    }

    /// Removes the group and all beneath it from every tree; gone already is success.
    ///
    /// # Errors
    /// The first directory that would not go (`EBUSY` while a process is in it); the others are tried all the same.
    pub fn remove(&self, group: &str) -> io::Result<()> {
        let mut outcome = Ok(());
        for mount in self.mounts() {
            walk(&mount.join(group), &mut |dir| match fs::remove_dir(dir) {
                Err(error) if error.kind() != ErrorKind::NotFound && outcome.is_ok() => {
                    outcome = Err(named("remove cgroup", dir, &error));
                }
                _ => {}
            });
        }
        outcome
    }

    /// What the group uses now.
    #[must_use]
    pub fn usage(&self, group: &str) -> Amount {
        let mut amount = Amount::default();
        let read =
            |mount: &Path, file: &str| fs::read_to_string(mount.join(group).join(file)).unwrap_or_default();
        let number = |text: String| text.trim().parse::<u64>().unwrap_or(0);
        if let Some(tree) = &self.v2 {
            amount.cpu_nanos = field(&read(&tree.mount, "cpu.stat"), "usage_usec").saturating_mul(1000);
            amount.memory_bytes = number(read(&tree.mount, "memory.current"));
            let inactive = field(&read(&tree.mount, "memory.stat"), "inactive_file");
            amount.working_set_bytes = amount.memory_bytes.saturating_sub(inactive);
            amount.pids = number(read(&tree.mount, "pids.current"));
        } else if let Some(tree) = self.tree("cpuacct") {
            amount.cpu_nanos = number(read(&tree.mount, "cpuacct.usage"));
        }
        if let Some(tree) = self.tree("memory") {
            amount.memory_bytes = number(read(&tree.mount, "memory.usage_in_bytes"));
            let inactive = field(&read(&tree.mount, "memory.stat"), "total_inactive_file");
            amount.working_set_bytes = amount.memory_bytes.saturating_sub(inactive);
        }
        if let Some(tree) = self.tree("pids") {
            amount.pids = number(read(&tree.mount, "pids.current"));
        }
        amount
    }

    fn tree(&self, controller: &str) -> Option<&V1> {
        self.v1.iter().find(|tree| tree.controllers.iter().any(|have| have == controller))
    }

    fn mounts(&self) -> impl Iterator<Item = &PathBuf> {
        self.v1.iter().map(|tree| &tree.mount).chain(self.v2.iter().map(|tree| &tree.mount))
    }

    fn write_v1(&self, group: &str, bounds: &Resources, devices: Devices) -> io::Result<()> {
        let at = |controller: &str| self.tree(controller).map(|tree| tree.mount.join(group));
        if let Some(dir) = at("cpu") {
            if let Some(shares) = bounds.cpu_shares {
                write(&dir.join("cpu.shares"), &shares.max(2).to_string())?;
            }
            if let Some(quota) = bounds.cpu_quota_us {
                write(&dir.join("cpu.cfs_period_us"), &period(bounds).to_string())?;
                write(&dir.join("cpu.cfs_quota_us"), &quota.to_string())?;
            }
        }
        if let (Some(dir), Some(bytes)) = (at("memory"), bounds.memory_bytes) {
            write(&dir.join("memory.limit_in_bytes"), &bytes.to_string())?;
            // There only with swap accounting; without swap the line above says it all.
            let _ = write(&dir.join("memory.memsw.limit_in_bytes"), &bytes.to_string());
        }
        if let (Some(dir), Some(pids)) = (at("pids"), bounds.pids) {
            write(&dir.join("pids.max"), &pids.to_string())?;
        }
        if let (Some(dir), Devices::Standard) = (at("devices"), devices) {
            write(&dir.join("devices.deny"), "a")?;
            for rule in DEVICE_RULES {
                write(&dir.join("devices.allow"), rule)?;
            }
        }
        Ok(())
    }

    fn write_v2(&self, group: &str, bounds: &Resources) -> io::Result<()> {
        let Some(tree) = &self.v2 else { return Ok(()) };
        let dir = tree.mount.join(group);
        let has = |name: &str| tree.controllers.iter().any(|have| have == name);
        if let (true, Some(shares)) = (has("cpu"), bounds.cpu_shares) {
            write(&dir.join("cpu.weight"), &weight(shares).to_string())?;
        }
        if let (true, Some(quota)) = (has("cpu"), bounds.cpu_quota_us) {
            write(&dir.join("cpu.max"), &format!("{quota} {}", period(bounds)))?;
        }
        if let (true, Some(bytes)) = (has("memory"), bounds.memory_bytes) {
            write(&dir.join("memory.max"), &bytes.to_string())?;
            // Absent without swap; and as the kubelet does, a container that runs out dies as a whole.
            let _ = write(&dir.join("memory.swap.max"), "0");
            let _ = write(&dir.join("memory.oom.group"), "1");
        }
        if let (true, Some(pids)) = (has("pids"), bounds.pids) {
            write(&dir.join("pids.max"), &pids.to_string())?;
        }
        Ok(())
    }
}

/// What a container may touch: making nodes of any kind, but using only null, zero, full, random, urandom, tty and ptys.
const DEVICE_RULES: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

fn period(bounds: &Resources) -> u64 {
    bounds.cpu_period_us.unwrap_or(100_000)
}

/// v1's shares (2..262144) as v2's weight (1..10000), the conversion that the OCI runtimes agreed on.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// The number after `name ` at the start of a line; 0 when there is none.
fn field(text: &str, name: &str) -> u64 {
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(key, _)| *key == name).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(named("create cgroup", dir, &error)),
        _ => Ok(()),
    }
}

fn write(file: &Path, value: &str) -> io::Result<()> {
    let open = fs::OpenOptions::new().write(true).open(file);
    let written = open.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.map_err(|error| named(&format!("write {value:?} to"), file, &error))
}

fn named(step: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{step} {}: {error}", path.display()))
}

/// Visits the directories beneath `dir`, deepest first, and `dir` last.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
    visit(dir);
}

/// mountinfo writes space, tab, newline and backslash as octal.
fn unescape(field: &str) -> PathBuf {
    let text = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(text.iter().fold(field.to_owned(), |all, (code, plain)| all.replace(code, plain)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const PURE_V1: &str = "\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:10 master:1 - cgroup cgroup rw,memory
";
    const PURE_V2: &str = "30 23 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn check(
        mountinfo: &str,
        controllers: &str,
        v1: &[(&str, &[&str])],
        v2: Option<(&str, &[&str])>,
        missing: &[&str],
    ) {
        let found = layout(mountinfo, |_| controllers.to_owned());
        let owned = |list: &[&str]| list.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let v1 = v1.iter().map(|(m, c)| V1 { mount: PathBuf::from(m), controllers: owned(c) }).collect();
        let v2 = v2.map(|(m, c)| V2 { mount: PathBuf::from(m), controllers: owned(c) });
        assert_eq!(found, Layout { v1, v2 });
        assert_eq!(found.missing(), missing);
    }

    #[test]
    fn in_the_mixed_layout_controllers_are_v1_and_cpu_time_is_v2() {
        let dir = "/sys/fs/cgroup/";
        let v1: Vec<(String, [&str; 1])> =
            ["cpu", "memory", "devices", "pids"].map(|c| (format!("{dir}{c}"), [c])).into_iter().collect();
        let v1: Vec<(&str, &[&str])> = v1.iter().map(|(m, c)| (m.as_str(), c.as_slice())).collect();
        check(MIXED, "", &v1, Some(("/sys/fs/cgroup/unified", &[])), &[]);
    }

    #[test]
    fn a_machine_with_v1_only_uses_joined_trees_and_names_what_is_missing() {
        let v1: &[(&str, &[&str])] =
            &[("/sys/fs/cgroup/cpu,cpuacct", &["cpu", "cpuacct"]), ("/sys/fs/cgroup/memory", &["memory"])];
        check(PURE_V1, "", v1, None, &["pids"]);
    }

    #[test]
    fn a_machine_with_v2_only_uses_the_controllers_its_root_offers() {
        let all = ("/sys/fs/cgroup", ["cpu", "memory", "pids"].as_slice());
        check(PURE_V2, "cpuset cpu io memory hugetlb pids\n", &[], Some(all), &[]);
        check(PURE_V2, "cpu\n", &[], Some(("/sys/fs/cgroup", &["cpu"])), &["memory", "pids"]);
        check("", "", &[], None, &["cpu", "memory", "pids"]);
    }

    #[test]
    fn shares_become_weights_as_the_oci_runtimes_convert_them() {
        let pairs = [(2, 1), (1024, 39), (262_144, 10_000), (0, 1), (1_000_000, 10_000)];
        for (shares, expected) in pairs {
            assert_eq!(weight(shares), expected, "{shares} shares");
        }
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(field(text, "oom_kill"), 3);
        assert_eq!(field(text, "oom"), 0);
    }
}
