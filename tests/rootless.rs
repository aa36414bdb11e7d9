//! cfc as an ordinary user: with subordinate ids, with a single one, in the rights of a container's root, and where the
//! machine does not let it.

use std::path::Path;

use crate::ordinary_user::{OrdinaryUser, SUBORDINATE_IDS, give, processes_of, uid_of};
use crate::support::{Home, Platform, busybox, can_sandbox, has_program, tools};

const WORKER: &str = "container-starter";
const APPLICATION: &str = "container-starter-mycontainer";

/// Everything that has to do with owners: RUN as root and as somebody, chown, COPY --chown, files that go.
const WITH_OWNERS: &str = r#"FROM scratch AS base
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /etc /data /tmp && chmod 1777 /tmp && echo 'app:x:1000:1000::/data:/bin/sh' >/etc/passwd && \
    echo 'app:x:1000:' >/etc/group && echo one >/data/one && echo two >/data/two && chown -R 1000:7 /data && chmod 4755 /data/one

FROM base
COPY --chown=app:65534 busybox /deep/down/tool
COPY --from=base --chown=12:34 /data /copied
RUN rm /data/two && chmod 600 /data/one
RUN --mount=type=cache,target=/cache,uid=1000,gid=7,mode=0750 --mount=from=base,source=/data,target=/base,rw \
    stat -c '%a %u:%g' /cache >/tmp/mounts && touch /base/new && ls -ln /base/one | cut -c1-10 >>/tmp/mounts
USER app
RUN id -u >/tmp/who
CMD ["sh", "-c", "id -u; cat /tmp/who; ls -ln /data /deep/down /copied; exit 7"]
"#;

/// What can be built with a single id.
const WITHOUT_OWNERS: &str = r#"FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
COPY --chown=1000:1000 busybox /opt/tool
RUN id -u >/who && rm /bin/vi
RUN --mount=type=cache,target=/cache --mount=target=/src --mount=type=tmpfs,target=/t \
    touch /cache/x /t/x && ls /src /cache >/mounts
CMD ["sh", "-c", "cat /who; stat -c %u /opt/tool; cat; exit 7"]
"#;

/// Builds `dockerfile` as `test/app:1` and returns the line that names it with its digest.
fn build(home: &Home, dockerfile: &str) -> String {
    let context = home.path("context");
    std::fs::create_dir_all(&context).expect("writable");
    std::fs::copy(busybox().expect("checked before"), context.join("busybox")).expect("copied");
    home.write("context/Dockerfile", dockerfile);
    home.must(&["build", &context.display().to_string(), "-t", "test/app:1"])
}

fn run(home: &Home, arguments: &[&str]) -> (Option<i32>, String) {
    let output = home.run(&[&["run", "test/app:1"], arguments].concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn an_ordinary_user_builds_the_same_image_as_root_and_runs_it() {
    let Some(user) = OrdinaryUser::new() else { return };
    let home = Home::of(user);
    let digest = build(&home, WITH_OWNERS);
    assert_eq!(digest, build(&Home::new(), WITH_OWNERS));
    let (code, said) = run(&home, &[]);
    assert_eq!(code, Some(7), "{said}");
    assert!(said.starts_with("1000\n1000\n"), "{said}");
    for owners in ["1000     7 ", "1000     65534 ", "12       34 "] {
        assert!(said.contains(owners), "no file of {owners}in\n{said}");
    }
}

#[test]
fn files_that_an_ordinary_user_gets_out_are_the_users() {
    for user in [OrdinaryUser::new(), OrdinaryUser::with_a_single_id()] {
        let Some(user) = user else { return };
        let uid = user.uid;
        let home = Home::of(user);
        build(&home, WITHOUT_OWNERS);
        // Into a new directory, and over what is there.
        for _ in 0..2 {
            home.must(&["build", "context", "-t", "test/app:1", "-o", "out"]);
            for file in ["out", "out/bin", "out/bin/busybox", "out/opt/tool", "out/who"] {
                let metadata = std::os::unix::fs::MetadataExt::uid(&home.path(file).symlink_metadata().expect("there"));
                assert_eq!(metadata, uid, "{file}");
            }
        }
        let names = std::fs::read_dir(home.path("out")).expect("lists").flatten().map(|entry| entry.file_name());
        assert!(names.into_iter().all(|name| !name.to_string_lossy().contains("partial")));
        assert!(home.must(&["images", "list"]).contains("test/app  1"));
        assert_eq!(home.must(&["images", "remove", "test/app:1"]), "test/app:1");
        assert!(home.must(&["prune", "--all"]).contains("Total: "));
    }
}

#[test]
fn a_containers_root_is_nobody_outside_and_does_not_reach_its_users_files() {
    let Some(user) = OrdinaryUser::new() else { return };
    let subordinate = user.subordinate.expect("has some");
    let home = Home::of(user);
    build(&home, &WITHOUT_OWNERS.replace("cat; ", "exec sleep 1000; "));
    home.write("secret-of-the-user", "x");
    let found = run(
        &home,
        &["sh", "-c", "find / -name 'secret-of*' 2>/dev/null; cat /proc/1/root/../secret-of* 2>/dev/null; id -u"],
    );
    assert_eq!(found, (Some(0), format!("0\n{}", limits_warning())), "it sees what is outside");
    let mut running = crate::support::Ended(home.cfc().args(["run", "test/app:1"]).spawn().expect("cfc runs"));
    let sleeping = crate::support::wait_for("the container's process", || {
        let entries = std::fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
        let is_it = |path: &std::path::PathBuf| {
            let command = std::fs::read(path.join("cmdline")).unwrap_or_default();
            command == b"sleep\x001000\0" && uid_of(path) == Some(subordinate)
        };
        entries.into_iter().find(is_it)
    });
    running.end();
    crate::support::wait_for("the container to end with its cfc", || (!sleeping.exists()).then_some(()));
}

/// What is said on this user's machine, where nobody gave the user a cgroup.
fn limits_warning() -> String {
    let what = "containers have no limit of cpu, memory, pids: this user was given no cgroup for it";
    let hint = "with systemd: systemd-run --user --scope -p Delegate=yes cfc serve; else have root give you a cgroup, or \
                run cfc as root";
    format!("warning: {what}\nhint: {hint}\n")
}

#[test]
fn the_starter_serves_an_ordinary_user_through_a_crash_and_leaves_nothing() {
    let Some(user) = OrdinaryUser::new() else { return };
    if tools().is_none() {
        return;
    }
    let (uid, first) = (user.uid, user.subordinate.expect("has some"));
    let home = Home::of(user);
    let project = home.project(WORKER);
    give(uid, &project);
    let platform = Platform::start(&home);
    home.must(&["deploy", &project.display().to_string()]);
    let ask = |platform: &Platform, session: &str| {
        let (status, body) = platform.ask(WORKER, session);
        assert_eq!(status, 200, "{body}\n{}", platform.log());
        serde_json::from_str::<serde_json::Value>(&body).expect("JSON")
    };
    let before = ask(&platform, "alice");
    let listed: serde_json::Value =
        serde_json::from_str(&home.must(&["containers", "instances", APPLICATION, "--json"])).expect("JSON");
    let pid = listed[0]["pid"].as_u64().expect("it runs");
    let outside = uid_of(&Path::new("/proc").join(pid.to_string())).expect("it runs");
    // The image says USER 1000.
    assert_eq!(outside, first + 1000, "of {SUBORDINATE_IDS} from {first} on; the user is {uid}");

    platform.kill();
    // The next program has the launcher go on with it, with the rights that it needs for further containers.
    std::fs::copy(env!("CARGO_BIN_EXE_cfc"), home.path("next-cfc")).expect("copied");
    let platform = Platform::start(&home);
    let programs = launchers_of(uid);
    assert_eq!(programs, [home.path("next-cfc")]);
    let after = ask(&platform, "alice");
    assert_eq!(before["instance"], after["instance"], "the container was not adopted");
    assert_eq!(after["visits"], 2);
    ask(&platform, "bob");
    assert!(home.must(&["containers", "logs", APPLICATION]).contains("visit 2"));

    std::fs::copy(env!("CARGO_BIN_EXE_cfc"), home.path("newest-cfc")).expect("copied");
    std::fs::rename(home.path("newest-cfc"), home.path("next-cfc")).expect("renamed");
    home.must(&["upgrade"]);
    assert_eq!(platform.generation(), 1);
    assert_eq!(
        launchers_of(uid),
        [home.path("next-cfc")],
        "the one that was there, with the program that is there now"
    );
    let upgraded = ask(&platform, "alice");
    assert_eq!((&upgraded["instance"], &upgraded["visits"]), (&after["instance"], &3.into()), "{upgraded}");
    ask(&platform, "carol");

    platform.stop();
    assert_eq!(home.instance_directories(), Vec::<std::path::PathBuf>::new());
    crate::support::wait_for("the user's processes to end", || processes_of(uid).is_empty().then_some(()));
    let sockets: Vec<_> = std::fs::read_dir(home.path("run/cfc")).expect("made").flatten().collect();
    assert!(sockets.is_empty(), "{sockets:?}");
    // Files of images belong to others; the user is rid of them all the same.
    home.must(&["unshare", "rm", "-rf", &home.data().display().to_string()]);
    assert!(!home.data().exists());
}

#[test]
fn a_user_with_a_single_id_upgrades_with_and_without_a_runtime_directory() {
    for has_runtime_directory in [true, false] {
        let Some(user) = OrdinaryUser::with_a_single_id() else { return };
        let uid = user.uid;
        let home = Home::of(user);
        if !has_runtime_directory {
            std::fs::remove_dir(home.path("run")).expect("it is empty");
        }
        let platform = Platform::start(&home);
        home.must(&["upgrade"]);
        assert_eq!(platform.generation(), 1, "{}", platform.log());
        home.must(&["containers", "list"]);
        platform.stop();
        crate::support::wait_for("the user's processes to end", || processes_of(uid).is_empty().then_some(()));
        let _ = std::fs::remove_dir(format!("/tmp/cfc-{uid}"));
    }
}

#[test]
fn a_server_with_another_runtime_directory_goes_on_with_the_containers_that_run() {
    let Some(user) = OrdinaryUser::new() else { return };
    if tools().is_none() {
        return;
    }
    let uid = user.uid;
    let home = Home::of(user);
    let project = home.project(WORKER);
    give(uid, &project);
    let platform = Platform::start(&home);
    home.must(&["deploy", &project.display().to_string()]);
    let ask = |platform: &Platform| {
        let (status, body) = platform.ask(WORKER, "alice");
        assert_eq!(status, 200, "{body}\n{}", platform.log());
        serde_json::from_str::<serde_json::Value>(&body).expect("JSON")["instance"].clone()
    };
    let first = ask(&platform);
    platform.kill();
    std::fs::create_dir(home.path("other-run")).expect("writable");
    give(uid, &home.path("other-run"));
    let platform = Platform::start(&home);
    assert_eq!(ask(&platform), first, "the container was not adopted");
    assert_eq!(launchers_of(uid).len(), 1);

    // As the system does at the user's logout.
    platform.kill();
    let launcher = launchers_of(uid);
    std::fs::remove_dir_all(home.path("run")).expect("removed");
    let platform = Platform::start(&home);
    assert_eq!(launchers_of(uid).len(), 1, "{launcher:?} runs on, which nobody can reach");
    assert!(platform.log().contains("whose socket is gone"), "{}", platform.log());
    assert_ne!(ask(&platform), first);
    platform.stop();
    crate::support::wait_for("the user's processes to end", || processes_of(uid).is_empty().then_some(()));
    home.must(&["unshare", "rm", "-rf", &home.data().display().to_string()]);
}

/// The programs of a user's launchers, those of shells left out.
fn launchers_of(uid: u32) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir("/proc").expect("readable").flatten().map(|entry| entry.path());
    let is_launcher = |path: &std::path::PathBuf| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let comm = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        uid_of(path) == Some(uid) && line.starts_with(b"cfc-launcher\0/") && comm == "cfc-launcher\n"
    };
    entries.filter(is_launcher).filter_map(|path| std::fs::read_link(path.join("exe")).ok()).collect()
}

#[test]
fn with_a_single_id_owners_are_lost_but_not_the_digest() {
    let Some(user) = OrdinaryUser::with_a_single_id() else { return };
    let home = Home::of(user);
    assert_eq!(build(&home, WITHOUT_OWNERS), build(&Home::new(), WITHOUT_OWNERS));
    let (code, said) = run(&home, &[]);
    assert_eq!(code, Some(7), "{said}");
    assert!(said.starts_with("0\n0\n"), "{said}");
    build(&home, &format!("{WITHOUT_OWNERS}USER 1000\n"));
    let (code, said) = run(&home, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("its user 1000:0 does not exist: sandboxes have a single user here"), "{said}");
}

#[test]
fn the_root_of_an_unprivileged_container_builds_and_runs() {
    if !can_sandbox() || !has_program("setpriv") {
        return;
    }
    let home = Home::through(&["setpriv", "--bounding-set", "-sys_admin,-mknod,-net_admin", "--"]);
    assert_eq!(build(&home, WITH_OWNERS), build(&Home::new(), WITH_OWNERS));
    let (code, said) = run(&home, &[]);
    assert_eq!(code, Some(7), "{said}");
    assert!(said.starts_with("1000\n1000\n"), "{said}");
}

/// With 65536 ids and with a single one.
#[test]
fn oci_runtimes_run_an_ordinary_users_containers() {
    for user in [OrdinaryUser::new(), OrdinaryUser::with_a_single_id()] {
        let Some(user) = user else { return };
        let (uid, subordinate) = (user.uid, user.subordinate);
        let home = Home::of(user);
        build(&home, &WITHOUT_OWNERS.replace("cat /who; stat -c %u /opt/tool; cat; ", "id -u; cat /who; "));
        let doctor = String::from_utf8(home.run(&["doctor"]).stdout).expect("UTF-8");
        for runtime in ["runc", "crun", "runsc"].into_iter().filter(|runtime| has_program(runtime)) {
            let output = home.run(&["run", "--runtime", runtime, "test/app:1"]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(7), "{runtime}: {said}");
            assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n0\n", "{runtime}: {said}");
            let line = doctor.lines().find(|line| line.contains(&format!("the OCI runtime `{runtime}`")));
            assert!(line.is_some_and(|line| line.ends_with(" works")), "{runtime}, {subordinate:?}:\n{doctor}");
        }
        crate::support::wait_for("the user's processes to end", || processes_of(uid).is_empty().then_some(()));
    }
}

#[test]
fn a_machine_that_gives_no_user_namespaces_says_which_setting_it_is() {
    if !can_sandbox() || !has_program("setpriv") || !has_program("unshare") {
        return;
    }
    // The setting is each user namespace's own: in one of ours, ours.
    let script = "echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set -sys_admin -- \"$@\"";
    let home = Home::through(&["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]);
    let said = home.must_fail(&["run", "test/app:1"]);
    assert_eq!(
        said,
        "error: cannot get the rights to make sandboxes: this machine gives an ordinary user no user namespace: there \
         are as many as `user.max_user_namespaces` allows, 0\nhint: as root: sysctl -w user.max_user_namespaces=15000\n"
    );
    let doctor = String::from_utf8(home.run(&["doctor"]).stdout).expect("UTF-8");
    assert!(doctor.starts_with("error: this machine gives an ordinary user no user namespace"), "{doctor}");
    // What makes no sandbox needs no namespace.
    let said = home.must_fail(&["containers", "list"]);
    assert!(said.contains("no cfc server runs on the data directory"), "{said}");
}

#[test]
fn a_cgroup_that_the_user_was_given_holds_limits() {
    let Some(user) = OrdinaryUser::new().and_then(|user| user.delegate("memory")) else { return };
    let home = Home::of(user);
    build(&home, WITHOUT_OWNERS);
    let output =
        home.run(&["run", "--instance-type", "lite", "test/app:1", "dd", "if=/dev/zero", "of=/dev/null", "bs=400M"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(137), "{said}");
    assert!(said.contains("the container ran out of the memory of instance type lite"), "{said}");
    assert!(said.contains("containers have no limit of cpu, pids: "), "{said}");
}

#[test]
fn the_doctor_tells_an_ordinary_user_what_there_is_not() {
    for (user, ids) in [
        (OrdinaryUser::new(), "note: containers run as 65536 of this user's subordinate ids"),
        (
            OrdinaryUser::with_a_single_id(),
            "warning: containers have a single user, who is you outside (/etc/subuid gives `cfc-user` no ids)",
        ),
    ] {
        let Some(user) = user else { return };
        let home = Home::of(user);
        let doctor = String::from_utf8(home.run(&["doctor"]).stdout).expect("UTF-8");
        for finding in
            [ids, "warning: containers have no limit of cpu, memory, pids", "warning: containers have no limit of disk"]
        {
            assert!(doctor.contains(finding), "no `{finding}` in\n{doctor}");
        }
    }
}

#[test]
fn two_ordinary_users_side_by_side_do_not_meet() {
    if tools().is_none() {
        return;
    }
    let (Some(one), Some(other)) = (OrdinaryUser::new(), OrdinaryUser::new()) else { return };
    let (uids, firsts) = ([one.uid, other.uid], [&one, &other].map(|user| user.subordinate.expect("has some")));
    let homes = [Home::of(one), Home::of(other)];
    let platforms = [Platform::start(&homes[0]), Platform::start(&homes[1])];
    let mut pids = Vec::new();
    for (index, home) in homes.iter().enumerate() {
        let project = home.project(WORKER);
        give(uids[index], &project);
        home.must(&["deploy", &project.display().to_string()]);
        let (status, body) = platforms[index].ask(WORKER, "alice");
        assert_eq!(status, 200, "{body}");
        let listed = home.must(&["containers", "instances", APPLICATION, "--json"]);
        let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
        assert_eq!(listed.as_array().map(Vec::len), Some(1), "one sees the other's: {listed}");
        let pid = listed[0]["pid"].as_u64().expect("it runs");
        let outside = uid_of(&Path::new("/proc").join(pid.to_string())).expect("it runs");
        assert_eq!(outside, firsts[index] + 1000, "its ids are not the user's");
        pids.push(pid);
    }
    assert!(firsts[0].abs_diff(firsts[1]) >= SUBORDINATE_IDS);
    // Neither reads what is the other's, from outside or as the root of a namespace.
    let token = homes[1].data().join("token").display().to_string();
    let stolen = homes[0].run(&["unshare", "cat", &token]);
    assert!(!stolen.status.success() && stolen.stdout.is_empty(), "{}", String::from_utf8_lossy(&stolen.stdout));
    let [first, second] = platforms;
    first.kill();
    let restarted = Platform::start(&homes[0]);
    for platform in [&restarted, &second] {
        let (status, body) = platform.ask(WORKER, "alice");
        assert_eq!(status, 200, "{body}");
        assert!(body.contains("\"visits\":2"), "{body}");
    }
    restarted.stop();
    assert!(Path::new(&format!("/proc/{}", pids[1])).exists(), "one has ended the other's container");
    assert_eq!(second.ask(WORKER, "alice").0, 200);
    second.stop();
    for uid in uids {
        crate::support::wait_for("the user's processes to end", || processes_of(uid).is_empty().then_some(()));
    }
    for home in &homes {
        home.must(&["unshare", "rm", "-rf", &home.data().display().to_string()]);
    }
}

/// A machine whose settings are others than this one's, and that gives no user namespaces: a chroot is where the kernel
/// makes none, and settings are what is mounted over them there.
const OTHER_SETTINGS: &str = r#"
set -e
root=$1 setting=$2
shift 2
mkdir -p "$root"
mount --rbind / "$root"
mount -t tmpfs none "$root/proc/sys"
mkdir -p "$root/proc/sys/user" "$root/proc/sys/kernel"
echo 15000 >"$root/proc/sys/user/max_user_namespaces"
echo "${setting#*=}" >"$root/proc/sys/kernel/${setting%=*}"
exec chroot "$root" setpriv --bounding-set -sys_admin -- "$@"
"#;

#[test]
fn the_doctor_names_the_setting_that_keeps_users_from_namespaces() {
    if !can_sandbox() || !has_program("setpriv") || !has_program("unshare") {
        return;
    }
    let root = tempfile::tempdir().expect("a directory");
    for (setting, found, remedy) in [
        (
            "apparmor_restrict_unprivileged_userns=1",
            "`kernel.apparmor_restrict_unprivileged_userns` is 1",
            "as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give the cfc binary an AppArmor profile \
             that allows `userns`",
        ),
        (
            "unprivileged_userns_clone=0",
            "`kernel.unprivileged_userns_clone` is 0",
            "as root: sysctl -w kernel.unprivileged_userns_clone=1",
        ),
    ] {
        let path = root.path().join("machine").display().to_string();
        let wrapper =
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", OTHER_SETTINGS, "sh", &path, setting];
        let home = Home::through(&wrapper);
        let doctor = home.run(&["doctor"]);
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        let what = format!("this machine gives an ordinary user no user namespace: {found}");
        assert!(said.contains(&what) && said.contains(remedy), "{said}{}", String::from_utf8_lossy(&doctor.stderr));
        let said = home.must_fail(&["run", "test/app:1"]);
        assert_eq!(said, format!("error: cannot get the rights to make sandboxes: {what}\nhint: {remedy}\n"));
    }
}

/// cfc with what it needs, as an image of busybox and the machine's own libraries.
pub fn build_container_of_cfc(home: &Home) {
    let context = home.path("container");
    std::fs::create_dir_all(context.join("lib")).expect("writable");
    std::fs::copy(env!("CARGO_BIN_EXE_cfc"), context.join("cfc")).expect("copied");
    std::fs::copy(busybox().expect("checked before"), context.join("busybox")).expect("copied");
    let libraries = crate::images::output_of(std::process::Command::new("ldd").arg(env!("CARGO_BIN_EXE_cfc")));
    let mut copies = String::new();
    for path in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let name = path.rsplit_once('/').expect("has a name").1;
        std::fs::copy(path, context.join("lib").join(name)).expect("copied");
        copies += &format!("COPY lib/{name} {path}\nCOPY lib/{name} /lib/{name}\n");
    }
    home.write("container/app", WITHOUT_OWNERS);
    home.write(
        "container/Dockerfile",
        &format!(
            "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
             COPY --chmod=755 cfc /bin/\nENV LD_LIBRARY_PATH=/lib\n{copies}COPY busybox app /app/\n\
             RUN mkdir /tmp && mv /app/app /app/Dockerfile && cp /bin/busybox /app/busybox\n"
        ),
    );
    home.must(&["build", &context.display().to_string(), "-t", "cfc"]);
}

#[test]
fn a_container_of_ours_builds_and_runs_or_says_what_it_lacks() {
    if !can_sandbox() || !has_program("ldd") {
        return;
    }
    let home = Home::new();
    build_container_of_cfc(&home);
    let run = |grants: &[&str], data: &str| {
        let script =
            format!("export CFC_DATA={data}; cfc build /app -t test/app:1 && cfc run test/app:1; echo $?; cfc doctor");
        let output = home.run(&[&["run"][..], grants, &["cfc", "sh", "-c", &script]].concat());
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let said = run(&["--grant", "nested"], "/dev/shm/cfc");
    assert!(said.contains("\n0\n1000\n7\n"), "{said}");
    // What it is on is an overlay.
    let said = run(&["--grant", "nested"], "/cfc");
    assert!(said.contains("put it on a volume or a tmpfs"), "{said}");
    assert!(said.contains("error: the data directory `/cfc` is on an overlay"), "{said}");
    let said = run(&[], "/dev/shm/cfc");
    assert!(said.contains("cannot start a process with clone3"), "{said}");
    assert!(said.contains("cfc: --grant nested"), "{said}");
}

/// As a container engine without subordinate ids has its containers: root over one id.
#[test]
fn the_root_over_a_single_id_builds_and_runs() {
    if !can_sandbox() || !has_program("unshare") {
        return;
    }
    let home = Home::through(&["unshare", "--user", "--map-root-user", "--mount"]);
    build(&home, WITHOUT_OWNERS);
    let (code, said) = run(&home, &[]);
    assert_eq!(code, Some(7), "{said}");
    assert!(said.starts_with("0\n0\n"), "{said}");
}
