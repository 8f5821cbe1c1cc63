//! Signed images that their registry serves under another tag than they were signed for.

use libtest_mimic::Failed;

use crate::Test;
use crate::node::{Node, Published};

pub const TESTS: &[Test] = &[
    (
        "an_image_that_was_signed_under_another_tag_is_refused",
        another_tag,
    ),
    (
        "an_old_image_under_the_tag_of_a_new_one_is_refused",
        old_under_new,
    ),
    (
        "an_image_that_was_signed_under_several_tags_is_accepted_under_each",
        several_tags,
    ),
    (
        "a_signature_without_a_tag_is_good_for_each_unless_the_policy_wants_one",
        no_tag,
    ),
];

fn another_tag() -> Result<(), Failed> {
    let published = Published::new()?;
    let (repository, digest) = (&published.repository, published.manifest);
    published.sign_as(&published.signer, digest, &[&format!("{repository}:v1")])?;
    published.retag(digest, "v2")?;
    let policy = published.signature_rule("");
    let node = Node::with_policy(&policy)?;
    let name = format!("{repository}:v2");
    for command in [&["pull", &name][..], &["run", &name, "x"]] {
        node.run(command).expect_failure(&[
            &format!("{name} is not accepted: it is re-tagged"),
            &format!("signed {digest} as {repository}:v1;"),
            &format!("{repository}@{digest}"),
        ]);
        assert_eq!(node.mote.layer_count(), 0, "{command:?} has converted it");
    }
    // By a digest, it is what it is.
    for accepted in [
        format!("{repository}:v1"),
        format!("{repository}@{digest}"),
        format!("{repository}:v2@{digest}"),
    ] {
        Node::with_policy(&policy)?
            .run(&["pull", &accepted])
            .expect(0);
    }
    Ok(())
}

fn old_under_new() -> Result<(), Failed> {
    let published = Published::new()?;
    let (repository, signer) = (&published.repository, &published.signer);
    let (new, _) = published.push("v2", 2)?;
    published.sign_as(signer, published.manifest, &[&format!("{repository}:v1")])?;
    published.sign_as(signer, new, &[&format!("{repository}:v2")])?;
    let node = Node::with_policy(&published.signature_rule(""))?;
    let pull = || node.run(&["pull", &format!("{repository}:v2")]);
    pull().expect(0);
    published.retag(published.manifest, "v2")?;
    pull().expect_failure(&["re-tagged", &format!("{repository}:v1")]);
    Ok(())
}

fn several_tags() -> Result<(), Failed> {
    let published = Published::new()?;
    let (repository, digest) = (&published.repository, published.manifest);
    let signed = [format!("{repository}:v1"), format!("{repository}:latest")];
    let signed: Vec<&str> = signed.iter().map(String::as_str).collect();
    published.sign_as(&published.signer, digest, &signed)?;
    for tag in ["latest", "stable"] {
        published.retag(digest, tag)?;
    }
    for more in ["", "require_signed_tag = true\n"] {
        let node = Node::with_policy(&published.signature_rule(more))?;
        for accepted in [&signed[..], &[repository]].concat() {
            node.run(&["pull", accepted]).expect(0);
        }
        node.run(&["pull", &format!("{repository}:stable")])
            .expect_failure(&["re-tagged"]);
    }
    Ok(())
}

fn no_tag() -> Result<(), Failed> {
    let published = Published::new()?;
    let (repository, digest) = (&published.repository, published.manifest);
    published.retag(digest, "v2")?;
    let names = ["v1", "v2"].map(|tag| format!("{repository}:{tag}"));
    let lenient = Node::with_policy(&published.signature_rule(""))?;
    let strict = published.signature_rule("require_signed_tag = true\n");
    let strict = Node::with_policy(&strict)?;

    // As cosign writes it.
    published.sign_as(&published.signer, digest, &[repository])?;
    for name in &names {
        lenient.run(&["pull", name]).expect(0);
        strict.run(&["pull", name]).expect_failure(&[
            &format!("{name} is not accepted"),
            "without a tag",
            "require_signed_tag",
            "policy.toml:3",
            &format!("cosign sign --sign-container-identity {name}`"),
        ]);
    }
    assert_eq!(strict.mote.layer_count(), 0, "it was converted");

    // As cosign writes it then.
    published.sign_as(&published.signer, digest, &[repository, &names[0]])?;
    strict.run(&["pull", &names[0]]).expect(0);
    let refused = strict.run(&["pull", &names[1]]);
    refused.expect_failure(&["re-tagged", &names[0]]);
    strict
        .run(&["pull", &format!("{repository}@{digest}")])
        .expect(0);
    Ok(())
}
