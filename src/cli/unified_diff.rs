//! The unified diff of two texts, as `diff -u` prints it.

use similar::algorithms::{Capture, Replace, myers};
use similar::{DiffTag, group_diff_ops};
use std::ops::Range;
use std::time::{Duration, Instant};

/// How long a small difference is searched for. After that a larger one is shown: two texts may have a million lines
/// each and nothing in common.
const SEARCH_TIME: Duration = Duration::from_secs(2);
/// How many lines around a difference are shown.
const CONTEXT_LINES: usize = 3;
/// Follows a line that has no end, as with `diff`.
const NO_END: &str = "\n\\ No newline at end of file\n";

/// The unified diff of two texts with these names; empty if they are the same.
pub fn unified_diff(names: [&str; 2], texts: [&str; 2]) -> String {
    if texts[0] == texts[1] {
        return String::new();
    }
    let [old, new] = texts.map(|text| text.split_inclusive('\n').collect::<Vec<_>>());
    let mut ops = Replace::new(Capture::new());
    let until = Instant::now() + SEARCH_TIME;
    // Not by the crate's `TextDiff`, which has every algorithm for every kind of text: 0.7 MB.
    let Ok(()) = myers::diff_deadline(
        &mut ops,
        &*old,
        0..old.len(),
        &*new,
        0..new.len(),
        Some(until),
    );
    let mut diff = format!("--- {}\n+++ {}\n", names[0], names[1]);
    for hunk in group_diff_ops(ops.into_inner().into_ops(), CONTEXT_LINES) {
        let (Some(first), Some(last)) = (hunk.first(), hunk.last()) else {
            continue;
        };
        diff.push_str(&format!(
            "@@ -{} +{} @@\n",
            place(first.old_range().start..last.old_range().end),
            place(first.new_range().start..last.new_range().end),
        ));
        for op in &hunk {
            let (removed, added) = (&old[op.old_range()], &new[op.new_range()]);
            match op.tag() {
                DiffTag::Equal => push(&mut diff, ' ', removed),
                DiffTag::Delete | DiffTag::Insert | DiffTag::Replace => {
                    push(&mut diff, '-', removed);
                    push(&mut diff, '+', added);
                }
            }
        }
    }
    diff
}

fn push(diff: &mut String, mark: char, lines: &[&str]) {
    for line in lines {
        diff.push(mark);
        diff.push_str(line.strip_suffix('\n').unwrap_or(line));
        diff.push_str(if line.ends_with('\n') { "\n" } else { NO_END });
    }
}

/// `7,3`: three lines from the seventh on. No lines are behind the one that is named.
fn place(lines: Range<usize>) -> String {
    match lines.len() {
        0 => format!("{},0", lines.start),
        1 => format!("{}", lines.start + 1),
        n => format!("{},{n}", lines.start + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diff(old: &str, new: &str) -> String {
        unified_diff(["a", "b"], [old, new])
    }

    #[test]
    fn hunks_are_those_of_diff() {
        let numbers = |range: Range<u32>| range.map(|n| format!("{n}\n")).collect::<String>();
        assert_eq!(diff("x\n", "x\n"), "");
        assert_eq!(diff("", "x\n"), "--- a\n+++ b\n@@ -0,0 +1 @@\n+x\n");
        assert_eq!(
            diff("x\ny\n", ""),
            "--- a\n+++ b\n@@ -1,2 +0,0 @@\n-x\n-y\n"
        );
        let old = numbers(1..30);
        let new = numbers(1..5) + "five\n" + &numbers(6..20) + &numbers(21..30);
        let hunks = "@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n\
            @@ -17,7 +17,6 @@\n 17\n 18\n 19\n-20\n 21\n 22\n 23\n";
        assert_eq!(diff(&old, &new), format!("--- a\n+++ b\n{hunks}"));
        assert_eq!(patched(&old, &diff(&old, &new)), new);
        assert_eq!(
            diff("x", "x\n"),
            "--- a\n+++ b\n@@ -1 +1 @@\n-x\n\\ No newline at end of file\n+x\n"
        );
    }

    #[test]
    fn texts_with_nothing_to_hold_on_to_take_no_longer_than_allowed() {
        // Lines of two kinds in an order without a pattern.
        let text = |mut seed: u64| {
            let lines = (0..100_000).map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                if seed.is_multiple_of(2) { "a\n" } else { "b\n" }
            });
            lines.collect::<String>()
        };
        let (old, new) = (text(1), text(2));
        let began = Instant::now();
        let diff = diff(&old, &new);
        // What it takes apart from the search is far below this, also on a busy machine.
        assert!(began.elapsed() < 10 * SEARCH_TIME, "{:?}", began.elapsed());
        // It is right all the same.
        assert!(patched(&old, &diff) == new);
    }

    /// What becomes of a text by a diff.
    fn patched(old: &str, diff: &str) -> String {
        let (old, mut at, mut new) = (old.lines().collect::<Vec<_>>(), 0, Vec::new());
        for line in diff.lines().skip(2) {
            match line.split_at(1) {
                ("@", rest) => {
                    let place = rest.split_once('-').unwrap().1;
                    let (from, count) = match place.split_once(' ').unwrap().0.split_once(',') {
                        Some((from, count)) => (from.parse().unwrap(), count != "0"),
                        None => (
                            place.split_once(' ').unwrap().0.parse::<usize>().unwrap(),
                            true,
                        ),
                    };
                    let from = from - usize::from(count);
                    new.extend_from_slice(&old[at..from]);
                    at = from;
                }
                ("+", line) => new.push(line),
                (mark, line) => {
                    assert_eq!(old[at], line);
                    at += 1;
                    new.extend((mark == " ").then_some(line));
                }
            }
        }
        new.extend_from_slice(&old[at..]);
        new.iter().map(|line| format!("{line}\n")).collect()
    }
}
