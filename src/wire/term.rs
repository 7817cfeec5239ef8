//! How far a registry has come: the header with which servers and agents tell each other who leads.
//!
//! Several servers can keep one registry; one of them leads, in a term. An answer of an earlier leader that does not know
//! yet that it was replaced is recognized by its lower term.

use std::fmt;
use std::str::FromStr;

/// On every call of an agent and on its answer: [`RegistryTerm`].
pub const TERM_HEADER: &str = "Sidebike-Term";
/// Beside it, of a server that says it: [`LeaderCommit`]. It is a header of its own, because programs that know only the term
/// ignore a term with anything after it.
pub const COMMIT_HEADER: &str = "Sidebike-Commit";
/// On a 503 of a server that does not lead: the address of the one that does; empty if it does not know.
pub const LEADER_HEADER: &str = "Sidebike-Leader";
/// Beside it, with any value: the server led when the call came, and may have executed it. Without it nothing was done.
pub const BEGUN_HEADER: &str = "Sidebike-Begun";

/// On a call that a standby passes on to the leader: who has made it, and a proof of that.
pub const FORWARDED_HEADER: &str = "Sidebike-Forwarded";

/// The number of a leader: each one has a higher number than all before. 0: nobody has ever led.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Term(pub u64);

impl Term {
    /// The one after it.
    pub fn next(self) -> Self {
        Term(self.0 + 1)
    }
}

/// Tells registries apart: a random number that is drawn when one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RegistryId(pub u64);

/// A term of a registry. As text: the id in 16 hexadecimal digits, `:`, the term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistryTerm {
    /// Of which registry. Terms of different ones cannot be compared.
    pub registry: RegistryId,
    /// The term.
    pub term: Term,
}

/// A commit that was acknowledged. As text: its leader in 16 hexadecimal digits, `:`, its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderCommit {
    /// Which server has made it: a random number that each draws when it starts. After an older backup was put back,
    /// two servers may have led in the same term.
    pub leader: u64,
    /// Its number among those of the term.
    pub n: u64,
}

/// How far somebody has seen a registry come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The highest term.
    pub term: RegistryTerm,
    /// The last commit in it, if the server or the agent is of a version that says it.
    pub commit: Option<LeaderCommit>,
}

impl fmt::Display for LeaderCommit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{}", self.leader, self.n)
    }
}

impl fmt::Display for RegistryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for RegistryTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.registry, self.term.0)
    }
}

impl FromStr for RegistryTerm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (registry, term) = id_and_number(text)?;
        Ok(RegistryTerm {
            registry: RegistryId(registry),
            term: Term(term),
        })
    }
}

impl FromStr for LeaderCommit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (leader, n) = id_and_number(text)?;
        Ok(LeaderCommit { leader, n })
    }
}

/// 16 hexadecimal digits, `:` and a number.
fn id_and_number(text: &str) -> Result<(u64, u64), String> {
    let read = || {
        let (id, number) = text.split_once(':')?;
        let all_hex = id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit());
        let all_digits = number.bytes().all(|b| b.is_ascii_digit());
        (all_hex && all_digits).then_some(())?;
        Some((u64::from_str_radix(id, 16).ok()?, number.parse().ok()?))
    };
    let expected = || format!("expected 16 hexadecimal digits, `:` and a number, got {text:?}");
    read().ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written() {
        let term = RegistryTerm {
            registry: RegistryId(0xab),
            term: Term(7),
        };
        assert_eq!(term.to_string(), "00000000000000ab:7");
        assert_eq!(term.to_string().parse(), Ok(term));
        let commit = LeaderCommit { leader: 12, n: 34 };
        assert_eq!(commit.to_string(), "000000000000000c:34");
        assert_eq!(commit.to_string().parse(), Ok(commit));
    }

    #[test]
    fn anything_else_is_refused() {
        let bad = [
            "",
            ":",
            "7",
            "ab:7",
            "00000000000000ab:",
            "00000000000000ab:-1",
            "00000000000000ab:+1",
            "+0000000000000ab:1",
            "00000000000000ab:99999999999999999999",
        ];
        for text in bad {
            let refused: Result<RegistryTerm, String> = text.parse();
            assert!(refused.is_err(), "{text}");
            let refused: Result<LeaderCommit, String> = text.parse();
            assert!(refused.is_err(), "{text}");
        }
    }
}
