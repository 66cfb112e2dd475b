#!/usr/bin/env python3
"""Writes the settings sector of a device: who its control server is, the key to join with,
and whom to believe.

    provision.py settings.bin control=https://control.example.com authkey=FILE \\
                 hostname=gadget ca=ca.pem [ip=10.0.2.15/24 gateway=10.0.2.2] ...

authkey= and ca= name files, every other word is stored as it is. The sector is a list of
name, zero, length (two bytes, low first), value, zero; an empty name ends it."""

import base64
import re
import sys

EC_KEY = bytes.fromhex("06072a8648ce3d0201")
CURVES = {bytes.fromhex("06082a8648ce3d030107"): 23, bytes.fromhex("06052b81040022"): 24}


def der(data, at=0):
    """The tag, contents and end of the DER value at a place."""
    tag, size, at = data[at], data[at + 1], at + 2
    if size & 0x80:
        more = size & 0x7f
        size, at = int.from_bytes(data[at:at + more], "big"), at + more
    return tag, data[at:at + size], at + size


def parts(data):
    """The values inside of a DER value: (tag, contents, all of it)."""
    at, out = 0, []
    while at < len(data):
        tag, contents, end = der(data, at)
        out.append((tag, contents, data[at:end]))
        at = end
    return out


def anchor(pem):
    """The settings that make a certificate of a CA a trust anchor."""
    text = re.search(r"-----BEGIN CERTIFICATE-----(.*?)-----END", pem, re.S).group(1)
    signed = parts(der(parts(der(base64.b64decode(text))[1])[0][2])[1])
    if signed[0][0] == 0xa0:            # the version, which old certificates lack
        signed = signed[1:]
    name, key = signed[4][2], parts(signed[5][1])
    algorithm, bits = key[0][1], key[1][1][1:]
    yield "ca-name", name
    if algorithm.startswith(EC_KEY):
        yield "ca-curve", bytes([CURVES[algorithm[len(EC_KEY):]]])
        yield "ca-point", bits
    else:
        numbers = parts(der(bits)[1])
        yield "ca-modulus", numbers[0][1].lstrip(b"\0")
        yield "ca-exponent", numbers[1][1].lstrip(b"\0")


def sector(words):
    """The bytes of the sector for words like hostname=gadget."""
    out = b""
    for word in words:
        name, value = word.split("=", 1)
        if name == "ca":
            with open(value) as f:
                pairs = list(anchor(f.read()))
        elif name == "authkey":
            with open(value) as f:
                pairs = [(name, f.read().strip().encode())]
        else:
            pairs = [(name, value.encode())]
        for one, content in pairs:
            out += one.encode() + b"\0" + len(content).to_bytes(2, "little") + content + b"\0"
    return out + b"\0\0"


def main():
    if len(sys.argv) < 3 or any("=" not in word for word in sys.argv[2:]):
        sys.exit(__doc__)
    with open(sys.argv[1], "wb") as f:
        f.write(sector(sys.argv[2:]))


if __name__ == "__main__":
    main()
