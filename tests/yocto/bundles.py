"""The class that makes signed bundles, and the recipe of their keys: their own tasks, run with the real program."""

import os
import shutil
import subprocess
import tarfile
import tomllib

from bitbake import bb, check, check_packages, fails, files_of, one, run, write


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
