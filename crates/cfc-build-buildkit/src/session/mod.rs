//! The session: what the daemon may ask of us while it builds. It is the client then, and we serve, over a stream of
//! bytes inside of our own call.
//!
//! ```text
//! we ── Control.Session ──► daemon
//!    ◄─ HTTP/2 in BytesMessages: FileSync, FileSend, Auth, Secrets, SSH, Health, Content ─
//! ```

mod auth;
mod content;
mod export;
mod files;
mod health;
mod secrets;
mod ssh;
mod walk;

use bollard_buildkit_proto::health::health_server::HealthServer;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::filesync::v1::auth_server::AuthServer;
use bollard_buildkit_proto::moby::filesync::v1::file_send_server::FileSendServer;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server::FileSyncServer;
use bollard_buildkit_proto::moby::sshforward::v1::ssh_server::SshServer;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

pub(crate) use self::auth::Auth;
pub(crate) use self::content::{Blobs, Content, Last, STORE as CONTENT_STORE};
pub(crate) use self::export::{Export, NOBODY_TAKES_IT};
pub(crate) use self::files::Files;
pub(crate) use self::secrets::Secrets;
pub(crate) use self::ssh::Ssh;
pub(crate) use self::walk::{LocalFiles, links_on};
use crate::connect::{MAX_MESSAGE_BYTES, root_cause};
use crate::failure::{Result, refused};

/// What is between the two halves of the session's connection, in bytes.
const BUFFER_BYTES: usize = 1 << 20;
/// How much of it one message carries.
const MESSAGE_BYTES: usize = 32 << 10;
/// How much of one stream, and of all of them, may be under way.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// What the daemon may call; it asks before it calls.
const METHODS: [&str; 14] = [
    "/grpc.health.v1.Health/Check",
    "/moby.filesync.v1.FileSync/DiffCopy",
    "/moby.filesync.v1.FileSend/DiffCopy",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.filesync.v1.Auth/FetchToken",
    "/moby.filesync.v1.Auth/GetTokenAuthority",
    "/moby.filesync.v1.Auth/VerifyTokenAuthority",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.sshforward.v1.SSH/CheckAgent",
    "/moby.sshforward.v1.SSH/ForwardAgent",
    "/containerd.services.content.v1.Content/Info",
    "/containerd.services.content.v1.Content/Read",
    "/containerd.services.content.v1.Content/Write",
    "/containerd.services.content.v1.Content/Abort",
];

/// What a session offers.
pub(crate) struct Services {
    pub(crate) files: Files,
    pub(crate) export: Export,
    pub(crate) auth: Auth,
    pub(crate) secrets: Secrets,
    pub(crate) ssh: Ssh,
    pub(crate) content: Content,
}

/// An open session. It ends when dropped.
pub(crate) struct Session {
    tasks: Vec<JoinHandle<()>>,
}

impl Session {
    /// Opens the session `id` with the daemon behind `channel`.
    pub(crate) async fn open(channel: Channel, address: &str, id: &str, services: Services) -> Result<Session> {
        let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
        let mut tasks = vec![tokio::spawn(serve(ours, services))];
        let (reader, writer) = tokio::io::split(theirs);
        let (sender, receiver) = mpsc::channel(16);
        tasks.push(tokio::spawn(send(reader, sender)));
        let mut request = Request::new(ReceiverStream::new(receiver));
        let metadata = request.metadata_mut();
        let value = |text: &str| MetadataValue::try_from(text).expect("ids and names are ASCII");
        metadata.insert("x-docker-expose-session-uuid", value(id));
        metadata.insert("x-docker-expose-session-name", value("cfc"));
        metadata.insert("x-docker-expose-session-sharedkey", value(""));
        for method in METHODS {
            metadata.append("x-docker-expose-session-grpc-method", value(method));
        }
        let mut session = Session { tasks };
        let opened = ControlClient::new(channel).session(request).await;
        let incoming = opened.map_err(|status| refused(address, "open a session", &status))?.into_inner();
        session.tasks.push(tokio::spawn(receive(incoming, writer)));
        Ok(session)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn serve(connection: DuplexStream, services: Services) {
    let routes = Routes::new(HealthServer::new(health::Healthy))
        .add_service(FileSyncServer::new(services.files))
        .add_service(FileSendServer::new(services.export).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(AuthServer::new(services.auth))
        .add_service(SecretsServer::new(services.secrets))
        .add_service(SshServer::new(services.ssh))
        .add_service(services.content)
        .prepare();
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .serve_connection(TokioIo::new(connection), TowerToHyperService::new(routes))
        .await;
    if let Err(error) = served {
        // Whoever waits for the build is told by the call that failed.
        tracing::debug!(error = root_cause(&error), "the session has ended");
    }
}

async fn send(mut reader: ReadHalf<DuplexStream>, sender: mpsc::Sender<BytesMessage>) {
    let mut buffer = vec![0; MESSAGE_BYTES];
    while let Ok(length @ 1..) = reader.read(&mut buffer).await {
        if sender.send(BytesMessage { data: buffer[..length].to_vec() }).await.is_err() {
            return;
        }
    }
}

async fn receive(mut incoming: Streaming<BytesMessage>, mut writer: WriteHalf<DuplexStream>) {
    while let Ok(Some(message)) = incoming.message().await {
        if writer.write_all(&message.data).await.is_err() {
            return;
        }
    }
    // The daemon hung up, and so do we.
    let _ = writer.shutdown().await;
}
