//! A launcher that has no descriptor left.

use std::sync::Arc;

use rustix::process::{Pid, Resource, Rlimit};

use crate::Test;
use crate::churn::in_full;
use crate::inventory::{assert_nothing_left, descriptors, live_processes};
use crate::support::{Machine, PATIENCE, block_on, directory, get, launcher_pid, until};

pub const TESTS: &[Test] = &[
    ("without_descriptors_starts_fail_with_the_reason_and_they_recover", launcher_without),
    ("without_descriptors_clients_are_told_so_at_once", clients_without),
];

const SCRIPT: &str = "exec httpd -f -p 4000 -h /www";
const REASON: &str = "Too many open files";

/// Leaves a process so many descriptors besides those that it has.
fn leave(pid: i32, more: usize) {
    limit(pid, Some((descriptors(pid) + more) as u64));
}

/// Lets it have all that it may.
fn leave_all(pid: i32) {
    limit(pid, None);
}

fn limit(pid: i32, current: Option<u64>) {
    // The hard limit stays: not even root may raise it everywhere.
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: current.or(maximum), maximum };
    rustix::process::prlimit(Pid::from_raw(pid), Resource::Nofile, limit).expect("the limit of our own may change");
}

/// From none to as many as a start needs: each start gets a bit further, and leaves nothing.
fn launcher_without() {
    let directory = directory();
    block_on(async {
        let machine = Machine::open(directory.path(), SCRIPT, 99).await;
        machine.run("runs").await.expect("it starts");
        get(&machine, "runs").await;
        let launcher = launcher_pid(directory.path()).expect("it listens");
        let mut failures = Vec::new();
        let mut more = 0;
        while failures.len() < 60 {
            leave(launcher, more);
            match tokio::time::timeout(PATIENCE, machine.run("new")).await.expect("it fails at once") {
                // Only by shells that were ready.
                Ok(()) if failures.is_empty() => drop(machine.runtime.remove("new").await),
                Ok(()) => break,
                Err(error) => {
                    let text = in_full(&error);
                    assert!(text.contains(REASON), "with {more} more: {text}");
                    assert!(machine.runtime.inspect("new").is_some_and(|view| !view.phase.is_live()), "{text}");
                    assert!(machine.runtime.remove("new").await);
                    assert_eq!(machine.launcher.list().expect("it answers").len(), 1, "{text}");
                    failures.push(text);
                    more += 1;
                }
            }
            until("it lives on, once", || live_processes(directory.path()).get("runs") == Some(&1)).await;
        }
        assert!(failures.len() > 3, "{failures:#?}");
        for name in ["runs", "new"] {
            assert!(get(&machine, name).await.ends_with("hello from the container\n"), "{name} after {failures:#?}");
        }
        leave_all(launcher);
        machine.run("newer").await.expect("there are enough again");
        machine.close().await;
    });
    assert_nothing_left(directory.path());
}

/// More clients than the launcher has descriptors for, who ask for this and that.
fn clients_without() {
    let directory = directory();
    block_on(async {
        let machine = Arc::new(Machine::open(directory.path(), SCRIPT, 99).await);
        machine.run("runs").await.expect("it starts");
        let launcher = launcher_pid(directory.path()).expect("it listens");
        leave(launcher, 2);
        let starts: Vec<_> = (0..24)
            .map(|number| {
                let machine = machine.clone();
                tokio::spawn(async move { machine.run(&format!("new-{number}")).await })
            })
            .collect();
        let mut failed = 0;
        for start in starts {
            let ended = tokio::time::timeout(PATIENCE, start).await.expect("nobody waits for what does not come");
            if let Err(error) = ended.expect("it does not panic") {
                assert!(in_full(&error).contains(REASON), "{}", in_full(&error));
                failed += 1;
            }
        }
        assert!(failed > 0, "there were enough");
        assert!(get(&machine, "runs").await.ends_with("hello from the container\n"));
        leave_all(launcher);
        let known = || machine.launcher.list().map_or(0, |list| list.len());
        until("only those that started are there", || known() == 25 - failed).await;
        for number in 0..24 {
            let name = format!("new-{number}");
            if machine.runtime.inspect(&name).is_some_and(|view| !view.phase.is_live()) {
                machine.runtime.start(&name).await.unwrap_or_else(|error| panic!("{}", in_full(&error)));
            }
        }
        // A web server has a child while it answers.
        let all_once = || live_processes(directory.path()).into_values().eq([1; 25]);
        until("each lives once", all_once).await;
        Arc::into_inner(machine).expect("all clients are gone").close().await;
    });
    assert_nothing_left(directory.path());
}
