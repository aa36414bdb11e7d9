//! What is fuzzed: a function each, of bytes that anybody may have written. Each may refuse them; none may panic, hang, take
//! much memory, or touch what is not its own. Called by libFuzzer (`fuzz_targets/`) and by a test (`tests/fuzz.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cfc_build_native::GivenContext;
use cfc_dockerfile::{DirectoryMatches, IgnoreFile, Mount, expand, expand_words, parse, parse_instruction, parser};
use cfc_oci::{Algorithm, Digest, ImageConfig, ManifestOrIndex, Platform, Reference, media_type, parse_signal};
use cfc_plan::{BaseImage, BaseImageError, BaseImages, BuildRequest, ModeChange};
use cfc_store::{Store, TempDir, UnpackLimits, unpack_layer};

/// The command line's own file: what it says of outputs is in no library.
#[path = "../crates/cfc-cli/src/images/output_spec.rs"]
mod output_spec;

/// A Dockerfile: its tree, its instructions, what they mean.
pub fn dockerfile(data: &[u8]) {
    let n_lines = data.split(|&byte| byte == b'\n').count() as u32;
    let ast = parser::parse(data);
    ast.dump();
    for span in ast.nodes.iter().map(|node| node.span).chain(ast.problems.iter().map(|problem| problem.span)) {
        assert!(1 <= span.start_line && span.start_line <= span.end_line && span.end_line <= n_lines, "{span}");
    }
    match parse(data) {
        Ok(file) => assert!(!file.stages.is_empty()),
        Err(problems) => assert!(!problems.is_empty()),
    }
    let _ = parse_instruction(&String::from_utf8_lossy(data));
}

/// A word with variables.
pub fn words(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (word, value) = text.split_once('\n').unwrap_or((&text, "value"));
    for escape in ['\\', '`'] {
        let _ = expand(word, escape, &|name| (name == "A").then(|| value.to_string()));
        let _ = expand_words(word, escape, &|name| (name == "A").then(|| value.to_string()));
    }
}

/// A `.dockerignore`: after a line `--`, paths that are asked for.
pub fn ignore(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (patterns, paths) = text.split_once("\n--\n").unwrap_or((&text, "a/b/c\nab\na.b/é"));
    let Ok(file) = IgnoreFile::parse(patterns.as_bytes()) else { return };
    for path in paths.lines().take(20).filter(|path| is_clean(path)) {
        let parts: Vec<&str> = path.split('/').collect();
        let mut matches = DirectoryMatches::default();
        for end in 1..=parts.len() {
            let part = parts[..end].join("/");
            let (is_ignored, below) = file.is_ignored_below(&part, &matches);
            assert_eq!(is_ignored, file.is_ignored(&part), "{part:?} with {patterns:?}");
            assert_eq!(is_ignored, file.ignored_by_line(&part).is_some(), "{part:?} with {patterns:?}");
            matches = below;
        }
    }
}

fn is_clean(path: &str) -> bool {
    path.len() < 200 && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// A layer in any compression, unpacked: a neighbour of its directory stays as it is.
pub fn archive(data: &[u8]) {
    let limits = UnpackLimits { entries: 2000, bytes: 4 << 20 };
    for data in [data, &with_checksums(data)] {
        let place = Place::new();
        let _ = unpack_layer(data, &place.layer(), Algorithm::Sha256, &limits);
        place.assert_unharmed();
    }
}

/// The same with every header's checksum made right, without which chance never gets far.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for header in data.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    data
}

/// A directory with a neighbour that must not be reached.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = TempDir::new().expect("a temporary directory");
        fs::create_dir(directory.path().join("layer")).expect("a directory");
        fs::write(directory.path().join("secret"), "untouched").expect("a file");
        Place { directory }
    }

    fn layer(&self) -> PathBuf {
        self.directory.path().join("layer")
    }

    fn assert_unharmed(&self) {
        use std::os::unix::fs::MetadataExt;
        let names = fs::read_dir(self.directory.path()).expect("a directory").count();
        assert_eq!(names, 2, "something appeared beside the layer");
        let secret = self.directory.path().join("secret");
        assert_eq!(fs::read_to_string(&secret).expect("the secret"), "untouched");
        assert_eq!(secret.metadata().expect("the secret").nlink(), 1, "the secret was linked");
    }
}

/// What `cfc build -` gets on stdin: an archive with a Dockerfile, or one alone.
pub fn context(data: &[u8]) {
    let directory = TempDir::new().expect("a temporary directory");
    let store = Store::open(&directory.path().join("store")).expect("a store");
    if let Ok(given) = GivenContext::of_stream(&store, &with_checksums(data)[..]) {
        assert!(given.directory.starts_with(store.root()), "{}", given.directory.display());
        let _ = given.dockerfile_at(Path::new("Dockerfile"));
    }
    assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 1);
}

/// A Dockerfile, lowered.
pub fn plan(data: &[u8]) {
    let Ok(dockerfile) = parse(data) else { return };
    let request = BuildRequest {
        dockerfile,
        dockerfile_path: PathBuf::from("Dockerfile"),
        target: None,
        build_args: BTreeMap::from([("A".to_string(), "1".to_string())]),
        labels: BTreeMap::new(),
        platform: Platform::new("linux", "amd64"),
        allowed: BTreeSet::new(),
        ignore: None,
        contexts: BTreeMap::new(),
        fresh_stages: BTreeSet::new(),
        run: Default::default(),
    };
    if let Ok(plan) = cfc_plan::lower(&request, &AnyBase) {
        assert!(!plan.config.to_bytes().is_empty());
    }
    let _ = cfc_plan::check(&request, &AnyBase);
}

/// Has every image, made of nothing.
struct AnyBase;

impl BaseImages for AnyBase {
    fn find(&self, reference: &str, platform: &Platform) -> Result<BaseImage, BaseImageError> {
        let failed =
            |error: cfc_oci::ReferenceError| BaseImageError { message: error.to_string(), hint: None, source: None };
        Reference::parse(reference).map_err(failed)?;
        let config = ImageConfig {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            ..ImageConfig::default()
        };
        let manifest = cfc_oci::Descriptor::new(media_type::MANIFEST, Digest::of(reference.as_bytes()), 1);
        Ok(BaseImage { manifest, config })
    }
}

/// What registries and layouts say of an image; and names that people write.
pub fn image(data: &[u8]) {
    for kind in [media_type::MANIFEST, media_type::INDEX, "application/vnd.docker.distribution.manifest.v2+json", ""] {
        let _ = ManifestOrIndex::parse(kind, data);
    }
    if let Ok(config) = serde_json::from_slice::<ImageConfig>(data) {
        let bytes = config.to_bytes();
        let again: ImageConfig = serde_json::from_slice(&bytes).expect("what we wrote");
        assert_eq!(again.to_bytes(), bytes);
    }
    let text = String::from_utf8_lossy(data);
    if let Ok(reference) = Reference::parse(&text) {
        assert_eq!(Reference::parse(&reference.to_string()).as_ref(), Ok(&reference));
    }
    let _ = text.parse::<Digest>();
    let _ = text.parse::<Platform>();
    let _ = parse_signal(&text);
}

/// `RUN --mount`, and modes of `--chmod`.
pub fn mount(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = Mount::parse(&text, &|word| expand(word, '\\', &|_| None));
    let _ = Mount::from_of(&text);
    if let Ok(change) = ModeChange::parse(&text) {
        for is_directory in [true, false] {
            assert!(change.apply(0o644, is_directory) <= 0o7777, "{text:?}");
        }
    }
}

/// `--output`: what is taken has somewhere to go.
pub fn output(data: &[u8]) {
    use output_spec::{Destination, Output};
    let text = String::from_utf8_lossy(data);
    let is_named = match output_spec::parse(&text) {
        Ok(Output::Layout(path) | Output::Local(path)) => !path.as_os_str().is_empty(),
        Ok(Output::Archive(_, Destination::File(path)) | Output::Tar(Destination::File(path))) => {
            !path.as_os_str().is_empty()
        }
        Ok(Output::Archive(_, Destination::Stdout) | Output::Tar(Destination::Stdout) | Output::Registry) => true,
        Err(reason) => !reason.is_empty(),
    };
    assert!(is_named, "{text:?}");
}
