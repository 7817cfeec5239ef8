//! The dashboard: one self-contained page, for those who have a browser and no binary.
//!
//! Its author sees several files in `page/`, the browser sees one: they are put together when the server is
//! compiled. It uses the same API as everyone else, so there is nothing here but the list of files and the
//! headers that say how little the page may do. To add a view, see `page/shared/view.js`.
//!
//! The page has one `<style>` and one `<script>`, which the policy names by their hashes; what comes from the
//! network goes into the page as text, which the policy enforces as well.

use super::call::{Call, Handled};
use crate::server::http::Answer;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::sync::LazyLock;

/// The scripts share the scope of one function: their names do not become the window's, and a script can use
/// what another one declares. Constants and classes must be declared above the code that runs at once.
const PAGE: &str = concat!(
    "<!doctype html>\n<html lang=\"en\">\n<head>\n",
    include_str!("page/head.html"),
    "<style>\n",
    include_str!("page/style.css"),
    "</style>\n</head>\n<body>\n",
    include_str!("page/header.html"),
    "<main class=\"wrap\">\n",
    include_str!("page/status.html"),
    include_str!("page/note.html"),
    include_str!("page/views/home.html"),
    include_str!("page/views/machines.html"),
    include_str!("page/views/machine.html"),
    include_str!("page/views/overview.html"),
    include_str!("page/views/files.html"),
    include_str!("page/views/schedules.html"),
    include_str!("page/views/schedule.html"),
    include_str!("page/views/task.html"),
    include_str!("page/views/group.html"),
    include_str!("page/views/submit.html"),
    include_str!("page/views/gone.html"),
    "</main>\n",
    include_str!("page/dialogs.html"),
    "<script>\n'use strict';\n(() => {\n",
    "const SERVER_VERSION = '",
    env!("CARGO_PKG_VERSION"),
    "';\n",
    include_str!("page/shared/text.js"),
    include_str!("page/shared/time.js"),
    include_str!("page/shared/dom.js"),
    include_str!("page/shared/terminal.js"),
    include_str!("page/shared/view.js"),
    include_str!("page/shared/api.js"),
    include_str!("page/shared/widgets.js"),
    include_str!("page/shared/status.js"),
    include_str!("page/shared/tasks.js"),
    include_str!("page/shared/machines.js"),
    include_str!("page/shared/crew.js"),
    include_str!("page/shared/files.js"),
    include_str!("page/views/home.js"),
    include_str!("page/views/machines.js"),
    include_str!("page/views/machine.js"),
    include_str!("page/views/schedules.js"),
    include_str!("page/views/schedule.js"),
    include_str!("page/views/task.js"),
    include_str!("page/views/task_rollout.js"),
    include_str!("page/views/task_undo.js"),
    include_str!("page/views/task_related.js"),
    include_str!("page/views/task_files.js"),
    include_str!("page/views/task_results.js"),
    include_str!("page/views/task_output.js"),
    include_str!("page/views/group.js"),
    include_str!("page/views/overview.js"),
    include_str!("page/views/files.js"),
    include_str!("page/views/submit.js"),
    include_str!("page/views/submit_files.js"),
    include_str!("page/views/submit_rest.js"),
    include_str!("page/views/submit_workflow.js"),
    include_str!("page/views/submit_targets.js"),
    include_str!("page/views/submit_undo.js"),
    include_str!("page/views/submit_schedule.js"),
    include_str!("page/views/submit_preview.js"),
    include_str!("page/keyboard.js"),
    include_str!("page/router.js"),
    "})();\n</script>\n</body>\n</html>\n",
);

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
        headers: Cow::Borrowed(&HEADERS),
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
