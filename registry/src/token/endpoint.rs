//! `/token`: GET with Basic credentials as distribution's token documentation has it, POST as its OAuth2 documentation
//! has it.

use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, Method, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, Limited};
use serde_json::json;

use super::{MAX_SCOPES, SERVICE};
use crate::auth::Gate;
use crate::error::{ApiError, Problem};
use crate::query::Query;
use crate::registry::Inner;
use crate::visit::Visit;
use crate::{Credentials, TokenAnswer, TokenRequest};

/// A form is not longer.
const MAX_FORM_BYTES: usize = 64 * 1024;

/// What a form proves by itself.
struct Grant {
    credentials: Option<Credentials>,
    request: TokenRequest,
}

/// Gives a client a token for what it may do of what it asks for, which may be nothing.
pub(crate) async fn answer(
    registry: &Inner,
    gate: &Gate<'_>,
    parts: &Parts,
    body: &mut Body,
    visit: &mut Visit,
) -> Result<Response, ApiError> {
    let grant = match parts.method {
        Method::GET => asked(&Query::parse(parts.uri.query()))?,
        Method::POST => granted(&form(registry, body).await?)?,
        _ => return Err(ApiError::from(Problem::MethodNotAllowed).with_header(header::ALLOW, "GET, POST")),
    };
    if let Some(Credentials::Basic { username, .. }) = &grant.credentials {
        visit.is_by(Some(username.clone()));
    }
    match gate.issue(grant.credentials, &grant.request).await? {
        TokenAnswer::Issued { token, lifetime, scope, refresh_token, user } => {
            visit.proof().store(true, Ordering::Relaxed);
            visit.is_by(user);
            let mut answer = json!({
                "token": token,
                "access_token": token,
                "expires_in": lifetime.as_secs(),
                "issued_at": cfc_oci::rfc3339(super::now() as i64),
                "scope": scope,
            });
            if let Some(refresh_token) = refresh_token {
                answer["refresh_token"] = refresh_token.into();
            }
            Ok(uncached(answer.to_string()))
        }
        TokenAnswer::Refused => {
            let error = ApiError::new(Problem::Unauthorized, "the user name, password or token is wrong");
            Err(error.with_header(header::WWW_AUTHENTICATE, "Basic realm=\"cfc registry\""))
        }
        TokenAnswer::Busy => Err(ApiError::from(Problem::TooManyLogins).with_header(header::RETRY_AFTER, "1")),
        TokenAnswer::Unsupported => Err(Problem::NotFound.into()),
    }
}

/// The answer with a token in it is for nobody else.
fn uncached(body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What a GET asks for.
fn asked(query: &Query) -> Result<Grant, ApiError> {
    let request = request(query, query.first("offline_token") == Some("true"))?;
    Ok(Grant { credentials: None, request })
}

/// What a form asks for, and how it proves who does.
fn granted(form: &Query) -> Result<Grant, ApiError> {
    let field = |name: &str| form.first(name).map(str::to_string);
    let missing = |name| ApiError::new(Problem::TokenRequest, format!("the form has no `{name}`"));
    let mut grant = Grant { credentials: None, request: request(form, form.first("access_type") == Some("offline"))? };
    match form.first("grant_type") {
        Some("password") => {
            let username = field("username").ok_or_else(|| missing("username"))?;
            let password = field("password").ok_or_else(|| missing("password"))?;
            grant.credentials = Some(Credentials::Basic { username, password });
        }
        Some("refresh_token") => {
            let token = field("refresh_token").ok_or_else(|| missing("refresh_token"))?;
            grant.request.refresh_token = Some(token);
        }
        _ => {
            let what = "expected `grant_type` to be `password` or `refresh_token`";
            return Err(ApiError::new(Problem::TokenRequest, what));
        }
    }
    Ok(grant)
}

fn request(query: &Query, wants_refresh: bool) -> Result<TokenRequest, ApiError> {
    match query.first("service") {
        Some(service) if !service.is_empty() && service != SERVICE => {
            Err(ApiError::new(Problem::TokenRequest, format!("expected `service` to be `{SERVICE}`")))
        }
        _ => {
            let scopes: Vec<String> = query.all("scope").map(str::to_string).collect();
            let count = scopes.iter().flat_map(|text| text.split(' ')).filter(|text| !text.is_empty()).count();
            if count > MAX_SCOPES {
                let what =
                    format!("a token is for at most {MAX_SCOPES} scopes, and these are {count}: ask for several");
                return Err(ApiError::new(Problem::TokenRequest, what));
            }
            Ok(TokenRequest { scopes, refresh_token: None, wants_refresh })
        }
    }
}

async fn form(registry: &Inner, body: &mut Body) -> Result<Query, ApiError> {
    let patience = registry.options.limits.idle;
    let read = tokio::time::timeout(patience, Limited::new(body, MAX_FORM_BYTES).collect()).await;
    let bytes = match read {
        Ok(Ok(bytes)) => bytes.to_bytes(),
        Ok(Err(_)) => return Err(ApiError::new(Problem::TokenRequest, "the form is too long, or ended early")),
        Err(_) => return Err(ApiError::new(Problem::TokenRequest, "the form did not come in time")),
    };
    let text =
        std::str::from_utf8(&bytes).map_err(|_| ApiError::new(Problem::TokenRequest, "the form is not UTF-8"))?;
    Ok(Query::parse(Some(text)))
}
