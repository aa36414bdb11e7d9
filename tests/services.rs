//! Real projects, as people have them: nginx on Debian, a Node.js service with `npm ci`, a Python service with `pip
//! install`, and C and Rust on `scratch` (`testdata/services`, a folder each). They are built, held against what BuildKit
//! makes of the same files, deployed, and asked over HTTP.

use std::fs;
use std::path::{Path, PathBuf};

use cfc_store::Store;

use crate::bases::Bases;
use crate::engine::Engine;
use crate::flatten::{Flattened, flatten_in};
use crate::golden::{config_text, difference};
use crate::images::output_of;
use crate::ordinary_user::{OrdinaryUser, give};
use crate::support::{Home, Platform, copy_tree, has_program, http, repository, tools};

/// The folders, and what each answers.
const SERVICES: [(&str, &str); 4] = [
    ("web", "<h1>web</h1>\n"),
    ("api", r#"{"service":"api","user":"node"}"#),
    ("worker", "{\"service\":\"worker\",\"user\":\"app\"}\n"),
    ("native", r#"{"service":"native","user":"65534"}"#),
];

/// Builds a service into the store of `home` and as an OCI layout.
fn build(home: &Home, name: &str) -> PathBuf {
    let (context, layout) = (home.path("services").join(name), home.path("built").join(name));
    let path = |path: &Path| path.display().to_string();
    home.must(&["build", &path(&context), "-t", name, "--oci-layout", &path(&layout)]);
    layout
}

fn prepared() -> Option<(Home, Bases)> {
    // The requirements name wheels for it.
    let bases = Bases::get().filter(|_| cfc_oci::Platform::host().architecture == "amd64")?;
    let home = Home::new();
    copy_tree(&repository().join("testdata/services"), &home.path("services"));
    bases.import(&home);
    Some((home, bases))
}

#[test]
fn real_projects_become_what_buildkit_makes_of_them_and_serve() {
    let Some((home, bases)) = prepared() else { return };
    let user = OrdinaryUser::new().map(|user| home_of(user, &bases));
    let (layouts, engine) = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| build_with_engine(&home, &bases));
        (SERVICES.map(|(name, _)| build(&home, name)), theirs.join().expect("no panic"))
    });
    if let Some(engine) = engine {
        compare(&home, &engine, &layouts);
    }
    if let Some(user) = user {
        compare_without_root(&user, &layouts);
    }
    if tools().is_some() {
        serve(&home);
    }
}

/// An engine that has built the same, where there is one.
fn build_with_engine(home: &Home, bases: &Bases) -> Option<Engine> {
    let has_programs = has_program("dockerd") && has_program("skopeo");
    let engine = Engine::start_with(home.path("engine"), &bases.engine).filter(|_| has_programs)?;
    bases.all.iter().for_each(|base| engine.load(&base.layout, &base.reference));
    for (name, _) in SERVICES {
        let mut command = engine.docker();
        command.args(["build", "--network=host", "-t", name]).arg(home.path("services").join(name));
        // It asks for whatever versions are there today.
        command.args((name == "web").then_some("--no-cache"));
        output_of(&mut command);
    }
    Some(engine)
}

fn compare(home: &Home, engine: &Engine, layouts: &[PathBuf]) {
    let store = Store::open(&home.path("flattened")).expect("a store");
    let mut failures = String::new();
    for ((name, _), layout) in SERVICES.into_iter().zip(layouts) {
        let ours = flatten_in(&store, layout);
        let theirs = flatten_in(&store, &engine.save(&format!("{name}:latest"), &home.path("saved").join(name)));
        let differences = [
            difference(&files_text(name, &theirs), &files_text(name, &ours)),
            difference(&without_engines_words(&config_text(&theirs)), &without_engines_words(&config_text(&ours))),
        ];
        let shown = |text: String| if text.is_empty() { text } else { format!("{name}:\n{text}\n") };
        failures += &differences.map(shown).concat();
    }
    output_of(engine.docker().args(["image", "prune", "--force"]));
    output_of(engine.docker().args(["builder", "prune", "--force", "--keep-storage=500MB"]));
    assert!(failures.is_empty(), "(- BuildKit's, + ours)\n{failures}");
}

/// A home of `user` with the projects and the bases.
fn home_of(user: OrdinaryUser, bases: &Bases) -> Home {
    let uid = user.uid;
    let home = Home::of(user);
    copy_tree(&repository().join("testdata/services"), &home.path("services"));
    bases.import(&home);
    give(uid, &home.path(""));
    home
}

/// The ordinary user's images are root's, but for the files that no two builds have in common.
fn compare_without_root(user: &Home, layouts: &[PathBuf]) {
    let store = Store::open(&user.path("flattened")).expect("a store");
    for ((name, _), of_root) in SERVICES.into_iter().zip(layouts) {
        let layout = build(user, name);
        let (theirs, ours) = (flatten_in(&store, of_root), flatten_in(&store, &layout));
        assert_eq!(difference(&files_text(name, &theirs), &files_text(name, &ours)), "", "{name}: - root's, + user's");
        assert_eq!(difference(&config_text(&theirs), &config_text(&ours)), "", "{name}: - root's, + user's");
        if !varying_files(name).is_empty() {
            continue;
        }
        let index = |layout: &Path| fs::read_to_string(layout.join("index.json")).expect("readable");
        assert_eq!(index(of_root), index(&layout), "{name}");
    }
}

/// Without how the history puts instructions that the engine at hand, an old one, words otherwise.
fn without_engines_words(config: &str) -> String {
    let is_other = |line: &&str| {
        ["COPY", "EXPOSE", "HEALTHCHECK"].iter().any(|word| line.contains(&format!("\"created_by\": \"{word} ")))
    };
    config.lines().filter(|line| !is_other(line)).map(|line| format!("{line}\n")).collect()
}

fn serve(home: &Home) {
    let platform = Platform::start(home);
    home.must(&["deploy", &home.path("services").display().to_string()]);
    for (name, expected) in SERVICES {
        let request = format!("GET /{name} HTTP/1.1\r\nHost: services.localhost\r\nConnection: close\r\n\r\n");
        let answer = http(&platform.address("gateway"), &request);
        assert_eq!(answer, (200, expected.to_string()), "{name}\n{}", platform.log());
    }
    // nginx's log is a link to the container's output.
    let logs = home.must(&["containers", "logs", "services-web"]);
    assert!(logs.contains("GET / HTTP/1.1\" 200"), "{logs}");
    platform.stop();
    // What Python compiled during the build is what it uses.
    let script = "import flask, sys; sys.stdout.write(flask.__cached__)";
    let said = home.run(&["run", "worker", "python3", "-v", "-c", script]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("flask/__init__.py") && !said.contains("bytecode is stale for 'flask'"), "{said}");
}

/// The files as text, without those that may differ.
fn files_text(service: &str, image: &Flattened) -> String {
    let patterns = varying_files(service);
    let may_differ = |path: &Path| patterns.iter().any(|pattern| is_match(pattern, &format!("/{}", path.display())));
    let files = image.files.iter().filter(|(path, _)| !may_differ(path));
    files.map(|(_, line)| format!("{line}\n")).collect()
}

/// Patterns of the files on which no two builds of the service agree.
fn varying_files(service: &str) -> Vec<String> {
    let text = fs::read_to_string(repository().join("testdata/services/differs")).expect("readable");
    let lines = text.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
    lines.filter(|words| words[0] == service).map(|words| words[1].to_string()).collect()
}

fn is_match(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => path.starts_with(start) && path.ends_with(end),
        None => pattern == path,
    }
}
