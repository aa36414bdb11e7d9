//! Registries of this machine of which nobody has said what they speak: HTTPS where they do, whoever certifies them, and HTTP
//! where they do not.

use std::net::TcpStream;
use std::process::Stdio;

use crate::support::{Ended, Home, free_port, wait_for};

/// A registry on an address of the loopback; gives its port.
fn serve(home: &Home, address: &str, settings: &str) -> (Ended, u16) {
    let port = free_port();
    home.write("config.toml", &format!("[registry]\n{settings}\n"));
    let mut command = home.cfc();
    command.args(["registry", "serve", "--listen", &format!("{address}:{port}")]).stdout(Stdio::null());
    let server = Ended(command.spawn().expect("cfc runs"));
    wait_for("the registry", || TcpStream::connect(format!("{address}:{port}")).ok());
    (server, port)
}

/// An image `app:1` in a store of its own.
fn with_image() -> Home {
    let home = Home::new();
    home.write("app/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    home.must(&["build", "app", "-t", "app:1"]);
    home
}

const TLS: &str = "tls_names = [\"registry.test\"]";

#[test]
fn a_registry_of_this_machine_that_speaks_tls_must_be_certified() {
    let (there, home) = (Home::new(), with_image());
    let (_server, port) = serve(&there, "127.0.0.1", TLS);
    let targets = ["localhost", "127.0.0.1"].map(|host| format!("{host}:{port}/team/app:1"));
    for target in &targets {
        let said = home.must_fail(&["push", "app:1", target]);
        assert!(said.contains("https://") && said.contains("certificate"), "{said}");
    }
    let ca = there.must(&["registry", "ca", "show"]);
    let entry = |host: &str| format!("[registries.\"{host}:{port}\"]\nca = {:?}\n", ca.trim());
    home.write("config.toml", &[entry("localhost"), entry("127.0.0.1")].concat());
    for target in &targets {
        home.must(&["push", "app:1", target]);
    }
    home.write("upon/Dockerfile", &format!("FROM {}\nCOPY Dockerfile /upon\n", targets[0]));
    home.must(&["build", "upon", "-t", "upon:1"]);
    // Who says that it speaks HTTP is taken at his word.
    home.write("config.toml", &format!("[registries.\"localhost:{port}\"]\nhttp = true\n"));
    let said = home.must_fail(&["push", "app:1", &targets[0]]);
    assert!(said.contains("400") && !said.contains("certificate"), "{said}");
}

#[test]
fn a_registry_of_this_machine_that_speaks_http_needs_no_word() {
    let home = with_image();
    for (address, host) in [("127.0.0.1", "localhost"), ("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]")] {
        if std::net::TcpListener::bind(format!("{address}:0")).is_err() {
            crate::support::skipped(&format!("there is no address {address}"));
            continue;
        }
        let there = Home::new();
        let (_server, port) = serve(&there, address, "");
        let target = format!("{host}:{port}/team/app:1");
        home.must(&["push", "app:1", &target]);
        home.write("upon/Dockerfile", &format!("FROM {target}\nCOPY Dockerfile /upon-{port}\n"));
        home.must(&["build", "upon", "-t", "upon:1"]);
    }
}
