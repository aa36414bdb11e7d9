//! A sandbox's disk: what fits, what happens when it is full, and that nothing of it is left. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as ProcessStdio};
use std::time::{Duration, Instant};

use cfc_sandbox::{DiskKind, ErrorKind, ExitStatus, Launcher, Root, SandboxConfig};
use support::{Bench, LAUNCHER, bench, config, ready};

/// Everything here ends in milliseconds; a machine that is slower than this is broken.
const PATIENCE: Duration = Duration::from_secs(30);
const MB: u64 = 1_000_000;

/// The configuration with a disk of `megabytes` whose space `directory` pays for.
fn on_disk(config: SandboxConfig, megabytes: u64, directory: &Path) -> SandboxConfig {
    let Root::Overlay { lowers, .. } = config.root.clone() else { panic!("an overlay") };
    let disk = DiskKind { bytes: megabytes * MB, directory: directory.to_owned() };
    SandboxConfig { root: Root::Disk { lowers, disk }, ..config }
}

/// `None` where disks cannot be made; the reason is printed.
fn disk_bench() -> Option<Bench> {
    let bench = bench()?;
    let kind = DiskKind { bytes: 50 * MB, directory: bench.directory.path().to_owned() };
    match bench.launcher.prepare_disk(&kind) {
        Ok(()) => Some(bench),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn run(bench: &Bench, megabytes: u64, script: &str) -> String {
    let config = on_disk(bench.config(&["sh", "-c", script]), megabytes, bench.directory.path());
    let (exit, text) = bench.run_config(&config);
    assert_eq!(exit.status, ExitStatus::Code(0), "{script}: {text}");
    text
}

/// The loop devices whose file is or was in `directory`.
fn devices_of(directory: &Path) -> Vec<PathBuf> {
    let directory = fs::canonicalize(directory).unwrap();
    let is_ours = |path: &PathBuf| {
        let file = fs::read_to_string(path.join("loop/backing_file")).unwrap_or_default();
        Path::new(file.trim_end_matches(" (deleted)\n").trim()).starts_with(&directory)
    };
    fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path()).filter(is_ours).collect()
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_full_disk_is_enospc_inside_and_takes_nothing_more_of_the_host() {
    let Some(bench) = disk_bench() else { return };
    let script =
        "stat -f -c '%S %b' /; dd if=/dev/zero of=/big bs=64k; echo status=$?; rm /big; echo x > /small && echo again";
    let text = run(&bench, 50, script);
    let sizes: Vec<u64> = text.lines().next().unwrap().split(' ').map(|word| word.parse().unwrap()).collect();
    let total = sizes[0] * sizes[1];
    assert!((45 * MB..=50 * MB).contains(&total), "statfs shows {total} bytes");
    assert!(text.contains("No space left on device") && text.contains("status=1"), "{text}");
    assert!(text.contains("again"), "what is deleted can be used again: {text}");
    // All that the host gave are the images' blocks, and they have no name: the directory is as it was.
    let names: Vec<_> = fs::read_dir(bench.directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name == "layer" || name.to_string_lossy().starts_with('t')), "{names:?}");
}

#[test]
fn inodes_run_out_inside_too() {
    let Some(bench) = disk_bench() else { return };
    let script = "cd /home; i=0; while true > f$i; do i=$((i+1)); done 2>error; cat error; echo made $i; echo x >> error && echo room";
    let text = run(&bench, 10, script);
    assert!(text.contains("No space left on device"), "{text}");
    assert!(text.contains("room"), "there is space, only no inode: {text}");
}

#[test]
fn a_disk_is_fresh_each_time_and_owned_by_the_sandboxs_root() {
    let Some(bench) = disk_bench() else { return };
    let script = "ls -A /home; stat -c '%u:%g %a' /; echo x > /home/mine; chown 1000:1000 /home/mine; stat -c %u /home/mine; cat /proc/mounts";
    for _ in 0..2 {
        let text = run(&bench, 50, script);
        let lines: Vec<&str> = text.lines().take(2).collect();
        assert_eq!(lines, ["0:0 755", "1000"], "nothing is left of the run before: {text}");
        assert!(!text.contains("ext4"), "the disk itself is not to be seen: {text}");
    }
}

#[test]
fn usage_is_told_while_it_runs() {
    let Some(bench) = disk_bench() else { return };
    let script = "dd if=/dev/zero of=/big bs=1M count=20 2>/dev/null; echo done; exec sleep 60";
    let config = on_disk(bench.config(&["sh", "-c", script]), 50, bench.directory.path());
    bench.launcher.start(&config).unwrap();
    let used = || bench.launcher.disks().unwrap()[&config.id].used_bytes;
    wait_until("20 MiB are used", || used() >= 20 << 20);
    assert!(bench.launcher.disks().unwrap()[&config.id].total_bytes <= 50 * MB);
    bench.launcher.kill_all(&config.id).unwrap();
    bench.launcher.wait(&config.id).unwrap();
    assert!(bench.launcher.disks().unwrap().is_empty());
}

#[test]
fn many_starts_at_once_get_a_disk_each() {
    let Some(bench) = disk_bench() else { return };
    const COUNT: usize = 24;
    let bench = &bench;
    std::thread::scope(|scope| {
        for i in 0..COUNT {
            scope.spawn(move || {
                // Two sizes, more than are ready of each.
                let text = run(bench, 20 + 10 * (i as u64 % 2), "ls -A /home; echo x > /home/x; ls -A /home");
                assert_eq!(text, "x");
            });
        }
    });
}

#[test]
fn nothing_is_left_after_the_end() {
    let Some(bench) = disk_bench() else { return };
    let directory = bench.directory.path().to_owned();
    run(&bench, 50, "dd if=/dev/zero of=/big bs=1M count=20 2>/dev/null");
    let Bench { launcher, directory: kept } = bench;
    drop(launcher);
    assert_eq!(devices_of(&directory), Vec::<PathBuf>::new(), "a launcher that has ended leaves no disk");
    drop(kept);
}

#[test]
fn nothing_is_left_of_a_launcher_that_was_killed() {
    let Some(directory) = ready() else { return };
    let socket = directory.path().join("launcher");
    let mut process = Command::new(LAUNCHER).arg(&socket).stdout(ProcessStdio::piped()).spawn().unwrap();
    wait_until("the launcher listens", || Launcher::connect(&socket).is_some());
    let launcher = Launcher::connect(&socket).unwrap();
    let script = "dd if=/dev/zero of=/big bs=1M count=20 2>/dev/null; exec sleep 60";
    let config = on_disk(config(directory.path(), &["sh", "-c", script]), 50, directory.path());
    if let Err(error) = launcher.prepare_disk(&DiskKind { bytes: 50 * MB, directory: directory.path().to_owned() }) {
        eprintln!("skipped: {error}");
        process.kill().unwrap();
        process.wait().unwrap();
        return;
    }
    launcher.start(&config).unwrap();
    assert!(!devices_of(directory.path()).is_empty());
    process.kill().unwrap();
    process.wait().unwrap();
    wait_until("every loop device is detached", || devices_of(directory.path()).is_empty());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(directory.path().to_str().unwrap()), "{mounts}");
    cfc_sandbox::sweep(&socket).unwrap();
}

/// A filesystem of its own, smaller than what is asked of it. Mounted here alone.
struct SmallHost {
    point: tempfile::TempDir,
}

impl SmallHost {
    fn new(options: &str) -> SmallHost {
        let point = tempfile::tempdir().unwrap();
        let data = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("tmpfs", point.path(), "tmpfs", rustix::mount::MountFlags::empty(), data.as_c_str())
            .unwrap();
        SmallHost { point }
    }
}

impl Drop for SmallHost {
    fn drop(&mut self) {
        rustix::mount::unmount(self.point.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_host_without_space_fails_the_start_at_once_with_the_reason() {
    let Some(bench) = disk_bench() else { return };
    let host = SmallHost::new("size=16k");
    let config = on_disk(bench.config(&["true"]), 50, host.point.path());
    for _ in 0..3 {
        let error = bench.launcher.start(&config).expect_err("there is no space");
        let text = error.to_string();
        assert!(text.contains("No space left on device") || text.contains("no space"), "{text}");
        assert!(text.contains(&config.id), "{text}");
    }
    assert_eq!(bench.launcher.list().unwrap(), []);
    assert_eq!(devices_of(host.point.path()), Vec::<PathBuf>::new());
    // And another start, elsewhere, is fine.
    assert_eq!(run(&bench, 50, "echo fine"), "fine");
}

#[test]
fn a_directory_that_is_not_there_fails_the_start() {
    let Some(bench) = disk_bench() else { return };
    let config = on_disk(bench.config(&["true"]), 50, Path::new("/nowhere"));
    let error = bench.launcher.start(&config).expect_err("there is no such directory");
    assert!(matches!(error.kind(), ErrorKind::Step { errno: libc::ENOENT, .. }), "{error}");
}
