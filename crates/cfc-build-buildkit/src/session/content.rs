//! A content store with the base images of the build, as containerd's API has it: the daemon reads the blobs that it does
//! not have.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::io::{Read, Seek, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use cfc_oci::Digest;
use cfc_store::BlobStore;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

/// What the daemon calls the store.
pub(crate) const STORE: &str = "cfc";
/// How much of a blob one message carries.
const MESSAGE_BYTES: usize = 256 << 10;

/// The messages of `containerd.services.content.v1` that are needed to read.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct InfoRequest {
        #[prost(string, tag = "1")]
        pub digest: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct InfoResponse {
        #[prost(message, optional, tag = "1")]
        pub info: Option<Info>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Info {
        #[prost(string, tag = "1")]
        pub digest: String,
        #[prost(int64, tag = "2")]
        pub size: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ReadContentRequest {
        #[prost(string, tag = "1")]
        pub digest: String,
        #[prost(int64, tag = "2")]
        pub offset: i64,
        /// All the rest when 0.
        #[prost(int64, tag = "3")]
        pub size: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ReadContentResponse {
        #[prost(int64, tag = "1")]
        pub offset: i64,
        #[prost(bytes = "vec", tag = "2")]
        pub data: Vec<u8>,
    }
}

/// The blobs of some images.
#[derive(Clone)]
pub(crate) struct Content {
    blobs: BlobStore,
    /// The rest of the store is nobody's business.
    shown: Arc<BTreeSet<Digest>>,
}

impl Content {
    /// The blobs `shown` of the store.
    pub(crate) fn new(blobs: BlobStore, shown: BTreeSet<Digest>) -> Content {
        Content { blobs, shown: Arc::new(shown) }
    }

    fn shown(&self, digest: &str) -> Result<Digest, Status> {
        let digest = digest.parse::<Digest>().map_err(|error| Status::invalid_argument(error.to_string()))?;
        match self.shown.contains(&digest) {
            true => Ok(digest),
            false => Err(Status::not_found(format!("content `{digest}`: not found"))),
        }
    }

    fn info(&self, digest: &str) -> Result<proto::InfoResponse, Status> {
        let size = self.blobs.size(&self.shown(digest)?).map_err(failed)?;
        let size = i64::try_from(size).map_err(|_| Status::out_of_range("a blob of more than 8 EiB"))?;
        Ok(proto::InfoResponse { info: Some(proto::Info { digest: digest.to_string(), size }) })
    }

    fn read(&self, wanted: &proto::ReadContentRequest) -> Result<ReadStream, Status> {
        let mut file = self.blobs.open(&self.shown(&wanted.digest)?).map_err(failed)?;
        let begin = u64::try_from(wanted.offset).map_err(|_| Status::invalid_argument("a negative offset"))?;
        file.seek(SeekFrom::Start(begin)).map_err(|error| Status::internal(error.to_string()))?;
        let mut rest = file.take(u64::try_from(wanted.size).ok().filter(|size| *size > 0).unwrap_or(u64::MAX));
        let (sender, receiver) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let mut offset = wanted_offset(begin);
            let mut buffer = vec![0; MESSAGE_BYTES];
            loop {
                let message = match rest.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) => Ok(proto::ReadContentResponse { offset, data: buffer[..length].to_vec() }),
                    Err(error) => Err(Status::internal(error.to_string())),
                };
                offset += message.as_ref().map_or(0, |message| message.data.len() as i64);
                let is_over = message.is_err();
                if sender.blocking_send(message).is_err() || is_over {
                    return;
                }
            }
        });
        Ok(ReceiverStream::new(receiver))
    }
}

type ReadStream = ReceiverStream<Result<proto::ReadContentResponse, Status>>;

fn wanted_offset(begin: u64) -> i64 {
    i64::try_from(begin).unwrap_or(i64::MAX)
}

fn failed(error: cfc_store::StoreError) -> Status {
    if error.is_missing() { Status::not_found(error.to_string()) } else { Status::internal(error.to_string()) }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

struct Info(Content);

impl UnaryService<proto::InfoRequest> for Info {
    type Response = proto::InfoResponse;
    type Future = Answer<Self::Response>;

    fn call(&mut self, request: Request<proto::InfoRequest>) -> Self::Future {
        let answer = self.0.info(&request.get_ref().digest).map(Response::new);
        Box::pin(async { answer })
    }
}

struct Reading(Content);

impl ServerStreamingService<proto::ReadContentRequest> for Reading {
    type Response = proto::ReadContentResponse;
    type ResponseStream = ReadStream;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, request: Request<proto::ReadContentRequest>) -> Self::Future {
        let answer = self.0.read(request.get_ref()).map(Response::new);
        Box::pin(async { answer })
    }
}

impl NamedService for Content {
    const NAME: &'static str = "containerd.services.content.v1.Content";
}

impl Service<http::Request<Body>> for Content {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let content = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path().rsplit('/').next() {
                Some("Info") => Grpc::new(ProstCodec::default()).unary(Info(content), request).await,
                Some("Read") => Grpc::new(ProstCodec::default()).server_streaming(Reading(content), request).await,
                _ => Status::unimplemented("this content store can only be read").into_http(),
            })
        })
    }
}
