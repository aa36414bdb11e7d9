//! Sockets on loopback.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpListener;

use crate::failure::Failure;

/// Listens on `port` of 127.0.0.1; 0 chooses a free one. `flag` is what the user may say to choose another.
pub async fn bind(what: &str, port: u16, flag: &str) -> Result<TcpListener, Failure> {
    bind_to(what, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), flag).await
}

/// Listens on `address`.
pub async fn bind_to(what: &str, address: SocketAddr, flag: &str) -> Result<TcpListener, Failure> {
    let port = address.port();
    TcpListener::bind(address).await.map_err(|error| {
        let failure = Failure::because(format!("cannot listen on {address} for the {what}"), &error);
        match error.kind() {
            std::io::ErrorKind::AddrInUse => failure.hint(format!(
                "another program uses port {port}; choose another with {flag} PORT, or 0 for a free one"
            )),
            std::io::ErrorKind::PermissionDenied => failure.hint(format!("choose a port above 1023 with {flag} PORT")),
            _ => failure,
        }
    })
}

/// A socket that this process's earlier program listened on.
pub fn inherited(listener: &std::net::TcpListener) -> Result<TcpListener, Failure> {
    let shared = listener.try_clone().and_then(|listener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    shared.map_err(|error| Failure::because("cannot take over a listening socket", &error))
}

/// A second handle on the socket, for the program that takes this one's place.
pub fn share(listener: TcpListener) -> Result<(TcpListener, std::net::TcpListener), Failure> {
    let kept = listener.into_std().map_err(|error| Failure::because("cannot share a listening socket", &error))?;
    Ok((inherited(&kept)?, kept))
}

/// Where `listener` listens.
pub fn address(listener: &TcpListener) -> Result<SocketAddr, Failure> {
    listener.local_addr().map_err(|error| Failure::because("cannot read the address of a listening socket", &error))
}
