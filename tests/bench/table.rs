//! Rows, and the table in Markdown.

use std::fmt::{self, Display};

/// One line of the table.
pub struct Row {
    what: String,
    measured: String,
    reference: String,
    target: String,
    met: Option<bool>,
}

impl Row {
    /// A figure that stands for itself.
    pub fn new(what: impl Into<String>, measured: impl Into<String>) -> Row {
        Row {
            what: what.into(),
            measured: measured.into(),
            reference: String::new(),
            target: String::new(),
            met: None,
        }
    }

    /// Something that could not be measured, and why.
    pub fn not_measured(what: &str, why: &str) -> Row {
        Row::new(what, format!("not measured: {why}"))
    }

    /// What it is compared with.
    pub fn beside(mut self, reference: impl Into<String>) -> Row {
        self.reference = reference.into();
        self
    }

    /// The measured must be so many times the reference.
    pub fn ratio_at_least(mut self, ratio: f64, least: f64) -> Row {
        self.target = format!("{ratio:.2} (≥ {least})");
        self.met = Some(ratio >= least);
        self
    }

    /// The measured must be so many times the reference at most.
    pub fn ratio_at_most(mut self, ratio: f64, most: f64) -> Row {
        self.target = format!("{ratio:.2} (≤ {most})");
        self.met = Some(ratio <= most);
        self
    }

    /// A target of the figure itself; the words say it with its unit.
    pub fn target(mut self, words: impl Into<String>, is_met: bool) -> Row {
        self.target = words.into();
        self.met = Some(is_met && self.met != Some(false));
        self
    }
}

/// The table.
#[derive(Default)]
pub struct Table {
    /// Its lines.
    pub rows: Vec<Row>,
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| what | measured | reference | ratio or target | met |\n| --- | --- | --- | --- | --- |"
        )?;
        for row in &self.rows {
            let met = row.met.map_or("", |met| if met { "yes" } else { "**no**" });
            let cells = [&row.what, &row.measured, &row.reference, &row.target];
            for cell in cells {
                write!(f, "| {} ", cell.replace('|', "\\|"))?;
            }
            writeln!(f, "| {met} |")?;
        }
        Ok(())
    }
}

/// The middle of some figures; of none at all NaN, which meets no target.
pub fn median(figures: &[f64]) -> f64 {
    quantile(figures, 0.5)
}

/// The figure below which so large a part of them is.
pub fn quantile(figures: &[f64], part: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// A number a second, as people read it.
pub fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate >= 10_000.0 => format!("{:.1}k/s", rate / 1e3),
        rate => format!("{rate:.0}/s"),
    }
}

/// KiB of /proc as the megabytes of the targets.
pub fn megabytes(kib: u64) -> f64 {
    kib as f64 * 1_024.0 / 1e6
}

/// The same, as people read it.
pub fn mb(kib: u64) -> String {
    format!("{:.1} MB", megabytes(kib))
}

/// A time in seconds, as people read it.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.01 => format!("{:.0} ms", s * 1e3),
        s if s >= 0.000_1 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} µs", s * 1e6),
    }
}
