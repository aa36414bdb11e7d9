//! Every fail point in the sources: the process dies there, or the step fails there, and the next runtime finds
//! everything in order.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use crate::Test;
use crate::churn::{self, DONE, ENOUGH, FOREVER, SCRIPT, UNTIL_ENOUGH, UNTIL_FAILURE, UNTIL_RECOVERY};
use crate::inventory::{assert_nothing_left, live_processes};
use crate::support::{Machine, Random, block_on, directory, launcher_pid, until};
use crate::victim::{KEEPER, ends, is_ready, kill, say_ready, spawn, start};

pub const TESTS: &[Test] = &[
    ("killed_at_every_step_nothing_is_left_and_nothing_lives_twice", killed_everywhere),
    ("a_step_that_fails_is_told_and_the_next_start_succeeds", failing_everywhere),
    ("what_could_not_be_removed_is_in_no_starts_way", failing_unnoticed),
    ("a_launcher_that_dies_just_when_its_sandbox_goes_on_takes_it_along", killed_between),
    ("a_launcher_killed_at_any_moment_is_replaced", launcher_killed),
    ("what_could_not_be_killed_or_limited_is_tried_again", again),
];

/// What is tried again, without a word to anybody who waits.
const AGAIN: [&str; 2] = ["runtime.stop.kill", "runtime.boost.limit"];
/// How often a point is passed before it does something: at most.
const PASSES_MAX: u64 = 4;
/// Failures that only the next start of the same name meets.
const UNNOTICED: [&str; 2] = ["launcher.remove.asked", "runtime.remove.log"];
const PATIENCE: Duration = Duration::from_secs(30);

fn killed_everywhere() {
    let mut random = Random::new();
    for point in points() {
        // Each sandbox's process is a copy of the launcher's, and counts for itself.
        let is_only_once = point.name.contains(".adopt.") || point.name.starts_with("child.");
        let nth = if is_only_once { 1 } else { 1 + random.below(PASSES_MAX) };
        fail_at(&format!("{}:{nth}:kill", point.name), &point);
    }
}

fn failing_everywhere() {
    for point in points().into_iter().filter(|point| point.can_fail && !UNNOTICED.contains(&point.name.as_str())) {
        fail_at(&format!("{}:1:error", point.name), &point);
    }
}

/// The next start of the same name removes what is in its way: all goes on as if nothing had happened.
fn failing_unnoticed() {
    let directory = directory();
    let failure = UNNOTICED.map(|name| format!("{name}:1:error;{name}:7:error")).join(";");
    let mut victim = spawn(&[churn::ROLE], directory.path(), &[UNTIL_ENOUGH], &[("CFC_FAIL_POINT", &failure)]);
    assert!(is_ready(&mut victim));
    let has_ended = ends(&mut victim, PATIENCE);
    let _ = victim.kill();
    let code = victim.wait().expect("a child").code();
    assert!(has_ended && code == Some(ENOUGH), "{failure}: it was noticed, or in the way: {code:?}");
    finds_order(directory.path(), &failure);
}

/// An instance that listens is to be limited and then removed, and neither succeeds at first.
fn again() {
    let directory = directory();
    let failure = AGAIN.map(|name| format!("{name}:1:error")).join(";");
    let mut victim = spawn(&[AGAIN_ROLE], directory.path(), &[], &[("CFC_FAIL_POINT", &failure)]);
    assert!(is_ready(&mut victim), "it was never limited");
    let has_ended = ends(&mut victim, PATIENCE);
    let _ = victim.kill();
    assert!(has_ended && victim.wait().expect("a child").code() == Some(DONE), "it was never killed");
    assert_nothing_left(directory.path());
}

/// The role of the victim of [`again`].
pub const AGAIN_ROLE: &str = "--again";

pub fn play_again(directory: &Path) -> ! {
    block_on(async {
        let machine = Machine::open(directory, "exec httpd -f -p 4000 -h /www", 1).await;
        machine.run("one").await.expect("it starts");
        until("its share of the processor", || {
            machine.runtime.inspect("one").and_then(|view| view.phase.pid()).is_some_and(is_limited)
        })
        .await;
        say_ready();
        assert!(machine.runtime.remove("one").await);
        machine.close().await;
    });
    std::process::exit(DONE)
}

/// Whether the process has a share of the processor only, as its cgroup says.
fn is_limited(pid: i32) -> bool {
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    cgroups.lines().any(|line| {
        let Some((_, (controllers, path))) =
            line.split_once(':').and_then(|(number, rest)| Some((number, rest.split_once(':')?)))
        else {
            return false;
        };
        let file = match controllers {
            "" => format!("/sys/fs/cgroup{path}/cpu.max"),
            _ => format!("/sys/fs/cgroup/{controllers}{path}/cpu.cfs_quota_us"),
        };
        std::fs::read_to_string(file).is_ok_and(|quota| !quota.starts_with("-1") && !quota.starts_with("max"))
    })
}

/// The sandbox's process is slow, and its launcher gone, before it is bound to the launcher's life.
fn killed_between() {
    for name in ["child.start.go", "child.start.root", "child.start.bound"] {
        let point = Point { name: name.to_string(), can_fail: true };
        fail_at(&format!("launcher.start.gone:2:kill;{name}:1:delay=200"), &point);
    }
}

fn launcher_killed() {
    let mut random = Random::new();
    let directory = directory();
    let mut victim = spawn(&[churn::ROLE], directory.path(), &[FOREVER], &[]);
    assert!(is_ready(&mut victim));
    let seen = watch_for_doubles(directory.path(), || {
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(random.below(300)));
            let Some(pid) = launcher_pid(directory.path()) else { continue };
            crate::support::note_launcher(directory.path());
            kill_launcher(pid);
        }
        // It goes on with the next launcher.
        block_on(until("a launcher in its place", || {
            launcher_pid(directory.path()).is_some() && !live_processes(directory.path()).is_empty()
        }));
    });
    assert!(seen > 0, "nothing ever ran");
    assert!(victim.try_wait().expect("a child").is_none(), "the runtime did not survive its launchers");
    kill(victim);
    finds_order(directory.path(), "a killed launcher");
}

struct Point {
    name: String,
    /// Whether an error there is a failure of the operation, and not only noted.
    can_fail: bool,
}

/// Lets the churn run into `failure`, and looks at what it leaves.
fn fail_at(failure: &str, point: &Point) {
    let directory = directory();
    if point.name.contains(".adopt.") {
        kill(start(&[KEEPER], directory.path(), &["2"]));
    }
    let is_ours = point.name.starts_with("runtime.");
    let recovers = failure.ends_with("error") && !point.name.starts_with("child.");
    let goal = if recovers { UNTIL_RECOVERY } else { UNTIL_FAILURE };
    let mut victim = spawn(&[churn::ROLE], directory.path(), &[goal], &[("CFC_FAIL_POINT", failure)]);
    is_ready(&mut victim);
    watch_for_doubles(directory.path(), || {
        let reached = ends(&mut victim, PATIENCE);
        if !reached {
            let _ = victim.kill();
        }
        assert!(reached, "{failure}: it was never reached, or nobody noticed");
    });
    let status = victim.wait().expect("a child");
    match is_ours && failure.ends_with("kill") {
        true => assert_eq!(status.signal(), Some(9), "{failure}"),
        false => assert_eq!(status.code(), Some(DONE), "{failure}"),
    }
    // A launcher that the victim started would fail again.
    if let Some(pid) = launcher_pid(directory.path()).filter(|_| !is_ours && !recovers) {
        crate::support::note_launcher(directory.path());
        kill_launcher(pid);
    }
    finds_order(directory.path(), failure);
}

fn kill_launcher(pid: i32) {
    let process = rustix::process::Pid::from_raw(pid).expect("a process");
    // An error means that it has ended.
    let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
    block_on(until("its end", || is_gone(pid)));
}

/// Whether the process is gone, or only waits for its parent to take note.
fn is_gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.starts_with(" Z") || rest.starts_with(" X"))
}

/// Opens the machine again: nothing lives twice, every name can be started, and at the end nothing is left.
fn finds_order(directory: &Path, after: &str) {
    block_on(async {
        let machine = Machine::open(directory, SCRIPT, 9).await;
        let known: BTreeSet<String> = machine.runtime.list().into_iter().map(|view| view.spec.name).collect();
        let live = live_processes(directory);
        assert!(live.keys().all(|name| known.contains(name)), "{after}: {live:?} live, {known:?} are known");
        assert!(live.values().all(|count| *count == 1), "{after}: {live:?}");
        let sandboxes = machine.launcher.list().expect("it answers").into_iter().map(|status| status.id);
        assert!(sandboxes.collect::<BTreeSet<_>>().is_subset(&known), "{after}");
        for name in ["waits", "removes", "kills", "twice"] {
            machine.runtime.remove(name).await;
            machine.run(name).await.unwrap_or_else(|error| panic!("{after}: {}", churn::in_full(&error)));
            assert_eq!(machine.wait(name).await.code, 0, "{after}");
        }
        machine.close().await;
    });
    assert_nothing_left(directory);
}

/// Looks again and again, while `work` is done, that no instance has two processes. How many it has seen.
fn watch_for_doubles(directory: &Path, work: impl FnOnce()) -> usize {
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = 0;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                let live = live_processes(directory);
                assert!(live.values().all(|count| *count == 1), "an instance lives twice: {live:?}");
                seen += live.len();
                std::thread::sleep(Duration::from_millis(1));
            }
            seen
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        let seen = watcher.join().expect("no instance lives twice");
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        seen
    })
}

/// The points of the crates that a runtime consists of.
fn points() -> Vec<Point> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut points: Vec<Point> = Vec::new();
    let mut directories = vec![crates.join("cfc-sandbox/src"), crates.join("cfc-runtime/src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("the sources are there").flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let text = std::fs::read_to_string(&path).expect("a source");
                points.extend(text.lines().filter_map(point_of));
            }
        }
    }
    points.retain(|point| !AGAIN.contains(&point.name.as_str()));
    // Nothing is started or stopped there: the tests of the launcher's next programs go through them.
    points.retain(|point| !point.name.starts_with("launcher.succession."));
    points.sort_by(|one, other| one.name.cmp(&other.name));
    assert!(points.len() > 20, "fail points are looked for in the wrong place");
    points
}

fn point_of(line: &str) -> Option<Point> {
    let (before, after) = line.split_once("fail_point(\"").or_else(|| line.split_once("fail_at(\""))?;
    let (name, _) = after.split_once('"')?;
    Some(Point { name: name.to_string(), can_fail: !before.contains("let _ =") })
}
