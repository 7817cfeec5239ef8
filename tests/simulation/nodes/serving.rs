//! How a server handles what agents and users ask, and what it answers. A model of `server/state` and `server/api`.

use super::agents::Alarm;
use super::laws::attempt;
use super::registry::Held;
use super::users::{Said, UserCall};
use super::{Broken, Event, Lawful, Ms, Scene};
use sidebike::core::{MachineKey, Notice, Refusal, Time};
use sidebike::server::db::election::Role;
use sidebike::wire::agent::{Done, Orders, Output, Poll, Taken};
use sidebike::wire::duration::TimeSpan;
use sidebike::wire::task::{Detail, ExecutionState};
use sidebike::wire::term::{LeaderCommit, Position, RegistryId, RegistryTerm};
use std::sync::Arc;

/// There is one registry.
const REGISTRY: RegistryId = RegistryId(7);
/// The longest that a poll is held, and for how long it still is after its machine was given work in the answer to a
/// report.
const MAX_POLL_WAIT: TimeSpan = TimeSpan::from_secs(25);
const HELD_ON: Ms = 1_000;
/// A leader looks at its clock this often, or, if there is nothing to do, at least as often as the second.
const TICK: Ms = 100;
const LONGEST_TICK: Ms = 2_000;

/// A request of an agent to a node.
#[derive(Debug, Clone)]
pub struct Request {
    pub who: usize,
    pub at: usize,
    pub id: u64,
    /// The highest term that the agent has seen, and the last commit in it.
    pub seen: Option<Position>,
    pub what: Call,
}

#[derive(Debug, Clone)]
pub enum Call {
    Poll(Box<Poll>),
    Output(Output),
    Done(Done),
}

impl Call {
    fn name(&self) -> &'static str {
        match self {
            Call::Poll(_) => "poll",
            Call::Output(_) => "output",
            Call::Done(_) => "done",
        }
    }
}

/// The answer to it.
#[derive(Debug, Clone)]
pub struct Response {
    pub who: usize,
    pub id: u64,
    /// How far the server has come, if it leads.
    pub position: Option<Position>,
    /// Whether that server really had the lead when it made up its mind.
    pub is_of_the_leader: bool,
    pub what: Told,
}

#[derive(Debug, Clone)]
pub enum Told {
    Orders(u64, Orders<Arc<Detail>>),
    Kept(Orders<Arc<Detail>>),
    /// With the number of the latest poll if it asked for more work.
    Taken(Taken<Arc<Detail>>, Option<u64>),
    /// 409.
    Conflict,
    /// 503.
    Busy,
}

impl Told {
    /// Whether it tells of a change that must be saved first.
    fn is_news(&self) -> bool {
        match self {
            Told::Orders(_, orders) => {
                !orders.start.is_empty() || !orders.cancel.is_empty() || !orders.undo.is_empty()
            }
            // The agent drops what was taken.
            Told::Kept(_) | Told::Taken(..) => true,
            Told::Conflict | Told::Busy => false,
        }
    }
}

/// What a node has to do.
#[derive(Debug)]
pub enum Asked {
    Agent(Box<Request>),
    User(UserCall),
    Tick(u64),
    HoldOver(u64, MachineKey, u64),
}

/// An answer that waits for a commit.
pub enum Reply {
    Agent(Response),
    User(Said),
}

impl Scene {
    /// A node that runs handles what it is asked.
    pub fn serve(&mut self, at: usize, asked: Asked) -> Lawful {
        let node = &self.nodes[at];
        if !node.is_up {
            if let Asked::Agent(request) = asked {
                let (who, id) = (request.who, request.id);
                if !node.is_isolated {
                    self.after(1, Event::Alarm(who, Alarm::Failed(id)));
                }
            }
            return Ok(());
        }
        match asked {
            Asked::Agent(request) => self.serve_agent(at, *request)?,
            Asked::User(call) => self.serve_user(at, call)?,
            Asked::Tick(life) if life == node.life() => self.tick(at)?,
            Asked::HoldOver(life, machine, hold) if life == node.life() => {
                let held = node.registry.as_ref();
                let held = held.and_then(|registry| registry.held.get(&machine));
                if held.is_some_and(|held| held.hold == hold) {
                    self.collect_for(at, machine)?;
                }
            }
            Asked::Tick(_) | Asked::HoldOver(..) => return Ok(()),
        }
        self.settle(at)
    }

    fn serve_agent(&mut self, at: usize, request: Request) -> Lawful {
        let (now, broken) = (self.now, self.broken);
        let node = &mut self.nodes[at];
        let clock = node.clock(now);
        if let Some(seen) = request.seen {
            node.elector.heard(clock, seen.term.term);
        }
        let is_mute = !node.trusts_itself(now, broken);
        let is_leader = node.elector.role() == Role::Leader;
        if is_leader && is_mute {
            self.count("a leader was mute");
        }
        let (who, id) = (request.who, request.id);
        let what = request.what.name();
        self.note(|| {
            format!("agent {who} asks node {at}: {what}, leads: {is_leader}, mute: {is_mute}")
        });
        let refuses = is_mute && self.refuses_while_mute;
        let handles = is_leader && !refuses;
        let (origin, life) = (self.nodes[at].origin(), self.nodes[at].life());
        let Some(registry) = self.nodes[at].registry.as_mut().filter(|_| handles) else {
            return self.tell(at, who, id, Told::Busy);
        };
        let time = registry.time(clock);
        let is_heard = broken != Some(Broken::AgentsAreWitnesses);
        let proof = request.seen.filter(|seen| {
            is_heard && { origin }.is_some_and(|(of, term)| of.is_behind(term, life, *seen))
        });
        let core = &mut registry.core;
        let is_news = proof.is_some() && core.note_loss(time);
        if is_news {
            self.count("a loss was found");
            self.note(|| format!("node {at} has loaded {origin:?}, and finds a loss: {proof:?}"));
        }
        let registry = self.nodes[at].registry.as_mut().expect("it leads");
        let core = &mut registry.core;
        match request.what {
            Call::Poll(poll) => self.serve_poll(at, (who, id), time, *poll),
            Call::Output(output) => {
                let orders = core.output(time, &output.instance, &output.pieces);
                registry.gather_changes(clock);
                self.tell(at, who, id, Told::Kept(orders))
            }
            Call::Done(done) => {
                let taken = core.done_and_next(time, &done);
                registry.gather_changes(clock);
                self.tell(at, who, id, Told::Taken(taken, done.seq))
            }
        }
    }

    fn serve_poll(&mut self, at: usize, from: (usize, u64), time: Time, poll: Poll) -> Lawful {
        let (who, id) = from;
        let hold = self.number();
        let node = &mut self.nodes[at];
        let (clock, life) = (node.clock(self.now), node.life());
        let registry = node.registry.as_mut().expect("it leads");
        let polled = registry.core.poll(time, &poll, None);
        registry.gather_changes(clock);
        let (machine, orders) = match polled {
            Ok(polled) => polled,
            Err(Refusal::Conflict(_)) => return self.tell(at, who, id, Told::Conflict),
            Err(refusal) => return Err(format!("a good poll is refused: {refusal:?}")),
        };
        let old = registry.held.remove(&machine);
        let is_held = orders.is_empty() && poll.wait.as_millis() > 0;
        if is_held {
            registry.core.hold_poll(machine);
            let held = Held {
                hold,
                who,
                id,
                seq: poll.seq,
            };
            registry.held.insert(machine, held);
            let wait = poll.wait.min(MAX_POLL_WAIT).as_millis();
            self.after(wait, Event::HoldOver(at, life, machine, hold));
        }
        if let Some(old) = old {
            self.tell(at, old.who, old.id, Told::Orders(old.seq, Orders::none()))?;
        }
        match is_held {
            true => Ok(()),
            false => self.tell(at, who, id, Told::Orders(poll.seq, orders)),
        }
    }

    /// Answers the held poll of a machine with what there is for it.
    fn collect_for(&mut self, at: usize, machine: MachineKey) -> Lawful {
        let node = &mut self.nodes[at];
        let clock = node.clock(self.now);
        let Some(registry) = node.registry.as_mut() else {
            return Ok(());
        };
        let Some(held) = registry.held.remove(&machine) else {
            return Ok(());
        };
        let time = registry.time(clock);
        let orders = registry.core.collect(time, machine);
        registry.gather_changes(clock);
        self.tell(at, held.who, held.id, Told::Orders(held.seq, orders))
    }

    fn tick(&mut self, at: usize) -> Lawful {
        let now = self.now;
        let stands_still = self.refuses_while_mute && !self.breaks(Broken::DeafCountsNoSilence);
        let node = &mut self.nodes[at];
        let (clock, life) = (node.clock(now), node.life());
        if stands_still && !node.trusts_itself(now, None) {
            self.after(TICK, Event::Tick(at, life));
            return Ok(());
        }
        let Some(registry) = node.registry.as_mut() else {
            return Ok(());
        };
        let time = registry.time(clock);
        let next = registry.core.tick(time);
        registry.gather_changes(clock);
        let next = next.map(|next| registry.clock_at(next));
        let next = next.map_or(now + LONGEST_TICK, |next| node.real_time(next));
        let pause = next.clamp(now + 1, now + LONGEST_TICK) - now;
        self.after(pause, Event::Tick(at, life));
        Ok(())
    }

    /// Does what follows from changes, then what there is to be saved.
    fn settle(&mut self, at: usize) -> Lawful {
        loop {
            let node = &mut self.nodes[at];
            let (clock, life) = (node.clock(self.now), node.life());
            let Some(registry) = node.registry.as_mut() else {
                break;
            };
            let time = registry.time(clock);
            registry.core.settle_dependents(time);
            let notices = registry.core.take_notices();
            registry.gather_changes(clock);
            if notices.is_empty() {
                registry.core.check_invariants()?;
                break;
            }
            for notice in notices {
                match notice {
                    Notice::Wake(machine) => self.collect_for(at, machine)?,
                    Notice::HandedOut(machine) => {
                        let held = self.nodes[at].registry.as_ref();
                        let held = held.and_then(|registry| registry.held.get(&machine));
                        if let Some(hold) = held.map(|held| held.hold) {
                            self.after(HELD_ON, Event::HoldOver(at, life, machine, hold));
                        }
                    }
                    Notice::MachineOffline(..) => self.count("machine went offline"),
                    _ => {}
                }
            }
        }
        self.drive(at);
        Ok(())
    }

    /// Answers an agent: at once, or when what it is told is saved.
    fn tell(&mut self, at: usize, who: usize, id: u64, what: Told) -> Lawful {
        self.what_runs_is_adopted(at, &what)?;
        let node = &self.nodes[at];
        let position = { node.elector.term() }
            .filter(|_| node.elector.role() == Role::Leader)
            .map(|term| Position {
                term: RegistryTerm {
                    registry: REGISTRY,
                    term,
                },
                commit: None,
            });
        let is_news = what.is_news();
        let response = Response {
            who,
            id,
            position,
            is_of_the_leader: self.database.is_led_by(node),
            what,
        };
        match is_news {
            true => self.reply_when_saved(at, Reply::Agent(response)),
            false => self.reply(at, Reply::Agent(response)),
        }
    }

    /// No agent is told to kill what is to be started here. And what is handed out before a loss is found may be a second
    /// start.
    fn what_runs_is_adopted(&mut self, at: usize, what: &Told) -> Lawful {
        let Some(registry) = self.nodes[at].registry.as_ref() else {
            return Ok(());
        };
        let (starts, cancels) = match what {
            Told::Orders(_, orders) | Told::Kept(orders) => (&orders.start, &orders.cancel[..]),
            Told::Taken(taken, _) => (&taken.start, &[][..]),
            Told::Conflict | Told::Busy => return Ok(()),
        };
        let core = &registry.core;
        for id in cancels {
            let (execution, number) = attempt(id);
            let Some((task, n)) = execution.rsplit_once('.') else {
                continue;
            };
            let Ok(task) = core.find_task(task).and_then(|key| core.show(key)) else {
                continue;
            };
            let waits = task.execution_views().any(|e| {
                let is_it = e.n.to_string() == n && e.attempt == number;
                is_it && e.state == ExecutionState::Queued
            });
            if waits && !task.is_canceled() {
                return Err(format!(
                    "what_runs_is_adopted: {id:?} is to be killed, and to be started"
                ));
            }
        }
        if !core.has_found_loss() {
            let early = starts.iter().map(|job| attempt(&job.id));
            self.laws.handed_out_unaware(early);
        }
        Ok(())
    }

    /// Answers when all changes so far are saved.
    pub fn reply_when_saved(&mut self, at: usize, reply: Reply) -> Lawful {
        let node = &mut self.nodes[at];
        let Some(registry) = node.registry.as_mut() else {
            return Ok(());
        };
        let Some(reply) = registry.wait(reply) else {
            return Ok(());
        };
        // What it tells of may be in the commit on its way.
        match &mut node.sent {
            Some(sent) if !sent.batch.is_empty() => {
                sent.replies.push(reply);
                Ok(())
            }
            _ => self.reply(at, reply),
        }
    }

    /// The last word: an answer leaves only while its server trusts itself.
    pub fn reply(&mut self, at: usize, reply: Reply) -> Lawful {
        let trusts = self.nodes[at].trusts_itself(self.now, self.broken);
        let is_broken = self.breaks(Broken::MuteSaysNothing);
        match reply {
            Reply::Agent(mut response) => {
                let is_kept = matches!(response.what, Told::Kept(_));
                if !(trusts || is_broken && is_kept) {
                    response.what = Told::Busy;
                    response.position = None;
                }
                if let Some(position) = &mut response.position {
                    let (leader, n) = (self.nodes[at].life(), self.nodes[at].committed);
                    position.commit = Some(LeaderCommit { leader, n });
                }
                self.drop_what_was_canceled(at, &mut response)?;
                if let Told::Taken(taken, _) = &response.what {
                    self.laws.said_taken(&taken.results);
                }
                self.send_response(at, response);
                Ok(())
            }
            Reply::User(said) => match trusts || (is_broken && said.is_read()) {
                true => self.user_is_told(said),
                false => Ok(()),
            },
        }
    }

    /// What was canceled while its hand-out was being saved is not sent.
    fn drop_what_was_canceled(&mut self, at: usize, response: &mut Response) -> Lawful {
        let start = match &mut response.what {
            Told::Orders(_, orders) => &mut orders.start,
            Told::Taken(taken, _) => &mut taken.start,
            Told::Kept(_) | Told::Conflict | Told::Busy => return Ok(()),
        };
        let node = &self.nodes[at];
        let core = node.registry.as_ref().map(|registry| &registry.core);
        start.retain(|job| core.is_some_and(|core| core.is_to_start(&job.id)));
        // No rule can tell a server that was frozen of a cancel that it has not heard of.
        if !node.was_frozen {
            start.iter().try_for_each(|job| self.laws.sent(job))?;
        }
        Ok(())
    }

    /// What an answer waited for could not be saved, as far as is known.
    pub fn refuse(&mut self, at: usize, reply: Reply) -> Lawful {
        let is_output = |reply: &Reply| match reply {
            Reply::Agent(response) => matches!(response.what, Told::Kept(_)),
            Reply::User(said) => said.is_read(),
        };
        if self.breaks(Broken::MuteSaysNothing) && is_output(&reply) {
            return self.reply(at, reply);
        }
        match reply {
            Reply::Agent(mut response) => {
                let mut rest = Orders::none();
                if let Told::Orders(_, orders) = &mut response.what {
                    orders.start.clear();
                    rest = orders.clone();
                }
                // What is to be killed is killed all the same.
                if rest.is_empty() {
                    response.what = Told::Busy;
                }
                self.reply(at, Reply::Agent(response))
            }
            Reply::User(Said::Submitted { key, id }) => {
                self.laws.withdrawn(id);
                let node = &mut self.nodes[at];
                let clock = node.clock(self.now);
                if let Some(registry) = &mut node.registry {
                    let time = registry.time(clock);
                    registry.core.withdraw(time, key);
                    registry.gather_changes(clock);
                    self.count("submit withdrawn");
                }
                self.settle(at)
            }
            Reply::User(_) => Ok(()),
        }
    }
}
