//! The routes of Docker's API that there are, with and without a version in front.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use serde_json::json;

use crate::Engine;
use crate::containers;
use crate::docker;
use crate::exec;
use crate::operations;
use crate::streams;

/// Every route, as `/containers/…` (workerd) and as `/v1.43/containers/…` (Docker's clients).
pub(crate) fn router(engine: Engine) -> Router {
    Router::new()
        .merge(routes())
        .nest("/{version}", routes())
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(middleware::from_fn_with_state(engine.clone(), refuse_when_leaving))
        .with_state(engine)
}

fn routes() -> Router<Engine> {
    Router::new()
        .route("/_ping", get(ping))
        .route("/version", get(version))
        .route("/info", get(info))
        .route("/networks/bridge", get(bridge))
        .route("/volumes", get(volumes))
        .route("/containers/create", post(containers::create))
        .route("/containers/{name}/json", get(containers::inspect))
        .route("/containers/json", get(operations::list))
        .route("/containers/{name}/start", post(containers::start))
        .route("/containers/{name}/stop", post(operations::stop))
        .route("/containers/{name}/restart", post(operations::restart))
        .route("/containers/{name}/top", get(operations::top))
        .route("/containers/{name}/stats", get(streams::stats))
        .route("/containers/{name}/logs", get(streams::logs))
        .route("/events", get(streams::events))
        .route("/containers/{name}/wait", post(containers::wait))
        .route("/containers/{name}/kill", post(containers::kill))
        .route("/containers/{name}/exec", post(exec::create))
        .route("/exec/{id}/start", post(exec::start))
        .route("/exec/{id}/json", get(exec::inspect))
        .route("/exec/{id}/resize", post(exec::resize))
        .route("/containers/{name}", delete(containers::remove))
}

async fn refuse_when_leaving(State(engine): State<Engine>, request: Request, next: Next) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD) && !request.uri().path().ends_with("/wait");
    if changes && engine.is_leaving() {
        return docker::error(StatusCode::SERVICE_UNAVAILABLE, "the Worker is being replaced: try again".to_string());
    }
    next.run(request).await
}

/// Docker's client looks here for the version to speak.
async fn ping() -> impl IntoResponse {
    ([("Api-Version", docker::API_VERSION), ("Ostype", "linux"), ("Docker-Experimental", "false")], "OK")
}

async fn version() -> Response {
    docker::answer(StatusCode::OK, &docker::version())
}

async fn info(State(engine): State<Engine>) -> Response {
    docker::answer(StatusCode::OK, &docker::info(streams::running(&engine)))
}

async fn bridge() -> Response {
    docker::answer(StatusCode::OK, &docker::bridge())
}

async fn volumes() -> Response {
    docker::answer(StatusCode::OK, &json!({ "Volumes": [], "Warnings": null }))
}

/// What is not there, by the name of what it would be good for.
async fn unknown(method: Method, uri: Uri) -> Response {
    let path = uri.path();
    let is_about = |word: &str| path.split('/').any(|segment| segment == word);
    let feature = [
        ("archive", "files put into or got out of a container (archive; HTTPS interception and snapshots need it)"),
        ("commit", "container snapshots (commit)"),
        ("volumes", "volumes (directory snapshots need them)"),
        ("images", "images by this interface"),
        ("pause", "pausing of containers"),
        ("unpause", "pausing of containers"),
        ("rename", "renaming of containers: workerd names them"),
        ("update", "changing of limits by this interface: the instance type has them"),
        ("export", "export of a container's files"),
        ("changes", "a list of a container's changed files"),
        ("attach", "attaching to a container"),
    ]
    .into_iter()
    .find_map(|(word, feature)| is_about(word).then(|| feature.to_string()));
    docker::not_implemented(&feature.unwrap_or_else(|| format!("`{method} {path}` of Docker's API")))
}
