//! Ports through the sidecar: tunnels, and the hold until the app listens.

use std::time::{Duration, Instant};

use cfc_runtime::{InstanceEvent, InstanceEventKind};
use serde_json::json;

use crate::Test;
use crate::client::{self, get, tunnel};
use crate::platform::{Platform, container, on_platform};

pub const TESTS: &[Test] = &[
    ("a_sidecar_answers_as_the_image_does", || on_platform(sidecar)),
    ("a_tunnel_reaches_a_port_on_the_containers_loopback", || on_platform(tunnels)),
    ("a_connect_is_held_until_the_app_listens", || on_platform(hold)),
    ("a_sidecar_refuses_other_users", || on_platform(strangers)),
    ("a_connect_ends_with_the_app", || on_platform(ended)),
    ("a_port_that_nothing_listens_on_is_told_once_a_start", || on_platform(unheard)),
];

async fn sidecar(platform: Platform) {
    let name = container("a1");
    let port = platform.sidecar(&name).await;
    let (status, certificate) = client::sidecar(port, "GET", "/ca", "").await;
    assert!(status == 200 && certificate.starts_with("-----BEGIN CERTIFICATE-----"), "{status} {certificate}");
    let egress = json!({ "port": 1, "internet": { "enabled": true } }).to_string();
    assert_eq!(client::sidecar(port, "PUT", "/egress", &egress).await.0, 204);
    assert_eq!(client::sidecar(port, "GET", "/other", "").await.0, 404);
    assert_eq!(tunnel(port, 4000).await.expect_err("there is no container").0, 400);
    assert_eq!(platform.start(&format!("{name}-proxy")).await, 304);
    assert_eq!(platform.remove(&format!("{name}-proxy")).await, 204);
    assert_eq!(platform.remove(&format!("{name}-proxy")).await, 404);
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err(), "the sidecar still listens");
    platform.close().await;
}

/// Whoever is not the user that workerd runs as gets nothing from a sidecar, though its port is open to all.
async fn strangers(platform: Platform) {
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65_534;
    platform.run_script("exec httpd -f -p 4000 -h /www");
    let name = container("a1");
    let port = platform.sidecar(&name).await;
    platform.run(&name).await;
    let ask = move |user: u32| {
        let request = "CONNECT 127.0.0.1:4000 HTTP/1.1\r\nX-Dst-Addr: 127.0.0.1:4000\r\n\r\nGET / HTTP/1.0\r\n\r\n";
        let script = format!("(busybox printf '{request}'; busybox sleep 2) | busybox nc 127.0.0.1 {port}");
        let mut command = std::process::Command::new("/bin/sh");
        let output = command.args(["-c", &script]).uid(user).gid(user).output().expect("runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (ours, others) = tokio::task::spawn_blocking(move || (ask(0), ask(NOBODY))).await.expect("asks");
    assert!(ours.starts_with("HTTP/1.1 200") && ours.ends_with("hello from the container\n"), "{ours}");
    assert_eq!(others, "");
    platform.close().await;
}

async fn tunnels(platform: Platform) {
    platform.run_script("exec httpd -f -p 127.0.0.1:4000 -h /www");
    let name = container("a1");
    let port = platform.sidecar(&name).await;
    platform.run(&name).await;
    for _ in 0..3 {
        let tunnel = tunnel(port, 4000).await.expect("the app listens");
        assert_eq!(get(tunnel, "/").await, "hello from the container\n");
    }
    platform.close().await;
}

async fn hold(platform: Platform) {
    platform.run_script("sleep 1; exec httpd -f -p 4000 -h /www");
    let name = container("a1");
    let port = platform.sidecar(&name).await;
    platform.run(&name).await;
    let started = Instant::now();
    let (first, never) = tokio::join!(async { (tunnel(port, 4000).await, started.elapsed()) }, async {
        (tunnel(port, 4001).await, started.elapsed())
    });
    let (tunnel, waited) = first;
    assert_eq!(get(tunnel.expect("it listens after a second"), "/").await, "hello from the container\n");
    let (refused, waited_for_nothing) = never;
    assert!(waited < waited_for_nothing, "{waited:?}, {waited_for_nothing:?}");
    let (status, text) = refused.expect_err("nothing listens there");
    assert_eq!((status, text.as_str()), (400, "the container is not listening on port 4001"));
    assert!(waited_for_nothing > Duration::from_millis(3_900), "{waited_for_nothing:?}");
    platform.close().await;
}

async fn unheard(platform: Platform) {
    platform.run_script("exec httpd -f -p 3000 -h /www");
    let name = container("a1");
    let port = platform.sidecar(&name).await;
    let mut events = platform.runtime.event_reader();
    platform.run(&name).await;
    // As the class does, which asks again and again.
    for _ in 0..2 {
        let refused = [4000, 4001].map(|asked| tunnel(port, asked));
        let refused = futures::future::join_all(refused).await;
        assert!(refused.iter().all(|refused| matches!(refused, Err((400, _)))), "{refused:?}");
    }
    let told = |event: std::sync::Arc<InstanceEvent>| match &event.kind {
        InstanceEventKind::NotListening(unheard) => Some((unheard.port, unheard.listens_on.clone())),
        _ => None,
    };
    let mut all: Vec<_> = platform.runtime.read_events(&mut events).into_iter().filter_map(told).collect();
    all.sort_unstable();
    assert_eq!(all, [(4000, vec![3000]), (4001, vec![3000])]);
    let output = platform.output(&name).await;
    let line = "nothing listens on port 4000, which was asked for; the container listens on port 3000; set `defaultPort` of \
        the class, and EXPOSE, to 3000, or have the program listen on 4000\n";
    assert_eq!(output.matches(line).count(), 1, "{output}");
    // A start later it may be so again, and worth a word.
    assert_eq!(platform.kill(&name, "KILL").await, 204);
    platform.wait(&name).await;
    assert_eq!(platform.start(&name).await, 204);
    assert!(tunnel(port, 4000).await.is_err());
    let again: Vec<_> = platform.runtime.read_events(&mut events).into_iter().filter_map(told).collect();
    assert_eq!(again, [(4000, vec![3000])]);
    platform.close().await;
}

async fn ended(platform: Platform) {
    platform.run_script("sleep 0.5; exit 3");
    let name = container("a1");
    let port = platform.sidecar(&name).await;
    platform.run(&name).await;
    let (status, text) = tunnel(port, 4000).await.expect_err("it ends");
    assert_eq!(status, 400, "{text}");
    assert_eq!(platform.wait(&name).await, 3);
    platform.close().await;
}
