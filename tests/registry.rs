//! `cfc registry`: running a registry alone and looking after it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use cfc_oci::Digest;

use crate::ordinary_user::OrdinaryUser;
use crate::support::{Ended, Home, Platform, can_sandbox, free_port, http, tools, wait_for};

/// `cfc registry serve` on this home's data directory, and its address.
pub fn serve(home: &Home) -> (Ended, String) {
    serve_with(home, &[])
}

/// As [`serve`], with something in its environment.
pub fn serve_with(home: &Home, environment: &[(&str, &str)]) -> (Ended, String) {
    let port = free_port().to_string();
    let mut command = home.cfc();
    command.envs(environment.iter().copied());
    command.args(["registry", "serve", "--port", &port]).stdout(std::process::Stdio::null());
    let server = Ended(command.spawn().expect("cfc runs"));
    let address = format!("127.0.0.1:{port}");
    wait_for("the registry", || std::net::TcpStream::connect(&address).ok());
    (server, address)
}

/// As [`serve`], with what gives all that it has said to people by now.
pub fn serve_heard(home: &Home) -> (Ended, String, impl Fn() -> String) {
    let (port, log) = (free_port().to_string(), home.path("registry.log"));
    let mut command = home.cfc();
    command.args(["registry", "serve", "--port", &port]).stdout(std::process::Stdio::null());
    command.stderr(std::fs::File::create(&log).expect("writable"));
    let server = Ended(command.spawn().expect("cfc runs"));
    let address = format!("127.0.0.1:{port}");
    wait_for("the registry", || TcpStream::connect(&address).ok());
    (server, address, move || std::fs::read_to_string(&log).expect("readable"))
}

/// The next request that comes to a server that a test plays.
fn accept(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().expect("a connection");
    read_head(&mut stream);
    stream
}

/// Gives everybody who asks the answer `status`, without a body, until the process ends.
pub fn answer_all(listener: TcpListener, status: &'static str) {
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.read(&mut [0; 4096]);
            let _ = write!(client, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.extend(byte);
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn send(address: &str, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(text.as_bytes()).expect("sends");
    stream
}

fn rest(mut stream: TcpStream) -> String {
    let mut rest = Vec::new();
    // A reset ends it as well.
    let _ = stream.read_to_end(&mut rest);
    String::from_utf8_lossy(&rest).into_owned()
}

/// Asks the registry to end, while a client is given a blob that an upstream holds back the rest of, and others push.
#[test]
fn a_registry_that_is_asked_to_end_does_so_and_leaves_nothing_half() {
    const LENGTH: usize = 1_000_000;
    let home = Home::new();
    let upstream = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", upstream.local_addr().expect("bound"));
    home.write("config.toml", &format!("[[registry.upstream]]\nprefix = \"hub\"\nurl = \"{url}\"\n"));
    let content = "a line of a layer\n".repeat(LENGTH / 18 + 1)[..LENGTH].to_string();
    let digest = Digest::of(content.as_bytes());
    let get = format!("GET /v2/hub/a/blobs/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let push = |content: &str, length: usize| {
        let line = format!("POST /v2/own/blobs/uploads/?digest={} HTTP/1.1", Digest::of(content.as_bytes()));
        format!("{line}\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")
    };
    let blob = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\nConnection: close\r\n\r\n");

    let (mut server, address) = serve(&home);
    let mut pulling = send(&address, &get);
    let mut held = accept(&upstream);
    held.write_all(format!("{blob}{}", &content[..LENGTH / 2]).as_bytes()).expect("sends");
    assert!(read_head(&mut pulling).starts_with("HTTP/1.1 200"));
    let mut first = vec![0; LENGTH / 4];
    pulling.read_exact(&mut first).expect("comes at once");
    let mut ready = send(&address, &format!("{}ab", push("abc", 3)));
    let never_ready = send(&address, &format!("{}xy", push("xyz", 3)));
    // Who has been answered is there.
    assert_eq!(status(&address, "GET", "/v2/"), 200);
    let pid = rustix::process::Pid::from_child(&server.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    wait_for("nobody to listen", || TcpStream::connect(&address).is_err().then_some(()));
    ready.write_all(b"c").expect("sends");
    assert!(rest(ready).starts_with("HTTP/1.1 201"), "a request under way ends");
    assert!(wait_for("the end", || server.0.try_wait().expect("a child")).success());
    assert!(!rest(never_ready).contains("201"));
    let pulled = LENGTH / 4 + rest(pulling).len();
    assert!(pulled <= LENGTH / 2, "{pulled} bytes");
    drop(held);

    let (_server, address) = serve(&home);
    assert_eq!(status(&address, "HEAD", &format!("/v2/own/blobs/{}", Digest::of(b"abc"))), 200);
    assert_eq!(status(&address, "HEAD", &format!("/v2/own/blobs/{}", Digest::of(b"xyz"))), 404);
    let uploads = std::fs::read_dir(home.data().join("bucket/registry/uploads")).expect("a directory");
    let fetched =
        |entry: &std::fs::DirEntry| std::fs::read_to_string(entry.path()).is_ok_and(|record| record.contains("hub/a"));
    assert!(!uploads.flatten().any(|entry| fetched(&entry)), "the fetch is forgotten");
    // It is fetched anew, from its beginning.
    let pulling = send(&address, &get);
    accept(&upstream).write_all(format!("{blob}{content}").as_bytes()).expect("sends");
    let pulled = rest(pulling);
    assert!(pulled.starts_with("HTTP/1.1 200") && pulled.ends_with(&content), "{} bytes", pulled.len());
    home.must(&["registry", "verify"]);
}

fn status(address: &str, method: &str, path: &str) -> u16 {
    http(address, &format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")).0
}

#[test]
fn garbage_is_collected_by_the_server_that_runs_or_without_one() {
    let home = Home::new();
    home.write("app/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    home.write("config.toml", "[registry]\ngc_grace = \"0s\"\n");
    home.must(&["build", "app", "-t", "app:1"]);
    let (mut server, address) = serve(&home);
    let pushed = home.must(&["push", "app:1", &format!("{address}/team/app:1")]);
    let digest = pushed.trim().rsplit('@').next().expect("a digest").to_string();
    let usage: serde_json::Value = serde_json::from_str(&home.must(&["registry", "usage", "--json"])).expect("JSON");
    assert_eq!((&usage["team/app"]["tags"], &usage["team/app"]["blobs"]), (&1.into(), &2.into()), "{usage}");
    assert!(home.must(&["registry", "usage"]).contains("team/app"));

    let none = home.must(&["registry", "gc"]);
    assert!(none.starts_with("removed 0 blobs (0 bytes), 0 manifests"), "{none}");
    assert_eq!(status(&address, "DELETE", &format!("/v2/team/app/manifests/{digest}")), 202);
    // By the rules of the server that runs, whatever the file says by now.
    home.write("config.toml", "");
    let told = home.must(&["registry", "gc", "--dry-run"]);
    assert!(told.starts_with("would remove 2 blobs"), "{told}");
    let listed = home.must(&["registry", "gc", "--dry-run", "--list"]);
    let rows: Vec<&str> = listed.lines().skip(1).collect();
    assert_eq!(rows.len(), 2, "{listed}");
    for row in rows {
        assert!(row.starts_with("blob") && row.ends_with("team/app      no manifest there names it"), "{listed}");
    }
    let told: serde_json::Value =
        serde_json::from_str(&home.must(&["registry", "gc", "--dry-run", "--json", "--list"])).expect("JSON");
    assert_eq!((&told["blobs"], &told["removed"][1]["repositories"][0]), (&2.into(), &"team/app".into()), "{told}");
    let told = home.must(&["registry", "gc", "--dry-run", "--json"]);
    assert!(told.contains("\"blobs\": 2") && !told.contains("removed"), "{told}");
    let told = home.must(&["registry", "gc", "--dry-run", "--grace", "1h"]);
    assert!(told.starts_with("would remove 0 blobs"), "{told}");
    home.write("config.toml", "[registry]\ngc_grace = \"0s\"\n");
    let refused = home.must_fail(&["registry", "gc", "--grace", "1h"]);
    assert!(refused.contains("collects by its own rules"), "{refused}");
    let done = home.must(&["registry", "gc"]);
    assert!(done.starts_with("removed 2 blobs"), "{done}");

    home.must(&["push", "app:1", &format!("{address}/team/app:2")]);
    assert_eq!(status(&address, "DELETE", "/v2/team/app/manifests/2"), 202);
    server.end();
    let done = home.must(&["registry", "gc", "--untagged", "0s"]);
    assert!(done.starts_with("removed 2 blobs") && done.contains("1 manifests"), "{done}");
}

#[test]
fn what_is_corrupt_is_named_and_taken_away() {
    let home = Home::new();
    home.write("app/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    home.must(&["build", "app", "-t", "app:1"]);
    let (_server, address) = serve(&home);
    let reference = format!("{address}/team/app:1");
    home.must(&["push", "app:1", &reference]);
    home.must(&["registry", "verify"]);

    let blobs = home.data().join("bucket/registry/blobs/sha256");
    let fan = std::fs::read_dir(blobs).expect("blobs").next().expect("one").expect("readable").path();
    let blob = std::fs::read_dir(fan).expect("blobs").next().expect("one").expect("readable").path();
    std::fs::remove_file(&blob).expect("removed");
    std::fs::write(&blob, "rotten").expect("written");
    let output = home.cfc().args(["registry", "verify", "--json"]).output().expect("cfc runs");
    assert_eq!(output.status.code(), Some(1));
    let verified = String::from_utf8_lossy(&output.stdout).to_string();
    let output = home.cfc().args(["registry", "verify", "--quarantine"]).output().expect("cfc runs");
    assert_eq!(output.status.code(), Some(1));
    let named = String::from_utf8_lossy(&output.stdout).to_string();
    assert!(verified.contains("\"kind\": \"corrupt-blob\"") && verified.contains("\"blobs\": 2"), "{verified}");
    let name = blob.file_name().expect("a name").to_string_lossy().to_string();
    assert!(named.contains(&format!("blob: its name says sha256:{name}, its bytes hash to")), "{named}");
    assert_eq!(status(&address, "HEAD", &format!("/v2/team/app/blobs/sha256:{name}")), 404);
    home.must(&["push", "app:1", &reference]);
    home.must(&["registry", "verify"]);
}

#[test]
fn a_directory_without_a_registry_is_named_and_left_as_it_was() {
    let home = Home::new();
    let typo = home.path("typo");
    let typo = typo.to_str().expect("UTF-8");
    for command in [
        &["verify"][..],
        &["verify", "--quarantine"],
        &["usage"],
        &["gc"],
        &["gc", "--dry-run"],
        &["gc", "--dry-run", "--grace", "0s"],
        &["retain"],
        &["retain", "--dry-run"],
        &["credentials", "**"],
    ] {
        let said = home.must_fail(&[&["--data", typo, "registry"], command].concat());
        assert!(said.contains("there is no registry in the data directory `[HOME]/typo`"), "{command:?}: {said}");
        assert!(said.contains("--data DIR"), "{command:?}: {said}");
        assert!(!home.path("typo").exists(), "{command:?}");
    }
}

/// As by cron, which sets no XDG_RUNTIME_DIR: the data directory says where the sockets are. To root it says nothing, whom a
/// user is not to lead anywhere.
#[test]
fn an_operator_whose_sockets_are_elsewhere_finds_the_registrys_and_root_is_told_where_it_looked() {
    let Some(user) = OrdinaryUser::with_a_single_id() else { return };
    let home = Home::of(user);
    let (_server, _) = serve(&home);
    let elsewhere = || {
        let mut command = home.cfc();
        command.env("XDG_RUNTIME_DIR", home.path("elsewhere"));
        command
    };
    let by_root = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cfc"));
        command.env("CFC_DATA", home.data()).env("CFC_CONFIG", home.path("config.toml"));
        command
    };
    for verb in ["gc", "retain"] {
        let output = elsewhere().args(["registry", verb]).output().expect("cfc runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let socket = "its operator's socket is not at `/run/cfc/";
        let output = by_root().args(["registry", verb]).output().expect("cfc runs");
        let said = home.redact(&String::from_utf8_lossy(&output.stderr));
        assert!(output.status.code() == Some(1) && said.contains("a registry (process "), "{said}");
        assert!(said.contains("runs on the data directory `[HOME]/data`") && said.contains(socket), "{said}");
        assert!(said.contains("as the user who runs the registry"), "{said}");
    }
    assert!(home.must(&["registry", "gc"]).starts_with("removed 0 blobs"));
    // Who only looks is told by which rules that is.
    for verb in ["gc", "retain"] {
        for (mut command, is_theirs) in [(home.cfc(), true), (elsewhere(), true), (by_root(), false)] {
            let output = command.args(["registry", verb, "--dry-run"]).output().expect("cfc runs");
            let said = home.redact(&String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{said}");
            let is_said =
                said.contains("a registry (process ") && said.contains("of your configuration file, and not by");
            assert_eq!(is_said, !is_theirs, "{verb}: {said}");
        }
    }
}

#[test]
fn which_tags_are_not_kept_says_the_server_that_runs() {
    let home = Home::new();
    home.write("app/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    home.must(&["build", "app", "-t", "app:1"]);
    let rule = "[[registry.retention]]\nrepositories = [\"ci/*\"]\nkeep_last = 1\n";
    home.write("config.toml", rule);
    let (mut server, address) = serve(&home);
    for tag in [1, 2] {
        home.must(&["push", "app:1", &format!("{address}/ci/app:{tag}")]);
    }
    home.write("config.toml", "");
    assert!(home.must(&["registry", "retain", "--dry-run"]).starts_with("ci/app:1 sha256:"));
    server.end();
    assert_eq!(home.must(&["registry", "retain", "--dry-run"]), "");
    home.write("config.toml", rule);
    assert!(home.must(&["registry", "retain", "--dry-run", "--json"]).contains("\"tag\": \"1\""));
}

/// What a registry that runs does by itself, a command does without one.
#[test]
fn what_is_removed_by_hand_is_in_the_audit_log_and_told_to_receivers() {
    let home = Home::new();
    home.write("app/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    home.must(&["build", "app", "-t", "app:1"]);
    let receiver = TcpListener::bind("127.0.0.1:0").expect("a port");
    let hook = |url: &str| format!("[[registry.webhook]]\nurl = \"{url}\"\nevents = [\"delete\"]\n");
    let hook = hook(&format!("http://{}/", receiver.local_addr().expect("bound")));
    let rule = "[[registry.retention]]\nrepositories = [\"ci/*\"]\nkeep_last = 1\n";
    let config = |log: &str| home.write("config.toml", &format!("[registry]\naudit_log = \"{log}\"\n{rule}{hook}"));
    let log = home.path("audit.json");
    config(log.to_str().expect("UTF-8"));
    let push = |tags: &[u32]| {
        let (_server, address) = serve(&home);
        tags.iter().for_each(|tag| drop(home.must(&["push", "app:1", &format!("{address}/ci/app:{tag}")])));
    };
    push(&[1, 2]);
    std::fs::remove_file(&log).expect("there was one");

    let (end, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for status in ["503 Busy", "200 OK", "400 Never"] {
            let mut stream = receiver.accept().expect("a connection").0;
            let head = read_head(&mut stream);
            let length = head.to_ascii_lowercase();
            let length = length.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
            let mut body = vec![0; length.parse().expect("a number")];
            stream.read_exact(&mut body).expect("a body");
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").expect("answers");
            end.send(String::from_utf8(body).expect("text")).expect("somebody listens");
        }
    });
    // It comes at the second try, and the command waits for it.
    let output = home.cfc().args(["registry", "retain"]).output().expect("cfc runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("were not told"), "{said}");
    let told: Vec<String> = ended.try_iter().collect();
    assert_eq!(told.len(), 2, "{said}");
    assert!(told[1].contains("\"tag\":\"1\"") && told[1].contains("\"action\":\"delete\""), "{told:?}");
    home.must(&["registry", "gc"]);
    let lines = std::fs::read_to_string(&log).expect("a log");
    let actions: Vec<&str> = lines.lines().filter_map(|line| line.split("\"action\":\"").nth(1)).collect();
    assert!(actions.len() == 2 && actions[0].starts_with("retain") && actions[1].starts_with("collect"), "{lines}");

    // What is not delivered is said, and the answer stays data.
    push(&[3]);
    config("-");
    let output = home.cfc().args(["registry", "retain", "--json"]).output().expect("cfc runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("were not told") && said.contains("\"action\":\"retain\""), "{said}");
    let retired: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(output.status.success() && retired[0]["tag"] == "2", "{retired}");
}

#[test]
fn a_registry_for_everybody_wants_users_and_those_need_their_password() {
    let home = Home::new();
    home.write("app/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    home.must(&["build", "app", "-t", "app:1"]);
    let refused = home.must_fail(&["registry", "serve", "--listen", "0.0.0.0:0"]);
    assert!(refused.contains("could push and delete") && refused.contains("htpasswd -B"), "{refused}");

    home.write("users", "ann:$2y$05$IcT/XsfK3RYYU73Zh0gq.e5OQJiUvRSXw20299C0G/y0ydKn7LOge\n");
    let users = home.path("users");
    home.write("config.toml", &format!("[registry]\nhtpasswd = \"{}\"\ngc_grace = \"0s\"\n", users.display()));
    let (_server, address) = serve(&home);
    let reference = format!("{address}/team/app:1");
    let push = |config: &str| {
        home.write("docker/config.json", config);
        home.cfc()
            .env("DOCKER_CONFIG", home.path("docker"))
            .args(["push", "app:1", &reference])
            .output()
            .expect("cfc runs")
    };
    assert!(!push("{}").status.success());
    // Basic authentication of ann with her password, as `docker login` writes it.
    let pushed = push(&format!("{{\"auths\":{{\"{address}\":{{\"auth\":\"YW5uOnNlY3JldA==\"}}}}}}"));
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    assert_eq!(status(&address, "PUT", "/v2/gc/layers"), 401);
    // The operator needs no password.
    assert!(home.must(&["registry", "gc"]).starts_with("removed 0 blobs"));
}

/// What logrotate does, without `copytruncate`.
#[test]
fn on_sighup_the_registry_goes_on_and_its_audit_log_in_a_new_file() {
    let home = Home::new();
    let log = home.path("audit.json");
    home.write("config.toml", &format!("[registry]\naudit_log = \"{}\"\n", log.display()));
    let (mut server, address) = serve(&home);
    let lines = |name: &str| std::fs::read_to_string(home.path(name)).unwrap_or_default().lines().count();
    for round in 1..=3 {
        assert_eq!(status(&address, "GET", "/v2/_catalog"), 200);
        wait_for("the line", || (lines("audit.json") == 1).then_some(()));
        std::fs::rename(&log, home.path("audit.json.old")).expect("renamed");
        let pid = rustix::process::Pid::from_child(&server.0);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("it runs");
        // It is there at once, for who looks after it.
        wait_for("the new file", || log.exists().then_some(()));
        assert_eq!((lines("audit.json"), lines("audit.json.old")), (0, 1), "{round}");
    }
    assert!(server.0.try_wait().expect("a child").is_none());
}

#[test]
fn the_log_says_which_upstream_failed() {
    let home = Home::new();
    let (refusing, away) = (TcpListener::bind("127.0.0.1:0").expect("a port"), free_port());
    let refusing_port = refusing.local_addr().expect("bound").port();
    answer_all(refusing, "401 Unauthorized");
    let upstream = |prefix: &str, port: u16| {
        format!("[[registry.upstream]]\nprefix = \"{prefix}\"\nurl = \"http://127.0.0.1:{port}\"\n")
    };
    home.write("config.toml", &(upstream("closed", refusing_port) + &upstream("away", away)));
    let (_server, address, said) = serve_heard(&home);
    for (path, expected) in [("closed/a/manifests/x", 403), ("away/a/manifests/x", 503), ("away/b/tags/list", 503)] {
        assert_eq!(status(&address, "GET", &format!("/v2/{path}")), expected, "{path}");
    }
    let line = |what: &str, port: u16, name: &str| {
        let line = |line: &&str| line.contains(what) && line.contains(&format!(":{port}")) && line.contains(name);
        wait_for(what, || said().lines().find(line).map(str::to_string))
    };
    assert!(line("an upstream refuses us", refusing_port, "closed/a").contains("401"));
    line("an upstream is away", away, "away/a");
    line("an upstream is away", away, "away/b");
    // However often clients ask.
    let count = said().lines().count();
    (0..20).for_each(|_| assert_eq!(status(&address, "GET", "/v2/away/a/manifests/x"), 503));
    assert!(said().lines().count() <= count + 3, "{}", said());
}

/// A registry that certifies itself is an upstream whose authority only `ca` makes one to trust.
#[test]
fn a_registry_that_certifies_itself_is_the_upstream_of_another() {
    let (first, second) = (Home::new(), Home::new());
    first.write("app/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    first.write("config.toml", "[registry]\ntls_names = [\"registry.test\"]\n");
    first.must(&["build", "app", "-t", "app:1"]);
    let (_upstream, address) = serve(&first);
    let port = address.rsplit(':').next().expect("a port");
    let ca = first.data().join("ca/ca.pem");
    let reference = format!("localhost:{port}/team/app:1");
    let trust = format!("[registries.\"localhost:{port}\"]\nca = \"{}\"\nhttp = false\n", ca.display());
    first.write("config.toml", &trust);
    first.must(&["push", "app:1", &reference]);

    let upstream = format!("[[registry.upstream]]\nprefix = \"up\"\nurl = \"https://localhost:{port}\"\n");
    let manifest = "/v2/up/team/app/manifests/1";
    second.write("config.toml", &upstream);
    {
        let (_server, address, said) = serve_heard(&second);
        assert_eq!(status(&address, "GET", manifest), 503);
        wait_for("the reason", || said().contains("UnknownIssuer").then_some(()));
    }
    second.write("config.toml", &format!("{upstream}ca = \"{}\"\n", ca.display()));
    {
        let (_server, address) = serve(&second);
        assert_eq!(status(&address, "GET", manifest), 200);
        assert_eq!(status(&address, "GET", "/v2/up/team/app/tags/list"), 200);
    }
    for (file, why) in [("none.pem", "No such file"), ("empty.pem", "there is no certificate in it")] {
        second.write("empty.pem", "");
        let ca = second.path(file);
        second.write("config.toml", &format!("{upstream}ca = \"{}\"\n", ca.display()));
        let said = second.must_fail(&["registry", "serve", "--port", "0"]);
        assert!(said.contains(file) && said.contains(why), "{said}");
    }
}

/// Ann's password is `secret`.
const USERS: &str = "ann:$2y$05$IcT/XsfK3RYYU73Zh0gq.e5OQJiUvRSXw20299C0G/y0ydKn7LOge\n";

fn ping(address: &str, name: &str, password: &str) -> (u16, String) {
    let login = cfc_oci::base64::encode(format!("{name}:{password}").as_bytes());
    http(address, &format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Basic {login}\r\n\r\n"))
}

#[test]
fn an_operator_takes_one_password_back_whether_the_registry_runs_or_not() {
    let home = Home::new();
    let users = home.write("users", USERS);
    let log = home.path("audit.json");
    home.write("config.toml", &format!("[registry]\nhtpasswd = {users:?}\naudit_log = {log:?}\n"));
    let (mut server, address) = serve(&home);
    // The socket comes a moment after the port.
    wait_for("the operator's socket", || {
        home.run(&["registry", "credentials", "--list"]).status.success().then_some(())
    });
    let lend = |name: &str| {
        let told = home.must(&["registry", "credentials", "ci/*", "--user", name, "--json"]);
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        ["id", "password"].map(|field| told[field].as_str().expect("a text").to_string())
    };
    let [[first, first_password], [second, second_password], [_, kept]] = ["one", "two", "three"].map(lend);
    home.must(&["registry", "credentials", "--revoke", &first]);
    let (status, said) = ping(&address, "one", &first_password);
    assert!(status == 401 && said.contains("taken back"), "{status} {said}");
    for (name, password) in [("two", &second_password), ("three", &kept)] {
        assert_eq!(ping(&address, name, password).0, 200, "{name}");
    }
    let unknown = home.must_fail(&["registry", "credentials", "--revoke", "../token-key"]);
    assert!(
        unknown.contains("no password with the id `../token-key` is known") && unknown.contains("--list"),
        "{unknown}"
    );
    for more in [&["ci/*"][..], &["--push"], &["--list"], &["--expires", "2h"], &["--user", "x"]] {
        let output = home.run(&[&["registry", "credentials", "--revoke", &second], more].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("cannot be used with"), "{said}");
    }
    // The log has a thread of its own.
    wait_for("it to be written down", || {
        std::fs::read_to_string(&log).ok().filter(|lines| lines.contains("\"action\":\"revoke\""))
    });
    server.end();
    home.must(&["registry", "credentials", "--revoke", &second]);
    let listed = home.must(&["registry", "credentials", "--list"]);
    let line = |id: &str| listed.lines().find(|line| line.starts_with(id)).expect("it is listed").to_string();
    assert!(line(&first).contains("taken back") && line(&second).contains("taken back"), "{listed}");
    assert_eq!(listed.matches("taken back").count(), 2, "{listed}");
    assert!(
        line(&first).contains("pull") && line(&first).contains("ci/*") && line(&first).contains("operator"),
        "{listed}"
    );
    let (_server, address) = serve(&home);
    let statuses = [("one", &first_password), ("two", &second_password), ("three", &kept)];
    assert_eq!(statuses.map(|(name, password)| ping(&address, name, password).0), [401, 401, 200]);
    let lines = std::fs::read_to_string(&log).expect("a log");
    for id in [&first, &second] {
        let of =
            |action: &str| lines.lines().filter(|line| line.contains(action) && line.contains(id.as_str())).count();
        assert_eq!((of("\"action\":\"lend\""), of("\"action\":\"revoke\"")), (1, 1), "{lines}");
    }
    assert!(!lines.contains(&kept));
}

#[test]
fn an_operator_takes_back_what_the_control_api_gave() {
    if !can_sandbox() || tools().is_none() {
        return;
    }
    let home = Home::new();
    let users = home.write("users", USERS);
    let log = home.path("audit.json");
    home.write("config.toml", &format!("[registry]\nhtpasswd = {users:?}\naudit_log = {log:?}\n"));
    let platform = Platform::start(&home);
    let token = std::fs::read_to_string(home.data().join("token")).expect("a token");
    let wanted = r#"{"expiration_minutes":15,"permissions":["push","pull"]}"#;
    let head = format!(
        "POST /client/v4/accounts/{:032}/containers/registries/x/credentials HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Authorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}",
        0,
        token.trim(),
        wanted.len()
    );
    let (status, said) = http(&platform.address("control"), &format!("{head}\r\n\r\n{wanted}"));
    assert_eq!(status, 200, "{said}");
    let told: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let password = told["result"]["password"].as_str().expect("a password");
    assert_eq!(ping(&platform.address("registry"), "v1", password).0, 200);
    let listed = home.must(&["registry", "credentials", "--list"]);
    let line = listed.lines().find(|line| line.contains("control API")).expect("it is listed");
    home.must(&["registry", "credentials", "--revoke", line.split_whitespace().next().expect("an id")]);
    assert_eq!(ping(&platform.address("registry"), "v1", password).0, 401);
    let lines = wait_for("it to be written down", || {
        std::fs::read_to_string(&log).ok().filter(|lines| lines.contains("\"action\":\"revoke\""))
    });
    assert_eq!(lines.matches("\"by\":\"control-api\"").count(), 2, "{lines}");
    platform.stop();
}
