//! A trial start: whether an image starts at all, before anybody depends on it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cfc_oci::Descriptor;
use cfc_scheduler::InstanceType;

use crate::error::Result;
use crate::instance::{Application, ExitReport, InstanceSpec, Isolation};
use crate::logs::LogLine;
use crate::runtime::Runtime;

/// Instances of this name are never adopted: whoever tried them is gone.
const PREFIX: &str = "cfc-trial-";
const LINES_KEPT: usize = 20;

/// What a trial start showed.
#[derive(Clone, Debug)]
pub enum Trial {
    /// It still ran when the patience was over.
    Runs,
    /// It ended before.
    Ended {
        /// How.
        report: ExitReport,
        /// How long it ran.
        after: Duration,
        /// The last lines that it put out.
        output: Vec<LogLine>,
    },
}

impl Runtime {
    /// Starts `image` once, outside any application, and looks for `patience` whether it stays. Nothing of it is left
    /// afterwards. An error means that it could not be started: no such command, or no room on the machine.
    pub async fn try_image(
        &self,
        image: &Descriptor,
        instance_type: InstanceType,
        patience: Duration,
    ) -> Result<Trial> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("{PREFIX}{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.set_application(Application {
            name: name.clone(),
            image: image.clone(),
            max_instances: 1,
            instance_type,
            startup_cpu_boost: true,
            isolation: Isolation::default(),
        });
        let outcome = self.try_instance(&name, image, patience).await;
        self.remove_application(&name).await;
        // Whoever asked has the lines that matter.
        let _ = std::fs::remove_file(self.shared().directories.ended_log(&name));
        outcome
    }

    async fn try_instance(&self, name: &str, image: &Descriptor, patience: Duration) -> Result<Trial> {
        let spec = InstanceSpec {
            name: name.to_string(),
            application: name.to_string(),
            image: image.clone(),
            command: None,
            env: Vec::new(),
            labels: Default::default(),
        };
        self.create(spec).await?;
        self.start(name).await?;
        let started = Instant::now();
        let Ok(report) = tokio::time::timeout(patience, self.wait(name)).await else { return Ok(Trial::Runs) };
        let after = started.elapsed();
        let output = match self.logs(name) {
            Some(reader) => reader.tail(LINES_KEPT).await.0,
            None => Vec::new(),
        };
        Ok(Trial::Ended { report: report.unwrap_or_default(), after, output })
    }
}

/// Whether the instance is one of a trial start.
pub(crate) fn is_trial(name: &str) -> bool {
    name.starts_with(PREFIX)
}
