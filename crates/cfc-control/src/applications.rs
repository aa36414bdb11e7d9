//! Changes of applications by themselves, as wrangler makes them after it has uploaded the Worker: each is prepared,
//! tried, activated with its Worker, and recorded, like a deployment.

use uuid::Uuid;

use crate::catalog::{ApplicationSlots, attached_applications, unwritten};
use crate::control::Inner;
use crate::draft::ApplicationDraft;
use crate::error::Code;
use crate::records::Revision;
use crate::rollout::RolloutRecord;
use crate::{ApplicationRecord, Attachment, ControlError, Timestamp, WorkerRecord, application_id};

impl Inner {
    /// Makes a new application, attached to the Durable Object namespace with this id.
    pub async fn create_application(
        &self,
        mut draft: ApplicationDraft,
        namespace_id: Option<&str>,
    ) -> Result<ApplicationRecord, ControlError> {
        let attachment = match namespace_id {
            Some(id) => Some(self.find_namespace(id).await?),
            None => None,
        };
        if let Some(attachment) = &attachment {
            draft.class_name = attachment.class_name.clone();
        }
        let _turn = self.lock(attachment.as_ref().map_or(&draft.name, |attachment| &attachment.worker)).await;
        if let Some(id) = namespace_id {
            // Its Worker may have been deleted meanwhile.
            self.find_namespace(id).await?;
        }
        let slots = self.catalog.application_slots().await?;
        let exists = slots.get(&application_id(&draft.name)).is_some_and(|slot| slot.value.is_some());
        if exists {
            return Err(ControlError::new(Code::Exists, format!("container application `{}` exists", draft.name)));
        }
        let application = self.prepare(draft, attachment, &slots).await?;
        self.put_in_place(application, slots).await
    }

    /// Gives an application what `draft` says, under the name it has.
    pub async fn change_application(
        &self,
        id_or_name: &str,
        draft: impl FnOnce(&ApplicationRecord) -> Result<ApplicationDraft, ControlError>,
    ) -> Result<ApplicationRecord, ControlError> {
        let found = self.catalog.application(id_or_name).await?;
        let _turn = self.lock(found.attachment.as_ref().map_or(&found.name, |attachment| &attachment.worker)).await;
        let recorded = self.catalog.application(id_or_name).await?;
        let slots = self.catalog.application_slots().await?;
        let changed = self.prepare(draft(&recorded)?, recorded.attachment.clone(), &slots).await?;
        if changed.version == recorded.version {
            return Ok(recorded);
        }
        self.put_in_place(changed, slots).await
    }

    /// Deletes an application; its Worker goes on without it.
    pub async fn delete_application(&self, id_or_name: &str) -> Result<(), ControlError> {
        let found = self.catalog.application(id_or_name).await?;
        let _turn = self.lock(found.attachment.as_ref().map_or(&found.name, |attachment| &attachment.worker)).await;
        let recorded = self.catalog.application(id_or_name).await?;
        let slots = self.catalog.application_slots().await?;
        let mut without = slots.clone();
        without.insert(recorded.id, Revision { number: recorded.version + 1, value: None });
        self.change(&recorded, &slots, &without).await
    }

    /// Records a rollout, and applies its target configuration where that is new.
    pub async fn roll_out(
        &self,
        id_or_name: &str,
        request: serde_json::Map<String, serde_json::Value>,
        draft: impl FnOnce(&ApplicationRecord) -> Result<ApplicationDraft, ControlError>,
    ) -> Result<RolloutRecord, ControlError> {
        let before = self.catalog.application(id_or_name).await?;
        let after = self.change_application(id_or_name, draft).await?;
        let rollout = RolloutRecord {
            id: Uuid::new_v4(),
            application_id: after.id,
            current_version: before.version,
            target_version: after.version,
            created_at: Timestamp::now(),
            request,
        };
        self.catalog.write_rollout(&rollout).await?;
        Ok(rollout)
    }

    async fn put_in_place(
        &self,
        application: ApplicationRecord,
        slots: ApplicationSlots,
    ) -> Result<ApplicationRecord, ControlError> {
        let mut with = slots.clone();
        with.insert(application.id, Revision { number: application.version, value: Some(application.clone()) });
        self.change(&application, &slots, &with).await?;
        Ok(application)
    }

    /// Activates the Worker of `subject` with the applications of `after` instead of `before`, and records `subject`'s
    /// slot of `after`.
    async fn change(
        &self,
        subject: &ApplicationRecord,
        before: &ApplicationSlots,
        after: &ApplicationSlots,
    ) -> Result<(), ControlError> {
        let slot = &after[&subject.id];
        let record = self.catalog.write_application(subject.id, slot.number, slot.value.as_ref());
        match self.worker_concerned(subject, before, after).await? {
            Some(worker) => {
                let previous = self.catalog.deployment(worker, before).await?;
                let mut next = previous.clone();
                next.applications = attached_applications(&next.worker, after);
                self.switch(Some(&previous), &next, record).await
            }
            None => {
                let what = format!("cannot record container application `{}`", subject.name);
                record.await.map_err(|error| unwritten(&what, error))
            }
        }
    }

    /// The Worker that serves with other applications after the change.
    async fn worker_concerned(
        &self,
        subject: &ApplicationRecord,
        before: &ApplicationSlots,
        after: &ApplicationSlots,
    ) -> Result<Option<WorkerRecord>, ControlError> {
        let Some(attachment) = &subject.attachment else { return Ok(None) };
        let worker = self.catalog.worker(&attachment.worker).await?.value;
        Ok(worker.filter(|worker| attached_applications(worker, before) != attached_applications(worker, after)))
    }

    async fn find_namespace(&self, id: &str) -> Result<Attachment, ControlError> {
        let workers = self.catalog.workers().await?;
        let attachments =
            workers.iter().flat_map(|worker| worker.classes().into_iter().map(|class| worker.attachment(&class)));
        let found = attachments.into_iter().find(|attachment| attachment.namespace_id() == id);
        found.ok_or_else(|| {
            ControlError::new(Code::NotFound, format!("there is no Durable Object namespace `{id}`"))
                .at("durable_objects.namespace_id")
                .hint("deploy the Worker that has the class first")
        })
    }
}
