use super::*;

fn parse(text: &str) -> Result<Settings, ConfigError> {
    Settings::parse(Path::new("/etc/mote/registries.toml"), text)
}

fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn no_file_means_the_defaults() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings::load(directory.path()).unwrap();
    assert_eq!(settings, Settings::default());
    assert_eq!(parse("").unwrap(), Settings::default());
    assert_eq!(settings.download.attempts, 5);
}

#[test]
fn everything_that_is_documented_is_read() {
    let settings = parse(
        r#"
        [download]
        attempts = 2
        stall_seconds = 7
        connect_seconds = 3
        parallel_layers = 4
        [registry."docker.io"]
        mirrors = ["https://mirror.example", "http://10.0.0.2:5000"]
        [registry."Registry.example:5000"]
        ca = "ca.pem"
        plain_http = false
        [registry."[::1]:5000"]
        plain_http = true
        "#,
    )
    .unwrap();
    assert_eq!(settings.download.attempts, 2);
    assert_eq!(settings.download.stall, Duration::from_secs(7));
    assert_eq!(settings.download.connect, Duration::from_secs(3));
    assert_eq!(settings.download.parallel_layers, 4);
    let hub = settings.registry("docker.io").unwrap();
    assert_eq!(hub.mirrors.len(), 2);
    assert_eq!(hub.mirrors[1].port(), Some(5000));
    let own = settings.registry("registry.example:5000").unwrap();
    assert_eq!(own.ca.as_deref(), Some(Path::new("/etc/mote/ca.pem")));
    assert!(settings.registry("[::1]:5000").unwrap().plain_http);
}

#[test]
fn errors_name_the_file_and_the_line() {
    for (text, words) in [
        (
            "[download]\natempts = 5\n",
            "toml:2: unknown field `atempts`",
        ),
        ("[download]\n\nattempts = 0\n", "toml:3: attempts is 0"),
        (
            "\n[registry.\"https://a\"]\n",
            "toml:2: \"https://a\" is not a registry",
        ),
        (
            "[registry.a]\nmirrors = [\n\"a.example\"]\n",
            "toml:3: the mirror",
        ),
        (
            "[registry.a]\nmirrors = [\"https://a.example/path\"]\n",
            "toml:2: the mirror",
        ),
        (
            "[registry.a]\nmirrors = [\"https://u:p@a.example\"]\n",
            "toml:2: the mirror",
        ),
        (
            "[registry.a]\ninsecure_skip_verify = true\n",
            "toml:2: unknown field",
        ),
        ("a = \n", "toml:1: "),
    ] {
        let message = refusal(text);
        assert!(message.contains(words), "{message:?} lacks {words:?}");
    }
}

#[test]
fn a_ca_holds_for_its_host_whether_or_not_the_port_is_named() {
    let settings = parse(
        "[registry.\"a.example\"]\nca = \"/a\"\n[registry.\"b.example:443\"]\nca = \"/b\"\n\
         [registry.\"c.example:5000\"]\nca = \"/c\"\n[registry.\"docker.io\"]\nca = \"/d\"\n",
    )
    .unwrap();
    let ca = |url: &str| {
        settings
            .ca_of(&Url::parse(url).unwrap())
            .map(Path::to_owned)
    };
    assert_eq!(ca("https://a.example/v2/"), Some("/a".into()));
    assert_eq!(ca("https://a.example:5000/v2/"), None);
    assert_eq!(ca("https://b.example/token"), Some("/b".into()));
    assert_eq!(ca("https://c.example:5000/"), Some("/c".into()));
    assert_eq!(ca("https://c.example/"), None);
    assert_eq!(ca("https://registry-1.docker.io/v2/"), Some("/d".into()));
}
