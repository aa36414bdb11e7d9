//! [`Visit`]: one request from its head to the last byte of its answer, for the metrics and the audit log.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, header};
use hyper::body::{Frame, SizeHint};

use crate::LoanRecord;
use crate::audit::Entry;
use crate::registry::Inner;
use crate::route::{ManifestName, Resource, Route};

/// The status of a request whose client went away before there was an answer; by custom, as HTTP has none.
const GONE: u16 = 499;

/// Where a request comes from.
#[derive(Clone, Copy)]
pub(crate) struct Peer(pub SocketAddr);

/// One request. When it is dropped, it is over.
pub(crate) struct Visit {
    registry: Arc<Inner>,
    began: Instant,
    method: Method,
    kind: Kind,
    status: u16,
    received: Arc<AtomicU64>,
    sent: u64,
    entry: Entry,
    /// Whether the client has shown that it is who it says.
    proof: Arc<AtomicBool>,
}

macro_rules! kinds {
    ($($name:ident $text:literal,)*) => {
        /// What a request is about, as metrics tell it: few, whatever clients ask for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Kind { $($name),* }

        impl Kind {
            pub(crate) fn text(self) -> &'static str {
                match self { $(Kind::$name => $text),* }
            }
        }
    };
}

kinds! {
    Base "base",
    Blob "blob",
    Catalog "catalog",
    Collection "collection",
    Loan "loan",
    Manifest "manifest",
    Other "other",
    Referrers "referrers",
    Retention "retention",
    Tags "tags",
    Token "token",
    Upload "upload",
}

impl Visit {
    pub(crate) fn begin(registry: &Arc<Inner>, parts: &Parts) -> Visit {
        let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_string);
        let entry = Entry {
            address: address(registry, parts).map(|address| address.to_string()),
            user_agent: text(header::USER_AGENT).map(|agent| agent.chars().take(200).collect()),
            ..Entry::default()
        };
        Visit {
            registry: registry.clone(),
            began: Instant::now(),
            method: parts.method.clone(),
            kind: Kind::Other,
            status: GONE,
            received: Arc::default(),
            sent: 0,
            entry,
            proof: Arc::default(),
        }
    }

    /// The body, counted.
    pub(crate) fn count(&self, body: Body) -> Body {
        use http_body_util::BodyExt;
        let received = self.received.clone();
        Body::new(body.map_frame(move |frame| {
            received.fetch_add(frame.data_ref().map_or(0, Bytes::len) as u64, Ordering::Relaxed);
            frame
        }))
    }

    /// Learns what the request is about.
    pub(crate) fn is_about(&mut self, route: &Route) {
        let entry = &mut self.entry;
        self.kind = match route {
            Route::Base => Kind::Base,
            Route::Catalog => Kind::Catalog,
            Route::Collection => Kind::Collection,
            Route::Repository(name, resource) => {
                entry.repository = Some(name.to_string());
                match resource {
                    Resource::Tags => Kind::Tags,
                    Resource::Manifest(reference) => {
                        match reference {
                            ManifestName::Digest(digest) => entry.digest = Some(digest.to_string()),
                            ManifestName::Tag(tag) => entry.reference = Some(tag.to_string()),
                            ManifestName::Impossible(_) => {}
                        }
                        Kind::Manifest
                    }
                    Resource::Blob(digest) => {
                        entry.digest = Some(digest.to_string());
                        Kind::Blob
                    }
                    Resource::Uploads => Kind::Upload,
                    Resource::Upload(id) => {
                        entry.reference = Some(id.to_string());
                        Kind::Upload
                    }
                    Resource::Referrers(digest) => {
                        entry.digest = Some(digest.to_string());
                        Kind::Referrers
                    }
                }
            }
        };
        if self.is_upload() {
            self.registry.metrics.uploads.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_for_a_token(&mut self) {
        self.kind = Kind::Token;
    }

    pub(crate) fn is_for_retention(&mut self) {
        self.kind = Kind::Retention;
    }

    pub(crate) fn is_for_a_loan(&mut self) {
        self.kind = Kind::Loan;
    }

    /// Learns which password is made or taken back.
    pub(crate) fn is_about_loan(&mut self, record: LoanRecord) {
        self.entry.lent = Some(record);
    }

    /// Learns how the client calls itself.
    pub(crate) fn is_by(&mut self, user: Option<String>) {
        self.entry.user = user;
    }

    /// What is set once the client has shown that it is who it says.
    pub(crate) fn proof(&self) -> Arc<AtomicBool> {
        self.proof.clone()
    }

    /// Learns the answer, and goes on until that was sent.
    pub(crate) fn answer(mut self, response: Response) -> Response {
        self.status = response.status().as_u16();
        if self.entry.digest.is_none() {
            let digest = response.headers().get("docker-content-digest").and_then(|digest| digest.to_str().ok());
            self.entry.digest = digest.map(str::to_string);
        }
        response.map(|body| Body::new(Sent { body, visit: self }))
    }

    fn is_upload(&self) -> bool {
        self.kind == Kind::Upload && matches!(self.method, Method::POST | Method::PATCH | Method::PUT)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.is_upload() {
            self.registry.metrics.uploads.fetch_sub(1, Ordering::Relaxed);
        }
        let (took, received) = (self.began.elapsed(), self.received.load(Ordering::Relaxed));
        self.registry.metrics.count(&self.method, self.kind, self.status, took, (received, self.sent));
        let Some(log) = &self.registry.options.audit else { return };
        // That a client looks whether the registry is there says nothing of anybody.
        if self.kind == Kind::Base && self.status < 300 {
            return;
        }
        let mut entry = std::mem::take(&mut self.entry);
        if !self.proof.load(Ordering::Relaxed) {
            entry.claimed_user = entry.user.take();
        }
        entry.finish(&self.method, self.kind, self.status, took, (received, self.sent));
        log.write(&entry);
    }
}

/// A body on its way to a client.
struct Sent {
    body: Body,
    visit: Visit,
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.visit.sent += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Who is at the other end. What proxies say counts as far as they are ours: the last address that none of them has.
pub(crate) fn address(registry: &Inner, parts: &Parts) -> Option<IpAddr> {
    let peer = parts.extensions.get::<Peer>()?.0.ip().to_canonical();
    let proxies = &registry.options.trusted_proxies;
    if !is_behind_proxy(registry, parts) {
        return Some(peer);
    }
    let headers = parts.headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let named: Vec<&str> = headers.flat_map(|value| value.split(',')).collect();
    let named = named.iter().rev().map_while(|text| text.trim().parse::<IpAddr>().ok());
    Some(
        named
            .map(|address| address.to_canonical())
            .find(|address| !proxies.iter().any(|net| net.contains(address)))
            .unwrap_or(peer),
    )
}

/// Whether a request comes from one of our proxies, whose word counts.
pub(crate) fn is_behind_proxy(registry: &Inner, parts: &Parts) -> bool {
    let peer = parts.extensions.get::<Peer>().map(|peer| peer.0.ip().to_canonical());
    peer.is_some_and(|peer| registry.options.trusted_proxies.iter().any(|net| net.contains(&peer)))
}

/// How long something took, in milliseconds.
pub(crate) fn milliseconds(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
