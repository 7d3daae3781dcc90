# nooelint: oelint.bbclass.underscores
# Kernel modules for twinhull's PID 1: /modules with every module of the image, and /modules/order that lists them with
# dependencies first. PID 1 loads them without kmod, so they are decompressed here.

# The lines of `order`, from the text of modules.dep: each module after what it needs.
def twinhull_module_order(modules_dep):
    needs = {}
    for line in modules_dep.splitlines():
        module, colon, rest = line.partition(':')
        if colon:
            needs[module.strip()] = rest.split()
    order = []
    def visit(module, above):
        if module in above:
            raise ValueError('modules need each other: %s' % ' '.join(above + [module]))
        if module not in order:
            for needed in sorted(needs.get(module, [])):
                visit(needed, above + [module])
            order.append(module)
    for module in sorted(needs):
        visit(module, [])
    return order

python twinhull_collect_modules () {
    import glob, gzip, lzma, shutil, subprocess
    readers = {
        '.gz': lambda path: gzip.open(path).read(),
        '.xz': lambda path: lzma.open(path).read(),
        '.zst': lambda path: subprocess.check_output(['zstd', '-d', '-c', path]),
    }
    rootfs = d.getVar('IMAGE_ROOTFS')
    target = os.path.join(rootfs, 'modules')
    # One kernel; /lib may be a link to /usr/lib.
    for base in {os.path.realpath(p) for p in glob.glob(rootfs + '/lib/modules/*') + glob.glob(rootfs + '/usr/lib/modules/*')}:
        with open(os.path.join(base, 'modules.dep')) as f:
            order = twinhull_module_order(f.read())
        bb.utils.mkdirhier(target)
        with open(os.path.join(target, 'order'), 'w') as listed:
            for module in order:
                path, (name, ending) = os.path.join(base, module), os.path.splitext(os.path.basename(module))
                if ending in readers:
                    with open(os.path.join(target, name), 'wb') as f:
                        f.write(readers[ending](path))
                else:
                    name += ending
                    shutil.copyfile(path, os.path.join(target, name))
                listed.write(name + '\n')
        shutil.rmtree(base)
}
# After depmod has been run.
IMAGE_PREPROCESS_COMMAND:append = " twinhull_collect_modules;"
