#!/usr/bin/env python3
"""dnsask.py SERVER NAME/TYPE...: asks a DNS server and prints one JSON object per
question: the response code, and type and text of each answer. Types: A, AAAA, PTR,
TXT or a number."""

import ipaddress
import json
import random
import socket
import sys

TYPES = {"A": 1, "PTR": 12, "TXT": 16, "AAAA": 28}
CODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}


def encoded(name):
    labels = [part.encode() for part in name.rstrip(".").split(".")]
    return b"".join(bytes([len(part)]) + part for part in labels) + b"\0"


def name_at(message, at):
    """The name there, and where it ends."""
    labels, end = [], None
    while message[at]:
        if message[at] >= 0xc0:
            end = end or at + 2
            at = (message[at] & 0x3f) << 8 | message[at + 1]
        else:
            labels.append(message[at + 1:at + 1 + message[at]].decode().lower())
            at += 1 + message[at]
    return ".".join(labels) + ".", end or at + 1


def text_of(message, kind, at, size):
    if kind in (1, 28):
        return str(ipaddress.ip_address(message[at:at + size]))
    return name_at(message, at)[0] if kind == 12 else message[at:at + size].hex()


def ask(server, name, kind):
    number = random.randrange(65536)
    question = encoded(name) + kind.to_bytes(2, "big") + b"\0\1"
    query = number.to_bytes(2, "big") + b"\1\0\0\1\0\0\0\0\0\0" + question
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(3)
    s.connect((server, 53))
    s.send(query)
    m = s.recv(4096)
    if m[:2] != query[:2] or not m[2] & 0x80 or m[12:12 + len(question)].lower() != \
            question.lower():
        return {"code": "not an answer to the question", "answers": []}
    at, answers = 12 + len(question), []
    for _ in range(int.from_bytes(m[6:8], "big")):
        owner, at = name_at(m, at)
        found, size = int.from_bytes(m[at:at + 2], "big"), int.from_bytes(m[at + 8:at + 10], "big")
        answers.append([owner, found, text_of(m, found, at + 10, size)])
        at += 10 + size
    return {"code": CODES.get(m[3] & 15, str(m[3] & 15)), "answers": sorted(answers)}


def main():
    for words in sys.argv[2:]:
        name, kind = words.rsplit("/", 1)
        try:
            said = ask(sys.argv[1], name, TYPES.get(kind) or int(kind))
        except OSError as e:
            said = {"code": "no answer: %s" % e, "answers": []}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
