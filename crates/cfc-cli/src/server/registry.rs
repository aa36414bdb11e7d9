//! The registry over the data directory's bucket.

use std::path::PathBuf;
use std::sync::Arc;

use cfc_registry::{AccessRules, Options, Registry, Tls};
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
    let mut options = Options {
        accept_sparse: entry.accept_sparse,
        deletes: entry.deletes,
        immutable_tags: entry.immutable_tags.clone(),
        ..Options::default()
    };
    if let Some(grace) = entry.gc_grace {
        options.collection.grace = grace.duration();
    }
    options.collection.untagged = entry.gc_untagged.map(|age| age.duration());
    if let Some(every) = entry.gc_every {
        options.collect_every = Some(every.duration()).filter(|every| !every.is_zero());
    }
    Ok(options)
}

/// The registry of the data directory within the platform, whose own user, `v1`, may do everything: the control API
/// gives its password to whoever may deploy.
pub fn open(settings: &Settings, password: &str) -> Result<Registry, Failure> {
    let mut options = options(settings)?;
    options.authorizer = access(settings)?.map(|rules| Arc::new(rules.with_trusted("v1", password)) as _);
    if settings.file.registry.tls_certificate.is_some() {
        let what = "`tls_certificate` below `[registry]` in the configuration file is for a registry that runs alone";
        let hint =
            "`cfc serve` keeps its registry on loopback; run `cfc registry serve` with a data directory of its own";
        return Err(Failure::new(what).hint(hint));
    }
    Ok(Registry::open(&bucket_directory(settings), options)?)
}

/// The registry of the data directory alone.
pub fn open_alone(settings: &Settings) -> Result<Registry, Failure> {
    let mut options = options(settings)?;
    options.authorizer = access(settings)?.map(|rules| Arc::new(rules) as _);
    options.tls = tls(settings)?;
    Ok(Registry::open(&bucket_directory(settings), options)?)
}

/// Who may do what, if the configuration file names users.
fn access(settings: &Settings) -> Result<Option<AccessRules>, Failure> {
    let entry = &settings.file.registry;
    match &entry.htpasswd {
        Some(file) => {
            let rules = AccessRules::new(file, entry.allow.clone());
            rules.map(Some).map_err(|error| Failure::because("cannot use `htpasswd` below `[registry]`", &error))
        }
        None if entry.allow.is_empty() => Ok(None),
        None => Err(Failure::new("`[[registry.allow]]` in the configuration file needs users")
            .hint("name a file that `htpasswd -B` has made as `htpasswd` below `[registry]`")),
    }
}

fn tls(settings: &Settings) -> Result<Option<Tls>, Failure> {
    let entry = &settings.file.registry;
    match (&entry.tls_certificate, &entry.tls_key) {
        (Some(certificate), Some(key)) => Ok(Some(Tls::open(certificate, key)?)),
        (None, None) => Ok(None),
        _ => Err(Failure::new("`tls_certificate` and `tls_key` below `[registry]` need each other")),
    }
}
