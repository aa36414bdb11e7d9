//! A [`Platform`] in memory: serves what was activated last, and fails where a test says so.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cfc_control::*;
use cfc_oci::{Descriptor, Digest, Reference};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use uuid::Uuid;

#[derive(Default)]
pub struct MemoryPlatform {
    /// What serves.
    pub serving: Mutex<BTreeMap<String, Deployment>>,
    /// Values of secrets, by Worker and id.
    pub secrets: Mutex<BTreeMap<(String, Uuid), String>>,
    /// The Workers whose state was removed, with the applications whose instances were.
    pub erased: Mutex<Vec<(String, Vec<String>)>>,
    /// Which step fails at its next call: `prepare`, `try`, `activate`, `erase`.
    pub fail_next: Mutex<Option<&'static str>>,
    pub trials: AtomicUsize,
    /// Activations under way, and the most there ever were at once.
    active: AtomicUsize,
    pub most_at_once: AtomicUsize,
}

impl MemoryPlatform {
    fn fails(&self, step: &str) -> bool {
        let mut fail_next = self.fail_next.lock().expect("no test panics while holding it");
        (*fail_next == Some(step)).then(|| fail_next.take()).is_some()
    }

    pub fn fail_next(&self, step: &'static str) {
        *self.fail_next.lock().expect("not poisoned") = Some(step);
    }

    pub fn serving(&self, worker: &str) -> Option<Deployment> {
        self.serving.lock().expect("not poisoned").get(worker).cloned()
    }
}

/// The manifest that this platform takes `reference` for.
pub fn manifest_of(reference: &str) -> Descriptor {
    Descriptor::new("application/vnd.oci.image.manifest.v1+json", Digest::of(reference.as_bytes()), 1)
}

#[async_trait]
impl Platform for MemoryPlatform {
    async fn prepare_image(&self, reference: &Reference) -> Result<Descriptor, PrepareError> {
        match self.fails("prepare") {
            true => Err(PrepareError { reference: reference.clone(), kind: PrepareErrorKind::NotFound, hint: None }),
            false => Ok(manifest_of(&reference.to_string())),
        }
    }

    async fn try_image(&self, _: &str, _: &Descriptor, _: &InstanceSize) -> Result<(), TrialError> {
        self.trials.fetch_add(1, Ordering::SeqCst);
        if !self.fails("try") {
            return Ok(());
        }
        let kind = TrialErrorKind::Exited { status: "exit code 127".to_string(), after: Duration::from_millis(3) };
        Err(TrialError {
            kind,
            output: "exec: /server: not found\n".to_string(),
            hint: Some("is the entrypoint in the image?".to_string()),
        })
    }

    async fn activate(&self, deployment: &Deployment) -> Result<(), ActivateError> {
        let worker = deployment.worker.name.clone();
        if self.fails("activate") {
            let kind = ActivateErrorKind::Rejected("SyntaxError: Unexpected token".to_string());
            return Err(ActivateError { worker, kind, hint: None });
        }
        let now = self.active.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.active.fetch_sub(1, Ordering::SeqCst);
        self.serving.lock().expect("not poisoned").insert(worker, deployment.clone());
        Ok(())
    }

    async fn clamps(&self, application: &ApplicationRecord) -> Vec<String> {
        let is_large = application.size.memory_mib > 1 << 20;
        is_large
            .then(|| format!("1048576 MiB of memory instead of {}", application.size.memory_mib))
            .into_iter()
            .collect()
    }

    fn isolation(&self, application: &str) -> String {
        format!("the sandbox of {application}")
    }

    fn unused_settings(&self, applications: &[String]) -> Vec<String> {
        let settings = ["starter-mycontainer".to_string()];
        settings.into_iter().filter(|name| !applications.contains(name)).collect()
    }

    async fn remove_worker(&self, name: &str) -> Result<(), ActivateError> {
        self.serving.lock().expect("not poisoned").remove(name);
        Ok(())
    }

    async fn keep_secret(&self, worker: &str, value: &str) -> Result<Uuid, io::Error> {
        let id = Uuid::new_v4();
        self.secrets.lock().expect("not poisoned").insert((worker.to_string(), id), value.to_string());
        Ok(id)
    }

    async fn retain_secrets(&self, worker: &str, used: &BTreeSet<Uuid>) -> Result<(), io::Error> {
        self.secrets.lock().expect("not poisoned").retain(|(of, id), _| of != worker || used.contains(id));
        Ok(())
    }

    async fn suspend_worker(&self, name: &str) {
        self.serving.lock().expect("not poisoned").remove(name);
    }

    async fn erase_worker(&self, name: &str, applications: &[String]) -> Result<usize, io::Error> {
        if self.fails("erase") {
            return Err(io::Error::other("the disk is gone"));
        }
        self.erased.lock().expect("not poisoned").push((name.to_string(), applications.to_vec()));
        Ok(applications.len())
    }

    async fn instances(&self, application: &ApplicationRecord) -> Vec<InstanceView> {
        vec![InstanceView {
            id: "i1".to_string(),
            name: "do1".to_string(),
            application: application.name.clone(),
            state: InstanceState::Running,
            since: Timestamp::from_milliseconds(1000),
            started: Timestamp::from_milliseconds(1000),
            image: application.image.manifest.digest.clone(),
            version: Some(application.version),
            pid: Some(42),
            ended: None,
            exit_code: None,
            oom_killed: false,
            removed: false,
        }]
    }

    async fn worker_logs(&self, name: &str, request: &LogRequest) -> BoxStream<'static, io::Result<Bytes>> {
        let line = format!("{name} printed this, and was asked for {:?}\n", request.tail_lines);
        stream::iter([Ok(Bytes::from(line))]).boxed()
    }

    /// Echoes its input, tells of a signal, and exits with the number of words; `none` is no instance.
    async fn exec(&self, instance: &str, request: ExecRequest) -> Result<ExecSession, ExecError> {
        if instance == "none" {
            return Err(InstanceError::NoSuchInstance { given: instance.to_string() }.into());
        }
        let (input, mut told) = tokio::sync::mpsc::channel(1);
        let (tell, output) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let _ = tell.send(ExecOutput::Stderr(format!("{:?}", request.terminal).into())).await;
            while let Some(event) = told.recv().await {
                let answer = match event {
                    ExecInput::Data(bytes) => ExecOutput::Stdout(bytes),
                    ExecInput::End => break,
                    other => ExecOutput::Stderr(format!("{other:?}").into()),
                };
                let _ = tell.send(answer).await;
            }
            let _ = tell.send(ExecOutput::Exit(request.command.len() as i32)).await;
        });
        Ok(ExecSession { input, output })
    }

    async fn logs(
        &self,
        application: &ApplicationRecord,
        request: &LogRequest,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, LogError> {
        if let Some(instance) = request.instance.as_ref().filter(|instance| *instance != "i1") {
            let (application, instance) = (application.name.clone(), instance.clone());
            return Err(LogError::NoSuchInstance { application, instance });
        }
        let lines = stream::iter([Ok(Bytes::from_static(b"hello\n"))]);
        match request.follow {
            true => Ok(lines.chain(stream::pending()).boxed()),
            false => Ok(lines.boxed()),
        }
    }
}

#[async_trait]
impl Operations for MemoryPlatform {
    async fn inspect(&self, instance: &str) -> Result<Inspection, InstanceError> {
        match instance {
            "i" => Err(InstanceError::Ambiguous { given: "i".to_string(), fitting: vec!["i1".into(), "i2".into()] }),
            _ => Err(InstanceError::NoSuchInstance { given: instance.to_string() }),
        }
    }

    async fn stop(&self, instance: &str, grace: Option<Duration>) -> Result<Stopped, InstanceError> {
        // The grace comes back as the code, for the test to see.
        let exit_code = grace.map_or(-1, |grace| i32::try_from(grace.as_millis()).expect("a small number"));
        Ok(Stopped { id: instance.to_string(), exit_code })
    }

    async fn restart(&self, instance: &str, _: Option<Duration>) -> Result<InstanceView, InstanceError> {
        Err(InstanceError::NotRunning(instance.to_string()))
    }

    async fn stats(&self, _: Option<&str>) -> Vec<InstanceStats> {
        Vec::new()
    }

    async fn events(&self, request: &EventRequest) -> BoxStream<'static, EventView> {
        let event = EventView {
            number: 1,
            time: Timestamp::from_milliseconds(1000),
            event: "created".to_string(),
            id: "i1".to_string(),
            name: "do1".to_string(),
            application: "app".to_string(),
            details: Default::default(),
        };
        match request.follow {
            true => stream::iter([event]).chain(stream::pending()).boxed(),
            false => stream::iter([event]).boxed(),
        }
    }

    async fn metrics(&self) -> Vec<MetricFamily> {
        let mut family = MetricFamily::new("cfc_test_total", MetricKind::Counter, "A test.");
        family.add(&[("application", "app")], 1.0);
        vec![family]
    }
}
