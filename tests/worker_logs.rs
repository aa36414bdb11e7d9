//! What a Worker prints, with the real workerd.

use crate::starter::{WORKER, deployed_from, ready};
use crate::support::{Ended, Home, Platform, wait_for};

/// A Worker that prints what it is asked to.
const SOURCE: &str = "\
export class MyContainer {}
export default {
  async fetch(request) {
    const { 'session-id': text } = await request.json();
    if (text === 'throw') throw new Error('it was asked to');
    const lines = Number(text);
    for (let line = 0; line < lines; line++) console.log('x'.repeat(1000), line);
    if (Number.isNaN(lines)) console.log(text);
    return new Response('printed');
  },
};
";

fn platform(home: &Home) -> Option<Platform<'_>> {
    ready().then(|| deployed_from(home, SOURCE))
}

fn logs_with(home: &Home, text: &str) -> String {
    wait_for(text, || Some(home.must(&["logs", WORKER])).filter(|log| log.contains(text)))
}

#[test]
fn what_a_worker_prints_can_be_read_and_followed() {
    let home = Home::new();
    let Some(platform) = platform(&home) else { return };
    assert_eq!(platform.ask(WORKER, "first words").0, 200);
    assert_eq!(platform.ask(WORKER, "throw").0, 500);
    let log = logs_with(&home, "it was asked to");
    assert!(log.contains("first words"), "{log}");
    assert!(!home.must(&["logs", WORKER, "--tail", "1"]).contains("first words"));
    assert_eq!(home.must(&["logs", WORKER, "--since", "2999-01-01T00:00:00Z"]), "");
    assert!(home.must(&["logs", WORKER, "--since", "1h"]).contains("first words"));
    let timed = home.must(&["logs", WORKER, "--timestamps"]);
    let line = timed.lines().find(|line| line.ends_with("first words")).expect("a line").to_string();
    assert!(line.starts_with("20") && line.as_bytes()[23] == b'Z', "{line}");

    let output = std::fs::File::create(home.path("followed")).expect("writable");
    // Without a name it is the project's.
    let mut command = home.cfc();
    command.args(["logs", "-f", "--tail", "0"]).current_dir(home.path(WORKER)).stdout(output);
    let mut following = Ended(command.spawn().expect("cfc runs"));
    let followed = || std::fs::read_to_string(home.path("followed")).unwrap_or_default();
    wait_for("later words in the followed log", || {
        assert_eq!(platform.ask(WORKER, "later words").0, 200);
        followed().contains("later words").then_some(())
    });
    assert!(!followed().contains("first words"), "{}", followed());
    // It ends with the Worker.
    home.must(&["delete", WORKER, "--force"]);
    assert!(following.0.wait().expect("a child").success());
    let said = home.must_fail(&["logs", WORKER]);
    assert!(said.contains(&format!("there is no Worker `{WORKER}`")), "{said}");
    platform.stop();
}

#[test]
fn a_worker_that_floods_its_log_fills_no_disk() {
    let home = Home::new();
    let Some(platform) = platform(&home) else { return };
    for _ in 0..5 {
        assert_eq!(platform.ask(WORKER, "10000").0, 200);
    }
    assert_eq!(platform.ask(WORKER, "last words").0, 200);
    logs_with(&home, "last words");
    let directory = home.data().join("workers").join(WORKER);
    for file in ["log", "log.1"] {
        let size = std::fs::metadata(directory.join(file)).expect("there are two").len();
        assert!(size <= 16 << 20, "{file} has {size} bytes");
    }
    platform.stop();
}
