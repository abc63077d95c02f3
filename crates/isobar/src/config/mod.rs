//! Configuration: one TOML file, the environment, flags. Flag before environment before file before default.
//!
//! Owns: the table of keys ([`keys::KEYS`]), which is the one place that knows a key's name, type, bounds, default and
//! meaning. Everything else is read off it: parsing, `isobar config check`, `isobar config show`, the example file
//! `deploy/dev.toml`, and a node's options.
//!
//! Invariants
//! 1. A key that the table does not have is an error, in the file and in the environment (`ISOBAR_<SECTION>_…`), with the
//!    nearest known one named. So is a value that does not fit, wherever it comes from; all are told at once.
//! 2. Every error names the key, where it was set (file and line, variable or flag), and what was expected.
//! 3. A secret's value is shown nowhere.
//!
//! May not know: how a command line is parsed, or how the environment is read: callers hand both in.

mod error;
mod file;
pub mod keys;
mod nearest;
mod show;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

pub use error::{ConfigError, ConfigErrors};
pub use keys::{KEYS, Key};
pub use show::{Shown, example};
pub use value::{Kind, Value, nodes};

use crate::node::{NodeOptions, Store};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The table.
    Default,
    /// A line of a file, counted from 1.
    File(PathBuf, usize),
    /// A variable of the environment.
    Env(String),
    /// A flag, with its dashes.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(path, line) => write!(f, "{}:{line}", path.display()),
            Source::Env(name) => f.write_str(name),
            Source::Flag(name) => f.write_str(name),
        }
    }
}

/// A flag that was given: its name with dashes, the key it sets, and the value as text.
pub type Flag = (&'static str, &'static str, String);

/// The effective configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// By the key's name; every key of the table.
    values: BTreeMap<&'static str, (Value, Source)>,
    /// `[store]`'s options for its kind of store, passed on as they are.
    store_options: BTreeMap<String, (String, Source)>,
}

impl Config {
    /// Puts it together. `text` is what `file` holds; `environment` all variables; `flags` those given.
    pub fn load(
        file: Option<(&Path, &str)>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[Flag],
    ) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        let mut config = Self::defaults();
        if let Some((path, text)) = file {
            config.read_file(path, text, &mut errors);
        }
        config.read_environment(environment, &mut errors);
        for (flag, name, text) in flags {
            config.set_text(name, text, Source::Flag(flag), &mut errors);
        }
        if let Some((name, (_, source))) = config.store_options.first_key_value()
            && config.text("store.url").is_none()
        {
            errors.push(ConfigError {
                key: format!("{}{name}", keys::STORE_OPTIONS),
                source: Some(source.clone()),
                problem: "the store within node.data has no options".to_owned(),
                expected: Some("store.url to be set too".to_owned()),
                hint: None,
            });
        }
        config.check_cluster(&mut errors);
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }

    /// What a cluster's node needs beside the list of nodes.
    fn check_cluster(&self, errors: &mut ConfigErrors) {
        let Some((Value::Text(voters), source)) = self.get("cluster.voters") else { return };
        let has_role = |role: &str| self.text("node.roles").is_some_and(|roles| roles.contains(role));
        if voters.is_empty() {
            if let Some((_, source)) =
                self.get("node.roles").filter(|_| !keys::ROLES.iter().all(|role| has_role(role)))
            {
                errors.push(ConfigError {
                    key: "node.roles".to_owned(),
                    source: Some(source.clone()),
                    problem: "a node that is alone has all roles".to_owned(),
                    expected: Some("cluster.voters to be set too".to_owned()),
                    hint: None,
                });
            }
            return;
        }
        let mut lacks = |problem: String, expected: &str| {
            errors.push(ConfigError {
                key: "cluster.voters".to_owned(),
                source: Some(source.clone()),
                problem,
                expected: Some(expected.to_owned()),
                hint: None,
            });
        };
        for name in ["cluster.id", "cluster.secret_file", "store.url"] {
            if self.text(name).is_none() {
                lacks(
                    "a cluster's node needs more".to_owned(),
                    &format!("{name} to be set too; isobar cluster init does that"),
                );
            }
        }
        let own = self.get("node.id").map_or(0, |(value, _)| value.int());
        let is_first = value::nodes(voters)
            .is_some_and(|nodes| nodes.iter().any(|(id, _)| i64::try_from(*id) == Ok(own)));
        if !is_first && self.text("listeners.cluster").is_none() {
            lacks(
                format!("node.id {own} is not among them"),
                "listeners.cluster to be set too, where the others reach this node",
            );
        }
        if is_first && !has_role("metadata") {
            lacks(format!("node.id {own} is among them"), "metadata among node.roles");
        }
    }

    /// What holds when nothing is said.
    pub fn defaults() -> Self {
        let values = KEYS.iter().map(|key| (key.name, (key.default_value(), Source::Default)));
        Self { values: values.collect(), store_options: BTreeMap::new() }
    }

    /// A key's value. The name must be one of the table's.
    pub fn get(&self, name: &str) -> Option<(&Value, &Source)> {
        self.values.get(name).map(|(value, source)| (value, source))
    }

    /// A text key's value, if it is set to something.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some((Value::Text(text), _)) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// `[store.options]`, for the kind of store that its URL names: they become part of the URL's query.
    pub fn store_options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.store_options.iter().map(|(name, (value, _))| (name.as_str(), value.as_str()))
    }

    /// A node's options, as configured.
    pub fn node_options(&self) -> NodeOptions {
        let mut options = NodeOptions::new("");
        for key in KEYS {
            if let Some((value, _)) = self.values.get(key.name) {
                (key.apply)(&mut options, value);
            }
        }
        if let Store::Url(url) = &mut options.store {
            for (name, value) in self.store_options() {
                let joint = if url.contains('?') { '&' } else { '?' };
                url.push_str(&format!(
                    "{joint}{}={}",
                    value::percent_encoded(name),
                    value::percent_encoded(value)
                ));
            }
        }
        options
    }

    fn read_file(&mut self, path: &Path, text: &str, errors: &mut ConfigErrors) {
        let settings = match file::settings(path, text) {
            Ok(settings) => settings,
            Err(error) => return errors.push(error),
        };
        for setting in settings {
            let source = Source::File(path.to_owned(), setting.line);
            match keys::find(&setting.name) {
                Some(key) => match key.kind.of_toml(&setting.value) {
                    Ok(value) => drop(self.values.insert(key.name, (value, source))),
                    Err(problem) => errors.push(ConfigError::value(key, source, problem)),
                },
                None => self.unknown(&setting, source, errors),
            }
        }
    }

    /// A name that the table does not have: a store's own option, or an error.
    fn unknown(&mut self, setting: &file::Setting, source: Source, errors: &mut ConfigErrors) {
        if let Some(option) = setting.name.strip_prefix(keys::STORE_OPTIONS) {
            match setting.value.as_text() {
                Some(text) => drop(self.store_options.insert(option.to_owned(), (text, source))),
                None => errors.push(ConfigError {
                    key: setting.name.clone(),
                    source: Some(source),
                    problem: format!("{} is no option", setting.value),
                    expected: Some("a string, a number, or true or false".to_owned()),
                    hint: None,
                }),
            }
            return;
        }
        errors.push(ConfigError::unknown_key(&setting.name, source));
    }

    fn read_environment(
        &mut self,
        environment: impl IntoIterator<Item = (String, String)>,
        errors: &mut ConfigErrors,
    ) {
        let mut variables: Vec<_> =
            environment.into_iter().filter(|(name, _)| name.starts_with("ISOBAR_")).collect();
        variables.sort();
        for (name, text) in variables {
            if let Some(key) = KEYS.iter().find(|key| key.env() == name) {
                self.set_text(key.name, &text, Source::Env(name), errors);
            } else if let Some(option) = name.strip_prefix(keys::STORE_OPTIONS_ENV) {
                self.store_options.insert(option.to_ascii_lowercase(), (text, Source::Env(name)));
            } else if keys::env_of_a_section(&name) {
                errors.push(ConfigError::unknown_variable(&name));
            }
        }
    }

    fn set_text(&mut self, name: &str, text: &str, source: Source, errors: &mut ConfigErrors) {
        let Some(key) = keys::find(name) else { return errors.push(ConfigError::unknown_key(name, source)) };
        match key.kind.of_text(text) {
            Ok(value) => drop(self.values.insert(key.name, (value, source))),
            Err(problem) => errors.push(ConfigError::value(key, source, problem)),
        }
    }
}

#[cfg(test)]
mod tests;
