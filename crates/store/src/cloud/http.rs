//! The HTTP client under the clouds' stores.
//!
//! It is reqwest, twice: uploads and downloads have pools of their own, so that a storm of fetches neither takes the
//! uploads' connections nor waits behind their bodies. And it notes what the wire showed, for the attempt that waits for
//! it: whether the request left, the answer's status and error code, and how far the store's clock is from ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use async_trait::async_trait;
use isobar_host::Host;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use parking_lot::Mutex;

use crate::cause::{Exchange, chain_text};

tokio::task_local! {
    /// Of the attempt that runs in this task.
    static EXCHANGE: Arc<Mutex<Exchange>>;
}

/// Runs an attempt whose exchange is written to `exchange`.
pub(crate) async fn observed<T>(exchange: &Arc<Mutex<Exchange>>, attempt: impl Future<Output = T>) -> T {
    EXCHANGE.scope(Arc::clone(exchange), attempt).await
}

fn note(change: impl FnOnce(&mut Exchange)) {
    // Outside an attempt (a test that uses the store directly) nobody asks.
    let _ = EXCHANGE.try_with(|exchange| change(&mut exchange.lock()));
}

/// Credentials were asked for elsewhere than through these clients, in vain.
#[cfg(feature = "aws")]
pub(crate) fn no_credentials(why: &str) {
    note(|exchange| exchange.credentials = Some((None, why.to_owned())));
}

const NO_SKEW: i64 = i64::MIN;

/// What all clients of one store know together.
#[derive(Debug, Clone)]
pub(crate) struct Wire(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    host: HostClock,
    /// Clients made so far. The builders make those for credentials first, the store's own last.
    clients: AtomicUsize,
    store_client: AtomicUsize,
    skew_ms: AtomicI64,
    /// What the URL says, without a password.
    proxy: Option<String>,
}

struct HostClock(Host);

impl std::fmt::Debug for HostClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Host")
    }
}

impl Wire {
    pub(super) fn new(host: &Host, proxy: Option<&str>) -> Self {
        Self(Arc::new(Shared {
            host: HostClock(host.clone()),
            clients: AtomicUsize::new(0),
            store_client: AtomicUsize::new(usize::MAX),
            skew_ms: AtomicI64::new(NO_SKEW),
            proxy: proxy.map(|proxy| match (proxy.find("://"), proxy.rfind('@')) {
                (Some(scheme), Some(at)) => format!("{}{}", &proxy[..scheme + 3], &proxy[at + 1..]),
                (None, Some(at)) => proxy[at + 1..].to_owned(),
                (_, None) => proxy.to_owned(),
            }),
        }))
    }

    /// The store's builder is done: its last client is the store's.
    pub(super) fn built(&self) {
        let last = self.0.clients.load(Ordering::Relaxed).saturating_sub(1);
        self.0.store_client.store(last, Ordering::Relaxed);
    }

    /// The store's clock minus ours in milliseconds, as its last answer's `Date` showed it; exact to a second.
    pub(crate) fn skew_ms(&self) -> Option<i64> {
        Some(self.0.skew_ms.load(Ordering::Relaxed)).filter(|skew| *skew != NO_SKEW)
    }
}

#[derive(Debug)]
pub(super) struct Connector {
    wire: Wire,
}

impl Connector {
    pub(super) fn new(wire: Wire) -> Self {
        Self { wire }
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let reqwest = ReqwestConnector::default();
        let index = self.wire.0.clients.fetch_add(1, Ordering::Relaxed);
        let (upload, download) = (reqwest.connect(options)?, reqwest.connect(options)?);
        Ok(HttpClient::new(Watched { wire: self.wire.clone(), index, upload, download }))
    }
}

#[derive(Debug)]
struct Watched {
    wire: Wire,
    index: usize,
    upload: HttpClient,
    download: HttpClient,
}

#[async_trait]
impl HttpService for Watched {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let for_store = self.index == self.wire.0.store_client.load(Ordering::Relaxed);
        let uploads = matches!(request.method().as_str(), "PUT" | "POST");
        if for_store {
            note(|exchange| exchange.sent = true);
        }
        let client = if uploads { &self.upload } else { &self.download };
        let result = client.execute(request).await;
        match &result {
            Ok(response) if for_store => {
                self.note_date(response);
                note(|exchange| note_answer(exchange, response));
            }
            Ok(response) if !response.status().is_success() => {
                let status = response.status().as_u16();
                note(|exchange| {
                    exchange.credentials =
                        Some((Some(status), format!("the credentials' source answered {status}")));
                });
            }
            Ok(_) => note(|exchange| exchange.credentials = None),
            Err(error) if for_store => {
                if matches!(error.kind(), HttpErrorKind::Connect) {
                    note(|exchange| {
                        exchange.sent = false;
                        exchange.proxy.clone_from(&self.wire.0.proxy);
                    });
                }
            }
            Err(error) => {
                let met = format!("the credentials' source cannot be asked: {}", chain_text(error));
                note(|exchange| exchange.credentials = Some((None, met)));
            }
        }
        result
    }
}

impl Watched {
    fn note_date(&self, response: &HttpResponse) {
        let date = response.headers().get("date").and_then(|date| date.to_str().ok()).and_then(http_date_ms);
        if let Some(date_ms) = date {
            self.wire.0.skew_ms.store(date_ms - self.wire.0.host.0.now_ms(), Ordering::Relaxed);
        }
    }
}

fn note_answer(exchange: &mut Exchange, response: &HttpResponse) {
    let status = response.status();
    exchange.status = Some(status.as_u16());
    exchange.code = None;
    if !status.is_success() {
        let code = response
            .headers()
            .get("x-ms-error-code")
            .or_else(|| response.headers().get("x-minio-error-code"));
        exchange.code = code.and_then(|code| code.to_str().ok()).map(str::to_owned);
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7) in milliseconds since 1970.
fn http_date_ms(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let day: i64 = words.next()?.parse().ok()?;
    let month_name = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month_name)? as i64 + 1;
    let year: i64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    // Days since 1970 of a civil date, years beginning in March (Howard Hinnant's algorithm).
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let days =
        era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000)
}

#[cfg(test)]
mod tests {
    use super::http_date_ms;

    #[test]
    fn dates_are_read() {
        assert_eq!(http_date_ms("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date_ms("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777_000));
        assert_eq!(http_date_ms("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199_000));
        assert_eq!(http_date_ms("Fri, 01 Mar 2024 00:00:00 GMT"), Some(1_709_251_200_000));
        for wrong in ["", "now", "Sun, 06 Nov 1994", "Sun, 06 Nof 1994 08:49:37 GMT"] {
            assert_eq!(http_date_ms(wrong), None);
        }
    }
}
