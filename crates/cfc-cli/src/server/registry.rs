//! The registry over the data directory's bucket.

use std::path::PathBuf;
use std::sync::Arc;

use cfc_registry::Registry;
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

/// The registry of the data directory.
pub fn open(settings: &Settings) -> Result<Registry, Failure> {
    Ok(Registry::open(bucket(settings)?, Some(bucket_directory(settings)), cfc_registry::Options::default())?)
}
