//! `POST containers/instances/:instance/exec`: cfc's own. The connection becomes the command's.

use axum::body::Body;
use axum::extract::{Path, Request, State};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::Answer;
use super::instances::refused;
use crate::error::Code;
use crate::frames::{PROTOCOL, read, write};
use crate::{Control, ControlError, ExecError, ExecInput, ExecRequest, ExecSession};

const REQUEST_BYTES_MAX: usize = 4 << 20;

pub(crate) async fn exec(
    State(control): State<Control>,
    Path((_, instance)): Path<(String, String)>,
    mut request: Request,
) -> Answer {
    let asked = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok());
    if asked != Some(PROTOCOL) {
        let message = format!("a command needs a connection of its own (`Upgrade: {PROTOCOL}`)");
        return Err(ControlError::new(Code::Malformed, message).hint("use `cfc containers exec`"));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let body = axum::body::to_bytes(request.into_body(), REQUEST_BYTES_MAX).await;
    let malformed = || ControlError::new(Code::Malformed, "the request describes no command");
    let body = body.map_err(|error| malformed().because(error))?;
    let asked: ExecRequest = serde_json::from_slice(&body).map_err(|error| malformed().because(error))?;
    let session = control.inner.platform.exec(&instance, asked).await.map_err(|error| refusal(&instance, error))?;
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => carry(session, TokioIo::new(upgraded)).await,
            Err(error) => tracing::debug!(%error, "nobody took over a command"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}

fn refusal(instance: &str, error: ExecError) -> ControlError {
    match error {
        ExecError::Instance(error) => refused(error),
        ExecError::NotStarted { ref hint, shell_code, .. } => {
            let hint = hint.clone();
            let code = match shell_code {
                Some(127) => Code::CommandNotFound,
                Some(126) => Code::NotExecutable,
                _ => Code::Malformed,
            };
            let refusal = ControlError::new(code, format!("no command was run in `{instance}`"));
            hint.into_iter().fold(refusal.because(error), ControlError::hint)
        }
    }
}

/// Carries frames until the command has ended or the client is gone; then the session's ends are dropped.
async fn carry<S: tokio::io::AsyncRead + tokio::io::AsyncWrite>(session: ExecSession, stream: S) {
    let ExecSession { input, mut output } = session;
    let (mut from_client, mut to_client) = tokio::io::split(Box::pin(stream));
    let hearing = async {
        while let Ok(Some(frame)) = read::<ExecInput>(&mut from_client).await {
            if input.send(frame).await.is_err() {
                // It has ended; the client is told in the other direction.
                std::future::pending::<()>().await;
            }
        }
    };
    let telling = async {
        while let Some(frame) = output.recv().await {
            if write(&mut to_client, &frame).await.is_err() {
                return;
            }
        }
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut to_client).await;
    };
    tokio::select! {
        () = hearing => tracing::debug!("the client of a command is gone"),
        () = telling => {}
    }
}
