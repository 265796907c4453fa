//! `/metrics`: Prometheus' text format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use crate::Facts;
use crate::view::View;

/// Clock ticks per second in /proc: Linux shows 100 to programs on every architecture.
const TICKS: f64 = 100.0;

/// This process, as the kernel accounts it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Process {
    pub(crate) resident_bytes: u64,
    pub(crate) cpu_seconds: f64,
}

impl Process {
    /// Reads /proc/self. What cannot be read is not told.
    pub(crate) fn read() -> Option<Process> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        Process::parse(&status, &stat)
    }

    fn parse(status: &str, stat: &str) -> Option<Process> {
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let resident: u64 = resident.split_whitespace().next()?.parse().ok()?;
        // The program's name stands in parentheses and may hold spaces; user and system time are fields 14 and 15.
        let after_name = stat.rsplit_once(')')?.1;
        let mut fields = after_name.split_whitespace().skip(11);
        let user: f64 = fields.next()?.parse().ok()?;
        let system: f64 = fields.next()?.parse().ok()?;
        Some(Process { resident_bytes: resident * 1024, cpu_seconds: (user + system) / TICKS })
    }
}

/// What the last syncs did and how long they took.
fn syncs(page: &mut Exposition, view: &View) {
    page.family("holdfast_application_syncs", "gauge", "Syncs in the history, by how they ended.");
    for app in &view.applications {
        let mut results: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in &app.read.history {
            let word = entry.result.split(':').next().unwrap_or_default();
            *results.entry(if word.is_empty() { "Running" } else { word }).or_default() += 1;
        }
        for (result, syncs) in results {
            let labels = [("application", app.name.as_str()), ("result", result)];
            page.sample("holdfast_application_syncs", &labels, count(syncs));
        }
    }
    page.family("holdfast_application_sync_seconds", "gauge", "How long each part of the last sync took.");
    for app in &view.applications {
        let phases = app.read.history.last().map(|entry| entry.phases.as_slice()).unwrap_or_default();
        for phase in phases.iter().filter(|phase| phase.milliseconds > 0) {
            let labels = [("application", app.name.as_str()), ("phase", phase.name.as_str())];
            page.sample("holdfast_application_sync_seconds", &labels, phase.milliseconds as f64 / 1000.0);
        }
    }
    page.family("holdfast_application_waits", "gauge", "What waits for a person, by application.");
    for app in &view.applications {
        let confirm = app.read.objects.iter().filter(|object| object.confirm).count();
        let approve = usize::from(app.read.sync.waits_for.contains("holdfast approve"));
        for (what, number) in [("confirmation", confirm), ("approval", approve)] {
            let labels = [("application", app.name.as_str()), ("for", what)];
            page.sample("holdfast_application_waits", &labels, count(number));
        }
    }
    page.family("holdfast_application_rolled_back", "gauge", "1 while an earlier revision is held.");
    for app in &view.applications {
        let back = usize::from(app.read.decisions.pinned.is_some());
        page.sample("holdfast_application_rolled_back", &[("application", &app.name)], count(back));
    }
}

/// The document.
pub(crate) fn document(view: &View, node: &Facts, revision: u64, process: Option<Process>) -> String {
    let mut page = Exposition(String::new());
    page.family("holdfast_build_info", "gauge", "The version that runs.");
    page.sample("holdfast_build_info", &[("version", &node.version), ("node", &node.name)], 1.0);
    page.family("holdfast_ready", "gauge", "1 when every application is in sync and healthy.");
    page.sample("holdfast_ready", &[], f64::from(u8::from(view.ready)));
    page.family("holdfast_application_info", "gauge", "Applications by sync state and health.");
    for app in &view.applications {
        let labels = [
            ("application", app.name.as_str()),
            ("sync", &app.read.sync.state),
            ("health", &app.read.health.code),
        ];
        page.sample("holdfast_application_info", &labels, 1.0);
    }
    page.family("holdfast_application_defects", "gauge", "What a person has to mend, by application.");
    for app in &view.applications {
        page.sample(
            "holdfast_application_defects",
            &[("application", &app.name)],
            count(app.read.defects.len()),
        );
    }
    page.family("holdfast_application_objects", "gauge", "Objects by application and health.");
    for app in &view.applications {
        let mut healths: BTreeMap<&str, usize> = BTreeMap::new();
        app.read.objects.iter().for_each(|object| *healths.entry(&object.health.code).or_default() += 1);
        for (health, objects) in healths {
            let labels = [("application", app.name.as_str()), ("health", health)];
            page.sample("holdfast_application_objects", &labels, count(objects));
        }
    }
    syncs(&mut page, view);
    page.family("holdfast_pods", "gauge", "Pods by phase.");
    for (phase, pods) in view.phases() {
        page.sample("holdfast_pods", &[("phase", phase)], count(pods));
    }
    page.family("holdfast_store_revision", "counter", "The newest revision of the store.");
    page.sample("holdfast_store_revision", &[], revision as f64);
    page.family("process_start_time_seconds", "gauge", "Start time since the epoch, in seconds.");
    page.sample("process_start_time_seconds", &[], node.started.as_millisecond() as f64 / 1000.0);
    if let Some(process) = process {
        page.family("process_resident_memory_bytes", "gauge", "Resident memory in bytes.");
        page.sample("process_resident_memory_bytes", &[], process.resident_bytes as f64);
        page.family("process_cpu_seconds_total", "counter", "User and system time in seconds.");
        page.sample("process_cpu_seconds_total", &[], process.cpu_seconds);
    }
    page.0
}

fn count(number: usize) -> f64 {
    number as f64
}

struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a String takes all");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            write!(self.0, "{open}{label}=\"{text}\"").expect("a String takes all");
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        writeln!(self.0, " {value}").expect("a String takes all");
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_spaces_in_its_name_is_read() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 9 0 100 1000 20";
        let read = Process::parse("Name:\tx\nVmRSS:\t   2048 kB\n", stat).unwrap();
        assert_eq!(read, Process { resident_bytes: 2_097_152, cpu_seconds: 4.0 });
        assert!(Process::read().unwrap().resident_bytes > 0);
    }

    #[test]
    fn a_label_cannot_end_its_line() {
        let mut page = Exposition(String::new());
        page.sample("m", &[("a", "x\"} 1\nfake 2\\")], 3.0);
        assert_eq!(page.0, "m{a=\"x\\\"} 1\\nfake 2\\\\\"} 3\n");
    }
}
