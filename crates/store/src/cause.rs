//! Why a store does not do what it is asked, in words that help.
//!
//! A request's failure is read from three places: what the wire showed ([`Exchange`], filled by the HTTP client), the
//! text that the store sent (an XML `<Code>`), and the error's own chain. From them follow the [`Cause`], whether the
//! request may have happened, and whether trying again may help.

use std::error::Error as StdError;
use std::io;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

use crate::StoreError;
use crate::directory::WriteFailure;

/// What is wrong, told apart by what a person has to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The bucket or container does not exist.
    NoBucket,
    /// The credentials are known, but may not do this.
    Denied,
    /// Nobody may write here.
    ReadOnly,
    /// No credentials were found, or where they come from does not answer.
    NoCredentials,
    /// The store does not know the credentials, or the signature made with them is wrong.
    BadCredentials,
    /// The credentials were right once.
    ExpiredCredentials,
    /// This machine's clock differs too much from the store's.
    Clock,
    /// The store has no room, or a quota is used up.
    Full,
    /// The store wants fewer requests.
    Throttled,
    /// TLS: a certificate that is not trusted, or no TLS at the other end.
    Tls,
    /// The host's name cannot be resolved.
    HostUnknown,
    /// Nobody listens there, or the network does not lead there.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// The bucket is in another region.
    Region,
    /// The store cannot use the encryption key that is asked for.
    Encryption,
    /// The store lacks something that Isobar needs.
    Unsupported,
    /// The store says that it failed.
    Server,
    /// The bucket belongs to another cluster.
    OtherCluster,
    /// Anything else; the store's own words say what.
    Other,
}

impl Cause {
    /// Its label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoBucket => "no_bucket",
            Self::Denied => "denied",
            Self::ReadOnly => "read_only",
            Self::NoCredentials => "no_credentials",
            Self::BadCredentials => "bad_credentials",
            Self::ExpiredCredentials => "expired_credentials",
            Self::Clock => "clock",
            Self::Full => "full",
            Self::Throttled => "throttled",
            Self::Tls => "tls",
            Self::HostUnknown => "host_unknown",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Region => "region",
            Self::Encryption => "encryption",
            Self::Unsupported => "unsupported",
            Self::Server => "server",
            Self::OtherCluster => "other_cluster",
            Self::Other => "other",
        }
    }

    /// What is wrong, as the beginning of a sentence.
    pub fn words(self) -> &'static str {
        match self {
            Self::NoBucket => "the bucket does not exist",
            Self::Denied => "access denied",
            Self::ReadOnly => "the store is read-only",
            Self::NoCredentials => "no credentials",
            Self::BadCredentials => "the store does not accept the credentials",
            Self::ExpiredCredentials => "the credentials have expired",
            Self::Clock => "this machine's clock is wrong",
            Self::Full => "the store is full",
            Self::Throttled => "the store asks for fewer requests",
            Self::Tls => "no trusted TLS connection",
            Self::HostUnknown => "the store's host name cannot be resolved",
            Self::Unreachable => "the store cannot be reached",
            Self::Timeout => "no answer in time",
            Self::Region => "the bucket is in another region",
            Self::Encryption => "encryption at rest fails",
            Self::Unsupported => "the store does not support what Isobar needs",
            Self::Server => "the store failed",
            Self::OtherCluster => "the bucket belongs to another cluster",
            Self::Other => "the store refused",
        }
    }

    /// What to do about it; empty where nothing general can be said.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::NoBucket => "make the bucket, or correct its name, account or endpoint in the store's URL",
            Self::Denied => {
                "give these credentials the right to get, put, list and delete objects below the URL's prefix"
            }
            Self::ReadOnly => "make the bucket or file system writable, or name another store",
            Self::NoCredentials => {
                "`isobar store check URL` lists where credentials are looked for (AWS_*, GOOGLE_*, AZURE_* variables, \
                 or the machine's own role)"
            }
            Self::BadCredentials => {
                "check the key id and secret, that they belong to this store and endpoint, and that they were not revoked"
            }
            Self::ExpiredCredentials => "get new credentials and restart, or use a source that renews itself",
            Self::Clock => {
                "set the clock right (chrony, systemd-timesyncd); stores refuse requests more than minutes off"
            }
            Self::Full => {
                "free space or raise the quota; until then records wait in the WAL, and producers once it is full"
            }
            Self::Throttled => "it passes by itself; if it lasts, ask for a higher request rate",
            Self::Tls => {
                "give the store's CA with ca_file=PATH in the URL, check the machine's clock, or use http:// with \
                 allow_http=true where that is safe"
            }
            Self::HostUnknown => "check the endpoint, region or account in the URL, and this machine's DNS",
            Self::Unreachable => {
                "check that the store runs, the endpoint's address and port, proxy and firewall"
            }
            Self::Timeout => "check the network to the store, and whether it is overloaded",
            Self::Region => "set region=… in the URL (or AWS_REGION) to the bucket's region",
            Self::Encryption => "check the sse options in the URL, and the rights on the key",
            Self::Unsupported => "use a store that `isobar store check` finds fit",
            Self::OtherCluster => "give each cluster a bucket or prefix of its own",
            Self::Server | Self::Other => "",
        }
    }

    /// The remedy behind another sentence's words.
    pub(crate) fn remedy_clause(self) -> String {
        match self.remedy() {
            "" => String::new(),
            remedy => format!(". {}{}", remedy[..1].to_uppercase(), &remedy[1..]),
        }
    }

    /// Whether it may pass without anybody doing anything.
    pub(crate) fn may_pass(self) -> bool {
        matches!(
            self,
            Self::Throttled
                | Self::HostUnknown
                | Self::Unreachable
                | Self::Timeout
                | Self::Server
                | Self::Other
        )
    }
}

/// What the wire showed during one attempt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exchange {
    /// Somebody fills this in; else nothing can be concluded from its emptiness.
    pub(crate) watched: bool,
    /// A request to the store may have left.
    pub(crate) sent: bool,
    /// The store's last answer.
    pub(crate) status: Option<u16>,
    /// The store's error code, where a header names it.
    pub(crate) code: Option<String>,
    /// What a failed request for credentials met: its status, or the transport's words.
    pub(crate) credentials: Option<(Option<u16>, String)>,
    /// The proxy of the URL, if no connection came about.
    pub(crate) proxy: Option<String>,
}

/// How one attempt failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The attempt may have had its effect.
    pub(crate) happened: bool,
    /// Trying again may help.
    pub(crate) transient: bool,
    pub(crate) not_found: bool,
    /// The key of a create is taken.
    pub(crate) exists: bool,
    pub(crate) cause: Cause,
    pub(crate) why: String,
}

impl Failure {
    /// A read that brought something else than it should.
    pub(crate) fn read(why: String) -> Self {
        Self { transient: true, ..Self::new(Cause::Other, why) }
    }

    fn new(cause: Cause, why: String) -> Self {
        Self { happened: false, transient: cause.may_pass(), not_found: false, exists: false, cause, why }
    }

    /// No answer within `limit_ms`.
    pub(crate) fn timeout(mutates: bool, exchange: &Exchange, limit_ms: u128) -> Self {
        let happened = mutates && (exchange.sent || !exchange.watched);
        let why = format!("no answer in {limit_ms} ms");
        Self { happened, ..Self::new(Cause::Timeout, why) }
    }

    pub(crate) fn of_read(error: &io::Error) -> Self {
        use io::ErrorKind;
        let cause = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Cause::Full,
            ErrorKind::ReadOnlyFilesystem => Cause::ReadOnly,
            ErrorKind::PermissionDenied => Cause::Denied,
            ErrorKind::Unsupported => Cause::Unsupported,
            _ => Cause::Other,
        };
        let permanent =
            matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof);
        let not_found = error.kind() == ErrorKind::NotFound;
        let exists = error.kind() == ErrorKind::AlreadyExists;
        let transient = cause.may_pass() && !permanent;
        let why = match cause {
            Cause::Other => error.to_string(),
            cause => format!("{} ({error})", cause.words()),
        };
        Self { transient, not_found, exists, ..Self::new(cause, why) }
    }

    pub(crate) fn of_write(failure: &WriteFailure) -> Self {
        let (happened, error) = match failure {
            WriteFailure::DidNotHappen(error) => (false, error),
            WriteFailure::MayHaveHappened(error) => (true, error),
        };
        Self { happened, not_found: false, ..Self::of_read(error) }
    }

    /// From an object_store, and what its client saw.
    pub(crate) fn of_store(error: &Error, mutates: bool, exchange: &Exchange) -> Self {
        let text = chain_text(error);
        let code = exchange.code.clone().or_else(|| between(&text, "<Code>", "</Code>"));
        let cause = cause_of(error, &text, code.as_deref(), exchange);
        // The absence of a bucket or of a key to decrypt with is told as 404 too.
        let not_found =
            matches!(error, Error::NotFound { .. }) && !matches!(cause, Cause::NoBucket | Cause::Encryption);
        let exists = cause == Cause::Other
            && matches!(
                error,
                Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. }
            );
        let permanent = matches!(
            error,
            Error::NotFound { .. }
                | Error::InvalidPath { .. }
                | Error::NotSupported { .. }
                | Error::NotImplemented { .. }
                | Error::PermissionDenied { .. }
                | Error::Unauthenticated { .. }
                | Error::UnknownConfigurationKey { .. }
        );
        // Where credentials come from may be back soon.
        let transient = match cause {
            Cause::NoCredentials => exchange.credentials.is_some(),
            Cause::Other => {
                !permanent
                    && exchange.status.is_none_or(|status| status < 300 || matches!(status, 408 | 409 | 412))
            }
            cause => cause.may_pass(),
        };
        let happened = mutates && !exists && may_have_happened(error, permanent, cause, exchange);
        Self {
            happened,
            transient,
            not_found,
            exists,
            cause,
            why: words(cause, code.as_deref(), &text, exchange),
        }
    }

    /// As the caller of a whole operation sees it.
    pub(crate) fn into_error(self, op: &'static str, key: &str, may_have_happened: bool) -> StoreError {
        let (key, cause, why) =
            (key.to_owned(), self.cause, format!("{}{}", self.why, self.cause.remedy_clause()));
        if self.not_found && op != "put" && op != "create" {
            StoreError::NotFound(key)
        } else if may_have_happened {
            StoreError::MayHaveHappened { op, key, cause, why }
        } else if self.transient {
            StoreError::DidNotHappen { op, key, cause, why }
        } else {
            StoreError::Refused { op, key, cause, why }
        }
    }
}

/// Only what shows that nothing was done counts: the request never left, or the store's answer is a refusal.
fn may_have_happened(error: &Error, permanent: bool, cause: Cause, exchange: &Exchange) -> bool {
    if !exchange.watched {
        return !permanent;
    }
    // Not `HttpErrorKind::Request` too, although it is described as "not sent": object_store says it of a connection that
    // was closed before the answer was complete, and by then the request may have been carried out.
    let never_connected =
        http_error(error).is_some_and(|error| matches!(error.kind(), HttpErrorKind::Connect));
    match exchange.status {
        _ if !exchange.sent || never_connected => false,
        // A refusal. 408 is a server that gave up waiting, maybe behind a proxy.
        Some(status @ 300..=499) => status == 408,
        Some(501 | 505 | 507) => false,
        Some(503) => cause != Cause::Throttled,
        _ => true,
    }
}

fn cause_of(error: &Error, text: &str, code: Option<&str>, exchange: &Exchange) -> Cause {
    if let Some((status, _)) = &exchange.credentials {
        return match status {
            Some(400..=499) => Cause::BadCredentials,
            _ => Cause::NoCredentials,
        };
    }
    if let Some(cause) = code.and_then(|code| cause_of_code(code, text)) {
        return cause;
    }
    if let Some(cause) = exchange.status.and_then(cause_of_status) {
        return cause;
    }
    match error {
        Error::PermissionDenied { .. } => Cause::Denied,
        Error::Unauthenticated { .. } => Cause::BadCredentials,
        Error::NotSupported { .. } | Error::NotImplemented { .. } => Cause::Unsupported,
        _ if text.contains("redirect without LOCATION") => Cause::Region,
        _ => transport_cause(error, text).unwrap_or(Cause::Other),
    }
}

/// The clouds' error codes: S3 and GCS (XML), Azure (header `x-ms-error-code`).
fn cause_of_code(code: &str, text: &str) -> Option<Cause> {
    Some(match code {
        _ if is_of_encryption(code, text) => Cause::Encryption,
        "NoSuchBucket" | "ContainerNotFound" | "ContainerBeingDeleted" | "InvalidBucketName" => {
            Cause::NoBucket
        }
        "AuthenticationFailed" if text.contains("Expiry [") || text.contains("expired") => {
            Cause::ExpiredCredentials
        }
        "AuthenticationFailed" if text.contains("date header") || text.contains("Request date") => {
            Cause::Clock
        }
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => Cause::ExpiredCredentials,
        "RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture" => Cause::Clock,
        "InvalidAccessKeyId"
        | "XAdminUserNotFound"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "AuthenticationFailed"
        | "NoAuthenticationInformation"
        | "AuthenticationRequired"
        | "InvalidSecurity"
        | "UnrecognizedClientException" => Cause::BadCredentials,
        // Azurite's word for a wrong signature; Azure's own has other text.
        "AuthorizationFailure" if text.contains("failed to authenticate") => Cause::BadCredentials,
        "AccessDenied"
        | "AllAccessDisabled"
        | "AccountProblem"
        | "AuthorizationFailure"
        | "AuthorizationPermissionMismatch"
        | "AuthorizationServiceMismatch"
        | "AuthorizationResourceTypeMismatch"
        | "AuthorizationSourceIPMismatch"
        | "InsufficientAccountPermissions"
        | "PublicAccessNotPermitted"
        | "AccountIsDisabled"
        | "Forbidden" => Cause::Denied,
        "MethodNotAllowed" | "ReadOnly" => Cause::ReadOnly,
        "SlowDown"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequests"
        | "ServerBusy"
        | "RequestLimitExceeded"
        | "ServiceUnavailable" => Cause::Throttled,
        "QuotaExceeded"
        | "InsufficientStorage"
        | "XMinioStorageFull"
        | "AccountStorageQuotaExceeded"
        | "XMinioAdminBucketQuotaExceeded"
        | "StorageFull" => Cause::Full,
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => Cause::Region,
        "NotImplemented" => Cause::Unsupported,
        "InternalError" | "OperationTimedOut" if text.contains("no space left") => Cause::Full,
        "InternalError" | "OperationTimedOut" => Cause::Server,
        "RequestTimeout" => Cause::Timeout,
        _ => return None,
    })
}

/// S3 has codes of its own for KMS; for the rest it, and MinIO, use general ones and say it in words.
fn is_of_encryption(code: &str, text: &str) -> bool {
    let said = || between(text, "<Message>", "</Message>").unwrap_or_default().to_ascii_lowercase();
    match code {
        "AccessDenied" => said().contains("perform: kms:"),
        "InvalidRequest" | "InvalidArgument" | "NotImplemented" => {
            ["server side encryption", "server-side encryption", "encryption method"]
                .iter()
                .any(|words| said().contains(words))
        }
        code => code.starts_with("KMS.") || code.starts_with("kms:") || code.contains("Encryption"),
    }
}

/// Where the code says nothing (a HEAD has no body).
fn cause_of_status(status: u16) -> Option<Cause> {
    Some(match status {
        301 | 307 => Cause::Region,
        401 => Cause::BadCredentials,
        403 => Cause::Denied,
        405 => Cause::ReadOnly,
        408 => Cause::Timeout,
        429 | 503 => Cause::Throttled,
        501 => Cause::Unsupported,
        507 => Cause::Full,
        500..=599 => Cause::Server,
        _ => return None,
    })
}

/// What kept the request from its answer.
fn transport_cause(error: &Error, text: &str) -> Option<Cause> {
    let http = http_error(error)?;
    let lower = text.to_ascii_lowercase();
    let any = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    Some(if any(&["certificate", "unknownissuer", "tls", "corrupt message", "invalidcontenttype"]) {
        Cause::Tls
    } else if any(&["dns error", "failed to lookup", "name or service not known"]) {
        Cause::HostUnknown
    } else {
        match http.kind() {
            HttpErrorKind::Connect | HttpErrorKind::Request => Cause::Unreachable,
            HttpErrorKind::Timeout => Cause::Timeout,
            _ => Cause::Unreachable,
        }
    })
}

fn http_error(error: &Error) -> Option<&HttpError> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return Some(http);
        }
        next = error.source();
    }
    None
}

/// An error's words with those of its causes that add something.
pub(crate) fn chain_text(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = error.source();
    }
    text
}

fn between(text: &str, before: &str, after: &str) -> Option<String> {
    let start = text.find(before)? + before.len();
    let end = start + text[start..].find(after)?;
    Some(text[start..end].trim().to_owned())
}

/// Cause, status and the store's words; never the URL, which may hold a signature.
fn words(cause: Cause, code: Option<&str>, text: &str, exchange: &Exchange) -> String {
    const LONGEST: usize = 300;
    let details = if let Some((_, met)) = &exchange.credentials {
        met.clone()
    } else if let Some(status) = exchange.status.filter(|status| *status >= 300) {
        let message = between(text, "<Message>", "</Message>").unwrap_or_default();
        let message = message.lines().next().unwrap_or_default();
        let colon = if message.is_empty() { "" } else { ": " };
        format!(
            "{status}{}{}{colon}{message}",
            if code.is_some() { " " } else { "" },
            code.unwrap_or_default()
        )
    } else if exchange.watched {
        // The transport's own words stand at the end, behind the URL.
        let said = text.rsplit_once(" - ").map_or(text, |(_, end)| end);
        match &exchange.proxy {
            Some(proxy) => format!("with proxy={proxy}: {said}"),
            None => said.to_owned(),
        }
    } else {
        text.to_owned()
    };
    let details: String = details.chars().take(LONGEST).collect();
    if cause == Cause::Other && !exchange.watched {
        details
    } else {
        format!("{} ({details})", cause.words())
    }
}
