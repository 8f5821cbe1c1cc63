//! virtio-console under a driver that does anything, with a terminal that is typed at,
//! read from, and changes its size.
#![no_main]

use std::fs::File;
use std::io::{Read, Write};

use arbitrary::Unstructured;
use fuzz::acts::Game;
use fuzz::memory;
use libfuzzer_sys::fuzz_target;
use rustix::pipe::{PipeFlags, pipe_with};
use vmm::devices::virtio::console::Console;
use vmm::devices::virtio::console::handle::Size;
use vmm::devices::virtio::mock::MockDriver;

fn pipe() -> (File, File) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
    (reader.into(), writer.into())
}

fuzz_target!(init: fuzz::signals::ignore_sigpipe(), |data: &[u8]| {
    let ((input, keyboard), (screen, output)) = (pipe(), pipe());
    let mut keyboard = Some(keyboard);
    let mut screen = Some(screen);
    let size = Size {
        columns: 80,
        rows: 25,
    };
    let (device, handle) =
        Console::new("console0".to_owned(), Some(input), output, size).expect("event descriptors");
    let mut driver = MockDriver::in_memory(memory::for_driver(), |_| device);
    let game = Game {
        queues: 2,
        features: 1 << 29 | 1,
        payload: &|u| Ok(u.bytes(u.len().min(16))?.to_vec()),
        backend: &mut |u| {
            match u.int_in_range(0..=9)? {
                0 => keyboard = None,
                1 => screen = None,
                2..=4 => {
                    if let Some(keyboard) = &mut keyboard {
                        let text = vec![b'k'; u.int_in_range(1..=5000)?];
                        let _ = keyboard.write(&text);
                    }
                }
                5..=7 => {
                    if let Some(screen) = &mut screen {
                        let _ = screen.read(&mut [0; 5000]);
                    }
                }
                _ => {
                    let size = Size {
                        columns: u.arbitrary()?,
                        rows: u.arbitrary()?,
                    };
                    handle.resize(size);
                }
            }
            Ok(())
        },
    };
    game.play(&mut driver, &mut Unstructured::new(data));
});
