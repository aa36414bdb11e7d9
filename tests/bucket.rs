//! `cfc registry serve --bucket`: several processes on one bucket, looked after by commands that share nothing with them
//! but the bucket.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::registry::answer_all;
use crate::support::{Ended, Home, free_port, http, repository, skipped, wait_for};

const BUCKET: &str = "s3://cfc-test/images";

/// moto, and its endpoint; `None` and a note where it is not installed.
fn store() -> Option<(Ended, String)> {
    let home = std::path::PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), std::path::PathBuf::from);
    let cache = std::env::var_os("CFC_CACHE").map_or_else(|| cache.join("cfc"), std::path::PathBuf::from);
    let python = cache.join("moto/bin/python");
    if !python.exists() {
        skipped("moto is not installed (scripts/test does, with Python)");
        return None;
    }
    let port = free_port().to_string();
    let mut command = Command::new(python);
    command
        .arg(repository().join("scripts/lib/s3_server.py"))
        .arg(&port)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let server = Ended(command.spawn().expect("moto starts"));
    let address = format!("127.0.0.1:{port}");
    wait_for("moto", || std::net::TcpStream::connect(&address).ok());
    let make = "PUT /cfc-test HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_eq!(http(&address, make).0, 200);
    Some((server, format!("http://{address}")))
}

/// `cfc` with what it needs to know of the store.
fn cfc(home: &Home, arguments: &[&str]) -> Command {
    let mut command = home.cfc();
    command.args(arguments);
    command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "secret");
    command
}

fn must(home: &Home, arguments: &[&str]) -> String {
    let output = cfc(home, arguments).output().expect("cfc runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn serve(home: &Home, endpoint: &str) -> (Ended, String) {
    let port = free_port().to_string();
    let mut command = cfc(home, &["registry", "serve", "--bucket", BUCKET, "--endpoint", endpoint, "--port", &port]);
    let server = Ended(command.stdout(Stdio::null()).spawn().expect("cfc runs"));
    let address = format!("127.0.0.1:{port}");
    wait_for("the registry", || std::net::TcpStream::connect(&address).ok());
    (server, address)
}

fn ask(address: &str, method: &str, path: &str) -> (u16, String) {
    http(address, &format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
}

#[test]
fn three_registries_are_one() {
    let Some((_store, endpoint)) = store() else { return };
    let home = Home::new();
    let retention = "[[registry.retention]]\nrepositories = [\"old/*\"]\nkeep_last = 1\n";
    home.write("config.toml", &format!("[registry]\ngc_grace = \"0s\"\n{retention}"));
    home.write("app/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    must(&home, &["build", "app", "-t", "app:1"]);
    let (mut first, one) = serve(&home, &endpoint);
    let (_second, two) = serve(&home, &endpoint);
    let (_third, three) = serve(&home, &endpoint);
    must(&home, &["push", "app:1", &format!("{one}/team/app:1")]);
    must(&home, &["push", "app:1", &format!("{two}/other/app:1")]);

    // What one has taken all have, also when it is killed.
    let listed = ask(&two, "GET", "/v2/team/app/tags/list");
    assert!(listed.0 == 200 && listed.1.contains("\"1\""), "{listed:?}");
    first.end();
    for address in [&two, &three] {
        assert_eq!(ask(address, "GET", "/v2/team/app/manifests/1").0, 200);
        assert_eq!(ask(address, "GET", "/v2/other/app/manifests/1").0, 200);
    }

    let place = ["--bucket", BUCKET, "--endpoint", endpoint.as_str()];
    let run = |command: &[&str]| must(&home, &[command, &place[..]].concat());
    let usage: serde_json::Value = serde_json::from_str(&run(&["registry", "usage", "--json"])).expect("JSON");
    assert_eq!((&usage["team/app"]["tags"], &usage["team/app"]["blobs"]), (&1.into(), &2.into()), "{usage}");
    assert_eq!(usage["other/app"]["own_bytes"], 0, "{usage}");
    run(&["registry", "verify"]);
    for tag in ["1", "2"] {
        must(&home, &["push", "app:1", &format!("{two}/old/app:{tag}")]);
    }
    let told = run(&["registry", "retain", "--dry-run"]);
    assert!(told.starts_with("old/app:1 sha256:") && told.lines().count() == 1, "{told}");
    assert_eq!(run(&["registry", "retain"]), told);
    assert_eq!(ask(&three, "GET", "/v2/old/app/manifests/1").0, 404);
    assert_eq!(ask(&three, "GET", "/v2/old/app/manifests/2").0, 200);
    assert_eq!(ask(&two, "DELETE", "/v2/team/app/manifests/1").0, 202);
    let told = cfc(&home, &[&["registry", "gc", "--dry-run"][..], &place[..]].concat());
    let output = { told }.output().expect("cfc runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("`gc_grace` and `gc_untagged` of this machine's"), "{said}");
    assert!(said.contains("must be those of all who serve the bucket"), "{said}");
    let told = run(&["registry", "gc", "--dry-run", "--untagged", "0s"]);
    assert!(told.starts_with("would remove 0 blobs (0 bytes), 1 manifests"), "{told}");
    let done = run(&["registry", "gc", "--untagged", "0s"]);
    assert!(done.starts_with("removed 0 blobs (0 bytes), 1 manifests, 2 links"), "{done}");
    assert_eq!(ask(&three, "GET", "/v2/team/app/manifests/1").0, 404);
    assert_eq!(ask(&three, "GET", "/v2/other/app/manifests/1").0, 200);
    run(&["registry", "verify"]);
}

/// Who can open the bucket has the key that its registries sign with.
#[test]
fn a_password_that_was_made_beside_a_bucket_opens_all_its_registries() {
    let Some((_store, endpoint)) = store() else { return };
    let home = Home::new();
    let users = home.write("users", "ann:$2y$05$IcT/XsfK3RYYU73Zh0gq.e5OQJiUvRSXw20299C0G/y0ydKn7LOge\n");
    let log = home.path("audit.json");
    let config = format!("[registry]\nhtpasswd = {users:?}\n");
    home.write("config.toml", &config);
    let (_first, one) = serve(&home, &endpoint);
    let (_second, two) = serve(&home, &endpoint);
    home.write("config.toml", &format!("{config}audit_log = {log:?}\n"));
    let place = ["--bucket", BUCKET, "--endpoint", endpoint.as_str()];
    let lent = must(&home, &[&["registry", "credentials", "team/*"], &place[..]].concat());
    let login = cfc_oci::base64::encode(lent.trim().as_bytes());
    let get = |address: &str, name: &str| {
        let head = format!("GET /v2/{name}/manifests/1 HTTP/1.1\r\nHost: x\r\nConnection: close");
        http(address, &format!("{head}\r\nAuthorization: Basic {login}\r\n\r\n")).0
    };
    for address in [&one, &two] {
        assert_eq!((get(address, "team/app"), get(address, "other/app")), (404, 403));
    }
    let lines = std::fs::read_to_string(&log).expect("a log");
    assert!(lines.lines().count() == 1 && lines.contains("\"action\":\"lend\""), "{lines}");
    // Nor does taking it back need one of them; all of them hear of it.
    let run = |arguments: &[&str]| must(&home, &[&["registry", "credentials"], arguments, &place[..]].concat());
    let listed = run(&["--list"]);
    assert!(listed.contains("team/*") && listed.contains("operator") && !listed.contains("taken back"), "{listed}");
    let id = listed.lines().nth(1).and_then(|line| line.split_whitespace().next()).expect("an id");
    run(&["--revoke", id]);
    assert!(run(&["--list"]).contains("taken back"));
    for address in [&one, &two] {
        wait_for("it is refused", || (get(address, "team/app") == 401).then_some(()));
    }
    let lines = std::fs::read_to_string(&log).expect("a log");
    assert!(lines.contains("\"action\":\"revoke\"") && lines.contains(id), "{lines}");
    home.write("config.toml", "");
    let refused = cfc(&home, &[&["registry", "credentials", "**"], &place[..]].concat()).output().expect("cfc runs");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("names no users"), "{refused:?}");
}

#[test]
fn what_is_seldom_meant_for_a_bucket_is_warned_of() {
    let Some((_store, endpoint)) = store() else { return };
    let home = Home::new();
    let said = |settings: &str| {
        home.write("config.toml", &format!("[registry]\n{settings}"));
        let port = free_port().to_string();
        let mut command =
            cfc(&home, &["registry", "serve", "--bucket", BUCKET, "--endpoint", &endpoint, "--port", &port]);
        // What the command line says counts more.
        command.env("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1");
        let log = home.path("log");
        command.stderr(std::fs::File::create(&log).expect("is made")).stdout(Stdio::null());
        let _server = Ended(command.spawn().expect("cfc runs"));
        let address = format!("127.0.0.1:{port}");
        wait_for("the registry", || std::net::TcpStream::connect(&address).ok());
        // It listens before it answers; in plain HTTP, only that it is encrypted.
        assert_eq!(ask(&address, "GET", "/v2/").0, 400);
        std::fs::read_to_string(log).expect("a log")
    };
    let warned = said("gc_grace = \"19m\"\ntls_names = [\"localhost\"]\n");
    assert!(warned.contains("`gc_grace` of less than 20 minutes"), "{warned}");
    assert!(warned.contains("`tls_names` with `bucket`"), "{warned}");
    let quiet = said("gc_grace = \"20m\"\ntls_names = [\"localhost\"]\nsingle_replica = true\n");
    assert!(!quiet.contains("WARN"), "{quiet}");
}

#[test]
fn a_bucket_that_is_none_is_refused() {
    let home = Home::new();
    let output = home.run(&["registry", "serve", "--bucket", "gs://images"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("expected `s3://BUCKET`"), "{said}");
    let output = home.run(&["registry", "serve", "--bucket", "s3://images", "--endpoint", "127.0.0.1:6140"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("'--endpoint <URL>'"), "{said}");
    assert!(said.contains("write it as `https://127.0.0.1:6140`, or `http://127.0.0.1:6140`"), "{said}");
    home.write("config.toml", "[registry]\nbucket = \"s3://images\"\nendpoint = \"s3.local\"\n");
    let said = home.must_fail(&["registry", "serve"]);
    assert!(
        said.contains("`endpoint` below `[registry]`") && said.contains("write it as `https://s3.local`"),
        "{said}"
    );
    home.write("config.toml", "");
    let mut command = home.cfc();
    command.args(["registry", "usage", "--bucket", "s3://images"]).env("AWS_ENDPOINT_URL", "s3.local");
    let output = command.env_remove("AWS_ENDPOINT_URL_S3").output().expect("cfc runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("cannot use `AWS_ENDPOINT_URL`"), "{said}");
    assert!(said.contains("write it as `https://s3.local`"), "{said}");
    let said = home.must_fail(&["registry", "usage", "--endpoint", "http://127.0.0.1:1"]);
    assert!(said.contains("`--endpoint` is for a bucket"), "{said}");
    home.write("config.toml", "[registry]\nbucket = \"s3://images\"\nredirect = \"10s\"\n");
    let said = home.must_fail(&["registry", "usage"]);
    assert!(said.contains("`redirect`") && said.contains("seven days"), "{said}");
    let said = home.must_fail(&["serve"]);
    assert!(said.contains("is for a registry that runs alone"), "{said}");
    assert_eq!(home.launchers(), [0; 0], "a server that did not come up has left its launcher");
}

#[test]
fn who_is_nobody_to_the_store_is_told_which_keys_it_wants() {
    let home = Home::new();
    let metadata = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = format!("http://{}", metadata.local_addr().expect("bound"));
    // A machine without a role.
    answer_all(metadata, "404 Not Found");
    let said = |keys: &[(&str, &str)]| {
        let mut command = home.cfc();
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.envs(keys.iter().copied()).env("AWS_METADATA_ENDPOINT", &place);
        command.args(["registry", "usage", "--bucket", "s3://images", "--endpoint", "http://127.0.0.1:1"]);
        let output = command.output().expect("cfc runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let nothing = said(&[]);
    assert!(nothing.contains("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set"), "{nothing}");
    let half = said(&[("AWS_ACCESS_KEY_ID", "test")]);
    assert!(half.contains("AWS_ACCESS_KEY_ID is set, and AWS_SECRET_ACCESS_KEY is not"), "{half}");
    let half = said(&[("AWS_SECRET_ACCESS_KEY", "test")]);
    assert!(half.contains("AWS_SECRET_ACCESS_KEY is set, and AWS_ACCESS_KEY_ID is not"), "{half}");
}
