//! The kernel kills one of our own processes for want of memory (as SIGKILL does): what runs, and what comes after.

use std::fs;
use std::path::PathBuf;

use cfc_runtime::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::Test;
use crate::churn::in_full;
use crate::inventory::{assert_nothing_left, live_processes};
use crate::support::{Machine, PATIENCE, block_on, directory, get, launcher_pid, until};

pub const TESTS: &[Test] = &[
    ("containers_die_before_any_helper_of_ours", order),
    ("a_disk_maker_that_is_killed_is_replaced_and_nothing_that_runs_notices", disk_maker),
    ("a_relay_that_is_killed_takes_its_tunnels_along_and_the_next_one_works", relay),
    ("a_launcher_that_is_killed_ends_its_instances_by_name_and_the_next_start_works", launcher),
];

const SCRIPT: &str = "exec httpd -f -p 4000 -h /www";

/// Kills it as the kernel would.
fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
}

fn stat(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()
}

fn is_gone(pid: i32) -> bool {
    stat(pid).rsplit_once(')').is_none_or(|(_, rest)| rest.starts_with(" Z") || rest.starts_with(" X"))
}

/// The process in which the launcher has its disks made.
fn disk_maker_of(launcher: i32) -> Option<i32> {
    let children: PathBuf = format!("/proc/{launcher}/task/{launcher}/children").into();
    let children = fs::read_to_string(children).ok()?;
    let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.into_iter().find(|pid: &i32| stat(*pid).contains("(cfc-disks)") && !is_gone(*pid))
}

/// A number that the kernel keeps for a process; nothing of one that is gone.
fn value(pid: i32, file: &str) -> Option<i64> {
    Some(fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?.trim().parse().expect("a number"))
}

fn order() {
    let directory = directory();
    block_on(async {
        let machine = Machine::open(directory.path(), SCRIPT, 9).await;
        machine.run("runs").await.expect("it starts");
        get(&machine, "runs").await;
        let container = machine.runtime.inspect("runs").and_then(|view| view.phase.pid()).expect("it runs");
        let launcher = launcher_pid(directory.path()).expect("it listens");
        let mut helpers = vec![("cfc serve", std::process::id() as i32), ("the launcher", launcher)];
        helpers.extend(disk_maker_of(launcher).map(|pid| ("the disk maker", pid)));
        helpers.extend(machine.relays.pids().into_iter().map(|pid| ("a relay", pid as i32)));
        assert!(helpers.len() >= 3, "{helpers:?}");
        let all: Vec<i32> = crate::inventory::pids_of(directory.path(), "runs");
        let measures = |pid| Some((value(pid, "oom_score_adj")?, value(pid, "oom_score")?));
        for (what, helper) in helpers {
            let ours = measures(helper).unwrap_or_else(|| panic!("{what} runs"));
            assert!(measures(container).is_some(), "the container runs");
            // The server has a process for each request, which may be gone by now.
            for theirs in all.iter().chain([&container]).filter_map(|process| measures(*process)) {
                let (adjusted, score) = theirs;
                assert!(ours.0 + 400 <= adjusted, "{what} has {}, a process of a container {adjusted}", ours.0);
                assert!(
                    ours.1 < score,
                    "the kernel would rather kill {what}: {}, a container's process {score}",
                    ours.1
                );
            }
        }
        machine.close().await;
    });
    assert_nothing_left(directory.path());
}

fn disk_maker() {
    let directory = directory();
    block_on(async {
        let machine = Machine::open(directory.path(), SCRIPT, 99).await;
        machine.run("runs").await.expect("it starts");
        let launcher = launcher_pid(directory.path()).expect("it listens");
        let Some(maker) = disk_maker_of(launcher) else {
            eprintln!("skipped: this machine makes no disks");
            return machine.close().await;
        };
        for round in 0..3 {
            let maker = disk_maker_of(launcher).unwrap_or(maker);
            kill(maker);
            until("its end", || is_gone(maker)).await;
            // More than are kept ready, so that some must be made.
            for number in 0..6 {
                let name = format!("new-{round}-{number}");
                match machine.run(&name).await {
                    Ok(()) => {}
                    // One that waited for the disk that was being made is told so.
                    Err(error) => {
                        assert!(in_full(&error).contains("disk"), "{}", in_full(&error));
                        machine.runtime.start(&name).await.unwrap_or_else(|error| panic!("{}", in_full(&error)));
                    }
                }
                assert!(get(&machine, &name).await.ends_with("hello from the container\n"));
            }
            assert!(get(&machine, "runs").await.ends_with("hello from the container\n"));
        }
        machine.close().await;
    });
    assert_nothing_left(directory.path());
}

/// A connection to the instance's web server through a relay.
async fn tunnel(machine: &Machine, name: &str) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
    let (outer, _) = listener.accept().await.expect("accepts");
    let inner = machine.runtime.connect(name, 4000, PATIENCE).await.expect("it listens");
    machine.runtime.carry(name, Kind::Ingress, outer, inner).expect("a relay carries it");
    client
}

fn relay() {
    let directory = directory();
    block_on(async {
        let machine = Machine::open(directory.path(), SCRIPT, 9).await;
        machine.run("runs").await.expect("it starts");
        let ask = async |mut client: TcpStream| {
            client.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.map(|_| answer)
        };
        assert!(ask(tunnel(&machine, "runs").await).await.expect("answers").contains("hello"));
        let open = tunnel(&machine, "runs").await;
        for pid in machine.relays.pids() {
            kill(pid as i32);
            until("its end", || is_gone(pid as i32)).await;
        }
        let broken = tokio::time::timeout(PATIENCE, ask(open)).await.expect("nobody waits for a relay that is gone");
        assert!(!broken.is_ok_and(|answer| answer.contains("hello")), "who carried it?");
        assert!(ask(tunnel(&machine, "runs").await).await.expect("answers").contains("hello"));
        until("the broken one is counted off", || machine.runtime.traffic("runs").ingress.open == 0).await;
        assert_eq!(live_processes(directory.path()).get("runs"), Some(&1), "it was started anew");
        machine.close().await;
    });
    assert_nothing_left(directory.path());
}

fn launcher() {
    let directory = directory();
    block_on(async {
        let machine = Machine::open(directory.path(), SCRIPT, 9).await;
        for name in ["one", "two"] {
            machine.run(name).await.expect("it starts");
        }
        let launcher = launcher_pid(directory.path()).expect("it listens");
        kill(launcher);
        for name in ["one", "two"] {
            let report = machine.wait(name).await;
            assert_eq!(report.code, 137, "{report:?}");
            assert!(report.error.as_ref().is_some_and(|reason| reason.contains("launcher")), "{report:?}");
        }
        until("nothing of them runs", || live_processes(directory.path()).is_empty()).await;
        for name in ["one", "two"] {
            machine.runtime.start(name).await.unwrap_or_else(|error| panic!("{}", in_full(&error)));
            assert!(get(&machine, name).await.ends_with("hello from the container\n"));
        }
        crate::support::note_launcher(directory.path());
        machine.close().await;
        cfc_sandbox::sweep(&crate::support::socket(directory.path())).expect("what is left can be swept");
    });
    assert_nothing_left(directory.path());
}
