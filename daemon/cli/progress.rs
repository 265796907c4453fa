//! How far a pull, push or build is: bars where a person watches, plain lines where a program does.
//!
//! Invariant: everything goes to standard error, so that standard output is what was asked for.

use std::io::{IsTerminal, Write};

use serde_json::Value;

use super::image::bytes;
use super::ink::plain;
use super::status::{list, text};

const BAR: u64 = 24;

/// Hears news and shows them.
pub(crate) struct Progress {
    is_watched: bool,
    is_quiet: bool,
    /// Lines of bars on the screen now.
    drawn: usize,
}

impl Progress {
    /// With JSON wanted, only a person at a terminal is told anything.
    pub(crate) fn new(as_json: bool) -> Progress {
        let is_watched = std::io::stderr().is_terminal();
        Progress { is_watched, is_quiet: as_json && !is_watched, drawn: 0 }
    }

    /// Shows one piece of news.
    pub(crate) fn hear(&mut self, news: &Value) {
        if self.is_quiet {
            return;
        }
        if news.get("progress").is_some() {
            if self.is_watched {
                let bars: Vec<String> = list(&news["progress"]).map(bar).collect();
                self.draw(&bars);
            }
            return;
        }
        self.draw(&[]);
        if let Some(step) = news.get("step") {
            eprintln!("[{}/{}] {}", step["number"], step["of"], plain(&text(&step["text"])));
        } else if let Some(output) = news["output"].as_str() {
            // Line by line, for a program of an image must not act on this terminal.
            for line in output.split_inclusive('\n') {
                eprint!(
                    "{}{}",
                    plain(line.trim_end_matches('\n')),
                    if line.ends_with('\n') { "\n" } else { "" }
                );
            }
        } else if news.get("cached").is_some() {
            eprintln!("      done before");
        } else if let Some(warning) = news["warning"].as_str() {
            eprintln!("warning: {}", plain(warning));
        }
    }

    /// Takes the bars away.
    pub(crate) fn end(&mut self) {
        self.draw(&[]);
    }

    fn draw(&mut self, bars: &[String]) {
        if self.drawn == 0 && bars.is_empty() {
            return;
        }
        let mut screen = String::new();
        if self.drawn > 0 {
            screen.push_str(&format!("\u{1b}[{}A\u{1b}[J", self.drawn));
        }
        bars.iter().for_each(|bar| screen.push_str(&format!("{bar}\n")));
        self.drawn = bars.len();
        // A terminal that went away is told by the next thing that is printed.
        let _ = std::io::stderr().write_all(screen.as_bytes());
    }
}

fn bar(progress: &Value) -> String {
    let (done, total) = (progress["done"].as_u64().unwrap_or(0), progress["total"].as_u64().unwrap_or(0));
    let name = plain(&text(&progress["reference"]));
    if total == 0 {
        return format!("  {name}  asking its registry");
    }
    let filled = usize::try_from(done.min(total) * BAR / total).unwrap_or(0);
    let bar: String = (0..BAR as usize).map(|at| if at < filled { '━' } else { '─' }).collect();
    format!("  {name}  {bar}  {} of {}", bytes(done), bytes(total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_bar_is_as_long_as_what_is_done() {
        let half = bar(&json!({"reference": "a:1", "done": 512, "total": 1024}));
        assert_eq!(half.matches('━').count(), 12);
        assert!(half.ends_with("512 B of 1.0 KiB"), "{half}");
        assert!(bar(&json!({"reference": "a:1", "done": 0, "total": 0})).ends_with("asking its registry"));
    }
}
