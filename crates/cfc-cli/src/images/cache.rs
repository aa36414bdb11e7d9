//! Build caches that are shared: `--cache-from` and `--cache-to`.
//!
//! A shared cache is an OCI manifest: its config has the records of keys and layers, its layers are those that the records
//! name. So registries and layouts keep it as they keep images. An inline cache is an annotation of the image's manifest.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cfc_build_native::{CACHE_CONFIG_TYPE, CacheRecords, CacheSource, INLINE_ANNOTATION};
use cfc_oci::{Descriptor, Digest, Manifest, Platform, Reference, media_type};
use cfc_store::{Store, find_in_oci_layout};
use cfc_transfer::{Options, RemoteArtifact};
use tokio::runtime::Runtime;

use crate::commands::client_runtime;
use crate::failure::Failure;
use crate::images::push::push_image;
use crate::output;
use crate::settings::Settings;

/// More is no honest list of records.
const MAX_RECORDS_BYTES: u64 = 64 << 20;

/// Where a cache comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheFrom {
    Registry(Reference),
    Local(PathBuf),
}

/// Where a cache goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheTo {
    Registry(Reference, Mode),
    Local(PathBuf, Mode),
    Inline,
}

/// What of a build is exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// The image's own layers.
    #[default]
    Min,
    /// Those of all steps.
    Max,
}

/// The fields of a flag.
struct Fields<'a> {
    flag: &'static str,
    text: &'a str,
    fields: Vec<(&'a str, &'a str)>,
}

impl<'a> Fields<'a> {
    fn parse(flag: &'static str, text: &'a str) -> Result<Fields<'a>, Failure> {
        let mut parsed = Fields { flag, text, fields: Vec::new() };
        for field in text.split(',') {
            let pair = field.split_once('=').ok_or_else(|| parsed.bad(format!("`{field}` is not KEY=VALUE")))?;
            parsed.fields.push(pair);
        }
        Ok(parsed)
    }

    fn bad(&self, what: impl std::fmt::Display) -> Failure {
        let place = if self.flag == "--cache-to" { "dest" } else { "src" };
        Failure::new(format!("{} `{}`: {what}", self.flag, self.text))
            .hint(format!("write `type=registry,ref=NAME:TAG`, `type=local,{place}=DIR`, or `--cache-to type=inline`"))
    }

    fn take(&mut self, key: &str) -> Option<&'a str> {
        let index = self.fields.iter().position(|(name, _)| *name == key)?;
        Some(self.fields.remove(index).1)
    }

    fn need(&mut self, key: &str) -> Result<&'a str, Failure> {
        self.take(key).ok_or_else(|| self.bad(format!("it has no `{key}`")))
    }

    fn reference(&mut self) -> Result<Reference, Failure> {
        let text = self.need("ref")?;
        let reference: Reference = text.parse().map_err(|error| self.bad(error))?;
        match reference.registry {
            Some(_) => Ok(reference),
            None => Err(self.bad(format!("`{text}` names no registry"))),
        }
    }

    fn mode(&mut self) -> Result<Mode, Failure> {
        match self.take("mode") {
            None | Some("min") => Ok(Mode::Min),
            Some("max") => Ok(Mode::Max),
            Some(other) => Err(self.bad(format!("there is no mode `{other}`, only min and max"))),
        }
    }

    fn no_type(&self, kind: &str) -> Failure {
        match kind {
            "gha" | "s3" | "azblob" => self.bad(format!("caches of type `{kind}` are not supported")),
            _ => self.bad(format!("there is no type `{kind}`")),
        }
    }

    fn end(&self) -> Result<(), Failure> {
        match self.fields.first() {
            Some((key, value)) => Err(self.bad(format!("`{key}={value}` is not supported"))),
            None => Ok(()),
        }
    }
}

impl CacheFrom {
    /// What `--cache-from` says; a name alone is one in a registry.
    pub fn parse(text: &str) -> Result<CacheFrom, Failure> {
        let named = format!("type=registry,ref={text}");
        let is_named = !text.contains('=');
        let mut fields = Fields::parse("--cache-from", if is_named { &named } else { text })?;
        let parsed = match fields.need("type")? {
            "registry" => CacheFrom::Registry(fields.reference()?),
            "local" => CacheFrom::Local(PathBuf::from(fields.need("src")?)),
            "inline" => return Err(fields.bad("an inline cache is imported as `type=registry,ref=IMAGE`")),
            kind => return Err(fields.no_type(kind)),
        };
        fields.end().map(|()| parsed)
    }

    /// Opens it, for a build for `platform`. A cache that cannot be had is none: that is said, and the build goes on.
    pub fn open(&self, settings: &Settings, store: &Store, platform: &Platform) -> Option<Box<dyn CacheSource>> {
        let (name, opened) = match self {
            CacheFrom::Registry(reference) => {
                (reference.to_string(), open_remote(reference, platform, settings, store))
            }
            CacheFrom::Local(directory) => (directory.display().to_string(), open_local(directory)),
        };
        opened
            .inspect_err(|failure| {
                let why = failure.causes.iter().fold(failure.message.clone(), |text, cause| format!("{text}: {cause}"));
                output::tell(format!("warning: cannot use the cache `{name}`: {why}"));
            })
            .ok()
    }
}

impl CacheTo {
    /// What `--cache-to` says.
    pub fn parse(text: &str) -> Result<CacheTo, Failure> {
        let mut fields = Fields::parse("--cache-to", text)?;
        let parsed = match fields.need("type")? {
            "registry" => CacheTo::Registry(fields.reference()?, fields.mode()?),
            "local" => CacheTo::Local(PathBuf::from(fields.need("dest")?), fields.mode()?),
            "inline" => CacheTo::Inline,
            kind => return Err(fields.no_type(kind)),
        };
        fields.end().map(|()| parsed)
    }

    /// What it takes of a build; none where the image has it already.
    pub fn mode(&self) -> Option<Mode> {
        match self {
            CacheTo::Registry(_, mode) | CacheTo::Local(_, mode) => Some(*mode),
            CacheTo::Inline => None,
        }
    }

    /// Sends `records` there, with the layers they name, which the store has.
    pub fn send(&self, store: &Store, records: &CacheRecords, options: &Options) -> Result<(), Failure> {
        let bytes = records.to_bytes();
        let config = Descriptor::new(CACHE_CONFIG_TYPE, store.blobs().put(&bytes)?, bytes.len() as u64);
        let manifest = Manifest::new(config, records.blobs()).to_bytes();
        let cache = Descriptor::new(media_type::MANIFEST, store.blobs().put(&manifest)?, manifest.len() as u64);
        match self {
            CacheTo::Registry(reference, _) => {
                client_runtime()?.block_on(push_image(store, &cache, reference, options))?;
                output::tell(format!("exported the build cache to {reference}"));
            }
            CacheTo::Local(directory, _) => {
                store.export_oci_layout(&cache, Some(&"cache:latest".parse()?), directory)?;
                output::tell(format!("exported the build cache to {}", directory.display()));
            }
            CacheTo::Inline => {}
        }
        Ok(())
    }
}

/// The records that a manifest leads to: its own, or those of the image it is.
fn records(
    manifest: &Manifest,
    config: impl FnOnce(&Descriptor) -> Result<Vec<u8>, Failure>,
) -> Result<CacheRecords, Failure> {
    let bytes = if manifest.config.media_type == CACHE_CONFIG_TYPE {
        if manifest.config.size > MAX_RECORDS_BYTES {
            return Err(Failure::new(format!("its records have {} bytes", manifest.config.size)));
        }
        config(&manifest.config)?
    } else {
        let inline = manifest.annotations.get(INLINE_ANNOTATION);
        let none = || Failure::new("it is neither a build cache of cfc nor an image with an inline one");
        inline.ok_or_else(none)?.clone().into_bytes()
    };
    CacheRecords::parse(&bytes).map_err(Failure::new)
}

struct Local {
    name: String,
    directory: PathBuf,
    records: CacheRecords,
}

fn open_local(directory: &Path) -> Result<Box<dyn CacheSource>, Failure> {
    let cache = find_in_oci_layout(directory, "latest", None)?;
    let manifest = serde_json::from_slice(&read_blob(directory, &cache)?)?;
    let records = records(&manifest, |config| read_blob(directory, config))?;
    Ok(Box::new(Local { name: directory.display().to_string(), directory: directory.to_path_buf(), records }))
}

fn read_blob(directory: &Path, blob: &Descriptor) -> Result<Vec<u8>, Failure> {
    let path = directory.join("blobs").join(blob.digest.algorithm().as_str()).join(blob.digest.hex());
    let at = |error| Failure::because(format!("cannot read `{}`", path.display()), &error);
    let mut bytes = Vec::new();
    File::open(&path).map_err(at)?.take(MAX_RECORDS_BYTES).read_to_end(&mut bytes).map_err(at)?;
    match Digest::of(&bytes) == blob.digest {
        true => Ok(bytes),
        false => Err(Failure::new(format!("`{}` does not hold what its name says", path.display()))),
    }
}

impl CacheSource for Local {
    fn name(&self) -> &str {
        &self.name
    }

    fn records(&self) -> &CacheRecords {
        &self.records
    }

    fn fetch(&self, store: &Store, blob: &Descriptor) -> Result<(), String> {
        store.import_layout_blob(blob, &self.directory).map_err(one_line)
    }
}

struct Remote {
    name: String,
    /// Connections belong to the runtime that made them.
    runtime: Mutex<Runtime>,
    artifact: RemoteArtifact,
    records: CacheRecords,
}

fn open_remote(
    reference: &Reference,
    platform: &Platform,
    settings: &Settings,
    store: &Store,
) -> Result<Box<dyn CacheSource>, Failure> {
    let options = settings.transfer_options()?;
    let runtime = client_runtime()?;
    let artifact = runtime.block_on(RemoteArtifact::open(reference, platform, &options))?;
    let records = records(artifact.manifest(), |config| {
        runtime.block_on(artifact.fetch(store, config))?;
        Ok(store.blobs().read(&config.digest)?)
    })?;
    Ok(Box::new(Remote { name: reference.to_string(), runtime: Mutex::new(runtime), artifact, records }))
}

impl CacheSource for Remote {
    fn name(&self) -> &str {
        &self.name
    }

    fn records(&self) -> &CacheRecords {
        &self.records
    }

    fn fetch(&self, store: &Store, blob: &Descriptor) -> Result<(), String> {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        runtime.block_on(self.artifact.fetch(store, blob)).map_err(one_line)
    }
}

fn one_line(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_as_buildx_reads_them() {
        let reference = |text: &str| text.parse::<Reference>().expect("a reference");
        let from = |text: &str| CacheFrom::parse(text).map_err(|failure| failure.message);
        assert_eq!(from("reg.example/a:1"), Ok(CacheFrom::Registry(reference("reg.example/a:1"))));
        assert_eq!(from("type=local,src=x"), Ok(CacheFrom::Local(PathBuf::from("x"))));
        let to = |text: &str| CacheTo::parse(text).map_err(|failure| failure.message);
        assert_eq!(
            to("type=registry,ref=reg.example/a:1,mode=max"),
            Ok(CacheTo::Registry(reference("reg.example/a:1"), Mode::Max))
        );
        assert_eq!(to("mode=min,type=local,dest=x"), Ok(CacheTo::Local(PathBuf::from("x"), Mode::Min)));
        assert_eq!(to("type=inline"), Ok(CacheTo::Inline));
        for (text, expected) in [
            ("type=gha", "caches of type `gha` are not supported"),
            ("type=s3,bucket=b", "caches of type `s3` are not supported"),
            ("type=azblob", "caches of type `azblob` are not supported"),
            ("type=tape", "there is no type `tape`"),
            ("type=local", "it has no `dest`"),
            ("type=local,dest=x,mode=all", "there is no mode `all`"),
            ("type=local,dest=x,compression=zstd", "`compression=zstd` is not supported"),
            ("type=registry,ref=app", "`app` names no registry"),
            ("ref=x", "it has no `type`"),
        ] {
            let message = to(text).expect_err(text);
            assert!(message.contains(expected), "{message}");
        }
        assert!(from("type=gha").is_err_and(|message| message.contains("`gha` are not supported")));
    }
}
