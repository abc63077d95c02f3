//! Memory that requests may hold while they are read and handled.
//!
//! A permit is taken after a frame's length and API key are known and before its body is read. Large frames and
//! every Produce draw on the one budget; small frames of other APIs draw on a reserve, so that heartbeats, commits and
//! fetches go on while producers wait.

use std::sync::Arc;

use isobar_protocol::api::ApiKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits are counted in units of this many bytes, so that they fit the semaphore's `u32`.
const UNIT_BYTES: usize = 1 << 10;
/// Frames of other APIs than Produce up to this size draw on the reserve.
const SMALL_FRAME_BYTES: usize = 64 << 10;
/// Size of the reserve.
const RESERVE_BYTES: usize = 16 << 20;

/// The broker's budget for request bytes.
pub(crate) struct Budget {
    general: Arc<Semaphore>,
    general_units: usize,
    reserve: Arc<Semaphore>,
}

/// Bytes held; given back when dropped.
pub(crate) struct Permit {
    _units: OwnedSemaphorePermit,
}

impl Budget {
    /// A budget of `bytes` (`queued.max.request.bytes`), the reserve beside it.
    pub(crate) fn new(bytes: usize) -> Self {
        let general_units = (bytes / UNIT_BYTES).max(1);
        Self {
            general: Arc::new(Semaphore::new(general_units)),
            general_units,
            reserve: Arc::new(Semaphore::new(RESERVE_BYTES / UNIT_BYTES)),
        }
    }

    /// Waits until `bytes` may be held. `None` once the budget is closed. A frame larger than the whole budget gets
    /// all of it, so it passes alone.
    pub(crate) async fn acquire(&self, api: ApiKey, bytes: usize) -> Option<Permit> {
        let units = bytes.div_ceil(UNIT_BYTES);
        let (semaphore, units) = if api != ApiKey::Produce && bytes <= SMALL_FRAME_BYTES {
            (&self.reserve, units)
        } else {
            (&self.general, units.min(self.general_units))
        };
        let units = u32::try_from(units.max(1)).unwrap_or(u32::MAX);
        let permit = Arc::clone(semaphore).acquire_many_owned(units).await.ok()?;
        Some(Permit { _units: permit })
    }

    /// Bytes held now, of the general budget.
    pub(crate) fn held_bytes(&self) -> usize {
        (self.general_units - self.general.available_permits()) * UNIT_BYTES
    }
}
