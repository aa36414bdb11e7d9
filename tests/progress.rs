//! How `cfc build` shows what it does.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Home, busybox, can_sandbox, has_program};

/// Two stages with output, of which the last waits a little.
fn context(home: &Home, last: &str) -> String {
    std::fs::create_dir_all(home.path("context")).expect("writable");
    std::fs::copy(busybox().expect("checked before"), home.path("context/sh")).expect("copied");
    home.write(
        "context/Dockerfile",
        &format!(
            "FROM scratch AS base\nCOPY sh /bin/sh\nFROM base AS made\n\
             RUN echo first; echo second >&2\nFROM base\nCOPY --from=made /bin/sh /made\nRUN {last}\n"
        ),
    );
    home.path("context").display().to_string()
}

fn build(home: &Home, context: &str, more: &[&str]) -> (Output, String) {
    let output = home.cfc().args(["build", context, "-t", "app"]).args(more).output().expect("cfc runs");
    let said = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    (output, said)
}

#[test]
fn plain_progress_reads_as_buildkits() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let context = context(&home, "echo third");
    let (output, said) = build(&home, &context, &[]);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains('\u{1b}'), "escapes outside of a terminal: {said:?}");
    let number = |name: &str| -> String {
        let line = said.lines().find(|line| line.starts_with('#') && line.ends_with(name));
        line.unwrap_or_else(|| panic!("no {name} in {said}")).split(' ').next().expect("a number").to_string()
    };
    let run = number("[made 1/1] RUN echo first; echo second >&2").replace('#', "");
    let is_output = |line: &str, text: &str| {
        let mut words = line.splitn(3, ' ');
        words.next() == Some(&format!("#{run}"))
            && words.next().is_some_and(|time| time.len() >= 5 && time.parse::<f64>().is_ok())
            && words.next() == Some(text)
    };
    for text in ["first", "second"] {
        assert!(said.lines().any(|line| is_output(line, text)), "{said}");
    }
    assert!(said.lines().any(|line| line.starts_with(&format!("#{run} DONE ")) && line.ends_with('s')), "{said}");
    let last = number("[stage-2 2/2] RUN echo third");
    assert!(said.contains(&format!("\n\n{last} [stage-2 2/2] RUN")), "a blank line between steps: {said}");
    // Another build uses it all.
    let (_, said) = build(&home, &context, &["--progress", "plain"]);
    assert_eq!(said.lines().filter(|line| line.ends_with(" CACHED")).count(), 4, "{said}");
}

#[test]
fn json_progress_is_an_object_a_line() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let context = context(&home, "exit 3");
    // What is said besides is an event too, with its time as all are.
    let platforms = format!("{},linux/s390x", cfc_oci::Platform::host());
    home.write("other/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let (_, said) = build(&home, "other", &["--progress", "json", "--platform", &platforms]);
    let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let messages: Vec<&Value> = events.iter().filter(|event| event["event"] == "message").collect();
    assert!(messages.iter().any(|event| event["text"] == "building for linux/s390x"), "{said}");
    assert!(messages.iter().all(|event| event["time"].as_f64().is_some_and(|time| time > 1e9)), "{said}");

    let (output, said) = build(&home, &context, &["--progress", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let events: Vec<Value> =
        said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let of = |event: &str| -> Vec<&Value> { events.iter().filter(|given| given["event"] == event).collect() };
    assert!(events.iter().all(|event| event["time"].as_f64().is_some_and(|time| time > 1e9)), "{said}");
    let made = of("step-started").into_iter().find(|step| step["stage"] == "made" && step["line"] == 4);
    let made = &made.expect("the RUN of the other stage")["step"];
    let output: Vec<&Value> = of("step-output").into_iter().filter(|event| event["step"] == *made).collect();
    assert_eq!([&output[0]["text"], &output[1]["text"]], ["first", "second"]);
    let finished = of("step-finished").into_iter().find(|event| event["step"] == *made).expect("finished");
    assert_eq!(finished["outcome"], "built");
    assert_eq!(of("step-failed")[0]["reason"], "it exited with code 3");
    let failed = of("failed");
    assert!(failed[0]["message"].as_str().is_some_and(|text| text.contains("Dockerfile:7")), "{said}");
    assert_eq!(failed.len(), 1);
}

#[test]
fn quiet_is_only_the_digest_and_the_environment_may_choose() {
    let home = Home::new();
    let context = home.path("context").display().to_string();
    home.write("context/Dockerfile", "FROM scratch\nCOPY Dockerfile /a\n");
    let (loud, _) = build(&home, &context, &[]);
    let loud = String::from_utf8(loud.stdout).expect("UTF-8");
    let digest = loud.trim_end().rsplit(' ').next().expect("a digest");
    for arguments in [&["-q"][..], &["--progress", "quiet"], &["--quiet", "-t", "other"]] {
        let (output, said) = build(&home, &context, arguments);
        assert_eq!((said.as_str(), String::from_utf8_lossy(&output.stdout).trim_end()), ("", digest), "{arguments:?}");
    }
    let with = |variables: &[(&str, &str)]| {
        let output = home.cfc().args(["build", &context, "-t", "app"]).envs(variables.iter().copied()).output();
        String::from_utf8(output.expect("cfc runs").stderr).expect("UTF-8")
    };
    assert_eq!(with(&[("BUILDKIT_PROGRESS", "quiet")]), "");
    assert!(with(&[("BUILDKIT_PROGRESS", "quiet"), ("CFC_PROGRESS", "json")]).starts_with('{'));
    assert!(with(&[("BUILDKIT_PROGRESS", "rawjson")]).starts_with('#'), "a value that is BuildKit's alone");
    let said = with(&[("CFC_PROGRESS", "rawjson")]);
    assert!(said.contains("CFC_PROGRESS: there is no progress `rawjson`") && said.contains("hint: "), "{said}");
}

#[test]
fn a_terminal_gets_a_display_that_fits() {
    if !can_sandbox() || !has_program("script") {
        return;
    }
    let home = Home::new();
    let context = context(
        &home,
        "for i in 1 2 3 4 5 6 7 8 9; do echo line-$i-that-is-longer-than-the-terminal; read -t 0.1 x </dev/zero; done",
    );
    let cfc = env!("CARGO_BIN_EXE_cfc");
    let on_terminal = |columns: usize, colour: bool| {
        let mut command = Command::new("script");
        let shell = format!("stty cols {columns} rows 10; {cfc} build {context} -t app --no-cache");
        command.args(["-qec", &shell, "/dev/null"]).env("CFC_DATA", home.data()).env("TERM", "xterm");
        command.env_remove("NO_COLOR").env_remove("CFC_PROGRESS").env_remove("BUILDKIT_PROGRESS");
        if !colour {
            command.env("NO_COLOR", "1");
        }
        let output = command.stdin(std::process::Stdio::null()).output().expect("script runs");
        String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n")
    };
    let seen = on_terminal(30, true);
    assert!(seen.contains("\u{1b}[J") && seen.contains("\u{1b}[34m => [made 1/1] RUN"), "{seen:?}");
    assert!(seen.contains(" => => # line-"), "the output of what runs is shown: {seen:?}");
    let plain = without_escapes(&seen);
    let is_ours = |line: &&str| line.starts_with(" =>");
    let widest = plain.lines().filter(is_ours).map(|line| line.chars().count()).max();
    assert!(widest.is_some_and(|widest| widest <= 30), "{widest:?} columns: {plain}");
    // What stays at the end is a line for each step, and nothing of what was drawn.
    let last = seen.rsplit("\u{1b}[J").next().expect("a last frame");
    assert!(!last.contains("=> =>"), "{last:?}");
    let seen = on_terminal(120, false);
    assert!(!seen.contains("\u{1b}[34m") && seen.contains("[stage-2 2/2] RUN for i in"), "{seen:?}");
}

fn without_escapes(text: &str) -> String {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            while characters.next().is_some_and(|next| !next.is_ascii_alphabetic()) {}
        } else {
            plain.push(character);
        }
    }
    plain
}
