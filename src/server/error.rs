//! What an answer looks like when it is an error: `{"error":{"code":"…","message":"…","hint":"…"}}`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// An error for a client: a stable code, a message for people, and what to do next.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: String,
    beside: Map<String, Value>,
}

impl ApiError {
    /// `code` is a stable word, `message` a sentence.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, code, message: message.into(), hint: String::new(), beside: Map::new() }
    }

    /// What the client can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> ApiError {
        self.hint = hint.into();
        self
    }

    /// A field beside `error`.
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> ApiError {
        self.beside.insert(field.to_owned(), value.into());
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = self.beside;
        body.insert("error".into(), json!({ "code": self.code, "message": self.message, "hint": self.hint }));
        (self.status, Json(Value::Object(body))).into_response()
    }
}
