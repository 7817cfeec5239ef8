//! The documentation, as the binary shows it: `sidebike docs` and the server's `/docs/`.
//!
//! To add a page: write `NAME.md` in this folder, add its line to [`PAGES`], and link it from the README.
//! Its examples are run by `tests/docs.rs`, which says what the marks of its blocks mean; `build.rs` in this
//! folder renders and compresses it. A call of the API is described in `api.md` and, for programs, in `openapi.json`.

use flate2::read::DeflateDecoder;
use std::io::Read;

/// One page.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Its name, as in `sidebike docs NAME` and `/docs/NAME`.
    pub name: &'static str,
    /// What it answers, in a few words.
    pub title: &'static str,
    /// The page as Markdown. Links to other pages are `NAME.md`.
    pub markdown: Compressed,
    /// The page as HTML, without what stands around it. Links to other pages are `NAME`.
    #[cfg(feature = "server")]
    pub html: Compressed,
}

/// A text that the build has compressed: a tenth of the binary would be documentation otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Compressed(&'static [u8]);

impl Compressed {
    /// The text. Expanded at each call, which takes less than a millisecond.
    pub fn text(self) -> String {
        let mut text = String::new();
        // Written by the build from a text: it cannot be broken. A reader of it would see where it ends.
        let _ = DeflateDecoder::new(self.0).read_to_string(&mut text);
        text
    }
}

macro_rules! compressed {
    ($name:expr) => {
        Compressed(include_bytes!(concat!(env!("OUT_DIR"), "/", $name)))
    };
}

macro_rules! page {
    ($name:literal, $title:literal) => {
        Page {
            name: $name,
            title: $title,
            markdown: compressed!(concat!($name, ".md")),
            #[cfg(feature = "server")]
            html: compressed!(concat!($name, ".html")),
        }
    };
}

/// Every page, in the order in which they are listed.
pub const PAGES: &[Page] = &[
    page!(
        "readme",
        "What sidebike is, the first steps, the map of the code"
    ),
    page!("cli", "The commands for people, their exit codes"),
    page!("api", "The HTTP API: calls, fields, states, errors"),
    page!(
        "operations",
        "Settings, limits, the database, services, failures"
    ),
    page!(
        "servers",
        "Several servers over PostgreSQL: who leads, what is kept"
    ),
    page!(
        "security",
        "Tokens, TLS, browsers, audit, rules of a machine's owner"
    ),
    page!("targets", "Who is meant, how many at once, when to stop"),
    page!(
        "notifications",
        "Who is told when a task starts, ends, fails or is stopped"
    ),
    page!(
        "workflow",
        "Later, in which order, several at once: what a task waits for"
    ),
    page!("crew", "Suspend machines, drain agents, how things stand"),
    page!(
        "schedules",
        "Tasks again and again: calendars, zones, what is missed"
    ),
    page!("commands", "Time-outs, cancel, what is left running"),
    page!("experiments", "Faults that are taken back, whatever dies"),
    page!("files", "Files onto machines and back, the program itself"),
    page!("coming-from", "Coming from rq, celery or cron"),
    page!("migrating", "Coming from the original sidebike"),
    page!("performance", "What was measured, and how"),
    page!("dependencies", "Which libraries are used, and why"),
];

/// The API as an OpenAPI 3.1 description.
#[cfg(feature = "server")]
pub const OPENAPI: Compressed = compressed!("openapi.json");

/// The page of that name.
pub fn find(name: &str) -> Option<&'static Page> {
    PAGES.iter().find(|page| page.name == name)
}
