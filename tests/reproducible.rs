//! The same inputs make the same image, whoever builds it, where, how often and on how many processors.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::add::Server;
use crate::images::output_of;
use crate::ordinary_user::OrdinaryUser;
use crate::support::{Home, busybox, can_sandbox, has_program};

/// Everything that could let something of the machine in: what a program sees of it, names in the order in which a
/// directory has them, links, attributes, stages side by side, a cache, an archive and a file of the network.
const DOCKERFILE: &str = r#"FROM scratch AS base
COPY --chmod=755 busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]

FROM base AS one
RUN --mount=type=cache,target=/cache echo x >>/cache/x && mkdir /many && \
    for n in $(seq 300); do echo $n >/many/$n; done && ln /many/7 /many/seven && mkfifo /many/pipe
RUN rm -r /many/1* && mkdir /many/1 && touch /many/1/new

FROM base AS two
RUN umask >/umask; hostname >/hostname; env | sort >/env; date +%Z >/zone; id >/id; pwd >/pwd; ls -a /proc/self/fd | wc -l >/fds

FROM base
COPY --from=one /many /many
COPY --from=two /umask /hostname /env /zone /id /pwd /fds /seen/
COPY --chown=12:34 tree /tree
ADD archive.tar /archive/
ADD URL /downloaded
WORKDIR /somewhere
RUN --mount=type=bind,source=tree,target=/bound cat /bound/* >/all && names=$(find / -xdev -type f | sort | md5sum) && echo $names >/names
LABEL a=b
CMD ["sh"]
"#;

struct Inputs {
    server: Server,
    archive: Vec<u8>,
    _directory: tempfile::TempDir,
}

impl Inputs {
    fn new() -> Inputs {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("archived")).expect("made");
        fs::write(path("archived/file"), "archived").expect("written");
        fs::hard_link(path("archived/file"), path("archived/link")).expect("linked");
        output_of(Command::new("tar").arg("-C").arg(directory.path()).arg("-cf").arg(path("a.tar")).arg("archived"));
        fs::write(path("served"), "downloaded").expect("written");
        let archive = fs::read(path("a.tar")).expect("read");
        Inputs { server: Server::start(directory.path().to_path_buf()), archive, _directory: directory }
    }

    /// The context in `directory`, its files made in this order. Whether files could get an attribute.
    fn write(&self, directory: &Path, order: impl Iterator<Item = u32>) -> bool {
        fs::create_dir_all(directory.join("tree")).expect("made");
        fs::copy(busybox().expect("checked before"), directory.join("busybox")).expect("copied");
        let dockerfile = DOCKERFILE.replace("URL", &self.server.address("served"));
        fs::write(directory.join("Dockerfile"), dockerfile).expect("written");
        fs::write(directory.join("archive.tar"), &self.archive).expect("written");
        for number in order {
            let path = directory.join(format!("tree/file-{number}"));
            fs::write(&path, format!("content {number}").repeat(1000)).expect("written");
            let file = fs::File::options().write(true).open(&path).expect("open");
            file.set_modified(SystemTime::now() - Duration::from_secs(u64::from(number))).expect("set");
        }
        let noted = directory.join("tree/file-7");
        rustix::fs::setxattr(noted, "user.note", b"kept", rustix::fs::XattrFlags::empty()).is_ok()
    }
}

/// Builds, and returns the manifest's digest.
fn build(home: &Home, context: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let mut command = home.cfc();
    command.args(["build", &context.display().to_string(), "-t", "test/app:1"]).args(arguments);
    let line = output_of(command.envs(environment.iter().copied()));
    line.split_whitespace().last().expect("a digest").to_string()
}

fn context_of(home: &Home, inputs: &Inputs) -> PathBuf {
    let context = home.path("context");
    assert!(inputs.write(&context, 0..60), "the temporary directory has no attributes of users");
    context
}

#[test]
fn the_same_inputs_make_the_same_image_everywhere() {
    if !can_sandbox() {
        return;
    }
    let inputs = Inputs::new();
    let home = Home::new();
    let context = context_of(&home, &inputs);
    let expected = build(&home, &context, &[], &[]);
    let check = |what: &str, home: &Home, context: &Path, environment: &[(&str, &str)]| {
        assert_eq!(build(home, context, &[], environment), expected, "{what}");
    };
    check("a second time, from the cache", &home, &context, &[]);
    assert_eq!(build(&home, &context, &["--no-cache"], &[]), expected, "a second time, without the cache");

    let environment =
        [("TZ", "Pacific/Chatham"), ("LC_ALL", "tr_TR.UTF-8"), ("LANG", "tr_TR.UTF-8"), ("USER", "x"), ("HOME", "/")];
    let elsewhere = Home::new();
    check("another directory, time zone and language", &elsewhere, &context_of(&elsewhere, &inputs), &environment);
    for umask in ["000", "077"] {
        let script = format!("umask {umask}; exec \"$@\"");
        let home = Home::through(&["sh", "-c", &script, "sh"]);
        check(&format!("with the umask {umask}"), &home, &context_of(&home, &inputs), &[]);
    }
    if has_program("taskset") {
        let home = Home::through(&["taskset", "--cpu-list", "0"]);
        check("on one processor", &home, &context_of(&home, &inputs), &[]);
    }
    if has_program("unshare") {
        let home = Home::through(&["unshare", "--uts", "sh", "-c", "hostname another-host; exec \"$@\"", "sh"]);
        check("with another host name", &home, &context_of(&home, &inputs), &[]);
    }
}

#[test]
fn who_owns_the_files_and_in_which_order_they_were_made_does_not_matter() {
    if !can_sandbox() {
        return;
    }
    let inputs = Inputs::new();
    let home = Home::new();
    let expected = build(&home, &context_of(&home, &inputs), &[], &[]);
    // In memory a directory lists its newest name first, on ext4 by a hash that is seeded on each disk.
    match tempfile::tempdir_in("/dev/shm") {
        Ok(memory) if inputs.write(memory.path(), (0..60).rev()) => {
            for path in [memory.path().join("tree"), memory.path().join("tree/file-3")] {
                chown(path, Some(4321), Some(1234)).expect("given away");
            }
            assert_eq!(build(&Home::new(), memory.path(), &[], &[]), expected, "files in memory, made in reverse");
        }
        _ => crate::support::skipped("/dev/shm cannot hold files with attributes"),
    }
    let Some(user) = OrdinaryUser::new() else { return };
    let home = Home::of(user);
    let context = context_of(&home, &inputs);
    assert_ne!(home.path("").metadata().expect("there").uid(), 0);
    assert_eq!(build(&home, &context, &[], &[]), expected, "as an ordinary user");
}

#[test]
fn each_encoding_comes_out_the_same_from_a_cache_and_from_nothing() {
    if !can_sandbox() {
        return;
    }
    let inputs = Inputs::new();
    let home = Home::new();
    let context = context_of(&home, &inputs);
    build(&home, &context, &[], &[]);
    for compression in ["zstd", "estargz", "none"] {
        let flags = ["--compression", compression];
        let from_cache = build(&home, &context, &flags, &[]);
        let other = Home::new();
        let one = Home::through(&["taskset", "--cpu-list", "0"]);
        assert_eq!(build(&other, &context, &flags, &[]), from_cache, "{compression}");
        if has_program("taskset") {
            assert_eq!(build(&one, &context, &flags, &[]), from_cache, "{compression} on one processor");
        }
    }
}

#[test]
fn the_time_of_an_image_is_the_one_that_was_given() {
    let home = Home::new();
    home.write("context/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let context = home.path("context");
    let layout = home.path("layout");
    let flag = build(&home, &context, &["--timestamp", "2023-11-14T23:13:20+01:00"], &[]);
    for (arguments, environment) in [
        (vec!["--timestamp", "1700000000"], vec![]),
        (vec!["--timestamp", "1700000000"], vec![("SOURCE_DATE_EPOCH", "5")]),
        (vec![], vec![("SOURCE_DATE_EPOCH", "1700000000")]),
        (vec!["--build-arg", "SOURCE_DATE_EPOCH=1700000000"], vec![("SOURCE_DATE_EPOCH", "5")]),
    ] {
        assert_eq!(build(&home, &context, &arguments, &environment), flag, "{arguments:?} {environment:?}");
    }
    let shown = layout.display().to_string();
    build(&home, &context, &["--timestamp", "now", "--oci-layout", &shown], &[]);
    let index: serde_json::Value = json(&layout.join("index.json"));
    let blob = |digest: &serde_json::Value| layout.join("blobs").join(digest.as_str().expect("text").replace(':', "/"));
    let manifest = json(&blob(&index["manifests"][0]["digest"]));
    let config = json(&blob(&manifest["config"]["digest"]));
    let created = config["created"].as_str().expect("text");
    assert!(created > "2024" && config["history"][0]["created"] == created, "{config}");
    let listed = output_of(
        Command::new("tar").args(["--utc", "--full-time", "-tvzf"]).arg(blob(&manifest["layers"][0]["digest"])),
    );
    assert!(listed.contains("Dockerfile") && !listed.contains("1970-"), "{listed}");

    let arguments = ["--timestamp", "0", "--build-arg", "SOURCE_DATE_EPOCH=1"];
    let shown = context.display().to_string();
    let refused = home.must_fail(&[&["build", &shown, "-t", "a"], &arguments[..]].concat());
    assert!(refused.contains("leave one of them out"), "{refused}");
    let refused = home.run(&["build", "-t", "a", "--timestamp", "yesterday"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("expected `now`, seconds since 1970"), "{said}");
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}
