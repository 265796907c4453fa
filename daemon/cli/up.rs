//! What `holdfast up` shows: each object on its way, then where to look, then every change.
//!
//! Invariant: at a terminal the table is drawn in place until everything is well or nothing moves; elsewhere, and
//! afterwards, there is one line per change.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use futures::{Stream, StreamExt};
use serde_json::Value;

use super::ink::{Cell, Ink, Tone};
use super::status::{
    applications, conclusion, defect, header, is_ready, is_well, list, place, text, title, why,
};

/// When nothing has moved for this long, the table ends and says what is still missing.
const STILL: Duration = Duration::from_secs(20);

/// Shows the documents of `/status` until they end.
pub(crate) async fn live_view(updates: impl Stream<Item = Value> + Unpin) {
    let ink = Ink::of_stdout();
    let mut screen =
        Screen { in_place: std::io::stdout().is_terminal(), ink, drawn: 0, lines: BTreeMap::new() };
    let mut out = std::io::stdout();
    follow(
        updates,
        |text| {
            // Whoever does not read any more is not told any more; the node goes on.
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        },
        &mut screen,
    )
    .await;
}

async fn follow(
    mut updates: impl Stream<Item = Value> + Unpin,
    mut print: impl FnMut(&str),
    screen: &mut Screen,
) {
    let mut last = Value::Null;
    let mut settled = false;
    loop {
        let next = match settled {
            true => Ok(updates.next().await),
            false => tokio::time::timeout(STILL, updates.next()).await,
        };
        match next {
            Ok(Some(document)) => {
                print(&screen.step(&document, settled));
                if !settled && is_ready(&document) {
                    settled = true;
                    print(&where_to_look(&document, screen.ink));
                }
                last = document;
            }
            Ok(None) => return,
            Err(_) => {
                settled = true;
                print(&stuck(&last, screen.ink));
                print(&where_to_look(&last, screen.ink));
            }
        }
    }
}

/// What was drawn, and what was said of each object.
struct Screen {
    in_place: bool,
    ink: Ink,
    drawn: usize,
    lines: BTreeMap<String, String>,
}

impl Screen {
    /// What to print for the next document.
    fn step(&mut self, document: &Value, settled: bool) -> String {
        let changes = self.changes(document);
        if !self.in_place || settled {
            return changes;
        }
        let mut table = table(document, self.ink, |_| true);
        // What has scrolled away cannot be drawn over: a small terminal shows only what is still on its way.
        if self.ink.lines(&table) >= self.ink.height {
            table = self::table(document, self.ink, |object| !is_well(object));
        }
        while self.ink.lines(&table) >= self.ink.height {
            let Some(last) = table.trim_end().rfind('\n') else { break };
            table.truncate(last + 1);
        }
        // Up over what was drawn, and clear from there.
        let up = if self.drawn > 0 { format!("\u{1b}[{}A\u{1b}[J", self.drawn) } else { String::new() };
        self.drawn = self.ink.lines(&table);
        format!("{up}{table}")
    }

    /// One line per object that is not as it was said to be, one block per new defect.
    fn changes(&mut self, document: &Value) -> String {
        let mut now = BTreeMap::new();
        for app in applications(document) {
            let status = &app["status"];
            for object in list(&status["objects"]) {
                let reason = why(object);
                let reason = if reason.is_empty() { reason } else { format!("  {reason}") };
                // Where to mend it, for what does not mend itself.
                let broken = matches!(object["health"]["code"].as_str(), Some("Degraded" | "Unknown"));
                let from = place(object);
                let from = if broken && !from.is_empty() { format!("  ({from})") } else { String::new() };
                let (sync, health) = (text(&object["sync"]), text(&object["health"]["code"]));
                // In sync is the usual case and needs no word.
                let sync =
                    if sync == "Synced" { String::new() } else { format!("{}  ", self.ink.state(&sync)) };
                now.insert(title(object), format!("{sync}{}{reason}{from}", self.ink.state(&health)));
            }
            for found in list(&status["defects"]) {
                now.insert(format!("!{}", defect(found, self.ink)), String::new());
            }
            let name = format!("application {}", text(&app["name"]));
            let (sync, health) = (text(&status["sync"]["state"]), text(&status["health"]["code"]));
            now.insert(name, format!("{}  {}", self.ink.state(&sync), self.ink.state(&health)));
        }
        let mut out = String::new();
        for (what, line) in now.iter().filter(|(what, line)| self.lines.get(*what) != Some(line)) {
            match what.strip_prefix('!') {
                Some(defect) => out.push_str(defect),
                None => out.push_str(&format!("{what}  {line}\n")),
            }
        }
        for what in self.lines.keys().filter(|what| !now.contains_key(*what)) {
            match what.strip_prefix('!') {
                Some(defect) => {
                    out.push_str(&format!("mended: {}\n", defect.lines().nth(1).unwrap_or_default().trim()))
                }
                None => out.push_str(&format!("{what}  gone\n")),
            }
        }
        self.lines = now;
        out
    }
}

/// The objects that are asked for, their state and what they wait for.
fn table(document: &Value, ink: Ink, shown: fn(&Value) -> bool) -> String {
    let mut out = String::new();
    for app in applications(document) {
        let status = &app["status"];
        out.push_str(&format!(
            "{}  {}  {}\n",
            ink.paint(Tone::Strong, &text(&app["name"])),
            ink.state(&text(&status["sync"]["state"])),
            ink.state(&text(&status["health"]["code"])),
        ));
        let mut rows = vec![header(&["OBJECT", "SYNC", "HEALTH", "WAITS FOR"])];
        rows.extend(list(&status["objects"]).filter(|object| shown(object)).map(|object| {
            vec![
                Cell::new(Tone::Plain, &title(object)),
                Cell::state(&text(&object["sync"])),
                Cell::state(&text(&object["health"]["code"])),
                Cell::new(Tone::Plain, &why(object)),
            ]
        }));
        if rows.len() > 1 {
            out.push_str(&ink.table(&rows, 3));
        }
        for found in list(&status["defects"]) {
            out.push_str(&defect(found, ink));
        }
    }
    out
}

fn stuck(document: &Value, ink: Ink) -> String {
    let mut out = format!("\n{}", conclusion(document, ink));
    for line in super::status::waits(document) {
        out.push_str(&format!("  {line}\n"));
    }
    out.push_str("nothing has moved for a while; the node goes on trying, and tells every change here.\n");
    out
}

/// The addresses of everything a person may want now.
pub(crate) fn where_to_look(document: &Value, ink: Ink) -> String {
    let node = &document["node"];
    let mut rows =
        vec![vec![Cell::new(Tone::Soft, "status page"), Cell::new(Tone::Strong, &text(&node["page"]))]];
    for service in list(&document["services"]).filter(|service| text(&service["name"]) != "kubernetes") {
        let address = text(&service["address"]);
        let mut places: Vec<String> = Vec::new();
        for port in list(&service["ports"]) {
            // Only TCP can be told as something to open.
            let scheme = if port["protocol"] == "TCP" { "http://" } else { "udp " };
            if !address.is_empty() && address != "None" {
                places.push(format!("{scheme}{address}:{}", port["port"]));
            }
            if let Some(open) = port["nodePort"].as_u64() {
                places.push(format!("{scheme}127.0.0.1:{open}"));
            }
        }
        let name = format!("{}/{}", text(&service["namespace"]), text(&service["name"]));
        rows.push(vec![Cell::new(Tone::Soft, &name), Cell::new(Tone::Plain, &places.join("  "))]);
    }
    let kubectl = format!("kubectl --kubeconfig {} get pods", text(&node["kubeconfig"]));
    rows.push(vec![Cell::new(Tone::Soft, "kubectl"), Cell::new(Tone::Plain, &kubectl)]);
    format!(
        "\n{}{}\nCtrl-C stops the node; its containers keep running. `holdfast down` takes everything away.\n\n",
        conclusion(document, ink),
        ink.table(&rows, 1)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(health: &str, why: &str) -> Value {
        json!({"ready": health == "Healthy", "node": {"page": "http://127.0.0.1:9440/"}, "applications": [{"name": "demo", "status": {
            "sync": {"state": "Synced"}, "health": {"code": health}, "defects": [],
            "objects": [{"kind": "Deployment", "namespace": "default", "name": "kubia", "sync": "Synced", "health": {"code": health, "message": why}}]}}]})
    }

    async fn shown(in_place: bool, updates: impl Stream<Item = Value> + Unpin) -> String {
        let ink = Ink { colour: false, width: 80, height: 24 };
        let mut screen = Screen { in_place, ink, drawn: 0, lines: BTreeMap::new() };
        let mut text = String::new();
        follow(updates, |part| text.push_str(part), &mut screen).await;
        text
    }

    #[tokio::test]
    async fn without_a_terminal_there_is_one_line_per_change() {
        let updates = [
            document("Progressing", "1 of 3"),
            document("Progressing", "1 of 3"),
            document("Healthy", ""),
            document("Degraded", "oops"),
        ];
        let text = shown(false, futures::stream::iter(updates)).await;
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("default/kubia")).collect();
        let expected = [
            "Deployment default/kubia  ◌ Progressing  1 of 3",
            "Deployment default/kubia  ✓ Healthy",
            "Deployment default/kubia  ✗ Degraded  oops",
        ];
        assert_eq!(lines, expected);
        assert_eq!(text.matches("status page").count(), 1);
    }

    #[tokio::test]
    async fn at_a_terminal_the_table_is_drawn_over_itself() {
        let text =
            shown(true, futures::stream::iter([document("Progressing", "1 of 3"), document("Healthy", "")]))
                .await;
        assert_eq!(text.matches("\u{1b}[3A\u{1b}[J").count(), 1, "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_move_is_said_to_wait() {
        let updates = futures::stream::iter([document("Progressing", "1 of 3")]);
        let never = updates.chain(futures::stream::once(Box::pin(async {
            tokio::time::sleep(STILL * 2).await;
            document("Healthy", "")
        })));
        let text = shown(false, Box::pin(never)).await;
        assert!(text.contains("nothing has moved for a while"), "{text}");
        assert!(text.trim_end().ends_with("application demo  ✓ Synced  ✓ Healthy"), "{text}");
    }
}
