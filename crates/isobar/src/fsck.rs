//! `isobar fsck`: a running node's store held against its metadata.

use std::io::{IsTerminal, Write};

use isobar_host::Host;
use serde_json::{Value, json};

use crate::Failure;
use crate::admin_client::call;
use crate::cli::FsckArgs;

pub(crate) async fn run(args: FsckArgs) -> Result<(), Failure> {
    let host = Host::real();
    let asked = json!({ "deep": args.deep, "repair": args.repair });
    let mut lines = call(&host, &args.remote, "/v1/fsck", Some(asked)).await?;
    let mut out = std::io::stdout().lock();
    let shows_progress = !args.remote.json && std::io::stderr().is_terminal();
    let mut clean = None;
    while let Some(line) = lines.next().await? {
        if let Some(why) = line["error"].as_str() {
            return Err(format!("the check ended early: {why}").into());
        }
        if args.remote.json {
            if line.get("progress").is_none() {
                writeln!(out, "{line}")?;
            }
        } else if let Some(step) = line["progress"].as_str() {
            if shows_progress {
                let mut terminal = std::io::stderr().lock();
                write!(terminal, "\r\x1b[K{step} {} of {}\r", line["done"], line["total"])?;
                terminal.flush()?;
            }
        } else {
            if shows_progress {
                write!(std::io::stderr().lock(), "\r\x1b[K")?;
            }
            writeln!(out, "{}", text(&line))?;
        }
        if line["done"].as_bool() == Some(true) {
            clean = line["clean"].as_bool();
        }
    }
    match clean {
        Some(true) => Ok(()),
        Some(false) => Err("the store is not clean".into()),
        None => Err("the check ended early".into()),
    }
}

/// A line for a person.
fn text(line: &Value) -> String {
    if line.get("done").is_some() {
        return summary(line);
    }
    let word = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let mut text = format!("{:<13} {}  {}", word("finding").to_uppercase(), word("key"), word("what"));
    if line["repaired"].as_bool() == Some(true) {
        text.push_str("; deleted");
    }
    let extents = line["extents"].as_array().map(Vec::as_slice).unwrap_or_default();
    for extent in extents {
        text.push_str(&format!(
            "\n    topic {} partition {}: offsets {} to {}",
            extent["topic_id"].as_str().unwrap_or_default(),
            extent["partition"],
            extent["first"],
            extent["last"]
        ));
    }
    let more = line["extent_count"].as_u64().unwrap_or(0).saturating_sub(extents.len() as u64);
    if more > 0 {
        text.push_str(&format!("\n    and {more} more"));
    }
    text
}

fn summary(line: &Value) -> String {
    let number = |name: &str| line[name].as_u64().unwrap_or(0);
    let mut text = format!(
        "{} objects with {} in the store; metadata refers to {} with {} live",
        number("listed"),
        bytes(number("listed_bytes")),
        number("referenced"),
        bytes(number("live_bytes")),
    );
    if number("read") > 0 {
        text.push_str(&format!("; {} read whole", number("read")));
    }
    if number("prepared") + number("awaiting_delete") > 0 {
        text.push_str(&format!(
            "\n{} being written, {} waiting to be deleted: both are as they should be",
            number("prepared"),
            number("awaiting_delete")
        ));
    }
    let found: Vec<String> = line["found"]
        .as_object()
        .map(|found| found.iter().map(|(kind, count)| format!("{count} {kind}")).collect())
        .unwrap_or_default();
    if found.is_empty() {
        text.push_str("\nclean");
    } else {
        text.push_str(&format!("\nfound: {}; deleted {}", found.join(", "), number("repaired")));
    }
    text
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
