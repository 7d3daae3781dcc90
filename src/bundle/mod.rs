//! THE UPDATE FILE: its manifest, signatures, block index and frames; reading it from any stream, and making it.
//!
//! `FORMAT.md` beside this file lays down every byte. The laws:
//!
//! 1. The manifest is parsed only after enough keys were seen to have signed it.
//! 2. Every block is compared with its signed hash before it is handed to the writer.
//! 3. Every length is checked against a limit before memory is taken for it.
//! 4. A bundle can be read in order, once, without seeking: a pipe will do. From a server, only what is missing is read.

mod address;
mod answer;
pub mod archive;
mod delta;
#[cfg(feature = "build-host")]
pub mod delta_pack;
mod fetch;
mod file_sums;
mod frames;
mod head;
mod in_order;
mod index;
#[cfg(feature = "build-host")]
mod index_builder;
mod keys;
mod merge;
#[cfg(feature = "build-host")]
pub mod pack;
#[cfg(feature = "build-host")]
pub mod pack_files;
#[cfg(feature = "build-host")]
mod pack_frames;
mod parts;
mod pieces;
mod reader;
#[cfg(feature = "build-host")]
pub mod sign;
pub mod source;

pub use address::Token;
pub use delta::{Buffers, Delta, Old};
pub use fetch::{Limits, Meter, too_much};
pub use frames::{BATCH_BLOCKS, Decoder, Stretch};
pub use head::Head;
pub use index::{BLOCK_LEN, Hash, Index, Run, hash};
pub use keys::{KeyId, Keys, Signature};
pub use parts::Frames;
pub use pieces::{Cutter, LEN_MAX as PIECE_LEN_MAX, Print};
pub use reader::{Bundle, Description, Progress, describe};
pub use source::{Reach, Source};
