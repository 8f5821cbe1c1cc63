//! What the starts of an image have read, put together.

use std::collections::BTreeMap;
use std::ops::Range;

use super::artifact::{Access, MAX_ACCESSES};

/// What earlier starts read, and after it what this one read besides. A start asks for what
/// is not here yet, and may have ended early: by itself it says less than those before it.
pub(super) fn merged(earlier: &[Access], of_this: &[Access]) -> Vec<Access> {
    let known = Covered::by(earlier);
    let new = of_this.iter().filter(|access| !known.contains(access));
    let mut merged = earlier.to_vec();
    merged.extend(new);
    merged.truncate(MAX_ACCESSES);
    merged
}

/// Groups of each blob, in ranges that do not touch.
struct Covered(BTreeMap<u32, Vec<Range<u64>>>);

impl Covered {
    fn by(accesses: &[Access]) -> Self {
        let mut blobs: BTreeMap<u32, Vec<Range<u64>>> = BTreeMap::new();
        for access in accesses {
            blobs.entry(access.blob).or_default().push(groups(access));
        }
        for ranges in blobs.values_mut() {
            ranges.sort_by_key(|range| range.start);
            let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
            for range in ranges.drain(..) {
                match joined.last_mut() {
                    Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                    _ => joined.push(range),
                }
            }
            *ranges = joined;
        }
        Self(blobs)
    }

    fn contains(&self, access: &Access) -> bool {
        let wanted = groups(access);
        let Some(ranges) = self.0.get(&access.blob) else {
            return false;
        };
        let after = ranges.partition_point(|range| range.start <= wanted.start);
        after > 0 && wanted.end <= ranges[after - 1].end
    }
}

fn groups(access: &Access) -> Range<u64> {
    let end = access.first_group.saturating_add(access.groups.into());
    access.first_group..end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(blob: u32, groups: Range<u64>) -> Access {
        Access {
            blob,
            first_group: groups.start,
            groups: (groups.end - groups.start) as u32,
        }
    }

    #[test]
    fn a_start_adds_what_no_earlier_one_has_read_and_takes_nothing_away() {
        let earlier = [access(1, 10..20), access(0, 5..6), access(1, 0..10)];
        assert_eq!(merged(&earlier, &[]), earlier);
        assert_eq!(merged(&[], &earlier), earlier);
        // Each of them is there, in two ranges at most.
        let known = [access(1, 5..15), access(0, 5..6), access(1, 0..20)];
        assert_eq!(merged(&earlier, &known), earlier);
        let new = [access(2, 0..1), access(0, 4..6), access(1, 19..21)];
        assert_eq!(merged(&earlier, &new), [&earlier[..], &new[..]].concat());
    }

    #[test]
    fn accesses_do_not_grow_without_bound() {
        let many = |blob| (0..MAX_ACCESSES as u64).map(move |group| access(blob, group..group + 1));
        let [earlier, new] = [0, 1].map(|blob| many(blob).collect::<Vec<_>>());
        assert_eq!(merged(&earlier, &new), earlier);
        let last = [Access {
            blob: u32::MAX,
            first_group: u64::MAX,
            groups: u32::MAX,
        }];
        assert_eq!(merged(&last, &last), last);
    }
}
