//! Layers of `RUN` on their way to the disk, while the build goes on: what others, later steps and the reader see of them.

use crate::interrupt::{assert_tidy, log, start, with_base};
use crate::support::{Home, can_sandbox, wait_for};

/// Holds the build between the end of the first program and the publishing of its layer, until [`let_go`].
fn held(home: &Home) -> String {
    format!("build.layer.sealed:1:until={}", home.path("let-go").display())
}

fn let_go(home: &Home) {
    std::fs::write(home.path("let-go"), "").expect("is written");
}

/// Whether builds can be held there.
fn can_hold() -> bool {
    can_sandbox() && cfg!(debug_assertions)
}

/// Whether an unpacked layer has the file `name`.
fn is_unpacked(home: &Home, name: &str) -> bool {
    let layers = std::fs::read_dir(home.data().join("store/layers")).expect("lists").flatten();
    layers.map(|layer| layer.path().join(name)).any(|file| file.exists())
}

/// The numbers of the steps, by what their lines end with.
fn steps(said: &str, end: &str) -> Vec<usize> {
    let lines = said.lines().filter(|line| line.ends_with(end) || line.contains(&format!(" {end} ")));
    lines.filter_map(|line| line.strip_prefix('#')?.split(' ').next()?.parse().ok()).collect()
}

#[test]
fn a_layer_on_its_way_is_not_pruned_and_not_made_twice() {
    if !can_hold() {
        return;
    }
    let (home, context) = with_base("FROM test/base:1\nRUN echo made >/made\n");
    let mut build = start(&home, &[&context, "-t", "app"], Some(&held(&home)));
    wait_for("the layer's directory", || is_unpacked(&home, "made").then_some(()));
    home.must(&["prune", "--all"]);
    assert!(is_unpacked(&home, "made"));
    // Another build of the same waits for it.
    let waiting = std::thread::scope(|scope| {
        let other = scope.spawn(|| home.run(&["build", &context, "-t", "other"]));
        std::thread::sleep(std::time::Duration::from_secs(1));
        let is_waiting = !other.is_finished();
        let_go(&home);
        (is_waiting, other.join().expect("no panic"))
    });
    let (is_waiting, other) = waiting;
    assert!(is_waiting);
    let said = String::from_utf8_lossy(&other.stderr).to_string();
    assert!(other.status.success() && said.matches(" CACHED").count() == 1, "{said}");
    assert!(build.wait().expect("a child").success(), "{}", log(&home));
    let archive = format!("type=oci,dest={}", home.path("app.tar").display());
    let again = home.run(&["build", &context, "-t", "app", "-o", &archive]);
    let said = String::from_utf8_lossy(&again.stderr).to_string();
    assert!(again.status.success() && said.matches(" CACHED").count() == 1, "{said}");
    let digest = |stdout: &[u8]| String::from_utf8_lossy(stdout).split_whitespace().last().map(str::to_string);
    assert_eq!(digest(&again.stdout), digest(&other.stdout));
    assert_tidy(&home);
}

#[test]
fn a_step_is_told_to_be_done_when_its_layer_is_there_and_the_next_one_runs_before() {
    if !can_hold() {
        return;
    }
    let (home, context) = with_base("FROM test/base:1\nRUN echo one >/one\nRUN cat /one && echo two >/two\n");
    let mut build = start(&home, &[&context, "-t", "app", "--progress", "plain"], Some(&held(&home)));
    wait_for("the second step", || is_unpacked(&home, "two").then_some(()));
    let early = log(&home);
    let_go(&home);
    assert!(build.wait().expect("a child").success(), "{}", log(&home));
    let said = log(&home);
    let (first, second) = (steps(&said, "RUN echo one >/one")[0], steps(&said, "RUN cat /one && echo two >/two")[0]);
    assert!(!steps(&early, "DONE").contains(&first), "{early}");
    let done = steps(&said, "DONE");
    assert_eq!(
        done.iter().filter(|number| [first, second].contains(number)).collect::<Vec<_>>(),
        [&second, &first],
        "{said}"
    );
    // Its last words are under its name again.
    let last = said.lines().position(|line| line.starts_with(&format!("#{first} DONE"))).expect("told");
    assert!(said.lines().nth(last - 1).is_some_and(|line| line.ends_with("RUN echo one >/one")), "{said}");
    assert_tidy(&home);
}

#[test]
fn a_layer_that_the_disk_does_not_take_fails_its_step_and_ends_what_runs_meanwhile() {
    if !can_hold() {
        return;
    }
    let (home, context) = with_base("FROM test/base:1\nRUN echo one >/one\nRUN sleep 1000\n");
    let mut build = start(&home, &[&context, "-t", "app", "--progress", "plain"], Some("build.layer.sealed:1:error"));
    assert_eq!(build.wait().expect("a child").code(), Some(1));
    let said = log(&home);
    let first = steps(&said, "RUN echo one >/one")[0];
    assert!(!steps(&said, "DONE").contains(&first) && said.contains(&format!("#{first} ERROR: ")), "{said}");
    assert!(said.contains("Dockerfile:2") && said.contains("build.layer.sealed"), "{said}");
    home.write("app/Dockerfile", "FROM test/base:1\nRUN echo one >/one\nRUN echo two >/two\n");
    home.must(&["build", &context, "-t", "app"]);
    assert_tidy(&home);
}

#[test]
fn what_was_on_its_way_when_a_later_step_failed_is_used_again() {
    if !can_hold() {
        return;
    }
    let (home, context) = with_base("FROM test/base:1\nRUN echo one >/one\nRUN exit 3\n");
    let mut build = start(&home, &[&context, "-t", "app", "--progress", "plain"], Some(&held(&home)));
    wait_for("the failure", || log(&home).contains("it exited with code 3").then_some(()));
    let_go(&home);
    assert_eq!(build.wait().expect("a child").code(), Some(1));
    let said = log(&home);
    assert!(said.contains("it exited with code 3") && said.contains("Dockerfile:3"), "{said}");
    home.write("app/Dockerfile", "FROM test/base:1\nRUN echo one >/one\nRUN echo better\n");
    let again = home.run(&["build", &context, "-t", "app"]);
    let said = String::from_utf8_lossy(&again.stderr).to_string();
    assert!(again.status.success() && said.matches(" CACHED").count() == 1, "{said}");
    assert_tidy(&home);
}
