"""The layer's metadata, parsed by BitBake's own module: every recipe, bbappend and class, without OpenEmbedded-Core.

Usage: metadata.py CHECKOUT WORK TWINHULL

TWINHULL is the program, with the feature build-host. What OpenEmbedded-Core would bring is stood in for by classes and a configuration of a few lines, written into WORK.
Each recipe is parsed as for wrynose (UNPACKDIR set) and for scarthgap and kirkstone (not set). Checked:

  every recipe and bbappend parses, in each variant (native)   every file:// is there
  the crates in SRC_URI are exactly those of Cargo.lock        nothing is skipped but for the reasons named below
  classes' functions give what they should                     kernel fragments are well-formed and agree

The sources of the recipe are really fetched and unpacked by BitBake's fetcher, the crates from the files that cargo
downloaded, with their checksums compared: WORK/unpacked is what do_unpack leaves. WORK/settings holds the settings of
each kind of machine.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import types

# PyPI's package of BitBake leaves its hash server out; parsing does not need it.
hashserv = types.ModuleType('hashserv')
hashserv.client = types.ModuleType('hashserv.client')
hashserv.is_valid_unihash = lambda unihash: True
sys.modules['hashserv'] = hashserv
sys.modules['hashserv.client'] = hashserv.client

import bb.build  # noqa: E402
import bb.cookerdata  # noqa: E402
import bb.data  # noqa: E402
import bb.data_smart  # noqa: E402
import bb.fetch2  # noqa: E402
import bb.parse  # noqa: E402
import bb.parse.parse_py.BBHandler  # noqa: E402
import bb.siggen  # noqa: E402
import packages  # noqa: E402

CLASSES = '''allarch base cargo core-image deploy image native nopackages packagegroup ptest-cargo systemd'''.split()
STAND_IN_CLASSES = {
    'native': 'CLASSOVERRIDE = "class-native"\nPN .= "-native"\n',
    'packagegroup': 'LICENSE ?= "MIT"\n',
    'systemd': '''
python () {
    for unit in (d.getVar('SYSTEMD_SERVICE:' + d.getVar('PN')) or '').split():
        d.appendVar('FILES:' + d.getVar('PN'), ' ${systemd_system_unitdir}/' + unit)
}
''',
    'deploy': 'DEPLOYDIR = "${WORKDIR}/deploy"\n',
    # Inherited by every recipe.
    'base': '''
bbfatal() {
    echo "$*" > ${T}/fatal
    exit 1
}
python () {
    chosen = (d.getVar('PACKAGECONFIG') or '').split()
    flags = d.getVarFlags('PACKAGECONFIG') or {}
    d.setVar('PACKAGECONFIG_CONFARGS', ' '.join(flags[c].split(',')[0] for c in chosen if c in flags))
}
python do_fetch() {
    bb.fetch2.Fetch(d.getVar('SRC_URI').split(), d).download()
}
addtask fetch
python do_unpack() {
}
addtask unpack after do_fetch
do_compile() {
    :
}
addtask compile after do_unpack
python do_package() {
}
do_package[vardeps] += "RDEPENDS:${PN} SYSTEMD_AUTO_ENABLE:${PN}"
addtask package after do_compile
python do_unpack_stand_in() {
    where = d.getVar('UNPACKDIR') or d.getVar('WORKDIR')
    bb.utils.mkdirhier(where)
    fetcher = bb.fetch2.Fetch([u for u in d.getVar('SRC_URI').split() if u.startswith('file://')], d)
    fetcher.unpack(where)
}
''',
}
BITBAKE_CONF = '''
LAYERSERIES_CORENAMES = "wrynose"
DISTRO = "nodistro"
export LC_ALL = "C.UTF-8"
DISTRO_FEATURES ?= ""
DISTROOVERRIDES ?= "nodistro"
MACHINEOVERRIDES ?= "${MACHINE}"
CLASSOVERRIDE ?= "class-target"
OVERRIDES = "${TARGET_OS}:${TRANSLATED_TARGET_ARCH}:${MACHINEOVERRIDES}:${DISTROOVERRIDES}:${CLASSOVERRIDE}"
FILESOVERRIDES = "${TRANSLATED_TARGET_ARCH}:${MACHINEOVERRIDES}:${DISTROOVERRIDES}"
TARGET_OS = "linux"
TARGET_ARCH = "x86_64"
HOST_ARCH = "${TARGET_ARCH}"
TRANSLATED_TARGET_ARCH = "${@d.getVar('TARGET_ARCH').replace('_', '-')}"
KERNEL_IMAGETYPE ?= "bzImage"
PN = "${@bb.parse.vars_from_file(d.getVar('FILE', False), d)[0] or 'defaultpkgname'}"
PV = "${@bb.parse.vars_from_file(d.getVar('FILE', False), d)[1] or '1.0'}"
BPN = "${@d.getVar('PN').replace('-native', '')}"
BP = "${BPN}-${PV}"
TMPDIR = "${TOPDIR}/tmp"
WORKDIR = "${TMPDIR}/work/${PN}"
S = "${WORKDIR}/${BP}"
B = "${S}"
D = "${WORKDIR}/image"
T = "${WORKDIR}/temp"
RUST_HOST_SYS = "x86_64-oe-linux"
CARGO_TARGET_SUBDIR = "${RUST_HOST_SYS}/release"
nonarch_libdir = "/usr/lib"
sysconfdir = "/etc"
datadir = "/usr/share"
bindir = "/usr/bin"
systemd_system_unitdir = "/usr/lib/systemd/system"
BB_DEFAULT_UMASK = "022"
PACKAGES = "${PN}-src ${PN}-dbg ${PN}-staticdev ${PN}-dev ${PN}-doc ${PN}-locale ${PN}"
FILES:${PN}-dev = "/usr/include"
FILES:${PN} = "${bindir}/* ${sysconfdir} ${datadir}/${BPN}"
DL_DIR = "${TOPDIR}/downloads"
PERSISTENT_DIR = "${TOPDIR}/cache"
COREBASE = "${TOPDIR}/core"
COMMON_LICENSE_DIR = "${COREBASE}/licenses"
DEPLOY_DIR_IMAGE = "${TOPDIR}/deploy"
INITRAMFS_FSTYPES = "cpio.gz"
FILESPATH = "${FILESEXTRAPATHS}:${@':'.join(os.path.join(d.getVar('FILE_DIRNAME'), place, o) for place in (d.getVar('BP'), d.getVar('BPN'), 'files') for o in [*reversed(d.getVar('FILESOVERRIDES').split(':')), ''])}"
FILESEXTRAPATHS ?= "__default:"
FILE_DIRNAME = "${@os.path.dirname(d.getVar('FILE', False))}"
THISDIR = "${FILE_DIRNAME}"
BB_NO_NETWORK = "1"
'''

# Recipes of other layers that the layer appends to, under the names that they have in each release, with what the bbappends
# refer to.
RELEASES = ('kirkstone', 'scarthgap', 'wrynose')
OTHERS = {
    'core': {
        'recipes-kernel/linux/linux-yocto_5.15|6.6|6.18.bb': '',
        'recipes-bsp/grub/grub-efi_2.06|2.12|2.14.bb':
            'GRUB_BUILDIN ?= "boot"\ndo_mkimage() {\n    grub-mkimage ${GRUB_BUILDIN}\n}\naddtask mkimage after do_compile\n',
        'recipes-bsp/u-boot/u-boot_2022.01|2024.01|2026.01.bb': '',
        'recipes-core/others/others_1.0.bb': 'inherit systemd\n',
    },
    'raspberrypi': {
        'recipes-kernel/linux/linux-raspberrypi_5.15|6.6|6.12.bb': '',
        'recipes-bsp/rpi-u-boot-scr/rpi-u-boot-scr.bb': '''
SRC_URI = "file://boot.cmd"
B = "${WORKDIR}/build"
do_compile() {
    mkimage -A arm -T script -C none -n "Boot script" -d "${UNPACKED}/boot.cmd" boot.scr
}
do_compile[dirs] = "${B}"
''',
        'recipes-bsp/rpi-u-boot-scr/files/boot.cmd': 'booti\n',
        'recipes-bsp/bootfiles/rpi-config_git.bb':
            'BOOTFILES_DIR_NAME ?= "bootfiles"\ninherit deploy\ndo_deploy() {\n    : > ${DEPLOYDIR}/${BOOTFILES_DIR_NAME}/config.txt\n}\naddtask deploy\n',
    },
    'tegra': {'recipes-bsp/uefi/l4t-launcher-extlinux.bb':
              'KERNEL_ARGS ??= ""\ndo_compile() {\n    echo ${KERNEL_ARGS}\n}\n'},
    'balena-common': {
        'recipes-core/packagegroups/packagegroup-resin.bb':
            'inherit packagegroup\nRDEPENDS:${PN} = "balena-rollback mobynit hostapp-update less"\n',
    },
}


def for_release(name, release):
    """`stem_A|B|C.bb` with the version of the release."""
    stem, underscore, versions = name.rpartition('_')
    if '|' not in versions:
        return name
    return stem + underscore + versions.removesuffix('.bb').split('|')[RELEASES.index(release)] + '.bb'


failures = []
NESTED = bb.data_smart.__expand_python_regexp__


def check(truth, what):
    if not truth:
        failures.append(what)
        print('FAILED  ' + what)


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'w') as f:
        f.write(text)


class Stage:
    """A build directory without OpenEmbedded-Core: configuration, stand-in classes and other layers' recipes."""

    def __init__(self, checkout, work, release, machine='genericx86-64', arch='x86_64', overrides='', settings='', added=True):
        """`added`: whether the layer is there at all."""
        self.layer = os.path.join(checkout, 'yocto-layer')
        self.added = added
        # An older BitBake ends an inline expression at its first closing brace.
        bb.data_smart.__expand_python_regexp__ = NESTED if release == 'wrynose' else re.compile(r'\${@.+?}')
        self.top = os.path.join(work, 'build-%s-%s' % (release, machine))
        shutil.rmtree(self.top, ignore_errors=True)
        core = os.path.join(self.top, 'stand-in')
        for name in CLASSES:
            write(os.path.join(core, 'classes-global' if name == 'base' else 'classes-recipe', name + '.bbclass'), STAND_IN_CLASSES.get(name, '\n'))
        if release == 'kirkstone':
            os.remove(os.path.join(core, 'classes-recipe/ptest-cargo.bbclass'))
        # What recipes of that release themselves refer to.
        unpackdir = 'UNPACKDIR ??= "${WORKDIR}/sources"\nUNPACKED = "${UNPACKDIR}"\n' if release == 'wrynose' else 'UNPACKED = "${WORKDIR}"\n'
        write(os.path.join(core, 'conf/bitbake.conf'), BITBAKE_CONF + unpackdir)
        # Contents that the recipes' LIC_FILES_CHKSUM of the common license needs only as a file.
        write(os.path.join(core, 'licenses/Apache-2.0'), '')
        self.layers = [core, self.layer] if added else [core]
        for name, recipes in OTHERS.items():
            for path, text in recipes.items():
                if path.endswith('.bb'):
                    text = 'SUMMARY = "stand-in"\nSRC_URI = ""\n' + text
                write(os.path.join(self.top, name, for_release(path, release)), text)
            self.layers.append(os.path.join(self.top, name))
        self.base = self.configuration(core, machine, arch, overrides, settings)

    def configuration(self, core, machine, arch, overrides, settings):
        d = bb.data.init()
        d.setVar('__bbclasstype', 'recipe')
        d.setVar('TOPDIR', self.top)
        d.setVar('BB_CACHEDIR', os.path.join(self.top, 'cache'))
        d.setVar('BBPATH', core)
        d.setVar('BBLAYERS', ' '.join(self.layers))
        d.setVar('BBFILE_COLLECTIONS', 'core raspberrypi tegra balena-common')
        d.setVar('BBINCLUDED', '')
        d.setVar('MACHINE', machine)
        d.setVar('MACHINEOVERRIDES', '%s:%s' % (overrides, machine) if overrides else machine)
        bb.parse.init_parser(d)
        if self.added:
            d.setVar('LAYERDIR', self.layer)
            d = bb.parse.handle('conf/layer.conf', self.in_path(d, self.layer))
            d.delVar('LAYERDIR')
        d = bb.parse.handle('conf/bitbake.conf', d)
        d.setVar('TARGET_ARCH', arch)
        local = os.path.join(self.top, 'local.conf')
        write(local, settings)
        d = bb.parse.handle(local, d)
        d.setVar('__bbclasstype', 'global')
        bb.parse.parse_py.BBHandler.inherit('base', 'local.conf', 0, d)
        d.setVar('__bbclasstype', 'recipe')
        bb.parse.init_parser(d)
        bb.fetch2.fetcher_init(d)
        return d

    @staticmethod
    def in_path(d, layer):
        d.setVar('BBPATH', layer + ':' + d.getVar('BBPATH'))
        return d

    def appends(self, recipe):
        """The layer's bbappends for a recipe file, by BitBake's rule for names."""
        name = os.path.splitext(os.path.basename(recipe))[0]
        found = []
        for path in files_of(self.layer, '.bbappend') if self.added else ():
            pattern = os.path.splitext(os.path.basename(path))[0]
            if pattern == name or ('%' in pattern and name.startswith(pattern.split('%')[0])):
                found.append(path)
        return found

    def parse(self, recipe):
        """Datastores of a recipe by variant ('' and 'native')."""
        d = self.base.createCopy()
        d.setVar('__BBAPPEND', ' '.join(self.appends(recipe)))
        return bb.parse.handle(recipe, d)


def files_of(root, *endings):
    found = []
    for place, _, names in os.walk(root):
        found += [os.path.join(place, name) for name in names if name.endswith(endings)]
    return sorted(found)


def lock_file(path):
    """name-version -> sha256 of every registry package, read with a TOML parser."""
    with open(path, 'rb') as f:
        packages = tomllib.load(f)['package']
    return {(p['name'], p['version']): p['checksum'] for p in packages if 'source' in p}


def check_sources(d, what, lock):
    uris = (d.getVar('SRC_URI') or '').split()
    crates = {}
    for uri in uris:
        kind, host, path, _, _, parameters = bb.fetch2.decodeurl(uri)
        if kind == 'crate':
            name, version = path.strip('/').split('/')
            crates[name, version] = d.getVarFlag('SRC_URI', parameters['name'] + '.sha256sum')
            check(host == 'crates.io', '%s: %s' % (what, uri))
        elif kind == 'file':
            place = bb.fetch2.Fetch([uri], d).localpath(uri)
            check(place and os.path.exists(place), '%s: there is no %s' % (what, uri))
    for name in re.findall(r'file://(\S+?)(?:;|$)', d.getVar('LIC_FILES_CHKSUM') or ''):
        if name == 'LICENSE':
            text = open(os.path.join(d.getVar('TWINHULL_CHECKOUT'), 'LICENSE'), 'rb').read()
            import hashlib
            check('md5=' + hashlib.md5(text).hexdigest() in d.getVar('LIC_FILES_CHKSUM'), what + ': md5 of LICENSE')
    if d.getVar('TWINHULL_CARGO_LOCK'):
        check(crates == lock, '%s: crates differ from Cargo.lock: %s' % (what, sorted(set(crates.items()) ^ set(lock.items()))))
    elif crates:
        check(False, what + ': crates without a lock file')


def check_recipes(stage, lock):
    """Parses everything that the layer holds, and its bbappends with the recipes they are for."""
    appended, count = set(), 0
    recipes = files_of(stage.layer, '.bb') + [f for name in OTHERS for f in files_of(os.path.join(stage.top, name), '.bb')]
    for recipe in recipes:
        appended.update(stage.appends(recipe))
        for variant, d in stage.parse(recipe).items():
            what = os.path.basename(recipe) + (' (%s)' % variant if variant else '')
            count += 1
            skipped = d.getVar('__SKIPPED', False)
            if skipped:
                check('no release archive' in skipped, '%s is skipped: %s' % (what, skipped))
                continue
            check_sources(d, what, lock)
            for variable in ('SUMMARY', 'DESCRIPTION', 'LICENSE') if recipe.startswith(stage.layer) else ():
                check(d.getVar(variable), '%s has no %s' % (what, variable))
    check(appended == set(files_of(stage.layer, '.bbappend')), 'bbappends without a recipe: %s'
          % sorted(set(files_of(stage.layer, '.bbappend')) - appended))
    return count


def one(stage, name, variant='', setting=None):
    """One of the layer's recipes, parsed; `setting` is a variable of local.conf with its value."""
    [recipe] = [f for f in files_of(stage.layer, '.bb') if os.path.basename(f).startswith(name + '_') or
                os.path.basename(f) == name + '.bb']
    if setting:
        stage.base.setVar(*setting)
    return stage.parse(recipe)[variant]


def run(d, task):
    """Runs a task's own function, as BitBake would."""
    bb.utils.mkdirhier(d.getVar('T'))
    for flag in ('cleandirs', 'dirs'):
        for place in (d.getVarFlag(task, flag) or '').split():
            bb.utils.mkdirhier(d.expand(place))
    bb.build.exec_func(task, d)


def fails(d, task):
    """What a task says when it fails; empty if it does not."""
    said = []

    class Listener(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())
    listener = Listener()
    logging.getLogger('BitBake').addHandler(listener)
    try:
        run(d, task)
        return ''
    except (bb.BBHandledException, bb.process.ExecutionError) as e:
        fatal = os.path.join(d.getVar('T'), 'fatal')
        return '\n'.join(said) + (open(fatal).read() if os.path.exists(fatal) else '') + str(e)
    finally:
        logging.getLogger('BitBake').removeHandler(listener)


def boot_files(stage):
    """What the recipe twinhull-boot deploys, by path on the boot partition."""
    d = one(stage, 'twinhull-boot')
    d.setVar('PATH', os.environ['PATH'])
    run(d, 'do_unpack_stand_in')
    run(d, 'do_compile')
    made = os.path.join(d.getVar('B'), 'twinhull-boot')
    return {os.path.relpath(f, made): open(f, 'rb').read() for f in files_of(made, '')}


def check_boot_files(work, checkout):
    def theirs(path):
        return open(os.path.join(checkout, path), 'rb').read()
    pi = 'RPI_USE_U_BOOT = "1"\n'
    for machine, arch, overrides, settings, scheme in (
            ('genericx86-64', 'x86_64', '', '', 'grub'), ('raspberrypi4-64', 'aarch64', 'rpi', pi, 'uboot-text'),
            ('raspberrypi3', 'arm', 'rpi', pi, ''), ('qemuarm', 'arm', '', 'TWINHULL_BOOTLOADER = "uboot-env"\n', 'uboot-env'), ('qemuarm64', 'aarch64', '', 'TWINHULL_BOOTLOADER = "uboot-text"\n', 'uboot-text'),
            ('qemuarm64', 'aarch64', '', 'TWINHULL_BOOTLOADER = "initramfs"\n', 'initramfs'),
            ('raspberrypi5', 'aarch64', 'rpi', 'TWINHULL_BOOTLOADER = "tryboot"\nIMAGE_BOOT_FILES = "bootfiles/* Image;kernel8.img"\n', 'tryboot')):
        stage = Stage(checkout, work, 'scarthgap', machine, arch, overrides, settings)
        found = boot_files(stage)
        expected = {'config.json', 'device-type.json'}
        if scheme == 'grub':
            expected |= {'EFI/BOOT/grub.cfg', 'EFI/BOOT/grub_extraenv', 'EFI/BOOT/grubenv'}
            # Made by grub-editenv.
            check(found['EFI/BOOT/grubenv'] == theirs('tests/fixtures/grub/seed.grubenv'), 'grubenv differs from what grub-editenv makes')
            check(found['EFI/BOOT/grub.cfg'] == theirs('boot/grub/grub.cfg'), 'grub.cfg differs')
            check(len(found['EFI/BOOT/grub_extraenv']) == 1024, 'grub_extraenv')
            check(b'"slug": "intel-nuc"' in found['device-type.json'], 'device-type.json: slug')
        if scheme == 'uboot-env':
            expected |= {'boot.scr'}
            check(found['boot.scr'][72:] == theirs('boot/uboot-env/boot.cmd'), 'boot.scr does not hold boot/uboot-env/boot.cmd')
        if scheme == 'uboot-text':
            expected |= {'boot.scr', 'bootcount.env', 'extra_uEnv.txt', 'resinOS_uEnv.txt'}
            # A header of 64 bytes, then the length of the one script, then a zero.
            check(found['boot.scr'][72:] == theirs('boot/uboot/boot.cmd'), 'boot.scr does not hold boot/uboot/boot.cmd')
            check(len(found['bootcount.env']) == len(theirs('tests/fixtures/uboot/bootcount.env')), 'bootcount.env: length')
        if scheme == 'initramfs':
            expected |= {'initramfs.env'}
            settled = b'resin_root_part=2\nupgrade_available=0\nbootcount=0\n'
            copy = subprocess.run(['mkenvimage', '-r', '-s', '512', '-o', '-', '-'], input=settled, check=True, stdout=subprocess.PIPE).stdout
            check(found['initramfs.env'] == copy * 2, 'initramfs.env differs from what mkenvimage makes')
            packages = one(stage, 'twinhull-initramfs-image').getVar('PACKAGE_INSTALL').split()
            check('twinhull-conf' in packages, 'the initramfs lacks the settings: %s' % packages)
        if scheme == 'tryboot':
            expected |= {'autoboot.txt', 'cmdline-A.txt', 'cmdline-B.txt'}
            check(found['autoboot.txt'] == theirs('boot/raspberrypi/autoboot.txt'), 'autoboot.txt differs')
            check(found['cmdline-B.txt'].startswith(b'root=/dev/mmcblk0p6 ro rootwait'), 'cmdline-B.txt: %s' % found['cmdline-B.txt'])
        check(set(found) == expected, 'boot files of %s: %s' % (machine, sorted(found)))
        # What the image puts on the boot partition is there.
        d = one(stage, 'twinhull-example-image')
        listed = {f for f in d.getVar('TWINHULL_BOOT_FILES').split()}
        missing = {'boot.scr'} if scheme == 'uboot-text' and 'rpi' in overrides else set()
        if scheme == 'tryboot':
            missing = {'cmdline-A.txt', 'cmdline-B.txt'}
            check_slot_boot_files(d)
        check(listed == expected - missing, 'the image of %s takes %s' % (machine, sorted(listed)))


def check_slot_boot_files(d):
    """What wic is told to put on the three boot partitions of a disk for tryboot."""
    check(d.getVar('WKS_FILE') == 'twinhull-tryboot.wks', 'layout of tryboot: %s' % d.getVar('WKS_FILE'))
    own = 'twinhull-boot/autoboot.txt;autoboot.txt'
    check(own in d.getVar('IMAGE_BOOT_FILES_label-resin-boot').split(), 'boot: %s' % d.getVar('IMAGE_BOOT_FILES_label-resin-boot'))
    for letter in 'AB':
        name = 'IMAGE_BOOT_FILES_label-resin-boot' + letter
        expected = ['bootfiles/*', 'Image;kernel8.img', 'twinhull-initramfs-image-raspberrypi5.cpio.gz;initramfs',
                    'twinhull-boot/cmdline-%s.txt;cmdline.txt' % letter]
        check(d.getVar(name).split() == expected, '%s: %s' % (name, d.getVar(name)))
        # wic is told these variables alone.
        check(name in d.getVar('WICVARS').split(), 'WICVARS lacks ' + name)


def check_conf(stage, machine, expected):
    """The settings of a machine; every file goes to WORK/settings for twinhull itself to judge."""
    d = one(stage, 'twinhull-conf')
    run(d, 'do_unpack_stand_in')
    run(d, 'do_compile')
    run(d, 'do_install')
    place = d.getVar('D')
    check(not packages.split(d)[1], 'twinhull-conf: installed-vs-shipped: %s' % packages.split(d)[1])
    found = [os.path.relpath(f, place) for f in files_of(place, '.toml')]
    text = ''.join(open(f).read() for f in files_of(place, '.toml'))
    check(expected in text, 'settings of %s lack %r: %s' % (machine, expected, found))
    for f in files_of(place, '.toml'):
        with open(f, 'rb') as settings:
            for path in tomllib.load(settings).get('init', {}).get('persist', []):
                # PID 1 refuses to boot an image that lacks what it must bind over.
                check(os.path.exists(place + path), 'settings of %s: init.persist names %s, which no package brings' % (machine, path))
        target = os.path.join(os.path.dirname(stage.top), 'settings', machine, os.path.basename(f))
        bb.utils.mkdirhier(os.path.dirname(target))
        shutil.copy(f, target)


def check_root(work, checkout):
    """What the image class adds to a root: where PID 1 mounts, and the kernel under the name that the boot script loads."""
    for machine, arch, image, kernel, settings in (('genericx86-64', 'x86_64', 'bzImage', 'vmlinuz', ''),
                                                   ('qemuarm64', 'aarch64', 'Image', 'Image', 'TWINHULL_BOOTLOADER = "uboot-text"\n')):
        stage = Stage(checkout, work, 'scarthgap', machine, arch, settings=settings + 'KERNEL_IMAGETYPE = "%s"\n' % image)
        d = one(stage, 'twinhull-example-image')
        rootfs = os.path.join(stage.top, 'rootfs')
        d.setVar('IMAGE_ROOTFS', rootfs)
        bb.utils.mkdirhier(os.path.join(rootfs, 'etc'))
        write(os.path.join(d.getVar('DEPLOY_DIR_IMAGE'), image), 'kernel')
        said = fails(d, 'twinhull_fill_root')
        check('no twinhull-initramfs-image-%s' % machine in said, 'a root without an initramfs: ' + said)
        write(os.path.join(d.getVar('DEPLOY_DIR_IMAGE'), 'twinhull-initramfs-image-%s.cpio.gz' % machine), 'initramfs')
        said = fails(d, 'twinhull_fill_root')
        check(not said, 'twinhull_fill_root: ' + said)
        found = {os.path.relpath(f, rootfs): open(f).read() for f in files_of(rootfs, '')}
        check(found == {'boot/' + kernel: 'kernel', 'boot/initramfs': 'initramfs', 'etc/machine-id': ''}, 'root: %s' % found)
        for place in ('mnt/boot', 'mnt/state', 'mnt/data', 'resin-data'):
            check(os.path.isdir(os.path.join(rootfs, place)), 'the root has no /' + place)
        # The name that the script loads.
        script = {'vmlinuz': 'boot/grub/grub.cfg', 'Image': 'boot/uboot/boot.cmd'}[kernel]
        check('/boot/' + kernel in open(os.path.join(checkout, script)).read(), '%s does not load /boot/%s' % (script, kernel))


def check_modules(stage):
    d = one(stage, 'twinhull-initramfs-image')
    rootfs = os.path.join(stage.top, 'rootfs')
    base = os.path.join(rootfs, 'lib/modules/6.12.0')
    import gzip
    write(os.path.join(base, 'kernel/fs/fat/vfat.ko'), 'vfat')
    for name, text in (('kernel/fs/fat/fat.ko.gz', b'fat'), ('kernel/fs/nls/nls_ascii.ko.gz', b'nls')):
        bb.utils.mkdirhier(os.path.dirname(os.path.join(base, name)))
        with gzip.open(os.path.join(base, name), 'wb') as f:
            f.write(text)
    write(os.path.join(base, 'modules.dep'),
          'kernel/fs/fat/vfat.ko: kernel/fs/fat/fat.ko.gz\nkernel/fs/fat/fat.ko.gz:\nkernel/fs/nls/nls_ascii.ko.gz:\n')
    d.setVar('IMAGE_ROOTFS', rootfs)
    run(d, 'twinhull_collect_modules')
    left = {os.path.relpath(f, rootfs): open(f).read() for f in files_of(rootfs, '')}
    check(left == {'modules/order': 'fat.ko\nvfat.ko\nnls_ascii.ko\n', 'modules/fat.ko': 'fat', 'modules/vfat.ko': 'vfat',
                   'modules/nls_ascii.ko': 'nls'}, 'modules of the initramfs: %s' % left)


def check_bundle(stage, work, twinhull):
    """The example bundle, made by its own task with the real program from a small image."""
    keys = os.path.join(work, 'keys')
    os.makedirs(keys, exist_ok=True)
    public, secret = os.path.join(keys, 'fleet.pub'), os.path.join(keys, 'fleet.key')
    for f in (public, secret):
        if os.path.exists(f):
            os.remove(f)
    subprocess.run([twinhull, 'bundle', 'keygen', '--public', public, '--secret', secret], check=True, stdout=subprocess.DEVNULL)

    def recipe(**variables):
        d = one(stage, 'twinhull-example-bundle')
        d.setVar('PATH', os.path.dirname(twinhull) + ':' + os.environ['PATH'])
        for name, value in variables.items():
            d.setVar(name, value)
        return d
    d = recipe(TWINHULL_BUNDLE_KEYS=secret)
    image = os.path.join(d.getVar('DEPLOY_DIR_IMAGE'), 'twinhull-example-image-genericx86-64.rootfs.ext4')
    said = fails(d, 'do_deploy')
    check('does twinhull-example-image make ext4' in said, 'bundle without an image: ' + said)
    bb.utils.mkdirhier(os.path.dirname(image))
    subprocess.run(['mke2fs', '-q', '-F', '-t', 'ext4', image, '2M'], check=True,
                   env={'PATH': '/usr/sbin:/usr/bin:/sbin:/bin'})
    said = fails(recipe(), 'do_deploy')
    check('set TWINHULL_BUNDLE_KEYS' in said, 'bundle without a key: ' + said)
    said = fails(recipe(TWINHULL_BUNDLE_KEYS='/nowhere.key'), 'do_deploy')
    check('there is no /nowhere.key' in said, 'bundle with a missing key: ' + said)
    said = fails(recipe(TWINHULL_BUNDLE_KEYS=secret, TWINHULL_BUNDLE_PROVIDES='colour=1.0.0'), 'do_deploy')
    check('colour' in said, 'an error of the program itself: ' + said)
    made = []
    for place in ('once', 'again'):
        d = recipe(TWINHULL_BUNDLE_KEYS=secret, TWINHULL_PUBLIC_KEYS=public, TWINHULL_BUNDLE_MIN_VERSION='0.9.0',
                   DEPLOYDIR=os.path.join(work, 'deploy-' + place))
        said = fails(d, 'do_deploy')
        check(not said, 'bundle: ' + said)
        made += [f for f in files_of(d.getVar('DEPLOYDIR'), '-genericx86-64-1.0.0.bundle')]
    check(len(made) == 2 and contents(made[0]) == contents(made[1]), 'two runs of the bundle task differ')
    boot, hook = os.path.join(work, 'boot-files'), os.path.join(work, 'hook')
    write(os.path.join(boot, 'dtbs/board.dtb'), 'device tree')
    write(hook, '#!/bin/sh\n')
    d = recipe(TWINHULL_BUNDLE_KEYS=secret, TWINHULL_PUBLIC_KEYS=public, TWINHULL_BUNDLE_BOOT_DIR=boot,
               TWINHULL_BUNDLE_HOOKS='check=' + hook, DEPLOYDIR=os.path.join(work, 'deploy-more'))
    said = fails(d, 'do_deploy')
    check(not said, 'bundle with boot files and a hook: ' + said)
    names = [name for f in files_of(d.getVar('DEPLOYDIR'), '.bundle') for name, _ in contents(f)]
    check(names[-4:] == ['boot.index', 'boot.frames', 'hooks.index', 'hooks.frames'], 'payloads of the bundle: %s' % names)
    check_hash_tree(stage, recipe, work, secret, public, image)
    check_deltas(recipe, work, secret, made[0], image)
    for name in ('Image', 'firmware/config.txt', 'firmware/cmdline.txt'):
        write(os.path.join(d.getVar('DEPLOY_DIR_IMAGE'), name), name)
    files = 'Image;kernel8.img firmware/*'
    d = recipe(TWINHULL_BUNDLE_KEYS=secret, TWINHULL_BUNDLE_BOOT_FILES=files, DEPLOYDIR=os.path.join(work, 'deploy-boot-files'))
    said = fails(d, 'do_deploy')
    check(not said, 'bundle with files of the deploy directory: ' + said)
    [bundle] = files_of(d.getVar('DEPLOYDIR'), '.bundle')
    manifest = dict(contents(bundle))['manifest.toml'].decode()
    check('kernel8.img' in manifest and 'config.txt' in manifest and 'cmdline' not in manifest, 'boot files: ' + manifest)
    said = fails(recipe(TWINHULL_BUNDLE_KEYS=secret, TWINHULL_BUNDLE_BOOT_FILES='nowhere.dtb'), 'do_deploy')
    check('there is no nowhere.dtb' in said, 'a boot file that is not there: ' + said)
    d = recipe(TWINHULL_BUNDLE_KEYS=secret, TWINHULL_PUBLIC_KEYS=os.path.join(keys, 'other.pub'))
    other = d.getVar('TWINHULL_PUBLIC_KEYS')
    subprocess.run([twinhull, 'bundle', 'keygen', '--public', other, '--secret', other + '.key'], check=True, stdout=subprocess.DEVNULL)
    said = fails(d, 'do_deploy')
    os.remove(other)
    os.remove(other + '.key')
    check('sign' in said, 'a bundle that no device would take: ' + said)
    check_keys(stage, public, secret)


def check_deltas(recipe, work, secret, old, image):
    """Deltas from an older bundle, and from the image itself, to a bundle of the next version."""
    def next_version(**variables):
        return recipe(TWINHULL_BUNDLE_KEYS=secret, TWINHULL_BUNDLE_VERSION='1.1.0', DEPLOYDIR=os.path.join(work, 'deploy-next'), **variables)
    said = fails(next_version(TWINHULL_BUNDLE_DELTA_FROM='/nowhere.bundle'), 'do_deploy')
    check('there is no /nowhere.bundle' in said, 'a delta from nothing: ' + said)
    said = fails(next_version(TWINHULL_BUNDLE_DELTA_FROM='%s %s' % (old, old)), 'do_deploy')
    check('would become' in said, 'two deltas of one name: ' + said)
    d = next_version(TWINHULL_BUNDLE_DELTA_FROM='%s %s' % (old, image))
    said = fails(d, 'do_deploy')
    check(not said, 'deltas: ' + said)
    found = sorted(os.path.basename(f) for f in files_of(d.getVar('DEPLOYDIR'), '.delta'))
    new = 'twinhull-example-bundle-genericx86-64-1.1.0'
    check(found == ['%s-from-twinhull-example-bundle-genericx86-64-1.0.0.delta' % new,
                    '%s-from-%s.delta' % (new, os.path.basename(image))], 'deltas: %s' % found)


def check_hash_tree(stage, recipe, work, secret, public, image):
    """A bundle with a hash tree, which `bundle create` checks against the root hash, block by block."""
    for wanted in ('1', '0'):
        d = one(stage, 'twinhull-example-bundle', setting=('TWINHULL_BUNDLE_VERITY', wanted))
        check(('cryptsetup-native' in d.getVar('DEPENDS').split()) == (wanted == '1'), 'DEPENDS: ' + d.getVar('DEPENDS'))
    made = []
    for place in ('once', 'again'):
        d = recipe(TWINHULL_BUNDLE_KEYS=secret, TWINHULL_PUBLIC_KEYS=public, TWINHULL_BUNDLE_VERITY='1',
                   DEPLOYDIR=os.path.join(work, 'deploy-sealed-' + place))
        said = fails(d, 'do_deploy')
        check(not said, 'bundle with a hash tree: ' + said)
        made += files_of(d.getVar('DEPLOYDIR'), '.bundle')
    check(len(made) == 2 and contents(made[0]) == contents(made[1]), 'two bundles with a hash tree differ')
    [root] = tomllib.loads(dict(contents(made[0]))['manifest.toml'].decode())['payload']
    verity = root.get('verity', {})
    check(verity.get('hash_offset') == os.path.getsize(image), 'the hash tree is not right behind the image: %s' % verity)
    said = fails(recipe(TWINHULL_BUNDLE_KEYS=secret, TWINHULL_BUNDLE_VERITY='1', PATH=os.path.dirname(image)), 'do_deploy')
    check('no veritysetup in PATH' in said, 'a hash tree without veritysetup: ' + said)


def contents(bundle):
    """Everything in a bundle but its signatures, which are made with random numbers."""
    with tarfile.open(bundle) as archive:
        return [(m.name, archive.extractfile(m).read()) for m in archive if not m.name.endswith('.minisig')]


def check_keys(stage, public, secret):
    for keys, expected in ((public, ''), (secret, 'not a minisign public key'), ('', 'TWINHULL_PUBLIC_KEYS is empty')):
        d = one(stage, 'twinhull-keys', setting=('TWINHULL_PUBLIC_KEYS', keys))
        shutil.rmtree(d.getVar('WORKDIR'), ignore_errors=True)
        run(d, 'do_unpack_stand_in')
        said = fails(d, 'do_install')
        check(expected in said if expected else not said, 'twinhull-keys with %r: %s' % (keys, said))
        if not expected:
            check_packages(d, {'twinhull-keys': {'/usr/share/twinhull/keys.d/fleet.pub'}})
    check_key_folder(stage, public)


def check_key_folder(stage, public):
    """Only the keys that are named: not one of an earlier build, and not two of one name."""
    d = one(stage, 'twinhull-keys', setting=('TWINHULL_PUBLIC_KEYS', public))
    shutil.rmtree(d.getVar('WORKDIR'))
    run(d, 'do_unpack_stand_in')
    elsewhere = os.path.join(d.getVar('UNPACKDIR'), 'keys/elsewhere')
    for name in ('revoked.pub', 'fleet.pub'):
        bb.utils.mkdirhier(elsewhere)
        shutil.copy(public, os.path.join(elsewhere, name))
    run(d, 'do_install')
    check_packages(d, {'twinhull-keys': {'/usr/share/twinhull/keys.d/fleet.pub'}})
    d.setVar('TWINHULL_PUBLIC_KEYS', '%s /elsewhere/fleet.pub' % public)
    shutil.rmtree(d.getVar('D'))
    said = fails(d, 'do_install')
    check('two keys have the name fleet.pub' in said, 'two keys of one name: ' + said)


def check_fragments(layer):
    """Kernel fragments: one setting a line, none twice with different values."""
    values = {}
    for path in files_of(layer, '.cfg'):
        for number, line in enumerate(open(path), 1):
            line = line.rstrip('\n')
            match = re.fullmatch(r'(CONFIG_[A-Z0-9_]+)=(y|m|\d+|"[^"]*")|# (CONFIG_[A-Z0-9_]+) is not set', line)
            check(match or not line or (line.startswith('# ') and 'CONFIG_' not in line), '%s:%d: %s' % (path, number, line))
            if match:
                name, value = match[1] or match[3], match[2]
                check(values.setdefault((path, name), value) == value, '%s:%d: %s twice' % (path, number, name))


def check_license(stage, checkout):
    """LICENSE of the recipe against the licenses of every crate that is linked into the program."""
    ours = set(one(stage, 'twinhull').getVar('LICENSE').split(' & '))
    tree = subprocess.run(['cargo', 'tree', '--locked', '--quiet', '-e', 'normal,no-proc-macro', '-p', 'twinhull', '--prefix', 'none',
                           '--target', 'x86_64-unknown-linux-musl', '--format', '{p}\t{l}'],
                          cwd=checkout, check=True, stdout=subprocess.PIPE, text=True).stdout
    used = set()
    for line in set(tree.splitlines()):
        if '\t' not in line:
            continue
        crate, expression = line.replace(' (*)', '').split('\t')
        # Each AND part needs one of its alternatives among ours.
        for part in expression.replace('/', ' OR ').replace('(', '').replace(')', '').split(' AND '):
            fitting = set(part.split(' OR ')) & ours
            check(fitting, '%s is under %s, which LICENSE of the recipe (%s) does not cover' % (crate, part, ' & '.join(sorted(ours))))
            if len(part.split(' OR ')) == 1:
                used |= fitting
    check(ours <= used | {'MIT', 'Apache-2.0'}, 'LICENSE names %s, which no linked crate needs' % sorted(ours - used))


def check_readme(layer):
    """What yocto-check-layer wants of a README, and that it names what the layer has."""
    text = open(os.path.join(layer, 'README.md')).read()
    for wanted in ('maintainer', 'patch', '@'):
        check(wanted in text, 'README.md of the layer: no %r' % wanted)
    check(os.path.getsize(os.path.join(layer, 'SECURITY.md')) > 0, 'SECURITY.md of the layer')
    for path in files_of(layer, '.bb', '.bbclass', '.wks'):
        name = os.path.basename(path).split('_')[0].removesuffix('.bb')
        # Classes without variables are not for makers of images.
        if path.endswith('.bbclass') and '[doc]' not in open(path).read():
            continue
        check(name.removesuffix('.bbclass') in text, 'README.md of the layer does not name ' + name)


def check_layer_conf(layer):
    """layer.conf as yocto-check-layer and bitbake-layers read it: alone, without any other configuration."""
    d = bb.data.init()
    bb.parse.init_parser(d)
    d.setVar('LAYERDIR', layer)
    d = bb.parse.handle(os.path.join(layer, 'conf/layer.conf'), d, include=True)
    d.expandVarref('LAYERDIR')
    check((d.getVar('BBFILE_COLLECTIONS') or '').split() == ['twinhull'], 'layer.conf: BBFILE_COLLECTIONS')
    check(set(d.getVar('LAYERSERIES_COMPAT_twinhull').split()) == set(RELEASES), 'layer.conf: LAYERSERIES_COMPAT')
    for entry in d.getVar('BBFILES_DYNAMIC').split():
        collection, path = entry.split(':', 1)
        check(path.startswith(layer + '/dynamic-layers/') and collection in d.getVar('LAYERRECOMMENDS_twinhull').split(),
              'layer.conf: BBFILES_DYNAMIC: ' + entry)


def check_installed(stage):
    """Every file beside the recipe is installed, and every unit enabled."""
    d = one(stage, 'twinhull')
    beside = os.path.join(stage.layer, 'recipes-core/twinhull/files')
    for path in files_of(beside, ''):
        name = os.path.relpath(path, beside)
        check('file://' + name in d.getVar('SRC_URI').split(), 'twinhull.inc: SRC_URI lacks files/' + name)
        if name.endswith(('.service', '.path', '.timer', '.socket')):
            check(name in d.getVar('SYSTEMD_SERVICE:twinhull').split(), 'twinhull.inc: TWINHULL_UNITS lacks ' + name)
    for variant, expected in (('', ''), ('native', 'build-host')):
        found = one(stage, 'twinhull', variant).getVar('PACKAGECONFIG')
        check(found == expected, 'PACKAGECONFIG of twinhull (%s) is %r, expected %r' % (variant, found, expected))
    check('twinhull-bundle-native' in (one(stage, 'twinhull', 'native').getVar('PROVIDES') or ''), 'nothing provides twinhull-bundle-native')
    run(d, 'do_unpack_stand_in')
    program = d.getVar('TWINHULL_PROGRAM')
    write(program, 'stands for the program')
    run(d, 'do_install')
    units = {'/usr/lib/systemd/system/' + unit for unit in d.getVar('TWINHULL_UNITS').split()}
    check_packages(d, {'twinhull-init': {'/init'}, 'twinhull-sshd': {'/etc/ssh/sshd_config.d/twinhull.conf'},
                       'twinhull': units | {'/usr/bin/twinhull'}})


def check_packages(d, expected):
    """Which file is in which package; none is forgotten, and no other package has any."""
    found, left = packages.split(d)
    check(not left, 'installed-vs-shipped: %s' % sorted(left))
    check({p: files for p, files in found.items() if files} == expected, 'packages of %s: %s' % (d.getVar('PN'), found))


def check_version(stage, checkout):
    with open(os.path.join(checkout, 'Cargo.toml'), 'rb') as f:
        package = tomllib.load(f)
    for name in ('twinhull', 'twinhull-bin'):
        check(one(stage, name).getVar('PV') == package['package']['version'], name + ': version differs from Cargo.toml')
    check(tuple(map(int, package['workspace']['package']['rust-version'].split('.')[:2])) <= (1, 94),
          'rust-version: newer than the Rust of wrynose, 1.94')


def unpack(stage, cargo_home, work):
    """What do_fetch and do_unpack leave of the recipe, with the crates that cargo downloaded in place of the network."""
    d = one(stage, 'twinhull')
    for crate in files_of(os.path.join(cargo_home, 'registry/cache'), '.crate'):
        bb.utils.mkdirhier(d.getVar('DL_DIR'))
        shutil.copy(crate, d.getVar('DL_DIR'))
    fetcher = bb.fetch2.Fetch(d.getVar('SRC_URI').split(), d)
    fetcher.download()
    target = os.path.join(work, 'unpacked')
    shutil.rmtree(target, ignore_errors=True)
    os.makedirs(target)
    fetcher.unpack(target)
    return target


def main():
    checkout, work = map(os.path.abspath, sys.argv[1:3])
    twinhull = os.path.abspath(sys.argv[3])
    # Errors of a parse are shown; those of tasks are looked at by fails().
    logging.getLogger('BitBake.Parsing').addHandler(logging.StreamHandler(sys.stderr))
    lock = lock_file(os.path.join(checkout, 'Cargo.lock'))
    count = 0
    for release in RELEASES:
        for features in ('', 'DISTRO_FEATURES = "systemd twinhull"\n'):
            stage = Stage(checkout, work, release, settings=features)
            count += check_recipes(stage, lock)
    print('%d recipes and variants parsed, %d crates' % (count, len(lock)))
    check_version(stage, checkout)
    check_license(stage, checkout)
    check_layer_conf(stage.layer)
    check_fragments(stage.layer)
    check_installed(stage)
    check_readme(stage.layer)
    check_boot_files(work, checkout)
    check_modules(stage)
    check_root(work, checkout)
    check_bundle(stage, work, twinhull)
    for machine, arch, overrides, expected in (
            ('genericx86-64', 'x86_64', '', 'chooser = "grub"'), ('raspberrypi3-64', 'aarch64', 'rpi', 'deadline_s = 900'),
            ('raspberrypi4-64', 'aarch64', 'rpi', 'chooser = "uboot-text"'), ('qemuarm64', 'aarch64', '', 'persist'),
            ('qemuarm', 'arm', '', 'chooser = "uboot-env"'),
            ('raspberrypi5', 'aarch64', 'rpi', 'chooser = "tryboot"'),
            ('p3768-0000-p3767-0000', 'aarch64', 'tegra', 'tries = 2')):
        chosen = {'qemuarm': 'uboot-env', 'raspberrypi5': 'tryboot'}.get(machine)
        settings = 'TWINHULL_BOOTLOADER = "%s"\n' % chosen if chosen else ''
        settings += 'RPI_USE_U_BOOT = "1"\nTWINHULL_SETTINGS = "[health]\\nsettle_s = 20"\n'
        stage = Stage(checkout, work, 'wrynose', machine, arch, overrides, settings)
        check_conf(stage, machine, expected)
        check_conf(stage, machine, 'settle_s = 20')
    # balena-common among the stand-ins has an engine.
    check_conf(Stage(checkout, work, 'wrynose', 'no-engine', settings='TWINHULL_ENGINE = "0"\n'), 'no-engine', '[engine]\nenabled = false')
    stage = Stage(checkout, work, 'wrynose', 'supervised', settings='TWINHULL_SUPERVISOR_IMAGE = "registry/supervisor"\n')
    check_conf(stage, 'supervised', '')
    text = open(os.path.join(one(stage, 'twinhull-conf').getVar('D'), 'etc/balena-supervisor/supervisor.conf')).read()
    check(text == 'SUPERVISOR_IMAGE=registry/supervisor\nSUPERVISOR_VERSION=\n', 'supervisor.conf: ' + text)
    print('unpacked: ' + unpack(stage, os.environ.get('CARGO_HOME', os.path.expanduser('~/.cargo')), work))


if __name__ == '__main__':
    main()
    sys.exit(1 if failures else 0)
