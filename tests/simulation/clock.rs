//! The server's clock: wall-clock time that is read once, when the server starts, and counted on from there. A model of
//! `server/state`.

use crate::world::{Ms, World};
use sidebike::core::Time;

/// How far the wall clock jumps: an hour, more than the longest time-out, and from 1970 to the present.
const JUMPS: [i64; 3] = [3_600_000, 400 * 86_400_000, 1_700_000_000_000];

/// How far the clocks are ahead of the true time, in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    /// The wall clock.
    wall: i64,
    /// The server's.
    ahead: i64,
}

impl Clock {
    /// What it shows at a true time.
    pub fn read(self, now: Ms) -> Time {
        Time(now.saturating_add_signed(self.ahead))
    }

    /// When it will show a time.
    pub fn true_time(self, shown: Time) -> Ms {
        shown.0.saturating_add_signed(-self.ahead)
    }
}

impl World {
    /// A server starts, maybe after the wall clock was set. It never shows less than in its last sign of life.
    pub fn clock_may_jump(&mut self, start: Ms, last_alive: Time) {
        if self.rng.chance(self.weather.jump) {
            let by = self.rng.pick(&JUMPS);
            let is_back = self.clock.wall >= 0;
            self.count(match is_back {
                true => "clock jumped back",
                false => "clock jumped forwards",
            });
            self.clock.wall += if is_back { -by } else { by };
            self.note(|| format!("the wall clock jumps by {by} ms, back: {is_back}"));
        }
        let wall = start.saturating_add_signed(self.clock.wall);
        let shown = wall.max(last_alive.0);
        self.clock.ahead = shown as i64 - start as i64;
    }
}
