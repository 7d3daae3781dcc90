"""What the layer does to the recipes of other layers, by the task hashes that BitBake computes.

Usage: signatures.py CHECKOUT WORK

Without `twinhull` in DISTRO_FEATURES no task of any other layer may change when the layer is added: yocto-check-layer
compares the same hashes. With it, each bbappend must change a task, or it does nothing. Boot scripts are then made by
the tasks themselves. The recipes of other layers are stand-ins with the names and the tasks of the real ones.
"""

import os
import shutil
import sys

import bb.data
import bitbake
from bitbake import check

# What OpenEmbedded-Core keeps out of the hashes, as far as the stand-ins have it.
IGNORED = set('FILESPATH FILESEXTRAPATHS FILESOVERRIDES FILE_DIRNAME FILE THISDIR TOPDIR TMPDIR WORKDIR DL_DIR BBPATH BBLAYERS'.split())
FEATURE = 'DISTRO_FEATURES = "systemd twinhull"\n'


def hashes(d):
    tasks, dependencies, values = bb.data.generate_dependencies(d, IGNORED)
    return bb.data.generate_dependency_hash(tasks, dependencies, values, IGNORED, 'recipe')[1]


def of_others(stage, layers):
    """Task hashes of every recipe of other layers, by its path in its layer."""
    found = {}
    for layer in layers:
        place = os.path.join(stage.top, layer)
        for recipe in bitbake.files_of(place, '.bb'):
            for task, value in hashes(stage.parse(recipe)['']).items():
                found['%s: %s%s' % (layer, os.path.relpath(recipe, place), task.replace('recipe', ''))] = value
    return found


def check_hashes(checkout, work):
    count = 0
    for release in bitbake.RELEASES:
        for machine, arch, overrides in (('genericx86-64', 'x86_64', ''), ('raspberrypi4-64', 'aarch64', 'rpi')):
            def stage(settings, added=True):
                return bitbake.Stage(checkout, work, release, machine, arch, overrides, 'RPI_USE_U_BOOT = "1"\n' + settings, added)
            before = of_others(stage('', added=False), bitbake.OTHERS)
            after = of_others(stage(''), bitbake.OTHERS)
            check(before and before == after, '%s, %s: the layer changes %s' % (
                release, machine, sorted(task for task in before if before[task] != after.get(task))))
            count += len(before)
            if arch == 'aarch64':
                check_alive(stage(FEATURE), before, release)
    print('%d task hashes of other layers are the same with the layer and without' % count)


def check_alive(stage, before, release):
    """Every bbappend changes a task of its recipe."""
    after = of_others(stage, bitbake.OTHERS)
    changed = {task.split(':')[1].strip() for task in after if before[task] != after[task]}
    appended = {os.path.relpath(recipe, os.path.join(stage.top, layer)) for layer in bitbake.OTHERS
                for recipe in bitbake.files_of(os.path.join(stage.top, layer), '.bb') if stage.appends(recipe)}
    check(appended and appended == changed, '%s: bbappends for %s, but changed are %s' % (release, sorted(appended), sorted(changed)))


def check_scripts(checkout, work):
    """boot.scr of a Raspberry Pi: ours only where it can start the kernel."""
    for arch, chosen, expected in (('aarch64', '', 'boot/uboot/boot.cmd'), ('arm', '', None),
                                   ('aarch64', 'uboot-env', 'boot/uboot-env/boot.cmd'), ('arm', 'uboot-env', 'boot/uboot-env/boot.cmd')):
        settings = FEATURE + 'RPI_USE_U_BOOT = "1"\n' + ('TWINHULL_BOOTLOADER = "%s"\n' % chosen if chosen else '')
        stage = bitbake.Stage(checkout, work, 'wrynose', 'some-pi', arch, 'rpi', settings)
        [recipe] = [f for f in bitbake.files_of(os.path.join(stage.top, 'raspberrypi'), '.bb') if 'u-boot-scr' in f]
        d = stage.parse(recipe)['']
        shutil.rmtree(d.getVar('WORKDIR'), ignore_errors=True)
        bitbake.run(d, 'do_unpack_stand_in')
        said = bitbake.fails(d, 'do_compile')
        check(not said, 'boot.scr: ' + said)
        with open(os.path.join(d.getVar('B'), 'boot.scr'), 'rb') as f:
            # A header of 64 bytes, then the length of the one script, then a zero.
            script = f.read()[72:].decode()
        own = os.path.join(os.path.dirname(recipe), 'files/boot.cmd')
        wanted = open(os.path.join(checkout, expected) if expected else own).read()
        check(script == wanted, '%s, %s: boot.scr holds %r' % (arch, chosen, script[:60]))


def main():
    checkout, work = map(os.path.abspath, sys.argv[1:3])
    check_hashes(checkout, work)
    check_scripts(checkout, work)


if __name__ == '__main__':
    main()
    sys.exit(1 if bitbake.failures else 0)
