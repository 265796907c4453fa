//! What annotations say of one object: hooks and their phases, and how it is applied and pruned.
//!
//! Invariant: pure; the annotations of Argo CD, Helm and Flux mean what they mean there.

use serde_json::Value;

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Before anything of the revision is applied.
    PreSync,
    /// Beside the objects.
    Sync,
    /// After everything is applied and healthy.
    PostSync,
    /// After a failure.
    SyncFailed,
    /// Before the application's objects are deleted with it.
    PreDelete,
    /// After they were.
    PostDelete,
}

impl Phase {
    pub(crate) fn spelled(self) -> &'static str {
        match self {
            Phase::PreSync => "pre-sync",
            Phase::Sync => "sync",
            Phase::PostSync => "post-sync",
            Phase::SyncFailed => "sync-failed",
            Phase::PreDelete => "pre-delete",
            Phase::PostDelete => "post-delete",
        }
    }
}

/// An object that is run rather than kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hook {
    /// Empty: never run, as a test of a chart.
    pub(crate) phases: Vec<Phase>,
    /// Lower ones run first.
    pub(crate) weight: i64,
    pub(crate) delete_on_success: bool,
    pub(crate) delete_on_failure: bool,
}

/// How an object is applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Apply {
    /// Kept as the files say.
    #[default]
    Always,
    /// Made when it is not there, then left alone.
    Once,
    /// Neither made nor changed.
    Never,
    /// Deleted and made again when it differs in what cannot change.
    Replace,
}

/// Whether an object is pruned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Prune {
    /// With the guards that hold for all.
    #[default]
    Guarded,
    /// Only after a confirmation.
    Confirm,
    /// Not even a guard holds it.
    Always,
    /// Never.
    Never,
}

const HOOK: [&str; 3] = ["holdfast.dev/hook", "argocd.argoproj.io/hook", "helm.sh/hook"];
const HOOK_DELETE: [&str; 3] = [
    "holdfast.dev/hook-delete-policy",
    "argocd.argoproj.io/hook-delete-policy",
    "helm.sh/hook-delete-policy",
];
const WEIGHT: [&str; 3] = ["holdfast.dev/wave", "argocd.argoproj.io/sync-wave", "helm.sh/hook-weight"];

/// The hook that an object is; nothing for an object that is kept.
pub(crate) fn hook(object: &Value) -> Option<Hook> {
    let written = HOOK.iter().find_map(|name| annotation(object, name))?;
    let words = || written.split(',').map(plain).filter(|word| !word.is_empty());
    let mut phases: Vec<Phase> = words().filter_map(|word| phase(&word)).collect();
    phases.sort();
    phases.dedup();
    // Helm keeps the definitions of a chart this way.
    if phases.is_empty() && words().any(|word| word == "crdinstall") {
        return None;
    }
    let policy = HOOK_DELETE.iter().find_map(|name| annotation(object, name)).unwrap_or_default();
    let policies: Vec<String> = policy.split(',').map(plain).collect();
    let has = |word: &str| policies.iter().any(|known| known.trim_start_matches("hook") == word);
    Some(Hook {
        phases,
        weight: WEIGHT.iter().find_map(|name| annotation(object, name)?.trim().parse().ok()).unwrap_or(0),
        delete_on_success: has("succeeded"),
        delete_on_failure: has("failed"),
    })
}

/// Words of a hook annotation that nobody knows; they are told, not passed over.
pub(crate) fn unknown_hook(object: &Value) -> Option<String> {
    let written = HOOK.iter().find_map(|name| annotation(object, name))?;
    let known =
        |word: &str| phase(word).is_some() || matches!(word, "skip" | "test" | "testsuccess" | "crdinstall");
    written.split(',').find(|word| !known(&plain(word))).map(|word| word.trim().to_owned())
}

fn phase(word: &str) -> Option<Phase> {
    Some(match word {
        "presync" | "preinstall" | "preupgrade" | "prerollback" => Phase::PreSync,
        "sync" => Phase::Sync,
        "postsync" | "postinstall" | "postupgrade" | "postrollback" => Phase::PostSync,
        "syncfail" | "syncfailed" => Phase::SyncFailed,
        "predelete" => Phase::PreDelete,
        "postdelete" => Phase::PostDelete,
        _ => return None,
    })
}

/// How an object of the files is applied.
pub(crate) fn apply(object: &Value) -> Apply {
    let ours = annotation(object, "holdfast.dev/apply").map(plain);
    let flux = annotation(object, "kustomize.toolkit.fluxcd.io/ssa").map(plain);
    match (ours.as_deref(), flux.as_deref()) {
        (Some("once"), _) | (None, Some("ifnotpresent")) => Apply::Once,
        (Some("never" | "ignore"), _) | (None, Some("ignore")) => Apply::Never,
        (Some("replace"), _) => Apply::Replace,
        _ if annotation(object, "holdfast.dev/recreate") == Some("true") => Apply::Replace,
        _ if option(object, "Replace=true") || option(object, "Force=true") => Apply::Replace,
        _ if annotation(object, "kustomize.toolkit.fluxcd.io/force").map(plain).as_deref()
            == Some("enabled") =>
        {
            Apply::Replace
        }
        _ => Apply::Always,
    }
}

/// Whether a live object is pruned.
pub(crate) fn prune(object: &Value) -> Prune {
    match annotation(object, "holdfast.dev/prune").map(plain).as_deref() {
        Some("never" | "false") => return Prune::Never,
        Some("confirm") => return Prune::Confirm,
        Some("always" | "true") => return Prune::Always,
        _ => {}
    }
    let keeps = annotation(object, "helm.sh/resource-policy") == Some("keep")
        || annotation(object, "kustomize.toolkit.fluxcd.io/prune").map(plain).as_deref() == Some("disabled");
    match () {
        () if keeps || option(object, "Prune=false") => Prune::Never,
        () if option(object, "Prune=confirm") => Prune::Confirm,
        () => Prune::Guarded,
    }
}

/// JSON pointers of fields that this object's writer leaves to others.
pub(crate) fn ignored(object: &Value) -> Vec<String> {
    let written = annotation(object, "holdfast.dev/ignore").unwrap_or_default();
    written
        .split(',')
        .map(|pointer| pointer.trim().to_owned())
        .filter(|pointer| pointer.starts_with('/'))
        .collect()
}

fn option(object: &Value, wanted: &str) -> bool {
    let options = annotation(object, "argocd.argoproj.io/sync-options").unwrap_or_default();
    options.split(',').any(|option| option.trim() == wanted)
}

pub(crate) fn annotation<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object["metadata"]["annotations"].get(name)?.as_str()
}

/// `PreSync`, `pre-sync` and `pre_sync` are the same word.
fn plain(word: impl AsRef<str>) -> String {
    word.as_ref().trim().to_ascii_lowercase().replace(['-', '_'], "")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(annotations: Value) -> Value {
        json!({"metadata": {"annotations": annotations}})
    }

    #[test]
    fn hooks_of_three_tools_are_read_as_they_are() {
        for (annotations, phases) in [
            (json!({"holdfast.dev/hook": "pre-sync"}), vec![Phase::PreSync]),
            (json!({"argocd.argoproj.io/hook": "PreSync,PostSync"}), vec![Phase::PreSync, Phase::PostSync]),
            (json!({"argocd.argoproj.io/hook": "SyncFail"}), vec![Phase::SyncFailed]),
            (json!({"helm.sh/hook": "pre-install,pre-upgrade"}), vec![Phase::PreSync]),
            (json!({"helm.sh/hook": "test"}), vec![]),
            (json!({"argocd.argoproj.io/hook": "Skip"}), vec![]),
        ] {
            assert_eq!(hook(&with(annotations.clone())).unwrap().phases, phases, "{annotations}");
        }
        assert!(hook(&with(json!({}))).is_none());
        assert!(hook(&with(json!({"helm.sh/hook": "crd-install"}))).is_none());
        assert_eq!(
            unknown_hook(&with(json!({"holdfast.dev/hook": "pre-sink"}))).as_deref(),
            Some("pre-sink")
        );
        let helm = with(json!({"helm.sh/hook": "post-install", "helm.sh/hook-weight": "-5",
            "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded"}));
        let read = hook(&helm).unwrap();
        assert_eq!((read.weight, read.delete_on_success, read.delete_on_failure), (-5, true, false));
        let argo = with(
            json!({"argocd.argoproj.io/hook": "PostSync", "argocd.argoproj.io/hook-delete-policy": "HookFailed"}),
        );
        assert!(hook(&argo).unwrap().delete_on_failure);
    }

    #[test]
    fn an_object_says_how_it_is_applied_and_pruned() {
        for (annotations, want) in [
            (json!({}), (Apply::Always, Prune::Guarded)),
            (
                json!({"holdfast.dev/apply": "once", "holdfast.dev/prune": "never"}),
                (Apply::Once, Prune::Never),
            ),
            (
                json!({"holdfast.dev/recreate": "true", "holdfast.dev/prune": "always"}),
                (Apply::Replace, Prune::Always),
            ),
            (
                json!({"argocd.argoproj.io/sync-options": "Prune=confirm, Replace=true"}),
                (Apply::Replace, Prune::Confirm),
            ),
            (json!({"helm.sh/resource-policy": "keep"}), (Apply::Always, Prune::Never)),
            (
                json!({"kustomize.toolkit.fluxcd.io/ssa": "IfNotPresent", "kustomize.toolkit.fluxcd.io/prune": "disabled"}),
                (Apply::Once, Prune::Never),
            ),
        ] {
            let object = with(annotations.clone());
            assert_eq!((apply(&object), prune(&object)), want, "{annotations}");
        }
        let both = with(json!({"holdfast.dev/ignore": "/spec/replicas, /data/x, nonsense"}));
        assert_eq!(ignored(&both), ["/spec/replicas", "/data/x"]);
    }
}
