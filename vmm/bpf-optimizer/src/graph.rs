//! A program as a graph without jumps, loads of what is loaded already, and twins.

use std::collections::HashMap;

use seccompiler::sock_filter;

/// `BPF_LD | BPF_W | BPF_ABS`: loads a word of `struct seccomp_data` into the accumulator.
pub const LOAD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`.
pub const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JA`.
pub const JUMP: u16 = 0x05;
/// `BPF_RET | BPF_K`.
pub const RETURN: u16 = 0x06;
/// `BPF_JMP` with `BPF_JEQ`, `BPF_JGT`, `BPF_JGE`, `BPF_JSET` and `BPF_K`.
const BRANCHES: [u16; 4] = [0x15, 0x25, 0x35, 0x45];

/// Where a node is in [`Graph::nodes`].
pub type Index = usize;

/// An instruction, with what comes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Node {
    /// A load or an arithmetic instruction.
    Step { code: u16, k: u32, next: Index },
    /// A conditional jump.
    Branch {
        code: u16,
        k: u32,
        met: Index,
        otherwise: Index,
    },
    /// The end.
    Return { k: u32 },
}

/// Nodes refer to nodes with lower indices.
#[derive(Debug)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub start: Index,
}

/// What is in the accumulator when an instruction is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accumulator {
    /// It is not reached.
    Unreached,
    /// The word at this offset.
    Word(u32),
    /// It depends on the way.
    Unknown,
}

impl Accumulator {
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unreached, known) | (known, Self::Unreached) => known,
            (a, b) if a == b => a,
            _ => Self::Unknown,
        }
    }
}

/// `None` if there is an instruction that is not known here, or one that leads out of
/// the program, which the kernel would refuse.
pub fn read(program: &[sock_filter]) -> Option<Graph> {
    let needless = needless_loads(program)?;
    let mut nodes: Vec<Node> = Vec::new();
    let mut known: HashMap<Node, Index> = HashMap::new();
    // Backwards, since jumps lead forwards: what an instruction leads to has its node.
    let mut node_of: Vec<Index> = vec![0; program.len()];
    for (at, instruction) in program.iter().enumerate().rev() {
        let target =
            |offset: u32| -> Option<Index> { node_of.get(at + 1 + offset as usize).copied() };
        let sock_filter { code, k, .. } = *instruction;
        let node = match code {
            JUMP => {
                node_of[at] = target(k)?;
                continue;
            }
            LOAD if needless[at] => {
                node_of[at] = target(0)?;
                continue;
            }
            LOAD | AND => Node::Step {
                code,
                k,
                next: target(0)?,
            },
            RETURN => Node::Return { k },
            _ => Node::Branch {
                code,
                k,
                met: target(instruction.jt.into())?,
                otherwise: target(instruction.jf.into())?,
            },
        };
        node_of[at] = *known.entry(node).or_insert_with(|| {
            nodes.push(node);
            nodes.len() - 1
        });
    }
    let start = *node_of.first()?;
    Some(Graph { nodes, start })
}

/// For each instruction, whether it loads what is in the accumulator whichever way it
/// was reached.
fn needless_loads(program: &[sock_filter]) -> Option<Vec<bool>> {
    let mut before = vec![Accumulator::Unreached; program.len()];
    *before.first_mut()? = Accumulator::Unknown;
    let mut needless = vec![false; program.len()];
    for (at, instruction) in program.iter().enumerate() {
        let here = before[at];
        let (after, targets) = match instruction.code {
            LOAD => {
                needless[at] = here == Accumulator::Word(instruction.k);
                (Accumulator::Word(instruction.k), vec![0])
            }
            AND => (Accumulator::Unknown, vec![0]),
            JUMP => (here, vec![instruction.k]),
            RETURN => continue,
            code if BRANCHES.contains(&code) => {
                (here, vec![instruction.jt.into(), instruction.jf.into()])
            }
            _ => return None,
        };
        if here == Accumulator::Unreached {
            continue;
        }
        for offset in targets {
            let target = before.get_mut(at + 1 + offset as usize)?;
            *target = target.or(after);
        }
    }
    Some(needless)
}
