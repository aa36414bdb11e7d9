//! [`build_image`]: from a Dockerfile's path to an image, for the command line.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cfc_dockerfile::Problem;
use cfc_oci::Platform;
use cfc_plan::{BaseImages, BuildError, BuildProgress, BuiltImage, PlanError};

use crate::NativeBuilder;

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
    #[error("{}: {} problem(s)", path.display(), problems.len())]
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

/// Builds the image that `request` describes. Base images come through `bases`; `progress` hears how it goes.
pub fn build_image(
    builder: &mut NativeBuilder,
    request: &ImageRequest,
    bases: &dyn BaseImages,
    progress: &dyn BuildProgress,
) -> Result<BuiltImage, ImageError> {
    let _ = (builder, request, bases, progress);
    todo!()
}
