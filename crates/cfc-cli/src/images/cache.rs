//! Build caches that are shared: `--cache-from` and `--cache-to`.
//!
//! A shared cache is an OCI manifest: its config has the records of keys and layers, its layers are those that the records
//! name. So registries and layouts keep it as they keep images. An inline cache is an annotation of the image's manifest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cfc_build_buildkit::{CacheEntry, CachePlace};
use cfc_build_native::{CACHE_CONFIG_TYPE, CacheRecords, CacheSource, INLINE_ANNOTATION};
use cfc_oci::{Descriptor, Digest, Manifest, Platform, Reference, media_type};
use cfc_store::{Compression, Encoding, Store, find_in_oci_layout};
use cfc_transfer::{Options, RemoteArtifact};
use tokio::runtime::Runtime;

use crate::commands::client_runtime;
use crate::failure::Failure;
use crate::images::push::push_image;
use crate::output;
use crate::settings::Settings;

/// What the config of a cache is that BuildKit wrote.
const BUILDKIT_CONFIG_TYPE: &str = "application/vnd.buildkit.cacheconfig";
/// More is no honest list of records.
const MAX_RECORDS_BYTES: u64 = 64 << 20;

/// Where a cache comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheFrom {
    Registry(Reference),
    Local(PathBuf),
}

/// Where a cache goes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheTo {
    place: Place,
    mode: Mode,
    /// How layers are encoded there, when not as in the image; `forces` it also on those that no step here made.
    encoding: Option<Encoding>,
    forces_encoding: bool,
    /// Whether an image whose cache cannot be sent is all right.
    ignores_errors: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Registry(Reference),
    Local(PathBuf),
    /// In the image itself.
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

    fn flag(&mut self, key: &str) -> Result<bool, Failure> {
        match self.take(key) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(self.bad(format!("`{key}` is true or false, not `{other}`"))),
        }
    }

    /// What layers are encoded with, by BuildKit's names.
    fn encoding(&mut self) -> Result<Option<Encoding>, Failure> {
        let (kind, level) = (self.take("compression"), self.take("compression-level"));
        let level =
            level.map(|level| level.parse().map_err(|_| self.bad(format!("`{level}` is no level")))).transpose()?;
        let compression = match kind {
            None if level.is_some() => return Err(self.bad("it has a `compression-level`, and no `compression`")),
            None => return Ok(None),
            Some("gzip") => Compression::Gzip,
            Some("zstd") => Compression::Zstd,
            Some("uncompressed" | "none") => Compression::None,
            Some("estargz") => return Err(self.bad("an eStargz is another layer than the one that the step made")),
            Some(other) => return Err(self.bad(format!("there is no compression `{other}`"))),
        };
        Encoding::new(compression, level).map(Some).map_err(|what| self.bad(what))
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
            .inspect_err(|failure| output::tell(format!("warning: cannot use the cache `{name}`: {}", why(failure))))
            .ok()
    }
}

impl CacheFrom {
    /// The same for a BuildKit daemon, which reads the cache itself. One that cannot be had is none: that is said, and the
    /// build goes on.
    pub fn for_daemon(&self) -> Option<CacheEntry> {
        let place = match self {
            CacheFrom::Registry(reference) => CachePlace::Registry(reference.to_string()),
            CacheFrom::Local(directory) => {
                let found = find_for_daemon(directory).inspect_err(|failure| {
                    output::tell(format!("warning: cannot use the cache `{}`: {}", directory.display(), why(failure)));
                });
                CachePlace::Found(directory.clone(), found.ok()?)
            }
        };
        Some(CacheEntry { place, attributes: BTreeMap::new() })
    }
}

/// The cache of a directory, which must be one of BuildKit's.
fn find_for_daemon(directory: &Path) -> Result<Digest, Failure> {
    let cache = find_in_oci_layout(directory, "latest", None)?;
    let text = read_blob(directory, &cache)?;
    match String::from_utf8_lossy(&text).contains(BUILDKIT_CONFIG_TYPE) {
        true => Ok(cache.digest),
        false => Err(Failure::new("it is not a build cache of BuildKit's")),
    }
}

fn why(failure: &Failure) -> String {
    failure.causes.iter().fold(failure.message.clone(), |text, cause| format!("{text}: {cause}"))
}

impl CacheTo {
    /// The same for a BuildKit daemon, which writes the cache itself.
    pub fn for_daemon(&self) -> CacheEntry {
        let place = match &self.place {
            Place::Registry(reference) => CachePlace::Registry(reference.to_string()),
            Place::Local(directory) => CachePlace::Local(directory.clone()),
            Place::Inline => return CacheEntry { place: CachePlace::Inline, attributes: BTreeMap::new() },
        };
        let mode = if self.mode == Mode::Max { "max" } else { "min" };
        let mut attributes = vec![("mode", mode.to_string())];
        if let Some(encoding) = self.encoding {
            let compression = match encoding.compression() {
                Compression::None => "uncompressed",
                Compression::Gzip => "gzip",
                Compression::Zstd => "zstd",
                Compression::Estargz => "estargz",
            };
            attributes.push(("compression", compression.to_string()));
            attributes.extend(encoding.level().map(|level| ("compression-level", level.to_string())));
        }
        let flags = [("force-compression", self.forces_encoding), ("ignore-error", self.ignores_errors)];
        attributes.extend(flags.into_iter().filter(|(_, is_set)| *is_set).map(|(key, _)| (key, "true".to_string())));
        let attributes = attributes.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        CacheEntry { place, attributes }
    }

    /// What `--cache-to` says.
    pub fn parse(text: &str) -> Result<CacheTo, Failure> {
        let mut fields = Fields::parse("--cache-to", text)?;
        let place = match fields.need("type")? {
            "registry" => Place::Registry(fields.reference()?),
            "local" => Place::Local(PathBuf::from(fields.need("dest")?)),
            "inline" => Place::Inline,
            kind => return Err(fields.no_type(kind)),
        };
        let mut parsed =
            CacheTo { place, mode: Mode::Min, encoding: None, forces_encoding: false, ignores_errors: false };
        if !parsed.is_inline() {
            parsed.mode = fields.mode()?;
            parsed.encoding = fields.encoding()?;
            parsed.forces_encoding = fields.flag("force-compression")?;
            parsed.ignores_errors = fields.flag("ignore-error")?;
            // It is a manifest in OCI's terms in any case.
            for key in ["oci-mediatypes", "image-manifest"] {
                if fields.take(key).is_some_and(|value| value != "true") {
                    return Err(fields.bad(format!("`{key}=false` is not supported")));
                }
            }
        }
        fields.end().map(|()| parsed)
    }

    /// Whether the image itself carries it.
    pub fn is_inline(&self) -> bool {
        self.place == Place::Inline
    }

    /// Of which steps it wants the layers.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Sends `records` there, with the layers they name, which the store has. With `ignore-error` a failure is only told.
    pub fn send(
        &self,
        store: &Store,
        records: Result<CacheRecords, Failure>,
        options: &Options,
    ) -> Result<(), Failure> {
        let sent = records.and_then(|records| self.send_records(store, records, options));
        let Err(failure) = sent else { return Ok(()) };
        if !self.ignores_errors {
            return Err(failure);
        }
        output::tell(format!("warning: cannot export the build cache: {}", why(&failure)));
        Ok(())
    }

    fn send_records(&self, store: &Store, records: CacheRecords, options: &Options) -> Result<(), Failure> {
        let records = match self.encoding {
            Some(encoding) => records.encoded(store, encoding, self.forces_encoding)?,
            None => records,
        };
        let bytes = records.to_bytes();
        let config = Descriptor::new(CACHE_CONFIG_TYPE, store.blobs().put(&bytes)?, bytes.len() as u64);
        let manifest = Manifest::new(config, records.blobs()).to_bytes();
        let cache = Descriptor::new(media_type::MANIFEST, store.blobs().put(&manifest)?, manifest.len() as u64);
        match &self.place {
            Place::Registry(reference) => {
                client_runtime()?.block_on(push_image(store, &cache, reference, options))?;
                output::tell(format!("exported the build cache to {reference}"));
            }
            Place::Local(directory) => {
                store.export_oci_layout(&cache, Some(&"cache:latest".parse()?), directory)?;
                output::tell(format!("exported the build cache to {}", directory.display()));
            }
            Place::Inline => {}
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
        let plain = |place: Place, mode: Mode| CacheTo {
            place,
            mode,
            encoding: None,
            forces_encoding: false,
            ignores_errors: false,
        };
        let registry = Place::Registry(reference("reg.example/a:1"));
        assert_eq!(to("type=registry,ref=reg.example/a:1,mode=max"), Ok(plain(registry, Mode::Max)));
        let local = || Place::Local(PathBuf::from("x"));
        assert_eq!(to("mode=min,type=local,dest=x"), Ok(plain(local(), Mode::Min)));
        assert_eq!(to("type=inline"), Ok(plain(Place::Inline, Mode::Min)));
        let zstd = Encoding::new(Compression::Zstd, Some(9)).expect("a level");
        assert_eq!(
            to(
                "type=local,dest=x,compression=zstd,compression-level=9,force-compression=true,ignore-error=true,oci-mediatypes=true"
            ),
            Ok(CacheTo {
                encoding: Some(zstd),
                forces_encoding: true,
                ignores_errors: true,
                ..plain(local(), Mode::Min)
            })
        );
        for (text, expected) in [
            ("type=gha", "caches of type `gha` are not supported"),
            ("type=s3,bucket=b", "caches of type `s3` are not supported"),
            ("type=azblob", "caches of type `azblob` are not supported"),
            ("type=tape", "there is no type `tape`"),
            ("type=local", "it has no `dest`"),
            ("type=local,dest=x,mode=all", "there is no mode `all`"),
            ("type=local,dest=x,compression=lzma", "there is no compression `lzma`"),
            ("type=local,dest=x,compression=estargz", "an eStargz is another layer"),
            ("type=local,dest=x,compression=gzip,compression-level=10", "gzip has the levels 0 to 9, not 10"),
            ("type=local,dest=x,compression-level=3", "and no `compression`"),
            ("type=local,dest=x,ignore-error=1", "`ignore-error` is true or false"),
            ("type=local,dest=x,image-manifest=false", "`image-manifest=false` is not supported"),
            ("type=inline,mode=max", "`mode=max` is not supported"),
            ("type=registry,ref=app", "`app` names no registry"),
            ("ref=x", "it has no `type`"),
        ] {
            let message = to(text).expect_err(text);
            assert!(message.contains(expected), "{message}");
        }
        assert!(from("type=gha").is_err_and(|message| message.contains("`gha` are not supported")));
    }
}
