//! The HTTP routes: each reads its request, calls one operation, and answers in the v4 envelope.

mod account;
mod applications;
mod auth;
mod exec;
mod instances;
mod open;
mod scripts;
mod secrets;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware;
use axum::routing::{get, post};
use http::Response;

use crate::error::Code;
use crate::wire::envelope;
use crate::{Control, ControlError};

/// Cloudflare accepts Workers of 10 MiB, compressed; source maps come on top.
const MAX_UPLOAD_BYTES: usize = 128 << 20;

/// What every handler returns; an error becomes an envelope.
pub(crate) type Answer = Result<Response<Body>, ControlError>;

impl axum::response::IntoResponse for ControlError {
    fn into_response(self) -> Response<Body> {
        let code = self.code.number();
        match self.code.status().is_server_error() {
            true => tracing::error!(code, error = self.chain(), "a request to the control API failed"),
            false => tracing::debug!(code, error = self.chain(), "a request to the control API was refused"),
        }
        envelope::failure(&self)
    }
}

pub(crate) fn router(control: Control) -> Router {
    let containers = Router::new()
        .route("/me", get(account::me))
        .route("/registries", get(account::registries))
        .route("/registries/{domain}/credentials", post(account::credentials))
        .route("/applications", get(applications::list).post(applications::create))
        .route("/applications/{id}", get(applications::show).patch(applications::modify).delete(applications::delete))
        .route("/applications/{id}/rollouts", get(applications::rollouts).post(applications::roll_out))
        .route("/applications/{id}/rollouts/{rollout}", get(applications::rollout))
        .route("/applications/{id}/logs", get(applications::logs))
        .route("/instances/{instance}/exec", post(exec::exec))
        .route("/instances/{instance}", get(instances::inspect))
        .route("/instances/{instance}/stop", post(instances::stop))
        .route("/instances/{instance}/restart", post(instances::restart))
        .route("/stats", get(instances::stats))
        .route("/events", get(instances::events))
        .route("/dash/applications", get(applications::dash))
        .route("/dash/applications/{id}/instances", get(applications::instances));
    let workers = Router::new()
        .route("/services/{name}", get(scripts::service).delete(scripts::delete))
        .route("/scripts", get(scripts::list))
        .route("/scripts/{name}", axum::routing::put(scripts::upload).delete(scripts::delete))
        .route("/scripts/{name}/logs", get(scripts::logs))
        .route("/scripts/{name}/tails", get(scripts::tails).post(scripts::tails))
        .route("/scripts/{name}/references", get(scripts::references))
        .route("/tails/by-consumer/{name}", get(account::tails))
        .route("/scripts/{name}/deployments", get(scripts::deployments))
        .route("/scripts/{name}/settings", get(scripts::settings).patch(secrets::settings))
        .route("/scripts/{name}/secrets", get(secrets::list).put(secrets::put).patch(secrets::patch))
        .route("/scripts/{name}/secrets/{secret}", axum::routing::delete(secrets::delete))
        .route("/scripts/{name}/versions", get(scripts::versions))
        .route("/scripts/{name}/versions/{version}", get(scripts::version))
        .route("/scripts/{name}/subdomain", get(scripts::subdomain).post(scripts::subdomain))
        .route("/subdomain", get(account::subdomain))
        .route("/durable_objects/namespaces", get(scripts::namespaces));
    let api = Router::new()
        .nest("/accounts/{account}/containers", containers)
        .nest("/accounts/{account}/workers", workers)
        .route("/accounts/{account}/storage/kv/namespaces", get(account::kv_namespaces))
        .route("/accounts", get(account::accounts))
        .route("/memberships", get(account::memberships))
        .route("/user/tokens/verify", get(account::verify))
        .fallback(no_route)
        .method_not_allowed_fallback(no_route)
        .layer(DefaultBodyLimit::max(MAX_UPLOAD_BYTES))
        .layer(middleware::from_fn_with_state(control.clone(), auth::require_token))
        .with_state(control.clone());
    let open = Router::new().route("/metrics", get(open::scrape)).route("/healthz", get(open::health));
    Router::new().nest("/client/v4", api).merge(open.with_state(control))
}

async fn no_route(request: Request) -> ControlError {
    ControlError::new(
        Code::NoRoute,
        format!("cfc has no route {} /client/v4{}", request.method(), request.uri().path()),
    )
}
