//! Builds that end while they copy a large file, download one, or pull their base image.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use crate::add::Server;
use crate::interrupt::{assert_tidy, has_open, log, start};
use crate::registry::serve;
use crate::support::{Home, busybox, can_sandbox, wait_for};

/// Ways to end a build, and the exit code where there is one.
const ENDS: [(Signal, Option<i32>); 3] = [(Signal::INT, Some(130)), (Signal::TERM, Some(143)), (Signal::KILL, None)];

/// How much a server says before it falls silent.
const BEFORE_SILENCE: usize = 1 << 20;

/// A server behind which another is, and that says nothing more after a while until it is let go on.
struct Silent {
    address: String,
    is_silent: Arc<AtomicBool>,
    goes_on: Arc<AtomicBool>,
}

impl Silent {
    fn before(upstream: String) -> Silent {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let (is_silent, goes_on) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let silent = Silent { address, is_silent: is_silent.clone(), goes_on: goes_on.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&upstream).expect("it listens");
                let (mut from, mut to) = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                let (is_silent, goes_on) = (is_silent.clone(), goes_on.clone());
                std::thread::spawn(move || answer(server, client, &is_silent, &goes_on));
            }
        });
        silent
    }
}

fn answer(mut server: TcpStream, mut client: TcpStream, is_silent: &AtomicBool, goes_on: &AtomicBool) {
    let (mut buffer, mut n_sent) = ([0; 16 << 10], 0);
    while let Ok(length @ 1..) = server.read(&mut buffer) {
        let falls_silent = n_sent > BEFORE_SILENCE && !goes_on.load(Ordering::Relaxed);
        is_silent.fetch_or(falls_silent, Ordering::Relaxed);
        while falls_silent && !goes_on.load(Ordering::Relaxed) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        if client.write_all(&buffer[..length]).is_err() {
            return;
        }
        n_sent += length;
    }
    let _ = client.shutdown(std::net::Shutdown::Write);
}

/// Ends a build in each way once `is_under_way` says so of its process.
fn end_in_each_way(home: &Home, context: &str, is_under_way: impl Fn(u32) -> bool) {
    for (signal, code) in ENDS {
        let mut build = start(home, &[context, "-t", "app"], None);
        wait_for("the build to be in the middle", || is_under_way(build.id()).then_some(()));
        kill_process(Pid::from_child(&build), signal).expect("it runs");
        let status = build.wait().expect("a child");
        let said = log(home);
        assert_eq!(status.code(), code, "{signal:?}: {said}");
        let is_told = said.contains("interrupted: what was finished is kept") && !said.contains("error:");
        assert!(is_told || code.is_none(), "{signal:?}: {said}");
        assert!(!home.data().join("store/refs/app%3Alatest.json").exists(), "{signal:?}");
    }
}

#[test]
fn a_build_that_is_ended_in_a_copy_leaves_no_half_layer() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    home.write("context/Dockerfile", "FROM scratch\nCOPY large /large\n");
    let (context, large) = (home.path("context"), home.path("context/large"));
    File::create(&large).and_then(|file| file.set_len(2 << 30)).expect("writable");
    let shown = context.display().to_string();
    end_in_each_way(&home, &shown, |pid| has_open(pid, &large));
    std::fs::write(&large, "small now").expect("writable");
    home.must(&["build", &shown, "-t", "app"]);
    assert_tidy(&home);
}

#[test]
fn a_build_that_is_ended_in_a_download_leaves_no_half_file() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    home.write("served/file", "");
    std::fs::write(home.path("served/file"), vec![7; 4 << 20]).expect("writable");
    let server = Server::start(home.path("served"));
    let upstream = server.address("").trim_start_matches("http://").trim_end_matches('/').to_string();
    let silent = Silent::before(upstream);
    home.write("context/Dockerfile", &format!("FROM scratch\nADD http://{}/file /file\n", silent.address));
    let context = home.path("context").display().to_string();
    end_in_each_way(&home, &context, |_| silent.is_silent.swap(false, Ordering::Relaxed));
    silent.goes_on.store(true, Ordering::Relaxed);
    home.must(&["build", &context, "-t", "app", "-o", "out"]);
    assert_eq!(std::fs::read(home.path("out/file")).expect("there"), vec![7; 4 << 20]);
    assert_tidy(&home);
}

#[test]
fn a_build_that_is_ended_while_it_pulls_its_base_leaves_no_half_image() {
    if !can_sandbox() {
        return;
    }
    let first = Home::new();
    let (_registry, registry) = serve(&first);
    first.write("context/Dockerfile", "FROM scratch\nCOPY large /large\nONBUILD COPY own /triggered\n");
    std::fs::write(first.path("context/large"), vec![9; 4 << 20]).expect("writable");
    first.must(&["build", "context", "-t", &format!("{registry}/team/base:1"), "--compression", "none", "--push"]);

    let silent = Silent::before(registry);
    let home = Home::new();
    home.write("context/Dockerfile", &format!("FROM {}/team/base:1\n", silent.address));
    home.write("context/own", "mine");
    let context = home.path("context").display().to_string();
    end_in_each_way(&home, &context, |_| silent.is_silent.swap(false, Ordering::Relaxed));
    silent.goes_on.store(true, Ordering::Relaxed);
    home.must(&["build", &context, "-t", "app", "-o", "out"]);
    assert_eq!(std::fs::read(home.path("out/large")).expect("there"), vec![9; 4 << 20]);
    assert_eq!(std::fs::read_to_string(home.path("out/triggered")).expect("the base's trigger"), "mine");
    assert_tidy(&home);
}

/// A base image of which this machine knows nothing yet, with triggers that copy, run and mount.
#[test]
fn triggers_of_a_base_that_only_a_registry_has_are_carried_out() {
    if !can_sandbox() {
        return;
    }
    let first = Home::new();
    let (_registry, registry) = serve(&first);
    std::fs::create_dir_all(first.path("context")).expect("writable");
    std::fs::copy(busybox().expect("checked before"), first.path("context/busybox")).expect("copied");
    first.write(
        "context/Dockerfile",
        "FROM scratch\nCOPY busybox /bin/sh\nONBUILD ARG WHO=nobody\nONBUILD COPY own /own\n\
         ONBUILD RUN --mount=type=bind,source=own,target=/mounted while read line; do echo \"$line $WHO\" >/made; done </mounted\n\
         ONBUILD WORKDIR /srv\nONBUILD LABEL by=trigger\n",
    );
    let base = format!("{registry}/team/base:1");
    first.must(&["build", "context", "-t", &base, "--push"]);
    let home = Home::new();
    home.write("context/Dockerfile", &format!("FROM {base}\nRUN echo \"$WHO\" >/own-step\n"));
    home.write("context/own", "hello\n");
    let said = home.run(&["build", "context", "-t", "app", "--build-arg", "WHO=you", "-o", "out"]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let read = |name: &str| std::fs::read_to_string(home.path("out").join(name)).expect("there");
    assert_eq!([read("own"), read("made"), read("own-step")], ["hello\n", "hello you\n", "you\n"]);
    let store = cfc_store::Store::open(&home.data().join("store")).expect("a store");
    let image = store.images().resolve(&"app".parse().expect("a name")).expect("readable").expect("there");
    let config = store.images().load(&image).expect("loads").config.config;
    assert_eq!((config.working_dir.as_str(), config.on_build), ("/srv", None));
}
