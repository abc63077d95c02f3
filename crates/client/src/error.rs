//! What can go wrong, and what to do about it.

use isobar_protocol::error::ErrorCode;
use isobar_protocol::records::RecordsError;
use isobar_protocol::response::{EncodeError, ResponseError};

/// What the caller of a failed call should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The same call may succeed later, or at another broker.
    Retry,
    /// The group member has to join its group again.
    Rejoin,
    /// Trying again changes nothing.
    Fatal,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made.
    #[error("cannot connect to {addr}: {reason}")]
    Connect {
        /// Host and port.
        addr: String,
        /// What the system said.
        reason: String,
    },
    /// The connection ended before the answer.
    #[error("connection to {addr} lost: {reason}")]
    Disconnected {
        /// Host and port.
        addr: String,
        /// Why.
        reason: String,
    },
    /// No answer by the deadline.
    #[error("{what} was not answered in time")]
    Timeout {
        /// The call.
        what: String,
    },
    /// The broker refused.
    #[error("{what}: {code}: {message}")]
    Broker {
        /// The call, and what it was about.
        what: String,
        /// The error code.
        code: ErrorCode,
        /// The broker's words, or Kafka's for this code.
        message: String,
    },
    /// The broker does not know the API, or only in versions that we do not.
    #[error("{addr} does not serve {api} in a version that this client speaks")]
    Unsupported {
        /// Host and port.
        addr: String,
        /// The API's name.
        api: &'static str,
    },
    /// The broker sent what is no answer, or what failed its checksum.
    #[error("{what}: {reason}")]
    Malformed {
        /// The call.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The caller asked for something impossible.
    #[error("{0}")]
    Usage(String),
    /// The producer or consumer has stopped, for the reason given.
    #[error("closed: {0}")]
    Closed(String),
}

impl ClientError {
    pub(crate) fn broker(what: impl Into<String>, code: ErrorCode, message: Option<&str>) -> Self {
        let message = message.filter(|text| !text.is_empty()).unwrap_or_else(|| code.message()).to_owned();
        ClientError::Broker { what: what.into(), code, message }
    }

    pub(crate) fn malformed(what: impl Into<String>, reason: impl ToString) -> Self {
        ClientError::Malformed { what: what.into(), reason: reason.to_string() }
    }

    /// The broker's error code, if it was the broker that refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Broker { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// What to do.
    pub fn action(&self) -> Action {
        match self {
            ClientError::Connect { .. } | ClientError::Disconnected { .. } | ClientError::Timeout { .. } => {
                Action::Retry
            }
            ClientError::Broker { code, .. } => action_of(*code),
            ClientError::Unsupported { .. }
            | ClientError::Malformed { .. }
            | ClientError::Usage(_)
            | ClientError::Closed(_) => Action::Fatal,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_retriable(&self) -> bool {
        self.action() == Action::Retry
    }

    /// Whether the broker may have done what was asked although the call failed.
    pub fn is_ambiguous(&self) -> bool {
        match self {
            ClientError::Disconnected { .. }
            | ClientError::Timeout { .. }
            | ClientError::Malformed { .. } => true,
            ClientError::Broker { code, .. } => {
                matches!(
                    code,
                    ErrorCode::RequestTimedOut
                        | ErrorCode::NotEnoughReplicasAfterAppend
                        | ErrorCode::UnknownServerError
                )
            }
            ClientError::Connect { .. }
            | ClientError::Unsupported { .. }
            | ClientError::Usage(_)
            | ClientError::Closed(_) => false,
        }
    }
}

fn action_of(code: ErrorCode) -> Action {
    match code {
        ErrorCode::RebalanceInProgress
        | ErrorCode::UnknownMemberId
        | ErrorCode::IllegalGeneration
        | ErrorCode::MemberIdRequired => Action::Rejoin,
        // Retriable to Kafka's clients, which resend; the same bytes would be refused again.
        ErrorCode::CorruptMessage => Action::Fatal,
        code if code.is_retriable() => Action::Retry,
        _ => Action::Fatal,
    }
}

impl From<EncodeError> for ClientError {
    fn from(error: EncodeError) -> Self {
        ClientError::Usage(error.to_string())
    }
}

impl From<ResponseError> for ClientError {
    fn from(error: ResponseError) -> Self {
        ClientError::malformed("response", error)
    }
}

impl From<RecordsError> for ClientError {
    fn from(error: RecordsError) -> Self {
        ClientError::malformed("records", error)
    }
}
