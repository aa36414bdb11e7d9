//! Builds images in a directory of their own and looks at what came out.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use cfc_build_native::{
    CacheRecords, CacheSource, ImageError, ImageRequest, NativeBuilder, NativeOptions, StoreImages, build_image,
};
use cfc_plan::{BuildProgress, BuiltImage, Node, NodeOutcome, OutputStream};
use cfc_store::Store;

/// A store and a build context.
pub struct Fixture {
    pub root: tempfile::TempDir,
    pub store: Store,
}

/// What happened in a build.
#[derive(Default)]
pub struct Record {
    pub finished: Mutex<Vec<(String, NodeOutcome)>>,
    pub output: Mutex<String>,
}

impl BuildProgress for Record {
    fn output(&self, _: &Node, _: OutputStream, bytes: &[u8]) {
        self.output.lock().expect("no panic").push_str(&String::from_utf8_lossy(bytes));
    }

    fn finished(&self, node: &Node, outcome: NodeOutcome) {
        self.finished.lock().expect("no panic").push((node.display.clone(), outcome));
    }
}

impl Record {
    /// The instructions that were carried out, `FROM` left aside.
    pub fn built(&self) -> Vec<String> {
        let finished = self.finished.lock().expect("no panic");
        let is_built = |(display, outcome): &&(String, NodeOutcome)| {
            *outcome == NodeOutcome::Built && !display.starts_with("FROM")
        };
        finished.iter().filter(is_built).map(|(display, _)| display.clone()).collect()
    }
}

impl Fixture {
    pub fn new() -> Fixture {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("context")).expect("mkdir");
        let store = Store::open(&root.path().join("store")).expect("a store");
        Fixture { root, store }
    }

    pub fn context(&self) -> PathBuf {
        self.root.path().join("context")
    }

    /// Writes a file of the context, mode 0644.
    pub fn file(&self, path: &str, text: &str) -> &Fixture {
        self.file_with_mode(path, text, 0o644)
    }

    pub fn file_with_mode(&self, path: &str, text: &str, mode: u32) -> &Fixture {
        let path = self.context().join(path);
        let parent = path.parent().expect("has a parent");
        fs::create_dir_all(parent).expect("mkdir");
        fs::write(&path, text).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        self
    }

    pub fn request(&self, dockerfile: &str) -> ImageRequest {
        // Beside the context: what is in it is up to the test.
        let path = self.root.path().join("Dockerfile");
        fs::write(&path, dockerfile).expect("write");
        ImageRequest::new(path, self.context())
    }

    pub fn build(&self, dockerfile: &str) -> Result<BuiltImage, ImageError> {
        self.build_request(&self.request(dockerfile)).0
    }

    pub fn build_request(&self, request: &ImageRequest) -> (Result<BuiltImage, ImageError>, Record) {
        self.build_with(request, NativeOptions::default())
    }

    pub fn build_with(
        &self,
        request: &ImageRequest,
        options: NativeOptions,
    ) -> (Result<BuiltImage, ImageError>, Record) {
        self.build_from(request, options, Vec::new()).0
    }

    /// The same with shared caches. What it can share is given too.
    pub fn build_from(
        &self,
        request: &ImageRequest,
        options: NativeOptions,
        sources: Vec<Box<dyn CacheSource>>,
    ) -> ((Result<BuiltImage, ImageError>, Record), CacheRecords) {
        let record = Record::default();
        let exports = !sources.is_empty();
        let mut builder =
            NativeBuilder::with_program(self.store.clone(), &launcher(), options).with_shared_cache(sources, exports);
        let built = build_image(&mut builder, request, &StoreImages::new(self.store.clone()), &record);
        let records = builder.records(true).expect("the store has them");
        ((built, record), records)
    }

    /// Builds and lists each layer: `mode uid:gid name [-> target] [size]` a line.
    pub fn layers(&self, dockerfile: &str) -> Vec<Vec<String>> {
        let image = self.build(dockerfile).unwrap_or_else(|error| panic!("{}", report(&error)));
        self.layers_of(&image)
    }

    pub fn layers_of(&self, image: &BuiltImage) -> Vec<Vec<String>> {
        let image = self.store.images().load(&image.manifest).expect("loads");
        image.manifest.layers.iter().map(|layer| list(&self.store.blobs().path(&layer.digest))).collect()
    }

    /// What is left in the store's temporary directories.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let tmp = self.store.root().join("tmp");
        let sessions = fs::read_dir(tmp).expect("lists").map(|entry| entry.expect("an entry").path());
        sessions
            .flat_map(|session| fs::read_dir(session).expect("lists").map(|entry| entry.expect("an entry").path()))
            .collect()
    }
}

/// The program that sandboxes are launched with.
pub fn launcher() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_cfc-build-launcher"))
}

/// Whether `RUN` works here; says why not.
pub fn can_run() -> bool {
    let reason = if !rustix::process::geteuid().is_root() {
        "RUN needs root"
    } else if !Path::new("/bin/busybox").exists() {
        "RUN needs /bin/busybox (package busybox-static)"
    } else {
        return true;
    };
    eprintln!("skipped: {reason}");
    false
}

/// Puts busybox into the context, and gives the instructions of a base with its commands.
pub fn busybox(fixture: &Fixture) -> &'static str {
    fs::copy("/bin/busybox", fixture.context().join("busybox")).expect("copies");
    "FROM scratch AS base\nCOPY --chmod=755 busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n"
}

/// An error as the command line shows it.
pub fn report(error: &ImageError) -> String {
    let mut text = error.to_string();
    if let ImageError::Problems { problems, .. } = error {
        problems.iter().for_each(|problem| text.push_str(&format!("\n{problem}")));
    }
    if let ImageError::Build(error) = error {
        error.output.iter().for_each(|line| text.push_str(&format!("\n| {line}")));
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!("\ncaused by: {cause}"));
        source = cause.source();
    }
    let hint = match error {
        ImageError::Build(error) => error.hint.clone(),
        ImageError::Plan(error) => error.hint.clone(),
        ImageError::Input { hint, .. } => hint.clone(),
        ImageError::Problems { .. } => None,
    };
    hint.into_iter().for_each(|hint| text.push_str(&format!("\nhint: {hint}")));
    text
}

/// Lists a compressed layer by GNU tar.
fn list(blob: &Path) -> Vec<String> {
    let output = Command::new("tar").args(["--numeric-owner", "-tvzf"]).arg(blob).output().expect("tar runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let owner = words[1].replace('/', ":");
        format!("{} {owner} {}", words[0], words[5..].join(" "))
    };
    text.lines().map(line).collect()
}

pub fn args(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}
