//! `cfc registry`: running a registry alone and looking after it.

use crate::support::{Ended, Home, free_port, http, wait_for};

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
    let output = home.cfc().args(["registry", "verify", "--quarantine"]).output().expect("cfc runs");
    assert_eq!(output.status.code(), Some(1));
    let named = String::from_utf8_lossy(&output.stdout).to_string();
    let name = blob.file_name().expect("a name").to_string_lossy().to_string();
    assert!(named.contains(&format!("blob: its name says sha256:{name}, its bytes hash to")), "{named}");
    assert_eq!(status(&address, "HEAD", &format!("/v2/team/app/blobs/sha256:{name}")), 404);
    home.must(&["push", "app:1", &reference]);
    home.must(&["registry", "verify"]);
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
