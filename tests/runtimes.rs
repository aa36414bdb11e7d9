//! Other runtimes than cfc's own sandbox: chosen in the configuration file or by flag, over the whole life of a container.

use crate::support::{Home, Platform, can_sandbox, has_program, tools, wait_for};

const WORKER: &str = "container-starter";
const APPLICATION: &str = "container-starter-mycontainer";

/// The command lines of `program` that run an instance.
fn commands_of(program: &str, instance: &str) -> usize {
    let entries = std::fs::read_dir("/proc").expect("there is a /proc").flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let is_it = |line: &Vec<u8>| {
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        words[0].ends_with(program)
            && words.iter().any(|word| word == "run")
            // runc's own name for it has something behind it.
            && words.iter().any(|word| word.trim_end_matches('+') == instance)
    };
    lines.filter(is_it).count()
}

fn ask(platform: &Platform, session: &str) -> serde_json::Value {
    let (status, body) = platform.ask(WORKER, session);
    assert_eq!(status, 200, "{body}\n{}", platform.log());
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

#[test]
fn an_application_runs_by_its_own_runtime_and_outlives_the_server() {
    if !can_sandbox() || tools().is_none() || !has_program("runc") || !has_program("crun") {
        return;
    }
    for (file, program) in [
        ("runtime = \"runc\"\n".to_string(), "runc"),
        (
            format!(
                "runtime = \"runc\"\n[runtimes.other]\npath = \"crun\"\n[applications.{APPLICATION}]\nruntime = \"other\"\n"
            ),
            "crun",
        ),
    ] {
        let home = Home::new();
        home.write("config.toml", &file);
        let path = home.project(WORKER);
        let platform = Platform::start(&home);
        home.must(&["deploy", &path.display().to_string()]);
        let first = ask(&platform, "alice");
        let answered = first["instance"].as_str().expect("a name").to_string();
        let directories = home.instance_directories();
        let instance = directories[0].file_name().expect("a name").to_string_lossy().into_owned();
        assert_eq!(commands_of(program, &instance), 1, "{program} does not run `{instance}`");
        // Killed, and started again: the same container goes on.
        platform.kill();
        assert_eq!(commands_of(program, &instance), 1, "{program}: the container went with the server");
        let platform = Platform::start(&home);
        let again = wait_for("the Worker", || {
            let (status, body) = platform.ask(WORKER, "alice");
            (status == 200).then(|| serde_json::from_str::<serde_json::Value>(&body).expect("JSON"))
        });
        assert_eq!(again["instance"].as_str(), Some(answered.as_str()), "{program}");
        let log = home.must(&["containers", "logs", APPLICATION]);
        assert!(log.contains("visit 1"), "{log}");
        platform.stop();
        assert_eq!(commands_of(program, &instance), 0, "{program} is left");
    }
}

#[test]
fn a_runtime_that_is_not_there_is_named_before_anything_starts() {
    let home = Home::new();
    let fails = |file: &str, arguments: &[&str], words: &[&str]| {
        home.write("config.toml", file);
        let said = home.must_fail(arguments);
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
    };
    let serve: &[&str] = &["serve", "--port", "0"];
    fails("runtime = \"no-such\"\n", serve, &["`no-such`", "there is no program", "hint: "]);
    fails("", &["serve", "--port", "0", "--runtime", "/no/such/runsc"], &["`/no/such/runsc`", "there is no program"]);
    let named = "[runtimes.kata]\npath = \"/opt/kata\"\n[applications.web]\nruntime = \"kata\"\n";
    fails(named, serve, &["`kata`", "`/opt/kata`", "`applications.web`"]);
    fails("[applications.web]\ngrants = [\"root\"]\n", serve, &["`applications.web`", "`root`", "`fuse`", "`nested`"]);
    fails("", &["run", "--runtime", "no-such", "x:1"], &["`no-such`", "there is no program"]);
    fails("[applications.web]\nruntim = \"runc\"\n", serve, &["unknown field `runtim`"]);
}

#[test]
fn the_doctor_tries_each_runtime_that_is_configured() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let broken = home.write("broken", "#!/bin/sh\n[ \"$1\" = --version ] && echo broken 7 && exit\nexit 3\n");
    std::fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    let broken = broken.display();
    home.write(
        "config.toml",
        &format!(
            "runtime = \"runc\"\n[runtimes.broken]\npath = \"{broken}\"\n[runtimes.gone]\npath = \"/no/such/runtime\"\n"
        ),
    );
    let doctor = String::from_utf8(home.run(&["doctor"]).stdout).expect("UTF-8");
    let says = |words: &[&str]| doctor.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(
        says(&["warning: ", "`broken`", &format!("{broken}, broken 7"), "does not work here", "ended with 3"]),
        "{doctor}"
    );
    assert!(says(&["warning: ", "`gone`", "there is no program `/no/such/runtime`"]), "{doctor}");
    for runtime in ["runc", "crun", "runsc"].into_iter().filter(|runtime| has_program(runtime)) {
        assert!(says(&["note: ", &format!("`{runtime}`"), &format!("{runtime} version "), " works"]), "{doctor}");
    }
}

#[test]
fn one_container_runs_in_the_foreground_by_each_runtime() {
    if !can_sandbox() {
        return;
    }
    let Some(busybox) = crate::support::busybox() else { return };
    let home = Home::new();
    std::fs::create_dir_all(home.path("context")).expect("writable");
    std::fs::copy(busybox, home.path("context/busybox")).expect("copied");
    home.write("context/Dockerfile", "FROM scratch\nCOPY busybox /bin/sh\nENTRYPOINT [\"/bin/sh\", \"-c\"]\n");
    home.must(&["build", &home.path("context").display().to_string(), "-t", "app:1"]);
    for runtime in ["cfc", "runc", "crun", "runsc"] {
        if runtime != "cfc" && !has_program(runtime) {
            continue;
        }
        let output = home.run(&["run", "--runtime", runtime, "--env", "A=b", "app:1", "echo \"$A\"; exit 9"]);
        assert_eq!(output.status.code(), Some(9), "{runtime}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "b\n", "{runtime}");
    }
}
