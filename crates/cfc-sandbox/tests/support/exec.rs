//! What the tests of further processes share.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use cfc_sandbox::{Exec, ExecConfig, ExitStatus, INIT_ANNOTATION, SandboxConfig, Terminal};
use serde_json::json;

use super::{Bench, with};

/// A sandbox that stays, as instances are: with an init.
pub fn running(bench: &Bench) -> SandboxConfig {
    let config = with(&bench.config(&["sleep", "1000"]), &[("/annotations", json!({ INIT_ANNOTATION: "true" }))]);
    bench.launcher.start(&config).unwrap();
    config
}

pub fn command(words: &[&str]) -> ExecConfig {
    ExecConfig { arguments: words.iter().map(|word| word.to_string()).collect(), ..ExecConfig::default() }
}

pub fn script(text: &str) -> ExecConfig {
    command(&["sh", "-c", text])
}

/// A running command, with our ends of its pipes.
pub struct Piped {
    pub exec: Exec,
    pub stdin: File,
    pub stdout: File,
    pub stderr: File,
}

pub fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

pub fn start(bench: &Bench, id: &str, config: &ExecConfig) -> Result<Piped, cfc_sandbox::Error> {
    let (their_stdin, stdin) = pipe();
    let (stdout, their_stdout) = pipe();
    let (stderr, their_stderr) = pipe();
    let exec = bench.launcher.exec(id, config, [their_stdin, their_stdout, their_stderr])?;
    Ok(Piped { exec, stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() })
}

/// Runs a command without input to its end: how it ended, what it put out and what it complained of.
pub fn run(bench: &Bench, id: &str, config: &ExecConfig) -> (ExitStatus, String, String) {
    let Piped { exec, stdin, mut stdout, mut stderr } = start(bench, id, config).unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    stdout.read_to_string(&mut out).unwrap();
    stderr.read_to_string(&mut err).unwrap();
    (exec.wait().unwrap(), out, err)
}

pub fn output(bench: &Bench, id: &str, config: &ExecConfig) -> String {
    let (exit, out, err) = run(bench, id, config);
    assert_eq!(exit, ExitStatus::Code(0), "{config:?}: {out}{err}");
    out
}

pub fn refused(bench: &Bench, id: &str, config: &ExecConfig) -> cfc_sandbox::Error {
    match start(bench, id, config) {
        Err(error) => error,
        Ok(piped) => panic!("{config:?} ran and ended with {:?}", piped.exec.wait()),
    }
}

/// Waits for something that takes a moment.
pub fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads from a terminal until `wanted` was shown.
pub fn read_until(terminal: &Terminal, wanted: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut shown = String::new();
    while !shown.contains(wanted) {
        assert!(Instant::now() < deadline, "{wanted:?} never came, only {shown:?}");
        let mut buffer = [0; 4096];
        match terminal.read(&mut buffer) {
            Ok(0) => panic!("it ended before {wanted:?}: {shown:?}"),
            Ok(count) => shown.push_str(&String::from_utf8_lossy(&buffer[..count])),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
    shown
}
