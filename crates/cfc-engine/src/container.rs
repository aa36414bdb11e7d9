//! [`Container`]: the container that a path names.
//!
//! workerd names containers in full, and means exactly those: `workerd-<key>-<id>`, there or not. Docker's clients may say
//! the beginning of an id as well, Docker's (a digest of the name) or the Durable Object's. Nobody reaches the containers
//! of another Worker.

use axum::extract::{FromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use cfc_oci::Digest;
use cfc_runtime::InstanceView;
use serde::Deserialize;

use crate::Engine;
use crate::docker::{error, no_such_container};
use crate::worker::{beside, is_full_name, object_id};

/// The full name of the container that a path names. There need not be one.
#[derive(Debug)]
pub(crate) struct Container {
    pub name: String,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl FromRequestParts<Engine> for Container {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, engine: &Engine) -> Result<Container, Response> {
        let named = Path::<Named>::from_request_parts(parts, engine).await;
        let Path(Named { name }) = named.map_err(|problem| error(StatusCode::BAD_REQUEST, problem.body_text()))?;
        let name = resolve(engine, name.trim_start_matches('/')).map_err(|answer| *answer)?;
        Ok(Container { name })
    }
}

/// Docker's id of a container: sixty-four digits.
pub(crate) fn id_of(name: &str) -> String {
    Digest::of(name.as_bytes()).hex().to_string()
}

/// The Worker's own containers, by name.
pub(crate) fn own(engine: &Engine) -> Vec<InstanceView> {
    let names = engine.names();
    let is_own = |view: &InstanceView| names.application_of(&view.spec.name).is_some();
    engine.runtime().list().into_iter().filter(is_own).collect()
}

fn resolve(engine: &Engine, given: &str) -> Result<String, Box<Response>> {
    if is_full_name(given) {
        let container = beside(given).unwrap_or(given);
        let is_own = engine.names().application_of(container).is_some();
        engine.claim(container);
        let is_there = is_own && !engine.is_outdated(given);
        return if is_there { Ok(given.to_string()) } else { Err(Box::new(no_such_container(given))) };
    }
    let names: Vec<String> = own(engine).into_iter().map(|view| view.spec.name).collect();
    find(given, &names).map_err(|several| {
        if several.is_empty() {
            return Box::new(no_such_container(given));
        }
        let problem = format!("multiple containers have ids that begin with {given}: {}", several.join(", "));
        Box::new(error(StatusCode::BAD_REQUEST, problem))
    })
}

/// The name of the one whose id is `given`, or begins so; else the ids of all that do.
fn find(given: &str, names: &[String]) -> Result<String, Vec<String>> {
    let is_exact = |name: &&String| id_of(name) == given || object_id(name) == given;
    let begins = |name: &&String| id_of(name).starts_with(given) || object_id(name).starts_with(given);
    if let Some(name) = names.iter().find(is_exact) {
        return Ok(name.clone());
    }
    let found: Vec<&String> = names.iter().filter(|name| !given.is_empty() && begins(name)).collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        several => Err(several.iter().map(|name| object_id(name).to_string()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_their_unambiguous_beginnings_are_understood() {
        let names = ["workerd-app-C-0af3", "workerd-app-C-0b11"].map(str::to_string);
        let first = || Ok(names[0].clone());
        assert_eq!(find("0af3", &names), first());
        assert_eq!(find("0a", &names), first());
        assert_eq!(find(&id_of(&names[0]), &names), first());
        assert_eq!(find(&id_of(&names[0])[..12], &names), first());
        assert_eq!(find("0", &names[..]).expect_err("two begin so").len(), 2);
        assert_eq!(find("", &names), Err(Vec::new()), "an empty name names nobody");
        assert_eq!(find("workerd-app-C-0a", &names), Err(Vec::new()), "a name is a name in full");
    }
}
