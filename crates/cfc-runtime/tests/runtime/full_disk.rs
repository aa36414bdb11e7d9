//! A machine whose data directory is on a filesystem that is full.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use cfc_runtime::LogStream;

use crate::Test;
use crate::churn::in_full;
use crate::inventory::{assert_nothing_left, files_left};
use crate::support::{Machine, block_on, directory, get, until};

pub const TESTS: &[Test] = &[
    ("a_full_disk_fails_starts_with_the_reason_and_they_recover", starts_fail),
    ("a_full_disk_does_not_hurt_an_app_that_writes_to_its_log", apps_go_on),
    ("what_ends_while_the_disk_is_full_is_known_and_removed", ends_are_known),
];

/// Pages of the filesystem, the unit in which it runs full.
const PAGE: u64 = 4096;
const SIZE: &str = "size=4m";
const FULL: &str = "No space left on device";
/// It answers on port 4000 and writes a line of 100 characters again and again.
const TALKS: &str = "httpd -p 4000 -h /www; i=1000000; while true; do echo \"$i this is a line of the log that is \
                     neither short nor long but just of the length that many lines have\"; i=$((i+1)); sleep 0.01; done";

/// A filesystem of its own for the data of the machine in a directory, and a file that takes its space.
struct SmallDisk {
    point: PathBuf,
}

impl SmallDisk {
    fn mount(directory: &Path) -> SmallDisk {
        let point = directory.join("data");
        std::fs::create_dir_all(&point).expect("writable");
        let options = std::ffi::CString::new(SIZE).expect("no zero");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &point, "tmpfs", flags, options.as_c_str()).expect("root mounts a tmpfs");
        SmallDisk { point }
    }

    fn ballast(&self) -> PathBuf {
        self.point.join("ballast")
    }

    /// Takes all the space there is.
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).expect("opens");
        while file.write_all(&[0; PAGE as usize]).is_ok() {}
    }

    /// Gives so many pages back.
    fn free(&self, pages: u64) {
        let file = File::options().write(true).open(self.ballast()).expect("opens");
        let length = file.metadata().expect("readable").len();
        file.set_len(length.saturating_sub(pages * PAGE)).expect("shrinks");
    }

    fn empty(&self) {
        std::fs::remove_file(self.ballast()).expect("is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.point, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("  cannot unmount {}: {error}", self.point.display());
        }
    }
}

/// Page after page is given back, and each start gets one step further, until one succeeds.
fn starts_fail() {
    let directory = directory();
    let disk = SmallDisk::mount(directory.path());
    block_on(async {
        let machine = Machine::open(directory.path(), TALKS, 9).await;
        machine.run("runs").await.expect("there is space");
        machine.create("waits").await.expect("there is space");
        disk.fill();
        let error = machine.create("new").await.expect_err("there is no space");
        assert!(in_full(&error).contains(FULL) && in_full(&error).contains("new/journal"), "{}", in_full(&error));
        assert!(machine.runtime.inspect("new").is_none());
        assert!(!directory.path().join("data/instances/new").exists());
        let mut failures = Vec::new();
        // What it had to remove before takes nothing: 20 pages are more than a start needs.
        while let Err(error) = machine.runtime.start("waits").await {
            let text = in_full(&error);
            assert!(text.contains(FULL) && text.contains("start instance `waits`"), "{text}");
            assert!(machine.runtime.inspect("waits").is_some_and(|view| !view.phase.is_live()), "{text}");
            assert_eq!(machine.launcher.list().expect("it answers").len(), 1, "{text}");
            let waits = directory.path().join("data/instances/waits");
            assert!(!waits.join("upper").exists() && !waits.join("work").exists(), "{text}");
            failures.push(text);
            assert!(failures.len() < 20, "{failures:#?}");
            // The other one goes on writing its log into whatever space there is.
            disk.free(1 + failures.len() as u64);
        }
        for step in ["journal", "etc/"] {
            assert!(failures.iter().any(|text| text.contains(step)), "no start failed at {step}: {failures:#?}");
        }
        assert!(get(&machine, "waits").await.ends_with("hello from the container\n"));
        assert!(get(&machine, "runs").await.ends_with("hello from the container\n"));
        disk.empty();
        machine.run("new").await.expect("there is space again");
        machine.close().await;
        let clean = || files_left(directory.path()).is_empty();
        until("nothing is left", clean).await;
    });
    drop(disk);
    assert_nothing_left(directory.path());
}

fn apps_go_on() {
    let directory = directory();
    let disk = SmallDisk::mount(directory.path());
    block_on(async {
        let machine = Machine::open(directory.path(), TALKS, 9).await;
        machine.run("talks").await.expect("there is space");
        let log = directory.path().join("data/instances/talks/log");
        let length = || std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        until("it has said something", || length() > 0).await;
        // More than the rest of the log's last page.
        disk.fill();
        let left = || rustix::fs::statvfs(&disk.point).expect("readable").f_bfree;
        until("the disk is full", || left() == 0).await;
        let at_full = length();
        for _ in 0..20 {
            assert!(get(&machine, "talks").await.ends_with("hello from the container\n"));
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        assert!(length() < at_full + 2 * PAGE);
        let view = machine.runtime.inspect("talks").expect("it is there");
        assert!(view.phase.is_live() && view.launches == 1, "{view:?}");
        disk.empty();
        let before = length();
        until("it goes on writing its log", || length() > before + PAGE).await;
        let (lines, _) = machine.runtime.logs("talks").expect("it has a log").tail(100_000).await;
        let torn: Vec<_> =
            lines.iter().filter(|line| line.stream != LogStream::Stdout || line.time.is_empty()).collect();
        assert!(torn.is_empty(), "entries that are not whole: {torn:?}");
        let numbers: Vec<u64> = lines.iter().filter_map(|line| line.line.split(' ').next()?.parse().ok()).collect();
        assert!(numbers.len() == lines.len() && numbers.is_sorted(), "{numbers:?}");
        machine.close().await;
    });
    drop(disk);
    assert_nothing_left(directory.path());
}

/// Also by the runtime that comes next, with the disk still full.
fn ends_are_known() {
    let directory = directory();
    let disk = SmallDisk::mount(directory.path());
    block_on(async {
        let machine = Machine::open(directory.path(), "echo up; exec sleep 1000", 9).await;
        for name in ["one", "two"] {
            machine.run(name).await.expect("there is space");
        }
        disk.fill();
        machine.runtime.kill("one", 9).await.expect("it runs");
        assert_eq!(machine.wait("one").await.code, 137);
        // What its disk took is space again once that is deleted.
        let trash = directory.path().join("data/instances/.trash");
        until("its disk is deleted", || std::fs::read_dir(&trash).expect("readable").next().is_none()).await;
        disk.fill();
        let error = machine.create("three").await.expect_err("there is no space");
        assert!(in_full(&error).contains(FULL), "{}", in_full(&error));
        assert!(machine.runtime.remove("one").await);
        assert_eq!(machine.output("one").await, "up\n", "its log is kept");
        let names: Vec<String> = machine.runtime.list().into_iter().map(|view| view.spec.name).collect();
        assert_eq!(names, ["two"]);
        disk.empty();
        machine.run("one").await.expect("there is space again");
        machine.close().await;
    });
    drop(disk);
    assert_nothing_left(directory.path());
}
