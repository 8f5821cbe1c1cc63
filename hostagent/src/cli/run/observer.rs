//! What `mote run` does with what it hears of its microVM.

use std::path::Path;
use std::sync::Arc;

use hostagent::guest::{AtFirstOutput, DeviceEvent, DeviceEventKind, Observer};
use hostagent::lazy::fetch::StartUp;
use hostagent::running::Registration;
use hostagent::store::{BlobIdentity, PartialBlob, Store};
use outboard::BlobHash;
use vmm::confinement::Landlock;

use super::messages::Messages;

/// Keeps the record of the microVM, tells the user what becomes of its devices, and takes
/// blobs out of use that turn out to be corrupt.
pub struct RunObserver {
    registration: Registration,
    messages: Messages,
    store: Arc<Store>,
    /// The blobs of its disk, its kernel and its initrd that nothing has been said about.
    blobs: Vec<BlobIdentity>,
    /// Its kernel and its initrd.
    boot: [BlobHash; 2],
    /// Those of the disk that are here in part.
    partials: Vec<Arc<PartialBlob>>,
    /// Who fetches them.
    start_up: Option<StartUp>,
}

impl RunObserver {
    /// For the microVM of `registration`.
    pub fn new(
        registration: Registration,
        store: Arc<Store>,
        disk: Vec<BlobIdentity>,
        boot: [BlobIdentity; 2],
        partials: Vec<Arc<PartialBlob>>,
        start_up: Option<StartUp>,
    ) -> Self {
        let mut blobs = disk;
        blobs.extend(boot);
        Self {
            registration,
            messages: Messages::about("the guest's devices"),
            store,
            blobs,
            boot: boot.map(|blob| blob.hash),
            partials,
            start_up,
        }
    }

    /// Looks whether a blob of the disk is corrupt, as a VMM says, whose word alone takes
    /// nothing out of use: others may run on it. Takes as long as reading it, and so has a
    /// thread of its own.
    fn check_beside(&self, blob: BlobIdentity) {
        let store = Arc::clone(&self.store);
        let mut partials = self.partials.iter();
        let partial = partials.find(|partial| partial.identity() == blob && partial.missing() > 0);
        // One that is complete is a blob like any other.
        let partial = partial.cloned();
        let look = move || {
            let mut messages = Messages::about("a blob");
            let hash = blob.hash;
            let Some(partial) = partial else {
                return check(&store, blob, "load or pull the image again", &mut messages);
            };
            match store.mend_partial(&partial) {
                Ok(true) => messages.tell(format_args!(
                    "what is wrong of blob {hash} is fetched again in the next run"
                )),
                Ok(false) => messages.tell(whole(hash)),
                Err(error) => messages.tell(error),
            }
        };
        // Without a thread, the next verification finds it.
        let _ = std::thread::Builder::new()
            .name("verify".to_owned())
            .spawn(look);
    }
}

/// Reads all of a blob, and quarantines it if it is corrupt.
fn check(store: &Store, blob: BlobIdentity, advice: &str, messages: &mut Messages) {
    let hash = blob.hash;
    match store.quarantine_if_corrupt(blob) {
        Ok(true) => messages.tell(format_args!("blob {hash} is quarantined; {advice}")),
        Ok(false) => messages.tell(whole(hash)),
        Err(error) => messages.tell(error),
    }
}

fn whole(hash: BlobHash) -> String {
    format!("blob {hash} is whole as this host reads it now: its memory or its disk may be failing")
}

impl Observer for RunObserver {
    fn vmm_started(&mut self, pid: u32, metrics: &Path) {
        self.registration.vmm_started(pid, metrics);
    }

    fn vmm_confined(&mut self, landlock: Landlock) {
        self.registration.vmm_confined(landlock);
    }

    fn workload_started(&mut self) {
        self.start_up.iter().for_each(StartUp::begun);
    }

    fn at_first_output(&self) -> AtFirstOutput {
        let start_up = self.start_up.clone();
        Box::new(move || start_up.iter().for_each(StartUp::over))
    }

    fn device_event(&mut self, event: &DeviceEvent) {
        self.messages.tell(event);
        let (hash, boots) = match event.kind {
            DeviceEventKind::CorruptBlob { hash, .. } => (hash, false),
            DeviceEventKind::CorruptBoot { hash, .. } => (hash, true),
            _ => return,
        };
        let known = self.blobs.iter().position(|blob| blob.hash == hash);
        match known.map(|index| self.blobs.swap_remove(index)) {
            // There is no guest to wait for it, and the next one must not meet it. Nor does
            // a VMM choose what is read for it now.
            Some(blob) if boots && self.boot.contains(&hash) => {
                let advice = "the next run takes it in again from its file";
                check(&self.store, blob, advice, &mut self.messages);
            }
            Some(blob) => self.check_beside(blob),
            None => {}
        }
    }
}
