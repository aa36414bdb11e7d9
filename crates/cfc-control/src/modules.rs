//! [`ModuleStore`]: the modules of Workers, each an object named by its digest.

use std::sync::Arc;

use cfc_oci::Digest;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use crate::{Module, ModuleRecord};

/// ```text
/// control/modules/<sha256, 64 digits>      the module's bytes
/// ```
#[derive(Clone)]
pub(crate) struct ModuleStore {
    bucket: Arc<dyn ObjectStore>,
}

impl ModuleStore {
    pub fn new(bucket: Arc<dyn ObjectStore>) -> ModuleStore {
        ModuleStore { bucket }
    }

    /// Writes the module, unless the bucket has these bytes already.
    pub async fn put(&self, module: &Module) -> Result<ModuleRecord, ModuleError> {
        let record = describe(module);
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.bucket.put_opts(&path(&record.digest), module.bytes.clone().into(), create).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(source) => {
                return Err(ModuleError { module: module.name.clone(), kind: ModuleErrorKind::Store(source) });
            }
        }
        Ok(record)
    }

    /// Reads a module and checks that its bytes are those that were recorded.
    pub async fn get(&self, record: &ModuleRecord) -> Result<Module, ModuleError> {
        let error = |kind| ModuleError { module: record.name.clone(), kind };
        let object = self.bucket.get(&path(&record.digest)).await;
        let object = object.map_err(|source| error(ModuleErrorKind::Store(source)))?;
        let bytes = object.bytes().await.map_err(|source| error(ModuleErrorKind::Store(source)))?;
        let found = Digest::of(&bytes);
        if found != record.digest {
            return Err(error(ModuleErrorKind::Corrupt { expected: record.digest.clone(), found }));
        }
        Ok(Module { name: record.name.clone(), content_type: record.content_type.clone(), bytes })
    }
}

fn describe(module: &Module) -> ModuleRecord {
    ModuleRecord {
        name: module.name.clone(),
        content_type: module.content_type.clone(),
        digest: Digest::of(&module.bytes),
        size: module.bytes.len() as u64,
    }
}

fn path(digest: &Digest) -> Path {
    Path::from("control/modules").join(digest.hex())
}

/// A module that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("module `{module}`: {kind}")]
pub struct ModuleError {
    /// The module's name.
    pub module: String,
    /// What went wrong.
    pub kind: ModuleErrorKind,
}

/// What went wrong with a module.
#[derive(Debug, thiserror::Error)]
pub enum ModuleErrorKind {
    /// The object store failed.
    #[error("{0}")]
    Store(object_store::Error),
    /// The bucket holds other bytes than were put there.
    #[error("its record says {expected}, its bytes hash to {found}")]
    Corrupt {
        /// What was recorded.
        expected: Digest,
        /// What is there.
        found: Digest,
    },
}
