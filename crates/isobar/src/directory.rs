//! The data directory itself: whose it is, and whether a node may be started in it. Its layout is [`crate::node`]'s.

use std::path::{Path, PathBuf};

use isobar_host::Host;
use isobar_protocol::Uuid;
use serde::{Deserialize, Serialize};

use crate::node::{NodeError, NodeOptions};

/// Marks a directory that a recovery is making.
pub(crate) const RECOVERING: &str = "RECOVERING";

/// What `node.json` says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeFormat {
    version: u32,
    cluster_id: String,
    node_id: i32,
    /// The cluster's marker was made in the store; since version 2.
    #[serde(default)]
    pub(crate) store_marked: bool,
    /// Whose the claim on the cluster's incarnation is, 32 hexadecimal digits; since version 3. Before it was always the metadata
    /// directory's own id. None while the claim itself was not seen: until it is made, another member may make it.
    #[serde(default)]
    claim_owner: Option<String>,
}

impl NodeFormat {
    pub(crate) fn owner(&self) -> Option<[u8; 16]> {
        let digits = self.claim_owner.as_deref()?;
        u128::from_str_radix(digits, 16).ok().map(u128::to_be_bytes)
    }
}

/// 1: the first. 2: `store_marked`. 3: `claim_owner`.
const NODE_FORMAT_VERSION: u32 = 3;

pub(crate) fn refuse_half_recovered(host: &Host, data: &Path) -> Result<(), NodeError> {
    let names = host.disk().list(data).map_err(|source| NodeError::Data { path: data.to_owned(), source })?;
    if names.iter().any(|name| name == RECOVERING) {
        return Err(NodeError::Refused(format!(
            "data directory {} was being made by `isobar recover`, which did not finish: run that again",
            data.display()
        )));
    }
    Ok(())
}

fn format_path(options: &NodeOptions) -> PathBuf {
    options.data.join("node.json")
}

pub(crate) fn read_format(host: &Host, options: &NodeOptions) -> Result<Option<NodeFormat>, NodeError> {
    let path = format_path(options);
    let bytes = match host.read_file(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(NodeError::Data { path, source }),
    };
    let wrong = |what: String| NodeError::Format { path: path.clone(), what };
    let format: NodeFormat = serde_json::from_slice(&bytes)
        .map_err(|error| wrong(format!("not a node's format file: {error}")))?;
    if format.version > NODE_FORMAT_VERSION {
        return Err(wrong(format!(
            "format version {} was written by a newer isobar; this one reads {NODE_FORMAT_VERSION}",
            format.version
        )));
    }
    if format.node_id != options.broker.node_id {
        return Err(wrong(format!("belongs to node {}, not {}", format.node_id, options.broker.node_id)));
    }
    Ok(Some(format))
}

/// The store's marker was seen or made; and the claim, if its owner is named.
pub(crate) fn write_format(
    host: &Host,
    data: &Path,
    node_id: i32,
    cluster_id: &str,
    owner: Option<[u8; 16]>,
) -> Result<(), NodeError> {
    let path = data.join("node.json");
    let format = NodeFormat {
        version: NODE_FORMAT_VERSION,
        cluster_id: cluster_id.to_owned(),
        node_id,
        store_marked: true,
        claim_owner: owner.map(|owner| format!("{:032x}", u128::from_be_bytes(owner))),
    };
    let mut text = serde_json::to_vec_pretty(&format)
        .map_err(|error| NodeError::Format { path: path.clone(), what: error.to_string() })?;
    text.push(b'\n');
    host.disk().write_durable(&path, &text).map_err(|source| NodeError::Data { path, source })
}

/// Kafka's form of a cluster id: 16 random bytes in 22 characters of base64url.
pub fn new_cluster_id(host: &Host) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bits = u128::from_be_bytes(*Uuid::from_bytes(host.random_uuid()).as_bytes());
    let mut text = [0_u8; 22];
    // 128 bits are 21 digits of 6 bits and one of 2, which base64 pads with zeroes on the right.
    text[21] = ALPHABET[((bits & 0b11) << 4) as usize];
    bits >>= 2;
    for digit in text[..21].iter_mut().rev() {
        *digit = ALPHABET[(bits & 0b11_1111) as usize];
        bits >>= 6;
    }
    String::from_utf8_lossy(&text).into_owned()
}
