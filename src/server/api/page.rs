//! The dashboard: one self-contained page, for those who have a browser and no binary.
//!
//! `page.html` is written by hand and sent as it is; it uses the same API as everyone else, so
//! there is nothing here but the headers that say how little it may do. To add to the page: edit
//! `page.html`. It has one `<style>` and one `<script>`, which the policy names by their hashes;
//! what comes from the network goes into the page as text, which the policy enforces as well.

use super::call::{Call, Handled};
use crate::server::http::Answer;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

const PAGE: &str = include_str!("page.html");

/// Nothing may be loaded, run or framed but what is in the page and the API of its own server.
static HEADERS: LazyLock<String> = LazyLock::new(|| headers(&hash_of("script"), &hash_of("style")));

/// The headers of a page that may run this script and use this style sheet, as the policy names them.
pub fn headers(script: &str, style: &str) -> String {
    format!(
        "Content-Security-Policy: default-src 'none'; script-src {script}; style-src {style}; \
         img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'\r\n\
         Referrer-Policy: no-referrer\r\n\
         Cache-Control: no-cache\r\n"
    )
}

/// `GET /`.
pub fn page(_: Call<'_>) -> Handled {
    Ok(Some(Answer {
        headers: &HEADERS,
        ..Answer::new(200, "text/html; charset=utf-8", PAGE.as_bytes())
    }))
}

/// What the policy calls the page's only element of that name.
fn hash_of(element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let after = PAGE.split_once(&open).map_or("", |(_, after)| after);
    let content = after.split_once(&close).map_or("", |(content, _)| content);
    hash(content)
}

/// What the policy calls an element with this content.
pub fn hash(content: &str) -> String {
    let hash = STANDARD.encode(Sha256::digest(content.as_bytes()));
    format!("'sha256-{hash}'")
}
