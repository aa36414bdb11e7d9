//! `cfc build`: the images of a project, or one image from a directory.

use std::process::ExitCode;

use cfc_oci::{Digest, Platform, Reference};
use cfc_store::{Compression, Encoding};

use crate::args::Build;
use crate::failure::Failure;
use crate::images::annotations::Annotations;
use crate::images::build::{ImageBuild, build_container, build_image, parse_pairs};
use crate::images::built_by;
use crate::images::cache::{CacheFrom, CacheTo};
use crate::images::call::Call;
use crate::images::context::ImageContext;
use crate::images::daemon::Daemon;
use crate::images::named_contexts;
use crate::images::outputs::Outputs;
use crate::images::progress::Style;
use crate::images::run_settings;
use crate::images::trust::Trust;
use crate::interrupt;
use crate::output;
use crate::project::open_project;
use crate::screen::{self, Mode};
use crate::settings::Settings;

pub fn run(settings: &Settings, arguments: &Build) -> Result<ExitCode, Failure> {
    style(arguments)?.begin();
    interrupt::catch();
    let call = arguments.call.as_deref().map(Call::parse).transpose()?;
    if let Some(call) = call.or(arguments.check.then(Call::check)) {
        return ask(settings, arguments, call);
    }
    if arguments.tags.is_empty() && (arguments.file.is_some() || arguments.target.is_some()) {
        return Err(Failure::new("--file and --target belong to one image, which needs a name")
            .hint("name it with `-t NAME:TAG`"));
    }
    match arguments.tags.is_empty() {
        false => build_one(settings, arguments),
        true => build_project(settings, arguments),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Answers a question about a Dockerfile. Exits with 1 when a check finds something.
fn ask(settings: &Settings, arguments: &Build, call: Call) -> Result<ExitCode, Failure> {
    let store = settings.open_store()?;
    let context = ImageContext::open(&store, arguments)?;
    let answer = call.ask(&store, &image_build(arguments, &context)?.request())?;
    output::data(answer.text);
    Ok(if answer.is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One image, as the command line says it.
fn image_build(arguments: &Build, context: &ImageContext) -> Result<ImageBuild, Failure> {
    Ok(ImageBuild {
        dockerfile: context.dockerfile.clone(),
        context: context.directory.clone(),
        target: arguments.target.clone(),
        ..common(arguments)?
    })
}

fn build_project(settings: &Settings, arguments: &Build) -> Result<(), Failure> {
    let project = open_project(&arguments.path, &arguments.project)?;
    refuse_one_cache_for_many(arguments, built_by(&project).count())?;
    let store = settings.open_store()?;
    let mut built_any = false;
    for container in built_by(&project) {
        let built = build_container(settings, &store, container, common(arguments)?)?;
        output::data(line(&built.reference, &built.image.digest));
        built.cache_failure.map_or(Ok(()), Err)?;
        built_any = true;
    }
    if !built_any {
        output::tell(format!("{} has no container that is built from a Dockerfile", project.config_path.display()));
    }
    Ok(())
}

/// Each image would replace the cache of the one before it.
fn refuse_one_cache_for_many(arguments: &Build, n_images: usize) -> Result<(), Failure> {
    let mut place = None;
    for text in &arguments.cache_to {
        place = place.or((!CacheTo::parse(text)?.is_inline()).then_some(text));
    }
    match place {
        Some(text) if n_images > 1 => Err(Failure::new(format!(
            "--cache-to `{text}` is one place for the caches of the project's {n_images} images, which would replace each other"
        ))
        .hint("build one image after the other with `-t`, each with a place of its own, or use `--cache-to type=inline`")),
        _ => Ok(()),
    }
}

fn build_one(settings: &Settings, arguments: &Build) -> Result<(), Failure> {
    if arguments.project.config.is_some() || arguments.project.env.is_some() {
        return Err(Failure::new("--config and --env belong to a project, --tag builds without one")
            .hint("leave out --tag to build the project's images"));
    }
    let names = arguments.tags.iter().map(|tag| Reference::parse(tag)).collect::<Result<Vec<_>, _>>()?;
    let outputs = Outputs::parse(arguments)?;
    outputs.check(&names, platforms(&arguments.platforms)?.len())?;
    let store = settings.open_store()?;
    let context = ImageContext::open(&store, arguments)?;
    let build = image_build(arguments, &context)?;
    let built = build_image(settings, &store, &build, &names[0], &names[1..])?;
    outputs.send(&store, &built.image, &names, &settings.transfer_options()?)?;
    let n_lines = if screen::mode() == Mode::Quiet { 1 } else { names.len() };
    for name in names.iter().take(n_lines) {
        let line = line(name, &built.image.digest);
        if outputs.use_stdout() { output::tell(line) } else { output::data(line) }
    }
    built.cache_failure.map_or(Ok(()), Err)
}

fn style(arguments: &Build) -> Result<Style, Failure> {
    Style::choose(if arguments.quiet { Some("quiet") } else { arguments.progress.as_deref() })
}

/// What is said of a finished image: who wants nothing else said wants only the digest.
fn line(name: &Reference, digest: &Digest) -> String {
    match screen::mode() {
        Mode::Quiet => digest.to_string(),
        Mode::Text | Mode::Json => format!("{name}  {digest}"),
    }
}

/// What the command line says of every image.
fn common(arguments: &Build) -> Result<ImageBuild, Failure> {
    let platforms = platforms(&arguments.platforms)?;
    let build_args = parse_pairs(&arguments.build_args, "--build-arg")?;
    if arguments.timestamp.is_some() && build_args.contains_key("SOURCE_DATE_EPOCH") {
        return Err(Failure::new(
            "--timestamp and the build argument SOURCE_DATE_EPOCH say the same, and both are given",
        )
        .hint("leave one of them out"));
    }
    let cache_to = arguments.cache_to.iter().map(|text| CacheTo::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let encoding = encoding(arguments)?;
    if encoding.compression() == Compression::Estargz && cache_to.iter().any(CacheTo::is_inline) {
        return Err(Failure::new("--cache-to type=inline does not go with --compression estargz: the image's layers are not those that its steps made")
            .hint("use `--cache-to type=registry` or `type=local`, or another compression"));
    }
    Ok(ImageBuild {
        build_args,
        timestamp: arguments.timestamp,
        contexts: named_contexts::parse(&arguments.build_contexts)?,
        labels: parse_pairs(&arguments.labels, "--label")?,
        platforms: platforms.clone(),
        pulls: arguments.pull,
        run: run_settings::parse(arguments)?,
        no_cache: arguments.no_cache.iter().any(|stage| stage.is_empty()),
        fresh_stages: (arguments.no_cache.iter().chain(&arguments.no_cache_filter))
            .filter(|stage| !stage.is_empty())
            .cloned()
            .collect(),
        verify: arguments.verify,
        trust: Trust::parse(arguments)?,
        encoding,
        annotations: Annotations::parse(&arguments.annotations, platforms.len())?,
        progress: style(arguments)?,
        cache_from: arguments.cache_from.iter().map(|text| CacheFrom::parse(text)).collect::<Result<_, _>>()?,
        cache_to,
        daemon: Daemon::parse(arguments)?,
        ..ImageBuild::default()
    })
}

/// Each once, in the order in which they were named.
fn platforms(texts: &[String]) -> Result<Vec<Platform>, Failure> {
    let mut platforms: Vec<Platform> = Vec::new();
    for text in texts {
        let platform = match text.as_str() {
            "local" => Platform::host(),
            text => text.parse().map_err(|error| Failure::because("--platform", &error))?,
        };
        if platform.os != "linux" {
            return Err(Failure::new(format!("--platform `{text}`: cfc builds images for Linux only")));
        }
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

fn encoding(arguments: &Build) -> Result<Encoding, Failure> {
    let compression = match arguments.compression.as_deref() {
        Some("none") => Compression::None,
        Some("zstd") => Compression::Zstd,
        Some("estargz") => Compression::Estargz,
        _ => Compression::Gzip,
    };
    let encoding = Encoding::new(compression, arguments.compression_level);
    encoding.map_err(|what| Failure::new(format!("--compression-level: {what}")))
}
