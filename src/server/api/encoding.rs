//! Bodies that are not JSON in UTF-8, as tools and editors make them: what is harmless is taken, the rest is named.

/// The byte order mark of UTF-8. Windows editors write it; it means nothing.
const MARK: &[u8] = b"\xEF\xBB\xBF";
/// The first bytes of what is compressed, and by what.
const COMPRESSED: [(&[u8], &str); 3] = [
    (b"\x1F\x8B", "gzip"),
    (b"\x28\xB5\x2F\xFD", "zstd"),
    (b"\x78\x9C", "zlib"),
];
/// What is expected in place of a form.
const HOW: &str = "expected the JSON itself, such as by curl --data-binary @task.json";
/// The longest name of a form's field, in bytes.
const MAX_FIELD_BYTES: usize = 100;

/// A body without its byte order mark.
pub fn without_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix(MARK).unwrap_or(body)
}

/// What a body is instead of JSON in UTF-8, and what to send, if that can be told.
pub fn refusal(body: &[u8]) -> Option<String> {
    // An object: what is wrong in it is said with the field's name. UTF-16 has a NUL beside its first character.
    if body.first() == Some(&b'{') && body.get(1) != Some(&0) {
        return None;
    }
    let is_utf16 = matches!(
        body,
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] | [b'{' | b'[', 0, ..] | [0, b'{' | b'[', ..]
    );
    if is_utf16 {
        return Some("is UTF-16; send it as UTF-8".into());
    }
    let compressed = COMPRESSED.iter().find(|(begin, _)| body.starts_with(begin));
    if let Some((_, how)) = compressed {
        return Some(format!("is compressed ({how}); send it as it is"));
    }
    let Ok(text) = std::str::from_utf8(body) else {
        return Some("is not UTF-8; send it as UTF-8".into());
    };
    if text.starts_with("--") && text.to_ascii_lowercase().contains("content-disposition:") {
        return Some(format!("is a multipart form; {HOW}"));
    }
    is_form(text).then(|| format!("is a form; {HOW}"))
}

/// Whether it begins as `name=`, or with an encoded brace.
fn is_form(text: &str) -> bool {
    let name = text.split('=').next().unwrap_or_default();
    let is_name = |name: &str| {
        !name.is_empty()
            && name.len() <= MAX_FIELD_BYTES
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-[]%+".contains(&b))
    };
    let is_encoded = text
        .get(..3)
        .is_some_and(|first| first.eq_ignore_ascii_case("%7b"));
    is_encoded || (name.len() < text.len() && is_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_left_alone() {
        for body in [
            "",
            "{",
            "{}",
            "[1]",
            "null",
            "7",
            " {\"a\":\"b=c\"}",
            "\"a=b\"",
            "{\"ü\":1}",
        ] {
            assert_eq!(refusal(body.as_bytes()), None, "{body}");
        }
        assert_eq!(without_mark(b"\xEF\xBB\xBF{}"), b"{}");
    }

    #[test]
    fn what_is_none_is_named() {
        for (body, word) in [
            (&b"\xFF\xFE{\0"[..], "UTF-16"),
            (b"\0{\0}", "UTF-16"),
            (b"{\0}\0", "UTF-16"),
            (b"\x1F\x8B\x08", "gzip"),
            (b"a=1&b=2", "form"),
            (b"%7B%22a%22%3A1%7D", "form"),
            (b"--x\r\nContent-Disposition: form-data", "multipart"),
            (b"\xFC", "UTF-8"),
        ] {
            let found = refusal(body).unwrap_or_default();
            assert!(found.contains(word), "{body:?}: {found:?}");
        }
    }
}
