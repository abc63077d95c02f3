//! The lines of the log, and a limit to those that repeat: what fails for every request must not bury what failed first, nor fill a
//! disk. Of the warnings and errors of one place in the code the first [`BURST`] are written, then one each [`INTERVAL`], and before
//! it how many were left out. Other levels are written as they come.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, fmt as lines};

const BURST: u32 = 20;
const INTERVAL: Duration = Duration::from_secs(1);

/// What writes the log to `to`, as text for people or JSON for programs.
pub(crate) fn subscriber<W>(filter: EnvFilter, json: bool, to: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = lines().with_env_filter(filter).with_writer(to);
    if json {
        let builder = builder.json().flatten_event(true);
        Box::new(builder.map_event_format(|format| Limited::new(format, left_out_json)).finish())
    } else {
        Box::new(builder.map_event_format(|format| Limited::new(format, left_out_text)).finish())
    }
}

fn left_out_text(count: u64, to: &mut Writer<'_>) -> fmt::Result {
    writeln!(to, "{count} lines like the next one were left out")
}

fn left_out_json(count: u64, to: &mut Writer<'_>) -> fmt::Result {
    writeln!(to, r#"{{"level":"WARN","message":"lines like the next one were left out","count":{count}}}"#)
}

struct Limited<F> {
    format: F,
    left_out: fn(u64, &mut Writer<'_>) -> fmt::Result,
    /// By the place in the code, so there are no more than those.
    streaks: Mutex<HashMap<Identifier, Streak>>,
}

impl<F> Limited<F> {
    fn new(format: F, left_out: fn(u64, &mut Writer<'_>) -> fmt::Result) -> Self {
        Self { format, left_out, streaks: Mutex::default() }
    }
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut to: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if *event.metadata().level() <= Level::WARN {
            let now = Instant::now();
            let place = event.metadata().callsite();
            let admitted = self.streaks.lock().entry(place).or_insert_with(|| Streak::new(now)).admit(now);
            match admitted {
                None => return Ok(()),
                Some(0) => {}
                Some(count) => (self.left_out)(count, &mut to)?,
            }
        }
        self.format.format_event(context, to, event)
    }
}

/// The lines of one place.
struct Streak {
    /// When all of the burst is free again.
    free_at: Instant,
    left_out: u64,
}

impl Streak {
    fn new(now: Instant) -> Self {
        Self { free_at: now, left_out: 0 }
    }

    /// `None`: not this one. Else how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let free_at = self.free_at.max(now);
        if free_at - now > INTERVAL * (BURST - 1) {
            self.left_out += 1;
            return None;
        }
        self.free_at = free_at + INTERVAL;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_burst_is_written_then_one_a_second_and_what_was_left_out_is_counted() {
        let now = Instant::now();
        let mut streak = Streak::new(now);
        let written = (0..1_000).filter(|_| streak.admit(now).is_some()).count();
        assert_eq!(written, 20);
        assert_eq!(streak.admit(now + INTERVAL), Some(980));
        assert_eq!(streak.admit(now + INTERVAL), None);
        assert_eq!(streak.admit(now + INTERVAL * 3), Some(1));
        // After a pause it is as at first.
        let later = now + INTERVAL * 100;
        let written = (0..1_000).filter(|_| streak.admit(later).is_some()).count();
        assert_eq!(written, 20);
    }

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn log_of(json: bool) -> Vec<String> {
        let written = Written::default();
        let to = written.clone();
        let subscriber = subscriber(EnvFilter::new("info"), json, move || to.clone());
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..100 {
                tracing::warn!(number, "again");
                tracing::info!(number, "told");
            }
            tracing::error!("of another place");
        });
        let bytes = written.0.lock().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn each_place_has_its_own_limit_and_information_has_none() {
        let lines = log_of(false);
        let count = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
        assert_eq!((count("again"), count("told"), count("of another place")), (20, 100, 1), "{lines:?}");
    }

    #[test]
    fn every_line_of_json_is_json() {
        let lines = log_of(true);
        assert_eq!(lines.len(), 121);
        let mut left_out = String::new();
        left_out_json(7, &mut Writer::new(&mut left_out)).unwrap();
        for line in lines.iter().map(String::as_str).chain([left_out.trim_end()]) {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
        }
    }
}
