//! What the status page and the command line can ask of a running node.

use apiserver::Server;
use futures::future::BoxFuture;
use gitops::Engine;
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
