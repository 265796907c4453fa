//! Who a program inside a container is: user, groups, home, capabilities.
//!
//! Invariant: names are looked up in the container's own `/etc/passwd` and `/etc/group`, never in the host's.

use std::fs;

use shim::Container;

use crate::child::{Fail, Step};
use crate::{seccomp, sys};

/// A resolved identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Home directory; `/` when the user is not in `/etc/passwd`.
    pub(crate) home: String,
}

/// Kernel names of capabilities, by number.
#[rustfmt::skip]
const CAPABILITIES: [&str; 41] = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
];

/// The container's user, looked up in the root this process is in.
pub(crate) fn resolve(container: &Container) -> Result<Identity, Fail> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    lookup(container, &read("/etc/passwd"), &read("/etc/group")).map_err(|reason| Fail { reason, code: 128 })
}

fn lookup(container: &Container, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, group_name) = container.user.split_once(':').unwrap_or((&container.user, ""));
    let wanted = if user.is_empty() { container.uid.to_string() } else { user.to_owned() };
    let row = rows(passwd)
        .find(|row| row.first() == Some(&wanted.as_str()))
        .or_else(|| rows(passwd).find(|row| row.get(2) == Some(&wanted.as_str())));
    let number = |row: &Vec<&str>, at: usize| row.get(at).and_then(|n| n.parse::<u32>().ok());
    let uid = match (&row, wanted.parse::<u32>()) {
        (Some(row), _) => {
            number(row, 2).ok_or_else(|| format!("user {wanted}: its line in /etc/passwd has no user id"))?
        }
        (None, Ok(uid)) => uid,
        (None, Err(_)) => {
            return Err(format!("unable to find user {wanted}: no matching entries in passwd file"));
        }
    };
    let gid = if group_name.is_empty() {
        // A number alone, as Kubernetes' runAsUser gives it, keeps the group that was told.
        let from_row = row.as_ref().and_then(|row| number(row, 3));
        if user.is_empty() { container.gid } else { from_row.unwrap_or(container.gid) }
    } else if let Some(row) = rows(group).find(|row| row.first() == Some(&group_name)) {
        number(&row, 2)
            .ok_or_else(|| format!("group {group_name}: its line in /etc/group has no group id"))?
    } else {
        let unknown = || format!("unable to find group {group_name}: no matching entries in group file");
        group_name.parse().map_err(|_| unknown())?
    };
    let mut groups = container.groups.clone();
    let named = row.as_ref().and_then(|row| row.first()).filter(|_| !container.strict_groups);
    if let Some(name) = named {
        let member = |row: &Vec<&str>| row.get(3).is_some_and(|list| list.split(',').any(|m| m == *name));
        groups.extend(rows(group).filter(|row| member(row)).filter_map(|row| number(&row, 2)));
    }
    groups.sort_unstable();
    groups.dedup();
    let home = row.and_then(|row| row.get(5).map(|home| (*home).to_owned())).filter(|home| !home.is_empty());
    Ok(Identity { uid, gid, groups, home: home.unwrap_or_else(|| "/".to_owned()) })
}

fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(':').collect())
}

/// Gives up everything the container's program shall not have; the last thing before it starts.
pub(crate) fn take(container: &Container, identity: &Identity) -> Result<(), Fail> {
    let had = rustix::thread::capabilities(None).step(|| "read capabilities".to_owned())?.permitted.bits();
    let wanted = if container.privileged { had } else { capability_set(&container.capabilities)? & had };
    if container.no_new_privileges {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).step(|| "set no_new_privs".to_owned())?;
    }
    if !container.apparmor.is_empty() && !container.privileged {
        confine(&container.apparmor)?;
    }
    // Before the capabilities go, for without no_new_privs the filter needs CAP_SYS_ADMIN.
    if container.seccomp && !container.privileged {
        let filter = match container.filter.is_empty() {
            true => seccomp::filter(wanted),
            false => seccomp::given(&container.filter),
        };
        sys::seccomp(&filter).step(|| "install the seccomp filter".to_owned())?;
    }
    for bit in (0..64).filter(|bit| wanted >> bit & 1 == 0) {
        if sys::prctl(libc::PR_CAPBSET_DROP, bit).is_err() {
            break;
        }
    }
    sys::prctl(libc::PR_SET_KEEPCAPS, 1).step(|| "keep capabilities".to_owned())?;
    let who = || format!("become user {} of group {}", identity.uid, identity.gid);
    sys::become_user(identity.uid, identity.gid, &identity.groups).step(who)?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 0).step(|| "stop keeping capabilities".to_owned())?;
    sys::capset(wanted, wanted, 0).step(|| "set capabilities".to_owned())
}

/// The program that is started next is confined by this AppArmor profile.
fn confine(profile: &str) -> Result<(), Fail> {
    let what = || format!("change to AppArmor profile {profile}");
    let own = "/proc/self/attr/apparmor/exec";
    // Kernels before 5.8 know the older name alone.
    let path = if std::path::Path::new(own).exists() { own } else { "/proc/self/attr/exec" };
    fs::write(path, format!("exec {profile}")).step(what)
}

fn capability_set(names: &[String]) -> Result<u64, Fail> {
    names.iter().try_fold(0, |set, name| {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let bit = CAPABILITIES.iter().position(|known| *known == bare);
        let unknown =
            || Fail { reason: format!("set capabilities: there is no capability {name:?}"), code: 128 };
        bit.map(|bit| set | 1 << bit).ok_or_else(unknown)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "# users\nroot:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:40:root,web\n";

    fn check(user: &str, expected: Result<(u32, u32, &[u32], &str), &str>) {
        let container =
            Container { user: user.to_owned(), uid: 7, gid: 8, groups: vec![99], ..Container::default() };
        let found = lookup(&container, PASSWD, GROUP);
        let expected = expected.map_err(str::to_owned).map(|(uid, gid, groups, home)| Identity {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.to_owned(),
        });
        assert_eq!(found, expected, "user {user:?}");
    }

    #[test]
    fn a_user_is_who_the_images_own_files_say() {
        check("", Ok((7, 8, &[99], "/")));
        check("web", Ok((33, 34, &[40, 99], "/srv")));
        check("33", Ok((33, 34, &[40, 99], "/srv")));
        check("web:logs", Ok((33, 40, &[40, 99], "/srv")));
        check("1000:1001", Ok((1000, 1001, &[99], "/")));
        check("nobody", Err("unable to find user nobody: no matching entries in passwd file"));
        check("web:staff", Err("unable to find group staff: no matching entries in group file"));
    }

    #[test]
    fn capabilities_are_known_by_name_with_or_without_prefix() {
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(capability_set(&names(&["CAP_CHOWN", "net_raw"])).map_err(|f| f.reason), Ok(1 | 1 << 13));
        let refused = capability_set(&names(&["CAP_FLY"])).map_err(|f| f.reason);
        assert_eq!(refused, Err("set capabilities: there is no capability \"CAP_FLY\"".to_owned()));
    }
}
