//! `isobar config`, and the configuration of `isobar dev` and `isobar serve`: file, environment and flags read and put together.

use std::io::Write;
use std::path::Path;

use isobar_node::config::{self, Config, Flag};

use crate::Failure;
use crate::cli::{Cli, Command, ConfigCommand, DevArgs};

/// What `isobar dev` with these flags runs with.
pub(crate) fn load(args: &DevArgs, cli: &Cli) -> Result<Config, Failure> {
    load_with(args.config.as_deref(), &flags(args, cli))
}

/// What `isobar serve` with this file runs with.
pub(crate) fn load_file(path: &Path, cli: &Cli) -> Result<Config, Failure> {
    load_with(Some(path), &flags(&DevArgs::default(), cli))
}

fn load_with(path: Option<&Path>, flags: &[Flag]) -> Result<Config, Failure> {
    #[expect(clippy::disallowed_methods, reason = "there is no node yet whose disk it could be")]
    let text = path
        .map(|path| std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display())));
    let text = text.transpose()?;
    let file = path.zip(text.as_deref());
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(Config::load(file, environment, flags)?)
}

fn flags(args: &DevArgs, cli: &Cli) -> Vec<Flag> {
    let bytes = |n: Option<u64>| n.map(|n| n.to_string());
    let given = [
        ("--log", cli.log.clone()),
        ("--log-format", cli.log_format.clone()),
        ("--data", args.data.clone()),
        ("--listen", args.listen.clone()),
        ("--advertise", args.advertise.clone()),
        ("--admin", args.admin.clone()),
        ("--store", args.store.clone()),
        ("--num-partitions", args.num_partitions.clone()),
        ("--auto-create-topics", args.auto_create_topics.clone()),
        ("--rack", args.rack.clone()),
        ("--upload-interval-ms", args.upload_interval_ms.map(|ms| format!("{ms}ms"))),
        ("--segment-bytes", bytes(args.segment_bytes)),
        ("--snapshot-after-bytes", bytes(args.snapshot_after_bytes)),
        ("--tail-bytes", bytes(args.tail_bytes)),
    ];
    let key_of = |flag| config::KEYS.iter().find(|key| key.flag == Some(flag)).map(|key| key.name);
    given.into_iter().filter_map(|(flag, value)| Some((flag, key_of(flag)?, value?))).collect()
}

/// How to log.
pub(crate) struct Logging {
    pub(crate) filter: String,
    pub(crate) json: bool,
}

impl Logging {
    /// As configured; for the other commands by flag, environment and default alone, and without complaints about
    /// variables that are none of their business.
    pub(crate) fn of(configured: Option<&Config>, cli: &Cli) -> Self {
        if let Some(config) = configured {
            let filter = config.text("log.filter").unwrap_or_default().to_owned();
            return Self { filter, json: config.text("log.format") == Some("json") };
        }
        let or_variable =
            |flag: &Option<String>, name: &str| flag.clone().or_else(|| std::env::var(name).ok());
        let default = Config::defaults();
        let mut filter = or_variable(&cli.log, "ISOBAR_LOG");
        // This command says itself what the log would say.
        if matches!(cli.command, Command::Store(_)) {
            filter.get_or_insert_with(|| "off".to_owned());
        }
        Self {
            filter: filter.unwrap_or_else(|| default.text("log.filter").unwrap_or_default().to_owned()),
            json: or_variable(&cli.log_format, "ISOBAR_LOG_FORMAT").as_deref() == Some("json"),
        }
    }
}

pub(crate) fn run(command: &ConfigCommand, cli: &Cli) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check { file } => {
            let config = load_with(Some(file), &[])?;
            let set = config.show().iter().filter(|key| key.source != config::Source::Default).count();
            print(&format!("{}: good; {set} of {} keys are set\n", file.display(), config::KEYS.len()))
        }
        ConfigCommand::Show { dev, json } => show(&load(dev, cli)?, *json),
        ConfigCommand::Example => print(&config::example()),
    }
}

fn show(config: &Config, json: bool) -> Result<(), Failure> {
    let shown = config.show();
    let width = |of: fn(&config::Shown) -> &str| shown.iter().map(|key| of(key).len()).max().unwrap_or(0);
    let (names, values) = (width(|key| &key.name), width(|key| &key.value));
    for key in &shown {
        let line = if json {
            let line =
                serde_json::json!({"key": key.name, "value": key.value, "source": key.source.to_string()});
            format!("{line}\n")
        } else {
            format!("{:names$}  {:values$}  {}\n", key.name, key.value, key.source)
        };
        print(&line)?;
    }
    Ok(())
}

fn print(text: &str) -> Result<(), Failure> {
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}
