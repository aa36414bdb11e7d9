//! Processes of this test program that are there to be killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use crate::churn;
use crate::fault_points;
use crate::support::{Machine, STORE, block_on, store_directory};

/// Runs as many instances as are asked for, and waits for its end.
pub const KEEPER: &str = "--keeper";

/// Becomes the victim that the arguments name; returns where they name none.
pub fn play(words: &[String]) {
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [KEEPER, directory, count] => keep(directory.as_ref(), count, "exec httpd -f -p 4000 -h /www"),
        [KEEPER, TRAPPING, directory, count] => keep(directory.as_ref(), count, TRAP),
        [fault_points::AGAIN_ROLE, directory] => fault_points::play_again(directory.as_ref()),
        [churn::ROLE, directory, goal] => churn::play(directory.as_ref(), goal),
        _ => {}
    }
}

/// Makes a [`KEEPER`]'s instances trap SIGTERM: they say so and end with 7.
pub const TRAPPING: &str = "--trapping";
const TRAP: &str = "trap 'echo asked; exit 7' TERM; echo up; while true; do sleep 0.2; done";

/// What the instances of a [`KEEPER`] are called.
pub fn kept(number: usize) -> String {
    format!("kept-{number}")
}

fn keep(directory: &Path, count: &str, script: &str) -> ! {
    let count: usize = count.parse().expect("a number");
    block_on(async {
        let machine = Machine::open(directory, script, u32::MAX).await;
        let run = async |number: usize| machine.run(&kept(number)).await.expect("it starts");
        // Two at a time: the launcher makes one after another anyway.
        for pair in (0..count).collect::<Vec<_>>().chunks(2) {
            match pair {
                [one] => run(*one).await,
                [one, two] => drop(tokio::join!(run(*one), run(*two))),
                _ => {}
            }
        }
        if script == TRAP {
            for number in 0..count {
                machine.until_said(&kept(number), "up").await;
            }
        }
        say_ready();
        std::future::pending().await
    })
}

pub fn say_ready() {
    eprintln!("ready");
}

/// Starts this program in a role, and returns when it says that it is ready.
pub fn start(role: &[&str], directory: &Path, more: &[&str]) -> Child {
    let mut victim = spawn(role, directory, more, &[]);
    assert!(is_ready(&mut victim), "the victim did not get ready");
    victim
}

/// Starts this program in a role, with more variables in its environment.
pub fn spawn(role: &[&str], directory: &Path, more: &[&str], environment: &[(&str, &str)]) -> Child {
    let program = std::env::current_exe().expect("this test has a path");
    let mut command = Command::new(program);
    command.args(role).arg(directory).args(more).env(STORE, store_directory()).envs(environment.iter().copied());
    command.stderr(Stdio::piped());
    command.spawn().expect("the victim starts")
}

/// Waits until a victim says that it is ready: false when it ended before. What it says is passed on.
pub fn is_ready(victim: &mut Child) -> bool {
    let mut errors = BufReader::new(victim.stderr.take().expect("piped"));
    let mut line = String::new();
    while errors.read_line(&mut line).is_ok_and(|count| count > 0) {
        if line == "ready\n" {
            pass_on(errors);
            return true;
        }
        eprint!("    victim: {line}");
        line.clear();
    }
    false
}

fn pass_on(mut errors: BufReader<ChildStderr>) {
    std::thread::spawn(move || {
        let mut line = String::new();
        while errors.read_line(&mut line).is_ok_and(|count| count > 0) {
            eprint!("    victim: {line}");
            line.clear();
        }
    });
}

pub fn kill(mut victim: Child) {
    victim.kill().and_then(|()| victim.wait()).expect("the victim dies");
}

/// Waits for the end of a victim that kills itself; false when it does not.
pub fn ends(victim: &mut Child, patience: Duration) -> bool {
    let started = std::time::Instant::now();
    while started.elapsed() < patience {
        if victim.try_wait().expect("a child").is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}
