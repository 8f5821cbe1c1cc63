//! `mote` under a policy, and an image of a real registry that it could run.

use hostagent::image::digest::Digest;
use hostagent::registry::{Client, OCI_MANIFEST, Reference, Repository};
use libtest_mimic::Failed;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{client, go_on, repository, tag};
use crate::docker_registry::DockerRegistry;
use crate::signer::{Kind, Signer, attach, payload, signed_layer};
use crate::support::{Layout, Mote, Run, Stored, layer, noise};

/// A store, and the policy that holds for it.
pub struct Node {
    pub mote: Mote,
    config: TempDir,
}

impl Node {
    pub fn without_policy() -> Result<Self, Failed> {
        let mote = Mote::new();
        mote.install_idle();
        let config = TempDir::new()?;
        Ok(Self { mote, config })
    }

    pub fn with_policy(text: &str) -> Result<Self, Failed> {
        let node = Self::without_policy()?;
        std::fs::write(node.config.path().join("policy.toml"), text)?;
        Ok(node)
    }

    pub fn run(&self, arguments: &[&str]) -> Run {
        let mut command = self.mote.command(arguments);
        Run::of(
            command
                .env("MOTE_CONFIG", self.config.path())
                .output()
                .unwrap(),
        )
    }
}

/// A registry with the image `app:v1`, in converted form as well.
pub struct Published {
    pub signer: Signer,
    /// The image's manifest.
    pub manifest: Digest,
    /// That of the image in converted form.
    pub artifact: Digest,
    /// `HOST/app`.
    pub repository: String,
    client: Client,
    to: Repository,
    registry: DockerRegistry,
}

impl Published {
    pub fn new() -> Result<Self, Failed> {
        let registry = DockerRegistry::plain()?;
        let host = registry.host();
        let mut published = Self {
            signer: Signer::new(Kind::P256)?,
            manifest: Digest::of(b""),
            artifact: Digest::of(b""),
            repository: format!("{host}/app"),
            client: client(&host),
            to: repository(&host, "app"),
            registry,
        };
        (published.manifest, published.artifact) = published.push("v1", 1)?;
        Ok(published)
    }

    /// Pushes an image, of this seed's content; returns its manifest and the artifact.
    pub fn push(&self, tag: &str, seed: u32) -> Result<(Digest, Digest), Failed> {
        let name = format!("{}:{tag}", self.repository);
        let layers = [layer(&[("data", &noise(seed, 1_000_000))])];
        let layout = Layout::with_image(&layers, Stored::Gzip, &name);
        let mote = Mote::new();
        mote.load(&layout.reference(&name));
        let run = mote.run(&["push", "--format", "json", &name]).expect(0);
        let told: Value = run.json().remove(0);
        let digest = |key: &str| told[key].as_str().unwrap_or_default().parse();
        Ok((digest("digest")?, digest("artifact")?))
    }

    /// Makes the registry serve a manifest that it has under another tag.
    pub fn retag(&self, manifest: Digest, to: &str) -> Result<(), Failed> {
        let from = Reference::Digest(manifest);
        let stored = self.client.manifest(&self.to, &from, 1 << 20, &go_on)?;
        let to = tag(to);
        let pushed = self
            .client
            .push_manifest(&self.to, &to, &stored.bytes, OCI_MANIFEST, &go_on);
        assert_eq!(pushed?, manifest);
        Ok(())
    }

    /// Has a manifest signed under these references, in place of what signed it before.
    pub fn sign_as(
        &self,
        signer: &Signer,
        digest: Digest,
        references: &[&str],
    ) -> Result<(), Failed> {
        let payloads: Vec<Vec<u8>> = references
            .iter()
            .map(|reference| payload(reference, digest))
            .collect();
        let layers = payloads.iter().map(|payload| signed_layer(signer, payload));
        let layers: Vec<Value> = layers.collect::<Result<_, _>>()?;
        let payloads: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        attach(&self.client, &self.to, digest, &payloads, &layers)
    }

    /// A policy with one rule, for the registry.
    pub fn rule(&self, lines: &str) -> String {
        let host = self.registry.host();
        format!("default = \"reject\"\n[[repository]]\nmatch = \"{host}/*\"\n{lines}\n")
    }

    /// The policy that wants a signature by the signer.
    pub fn signature_rule(&self, more: &str) -> String {
        let key = self.signer.public();
        self.rule(&format!(
            "require = \"signature\"\nkeys = [{key:?}]\n{more}"
        ))
    }
}
