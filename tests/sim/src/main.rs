//! `isobar-sim`: runs seeds, replays one.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line")]
#![allow(clippy::disallowed_methods, reason = "runs on the real machine, outside the simulation")]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use isobar_sim::plan::SABOTAGES;
use isobar_sim::plan::cluster::CLUSTER_SABOTAGES;
use isobar_sim::totals::Totals;
use isobar_sim::{Outcome, Plan, run};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Seeds whose results are written together.
const BLOCK_SEEDS: u64 = 100;

/// The whole node in simulation, one seed after another.
#[derive(Parser)]
#[command(name = "isobar-sim")]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Runs seeds and says what they have shown; fails if one fails, or if nothing was shown.
    Run(Run),
    /// Runs one seed and says what is wrong with it.
    Replay(Replay),
    /// Runs one seed twice and fails if the two differ.
    Twice {
        seed: u64,
        #[command(flatten)]
        what: What,
    },
}

/// What a seed is a seed of.
#[derive(Args, Clone, Copy)]
struct What {
    /// Three nodes and the network between them, instead of one node.
    #[arg(long)]
    cluster: bool,
    /// Breaks a promise of the nodes; then a run must fail, and ends at the first seed that does.
    #[arg(long, value_parser = sabotage)]
    sabotage: Option<&'static str>,
}

impl What {
    fn plan(&self, seed: u64) -> Plan {
        let plan = if self.cluster { Plan::of_cluster(seed) } else { Plan::of(seed) };
        match self.sabotage {
            Some(promise) => plan.sabotaged(promise),
            None => plan,
        }
    }

    /// The options that make it.
    fn options(&self) -> String {
        let sabotage = self.sabotage.map(|promise| format!(" --sabotage {promise}")).unwrap_or_default();
        format!("{}{sabotage}", if self.cluster { " --cluster" } else { "" })
    }
}

#[derive(Args)]
struct Run {
    /// FIRST..LAST, both included.
    #[arg(long, value_parser = range)]
    seeds: (u64, u64),
    /// Seeds at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// A file of JSON lines to which the totals of each hundred seeds are added as soon as they have run, with the commit that
    /// is checked out and the sum of this binary. Hundreds that it has already from this binary, without a failure, are not
    /// run again. Also: fail unless every crash point was hit.
    #[arg(long)]
    results: Option<PathBuf>,
    #[command(flatten)]
    what: What,
    /// Stops after this many failed seeds.
    #[arg(long, default_value_t = 10)]
    most_failures: usize,
}

#[derive(Args)]
struct Replay {
    seed: u64,
    /// Writes every step of every machine here.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Writes what the clients saw here, for history-check.
    #[arg(long)]
    history: Option<PathBuf>,
    /// Prints the node's log; RUST_LOG chooses what.
    #[arg(long)]
    log: bool,
    #[command(flatten)]
    what: What,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let bad = || format!("not FIRST..LAST: {text}");
    let (first, last) = text.split_once("..").ok_or_else(bad)?;
    let (first, last) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
    if first <= last { Ok((first, last)) } else { Err(bad()) }
}

fn sabotage(text: &str) -> Result<&'static str, String> {
    let known = || SABOTAGES.iter().chain(CLUSTER_SABOTAGES).copied();
    let found = known().find(|name| *name == text);
    found.ok_or_else(|| format!("one of: {}", known().collect::<Vec<_>>().join(", ")))
}

fn main() -> ExitCode {
    let good = match Cli::parse().command {
        Action::Run(args) => run_seeds(&args),
        Action::Replay(args) => replay(&args),
        Action::Twice { seed, what } => twice(&what.plan(seed)),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn guarded(plan: &Plan) -> Result<Outcome, String> {
    catch_unwind(AssertUnwindSafe(|| run(plan, false))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

struct Shared<'a> {
    args: &'a Run,
    seeds: Vec<u64>,
    next: AtomicUsize,
    totals: Mutex<Totals>,
}

fn run_seeds(args: &Run) -> bool {
    let began = Instant::now();
    let record = args.results.as_deref().map(|path| Record::open(path, args.what.cluster));
    let mut totals = Totals::default();
    for block in blocks(args.seeds) {
        if let Some(known) = record.as_ref().and_then(|record| record.known(block)) {
            totals.merge(&known);
            continue;
        }
        let shared = Shared {
            args,
            seeds: (block.0..=block.1).collect(),
            next: AtomicUsize::new(0),
            totals: Mutex::default(),
        };
        std::thread::scope(|scope| {
            for _ in 0..args.jobs.max(1) {
                scope.spawn(|| work(&shared));
            }
        });
        let of_block = shared.totals.into_inner();
        if let Some(record) = &record {
            record.add(block, &of_block);
        }
        totals.merge(&of_block);
        println!("{} seeds, {} failed", totals.seeds, totals.failed_seeds.len());
        let most = if args.what.sabotage.is_some() { 1 } else { args.most_failures };
        if totals.failed_seeds.len() >= most {
            break;
        }
    }
    println!("{totals}");
    println!("{:.0} s", began.elapsed().as_secs_f64());
    let missing = totals.missing(args.what.cluster, args.results.is_some());
    if args.what.sabotage.is_none() {
        for what in &missing {
            println!("MISSING nothing of this happened: {what}");
        }
    }
    let failed = totals.failed_seeds.len() as u64;
    println!("{} passed, {failed} failed", totals.seeds - failed);
    failed == 0 && missing.is_empty()
}

/// Hundreds, as far as the range goes.
fn blocks((first, last): (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    let mut next = first;
    std::iter::from_fn(move || {
        let block = (next <= last).then(|| (next, last.min(next.saturating_add(BLOCK_SEEDS - 1))))?;
        next = block.1 + 1;
        Some(block)
    })
}

/// What was run before, and where this run's results go.
struct Record {
    path: PathBuf,
    cluster: bool,
    commit: String,
    dirty: bool,
    binary: String,
    lines: Vec<Line>,
}

/// One line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    /// What was checked out when it ran, and whether the tree had changes; which code ran, `binary` says.
    commit: String,
    dirty: bool,
    /// CRC-32C and length.
    #[serde(default)]
    binary: String,
    /// Of three nodes. (`cluster` is what followed there, of the totals.)
    #[serde(rename = "is_cluster", default, skip_serializing_if = "std::ops::Not::not")]
    cluster: bool,
    first: u64,
    last: u64,
    #[serde(flatten)]
    totals: Totals,
}

/// Has the work tree what its commit has not? What earlier hundreds have added to the results does not count.
fn is_dirty(results: &Path) -> bool {
    let others = format!(":(exclude,top){}", results.display());
    !output("git", &["status", "--porcelain", "--untracked-files=no", "--", ":/", &others]).is_empty()
}

impl Record {
    fn open(path: &Path, cluster: bool) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        Self {
            path: path.to_owned(),
            cluster,
            commit: output("git", &["rev-parse", "HEAD"]),
            dirty: is_dirty(path),
            binary: this_binary(),
            // Lines of older formats tell of other commits.
            lines: text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect(),
        }
    }

    fn known(&self, (first, last): (u64, u64)) -> Option<Totals> {
        let same = |line: &&Line| {
            (line.cluster, &line.binary) == (self.cluster, &self.binary)
                && line.totals.seeds == last - first + 1
                && (line.first, line.last) == (first, last)
        };
        let known = self.lines.iter().filter(same).find(|line| line.totals.failed_seeds.is_empty());
        known.map(|line| line.totals.clone())
    }

    fn add(&self, (first, last): (u64, u64), totals: &Totals) {
        let (commit, dirty, binary) = (self.commit.clone(), self.dirty, self.binary.clone());
        let cluster = self.cluster;
        let line = Line { commit, dirty, binary, cluster, first, last, totals: totals.clone() };
        let text = serde_json::to_string(&line).unwrap_or_default();
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        told(&self.path, file.and_then(|mut file| writeln!(file, "{text}")));
    }
}

/// Says on standard error when a file could not be written; the verdict stands without it.
fn told(path: &Path, written: std::io::Result<()>) {
    if let Err(error) = written {
        eprintln!("{}: {error}", path.display());
    }
}

/// The same seeds on the same code do the same.
fn this_binary() -> String {
    let bytes = std::env::current_exe().and_then(std::fs::read).unwrap_or_default();
    format!("{:08x}-{}", crc32c::crc32c(&bytes), bytes.len())
}

fn output(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output();
    done.map(|done| String::from_utf8_lossy(&done.stdout).trim().to_owned()).unwrap_or_default()
}

fn work(shared: &Shared<'_>) {
    loop {
        let Some(seed) = shared.seeds.get(shared.next.fetch_add(1, Ordering::Relaxed)) else { return };
        let most = if shared.args.what.sabotage.is_some() { 1 } else { shared.args.most_failures };
        if shared.totals.lock().failed_seeds.len() >= most {
            return;
        }
        let outcome = guarded(&shared.args.what.plan(*seed));
        let mut totals = shared.totals.lock();
        let complaints = match &outcome {
            Ok(outcome) => {
                totals.add(outcome);
                outcome.complaints()
            }
            Err(panic) => {
                totals.add_panic(*seed);
                vec![format!("PROBLEM the simulation itself panicked: {panic}")]
            }
        };
        if !complaints.is_empty() {
            let options = shared.args.what.options();
            println!("FAIL seed {seed}; again: isobar-sim replay{options} {seed}");
            complaints.iter().for_each(|line| println!("  {line}"));
        }
    }
}

fn replay(args: &Replay) -> bool {
    if args.log {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
    let plan = args.what.plan(args.seed);
    println!("{plan:#?}");
    let began = Instant::now();
    let outcome = run(&plan, args.trace.is_some());
    let mut totals = Totals::default();
    totals.add(&outcome);
    println!("{totals}\n{:.2} s, trace {:x?}", began.elapsed().as_secs_f64(), outcome.trace);
    if let Some(path) = &args.trace {
        told(path, std::fs::write(path, outcome.trace_lines.join("\n")));
    }
    if let Some(path) = &args.history {
        let lines: Vec<String> = outcome.events.iter().map(|event| event.to_line() + "\n").collect();
        told(path, std::fs::write(path, lines.concat()));
    }
    outcome.complaints().iter().for_each(|line| println!("{line}"));
    outcome.is_clean()
}

fn twice(plan: &Plan) -> bool {
    let (one, two) = (run(plan, true), run(plan, true));
    let same = one.trace == two.trace && one.events == two.events;
    if let Some((at, (a, b))) =
        one.trace_lines.iter().zip(&two.trace_lines).enumerate().find(|(_, (a, b))| a != b)
    {
        println!("step {at} differs:\n  {a}\n  {b}\nafter:");
        one.trace_lines[at.saturating_sub(30)..at].iter().for_each(|line| println!("  {line}"));
    }
    println!("seed {}: {}", plan.seed, if same { "the same twice" } else { "differs" });
    same
}
