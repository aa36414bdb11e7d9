//! Further processes of a running sandbox: who they are, how they end, what they leave. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use cfc_sandbox::{ErrorKind, ExecConfig, ExitStatus, WindowSize};
use serde_json::json;
use support::exec::{command, output, read_until, refused, run, running, script, start, until};
use support::{Bench, bench, field, with};

const SIZE: WindowSize = WindowSize { rows: 30, columns: 100 };

#[test]
fn a_command_is_who_and_where_the_sandboxs_own_process_is() {
    let Some(bench) = bench() else { return };
    let config = running(&bench);
    let probe = "for n in user mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done; \
                 grep -v -e ^Sig -e ^Pid -e ^PPid -e ^TracerPid -e ^Name -e ^Vm -e ^Rss -e _switches -e ^State -e ^NS -e ^Tgid \
                 -e ^Ngid -e ^Hugetlb -e ^FDSize -e ^Mems -e ^Cpus -e ^Shd /proc/self/status; \
                 cat /proc/self/limits /proc/self/oom_score_adj /proc/self/cgroup; pwd; hostname; umask";
    let own = bench.config(&["sh", "-c", probe]);
    let (_, expected) = bench.run_config(&own);
    let namespaces = |text: &str| text.lines().take(7).map(str::to_owned).collect::<Vec<_>>();
    let rest = |text: &str| text.lines().skip(7).filter(|line| !line.contains(":/")).collect::<Vec<_>>().join("\n");
    let actual = output(&bench, &config.id, &script(probe));
    let (_, inside, _) =
        run(&bench, &config.id, &script("for n in user mnt pid net ipc uts cgroup; do readlink /proc/1/ns/$n; done"));
    // Process 1 is closed to everybody, so it is asked from here, where root may look.
    let pid = bench.launcher.list().unwrap()[0].started.pid;
    let of_first: Vec<String> = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"]
        .iter()
        .map(|name| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(inside, "", "an init shows nothing of itself");
    assert_eq!(namespaces(&actual), of_first);
    let own_name = |text: &str| rest(text).replace(&config.id[..], "ID").replace(&own.id[..], "ID");
    assert_eq!(own_name(&actual), own_name(&expected));
    let mut members: Vec<String> = Vec::new();
    let held = start(&bench, &config.id, &command(&["sleep", "100"])).unwrap();
    for line in fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap().lines() {
        members.push(line.to_owned());
    }
    let child = host_pid_of(&bench, &config.id, held.exec.pid());
    let of_child = fs::read_to_string(format!("/proc/{child}/cgroup")).unwrap();
    assert_eq!(of_child.lines().collect::<Vec<_>>(), members, "it is in every cgroup of its sandbox");
}

/// The host's number of the process that a sandbox numbers `inside`.
fn host_pid_of(bench: &Bench, id: &str, inside: u32) -> i32 {
    let first = bench.launcher.list().unwrap().into_iter().find(|status| status.id == id).unwrap().started.pid;
    let namespace = fs::read_link(format!("/proc/{first}/ns/pid")).unwrap();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_it = |pid: &i32| {
        fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link == namespace)
            && fs::read_to_string(format!("/proc/{pid}/status"))
                .is_ok_and(|text| field(&text, "NSpid").ends_with(&format!("\t{inside}")))
    };
    pids.into_iter().find(is_it).unwrap_or_else(|| panic!("no process {inside} in {id}"))
}

#[test]
fn exit_codes_signals_and_pids_are_exact() {
    let Some(bench) = bench() else { return };
    let id = running(&bench).id;
    for code in [0, 1, 42, 255] {
        assert_eq!(run(&bench, &id, &script(&format!("exit {code}"))).0, ExitStatus::Code(code));
    }
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGUSR1, libc::SIGSEGV] {
        let piped = start(&bench, &id, &command(&["sleep", "100"])).unwrap();
        piped.exec.signal(signal).unwrap();
        let exit = piped.exec.wait().unwrap();
        assert_eq!((exit, exit.shell_code()), (ExitStatus::Signal(signal), 128 + signal));
        piped.exec.signal(signal).expect("a signal to what has ended is fine");
    }
    let mut piped = start(&bench, &id, &script("echo $$; read line; echo $line")).unwrap();
    piped.stdin.write_all(b"typed\n").unwrap();
    let mut text = String::new();
    piped.stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, format!("{}\ntyped\n", piped.exec.pid()), "the process id is the one inside");
}

#[test]
fn a_command_that_cannot_run_says_why() {
    let Some(bench) = bench() else { return };
    let id = running(&bench).id;
    for (word, code, text) in [
        ("no-such-command", Some(127), "not found"),
        ("/no/such/file", Some(127), "not found"),
        ("/etc/no-interpreter", Some(127), "interpreter"),
        ("/etc/not-executable", Some(126), "cannot be executed"),
        ("", None, "no command"),
    ] {
        let error = refused(&bench, &id, &command(&[word]));
        assert_eq!(error.exit_code(), code, "{word}: {error}");
        assert!(error.to_string().contains(text), "{word}: {error}");
    }
    for (config, text) in [
        (ExecConfig { cwd: Some("/no/such/place".into()), ..command(&["true"]) }, "`/no/such/place`: No such file"),
        (ExecConfig { cwd: Some("relative".into()), ..command(&["true"]) }, "absolute path"),
        (ExecConfig { cwd: Some("/a\0b".into()), ..command(&["true"]) }, "absolute path"),
        (ExecConfig { environment: vec!["NOVALUE".into()], ..command(&["true"]) }, "`KEY=value`"),
        (ExecConfig { environment: vec!["=x".into()], ..command(&["true"]) }, "`KEY=value`"),
        (ExecConfig { environment: vec!["A=b\0c".into()], ..command(&["true"]) }, "zero byte"),
        (ExecConfig { user: Some("nobody-here".into()), ..command(&["true"]) }, "no user `nobody-here`"),
        (ExecConfig { user: Some("0\0".into()), ..command(&["true"]) }, "zero byte"),
        (command(&["echo", "a\0b"]), "zero byte"),
    ] {
        let error = refused(&bench, &id, &config);
        assert!(error.to_string().contains(text), "{config:?}: {error}");
    }
    let none = bench.launcher.exec("no-such-sandbox", &command(&["true"]), null()).expect_err("refuses");
    assert_eq!(none.kind(), &ErrorKind::NotFound);
    assert_eq!(output(&bench, &id, &command(&["echo", "well"])), "well\n", "and the next one works");
}

fn null() -> [OwnedFd; 3] {
    [(); 3].map(|()| File::options().read(true).write(true).open("/dev/null").unwrap().into())
}

#[test]
fn environment_user_and_directory_are_as_asked() {
    let Some(bench) = bench() else { return };
    let config = with(
        &bench.config(&["sleep", "1000"]),
        &[("/process/env", json!(["PATH=/bin", "A=1", "B=2", "HOME=/root"])), ("/process/cwd", json!("/home"))],
    );
    bench.launcher.start(&config).unwrap();
    let id = &config.id;
    let show = "echo $A $B $C $HOME; id -u; id -g; id -G; pwd";
    assert_eq!(output(&bench, id, &script(show)), "1 2 /root\n0\n0\n0\n/home\n");
    let asked = ExecConfig {
        environment: vec!["B=x=y".into(), "C=one\ntwo".into(), "B=3".into()],
        user: Some("app".into()),
        cwd: Some("/tmp".into()),
        ..script(show)
    };
    assert_eq!(output(&bench, id, &asked), "1 3 one two /home\n1000\n1000\n1000\n/tmp\n");
    let user = |user: &str| ExecConfig { user: Some(user.into()), ..script("id -u; id -g; echo $HOME") };
    for (name, expected) in [
        ("1000:7", "1000\n7\n/home\n"),
        ("1000", "1000\n1000\n/home\n"),
        ("4242", "4242\n0\n/\n"),
        ("4242:4243", "4242\n4243\n/\n"),
        ("root", "0\n0\n/root\n"),
        ("", "0\n0\n/root\n"),
    ] {
        assert_eq!(output(&bench, id, &user(name)), expected, "{name}");
    }
    let error = refused(&bench, id, &user("root:docker"));
    assert!(error.to_string().contains("no group `docker`"), "{error}");
    for outside in ["65536", "70000:0", "0:70000", "4294967295", "0:4294967295", "4294967296", "-1"] {
        refused(&bench, id, &user(outside));
    }
    let home = ExecConfig { environment: vec!["HOME=/mine".into()], ..user("app") };
    assert_eq!(output(&bench, id, &home), "1000\n1000\n/mine\n");
    let writes =
        ExecConfig { user: Some("app".into()), ..script("echo again > /dev/stdout; grep Cap /proc/self/status") };
    let text = output(&bench, id, &writes);
    assert!(text.starts_with("again\n"), "any user can open its own output: {text}");
    assert_eq!(field(&text, "CapEff"), "0000000000000000");
    assert_eq!(field(&text, "CapPrm"), "0000000000000000");
}

#[test]
fn a_sandbox_without_a_shell_takes_commands_too() {
    let Some(bench) = bench() else { return };
    let layer = bench.directory.path().join("scratch");
    fs::create_dir_all(&layer).unwrap();
    fs::copy("/bin/busybox", layer.join("busybox")).unwrap();
    let mut config = bench.config(&["/busybox", "sleep", "1000"]);
    if let cfc_sandbox::Root::Overlay { lowers, .. } = &mut config.root {
        *lowers = vec![layer];
    }
    bench.launcher.start(&config).unwrap();
    assert_eq!(output(&bench, &config.id, &command(&["/busybox", "echo", "hello"])), "hello\n");
    assert_eq!(refused(&bench, &config.id, &command(&["sh"])).exit_code(), Some(127));
}

#[test]
fn a_terminal_is_the_sandboxs_own_with_size_job_control_and_end() {
    let Some(bench) = bench() else { return };
    let id = running(&bench).id;
    let shell = ExecConfig { terminal: Some(SIZE), user: Some("app".into()), ..command(&["sh", "-i"]) };
    let mut exec = bench.launcher.exec_in_terminal(&id, &shell).unwrap();
    let terminal = exec.take_terminal().unwrap();
    let say = |text: &str| assert_eq!(terminal.write(text.as_bytes()).unwrap(), text.len());
    say("stty size; tty; echo t=$TERM\n");
    let shown = read_until(&terminal, "/dev/pts/0\r\nt=xterm\r\n");
    assert!(shown.contains("30 100"), "{shown:?}");
    say("ls -l $(tty)\n");
    assert!(read_until(&terminal, "/dev/pts/0\r\n").contains(" app "), "it belongs to its user");
    terminal.resize(WindowSize { rows: 50, columns: 132 }).unwrap();
    say("stty size\n");
    read_until(&terminal, "50 132");
    // Ctrl-C ends the foreground job, not the shell.
    say("sh -c 'echo asleep $((1 + 1)); sleep 1000'; echo after\n");
    read_until(&terminal, "asleep 2");
    say("\x03");
    say("echo still $((40 + 2))\n");
    read_until(&terminal, "still 42");
    say("exit 7\n");
    assert_eq!(exec.wait().unwrap(), ExitStatus::Code(7));

    let watcher = script("trap 'stty size; exit 3' WINCH; echo ready; while true; do sleep 0.1; done");
    let mut exec = bench.launcher.exec_in_terminal(&id, &ExecConfig { terminal: Some(SIZE), ..watcher }).unwrap();
    let terminal = exec.take_terminal().unwrap();
    read_until(&terminal, "ready");
    terminal.resize(WindowSize { rows: 7, columns: 8 }).unwrap();
    read_until(&terminal, "7 8");
    assert_eq!(exec.wait().unwrap(), ExitStatus::Code(3), "it was told of the new size");

    let reader = ExecConfig { terminal: Some(SIZE), ..command(&["cat"]) };
    let mut exec = bench.launcher.exec_in_terminal(&id, &reader).unwrap();
    let terminal = exec.take_terminal().unwrap();
    let end = terminal.end_of_input().unwrap().expect("cat reads lines");
    terminal.write(&[end]).unwrap();
    assert_eq!(exec.wait().unwrap(), ExitStatus::Code(0));
}

#[test]
fn a_dropped_terminal_hangs_up_and_a_dropped_command_ends_with_its_group() {
    let Some(bench) = bench() else { return };
    let id = running(&bench).id;
    let count = || output(&bench, &id, &command(&["ps", "-o", "args"])).matches("sleep 777").count();
    let waits = "sleep 777 & sleep 777; true";
    let mut exec = bench.launcher.exec_in_terminal(&id, &ExecConfig { terminal: Some(SIZE), ..script(waits) }).unwrap();
    let terminal = exec.take_terminal();
    until("both sleep", || count() >= 2);
    drop((terminal, exec));
    until("they end", || count() == 0);

    let piped = start(&bench, &id, &script(waits)).unwrap();
    until("both sleep", || count() >= 2);
    drop(piped);
    until("they end", || count() == 0);

    let piped = start(&bench, &id, &script("sleep 777 & exec sleep 777")).unwrap();
    until("both sleep", || count() >= 2);
    piped.exec.signal(libc::SIGTERM).unwrap();
    assert_eq!(piped.exec.wait().unwrap(), ExitStatus::Signal(libc::SIGTERM));
    assert!(count() == 1, "what it left behind goes on, as with Docker");
    let piped = start(&bench, &id, &script("sleep 777 & exec sleep 777")).unwrap();
    until("they sleep", || count() >= 3);
    piped.exec.signal_group(libc::SIGKILL).unwrap();
    assert_eq!(piped.exec.wait().unwrap(), ExitStatus::Signal(libc::SIGKILL));
    until("its group has ended", || count() == 1);

    let released = bench.launcher.exec(&id, &command(&["sleep", "777"]), null()).unwrap();
    released.release().unwrap();
    drop(released);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(count(), 2, "a released command outlives its holder");
}

#[test]
fn a_command_ends_with_its_sandbox_and_does_not_keep_it() {
    let Some(bench) = bench() else { return };
    let config = running(&bench);
    let held: Vec<_> = (0..5).map(|_| start(&bench, &config.id, &command(&["sleep", "1000"])).unwrap()).collect();
    bench.launcher.kill_all(&config.id).unwrap();
    bench.launcher.wait(&config.id).unwrap();
    for piped in &held {
        assert_eq!(piped.exec.wait().unwrap(), ExitStatus::Signal(libc::SIGKILL));
    }
    assert_eq!(refused(&bench, &config.id, &command(&["true"])).kind(), &ErrorKind::NotRunning);
    bench.launcher.remove(&config.id).unwrap();
    assert_eq!(refused(&bench, &config.id, &command(&["true"])).kind(), &ErrorKind::NotFound);
}

#[test]
fn commands_during_the_stop_run_or_are_refused_and_never_hang() {
    let Some(bench) = bench() else { return };
    for _ in 0..10 {
        let config = running(&bench);
        let (launcher, id) = (bench.launcher.clone(), config.id.clone());
        let stopping = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            launcher.kill_all(&id).unwrap();
        });
        loop {
            match start(&bench, &config.id, &command(&["true"])) {
                Ok(piped) => {
                    let exit = piped.exec.wait().unwrap();
                    assert!(matches!(exit, ExitStatus::Code(0) | ExitStatus::Signal(libc::SIGKILL)), "{exit:?}");
                }
                Err(error) => {
                    let is_named = matches!(error.kind(), ErrorKind::NotRunning | ErrorKind::Unavailable(_));
                    assert!(is_named, "{error}");
                    break;
                }
            }
        }
        stopping.join().unwrap();
        bench.launcher.wait(&config.id).unwrap();
        bench.launcher.remove(&config.id).unwrap();
    }
}

#[test]
fn a_thousand_commands_leak_nothing() {
    let Some(bench) = bench() else { return };
    let config = running(&bench);
    let launcher = launcher_pid(&bench, &config.id);
    let descriptors = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    // Without a pipe: how far a second command of the shell is when the first looks depends on the machine's load.
    let processes = || {
        let listed = output(&bench, &config.id, &command(&["ls", "/proc"]));
        listed.lines().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).count()
    };
    run(&bench, &config.id, &command(&["true"]));
    let before = (descriptors(launcher), processes());
    for round in 0..10 {
        let held: Vec<_> = (0..100).map(|_| start(&bench, &config.id, &script("read x; exit 3")).unwrap()).collect();
        for (number, piped) in held.into_iter().enumerate() {
            match number % 3 {
                // Its holder is gone without a word.
                0 => drop(piped),
                1 => {
                    drop(piped.stdin);
                    assert_eq!(piped.exec.wait().unwrap(), ExitStatus::Code(3), "round {round}");
                }
                _ => {
                    piped.exec.signal(libc::SIGKILL).unwrap();
                    assert_eq!(piped.exec.wait().unwrap(), ExitStatus::Signal(libc::SIGKILL));
                }
            }
        }
    }
    // Before, the launcher may not yet have closed what the first command left.
    until("all is as before", || descriptors(launcher) <= before.0 && processes() == before.1);
    assert_eq!(children(launcher), [config_pid(&bench, &config.id)], "no zombie is left");
}

#[test]
fn a_flood_of_commands_at_once_is_bounded_by_name() {
    let Some(bench) = bench() else { return };
    let id = running(&bench).id;
    let mut held = Vec::new();
    let error = loop {
        match bench.launcher.exec(&id, &command(&["sleep", "1000"]), null()) {
            Ok(exec) => held.push(exec),
            Err(error) => break error,
        }
        assert!(held.len() <= 1_024);
    };
    assert!(error.to_string().contains("1024 commands run in it already"), "{error}");
    drop(held);
    until("there is room again", || bench.launcher.exec(&id, &command(&["true"]), null()).is_ok());
}

fn config_pid(bench: &Bench, id: &str) -> i32 {
    bench.launcher.list().unwrap().into_iter().find(|status| status.id == id).unwrap().started.pid
}

fn launcher_pid(bench: &Bench, id: &str) -> i32 {
    let status = fs::read_to_string(format!("/proc/{}/status", config_pid(bench, id))).unwrap();
    field(&status, "PPid").parse().unwrap()
}

fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}
