//! Connections that stop speaking HTTP: WebSocket, and whatever else both sides agree on.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::gateway::{Inner, Phase, reached};

/// Copies bytes both ways between client and Worker, once both have gone over, until one side ends or the gateway does.
pub(crate) fn tunnel(inner: &Arc<Inner>, client: OnUpgrade, worker: OnUpgrade) {
    let mut phase = inner.phase.subscribe();
    tokio::spawn(async move {
        let copied = async {
            let (client, worker) = (client.await?, worker.await?);
            let (mut client, mut worker) = (TokioIo::new(client), TokioIo::new(worker));
            // Either side may leave without a farewell; that is how tunnels end.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut worker).await;
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
