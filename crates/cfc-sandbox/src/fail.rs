//! [`fail_point`]: places where a test can let this program die, fail or dawdle.
//!
//! A debug build looks at `CFC_FAIL_POINT`: `NAME:NTH:ACTION`, several separated by `;`. The `NTH` time that a process
//! passes the point `NAME`, it does `kill` (as `kill -9` would), `error` (the step fails with EIO), `delay=MS` or
//! `until=FILE`, which waits for the file to be there. A
//! release build knows nothing of all this. Names are `<where>.<what>.<step>` and literals, so that tests can find them.

#[cfg(debug_assertions)]
pub use active::fail_point;

/// Does nothing: this is a release build.
///
/// # Errors
/// None.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn fail_point(_name: &'static str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(debug_assertions)]
mod active {
    use std::io;
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use rustix::process::Signal;

    struct Failure {
        name: String,
        nth: u64,
        action: Action,
        passed: AtomicU64,
    }

    enum Action {
        Kill,
        Error,
        Delay(Duration),
        Until(PathBuf),
    }

    /// Does what `CFC_FAIL_POINT` wants to happen at the point `name`, which usually is nothing.
    ///
    /// # Errors
    /// EIO, when it wants the step to fail.
    pub fn fail_point(name: &'static str) -> io::Result<()> {
        for failure in failures().iter().filter(|failure| failure.name == name) {
            if failure.passed.fetch_add(1, Ordering::Relaxed) + 1 != failure.nth {
                continue;
            }
            match &failure.action {
                Action::Kill => die(),
                Action::Error => return Err(io::Error::from_raw_os_error(libc::EIO)),
                Action::Delay(time) => std::thread::sleep(*time),
                Action::Until(file) => {
                    while !file.exists() {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            }
        }
        Ok(())
    }

    fn die() -> ! {
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
        // Process 1 of a namespace is deaf to its own signals.
        crate::sys::exit_now(128 + libc::SIGKILL)
    }

    fn failures() -> &'static [Failure] {
        static FAILURES: OnceLock<Vec<Failure>> = OnceLock::new();
        FAILURES.get_or_init(|| {
            let text = std::env::var("CFC_FAIL_POINT").unwrap_or_default();
            text.split(';').filter(|part| !part.is_empty()).map(parse).collect()
        })
    }

    fn parse(text: &str) -> Failure {
        let malformed =
            || -> ! { panic!("CFC_FAIL_POINT: expected NAME:NTH:kill|error|delay=MS|until=FILE, found `{text}`") };
        let parts: Vec<&str> = text.split(':').collect();
        let [name, nth, action] = parts[..] else { malformed() };
        let Ok(nth) = nth.parse() else { malformed() };
        let action = match (action, action.strip_prefix("delay=").map(str::parse)) {
            ("kill", _) => Action::Kill,
            ("error", _) => Action::Error,
            (_, Some(Ok(ms))) => Action::Delay(Duration::from_millis(ms)),
            _ => Action::Until(action.strip_prefix("until=").unwrap_or_else(|| malformed()).into()),
        };
        Failure { name: name.to_owned(), nth, action, passed: AtomicU64::new(0) }
    }
}
