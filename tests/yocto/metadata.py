"""The layer's metadata, parsed by BitBake's own module: every recipe, bbappend and class, without OpenEmbedded-Core.

Usage: metadata.py CHECKOUT WORK TWINHULL

TWINHULL is the program, with the feature build-host. For what OpenEmbedded-Core would bring see bitbake.py. Each recipe
is parsed as for wrynose (UNPACKDIR set) and for scarthgap and kirkstone (not set). Checked:

  every recipe and bbappend parses, in each variant (native)   every file:// is there
  the crates in SRC_URI are exactly those of Cargo.lock        nothing is skipped but for the reasons named below
  classes' functions give what they should                     kernel fragments are well-formed and agree

The sources of the recipe are really fetched and unpacked by BitBake's fetcher, the crates from the files that cargo
downloaded, with their checksums compared: WORK/unpacked is what do_unpack leaves. WORK/settings holds the settings of
each kind of machine.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tomllib

import bundles
import packages
from bitbake import (OTHERS, RELEASES, Stage, bb, check, check_packages, failures, fails, files_of, one, run,
                     write)


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
    bundles.check_bundle(stage, work, twinhull)
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
