//! A helper process of a build is killed, as the kernel does when memory runs out; and what a command in a container can do
//! to the terminal of whoever runs it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::{Home, Platform, busybox, can_sandbox, has_program, skipped, tools, wait_for};

const WORKER: &str = "container-starter";
const APPLICATION: &str = "container-starter-mycontainer";

const SLOW: &str = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sleep\", \"98761\"]\n";

/// Whether the step runs.
fn sleeps() -> bool {
    let entries = std::fs::read_dir("/proc").expect("readable").flatten();
    entries.into_iter().any(|entry| {
        std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == b"/bin/busybox\0sleep\x0098761\0")
    })
}

/// Children of a process whose first word is this.
fn children(parent: u32, name: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("readable").flatten().map(|entry| entry.path());
    let is_child = |path: &PathBuf| {
        let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        let of = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        of == Some(parent) && line.split(|byte| *byte == 0).next() == Some(name.as_bytes())
    };
    entries.filter(is_child).filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect()
}

#[test]
fn a_build_whose_launcher_is_killed_says_so_and_leaves_nothing() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    std::fs::create_dir_all(home.path("context")).expect("writable");
    std::fs::copy(busybox().expect("checked before"), home.path("context/busybox")).expect("copied");
    home.write("context/Dockerfile", SLOW);
    let context = home.path("context").display().to_string();
    let mut build = home.cfc();
    build.args(["build", &context, "-t", "slow:1"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let build = build.spawn().expect("cfc runs");
    let launcher = wait_for("the step to run", || {
        let launcher = *children(build.id(), "cfc-launcher").first()?;
        sleeps().then_some(launcher)
    });
    let adjustment = std::fs::read_to_string(format!("/proc/{launcher}/oom_score_adj")).expect("it runs");
    assert!(adjustment.trim().parse::<i32>().expect("a number") < 500, "a step goes first: {adjustment}");
    let pid = rustix::process::Pid::from_raw(launcher as i32).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
    let output = build.wait_with_output().expect("cfc ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("launcher"), "{said}");
    wait_for("the step to end", || (!sleeps()).then_some(()));
    // The next build finds nothing in its way.
    home.write("context/Dockerfile", &SLOW.replace("98761", "0"));
    home.must(&["build", &context, "-t", "slow:1"]);
}

/// Types into its terminal as if somebody sat there, where the kernel lets it.
const INJECT: &str = r#"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>
int main(void) {
    const char *text = "echo INJECTED\n";
    int terminals[] = {0, 1, 2, open("/dev/tty", O_RDWR)}, done = 0;
    for (int i = 0; i < 4; i++)
        for (const char *c = text; *c; c++) done += ioctl(terminals[i], TIOCSTI, c) == 0;
    printf("tried: %d done, %s\n", done, errno == EPERM || errno == EIO ? "refused" : "other");
    return 0;
}
"#;

/// Sits at a terminal, runs `cfc containers exec -it`, and says what is typed there afterwards that nobody has typed.
const OPERATOR: &str = r#"
import os, pty, select, subprocess, sys, time
pid, terminal = pty.fork()
if pid == 0:
    code = subprocess.call(sys.argv[1:])
    typed = b""
    import tty
    tty.setcbreak(0)
    while select.select([0], [], [], 0.5)[0]:
        part = os.read(0, 4096)
        if not part: break
        typed += part
    print("code %d typed %r" % (code, typed), flush=True)
    os._exit(0)
shown = b""
while True:
    try: part = os.read(terminal, 4096)
    except OSError: break
    if not part: break
    shown += part
os.waitpid(pid, 0)
sys.stdout.buffer.write(shown)
"#;

#[test]
fn a_command_cannot_type_into_the_terminal_of_whoever_runs_it() {
    let (true, true, Some(busybox)) = (can_sandbox(), tools().is_some(), busybox()) else { return };
    if !has_program("python3") {
        return;
    }
    let home = Home::new();
    let project = home.project_with_shell(WORKER, &busybox, "\nCOPY bin/inject /bin/inject\n");
    let source = home.write("inject.c", INJECT);
    let compiled = Command::new("cc").args(["-static", "-o"]).arg(project.join("bin/inject")).arg(source).status();
    if !compiled.is_ok_and(|status| status.success()) {
        return skipped("there is no C compiler that links statically");
    }
    let ignore = project.join(".dockerignore");
    let before = std::fs::read_to_string(&ignore).expect("readable");
    std::fs::write(&ignore, before + "\n!bin/inject\n").expect("writable");
    let platform = Platform::start(&home);
    home.must(&["deploy", &project.display().to_string()]);
    assert_eq!(platform.ask(WORKER, "alice").0, 200);
    let instances = home.must(&["containers", "instances", APPLICATION, "--json"]);
    let instances: serde_json::Value = serde_json::from_str(&instances).expect("JSON");
    let id = instances[0]["id"].as_str().expect("an id");
    for command in [vec!["/bin/inject"], vec!["/bin/sh", "-c", "/bin/inject"]] {
        let cfc = home.cfc();
        let mut operator = Command::new("python3");
        operator.args(["-c", OPERATOR]).arg(cfc.get_program());
        for (key, value) in cfc.get_envs() {
            match value {
                Some(value) => operator.env(key, value),
                None => operator.env_remove(key),
            };
        }
        operator.args(["containers", "exec", "-it", "-u", "0", id, "--"]).args(&command);
        let output = operator.output().expect("python runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("tried: "), "{said}");
        assert!(said.contains("code 0 typed b''"), "{said}");
    }
    platform.stop();
}
