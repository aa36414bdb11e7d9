//! [`build_image`]: from a Dockerfile's path to an image, for the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use cfc_dockerfile::{IgnoreFile, Problem};
use cfc_oci::Platform;
use cfc_plan::{
    BaseImages, BuildError, BuildProgress, BuildRequest, Builder, BuiltImage, Context, Entitlement, Ignore, PlanError,
    SecretSource,
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
    })
}

fn open_context(request: &ImageRequest) -> Result<Context, ImageError> {
    let directory = request.context.clone();
    match directory.metadata() {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => {
            return Err(ImageError::Input {
                message: format!("the build context `{}` is not a directory", directory.display()),
                hint: None,
                source: None,
            });
        }
        Err(source) => {
            let message = format!("cannot open the build context `{}`", directory.display());
            return Err(ImageError::Input { message, hint: None, source: Some(source) });
        }
    }
    let (secrets, ssh) = (request.secrets.clone(), request.ssh.clone());
    Ok(Context { ignore: find_ignore_file(request)?, directory, secrets, ssh })
}

/// `<Dockerfile>.dockerignore` beside the Dockerfile wins over the context's `.dockerignore`.
fn find_ignore_file(request: &ImageRequest) -> Result<Option<Ignore>, ImageError> {
    let mut beside = request.dockerfile.clone().into_os_string();
    beside.push(".dockerignore");
    for path in [PathBuf::from(beside), request.context.join(".dockerignore")] {
        let Some(text) = read_bounded(&path)? else { continue };
        let problems = |problem| ImageError::Problems { path: path.clone(), problems: vec![problem] };
        let file = IgnoreFile::parse(&text).map_err(problems)?;
        return Ok(Some(Ignore { path, file }));
    }
    Ok(None)
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
