//! exec, attach and port-forward of this node's pods: from a request to the streams it asks for.

use std::sync::Arc;

use client::Body;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use runtime::ExecSpec;

use crate::act::Kubelet;
use crate::node::{Query, status};
use crate::streams::{self, Dial, EndOf, Purpose, Wanted};

pub(crate) async fn exec(
    kubelet: &Arc<Kubelet>,
    pod: &Pod,
    container: &str,
    query: &Query,
    mut request: Request<Body>,
) -> Response<Body> {
    let args = query.all("command");
    if args.is_empty() {
        return bad_request("you must specify at least one command for the container");
    }
    let wanted = wanted(query);
    let (response, upgrade) = match streams::upgrade(&mut request, Purpose::Program) {
        Ok(agreed) => agreed,
        Err(refusal) => return *refusal,
    };
    let spec = ExecSpec { args, env: Vec::new(), tty: wanted.tty, stdin: wanted.stdin, size: None };
    let started = kubelet.parts.runtime.exec(uid(pod), container, spec).await;
    tokio::spawn(streams::carry(upgrade, wanted, started, EndOf::Exec));
    response
}

pub(crate) async fn attach(
    kubelet: &Arc<Kubelet>,
    pod: &Pod,
    container: &str,
    query: &Query,
    mut request: Request<Body>,
) -> Response<Body> {
    let Some((tty, once)) = terminal_of(pod, container) else {
        return bad_request(&format!("container {container} is not of this pod"));
    };
    let mut wanted = wanted(query);
    if wanted.tty && !tty {
        return bad_request(&format!(
            "unable to attach to container {container} with a terminal: it has none"
        ));
    }
    wanted.tty = tty && wanted.tty;
    let (response, upgrade) = match streams::upgrade(&mut request, Purpose::Program) {
        Ok(agreed) => agreed,
        Err(refusal) => return *refusal,
    };
    let runtime = Arc::clone(&kubelet.parts.runtime);
    let (uid, container) = (uid(pod).to_owned(), container.to_owned());
    let attached = runtime.attach(&uid, &container, tty, wanted.stdin).await;
    let close = async move {
        // A container that is gone has no input to close.
        let _ = runtime.close_input(&uid, &container).await;
    };
    let once = wanted.stdin && once && !tty;
    let of = EndOf::Attach(once.then(|| -> BoxFuture<'static, ()> { Box::pin(close) }));
    tokio::spawn(streams::carry(upgrade, wanted, attached, of));
    response
}

pub(crate) fn port_forward(
    kubelet: &Arc<Kubelet>,
    pod: &Pod,
    query: &Query,
    mut request: Request<Body>,
) -> Response<Body> {
    let Some(sandbox) = kubelet.parts.runtime.sandbox(uid(pod)).filter(|sandbox| sandbox.alive) else {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        return bad_request(&format!("unable to forward port because pod {name} is not running"));
    };
    let asked = query.all("ports");
    let ports = asked.iter().flat_map(|list| list.split(',')).map(|port| port.trim().parse::<u16>());
    let Ok(ports) = ports.collect::<Result<Vec<u16>, _>>() else {
        return bad_request(&format!("the ports {asked:?} are no ports"));
    };
    let (response, upgrade) = match streams::upgrade(&mut request, Purpose::Ports) {
        Ok(agreed) => agreed,
        Err(refusal) => return *refusal,
    };
    let dial: Dial = Arc::new(move |port| Box::pin(runtime::connect(sandbox.netns.clone(), port)));
    tokio::spawn(streams::forward(upgrade, ports, dial));
    response
}

/// Whether a container has a terminal, and whether its input is for one client only.
fn terminal_of(pod: &Pod, container: &str) -> Option<(bool, bool)> {
    let spec = pod.spec.as_ref()?;
    let usual = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let mut known = usual
        .map(|one| (&one.name, one.tty, one.stdin_once))
        .chain(ephemeral.map(|one| (&one.name, one.tty, one.stdin_once)));
    let (_, tty, once) = known.find(|(name, ..)| *name == container)?;
    Some((tty.unwrap_or(false), once.unwrap_or(false)))
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn wanted(query: &Query) -> Wanted {
    let flag = |name: &str, old: &str| query.flag(name) || query.flag(old);
    Wanted {
        stdin: flag("stdin", "input"),
        stdout: flag("stdout", "output"),
        stderr: flag("stderr", "error"),
        tty: query.flag("tty"),
    }
}

fn bad_request(message: &str) -> Response<Body> {
    status(StatusCode::BAD_REQUEST, "BadRequest", message)
}
