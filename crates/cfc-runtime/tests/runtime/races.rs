//! Many clients at once: one container an id, no more than `max_instances`, and nothing leaks however often it goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cfc_runtime::{Refusal, RuntimeError, RuntimeErrorKind};

use crate::Test;
use crate::churn::in_full;
use crate::history::{Event, Operation, is_linearizable};
use crate::inventory::{assert_nothing_left, descriptors, live_processes};
use crate::support::{Machine, PATIENCE, Random, block_on, directory, launcher_pid, until};

pub const TESTS: &[Test] = &[
    ("a_thousand_starts_of_one_id_are_one_container", thousand_starts),
    ("however_many_start_max_instances_run", max_instances),
    ("random_clients_see_a_register", random_clients),
    ("cycles_leak_nothing", cycles),
];

fn thousand_starts() {
    let directory = directory();
    block_on(async {
        let machine = Arc::new(Machine::open(directory.path(), "exec sleep 1000", 9).await);
        machine.create("one").await.expect("it is created");
        let starts: Vec<_> = (0..1_000)
            .map(|_| {
                let machine = machine.clone();
                tokio::spawn(async move { machine.runtime.start("one").await })
            })
            .collect();
        let mut started = 0;
        for start in starts {
            match start.await.expect("it does not panic") {
                Ok(()) => started += 1,
                Err(RuntimeError { kind: RuntimeErrorKind::Refused(Refusal::AlreadyRunning(_)), .. }) => {}
                Err(error) => panic!("{}", in_full(&error)),
            }
        }
        assert_eq!(started, 1);
        assert_eq!(live_processes(directory.path()), BTreeMap::from([("one".to_string(), 1)]));
        assert_eq!(machine.launcher.list().expect("it answers").len(), 1);
        assert_eq!(machine.runtime.inspect("one").map(|view| view.launches), Some(1));
        Arc::into_inner(machine).expect("all clients are gone").close().await;
    });
    assert_nothing_left(directory.path());
}

/// Forty ids, five places, and three rounds in which the places become free again.
fn max_instances() {
    const PLACES: usize = 5;
    let directory = directory();
    block_on(async {
        let machine = Arc::new(Machine::open(directory.path(), "exec sleep 1000", PLACES as u32).await);
        for round in 0..3 {
            let tries: Vec<_> = (0..40)
                .map(|number| {
                    let machine = machine.clone();
                    tokio::spawn(async move { machine.run(&format!("{round}-{number}")).await })
                })
                .collect();
            let mut started = 0;
            for attempt in tries {
                match attempt.await.expect("it does not panic") {
                    Ok(()) => started += 1,
                    Err(RuntimeError {
                        kind: RuntimeErrorKind::Refused(Refusal::MaxInstances { limit, .. }), ..
                    }) => {
                        assert_eq!(limit as usize, PLACES);
                    }
                    Err(error) => panic!("{}", in_full(&error)),
                }
            }
            assert_eq!((started, live_processes(directory.path()).len()), (PLACES, PLACES), "round {round}");
            let names: Vec<String> = machine.runtime.list().into_iter().map(|view| view.spec.name).collect();
            for name in names {
                assert!(machine.runtime.remove(&name).await);
            }
        }
        Arc::into_inner(machine).expect("all clients are gone").close().await;
    });
    assert_nothing_left(directory.path());
}

/// Six clients make, start, kill, and remove four instances in random order, while somebody counts processes. What each
/// of them saw must fit together.
fn random_clients() {
    const CLIENTS: usize = 6;
    const STEPS: usize = 60;
    let mut random = Random::new();
    let directory = directory();
    block_on(async {
        let machine = Arc::new(Machine::open(directory.path(), "exec sleep 1000", 3).await);
        let over = Arc::new(AtomicBool::new(false));
        let counting = std::thread::spawn({
            let (over, path) = (over.clone(), directory.path().to_path_buf());
            move || {
                while !over.load(Ordering::Relaxed) {
                    let live = live_processes(&path);
                    assert!(live.values().all(|count| *count == 1), "an instance lives twice: {live:?}");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (machine, mut random) = (machine.clone(), Random::from(random.next()));
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    for _ in 0..STEPS {
                        let name = format!("i{}", random.below(4));
                        step(&machine, &name, random.below(10), &mut seen).await;
                    }
                    seen
                })
            })
            .collect();
        let mut histories: BTreeMap<String, Vec<Event>> = BTreeMap::new();
        for client in clients {
            for (name, event) in client.await.expect("it does not panic") {
                histories.entry(name).or_default().push(event);
            }
        }
        over.store(true, Ordering::Relaxed);
        counting.join().expect("no instance lived twice");
        for (name, mut events) in histories {
            fit_the_last_end(&machine, &name, &mut events);
            assert!(is_linearizable(&events), "{name}: {events:#?}");
        }
        Arc::into_inner(machine).expect("all clients are gone").close().await;
    });
    assert_nothing_left(directory.path());
}

/// Each start that succeeded has an end. It is somewhere between its answer and the next success of a start or of a
/// removal, or it has not come yet.
fn fit_the_last_end(machine: &Machine, name: &str, events: &mut Vec<Event>) {
    let is_live = machine.runtime.inspect(name).is_some_and(|view| view.phase.is_live());
    let starts: Vec<Event> = events.iter().filter(|event| event.operation == Operation::Started).copied().collect();
    let latest = starts.iter().map(|event| event.answered).max();
    let now = Instant::now();
    for start in starts {
        if !(is_live && Some(start.answered) == latest) {
            events.push(Event { called: start.called, answered: now, operation: Operation::Ended });
        }
    }
}

async fn step(machine: &Machine, name: &str, dice: u64, seen: &mut Vec<(String, Event)>) {
    let called = Instant::now();
    let operation = match dice {
        0..3 => match machine.create(name).await {
            Ok(()) => Some(Operation::Created),
            Err(error) => match &error.kind {
                RuntimeErrorKind::Refused(Refusal::Exists(_)) => Some(Operation::CreateExists),
                _ => panic!("{}", in_full(&error)),
            },
        },
        3..6 => match machine.runtime.start(name).await {
            Ok(()) => Some(Operation::Started),
            Err(error) => match &error.kind {
                RuntimeErrorKind::Refused(Refusal::AlreadyRunning(_) | Refusal::Stopping(_)) => {
                    Some(Operation::StartLive)
                }
                RuntimeErrorKind::Refused(Refusal::NoInstance(_)) => Some(Operation::StartAbsent),
                RuntimeErrorKind::Refused(Refusal::MaxInstances { .. }) => None,
                _ => panic!("{}", in_full(&error)),
            },
        },
        6..8 => match machine.runtime.remove(name).await {
            true => Some(Operation::Removed),
            false => Some(Operation::RemoveAbsent),
        },
        // What becomes of it, the others see.
        8 => {
            let _ = machine.runtime.stop(name, Duration::from_millis(5)).await;
            None
        }
        _ => {
            let _ = machine.runtime.kill(name, 9).await;
            None
        }
    };
    let answered = Instant::now();
    if let Some(operation) = operation {
        seen.push((name.to_string(), Event { called, answered, operation }));
    }
}

/// `CFC_CYCLES` times create, start, wait and remove, by four clients: 10,000 times is what is promised, and what a
/// quiet machine does in two minutes; without the variable it goes on for 30 seconds. Afterwards everything is as it was.
fn cycles() {
    const CLIENTS: usize = 4;
    const UNLESS_TOLD: Duration = Duration::from_secs(30);
    let wanted: Option<usize> = std::env::var("CFC_CYCLES").ok().and_then(|text| text.parse().ok());
    let directory = directory();
    block_on(async {
        let machine = Arc::new(Machine::open(directory.path(), "exit 0", 9).await);
        let (ours, launchers) = (std::process::id() as i32, launcher_pid(directory.path()).expect("it listens"));
        turn(&machine, CLIENTS, 40, PATIENCE).await;
        let before = (descriptors(ours), descriptors(launchers));
        let memory = resident_kib(launchers);
        let started = Instant::now();
        let patience = if wanted.is_some() { Duration::MAX } else { UNLESS_TOLD };
        let count = turn(&machine, CLIENTS, wanted.unwrap_or(10_000), patience).await;
        let took = started.elapsed();
        eprintln!(
            "  {count} cycles in {took:.1?}, {:.1} ms each; the launcher has {memory} KiB before, {} KiB after",
            took.as_secs_f64() * 1e3 / count as f64,
            resident_kib(launchers)
        );
        // Connections of the four clients may have come and gone.
        let slack = 2 * CLIENTS + 8;
        until("descriptors are as before", || descriptors(ours) <= before.0 + slack).await;
        until("the launcher's descriptors are as before", || descriptors(launchers) <= before.1 + slack).await;
        assert!(resident_kib(launchers) < memory + 4_096, "the launcher grows");
        assert_eq!(machine.launcher.list().expect("it answers"), []);
        assert_eq!(machine.runtime.list().len(), 0);
        Arc::into_inner(machine).expect("all clients are gone").close().await;
    });
    assert_nothing_left(directory.path());
}

/// Up to `count` cycles, until the patience is over: how many there were.
async fn turn(machine: &Arc<Machine>, clients: usize, count: usize, patience: Duration) -> usize {
    let (started, done) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let next = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..clients)
        .map(|client| {
            let (machine, next, done) = (machine.clone(), next.clone(), done.clone());
            tokio::spawn(async move {
                while next.fetch_add(1, Ordering::Relaxed) < count && started.elapsed() < patience {
                    let name = format!("c{client}");
                    machine.run(&name).await.unwrap_or_else(|error| panic!("{}", in_full(&error)));
                    assert_eq!(machine.wait(&name).await.code, 0);
                    assert!(machine.runtime.remove(&name).await);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("all cycles succeed");
    }
    done.load(Ordering::Relaxed)
}

fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
