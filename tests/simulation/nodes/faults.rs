//! What goes wrong: the faults, the phases in which they happen, and the calms after them.

use super::database::Call;
use super::{Broken, Event, Lawful, Ms, NODES, Scene};
use crate::users::base_spec;
use serde_json::{Map, json};
use sidebike::server::db::election::Role;
use sidebike::wire::duration::{TimeSpan, Timeout};
use sidebike::wire::task::ExecutionState;

const PHASES: u64 = 5;
/// What is under way when the calm begins arrives within this time, or never.
const SETTLED: Ms = 1_000;
/// 12 s on the slowest clock.
const LEADS_WITHIN: Ms = 12_000 * 10 / 9;
/// 2 s on the slowest clock.
const HANDED_OVER_WITHIN: Ms = 2_000 * 10 / 9;
/// How long everything may take to end after the faults: two attempts of 90 s, the time to notice that a machine is lost
/// or that a report is overdue, twice, and what an answer may take that an agent still waits for.
const ENDS_WITHIN: Ms = 600_000;
/// How long a new task may take to end everywhere after that.
const RUNS_WITHIN: Ms = 70_000;
/// Those of agents that appear just before a loss.
const SPARE_LABELS: [&str; 3] = ["spare-0", "spare-1", "spare-2"];
/// How long it may take until all agents were heard of after a loss, and what was held back for that is handed out: the
/// longest poll and its pause, and 45 s on the slowest clock.
const FOUND_AND_OVER_WITHIN: Ms = 30_000 + 45_000 * 10 / 9;
/// The labels of agents.
const LABELS: [&str; 3] = ["web-0", "web-1", "db-0"];

#[derive(Debug, Clone, Copy)]
pub enum Fault {
    Kill(usize),
    Pause(usize),
    /// It is stopped together with its clock, as a virtual machine.
    Freeze(usize),
    /// From the database.
    Cut(usize),
    /// From agents.
    Isolate(usize),
    /// It gets TERM.
    Terminate(usize),
    /// The database does not answer.
    Away,
    /// Its standby does not follow.
    Stall,
    /// The waits for it are canceled.
    CancelWaits,
    /// The primary crashes, and is away until it has started.
    Crash,
    /// The same, and the standby takes its place.
    FailOver,
    /// An older copy is put in its place.
    PutBack,
    KillAgent(usize),
    PauseAgent(usize),
    CutAgent(usize),
}

/// What the networks do, per mille.
#[derive(Default)]
pub struct Weather {
    /// Between servers and database.
    pub loss: u64,
    /// Between agents and servers.
    pub breaks: u64,
    /// Calls that arrive after they were given up.
    pub late: u64,
    pub slow: u64,
}

impl Scene {
    pub fn begin(&mut self, fault: Fault) -> Lawful {
        self.note(|| format!("begins: {fault:?}"));
        match fault {
            Fault::Kill(at) => {
                self.nodes[at].dies();
                self.close_connections(at);
                self.count("killed");
            }
            Fault::Pause(at) => self.nodes[at].is_paused = true,
            Fault::Freeze(at) => {
                let now = self.now;
                if !self.nodes[at].is_paused {
                    self.nodes[at].is_frozen(now);
                    self.count("frozen with its clock");
                }
            }
            Fault::Cut(at) => {
                self.nodes[at].is_cut = true;
                self.count("cut off");
            }
            Fault::Isolate(at) => {
                self.nodes[at].is_isolated = true;
                self.count("cut off from agents");
            }
            Fault::Terminate(at) => {
                if self.nodes[at].elector.role() == Role::Leader {
                    self.count("leader told to end");
                }
                self.nodes[at].elector.resign();
                self.drive(at);
            }
            Fault::Away => self.database.is_away = true,
            Fault::Stall => {
                self.database.is_stalled = true;
                self.count("standby of the database stalled");
            }
            Fault::CancelWaits => {
                self.count("a wait for the standby was canceled");
                self.database.cancel_waits()?;
            }
            Fault::Crash => {
                self.database.is_away = true;
                self.database.crash();
            }
            Fault::FailOver => {
                self.database.is_away = true;
                if self.database.fail_over(&mut self.rng) {
                    self.count("a seen write was lost");
                }
            }
            Fault::PutBack => {
                self.database.is_away = true;
                self.database.put_back();
                self.count("an older copy was put back");
            }
            Fault::KillAgent(who) => {
                self.count("agent killed");
                self.kill_agent(who);
            }
            Fault::PauseAgent(who) => self.agents[who].is_paused = true,
            Fault::CutAgent(who) => self.agents[who].is_cut = true,
        }
        Ok(())
    }

    pub fn end(&mut self, fault: Fault) -> Lawful {
        self.note(|| format!("ends: {fault:?}"));
        match fault {
            Fault::Kill(at) | Fault::Terminate(at) => {
                if !self.nodes[at].is_up {
                    self.start(at);
                }
            }
            Fault::Pause(at) | Fault::Freeze(at) => {
                let (now, call) = (self.now, self.number());
                let node = &mut self.nodes[at];
                let was_leader = node.elector.role() == Role::Leader;
                if was_leader && node.elector.term() != Some(self.database.record().term) {
                    self.count("a paused leader was replaced");
                }
                let (unread, unserved) = self.nodes[at].goes_on(now, call);
                for (id, answer) in unread {
                    self.read(at, id, answer)?;
                }
                for asked in unserved {
                    self.serve(at, asked)?;
                }
                self.drive(at);
            }
            Fault::Cut(at) => self.nodes[at].is_cut = false,
            Fault::Isolate(at) => self.nodes[at].is_isolated = false,
            Fault::Stall => self.database.is_stalled = false,
            Fault::Away | Fault::Crash | Fault::FailOver | Fault::PutBack => {
                self.database.is_away = false
            }
            Fault::CancelWaits => {}
            Fault::KillAgent(who) => {
                let label = self.agents[who].label;
                self.start_agent(label);
            }
            Fault::PauseAgent(who) => self.resume_agent(who),
            Fault::CutAgent(who) => self.agents[who].is_cut = false,
        }
        Ok(())
    }

    /// A random fault, and how long it lasts.
    fn fault(&mut self) -> (Fault, Ms) {
        let leader = self.trusted().first().copied();
        let any = self.rng.between(0, NODES - 1) as usize;
        let at = match self.rng.chance(700) {
            true => leader.unwrap_or(any),
            false => any,
        };
        match self.rng.between(0, 10) {
            0 => (Fault::Kill(at), self.rng.between(1, 30_000)),
            1 => {
                let lasts = self.rng.between(1_000, 30_000);
                if lasts > 10_000 {
                    self.count("paused > 10 s");
                }
                (Fault::Pause(at), lasts)
            }
            2 => (Fault::Cut(at), self.rng.between(1_000, 40_000)),
            3 => (Fault::Terminate(at), self.rng.between(100, 5_000)),
            4 => (Fault::CancelWaits, 1),
            5 => (Fault::Crash, self.rng.between(100, 5_000)),
            6 => (Fault::Freeze(at), self.rng.between(1_000, 40_000)),
            7 => (Fault::Isolate(at), self.rng.between(1_000, 40_000)),
            _ => self.outage(),
        }
    }

    /// A fault of the database that is no reason for a failover.
    fn outage(&mut self) -> (Fault, Ms) {
        let lasts = match self.rng.chance(150) {
            true => self.rng.between(40_000, 200_000),
            false => self.rng.between(100, 40_000),
        };
        if lasts > 60_000 {
            self.count("an outage > 60 s");
        }
        match self.rng.between(0, 2) {
            0 => (Fault::Away, lasts),
            1 => (Fault::Stall, lasts.min(60_000)),
            _ => (Fault::FailOver, lasts),
        }
    }

    /// A random fault of an agent, and how long it lasts.
    fn fault_of_an_agent(&mut self) -> Option<(Fault, Ms)> {
        let alive = (0..self.agents.len()).filter(|who| self.agents[*who].is_alive);
        let alive: Vec<usize> = alive.collect();
        let who = self.rng.pick(&alive);
        let lasts = self.rng.between(100, 60_000);
        match self.rng.between(0, 5) {
            0 => Some((Fault::KillAgent(who), lasts)),
            1 => Some((Fault::PauseAgent(who), lasts)),
            2 => Some((Fault::CutAgent(who), lasts)),
            _ => None,
        }
    }

    /// A write waits for the standby of the database, is seen, and may then be gone. Returns when it is over.
    fn lose_what_was_seen(&mut self) -> Ms {
        let stalls = self.rng.between(0, 10_000);
        let shows = stalls + self.rng.between(500, 5_000);
        let fails = shows + self.rng.between(100, 8_000);
        let ends = fails + self.rng.between(100, 20_000);
        let (shown, until) = match self.rng.chance(500) {
            true => (Fault::CancelWaits, shows),
            false => (Fault::Crash, shows + self.rng.between(50, 1_000)),
        };
        for (fault, begin, end) in [
            (Fault::Stall, stalls, ends),
            (shown, shows, until),
            (Fault::FailOver, fails, ends),
        ] {
            self.after(begin, Event::Begin(fault));
            self.after(end, Event::End(fault));
        }
        self.now + ends
    }

    /// A leader is frozen with its clock until it is replaced, and does not reach the database when it goes on: it
    /// believes for some seconds that it leads. Returns when it is over.
    fn thaw_a_leader(&mut self) -> Ms {
        let Some(at) = self.trusted().first().copied() else {
            return self.now;
        };
        self.count("a frozen leader was replaced");
        let frozen = self.rng.between(12_000, 25_000);
        let cut = frozen + self.rng.between(1_000, 10_000);
        self.after(0, Event::Begin(Fault::Freeze(at)));
        self.after(frozen, Event::End(Fault::Freeze(at)));
        self.after(1_000, Event::Begin(Fault::Cut(at)));
        self.after(cut, Event::End(Fault::Cut(at)));
        self.now + cut
    }

    /// Some faults at once, until the last is over.
    fn phase(&mut self) -> Lawful {
        self.weather = Weather {
            loss: self.rng.pick(&[0, 0, 50, 200]),
            breaks: match self.broken {
                Some(Broken::AgentsKeepTheTerm | Broken::MuteSaysNothing) => 300,
                _ => self.rng.pick(&[0, 20, 100]),
            },
            late: self.rng.pick(&[0, 0, 50]),
            slow: self.rng.pick(&[0, 0, 20, 100]),
        };
        let mut end = self.now;
        let mut faults = Vec::new();
        for _ in 0..self.rng.between(1, 4) {
            faults.push(self.fault());
        }
        faults.extend(self.fault_of_an_agent());
        for (fault, lasts) in faults {
            let begin = self.rng.between(0, 15_000);
            self.after(begin, Event::Begin(fault));
            self.after(begin + lasts, Event::End(fault));
            end = end.max(self.now + begin + lasts);
        }
        if self.rng.chance(300) {
            end = end.max(self.lose_what_was_seen());
        }
        let freezes = match self.broken {
            Some(Broken::AgentsKeepTheTerm) => 1_000,
            _ => 100,
        };
        if self.rng.chance(freezes) {
            end = end.max(self.thaw_a_leader());
        }
        let rest = self.rng.between(0, 5_000);
        self.run_until(end + rest)
    }

    /// Everybody is up and reaches the database: soon somebody leads.
    fn calm(&mut self) -> Lawful {
        self.note(|| "calm".into());
        self.weather = Weather::default();
        let settled = self.now + SETTLED;
        for (key, event) in std::mem::take(&mut self.queue) {
            match event {
                Event::Arrive(at, Call { id, .. }) | Event::Answer(at, id, _)
                    if key.0 > settled =>
                {
                    self.after(0, Event::GiveUp(at, id));
                }
                Event::GiveUp(at, id) => self.after(0, Event::GiveUp(at, id)),
                event => drop(self.queue.insert(key, event)),
            }
        }
        for at in 0..self.nodes.len() {
            if !self.nodes[at].is_up {
                self.start(at);
            }
        }
        self.run_until(settled + LEADS_WITHIN)?;
        if self.trusted().is_empty() {
            let roles: Vec<_> = self.nodes.iter().map(|node| node.elector.role()).collect();
            return Err(format!("somebody_leads: {roles:?}"));
        }
        Ok(())
    }

    /// The leader gets TERM, and nothing else happens. It begins in the calm.
    fn clean_end_alone(&mut self) -> Lawful {
        let Some(leader) = self.trusted().first().copied() else {
            return Ok(());
        };
        self.count("clean end alone");
        let before = self.database.record();
        self.begin(Fault::Terminate(leader))?;
        self.run_until(self.now + HANDED_OVER_WITHIN)?;
        let after = self.database.record();
        if after.term == before.term || self.trusted().is_empty() {
            return Err(format!("a_clean_end_takes_2_s: {before:?}, {after:?}"));
        }
        Ok(())
    }

    /// Something is wrong with the database, and with nothing else but a standby. It begins in the calm.
    fn outage_alone(&mut self) -> Lawful {
        let before = self.database.record();
        let (fault, lasts) = self.outage();
        self.count("outage alone");
        let other = (0..self.nodes.len()).find(|at| !self.trusted().contains(at));
        if let Some(at) = other
            && self.rng.chance(300)
        {
            self.count("standby stopped during an outage");
            self.begin(Fault::Pause(at))?;
            let wakes = lasts + self.rng.between(0, 2_000);
            self.after(wakes, Event::End(Fault::Pause(at)));
            self.run_until(self.now + 500)?;
        }
        let running: Vec<_> = { self.agents.iter() }
            .flat_map(|agent| agent.running().cloned())
            .collect();
        self.begin(fault)?;
        self.after_the_database();
        self.run_until(self.now + lasts)?;
        self.end(fault)?;
        self.after_the_database();
        self.run_until(self.now + SETTLED + LEADS_WITHIN)?;
        let after = self.database.record();
        let leader = self.trusted().first().copied();
        let Some(leader) = leader.filter(|_| after.is_same_leader(&before)) else {
            return Err(format!(
                "an_outage_is_no_failover: {fault:?} of {lasts} ms, {before:?}, {after:?}"
            ));
        };
        let registry = self.nodes[leader].registry.as_ref().expect("it leads");
        // A server that handles what it is asked while it is mute accepts a cancel of which no agent hears in time.
        let handles_cancels = !self.refuses_while_mute;
        let tasks = registry.core.tasks_by_key();
        for (_, task) in tasks.filter(|(_, task)| !(handles_cancels && task.is_canceled())) {
            for e in task.execution_views() {
                let key = (format!("{}.{}", task.id, e.n), e.attempt);
                if e.state == ExecutionState::Lost && running.contains(&key) {
                    return Err(format!(
                        "an_outage_is_no_failover: {fault:?} of {lasts} ms, {key:?} is lost: {}",
                        e.msg
                    ));
                }
            }
        }
        Ok(())
    }

    /// The database loses what it has acknowledged, and the leader is well. It begins in the calm.
    fn loss_alone(&mut self) -> Lawful {
        self.count("loss alone");
        self.database.keep_a_copy();
        let lasts = self.rng.between(500, 8_000);
        self.run_until(self.now + lasts)?;
        self.begin(Fault::PutBack)?;
        self.after_the_database();
        let lasts = self.rng.between(1, 3_000);
        self.run_until(self.now + lasts)?;
        self.end(Fault::PutBack)?;
        self.run_until(self.now + SETTLED + LEADS_WITHIN)?;
        if self.trusted().is_empty() {
            return Err("somebody_leads: after a database went back".into());
        }
        self.laws.what_was_said_is_there(&self.database.kept())
    }

    /// The database loses what it has acknowledged, and the servers die with it: the next leader loads less. It begins in
    /// the calm, and all agents are heard of in time.
    fn loss_with_the_leader(&mut self) -> Lawful {
        self.count("loss with the leader");
        // What waits for machines that appear when the copy is made, and runs until after the loss.
        let spare = self.rng.pick(&SPARE_LABELS);
        let leader = self.leader()?;
        for _ in 0..3 {
            let mut posted = Map::new();
            posted.insert("mode".into(), json!("any"));
            let mut spec = base_spec(spare, posted);
            spec.ttl = TimeSpan::from_secs(300);
            self.submit(leader, spec, Timeout::After(TimeSpan::from_secs(90)))?;
        }
        self.drive(leader);
        self.run_until(self.now + SETTLED)?;
        self.database.keep_a_copy();
        let said = self.laws.said_so_far();
        self.runs_long = true;
        self.start_agent(spare);
        self.start_agent(spare);
        let lasts = self.rng.between(500, 20_000);
        self.run_until(self.now + lasts)?;
        let leader = self.trusted().first().copied();
        if let Some(leader) = leader.filter(|_| self.rng.chance(300)) {
            // The next leader will have the term of the one that was lost.
            self.count("another led before a loss");
            self.begin(Fault::Terminate(leader))?;
            let lasts = self.rng.between(3_000, 20_000);
            self.run_until(self.now + lasts)?;
        }
        for at in 0..self.nodes.len() {
            self.begin(Fault::Kill(at))?;
        }
        self.begin(Fault::PutBack)?;
        self.after_the_database();
        let held = { self.agents.iter() }.flat_map(|agent| agent.running().cloned());
        let held = held.collect();
        self.runs_long = false;
        self.laws.lose(said, &self.database.kept(), &held);
        let lasts = self.rng.between(1, 3_000);
        self.run_until(self.now + lasts)?;
        self.end(Fault::PutBack)?;
        for at in 0..self.nodes.len() {
            self.end(Fault::Kill(at))?;
        }
        self.run_until(self.now + SETTLED + LEADS_WITHIN + FOUND_AND_OVER_WITHIN)?;
        match self.trusted().is_empty() {
            true => Err("somebody_leads: after a database was put back".into()),
            false => Ok(()),
        }
    }

    pub fn run(&mut self) -> Lawful {
        for label in LABELS {
            self.start_agent(label);
        }
        self.after(0, Event::User);
        self.calm()?;
        let (loses, loses_with_the_leader) = match self.broken {
            None => (200, 150),
            Some(Broken::LeaderHealsTheDatabase) => (1_000, 0),
            Some(rule) if rule.is_about_losses() => (0, 1_000),
            Some(_) => (0, 0),
        };
        for _ in 0..PHASES {
            self.phase()?;
            self.calm()?;
            if self.rng.chance(500) {
                self.outage_alone()?;
            }
            if self.rng.chance(300) {
                self.clean_end_alone()?;
            }
            if self.rng.chance(loses) && !self.trusted().is_empty() {
                self.loss_alone()?;
            }
            if self.rng.chance(loses_with_the_leader) && !self.trusted().is_empty() {
                self.loss_with_the_leader()?;
            }
        }
        self.everything_ends()?;
        self.laws.what_was_said_is_there(&self.database.kept())
    }

    /// No more faults and users: everything comes to its end, and a new task runs everywhere at once.
    fn everything_ends(&mut self) -> Lawful {
        self.is_over = true;
        self.calm()?;
        let bound = self.now + ENDS_WITHIN;
        loop {
            self.run_until(self.now + 1_000)?;
            let open = self.open();
            if open.is_none() {
                break;
            }
            if self.now > bound {
                return Err(open.unwrap_or_default());
            }
        }
        let leader = self.leader()?;
        let registry = self.nodes[leader].registry.as_ref().expect("it leads");
        self.laws.what_ran_is_reported(&registry.core)?;
        self.a_new_task_runs_everywhere()
    }

    fn leader(&self) -> Lawful<usize> {
        let leader = self.trusted().first().copied();
        leader.ok_or_else(|| "somebody_leads: in the end nobody does".into())
    }

    /// What has not ended or was not reported.
    fn open(&self) -> Option<String> {
        let Ok(leader) = self.leader() else {
            return Some("somebody_leads: in the end nobody does".into());
        };
        let core = &self.nodes[leader].registry.as_ref()?.core;
        let mut tasks = core.tasks_by_key();
        if let Some((_, task)) = tasks.find(|(key, _)| !core.is_finished(*key)) {
            let executions: Vec<_> = task.execution_views().collect();
            return Some(format!(
                "what_was_accepted_ends: {} {executions:?}",
                task.id
            ));
        }
        let busy = self.agents.iter().find(|agent| agent.is_busy());
        busy.map(|agent| format!("what_ran_is_reported: {agent:?}"))
    }

    fn a_new_task_runs_everywhere(&mut self) -> Lawful {
        let leader = self.leader()?;
        let mut posted = Map::new();
        posted.insert("mode".into(), json!("all"));
        let mut spec = base_spec(".*", posted);
        spec.ttl = TimeSpan::from_secs(60);
        let id = self.submit(leader, spec, Timeout::After(TimeSpan::from_secs(5)))?;
        self.drive(leader);
        self.run_until(self.now + RUNS_WITHIN)?;
        let leader = self.leader()?;
        let registry = self.nodes[leader].registry.as_ref().expect("it leads");
        let task = { registry.core.find_task(&id) }.and_then(|key| registry.core.show(key));
        let task = task.map_err(|refusal| format!("a_new_task_runs_everywhere: {refusal:?}"))?;
        let alive = self.agents.iter().filter(|agent| agent.is_alive).count();
        let ran = task.execution_views().filter(|e| {
            let is_well = [
                ExecutionState::Succeeded,
                ExecutionState::Failed,
                ExecutionState::TimedOut,
            ];
            is_well.contains(&e.state)
        });
        if ran.count() != alive {
            let views: Vec<_> = task.execution_views().collect();
            return Err(format!(
                "a_new_task_runs_everywhere: {alive} agents, {views:?}"
            ));
        }
        Ok(())
    }
}
