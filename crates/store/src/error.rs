//! What can go wrong with a store, by what the caller must do.

use crate::Cause;

/// An error of this crate. Clones are for all who waited for one load.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The request had no effect, and its retries are used up. Try again later.
    #[error("{op} {key}: {why}")]
    DidNotHappen {
        /// What was tried.
        op: &'static str,
        /// On what.
        key: String,
        /// What is wrong.
        cause: Cause,
        /// The last attempt's error and what to do about it.
        why: String,
    },
    /// The request may have had its effect, now or in the future: a PUT may be sent again with the same bytes, or its
    /// name is given up; a DELETE is sent again.
    #[error("{op} {key} may have happened: {why}")]
    MayHaveHappened {
        /// What was tried.
        op: &'static str,
        /// On what.
        key: String,
        /// What is wrong.
        cause: Cause,
        /// The last attempt's error and what to do about it.
        why: String,
    },
    /// There is no such object. For a location from metadata: it is stale. Resolve it anew.
    #[error("{0} is not in the store")]
    NotFound(String),
    /// The store does not let us: credentials, permissions, a missing bucket, a name it does not take. A person has to act.
    #[error("{op} {key} is refused: {why}")]
    Refused {
        /// What was tried.
        op: &'static str,
        /// On what.
        key: String,
        /// What is wrong.
        cause: Cause,
        /// The store's words and what to do about it.
        why: String,
    },
    /// Bytes came back that are not what was written. Never served.
    #[error("{key}: {why}")]
    Damaged {
        /// Which object.
        key: String,
        /// Where, and what was seen.
        why: String,
    },
    /// The store does not keep a promise that Isobar rests on. A person has to choose another.
    #[error("this store is not fit for Isobar: {0}")]
    Unfit(String),
    /// The bucket is not the one that this cluster writes to.
    #[error("{0}")]
    WrongBucket(String),
    /// The URL of a bucket or another setting is wrong.
    #[error("{0}")]
    Config(String),
    /// The process is going away.
    #[error("stopping")]
    Stopping,
}

impl StoreError {
    /// Whether the same request may go well later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::DidNotHappen { .. } | Self::MayHaveHappened { .. })
    }

    /// What is wrong with the store, where the error says it.
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Self::DidNotHappen { cause, .. }
            | Self::MayHaveHappened { cause, .. }
            | Self::Refused { cause, .. } => Some(*cause),
            Self::WrongBucket(_) => Some(Cause::OtherCluster),
            _ => None,
        }
    }
}
