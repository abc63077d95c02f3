//! The `isobar` command.

mod admin_client;
mod cli;
mod cluster;
mod configuration;
mod demo;
mod dump;
mod fsck;
mod group;
mod log_lines;
mod output;
mod records;
mod recover_command;
mod serve;
mod store_check;
mod topic;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use cli::{Cli, Command};
use configuration::Logging;
use isobar_node::config::Config;

/// What a command failed with, said to a person.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    match run(Cli::parse()) {
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
    let configured = match &cli.command {
        Command::Dev(args) => Some(configuration::load(args, &cli)?),
        Command::Serve(args) => Some(configuration::load_file(&args.config, &cli)?),
        _ => None,
    };
    start_logging(&Logging::of(configured.as_ref(), &cli))?;
    if let Command::Config(command) = &cli.command {
        return configuration::run(command, &cli);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match cli.command {
            Command::Dev(_) => serve::dev(&configured.unwrap_or_else(Config::defaults)).await,
            Command::Serve(_) => serve::serve(&configured.unwrap_or_else(Config::defaults)).await,
            Command::Cluster(command) => cluster::run(command).await,
            Command::Demo(args) => demo::run(args).await,
            Command::Topic(command) => topic::run(command).await,
            Command::Produce(args) => records::produce(args).await,
            Command::Consume(args) => records::consume(args).await,
            Command::Group(command) => group::run(command).await,
            Command::Recover(args) => recover_command::run(args).await,
            Command::Config(_) => Ok(()),
            Command::Store(command) => store_check::run(command).await,
            Command::Dump(args) => dump::run(&args),
            Command::Fsck(args) => fsck::run(args).await,
        }
    })
}

fn start_logging(logging: &Logging) -> Result<(), Failure> {
    let filter = &logging.filter;
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log filter {filter:?}: {error}"))?;
    log_lines::subscriber(filter, logging.json, std::io::stderr).try_init()?;
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
