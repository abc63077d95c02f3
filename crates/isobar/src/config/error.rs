//! What is wrong with a configuration, said so that it can be put right.

use std::fmt;

use super::keys::{self, KEYS, Key};
use super::{Source, nearest};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The key's name, as written.
    pub key: String,
    /// Where it was set; `None` for what is about a file as a whole.
    pub source: Option<Source>,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub expected: Option<String>,
    /// What may have been meant.
    pub hint: Option<String>,
}

impl ConfigError {
    pub(super) fn value(key: &Key, source: Source, problem: String) -> Self {
        let expected = Some(key.kind.expected(key.default));
        Self { key: key.name.to_owned(), source: Some(source), problem, expected, hint: None }
    }

    pub(super) fn unknown_key(name: &str, source: Source) -> Self {
        let (problem, hint) = explain_unknown(name);
        Self { key: name.to_owned(), source: Some(source), problem, expected: None, hint }
    }

    pub(super) fn unknown_variable(variable: &str) -> Self {
        let nearest = nearest::nearest(variable, KEYS.iter().map(Key::env));
        Self {
            key: variable.to_owned(),
            source: Some(Source::Env(variable.to_owned())),
            problem: "no key has this variable".to_owned(),
            expected: None,
            hint: nearest.map(|name| format!("did you mean {name}?")),
        }
    }
}

/// Why a name is not in the table, and what may have been meant.
fn explain_unknown(name: &str) -> (String, Option<String>) {
    let (section, rest) = name.split_once('.').unwrap_or((name, ""));
    if !keys::sections().any(|known| known == section) {
        let near = nearest::nearest(section, keys::sections().map(str::to_owned));
        let all: Vec<_> = keys::sections().map(|section| format!("[{section}]")).collect();
        let hint = near.map(|near| format!("did you mean [{near}]?"));
        return (format!("no section [{section}]; there are {}", all.join(", ")), hint);
    }
    if section == keys::KAFKA
        && let Some(why) = keys::kafka_elsewhere(rest)
    {
        return ("not set here".to_owned(), Some(why));
    }
    let elsewhere = KEYS.iter().find(|key| !rest.is_empty() && key.name.ends_with(&format!(".{rest}")));
    let hint = elsewhere
        .map(|key| key.name.to_owned())
        .or_else(|| nearest::nearest(name, KEYS.iter().map(|key| key.name.to_owned())))
        .map(|name| format!("did you mean {name}?"));
    ("unknown key".to_owned(), hint)
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.source {
            write!(f, "{source}: ")?;
        }
        if !self.key.is_empty() && self.source != Some(Source::Env(self.key.clone())) {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)?;
        if let Some(expected) = &self.expected {
            write!(f, "; expected {expected}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong; one line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    pub(super) fn push(&mut self, error: ConfigError) {
        self.0.push(error);
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the order in which they were found: file, environment, flags.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = &self.0[..] {
            return write!(f, "configuration: {only}");
        }
        write!(f, "configuration: {} errors", self.0.len())?;
        for error in &self.0 {
            write!(f, "\n  {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
