//! Where state goes, and what is decided by flag, environment, file and default.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Home, Platform, can_sandbox, http};

fn build_one(home: &Home) {
    home.write("one/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
}

#[test]
fn the_flag_wins_over_the_environment_and_that_over_the_file() {
    let home = Home::new();
    build_one(&home);
    let in_file = home.path("from-file");
    home.write("config.toml", &format!("data = \"{}\"\n", in_file.display()));
    let build = |command: &mut std::process::Command| {
        let output = command.args(["build", "one", "-t", "one"]).output().expect("cfc runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    build(home.cfc().env_remove("CFC_DATA"));
    assert!(in_file.join("store").is_dir(), "the file was not used");
    build(&mut home.cfc());
    assert!(home.data().join("store").is_dir(), "the environment was not used");
    let flag = home.path("from-flag");
    build(home.cfc().arg("--data").arg(&flag));
    assert!(flag.join("store").is_dir(), "the flag was not used");
}

#[test]
fn without_any_of_them_data_goes_to_the_xdg_directory_or_var_lib() {
    let home = Home::new();
    let said =
        home.cfc().env_remove("CFC_DATA").env("HOME", home.path("h")).args(["push", "x:1"]).output().expect("cfc runs");
    let said = String::from_utf8_lossy(&said.stderr).to_string();
    let expected = if rustix::process::geteuid().is_root() {
        "/var/lib/cfc".to_string()
    } else {
        home.path("h/.local/share/cfc").display().to_string()
    };
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn a_data_directory_that_is_open_to_others_is_closed() {
    let home = Home::new();
    build_one(&home);
    let mode = || std::fs::metadata(home.data()).expect("made").permissions().mode() & 0o777;
    let set_mode = |mode: u32| {
        std::fs::set_permissions(home.data(), std::fs::Permissions::from_mode(mode)).expect("writable");
    };
    home.must(&["build", "one", "-t", "one"]);
    assert_eq!(mode(), 0o700);
    // As an earlier `cfc setup` made it.
    set_mode(0o755);
    let output = home.run(&["build", "one", "-t", "one"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("open to other users"), "{said}");
    assert_eq!(mode(), 0o700);
    // A group that somebody let in stays.
    set_mode(0o750);
    home.must(&["build", "one", "-t", "one"]);
    assert_eq!(mode(), 0o750);
}

#[test]
fn a_directory_of_other_things_is_not_closed_but_refused() {
    let home = Home::new();
    build_one(&home);
    home.write("shared/of-others", "");
    let shared = home.path("shared");
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o755)).expect("writable");
    let said = home.must_fail(&["--data", &shared.display().to_string(), "build", "one", "-t", "one"]);
    assert!(said.contains("`[HOME]/shared` is open to other users") && said.contains("--data DIR"), "{said}");
    assert_eq!(shared.metadata().expect("there").permissions().mode() & 0o777, 0o755);
}

#[test]
fn an_unknown_key_in_the_file_is_an_error() {
    let home = Home::new();
    home.write("config.toml", "dat = \"/x\"\n");
    insta::assert_snapshot!(home.must_fail(&["doctor"]));
}

#[test]
fn the_token_is_private_and_needed() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let platform = Platform::start(&home);
    let token_file = home.data().join("token");
    let mode = std::fs::metadata(&token_file).expect("made").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let path = "/client/v4/accounts/0123456789abcdef0123456789abcdef/containers/dash/applications";
    let (status, _) =
        http(&platform.address("control"), &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    assert!(status == 401 || status == 403, "without a token: {status}");
    let token = std::fs::read_to_string(&token_file).expect("readable");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
        token.trim()
    );
    let (status, _) = http(&platform.address("control"), &request);
    assert_eq!(status, 200);
}

#[test]
fn a_second_start_keeps_the_token() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    Platform::start(&home).stop();
    let first = std::fs::read(home.data().join("token")).expect("made");
    Platform::start(&home).stop();
    assert_eq!(std::fs::read(home.data().join("token")).expect("kept"), first);
    assert!(!home.data().join("serve.json").exists(), "the addresses of a server that ended are still there");
}

#[test]
fn the_registry_runs_alone() {
    let home = Home::new();
    let (mut server, address) = crate::registry::serve(&home);
    let (status, _) = http(&address, "GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(status, 200);
    server.end();
}
