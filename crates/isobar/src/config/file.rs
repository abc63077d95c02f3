//! Reads a TOML file into settings with their lines.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::value::Given;
use super::{ConfigError, Source};

/// One key of a file.
#[derive(Debug)]
pub(super) struct Setting {
    /// Sections and key, joined by dots.
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) value: Given,
}

/// Every key of the file. Tables are walked down: `num.partitions = 3` below `[kafka]` and `"num.partitions" = 3` are one.
#[expect(clippy::result_large_err, reason = "read once, at the start")]
pub(super) fn settings(path: &Path, text: &str) -> Result<Vec<Setting>, ConfigError> {
    let table = DeTable::parse(text).map_err(|error| ConfigError {
        key: String::new(),
        source: Some(Source::File(path.to_owned(), line_of(text, error.span().map_or(0, |span| span.start)))),
        problem: format!("not TOML: {}", error.message()),
        expected: None,
        hint: None,
    })?;
    let mut settings = Vec::new();
    walk(table.get_ref(), "", text, &mut settings);
    settings.sort_by_key(|setting| setting.line);
    Ok(settings)
}

fn walk(table: &DeTable<'_>, prefix: &str, text: &str, settings: &mut Vec<Setting>) {
    for (key, value) in table.iter() {
        let name = format!("{prefix}{}", key.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) if !inner.is_empty() => walk(inner, &format!("{name}."), text, settings),
            DeValue::Table(_) if prefix.is_empty() && super::keys::sections().any(|known| known == name) => {}
            value => {
                settings.push(Setting {
                    name,
                    line: line_of(text, key.span().start),
                    value: Given::of(value),
                });
            }
        }
    }
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}
