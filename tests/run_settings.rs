//! What `cfc build` is told of all `RUN` steps, of the cache, and of the stages that are not to use it.

use crate::images::busybox_context;
use crate::support::{Home, busybox, can_sandbox, step_output, steps_done};

const STAGES: &str = r#"FROM scratch AS base
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]

FROM base AS one
RUN echo one >/one

FROM base AS two
RUN echo two >/two

FROM base
COPY --from=one /one /one
COPY --from=two /two /two
"#;

fn home(dockerfile: &str) -> Home {
    let home = Home::new();
    std::fs::create_dir_all(home.path("context")).expect("writable");
    std::fs::copy(busybox().expect("checked before"), home.path("context/busybox")).expect("copied");
    home.write("context/Dockerfile", dockerfile);
    home
}

fn build(home: &Home, arguments: &[&str]) -> String {
    let output = home.run(&[&["build", "context", "-t", "test/settings"], arguments].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn steps_see_the_hosts_the_memory_and_the_limits_that_were_asked_for() {
    if !can_sandbox() {
        return;
    }
    let home = home(&STAGES.replace(
        "RUN echo one >/one",
        "RUN cat /etc/hosts && df -k /dev/shm && echo files $(ulimit -Sn) $(ulimit -Hn) && echo x >/one",
    ));
    let all = |database: &str, shm: &str, files: &str| {
        let (host, limit) = (format!("db:{database}"), format!("nofile={files}"));
        let more = ["--add-host", "six=[fd00::6]", "--add-host", "me:host-gateway"];
        build(&home, &[&["--add-host", &host, "--shm-size", shm, "--ulimit", &limit], &more[..]].concat())
    };
    let said = all("10.1.2.3", "3m", "100:200");
    for line in ["10.1.2.3\tdb", "fd00::6\tsix", "files 100 200", "127.0.0.1\tlocalhost buildkitsandbox"] {
        assert!(step_output(&said).contains(&line), "no `{line}` in\n{said}");
    }
    let gateway = step_output(&said).into_iter().find_map(|line| line.strip_suffix("\tme")).expect("the gateway");
    assert!(gateway.parse::<std::net::IpAddr>().is_ok_and(|address| !address.is_loopback()), "{gateway}");
    let memory = step_output(&said).into_iter().find(|line| line.ends_with("/dev/shm")).expect("a line of df");
    assert_eq!(memory.split_whitespace().nth(1), Some("3072"), "{memory}");

    // As with BuildKit: an address does not tell one step from another, all else does.
    assert!(steps_done(&all("10.9.9.9", "3m", "100:200")).is_empty());
    assert!(!steps_done(&all("10.9.9.9", "4m", "100:200")).is_empty());
    assert!(!steps_done(&all("10.9.9.9", "4m", "100:300")).is_empty());
    let fewer = build(&home, &["--add-host", "db:10.9.9.9", "--shm-size", "4m", "--ulimit", "nofile=100:300"]);
    assert!(!steps_done(&fewer).is_empty());
    for (flag, value, what) in [
        ("--add-host", "db", "is not NAME:ADDRESS"),
        ("--add-host", "db:nowhere", "`nowhere` is not an IP address"),
        ("--shm-size", "lots", "it is not a size"),
        ("--ulimit", "files=3", "there is no limit `files`"),
        ("--ulimit", "nofile=3:2", "above the hard limit"),
    ] {
        let error = home.must_fail(&["build", "context", "-t", "x", flag, value]);
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn a_builds_network_is_that_of_the_steps_that_name_none() {
    if !can_sandbox() {
        return;
    }
    let home = home(
        &STAGES
            .replace(
                "RUN echo one >/one",
                "RUN readlink /proc/self/ns/net && cat /proc/net/fib_trie | grep -c 0.0.0.0/0; echo x >/one",
            )
            .replace("RUN echo two", "RUN --network=none readlink /proc/self/ns/net; echo two"),
    );
    let own = std::fs::read_link("/proc/self/ns/net").expect("readable").display().to_string();
    let count = |said: &str| step_output(said).into_iter().filter(|line| *line == own).count();
    let said = build(&home, &["--network", "host"]);
    assert_eq!(count(&said), 1, "all but the one that asks for none: {said}");
    assert_eq!(count(&build(&home, &["--network", "default"])), 0);
    let said = build(&home, &["--network", "none"]);
    assert_eq!(count(&said), 0);
    assert!(!steps_done(&said).is_empty(), "another network is another step");
}

#[test]
fn only_the_named_stages_are_built_without_cache() {
    if !can_sandbox() {
        return;
    }
    let home = home(STAGES);
    build(&home, &[]);
    assert!(steps_done(&build(&home, &[])).is_empty());
    let said = build(&home, &["--no-cache=one"]);
    assert_eq!(steps_done(&said), ["[one 1/1] RUN echo one >/one"], "{said}");
    let said = build(&home, &["--no-cache=ONE,2"]);
    assert_eq!(steps_done(&said).len(), 2, "{said}");
    assert!(steps_done(&build(&home, &["--no-cache"])).len() > 4);
    let error = home.must_fail(&["build", "context", "-t", "x", "--no-cache=three"]);
    assert!(error.contains("it has no stage `three`") && error.contains("its stages are `base`, `one`"), "{error}");
}

#[test]
fn triggers_of_a_base_image_run_once_and_may_copy_from_the_childs_stages() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let context = busybox_context(&home);
    home.must(&["build", &context, "-t", "tools"]);
    let image = |name: &str, dockerfile: &str, arguments: &[&str]| {
        let directory = format!("{name}-context");
        home.write(&format!("{directory}/file"), name);
        home.write(&format!("{directory}/Dockerfile"), dockerfile);
        let output = home.run(&[&["build", &directory, "-t", name], arguments].concat());
        (output.status.success(), home.redact(&String::from_utf8_lossy(&output.stderr)))
    };
    let builds = |name: &str, dockerfile: &str, arguments: &[&str]| {
        let (is_good, said) = image(name, dockerfile, arguments);
        assert!(is_good, "{said}");
        said
    };
    builds(
        "grandparent",
        "FROM tools\nUSER 0\nWORKDIR /t\nENTRYPOINT []\nONBUILD ARG NAME=nobody\nONBUILD COPY file /t/$NAME\n\
         ONBUILD COPY --from=assets /asset /t/asset\nONBUILD RUN echo $NAME >>/t/triggered\n",
        &[],
    );
    builds(
        "parent",
        "FROM tools AS assets\nUSER 0\nRUN echo asset >/asset\nFROM grandparent\nONBUILD RUN echo parents >>/t/triggered\n",
        &["--build-arg", "NAME=somebody"],
    );
    builds("child", "FROM parent\nCMD cat /t/*\n", &[]);
    assert_eq!(
        home.must(&["run", "child", "cat", "/t/triggered", "/t/asset", "/t/somebody"]),
        "somebody\nparents\nasset\nparent"
    );
    // Nothing is left of the triggers, and each names the line of the FROM that it belongs to.
    let said = builds("grandchild", "FROM child\nCMD true\n", &[]);
    assert!(!said.contains("ONBUILD"), "{said}");
    let (is_good, said) = image("orphan", "# no such stage\nFROM grandparent\n", &[]);
    assert!(!is_good && said.contains("Dockerfile:2"), "{said}");
    assert!(said.contains("`assets`"), "{said}");
}
