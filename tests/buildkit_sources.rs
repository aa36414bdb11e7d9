//! What a BuildKit daemon fetches itself (addresses, repositories) and what it gets from a layout of ours is what the native
//! executor makes of the same Dockerfile.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::add::{Server, git, repository};
use crate::engine::Engine;
use crate::flatten::flatten;
use crate::support::{Ended, Home, can_sandbox, free_port, has_program, wait_for};

#[test]
fn an_engines_buildkit_fetches_what_we_would() {
    if !can_sandbox() || !has_program("dockerd") || !has_program("git") {
        return;
    }
    let home = Home::new();
    let Some(engine) = Engine::start(home.path("engine")) else { return };
    hold(&home, &engine);
}

#[test]
fn a_whole_buildkit_fetches_what_we_would() {
    if !can_sandbox() || !has_program("git") {
        return;
    }
    let home = Home::new();
    let Some(engine) = Engine::start_current(home.path("engine")) else { return };
    hold(&home, &engine);
}

/// Serves repositories below `directory` with `git daemon`: a daemon fetches without history, which a server of mere files
/// does not offer. With the address that they are below.
fn serve_repositories(directory: &Path) -> (Ended, String) {
    let port = free_port();
    let programs = Command::new("git").arg("--exec-path").output().expect("git runs").stdout;
    let programs = PathBuf::from(String::from_utf8(programs).expect("a path").trim());
    // Not by way of `git`, which would not end it.
    let process = Command::new(programs.join("git-daemon"))
        .args(["--reuseaddr", "--export-all", "--listen=127.0.0.1"])
        .arg(format!("--port={port}"))
        .arg(format!("--base-path={}", directory.display()))
        .arg(directory)
        .stderr(Stdio::null())
        .spawn()
        .expect("git starts");
    let process = Ended(process);
    wait_for("git daemon", || TcpStream::connect(("127.0.0.1", port)).ok());
    (process, format!("git://127.0.0.1:{port}"))
}

fn hold(home: &Home, engine: &Engine) {
    home.write("made/name", "in a layout\n");
    home.write("made/Dockerfile", "FROM scratch\nCOPY name /\nENV NAME=yes\n");
    home.must(&["build", "made", "-t", "made:1", "--oci-layout", "made-layout"]);
    home.write("work/top", "first\n");
    home.write("work/sub/inner", "inner\n");
    let work = home.path("work");
    repository(&work);
    git(&work, &["tag", "v1"]);
    home.write("work/top", "second\n");
    git(&work, &["commit", "-qam", "two"]);
    home.write("served/dir/file.txt", "over the network\n");
    git(home.path("").as_path(), &["clone", "-q", "--bare", "work", "served/repo.git"]);
    let server = Server::start(home.path("served"));
    let (_daemon, repositories) = serve_repositories(&home.path("served"));
    let (file, repository) = (server.address("dir/file.txt"), format!("{repositories}/repo.git"));
    let sum = cfc_oci::Digest::of(b"over the network\n");
    // An old daemon takes a repository without a reference for one of a branch `master`, and says so where there is none.
    let dockerfile = format!(
        "FROM base AS made\n\
         COPY --from=base /name /copied-$NAME\n\
         FROM scratch\n\
         COPY --from=made / /\n\
         ADD {file} /named/\n\
         ADD --chown=3:4 {file} /owned\n\
         ADD --checksum={sum} {file} /checked\n\
         ADD {repository}#main /all\n\
         ADD {repository}#v1:sub /part\n\
         COPY --from=code . /code/\n"
    );
    home.write("context/Dockerfile", &dockerfile);
    let base = format!("base=oci-layout://{}", home.path("made-layout").display());
    let code = format!("code={repository}#v1");
    let files = |layout: &str, more: &[&str]| -> Vec<String> {
        let contexts = ["--build-context", &base, "--build-context", &code, "--oci-layout", layout];
        home.must(&[&["build", "context", "-t", "app"], &contexts[..], more].concat());
        flatten(&home.path(layout)).files.into_values().collect()
    };
    let native = files("native", &[]);
    assert_eq!(
        native,
        [
            "d 0755 0:0 /all",
            "d 0755 0:0 /all/sub",
            "f 0644 0:0 /all/sub/inner 6 \"inner\\n\"",
            "f 0644 0:0 /all/top 7 \"second\\n\"",
            "f 0600 0:0 /checked 17 \"over the network\\n\"",
            "d 0755 0:0 /code",
            "d 0755 0:0 /code/sub",
            "f 0644 0:0 /code/sub/inner 6 \"inner\\n\"",
            "f 0644 0:0 /code/top 6 \"first\\n\"",
            "f 0644 0:0 /copied-yes 12 \"in a layout\\n\"",
            "f 0644 0:0 /name 12 \"in a layout\\n\"",
            "d 0755 0:0 /named",
            "f 0600 0:0 /named/file.txt 17 \"over the network\\n\"",
            "f 0600 3:4 /owned 17 \"over the network\\n\"",
            "d 0755 0:0 /part",
            "f 0644 0:0 /part/inner 6 \"inner\\n\"",
        ]
    );
    assert_eq!(files("lowered", &["--builder", "buildkit", "--buildkit-addr", &engine.buildkit_address()]), native);
}
