//! Thousands of simulated agents in one thread, over non-blocking sockets and epoll: real ones would
//! not fit beside the server that is measured.
//!
//! Each does what an agent does: it polls on a connection of its own that is kept alive, if the server
//! lets it; with an order it polls again at once, naming what it holds, and reports the result as fast
//! as it can on another connection, a new one each time, as an agent does that had nothing to report
//! for a while. What it was ordered it does not run. Thousands of machines would read their orders at
//! the same time; here one thread does, so what has come is read before anything is done about it.

use crate::messages;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use serde::de::IgnoredAny;
use sidebike::wire::Envelope;
use sidebike::wire::agent::{AttemptId, Ended, Orders, Poll, Taken};
use sidebike::wire::duration::TimeSpan;
use sidebike::wire::task::ExecutionState;
use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long an agent lets its poll be held, as the real one does.
const WAIT: TimeSpan = TimeSpan::from_secs(25);
/// Agents that connect at once at the beginning, and the time they get: the listener's backlog has
/// an end, and a connection that does not fit tries again only a second later.
const AT_ONCE: usize = 500;
const AT_ONCE_EVERY: Duration = Duration::from_millis(20);
/// Source addresses, from 127.0.1.1 on: a closed connection keeps its port for a minute, and one
/// address has 28,000 of them.
const ADDRESSES: u32 = 200;
const FIRST_ADDRESS: u32 = u32::from_be_bytes([127, 0, 1, 1]);
/// The longest the loop sleeps, so that it sees that it is to end.
const NAP: Duration = Duration::from_millis(20);
/// Commands that an agent would run at once.
const JOBS: u32 = 4;
/// So many go on before it is looked again whether something has come.
const MOVES_AT_ONCE: usize = 100;
/// The pause before a poll that was refused is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// What has happened since it was last reset.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Orders to start something.
    pub orders: usize,
    /// Results that the server has taken.
    pub taken: usize,
    /// Answers that did not go well, and connections that ended without one.
    pub failures: usize,
    /// When the last order came.
    pub last_order: Option<Instant>,
    /// When the last result was taken.
    pub last_taken: Option<Instant>,
}

struct Agent {
    instance: String,
    label: String,
    tags: BTreeMap<String, String>,
    seq: u64,
    holds: Vec<AttemptId>,
    /// The connection of its last poll, if that is still there.
    line: Option<usize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Call {
    Poll,
    Done,
}

/// A connection, and the request on it.
struct Line {
    socket: OwnedFd,
    agent: usize,
    call: Call,
    request: Vec<u8>,
    answer: Vec<u8>,
}

/// The agents.
pub struct Fleet {
    server: SocketAddrV4,
    epoll: OwnedFd,
    agents: Vec<Agent>,
    lines: Vec<Option<Line>>,
    free: Vec<usize>,
    again: Vec<(Instant, usize)>,
    /// Who has to poll again, and to report these.
    todo: VecDeque<(usize, Vec<AttemptId>)>,
    tally: Tally,
    buffer: Vec<u8>,
}

impl Fleet {
    /// So many agents, all polling. Ten have each of the labels `g0`, `g1`, …, followed by `-`. Their
    /// first polls wait differently long, so that the later ones are spread evenly.
    pub fn start(server: SocketAddr, count: usize) -> Result<Fleet, String> {
        static FLEETS: AtomicU32 = AtomicU32::new(0);
        let fleet = FLEETS.fetch_add(1, Ordering::Relaxed);
        let SocketAddr::V4(server) = server else {
            return Err("a fleet speaks IPv4 only".into());
        };
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(|why| format!("epoll: {why}"))?;
        let agent = |n: usize| Agent {
            instance: format!("{fleet:04x}{n:012x}"),
            label: format!("g{}-{n}", n / 10),
            // Twenty tags in all.
            tags: BTreeMap::from([
                ("zone".into(), format!("z{}", n % 10)),
                ("role".into(), format!("r{}", n / 10 % 10)),
            ]),
            seq: 0,
            holds: Vec::new(),
            line: None,
        };
        let mut fleet = Fleet {
            server,
            epoll,
            agents: (0..count).map(agent).collect(),
            lines: Vec::new(),
            free: Vec::new(),
            again: Vec::new(),
            todo: VecDeque::new(),
            tally: Tally::default(),
            buffer: vec![0; 64 * 1024],
        };
        for n in 0..count {
            let spread = WAIT.as_millis() * (n as u64 + 1) / count as u64;
            fleet.poll(n, TimeSpan::from_millis(spread.max(1_000)))?;
            if (n + 1).is_multiple_of(AT_ONCE) {
                fleet.run(AT_ONCE_EVERY, |_| false)?;
            }
        }
        Ok(fleet)
    }

    /// Goes on until it is enough, or the time is over. Whether it was enough.
    pub fn run(&mut self, span: Duration, enough: impl Fn(&Tally) -> bool) -> Result<bool, String> {
        let end = Instant::now() + span;
        let mut events = Vec::with_capacity(1_024);
        while !enough(&self.tally) {
            let now = Instant::now();
            if now >= end {
                return Ok(false);
            }
            self.poll_again(now)?;
            let nap = match self.todo.is_empty() {
                true => NAP.min(end - now),
                false => Duration::ZERO,
            };
            let nap = nap.try_into().ok();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), nap.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(why) => return Err(format!("epoll: {why}")),
            }
            let is_all = events.len() < events.capacity();
            for event in events.drain(..) {
                self.look_at(event.data.u64() as usize)?;
            }
            for _ in 0..if is_all { MOVES_AT_ONCE } else { 0 } {
                let Some((n, ids)) = self.todo.pop_front() else {
                    break;
                };
                self.poll(n, WAIT)?;
                if !ids.is_empty() {
                    self.report(n, &ids)?;
                }
            }
        }
        Ok(true)
    }

    /// What has happened.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Begins to count anew.
    pub fn reset(&mut self) {
        self.tally = Tally::default();
    }

    /// Goes on in a thread of its own until it is ended.
    pub fn in_background(mut self) -> Background {
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let thread = thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                self.run(NAP, |_| false)?;
            }
            Ok(self)
        });
        Background { over, thread }
    }

    fn poll(&mut self, n: usize, wait: TimeSpan) -> Result<(), String> {
        let agent = &mut self.agents[n];
        agent.seq += 1;
        let poll = Poll {
            tags: agent.tags.clone(),
            host: "bench".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            jobs: JOBS,
            wait,
            ..messages::poll(&agent.instance, agent.seq, &agent.label, &agent.holds)
        };
        let body = serde_json::to_vec(&poll).map_err(|why| why.to_string())?;
        self.open(n, Call::Poll, &body)
    }

    fn report(&mut self, n: usize, ids: &[AttemptId]) -> Result<(), String> {
        let ended = |id: &AttemptId| Ended {
            exit_code: Some(0),
            duration_ms: Some(1),
            ..messages::ended(id, ExecutionState::Succeeded)
        };
        let results = ids.iter().map(ended).collect();
        let done = messages::done(&self.agents[n].instance, results);
        let body = serde_json::to_vec(&done).map_err(|why| why.to_string())?;
        self.open(n, Call::Done, &body)
    }

    fn open(&mut self, agent: usize, call: Call, body: &[u8]) -> Result<(), String> {
        let path = match call {
            Call::Poll => "poll",
            Call::Done => "done",
        };
        let closes = match call {
            Call::Poll => "",
            Call::Done => "Connection: close\r\n",
        };
        let head = format!(
            "POST /api/v1/agent/{path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n{closes}\r\n",
            self.server,
            body.len()
        );
        let request = [head.as_bytes(), body].concat();
        if call == Call::Poll
            && let Some(at) = self.agents[agent].line.take()
            && let Some(line) = self.lines[at].as_mut()
        {
            line.request = request;
            line.answer.clear();
            return self.look_at(at);
        }
        let socket = self.connect(agent).map_err(|why| {
            let open = self.lines.len() - self.free.len();
            format!("a connection beside {open} others: {why}")
        })?;
        let line = Line {
            socket,
            agent,
            call,
            request,
            answer: Vec::new(),
        };
        let at = self.free.pop().unwrap_or(self.lines.len());
        if at == self.lines.len() {
            self.lines.push(None);
        }
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let data = EventData::new_u64(at as u64);
        epoll::add(&self.epoll, &line.socket, data, flags)
            .map_err(|why| format!("epoll: {why}"))?;
        self.lines[at] = Some(line);
        Ok(())
    }

    fn connect(&self, agent: usize) -> rustix::io::Result<OwnedFd> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        let from = Ipv4Addr::from(FIRST_ADDRESS + agent as u32 % ADDRESSES);
        net::bind(&socket, &SocketAddrV4::new(from, 0))?;
        match net::connect(&socket, &self.server) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(why) => Err(why),
        }
    }

    /// Sends and reads what can be on a connection.
    fn look_at(&mut self, at: usize) -> Result<(), String> {
        // An event of one that is over says nothing.
        let Some(line) = self.lines.get_mut(at).and_then(Option::as_mut) else {
            return Ok(());
        };
        let mut is_over = false;
        if !line.request.is_empty() {
            match rustix::io::write(&line.socket, &line.request) {
                Ok(sent) => drop(line.request.drain(..sent)),
                // Not connected yet.
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => is_over = true,
            }
        }
        while !is_over {
            match rustix::io::read(&line.socket, &mut self.buffer[..]) {
                Ok(0) => is_over = true,
                Ok(n) => line.answer.extend_from_slice(&self.buffer[..n]),
                Err(Errno::AGAIN) => break,
                Err(_) => is_over = true,
            }
            is_over |= answered(&line.answer).is_some();
        }
        if !is_over {
            return Ok(());
        }
        let answer = std::mem::take(&mut line.answer);
        let (agent, call) = (line.agent, line.call);
        if call == Call::Poll && answered(&answer).is_some() && !closes(&answer) {
            self.agents[agent].line = Some(at);
        } else {
            self.lines[at] = None;
            self.free.push(at);
        }
        self.over(agent, call, &answer)
    }

    /// A request has its answer, or its connection has ended without one.
    fn over(&mut self, n: usize, call: Call, answer: &[u8]) -> Result<(), String> {
        let body = answered(answer).unwrap_or_default();
        match call {
            Call::Poll => match serde_json::from_slice::<Envelope<Orders<IgnoredAny>>>(body) {
                Ok(answer) => self.obey(n, answer.data),
                Err(_) => {
                    self.tally.failures += 1;
                    self.again.push((Instant::now() + PAUSE, n));
                    Ok(())
                }
            },
            Call::Done => match serde_json::from_slice::<Envelope<Taken<IgnoredAny>>>(body) {
                Ok(answer) => {
                    let results = answer.data.results;
                    let holds = &mut self.agents[n].holds;
                    holds.retain(|id| results.iter().all(|verdict| verdict.id != *id));
                    self.tally.taken += results.iter().filter(|verdict| verdict.taken).count();
                    self.tally.last_taken = Some(Instant::now());
                    Ok(())
                }
                Err(_) => {
                    self.tally.failures += 1;
                    let holds = self.agents[n].holds.clone();
                    self.report(n, &holds)
                }
            },
        }
    }

    fn obey(&mut self, n: usize, orders: Orders<IgnoredAny>) -> Result<(), String> {
        let holds = &mut self.agents[n].holds;
        holds.retain(|id| !orders.forget.contains(id) && !orders.cancel.contains(id));
        let new: Vec<AttemptId> = { orders.start.into_iter() }
            .map(|assignment| assignment.id)
            .filter(|id| !holds.contains(id))
            .collect();
        holds.extend_from_slice(&new);
        if !new.is_empty() {
            self.tally.orders += new.len();
            self.tally.last_order = Some(Instant::now());
        }
        self.todo.push_back((n, new));
        Ok(())
    }

    fn poll_again(&mut self, now: Instant) -> Result<(), String> {
        let (due, later) = { self.again.drain(..) }.partition(|(when, _)| *when <= now);
        self.again = later;
        let due: Vec<(Instant, usize)> = due;
        due.into_iter().try_for_each(|(_, n)| self.poll(n, WAIT))
    }
}

/// The body of a whole answer of status 200, empty for any other status; `None` while it is not all there.
fn answered(answer: &[u8]) -> Option<&[u8]> {
    const STATUS: &[u8] = b"HTTP/1.1 200 ";
    let ends = answer.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let (head, body) = answer.split_at(ends);
    let mut lines = std::str::from_utf8(head).ok()?.split("\r\n");
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let length = value.trim().parse::<usize>();
        length
            .ok()
            .filter(|_| name.eq_ignore_ascii_case("Content-Length"))
    })?;
    if body.len() < length {
        return None;
    }
    Some(if head.starts_with(STATUS) { body } else { b"" })
}

/// Whether the server ends the connection after this answer.
fn closes(answer: &[u8]) -> bool {
    const MARK: &[u8] = b"\r\nConnection: close\r\n";
    answer.windows(MARK.len()).any(|part| part == MARK)
}

/// A fleet that goes on by itself.
pub struct Background {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<Fleet, String>>,
}

impl Background {
    /// Ends that; what is held stays held for as long as the fleet is kept.
    pub fn end(self) -> Result<Fleet, String> {
        self.over.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(fleet) => fleet,
            Err(_) => Err("the fleet's thread failed".into()),
        }
    }
}
