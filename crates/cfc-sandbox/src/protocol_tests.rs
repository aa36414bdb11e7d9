//! The rule about older launchers: they ignore what they do not know, so what limits or isolates is kept from them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

use super::*;
use crate::config::{Network, Root, Stdio};
use crate::oci_runtime::OciRuntime;
use crate::terminal::WindowSize;

/// Every field that a request can have, with the version of the protocol since which all launchers know it.
///
/// Whoever adds a field adds it here, with the newest version, and raises that if a launcher without it could be in the
/// world. If the field limits or isolates, [`Request::since`] must say so too: the tests below compare.
const FIELDS: [(&str, u32, Weight); 49] = [
    ("Attach", 1, Weight::Says),
    ("Disks", 1, Weight::Says),
    ("Ends", 1, Weight::Says),
    ("Exec.exec.arguments", 1, Weight::Says),
    ("Exec.exec.cwd", 1, Weight::Says),
    ("Exec.exec.environment", 1, Weight::Says),
    ("Exec.exec.terminal.columns", 1, Weight::Says),
    ("Exec.exec.terminal.rows", 1, Weight::Says),
    ("Exec.exec.user", 1, Weight::Isolates),
    ("Exec.id", 1, Weight::Says),
    ("ExecRelease", 1, Weight::Says),
    ("ExecSignal.group", 1, Weight::Says),
    ("ExecSignal.signal", 1, Weight::Says),
    ("Hello", 2, Weight::Says),
    ("Kill.id", 1, Weight::Says),
    ("Kill.pid", 3, Weight::Says),
    ("Kill.signal", 1, Weight::Says),
    ("KillAll.id", 1, Weight::Says),
    ("KillAll.pid", 3, Weight::Says),
    ("List", 1, Weight::Says),
    ("Network.id", 1, Weight::Says),
    ("Outbound.id", 1, Weight::Says),
    ("PrepareDisk.bytes", 1, Weight::Isolates),
    ("PrepareDisk.directory", 1, Weight::Says),
    ("Remove.id", 1, Weight::Says),
    ("Shutdown", 1, Weight::Says),
    ("Start.id", 1, Weight::Says),
    ("Start.network", 1, Weight::Isolates),
    ("Start.network.Redirected.ipv6", 1, Weight::Isolates),
    ("Start.root.Directory.path", 1, Weight::Isolates),
    ("Start.root.Disk.disk.bytes", 1, Weight::Isolates),
    ("Start.root.Disk.disk.directory", 1, Weight::Says),
    ("Start.root.Disk.lowers", 1, Weight::Says),
    ("Start.root.Overlay.lowers", 1, Weight::Says),
    ("Start.root.Overlay.upper", 1, Weight::Says),
    ("Start.root.Overlay.work", 1, Weight::Says),
    ("Start.runtime", 1, Weight::Says),
    ("Start.runtime.arguments", 3, Weight::Isolates),
    ("Start.runtime.name", 3, Weight::Isolates),
    ("Start.runtime.program", 3, Weight::Isolates),
    ("Start.spec", 1, Weight::Isolates),
    ("Start.stdio", 1, Weight::Says),
    ("Start.stdio.Log.max_bytes", 1, Weight::Isolates),
    ("Start.stdio.Log.path", 1, Weight::Says),
    ("Succeed.program", 3, Weight::Says),
    ("Update.id", 1, Weight::Says),
    ("Update.resources", 1, Weight::Isolates),
    ("Usage.id", 1, Weight::Says),
    ("Wait.id", 1, Weight::Says),
];

/// What ignoring a field would do.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Weight {
    Says,
    /// Something would be allowed that was not to be.
    Isolates,
}

/// Requests of every kind, with all that they can say.
fn requests() -> Vec<Request> {
    let id = || "x".to_owned();
    let disk = || DiskKind { bytes: 1, directory: "/".into() };
    let lowers = || vec![PathBuf::from("/")];
    let start = |root, network, stdio, runtime| {
        Request::Start(Box::new(SandboxConfig { id: id(), spec: crate::default_spec(), root, network, stdio, runtime }))
    };
    let log = || Stdio::Log { path: "/".into(), max_bytes: 1 };
    let shell = OciRuntime::find("sh", std::path::Path::new("sh"), &["a".to_owned()], None).expect("there is a shell");
    let overlay = Root::Overlay { lowers: lowers(), upper: "/".into(), work: "/".into() };
    let terminal = Some(WindowSize { rows: 1, columns: 1 });
    let exec = ExecConfig { user: Some(id()), cwd: Some("/".into()), terminal, ..ExecConfig::default() };
    vec![
        Request::Hello,
        Request::Attach,
        start(overlay, Network::Redirected { ipv6: true }, log(), Some(shell)),
        start(Root::Disk { lowers: lowers(), disk: disk() }, Network::Isolated, Stdio::Files, None),
        start(Root::Directory { path: "/".into() }, Network::Host, log(), None),
        Request::Update { id: id(), resources: Box::default() },
        Request::Kill { id: id(), signal: 1, pid: Some(2) },
        Request::KillAll { id: id(), pid: None },
        Request::Wait { id: id() },
        Request::Ends,
        Request::Remove { id: id() },
        Request::List,
        Request::Network { id: id() },
        Request::Outbound { id: id() },
        Request::PrepareDisk(disk()),
        Request::Disks,
        Request::Usage { id: id() },
        Request::Exec { id: id(), exec: Box::new(exec) },
        Request::ExecSignal { signal: 1, group: true },
        Request::ExecRelease,
        Request::Succeed { program: "/".into() },
        Request::Shutdown,
    ]
}

/// The paths of what a message says. What the spec and the resources say is the specification's, and the launcher refuses
/// what it does not support of that.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) if !path.ends_with(".spec") && !path.ends_with(".resources") => {
            for (key, value) in object {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                fields(value, &path, found);
            }
        }
        // A variant without fields.
        Value::String(name) if path.is_empty() => drop(found.insert(name.clone())),
        _ => drop(found.insert(path.to_owned())),
    }
}

fn fields_of(request: &Request) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    fields(&serde_json::to_value(request).expect("JSON"), "", &mut found);
    found
}

#[test]
fn every_field_of_every_request_has_its_version() {
    let found: BTreeSet<String> = requests().iter().flat_map(fields_of).collect();
    let listed: BTreeSet<String> = FIELDS.iter().map(|(field, ..)| (*field).to_owned()).collect();
    assert_eq!(found, listed);
}

#[test]
fn what_limits_or_isolates_is_kept_from_launchers_that_do_not_know_it() {
    for request in requests() {
        let fields = fields_of(&request);
        let told = FIELDS.iter().filter(|(field, _, weight)| fields.contains(*field) && *weight == Weight::Isolates);
        let needed = told.map(|(_, since, _)| *since).max().unwrap_or(1);
        assert_eq!(request.since().max(1), needed, "{request:?}");
        for protocol in 1..=PROTOCOL {
            let hello = Hello { protocol, oldest: 1, version: "9.9.9".to_owned(), pid: 1 };
            let checked = request.check_known(&hello);
            assert_eq!(checked.is_ok(), protocol >= needed, "{request:?} to a launcher of version {protocol}");
            assert!(checked.err().is_none_or(|said| said.contains("9.9.9") && said.contains("cfc upgrade")));
        }
    }
}
