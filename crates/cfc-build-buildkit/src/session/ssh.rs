//! The ssh agents of the build: each connection that a program makes becomes one to the agent's socket here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;

use bollard_buildkit_proto::moby::sshforward::v1 as proto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Which agent a connection is for.
const ID: &str = "buildkit.ssh.id";
const USUAL_ID: &str = "default";
const MESSAGE_BYTES: usize = 32 << 10;

/// Sockets of agents, by id.
pub(crate) struct Ssh(pub(crate) BTreeMap<String, PathBuf>);

impl Ssh {
    fn socket(&self, id: &str) -> Result<&PathBuf, Status> {
        let id = if id.is_empty() { USUAL_ID } else { id };
        self.0.get(id).ok_or_else(|| Status::not_found(format!("there is no ssh agent `{id}`")))
    }
}

type Bytes = Result<proto::BytesMessage, Status>;

#[tonic::async_trait]
impl proto::ssh_server::Ssh for Ssh {
    async fn check_agent(
        &self,
        request: Request<proto::CheckAgentRequest>,
    ) -> Result<Response<proto::CheckAgentResponse>, Status> {
        self.socket(&request.into_inner().id)?;
        Ok(Response::new(proto::CheckAgentResponse {}))
    }

    type ForwardAgentStream = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

    async fn forward_agent(
        &self,
        request: Request<Streaming<proto::BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = request.metadata().get(ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
        let path = self.socket(id)?;
        let agent = UnixStream::connect(path).await;
        let agent = agent.map_err(|error| Status::unavailable(format!("ssh agent `{}`: {error}", path.display())))?;
        let (mut reader, mut writer) = agent.into_split();
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                if writer.write_all(&message.data).await.is_err() {
                    return;
                }
            }
        });
        let (sender, receiver) = mpsc::channel::<Bytes>(4);
        tokio::spawn(async move {
            let mut buffer = vec![0; MESSAGE_BYTES];
            while let Ok(length @ 1..) = reader.read(&mut buffer).await {
                if sender.send(Ok(proto::BytesMessage { data: buffer[..length].to_vec() })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
