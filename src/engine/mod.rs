//! THE CONTAINER ENGINE: HTTP over its Unix socket, the calls we need, and the supervisor container.
