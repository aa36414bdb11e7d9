//! Connections that stop speaking HTTP: WebSocket, and whatever else both sides agree on.

use std::sync::Arc;

use http::HeaderValue;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::gateway::{Inner, Phase, reached};
use crate::websocket;

/// Copies bytes both ways between client and Worker, once both have gone over to `protocol`, until one side ends or the
/// gateway does.
pub(crate) fn tunnel(inner: &Arc<Inner>, protocol: &HeaderValue, client: OnUpgrade, worker: OnUpgrade) {
    let mut phase = inner.phase.subscribe();
    let mut leaving = inner.phase.subscribe();
    let is_websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
    tokio::spawn(async move {
        let copied = async {
            let (client, worker) = (client.await?, worker.await?);
            let (mut client, mut worker) = (TokioIo::new(client), TokioIo::new(worker));
            if is_websocket {
                websocket::carry(client, worker, leaving).await;
                return Ok(());
            }
            // Either side may leave without a farewell; that is how tunnels end.
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut worker) => {}
                // There is no way to say it in a protocol that is not known.
                () = reached(&mut leaving, |phase| phase >= Phase::Leaving) => {}
            }
            Ok::<(), hyper::Error>(())
        };
        tokio::select! {
            copied = copied => {
                if let Err(error) = copied {
                    tracing::debug!(%error, "an upgraded connection was not handed over");
                }
            }
            () = reached(&mut phase, |phase| phase == Phase::Ended) => {}
        }
    });
}
