//! What can go wrong, by what the caller must do.

use std::io;

/// [`crate::Rpc::start`] failed.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// An option cannot be. Change the configuration.
    #[error("rpc: {0}")]
    Options(String),
    /// The address cannot be listened on.
    #[error("rpc: cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: String,
        /// The system's word.
        source: io::Error,
    },
}

/// How a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The request certainly did not reach the peer: it may be sent again, here or elsewhere. The text says why.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The connection failed while the request was under way: it may have happened, or may yet.
    #[error("lost: {0}")]
    Lost(String),
    /// The deadline passed while the request was under way: it may have happened, or may yet.
    #[error("timed out")]
    TimedOut,
    /// The peer's service has said no, or [`codes`] says what stood in the way.
    #[error("refused with {code}: {message}")]
    Refused {
        /// The service's code, or one of [`codes`].
        code: u16,
        /// For people.
        message: String,
    },
    /// This [`crate::Rpc`] has been stopped. The request may have happened.
    #[error("stopped")]
    Stopped,
}

impl CallError {
    /// False if the peer's service has certainly not been asked.
    pub fn may_have_happened(&self) -> bool {
        match self {
            Self::NotSent(_) => false,
            Self::Refused { code, .. } => !matches!(*code, codes::NO_SERVICE | codes::BUSY),
            Self::Lost(_) | Self::TimedOut | Self::Stopped => true,
        }
    }
}

/// A service's no. Codes from `0xff00` on are this crate's ([`codes`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: u16,
    /// For people; what is beyond 1,000 bytes is cut.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: u16, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Codes of refusals that are not the service's.
pub mod codes {
    /// No such service is registered at the peer, yet. It has not been asked.
    pub const NO_SERVICE: u16 = 0xff01;
    /// The service dropped its [`crate::Reply`] or [`crate::Outgoing`] unanswered. It may have happened.
    pub const DROPPED: u16 = 0xff02;
    /// Too many streams of this connection are open. The service has not been asked.
    pub const BUSY: u16 = 0xff03;
    /// The service answered a call with a stream. It may have happened.
    pub const NOT_A_STREAM: u16 = 0xff04;
    /// The answer is larger than a message may be. It may have happened.
    pub const TOO_LARGE: u16 = 0xff05;
}

/// Why a part of a stream was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Nobody takes the parts any more: end.
    #[error("the taker of the stream is gone")]
    Gone,
    /// The part is larger than a message may be: cut it.
    #[error("a part of {bytes} bytes is larger than a message may be")]
    TooLarge {
        /// The part's size.
        bytes: usize,
    },
}

/// Why two nodes do not speak with each other.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("wrong cluster secret")]
    WrongSecret,
    #[error("other cluster: {theirs}, not {ours}")]
    OtherCluster { theirs: String, ours: String },
    #[error("other node: {found} is there, not {wanted}")]
    OtherNode { found: i32, wanted: i32 },
    #[error("rpc version {theirs_min} to {theirs_max} there, {ours_min} to {ours_max} here")]
    Version { theirs_min: u16, theirs_max: u16, ours_min: u16, ours_max: u16 },
    #[error("not a node of Isobar: {0}")]
    Malformed(&'static str),
    #[error("refused by the peer: {0}")]
    Refused(String),
    #[error("no handshake in time")]
    TimedOut,
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl HandshakeError {
    /// Short and constant, for metrics and for logging each kind once.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::WrongSecret => "wrong_secret",
            Self::OtherCluster { .. } => "other_cluster",
            Self::OtherNode { .. } => "other_node",
            Self::Version { .. } => "version",
            Self::Malformed(_) => "malformed",
            Self::Refused(_) => "refused",
            Self::TimedOut => "timed_out",
            Self::Io(_) => "io",
        }
    }
}

/// What is wrong with a frame. All of them close the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("frame {number}: the head's checksum is wrong")]
    HeadSum { number: u64 },
    #[error("frame {number}: the body's checksum is wrong")]
    BodySum { number: u64 },
    #[error("frame {number}: unknown kind {kind}")]
    Kind { number: u64, kind: u8 },
    #[error("frame {number}: unknown flags {flags:#x}")]
    Flags { number: u64, flags: u8 },
    #[error("frame {number}: a body of {bytes} bytes where {max} are allowed")]
    TooLarge { number: u64, bytes: usize, max: usize },
    #[error("{0}")]
    Rule(&'static str),
}

/// Why a connection ended.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Ended {
    #[error("closed by the peer")]
    ByPeer,
    #[error("closed here: {0}")]
    Here(&'static str),
    #[error("nothing was heard for {0} ms")]
    Silence(u128),
    #[error("the peer has taken nothing for {0} ms")]
    Stalled(u128),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Io(String),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Io(error.to_string())
    }
}
