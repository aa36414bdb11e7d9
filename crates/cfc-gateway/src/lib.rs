//! HTTP in, to the right Worker; WebSocket and streaming untouched.

use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpListener;

/// What a gateway may be told; the default is what `cfc serve` uses.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// `<worker>.<domain>` reaches a Worker, the domain itself the only one.
    pub domains: Vec<String>,
    /// How long a request waits for a Worker that is being restarted.
    pub hold: Duration,
    /// The largest request body in bytes.
    pub max_request_body: u64,
}

/// Routes requests by host name to the Workers' sockets. Cheap to clone; every clone is the same gateway.
#[derive(Clone)]
pub struct Gateway {}

impl Gateway {
    /// A gateway without Workers.
    pub fn new(_options: GatewayOptions) -> Gateway {
        todo!()
    }

    /// Sends `worker`'s requests to the unix socket at `socket` from now on; requests under way end on the old one.
    pub fn set_route(&self, _worker: &str, _socket: PathBuf) {
        todo!()
    }

    /// `worker`'s process is being replaced: its requests wait for [`Gateway::set_route`], for the hold time at most.
    pub fn hold_route(&self, _worker: &str) {
        todo!()
    }

    /// `worker` cannot serve: its requests are answered 503 with `reason` until [`Gateway::set_route`].
    pub fn fail_route(&self, _worker: &str, _reason: &str) {
        todo!()
    }

    /// Forgets `worker`.
    pub fn remove_route(&self, _worker: &str) {
        todo!()
    }

    /// The Workers' names in order.
    pub fn workers(&self) -> Vec<String> {
        todo!()
    }

    /// Serves connections of `listener` until [`Gateway::shutdown`]; may be called for several listeners.
    pub async fn serve(&self, _listener: TcpListener) {
        todo!()
    }

    /// Accepts nothing more, lets requests under way finish for `grace`, then ends what is left.
    pub async fn shutdown(&self, _grace: Duration) {
        todo!()
    }
}
