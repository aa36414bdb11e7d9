//! `--network`, `--add-host`, `--shm-size`, `--ulimit`: what holds for all `RUN` steps.

use std::net::{IpAddr, UdpSocket};

use cfc_plan::{ExtraHost, RunNetwork, RunSettings};

use crate::args::Build;
use crate::failure::Failure;

/// What the command line says.
pub fn parse(arguments: &Build) -> Result<RunSettings, Failure> {
    let bad = |flag: &str, text: &str, what: String| Failure::new(format!("{flag} `{text}`: {what}"));
    let host = |text: &String| ExtraHost::parse(text, own_address).map_err(|what| bad("--add-host", text, what));
    let limit = |text: &String| text.parse().map_err(|what| bad("--ulimit", text, what));
    let size = |text: &String| {
        let size = cfc_dockerfile::parse_size(text).filter(|size| *size > 0);
        size.ok_or_else(|| bad("--shm-size", text, "it is not a size".to_string()).hint("for example `128m`, `1g`"))
    };
    Ok(RunSettings {
        network: match arguments.network.as_deref() {
            Some("none") => RunNetwork::None,
            Some("host") => RunNetwork::Host,
            _ => RunNetwork::Default,
        },
        hosts: arguments.add_hosts.iter().map(host).collect::<Result<_, _>>()?,
        shm_size: arguments.shm_size.as_ref().map(size).transpose()?,
        ulimits: arguments.ulimits.iter().map(limit).collect::<Result<_, _>>()?,
    })
}

/// The address at which this machine is reached, from `RUN` steps too: what `host-gateway` is. Their loopback is their own.
fn own_address() -> Option<IpAddr> {
    // Connecting a datagram socket sends nothing: the kernel only chooses the way, and with it the address.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback() && !address.is_unspecified())
}
