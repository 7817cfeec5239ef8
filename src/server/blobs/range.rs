//! What `Range`, `Content-Range` and `offset` mean. Without I/O; `tests/fuzz` drives it.
//!
//! A range that cannot be meant is refused: what is silently given whole instead would overwrite what is there.

use std::ops::Range;

/// Which bytes of a file are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All of them: there is no range, one of several parts, or one in another unit than bytes.
    All,
    /// These; at least one.
    Part(Range<u64>),
    /// None: the range begins behind the end.
    Beyond,
}

/// Reads the value of a `Range` header for a file of `size` bytes. The error says what would be right.
pub fn wanted(value: Option<&str>, size: u64) -> Result<Wanted, String> {
    let Some((unit, ranges)) = value.and_then(|value| value.split_once('=')) else {
        return match value {
            None => Ok(Wanted::All),
            Some(_) => Err(wrong_range(value)),
        };
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") || ranges.contains(',') {
        return Ok(Wanted::All);
    }
    let wrong = || wrong_range(value);
    let (first, last) = ranges.trim().split_once('-').ok_or_else(wrong)?;
    let range = match (first, last) {
        ("", last) => {
            let bytes = number(last).ok_or_else(wrong)?;
            size.saturating_sub(bytes)..size
        }
        (first, "") => number(first).ok_or_else(wrong)?..size,
        (first, last) => {
            let first = number(first).ok_or_else(wrong)?;
            let last = number(last)
                .filter(|last| *last >= first)
                .ok_or_else(wrong)?;
            first..last.saturating_add(1).min(size)
        }
    };
    Ok(match range.start < range.end {
        true => Wanted::Part(range),
        false => Wanted::Beyond,
    })
}

fn wrong_range(value: Option<&str>) -> String {
    let got = value.unwrap_or_default();
    format!("Range: expected bytes=FIRST-LAST, bytes=FIRST- or bytes=-COUNT, got {got:?}")
}

/// Where a piece of a file belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The number of its first byte.
    pub offset: u64,
    /// Its length in bytes; at least one.
    pub bytes: u64,
    /// The length of the whole file in bytes.
    pub total: u64,
}

/// Reads the value of a `Content-Range` header. The error says what would be right.
pub fn piece(value: Option<&str>) -> Result<Piece, String> {
    let wrong = || {
        let got = value.map_or("none".to_owned(), |value| format!("{value:?}"));
        format!(
            "Content-Range: expected bytes FIRST-LAST/TOTAL such as bytes 0-4194303/209715200, got {got}"
        )
    };
    let (unit, rest) = value
        .and_then(|value| value.split_once(' '))
        .ok_or_else(wrong)?;
    let (range, total) = rest.trim_start().split_once('/').ok_or_else(wrong)?;
    let (first, last) = range.split_once('-').ok_or_else(wrong)?;
    let (Some(first), Some(last), Some(total)) = (number(first), number(last), number(total))
    else {
        return Err(wrong());
    };
    if !unit.eq_ignore_ascii_case("bytes") || first > last || last >= total {
        return Err(wrong());
    }
    Ok(Piece {
        offset: first,
        bytes: last - first + 1,
        total,
    })
}

/// Reads an offset: digits, and nothing else.
pub fn offset(text: &str) -> Result<u64, String> {
    number(text).ok_or_else(|| "expected a number of bytes".into())
}

/// Digits only: `parse` would also take a sign.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// What a header and an offset mean, checked for what must hold of every one; for `tests/fuzz`.
#[doc(hidden)]
pub fn check_any(text: &str, size: u64) {
    if let Ok(Wanted::Part(range)) = wanted(Some(text), size) {
        assert!(
            range.start < range.end && range.end <= size,
            "{text:?} of {size}: {range:?}"
        );
    }
    if let Ok(piece) = piece(Some(text)) {
        assert!(piece.bytes > 0, "{text:?}: {piece:?}");
        assert!(
            piece
                .offset
                .checked_add(piece.bytes)
                .is_some_and(|end| end <= piece.total),
            "{text:?}: {piece:?}"
        );
    }
    if let Ok(number) = offset(text) {
        assert_eq!(
            text.trim_start_matches('0').len(),
            if number == 0 {
                0
            } else {
                number.to_string().len()
            }
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_a_part_all_or_refused() {
        for (value, expected) in [
            ("bytes=0-0", Ok(Wanted::Part(0..1))),
            ("bytes=0-99", Ok(Wanted::Part(0..10))),
            ("bytes=3-", Ok(Wanted::Part(3..10))),
            ("Bytes = 3-4", Ok(Wanted::Part(3..5))),
            ("bytes=-3", Ok(Wanted::Part(7..10))),
            ("bytes=-99", Ok(Wanted::Part(0..10))),
            ("bytes=9-18446744073709551615", Ok(Wanted::Part(9..10))),
            ("bytes=10-", Ok(Wanted::Beyond)),
            ("bytes=-0", Ok(Wanted::Beyond)),
            ("bytes=10-20", Ok(Wanted::Beyond)),
            ("bytes=0-1,3-4", Ok(Wanted::All)),
            ("lines=0-1", Ok(Wanted::All)),
            ("bytes=4-3", Err(())),
            ("bytes=", Err(())),
            ("bytes=-", Err(())),
            ("bytes=a-b", Err(())),
            ("bytes=+1-2", Err(())),
            ("bytes=1--2", Err(())),
            ("bytes=0x1-2", Err(())),
            ("bytes=99999999999999999999-", Err(())),
            ("bytes 0-1", Err(())),
            ("", Err(())),
        ] {
            assert_eq!(wanted(Some(value), 10).map_err(|_| ()), expected, "{value}");
        }
        assert_eq!(wanted(None, 10), Ok(Wanted::All));
        assert_eq!(wanted(Some("bytes=0-"), 0), Ok(Wanted::Beyond));
    }

    #[test]
    fn a_piece_lies_within_its_file() {
        let good = Piece {
            offset: 5,
            bytes: 5,
            total: 10,
        };
        assert_eq!(piece(Some("bytes 5-9/10")), Ok(good));
        for value in [
            "",
            "bytes",
            "bytes 5-9",
            "bytes 5-9/*",
            "bytes */10",
            "bytes 5-10/10",
            "bytes 9-5/10",
            "bytes -5-9/10",
            "bytes=5-9/10",
            "lines 5-9/10",
            "bytes 5-9/+10",
            "bytes 0-0/0",
            "bytes 0-18446744073709551615/18446744073709551615",
            "bytes 5 - 9/10",
        ] {
            assert!(piece(Some(value)).is_err(), "{value}");
            check_any(value, 10);
        }
        assert!(piece(None).is_err());
        assert!(offset("+1").is_err() && offset("").is_err() && offset("1 ").is_err());
        assert_eq!(offset("007"), Ok(7));
    }
}
