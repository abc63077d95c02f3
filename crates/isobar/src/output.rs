//! How commands answer: aligned columns for people, one JSON object a line for programs.

use std::io::{BufWriter, Write};

use isobar_client::{Client, ClientConfig};
use isobar_host::Host;
use serde_json::Value;

use crate::Failure;
use crate::cli::Remote;

/// Connects to the broker that the command line names.
pub(crate) async fn connect(host: &Host, remote: &Remote) -> Result<Client, Failure> {
    let mut config = ClientConfig::new(&remote.bootstrap);
    "isobar-cli".clone_into(&mut config.client_id);
    Client::connect(host, config).await.map_err(|error| {
        format!("{error}\n  is a broker running there? `isobar dev` starts one; --bootstrap names another")
            .into()
    })
}

/// Gathers rows; columns are as wide as their widest entry.
pub(crate) struct Output {
    json: bool,
    lines: Vec<Line>,
}

enum Line {
    Heading(String),
    Columns(Vec<String>),
    Row(Vec<String>),
    Json(Value),
}

impl Output {
    pub(crate) fn new(remote: &Remote) -> Self {
        Self::of(remote.json)
    }

    pub(crate) fn of(json: bool) -> Self {
        Self { json, lines: Vec::new() }
    }

    /// A line above a table; not in JSON.
    pub(crate) fn heading(&mut self, text: &str) {
        self.lines.push(Line::Heading(text.to_owned()));
    }

    /// Begins a table.
    pub(crate) fn columns(&mut self, names: &[&str]) {
        self.lines.push(Line::Columns(names.iter().map(|name| (*name).to_owned()).collect()));
    }

    /// One row, in both forms.
    pub(crate) fn row(&mut self, row: &[String], json: Value) {
        self.lines.push(if self.json { Line::Json(json) } else { Line::Row(row.to_vec()) });
    }

    /// The answer of a command that did one thing.
    pub(crate) fn done(mut self, text: &str, json: Value) -> Result<(), Failure> {
        self.lines.push(if self.json { Line::Json(json) } else { Line::Heading(text.to_owned()) });
        self.end()
    }

    /// Prints everything.
    pub(crate) fn end(self) -> Result<(), Failure> {
        let mut out = BufWriter::new(std::io::stdout().lock());
        let mut widths: Vec<usize> = Vec::new();
        for (index, line) in self.lines.iter().enumerate() {
            match line {
                Line::Json(value) => writeln!(out, "{value}")?,
                Line::Heading(_) | Line::Columns(_) if self.json => {}
                Line::Heading(text) => writeln!(out, "{text}")?,
                Line::Columns(names) => {
                    widths = self.widths(names, index + 1);
                    write_row(&mut out, names, &widths)?;
                }
                Line::Row(row) => write_row(&mut out, row, &widths)?,
            }
        }
        Ok(out.flush()?)
    }

    fn widths(&self, names: &[String], first_row: usize) -> Vec<usize> {
        let mut widths: Vec<usize> = names.iter().map(|name| name.chars().count()).collect();
        for line in &self.lines[first_row..] {
            let Line::Row(row) = line else { break };
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }
}

fn write_row(out: &mut impl Write, cells: &[String], widths: &[usize]) -> std::io::Result<()> {
    let last = cells.len().saturating_sub(1);
    for (index, cell) in cells.iter().enumerate() {
        let width = if index == last { 0 } else { widths.get(index).copied().unwrap_or(0) };
        write!(out, "{cell:width$}{}", if index == last { "\n" } else { "  " })?;
    }
    Ok(())
}
