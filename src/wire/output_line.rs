//! Lines of output that are shown with the label of their machine in front.

/// The longest line that is shown whole, in bytes: as many as are kept of a stream.
pub const MAX_LINE_BYTES: usize = 1 << 20;
/// The longest part of a line that is held back while a command still writes it, in bytes: of the end of a stream 768 KiB
/// are kept, and the next output may be 256 KiB.
pub const SAFE_LINE_BYTES: usize = 512 << 10;
/// What is behind a part of a longer line.
pub const CUT: &str = " … (the line is cut here)";

/// What is left to see of a line once it has ended: a carriage return begins it anew, as with a progress bar.
pub fn last_state(line: &str) -> &str {
    let line = line.trim_end_matches('\r');
    line.rsplit('\r').next().unwrap_or(line)
}

/// The same for bytes that need not be UTF-8.
pub fn last_state_bytes(line: &[u8]) -> &[u8] {
    let is_return = |byte: &u8| *byte == b'\r';
    let end = line.iter().rposition(|byte| !is_return(byte));
    let line = &line[..end.map_or(0, |end| end + 1)];
    line.rsplit(is_return).next().unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_carriage_return_begins_a_line_anew() {
        for (line, shown) in [
            ("a\tb", "a\tb"),
            ("10%\r50%\r100%", "100%"),
            ("10%\r50%\r100%\r", "100%"),
            ("dos\r", "dos"),
            ("\r\r", ""),
            ("", ""),
        ] {
            assert_eq!(last_state(line), shown);
            assert_eq!(last_state_bytes(line.as_bytes()), shown.as_bytes());
        }
    }
}
