//! The status of a commit on the forge it came from.
//!
//! Invariant: a forge is told of each revision once per state; the newest state wins.

use reqwest::{Client, RequestBuilder};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::config::{Forge, ForgeKind};
use super::{persist, send};
use crate::status::Status;

/// How a commit fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Pending,
    Success,
    Failure,
}

/// Tells the forge of one application's commits.
pub(crate) async fn follow(
    http: Client,
    application: String,
    forge: Forge,
    mut waiting: mpsc::Receiver<std::sync::Arc<Status>>,
    stop: CancellationToken,
) {
    let mut told: Option<(String, State)> = None;
    loop {
        let status = tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => return,
            // Cancel-safe per docs of mpsc::Receiver::recv.
            status = waiting.recv() => status,
        };
        let Some(mut status) = status else { return };
        while let Ok(newer) = waiting.try_recv() {
            status = newer;
        }
        let Some((revision, state, why)) = state(&status) else { continue };
        if told.as_ref() == Some(&(revision.clone(), state)) {
            continue;
        }
        let attempt = || async {
            let token = tokio::fs::read_to_string(&forge.token_file).await;
            let token = token.map_err(|error| format!("read {}: {error}", forge.token_file.display()))?;
            send::deliver(request(&http, &forge, &application, &revision, (state, &why), token.trim())?).await
        };
        // Cancel-safe: the next daemon tells the state again.
        match stop.run_until_cancelled(persist(attempt)).await {
            None => return,
            Some(Ok(())) => told = Some((revision, state)),
            Some(Err(error)) => {
                warn!(%application, error = reconcile::chain(&*error), "the forge was not told of a commit");
                told = Some((revision, state));
            }
        }
    }
}

/// The newest commit, how it fares, and why.
pub(crate) fn state(status: &Status) -> Option<(String, State, String)> {
    let newest = &status.source.revision;
    if newest.is_empty() || status.source.kind != "git" {
        return None;
    }
    let say = |state, why: &str| Some((newest.clone(), state, why.to_owned()));
    if let Some(known) = status.decisions.quarantine(newest) {
        return say(State::Failure, &known.reason);
    }
    match status.history.iter().rev().find(|entry| entry.revision == *newest) {
        Some(entry) if entry.result == "Healthy" => say(State::Success, "in sync and healthy"),
        Some(entry) if entry.result.starts_with("Failed") || entry.result.starts_with("Degraded") => {
            say(State::Failure, &entry.result)
        }
        _ => say(State::Pending, &status.sync.message),
    }
}

pub(crate) fn request(
    http: &Client,
    forge: &Forge,
    application: &str,
    revision: &str,
    (state, why): (State, &str),
    token: &str,
) -> Result<RequestBuilder, send::SendError> {
    let context = format!("holdfast/{application}");
    let description: String = why.chars().take(140).collect();
    let mut url = reqwest::Url::parse(&forge.url)?;
    let owner_and_name: Vec<&str> = forge.repository.split('/').collect();
    {
        let mut path = url.path_segments_mut().map_err(|()| "the forge's url is no web address")?;
        path.pop_if_empty();
        match forge.kind {
            ForgeKind::Github | ForgeKind::Gitea => {
                path.push("repos").extend(&owner_and_name).extend(["statuses", revision]);
            }
            // The whole path of the project is one segment.
            ForgeKind::Gitlab => {
                path.extend(["projects", &forge.repository, "statuses", revision]);
            }
            ForgeKind::Bitbucket => {
                path.push("repositories")
                    .extend(&owner_and_name)
                    .extend(["commit", revision, "statuses", "build"]);
            }
        }
    }
    let word = |pending: &'static str, success: &'static str, failure: &'static str| match state {
        State::Pending => pending,
        State::Success => success,
        State::Failure => failure,
    };
    Ok(match forge.kind {
        ForgeKind::Github => http.post(url).bearer_auth(token).header("accept", "application/vnd.github+json").json(
            &json!({"state": word("pending", "success", "failure"), "context": context, "description": description}),
        ),
        ForgeKind::Gitea => http.post(url).header("authorization", format!("token {token}")).json(
            &json!({"state": word("pending", "success", "failure"), "context": context, "description": description}),
        ),
        ForgeKind::Gitlab => http.post(url).header("private-token", token).json(
            &json!({"state": word("running", "success", "failed"), "name": context, "description": description}),
        ),
        ForgeKind::Bitbucket => http.post(url).bearer_auth(token).json(&json!({
            "key": context.chars().take(40).collect::<String>(),
            "name": context,
            "state": word("INPROGRESS", "SUCCESSFUL", "FAILED"),
            "description": description,
            "url": "https://bitbucket.org",
        })),
    })
}
