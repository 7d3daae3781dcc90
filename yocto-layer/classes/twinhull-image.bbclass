# nooelint: oelint.bbclass.underscores
# An image for a root slot: read-only, kernel and initramfs in its own /boot, the agent inside. `inherit twinhull-image`
# in an image recipe. Gives an ext4 for bundles and, with wic in IMAGE_FSTYPES, the disk of a new device.

require conf/twinhull_machines.inc

IMAGE_FEATURES += "read-only-rootfs"
IMAGE_INSTALL:append = " packagegroup-twinhull"
IMAGE_FSTYPES:append = " ext4"

# The kernel comes from the deploy directory, under the name that the boot script loads.
BAD_RECOMMENDATIONS += "kernel-image kernel-image-${@(d.getVar('KERNEL_IMAGETYPE') or '').lower()}"
TWINHULL_KERNEL_NAME ?= "${@'vmlinuz' if d.getVar('TWINHULL_BOOTLOADER') == 'grub' else d.getVar('KERNEL_IMAGETYPE')}"

# GRUB before 2.12 and U-Boot cannot read a root with metadata_csum_seed. The same UUID and hash seed in every version:
# what did not change lies in the same blocks, and the same packages give the same image.
TWINHULL_ROOT_UUID ?= "74776968-756c-6c2d-726f-6f742d736c6f"
# nooelint: oelint.vars.specific,oelint.vars.overrideappend
EXTRA_IMAGECMD:append:ext4 = " -O ^metadata_csum_seed -U ${TWINHULL_ROOT_UUID} -E hash_seed=${TWINHULL_ROOT_UUID}"

twinhull_fill_root () {
    # Where PID 1 mounts and binds.
    install -d ${IMAGE_ROOTFS}/mnt/boot ${IMAGE_ROOTFS}/mnt/state ${IMAGE_ROOTFS}/mnt/data ${IMAGE_ROOTFS}/resin-data
    if [ ! -e ${IMAGE_ROOTFS}${sysconfdir}/machine-id ]; then
        touch ${IMAGE_ROOTFS}${sysconfdir}/machine-id
    fi
    install -D -m 0644 ${DEPLOY_DIR_IMAGE}/${KERNEL_IMAGETYPE} ${IMAGE_ROOTFS}/boot/${TWINHULL_KERNEL_NAME}
    found=""
    for type in ${INITRAMFS_FSTYPES}; do
        if [ -z "$found" ] && [ -f ${DEPLOY_DIR_IMAGE}/${TWINHULL_INITRAMFS}-${MACHINE}.$type ]; then
            found=${DEPLOY_DIR_IMAGE}/${TWINHULL_INITRAMFS}-${MACHINE}.$type
        fi
    done
    if [ -z "$found" ]; then
        bbfatal "${DEPLOY_DIR_IMAGE} has no ${TWINHULL_INITRAMFS}-${MACHINE} of the types in INITRAMFS_FSTYPES (${INITRAMFS_FSTYPES})"
    fi
    install -m 0644 $found ${IMAGE_ROOTFS}/boot/initramfs
}
ROOTFS_POSTPROCESS_COMMAND:append = " twinhull_fill_root;"
do_rootfs[depends] += "${TWINHULL_INITRAMFS}:do_image_complete virtual/kernel:do_deploy"

# A new device's disk.
WKS_FILE = "${TWINHULL_WKS_FILE}"
# wrynose looks into files/wic of every layer by itself.
WKS_SEARCH_PATH:prepend = "${TWINHULL_LAYERDIR}/files/wic:"
WKS_FILE_DEPENDS = "dosfstools-native e2fsprogs-native gptfdisk-native mtools-native parted-native"

# SOURCE;DESTINATION for wic's bootimg-partition; the BSP's own files stay.
TWINHULL_BOOT_FILES = "device-type.json config.json"
TWINHULL_BOOT_FILES:append = "${@bb.utils.contains('TWINHULL_BOOTLOADER', 'grub', ' EFI/BOOT/grub.cfg EFI/BOOT/grubenv EFI/BOOT/grub_extraenv', '', d)}"
# On a Raspberry Pi boot.scr is meta-raspberrypi's, with the same script (dynamic-layers/raspberrypi).
TWINHULL_BOOT_FILES:append = "${@bb.utils.contains('TWINHULL_BOOTLOADER', 'uboot-text', ' resinOS_uEnv.txt bootcount.env extra_uEnv.txt', '', d)}"
TWINHULL_BOOT_FILES:append = "${@bb.utils.contains('TWINHULL_BOOTLOADER', 'initramfs', ' initramfs.env', '', d)}"
TWINHULL_BOOT_FILES:append = "${@bb.utils.contains('TWINHULL_BOOTLOADER', 'tryboot', ' autoboot.txt', '', d)}"
TWINHULL_BOOT_FILES:append = " ${@'boot.scr' if d.getVar('TWINHULL_BOOTLOADER').startswith('uboot') and d.getVar('RPI_USE_U_BOOT') != '1' else ''}"
TWINHULL_OWN_BOOT_FILES = "${@' '.join('twinhull-boot/%s;%s' % (f, f) for f in d.getVar('TWINHULL_BOOT_FILES').split())}"
IMAGE_BOOT_FILES:append = " ${@'' if d.getVar('TWINHULL_BOOTLOADER') == 'tryboot' else d.getVar('TWINHULL_OWN_BOOT_FILES')}"
IMAGE_BOOT_FILES:append = "${@bb.utils.contains('TWINHULL_BOOTLOADER', 'grub', ' grub-efi-${TWINHULL_EFI_IMAGE};EFI/BOOT/${TWINHULL_EFI_IMAGE}', '', d)}"
do_image_wic[depends] += "twinhull-boot:do_deploy"
do_image_wic[depends] += "${@bb.utils.contains('TWINHULL_BOOTLOADER', 'grub', 'grub-efi:do_deploy', '', d)}"

# With tryboot the firmware's files, kernel and initramfs are on the slots' own boot partitions, and cmdline.txt differs.
python () {
    if d.getVar('TWINHULL_BOOTLOADER') != 'tryboot':
        return
    files = {'resin-boot': d.getVar('TWINHULL_OWN_BOOT_FILES')}
    for letter in 'AB':
        files['resin-boot' + letter] = '${TWINHULL_SLOT_BOOT_FILES} twinhull-boot/cmdline-%s.txt;cmdline.txt' % letter
    for label, value in files.items():
        d.setVar('IMAGE_BOOT_FILES_label-' + label, value)
        d.appendVar('WICVARS', ' IMAGE_BOOT_FILES_label-' + label)
}
