"""Each layout in files/wic made into a disk, as wic numbers and aligns partitions, and shown to twinhull.

Usage: disks.py LAYER WORK TWINHULL

The disk is made by sfdisk, mke2fs and mkfs.vfat; a directory stands for the host whose only disk it is. `twinhull init
--dry-run` must find each partition by the name that it is known by, booted from either slot, with the settings of every
kind of machine in WORK/settings.
"""

import glob
import json
import os
import shlex
import shutil
import subprocess
import sys

MIB = 1024 * 1024
ENVIRONMENT = {'PATH': '/usr/sbin:/usr/bin:/sbin:/bin', 'LC_ALL': 'C'}
LABELS = ['resin-boot', 'resin-rootA', 'resin-rootB', 'resin-state', 'resin-data']
# With a boot partition for each slot, between the first and the rest.
SLOT_BOOT_LABELS = ['resin-bootA', 'resin-bootB']


def parse(path):
    """Options of each `part` line, and the kind of table."""
    parts, table = [], None
    for line in open(path):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        options = {}
        rest = words[1:]
        while rest:
            word = rest.pop(0)
            if word.startswith('--'):
                name, equals, value = word[2:].partition('=')
                if not equals and rest and not rest[0].startswith('--'):
                    value = rest.pop(0)
                options[name] = value
        if words[0] == 'part':
            parts.append(options)
        elif words[0] == 'bootloader':
            table = options['ptable']
    return parts, table


def layout(parts, table):
    """Number, start and size in MiB of each partition. On MBR the fourth and later ones are logical, from 5 on."""
    at, rows = 0, []
    for index, part in enumerate(parts):
        align = int(part['align']) // 1024
        logical = table == 'msdos' and index >= 3
        # One aligned gap holds a logical partition's own table.
        at = (at // align + 1) * align if at == 0 or logical else -(-at // align) * align
        rows.append((index + 2 if logical else index + 1, at, int(part['fixed-size']), part))
        at += int(part['fixed-size'])
    return rows


def make(disk, rows, table):
    """Writes the table and every file system."""
    end = rows[-1][1] + rows[-1][2]
    subprocess.run(['truncate', '-s', '%dM' % (end + 2), disk], check=True)
    script = ['label: ' + {'gpt': 'gpt', 'msdos': 'dos'}[table]]
    for number, start, size, part in rows:
        if table == 'msdos' and number == 5:
            # It ends with the last logical partition and begins with the gap before the first.
            script.append('4: start=%dMiB, size=%dMiB, type=f' % (start - 4, end - start + 4))
        kind = {'gpt': part.get('part-type', 'L'), 'msdos': 'c' if part['fstype'] == 'vfat' else '83'}[table]
        name = ', name=' + part['part-name'] if 'part-name' in part else ''
        boot = ', bootable' if 'active' in part else ''
        script.append('%d: start=%dMiB, size=%dMiB, type=%s%s%s' % (number, start, size, kind, name, boot))
    run(['sfdisk', '--quiet', disk], input='\n'.join(script))
    image = disk + '.part'
    for _, start, size, part in rows:
        run(['truncate', '-s', '%dM' % size, image])
        extra = shlex.split(part.get('mkfs-extraopts', ''))
        if part['fstype'] == 'vfat':
            run(['mkfs.vfat', '-n', part['label'], *extra, image])
        else:
            run(['mke2fs', '-q', '-F', '-t', 'ext4', '-L', part['label'], *extra, image])
        run(['dd', 'if=' + image, 'of=' + disk, 'bs=1M', 'seek=%d' % start, 'conv=notrunc,sparse', 'status=none'])
        os.remove(image)


def run(command, **more):
    ran = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    if ran.returncode:
        sys.exit('%s: %s' % (' '.join(command), ran.stdout))


def host(root, disk, rows):
    """What the kernel would show of the disk."""
    os.makedirs(os.path.join(root, 'dev'))
    os.link(disk, os.path.join(root, 'dev/sda'))
    sys_dir = os.path.join(root, 'sys/block/sda')
    os.makedirs(os.path.join(sys_dir, 'queue'))
    facts = {'size': os.path.getsize(disk) // 512, 'removable': 0, 'queue/logical_block_size': 512}
    for number, start, size, _ in rows:
        os.makedirs(os.path.join(sys_dir, 'sda%d' % number))
        open(os.path.join(root, 'dev/sda%d' % number), 'w').close()
        facts.update({'sda%d/partition' % number: number, 'sda%d/start' % number: start * 2048, 'sda%d/size' % number: size * 2048})
    for name, value in facts.items():
        with open(os.path.join(sys_dir, name), 'w') as f:
            f.write('%d\n' % value)


def expect(truth, what):
    if not truth:
        sys.exit('FAILED  ' + what)


def main():
    layer, work, twinhull = sys.argv[1:4]
    settings = sorted(glob.glob(os.path.join(work, 'settings/*/*.toml')))
    expect(settings, 'no settings in %s: run metadata.py first' % work)
    files = sorted(glob.glob(os.path.join(layer, 'files/wic/*.wks*')))
    expect(len(files) >= 2, 'no layouts in files/wic')
    for path in files:
        parts, table = parse(path)
        names = [part.get('part-name') for part in parts]
        expected = [part['label'] for part in parts]
        expect(names == (expected if table == 'gpt' else [None] * len(parts)), '%s: part-name: %s' % (path, names))
        expect([l for l in expected if l not in SLOT_BOOT_LABELS] == LABELS, '%s: labels: %s' % (path, expected))
        rows = layout(parts, table)
        root = os.path.join(work, 'host-' + os.path.basename(path))
        shutil.rmtree(root, ignore_errors=True)
        os.makedirs(root)
        disk = os.path.join(root, 'disk')
        make(disk, rows, table)
        host(root, disk, rows)
        os.makedirs(os.path.join(root, 'proc'))
        roots = {row[3]['label'][-1]: row[0] for row in rows if row[3]['label'].startswith('resin-root')}
        for slot, number in roots.items():
            with open(os.path.join(root, 'proc/cmdline'), 'w') as f:
                f.write('root=/dev/sda%d ro\n' % number)
            for config in settings if slot == 'A' else settings[:1]:
                ran = subprocess.run([twinhull, '--root', root, '--config', config, '--json', 'init', '--dry-run'],
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                expect(ran.returncode == 0, '%s, %s: %s' % (path, config, ran.stdout))
            found = json.loads(ran.stdout)
            expect(found['slot'] == slot and found['table'] == {'gpt': 'GPT', 'msdos': 'MBR'}[table], '%s: %s' % (path, found))
            partitions = {p['label']: p for p in found['partitions']}
            expect(set(LABELS) <= set(partitions), '%s: partitions are %s' % (path, sorted(partitions)))
            file_systems = {part['label']: part['fstype'] for part in parts}
            sizes = [partitions[label]['len_bytes'] for label in ('resin-rootA', 'resin-rootB')]
            expect(sizes[0] == sizes[1], '%s: the slots differ in size: %s' % (path, sizes))
            other = {'A': 'B', 'B': 'A'}[slot]
            mounted = {'resin-boot': '/mnt/boot', 'resin-root' + slot: '/ (read-only)', 'resin-state': '/mnt/state',
                       'resin-root' + other: 'not mounted (the other slot)', 'resin-data': '/mnt/data'}
            for label, partition in partitions.items():
                expect(partition['file_system'] == file_systems[label], '%s: %s' % (path, partition))
                expect(partition['mounted_at'] == mounted.get(label, 'not mounted'), '%s: %s' % (path, partition))
        os.remove(disk)
        shutil.rmtree(root)
        print('%s: %s, slots of %d MiB, accepted with %d settings files' % (os.path.basename(path), found['table'], sizes[0] // MIB, len(settings)))


if __name__ == '__main__':
    main()
