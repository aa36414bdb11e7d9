//! [`Unheard`]: a port that was asked for and on which nothing listens, told to whoever looks after the instance.
//!
//! The `Container` class asks again for minutes, and says no more at last than that it gave up. So this is told when it has
//! asked for the first time, as an event, in the instance's log and in the server's.

use std::sync::Arc;

use cfc_sandbox::NetworkHandle;

use crate::events::InstanceEventKind;
use crate::ready;
use crate::runtime::{Record, Runtime, blocking};
use crate::trial::is_trial;

/// A TCP port on which nothing listened while a connection to it was held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unheard {
    /// Which port.
    pub port: u16,
    /// The ports on which the instance did listen then, in ascending order.
    pub listens_on: Vec<u16>,
}

impl Unheard {
    /// What is wrong, in one sentence.
    pub fn problem(&self) -> String {
        let Unheard { port, listens_on } = self;
        match listens_on.as_slice() {
            [] => format!("nothing listens on port {port}, which was asked for, nor on any other"),
            ports if ports.contains(port) => {
                format!("port {port} was asked for, and the container listens on it at another address than localhost")
            }
            ports => {
                format!("nothing listens on port {port}, which was asked for; the container listens on {}", list(ports))
            }
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        let Unheard { port, listens_on } = self;
        match listens_on.as_slice() {
            [] => format!(
                "have the program listen on 0.0.0.0:{port}, or give `defaultPort` of the class the port that it takes"
            ),
            ports if ports.contains(port) => format!("have the program listen on 0.0.0.0:{port}"),
            [only] => {
                format!("set `defaultPort` of the class, and EXPOSE, to {only}, or have the program listen on {port}")
            }
            _ => format!(
                "set `defaultPort` of the class, and EXPOSE, to the right one, or have the program listen on {port}"
            ),
        }
    }
}

/// `port 80`, `ports 80, 443`.
fn list(ports: &[u16]) -> String {
    let all = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    if ports.len() == 1 { format!("port {all}") } else { format!("ports {all}") }
}

impl Runtime {
    /// The TCP ports on which the instance listens now, in ascending order; `None` when it does not run, or the kernel does
    /// not tell.
    pub async fn listening_ports(&self, name: &str) -> Option<Vec<u16>> {
        let network = self.lock().records.get(name)?.network.clone()?;
        blocking(move || ports_in(&network)).await
    }

    /// Tells that `port` was asked for in vain, if that was not told since the instance's start.
    pub(crate) async fn note_unheard(&self, name: &str, port: u16) {
        let is_told = |record: &Record| record.unheard.contains(&port);
        if is_trial(name) || self.lock().records.get(name).is_none_or(is_told) {
            return;
        }
        let Some(listens_on) = self.listening_ports(name).await else { return };
        let unheard = Unheard { port, listens_on };
        {
            let mut inner = self.lock();
            let record = inner.records.get_mut(name).filter(|record| record.phase.borrow().pid().is_some());
            let Some(record) = record else { return };
            // Somebody else may have told it meanwhile.
            if !record.unheard.insert(port) {
                return;
            }
            self.note(&record.journal.spec, InstanceEventKind::NotListening(unheard.clone()));
        }
        let (problem, hint) = (unheard.problem(), unheard.hint());
        tracing::warn!(instance = name, "{problem}; {hint}");
        let (launcher, name) = (self.shared().launcher.clone(), name.to_string());
        let noted = blocking(move || launcher.note(&name, &format!("{problem}; {hint}"))).await;
        if let Err(error) = noted {
            // It has just ended, or its launcher is of an earlier version. The event is there.
            tracing::debug!(%error, "cannot note a port that nothing listens on");
        }
    }
}

fn ports_in(network: &Arc<NetworkHandle>) -> Option<Vec<u16>> {
    ready::ports(&network.listeners().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(port: u16, listens_on: &[u16]) -> String {
        let unheard = Unheard { port, listens_on: listens_on.to_vec() };
        format!("{}; {}", unheard.problem(), unheard.hint())
    }

    #[test]
    fn a_port_that_nothing_listens_on_is_told_with_those_that_something_does() {
        assert_eq!(
            said(8080, &[]),
            "nothing listens on port 8080, which was asked for, nor on any other; have the program listen on 0.0.0.0:8080, or \
             give `defaultPort` of the class the port that it takes"
        );
        assert_eq!(
            said(8080, &[3000]),
            "nothing listens on port 8080, which was asked for; the container listens on port 3000; set `defaultPort` of the \
             class, and EXPOSE, to 3000, or have the program listen on 8080"
        );
        let others = said(8080, &[80, 3000]);
        assert!(others.contains("the container listens on ports 80, 3000; set `defaultPort`"), "{others}");
        let elsewhere = said(8080, &[8080]);
        assert!(
            elsewhere.ends_with("at another address than localhost; have the program listen on 0.0.0.0:8080"),
            "{elsewhere}"
        );
    }
}
