SUMMARY = "Settings of twinhull for this machine"
DESCRIPTION = "The image maker's settings: defaults for the kind of machine, the bootloader, and what TWINHULL_SETTINGS adds."
HOMEPAGE = "https://github.com/twinhull/twinhull"
BUGTRACKER = "https://github.com/twinhull/twinhull/issues"
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"
CVE_PRODUCT = ""

# The file of the machine or of its family (rpi, tegra) wins over the one for all.
SRC_URI = " \
    file://10-machine.toml \
    file://device.toml \
"

S = "${UNPACKDIR}"
B = "${WORKDIR}/build"

require conf/twinhull_machines.inc

# At most one; without any, twinhull looks at what is on the boot partition.
PACKAGECONFIG ??= "${TWINHULL_BOOTLOADER}"
PACKAGECONFIG[balena-bootloader] = ",,,"
PACKAGECONFIG[efi] = ",,,"
PACKAGECONFIG[grub] = ",,,"
PACKAGECONFIG[initramfs] = ",,,"
PACKAGECONFIG[systemd-boot] = ",,,"
PACKAGECONFIG[tryboot] = ",,,"
PACKAGECONFIG[uboot-env] = ",,,"
PACKAGECONFIG[uboot-text] = ",,,"

TWINHULL_SETTINGS ?= ""
TWINHULL_SETTINGS[doc] = "Further settings in TOML, \\n for a new line: [health]\\nunits = ['sshd.socket']"

TWINHULL_SUPERVISOR_IMAGE ?= ""
TWINHULL_SUPERVISOR_IMAGE[doc] = "The supervisor's image for new devices; empty if another package has supervisor.conf"
TWINHULL_SUPERVISOR_VERSION ?= ""
TWINHULL_SUPERVISOR_VERSION[doc] = "Its version, as v18.2.2"

INHIBIT_DEFAULT_DEPS = "1"
do_configure[noexec] = "1"

python do_compile() {
    chosen = (d.getVar('PACKAGECONFIG') or '').split()
    if len(chosen) > 1:
        bb.fatal('PACKAGECONFIG names %s: choose one bootloader' % ' and '.join(chosen))
    texts = {}
    if chosen:
        texts['20-bootloader.toml'] = '[boot]\nchooser = "%s"\n' % chosen[0]
    if not bb.utils.to_boolean(d.getVar('TWINHULL_ENGINE')):
        texts['20-engine.toml'] = '[engine]\nenabled = false\n\n[supervisor]\nenabled = false\n'
    if d.getVar('TWINHULL_SETTINGS'):
        texts['30-image.toml'] = d.getVar('TWINHULL_SETTINGS').replace('\\n', '\n') + '\n'
    if d.getVar('TWINHULL_SUPERVISOR_IMAGE'):
        texts['supervisor.conf'] = 'SUPERVISOR_IMAGE=%s\nSUPERVISOR_VERSION=%s\n' % (
            d.getVar('TWINHULL_SUPERVISOR_IMAGE'), d.getVar('TWINHULL_SUPERVISOR_VERSION'))
    for name, text in texts.items():
        with open(os.path.join(d.getVar('B'), name), 'w') as f:
            f.write(text)
}
do_compile[cleandirs] = "${B}"
do_compile[vardeps] += "PACKAGECONFIG TWINHULL_ENGINE TWINHULL_SETTINGS TWINHULL_SUPERVISOR_IMAGE TWINHULL_SUPERVISOR_VERSION"

do_install() {
    install -d ${D}${nonarch_libdir}/twinhull
    install -m 0644 ${S}/10-machine.toml ${D}${nonarch_libdir}/twinhull/
    find ${B} -name '*.toml' -exec install -m 0644 {} ${D}${nonarch_libdir}/twinhull/ \;
    # PID 1 binds it over; it must be there even if it is empty.
    install -d ${D}${sysconfdir}/balena-supervisor
    find ${B} -name supervisor.conf -exec install -m 0644 {} ${D}${sysconfdir}/balena-supervisor/ \;
    install -D -m 0644 ${S}/device.toml ${D}${sysconfdir}/twinhull/device.toml
}

FILES:${PN} += "${nonarch_libdir}/twinhull"
CONFFILES:${PN} = "${sysconfdir}/twinhull/device.toml"

PACKAGE_ARCH = "${MACHINE_ARCH}"
