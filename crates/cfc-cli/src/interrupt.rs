//! Ctrl-C and SIGTERM while something is built: what runs ends, what is half done goes, what is done stays.

use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cfc_store::Store;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::screen;

static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);
static UNFINISHED: Mutex<Unfinished> = Mutex::new(Unfinished { builds: Vec::new(), files: Vec::new() });

/// Ends what a build runs.
type Stop = Box<dyn Fn() + Send>;

/// What has to go when we are interrupted.
struct Unfinished {
    builds: Vec<Option<(Store, Stop)>>,
    files: Vec<PathBuf>,
}

/// Catches SIGINT, SIGTERM and SIGHUP from now on. The process then exits with 128 and the signal's number, as a shell would
/// say it. What whoever started us has us ignore stays ignored: `nohup` does so with SIGHUP, a script with SIGINT of what it
/// runs in the background.
pub fn catch() {
    // Without a thread that waits the signals do what they do by default.
    let _ = std::thread::Builder::new().name("signals".to_string()).spawn(wait);
}

fn wait() {
    let Ok(runtime) = crate::commands::client_runtime() else { return };
    runtime.block_on(async {
        let ignored = ignored_signals();
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [mut interrupt, mut terminate, mut hangup] = kinds.map(|kind| Caught::new(kind, ignored));
        let number = tokio::select! {
            () = interrupt.next() => 2,
            () = terminate.next() => 15,
            () = hangup.next() => 1,
        };
        IS_INTERRUPTED.store(true, Ordering::Relaxed);
        // Somebody who asks twice does not want to wait.
        std::thread::spawn(move || end(128 + number));
        tokio::select! {
            () = interrupt.next() => exit(128 + 2),
            () = terminate.next() => exit(128 + 15),
        }
    });
}

/// A signal that may be ignored, and then never comes.
struct Caught(Option<Signal>);

impl Caught {
    fn new(kind: SignalKind, ignored: u64) -> Caught {
        let is_ignored = ignored & (1 << (kind.as_raw_value() - 1)) != 0;
        Caught(if is_ignored { None } else { signal(kind).ok() })
    }

    async fn next(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}

/// A bit each, the lowest of signal 1. None where the kernel does not say.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn end(code: i32) -> ! {
    screen::close();
    screen::tell("interrupted: what was finished is kept, and the next build goes on from there");
    let unfinished = lock();
    for (store, stop) in unfinished.builds.iter().flatten() {
        stop();
        store.abandon_unfinished();
    }
    unfinished.files.iter().for_each(|path| remove(path));
    exit(code)
}

/// Removes a file, or a directory to which somebody still writes: that fails once its directory is gone.
fn remove(path: &Path) {
    for _ in 0..100 {
        let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        if removed.is_ok() || !path.exists() {
            return;
        }
    }
}

/// A build that an interrupt ends, until this is dropped.
pub struct Interruptible {
    number: usize,
}

/// An interrupt ends this build by `stop`; it keeps what is unfinished in `store`.
pub fn ends(store: &Store, stop: impl Fn() + Send + 'static) -> Interruptible {
    let mut unfinished = lock();
    let number = unfinished.builds.len();
    unfinished.builds.push(Some((store.clone(), Box::new(stop))));
    Interruptible { number }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        // What is kept here would outlive its owner, and with it what only goes when it is dropped.
        let ended = lock().builds.get_mut(self.number).and_then(Option::take);
        drop(ended);
    }
}

/// An interrupt removes this file or directory, until [`finished`] says otherwise.
pub fn removes(path: PathBuf) {
    lock().files.push(path);
}

/// It is what it shall be, or gone.
pub fn finished(path: &Path) {
    lock().files.retain(|unfinished| unfinished != path);
}

/// What fails since it was interrupted is not told: the process is about to exit.
pub fn wait_if_interrupted() {
    while IS_INTERRUPTED.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

fn lock() -> MutexGuard<'static, Unfinished> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}
