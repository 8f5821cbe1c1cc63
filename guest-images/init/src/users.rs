//! Who the workload runs as: an OCI `User` string against the image's own
//! passwd and group, as Docker reads them.
//!
//! `passwd(5)`, `group(5)`; OCI image configuration, `config.User`.

/// The identity of a process and its home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user id.
    pub uid: u32,
    /// The primary group id.
    pub gid: u32,
    /// All groups, the primary one first. It is among them so that giving up
    /// the supplementary groups never gains access that a group is denied.
    pub groups: Vec<u32>,
    /// The home directory: `/` for a user who is not in passwd.
    pub home: String,
}

/// Why a `User` string names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// A name that is not in passwd.
    #[error("there is no user {0:?} in the image's /etc/passwd")]
    NoUser(String),
    /// A name that is not in group.
    #[error("there is no group {0:?} in the image's /etc/group")]
    NoGroup(String),
    /// A number that is not an id.
    #[error("{0} is not a user or group id: ids go from 0 to {MAX_ID}")]
    OutOfRange(String),
}

/// The highest id, as Docker has it. The kernel keeps `u32::MAX` for "unchanged".
const MAX_ID: u32 = i32::MAX as u32;

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Resolves `user`, `uid`, `user:group` or any mix of them; empty is root.
///
/// Without a group, the user's groups are those of passwd and group; with one,
/// it is the only group. A number needs no entry, a name does.
pub fn resolve(spec: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user_part, group_part) = spec.split_once(':').unwrap_or((spec, ""));
    let wanted = Wanted::parse(user_part)?;
    let entry = passwd_entries(passwd).find(|entry| match wanted {
        Wanted::Nothing => entry.uid == 0,
        Wanted::Id(id) => entry.uid == id,
        Wanted::Name(name) => entry.name == name,
    });
    let uid = match (&entry, &wanted) {
        (Some(entry), _) => entry.uid,
        (None, Wanted::Nothing) => 0,
        (None, Wanted::Id(id)) => *id,
        (None, Wanted::Name(name)) => return Err(UserError::NoUser((*name).to_owned())),
    };

    let (gid, supplementary) = match Wanted::parse(group_part)? {
        Wanted::Nothing => {
            let name = entry.as_ref().map(|entry| entry.name);
            (entry.as_ref().map_or(0, |entry| entry.gid), name)
        }
        Wanted::Id(id) => (id, None),
        Wanted::Name(name) => {
            let found = group_entries(group).find(|entry| entry.name == name);
            match found {
                Some(entry) => (entry.gid, None),
                None => return Err(UserError::NoGroup(name.to_owned())),
            }
        }
    };

    let mut groups = vec![gid];
    if let Some(name) = supplementary {
        for entry in group_entries(group) {
            if entry.members.split(',').any(|member| member == name) && !groups.contains(&entry.gid)
            {
                groups.push(entry.gid);
            }
        }
    }
    let home = entry
        .map(|entry| entry.home)
        .filter(|home| !home.is_empty())
        .unwrap_or("/")
        .to_owned();
    Ok(User {
        uid,
        gid,
        groups,
        home,
    })
}

enum Wanted<'a> {
    Nothing,
    Id(u32),
    Name(&'a str),
}

impl<'a> Wanted<'a> {
    /// What consists of digits is a number, never a name, as in Docker.
    fn parse(text: &'a str) -> Result<Self, UserError> {
        if text.is_empty() {
            return Ok(Wanted::Nothing);
        }
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Wanted::Name(text));
        }
        match text.parse() {
            Ok(id) if id <= MAX_ID => Ok(Wanted::Id(id)),
            _ => Err(UserError::OutOfRange(text.to_owned())),
        }
    }
}

/// The lines that are entries; others are skipped, as libc does.
fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| is_entry_name(name))?;
        let _password = fields.next()?;
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let _full_name = fields.next().unwrap_or_default();
        let home = fields.next().unwrap_or_default();
        Some(PasswdEntry {
            name,
            uid,
            gid,
            home,
        })
    })
}

fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| is_entry_name(name))?;
        let _password = fields.next()?;
        let gid = fields.next()?.parse().ok()?;
        let members = fields.next().unwrap_or_default();
        Some(GroupEntry { name, gid, members })
    })
}

fn is_entry_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
# a comment:x:7:7::/:/bin/sh
broken line
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
redis:x:101:102::/var/lib/redis:/bin/false
1234:x:55:55::/named-like-a-number:/bin/sh
twice:x:200:200::/first:/bin/sh
twice:x:201:201::/second:/bin/sh
";
    const GROUP: &str = "\
root:x:0:
tty:x:5:redis
www-data:x:33:
ssl-cert:x:110:www-data,redis
redis:x:102:redis
";

    fn resolved(spec: &str) -> User {
        resolve(spec, PASSWD, GROUP).unwrap()
    }

    #[test]
    fn an_empty_string_is_root() {
        let root = resolved("");
        assert_eq!((root.uid, root.gid, root.home.as_str()), (0, 0, "/root"));
    }

    #[test]
    fn root_needs_no_passwd_at_all() {
        let root = resolve("", "", "").unwrap();
        assert_eq!((root.uid, root.gid, root.home.as_str()), (0, 0, "/"));
    }

    #[test]
    fn a_name_brings_its_group_its_supplementary_groups_and_its_home() {
        assert_eq!(
            resolved("redis"),
            User {
                uid: 101,
                gid: 102,
                groups: vec![102, 5, 110],
                home: "/var/lib/redis".into(),
            }
        );
    }

    #[test]
    fn the_id_of_a_known_user_brings_the_same_as_its_name() {
        assert_eq!(resolved("101"), resolved("redis"));
    }

    #[test]
    fn an_id_nobody_has_runs_with_group_0_and_home_at_the_root() {
        let user = resolved("4242");
        assert_eq!((user.uid, user.gid, user.home.as_str()), (4242, 0, "/"));
        assert_eq!(user.groups, [0]);
    }

    #[test]
    fn a_named_group_replaces_all_of_the_users_groups() {
        let user = resolved("redis:ssl-cert");
        assert_eq!((user.uid, user.gid), (101, 110));
        assert_eq!(user.groups, [110]);
        assert_eq!(user.home, "/var/lib/redis");
    }

    #[test]
    fn ids_and_names_mix() {
        assert_eq!(resolved("101:tty").gid, 5);
        assert_eq!(resolved("redis:7").gid, 7);
        assert_eq!(resolved("5:7").groups, [7]);
        assert_eq!(resolved(":33").uid, 0);
    }

    #[test]
    fn digits_are_an_id_even_where_a_user_is_named_so() {
        assert_eq!(resolved("1234").uid, 1234);
    }

    #[test]
    fn the_first_of_two_entries_counts() {
        assert_eq!(resolved("twice").home, "/first");
    }

    #[test]
    fn a_name_that_is_not_there_is_refused() {
        let user = resolve("nobody-here", PASSWD, GROUP);
        assert_eq!(user, Err(UserError::NoUser("nobody-here".into())));
        let group = resolve("redis:nothing", PASSWD, GROUP);
        assert_eq!(group, Err(UserError::NoGroup("nothing".into())));
        let comment = resolve("# a comment", PASSWD, GROUP);
        assert!(comment.is_err());
    }

    #[test]
    fn ids_out_of_range_are_refused() {
        for spec in [
            "4294967295",
            "2147483648",
            "99999999999999999999",
            "0:4294967295",
        ] {
            let result = resolve(spec, PASSWD, GROUP);
            assert!(matches!(result, Err(UserError::OutOfRange(_))), "{spec}");
        }
        assert_eq!(resolved("2147483647").uid, 2_147_483_647);
    }
}
