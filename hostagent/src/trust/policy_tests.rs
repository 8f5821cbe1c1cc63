use std::fs;

use tempfile::TempDir;

use super::super::{Requirement, TrustError};
use super::*;
use crate::image::digest::Digest;

const PEM: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE3T2u+PqKujojlxmKzAZ7EDVDCXUw
BSx/seaIdSKwmETmNiI4t2CMO/+4/VzzsvovJgmFqNMS5cUvi3n4bljcFQ==
-----END PUBLIC KEY-----
";

/// The policy of a directory with this file and the key `team.pub`.
fn load(text: &str) -> Result<Policy, PolicyError> {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("team.pub"), PEM).unwrap();
    fs::write(directory.path().join(FILE_NAME), text).unwrap();
    Policy::load(directory.path())
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// What a policy has to say to a name, in a word.
fn answer(policy: &Policy, text: &str) -> &'static str {
    match policy.admits(&name(text)) {
        Ok(Requirement::Nothing) => "nothing",
        Ok(Requirement::Digest(_)) => "digest",
        Ok(Requirement::Signature(_)) => "signature",
        Err(TrustError::NoDigest { .. }) => "no digest",
        Err(TrustError::Rejected { .. }) => "rejected",
        Err(error) => panic!("{error}"),
    }
}

const EVERYTHING: &str = r#"
default = "reject"
[[repository]]
match = "registry.example/team/*"
require = "signature"
keys = ["team.pub", "team.pub"]
[[repository]]
match = "registry.example/*"
require = "digest"
[[repository]]
match = "registry.example/team/open"
require = "accept"
[[repository]]
match = "registry.example/team/closed/*"
require = "reject"
"#;

#[test]
fn without_a_file_everything_is_accepted() {
    let directory = TempDir::new().unwrap();
    let policy = Policy::load(directory.path()).unwrap();
    assert_eq!(answer(&policy, "debian"), "nothing");
    let nowhere = Policy::load(&directory.path().join("none")).unwrap();
    assert_eq!(answer(&nowhere, "debian"), "nothing");
}

#[test]
fn the_most_specific_rule_counts_wherever_it_stands() {
    let policy = load(EVERYTHING).unwrap();
    let pinned = format!("registry.example/app@{}", Digest::of(b""));
    for (text, expected) in [
        ("registry.example/team/app:1", "signature"),
        ("registry.example/team/a/b", "signature"),
        ("registry.example/team/open", "nothing"),
        ("registry.example/team/open/more", "signature"),
        ("registry.example/team/closed", "signature"),
        ("registry.example/team/closed/app", "rejected"),
        ("registry.example/app:1", "no digest"),
        (&pinned, "digest"),
        ("debian", "rejected"),
    ] {
        assert_eq!(answer(&policy, text), expected, "{text}");
    }
}

#[test]
fn another_spelling_of_a_repository_is_the_same_to_the_policy() {
    let policy = load(EVERYTHING).unwrap();
    for text in [
        "REGISTRY.example/team/closed/app",
        "registry.example:443/team/closed/app",
    ] {
        assert_eq!(answer(&policy, text), "rejected", "{text}");
    }
}

#[test]
fn refusals_name_the_rule() {
    let policy = load(EVERYTHING).unwrap();
    for (text, line) in [("debian", 2), ("registry.example/app", 8)] {
        let message = policy.admits(&name(text)).unwrap_err().to_string();
        let place = format!("{FILE_NAME}:{line})");
        assert!(message.contains(&place), "{message} lacks {place}");
    }
}

#[test]
fn an_image_of_a_file_gets_no_name_that_needs_a_signature_or_is_rejected() {
    let policy = load(EVERYTHING).unwrap();
    let outcome = |texts: &[&str]| {
        let names: Vec<ImageName> = texts.iter().map(|text| name(text)).collect();
        policy.admits_local(Digest::of(b"config"), &names)
    };
    outcome(&["registry.example/team/open:1", "registry.example/app:1"]).unwrap();
    let error = outcome(&["registry.example/team/open", "registry.example/team/app"]);
    let error = error.unwrap_err();
    assert!(matches!(error, TrustError::FromFile { .. }), "{error}");
    let words = ["registry.example/team/app", "pull it", "policy.toml:4"];
    for word in words {
        assert!(error.to_string().contains(word), "{error}");
    }
    let rejected = outcome(&["debian"]);
    assert!(matches!(rejected, Err(TrustError::Rejected { .. })));
}

#[test]
fn a_signature_must_name_the_tag_where_a_rule_says_so() {
    for (line, expected) in [
        ("", false),
        ("require_signed_tag = false\n", false),
        ("require_signed_tag = true\n", true),
    ] {
        let policy = load(&format!(
            "default = \"reject\"\n[[repository]]\nmatch = \"a.example/b\"\n\
             require = \"signature\"\nkeys = [\"team.pub\"]\n{line}"
        ));
        let policy = policy.unwrap();
        let asked = name("a.example/b:v1");
        let Ok(Requirement::Signature(signers)) = policy.admits(&asked) else {
            panic!("{policy:?}");
        };
        assert_eq!(signers.must_name_tag, expected, "{line:?}");
    }
}

#[test]
fn an_image_without_a_name_is_judged_by_the_default() {
    let id = Digest::of(b"config");
    for (default, is_accepted) in [("accept", true), ("digest", true), ("reject", false)] {
        let policy = load(&format!("\ndefault = {default:?}\n")).unwrap();
        for outcome in [policy.admits_local(id, &[]), policy.admits_unnamed(id)] {
            assert_eq!(outcome.is_ok(), is_accepted, "{default}");
            let Err(error) = outcome else { continue };
            assert!(matches!(error, TrustError::Unnamed { .. }), "{error:?}");
            for words in [&id.to_string(), "no name", "policy.toml:2", "take it under"] {
                assert!(error.to_string().contains(words), "{error} lacks {words}");
            }
        }
    }
    Policy::accept_everything().admits_local(id, &[]).unwrap();
}

#[test]
fn errors_name_the_file_and_the_line() {
    let rule = |lines: &str| format!("default = \"accept\"\n[[repository]]\n{lines}");
    let twice = "match = \"a.example/b\"\nrequire = \"accept\"\n[[repository]]\n\
                 match = \"A.example:443/b\"\nrequire = \"reject\"\n";
    for (text, words) in [
        (String::new(), "toml:1: missing field `default`"),
        (
            "default = \"signature\"\n".to_owned(),
            "toml:1: unknown variant",
        ),
        ("\ndefault = true\n".to_owned(), "toml:2: "),
        (
            "default = \"accept\"\ndefaul = 1\n".to_owned(),
            "toml:2: unknown field `defaul`",
        ),
        (
            rule("require = \"accept\"\n"),
            "toml:2: missing field `match`",
        ),
        (
            rule("match = \"a.example/b\"\n"),
            "toml:2: missing field `require`",
        ),
        (
            rule("match = \"a.example/b\"\nrequire = \"maybe\"\n"),
            "toml:4: unknown variant",
        ),
        (
            rule("match = \"a.example/b\"\nrequire = \"accept\"\nkey = \"x\"\n"),
            "toml:5: unknown field `key`",
        ),
        (
            rule("match = \"debian\"\nrequire = \"accept\"\n"),
            "toml:3: \"debian\" is not written in full",
        ),
        (
            rule("match = \"*\"\nrequire = \"accept\"\n"),
            "toml:3: \"*\" matches no repository",
        ),
        (
            rule(twice),
            "toml:6: line 3 has a rule for a.example/b already",
        ),
        (
            rule("match = \"a.example/b\"\nrequire = \"signature\"\n"),
            "toml:4: require = \"signature\" needs keys",
        ),
        (
            rule("match = \"a.example/b\"\nrequire = \"signature\"\nkeys = []\n"),
            "toml:4: require = \"signature\" needs keys",
        ),
        (
            rule("match = \"a.example/b\"\nrequire = \"digest\"\nkeys = [\"team.pub\"]\n"),
            "toml:5: keys are used with",
        ),
        (
            rule("match = \"a.example/b\"\nrequire = \"digest\"\nrequire_signed_tag = true\n"),
            "toml:5: require_signed_tag is used with",
        ),
        (
            rule("match = \"a.example/b\"\nrequire = \"signature\"\nrequire_signed_tag = \"v1\"\n"),
            "toml:5: ",
        ),
        ("default = \n".to_owned(), "toml:1: "),
    ] {
        let message = load(&text).unwrap_err().to_string();
        assert!(message.contains(words), "{message:?} lacks {words:?}");
    }
}

#[test]
fn a_key_that_cannot_be_used_is_an_error() {
    for (file, words) in [
        ("none.pub", "cannot read the public key"),
        ("policy.toml", "has no public key that can be used"),
        (".", "cannot read the public key"),
    ] {
        let text = format!(
            "default = \"accept\"\n[[repository]]\nmatch = \"a.example/b\"\n\
             require = \"signature\"\nkeys = [\n\"team.pub\",\n{file:?}]\n"
        );
        let error = load(&text).unwrap_err();
        assert!(error.to_string().contains("policy.toml:7: "), "{error}");
        let PolicyError::Key { source, .. } = error else {
            panic!("{error:?}");
        };
        let message = source.to_string();
        assert!(
            message.contains(words) && message.contains(file),
            "{message}"
        );
    }
}

#[test]
fn a_policy_that_cannot_be_read_is_an_error() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(FILE_NAME);
    let refused = || Policy::load(directory.path()).unwrap_err();
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    assert!(matches!(
        refused(),
        PolicyError::File(FileError::Read { .. })
    ));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(
        refused(),
        PolicyError::File(FileError::Read { .. })
    ));
    fs::remove_dir(&path).unwrap();
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(matches!(
        refused(),
        PolicyError::File(FileError::Read { .. })
    ));
    fs::write(
        &path,
        " ".repeat(crate::config_file::MAX_FILE_BYTES as usize + 1),
    )
    .unwrap();
    assert!(matches!(
        refused(),
        PolicyError::File(FileError::TooLong { .. })
    ));
}
