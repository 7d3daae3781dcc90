//! THE UPDATE FILE: its manifest, signatures, block index and frames; reading it from any stream, and making it.
