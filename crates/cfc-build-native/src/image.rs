//! [`build_image`]: from a Dockerfile's path to an image, for the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use cfc_dockerfile::{IgnoreFile, Problem};
use cfc_oci::Platform;
use cfc_plan::{
    BaseImages, BuildError, BuildProgress, BuildRequest, Builder, BuiltImage, Context, ContextFiles, ContextName,
    Entitlement, Ignore, NamedContext, NamedFiles, PlanError, RunSettings, SecretSource,
};

/// A Dockerfile or `.dockerignore` above this size, in bytes, is some other file.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What to build, as a user says it.
#[derive(Clone, Debug)]
pub struct ImageRequest {
    /// The Dockerfile.
    pub dockerfile: PathBuf,
    /// The directory that `COPY` takes from.
    pub context: PathBuf,
    /// The stage to build; the last one by default.
    pub target: Option<String>,
    /// Values for `ARG`.
    pub build_args: BTreeMap<String, String>,
    /// Labels that win over those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// The platform the image is for.
    pub platform: Platform,
    /// The value of the environment's `SOURCE_DATE_EPOCH`; the build argument of that name wins.
    pub source_date_epoch: Option<String>,
    /// What the Dockerfile may do beyond a sandbox of its own.
    pub allowed: BTreeSet<Entitlement>,
    /// Secrets that `RUN --mount=type=secret` may have, by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// Sockets of the agents that `RUN --mount=type=ssh` may have, by id.
    pub ssh: BTreeMap<String, PathBuf>,
    /// What stands for the stages and images of these names.
    pub contexts: BTreeMap<ContextName, NamedContext>,
    /// What holds for all `RUN` steps.
    pub run: RunSettings,
    /// The stages that use nothing that an earlier build made.
    pub fresh_stages: BTreeSet<String>,
}

impl ImageRequest {
    /// Builds `dockerfile` with files of `context` for this machine's platform.
    pub fn new(dockerfile: impl Into<PathBuf>, context: impl Into<PathBuf>) -> ImageRequest {
        ImageRequest {
            dockerfile: dockerfile.into(),
            context: context.into(),
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            platform: Platform::host(),
            source_date_epoch: None,
            allowed: BTreeSet::new(),
            secrets: BTreeMap::new(),
            ssh: BTreeMap::new(),
            contexts: BTreeMap::new(),
            run: RunSettings::default(),
            fresh_stages: BTreeSet::new(),
        }
    }
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file or directory that was named cannot be read.
    #[error("{message}")]
    Input {
        /// What is wrong with which path.
        message: String,
        /// What to do about it.
        hint: Option<String>,
        /// The cause.
        #[source]
        source: Option<std::io::Error>,
    },
    /// The Dockerfile or `.dockerignore` has problems.
    #[error("{} has {}", path.display(), count(problems.len()))]
    Problems {
        /// The file.
        path: PathBuf,
        /// All of its problems.
        problems: Vec<Problem>,
    },
    /// The Dockerfile asks for something that cannot be had.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// An instruction failed.
    #[error(transparent)]
    Build(#[from] BuildError),
}

fn count(problems: usize) -> String {
    if problems == 1 { "a problem".to_string() } else { format!("{problems} problems") }
}

/// Builds the image that `request` describes. Base images come through `bases`; `progress` hears how it goes.
pub fn build_image(
    builder: &mut dyn Builder,
    request: &ImageRequest,
    bases: &dyn BaseImages,
    progress: &dyn BuildProgress,
) -> Result<BuiltImage, ImageError> {
    let context = open_context(request)?;
    let plan = cfc_plan::lower(&plan_request(request, context.ignore.as_ref())?, bases)?;
    plan.lint.iter().for_each(|warning| progress.linted(warning));
    plan.warnings.iter().for_each(|warning| progress.warned(warning));
    Ok(builder.build(&plan, &context, progress)?)
}

/// The text of the Dockerfile of `request`.
pub fn read_dockerfile(request: &ImageRequest) -> Result<Vec<u8>, ImageError> {
    let path = &request.dockerfile;
    read_bounded(path)?.ok_or_else(|| ImageError::Input {
        message: format!("there is no Dockerfile `{}`", path.display()),
        hint: Some("name the right file: `-f FILE`, or `image` in the project's config".to_string()),
        source: None,
    })
}

/// What [`cfc_plan`] takes of `request`: for those who ask about a Dockerfile and build nothing.
pub fn describe_image(request: &ImageRequest) -> Result<BuildRequest, ImageError> {
    plan_request(request, open_context(request)?.ignore.as_ref())
}

fn plan_request(request: &ImageRequest, ignore: Option<&Ignore>) -> Result<BuildRequest, ImageError> {
    let path = &request.dockerfile;
    let text = read_dockerfile(request)?;
    let parsed = cfc_dockerfile::parse(&text);
    let dockerfile = parsed.map_err(|problems| ImageError::Problems { path: path.clone(), problems })?;
    let mut build_args = request.build_args.clone();
    if let Some(epoch) = &request.source_date_epoch {
        build_args.entry("SOURCE_DATE_EPOCH".to_string()).or_insert_with(|| epoch.clone());
    }
    Ok(BuildRequest {
        dockerfile,
        dockerfile_path: path.clone(),
        target: request.target.clone(),
        build_args,
        labels: request.labels.clone(),
        platform: request.platform.clone(),
        allowed: request.allowed.clone(),
        ignore: ignore.map(|ignore| ignore.file.clone()),
        contexts: request.contexts.clone(),
        run: request.run.clone(),
        fresh_stages: request.fresh_stages.clone(),
    })
}

fn open_context(request: &ImageRequest) -> Result<Context, ImageError> {
    let directory = request.context.clone();
    check_directory(&directory, "the build context")?;
    let (secrets, ssh) = (request.secrets.clone(), request.ssh.clone());
    let named = request.contexts.iter().filter_map(|(name, context)| match context {
        NamedContext::Files(files) => Some(open_named(name, files).map(|files| (name.clone(), files))),
        NamedContext::Scratch | NamedContext::Image(_) => None,
    });
    let named = named.collect::<Result<_, _>>()?;
    Ok(Context { ignore: find_ignore_file(request)?, directory, secrets, ssh, named })
}

/// As with BuildKit, only in a directory there is a `.dockerignore` that counts.
fn open_named(name: &ContextName, files: &ContextFiles) -> Result<NamedFiles, ImageError> {
    let ignore = match files {
        ContextFiles::Directory(directory) => {
            check_directory(directory, &format!("the build context `{name}`,"))?;
            read_ignore_file(&directory.join(".dockerignore"))?
        }
        ContextFiles::Git(_) | ContextFiles::Url(_) => None,
    };
    Ok(NamedFiles { files: files.clone(), ignore })
}

fn check_directory(directory: &Path, what: &str) -> Result<(), ImageError> {
    match directory.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => {
            let message = format!("{what} `{}` is not a directory", directory.display());
            Err(ImageError::Input { message, hint: None, source: None })
        }
        Err(source) => {
            let message = format!("cannot open {what} `{}`", directory.display());
            Err(ImageError::Input { message, hint: None, source: Some(source) })
        }
    }
}

/// `<Dockerfile>.dockerignore` beside the Dockerfile wins over the context's `.dockerignore`.
fn find_ignore_file(request: &ImageRequest) -> Result<Option<Ignore>, ImageError> {
    let mut beside = request.dockerfile.clone().into_os_string();
    beside.push(".dockerignore");
    for path in [PathBuf::from(beside), request.context.join(".dockerignore")] {
        if let Some(ignore) = read_ignore_file(&path)? {
            return Ok(Some(ignore));
        }
    }
    Ok(None)
}

fn read_ignore_file(path: &Path) -> Result<Option<Ignore>, ImageError> {
    let Some(text) = read_bounded(path)? else { return Ok(None) };
    let problems = |problem| ImageError::Problems { path: path.to_path_buf(), problems: vec![problem] };
    Ok(Some(Ignore { path: path.to_path_buf(), file: IgnoreFile::parse(&text).map_err(problems)? }))
}

/// A small file's bytes; none when it is not there.
fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, ImageError> {
    let failed = |source| {
        let message = format!("cannot read `{}`", path.display());
        ImageError::Input { message, hint: None, source: Some(source) }
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let message = format!("`{}` is larger than {MAX_FILE_BYTES} bytes", path.display());
        return Err(ImageError::Input { message, hint: None, source: None });
    }
    Ok(Some(bytes))
}
