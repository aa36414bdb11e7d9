//! [`unpaced`]: sockets that send as fast as the other side takes it.

use std::os::fd::AsFd;

use rustix::net::sockopt;

/// In every kernel, and open to every user.
const UNPACED: &str = "reno";

/// Keeps the kernel from pacing what `socket` sends: for one that stays within this machine. Call it before the socket is
/// connected, or on the listener that accepts it; later the pacing would stay.
///
/// Machines that use BBR (`net.ipv4.tcp_congestion_control`) spread what is sent over time by a bandwidth that is measured.
/// Over the loopback there is nothing to measure, and the timers cost a third of a tunnel's CPU time. Where this is refused
/// the machine's own way stays.
pub fn unpaced(socket: impl AsFd) {
    let _ = sockopt::set_tcp_congestion(socket, UNPACED);
}
