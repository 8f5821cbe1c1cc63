//! Figures of several monitors side by side: as a table, as JSON, and (in
//! [`crate::plot`]) as a plot.

use std::fmt::{self, Display, Formatter};
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::error::{BenchError, host};
use crate::host::Host;
use crate::monitor::{Identity, Monitor};
use crate::statistics::Spread;

/// What a benchmark found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The benchmark's name.
    pub benchmark: String,
    /// How often each monitor was measured.
    pub turns: usize,
    /// What a turn is, in words.
    pub setting: String,
    /// What failed and was made again: monitors' trials, whole labs.
    pub made_again: Vec<String>,
    /// The machine.
    pub host: Host,
    /// Each monitor; mote's is the first, and what it is held against the second.
    pub monitors: Vec<Identity>,
    /// The figures.
    pub groups: Vec<Group>,
    /// mote's own bars.
    pub bars: Vec<Bar>,
}

/// Figures of one unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// What they are.
    pub title: String,
    /// What they are counted in.
    pub unit: String,
    /// Which are the better ones.
    pub better: Better,
    /// In the order of the table.
    pub rows: Vec<Row>,
}

/// Which figures are the better ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Times and sizes.
    Less,
    /// Rates.
    More,
}

/// One figure of each monitor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Which one.
    pub name: String,
    /// In the order of [`Comparison::monitors`]; `None` where it was not measured.
    pub measured: Vec<Option<Spread>>,
    /// How many times better the first monitor is than the second, turn by turn: above
    /// 1 it is better, below 1 worse.
    pub ratio: Option<Spread>,
}

/// A figure that mote is to reach.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// What is to be reached.
    pub text: String,
    /// What was found.
    pub found: String,
    /// Whether it is reached.
    pub reached: bool,
}

impl Comparison {
    /// One of `turns` without figures yet, made on this machine, now.
    pub fn new(benchmark: &str, turns: usize, setting: String, monitors: &[Monitor]) -> Self {
        Self {
            benchmark: benchmark.to_owned(),
            turns,
            setting,
            made_again: Vec::new(),
            host: Host::here(),
            monitors: monitors.iter().map(Monitor::identity).collect(),
            groups: Vec::new(),
            bars: Vec::new(),
        }
    }

    /// JSON, for programs.
    pub fn to_json(&self) -> String {
        // Nothing in it can fail: no maps with odd keys, no foreign code.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Writes it as JSON in one line, at once: for a program that reads it as it comes.
    pub fn write_line(&self, mut to: impl Write) -> Result<(), BenchError> {
        let written = serde_json::to_string(self)
            .map_err(io::Error::from)
            .and_then(|text| writeln!(to, "{text}").and_then(|()| to.flush()));
        written.map_err(host("print what was measured"))
    }

    /// Adds the turns of `other`, which came after these.
    pub fn append(&mut self, mut other: Self) -> Result<(), BenchError> {
        self.made_again.append(&mut other.made_again);
        // One that was given up has nothing else to tell.
        if other.turns == 0 {
            return Ok(());
        }
        if self.turns == 0 {
            other.made_again = std::mem::take(&mut self.made_again);
            *self = other;
            return Ok(());
        }
        if self.outline() != other.outline() {
            return Err(BenchError::Mixed);
        }
        self.turns += other.turns;
        self.host = other.host;
        for (group, other) in self.groups.iter_mut().zip(other.groups) {
            for (row, other) in std::mem::take(&mut group.rows).into_iter().zip(other.rows) {
                let values = row.measured.into_iter().zip(other.measured);
                let values = values.map(|pair| {
                    let spreads = [pair.0, pair.1].into_iter().flatten();
                    spreads.flat_map(|spread| spread.values).collect()
                });
                group.push(row.name, values.collect());
            }
        }
        Ok(())
    }

    /// What was measured, of whom.
    fn outline(&self) -> Vec<&str> {
        let groups = self.groups.iter().flat_map(|group| {
            let rows = group.rows.iter().map(|row| row.name.as_str());
            rows.chain([group.title.as_str()])
        });
        let monitors = self.monitors.iter().map(|monitor| monitor.name.as_str());
        monitors
            .chain(groups)
            .chain([self.benchmark.as_str()])
            .collect()
    }

    /// Adds the bar that mote is no worse than its peer in any row of any group, and
    /// names the worst of them.
    pub fn add_peer_bar(&mut self) {
        let rows = self.groups.iter().flat_map(|group| {
            let rows = group.rows.iter();
            rows.filter_map(move |row| Some((group, row, row.ratio.as_ref()?.p50)))
        });
        let worst = rows.min_by(|(_, _, one), (_, _, other)| one.total_cmp(other));
        let (Some((group, row, ratio)), Some(peer)) = (worst, self.monitors.get(1)) else {
            return;
        };
        self.bars.push(Bar {
            text: format!("no worse than {} in any row", peer.name),
            found: format!("worst is {}, {}: {ratio:.2}", group.title, row.name),
            reached: ratio >= 1.0,
        });
    }
}

impl Group {
    /// Adds a row of what each monitor was measured at, turn by turn.
    pub fn push(&mut self, name: impl Into<String>, values: Vec<Vec<f64>>) {
        let ratios = match values.as_slice() {
            [ours, peers, ..] => ours
                .iter()
                .zip(peers)
                // Sizes that others' work made negative have no ratio.
                .filter(|(ours, peers)| **ours > 0.0 && **peers > 0.0)
                .map(|(ours, peers)| match self.better {
                    Better::Less => peers / ours,
                    Better::More => ours / peers,
                })
                .collect(),
            _ => Vec::new(),
        };
        self.rows.push(Row {
            name: name.into(),
            measured: values.into_iter().map(Spread::of).collect(),
            ratio: Spread::of(ratios),
        });
    }
}

/// As many digits as there is something to be seen.
fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn cells(spread: Option<&Spread>) -> String {
    match spread {
        Some(Spread { p50, min, max, .. }) => {
            let [p50, min, max] = [p50, min, max].map(|value| number(*value));
            format!("{p50:>9} {min:>8} {max:>8}")
        }
        None => format!("{:>9} {:>8} {:>8}", "-", "", ""),
    }
}

impl Display for Comparison {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let turns = if self.turns == 1 { "turn" } else { "turns" };
        let Self {
            benchmark,
            turns: count,
            setting,
            host,
            ..
        } = self;
        write!(f, "{benchmark}: {count} {turns}, {setting}, {host}")?;
        if !self.made_again.is_empty() {
            write!(f, ", failed and made again: {}", self.made_again.join(", "))?;
        }
        writeln!(f)?;
        let rows = self.groups.iter().flat_map(|group| &group.rows);
        let width = rows.map(|row| row.name.chars().count()).max().unwrap_or(0);
        let has_ratio = self.monitors.len() > 1;
        for group in &self.groups {
            let better = match group.better {
                Better::Less => "less is better",
                Better::More => "more is better",
            };
            writeln!(f, "\n{}, {} ({better})", group.title, group.unit)?;
            write!(f, "  {:width$}", "")?;
            for monitor in &self.monitors {
                write!(f, " | {:^27}", monitor.name)?;
            }
            if has_ratio {
                write!(f, " | {:^27}", "ratio")?;
            }
            write!(f, "\n  {:width$}", "")?;
            for _ in 0..self.monitors.len() + usize::from(has_ratio) {
                write!(f, " | {:>9} {:>8} {:>8}", "p50", "min", "max")?;
            }
            writeln!(f)?;
            for row in &group.rows {
                write!(f, "  {:width$}", row.name)?;
                for spread in &row.measured {
                    write!(f, " | {}", cells(spread.as_ref()))?;
                }
                if has_ratio {
                    write!(f, " | {}", cells(row.ratio.as_ref()))?;
                }
                writeln!(f)?;
            }
        }
        if let [ours, peer, ..] = self.monitors.as_slice() {
            writeln!(
                f,
                "\nratio: how many times better {} is than {}, turn by turn",
                ours.name, peer.name
            )?;
        }
        for bar in &self.bars {
            let verdict = if bar.reached { "reached" } else { "missed" };
            writeln!(f, "bar: {}: {} ({verdict})", bar.text, bar.found)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison() -> Comparison {
        let mut comparison = Comparison::new("block", 3, "5 s each".to_owned(), &[]);
        comparison.monitors = ["mote-vmm", "peer"]
            .map(|name| Identity {
                name: name.to_owned(),
                version: "1".to_owned(),
            })
            .into();
        let mut rates = Group {
            title: "random reads".to_owned(),
            unit: "kIOPS".to_owned(),
            better: Better::More,
            rows: Vec::new(),
        };
        rates.push(
            "depth 1",
            vec![vec![20.0, 30.0, 10.0], vec![10.0, 10.0, 10.0]],
        );
        rates.push("depth 32", vec![vec![9.0], Vec::new()]);
        let mut times = Group {
            title: "latency".to_owned(),
            unit: "µs".to_owned(),
            better: Better::Less,
            rows: Vec::new(),
        };
        times.push("ping", vec![vec![20.0], vec![10.0]]);
        comparison.groups = vec![rates, times];
        comparison
    }

    #[test]
    fn ratios_are_above_one_where_the_first_is_better() {
        let comparison = comparison();
        let ratio = |group: usize, row: usize| {
            let ratio = &comparison.groups[group].rows[row].ratio;
            ratio
                .as_ref()
                .map(|ratio| (ratio.p50, ratio.min, ratio.max))
        };
        assert_eq!(ratio(0, 0), Some((2.0, 1.0, 3.0)));
        assert_eq!(ratio(0, 1), None);
        assert_eq!(ratio(1, 0), Some((0.5, 0.5, 0.5)));
    }

    #[test]
    fn the_worst_row_is_named() {
        let mut comparison = comparison();
        comparison.add_peer_bar();
        let text = comparison.to_string();
        let line = "bar: no worse than peer in any row: worst is latency, ping: 0.50 (missed)";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn turns_are_added_to_those_before_them() {
        let mut whole = comparison();
        let mut later = comparison();
        later.groups[0].rows.clear();
        later.groups[0].push("depth 1", vec![vec![60.0], vec![10.0]]);
        later.groups[0].push("depth 32", vec![Vec::new(), vec![7.0]]);
        later.turns = 1;
        later.made_again.push("a lab".to_owned());
        whole.append(later).unwrap();
        assert_eq!(whole.turns, 4);
        let [first, second, ..] = whole.groups[0].rows.as_slice() else {
            panic!("two rows: {:?}", whole.groups[0].rows);
        };
        let values = |row: &Row| {
            let spreads = row.measured.iter().flatten();
            spreads
                .map(|spread| spread.values.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(values(first), [vec![20.0, 30.0, 10.0, 60.0], vec![10.0; 4]]);
        assert_eq!(first.ratio.as_ref().map(|ratio| ratio.max), Some(6.0));
        assert_eq!(values(second), [[9.0], [7.0]]);
        let text = whole.to_string();
        assert!(text.starts_with("block: 4 turns, 5 s each, "), "{text}");
        assert!(text.contains("failed and made again: a lab\n"), "{text}");
    }

    #[test]
    fn of_a_turn_that_was_given_up_what_failed_is_known() {
        let given_up = || {
            let mut given_up = Comparison::new("block", 0, String::new(), &[]);
            given_up.made_again.push("peer".to_owned());
            given_up
        };
        let mut whole = given_up();
        whole.append(comparison()).unwrap();
        whole.append(given_up()).unwrap();
        assert_eq!(whole.made_again, ["peer", "peer"]);
        assert_eq!(whole.turns, 3);
        assert_eq!(whole.groups, comparison().groups);
    }

    #[test]
    fn turns_of_another_benchmark_are_refused() {
        let mut whole = comparison();
        let mut other = comparison();
        other.groups.pop();
        assert!(matches!(whole.append(other), Err(BenchError::Mixed)));
        assert_eq!(whole, comparison());
    }

    #[test]
    fn json_is_read_back_as_it_was() {
        let comparison = comparison();
        assert_eq!(
            serde_json::from_str::<Comparison>(&comparison.to_json()).unwrap(),
            comparison
        );
    }
}
