"""Reads a bundle knowing nothing but src/bundle/FORMAT.md, and compares it with what it was made of.

Usage: independent_reader.py BUNDLE IMAGE [DIRECTORY]..., one for each payload of files. Needs the program zstd.
"""

import hashlib
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zlib

BLOCK = 4096
DICTIONARY = b"\x37\xa4\x30\xec"
FRAME = b"\x28\xb5\x2f\xfd\x60\x00\x0f"
GEAR = [int.from_bytes(hashlib.sha256(bytes([b])).digest()[:8], "little") for b in range(256)]


def short_hash(data):
    return hashlib.sha256(data).digest()[:16]


def decompress(data, prefix):
    command = ["zstd", "-dc"]
    with tempfile.NamedTemporaryFile() as file:
        if prefix:
            file.write(prefix)
            file.flush()
            command.append(f"--patch-from={file.name}")
        return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def ends(data):
    """Where the first piece of data ends."""
    value = 0
    for n, byte in enumerate(data[:16384], 1):
        value = (value << 1) + GEAR[byte] & 2**64 - 1
        if 512 <= n < len(data) and value >> 53 == 0:
            return n
    return min(len(data), 16384)


def image_of(archive, payload):
    index = archive.extractfile(payload["name"] + ".index").read()
    frames = archive.extractfile(payload["name"] + ".frames").read()
    assert hashlib.sha256(index).hexdigest() == payload["index_sha256"]
    assert hashlib.sha256(frames).hexdigest() == payload["frames_sha256"]
    assert (len(index), len(frames)) == (payload["index_size"], payload["frames_size"])

    magic, version, block, length, carried, extents, frames_len, count, prefix_blocks, flags = struct.unpack(
        "<8sIIQQQQQII", index[:64]
    )
    assert (magic, version, block, length) == (b"twhindex", 2, BLOCK, payload["size"])
    assert (frames_len, flags) == (len(frames), 0)
    where = []
    stretches = []
    for i in range(extents):
        first, blocks = struct.unpack("<QQ", index[64 + 16 * i :][:16])
        assert blocks > 0 and (not where or where[-1] + 1 < first)
        where.extend(range(first, first + blocks))
        stretches.append(blocks * BLOCK)
    assert len(where) == carried
    hashes = index[64 + 16 * extents :][: 16 * carried]
    sizes = struct.unpack(f"<{carried}H", index[64 + 16 * extents + 16 * carried :][: 2 * carried])
    pieces = list(struct.iter_unpack("<HI", index[64 + 16 * extents + 18 * carried :]))
    assert len(pieces) == count

    plain = b""
    offset = 0
    for size in sizes:
        data = frames[offset : offset + size]
        offset += size
        prefix = plain[max(0, len(plain) - BLOCK * prefix_blocks) :]
        while prefix.startswith(DICTIONARY):
            prefix = prefix[BLOCK:]
        if size == 1:
            piece = data * BLOCK
        elif size == BLOCK:
            piece = data
        else:
            piece = decompress(FRAME + struct.pack("<I", size << 3 | 5)[:3] + data, prefix)
        assert len(piece) == BLOCK
        plain += piece
    assert offset == len(frames) and len(plain) == BLOCK * carried

    at = 0
    for stretch in stretches:
        end = at + stretch
        while at < end:
            data = plain[at : at + ends(plain[at:min(end, at + 16385)])]
            assert pieces.pop(0) == (len(data), zlib.crc32(data))
            at += len(data)
    assert not pieces

    image = bytearray(-(-length // BLOCK) * BLOCK)
    for i in range(carried):
        piece = plain[BLOCK * i :][:BLOCK]
        assert short_hash(piece) == hashes[16 * i :][:16]
        image[BLOCK * where[i] : BLOCK * where[i] + BLOCK] = piece
    image = bytes(image[:length])
    assert hashlib.sha256(image).hexdigest() == payload["sha256"]
    return image


archive = tarfile.open(sys.argv[1])
manifest = tomllib.loads(archive.extractfile("manifest.toml").read().decode())
payloads = manifest["payload"]
assert manifest["format"] == (1 if len(payloads) == 1 else 2) and len(payloads) == len(sys.argv) - 2
members = [m for p in payloads for m in (p["name"] + ".index", p["name"] + ".frames")]
assert archive.getnames()[-len(members) :] == members
assert payloads[0]["type"] == "root-slot"
assert image_of(archive, payloads[0]) == open(sys.argv[2], "rb").read()
for payload, directory in zip(payloads[1:], sys.argv[3:]):
    image = image_of(archive, payload)
    at = 0
    for file in payload["file"]:
        content = image[at : at + file["size"]]
        at += -(-file["size"] // BLOCK) * BLOCK
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
        assert content == open(os.path.join(directory, file["path"]), "rb").read()
    assert at == len(image)
    found = sum(len(names) for _, _, names in os.walk(directory))
    assert found == len(payload["file"])
