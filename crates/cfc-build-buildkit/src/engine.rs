//! [`Engine`]: the few things that are asked of Docker's engine itself, since the BuildKit in it neither takes images from a
//! client nor gives them to one.

use std::io::Write;

use bytes::Bytes;
use cfc_oci::{Descriptor, Digest, Reference};
use cfc_store::{ArchiveKind, Store};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::connect::{Connector, root_cause};
use crate::failure::{Failure, Result};
use crate::pieces::{Pieces, pieces};

/// How much of an archive is sent at once, in bytes.
const PIECE_BYTES: usize = 256 << 10;
/// More of an answer to a failure is not shown.
const MAX_ANSWER_BYTES: usize = 4096;
/// No description of an image is longer.
const MAX_IMAGE_BYTES: usize = 4 << 20;
/// How many pieces of an archive wait to be read: the engine waits then, too.
const WAITING: usize = 64;

type Body = BoxBody<Bytes, std::io::Error>;

/// Docker's engine.
pub(crate) struct Engine<'a>(pub(crate) &'a Connector);

impl Engine<'_> {
    /// Gives the engine the image `manifest` of the store, under a name that says which it is. Returns the name. The engine
    /// keeps it: the next build finds it there.
    pub(crate) async fn give(&self, store: &Store, manifest: &Descriptor) -> Result<String> {
        let name = format!("cfc-base:{}", manifest.digest.hex());
        let what = format!("take the base image `{name}`");
        let answer = self.ask_soon(Method::GET, &format!("/images/{name}/json")).await?;
        if answer.status() == StatusCode::OK {
            return Ok(format!("docker.io/library/{name}"));
        }
        let reference: Reference = name.parse().map_err(|error| Failure::because(what.clone(), error))?;
        let (sender, receiver) = mpsc::channel(4);
        let (store, manifest) = (store.clone(), manifest.clone());
        let written = tokio::task::spawn_blocking(move || {
            let output = Sending { sender, piece: Vec::with_capacity(PIECE_BYTES) };
            store.export_archive(&manifest, &[reference], ArchiveKind::Docker, output)
        });
        let body = StreamBody::new(ReceiverStream::new(receiver));
        let answer = self.ask(Method::POST, "/images/load?quiet=1", BodyExt::boxed(body)).await;
        // Whoever could not read the image knows better why than who did not get it.
        match written.await {
            Ok(Err(error)) if answer.as_ref().is_ok_and(|answer| !answer.status().is_success()) => {
                return Err(error.into());
            }
            _ => {}
        }
        let text = self.succeeded(answer?, &what, MAX_ANSWER_BYTES).await?;
        match text.contains("\"error\"") {
            true => Err(self.cannot(&what, &text)),
            false => Ok(format!("docker.io/library/{name}")),
        }
    }

    /// The diff ids of the layers of the image called `name`, lowest first.
    pub(crate) async fn layers(&self, name: &str) -> Result<Vec<Digest>> {
        let answer = self.ask_soon(Method::GET, &format!("/images/{name}/json")).await?;
        let what = format!("describe the image `{name}`");
        let text = self.succeeded(answer, &what, MAX_IMAGE_BYTES).await?;
        let image: ImageText = serde_json::from_str(&text).map_err(|error| Failure::because(what, error))?;
        Ok(image.root_fs.layers.unwrap_or_default())
    }

    /// The archive of the image called `name`.
    pub(crate) async fn save(&self, name: &str) -> Result<Saved> {
        let mut answer = self.ask(Method::GET, &format!("/images/{name}/get"), empty()).await?;
        if !answer.status().is_success() {
            let what = format!("give the image `{name}`");
            return Err(match self.succeeded(answer, &what, MAX_ANSWER_BYTES).await {
                Err(failure) => failure,
                Ok(text) => self.cannot(&what, &text),
            });
        }
        let (sender, archive) = pieces(WAITING);
        let broken = tokio::spawn(async move {
            while let Some(frame) = answer.frame().await {
                let piece = match frame {
                    Ok(frame) => Ok(frame.into_data().unwrap_or_default()),
                    Err(error) => {
                        let why = root_cause(&error);
                        let _ = sender.send(Err(std::io::Error::other(why.clone()))).await;
                        return Some(why);
                    }
                };
                if sender.send(piece).await.is_err() {
                    break;
                }
            }
            None
        });
        Ok(Saved { archive, broken })
    }

    /// Takes the name from an image; the image goes, too, when it has no other. Whether it is gone; why it is not, is only
    /// logged.
    pub(crate) async fn forget(&self, name: &str) -> bool {
        let why = match self.ask_soon(Method::DELETE, &format!("/images/{name}")).await {
            Ok(answer) if answer.status().is_success() || answer.status() == StatusCode::NOT_FOUND => return true,
            Ok(answer) => answer.status().to_string(),
            Err(failure) => failure.message,
        };
        tracing::warn!(name, why, "the engine keeps an image that it was lent");
        false
    }

    /// What the engine answers without work that takes long. An archive it may prepare for minutes, and then the kernel tells
    /// us when it is gone.
    async fn ask_soon(&self, method: Method, path: &str) -> Result<Response<Incoming>> {
        let patience = self.0.patience();
        let asked = tokio::time::timeout(patience, self.ask(method, path, empty())).await;
        asked.unwrap_or_else(|_| Err(self.0.unreachable(&format!("it did not answer within {patience:?}"))))
    }

    async fn ask(&self, method: Method, path: &str, body: Body) -> Result<Response<Incoming>> {
        let unreachable = |error: &dyn std::fmt::Display| self.0.unreachable(&error.to_string());
        let stream = self.0.open().await.map_err(|error| unreachable(&error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| unreachable(&error))?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(header::HOST, "docker");
        let request = request.header(header::CONTENT_TYPE, "application/x-tar").body(body);
        let request = request.map_err(|error| Failure::because("a malformed request", error))?;
        sender.send_request(request).await.map_err(|error| unreachable(&error))
    }

    async fn succeeded(&self, answer: Response<Incoming>, what: &str, max_bytes: usize) -> Result<String> {
        let status = answer.status();
        let bytes = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(max_bytes)]).trim().to_string();
        if status.is_success() { Ok(text) } else { Err(self.cannot(what, &text)) }
    }

    fn cannot(&self, what: &str, text: &str) -> Failure {
        crate::failure::refused(&self.0.address().to_string(), what, &tonic::Status::unknown(text))
    }
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// Sends what is written, piece by piece.
struct Sending {
    sender: mpsc::Sender<std::io::Result<Frame<Bytes>>>,
    piece: Vec<u8>,
}

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        let sent = self.sender.blocking_send(Ok(Frame::data(Bytes::from(piece))));
        sent.map_err(|_| std::io::Error::other("nobody takes the archive any more"))
    }
}

/// An archive on its way.
pub(crate) struct Saved {
    pub(crate) archive: Pieces,
    /// Why it broke off, in case it did.
    pub(crate) broken: JoinHandle<Option<String>>,
}

/// What the engine says of an image.
#[derive(Deserialize)]
struct ImageText {
    #[serde(rename = "RootFS")]
    root_fs: RootFsText,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RootFsText {
    layers: Option<Vec<Digest>>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_engine_that_says_nothing_is_given_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let _silent = tokio::net::UnixListener::bind(&path).expect("a socket");
        let connector = Connector::new(&crate::Address::DockerUnix(path), None).expect("a way");
        let connector = connector.with_patience(Duration::from_millis(200));
        let engine = Engine(&connector);
        let asked = engine.ask_soon(Method::GET, "/images/x/json");
        let asked = tokio::time::timeout(Duration::from_secs(120), asked).await.expect("it does not hang");
        let failure = asked.map(|answer| answer.status()).expect_err("nobody answers");
        assert!(failure.message.ends_with(": it did not answer within 200ms"), "{failure:?}");
    }
}
