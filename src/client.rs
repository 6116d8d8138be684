//! Generates text through a chain of servers.

mod text;

pub use text::{Piece, TextCodec, TextError, TextStream};
