//! Drivers that break the rules.
//!
//! Whatever they do, the machine must live on, the other devices too, and the
//! device itself after a reset.

pub mod balloon;
pub mod block;
pub mod console;
pub mod discard;
pub mod driver;
pub mod entropy;
pub mod flood;
pub mod hung;
pub mod net;
pub mod panics;
pub mod pmem;
pub mod transport;
pub mod vsock;

use driver::Device;

use crate::friendly;

/// One way to break the rules: its name, what it does, and what the device must
/// make of it.
pub struct Attack {
    /// The name, for the command line.
    pub name: &'static str,
    /// What it does.
    pub run: fn(&mut Device),
    /// What must follow.
    pub outcome: Outcome,
}

/// What a device makes of an attack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It asks for reset.
    Fault,
    /// It answers every chain, with whatever, and stays in order.
    Answer,
}

/// Finds an attack by name.
pub fn find<'a>(attacks: &'a [Attack], name: &str) -> &'a Attack {
    match attacks.iter().find(|attack| attack.name == name) {
        Some(attack) => attack,
        None => panic!("there is no attack {name}"),
    }
}

/// Attacks `device` and waits for what must follow.
pub fn attack(attack: &Attack, device: &mut Device) {
    (attack.run)(device);
    match attack.outcome {
        Outcome::Fault => device.wait_for_fault(),
        Outcome::Answer => {
            device.wait_for_answers();
            assert!(!device.needs_reset(), "the device asks for reset");
        }
    }
    // Another device goes on meanwhile.
    friendly::entropy::check();
}
