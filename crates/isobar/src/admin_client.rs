//! Calls to a node's admin port.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use isobar_host::{Host, Task};
use serde_json::Value;

use crate::Failure;
use crate::cli::AdminRemote;

/// An answer that comes line by line.
pub(crate) struct Lines {
    response: Response<Incoming>,
    gathered: Vec<u8>,
    _connection: Task,
}

impl Lines {
    /// The next line; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>, Failure> {
        loop {
            if let Some(end) = self.gathered.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.gathered.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            match self.response.body_mut().frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.gathered.extend_from_slice(&data);
                    }
                }
                None if self.gathered.is_empty() => return Ok(None),
                None => return Err("the node ended its answer within a line".into()),
            }
        }
    }
}

/// Sends a call; `body`: a POST.
pub(crate) async fn call(
    host: &Host,
    remote: &AdminRemote,
    path: &str,
    body: Option<Value>,
) -> Result<Lines, Failure> {
    let addr = remote.admin.as_str();
    let conn = host.connect(addr).await.map_err(|error| {
        format!(
            "cannot reach the admin port at {addr}: {error}\n  is a node running there? --admin names another"
        )
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(conn)).await?;
    let connection = host.spawn("admin.client", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to the admin port ended");
        }
    });
    let method = if body.is_some() { "POST" } else { "GET" };
    let text = body.map(|body| body.to_string()).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", addr)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(text)))?;
    let response = sender.send_request(request).await?;
    let is_success = response.status().is_success();
    let mut lines = Lines { response, gathered: Vec::new(), _connection: connection };
    if !is_success {
        let said = lines.next().await?.and_then(|said| said["error"].as_str().map(str::to_owned));
        return Err(said.unwrap_or_else(|| "the node refused it without a reason".to_owned()).into());
    }
    Ok(lines)
}

/// Sends a call that is answered at once.
pub(crate) async fn ask(
    host: &Host,
    remote: &AdminRemote,
    path: &str,
    body: Option<Value>,
) -> Result<Value, Failure> {
    let mut lines = call(host, remote, path, body).await?;
    lines.next().await?.ok_or_else(|| "the node gave no answer".into())
}
