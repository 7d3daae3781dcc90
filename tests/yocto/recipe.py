"""The recipe twinhull built by its own tasks, and its packages judged as OpenEmbedded's package QA does.

Usage: recipe.py CHECKOUT WORK

do_configure, do_compile and do_install are the recipe's own, run by BitBake's module; classes stand in for cargo's with
the same flags, folders and environment. Built for this machine, for a device and for a build host, and with its unit
tests as the ptest class builds them. Optimized little, as what is looked at does not depend on it: the flags, that nothing
but what was unpacked is needed, what is installed, and that it passes

  buildpaths    no path of the build folder in a program      already-stripped   symbols are still there
  ldflags       a GNU hash table                              textrel, rpaths    none
  file-rdeps    no library but those of the C library

The unit tests are then run as on a device: from a folder of their own, without the sources.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import bitbake
import packages
from bitbake import check

TRIPLE = os.uname().machine + '-unknown-linux-gnu'
bitbake.STAND_IN_CLASSES['cargo'] = '''
export CARGO_HOME = "${UNPACKDIR}/cargo_home"
B = "${WORKDIR}/build"
TARGET_DBGSRC_DIR = "/usr/src/debug/${PN}/${PV}"
RUST_HOST_SYS = "%s"
CARGO_TARGET_SUBDIR = "${RUST_HOST_SYS}/release"
CARGO_MANIFEST_PATH = "${S}/Cargo.toml"
CARGO_BUILD_FLAGS = "--quiet --frozen --offline --target ${RUST_HOST_SYS} --release --manifest-path=${CARGO_MANIFEST_PATH}"
export RUSTFLAGS = "--remap-path-prefix=${WORKDIR}=${TARGET_DBGSRC_DIR} -Clink-arg=-Wl,--hash-style=gnu"
DEBUG_PREFIX_MAP = "-ffile-prefix-map=${S}=${TARGET_DBGSRC_DIR} -ffile-prefix-map=${B}=${TARGET_DBGSRC_DIR}"
export CFLAGS = "-O2 -g ${DEBUG_PREFIX_MAP}"
do_configure() {
    mkdir -p ${CARGO_HOME}/bitbake
    printf '[source.bitbake]\\ndirectory = "%%s"\\n[source.crates-io]\\nreplace-with = "bitbake"\\nlocal-registry = "/nonexistent"\\n' \
        "${CARGO_HOME}/bitbake" > ${CARGO_HOME}/config.toml
    printf '[build]\\ntarget-dir = "%%s"\\n' "${B}/target" >> ${CARGO_HOME}/config.toml
}
do_compile() {
    cargo build ${CARGO_BUILD_FLAGS} ${PACKAGECONFIG_CONFARGS}
}
do_compile[dirs] = "${B}"
''' % TRIPLE
# Quick to build.
ENVIRONMENT = {'CARGO_PROFILE_RELEASE_LTO': 'off', 'CARGO_PROFILE_RELEASE_CODEGEN_UNITS': '16',
               # No crate that cargo happens to have, and no network.
               'CARGO_NET_OFFLINE': 'true', 'http_proxy': 'http://127.0.0.1:9', 'https_proxy': 'http://127.0.0.1:9'}


def output(*command, **more):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **more).stdout


def unpacked(stage, variant, place):
    """The recipe's datastore, with sources and crates copied from `place` to where its release unpacks them."""
    d = bitbake.one(stage, 'twinhull', variant)
    shutil.rmtree(d.getVar('WORKDIR'), ignore_errors=True)
    os.makedirs(os.path.dirname(d.getVar('UNPACKDIR')))
    shutil.copytree(place, d.getVar('UNPACKDIR'), symlinks=True)
    bitbake.run(d, 'do_unpack_stand_in')
    return d


def build(d):
    for task in ('do_configure', 'do_compile', 'do_install'):
        said = bitbake.fails(d, task)
        check(not said, '%s of %s: %s' % (task, d.getVar('PN'), said[-3000:]))
        if said:
            sys.exit(1)
    return {os.path.relpath(f, d.getVar('D')): f for f in bitbake.files_of(d.getVar('D'), '')}


def judge(d, path, what):
    """Package QA of a program."""
    found = packages.complaints(path, os.path.dirname(d.getVar('TOPDIR')))
    check(not found, '%s: %s' % (what, found))


def ptest(d):
    """Unit tests as the class ptest-cargo builds them, run from a folder without the sources."""
    said = output('sh', '-c', 'cargo build --tests --message-format json %s %s' % (d.getVar('CARGO_BUILD_FLAGS'), d.getVar('PACKAGECONFIG_CONFARGS')),
                  cwd=d.getVar('B'), env={**os.environ, **exported(d)})
    place = os.path.join(d.getVar('WORKDIR'), 'ptest')
    os.makedirs(place)
    # Their servers are on this machine: what keeps cargo from the network would keep the tests from these, for ever.
    unproxied = {name: value for name, value in os.environ.items() if not name.endswith('_proxy')}
    count = 0
    for line in said.splitlines():
        message = json.loads(line)
        if message.get('executable') and message['target']['test']:
            program = shutil.copy2(message['executable'], place)
            judge(d, program, 'ptest ' + os.path.basename(program))
            # The sources are not on a device.
            os.rename(d.getVar('S'), d.getVar('S') + '.away')
            ran = subprocess.run([program, '--test-threads=2'], cwd=place, env=unproxied, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            os.rename(d.getVar('S') + '.away', d.getVar('S'))
            check(ran.returncode == 0, 'ptest: ' + ran.stdout[-6000:])
            count += sum(map(int, re.findall(r'(\d+) passed', ran.stdout)))
    check(count > 100, 'ptest: only %d tests ran' % count)
    return count


def exported(d):
    return {name: d.getVar(name) for name in d if d.getVarFlag(name, 'export') and d.getVar(name) is not None}


def main():
    checkout, work = map(os.path.abspath, sys.argv[1:3])
    os.environ.update(ENVIRONMENT)
    unpacked_at = os.path.join(work, 'unpacked')
    # Unit tests are slow without any optimization.
    for release, variant, level in (('wrynose', '', '1'), ('scarthgap', 'native', '0')):
        os.environ['CARGO_PROFILE_RELEASE_OPT_LEVEL'] = level
        stage = bitbake.Stage(checkout, work, release, 'this-machine', os.uname().machine)
        d = unpacked(stage, variant, unpacked_at)
        files = build(d)
        program = d.getVar('D') + '/usr/bin/twinhull'
        judge(d, program, d.getVar('PN'))
        check('no symbols' not in output('nm', program, stderr=subprocess.STDOUT), 'already-stripped: ' + program)
        # Without its options it refuses either way, and says what is missing: an option, or the whole command.
        refusal = subprocess.run([program, 'bundle', 'create'], stderr=subprocess.PIPE, text=True).stderr
        makes_bundles = '--version is needed' in refusal
        check(makes_bundles or 'without the feature build-host' in refusal, 'bundle create: ' + refusal)
        check(makes_bundles == (variant == 'native'), '%s %s bundles' % (d.getVar('PN'), 'makes' if makes_bundles else 'makes no'))
        print('%s (%s): built by its own tasks, %d files installed' % (d.getVar('PN'), release, len(files)))
        if not variant:
            print('twinhull-ptest: %d tests passed without the sources' % ptest(d))


if __name__ == '__main__':
    main()
    sys.exit(1 if bitbake.failures else 0)
