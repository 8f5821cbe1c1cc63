use super::*;

/// Of a key made with openssl, on P-256.
const PEM: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE3T2u+PqKujojlxmKzAZ7EDVDCXUw
BSx/seaIdSKwmETmNiI4t2CMO/+4/VzzsvovJgmFqNMS5cUvi3n4bljcFQ==
-----END PUBLIC KEY-----
";
/// As `sha256sum` prints it of the key in DER.
const FINGERPRINT: &str = "f6f198f538b2a59ea3b9127822b68236c250aa2d4d9ed1c7b23ef04b93dc20d8";

fn parse(pem: &str) -> Result<TrustedKey, KeyProblem> {
    TrustedKey::parse(Path::new("team.pub"), pem.as_bytes())
}

/// A PEM section of these bytes.
fn section(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

fn der() -> Vec<u8> {
    only_section(PEM.as_bytes()).unwrap()
}

#[test]
fn a_key_is_known_by_its_file_and_its_fingerprint() {
    let key = parse(PEM).unwrap();
    assert_eq!(key.fingerprint().hex(), FINGERPRINT);
    assert_eq!(key.to_string(), format!("team.pub (sha256:{FINGERPRINT})"));
    // Words around the section, as `openssl` prints them with -text, are no matter.
    assert_eq!(parse(&format!("words\n{PEM}more\n")).unwrap(), key);
}

#[test]
fn what_is_not_one_public_key_is_refused() {
    let der = der();
    let refused = |pem: &str| parse(pem).unwrap_err();
    assert!(matches!(refused(""), KeyProblem::Missing));
    assert!(matches!(refused("not a key"), KeyProblem::Missing));
    let several = format!("{PEM}{PEM}");
    assert!(matches!(refused(&several), KeyProblem::Several));
    let cut = &PEM[..PEM.len() - 30];
    assert!(matches!(refused(cut), KeyProblem::Pem(_)));
    let broken = PEM.replace("MFkw", "M!kw");
    assert!(matches!(refused(&broken), KeyProblem::Pem(_)));
    for label in ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"] {
        let private = section(label, &der);
        assert!(matches!(refused(&private), KeyProblem::Private), "{label}");
    }
    let certificate = section("CERTIFICATE", &der);
    assert!(matches!(refused(&certificate), KeyProblem::Kind));
}

#[test]
fn a_malformed_structure_is_refused_wherever_it_ends_or_goes_on() {
    let der = der();
    for length in 0..der.len() {
        assert!(parse(&section("PUBLIC KEY", &der[..length])).is_err());
    }
    let longer = [&der[..], &[0]].concat();
    assert!(parse(&section("PUBLIC KEY", &longer)).is_err());
}

#[test]
fn a_point_that_is_not_on_the_curve_is_refused() {
    let mut off = der();
    *off.last_mut().unwrap() ^= 1;
    let outcome = parse(&section("PUBLIC KEY", &off));
    assert!(matches!(outcome, Err(KeyProblem::Point)), "{outcome:?}");
}

#[test]
fn a_file_that_is_missing_or_endless_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none.pub");
    let error = TrustedKey::read(&path).unwrap_err();
    assert!(error.to_string().contains("none.pub"), "{error}");
    let endless = TrustedKey::read(Path::new("/dev/zero")).unwrap_err();
    assert!(matches!(endless, KeyError::TooLong { .. }));
    std::fs::write(&path, "no key").unwrap();
    let error = TrustedKey::read(&path).unwrap_err();
    assert!(error.to_string().contains("none.pub"), "{error}");
}
