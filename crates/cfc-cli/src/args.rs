//! What the user typed. What it means is decided by the commands, with [`crate::settings`].

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::size::Size;
use crate::span::Span;

/// Runs Cloudflare Containers projects on machines you own.
#[derive(Debug, Parser)]
#[command(name = "cfc", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Args)]
pub struct Global {
    /// Directory that holds all state [default: $XDG_DATA_HOME/cfc, for root /var/lib/cfc]
    #[arg(long, value_name = "DIR", env = "CFC_DATA", global = true)]
    pub data: Option<PathBuf>,
    /// Log more; repeat for more still
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build the images of a project, or one image from a directory
    Build(Box<Build>),
    /// Free disk: remove layers, cache mounts and what else of the image store nobody needs
    Prune(Prune),
    /// List the names of images in the store, and remove some
    #[command(subcommand, alias = "image")]
    Images(Images),
    /// Upload images to a registry
    Push(Push),
    /// Build, push and start a new version of a project, and wait until it serves
    Deploy(Deploy),
    /// Delete a Worker with its applications, its containers and all that its Durable Objects keep
    Delete(Delete),
    /// Print what a Worker has printed: `console.log`, and the exception behind an `Internal Server Error`
    Logs(WorkerLogs),
    /// Set, list and delete what a Worker has as `env.NAME` and nobody else is told
    #[command(subcommand)]
    Secret(Secret),
    /// Run the platform: registry, control API, gateway and runtime
    Serve(Serve),
    /// Let the running platform continue with the program that is installed now; no instance ends
    Upgrade,
    /// Run and look after a registry
    #[command(subcommand)]
    Registry(Registry),
    /// Look at what runs
    #[command(subcommand)]
    Containers(Containers),
    /// Run one container in the foreground, for trying an image
    Run(Run),
    /// Install the pinned workerd and esbuild into the data directory
    Setup,
    /// Name what this machine lacks, and how to get it
    Doctor,
    /// Run a command with cfc's own rights over an ordinary user's data: `cfc unshare rm -rf DIR`
    Unshare(Unshare),
}

#[derive(Debug, Args)]
pub struct Delete {
    /// The Worker's name [default: that of the project here]
    pub name: Option<String>,
    #[command(flatten)]
    pub project: ProjectSelection,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct WorkerLogs {
    /// The Worker's name [default: that of the project here]
    pub name: Option<String>,
    #[command(flatten)]
    pub project: ProjectSelection,
    /// Go on as it prints more
    #[arg(short, long)]
    pub follow: bool,
    /// Only what was printed since then: a time in UTC (`2026-01-31T12:00:00Z`), or how long ago (`10m`)
    #[arg(long, value_name = "TIME|DURATION")]
    pub since: Option<String>,
    /// Only so many of the last lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u64>,
    /// Begin each line with the time at which it was printed
    #[arg(short, long)]
    pub timestamps: bool,
}

#[derive(Debug, Subcommand)]
pub enum Secret {
    /// Set a secret; its value is asked for, or read from the standard input
    Put {
        /// The secret's name
        key: String,
        #[command(flatten)]
        worker: SecretWorker,
    },
    /// List the names of a Worker's secrets
    List {
        #[command(flatten)]
        worker: SecretWorker,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a secret
    Delete {
        /// The secret's name
        key: String,
        #[command(flatten)]
        worker: SecretWorker,
        /// Do not ask
        #[arg(short, long)]
        force: bool,
    },
    /// Set many secrets at once: of a JSON object, `{"NAME": "value"}`, or of lines NAME=VALUE, as `.env` has them
    Bulk {
        /// The file [default: the standard input]
        file: Option<PathBuf>,
        #[command(flatten)]
        worker: SecretWorker,
    },
}

/// Whose secrets.
#[derive(Debug, Args)]
pub struct SecretWorker {
    /// The Worker's name [default: that of the project here]
    #[arg(long, value_name = "WORKER")]
    pub name: Option<String>,
    #[command(flatten)]
    pub project: ProjectSelection,
}

/// Which project, and which of its environments.
#[derive(Debug, Args)]
pub struct ProjectSelection {
    /// The wrangler config file to use, instead of looking for one
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The environment of the config to use
    #[arg(short, long, value_name = "NAME", env = "CLOUDFLARE_ENV")]
    pub env: Option<String>,
}

#[derive(Debug, Args)]
pub struct Build {
    /// The project's directory; with --tag, the build context: a directory, `-` for an archive or a Dockerfile on stdin, or
    /// a Git repository
    #[arg(value_name = "PROJECT|CONTEXT", default_value = ".")]
    pub path: PathBuf,
    #[command(flatten)]
    pub project: ProjectSelection,
    /// Build one image from the context, and name it so; repeat for more names
    #[arg(short, long = "tag", value_name = "NAME:TAG")]
    pub tags: Vec<String>,
    /// The Dockerfile; `-` for stdin [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The stage to build [default: the last]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Give a build argument its value; without =VALUE the environment's
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub build_args: Vec<String>,
    /// Use this in place of a stage or image of that name: a directory, oci-layout://DIR[:TAG|@DIGEST],
    /// docker-image://NAME:TAG, a Git repository, or the file at an address
    #[arg(long = "build-context", value_name = "NAME=PLACE")]
    pub build_contexts: Vec<String>,
    /// Add a label to the image
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<String>,
    /// The platform to build for, in place of this machine's; several make one image with an index
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    pub platforms: Vec<String>,
    /// Ask the registry for base images although the store has them
    #[arg(long)]
    pub pull: bool,
    /// Use nothing that an earlier build made; with =STAGE, only these stages do not
    #[arg(
        long,
        value_name = "STAGE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        value_delimiter = ','
    )]
    pub no_cache: Vec<String>,
    /// buildx's name for --no-cache=STAGE
    #[arg(long, value_name = "STAGE", value_delimiter = ',', hide = true)]
    pub no_cache_filter: Vec<String>,
    /// The network of `RUN` steps that ask for none
    #[arg(long, value_name = "default|none|host", value_parser = ["default", "none", "host"])]
    pub network: Option<String>,
    /// A further name in the `/etc/hosts` of `RUN` steps; `host-gateway` is this machine's own address
    #[arg(long = "add-host", value_name = "NAME:IP")]
    pub add_hosts: Vec<String>,
    /// How much `/dev/shm` holds in `RUN` steps [default: 64m]
    #[arg(long, value_name = "SIZE")]
    pub shm_size: Option<String>,
    /// A limit of the processes of `RUN` steps: `nofile=1024:4096`
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]")]
    pub ulimits: Vec<String>,
    /// Who carries the steps out: this machine, or a BuildKit daemon
    #[arg(long, value_name = "native|buildkit", value_parser = ["native", "buildkit"], default_value = "native")]
    pub builder: String,
    /// Where the BuildKit daemon is: unix://SOCKET, tcp://HOST:PORT, or docker://[SOCKET|HOST:PORT] for the one in Docker's
    /// engine [default: unix:///run/buildkit/buildkitd.sock]
    #[arg(long, value_name = "ADDRESS", env = "BUILDKIT_HOST")]
    pub buildkit_addr: Option<String>,
    /// The directory of ca.pem, cert.pem and key.pem for the daemon's port
    #[arg(long, value_name = "DIR")]
    pub buildkit_tls_dir: Option<PathBuf>,
    /// Build twice without cache, and name the first file that does not come out the same and the step that wrote it
    #[arg(long)]
    pub verify: bool,
    /// The image's time, and the latest of its files; it wins over the environment's SOURCE_DATE_EPOCH [default: 1980-01-01]
    #[arg(long, value_name = "now|SECONDS|DATE", value_parser = crate::images::timestamp::parse)]
    pub timestamp: Option<i64>,
    /// Look for mistakes and build nothing: the same as --call check
    #[arg(long)]
    pub check: bool,
    /// Say something of the Dockerfile instead of building it; `,format=json` for programs
    #[arg(long, value_name = "check|lint|outline|targets")]
    pub call: Option<String>,
    /// Use what other builds made: type=registry,ref=NAME:TAG (an image with an inline cache, too) or type=local,src=DIR
    #[arg(long = "cache-from", value_name = "type=TYPE,…|NAME:TAG")]
    pub cache_from: Vec<String>,
    /// Let other builds use what this one made: type=registry,ref=NAME:TAG, type=local,dest=DIR (with mode=max of every step)
    /// or type=inline; also compression=gzip|zstd|uncompressed, compression-level=LEVEL, ignore-error=true
    #[arg(long = "cache-to", value_name = "type=TYPE,…[,mode=min|max]")]
    pub cache_to: Vec<String>,
    /// How to show the build: auto draws on a terminal and is plain elsewhere; json is an object a line on stderr
    /// [default: $CFC_PROGRESS, $BUILDKIT_PROGRESS, auto]
    #[arg(long, value_name = "auto|plain|tty|json|quiet")]
    pub progress: Option<String>,
    /// Say nothing but the digest: the same as --progress quiet
    #[arg(short, long, conflicts_with = "progress")]
    pub quiet: bool,
    /// A secret for `RUN --mount=type=secret`: a file, or a variable of the environment
    #[arg(long = "secret", value_name = "id=ID[,src=FILE|,env=NAME]")]
    pub secrets: Vec<String>,
    /// An ssh agent for `RUN --mount=type=ssh`; `default` is the one of SSH_AUTH_SOCK
    #[arg(long = "ssh", value_name = "default|ID=SOCKET")]
    pub ssh: Vec<String>,
    /// Let the Dockerfile use this machine's network, or nearly all of the kernel
    #[arg(long = "allow", value_name = "network.host|security.insecure")]
    pub allow: Vec<String>,
    /// Add an annotation to the image's manifest, or to the index of several
    #[arg(long = "annotation", value_name = "[manifest|index|manifest-descriptor:]NAME=VALUE")]
    pub annotations: Vec<String>,
    /// How to compress the layers that the build makes [default: gzip]
    #[arg(long, value_name = "KIND", value_parser = ["gzip", "zstd", "estargz", "none"])]
    pub compression: Option<String>,
    /// How hard to compress: 0 to 9 for gzip and estargz [default: 2], 1 to 22 for zstd [default: 3]
    #[arg(long, value_name = "LEVEL", allow_negative_numbers = true)]
    pub compression_level: Option<i32>,
    /// Also write the image to a file or its files to a directory: type=oci|docker|tar|local|registry,dest=PATH
    #[arg(short, long = "output", value_name = "type=TYPE,dest=PATH|DIR|-", requires = "tags")]
    pub outputs: Vec<String>,
    /// Also write the image as an OCI layout
    #[arg(long, value_name = "DIR", requires = "tags")]
    pub oci_layout: Option<PathBuf>,
    /// Also push the image to the registry that its names say
    #[arg(long, requires = "tags")]
    pub push: bool,
    /// buildx's word for what is done in any case: the image is in the store
    #[arg(long, hide = true)]
    pub load: bool,
    /// buildx's word for attestations, of which there are none
    #[arg(long, value_name = "false", value_parser = ["false"], hide = true)]
    pub provenance: Option<String>,
    /// As --provenance
    #[arg(long, value_name = "false", value_parser = ["false"], hide = true)]
    pub sbom: Option<String>,
    /// Write the digest of the image's config to a file
    #[arg(long, value_name = "FILE", requires = "tags")]
    pub iidfile: Option<PathBuf>,
    /// Write the image's digests and names to a file, as JSON
    #[arg(long, value_name = "FILE", requires = "tags")]
    pub metadata_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Prune {
    /// Also pulled images, what was remembered of build contexts, and all that only saves time with other images
    #[arg(short, long)]
    pub all: bool,
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Only what was not used for so long, or of a type: until=24h, type=exec.cachemount, id=ID
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    pub filters: Vec<String>,
    /// Leave what was used last, up to this size
    #[arg(long, value_name = "SIZE", visible_alias = "reserved-space")]
    pub keep_storage: Option<Size>,
    /// Remove what was not used for longest, until no more than this is left
    #[arg(long, value_name = "SIZE")]
    pub max_used_space: Option<Size>,
    /// Remove what was not used for longest, until so much of the disk is free
    #[arg(long, value_name = "SIZE")]
    pub min_free_space: Option<Size>,
}

#[derive(Debug, Args)]
pub struct Push {
    /// A project's directory, or the name of an image in the store
    #[arg(value_name = "PROJECT|NAME:TAG", default_value = ".")]
    pub what: String,
    /// Where to push it [default: the registry of the running platform]
    #[arg(value_name = "DESTINATION")]
    pub destination: Option<String>,
    #[command(flatten)]
    pub project: ProjectSelection,
}

#[derive(Debug, Args)]
pub struct Deploy {
    /// The project's directory
    #[arg(value_name = "PROJECT", default_value = ".")]
    pub path: PathBuf,
    #[command(flatten)]
    pub project: ProjectSelection,
    /// Do not try the containers before the new version takes over
    #[arg(long)]
    pub skip_trial: bool,
}

#[derive(Debug, Args)]
pub struct Serve {
    /// Port of the gateway on loopback; 0 chooses free ports for all three, whatever the configuration file says [default: 8787]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Port of the control API [default: 8790]
    #[arg(long, value_name = "PORT")]
    pub control_port: Option<u16>,
    /// Port of the registry [default: 5000]
    #[arg(long, value_name = "PORT")]
    pub registry_port: Option<u16>,
    /// Run instances with an OCI runtime instead of cfc's own sandbox: crun, runc, runsc, one of `[runtimes]` in the
    /// configuration file, or a path
    #[arg(long, value_name = "NAME")]
    pub runtime: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Registry {
    /// Run the registry alone
    Serve(RegistryServe),
    /// Remove what no manifest refers to, while clients push and pull
    Gc(RegistryGc),
    /// Remove the tags that `[[registry.retention]]` in the configuration file does not keep
    Retain(RegistryRetain),
    /// Make a user name and password that expire, as for a CI job; prints NAME:PASSWORD
    Credentials(RegistryCredentials),
    /// The certificate authority that certifies the registry, and who trusts it
    #[command(subcommand)]
    Ca(RegistryCa),
    /// Hash everything again and say what is not as it should be; exits with 1 then
    Verify(RegistryVerify),
    /// Say what each repository takes
    Usage(RegistryUsage),
}

#[derive(Debug, Args)]
pub struct BucketChoice {
    /// The registry in this S3 bucket, not in the data directory: s3://BUCKET or s3://BUCKET/PREFIX
    #[arg(long, value_name = "URL")]
    pub bucket: Option<cfc_registry::BucketLocation>,
    /// Where the bucket's store is [default: $AWS_ENDPOINT_URL, else AWS]
    #[arg(long, value_name = "URL", value_parser = endpoint)]
    pub endpoint: Option<String>,
}

fn endpoint(text: &str) -> Result<String, cfc_registry::EndpointError> {
    cfc_registry::check_endpoint(text).map(|()| text.to_string())
}

#[derive(Debug, Args)]
pub struct RegistryGc {
    #[command(flatten)]
    pub place: BucketChoice,
    /// Only say what would be removed; uploads that nobody goes on with, which go too, are not looked for
    #[arg(long)]
    pub dry_run: bool,
    /// Say of each thing what it is, its digest, its size, in which repositories, and why it goes; the summary is on stderr
    /// then. A link is that a repository holds a blob which stays for others
    #[arg(long)]
    pub list: bool,
    /// Print JSON: `blobs`, `bytes`, `manifests`, `unlinked` and `uploads` count; with --list, `removed` has each thing
    #[arg(long)]
    pub json: bool,
    /// Keep what was pushed, mounted or looked for within this time, and an eighth of `gc_grace` longer [default: 24h]
    #[arg(long, value_name = "TIME")]
    pub grace: Option<Span>,
    /// Remove manifests too that no tag, index or subject leads to and that nobody asked for in this time, and an eighth
    /// of `gc_grace` longer
    #[arg(long, value_name = "TIME")]
    pub untagged: Option<Span>,
}

#[derive(Debug, Args)]
pub struct RegistryRetain {
    #[command(flatten)]
    pub place: BucketChoice,
    /// Only say which would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Good for what is named here, whatever `[[registry.allow]]` says, and for `docker login`, `skopeo --creds` and \
    whatever else takes a user name and a password. An upload that began in time may end later. Taking one back before it \
    expires takes all of them: with another `token-key` in the registry's directory or bucket, and a restart."
)]
pub struct RegistryCredentials {
    #[command(flatten)]
    pub place: BucketChoice,
    /// Where it is good, as in `[[registry.allow]]`: `team/*`, `ci/**`; `**` is every repository
    #[arg(value_name = "REPOSITORIES")]
    pub repositories: Vec<String>,
    /// Good for pulling; the only thing unless others are named
    #[arg(long)]
    pub pull: bool,
    /// Good for pushing; most clients that push also pull, to find what is there
    #[arg(long)]
    pub push: bool,
    /// Good for deleting
    #[arg(long)]
    pub delete: bool,
    /// Good for listing these repositories, or all where none are named
    #[arg(long)]
    pub catalog: bool,
    /// Good for having garbage collected
    #[arg(long)]
    pub collect: bool,
    /// Good for reading the metrics
    #[arg(long)]
    pub metrics: bool,
    /// For how long, from a minute to 24 hours
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub expires: Span,
    /// The user name, which logs have; wrangler knows no other than this one
    #[arg(long, value_name = "NAME", default_value = "v1")]
    pub user: String,
    /// Instead of making one, say which there are that have not expired, and of each the id; also of those that wrangler got
    #[arg(long, conflicts_with_all = MAKING)]
    pub list: bool,
    /// Take back the one with this id: it is refused, with the tokens that clients got for it, at once by a registry on a data
    /// directory, and within five seconds by every registry of a bucket
    #[arg(long, value_name = "ID", conflicts_with_all = MAKING, conflicts_with = "list")]
    pub revoke: Option<String>,
    /// Print JSON: `id`, `username`, `password` and `expires`; with --list an array
    #[arg(long)]
    pub json: bool,
}

/// What says which password is to be made.
const MAKING: [&str; 9] =
    ["repositories", "pull", "push", "delete", "catalog", "collect", "metrics", "expires", "user"];

#[derive(Debug, Subcommand)]
pub enum RegistryCa {
    /// Print where its certificate is; makes it where there is none
    Show,
    /// Have Docker's daemon and the podman family on this machine trust it for registries
    Install(RegistryCaTrust),
    /// Take away what `install` has put there
    Uninstall(RegistryCaTrust),
}

#[derive(Debug, Args)]
pub struct RegistryCaTrust {
    /// The registries, as their images' names have them
    #[arg(value_name = "HOST[:PORT]", required_unless_present = "system")]
    pub hosts: Vec<String>,
    /// Also have everything else on this machine trust it
    #[arg(long)]
    pub system: bool,
}

#[derive(Debug, Args)]
pub struct RegistryVerify {
    #[command(flatten)]
    pub place: BucketChoice,
    /// Take corrupt content away, so that it can be pushed again
    #[arg(long)]
    pub quarantine: bool,
    /// Print JSON: `blobs`, `bytes`, `manifests` count what was read; `findings` each have a `kind`
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Images {
    /// List the names, with what they name
    #[command(alias = "ls")]
    List(ImagesList),
    /// Remove names; what they named goes with `cfc prune`, once nobody needs it
    #[command(alias = "rm")]
    Remove(ImagesRemove),
}

#[derive(Debug, Args)]
pub struct ImagesList {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ImagesRemove {
    /// The names; the tag is `latest` where there is none
    #[arg(value_name = "NAME:TAG", required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RegistryUsage {
    #[command(flatten)]
    pub place: BucketChoice,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RegistryServe {
    #[command(flatten)]
    pub place: BucketChoice,
    /// Port on loopback; 0 chooses a free one [default: 5000]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Where to listen instead of on loopback; the configuration file must name users then
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "port")]
    pub listen: Option<std::net::SocketAddr>,
}

#[derive(Debug, Subcommand)]
pub enum Containers {
    /// List the applications
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the instances of an application: what each does, since when, from which digest; those that were removed
    /// within the last hour too
    Instances {
        /// The application's name
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what the containers of an application wrote
    Logs(Logs),
    /// Ask instances to end, and wait until they have
    Stop(StopInstances),
    /// Stop instances and start them again on fresh disks
    Restart(StopInstances),
    /// Print everything that is known of an instance, as JSON
    Inspect {
        /// The instance: its name, its Durable Object's id, or the beginning of either
        instance: String,
    },
    /// Show what live instances use, again and again
    Stats(Stats),
    /// Print what happened to instances
    Events(Events),
    /// Run a command in a running instance; its exit code is this command's
    Exec(ContainersExec),
    /// Delete an application with its instances; its Worker goes on without it
    Delete {
        /// The application's name or id
        name: String,
        /// Do not ask
        #[arg(short, long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub struct Logs {
    /// The application's name
    pub name: String,
    /// Go on as they write more
    #[arg(short, long)]
    pub follow: bool,
    /// Only of this instance
    #[arg(long, value_name = "ID")]
    pub instance: Option<String>,
    /// Only what was written since then: a time in UTC (`2026-01-31T12:00:00Z`), or how long ago (`10m`)
    #[arg(long, value_name = "TIME|DURATION")]
    pub since: Option<String>,
    /// Only so many of each instance's last lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u64>,
    /// Begin each line with the time at which it was written
    #[arg(short, long)]
    pub timestamps: bool,
    /// Only one of the two outputs
    #[arg(long, value_name = "STREAM", value_parser = ["stdout", "stderr"])]
    pub stream: Option<String>,
}

#[derive(Debug, Args)]
pub struct StopInstances {
    /// The instances: name, Durable Object's id, or the beginning of either
    #[arg(value_name = "INSTANCE", required = true)]
    pub instances: Vec<String>,
    /// How long they may take before they are killed (`90`, `15m`) [default: `stop_grace` of the server, 15m]
    #[arg(short, long, value_name = "DURATION")]
    pub time: Option<Span>,
}

#[derive(Debug, Args)]
pub struct Stats {
    /// Only of this application
    #[arg(value_name = "APPLICATION")]
    pub application: Option<String>,
    /// Look once
    #[arg(long)]
    pub no_stream: bool,
    /// Print JSON, with `cpu_usec` since the start in place of a share
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Events {
    /// Go on with what happens later
    #[arg(short, long)]
    pub follow: bool,
    /// Only what happened since then: a time in UTC (`2026-01-31T12:00:00Z`), or how long ago (`10m`)
    #[arg(long, value_name = "TIME|DURATION")]
    pub since: Option<String>,
    /// Print a JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ContainersExec {
    /// Pass this input on to the command
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal; with -i this one, key by key
    #[arg(short, long)]
    pub tty: bool,
    /// Run as this user, in place of the image's
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Start in this directory, in place of the image's
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Set an environment variable; without =VALUE to the value it has here
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub environment: Vec<String>,
    /// The instance: its id, its Durable Object's, or the beginning of either
    pub instance: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Run {
    /// The image: a name in the store, or a reference to pull
    pub image: String,
    /// The command, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// Set an environment variable
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    pub environment: Vec<String>,
    /// The instance type, whose limits of processor, memory and disk apply
    #[arg(long, value_name = "TYPE", default_value = "standard-1")]
    pub instance_type: String,
    /// Run it with an OCI runtime instead of cfc's own sandbox: crun, runc, runsc, one of `[runtimes]` in the
    /// configuration file, or a path
    #[arg(long, value_name = "NAME")]
    pub runtime: Option<String>,
    /// Give it a terminal of its own, shown in this one, for shells and editors; without, what it writes goes through pipes
    #[arg(short, long)]
    pub tty: bool,
    /// Accepted for those who are used to it: its input is always this command's
    #[arg(short, long)]
    pub interactive: bool,
    /// Allow it more than containers may: `fuse`, or `nested` for containers inside it
    #[arg(long = "grant", value_name = "GRANT")]
    pub grants: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Unshare {
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}
