//! What an operator asks a node to do, over `/v1/`: a call is JSON, an answer is JSON or lines of it while the work goes on.
//!
//! A POST must say `content-type: application/json`: a page in a browser cannot send that to another origin unasked, so a node
//! on loopback is not worked by whatever its owner happens to look at.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::mpsc;

/// What operations' paths begin with.
pub(crate) const PREFIX: &str = "/v1/";
/// Largest body of a call.
const CALL_BYTES: usize = 64 << 10;
/// Lines that wait for a reader; who works waits for it too.
pub const LINE_QUEUE: usize = 64;

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// POST; else GET.
    pub post: bool,
    /// What follows `/v1/`.
    pub path: String,
    /// JSON; empty with GET.
    pub body: Bytes,
}

/// The answer to a call.
#[derive(Debug)]
pub enum Reply {
    /// One JSON text.
    Json {
        /// HTTP's.
        status: u16,
        /// Without a newline at its end.
        text: String,
    },
    /// One JSON text a line, each with its newline, until the sender is dropped; the sender fails once nobody reads any more.
    Lines(mpsc::Receiver<Bytes>),
}

/// What a node can be asked to do.
#[async_trait]
pub trait Operations: Send + Sync + 'static {
    /// Does it. `None`: there is no such operation.
    async fn call(&self, call: Call) -> Option<Reply>;
}

/// A page in one piece, or lines as they come.
pub(crate) enum PageBody {
    Whole(Option<Bytes>),
    Lines(mpsc::Receiver<Bytes>),
}

impl PageBody {
    pub(crate) fn whole(text: impl Into<Bytes>) -> Self {
        Self::Whole(Some(text.into()))
    }
}

impl Body for PageBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut *self {
            Self::Whole(page) => Poll::Ready(page.take()),
            Self::Lines(lines) => lines.poll_recv(cx),
        };
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(page) => {
                hyper::body::SizeHint::with_exact(page.as_ref().map_or(0, |page| page.len() as u64))
            }
            Self::Lines(_) => hyper::body::SizeHint::new(),
        }
    }
}

pub(crate) async fn answer(operations: &dyn Operations, request: Request<Incoming>) -> Response<PageBody> {
    let post = match *request.method() {
        Method::GET => false,
        Method::POST => true,
        _ => return refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST"),
    };
    let path = request.uri().path().trim_start_matches(PREFIX).to_owned();
    let is_json = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == "application/json"));
    if post && !is_json {
        return refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "POST needs content-type: application/json");
    }
    let body = match Limited::new(request.into_body(), CALL_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return refusal(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");
        }
        Err(_) => return refusal(StatusCode::BAD_REQUEST, "the body did not arrive"),
    };
    match operations.call(Call { post, path, body }).await {
        Some(Reply::Json { status, text }) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            json(status, PageBody::whole(text + "\n"))
        }
        Some(Reply::Lines(lines)) => json(StatusCode::OK, PageBody::Lines(lines)),
        None => refusal(StatusCode::NOT_FOUND, "no such operation"),
    }
}

fn refusal(status: StatusCode, why: &str) -> Response<PageBody> {
    json(status, PageBody::whole(format!("{{\"error\":\"{why}\"}}\n")))
}

fn json(status: StatusCode, body: PageBody) -> Response<PageBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}
