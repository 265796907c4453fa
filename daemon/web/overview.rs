//! Many applications at one glance: how many are how, a tile for each, and which of them are shown in full.
//!
//! Invariant: the troubled come first, and each says why; a page stays small however many applications there are.

use serde::Deserialize;

use crate::html::Html;
use crate::page::{Tone, encoded, state, tone};
use crate::view::{Application, View};

/// More applications than these are listed as tiles first.
pub(crate) const FEW: usize = 2;
/// Applications that are shown in full below their tiles: all when they are no more than these, else those in trouble.
const MOST_IN_FULL: usize = 5;
/// Tiles on one page.
const MOST_TILES: usize = 200;

/// What a person asked to see.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Asked {
    /// This application alone.
    #[serde(default)]
    pub(crate) application: String,
    /// Those whose name holds this.
    #[serde(default)]
    pub(crate) find: String,
    /// `failing`, `waiting` or `healthy`: those alone.
    #[serde(default)]
    pub(crate) show: String,
}

/// How an application is, in one word for all of it.
pub(crate) fn verdict(app: &Application) -> Tone {
    let status = &app.read;
    let words = [&status.sync.state, &status.health.code];
    if !app.followed {
        Tone::Dim
    } else if !status.defects.is_empty() || words.iter().any(|word| tone(word) == Tone::Bad) {
        Tone::Bad
    } else if status.is_good() {
        Tone::Ok
    } else {
        Tone::Wait
    }
}

/// Why an application is not well; empty when it is.
pub(crate) fn reason(app: &Application) -> &str {
    let status = &app.read;
    match verdict(app) {
        Tone::Ok => "",
        Tone::Dim => "no longer declared",
        _ if !status.sync.waits_for.is_empty() => &status.sync.waits_for,
        _ if status.sync.state != "Synced" => &status.sync.message,
        _ => &status.health.message,
    }
}

/// The ones that were asked for, the troubled first.
pub(crate) fn chosen<'a>(view: &'a View, asked: &Asked) -> Vec<&'a Application> {
    let find = asked.find.trim().to_lowercase();
    let mut chosen: Vec<&Application> = view
        .applications
        .iter()
        .filter(|app| asked.application.is_empty() || app.name == asked.application)
        .filter(|app| app.name.to_lowercase().contains(&find))
        .filter(|app| asked.show.is_empty() || word(verdict(app)) == asked.show)
        .collect();
    chosen.sort_by_key(|app| match verdict(app) {
        Tone::Bad => 0,
        Tone::Wait => 1,
        Tone::Ok => 2,
        Tone::Dim => 3,
    });
    chosen
}

/// Those of the chosen that are shown in full.
pub(crate) fn in_full<'a>(chosen: &[&'a Application]) -> Vec<&'a Application> {
    if chosen.len() <= MOST_IN_FULL {
        return chosen.to_vec();
    }
    let troubled = chosen.iter().copied().filter(|app| matches!(verdict(app), Tone::Bad | Tone::Wait));
    troubled.take(MOST_IN_FULL).collect()
}

/// Where one looks for a name; outside of what is drawn anew, so that nobody is interrupted in writing.
pub(crate) fn search(html: &mut Html, asked: &Asked) {
    html.raw("<form class=\"find\" method=\"get\" action=\"/\"><input type=\"search\" name=\"find\" aria-label=\"Find an application\" placeholder=\"Find an application\" value=\"");
    html.text(&asked.find).raw("\"></form>");
}

/// How many are how, each a way to see those alone.
pub(crate) fn counts(html: &mut Html, view: &View, asked: &Asked) {
    let declared: Vec<&Application> = view.applications.iter().filter(|app| app.followed).collect();
    html.raw("<nav class=\"counts\">");
    for (show, label) in [("", "all"), ("failing", "failing"), ("waiting", "waiting"), ("healthy", "healthy")]
    {
        let count = match show {
            "" => declared.len(),
            show => declared.iter().filter(|app| word(verdict(app)) == show).count(),
        };
        html.raw("<a href=\"/?show=").raw(show).raw("\"");
        if asked.show == show {
            html.raw(" aria-current=\"page\"");
        }
        html.raw(">").text(&count.to_string()).raw(" ").raw(label).raw("</a>");
    }
    html.raw("</nav>");
}

/// A tile for each.
pub(crate) fn tiles(html: &mut Html, chosen: &[&Application], asked: &Asked) {
    if chosen.is_empty() {
        html.raw("<p class=\"none\">No application is like that. <a href=\"/\">Show all</a></p>");
        return;
    }
    html.raw("<nav class=\"tiles\">");
    for app in chosen.iter().take(MOST_TILES) {
        let status = &app.read;
        let tone = verdict(app);
        html.raw("\n<a class=\"").raw(tone.class()).raw("\" href=\"/?application=").text(&encoded(&app.name));
        html.raw("\"><b>").text(&app.name).raw("</b><span>");
        state(html, &status.sync.state);
        state(html, &status.health.code);
        html.raw("</span>");
        match reason(app) {
            "" => html.raw("<small>").text(status.source.commit_message.lines().next().unwrap_or_default()),
            why => html.raw("<small class=\"why\">").text(why),
        };
        html.raw("</small></a>");
    }
    html.raw("</nav>");
    let more = chosen.len().saturating_sub(MOST_TILES);
    if more > 0 {
        html.raw("<p class=\"none\">").text(&more.to_string());
        html.raw(if asked.find.is_empty() {
            " more; find them by name."
        } else {
            " more; write more of the name."
        });
        html.raw("</p>");
    }
}

fn word(tone: Tone) -> &'static str {
    match tone {
        Tone::Bad => "failing",
        Tone::Wait => "waiting",
        Tone::Ok => "healthy",
        Tone::Dim => "forgotten",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gitops::Status;
    use kube::api::{ApiResource, DynamicObject, GroupVersionKind};

    use super::*;

    fn app(name: &str, sync: &str, health: &str, message: &str) -> Application {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("holdfast.dev", "v1", "Application"));
        let mut read = Status::default();
        read.sync.state = sync.to_owned();
        read.health.code = health.to_owned();
        read.health.message = message.to_owned();
        let object = Arc::new(DynamicObject::new(name, &kind));
        Application { name: name.to_owned(), followed: true, object, read }
    }

    fn view() -> View {
        let mut applications: Vec<Application> =
            (0..300).map(|at| app(&format!("fine-{at}"), "Synced", "Healthy", "")).collect();
        applications.push(app("slow", "OutOfSync", "Progressing", ""));
        applications.push(app("broken", "Synced", "Degraded", "pod <b>x: no"));
        View { applications, ..View::default() }
    }

    #[test]
    fn the_troubled_come_first_and_say_why() {
        let (view, all) = (view(), Asked::default());
        let chosen = chosen(&view, &all);
        let first: Vec<&str> = chosen.iter().take(3).map(|app| app.name.as_str()).collect();
        assert_eq!(first, ["broken", "slow", "fine-0"]);
        assert_eq!(in_full(&chosen).len(), 2, "those that are well are not shown in full");
        let mut html = Html::default();
        counts(&mut html, &view, &all);
        tiles(&mut html, &chosen, &all);
        let drawn = html.finish();
        assert!(drawn.contains("<small class=\"why\">pod &lt;b&gt;x: no</small>"));
        assert!(drawn.contains(">302 all</a>") && drawn.contains(">1 failing</a>"));
        assert_eq!(drawn.matches("<b>").count(), MOST_TILES);
        assert!(drawn.contains("102 more; find them by name."));
    }

    #[test]
    fn one_finds_by_name_and_by_state() {
        let view = view();
        let count = |asked: Asked| chosen(&view, &asked).len();
        assert_eq!(count(Asked { find: "FINE-29".into(), ..Asked::default() }), 11);
        assert_eq!(count(Asked { show: "waiting".into(), ..Asked::default() }), 1);
        assert_eq!(count(Asked { application: "broken".into(), ..Asked::default() }), 1);
        assert_eq!(count(Asked { application: "brok".into(), ..Asked::default() }), 0);
    }
}
