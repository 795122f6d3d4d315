//! The server: OpenAI's routes over HTTP, and a page to talk with the model.
//!
//! ```text
//! connection --door--> body --request--> Order --turns--> work on the model --events--> form --> answer, whole or streamed
//! ```
//!
//! **Nothing grows without bound.** Every request holds a place from its first byte to the last byte of its answer, and there are
//! so many places; who finds none is told when to ask again. Bodies, prompts, answers and the time for each are limited. What an
//! answer may pile up before a slow reader is what the context has room for, and the slow reader holds its place, never a
//! session.
//!
//! **A client that leaves cancels its work**: its answer's channel closes, and the next step sees that.

mod door;
mod fields;
mod form;
mod metrics;
mod patient;
mod refusal;
mod request;
pub mod stdio;
mod tools;
mod turns;
mod work;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use anemone_chat::Pool;
use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, Response, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt};

use self::door::Door;
use self::fields::Fields;
use self::form::{Chunks, Collected, Form, Route};
use self::metrics::Metrics;
use self::patient::Patient;
use self::refusal::Refusal;
use self::request::{Asked, Desk};
use self::turns::Turns;
use self::work::Event;
use crate::speak::Speaker;
use crate::ui::Ui;

/// How long a client may take to send its headers, then its body, and then to take any of its answer.
const SEND_TIME: Duration = Duration::from_secs(30);
/// How many times the body's limit is read, to be polite.
const OVERREAD: usize = 8;
/// Connections beyond the places: those that wait to be refused, and pages that keep one open.
const SPARE_CONNECTIONS: usize = 64;

/// The page: one file, which asks for nothing but this server.
const PAGE: &str = include_str!("page.html");
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
     img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What bounds the server.
pub struct Bounds {
    /// Where it listens.
    pub address: SocketAddr,
    /// The key it asks for.
    pub key: Option<String>,
    /// Bytes of resting and working sessions.
    pub cache: usize,
    /// Requests at once, from first byte in to last byte out.
    pub places: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// Tokens of a prompt; at most what the context holds.
    pub prompt: Option<usize>,
    /// How long an answer may take.
    pub time: Duration,
    /// Threads that run the model.
    pub workers: usize,
}

/// What handlers share.
struct App {
    desk: Desk,
    door: Door,
    turns: Turns<'static>,
    pool: &'static Pool<'static>,
    metrics: &'static Metrics,
    places: Arc<Semaphore>,
    body: usize,
    time: Duration,
}

/// Serves until an interrupt or a request to end, then finishes what was begun.
pub fn run(speaker: Speaker, bounds: &Bounds, ui: &Ui) -> Result<()> {
    // Handlers and model threads hold the model to the end of the process, which is when this function returns.
    let speaker: &'static Speaker = Box::leak(Box::new(speaker));
    let pool: &'static Pool<'static> = Box::leak(Box::new(Pool::new(&speaker.engine, bounds.cache)));
    let metrics: &'static Metrics = Box::leak(Box::default());
    let app = Arc::new(App {
        desk: Desk::new(speaker, bounds.prompt),
        door: Door::new(bounds.address, bounds.key.as_deref()),
        turns: Turns::new(pool, &speaker.voice.tokenizer, metrics),
        pool,
        metrics,
        places: Arc::new(Semaphore::new(bounds.places)),
        body: bounds.body,
        time: bounds.time,
    });
    let workers: Vec<_> = (0..bounds.workers.max(1))
        .map(|_| {
            let app = Arc::clone(&app);
            std::thread::spawn(move || app.turns.work())
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    let served = runtime.block_on(listen(&app, bounds, ui));
    app.turns.close();
    workers.into_iter().for_each(|worker| {
        if worker.join().is_err() {
            ui.say("a model thread ended with a fault");
        }
    });
    served
}

/// Takes connections until a signal, and returns when the last answer is out.
async fn listen(app: &Arc<App>, bounds: &Bounds, ui: &Ui) -> Result<()> {
    let listener = TcpListener::bind(bounds.address)
        .await
        .map_err(|e| anyhow::anyhow!("cannot listen on {}: {e}; choose another with --port", bounds.address))?;
    ui.say(format_args!(
        "{} at http://{} (OpenAI's routes under /v1; a page to talk with at /). Interrupt to end.",
        app.desk.model,
        listener.local_addr()?
    ));
    let connections = Arc::new(Semaphore::new(bounds.places + SPARE_CONNECTIONS));
    let ending = GracefulShutdown::new();
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(SEND_TIME);
    let router = router(Arc::clone(app));
    let mut signals = Signals::new()?;
    loop {
        let connection = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let ((stream, peer), permit) = tokio::select! {
            (accepted, permit) = connection => match (accepted, permit) {
                (Ok(accepted), Ok(permit)) => (accepted, permit),
                // Such as too many open files: others may end meanwhile.
                _ => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = signals.next() => break,
        };
        let service = TowerToHyperService::new(router.clone().layer(Extension(Peer(peer))));
        let connection = ending.watch(http.serve_connection(TokioIo::new(Patient::new(stream, SEND_TIME)), service));
        tokio::spawn(async move {
            // A connection that breaks is the client's affair.
            let _ = connection.await;
            drop(permit);
        });
    }
    drop(listener);
    ui.say("ending: what is being answered is finished first; interrupt again to stop at once");
    tokio::select! {
        () = ending.shutdown() => Ok(()),
        () = signals.next() => std::process::exit(130),
    }
}

/// Interrupt and, where there is one, the system's request to end.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            terminate: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}

/// The other end of a connection.
#[derive(Clone, Copy)]
struct Peer(SocketAddr);

fn router(app: Arc<App>) -> Router {
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

async fn model(State(app): State<Arc<App>>, axum::extract::Path(name): axum::extract::Path<String>) -> Response<Body> {
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

async fn chat(State(app): State<Arc<App>>, Extension(peer): Extension<Peer>, request: Request) -> Response<Body> {
    let response = answer(&app, peer, request, Route::Chat).await;
    app.metrics.responded("/v1/chat/completions", response.status().as_u16());
    response
}

async fn completions(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response<Body> {
    let response = answer(&app, peer, request, Route::Text).await;
    app.metrics.responded("/v1/completions", response.status().as_u16());
    response
}

async fn answer(app: &Arc<App>, peer: Peer, request: Request, route: Route) -> Response<Body> {
    attempt(app, peer, request, route).await.unwrap_or_else(|refusal| refusal.response())
}

async fn attempt(app: &Arc<App>, Peer(peer): Peer, request: Request, route: Route) -> Result<Response<Body>, Refusal> {
    let place = Arc::clone(&app.places).try_acquire_owned().map_err(|_| busy(app))?;
    let kind = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.trim_start().to_ascii_lowercase().starts_with("application/json") {
        let message = "send JSON, with the header `Content-Type: application/json`";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
    }
    let body = read_body(app, request).await?;
    let deadline = Instant::now() + app.time;
    let reader = Arc::clone(app);
    // Templates, tokenizers and grammars take their time; those who stream are not to wait for it.
    let asked = tokio::task::spawn_blocking(move || reader.desk.read(route, Fields::parse(&body)?, deadline)).await;
    let Asked { order, form, stream, party } = asked.map_err(Refusal::internal)??;
    let choices = order.choices;
    let party = party.map_or_else(|| format!("peer {peer}"), |user| format!("user {user}"));
    let mut events = app.turns.submit(party, order);
    match stream {
        false => collect(form, events, choices).await,
        true => {
            // Until something comes, a failure still has a status of its own.
            let first = events.recv().await.ok_or_else(|| Refusal::internal("the work on this answer ended"))?;
            if let Event::Failed(refusal) = first {
                return Err(refusal);
            }
            let chunks = Chunks::new(choices);
            let stream = Events { first: Some(first), rest: events, form, chunks, _place: place };
            let mut response = Response::new(Body::from_stream(stream));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            Ok(response)
        }
    }
}

/// The body, which is read further than it may go, and thrown away, so that the client comes to read why it was refused.
async fn read_body(app: &App, request: Request) -> Result<Vec<u8>, Refusal> {
    let mut stream = request.into_body().into_data_stream();
    let (mut body, mut size) = (Vec::new(), 0);
    let read = async {
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, "body_broken", e.to_string()))?;
            size += chunk.len();
            if size <= app.body {
                body.extend_from_slice(&chunk);
            } else if size > OVERREAD * app.body {
                break;
            }
        }
        Ok(())
    };
    match timeout(SEND_TIME, read).await {
        Ok(Ok(())) if size <= app.body => Ok(body),
        Ok(Ok(())) => {
            let message = format!("the body is larger than {} bytes", app.body);
            Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message))
        }
        Ok(Err(refusal)) => Err(refusal),
        Err(_) => {
            let message = format!("the body did not come within {} s", SEND_TIME.as_secs());
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message))
        }
    }
}

/// Where every place is taken: when one may be free.
fn busy(app: &App) -> Refusal {
    let seconds = app.metrics.mean_answer().as_secs_f64().ceil().clamp(1.0, 60.0) as u64;
    let message = "as many requests are being answered as this server takes at once; ask again later";
    let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "busy", message);
    Refusal { retry_after: Some(seconds), ..refusal }
}

/// The whole answer, once it is there.
async fn collect(form: Form, mut events: UnboundedReceiver<Event>, choices: usize) -> Result<Response<Body>, Refusal> {
    let mut collected = vec![Collected::default(); choices];
    loop {
        match events.recv().await {
            Some(Event::Done(usage)) => return Ok(reply(&form.whole(&collected, &usage))),
            Some(Event::Failed(refusal)) => return Err(refusal),
            Some(event) => Collected::add(&mut collected, event),
            None => return Err(Refusal::internal("the work on this answer ended")),
        }
    }
}

/// An answer as server-sent events. Holds the request's place until it is read to its end.
struct Events {
    first: Option<Event>,
    rest: UnboundedReceiver<Event>,
    form: Form,
    chunks: Chunks,
    _place: OwnedSemaphorePermit,
}

impl Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let event = match this.first.take() {
            Some(first) => Some(first),
            None => ready!(this.rest.poll_recv(context)),
        };
        Poll::Ready(event.map(|event| {
            let done = matches!(event, Event::Done(_));
            let mut text: String = this.chunks.of(&this.form, event).iter().map(|c| format!("data: {c}\n\n")).collect();
            if done {
                text.push_str("data: [DONE]\n\n");
            }
            Ok(Bytes::from(text))
        }))
    }
}

fn reply(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
