# nooelint: oelint.bbclass.underscores
# A recipe that inherits this makes the signed update file of an image:
#
#   inherit twinhull-bundle
#   TWINHULL_BUNDLE_IMAGE = "my-image"
#
# The version of the recipe is that of the OS: my-bundle_2.1.0.bb. The bundle lies in DEPLOY_DIR_IMAGE, and beside it a
# delta from each older one that TWINHULL_BUNDLE_DELTA_FROM names. The same image and settings give the same bytes, but for
# the signature.

require conf/twinhull_machines.inc

TWINHULL_BUNDLE_IMAGE ?= ""
TWINHULL_BUNDLE_IMAGE[doc] = "The image recipe whose root is packed"
TWINHULL_BUNDLE_FSTYPE ?= "ext4"
TWINHULL_BUNDLE_FSTYPE[doc] = "Which of its file systems: ext4, squashfs-zst, erofs and so on"
TWINHULL_BUNDLE_VERSION ?= "${PV}"
TWINHULL_BUNDLE_VERSION[doc] = "Version of the OS in it, as 2.1.0 or 2.1.0+rev1"
TWINHULL_BUNDLE_RELEASE ?= "0"
TWINHULL_BUNDLE_RELEASE[doc] = "A counter that never decreases from release to release"
TWINHULL_BUNDLE_MIN_VERSION ?= ""
TWINHULL_BUNDLE_MIN_VERSION[doc] = "The oldest OS version that may be updated to this one directly"
TWINHULL_BUNDLE_COMPATIBLE ?= "${TWINHULL_DEVICE_TYPE}"
TWINHULL_BUNDLE_COMPATIBLE[doc] = "Device types that it is for"
TWINHULL_BUNDLE_PROVIDES ?= ""
TWINHULL_BUNDLE_PROVIDES[doc] = "KEY=VERSION of kernel, l4t or supervisor in it"
TWINHULL_BUNDLE_BOOT_DIR ?= ""
TWINHULL_BUNDLE_BOOT_DIR[doc] = "Absolute path of a directory; its files go to the boot partition, for the slot that is written"
TWINHULL_BUNDLE_BOOT_FILES ?= "${@d.getVar('TWINHULL_SLOT_BOOT_FILES') if d.getVar('TWINHULL_BOOTLOADER') == 'tryboot' else ''}"
TWINHULL_BUNDLE_BOOT_FILES[doc] = "The same, as SOURCE;DESTINATION of files in DEPLOY_DIR_IMAGE; but for cmdline.txt, which differs from slot to slot"
TWINHULL_BUNDLE_HOOKS ?= ""
TWINHULL_BUNDLE_HOOKS[doc] = "NAME=FILE of programs that the new system runs before it is committed; absolute paths"
TWINHULL_BUNDLE_VERITY ?= "0"
TWINHULL_BUNDLE_VERITY[doc] = "1: the image gets a hash tree, and devices check each block of their root as they read it (dm-verity)"
TWINHULL_BUNDLE_LEVEL ?= "19"
TWINHULL_BUNDLE_LEVEL[doc] = "zstd level, 1 to 22"
TWINHULL_BUNDLE_DELTA_FROM ?= ""
TWINHULL_BUNDLE_DELTA_FROM[doc] = "Absolute paths of bundles of older versions, or of their images; a delta is made from each"
TWINHULL_BUNDLE_KEYS ?= ""
TWINHULL_BUNDLE_KEYS[doc] = "Absolute paths of minisign secret keys; each signs"
TWINHULL_BUNDLE_PASSWORD_FILE ?= ""
TWINHULL_BUNDLE_PASSWORD_FILE[doc] = "File with the password of the keys on its first line"
TWINHULL_BUNDLE_UNSIGNED ?= "0"
TWINHULL_BUNDLE_UNSIGNED[doc] = "1: leave it unsigned, to be signed elsewhere with twinhull bundle sign"
TWINHULL_PUBLIC_KEYS ?= ""
TWINHULL_BUNDLE_NAME ?= "${PN}-${MACHINE}-${TWINHULL_BUNDLE_VERSION}"

INHIBIT_DEFAULT_DEPS = "1"
DEPENDS += "${TWINHULL_PROVIDER}-native"
# In OpenEmbedded-Core; for kirkstone in meta-oe.
DEPENDS += "${@'cryptsetup-native' if bb.utils.to_boolean(d.getVar('TWINHULL_BUNDLE_VERITY')) else ''}"
PACKAGE_ARCH = "${MACHINE_ARCH}"
# An image and a key are needed.
EXCLUDE_FROM_WORLD = "1"

inherit deploy nopackages

do_fetch[noexec] = "1"
do_unpack[noexec] = "1"
do_patch[noexec] = "1"
do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_install[noexec] = "1"

# Arguments of `twinhull bundle create` but for keys and output; an error says which variable to set.
def twinhull_bundle_arguments(d):
    image, version = d.getVar('TWINHULL_BUNDLE_IMAGE'), d.getVar('TWINHULL_BUNDLE_VERSION')
    if not image:
        bb.fatal('TWINHULL_BUNDLE_IMAGE is empty: name the image recipe that the bundle is made of')
    link = '%s/%s-%s' % (d.getVar('DEPLOY_DIR_IMAGE'), image, d.getVar('MACHINE'))
    # IMAGE_NAME_SUFFIX is part of the name since nanbield.
    names = ['%s%s.%s' % (link, suffix, d.getVar('TWINHULL_BUNDLE_FSTYPE')) for suffix in ('.rootfs', '')]
    found = [name for name in names if os.path.exists(name)]
    if not found:
        bb.fatal('neither %s exists: does %s make %s (IMAGE_FSTYPES)?'
                 % (' nor '.join(names), image, d.getVar('TWINHULL_BUNDLE_FSTYPE')))
    image, tree = twinhull_bundle_hash_tree(d, found[0])
    arguments = ['--image', image, *tree, '--version', version, '--arch', d.getVar('TWINHULL_DEVICE_ARCH'),
                 '--compatible', ','.join(d.getVar('TWINHULL_BUNDLE_COMPATIBLE').replace(',', ' ').split()),
                 '--release', d.getVar('TWINHULL_BUNDLE_RELEASE'), '--level', d.getVar('TWINHULL_BUNDLE_LEVEL')]
    if d.getVar('TWINHULL_BUNDLE_MIN_VERSION'):
        arguments += ['--min-version', d.getVar('TWINHULL_BUNDLE_MIN_VERSION')]
    for provided in d.getVar('TWINHULL_BUNDLE_PROVIDES').split():
        arguments += ['--provides', provided]
    if d.getVar('TWINHULL_BUNDLE_BOOT_DIR'):
        arguments += ['--boot-dir', d.getVar('TWINHULL_BUNDLE_BOOT_DIR')]
    for name, path in twinhull_bundle_boot_files(d).items():
        arguments += ['--boot-file', '%s=%s' % (name, path)]
    for hook in d.getVar('TWINHULL_BUNDLE_HOOKS').split():
        arguments += ['--hook', hook]
    return arguments

# The image, with a hash tree behind it if TWINHULL_BUNDLE_VERITY says so, and the arguments that tell of the tree. Salt and id
# are made of the bundle's name, not by chance: the same image gives the same bundle.
def twinhull_bundle_hash_tree(d, image):
    import hashlib, subprocess, uuid
    if not bb.utils.to_boolean(d.getVar('TWINHULL_BUNDLE_VERITY')):
        return image, []
    sealed, name = os.path.join(d.getVar('WORKDIR'), 'sealed-image'), d.getVar('TWINHULL_BUNDLE_NAME')
    subprocess.run(['cp', '--dereference', '--sparse=always', image, sealed], check=True)
    blocks = -(-os.path.getsize(sealed) // 4096)
    os.truncate(sealed, blocks * 4096)
    veritysetup = bb.utils.which(d.getVar('PATH'), 'veritysetup')
    if not veritysetup:
        bb.fatal('TWINHULL_BUNDLE_VERITY: there is no veritysetup in PATH; cryptsetup-native brings it')
    ran = subprocess.run([veritysetup, 'format', '--hash=sha256', '--data-blocks=%d' % blocks,
                          '--hash-offset=%d' % (blocks * 4096), '--salt=' + hashlib.sha256(name.encode()).hexdigest(),
                          '--uuid=%s' % uuid.uuid5(uuid.NAMESPACE_DNS, name), sealed, sealed],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    found = [line.split()[-1] for line in ran.stdout.splitlines() if line.startswith('Root hash:')]
    if ran.returncode or not found:
        bb.fatal('veritysetup: %s' % ran.stdout.strip())
    return sealed, ['--verity-root', found[0], '--verity-offset', str(blocks * 4096)]

# Files of TWINHULL_BUNDLE_BOOT_FILES by their path on the boot partition, found as wic finds those of IMAGE_BOOT_FILES.
def twinhull_bundle_boot_files(d):
    import glob
    deploy, files = d.getVar('DEPLOY_DIR_IMAGE'), {}
    for entry in d.getVar('TWINHULL_BUNDLE_BOOT_FILES').split():
        source, _, destination = entry.partition(';')
        found = sorted(glob.glob(os.path.join(deploy, source)))
        if not found:
            bb.fatal('TWINHULL_BUNDLE_BOOT_FILES: there is no %s in %s' % (source, deploy))
        for path in found:
            name = os.path.join(destination, os.path.basename(path)) if '*' in source else destination or source
            if os.path.isfile(path) and name != 'cmdline.txt':
                files[name] = path
    return files

# Older bundles and images, each with the name of its delta.
def twinhull_bundle_deltas(d):
    deltas = {}
    for old in d.getVar('TWINHULL_BUNDLE_DELTA_FROM').split():
        if not os.path.exists(old):
            bb.fatal('TWINHULL_BUNDLE_DELTA_FROM: there is no %s' % old)
        name = os.path.basename(old)
        name = '%s-from-%s.delta' % (d.getVar('TWINHULL_BUNDLE_NAME'), name[:-len('.bundle')] if name.endswith('.bundle') else name)
        if name in deltas:
            bb.fatal('TWINHULL_BUNDLE_DELTA_FROM: both %s and %s would become %s' % (deltas[name], old, name))
        deltas[name] = old
    return deltas

# Arguments that name the keys; an error when there are none and nobody asked for an unsigned bundle.
def twinhull_bundle_keys(d):
    if bb.utils.to_boolean(d.getVar('TWINHULL_BUNDLE_UNSIGNED')):
        return []
    keys = d.getVar('TWINHULL_BUNDLE_KEYS').split()
    if not keys:
        bb.fatal('no key to sign %s with: set TWINHULL_BUNDLE_KEYS to a minisign secret key (twinhull bundle keygen makes '
                 'one), or TWINHULL_BUNDLE_UNSIGNED = "1" to sign it elsewhere' % d.getVar('PN'))
    arguments = []
    for key in keys:
        if not os.path.exists(key):
            bb.fatal('TWINHULL_BUNDLE_KEYS: there is no %s' % key)
        arguments += ['--key', key]
    if d.getVar('TWINHULL_BUNDLE_PASSWORD_FILE'):
        arguments += ['--password-file', d.getVar('TWINHULL_BUNDLE_PASSWORD_FILE')]
    return arguments

python do_deploy() {
    import shutil, subprocess
    def twinhull(*arguments):
        ran = subprocess.run([bb.utils.which(d.getVar('PATH'), 'twinhull'), *arguments], stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        bb.note(ran.stdout)
        if ran.returncode:
            bb.fatal(ran.stdout.strip())
    keys, deltas = twinhull_bundle_keys(d), twinhull_bundle_deltas(d)
    bundle = os.path.join(d.getVar('DEPLOYDIR'), d.getVar('TWINHULL_BUNDLE_NAME') + '.bundle')
    bb.utils.mkdirhier(d.getVar('DEPLOYDIR'))
    twinhull('bundle', 'create', *twinhull_bundle_arguments(d), *keys, '--output', bundle)
    public = d.getVar('TWINHULL_PUBLIC_KEYS').split()
    if keys and public:
        # What the devices will do.
        directory = os.path.join(d.getVar('WORKDIR'), 'public-keys')
        bb.utils.remove(directory, recurse=True)
        bb.utils.mkdirhier(directory)
        for key in public:
            shutil.copy(key, directory)
        twinhull('bundle', 'verify', bundle, '--keys', directory)
    for name, old in deltas.items():
        twinhull('bundle', 'delta', '--from', old, '--to', bundle, '--level', d.getVar('TWINHULL_BUNDLE_LEVEL'),
                 '--output', os.path.join(d.getVar('DEPLOYDIR'), name))
}
addtask deploy after do_prepare_recipe_sysroot before do_build
do_deploy[depends] += "${@d.getVar('TWINHULL_BUNDLE_IMAGE') + ':do_image_complete' if d.getVar('TWINHULL_BUNDLE_IMAGE') else ''}"
# A secret key's digest tells nothing of it; a password's digest would, so that file is left out.
do_deploy[file-checksums] += "${@' '.join(k + ':True' for k in (d.getVar('TWINHULL_BUNDLE_KEYS') + ' ' + d.getVar('TWINHULL_PUBLIC_KEYS')).split())}"
do_deploy[file-checksums] += "${@' '.join(f + ':True' for f in d.getVar('TWINHULL_BUNDLE_DELTA_FROM').split())}"
do_deploy[file-checksums] += "${@' '.join(f + ':True' for f in [d.getVar('TWINHULL_BUNDLE_BOOT_DIR')] + [h.partition('=')[2] for h in d.getVar('TWINHULL_BUNDLE_HOOKS').split()] if f)}"
do_deploy[vardeps] += "TWINHULL_BUNDLE_BOOT_DIR TWINHULL_BUNDLE_BOOT_FILES TWINHULL_BUNDLE_COMPATIBLE TWINHULL_BUNDLE_DELTA_FROM TWINHULL_BUNDLE_FSTYPE TWINHULL_BUNDLE_HOOKS TWINHULL_BUNDLE_IMAGE TWINHULL_BUNDLE_LEVEL \
    TWINHULL_BUNDLE_MIN_VERSION TWINHULL_BUNDLE_NAME TWINHULL_BUNDLE_PROVIDES TWINHULL_BUNDLE_RELEASE \
    TWINHULL_BUNDLE_UNSIGNED TWINHULL_BUNDLE_VERITY TWINHULL_BUNDLE_VERSION TWINHULL_DEVICE_ARCH"
do_deploy[vardepsexclude] += "TWINHULL_BUNDLE_KEYS TWINHULL_BUNDLE_PASSWORD_FILE TWINHULL_PUBLIC_KEYS"
