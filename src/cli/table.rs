//! Tables that fit into the width of the terminal.

use super::terminal::{self, Colour, OutputStyle, display_width, sanitize, truncate};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

/// Blanks between two columns.
const GAP: usize = 2;
/// The smallest width of a column; a narrower one would be unreadable.
const MIN_COLUMN_WIDTH: usize = 6;

/// A table.
pub struct Table {
    headers: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// A cell.
pub struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    /// A cell with a text from any source.
    pub fn of(text: impl AsRef<str>) -> Cell {
        Cell {
            text: sanitize(text.as_ref()),
            colour: None,
        }
    }

    /// The same, in a colour.
    pub fn painted(text: impl AsRef<str>, colour: Option<Colour>) -> Cell {
        Cell {
            colour,
            ..Cell::of(text)
        }
    }
}

impl Table {
    /// An empty table with these column headers.
    pub fn new(headers: &[&'static str]) -> Table {
        Table {
            headers: headers.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, with a cell for each column.
    pub fn add(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// Writes the table, at most as wide as the terminal `seen` that it is shown on.
    pub fn print(&self, out: &mut dyn Write, seen: &(impl IsTerminal + AsFd)) -> io::Result<()> {
        let style = OutputStyle::of(seen);
        let widths = self.widths(terminal::width(seen));
        let headers: Vec<Cell> = self.headers.iter().map(Cell::of).collect();
        for row in [&headers].into_iter().chain(&self.rows) {
            let mut line = String::new();
            let mut padding = 0;
            for (cell, width) in row.iter().zip(&widths) {
                let text = truncate(&cell.text, *width);
                line.push_str(&" ".repeat(padding));
                padding = (width + GAP).saturating_sub(display_width(&text));
                match cell.colour {
                    Some(colour) => line.push_str(&style.paint(colour, &text)),
                    None => line.push_str(&text),
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    /// The width of each column: that of its widest cell. If that is too wide the widest columns are narrpadding.
    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let widest = |n: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(n));
            let widest = cells
                .map(|cell| display_width(&cell.text))
                .max()
                .unwrap_or(0);
            widest.max(display_width(self.headers[n]))
        };
        let mut widths: Vec<usize> = (0..self.headers.len()).map(widest).collect();
        let gaps = GAP * widths.len().saturating_sub(1);
        let limit = limit.unwrap_or(usize::MAX);
        while widths.iter().sum::<usize>() + gaps > limit {
            match widths.iter_mut().max() {
                Some(width) if *width > MIN_COLUMN_WIDTH => *width -= 1,
                _ => break,
            }
        }
        widths
    }
}
