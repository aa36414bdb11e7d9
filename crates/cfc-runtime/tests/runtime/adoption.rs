//! A runtime that is killed, and the next one on the same directory.

use std::time::{Duration, Instant, SystemTime};

use cfc_runtime::{ExitReport, Phase};

use crate::Test;
use crate::inventory::{assert_nothing_left, live_processes};
use crate::support::{Machine, block_on, directory, get, until};
use crate::victim::{KEEPER, TRAPPING, kept, kill, start};

pub const TESTS: &[Test] = &[
    ("hundreds_of_instances_are_adopted_and_answer", hundreds),
    ("what_listens_is_ready_though_nobody_connects", ready),
    ("an_end_that_nobody_saw_is_known_afterwards", unseen_ends),
    ("two_machines_in_one_never_touch_each_other", two_platforms),
    ("journals_are_read_in_any_condition", journals),
];

/// `CFC_ADOPTED` instances, 100 unless it says otherwise. How long it takes is printed.
fn hundreds() {
    let count: usize = std::env::var("CFC_ADOPTED").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    let directory = directory();
    kill(start(&[KEEPER], directory.path(), &[&count.to_string()]));
    let before = live_processes(directory.path());
    assert_eq!(before.len(), count);
    block_on(async {
        let started = Instant::now();
        let machine = Machine::open(directory.path(), "exec httpd -f -p 4000 -h /www", u32::MAX).await;
        eprintln!("  {count} instances adopted in {:?}", started.elapsed());
        let running = machine.runtime.list();
        assert_eq!(running.len(), count);
        for view in &running {
            assert!(view.phase.is_live(), "{view:?}");
            assert!(view.started.is_some_and(|started| started <= SystemTime::now()) && view.launches == 1, "{view:?}");
        }
        // The same container answers, and its end is seen.
        for number in [0, count / 2, count - 1] {
            assert!(get(&machine, &kept(number)).await.ends_with("hello from the container\n"));
        }
        assert_eq!(live_processes(directory.path()), before, "the same processes");
        machine.runtime.kill(&kept(0), 9).await.expect("it runs");
        assert_eq!(machine.wait(&kept(0)).await.code, 137);
        machine.runtime.start(&kept(0)).await.expect("it starts again");
        assert!(get(&machine, &kept(0)).await.ends_with("hello from the container\n"));
        machine.close().await;
    });
    assert_nothing_left(directory.path());
}

/// As seen from inside: when it starts, and when it is adopted.
fn ready() {
    let directory = directory();
    kill(start(&[KEEPER], directory.path(), &["1"]));
    block_on(async {
        let machine = Machine::open(directory.path(), "exec httpd -f -p 4000 -h /www", u32::MAX).await;
        machine.run("new").await.expect("it starts");
        let is_ready =
            |name: &str| machine.runtime.inspect(name).is_some_and(|view| matches!(view.phase, Phase::Ready { .. }));
        until("the new one to be ready", || is_ready("new")).await;
        until("the adopted one to be ready", || is_ready(&kept(0))).await;
        let view = machine.runtime.inspect("new").expect("it is there");
        assert!(view.ready_after.is_some_and(|after| after < Duration::from_secs(5)), "{view:?}");
        machine.close().await;
    });
    assert_nothing_left(directory.path());
}

/// One is asked to end while nobody looks, one is killed, one goes on.
fn unseen_ends() {
    let directory = directory();
    kill(start(&[KEEPER, TRAPPING], directory.path(), &["3"]));
    let launcher = cfc_sandbox::Launcher::connect(&crate::support::socket(directory.path())).expect("it lives on");
    launcher.kill(&kept(0), 15).expect("it runs");
    launcher.kill_all(&kept(1)).expect("it runs");
    block_on(async {
        let alive = || live_processes(directory.path()).len();
        until("two of three end", || alive() == 1).await;
        for round in 0..2 {
            let machine = Machine::open(directory.path(), "", u32::MAX).await;
            let report = |number| machine.runtime.inspect(&kept(number)).and_then(|view| view.phase.exit().cloned());
            let ended = |code| Some(ExitReport { code, ..ExitReport::default() });
            assert_eq!((report(0), report(1), report(2)), (ended(7), ended(137), None), "round {round}");
            assert_eq!(machine.output(&kept(0)).await, "up\nasked\n");
            assert_eq!(machine.output(&kept(1)).await, "up\n");
            assert_eq!(machine.launcher.list().expect("it answers").len(), 1, "what has ended is the runtime's now");
            if round == 1 {
                // Both can start again, and be removed.
                machine.runtime.start(&kept(0)).await.expect("it starts");
                until("a second start", || machine.launcher.list().is_ok_and(|list| list.len() == 2)).await;
                machine.runtime.kill(&kept(0), 9).await.expect("it runs");
                assert_eq!(machine.wait(&kept(0)).await.code, 137);
                assert!(machine.runtime.remove(&kept(1)).await);
                machine.close().await;
            }
        }
    });
    assert_nothing_left(directory.path());
}

/// Two data directories: sweeping and opening the one leaves the other alone.
fn two_platforms() {
    let (ours, theirs) = (directory(), directory());
    kill(start(&[KEEPER], theirs.path(), &["2"]));
    let before = live_processes(theirs.path());
    kill(start(&[KEEPER], ours.path(), &["2"]));
    block_on(async {
        let swept = cfc_sandbox::sweep(&crate::support::socket(ours.path())).expect("it can be swept");
        assert!(!swept.iter().any(|id| id.starts_with("kept-")), "{swept:?}");
        let machine = Machine::open(ours.path(), "", 9).await;
        assert_eq!(machine.runtime.list().len(), 2);
        machine.close().await;
        assert_eq!(live_processes(theirs.path()), before);
        let machine = Machine::open(theirs.path(), "", 9).await;
        assert_eq!(machine.runtime.list().len(), 2);
        machine.close().await;
    });
    assert_nothing_left(ours.path());
    assert_nothing_left(theirs.path());
}

/// Every way in which a journal may be wrong, beside one that is right and one of the first version of the format.
fn journals() {
    let directory = directory();
    kill(start(&[KEEPER], directory.path(), &["9"]));
    let journal = |number: usize| directory.path().join("data/instances").join(kept(number)).join("journal");
    let text = |number: usize| std::fs::read_to_string(journal(number)).expect("readable");
    let write = |number: usize, text: &str| std::fs::write(journal(number), text).expect("writable");
    write(1, &text(1)[..text(1).len() / 2]);
    write(2, "");
    std::fs::write(journal(3), [0xFF, 0x00, 0xC3]).expect("writable");
    std::fs::remove_file(journal(4)).expect("is there");
    write(5, &text(5).replace("\"launch\":1", "\"launch\":2"));
    // The clock was an hour ahead when it was started, and has been set right.
    write(6, &shift_started(&text(6), 3_600));
    // A later version may have written more than this one knows.
    write(7, &text(7).replacen('{', "{\"of_a_later_version\":[1,2],", 1));
    // Left between writing and renaming.
    std::fs::write(journal(8).with_extension("new"), "half").expect("writable");
    let nobodys = directory.path().join("data/instances/nobodys");
    std::fs::create_dir_all(nobodys.join("etc")).expect("writable");
    std::fs::write(nobodys.join("journal"), FIRST_FORMAT).expect("writable");
    let file = directory.path().join("data/instances/a-file");
    std::fs::write(&file, "not an instance").expect("writable");
    block_on(async {
        let machine = Machine::open(directory.path(), "", u32::MAX).await;
        let names: Vec<String> = machine.runtime.list().into_iter().map(|view| view.spec.name).collect();
        assert_eq!(names, [0, 6, 7, 8].map(kept));
        until("the others' processes are gone", || live_processes(directory.path()).len() == 4).await;
        assert!(!nobodys.exists() && !file.exists());
        assert!(machine.runtime.inspect(&kept(6)).and_then(|view| view.started).is_some());
        for number in [1, 2, 3, 4, 5] {
            machine.run(&kept(number)).await.unwrap_or_else(|error| panic!("{error}: {}", error.kind));
        }
        machine.close().await;
    });
    assert_nothing_left(directory.path());
}

/// As the first version wrote it for an instance that was created and never started.
const FIRST_FORMAT: &str = r#"{"spec":{"name":"nobodys","application":"app","image":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","size":2},"command":null,"env":[],"labels":{}},"created":{"secs_since_epoch":1764115200,"nanos_since_epoch":0},"intent":"rest"}"#;

fn shift_started(journal: &str, seconds: u64) -> String {
    let (before, after) = journal.split_once("\"started\":{\"secs_since_epoch\":").expect("a start");
    let (time, rest) = after.split_once(',').expect("a number");
    let time: u64 = time.parse().expect("a number");
    format!("{before}\"started\":{{\"secs_since_epoch\":{},{rest}", time + seconds)
}
