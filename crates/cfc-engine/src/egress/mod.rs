//! The way out of a container, as the sidecar image goes it: everything through workerd.
//!
//! The runtime gives what the container sends out. A connection is refused by its address or offered to workerd ([`connection`]), which gives it to the Worker's own handler, connects it to
//! where it was to go, or refuses it. Whether a container has the internet at all is workerd's decision.
//! Names and datagrams go past workerd, which has nothing for them, as its settings say.
//!
//! What is absent: TLS is passed through as it is and never offered for interception.

mod connection;
mod places;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cfc_egress::{EgressPolicy, Gate, Stance, answer_questions, carry_datagrams, matches_name};
use cfc_runtime::{Outbound, Runtime};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use places::Share;

/// How many connections of one container relays may carry at the same time; more wait.
const CONNECTIONS_MAX: u64 = 2_048;
/// How long a connection waits for others of its container to get on. Then it is refused rather than kept.
const PLACE_PATIENCE: Duration = Duration::from_secs(2);
/// How many are refused at once: a container that tries again and again should not keep this process busy.
const REFUSALS_MAX: usize = 64;
/// How often at most it is said of a container that connections of it are refused.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// How long the container is kept waiting for a workerd that takes over a container which it finds running.
const PATIENCE: Duration = Duration::from_secs(10);

/// What workerd says with `PUT /egress`; a part that is missing stays as it was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Where workerd takes connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<Dns>,
    #[serde(skip_serializing_if = "Option::is_none")]
    internet: Option<Internet>,
    /// They were kept by an earlier engine: a workerd that finds its container running does not know about `internet`.
    #[serde(skip)]
    is_kept: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dns {
    #[serde(default)]
    allow_hostnames: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Internet {
    enabled: bool,
}

impl Settings {
    /// Parses the body of `PUT /egress`; the error is for its sender.
    pub fn parse(body: &[u8]) -> Result<Settings, String> {
        let settings: Settings = serde_json::from_slice(body).map_err(|error| format!("malformed body: {error}"))?;
        match settings == Settings::default() {
            true => Err("one of `port`, `dns` and `internet` must be set".to_string()),
            false => Ok(settings),
        }
    }

    /// Takes over the parts that `newer` has.
    pub fn update(&mut self, newer: Settings) {
        self.port = newer.port.or(self.port);
        self.dns = newer.dns.or(self.dns.take());
        self.is_kept &= newer.internet.is_none();
        self.internet = newer.internet.or(self.internet.take());
    }

    /// Forgets where workerd takes connections: whoever gets that port next is somebody else.
    pub fn forget_port(&mut self) {
        self.port = None;
    }

    /// As bytes for whoever adopts the container. The port is one of a workerd that will be gone then.
    pub fn to_keep(&self) -> Vec<u8> {
        serde_json::to_vec(&Settings { port: None, ..self.clone() }).unwrap_or_default()
    }

    /// As an engine takes them over from the one that kept `bytes`.
    pub fn from_kept(bytes: &[u8]) -> Option<Settings> {
        Settings::parse(bytes).ok().map(|settings| Settings { is_kept: true, ..settings })
    }

    /// Whether what workerd lets pass is to be connected here, since workerd has forgotten that it may. Not when the Worker
    /// may want to see every connection, which is when all names are its own.
    fn connects_here(&self) -> bool {
        let names = self.dns.as_ref().map_or(&[][..], |dns| &dns.allow_hostnames);
        self.is_kept && self.has_internet() && !names.iter().any(|pattern| pattern == "*")
    }

    /// Whether the container reaches the internet, by its Worker's word.
    pub fn has_internet(&self) -> bool {
        self.internet.as_ref().is_some_and(|internet| internet.enabled)
    }

    fn is_allowed(&self, name: &str) -> bool {
        let patterns = self.dns.as_ref().map_or(&[][..], |dns| &dns.allow_hostnames);
        patterns.iter().any(|pattern| matches_name(pattern, name))
    }
}

/// What all of one container's connections share.
struct Egress {
    runtime: Runtime,
    instance: String,
    policy: Arc<EgressPolicy>,
    settings: watch::Receiver<Settings>,
}

impl Egress {
    /// The settings, once workerd has said where it listens.
    async fn settings(&self) -> Option<Settings> {
        let mut settings = self.settings.clone();
        let told = tokio::time::timeout(PATIENCE, settings.wait_for(|settings| settings.port.is_some())).await;
        told.ok()?.ok().map(|settings| settings.clone())
    }
}

impl Gate for Egress {
    async fn stance(&self, name: &str) -> Stance {
        let Some(settings) = self.settings().await else { return Stance::Unknown };
        match (settings.has_internet(), settings.is_allowed(name)) {
            (true, true) => Stance::AskOrStandIn,
            (true, false) => Stance::Ask,
            (false, true) => Stance::StandIn,
            (false, false) => Stance::NoSuchName,
        }
    }

    fn lets_datagrams_out(&self) -> bool {
        self.settings.borrow().has_internet()
    }

    fn policy(&self) -> &EgressPolicy {
        &self.policy
    }

    fn name(&self) -> &str {
        &self.instance
    }
}

/// Carries what `instance` sends out, until its process ends.
pub(crate) async fn run(
    runtime: Runtime,
    instance: String,
    policy: Arc<EgressPolicy>,
    settings: watch::Receiver<Settings>,
) {
    let mut outbound = match runtime.outbound(&instance).await {
        Ok(outbound) => outbound,
        Err(error) => return tracing::warn!(instance, reason = %error.kind, "a container without a way out"),
    };
    let kept = settings.borrow().to_keep();
    if let Err(error) = runtime.keep_egress(&instance, kept).await {
        tracing::warn!(instance, reason = %error.kind, "a restart will forget how a container may reach out");
    }
    let egress = Arc::new(Egress { runtime, instance, policy, settings });
    let datagrams = std::mem::take(&mut outbound.datagrams);
    tokio::select! {
        () = accept(&outbound, &egress) => {}
        () = answer_questions(&outbound.udp, &egress) => {}
        () = carry_datagrams(datagrams, &egress) => {}
        () = outbound.ended() => {}
    }
}

async fn accept(outbound: &Outbound, egress: &Arc<Egress>) {
    let share = Share::new();
    let mut warned: Option<Instant> = None;
    loop {
        while egress.runtime.traffic(&egress.instance).egress.open >= CONNECTIONS_MAX {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let Ok(place) = tokio::time::timeout(PLACE_PATIENCE, share.take()).await else {
            let refused = refuse_waiting(outbound).await;
            if refused > 0 && warned.is_none_or(|warned| warned.elapsed() > WARNING_INTERVAL) {
                warned = Some(Instant::now());
                tracing::warn!(
                    instance = egress.instance,
                    "connections of a container are refused: too many wait for who they go to (all containers together may \
                     have {} on their way; raise the limit of open files, `LimitNOFILE=` of a unit, if they should)",
                    share.of_all()
                );
            }
            continue;
        };
        match outbound.accept().await {
            Ok((stream, destination)) => {
                let egress = egress.clone();
                tokio::spawn(async move {
                    connection::carry(stream, destination, &egress).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(instance = egress.instance, %error, "cannot accept a connection of a container");
                // Most likely there is no file descriptor left; do not spin until there is one.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Resets the connections that wait. How many those were.
async fn refuse_waiting(outbound: &Outbound) -> usize {
    for refused in 0..REFUSALS_MAX {
        match tokio::time::timeout(Duration::ZERO, outbound.accept()).await {
            Ok(Ok((stream, _))) => connection::reset(&stream),
            _ => return refused,
        }
    }
    REFUSALS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stays_as_it_was() {
        let mut settings = Settings::parse(br#"{"port":4,"dns":{"allowHostnames":["*.a"]}}"#).expect("parses");
        assert!(!settings.has_internet() && settings.is_allowed("x.a"));
        settings.update(Settings::parse(br#"{"internet":{"enabled":true}}"#).expect("parses"));
        assert!(settings.has_internet() && settings.is_allowed("x.a") && settings.port == Some(4));
        settings.update(Settings::parse(br#"{"port":5}"#).expect("parses"));
        let kept = Settings::parse(&settings.to_keep()).expect("parses");
        assert!(kept.has_internet() && kept.port.is_none() && settings.port == Some(5));
        assert!(!kept.connects_here(), "a workerd that says so connects by itself");
        let mut adopted = Settings::from_kept(&settings.to_keep()).expect("parses");
        assert!(adopted.connects_here());
        adopted.update(Settings::parse(br#"{"port":6,"dns":{"allowHostnames":["*"]}}"#).expect("parses"));
        assert!(!adopted.connects_here(), "the Worker may want to see everything");
        adopted
            .update(Settings::parse(br#"{"dns":{"allowHostnames":[]},"internet":{"enabled":true}}"#).expect("parses"));
        assert!(!adopted.connects_here());
        assert!(Settings::parse(b"{}").is_err() && Settings::parse(b"").is_err());
    }
}
