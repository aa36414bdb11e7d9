//! Device nodes that a build's sandbox makes: it gets what BuildKit gives, cannot open them, and reaches nothing else by it.
//! Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cfc_sandbox::{ExitStatus, SandboxConfig, build_spec};
use serde_json::json;
use support::{Bench, bench, compiled, field, log_text, own_directory, with};

/// A sandbox of a build that runs `args`.
fn build(bench: &Bench, args: &[&str]) -> SandboxConfig {
    let mut config = bench.config(args);
    let given = config.spec.process().as_ref().unwrap().args().clone();
    config.spec = build_spec();
    config.spec.process_mut().as_mut().unwrap().set_args(given);
    config
}

fn sh(bench: &Bench, script: &str) -> SandboxConfig {
    build(bench, &["sh", "-c", script])
}

/// With a directory of the host mounted at `target`.
fn with_bind(config: &SandboxConfig, source: &Path, target: &str) -> SandboxConfig {
    let mut mounts = serde_json::to_value(config.spec.mounts()).unwrap();
    let mount = json!({"destination": target, "type": "bind", "source": source, "options": ["bind", "rw"]});
    mounts.as_array_mut().unwrap().push(mount);
    with(config, &[("/mounts", mounts)])
}

fn upper(config: &SandboxConfig) -> PathBuf {
    own_directory(config).join("upper")
}

/// `None`, with the reason on stderr, where nodes are made by nobody.
fn making() -> Option<Bench> {
    let bench = bench()?;
    let (exit, text) = bench.run_config(&sh(&bench, "mknod /home/probe c 1 3"));
    if exit.status == ExitStatus::Code(0) {
        return Some(bench);
    }
    assert!(text.contains("not permitted"), "{text}");
    // Both are so on any kernel that the tests know, unless these run below a listener of somebody else's.
    let status = fs::read_to_string("/proc/self/status").unwrap();
    assert_ne!(field(&status, "Seccomp"), "0", "nodes are refused: {text}");
    eprintln!("skipped: needs to run below no seccomp filter");
    None
}

#[test]
fn a_node_is_what_it_was_asked_to_be_inside_and_in_the_upper_directory() {
    let Some(bench) = making() else { return };
    let script = "cd /home && umask 027 && mkdir -m 2775 group && chown 5:6 group
        mknod null c 1 3; mknod -m 666 /home/open c 5 2; mknod disk b 259 1048575; mknod group/x c 4095 7; mknod ../tmp/y b 0 0
        stat -c '%n %F %t:%T %a %u:%g' null open disk group/x /tmp/y";
    let config = sh(&bench, script);
    let (exit, text) = bench.run_config(&config);
    assert_eq!(exit.status, ExitStatus::Code(0), "{text}");
    let expected = "null character special file 1:3 640 0:0
open character special file 5:2 666 0:0
disk block special file 103:fffff 640 0:0
group/x character special file fff:7 640 0:6
/tmp/y block special file 0:0 640 0:0";
    assert_eq!(text, expected);
    let disk = fs::symlink_metadata(upper(&config).join("home/disk")).unwrap();
    assert!(disk.file_type().is_block_device());
    assert_eq!((disk.mode() & 0o7777, disk.uid(), disk.gid()), (0o640, 0, 0), "the image's own ids");
    assert_eq!(disk.rdev(), rustix::fs::makedev(259, 1_048_575));
}

#[test]
fn nobody_opens_a_node_that_was_made() {
    let Some(bench) = making() else { return };
    let numbers =
        ["c 1 1", "c 1 3", "c 1 5", "c 1 11", "c 5 0", "c 10 229", "b 7 0", "b 8 0", "b 253 0", "b 254 0", "b 259 0"];
    let script: String = numbers
        .iter()
        .enumerate()
        .map(|(i, number)| {
            format!(
                "mknod -m 666 /home/{i} {number} || echo failed; head -c 1 /home/{i} && echo opened; echo x 2>&1 > /home/{i} && echo opened
                mv /home/{i} /tmp/{i}; ln /tmp/{i} /home/l{i}; head -c 1 /home/l{i} && echo opened; chmod 777 /tmp/{i}; /tmp/{i} && echo ran\n"
            )
        })
        .collect();
    let (_, text) =
        bench.run_config(&sh(&bench, &(script + "head -c 1 /dev/zero | wc -c; mount -o remount,dev / ; true")));
    assert!(!text.contains("opened") && !text.contains("failed") && !text.contains("ran"), "{text}");
    assert_eq!(text.matches("ermission denied").count(), 4 * numbers.len() + 1, "{text}");
    assert!(text.lines().any(|line| line == "1"), "the usual ones still open: {text}");
    let mounts = bench.run_config(&sh(&bench, "cat /proc/self/mountinfo")).1;
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(root.contains("nodev"), "{root}");
}

#[test]
fn what_is_no_part_of_the_overlay_takes_no_node() {
    let Some(bench) = making() else { return };
    let cache = bench.directory.path().join("cache");
    fs::create_dir(&cache).unwrap();
    let script = "cd /home; for d in /dev /dev/shm /proc /sys /proc/self/cwd /proc/1/root /proc/self/fd /cache /dev/pts; do
        mknod $d/node c 1 3 && echo made in $d; mkdir -p /home/links; ln -s $d /home/links/x; mknod links/x/node b 8 0 && echo made through $d; rm links/x
        case $d in /proc/*) continue;; esac; cd $d && { mknod node c 1 3 && echo made at $d; mknod ./node c 1 3 && echo made at $d; }; cd /home
        done; mknod /cache/../home/../cache/node c 1 3 && echo made; ls /cache; true";
    let config = sh(&bench, script);
    let (exit, text) = bench.run_config(&with_bind(&config, &cache, "/cache"));
    assert_eq!(exit.status, ExitStatus::Code(0), "{text}");
    assert!(!text.contains("made"), "{text}");
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
}

#[test]
fn links_and_dots_stay_inside() {
    let Some(bench) = making() else { return };
    let outside = bench.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let (outside, own) = (outside.display(), bench.directory.path().display());
    let script = format!(
        "mkdir -p /a/b; ln -s {outside} /direct; ln -s ../../../../../../../../{outside} /a/b/dots; ln -s /proc/1/root/{own} /proc-link
        mknod {outside}/n c 1 3; mknod /direct/n c 1 3; mknod /a/b/dots/n c 1 3; mknod /proc-link/n c 1 3
        mknod /a/b/../../../../../../../escaped c 1 3
        ln -s /etc/made /a/final; mknod /a/final c 1 3; ls /etc/made
        ln -s loop /a/loop; mknod /a/loop/x c 1 3
        mkdir -p {outside}; mknod /direct/inside c 1 3; mknod /a/b/dots/too c 1 3; stat -c '%n %F' /escaped {outside}/inside {outside}/too"
    );
    let config = sh(&bench, &script);
    let (_, text) = bench.run_config(&config);
    for (name, expected) in [("escaped", true), (&format!("{outside}/inside"), true), (&format!("{outside}/too"), true)]
    {
        let line = format!("/{} character special file", name.trim_start_matches('/'));
        assert_eq!(text.contains(&line), expected, "{line}: {text}");
    }
    assert!(text.contains("File exists") && text.contains("/etc/made: No such file"), "{text}");
    assert!(text.contains("Too many"), "{text}");
    assert_eq!(fs::read_dir(outside.to_string()).unwrap().count(), 0, "nothing was made on the host: {text}");
    assert!(!Path::new("/escaped").exists());
}

/// As [`making`], with the program of `nodes.c` in the image.
fn armed() -> Option<Bench> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| compiled("nodes")).clone()?;
    let bench = making()?;
    fs::copy(program, bench.directory.path().join("layer/bin/nodes")).unwrap();
    Some(bench)
}

/// Runs `nodes` with `what`, and compares what it says with `expected`, line by line.
fn check(what: &str, expected: &[(&str, i32)]) -> Option<(Bench, SandboxConfig)> {
    let bench = armed()?;
    let config = build(&bench, &["nodes", what]);
    let (exit, text) = bench.run_config(&config);
    let lines: Vec<String> = expected.iter().map(|(name, result)| format!("{name}: {result}")).collect();
    assert_eq!((text, exit.status), (lines.join("\n"), ExitStatus::Code(0)));
    Some((bench, config))
}

#[test]
fn arguments_mean_what_they_mean_to_the_kernel() {
    use libc_numbers::*;
    let expected = [
        ("descriptor", 0),
        ("path descriptor", 0),
        ("absolute with no descriptor", 0),
        ("no descriptor", EBADF),
        ("a file's", ENOTDIR),
        ("a pipe's", ENOTDIR),
        ("tmpfs", EPERM),
        ("out of tmpfs", 0),
        ("proc", EPERM),
        ("host by proc", EPERM),
        ("removed", ENOENT),
        ("empty", ENOENT),
        ("root", EEXIST),
        ("dot", EEXIST),
        ("trailing slash", ENOENT),
        ("there", EEXIST),
        ("no directory", ENOENT),
        ("not a directory", ENOTDIR),
        ("null pointer", EFAULT),
        ("wild pointer", EFAULT),
        ("too long", ENAMETOOLONG),
        ("long", 0),
        ("across pages", 0),
        ("up to the end", 0),
        ("over the end", EFAULT),
        ("another thread", 0),
        ("whiteout", EPERM),
        ("fifo", 0),
        ("regular", 0),
        ("directory", EPERM),
        ("high bits", 0),
    ];
    let Some((_bench, config)) = check("arguments", &expected) else { return };
    let mut names: Vec<_> = fs::read_dir(upper(&config).join("d"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["a", "across", "b", "c", "end", "fifo", "file", "high", "long", "regular", "thread", "x"]);
    let high = fs::symlink_metadata(upper(&config).join("d/high")).unwrap();
    assert!(high.file_type().is_block_device() && high.rdev() == rustix::fs::makedev(8, 1), "{high:?}");
}

/// The kernel's numbers of errors, the same on all machines that cfc runs on.
mod libc_numbers {
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const EBADF: i32 = 9;
    pub const EACCES: i32 = 13;
    pub const EFAULT: i32 = 14;
    pub const EEXIST: i32 = 17;
    pub const ENOTDIR: i32 = 20;
    pub const ENAMETOOLONG: i32 = 36;
}

#[test]
fn a_caller_gets_a_node_only_where_its_rights_and_its_root_reach() {
    use libc_numbers::*;
    let expected = [
        ("no capability", EPERM),
        ("no capability, closed", EACCES),
        ("other files' user", EPERM),
        ("only mknod", 0),
        ("only mknod, closed", EACCES),
        ("only mknod, behind closed", EACCES),
        ("owner", 1000),
        ("group", 1000),
        ("in a jail", 0),
        ("out of a jail", 0),
        ("by a link", 0),
        ("seen outside", 0),
    ];
    let Some((_bench, config)) = check("users", &expected) else { return };
    let made = fs::symlink_metadata(upper(&config).join("open/c")).unwrap();
    assert_eq!((made.uid(), made.gid()), (1000, 1000));
}

#[test]
fn paths_that_change_meanwhile_lead_nowhere_else() {
    check("race", &[("some made", 1), ("some refused", 1), ("strange", 0), ("beside", 0)]);
}

#[test]
fn signals_do_not_repeat_a_call() {
    check("signals", &[("failed under signals", 0)]);
}

#[test]
fn without_the_capability_or_the_machines_root_nobody_makes_one() {
    let Some(bench) = making() else { return };
    let refused = |what: &str, config: &SandboxConfig| {
        let (exit, text) = bench.run_config(config);
        assert_eq!(
            (exit.status, text.as_str()),
            (ExitStatus::Code(1), "mknod: /home/x: Operation not permitted"),
            "{what}"
        );
        assert!(!upper(config).join("home/x").exists());
    };
    let make = ["mknod", "/home/x", "b", "8", "0"];
    refused("an instance", &bench.config(&make));
    let annotated = with(&bench.config(&make), &[("/annotations", json!({"cfc.device-nodes": "true"}))]);
    refused("an instance that asks for it and has no CAP_MKNOD", &annotated);
    refused("a build that does not ask", &with(&build(&bench, &make), &[("/annotations", json!({}))]));
    refused("a build without seccomp", &with(&build(&bench, &make), &[("/linux/seccomp", json!(null))]));
    let mut insecure = build(&bench, &make);
    let process = insecure.spec.process().clone().unwrap();
    insecure.spec = cfc_sandbox::insecure_build_spec();
    insecure.spec.process_mut().as_mut().unwrap().set_args(process.args().clone());
    refused("an insecure build", &insecure);
}

/// The processes whose name is `cfc-nodes` and that have not ended.
fn makers() -> Vec<u32> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_over =
        |pid| fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| text.contains("\nState:\tZ"));
    let processes = processes
        .filter(|pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "cfc-nodes\n"));
    processes.filter(|pid| !is_over(*pid)).collect()
}

/// The maker whose parent is `launcher`.
fn maker_of(launcher: &str) -> Option<u32> {
    let parent = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|parent| parent.trim() == launcher))
    };
    makers().into_iter().find(parent)
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn parent_of(pid: i32) -> String {
    field(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), "PPid").to_owned()
}

#[test]
fn the_maker_ends_with_the_sandbox_and_the_launcher_and_its_death_hangs_nobody() {
    let Some(bench) = armed() else { return };
    // The sandbox is killed while all its threads make nodes.
    let config = build(&bench, &["nodes", "for-ever"]);
    let started = bench.launcher.start(&config).unwrap();
    let launcher = parent_of(started.pid);
    until("it begins", || log_text(&config).contains("begun"));
    assert!(maker_of(&launcher).is_some());
    bench.launcher.kill_all(&config.id).unwrap();
    bench.launcher.wait(&config.id).unwrap();
    assert_eq!(maker_of(&launcher), None);
    bench.launcher.remove(&config.id).unwrap();
    // The maker is killed: calls fail, and nothing waits for it.
    let gate = bench.directory.path().join("gate");
    fs::create_dir(&gate).unwrap();
    let config = sh(&bench, "echo begun; while [ ! -e /gate/go ]; do sleep 0.01; done; nodes once; echo over");
    let config = with_bind(&config, &gate, "/gate");
    bench.launcher.start(&config).unwrap();
    until("it begins", || log_text(&config).contains("begun"));
    let maker = maker_of(&launcher).expect("there is one");
    let mounts = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).unwrap();
    assert_eq!(mounts(&maker.to_string()), mounts(&launcher), "it has left the mounts of the sandbox");
    assert_eq!(fs::read_link(format!("/proc/{maker}/root")).unwrap(), Path::new("/"));
    let own = own_directory(&config).display().to_string();
    let held: Vec<_> = fs::read_dir(format!("/proc/{maker}/fd")).unwrap().flatten().collect();
    let held = held.iter().filter_map(|file| fs::read_link(file.path()).ok()).collect::<Vec<_>>();
    assert!(held.iter().all(|file| !file.to_string_lossy().contains(&own)), "{held:?}");
    assert!(held.iter().all(|file| !file.to_string_lossy().starts_with("mnt:")), "{held:?}");
    let pid = rustix::process::Pid::from_raw(maker as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until("it ends", || maker_of(&launcher).is_none());
    fs::write(gate.join("go"), "").unwrap();
    bench.launcher.wait(&config.id).unwrap();
    assert_eq!(log_text(&config), "begun\nonce: 38\nover", "ENOSYS");
    bench.launcher.remove(&config.id).unwrap();
    // The launcher is killed while there is one.
    let config = build(&bench, &["nodes", "for-ever"]);
    bench.launcher.start(&config).unwrap();
    until("it begins", || log_text(&config).contains("begun"));
    let maker = maker_of(&launcher).expect("there is one");
    let pid = rustix::process::Pid::from_raw(launcher.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until("nothing is left", || !makers().contains(&maker));
}

/// All that an upper directory holds, a line each.
fn describe(directory: &Path, root: &Path, lines: &mut Vec<String>) {
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let metadata = path.symlink_metadata().unwrap();
        let mut names = vec![0; 4096];
        let length = rustix::fs::llistxattr(&path, &mut names).unwrap();
        let mut attributes = String::new();
        for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(&path, name, &mut value).unwrap();
            // It names inodes, which differ.
            let length = if name.ends_with(b".origin") { 0 } else { length };
            attributes += &format!(" {}={:?}", String::from_utf8_lossy(name), &value[..length]);
        }
        lines.push(format!(
            "{} {:o} {}:{} {} {}{attributes}",
            path.strip_prefix(root).unwrap().display(),
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.rdev(),
            metadata.nlink(),
        ));
        if metadata.is_dir() {
            describe(&path, root, lines);
        }
    }
}

#[test]
fn an_overlay_mounted_outside_leaves_what_one_mounted_inside_leaves() {
    let Some(bench) = armed() else { return };
    let layer = bench.directory.path().join("layer");
    for directory in ["srv/a/b", "srv/c", "opt/d"] {
        fs::create_dir_all(layer.join(directory)).unwrap();
    }
    fs::write(layer.join("srv/a/b/f"), "x").unwrap();
    fs::write(layer.join("srv/c/g"), "x").unwrap();
    std::os::unix::fs::chown(layer.join("srv/c/g"), Some(1000), Some(70_000)).unwrap();
    fs::copy(layer.join("bin/nodes"), layer.join("bin/capable")).unwrap();
    let value = [&[1, 0, 0, 2, 0, 4][..], &[0; 14]].concat();
    rustix::fs::setxattr(layer.join("bin/capable"), "security.capability", &value, rustix::fs::XattrFlags::empty())
        .unwrap();
    let script = "rm /srv/a/b/f; rm -r /srv/a && mkdir /srv/a && touch /srv/a/again; mv /opt/d /opt/e; mv /srv/c /srv/h
        chown 1000:1000 /srv/a; chmod 4755 /bin/busybox; ln /etc/passwd /etc/linked; touch /srv/c/g; echo y >> /srv/c/g
        rm -r /home; echo x > /home; mkdir -m 2775 /srv/s; mknod /srv/p p; cp /bin/nodes /srv/n; dd if=/dev/zero of=/srv/hole seek=9 count=1 2>&1
        nodes capabilities; id; ls -ln /srv /bin/busybox; stat -c '%n %a %u:%g' / /etc /tmp /srv/a";
    let outside = sh(&bench, script);
    let inside = with(&sh(&bench, script), &[("/annotations", json!({}))]);
    let [outside, inside] = [outside, inside].map(|config| {
        let (exit, text) = bench.run_config(&config);
        let mut lines = Vec::new();
        describe(&upper(&config), &upper(&config), &mut lines);
        (exit.status, text.lines().map(without_time).collect::<Vec<_>>(), lines)
    });
    assert!(inside.1.contains(&"effective: 1024".to_owned()), "{:?}", inside.1);
    assert!(inside.2.iter().any(|line| line.contains("overlay.opaque")), "{:?}", inside.2);
    assert_eq!(outside.1, inside.1);
    assert_eq!(outside.2, inside.2);
    assert_eq!(outside.0, inside.0);
}

/// A line of `ls -l` without what the clock says.
fn without_time(line: &str) -> String {
    let is_listed = line.starts_with(['-', 'd', 'l', 'p', 'c', 'b']) && line.split_whitespace().count() >= 9;
    let words: Vec<_> = line.split_whitespace().collect();
    if is_listed { [&words[..5], &words[8..]].concat().join(" ") } else { line.to_owned() }
}
