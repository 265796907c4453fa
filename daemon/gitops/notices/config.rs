//! Who is told: `[[notify]]` in config.toml, and the forge of an application's commits.
//!
//! Invariant: secrets lie in files of their own, never in config.toml; they are read anew at each use.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// Which kind of receiver.
    pub kind: Channel,
    /// Where: a webhook's URL, Matrix' homeserver, ntfy's topic, `smtp://host:587`, `smtps://host:465`.
    pub url: String,
    /// Only of these applications; of all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub applications: Vec<String>,
    /// Only of these events; of all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<String>,
    /// The text, with `{application}`, `{event}`, `{revision}`, `{author}`, `{subject}`, `{message}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The file with the signing key of a webhook, the token of Matrix or ntfy, the password of the mail server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// Matrix' room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<String>,
    /// Mail: the sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Mail: the receivers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
    /// Mail: the user, with the password in `secret_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Kinds of receivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// JSON, signed with `X-Holdfast-Signature: sha256=…`.
    Webhook,
    /// An incoming webhook of Slack, Mattermost or Rocket.Chat.
    Slack,
    /// A webhook of Discord.
    Discord,
    /// A workflow of Microsoft Teams.
    Teams,
    /// A room of Matrix.
    Matrix,
    /// A topic of ntfy.
    Ntfy,
    /// Mail.
    Smtp,
}

impl Channel {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Channel::Webhook => "webhook",
            Channel::Slack => "slack",
            Channel::Discord => "discord",
            Channel::Teams => "teams",
            Channel::Matrix => "matrix",
            Channel::Ntfy => "ntfy",
            Channel::Smtp => "smtp",
        }
    }
}

/// Events there are.
const EVENTS: [&str; 5] = ["failed", "healthy", "recovered", "rolled-back", "waiting"];

impl Notify {
    pub(crate) fn wants(&self, notice: &super::Notice) -> bool {
        let of = self.applications.is_empty() || self.applications.contains(&notice.application);
        of && (self.on.is_empty() || self.on.iter().any(|event| event == notice.event))
    }

    /// Refuses what can never be told.
    ///
    /// # Errors
    /// What is wrong and the way out.
    pub fn check(&self) -> Result<(), String> {
        if let Some(unknown) = self.on.iter().find(|event| !EVENTS.contains(&event.as_str())) {
            return Err(format!("there is no event {unknown}; there are {}", EVENTS.join(", ")));
        }
        let begins = |schemes: &[&str]| schemes.iter().any(|scheme| self.url.starts_with(scheme));
        match self.kind {
            Channel::Smtp if !begins(&["smtp://", "smtps://"]) => {
                Err("the url of mail is smtp://host:port or smtps://host:port".to_owned())
            }
            Channel::Smtp if self.from.is_none() || self.to.is_empty() => {
                Err("mail needs `from` and `to`".to_owned())
            }
            Channel::Matrix if self.room.is_none() || self.secret_file.is_none() => {
                Err("matrix needs `room` and the access token in `secret_file`".to_owned())
            }
            Channel::Smtp => Ok(()),
            _ if !begins(&["https://", "http://"]) => Err(format!("{} is no http address", self.kind.word())),
            _ => Ok(()),
        }
    }
}

/// Where commits get their status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forge {
    /// Which kind of forge.
    pub kind: ForgeKind,
    /// The address of its API: `https://api.github.com`, `https://gitlab.com/api/v4`, `https://gitea.example/api/v1`,
    /// `https://api.bitbucket.org/2.0`.
    pub url: String,
    /// `owner/name`.
    pub repository: String,
    /// The file with the token.
    pub token_file: PathBuf,
}

/// Kinds of forges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForgeKind {
    /// GitHub.
    Github,
    /// GitLab.
    Gitlab,
    /// Gitea and Forgejo.
    Gitea,
    /// Bitbucket Cloud.
    Bitbucket,
}
