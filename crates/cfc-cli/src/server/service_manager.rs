//! What a service manager is told that has started a server and waits for it: systemd, for units of `Type=notify`.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The socket that it listens on (sd_notify(3)).
const VARIABLE: &str = "NOTIFY_SOCKET";

/// The server accepts connections.
pub fn tell_ready() {
    tell("READY=1");
}

/// The server was asked to end, and ends in order.
pub fn tell_stopping() {
    tell("STOPPING=1");
}

/// The server serves all the same where this fails; the manager, which waits in vain, says so.
fn tell(state: &str) {
    let Some(name) = std::env::var_os(VARIABLE) else { return };
    if let Err(error) = send(&name, state) {
        tracing::warn!(socket = %name.display(), %error, "cannot tell the service manager {state}");
    }
}

fn send(name: &OsStr, state: &str) -> io::Result<()> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}
