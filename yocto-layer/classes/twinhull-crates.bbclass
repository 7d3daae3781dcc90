# nooelint: oelint.bbclass.underscores
# The crates of a Cargo.lock as sources, read from the lock file itself when the recipe is parsed: there is no second
# list that could differ from it.

TWINHULL_CARGO_LOCK ?= "${TWINHULL_CHECKOUT}/Cargo.lock"
TWINHULL_CARGO_LOCK[doc] = "The Cargo.lock whose crates are fetched"

# The registry packages of a Cargo.lock: name, version, sha256 of the .crate file.
def twinhull_crates(text):
    crates = []
    for block in text.split('[[package]]')[1:]:
        fields = {}
        for line in block.splitlines():
            key, equals, value = line.partition(' = ')
            if equals and value.startswith('"'):
                fields[key] = value.strip('"')
        if 'source' not in fields:
            # A package of our own workspace.
            continue
        if fields['source'] != 'registry+https://github.com/rust-lang/crates.io-index':
            raise ValueError('%s comes from %s; only crates.io is expected' % (fields.get('name'), fields['source']))
        crates.append((fields['name'], fields['version'], fields['checksum']))
    return crates

python () {
    lock = d.getVar('TWINHULL_CARGO_LOCK')
    bb.parse.mark_dependency(d, lock)
    if not os.path.exists(lock):
        raise bb.parse.SkipRecipe('%s is missing: use the layer from a checkout of the whole twinhull repository, '
                                  'or set TWINHULL_CHECKOUT to one' % lock)
    with open(lock) as f:
        crates = twinhull_crates(f.read())
    for name, version, sha256 in crates:
        d.appendVar('SRC_URI', ' crate://crates.io/%s/%s;name=%s-%s' % (name, version, name, version))
        d.setVarFlag('SRC_URI', '%s-%s.sha256sum' % (name, version), sha256)
}
