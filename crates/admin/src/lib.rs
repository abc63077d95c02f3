//! The admin port: Prometheus metrics and health over HTTP/1.1.
//!
//! Owns: the listener and its connections, at most [`MAX_CONNECTIONS`] of them.
//! Promises: answers `/metrics` (OpenMetrics text), `/healthz` (200 while the process can go on) and `/readyz` (200
//! once clients are served), and never holds up the data path: a page is made from counters that are only read. Below `/v1/`
//! it hands calls to the node's [`Operations`], whatever they are.
//! May not know: Kafka, the store.

mod operations;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use isobar_host::{Conn, Host, Task};
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

/// Connections served at once; more wait to be accepted.
pub const MAX_CONNECTIONS: usize = 64;

/// How long a client may take to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the health pages say.
pub trait Health: Send + Sync + 'static {
    /// `Err(reason)` when only a restart or an operator can help.
    fn alive(&self) -> Result<(), String>;
    /// `Err(reason)` while clients are not served.
    fn ready(&self) -> Result<(), String>;
    /// Refreshes gauges that are read rather than counted, before a metrics page is made.
    fn refresh(&self) {}
}

pub use operations::{Call, LINE_QUEUE, Operations, Reply};

use operations::PageBody;

/// Why the admin port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be listened on: choose another with `--admin`.
    #[error("cannot listen on admin address {addr}: {source}")]
    Listen {
        /// The address asked for.
        addr: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// The running admin server.
pub struct Admin {
    local_addr: SocketAddr,
    task: Task,
}

impl Admin {
    /// Listens on `addr` and serves until [`Admin::stop`].
    pub async fn start(
        host: &Host,
        addr: &str,
        registry: Arc<Registry>,
        health: Arc<dyn Health>,
        operations: Arc<dyn Operations>,
    ) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Listen { addr: addr.to_owned(), source };
        let listener = host.listen(addr).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let pages = Arc::new(Pages { registry, health, operations });
        let spawner = host.clone();
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let task = host.spawn("admin.listen", async move {
            loop {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((conn, _)) => {
                        let pages = Arc::clone(&pages);
                        spawner.spawn("admin.connection", async move {
                            pages.serve(conn).await;
                            drop(slot);
                        });
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: give others time to close.
                        tracing::warn!(%error, "admin port cannot accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Ok(Self { local_addr, task })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops accepting.
    pub fn stop(&self) {
        self.task.abort();
    }
}

struct Pages {
    registry: Arc<Registry>,
    health: Arc<dyn Health>,
    operations: Arc<dyn Operations>,
}

impl Pages {
    async fn serve(self: Arc<Self>, conn: Conn) {
        let service = service_fn(move |request| {
            let pages = Arc::clone(&self);
            async move { Ok::<_, Infallible>(pages.answer(request).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(conn), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "admin connection ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<PageBody> {
        if request.uri().path().starts_with(operations::PREFIX) {
            return operations::answer(&*self.operations, request).await;
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return page(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n".to_owned());
        }
        match request.uri().path() {
            "/metrics" => self.metrics(),
            "/healthz" => verdict(self.health.alive()),
            "/readyz" => verdict(self.health.alive().and_then(|()| self.health.ready())),
            "/" => page(StatusCode::OK, "text/plain", "isobar: /metrics /healthz /readyz /v1/\n".to_owned()),
            _ => page(StatusCode::NOT_FOUND, "text/plain", "try /metrics, /healthz or /readyz\n".to_owned()),
        }
    }

    fn metrics(&self) -> Response<PageBody> {
        self.health.refresh();
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => {
                page(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
            }
            Err(error) => page(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
        }
    }
}

fn verdict(state: Result<(), String>) -> Response<PageBody> {
    match state {
        Ok(()) => page(StatusCode::OK, "text/plain", "ok\n".to_owned()),
        Err(reason) => page(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{reason}\n")),
    }
}

fn page(status: StatusCode, kind: &'static str, body: String) -> Response<PageBody> {
    let mut response = Response::new(PageBody::whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
