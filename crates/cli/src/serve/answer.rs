//! A request for an answer, from its body to the last byte: whole, or as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Response, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt};

use super::fields::Fields;
use super::form::{Chunks, Collected, Form, Route};
use super::refusal::Refusal;
use super::request::Asked;
use super::routes::{Peer, reply};
use super::work::{Event, Order, Usage};
use super::{App, SEND_TIME};

/// How many times the body's limit is read, to be polite.
const OVERREAD: usize = 8;

/// `POST /v1/chat/completions`.
pub async fn chat(State(app): State<Arc<App>>, Extension(peer): Extension<Peer>, request: Request) -> Response<Body> {
    let response = answer(&app, peer, request, Route::Chat).await;
    app.metrics.responded("/v1/chat/completions", response.status().as_u16());
    response
}

/// `POST /v1/completions`.
pub async fn completions(
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
    let Asked { orders, form, stream, party } = asked.map_err(Refusal::internal)??;
    let party = party.map_or_else(|| format!("peer {peer}"), |user| format!("user {user}"));
    let mut events = Orders::submit(orders, |order| app.turns.submit(party.clone(), order));
    let choices = events.choices();
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
async fn collect(form: Form, mut events: Orders, choices: usize) -> Result<Response<Body>, Refusal> {
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

/// What is told of the orders of a request, as if they were one. Those behind wait in their channels, which the context bounds.
struct Orders {
    /// Those that are not done, with how many choices each has.
    open: VecDeque<(UnboundedReceiver<Event>, usize)>,
    /// Choices of those that are,
    before: usize,
    /// and what they took.
    usage: Usage,
}

impl Orders {
    fn submit(orders: Vec<Order>, mut submit: impl FnMut(Order) -> UnboundedReceiver<Event>) -> Self {
        let open = orders.into_iter().map(|order| {
            let choices = order.choices;
            (submit(order), choices)
        });
        Self { open: open.collect(), before: 0, usage: Usage::default() }
    }

    /// How many answers there are to be.
    fn choices(&self) -> usize {
        self.open.iter().map(|(_, choices)| choices).sum()
    }

    async fn recv(&mut self) -> Option<Event> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            let Some((events, choices)) = self.open.front_mut() else { return Poll::Ready(None) };
            match ready!(events.poll_recv(context)) {
                Some(Event::Done(usage)) => {
                    self.usage.add(&usage);
                    self.before += *choices;
                    self.open.pop_front();
                    if self.open.is_empty() {
                        return Poll::Ready(Some(Event::Done(self.usage)));
                    }
                }
                event => return Poll::Ready(event.map(|event| event.numbered_from(self.before))),
            }
        }
    }
}

/// An answer as server-sent events. Holds the request's place until it is read to its end.
struct Events {
    first: Option<Event>,
    rest: Orders,
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
