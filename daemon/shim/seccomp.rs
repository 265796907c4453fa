//! The system call filter: what container engines let through by custom, as a binary search over number ranges.
//!
//! Invariant: what is not listed is refused with `EPERM`; `clone3` and what is newer than this list with `ENOSYS`, so
//! that programs fall back to what they knew before. New user namespaces by `clone` are refused without `CAP_SYS_ADMIN`.

use crate::sys::Instruction;

const LOAD: u16 = 0x20;
const RETURN: u16 = 0x06;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const JUMP: u16 = 0x05;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const EPERM: u32 = ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = ERRNO | libc::ENOSYS as u32;

const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENT_0: u32 = 16;

#[cfg(target_arch = "x86_64")]
const THIS_ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const THIS_ARCH: u32 = 0xC000_00B7;

// Calls the libc crate does not name yet.
#[cfg(target_arch = "x86_64")]
const IO_PGETEVENTS: i64 = 333;
#[cfg(target_arch = "aarch64")]
const IO_PGETEVENTS: i64 = 292;
const CACHESTAT: i64 = 451;
const MAP_SHADOW_STACK: i64 = 453;
const FUTEX_WAKE: i64 = 454;
const FUTEX_WAIT: i64 = 455;
const FUTEX_REQUEUE: i64 = 456;

/// `CLONE_NEW*` of user, pid, network, ipc, uts, cgroup and mount namespaces.
const NEW_NAMESPACES: u32 = 0x7E02_0000;

/// The filter for a process that will hold these capabilities (bit set).
pub(crate) fn filter(capabilities: u64) -> Vec<Instruction> {
    let mut allowed: Vec<u32> =
        names(capabilities).map(|number| u32::try_from(number).expect("numbers are small")).collect();
    allowed.sort_unstable();
    allowed.dedup();
    let ranges = ranges(&allowed, ceiling());
    let admin = has(capabilities, 21);
    let mut program = vec![
        load(ARCH),
        jump(JUMP_EQUAL, THIS_ARCH, 1, 0),
        give(ENOSYS),
        load(NUMBER),
        jump(JUMP_EQUAL, number(libc::SYS_clone3), 0, 1),
        give(ENOSYS),
        jump(JUMP_EQUAL, number(libc::SYS_socket), 0, 4),
        // Sockets into the hypervisor are outside every namespace.
        load(ARGUMENT_0),
        jump(JUMP_EQUAL, libc::AF_VSOCK as u32, 0, 1),
        give(EPERM),
        give(ALLOW),
    ];
    if !admin {
        program.extend([
            jump(JUMP_EQUAL, number(libc::SYS_clone), 0, 4),
            load(ARGUMENT_0),
            jump(JUMP_ANY_BIT, NEW_NAMESPACES, 0, 1),
            give(EPERM),
            give(ALLOW),
        ]);
    }
    search(&ranges, &mut program);
    program
}

/// A filter that came ready made.
pub(crate) fn given(numbers: &[u64]) -> Vec<Instruction> {
    let part = |number: u64, shift: u32| number >> shift;
    let instruction = |number: &u64| Instruction {
        code: part(*number, 48) as u16,
        jt: part(*number, 40) as u8,
        jf: part(*number, 32) as u8,
        k: *number as u32,
    };
    numbers.iter().map(instruction).collect()
}

/// A range starts at its number and reaches to the next one's.
fn ranges(allowed: &[u32], ceiling: u32) -> Vec<(u32, u32)> {
    let mut ranges = vec![(0, EPERM)];
    for number in allowed {
        match ranges.last_mut() {
            Some(last) if last.0 == *number => last.1 = ALLOW,
            _ => ranges.push((*number, ALLOW)),
        }
        ranges.push((number + 1, EPERM));
    }
    ranges.retain(|(start, _)| *start <= ceiling);
    ranges.push((ceiling + 1, ENOSYS));
    ranges.dedup_by(|next, previous| next.1 == previous.1);
    ranges
}

/// Binary search; the distances between halves can exceed a conditional jump's 255, hence the plain jump.
fn search(ranges: &[(u32, u32)], program: &mut Vec<Instruction>) {
    if let [(_, action)] = ranges {
        return program.push(give(*action));
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let mut lower = Vec::new();
    search(low, &mut lower);
    program.push(jump(JUMP_AT_LEAST, high[0].0, 0, 1));
    program.push(jump(JUMP, u32::try_from(lower.len()).expect("programs are short"), 0, 0));
    program.extend(lower);
    search(high, program);
}

const fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jt: 0, jf: 0, k: offset }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

const fn give(action: u32) -> Instruction {
    Instruction { code: RETURN, jt: 0, jf: 0, k: action }
}

fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).expect("numbers are small")
}

fn has(capabilities: u64, bit: u32) -> bool {
    capabilities >> bit & 1 == 1
}

/// The newest call this list knows of; what came later answers `ENOSYS`.
fn ceiling() -> u32 {
    SINCE_5_1.iter().copied().max().and_then(|n| u32::try_from(n).ok()).unwrap_or_default()
}

fn names(capabilities: u64) -> impl Iterator<Item = i64> {
    let extra = BY_CAPABILITY
        .iter()
        .filter(move |(bit, _)| has(capabilities, *bit))
        .flat_map(|(_, calls)| calls.iter());
    COMMON.iter().chain(LEGACY).chain(SINCE_5_1).chain(extra).copied()
}

/// Calls that a capability opens, by the capability's number.
#[rustfmt::skip]
const BY_CAPABILITY: &[(u32, &[i64])] = &[
    (2, &[libc::SYS_open_by_handle_at]),
    (14, &[libc::SYS_pidfd_getfd]),
    (16, &[libc::SYS_delete_module, libc::SYS_init_module, libc::SYS_finit_module]),
    (18, &[libc::SYS_chroot]),
    (19, &[libc::SYS_kcmp, libc::SYS_pidfd_getfd, libc::SYS_process_madvise, libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev, libc::SYS_ptrace]),
    (20, &[libc::SYS_acct]),
    (21, &[libc::SYS_bpf, libc::SYS_clone, libc::SYS_fanotify_init, libc::SYS_fsconfig, libc::SYS_fsmount,
        libc::SYS_fsopen, libc::SYS_fspick, libc::SYS_lookup_dcookie, libc::SYS_mount, libc::SYS_mount_setattr,
        libc::SYS_move_mount, libc::SYS_open_tree, libc::SYS_perf_event_open, libc::SYS_quotactl,
        libc::SYS_quotactl_fd, libc::SYS_setdomainname, libc::SYS_sethostname, libc::SYS_setns, libc::SYS_syslog,
        libc::SYS_umount2, libc::SYS_unshare]),
    (22, &[libc::SYS_reboot]),
    (23, &[libc::SYS_get_mempolicy, libc::SYS_mbind, libc::SYS_set_mempolicy]),
    (25, &[libc::SYS_settimeofday, libc::SYS_clock_settime]),
    (26, &[libc::SYS_vhangup]),
    (34, &[libc::SYS_syslog]),
    (38, &[libc::SYS_perf_event_open]),
    (39, &[libc::SYS_bpf]),
];

/// Calls numbered alike everywhere since Linux 5.1.
#[rustfmt::skip]
const SINCE_5_1: &[i64] = &[
    libc::SYS_pidfd_send_signal, libc::SYS_pidfd_open, libc::SYS_close_range, libc::SYS_openat2, libc::SYS_faccessat2,
    libc::SYS_epoll_pwait2, libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self, libc::SYS_memfd_secret, libc::SYS_process_mrelease, libc::SYS_futex_waitv,
    libc::SYS_set_mempolicy_home_node, CACHESTAT, libc::SYS_fchmodat2, MAP_SHADOW_STACK,
    FUTEX_WAKE, FUTEX_WAIT, FUTEX_REQUEUE,
];

#[cfg(target_arch = "aarch64")]
const LEGACY: &[i64] = &[];

/// Calls that only the older architectures have.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const LEGACY: &[i64] = &[
    libc::SYS_access, libc::SYS_alarm, libc::SYS_arch_prctl, libc::SYS_chmod, libc::SYS_chown, libc::SYS_creat,
    libc::SYS_dup2, libc::SYS_epoll_create, libc::SYS_epoll_ctl_old, libc::SYS_epoll_wait, libc::SYS_epoll_wait_old,
    libc::SYS_eventfd, libc::SYS_fork, libc::SYS_futimesat, libc::SYS_getdents, libc::SYS_getpgrp, libc::SYS_get_thread_area,
    libc::SYS_inotify_init, libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_lchown, libc::SYS_link, libc::SYS_lstat,
    libc::SYS_mkdir, libc::SYS_mknod, libc::SYS_modify_ldt, libc::SYS_open, libc::SYS_pause, libc::SYS_pipe,
    libc::SYS_poll, libc::SYS_readlink, libc::SYS_rename, libc::SYS_rmdir, libc::SYS_select, libc::SYS_set_thread_area,
    libc::SYS_signalfd, libc::SYS_stat, libc::SYS_symlink, libc::SYS_time, libc::SYS_unlink, libc::SYS_utime,
    libc::SYS_utimes, libc::SYS_vfork,
];

#[rustfmt::skip]
const COMMON: &[i64] = &[
    libc::SYS_accept, libc::SYS_accept4, libc::SYS_adjtimex, libc::SYS_bind, libc::SYS_brk, libc::SYS_capget,
    libc::SYS_capset, libc::SYS_chdir, libc::SYS_clock_adjtime, libc::SYS_clock_getres, libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep, libc::SYS_close, libc::SYS_connect, libc::SYS_copy_file_range, libc::SYS_dup,
    libc::SYS_dup3, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_eventfd2,
    libc::SYS_execve, libc::SYS_execveat, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_faccessat,
    libc::SYS_fadvise64, libc::SYS_fallocate, libc::SYS_fanotify_mark, libc::SYS_fchdir, libc::SYS_fchmod,
    libc::SYS_fchmodat, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_fcntl, libc::SYS_fdatasync,
    libc::SYS_fgetxattr, libc::SYS_flistxattr, libc::SYS_flock, libc::SYS_fremovexattr, libc::SYS_fsetxattr,
    libc::SYS_fstat, libc::SYS_fstatfs, libc::SYS_fsync, libc::SYS_ftruncate, libc::SYS_futex, libc::SYS_getcpu,
    libc::SYS_getcwd, libc::SYS_getdents64, libc::SYS_getegid, libc::SYS_geteuid, libc::SYS_getgid,
    libc::SYS_getgroups, libc::SYS_getitimer, libc::SYS_getpeername, libc::SYS_getpgid, libc::SYS_getpid,
    libc::SYS_getppid, libc::SYS_getpriority, libc::SYS_getrandom, libc::SYS_getresgid, libc::SYS_getresuid,
    libc::SYS_getrlimit, libc::SYS_get_robust_list, libc::SYS_getrusage, libc::SYS_getsid, libc::SYS_getsockname,
    libc::SYS_getsockopt, libc::SYS_gettid, libc::SYS_gettimeofday, libc::SYS_getuid, libc::SYS_getxattr,
    libc::SYS_inotify_add_watch, libc::SYS_inotify_init1, libc::SYS_inotify_rm_watch, libc::SYS_io_cancel,
    libc::SYS_ioctl, libc::SYS_io_destroy, libc::SYS_io_getevents, IO_PGETEVENTS, libc::SYS_ioprio_get,
    libc::SYS_ioprio_set, libc::SYS_io_setup, libc::SYS_io_submit, libc::SYS_kill, libc::SYS_lgetxattr,
    libc::SYS_linkat, libc::SYS_listen, libc::SYS_listxattr, libc::SYS_llistxattr, libc::SYS_lremovexattr,
    libc::SYS_lseek, libc::SYS_lsetxattr, libc::SYS_madvise, libc::SYS_membarrier, libc::SYS_memfd_create,
    libc::SYS_mincore, libc::SYS_mkdirat, libc::SYS_mknodat, libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_mlockall,
    libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_mq_getsetattr, libc::SYS_mq_notify, libc::SYS_mq_open,
    libc::SYS_mq_timedreceive, libc::SYS_mq_timedsend, libc::SYS_mq_unlink, libc::SYS_mremap, libc::SYS_msgctl,
    libc::SYS_msgget, libc::SYS_msgrcv, libc::SYS_msgsnd, libc::SYS_msync, libc::SYS_munlock, libc::SYS_munlockall,
    libc::SYS_munmap, libc::SYS_name_to_handle_at, libc::SYS_nanosleep, libc::SYS_newfstatat, libc::SYS_openat,
    libc::SYS_personality, libc::SYS_pipe2, libc::SYS_pkey_alloc, libc::SYS_pkey_free, libc::SYS_pkey_mprotect,
    libc::SYS_ppoll, libc::SYS_prctl, libc::SYS_pread64, libc::SYS_preadv, libc::SYS_preadv2, libc::SYS_prlimit64,
    libc::SYS_pselect6, libc::SYS_ptrace, libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2, libc::SYS_read,
    libc::SYS_readahead, libc::SYS_readlinkat, libc::SYS_readv, libc::SYS_recvfrom, libc::SYS_recvmmsg,
    libc::SYS_recvmsg, libc::SYS_remap_file_pages, libc::SYS_removexattr, libc::SYS_renameat, libc::SYS_renameat2,
    libc::SYS_restart_syscall, libc::SYS_rseq, libc::SYS_rt_sigaction, libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_sigreturn, libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait, libc::SYS_rt_tgsigqueueinfo, libc::SYS_sched_getaffinity, libc::SYS_sched_getattr,
    libc::SYS_sched_getparam, libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getscheduler, libc::SYS_sched_rr_get_interval, libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr, libc::SYS_sched_setparam, libc::SYS_sched_setscheduler, libc::SYS_sched_yield,
    libc::SYS_seccomp, libc::SYS_semctl, libc::SYS_semget, libc::SYS_semop, libc::SYS_semtimedop, libc::SYS_sendfile,
    libc::SYS_sendmmsg, libc::SYS_sendmsg, libc::SYS_sendto, libc::SYS_setfsgid, libc::SYS_setfsuid,
    libc::SYS_setgid, libc::SYS_setgroups, libc::SYS_setitimer, libc::SYS_setpgid, libc::SYS_setpriority,
    libc::SYS_setregid, libc::SYS_setresgid, libc::SYS_setresuid, libc::SYS_setreuid, libc::SYS_setrlimit,
    libc::SYS_set_robust_list, libc::SYS_setsid, libc::SYS_setsockopt, libc::SYS_set_tid_address, libc::SYS_setuid,
    libc::SYS_setxattr, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_shmdt, libc::SYS_shmget, libc::SYS_shutdown,
    libc::SYS_sigaltstack, libc::SYS_signalfd4, libc::SYS_socketpair, libc::SYS_splice, libc::SYS_statfs,
    libc::SYS_statx, libc::SYS_symlinkat, libc::SYS_sync, libc::SYS_sync_file_range, libc::SYS_syncfs,
    libc::SYS_sysinfo, libc::SYS_tee, libc::SYS_tgkill, libc::SYS_timer_create, libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun, libc::SYS_timer_gettime, libc::SYS_timer_settime, libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime, libc::SYS_timerfd_settime, libc::SYS_times, libc::SYS_tkill, libc::SYS_truncate,
    libc::SYS_umask, libc::SYS_uname, libc::SYS_unlinkat, libc::SYS_utimensat, libc::SYS_vmsplice, libc::SYS_wait4,
    libc::SYS_waitid, libc::SYS_write, libc::SYS_writev, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev,
    libc::SYS_kcmp, libc::SYS_process_madvise,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would, for one call.
    fn verdict(program: &[Instruction], arch: u32, call: i64, argument: u32) -> u32 {
        let (mut at, mut register) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            let taken = match step.code {
                LOAD => {
                    register = match step.k {
                        ARCH => arch,
                        NUMBER => u32::try_from(call).expect("a number"),
                        _ => argument,
                    };
                    continue;
                }
                RETURN => return step.k,
                JUMP => {
                    at += step.k as usize;
                    continue;
                }
                JUMP_EQUAL => register == step.k,
                JUMP_AT_LEAST => register >= step.k,
                _ => register & step.k != 0,
            };
            at += usize::from(if taken { step.jt } else { step.jf });
        }
    }

    #[test]
    fn every_call_gets_the_verdict_of_the_list() {
        let program = filter(0);
        let listed: std::collections::BTreeSet<i64> = names(0).collect();
        let special = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_socket];
        for call in (0..700).filter(|call| !special.contains(call)) {
            let expected = match call {
                call if listed.contains(&call) => ALLOW,
                call if call > i64::from(ceiling()) => ENOSYS,
                _ => EPERM,
            };
            assert_eq!(verdict(&program, THIS_ARCH, call, 0), expected, "call {call}");
        }
    }

    #[test]
    fn arguments_decide_where_the_call_alone_does_not() {
        let table: [(u64, u32, i64, u32, u32); 8] = [
            (0, THIS_ARCH, libc::SYS_clone3, 0, ENOSYS),
            (0, THIS_ARCH, libc::SYS_clone, 0x11, ALLOW),
            (0, THIS_ARCH, libc::SYS_clone, 0x1000_0000, EPERM),
            (1 << 21, THIS_ARCH, libc::SYS_clone, 0x1000_0000, ALLOW),
            (0, THIS_ARCH, libc::SYS_socket, 2, ALLOW),
            (0, THIS_ARCH, libc::SYS_socket, libc::AF_VSOCK as u32, EPERM),
            (1 << 21, THIS_ARCH, libc::SYS_unshare, 0, ALLOW),
            (0, 0x4000_0003, libc::SYS_read, 0, ENOSYS),
        ];
        for (capabilities, arch, call, argument, expected) in table {
            assert_eq!(verdict(&filter(capabilities), arch, call, argument), expected, "{call} {argument:x}");
        }
    }

    #[test]
    fn the_filter_is_far_below_the_kernels_4096_instructions() {
        assert!(filter(u64::MAX).len() < 600, "{}", filter(u64::MAX).len());
    }
}
