//! `cfc prune` and the limit of the build cache, beside others who use the store.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::images::busybox_context;
use crate::support::{Home, Platform, can_sandbox, tools};

/// Steps of every kind on a base image: caches of the three sharing modes, a stage, a copy from it.
const DOCKERFILE: &str = "FROM test/base:1 AS made
ARG WHO=nobody
RUN --mount=type=cache,target=/shared --mount=type=cache,target=/locked,sharing=locked \
    --mount=type=cache,target=/private,sharing=private \
    echo \"$WHO\" >>/locked/who && echo x >>/shared/x && echo x >>/private/x && echo \"made for $WHO\" >/made
FROM test/base:1
COPY --from=made /made /made
COPY greeting /greeting
RUN cat /made /greeting >/both
";

/// A home with the base image, and the context of [`DOCKERFILE`].
fn with_base() -> (Home, String) {
    let home = Home::new();
    home.must(&["build", &busybox_context(&home), "-t", "test/base:1", "--target", "base"]);
    home.write("app/Dockerfile", DOCKERFILE);
    home.write("app/greeting", "hello\n");
    let context = home.path("app").display().to_string();
    (home, context)
}

/// Runs `work` while another thread prunes everything again and again; says how often it did.
fn while_pruning<T>(home: &Home, work: impl FnOnce() -> T) -> (T, usize) {
    let (is_over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                home.must(&["prune", "--all"]);
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        is_over.store(true, Ordering::Relaxed);
        outcome
    });
    (outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), count.into_inner())
}

/// Every blob has the content that its name says.
pub fn assert_whole(store: &Path) {
    for entry in std::fs::read_dir(store.join("blobs/sha256")).expect("lists") {
        let path = entry.expect("an entry").path();
        let content = std::fs::read(&path).expect("readable");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert_eq!(cfc_oci::Digest::of(&content).hex(), name, "{}", path.display());
    }
}

#[test]
fn builds_and_pushes_succeed_while_everything_is_pruned_all_the_time() {
    if !can_sandbox() {
        return;
    }
    let (home, context) = with_base();
    let expected: Vec<String> = (0..2).map(|who| digest(&home, &context, &format!("expected:{who}"), who)).collect();
    let (mut serving, registry) = crate::registry::serve(&home);
    let built = Mutex::new(BTreeSet::new());
    let ((), n_prunes) = while_pruning(&home, || {
        std::thread::scope(|scope| {
            for builder in 0..3 {
                let (home, context, built, registry) = (&home, &context, &built, &registry);
                scope.spawn(move || {
                    for round in 0..3 {
                        let who = (builder + round) % 2;
                        // Two builders fight for each name: what was built loses it, and is pruned.
                        let name = format!("{registry}/app:{}", builder % 2);
                        let digest = digest(home, context, &name, who);
                        home.must(&["push", &name]);
                        built.lock().expect("no panic").insert((who, digest));
                    }
                });
            }
        });
    });
    serving.end();
    assert!(n_prunes > 3, "only {n_prunes} prunes");
    let expected: BTreeSet<(usize, String)> = (0..).zip(expected).collect();
    assert_eq!(built.into_inner().expect("no panic"), expected, "the same inputs, the same images");
    let store = home.data().join("store");
    assert_whole(&store);

    // Nothing is left but what the names need, and no name is broken.
    home.must(&["prune", "--all"]);
    assert_eq!(home.must(&["prune", "--all"]), "Total: 0B");
    for directory in ["tmp", "uses", "layers", "mounts"] {
        assert_eq!(std::fs::read_dir(store.join(directory)).expect("lists").count(), 0, "{directory}");
    }
    let output = home.must(&["run", "expected:1", "/bin/cat", "/both"]);
    assert_eq!(output, "made for 1\nhello");
}

/// Builds for `who` and returns the image's digest.
fn digest(home: &Home, context: &str, name: &str, who: usize) -> String {
    let said = home.must(&["build", context, "-t", name, "--build-arg", &format!("WHO={who}")]);
    said.rsplit(' ').next().unwrap_or_default().to_string()
}

#[test]
fn what_is_deployed_and_what_runs_is_not_pruned() {
    if !can_sandbox() || tools().is_none() {
        return;
    }
    let home = Home::new();
    let project = home.project("container-starter");
    let platform = Platform::start(&home);
    home.must(&["deploy", &project.display().to_string()]);
    let visits = |session: &str| {
        let (status, body) = platform.ask("container-starter", session);
        assert_eq!(status, 200, "{body}\n{}", platform.log());
        body
    };
    // The name goes to another image: only the deployment needs the first one now.
    home.write("other/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    home.must(&["build", &home.path("other").display().to_string(), "-t", "container-starter-mycontainer"]);
    let ((), n_prunes) = while_pruning(&home, || {
        for session in ["alice", "bob", "carol", "alice"] {
            visits(session);
        }
        home.must(&["deploy", &project.display().to_string()]);
        visits("dave");
    });
    assert!(n_prunes > 1, "only {n_prunes} prunes");
    platform.kill();
    home.must(&["prune", "--all"]);
    let platform = Platform::start(&home);
    let (status, body) = platform.ask("container-starter", "erin");
    assert_eq!(status, 200, "{body}\n{}", platform.log());
    platform.stop();
}

#[test]
fn a_build_leaves_no_more_cache_than_its_limit_and_what_it_needs() {
    if !can_sandbox() {
        return;
    }
    let (home, context) = with_base();
    let mib = |number: usize| vec![b'a' + number as u8; 1 << 20];
    let build = |number: usize, home: &Home| {
        std::fs::write(home.path("app/greeting"), mib(number)).expect("writable");
        let said = home.must(&["build", &context, "-t", "app", "--compression", "none"]);
        assert_whole(&home.data().join("store"));
        said
    };
    let size = |home: &Home| -> usize {
        let blobs = std::fs::read_dir(home.data().join("store/blobs/sha256")).expect("lists").flatten();
        blobs.map(|blob| blob.metadata().expect("there").len() as usize).sum()
    };
    for number in 0..4 {
        build(number, &home);
    }
    assert!(size(&home) > 8 << 20, "without a limit reached everything stays: {}", size(&home));
    home.write("config.toml", "build_cache_limit = \"1MB\"\n");
    build(4, &home);
    let base = 3 << 20;
    assert!(size(&home) < base + (4 << 20), "{} bytes are left", size(&home));
    // What the last build made is in use by its name, and still saves the next one the work.
    let again = home.run(&["build", &context, "-t", "app", "--compression", "none"]);
    let said = String::from_utf8_lossy(&again.stderr).to_string();
    assert!(again.status.success() && said.matches(" CACHED").count() == 4, "{said}");

    home.write("config.toml", "build_cache_limit = \"a lot\"\n");
    let refused = home.must_fail(&["build", &context, "-t", "app"]);
    assert!(refused.contains("`a lot` is no size"), "{refused}");
}

#[test]
fn beside_an_earlier_version_builds_succeed_and_nothing_is_pruned() {
    let home = Home::new();
    home.write("context/Dockerfile", "FROM scratch\nCOPY Dockerfile /a\n");
    home.write("config.toml", "build_cache_limit = \"1\"\n");
    let context = home.path("context").display().to_string();
    home.must(&["build", &context, "-t", "one"]);
    // An earlier version only locks its directory in tmp/.
    let session = home.data().join("store/tmp/earlier");
    std::fs::create_dir(&session).expect("mkdir");
    let lock = std::fs::File::open(&session).expect("opens");
    lock.lock().expect("locks");
    let expected = format!("process {} ", std::process::id());
    home.write("context/Dockerfile", "FROM scratch\nCOPY Dockerfile /b\n");
    let output = home.run(&["build", &context, "-t", "one"]);
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(output.status.success() && said.matches(&expected).count() == 1, "{said}");
    let refused = home.must_fail(&["prune"]);
    assert!(refused.contains(&expected) && refused.contains("cfc upgrade"), "{refused}");
    drop(lock);
    home.must(&["prune"]);
}

#[test]
fn filters_that_are_not_known_are_named() {
    let home = Home::new();
    assert_eq!(home.must(&["prune"]), "Total: 0B", "there is no store yet");
    for (filter, expected) in [
        ("inuse=true", "the key `inuse` is not supported"),
        ("until=yesterday", "`yesterday` is no length of time"),
        ("type=frontend", "there is no type `frontend`"),
        ("until", "it is not KEY=VALUE"),
    ] {
        let said = home.must_fail(&["prune", "--filter", filter]);
        assert!(said.contains(expected) && said.contains("hint: "), "{said}");
    }
    home.write("context/Dockerfile", "FROM scratch\nCOPY Dockerfile /a\nCOPY Dockerfile /b\n");
    let context = home.path("context").display().to_string();
    home.must(&["build", &context, "-t", "one"]);
    home.must(&["build", &context, "-t", "one", "--label", "changed=yes"]);
    assert_eq!(home.must(&["prune", "--filter", "until=1h"]), "Total: 0B");
    let would = home.must(&["prune", "--dry-run"]);
    assert!(would.contains("regular") && would.contains("Would free: "), "{would}");
    let done = home.must(&["prune"]);
    assert_eq!(done.lines().count(), would.lines().count(), "{done}");
    assert_eq!(home.must(&["prune"]), "Total: 0B");
}
