# With tryboot the firmware itself loads the initramfs.
# nooelint: oelint.func.specific
do_deploy:append:df-twinhull() {
    if [ "${@d.getVar('TWINHULL_BOOTLOADER') or ''}" = "tryboot" ]; then
        echo "initramfs initramfs followkernel" >> "${DEPLOYDIR}/${BOOTFILES_DIR_NAME}/config.txt"
    fi
}
