"""The recipe twinhull-bin with archives of make-release: what it unpacks and installs, and what it refuses.

Usage: release.py CHECKOUT WORK OUT VERSION ARCH...
"""

import os
import shutil
import sys

import bitbake
import packages


def main():
    checkout, work, out = map(os.path.abspath, sys.argv[1:4])
    version = sys.argv[4]
    for arch in sys.argv[5:]:
        for damaged in (False, True):
            place = os.path.join(work, 'damaged' if damaged else 'whole')
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(out, place)
            if damaged:
                with open(os.path.join(place, 'twinhull-%s-%s.tar.gz' % (version, arch)), 'ab') as f:
                    f.write(b'\0')
            settings = 'TWINHULL_RELEASE_URI = "file://%s"\n' % place + open(os.path.join(out, 'twinhull-release.inc')).read()
            stage = bitbake.Stage(checkout, work, 'kirkstone', 'some-machine', arch, settings=settings)
            d = bitbake.one(stage, 'twinhull-bin')
            bitbake.check(not d.getVar('__SKIPPED', False), 'twinhull-bin: %s' % d.getVar('__SKIPPED', False))
            shutil.rmtree(d.getVar('WORKDIR'), ignore_errors=True)
            said = bitbake.fails(d, 'do_unpack')
            if damaged:
                bitbake.check('it is not the archive' in said, 'twinhull-bin with a damaged archive: ' + said)
                continue
            bitbake.check(not said, 'twinhull-bin: ' + said)
            bitbake.run(d, 'do_unpack_stand_in')
            bitbake.run(d, 'do_install')
            found = {os.path.relpath(f, d.getVar('D')): os.path.getsize(f) for f in bitbake.files_of(d.getVar('D'), '')}
            bitbake.check(found['init'] == found['usr/bin/twinhull'] > 1024 * 1024, 'twinhull-bin installs %s' % found)
            units = {'/usr/lib/systemd/system/' + unit for unit in d.getVar('TWINHULL_UNITS').split()}
            bitbake.check_packages(d, {'twinhull-bin-init': {'/init'}, 'twinhull-bin-sshd': {'/etc/ssh/sshd_config.d/twinhull.conf'},
                                        'twinhull-bin': units | {'/usr/bin/twinhull'}})
            said = packages.complaints(os.path.join(d.getVar('D'), 'init'), work)
            bitbake.check(not said, 'twinhull-bin, %s: %s' % (arch, said))
            native = bitbake.one(stage, 'twinhull-bin', 'native')
            bitbake.check(native.getVar('TWINHULL_PROGRAM').endswith('/twinhull-host'), 'twinhull-bin-native: ' + native.getVar('TWINHULL_PROGRAM'))
            print('twinhull-bin, %s: installs %d files, %d bytes' % (arch, len(found), sum(found.values())))


if __name__ == '__main__':
    main()
    sys.exit(1 if bitbake.failures else 0)
