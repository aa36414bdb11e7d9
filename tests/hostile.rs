//! Build contexts and images that somebody else made, to reach what is this machine's: nothing of it gets into an image, and
//! what tries is refused by name.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::images::output_of;
use crate::outputs::serve_directory;
use crate::support::{Home, can_sandbox, has_program};

/// What `cfc build -` says to the archive that `script` makes of an empty directory; it must refuse it.
fn refusal(home: &Home, name: &str, script: &str) -> String {
    let directory = home.path(name);
    fs::create_dir_all(&directory).expect("writable");
    output_of(Command::new("sh").args(["-euc", script]).current_dir(&directory));
    let archive = fs::read(directory.join("archive.tar")).expect("the script made it");
    let mut command = home.cfc();
    command.args(["build", "-", "-t", "hostile"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("cfc runs");
    // It may end before it has read everything.
    let _ = child.stdin.take().expect("a pipe").write_all(&archive);
    let output = child.wait_with_output().expect("cfc ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{name}: {said}");
    said
}

#[test]
fn an_archive_on_stdin_reaches_nothing_of_this_machine() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let secret = home.write("secret", "FROM correct-horse-battery-staple\n");
    let secret = secret.display();
    let dockerfile = "printf 'FROM scratch\\nCOPY . /\\n' >Dockerfile";
    for (name, script, reason) in [
        ("link", format!("ln -s {secret} Dockerfile; tar -cf archive.tar Dockerfile"), "leads out of it"),
        (
            "ignore",
            format!("{dockerfile}; ln -s {secret} .dockerignore; tar -cf archive.tar Dockerfile .dockerignore"),
            "`.dockerignore` is a symbolic link that leads out of it",
        ),
        ("pipe", "mkfifo Dockerfile; tar -cf archive.tar Dockerfile".to_string(), "`Dockerfile` is not a file"),
        (
            "above",
            format!("{dockerfile}; : >x; tar -P --transform 's,^x,../../x,' -cf archive.tar Dockerfile x"),
            "`..`",
        ),
        (
            "through",
            format!(
                "{dockerfile}; ln -s {secret} l; tar -cf archive.tar l; : >x; tar -P --transform 's,^x,l/x,' -rf archive.tar Dockerfile x"
            ),
            "not a directory",
        ),
        (
            "hard",
            format!(
                "{dockerfile}; : >x; ln x y; tar -P --transform 's,^x$,{secret},RS' -cf archive.tar Dockerfile x y"
            ),
            "not in the layer",
        ),
    ] {
        let said = refusal(&home, name, &script);
        assert!(said.contains(reason), "{name}: {said}");
        assert!(!said.contains("correct-horse"), "{name}: {said}");
    }
    assert_eq!(fs::read_to_string(home.path("secret")).expect("there"), "FROM correct-horse-battery-staple\n");
}

#[test]
fn a_git_repository_reaches_nothing_of_this_machine() {
    if !can_sandbox() || !has_program("git") {
        return;
    }
    let home = Home::new();
    home.write("outside/Dockerfile", "FROM scratch\nCOPY . /\n");
    let repository = home.path("repository");
    fs::create_dir_all(&repository).expect("writable");
    let link = |target: &Path, name: &str| std::os::unix::fs::symlink(target, repository.join(name)).expect("made");
    link(&home.path("outside"), "out");
    link(&home.path("outside/Dockerfile"), "Dockerfile");
    fs::write(repository.join(".gitattributes"), "* filter=evil\n").expect("writable");
    let git = |arguments: &[&str]| {
        let identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"];
        output_of(Command::new("git").arg("-C").arg(&repository).args(identity).args(arguments))
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "one"]);
    git(&["update-server-info"]);
    let server = serve_directory(repository.join(".git"));
    let build = |address: &str| home.must_fail(&["build", address, "-t", "hostile"]);
    let said = build(&format!("http://{server}/r.git#main:out"));
    assert!(said.contains("`out` is a symbolic link that leads out of it"), "{said}");
    let said = build(&format!("http://{server}/r.git"));
    assert!(said.contains("`Dockerfile` is a symbolic link that leads out of it"), "{said}");
    home.write("named/Dockerfile", "FROM scratch\nCOPY --from=src . /\n");
    let (named, context) = (home.path("named").display().to_string(), format!("src=http://{server}/r.git#main:out"));
    let said = home.must_fail(&["build", &named, "-t", "hostile", "--build-context", &context]);
    assert!(said.contains("`out` is a symbolic link that leads out of it"), "{said}");
    let said = build(&format!("http://{server}/r.git#--upload-pack=touch /tmp/x"));
    assert!(said.contains("cannot begin with `-`"), "{said}");
    for address in ["ext::sh -c id", "file:///etc/x.git", "--upload-pack=id"] {
        let output = home.run(&["build", "-t", "hostile", "--", address]);
        assert_eq!(output.status.code(), Some(1), "{address}");
    }
}

#[test]
fn links_of_a_stage_lead_nowhere_else() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let secret = home.write("secret", "x");
    fs::copy(crate::support::busybox().expect("checked before"), home.path("busybox")).expect("copied");
    home.write(".dockerignore", "*\n!busybox\n");
    let stage = format!(
        "FROM scratch AS s\nCOPY busybox /bin/sh\nCOPY busybox /bin/ln\nRUN ln -s {} /link && ln -s / /up\n",
        secret.display()
    );
    for last in [
        "FROM scratch\nCOPY --from=s /link /\nCOPY --from=s /link /x/",
        "FROM s\nRUN --mount=from=s,source=/link,target=/m true",
        "FROM s\nCOPY --from=s /up/../..//link /dir/",
    ] {
        home.write("Dockerfile", &format!("{stage}{last}\n"));
        let said = home.must_fail(&["build", &home.path("").display().to_string(), "-t", "hostile"]);
        assert!(said.contains("/link"), "{last}: {said}");
    }
}
