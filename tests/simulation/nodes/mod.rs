//! Several servers over one database: who leads, and what agents and users see of it. Each server drives the rules of the
//! crate (`server::db::election`) with a clock of its own, over the database of `database.rs`; while it leads it has a
//! real core, restored from what is saved.
//!
//! | file | content |
//! | --- | --- |
//! | `mod` | the scene: events, networks, time |
//! | `node` | a server between its database and its rules |
//! | `registry` | what a leader has in memory: the core, what is to be saved, held polls, answers that wait |
//! | `serving` | how a server handles what agents and users ask, and what it answers |
//! | `agents`, `users` | who asks |
//! | `database` | PostgreSQL with a synchronous standby |
//! | `faults` | what goes wrong, and the calms after it |
//! | `laws` | what has been said so far, and whether it still holds |
//! | `tests` | the seeds |
//!
//! A seed is a few phases of faults, each followed by a calm; at the end everything has to come to its end. The laws:
//!
//! | law | |
//! | --- | --- |
//! | terms_only_rise, no_commit_of_an_old_term | checked where the database writes |
//! | two_never_trust_themselves | at any real time, those that are stopped included; not those that were frozen with their clock |
//! | an_attempt_starts_once, any_starts_once | on whatever machine, whoever handed it out. After the database has lost commits together with all servers: what an agent holds, if an agent was heard of that has seen the loss |
//! | what_runs_is_adopted | nobody is told to kill what is to be started |
//! | what_was_said_is_there | tasks, cancels, ends and results that were acknowledged or read, and that the database has not lost: each new leader loads them, and they are there in the end |
//! | reads_never_go_back | a read has everything that anybody was told before it was asked |
//! | nothing_canceled_starts | what waited when its cancel was answered; nothing of it is sent after that |
//! | only_the_leader_is_obeyed | no agent starts, kills or forgets a command because of a server that did not lead when it said so |
//! | what_was_accepted_ends, what_ran_is_reported | with the end that its agent has seen, and what it wrote |
//! | a_new_task_runs_everywhere | in the end, on every agent |
//! | somebody_leads | within 12 s of calm, on the slowest clock |
//! | a_clean_end_takes_2_s | if the leader alone gets TERM, on the slowest clock |
//! | an_outage_is_no_failover | if the database alone is away, waits for its standby or fails over; other servers may be stopped meanwhile. Nothing that runs is lost by it |
//!
//! `SEED=7 cargo test --test simulation nodes` runs one seed and prints what happened in it. Each [`Broken`] rule is
//! found. One may be broken alone: `RULE=TrustCountsFromTheSending`. The following were broken by hand, when
//! what servers saved were numbers and there were no agents yet, and each was found within 50 seeds:
//!
//! | broken | found by |
//! | --- | --- |
//! | `TRUST` is 9 s | two_never_trust_themselves |
//! | `MOST_COUNTED` is 2,000 s; a take compares term and holder, not the beat | an_outage_is_no_failover |
//! | a dead connection is noticed after 8 to 10 s | an_outage_is_no_failover |
//! | a commit after an unknown one has the same number | what_was_said_is_there |

mod agents;
mod database;
mod faults;
mod laws;
mod node;
mod registry;
mod serving;
mod tests;
mod users;

use crate::rng::Rng;
use agents::{Agent, Alarm};
use database::{Answer, Call, Database, LOCK_TIMEOUT, What};
use faults::{Fault, Weather};
use laws::Laws;
use node::Node;
use serving::{Asked, Request, Response};
use sidebike::core::{MachineKey, Rule};
use std::collections::BTreeMap;

/// Milliseconds of real time.
type Ms = u64;
/// The error is the law that was broken.
type Lawful<T = ()> = Result<T, String>;

const NODES: u64 = 3;
/// When a server notices that a connection is dead. More would make an outage a failover: 2 s since the last sign of
/// life, these, and the pause of 1 s must be less than 10 s on a standby's fastest clock.
const DEAD_CONNECTION: (Ms, Ms) = (2_000, 4_500);
/// When an agent notices that its connection is broken, if it does.
const BROKEN_CONNECTION: (Ms, Ms) = (1, 2_000);
/// How long an agent tries to connect.
const CONNECT_TIMEOUT: Ms = 2_000;

/// The rules that can be broken: of the servers and of the agents, as the scene drives them, and of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// A commit changes something only if its term leads.
    CommitsAreFenced,
    /// An empty commit is fenced like any other.
    RenewalNamesItsHolder,
    /// Trust counts from before a commit was sent, not from its answer.
    TrustCountsFromTheSending,
    /// A look that fails says nothing, not that nothing has moved.
    FailedLooksDoNotCount,
    /// What a server leads with was read after its take.
    LoadComesAfterTheTake,
    /// A commit whose fate is unknown is written again, not looked for.
    UnknownIsWrittenAgain,
    /// A leader does not answer any more once it resigns.
    WhoResignsIsMute,
    /// What is acknowledged is on the standby.
    StandbyIsSynchronous,
    /// A leader that does not trust itself answers nothing: no output and no read either.
    MuteSaysNothing,
    /// A server that refuses what agents say while it is mute does not count their silence.
    DeafCountsNoSilence,
    /// What a user is told waits until it is saved.
    ReadsWaitForTheirCommit,
    /// Agents say which term they have seen, and ignore answers with a lower one.
    AgentsKeepTheTerm,
    /// A commit says which one it follows, and a leader whose database went back writes everything anew.
    LeaderHealsTheDatabase,
    /// Agents say which commit they have seen, and a leader that has loaded less finds out.
    AgentsAreWitnesses,
    /// It hands out nothing that any machine may run for a while.
    CautionAfterLoss,
    /// It adopts what agents hold instead of killing it.
    HeldIsAdopted,
}

impl Broken {
    const ALL: [Broken; 16] = [
        Broken::CommitsAreFenced,
        Broken::RenewalNamesItsHolder,
        Broken::TrustCountsFromTheSending,
        Broken::FailedLooksDoNotCount,
        Broken::LoadComesAfterTheTake,
        Broken::UnknownIsWrittenAgain,
        Broken::WhoResignsIsMute,
        Broken::StandbyIsSynchronous,
        Broken::MuteSaysNothing,
        Broken::DeafCountsNoSilence,
        Broken::ReadsWaitForTheirCommit,
        Broken::AgentsKeepTheTerm,
        Broken::LeaderHealsTheDatabase,
        Broken::AgentsAreWitnesses,
        Broken::CautionAfterLoss,
        Broken::HeldIsAdopted,
    ];

    /// Whether it takes a loss for anybody to notice.
    fn is_about_losses(self) -> bool {
        self == Broken::AgentsAreWitnesses || self.of_core().is_some()
    }

    /// The rule of the core that it is.
    fn of_core(self) -> Option<Rule> {
        match self {
            Broken::CautionAfterLoss => Some(Rule::CautionAfterLoss),
            Broken::HeldIsAdopted => Some(Rule::HeldIsAdopted),
            _ => None,
        }
    }
}

#[derive(Debug)]
enum Event {
    /// A node has something to do.
    Wake(usize),
    /// A call reaches the database, an answer its node.
    Arrive(usize, Call),
    Answer(usize, u64, Answer),
    /// A node gives a call up: its connection is dead.
    GiveUp(usize, u64),
    /// A take has waited for the row.
    EndOfLockWait(u64),
    /// The standby of the database gets what there is.
    Replicate,
    /// The clock of a leader, by its life.
    Tick(usize, u64),
    /// A poll was held long enough: by which node, in which of its lives, of which machine, which poll.
    HoldOver(usize, u64, MachineKey, u64),
    /// A request reaches a node, a response an agent.
    Request(usize, Box<Request>),
    Response(usize, Box<Response>),
    Alarm(usize, Alarm),
    /// A user asks somebody.
    User,
    Begin(Fault),
    End(Fault),
}

struct Scene {
    rng: Rng,
    now: Ms,
    broken: Option<Broken>,
    database: Database,
    nodes: Vec<Node>,
    agents: Vec<Agent>,
    queue: BTreeMap<(Ms, u64), Event>,
    /// Numbers events, calls, requests, holders, tasks and commands.
    last: u64,
    weather: Weather,
    laws: Laws,
    replicates: bool,
    /// A mute server refuses what it is asked at once, and its clock stands still meanwhile. Otherwise it handles that,
    /// and only its answers do not leave.
    refuses_while_mute: bool,
    /// Commands run for longer than a takeover takes.
    runs_long: bool,
    /// Users ask nothing any more.
    is_over: bool,
    tally: BTreeMap<&'static str, u64>,
    log: Option<Vec<String>>,
}

impl Scene {
    fn new(seed: u64, broken: Option<Broken>) -> Scene {
        let mut rng = Rng::new(seed);
        let nodes = (0..NODES).map(|_| {
            let between = rng.between(900, 1_100);
            let rate = rng.pick(&[900, 1_000, 1_100, between]);
            Node::down(rate, rng.pick(&[0, 0, 5_000, 3_600_000]))
        });
        let nodes = nodes.collect();
        Scene {
            rng,
            now: 0,
            broken,
            database: Database::new(broken),
            nodes,
            agents: Vec::new(),
            queue: BTreeMap::new(),
            last: 0,
            weather: Weather::default(),
            laws: Laws::default(),
            replicates: false,
            refuses_while_mute: match broken {
                Some(Broken::DeafCountsNoSilence) => true,
                Some(Broken::MuteSaysNothing) => false,
                _ => seed.is_multiple_of(2),
            },
            runs_long: false,
            is_over: false,
            tally: BTreeMap::new(),
            log: None,
        }
    }

    fn breaks(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(format!("{:>7} {}", self.now, what()));
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn after(&mut self, pause: Ms, event: Event) {
        let key = (self.now + pause, self.number());
        self.queue.insert(key, event);
    }

    fn latency(&mut self) -> Ms {
        match self.rng.chance(self.weather.slow) {
            true => self.rng.between(100, 20_000),
            false => self.rng.between(1, 20),
        }
    }

    fn trusted(&self) -> Vec<usize> {
        let nodes = self.nodes.iter().enumerate();
        let trusted = nodes.filter(|(_, node)| node.trusts_itself(self.now, self.broken));
        trusted.map(|(at, _)| at).collect()
    }

    /// The network between a node and the database: a call arrives, or the node hears nothing of it.
    fn arrive(&mut self, at: usize, call: Call) -> Lawful {
        let id = call.id;
        if !self.nodes[at].is_waiting_for(id) && self.nodes[at].is_up {
            self.count("a call arrived that was given up");
        }
        if self.database.is_away {
            match self.rng.chance(500) {
                true => self.after(1, Event::Answer(at, id, call.what.failed())),
                false => self.lose(at, id),
            }
            return Ok(());
        }
        if matches!(call.what, What::Take(_)) {
            self.after(LOCK_TIMEOUT, Event::EndOfLockWait(id));
        }
        self.database.arrive(call)
    }

    /// A node will hear nothing of this call.
    fn lose(&mut self, at: usize, id: u64) {
        let (least, most) = DEAD_CONNECTION;
        let pause = self.rng.between(least, most);
        self.after(pause, Event::GiveUp(at, id));
    }

    /// Sends what the database answers, and lets its standby follow.
    fn after_the_database(&mut self) {
        for (id, answer) in std::mem::take(&mut self.database.answers) {
            let Some(at) = { self.nodes.iter() }.position(|node| node.is_waiting_for(id)) else {
                continue;
            };
            if self.nodes[at].is_cut || self.rng.chance(self.weather.loss) {
                self.lose(at, id);
                continue;
            }
            let latency = self.latency();
            if latency > 7_000 {
                self.count("answer late > 7 s");
            }
            self.after(latency, Event::Answer(at, id, answer));
        }
        let may = !self.database.is_stalled && !self.database.is_away;
        if may && self.database.is_behind() && !self.replicates {
            self.replicates = true;
            let pause = self.rng.between(1, 5);
            self.after(pause, Event::Replicate);
        }
    }

    /// The network between agents and nodes: a request leaves its agent.
    fn send_request(&mut self, request: Request) {
        let (who, at, id) = (request.who, request.at, request.id);
        if self.agents[who].is_cut || self.nodes[at].is_isolated {
            return self.after(CONNECT_TIMEOUT, Event::Alarm(who, Alarm::Failed(id)));
        }
        if self.rng.chance(self.weather.breaks) {
            return self.break_connection(who, id);
        }
        let mut latency = self.rng.between(1, 20);
        if self.rng.chance(self.weather.late) {
            // It lies in the buffer of a proxy, whose connection to the agent breaks.
            self.count("a request arrived that was given up");
            self.break_connection(who, id);
            latency = self.rng.between(2_000, 40_000);
        }
        self.after(latency, Event::Request(at, Box::new(request)));
    }

    /// A response leaves its node.
    fn send_response(&mut self, at: usize, response: Response) {
        let (who, id) = (response.who, response.id);
        if self.agents[who].is_cut || self.nodes[at].is_isolated {
            return;
        }
        if self.rng.chance(self.weather.breaks) {
            return self.break_connection(who, id);
        }
        let latency = match self.rng.chance(self.weather.slow) {
            true => self.rng.between(100, 20_000),
            false => self.rng.between(1, 20),
        };
        self.after(latency, Event::Response(who, Box::new(response)));
    }

    /// An agent hears nothing of this request: it notices soon, or when it has waited for long enough.
    fn break_connection(&mut self, who: usize, id: u64) {
        if self.rng.chance(700) {
            let (least, most) = BROKEN_CONNECTION;
            let pause = self.rng.between(least, most);
            self.after(pause, Event::Alarm(who, Alarm::Failed(id)));
        }
    }

    /// The connections of a node are closed.
    fn close_connections(&mut self, at: usize) {
        for who in 0..self.agents.len() {
            for id in self.agents[who].calls_to(at) {
                if !self.nodes[at].is_isolated {
                    self.after(1, Event::Alarm(who, Alarm::Failed(id)));
                }
            }
        }
    }

    /// Lets everything happen until then.
    fn run_until(&mut self, end: Ms) -> Lawful {
        while let Some(entry) = self.queue.first_entry()
            && entry.key().0 <= end
        {
            let ((now, _), event) = entry.remove_entry();
            self.now = now;
            self.happen(event)?;
            self.after_the_database();
            let trusted = self.trusted();
            let is_honest = |at: &&usize| !self.nodes[**at].was_frozen;
            if trusted.iter().filter(is_honest).count() > 1 {
                return Err(format!("two_never_trust_themselves: {trusted:?}"));
            }
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Lawful {
        let now = self.now;
        match event {
            Event::Wake(at) if self.nodes[at].wake == Some(now) => {
                self.nodes[at].wake = None;
                self.drive(at);
            }
            Event::Wake(_) => {}
            Event::Arrive(at, call) => self.arrive(at, call)?,
            Event::Answer(at, id, answer) => self.read(at, id, answer)?,
            Event::GiveUp(at, id) => {
                if let Some(failed) = self.nodes[at].failed_call(id) {
                    self.read(at, id, failed)?;
                }
            }
            Event::EndOfLockWait(id) => self.database.end_of_lock_wait(id),
            Event::Replicate => {
                self.replicates = false;
                if !self.database.is_stalled && !self.database.is_away {
                    self.database.replicate()?;
                }
            }
            Event::Tick(at, life) => self.serve_later_or_now(at, Asked::Tick(life))?,
            Event::HoldOver(at, life, machine, hold) => {
                self.serve_later_or_now(at, Asked::HoldOver(life, machine, hold))?
            }
            Event::Request(at, request) => self.serve_later_or_now(at, Asked::Agent(request))?,
            Event::Response(who, response) => self.hear_or_miss(who, *response)?,
            Event::Alarm(who, alarm) => self.wake_or_miss(who, alarm)?,
            Event::User => self.user()?,
            Event::Begin(fault) => self.begin(fault)?,
            Event::End(fault) => self.end(fault)?,
        }
        Ok(())
    }
}
