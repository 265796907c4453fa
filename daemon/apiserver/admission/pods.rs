//! DefaultTolerationSeconds: a pod stays five minutes on a node that is not ready or does not answer.

use serde_json::{Value, json};

pub(super) fn tolerate(pod: &mut Value) {
    let keys = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
    let present = |pod: &Value, key: &str| {
        pod["spec"]["tolerations"].as_array().into_iter().flatten().any(|one| {
            let of_key = one["key"] == key || one["key"].as_str().is_none_or(str::is_empty);
            let of_effect = one["effect"].as_str().is_none_or(|effect| matches!(effect, "" | "NoExecute"));
            of_key && of_effect
        })
    };
    for key in keys {
        if present(pod, key) {
            continue;
        }
        let toleration =
            json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 });
        match pod["spec"].get_mut("tolerations").and_then(Value::as_array_mut) {
            Some(list) => list.push(toleration),
            None => pod["spec"]["tolerations"] = json!([toleration]),
        }
    }
}
