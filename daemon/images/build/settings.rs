//! The instructions that change only how an image is run: pure.

use super::script::Step;
use super::words::{Look, expand, split};
use crate::image::{Empty, ImageConfig};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What a stage knows of names and values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scope {
    /// `ARG`s declared in this stage.
    pub(crate) arguments: BTreeMap<String, String>,
    /// The entrypoint was set, or the command, in this stage.
    pub(crate) has_command: bool,
}

/// A name's value: the image's environment wins over arguments.
pub(crate) fn look(config: &ImageConfig, scope: &Scope, name: &str) -> Option<String> {
    let set = config.env.iter().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    set.map(str::to_owned).or_else(|| scope.arguments.get(name).cloned())
}

/// What runs commands that are no lists.
pub(crate) fn shell(config: &ImageConfig) -> Vec<String> {
    match config.shell.is_empty() {
        true => vec!["/bin/sh".to_owned(), "-c".to_owned()],
        false => config.shell.clone(),
    }
}

/// Applies one instruction; the text is what is wrong with it.
pub(crate) fn apply(
    step: &Step,
    escape: char,
    config: &mut ImageConfig,
    scope: &mut Scope,
) -> Result<(), String> {
    let before = config.clone();
    let scoped = scope.clone();
    let look: Look<'_> = &|name| self::look(&before, &scoped, name);
    let one = || expand(step.rest.trim(), escape, look);
    match step.name.as_str() {
        "ENV" => {
            for (name, value) in pairs(step, escape, look)? {
                config.env.retain(|pair| pair.strip_prefix(&name).is_none_or(|rest| !rest.starts_with('=')));
                config.env.push(format!("{name}={value}"));
            }
        }
        "LABEL" => config.labels.extend(pairs(step, escape, look)?),
        "USER" => config.user = one()?,
        "STOPSIGNAL" => config.stop_signal = one()?,
        "SHELL" => config.shell = step.list().ok_or("SHELL is a list: [\"/bin/bash\", \"-c\"]")?,
        "EXPOSE" => {
            for word in split(&step.rest, escape) {
                for port in ports(&expand(&word, escape, look)?)? {
                    config.exposed_ports.insert(port, Empty {});
                }
            }
        }
        "VOLUME" => {
            let list = step.list().unwrap_or_else(|| split(&step.rest, escape));
            for path in list {
                config.volumes.insert(expand(&path, escape, look)?, Empty {});
            }
        }
        "CMD" => {
            config.cmd = command(step, config);
            scope.has_command = true;
        }
        "ENTRYPOINT" => {
            config.entrypoint = command(step, config);
            // As documented: an entrypoint of one's own does not take the base image's arguments.
            if !scope.has_command {
                config.cmd.clear();
            }
        }
        "HEALTHCHECK" => config.healthcheck = healthcheck(step)?,
        "ONBUILD" => {
            let first = step.rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
            if matches!(first.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
                return Err(format!("ONBUILD {first} is not allowed"));
            }
            config.on_build.push(step.rest.trim().to_owned());
        }
        "MAINTAINER" => {
            config.labels.insert("maintainer".to_owned(), step.rest.trim().to_owned());
        }
        other => return Err(format!("{other} is not served")),
    }
    Ok(())
}

fn command(step: &Step, config: &ImageConfig) -> Vec<String> {
    step.list().unwrap_or_else(|| {
        let mut words = shell(config);
        words.push(step.rest.trim().to_owned());
        words
    })
}

/// `NAME=value …`, or the old `NAME value`.
pub(crate) fn pairs(step: &Step, escape: char, look: Look<'_>) -> Result<Vec<(String, String)>, String> {
    let words = split(&step.rest, escape);
    if let (Some(name), true) = (words.first(), words.first().is_some_and(|word| !word.contains('='))) {
        let value = step.rest.trim()[name.len()..].trim();
        if value.is_empty() {
            return Err(format!("{} {name} has no value: {name}=value", step.name));
        }
        return Ok(vec![(expand(name, escape, look)?, expand(value, escape, look)?)]);
    }
    let pair = |word: &String| {
        let (name, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is not NAME=value"))?;
        let name = expand(name, escape, look)?;
        if name.is_empty() {
            return Err(format!("{word:?} has no name"));
        }
        Ok((name, expand(value, escape, look)?))
    };
    words.iter().map(pair).collect()
}

fn ports(word: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("{word:?} is no port: 80, 80/udp or 8000-8010");
    let (range, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    if !matches!(protocol.to_ascii_lowercase().as_str(), "tcp" | "udp" | "sctp") {
        return Err(wrong());
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u16, u16) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    Ok((first..=last).map(|port| format!("{port}/{}", protocol.to_ascii_lowercase())).collect())
}

fn healthcheck(step: &Step) -> Result<Value, String> {
    let (kind, rest) = step.rest.trim().split_once(char::is_whitespace).unwrap_or((step.rest.trim(), ""));
    if kind.eq_ignore_ascii_case("none") {
        return Ok(json!({"Test": ["NONE"]}));
    }
    if !kind.eq_ignore_ascii_case("cmd") || rest.trim().is_empty() {
        return Err("HEALTHCHECK is followed by CMD and a command, or by NONE".to_owned());
    }
    let inner = Step { rest: rest.trim().to_owned(), ..Step::default() };
    let test = match inner.list() {
        Some(list) => [vec!["CMD".to_owned()], list].concat(),
        None => vec!["CMD-SHELL".to_owned(), inner.rest],
    };
    let mut check = json!({"Test": test});
    for (flag, value) in &step.flags {
        let value = value.as_deref().unwrap_or_default();
        let wrong = || format!("HEALTHCHECK --{flag}={value}: use durations such as 30s and whole retries");
        let (name, number) = match flag.as_str() {
            "interval" => ("Interval", nanoseconds(value).ok_or_else(wrong)?),
            "timeout" => ("Timeout", nanoseconds(value).ok_or_else(wrong)?),
            "start-period" => ("StartPeriod", nanoseconds(value).ok_or_else(wrong)?),
            "start-interval" => ("StartInterval", nanoseconds(value).ok_or_else(wrong)?),
            "retries" => ("Retries", value.parse().map_err(|_| wrong())?),
            _ => return Err(format!("HEALTHCHECK --{flag} is not known")),
        };
        check[name] = number.into();
    }
    Ok(check)
}

/// `1m30s`, `500ms`.
fn nanoseconds(text: &str) -> Option<i64> {
    let (mut total, mut rest) = (0.0, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let letters = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| at + digits);
        total += number
            * match &rest[digits..letters] {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = &rest[letters..];
    }
    (!text.is_empty()).then_some(total as i64)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;
    use crate::build::script::parse;

    fn built(lines: &str) -> Result<ImageConfig, String> {
        let script = parse(&format!("FROM scratch\n{lines}")).unwrap();
        let (mut config, mut scope) = (ImageConfig::default(), Scope::default());
        config.cmd = vec!["base".to_owned()];
        for step in &script.stages[0].steps {
            apply(step, script.escape, &mut config, &mut scope)?;
        }
        Ok(config)
    }

    #[test]
    fn settings_are_what_docker_makes_of_them() {
        let config = built(
            "ENV A=1 B=\"two $A\" C=x\\ y\nENV OLD a b\nENV A=2 D=$A\nLABEL x=\"1 2\" y=3\nUSER u:$A\n\
             EXPOSE 80 90/udp 100-101\nVOLUME [\"/a\"]\nVOLUME /b /c\nSTOPSIGNAL SIGINT\n\
             HEALTHCHECK --interval=1m30s --retries=3 CMD curl x\nENTRYPOINT [\"a\", \"b\"]\nONBUILD RUN x\n",
        )
        .unwrap();
        assert_eq!(config.env, ["B=two ", "C=x y", "OLD=a b", "A=2", "D=1"]);
        assert_eq!(config.user, "u:2");
        assert_eq!(
            config.exposed_ports.keys().collect::<Vec<_>>(),
            ["100/tcp", "101/tcp", "80/tcp", "90/udp"]
        );
        assert_eq!(config.volumes.keys().collect::<Vec<_>>(), ["/a", "/b", "/c"]);
        assert_eq!(config.healthcheck["Interval"], 90_000_000_000_i64);
        assert_eq!(config.healthcheck["Test"], json!(["CMD-SHELL", "curl x"]));
        assert_eq!((config.entrypoint.len(), config.cmd.len()), (2, 0));
        assert_eq!(config.on_build, ["RUN x"]);
        let config = built("SHELL [\"/bin/bash\", \"-c\"]\nCMD echo $A\n").unwrap();
        assert_eq!(config.cmd, ["/bin/bash", "-c", "echo $A"]);
    }

    #[test]
    fn what_is_wrong_with_a_setting_is_said() {
        for (line, part) in [
            ("EXPOSE http", "\"http\" is no port"),
            ("ENV A", "ENV A has no value"),
            ("SHELL /bin/sh", "SHELL is a list"),
            ("HEALTHCHECK --every=1s CMD x", "--every is not known"),
            ("HEALTHCHECK curl", "HEALTHCHECK is followed by"),
            ("ONBUILD FROM x", "ONBUILD FROM is not allowed"),
        ] {
            let error = built(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
