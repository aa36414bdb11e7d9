//! A launcher that is replaced by its next program, in the same process, while it is used. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use cfc_sandbox::{
    DiskKind, ExecConfig, ExitStatus, INIT_ANNOTATION, Launcher, Network, OciRuntime, Root, SandboxConfig, State,
    WindowSize,
};
use serde_json::json;
use support::exec::{command, read_until, run, script, start, until};
use support::{Bench, LAUNCHER, field, log_text, own_directory, ready, with};

/// A machine with a launcher that outlives its clients.
struct Machine {
    bench: Bench,
    socket: PathBuf,
}

impl Machine {
    fn new() -> Option<Machine> {
        let directory = ready()?;
        let socket = directory.path().join("socket");
        let launcher = Launcher::connect_or_start(Path::new(LAUNCHER), &socket).unwrap();
        Some(Machine { bench: Bench { launcher, directory }, socket })
    }

    /// A program to be replaced by: the same, and yet another file.
    fn program(&self, name: &str) -> PathBuf {
        self.copy(Path::new(LAUNCHER), name)
    }

    /// By another process: a file that this one writes to is held open by whatever another test starts meanwhile, and while
    /// it is, nobody can execute it.
    fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let program = self.bench.directory.path().join(name);
        assert!(Command::new("cp").arg(from).arg(&program).status().unwrap().success());
        program
    }

    /// A program that is the launcher with `variables` in its environment, or something else.
    fn script(&self, name: &str, text: &str) -> PathBuf {
        let written = self.bench.directory.path().join(format!("{name}.text"));
        fs::write(&written, format!("#!/bin/bash\n{text}\n")).unwrap();
        fs::set_permissions(&written, fs::Permissions::from_mode(0o755)).unwrap();
        self.copy(&written, name)
    }

    fn pid(&self) -> i32 {
        let stream = std::os::unix::net::UnixStream::connect(&self.socket).unwrap();
        rustix::net::sockopt::socket_peercred(&stream).unwrap().pid.as_raw_nonzero().get()
    }

    fn runs(&self, program: &Path) -> bool {
        let inode = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).unwrap();
        inode(Path::new(&format!("/proc/{}/exe", self.pid()))) == inode(program)
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    fn children(&self) -> Vec<String> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let name =
            |child: &str| fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default().trim().to_owned();
        children.split_whitespace().map(name).collect()
    }
}

fn as_instance(config: &SandboxConfig) -> SandboxConfig {
    with(config, &[("/annotations", json!({INIT_ANNOTATION: "true"}))])
}

/// Lines with the numbers from 1 on, until it is told to end; then it ends with 7.
const COUNTER: &str = "trap 'exit 7' TERM; i=0; while true; do i=$((i+1)); echo line $i; sleep 0.01; done";

fn assert_counted(text: &str) {
    for (number, line) in text.lines().enumerate() {
        assert_eq!(line, format!("line {}", number + 1), "a line is lost or twice");
    }
}

#[test]
fn three_times_under_load_nothing_is_lost() {
    let Some(machine) = Machine::new() else { return };
    let (bench, launcher) = (&machine.bench, &machine.bench.launcher);
    let pid = machine.pid();
    let counters: Vec<_> = (0..3).map(|_| as_instance(&bench.config(&["sh", "-c", COUNTER]))).collect();
    let started: Vec<_> = counters.iter().map(|config| launcher.start(config).unwrap()).collect();
    let quiet = as_instance(&bench.config(&["sleep", "1000"]));
    launcher.start(&quiet).unwrap();
    let mut ends = launcher.ends().unwrap();
    let mut held = start(bench, &quiet.id, &script("while read line; do echo got $line; done; exit 5")).unwrap();
    let (is_over, cycles, commands) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let config = bench.config(&["sh", "-c", "echo begun; echo done; exit 42"]);
                    let (exit, text) = bench.run_config(&config);
                    assert_eq!((exit.status, text.as_str()), (ExitStatus::Code(42), "begun\ndone"));
                    cycles.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let said = run(bench, &quiet.id, &script("echo out; echo err >&2; exit 9"));
                assert_eq!(said, (ExitStatus::Code(9), "out\n".to_owned(), "err\n".to_owned()));
                commands.fetch_add(1, Ordering::Relaxed);
            }
        });
        let replaced = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 1..=3 {
                let program = machine.program(&format!("launcher-{round}"));
                launcher.replace(&program).unwrap();
                assert!(machine.runs(&program) && machine.pid() == pid, "the process is the same, its program another");
                let before = (cycles.load(Ordering::Relaxed), commands.load(Ordering::Relaxed));
                until("work goes on", || {
                    cycles.load(Ordering::Relaxed) > before.0 + 4 && commands.load(Ordering::Relaxed) > before.1 + 4
                });
            }
        }));
        is_over.store(true, Ordering::Relaxed);
        replaced.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    held.stdin.write_all(b"typed\n").unwrap();
    let mut line = String::new();
    BufReader::new(&held.stdout).read_line(&mut line).unwrap();
    assert_eq!(line, "got typed\n", "a command that waited goes on");
    drop(held.stdin);
    assert_eq!(held.exec.wait().unwrap(), ExitStatus::Code(5));
    let known: BTreeMap<_, _> =
        launcher.list().unwrap().into_iter().map(|status| (status.id.clone(), status)).collect();
    for (config, started) in counters.iter().zip(&started) {
        assert_eq!((known[&config.id].started, known[&config.id].state), (*started, State::Running));
        until("it counts on", || log_text(config).lines().count() > 50);
        launcher.kill(&config.id, libc::SIGTERM).unwrap();
        assert_eq!(launcher.wait(&config.id).unwrap().status, ExitStatus::Code(7));
        assert_counted(&log_text(config));
    }
    // Who watched for ends from before heard of each once.
    let (mut of_cycles, mut of_counters) = (0, 0);
    while of_counters < counters.len() {
        let (id, exit) = ends.next().expect("the launcher lives");
        match counters.iter().any(|config| config.id == id) {
            true => of_counters += 1,
            false => {
                assert_eq!(exit.status, ExitStatus::Code(42));
                of_cycles += 1;
            }
        }
    }
    assert_eq!(of_cycles, cycles.load(Ordering::Relaxed));
    counters.iter().for_each(|config| launcher.remove(&config.id).unwrap());
    launcher.kill_all(&quiet.id).unwrap();
    launcher.wait(&quiet.id).unwrap();
    launcher.remove(&quiet.id).unwrap();
    drop((held.exec, held.stdout, held.stderr, ends));
    let before = machine.descriptors();
    launcher.replace(&machine.program("last")).unwrap();
    until("nothing is held twice", || machine.descriptors() <= before);
    until("no child is left", || machine.children().iter().all(|name| name == "cfc-shell" || name == "cfc-zygote"));
    launcher.shutdown().unwrap();
    until("it has ended", || !machine.socket.exists());
}

/// What a sandbox has beside its process: network, sockets, disk, limits, host ids; and one that has ended.
#[test]
fn all_that_belongs_to_a_sandbox_goes_along() {
    let Some(machine) = Machine::new() else { return };
    let (bench, launcher) = (&machine.bench, &machine.bench.launcher);
    let limits = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 30}});
    let mut config = with(&as_instance(&bench.config(&["sleep", "1000"])), &[("/linux/resources", limits)]);
    config.network = Network::Redirected { ipv6: false };
    let Root::Overlay { lowers, .. } = config.root.clone() else { panic!("an overlay") };
    let disk = DiskKind { bytes: 30_000_000, directory: bench.directory.path().to_owned() };
    let has_disk = launcher.prepare_disk(&disk).inspect_err(|error| eprintln!("skipped: {error}")).is_ok();
    if has_disk {
        config.root = Root::Disk { lowers, disk: disk.clone() };
    }
    launcher.start(&config).unwrap();
    let range = |id: &str| {
        let pid = launcher.list().unwrap().into_iter().find(|status| status.id == id).unwrap().started.pid;
        fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap()
    };
    let gone = bench.config(&["sh", "-c", "echo last words; exit 3"]);
    launcher.start(&gone).unwrap();
    launcher.wait(&gone.id).unwrap();
    let before = (range(&config.id), launcher.outbound(&config.id).is_ok(), launcher.disks().unwrap().len());
    let half = bench.config(&["sh", "-c", "printf 'half a '; sleep 1; read x < /tmp/go; echo line; exit 4"]);
    let half = with(&half, &[]);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        bench.directory.path().join("layer/tmp/go"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    launcher.start(&half).unwrap();
    std::thread::sleep(Duration::from_millis(100));

    launcher.replace(&machine.program("next")).unwrap();

    assert_eq!((range(&config.id), launcher.outbound(&config.id).is_ok(), launcher.disks().unwrap().len()), before);
    launcher.network(&config.id).unwrap();
    let exit = launcher.wait(&gone.id).unwrap();
    assert_eq!((exit.status, log_text(&gone).as_str()), (ExitStatus::Code(3), "last words"));
    launcher.remove(&gone.id).unwrap();
    // Its limits can still be changed, hold, and what it uses is known.
    let resources = serde_json::from_value(json!({"memory": {"limit": 32 << 20}})).unwrap();
    launcher.update(&config.id, &resources).unwrap();
    let hungry = script("head -c 100m /dev/zero | { sleep 0; dd bs=100M count=1 iflag=fullblock of=/dev/null; }");
    assert_ne!(run(bench, &config.id, &hungry).0, ExitStatus::Code(0));
    assert!(launcher.usage(&config.id).unwrap().oom_kills > 0);
    let fresh = bench.config(&["sleep", "1000"]);
    launcher.start(&fresh).unwrap();
    assert_ne!(range(&fresh.id), range(&config.id), "no two sandboxes have a host id in common");
    let user = ExecConfig { user: Some("app".into()), ..script("id -u; touch /tmp/x && stat -c %u /tmp/x") };
    assert_eq!(run(bench, &config.id, &user).1, "1000\n1000\n");
    if has_disk {
        let full = run(bench, &config.id, &script("dd if=/dev/zero of=/home/big bs=64k 2>&1; echo status=$?")).1;
        assert!(full.contains("No space left") && full.contains("status=1"), "{full}");
        let other = SandboxConfig { root: config.root.clone(), ..bench.config(&["sh", "-c", "exit 6"]) };
        launcher.start(&other).unwrap();
        assert_eq!(launcher.wait(&other.id).unwrap().status, ExitStatus::Code(6), "disks are made again");
        launcher.remove(&other.id).unwrap();
    }
    let pid = launcher.list().unwrap().into_iter().find(|status| status.id == half.id).unwrap().started.pid;
    fs::write(format!("/proc/{pid}/root/tmp/go"), "x\n").unwrap();
    assert_eq!(launcher.wait(&half.id).unwrap().status, ExitStatus::Code(4));
    assert_eq!(log_text(&half), "half a line", "what was read of a line is put together with the rest");
    for id in [&config.id, &fresh.id] {
        launcher.kill_all(id).unwrap();
        launcher.wait(id).unwrap();
        launcher.remove(id).unwrap();
    }
    launcher.remove(&half.id).unwrap();
    launcher.shutdown().unwrap();
    assert!(own_directory(&config).exists());
}

#[test]
fn what_is_under_way_is_finished_by_the_next_program() {
    let Some(machine) = Machine::new() else { return };
    let (bench, launcher) = (&machine.bench, &machine.bench.launcher);
    let config = as_instance(&bench.config(&["sleep", "1000"]));
    launcher.start(&config).unwrap();
    let shell = ExecConfig { terminal: Some(WindowSize { rows: 30, columns: 100 }), ..command(&["sh", "-i"]) };
    let mut exec = launcher.exec_in_terminal(&config.id, &shell).unwrap();
    let terminal = exec.take_terminal().unwrap();
    let waiter = {
        let (launcher, id) = (launcher.clone(), config.id.clone());
        std::thread::spawn(move || launcher.wait(&id))
    };
    // A request of which a half has come.
    let mut slow = std::os::unix::net::UnixStream::connect(&machine.socket).unwrap();
    let request = b"\x06\0\0\0\"List\"";
    slow.write_all(&request[..7]).unwrap();
    let runtime = OciRuntime::find("runc", Path::new("runc"), &[], None).ok();
    let other = runtime.map(|runtime| {
        let config = SandboxConfig { runtime: Some(runtime), ..as_instance(&bench.config(&["sleep", "1000"])) };
        launcher.start(&config).unwrap();
        config
    });
    let other_held = other.as_ref().map(|other| start(bench, &other.id, &script("read x; exit 8")).unwrap());
    std::thread::sleep(Duration::from_millis(100));

    launcher.replace(&machine.program("next")).unwrap();

    slow.write_all(&request[7..]).unwrap();
    let mut answer = [0; 4];
    slow.read_exact(&mut answer).unwrap();
    terminal.write(b"echo still $((40 + 2))\n").unwrap();
    read_until(&terminal, "still 42");
    exec.signal(libc::SIGKILL).unwrap();
    assert_eq!(exec.wait().unwrap(), ExitStatus::Signal(libc::SIGKILL));
    if let (Some(other), Some(held)) = (other, other_held) {
        assert_eq!(run(bench, &other.id, &script("echo more; exit 2")).1, "more\n");
        drop(held.stdin);
        assert_eq!(held.exec.wait().unwrap(), ExitStatus::Code(8));
        launcher.kill(&other.id, libc::SIGTERM).unwrap();
        assert_eq!(launcher.wait(&other.id).unwrap().status.shell_code(), 143);
        launcher.remove(&other.id).unwrap();
    }
    // What was said right behind the last word to the program before is heard by the next one.
    let message = |text: &str| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let succeed = json!({"Succeed": {"program": machine.program("after-next")}}).to_string();
    let mut hasty = std::os::unix::net::UnixStream::connect(&machine.socket).unwrap();
    hasty.write_all(&[message(&succeed), message("\"List\"")].concat()).unwrap();
    let mut answers = Vec::new();
    while !String::from_utf8_lossy(&answers).contains("\"List\"") {
        let mut buffer = [0; 4096];
        let count = hasty.read(&mut buffer).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&answers));
        answers.extend_from_slice(&buffer[..count]);
    }
    assert!(machine.runs(&machine.bench.directory.path().join("after-next")));
    launcher.kill_all(&config.id).unwrap();
    assert_eq!(waiter.join().unwrap().unwrap().status, ExitStatus::Signal(libc::SIGKILL));
    launcher.remove(&config.id).unwrap();
    launcher.shutdown().unwrap();
}

#[test]
fn containers_of_oci_runtimes_go_on_and_start_and_end_meanwhile() {
    let Some(machine) = Machine::new() else { return };
    for runtime in support::oci::installed() {
        replaced_under_load(&machine, &runtime);
    }
    machine.bench.launcher.shutdown().unwrap();
}

/// Starts, ends and commands of `runtime`'s containers go on while the launcher is replaced, and one lives through it all.
fn replaced_under_load(machine: &Machine, runtime: &OciRuntime) {
    let (bench, launcher, name) = (&machine.bench, &machine.bench.launcher, runtime.name());
    let counter = as_instance(&support::oci::config(bench, runtime, COUNTER));
    let started = launcher.start(&counter).unwrap();
    let quiet = support::oci::running(bench, runtime);
    let held = start(bench, &quiet.id, &script("read line; exit 5")).unwrap();
    let (is_over, cycles, commands) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let config = support::oci::config(bench, runtime, "echo begun; echo done; exit 42");
                let (exit, text) = bench.run_config(&config);
                assert_eq!((exit.status, text.as_str()), (ExitStatus::Code(42), "begun\ndone"), "{name}");
                cycles.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let said = run(bench, &quiet.id, &script("echo out; exit 9"));
                assert_eq!(said, (ExitStatus::Code(9), "out\n".to_owned(), String::new()), "{name}");
                commands.fetch_add(1, Ordering::Relaxed);
            }
        });
        let replaced = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 1..=2 {
                launcher.replace(&machine.program(&format!("{name}-{round}"))).unwrap();
                let before = (cycles.load(Ordering::Relaxed), commands.load(Ordering::Relaxed));
                until("work goes on", || {
                    cycles.load(Ordering::Relaxed) > before.0 + 1 && commands.load(Ordering::Relaxed) > before.1 + 1
                });
            }
        }));
        is_over.store(true, Ordering::Relaxed);
        replaced.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    drop(held.stdin);
    assert_eq!(held.exec.wait().unwrap(), ExitStatus::Code(5), "{name}: a command that waited goes on");
    let known = launcher.list().unwrap().into_iter().find(|status| status.id == counter.id).unwrap();
    assert_eq!((known.started, known.state), (started, State::Running), "{name}");
    launcher.kill(&counter.id, libc::SIGTERM).unwrap();
    assert_eq!(launcher.wait(&counter.id).unwrap().status, ExitStatus::Code(7), "{name}");
    assert!(log_text(&counter).lines().count() > 10, "{name}");
    assert_counted(&log_text(&counter));
    launcher.remove(&counter.id).unwrap();
    support::oci::end(bench, &quiet);
}

#[test]
fn a_program_that_cannot_take_over_does_not() {
    let Some(machine) = Machine::new() else { return };
    let (bench, launcher) = (&machine.bench, &machine.bench.launcher);
    let counter = as_instance(&bench.config(&["sh", "-c", COUNTER]));
    launcher.start(&counter).unwrap();
    let before = machine.descriptors();
    let text = bench.directory.path().join("text");
    fs::write(&text, "no program").unwrap();
    let later = "echo 'cfc-launcher: the launcher is of cfc 0.1.0 and keeps its state in version 1' >&2; exit 1";
    let fails = format!("CFC_FAIL_POINT=launcher.succession.checked:1:error exec {LAUNCHER} \"$@\"");
    for (program, words) in [
        (bench.directory.path().join("nothing"), vec!["cannot be executed", "No such file"]),
        (text, vec!["cannot be executed"]),
        (PathBuf::from("/bin/false"), vec!["exit status: 1"]),
        (PathBuf::from("/bin/true"), vec!["exit status: 0"]),
        (machine.script("later", later), vec!["keeps its state in version 1"]),
        (machine.script("broken", &fails), vec!["Input/output error"]),
        (machine.script("hangs", "exec sleep 1000"), vec!["did not say within 10 s"]),
    ] {
        let error = launcher.replace(&program).expect_err("it is refused").to_string();
        let is_named = error.contains("goes on as it is") && words.iter().all(|word| error.contains(word));
        assert!(is_named, "{}: {error}", program.display());
        assert!(machine.runs(Path::new(LAUNCHER)));
    }
    let program = machine.program("next");
    assert_eq!(bench.run("exit 4").0.status, ExitStatus::Code(4));
    until("nothing is held", || machine.descriptors() <= before + 20);
    launcher.replace(&program).unwrap();
    launcher.kill(&counter.id, libc::SIGTERM).unwrap();
    assert_eq!(launcher.wait(&counter.id).unwrap().status, ExitStatus::Code(7));
    assert_counted(&log_text(&counter));
    launcher.shutdown().unwrap();
}

/// When everything is ready for the next program, and then it cannot be executed.
#[test]
fn a_launcher_that_cannot_execute_its_next_program_goes_on() {
    let Some(machine) = Machine::new() else { return };
    let socket = machine.bench.directory.path().join("other");
    let first = format!("CFC_FAIL_POINT=launcher.succession.executed:1:error exec -a cfc-launcher {LAUNCHER} \"$@\"");
    let program = machine.script("first", &first);
    let launcher = Launcher::connect_or_start(&program, &socket).unwrap();
    let counter = as_instance(&machine.bench.config(&["sh", "-c", COUNTER]));
    launcher.start(&counter).unwrap();
    let next = machine.program("next");
    let error = launcher.replace(&next).expect_err("it cannot").to_string();
    assert!(error.contains("execute") && error.contains("Input/output error"), "{error}");
    let config = machine.bench.config(&["sh", "-c", "ls /proc/self/fd | wc -l; exit 3"]);
    launcher.start(&config).unwrap();
    assert_eq!(launcher.wait(&config.id).unwrap().status, ExitStatus::Code(3));
    assert_eq!(log_text(&config), "4", "nothing of the launcher's is open in what it starts");
    launcher.replace(&next).expect("the second time it can");
    launcher.kill(&counter.id, libc::SIGTERM).unwrap();
    assert_eq!(launcher.wait(&counter.id).unwrap().status, ExitStatus::Code(7));
    assert_counted(&log_text(&counter));
    launcher.shutdown().unwrap();
    machine.bench.launcher.shutdown().unwrap();
}

#[test]
fn sandboxes_die_with_the_launcher_also_when_that_is_another_program() {
    let Some(machine) = Machine::new() else { return };
    let launcher = &machine.bench.launcher;
    let config = machine.bench.config(&["sleep", "1000"]);
    let started = launcher.start(&config).unwrap();
    let parent = |pid: i32| field(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), "PPid").to_owned();
    launcher.replace(&machine.program("next")).unwrap();
    assert_eq!(parent(started.pid), machine.pid().to_string());
    let pid = rustix::process::Pid::from_raw(machine.pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until("it is gone with its launcher", || !Path::new(&format!("/proc/{}", started.pid)).exists());
    cfc_sandbox::sweep(&machine.socket).unwrap();
}
