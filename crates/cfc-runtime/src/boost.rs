//! The boost: an instance may use the whole processor until it listens, however small its share is.
//!
//! It ends with the first connection into the instance, or when something in it listens on a TCP port, or after
//! [`BOOST_MAX`], whichever comes first; then the limit of its instance type holds.

use std::sync::Weak;
use std::time::Duration;

use cfc_sandbox::oci::{LinuxCpu, LinuxCpuBuilder, LinuxResources, LinuxResourcesBuilder, Spec};
use cfc_scheduler::InstanceType;

use crate::error::{RuntimeErrorKind, fail_at};
use crate::instance::Phase;
use crate::ready::Sought;
use crate::runtime::{Runtime, blocking};

/// How long an instance that never listens is boosted.
const BOOST_MAX: Duration = Duration::from_secs(30);

/// How often it is tried again to limit an instance that could not be limited.
const LIMIT_AGAIN: Duration = Duration::from_secs(1);

/// The length of the scheduler's turn within which a quota holds, in microseconds; the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses a smaller quota.
const MIN_CPU_QUOTA_US: u64 = 1_000;

/// The share of the processor that an instance of this type has.
pub(crate) fn cpu_share(instance_type: &InstanceType) -> Result<LinuxCpu, RuntimeErrorKind> {
    let quota_us = (instance_type.micro_cpus * CPU_PERIOD_US / 1_000_000).max(MIN_CPU_QUOTA_US);
    Ok(LinuxCpuBuilder::default().quota(quota_us as i64).period(CPU_PERIOD_US).build()?)
}

/// Gives a sandbox all of the processor, to be limited later.
pub(crate) fn boost(sandbox: &mut Spec) -> Result<(), RuntimeErrorKind> {
    let whole = LinuxCpuBuilder::default().quota(-1_i64).period(CPU_PERIOD_US).build()?;
    if let Some(resources) = sandbox.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut()) {
        resources.set_cpu(Some(whole));
    }
    Ok(())
}

impl Runtime {
    pub(crate) fn is_boosted_at_start(&self, application: &str) -> bool {
        self.application(application).is_some_and(|application| application.startup_cpu_boost)
    }

    /// Watches a process that runs, from inside its network, until something there listens: then it is ready, and boosted no
    /// more.
    pub(crate) fn watch_ready(&self, name: &str) {
        let (network, phase) = match self.lock().records.get(name) {
            Some(record) => (record.network.clone(), record.phase.subscribe()),
            None => return,
        };
        let Some(pid) = phase.borrow().pid() else { return };
        let (shared, name) = (std::sync::Arc::downgrade(&self.shared), name.to_string());
        let (readiness, mut over) = (self.shared().readiness.clone(), phase.clone());
        self.shared().tasks.spawn(async move {
            let listens = async {
                match network {
                    Some(network) => readiness.listening(network, Sought::AnyPort).await,
                    None => std::future::pending().await,
                }
            };
            let boost_is_over = async {
                tokio::time::sleep(BOOST_MAX).await;
                if let Some(shared) = Weak::upgrade(&shared) {
                    Runtime { shared }.end_boost(&name);
                }
                std::future::pending().await
            };
            tokio::select! {
                () = listens => {}
                () = boost_is_over => {}
                // A connection has shown it, or the process has ended.
                _ = over.wait_for(|phase| matches!(phase, Phase::Ready { .. }) || phase.pid() != Some(pid)) => {}
            }
            if phase.borrow().pid() == Some(pid)
                && let Some(shared) = Weak::upgrade(&shared)
            {
                let runtime = Runtime { shared };
                runtime.note_ready(&name);
                runtime.end_boost(&name);
            }
        });
    }

    /// Limits the instance to its share, if it is boosted still.
    pub(crate) fn end_boost(&self, name: &str) {
        let boosted = self.lock().records.get_mut(name).and_then(|record| record.boosted.take());
        let Some(instance_type) = boosted else { return };
        self.begin_limit(name, instance_type);
    }

    /// Limits the instance to its share. Tries again for as long as its process lives.
    pub(crate) fn begin_limit(&self, name: &str, instance_type: InstanceType) {
        let Some(phase) = self.phase(name) else { return };
        let Some(pid) = phase.borrow().pid() else { return };
        let (shared, name) = (std::sync::Arc::downgrade(&self.shared), name.to_string());
        self.shared().tasks.spawn(async move {
            let mut has_warned = false;
            while phase.borrow().pid() == Some(pid) {
                let Some(shared) = Weak::upgrade(&shared) else { return };
                let (runtime, instance) = (Runtime { shared }, name.clone());
                match blocking(move || runtime.limit_cpu(&instance, &instance_type)).await {
                    Ok(()) => return,
                    Err(RuntimeErrorKind::Sandbox(error)) if error.is_gone() => return,
                    Err(error) if !has_warned => {
                        has_warned = true;
                        tracing::warn!(
                            instance = name,
                            %error,
                            "not limited to its share of the processor yet: it is tried again each second"
                        );
                    }
                    Err(_) => {}
                }
                tokio::time::sleep(LIMIT_AGAIN).await;
            }
        });
    }

    fn limit_cpu(&self, name: &str, instance_type: &InstanceType) -> Result<(), RuntimeErrorKind> {
        fail_at("runtime.boost.limit")?;
        let resources: LinuxResources = LinuxResourcesBuilder::default().cpu(cpu_share(instance_type)?).build()?;
        Ok(self.shared().launcher.update(name, &resources)?)
    }
}
