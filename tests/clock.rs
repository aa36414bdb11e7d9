//! The machine's clock is set forward and back while a platform runs. Only wall time jumps, as `date -s` lets it; deadlines
//! count on the clock that never does.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{Home, Platform, can_sandbox, http, skipped, tools};

const WORKER: &str = "container-starter";
const APPLICATION: &str = "container-starter-mycontainer";
const DAY: i64 = 86_400;

/// Adds to the wall time what a file says, in seconds.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long offset(void) {
    const char *path = getenv("CFC_TEST_CLOCK");
    char text[32] = {0};
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return 0;
    if (read(file, text, sizeof text - 1) < 0) text[0] = 0;
    close(file);
    return atol(text);
}
int clock_gettime(clockid_t id, struct timespec *time) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, time);
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) time->tv_sec += offset();
    return result;
}
int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    (void)zone;
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return result;
}
time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
"#;

/// The shim, compiled once a process.
fn shim() -> Option<PathBuf> {
    let directory = std::env::temp_dir().join(format!("cfc-test-clock-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("writable");
    let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
    std::fs::write(&source, SHIM).expect("writable");
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    if !compiled.is_ok_and(|status| status.success()) {
        skipped("there is no C compiler that makes shared libraries");
        return None;
    }
    Some(library)
}

struct Clock(PathBuf);

impl Clock {
    fn set(&self, offset: i64) {
        // All of it or nothing, for whoever reads it just now.
        let new = self.0.with_extension("new");
        std::fs::write(&new, offset.to_string()).and_then(|()| std::fs::rename(&new, &self.0)).expect("writable");
    }
}

fn visits(platform: &Platform) -> u64 {
    let (status, body) = platform.ask(WORKER, "alice");
    assert_eq!(status, 200, "{body}\n{}", platform.log());
    serde_json::from_str::<Value>(&body).expect("JSON")["visits"].as_u64().expect("a number")
}

fn instance(home: &Home) -> Value {
    let text = home.must(&["containers", "instances", APPLICATION, "--json"]);
    serde_json::from_str::<Value>(&text).expect("JSON")[0].clone()
}

#[test]
fn a_clock_that_is_set_forward_and_back_changes_nothing_but_times() {
    if !can_sandbox() || tools().is_none() {
        return;
    }
    let Some(library) = shim() else { return };
    let directory = library.parent().map(Path::to_path_buf).expect("has one");
    let clock = Clock(directory.join("offset"));
    clock.set(0);
    let preload = format!("LD_PRELOAD={}", library.display());
    let offset = format!("CFC_TEST_CLOCK={}", clock.0.display());
    let home = Home::through(&["env", &preload, &offset]);
    let platform = Platform::start(&home);
    home.must(&["deploy", &home.project(WORKER).display().to_string()]);
    assert_eq!(visits(&platform), 1);
    let first = instance(&home);

    clock.set(DAY);
    assert_eq!(visits(&platform), 2, "it goes on");
    let lately = |what: &str| home.must(&["containers", what, APPLICATION, "--since", "1h"]);
    let said = lately("logs");
    assert!(said.contains("visit 2") && !said.contains("visit 1"), "{said}");
    assert_eq!(home.must(&["containers", "events", "--since", "1h"]), "", "nothing happened within the hour");
    assert_eq!(instance(&home)["pid"], first["pid"]);
    home.must(&["containers", "stop", first["id"].as_str().expect("an id"), "--time", "20s"]);
    assert_eq!(visits(&platform), 1, "started anew");
    assert!(home.must(&["containers", "events", "--since", "1h"]).contains("running"));
    let of_tomorrow = instance(&home);

    clock.set(-DAY);
    assert_eq!(visits(&platform), 2, "it goes on, though it was started the day after tomorrow");
    assert!(lately("logs").contains("visit 2"));
    assert_eq!(instance(&home)["pid"], of_tomorrow["pid"]);
    let address = platform.address("control");
    let (_, metrics) =
        http(&address, &format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"));
    assert!(!metrics.lines().any(|line| line.contains("} -")), "a negative number:\n{metrics}");

    // Its journal is from the future, and it is the same process all the same.
    platform.kill();
    let platform = Platform::start(&home);
    assert_eq!(visits(&platform), 3, "it was not adopted:\n{}", platform.log());
    assert_eq!(instance(&home)["pid"], of_tomorrow["pid"]);
    home.must(&["containers", "restart", of_tomorrow["id"].as_str().expect("an id"), "--time", "20s"]);
    assert_eq!(visits(&platform), 1);

    // Back to today: ends and what is remembered of them are in no order of times, and nothing minds.
    clock.set(0);
    home.must(&["containers", "stop", instance(&home)["id"].as_str().expect("an id"), "--time", "20s"]);
    assert!(instance(&home)["exit_code"].is_i64(), "{}", instance(&home));
    assert_eq!(visits(&platform), 1);
    platform.stop();
    assert_eq!(home.instance_directories(), Vec::<PathBuf>::new());
    let _ = std::fs::remove_dir_all(directory);
}
