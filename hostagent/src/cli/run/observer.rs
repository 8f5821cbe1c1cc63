//! What `mote run` does with what it hears of its microVM.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hostagent::guest::{AtFirstOutput, DeviceEvent, DeviceEventKind, Observer};
use hostagent::lazy::fetch::StartUp;
use hostagent::running::Registration;
use hostagent::store::{BlobIdentity, PartialBlob, Store, Suspect, Suspects, Verdict};
use outboard::BlobHash;
use vmm::confinement::Landlock;

use super::messages::Messages;

/// How long the end of a run waits for blobs that are said to be corrupt to be looked at.
/// What its VMM names of each, 1 MiB, takes milliseconds. What is wrong elsewhere than the VMM
/// says, or only was when it read it, takes as long as reading the whole blob, for which a
/// run that has ended does not wait without end; nor does it for a VMM that names what is
/// whole. Less than service managers wait before they kill.
const LAST_LOOKS_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Who looks at blobs that are said to be corrupt, once one is.
    suspects: Option<Suspects>,
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
            suspects: None,
        }
    }

    /// Has a blob of the disk looked at that is corrupt, as a VMM says, whose word alone
    /// takes nothing out of use: others may run on it.
    fn suspect(&mut self, identity: BlobIdentity, span: Option<u64>) {
        if self.suspects.is_none() {
            // Without a thread, the next verification finds it.
            self.suspects = Suspects::begin(Arc::clone(&self.store), tell_verdicts()).ok();
        }
        let mut partials = self.partials.iter();
        let partial = partials.find(|partial| partial.identity() == identity);
        let suspect = Suspect {
            identity,
            span,
            partial: partial.cloned(),
        };
        if let Some(suspects) = &self.suspects {
            suspects.add(suspect);
        }
    }
}

/// Tells the user what became of blobs.
fn tell_verdicts() -> impl FnMut(BlobHash, Verdict) {
    let mut messages = Messages::about("corrupt blobs");
    move |hash, verdict| match verdict {
        Verdict::Quarantined => messages.tell(format_args!(
            "blob {hash} is quarantined; load or pull the image again"
        )),
        Verdict::Forgotten => messages.tell(format_args!(
            "what is wrong of blob {hash} is fetched again in the next run"
        )),
        Verdict::Whole => messages.tell(whole(hash)),
        Verdict::Failed(error) => messages.tell(error),
    }
}

impl Drop for RunObserver {
    /// However the run has ended, what it has found to be corrupt must not be there when
    /// the next one looks for it.
    fn drop(&mut self) {
        let Some(suspects) = self.suspects.take() else {
            return;
        };
        if !suspects.finish(LAST_LOOKS_TIMEOUT) {
            self.messages.tell(
                "not all that may be corrupt could be read before the end of this run; \
                 `mote store verify` reads all of it",
            );
        }
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
        let (hash, on_disk) = match event.kind {
            DeviceEventKind::CorruptBlob { hash, span, .. } => (hash, Some(span)),
            DeviceEventKind::CorruptBoot { hash, .. } => (hash, None),
            _ => return,
        };
        let known = self.blobs.iter().position(|blob| blob.hash == hash);
        match known.map(|index| self.blobs.swap_remove(index)) {
            // There is no guest to wait for it, and the next one must not meet it. Nor does
            // a VMM choose what is read for it now.
            Some(blob) if on_disk.is_none() && self.boot.contains(&hash) => {
                let advice = "the next run takes it in again from its file";
                check(&self.store, blob, advice, &mut self.messages);
            }
            Some(blob) => self.suspect(blob, on_disk.flatten()),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use hostagent::running::RunningMachine;
    use hostagent::store::BootFile;
    use outboard::SPAN_BYTES;

    use super::*;

    /// Blobs that take longer to be read than a run takes to end.
    const SPANS: u64 = 64;

    fn machine() -> RunningMachine {
        RunningMachine {
            id: "ab".repeat(32),
            name: None,
            image: "demo".to_owned(),
            image_id: None,
            command: Vec::new(),
            cpu_template: None,
            memory_bytes: 1 << 20,
            started_unix_seconds: 1,
            vmm_pid: None,
            landlock: None,
            metrics: None,
        }
    }

    fn blob(store: &Store, seed: u8) -> BlobIdentity {
        let mut file = tempfile::tempfile().unwrap();
        for _ in 0..SPANS {
            file.write_all(&vec![seed; SPAN_BYTES as usize]).unwrap();
        }
        std::io::Seek::rewind(&mut file).unwrap();
        let mut file = BootFile {
            what: "the test's".to_owned(),
            file,
            identity: None,
        };
        let lease = store.lease().unwrap();
        store.obtain_boot(&mut file, &lease).unwrap().identity
    }

    fn corrupt(hash: BlobHash, span: Option<u64>) -> DeviceEvent {
        DeviceEvent {
            device: "blk0".to_owned(),
            kind: DeviceEventKind::CorruptBlob {
                hash,
                span,
                reason: "its data is wrong".to_owned(),
            },
        }
    }

    #[test]
    fn a_run_that_has_ended_leaves_nothing_in_use_that_it_found_to_be_corrupt() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path()).unwrap());
        let [named, unnamed, whole, boot] = [1, 2, 3, 4].map(|seed| blob(&store, seed));
        let place = |blob: BlobIdentity| directory.path().join("blobs").join(blob.hash.hex());
        let last = SPANS - 1;
        for blob in [named, unnamed] {
            let data = File::options().write(true).open(place(blob).join("data"));
            data.unwrap()
                .write_all_at(b"wrong", last * SPAN_BYTES + 5)
                .unwrap();
        }
        let registration = store.running().register(machine()).unwrap();
        let disk = vec![named, unnamed, whole];
        let kept = Arc::clone(&store);
        let boot = [boot, boot];
        let mut observer = RunObserver::new(registration, kept, disk, boot, Vec::new(), None);
        observer.device_event(&corrupt(whole.hash, Some(last)));
        observer.device_event(&corrupt(unnamed.hash, None));
        observer.device_event(&corrupt(named.hash, Some(last)));
        // Of what is not its own a VMM may say what it likes.
        observer.device_event(&corrupt(BlobHash::of(b"another"), Some(0)));
        drop(observer);
        for (blob, in_use) in [(named, false), (unnamed, false), (whole, true)] {
            assert_eq!(place(blob).exists(), in_use, "{}", blob.hash);
        }
    }
}
