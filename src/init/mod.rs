//! PID 1: from a kernel with an initramfs to systemd on the chosen slot.
