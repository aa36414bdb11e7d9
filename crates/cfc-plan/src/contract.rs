//! What every [`Builder`] promises, as a suite that each executor runs against itself (feature `contract`, for tests only).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use cfc_dockerfile::IgnoreFile;
use cfc_oci::Platform;

use crate::{
    BaseImage, BaseImageError, BaseImages, BuildError, BuildProgress, BuildRequest, Builder, BuiltImage, Context,
    Ignore, Node, NodeOutcome, OutputStream, Plan, RunNetwork, RunSettings, SecretSource,
};

/// An executor and what the suite needs to look at what it did.
pub struct Subject<'a> {
    /// The executor. All builds of the suite go through it.
    pub builder: &'a mut dyn Builder,
    /// An empty directory, for build contexts.
    pub directory: &'a Path,
    /// A static busybox; without it nothing is run.
    pub busybox: Option<&'a Path>,
    /// The regular files of an image, by path from the root.
    pub files: &'a dyn Fn(&BuiltImage) -> BTreeMap<PathBuf, Vec<u8>>,
}

/// What no program has in it by chance.
const SECRET: &str = "q7-geheim-31";
const BASE: &str =
    "FROM scratch\nCOPY --chmod=755 busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";

/// Runs the suite.
///
/// # Panics
/// Where a promise is broken.
pub fn check(mut subject: Subject<'_>) {
    let promises: [fn(&mut Subject<'_>); 4] = [
        copies_what_the_context_has_and_nothing_that_is_ignored,
        builds_the_same_image_again_without_doing_anything,
        sees_that_a_file_has_changed,
        names_the_instruction_whose_file_is_missing,
    ];
    let promises_of_programs: [fn(&mut Subject<'_>); 4] = [
        runs_programs_and_tells_what_they_write,
        names_the_program_that_fails_and_its_last_words,
        shows_secrets_to_who_asks_and_keeps_none,
        goes_on_after_a_failure,
    ];
    let has_programs = subject.busybox.is_some();
    for promise in promises.into_iter().chain(promises_of_programs.into_iter().filter(|_| has_programs)) {
        promise(&mut subject);
        fs::remove_dir_all(subject.directory).expect("ours");
        fs::create_dir(subject.directory).expect("writable");
    }
}

fn copies_what_the_context_has_and_nothing_that_is_ignored(subject: &mut Subject<'_>) {
    subject.write("a/one", "1").write("a/two", "2").write("b", "3");
    let (built, heard) = subject.build("FROM scratch\nCOPY . /x/\nLABEL l=v\nCMD [\"c\"]\n", "a/two\nDockerfile\n");
    let built = built.expect("builds");
    let files = (subject.files)(&built);
    let expected = [("x/a/one", "1"), ("x/b", "3")].map(|(path, text)| (PathBuf::from(path), text.into()));
    assert_eq!(files, BTreeMap::from(expected));
    let container = &built.config.config;
    assert_eq!(container.cmd.as_deref(), Some(&["c".to_string()][..]));
    assert_eq!(container.labels.as_ref().and_then(|labels| labels.get("l")).map(String::as_str), Some("v"));
    let n_layers = built.config.history.iter().filter(|entry| !entry.empty_layer).count();
    assert_eq!((built.config.rootfs.diff_ids.len(), n_layers), (1, 1), "a layer, and an entry for it");
    heard.check();
}

fn builds_the_same_image_again_without_doing_anything(subject: &mut Subject<'_>) {
    subject.write("f", "1");
    let dockerfile = "FROM scratch\nCOPY f /\nCOPY f /d/\n";
    let (first, _) = subject.build(dockerfile, "");
    let (second, heard) = subject.build(dockerfile, "");
    assert_eq!(first.expect("builds"), second.expect("builds"));
    let built = heard.finished().into_iter().filter(|(_, outcome)| *outcome == NodeOutcome::Built);
    let built: Vec<String> = built.map(|(display, _)| display).filter(|display| display.starts_with("COPY")).collect();
    assert_eq!(built, [""; 0], "nothing was carried out");
}

fn sees_that_a_file_has_changed(subject: &mut Subject<'_>) {
    subject.write("f", "1");
    let (first, _) = subject.build("FROM scratch\nCOPY f /\n", "");
    subject.write("f", "2");
    let (second, _) = subject.build("FROM scratch\nCOPY f /\n", "");
    let (first, second) = (first.expect("builds"), second.expect("builds"));
    assert_ne!(first.manifest.digest, second.manifest.digest);
    assert_eq!((subject.files)(&second)[Path::new("f")], b"2");
}

fn names_the_instruction_whose_file_is_missing(subject: &mut Subject<'_>) {
    subject.write("f", "1");
    let (built, _) = subject.build("FROM scratch\nCOPY f /\nCOPY missing /\n", "");
    let error = built.expect_err("there is no such file");
    let instruction = error.instruction.as_ref().expect("an instruction is to blame");
    assert_eq!((instruction.line, instruction.text.as_str()), (3, "COPY missing /"));
    assert!(error.message.contains("`missing`"), "{error}");
    assert!(error.hint.is_some(), "{error:?}");
}

fn runs_programs_and_tells_what_they_write(subject: &mut Subject<'_>) {
    let run = "RUN echo out && echo err >&2 && echo made > /made\n";
    let (built, heard) = subject.build(&format!("{BASE}{run}"), "");
    let files = (subject.files)(&built.expect("builds"));
    assert_eq!(files[Path::new("made")], b"made\n");
    let said = heard.output.lock().expect("no panic").clone();
    assert!(said.contains("out\n") && said.contains("err\n"), "{said}");
    heard.check();
}

fn names_the_program_that_fails_and_its_last_words(subject: &mut Subject<'_>) {
    let (built, heard) = subject.build(&format!("{BASE}RUN echo last words && exit 3\nRUN true\n"), "");
    let error = built.expect_err("a program fails");
    let instruction = error.instruction.as_ref().expect("an instruction is to blame");
    assert_eq!((instruction.line, instruction.text.as_str()), (4, "RUN echo last words && exit 3"));
    assert_eq!(error.message, "it exited with code 3");
    assert_eq!(error.output, ["last words"]);
    let failed = heard.failed.lock().expect("no panic").clone();
    assert_eq!(failed, [("RUN echo last words && exit 3".to_string(), "it exited with code 3".to_string())]);
}

fn shows_secrets_to_who_asks_and_keeps_none(subject: &mut Subject<'_>) {
    let run =
        "RUN --mount=type=secret,id=s,required test \"$(cat /run/secrets/s)\" = q7-geheim-31 && echo done > /done\n";
    let (built, _) = subject.build(&format!("{BASE}{run}"), "");
    let files = (subject.files)(&built.expect("builds"));
    let is_kept = |content: &Vec<u8>| content.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
    assert!(!files.values().any(is_kept), "a secret is in the image");
    let run = "RUN --mount=type=secret,id=unknown,required true\n";
    let error = subject.build(&format!("{BASE}{run}"), "").0.expect_err("there is no such secret");
    assert_eq!(error.message, "there is no secret `unknown`, which is required");
}

fn goes_on_after_a_failure(subject: &mut Subject<'_>) {
    let good = format!("{BASE}RUN echo 1 > /one\n");
    subject.build(&format!("{good}RUN exit 1\n"), "").0.expect_err("a program fails");
    let (built, heard) = subject.build(&good, "");
    built.expect("builds");
    let outcome = heard.finished().into_iter().find(|(display, _)| display.starts_with("RUN echo 1"));
    assert_eq!(outcome.map(|(_, outcome)| outcome), Some(NodeOutcome::Cached), "what was finished is used again");
}

impl Subject<'_> {
    fn write(&self, path: &str, text: &str) -> &Self {
        let path = self.directory.join(path);
        fs::create_dir_all(path.parent().expect("is below the directory")).expect("writable");
        fs::write(&path, text).expect("writable");
        self
    }

    fn build(&mut self, dockerfile: &str, ignore: &str) -> (Result<BuiltImage, BuildError>, Heard) {
        if let Some(busybox) = self.busybox.filter(|_| dockerfile.starts_with(BASE)) {
            fs::copy(busybox, self.directory.join("busybox")).expect("copied");
        }
        let ignore = IgnoreFile::parse(ignore.as_bytes()).expect("patterns");
        let plan = crate::lower(&request(dockerfile, Some(ignore.clone())), &NoImages).expect("a good Dockerfile");
        let secret = self.directory.with_extension("secret");
        fs::write(&secret, SECRET).expect("writable");
        let context = Context {
            directory: self.directory.to_path_buf(),
            ignore: Some(Ignore { path: self.directory.join(".dockerignore"), file: ignore }),
            secrets: BTreeMap::from([("s".to_string(), SecretSource::File(secret))]),
            ..Context::default()
        };
        let heard = Heard::default();
        (self.builder.build(&plan, &context, &heard), heard)
    }
}

/// A build of `dockerfile` for this machine, whose programs have no network.
///
/// # Panics
/// Where it is no Dockerfile.
pub fn request(dockerfile: &str, ignore: Option<IgnoreFile>) -> BuildRequest {
    BuildRequest {
        dockerfile: cfc_dockerfile::parse(dockerfile.as_bytes()).expect("a good Dockerfile"),
        dockerfile_path: PathBuf::from("Dockerfile"),
        target: None,
        build_args: BTreeMap::new(),
        labels: BTreeMap::new(),
        platform: Platform::host(),
        allowed: BTreeSet::new(),
        ignore,
        contexts: BTreeMap::new(),
        run: RunSettings { network: RunNetwork::None, ..RunSettings::default() },
        fresh_stages: BTreeSet::new(),
    }
}

/// Has no base images.
pub struct NoImages;

impl BaseImages for NoImages {
    fn find(&self, reference: &str, _: &Platform) -> Result<BaseImage, BaseImageError> {
        Err(BaseImageError { message: format!("the suite has no image `{reference}`"), hint: None, source: None })
    }
}

/// What an executor told.
#[derive(Default)]
struct Heard {
    n_planned: Mutex<usize>,
    started: Mutex<Vec<String>>,
    finished: Mutex<Vec<(String, NodeOutcome)>>,
    failed: Mutex<Vec<(String, String)>>,
    output: Mutex<String>,
}

impl Heard {
    fn finished(&self) -> Vec<(String, NodeOutcome)> {
        self.finished.lock().expect("no panic").clone()
    }

    /// A build that went well: planned once, and every step begun before it is finished, each once.
    fn check(&self) {
        assert_eq!(*self.n_planned.lock().expect("no panic"), 1);
        let mut started = self.started.lock().expect("no panic").clone();
        let mut finished: Vec<String> = self.finished().into_iter().map(|(display, _)| display).collect();
        started.sort();
        finished.sort();
        assert_eq!(started, finished);
        assert!(self.failed.lock().expect("no panic").is_empty());
    }
}

impl BuildProgress for Heard {
    fn planned(&self, _: &Plan) {
        *self.n_planned.lock().expect("no panic") += 1;
    }

    fn started(&self, node: &Node) {
        self.started.lock().expect("no panic").push(node.display.clone());
    }

    fn output(&self, _: &Node, _: OutputStream, bytes: &[u8]) {
        self.output.lock().expect("no panic").push_str(&String::from_utf8_lossy(bytes));
    }

    fn finished(&self, node: &Node, outcome: NodeOutcome) {
        assert!(self.started.lock().expect("no panic").contains(&node.display), "{} has not begun", node.display);
        self.finished.lock().expect("no panic").push((node.display.clone(), outcome));
    }

    fn failed(&self, node: &Node, reason: &str) {
        self.failed.lock().expect("no panic").push((node.display.clone(), reason.to_string()));
    }
}
