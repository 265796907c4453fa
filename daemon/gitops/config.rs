//! What a person declares in config.toml as `[[application]]`, and the source it names.
//!
//! Invariant: a key that does not exist is refused; nothing is read or reached here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Error;
use crate::notices::Forge;
use crate::policy::{Ignore, OnRemoval, Policy, Window};
use crate::remote::Target;
use crate::secret::Secret;
use crate::source::{Auth, Location, SEMVER, Verify};

/// One application: a source, a path and a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// Names it everywhere; a DNS label.
    pub name: String,
    /// A directory on this machine. Either this or `git`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// A repository: a path, `file://`, `https://`, `ssh://` or `user@host:path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<String>,
    /// The node itself holds the repository, and `git push` brings it. Instead of `dir` or `git`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<PushInto>,
    /// A branch, tag, commit or full ref; the repository's HEAD when absent.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The newest tag in a range of versions, as `^1.2` or `>=1.0, <3`; instead of `ref`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub semver: Option<String>,
    /// How a repository on another machine is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// The directory in the repository; all of it when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// For objects that name no namespace.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Whether what vanishes from the source is deleted.
    #[serde(default = "yes")]
    pub prune: bool,
    /// Whether a source that has become empty may prune everything.
    #[serde(default)]
    pub allow_empty: bool,
    /// Variables of the manifests (`${name}`, `${name:=default}`); without any, nothing is replaced.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub substitute: BTreeMap<String, String>,
    /// Whose signatures a commit or tag has to carry; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
    /// What a forge signs its webhooks with; without one a webhook need not be signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_secret: Option<Secret>,
    /// How often a repository on another machine is asked for its refs.
    #[serde(default)]
    pub interval: Seconds,
    /// Looks and tells, but changes nothing.
    #[serde(default)]
    pub suspend: bool,
    /// Whether a new revision waits for `holdfast approve`.
    #[serde(default)]
    pub policy: Policy,
    /// What becomes of the objects when this declaration leaves config.toml.
    #[serde(default)]
    pub on_removal: OnRemoval,
    /// Percent of the objects: pruning more than this (and more than five) waits for `holdfast confirm`.
    #[serde(default = "half")]
    pub prune_share_most: u8,
    /// Applications that have to be in sync and healthy before changes of this one are applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    /// A revision that is not healthy this long after it was begun is quarantined, and the last healthy one is brought back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_after: Option<Seconds>,
    /// When new revisions may be applied; at any time when there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub window: Vec<Window>,
    /// Another Kubernetes that the objects are applied to; this node when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The forge that is told how each commit fares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_status: Option<Forge>,
    /// Fields that belong to somebody else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<Ignore>,
}

/// How a repository that the node holds is pushed into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushInto {
    /// The password that a push or fetch has to give, whatever the user. Without one only this machine is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// How long a push waits for its revision to become healthy.
    #[serde(default = "five_minutes")]
    pub timeout: Seconds,
}

fn five_minutes() -> Seconds {
    Seconds(300)
}

fn half() -> u8 {
    50
}

fn default_namespace() -> String {
    "default".to_owned()
}

fn yes() -> bool {
    true
}

/// A span of time, written `"60s"`, `"5m"`, `"1h"` or as a number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub u64);

impl Default for Seconds {
    fn default() -> Seconds {
        Seconds(60)
    }
}

impl Seconds {
    /// As a duration, at least a second.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.max(1))
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0)
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Seconds, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(seconds) => Ok(Seconds(seconds)),
            Written::Text(text) => parse_seconds(&text).ok_or_else(|| {
                serde::de::Error::custom(format!("\"{text}\" is not a time; write \"60s\", \"5m\" or \"1h\""))
            }),
        }
    }
}

fn parse_seconds(text: &str) -> Option<Seconds> {
    let (digits, factor) = match text.trim().split_at_checked(text.trim().len().checked_sub(1)?)? {
        (digits, "s") => (digits, 1),
        (digits, "m") => (digits, 60),
        (digits, "h") => (digits, 3600),
        _ => (text.trim(), 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(factor).map(Seconds)
}

/// Where an application's files come from, parsed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    Directory(PathBuf),
    Git { location: Location, reference: String, path: String },
    Pushed { reference: String, path: String },
}

impl Application {
    /// Checks the declaration.
    ///
    /// # Errors
    /// `Config` names what is wrong and the way out.
    pub fn check(&self) -> Result<(), Error> {
        self.origin().map(|_| ())
    }

    fn check_policy(&self) -> Result<(), String> {
        if self.prune_share_most > 100 {
            return Err("prune_share_most is a percentage, at most 100".to_owned());
        }
        if self.depends_on.contains(&self.name) {
            return Err("it depends on itself; remove it from depends_on".to_owned());
        }
        self.window.iter().try_for_each(|window| window.parse().map(|_| ()))?;
        self.ignore.iter().try_for_each(Ignore::check)
    }

    pub(crate) fn origin(&self) -> Result<Origin, Error> {
        let refuse = |why: &str| Err(Error::Config { application: self.name.clone(), why: why.to_owned() });
        if !is_label(&self.name) {
            return refuse("its name has to be of lower-case letters, digits and '-', at most 63");
        }
        if !is_label(&self.namespace) {
            return refuse("its namespace has to be of lower-case letters, digits and '-', at most 63");
        }
        if let Err(why) = self.check_policy() {
            return refuse(&why);
        }
        let sources = [self.dir.is_some(), self.git.is_some(), self.push.is_some()];
        match sources.iter().filter(|named| **named).count() {
            0 => return refuse("it has no source; add `dir = \"…\"`, `git = \"…\"` or `push = {}`"),
            1 => {}
            _ => return refuse("it names several of `dir`, `git` and `push`; keep one"),
        }
        if let Some(range) = &self.semver
            && (self.reference.is_some() || semver::VersionReq::parse(range).is_err())
        {
            return refuse("`semver` is a range like \"^1.2\" or \">=1.0, <3\", and stands instead of `ref`");
        }
        let password = self.auth.as_ref().and_then(|auth| auth.password.clone());
        if self.auth.is_some() && self.git.is_none() {
            return refuse("`auth` goes with `git`");
        }
        let secrets =
            [&password, &self.webhook_secret, &self.push.as_ref().and_then(|push| push.token.clone())];
        if let Some(flaw) = secrets.into_iter().flatten().find_map(Secret::flaw) {
            return refuse(flaw);
        }
        if let Some(dir) = &self.dir {
            if self.reference.is_some() || self.path.is_some() || self.semver.is_some() {
                return refuse("`ref` and `path` go with `git` or `push`, not with `dir`");
            }
            return Ok(Origin::Directory(dir.clone()));
        }
        let path = self.path.as_deref().unwrap_or("").trim_matches('/');
        if path.split('/').any(|part| part == "..") {
            return refuse("`path` must not leave the repository");
        }
        let path = path.trim_start_matches("./").to_owned();
        let path = if path == "." { String::new() } else { path };
        let range = self.semver.as_ref().map(|range| format!("{SEMVER}{range}"));
        let reference = self.reference.clone().or(range).unwrap_or_else(|| "HEAD".to_owned());
        match &self.git {
            None => Ok(Origin::Pushed { reference, path }),
            Some(url) => {
                let location = Location::parse(url)
                    .map_err(|why| Error::Config { application: self.name.clone(), why })?;
                Ok(Origin::Git { location, reference, path })
            }
        }
    }
}

fn is_label(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inside)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    fn application(rest: serde_json::Value) -> Application {
        serde_json::from_value(rest).unwrap()
    }

    #[test]
    fn defaults_are_those_a_person_wants() {
        let app = application(serde_json::json!({"name": "demo", "dir": "manifests"}));
        assert!(app.prune && !app.allow_empty && !app.suspend);
        assert_eq!((app.namespace.as_str(), app.interval), ("default", Seconds(60)));
        assert_eq!(app.origin().unwrap(), Origin::Directory("manifests".into()));
    }

    #[test]
    fn a_key_that_does_not_exist_is_refused() {
        let wrong =
            serde_json::from_value::<Application>(serde_json::json!({"name": "demo", "directory": "x"}));
        assert!(wrong.unwrap_err().to_string().contains("directory"));
    }

    #[test]
    fn a_source_is_exactly_one_of_dir_and_git() {
        for (json, word) in [
            (serde_json::json!({"name": "a"}), "no source"),
            (serde_json::json!({"name": "a", "dir": "x", "git": "y"}), "several"),
            (serde_json::json!({"name": "a", "dir": "x", "ref": "main"}), "`ref`"),
            (serde_json::json!({"name": "a", "git": "/r", "path": "../x"}), "leave"),
            (serde_json::json!({"name": "A b", "dir": "x"}), "lower-case"),
            (serde_json::json!({"name": "a", "git": "ftp://x/y"}), "ftp"),
        ] {
            let error = application(json).check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn times_are_written_with_a_unit() {
        for (text, want) in [
            ("90s", Some(90)),
            ("5m", Some(300)),
            ("1h", Some(3600)),
            ("7", Some(7)),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(parse_seconds(text).map(|seconds| seconds.0), want, "{text}");
        }
    }
}
