//! The effective configuration for people, and the example file.

use super::keys::{self, KEYS};
use super::{Config, Source};

/// One line of `isobar config show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The key.
    pub name: String,
    /// Its value as TOML writes it; a secret is masked.
    pub value: String,
    /// Where it comes from.
    pub source: Source,
}

const MASK: &str = "\"********\"";

impl Config {
    /// Every key in the order of the table, and the store's options behind it.
    pub fn show(&self) -> Vec<Shown> {
        let known = KEYS.iter().filter_map(|key| {
            let (value, source) = self.get(key.name)?;
            let masked = key.secret && !value.text().is_empty();
            let value = if masked { MASK.to_owned() } else { masked_url(&value.to_string()) };
            Some(Shown { name: key.name.to_owned(), value, source: source.clone() })
        });
        // What they mean is not known here, so a secret is known by its name, rather once too often.
        let options = self.store_options.iter().map(|(name, (value, source))| Shown {
            name: format!("{}{name}", keys::STORE_OPTIONS),
            value: if is_secret(name) { MASK.to_owned() } else { format!("{value:?}") },
            source: source.clone(),
        });
        known.chain(options).collect()
    }
}

/// The same without what a URL's query gives away.
fn masked_url(value: &str) -> String {
    let Some((url, query)) = value.split_once('?').filter(|(url, _)| url.contains("://")) else {
        return value.to_owned();
    };
    let pairs: Vec<_> = query
        .trim_end_matches('"')
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, _)) if is_secret(name) => format!("{name}=********"),
            _ => pair.to_owned(),
        })
        .collect();
    format!("{url}?{}\"", pairs.join("&"))
}

fn is_secret(option: &str) -> bool {
    let option = option.to_ascii_lowercase();
    ["secret", "key", "token", "password", "credential", "sas"].iter().any(|word| option.contains(word))
}

/// A file that says what holds anyway: every key, commented out, with its default and its meaning.
pub fn example() -> String {
    let mut out = String::from(
        "# Every key of `isobar dev --config FILE`, with its default. A key is set by, in this order: its flag, its variable\n\
         # in the environment, this file. `isobar config check FILE` explains what is wrong with a file; `isobar config\n\
         # show --config FILE` prints what holds and where it comes from.\n\
         # Written by `isobar config example`.\n",
    );
    let mut section = "";
    for key in KEYS {
        let (of, rest) = key.name.split_once('.').unwrap_or(("", key.name));
        if of != section {
            section = of;
            out.push_str(&format!("\n[{section}]\n"));
        }
        let quoted = if rest.contains('.') { format!("{rest:?}") } else { rest.to_owned() };
        let flag = key.flag.map(|flag| format!(", {flag}")).unwrap_or_default();
        out.push_str(&format!("# {} ({}{flag})\n# {quoted} = {}\n", key.doc, key.env(), key.default));
    }
    out
}
