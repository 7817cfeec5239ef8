//! `/sidebike`: the program itself, for a container that has nothing but curl or wget.

use super::call::{Call, Handled};
use super::transfer::{self, Content};
use crate::server::answers;
use crate::server::http::Answer;
use crate::server::images::{Image, NoImage};
use std::sync::atomic::Ordering;

/// The header that says the version of this server, which is that of what it hands out.
const VERSION: &str = concat!("Sidebike-Version: ", env!("CARGO_PKG_VERSION"), "\r\n");

/// `GET /sidebike`.
pub fn binary(call: Call<'_>) -> Handled {
    let image = wanted(&call)?;
    let counters = &call.server.transfers;
    counters.handed_out.fetch_add(1, Ordering::Relaxed);
    send(call, image)
}

/// Sends an image.
pub fn send(call: Call<'_>, image: Image) -> Handled {
    let counters = &call.server.transfers;
    let content = Content {
        base: 0,
        bytes: image.bytes,
        sha256: image.sha256,
        name: "sidebike".into(),
        sent: counters.bytes_sent.clone(),
        kept: Box::new(()),
        file: image.file,
    };
    transfer::answer(call, content)
}

/// `GET /sidebike.sha256`: as `sha256sum -c` reads it.
pub fn hash(call: Call<'_>) -> Handled {
    let image = wanted(&call)?;
    let line = format!("{}  sidebike\n", image.sha256).into_bytes();
    Ok(Some(Answer {
        headers: VERSION.into(),
        ..Answer::new(200, "text/plain; charset=utf-8", line)
    }))
}

fn wanted(call: &Call<'_>) -> Result<Image, Answer> {
    let found = call.server.images.find(call.request.query("arch"));
    found.map_err(|why| match why {
        NoImage::Bad(msg) => answers::bad(msg),
        NoImage::Unknown(msg) => answers::error(404, &msg),
        NoImage::Broken(msg) => answers::error(503, &msg),
    })
}
