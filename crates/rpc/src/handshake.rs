//! Who is there: the first four messages of a connection.
//!
//! ```text
//! caller → hello      versions, features, largest message, channel, both node ids, line, cluster id, 32 random bytes
//! taker  → challenge  version and features chosen, largest message, its node id, cluster id, 32 random bytes
//! caller → proof      HMAC-SHA256(secret, "caller" · hello · challenge)
//! taker  → proof      HMAC-SHA256(secret, "taker " · hello · challenge); or, in place of any message: refusal
//! ```
//!
//! 1. Neither end sends or acts on a frame before the other has proved that it knows the secret for *this* hello and
//!    *this* challenge: versions, node ids, cluster and channel are under the proof, so nobody in between can change
//!    them, and random bytes of both ends are, so no proof serves twice.
//! 2. The caller proves first: whoever knocks learns nothing to guess the secret with.
//! 3. A message is at most [`MAX_MESSAGE_BYTES`] long, and nothing larger is allocated.
//! 4. What follows is neither encrypted nor proved: a closed network is assumed. Mutual TLS comes below this, later.
//!
//! A message is `"ISBR"`, a u16 length, a kind, and its fields, little-endian. Fields that a later version appends are
//! under the proof and otherwise ignored.

use isobar_host::Host;
use ring::hmac;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::Channel;
use crate::error::HandshakeError;
use crate::frame::{Opener, Sealer};

pub(crate) const MAX_MESSAGE_BYTES: usize = 1024;
const MAGIC: [u8; 4] = *b"ISBR";
/// The oldest and the newest version that this build speaks.
pub(crate) const VERSIONS: (u16, u16) = (1, 1);

const HELLO: u8 = 1;
const CHALLENGE: u8 = 2;
const PROOF: u8 = 3;
const REFUSAL: u8 = 4;

/// This end.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) node_id: i32,
    pub(crate) cluster_id: String,
    pub(crate) key: hmac::Key,
    pub(crate) max_message_bytes: u32,
    pub(crate) versions: (u16, u16),
    /// Bits of what may be used if both ends know it.
    pub(crate) features: u64,
}

/// What both ends have agreed on.
pub(crate) struct Agreed {
    pub(crate) node_id: i32,
    pub(crate) channel: Channel,
    /// The caller's line: connections of one line follow each other.
    pub(crate) line: u64,
    /// Largest body that the other end takes.
    pub(crate) max_send_bytes: usize,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
}

struct Hello {
    versions: (u16, u16),
    features: u64,
    max_message_bytes: u32,
    channel: u8,
    from: i32,
    to: i32,
    line: u64,
    cluster_id: String,
}

struct Challenge {
    version: u16,
    features: u64,
    max_message_bytes: u32,
    node_id: i32,
    cluster_id: String,
}

/// The calling end.
pub(crate) async fn call<S: AsyncRead + AsyncWrite + Unpin>(
    host: &Host,
    stream: &mut S,
    me: &Identity,
    to: i32,
    channel: Channel,
    line: u64,
) -> Result<Agreed, HandshakeError> {
    let mut hello = vec![HELLO];
    hello.extend(me.versions.0.to_le_bytes());
    hello.extend(me.versions.1.to_le_bytes());
    hello.extend(me.features.to_le_bytes());
    hello.extend(me.max_message_bytes.to_le_bytes());
    hello.push(channel as u8);
    hello.extend(me.node_id.to_le_bytes());
    hello.extend(to.to_le_bytes());
    hello.extend(line.to_le_bytes());
    put_str(&mut hello, &me.cluster_id);
    hello.extend(random(host));
    send(stream, &hello).await?;

    let answer = receive(stream, CHALLENGE).await?;
    let challenge = Challenge::parse(&answer)?;
    if challenge.cluster_id != me.cluster_id {
        return Err(other_cluster(&challenge.cluster_id, me));
    }
    if challenge.node_id != to {
        return Err(HandshakeError::OtherNode { found: challenge.node_id, wanted: to });
    }
    if !(me.versions.0..=me.versions.1).contains(&challenge.version) {
        return Err(HandshakeError::Malformed("a version that was not offered"));
    }
    if challenge.features & !me.features != 0 {
        return Err(HandshakeError::Malformed("a feature that was not offered"));
    }
    let proofs = Proofs { key: &me.key, hello: &hello, challenge: &answer };
    send(stream, &proofs.message(b"caller")).await?;
    let proof = receive(stream, PROOF).await?;
    proofs.check(b"taker ", &proof)?;
    let (out, back) = proofs.frame_keys();
    Ok(Agreed {
        node_id: to,
        channel,
        line,
        max_send_bytes: challenge.max_message_bytes.min(me.max_message_bytes) as usize,
        sealer: Sealer::new(out),
        opener: Opener::new(back, me.max_message_bytes as usize),
    })
}

/// The end that was called. The caller has proved itself and waits: [`Taken::accept`] lets it in.
pub(crate) struct Taken {
    pub(crate) agreed: Agreed,
    proof: Vec<u8>,
}

impl Taken {
    pub(crate) async fn accept<S: AsyncWrite + Unpin>(
        self,
        stream: &mut S,
    ) -> Result<Agreed, HandshakeError> {
        send(stream, &self.proof).await?;
        Ok(self.agreed)
    }
}

/// The end that was called. A refusal is told to the caller before it is returned, with the node that claims to call.
pub(crate) async fn take<S: AsyncRead + AsyncWrite + Unpin>(
    host: &Host,
    stream: &mut S,
    me: &Identity,
) -> Result<Taken, (Option<i32>, HandshakeError)> {
    let mut from = None;
    let error = match take_or_not(host, stream, me, &mut from).await {
        Ok(taken) => return Ok(taken),
        Err(error) => error,
    };
    if !matches!(error, HandshakeError::Io(_) | HandshakeError::Refused(_) | HandshakeError::Malformed(_)) {
        let mut refusal = vec![REFUSAL];
        put_str(&mut refusal, &error.to_string());
        // Whether it hears of it or not: the connection ends.
        let _ = send(stream, &refusal).await;
    }
    Err((from, error))
}

async fn take_or_not<S: AsyncRead + AsyncWrite + Unpin>(
    host: &Host,
    stream: &mut S,
    me: &Identity,
    from: &mut Option<i32>,
) -> Result<Taken, HandshakeError> {
    let bytes = receive(stream, HELLO).await?;
    let hello = Hello::parse(&bytes)?;
    *from = Some(hello.from);
    let version = hello.versions.1.min(me.versions.1);
    if version < hello.versions.0.max(me.versions.0) {
        return Err(HandshakeError::Version {
            theirs_min: hello.versions.0,
            theirs_max: hello.versions.1,
            ours_min: me.versions.0,
            ours_max: me.versions.1,
        });
    }
    if hello.cluster_id != me.cluster_id {
        return Err(other_cluster(&hello.cluster_id, me));
    }
    if hello.to != me.node_id {
        return Err(HandshakeError::OtherNode { found: me.node_id, wanted: hello.to });
    }
    let channel = Channel::from_wire(hello.channel).ok_or(HandshakeError::Malformed("an unknown channel"))?;
    let mut challenge = vec![CHALLENGE];
    challenge.extend(version.to_le_bytes());
    challenge.extend((hello.features & me.features).to_le_bytes());
    challenge.extend(me.max_message_bytes.to_le_bytes());
    challenge.extend(me.node_id.to_le_bytes());
    put_str(&mut challenge, &me.cluster_id);
    challenge.extend(random(host));
    send(stream, &challenge).await?;

    let proofs = Proofs { key: &me.key, hello: &bytes, challenge: &challenge };
    let proof = receive(stream, PROOF).await?;
    proofs.check(b"caller", &proof)?;
    let (back, out) = proofs.frame_keys();
    Ok(Taken {
        agreed: Agreed {
            node_id: hello.from,
            channel,
            line: hello.line,
            max_send_bytes: hello.max_message_bytes.min(me.max_message_bytes) as usize,
            sealer: Sealer::new(out),
            opener: Opener::new(back, me.max_message_bytes as usize),
        },
        proof: proofs.message(b"taker "),
    })
}

struct Proofs<'a> {
    key: &'a hmac::Key,
    hello: &'a [u8],
    challenge: &'a [u8],
}

impl Proofs<'_> {
    /// What is proved; lengths go in, so that no two conversations read the same.
    fn said(&self, role: &[u8; 6]) -> Vec<u8> {
        let mut said = b"isobar rpc 1 ".to_vec();
        said.extend(role);
        for message in [self.hello, self.challenge] {
            said.extend((message.len() as u64).to_le_bytes());
            said.extend(message);
        }
        said
    }

    fn message(&self, role: &[u8; 6]) -> Vec<u8> {
        let mut message = vec![PROOF];
        message.extend(hmac::sign(self.key, &self.said(role)).as_ref());
        message
    }

    fn check(&self, role: &[u8; 6], message: &[u8]) -> Result<(), HandshakeError> {
        let proof = message.get(1..33).ok_or(HandshakeError::Malformed("a short proof"))?;
        hmac::verify(self.key, &self.said(role), proof).map_err(|_| HandshakeError::WrongSecret)
    }

    /// What the sums of frames start from: caller to taker, and back.
    fn frame_keys(&self) -> (u32, u32) {
        let tag = hmac::sign(self.key, &self.said(b"frames"));
        let word = |at: usize| {
            tag.as_ref()[at..at + 4].iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte))
        };
        (word(0), word(4))
    }
}

/// Said in logs before anything is proved: without control characters.
fn other_cluster(theirs: &str, me: &Identity) -> HandshakeError {
    HandshakeError::OtherCluster { theirs: theirs.escape_debug().to_string(), ours: me.cluster_id.clone() }
}

fn random(host: &Host) -> [u8; 32] {
    let mut bytes = [0; 32];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&host.random_u64().to_le_bytes());
    }
    bytes
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    let mut cut = text.len().min(255);
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    out.push(cut as u8);
    out.extend(&text.as_bytes()[..cut]);
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> Result<(), HandshakeError> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend((message.len() as u16).to_le_bytes());
    bytes.extend(message);
    stream.write_all(&bytes).await?;
    Ok(stream.flush().await?)
}

/// The next message, which must be of this kind or a refusal.
async fn receive<S: AsyncRead + Unpin>(stream: &mut S, kind: u8) -> Result<Vec<u8>, HandshakeError> {
    let mut start = [0; 6];
    stream.read_exact(&mut start).await?;
    if start[..4] != MAGIC {
        return Err(HandshakeError::Malformed("it does not speak this protocol"));
    }
    let len = usize::from(u16::from_le_bytes([start[4], start[5]]));
    if len == 0 || len > MAX_MESSAGE_BYTES {
        return Err(HandshakeError::Malformed("a message of a length that none has"));
    }
    let mut message = vec![0; len];
    stream.read_exact(&mut message).await?;
    if message[0] == REFUSAL {
        let mut fields = Fields(&message[1..]);
        return Err(HandshakeError::Refused(fields.text()?.escape_debug().to_string()));
    }
    if message[0] != kind {
        return Err(HandshakeError::Malformed("a message out of turn"));
    }
    Ok(message)
}

impl Hello {
    fn parse(message: &[u8]) -> Result<Self, HandshakeError> {
        let mut fields = Fields(&message[1..]);
        let hello = Self {
            versions: (u16::from_le_bytes(fields.array()?), u16::from_le_bytes(fields.array()?)),
            features: u64::from_le_bytes(fields.array()?),
            max_message_bytes: u32::from_le_bytes(fields.array()?),
            channel: u8::from_le_bytes(fields.array()?),
            from: i32::from_le_bytes(fields.array()?),
            to: i32::from_le_bytes(fields.array()?),
            line: u64::from_le_bytes(fields.array()?),
            cluster_id: fields.text()?,
        };
        fields.array::<32>().map(|_| hello)
    }
}

impl Challenge {
    fn parse(message: &[u8]) -> Result<Self, HandshakeError> {
        let mut fields = Fields(&message[1..]);
        let version = u16::from_le_bytes(fields.array()?);
        let features = u64::from_le_bytes(fields.array()?);
        let challenge = Self {
            version,
            features,
            max_message_bytes: u32::from_le_bytes(fields.array()?),
            node_id: i32::from_le_bytes(fields.array()?),
            cluster_id: fields.text()?,
        };
        fields.array::<32>().map(|_| challenge)
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], HandshakeError> {
        let (taken, rest) =
            self.0.split_at_checked(len).ok_or(HandshakeError::Malformed("a short message"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], HandshakeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn text(&mut self) -> Result<String, HandshakeError> {
        let [len] = self.array()?;
        let text = std::str::from_utf8(self.take(usize::from(len))?);
        Ok(text.map_err(|_| HandshakeError::Malformed("text that is none"))?.to_owned())
    }
}
