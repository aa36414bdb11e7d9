//! What a sandbox is given: image config, instance and instance type turned into a [`SandboxConfig`].

use std::fs;
use std::path::{Path, PathBuf};

use cfc_oci::ContainerConfig;
use cfc_sandbox::{DiskKind, INIT_ANNOTATION, Network, ResolvedUser, Root, SandboxConfig, Stdio};
use cfc_scheduler::InstanceType;
use oci_spec::runtime::{
    LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType, ProcessBuilder, Spec, UserBuilder,
};

use crate::boost::cpu_share;
use crate::directory::InstanceDirectory;
use crate::error::{AtPath, RuntimeErrorKind};
use crate::instance::{InstanceSpec, Isolation};
use crate::prepared::PreparedImage;

/// The annotation that says which launch of an instance a sandbox is.
pub(crate) const LAUNCH_ANNOTATION: &str = "cfc.launch";

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Ends fork bombs; far above what fits into the memory of any instance type.
const MAX_PROCESSES: i64 = 8_192;
/// More than any server needs, and few enough that a program which closes all it may have open does so in no time. The
/// launcher lowers it to this machine's own limit.
pub(crate) const MAX_OPEN_FILES: u64 = 65_536;
const MAX_LOG_BYTES: u64 = 8 << 20;
/// Any address outside the loopback does: every question is redirected. This one is of a range that nobody ever has.
const NAME_SERVER: &str = "192.0.2.53";
const MAX_HOSTNAME: usize = 12;

/// Where an instance has its files.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub directory: &'a InstanceDirectory,
    /// Where the space of its disk comes from; without, it writes into its directory.
    pub disks: Option<&'a Path>,
}

/// Everything the launcher needs to start `spec`, of which `image` is the image. Writes the files that are mounted into it.
pub(crate) fn sandbox_config(
    image: &PreparedImage,
    spec: &InstanceSpec,
    instance_type: &InstanceType,
    launch: u64,
    place: &Place<'_>,
    network: Network,
    isolation: &Isolation,
) -> Result<SandboxConfig, RuntimeErrorKind> {
    let Place { directory, disks } = *place;
    let PreparedImage { config, lowers, user } = image;
    let lowers = lowers.clone();
    let hostname = hostname(&spec.name);
    let mut sandbox = cfc_sandbox::default_spec();
    set_process(&mut sandbox, config, spec, user, &hostname)?;
    set_limits(&mut sandbox, instance_type, cfc_sandbox::missing_controllers())?;
    set_etc(&mut sandbox, directory, &hostname, network)?;
    sandbox.set_hostname(Some(hostname));
    isolation.grants.iter().try_for_each(|grant| grant.add_to(&mut sandbox))?;
    let annotations = sandbox.annotations_mut().get_or_insert_default();
    // As in the virtual machines of the original, the app is not process 1: an unhandled SIGTERM ends it.
    annotations.insert(INIT_ANNOTATION.to_string(), "true".to_string());
    annotations.insert(LAUNCH_ANNOTATION.to_string(), launch.to_string());
    Ok(SandboxConfig {
        id: spec.name.clone(),
        spec: sandbox,
        root: match disks {
            Some(disks) => Root::Disk { lowers, disk: disk_of(instance_type, disks) },
            None => Root::Overlay { lowers, upper: directory.upper(), work: directory.work() },
        },
        network,
        stdio: Stdio::Log { path: directory.log(), max_bytes: MAX_LOG_BYTES },
        runtime: isolation.runtime.clone(),
    })
}

/// The disk of an instance of this type.
pub(crate) fn disk_of(instance_type: &InstanceType, directory: &Path) -> DiskKind {
    DiskKind { bytes: instance_type.disk_mb.saturating_mul(1_000_000), directory: directory.to_path_buf() }
}

fn set_process(
    sandbox: &mut Spec,
    config: &ContainerConfig,
    spec: &InstanceSpec,
    user: &ResolvedUser,
    hostname: &str,
) -> Result<(), RuntimeErrorKind> {
    let args = command(config, spec.command.as_deref());
    if args.is_empty() {
        return Err(RuntimeErrorKind::NoCommand);
    }
    let cwd = if config.working_dir.is_empty() { "/" } else { &config.working_dir };
    let mut process = match sandbox.process().clone() {
        Some(process) => process,
        None => ProcessBuilder::default().build()?,
    };
    process
        .set_args(Some(args))
        .set_env(Some(environment(config, &spec.env, user, hostname)))
        .set_cwd(PathBuf::from(cwd))
        .set_rlimits(Some(vec![open_files()?]))
        .set_user(
            UserBuilder::default().uid(user.uid).gid(user.gid).additional_gids(user.additional_gids.clone()).build()?,
        );
    sandbox.set_process(Some(process));
    Ok(())
}

fn open_files() -> Result<PosixRlimit, RuntimeErrorKind> {
    let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile);
    Ok(limit.soft(MAX_OPEN_FILES).hard(MAX_OPEN_FILES).build()?)
}

impl InstanceSpec {
    /// The command that an instance of an image with this config executes.
    pub fn command_in(&self, config: &ContainerConfig) -> Vec<String> {
        command(config, self.command.as_deref())
    }
}

/// ENTRYPOINT, then what was given in place of CMD.
fn command(config: &ContainerConfig, given: Option<&[String]>) -> Vec<String> {
    let entrypoint = config.entrypoint.as_deref().unwrap_or_default();
    let rest = given.or(config.cmd.as_deref()).unwrap_or_default();
    entrypoint.iter().chain(rest).cloned().collect()
}

/// The image's variables, then the given ones, with PATH, HOSTNAME and HOME where nobody set them.
fn environment(config: &ContainerConfig, given: &[String], user: &ResolvedUser, hostname: &str) -> Vec<String> {
    let defaults = [DEFAULT_PATH.to_string(), format!("HOSTNAME={hostname}"), format!("HOME={}", user.home)];
    let mut variables: Vec<String> = Vec::new();
    for variable in defaults.iter().chain(config.env.iter().flatten()).chain(given) {
        let key = key_of(variable);
        match variables.iter_mut().find(|other| key_of(other) == key) {
            Some(other) => other.clone_from(variable),
            None => variables.push(variable.clone()),
        }
    }
    variables
}

fn key_of(variable: &str) -> &str {
    variable.split('=').next().unwrap_or(variable)
}

/// The share of the machine, without swap; of what `unlimited` names, as much as there is. Keeps what the default sets besides (device rules).
fn set_limits(sandbox: &mut Spec, instance_type: &InstanceType, unlimited: &[&str]) -> Result<(), RuntimeErrorKind> {
    let memory_bytes = i64::try_from(instance_type.memory_mib << 20)
        .map_err(|_| RuntimeErrorKind::Invalid(format!("{} MiB of memory", instance_type.memory_mib)))?;
    let mut linux = sandbox.linux().clone().unwrap_or_default();
    let defaults: LinuxResources = match linux.resources().clone() {
        Some(resources) => resources,
        None => LinuxResourcesBuilder::default().build()?,
    };
    let mut resources = defaults;
    resources
        .set_memory(Some(LinuxMemoryBuilder::default().limit(memory_bytes).swap(memory_bytes).build()?))
        .set_cpu(Some(cpu_share(instance_type)?))
        .set_pids(Some(LinuxPidsBuilder::default().limit(MAX_PROCESSES).build()?));
    // Of which the runtime has warned, when it was opened.
    for controller in unlimited {
        match *controller {
            "memory" => resources.set_memory(None),
            "cpu" => resources.set_cpu(None),
            _ => resources.set_pids(None),
        };
    }
    linux.set_resources(Some(resources));
    sandbox.set_linux(Some(linux));
    Ok(())
}

/// The three files of `/etc` that belong to the machine and not to the image.
fn set_etc(
    sandbox: &mut Spec,
    directory: &InstanceDirectory,
    hostname: &str,
    network: Network,
) -> Result<(), RuntimeErrorKind> {
    let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\t{hostname}\n");
    let resolv_conf = match network {
        Network::Redirected { .. } => format!("nameserver {NAME_SERVER}\n"),
        _ => "# This container has no way out, and no name server.\n".to_string(),
    };
    let mut mounts: Vec<Mount> = sandbox.mounts().clone().unwrap_or_default();
    for (file, text) in [("hosts", hosts), ("resolv.conf", resolv_conf), ("hostname", format!("{hostname}\n"))] {
        let path = directory.etc(file);
        fs::write(&path, text).at("write", &path)?;
        // As an ordinary user we are not the container's root.
        std::os::unix::fs::chown(&path, Some(0), Some(0)).at("give the container", &path)?;
        mounts.push(bind(&path, &Path::new("/etc").join(file))?);
    }
    sandbox.set_mounts(Some(mounts));
    Ok(())
}

fn bind(source: &Path, destination: &Path) -> Result<Mount, RuntimeErrorKind> {
    let options = ["bind", "nosuid", "nodev", "noexec"].map(str::to_string).to_vec();
    Ok(MountBuilder::default().typ("bind").source(source).destination(destination).options(options).build()?)
}

/// The first characters of the last part of the name: of workerd's names, the start of the Durable Object's id.
fn hostname(name: &str) -> String {
    let last = name.rsplit('-').find(|part| !part.is_empty()).unwrap_or("instance");
    last.chars().filter(char::is_ascii_alphanumeric).take(MAX_HOSTNAME).collect::<String>().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Option<Vec<String>> {
        Some(text.split(' ').map(str::to_string).collect())
    }

    #[test]
    fn a_given_command_replaces_cmd_and_follows_entrypoint() {
        let config =
            ContainerConfig { entrypoint: words("/init --"), cmd: words("serve"), ..ContainerConfig::default() };
        assert_eq!(command(&config, None), ["/init", "--", "serve"]);
        assert_eq!(command(&config, Some(&["x".to_string()])), ["/init", "--", "x"]);
        assert_eq!(command(&config, Some(&[])), ["/init", "--"]);
    }

    #[test]
    fn the_last_value_of_a_variable_wins_at_its_first_place() {
        let config = ContainerConfig { env: words("PATH=/opt A=1"), ..ContainerConfig::default() };
        let user = ResolvedUser { home: "/root".to_string(), ..ResolvedUser::default() };
        let given = ["A=2".to_string(), "B=x=y".to_string()];
        let expected = ["PATH=/opt", "HOSTNAME=h", "HOME=/root", "A=2", "B=x=y"];
        assert_eq!(environment(&config, &given, &user, "h"), expected);
    }

    #[test]
    fn an_instance_type_becomes_limits_without_swap() {
        let mut spec = Spec::default();
        set_limits(&mut spec, &InstanceType::LITE, &[]).expect("in range");
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).expect("set");
        let memory = resources.memory().as_ref().expect("set");
        assert_eq!((memory.limit(), memory.swap()), (Some(256 << 20), Some(256 << 20)));
        let cpu = resources.cpu().as_ref().expect("set");
        assert_eq!((cpu.quota(), cpu.period()), (Some(6_250), Some(100_000)));
    }

    #[test]
    fn a_limit_that_the_machine_cannot_hold_is_not_asked_for() {
        let mut spec = Spec::default();
        set_limits(&mut spec, &InstanceType::LITE, &["memory", "pids"]).expect("in range");
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).expect("set");
        assert!(resources.memory().is_none() && resources.pids().is_none() && resources.cpu().is_some());
    }

    #[test]
    fn the_host_name_is_short_and_plain() {
        assert_eq!(hostname("workerd-app-MyC-0123456789abcdef"), "0123456789ab");
        assert_eq!(hostname("trial-"), "trial");
    }
}
