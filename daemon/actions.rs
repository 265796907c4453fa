//! What the status page and the command line can ask of a running node.

use std::path::PathBuf;

use apiserver::Server;
use futures::future::BoxFuture;
use gitops::Engine;
use images::{Image, Images, Reference};
use serde_json::{Value, json};
use web::{Decision, Refusal};

/// The rooms behind `web::Actions`.
pub(crate) struct Actions {
    pub(crate) engine: Engine,
    pub(crate) images: Images,
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

    fn hurry(&self, name: &str) -> usize {
        self.engine.hurry(name)
    }

    fn revision(&self) -> u64 {
        self.server.revision()
    }

    fn images(&self) -> Value {
        self.images.list().iter().map(|image| told(image)).collect()
    }

    fn load_image(&self, path: PathBuf) -> BoxFuture<'_, Result<Value, Refusal>> {
        Box::pin(async move {
            let loaded = self.images.load(&path).await.map_err(|error| refuse(422, &error))?;
            Ok(loaded.iter().map(|image| told(image)).collect())
        })
    }

    fn pull_image(&self, reference: String) -> BoxFuture<'_, Result<Value, Refusal>> {
        Box::pin(async move {
            let reference = parse(&reference)?;
            let image = self.images.pull(&reference, None).await.map_err(|error| refuse(502, &error))?;
            Ok(json!([told(&image)]))
        })
    }

    fn remove_image(&self, reference: String) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(
            async move { self.images.remove(&parse(&reference)?).await.map_err(|error| refuse(404, &error)) },
        )
    }
}

fn parse(reference: &str) -> Result<Reference, Refusal> {
    reference.parse().map_err(|error: images::Error| refuse(400, &error))
}

fn told(image: &Image) -> Value {
    let names: Vec<String> = image.references.iter().map(ToString::to_string).collect();
    json!({ "id": image.id, "digest": image.digest, "references": names, "size": image.size })
}

fn refuse_of(error: &gitops::Error) -> Refusal {
    let status = match error {
        gitops::Error::NoApplication(_) => 404,
        gitops::Error::Denied { .. } => 409,
        _ => 503,
    };
    refuse(status, error)
}

fn refuse(status: u16, error: &dyn std::error::Error) -> Refusal {
    Refusal { status, message: reconcile::chain(error) }
}
