//! Git repositories as build contexts, made to run programs or read files of whoever builds: submodules from elsewhere,
//! commands in `.gitmodules`, a tree with a `.git` of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::images::output_of;
use crate::outputs::serve_directory;
use crate::support::{Home, can_sandbox, has_program};

fn git(repository: &Path, arguments: &[&str]) -> String {
    let identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"];
    output_of(Command::new("git").arg("-C").arg(repository).args(identity).args(arguments)).trim_end().to_string()
}

/// A repository with a Dockerfile that copies everything, and what `more` adds to its index.
fn repository(home: &Home, name: &str, more: impl FnOnce(&Path)) -> String {
    home.write(&format!("{name}/Dockerfile"), "FROM scratch\nCOPY . /\n");
    let path = home.path(name);
    git(&path, &["init", "-q"]);
    git(&path, &["add", "."]);
    git(&path, &["commit", "-q", "-m", "one"]);
    more(&path);
    git(&path, &["commit", "-q", "-m", "two"]);
    git(&path, &["update-server-info"]);
    format!("http://{}/r.git", serve_directory(path.join(".git")))
}

/// Adds a submodule `part` that `.gitmodules` describes so.
fn with_submodule(repository: &Path, description: &str) {
    let text = format!("[submodule \"part\"]\n\tpath = part\n{description}\n");
    fs::write(repository.join(".gitmodules"), text).expect("writable");
    let commit = git(repository, &["rev-parse", "HEAD"]);
    git(repository, &["add", ".gitmodules"]);
    git(repository, &["update-index", "--add", "--cacheinfo", &format!("160000,{commit},part")]);
}

#[test]
fn submodules_run_nothing_and_come_from_the_network_only() {
    if !can_sandbox() || !has_program("git") {
        return;
    }
    let home = Home::new();
    let secret = home.path("secret");
    home.write("secret/file", "correct-horse");
    git(&secret, &["init", "-q"]);
    git(&secret, &["add", "."]);
    git(&secret, &["commit", "-q", "-m", "one"]);
    let (secret, trace) = (secret.display().to_string(), home.path("trace"));
    let touch = format!("touch {}", trace.display());
    for (name, description, reason) in [
        ("ext", format!("\turl = ext::{touch}"), "transport 'ext' not allowed"),
        ("file", format!("\turl = file://{secret}"), "transport 'file' not allowed"),
        ("path", format!("\turl = {secret}"), "transport 'file' not allowed"),
        ("option", format!("\turl = --upload-pack={touch}"), "submodule"),
        ("proxy", format!("\turl = \"ssh://-oProxyCommand={touch}/x\""), "submodule"),
        ("update", format!("\turl = {secret}\n\tupdate = !{touch}"), "submodule"),
        ("above", format!("\turl = {secret}\n\tpath = ../beyond"), "submodule"),
    ] {
        let address = repository(&home, name, |path| with_submodule(path, &description));
        let said = home.must_fail(&["build", &address, "-t", "hostile"]);
        assert!(said.contains(reason), "{name}: {said}");
        assert!(!trace.exists(), "{name} ran a program: {said}");
        assert!(!home.path("beyond").exists() && !said.contains("correct-horse"), "{name}: {said}");
    }
}

#[test]
fn a_tree_with_a_git_directory_of_its_own_is_refused() {
    if !can_sandbox() || !has_program("git") {
        return;
    }
    let home = Home::new();
    let trace = home.path("trace");
    let hook = format!("#!/bin/sh\ntouch {}\n", trace.display());
    home.write("elsewhere/hooks/post-checkout", &hook);
    let elsewhere = home.path("elsewhere").display().to_string();
    // What `git add` does not take, its plumbing writes.
    let blob = |repository: &Path, content: &str| {
        let file = home.write("blob", content);
        git(repository, &["hash-object", "-w", &file.display().to_string()])
    };
    for (name, entry) in [(".git", "120000"), (".git", "100644"), (".GIT", "120000"), ("git~1", "120000")] {
        let label = format!("{}-{entry}", name.replace('.', "dot"));
        let address = repository(&home, &label, |path| {
            let hostile = blob(path, &elsewhere);
            let listing = git(path, &["ls-tree", "HEAD"]) + &format!("\n{entry} blob {hostile}\t{name}\n");
            let mut mktree = Command::new("git");
            mktree.arg("-C").arg(path).arg("mktree").stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut mktree = mktree.spawn().expect("git runs");
            std::io::Write::write_all(&mut mktree.stdin.take().expect("a pipe"), listing.as_bytes()).expect("sent");
            let tree = mktree.wait_with_output().expect("git ends").stdout;
            let tree = String::from_utf8_lossy(&tree).trim_end().to_string();
            let commit = git(path, &["commit-tree", "-m", "hostile", &tree]);
            git(path, &["update-ref", "refs/heads/hostile", &commit]);
            fs::write(path.join("more"), "x").expect("writable");
            git(path, &["add", "more"]);
        });
        let output = home.run(&["build", &format!("{address}#hostile"), "-t", "hostile"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name} {entry}: {said}");
        assert!(said.contains(&format!("invalid path '{name}'")), "{name} {entry}: {said}");
        assert!(!trace.exists(), "{name} {entry} ran a hook");
    }
    // Hooks that are files of the tree are files.
    let address = repository(&home, "hooks", |path| {
        for file in ["hooks/post-checkout", ".githooks/post-checkout", ".gitconfig"] {
            fs::create_dir_all(path.join(file).parent().expect("has one")).expect("writable");
            fs::write(path.join(file), &hook).expect("writable");
        }
        git(path, &["add", "."]);
    });
    home.must(&["build", &address, "-t", "hostile"]);
    assert!(!trace.exists(), "a hook ran");
}
