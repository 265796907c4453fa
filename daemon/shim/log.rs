//! Writes what a container says in the format of the Container Runtime Interface, and rotates the file.
//!
//! A line is `<time> <stream> <F|P> <text>`: F ends a line of the container's, P is a part of one that was longer
//! than 16 KiB or never ended.
//! Invariant: a line is written with one call and rotation happens between lines, so no reader sees half of one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Longest part written as one line, bytes; the same as containerd's.
const LONGEST: usize = 16 * 1024;

/// The log file of one container.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    max_bytes: u64,
    files: u32,
}

/// The unfinished line of one stream.
#[derive(Debug, Default)]
pub(crate) struct Rest(Vec<u8>);

impl Log {
    /// Opens (appending) the file at `path`, with its directory.
    pub(crate) fn open(path: &Path, max_bytes: u64, files: u32) -> io::Result<Log> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut log = Log { path: path.to_owned(), file: None, size: 0, max_bytes, files };
        log.reopen()?;
        Ok(log)
    }

    /// Writes the whole lines in `rest` + `data`; what is unfinished stays in `rest`.
    pub(crate) fn write(&mut self, stream: &str, rest: &mut Rest, data: &[u8], now: i64) {
        let time = rfc3339(now);
        let mut out = Vec::new();
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            rest.0.extend_from_slice(text);
            while rest.0.len() > LONGEST || (rest.0.len() == LONGEST && !ended) {
                let after = rest.0.split_off(LONGEST);
                line(&mut out, &time, stream, 'P', &std::mem::replace(&mut rest.0, after));
            }
            if ended {
                line(&mut out, &time, stream, 'F', &std::mem::take(&mut rest.0));
            }
        }
        self.append(&out);
    }

    /// Writes an unfinished line as what it is: a part.
    pub(crate) fn finish(&mut self, stream: &str, rest: &mut Rest, now: i64) {
        if !rest.0.is_empty() {
            let mut out = Vec::new();
            line(&mut out, &rfc3339(now), stream, 'P', &std::mem::take(&mut rest.0));
            self.append(&out);
        }
    }

    /// A full disk loses lines, never the container: there is nobody here to tell but the file itself.
    fn append(&mut self, lines: &[u8]) {
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            if self.size > 0 && self.size + line.len() as u64 > self.max_bytes {
                self.rotate();
            }
            let written = self.file.as_mut().is_some_and(|file| file.write_all(line).is_ok());
            self.size += if written { line.len() as u64 } else { 0 };
        }
    }

    fn rotate(&mut self) {
        let numbered = |n: u32| {
            let mut name = self.path.as_os_str().to_owned();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        let last = self.files.saturating_sub(1);
        if last == 0 {
            let _ = fs::remove_file(&self.path);
        } else {
            for n in (1..last).rev() {
                let _ = fs::rename(numbered(n), numbered(n + 1));
            }
            let _ = fs::rename(&self.path, numbered(1));
        }
        let _ = self.reopen();
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }
}

fn line(out: &mut Vec<u8>, time: &str, stream: &str, tag: char, text: &[u8]) {
    out.extend_from_slice(format!("{time} {stream} {tag} ").as_bytes());
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Nanoseconds since 1970 as `2026-11-24T02:47:49.123456789Z`.
fn rfc3339(nanos: i64) -> String {
    const DAY: i64 = 86_400;
    let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (days, rest) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    // Days to a date of the proleptic Gregorian calendar, counted in eras of 400 years that start on 1 March.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        let table = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_795_488_469_500_000_000, "2026-11-24T02:47:49.500000000Z"),
            (4_102_444_799_999_999_999, "2099-12-31T23:59:59.999999999Z"),
        ];
        for (nanos, expected) in table {
            assert_eq!(rfc3339(nanos), expected);
        }
    }

    fn check(pieces: &[&[u8]], expected: &[(char, usize)]) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut log = Log::open(&path, 1 << 20, 2).expect("a log");
        let mut rest = Rest::default();
        for piece in pieces {
            log.write("stdout", &mut rest, piece, 0);
        }
        log.finish("stdout", &mut rest, 0);
        let text = fs::read_to_string(&path).expect("the log");
        let found: Vec<(char, usize)> = text
            .lines()
            .map(|line| {
                let mut fields = line.splitn(4, ' ');
                let tag = fields.nth(2).expect("a tag").chars().next().expect("a letter");
                (tag, fields.next().expect("a text").len())
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_line_is_whole_however_it_arrived() {
        check(&[b"one\ntwo\n"], &[('F', 3), ('F', 3)]);
        check(&[b"on", b"e\n"], &[('F', 3)]);
        check(&[b"\n"], &[('F', 0)]);
        check(&[b"never ended"], &[('P', 11)]);
    }

    #[test]
    fn a_long_line_is_written_in_parts_of_16_kib() {
        let long = vec![b'x'; 2 * LONGEST + 5];
        check(&[&long, b"\n"], &[('P', LONGEST), ('P', LONGEST), ('F', 5)]);
        let exact = vec![b'x'; LONGEST];
        check(&[&exact, b"\n"], &[('P', LONGEST), ('F', 0)]);
        let mut whole = vec![b'x'; LONGEST];
        whole.push(b'\n');
        check(&[&whole], &[('F', LONGEST)]);
    }

    #[test]
    fn a_full_file_is_rotated_and_only_so_many_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut log = Log::open(&path, 100, 3).expect("a log");
        for n in 0..10 {
            log.write("stderr", &mut Rest::default(), format!("line {n}\n").as_bytes(), 0);
        }
        let mut names: Vec<String> = fs::read_dir(dir.path())
            .expect("the directory")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("plain names"))
            .collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("a file");
        assert!(read("log").ends_with("line 9\n"));
        assert!(read("log.1").ends_with("line 7\n"), "{}", read("log.1"));
    }
}
