//! Credentials for registries, as docker's config.json keeps them.
//!
//! Invariant: a password is never printed, also not by `Debug`.

use crate::error::Error;
use crate::reference::Reference;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;

/// A name and password, or a token, for one registry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Credentials {
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password or access token given as one.
        password: String,
    },
    /// A registry token, sent as it is.
    Bearer {
        /// The token.
        token: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Basic { username, .. } => write!(f, "Basic({username:?}, ..)"),
            Credentials::Bearer { .. } => f.write_str("Bearer(..)"),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl Credentials {
    /// Finds the credentials for an image in a docker config.json; `origin` names it in messages. The longest
    /// entry that is a prefix of registry and repository wins, as for Kubernetes' image pull secrets.
    pub fn from_docker_config(
        json: &[u8],
        reference: &Reference,
        origin: &str,
    ) -> Result<Option<Credentials>, Error> {
        let refuse = |reason: String| Error::Credentials { what: origin.to_owned(), reason };
        // The parser's own message could quote a secret, its position cannot.
        let config: DockerConfig = serde_json::from_slice(json).map_err(|e| {
            refuse(format!("not a docker config.json (line {}, column {})", e.line(), e.column()))
        })?;
        let registry = reference.registry();
        let image = format!("{registry}/{}", reference.repository());
        let best = config
            .auths
            .iter()
            .map(|(key, auth)| (plain_key(key), auth))
            .filter(|(key, auth)| covers(key, &image) && !auth.is_empty())
            .max_by_key(|(key, _)| key.len());
        if let Some((_, auth)) = best {
            return auth
                .credentials()
                .map(Some)
                .map_err(|why| refuse(format!("entry for {registry}: {why}")));
        }
        let helper = config.cred_helpers.get(registry).unwrap_or(&config.creds_store);
        let named = config.auths.keys().any(|key| covers(&plain_key(key), &image));
        if !helper.is_empty() && (named || config.cred_helpers.contains_key(registry)) {
            return Err(refuse(format!(
                "credentials for {registry} are kept by the helper program docker-credential-{helper}, which is \
                 not run here: put them into `auths` of this file"
            )));
        }
        Ok(None)
    }
}

impl Auth {
    fn is_empty(&self) -> bool {
        [&self.auth, &self.username, &self.registrytoken, &self.identitytoken].iter().all(|f| f.is_empty())
    }

    fn credentials(&self) -> Result<Credentials, &'static str> {
        if !self.registrytoken.is_empty() {
            return Ok(Credentials::Bearer { token: self.registrytoken.clone() });
        }
        if !self.identitytoken.is_empty() {
            return Err("identity tokens are not supported: use a user name and password or access token");
        }
        if !self.username.is_empty() {
            return Ok(Credentials::Basic {
                username: self.username.clone(),
                password: self.password.clone(),
            });
        }
        let bytes = STANDARD.decode(self.auth.trim()).map_err(|_| "`auth` is not base64")?;
        let text = String::from_utf8(bytes).map_err(|_| "`auth` is not base64 of user:password")?;
        let (username, password) = text.split_once(':').ok_or("`auth` is not base64 of user:password")?;
        Ok(Credentials::Basic { username: username.into(), password: password.into() })
    }
}

/// Docker's keys may be URLs with a path (`https://index.docker.io/v1/`).
fn plain_key(key: &str) -> String {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let key = key.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
    match key.strip_prefix("index.docker.io") {
        Some(rest) => format!("docker.io{rest}"),
        None => key.to_owned(),
    }
}

fn covers(key: &str, image: &str) -> bool {
    image.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    fn find(json: &str, image: &str) -> Result<Option<Credentials>, String> {
        Credentials::from_docker_config(json.as_bytes(), &image.parse().unwrap(), "config.json")
            .map_err(|e| e.to_string())
    }

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic { username: username.into(), password: password.into() }
    }

    #[test]
    fn the_longest_matching_entry_wins() {
        let json = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "YTpi"},
            "localhost:5000": {"username": "u", "password": "p"},
            "localhost:5000/team": {"auth": "dGVhbTpzOmVjcmV0"}}}"#;
        assert_eq!(find(json, "kubia").unwrap(), Some(basic("a", "b")));
        assert_eq!(find(json, "localhost:5000/x").unwrap(), Some(basic("u", "p")));
        assert_eq!(find(json, "localhost:5000/team/x").unwrap(), Some(basic("team", "s:ecret")));
        assert_eq!(find(json, "localhost:5000/teams").unwrap(), Some(basic("u", "p")));
        assert_eq!(find(json, "quay.io/x").unwrap(), None);
    }

    #[test]
    fn credential_helpers_are_refused_by_name_with_the_way_out() {
        let json = r#"{"auths": {"quay.io": {}}, "credsStore": "pass", "credHelpers": {"gcr.io": "gcloud"}}"#;
        assert!(find(json, "gcr.io/x").unwrap_err().contains("docker-credential-gcloud"));
        assert!(find(json, "quay.io/x").unwrap_err().contains("put them into `auths`"));
        assert_eq!(find(json, "kubia").unwrap(), None);
    }

    #[test]
    fn a_secret_shows_neither_in_errors_nor_in_debug() {
        let error = find(r#"{"auths": {"quay.io": {"auth": "secret!"}}}"#, "quay.io/x").unwrap_err();
        assert!(!error.contains("secret"), "{error}");
        assert!(!find(r#"{"auths": "secret"}"#, "quay.io/x").unwrap_err().contains("secret"));
        assert!(!format!("{:?}", basic("u", "secret")).contains("secret"));
    }
}
