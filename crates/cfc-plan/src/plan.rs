//! [`Plan`]: the graph of operations that makes an image. A value: it names directories and digests, and touches
//! neither. Made by [`lower`](crate::lower), carried out by a [`Builder`](crate::Builder).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use cfc_dockerfile::{IgnoreFile, Sharing, Span};
use cfc_oci::{Descriptor, Digest, History, ImageConfig, Platform};
use serde::Serialize;

use crate::{ContextName, ExtraHost, GitSource, LintWarning, ModeChange, NamedContext, RunSettings, Ulimit, UrlSource};

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
    /// What the Dockerfile may do beyond a sandbox of its own.
    pub allowed: BTreeSet<Entitlement>,
    /// What of the build context is left out; only for warnings.
    pub ignore: Option<IgnoreFile>,
    /// What stands for the stages and images of these names.
    pub contexts: BTreeMap<ContextName, NamedContext>,
    /// What holds for all `RUN` steps.
    pub run: RunSettings,
    /// The stages, by name or number, that use nothing that an earlier build made.
    pub fresh_stages: BTreeSet<String>,
}

/// More than a build may do unless whoever starts it allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entitlement {
    /// `RUN --network=host`.
    NetworkHost,
    /// `RUN --security=insecure`.
    SecurityInsecure,
}

impl Entitlement {
    /// All of them.
    pub const ALL: [Entitlement; 2] = [Entitlement::NetworkHost, Entitlement::SecurityInsecure];

    /// What BuildKit calls it.
    pub fn name(self) -> &'static str {
        match self {
            Entitlement::NetworkHost => "network.host",
            Entitlement::SecurityInsecure => "security.insecure",
        }
    }
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
    /// argument `SOURCE_DATE_EPOCH`, else the beginning of 1980.
    pub source_date_epoch: i64,
    /// The Dockerfile, for messages.
    pub dockerfile_path: PathBuf,
    /// What a person should hear although it is no error.
    pub warnings: Vec<String>,
    /// Which rules of lint the Dockerfile breaks, in the order of its lines.
    pub lint: Vec<LintWarning>,
}

impl Plan {
    /// The node called `id`.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The image's config with the layers that were made, those of the base image first.
    pub fn finished_config(&self, diff_ids: Vec<Digest>) -> ImageConfig {
        let mut config = self.config.clone();
        // A base image may come without history. Tools count: there is one entry without `empty_layer` a layer.
        let n_entries = config.history.iter().filter(|entry| !entry.empty_layer).count();
        let missing = History { comment: Some("a layer of the base image".to_string()), ..History::default() };
        let missing = std::iter::repeat_n(missing, diff_ids.len().saturating_sub(n_entries));
        config.history.splice(0..0, missing);
        config.rootfs.diff_ids = diff_ids;
        config
    }
}

/// One operation on one filesystem.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// The filesystem it changes; none for [`Op::Scratch`], [`Op::Context`] and [`Op::Image`].
    pub base: Option<NodeId>,
    /// Digest of the operation and everything below it. Two nodes with one key do the same thing; what the build
    /// context holds is not part of it.
    pub key: Digest,
    /// The stage it belongs to, as people call it: its name or its number.
    pub stage: String,
    /// Whether it is carried out although its result may be known.
    pub is_fresh: bool,
    /// The instruction as written, variables expanded.
    pub display: String,
    /// Where it was written.
    pub span: Span,
}

impl Node {
    /// The nodes this one reads: the filesystem it changes, and those it copies from or mounts.
    pub fn inputs(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.base.into_iter().chain(self.op.sources())
    }
}

impl Op {
    /// The nodes that it copies from or mounts, in order.
    pub fn sources(&self) -> impl Iterator<Item = NodeId> + '_ {
        let copied = match self {
            Op::Copy(Copy { from: CopySource::Node(node), .. }) => Some(*node),
            _ => None,
        };
        let mounts = match self {
            Op::Run(run) => run.mounts.as_slice(),
            _ => &[],
        };
        copied.into_iter().chain(mounts.iter().filter_map(Mount::node))
    }
}

/// What a node does. All paths in filesystems are absolute and clean.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub enum Op {
    /// The empty filesystem.
    Scratch,
    /// A part of a build context, at the place that it has there. Only what is built `FROM` a named context has it as a
    /// layer.
    Context {
        /// Which context; the build's own when there is no name.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<ContextName>,
        /// The part, absolute and clean.
        path: String,
    },
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
    /// What is mounted for it, in this order. Nothing of it gets into the layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Secrets among its variables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secret_variables: Vec<SecretVariable>,
    /// Which network it sees.
    #[serde(skip_serializing_if = "RunNetwork::is_default")]
    pub network: RunNetwork,
    /// Whether it may do nearly everything to the kernel (`--security=insecure`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_insecure: bool,
    /// Further names in `/etc/hosts`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<ExtraHost>,
    /// How much `/dev/shm` holds, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<u64>,
    /// Limits of its processes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<Ulimit>,
}

/// The network of a `RUN`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunNetwork {
    /// Out into the world, not to this machine.
    #[default]
    Default,
    /// A loopback and nothing else.
    None,
    /// This machine's.
    Host,
}

impl RunNetwork {
    fn is_default(&self) -> bool {
        *self == RunNetwork::Default
    }
}

/// A mount of a `RUN`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Where to, absolute and clean, never the root.
    pub target: String,
    /// What.
    pub kind: MountKind,
}

/// What is mounted. Which node it comes from is not serialised: nodes have keys of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountKind {
    /// A part of a filesystem.
    Bind {
        /// Whose filesystem.
        #[serde(skip)]
        node: NodeId,
        /// The part, absolute and clean.
        path: String,
        /// Whether it can be written to; what is written is lost.
        is_writable: bool,
    },
    /// A directory that outlives the build. What is in it tells no two runs apart.
    Cache {
        /// Caches of one id are one cache.
        id: String,
        /// Who may use it at once.
        #[serde(serialize_with = "serialize_sharing")]
        sharing: Sharing,
        /// Whose filesystem it begins with; with nothing when there is none.
        #[serde(skip)]
        node: Option<NodeId>,
        /// The part of that filesystem, absolute and clean.
        path: String,
        /// Whether it can only be read.
        is_read_only: bool,
        /// Who owns the directory, and its permission bits, when it is made.
        owner: FileOwner,
    },
    /// Memory.
    Tmpfs {
        /// How much, in bytes; half of the machine's when none is said.
        size: Option<u64>,
    },
    /// A secret as a file. The target is the file.
    Secret {
        /// Which.
        id: String,
        /// Whose the file is.
        owner: FileOwner,
        /// Whether the build fails without it.
        is_required: bool,
    },
    /// The socket of an ssh agent. The target is the socket.
    Ssh {
        /// Which agent.
        id: String,
        /// Whose the socket is.
        owner: FileOwner,
        /// Whether the build fails without it.
        is_required: bool,
    },
    /// A file of the Dockerfile itself, which can be executed. The target is the file.
    Script {
        /// Its content.
        content: String,
    },
}

/// A secret as a variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SecretVariable {
    /// Which secret.
    pub id: String,
    /// The variable.
    pub name: String,
    /// Whether the build fails without it.
    pub is_required: bool,
}

/// Whose a file is and what may be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FileOwner {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl Mount {
    /// The node that is mounted.
    pub fn node(&self) -> Option<NodeId> {
        match &self.kind {
            MountKind::Bind { node, .. } => Some(*node),
            MountKind::Cache { node, .. } => *node,
            _ => None,
        }
    }
}

fn serialize_sharing<S: serde::Serializer>(sharing: &Sharing, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(sharing.name())
}

/// Files to copy.
#[derive(Clone, Debug, Serialize)]
pub struct Copy {
    /// Where paths are looked for.
    #[serde(serialize_with = "CopySource::serialize_kind")]
    pub from: CopySource,
    /// What is copied, in this order.
    pub sources: Vec<Source>,
    /// Where to, a trailing `/` kept.
    pub destination: String,
    /// The owner, `user[:group]`, where `--chown` named one.
    pub owner: Option<String>,
    /// What becomes of permission bits, where `--chmod` says so.
    pub mode: Option<ModeChange>,
    /// Patterns of what is left out, as in a `.dockerignore`, seen from what is copied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// `--link`: nothing of the filesystem below is looked at, so that the layer is the same on top of any.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_linked: bool,
}

/// One source of a `COPY` or `ADD`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A path, or several.
    Path {
        /// Absolute and clean; it may hold wildcards (`*`, `?`, `[a-z]`).
        path: String,
        /// With `--parents`.
        #[serde(skip_serializing_if = "Option::is_none")]
        parents: Option<Parents>,
        /// Whether archives are unpacked.
        unpack: bool,
    },
    /// A file that the Dockerfile holds.
    File {
        /// What it is called where the destination is a directory.
        name: String,
        /// Its content.
        content: String,
    },
    /// A file of the network.
    Url {
        /// Which.
        source: UrlSource,
        /// Whether an archive is unpacked.
        unpack: bool,
    },
    /// A Git repository.
    Git(GitSource),
}

/// A path in two: what is copied keeps its directories below the pivot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Parents {
    /// Where the directories that are kept begin, absolute and clean; it may hold wildcards.
    pub pivot: String,
    /// What is copied, seen from there, clean; it may hold wildcards, `**` too.
    pub pattern: String,
}

/// Where `COPY` finds its sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopySource {
    /// The build context.
    Context,
    /// The files of another build context.
    Named(ContextName),
    /// The filesystem of another node.
    Node(NodeId),
}

impl CopySource {
    /// Only the kind goes into an operation's key: a node's place in the plan is not what it is.
    fn serialize_kind<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            CopySource::Context => serializer.serialize_str("context"),
            CopySource::Named(name) => serializer.serialize_str(&format!("context:{name}")),
            CopySource::Node(_) => serializer.serialize_str("node"),
        }
    }
}
