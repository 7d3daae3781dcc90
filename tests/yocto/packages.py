"""Packages as OpenEmbedded makes and judges them: what goes where, and what package QA says of programs."""

import fnmatch
import os
import re
import subprocess


def split(d):
    """What do_install left, by package in the order of PACKAGES, and what no package takes (`installed-vs-shipped`)."""
    place, left = d.getVar('D'), set()
    for folder, _, names in os.walk(place):
        left.update(os.path.join(folder, name)[len(place):] for name in names)
    found = {}
    for package in d.getVar('PACKAGES').split():
        # A folder stands for all that it holds.
        patterns = (d.getVar('FILES:' + package) or '').split()
        found[package] = {f for f in left if any(fnmatch.fnmatchcase(f, p) or f.startswith(p.rstrip('/') + '/') for p in patterns)}
        left -= found[package]
    return found, left


def objdump(*arguments):
    return subprocess.run(['objdump', *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def complaints(path, build_folder):
    """What QA holds against a program: `buildpaths`, `ldflags`, `textrel`, `rpaths`, and what `file-rdeps` would ask for."""
    with open(path, 'rb') as f:
        paths = re.findall(re.escape(build_folder.encode()) + rb'[\x20-\x7e]*', f.read())
    found = ['buildpaths: %s' % p.decode() for p in paths[:3]]
    dynamic = objdump('-p', path)
    if 'SYMTAB' in dynamic and 'GNU_HASH' not in dynamic:
        found.append('ldflags: no GNU_HASH')
    found += [wrong.lower() for wrong in ('TEXTREL', 'RPATH', 'RUNPATH') if re.search(r'\s%s\s' % wrong, dynamic)]
    # What the C library's own packages bring.
    known = re.compile(r'(libc|libm|libgcc_s|ld-linux-.*)\.so\.\d')
    return found + ['file-rdeps: ' + name for name in re.findall(r'NEEDED +(\S+)', dynamic) if not known.fullmatch(name)]
