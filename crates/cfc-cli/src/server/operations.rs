//! Looking after instances: the machine's side of what `cfc containers` asks.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use cfc_control::{
    EventRequest, EventView, Inspection, InstanceError, InstanceStats, InstanceView, IsolationView, MetricFamily,
    Operations, Stopped,
};
use cfc_runtime::{InstanceEvent, InstanceEventKind, InstanceUsage, RuntimeError, RuntimeErrorKind};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::{Map, Value, json};

use crate::server::machine::Machine;
use crate::server::resolve::resolve;
use crate::server::views::{self, object_id, timestamp};
use crate::server::{metrics, prepare};

#[async_trait]
impl Operations for Machine {
    async fn inspect(&self, instance: &str) -> Result<Inspection, InstanceError> {
        let name = resolve(self.runtime(), instance)?;
        let usage = self.runtime().usage(|view| view.spec.name == name).await.pop();
        let usage = usage.map(|(view, usage)| stats(&view, &usage));
        match self.runtime().inspect(&name) {
            Some(view) => Ok(Inspection { isolation: self.isolation_of(&view).await, ..inspection(&view, usage) }),
            None => {
                let ended = self.runtime().ended_instances().into_iter().find(|instance| instance.name == name);
                let ended = ended.ok_or_else(|| InstanceError::NoSuchInstance { given: instance.to_string() })?;
                Ok(ended_inspection(&ended))
            }
        }
    }

    async fn stop(&self, instance: &str, grace: Option<Duration>) -> Result<Stopped, InstanceError> {
        let id = resolve(self.runtime(), instance)?;
        let grace = grace.unwrap_or_else(|| self.stop_grace());
        let report = self.runtime().stop(&id, grace).await.map_err(|error| failed(&id, &error))?;
        Ok(Stopped { id, exit_code: report.code })
    }

    async fn restart(&self, instance: &str, grace: Option<Duration>) -> Result<InstanceView, InstanceError> {
        let id = resolve(self.runtime(), instance)?;
        let Some(view) = self.runtime().inspect(&id) else { return Err(InstanceError::NotRunning(id)) };
        let engine = self.engine_of(&view.spec.application).await;
        let engine =
            engine.ok_or_else(|| InstanceError::Failed(format!("no Worker in service has instance `{id}`")))?;
        let grace = grace.unwrap_or_else(|| self.stop_grace());
        engine.restart(&id, grace).await.map_err(|error| failed(&id, &error))?;
        let view = self.runtime().inspect(&id).ok_or(InstanceError::NotRunning(id))?;
        Ok(views::view(None, &view))
    }

    async fn stats(&self, application: Option<&str>) -> Vec<InstanceStats> {
        let is_wanted = |view: &cfc_runtime::InstanceView| application.is_none_or(|name| view.spec.application == name);
        let usages = self.runtime().usage(is_wanted).await;
        usages.iter().map(|(view, usage)| stats(view, usage)).collect()
    }

    async fn events(&self, request: &EventRequest) -> BoxStream<'static, EventView> {
        let since = request.since.and_then(|since| SystemTime::now().checked_sub(since));
        let (runtime, follow) = (self.runtime().clone(), request.follow);
        let reader = runtime.event_reader();
        let batches =
            futures::stream::unfold((runtime, reader, false), move |(runtime, mut reader, is_later)| async move {
                if is_later && !(follow && reader.wait().await) {
                    return None;
                }
                let events = runtime.read_events(&mut reader);
                Some((futures::stream::iter(events), (runtime, reader, true)))
            });
        let wanted = batches.flatten().filter(move |event| {
            let is_wanted = since.is_none_or(|since| event.time >= since);
            futures::future::ready(is_wanted)
        });
        wanted.map(|event| event_view(&event)).boxed()
    }

    async fn metrics(&self) -> Vec<MetricFamily> {
        metrics::families(self.runtime(), self.reported()).await
    }
}

impl Machine {
    /// How a live instance is kept apart, as far as is known: by the platform, its Worker and the kernel.
    async fn isolation_of(&self, view: &cfc_runtime::InstanceView) -> Option<IsolationView> {
        let name = &view.spec.name;
        view.phase.pid()?;
        let engine = self.engine_of(&view.spec.application).await;
        let confinement = self.runtime().confinement(name).await;
        Some(views::isolation(
            view.isolation.as_ref(),
            engine.and_then(|engine| engine.has_internet(name)),
            confinement,
        ))
    }
}

fn failed(id: &str, error: &RuntimeError) -> InstanceError {
    match error.kind {
        RuntimeErrorKind::NotRunning => InstanceError::NotRunning(id.to_string()),
        _ => InstanceError::Failed(prepare::one_line(error)),
    }
}

fn inspection(view: &cfc_runtime::InstanceView, usage: Option<InstanceStats>) -> Inspection {
    let timings = view.timings.into_iter();
    let parts =
        timings.flat_map(|timings| [("admit", timings.admit), ("disk", timings.disk), ("launch", timings.launch)]);
    let parts = parts.chain(view.ready_after.map(|after| ("ready", after)));
    Inspection {
        view: views::view(None, view),
        created: timestamp(view.created),
        launches: view.launches,
        timings_ms: parts.map(|(phase, duration)| (phase.to_string(), milliseconds(duration))).collect(),
        limits: view.instance_type.as_ref().map(views::size),
        isolation: None,
        command: view.spec.command.clone(),
        env: view.spec.env.iter().map(|variable| name_of(variable)).collect(),
        labels: view.spec.labels.clone(),
        usage,
    }
}

fn ended_inspection(instance: &cfc_runtime::EndedInstance) -> Inspection {
    Inspection {
        view: views::ended(instance),
        created: timestamp(instance.created),
        launches: 0,
        timings_ms: BTreeMap::new(),
        limits: None,
        isolation: None,
        command: None,
        env: Vec::new(),
        labels: BTreeMap::new(),
        usage: None,
    }
}

/// The name of `NAME=value`.
fn name_of(variable: &str) -> String {
    variable.split('=').next().unwrap_or_default().to_string()
}

fn stats(view: &cfc_runtime::InstanceView, usage: &InstanceUsage) -> InstanceStats {
    let limits = view.instance_type.as_ref().map(views::size);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    InstanceStats {
        id: view.spec.name.clone(),
        name: object_id(&view.spec.name).to_string(),
        application: view.spec.application.clone(),
        cpu_usec: usage.usage.cpu_usec,
        read_at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        vcpu: limits.map_or(0.0, |limits| limits.vcpu),
        memory_bytes: usage.usage.memory_bytes,
        memory_peak_bytes: usage.usage.memory_peak_bytes,
        memory_anonymous_bytes: usage.usage.memory_anonymous_bytes,
        memory_limit_bytes: limits.map_or(0, |limits| limits.memory_mib << 20),
        pids: usage.usage.pids,
        network_bytes: usage.network_bytes,
        received_bytes: usage.traffic.received_bytes(),
        sent_bytes: usage.traffic.sent_bytes(),
        tunnels_open: usage.traffic.open(),
        disk_bytes: usage.disk.map(|disk| disk.used_bytes),
        disk_limit_bytes: usage.disk.map(|disk| disk.total_bytes),
    }
}

fn event_view(event: &InstanceEvent) -> EventView {
    let (name, details) = match &event.kind {
        InstanceEventKind::Created => ("created", json!({})),
        InstanceEventKind::Starting => ("starting", json!({})),
        InstanceEventKind::Running { pid, timings } => {
            let [admit, disk, launch] = [timings.admit, timings.disk, timings.launch].map(milliseconds);
            ("running", json!({"pid": pid, "admit_ms": admit, "disk_ms": disk, "launch_ms": launch}))
        }
        InstanceEventKind::Ready { after } => ("ready", json!({"ready_ms": milliseconds(*after)})),
        InstanceEventKind::NotListening(unheard) => {
            let reason = format!("{}; {}", unheard.problem(), unheard.hint());
            ("not_listening", json!({"port": unheard.port, "listens_on": unheard.listens_on, "reason": reason}))
        }
        InstanceEventKind::Stopping => ("stopping", json!({})),
        InstanceEventKind::Exited(report) => match &report.error {
            Some(reason) => ("exited", json!({"exit_code": report.code, "reason": reason})),
            None => ("exited", json!({"exit_code": report.code})),
        },
        InstanceEventKind::OomKilled { kills, limit_mib } => {
            ("oom_killed", json!({"kills": kills, "limit_mib": limit_mib}))
        }
        InstanceEventKind::Refused { rule, reason } => ("refused", json!({"rule": rule, "reason": reason})),
        InstanceEventKind::Adopted { pid } => ("adopted", json!({"pid": pid})),
        InstanceEventKind::Removed => ("removed", json!({})),
    };
    EventView {
        number: event.number,
        time: timestamp(event.time),
        event: name.to_string(),
        id: event.instance.clone(),
        name: object_id(&event.instance).to_string(),
        application: event.application.clone(),
        details: match details {
            Value::Object(details) => details,
            _ => Map::new(),
        },
    }
}

/// With microseconds behind the point.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1_000.0
}
