//! What the status page and the command line can ask of a running node.

use apiserver::Server;
use futures::future::BoxFuture;
use gitops::{Caller, Denied, Engine, Service};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use web::{Decision, ImageOrder, Pieces, Refusal};

use crate::larder::{Larder, refuse};

/// The rooms behind `web::Actions`.
pub(crate) struct Actions {
    pub(crate) engine: Engine,
    pub(crate) larder: Larder,
    pub(crate) server: Server,
}

impl web::Actions for Actions {
    fn sync(&self, application: &str) -> Result<(), Refusal> {
        self.engine.sync(application).map_err(|error| refuse(404, &error))
    }

    fn diff(&self, application: String) -> BoxFuture<'_, Result<Value, Refusal>> {
        Box::pin(async move {
            let diff = self.engine.diff(&application).await.map_err(|error| refuse_of(&error))?;
            Ok(serde_json::to_value(diff).expect("a diff is plain data"))
        })
    }

    fn decide(&self, application: String, decision: Decision) -> BoxFuture<'_, Result<Value, Refusal>> {
        Box::pin(async move {
            let engine = &self.engine;
            let message = match &decision {
                Decision::Confirm => {
                    engine.confirm(&application).map(|all| format!("let go: {}", all.join(", ")))
                }
                Decision::Approve => {
                    engine.approve(&application).map(|revision| format!("approved {revision}"))
                }
                Decision::RollBack(to) => engine
                    .roll_back(&application, to.as_deref())
                    .map(|revision| format!("goes back to {revision}")),
                Decision::Resume => {
                    engine.resume(&application).map(|revision| format!("goes on to {revision}"))
                }
                Decision::Undo(what) => {
                    engine.undo(&application, what.as_deref()).await.map(|made| match made.as_slice() {
                        [] => "all of it is there already".to_owned(),
                        made => format!("made again: {}", made.join(", ")),
                    })
                }
            };
            let message = message.map_err(|error| refuse_of(&error))?;
            Ok(json!({"application": application, "message": message}))
        })
    }

    fn pruned(&self, application: String) -> BoxFuture<'_, Result<Value, Refusal>> {
        Box::pin(async move {
            let found = self.engine.pruned(&application).await.map_err(|error| refuse_of(&error))?;
            // What it held is for the disk alone: it may be a Secret.
            Ok(found
                .iter()
                .map(|known| json!({"at": known.at, "object": known.id, "revision": known.revision, "file": known.file, "line": known.line}))
                .collect())
        })
    }

    fn state(&self) -> BoxFuture<'_, Result<Value, Refusal>> {
        Box::pin(async move { self.engine.state().await.map_err(|error| refuse_of(&error)) })
    }

    fn explain(
        &self,
        kind: String,
        name: String,
        namespace: String,
    ) -> BoxFuture<'_, Result<Value, Refusal>> {
        Box::pin(async move {
            let told =
                self.engine.explain(&kind, &name, &namespace).await.map_err(|error| refuse_of(&error))?;
            Ok(serde_json::to_value(told).expect("an explanation is plain data"))
        })
    }

    fn hurry(&self, name: &str) -> usize {
        self.engine.hurry(name)
    }

    fn webhook_secrets(&self, name: &str) -> Result<Vec<String>, Refusal> {
        let secrets = self.engine.webhook_secrets(name);
        secrets.iter().map(|secret| secret.read().map_err(|error| refuse(500, &error))).collect()
    }

    fn admit_git(&self, application: &str, is_local: bool, token: Option<String>) -> Result<(), Refusal> {
        let admitted = self.engine.admits(application, &Caller { is_local, token });
        admitted.map_err(|denied| match denied {
            Denied::NotFound => Refusal {
                status: 404,
                message: format!(
                    "no application {application:?} is pushed into; declare it with push = {{}}"
                ),
            },
            Denied::Token => Refusal {
                status: 401,
                message: "give the token of the configuration as the password".to_owned(),
            },
            Denied::Remote => Refusal {
                status: 403,
                message: "without a token in the configuration (push.token) only this machine is served"
                    .to_owned(),
            },
            Denied::Unreadable(why) => Refusal { status: 500, message: why },
        })
    }

    fn git_refs(&self, application: &str, service: &str) -> Result<Vec<u8>, Refusal> {
        let Some(service) = Service::parse(service) else {
            return Err(Refusal { status: 403, message: format!("service {service:?} is not served") });
        };
        self.engine.advertise(application, service).map_err(|error| refuse(500, &error))
    }

    fn git(
        &self,
        application: String,
        service: &'static str,
        mut body: web::Incoming,
        answer: web::Outgoing,
    ) -> BoxFuture<'static, ()> {
        let engine = self.engine.clone();
        Box::pin(async move {
            let done = match Service::parse(service) {
                Some(Service::Receive) => engine.receive(&application, body, answer).await,
                _ => {
                    let asked = body.recv().await.unwrap_or_default();
                    engine.serve_fetch(&application, asked, answer).await
                }
            };
            if let Err(error) = done {
                tracing::warn!(application, error = reconcile::chain(&error), "git was not served");
            }
        })
    }

    fn revision(&self) -> u64 {
        self.server.revision()
    }

    fn images(&self) -> Value {
        self.larder.list()
    }

    fn image(&self, order: ImageOrder, tell: mpsc::Sender<Value>) -> BoxFuture<'_, Result<Value, Refusal>> {
        Box::pin(self.larder.obey(order, tell))
    }

    fn save_images(&self, images: Vec<String>, format: String) -> BoxFuture<'_, Result<Pieces, Refusal>> {
        Box::pin(async move { self.larder.save(&images, &format) })
    }
}

fn refuse_of(error: &gitops::Error) -> Refusal {
    let status = match error {
        gitops::Error::NoApplication(_) => 404,
        gitops::Error::Denied { .. } => 409,
        _ => 503,
    };
    refuse(status, error)
}
