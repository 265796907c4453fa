//! From Ingresses, Services and EndpointSlices to what answers which host and path. Pure.
//!
//! Invariant: routes stand in the order of their precedence; the first that matches is the one.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, Ingress, IngressBackend, IngressClass, IngressServiceBackend,
};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The class that is served without any IngressClass object, and what such objects name as their controller.
const CLASS: &str = "holdfast";
const CONTROLLER: &str = "holdfast.dev/ingress";
/// How a class was named before `ingressClassName`.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What routes are made from.
pub(crate) struct Objects {
    pub(crate) ingresses: Vec<Arc<Ingress>>,
    pub(crate) classes: Vec<Arc<IngressClass>>,
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) slices: Vec<Arc<EndpointSlice>>,
}

/// Every route, the one that takes precedence first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Routes {
    routes: Vec<Route>,
}

#[derive(Clone, Debug, PartialEq)]
struct Route {
    host: Host,
    path: Path,
    backend: Backend,
}

/// Declared in the order of precedence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Exact(String),
    /// `*.example.com`: one label more than the suffix `.example.com`.
    Below(String),
    Any,
    /// A default backend: after every rule.
    Default,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Path {
    Exact(String),
    /// Whole segments.
    Prefix(Vec<String>),
}

/// Who answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Backend {
    /// For people: `Service default/web port 80 of Ingress default/site`.
    pub(crate) what: String,
    /// The ready endpoints; none explains itself in `why`.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// What is wrong where there are no endpoints.
    pub(crate) why: &'static str,
}

impl Routes {
    pub(crate) fn new(objects: &Objects) -> Routes {
        let mut ingresses: Vec<&Arc<Ingress>> =
            objects.ingresses.iter().filter(|ingress| serves(ingress, &objects.classes)).collect();
        // Where two say the same, the older holds, as other controllers have it.
        ingresses.sort_by_key(|it| {
            let meta = &it.metadata;
            (meta.creation_timestamp.as_ref().map(|at| at.0), meta.namespace.clone(), meta.name.clone())
        });
        let mut routes: Vec<Route> =
            ingresses.into_iter().flat_map(|ingress| of_ingress(objects, ingress)).collect();
        routes
            .sort_by_key(|route| (route.host.clone(), Reverse(route.path.length()), !route.path.is_exact()));
        Routes { routes }
    }

    /// Who answers for this host and path: the most exact host, then the longest path.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<&Backend> {
        let host = host.to_ascii_lowercase();
        self.routes
            .iter()
            .find(|route| route.host.matches(&host) && route.path.matches(path))
            .map(|it| &it.backend)
    }
}

/// Whether this room serves the Ingress: without a class, with ours, or with one whose controller we are.
pub(crate) fn serves(ingress: &Ingress, classes: &[Arc<IngressClass>]) -> bool {
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref());
    let annotated = || ingress.metadata.annotations.as_ref()?.get(CLASS_ANNOTATION).map(String::as_str);
    let Some(class) = named.or_else(annotated) else { return true };
    let declared = classes.iter().find(|it| it.metadata.name.as_deref() == Some(class));
    match declared {
        Some(declared) => {
            declared.spec.as_ref().and_then(|spec| spec.controller.as_deref()) == Some(CONTROLLER)
        }
        None => class == CLASS,
    }
}

fn of_ingress(objects: &Objects, ingress: &Ingress) -> Vec<Route> {
    let Some(spec) = &ingress.spec else { return Vec::new() };
    let mut routes = Vec::new();
    for rule in spec.rules.iter().flatten() {
        let host = host(rule.host.as_deref());
        for path in rule.http.iter().flat_map(|http| &http.paths) {
            let backend = backend(objects, ingress, &path.backend);
            routes.push(Route { host: host.clone(), path: path_of(path), backend });
        }
    }
    if let Some(default) = &spec.default_backend {
        let backend = backend(objects, ingress, default);
        routes.push(Route { host: Host::Default, path: Path::Prefix(Vec::new()), backend });
    }
    routes
}

fn host(host: Option<&str>) -> Host {
    match host.unwrap_or_default().to_ascii_lowercase() {
        empty if empty.is_empty() => Host::Any,
        host => match host.strip_prefix('*') {
            Some(suffix) => Host::Below(suffix.to_owned()),
            None => Host::Exact(host),
        },
    }
}

fn path_of(path: &HTTPIngressPath) -> Path {
    let text = path.path.as_deref().unwrap_or("/");
    match path.path_type.as_str() {
        "Exact" => Path::Exact(text.to_owned()),
        // ImplementationSpecific is what the implementation makes of it: here the same.
        _ => Path::Prefix(segments(text).map(str::to_owned).collect()),
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

impl Host {
    fn matches(&self, host: &str) -> bool {
        match self {
            Host::Exact(exact) => exact == host,
            Host::Below(suffix) => host
                .strip_suffix(suffix.as_str())
                .is_some_and(|label| !label.is_empty() && !label.contains('.')),
            Host::Any | Host::Default => true,
        }
    }
}

impl Path {
    fn matches(&self, path: &str) -> bool {
        match self {
            Path::Exact(exact) => exact == path,
            Path::Prefix(prefix) => {
                let mut asked = segments(path);
                prefix.iter().all(|segment| asked.next() == Some(segment))
            }
        }
    }

    fn length(&self) -> usize {
        match self {
            Path::Exact(path) => segments(path).map(|segment| segment.len() + 1).sum(),
            Path::Prefix(prefix) => prefix.iter().map(|segment| segment.len() + 1).sum(),
        }
    }

    fn is_exact(&self) -> bool {
        matches!(self, Path::Exact(_))
    }
}

fn backend(objects: &Objects, ingress: &Ingress, backend: &IngressBackend) -> Backend {
    let meta = &ingress.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let by = format!("Ingress {namespace}/{}", meta.name.as_deref().unwrap_or_default());
    let Some(wanted) = &backend.service else {
        let what = format!("the backend of {by}");
        return Backend {
            what,
            endpoints: Vec::new(),
            why: "is a resource, not a Service: not supported here",
        };
    };
    let port = wanted
        .port
        .as_ref()
        .and_then(|port| port.name.clone().or(port.number.map(|number| number.to_string())));
    let what = format!("Service {namespace}/{} port {} of {by}", wanted.name, port.unwrap_or_default());
    let (endpoints, why) = match endpoints(objects, namespace, wanted) {
        Ok(endpoints) => (endpoints, "has no endpoint that is ready"),
        Err(why) => (Vec::new(), why),
    };
    Backend { what, endpoints, why }
}

fn endpoints(
    objects: &Objects,
    namespace: &str,
    wanted: &IngressServiceBackend,
) -> Result<Vec<SocketAddr>, &'static str> {
    let is_it = |service: &&Arc<Service>| {
        let meta = &service.metadata;
        meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(&wanted.name)
    };
    let service = objects.services.iter().find(is_it).ok_or("does not exist")?;
    let spec = service.spec.as_ref().ok_or("has no spec")?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return Err("is a name for elsewhere (ExternalName): not supported here");
    }
    let port = wanted.port.as_ref().ok_or("names no port")?;
    let of_service = spec.ports.iter().flatten().find(|it| match &port.name {
        Some(name) => it.name.as_ref() == Some(name),
        None => Some(it.port) == port.number,
    });
    let name = of_service.ok_or("has no such port")?.name.as_deref().unwrap_or_default();
    let found: BTreeSet<SocketAddr> = objects
        .slices
        .iter()
        .filter(|slice| slice.metadata.namespace.as_deref() == Some(namespace))
        .filter(|slice| {
            slice.metadata.labels.as_ref().and_then(|it| it.get(SERVICE_NAME)) == Some(&wanted.name)
        })
        .flat_map(|slice| of_slice(slice, name))
        .collect();
    Ok(found.into_iter().collect())
}

fn of_slice(slice: &EndpointSlice, port: &str) -> Vec<SocketAddr> {
    let named = slice.ports.iter().flatten().find(|it| it.name.as_deref().unwrap_or_default() == port);
    let Some(port) = named.and_then(|it| it.port).and_then(|port| u16::try_from(port).ok()) else {
        return Vec::new();
    };
    let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    });
    let ips = ready.filter_map(|endpoint| endpoint.addresses.first()?.parse::<IpAddr>().ok());
    ips.map(|ip| SocketAddr::new(ip, port)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    pub(crate) fn objects(ingresses: Value, classes: Value) -> Objects {
        let services = json!([
            {"metadata": {"namespace": "default", "name": "web"},
             "spec": {"clusterIP": "10.2.0.5", "ports": [{"name": "http", "port": 80}]}},
            {"metadata": {"namespace": "default", "name": "idle"}, "spec": {"ports": [{"port": 80}]}},
            {"metadata": {"namespace": "default", "name": "away"}, "spec": {"type": "ExternalName"}},
        ]);
        let slices = json!([
            {"metadata": {"namespace": "default", "name": "web-1", "labels": {SERVICE_NAME: "web"}}, "addressType": "IPv4",
             "ports": [{"name": "http", "port": 8080}],
             "endpoints": [{"addresses": ["10.1.0.2"]}, {"addresses": ["10.1.0.3"], "conditions": {"ready": false}}]},
        ]);
        Objects {
            ingresses: serde_json::from_value(ingresses).expect("ingresses"),
            classes: serde_json::from_value(classes).expect("classes"),
            services: serde_json::from_value(services).expect("services"),
            slices: serde_json::from_value(slices).expect("slices"),
        }
    }

    fn service(name: &str) -> Value {
        json!({"service": {"name": name, "port": {"number": 80}}})
    }

    /// An Ingress named `name` with one rule per (host, path type, path), each to the Service `web`.
    fn ingress(name: &str, rules: &[(&str, &str, &str)]) -> Value {
        let rules: Vec<Value> = rules
            .iter()
            .map(|(host, kind, path)| {
                json!({"host": host, "http": {"paths": [{"path": path, "pathType": kind, "backend": service("web")}]}})
            })
            .collect();
        json!({"metadata": {"namespace": "default", "name": name}, "spec": {"rules": rules}})
    }

    fn one(kind: &str, path: &str) -> Routes {
        Routes::new(&objects(json!([ingress("site", &[("", kind, path)])]), json!([])))
    }

    /// The table of examples in the documentation of Ingress.
    #[test]
    fn paths_match_as_documented() {
        let examples = [
            ("Prefix", "/", "/anything", true),
            ("Exact", "/foo", "/foo", true),
            ("Exact", "/foo", "/bar", false),
            ("Exact", "/foo", "/foo/", false),
            ("Exact", "/foo/", "/foo", false),
            ("Prefix", "/foo", "/foo", true),
            ("Prefix", "/foo", "/foo/", true),
            ("Prefix", "/foo/", "/foo", true),
            ("Prefix", "/foo/", "/foo/", true),
            ("Prefix", "/aaa/bb", "/aaa/bbb", false),
            ("Prefix", "/aaa/bbb", "/aaa/bbb", true),
            ("Prefix", "/aaa/bbb/", "/aaa/bbb", true),
            ("Prefix", "/aaa/bbb", "/aaa/bbb/", true),
            ("Prefix", "/aaa/bbb", "/aaa/bbb/ccc", true),
            ("Prefix", "/aaa/bbb", "/aaa/bbbxyz", false),
            ("ImplementationSpecific", "/foo", "/foo/bar", true),
        ];
        for (kind, path, asked, expected) in examples {
            assert_eq!(one(kind, path).find("x", asked).is_some(), expected, "{kind} {path} {asked}");
        }
    }

    #[test]
    fn hosts_match_as_documented() {
        let routes =
            Routes::new(&objects(json!([ingress("site", &[("*.Foo.com", "Prefix", "/")])]), json!([])));
        for (host, expected) in
            [("bar.foo.com", true), ("BAR.foo.com", true), ("baz.bar.foo.com", false), ("foo.com", false)]
        {
            assert_eq!(routes.find(host, "/").is_some(), expected, "{host}");
        }
    }

    #[test]
    fn the_most_exact_host_and_then_the_longest_path_answers() {
        let mut fallback = ingress("z", &[]);
        fallback["spec"]["defaultBackend"] = service("web");
        let all = json!([
            ingress("a", &[("", "Prefix", "/")]),
            ingress("b", &[("*.foo.com", "Prefix", "/")]),
            ingress("c", &[("bar.foo.com", "Prefix", "/a")]),
            ingress("d", &[("bar.foo.com", "Prefix", "/a/b")]),
            ingress("e", &[("bar.foo.com", "Exact", "/a/b")]),
            fallback,
        ]);
        let routes = Routes::new(&objects(all, json!([])));
        let by =
            |host, path| routes.find(host, path).expect("a route").what.rsplit('/').next().map(str::to_owned);
        for (host, path, expected) in [
            ("bar.foo.com", "/a/b", "e"),
            ("bar.foo.com", "/a/b/c", "d"),
            ("bar.foo.com", "/a/x", "c"),
            ("bar.foo.com", "/x", "b"),
            ("other.org", "/x", "a"),
        ] {
            assert_eq!(by(host, path).as_deref(), Some(expected), "{host}{path}");
        }
        let mut only_default = ingress("z", &[("foo.com", "Exact", "/a")]);
        only_default["spec"]["defaultBackend"] = service("web");
        let routes = Routes::new(&objects(json!([only_default]), json!([])));
        assert!(routes.find("elsewhere", "/b").is_some());
        assert!(Routes::default().find("elsewhere", "/b").is_none());
    }

    #[test]
    fn a_backend_has_the_ready_endpoints_or_says_why_none() {
        let to = |name: &str| {
            let mut site = ingress("site", &[]);
            site["spec"]["defaultBackend"] = service(name);
            let backend =
                Routes::new(&objects(json!([site]), json!([]))).find("", "/").expect("a route").clone();
            (backend.what, backend.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(), backend.why)
        };
        let what = |name: &str| format!("Service default/{name} port 80 of Ingress default/site");
        let (said, endpoints, _) = to("web");
        assert_eq!((said, endpoints), (what("web"), vec!["10.1.0.2:8080".to_owned()]));
        assert_eq!(to("idle"), (what("idle"), vec![], "has no endpoint that is ready"));
        assert_eq!(to("none"), (what("none"), vec![], "does not exist"));
        assert_eq!(to("away").2, "is a name for elsewhere (ExternalName): not supported here");
    }

    #[test]
    fn only_ingresses_of_our_class_are_served() {
        let classes = json!([
            {"metadata": {"name": "mine"}, "spec": {"controller": CONTROLLER}},
            {"metadata": {"name": "theirs"}, "spec": {"controller": "example.com/other"}},
        ]);
        for (class, expected) in [
            (json!(null), true),
            (json!("holdfast"), true),
            (json!("mine"), true),
            (json!("theirs"), false),
            (json!("nginx"), false),
        ] {
            let mut site = ingress("site", &[("", "Prefix", "/")]);
            site["spec"]["ingressClassName"] = class.clone();
            let routes = Routes::new(&objects(json!([site]), classes.clone()));
            assert_eq!(routes.find("x", "/").is_some(), expected, "{class}");
        }
    }

    proptest! {
        #[test]
        fn no_host_or_path_is_too_strange_to_be_looked_up(host in ".*", path in ".*") {
            one("Prefix", "/foo").find(&host, &path);
        }
    }
}
