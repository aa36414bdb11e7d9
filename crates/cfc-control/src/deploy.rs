//! The deployment of a Worker together with its applications, as one step: prepare every image, try it, activate all
//! of it, record it. Up to the record a failure leaves everything as it was.

use cfc_oci::Descriptor;
use uuid::Uuid;

use crate::catalog::{ApplicationSlots, attached_applications};
use crate::control::Inner;
use crate::draft::{ApplicationDraft, Upload};
use crate::error::Code;
use crate::records::Revision;
use crate::secrets::in_use;
use crate::{
    ApplicationRecord, Attachment, ControlError, Deployment, PinnedImage, PrepareErrorKind, Timestamp, WorkerRecord,
    application_id,
};

impl Inner {
    /// Deploys the upload. Deployments of one Worker wait for each other.
    pub async fn deploy(&self, mut upload: Upload) -> Result<Deployment, ControlError> {
        let name = upload.name.clone();
        let _turn = self.lock(&name).await;
        let recorded = self.catalog.worker(&name).await?;
        if recorded.value.is_none() && recorded.number > 0 {
            self.finish_deletion(&name).await?;
        }
        let mut slots = self.catalog.application_slots().await?;
        let previous = match recorded.value {
            Some(worker) => Some(self.catalog.deployment(worker, &slots).await?),
            None => None,
        };
        let drafts = upload.applications.take();
        let superseded = drafts.as_ref().map_or_else(Vec::new, |drafts| superseded(&name, drafts, &slots));
        let applications = self.prepare_all(&name, drafts.unwrap_or_default(), &slots).await?;
        for application in &applications {
            slots.insert(application.id, Revision { number: application.version, value: Some(application.clone()) });
        }
        for application in &superseded {
            slots.remove(&application.id);
        }

        let deployed =
            self.assemble_and_switch(upload, recorded.number + 1, previous.as_ref(), applications, &slots).await;
        let serving = deployed.as_ref().ok().or(previous.as_ref()).map(|deployment| &deployment.worker);
        self.drop_unused_secrets(&name, serving).await;
        let next = deployed?;
        self.follow_up(&next.worker.applications, &superseded).await;
        Ok(next)
    }

    async fn assemble_and_switch(
        &self,
        upload: Upload,
        number: u64,
        previous: Option<&Deployment>,
        applications: Vec<ApplicationRecord>,
        slots: &ApplicationSlots,
    ) -> Result<Deployment, ControlError> {
        let next = self.assemble(upload, previous, applications, slots).await?;
        let record = self.catalog.write_worker(&next.worker.name, number, Some(&next.worker));
        self.switch(previous, &next, record).await?;
        Ok(next)
    }

    async fn prepare_all(
        &self,
        worker: &str,
        drafts: Vec<ApplicationDraft>,
        slots: &ApplicationSlots,
    ) -> Result<Vec<ApplicationRecord>, ControlError> {
        let mut applications = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let attachment = Attachment { worker: worker.to_string(), class_name: draft.class_name.clone() };
            applications.push(self.prepare(draft, Some(attachment), slots).await?);
        }
        Ok(applications)
    }

    /// Makes the draft's image ready, tries it unless it is what runs already, and makes the application's next
    /// version of it; the recorded version when nothing changed.
    pub async fn prepare(
        &self,
        draft: ApplicationDraft,
        attachment: Option<Attachment>,
        slots: &ApplicationSlots,
    ) -> Result<ApplicationRecord, ControlError> {
        let id = application_id(&draft.name);
        let slot = slots.get(&id);
        let recorded = slot.and_then(|slot| slot.value.as_ref());
        let owner = recorded.and_then(|recorded| recorded.attachment.as_ref());
        if let (Some(owner), Some(wanted)) = (owner, &attachment)
            && owner.worker != wanted.worker
        {
            return Err(taken(&draft, owner));
        }
        let manifest = self.ready_image(&draft, recorded).await?;
        let now = Timestamp::now();
        let next = ApplicationRecord {
            id,
            name: draft.name,
            version: slot.map_or(0, |slot| slot.number) + 1,
            created_at: recorded.map_or(now, |recorded| recorded.created_at),
            updated_at: now,
            attachment: attachment.or_else(|| recorded.and_then(|recorded| recorded.attachment.clone())),
            image: PinnedImage { reference: draft.image, manifest },
            size: draft.size,
            max_instances: draft.max_instances,
            kept: draft.kept,
            kept_configuration: draft.kept_configuration,
        };
        match recorded {
            Some(recorded) if says_the_same(recorded, &next) => Ok(recorded.clone()),
            _ => Ok(next),
        }
    }

    async fn ready_image(
        &self,
        draft: &ApplicationDraft,
        recorded: Option<&ApplicationRecord>,
    ) -> Result<Descriptor, ControlError> {
        let subject = format!("container `{}` was not deployed", draft.name);
        let location = format!("{}.image", draft.location);
        let manifest = match self.platform.prepare_image(&draft.image).await {
            Ok(manifest) => manifest,
            Err(error) => {
                let hint = error.hint.clone().or_else(|| prepare_hint(&error.kind));
                return Err(with_hint(ControlError::new(Code::Image, subject).at(location).because(error), hint));
            }
        };
        let runs_already = |recorded: &ApplicationRecord| {
            recorded.image.manifest.digest == manifest.digest && recorded.size == draft.size
        };
        if draft.skip_trial || recorded.is_some_and(runs_already) {
            return Ok(manifest);
        }
        match self.platform.try_image(&draft.name, &manifest, &draft.size).await {
            Ok(()) => Ok(manifest),
            Err(error) => {
                let hint = error.hint.clone();
                Err(with_hint(ControlError::new(Code::Trial, subject).at(location).because(error), hint))
            }
        }
    }

    /// Writes the modules and puts the version together.
    async fn assemble(
        &self,
        upload: Upload,
        previous: Option<&Deployment>,
        applications: Vec<ApplicationRecord>,
        slots: &ApplicationSlots,
    ) -> Result<Deployment, ControlError> {
        let mut modules = Vec::with_capacity(upload.modules.len());
        for module in &upload.modules {
            let unwritten = |error| {
                ControlError::new(Code::Bucket, format!("cannot store Worker `{}`", upload.name)).because(error)
            };
            modules.push(self.catalog.modules().put(module).await.map_err(unwritten)?);
        }
        let previous = previous.map(|previous| &previous.worker);
        let now = Timestamp::now();
        let mut worker = WorkerRecord {
            name: upload.name,
            version_id: Uuid::new_v4(),
            created_at: previous.map_or(now, |previous| previous.created_at),
            deployed_at: now,
            main_module: upload.main_module,
            modules,
            compatibility_date: upload.compatibility_date,
            compatibility_flags: upload.compatibility_flags,
            vars: upload.vars,
            secrets: previous.map(|previous| previous.secrets.clone()).unwrap_or_default(),
            durable_objects: upload.durable_objects,
            migrations: upload.migrations.after(previous.map_or_else(Vec::new, |previous| previous.migrations.clone())),
            containers: upload.containers,
            more: upload.more,
            applications,
            metadata: upload.metadata,
        };
        inherit(&mut worker, previous, &upload.inherited)?;
        if let Some(taken) = worker.secrets.keys().find(|secret| worker.other_bindings().contains(*secret)) {
            return Err(in_use(taken));
        }
        for (secret, value) in upload.secrets {
            self.set_secret(&mut worker, secret, &value).await?;
        }
        let applications = attached_applications(&worker, slots);
        Ok(Deployment { worker, modules: upload.modules, applications })
    }

    /// Repeats in the application records what the Worker's record has made true already. A failure costs nothing:
    /// readers take the newer of the two.
    pub async fn follow_up(&self, applications: &[ApplicationRecord], superseded: &[ApplicationRecord]) {
        let written = applications.iter().map(|application| (application.id, application.version, Some(application)));
        let deleted = superseded.iter().map(|application| (application.id, application.version + 1, None));
        for (id, version, record) in written.chain(deleted) {
            if let Err(error) = self.catalog.write_application(id, version, record).await {
                tracing::debug!(%id, version, %error, "the application's own record was not written");
            }
        }
    }
}

/// Gives the version those bindings of the one before that its upload does not repeat. Secrets are inherited in any case.
fn inherit(worker: &mut WorkerRecord, previous: Option<&WorkerRecord>, names: &[String]) -> Result<(), ControlError> {
    for name in names {
        let has_secret = previous.is_some_and(|previous| previous.secrets.contains_key(name));
        let variable = previous.and_then(|previous| previous.vars.get(name));
        let object =
            previous.and_then(|previous| previous.durable_objects.iter().find(|binding| binding.name == *name));
        match (variable, object) {
            (Some(value), _) => drop(worker.vars.insert(name.clone(), value.clone())),
            (None, Some(binding)) => worker.durable_objects.push(binding.clone()),
            (None, None) if has_secret => {}
            (None, None) => {
                let what = format!("binding `{name}` cannot be inherited: Worker `{}` has none", worker.name);
                return Err(ControlError::new(Code::NoSuchBinding, what).at("metadata.bindings"));
            }
        }
    }
    Ok(())
}

/// The applications of `worker` that `drafts` do not name.
fn superseded(worker: &str, drafts: &[ApplicationDraft], slots: &ApplicationSlots) -> Vec<ApplicationRecord> {
    let live = slots.values().filter_map(|slot| slot.value.as_ref());
    let of_worker = live.filter(|application| application.attachment.as_ref().is_some_and(|a| a.worker == worker));
    of_worker.filter(|application| drafts.iter().all(|draft| draft.name != application.name)).cloned().collect()
}

fn says_the_same(recorded: &ApplicationRecord, next: &ApplicationRecord) -> bool {
    let ApplicationRecord { version, updated_at, .. } = *recorded;
    *recorded == ApplicationRecord { version, updated_at, ..next.clone() }
}

fn taken(draft: &ApplicationDraft, owner: &Attachment) -> ControlError {
    let message = format!("container `{}` belongs to Worker `{}` already", draft.name, owner.worker);
    ControlError::new(Code::Exists, message)
        .at(format!("{}.name", draft.location))
        .hint("give the container another `name` in the wrangler config")
}

fn prepare_hint(kind: &PrepareErrorKind) -> Option<String> {
    let hint = match kind {
        PrepareErrorKind::NotFound => "push it first: `cfc push` in the project's directory",
        PrepareErrorKind::Unauthorized => "log in to the registry where `cfc serve` runs",
        PrepareErrorKind::WrongPlatform { .. } => "build the image for this machine's platform",
        PrepareErrorKind::Other(_) => return None,
    };
    Some(hint.to_string())
}

fn with_hint(error: ControlError, hint: Option<String>) -> ControlError {
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
