//! Commits per second on the real disk, as a table or (`--json`) as JSON.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use store::{Change, Config, Durability, Expect, Store, Template, Write, fjall_disk::FjallDisk};

const VALUE_BYTES: usize = 2048;
const SPAN: Duration = Duration::from_secs(2);

struct Figure {
    durability: Durability,
    committers: usize,
    per_second: f64,
    median_micros: u128,
    p99_micros: u128,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Beside the build, since /tmp may be a tmpfs.
    let dir = tempfile::Builder::new().prefix("store-bench").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    let mut figures = Vec::new();
    for durability in [Durability::Synced, Durability::Journalled] {
        for committers in [1, 16, 128] {
            let place = dir.path().join(format!("{durability:?}-{committers}"));
            figures.push(runtime.block_on(measure(&place, durability, committers))?);
        }
    }
    if std::env::args().any(|argument| argument == "--json") {
        let figures: Vec<_> = figures.iter().map(json).collect();
        println!("{}", serde_json::to_string_pretty(&figures)?);
        return Ok(());
    }
    println!(
        "commits of {VALUE_BYTES} bytes\n{:<12}{:>10}{:>12}{:>12}{:>12}",
        "", "at once", "per s", "p50 µs", "p99 µs"
    );
    for Figure { durability, committers, per_second, median_micros, p99_micros } in figures {
        println!("{durability:<12?}{committers:>10}{per_second:>12.0}{median_micros:>12}{p99_micros:>12}");
    }
    Ok(())
}

async fn measure(
    place: &Path,
    durability: Durability,
    committers: usize,
) -> Result<Figure, Box<dyn std::error::Error>> {
    let store = Store::open(Box::new(FjallDisk::open(place)?), |_, _| (), &Config::default())?;
    let begin = Instant::now();
    let tasks =
        (0..committers).map(|committer| tokio::spawn(commit(store.clone(), committer, durability, begin)));
    let mut micros = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        micros.extend(task.await??);
    }
    let seconds = begin.elapsed().as_secs_f64();
    store.close().await;
    micros.sort_unstable();
    Ok(Figure {
        durability,
        committers,
        per_second: micros.len() as f64 / seconds,
        median_micros: micros[micros.len() / 2],
        p99_micros: micros[micros.len() * 99 / 100],
    })
}

/// Commits one change after the other until the span is over; gives what each took.
async fn commit(
    store: Store<()>,
    committer: usize,
    durability: Durability,
    begin: Instant,
) -> Result<Vec<u128>, store::Error<()>> {
    let mut micros = Vec::new();
    while begin.elapsed() < SPAN {
        let key = format!("/core/pods/{committer}/{}", micros.len() % 1000).into();
        let value = Template::numbered(vec![b'x'; VALUE_BYTES / 2], vec![b'y'; VALUE_BYTES / 2]);
        let write = Write::Put { value, head: () };
        let asked = Instant::now();
        store.commit(Change { key, expect: Expect::Any, write, durability }).await?;
        micros.push(asked.elapsed().as_micros());
    }
    Ok(micros)
}

fn json(figure: &Figure) -> serde_json::Value {
    let Figure { durability, committers, per_second, median_micros, p99_micros } = figure;
    serde_json::json!({
        "name": format!("store commits, {durability:?}, {committers} at once"),
        "value_bytes": VALUE_BYTES,
        "per_second": per_second.round(),
        "p50_us": *median_micros as u64,
        "p99_us": *p99_micros as u64,
    })
}
