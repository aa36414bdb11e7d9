//! [`Metrics`]: what the registry has counted since it began, for Prometheus. Labels are methods, kinds of requests and
//! statuses that the registry itself has: their number does not grow with what clients ask for.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, Method, header};

use crate::collect::Collected;
use crate::error::Chain;
use crate::files::blocking;
use crate::proxy::Upstreams;
use crate::quota::{Ledger, QuotaUse};
use crate::registry::Inner;
use crate::visit::Kind;

/// Upper bounds of how long requests took, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0];

/// Adding up what is stored means to look at all of it, which is done no more often, and takes no more than this part of
/// the time: a large registry is added up less often.
const USAGE_AGE: Duration = Duration::from_secs(60);
const USAGE_PART: u32 = 100;

/// Counts.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, Kind, u16), u64>>,
    durations: Mutex<BTreeMap<Kind, Histogram>>,
    received: AtomicU64,
    sent: AtomicU64,
    /// Requests that bring content of blobs right now.
    pub uploads: AtomicU64,
    /// Blobs fetched from upstreams, by what became of them.
    fetched: Mutex<BTreeMap<&'static str, u64>>,
    collections: AtomicU64,
    failed_collections: AtomicU64,
    collected: AtomicU64,
    collected_bytes: AtomicU64,
    usage: Mutex<Option<Usage>>,
    is_adding_up: AtomicBool,
}

#[derive(Clone, Copy, Default)]
struct Histogram {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

/// What was stored, when that was added up, and how long it took.
struct Usage {
    stored: Stored,
    added_up: Instant,
    took: Duration,
}

impl Usage {
    fn is_stale(&self, now: Instant) -> bool {
        now.duration_since(self.added_up) > USAGE_AGE.max(self.took.saturating_mul(USAGE_PART))
    }
}

/// What is stored.
#[derive(Clone, Copy)]
struct Stored {
    blobs: u64,
    bytes: u64,
    repositories: u64,
}

impl Metrics {
    pub(crate) fn count(&self, method: &Method, kind: Kind, status: u16, took: Duration, bytes: (u64, u64)) {
        let method = match method.as_str() {
            "GET" => "GET",
            "HEAD" => "HEAD",
            "POST" => "POST",
            "PUT" => "PUT",
            "PATCH" => "PATCH",
            "DELETE" => "DELETE",
            _ => "other",
        };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((method, kind, status)).or_default() += 1;
        drop(requests);
        let seconds = took.as_secs_f64();
        let mut durations = self.durations.lock().unwrap_or_else(PoisonError::into_inner);
        let histogram = durations.entry(kind).or_default();
        histogram.count += 1;
        histogram.seconds += seconds;
        if let Some(bucket) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            histogram.buckets[bucket] += 1;
        }
        drop(durations);
        self.received.fetch_add(bytes.0, Ordering::Relaxed);
        self.sent.fetch_add(bytes.1, Ordering::Relaxed);
    }

    /// Counts a blob that was fetched from an upstream, or was not.
    pub(crate) fn count_fetched(&self, outcome: &'static str) {
        *self.fetched.lock().unwrap_or_else(PoisonError::into_inner).entry(outcome).or_default() += 1;
    }

    pub(crate) fn collection_ended(&self, collected: Option<&Collected>) {
        match collected {
            Some(collected) => {
                self.collections.fetch_add(1, Ordering::Relaxed);
                self.collected.fetch_add(collected.blobs, Ordering::Relaxed);
                self.collected_bytes.fetch_add(collected.bytes, Ordering::Relaxed);
            }
            None => drop(self.failed_collections.fetch_add(1, Ordering::Relaxed)),
        }
    }

    fn render(&self, registry: &Inner) -> String {
        let hooks = &registry.hooks.counts;
        let mut page = Page::default();
        page.family("cfc_registry_requests_total", "counter", "Requests, by method, kind and status.");
        for ((method, kind, status), count) in &*self.requests.lock().unwrap_or_else(PoisonError::into_inner) {
            let labels = format!("method=\"{method}\",kind=\"{}\",code=\"{status}\"", kind.text());
            page.sample("cfc_registry_requests_total", &labels, count);
        }
        self.render_durations(&mut page);
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counter = |page: &mut Page, name, help, value| page.single(name, "counter", help, value);
        counter(&mut page, "cfc_registry_receive_bytes_total", "Bytes of requests' bodies.", read(&self.received));
        counter(&mut page, "cfc_registry_transmit_bytes_total", "Bytes of answers' bodies.", read(&self.sent));
        let help = "Requests that bring content of blobs right now.";
        page.single("cfc_registry_uploads_in_progress", "gauge", help, read(&self.uploads));
        let name = "cfc_registry_upstream_blobs_total";
        page.family(name, "counter", "Blobs fetched from upstreams, by outcome.");
        for (outcome, count) in &*self.fetched.lock().unwrap_or_else(PoisonError::into_inner) {
            page.sample(name, &format!("outcome=\"{outcome}\""), count);
        }
        page.family("cfc_registry_collections_total", "counter", "Garbage collections, by outcome.");
        page.sample("cfc_registry_collections_total", "outcome=\"done\"", &read(&self.collections));
        page.sample("cfc_registry_collections_total", "outcome=\"failed\"", &read(&self.failed_collections));
        let help = "Blobs that garbage collections have removed.";
        counter(&mut page, "cfc_registry_collected_blobs_total", help, read(&self.collected));
        let help = "Bytes of blobs that garbage collections have removed.";
        counter(&mut page, "cfc_registry_collected_bytes_total", help, read(&self.collected_bytes));
        page.family("cfc_registry_webhook_events_total", "counter", "Events for receivers, by how they ended.");
        let ends = [("delivered", &hooks.delivered), ("failed", &hooks.failed), ("dropped", &hooks.dropped)];
        for (end, count) in ends {
            page.sample("cfc_registry_webhook_events_total", &format!("outcome=\"{end}\""), &read(count));
        }
        if let Some(Usage { stored, .. }) = &*self.usage.lock().unwrap_or_else(PoisonError::into_inner) {
            page.single("cfc_registry_stored_blobs", "gauge", "Blobs that are stored.", stored.blobs);
            page.single("cfc_registry_stored_bytes", "gauge", "Bytes of the blobs that are stored.", stored.bytes);
            page.single("cfc_registry_repositories", "gauge", "Repositories with a manifest.", stored.repositories);
        }
        render_quotas(&registry.ledger, &mut page);
        render_upstreams(&registry.upstreams, &mut page);
        page.0
    }

    fn render_durations(&self, page: &mut Page) {
        let name = "cfc_registry_request_seconds";
        page.family(name, "histogram", "How long requests took until the last byte of their answer, by kind.");
        for (kind, histogram) in &*self.durations.lock().unwrap_or_else(PoisonError::into_inner) {
            let kind = kind.text();
            let mut sum = 0;
            for (bound, count) in BUCKETS.iter().zip(histogram.buckets) {
                sum += count;
                page.sample(&format!("{name}_bucket"), &format!("kind=\"{kind}\",le=\"{bound}\""), &sum);
            }
            page.sample(&format!("{name}_bucket"), &format!("kind=\"{kind}\",le=\"+Inf\""), &histogram.count);
            page.sample(&format!("{name}_sum"), &format!("kind=\"{kind}\""), &histogram.seconds);
            page.sample(&format!("{name}_count"), &format!("kind=\"{kind}\""), &histogram.count);
        }
    }

    fn is_stale(&self) -> bool {
        let usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        usage.as_ref().is_none_or(|usage| usage.is_stale(Instant::now()))
    }
}

fn render_quotas(ledger: &Ledger, page: &mut Page) {
    if let Some(QuotaUse { limit, used, .. }) = ledger.total_use() {
        page.single("cfc_registry_quota_bytes", "gauge", "What all repositories together may hold.", limit);
        if let Some(used) = used {
            let help = "What all repositories together hold by the count of quotas, uploads under way included.";
            page.single("cfc_registry_quota_used_bytes", "gauge", help, used);
        }
    }
    let rules = ledger.rule_uses();
    let label = |rule: &QuotaUse| format!("repositories=\"{}\"", rule.repositories);
    let name = "cfc_registry_repository_quota_bytes";
    page.family(name, "gauge", "What each repository may hold, by the patterns of its quota.");
    rules.iter().for_each(|rule| page.sample(name, &label(rule), &rule.limit));
    let name = "cfc_registry_repository_quota_used_bytes";
    page.family(name, "gauge", "What the repository holds that has most of each quota, uploads under way included.");
    for rule in &rules {
        if let Some(used) = rule.used {
            page.sample(name, &label(rule), &used);
        }
    }
}

fn render_upstreams(upstreams: &Upstreams, page: &mut Page) {
    let states: Vec<_> = upstreams.states().collect();
    let label = |prefix: &str| format!("upstream=\"{prefix}\"");
    let name = "cfc_registry_upstream_up";
    page.family(name, "gauge", "Whether each upstream answered the last question, by prefix; absent before the first.");
    for (prefix, state) in &states {
        if let Some(is_up) = state.is_up {
            page.sample(name, &label(prefix), &u8::from(is_up));
        }
    }
    let name = "cfc_registry_upstream_answered_timestamp_seconds";
    page.family(name, "gauge", "When each upstream answered a question last.");
    for (prefix, state) in &states {
        if let Some(answered_at) = state.answered_at {
            page.sample(name, &label(prefix), &answered_at);
        }
    }
    let name = "cfc_registry_upstream_failures_total";
    page.family(name, "counter", "Questions that each upstream did not answer, by reason.");
    for (prefix, state) in &states {
        for (reason, count) in &state.failures {
            page.sample(name, &format!("{},reason=\"{reason}\"", label(prefix)), count);
        }
    }
}

/// The text format of Prometheus.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: &impl std::fmt::Display) {
        let _ = writeln!(self.0, "{name}{{{labels}}} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }
}

/// The answer to `GET /metrics`. What is stored is added up meanwhile where that is known no longer, and told the next
/// time.
pub(crate) fn answer(registry: &Arc<Inner>) -> Response {
    let metrics = &registry.metrics;
    if metrics.is_stale() && !metrics.is_adding_up.swap(true, Ordering::Relaxed) {
        tokio::spawn(add_up(registry.clone()));
    }
    let mut response = Response::new(Body::from(metrics.render(registry)));
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}

async fn add_up(registry: Arc<Inner>) {
    let (blobs, began) = (registry.blobs.clone(), Instant::now());
    let sizes = blocking(move || blobs.total());
    let added = async { Ok::<_, crate::StorageError>((sizes.await?, registry.metadata.repositories().await?.len())) };
    let metrics = &registry.metrics;
    // What quotas count is known from the first push on; who watches wants to know it earlier.
    if let Err(error) = registry.take_stock_once().await {
        tracing::error!(error = %Chain(&error), "cannot add up what quotas limit");
    }
    match added.await {
        Ok(((blobs, bytes), repositories)) => {
            let stored = Stored { blobs, bytes, repositories: repositories as u64 };
            *metrics.usage.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Usage { stored, added_up: Instant::now(), took: began.elapsed() });
        }
        Err(error) => tracing::error!(error = %Chain(&error), "cannot add up what is stored"),
    }
    metrics.is_adding_up.store(false, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_to_add_up_is_added_up_less_often() {
        let added_up = Instant::now();
        let stored = Stored { blobs: 0, bytes: 0, repositories: 0 };
        let is_stale = |took, after| {
            let usage = Usage { stored, added_up, took: Duration::from_secs(took) };
            usage.is_stale(added_up + Duration::from_secs(after))
        };
        assert!(!is_stale(0, 59) && is_stale(0, 61));
        assert!(!is_stale(10, 61) && !is_stale(10, 999) && is_stale(10, 1001));
    }
}
