//! The microVMs that run: one file each, held by a lock for as long as its agent
//! lives.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmm::confinement::Landlock;

use crate::control::Place;
use crate::guest::Observer;
use crate::image::digest::Digest;
use crate::store::lock::FileLock;

/// One microVM that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningMachine {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The name it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The image, as it was named.
    pub image: String,
    /// The id of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<Digest>,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// What its CPUs are like, if not like the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<String>,
    /// Its memory.
    #[serde(default)]
    pub memory_bytes: u64,
    /// When it was started, in seconds since 1970.
    pub started_unix_seconds: u64,
    /// Its VMM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_pid: Option<u32>,
    /// How much Landlock adds to its confinement: what the VMM said before its guest's
    /// first instruction, since the kernel tells nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock: Option<Landlock>,
    /// Its page of metrics ([`vmm::metrics`]), as its agent has it open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<PathBuf>,
}

/// The directory of what runs.
#[derive(Debug)]
pub struct Registry {
    directory: PathBuf,
}

impl Registry {
    /// The registry in `directory`, which exists.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Makes `machine` known until the registration is dropped or this process ends.
    pub fn register(&self, machine: RunningMachine) -> io::Result<Registration> {
        let path = self.directory.join(&machine.id);
        // Also while it is written for the first time: nobody finds it empty.
        let _gate = self.gate()?;
        let lock = FileLock::try_acquire(&path)?.ok_or(io::ErrorKind::AlreadyExists)?;
        let mut registration = Registration {
            control: self.control(&machine),
            lock,
            temporary: self.directory.join(temporary_name(&machine.id)),
            path,
            machine,
        };
        registration.write()?;
        Ok(registration)
    }

    /// What runs, the eldest first. What is in the directory and is no record of a
    /// microVM, is neither looked at nor removed.
    pub fn list(&self) -> io::Result<Vec<RunningMachine>> {
        // What dead agents left behind goes.
        let _gate = self.gate()?;
        let mut machines = Vec::new();
        let mut live = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            let is_temporary = is_temporary(&name);
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if !is_file || !(is_temporary || is_id(name.as_encoded_bytes())) {
                continue;
            }
            if FileLock::try_acquire(&path)?.is_some() || is_temporary {
                // A temporary that is held is about to take the place of a record.
                continue;
            }
            live.push(name);
            // One that has ended meanwhile is not there any more.
            let Ok(text) = fs::read(&path) else { continue };
            machines.extend(serde_json::from_slice::<RunningMachine>(&text));
        }
        self.remove_stale_sockets(&live);
        machines.sort_by(|a, b| {
            let key = |machine: &RunningMachine| (machine.started_unix_seconds, machine.id.clone());
            key(a).cmp(&key(b))
        });
        Ok(machines)
    }

    /// The one of this name, or whose id begins so.
    pub fn find(&self, wanted: &str) -> Result<RunningMachine, FindError> {
        let machines = self.list().map_err(FindError::Read)?;
        let named = |machine: &RunningMachine| machine.name.as_deref() == Some(wanted);
        if let Some(machine) = machines.iter().find(|machine| named(machine)) {
            return Ok(machine.clone());
        }
        let mut found = machines
            .into_iter()
            .filter(|machine| !wanted.is_empty() && machine.id.starts_with(wanted));
        match (found.next(), found.next()) {
            (None, _) => Err(FindError::None(wanted.to_owned())),
            (Some(_), Some(_)) => Err(FindError::Several(wanted.to_owned())),
            (Some(machine), None) => Ok(machine),
        }
    }

    /// Where `machine` is asked for something.
    pub fn control(&self, machine: &RunningMachine) -> Place {
        Place::new(&self.control_directory(), &machine.id)
    }

    fn control_directory(&self) -> PathBuf {
        self.directory.join(".control")
    }

    /// Removes what killed agents left behind; under the gate, so that none of those
    /// whose machines are `live` is new.
    fn remove_stale_sockets(&self, live: &[OsString]) {
        let Ok(entries) = fs::read_dir(self.control_directory()) else {
            return;
        };
        for entry in entries.flatten() {
            if !live.contains(&entry.file_name()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Held while files are tried, so that looking makes none look taken.
    fn gate(&self) -> io::Result<FileLock> {
        FileLock::acquire_brief(&self.gate_path())
    }

    fn gate_path(&self) -> PathBuf {
        self.directory.join(".gate")
    }
}

/// What the record of `id` is called until it is whole.
fn temporary_name(id: &str) -> String {
    format!(".{id}.new")
}

fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes().strip_prefix(b".");
    let id = name.and_then(|name| name.strip_suffix(b".new"));
    id.is_some_and(is_id)
}

fn is_id(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(u8::is_ascii_hexdigit)
}

/// Why no microVM was found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The registry cannot be read.
    #[error("cannot read what runs")]
    Read(#[source] io::Error),
    /// There is none.
    #[error("no microVM called {0:?} runs; `mote ps` lists those that do")]
    None(String),
    /// There are several.
    #[error("several microVMs' ids begin with {0:?}; give more digits")]
    Several(String),
}

/// A microVM that is known while this exists.
#[derive(Debug)]
pub struct Registration {
    control: Place,
    lock: FileLock,
    path: PathBuf,
    temporary: PathBuf,
    machine: RunningMachine,
}

impl Registration {
    fn write(&mut self) -> io::Result<()> {
        let text = serde_json::to_vec(&self.machine)?;
        self.lock.replace(&self.temporary, &text)
    }

    /// Where the microVM is asked for something.
    pub fn control(&self) -> &Place {
        &self.control
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Observer for Registration {
    fn vmm_started(&mut self, pid: u32, metrics: &Path) {
        self.machine.vmm_pid = Some(pid);
        self.machine.metrics = Some(metrics.to_owned());
        // A full disk leaves it as known as it was, and running.
        let _ = self.write();
    }

    fn vmm_confined(&mut self, landlock: Landlock) {
        self.machine.landlock = Some(landlock);
        let _ = self.write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(id: &str, name: Option<&str>) -> RunningMachine {
        RunningMachine {
            id: id.to_owned(),
            name: name.map(str::to_owned),
            image: "demo:latest".to_owned(),
            image_id: None,
            command: vec!["true".to_owned()],
            cpu_template: None,
            memory_bytes: 64 << 20,
            started_unix_seconds: 1,
            vmm_pid: None,
            landlock: None,
            metrics: None,
        }
    }

    #[test]
    fn a_machine_is_listed_while_it_runs_and_no_longer() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::new(directory.path().to_owned());
        let mut one = registry.register(machine("ab12", Some("web"))).unwrap();
        let two = registry.register(machine("ab34", None)).unwrap();
        one.vmm_started(7, Path::new("/proc/6/fd/5"));
        let ids = |registry: &Registry| -> Vec<String> {
            let machines = registry.list().unwrap();
            machines.into_iter().map(|machine| machine.id).collect()
        };
        assert_eq!(ids(&registry), ["ab12", "ab34"]);
        assert_eq!(registry.find("web").unwrap().vmm_pid, Some(7));
        assert_eq!(registry.find("ab3").unwrap().id, "ab34");
        assert!(matches!(registry.find("ab"), Err(FindError::Several(_))));
        assert!(matches!(registry.find(""), Err(FindError::None(_))));
        drop(two);
        assert_eq!(ids(&registry), ["ab12"]);
        // A temporary that its agent has just written, and one that a dead one left.
        let [held, stale] = [".ab12.new", ".ab34.new"].map(|name| directory.path().join(name));
        let lock = FileLock::try_acquire(&held).unwrap().unwrap();
        fs::copy(one.path(), &held).unwrap();
        fs::copy(one.path(), &stale).unwrap();
        assert_eq!(ids(&registry), ["ab12"]);
        assert!(held.exists() && !stale.exists());
        drop(lock);
        // As after kill -9: the file is there, and nobody holds it.
        let control = directory.path().join(".control");
        fs::create_dir(&control).unwrap();
        for file in ["dead", ".control/dead", ".control/ab12"] {
            fs::write(directory.path().join(file), "{}").unwrap();
        }
        assert_eq!(ids(&registry), ["ab12"]);
        assert!(!directory.path().join("dead").exists());
        assert!(!control.join("dead").exists() && control.join("ab12").exists());
    }

    #[test]
    fn what_is_no_record_is_passed_over_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::new(directory.path().to_owned());
        let one = registry.register(machine("ab12", None)).unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["lost+found", "cd34", ".cd56.new"] {
            fs::create_dir(at(name)).unwrap();
        }
        std::os::unix::fs::symlink(one.path(), at("ef56")).unwrap();
        std::os::unix::fs::symlink("/no/such/file", at("ef78")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("ab56")).unwrap();
        for name in ["notes.txt", "ab12~", ".new"] {
            fs::copy(one.path(), at(name)).unwrap();
        }
        let before = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(registry.list().unwrap().len(), 1);
        assert_eq!(registry.find("ab12").unwrap().id, "ab12");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), before);
    }

    #[test]
    fn a_record_that_cannot_be_written_again_stays_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::new(directory.path().to_owned());
        let mut one = registry.register(machine("ab12", None)).unwrap();
        // Stands for a disk without room: nothing can be written there.
        fs::create_dir(&one.temporary).unwrap();
        one.vmm_started(7, Path::new("/proc/6/fd/5"));
        fs::remove_dir(&one.temporary).unwrap();
        let [found] = &registry.list().unwrap()[..] else {
            panic!("it is not listed");
        };
        assert_eq!((found.id.as_str(), found.vmm_pid), ("ab12", None));
        // And it is known completely as soon as there is room.
        one.vmm_confined(Landlock::Full);
        assert_eq!(registry.find("ab12").unwrap().vmm_pid, Some(7));
    }

    #[test]
    fn a_reader_finds_a_whole_record_at_every_moment() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::new(directory.path().to_owned());
        let mut one = registry.register(machine("ab12", None)).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for pid in 0..500 {
                    one.vmm_started(pid, Path::new("/proc/6/fd/5"));
                }
            });
            while !writer.is_finished() {
                assert_eq!(registry.list().unwrap().len(), 1);
            }
        });
        assert_eq!(registry.find("ab12").unwrap().vmm_pid, Some(499));
    }
}
