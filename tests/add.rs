//! `ADD` from the network: files over HTTP, and Git repositories, from a server of our own on the loopback.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::flatten::flatten;
use crate::support::{Home, has_program};

/// Serves the files of a directory, and remembers what it was asked for.
pub struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub fn start(root: PathBuf) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let port = listener.local_addr().expect("is bound").port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, noted) = (root.clone(), noted.clone());
                // One that is not read to its end is in nobody's way.
                std::thread::spawn(move || Server::answer(stream, &root, &noted));
            }
        });
        Server { port, asked }
    }

    fn answer(stream: TcpStream, root: &Path, asked: &Mutex<Vec<String>>) {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        let _ = reader.read_line(&mut line);
        let mut header = line.clone();
        while header.trim() != "" {
            header.clear();
            let _ = reader.read_line(&mut header);
        }
        let path = line.split_whitespace().nth(1).unwrap_or_default().split('?').next().unwrap_or_default();
        asked.lock().expect("no panic").push(path.to_string());
        let answer = match std::fs::read(root.join(path.trim_start_matches('/'))) {
            Ok(body) => {
                let modified = "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT";
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{modified}\r\n", body.len());
                [head.as_bytes(), b"Connection: close\r\n\r\n", &body].concat()
            }
            Err(_) => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
        };
        let _ = reader.into_inner().write_all(&answer);
    }

    pub fn address(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    pub fn asked(&self) -> usize {
        self.asked.lock().expect("no panic").len()
    }
}

/// Builds a Dockerfile with an empty context and lists the image's files.
fn files(home: &Home, dockerfile: &str) -> Vec<String> {
    files_with(home, dockerfile, &[])
}

fn files_with(home: &Home, dockerfile: &str, arguments: &[&str]) -> Vec<String> {
    let (context, layout) = (home.path("context"), home.path("layout"));
    std::fs::create_dir_all(&context).expect("writable");
    let _ = std::fs::remove_dir_all(&layout);
    home.write("context/Dockerfile", dockerfile);
    let (context, shown) = (context.display().to_string(), layout.display().to_string());
    home.must(&[&["build", &context, "-t", "test/add", "--oci-layout", &shown], arguments].concat());
    flatten(&layout).files.into_values().collect()
}

fn refusal(home: &Home, dockerfile: &str) -> String {
    home.write("context/Dockerfile", dockerfile);
    home.must_fail(&["build", &home.path("context").display().to_string(), "-t", "test/add"])
}

pub fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        crate::support::skipped("layers are unpacked as root");
    }
    is_root
}

#[test]
fn a_file_of_the_network_is_added_by_its_name_with_its_time_and_for_nobody_else() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    home.write("served/dir/file.txt", "over the network\n");
    let server = Server::start(home.path("served"));
    let url = server.address("dir/file.txt?token=x");
    let dockerfile =
        format!("FROM scratch\nADD {url} /named/\nADD {url} /renamed\nADD --chmod=644 --chown=3:4 {url} /open\n");
    let expected = [
        "d 0755 0:0 /named",
        "f 0600 0:0 /named/file.txt 17 \"over the network\\n\"",
        "f 0644 3:4 /open 17 \"over the network\\n\"",
        "f 0600 0:0 /renamed 17 \"over the network\\n\"",
    ];
    assert_eq!(files(&home, &dockerfile), expected);
    // Its time is the server's, where the image is younger.
    files_with(&home, &dockerfile, &["--build-arg", "SOURCE_DATE_EPOCH=1700000000"]);
    let listed = Command::new("sh")
        .args(["-c", "for b in layout/blobs/sha256/*; do TZ=UTC tar --full-time -tvzf $b 2>/dev/null; done; true"])
        .current_dir(home.path(""))
        .output()
        .expect("sh runs");
    let listed = String::from_utf8_lossy(&listed.stdout).to_string();
    assert!(listed.contains("1994-11-06 08:49:37 renamed"), "{listed}");

    let missing = refusal(&home, &format!("FROM scratch\nADD {} /x\n", server.address("nothing")));
    assert!(missing.contains("the server answered 404"), "{missing}");
}

#[test]
fn a_checksum_is_held_against_the_file_and_saves_asking_again() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    home.write("served/f", "content\n");
    let server = Server::start(home.path("served"));
    let url = server.address("f");
    let right = cfc_oci::Digest::of(b"content\n");
    let wrong = cfc_oci::Digest::of(b"other\n");
    let error = refusal(&home, &format!("FROM scratch\nADD --checksum={wrong} {url} /f\n"));
    assert!(error.contains(&format!("expected {wrong}, found {right}")), "{error}");

    let dockerfile = format!("FROM scratch\nADD --checksum={right} {url} /f\n");
    assert_eq!(files(&home, &dockerfile), ["f 0600 0:0 /f 8 \"content\\n\""]);
    let asked = server.asked();
    assert_eq!(files(&home, &dockerfile), ["f 0600 0:0 /f 8 \"content\\n\""]);
    assert_eq!(server.asked(), asked);

    // Without one, a file that has changed is seen.
    let dockerfile = format!("FROM scratch\nADD {url} /f\n");
    files(&home, &dockerfile);
    home.write("served/f", "changed\n");
    assert_eq!(files(&home, &dockerfile), ["f 0600 0:0 /f 8 \"changed\\n\""]);
}

#[test]
fn an_archive_of_the_network_is_unpacked_where_it_is_asked_for() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    home.write("in/f", "packed\n");
    std::fs::create_dir_all(home.path("served")).expect("writable");
    let packed = Command::new("tar")
        .args(["--numeric-owner", "--owner=7", "--group=8", "-czf", "served/a.tgz", "-C", "in", "f"])
        .current_dir(home.path(""))
        .status();
    assert!(packed.expect("tar runs").success());
    let server = Server::start(home.path("served"));
    let url = server.address("a.tgz");
    let files = files(&home, &format!("FROM scratch\nADD {url} /kept/\nADD --unpack {url} /unpacked/\n"));
    assert!(files[1].starts_with("f 0600 0:0 /kept/a.tgz"), "{files:?}");
    assert_eq!(files[2..], ["d 0755 0:0 /unpacked", "f 0644 7:8 /unpacked/f 7 \"packed\\n\""]);
}

/// Runs git in `directory` as somebody whom every machine has.
pub fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "init.defaultBranch=main"])
        .args(arguments)
        .current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .expect("git runs");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

/// Makes a repository of what is in `directory`, in one commit.
pub fn repository(directory: &Path) {
    git(directory, &["init", "-q"]);
    git(directory, &["add", "."]);
    git(directory, &["commit", "-qm", "one"]);
}

#[test]
fn a_git_repository_is_added_at_a_reference_in_part_and_with_its_directory() {
    if !is_root() || !has_program("git") {
        return;
    }
    let home = Home::new();
    home.write("work/top", "first\n");
    home.write("work/sub/inner", "inner\n");
    let work = home.path("work");
    repository(&work);
    git(&work, &["tag", "v1"]);
    let commit = git(&work, &["rev-parse", "HEAD"]);
    home.write("work/top", "second\n");
    git(&work, &["commit", "-qam", "two"]);
    std::fs::create_dir_all(home.path("served")).expect("writable");
    git(home.path("").as_path(), &["clone", "-q", "--bare", "work", "served/repo.git"]);
    git(&home.path("served/repo.git"), &["update-server-info"]);
    let server = Server::start(home.path("served"));
    let url = server.address("repo.git");

    let all = files(&home, &format!("FROM scratch\nADD {url} /all\n"));
    assert_eq!(
        all,
        [
            "d 0755 0:0 /all",
            "d 0755 0:0 /all/sub",
            "f 0644 0:0 /all/sub/inner 6 \"inner\\n\"",
            "f 0644 0:0 /all/top 7 \"second\\n\""
        ]
    );
    let tagged = files(&home, &format!("FROM scratch\nADD {url}#v1 /t\nADD {url}#v1:sub /s\n"));
    assert_eq!(tagged[..2], ["d 0755 0:0 /s", "f 0644 0:0 /s/inner 6 \"inner\\n\""]);
    assert!(tagged.contains(&"f 0644 0:0 /t/top 6 \"first\\n\"".to_string()), "{tagged:?}");
    let query = files(&home, &format!("FROM scratch\nADD {url}?ref=v1&subdir=sub /s\n"));
    assert_eq!(query, tagged[..2]);
    let kept = files(&home, &format!("FROM scratch\nADD --keep-git-dir=true --checksum={commit} {url}#v1 /k\n"));
    assert!(kept.iter().any(|line| line.contains(" /k/.git/HEAD ")), "{kept:?}");

    let wrong = refusal(&home, &format!("FROM scratch\nADD --checksum=0123456789 {url} /x\n"));
    assert!(wrong.contains("expected 0123456789, found "), "{wrong}");
    let nowhere = refusal(&home, &format!("FROM scratch\nADD {url}#nowhere /x\n"));
    assert!(nowhere.contains("has no `nowhere`") || nowhere.contains("git fetch failed"), "{nowhere}");
    let no_part = refusal(&home, &format!("FROM scratch\nADD {url}#v1:nothing /x\n"));
    assert!(no_part.contains("has no directory `nothing`"), "{no_part}");
}
