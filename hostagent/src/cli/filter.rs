//! `--filter`, as `docker images` and `docker image prune` have it.

use anyhow::{Context, bail};
use hostagent::image::name::ImageName;
use hostagent::store::{Store, StoredImage};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// What images have to be to be meant. All of it has to hold; of several `reference` one.
#[derive(Debug, Default)]
pub struct Filters {
    references: Vec<String>,
    dangling: Option<bool>,
    /// Images loaded before this one.
    before: Option<StoredImage>,
    since: Option<StoredImage>,
    /// Built before.
    until: Option<Timestamp>,
    labels: Vec<(String, Option<String>)>,
}

impl Filters {
    /// For `docker images`: `reference=`, `dangling=`, `before=`, `since=`, `label=`.
    pub fn of_list(store: &Store, texts: &[String]) -> anyhow::Result<Self> {
        let known = ["reference", "dangling", "before", "since", "label"];
        Self::parse(store, texts, &known)
    }

    /// For `docker image prune`: `until=`, `label=`.
    pub fn of_prune(store: &Store, texts: &[String]) -> anyhow::Result<Self> {
        Self::parse(store, texts, &["until", "label"])
    }

    fn parse(store: &Store, texts: &[String], known: &[&str]) -> anyhow::Result<Self> {
        let mut filters = Self::default();
        for text in texts {
            let key = text.split_once('=').filter(|(key, _)| known.contains(key));
            let Some((key, value)) = key else {
                bail!(
                    "{text:?} is no filter; give {}=VALUE",
                    known.join("=VALUE or ")
                );
            };
            let image = || -> anyhow::Result<StoredImage> { Ok(store.find(&value.parse()?)?) };
            match key {
                "reference" => filters.references.push(value.to_owned()),
                "dangling" => {
                    filters.dangling = Some(match value {
                        "true" | "1" => true,
                        "false" | "0" => false,
                        _ => bail!("dangling={value:?} is neither true nor false"),
                    });
                }
                "before" => filters.before = Some(image()?),
                "since" => filters.since = Some(image()?),
                "until" => filters.until = Some(until(value)?),
                _ => {
                    let pair = value.split_once('=');
                    let (key, value) =
                        pair.map_or((value, None), |(key, value)| (key, Some(value.to_owned())));
                    filters.labels.push((key.to_owned(), value));
                }
            }
        }
        Ok(filters)
    }

    /// One more pattern for names, such as `debian`, `debian:12` or `team/*`.
    pub fn add_reference(&mut self, pattern: &str) {
        self.references.push(pattern.to_owned());
    }

    /// Whether the image is meant, whatever it is called.
    pub fn admit(&self, store: &Store, image: &StoredImage) -> anyhow::Result<bool> {
        let when = |image: &StoredImage| (image.loaded_unix_seconds, image.id);
        let other = |other: &StoredImage| other.id != image.id;
        if self.dangling.is_some_and(|it| it != image.names.is_empty())
            || self
                .before
                .as_ref()
                .is_some_and(|it| !other(it) || when(image) >= when(it))
            || self
                .since
                .as_ref()
                .is_some_and(|it| !other(it) || when(image) <= when(it))
        {
            return Ok(false);
        }
        if let Some(until) = self.until {
            let created: Option<Timestamp> =
                image.created.as_deref().and_then(|at| at.parse().ok());
            // When it was built is not said: when it came here, then.
            let loaded = || Timestamp::from_second(image.loaded_unix_seconds as i64).ok();
            if created.or_else(loaded).is_none_or(|at| at >= until) {
                return Ok(false);
            }
        }
        if self.labels.is_empty() {
            return Ok(true);
        }
        let bytes = store.config_document(image.id)?;
        let config: Value = serde_json::from_slice(&bytes)
            .with_context(|| format!("cannot read the configuration of image {}", image.id))?;
        let labels = &config["config"]["Labels"];
        Ok(self.labels.iter().all(|(key, value)| {
            let found = labels.get(key).and_then(Value::as_str);
            found.is_some_and(|found| value.as_deref().is_none_or(|value| value == found))
        }))
    }

    /// Whether this name of an image is meant.
    pub fn admit_name(&self, name: Option<&ImageName>) -> bool {
        if self.references.is_empty() {
            return true;
        }
        let Some(name) = name else { return false };
        let (repository, whole) = (name.familiar_repository(), name.to_string());
        let mut references = self.references.iter();
        references.any(|pattern| {
            matches(pattern.as_bytes(), repository.as_bytes())
                || matches(pattern.as_bytes(), whole.as_bytes())
        })
    }
}

/// A point in time, or how long ago it is: `24h`, `2026-11-01`, `2026-11-01T10:00:00Z`.
fn until(text: &str) -> anyhow::Result<Timestamp> {
    if let Ok(ago) = text.parse::<SignedDuration>() {
        let then = Timestamp::now().checked_sub(ago);
        return then.with_context(|| format!("until={text:?} is too long ago"));
    }
    let day = || {
        let day: jiff::civil::Date = text.parse().ok()?;
        Some(day.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    };
    let at = text.parse().ok().or_else(day);
    at.with_context(|| {
        format!("until={text:?} is no time; give one such as 24h or 2026-11-01T10:00:00Z")
    })
}

/// Whether a pattern matches all of a text: `*` any characters but `/`, `?` one of them.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // For each end of the pattern's start that was looked at: which starts of the text it
    // matches.
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for part in pattern {
        let mut next = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            let byte = at.checked_sub(1).map(|before| text[before]);
            next[at] = match part {
                b'*' => reached[at] || (at > 0 && byte != Some(b'/') && next[at - 1]),
                b'?' => at > 0 && byte != Some(b'/') && reached[at - 1],
                part => at > 0 && byte == Some(*part) && reached[at - 1],
            };
        }
        reached = next;
    }
    reached[text.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_all_of_a_name_and_no_slash_by_a_star() {
        for (pattern, text, expected) in [
            ("debian", "debian", true),
            ("deb*", "debian", true),
            ("*:v1", "demo:v1", true),
            ("d??o", "demo", true),
            ("team/*", "team/app", true),
            ("*", "team/app", false),
            ("debian", "debian2", false),
            ("**a*", "bab", true),
            ("", "", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern}"
            );
        }
    }

    #[test]
    fn a_time_is_a_duration_a_day_or_a_moment() {
        let day = until("2026-11-01").unwrap();
        assert_eq!(day, until("2026-11-01T00:00:00Z").unwrap());
        assert!(until("24h").unwrap() < until("1h30m").unwrap());
        until("yesterday").unwrap_err();
    }
}
