//! Requests run one after another while the caller waits.

use std::io;

use super::extents::ExtentDisk;
use super::step::Progress;
use super::{BlockBackend, Operation, Ticket};

/// The disk.
#[derive(Debug)]
pub struct PlainDisk {
    disk: ExtentDisk,
}

impl PlainDisk {
    /// Shows `disk` as it is.
    pub fn new(disk: ExtentDisk) -> Self {
        Self { disk }
    }

    /// What it shows.
    #[cfg(test)]
    pub fn into_disk(self) -> ExtentDisk {
        self.disk
    }

    fn run(&mut self, operation: Operation) -> io::Result<()> {
        let mut steps = self.disk.plan(operation);
        while let Some(step) = steps.last_mut() {
            self.disk.begin(step);
            let result = step.run(&self.disk.files()[step.file]);
            match step.advance(result, self.disk.verification()) {
                Progress::Done => {
                    steps.pop();
                }
                Progress::Again => {}
                Progress::After(step) => steps.push(step),
                Progress::Failed(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl BlockBackend for PlainDisk {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn start(&mut self, _ticket: Ticket, operation: Operation) -> Option<io::Result<()>> {
        Some(self.run(operation))
    }
}
