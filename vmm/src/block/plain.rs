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

    fn run(&self, operation: Operation) -> io::Result<()> {
        for mut step in self.disk.plan(operation).into_iter().rev() {
            let file = &self.disk.files()[step.file];
            loop {
                let result = step.run(file);
                match step.advance(result) {
                    Progress::Done => break,
                    Progress::Again => {}
                    Progress::Failed(error) => return Err(error),
                }
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
