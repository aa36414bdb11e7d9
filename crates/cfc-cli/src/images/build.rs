//! Building into the store, with progress on stderr.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use cfc_build_native::{CacheRecords, ImageError, ImageRequest, NativeBuilder, NativeOptions};
use cfc_dockerfile::Problem;
use cfc_oci::{Descriptor, Index, Platform, Reference, media_type};
use cfc_plan::{BuildError, Builder, BuiltImage, ContextName, NamedContext, RunSettings};
use cfc_project::{Container, ImageSource};
use cfc_store::{Encoding, Store};

use crate::failure::Failure;
use crate::images::annotations::Annotations;
use crate::images::base::StoreThenRegistry;
use crate::images::cache::{CacheFrom, CacheTo, Mode};
use crate::images::daemon::Daemon;
use crate::images::network::Network;
use crate::images::progress::{self, Progress, Style};
use crate::images::trust::Trust;
use crate::images::{limit, local_reference};
use crate::interrupt;
use crate::output;
use crate::settings::Settings;

/// What to build, as the command line says it.
#[derive(Debug, Clone, Default)]
pub struct ImageBuild {
    /// The Dockerfile; a container's own one is used where there is a container.
    pub dockerfile: PathBuf,
    /// The build context, likewise.
    pub context: PathBuf,
    /// The stage to build.
    pub target: Option<String>,
    /// Values for `ARG`.
    pub build_args: BTreeMap<String, String>,
    /// What stands for the stages and images of these names.
    pub contexts: BTreeMap<ContextName, NamedContext>,
    /// Labels that win over those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// The platforms to build for; this machine's when there are none.
    pub platforms: Vec<Platform>,
    /// Whether registries are asked for base images that the store has.
    pub pulls: bool,
    /// What holds for all `RUN` steps.
    pub run: RunSettings,
    /// The stages that use nothing that an earlier build made.
    pub fresh_stages: BTreeSet<String>,
    /// The image's time, in seconds since 1970; the environment's SOURCE_DATE_EPOCH otherwise.
    pub timestamp: Option<i64>,
    /// Whether to use nothing that an earlier build made.
    pub no_cache: bool,
    /// Whether to build twice and refuse what differs.
    pub verify: bool,
    /// What the build may be trusted with.
    pub trust: Trust,
    /// How the layers are encoded that the build makes.
    pub encoding: Encoding,
    /// Annotations of manifests and index.
    pub annotations: Annotations,
    /// How it is shown.
    pub progress: Style,
    /// The daemon that carries the steps out; this machine does when there is none.
    pub daemon: Option<Daemon>,
    /// Caches to use.
    pub cache_from: Vec<CacheFrom>,
    /// Where the build's cache goes.
    pub cache_to: Vec<CacheTo>,
}

impl ImageBuild {
    /// As the builder wants it.
    pub fn request(&self) -> ImageRequest {
        let mut request = ImageRequest::new(&self.dockerfile, &self.context);
        request.target = self.target.clone();
        request.build_args = self.build_args.clone();
        request.contexts = self.contexts.clone();
        request.run = self.run.clone();
        request.fresh_stages = self.fresh_stages.clone();
        request.platform = self.platforms.first().cloned().unwrap_or(request.platform);
        request.labels = self.labels.clone();
        request.secrets = self.trust.secrets.clone();
        request.ssh = self.trust.ssh.clone();
        request.allowed = self.trust.allowed.clone();
        // The command line's wins over a project's `image_vars`, and these over the environment's.
        if let Some(seconds) = self.timestamp {
            request.build_args.insert("SOURCE_DATE_EPOCH".to_string(), seconds.to_string());
        }
        request.source_date_epoch = std::env::var("SOURCE_DATE_EPOCH").ok();
        request
    }
}

/// An image that is in the store.
#[derive(Debug)]
pub struct Built {
    /// Its name there.
    pub reference: Reference,
    /// Its manifest.
    pub image: Descriptor,
    /// Why a cache was not sent. The image is there all the same, and can go where it is to go before that is told.
    pub cache_failure: Option<Failure>,
}

/// Builds the image of one of a project's containers, called after it. The container's own build arguments give way to
/// those of `extra`.
pub fn build_container(
    settings: &Settings,
    store: &Store,
    container: &Container,
    extra: ImageBuild,
) -> Result<Built, Failure> {
    let ImageSource::Dockerfile { path, context } = &container.image else {
        return Err(Failure::new(format!("container `{}` has no Dockerfile", container.name)));
    };
    let mut build_args = container.image_vars.clone();
    build_args.extend(extra.build_args);
    let build = ImageBuild { dockerfile: path.clone(), context: context.clone(), build_args, ..extra };
    build_image(settings, store, &build, &local_reference(container)?, &[])
}

/// What came out of a build, not named yet.
struct Finished {
    image: Descriptor,
    /// Whether a step was carried out, so that the build cache grew.
    has_built: bool,
    /// What each `--cache-to` gets; or why it gets nothing, which is told when the image has its name.
    records: Vec<Result<CacheRecords, Failure>>,
}

/// Builds one image and calls it `tag` and `more`: an index where it is for several platforms. Then sends its cache, which
/// may fail without harm to the image.
pub fn build_image(
    settings: &Settings,
    store: &Store,
    build: &ImageBuild,
    tag: &Reference,
    more: &[Reference],
) -> Result<Built, Failure> {
    let finished = match build.platforms.len() {
        0 | 1 => build_manifest(settings, store, build)?,
        _ => build_index(settings, store, build)?,
    };
    let image = finished.image;
    cfc_sandbox::fail_point("build.image.tag")?;
    store.images().tag(tag, &image)?;
    for name in more {
        store.images().tag(name, &image)?;
    }
    // Before the limit may take what the records name.
    let sent = send_caches(settings, store, build, finished.records);
    if finished.has_built {
        limit::enforce(settings, store);
    }
    progress::built(&tag.to_string(), &image.digest);
    tracing::debug!(data = %settings.data.display(), %tag, digest = %image.digest, "built");
    Ok(Built { reference: tag.clone(), image, cache_failure: sent.err() })
}

/// Sends each its cache; what fails first is what is told.
fn send_caches(
    settings: &Settings,
    store: &Store,
    build: &ImageBuild,
    records: Vec<Result<CacheRecords, Failure>>,
) -> Result<(), Failure> {
    let options = settings.transfer_options()?;
    let sent = build.cache_to.iter().zip(records).map(|(to, records)| to.send(store, records, &options));
    // All get theirs, whatever becomes of one.
    sent.collect::<Vec<_>>().into_iter().collect()
}

/// One after another: what they share is cached, and their output is not mixed.
fn build_index(settings: &Settings, store: &Store, build: &ImageBuild) -> Result<Finished, Failure> {
    refuse_one_cache_for_many(build)?;
    let mut manifests: Vec<Descriptor> = Vec::new();
    let mut has_built = false;
    let mut records: Vec<Result<CacheRecords, Failure>> = Vec::new();
    for platform in &build.platforms {
        output::tell(format!("building for {platform}"));
        let one = ImageBuild { platforms: vec![platform.clone()], ..build.clone() };
        let finished = build_manifest(settings, store, &one)?;
        has_built |= finished.has_built;
        records = merged(records, finished.records);
        let annotations = build.annotations.manifest_descriptor.clone();
        manifests.push(Descriptor { platform: Some(platform.clone()), annotations, ..finished.image });
    }
    let index = Index { annotations: build.annotations.index.clone(), ..Index::new(manifests) };
    let bytes = index.to_bytes();
    let image = Descriptor::new(media_type::INDEX, store.blobs().put(&bytes)?, bytes.len() as u64);
    Ok(Finished { image, has_built, records })
}

/// A daemon sends the cache of each platform itself, in the place of the one before it.
fn refuse_one_cache_for_many(build: &ImageBuild) -> Result<(), Failure> {
    if build.daemon.is_none() || build.cache_to.iter().all(CacheTo::is_inline) {
        return Ok(());
    }
    let platforms = build.platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ");
    let message = format!(
        "--cache-to is one place for the caches of several platforms ({platforms}), which would replace each other on a daemon"
    );
    Err(Failure::new(message)
        .hint("build one platform after the other, each with a place of its own, or leave out `--builder buildkit`"))
}

/// What each cache gets of several platforms: one place keeps what all of them need.
fn merged(
    before: Vec<Result<CacheRecords, Failure>>,
    more: Vec<Result<CacheRecords, Failure>>,
) -> Vec<Result<CacheRecords, Failure>> {
    if before.is_empty() {
        return more;
    }
    before.into_iter().zip(more).map(|(before, more)| Ok(before?.merged(more?))).collect()
}

/// Builds the image for one platform.
fn build_manifest(settings: &Settings, store: &Store, build: &ImageBuild) -> Result<Finished, Failure> {
    if let Some(daemon) = &build.daemon {
        return build_on(daemon, settings, store, build);
    }
    let program = crate::server::launcher_program()?;
    let options = NativeOptions {
        no_cache: build.no_cache,
        verify: build.verify,
        encoding: build.encoding,
        annotations: build.annotations.manifest.clone(),
        inline_cache: build.cache_to.iter().any(CacheTo::is_inline),
    };
    let request = build.request();
    let sources = build.cache_from.iter().filter_map(|from| from.open(settings, store, &request.platform)).collect();
    let mut builder = NativeBuilder::with_program(store.clone(), &program, options)
        .with_downloads(Box::new(Network))
        .with_shared_cache(sources, !build.cache_to.is_empty());
    let stopper = builder.stopper();
    let _interruptible = interrupt::ends(store, move || stopper.stop());
    let (image, has_built) = carry_out(&mut builder, settings, store, build, &request)?;
    // The image has its inline cache already.
    let of = |to: &CacheTo| match to.is_inline() {
        true => Ok(CacheRecords::default()),
        false => builder.records(to.mode() == Mode::Max).map_err(|error: BuildError| image_failure(error.into())),
    };
    let records = build.cache_to.iter().map(of).collect();
    Ok(Finished { image: image.manifest, has_built, records })
}

/// Builds the image for one platform on a BuildKit daemon, which keeps and sends its caches itself.
fn build_on(daemon: &Daemon, settings: &Settings, store: &Store, build: &ImageBuild) -> Result<Finished, Failure> {
    let mut builder = daemon.builder(settings, store, build)?;
    let stopper = builder.stopper();
    let _interruptible = interrupt::ends(store, move || stopper.stop());
    let (image, has_built) = carry_out(&mut builder, settings, store, build, &build.request())?;
    Ok(Finished { image: image.manifest, has_built, records: Vec::new() })
}

/// Has `builder` build, and shows how it goes. Says also whether a step was carried out.
fn carry_out(
    builder: &mut dyn Builder,
    settings: &Settings,
    store: &Store,
    build: &ImageBuild,
    request: &ImageRequest,
) -> Result<(BuiltImage, bool), Failure> {
    let bases = StoreThenRegistry { store, options: settings.transfer_options()?, pulls: build.pulls };
    let text = cfc_build_native::read_dockerfile(request).unwrap_or_default();
    let dockerfile = String::from_utf8_lossy(&text).into_owned();
    let progress = Progress::new(build.progress, dockerfile, build.dockerfile.clone());
    let image = cfc_build_native::build_image(builder, request, &bases, &progress).map_err(image_failure)?;
    Ok((image, progress.has_built()))
}

/// An error of the sandbox with its hint.
pub fn sandbox_failure(error: cfc_sandbox::Error) -> Failure {
    let hint = error.hint().map(str::to_string);
    Failure::from(error).maybe_hint(hint)
}

pub fn image_failure(error: ImageError) -> Failure {
    let mut hints = Vec::new();
    let mut causes = Vec::new();
    match &error {
        ImageError::Input { hint, .. } => hints.extend(hint.clone()),
        ImageError::Problems { path, problems } => {
            causes.extend(problems.iter().map(|problem| describe(path, problem)));
            hints.extend(problems.iter().filter_map(|problem| problem.hint.clone()));
        }
        ImageError::Plan(error) => hints.extend(error.hint.clone()),
        ImageError::Build(error) => {
            hints.extend(error.hint.clone());
            causes.extend(
                (!error.output.is_empty()).then(|| format!("its last output was:\n{}", error.output.join("\n"))),
            );
        }
    }
    let mut failure = Failure::from(error);
    failure.causes.extend(causes);
    failure.maybe_hint((!hints.is_empty()).then(|| hints.join("\n      ")))
}

fn describe(path: &std::path::Path, problem: &Problem) -> String {
    format!("{}:{}: {}", path.display(), problem.span.start_line, problem.message)
}

/// `NAME=VALUE` pairs of a repeatable flag. Without `=VALUE` a build argument takes the environment's value.
pub fn parse_pairs(pairs: &[String], flag: &str) -> Result<BTreeMap<String, String>, Failure> {
    let mut values = BTreeMap::new();
    for pair in pairs {
        match pair.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                values.insert(name.to_string(), value.to_string());
            }
            None if flag == "--build-arg" && !pair.is_empty() => {
                // Docker leaves an argument alone that the environment does not have.
                values.extend(std::env::var(pair).ok().map(|value| (pair.clone(), value)));
            }
            // As with Docker.
            None if flag == "--label" && !pair.is_empty() => {
                values.insert(pair.clone(), String::new());
            }
            _ => return Err(Failure::new(format!("{flag} `{pair}` is not NAME=VALUE"))),
        }
    }
    Ok(values)
}
