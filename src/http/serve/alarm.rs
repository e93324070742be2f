//! A timer that is set again and again, and seldom rings.

use std::pin::Pin;
use std::task::Context;

use tokio::time::{Instant, Sleep, sleep_until};

/// Setting a timer costs more than to look at the clock, and what it guards against hardly ever happens. So it is left where it stands
/// when it is due later than it was, wakes the task once for nothing, and is set anew only then.
#[derive(Debug, Default)]
pub struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Whether `due` has come. If not, the task is woken at that time or earlier.
    pub fn rings(&mut self, due: Instant, context: &mut Context<'_>) -> bool {
        loop {
            if due <= Instant::now() {
                return true;
            }
            let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if due < sleep.deadline() || sleep.is_elapsed() {
                sleep.as_mut().reset(due);
            }
            if sleep.as_mut().poll(context).is_pending() {
                return false;
            }
        }
    }
}
