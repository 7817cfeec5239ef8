//! Orders that the pipe to the guard did not take: they are kept, and those that have become needless are dropped.

use super::record::Order;
use std::collections::VecDeque;

/// Orders that the pipe did not take.
#[derive(Default)]
pub struct Unsent {
    orders: VecDeque<Order>,
    /// A record that the pipe may have taken a part of, and how much.
    begun: Option<(Vec<u8>, usize)>,
}

impl Unsent {
    /// How many orders are kept, beside one that may be written in part.
    pub fn len(&self) -> usize {
        self.orders.len()
    }

    /// Whether the pipe has taken everything.
    pub fn is_empty(&self) -> bool {
        self.orders.is_empty() && self.begun.is_none()
    }

    /// Keeps an order. If the guard has not been told of the attempt that it removes, it need not be; of two orders
    /// that say that all is well the later one is enough.
    pub fn push(&mut self, order: Order) {
        match &order {
            Order::Remove(key) => {
                let is_add = |it: &Order| matches!(it, Order::Add(added) if added == key);
                if self.orders.iter().any(is_add) {
                    self.drop_of(key, |it| matches!(it, Order::Add(_) | Order::SetGroup(..)));
                    return;
                }
            }
            Order::Disarm(key) => {
                let is_arm = |it: &Order| matches!(it, Order::Arm(armed, ..) if armed == key);
                if self.orders.iter().any(is_arm) {
                    self.drop_of(key, |_| true);
                    return;
                }
                self.drop_of(key, |it| matches!(it, Order::Undoing(..)));
            }
            Order::Undoing(key, _) => self.drop_of(key, |it| matches!(it, Order::Undoing(..))),
            Order::Contact(_) => self.orders.retain(|it| !matches!(it, Order::Contact(_))),
            Order::Add(_)
            | Order::SetGroup(..)
            | Order::ReportTo(_)
            | Order::Arm(..)
            | Order::Output(..)
            | Order::Ended(..) => {}
        }
        self.orders.push_back(order);
    }

    fn drop_of(&mut self, key: &str, is_needless: impl Fn(&Order) -> bool) {
        { &mut self.orders }.retain(|it| it.key() != Some(key) || !is_needless(it));
    }

    /// The record that is to be written next, and how much of it was.
    pub fn begin(&mut self) -> Option<(&[u8], &mut usize)> {
        if { self.begun.as_ref() }.is_none_or(|(record, written)| *written == record.len()) {
            let order = self.orders.pop_front();
            self.begun = order.map(|order| (order.encode(), 0));
        }
        let (record, written) = self.begun.as_mut()?;
        Some((record, written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::Pid;

    #[test]
    fn a_guard_that_does_not_read_is_told_what_still_runs() {
        let key = |n: u32| n.to_string();
        let mut unsent = Unsent::default();
        unsent.push(Order::Remove(key(0)));
        for n in 1..=100 {
            unsent.push(Order::Add(key(n)));
            unsent.push(Order::SetGroup(key(n), Pid::INIT, 7));
            if n != 50 {
                unsent.push(Order::Remove(key(n)));
            }
        }
        let expected = [
            Order::Remove(key(0)),
            Order::Add(key(50)),
            Order::SetGroup(key(50), Pid::INIT, 7),
        ];
        assert_eq!(unsent.orders, expected);
    }

    #[test]
    fn what_is_disarmed_before_the_guard_knows_of_it_is_not_told() {
        let key = || "a".to_owned();
        let mut unsent = Unsent::default();
        for order in [
            Order::Contact(1),
            Order::Arm(key(), 1, (*b"{}").into()),
            Order::SetGroup(key(), Pid::INIT, 2),
            Order::Output(key(), b"out".into()),
            Order::Undoing(key(), 2),
            Order::Undoing(key(), 3),
            Order::Contact(2),
            Order::Disarm("b".into()),
        ] {
            unsent.push(order);
        }
        assert_eq!(unsent.orders.len(), 6);
        unsent.push(Order::Disarm(key()));
        assert_eq!(
            unsent.orders,
            [Order::Contact(2), Order::Disarm("b".into())]
        );
    }

    #[test]
    fn an_order_that_was_written_in_part_is_finished() {
        let mut unsent = Unsent::default();
        unsent.push(Order::Add("a".into()));
        let record = Order::Add("a".into()).encode();
        *unsent.begin().unwrap().1 = 3;
        unsent.push(Order::Remove("a".into()));
        let (begun, written) = unsent.begin().unwrap();
        assert_eq!((begun, *written), (&record[..], 3));
        *written = record.len();
        assert_eq!(
            unsent.begin().unwrap().0,
            Order::Remove("a".into()).encode()
        );
        *unsent.begin().unwrap().1 = Order::Remove("a".into()).encode().len();
        assert!(unsent.begin().is_none() && unsent.is_empty());
    }
}
