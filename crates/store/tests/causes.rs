//! Over HTTP: each way a store can say no becomes an error that names the cause and the remedy and says whether the request
//! may have happened; and lost answers are survived. The server here says whatever the test wants.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use isobar_host::Host;
use isobar_store::{Bucket, BucketOptions, Cause, Created, StoreError, StoreMetrics};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What the server does with one request.
#[derive(Clone)]
enum Reply {
    /// Status, error code's header, body.
    Answer(u16, &'static str, String),
    /// Takes the request and closes the connection.
    Lose,
    /// Never answers.
    Hang,
}

fn xml(status: u16, code: &str) -> Reply {
    Reply::Answer(
        status,
        "",
        format!("<Error><Code>{code}</Code><Message>the store's words</Message></Error>"),
    )
}

struct Request {
    method: String,
    body: Vec<u8>,
    conditional: bool,
}

type Handler = Arc<dyn Fn(Request) -> Reply + Send + Sync>;

/// Where it listens.
async fn serve(handler: Handler) -> String {
    let host = Host::real();
    let listener = host.listen("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let accepting = host.clone();
    host.spawn("server", async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            let handler = Arc::clone(&handler);
            accepting.spawn("connection", async move {
                while let Some(request) = read_request(&mut conn).await {
                    match handler(request) {
                        Reply::Lose => return,
                        Reply::Hang => tokio::time::sleep(Duration::from_secs(60)).await,
                        Reply::Answer(status, code, body) => {
                            let last = body.len().saturating_sub(1);
                            let range = match status {
                                206 => format!("Content-Range: bytes 0-{last}/{}\r\n", body.len()),
                                _ => String::new(),
                            };
                            let code = if code.is_empty() { String::new() } else { format!("x-ms-error-code: {code}\r\n") };
                            let text = format!(
                                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nETag: \"1\"\r\nLast-Modified: Sun, 06 Nov 1994 \
                                 08:49:37 GMT\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n{range}{code}\r\n{body}",
                                body.len()
                            );
                            if conn.write_all(text.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                    }
                }
            });
        }
    });
    format!("http://{addr}")
}

async fn read_request(conn: &mut isobar_host::Conn) -> Option<Request> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            break at + 4;
        }
        if conn.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).to_ascii_lowercase();
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.trim().parse().unwrap());
    while bytes.len() < head_end + length {
        if conn.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let method = head.split(' ').next().unwrap().to_ascii_uppercase();
    Some(Request { method, body: bytes.split_off(head_end), conditional: head.contains("if-none-match") })
}

fn quick() -> BucketOptions {
    BucketOptions {
        put_attempt: Duration::from_millis(300),
        put_total: Duration::from_millis(500),
        get_attempt: Duration::from_millis(300),
        get_total: Duration::from_millis(500),
        backoff: Duration::from_millis(10),
        backoff_max: Duration::from_millis(100),
    }
}

/// For what is answered: a machine that is busy must not look like a store that hangs.
fn patient() -> BucketOptions {
    let long = Duration::from_secs(4);
    BucketOptions { put_attempt: long, put_total: long, get_attempt: long, get_total: long, ..quick() }
}

async fn bucket_at(url: &str) -> Bucket {
    Bucket::open(&Host::real(), "b", url, quick(), StoreMetrics::default()).await.unwrap()
}

async fn s3(handler: impl Fn(Request) -> Reply + Send + Sync + 'static) -> Bucket {
    let endpoint = serve(Arc::new(handler)).await;
    bucket_at(&format!("s3://bucket/p?anonymous=true&endpoint={endpoint}")).await
}

#[derive(Debug, PartialEq, Clone, Copy)]
enum Kind {
    DidNotHappen,
    MayHaveHappened,
    Refused,
    NotFound,
}

fn kind(error: &StoreError) -> Kind {
    match error {
        StoreError::DidNotHappen { .. } => Kind::DidNotHappen,
        StoreError::MayHaveHappened { .. } => Kind::MayHaveHappened,
        StoreError::Refused { .. } => Kind::Refused,
        StoreError::NotFound(_) => Kind::NotFound,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_become_causes() {
    use Kind::{DidNotHappen, MayHaveHappened, NotFound, Refused};
    // (status, code, cause, of a PUT, of a GET)
    let table: &[(u16, &str, Cause, Kind, Kind)] = &[
        (404, "NoSuchBucket", Cause::NoBucket, Refused, Refused),
        (403, "AccessDenied", Cause::Denied, Refused, Refused),
        (403, "InvalidAccessKeyId", Cause::BadCredentials, Refused, Refused),
        (403, "SignatureDoesNotMatch", Cause::BadCredentials, Refused, Refused),
        (400, "ExpiredToken", Cause::ExpiredCredentials, Refused, Refused),
        (403, "RequestTimeTooSkewed", Cause::Clock, Refused, Refused),
        (503, "SlowDown", Cause::Throttled, DidNotHappen, DidNotHappen),
        (429, "TooManyRequests", Cause::Throttled, DidNotHappen, DidNotHappen),
        (507, "XMinioStorageFull", Cause::Full, Refused, Refused),
        (403, "QuotaExceeded", Cause::Full, Refused, Refused),
        (405, "MethodNotAllowed", Cause::ReadOnly, Refused, Refused),
        (301, "PermanentRedirect", Cause::Region, Refused, Refused),
        (400, "KMS.DisabledException", Cause::Encryption, Refused, Refused),
        (404, "kms:KeyNotFound", Cause::Encryption, Refused, Refused),
        (501, "NotImplemented", Cause::Unsupported, Refused, Refused),
        (500, "InternalError", Cause::Server, MayHaveHappened, DidNotHappen),
        (502, "", Cause::Server, MayHaveHappened, DidNotHappen),
        (404, "NoSuchKey", Cause::Other, Refused, NotFound),
    ];
    // All at once: what is tried again is tried for as long as `patient` says.
    let asked = table.iter().map(|&(status, code, cause, put_kind, get_kind)| async move {
        let endpoint = serve(Arc::new(move |_| xml(status, code))).await;
        let url = format!("s3://bucket/p?anonymous=true&endpoint={endpoint}");
        let opened = Bucket::open(&Host::real(), "b", &url, patient(), StoreMetrics::default()).await;
        let bucket = opened.unwrap();
        let put = bucket.put("data/1", vec![Bytes::from_static(b"x")]).await.unwrap_err();
        assert_eq!((kind(&put), put.cause()), (put_kind, Some(cause)), "{status} {code}: {put}");
        let get = bucket.get_range("data/1", 0..1).await.unwrap_err();
        assert_eq!(kind(&get), get_kind, "{status} {code}: {get}");
        if get_kind == NotFound {
            return;
        }
        assert_eq!(get.cause(), Some(cause), "{get}");
        let text = put.to_string();
        assert!(text.contains(cause.words()), "{text}");
        assert!(code.is_empty() || (text.contains(code) || status == 301), "{text}");
        assert!(!text.contains("http://"), "no URL in an error: {text}");
        let writing = bucket.health().writing.unwrap();
        assert_eq!(writing.cause, cause);
    });
    join_all(asked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_tells_by_header() {
    for (status, code, body, cause) in [
        (404, "ContainerNotFound", "", Cause::NoBucket),
        (403, "AuthorizationPermissionMismatch", "", Cause::Denied),
        (
            403,
            "AuthenticationFailed",
            "<Error><Code>AuthenticationFailed</Code></Error>",
            Cause::BadCredentials,
        ),
        (
            403,
            "AuthenticationFailed",
            "<Error><AuthenticationErrorDetail>Signature not valid in the specified time frame: Start [x] - Expiry [y] - \
             Current [z]</AuthenticationErrorDetail></Error>",
            Cause::ExpiredCredentials,
        ),
        (503, "ServerBusy", "", Cause::Throttled),
    ] {
        let endpoint = serve(Arc::new(move |_| Reply::Answer(status, code, body.to_owned()))).await;
        let url = format!("az://container/p?account=a&anonymous=true&endpoint={endpoint}");
        let error = bucket_at(&url).await.get_range("data/1", 0..1).await.unwrap_err();
        assert_eq!(error.cause(), Some(cause), "{code}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_tells_a_missing_object_from_a_missing_bucket() {
    for (code, expected) in [("NoSuchBucket", Kind::Refused), ("NoSuchKey", Kind::NotFound)] {
        let bucket = s3(move |request| match request.method.as_str() {
            "HEAD" => Reply::Answer(404, "", String::new()),
            _ => xml(404, code),
        })
        .await;
        assert_eq!(kind(&bucket.size("data/1").await.unwrap_err()), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_may_have_happened() {
    let parts = vec![Bytes::from_static(b"x")];
    for reply in [Reply::Lose, Reply::Hang] {
        let lost = reply.clone();
        let bucket = s3(move |_| lost.clone()).await;
        let error = bucket.put("data/1", parts.clone()).await.unwrap_err();
        assert_eq!(kind(&error), Kind::MayHaveHappened, "{error}");
        let error = bucket.get_range("data/1", 0..1).await.unwrap_err();
        assert_eq!(kind(&error), Kind::DidNotHappen, "{error}");
    }
    // Nobody listens: it cannot have happened.
    let bucket = bucket_at("s3://bucket/p?anonymous=true&endpoint=http://127.0.0.1:1").await;
    let error = bucket.put("data/1", parts).await.unwrap_err();
    assert_eq!((kind(&error), error.cause()), (Kind::DidNotHappen, Some(Cause::Unreachable)), "{error}");
    // Plain HTTP where TLS is expected.
    let host = Host::real();
    let listener = host.listen("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    host.spawn("plain", async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            let _ = conn.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await;
        }
    });
    let bucket = bucket_at(&format!("s3://bucket/p?anonymous=true&endpoint=https://{addr}")).await;
    let error = bucket.list("data").await.unwrap_err();
    assert_eq!(error.cause(), Some(Cause::Tls), "{error}");
    // A name that nothing resolves.
    let bucket = bucket_at("s3://bucket/p?anonymous=true&endpoint=http://nowhere.invalid:9").await;
    let error = bucket.list("data").await.unwrap_err();
    assert!(matches!(error.cause(), Some(Cause::HostUnknown | Cause::Timeout)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_whose_answer_is_lost_knows_its_bytes() {
    for theirs in [false, true] {
        let object = parking_lot::Mutex::new(theirs.then(|| b"theirs".to_vec()));
        let bucket = s3(move |request| {
            let mut object = object.lock();
            match request.method.as_str() {
                "PUT" if object.is_some() => xml(412, "PreconditionFailed"),
                "PUT" => {
                    assert!(request.conditional);
                    *object = Some(request.body);
                    Reply::Lose
                }
                _ => {
                    let text = String::from_utf8(object.clone().unwrap()).unwrap();
                    Reply::Answer(206, "", text.chars().take(b"mine".len() + 1).collect())
                }
            }
        })
        .await;
        let created = bucket.create("claim", Bytes::from_static(b"mine")).await;
        match created {
            Ok(created) => assert_eq!(created, if theirs { Created::Exists } else { Created::Mine }),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_failures_does_not_multiply_requests() {
    let requests = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&requests);
    let bucket = s3(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        xml(503, "SlowDown")
    })
    .await;
    let puts = (0..200).map(|n| {
        let bucket = bucket.clone();
        async move { bucket.put(&format!("data/{n}"), vec![Bytes::from_static(b"x")]).await.unwrap_err() }
    });
    let errors = join_all(puts).await;
    assert!(errors.iter().all(|error| error.cause() == Some(Cause::Throttled)));
    let requests = requests.load(Ordering::Relaxed);
    // 200 first attempts, 50 tokens, and a few a second.
    assert!((200..=265).contains(&requests), "{requests}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_clock_are_seen() {
    let failing = Arc::new(AtomicU64::new(1));
    let state = Arc::clone(&failing);
    let bucket = s3(move |_| match state.load(Ordering::Relaxed) {
        0 => Reply::Answer(200, "", String::new()),
        _ => xml(403, "AccessDenied"),
    })
    .await;
    assert_eq!(bucket.clock_skew_ms(), None);
    bucket.put("data/1", vec![]).await.unwrap_err();
    assert_eq!(bucket.health().writing.unwrap().cause, Cause::Denied);
    assert!(bucket.health().reading.is_none());
    let skew_ms = bucket.clock_skew_ms().unwrap();
    assert!(skew_ms < -900_000_000_000, "1994 is long ago: {skew_ms}");
    failing.store(0, Ordering::Relaxed);
    bucket.put("data/1", vec![]).await.unwrap();
    assert!(bucket.health().writing.is_none());
}

/// Where credentials come from is asked before the request, so its failure is not the request's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_cannot_be_had_are_told() {
    if std::env::vars().any(|(name, _)| name.starts_with("AWS_")) {
        return;
    }
    // Without any variable the machine's role is asked for, which would leave this machine: a profile-less build cannot be
    // tested here; the suite `stores` does with AWS_METADATA_ENDPOINT on loopback.
    let endpoint = serve(Arc::new(|_| xml(200, ""))).await;
    let opened = Bucket::open(
        &Host::real(),
        "b",
        &format!("az://c/p?endpoint={endpoint}"),
        quick(),
        StoreMetrics::default(),
    )
    .await;
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("AZURE_STORAGE_ACCOUNT_NAME"), "{error}");
}
