//! [`Gateway`]: the routes, and the life of the listeners.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::route::Routes;

/// What a gateway may be told; the default is what `cfc serve` uses.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// `<worker>.<domain>` reaches a Worker, the domain itself the only one there is. `localhost` by default.
    pub domains: Vec<String>,
    /// How long a request waits for a Worker that is being restarted.
    pub hold: Duration,
    /// The largest request body in bytes; what is above is answered 413.
    pub max_request_body: u64,
    /// How long a connection may take for a request's headers, its first or its next, however it dribbles.
    pub header_timeout: Duration,
    /// How many clients may be connected; more wait in the listener's queue until one goes.
    pub max_connections: usize,
}

impl Default for GatewayOptions {
    fn default() -> GatewayOptions {
        GatewayOptions {
            domains: vec!["localhost".to_string()],
            // A workerd is up within 0.1 s of its start; the rest is for a busy machine.
            hold: Duration::from_secs(10),
            // Cloudflare's largest plan; the body is streamed, so the limit protects the Worker and not this process.
            max_request_body: 500_000_000,
            header_timeout: Duration::from_secs(75),
            // A client and its Worker take a descriptor each, of the 20,000 that a process usually has; the rest of
            // the platform needs some too.
            max_connections: 8_000,
        }
    }
}

/// How long WebSockets have to answer when they are told that the gateway leaves.
const FAREWELL: Duration = Duration::from_secs(1);

/// How far the gateway is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    /// Connections end after the request they are at.
    Draining,
    /// WebSockets are told, and have a moment to answer. All else ends.
    Leaving,
    /// Connections end now.
    Ended,
}

/// Waits until the gateway is in a phase that `is_it`; at once when it is, or when there is no gateway any more.
pub(crate) async fn reached(phase: &mut watch::Receiver<Phase>, is_it: fn(Phase) -> bool) {
    let _ = phase.wait_for(|phase| is_it(*phase)).await;
}

/// Routes requests by host name to the Workers' sockets. Cheap to clone; every clone is the same gateway.
#[derive(Clone)]
pub struct Gateway {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub options: GatewayOptions,
    pub routes: Routes,
    pub phase: watch::Sender<Phase>,
}

impl Gateway {
    /// A gateway without Workers.
    pub fn new(options: GatewayOptions) -> Gateway {
        let (phase, _) = watch::channel(Phase::Serving);
        Gateway { inner: Arc::new(Inner { options, routes: Routes::default(), phase }) }
    }

    /// Sends `worker`'s requests to the unix socket at `socket` from now on; requests under way end where they are.
    pub fn set_route(&self, worker: &str, socket: PathBuf) {
        self.inner.routes.set(worker, socket);
    }

    /// `worker`'s process is being replaced: its requests wait for [`Gateway::set_route`], for the hold time at most.
    pub fn hold_route(&self, worker: &str) {
        self.inner.routes.hold(worker);
    }

    /// `worker` cannot serve: its requests are answered 503 with `reason` until [`Gateway::set_route`].
    pub fn fail_route(&self, worker: &str, reason: &str) {
        self.inner.routes.fail(worker, reason);
    }

    /// Forgets `worker`.
    pub fn remove_route(&self, worker: &str) {
        self.inner.routes.remove(worker);
    }

    /// The Workers' names in order.
    pub fn workers(&self) -> Vec<String> {
        self.inner.routes.names()
    }

    /// Serves the listener's connections until [`Gateway::shutdown`], and returns when the last one has ended. May be
    /// called for several listeners.
    pub async fn serve(&self, listener: TcpListener) {
        crate::serve::serve(self.inner.clone(), listener).await;
    }

    /// Accepts nothing more, lets requests under way finish for `grace`, then ends what is left, tunnels included; to
    /// WebSockets it says so (1001, going away), both to the client and to the Worker.
    /// [`Gateway::serve`] returns when its connections have ended.
    pub async fn shutdown(&self, grace: Duration) {
        self.inner.phase.send_replace(Phase::Draining);
        // Every connection and tunnel holds a receiver; the last one to go closes the channel.
        let all_ended = tokio::time::timeout(grace, self.inner.phase.closed()).await.is_ok();
        if !all_ended {
            self.inner.phase.send_replace(Phase::Leaving);
            let _ = tokio::time::timeout(FAREWELL, self.inner.phase.closed()).await;
            self.inner.phase.send_replace(Phase::Ended);
            self.inner.phase.closed().await;
        }
    }
}
