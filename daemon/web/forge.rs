//! Webhooks of forges: GitHub, GitLab, Gitea and Forgejo, Bitbucket, and whoever signs like them.
//!
//! Invariant: a webhook only hurries: what it says of the push is not looked at, the repository itself is asked.
//! Invariant: where the configuration names a secret, one that is not signed with it hurries nothing.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use ring::hmac;
use serde_json::json;

use crate::serve::{App, refuse};

/// A forge tells of a push.
pub(crate) async fn webhook(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let secrets = match app.room.actions.webhook_secrets(&name) {
        Ok(secrets) => secrets,
        Err(refusal) => return refuse(refusal.status, &refusal.message),
    };
    if !secrets.is_empty() && !secrets.iter().any(|secret| is_signed(&headers, &body, secret)) {
        let message = "the webhook is not signed with the secret of the configuration (webhook_secret)";
        return refuse(401, message);
    }
    match app.room.actions.hurry(&name) {
        0 => refuse(404, &format!("no application with a Git source and no repository is called {name:?}")),
        sources => (StatusCode::ACCEPTED, axum::Json(json!({"sources": sources}))).into_response(),
    }
}

/// Whether a forge signed the body with this secret. GitHub, Gitea, Forgejo and Bitbucket send an HMAC of it, GitLab
/// the secret itself; GitHub's old SHA-1 form is not taken.
fn is_signed(headers: &HeaderMap, body: &[u8], secret: &str) -> bool {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(token) = header("x-gitlab-token") {
        // Compared by their digests, so that time tells nothing.
        let digest =
            |text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"holdfast"), text.as_bytes());
        return digest(token).as_ref() == digest(secret).as_ref();
    }
    let signatures = [
        "x-hub-signature-256",
        "x-gitea-signature",
        "x-forgejo-signature",
        "x-gogs-signature",
        "x-hub-signature",
        "x-signature",
        "x-holdfast-signature",
    ];
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    signatures.iter().filter_map(|name| header(name)).any(|given| {
        let hex = given.trim().strip_prefix("sha256=").unwrap_or(given.trim());
        bytes_of(hex).is_some_and(|signature| hmac::verify(&key, body, &signature).is_ok())
    })
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    fn check(header: (&'static str, &str), secret: &str) -> bool {
        let headers =
            HeaderMap::from_iter([(http::HeaderName::from_static(header.0), header.1.parse().unwrap())]);
        is_signed(&headers, b"Hello, World!", secret)
    }

    #[test]
    fn the_signature_of_every_forge_is_known_and_no_other_passes() {
        // GitHub's documented example.
        let secret = "It's a Secret to Everybody";
        let hex = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert!(check(("x-hub-signature-256", &format!("sha256={hex}")), secret));
        assert!(check(("x-hub-signature", &format!("sha256={hex}")), secret), "Bitbucket");
        assert!(check(("x-gitea-signature", hex), secret));
        assert!(check(("x-forgejo-signature", hex), secret));
        assert!(check(("x-gitlab-token", secret), secret));
        assert!(!check(("x-hub-signature-256", &format!("sha256={hex}")), "another"));
        assert!(!check(("x-gitlab-token", "another"), secret));
        assert!(!check(("x-hub-signature", "sha1=f3e4"), secret));
        assert!(!check(("content-type", "text/plain"), secret));
    }
}
