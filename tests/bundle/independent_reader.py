"""Reads a bundle knowing nothing but src/bundle/FORMAT.md, and compares it with the image it was made of.

Usage: independent_reader.py BUNDLE IMAGE. Needs the program zstd.
"""

import hashlib
import struct
import subprocess
import sys
import tarfile
import tomllib

BLOCK = 4096
ZERO = bytes(16)


def short_hash(data):
    return hashlib.sha256(data).digest()[:16]


archive = tarfile.open(sys.argv[1])
payload = tomllib.loads(archive.extractfile("manifest.toml").read().decode())["payload"][0]
index = archive.extractfile("root.index").read()
frames = archive.extractfile("root.frames").read()
assert hashlib.sha256(index).hexdigest() == payload["index_sha256"]
assert (len(index), len(frames)) == (payload["index_size"], payload["frames_size"])

magic, version, block, length, blocks, count, prefixes, frames_len, most, flags = struct.unpack(
    "<8sIIQQQQQII", index[:64]
)
assert (magic, version, block, length) == (b"twhindex", 1, BLOCK, payload["size"])
assert (blocks, prefixes, frames_len, flags) == (-(-length // BLOCK), 0, len(frames), 0)
hashes = [index[64 + 16 * i :][:16] for i in range(blocks)]
carried = [i for i in range(blocks) if hashes[i] != ZERO]

image = bytearray(blocks * BLOCK)
offset = 0
for number in range(count):
    entry = index[64 + 16 * blocks + 48 * number :][:48]
    first, n, size, data_hash, reserved = struct.unpack("<QII16s16s", entry)
    assert reserved == ZERO and 1 <= n <= most and first == carried[0]
    data = frames[offset : offset + size]
    offset += size
    assert short_hash(data) == data_hash
    plain = subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
    assert len(plain) == BLOCK * n
    for i in range(n):
        where = carried.pop(0)
        piece = plain[BLOCK * i :][:BLOCK]
        assert short_hash(piece) == hashes[where]
        image[BLOCK * where : BLOCK * where + BLOCK] = piece
assert not carried and offset == len(frames)

image = bytes(image[:length])
assert hashlib.sha256(image).hexdigest() == payload["sha256"]
assert image == open(sys.argv[2], "rb").read()
