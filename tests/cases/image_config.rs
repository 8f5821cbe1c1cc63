//! What an image's own configuration and layers ask for.

use e2e::mote;
use e2e::oci::{Layout, tar};
use serde_json::json;

#[test]
fn entrypoint_cmd_env_directory_and_user_come_from_the_image() {
    let mut layout = Layout::from_test_image()
        .set("Entrypoint", json!(["/bin/sh", "-c"]))
        .set("Cmd", json!(["echo $GREETING $(pwd) $(id -un) $0 $*"]))
        .set("Env", json!(["PATH=/usr/bin:/bin", "GREETING=hello"]))
        .set("WorkingDir", json!("/srv/work"))
        .set("User", json!("www-data"));
    let reference = layout.finish();
    let run = mote(["run", &reference]).expect(0);
    assert_eq!(run.text(), "hello /srv/work www-data /bin/sh");
    let run = mote(["run", &reference, "echo replaced"]).expect(0);
    assert_eq!(run.text(), "replaced");
}

#[test]
fn the_stop_signal_of_the_image_is_sent_for_sigterm() {
    let script = "trap 'echo got USR1; exit 4' USR1; echo ready; while :; do sleep 0.1; done";
    let mut layout = Layout::from_test_image()
        .set("Cmd", json!(["/bin/sh", "-c", script]))
        .set("StopSignal", json!("SIGUSR1"));
    let reference = layout.finish();
    let mut child = e2e::mote_in_background(["run", &reference]);
    let mut output = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut output, &mut line).expect("the guest prints");
    assert_eq!(line, "ready\n");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("mote is there");
    line.clear();
    std::io::BufRead::read_line(&mut output, &mut line).expect("the guest prints");
    assert_eq!(line, "got USR1\n");
    e2e::finish(child).expect(4);
}

#[test]
fn layers_add_replace_and_remove() {
    let lower = tar("mkdir -p d/keep d/gone o; echo old >d/file; echo x >d/gone/x; echo x >o/x");
    let upper = tar("mkdir d o; echo new >d/file; : >d/.wh.gone; : >o/.wh..wh..opq; echo y >o/y");
    let mut layout = Layout::from_test_image().layer(&lower).layer(&upper);
    let reference = layout.finish();
    let script = "cd /; cat d/file; ls -A d o";
    let run = mote(["run", &reference, "/bin/sh", "-c", script]).expect(0);
    assert_eq!(run.text(), "new\nd:\nfile\nkeep\n\no:\ny");
}

#[test]
fn owners_modes_and_times_survive() {
    let layer = tar(
        "echo x >f; chown 70000:80000 f; chmod 4751 f; touch -d '2001-02-03 04:05:06 UTC' f; \
         ln f hard; ln -s f soft; mkfifo p; mknod n c 1 3",
    );
    let mut layout = Layout::from_test_image().layer(&layer);
    let reference = layout.finish();
    let script = "cd /; stat -c '%n %F %a %u %g %Y %h' f; stat -c '%n %F %t,%T' p n; readlink soft";
    let run = mote(["run", &reference, "/bin/sh", "-c", script]).expect(0);
    let expected = "f regular file 4751 70000 80000 981173106 2\n\
                    p fifo 0,0\n\
                    n character special file 1,3\n\
                    f";
    assert_eq!(run.text(), expected);
}
