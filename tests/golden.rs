//! Dockerfiles and what they must become: the folders below `testdata/dockerfile`, found by walking.
//!
//! ```text
//! <area>/<case>/Dockerfile
//!   context/        the build context; empty when it is not there
//!   prepare         makes of a copy of the folder what Git cannot keep: modes, links, archives
//!   arguments       of `cfc build`, one a line; `[FOLDER]` is the copy
//!   environment     variables, one a line
//!   files           the root filesystem without what the base `busybox` has (see `flatten.rs`)
//!   config          the image's config and history
//!   report          what is said when the build fails, or what is warned of when it does not
//!   output          what is printed instead of an image (`--check`, `--call`)
//!   buildkit        what daemons make otherwise of our own LLB (see `buildkit.rs`)
//!   engine          what the BuildKit at hand does otherwise, and why (see `golden_engine.rs`)
//! ```
//!
//! With `CFC_BLESS=1` the expected files are written instead of compared.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::flatten::{Flattened, flatten};
use crate::support::{Home, busybox, can_sandbox, copy_tree, has_program, repository};

/// The base that folders call `busybox`: every applet, a few users, and the directories that programs want.
const BASE: &str = r#"FROM scratch
COPY --chmod=755 busybox /bin/busybox
COPY root /
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -m 1777 /tmp
"#;

/// One folder.
pub struct Case {
    pub name: String,
    pub folder: PathBuf,
}

impl Case {
    /// All folders, sorted.
    pub fn all() -> Vec<Case> {
        let root = repository().join("testdata/dockerfile");
        let mut cases = Vec::new();
        let mut pending = vec![root.clone()];
        while let Some(folder) = pending.pop() {
            if folder.join("Dockerfile").exists() {
                let name = folder.strip_prefix(&root).expect("is below").display().to_string();
                cases.push(Case { name, folder });
                continue;
            }
            let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
            pending.extend(entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir()));
        }
        cases.sort_by(|left, right| left.name.cmp(&right.name));
        let only = std::env::var("CFC_GOLDEN").unwrap_or_default();
        cases.retain(|case| case.name.contains(&only));
        cases
    }

    /// Has so many threads hold all folders against something, and tells of all that fail.
    pub fn hold_all(threads: usize, compare: impl Fn(&Case) -> Result<(), String> + Sync) {
        let failures = Mutex::new(Vec::new());
        let cases = Mutex::new(Case::all().into_iter());
        let work = || {
            while let Some(case) = { cases.lock().expect("no panic").next() } {
                if let Err(failure) = compare(&case) {
                    failures.lock().expect("no panic").push(failure);
                }
            }
        };
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        let failures = failures.into_inner().expect("no panic");
        assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    }

    /// A copy of the folder, prepared.
    pub fn copy_to(&self, target: &Path) {
        copy_tree(&self.folder, target);
        fs::create_dir_all(target.join("context")).expect("writable");
        if target.join("prepare").exists() {
            let status = Command::new("sh").args(["-eu", "prepare"]).current_dir(target).status().expect("sh runs");
            assert!(status.success(), "{}: prepare failed", self.name);
        }
    }

    /// The lines of one of its files; none when it is not there.
    pub fn lines(&self, file: &str, copy: &Path) -> Vec<String> {
        let text = fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        text.lines().map(|line| line.replace("[FOLDER]", &copy.display().to_string())).collect()
    }

    fn expects(&self, file: &str) -> bool {
        self.folder.join(file).exists()
    }

    /// Compares `actual` with the expected `file`, or makes it the expected one; an empty one is no file.
    fn check(&self, file: &str, actual: &str) -> Result<(), String> {
        let path = self.folder.join(file);
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if expected == actual {
            return Ok(());
        }
        if std::env::var_os("CFC_BLESS").is_some() {
            match actual.is_empty() {
                true => drop(fs::remove_file(&path)),
                false => fs::write(&path, actual).expect("writable"),
            }
            return Ok(());
        }
        Err(format!("{}: {file} differs\n{}", self.name, difference(&expected, actual)))
    }
}

/// The lines of one text that the other has not.
pub fn difference(expected: &str, actual: &str) -> String {
    let lines = |text| str::lines(text).collect::<HashSet<&str>>();
    let (known, found) = (lines(expected), lines(actual));
    let missing = expected.lines().filter(|line| !found.contains(line));
    let added = actual.lines().filter(|line| !known.contains(line));
    let lines = missing.map(|line| format!("- {line}")).chain(added.map(|line| format!("+ {line}")));
    lines.collect::<Vec<_>>().join("\n")
}

/// The files of an image as text, those of `base` left out.
pub fn files_text(image: &Flattened, base: &Flattened) -> String {
    let own = image.files.iter().filter(|(path, line)| base.files.get(*path) != Some(line));
    let gone = base.files.iter().filter(|(path, _)| is_built_on(image) && !image.files.contains_key(*path));
    let mut lines: Vec<String> = own.map(|(_, line)| line.clone()).collect();
    lines.extend(gone.map(|(path, _)| format!("- /{}", path.display())));
    lines.into_iter().map(|line| line + "\n").collect()
}

fn is_built_on(image: &Flattened) -> bool {
    image.files.contains_key(Path::new("bin/busybox"))
}

/// Config and history as text, without what says when and for which machine.
pub fn config_text(image: &Flattened) -> String {
    let mut value = serde_json::to_value(&image.config).expect("JSON");
    let object = value.as_object_mut().expect("an object");
    let n_layers = image.config.rootfs.diff_ids.len();
    for key in ["architecture", "os", "variant", "created", "rootfs"] {
        object.remove(key);
    }
    object.insert("layers".to_string(), n_layers.into());
    for entry in object.get_mut("history").and_then(|history| history.as_array_mut()).into_iter().flatten() {
        entry.as_object_mut().expect("an object").remove("created");
    }
    let text = serde_json::to_string_pretty(&value).expect("JSON") + "\n";
    let host = cfc_oci::Platform::host();
    text.replace(&host.to_string(), "[PLATFORM]").replace(&format!("ARCH={}", host.architecture), "ARCH=[ARCH]")
}

/// Builds the base into the store of `home`, and as an OCI layout.
pub fn build_base(home: &Home) -> PathBuf {
    let context = home.path("base");
    fs::create_dir_all(&context).expect("writable");
    fs::copy(busybox().expect("checked before"), context.join("busybox")).expect("copied");
    home.write("base/root/etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n");
    home.write("base/root/etc/group", "root:x:0:\napp:x:1001:\nstaff:x:50:app\n");
    for directory in ["dev", "proc", "sys", "run", "root"] {
        fs::create_dir_all(context.join("root").join(directory)).expect("writable");
    }
    home.write("base/Dockerfile", BASE);
    let layout = home.path("base-layout");
    home.must(&[
        "build",
        &context.display().to_string(),
        "-t",
        "busybox",
        "--oci-layout",
        &layout.display().to_string(),
    ]);
    layout
}

#[test]
fn every_folder_becomes_what_it_says() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let base = flatten(&build_base(&home));
    Case::hold_all(2, |case| run(&home, case, &base));
}

fn run(home: &Home, case: &Case, base: &Flattened) -> Result<(), String> {
    if case.lines("needs", Path::new("")).iter().any(|program| !has_program(program)) {
        return Ok(());
    }
    let name = case.name.replace('/', "-");
    let copy = home.path(&format!("golden/{name}"));
    case.copy_to(&copy);
    let (context, dockerfile, layout) = (copy.join("context"), copy.join("Dockerfile"), copy.join("layout"));
    let mut command = home.cfc();
    command.arg("build").arg(&context).arg("-f").arg(&dockerfile).args(["-t", &format!("golden/{name}")]);
    command.args(case.lines("arguments", &copy));
    let asks_only = case.lines("arguments", &copy).iter().any(|line| line == "--check" || line.starts_with("--call"));
    if !asks_only {
        command.arg("--oci-layout").arg(&layout);
    }
    for line in case.lines("environment", &copy) {
        let (key, value) = line.split_once('=').expect("KEY=VALUE");
        command.env(key, value);
    }
    let output = command.current_dir(&copy).output().expect("cfc runs");
    let redact = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).replace(&copy.display().to_string(), "[FOLDER]");
        home.redact(&text).replace(&cfc_oci::Platform::host().to_string(), "[PLATFORM]")
    };
    let said = redact(&output.stderr);
    if asks_only {
        case.check("output", &redact(&output.stdout))?;
        return case.check("report", &said);
    }
    if !output.status.success() {
        if case.expects("files") && std::env::var_os("CFC_BLESS").is_none() {
            return Err(format!("{}: it does not build:\n{said}", case.name));
        }
        let last = said.lines().skip_while(|line| !line.starts_with("error: "));
        return case.check("report", &last.map(|line| format!("{line}\n")).collect::<String>());
    }
    let image = flatten(&layout);
    let warnings = warnings(&said);
    case.check("report", &warnings)?;
    case.check("files", &files_text(&image, base))?;
    case.check("config", &config_text(&image))
}

/// The warnings among what was said: from each `warning:` on, the lines that belong to it.
fn warnings(said: &str) -> String {
    let mut text = String::new();
    let mut is_warning = false;
    for line in said.lines() {
        is_warning =
            line.starts_with("warning: ") || (is_warning && line.starts_with(' ') && !line.starts_with("  | "));
        if is_warning {
            text += &format!("{line}\n");
        }
    }
    text
}
