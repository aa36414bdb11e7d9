//! Builds that end in the middle, and builds at the same time: what was finished is used again, nothing half is left.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::images::busybox_context;
use crate::prune::assert_whole;
use crate::support::{Home, can_sandbox, has_program, repository, wait_for};

/// A home with a base image and a context whose image is built on it.
pub fn with_base(dockerfile: &str) -> (Home, String) {
    let home = Home::new();
    home.must(&["build", &busybox_context(&home), "-t", "test/base:1", "--target", "base"]);
    home.write("app/Dockerfile", dockerfile);
    std::fs::write(home.path("app/large"), (0..4 << 20).map(|n: u32| (n ^ n >> 7) as u8).collect::<Vec<u8>>())
        .expect("writable");
    let context = home.path("app").display().to_string();
    (home, context)
}

pub fn start(home: &Home, arguments: &[&str], fail_point: Option<&str>) -> Child {
    let log = std::fs::File::create(home.path("build.log")).expect("writable");
    let mut command = home.cfc();
    command.envs(fail_point.map(|point| ("CFC_FAIL_POINT", point)));
    command.arg("build").args(arguments).stdout(Stdio::null()).stderr(log).spawn().expect("cfc runs")
}

pub fn log(home: &Home) -> String {
    std::fs::read_to_string(home.path("build.log")).unwrap_or_default()
}

/// The pids of processes that have `word` in their command line.
fn processes_with(word: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("lists").flatten();
    let pids = entries.filter(|entry| {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(word)
    });
    pids.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Nothing of a build is left in the store, but what it finished.
pub fn assert_tidy(home: &Home) {
    let store = home.data().join("store");
    assert_whole(&store);
    for directory in ["tmp", "uses", "making"] {
        let left: Vec<_> = std::fs::read_dir(store.join(directory)).expect("lists").flatten().collect();
        assert!(left.is_empty(), "{directory}: {left:?}");
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("readable");
    assert!(!mounts.contains(&*store.to_string_lossy()), "{mounts}");
}

fn cgroups_of(pid: u32) -> Vec<String> {
    let found =
        Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", &format!("*build-{pid}-*")]).output();
    String::from_utf8_lossy(&found.expect("find runs").stdout).lines().map(str::to_string).collect()
}

#[test]
fn a_build_that_is_ended_in_a_run_leaves_what_it_finished_and_nothing_else() {
    if !can_sandbox() {
        return;
    }
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::TERM, Some(143)), (Signal::KILL, None)] {
        let marker = format!("98{}", std::process::id());
        let (home, context) = with_base(&format!(
            "FROM test/base:1\nRUN echo done >/one\nRUN --mount=type=cache,target=/c,sharing=locked sleep {marker}\n"
        ));
        let mut build = start(&home, &[&context, "-t", "app"], None);
        wait_for("the step to run", || {
            (!processes_with(&marker).is_empty() && log(&home).contains("sleep")).then_some(())
        });
        // cfc itself, its launcher, or the program may have it in their command line.
        wait_for("the sandbox", || (!cgroups_of(build.id()).is_empty()).then_some(()));
        kill_process(Pid::from_child(&build), signal).expect("it runs");
        let status = build.wait().expect("a child");
        let said = log(&home);
        assert_eq!(status.code(), code, "{said}");
        if code.is_some() {
            assert!(said.contains("interrupted: what was finished is kept") && !said.contains("error:"), "{said}");
        }
        // After SIGKILL the launcher does that, which outlives us by a moment.
        wait_for("the program to end", || processes_with(&marker).is_empty().then_some(()));
        wait_for("its cgroup to go", || cgroups_of(build.id()).is_empty().then_some(()));

        home.write(
            "app/Dockerfile",
            "FROM test/base:1\nRUN echo done >/one\nRUN --mount=type=cache,target=/c,sharing=locked echo two >/two\n",
        );
        let output = home.run(&["build", &context, "-t", "app"]);
        let said = String::from_utf8_lossy(&output.stderr).to_string();
        assert!(output.status.success() && said.matches(" CACHED").count() == 1, "{signal:?}: {said}");
        assert_tidy(&home);
    }
}

/// The fail points of builds, as the sources have them.
fn fail_points() -> Vec<String> {
    let mut points = Vec::new();
    let mut pending =
        ["crates/cfc-build-native/src", "crates/cfc-cli/src"].map(|place| repository().join(place)).to_vec();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(&path).expect("lists").flatten().map(|entry| entry.path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let names = text.split("(\"build.").skip(1).map(|rest| rest.split('"').next().expect("it was split"));
        points.extend(names.map(|name| format!("build.{name}")));
    }
    points
}

#[test]
fn a_build_that_dies_or_fails_at_any_step_is_gone_on_with() {
    if !can_sandbox() || !cfg!(debug_assertions) {
        return;
    }
    const DOCKERFILE: &str = "FROM test/base:1\nCOPY large /large\nRUN echo made >/made\nCOPY Dockerfile /after\n";
    let points = fail_points();
    assert!(points.len() >= 8 && points.contains(&"build.output.write".to_string()), "{points:?}");
    let (home, context) = with_base(DOCKERFILE);
    let destination = format!("type=oci,dest={}", home.path("app.tar").display());
    let local = home.path("files").display().to_string();
    let expected = home.must(&["build", &context, "-t", "app"]);
    for point in points {
        for action in ["kill", "error"] {
            // Everything is forgotten but the base image.
            std::fs::remove_file(home.data().join("store/refs/app%3Alatest.json")).expect("the name is there");
            home.must(&["prune", "--all"]);
            let broken = home
                .cfc()
                .args(["build", &context, "-t", "app", "-o", &destination, "-o", &local])
                .env("CFC_FAIL_POINT", format!("{point}:1:{action}"))
                .output();
            let broken = broken.expect("cfc runs");
            let said = String::from_utf8_lossy(&broken.stderr).to_string();
            assert!(!broken.status.success(), "{point} {action}: {said}");
            assert!(!home.path("files").exists(), "{point} {action}");
            // A step whose end was told was finished, and is not done again.
            let done = said.lines().filter(|line| line.contains(" DONE ")).count();
            let again = home.run(&["build", &context, "-t", "app"]);
            let said = String::from_utf8_lossy(&again.stderr).to_string();
            assert_eq!(String::from_utf8_lossy(&again.stdout).trim_end(), expected, "{point} {action}: {said}");
            let cached = said.lines().filter(|line| line.ends_with(" CACHED")).count();
            // `FROM` is always told anew.
            assert!(cached + 1 >= done, "{point} {action}: {done} were done, {cached} used again: {said}");
            assert_tidy(&home);
        }
    }
}

/// The files below `directory` that the process `pid` has open, those without a name too.
pub fn has_open(pid: u32, directory: &Path) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|file| file.starts_with(directory))
}

#[test]
fn a_file_that_is_written_is_whole_or_as_it_was() {
    if !can_sandbox() || !cfg!(debug_assertions) {
        return;
    }
    let (home, context) = with_base("FROM scratch\nCOPY large /large\n");
    let target = home.path("out/app.tar");
    home.write("out/app.tar", "as it was");
    let destination = format!("type=oci,dest={}", target.display());
    let arguments = [context.as_str(), "-t", "app", "-o", &destination, "--compression", "none"];
    let assert_as_it_was = |how: &str| {
        assert_eq!(std::fs::read_to_string(&target).expect("readable"), "as it was", "{how}: {}", log(&home));
        let names = std::fs::read_dir(home.path("out")).expect("lists").flatten().map(|entry| entry.file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["app.tar"], "{how}");
    };
    // All is written, and nothing has its name yet.
    for action in ["kill", "error"] {
        let mut build = start(&home, &arguments, Some(&format!("build.output.write:1:{action}")));
        assert!(!build.wait().expect("a child").success());
        assert_as_it_was(action);
    }
    for signal in [Signal::KILL, Signal::INT, Signal::TERM] {
        let mut build = start(&home, &arguments, Some("build.output.write:1:delay=120000"));
        wait_for("the file to be written", || has_open(build.id(), &home.path("out")).then_some(()));
        kill_process(Pid::from_child(&build), signal).expect("it runs");
        assert!(!build.wait().expect("a child").success());
        assert_as_it_was(&format!("{signal:?}"));
    }
    home.must(&[&["build"], &arguments[..]].concat());
    assert!(target.metadata().expect("there").len() > 4 << 20);
    assert_tidy(&home);
}

#[test]
fn a_directory_that_is_written_is_whole_or_not_there() {
    if !can_sandbox() || !cfg!(debug_assertions) {
        return;
    }
    let (home, context) = with_base("FROM scratch\nCOPY large /large\nCOPY large /dir/other\n");
    for kind in ["local", "oci,tar=false"] {
        let target = home.path("out/app");
        let destination = format!("type={kind},dest={}", target.display());
        let arguments = [context.as_str(), "-t", "app", "-o", &destination];
        let names = || -> Vec<String> {
            let entries = std::fs::read_dir(home.path("out")).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
            let mut build = start(&home, &arguments, Some("build.output.directory:1:delay=120000"));
            wait_for("the directory to be written", || (!names().is_empty()).then_some(()));
            kill_process(Pid::from_child(&build), signal).expect("it runs");
            assert!(!build.wait().expect("a child").success());
            // What nobody could remove is not to be taken for it, nor for another's.
            let partial = format!("app.{}-", build.id());
            let is_left = |name: &String| name.starts_with(&partial) && name.ends_with(".partial");
            let left = usize::from(signal == Signal::KILL);
            let is_right = names().len() == left && names().iter().all(is_left);
            assert!(is_right, "{kind} {signal:?}: {:?}: {}", names(), log(&home));
        }
        std::fs::remove_dir_all(home.path("out")).expect("removed");
        home.must(&[&["build"], &arguments[..]].concat());
        assert_eq!(names(), ["app"]);
        // Into one that is there: each file is whole, the one before or the one now.
        let large = || std::fs::read(target.join("large")).expect("there").len();
        if kind == "local" {
            home.write("out/app/large", "as it was");
            for signal in [Signal::INT, Signal::KILL] {
                let mut build = start(&home, &arguments, Some("build.output.directory:1:delay=120000"));
                let partial = format!(".cfc-{}-", build.id());
                let is_left = || {
                    let mut entries = std::fs::read_dir(&target).expect("there").flatten();
                    entries.any(|entry| entry.file_name().to_string_lossy().starts_with(&partial))
                };
                wait_for("the directory to be written", || is_left().then_some(()));
                kill_process(Pid::from_child(&build), signal).expect("it runs");
                assert!(!build.wait().expect("a child").success());
                assert_eq!(is_left(), signal == Signal::KILL);
                assert_eq!(large(), "as it was".len());
            }
            home.must(&[&["build"], &arguments[..]].concat());
            assert_eq!(large(), 4 << 20);
        }
        std::fs::remove_dir_all(home.path("out")).expect("removed");
    }
    assert_tidy(&home);
}

#[test]
fn a_full_disk_is_told_and_pruning_makes_room_again() {
    if !can_sandbox() || !has_program("unshare") {
        return;
    }
    let (home, context) = with_base("FROM scratch\nCOPY small /small\n");
    home.write("app/small", "small\n");
    let script = format!(
        "set -e; mkdir -p $CFC_DATA; mount -t tmpfs -o size=6m tmpfs $CFC_DATA
         cfc() {{ {} \"$@\"; }}
         cfc build {context} -t small --compression none -q
         printf 'FROM scratch\\nCOPY small /small\\nCOPY large /large\\nCOPY large /again\\n' >{context}/Dockerfile
         if cfc build {context} -t large --compression none; then echo 'it fits'; exit 9; fi
         echo tmp: $(ls -A $CFC_DATA/store/tmp) uses: $(ls -A $CFC_DATA/store/uses)
         dd if=/dev/zero of=$CFC_DATA/filler bs=64k 2>/dev/null || true
         cfc prune --all
         rm $CFC_DATA/filler
         printf 'FROM scratch\\nCOPY small /small\\nCOPY small /more\\n' >{context}/Dockerfile
         cfc build {context} -t small --compression none
         ls $CFC_DATA/store/tmp",
        env!("CARGO_BIN_EXE_cfc")
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .env("CFC_DATA", home.path("full"))
        .env("CFC_CONFIG", home.path("config.toml"))
        .output()
        .expect("unshare runs");
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{said}");
    assert!(said.to_lowercase().contains("no space left"), "{said}");
    assert!(out.lines().any(|line| line == "tmp: uses:"), "{out}");
    assert!(out.contains("Total: ") && out.contains("small"), "{out}\n{said}");
}

#[test]
fn many_build_the_same_and_different_things_at_once() {
    if !can_sandbox() {
        return;
    }
    let (home, context) = with_base(
        "FROM test/base:1
ARG WHO
RUN --mount=type=cache,target=/locked,sharing=locked echo x >>/locked/runs && echo \"$(wc -l </locked/runs)\" && sleep 0.3 && echo \"$WHO\" >/who
RUN --mount=type=cache,target=/shared --mount=type=cache,target=/private,sharing=private \
    mkdir /private/mine && sleep 0.1 && rmdir /private/mine && echo \"$WHO\" >>/shared/who
COPY large /large
",
    );
    let outputs: Vec<(usize, String)> = std::thread::scope(|scope| {
        let build = |number: usize| {
            let (home, context) = (&home, &context);
            scope.spawn(move || {
                let who = number % 2;
                let name = format!("app:{number}");
                let said = home.must(&["build", context, "-t", &name, "--build-arg", &format!("WHO={who}")]);
                (who, said.rsplit(' ').next().expect("a digest").to_string())
            })
        };
        let builds: Vec<_> = (0..6).map(build).collect();
        builds.into_iter().map(|build| build.join().expect("no panic")).collect()
    });
    for who in 0..2 {
        let mut digests: Vec<&String> = outputs.iter().filter(|(of, _)| *of == who).map(|(_, digest)| digest).collect();
        digests.dedup();
        assert_eq!(digests.len(), 1, "{outputs:?}");
    }
    // Six builds of two images: each step ran once for each.
    let runs = find_file(&home.data().join("store/mounts"), "runs").expect("the cache is there");
    assert_eq!(std::fs::read_to_string(runs).expect("readable"), "x\nx\n");
    assert_tidy(&home);
}

fn find_file(directory: &Path, name: &str) -> Option<std::path::PathBuf> {
    std::fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() { find_file(&path, name) } else { path.ends_with(name).then_some(path) }
    })
}

#[test]
fn a_build_goes_on_without_its_terminal_where_that_was_asked_for() {
    if !can_sandbox() {
        return;
    }
    let marker = format!("0.97{}", std::process::id());
    let (home, context) = with_base(&format!("FROM test/base:1\nRUN sleep {marker} && sleep 1\n"));
    let cfc = home.cfc();
    let mut command = Command::new("sh");
    // As nohup does.
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(cfc.get_program()).args(cfc.get_args());
    command.envs(cfc.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut build = command.args(["build", &context, "-t", "app"]).stderr(Stdio::null()).spawn().expect("sh runs");
    wait_for("the sandbox", || (!cgroups_of(build.id()).is_empty()).then_some(()));
    kill_process(Pid::from_child(&build), Signal::HUP).expect("it runs");
    assert!(build.wait().expect("a child").success());
}
