//! The functions of `fuzz/`, with bytes made of what is there and chance: what libFuzzer does, without its coverage and in a
//! bounded number of steps. Each prints its seed; `CFC_TEST_SEED=<seed>` repeats it, `CFC_FUZZ_STEPS=<n>` goes on longer.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use crate::support::repository;

/// Xorshift: enough to vary bytes.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time after 1970");
        let seed = match std::env::var("CFC_TEST_SEED") {
            Ok(seed) => seed.parse().expect("CFC_TEST_SEED to be a number"),
            Err(_) => now.as_nanos() as u64 | 1,
        };
        eprintln!("CFC_TEST_SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// What texts are made of, and numbers that make parsers stumble.
const TOKENS: [&[u8]; 48] = [
    b"FROM ",
    b"RUN ",
    b"COPY ",
    b"ADD ",
    b"ONBUILD ",
    b"HEALTHCHECK ",
    b"--mount=",
    b"type=cache,",
    b"--from=",
    b"<<E",
    b"\nE\n",
    b"${",
    b"}",
    b":-",
    b"$A",
    b"##",
    b"//",
    b"\\\n",
    b"\"",
    b"'",
    b"[",
    b"]",
    b"**/",
    b"*",
    b"!",
    b"..",
    b"/",
    b"\0",
    b"\n",
    b"\xff",
    b"\xc3\xa9",
    b"{",
    b":",
    b",",
    b"@sha256:",
    b"0",
    b"9",
    b"77777777777",
    b"18446744073709551616",
    b"-1",
    b"\x80\0\0\0",
    b".wh.",
    b".wh..wh..opq",
    b"size=",
    b" path=",
    b"GNU.sparse.",
    b"ustar\0",
    b"\x1f\x8b\x08\0",
];

/// One of the inputs, changed in a few places.
fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut data = random.pick(corpus).clone();
    for _ in 0..=random.below(6) {
        let (at, length) = (random.below(data.len() + 1), random.below(40));
        let end = (at + length).min(data.len());
        match random.below(7) {
            0 if at < data.len() => data[at] ^= 1 << random.below(8),
            1 => drop(data.drain(at..end)),
            2 => drop(data.splice(at..at, random.pick(&TOKENS).iter().copied())),
            3 => {
                let piece = data[at..end].repeat(1 + random.below(3));
                drop(data.splice(at..at, piece));
            }
            4 => {
                let other = random.pick(corpus);
                let from = random.below(other.len() + 1);
                let piece = other[from..(from + 600).min(other.len())].to_vec();
                drop(data.splice(at..end, piece));
            }
            5 if random.below(8) == 0 => data.truncate(at),
            _ => drop(data.splice(at..end, random.pick(&TOKENS).iter().copied())),
        }
    }
    data.truncate(1 << 16);
    data
}

fn run(target: fn(&[u8]), corpus: &[Vec<u8>], n_steps: usize) {
    let n_steps = std::env::var("CFC_FUZZ_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(n_steps);
    let mut random = Random::new();
    corpus.iter().for_each(|data| target(data));
    for step in 0..n_steps {
        let data = mutate(&mut random, corpus);
        if let Err(panic) = std::panic::catch_unwind(|| target(&data)) {
            let path = std::env::temp_dir().join(format!("cfc-fuzz-{}-{step}", std::process::id()));
            fs::write(&path, &data).expect("writable");
            eprintln!("the input is in {}", path.display());
            std::panic::resume_unwind(panic);
        }
    }
}

/// The Dockerfiles of `testdata`.
fn dockerfiles() -> Vec<Vec<u8>> {
    files_called("Dockerfile")
}

fn files_called(name: &str) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut pending: Vec<PathBuf> = vec![repository().join("testdata/dockerfile")];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("lists").flatten() {
            match entry.file_type().expect("a type").is_dir() {
                true => pending.push(entry.path()),
                false if entry.file_name() == name => found.push(fs::read(entry.path()).expect("reads")),
                false => {}
            }
        }
    }
    assert!(!found.is_empty(), "no {name} in testdata");
    found
}

fn texts(lines: &[&str]) -> Vec<Vec<u8>> {
    lines.iter().map(|line| line.as_bytes().to_vec()).collect()
}

/// Only who has a nightly compiler builds `fuzz/`; this is what went wrong with it.
#[test]
fn libfuzzers_crate_has_a_program_for_every_target_and_names_what_they_use() {
    let read = |name: &str| fs::read_to_string(repository().join("fuzz").join(name)).expect("readable");
    let (targets, manifest) = (read("targets.rs"), read("Cargo.toml"));
    let names = targets.lines().filter_map(|line| line.strip_prefix("pub fn ")?.split_once("(data: &[u8])"));
    let names: Vec<&str> = names.map(|(name, _)| name).collect();
    assert!(names.len() >= 9, "{names:?}");
    for name in names {
        assert!(read(&format!("fuzz_targets/{name}.rs")).contains(&format!("targets::{name}(data)")), "{name}");
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not in fuzz/Cargo.toml");
    }
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    let paths = targets.match_indices("::").map(|(at, _)| targets[..at].rsplit(|c| !is_word(c)).next().unwrap_or(""));
    for used in paths.filter(|word| word.starts_with("cfc_") || *word == "serde_json") {
        // Cargo's names have dashes where paths have none.
        let is_named = manifest.lines().any(|line| line.replace('-', "_").starts_with(&format!("{used} = ")));
        assert!(is_named, "fuzz/Cargo.toml does not name {used}");
    }
}

#[test]
fn dockerfiles_made_by_chance_are_read_or_refused() {
    run(targets::dockerfile, &dockerfiles(), 20_000);
}

#[test]
fn dockerfiles_made_by_chance_are_planned_or_refused() {
    run(targets::plan, &dockerfiles(), 10_000);
}

#[test]
fn words_made_by_chance_are_expanded_or_refused() {
    let words = ["a$A${A:-b}", "${A/x*/y}\nxxxx", "${A//[a-z]?/$B}", "${A##*/}\na/b/c", "\"$A\" 'x' \\$A", "${A%%.*}"];
    run(targets::words, &texts(&words), 50_000);
}

#[test]
fn ignore_files_made_by_chance_are_read_or_refused() {
    let mut corpus = files_called(".dockerignore");
    corpus.extend(texts(&[
        "*\n!a/**/b\n--\na/x/b\nc",
        "**/*.[a-z]\n!x\\*\n--\nx*/y.b",
        "a*a*a*a*a*b\n--\naaaaaaaaaaaaaaaaaaaa",
    ]));
    run(targets::ignore, &corpus, 30_000);
}

#[test]
fn mounts_and_modes_made_by_chance_are_read_or_refused() {
    let mounts = [
        "type=cache,id=a,target=/b,sharing=locked,mode=0700,uid=1",
        "type=secret,id=a,env=B,required",
        "u=rwX,go-w",
        "type=bind,from=a,source=b,rw",
        "0644",
        "type=tmpfs,target=/t,size=1g",
    ];
    run(targets::mount, &texts(&mounts), 30_000);
}

#[test]
fn outputs_made_by_chance_are_read_or_refused() {
    let outputs = ["type=oci,dest=a.tar,tar=false", "type=local,\"dest=a,\"\"b\"", "-", "dir", "type=image,push=true"];
    run(targets::output, &texts(&outputs), 50_000);
}

#[test]
fn descriptions_of_images_made_by_chance_are_read_or_refused() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":7}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":9}}]}}"#
    );
    let config = format!(
        r#"{{"created":"1980-01-01T00:00:01Z","architecture":"amd64","os":"linux","config":{{"User":"a","ExposedPorts":{{"80/tcp":{{}}}},"Env":["A=b"],"Healthcheck":{{"Test":["CMD","x"],"Interval":1}},"Volumes":{{"/v":{{}}}}}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}},"history":[{{"created_by":"x","empty_layer":true}}]}}"#
    );
    let name = format!("registry.example:5000/a/b:tag@{digest}");
    run(targets::image, &texts(&[&manifest, &config, &name, &digest, "linux/arm64/v8", "SIGTERM"]), 30_000);
}

/// Archives as programs write them: names of all kinds, links, devices, pax and GNU headers, in every compression.
fn archives() -> Vec<Vec<u8>> {
    let directory = tempfile::tempdir().expect("a directory");
    let script = r#"
        mkdir -p t/d/e && echo content >t/d/e/f && ln t/d/e/f t/hard && ln -s ../../etc/passwd t/link && mkfifo t/fifo
        mkdir t/ü && : >t/ü/.wh.gone && : >t/d/.wh..wh..opq && truncate -s 1M t/sparse && chmod 4755 t/hard
        long=$(printf 'n%.0s' $(seq 1 120)); mkdir -p "t/$long" && : >"t/$long/$long" && printf 'FROM scratch\nCOPY . /\n' >t/Dockerfile
        for format in ustar gnu pax oldgnu v7; do tar --format=$format --exclude=sparse -cf $format.tar t 2>/dev/null || :; done
        tar --format=gnu -S -cf sparse.tar t; tar --format=pax -S -cf sparse-pax.tar t
        gzip -nk pax.tar"#;
    let status = std::process::Command::new("sh").args(["-c", script]).current_dir(directory.path()).status();
    assert!(status.expect("sh runs").success());
    let entries = fs::read_dir(directory.path()).expect("lists").flatten().map(|entry| entry.path());
    let mut found: Vec<_> = entries.filter(|path| path.is_file()).map(|path| fs::read(path).expect("reads")).collect();
    let frames: Vec<Vec<u8>> = found.iter().map(|tar| compressed(tar)).collect();
    found.extend(frames);
    found
}

fn compressed(tar: &[u8]) -> Vec<u8> {
    let mut child = std::process::Command::new("gzip")
        .arg("-nc1")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("gzip runs");
    let mut input = child.stdin.take().expect("a pipe");
    let tar = tar.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&tar));
    let output = child.wait_with_output().expect("gzip ends");
    writer.join().expect("no panic").expect("written");
    output.stdout
}

#[test]
fn layers_made_by_chance_are_unpacked_in_their_place_or_refused() {
    run(targets::archive, &archives(), 600);
}

#[test]
fn contexts_made_by_chance_are_unpacked_in_their_place_or_refused() {
    run(targets::context, &archives(), 150);
}

const DIGEST: &str = "sha256:84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";

#[test]
fn paths_made_by_chance_are_no_fault_of_the_registry() {
    let blob = format!("a/blobs/{DIGEST}");
    let digest = format!("a/manifests/{DIGEST}?tag=v1&tag=v2");
    let paths = [
        "",
        "_catalog?n=10&last=a/b&tags=true",
        "a/b/c/tags/list?n=0&last=v1",
        "a/manifests/v1",
        &digest,
        &blob,
        "a/blobs/uploads/?mount=sha256:00&from=b",
        "a/blobs/uploads/67e55044-10b1-426f-9247-bb680e5fe0c8?digest=sha512:00",
        "a/referrers/sha256:00?artifactType=a%2Fb",
        "a%2f..%2fb/blobs/uploads/?digest-algorithm=sha512",
    ];
    run(targets::registry_path, &texts(&paths), 1_000);
}

#[test]
fn ranges_made_by_chance_are_no_fault_of_the_registry() {
    let tag = format!("W/\"{DIGEST}\"");
    let ranges = ["bytes=0-4", "bytes=-3", "bytes=5-", "bytes=0-1,3-4", "0-4", "bytes 5-9/10", "5-9", &tag];
    run(targets::registry_range, &texts(&ranges), 500);
}

#[test]
fn digests_made_by_chance_are_no_fault_of_the_registry() {
    let long = format!("sha512:{}", "0123456789abcdef".repeat(8));
    run(targets::registry_digest, &texts(&[DIGEST, &long, "sha256:zz", "md5:00", "v1", "sha512", "100"]), 500);
}

#[test]
fn manifests_made_by_chance_are_no_fault_of_the_registry() {
    let descriptor =
        |kind: &str| format!(r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{DIGEST}","size":10}}"#);
    let (config, layer, manifest) =
        (descriptor("config.v1+json"), descriptor("layer.v1.tar"), descriptor("manifest.v1+json"));
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let image = format!(
        r#"{{"schemaVersion":2,"mediaType":"{kind}","config":{config},"layers":[{layer}],"subject":{manifest},"annotations":{{"a":"b"}}}}"#
    );
    let index =
        format!(r#"{{"schemaVersion":2,"artifactType":"a/b","manifests":[],"subject":{manifest},"annotations":{{}}}}"#);
    let nested = format!(r#"{{"schemaVersion":2,"manifests":{}{}}}"#, "[".repeat(100), "]".repeat(100));
    run(targets::registry_manifest, &texts(&[&image, &index, &nested, "{}", "[2]"]), 1_500);
}

#[test]
fn scopes_made_by_chance_are_no_fault_of_the_registry() {
    let scopes = [
        "repository:a/b:pull,push",
        "repository:a:*&scope=registry:catalog:*",
        "repository(plugin):a:pull repository:host:5000/a:pull",
        "grant_type=password&username=v1&password=x&access_type=offline",
        "grant_type=refresh_token&refresh_token=a.b.c&service=cfc-registry",
        "&offline_token=true&service=other",
    ];
    run(targets::registry_scope, &texts(&scopes), 1_000);
}
