//! The pages of the program itself, which need not stay resident while nothing happens.
//!
//! Invariant: only pages that are still the file's own are let go; what is needed again is mapped again from the page
//! cache, in microseconds.

use std::fs;

/// The mappings of the running program's code and constants, as they were when this was made.
#[derive(Debug)]
pub struct Code(Vec<(usize, usize)>);

impl Code {
    /// Those of this program. The kernel maps it once for the life of the process, so they stay what they are.
    #[must_use]
    pub fn of_this_program() -> Code {
        let program = fs::read_link("/proc/self/exe").unwrap_or_default();
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        Code(clean_mappings(&smaps, &program.to_string_lossy()))
    }

    /// Takes them out of the process's resident memory.
    #[inline]
    pub fn let_go(&self) {
        for (from, to) in &self.0 {
            // SAFETY: these are read-only pages of the program's file that were never written, so losing the copies
            // loses nothing, and nobody unmaps the program while it runs.
            #[expect(unsafe_code, reason = "there is no safe wrapper for madvise")]
            let _ = unsafe {
                rustix::mm::madvise(
                    *from as *mut std::ffi::c_void,
                    to.saturating_sub(*from),
                    rustix::mm::Advice::LinuxDontNeed,
                )
            };
        }
    }

    /// The same, and waits by a system call: of the program only this function is mapped meanwhile.
    #[inline(never)]
    pub fn let_go_and<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.let_go();
        wait()
    }
}

/// Gives memory that was freed back to the machine: the allocator keeps the peak of a burst of work otherwise.
pub fn trim_heap() {
    // SAFETY: takes the allocator's own locks and touches only what is free; there is nothing to get wrong for the caller.
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "there is no safe wrapper for malloc_trim")]
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Read-only mappings of a file, in the text of `smaps`, of which no page was ever written: a page of relocations that
/// was made read-only later counts as anonymous and must stay.
fn clean_mappings(smaps: &str, file: &str) -> Vec<(usize, usize)> {
    let (mut found, mut last) = (Vec::new(), None);
    for line in smaps.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields.as_slice() {
            [range, rights, _, _, _, path] if range.contains('-') => {
                let ours = *path == file && !rights.contains('w');
                let address = |text| usize::from_str_radix(text, 16).ok();
                let ends = range.split_once('-').and_then(|(from, to)| Some((address(from)?, address(to)?)));
                last = ends.filter(|_| ours);
            }
            [range, _, _, _, _] if range.contains('-') => last = None,
            ["Anonymous:", "0", "kB"] => found.extend(last.take()),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_are_still_the_files_own_are_let_go() {
        let smaps = "\
00400000-00401000 r--p 00000000 fe:00 1 /bin/shim
Rss:                   4 kB
Anonymous:             0 kB
00401000-00500000 r-xp 00001000 fe:00 1 /bin/shim
Anonymous:             0 kB
00550000-00560000 r--p 00150000 fe:00 1 /bin/shim
Anonymous:            40 kB
00560000-00561000 rw-p 00160000 fe:00 1 /bin/shim
Anonymous:             0 kB
00561000-00570000 rw-p 00000000 00:00 0
Anonymous:             0 kB
00600000-00601000 r--p 00000000 fe:00 1 /lib/other
Anonymous:             0 kB
7fff00000000-7fff00001000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
";
        let found = clean_mappings(smaps, "/bin/shim");
        assert_eq!(found, [(0x0040_0000, 0x0040_1000), (0x0040_1000, 0x0050_0000)]);
    }

    #[test]
    fn a_program_runs_on_without_its_pages() {
        let code = Code::of_this_program();
        code.let_go();
        assert!(!code.0.is_empty());
    }
}
