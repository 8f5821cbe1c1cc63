//! Kernel modules, for kernels that do not have everything built in.

use std::fs::{self, File};
use std::path::Path;

use rustix::io::Errno;

use crate::console;
use crate::failure::{Attempt, SetupError, chain};

/// Names the modules to load, one file name a line, in order.
const LIST: &str = "load";

/// Loads what `directory`'s list names, and says on the console what could not
/// be loaded: whether the machine works without it shows later, and better.
pub fn load_all(directory: &Path) {
    // Our own kernel needs no modules, and its initramfs has no list.
    let Ok(list) = fs::read_to_string(directory.join(LIST)) else {
        return;
    };
    for name in names(&list) {
        if let Err(error) = load(&directory.join(name)) {
            console::say(&chain(&error));
        }
    }
}

fn names(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn load(path: &Path) -> Result<(), SetupError> {
    let attempted = || format!("cannot load the kernel module {}", path.display());
    let file = File::open(path).attempt(attempted)?;
    match rustix::system::finit_module(&file, c"", 0) {
        // Loaded already, or built in.
        Err(Errno::EXIST) => Ok(()),
        result => result.attempt(attempted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_in_order_without_comments_and_blank_lines() {
        let list = "# needed by erofs\nlibcrc32c.ko\n\n  erofs.ko\noverlay.ko";
        let read: Vec<_> = names(list).collect();
        assert_eq!(read, ["libcrc32c.ko", "erofs.ko", "overlay.ko"]);
    }
}
