//! A model of what is around the table: a peer, a service, and a slot that connections use one after the other. It
//! checks what must never happen, whatever the order of events. For tests, and for the fuzz target `connection`.

use super::{Action, Event, Lifecycle, State};

/// What a model of driver, peer and service does with one connection slot that is used again and again.
#[derive(Default)]
struct Model {
    /// Requests that the present peer has sent and that are not parsed yet.
    unparsed: u32,
    /// Answers that the service still owes: connection, number.
    pending: Vec<(u32, u32)>,
    /// Requests served and answered of the present connection.
    served: u32,
    answered: u32,
    /// The present connection: counted, as a slot's generation is.
    generation: u32,
    last_sent: bool,
}

/// Drives the table, with the check of generations that the slab makes: together no answer reaches the wrong request.
/// `choose(n)` gives a number below n, or `None` when it is over.
pub fn run(name: &str, mut choose: impl FnMut(u32) -> Option<u32>) {
    let mut life = Lifecycle::new();
    let mut model = Model::default();
    for step in 0.. {
        let at = format!("{name}, step {step}, {life:?}");
        let Some(choice) = choose(36) else { return };
        let event = match choice {
            0 => Event::Part,
            1 => Event::HeadWithBody,
            2 | 3 => {
                model.unparsed += 1;
                Event::Request
            }
            4 => Event::Refused,
            5 => Event::End,
            6 => Event::Lost,
            7 => Event::Late,
            8 => Event::Shed,
            9..=14 => Event::Sent,
            15 => Event::StreamEnd,
            17 => Event::StreamWhole,
            32 => Event::Forward,
            33 => Event::Relay,
            // What the edge says where the other server has said nothing.
            34 if life.state() == State::Forwarding => Event::Answer(life.number()),
            16 => {
                life.note_last();
                Event::Sent
            }
            _ => {
                if model.pending.is_empty() {
                    continue;
                }
                // Any of those that are owed, also of connections that are long gone.
                let Some(at) = choose(model.pending.len() as u32) else {
                    return;
                };
                let at = at as usize;
                let (generation, number) = model.pending[at];
                if generation != model.generation {
                    model.pending.remove(at);
                    continue;
                }
                let Some(choice) = choose(5) else { return };
                match choice {
                    0 => Event::Hold(number),
                    1 => Event::Stream(number),
                    2 => Event::Dropped(number),
                    _ => Event::Answer(number),
                }
            }
        };
        let before = life.state();
        let action = life.on(event);
        match action {
            Action::Serve(number) => {
                assert!(!model.last_sent, "served after the end was sent: {at}");
                assert_eq!(model.served, model.answered, "two at once: {at}");
                model.served += 1;
                assert_eq!(number, model.served, "out of order: {at}");
                model.pending.push((model.generation, number));
            }
            Action::Forward => {
                assert!(!model.last_sent, "forwarded after the end was sent: {at}");
                assert_eq!(model.served, model.answered, "two at once: {at}");
                model.served += 1;
            }
            Action::Write | Action::Pull | Action::RefuseTruncated => {
                assert!(!model.last_sent, "written after the end was sent: {at}");
                match event {
                    Event::Answer(n) | Event::Stream(n) => {
                        let unanswered =
                            matches!(before, State::Serving | State::Held | State::Forwarding);
                        assert!(unanswered, "{at}");
                        assert_eq!(n, model.served, "another request's answer: {at}");
                        model.answered += 1;
                        assert_eq!(model.answered, model.served, "answered twice: {at}");
                    }
                    Event::Relay => {
                        assert_eq!(before, State::Forwarding, "{at}");
                        model.answered += 1;
                        assert_eq!(model.answered, model.served, "answered twice: {at}");
                    }
                    Event::Refused | Event::End => {
                        if before == State::Forwarding {
                            model.answered += 1;
                        }
                        assert_eq!(model.served, model.answered, "{at}");
                        assert!(life.is_last, "{at}");
                    }
                    Event::Sent | Event::StreamEnd | Event::StreamWhole => {}
                    _ => panic!("writes on {event:?}: {at}"),
                }
                if let Event::Answer(n) | Event::Stream(n) = event {
                    // The service answers once; a second attempt must change nothing.
                    let again = life.clone().on(Event::Answer(n));
                    assert_eq!(again, Action::Wait, "{at}");
                    model.pending.retain(|p| *p != (model.generation, n));
                }
            }
            Action::Linger => {
                assert!(life.is_last, "{at}");
                model.last_sent = true;
            }
            Action::Next => assert!(!life.is_last, "{at}"),
            Action::Close | Action::Abandon => {
                assert_eq!(life.state(), State::Closed, "{at}");
                let held = before == State::Held && event == Event::Lost;
                assert_eq!(action == Action::Abandon, held, "{at}");
                // The slot goes to the next connection; what is owed to this one stays owed.
                life = Lifecycle::new();
                model.generation += 1;
                (model.served, model.answered, model.last_sent) = (0, 0, false);
            }
            Action::ReadBody | Action::Wait | Action::Probe => {}
        }
    }
}
