//! What instances use: memory, processors, disk and network, measured when somebody asks.

use std::collections::BTreeMap;
use std::time::Duration;

use cfc_sandbox::{DiskUsage, Usage};

use crate::instance::InstanceView;
use crate::metrics::ApplicationMetrics;
use crate::runtime::{Runtime, blocking};
use crate::tunnels::Traffic;

/// What a live instance uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceUsage {
    /// What its cgroups count.
    pub usage: Usage,
    /// Bytes on its loopback device, over which all that goes in and out passes once, and what it sends to itself.
    pub network_bytes: u64,
    /// What its connections to and from outside have carried. Datagrams are not among it.
    pub traffic: Traffic,
    /// Its disk, where that is bounded.
    pub disk: Option<DiskUsage>,
}

impl Runtime {
    /// What the live instances that are wanted use. Each costs a quarter of a millisecond.
    pub async fn usage(&self, is_wanted: impl Fn(&InstanceView) -> bool) -> Vec<(InstanceView, InstanceUsage)> {
        let live: Vec<_> =
            self.list().into_iter().filter(|view| view.phase.pid().is_some() && is_wanted(view)).collect();
        let runtime = self.clone();
        blocking(move || runtime.usage_of(live)).await
    }

    fn usage_of(&self, live: Vec<InstanceView>) -> Vec<(InstanceView, InstanceUsage)> {
        let launcher = &self.shared().launcher;
        let mut disks = launcher.disks().unwrap_or_default();
        let measured = live.into_iter().filter_map(|view| {
            // One that has ended meanwhile uses nothing.
            let usage = launcher.usage(&view.spec.name).ok()?;
            let (network_bytes, disk) = (self.network_bytes(&view.spec.name), disks.remove(&view.spec.name));
            let traffic = self.traffic(&view.spec.name);
            Some((view, InstanceUsage { usage, network_bytes, traffic, disk }))
        });
        measured.collect()
    }

    /// Bytes on the instance's loopback device; zero where there is none.
    pub(crate) fn network_bytes(&self, name: &str) -> u64 {
        let network = self.lock().records.get(name).and_then(|record| record.network.clone());
        network.and_then(|network| network.loopback_bytes().ok()).unwrap_or(0)
    }

    /// The counts of all applications, with what their live instances use.
    pub async fn metrics(&self) -> BTreeMap<String, (ApplicationMetrics, Vec<(InstanceView, InstanceUsage)>)> {
        let mut all: BTreeMap<String, (ApplicationMetrics, Vec<_>)> = BTreeMap::new();
        let live = self.usage(|view| !crate::trial::is_trial(&view.spec.name)).await;
        for (application, counts) in self.shared().metrics.all() {
            all.entry(application).or_default().0 = counts;
        }
        for view in self.list().into_iter().filter(|view| !crate::trial::is_trial(&view.spec.name)) {
            let (counts, _) = all.entry(view.spec.application).or_default();
            let traffic = self.traffic(&view.spec.name);
            counts.received_bytes += traffic.received_bytes();
            counts.sent_bytes += traffic.sent_bytes();
            counts.tunnels_open += traffic.open();
        }
        for (view, usage) in live {
            all.entry(view.spec.application.clone()).or_default().1.push((view, usage));
        }
        all
    }
}

impl InstanceUsage {
    /// Time on processors.
    pub fn cpu(&self) -> Duration {
        Duration::from_micros(self.usage.cpu_usec)
    }
}
