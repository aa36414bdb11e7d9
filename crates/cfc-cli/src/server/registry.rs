//! The registry over the data directory's bucket.

use std::path::PathBuf;
use std::sync::Arc;

use cfc_registry::{Options, Registry};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use crate::failure::Failure;
use crate::settings::Settings;

/// The directory that stands for the bucket.
pub fn bucket_directory(settings: &Settings) -> PathBuf {
    settings.data.join("bucket")
}

/// The bucket: a directory, with every acknowledged object synced.
pub fn bucket(settings: &Settings) -> Result<Arc<dyn ObjectStore>, Failure> {
    let directory = bucket_directory(settings);
    let cannot = |error: &dyn std::error::Error| {
        Failure::because(format!("cannot use `{}` as bucket", directory.display()), error)
    };
    std::fs::create_dir_all(&directory).map_err(|error| cannot(&error))?;
    let store = LocalFileSystem::new_with_prefix(&directory).map_err(|error| cannot(&error))?;
    Ok(Arc::new(store.with_fsync(true)))
}

/// How the configuration file wants the registry.
pub fn options(settings: &Settings) -> Result<Options, Failure> {
    let entry = &settings.file.registry;
    let mut options = Options { accept_sparse: entry.accept_sparse, ..Options::default() };
    if let Some(grace) = entry.gc_grace {
        options.collection.grace = grace.duration();
    }
    options.collection.untagged = entry.gc_untagged.map(|age| age.duration());
    if let Some(every) = entry.gc_every {
        options.collect_every = Some(every.duration()).filter(|every| !every.is_zero());
    }
    Ok(options)
}

/// The registry of the data directory.
pub fn open(settings: &Settings) -> Result<Registry, Failure> {
    Ok(Registry::open(&bucket_directory(settings), options(settings)?)?)
}
