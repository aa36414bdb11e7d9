//! What workerd wraps around a command, and how it signals one: recognised to the letter, so that no shell is needed.
//!
//! workerd has no way to ask Docker for a signal to an exec. So it has a shell write its process id into a file and then
//! become the command, and later has another shell send the signal to the id in that file. In an image without a shell
//! neither works. Here the command is run as it is, and the signal is sent by the engine.

const SHELL: [&str; 2] = ["/bin/sh", "-c"];
const PID_FILE_START: &str = "/tmp/.workerd-exec-";
const PID_FILE_END: &str = ".pid";
const MAX_SIGNAL: i32 = 64;

/// What a command of workerd's is about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Wrapped {
    /// A command in workerd's wrapper, with the file that its process id would be in.
    Command { pid_file: String, command: Vec<String> },
    /// The helper that signals the process of a wrapped command.
    Kill { pid_file: String, signal: i32, is_guarded: bool },
    /// Anything else.
    Plain(Vec<String>),
}

impl Wrapped {
    pub fn is_command(&self) -> bool {
        matches!(self, Wrapped::Command { .. })
    }

    /// The file that names it to the helper.
    pub fn pid_file(&self) -> Option<&str> {
        match self {
            Wrapped::Command { pid_file, .. } => Some(pid_file),
            _ => None,
        }
    }
}

pub(crate) fn recognise(command: Vec<String>) -> Wrapped {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let recognised = match words.as_slice() {
        [a, b, script, "sh", first, rest @ ..] if [*a, *b] == SHELL => pid_file_of_wrapper(script).map(|pid_file| {
            let command = [first].into_iter().chain(rest).map(|word| word.to_string()).collect();
            Wrapped::Command { pid_file, command }
        }),
        [a, b, script] if [*a, *b] == SHELL => kill(script),
        _ => None,
    };
    recognised.unwrap_or(Wrapped::Plain(command))
}

fn pid_file_of_wrapper(script: &str) -> Option<String> {
    let file = script.strip_prefix("echo $$ > ")?.strip_suffix("; exec \"$@\"")?;
    is_pid_file(file).then(|| file.to_string())
}

fn kill(script: &str) -> Option<Wrapped> {
    let (guard, rest) = match script.split_once(" ] || exit 3; ") {
        Some((guard, rest)) => (Some(guard.strip_prefix("[ -s ")?), rest),
        None => (None, script),
    };
    let (signal, file) = rest.strip_prefix("kill -")?.split_once(" \"$(cat ")?;
    let file = file.strip_suffix(")\"").filter(|file| is_pid_file(file))?;
    let is_consistent = guard.is_none_or(|guarded| guarded == file);
    let signal = signal.parse().ok().filter(|signal| (0..=MAX_SIGNAL).contains(signal) && is_consistent)?;
    Some(Wrapped::Kill { pid_file: file.to_string(), signal, is_guarded: guard.is_some() })
}

fn is_pid_file(file: &str) -> bool {
    let id = file.strip_prefix(PID_FILE_START).and_then(|rest| rest.strip_suffix(PID_FILE_END));
    id.is_some_and(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/tmp/.workerd-exec-0f1e-22.pid";

    fn check(words: &[&str], expected: Option<Wrapped>) {
        let command: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        assert_eq!(recognise(command.clone()), expected.unwrap_or(Wrapped::Plain(command)), "{words:?}");
    }

    #[test]
    fn the_wrapper_is_taken_off_and_nothing_else() {
        let wrapper = format!("echo $$ > {FILE}; exec \"$@\"");
        let command = Wrapped::Command { pid_file: FILE.into(), command: vec!["/app".into(), "-x".into()] };
        check(&["/bin/sh", "-c", &wrapper, "sh", "/app", "-x"], Some(command));
        check(&["/bin/sh", "-c", &wrapper, "sh"], None);
        check(&["/bin/sh", "-c", &wrapper, "bash", "/app"], None);
        check(&["/bin/bash", "-c", &wrapper, "sh", "/app"], None);
        check(&["/bin/sh", "-c", &wrapper.replace(".pid", ".pid x"), "sh", "/app"], None);
        check(&["/bin/sh", "-c", &wrapper.replace("0f1e", "$(id)"), "sh", "/app"], None);
        check(&["/bin/sh", "-c", "echo hello"], None);
        check(&[], None);
    }

    #[test]
    fn the_helper_is_played_and_nothing_else() {
        let kill = |signal, is_guarded| Some(Wrapped::Kill { pid_file: FILE.into(), signal, is_guarded });
        let check = |script: &str, expected| check(&["/bin/sh", "-c", script], expected);
        check(&format!("[ -s {FILE} ] || exit 3; kill -15 \"$(cat {FILE})\""), kill(15, true));
        check(&format!("kill -9 \"$(cat {FILE})\""), kill(9, false));
        check(&format!("kill -99 \"$(cat {FILE})\""), None);
        check(&format!("kill -9 \"$(cat {FILE})\"; id"), None);
        check("kill -9 \"$(cat /etc/passwd)\"", None);
        check(&format!("[ -s /tmp/x ] || exit 3; kill -15 \"$(cat {FILE})\""), None);
    }
}
