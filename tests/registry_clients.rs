//! Clients that nobody here wrote, at `cfc registry serve` with users: each pushes an image with a login, and each pulls
//! what every other has pushed; the digests are those that the registry has.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::engine::Engine;
use crate::support::{Ended, Home, can_sandbox, http, skipped};

/// ann's is `secret`.
const HTPASSWD: &str = "ann:$2y$05$IcT/XsfK3RYYU73Zh0gq.e5OQJiUvRSXw20299C0G/y0ydKn7LOge\n";
/// `ann:secret` in base64.
const LOGIN: &str = "YW5uOnNlY3JldA==";

/// Anybody pulls below `public/`, ann does everything.
const RULES: &str = "[[registry.allow]]\nusers = [\"anonymous\"]\nrepositories = [\"public/**\"]\nactions = [\"pull\"]\n\
    [[registry.allow]]\nusers = [\"ann\"]\nrepositories = [\"**\"]\nactions = [\"pull\", \"push\", \"delete\", \"catalog\"]\n";

/// A registry with users, an image to push, and where clients keep what they keep.
struct Place {
    home: Home,
    address: String,
    layout: PathBuf,
    engine: Option<Engine>,
    _server: Ended,
}

impl Place {
    fn new() -> Option<Place> {
        if !can_sandbox() {
            return None;
        }
        let home = Home::new();
        let users = home.write("users", HTPASSWD);
        home.write("config.toml", &format!("[registry]\nhtpasswd = \"{}\"\n{RULES}", users.display()));
        let (server, address) = crate::registry::serve(&home);
        home.write("login/config.json", &format!("{{\"auths\":{{\"{address}\":{{\"auth\":\"{LOGIN}\"}}}}}}"));
        home.write("nobody/config.json", "{}");
        home.write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
        home.write("app/Dockerfile", "FROM scratch\nCOPY Dockerfile /\nCMD [\"/none\"]\n");
        let layout = home.path("layout");
        let destination = format!("type=oci,dest={},tar=false", layout.display());
        home.must(&["build", "app", "-t", "app:latest", "-o", &destination]);
        let has_docker = Path::new("/usr/sbin/dockerd").exists();
        let engine = has_docker.then(|| Engine::start_with(home.path("engine"), &home.path("engine-data"))).flatten();
        Some(Place { home, address, layout, engine, _server: server })
    }

    /// A client with its arguments; `login` is `login` or `nobody`.
    fn command(&self, program: &Path, arguments: &[&str], login: &str) -> Command {
        let mut command = Command::new(program);
        let home = self.home.path("");
        command.args(arguments).current_dir(&home).env("HOME", &home).env("XDG_RUNTIME_DIR", &home);
        command.env("DOCKER_CONFIG", self.home.path(login)).env("TMPDIR", &home);
        command.env("REGISTRY_AUTH_FILE", self.home.path(login).join("config.json"));
        command
    }

    fn must(&self, program: &Path, arguments: &[&str]) -> String {
        succeeded(&mut self.command(program, arguments, "login"))
    }

    /// Where podman or buildah keeps its images.
    fn storage(&self, name: &str) -> Vec<String> {
        let path = |part: &str| self.home.path(&format!("{name}-{part}")).display().to_string();
        ["--root", &path("root"), "--runroot", &path("run"), "--storage-driver", "vfs"].map(str::to_string).to_vec()
    }

    /// An answer of the registry to ann: status and body.
    fn get(&self, path: &str) -> (u16, String) {
        let head = "Host: x\r\nAccept: */*\r\nConnection: close";
        http(&self.address, &format!("GET {path} HTTP/1.1\r\n{head}\r\nAuthorization: Basic {LOGIN}\r\n\r\n"))
    }

    fn digest(&self, name: &str, tag: &str) -> String {
        let (status, manifest) = self.get(&format!("/v2/{name}/manifests/{tag}"));
        assert_eq!(status, 200, "{name}:{tag}: {manifest}");
        cfc_oci::Digest::of(manifest.as_bytes()).to_string()
    }
}

fn succeeded(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{stdout}{stderr}");
    stdout.trim().to_string()
}

/// A program that is installed, or that `scripts/test` has unpacked beside the system.
pub fn find(name: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("CFC_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/cfc")));
    let unpacked = cache.map(|cache| cache.join("clients"));
    let beside = unpacked.into_iter().flat_map(|path| [path.join("usr/bin"), path.join("python/bin")]);
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).chain(beside).map(|path| path.join(name)).find(|path| path.exists());
    if found.is_none() {
        skipped(&format!("{name} is not installed"));
    }
    found
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Client {
    Skopeo,
    Podman,
    Buildah,
    Crane,
    Oras,
    OrasPy,
    Docker,
    Cfc,
}

use Client::{Buildah, Cfc, Crane, Docker, Oras, OrasPy, Podman, Skopeo};

const CLIENTS: [Client; 8] = [Skopeo, Podman, Buildah, Crane, Oras, OrasPy, Docker, Cfc];

/// Pushes the layout's blobs and manifest, or pulls all of an image and prints the manifest's digest.
const ORAS_PY: &str = r#"
import hashlib, json, os, sys
import oras.client
host, action, reference, layout = sys.argv[1:]
client = oras.client.OrasClient(hostname=host, insecure=True)
client.auth.set_basic_auth("ann", "secret")
container = client.get_container(reference)
if action == "push":
    blob = lambda digest: os.path.join(layout, "blobs", *digest.split(":"))
    index = json.load(open(os.path.join(layout, "index.json")))
    manifest = json.load(open(blob(index["manifests"][0]["digest"])))
    for part in [manifest["config"]] + manifest["layers"]:
        client.upload_blob(blob(part["digest"]), container, part).raise_for_status()
    client.upload_manifest(manifest, container).raise_for_status()
else:
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"}
    answer = client.do_request(f"{client.prefix}://{container.manifest_url()}", "GET", headers=accept)
    answer.raise_for_status()
    manifest = answer.json()
    for part in [manifest["config"]] + manifest["layers"]:
        content = client.get_blob(container, part["digest"]).content
        assert "sha256:" + hashlib.sha256(content).hexdigest() == part["digest"], part
    print("sha256:" + hashlib.sha256(answer.content).hexdigest())
"#;

impl Client {
    fn program(self, place: &Place) -> Option<PathBuf> {
        match self {
            Skopeo => find("skopeo"),
            Podman => find("skopeo").and_then(|_| find("podman")),
            Buildah => find("skopeo").and_then(|_| find("buildah")),
            Crane => find("crane"),
            Oras => find("oras"),
            OrasPy => oras_py(),
            Docker => place.engine.is_some().then(|| PathBuf::from("docker")),
            Cfc => Some(PathBuf::from(env!("CARGO_BIN_EXE_cfc"))),
        }
    }

    fn push(self, place: &Place, program: &Path, reference: &str) {
        let layout = place.layout.display().to_string();
        let (image, target) = (format!("oci:{layout}:latest"), format!("docker://{reference}"));
        match self {
            Skopeo => {
                let options = ["--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"];
                place.must(program, &[&options[..], &[&image, &target]].concat());
            }
            Podman | Buildah => {
                let policy = format!("--signature-policy={}", place.home.path("policy.json").display());
                let storage = place.storage(&format!("{self:?}"));
                let storage: Vec<&str> = storage.iter().map(String::as_str).collect();
                // Their own way to take in a layout wants a path without capital letters.
                let own = format!("containers-storage:[vfs@{}+{}]localhost/app:1", storage[1], storage[3]);
                place.must(Path::new("skopeo"), &["--insecure-policy", "copy", &image, &own]);
                let push = ["push", "--tls-verify=false", &policy, "localhost/app:1", &target];
                place.must(program, &[&storage[..], &push].concat());
            }
            Crane => drop(place.must(program, &["push", &layout, reference])),
            Oras => {
                let source = format!("{layout}:latest");
                place.must(program, &["cp", "--from-oci-layout", &source, "--to-plain-http", reference]);
            }
            OrasPy => drop(place.must(program, &["-c", ORAS_PY, &place.address, "push", reference, &layout])),
            Docker => {
                let engine = place.engine.as_ref().expect("it runs");
                engine.load(&place.layout, reference);
                succeeded(engine.docker().env("DOCKER_CONFIG", place.home.path("login")).args(["push", reference]));
            }
            Cfc => {
                let mut command = place.home.cfc();
                command.env("DOCKER_CONFIG", place.home.path("login"));
                succeeded(command.args(["push", "app:latest", reference]));
            }
        }
    }

    /// Pulls into a place of its own, and gives the digest of what came.
    fn pull(self, place: &Place, program: &Path, reference: &str, number: usize) -> String {
        let directory = place.home.path(&format!("pulled-{self:?}-{number}"));
        let (to, image) = (directory.display().to_string(), format!("docker://{reference}"));
        match self {
            Skopeo => {
                let options = ["--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false"];
                place.must(program, &[&options[..], &[&image, &format!("dir:{to}")]].concat());
                let manifest = std::fs::read(directory.join("manifest.json")).expect("pulled");
                cfc_oci::Digest::of(&manifest).to_string()
            }
            Podman | Buildah => {
                let policy = format!("--signature-policy={}", place.home.path("policy.json").display());
                // What was pushed from here must not be found here.
                let storage = place.storage(&format!("{self:?}-{number}"));
                let storage: Vec<&str> = storage.iter().map(String::as_str).collect();
                let client = |arguments: &[&str]| place.must(program, &[&storage[..], arguments].concat());
                client(&["pull", "--tls-verify=false", &policy, reference]);
                client(&["images", "--format", "{{.Digest}}", reference])
            }
            Crane => {
                place.must(program, &["pull", "--format", "oci", reference, &to]);
                indexed(&directory)
            }
            Oras => {
                let to = format!("{to}:latest");
                place.must(program, &["cp", "--from-plain-http", reference, "--to-oci-layout", &to]);
                indexed(&directory)
            }
            OrasPy => place.must(program, &["-c", ORAS_PY, &place.address, "pull", reference, &to]),
            Docker => {
                let engine = place.engine.as_ref().expect("it runs");
                let _ = engine.docker().args(["image", "rm", "--force", reference]).output();
                succeeded(engine.docker().env("DOCKER_CONFIG", place.home.path("login")).args(["pull", reference]));
                let format = "{{join .RepoDigests \"\\n\"}}";
                let digests = succeeded(engine.docker().args(["image", "inspect", "--format", format, reference]));
                let repository = reference.rsplit_once(':').expect("a tag").0;
                let own = digests.lines().find_map(|line| line.strip_prefix(repository)?.strip_prefix('@'));
                own.unwrap_or_else(|| panic!("{reference} is not among {digests}")).to_string()
            }
            Cfc => pull_by_build(place, reference, &directory, number),
        }
    }
}

/// Builds on the image in a data directory of its own, which pulls it, and gives the digest of what cfc has there by then:
/// the one that it pushes on, with all of its parts.
fn pull_by_build(place: &Place, reference: &str, directory: &Path, number: usize) -> String {
    let context = directory.join("context");
    std::fs::create_dir_all(&context).expect("writable");
    std::fs::write(context.join("Dockerfile"), format!("FROM {reference}\nCOPY Dockerfile /more\n")).expect("written");
    // What was pushed from here must not be found here.
    let data = directory.join("data");
    let cfc = |arguments: &[&str]| {
        let mut command = place.home.cfc();
        command.env("CFC_DATA", &data).env("DOCKER_CONFIG", place.home.path("login"));
        succeeded(command.args(arguments))
    };
    cfc(&["build", &context.display().to_string(), "-t", "derived:1"]);
    let pushed = cfc(&["push", reference, &format!("{}/again/by-{number}:1", place.address)]);
    let digest = pushed.rsplit_once('@').expect("a digest").1.to_string();
    let kept = |digest: &str| {
        let (algorithm, hex) = digest.split_once(':').expect("a digest");
        let bytes = std::fs::read(data.join("store/blobs").join(algorithm).join(hex)).expect("it came");
        assert_eq!(cfc_oci::Digest::of(&bytes).to_string(), digest);
        bytes
    };
    let manifest: Value = serde_json::from_slice(&kept(&digest)).expect("JSON");
    let layers = manifest["layers"].as_array().expect("layers");
    for part in layers.iter().chain([&manifest["config"]]) {
        kept(part["digest"].as_str().expect("a digest"));
    }
    digest
}

/// The digest of the manifest in an OCI layout, whose bytes hash to it.
fn indexed(layout: &Path) -> String {
    let index = std::fs::read(layout.join("index.json")).expect("a layout");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    let digest = index["manifests"][0]["digest"].as_str().expect("a digest").to_string();
    let path = layout.join("blobs/sha256").join(digest.strip_prefix("sha256:").expect("sha256"));
    assert_eq!(cfc_oci::Digest::of(&std::fs::read(path).expect("there")).to_string(), digest);
    digest
}

/// A Python that has the package `oras`.
fn oras_py() -> Option<PathBuf> {
    let python = find("python3")?;
    let beside = find("oras").and_then(|_| {
        let cache = std::env::var_os("CFC_CACHE").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/cfc")));
        Some(cache?.join("clients/python/bin/python3"))
    });
    let has_oras = |python: &PathBuf| {
        Command::new(python).args(["-c", "import oras.client"]).output().is_ok_and(|output| output.status.success())
    };
    let found = beside.into_iter().chain([python]).find(has_oras);
    if found.is_none() {
        skipped("the Python package oras is not installed");
    }
    found
}

#[test]
fn what_any_client_pushes_every_client_pulls() {
    let Some(place) = Place::new() else { return };
    let clients = CLIENTS.into_iter().filter_map(|client| Some((client, client.program(&place)?)));
    let clients: Vec<(Client, PathBuf)> = clients.collect();
    let mut pairs = 0;
    for (number, (pusher, program)) in clients.iter().enumerate() {
        let name = format!("team/by-{}", format!("{pusher:?}").to_lowercase());
        let reference = format!("{}/{name}:1", place.address);
        pusher.push(&place, program, &reference);
        let digest = place.digest(&name, "1");
        for (puller, program) in &clients {
            let pulled = puller.pull(&place, program, &reference, number);
            assert_eq!(pulled, digest, "pushed by {pusher:?}, pulled by {puller:?}");
            pairs += 1;
        }
    }
    assert!(pairs >= 1);
    eprintln!("{pairs} pairs of {} clients", clients.len());
}

#[test]
fn nobody_pulls_what_is_public_and_nothing_else() {
    let Some(place) = Place::new() else { return };
    let Some(skopeo) = find("skopeo") else { return };
    for name in ["public/app", "team/app"] {
        Skopeo.push(&place, &skopeo, &format!("{}/{name}:1", place.address));
    }
    let public = format!("{}/public/app:1", place.address);
    let secret = format!("{}/team/app:1", place.address);
    let try_all = |program: &Path, arguments: &dyn Fn(&str) -> Vec<String>| {
        for (reference, expected) in [(&public, true), (&secret, false)] {
            let arguments = arguments(reference);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let output = place.command(program, &arguments, "nobody").output().expect("it runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.success(), expected, "{} {arguments:?}: {said}", program.display());
        }
    };
    let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    try_all(&skopeo, &|reference| words(&["inspect", "--tls-verify=false", &format!("docker://{reference}")]));
    if let Some(crane) = find("crane") {
        try_all(&crane, &|reference| words(&["manifest", reference]));
    }
    if let Some(oras) = find("oras") {
        try_all(&oras, &|reference| words(&["manifest", "fetch", "--plain-http", reference]));
    }
    if let Some(engine) = &place.engine {
        for (reference, expected) in [(&public, true), (&secret, false)] {
            let output = engine.docker().args(["pull", reference]).output().expect("docker runs");
            assert_eq!(output.status.success(), expected, "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// As a CI job does with what its operator has given it.
#[test]
fn skopeo_uses_a_password_that_the_operator_has_made() {
    let Some(place) = Place::new() else { return };
    let Some(skopeo) = find("skopeo") else { return };
    let lend = |arguments: &[&str]| {
        let printed = place.home.must(&[&["registry", "credentials"], arguments].concat());
        printed.trim().to_string()
    };
    let push = |credentials: &str, name: &str| {
        let (image, target) =
            (format!("oci:{}:latest", place.layout.display()), format!("docker://{}/{name}:1", place.address));
        let options = ["--insecure-policy", "copy", "--dest-tls-verify=false", "--dest-creds", credentials];
        let output = place.command(&skopeo, &[&options[..], &[&image, &target]].concat(), "nobody").output();
        output.expect("skopeo runs").status.success()
    };
    let inspect = |credentials: &str, name: &str| {
        let image = format!("docker://{}/{name}:1", place.address);
        let arguments = ["inspect", "--raw", "--tls-verify=false", "--creds", credentials, &image];
        place.command(&skopeo, &arguments, "nobody").output().expect("skopeo runs").status.success()
    };
    let pusher = lend(&["ci/*", "--push", "--pull", "--expires", "10m"]);
    assert!(pusher.starts_with("v1:") && push(&pusher, "ci/app") && !push(&pusher, "team/app"));
    Skopeo.push(&place, &skopeo, &format!("{}/team/app:1", place.address));
    let puller = lend(&["ci/app", "--user", "robot"]);
    assert!(puller.starts_with("robot:") && inspect(&puller, "ci/app"));
    assert!(!inspect(&puller, "team/app") && !push(&puller, "ci/app"));
    let told: Value = serde_json::from_str(&lend(&["**", "--json"])).expect("JSON");
    let whole = format!("v1:{}", told["password"].as_str().expect("a password"));
    assert!(inspect(&whole, "team/app") && told["expires"].as_str().is_some_and(|time| time.ends_with('Z')));
    for (arguments, expected) in [
        (&["ci/*", "--expires", "25h"][..], "a minute to 24 hours"),
        (&[], "no repositories are named"),
        (&["ci/*", "--user", "ann"], "is a user with a password of its own"),
    ] {
        let said = place.home.must_fail(&[&["registry", "credentials"], arguments].concat());
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn docker_logs_in_keeps_what_it_is_given_and_deletes_nothing_without_it() {
    let Some(place) = Place::new() else { return };
    let Some(engine) = &place.engine else { return };
    let login = |password: &str| {
        let mut command = engine.docker();
        command.env("DOCKER_CONFIG", place.home.path("kept"));
        command.args(["login", "-u", "ann", "-p", password, &place.address]).output().expect("docker runs")
    };
    assert!(!login("wrong").status.success());
    let output = login("secret");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let reference = format!("{}/team/kept:1", place.address);
    engine.load(&place.layout, &reference);
    succeeded(engine.docker().env("DOCKER_CONFIG", place.home.path("kept")).args(["push", &reference]));
    place.digest("team/kept", "1");
    let refused = engine.docker().env("DOCKER_CONFIG", place.home.path("nobody")).args(["push", &reference]).output();
    assert!(!refused.expect("docker runs").status.success());
}

#[test]
fn clients_delete_tags_and_list_what_there_is() {
    let Some(place) = Place::new() else { return };
    let Some(skopeo) = find("skopeo") else { return };
    for name in ["team/a", "team/b", "team/c"] {
        Skopeo.push(&place, &skopeo, &format!("{}/{name}:1", place.address));
    }
    let reference = |name: &str| format!("{}/{name}:1", place.address);
    place.must(&skopeo, &["delete", "--tls-verify=false", &format!("docker://{}", reference("team/a"))]);
    assert_eq!(place.get("/v2/team/a/manifests/1").0, 404);
    if let Some(crane) = find("crane") {
        let listed = place.must(&crane, &["catalog", &place.address]);
        assert!(listed.lines().any(|line| line == "team/b"), "{listed}");
        place.must(&crane, &["delete", &reference("team/b")]);
        assert_eq!(place.get("/v2/team/b/manifests/1").0, 404);
    }
    if let Some(oras) = find("oras") {
        let listed = place.must(&oras, &["repo", "tags", "--plain-http", &format!("{}/team/c", place.address)]);
        assert_eq!(listed, "1");
        place.must(&oras, &["manifest", "delete", "--force", "--plain-http", &reference("team/c")]);
        assert_eq!(place.get("/v2/team/c/manifests/1").0, 404);
    }
}

#[test]
fn cosign_signs_and_verifies_and_oras_finds_what_is_attached() {
    let Some(place) = Place::new() else { return };
    let (Some(skopeo), Some(cosign)) = (find("skopeo"), find("cosign")) else { return };
    let reference = format!("{}/team/signed:1", place.address);
    Skopeo.push(&place, &skopeo, &reference);
    let digest = place.digest("team/signed", "1");
    let pinned = format!("{}/team/signed@{digest}", place.address);
    let cosign = |arguments: &[&str]| place.command(&cosign, arguments, "login").env("COSIGN_PASSWORD", "").output();
    let must = |arguments: &[&str]| {
        let output = cosign(arguments).expect("cosign runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    must(&["generate-key-pair"]);
    let verify = ["verify", "--key", "cosign.pub", "--insecure-ignore-tlog", "--allow-http-registry", &pinned];
    assert!(!cosign(&verify).expect("cosign runs").status.success(), "nobody has signed it");
    must(&["sign", "--key", "cosign.key", "--tlog-upload=false", "--allow-http-registry", "-y", &pinned]);
    must(&verify);
    if let Some(oras) = find("oras") {
        place.home.write("sbom.json", "{}");
        place.must(
            &oras,
            &["attach", "--plain-http", "--artifact-type", "application/vnd.test.sbom", &pinned, "sbom.json"],
        );
        let found = place.must(&oras, &["discover", "--plain-http", "--format", "json", &pinned]);
        assert!(found.contains("application/vnd.test.sbom"), "{found}");
        // By the registry's own list: nothing falls back to a tag.
        let (_, tags) = place.get("/v2/team/signed/tags/list");
        assert!(!tags.contains(&format!("\"{}\"", digest.replace(':', "-"))), "{tags}");
    }
}
