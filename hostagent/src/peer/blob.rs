//! A blob, from whichever peers have it, verified.

use std::ops::Range;
use std::sync::Arc;

use outboard::Tree;
use quinn::RecvStream;

use super::encoding::{Piece, Verified};
use super::error::{AskError, Attempt, PeerError};
use super::message::{self, Answer, Request};
use super::session::Session;
use crate::store::BlobIdentity;

/// The groups of a blob, in order. Each is verified; where one peer fails the next one
/// goes on.
pub(super) struct BlobStream {
    session: Arc<Session>,
    identity: BlobIdentity,
    tree: Tree,
    /// How many groups are asked for at a time.
    step: u64,
    /// The first group that has not arrived.
    next: u64,
    /// Where it ends.
    end: u64,
    /// Whether a peer that has it with another length lies.
    is_length_known: bool,
    /// The peer that is next to be asked, and those after it.
    candidates: Range<usize>,
    source: Option<Source>,
    attempts: Vec<Attempt>,
}

/// The peer that sends, and what.
struct Source {
    peer: usize,
    stream: RecvStream,
    groups: Range<u64>,
    /// Whether anything has come of it.
    has_given: bool,
}

impl BlobStream {
    /// From the first group on, so many asked for at a time. Nobody has been asked yet.
    pub fn new(session: Arc<Session>, identity: BlobIdentity, step: u64) -> Self {
        let tree = Tree::new(identity.hash, identity.bytes);
        Self {
            next: 0,
            end: tree.geometry().groups(),
            is_length_known: true,
            candidates: 0..session.peers().len(),
            session,
            identity,
            step,
            tree,
            source: None,
            attempts: Vec::new(),
        }
    }

    /// These groups from one peer, or none. The length of the blob is what somebody says
    /// who may be wrong.
    pub fn of_peer(
        session: Arc<Session>,
        identity: BlobIdentity,
        groups: Range<u64>,
        peer: usize,
    ) -> Self {
        let whole = Self::new(session, identity, u64::MAX);
        Self {
            next: groups.start,
            end: groups.end.min(whole.end),
            is_length_known: false,
            candidates: peer..peer + 1,
            ..whole
        }
    }

    /// The next bytes, at most a span with its nodes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<(Vec<u8>, Verified)>, PeerError> {
        while self.next < self.end {
            let Some(mut source) = self.source().await? else {
                continue;
            };
            match self.piece(&mut source).await {
                Ok((piece, bytes, verified)) => {
                    self.next = piece.groups.end;
                    source.groups.start = piece.groups.end;
                    source.has_given = true;
                    if !source.groups.is_empty() {
                        self.source = Some(source);
                    }
                    return Ok(Some((bytes, verified)));
                }
                // Connections break, and a peer gives up who takes nothing for long: as long
                // as something comes of it, it is asked again.
                Err(AskError::Lost { .. }) if source.has_given => {}
                Err(error) => self.failed(source.peer, error),
            }
        }
        Ok(None)
    }

    async fn piece(&self, source: &mut Source) -> Result<(Piece, Vec<u8>, Verified), AskError> {
        let none = || AskError::wrong("it has groups that the blob has not");
        let piece = Piece::first_of(self.tree.geometry(), &source.groups).ok_or_else(none)?;
        let bytes = self
            .session
            .receive(&mut source.stream, piece.bytes())
            .await?;
        let verified = piece.verify(&self.tree, &bytes).ok_or_else(|| {
            AskError::wrong(format!(
                "groups {} to {} of blob {} are others",
                piece.groups.start,
                piece.groups.end - 1,
                self.identity.hash
            ))
        })?;
        Ok((piece, bytes, verified))
    }

    /// The stream that is under way, or that of the next peer; `None` if that one does not
    /// have it.
    async fn source(&mut self) -> Result<Option<Source>, PeerError> {
        if let Some(source) = self.source.take() {
            return Ok(Some(source));
        }
        let Some(peer) = self.candidates.clone().next() else {
            return Err(PeerError::Nobody {
                what: format!("blob {}", self.identity.hash),
                attempts: std::mem::take(&mut self.attempts),
            });
        };
        match self.ask(peer).await {
            Ok(source) => Ok(Some(source)),
            Err(error) => {
                self.failed(peer, error);
                Ok(None)
            }
        }
    }

    async fn ask(&self, peer: usize) -> Result<Source, AskError> {
        let known = &self.session.peers()[peer];
        let end = self.next.saturating_add(self.step);
        let groups = self.next..end.min(self.end);
        let request = Request::Blob {
            hash: self.identity.hash,
            groups: [groups.start, groups.end],
        };
        let (answer, incoming) = self.session.ask(known, &request).await?;
        let (bytes, has) = match answer {
            Answer::Blob { bytes, has } => (bytes, has),
            Answer::NotHere => return Err(AskError::NotHere),
            Answer::Failed { problem } => return Err(AskError::failed(&problem)),
            Answer::Image(_) => return Err(AskError::wrong("an image instead of a blob")),
        };
        if bytes != self.identity.bytes {
            let BlobIdentity { hash, bytes: known } = self.identity;
            return Err(match self.is_length_known {
                true => AskError::wrong(format!("blob {hash} has {known} bytes, not {bytes}")),
                false => AskError::failed(&format!("blob {hash} has {bytes} bytes, not {known}")),
            });
        }
        let end = message::run_of(&has, groups.start)?.min(groups.end);
        if end == groups.start {
            return Err(AskError::NotHere);
        }
        Ok(Source {
            peer,
            stream: incoming.into_stream(),
            groups: groups.start..end,
            has_given: false,
        })
    }

    fn failed(&mut self, peer: usize, error: AskError) {
        let known = &self.session.peers()[peer];
        self.attempts.push(self.session.failed(known, error));
        self.candidates.start = self.candidates.start.max(peer + 1);
    }
}
