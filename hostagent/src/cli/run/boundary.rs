//! Where the flags of `mote run` end: at the first argument that is neither a flag
//! nor the value of one. All from there on is IMAGE, the command and its own
//! arguments, flags among them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::{Arg, Command};

/// Puts `--` before IMAGE in the arguments of `command`, for a parser that would
/// otherwise take what follows for flags of its own.
pub fn mark(arguments: &mut Vec<OsString>, command: &Command) {
    let mut index = 0;
    while let Some(argument) = arguments.get(index) {
        if argument == "--" {
            return;
        }
        let bytes = argument.as_bytes();
        if bytes == b"-" || !bytes.starts_with(b"-") {
            arguments.insert(index, "--".into());
            return;
        }
        index += if value_follows(bytes, command) { 2 } else { 1 };
    }
}

/// Whether the next argument is the value of this flag. An unknown flag has none,
/// and is refused by the parser.
fn value_follows(flag: &[u8], command: &Command) -> bool {
    if let Some(long) = flag.strip_prefix(b"--") {
        let long = OsStr::from_bytes(long);
        return find(command, |arg| {
            arg.get_long().is_some_and(|name| long == name)
        })
        .is_some_and(needs_value);
    }
    // A cluster: flags without a value, then perhaps one whose value is the rest.
    let mut parts = flag[1..].split(|byte| *byte == b'=');
    let (letters, has_value) = (parts.next().unwrap_or_default(), parts.next().is_some());
    let valued = letters.iter().position(|letter| {
        find(command, |arg| arg.get_short() == Some(char::from(*letter))).is_some_and(needs_value)
    });
    !has_value && valued.is_some_and(|position| position + 1 == letters.len())
}

fn find(command: &Command, mut wanted: impl FnMut(&Arg) -> bool) -> Option<&Arg> {
    command.get_arguments().find(|arg| wanted(arg))
}

fn needs_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
        && arg
            .get_num_args()
            .is_none_or(|range| range.min_values() > 0)
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;

    #[test]
    fn flags_end_at_the_first_argument_that_is_no_flag_and_no_value() {
        let command = super::super::RunArgs::augment_args(Command::new("run"));
        for (arguments, expected) in [
            ("i c -x", "-- i c -x"),
            ("-i i", "-i -- i"),
            ("-m 1g -e A=b i -m 2g", "-m 1g -e A=b -- i -m 2g"),
            ("-m1g -eA=b -w=/ i c", "-m1g -eA=b -w=/ -- i c"),
            ("-ie A=b i", "-ie A=b -- i"),
            ("-ieA=b i", "-ieA=b -- i"),
            ("--name n --name=n i --rm", "--name n --name=n -- i --rm"),
            ("--rm --timing i", "--rm --timing -- i"),
            ("--timing=json -i=false i", "--timing=json -i=false -- i"),
            ("--unknown i -- x", "--unknown -- i -- x"),
            ("-i -- -image c", "-i -- -image c"),
            ("-e", "-e"),
            ("-i -", "-i -- -"),
            ("--help", "--help"),
        ] {
            let mut marked = arguments.split(' ').map(OsString::from).collect();
            mark(&mut marked, &command);
            let expected: Vec<OsString> = expected.split(' ').map(OsString::from).collect();
            assert_eq!(marked, expected, "{arguments}");
        }
    }
}
