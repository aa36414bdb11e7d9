//! What is fuzzed: a function each, of bytes that anybody may have written. Each may refuse them; none may panic, hang, take
//! much memory, or touch what is not its own. Called by libFuzzer (`fuzz_targets/`) and by a test (`tests/fuzz.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::http::{HeaderValue, Request, Response, Uri};
use bytes::Bytes;
use cfc_build_native::GivenContext;
use cfc_dockerfile::{DirectoryMatches, IgnoreFile, Mount, expand, expand_words, parse, parse_instruction, parser};
use cfc_oci::{Algorithm, Digest, ImageConfig, ManifestOrIndex, Platform, Reference, media_type, parse_signal};
use cfc_plan::{BaseImage, BaseImageError, BaseImages, BuildRequest, ModeChange};
use cfc_registry::{AccessRules, Minter, Options, Permission, Registry};
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

/// A registry that asks who somebody is, and what it answers to one who may do everything. Of this process, since opening
/// one takes longer than a request.
struct Fuzzed {
    runtime: tokio::runtime::Runtime,
    registry: Registry,
    login: String,
    /// A blob that is there, of ten bytes.
    blob: String,
    _directory: TempDir,
}

/// Where manifests are put: other targets, which run beside, delete what is in `a`.
const MANIFESTS: &str = "made";

impl Fuzzed {
    fn get() -> &'static Fuzzed {
        static FUZZED: OnceLock<Fuzzed> = OnceLock::new();
        FUZZED.get_or_init(Fuzzed::new)
    }

    fn new() -> Fuzzed {
        let directory = TempDir::new().expect("a temporary directory");
        let users = directory.path().join("users");
        // Nobody's password takes as long as anybody's, which is as short as it can be.
        fs::write(&users, format!("ann:$2y$04${}\n", "x".repeat(53))).expect("writable");
        let access = AccessRules::new(&users, Vec::new()).expect("opens");
        let access = access.with_tokens(&directory.path().join("key")).expect("a key");
        let login = login(&access.minter().expect("there are tokens"));
        let options = Options { authorizer: Some(Arc::new(access)), ..Options::default() };
        let registry = Registry::open(&directory.path().join("registry"), options).expect("opens");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let fuzzed = Fuzzed { runtime, registry, login, blob: String::new(), _directory: directory };
        let digest = Digest::of(b"0123456789");
        for name in ["a", MANIFESTS] {
            let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
            assert_eq!(fuzzed.ask("POST", &path, &[], b"0123456789").expect("a request").status(), 201);
        }
        Fuzzed { blob: digest.to_string(), ..fuzzed }
    }

    /// The answer, which is never a fault of the registry; `None` when these bytes are in no request.
    fn ask(&self, method: &str, uri: &str, headers: &[(&str, &[u8])], body: &[u8]) -> Option<Response<Bytes>> {
        let uri: Uri = uri.parse().ok()?;
        let mut request = Request::builder().method(method).uri(uri).header("authorization", &self.login);
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value).ok()?);
        }
        let request = request.body(Bytes::copy_from_slice(body)).ok()?;
        let told = format!("{request:?}");
        let response = self.runtime.block_on(self.registry.answer(request)).expect("an answer that can be read");
        let status = response.status();
        assert!(!status.is_server_error(), "{status}: {told}\n{}", String::from_utf8_lossy(response.body()));
        let is_error = status.is_client_error() && method != "HEAD";
        let errors = || serde_json::from_slice::<serde_json::Value>(response.body()).ok()?.get("errors").cloned();
        assert!(!is_error || errors().is_some_and(|errors| errors[0]["code"].is_string()), "{status}: {told}");
        Some(response)
    }
}

/// What somebody proves himself with who may do everything.
fn login(minter: &Minter) -> String {
    use Permission::{Catalog, Collect, Delete, Metrics, Pull, Push};
    let all = [Pull, Push, Delete, Catalog, Collect, Metrics];
    let password = minter.mint("v1", &all, Duration::from_secs(1 << 40));
    format!("Basic {}", cfc_oci::base64::encode(format!("v1:{password}").as_bytes()))
}

/// Bytes as a part of a URL: those that cannot be there, percent-encoded.
fn in_uri(data: &[u8]) -> String {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"#<>\\^`{|}".contains(&byte);
    data.iter()
        .map(|&byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") })
        .collect()
}

/// The path and query of a request to the registry, with each method.
pub fn registry_path(data: &[u8]) {
    let fuzzed = Fuzzed::get();
    let uri = format!("/v2/{}", in_uri(data));
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        // Deleting what later steps look at, or collecting it, would only make them look at less.
        let is_spared = (method == "DELETE" && uri.contains(&fuzzed.blob)) || uri.contains("gc/");
        if !is_spared {
            fuzzed.ask(method, &uri, &[], b"");
        }
    }
}

/// `Range`, `If-Range` and `If-None-Match` of a pull, and `Content-Range` of a chunk.
pub fn registry_range(data: &[u8]) {
    let fuzzed = Fuzzed::get();
    let blob = format!("/v2/a/blobs/{}", fuzzed.blob);
    if let Some(part) = fuzzed.ask("GET", &blob, &[("range", data)], b"") {
        match part.status().as_u16() {
            200 => assert_eq!(part.body(), "0123456789"),
            206 => assert!(b"0123456789".windows(part.body().len()).any(|window| window == part.body())),
            status => assert_eq!(status, 416),
        }
    }
    fuzzed.ask("GET", &blob, &[("range", b"bytes=2-5"), ("if-range", data), ("if-none-match", data)], b"");
    let begun = fuzzed.ask("POST", "/v2/a/blobs/uploads/", &[], b"").expect("a request");
    let location = begun.headers()["location"].to_str().expect("ASCII").to_string();
    fuzzed.ask("PATCH", &location, &[("content-range", data)], b"01234");
    let digest = Digest::of(b"01234");
    fuzzed.ask("PUT", &format!("{location}?digest={digest}"), &[("content-range", data)], b"56789");
    fuzzed.ask("DELETE", &location, &[], b"");
}

/// A digest, wherever one is expected.
pub fn registry_digest(data: &[u8]) {
    let fuzzed = Fuzzed::get();
    let digest = in_uri(data).replace(['&', '/', '?', '#'], "%2f");
    for path in ["manifests", "blobs", "referrers"] {
        fuzzed.ask("GET", &format!("/v2/a/{path}/{digest}"), &[], b"");
        fuzzed.ask("HEAD", &format!("/v2/a/{path}/{digest}"), &[], b"");
    }
    for query in ["digest", "mount", "from=a&mount", "digest-algorithm"] {
        let begun = fuzzed.ask("POST", &format!("/v2/b/blobs/uploads/?{query}={digest}"), &[], b"x");
        if let Some(location) =
            begun.as_ref().filter(|begun| begun.status() == 202).map(|begun| &begun.headers()["location"])
        {
            let location = location.to_str().expect("ASCII");
            fuzzed.ask("PUT", &format!("{location}?digest={digest}"), &[], b"x");
            fuzzed.ask("DELETE", location, &[], b"");
        }
    }
    fuzzed.ask("PUT", &format!("/v2/a/manifests/{digest}?tag={digest}"), &[], b"{}");
    fuzzed.ask("GET", &format!("/v2/a/tags/list?n=1&last={digest}"), &[], b"");
    fuzzed.ask("GET", &format!("/v2/_catalog?tags=true&n={digest}&last={digest}"), &[], b"");
}

/// A manifest, with and without a word of what it is; what is taken comes back as it was.
pub fn registry_manifest(data: &[u8]) {
    let fuzzed = Fuzzed::get();
    let path = &format!("/v2/{MANIFESTS}/manifests/v1");
    for kind in [media_type::MANIFEST, media_type::INDEX, ""] {
        let headers = [("content-type", kind.as_bytes())];
        let headers = if kind.is_empty() { &headers[..0] } else { &headers[..] };
        let put = fuzzed.ask("PUT", path, headers, data).expect("a request");
        if put.status() == 201 {
            assert_eq!(fuzzed.ask("GET", path, &[], b"").expect("a request").body(), data);
            let subject = put.headers().get("oci-subject").map(|subject| subject.to_str().expect("ASCII"));
            if let Some(subject) = subject {
                let listed =
                    fuzzed.ask("GET", &format!("/v2/{MANIFESTS}/referrers/{subject}"), &[], b"").expect("a request");
                let digest = put.headers()["docker-content-digest"].to_str().expect("ASCII");
                assert!(String::from_utf8_lossy(listed.body()).contains(digest));
            }
        }
    }
}

/// What a token is asked for, in a query and in a form, and tokens that were made up.
pub fn registry_scope(data: &[u8]) {
    let fuzzed = Fuzzed::get();
    let scope = in_uri(data);
    for uri in [format!("/token?scope={scope}"), format!("/token?service=cfc-registry&{scope}")] {
        let issued = fuzzed.ask("GET", &uri, &[], b"");
        if let Some(issued) = issued.filter(|issued| issued.status() == 200) {
            let answer: serde_json::Value = serde_json::from_slice(issued.body()).expect("JSON");
            assert!(answer["token"].is_string() && answer["scope"].is_string());
        }
    }
    fuzzed.ask("POST", "/token", &[], data);
    let form = format!("grant_type=password&username=v1&password=x&scope={scope}");
    fuzzed.ask("POST", "/token", &[], form.as_bytes());
}
