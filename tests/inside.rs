//! cfc inside containers of Docker and Podman, with what the README says that they need, and without.

use std::path::Path;
use std::process::Command;

use crate::engine::Engine;
use crate::images::output_of;
use crate::ordinary_user::OrdinaryUser;
use crate::rootless::build_container_of_cfc;
use crate::support::{Home, can_sandbox, has_program, skipped};

/// Builds and runs an image, in `/dev/shm` unless told otherwise, and says how it went.
const SCRIPT: &str = "export CFC_DATA=${1:-/dev/shm/cfc}; cfc build /app -t test/app:1 && cfc run test/app:1; echo $?";

const ALL_CALLS: [&str; 2] = ["--security-opt", "seccomp=unconfined"];

/// A container engine: `run` and its options, up to the image.
struct Inside<'a> {
    run: &'a dyn Fn() -> Command,
    image: String,
    /// What takes the masks from `/proc`.
    unmasked: [&'static str; 2],
}

impl Inside<'_> {
    /// All that is said by the script, in a container of these options.
    fn script(&self, options: &[&str], data: &str) -> String {
        let mut command = (self.run)();
        command.args(["--rm", "--network", "none"]).args(options).arg(&self.image);
        let output = command.args(["sh", "-c", SCRIPT, "sh", data]).output().expect("it runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    fn check(&self) {
        let granted = [ALL_CALLS, self.unmasked].concat();
        // Root has the container's users, somebody else a single one.
        for (options, data, expected) in [
            (vec!["-v", "/data"], "/data", "\n0\n1000\n7\n"),
            (vec![], "", "\n0\n1000\n7\n"),
            (vec!["--user", "1000"], "", "\n0\n0\n7\n"),
        ] {
            let said = self.script(&[&granted[..], &options].concat(), data);
            // What comes on which of the two streams first is anybody's guess.
            let (out, expected): (Vec<_>, Vec<_>) = (said.lines().collect(), expected.trim().lines().collect());
            let found = out.iter().filter(|line| line.parse::<u32>().is_ok()).copied().collect::<Vec<_>>();
            assert_eq!(found, expected, "{options:?}: {said}");
        }
        let said = self.script(&granted, "/cfc");
        assert!(said.contains("put it on a volume or a tmpfs (--data DIR; Docker and Podman: -v cfc:DIR)"), "{said}");
        let said = self.script(&ALL_CALLS, "");
        assert!(
            said.contains(&format!("unmasked /proc (Docker: {}", "--security-opt systempaths=unconfined")),
            "{said}"
        );
        let said = self.script(&self.unmasked, "");
        assert!(said.contains("(Docker and Podman: --security-opt seccomp=unconfined"), "{said}");
    }
}

/// The image of cfc as an archive that engines load.
fn archive(home: &Home) -> String {
    build_container_of_cfc(home);
    let (context, archive) = (home.path("container").display().to_string(), home.path("cfc.tar").display().to_string());
    home.must(&["build", &context, "-t", "cfc", "-o", &format!("type=docker,dest={archive}")]);
    archive
}

/// The name that `load` says it gave an image.
fn loaded(said: &str) -> String {
    let name = said.lines().find_map(|line| line.strip_prefix("Loaded image: "));
    name.unwrap_or_else(|| panic!("no image: {said}")).trim().to_string()
}

#[test]
fn a_docker_container_builds_and_runs_or_says_what_it_lacks() {
    if !can_sandbox() || !["ldd", "dockerd"].into_iter().all(has_program) {
        return;
    }
    let home = Home::new();
    let Some(engine) = Engine::start(home.path("engine")) else { return };
    let image = loaded(&output_of(engine.docker().args(["load", "-i", &archive(&home)])));
    assert_eq!(image, "cfc:latest", "the name that the image was given");
    let run = || {
        let mut command = engine.docker();
        command.arg("run");
        command
    };
    Inside { run: &run, image, unmasked: ["--security-opt", "systempaths=unconfined"] }.check();
}

/// Podman on storage in `directory`, its mounts seen by nobody else.
fn podman(directory: &Path, subcommand: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "podman"]);
    with_podman_options(&mut command, directory, subcommand);
    command
}

fn with_podman_options(command: &mut Command, directory: &Path, subcommand: &str) {
    command.arg("--root").arg(directory.join("storage")).arg("--runroot").arg(directory.join("state"));
    // Debian's crun knows no hybrid cgroups.
    command.args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--runtime", "runc", subcommand]);
    if subcommand == "run" {
        // Else it wants more than a root without CAP_SYS_RESOURCE may give.
        command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
    }
}

#[test]
fn a_podman_container_builds_and_runs_or_says_what_it_lacks() {
    if !can_sandbox() || !["ldd", "podman", "runc", "unshare"].into_iter().all(has_program) {
        return;
    }
    let home = Home::new();
    let archive = archive(&home);
    let directory = home.path("podman");
    let image = loaded(&output_of(podman(&directory, "load").args(["-i", &archive])));
    assert_eq!(image, "docker.io/library/cfc:latest", "the name that the image was given, as Docker has it in whole");
    let unmasked = ["--security-opt", "unmask=ALL"];
    Inside { run: &|| podman(&directory, "run"), image: image.clone(), unmasked }.check();
}

#[test]
fn a_container_of_an_ordinary_users_podman_builds_and_runs_or_says_what_it_lacks() {
    if !can_sandbox() || !["ldd", "podman", "runc"].into_iter().all(has_program) {
        return;
    }
    let archive_home = Home::new();
    let archive = archive(&archive_home);
    let Some(user) = OrdinaryUser::new() else { return };
    let home = Home::of(user);
    std::fs::copy(&archive, home.path("cfc.tar")).expect("copied");
    let directory = home.path("podman");
    let podman = |subcommand: &str| {
        let mut command = home.as_user("podman");
        with_podman_options(&mut command, &directory, subcommand);
        command
    };
    let output = podman("load").arg("-i").arg(home.path("cfc.tar")).output().expect("it runs");
    if !output.status.success() {
        return skipped(&format!("Podman does not work for users here: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let image = loaded(&String::from_utf8_lossy(&output.stdout));
    Inside { run: &|| podman("run"), image, unmasked: ["--security-opt", "unmask=ALL"] }.check();
}
