//! Values: durations and sizes with units, addresses, numbers.

use std::fmt;
use std::time::Duration;

use toml::de::DeValue;

/// A checked value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text; empty where a key allows "not set".
    Text(String),
    /// A whole number.
    Int(i64),
    /// True or false.
    Bool(bool),
    /// A number of bytes.
    Bytes(u64),
    /// A time span.
    Duration(Duration),
}

impl Value {
    /// The text, or nothing for other kinds.
    pub fn text(&self) -> &str {
        if let Value::Text(text) = self { text } else { "" }
    }

    /// The number; of bytes and time spans too (in ms).
    pub fn int(&self) -> i64 {
        match self {
            Value::Int(n) => *n,
            Value::Bytes(n) => i64::try_from(*n).unwrap_or(i64::MAX),
            Value::Duration(span) => i64::try_from(span.as_millis()).unwrap_or(i64::MAX),
            Value::Bool(yes) => i64::from(*yes),
            Value::Text(_) => 0,
        }
    }

    /// As a size or count in memory.
    pub fn size(&self) -> usize {
        usize::try_from(self.int()).unwrap_or(0)
    }

    /// The number of bytes, or `None` for "auto".
    pub fn bytes(&self) -> Option<u64> {
        if let Value::Bytes(n) = self { Some(*n) } else { None }
    }

    /// Whether it is true.
    pub fn is_true(&self) -> bool {
        *self == Value::Bool(true)
    }

    /// The time span; none for other kinds.
    pub fn duration(&self) -> Duration {
        if let Value::Duration(span) = self { *span } else { Duration::ZERO }
    }
}

/// As TOML writes it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => write!(f, "{text:?}"),
            Value::Int(n) => write!(f, "{n}"),
            Value::Bool(yes) => write!(f, "{yes}"),
            Value::Bytes(bytes) => write!(f, "\"{}\"", with_unit(*bytes, &SIZES[..5])),
            Value::Duration(span) => {
                let us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
                write!(f, "\"{}\"", with_unit(us, SPANS))
            }
        }
    }
}

/// Largest first, so that the first that divides is the shortest way to say it.
const SIZES: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("KB", 1000),
];

/// In microseconds.
const SPANS: &[(&str, u64)] = &[
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1000),
    ("us", 1),
];

fn with_unit(n: u64, units: &[(&str, u64)]) -> String {
    let unit = units.iter().find(|(_, size)| n != 0 && n.is_multiple_of(*size));
    match unit.or_else(|| units.last()) {
        Some((name, size)) => format!("{}{name}", n / size),
        None => n.to_string(),
    }
}

/// `12`, `1.5` or `12 unit` by the units; `bare` is the unit of a number without one.
fn parse_unit(text: &str, units: &[(&str, u64)], bare: Option<u64>) -> Option<u64> {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = (text[..at].replace('_', ""), text[at..].trim());
    let size = match unit {
        "" => bare?,
        unit => units.iter().find(|(name, _)| *name == unit)?.1,
    };
    match number.split_once('.') {
        None => number.parse::<u64>().ok()?.checked_mul(size),
        Some(_) => {
            let product = number.parse::<f64>().ok()? * size as f64;
            (product.fract() == 0.0 && product < 9e15).then_some(product as u64)
        }
    }
}

/// Leaves a size to the node.
const AUTO: &str = "auto";

/// What a key takes.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Any text; `empty` says what none of it means.
    Text {
        /// For the explanation.
        empty: &'static str,
    },
    /// `host:port`, or one of these words.
    Address(&'static [&'static str]),
    /// Nodes as `id@host:port`, with commas between; or none.
    Nodes,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// One or more of these words, with commas between.
    SomeOf(&'static [&'static str]),
    /// A whole number within these bounds.
    Int(i64, i64),
    /// true or false.
    Bool,
    /// Bytes within these bounds: a number, or text with a unit.
    Bytes(u64, u64),
    /// The same, or "auto".
    AutoBytes(u64, u64),
    /// A time span within these bounds, in ms: text with a unit.
    Duration(u64, u64),
    /// A time span as Kafka's configs have it: a whole number of ms, or text with a unit.
    Millis(i64, i64),
}

impl Kind {
    /// Reads text: from the environment or a flag.
    pub(super) fn of_text(&self, text: &str) -> Result<Value, String> {
        let trimmed = text.trim();
        let value = match self {
            Kind::Text { .. } => Some(Value::Text(trimmed.to_owned())),
            Kind::Address(words) => {
                (words.contains(&trimmed) || is_address(trimmed)).then(|| Value::Text(trimmed.to_owned()))
            }
            Kind::Nodes => nodes(trimmed).map(|_| Value::Text(trimmed.to_owned())),
            Kind::OneOf(words) => words.contains(&trimmed).then(|| Value::Text(trimmed.to_owned())),
            Kind::SomeOf(words) => trimmed
                .split(',')
                .all(|word| words.contains(&word.trim()))
                .then(|| Value::Text(trimmed.to_owned())),
            Kind::Int(..) => trimmed.replace('_', "").parse().ok().map(Value::Int),
            Kind::Bool => trimmed.to_ascii_lowercase().parse().ok().map(Value::Bool),
            Kind::AutoBytes(..) if trimmed == AUTO => Some(Value::Text(AUTO.to_owned())),
            Kind::Bytes(..) | Kind::AutoBytes(..) => parse_unit(trimmed, SIZES, Some(1)).map(Value::Bytes),
            Kind::Duration(..) => {
                parse_unit(trimmed, SPANS, None).map(|us| Value::Duration(Duration::from_micros(us)))
            }
            Kind::Millis(..) => trimmed
                .parse()
                .ok()
                .or_else(|| {
                    let us = parse_unit(trimmed, SPANS, Some(1000))?;
                    i64::try_from(us / 1000).ok().filter(|_| us.is_multiple_of(1000))
                })
                .map(Value::Int),
        };
        let value = value.ok_or_else(|| format!("{text:?} does not fit"))?;
        if self.holds(&value) { Ok(value) } else { Err(format!("{text:?} is out of bounds")) }
    }

    /// Reads a TOML value.
    pub(super) fn of_toml(&self, given: &Given) -> Result<Value, String> {
        let value = match (self, given) {
            (_, Given::Text(text)) if !matches!(self, Kind::Int(..) | Kind::Bool) => {
                return self.of_text(text);
            }
            (Kind::Int(..) | Kind::Millis(..), Given::Int(n)) => Some(Value::Int(*n)),
            (Kind::Bytes(..) | Kind::AutoBytes(..), Given::Int(n)) => {
                u64::try_from(*n).ok().map(Value::Bytes)
            }
            (Kind::Bool, Given::Bool(yes)) => Some(Value::Bool(*yes)),
            _ => None,
        };
        let value = value.ok_or_else(|| format!("{given} does not fit"))?;
        if self.holds(&value) { Ok(value) } else { Err(format!("{given} is out of bounds")) }
    }

    fn holds(&self, value: &Value) -> bool {
        match (self, value) {
            (Kind::Int(least, most) | Kind::Millis(least, most), Value::Int(n)) => {
                (least..=most).contains(&n)
            }
            (Kind::Bytes(least, most) | Kind::AutoBytes(least, most), Value::Bytes(n)) => {
                (least..=most).contains(&n)
            }
            (Kind::Duration(least, most), Value::Duration(span)) => {
                *span >= Duration::from_millis(*least) && *span <= Duration::from_millis(*most)
            }
            _ => true,
        }
    }

    /// What would be right, in words; `default` as an example.
    pub(super) fn expected(&self, default: &str) -> String {
        let within = |least: String, most: String, open: bool| {
            if open { format!("at least {least}") } else { format!("from {least} to {most}") }
        };
        let size = |n: u64| with_unit(n, &SIZES[..5]);
        let span = |ms: u64| with_unit(ms.saturating_mul(1000), SPANS);
        match self {
            Kind::Text { empty } => format!("text, or nothing for {empty}"),
            Kind::Address([]) => "an address, host:port".to_owned(),
            Kind::Address(words) => format!("an address, host:port, or {}", quoted(words)),
            Kind::Nodes => "nodes as \"1@host:port,2@host:port,3@host:port\", or nothing".to_owned(),
            Kind::OneOf(words) => quoted(words),
            Kind::SomeOf(words) => format!("one or more of {}, with commas between", quoted(words)),
            Kind::Int(least, most) => {
                format!("a whole number {}", within(least.to_string(), most.to_string(), *most == i64::MAX))
            }
            Kind::Bool => "true or false".to_owned(),
            Kind::Bytes(least, most) => format!(
                "a number of bytes {}, such as {default} or \"64MiB\"",
                within(size(*least), size(*most), *most == u64::MAX)
            ),
            Kind::AutoBytes(least, most) => {
                format!(
                    "\"{AUTO}\" or a number of bytes from {} to {}, such as \"64MiB\"",
                    size(*least),
                    size(*most)
                )
            }
            Kind::Duration(least, most) => format!(
                "a time span {}, such as {default} (units: us, ms, s, m, h, d)",
                within(span(*least), span(*most), *most == u64::MAX)
            ),
            Kind::Millis(least, most) => format!(
                "a number of milliseconds {}, such as {default}, or a time span with a unit",
                within(least.to_string(), most.to_string(), *most == i64::MAX)
            ),
        }
    }
}

/// For a URL's query.
pub(super) fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" or ")
}

fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_fits = (host.starts_with('[') && host.ends_with(']'))
        || (!host.is_empty() && !host.contains([':', '/', ' ']));
    host_fits && port.parse::<u16>().is_ok()
}

/// Node ids and addresses; `None` if it is no list of them, or has one twice.
pub fn nodes(text: &str) -> Option<Vec<(u64, String)>> {
    let node = |item: &str| {
        let (id, address) = item.trim().split_once('@')?;
        let id = id.parse::<u32>().ok().filter(|id| i32::try_from(*id).is_ok())?;
        is_address(address).then(|| (u64::from(id), address.to_owned()))
    };
    let nodes: Vec<_> =
        text.split(',').filter(|item| !item.trim().is_empty()).map(node).collect::<Option<_>>()?;
    let distinct =
        |i: usize| nodes[..i].iter().all(|(id, address)| *id != nodes[i].0 && *address != nodes[i].1);
    (0..nodes.len()).all(distinct).then_some(nodes)
}

/// A value as the file has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Given {
    Text(String),
    Int(i64),
    Bool(bool),
    /// Something that no key takes, in words.
    Other(&'static str),
}

impl Given {
    pub(super) fn of(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Given::Text(text.to_string()),
            DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
                Ok(n) => Given::Int(n),
                Err(_) => Given::Other("a number of more than 64 bits"),
            },
            DeValue::Boolean(yes) => Given::Bool(*yes),
            DeValue::Float(_) => Given::Other("a fraction"),
            DeValue::Datetime(_) => Given::Other("a date"),
            DeValue::Array(_) => Given::Other("a list"),
            DeValue::Table(_) => Given::Other("a table"),
        }
    }

    /// Any scalar as text.
    pub(super) fn as_text(&self) -> Option<String> {
        match self {
            Given::Text(text) => Some(text.clone()),
            Given::Int(n) => Some(n.to_string()),
            Given::Bool(yes) => Some(yes.to_string()),
            Given::Other(_) => None,
        }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Given::Text(text) => write!(f, "{text:?}"),
            Given::Int(n) => write!(f, "{n}"),
            Given::Bool(yes) => write!(f, "{yes}"),
            Given::Other(what) => f.write_str(what),
        }
    }
}
