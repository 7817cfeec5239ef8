//! Prepares the pages of the documentation while the crate is built: each page as text, with links that fit
//! where the binary shows it, and for the server as HTML; all of it compressed, as the binary holds it.
//!
//! A page needs no line here: every `.md` file of this folder is prepared, and the README.

use flate2::Compression;
use flate2::write::DeflateEncoder;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let folder = root.join("src/docs");
    println!("cargo::rerun-if-changed=src/docs");
    println!("cargo::rerun-if-changed=README.md");
    prepare(&root.join("README.md"), &out.join("readme"))?;
    #[cfg(feature = "server")]
    compress(
        &out.join("openapi.json"),
        &fs::read(folder.join("openapi.json"))?,
    )?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            let name = path.file_stem().unwrap_or_default();
            prepare(&path, &out.join(name))?;
        }
    }
    Ok(())
}

/// Writes `out.md`, and `out.html` where the server is built.
fn prepare(page: &Path, out: &Path) -> io::Result<()> {
    let text = fs::read_to_string(page)?;
    // The README lies elsewhere in the tree than the other pages; in the binary all lie side by side.
    let text = text.replace("](src/docs/", "](");
    let text = text.replace("](../../README.md", "](readme.md");
    let text = text.replace("](openapi.json)", "](../api/v1/openapi.json)");
    // The binary holds no pictures.
    let lines = text.lines().filter(|line| !line.starts_with("!["));
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    #[cfg(feature = "server")]
    compress(
        &out.with_extension("html"),
        html::rendered(&text).as_bytes(),
    )?;
    compress(&out.with_extension("md"), text.as_bytes())
}

fn compress(out: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut encoder = DeflateEncoder::new(fs::File::create(out)?, Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish().map(drop)
}

#[cfg(feature = "server")]
mod html {
    use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd};

    /// A page as HTML. Headings get the ids that GitHub gives them; links to other pages lose their `.md`.
    pub fn rendered(text: &str) -> String {
        let mut events: Vec<Event> = Parser::new_ext(text, Options::ENABLE_TABLES).collect();
        let mut heading = None;
        for at in 0..events.len() {
            match &mut events[at] {
                Event::Start(Tag::Heading { .. }) => heading = Some((at, String::new())),
                Event::End(TagEnd::Heading(_)) => {
                    if let Some((start, title)) = heading.take()
                        && let Event::Start(Tag::Heading { id, .. }) = &mut events[start]
                    {
                        *id = Some(slug(&title).into());
                    }
                }
                Event::Text(part) | Event::Code(part) => {
                    if let Some((_, title)) = &mut heading {
                        title.push_str(part);
                    }
                }
                Event::Start(Tag::Link { dest_url, .. }) => *dest_url = target(dest_url),
                _ => {}
            }
        }
        let mut html = String::new();
        pulldown_cmark::html::push_html(&mut html, events.into_iter());
        html
    }

    /// `api.md#errors` → `api#errors`.
    fn target<'a>(link: &str) -> CowStr<'a> {
        let (page, anchor) = link.split_at(link.find('#').unwrap_or(link.len()));
        let page = match page.strip_suffix(".md") {
            Some(name) if !page.contains('/') => name,
            _ => page,
        };
        format!("{page}{anchor}").into()
    }

    /// The id of a heading.
    fn slug(title: &str) -> String {
        let kept = title.to_lowercase();
        let kept = kept.chars().filter_map(|c| match c {
            ' ' => Some('-'),
            '-' | '_' => Some(c),
            c => c.is_alphanumeric().then_some(c),
        });
        kept.collect()
    }
}
