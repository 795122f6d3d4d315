//! The server: OpenAI's routes over HTTP, and a page to talk with the model.
//!
//! ```text
//! connection --door--> body --request--> Order --turns--> work on the model --events--> form --> answer, whole or streamed
//! ```
//!
//! **Nothing grows without bound.** Every request holds a place from its headers to the last byte of a stream, or until a whole
//! answer is made, and there are so many places; who finds none is told when to ask again. Bodies, prompts, answers and the time for each are limited. What an
//! answer may pile up before a slow reader is what the context has room for, and the slow reader holds its place, never a
//! session.
//!
//! **A client that leaves cancels its work**: its answer's channel closes, and the next step sees that.

mod answer;
mod door;
mod fields;
mod form;
mod metrics;
mod patient;
mod refusal;
mod request;
mod routes;
pub mod stdio;
mod tools;
mod turns;
mod work;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anemone_chat::Pool;
use anyhow::Result;
use axum::extract::Extension;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use self::door::Door;
use self::metrics::Metrics;
use self::patient::Patient;
use self::request::Desk;
use self::routes::{Peer, router};
use self::turns::Turns;
use crate::speak::Speaker;
use crate::ui::Ui;

/// How long a client may take to send its headers, then its body, and then to take any of its answer.
const SEND_TIME: Duration = Duration::from_secs(30);
/// Connections beyond the places: those that wait to be refused, and pages that keep one open.
const SPARE_CONNECTIONS: usize = 64;

/// What bounds the server.
pub struct Bounds {
    /// Where it listens.
    pub address: SocketAddr,
    /// The key it asks for.
    pub key: Option<String>,
    /// Bytes of resting and working sessions.
    pub cache: usize,
    /// Requests at once, from its headers to the last byte of a stream, or until a whole answer is made.
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
