//! What comes back: the archive of the image, piece by piece, handed to whoever takes it apart.

use std::sync::{Mutex, PoisonError};

use bollard_buildkit_proto::moby::filesync::v1 as proto;
use tonic::{Request, Response, Status, Streaming};

use crate::pieces::{PieceSender, Pieces, pieces};

/// How many pieces wait to be read: the daemon waits then, too.
const WAITING: usize = 64;
/// What the daemon is told, and tells us, when we gave an archive up.
pub(crate) const NOBODY_TAKES_IT: &str = "nobody takes the archive any more";

/// Takes the archive, once.
pub(crate) struct Export(Mutex<Option<PieceSender>>);

impl Export {
    /// The two ends. The archive ends where the daemon ends it; only the answer to the build says whether it is whole.
    pub(crate) fn new() -> (Export, Pieces) {
        let (sender, received) = pieces(WAITING);
        (Export(Mutex::new(Some(sender))), received)
    }

    /// One that takes nothing.
    pub(crate) fn closed() -> Export {
        Export(Mutex::new(None))
    }
}

#[tonic::async_trait]
impl proto::file_send_server::FileSend for Export {
    type DiffCopyStream = tokio_stream::Empty<Result<proto::BytesMessage, Status>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<proto::BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let sender = sender.ok_or_else(|| Status::already_exists("an archive was taken already"))?;
        let mut incoming = request.into_inner();
        while let Some(message) = incoming.message().await? {
            if sender.send(Ok(message.data.into())).await.is_err() {
                return Err(Status::cancelled(NOBODY_TAKES_IT));
            }
        }
        Ok(Response::new(tokio_stream::empty()))
    }
}
