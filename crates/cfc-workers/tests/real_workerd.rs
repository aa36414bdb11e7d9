//! The starter project's Worker on the real workerd, with a container engine that only this test pretends to be.

mod fake_engine;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cfc_workers::{
    Bundle, ContainerBinding, Module, Toolchain, WorkerVersion, Workerd, WorkersErrorKind, bundle, try_version,
    unique_key, write_config,
};
use fake_engine::FakeEngine;

/// The pinned tools, or why the test must be skipped.
fn toolchain() -> Option<Toolchain> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/cfc/tools"));
    let directory = std::env::var_os("CFC_TOOLS_DIR").map(PathBuf::from).or(home)?;
    match Toolchain::locate(&directory) {
        Ok(toolchain) => Some(toolchain),
        Err(error) => {
            eprintln!("skipped: {error}: {} (CFC_TOOLS_DIR names their directory)", error.kind);
            None
        }
    }
}

fn starter_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/projects/container-starter")
}

fn starter(toolchain: &Toolchain) -> WorkerVersion {
    let project = cfc_project::load(&starter_directory().join("wrangler.jsonc"), None).expect("the starter is valid");
    let bundle = bundle(&project, toolchain).expect("the starter bundles");
    let image = "container-starter-mycontainer:test".to_string();
    let container = ContainerBinding { class_name: "MyContainer".to_string(), image };
    WorkerVersion::from_project(&project, bundle, vec![container])
}

fn post(socket: &Path, body: &str) -> String {
    let mut stream = UnixStream::connect(socket).expect("workerd listens");
    let request = format!(
        "POST /path HTTP/1.1\r\nHost: container-starter.localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("workerd reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("workerd answers");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_starter_asks_the_engine_for_a_container_and_talks_to_it() {
    let Some(toolchain) = toolchain() else { return };
    let data = tempfile::tempdir().expect("a directory");
    let engine = FakeEngine::start(&data.path().join("engine.sock"));
    let version = starter(&toolchain);
    let dir = data.path().join("worker");
    let config = write_config(&toolchain, &dir, &version, &engine.socket, "cfc/egress:1").expect("a config");
    assert_eq!(config.unique_keys["MyContainer"], unique_key("container-starter", "MyContainer"));

    let socket = data.path().join("http.sock");
    let workerd = Workerd::start(&toolchain, &dir, &config.path, &socket).await.expect("workerd serves");
    let answer = post(&socket, r#"{"session-id": "a"}"#);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("from the container"), "{answer}");

    let requests = engine.requests();
    let created =
        |request: &&String| request.starts_with("POST /containers/create?name=workerd-container-starter-MyContainer-");
    let bodies: Vec<&String> = requests.iter().filter(created).collect();
    assert_eq!(bodies.len(), 2, "the sidecar and the container: {requests:#?}");
    assert!(bodies[0].contains(r#""Image":"cfc/egress:1""#), "{}", bodies[0]);
    assert!(bodies[1].contains(r#""Image":"container-starter-mycontainer:test""#), "{}", bodies[1]);
    let forwarded = requests.iter().find(|request| request.contains("POST /path")).expect("the request went through");
    assert!(forwarded.ends_with(r#"{"session-id": "a"}"#), "the body arrives too: {forwarded}");
    assert!(dir.join("do/container-starter-MyContainer").is_dir(), "objects live below `do`");

    let ended = workerd.stop(Duration::from_secs(5)).await;
    assert_eq!(ended, cfc_workers::Exited::Code(0), "SIGTERM ends workerd in good order");
    assert!(!Path::new(&format!("/proc/{}", workerd.pid())).exists(), "nothing is left of it");
    let after = engine.requests().split_off(requests.len());
    let removed = after.iter().filter(|request| request.starts_with("DELETE /containers/workerd-")).count();
    assert_eq!(removed, 2, "it asks for the removal of its container and of the sidecar: {after:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workerd_that_an_earlier_run_left_behind_is_ended_first() {
    let Some(toolchain) = toolchain() else { return };
    let data = tempfile::tempdir().expect("a directory");
    let version = starter(&toolchain);
    let config = write_config(&toolchain, data.path(), &version, &data.path().join("e"), "x").expect("a config");
    let first = Workerd::start(&toolchain, data.path(), &config.path, &data.path().join("s")).await.expect("serves");
    let second = Workerd::start(&toolchain, data.path(), &config.path, &data.path().join("s")).await.expect("serves");
    assert_eq!(first.exited().await, cfc_workers::Exited::Signal(9));
    assert!(Path::new(&format!("/proc/{}", second.pid())).exists());
}

/// Not a test of its own: the process that the next test kills.
#[tokio::test(flavor = "multi_thread")]
async fn helper_that_serves_until_it_is_killed() {
    let Some(dir) = std::env::var_os("CFC_TEST_SERVE_IN").map(PathBuf::from) else { return };
    let toolchain = toolchain().expect("the test that starts this one has looked");
    let config = write_config(&toolchain, &dir, &starter(&toolchain), &dir.join("e"), "x").expect("a config");
    let _workerd = Workerd::start(&toolchain, &dir, &config.path, &dir.join("s")).await.expect("serves");
    std::fs::write(dir.join("serves"), "").expect("write");
    std::future::pending::<()>().await;
}

#[test]
fn kill_9_of_the_server_takes_its_workerd_along() {
    let Some(_) = toolchain() else { return };
    if std::process::Command::new("setpriv").arg("--version").output().is_err() {
        eprintln!("skipped: `setpriv` of util-linux is not installed");
        return;
    }
    let data = tempfile::tempdir().expect("a directory");
    let mut server = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "helper_that_serves_until_it_is_killed"])
        .env("CFC_TEST_SERVE_IN", data.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    wait_until(|| data.path().join("serves").exists());
    let noted = std::fs::read_to_string(data.path().join("pid")).expect("workerd is noted");
    let pid = noted.split(' ').next().expect("a pid").to_string();
    assert!(is_alive(&pid));
    server.kill().expect("it runs");
    server.wait().expect("it ends");
    wait_until(|| !is_alive(&pid));
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}

fn wait_until(condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it did not come true within 20 s");
}

async fn refused(toolchain: &Toolchain, change: impl FnOnce(&mut WorkerVersion)) -> String {
    let scratch = tempfile::tempdir().expect("a directory");
    let mut version = starter(toolchain);
    change(&mut version);
    let error = try_version(toolchain, scratch.path(), &version).await.expect_err("it must be refused");
    assert_eq!(std::fs::read_dir(scratch.path()).expect("there").count(), 0, "nothing is left behind");
    format!("{error}: {}", error.kind)
}

fn module(text: &str) -> Bundle {
    let content_type = "application/javascript+module".to_string();
    let module = Module { name: "index.js".to_string(), content_type, bytes: text.into() };
    Bundle { main_module: "index.js".to_string(), modules: vec![module] }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_cannot_serve_is_refused_in_workerds_words() {
    let Some(toolchain) = toolchain() else { return };
    let scratch = tempfile::tempdir().expect("a directory");
    try_version(&toolchain, scratch.path(), &starter(&toolchain)).await.expect("the starter is fine");

    let said = refused(&toolchain, |version| version.bundle = module("throw new Error('boom')")).await;
    assert!(said.contains("boom"), "{said}");
    let said = refused(&toolchain, |version| version.bundle = module("export default {}")).await;
    assert!(said.contains("does not export the Durable Object class `MyContainer`"), "{said}");
    let said = refused(&toolchain, |version| version.compatibility_flags = vec!["no_such_flag".to_string()]).await;
    assert!(said.contains("no_such_flag"), "{said}");
}

#[test]
fn the_pinned_tools_can_be_installed_from_nothing() {
    if std::env::var_os("CFC_TEST_INSTALL").is_none() {
        eprintln!("skipped: downloads 40 MB; set CFC_TEST_INSTALL=1 to run it");
        return;
    }
    let data = tempfile::tempdir().expect("a directory");
    let directory = data.path().join("new/tools");
    let toolchain = Toolchain::install(&directory, &mut |line| eprintln!("{line}")).expect("npm installs them");
    assert!(toolchain.workerd.is_file() && toolchain.esbuild.is_file());
    assert_eq!(std::fs::read_dir(data.path().join("new")).expect("there").count(), 1, "nothing else is left");
    Toolchain::install(&directory, &mut |line| panic!("nothing is left to do, yet npm says {line}")).expect("again");
}

#[test]
fn every_kind_of_module_and_a_renamed_class_reach_workerd() {
    let Some(toolchain) = toolchain() else { return };
    let data = tempfile::tempdir().expect("a directory");
    let mut version = starter(&toolchain);
    version.containers[0].class_name = "New".to_string();
    version.durable_objects[0].class_name = "New".to_string();
    version
        .migrations
        .push(serde_json::json!({ "tag": "v2", "renamed_classes": [{ "from": "MyContainer", "to": "New" }] }));
    version.bundle.modules.push(Module {
        name: "deep/data.bin".to_string(),
        content_type: "application/octet-stream".to_string(),
        bytes: vec![0, 255, 1],
    });
    let config = write_config(&toolchain, data.path(), &version, Path::new("/e"), "x").expect("a config");
    assert_eq!(config.unique_keys["New"], "container-starter-MyContainer", "a renamed class keeps its objects");

    version.bundle.modules[1].content_type = "image/png".to_string();
    let error = write_config(&toolchain, data.path(), &version, Path::new("/e"), "x").expect_err("an unknown kind");
    assert!(matches!(&error.kind, WorkersErrorKind::Unsupported(what) if what.contains("deep/data.bin")), "{error:?}");
}

#[test]
fn a_worker_that_does_not_compile_says_where() {
    let Some(toolchain) = toolchain() else { return };
    let project = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(project.path().join(name), text).expect("write");
    write("wrangler.json", r#"{ "name": "w", "main": "index.js", "compatibility_date": "2025-10-03" }"#);
    let try_bundle = |text: &str| {
        write("index.js", text);
        let project = cfc_project::load(&project.path().join("wrangler.json"), None).expect("valid");
        bundle(&project, &toolchain)
    };
    let error = try_bundle("export default { fetch( }").expect_err("it does not parse");
    assert!(error.kind.to_string().contains("index.js:1:24"), "{}", error.kind);
    let error = try_bundle("import 'left-pad'").expect_err("it does not resolve");
    assert!(error.hint.is_some_and(|hint| hint.contains("npm install")), "{}", error.kind);
    let bundle = try_bundle("import text from './a.txt'; export default { text }").map(|_| ());
    assert!(bundle.is_err());
    write("a.txt", "hello");
    let bundle = try_bundle("import text from './a.txt'; export default { text }").expect("text needs no rule");
    assert_eq!(bundle.modules.len(), 1);
}
