//! Figures of the whole node on this machine, as a table or (`--json`) as JSON: not a test, nothing passes or fails.
//!
//! Each figure is the median of several runs. Where a peer is installed it does the same work in the same run.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends the run")]

use std::time::Duration;

use serde_json::{Map, Value, json};

mod api;
mod applications;
mod build;
mod crowd;
mod idle;
#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../node/image.rs"]
mod image;
#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../node/node.rs"]
mod node;
mod pace;
mod peers;
mod pods;
mod start;
mod wire;

/// One line of the table.
struct Figure {
    name: String,
    unit: &'static str,
    /// Each run's.
    runs: Vec<f64>,
    /// What is aimed at, if anything is.
    aim: Option<f64>,
    /// A peer's name and figure.
    peer: Option<(String, f64)>,
}

impl Figure {
    fn new(name: impl Into<String>, unit: &'static str, runs: Vec<f64>) -> Figure {
        Figure { name: name.into(), unit, runs, aim: None, peer: None }
    }

    fn aim(mut self, aim: f64) -> Figure {
        self.aim = Some(aim);
        self
    }

    fn peer(mut self, peer: Option<(String, f64)>) -> Figure {
        self.peer = peer;
        self
    }

    fn value(&self) -> f64 {
        median(&self.runs)
    }
}

/// A name on the command line, and what it measures.
type Group = (&'static str, fn() -> Vec<Figure>);

/// The middle one; of an even number the lower.
fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

fn main() {
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let json = words.iter().any(|word| word == "--json");
    let wanted = words.iter().find(|word| !word.starts_with("--"));
    let groups: [Group; 8] = [
        ("start", start::measure),
        ("build", build::measure),
        ("pods", pods::measure),
        ("pace", pace::measure),
        ("idle", idle::measure),
        ("api", api::measure),
        ("crowd", crowd::measure),
        ("applications", applications::measure),
    ];
    let names: Vec<&str> = groups.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = wanted.filter(|wanted| !names.contains(&wanted.as_str())) {
        eprintln!("there is no group {unknown}; there are {}", names.join(", "));
        std::process::exit(2);
    }
    let mut figures = Vec::new();
    for (name, measure) in groups {
        if wanted.is_none_or(|wanted| wanted == name) {
            eprintln!("measuring {name} …");
            figures.extend(measure());
        }
    }
    if json {
        println!("{:#}", as_json(&figures));
    } else {
        print_table(&figures);
    }
}

fn as_json(figures: &[Figure]) -> Value {
    let rows = figures.iter().map(|figure| {
        let mut row = json!({"value": figure.value(), "unit": figure.unit, "runs": figure.runs});
        if let Some(aim) = figure.aim {
            row["aim"] = aim.into();
        }
        if let Some((peer, value)) = &figure.peer {
            row["peer"] = json!({"name": peer, "value": value, "ratio": value / figure.value()});
        }
        (figure.name.clone(), row)
    });
    Value::Object(rows.collect::<Map<String, Value>>())
}

fn print_table(figures: &[Figure]) {
    println!(
        "{:<38} {:>12} {:<6} {:>9}  {:<32} {:>10} {:>7}",
        "figure", "median", "", "aim", "peer", "its median", "ratio"
    );
    for figure in figures {
        let aim = figure.aim.map_or_else(String::new, |aim| format!("{aim:.1}"));
        let (peer, theirs, ratio) = figure.peer.as_ref().map_or_else(Default::default, |(peer, value)| {
            (peer.clone(), format!("{value:.1}"), format!("{:.1}×", value / figure.value()))
        });
        let line = format!(
            "{:<38} {:>12.2} {:<6} {aim:>9}  {peer:<32} {theirs:>10} {ratio:>7}",
            figure.name,
            figure.value(),
            figure.unit
        );
        println!("{}", line.trim_end());
    }
}
