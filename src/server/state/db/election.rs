//! Who leads: the role of one of several servers that share an engine. Rules only: no clock, no lock, no I/O.
//!
//! [`RedbFile`](super::RedbFile) is for one server, which leads without it.
//!
//! Whoever drives an [`Elector`] calls [`Elector::act`] until it has no more to do, does what that says, and reports
//! each answer; then it waits for an answer or for [`Elector::wakes_at`].
//!
//! ```text
//! standby ──take──▶ loading ──load──▶ leader (trusted ⇄ mute) ──resign──▶ resigned
//!    ▲                 └──────────┬──────┘
//!    └── starts anew ── fenced ◀──┘ a commit was fenced
//! ```
//!
//! The fence of [`StorageEngine`](super::StorageEngine) alone keeps the records safe: an old leader changes nothing.
//! But a leader also answers from memory, without a commit. So it answers only while it is *trusted*, which ends before
//! any other server can have taken the lead. Three facts make that so, for clocks that run at 0.9 to 1.1 of the true
//! rate; what time they show does not matter:
//!
//! - The trust counts from before a commit was *sent*. The answer may take any time, in which others already wait.
//! - A standby begins to count when it *has seen* what that commit wrote, which is later. 7 s on the slowest clock end
//!   before 10 s on the fastest.
//! - A take fails if the record has changed since it was seen, so no renewal is overlooked.
//!
//! An outage of the database is no reason to replace a leader: nobody can commit, and a new leader would have to load
//! everything again. So a standby counts only the time in which its looks succeed; afterwards the leader has time to
//! renew.
//!
//! All times are those of CLOCK_BOOTTIME, which goes on while a machine sleeps.

use super::{CommitNumber, Committed, Holder, LeaderRecord, Term};
use std::time::Duration;

/// A leader commits this often, with nothing in it if need be, so that standbys see that it lives. Three of them fit
/// into the trust: one may be lost.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// How long a leader trusts itself after it sent a commit that was acknowledged. Much shorter, and every hiccup of the
/// database would make it mute.
pub const TRUST: Duration = Duration::from_secs(7);
/// A standby takes the lead when the record has not changed for so long. The rest beyond [`TRUST`] is for clocks that
/// run at different rates.
pub const TAKEOVER: Duration = Duration::from_secs(10);
/// How often a standby looks. A look is one read of one row.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Each server's interval is up to so much shorter or longer, so that they do not all look at the same moment.
pub const LOOK_JITTER: Duration = Duration::from_millis(200);
/// The most that counts between two looks. Without it a standby that was itself stopped, and saw nothing of an outage,
/// would count all of that time.
pub const MOST_COUNTED: Duration = Duration::from_secs(2);
/// The pause before something is tried again that failed.
pub const RETRY_PAUSE: Duration = Duration::from_secs(1);

// The trust on the slowest clock (0.9) ends before the takeover on the fastest (1.1).
const _: () = assert!(TRUST.as_millis() * 11 < TAKEOVER.as_millis() * 9);

/// What is to be done now. Each is reported by the method named here, once, whenever its answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Look at the leader record: [`Elector::looked`].
    Look,
    /// Take the lead if the record is still this one: [`Elector::took`].
    Take(LeaderRecord),
    /// Read all records: [`Elector::loaded`]. Commits may have to be sent meanwhile. A leader whose engine went back
    /// compares them with its memory, and writes everything anew with its next commit.
    Load,
    /// Send a commit with all changes so far, or an empty one: [`Elector::committed`]. Empty as long as a load is due. It
    /// waits as long as its connection is there, even if its answer takes minutes.
    Commit(CommitNumber),
    /// Resign, then end. Nothing is to be reported.
    Resign(Term),
    /// Somebody else leads: close every connection and start anew, as a standby with nothing in memory.
    StartAnew,
}

/// What a server is at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It waits for the lead.
    Standby,
    /// It has the lead, and reads the records.
    Loading,
    /// It leads. Whether it may answer is for [`Elector::is_trusted`].
    Leader,
    /// It has lost the lead, and what it has in memory is out of date.
    Fenced,
    /// It does not want the lead any more.
    Resigned,
}

/// One server's part in the election.
#[derive(Debug)]
pub struct Elector {
    me: Holder,
    look_interval: Duration,
    /// It is to end.
    closing: bool,
    /// The record of the leader before this one, once a take was sent.
    before: Option<LeaderRecord>,
    state: State,
}

#[derive(Debug)]
enum State {
    Standby(Standby),
    Lead(Lead),
    Fenced,
    Resigned,
}

/// What a standby has seen of the leader.
#[derive(Debug)]
struct Standby {
    /// The record of the last look that succeeded.
    seen: Option<LeaderRecord>,
    /// How long it has been the same, as far as that counts.
    unchanged: Duration,
    /// When the last look ended, if it succeeded. Time counts from here.
    since: Option<Duration>,
    next_look: Duration,
    /// A look is on its way.
    looking: bool,
    /// When the take was sent that is on its way.
    taking: Option<Duration>,
}

impl Standby {
    fn at(now: Duration) -> State {
        State::Standby(Standby {
            seen: None,
            unchanged: Duration::ZERO,
            since: None,
            next_look: now,
            looking: false,
            taking: None,
        })
    }

    /// Counts the time since the last look, if that succeeded.
    fn count(&mut self, now: Duration) {
        if let Some(since) = self.since {
            self.unchanged += now.saturating_sub(since).min(MOST_COUNTED);
        }
    }

    /// When the lead may be taken from whoever has it, and the record that must not have changed until then.
    fn take_at(&self, me: Holder) -> Option<(Duration, LeaderRecord)> {
        let (seen, since) = (self.seen?, self.since?);
        // A take of one's own whose answer was lost is not settled by this look: what it shows may still be lost. But
        // it disturbs nobody to take again.
        let is_free = seen.holder.is_none_or(|holder| holder == me);
        let left = match is_free {
            true => Duration::ZERO,
            false => TAKEOVER.saturating_sub(self.unchanged),
        };
        (left <= MOST_COUNTED).then_some((since + left, seen))
    }
}

/// What a leader knows of its term.
#[derive(Debug)]
struct Lead {
    term: Term,
    load: Load,
    /// It has loaded once, and has everything in memory.
    is_complete: bool,
    /// A higher term was heard of.
    doubt: Option<Doubt>,
    /// The number of the last commit. A commit whose fate is unknown is not repeated under its number but contained in
    /// the next one, which has a higher number.
    last: u64,
    /// The number of the last one that was done.
    done: u64,
    /// When the commit was sent that is on its way.
    sent: Option<Duration>,
    /// When the last write was sent that was acknowledged.
    acknowledged: Duration,
    /// When the next sign of life is due.
    next_sign: Duration,
    /// No commit before this.
    pause_until: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Load {
    /// It is to begin at this time.
    Due(Duration),
    Begun,
    Done,
}

/// Whether another server has the lead, as somebody says who has seen a higher term.
#[derive(Debug)]
enum Doubt {
    /// A look is due at this time.
    Due(Duration),
    Looking,
    /// It was not so. Until this time nobody is believed who says it again.
    Settled(Duration),
}

impl Elector {
    /// A server that has just started. `jitter` is drawn once, from 0 to 1: when it looks.
    pub fn new(me: Holder, jitter: f64, now: Duration) -> Self {
        let spread = (LOOK_JITTER * 2).mul_f64(jitter.clamp(0.0, 1.0));
        Elector {
            me,
            look_interval: LOOK_INTERVAL - LOOK_JITTER + spread,
            closing: false,
            before: None,
            state: Standby::at(now),
        }
    }

    /// What this server is.
    pub fn role(&self) -> Role {
        match &self.state {
            State::Standby(_) => Role::Standby,
            State::Lead(lead) if lead.is_complete => Role::Leader,
            State::Lead(_) => Role::Loading,
            State::Fenced => Role::Fenced,
            State::Resigned => Role::Resigned,
        }
    }

    /// The term in which this server leads or loads.
    pub fn term(&self) -> Option<Term> {
        match &self.state {
            State::Lead(lead) => Some(lead.term),
            _ => None,
        }
    }

    /// The record that the take of this server's term has replaced: with its last commit begins what is loaded. A take of its
    /// own whose answer was lost is none: nothing was committed in that term.
    pub fn taken_from(&self) -> Option<LeaderRecord> {
        self.before.filter(|_| self.term().is_some())
    }

    /// Until when a leader may answer from what it has in memory. It has to be asked at each answer.
    pub fn trusted_until(&self) -> Option<Duration> {
        match &self.state {
            State::Lead(lead) if lead.is_complete && !lead.is_in_doubt() => {
                Some(lead.acknowledged + TRUST)
            }
            _ => None,
        }
    }

    /// Whether this server may answer from what it has in memory. A leader that may not is *mute*: it goes on trying to
    /// commit.
    pub fn is_trusted(&self, now: Duration) -> bool {
        self.trusted_until().is_some_and(|until| now < until)
    }

    /// Whether everything there is was loaded. Until then commits have to be empty.
    pub fn has_loaded(&self) -> bool {
        matches!(&self.state, State::Lead(lead) if lead.load == Load::Done)
    }

    /// What is to be done next; `None`: nothing at this moment. `has_changes` says whether there is something to be
    /// saved.
    pub fn act(&mut self, now: Duration, has_changes: bool) -> Option<Action> {
        let (me, closing) = (self.me, self.closing);
        match &mut self.state {
            State::Standby(standby) => {
                if standby.taking.is_some() {
                    // It may succeed. A server that is to end waits for the answer, too: if it left now, the others
                    // would see a leader that is gone, and wait for the takeover.
                    return None;
                }
                if closing {
                    self.state = State::Resigned;
                    return None;
                }
                if standby.looking {
                    // It may fail: no take before its answer.
                    return None;
                }
                if let Some((at, seen)) = standby.take_at(me)
                    && at <= now
                {
                    standby.count(now);
                    standby.taking = Some(now);
                    if seen.holder != Some(me) {
                        self.before = Some(seen);
                    }
                    return Some(Action::Take(seen));
                }
                if now < standby.next_look {
                    return None;
                }
                standby.looking = true;
                Some(Action::Look)
            }
            State::Lead(lead) => {
                if closing && lead.sent.is_none() {
                    let term = lead.term;
                    // Mute before the resignation is sent: from then on another may lead.
                    self.state = State::Resigned;
                    return Some(Action::Resign(term));
                }
                if let Some(Doubt::Due(at)) = lead.doubt
                    && at <= now
                {
                    lead.doubt = Some(Doubt::Looking);
                    return Some(Action::Look);
                }
                if let Load::Due(at) = lead.load
                    && at <= now
                {
                    lead.load = Load::Begun;
                    return Some(Action::Load);
                }
                if lead.sent.is_some() || now < lead.commit_at(has_changes) {
                    return None;
                }
                lead.last += 1;
                lead.sent = Some(now);
                Some(Action::Commit(CommitNumber {
                    term: lead.term,
                    n: lead.last,
                    after: lead.done,
                }))
            }
            State::Fenced => Some(Action::StartAnew),
            State::Resigned => None,
        }
    }

    /// When [`Elector::act`] has to be called again, if nothing is reported before. It has just been called.
    pub fn wakes_at(&self, has_changes: bool) -> Option<Duration> {
        match &self.state {
            State::Standby(standby) if standby.looking || standby.taking.is_some() => None,
            State::Standby(standby) => {
                let take = standby.take_at(self.me).map(|(at, _)| at);
                take.into_iter().chain([standby.next_look]).min()
            }
            State::Lead(lead) => {
                let load = match lead.load {
                    Load::Due(at) => Some(at),
                    Load::Begun | Load::Done => None,
                };
                let commit = lead.sent.is_none().then(|| lead.commit_at(has_changes));
                let look = match lead.doubt {
                    Some(Doubt::Due(at)) => Some(at),
                    _ => None,
                };
                [load, commit, look].into_iter().flatten().min()
            }
            State::Fenced | State::Resigned => None,
        }
    }

    /// A look has ended.
    pub fn looked(&mut self, now: Duration, result: &Result<LeaderRecord, String>) {
        let interval = self.look_interval;
        let standby = match &mut self.state {
            State::Standby(standby) => standby,
            State::Lead(lead) => {
                if !lead.settles(self.me, now, result) {
                    self.state = State::Fenced;
                }
                return;
            }
            State::Fenced | State::Resigned => return,
        };
        standby.looking = false;
        standby.next_look = now + interval;
        let Ok(record) = result else {
            standby.since = None;
            return;
        };
        standby.count(now);
        if standby.seen != Some(*record) {
            standby.unchanged = Duration::ZERO;
        }
        (standby.seen, standby.since) = (Some(*record), Some(now));
    }

    /// A take has ended.
    pub fn took(&mut self, now: Duration, result: &Result<Option<Term>, String>) {
        let interval = self.look_interval;
        let State::Standby(standby) = &mut self.state else {
            return;
        };
        let Some(sent) = standby.taking.take() else {
            return;
        };
        // Whatever becomes of it, the next take needs another look.
        standby.since = None;
        match result {
            Ok(Some(term)) => {
                self.state = State::Lead(Lead {
                    term: *term,
                    // Only now: until the take was acknowledged, an earlier leader could still commit.
                    load: Load::Due(now),
                    is_complete: false,
                    doubt: None,
                    last: 0,
                    done: 0,
                    sent: None,
                    acknowledged: sent,
                    next_sign: sent + SIGN_OF_LIFE,
                    pause_until: now,
                });
            }
            // Another server took the lead first.
            Ok(None) => standby.next_look = now,
            Err(_) => standby.next_look = now + interval,
        }
    }

    /// A load has ended.
    pub fn loaded(&mut self, now: Duration, is_complete: bool) {
        if let State::Lead(lead) = &mut self.state
            && lead.load == Load::Begun
        {
            lead.is_complete |= is_complete;
            lead.load = match is_complete {
                true => Load::Done,
                false => Load::Due(now + RETRY_PAUSE),
            };
        }
    }

    /// A commit has ended.
    pub fn committed(&mut self, now: Duration, result: &Committed) {
        let State::Lead(lead) = &mut self.state else {
            return;
        };
        let Some(sent) = lead.sent.take() else {
            return;
        };
        match result {
            Committed::Done => {
                lead.acknowledged = sent;
                lead.next_sign = sent + SIGN_OF_LIFE;
                lead.done = lead.last;
            }
            Committed::Fenced => self.state = State::Fenced,
            // Nobody else leads, but nothing was written: the trust is not renewed. What a load finds that has begun
            // is out of date.
            Committed::WentBack(last) => {
                lead.done = *last;
                lead.load = Load::Due(now);
            }
            // A look would not settle it: what it shows may still be lost. So it is written again, even if it was a
            // sign of life.
            Committed::Unknown(_) => {
                lead.pause_until = now + RETRY_PAUSE;
                lead.next_sign = lead.pause_until;
            }
        }
    }

    /// Somebody who was let in has seen this term of the registry. If it is higher than the one of this leader, that was
    /// replaced without noticing, as a virtual machine that was stopped together with its clock: it is mute until a look
    /// has shown who leads.
    pub fn heard(&mut self, now: Duration, term: Term) {
        if let State::Lead(lead) = &mut self.state
            && term > lead.term
        {
            match lead.doubt {
                Some(Doubt::Due(_) | Doubt::Looking) => {}
                Some(Doubt::Settled(until)) if now < until => {}
                _ => lead.doubt = Some(Doubt::Due(now)),
            }
        }
    }

    /// The term that this server leads in has become a higher one. The numbers of its commits go on.
    pub fn raised(&mut self, to: Term) {
        if let State::Lead(lead) = &mut self.state {
            lead.term = to;
        }
    }

    /// This server is to end: it lets another lead as soon as no commit is on its way. What has to be saved is to be
    /// saved before.
    pub fn resign(&mut self) {
        self.closing = true;
    }
}

impl Lead {
    fn is_in_doubt(&self) -> bool {
        matches!(self.doubt, Some(Doubt::Due(_) | Doubt::Looking))
    }

    /// A look has ended. False: another server has the lead.
    fn settles(
        &mut self,
        me: Holder,
        now: Duration,
        result: &Result<LeaderRecord, String>,
    ) -> bool {
        if !matches!(self.doubt, Some(Doubt::Looking)) {
            return true;
        }
        self.doubt = Some(match result {
            Err(_) => Doubt::Due(now + RETRY_PAUSE),
            Ok(record) if (record.term, record.holder) == (self.term, Some(me)) => {
                Doubt::Settled(now + RETRY_PAUSE)
            }
            Ok(_) => return false,
        });
        true
    }

    /// When the next commit is due.
    fn commit_at(&self, has_changes: bool) -> Duration {
        // Until everything is loaded there is nothing to save, but a load may take longer than others wait.
        let is_wanted = has_changes && self.load == Load::Done;
        match is_wanted {
            true => self.pause_until,
            false => self.next_sign.max(self.pause_until),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU64;

    fn holder(n: u64) -> Holder {
        Holder(NonZeroU64::new(n).expect("a number above 0"))
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// In the middle: it looks each second.
    fn elector() -> Elector {
        Elector::new(holder(1), 0.5, ms(0))
    }

    fn record(term: u64, holder_number: u64, beat: u64) -> LeaderRecord {
        LeaderRecord {
            term: Term(term),
            holder: NonZeroU64::new(holder_number).map(Holder),
            beat,
        }
    }

    fn commit(term: u64, n: u64, after: u64) -> Action {
        Action::Commit(CommitNumber {
            term: Term(term),
            n,
            after,
        })
    }

    fn unknown() -> Committed {
        Committed::Unknown("no answer".into())
    }

    /// A leader of term 5 since 100 ms.
    fn leader() -> Elector {
        let mut elector = elector();
        assert_eq!(elector.act(ms(0), false), Some(Action::Look));
        let free = record(4, 0, 9);
        elector.looked(ms(10), &Ok(free));
        assert_eq!(elector.act(ms(10), false), Some(Action::Take(free)));
        elector.took(ms(50), &Ok(Some(Term(5))));
        assert_eq!(elector.role(), Role::Loading);
        assert_eq!(elector.act(ms(50), true), Some(Action::Load));
        assert_eq!(elector.act(ms(50), true), None, "there is nothing to save");
        assert!(!elector.is_trusted(ms(50)));
        elector.loaded(ms(100), true);
        assert_eq!(
            (elector.role(), elector.term()),
            (Role::Leader, Some(Term(5)))
        );
        elector
    }

    /// Looks each second, with an answer at once, until the lead is to be taken.
    fn taken_at(elector: &mut Elector, mut answer: impl FnMut(u64) -> Option<LeaderRecord>) -> u64 {
        for now in 0..100_000 {
            match elector.act(ms(now), false) {
                Some(Action::Look) => elector.looked(ms(now), &answer(now).ok_or("away".into())),
                Some(Action::Take(_)) => return now,
                None => {}
                Some(other) => panic!("{other:?}"),
            }
        }
        panic!("never")
    }

    #[test]
    fn who_does_not_move_for_10_s_is_replaced() {
        let at = taken_at(&mut elector(), |_| Some(record(1, 2, 3)));
        assert_eq!(at, 10_000);
        // It moves until 4 s.
        let at = taken_at(&mut elector(), |now| Some(record(1, 2, now.min(4_000))));
        assert_eq!(at, 14_000);
        // Going back is a movement, too.
        let at = taken_at(&mut elector(), |now| {
            Some(record(1, 2, 4_000 - now.min(4_000)))
        });
        assert_eq!(at, 14_000);
    }

    #[test]
    fn only_time_counts_in_which_looks_succeed() {
        let is_away = |now: u64| (3_500..63_500).contains(&now);
        let at = taken_at(&mut elector(), |now| {
            (!is_away(now)).then(|| record(1, 2, 3))
        });
        // 3 s before the outage, 7 s from the first look after it.
        assert_eq!(at, 71_000);
    }

    #[test]
    fn a_standby_that_was_stopped_counts_little_of_that_time() {
        let mut elector = elector();
        let led = Ok(record(1, 2, 3));
        assert_eq!(elector.act(ms(0), false), Some(Action::Look));
        elector.looked(ms(0), &led);
        assert_eq!(elector.act(ms(60_000), false), Some(Action::Look));
        elector.looked(ms(60_000), &led);
        assert_eq!(elector.act(ms(60_000), false), None);
        assert_eq!(elector.wakes_at(false), Some(ms(61_000)));
    }

    #[test]
    fn a_take_that_fails_needs_another_look() {
        let mut elector = elector();
        let led = record(1, 2, 3);
        assert_eq!(taken_at(&mut elector, |_| Some(led)), 10_000);
        assert_eq!(elector.wakes_at(false), None, "it waits for the answer");
        elector.took(ms(10_100), &Err("locked".into()));
        assert_eq!(elector.act(ms(10_100), false), None);
        assert_eq!(elector.wakes_at(false), Some(ms(11_100)));
        assert_eq!(elector.act(ms(11_100), false), Some(Action::Look));
        elector.looked(ms(11_100), &Ok(led));
        assert_eq!(elector.act(ms(11_100), false), Some(Action::Take(led)));
        // Somebody was faster.
        elector.took(ms(11_200), &Ok(None));
        assert_eq!(elector.act(ms(11_200), false), Some(Action::Look));
        elector.looked(ms(11_200), &Ok(record(2, 3, 0)));
        assert_eq!(elector.act(ms(12_000), false), None);
    }

    #[test]
    fn a_take_of_ones_own_that_is_seen_is_taken_again() {
        let mut elector = elector();
        let led = record(1, 2, 3);
        taken_at(&mut elector, |_| Some(led));
        elector.took(ms(10_100), &Err("no answer".into()));
        assert_eq!(elector.act(ms(11_100), false), Some(Action::Look));
        let own = record(2, 1, 0);
        elector.looked(ms(11_100), &Ok(own));
        assert_eq!(elector.act(ms(11_100), false), Some(Action::Take(own)));
        assert_eq!(elector.role(), Role::Standby);
    }

    #[test]
    fn trust_counts_from_before_the_commit_was_sent() {
        let mut elector = leader();
        // From the take.
        assert_eq!(elector.trusted_until(), Some(ms(7_010)));
        assert_eq!(elector.act(ms(1_000), true), Some(commit(5, 1, 0)));
        assert_eq!(elector.act(ms(6_000), true), None, "one at a time");
        elector.committed(ms(6_500), &Committed::Done);
        assert_eq!(elector.trusted_until(), Some(ms(8_000)));
        assert!(elector.is_trusted(ms(7_999)));
        assert!(!elector.is_trusted(ms(8_000)));
        // It goes on trying, and is trusted again.
        assert_eq!(elector.act(ms(8_000), false), Some(commit(5, 2, 1)));
        elector.committed(ms(8_010), &Committed::Done);
        assert!(elector.is_trusted(ms(8_010)));
    }

    #[test]
    fn a_leader_shows_that_it_lives() {
        let mut elector = leader();
        assert_eq!(elector.act(ms(2_009), false), None);
        assert_eq!(elector.wakes_at(false), Some(ms(2_010)));
        assert_eq!(elector.act(ms(2_010), false), Some(commit(5, 1, 0)));
        assert_eq!(elector.wakes_at(false), None);
        elector.committed(ms(2_020), &Committed::Done);
        assert_eq!(elector.wakes_at(false), Some(ms(4_010)));
    }

    #[test]
    fn a_load_that_takes_long_is_no_silence() {
        let mut elector = elector();
        assert_eq!(elector.act(ms(0), false), Some(Action::Look));
        elector.looked(ms(0), &Ok(LeaderRecord::default()));
        elector.act(ms(0), false);
        elector.took(ms(0), &Ok(Some(Term(1))));
        assert_eq!(elector.act(ms(0), false), Some(Action::Load));
        for n in 1..10 {
            let now = SIGN_OF_LIFE * n;
            let commit = commit(1, n.into(), n as u64 - 1);
            assert_eq!(elector.act(now, true), Some(commit));
            elector.committed(now, &Committed::Done);
            assert_eq!(elector.act(now, true), None);
        }
        elector.loaded(ms(18_500), false);
        assert_eq!(elector.act(ms(19_499), false), None);
        assert_eq!(elector.wakes_at(false), Some(ms(19_500)));
        assert_eq!(elector.act(ms(19_500), false), Some(Action::Load));
        assert!(!elector.is_trusted(ms(20_000)));
        elector.loaded(ms(20_001), true);
        assert!(elector.is_trusted(ms(20_001)));
    }

    #[test]
    fn an_unknown_commit_is_followed_by_one_with_a_higher_number() {
        let mut elector = leader();
        assert_eq!(elector.act(ms(1_000), true), Some(commit(5, 1, 0)));
        elector.committed(ms(1_100), &unknown());
        assert_eq!(elector.trusted_until(), Some(ms(7_010)));
        for has_changes in [true, false] {
            assert_eq!(elector.act(ms(2_099), has_changes), None);
            assert_eq!(elector.wakes_at(has_changes), Some(ms(2_100)));
        }
        assert_eq!(elector.act(ms(2_100), false), Some(commit(5, 2, 0)));
    }

    #[test]
    fn who_is_fenced_starts_anew() {
        let mut elector = leader();
        assert_eq!(elector.act(ms(1_000), true), Some(commit(5, 1, 0)));
        elector.committed(ms(1_100), &Committed::Fenced);
        assert_eq!((elector.role(), elector.term()), (Role::Fenced, None));
        assert!(!elector.is_trusted(ms(1_100)));
        assert_eq!(elector.act(ms(1_100), true), Some(Action::StartAnew));
    }

    #[test]
    fn who_hears_of_a_higher_term_is_mute_until_it_has_looked() {
        let mut elector = leader();
        elector.heard(ms(200), Term(5));
        assert!(elector.is_trusted(ms(200)));
        elector.heard(ms(200), Term(6));
        assert!(!elector.is_trusted(ms(200)));
        assert_eq!(elector.act(ms(200), false), Some(Action::Look));
        elector.looked(ms(210), &Err("away".into()));
        assert_eq!(elector.act(ms(210), false), None);
        assert_eq!(elector.wakes_at(false), Some(ms(1_210)));
        assert_eq!(elector.act(ms(1_210), false), Some(Action::Look));
        // It was a lie.
        elector.looked(ms(1_220), &Ok(record(5, 1, 0)));
        assert!(elector.is_trusted(ms(1_220)));
        elector.heard(ms(2_219), Term(6));
        assert!(elector.is_trusted(ms(2_219)));
        elector.heard(ms(2_220), Term(6));
        assert_eq!(elector.act(ms(2_220), true), Some(Action::Look));
        elector.looked(ms(2_230), &Ok(record(6, 2, 0)));
        assert_eq!(elector.role(), Role::Fenced);
    }

    #[test]
    fn an_engine_that_went_back_is_loaded_again_before_anything_is_saved() {
        let mut elector = leader();
        assert_eq!(elector.act(ms(1_000), true), Some(commit(5, 1, 0)));
        elector.committed(ms(1_010), &Committed::Done);
        assert_eq!(elector.act(ms(2_000), true), Some(commit(5, 2, 1)));
        elector.committed(ms(2_010), &Committed::WentBack(0));
        assert_eq!(elector.role(), Role::Leader);
        assert_eq!(elector.trusted_until(), Some(ms(8_000)));
        assert_eq!(elector.act(ms(2_010), true), Some(Action::Load));
        assert_eq!(elector.act(ms(2_500), true), None, "it is not loaded yet");
        // A sign of life, which goes back once more.
        assert_eq!(elector.act(ms(3_000), true), Some(commit(5, 3, 0)));
        elector.committed(ms(3_010), &Committed::Done);
        assert_eq!(elector.act(ms(5_000), true), Some(commit(5, 4, 3)));
        elector.committed(ms(5_010), &Committed::WentBack(0));
        elector.loaded(ms(5_020), true);
        assert_eq!(
            elector.act(ms(5_020), true),
            Some(Action::Load),
            "what was loaded is out of date"
        );
        elector.loaded(ms(5_030), true);
        assert_eq!(elector.act(ms(5_030), true), Some(commit(5, 5, 0)));
    }

    #[test]
    fn who_resigns_is_mute_before_it_says_so() {
        let mut elector = leader();
        assert_eq!(elector.act(ms(1_000), true), Some(commit(5, 1, 0)));
        elector.resign();
        assert_eq!(elector.act(ms(1_000), true), None, "a commit is on its way");
        assert!(elector.is_trusted(ms(1_000)));
        elector.committed(ms(1_100), &Committed::Done);
        assert_eq!(elector.act(ms(1_100), true), Some(Action::Resign(Term(5))));
        assert!(!elector.is_trusted(ms(1_100)));
        assert_eq!(elector.act(ms(1_100), true), None);
        assert_eq!(elector.role(), Role::Resigned);
    }

    #[test]
    fn a_standby_that_ends_during_its_take_gives_the_lead_back() {
        let mut elector = elector();
        taken_at(&mut elector, |_| Some(record(1, 2, 3)));
        elector.resign();
        assert_eq!(elector.act(ms(10_000), false), None);
        assert_eq!(elector.role(), Role::Standby);
        elector.took(ms(10_100), &Ok(Some(Term(2))));
        assert_eq!(
            elector.act(ms(10_100), false),
            Some(Action::Resign(Term(2)))
        );

        let mut idle = self::elector();
        idle.resign();
        assert_eq!(idle.act(ms(0), false), None);
        assert_eq!(idle.role(), Role::Resigned);
    }
}
