//! What a user is told when something is wrong: each message as it is, exit code 1, and nothing half made.

use crate::support::{Home, Platform, can_sandbox, tools};

/// A project of one container; `change` edits its config.
fn project(home: &Home, change: impl FnOnce(String) -> String) {
    let config = r#"{
  "name": "demo", "main": "src/index.js", "compatibility_date": "2025-10-03",
  "containers": [ { "class_name": "Demo", "image": "./Dockerfile", "max_instances": 2 } ],
  "durable_objects": { "bindings": [ { "class_name": "Demo", "name": "DEMO" } ] },
  "migrations": [ { "new_sqlite_classes": ["Demo"], "tag": "v1" } ]
}"#;
    home.write("demo/wrangler.jsonc", &change(config.to_string()));
    home.write("demo/Dockerfile", "FROM scratch\nCOPY hello /hello\nCMD [\"/hello\"]\n");
    home.write("demo/hello", "hello\n");
    home.write("demo/src/index.js", WORKER);
}

const WORKER: &str = r#"import { Container, getContainer } from "@cloudflare/containers";
export class Demo extends Container { defaultPort = 4000; }
export default { fetch(request, env) { return getContainer(env.DEMO, "one").fetch(request); } };
"#;

/// Whether `directory` holds no image: what a failed command must leave behind.
fn has_no_image(home: &Home) -> bool {
    let references = home.data().join("store/refs");
    !references.exists() || std::fs::read_dir(references).is_ok_and(|mut entries| entries.next().is_none())
}

#[test]
fn without_a_config_the_places_looked_at_are_named() {
    let home = Home::new();
    std::fs::create_dir(home.path("empty")).expect("writable");
    insta::assert_snapshot!(home.must_fail(&["build", "empty"]));
}

#[test]
fn an_unknown_class_is_named_with_the_known_ones() {
    let home = Home::new();
    project(&home, |config| config.replacen("\"class_name\": \"Demo\"", "\"class_name\": \"Dmeo\"", 1));
    insta::assert_snapshot!(home.must_fail(&["build", "demo"]));
    assert!(has_no_image(&home));
}

#[test]
fn a_missing_dockerfile_is_named() {
    let home = Home::new();
    project(&home, |config| config);
    std::fs::remove_file(home.path("demo/Dockerfile")).expect("it was there");
    insta::assert_snapshot!(home.must_fail(&["build", "demo"]));
}

#[test]
fn a_directory_is_not_an_image() {
    let home = Home::new();
    project(&home, |config| config.replace("./Dockerfile", "./src"));
    insta::assert_snapshot!(home.must_fail(&["build", "demo"]));
}

#[test]
fn a_bad_instance_type_is_named_with_the_good_ones() {
    let home = Home::new();
    project(&home, |config| config.replace("\"max_instances\": 2", "\"instance_type\": \"huge\""));
    insta::assert_snapshot!(home.must_fail(&["build", "demo"]));
}

#[test]
fn a_config_that_is_not_json_is_shown_where() {
    let home = Home::new();
    project(&home, |config| config.replace("\"main\"", "main"));
    insta::assert_snapshot!(home.must_fail(&["build", "demo"]));
}

#[test]
fn an_unknown_instruction_is_named_with_file_and_line() {
    let home = Home::new();
    project(&home, |config| config);
    home.write("demo/Dockerfile", "FROM scratch\nCOPPY hello /hello\n");
    insta::assert_snapshot!(home.must_fail(&["build", "demo"]));
    assert!(has_no_image(&home));
}

#[test]
fn an_instruction_that_is_not_supported_yet_is_named() {
    let home = Home::new();
    project(&home, |config| config);
    home.write("demo/Dockerfile", "FROM scratch\nCOPY hello /hello\nRUN --device=x true\n");
    insta::assert_snapshot!(home.must_fail(&["build", "demo"]));
}

#[test]
fn a_source_that_is_not_in_the_context_is_named() {
    let home = Home::new();
    project(&home, |config| config);
    home.write("demo/Dockerfile", "FROM scratch\nCOPY missing /hello\n");
    insta::assert_snapshot!(home.must_fail(&["build", "demo"]));
    assert!(has_no_image(&home));
}

#[test]
fn a_step_that_fails_is_shown_with_its_output() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let busybox = crate::support::busybox().expect("checked above");
    project(&home, |config| config);
    std::fs::copy(busybox, home.path("demo/busybox")).expect("copied");
    home.write("demo/Dockerfile", "FROM scratch\nCOPY busybox /bin/sh\nRUN echo one; echo two >&2; exit 3\n");
    insta::assert_snapshot!(home.must_fail(&["build", "demo"]));
    assert!(has_no_image(&home));
}

#[test]
fn without_a_server_a_deploy_says_how_to_start_one() {
    let home = Home::new();
    project(&home, |config| config);
    insta::assert_snapshot!(home.must_fail(&["deploy", "demo"]));
}

#[test]
fn a_port_in_use_is_named_with_the_flag_that_changes_it() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let said = home.must_fail(&["serve", "--port", &port]);
    insta::assert_snapshot!(said.replace(&port, "[PORT]"));
    assert!(!home.data().join("serve.json").exists());
}

#[test]
fn two_servers_do_not_share_a_data_directory() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let platform = Platform::start(&home);
    let said = home.must_fail(&["serve", "--port", "0"]);
    insta::assert_snapshot!(said.replace(&platform.pid().to_string(), "[PID]"));
}

#[test]
fn a_worker_that_does_not_compile_is_shown() {
    if !can_sandbox() || tools().is_none() {
        return;
    }
    let home = Home::new();
    project(&home, |config| config);
    home.write("demo/src/index.js", "export default {\n  fetch() { return new Response(\"unfinished)\n");
    let platform = Platform::start(&home);
    insta::assert_snapshot!(home.must_fail(&["deploy", "demo"]));
    assert_nothing_deployed(&platform);
}

#[test]
fn a_container_that_exits_at_once_is_not_deployed() {
    if !can_sandbox() || tools().is_none() {
        return;
    }
    let home = Home::new();
    busybox_project(&home, "CMD [\"sh\", \"-c\", \"echo cannot find my configuration; exit 7\"]");
    let platform = Platform::start(&home);
    let said = home.must_fail(&["deploy", "demo"]);
    insta::assert_snapshot!(without_progress(&said));
    assert_nothing_deployed(&platform);
}

#[test]
fn a_container_that_never_listens_is_not_deployed() {
    if !can_sandbox() || tools().is_none() {
        return;
    }
    let home = Home::new();
    busybox_project(&home, "EXPOSE 4000\nCMD [\"sh\", \"-c\", \"echo thinking; sleep 1000\"]");
    let platform = Platform::start(&home);
    let said = home.must_fail(&["deploy", "demo"]);
    insta::assert_snapshot!(without_progress(&said));
    assert_nothing_deployed(&platform);
}

#[test]
fn a_container_that_listens_on_another_port_is_not_deployed() {
    if !can_sandbox() || tools().is_none() {
        return;
    }
    let home = Home::new();
    busybox_project(&home, "EXPOSE 4000\nCMD [\"sh\", \"-c\", \"exec httpd -f -p 3000\"]");
    let platform = Platform::start(&home);
    let said = home.must_fail(&["deploy", "demo"]);
    insta::assert_snapshot!(without_progress(&said));
    assert_nothing_deployed(&platform);
}

#[test]
fn without_a_trial_such_a_container_is_deployed_all_the_same() {
    if !can_sandbox() || tools().is_none() {
        return;
    }
    let home = Home::new();
    busybox_project(&home, "EXPOSE 4000\nCMD [\"sh\", \"-c\", \"exit 7\"]");
    let platform = Platform::start(&home);
    home.must(&["deploy", "demo", "--skip-trial"]);
    let (status, body) = platform.ask("demo", "x");
    assert_eq!(status, 500, "{body}");
    assert!(body.contains("exit code: 7"), "the class does not name the exit code: {body}");
}

fn busybox_project(home: &Home, last_lines: &str) {
    project(home, |config| config);
    std::fs::copy(crate::support::busybox().expect("checked before"), home.path("demo/busybox")).expect("copied");
    home.write("demo/Dockerfile", &format!("FROM scratch\nCOPY busybox /bin/sh\n{last_lines}\n"));
}

/// What was said from the failure on.
fn without_progress(said: &str) -> String {
    let start = said.find("error:").unwrap_or_else(|| panic!("no error in: {said}"));
    redact_duration(&redact_digests(&said[start..]))
}

/// `it ended after 1.5ms` without the time.
fn redact_duration(text: &str) -> String {
    let Some((before, rest)) = text.split_once("it ended after ") else { return text.to_string() };
    let after = rest.split_once(' ').map_or("", |(_, after)| after);
    format!("{before}it ended after [TIME] {after}")
}

/// `text` with every digest called `[DIGEST]`.
fn redact_digests(text: &str) -> String {
    let mut parts = text.split("sha256:");
    let mut result = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_hexdigit());
        result.push_str("sha256:[DIGEST]");
        result.push_str(rest);
    }
    result
}

fn assert_nothing_deployed(platform: &Platform) {
    let listed = platform.home.must(&["containers", "list", "--json"]);
    assert_eq!(listed, "[]");
    let instances = platform.home.instance_directories();
    assert!(instances.is_empty(), "instances were left behind: {instances:?}");
    let (status, _) = platform.ask("demo", "x");
    assert_eq!(status, 404, "the gateway has a route to a Worker that was not deployed");
}
