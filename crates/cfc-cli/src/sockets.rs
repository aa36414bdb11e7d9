//! Where the sockets of a data directory are: in a directory with a short path, which the data directory remembers.
//!
//! The environment decides on that directory, and it is not the same at a login and under cron or systemd. So whoever
//! serves a data directory writes down in it which one it is, and the next server goes on there while a launcher of it runs:
//! its containers would run on unseen otherwise, beside others of the same Durable Objects.

use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use crate::failure::Failure;
use crate::settings::Settings;

/// How long a launcher that is killed, and with it its containers, may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

impl Settings {
    /// The directory of the sockets, private to this user and with a short path, since the name of a socket may not be
    /// longer than 107 bytes (`unix(7)`) whatever the data directory is called. Made where it is not there.
    pub fn socket_directory(&self) -> Result<PathBuf, Failure> {
        if let Some(recorded) = self.recorded_sockets().filter(|path| is_listening(&path.join(LAUNCHER))) {
            return Ok(recorded);
        }
        let (base, name) = self.usual_sockets();
        let directory = base.join(name);
        // The base as well: whoever had made it could put another directory in the place of ours.
        for path in [&base, &directory] {
            private_directory(path).map_err(|error| {
                Failure::because(format!("cannot make the socket directory `{}`", path.display()), &error)
                    .hint("set XDG_RUNTIME_DIR to a directory of your own, with mode 0700")
            })?;
        }
        Ok(directory)
    }

    /// Where the launcher listens that outlives its server.
    pub fn launcher_socket(&self) -> Result<PathBuf, Failure> {
        Ok(self.socket_directory()?.join(LAUNCHER))
    }

    /// The socket on which the registry that runs on the data directory does what its operator asks for.
    pub fn registry_socket(&self) -> Result<PathBuf, Failure> {
        let recorded = self.recorded_sockets().map(|directory| directory.join("registry"));
        match recorded.filter(|socket| socket.exists()) {
            Some(socket) => Ok(socket),
            None => Ok(self.socket_directory()?.join("registry")),
        }
    }

    /// Remembers `sockets` as the directory of this data directory's sockets, for those who come with another environment.
    /// For the holder of the data directory's lock.
    ///
    /// A launcher that still runs on the remembered one although its socket is gone, as where the system has removed
    /// `XDG_RUNTIME_DIR` at the user's logout, is ended with its containers: nobody can reach it any more.
    pub fn record_sockets(&self, sockets: &Path) -> Result<(), Failure> {
        let file = self.data.join(RECORD);
        let recorded = self.recorded_sockets();
        for directory in recorded.iter().map(PathBuf::as_path).chain([sockets]) {
            let socket = directory.join(LAUNCHER);
            if !is_listening(&socket) {
                end_unreachable_launchers(&socket)?;
            }
        }
        if recorded.as_deref() == Some(sockets) {
            return Ok(());
        }
        let temporary = self.data.join(format!(".{RECORD}-{}", std::process::id()));
        std::fs::write(&temporary, sockets.as_os_str().as_encoded_bytes())
            .and_then(|()| std::fs::rename(&temporary, &file))
            .map_err(|error| Failure::because(format!("cannot write `{}`", file.display()), &error))
    }

    /// The directory that is remembered, by this user: nobody else is to say where ours are.
    fn recorded_sockets(&self) -> Option<PathBuf> {
        let file = self.data.join(RECORD);
        let owner = std::fs::symlink_metadata(&file).ok()?.uid();
        let bytes = std::fs::read(file).ok().filter(|_| owner == our_id())?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(bytes));
        path.is_absolute().then_some(path)
    }

    /// The directory by this process's environment: of all data directories, and its own name.
    fn usual_sockets(&self) -> (PathBuf, String) {
        let name = cfc_oci::Digest::of(self.data.as_os_str().as_encoded_bytes()).short().to_string();
        let uid = cfc_sandbox::user_id();
        let base = match std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()) {
            _ if uid == 0 => PathBuf::from("/run/cfc"),
            Some(runtime) => PathBuf::from(runtime).join("cfc"),
            None => PathBuf::from(format!("/tmp/cfc-{uid}")),
        };
        (base, name)
    }
}

/// The file in the data directory that names the directory of the sockets.
const RECORD: &str = "sockets";
/// The launcher's socket.
const LAUNCHER: &str = "launcher";

/// Whether somebody of this user listens on `socket`.
fn is_listening(socket: &Path) -> bool {
    socket.parent().is_some_and(is_ours) && UnixStream::connect(socket).is_ok()
}

/// Kills the launchers that were started to listen on `socket`, on which nobody listens. The kernel kills their containers
/// with them.
fn end_unreachable_launchers(socket: &Path) -> Result<(), Failure> {
    for pid in launchers_of(socket) {
        tracing::warn!(
            process = pid.as_raw_nonzero().get(),
            socket = %socket.display(),
            "a launcher of this data directory runs whose socket is gone; ending it and its containers"
        );
        let failed = |error: &dyn std::error::Error| {
            let process = pid.as_raw_nonzero();
            Failure::because(format!("cannot end the launcher (process {process}) whose socket is gone"), error)
        };
        let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // Only now is it certain that the number has not passed to another process meanwhile.
        if !is_launcher_of(pid, socket) {
            continue;
        }
        rustix::process::pidfd_send_signal(&handle, Signal::KILL).map_err(|error| failed(&error))?;
        let started = Instant::now();
        while is_launcher_of(pid, socket) {
            if started.elapsed() > KILL_PATIENCE {
                return Err(failed(&std::io::Error::from(std::io::ErrorKind::TimedOut)));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

fn launchers_of(socket: &Path) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter(|pid| is_launcher_of(*pid, socket)).collect()
}

fn is_launcher_of(pid: Pid, socket: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0);
    words.next() == Some(cfc_sandbox::LAUNCHER_ARGV0.as_bytes())
        && words.next() == Some(socket.as_os_str().as_encoded_bytes())
        && owner_of(&process) == Some(our_id())
}

/// The user of a process of `/proc`, which may hide behind a directory of root's.
fn owner_of(process: &Path) -> Option<u32> {
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok())
}

/// Makes `directory` with mode 0700, and refuses one that somebody else made.
fn private_directory(directory: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    if !is_ours(directory) {
        return Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, "it belongs to somebody else"));
    }
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
}

/// Whether `path` is a directory of this user.
fn is_ours(path: &Path) -> bool {
    let metadata = std::fs::symlink_metadata(path);
    metadata.is_ok_and(|found| found.is_dir() && found.uid() == our_id())
}

/// As this process, which may have entered a namespace, knows its user.
fn our_id() -> u32 {
    rustix::process::getuid().as_raw()
}
