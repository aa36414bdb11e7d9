//! Images that cfc builds, as other tools see them; images that others push, as cfc runs them.

use std::process::Command;

use crate::support::{Home, Platform, busybox, can_sandbox, has_program};

/// A context with a busybox image: links to every applet, made by a RUN.
pub fn busybox_context(home: &Home) -> String {
    let context = home.path("context");
    std::fs::create_dir_all(&context).expect("writable");
    std::fs::copy(busybox().expect("checked before"), context.join("busybox")).expect("copied");
    home.write(
        "context/Dockerfile",
        r#"FROM scratch AS base
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]

FROM base AS made
ARG GREETING=hello
WORKDIR /made
RUN echo "$GREETING" >greeting && mkdir sub && ln greeting sub/linked && rm /bin/vi

FROM base
LABEL org.example.kind=test
ENV PLACE=/srv
WORKDIR $PLACE
COPY --from=made --chown=12:34 /made/ ./
USER 12:34
EXPOSE 8080
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["cat greeting; id -u"]
"#,
    );
    context.display().to_string()
}

pub fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn skopeo_and_umoci_accept_what_is_built() {
    if !can_sandbox() || !has_program("skopeo") || !has_program("umoci") {
        return;
    }
    let home = Home::new();
    let context = busybox_context(&home);
    let layout = home.path("layout").display().to_string();
    home.must(&["build", &context, "-t", "test/app:1", "--oci-layout", &layout]);
    let inspected = output_of(Command::new("skopeo").args(["inspect", "--config", &format!("oci:{layout}:1")]));
    let config: serde_json::Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(config["config"]["User"], "12:34");
    assert_eq!(config["config"]["WorkingDir"], "/srv");
    assert_eq!(config["config"]["Labels"]["org.example.kind"], "test");
    assert!(config["config"]["ExposedPorts"]["8080/tcp"].is_object(), "{config}");
    let bundle = home.path("bundle");
    output_of(Command::new("umoci").args(["unpack", "--image", &format!("{layout}:1")]).arg(&bundle));
    let greeting = std::fs::read_to_string(bundle.join("rootfs/srv/greeting")).expect("copied from the other stage");
    assert_eq!(greeting, "hello\n");
    assert!(bundle.join("rootfs/bin/vi").symlink_metadata().is_ok(), "a file removed in another stage is gone here");
}

#[test]
fn the_same_context_gives_the_same_digest() {
    if !can_sandbox() {
        return;
    }
    let digests: Vec<String> = (0..2)
        .map(|_| {
            let home = Home::new();
            let context = busybox_context(&home);
            home.must(&["build", &context, "-t", "test/app:1"])
        })
        .collect();
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn a_run_prints_what_the_image_prints_and_exits_as_it_does() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let context = busybox_context(&home);
    home.must(&["build", &context, "-t", "app", "--build-arg", "GREETING=good morning"]);
    assert_eq!(home.must(&["run", "app"]), "good morning\n12");
    let output = home.run(&["run", "-e", "A=b", "app", "echo $A $PLACE; exit 41"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "b /srv\n");
    assert_eq!(output.status.code(), Some(41));
    let output = home.run(&["run", "app", "kill -9 $$"]);
    assert_eq!(output.status.code(), Some(137));
}

#[test]
fn a_run_of_a_command_that_cannot_be_executed_exits_as_a_shell_does() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let context = busybox_context(&home);
    home.write("context/Dockerfile", "FROM scratch\nCOPY busybox /bin/sh\nCMD [\"/no/such/command\"]\n");
    home.must(&["build", &context, "-t", "plain"]);
    for (command, code, text) in [
        (&[][..], 127, "command `/no/such/command` not found"),
        (&["no-such-command"], 127, "command `no-such-command` not found"),
        (&["/etc/hosts"], 126, "command `/etc/hosts` cannot be executed"),
    ] {
        let output = home.run(&[&["run", "plain"], command].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(text), "{said}");
    }
}

#[test]
fn a_run_in_a_terminal_is_shown_key_by_key_by_each_runtime() {
    let Some(busybox) = crate::support::busybox().filter(|_| can_sandbox() && has_program("python3")) else { return };
    let home = Home::new();
    let context = busybox_context(&home);
    std::fs::copy(busybox, home.path("context/busybox")).expect("copied");
    let dockerfile = "FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/busybox\nUSER 1000\n";
    home.write("context/Dockerfile", dockerfile);
    home.must(&["build", &context, "-t", "shell"]);
    for runtime in ["cfc", "runc", "crun"] {
        if runtime == "cfc" || has_program(runtime) {
            crate::exec::converse_with(&home, &["run", "-it", "--runtime", runtime, "shell"]);
        }
    }
    let said = home.must_fail(&["run", "-it", "shell", "/bin/sh"]);
    assert!(said.contains("the input is no terminal") && said.contains("hint: "), "{said}");
}

#[test]
fn a_run_has_the_disk_of_its_instance_type() {
    let has_disks = || !cfc_sandbox::check_host().iter().any(|finding| finding.what.contains("disks have no limit"));
    if !can_sandbox() || !has_disks() {
        return;
    }
    let home = Home::new();
    let context = busybox_context(&home);
    home.write("context/Dockerfile", "FROM scratch\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\n");
    home.must(&["build", &context, "-t", "plain"]);
    let script = "busybox fallocate -l 1000000000 /one && busybox fallocate -l 1500000000 /two";
    let output = home.run(&["run", "--instance-type", "lite", "plain", "/bin/sh", "-c", script]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("/two") && said.contains("No space left on device"), "{said}");
}

#[test]
fn a_container_opens_the_outputs_of_a_run_anew_whatever_they_are() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    home.must(&["build", &busybox_context(&home), "-t", "app"]);
    let script = "echo one; echo two >/dev/stdout; echo three >/dev/stderr; echo four >/proc/self/fd/2";
    let path = home.write("output", "");
    let file = std::fs::File::options().append(true).open(&path).expect("opens");
    let mut command = home.cfc();
    command.args(["run", "app", script]).stdout(file.try_clone().expect("a file")).stderr(file);
    assert!(command.status().expect("cfc runs").success());
    assert_eq!(std::fs::read_to_string(&path).expect("readable"), "one\ntwo\nthree\nfour\n");
}

#[test]
fn a_second_build_is_cached_and_a_third_without_cache_is_not() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let context = busybox_context(&home);
    let steps = |arguments: &[&str]| {
        let output = home.run(&[&["build", &context, "-t", "app"], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).to_string();
        assert!(output.status.success(), "{said}");
        crate::support::steps_done(&said).len()
    };
    assert!(steps(&[]) > 0);
    assert_eq!(steps(&[]), 0);
    assert!(steps(&["--no-cache"]) > 0);
}

#[test]
fn what_is_pushed_is_pulled_by_skopeo_and_what_skopeo_pushes_is_run() {
    if !can_sandbox() || !has_program("skopeo") {
        return;
    }
    let home = Home::new();
    let platform = Platform::start(&home);
    let context = busybox_context(&home);
    home.must(&["build", &context, "-t", "test/app:1"]);
    let pushed = home.must(&["push", "test/app:1"]);
    let registry = platform.address("registry");
    assert!(pushed.starts_with(&format!("{registry}/test/app@sha256:")), "{pushed}");
    let copied = home.path("copied");
    let source = format!("docker://{registry}/test/app:1");
    output_of(
        Command::new("skopeo")
            .args(["copy", "--src-tls-verify=false", &source])
            .arg(format!("oci:{}:1", copied.display())),
    );
    let again = format!("docker://{registry}/other/app:2");
    output_of(
        Command::new("skopeo")
            .args(["copy", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:1", copied.display()))
            .arg(&again),
    );
    let other = Home::new();
    assert_eq!(other.must(&["run", &format!("{registry}/other/app:2")]), "hello\n12");
}

#[test]
fn a_push_uploads_only_what_is_missing() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let _platform = Platform::start(&home);
    let context = busybox_context(&home);
    home.must(&["build", &context, "-t", "test/app:1"]);
    let first = home.must(&["push", "test/app:1"]);
    let blobs = count_files(&home.data().join("bucket/registry"));
    let second = home.must(&["push", "test/app:1"]);
    assert_eq!(first, second);
    assert_eq!(count_files(&home.data().join("bucket/registry")), blobs);
}

fn count_files(directory: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { count_files(&entry.path()) } else { 1 }).sum()
}

#[test]
fn a_foreign_registry_takes_the_image_too() {
    if !can_sandbox() || !has_program("docker-registry") || !has_program("skopeo") {
        return;
    }
    let home = Home::new();
    let port = crate::support::free_port();
    let root = home.path("foreign");
    let config = home.write(
        "foreign.yml",
        &format!("version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n", root.display()),
    );
    let log = std::fs::File::create(home.path("foreign.log")).expect("writable");
    let mut server = crate::support::Ended(
        Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("it runs"),
    );
    crate::support::wait_for("docker-registry to listen", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    let context = busybox_context(&home);
    home.must(&["build", &context, "-t", "test/app:1"]);
    let pushed = home.must(&["push", "test/app:1", &format!("127.0.0.1:{port}/moved/app:3")]);
    output_of(Command::new("skopeo").args(["inspect", "--tls-verify=false", &format!("docker://{pushed}")]));
    server.end();
}

#[test]
fn names_are_listed_and_removed_and_what_they_named_is_pruned() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let context = busybox_context(&home);
    home.must(&["build", &context, "-t", "one/app:1", "-t", "one/app:2", "-t", "other"]);
    let names = |home: &Home| -> Vec<String> {
        let listed: serde_json::Value = serde_json::from_str(&home.must(&["images", "list", "--json"])).expect("JSON");
        let images = listed.as_array().expect("a list");
        assert!(images.iter().all(|image| image["size_bytes"].as_u64().is_some_and(|size| size > 1000)), "{listed}");
        images.iter().map(|image| image["name"].as_str().expect("a name").to_string()).collect()
    };
    assert_eq!(names(&home), ["one/app:1", "one/app:2", "other:latest"]);
    let table = home.must(&["image", "ls"]);
    assert!(table.starts_with("NAME     TAG     DIGEST        SIZE\none/app  1       "), "{table}");
    // All or none.
    let said = home.must_fail(&["images", "remove", "other", "one/app:3"]);
    assert!(said.contains("there is no image `one/app:3`") && said.contains("cfc images list"), "{said}");
    assert_eq!(names(&home).len(), 3);
    assert_eq!(home.must(&["images", "rm", "other", "one/app:1"]), "other:latest\none/app:1");
    assert_eq!(names(&home), ["one/app:2"]);
    home.must(&["prune", "--all"]);
    home.must(&["run", "one/app:2", "true"]);
    home.must(&["images", "remove", "one/app:2"]);
    assert!(home.must(&["prune", "--all"]).contains("Total: "));
    assert_eq!(home.must(&["images", "list"]), "NAME  TAG  DIGEST  SIZE");
    let blobs = std::fs::read_dir(home.data().join("store/blobs/sha256")).expect("lists").count();
    assert_eq!(blobs, 0, "nothing needs them any more");
}

#[test]
fn habits_from_docker_are_understood() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    home.write("context/dockerfile", "FROM scratch\nCOPY file /\n");
    home.write("context/file", "x");
    let arguments =
        ["build", "context", "-t", "app", "--load", "--provenance=false", "--sbom=false", "--label", "empty"];
    home.must(&arguments);
    let store = cfc_store::Store::open(&home.data().join("store")).expect("a store");
    let image = store.images().resolve(&"app".parse().expect("a name")).expect("readable").expect("there");
    let config = serde_json::to_value(store.images().load(&image).expect("loads").config).expect("JSON");
    assert_eq!(config["config"]["Labels"], serde_json::json!({"empty": ""}));
    // Where both are, the usual one counts.
    home.write("context/Dockerfile", "FROM scratch\nCOPY file /other\n");
    home.must(&["build", "context", "-t", "app", "-o", "out"]);
    assert!(home.path("out/other").exists());
    let output = home.run(&["build", "context", "-t", "app", "--provenance=true"]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("[possible values: false]"));
    let said = home.must_fail(&["build", "context"]);
    assert!(said.contains("cannot find a project") && said.contains("-t NAME:TAG"), "{said}");
}
