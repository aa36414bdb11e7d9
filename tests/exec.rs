//! `cfc containers exec` against a running platform, through pipes and through a real pseudo-terminal.

use std::io::Write;
use std::process::{Output, Stdio};

use crate::support::{Home, Platform, busybox, can_sandbox, has_program, tools, wait_for};

const WORKER: &str = "container-starter";
const APPLICATION: &str = "container-starter-mycontainer";

/// A platform with one instance of the starter, which here has busybox beside its server; and the instance's name.
fn with_instance(test: impl FnOnce(&Home, &str)) {
    with_instance_by("cfc", test);
}

/// As [`with_instance`], with the instance run by `runtime`.
fn with_instance_by(runtime: &str, test: impl FnOnce(&Home, &str)) {
    let (true, true, Some(busybox)) = (can_sandbox(), tools().is_some(), busybox()) else { return };
    let home = Home::new();
    home.write("config.toml", &format!("runtime = \"{runtime}\"\n"));
    let project = home.project_with_shell(WORKER, &busybox, "");
    let platform = Platform::start(&home);
    home.must(&["deploy", &project.display().to_string()]);
    let (status, body) = platform.ask(WORKER, "who-runs-commands");
    assert_eq!(status, 200, "{body}");
    let instances = home.must(&["containers", "instances", APPLICATION, "--json"]);
    let instances: serde_json::Value = serde_json::from_str(&instances).expect("JSON");
    let name = instances[0]["name"].as_str().unwrap_or_else(|| panic!("no name in {instances}"));
    test(&home, name);
    platform.stop();
}

fn exec(home: &Home, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = home.cfc();
    command.args(["containers", "exec"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("cfc runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A command that does not read may have ended before.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().expect("cfc ends")
}

fn check(home: &Home, arguments: &[&str], input: &[u8], expected: (i32, &str, &str)) {
    let output = exec(home, arguments, input);
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert_eq!((output.status.code(), stdout.as_str(), stderr.as_str()), (Some(expected.0), expected.1, expected.2));
}

/// A command that is not there exits with 127, one that is no program with 126, each with a word, as in a shell.
fn check_not_executed(home: &Home, name: &str) {
    for (command, code, text) in [
        ("/no/such/command", 127, "command `/no/such/command` not found"),
        ("no-such-command", 127, "command `no-such-command` not found"),
        ("/etc/hosts", 126, "command `/etc/hosts` cannot be executed"),
    ] {
        let output = exec(home, &[name, "--", command], b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(text), "{said}");
    }
}

#[test]
fn a_command_runs_in_an_instance_with_pipes() {
    with_instance(|home, name| {
        let script = |text: &'static str| ["--", "/bin/sh", "-c", text];
        let with = |more: &[&'static str], text| [more, &[name][..], &script(text)].concat();
        check(home, &with(&[], "echo out; echo err >&2; exit 3"), b"", (3, "out\n", "err\n"));
        check(home, &with(&[], "kill -9 $$"), b"", (137, "", ""));
        check(home, &with(&["-i"], "cat; echo end"), b"typed\n", (0, "typed\nend\n", ""));
        check(home, &with(&[], "cat"), b"not passed on", (0, "", ""));
        let options = ["-u", "0:7", "-w", "/bin", "-e", "A=x y", "-e", "NO_COLOR"];
        check(
            home,
            &with(&options, "busybox id -u; busybox id -g; pwd; echo $A $NO_COLOR"),
            b"",
            (0, "0\n7\n/bin\nx y 1\n", ""),
        );
        check(home, &[&name[..12], "/bin/busybox", "echo", "-n", "by prefix"], b"", (0, "by prefix", ""));
        let flood = exec(home, &with(&[], "busybox dd if=/dev/zero bs=1k count=20000 2>/dev/null"), b"");
        assert_eq!((flood.status.code(), flood.stdout.len()), (Some(0), 20_480_000));

        let refused = |arguments: &[&str]| home.must_fail(&[&["containers", "exec"][..], arguments].concat());
        let said = refused(&["nothing", "--", "true"]);
        assert!(said.contains("there is no instance `nothing`") && said.contains("hint:"), "{said}");
        check_not_executed(home, name);
        let said = refused(&["-u", "ada", name, "--", "/bin/sh"]);
        assert!(said.contains("no user `ada`"), "{said}");
        let said = refused(&["-it", name, "--", "/bin/sh"]);
        assert!(said.contains("the input is no terminal"), "{said}");

        // A client that is gone takes its command along.
        let running =
            || !exec(home, &with(&[], "busybox grep -ls '432[1]' /proc/[0-9]*/cmdline"), b"").stdout.is_empty();
        let mut client = home.cfc();
        let client = client.args(["containers", "exec", name, "--", "/bin/busybox", "sleep", "4321"]);
        let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("cfc runs");
        wait_for("the command to run", || running().then_some(()));
        client.kill().expect("is killed");
        client.wait().expect("ends");
        wait_for("the command to end", || (!running()).then_some(()));
    });
}

#[test]
fn a_command_runs_in_an_instance_of_each_runtime() {
    for runtime in ["runc", "crun", "runsc"].into_iter().filter(|runtime| has_program(runtime)) {
        with_instance_by(runtime, |home, name| {
            let script = |text: &'static str| ["--", "/bin/sh", "-c", text];
            let with = |more: &[&'static str], text| [more, &[name][..], &script(text)].concat();
            check(home, &with(&[], "echo out; echo err >&2; exit 3"), b"", (3, "out\n", "err\n"));
            check(home, &with(&[], "kill -9 $$"), b"", (137, "", ""));
            check(home, &with(&["-i"], "cat; echo end"), b"typed\n", (0, "typed\nend\n", ""));
            let options = ["-u", "0:7", "-w", "/bin", "-e", "A=x y"];
            let show = "busybox id -u; busybox id -g; pwd; echo $A";
            check(home, &with(&options, show), b"", (0, "0\n7\n/bin\nx y\n", ""));
            check_not_executed(home, name);
            if has_program("python3") {
                converse(home, name);
            }
        });
    }
}

/// Plays a person at a terminal: says lines when it has seen others, resizes, and ends with the command's exit code.
const PERSON: &str = r#"
import fcntl, os, pty, signal, struct, sys, termios, time
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
def size(rows, columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
size(31, 97)
shown = b""
def until(text):
    global shown
    deadline = time.time() + 60
    while text not in shown:
        if time.time() > deadline: sys.exit("never saw %r, only %r" % (text, shown))
        try: part = os.read(terminal, 4096)
        except OSError: part = b""
        if not part: sys.exit("it ended before %r, after %r" % (text, shown))
        shown += part
    shown = shown.split(text, 1)[1]
def say(text): os.write(terminal, text)
until(b"ready")
size(50, 132)
os.kill(pid, signal.SIGWINCH)
until(b"size 50 132")
say(b"\x03")
until(b"interrupted")
say(b"a line\r")
until(b"<a line>")
_, status = os.waitpid(pid, 0)
attributes = termios.tcgetattr(terminal)
assert attributes[3] & termios.ICANON and attributes[3] & termios.ECHO, "the terminal was not put back"
print("code", os.waitstatus_to_exitcode(status))
"#;
const IN_TERMINAL: &str = "trap 'echo interrupted' INT; trap 'echo size $(busybox stty size)' WINCH; \
    echo rea''dy; while ! read line; do :; done; echo \"<$line>\"; test -t 0 && test -t 1 && test -t 2 && exit 9";

#[test]
fn a_terminal_is_passed_on_key_by_key() {
    if !has_program("python3") {
        return;
    }
    with_instance(converse);
}

fn converse(home: &Home, name: &str) {
    converse_with(home, &["containers", "exec", "-it", name, "--"]);
}

/// A person talks to `IN_TERMINAL`, which a command of cfc's runs in a terminal.
pub fn converse_with(home: &Home, arguments: &[&str]) {
    let mut person = home.at_terminal(PERSON, &[arguments, &["/bin/sh", "-c", IN_TERMINAL]].concat());
    let output = person.output().expect("python runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("code 9"), "{said}");
}
