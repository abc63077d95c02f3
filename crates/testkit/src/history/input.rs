//! Reads histories from JSON lines.

use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use super::{Checker, Event, HistoryError, Options, Report};

/// One event is at most this long. A poll of 100,000 records fits.
const MAX_LINE_BYTES: u64 = 16 << 20;

struct Source<R> {
    name: String,
    lines: R,
    line: u64,
    next: Option<Event>,
    buffer: Vec<u8>,
}

impl<R: BufRead> Source<R> {
    fn advance(&mut self) -> Result<Option<Event>, HistoryError> {
        let previous = self.next.take();
        loop {
            self.buffer.clear();
            let read = (&mut self.lines).take(MAX_LINE_BYTES).read_until(b'\n', &mut self.buffer);
            let read = read.map_err(|source| HistoryError::Io { file: self.name.clone(), source })?;
            if read == 0 {
                return Ok(previous);
            }
            self.line += 1;
            if read as u64 == MAX_LINE_BYTES {
                return Err(HistoryError::TooLong {
                    file: self.name.clone(),
                    line: self.line,
                    limit: MAX_LINE_BYTES,
                });
            }
            if !self.buffer.trim_ascii().is_empty() {
                break;
            }
        }
        let event = serde_json::from_slice(&self.buffer).map_err(|source| HistoryError::Json {
            file: self.name.clone(),
            line: self.line,
            source,
        })?;
        self.next = Some(event);
        Ok(previous)
    }
}

/// Several histories, each in order of time, as one.
pub struct Merge<R> {
    sources: Vec<Source<R>>,
}

impl<R: BufRead> Merge<R> {
    /// Names and readers.
    ///
    /// # Errors
    /// The first line of one is not an event, or cannot be read.
    pub fn new(inputs: Vec<(String, R)>) -> Result<Self, HistoryError> {
        let mut sources = Vec::new();
        for (name, lines) in inputs {
            let mut source = Source { name, lines, line: 0, next: None, buffer: Vec::new() };
            source.advance()?;
            sources.push(source);
        }
        Ok(Self { sources })
    }

    /// The next event of all; the first named file first where times are equal.
    ///
    /// # Errors
    /// A line is not an event, or cannot be read.
    pub fn next_event(&mut self) -> Result<Option<Event>, HistoryError> {
        let due = self.sources.iter_mut().filter(|s| s.next.is_some());
        match due.min_by_key(|s| s.next.as_ref().map(|e| e.time_ns)) {
            None => Ok(None),
            Some(source) => source.advance(),
        }
    }
}

/// Checks the history that these files hold together.
///
/// # Errors
/// See [`HistoryError`].
pub fn check_files<P: AsRef<Path>>(files: &[P], options: Options) -> Result<Report, HistoryError> {
    let mut inputs = Vec::new();
    for file in files {
        let name = file.as_ref().display().to_string();
        #[expect(clippy::disallowed_methods, reason = "a tool of the test harness, which has no host")]
        let open = std::fs::File::open(file);
        let open = open.map_err(|source| HistoryError::Io { file: name.clone(), source })?;
        inputs.push((name, BufReader::with_capacity(1 << 20, open)));
    }
    let mut merge = Merge::new(inputs)?;
    let mut checker = Checker::new(options);
    while let Some(event) = merge.next_event()? {
        checker.event(&event)?;
    }
    Ok(checker.finish())
}
