//! The options of `holdfast image build`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::ask::CliError;

/// As docker's, as far as they are served.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct Build {
    /// The directory that COPY takes from
    #[arg(default_value = ".")]
    context: PathBuf,
    /// A name of the image; may be given several times
    #[arg(long = "tag", short = 't', value_name = "NAME")]
    names: Vec<String>,
    /// The Dockerfile, if it is not CONTEXT/Dockerfile
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A value for an ARG; without =VALUE it is taken from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    arguments: Vec<String>,
    /// A label besides the Dockerfile's
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// Build this stage instead of the last
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// A file that RUN --mount=type=secret,id=ID may read
    #[arg(long = "secret", value_name = "ID=FILE")]
    secrets: Vec<String>,
    /// Do every step again
    #[arg(long)]
    no_cache: bool,
    /// Ask the registries for base images that are here, too
    #[arg(long)]
    pull: bool,
    /// What RUN may reach: default (what this machine reaches) or none
    #[arg(long, value_name = "NETWORK", default_value = "default", value_parser = ["default", "none"])]
    network: String,
}

impl Build {
    /// The recipe for the node, whose working directory is another.
    ///
    /// # Errors
    /// When the context is not there, or an option has not the form it needs.
    pub(crate) fn recipe(&self) -> Result<Value, CliError> {
        let environment = |name: &str| std::env::var(name).ok();
        let mut arguments = BTreeMap::new();
        for argument in &self.arguments {
            match argument.split_once('=') {
                Some((name, value)) => drop(arguments.insert(name.to_owned(), value.to_owned())),
                // As documented by docker: a name that the environment does not have is left out.
                None => arguments.extend(environment(argument).map(|value| (argument.clone(), value))),
            }
        }
        let epoch = arguments.get("SOURCE_DATE_EPOCH").cloned().or_else(|| environment("SOURCE_DATE_EPOCH"));
        let wrong = |epoch: String| refuse(format!("SOURCE_DATE_EPOCH {epoch:?} is no count of seconds"));
        let epoch = epoch.filter(|epoch| !epoch.is_empty());
        let epoch = epoch.map(|epoch| epoch.parse::<i64>().map_err(|_| wrong(epoch))).transpose()?;
        let labels = pairs("--label", &self.labels)?;
        let mut secrets = BTreeMap::new();
        for (id, file) in
            pairs("--secret", &self.secrets.iter().map(|s| plain_secret(s)).collect::<Vec<_>>())?
        {
            secrets.insert(id, here(Path::new(&file), "name the secret's file")?);
        }
        let file = match &self.file {
            Some(file) => here(file, "name the Dockerfile")?,
            None => PathBuf::new(),
        };
        Ok(json!({
            "context": here(&self.context, "name the directory to build from")?,
            "file": file,
            "names": self.names,
            "arguments": arguments,
            "labels": labels,
            "target": self.target.clone().unwrap_or_default(),
            "secrets": secrets,
            "no_cache": self.no_cache,
            "pull": self.pull,
            "no_network": self.network == "none",
            "epoch": epoch,
        }))
    }
}

fn refuse(message: String) -> CliError {
    CliError::Refused { status: 400, message }
}

fn here(path: &Path, way_out: &'static str) -> Result<PathBuf, CliError> {
    std::fs::canonicalize(path).map_err(|source| CliError::Read { path: path.to_owned(), way_out, source })
}

/// Docker's `id=x,src=FILE` is `x=FILE`.
fn plain_secret(text: &str) -> String {
    let value = |name: &str| text.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    match (value("id"), value("src").or_else(|| value("source"))) {
        (Some(id), Some(file)) => format!("{id}={file}"),
        _ => text.to_owned(),
    }
}

fn pairs(option: &str, words: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let pair = |word: &String| {
        let (name, value) =
            word.split_once('=').ok_or_else(|| refuse(format!("{option} {word:?} is not NAME=VALUE")))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    words.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_given_as_docker_gives_it_or_shorter() {
        assert_eq!(plain_secret("id=key,src=/k"), "key=/k");
        assert_eq!(plain_secret("key=/k"), "key=/k");
    }
}
