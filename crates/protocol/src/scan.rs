//! Walks a request by its schema before it is decoded, so that what decoding allocates is bounded by bytes that
//! are really there.
//!
//! kafka-protocol allocates arrays by the count on the wire before it reads an element (an 8-byte request can ask
//! for gigabytes) and keeps every unknown tagged field in a map. The walk checks every length and count against the bytes
//! left, adds up what decoding will take, and refuses what would take more than [`Budget`] allows. What it
//! accepts, kafka-protocol decodes without an error.

use crate::schema::{Layout, Ty};
use crate::wire::{Malformed, Reader};

/// Fewest bytes that an unknown tagged field costs: an entry and its share of the map's nodes.
const TAG_BYTES: usize = 96;
/// What the first unknown tagged field of a struct costs: the map's first node.
const TAG_MAP_BYTES: usize = 512;
/// Decoded bytes allowed for each byte of the request. The widest honest element, an empty string in an array, takes
/// 32; one unknown tag in each small struct takes about 60.
const COST_PER_BYTE: usize = 64;
const COST_FLOOR_BYTES: usize = 64 * 1024;

/// What decoding may still allocate.
pub(crate) struct Budget {
    left_bytes: usize,
    total_bytes: usize,
}

impl Budget {
    pub(crate) fn for_request(len_bytes: usize, cap_bytes: usize) -> Self {
        let total_bytes = cap_bytes.min(COST_FLOOR_BYTES + len_bytes.saturating_mul(COST_PER_BYTE));
        Budget { left_bytes: total_bytes, total_bytes }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), Malformed> {
        match self.left_bytes.checked_sub(bytes) {
            Some(left) => {
                self.left_bytes = left;
                Ok(())
            }
            None => Err(Malformed::TooCostly(self.total_bytes)),
        }
    }
}

/// Walks one message body. Bytes behind its end are left to the caller.
pub(crate) fn walk(
    reader: &mut Reader<'_>,
    layout: &Layout,
    version: i16,
    flexible: bool,
    budget: &mut Budget,
) -> Result<(), Malformed> {
    Walk { version, flexible, budget }.layout(reader, layout)
}

struct Walk<'a> {
    version: i16,
    flexible: bool,
    budget: &'a mut Budget,
}

impl Walk<'_> {
    fn layout(&mut self, reader: &mut Reader<'_>, layout: &Layout) -> Result<(), Malformed> {
        for field in layout.fields {
            if self.version >= field.since && self.version <= field.until {
                self.value(reader, &field.ty)?;
            }
        }
        if self.flexible { self.tags(reader, layout) } else { Ok(()) }
    }

    fn value(&mut self, reader: &mut Reader<'_>, ty: &Ty) -> Result<(), Malformed> {
        match ty {
            Ty::Fixed(bytes) => reader.take(*bytes).map(drop),
            Ty::Str(null_since) => match reader.string(self.flexible)? {
                None if self.version < *null_since => Err(Malformed::Length(-1)),
                _ => Ok(()),
            },
            Ty::Bytes => {
                let len = reader.length(self.flexible, true)?.ok_or(Malformed::Length(-1))?;
                reader.take(len).map(drop)
            }
            Ty::Array { null_since, of, element_bytes } => {
                let Some(count) = reader.length(self.flexible, true)? else {
                    return if self.version < *null_since { Err(Malformed::Length(-1)) } else { Ok(()) };
                };
                self.elements(reader, of, count, *element_bytes)
            }
            Ty::Struct(layout) => self.layout(reader, layout),
        }
    }

    fn elements(
        &mut self,
        reader: &mut Reader<'_>,
        of: &Ty,
        count: usize,
        element_bytes: usize,
    ) -> Result<(), Malformed> {
        let smallest = if let Ty::Fixed(bytes) = of { *bytes } else { 1 };
        let left_bytes = reader.left();
        if count > left_bytes / smallest {
            return Err(Malformed::Count { count: count as u64, left_bytes });
        }
        self.budget.spend(count * element_bytes)?;
        if let Ty::Fixed(bytes) = of {
            return reader.take(count * bytes).map(drop);
        }
        for _ in 0..count {
            self.value(reader, of)?;
        }
        Ok(())
    }

    fn tags(&mut self, reader: &mut Reader<'_>, layout: &Layout) -> Result<(), Malformed> {
        let count = reader.uvarint()?;
        let left_bytes = reader.left();
        if count as usize > left_bytes / 2 {
            return Err(Malformed::Count { count: u64::from(count), left_bytes });
        }
        let mut first_unknown = true;
        for _ in 0..count {
            let tag = reader.uvarint()?;
            let mut content = Reader::new(reader.take_len()?);
            let Some(known) = layout.tags.iter().find(|known| known.tag == tag) else {
                self.budget.spend(if first_unknown { TAG_MAP_BYTES } else { TAG_BYTES })?;
                first_unknown = false;
                continue;
            };
            if self.version < known.since {
                return Err(Malformed::Tag(tag));
            }
            // The decoder reads the value without looking at the length, so the two have to agree.
            self.value(&mut content, &known.ty)?;
            if content.left() != 0 {
                return Err(Malformed::Tag(tag));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
