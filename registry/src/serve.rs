//! [`serve`]: the API on a socket.

use axum::serve::ListenerExt;
use tokio::net::TcpListener;

use crate::Registry;

/// Answers the API on `listener` until the process ends.
pub async fn serve(listener: TcpListener, registry: Registry) -> std::io::Result<()> {
    serve_until(listener, registry, std::future::pending()).await
}

/// Answers the API on `listener` until `shutdown` is ready, then lets running requests finish.
pub async fn serve_until(
    listener: TcpListener,
    registry: Registry,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    // A small answer must not wait for the acknowledgement of the one before.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    axum::serve(listener, registry.router()).with_graceful_shutdown(shutdown).await
}
