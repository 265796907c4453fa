//! Speaking for somebody else: the `Impersonate-*` headers, each of which the RBAC rules must allow.

use std::collections::BTreeMap;

use api::error::ApiError;
use http::HeaderMap;

use super::{ANONYMOUS, AUTHENTICATED, User, bound};
use crate::Inner;
use crate::rbac::{self, Attributes};

const EXTRA: &str = "impersonate-extra-";

/// The user spoken for; none without such headers.
pub(super) fn impersonate(inner: &Inner, user: &User, headers: &HeaderMap) -> Result<Option<User>, ApiError> {
    let all = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter();
        values.filter_map(|value| value.to_str().ok().map(str::to_owned)).collect()
    };
    let extra = extra(headers);
    let name = all("impersonate-user").pop().unwrap_or_default();
    let (mut groups, uid) = (all("impersonate-group"), all("impersonate-uid").pop().unwrap_or_default());
    if name.is_empty() {
        if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            return Ok(None);
        }
        return Err(ApiError::internal(
            "requested impersonation of groups, a uid or extra data without a user: Impersonate-User is missing",
        ));
    }
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, account)) => {
            allowed(inner, user, ("", "serviceaccounts", ""), namespace, account)?;
            if groups.is_empty() {
                groups = bound::groups_of_account(namespace);
            }
        }
        None => allowed(inner, user, ("", "users", ""), "", &name)?,
    }
    for group in all("impersonate-group") {
        allowed(inner, user, ("", "groups", ""), "", &group)?;
    }
    let authentication = "authentication.k8s.io";
    if !uid.is_empty() {
        allowed(inner, user, (authentication, "uids", ""), "", &uid)?;
    }
    for (key, values) in &extra {
        for value in values {
            allowed(inner, user, (authentication, "userextras", key), "", value)?;
        }
    }
    let known = groups.iter().any(|group| group == AUTHENTICATED || group == "system:unauthenticated");
    if !known {
        let group = if name == ANONYMOUS { "system:unauthenticated" } else { AUTHENTICATED };
        groups.push(group.to_owned());
    }
    Ok(Some(User { name, groups, uid, extra, room: false }))
}

/// `Impersonate-Extra-{key}` headers; keys are percent-encoded and in lower case.
fn extra(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(EXTRA) else { continue };
        let Some(key) = crate::path::decode(key) else { continue };
        extra.entry(key).or_default().extend(value.to_str().ok().map(str::to_owned));
    }
    extra
}

fn allowed(
    inner: &Inner,
    user: &User,
    (group, resource, subresource): (&str, &str, &str),
    namespace: &str,
    name: &str,
) -> Result<(), ApiError> {
    let asked = Attributes { verb: "impersonate", group, resource, subresource, namespace, name, path: "" };
    if rbac::authorize(inner, user, &asked).allowed { Ok(()) } else { Err(rbac::refusal(user, &asked)) }
}
