//! An object of a directory that is written piece by piece.
//!
//! The rules of [`super`] hold: its name appears only when all its bytes are synced, and a staged file is removed by the next
//! `open`. It is written through the page cache, for its length is not known before; what was written is synced every
//! [`SYNC_BYTES`], so that the last sync does not make the WAL's wait.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use isobar_host::{DiskFile, Open};

use super::{Directory, Inner, WriteFailure, gone};

/// Dirty bytes at most.
const SYNC_BYTES: u64 = 32 << 20;

/// See the module. Dropped before [`Staged::commit`], its file stays until the directory is opened again or
/// [`Staged::discard`] has removed it.
pub(crate) struct Staged {
    inner: Arc<Inner>,
    file: Arc<dyn DiskFile>,
    staged: PathBuf,
    path: PathBuf,
    written_bytes: u64,
    synced_bytes: u64,
}

impl Directory {
    /// Begins an object.
    pub(crate) async fn stage(&self, key: &str) -> io::Result<Staged> {
        let path = self.path(key)?;
        let staged = self.inner.staging.join(super::staged_name(&self.inner.host));
        let at = staged.clone();
        let file = self.blocking(move |inner| inner.disk.open(&at, Open::CREATE)).await?;
        let inner = Arc::clone(&self.inner);
        Ok(Staged { inner, file: Arc::from(file), staged, path, written_bytes: 0, synced_bytes: 0 })
    }
}

impl Staged {
    /// Writes on.
    pub(crate) async fn append(&mut self, parts: Vec<Bytes>) -> io::Result<()> {
        let start = self.written_bytes;
        let end = start + parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let sync = end - self.synced_bytes >= SYNC_BYTES;
        let (inner, file) = (Arc::clone(&self.inner), Arc::clone(&self.file));
        let write = move || {
            file.allocate(end)?;
            let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
            let mut offset = start;
            // Bounded by what one call of the system takes.
            for some in slices.chunks(512) {
                file.write_at(some, offset)?;
                offset += some.iter().map(|slice| slice.len() as u64).sum::<u64>();
            }
            if sync { inner.sync(&*file) } else { Ok(()) }
        };
        self.inner.host.run_blocking(write).await.unwrap_or_else(|| Err(gone()))?;
        self.written_bytes = end;
        if sync {
            self.synced_bytes = end;
        }
        Ok(())
    }

    /// Gives it its name.
    pub(crate) async fn commit(self) -> Result<u64, WriteFailure> {
        let Self { inner, file, staged, path, written_bytes, .. } = self;
        let host = inner.host.clone();
        let work = move || {
            if let Err(error) = inner.sync(&*file) {
                let _ = inner.disk.remove(&staged);
                return Err(WriteFailure::DidNotHappen(error));
            }
            inner.publish(&staged, &path)
        };
        let done = host.run_blocking(work).await;
        done.unwrap_or_else(|| Err(WriteFailure::MayHaveHappened(gone()))).map(|()| written_bytes)
    }

    /// Removes what was written.
    pub(crate) async fn discard(self) {
        let Self { inner, staged, .. } = self;
        let host = inner.host.clone();
        // What stays behind is removed by the next `open`.
        let _ = host.run_blocking(move || inner.disk.remove(&staged)).await;
    }
}
