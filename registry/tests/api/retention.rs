//! Retention: which tags stay, by number, age and name.

use std::time::{Duration, SystemTime};

use cfc_oci::Digest;
use cfc_registry::{Options, RetentionRule, Rules, ask_to_retain};

use crate::harness::{Server, expect, operator};

fn rule(repositories: &str, tags: &str, keep_last: Option<usize>, days: Option<u64>, keep: &[&str]) -> RetentionRule {
    RetentionRule {
        repositories: vec![repositories.to_string()],
        tags: vec![tags.to_string()],
        keep_last,
        keep_younger: days.map(|days| Duration::from_secs(days * 24 * 60 * 60)),
        keep: keep.iter().map(|pattern| pattern.to_string()).collect(),
    }
}

/// Pushes a tag as if that had been some days ago.
async fn push(server: &Server, name: &str, tag: &str, days: u64) {
    server.push_image(name, tag, &format!("{name}:{tag}")).await;
    let path = server.root().join(format!("registry/repositories/{name}/_tags/{tag}"));
    let file = std::fs::File::options().write(true).open(path).expect("a tag is a file");
    file.set_modified(SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60 + 60)).expect("sets");
}

async fn tags(server: &Server, name: &str) -> String {
    let tags = server.registry.tags(&name.parse().expect("a name")).await.expect("lists");
    tags.iter().map(|tag| tag.as_str()).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn tags_stay_by_number_age_and_name() {
    if crate::store::skips("the times of tags are those of files") {
        return;
    }
    let retention = vec![
        rule("ci/*", "pr-*", Some(2), None, &[]),
        rule("ci/*", "**", Some(1), Some(5), &["release-*"]),
        rule("old/**", "**", None, Some(30), &[]),
    ];
    let immutable_tags = vec!["ci/app:v*".to_string()];
    let server = Server::start_with(Options { retention, immutable_tags, ..Options::default() }).await;
    for (tag, days) in [("pr-1", 1), ("pr-2", 2), ("pr-3", 3), ("pr-4", 100)] {
        push(&server, "ci/app", tag, days).await;
    }
    for (tag, days) in [("a", 10), ("b", 8), ("c", 4), ("release-1", 400), ("v1", 500), ("d", 9)] {
        push(&server, "ci/app", tag, days).await;
    }
    push(&server, "ci/one", "only", 900).await;
    push(&server, "old/x/y", "young", 29).await;
    push(&server, "old/x/y", "old", 31).await;
    push(&server, "free", "old", 1000).await;

    let told = server.registry.retain(true).await.expect("looks");
    let names: Vec<String> = told.iter().map(|tag| format!("{}:{}", tag.repository, tag.tag)).collect();
    let expected = ["ci/app:a", "ci/app:b", "ci/app:d", "ci/app:pr-3", "ci/app:pr-4", "old/x/y:old"];
    assert_eq!(names, expected);
    assert!(told.iter().all(|tag| tag.digest.starts_with("sha256:") && tag.pushed > 0));
    assert_eq!(tags(&server, "ci/app").await, "a b c d pr-1 pr-2 pr-3 pr-4 release-1 v1", "it was only asked");

    assert_eq!(server.registry.retain(false).await.expect("removes"), told);
    assert_eq!(tags(&server, "ci/app").await, "c pr-1 pr-2 release-1 v1");
    assert_eq!(tags(&server, "ci/one").await, "only");
    assert_eq!(tags(&server, "old/x/y").await, "young");
    assert_eq!(tags(&server, "free").await, "old");
    assert_eq!(server.registry.retain(false).await.expect("looks"), []);
    // The manifest stays for garbage collection to judge.
    expect(&server.get(&format!("/v2/ci/app/manifests/{}", told[0].digest)).await, 200);
}

/// Long enough for a store that tells when something was put in whole seconds.
const APART: Duration = Duration::from_millis(1100);

#[tokio::test]
async fn tags_are_as_old_as_their_last_push() {
    let retention = vec![
        rule("n/*", "**", Some(2), None, &["keep*"]),
        RetentionRule { keep_younger: Some(Duration::from_secs(600)), ..rule("y/*", "**", None, None, &[]) },
        RetentionRule { keep_younger: Some(APART / 2), ..rule("o/*", "**", None, None, &[]) },
    ];
    let immutable_tags = vec!["n/app:v*".to_string()];
    let server = Server::start_with(Options { retention, immutable_tags, ..Options::default() }).await;
    for tag in ["keep", "v1", "b", "c", "a", "b"] {
        for name in ["n/app", "y/app", "o/app", "free"] {
            // The same bytes again, and others.
            server.push_image(name, tag, if tag == "b" { "x" } else { tag }).await;
        }
        tokio::time::sleep(APART).await;
    }
    let told = server.registry.retain(true).await.expect("looks");
    let names: Vec<String> = told.iter().map(|tag| format!("{}:{}", tag.repository, tag.tag)).collect();
    assert_eq!(names, ["n/app:c", "o/app:a", "o/app:b", "o/app:c", "o/app:keep", "o/app:v1"]);
    assert_eq!(server.registry.retain(false).await.expect("removes"), told);
    assert_eq!(tags(&server, "n/app").await, "a b keep v1");
    assert_eq!(tags(&server, "y/app").await, "a b c keep v1");
    assert_eq!(tags(&server, "o/app").await, "");
    assert_eq!(tags(&server, "free").await, "a b c keep v1");
    assert_eq!(server.registry.retain(false).await.expect("looks"), []);
}

/// What clients name after a manifest is no version of anything: it stays with the manifest, and goes after it.
#[tokio::test]
async fn signatures_stay_with_what_they_sign() {
    let retention = vec![rule("a", "**", Some(1), None, &[])];
    let collection = Rules { grace: Duration::from_secs(1800), untagged: Some(Duration::ZERO) };
    let options = Options { retention, collection, collect_every: None, ..Options::default() };
    let server = Server::start_with(options).await;
    let (one, _) = server.push_image("a", "one", "one").await;
    let names = |digest: &Digest| ["", ".att", ".sbom", ".sig"].map(|end| format!("sha256-{}{end}", digest.hex()));
    for name in names(&one) {
        server.push_image("a", &name, &name).await;
    }
    // Looks like such a name, and is none.
    server.push_image("a", "sha256-abc.sig", "other").await;
    tokio::time::sleep(APART).await;
    server.push_image("a", "two", "two").await;
    let retired = server.registry.retain(false).await.expect("removes");
    assert_eq!(retired.iter().map(|tag| tag.tag.as_str()).collect::<Vec<_>>(), ["one", "sha256-abc.sig"]);
    assert_eq!(tags(&server, "a").await, format!("{} two", names(&one).join(" ")));
    server.registry.collect(collection, false).await.expect("collects");
    expect(&server.get(&format!("/v2/a/manifests/{one}")).await, 404);
    let retired = server.registry.retain(false).await.expect("removes");
    assert_eq!(retired.iter().map(|tag| tag.tag.clone()).collect::<Vec<_>>(), names(&one));
    assert_eq!(tags(&server, "a").await, "two");
}

#[tokio::test]
async fn it_happens_by_itself_and_when_the_operator_asks() {
    if crate::store::skips("the times of tags are those of files") {
        return;
    }
    let retention = vec![rule("**", "**", Some(1), None, &[])];
    let options =
        Options { retention: retention.clone(), collect_every: Some(Duration::from_millis(50)), ..Options::default() };
    let server = Server::start_with(options).await;
    push(&server, "a", "one", 2).await;
    push(&server, "a", "two", 1).await;
    for _ in 0..1000 {
        if tags(&server, "a").await == "two" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(tags(&server, "a").await, "two");

    let server = Server::start_with(Options { retention, ..Options::default() }).await;
    push(&server, "a", "one", 2).await;
    push(&server, "a", "two", 1).await;
    // Nobody else may ask.
    let asked = crate::harness::send(server.request("PUT", "/operator/retention")).await;
    expect(&asked, 404);
    let socket = server.root().join("operator");
    operator(&server.registry, &socket).await;
    let retired = ask_to_retain(&socket).await.expect("removes");
    assert_eq!(retired.iter().map(|tag| tag.tag.as_str()).collect::<Vec<_>>(), ["one"]);
    assert_eq!(tags(&server, "a").await, "two");
}
