//! Retention: which tags stay, by number, age and name.

use std::time::{Duration, SystemTime};

use cfc_registry::{Options, RetentionRule, ask_to_retain};

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
