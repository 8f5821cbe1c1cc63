//! The workload's environment: what the agent sent, and what Docker adds where
//! it is missing.

/// The search path of an image that names none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The value of `name`: the last one given, as the agent appends what overrides.
pub fn value<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter().rev().find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then_some(value)
    })
}

/// `env`, each name once and in the order first given, with `PATH`, `HOSTNAME`
/// and `HOME` where they are missing. An empty `HOME` is a missing one.
pub fn complete(env: &[String], hostname: &str, home: &str) -> Vec<String> {
    let mut complete: Vec<String> = Vec::with_capacity(env.len() + 3);
    if value(env, "PATH").is_none() {
        complete.push(format!("PATH={DEFAULT_PATH}"));
    }
    if value(env, "HOSTNAME").is_none() {
        complete.push(format!("HOSTNAME={hostname}"));
    }
    for pair in env {
        // A name without a value is not an environment entry.
        let Some((name, _)) = pair.split_once('=') else {
            continue;
        };
        let same_name = |other: &String| other.split('=').next() == Some(name);
        match complete.iter_mut().find(|other| same_name(other)) {
            Some(earlier) => *earlier = pair.clone(),
            None => complete.push(pair.clone()),
        }
    }
    if value(&complete, "HOME").is_none_or(str::is_empty) {
        complete.retain(|pair| !pair.starts_with("HOME="));
        complete.push(format!("HOME={home}"));
    }
    complete
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(env: &[&str]) -> Vec<String> {
        let env: Vec<String> = env.iter().map(|pair| (*pair).to_owned()).collect();
        complete(&env, "box", "/root")
    }

    #[test]
    fn an_empty_environment_gets_path_hostname_and_home() {
        assert_eq!(
            completed(&[]),
            [
                &format!("PATH={DEFAULT_PATH}"),
                "HOSTNAME=box",
                "HOME=/root"
            ]
        );
    }

    #[test]
    fn what_is_given_is_kept_as_it_is() {
        let given = ["HOME=/h", "PATH=", "HOSTNAME=other", "A=b=c", "EMPTY="];
        assert_eq!(completed(&given), given);
    }

    #[test]
    fn an_empty_home_is_a_missing_one() {
        assert!(completed(&["HOME="]).contains(&"HOME=/root".to_owned()));
    }

    #[test]
    fn the_last_value_of_a_name_wins_in_the_place_of_the_first() {
        let env = completed(&["A=1", "PATH=/bin", "B=2", "A=3", "nothing"]);
        assert_eq!(
            env,
            ["HOSTNAME=box", "A=3", "PATH=/bin", "B=2", "HOME=/root"]
        );
    }

    #[test]
    fn a_value_is_found_by_its_whole_name() {
        let env = ["PATHS=x".to_owned(), "PATH=/a".to_owned()];
        assert_eq!(value(&env, "PATH"), Some("/a"));
        assert_eq!(value(&env, "PAT"), None);
    }
}
