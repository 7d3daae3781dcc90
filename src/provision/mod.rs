//! FIRST BOOT: identity and registration with the cloud API.
