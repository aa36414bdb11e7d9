//! The folders of `golden.rs`, built by a BuildKit daemon through our own lowering: both executors must make the same of a
//! Dockerfile. The daemon is the one in Docker's engine; what an old one cannot do must be named in an error. A folder's
//! `buildkit` says what daemons do otherwise all the same, a line each:
//!
//! ```text
//! differs REASON       every daemon does it in its own way: it is not compared
//! old REASON           the BuildKit of engines before 23.0 does, silently
//! new REASON           that of later ones does
//! refused WORDS        no daemon does it, and the error says so in these words
//! lacks CAPABILITY     some later ones cannot be told it, and the error names what they lack
//! left PATH            a mount point that old daemons leave in the image; also a line of `engine`
//! ```

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::engine::Engine;
use crate::flatten::{Flattened, flatten};
use crate::golden::{Case, build_base, config_text, difference, files_text};
use crate::support::{Home, can_sandbox, has_program};

/// `cfc build` on the daemon of `engine`, whose containers have no network.
fn command(home: &Home, engine: &Engine) -> Command {
    let mut command = home.cfc();
    command.args(["build", "--builder", "buildkit", "--buildkit-addr", &engine.buildkit_address()]);
    command
}

#[test]
fn both_executors_make_the_same_of_every_folder() {
    if !can_sandbox() || !has_program("dockerd") {
        return;
    }
    let home = Home::new();
    let base = flatten(&build_base(&home));
    let Some(engine) = Engine::start(home.path("engine")) else { return };
    Case::hold_all(3, |case| compare(&home, &engine, case, &base));
    assert_eq!(engine.images("cfc-build"), "", "what was lent to the engine is gone");
}

#[test]
fn a_whole_buildkit_makes_the_same_of_every_folder() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let base = flatten(&build_base(&home));
    let Some(engine) = Engine::start_current(home.path("engine")) else { return };
    Case::hold_all(3, |case| compare(&home, &engine, case, &base));
    assert_eq!(engine.images("cfc-build"), "", "it is lent no image");
}

#[test]
fn caches_of_several_platforms_do_not_replace_each_other_on_a_daemon() {
    let home = Home::new();
    home.write("app/Dockerfile", "FROM scratch\n");
    let mut command = home.cfc();
    command.args(["build", "--builder", "buildkit", "--buildkit-addr", "unix:///nobody/listens", "-t", "test/many:1"]);
    command.args(["--platform", "linux/amd64,linux/arm64", "--cache-to", "type=registry,ref=127.0.0.1:1/cache"]);
    let output = command.arg(home.path("app")).output().expect("cfc runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let expected = "--cache-to is one place for the caches of several platforms (linux/amd64, linux/arm64)";
    assert!(!output.status.success() && said.contains(expected), "{said}");
}

fn compare(home: &Home, engine: &Engine, case: &Case, base: &Flattened) -> Result<(), String> {
    let arguments = case.lines("arguments", Path::new(""));
    let asks_only = arguments.iter().any(|line| line == "--check" || line.starts_with("--call"));
    if asks_only || case.lines("needs", Path::new("")).iter().any(|program| !has_program(program)) {
        return Ok(());
    }
    let notes = [case.lines("buildkit", Path::new("")), case.lines("engine", Path::new(""))].concat();
    let has_note = |word: &str| notes.iter().any(|note| note.starts_with(word));
    let words = ["differs ", "old ", "new ", "lacks ", "refused ", "left ", "needs ", "config "];
    let unknown = notes.iter().find(|note| !words.iter().any(|word| note.starts_with(word)));
    assert!(unknown.is_none(), "{}: buildkit: {unknown:?}", case.name);
    if has_note("differs ") || (has_note("old ") && engine.is_old()) || (has_note("new ") && !engine.is_old()) {
        return Ok(());
    }
    let name = case.name.replace('/', "-");
    let copy = home.path(&format!("buildkit/{name}"));
    case.copy_to(&copy);
    let layout = copy.join("layout");
    let mut command = command(home, engine);
    command.arg(copy.join("context")).arg("-f").arg(copy.join("Dockerfile")).args(["-t", &format!("buildkit/{name}")]);
    if !arguments.iter().any(|line| line.starts_with("--network")) {
        command.args(["--network", "none"]);
    }
    command.args(case.lines("arguments", &copy)).arg("--oci-layout").arg(&layout);
    for line in case.lines("environment", &copy) {
        let (key, value) = line.split_once('=').expect("KEY=VALUE");
        command.env(key, value);
    }
    let output = command.current_dir(&copy).output().expect("cfc runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let error = said.lines().skip_while(|line| !line.starts_with("error: ")).collect::<Vec<_>>().join("\n");
    let expects_image = case.folder.join("config").exists();
    let refused: Vec<&str> = notes.iter().filter_map(|note| note.strip_prefix("refused ")).collect();
    // What an old daemon cannot do is an error that says so, and no other image. Newer ones can do the rest.
    let is_unknown = error.contains("this BuildKit daemon") && error.contains("does not know");
    let mut lacked = notes.iter().filter_map(|note| note.strip_prefix("lacks "));
    let is_lacked = is_unknown && lacked.any(|name| error.contains(&format!("(it has no `{name}`)")));
    let is_named = (engine.is_old() && is_unknown) || is_lacked || refused.iter().any(|words| error.contains(words));
    match (output.status.success(), expects_image) {
        (false, false) => return Ok(()),
        (true, false) => return Err(format!("{}: it is built", case.name)),
        (false, true) if is_named => return Ok(()),
        (false, true) => return Err(format!("{}: it is not built:\n{error}", case.name)),
        (true, true) if !refused.is_empty() => return Err(format!("{}: it is not refused", case.name)),
        (true, true) => {}
    }
    let mut image = flatten(&layout);
    for left in notes.iter().filter_map(|note| note.strip_prefix("left /")).filter(|_| engine.is_old()) {
        image.files.remove(Path::new(left));
    }
    let expected = |file: &str| fs::read_to_string(case.folder.join(file)).unwrap_or_default();
    let differences = difference(&expected("files"), &files_text(&image, base))
        + &difference(&expected("config"), &config_text(&image));
    if differences.is_empty() {
        Ok(())
    } else {
        Err(format!("{} (- expected, + the daemon's):\n{differences}", case.name))
    }
}
