//! [`Hooks`]: tells others of what was pushed and deleted, in the envelope of distribution's notifications, so that what
//! was written to receive those receives these.
//!
//! Each receiver has a queue in memory and a task that empties it: no client waits for a receiver, and none waits for
//! another. What waits when the process ends is lost, unless that [waits](Hooks::finish) for it, as is what finds a full
//! queue.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cfc_oci::{Digest, RepositoryName, Tag};
use http::header;
use http::request::Parts;
use serde::Serialize;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::StorageError;
use crate::access::{check_pattern, matches};
use crate::error::Chain;
use crate::token::{hex, mac};

const MEDIA_TYPE: &str = "application/vnd.docker.distribution.events.v1+json";

/// Events that wait for one receiver.
const WAITING: usize = 1000;

/// A receiver has this long to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often who waits for the end looks.
const GLANCE: Duration = Duration::from_millis(10);

/// What stands in the place of a client's name for itself in an event of what retention did.
const RETENTION: &str = "cfc-registry-retention";

/// What is kept of a client's own words.
const MAX_WORDS: usize = 200;

/// A receiver of events.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Where events are posted. Redirects are not followed.
    pub url: String,
    /// Further headers, as for a receiver that wants a password.
    pub headers: BTreeMap<String, String>,
    /// Signs each body: `X-Cfc-Signature-256: sha256=<HMAC in hexadecimal digits>`.
    pub secret: Option<String>,
    /// Patterns of the repositories whose events it gets.
    pub repositories: Vec<String>,
    /// Which events it gets.
    pub events: Vec<HookEvent>,
    /// How often an event is tried.
    pub attempts: u32,
    /// How long until the second time; the time doubles, up to a minute.
    pub backoff: Duration,
}

/// What others are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HookEvent {
    /// A manifest was pushed; one event a tag.
    Push,
    /// A manifest or a tag was deleted.
    Delete,
}

/// The receivers of one registry.
#[derive(Default)]
pub(crate) struct Hooks {
    hooks: Vec<Hook>,
    pub counts: Arc<Counts>,
}

/// How events ended.
#[derive(Default)]
pub(crate) struct Counts {
    /// They wait, or waited, for a receiver.
    pub queued: AtomicU64,
    pub delivered: AtomicU64,
    /// The receiver did not take it, however often it was tried.
    pub failed: AtomicU64,
    /// It found a full queue.
    pub dropped: AtomicU64,
}

struct Hook {
    webhook: Arc<Webhook>,
    client: reqwest::Client,
    queue: OnceLock<Sender<Event>>,
}

/// What is told of: distribution's `Event` (`notifications/event.go`).
#[derive(Clone, Debug, Serialize)]
struct Event {
    id: String,
    timestamp: String,
    action: HookEvent,
    target: Target,
    request: RequestRecord,
    actor: Actor,
    source: Source,
}

/// What of a repository it happened to.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Target {
    #[serde(rename = "mediaType", skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The same number again, under the name that older receivers read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    pub repository: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct RequestRecord {
    id: String,
    addr: String,
    host: String,
    method: String,
    useragent: String,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Actor {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Source {
    addr: String,
    #[serde(rename = "instanceID")]
    instance: String,
}

/// Who did it, and how.
pub(crate) enum Cause<'a> {
    /// A client.
    Request {
        parts: &'a Parts,
        address: Option<std::net::IpAddr>,
        user: Option<String>,
        /// The URL under which the client knows the registry.
        base: &'a str,
    },
    /// The registry, by its own rules about tags.
    Retention {
        /// Under which URL clients know it, if that is configured.
        url: Option<&'a str>,
    },
}

impl Target {
    /// A manifest that was pushed, under a tag or under none.
    pub(crate) fn manifest(name: &RepositoryName, media_type: &str, digest: &Digest, size: u64) -> Target {
        Target {
            media_type: Some(media_type.to_string()),
            digest: Some(digest.clone()),
            size: Some(size),
            length: Some(size),
            repository: name.to_string(),
            ..Target::default()
        }
    }

    pub(crate) fn tagged(&self, tag: &Tag) -> Target {
        Target { tag: Some(tag.to_string()), ..self.clone() }
    }
}

impl Hooks {
    /// Fails when one of them could never be told anything.
    pub(crate) fn new(webhooks: &[Webhook]) -> Result<Hooks, StorageError> {
        let hook = |webhook: &Webhook| {
            let client = usable(webhook).and_then(|()| client(&webhook.url).map_err(|e| Chain(&e).to_string()));
            let cannot = |why: String| StorageError::new("use", format!("webhook {}", shown(&webhook.url)), why);
            Ok(Hook { webhook: Arc::new(webhook.clone()), client: client.map_err(cannot)?, queue: OnceLock::new() })
        };
        Ok(Hooks { hooks: webhooks.iter().map(hook).collect::<Result<_, _>>()?, counts: Arc::default() })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.hooks.is_empty()
    }

    /// Tells all who want to hear it; waits for nobody.
    pub(crate) fn tell(&self, action: HookEvent, cause: &Cause<'_>, targets: Vec<Target>) {
        for target in targets {
            let event = event(action, cause, target);
            for hook in self.hooks.iter().filter(|hook| hook.wants(&event)) {
                let queue = hook.queue.get_or_init(|| {
                    let (queue, waiting) = channel(WAITING);
                    tokio::spawn(deliver_all(waiting, hook.client.clone(), hook.webhook.clone(), self.counts.clone()));
                    queue
                });
                self.counts.queued.fetch_add(1, Ordering::Relaxed);
                if queue.try_send(event.clone()).is_err() {
                    self.counts.dropped.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(
                        receiver = shown(&hook.webhook.url),
                        "an event is lost: {WAITING} wait for this receiver"
                    );
                }
            }
        }
    }
}

impl Hooks {
    /// Waits until every receiver's queue has room, but no longer than `until`.
    pub(crate) async fn wait_for_room(&self, until: tokio::time::Instant) {
        let is_full = |hook: &Hook| hook.queue.get().is_some_and(|queue| queue.capacity() == 0);
        while self.hooks.iter().any(is_full) && tokio::time::Instant::now() < until {
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// Waits until every event has ended in some way, but no longer than `patience`. How many no receiver has taken.
    pub(crate) async fn finish(&self, patience: Duration) -> u64 {
        let until = tokio::time::Instant::now() + patience;
        while self.counts.waiting() > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(GLANCE).await;
        }
        self.counts.queued.load(Ordering::Relaxed) - self.counts.delivered.load(Ordering::Relaxed)
    }
}

impl Counts {
    fn waiting(&self) -> u64 {
        let ended = [&self.delivered, &self.failed, &self.dropped].map(|count| count.load(Ordering::Relaxed));
        self.queued.load(Ordering::Relaxed).saturating_sub(ended.iter().sum())
    }
}

impl Hook {
    fn wants(&self, event: &Event) -> bool {
        let is_there = |pattern: &String| matches(pattern, &event.target.repository);
        self.webhook.events.contains(&event.action) && self.webhook.repositories.iter().any(is_there)
    }
}

fn event(action: HookEvent, cause: &Cause<'_>, mut target: Target) -> Event {
    let at = |digest: &Digest| format!("{}/v2/{}/manifests/{digest}", cause.base(), target.repository);
    target.url = target.digest.as_ref().filter(|_| action == HookEvent::Push).map(at);
    let request = cause.request();
    let source = Source { addr: request.host.clone(), instance: instance().to_string() };
    Event {
        id: unique(),
        timestamp: cfc_oci::rfc3339(crate::token::now() as i64),
        action,
        target,
        request,
        actor: Actor { name: cause.user() },
        source,
    }
}

impl Cause<'_> {
    fn base(&self) -> &str {
        match self {
            Cause::Request { base, .. } => base,
            Cause::Retention { url } => url.unwrap_or_default(),
        }
    }

    fn user(&self) -> Option<String> {
        match self {
            Cause::Request { user, .. } => user.clone(),
            Cause::Retention { .. } => None,
        }
    }

    /// The request; of what nobody has asked for, one without an address and a method.
    fn request(&self) -> RequestRecord {
        match self {
            Cause::Request { parts, address, .. } => {
                let text = |name| {
                    let value = parts.headers.get(name).and_then(|value| value.to_str().ok());
                    value.unwrap_or_default().chars().take(MAX_WORDS).collect::<String>()
                };
                RequestRecord {
                    id: unique(),
                    addr: address.map(|address| address.to_string()).unwrap_or_default(),
                    host: text(header::HOST),
                    method: parts.method.to_string(),
                    useragent: text(header::USER_AGENT),
                }
            }
            Cause::Retention { url } => {
                let host = url.and_then(|url| url.split_once("://")).map_or("", |(_, rest)| rest);
                let host = host.split('/').next().unwrap_or_default().to_string();
                RequestRecord {
                    id: unique(),
                    addr: String::new(),
                    host,
                    method: String::new(),
                    useragent: RETENTION.to_string(),
                }
            }
        }
    }
}

fn unique() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Tells this process from others.
fn instance() -> &'static str {
    static INSTANCE: OnceLock<String> = OnceLock::new();
    INSTANCE.get_or_init(|| uuid::Uuid::new_v4().to_string())
}

/// Says what is wrong with a webhook that could never be told anything.
fn usable(webhook: &Webhook) -> Result<(), String> {
    let url = reqwest::Url::parse(&webhook.url).map_err(|error| format!("its URL is none: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("expected a URL of `https` or `http`, found `{}`", url.scheme()));
    }
    for (name, value) in &webhook.headers {
        http::HeaderName::try_from(name).map_err(|_| format!("`{name}` is no name of a header"))?;
        // The value may be a secret.
        http::HeaderValue::try_from(value).map_err(|_| format!("the value of `{name}` cannot be in a header"))?;
    }
    if webhook.events.is_empty() || webhook.repositories.is_empty() || webhook.attempts == 0 {
        return Err("it is told of no event, or of no repository".to_string());
    }
    webhook.repositories.iter().try_for_each(|pattern| check_pattern(pattern))
}

async fn deliver_all(
    mut waiting: Receiver<Event>,
    client: reqwest::Client,
    webhook: Arc<Webhook>,
    counts: Arc<Counts>,
) {
    while let Some(event) = waiting.recv().await {
        let count = match deliver(&client, &webhook, &event).await {
            true => &counts.delivered,
            false => &counts.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Scheme, host and port of an address: what follows them, and what stands before the host, may be a secret.
fn shown(url: &str) -> String {
    reqwest::Url::parse(url).map(|url| url.origin().ascii_serialization()).unwrap_or_default()
}

fn client(url: &str) -> reqwest::Result<reqwest::Client> {
    // Whoever installs one first wins, and any is fine.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    // A proxy that happens to be in the environment would see headers and signatures that are for the receiver alone.
    let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().timeout(PATIENCE);
    match url.starts_with("http://") {
        // Needs no certificates, and so works where the system has none.
        true => builder.tls_certs_only([]).build(),
        false => builder.build(),
    }
}

/// Whether the receiver has taken the event.
async fn deliver(client: &reqwest::Client, webhook: &Webhook, event: &Event) -> bool {
    let body = serde_json::json!({ "events": [event] }).to_string();
    let receiver = shown(&webhook.url);
    let mut wait = webhook.backoff;
    for attempt in 1..=webhook.attempts {
        match post(client, webhook, &body).await {
            Ok(status) if status.is_success() => return true,
            Ok(status) => {
                tracing::warn!(receiver, %status, attempt, "a receiver did not take an event");
                // It will not take it the next time either.
                if status.is_client_error() && !matches!(status.as_u16(), 408 | 429) {
                    break;
                }
            }
            Err(error) => {
                let error = error.without_url();
                tracing::warn!(receiver, error = %Chain(&error), attempt, "a receiver cannot be reached");
            }
        }
        if attempt < webhook.attempts {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(60));
        }
    }
    tracing::error!(receiver, id = event.id, "gave up telling a receiver of an event");
    false
}

async fn post(client: &reqwest::Client, webhook: &Webhook, body: &str) -> Result<reqwest::StatusCode, reqwest::Error> {
    let mut request = client.post(&webhook.url).header(header::CONTENT_TYPE, MEDIA_TYPE);
    for (name, value) in &webhook.headers {
        request = request.header(name, value);
    }
    if let Some(secret) = &webhook.secret {
        let signature = hex(&mac(secret.as_bytes(), &[body.as_bytes()]));
        request = request.header("x-cfc-signature-256", format!("sha256={signature}"));
    }
    Ok(request.body(body.to_string()).send().await?.status())
}
