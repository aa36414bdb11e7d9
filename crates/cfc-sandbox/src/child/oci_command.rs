//! [`RuntimeCommand`]: one call of an OCI runtime, and what it says when it fails.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use super::{FAILED, program};
use crate::error::ErrorKind;
use crate::oci_runtime::OciRuntime;
use crate::step::Step;
use crate::sys::{self, Cloned};

/// How a runtime is called from within the namespaces in which it works.
pub(super) struct RuntimeCommand<'a> {
    pub(super) runtime: &'a OciRuntime,
    /// The scratch filesystem, with the runtime's own state.
    pub(super) scratch: &'a Path,
    /// Where it writes what went wrong.
    pub(super) log: PathBuf,
}

impl RuntimeCommand<'_> {
    /// Runs it with `words`, after `connect` has given it its streams. Its pid.
    pub(super) fn spawn(&self, words: &[impl AsRef<str>], connect: impl FnOnce()) -> Result<i32, ErrorKind> {
        let program = self.runtime.program().display().to_string();
        let (state, log) = (self.scratch.join("state"), &self.log);
        let own = ["--root", &state.to_string_lossy(), "--log", &log.to_string_lossy(), "--log-format", "json"];
        let own = own.map(str::to_owned);
        let words = words.iter().map(|word| word.as_ref().to_owned());
        let all = [program.clone()].into_iter().chain(self.runtime.global_arguments()).chain(own).chain(words);
        let arguments = all.map(|word| c_string(&word)).collect::<Result<Vec<_>, _>>()?;
        let path = std::env::var("PATH").unwrap_or_else(|_| program::PATH_DEFAULT.to_owned());
        let environment = [c_string(&format!("PATH={path}"))?, c_string("HOME=/")?];
        let (path, step) = (c_string(&program)?, || format!("run {program}"));
        match sys::clone_process(0, None).step(step)? {
            Cloned::Parent { pid, .. } => Ok(pid),
            Cloned::Child => {
                connect();
                sys::reset_signals();
                let error = sys::execute(&path, &arguments, &environment);
                let entry = serde_json::json!({"level": "error", "msg": format!("cannot execute {program}: {error}")});
                let _ = fs::write(log, entry.to_string());
                sys::exit_now(FAILED)
            }
        }
    }

    /// Why `command` did not start, as the runtime put it, which has ended with `code`.
    pub(super) fn failure(&self, command: &str, code: i32) -> ErrorKind {
        let said = self.complaints();
        let is_missing = said.contains("executable file") && said.contains("not found");
        let is_absent = said.contains(&format!("{}: no such file", command.to_lowercase()));
        let is_nowhere = said.contains("error finding executable");
        if is_missing || is_absent || is_nowhere {
            return ErrorKind::CommandNotFound(command.to_owned());
        }
        if said.contains("exec") && said.contains("permission denied") {
            return ErrorKind::NotExecutable { command: command.to_owned(), errno: libc::EACCES };
        }
        let name = self.runtime.name();
        match said.is_empty() {
            true => ErrorKind::Unavailable(format!("the runtime `{name}` ended with {code} and did not say why")),
            false => ErrorKind::Unavailable(format!("the runtime `{name}` failed: {said}")),
        }
    }

    /// The errors in the runtime's log.
    pub(super) fn complaints(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let entries = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>().map_while(Result::ok);
        let is_error = |entry: &serde_json::Value| matches!(entry["level"].as_str(), Some("error" | "fatal"));
        let messages = entries.filter(is_error).filter_map(|entry| entry["msg"].as_str().map(str::to_owned));
        messages.collect::<Vec<_>>().join("; ").to_lowercase()
    }
}

fn c_string(text: &str) -> Result<CString, ErrorKind> {
    CString::new(text).map_err(|_| ErrorKind::Invalid(format!("a zero byte in {text:?}")))
}
