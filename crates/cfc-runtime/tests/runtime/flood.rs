//! An app that puts out as much as it can.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cfc_runtime::InstanceSpec;

use crate::Test;
use crate::inventory::assert_nothing_left;
use crate::support::{Machine, PATIENCE, block_on, directory, get, until};

pub const TESTS: &[Test] = &[("a_flood_of_output_fills_no_disk_and_hinders_no_neighbour", flood)];

/// What the files of one log may have: two of 8 MiB, the older of which may have got its last batch beyond that.
const LOG_BYTES_MAX: u64 = (16 << 20) + (1 << 20);
const ROTATIONS: usize = 2;

fn flood() {
    let directory = directory();
    block_on(async {
        let machine = Machine::open(directory.path(), "exec httpd -f -p 4000 -h /www", 9).await;
        machine.run("neighbour").await.expect("it starts");
        let command = Some(["/bin/sh", "-c", "exec busybox seq 1000000000 9000000000"].map(str::to_string).to_vec());
        machine.runtime.create(InstanceSpec { command, ..machine.spec("floods") }).await.expect("it is created");
        machine.runtime.start("floods").await.expect("it starts");
        let log = directory.path().join("data/instances/floods/log");
        let mut files = vec![inode(&log)];
        while files.len() <= ROTATIONS {
            let answer = tokio::time::timeout(PATIENCE, get(&machine, "neighbour")).await;
            assert!(answer.expect("it answers").ends_with("hello from the container\n"));
            let bytes = bytes_in(log.parent().expect("a directory"));
            assert!(bytes < LOG_BYTES_MAX, "{bytes} bytes of log");
            let current = inode(&log);
            if current.is_some() && files.last() != Some(&current) {
                files.push(current);
            }
        }
        machine.runtime.kill("floods", 9).await.expect("it runs");
        assert_eq!(machine.wait("floods").await.code, 137);
        assert!(bytes_in(log.parent().expect("a directory")) < LOG_BYTES_MAX);
        // From the older file to the newer one nothing is missing, and times only grow: what is wanted since some time is
        // all that comes after.
        let (lines, _) = machine.runtime.logs("floods").expect("it has a log").tail(usize::MAX).await;
        assert!(lines.is_sorted_by_key(|line| &line.time));
        let numbers: Vec<u64> = lines.iter().map(|line| line.line.parse().expect("a number")).collect();
        // The kill may have cut the last number off.
        let whole = &numbers[..numbers.len() - 1];
        assert!(whole.windows(2).all(|pair| pair[1] == pair[0] + 1), "lines are missing");
        let older = std::fs::read_to_string(log.with_extension("1")).expect("readable").lines().count();
        assert!(older > 0 && whole.len() > older, "{older} of {} lines are in the older file", whole.len());
        assert!(machine.runtime.remove("floods").await);
        let kept = directory.path().join("data/instances/.ended");
        until("its log is kept", || bytes_in(&kept) > 0).await;
        assert!(bytes_in(&kept) < LOG_BYTES_MAX);
        machine.close().await;
    });
    assert_nothing_left(directory.path());
}

fn inode(path: &Path) -> Option<u64> {
    Some(std::fs::metadata(path).ok()?.ino())
}

/// The bytes of the logs in a directory.
fn bytes_in(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let logs = entries.filter(|entry| entry.file_name().to_string_lossy().contains("log"));
    logs.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}
