//! `/docs/`: the pages of the documentation, as HTML for a browser and as text for everyone else; and the
//! OpenAPI description. They need no token: they say nothing about this server.
//!
//! The pages themselves are in [`crate::docs`].

use super::call::{Call, Handled};
use super::page::headers;
use crate::docs::{self, OPENAPI, PAGES, Page};
use crate::server::answers;
use crate::server::http::Answer;
use std::borrow::Cow;
use std::fmt::Write;
use std::sync::LazyLock;

const STYLE: &str = include_str!("../../docs/style.css");

/// The policy of the dashboard, with this style sheet and without scripts.
static HEADERS: LazyLock<String> = LazyLock::new(|| {
    let headers = headers("'none'", &super::page::hash(STYLE));
    format!("{headers}Vary: Accept\r\n")
});

/// `GET /docs`: the list of pages.
pub fn index(call: Call<'_>) -> Handled {
    if !wants_html(&call) {
        let mut text = String::from("Pages, each at /docs/NAME:\n\n");
        for page in PAGES {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{:13} {}", page.name, page.title);
        }
        return Ok(Some(answered("text/plain; charset=utf-8", text)));
    }
    let mut main = String::from("<h1>Documentation</h1>\n<ul>\n");
    for Page { name, title, .. } in PAGES {
        // Fits `/docs` as well as `/docs/`.
        let _ = writeln!(
            main,
            "<li><a href=\"../docs/{name}\">{name}</a>: {title}</li>"
        );
    }
    main.push_str("<li><a href=\"../api/v1/openapi.json\">openapi.json</a>: the API for programs, OpenAPI 3.1</li>\n</ul>\n");
    let html = html("Documentation", "../docs/", &main);
    Ok(Some(answered("text/html; charset=utf-8", html)))
}

/// `GET /docs/NAME`, and `/docs/NAME.md`, which is always text: what the links in the text point to.
pub fn page(call: Call<'_>) -> Handled {
    let name = call.request.path.last().map_or("", String::as_str);
    let (name, as_text) = match name.strip_suffix(".md") {
        Some(name) => (name, true),
        None => (name, !wants_html(&call)),
    };
    let Some(page) = docs::find(name) else {
        let names: Vec<&str> = PAGES.iter().map(|page| page.name).collect();
        let msg = format!(
            "there is no page of this name; the pages are {}",
            names.join(", ")
        );
        return Err(answers::error(404, &msg));
    };
    let text = "text/plain; charset=utf-8";
    match as_text {
        true => Ok(Some(answered(text, page.markdown.text()))),
        false => {
            let html = html(page.name, "./", &page.html.text());
            Ok(Some(answered("text/html; charset=utf-8", html)))
        }
    }
}

/// `GET /api/v1/openapi.json`.
pub fn openapi(_: Call<'_>) -> Handled {
    Ok(Some(answered("application/json", OPENAPI.text())))
}

/// Whether a browser asks. curl takes anything and names no type.
fn wants_html(call: &Call<'_>) -> bool {
    let accept = call.request.headers.accept.as_deref();
    accept.is_some_and(|types| types.contains("text/html"))
}

/// A page with what stands around it; `index` is the way to the list of pages.
fn html(title: &str, index: &str, main: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} · sidebike</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <nav><a href=\"{index}../\">sidebike</a> <a href=\"{index}\">Documentation</a></nav>\n\
         <main>\n{main}</main>\n</body>\n</html>\n"
    )
}

fn answered(content_type: &'static str, text: impl Into<Cow<'static, str>>) -> Answer {
    let body: Cow<'static, [u8]> = match text.into() {
        Cow::Borrowed(text) => text.as_bytes().into(),
        Cow::Owned(text) => text.into_bytes().into(),
    };
    Answer {
        headers: Cow::Borrowed(&HEADERS),
        ..Answer::new(200, content_type, body)
    }
}
