//! Random pushes, deletions and lists, compared with a model that keeps it all in maps.

use std::collections::{BTreeMap, BTreeSet};

use cfc_oci::Digest;
use serde_json::Value;

use crate::harness::{Server, expect, header, image, noise};

const STEPS: u64 = 400;

/// Names and tags that are prefixes of one another, and that sort differently by bytes than by words.
const NAMES: [&str; 6] = ["a", "a/b", "a-b", "a.b", "ab", "a/b/tags"];
const TAGS: [&str; 8] = ["a", "ab", "a.b", "a-b", "B", "1", "10", "_"];

/// What ought to be there: for each repository the manifests, and what tags point at.
#[derive(Default)]
struct Model(BTreeMap<String, Repository>);

#[derive(Default)]
struct Repository {
    manifests: BTreeMap<Digest, String>,
    tags: BTreeMap<String, Digest>,
}

/// Numbers that look random, the same for a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }
}

async fn step(server: &Server, model: &mut Model, random: &mut Random) {
    let (name, tag) = (random.of(&NAMES), random.of(&TAGS));
    let repository = model.0.entry(name.to_string()).or_default();
    match random.below(10) {
        0..=3 => {
            let config = server.push_blob(name, &noise(20, random.below(5) as u64)).await;
            let json = image(&config, &[], "");
            expect(&server.put_manifest(name, tag, &json).await, 201);
            repository.tags.insert(tag.to_string(), Digest::of(json.as_bytes()));
            repository.manifests.insert(Digest::of(json.as_bytes()), json);
        }
        4 => {
            let expected = if repository.tags.remove(tag).is_some() { 202 } else { 404 };
            expect(&server.delete(&format!("/v2/{name}/manifests/{tag}")).await, expected);
        }
        5 => {
            let index = random.below(3);
            let Some(digest) = repository.manifests.keys().nth(index).cloned() else { return };
            expect(&server.delete(&format!("/v2/{name}/manifests/{digest}")).await, 202);
            repository.manifests.remove(&digest);
            repository.tags.retain(|_, target| *target != digest);
        }
        6 => {
            let response = server.get(&format!("/v2/{name}/manifests/{tag}")).await;
            match repository.tags.get(tag) {
                Some(digest) => {
                    assert_eq!(header(&response, "docker-content-digest"), digest.to_string());
                    assert_eq!(response.text().await.expect("body"), repository.manifests[digest]);
                }
                None => expect(&response, 404),
            }
        }
        7 | 8 => check_tags(server, name, repository, random).await,
        _ => check_catalog(server, model, random).await,
    }
}

/// All pages of a list, by following its links.
async fn pages(server: &Server, mut path: String, member: &str) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let response = server.get(&path).await;
        expect(&response, 200);
        let next = response.headers().get("link").map(|link| link.to_str().expect("ASCII").to_string());
        let body: Value = response.json().await.expect("JSON");
        let page = body[member].as_array().expect("a list");
        all.extend(page.iter().map(|name| name.as_str().expect("text").to_string()));
        match next {
            Some(link) => path = link.trim_start_matches('<').split('>').next().expect("a link").to_string(),
            None => return all,
        }
    }
}

async fn check_tags(server: &Server, name: &str, repository: &Repository, random: &mut Random) {
    let (last, n) = (random.of(&TAGS), 1 + random.below(4));
    let path = format!("/v2/{name}/tags/list?n={n}&last={last}");
    if repository.manifests.is_empty() {
        return expect(&server.get(&path).await, 404);
    }
    let expected: Vec<String> = repository.tags.keys().filter(|tag| tag.as_str() > last).cloned().collect();
    assert_eq!(pages(server, path, "tags").await, expected, "{name} after {last} by {n}");
}

async fn check_catalog(server: &Server, model: &Model, random: &mut Random) {
    let names = model.0.iter().filter(|(_, repository)| !repository.manifests.is_empty()).map(|(name, _)| name);
    let expected: BTreeSet<String> = names.cloned().collect();
    let path = format!("/v2/_catalog?n={}", 1 + random.below(3));
    assert_eq!(pages(server, path, "repositories").await, expected.into_iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn random_steps_do_what_the_model_does() {
    let seed = std::env::var("CFC_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("CFC_TEST_SEED={seed}");
    let (mut server, mut model, mut random) = (Server::start().await, Model::default(), Random(seed));
    // A store answers more slowly than a disk, the more so when it is written in Python.
    let steps = if crate::store::endpoint().is_some() { STEPS / 8 } else { STEPS };
    for number in 0..steps {
        step(&server, &mut model, &mut random).await;
        if number % (steps / 4) == steps / 4 - 1 {
            // What is kept in memory must not be all there is.
            server = server.restart().await;
        }
    }
    assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
}
