//! Secrets of a Worker, with the real workerd: it has them, and nobody else is told.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use crate::starter::{WORKER, deployed_from, ready};
use crate::support::{Home, Platform, has_program};

/// A Worker that tells what it is asked for.
const SOURCE: &str = "\
export class MyContainer {}
export default {
  async fetch(request, env) {
    const { 'session-id': name } = await request.json();
    return new Response(String(env[name]));
  },
};
";

fn deployed(home: &Home) -> Option<Platform<'_>> {
    ready().then(|| deployed_from(home, SOURCE))
}

fn value_of(platform: &Platform, name: &str) -> String {
    let (status, body) = platform.ask(WORKER, name);
    assert_eq!(status, 200, "{body}\n{}", platform.log());
    body
}

/// Runs `cfc secret` in the project's directory, with `input` on its standard input.
fn secret(home: &Home, arguments: &[&str], input: &str) -> Output {
    let mut command = home.cfc();
    command.arg("secret").args(arguments).current_dir(home.path(WORKER));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().expect("cfc runs");
    process.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("is read");
    process.wait_with_output().expect("it ends")
}

fn must(home: &Home, arguments: &[&str], input: &str) -> String {
    let output = secret(home, arguments, input);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cfc secret {arguments:?}: {said}");
    let all = format!("{}{said}", String::from_utf8_lossy(&output.stdout));
    assert!(input.trim().is_empty() || !all.contains(input.trim()), "{all}");
    all
}

/// The files below a directory in which the text stands.
fn files_with(directory: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type().expect("a type") {
            kind if kind.is_dir() => found.extend(files_with(&path, text)),
            kind if kind.is_file() => {
                let bytes = std::fs::read(&path).unwrap_or_default();
                if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                    found.push(path);
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn a_worker_has_its_secrets_and_nobody_else_is_told() {
    let home = Home::new();
    let Some(platform) = deployed(&home) else { return };
    assert_eq!(value_of(&platform, "KEY"), "undefined");
    must(&home, &["put", "KEY"], "first-v4lue\n");
    assert_eq!(value_of(&platform, "KEY"), "first-v4lue");
    must(&home, &["put", "KEY", "--name", WORKER], "second-v4lue\n");
    assert_eq!(value_of(&platform, "KEY"), "second-v4lue");
    assert_eq!(must(&home, &["list"], ""), "KEY\n");

    // A crash and a deployment leave it.
    platform.kill();
    let platform = Platform::start(&home);
    assert_eq!(value_of(&platform, "KEY"), "second-v4lue");
    home.must(&["deploy", &home.path(WORKER).display().to_string()]);
    assert_eq!(value_of(&platform, "KEY"), "second-v4lue");

    // The one before is nowhere, this one where workerd needs it and where it is kept, for the owner alone.
    assert_eq!(files_with(&home.data(), "first-v4lue"), [] as [PathBuf; 0]);
    let files = files_with(&home.data(), "second-v4lue");
    let shown: Vec<_> = files.iter().map(|path| path.strip_prefix(home.data()).expect("below")).collect();
    assert_eq!(files.len(), 2, "{shown:?}");
    assert!(shown.iter().any(|path| *path == Path::new("workers").join(WORKER).join("config.bin")), "{shown:?}");
    assert!(shown.iter().any(|path| path.starts_with(Path::new("secrets").join(WORKER))), "{shown:?}");
    for file in &files {
        assert_eq!(file.metadata().expect("is there").permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    assert!(!platform.log().contains("v4lue"), "{}", platform.log());

    let said = home.must_fail(&["secret", "delete", "KEY", "--name", WORKER]);
    assert!(said.contains("hint: add `--force`"), "{said}");
    must(&home, &["delete", "KEY", "--force"], "");
    assert_eq!(value_of(&platform, "KEY"), "undefined");
    assert_eq!(files_with(&home.data(), "v4lue"), [] as [PathBuf; 0]);
    let said = home.must_fail(&["secret", "delete", "KEY", "--force", "--name", WORKER]);
    assert!(said.contains(&format!("Worker `{WORKER}` has no secret `KEY`")), "{said}");

    must(&home, &["put", "KEY"], "third-v4lue");
    home.must(&["delete", WORKER, "--force"]);
    assert_eq!(files_with(&home.data(), "v4lue"), [] as [PathBuf; 0]);
    platform.stop();
}

#[test]
fn many_secrets_are_one_version_and_a_variable_of_the_same_name_is_refused() {
    let home = Home::new();
    let Some(platform) = deployed(&home) else { return };
    let file = home.write("many.env", "ONE=1\nTWO=\"2 lines\\nhere\"\n");
    must(&home, &["bulk", &file.display().to_string()], "");
    must(&home, &["bulk"], "{\"THREE\": \"3\"}");
    let values = ["ONE", "TWO", "THREE"].map(|name| value_of(&platform, name));
    assert_eq!(values, ["1", "2 lines\nhere", "3"]);
    let output = secret(&home, &["bulk"], "FOUR=4\nh1dden\n");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("line 2 of the standard input"), "{said}");
    assert!(!said.contains("h1dden"), "{said}");

    let config = home.path(WORKER).join("wrangler.jsonc");
    let text = std::fs::read_to_string(&config).expect("readable");
    std::fs::write(&config, text.replacen('{', "{\n  \"vars\": {\"ONE\": \"a variable\"},", 1)).expect("writable");
    let said = home.must_fail(&["deploy", &home.path(WORKER).display().to_string()]);
    assert!(said.contains("Binding name 'ONE' already in use. Please use a different name and try again."), "{said}");
    assert_eq!(value_of(&platform, "ONE"), "1");
    must(&home, &["delete", "ONE", "--force"], "");
    home.must(&["deploy", &home.path(WORKER).display().to_string()]);
    assert_eq!(value_of(&platform, "ONE"), "a variable");
    let output = secret(&home, &["put", "ONE"], "1");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Binding name 'ONE' already in use"));
    platform.stop();
}

/// Somebody at a terminal who is asked for a value, types `KEYS`, and looks at the terminal.
const PERSON: &str = r#"
import os, pty, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
def echoes(): return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)
shown = b""
while b"Value of `KEY`: " not in shown: shown += os.read(terminal, 4096)
while echoes(): pass
os.write(terminal, os.environ["KEYS"].encode())
try:
    while part := os.read(terminal, 4096): shown += part
except OSError: pass
_, status = os.waitpid(pid, 0)
print("code", os.waitstatus_to_exitcode(status), "echo", echoes(), "shown", shown)
"#;

#[test]
fn a_value_is_asked_for_and_not_shown_and_the_terminal_is_put_back() {
    let home = Home::new();
    if !has_program("python3") {
        return;
    }
    let Some(platform) = deployed(&home) else { return };
    let person = |keys: &str| {
        let mut command = home.at_terminal(PERSON, &["secret", "put", "KEY"]);
        command.env("KEYS", keys);
        let output = command.current_dir(home.path(WORKER)).output().expect("python runs");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let said = person("\x03");
    assert!(said.contains("code 130 echo True"), "{said}");
    assert_eq!(value_of(&platform, "KEY"), "undefined");
    let said = person("hidden\r");
    assert!(said.contains("code 0 echo True") && !said.contains("hidden"), "{said}");
    assert_eq!(value_of(&platform, "KEY"), "hidden");
}
