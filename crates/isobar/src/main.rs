//! The `isobar` command.

mod cli;
mod demo;
mod dev;
mod dump;
mod group;
mod output;
mod records;
mod store_check;
mod topic;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command, LogFormat};

/// What a command failed with, said to a person.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = start_logging(&cli) {
        complain(&*error);
        return ExitCode::FAILURE;
    }
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&*error);
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match cli.command {
            Command::Dev(args) => dev::run(args).await,
            Command::Demo(args) => demo::run(args).await,
            Command::Topic(command) => topic::run(command).await,
            Command::Produce(args) => records::produce(args).await,
            Command::Consume(args) => records::consume(args).await,
            Command::Group(command) => group::run(command).await,
            Command::Store(command) => store_check::run(command).await,
            Command::Dump(args) => dump::run(&args),
        }
    })
}

fn start_logging(cli: &Cli) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&cli.log).map_err(|error| format!("--log {:?}: {error}", cli.log))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match cli.log_format {
        LogFormat::Text => lines.with_target(true).try_init()?,
        LogFormat::Json => lines.json().flatten_event(true).try_init()?,
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a command says on its terminal why it failed")]
fn complain(error: &(dyn std::error::Error + 'static)) {
    eprintln!("isobar: {error}");
    let mut cause = error.source();
    while let Some(deeper) = cause {
        let text = deeper.to_string();
        if !error.to_string().contains(&text) {
            eprintln!("  because: {text}");
        }
        cause = deeper.source();
    }
}
