# The modules that boot/grub/grub.cfg uses and that are not built in already.
GRUB_BUILDIN:append:df-twinhull = " echo regexp probe sleep reboot"
