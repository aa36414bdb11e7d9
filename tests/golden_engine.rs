//! The folders of `golden.rs`, built by the BuildKit in Docker's engine: its images must be the expected ones too.
//!
//! The engine at hand is often an old one. A folder's `engine` says, a line each:
//!
//! ```text
//! needs REASON         the engine is not asked
//! config REASON        only the files are compared
//! left PATH            a mount point that it leaves in the image; newer ones remove it
//! ```

use std::fs;
use std::path::Path;

use crate::engine::Engine;
use crate::flatten::{Flattened, flatten};
use crate::golden::{Case, build_base, config_text, difference, files_text};
use crate::support::{Home, can_sandbox, has_program};

#[test]
fn buildkit_makes_the_same_of_every_folder() {
    if !can_sandbox() || !has_program("dockerd") || !has_program("skopeo") {
        return;
    }
    let home = Home::new();
    let layout = build_base(&home);
    let base = flatten(&layout);
    let Some(engine) = Engine::start(home.path("engine")) else { return };
    engine.load(&layout, "busybox:latest");
    Case::hold_all(4, |case| compare(&home, &engine, case, &base));
}

fn compare(home: &Home, engine: &Engine, case: &Case, base: &Flattened) -> Result<(), String> {
    let notes = case.lines("engine", Path::new(""));
    let has_note = |word: &str| notes.iter().any(|note| note.starts_with(word));
    let unknown = notes.iter().find(|note| !["needs ", "config ", "left "].iter().any(|word| note.starts_with(word)));
    assert!(unknown.is_none(), "{}: engine: {unknown:?}", case.name);
    let arguments = case.lines("arguments", Path::new(""));
    let asks_only = arguments.iter().any(|line| line == "--check" || line.starts_with("--call"));
    if has_note("needs ") || asks_only {
        return Ok(());
    }
    if case.lines("needs", Path::new("")).iter().any(|program| !has_program(program)) {
        return Ok(());
    }
    let name = case.name.replace('/', "-");
    let copy = home.path(&format!("engine-golden/{name}"));
    case.copy_to(&copy);
    let mut command = engine.docker();
    command.args(["build", "--network=none", "--progress=plain", "-t", &format!("golden-{name}")]);
    command.arg("-f").arg(copy.join("Dockerfile")).args(case.lines("arguments", &copy)).arg(copy.join("context"));
    for line in case.lines("environment", &copy) {
        let (key, value) = line.split_once('=').expect("KEY=VALUE");
        command.env(key, value);
    }
    let output = command.output().expect("docker runs");
    let said = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_string();
    let expects_image = case.folder.join("config").exists();
    match (output.status.success(), expects_image) {
        (false, false) => return Ok(()),
        (true, false) => return Err(format!("{}: BuildKit builds it", case.name)),
        (false, true) => return Err(format!("{}: BuildKit does not build it: {said}", case.name)),
        (true, true) => {}
    }
    let mut image = flatten(&engine.save(&format!("golden-{name}:latest"), &copy.join("engine-image")));
    for left in notes.iter().filter_map(|note| note.strip_prefix("left /")) {
        image.files.remove(Path::new(left));
    }
    let expected = |file: &str| fs::read_to_string(case.folder.join(file)).unwrap_or_default();
    let mut differences = difference(&expected("files"), &files_text(&image, base));
    if !has_note("config ") {
        differences += &difference(&expected("config"), &config_text(&image));
    }
    if differences.is_empty() {
        Ok(())
    } else {
        Err(format!("{} (- expected, + BuildKit's):\n{differences}", case.name))
    }
}
