//! A graph as a program.

use seccompiler::{BpfProgram, sock_filter};

use crate::graph::{Graph, Index, JUMP, Node, RETURN};

/// `None` if a conditional jump would lead further than its instruction can say.
pub fn write(graph: &Graph) -> Option<BpfProgram> {
    let order = order(graph);
    // Where each node's instruction is, jumps between them included.
    let mut place = vec![0; graph.nodes.len()];
    let mut length = 0;
    for (position, &index) in order.iter().enumerate() {
        place[index] = length;
        length += 1 + usize::from(needs_jump(graph, &order, position));
    }
    let mut program = BpfProgram::with_capacity(length);
    for (position, &index) in order.iter().enumerate() {
        let here = place[index];
        let offset = |target: Index| place[target].checked_sub(here + 1);
        let instruction = |code, k| sock_filter {
            code,
            jt: 0,
            jf: 0,
            k,
        };
        match graph.nodes[index] {
            Node::Return { k } => program.push(instruction(RETURN, k)),
            Node::Branch {
                code,
                k,
                met,
                otherwise,
            } => program.push(sock_filter {
                code,
                jt: offset(met)?.try_into().ok()?,
                jf: offset(otherwise)?.try_into().ok()?,
                k,
            }),
            Node::Step { code, k, next } => {
                program.push(instruction(code, k));
                if needs_jump(graph, &order, position) {
                    // It is one further back from here.
                    let distance = offset(next)?.checked_sub(1)?;
                    program.push(instruction(JUMP, distance.try_into().ok()?));
                }
            }
        }
    }
    Some(program)
}

fn needs_jump(graph: &Graph, order: &[Index], position: usize) -> bool {
    match graph.nodes[order[position]] {
        Node::Step { next, .. } => order.get(position + 1) != Some(&next),
        Node::Branch { .. } | Node::Return { .. } => false,
    }
}

/// The nodes that can be reached, each before all it leads to: jumps lead forwards.
fn order(graph: &Graph) -> Vec<Index> {
    let mut visited = vec![false; graph.nodes.len()];
    // The reverse of the order in which a search leaves nodes. What it enters last comes
    // right after: of a branch the chain's next block, which most numbers go on to.
    let mut left = Vec::new();
    let mut stack = vec![(graph.start, false)];
    while let Some((index, done)) = stack.pop() {
        if done {
            left.push(index);
            continue;
        }
        if std::mem::replace(&mut visited[index], true) {
            continue;
        }
        stack.push((index, true));
        match graph.nodes[index] {
            Node::Step { next, .. } => stack.push((next, false)),
            // The stack's top is entered first.
            Node::Branch { met, otherwise, .. } => stack.extend([(otherwise, false), (met, false)]),
            Node::Return { .. } => {}
        }
    }
    left.reverse();
    left
}
