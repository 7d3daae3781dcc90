"""A build directory without OpenEmbedded-Core, for BitBake's own module: what OpenEmbedded-Core and the layers of boards would
bring is stood in for by classes, a configuration and recipes of a few lines. Recipes are parsed and their tasks run there.
"""

import logging
import os
import re
import shutil
import sys
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


def check_packages(d, expected):
    """Which file is in which package; none is forgotten, and no other package has any."""
    found, left = packages.split(d)
    check(not left, 'installed-vs-shipped: %s' % sorted(left))
    check({p: files for p, files in found.items() if files} == expected, 'packages of %s: %s' % (d.getVar('PN'), found))
