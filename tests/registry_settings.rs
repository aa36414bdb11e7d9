//! `[registry]` in the configuration file: what is refused before anything is served, with its name.

use std::io::{Read, Write};
use std::net::TcpListener;

use cfc_oci::Digest;

use crate::registry::{serve_heard, serve_with};
use crate::support::{Home, http, wait_for};

#[test]
fn settings_that_would_leave_nothing_of_the_registry_are_refused_by_name() {
    let home = Home::new();
    let webhook = |line: &str| format!("[[registry.webhook]]\nurl = \"https://r.example\"\n{line}\n");
    let upstream =
        |line: &str| format!("[[registry.upstream]]\nprefix = \"hub\"\nurl = \"https://r.example\"\n{line}\n");
    let retention = |lines: &str| format!("[[registry.retention]]\nrepositories = [\"**\"]\n{lines}\n");
    let registry = |line: &str| format!("[registry]\n{line}\n");
    let allow = |lines: &str| format!("[[registry.allow]]\n{lines}\n");
    let quota =
        |pattern: &str, size: &str| format!("[[registry.quotas]]\nrepositories = [{pattern:?}]\nsize = {size:?}\n");
    for (config, expected) in [
        (registry("idle_timeout = 0"), "`idle_timeout = 0` below `[registry]`"),
        (registry("idle_timeout = \"0s\""), "`idle_timeout = 0` below `[registry]`"),
        (registry("audit_log_size = 0"), "`audit_log_size = 0` below `[registry]`"),
        (registry("max_manifest = 0"), "`max_manifest = 0` below `[registry]`"),
        (registry("max_blob = \"0\""), "`max_blob = 0` below `[registry]`"),
        (registry("max_connections = 0"), "max_connections = 0"),
        (
            registry("bucket = \"s3://images\"\nupload_memory = \"100MB\""),
            "`upload_memory` below `[registry]` in the configuration file is less than",
        ),
        (webhook("events = [\"pull\"]"), "unknown variant `pull`"),
        (webhook("events = []"), "`events = []` below `[[registry.webhook]]`"),
        (webhook("repositories = [\"Team/*\"]"), "`repositories` below `[[registry.webhook]]`"),
        (webhook("headers = { \"a b\" = \"x\" }"), "`a b` is no name of a header"),
        (webhook("").replace("https://r.example", "ftp://r.example"), "below `[[registry.webhook]]`"),
        (upstream("timeout = 0"), "`timeout = 0`"),
        (upstream("fetches = 0"), "fetches = 0"),
        (upstream("realms = [\"https://auth.internal\"]"), "`realms`: `https://auth.internal` is no server"),
        (upstream("realms = [\"a b\"]"), "cannot use the upstream `https://r.example`"),
        (upstream("redirects = [\"*.cdn.internal\"]"), "`redirects`: `*.cdn.internal` is no server"),
        (upstream("redirects = [\"fd00::1\"]"), "an IPv6 address as `[fd00::1]`"),
        (upstream("").replace("https://r.example", "https://ann:secret@r.example"), "without a user"),
        ("[[registry.quotas]]\nrepositories = [\"a b\"]\nsize = \"1GB\"\n".to_string(), "below `[[registry.quotas]]`"),
        (retention("keep_last = 0"), "`[[registry.retention]]` for [\"**\"] in the configuration file keeps nothing"),
        (retention("").replace("\"**\"", "\"ci/**\""), "`[[registry.retention]]` for [\"ci/**\"] in the"),
        (retention("keep_younger = \"0s\""), "keeps nothing"),
        (quota("a/*", "0") + &quota("**", "0B"), "`size = 0` of `**` below `[[registry.quotas]]`"),
        (quota("**", "0") + &quota("a/*", "1GB"), "would refuse every push"),
        (registry("quota = \"0\""), "`quota = 0` below `[registry]`"),
        (registry("immutable_tags = [\"**:v*\", \"latest\"]"), "`immutable_tags` below `[registry]`"),
        (registry("endpoint = \"https://s3.example\""), "`endpoint` below `[registry]`"),
        (registry("redirect = \"20m\""), "`redirect` below `[registry]`"),
        (
            registry("upload_memory = \"512MB\""),
            "`upload_memory` below `[registry]` in the configuration file is for a",
        ),
        (registry("single_replica = true"), "is for a bucket, and there is none"),
        (upstream("") + &upstream(""), "two `[[registry.upstream]]` in the configuration file have the prefix `hub`"),
        (allow("users = []\nactions = [\"catalog\"]"), "`users = []` below `[[registry.allow]]`"),
        (allow("users = [\"ann\"]\nactions = []"), "`actions = []` below `[[registry.allow]]`"),
        (
            allow("users = [\"ann\"]\nactions = [\"catalog\", \"pull\"]"),
            "no `repositories` are named for users [\"ann\"]",
        ),
        (allow("users = [\"*\"]\nactions = [\"push\"]"), "no `repositories` are named"),
        (allow("users = [\"*\"]\nactions = [\"delete\"]"), "no `repositories` are named"),
        (retention("keep_last = 0\nkeep_younger = \"0s\""), "keeps nothing"),
        (retention("keep_last = 1\ntags = []"), "`tags = []` below `[[registry.retention]]`"),
        (
            "[[registry.retention]]\nrepositories = []\nkeep_last = 1\n".to_string(),
            "`repositories` below `[[registry.retention]]` in the configuration file: it names none",
        ),
        (
            "[[registry.allow]]\nusers = [\"*\"]\nrepositories = [\"/x\"]\nactions = [\"pull\"]\n".to_string(),
            "below `[[registry.allow]]`",
        ),
    ] {
        home.write("config.toml", &config);
        let said = home.must_fail(&["registry", "serve", "--port", "0"]);
        assert!(said.contains(expected), "{config}\n{said}");
    }
}

#[test]
fn without_certificates_to_trust_nothing_is_fetched_in_their_stead() {
    let home = Home::new();
    for table in ["[[registry.upstream]]\nprefix = \"hub\"", "[[registry.webhook]]"] {
        home.write("config.toml", &format!("{table}\nurl = \"https://r.example\"\n"));
        let mut command = home.cfc();
        command.args(["registry", "serve", "--port", "0"]);
        command.env("SSL_CERT_FILE", home.path("none")).env("SSL_CERT_DIR", home.path("none"));
        let output = command.output().expect("cfc runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("r.example") && said.contains("certificates"), "{said}");
    }
}

/// A proxy in the environment is for what its owner starts there, not for who receives what the registry tells.
#[test]
fn receivers_are_told_directly_whatever_proxies_the_environment_names() {
    let home = Home::new();
    let receiver = TcpListener::bind("127.0.0.1:0").expect("a port");
    let proxy = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", receiver.local_addr().expect("bound"));
    home.write("config.toml", &format!("[[registry.webhook]]\nurl = \"{url}\"\n"));
    let through = format!("http://{}", proxy.local_addr().expect("bound"));
    let (_server, address) = serve_with(&home, &[("HTTP_PROXY", &through), ("http_proxy", &through)]);
    let body = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let head = "PUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nConnection: close";
    let length = body.len();
    assert_eq!(http(&address, &format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}")).0, 201);
    receiver.set_nonblocking(true).expect("a socket");
    let (mut told, _) = wait_for("the receiver to be told", || receiver.accept().ok());
    told.set_nonblocking(false).expect("a socket");
    let mut line = [0; 6];
    told.read_exact(&mut line).expect("a request");
    assert_eq!(&line, b"POST /", "a proxy would have been asked for a whole URL");
    told.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("answers");
    proxy.set_nonblocking(true).expect("a socket");
    assert!(proxy.accept().is_err(), "the proxy was asked");
}

#[test]
fn what_is_allowed_and_seldom_meant_is_warned_of() {
    let home = Home::new();
    let users = home.write("users", "");
    let rules = "[[registry.allow]]\nusers = [\"bob\", \"*\", \"anonymous\"]\nactions = [\"catalog\", \"collect\"]\n";
    home.write("config.toml", &format!("[registry]\ngc_grace = 0\nhtpasswd = {users:?}\n{rules}"));
    let said = serve_heard(&home).2();
    for expected in ["`gc_grace = 0`", "`htpasswd` names no user", "is not in `htpasswd`", "user=\"bob\""] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    assert!(!said.contains("anonymous\"") && !said.contains("user=\"*\""), "{said}");

    // Only what is named before has room.
    home.write("config.toml", "[[registry.quotas]]\nrepositories = [\"team/*\"]\nsize = \"1GB\"\n\n[[registry.quotas]]\nrepositories = [\"**\"]\nsize = 0\n");
    {
        let (_server, address, said) = serve_heard(&home);
        let push = |name: &str| {
            let digest = Digest::of(b"abc");
            let head =
                format!("POST /v2/{name}/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: x\r\nConnection: close");
            http(&address, &format!("{head}\r\nContent-Length: 3\r\n\r\nabc")).0
        };
        assert_eq!((push("team/a"), push("other")), (201, 403));
        assert!(
            said().contains("nothing can be pushed there") && said().contains("repositories=[\"**\"]"),
            "{}",
            said()
        );
    }

    home.write("users", "bob:$2y$05$IcT/XsfK3RYYU73Zh0gq.e5OQJiUvRSXw20299C0G/y0ydKn7LOge\n");
    home.write("config.toml", &format!("[registry]\nhtpasswd = {users:?}\n{rules}"));
    let said = serve_heard(&home).2();
    assert!(!said.contains("WARN"), "{said}");
}
