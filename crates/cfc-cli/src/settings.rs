//! Where state lives and who serves: flag over environment over configuration file over default.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use cfc_engine::AddressRange;
use cfc_runtime::Shares;
use cfc_store::Store;
use cfc_transfer::{Options, Registries, RegistrySettings};
use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::failure::Failure;
use crate::size::{CacheLimit, Size};
use crate::span::Span;

/// The layout of the data directory, and what the configuration file says.
///
/// ```text
/// DATA/
///   lock          held by the one server that uses the directory
///   token         the control API's token, mode 0600
///   serve.json    addresses of the running server
///   sockets       which directory has the sockets of the server that runs, or ran last
///   bucket/       what a bucket would hold: registry, control records
///   store/        images and unpacked layers of this machine
///   tools/        pinned workerd and esbuild
///   secrets/      a directory a Worker: the values of its secrets, mode 0600
///   workers/      a directory a Worker: configuration, Durable Object storage, log
///   instances/    a directory a container instance: disk, journal, log
/// ```
#[derive(Debug, Clone)]
pub struct Settings {
    /// The data directory, absolute.
    pub data: PathBuf,
    /// The configuration file's contents.
    pub file: ConfigFile,
}

/// `cfc/config.toml` in `$XDG_CONFIG_HOME`, for root in `/etc`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// The data directory.
    pub data: Option<PathBuf>,
    /// Port of the gateway.
    pub port: Option<u16>,
    /// Port of the control API.
    pub control_port: Option<u16>,
    /// Private networks, and addresses of this machine, that containers may reach: `10.1.0.0/16`.
    #[serde(default)]
    pub egress_allow: Vec<AddressRange>,
    /// How long a container may take to end after SIGTERM: `"15m"`, the default.
    pub stop_grace: Option<Span>,
    /// How large the build cache may be at the end of a build: `"20GB"`, `"10%"` of the filesystem, or `"none"`.
    pub build_cache_limit: Option<CacheLimit>,
    /// Port of the registry.
    pub registry_port: Option<u16>,
    /// How many times the CPUs may be promised to instances; without it they are not counted.
    pub cpu_overcommit: Option<f64>,
    /// How many times the memory may be promised to instances.
    pub memory_overcommit: Option<f64>,
    /// Memory that instances never get, in MiB.
    pub memory_reserve_mib: Option<u64>,
    /// How many times the free disk may be promised to instances.
    pub disk_overcommit: Option<f64>,
    /// Disk that instances never get, in MB.
    pub disk_reserve_mb: Option<u64>,
    /// Whether a container may use the whole processor until it listens, rather than its instance type's share.
    #[serde(default = "yes")]
    pub startup_cpu_boost: bool,
    /// What runs instances in place of cfc's own sandbox: a name of `runtimes`, a program's name, or a path.
    pub runtime: Option<String>,
    /// Programs with names.
    #[serde(default)]
    pub runtimes: BTreeMap<String, RuntimeEntry>,
    /// What is special about registries, by host and port.
    #[serde(default)]
    pub registries: BTreeMap<String, RegistryHostEntry>,
    /// What holds for single applications.
    #[serde(default)]
    pub applications: BTreeMap<String, ApplicationEntry>,
    /// How the registry behaves.
    #[serde(default)]
    pub registry: RegistryEntry,
}

impl ConfigFile {
    /// How much of the machine instances may have.
    pub fn shares(&self) -> Result<Shares, Failure> {
        let factor = |key: &str, value: Option<f64>| match value {
            Some(value) if !(value.is_finite() && value > 0.0) => {
                let what = format!("`{key} = {value}` in the configuration file is not a number above zero");
                Err(Failure::new(what).hint("1 promises no more than there is, 2 twice as much"))
            }
            value => Ok(value),
        };
        Ok(Shares {
            cpu_overcommit: factor("cpu_overcommit", self.cpu_overcommit)?,
            memory_overcommit: factor("memory_overcommit", self.memory_overcommit)?.unwrap_or(1.0),
            memory_reserve_mib: self.memory_reserve_mib,
            disk_overcommit: factor("disk_overcommit", self.disk_overcommit)?.unwrap_or(1.0),
            disk_reserve_mb: self.disk_reserve_mb,
        })
    }
}

impl Default for ConfigFile {
    fn default() -> ConfigFile {
        toml::from_str("").expect("every setting may be absent")
    }
}

fn yes() -> bool {
    true
}

/// An OCI runtime, as `[runtimes.NAME]` has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeEntry {
    /// The program: a path, or a name to look for.
    pub path: PathBuf,
    /// Its arguments, before the command: `["--platform=kvm"]`.
    #[serde(default)]
    pub args: Vec<String>,
}

/// A registry, as `[registries."HOST"]` has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryHostEntry {
    /// Where images are looked for first: `["mirror.example:5000/hub"]`.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// Whether it speaks HTTP; without a word only this machine's own do.
    pub http: Option<bool>,
    /// Whether its certificate is taken whatever it is.
    #[serde(default)]
    pub insecure: bool,
    /// A file of certificates (PEM) to trust besides the system's.
    pub ca: Option<PathBuf>,
}

/// An application, as `[applications.NAME]` has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationEntry {
    /// As [`ConfigFile::runtime`], for this application; `"cfc"` is cfc's own sandbox.
    pub runtime: Option<String>,
    /// What its containers may besides: `"fuse"`, `"nested"`.
    #[serde(default)]
    pub grants: Vec<String>,
}

/// Addresses of a running server, as `serve.json` tells them to the other commands of the same user.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Addresses {
    /// Process id of the server.
    pub pid: u32,
    /// `host:port` of the gateway.
    pub gateway: String,
    /// `host:port` of the control API.
    pub control: String,
    /// `host:port` of the registry.
    pub registry: String,
    /// The server's version.
    #[serde(default)]
    pub version: String,
    /// How often the server's program was replaced by `cfc upgrade`.
    #[serde(default)]
    pub generation: u32,
    /// How often the server refused to be replaced, and why the last time.
    #[serde(default)]
    pub refusals: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// Why the launcher goes on with an older program than the server's, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launcher_refusal: Option<String>,
}

/// The registry, as `[registry]` has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryEntry {
    /// How often the registry collects garbage by itself, `"6h"` unless said; `0` for never.
    pub gc_every: Option<Span>,
    /// How long a blob that no manifest refers to stays after it was pushed, mounted or looked for: `"24h"`.
    pub gc_grace: Option<Span>,
    /// How long a manifest that no tag, index or subject leads to stays after somebody asked for it; without it, it stays.
    pub gc_untagged: Option<Span>,
    /// Accept manifests and indexes although content they name is missing.
    #[serde(default)]
    pub accept_sparse: bool,
    /// Whether clients may delete tags, manifests and blobs.
    #[serde(default = "yes")]
    pub deletes: bool,
    /// Tags that keep pointing where they point: `["**:v*"]`.
    #[serde(default)]
    pub immutable_tags: Vec<String>,
    /// The S3 bucket in which a registry that runs alone is, in place of the data directory: `"s3://bucket/prefix"`.
    pub bucket: Option<String>,
    /// Where the bucket's store is: `"https://host:port"`; without it what the environment says, else AWS.
    pub endpoint: Option<String>,
    /// For how long clients may fetch content from the bucket's store itself: `"20m"`; without it they get it from the
    /// registry.
    pub redirect: Option<Span>,
    /// Whether no other registry will ever use the bucket, so that its store need not be fit for several.
    #[serde(default)]
    pub single_replica: bool,
    /// What all uploads to the bucket together may take of this machine's memory: `"512MB"`; further ones wait.
    pub upload_memory: Option<Size>,
    /// Users and their bcrypt hashes, as `htpasswd -B` writes them; without it everybody may do everything.
    pub htpasswd: Option<PathBuf>,
    /// What users, or everybody, may do; without any, users may do everything.
    #[serde(default)]
    pub allow: Vec<cfc_registry::Rule>,
    /// Under which URL clients know the registry, for their tokens, where a proxy is in between.
    pub url: Option<String>,
    /// Where it is written down who did what: a file, or `-` for the standard output.
    pub audit_log: Option<PathBuf>,
    /// How large that file gets before another is begun: `"100MB"`; ten are kept.
    pub audit_log_size: Option<Size>,
    /// How often one address, and one user, may ask.
    pub requests_per_minute_by_address: Option<NonZeroU32>,
    pub requests_per_minute_by_user: Option<NonZeroU32>,
    /// How much all blobs and manifests may take: `"500GB"`.
    pub quota: Option<Size>,
    /// Larger blobs are refused.
    pub max_blob: Option<Size>,
    /// How much single repositories may hold.
    #[serde(default)]
    pub quotas: Vec<QuotaEntry>,
    /// Which tags stay.
    #[serde(default)]
    pub retention: Vec<RetentionEntry>,
    /// Names and addresses for which the registry shows certificates of its own authority (`cfc registry ca`).
    pub tls_names: Option<Vec<String>>,
    /// Registries whose images are kept here.
    #[serde(default)]
    pub upstream: Vec<UpstreamEntry>,
    /// Who is told of what was pushed and deleted.
    #[serde(default)]
    pub webhook: Vec<WebhookEntry>,
    /// Addresses of proxies, or ranges of them, that say truly who is behind them.
    #[serde(default)]
    pub trusted_proxies: Vec<AddressRange>,
    /// Larger manifests are refused: `"4MB"`.
    pub max_manifest: Option<Size>,
    /// Connections at once.
    pub max_connections: Option<NonZeroU32>,
    /// How long a client may do nothing in the middle of a request: `"60s"`.
    pub idle_timeout: Option<Span>,
    /// The certificate with its chain that the registry shows, in PEM; without it the registry speaks plain HTTP.
    pub tls_certificate: Option<PathBuf>,
    /// Its key, in PEM.
    pub tls_key: Option<PathBuf>,
}

/// How much a repository may hold, as `[[registry.quotas]]` has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuotaEntry {
    /// Patterns of repositories; each may hold so much by itself.
    pub repositories: Vec<String>,
    /// How much: `"10GB"`.
    pub size: Size,
}

/// Which tags stay, as `[[registry.retention]]` has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionEntry {
    /// Patterns of the repositories it is about.
    pub repositories: Vec<String>,
    /// Patterns of the tags it is about; all of them unless said.
    #[serde(default = "everywhere")]
    pub tags: Vec<String>,
    /// So many stay that were pushed last.
    pub keep_last: Option<usize>,
    /// Younger ones stay: `"30d"`.
    pub keep_younger: Option<Span>,
    /// Patterns of tags that stay in any case.
    #[serde(default)]
    pub keep: Vec<String>,
}

impl RetentionEntry {
    /// What the registry is told of it.
    pub fn rule(&self) -> Result<cfc_registry::RetentionRule, Failure> {
        let keeps_some = self.keep_last.is_some_and(|count| count > 0);
        if !keeps_some && self.keep_younger.is_none_or(|age| age.duration().is_zero()) {
            let repositories = &self.repositories;
            let what = format!("`[[registry.retention]]` for {repositories:?} in the configuration file keeps nothing");
            return Err(Failure::new(what).hint("say what stays: `keep_last = 10`, `keep_younger = \"30d\"`, or both"));
        }
        check_patterns("[[registry.retention]]", &self.repositories)?;
        if self.tags.is_empty() {
            let what = "`tags = []` below `[[registry.retention]]` in the configuration file: the rule is about no tag";
            return Err(Failure::new(what).hint("leave `tags` out for all tags, or name patterns: `tags = [\"pr-*\"]`"));
        }
        Ok(cfc_registry::RetentionRule {
            repositories: self.repositories.clone(),
            tags: self.tags.clone(),
            keep_last: self.keep_last,
            keep_younger: self.keep_younger.map(Span::duration),
            keep: self.keep.clone(),
        })
    }
}

/// A registry whose images are kept here, as `[[registry.upstream]]` has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamEntry {
    /// `hub` for repositories `hub/…`.
    pub prefix: String,
    /// `https://registry.example`.
    pub url: String,
    /// How clients that use the registry as a mirror call it (`?ns=`): `docker.io`; without it the host of its URL.
    pub namespace: Option<String>,
    /// Who we are there.
    pub username: Option<String>,
    /// A file with the password, which may be replaced.
    pub password_file: Option<PathBuf>,
    /// Token services, besides the upstream's own server, that get the password and may be anywhere: `host`, `host:port`.
    #[serde(default)]
    pub realms: Vec<String>,
    /// Servers that it may redirect to wherever they are: `host`, `host:port`.
    #[serde(default)]
    pub redirects: Vec<String>,
    /// A file of certificates (PEM) to trust besides the system's, there and where `realms` and `redirects` name.
    pub ca: Option<PathBuf>,
    /// How long a tag is believed to point where it pointed: `"1m"`.
    pub fresh: Option<Span>,
    /// How many blobs are fetched at once, 16 unless said; others wait.
    pub fetches: Option<NonZeroU32>,
    /// How long one fetch may take, its waiting included: `"1h"`.
    pub timeout: Option<Span>,
}

impl UpstreamEntry {
    /// What the registry is told of it.
    pub fn upstream(&self) -> Result<cfc_registry::Upstream, Failure> {
        let wrong = |what: String| {
            Failure::new(format!("`[[registry.upstream]]` `{}` in the configuration file: {what}", self.prefix))
        };
        if self.prefix.parse::<cfc_oci::RepositoryName>().is_err() {
            return Err(wrong("its prefix cannot begin the name of a repository".to_string()));
        }
        if !self.url.starts_with("http://") && !self.url.starts_with("https://") {
            return Err(wrong(format!("`{}` is no URL", self.url)).hint("write it as `https://registry.example`"));
        }
        let credentials = match (&self.username, &self.password_file) {
            (None, None) => None,
            (Some(name), Some(path)) => Some(cfc_registry::Login::from_file(name, path)?),
            _ => return Err(wrong("`username` and `password_file` need each other".to_string())),
        };
        if self.timeout.is_some_and(|timeout| timeout.duration().is_zero()) {
            return Err(
                wrong("`timeout = 0` would let nothing be fetched".to_string()).hint("leave it out for an hour")
            );
        }
        let usual = cfc_registry::Upstream::new(&self.prefix, &self.url);
        Ok(cfc_registry::Upstream {
            namespace: self.namespace.clone(),
            credentials,
            realms: self.realms.clone(),
            redirects: self.redirects.clone(),
            ca: self.ca.clone(),
            fresh: self.fresh.map_or(usual.fresh, Span::duration),
            fetches: self.fetches.map_or(usual.fetches, |fetches| fetches.get() as usize),
            timeout: self.timeout.map_or(usual.timeout, Span::duration),
            ..usual
        })
    }
}

/// A receiver of events, as `[[registry.webhook]]` has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookEntry {
    /// Where events are posted.
    pub url: String,
    /// Further headers: `{ Authorization = "Bearer …" }`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// A file with what signs each body.
    pub secret_file: Option<PathBuf>,
    /// Patterns of the repositories whose events it gets; all of them unless said.
    #[serde(default = "everywhere")]
    pub repositories: Vec<String>,
    /// Which events: `["push", "delete"]`, both unless said.
    #[serde(default = "every_event")]
    pub events: Vec<cfc_registry::HookEvent>,
}

impl WebhookEntry {
    /// What the registry is told of it.
    pub fn webhook(&self) -> Result<cfc_registry::Webhook, Failure> {
        let url = &self.url;
        if !url.starts_with("http://") && !url.starts_with("https://") {
            let what = format!("`url = \"{url}\"` below `[[registry.webhook]]` in the configuration file is no URL");
            return Err(Failure::new(what).hint("write it as `https://receiver.example/path`"));
        }
        check_patterns("[[registry.webhook]]", &self.repositories)?;
        if self.events.is_empty() {
            let what = "`events = []` below `[[registry.webhook]]` in the configuration file tells of nothing";
            return Err(Failure::new(what).hint("leave it out for both `push` and `delete`"));
        }
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|error| {
                Failure::because(format!("cannot read `secret_file` {} of the webhook {url}", path.display()), &error)
            })
        };
        let secret = self.secret_file.as_ref().map(read).transpose()?;
        Ok(cfc_registry::Webhook {
            url: url.clone(),
            headers: self.headers.clone(),
            secret: secret.map(|secret| secret.trim_end().to_string()),
            repositories: self.repositories.clone(),
            events: self.events.clone(),
            attempts: 10,
            backoff: std::time::Duration::from_secs(1),
        })
    }
}

/// Refuses a rule that allows something to nobody, or nowhere.
fn check_rule(rule: &cfc_registry::Rule) -> Result<(), Failure> {
    use cfc_registry::Permission::{Delete, Pull, Push};
    let wrong = |what: &str| Failure::new(format!("{what} below `[[registry.allow]]` in the configuration file"));
    if rule.users.is_empty() {
        return Err(wrong("nobody is allowed anything by `users = []`")
            .hint("name users; `*` is every user, `anonymous` everybody"));
    }
    if rule.actions.is_empty() {
        return Err(wrong("nothing is allowed by `actions = []`").hint("name some: `actions = [\"pull\"]`"));
    }
    let is_somewhere = rule.actions.iter().any(|action| [Pull, Push, Delete].contains(action));
    if rule.repositories.is_empty() && is_somewhere {
        let what = format!("no `repositories` are named for users {:?} to pull from, push to or delete in", rule.users);
        return Err(wrong(&what).hint("name patterns: `repositories = [\"team/*\"]`; `**` is all of them"));
    }
    match rule.repositories.is_empty() {
        true => Ok(()),
        false => check_patterns("[[registry.allow]]", &rule.repositories),
    }
}

/// Refuses patterns of repositories that no repository could match.
fn check_patterns(place: &str, patterns: &[String]) -> Result<(), Failure> {
    let wrong = |what: &str| Failure::new(format!("`repositories` below `{place}` in the configuration file: {what}"));
    if patterns.is_empty() {
        return Err(wrong("it names none"));
    }
    patterns.iter().try_for_each(|pattern| cfc_registry::check_pattern(pattern).map_err(|why| wrong(&why)))
}

fn everywhere() -> Vec<String> {
    vec!["**".to_string()]
}

fn every_event() -> Vec<cfc_registry::HookEvent> {
    vec![cfc_registry::HookEvent::Push, cfc_registry::HookEvent::Delete]
}

/// A part of the largest uploads.
const LEAST_UPLOAD_MEMORY: u64 = 128 * 1024 * 1024;

impl RegistryEntry {
    /// Refuses what would leave nothing of the registry.
    pub fn check(&self) -> Result<(), Failure> {
        let zeros = [
            ("idle_timeout", self.idle_timeout.is_some_and(|span| span.duration().is_zero()), "give up every request"),
            ("audit_log_size", self.audit_log_size.is_some_and(|size| size.bytes() == 0), "keep ten lines"),
            ("max_manifest", self.max_manifest.is_some_and(|size| size.bytes() == 0), "refuse every manifest"),
            ("max_blob", self.max_blob.is_some_and(|size| size.bytes() == 0), "refuse every blob"),
            ("quota", self.quota.is_some_and(|size| size.bytes() == 0), "refuse every push"),
        ];
        for (name, is_zero, consequence) in zeros {
            if is_zero {
                let what = format!("`{name} = 0` below `[registry]` in the configuration file would {consequence}");
                return Err(Failure::new(what).hint("leave it out for what is usual"));
            }
        }
        if self.upload_memory.is_some_and(|size| size.bytes() < LEAST_UPLOAD_MEMORY) {
            let what = "`upload_memory` below `[registry]` in the configuration file is less than one part may have";
            return Err(Failure::new(what).hint("give it 128MB at least, or leave it out for 512MB"));
        }
        self.allow.iter().try_for_each(check_rule)?;
        if let Some(pattern) = self.immutable_tags.iter().find(|pattern| !pattern.contains([':', '*'])) {
            let what = format!("`immutable_tags` below `[registry]` in the configuration file: `{pattern}` is no tag");
            return Err(Failure::new(what).hint("patterns are of REPOSITORY:TAG; `**:latest` is that tag everywhere"));
        }
        let mut prefixes = BTreeSet::new();
        if let Some(twice) = self.upstream.iter().find(|upstream| !prefixes.insert(&upstream.prefix)) {
            let prefix = &twice.prefix;
            let what = format!("two `[[registry.upstream]]` in the configuration file have the prefix `{prefix}`");
            return Err(Failure::new(what).hint("give each its own: a repository is of one upstream only"));
        }
        self.quotas.iter().try_for_each(|quota| check_patterns("[[registry.quotas]]", &quota.repositories))?;
        self.check_quotas()
    }

    /// Refuses quotas that leave no repository any room. Such as leave none to some may be meant: what comes from an
    /// upstream is passed on then.
    fn check_quotas(&self) -> Result<(), Failure> {
        let is_of_all = |quota: &QuotaEntry| quota.repositories.iter().any(|pattern| pattern == "**");
        let first = self.quotas.iter().find(|quota| quota.size.bytes() > 0 || is_of_all(quota));
        if first.is_none_or(|quota| quota.size.bytes() > 0) {
            return Ok(());
        }
        let what = "`size = 0` of `**` below `[[registry.quotas]]` in the configuration file would refuse every push";
        Err(Failure::new(what).hint("the first rule that matches holds: put those for who may push before it"))
    }

    /// Refuses what says something of a bucket, for a registry that is in none.
    pub fn check_without_bucket(&self) -> Result<(), Failure> {
        let settings = [
            ("endpoint", self.endpoint.is_some()),
            ("redirect", self.redirect.is_some()),
            ("upload_memory", self.upload_memory.is_some()),
            ("single_replica", self.single_replica),
        ];
        let Some((name, _)) = settings.iter().find(|(_, is_set)| *is_set) else { return Ok(()) };
        let what = format!("`{name}` below `[registry]` in the configuration file is for a bucket, and there is none");
        Err(Failure::new(what)
            .hint("name it there, `bucket = \"s3://BUCKET\"`, or with --bucket; for the data directory leave it out"))
    }

    /// Whether the registry shows a certificate.
    pub fn is_encrypted(&self) -> bool {
        self.tls_certificate.is_some() || self.tls_names.is_some()
    }

    /// The URL, which ends up in a header.
    pub fn url(&self) -> Result<Option<String>, Failure> {
        let is_url = |url: &String| {
            let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
            rest.is_some_and(|rest| {
                !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"')
            })
        };
        match &self.url {
            Some(url) if !is_url(url) => {
                Err(Failure::new(format!("`url = \"{url}\"` below `[registry]` in the configuration file is no URL"))
                    .hint("write it as `https://registry.example`"))
            }
            url => Ok(url.clone()),
        }
    }
}

impl Default for RegistryEntry {
    fn default() -> RegistryEntry {
        toml::from_str("").expect("every setting may be absent")
    }
}

impl Settings {
    /// Reads the configuration file and decides on the data directory; creates nothing.
    pub fn load(global: &Global) -> Result<Settings, Failure> {
        let file = read_config_file(&config_file_path())?;
        let data = global.data.clone().or_else(|| file.data.clone()).unwrap_or_else(default_data_directory);
        let data = std::path::absolute(&data)
            .map_err(|error| Failure::because(format!("cannot use `{}` as data directory", data.display()), &error))?;
        Ok(Settings { data, file })
    }

    /// The image store of this machine, made where it is not there yet.
    pub fn open_store(&self) -> Result<Store, Failure> {
        self.create_data_directory()?;
        let path = self.data.join("store");
        Store::open(&path)
            .map_err(|error| Failure::because(format!("cannot open the image store `{}`", path.display()), &error))
    }

    /// How to speak to registries.
    pub fn transfer_options(&self) -> Result<Options, Failure> {
        let mut registries = Registries::default();
        for (host, entry) in &self.file.registries {
            let settings = RegistrySettings {
                mirrors: entry.mirrors.clone(),
                plain_http: entry.http,
                accepts_any_certificate: entry.insecure,
                certificates: entry.ca.iter().cloned().collect(),
            };
            registries.add(host, settings).map_err(|error| {
                Failure::because(format!("cannot use `[registries.\"{host}\"]` of the configuration file"), &error)
            })?;
        }
        Ok(Options { registries, ..Options::default() })
    }

    /// Where the pinned tools are installed.
    pub fn tools(&self) -> PathBuf {
        std::env::var_os("CFC_TOOLS_DIR").map_or_else(|| self.data.join("tools"), PathBuf::from)
    }

    /// The file that tells the other commands where the server listens.
    pub fn addresses_file(&self) -> PathBuf {
        self.data.join("serve.json")
    }

    /// The file with the control API's token.
    pub fn token_file(&self) -> PathBuf {
        self.data.join("token")
    }

    /// The addresses of the running server.
    pub fn addresses(&self) -> Result<Addresses, Failure> {
        let path = self.addresses_file();
        let not_running = || {
            Failure::new(format!("no cfc server runs on the data directory `{}`", self.data.display()))
                .hint("start one with `cfc serve`, or name its data directory with --data DIR")
        };
        let text = std::fs::read_to_string(&path).map_err(|_| not_running())?;
        let addresses: Addresses = serde_json::from_str(&text)
            .map_err(|error| Failure::because(format!("cannot read `{}`", path.display()), &error))?;
        let is_alive = Path::new("/proc").join(addresses.pid.to_string()).exists();
        if is_alive { Ok(addresses) } else { Err(not_running()) }
    }

    /// The account that stands in the control API's paths, 32 hexadecimal digits: one a data directory.
    pub fn account_id(&self) -> String {
        cfc_oci::Digest::of(self.data.as_os_str().as_encoded_bytes()).hex()[..32].to_string()
    }

    /// The token of the running server's control API.
    pub fn token(&self) -> Result<String, Failure> {
        let path = self.token_file();
        std::fs::read_to_string(&path).map(|text| text.trim().to_string()).map_err(|error| {
            Failure::because(format!("cannot read the control API's token `{}`", path.display()), &error)
                .hint("only the user who runs `cfc serve` may read it")
        })
    }
}

fn is_root() -> bool {
    cfc_sandbox::user_id() == 0
}

fn home() -> PathBuf {
    std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from)
}

fn default_data_directory() -> PathBuf {
    if is_root() {
        return PathBuf::from("/var/lib/cfc");
    }
    let base = std::env::var_os("XDG_DATA_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    base.unwrap_or_else(|| home().join(".local/share")).join("cfc")
}

fn config_file_path() -> PathBuf {
    if let Some(path) = std::env::var_os("CFC_CONFIG") {
        return PathBuf::from(path);
    }
    if is_root() {
        return PathBuf::from("/etc/cfc/config.toml");
    }
    let base = std::env::var_os("XDG_CONFIG_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    base.unwrap_or_else(|| home().join(".config")).join("cfc/config.toml")
}

fn read_config_file(path: &Path) -> Result<ConfigFile, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(ConfigFile::default()),
        Err(error) => {
            return Err(Failure::because(format!("cannot read the configuration file `{}`", path.display()), &error));
        }
    };
    toml::from_str(&text)
        .map_err(|error| Failure::because(format!("cannot use the configuration file `{}`", path.display()), &error))
}
