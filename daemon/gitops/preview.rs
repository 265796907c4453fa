//! What a sync would do, said before it is done.
//!
//! Invariant: changes nothing: every request is a read or a dry run.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use api::kinds;
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Error;
use crate::act::{self, Run};
use crate::application::{AT_ONCE, Follower};
use crate::apply::told_by;
use crate::build::Id;
use crate::decide::Choice;
use crate::diff::{self, Change, ChangeKind, Diff, PlannedHook};
use crate::forecast::{self, Effect, EffectKind, Item, World};
use crate::guard::{self, Hold};
use crate::live::{self, whole};
use crate::order;
use crate::plan::{Gone, Verdict, View, Wanted, is_ours};
use crate::source::{Snapshot, Sourced};

impl Follower {
    /// What a sync to the newest revision would change now.
    pub(crate) async fn diff(&self, now: Timestamp) -> Result<Diff, Error> {
        let seen = self.observe(now).await?;
        let waits = match &seen.choice.choice {
            Choice::Newest => {
                seen.blocked.clone().map(|blocked| format!("waits for {blocked}")).unwrap_or_default()
            }
            Choice::Earlier { why, .. } | Choice::None { why } => why.clone(),
        };
        let view = match &seen.choice.choice {
            Choice::Earlier { .. } => self.look(seen.told.clone(), self.newest()).await?,
            _ => seen,
        };
        self.told_diff(view, waits).await
    }

    /// What a sync to a snapshot would change that is not the newest yet.
    pub(crate) async fn diff_of(&self, snapshot: Arc<Snapshot>, now: Timestamp) -> Result<Diff, Error> {
        let told = self.observe(now).await?.told;
        let sourced = Sourced { snapshot: Some(snapshot), ..Sourced::default() };
        let view = self.look(told, Arc::new(sourced)).await?;
        self.told_diff(view, String::new()).await
    }

    async fn told_diff(&self, view: View, waits: String) -> Result<Diff, Error> {
        let Some(snapshot) = view.sourced.snapshot.clone() else {
            return Err(Error::NoSnapshot(self.application.name.clone()));
        };
        let asked: Vec<_> = view.desired.iter().map(|wanted| self.change(wanted)).collect();
        let answers: Vec<Option<(Change, Item)>> =
            futures::stream::iter(asked).buffered(AT_ONCE).collect().await;
        let mut found: Vec<(Change, Item)> = answers.into_iter().flatten().collect();
        let holds = guard::holds(&view);
        for gone in &view.gone {
            found.extend(self.removal(&view, gone, &holds).await);
        }
        self.foresee(&mut found).await;
        let mut changes: Vec<Change> = found.into_iter().map(|(change, _)| change).collect();
        changes.sort_by_cached_key(place);
        Ok(Diff {
            application: self.application.name.clone(),
            revision: snapshot.revision.clone(),
            held: view.told.sync.revision.clone(),
            waits,
            hooks: hooks(&view),
            changes,
            defects: view.defects,
        })
    }

    /// Fills in what each change will do to what runs.
    async fn foresee(&self, found: &mut [(Change, Item)]) {
        if found.is_empty() {
            return;
        }
        let world = self.world().await;
        let items: Vec<Item> = found.iter().map(|(_, item)| item.clone()).collect();
        let effects = forecast::effects(&items, &world);
        for ((change, item), effects) in found.iter_mut().zip(effects) {
            change.effects = effects;
            change.effects.extend(self.refusal(item).await);
        }
    }

    async fn world(&self) -> World {
        let mut world =
            World { pods: self.watched.around().await.pods.values().cloned().collect(), ..World::default() };
        for (kind, into) in [("Node", &mut world.nodes), ("PersistentVolume", &mut world.volumes)] {
            if let Some(kind) = kinds::by_kind("v1", kind) {
                let objects = self.watched.of(kind).await.snapshot();
                *into = objects.values().map(|object| whole(object, kind)).collect();
            }
        }
        world
    }

    async fn change(&self, wanted: &Wanted) -> Option<(Change, Item)> {
        let object = &wanted.object;
        let cache = self.watched.of(object.kind).await;
        let before = cache.get(&live::key(&object.id)).map(|live| whole(&live, object.kind));
        let empty = Value::Null;
        let (kind, reason, after) = match &wanted.verdict {
            Verdict::Same | Verdict::Ended(_) | Verdict::Left => return None,
            Verdict::Taken(defect) => (ChangeKind::Fail, defect.message.clone(), None),
            Verdict::Immutable(why) => (ChangeKind::Recreate, why.clone(), Some((*object.value).clone())),
            Verdict::Missing | Verdict::Failed(_) | Verdict::Differs => {
                let masked = self.masked(object).await;
                let kind = if wanted.live.is_some() { ChangeKind::Change } else { ChangeKind::Create };
                match (act::apply(&self.door, &masked, Run::Dry).await, &wanted.verdict) {
                    (Ok(after), _) => (kind, String::new(), Some(after)),
                    (Err(_), Verdict::Failed(failure)) => {
                        (ChangeKind::Fail, failure.defect.message.clone(), None)
                    }
                    // Its namespace or kind may be made by the same plan.
                    (Err(error), _) if client::is_not_found(&error) => {
                        (kind, String::new(), Some((*object.value).clone()))
                    }
                    (Err(error), _) => (ChangeKind::Fail, told_by(&error).1, None),
                }
            }
        };
        let fields = match (&after, kind) {
            (_, ChangeKind::Fail) | (None, _) => Vec::new(),
            // What is made is shown as the files say it.
            (Some(_), ChangeKind::Create) => diff::fields(&object.id.kind, &empty, &object.value),
            (Some(after), ChangeKind::Recreate) => {
                wanted_fields(&object.id, before.as_ref().unwrap_or(&empty), after)
            }
            (Some(after), _) => diff::fields(&object.id.kind, before.as_ref().unwrap_or(&empty), after),
        };
        let change = Change {
            object: object.id.clone(),
            kind,
            file: object.file.to_string(),
            line: object.line,
            reason,
            wave: object.wave,
            confirm: false,
            fields,
            effects: Vec::new(),
        };
        Some((change, Item { id: object.id.clone(), kind, before, after }))
    }

    async fn removal(&self, view: &View, gone: &Gone, holds: &BTreeMap<Id, Hold>) -> Option<(Change, Item)> {
        let (live, kind) = (gone.live.as_ref()?, gone.kind?);
        if !is_ours(view, live) || live.deleting {
            return None;
        }
        let id = gone.told.id();
        let before = self.watched.of(kind).await.get(&live::key(&id)).map(|live| whole(&live, kind));
        let hold = holds.get(&id);
        // What waits for a confirmation shows what would go with it.
        let foreseen =
            if hold.is_some_and(|hold| !hold.confirm) { ChangeKind::Hold } else { ChangeKind::Prune };
        let change = Change {
            object: id.clone(),
            kind: if hold.is_some() { ChangeKind::Hold } else { ChangeKind::Prune },
            file: gone.told.file.clone(),
            line: gone.told.line,
            reason: hold.map_or_else(|| "no file wants it any more".to_owned(), |hold| hold.why.clone()),
            wave: 0,
            confirm: hold.is_some_and(|hold| hold.confirm),
            fields: Vec::new(),
            effects: Vec::new(),
        };
        Some((change, Item { id, kind: foreseen, before, after: None }))
    }

    /// Whether a quota or policy will refuse the pods of a workload: asked by a dry run of one of them.
    async fn refusal(&self, item: &Item) -> Option<Effect> {
        let after = item.after.as_ref()?;
        if !matches!(item.kind, ChangeKind::Create | ChangeKind::Change | ChangeKind::Recreate)
            || item.id.kind == "Pod"
        {
            return None;
        }
        let template = match item.id.kind.as_str() {
            "CronJob" => &after["spec"]["jobTemplate"]["spec"]["template"],
            _ => &after["spec"]["template"],
        };
        forecast::template(&item.id.kind, after)?;
        if item.before.as_ref().is_some_and(|before| {
            before["spec"]["template"] == *template && before["spec"]["replicas"] == after["spec"]["replicas"]
        }) {
            return None;
        }
        let mut meta = template["metadata"].clone();
        if !meta.is_object() {
            meta = json!({});
        }
        meta["generateName"] = json!(format!("{}-", item.id.name));
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]});
        match act::try_pod(&self.door, &item.id.namespace, &pod).await {
            Err(kube::Error::Api(status)) if status.code == 403 => Some(Effect::new(
                EffectKind::Refused,
                format!("its pods will be refused: {}", status.message),
            )),
            _ => None,
        }
    }
}

/// Of an object that cannot be tried, the fields that its file writes and that are live otherwise.
fn wanted_fields(id: &Id, before: &Value, wanted: &Value) -> Vec<diff::FieldChange> {
    let all = diff::fields(&id.kind, before, wanted);
    all.into_iter().filter(|field| field.new.is_some() && field.path.starts_with("spec")).collect()
}

/// In the order in which it happens: applied by wave and kind, then pruned the other way round.
fn place(change: &Change) -> (bool, i64, Result<usize, Reverse<usize>>, Id) {
    let rank = order::rank(&change.object.kind);
    let goes = matches!(change.kind, ChangeKind::Prune | ChangeKind::Hold);
    let wave = if goes { 0 } else { order::wave(&change.object.kind, change.wave) };
    (goes, wave, if goes { Err(Reverse(rank)) } else { Ok(rank) }, change.object.clone())
}

fn hooks(view: &View) -> Vec<PlannedHook> {
    let mut planned = Vec::new();
    for hook in &view.hooks {
        for phase in &hook.hook.phases {
            let done = view.told.hooks.iter().any(|known| {
                known.id() == hook.object.id
                    && known.phase == phase.spelled()
                    && known.run == view.content
                    && known.state == "Succeeded"
            });
            if !done {
                planned.push((
                    *phase,
                    hook.hook.weight,
                    PlannedHook {
                        object: hook.object.id.clone(),
                        phase: phase.spelled(),
                        file: hook.object.file.to_string(),
                        line: hook.object.line,
                    },
                ));
            }
        }
    }
    planned.sort_by(|a, b| (a.0, a.1, &a.2.object).cmp(&(b.0, b.1, &b.2.object)));
    planned.into_iter().map(|(_, _, hook)| hook).collect()
}
