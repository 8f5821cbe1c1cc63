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
    /// Built before this time.
    before: Option<Timestamp>,
    /// Built after it.
    since: Option<Timestamp>,
    labels: Vec<Label>,
}

/// A label that an image must have, or must not.
#[derive(Debug)]
struct Label {
    key: String,
    /// Any, unless it is said.
    value: Option<String>,
    wanted: bool,
}

impl Filters {
    /// For `docker images`: `reference=`, `dangling=`, `before=`, `since=`, `label=`.
    pub fn of_list(store: &Store, texts: &[String]) -> anyhow::Result<Self> {
        let known = ["reference", "dangling", "before", "since", "label"];
        Self::parse(store, texts, &known)
    }

    /// For `docker image prune`: `until=`, `label=`, `label!=`, and `dangling=`, which says
    /// whether only images without a name are meant, and is returned beside the others.
    pub fn of_prune(store: &Store, texts: &[String]) -> anyhow::Result<(Self, Option<bool>)> {
        let known = ["until", "label", "label!", "dangling"];
        let mut filters = Self::parse(store, texts, &known)?;
        let dangling = filters.dangling.take();
        Ok((filters, dangling))
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
            let built =
                || -> anyhow::Result<Timestamp> { Ok(built(&store.find(&value.parse()?)?)) };
            match key {
                "reference" => filters.references.push(value.to_owned()),
                "dangling" => {
                    filters.dangling = Some(match value {
                        "true" | "1" => true,
                        "false" | "0" => false,
                        _ => bail!("dangling={value:?} is neither true nor false"),
                    });
                }
                "before" => filters.before = earlier(filters.before, built()?),
                "since" => filters.since = filters.since.max(Some(built()?)),
                "until" => filters.before = earlier(filters.before, until(value)?),
                key => {
                    let pair = value.split_once('=');
                    let (label, value) =
                        pair.map_or((value, None), |(label, value)| (label, Some(value)));
                    filters.labels.push(Label {
                        key: label.to_owned(),
                        value: value.map(str::to_owned),
                        wanted: key == "label",
                    });
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
        let at = built(image);
        if self.dangling.is_some_and(|it| it != image.names.is_empty())
            || self.before.is_some_and(|before| at >= before)
            || self.since.is_some_and(|since| at <= since)
        {
            return Ok(false);
        }
        if self.labels.is_empty() {
            return Ok(true);
        }
        let bytes = store.config_document(image.id)?;
        let config: Value = serde_json::from_slice(&bytes)
            .with_context(|| format!("cannot read the configuration of image {}", image.id))?;
        let labels = &config["config"]["Labels"];
        Ok(self.labels.iter().all(|label| {
            let found = labels.get(&label.key).and_then(Value::as_str);
            let wanted = label.value.as_deref();
            let has = found.is_some_and(|found| wanted.is_none_or(|value| value == found));
            has == label.wanted
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

/// When an image was built; when it came here, if it does not say it.
fn built(image: &StoredImage) -> Timestamp {
    let created = image.created.as_deref().and_then(|at| at.parse().ok());
    let loaded = || Timestamp::from_second(image.loaded_unix_seconds as i64);
    created.unwrap_or_else(|| loaded().unwrap_or(Timestamp::MAX))
}

fn earlier(one: Option<Timestamp>, other: Timestamp) -> Option<Timestamp> {
    Some(one.map_or(other, |one| one.min(other)))
}

/// A point in time, or how long ago it is: `24h`, `2026-11-01`, `2026-11-01T10:00:00Z`, or
/// seconds since 1970, `1793527200`.
fn until(text: &str) -> anyhow::Result<Timestamp> {
    // Before all else: eight digits would be a day, too.
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && let Some(at) = unix_time(text)
    {
        return Ok(at);
    }
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
        format!(
            "until={text:?} is no time; give one such as 24h, 2026-11-01T10:00:00Z, or 1793527200 in seconds since 1970"
        )
    })
}

/// Seconds since 1970, and perhaps a fraction of one.
fn unix_time(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let nanoseconds = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Timestamp::new(seconds.parse().ok()?, nanoseconds).ok()
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
    fn a_time_is_a_duration_a_day_a_moment_or_seconds_since_1970() {
        let day = until("2026-11-01").unwrap();
        assert_eq!(day, until("2026-11-01T00:00:00Z").unwrap());
        assert!(until("24h").unwrap() < until("1h30m").unwrap());
        for (seconds, text) in [
            ("1793527200", "2026-11-01T10:00:00Z"),
            ("1793527200.5", "2026-11-01T10:00:00.5Z"),
            ("20261101", "1970-08-23T12:05:01Z"),
        ] {
            assert_eq!(until(seconds).unwrap(), until(text).unwrap());
        }
        for wrong in ["yesterday", "", ".", "1.2.3", "99999999999999999999"] {
            until(wrong).unwrap_err();
        }
    }
}
