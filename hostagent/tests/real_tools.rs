//! Images made by the tools people use: umoci and skopeo, as Debian ships them.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};
use support::{Mote, noise};
use tempfile::TempDir;

type Test = fn() -> Result<(), Failed>;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let has = |tool: &str| {
        let mut command = Command::new(tool);
        command.arg("--version").stdout(Stdio::null());
        command.stderr(Stdio::null()).status().is_ok()
    };
    let missing = !has("umoci") || !has("skopeo");
    if missing {
        println!("ignored: umoci or skopeo is not installed; `cargo xtask test` installs them");
    }
    let tests: [(&str, Test); 3] = [
        ("a_layout_of_umoci_is_loaded", umoci_layout),
        ("archives_of_skopeo_are_loaded", skopeo_archives),
        ("a_layout_of_skopeo_with_zstd_is_loaded", skopeo_zstd),
    ];
    let trials = tests
        .into_iter()
        .map(|(name, test)| Trial::test(name, test).with_ignored_flag(missing))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run(directory: &Path, program: &str, arguments: &[&str]) -> Result<(), Failed> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {arguments:?}: {errors}").into())
}

/// An OCI layout `images` with an image `demo` of two layers.
fn umoci_image() -> Result<TempDir, Failed> {
    let directory = TempDir::new()?;
    let path = directory.path();
    let tree = path.join("tree");
    std::fs::create_dir_all(tree.join("usr/bin"))?;
    std::fs::write(tree.join("usr/bin/data"), noise(42, 500_000))?;
    std::os::unix::fs::symlink("usr/bin", tree.join("bin"))?;
    let top = path.join("top");
    std::fs::create_dir_all(&top)?;
    std::fs::write(top.join("hello"), "hello\n")?;
    let image = "images:demo";
    run(path, "umoci", &["init", "--layout", "images"])?;
    run(path, "umoci", &["new", "--image", image])?;
    for (tree, target) in [("tree", "/"), ("top", "/srv")] {
        let arguments = ["insert", "--image", image, "--rootless", tree, target];
        run(path, "umoci", &arguments)?;
    }
    let arguments = [
        "config",
        "--image",
        image,
        "--config.cmd",
        "/bin/data",
        "--config.env",
        "A=b",
        "--config.user",
        "1000",
    ];
    run(path, "umoci", &arguments)?;
    Ok(directory)
}

fn umoci_layout() -> Result<(), Failed> {
    let directory = umoci_image()?;
    let mote = Mote::new();
    let loaded = mote.load(&format!("oci:{}/images:demo", directory.path().display()));
    assert_eq!(loaded["names"][0], "images:demo");
    assert_eq!(loaded["layers_converted"], 2);
    let store = hostagent::store::Store::open(mote.root.path())?;
    let config = store.config(store.images()?[0].id)?;
    assert_eq!(config.cmd, ["/bin/data"]);
    assert_eq!(config.user, "1000");
    assert!(config.env.contains(&"A=b".to_owned()), "{config:?}");
    mote.assert_consistent();
    Ok(())
}

fn skopeo_archives() -> Result<(), Failed> {
    let directory = umoci_image()?;
    let path = directory.path();
    let mote = Mote::new();
    for (transport, converted) in [("docker-archive", 2), ("oci-archive", 0)] {
        let target = format!("{transport}:{transport}.tar:registry.example/demo:v1");
        run(path, "skopeo", &["copy", "oci:images:demo", &target])?;
        let archive = path.join(format!("{transport}.tar"));
        let archive = archive.to_str().ok_or("path")?;
        let loaded = mote.load(&format!("docker-archive:{archive}"));
        assert_eq!(
            loaded["names"][0], "registry.example/demo:v1",
            "{transport}"
        );
        assert_eq!(loaded["layers_converted"], converted, "{transport}");
    }
    mote.assert_consistent();
    Ok(())
}

fn skopeo_zstd() -> Result<(), Failed> {
    let directory = umoci_image()?;
    let path = directory.path();
    let arguments = [
        "copy",
        "--dest-compress-format",
        "zstd",
        "oci:images:demo",
        "oci:zstd:demo",
    ];
    run(path, "skopeo", &arguments)?;
    let mote = Mote::new();
    let loaded = mote.load(&format!("oci:{}/zstd:demo", path.display()));
    assert_eq!(loaded["layers_converted"], 2);
    mote.assert_consistent();
    Ok(())
}
