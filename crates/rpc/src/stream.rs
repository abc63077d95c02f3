//! Streams: parts from a service to whoever asked, bounded by credit.
//!
//! The taker gives the sender a *window* of bytes when it opens the stream, and gives back what it has taken. A part of
//! n bytes takes n + [`PART_BYTES`] of it, so that many small ones are bounded too; a part larger than the window takes all of
//! it. The sender sends a part when its credit covers that. So a taker that stops holds at most the larger of the
//! window and one part, and a sender waits. A sender that goes beyond breaks the rules and loses its connection.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::CallError;
use crate::line::Line;

/// What a part costs beyond its bytes.
pub(crate) const PART_BYTES: u64 = 64;

/// What a part of so many bytes takes of a window: at most all of it.
pub(crate) fn charge(part_bytes: usize, window: u64) -> u64 {
    (part_bytes as u64 + PART_BYTES).min(window)
}

/// The receiving end of a stream, as the connection's reader sees it.
pub(crate) struct Taker {
    window: u64,
    state: Mutex<Taken>,
    told: Notify,
}

struct Taken {
    parts: VecDeque<Bytes>,
    /// What the sender may still send.
    credit: u64,
    /// What was taken and not given back.
    owed: u64,
    opened: bool,
    end: Option<Result<(), CallError>>,
}

impl Taker {
    pub(crate) fn new(window: u32) -> Self {
        let window = u64::from(window);
        let state = Taken { parts: VecDeque::new(), credit: window, owed: 0, opened: false, end: None };
        Self { window, state: Mutex::new(state), told: Notify::new() }
    }

    /// The request has been given to a writer.
    pub(crate) fn opened(&self) {
        self.state.lock().opened = true;
        self.told.notify_one();
    }

    pub(crate) fn part(&self, part: Bytes) -> Result<(), &'static str> {
        let mut state = self.state.lock();
        let charge = charge(part.len(), self.window);
        if state.credit < charge {
            return Err("a part of a stream beyond its window");
        }
        state.credit -= charge;
        state.parts.push_back(part);
        drop(state);
        self.told.notify_one();
        Ok(())
    }

    /// A call's answer to a stream: its only part.
    pub(crate) fn only(&self, part: Bytes) {
        self.state.lock().parts.push_back(part);
        self.end(Ok(()));
    }

    pub(crate) fn end(&self, end: Result<(), CallError>) {
        self.state.lock().end.get_or_insert(end);
        self.told.notify_one();
    }

    /// Waits until the request has gone out, or has failed.
    pub(crate) async fn wait_opened(&self) -> Result<(), CallError> {
        loop {
            {
                let state = self.state.lock();
                if state.opened || !state.parts.is_empty() {
                    return Ok(());
                }
                match &state.end {
                    Some(Err(error)) => return Err(error.clone()),
                    Some(Ok(())) => return Ok(()),
                    None => {}
                }
            }
            self.told.notified().await;
        }
    }
}

/// A stream of parts from a peer's service. Dropping it cancels the stream.
pub struct Incoming {
    line: Arc<Line>,
    id: u64,
    taker: Arc<Taker>,
}

impl Incoming {
    pub(crate) fn new(line: Arc<Line>, id: u64, taker: Arc<Taker>) -> Self {
        Self { line, id, taker }
    }

    /// The next part; `None` when the service has said that this was all. After an error or the end, the same again.
    /// Cancel-safe. There is no deadline: a stream may be silent for as long as its connection lives.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            self.taker.told.notified().await;
        }
    }

    fn try_next(&mut self) -> Option<Result<Option<Bytes>, CallError>> {
        let mut state = self.taker.state.lock();
        let next = match state.parts.pop_front() {
            Some(part) => {
                state.owed += charge(part.len(), self.taker.window);
                Some(Ok(Some(part)))
            }
            None => state.end.clone().map(|end| end.map(|()| None)),
        };
        // In larger pieces while parts are there; all of it before waiting, for the next part may want the whole window.
        if state.end.is_none() && state.owed > 0 && (next.is_none() || state.owed * 4 >= self.taker.window) {
            let owed = std::mem::take(&mut state.owed);
            state.credit += owed;
            drop(state);
            // At most a window, which is a u32.
            self.line.grant(self.id, owed as u32);
        }
        next
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.line.cancel(self.id);
    }
}
