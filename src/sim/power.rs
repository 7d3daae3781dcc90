//! The power switch: a countdown of durable steps.

use std::cell::Cell;
use std::rc::Rc;

use crate::{Error, Kind, Result};

/// How a run is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The machine loses power: what was not flushed may be lost, the next step is a boot.
    Cut,
    /// The process dies, the machine goes on: written data stays, a new process takes up.
    Kill,
    /// Somebody reboots the device in order.
    Reboot,
}

/// One interruption: after so many further steps, in that way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interruption {
    /// Steps that still happen.
    pub after_steps: u32,
    /// In which way.
    pub how: How,
}

/// Shared by all parts of a device.
#[derive(Debug, Clone, Default)]
pub struct Power(Rc<Switch>);

#[derive(Debug, Default)]
struct Switch {
    left: Cell<Option<u32>>,
    steps: Cell<u32>,
}

impl Power {
    /// Arms the switch: `after_steps` further steps happen, the one after them does not. `None`: never.
    pub fn set(&self, after_steps: Option<u32>) {
        self.0.left.set(after_steps);
    }

    /// Steps since the world began.
    pub fn steps(&self) -> u32 {
        self.0.steps.get()
    }

    /// To be called before each durable step.
    ///
    /// # Errors
    /// `PowerCut` when the switch is thrown.
    pub fn step(&self) -> Result<()> {
        match self.0.left.get() {
            // It stays off until it is set again: what a dead process would still do does not happen.
            Some(0) => return Err(Error::new(Kind::PowerCut, "power cut")),
            Some(n) => self.0.left.set(Some(n - 1)),
            None => {}
        }
        self.0.steps.set(self.0.steps.get() + 1);
        Ok(())
    }
}
