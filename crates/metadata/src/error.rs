//! What can go wrong outside `apply`, which itself never fails.

/// Kinds say what the caller must do.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// Written by a later binary. Stop: this one must not go on from here.
    #[error("{what} has format version {found}, this binary knows up to {known}")]
    Version { what: &'static str, found: u32, known: u32 },
    /// Written by a later binary. Stop.
    #[error("unknown kind of {what}: written by a later version")]
    Unknown { what: &'static str },
    /// The bytes are damaged. Take them from another replica.
    #[error("damaged {what}: {detail}")]
    Corrupt { what: &'static str, detail: String },
    /// The effects do not follow this image. Take a snapshot.
    #[error("effects of entry {index} follow {previous}, the image is at {at}")]
    Gap { index: u64, previous: u64, at: u64 },
}

impl From<prost::DecodeError> for MetadataError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Corrupt { what: "protobuf", detail: error.to_string() }
    }
}
