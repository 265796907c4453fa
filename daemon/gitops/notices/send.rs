//! One notice to one receiver, in the receiver's form.

use std::fmt::Write;
use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::config::{Channel, Notify};
use super::{Notice, mail};

/// Why something could not be sent.
pub(crate) type SendError = Box<dyn std::error::Error + Send + Sync>;

/// A receiver that takes longer is tried again.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest text that chats take.
const MOST_TEXT: usize = 1900;

pub(crate) fn client() -> Client {
    // Only a broken set of trusted certificates could fail here; then each request says so.
    Client::builder().timeout(PATIENCE).user_agent("holdfast").build().unwrap_or_default()
}

/// Sends one notice.
pub(crate) async fn send(http: &Client, receiver: &Notify, notice: &Notice) -> Result<(), SendError> {
    let secret = match &receiver.secret_file {
        Some(path) => {
            let read = tokio::fs::read_to_string(path).await;
            Some(read.map_err(|error| format!("read {}: {error}", path.display()))?.trim().to_owned())
        }
        None => None,
    };
    let text = receiver.template.as_ref().map_or_else(|| notice.line(), |template| notice.filled(template));
    if receiver.kind == Channel::Smtp {
        return mail::send(receiver, secret.as_deref(), &subject(notice), &text).await;
    }
    deliver(request(http, receiver, notice, &text, secret.as_deref())?).await
}

/// Sends a request that has to be answered with success.
pub(crate) async fn deliver(request: RequestBuilder) -> Result<(), SendError> {
    let answer = request.send().await.map_err(reqwest::Error::without_url)?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let said: String = answer.text().await.unwrap_or_default().chars().take(200).collect();
    Err(format!("it answers {status}: {said}").into())
}

fn subject(notice: &Notice) -> String {
    format!("{} {}: {}", notice.application, notice.event, crate::decide::short(&notice.revision))
}

fn request(
    http: &Client,
    receiver: &Notify,
    notice: &Notice,
    text: &str,
    secret: Option<&str>,
) -> Result<RequestBuilder, SendError> {
    let short: String = text.chars().take(MOST_TEXT).collect();
    let post = |body: Value| http.post(&receiver.url).json(&body);
    Ok(match receiver.kind {
        Channel::Webhook => {
            let mut body = serde_json::to_value(notice)?;
            body["text"] = json!(text);
            let bytes = serde_json::to_vec(&body)?;
            let signed = secret.map(|secret| format!("sha256={}", hmac(secret.as_bytes(), &bytes)));
            let request = http.post(&receiver.url).header("content-type", "application/json").body(bytes);
            match signed {
                Some(signature) => request.header("x-holdfast-signature", signature),
                None => request,
            }
        }
        Channel::Slack => post(json!({"text": short})),
        Channel::Discord => post(json!({"content": short, "allowed_mentions": {"parse": []}})),
        Channel::Teams => post(teams(&subject(notice), &short)),
        Channel::Ntfy => {
            let priority = if matches!(notice.event, "failed" | "rolled-back") { "high" } else { "default" };
            let title: String = subject(notice).chars().filter(|c| c.is_ascii() && !c.is_control()).collect();
            let request =
                http.post(&receiver.url).header("title", title).header("priority", priority).body(short);
            match secret {
                Some(token) => request.bearer_auth(token),
                None => request,
            }
        }
        Channel::Matrix => {
            let mut url = reqwest::Url::parse(&receiver.url)?;
            // The same notice sent again is the same message.
            let transaction = hmac(b"holdfast", format!("{}{text}", notice.at).as_bytes());
            let room = receiver.room.as_deref().unwrap_or_default();
            url.path_segments_mut()
                .map_err(|()| "the homeserver is no web address")?
                .pop_if_empty()
                .extend(["_matrix", "client", "v3", "rooms", room, "send", "m.room.message", &transaction]);
            let body = json!({"msgtype": "m.notice", "body": short});
            http.put(url).bearer_auth(secret.unwrap_or_default()).json(&body)
        }
        Channel::Smtp => return Err("mail is not sent over http".into()),
    })
}

fn teams(title: &str, text: &str) -> Value {
    let card = json!({
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [
            {"type": "TextBlock", "text": title, "weight": "Bolder", "wrap": true},
            {"type": "TextBlock", "text": text, "wrap": true},
        ],
    });
    json!({"type": "message", "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive", "content": card}]})
}

/// RFC 2104 over SHA-256, in hexadecimal.
pub(crate) fn hmac(key: &[u8], message: &[u8]) -> String {
    let mut block = [0_u8; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    let outer = Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize();
    outer.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
