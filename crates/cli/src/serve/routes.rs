//! The routes: which there are, who may use them, and what the small ones answer.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, Response, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::App;
use super::answer::{chat, completions};
use super::refusal::Refusal;

/// The page: one file, which asks for nothing but this server.
const PAGE: &str = include_str!("page.html");
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
     img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The other end of a connection.
#[derive(Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// All of them.
pub fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/metrics", get(metrics))
        .route_layer(from_fn_with_state(Arc::clone(&app), guard));
    let open = Router::new().route("/", get(page)).route("/health", get(health));
    guarded
        .merge(open)
        .fallback(async |request: Request| {
            let path = request.uri().path().to_owned();
            Refusal::new(StatusCode::NOT_FOUND, "not_found", format!("there is no route {path}")).response()
        })
        .method_not_allowed_fallback(async |method: Method, request: Request| {
            let message = format!("{} does not take {method}", request.uri().path());
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message).response()
        })
        .with_state(app)
}

async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response<Body> {
    match app.door.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.response(),
    }
}

async fn page() -> Response<Body> {
    let mut response = Response::new(Body::from(PAGE));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

async fn health(State(app): State<Arc<App>>) -> Response<Body> {
    let (waiting, running) = app.turns.load();
    reply(&json!({"status": "ok", "waiting": waiting, "running": running}))
}

async fn metrics(State(app): State<Arc<App>>) -> Response<Body> {
    let session = app.pool.engine().session_bytes();
    let text = app.metrics.render(app.turns.load(), app.pool.occupancy(), session);
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

async fn models(State(app): State<Arc<App>>) -> Response<Body> {
    reply(&json!({"object": "list", "data": [described(&app)]}))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Response<Body> {
    match name == app.desk.model {
        true => reply(&described(&app)),
        false => {
            let message = format!("there is no model `{name}` here; this server has `{}`", app.desk.model);
            Refusal::new(StatusCode::NOT_FOUND, "model_not_found", message).response()
        }
    }
}

/// The one model there is.
fn described(app: &App) -> Value {
    let c = app.pool.engine().contract();
    json!({
        "id": app.desk.model,
        "object": "model",
        "created": 0,
        "owned_by": "anemone",
        "context": c.context,
        "max_prompt_tokens": app.desk.max_prompt,
        "system_fingerprint": app.desk.fingerprint,
    })
}

/// A JSON answer.
pub fn reply(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
