//! `history-check [--dense] [--json] [--require NAME[=N],…] FILE…`: the verdict on a history in JSON lines.
//!
//! Exit code 0: clean; 1: anomalies; 2: clean, but a required number is too small; 3: no history, or no such option.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command of the test harness")]

use std::process::ExitCode;

use isobar_testkit::history::{Options, Requirement, check_files};

const USAGE: &str = "usage: history-check [--dense] [--json] [--require NAME[=N],...] FILE...
  NAME: acks, reads, faults, crash-points, restarts, commits, ends";

struct Args {
    options: Options,
    json: bool,
    required: Vec<(Requirement, u64)>,
    files: Vec<String>,
}

fn parse(args: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut parsed =
        Args { options: Options::default(), json: false, required: Vec::new(), files: Vec::new() };
    let mut args = args;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--dense" => parsed.options.dense = true,
            "--json" => parsed.json = true,
            "--require" => {
                let list = args.next().ok_or("--require needs a list")?;
                for item in list.split(',') {
                    let (name, least) = item.split_once('=').unwrap_or((item, "1"));
                    let requirement =
                        Requirement::parse(name).ok_or_else(|| format!("no requirement '{name}'"))?;
                    let least = least.parse().map_err(|_| format!("'{least}' is no number"))?;
                    parsed.required.push((requirement, least));
                }
            }
            other if other.starts_with('-') => return Err(format!("no option '{other}'")),
            _ => parsed.files.push(arg),
        }
    }
    if parsed.files.is_empty() { Err("no file".to_owned()) } else { Ok(parsed) }
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(what) => {
            eprintln!("history-check: {what}\n{USAGE}");
            return ExitCode::from(3);
        }
    };
    let report = match check_files(&args.files, args.options) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("history-check: {error}");
            return ExitCode::from(3);
        }
    };
    if args.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("history-check: {error}"),
        }
    } else {
        println!("{report}");
    }
    let missing = report.missing(&args.required);
    for what in &missing {
        eprintln!("MISSING {what}");
    }
    match (report.is_clean(), missing.is_empty()) {
        (false, _) => ExitCode::from(1),
        (true, false) => ExitCode::from(2),
        (true, true) => ExitCode::SUCCESS,
    }
}
