//! The client of registries, against Debian's docker-registry and against servers
//! that do everything wrong.

#[path = "registry/auth.rs"]
mod auth;
#[path = "registry/auth_real.rs"]
mod auth_real;
#[path = "registry/bounds.rs"]
mod bounds;
#[path = "registry/common.rs"]
mod common;
#[path = "support/docker_registry.rs"]
mod docker_registry;
#[path = "registry/environment.rs"]
mod environment;
#[path = "support/fault_proxy.rs"]
mod fault_proxy;
#[path = "registry/faults.rs"]
mod faults;
#[path = "support/http_server.rs"]
mod http_server;
#[path = "registry/mirrors.rs"]
mod mirrors;
#[path = "registry/real.rs"]
mod real;
#[path = "registry/redirects.rs"]
mod redirects;
#[path = "registry/referrers.rs"]
mod referrers;
mod support;
#[path = "registry/uploads.rs"]
mod uploads;

use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};

/// A name and what it runs.
type Test = (&'static str, fn() -> Result<(), Failed>);

fn main() -> ExitCode {
    if let Some(code) = environment::run_as_child() {
        return code;
    }
    let arguments = Arguments::from_args();
    let has = |tool: &str| {
        let mut command = Command::new(tool);
        command.arg("--version").stdin(Stdio::null());
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok()
    };
    let missing = !["docker-registry", "htpasswd", "openssl"]
        .iter()
        .all(|tool| has(tool));
    if missing {
        println!(
            "ignored: docker-registry, htpasswd or openssl is not installed; `cargo xtask test` installs them"
        );
    }
    let with_registry = [
        real::TESTS,
        auth_real::TESTS,
        faults::TESTS,
        uploads::WITH_REGISTRY,
    ];
    let alone = [
        auth::TESTS,
        bounds::TESTS,
        environment::TESTS,
        mirrors::TESTS,
        redirects::TESTS,
        referrers::TESTS,
        uploads::TESTS,
    ];
    let trial = |(name, test): Test, ignored| Trial::test(name, test).with_ignored_flag(ignored);
    let with_registry = with_registry.iter().copied().flatten();
    let alone = alone.iter().copied().flatten();
    let trials = with_registry
        .map(|test| trial(*test, missing))
        .chain(alone.map(|test| trial(*test, false)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
