//! The workload's streams on the host: one thread for each, because standard
//! input and output may be files or terminals, which others share and which
//! must not be made non-blocking.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Four vsock packets: few system calls a megabyte, and still in the cache.
const BUFFER_BYTES: usize = 256 << 10;

/// Where the workload's streams come from and go to.
#[derive(Debug)]
pub struct Streams {
    /// The workload's input; `None` gives it an empty one.
    pub stdin: Option<OwnedFd>,
    /// Where its output goes.
    pub stdout: OwnedFd,
    /// Where its errors go.
    pub stderr: OwnedFd,
}

impl Streams {
    /// This process's own.
    pub fn inherited(with_stdin: bool) -> io::Result<Self> {
        let stdin = io::stdin();
        Ok(Self {
            stdin: with_stdin
                .then(|| stdin.as_fd().try_clone_to_owned())
                .transpose()?,
            stdout: io::stdout().as_fd().try_clone_to_owned()?,
            stderr: io::stderr().as_fd().try_clone_to_owned()?,
        })
    }
}

/// What is done once, when the workload has written something.
pub type AtFirstOutput = Box<dyn FnOnce() + Send>;

/// Threads that move streams, and how to know that output is complete.
pub struct Movers {
    /// Reaches its end when every thread has let go of the other end.
    done: UnixStream,
    working: Option<UnixStream>,
    failures: mpsc::Receiver<OutputFailure>,
    report: mpsc::Sender<OutputFailure>,
    /// Until it is done.
    at_first_output: Arc<Mutex<Option<AtFirstOutput>>>,
    /// Dropping it stops the reading of input.
    stop_input: Option<UnixStream>,
}

/// An output of this process that could not be written.
#[derive(Debug)]
pub struct OutputFailure {
    /// Which one.
    pub name: &'static str,
    /// Why.
    pub error: io::Error,
}

impl Movers {
    /// None yet.
    pub fn new(at_first_output: AtFirstOutput) -> io::Result<Self> {
        let (done, working) = UnixStream::pair()?;
        let (report, failures) = mpsc::channel();
        Ok(Self {
            done,
            working: Some(working),
            failures,
            report,
            at_first_output: Arc::new(Mutex::new(Some(at_first_output))),
            stop_input: None,
        })
    }

    /// Moves `input` to the workload until either ends.
    pub fn start_input(&mut self, input: OwnedFd, socket: UnixStream) -> io::Result<()> {
        let (stop, stopped) = UnixStream::pair()?;
        self.stop_input = Some(stop);
        let work = move || move_input(&input, &socket, &stopped);
        thread::Builder::new().name("stdin".into()).spawn(work)?;
        Ok(())
    }

    /// Moves the workload's stream to `output` until either ends.
    pub fn start_output(
        &mut self,
        name: &'static str,
        socket: UnixStream,
        output: OwnedFd,
    ) -> io::Result<()> {
        let working = self
            .working
            .as_ref()
            .map(UnixStream::try_clone)
            .transpose()?;
        let report = self.report.clone();
        let first = Arc::clone(&self.at_first_output);
        let work = move || {
            let wrote = || {
                let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(first) = first {
                    first();
                }
            };
            if let Err(error) = move_output(&socket, &output, wrote) {
                let _ = report.send(OutputFailure { name, error });
            }
            drop(working);
        };
        thread::Builder::new().name(name.into()).spawn(work)?;
        Ok(())
    }

    /// No more outputs will be started: what [`Movers::done`] gives becomes
    /// readable when those that were have ended.
    pub fn expect_no_more(&mut self) {
        self.working = None;
    }

    /// See [`Movers::expect_no_more`].
    pub fn done(&self) -> &UnixStream {
        &self.done
    }

    /// The first output that failed, if one did.
    pub fn failure(&self) -> Option<OutputFailure> {
        self.failures.try_recv().ok()
    }
}

/// Ends at the input's end, when the workload reads no more, or when `stopped`
/// does.
fn move_input(input: &OwnedFd, socket: &UnixStream, stopped: &UnixStream) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let mut fds = [
            PollFd::new(input, PollFlags::IN),
            PollFd::new(stopped, PollFlags::IN),
            // Nothing is read from it, but its end is the workload's.
            PollFd::new(socket, PollFlags::RDHUP),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        let [input_ready, stop, closed] = fds.map(|fd| !fd.revents().is_empty());
        if stop || closed {
            return;
        }
        if !input_ready {
            continue;
        }
        let n = match rustix::io::read(input, &mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(Errno::INTR | Errno::AGAIN) => continue,
            // As if at the end: a terminal that was hung up, a directory.
            Err(_) => break,
        };
        if write_all(socket, &buffer[..n]).is_err() {
            return;
        }
    }
    let _ = socket.shutdown(Shutdown::Write);
}

/// `wrote` is told when there is something for the first time.
fn move_output(socket: &UnixStream, output: &OwnedFd, wrote: impl FnOnce()) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut wrote = Some(wrote);
    loop {
        let n = match rustix::io::read(socket, &mut buffer) {
            // A reset is the end of a machine, which is noticed elsewhere.
            Ok(0) | Err(Errno::CONNRESET) => return Ok(()),
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let written = write_all(output, &buffer[..n]);
        if let Some(wrote) = wrote.take() {
            wrote();
        }
        match written {
            Ok(()) => {}
            // Nobody reads any more. Closing the stream tells the workload, with
            // SIGPIPE, as in a pipeline of processes of this machine.
            Err(Errno::PIPE) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn write_all(to: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(&to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            // Somebody who shares the file made it non-blocking.
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::new(&to, PollFlags::OUT)];
                let _ = poll(&mut fds, None);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn pipe() -> (File, File) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        (read.into(), write.into())
    }

    fn movers() -> Movers {
        Movers::new(Box::new(|| {})).unwrap()
    }

    /// Waits until all outputs have ended.
    fn join(mut movers: Movers) -> Movers {
        movers.expect_no_more();
        assert_eq!(movers.done().read(&mut [0]).unwrap(), 0);
        movers
    }

    #[test]
    fn output_is_complete_when_the_movers_say_so() {
        let mut movers = movers();
        let (mut read, write) = pipe();
        let (mut guest, socket) = UnixStream::pair().unwrap();
        movers.start_output("stdout", socket, write.into()).unwrap();
        let bytes = vec![b'x'; 3_000_000];
        let sent = bytes.clone();
        let guest = thread::spawn(move || guest.write_all(&sent).unwrap());
        let mut read_bytes = Vec::new();
        read.read_to_end(&mut read_bytes).unwrap();
        guest.join().unwrap();
        assert!(join(movers).failure().is_none());
        assert!(read_bytes == bytes);
    }

    #[test]
    fn the_first_output_of_either_stream_is_noticed_and_only_that() {
        let (told, hears) = mpsc::channel();
        let mut movers = Movers::new(Box::new(move || told.send(()).unwrap())).unwrap();
        for name in ["stdout", "stderr"] {
            let (mut read, write) = pipe();
            let (mut guest, socket) = UnixStream::pair().unwrap();
            movers.start_output(name, socket, write.into()).unwrap();
            hears.try_recv().unwrap_err();
            guest.write_all(b"text").unwrap();
            read.read_exact(&mut [0; 4]).unwrap();
            if name == "stdout" {
                hears.recv().unwrap();
            }
            guest.write_all(b"more").unwrap();
        }
        join(movers);
        assert!(hears.recv().is_err());
    }

    #[test]
    fn a_reader_that_is_gone_closes_the_guests_stream_and_is_no_failure() {
        let mut movers = movers();
        let (read, write) = pipe();
        drop(read);
        let (mut guest, socket) = UnixStream::pair().unwrap();
        movers.start_output("stdout", socket, write.into()).unwrap();
        while guest.write_all(b"more").is_ok() {}
        assert!(join(movers).failure().is_none());
    }

    #[test]
    fn output_that_cannot_be_written_is_a_failure() {
        let mut movers = movers();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (mut guest, socket) = UnixStream::pair().unwrap();
        movers.start_output("stdout", socket, full.into()).unwrap();
        guest.write_all(b"text").unwrap();
        drop(guest);
        let failure = join(movers).failure().unwrap();
        assert_eq!(failure.name, "stdout");
        assert_eq!(failure.error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn an_output_that_somebody_made_non_blocking_is_waited_for() {
        let mut movers = movers();
        let (mut read, write) = pipe();
        let flags = rustix::fs::fcntl_getfl(&write).unwrap();
        rustix::fs::fcntl_setfl(&write, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        let (mut guest, socket) = UnixStream::pair().unwrap();
        movers.start_output("stdout", socket, write.into()).unwrap();
        let guest = thread::spawn(move || guest.write_all(&[b'x'; 500_000]).unwrap());
        let mut bytes = Vec::new();
        read.read_to_end(&mut bytes).unwrap();
        guest.join().unwrap();
        assert_eq!(bytes.len(), 500_000);
    }

    #[test]
    fn the_end_of_input_is_a_half_close() {
        let mut movers = movers();
        let (read, mut write) = pipe();
        let (mut guest, socket) = UnixStream::pair().unwrap();
        movers.start_input(read.into(), socket).unwrap();
        write.write_all(b"input").unwrap();
        drop(write);
        let mut text = String::new();
        guest.read_to_string(&mut text).unwrap();
        assert_eq!(text, "input");
    }

    #[test]
    fn a_guest_that_reads_no_more_stops_the_reading_of_input() {
        let mut movers = movers();
        let (read, mut write) = pipe();
        let (guest, socket) = UnixStream::pair().unwrap();
        movers.start_input(read.into(), socket).unwrap();
        drop(guest);
        // The reading end is closed although the input has not ended.
        while write.write_all(b"more").is_ok() {}
    }

    #[test]
    fn input_that_never_ends_is_let_go_with_the_movers() {
        let mut movers = movers();
        let (read, mut write) = pipe();
        let (mut guest, socket) = UnixStream::pair().unwrap();
        movers.start_input(read.into(), socket).unwrap();
        drop(movers);
        assert_eq!(guest.read(&mut [0]).unwrap(), 0);
        while write.write_all(b"more").is_ok() {}
    }
}
