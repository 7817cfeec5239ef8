//! The life of a connection: what happens in each state on each event. No socket, no clock.
//!
//! The driver (`connection`) does the I/O, tells this table what came of it, and does what the table answers.
//! Every cell is filled: an event that means nothing in a state is ignored explicitly, and a late answer of an
//! earlier request is recognized by its number. `model` drives it through random orders of events. To add an event: the compiler names each cell.

#[cfg(any(test, fuzzing))]
pub mod model;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing of the next request has come.
    Idle,
    /// Part of a head (or of a TLS handshake) has come.
    ReadingHead,
    /// The head is whole, the body is not.
    ReadingBody,
    /// The service works on the request.
    Serving,
    /// The service keeps the request until there is something to answer.
    Held,
    /// Another server has the request, all of it or some, and its answer has not begun.
    Forwarding,
    /// The other server's answer is written as it comes.
    Relaying,
    /// An answer is being written.
    Writing,
    /// An answer is written as its stream gives it.
    Streaming,
    /// The last answer was sent; what the peer still sends is thrown away so that it can read the answer.
    Lingering,
    /// Over.
    Closed,
}

/// What happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Bytes came that do not make a whole head.
    Part,
    /// A head is whole, its request has a body.
    HeadWithBody,
    /// A request is whole.
    Request,
    /// A head is whole, its request goes to another server, its body as it comes.
    Forward,
    /// The other server's answer has begun.
    Relay,
    /// What came is not to be served, or its head was refused. The answer is the connection's last.
    Refused,
    /// The service keeps request number N.
    Hold(u32),
    /// The service has answered request number N; or, where another server should have done so, the edge.
    Answer(u32),
    /// The service answers request number N with a stream.
    Stream(u32),
    /// The service has dropped request number N without an answer.
    Dropped(u32),
    /// Everything that was to be written is written.
    Sent,
    /// The stream, or the other server, has given its last part.
    StreamEnd,
    /// The same, and the client knows that it was the last part: another request may follow.
    StreamWhole,
    /// The peer has closed its sending side, and nothing of what it sent is left to be parsed.
    End,
    /// The connection is broken.
    Lost,
    /// Its time is up.
    Late,
    /// It is closed so that another connection can be accepted, or another request has memory.
    Shed,
}

/// What the driver has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing: wait for the next event.
    Wait,
    /// Read the body.
    ReadBody,
    /// Give the request with this number to the service.
    Serve(u32),
    /// Give it to another server.
    Forward,
    /// Write the answer.
    Write,
    /// Ask the stream for its first part.
    Pull,
    /// Look for the next request.
    Next,
    /// Close the sending side and wait for the peer's end.
    Linger,
    /// Check whether the peer is still there: it has closed its sending side, perhaps both.
    Probe,
    /// Answer that the body is not whole; the connection's last answer.
    RefuseTruncated,
    /// Close.
    Close,
    /// Close, and tell the service that nobody waits for its answer any more.
    Abandon,
}

/// The state of one connection.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    state: State,
    /// The number of the request that was read last. Wraps: an answer 2^32 requests late is of no concern.
    number: u32,
    /// The answer to the present request is the connection's last.
    is_last: bool,
}

impl Lifecycle {
    /// A connection that was just accepted.
    pub fn new() -> Self {
        Lifecycle {
            state: State::Idle,
            number: 0,
            is_last: false,
        }
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        self.state
    }

    /// The number of its present request.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// How many requests it had.
    pub fn had_requests(&self) -> bool {
        self.number > 0
    }

    /// Notes that the present request is the connection's last.
    pub fn note_last(&mut self) {
        self.is_last = true;
    }

    /// Takes in an event: the next state, and what to do.
    pub fn on(&mut self, event: Event) -> Action {
        use Action as A;
        use Event as E;
        use State as S;
        let is_current = |number: u32| number == self.number;
        let (state, action) = match (self.state, event) {
            // A late answer, of an earlier request.
            (state, E::Hold(n) | E::Answer(n) | E::Stream(n) | E::Dropped(n)) if !is_current(n) => {
                (state, A::Wait)
            }
            (S::Closed, _) => (S::Closed, A::Wait),

            // Between requests.
            (S::Idle | S::ReadingHead, E::Part) => (S::ReadingHead, A::Wait),
            (S::Idle | S::ReadingHead, E::HeadWithBody) => (S::ReadingBody, A::ReadBody),
            (S::Idle | S::ReadingHead | S::ReadingBody, E::Request) => {
                self.number = self.number.wrapping_add(1);
                (S::Serving, A::Serve(self.number))
            }
            (S::Idle | S::ReadingHead, E::Forward) => {
                self.number = self.number.wrapping_add(1);
                (S::Forwarding, A::Forward)
            }
            (S::Idle | S::ReadingHead | S::ReadingBody, E::Refused) => {
                self.is_last = true;
                (S::Writing, A::Write)
            }
            // Half a head never runs; a body that ends early is said to, and never runs either.
            (S::Idle | S::ReadingHead, E::End) => (S::Closed, A::Close),
            (S::ReadingBody, E::End) => {
                self.is_last = true;
                (S::Writing, A::RefuseTruncated)
            }
            (S::ReadingBody, E::Part | E::HeadWithBody | E::Forward) => (S::ReadingBody, A::Wait),
            (
                S::Idle | S::ReadingHead | S::ReadingBody,
                E::Hold(_) | E::Answer(_) | E::Stream(_) | E::Dropped(_),
            ) => (self.state, A::Wait),
            (
                S::Idle | S::ReadingHead | S::ReadingBody,
                E::Sent | E::StreamEnd | E::StreamWhole | E::Relay,
            ) => (self.state, A::Wait),
            (S::Idle | S::ReadingHead | S::ReadingBody, E::Lost | E::Late | E::Shed) => {
                (S::Closed, A::Close)
            }

            // With the service. Its time is the service's business, and it is never given up.
            (S::Serving | S::Held, E::Answer(_)) => (S::Writing, A::Write),
            (S::Serving | S::Held, E::Stream(_)) => (S::Streaming, A::Pull),
            (S::Serving | S::Held, E::Hold(_)) => (S::Held, A::Wait),
            (S::Serving | S::Held, E::Dropped(_)) => (S::Closed, A::Close),
            (S::Serving, E::End) => (S::Serving, A::Wait),
            (S::Held, E::End) => (S::Held, A::Probe),
            (S::Serving, E::Lost) => (S::Closed, A::Close),
            (S::Held, E::Lost) => (S::Closed, A::Abandon),
            (
                S::Serving | S::Held,
                E::Part | E::HeadWithBody | E::Request | E::Refused | E::Forward | E::Relay,
            ) => (self.state, A::Wait),
            (S::Serving | S::Held, E::Sent | E::StreamEnd | E::StreamWhole | E::Late | E::Shed) => {
                (self.state, A::Wait)
            }

            // With another server. Nothing of an answer was sent yet: what goes wrong can be said.
            (S::Forwarding, E::Relay) => (S::Relaying, A::Write),
            (S::Forwarding, E::Answer(_)) => (S::Writing, A::Write),
            (S::Forwarding, E::Refused) => {
                self.is_last = true;
                (S::Writing, A::Write)
            }
            (S::Forwarding, E::End) => (S::Forwarding, A::Probe),
            // Half an answer was sent: if the rest does not come, only the end of the connection can tell.
            (S::Relaying, E::StreamEnd) => {
                self.is_last = true;
                (S::Writing, A::Write)
            }
            (S::Relaying, E::StreamWhole) => (S::Writing, A::Write),
            (S::Relaying, E::End | E::Relay | E::Answer(_) | E::Refused) => (S::Relaying, A::Wait),
            (S::Forwarding, E::StreamEnd | E::StreamWhole) => (S::Forwarding, A::Wait),
            (S::Forwarding | S::Relaying, E::Lost | E::Late | E::Shed) => (S::Closed, A::Close),
            (
                S::Forwarding | S::Relaying,
                E::Part | E::HeadWithBody | E::Request | E::Forward | E::Sent,
            ) => (self.state, A::Wait),
            (S::Forwarding | S::Relaying, E::Hold(_) | E::Stream(_) | E::Dropped(_)) => {
                (self.state, A::Wait)
            }

            // On the way back.
            (S::Writing, E::Sent) if self.is_last => (S::Lingering, A::Linger),
            (S::Writing, E::Sent) => (S::Idle, A::Next),
            (S::Streaming, E::Sent) => (S::Streaming, A::Pull),
            (S::Streaming, E::StreamEnd) => {
                self.is_last = true;
                (S::Writing, A::Write)
            }
            (S::Streaming, E::StreamWhole) => (S::Writing, A::Write),
            (S::Writing, E::StreamEnd | E::StreamWhole) => (S::Writing, A::Wait),
            (S::Writing | S::Streaming, E::End) => (self.state, A::Wait),
            (S::Writing | S::Streaming, E::Lost | E::Late | E::Shed) => (S::Closed, A::Close),
            (
                S::Writing | S::Streaming,
                E::Part | E::HeadWithBody | E::Request | E::Refused | E::Forward | E::Relay,
            ) => (self.state, A::Wait),
            (
                S::Writing | S::Streaming,
                E::Hold(_) | E::Answer(_) | E::Stream(_) | E::Dropped(_),
            ) => (self.state, A::Wait),

            // After the last answer nothing is parsed, served or written.
            (S::Lingering, E::End | E::Lost | E::Late | E::Shed) => (S::Closed, A::Close),
            (
                S::Lingering,
                E::Part | E::HeadWithBody | E::Request | E::Refused | E::Forward | E::Relay,
            ) => (S::Lingering, A::Wait),
            (S::Lingering, E::Hold(_) | E::Answer(_) | E::Stream(_) | E::Dropped(_)) => {
                (S::Lingering, A::Wait)
            }
            (S::Lingering, E::Sent | E::StreamEnd | E::StreamWhole) => (S::Lingering, A::Wait),
        };
        self.state = state;
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small random number generator (xorshift), so that a failure names the seed that repeats it.
    struct Random(u64);

    impl Random {
        fn below(&mut self, most: u32) -> u32 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 33) as u32 % most
        }
    }

    #[test]
    fn each_request_is_answered_once_in_order_and_never_by_anothers_answer() {
        for seed in 1..=400 {
            let (mut random, mut steps) = (Random(seed), 0);
            model::run(&format!("seed {seed}"), |most| {
                steps += 1;
                (steps < 4_000).then(|| random.below(most))
            });
        }
    }

    #[test]
    fn nothing_is_given_up_while_the_service_has_it() {
        for event in [Event::Late, Event::Shed, Event::End] {
            let mut life = Lifecycle::new();
            assert_eq!(life.on(Event::Request), Action::Serve(1));
            life.on(event);
            life.on(Event::Hold(1));
            life.on(event);
            assert_eq!(life.state(), State::Held);
            assert_eq!(life.on(Event::Answer(1)), Action::Write);
        }
    }

    #[test]
    fn another_servers_answer_is_not_mended_once_it_has_begun() {
        let forwarded = || {
            let mut life = Lifecycle::new();
            assert_eq!(life.on(Event::Forward), Action::Forward);
            life
        };
        let mut life = forwarded();
        assert_eq!(life.on(Event::Answer(1)), Action::Write);
        assert_eq!(life.on(Event::Relay), Action::Wait);
        let mut life = forwarded();
        assert_eq!(life.on(Event::Relay), Action::Write);
        for event in [Event::Answer(1), Event::Refused, Event::Sent] {
            assert_eq!(life.on(event), Action::Wait);
        }
        assert_eq!(life.on(Event::StreamWhole), Action::Write);
        assert_eq!(life.on(Event::Sent), Action::Next);
    }

    #[test]
    fn a_truncated_body_is_answered_and_never_served() {
        let mut life = Lifecycle::new();
        assert_eq!(life.on(Event::HeadWithBody), Action::ReadBody);
        assert_eq!(life.on(Event::End), Action::RefuseTruncated);
        assert_eq!(life.on(Event::Request), Action::Wait);
        assert_eq!(life.on(Event::Sent), Action::Linger);
    }
}
