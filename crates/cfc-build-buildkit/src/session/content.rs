//! Content stores, as containerd's API has them: one with the base images of the build, of which the daemon reads the blobs
//! that it does not have, and one for each directory with a build cache, which it reads or writes.

mod proto;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs::File;
use std::future::Future;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use cfc_oci::Digest;
use cfc_store::{BlobStore, StoreError, open_layout_blob};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::Service;

pub(crate) use self::writing::Last;
use self::writing::Writing;
use crate::arrivals::Arrivals;
use crate::connect::MAX_MESSAGE_BYTES;

/// What the store of base images is called in LLB, and how the daemon calls such a store when it asks.
pub(crate) const STORE: &str = "cfc";
const LAYOUT_PREFIX: &str = "oci:";
/// How it calls the one that it exports the image into.
const EXPORTED: &str = "export";
/// How it calls those of caches.
const CACHE_PREFIX: &str = "local:";
/// Which store a call is for.
const STORE_ID: &str = "buildkit-attachable-store-id";
/// How much of a blob one message carries.
const MESSAGE_BYTES: usize = 256 << 10;

/// What is in a store.
#[derive(Clone)]
pub(crate) enum Blobs {
    /// The blobs of some images. The rest of the store is nobody's business.
    Images(BlobStore, Arc<BTreeSet<Digest>>),
    /// Those of an OCI layout, to be read.
    Layout(PathBuf),
    /// The same, to be written.
    Made(PathBuf, Last),
    /// Those of the image that is built, to be written.
    Image(Arrivals),
}

impl Blobs {
    fn open(&self, digest: &str) -> Result<(File, u64), Status> {
        let digest = digest.parse::<Digest>().map_err(|error| Status::invalid_argument(error.to_string()))?;
        let opened = match self {
            Blobs::Images(_, shown) if !shown.contains(&digest) => {
                return Err(Status::not_found(format!("content `{digest}`: not found")));
            }
            Blobs::Images(blobs, _) => blobs.size(&digest).and_then(|size| Ok((blobs.open(&digest)?, size))),
            Blobs::Layout(directory) | Blobs::Made(directory, _) => open_layout_blob(directory, &digest),
            Blobs::Image(_) => return Err(Status::not_found(format!("content `{digest}`: not found"))),
        };
        opened.map_err(|error| failed(&error))
    }
}

/// All stores of a session, by what the daemon calls them.
#[derive(Clone)]
pub(crate) struct Content(Arc<BTreeMap<String, Blobs>>);

impl Content {
    /// The base images, the image that is built, and caches by the names that the daemon was given for them.
    pub(crate) fn new(images: Blobs, image: Option<Blobs>, caches: impl Iterator<Item = (String, Blobs)>) -> Content {
        let caches = caches.map(|(name, blobs)| (format!("{CACHE_PREFIX}{name}"), blobs));
        let image = image.map(|image| (EXPORTED.to_string(), image));
        Content(Arc::new(caches.chain(image).chain([(format!("{LAYOUT_PREFIX}{STORE}"), images)]).collect()))
    }

    /// The store that a call is for.
    fn store(&self, metadata: &MetadataMap) -> Result<&Blobs, Status> {
        let id = metadata.get(STORE_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
        self.0.get(id).ok_or_else(|| Status::not_found(format!("there is no content store `{id}`")))
    }

    fn info(&self, request: &Request<proto::InfoRequest>) -> Result<proto::InfoResponse, Status> {
        let digest = &request.get_ref().digest;
        let (_, size) = self.store(request.metadata())?.open(digest)?;
        let size = i64::try_from(size).map_err(|_| Status::out_of_range("a blob of more than 8 EiB"))?;
        Ok(proto::InfoResponse { info: Some(proto::Info { digest: digest.clone(), size }) })
    }

    fn read(&self, request: &Request<proto::ReadContentRequest>) -> Result<ReadStream, Status> {
        let wanted = request.get_ref();
        let (mut file, _) = self.store(request.metadata())?.open(&wanted.digest)?;
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

    fn write(&self, request: Request<Streaming<proto::WriteContentRequest>>) -> Result<WriteStream, Status> {
        let blobs = self.store(request.metadata())?.clone();
        let (sender, receiver) = mpsc::channel(4);
        let mut requests = request.into_inner();
        // On a thread of its own, since it writes to the disk.
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            let mut writing = None;
            loop {
                let Ok(Some(request)) = runtime.block_on(requests.message()) else { return };
                let begun = match writing.take() {
                    None => Writing::begin(&blobs, &request),
                    Some(writing) => Ok(writing),
                };
                let answered = begun.and_then(|begun| writing.insert(begun).take(request));
                let is_over = !matches!(answered, Ok((_, false)));
                if sender.blocking_send(answered.map(|(answer, _)| answer)).is_err() || is_over {
                    return;
                }
            }
        });
        Ok(ReceiverStream::new(receiver))
    }
}

type ReadStream = ReceiverStream<Result<proto::ReadContentResponse, Status>>;
type WriteStream = ReceiverStream<Result<proto::WriteContentResponse, Status>>;

fn wanted_offset(begin: u64) -> i64 {
    i64::try_from(begin).unwrap_or(i64::MAX)
}

fn failed(error: &StoreError) -> Status {
    let text = format!("{error}: {}", error.kind);
    if error.is_missing() { Status::not_found(text) } else { Status::internal(text) }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

fn answer<T: Send + 'static>(answer: Result<T, Status>) -> Answer<T> {
    Box::pin(async { answer.map(Response::new) })
}

struct Info(Content);

impl UnaryService<proto::InfoRequest> for Info {
    type Response = proto::InfoResponse;
    type Future = Answer<Self::Response>;

    fn call(&mut self, request: Request<proto::InfoRequest>) -> Self::Future {
        answer(self.0.info(&request))
    }
}

struct Reading(Content);

impl ServerStreamingService<proto::ReadContentRequest> for Reading {
    type Response = proto::ReadContentResponse;
    type ResponseStream = ReadStream;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, request: Request<proto::ReadContentRequest>) -> Self::Future {
        answer(self.0.read(&request))
    }
}

struct Made(Content);

impl StreamingService<proto::WriteContentRequest> for Made {
    type Response = proto::WriteContentResponse;
    type ResponseStream = WriteStream;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, request: Request<Streaming<proto::WriteContentRequest>>) -> Self::Future {
        answer(self.0.write(request))
    }
}

/// Nothing is kept of a blob whose stream ended before it did.
struct Abort;

impl UnaryService<proto::AbortRequest> for Abort {
    type Response = proto::Empty;
    type Future = Answer<Self::Response>;

    fn call(&mut self, _: Request<proto::AbortRequest>) -> Self::Future {
        answer(Ok(proto::Empty {}))
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
                Some("Write") => {
                    let mut grpc = Grpc::new(ProstCodec::default()).max_decoding_message_size(MAX_MESSAGE_BYTES);
                    grpc.streaming(Made(content), request).await
                }
                Some("Abort") => Grpc::new(ProstCodec::default()).unary(Abort, request).await,
                _ => Status::unimplemented("this content store can only be read and written").into_http(),
            })
        })
    }
}
