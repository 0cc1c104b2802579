//! When do enough members agree: majorities, single and joint.
//!
//! The same question is asked of votes (has a candidate won?), of match indices (what is
//! committed?), of heartbeat rounds (up to which round has a quorum answered?) and of
//! activity (does a quorum still answer?). All of them are answered here, from functions
//! that give one member's vote or number.
//!
//! A joint quorum needs a majority of both memberships (Raft paper, section 6).

mod joint;
mod majority;

pub use joint::Joint;
pub use majority::Majority;

/// State of a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteResult {
    /// Those who have not voted yet decide.
    Pending,
    /// A quorum of yes cannot be reached any more.
    Lost,
    /// A quorum has voted yes.
    Won,
}
