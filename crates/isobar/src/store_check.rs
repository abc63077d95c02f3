//! `isobar store`: making a bucket; what works with a store, step by step, and what is missing.

use std::io::Write as _;
use std::time::Duration;

use isobar_host::Host;
use isobar_store::{
    Bucket, BucketOptions, Cause, CredentialSource, Latencies, Probe, ProbeStep, StoreError, StoreKind,
    StoreMetrics, StoreUrl, credential_source,
};
use serde_json::json;

use crate::Failure;
use crate::cli::StoreCommand;

/// Beyond it S3 refuses requests (15 minutes); warned of before.
const SKEW_WARN_MS: i64 = 60_000;
/// (bytes, requests of each kind).
const LATENCIES: [(usize, usize, &str); 2] = [(4 << 10, 50, "4 KiB"), (8 << 20, 8, "8 MiB")];

pub(crate) async fn run(command: StoreCommand) -> Result<(), Failure> {
    match command {
        StoreCommand::Check { url, json, races, quick } => {
            let mut report = Report { json, failed: 0 };
            check(&mut report, &url, races, quick).await?;
            report.end()
        }
        StoreCommand::Make { url } => make(&url).await,
    }
}

#[cfg(feature = "aws")]
async fn make(url: &str) -> Result<(), Failure> {
    let done = isobar_store::aws::make_bucket(&Host::real(), url).await?;
    let mut out = std::io::stdout().lock();
    for line in done {
        writeln!(out, "{line}")?;
    }
    Ok(out.flush()?)
}

#[cfg(not(feature = "aws"))]
#[expect(clippy::unused_async, reason = "as with the feature")]
async fn make(_: &str) -> Result<(), Failure> {
    Err("this build lacks the feature aws: make the bucket with `aws s3 mb`, or build with `cargo build --features aws`".into())
}

#[cfg(feature = "aws")]
async fn tell_settings(report: &mut Report, url: &str) -> Result<(), Failure> {
    use isobar_store::aws::{Verdict, bucket_settings};
    for setting in bucket_settings(&Host::real(), url).await? {
        let outcome = match setting.verdict {
            Verdict::Fine => Outcome::Ok,
            Verdict::Costly => Outcome::Warn,
            Verdict::Harmful => Outcome::Fail,
            Verdict::Unknown => Outcome::Skipped,
        };
        report.step(outcome, setting.name, &setting.words)?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok,
    Warn,
    Fail,
    Skipped,
}

struct Report {
    json: bool,
    failed: u32,
}

impl Report {
    /// Printed at once: a step that hangs is seen hanging.
    fn step(&mut self, outcome: Outcome, step: &str, words: &str) -> Result<(), Failure> {
        self.failed += u32::from(outcome == Outcome::Fail);
        let mark = match outcome {
            Outcome::Ok => "ok",
            Outcome::Warn => "warn",
            Outcome::Fail => "FAIL",
            Outcome::Skipped => "-",
        };
        let mut out = std::io::stdout().lock();
        if self.json {
            let name = match outcome {
                Outcome::Ok => "ok",
                Outcome::Warn => "warning",
                Outcome::Fail => "failed",
                Outcome::Skipped => "skipped",
            };
            writeln!(out, "{}", json!({"step": step, "result": name, "detail": words}))?;
        } else {
            let mut lines = words.split('\n').flat_map(|line| wrap(line, 76));
            writeln!(out, "{mark:<5} {step:<31} {}", lines.next().unwrap_or_default())?;
            for line in lines {
                writeln!(out, "{:38}{line}", "")?;
            }
        }
        Ok(out.flush()?)
    }

    fn end(self) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", json!({"fit": self.failed == 0}))?;
        } else if self.failed == 0 {
            writeln!(out, "\nThis store is fit for Isobar.")?;
        }
        out.flush()?;
        if self.failed == 0 {
            Ok(())
        } else {
            Err("this store is not fit for Isobar yet; see FAIL above".into())
        }
    }
}

/// Words of at most `width` characters a line.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !lines[last].is_empty() {
                lines[last].push(' ');
            }
            lines[last].push_str(word);
        }
    }
    lines
}

async fn check(report: &mut Report, text: &str, races: usize, quick: bool) -> Result<(), Failure> {
    let url = match StoreUrl::parse(text) {
        Ok(url) => url,
        Err(error) => return report.step(Outcome::Fail, "understand the URL", &error.to_string()),
    };
    let prefix = match url.prefix() {
        "" if url.kind() == StoreKind::Directory => String::new(),
        "" => ", no prefix".to_owned(),
        prefix => format!(", prefix {prefix}"),
    };
    report.step(Outcome::Ok, "understand the URL", &format!("{}: {url}{prefix}", url.kind().name()))?;
    let source = credential_source(&url, &|name| std::env::var(name).ok());
    tell_source(report, &url, source.as_ref())?;
    let host = Host::real();
    let options = BucketOptions { put_total: Duration::from_secs(30), ..BucketOptions::default() };
    let bucket = match Bucket::open(&host, "check", text, options, StoreMetrics::default()).await {
        Ok(bucket) => bucket,
        Err(error) => return report.step(Outcome::Fail, "open it", &error.to_string()),
    };
    let mut probe = Probe::new(&bucket, races);
    let fit = steps(report, &mut probe).await?;
    tell_clock(report, &bucket)?;
    if fit {
        tell_marker(report, &bucket).await?;
        #[cfg(feature = "aws")]
        if url.kind() == StoreKind::S3 && text.starts_with("s3") {
            tell_settings(report, text).await?;
        }
        if !quick {
            latencies(report, &mut probe).await?;
        }
    }
    probe.clean_up().await;
    Ok(())
}

fn tell_source(
    report: &mut Report,
    url: &StoreUrl,
    source: Option<&CredentialSource>,
) -> Result<(), Failure> {
    let step = "find credentials";
    match source {
        None if url.kind() == StoreKind::Directory => Ok(()),
        None => report.step(Outcome::Warn, step, "none: requests are not signed (anonymous=true)"),
        Some(source) => {
            let outcome = if source.given && source.note.is_none() { Outcome::Ok } else { Outcome::Warn };
            let note = source.note.as_ref().map_or_else(String::new, |note| format!("\n{note}"));
            report.step(outcome, step, &format!("{}{note}", source.from))
        }
    }
}

/// Each step, until one fails on which the others build; only the race and the delete say something of their own then.
async fn steps(report: &mut Report, probe: &mut Probe) -> Result<bool, Failure> {
    let mut broken = false;
    let mut fit = true;
    let mut reads = false;
    for step in ProbeStep::ALL {
        if broken {
            report.step(Outcome::Skipped, step.name(), "")?;
            continue;
        }
        let begun = tokio::time::Instant::now();
        match probe.step(step).await {
            Ok(detail) => {
                reads = true;
                let took = format!("{} ms", begun.elapsed().as_millis());
                let detail = if detail.is_empty() { took } else { format!("{detail}, {took}") };
                report.step(Outcome::Ok, step.name(), &detail)?;
            }
            Err(error) => {
                fit = false;
                broken = !matches!(step, ProbeStep::Race);
                report.step(Outcome::Fail, step.name(), &explain(step, &error, reads))?;
            }
        }
    }
    Ok(fit)
}

fn explain(step: ProbeStep, error: &StoreError, reads: bool) -> String {
    let hint = match step {
        ProbeStep::Put
            if reads && matches!(error, StoreError::Refused { cause, .. } if *cause != Cause::Encryption) =>
        {
            "\nListing works and writing does not: these credentials, or the bucket, are read-only."
        }
        _ => "",
    };
    format!("{error}{hint}")
}

fn tell_clock(report: &mut Report, bucket: &Bucket) -> Result<(), Failure> {
    let Some(skew_ms) = bucket.clock_skew_ms() else { return Ok(()) };
    let seconds = (skew_ms as f64 / 1000.0).round().abs();
    let words = match skew_ms {
        skew if skew.abs() < 2_000 => "as the store's, to a second or two".to_owned(),
        skew if skew > 0 => format!("this machine is {seconds} s behind the store"),
        _ => format!("this machine is {seconds} s ahead of the store"),
    };
    if skew_ms.abs() < SKEW_WARN_MS {
        report.step(Outcome::Ok, "compare clocks", &words)
    } else {
        let remedy =
            "Set the clock right (chrony, systemd-timesyncd): stores refuse requests that are minutes off.";
        report.step(Outcome::Warn, "compare clocks", &format!("{words}\n{remedy}"))
    }
}

async fn tell_marker(report: &mut Report, bucket: &Bucket) -> Result<(), Failure> {
    let step = "see whose it is";
    match bucket.read_marker().await {
        Ok(None) => report.step(Outcome::Ok, step, "nobody's: a new cluster may use it"),
        Ok(Some(marker)) => report.step(
            Outcome::Ok,
            step,
            &format!("it belongs to cluster {}; another cluster needs another prefix", marker.cluster_id),
        ),
        Err(error) => report.step(Outcome::Fail, step, &error.to_string()),
    }
}

async fn latencies(report: &mut Report, probe: &mut Probe) -> Result<(), Failure> {
    for (bytes, count, name) in LATENCIES {
        let step = format!("time {count} writes, reads: {name}");
        match probe.latencies(count, bytes).await {
            Ok(Latencies { put, get }) => {
                let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1000.0);
                let words = format!(
                    "write p50 {} p99 {} ms, read p50 {} p99 {} ms",
                    ms(put.p50),
                    ms(put.p99),
                    ms(get.p50),
                    ms(get.p99)
                );
                report.step(Outcome::Ok, &step, &words)?;
            }
            Err(error) => report.step(Outcome::Fail, &step, &error.to_string())?,
        }
    }
    Ok(())
}
