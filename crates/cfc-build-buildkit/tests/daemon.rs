//! A real daemon: the suite of the seam, every way to reach it, and what becomes of a build when one is cut.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, mpsc};

use cfc_build_buildkit::{Address, BuildkitBuilder, BuildkitOptions, TlsFiles};
use cfc_plan::contract::{NoImages, Subject, check, request};
use cfc_plan::{BuildError, BuildProgress, Builder, BuiltImage, Context, Node, OutputStream, Silent};
use cfc_store::Store;
use common::{Bridge, Daemon, PATIENCE, Speaks, busybox, files};

#[test]
fn a_daemon_keeps_the_promises_of_the_seam_however_it_is_reached() {
    let Some(daemon) = Daemon::start() else { return };
    keeps_the_promises(&daemon.address());
    is_reached_by_its_socket_and_port(&daemon);
    is_reached_with_tls(&daemon);
    is_not_reached_where_nobody_is(&daemon);
    forwards_ssh_agents(&daemon);
    names_what_it_cannot_be_told(&daemon);
    a_build_that_is_stopped_leaves_no_image_in_the_engine(&daemon);
    nothing_is_left_of_a_layer_that_breaks_off(&daemon, Speaks::Engine);
    gives_no_image_twice(&daemon);
    if busybox().is_some() {
        a_lost_connection_is_told_and_leaves_no_image(&daemon);
        a_build_that_is_stopped_ends_on_the_daemon(&daemon);
    }
}

#[test]
fn a_whole_buildkit_keeps_them_too_without_an_engine_around_it() {
    let Some(daemon) = Daemon::start_current() else { return };
    let socket = Bridge::unix(&daemon, &daemon.path("whole.sock"));
    keeps_the_promises(&format!("unix://{}", socket.place));
    is_reached_by_its_socket_and_port(&daemon);
    is_reached_with_tls(&daemon);
    forwards_ssh_agents(&daemon);
    names_what_it_cannot_be_told(&daemon);
    assert!(!daemon.ask("/images/json").contains("\"cfc-build:"), "it was lent no image");
    sends_no_layer_twice(&daemon);
    nothing_is_left_of_a_layer_that_breaks_off(&daemon, Speaks::BuildKit);
    if busybox().is_some() {
        a_lost_connection_is_told_and_leaves_no_image(&daemon);
        a_build_that_is_stopped_ends_on_the_daemon(&daemon);
    }
}

#[test]
fn a_daemon_that_is_stopped_is_told_and_leaves_no_image() {
    for daemon in [Daemon::start(), Daemon::start_current()].into_iter().flatten() {
        if busybox().is_none() {
            return;
        }
        let (sender, receiver) = mpsc::channel();
        let home = Home::new();
        let mut builder = BuildkitBuilder::new(home.store.clone(), at(&daemon.address()));
        let stopping = std::thread::spawn(move || {
            receiver.recv_timeout(PATIENCE).expect("a program runs");
            drop(daemon);
        });
        let dockerfile = format!("{BASE}RUN echo begun && sleep 47115\n");
        let error = home.build(&mut builder, &dockerfile, &Tell(sender)).expect_err("the daemon is stopped");
        assert!(error.to_string().contains("the connection to the BuildKit daemon at"), "{error:?}");
        assert!(error.hint.is_some(), "{error:?}");
        assert_eq!(home.manifests(), 0, "no image is in the store");
        stopping.join().expect("no panic");
        // An old one leaves its programs alone.
        for pid in having("47115") {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        await_end("47115");
    }
}

#[test]
fn a_daemon_whose_disk_is_full_is_told_and_leaves_no_image() {
    for daemon in [Daemon::start_on(DISK), Daemon::start_current_on(DISK)].into_iter().flatten() {
        let home = Home::new();
        let large = fs::File::create(home.directory.path().join("context/large")).expect("writable");
        large.set_len(2 * DISK).expect("it is sparse");
        let mut builder = BuildkitBuilder::new(home.store.clone(), at(&daemon.address()));
        let error = home.build(&mut builder, "FROM scratch\nCOPY large /\n", &Silent).expect_err("it does not fit");
        let expected = format!("the disk of the BuildKit daemon at `{}` is full: ", daemon.address());
        assert!(error.message.starts_with(&expected), "{error:?}");
        assert!(error.hint.is_some(), "{error:?}");
        assert_eq!(home.manifests(), 0, "no image is in the store");
        assert!(!daemon.ask("/images/json").contains("\"cfc-build:"), "nor in the engine");
    }
}

#[test]
fn a_daemon_that_does_not_go_on_with_a_build_is_not_waited_for() {
    for refused in ["LLBBridge/Ping", "LLBBridge/Solve", "LLBBridge/Return"] {
        let address = format!("tcp://{}", common::refusing::serve(refused));
        let (sender, receiver) = mpsc::channel();
        let options = at(&address);
        std::thread::spawn(move || {
            let built = build(&options, "FROM scratch\nCOPY f /\n").0;
            sender.send(built).expect("somebody waits");
        });
        let built = receiver.recv_timeout(PATIENCE).expect("it does not hang");
        let expected = format!("the BuildKit daemon at `{address}` cannot build: it has no such build");
        assert_eq!(built.expect_err("there is no image").message, expected, "{refused}");
    }
}

fn keeps_the_promises(address: &str) {
    let home = tempfile::tempdir().expect("a directory");
    let directory = home.path().join("context");
    fs::create_dir(&directory).expect("writable");
    let store = Store::open(&home.path().join("store")).expect("a store");
    let mut builder = BuildkitBuilder::new(store.clone(), at(address));
    let files = |built: &BuiltImage| files(&store, built);
    check(Subject { builder: &mut builder, directory: &directory, busybox: busybox(), files: &files });
}

fn is_reached_by_its_socket_and_port(daemon: &Daemon) {
    let unix = Bridge::unix(daemon, &daemon.path("buildkitd.sock"));
    let (tcp, engine) = (Bridge::tcp(daemon, Speaks::BuildKit), Bridge::tcp(daemon, Speaks::Engine));
    assert_builds(&at(&format!("unix://{}", unix.place)));
    assert_builds(&at(&format!("tcp://{}", tcp.place)));
    assert_builds(&at(&format!("docker://{}", engine.place)));
}

fn is_reached_with_tls(daemon: &Daemon) {
    let certificates = daemon.path("certificates");
    if !make_certificates(&certificates) {
        eprintln!("skipped: no TLS without openssl");
        return;
    }
    for speaks in [Speaks::BuildKit, Speaks::Engine] {
        let bridge = Bridge::tcp(daemon, speaks);
        let place = serve_tls(&certificates, &bridge.place, speaks);
        let scheme = if speaks == Speaks::BuildKit { "tcp" } else { "docker" };
        let plain = at(&format!("{scheme}://{place}"));
        let tls = Some(TlsFiles { directory: certificates.join("client") });
        assert_builds(&BuildkitOptions { tls, ..plain.clone() });
        // Without a certificate of ours it does not speak to us, and neither without TLS.
        let nobody = Some(TlsFiles { directory: certificates.join("nobody") });
        for options in [BuildkitOptions { tls: nobody, ..plain.clone() }, plain] {
            let error = build(&options, "FROM scratch\nCOPY f /\n").0.expect_err("it wants to know who we are");
            assert!(error.message.contains(&place), "{error}");
            assert!(error.hint.is_some(), "{error:?}");
        }
    }
}

fn is_not_reached_where_nobody_is(daemon: &Daemon) {
    let socket = daemon.path("nobody.sock");
    let error =
        build(&at(&format!("unix://{}", socket.display())), "FROM scratch\nCOPY f /\n").0.expect_err("no socket");
    let message = format!("cannot reach a BuildKit daemon at `unix://{}`", socket.display());
    assert!(error.message.starts_with(&message), "{error}");
    assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("--buildkit-addr")), "{error:?}");
    // Somebody else: the engine where a `buildkitd` is expected.
    let engine = Bridge::tcp(daemon, Speaks::Engine);
    let error = build(&at(&format!("tcp://{}", engine.place)), "FROM scratch\nCOPY f /\n").0.expect_err("no daemon");
    assert!(error.message.contains(&engine.place), "{error}");
    assert!(error.hint.is_some(), "{error:?}");
}

fn names_what_it_cannot_be_told(daemon: &Daemon) {
    use std::os::unix::ffi::OsStrExt;
    let home = Home::new();
    let odd = std::ffi::OsStr::from_bytes(b"context/d/b\xff");
    fs::create_dir(home.directory.path().join("context/d")).expect("writable");
    fs::write(home.directory.path().join(odd), "").expect("writable");
    let mut builder = BuildkitBuilder::new(home.store.clone(), at(&daemon.address()));
    let error = home.build(&mut builder, "FROM scratch\nCOPY d /d/\n", &Silent).expect_err("it has no name");
    assert!(error.message.contains(r"/context/d/b\xFF"), "{error:?}");
    assert!(error.message.contains("its name is not UTF-8"), "{error:?}");
    assert_eq!(home.manifests(), 0, "no image is in the store");
}

fn sends_no_layer_twice(daemon: &Daemon) {
    const SIZE: u64 = 8 << 20;
    let bridge = Bridge::unix(daemon, &daemon.path("counting.sock"));
    let home = Home::new();
    let large = fs::File::create(home.directory.path().join("context/large")).expect("writable");
    large.set_len(SIZE).expect("it is sparse");
    let build = |more: &str| {
        let mut builder = BuildkitBuilder::new(home.store.clone(), at(&format!("unix://{}", bridge.place)));
        home.build(&mut builder, &format!("FROM scratch\nCOPY large /\n{more}"), &Silent).expect("builds");
        bridge.came()
    };
    let first = build("");
    assert!(first > SIZE, "{first}");
    let again = build("COPY f /\n");
    assert!(again < SIZE / 4, "only the new layer is sent: {again} bytes");
}

/// An engine's archive has all layers or none.
fn gives_no_image_twice(daemon: &Daemon) {
    const SIZE: u64 = 8 << 20;
    let bridge = Bridge::unix_as(daemon, &daemon.path("giving.sock"), Speaks::Engine);
    let home = Home::new();
    let large = fs::File::create(home.directory.path().join("context/large")).expect("writable");
    large.set_len(SIZE).expect("it is sparse");
    let build = |options: BuildkitOptions| {
        let mut builder = BuildkitBuilder::new(home.store.clone(), options);
        let built = home.build(&mut builder, "FROM scratch\nCOPY large /given/\nCOPY f /\n", &Silent).expect("builds");
        (built.manifest, bridge.came())
    };
    let options = at(&format!("docker://{}", bridge.place));
    let (first, came) = build(options.clone());
    assert!(came > SIZE, "{came}");
    let (again, came) = build(options.clone());
    assert_eq!(again, first);
    assert!(came < SIZE / 4, "nothing is new, and nothing is sent: {came} bytes");
    let (fresh, came) = build(BuildkitOptions { no_cache: true, ..options });
    assert_eq!(fresh, first);
    assert!(came > SIZE, "{came}");
}

/// The build itself went well: the connection is cut while its layer is on its way to us.
fn nothing_is_left_of_a_layer_that_breaks_off(daemon: &Daemon, speaks: Speaks) {
    const SIZE: u64 = 8 << 20;
    let bridge = Bridge::unix_as(daemon, &daemon.path("cut.sock"), speaks);
    let scheme = if speaks == Speaks::Engine { "docker" } else { "unix" };
    let options = at(&format!("{scheme}://{}", bridge.place));
    let home = Home::new();
    // Of what is not to be compressed, since a daemon may do that.
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    });
    let large: Vec<u8> = noise.take(SIZE as usize).collect();
    fs::write(home.directory.path().join("context/large"), &large).expect("writable");
    let build = || {
        let mut builder = BuildkitBuilder::new(home.store.clone(), options.clone());
        home.build(&mut builder, "FROM scratch\nCOPY large /broken/\n", &Silent)
    };
    for cut_after in [SIZE / 8, SIZE - SIZE / 8] {
        bridge.cut_after(cut_after);
        let error = build().expect_err("the connection is cut");
        assert!(bridge.came() >= cut_after, "it is cut in the middle of the layer: {error:?}");
        let lost = format!("the connection to the BuildKit daemon at `{}` was lost: ", options.address);
        assert!(error.message.starts_with(&lost), "{error:?}");
        assert!(error.hint.is_some(), "{error:?}");
        assert_eq!(home.large_files(), 0, "no part of the layer is in the store");
        assert_eq!(home.manifests(), 0, "no image is in the store");
        assert!(!daemon.ask("/images/json").contains("\"cfc-build:"), "nor in the engine");
    }
    bridge.cut_after(u64::MAX);
    let built = build().expect("it goes well when nothing is cut");
    assert!(files(&home.store, &built)[Path::new("broken/large")] == large, "all of it came");
    assert!(home.large_files() > 0, "what is looked for would be found");
}

/// How large a small disk is, in bytes.
const DISK: u64 = 64 << 20;

const BASE: &str =
    "FROM scratch\nCOPY --chmod=755 busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";

/// Has the rest of a build wait until a program wrote something.
struct Tell(mpsc::Sender<()>);

impl BuildProgress for Tell {
    fn output(&self, _: &Node, _: OutputStream, _: &[u8]) {
        let _ = self.0.send(());
    }
}

fn a_lost_connection_is_told_and_leaves_no_image(daemon: &Daemon) {
    let bridge = Bridge::tcp(daemon, Speaks::Engine);
    let (sender, receiver) = mpsc::channel();
    let address = format!("docker://{}", bridge.place);
    let cutter = std::thread::spawn(move || {
        receiver.recv_timeout(PATIENCE).expect("a program runs");
        bridge.cut();
    });
    let dockerfile = format!("{BASE}RUN echo begun && sleep 47113\n");
    let home = Home::new();
    let mut builder = BuildkitBuilder::new(home.store.clone(), at(&address));
    let error = home.build(&mut builder, &dockerfile, &Tell(sender)).expect_err("the connection is cut");
    cutter.join().expect("no panic");
    assert!(error.to_string().contains("the connection to the BuildKit daemon at"), "{error}");
    assert!(error.hint.is_some(), "{error:?}");
    assert_eq!(home.manifests(), 0, "no image is in the store");
    await_end("47113");
}

fn a_build_that_is_stopped_ends_on_the_daemon(daemon: &Daemon) {
    let (sender, receiver) = mpsc::channel();
    let home = Home::new();
    let mut builder = BuildkitBuilder::new(home.store.clone(), at(&daemon.address()));
    let stopper = builder.stopper();
    let stopping = std::thread::spawn(move || {
        receiver.recv_timeout(PATIENCE).expect("a program runs");
        stopper.stop();
    });
    let dockerfile = format!("{BASE}RUN echo begun && sleep 47114\n");
    let error = home.build(&mut builder, &dockerfile, &Tell(sender)).expect_err("it is stopped");
    stopping.join().expect("no panic");
    assert_eq!(error.message, "the build was ended");
    assert_eq!(home.manifests(), 0, "no image is in the store");
    await_end("47114");
}

fn a_build_that_is_stopped_leaves_no_image_in_the_engine(daemon: &Daemon) {
    let (sender, receiver) = mpsc::channel();
    let bridge = Bridge::without_archives(daemon, sender);
    let home = Home::new();
    let mut builder = BuildkitBuilder::new(home.store.clone(), at(&format!("docker://{}", bridge.place)));
    let stopper = builder.stopper();
    let building = std::thread::spawn(move || home.build(&mut builder, "FROM scratch\nCOPY f /stopped\n", &Silent));
    receiver.recv_timeout(PATIENCE).expect("the image is asked for");
    assert!(daemon.ask("/images/json").contains("\"cfc-build:"), "it is there");
    stopper.stop();
    assert!(!daemon.ask("/images/json").contains("\"cfc-build:"), "it is gone when the process may end");
    assert_eq!(building.join().expect("no panic").expect_err("it is stopped").message, "the build was ended");
}

const ASKS_ITS_AGENT: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(void) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strcpy(address.sun_path, getenv("SSH_AUTH_SOCK"));
  int agent = socket(AF_UNIX, SOCK_STREAM, 0);
  char answer[100] = "";
  if (connect(agent, (void *)&address, sizeof address) || write(agent, "ping", 4) != 4) return 1;
  if (read(agent, answer, 99) <= 0) return 2;
  puts(answer);
}
"#;

fn forwards_ssh_agents(daemon: &Daemon) {
    let home = Home::new();
    let (source, socket) = (home.directory.path().join("client.c"), home.directory.path().join("agent"));
    fs::write(&source, ASKS_ITS_AGENT).expect("writable");
    let client = home.directory.path().join("context/client");
    let compiled = Command::new("cc").arg("-static").arg("-o").arg(&client).arg(&source).output();
    if !compiled.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no program that asks an agent without a C compiler");
        return;
    }
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let agent = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the program asks");
        let mut asked = [0; 4];
        stream.read_exact(&mut asked).expect("reads");
        // At once: the program reads once.
        stream.write_all(&[b"heard ", &asked[..]].concat()).expect("writes");
    });
    let dockerfile = "FROM scratch\nCOPY client /client\nRUN --mount=type=ssh,required [\"/client\"]\n";
    let plan = cfc_plan::lower(&request(dockerfile, None), &NoImages).expect("a good Dockerfile");
    let directory = home.directory.path().join("context");
    let ssh = BTreeMap::from([("default".to_string(), socket)]);
    let heard = Said::default();
    let mut builder = BuildkitBuilder::new(home.store.clone(), at(&daemon.address()));
    let context = Context { directory, ssh, ..Context::default() };
    builder.build(&plan, &context, &heard).expect("builds");
    agent.join().expect("no panic");
    assert_eq!(*heard.0.lock().expect("no panic"), "heard ping\n");
}

/// What programs wrote.
#[derive(Default)]
struct Said(Mutex<String>);

impl BuildProgress for Said {
    fn output(&self, _: &Node, _: OutputStream, bytes: &[u8]) {
        self.0.lock().expect("no panic").push_str(&String::from_utf8_lossy(bytes));
    }
}

/// The processes that have `argument`.
fn having(argument: &str) -> Vec<rustix::process::Pid> {
    let processes = fs::read_dir("/proc").expect("lists").flatten();
    let has_it = |process: &fs::DirEntry| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|part| part == argument.as_bytes())
    };
    let pids = processes.filter(has_it).filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.filter_map(rustix::process::Pid::from_raw).collect()
}

/// Waits until no process has `argument` any more.
fn await_end(argument: &str) {
    let start = std::time::Instant::now();
    while !having(argument).is_empty() {
        assert!(start.elapsed() < PATIENCE, "the daemon still runs the program");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn at(address: &str) -> BuildkitOptions {
    BuildkitOptions::at(address.parse::<Address>().expect("an address"))
}

/// A store and a build context with a busybox and a file.
struct Home {
    directory: tempfile::TempDir,
    store: Store,
}

impl Home {
    fn new() -> Home {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("context")).expect("writable");
        fs::write(directory.path().join("context/f"), "content").expect("writable");
        if let Some(busybox) = busybox() {
            fs::copy(busybox, directory.path().join("context/busybox")).expect("copied");
        }
        let store = Store::open(&directory.path().join("store")).expect("a store");
        Home { directory, store }
    }

    fn build(
        &self,
        builder: &mut BuildkitBuilder,
        dockerfile: &str,
        progress: &dyn BuildProgress,
    ) -> Result<BuiltImage, BuildError> {
        let plan = cfc_plan::lower(&request(dockerfile, None), &NoImages).expect("a good Dockerfile");
        let context = Context { directory: self.directory.path().join("context"), ..Context::default() };
        builder.build(&plan, &context, progress)
    }

    /// How many blobs of the store are manifests.
    fn manifests(&self) -> usize {
        let is_manifest = |path: &Path| fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"{\"schemaVersion"));
        self.count("blobs", is_manifest)
    }

    /// How many files of the store are larger than 64 KiB, unfinished ones too.
    fn large_files(&self) -> usize {
        self.count("", |path| path.metadata().is_ok_and(|metadata| metadata.len() > 64 << 10))
    }

    /// How many files of a directory of the store are such.
    fn count(&self, directory: &str, is_such: impl Fn(&Path) -> bool) -> usize {
        let mut pending = vec![self.store.root().join(directory)];
        let mut count = 0;
        while let Some(path) = pending.pop() {
            match fs::read_dir(&path) {
                Ok(entries) => pending.extend(entries.flatten().map(|entry| entry.path())),
                Err(_) => count += usize::from(is_such(&path)),
            }
        }
        count
    }
}

fn build(options: &BuildkitOptions, dockerfile: &str) -> (Result<BuiltImage, BuildError>, Home) {
    let home = Home::new();
    let mut builder = BuildkitBuilder::new(home.store.clone(), options.clone());
    (home.build(&mut builder, dockerfile, &Silent), home)
}

/// The BuildKit in an old engine sends images by way of the engine only, which is not there at a port of its own: then its
/// answer shows that it was reached.
fn assert_builds(options: &BuildkitOptions) {
    match build(options, "FROM scratch\nCOPY f /\n") {
        (Ok(built), home) => assert_eq!(files(&home.store, &built)[Path::new("f")], b"content"),
        (Err(error), _) => {
            let is_engine = matches!(options.address, Address::DockerTcp(_) | Address::DockerUnix(_));
            let expected = format!("the BuildKit daemon at `{}` sends images to no client (`oci`)", options.address);
            assert!(!is_engine && error.message == expected, "{error:?}");
        }
    }
}

/// An authority, a server for 127.0.0.1, a client (`client/`), and one that has only the authority's certificate
/// (`nobody/`).
fn make_certificates(directory: &Path) -> bool {
    fs::create_dir_all(directory.join("client")).expect("writable");
    fs::create_dir_all(directory.join("nobody")).expect("writable");
    let script = "set -eu
key() { openssl ecparam -name prime256v1 -genkey -noout -out $1; }
signed() { openssl req -new -key $1.key -subj /CN=$2 | openssl x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $3 -out $1.pem; }
key ca.key; openssl req -x509 -new -key ca.key -subj /CN=authority -days 2 -out ca.pem
echo 'subjectAltName=IP:127.0.0.1' >server.ext; echo 'extendedKeyUsage=clientAuth' >client.ext
key server.key; signed server server server.ext
key client.key; signed client client client.ext
cp ca.pem client/ca.pem; cp ca.pem nobody/ca.pem; mv client.pem client/cert.pem; mv client.key client/key.pem";
    let made = Command::new("sh").args(["-c", script]).current_dir(directory).output().expect("sh runs");
    made.status.success()
}

/// Puts TLS in front of `place`, for those whose certificate is the authority's. Where it listens.
fn serve_tls(certificates: &Path, place: &str, speaks: Speaks) -> String {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let read = |name: &str| CertificateDer::from_pem_file(certificates.join(name)).expect("a certificate");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(read("ca.pem")).expect("an authority");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let key = PrivateKeyDer::from_pem_file(certificates.join("server.key")).expect("a key");
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(clients.build().expect("a verifier"))
        .with_single_cert(vec![read("server.pem")], key)
        .expect("a certificate and its key");
    config.alpn_protocols = vec![if speaks == Speaks::BuildKit { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let (sender, receiver) = mpsc::channel();
    let place = place.to_string();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            sender.send(listener.local_addr().expect("bound").to_string()).expect("somebody waits");
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, place) = (acceptor.clone(), place.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut behind = tokio::net::TcpStream::connect(place).await.expect("the bridge listens");
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
                });
            }
        });
    });
    receiver.recv_timeout(PATIENCE).expect("it listens")
}
