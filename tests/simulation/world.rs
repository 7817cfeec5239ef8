//! The simulated world: virtual time, a queue of events, a network that loses, repeats, delays and reorders messages, and
//! the faults of agents and of the server.

use crate::agent::{Agent, Alarm};
use crate::clock::Clock;
use crate::crew::Crew;
use crate::experiment::{Experiments, Happening};
use crate::laws::Laws;
use crate::notify::Receivers;
use crate::rng::Rng;
use crate::server::Server;
use crate::several::Several;
use crate::targets::Fleet;
use crate::users::Users;
use sidebike::core::{Link, MachineKey, TaskKey, Time};
use sidebike::wire::agent::{AttemptId, Done, Goodbye, Orders, Output, Poll, Taken};
use sidebike::wire::task::Detail;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

/// Milliseconds.
pub type Ms = u64;
/// The error is the law that was broken.
pub type Lawful<T = ()> = Result<T, String>;

/// Identifies an attempt across reused ids: the server that accepted its task, the task, the execution, the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptKey {
    pub epoch: u32,
    pub task: TaskKey,
    pub n: u32,
    pub attempt: u32,
}

/// What a report tells of undos: the number of the change of each.
pub type Told = Vec<(AttemptId, u64)>;

/// A request of an agent.
#[derive(Debug, Clone)]
pub enum Request {
    Poll(Poll),
    Output(Output),
    /// With what it tells of undos: which change of each.
    Done(Done, Told),
    /// What a guard has settled, told by the program that it starts for that.
    Settled(usize, Done),
    Goodbye(Goodbye),
    Ping(String, Link),
    Fetch(String, Link),
    OriginalDone(String, Link, Done),
}

/// The answer to it.
#[derive(Debug, Clone)]
pub enum Response {
    Orders(u64, Orders<Arc<Detail>>, Vec<AttemptKey>),
    Refused(u64, bool),
    Kept(Output, Orders<Arc<Detail>>),
    /// With the number of the latest poll when it asked for more work.
    Taken(Taken<Arc<Detail>>, Option<u64>, Vec<AttemptKey>, Told),
    Settled(usize, Taken<Arc<Detail>>),
    Pong(bool),
    Fetched(Orders<Arc<Detail>>, Vec<AttemptKey>),
}

#[derive(Debug)]
pub enum Event {
    ToServer(usize, Request),
    ToAgent(usize, Response),
    Alarm(usize, Alarm),
    Happening(Happening),
    HoldOver(u32, MachineKey, u64),
    Wake(u32, MachineKey),
    CommitBegins(u32),
    CommitEnds(u32),
    SenderLooks,
    /// Of which life of the server, which one, whether it was taken.
    NotificationTried(u64, u64, String, bool),
    Tick,
    User,
    /// The cancel of a group goes on, of this start of the server.
    Sweep(u64),
    Fault,
}

/// The rates of faults, per thousand.
#[derive(Debug, Clone)]
pub struct Weather {
    pub loss: u64,
    pub repeat: u64,
    pub slow: u64,
    pub very_slow: u64,
    pub kill: u64,
    pub pause: u64,
    pub term: u64,
    pub restart: u64,
    pub cut: u64,
    /// The connection of a held poll breaks.
    pub drop: u64,
    /// A held poll is answered later than the change because of which it is.
    pub late_wake: u64,
    pub stop: u64,
    pub wipe: u64,
    /// The server is sent HUP.
    pub hup: u64,
    /// Another process has the instance of a running agent: it was started from a copy of its memory.
    pub twin: u64,
    /// The wall clock jumps while the server is down.
    pub jump: u64,
    /// A server that starts again has other limits.
    pub other_limits: u64,
    /// With a database only: crashes of the server, failed commits, slow commits.
    pub crash: u64,
    pub refuse: u64,
    pub slow_disk: u64,
}

impl Weather {
    fn of(rng: &mut Rng) -> Self {
        let mut one_of = |of: &[u64]| rng.pick(of);
        Weather {
            loss: one_of(&[0, 20, 100, 300]),
            repeat: one_of(&[0, 20, 100, 300]),
            slow: one_of(&[0, 50, 200]),
            very_slow: one_of(&[0, 0, 20]),
            kill: one_of(&[0, 100, 200]),
            pause: one_of(&[0, 100, 200]),
            term: one_of(&[0, 60]),
            restart: one_of(&[50, 200, 300]),
            cut: one_of(&[0, 100]),
            drop: one_of(&[0, 200]),
            late_wake: one_of(&[0, 100, 500]),
            stop: one_of(&[0, 0, 100]),
            wipe: one_of(&[0, 0, 0, 0, 0, 30]),
            hup: one_of(&[0, 0, 200]),
            twin: one_of(&[0, 0, 0, 0, 100]),
            jump: one_of(&[0, 300]),
            other_limits: one_of(&[0, 0, 500]),
            crash: 0,
            refuse: 0,
            slow_disk: 0,
        }
    }

    fn fair() -> Self {
        Weather {
            loss: 0,
            repeat: 0,
            slow: 0,
            very_slow: 0,
            kill: 0,
            pause: 0,
            term: 0,
            restart: 0,
            cut: 0,
            drop: 0,
            late_wake: 0,
            stop: 0,
            wipe: 0,
            hup: 0,
            twin: 0,
            jump: 0,
            other_limits: 0,
            crash: 0,
            refuse: 0,
            slow_disk: 0,
        }
    }
}

/// How often each thing happened.
pub type Tally = BTreeMap<&'static str, u64>;

/// How one seed differs from others all along.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The server ticks with this period, as the real one does, and not only when the core asks for it.
    pub tick_every: Option<Ms>,
    /// The most polls that the server holds.
    pub max_held: usize,
    /// Commands write more to both streams than is kept.
    pub is_loud: bool,
    /// The number of hostile agents.
    pub hostile: u64,
}

impl Setting {
    fn of(rng: &mut Rng) -> Self {
        Setting {
            tick_every: rng.chance(80).then_some(TICK),
            max_held: rng.pick(&[usize::MAX, usize::MAX, usize::MAX, usize::MAX, 2, 0]),
            is_loud: rng.chance(50),
            hostile: rng.pick(&[0, 0, 0, 0, 1, 3]),
        }
    }
}

pub struct World {
    pub rng: Rng,
    /// The true time.
    pub now: Ms,
    /// The server's clock.
    pub clock: Clock,
    pub setting: Setting,
    pub weather: Weather,
    pub agents: Vec<Agent>,
    pub server: Server,
    pub laws: Laws,
    pub users: Users,
    pub fleet: Fleet,
    pub receivers: Receivers,
    pub crew: Crew,
    pub experiments: Experiments,
    pub several: Several,
    pub tally: Tally,
    /// Ids of attempts that hostile agents were handed.
    pub overheard: Vec<AttemptId>,
    /// The server is paused until then.
    pub stopped_until: Ms,
    pub next_tick: Ms,
    last_tick: Ms,
    pub steps: u64,
    pub log: Option<Vec<String>>,
    pub calm: bool,
    queue: BinaryHeap<Reverse<(Ms, u64)>>,
    events: HashMap<u64, Event>,
    next_event: u64,
}

/// The number of steps with faults and users; after them everything has to come to its end.
const STORM_STEPS: u64 = 160;
/// More of them with experiments: each takes many itself.
const STEPS_OF_EXPERIMENTS: u64 = 240;
/// More of them for each hostile agent, which takes as many itself.
const STEPS_OF_HOSTILE: u64 = 60;
pub const LABELS: [&str; 4] = ["web-0", "web-1", "db-0", "db-0"];
/// The period of the server's clock thread.
const TICK: Ms = 100;
/// The time at the start: late enough that no computed time is before 1970.
const BEGINNING: Ms = 1_700_000_000_000;

impl World {
    pub fn new(seed: u64, server: Server) -> Self {
        let mut rng = Rng::new(seed);
        let weather = Weather::of(&mut rng);
        let setting = Setting::of(&mut rng);
        World {
            weather,
            setting,
            rng,
            now: BEGINNING,
            clock: Clock::default(),
            agents: Vec::new(),
            server,
            laws: Laws::default(),
            users: Users::default(),
            fleet: Fleet::default(),
            receivers: Receivers::new(seed),
            crew: Crew::default(),
            experiments: Experiments::default(),
            several: Several::default(),
            tally: Tally::new(),
            overheard: Vec::new(),
            stopped_until: 0,
            next_tick: u64::MAX,
            last_tick: BEGINNING,
            steps: 0,
            log: None,
            calm: false,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            next_event: 0,
        }
    }

    pub const BEGINNING: Time = Time(BEGINNING);

    /// The time on the server's clock.
    pub fn time(&self) -> Time {
        self.clock.read(self.now)
    }

    pub fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(format!("{:>9} {}", self.now - BEGINNING, what()));
        }
    }

    pub fn after(&mut self, ms: Ms, event: Event) {
        self.at(self.now + ms, event);
    }

    fn at(&mut self, time: Ms, event: Event) {
        let id = self.next_event;
        self.next_event += 1;
        self.events.insert(id, event);
        self.queue.push(Reverse((time, id)));
    }

    /// Runs the world from the start to the end. The error is the law that was broken.
    pub fn run(&mut self) -> Lawful {
        for label in LABELS {
            if self.rng.chance(800) {
                self.start_agent(label);
            }
        }
        if self.rng.chance(250) {
            self.start_original();
        }
        for _ in 0..self.setting.hostile {
            self.start_hostile();
        }
        self.at(self.now, Event::Tick);
        self.next_tick = self.now;
        self.at(self.now + 5, Event::User);
        self.at(self.now + 500, Event::Fault);
        if self.receivers.share > 0 {
            self.at(self.now + 50, Event::SenderLooks);
        }
        let mut storm = STORM_STEPS + STEPS_OF_HOSTILE * self.setting.hostile;
        if self.experiments.share > 0 {
            storm += STEPS_OF_EXPERIMENTS;
        }
        while self.steps < storm {
            self.step()?;
        }
        self.calm_down();
        let since = self.now.max(self.stopped_until);
        let bound = self.users.latest_end(since);
        while let Some(task) = self.unfinished() {
            let late = self.now > bound;
            if late {
                return Err(format!("what_was_accepted_ends: {task}"));
            }
            self.step()?;
        }
        // Every result has been reported, and no agent has anything left to do.
        let bound = self.now.max(self.stopped_until) + 400_000;
        while let Some(agent) = self.agents.iter().position(Agent::is_busy) {
            if self.now > bound {
                return Err(format!(
                    "what_ran_is_reported: agent {agent} still holds {:?}",
                    self.agents[agent].holds
                ));
            }
            self.step()?;
        }
        if self.experiments.share > 0 {
            self.what_was_started_is_settled()?;
        }
        self.everything_is_told()?;
        self.laws.after_all(&self.server)?;
        self.a_new_task_runs_at_once_everywhere()?;
        self.laws.after_all(&self.server)
    }

    fn unfinished(&self) -> Option<String> {
        let core = &self.server.core;
        let (key, task) = core
            .tasks_by_key()
            .find(|(key, _)| !core.is_finished(*key))?;
        let executions: Vec<_> = task.execution_views().collect();
        Some(format!(
            "{key:?} {} {:?} {executions:?}",
            task.id,
            task.state()
        ))
    }

    /// Ends the faults and the users; agents that have not crashed go on.
    fn calm_down(&mut self) {
        self.note(|| "calm".into());
        self.calm = true;
        self.weather = Weather::fair();
        self.setting.max_held = usize::MAX;
        self.end_the_hostile_and_the_twins();
        self.guards_calm_down();
        self.halt_is_lifted();
        self.crew_is_let_go();
        for who in 0..self.agents.len() {
            self.agents[who].cut_until = 0;
            if self.agents[who].paused {
                self.resume(who);
            }
        }
    }

    pub fn step(&mut self) -> Lawful {
        let Some(Reverse((time, id))) = self.queue.pop() else {
            return Err("the world stands still".into());
        };
        let event = self.events.remove(&id).ok_or("an event happens once")?;
        self.now = self.now.max(time);
        // Ten ticks a second, and what a sender does, are none of the steps that make a seed.
        let is_routine = match event {
            Event::Tick => self.setting.tick_every.is_some(),
            Event::SenderLooks | Event::NotificationTried(..) => true,
            _ => false,
        };
        if !is_routine {
            self.steps += 1;
        }
        let for_server = !matches!(
            event,
            Event::ToAgent(..) | Event::Alarm(..) | Event::Happening(_) | Event::Fault
        );
        if for_server && self.now < self.stopped_until {
            let late = self.rng.between(0, 20);
            self.at(self.stopped_until + late, event);
            return Ok(());
        }
        self.time_passes_for_the_crew();
        match event {
            Event::ToServer(who, request) => self.server_hears(who, request)?,
            Event::ToAgent(who, response) => self.agent_hears(who, response)?,
            Event::Alarm(who, alarm) => self.agent_wakes(who, alarm)?,
            Event::Happening(happening) => self.happens(happening)?,
            Event::HoldOver(epoch, machine, hold) => self.hold_is_over(epoch, machine, hold)?,
            Event::Wake(epoch, machine) => self.machine_wakes(epoch, machine)?,
            Event::CommitBegins(life) => self.commit_begins(life),
            Event::CommitEnds(life) => self.commit_ends(life)?,
            Event::SenderLooks => self.sender_looks()?,
            Event::NotificationTried(lives, number, id, is_ok) => {
                self.notification_tried(lives, number, id, is_ok)
            }
            Event::Tick => self.tick()?,
            Event::User => self.user_acts()?,
            Event::Sweep(life) => self.sweep_goes_on(life)?,
            Event::Fault => self.fault()?,
        }
        self.gather_changes();
        self.server.core.check_invariants()?;
        self.laws.look(self.now, &self.server)?;
        self.look_at_undos()?;
        self.look_at_notifications()?;
        self.look_at_groups()?;
        self.look_at_crew()?;
        self.wishes_go_with_their_machines()?;
        self.users.look_at_pace(self.now, &self.server.core)
    }

    fn tick(&mut self) -> Lawful {
        let now = self.time();
        // Such a pause does not count as silence of the machines.
        if self.now > self.last_tick + 5_000 {
            self.fleet.shaken(self.now);
        }
        self.last_tick = self.now;
        let next = self.server.core.tick(now);
        self.see_to_notices()?;
        // The server ticks when the core asked for it.
        let mut next = match (self.setting.tick_every, next) {
            (Some(period), _) => {
                self.count("tick every 100 ms");
                self.now + period
            }
            (None, Some(next)) => self.clock.true_time(next),
            (None, None) => self.now + 2_000,
        };
        if self.rng.chance(self.weather.stop) {
            self.count("tick late");
            next += self.rng.between(1, 4_000);
        }
        self.next_tick = next;
        self.at(next.max(self.now), Event::Tick);
        Ok(())
    }

    /// Sends something over the network, or loses it.
    pub fn send(&mut self, who: usize, what: Event)
    where
        Event: Sent,
    {
        let cut = self.now < self.agents[who].cut_until;
        if cut || self.rng.chance(self.weather.loss) {
            self.count(match (cut, &what) {
                (true, _) => "message lost: agent cut off",
                (_, Event::ToServer(..)) => "request lost",
                _ => "answer lost",
            });
            return;
        }
        if self.rng.chance(self.weather.repeat) {
            self.count(match &what {
                Event::ToServer(..) => "request repeated",
                _ => "answer repeated",
            });
            let again = what.again();
            self.deliver(again);
        }
        self.deliver(what);
    }

    fn deliver(&mut self, what: Event) {
        let mut delay = self.rng.between(1, 20);
        if self.rng.chance(self.weather.very_slow) {
            self.count("message delayed > 3 s");
            delay = self.rng.between(3_000, 60_000);
        } else if self.rng.chance(self.weather.slow) {
            self.count("message delayed");
            delay = self.rng.between(20, 3_000);
        }
        self.after(delay, what);
    }

    fn fault(&mut self) -> Lawful {
        if self.calm {
            return Ok(());
        }
        let pause = self.rng.between(200, 8_000);
        self.after(pause, Event::Fault);
        let who = (!self.agents.is_empty())
            .then(|| self.rng.between(0, self.agents.len() as u64 - 1) as usize);
        let weather = self.weather.clone();
        if let Some(who) = who {
            if self.rng.chance(weather.kill) {
                self.kill(who);
            }
            if self.rng.chance(weather.pause) {
                let long = self.rng.chance(400);
                self.pause(who, long);
            }
            if self.rng.chance(weather.term) {
                self.term(who);
            }
            if self.rng.chance(weather.cut) {
                self.count("agent cut off");
                self.agents[who].cut_until = self.now + self.rng.between(1_000, 90_000);
            }
            if self.rng.chance(weather.drop) {
                self.poll_is_dropped(who);
                self.see_to_notices()?;
            }
        }
        if self.experiments.share > 0 {
            self.guard_fault()?;
        }
        if self.rng.chance(weather.hup) {
            self.server_is_sent_hup()?;
        }
        if let Some(who) = who.filter(|_| self.rng.chance(weather.twin)) {
            self.start_twin(who);
        }
        if self.rng.chance(weather.restart / 2) {
            self.replace_original();
        }
        if self.rng.chance(weather.restart) && self.agents.iter().filter(|a| a.alive).count() < 6 {
            let label = self.rng.pick(&LABELS);
            let known = self.agents.iter().any(|a| a.alive && a.label == label);
            self.count(if known {
                "agent started beside its like"
            } else {
                "agent started"
            });
            self.start_agent(label);
        }
        if self.rng.chance(weather.stop) {
            let short = self.rng.chance(500);
            self.count(if short {
                "server stopped < 5 s"
            } else {
                "server stopped > 5 s"
            });
            let pause = if short {
                self.rng.between(100, 4_900)
            } else {
                self.rng.between(5_100, 90_000)
            };
            self.stopped_until = self.stopped_until.max(self.now + pause);
            if !short {
                self.laws.server_stopped_until(self.stopped_until);
            }
        }
        if self.server.disk.is_some() {
            return match self.rng.chance(weather.crash) {
                true => self.crash(),
                false => Ok(()),
            };
        }
        if self.rng.chance(weather.wipe) {
            self.count("server restarted empty");
            self.note(|| "server restarted empty".into());
            self.clock_may_jump(self.now, Time(0));
            self.limits_may_change();
            let now = self.time();
            self.server.wipe(now);
            self.laws.wipe();
            self.users.wipe();
            self.receivers.wipe();
            self.fleet.wiped();
        }
        Ok(())
    }
}

/// A message that can be sent twice.
pub trait Sent {
    fn again(&self) -> Event;
}

impl Sent for Event {
    fn again(&self) -> Event {
        match self {
            Event::ToServer(who, request) => Event::ToServer(*who, request.clone()),
            Event::ToAgent(who, response) => Event::ToAgent(*who, response.clone()),
            _ => unreachable!("only messages travel"),
        }
    }
}
