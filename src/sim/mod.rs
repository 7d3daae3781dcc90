//! A whole device in memory, with a power switch (tests only).
