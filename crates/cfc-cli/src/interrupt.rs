//! Ctrl-C and SIGTERM while something is built: what runs ends, what is half done goes, what is done stays.

use std::path::PathBuf;
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cfc_build_native::Stopper;
use cfc_store::Store;
use tokio::signal::unix::{SignalKind, signal};

use crate::screen;

static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);
static UNFINISHED: Mutex<Unfinished> = Mutex::new(Unfinished { builds: Vec::new(), files: Vec::new() });

/// What has to go when we are interrupted.
struct Unfinished {
    builds: Vec<Option<(Store, Stopper)>>,
    files: Vec<PathBuf>,
}

/// Catches SIGINT, SIGTERM and SIGHUP from now on. The process then exits with 128 and the signal's number, as a shell would
/// say it.
pub fn catch() {
    // Without a thread that waits the signals do what they do by default.
    let _ = std::thread::Builder::new().name("signals".to_string()).spawn(wait);
}

fn wait() {
    let Ok(runtime) = crate::commands::client_runtime() else { return };
    runtime.block_on(async {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = kinds else { return };
        let number = tokio::select! {
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
            _ = hangup.recv() => 1,
        };
        IS_INTERRUPTED.store(true, Ordering::Relaxed);
        // Somebody who asks twice does not want to wait.
        std::thread::spawn(move || end(128 + number));
        tokio::select! {
            _ = interrupt.recv() => exit(128 + 2),
            _ = terminate.recv() => exit(128 + 15),
        }
    });
}

fn end(code: i32) -> ! {
    screen::close();
    screen::write_lines("interrupted: what was finished is kept, and the next build goes on from there");
    let unfinished = lock();
    for (store, stopper) in unfinished.builds.iter().flatten() {
        stopper.stop();
        store.abandon_unfinished();
    }
    for path in &unfinished.files {
        let _ = std::fs::remove_file(path);
    }
    exit(code)
}

/// A build that an interrupt ends, until this is dropped.
pub struct Interruptible {
    number: usize,
}

/// An interrupt ends this build, which keeps what is unfinished in `store`.
pub fn ends(store: &Store, stopper: Stopper) -> Interruptible {
    let mut unfinished = lock();
    let number = unfinished.builds.len();
    unfinished.builds.push(Some((store.clone(), stopper)));
    Interruptible { number }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        // What is kept here would outlive its owner, and with it what only goes when it is dropped.
        let ended = lock().builds.get_mut(self.number).and_then(Option::take);
        drop(ended);
    }
}

/// An interrupt removes this file, until [`finished`] says otherwise.
pub fn removes(path: PathBuf) {
    lock().files.push(path);
}

/// The file is what it shall be, or gone.
pub fn finished(path: &std::path::Path) {
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
