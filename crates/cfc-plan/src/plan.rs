//! [`Plan`]: the graph of operations that makes an image. A value: it names directories and digests, and touches
//! neither. Made by [`lower`](crate::lower), carried out by a [`Builder`](crate::Builder).

use std::collections::BTreeMap;
use std::path::PathBuf;

use cfc_dockerfile::Span;
use cfc_oci::{Descriptor, Digest, ImageConfig, Platform};
use serde::Serialize;

/// What to build.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// The parsed Dockerfile.
    pub dockerfile: cfc_dockerfile::Dockerfile,
    /// Where it was read from; only for messages.
    pub dockerfile_path: PathBuf,
    /// The stage to build, by name or number; the last one by default.
    pub target: Option<String>,
    /// Values for `ARG`.
    pub build_args: BTreeMap<String, String>,
    /// Labels that win over those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// The platform the image is for.
    pub platform: Platform,
}

/// An image that a stage starts from.
#[derive(Clone, Debug)]
pub struct BaseImage {
    /// The manifest for the platform that was asked for.
    pub manifest: Descriptor,
    /// The image's config.
    pub config: ImageConfig,
}

/// Finds the images that `FROM` and `COPY --from` name. The caller decides where: the store first, then a registry.
pub trait BaseImages {
    /// The image called `reference`, for `platform`. After this returned, the image's manifest, config and layers are
    /// where the builder looks for them.
    fn find(&self, reference: &str, platform: &Platform) -> Result<BaseImage, BaseImageError>;
}

/// Why an image was not found.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct BaseImageError {
    /// What went wrong, for example `no such image in the store`.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A node of a plan: its place in [`Plan::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct NodeId(pub usize);

/// The operations that make one image.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The operations; each one's inputs come before it. Only what the target needs.
    pub nodes: Vec<Node>,
    /// The node whose filesystem is the image.
    pub target: NodeId,
    /// The image's config and history, complete except for the layers of `rootfs`.
    pub config: ImageConfig,
    /// The image's time and the latest modification time of files in its layers, in seconds since 1970: the build
    /// argument `SOURCE_DATE_EPOCH`, else 0.
    pub source_date_epoch: i64,
    /// The Dockerfile, for messages.
    pub dockerfile_path: PathBuf,
    /// What a person should hear although it is no error.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The node called `id`.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }
}

/// One operation on one filesystem.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// The filesystem it changes; none for [`Op::Scratch`] and [`Op::Image`].
    pub base: Option<NodeId>,
    /// Digest of the operation and everything below it. Two nodes with one key do the same thing; what the build
    /// context holds is not part of it.
    pub key: Digest,
    /// The stage it belongs to, as people call it: its name or its number.
    pub stage: String,
    /// The instruction as written, variables expanded.
    pub display: String,
    /// Where it was written.
    pub span: Span,
}

impl Node {
    /// The nodes this one reads: the filesystem it changes and the one it copies from.
    pub fn inputs(&self) -> impl Iterator<Item = NodeId> + '_ {
        let copied = match &self.op {
            Op::Copy(Copy { source: CopySource::Node(node), .. }) => Some(*node),
            _ => None,
        };
        self.base.into_iter().chain(copied)
    }
}

/// What a node does. All paths in filesystems are absolute and clean.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub enum Op {
    /// The empty filesystem.
    Scratch,
    /// An image's filesystem.
    Image {
        /// The image's manifest.
        manifest: Descriptor,
        /// What the Dockerfile calls it; does not change what it is.
        #[serde(skip)]
        reference: String,
    },
    /// Runs a program.
    Run(Run),
    /// Copies files in.
    Copy(Copy),
    /// Makes a directory and its parents, unless it is there.
    MakeDirectory {
        /// The directory.
        path: String,
        /// Who owns what was made, `user[:group]`; root when empty.
        user: String,
    },
}

/// A program to run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// More of its environment, which does not tell one run from another (the proxy settings).
    #[serde(skip)]
    pub unkeyed_env: Vec<(String, String)>,
    /// The directory it starts in.
    pub working_directory: String,
    /// Who runs it, `user[:group]`; root when empty.
    pub user: String,
}

/// Files to copy.
#[derive(Clone, Debug, Serialize)]
pub struct Copy {
    /// Where the sources are.
    #[serde(serialize_with = "CopySource::serialize_kind")]
    pub source: CopySource,
    /// Paths below the source's root, a trailing `/` or `/.` kept; they may hold wildcards (`*`, `?`, `[a-z]`).
    pub paths: Vec<String>,
    /// Where to, a trailing `/` kept.
    pub destination: String,
    /// The owner, `user[:group]`, where `--chown` named one.
    pub owner: Option<String>,
    /// Permission bits, where `--chmod` named them.
    pub mode: Option<u32>,
}

/// Where `COPY` finds its sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopySource {
    /// The build context.
    Context,
    /// The filesystem of another node.
    Node(NodeId),
}

impl CopySource {
    /// Only the kind goes into an operation's key: a node's place in the plan is not what it is.
    fn serialize_kind<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            CopySource::Context => "context",
            CopySource::Node(_) => "node",
        })
    }
}
