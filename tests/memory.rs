//! Memory does not grow with what is built: each way in and out streams.

use std::fs::{self, File};
use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::add::Server;
use crate::support::{Home, Platform, busybox, can_sandbox};

/// More than the bound, and nothing that compresses.
const LAYER_BYTES: u64 = 192 << 20;
/// What a build may have in memory, whatever it builds.
const MAX_PEAK_MIB: u64 = 160;

/// Runs `cfc` and returns the most memory that it had, in MiB.
fn peak_mib(home: &Home, arguments: &[&str]) -> u64 {
    let mut command: Command = home.cfc();
    let mut child = command.args(arguments).stdout(Stdio::null()).spawn().expect("it starts");
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    let status = loop {
        let text = fs::read_to_string(&status_file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0);
        peak_kib = peak_kib.max(now);
        if let Some(status) = child.try_wait().expect("it is ours") {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success(), "{arguments:?}");
    assert!(peak_kib > 0);
    peak_kib >> 10
}

#[test]
fn a_large_layer_takes_no_more_memory_than_a_small_one() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let platform = Platform::start(&home);
    let served = tempfile::tempdir().expect("a directory");
    let context = home.path("context");
    fs::create_dir(&context).expect("made");
    fs::copy(busybox().expect("checked before"), context.join("busybox")).expect("copied");
    let large = served.path().join("large");
    let mut noise = File::open("/dev/urandom").expect("open").take(LAYER_BYTES);
    io::copy(&mut noise, &mut File::create(&large).expect("made")).expect("written");
    fs::hard_link(&large, context.join("large")).expect("linked");
    let address = Server::start(served.path().to_path_buf()).address("large");
    let run = "FROM scratch\nCOPY --chmod=755 busybox /bin/sh\nRUN --mount=type=bind,target=/c cat /c/large >/made\n";
    let from_stage = "FROM scratch AS one\nCOPY large /\nFROM scratch\nCOPY --from=one /large /copied\n";
    let outputs = [home.path("a.tar"), home.path("layout")].map(|path| path.display().to_string());
    let shown = context.display().to_string();
    let tar = format!("type=tar,dest={}", outputs[0]);
    let registry = format!("{}/large:1", platform.address("registry"));
    for (what, dockerfile, more) in [
        ("COPY", "FROM scratch\nCOPY large /\n", vec!["--oci-layout", &outputs[1]]),
        ("files out", "FROM scratch\nCOPY large /\n", vec!["-o", &tar]),
        ("zstd", "FROM scratch\nCOPY large /\n", vec!["--compression", "zstd"]),
        ("estargz", "FROM scratch\nCOPY large /\n", vec!["--compression", "estargz"]),
        ("RUN", run, vec![]),
        ("COPY --from", from_stage, vec![]),
        ("ADD", &format!("FROM scratch\nADD {address} /\n"), vec![]),
    ] {
        home.write("context/Dockerfile", dockerfile);
        let arguments = [&["build", &shown, "-t", "test/large:1"], &more[..]].concat();
        let peak = peak_mib(&home, &arguments);
        assert!(peak <= MAX_PEAK_MIB, "{what} had {peak} MiB in memory");
    }
    let peak = peak_mib(&home, &["push", "test/large:1", &registry]);
    assert!(peak <= MAX_PEAK_MIB, "a push had {peak} MiB in memory");
    platform.stop();
}
