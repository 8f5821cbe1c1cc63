//! What `mote push` stores beside an image, under policies: a run uses it, or pulls and
//! converts the image itself.

use libtest_mimic::Failed;

use crate::Test;
use crate::node::{Node, Published};
use crate::signer::{Kind, Signer};

pub const TESTS: &[Test] = &[
    (
        "a_converted_image_is_used_by_a_tag_where_nothing_is_required",
        nothing_required,
    ),
    (
        "a_converted_image_is_not_used_where_a_digest_is_required",
        digest_required,
    ),
    (
        "a_converted_image_is_used_where_it_is_signed_itself",
        signature_required,
    ),
    ("a_converted_images_signature_needs_no_tag", tag_required),
];

impl Published {
    /// Runs the image on a machine with this policy that has nothing yet, and asserts that
    /// its converted form was used; or that it was not, for the reason with these words.
    #[track_caller]
    fn assert_use(&self, policy: &str, name: &str, refused: Option<&[&str]>) {
        let node = Node::with_policy(policy).unwrap();
        // That the VMM is none is found later.
        let run = node.run(&["run", name, "x"]).expect(125);
        let note = format!("the converted image {} is not used: ", self.artifact);
        let Some(reason) = refused else {
            assert!(!run.stderr.contains("not used"), "{run:#?}");
            assert_eq!(node.mote.layer_count(), 0, "it was converted here");
            let images = node.run(&["image", "inspect", "--format", "json", name]);
            let image = &images.expect(0).json()[0];
            assert_eq!(image["Store"]["ConvertedBy"], *self.repository, "{image}");
            return;
        };
        for words in reason.iter().chain([&&*note]) {
            assert!(run.stderr.contains(words), "{words:?} is not in {run:#?}");
        }
        assert_eq!(node.mote.layer_count(), 1, "it was not converted here");
    }

    fn by_tag(&self) -> String {
        format!("{}:v1", self.repository)
    }

    fn by_digest(&self) -> String {
        format!("{}@{}", self.repository, self.manifest)
    }
}

const BY_DIGEST: Option<&[&str]> = Some(&["asked for by its digest, which does not cover it"]);

fn nothing_required() -> Result<(), Failed> {
    let published = Published::new()?;
    let policy = published.rule("require = \"accept\"");
    published.assert_use(&policy, &published.by_tag(), None);
    published.assert_use(&policy, &published.by_digest(), BY_DIGEST);
    Ok(())
}

fn digest_required() -> Result<(), Failed> {
    let published = Published::new()?;
    let policy = published.rule("require = \"digest\"");
    published.assert_use(&policy, &published.by_digest(), BY_DIGEST);
    // A signature is not what was asked for.
    let (signer, artifact) = (&published.signer, published.artifact);
    published.sign_as(signer, artifact, &[&published.repository])?;
    published.assert_use(&policy, &published.by_digest(), BY_DIGEST);
    Ok(())
}

fn signature_required() -> Result<(), Failed> {
    let published = Published::new()?;
    let (signer, repository) = (&published.signer, &published.repository);
    let artifact = published.artifact;
    let policy = published.signature_rule("");
    let names = [published.by_tag(), published.by_digest()];
    published.sign_as(signer, published.manifest, &[repository])?;
    let pinned = format!("{repository}@{artifact} is not accepted");
    for name in &names {
        let reason = [&*pinned, "it is not signed"];
        published.assert_use(&policy, name, Some(&reason));
    }
    published.sign_as(&Signer::new(Kind::P256)?, artifact, &[repository])?;
    published.assert_use(&policy, &names[0], Some(&["none by a key"]));
    let elsewhere = format!("{repository}-2");
    published.sign_as(signer, artifact, &[&elsewhere])?;
    published.assert_use(&policy, &names[0], Some(&[&elsewhere]));
    published.sign_as(signer, artifact, &[repository])?;
    for name in &names {
        published.assert_use(&policy, name, None);
    }
    Ok(())
}

fn tag_required() -> Result<(), Failed> {
    let published = Published::new()?;
    let (signer, repository) = (&published.signer, &published.repository);
    let (name, policy) = (
        published.by_tag(),
        published.signature_rule("require_signed_tag = true"),
    );
    published.sign_as(signer, published.manifest, &[&name])?;
    // It names the image by digest, and that has the tag.
    for signed in [repository, &format!("{repository}:another")] {
        published.sign_as(signer, published.artifact, &[signed])?;
        published.assert_use(&policy, &name, None);
    }
    Ok(())
}
