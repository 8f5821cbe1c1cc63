//! The policy for images and cosign's signatures, with keys and signatures of
//! openssl's, against Debian's docker-registry and against servers that lie.

#[allow(
    dead_code,
    reason = "the tests of the client of registries use the rest"
)]
#[path = "registry/common.rs"]
mod common;
#[path = "trust/converted.rs"]
mod converted;
#[allow(
    dead_code,
    reason = "the tests of the client of registries use the rest"
)]
#[path = "support/docker_registry.rs"]
mod docker_registry;
#[path = "trust/faults.rs"]
mod faults;
#[allow(
    dead_code,
    reason = "the tests of the client of registries use the rest"
)]
#[path = "support/http_server.rs"]
mod http_server;
#[path = "trust/keys.rs"]
mod keys;
#[path = "trust/node.rs"]
mod node;
#[path = "trust/real.rs"]
mod real;
#[path = "trust/refusals.rs"]
mod refusals;
#[path = "trust/retagged.rs"]
mod retagged;
#[path = "trust/signer.rs"]
mod signer;
mod support;
#[path = "trust/unnamed.rs"]
mod unnamed;

use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};

/// A name and what it runs.
type Test = (&'static str, fn() -> Result<(), Failed>);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let has = |tool: &str| {
        let mut command = Command::new(tool);
        command.arg("--version").stdin(Stdio::null());
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok()
    };
    let trials = |tests: &[&[Test]], missing: bool| -> Vec<Trial> {
        let trial = |(name, test): &Test| Trial::test(*name, *test).with_ignored_flag(missing);
        tests.iter().copied().flatten().map(trial).collect()
    };
    let no_openssl = !has("openssl");
    let no_registry = no_openssl || !has("docker-registry");
    if no_registry {
        println!(
            "ignored: docker-registry or openssl is not installed; `cargo xtask test` installs them"
        );
    }
    let mut all = trials(&[unnamed::TESTS], false);
    all.extend(trials(&[keys::TESTS, faults::TESTS], no_openssl));
    let of_registries = [
        real::TESTS,
        refusals::TESTS,
        retagged::TESTS,
        converted::TESTS,
    ];
    all.extend(trials(&of_registries, no_registry));
    all.extend(trials(&[real::WITH_CURL], no_registry || !has("curl")));
    libtest_mimic::run(&arguments, all).exit_code()
}
