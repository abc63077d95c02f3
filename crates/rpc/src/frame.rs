//! Frames: what travels after the handshake. Pure.
//!
//! Layout, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | length of the body |
//! | 4 | kind |
//! | 5, 6 | service, method (requests) |
//! | 7 | flags: none known, must be 0 |
//! | 8..16 | id of the request, or token of a ping |
//! | 16..20 | argument: a stream's window, credit, the code of a refusal |
//! | 20..24 | CRC-32C of the body |
//! | 24..28 | CRC-32C of the frame's number (8 bytes, from 0, not sent) and of bytes 0..24 |
//!
//! Both sums start from a key of this connection and direction. A length is believed only after the head's sum, so a
//! flipped bit cannot make a reader wait for, or make room for, what will not come; and a frame that was lost, repeated
//! or moved is seen by its number. This is a guard against accidents, not against whoever sits on the wire.

use bytes::Bytes;

use crate::error::FrameError;

pub(crate) const HEAD_BYTES: usize = 28;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A call.
    Request = 1,
    /// A request that is answered by a stream; the argument is the window in bytes.
    Open = 2,
    /// The answer of a call; of a stream: its only part, and its end.
    Answer = 3,
    /// A no; the argument is the code, the body the message.
    Refused = 4,
    /// A part of a stream.
    Part = 5,
    /// A stream's end.
    End = 6,
    /// The taker of a stream has room for as many bytes more as the argument says.
    Credit = 7,
    /// Nobody takes this stream any more.
    Cancel = 8,
    Ping = 9,
    Pong = 10,
}

impl Kind {
    fn from_wire(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Request,
            2 => Self::Open,
            3 => Self::Answer,
            4 => Self::Refused,
            5 => Self::Part,
            6 => Self::End,
            7 => Self::Credit,
            8 => Self::Cancel,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    /// Kinds that never have a body.
    pub(crate) fn is_bare(self) -> bool {
        matches!(self, Self::End | Self::Credit | Self::Cancel | Self::Ping | Self::Pong)
    }
}

/// A frame to send. The body is its parts, one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) service: u8,
    pub(crate) method: u8,
    pub(crate) id: u64,
    pub(crate) argument: u32,
    pub(crate) body: Vec<Bytes>,
}

impl Frame {
    pub(crate) fn bare(kind: Kind, id: u64, argument: u32) -> Self {
        Self { kind, service: 0, method: 0, id, argument, body: Vec::new() }
    }

    pub(crate) fn with_body(kind: Kind, id: u64, body: Vec<Bytes>) -> Self {
        Self { kind, service: 0, method: 0, id, argument: 0, body }
    }

    pub(crate) fn body_bytes(&self) -> usize {
        parts_bytes(&self.body)
    }
}

pub(crate) fn parts_bytes(parts: &[Bytes]) -> usize {
    parts.iter().map(Bytes::len).sum()
}

/// A head that was read and found whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) service: u8,
    pub(crate) method: u8,
    pub(crate) id: u64,
    pub(crate) argument: u32,
    pub(crate) body_bytes: usize,
    pub(crate) body_sum: u32,
}

/// Makes the heads of one direction of a connection.
#[derive(Debug)]
pub(crate) struct Sealer {
    key: u32,
    number: u64,
}

impl Sealer {
    pub(crate) fn new(key: u32) -> Self {
        Self { key, number: 0 }
    }

    /// The head of the next frame. Bodies are bounded long before `u32::MAX` bytes.
    pub(crate) fn seal(&mut self, frame: &Frame) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        let body_sum = frame.body.iter().fold(self.key, |sum, part| crc32c::crc32c_append(sum, part));
        head[0..4].copy_from_slice(&u32::try_from(frame.body_bytes()).unwrap_or(u32::MAX).to_le_bytes());
        head[4] = frame.kind as u8;
        head[5] = frame.service;
        head[6] = frame.method;
        head[8..16].copy_from_slice(&frame.id.to_le_bytes());
        head[16..20].copy_from_slice(&frame.argument.to_le_bytes());
        head[20..24].copy_from_slice(&body_sum.to_le_bytes());
        let sum = head_sum(self.key, self.number, &head);
        head[24..28].copy_from_slice(&sum.to_le_bytes());
        self.number += 1;
        head
    }
}

fn head_sum(key: u32, number: u64, head: &[u8; HEAD_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(key, &number.to_le_bytes()), &head[..24])
}

/// Reads the heads of one direction of a connection, and sums bodies.
#[derive(Debug)]
pub(crate) struct Opener {
    key: u32,
    number: u64,
    max_body_bytes: usize,
}

impl Opener {
    pub(crate) fn new(key: u32, max_body_bytes: usize) -> Self {
        Self { key, number: 0, max_body_bytes }
    }

    pub(crate) fn open(&mut self, head: &[u8; HEAD_BYTES]) -> Result<Head, FrameError> {
        let number = self.number;
        if head_sum(self.key, number, head) != u32_at(head, 24) {
            return Err(FrameError::HeadSum { number });
        }
        let kind = Kind::from_wire(head[4]).ok_or(FrameError::Kind { number, kind: head[4] })?;
        if head[7] != 0 {
            return Err(FrameError::Flags { number, flags: head[7] });
        }
        let bytes = u32_at(head, 0) as usize;
        let max = if kind.is_bare() { 0 } else { self.max_body_bytes };
        if bytes > max {
            return Err(FrameError::TooLarge { number, bytes, max });
        }
        self.number += 1;
        let mut id = [0; 8];
        id.copy_from_slice(&head[8..16]);
        Ok(Head {
            kind,
            service: head[5],
            method: head[6],
            id: u64::from_le_bytes(id),
            argument: u32_at(head, 16),
            body_bytes: bytes,
            body_sum: u32_at(head, 20),
        })
    }

    /// What the sum of a body starts from.
    pub(crate) fn key(&self) -> u32 {
        self.key
    }

    /// Checks the sum of the body of the frame that was opened last.
    pub(crate) fn check_body(&self, head: &Head, sum: u32) -> Result<(), FrameError> {
        if sum == head.body_sum { Ok(()) } else { Err(FrameError::BodySum { number: self.number - 1 }) }
    }
}

fn u32_at(bytes: &[u8; HEAD_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
