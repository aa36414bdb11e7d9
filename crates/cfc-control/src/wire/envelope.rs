//! The v4 envelope: `{"success", "result", "errors", "messages", "result_info"}` around every answer.

use axum::body::Body;
use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, Response};
use serde_json::{Value, json};

use crate::ControlError;
use crate::error::Code;

/// An answer with a result. The status is 200 even for what was deleted: wrangler reads a body from every answer.
pub(crate) fn success(result: Value) -> Response<Body> {
    respond(http::StatusCode::OK, &json!({"success": true, "result": result, "errors": [], "messages": []}))
}

/// One page that is all there is of a list.
pub(crate) fn list(items: Vec<Value>) -> Response<Body> {
    let count = items.len();
    let result_info = json!({"count": count, "page": 1, "per_page": count, "total_count": count, "total_pages": 1});
    let body = json!({"success": true, "result": items, "errors": [], "messages": [], "result_info": result_info});
    respond(http::StatusCode::OK, &body)
}

/// The answer that says why there is no result. wrangler prints the first message and the error chain below it.
pub(crate) fn failure(error: &ControlError) -> Response<Body> {
    let number = error.code.number();
    let hints: Vec<Value> =
        error.hint.iter().map(|hint| json!({"code": number, "message": format!("hint: {hint}")})).collect();
    let mut item = json!({"code": number, "message": error.chain()});
    if !hints.is_empty() {
        item["error_chain"] = Value::Array(hints);
    }
    item["cfc"] = json!({"location": error.location, "hint": error.hint});
    let body = json!({"success": false, "result": null, "errors": [item], "messages": []});
    let mut response = respond(error.code.status(), &body);
    if error.code == Code::Unauthenticated {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn respond(status: http::StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What a client reads from a failure.
pub(crate) struct ReceivedError {
    pub number: u32,
    pub message: String,
    pub location: Option<String>,
    pub hint: Option<String>,
}

/// The first error of an envelope; `None` where the body is none.
pub(crate) fn read_failure(body: &Value) -> Option<ReceivedError> {
    let item = body.get("errors")?.get(0)?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_string);
    Some(ReceivedError {
        number: item.get("code").and_then(Value::as_u64).and_then(|code| code.try_into().ok()).unwrap_or(0),
        message: text(item.get("message"))?,
        location: text(item.pointer("/cfc/location")),
        hint: text(item.pointer("/cfc/hint")),
    })
}
