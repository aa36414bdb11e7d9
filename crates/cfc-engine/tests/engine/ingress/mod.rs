//! The whole way in: gateway, the real workerd with the real `Container` class, tunnel, app. One platform for all cases;
//! what each case says is on the wire, byte by byte.

mod app;
mod hostile;
mod http;
mod streams;
mod websocket;
mod wire;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Child;
use std::time::Duration;

use crate::Test;
use crate::inside;
use crate::platform::{Platform, block_on};
use crate::workerd::{CONFIG, project, start_workerd, toolchain};

pub use app::{APP, be_app};
use wire::Client;

pub const TESTS: &[Test] = &[("requests_pass_gateway_worker_and_tunnel_as_they_are", all)];

/// A case: its name, and what it checks through the gateway at the address.
type Case = (&'static str, fn(SocketAddr));

const CASES: &[&[Case]] = &[http::CASES, streams::CASES, websocket::CASES, hostile::CASES];

/// Where the app listens, each address for itself.
const LISTENERS: &[(&str, u16)] = &[("127.0.0.1", 4000), ("[::1]", 4001), ("0.0.0.0", 4002), ("[::]", 4003)];

const WORKER: &str = r#"
import { Container, getContainer } from "@cloudflare/containers";
const seen = [];
export class MyContainer extends Container {
  defaultPort = 4000;
  sleepAfter = "10m";
  async fetch(request) {
    const url = new URL(request.url);
    const port = Number(request.headers.get("x-port") ?? 4000);
    if (!url.pathname.startsWith("/raw")) return this.containerFetch(request, port);
    await this.startAndWaitForPorts(4000);
    // What the client sends, as bytes on a connection; its end is the connection's end in that direction.
    const socket = this.ctx.container.getTcpPort(port).connect(`10.0.0.1:${port}`);
    const sent = request.body.pipeTo(socket.writable);
    this.ctx.waitUntil(sent.catch(() => {}));
    return new Response(socket.readable);
  }
}
export default {
  fetch(request, env) {
    const url = new URL(request.url);
    if (url.pathname === "/seen") return new Response(seen.join(" "));
    seen.push(url.pathname + url.search);
    return getContainer(env.MY_CONTAINER, "one").fetch(request);
  },
};
"#;

fn all() {
    let Some(toolchain) = toolchain() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let project = project(directory.path(), CONFIG, WORKER);
    block_on(async {
        let platform = Platform::open(directory.path()).await;
        platform.run_script("exec sleep 100000");
        let worker = start_workerd(&platform, &toolchain, &project).await;
        let gateway = cfc_gateway::Gateway::new(cfc_gateway::GatewayOptions::default());
        gateway.set_route("app", worker.socket.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("is bound");
        let serving = gateway.clone();
        tokio::spawn(async move { serving.serve(listener).await });
        let apps = start_apps(&platform, address).await;
        let failed = tokio::task::spawn_blocking(move || run_cases(address)).await.expect("runs");
        drop(apps);
        gateway.shutdown(Duration::ZERO).await;
        worker.workerd.stop(Duration::from_secs(5)).await;
        platform.close().await;
        let log = std::fs::read_to_string(directory.path().join("worker/log")).unwrap_or_default();
        assert!(failed.is_empty(), "the Worker's log:\n{log}");
        assert!(failed.is_empty(), "failed: {failed:?}");
    });
}

/// Ends with the test, also one that fails.
struct App(Child);

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The Worker starts its container at the first request, and the app begins to listen then.
async fn start_apps(platform: &Platform, gateway: SocketAddr) -> Vec<App> {
    let asking = tokio::task::spawn_blocking(move || Client::connect(gateway).get("/echo"));
    let name = loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!asking.is_finished(), "answered before the app listens");
        if let [view] = &platform.runtime.list()[..]
            && matches!(view.phase, cfc_runtime::Phase::Running { .. })
        {
            break view.spec.name.clone();
        }
    };
    let listen = |(host, port): &(&str, u16)| inside::listen(platform, &name, &format!("{host}:{port}"));
    let apps = LISTENERS.iter().map(|at| App(inside::role(&[APP], OwnedFd::from(listen(at))))).collect();
    let answer = asking.await.expect("is asked");
    assert_eq!(answer.status, 200, "{}", answer.text());
    apps
}

/// The names of the cases that failed. `CFC_CASE` names the ones to run, by a part of their names.
fn run_cases(gateway: SocketAddr) -> Vec<&'static str> {
    let wanted = std::env::var("CFC_CASE").unwrap_or_default();
    let cases = CASES.iter().copied().flatten().filter(|(name, _)| name.contains(&wanted));
    let failed = cases.filter(|(name, case)| {
        let started = std::time::Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(|| case(gateway))).is_ok();
        eprintln!("  {name} ... {} ({:.1?})", if passed { "ok" } else { "FAILED" }, started.elapsed());
        !passed
    });
    failed.map(|(name, _)| *name).collect()
}
