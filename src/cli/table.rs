//! Tables that fit the terminal.

use super::terminal::{self, Colour, OutputStyle, display_width, sanitize, truncate};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

/// Columns of blanks between two columns.
const GAP: usize = 2;
/// Narrower than this a column says nothing any more, in columns.
const MIN_COLUMN_WIDTH: usize = 6;

/// A table in the making.
pub struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// One field.
pub struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    /// A text from anywhere.
    pub fn of(text: impl AsRef<str>) -> Cell {
        Cell {
            text: sanitize(text.as_ref()),
            colour: None,
        }
    }

    /// The same in a colour.
    pub fn painted(text: impl AsRef<str>, colour: Option<Colour>) -> Cell {
        Cell {
            colour,
            ..Cell::of(text)
        }
    }
}

impl Table {
    /// A table with these columns and nothing in it.
    pub fn new(heads: &[&'static str]) -> Table {
        Table {
            heads: heads.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, with a cell for each column.
    pub fn add(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// Writes it, as wide at most as the terminal where it will be seen.
    pub fn print(&self, out: &mut dyn Write, seen: &(impl IsTerminal + AsFd)) -> io::Result<()> {
        let style = OutputStyle::of(seen);
        let widths = self.widths(terminal::width(seen));
        let heads: Vec<Cell> = self.heads.iter().map(Cell::of).collect();
        for row in [&heads].into_iter().chain(&self.rows) {
            let mut line = String::new();
            let mut owed = 0;
            for (cell, width) in row.iter().zip(&widths) {
                let text = truncate(&cell.text, *width);
                line.push_str(&" ".repeat(owed));
                owed = (width + GAP).saturating_sub(display_width(&text));
                match cell.colour {
                    Some(colour) => line.push_str(&style.paint(colour, &text)),
                    None => line.push_str(&text),
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    /// How wide each column is: as wide as its widest cell, then what is widest gives way.
    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let widest = |n: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(n));
            let widest = cells
                .map(|cell| display_width(&cell.text))
                .max()
                .unwrap_or(0);
            widest.max(display_width(self.heads[n]))
        };
        let mut widths: Vec<usize> = (0..self.heads.len()).map(widest).collect();
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
