//! Debian's docker-registry, as a process of the test.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use libtest_mimic::Failed;
use tempfile::TempDir;

/// How a registry is set up.
#[derive(Debug, Default)]
pub struct Setup {
    /// Certificate and key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The lines of the section `auth`.
    pub auth: String,
}

/// A registry with a storage of its own. It ends with its value, also in a panic.
pub struct DockerRegistry {
    pub address: SocketAddr,
    child: Child,
    directory: TempDir,
}

impl DockerRegistry {
    /// Without TLS, for everybody.
    pub fn plain() -> Result<Self, Failed> {
        Self::start(&Setup::default())
    }

    pub fn start(setup: &Setup) -> Result<Self, Failed> {
        // Another process may take the port before the registry does.
        for _ in 0..3 {
            if let Some(registry) = Self::try_start(setup)? {
                return Ok(registry);
            }
        }
        Err("docker-registry does not start".into())
    }

    fn try_start(setup: &Setup) -> Result<Option<Self>, Failed> {
        let directory = TempDir::new()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = directory.path().join("config.yml");
        fs::write(&config, configuration(setup, directory.path(), address))?;
        let log = fs::File::create(directory.path().join("log"))?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut registry = Self {
            address,
            child,
            directory,
        };
        for _ in 0..500 {
            if registry.child.try_wait()?.is_some() {
                println!("docker-registry has ended: {}", registry.log());
                return Ok(None);
            }
            // A connection alone might be to another process.
            if registry.log().contains("listening on") {
                return Ok(Some(registry));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(format!("docker-registry does not listen: {}", registry.log()).into())
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// What the registry had to say.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(setup: &Setup, directory: &Path, address: SocketAddr) -> String {
    let tls = setup
        .tls
        .as_ref()
        .map_or(String::new(), |(certificate, key)| {
            format!(
                "  tls:\n    certificate: {}\n    key: {}\n",
                certificate.display(),
                key.display()
            )
        });
    let auth = match setup.auth.as_str() {
        "" => String::new(),
        lines => format!("auth:\n{lines}"),
    };
    format!(
        "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\n\
         storage:\n  filesystem:\n    rootdirectory: {}\n\
         http:\n  addr: {address}\n  secret: of-the-test\n{tls}{auth}",
        directory.join("storage").display()
    )
}

/// Runs a tool and returns its output.
pub fn tool(program: &str, arguments: &[&str], directory: &Path) -> Result<Vec<u8>, Failed> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {arguments:?}: {errors}").into())
}
