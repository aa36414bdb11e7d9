//! [`ExecConnection`]: a command that runs in an instance, from the client's side.

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{Method, StatusCode};
use reqwest::Upgraded;
use tokio::io::{ReadHalf, WriteHalf};

use super::{Client, ClientError, ClientErrorKind, segment};
use crate::frames::{CONTENT_MAX, PROTOCOL, read, write};
use crate::{ExecInput, ExecOutput, ExecRequest};

/// A command that runs. It is killed when both halves are dropped before it has ended.
#[derive(Debug)]
pub struct ExecConnection {
    /// Tells it things.
    pub sender: ExecSender,
    /// Hears of it.
    pub receiver: ExecReceiver,
}

/// Tells a command things.
#[derive(Debug)]
pub struct ExecSender {
    stream: WriteHalf<Upgraded>,
}

/// Hears of a command.
#[derive(Debug)]
pub struct ExecReceiver {
    operation: String,
    stream: ReadHalf<Upgraded>,
}

impl Client {
    /// Runs a command in a running instance, named by its id, its Durable Object's, or the beginning of either.
    pub async fn exec(&self, instance: &str, request: &ExecRequest) -> Result<ExecConnection, ClientError> {
        let operation = format!("run a command in instance `{instance}`");
        let path = format!("/containers/instances/{}/exec", segment(instance));
        let asking = self.request(Method::POST, &path).header(CONNECTION, "upgrade").header(UPGRADE, PROTOCOL);
        let response = asking.json(request).send().await;
        let response = response.map_err(|source| ClientError::broken(operation.clone(), source))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ClientError::refused(&operation, response).await);
        }
        let stream = response.upgrade().await.map_err(|source| ClientError::broken(operation.clone(), source))?;
        let (from_server, to_server) = tokio::io::split(stream);
        let receiver = ExecReceiver { operation, stream: from_server };
        Ok(ExecConnection { sender: ExecSender { stream: to_server }, receiver })
    }
}

impl ExecSender {
    /// Tells it `input`, waiting while it reads slowly. An error means that it has ended, or the server has.
    pub async fn send(&mut self, input: ExecInput) -> std::io::Result<()> {
        let ExecInput::Data(mut bytes) = input else { return write(&mut self.stream, &input).await };
        while !bytes.is_empty() {
            let part: Bytes = bytes.split_to(bytes.len().min(CONTENT_MAX));
            write(&mut self.stream, &ExecInput::Data(part)).await?;
        }
        Ok(())
    }
}

impl ExecReceiver {
    /// What it tells next. The last is [`ExecOutput::Exit`]; an end without is an error.
    pub async fn next(&mut self) -> Result<ExecOutput, ClientError> {
        let lost =
            |reason: String| ClientError { operation: self.operation.clone(), kind: ClientErrorKind::Lost(reason) };
        match read(&mut self.stream).await {
            Ok(Some(output)) => Ok(output),
            Ok(None) => Err(lost("the server ended it".to_string())),
            Err(error) => Err(lost(error.to_string())),
        }
    }
}
