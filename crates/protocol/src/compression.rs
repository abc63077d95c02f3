//! Kafka's compression codecs, with a cap on what decompression may yield.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use zstd::zstd_safe::{DCtx, ResetDirective};

/// A codec of record batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Not compressed.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Snappy, in xerial's framing or bare.
    Snappy,
    /// LZ4 frames of independent blocks.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// Why bytes could not be decompressed or compressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// The bytes are not what the codec writes.
    #[error("corrupt {codec} data: {source}")]
    Corrupt {
        /// The codec.
        codec: Codec,
        /// What it said.
        source: io::Error,
    },
    /// They yield more than the caller allows.
    #[error("{codec} data yields more than {cap_bytes} bytes")]
    TooLarge {
        /// The codec.
        codec: Codec,
        /// The caller's cap.
        cap_bytes: usize,
    },
}

/// Xerial's snappy-java stream: magic, version 1, oldest reader 1, then blocks of 4-byte length and raw snappy.
const XERIAL_MAGIC: &[u8; 8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_BYTES: usize = 16;
const XERIAL_BLOCK_BYTES: usize = 32 * 1024;
/// A Zstandard context that a large window has made larger than this is not kept.
const KEPT_CONTEXT_BYTES: usize = 4 << 20;

thread_local! {
    // Making one asks the processor what it can do, which in a virtual machine takes longer than a small batch.
    static ZSTD: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

impl Codec {
    /// Every codec, by id.
    pub const ALL: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    /// The number in a batch's attributes.
    pub const fn id(self) -> u8 {
        self as u8
    }

    /// The codec of a batch's attributes.
    pub fn from_id(id: u8) -> Option<Codec> {
        Codec::ALL.get(usize::from(id)).copied()
    }

    /// Kafka's name for it, as in `compression.type`.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Gzip => "gzip",
            Codec::Snappy => "snappy",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }

    /// Decompresses; an error rather than more than `cap_bytes`.
    pub fn decompress(self, bytes: &[u8], cap_bytes: usize) -> Result<Vec<u8>, CompressionError> {
        let result = match self {
            Codec::None => Ok((bytes.len() <= cap_bytes).then(|| bytes.to_vec())),
            Codec::Gzip => read_capped(flate2::read::MultiGzDecoder::new(bytes), bytes.len(), cap_bytes),
            Codec::Snappy => snappy_decompress(bytes, cap_bytes),
            Codec::Lz4 => read_capped(lz4_flex::frame::FrameDecoder::new(bytes), bytes.len(), cap_bytes),
            Codec::Zstd => zstd_decompress(bytes, cap_bytes),
        };
        match result {
            Ok(Some(out)) => Ok(out),
            Ok(None) => Err(CompressionError::TooLarge { codec: self, cap_bytes }),
            Err(source) => Err(CompressionError::Corrupt { codec: self, source }),
        }
    }

    /// Compresses as Kafka's own clients do by default.
    pub fn compress(self, bytes: &[u8]) -> Result<Vec<u8>, CompressionError> {
        self.compress_io(bytes).map_err(|source| CompressionError::Corrupt { codec: self, source })
    }

    fn compress_io(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Codec::None => Ok(bytes.to_vec()),
            Codec::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(bytes)?;
                encoder.finish()
            }
            Codec::Snappy => snappy_compress(bytes),
            Codec::Lz4 => {
                // Java's reader takes independent blocks only.
                let info = lz4_flex::frame::FrameInfo::new()
                    .block_size(lz4_flex::frame::BlockSize::Max64KB)
                    .block_mode(lz4_flex::frame::BlockMode::Independent);
                let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
                encoder.write_all(bytes)?;
                encoder.finish().map_err(io::Error::from)
            }
            Codec::Zstd => zstd::stream::encode_all(bytes, zstd::DEFAULT_COMPRESSION_LEVEL),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Codec {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Codec::ALL
            .into_iter()
            .find(|codec| codec.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| format!("unknown codec {name:?}: none, gzip, snappy, lz4 or zstd"))
    }
}

/// Reads to the end; `None` if there is more than the cap. The output grows as it comes, never by what a header promises.
fn read_capped(reader: impl Read, packed_bytes: usize, cap_bytes: usize) -> io::Result<Option<Vec<u8>>> {
    let mut out = Vec::with_capacity(packed_bytes.saturating_mul(2).min(cap_bytes));
    // One byte beyond the cap tells "exactly the cap" from "more".
    reader.take((cap_bytes as u64).saturating_add(1)).read_to_end(&mut out)?;
    Ok((out.len() <= cap_bytes).then_some(out))
}

fn zstd_decompress(bytes: &[u8], cap_bytes: usize) -> io::Result<Option<Vec<u8>>> {
    ZSTD.with_borrow_mut(|context| {
        // What went before may have ended within a frame.
        if context.reset(ResetDirective::SessionOnly).is_err() {
            *context = DCtx::create();
        }
        let decoder = zstd::stream::read::Decoder::with_context(bytes, context);
        let result = read_capped(decoder, bytes.len(), cap_bytes);
        if context.sizeof() > KEPT_CONTEXT_BYTES {
            *context = DCtx::create();
        }
        result
    })
}

fn snappy_decompress(bytes: &[u8], cap_bytes: usize) -> io::Result<Option<Vec<u8>>> {
    let mut out = Vec::new();
    if !bytes.starts_with(XERIAL_MAGIC) {
        return Ok(snappy_block(bytes, &mut out, cap_bytes)?.then_some(out));
    }
    let mut rest = bytes.get(XERIAL_HEADER_BYTES..).ok_or_else(|| corrupt("xerial header is cut off"))?;
    while !rest.is_empty() {
        let (len, tail) = rest.split_first_chunk::<4>().ok_or_else(|| corrupt("xerial block is cut off"))?;
        let len = u32::from_be_bytes(*len) as usize;
        if len > tail.len() {
            return Err(corrupt("xerial block is cut off"));
        }
        let (block, tail) = tail.split_at(len);
        if !snappy_block(block, &mut out, cap_bytes)? {
            return Ok(None);
        }
        rest = tail;
    }
    Ok(Some(out))
}

/// Appends one raw block; `false` if that would pass the cap. A block says how much it yields, and snappy yields at most
/// about 22 bytes for each of its own, which bounds what a lying block can make us take.
fn snappy_block(block: &[u8], out: &mut Vec<u8>, cap_bytes: usize) -> io::Result<bool> {
    const MOST_PER_BYTE: usize = 64;
    let yields = snap::raw::decompress_len(block).map_err(io::Error::from)?;
    if yields > cap_bytes - out.len() {
        return Ok(false);
    }
    if yields > block.len().saturating_mul(MOST_PER_BYTE) {
        return Err(corrupt("snappy block promises more than it can hold"));
    }
    let from = out.len();
    out.resize(from + yields, 0);
    snap::raw::Decoder::new().decompress(block, &mut out[from..]).map_err(io::Error::from)?;
    Ok(true)
}

fn snappy_compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(XERIAL_HEADER_BYTES + bytes.len() / 2);
    out.extend_from_slice(XERIAL_MAGIC);
    out.extend_from_slice(&1u32.to_be_bytes());
    out.extend_from_slice(&1u32.to_be_bytes());
    let mut encoder = snap::raw::Encoder::new();
    for block in bytes.chunks(XERIAL_BLOCK_BYTES) {
        let packed = encoder.compress_vec(block).map_err(io::Error::from)?;
        out.extend_from_slice(&(packed.len() as u32).to_be_bytes());
        out.extend_from_slice(&packed);
    }
    Ok(out)
}

fn corrupt(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_codec_round_trips_and_keeps_the_cap(seed: u8, len in 0usize..200_000, run in 1usize..300) {
            let bytes: Vec<u8> = (0..len).map(|i| ((i / run) as u8).wrapping_mul(31) ^ seed).collect();
            for codec in Codec::ALL {
                let packed = codec.compress(&bytes).unwrap();
                prop_assert_eq!(&codec.decompress(&packed, len).unwrap(), &bytes);
                if len > 0 {
                    let over = codec.decompress(&packed, len - 1);
                    prop_assert!(matches!(over, Err(CompressionError::TooLarge { .. })), "{}: {:?}", codec, over.is_ok());
                }
            }
        }

        #[test]
        fn junk_never_panics(junk in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..64) {
            for codec in Codec::ALL {
                let _ = codec.decompress(&junk, 1 << 20);
                let mut packed = codec.compress(&junk).unwrap();
                packed.truncate(packed.len().saturating_sub(cut));
                let _ = codec.decompress(&packed, 1 << 20);
            }
        }
    }

    /// The context of a thread is used again after each of these ends.
    #[test]
    fn zstd_forgets_what_went_before() {
        let small = b"a small batch".repeat(20);
        // Hard to compress, and with a window as large as the whole.
        let mut last = 7_u64;
        let mut next = || {
            last = last.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (last >> 56) as u8
        };
        let large: Vec<u8> = (0..6 << 20).map(|_| next()).collect();
        let packed = Codec::Zstd.compress(&small).unwrap();
        for end in [packed.len() / 2, packed.len() - 1] {
            assert!(Codec::Zstd.decompress(&packed[..end], 1 << 20).is_err(), "cut off");
            assert_eq!(Codec::Zstd.decompress(&packed, 1 << 20).unwrap(), small);
        }
        assert!(matches!(Codec::Zstd.decompress(&packed, 10), Err(CompressionError::TooLarge { .. })));
        assert_eq!(
            Codec::Zstd.decompress(&[&packed[..], &packed[..]].concat(), 1 << 20).unwrap(),
            small.repeat(2)
        );
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(23).unwrap();
        encoder.write_all(&large).unwrap();
        let packed_large = encoder.finish().unwrap();
        let mut own = DCtx::create();
        read_capped(zstd::stream::read::Decoder::with_context(&packed_large[..], &mut own), 0, 8 << 20)
            .unwrap();
        assert!(own.sizeof() > KEPT_CONTEXT_BYTES, "it takes a large one");
        assert!(Codec::Zstd.decompress(&packed_large, 8 << 20).unwrap() == large);
        assert!(
            ZSTD.with_borrow(DCtx::sizeof) <= KEPT_CONTEXT_BYTES,
            "what a large window took is given back"
        );
        assert_eq!(Codec::Zstd.decompress(&packed, 1 << 20).unwrap(), small);
    }

    #[test]
    fn bare_snappy_is_read_too() {
        let bytes = b"librdkafka writes snappy without a frame".repeat(9);
        let bare = snap::raw::Encoder::new().compress_vec(&bytes).unwrap();
        assert_eq!(Codec::Snappy.decompress(&bare, 1000).unwrap(), bytes);
    }

    #[test]
    fn names_and_ids() {
        for codec in Codec::ALL {
            assert_eq!(codec.name().parse(), Ok(codec));
            assert_eq!(Codec::from_id(codec.id()), Some(codec));
        }
        assert_eq!(Codec::from_id(5), None);
        assert!("brotli".parse::<Codec>().is_err());
    }
}
