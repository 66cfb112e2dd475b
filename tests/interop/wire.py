#!/usr/bin/env python3
"""wire.py ADDRESS LISTEN-PORT TARGET-PORT LOG: carries TCP connections on and writes down
what they look like from outside, one JSON object per line and connection, again whenever
something of it changed: {"id", "from", "first", "tls", "records", "largest", "bytes", "over"}.

first: the client's first bytes as latin-1. tls: did both sides speak TLS records? records,
largest, bytes: of what the server sent; the longest record, its head not counted."""

import json
import socket
import sys
import threading

HEAD = 5
TYPES = (20, 21, 22, 23)


class Records:
    """Follows the heads of TLS records through a stream."""

    def __init__(self):
        self.head, self.left, self.count, self.largest, self.good = b"", 0, 0, 0, True

    def take(self, data):
        at = 0
        while self.good and at < len(data):
            if self.left:
                n = min(self.left, len(data) - at)
                self.left -= n
                at += n
                continue
            self.head += data[at:at + 1]
            at += 1
            if len(self.head) == HEAD:
                self.good = self.head[0] in TYPES and self.head[1] == 3
                self.left = int.from_bytes(self.head[3:], "big") if self.good else 0
                self.count, self.largest = self.count + 1, max(self.largest, self.left)
                self.head = b""


class Connection:
    lock = threading.Lock()
    number = 0

    def __init__(self, client, address, server, log):
        with Connection.lock:
            Connection.number += 1
            self.id = Connection.number
        self.address, self.log = address, log
        self.ends = (client, server)
        self.first, self.sides, self.over = b"", (Records(), Records()), False
        self.bytes = 0
        for i in (0, 1):
            threading.Thread(target=self.carry, args=(i,), daemon=True).start()

    def carry(self, side):
        source, sink = self.ends[side], self.ends[1 - side]
        try:
            while True:
                data = source.recv(65536)
                if not data:
                    break
                self.note(side, data)
                sink.sendall(data)
        except OSError:
            pass
        for s in self.ends:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.over = True
        self.write()

    def note(self, side, data):
        if side == 0 and len(self.first) < 200:
            self.first += data[:200 - len(self.first)]
        before = self.looks()
        self.sides[side].take(data)
        if side == 1:
            self.bytes += len(data)
        if before != self.looks():
            self.write()

    def looks(self):
        """What is worth a new line."""
        up, down = self.sides
        return up.count == 0, down.largest, down.count // 16

    def write(self):
        up, down = self.sides
        line = {"id": self.id, "from": self.address, "first": self.first.decode("latin-1"),
                "tls": up.good and down.good and up.count > 0 and down.count > 0,
                "records": down.count, "largest": down.largest, "bytes": self.bytes,
                "over": self.over}
        with Connection.lock, open(self.log, "a") as f:
            f.write(json.dumps(line) + "\n")


def main():
    address, listen, target, log = sys.argv[1:5]
    server = socket.create_server((address, int(listen)))
    while True:
        client, peer = server.accept()
        try:
            far = socket.create_connection((address, int(target)), 5)
        except OSError:
            client.close()
            continue
        far.settimeout(None)
        Connection(client, peer[0], far, log)


if __name__ == "__main__":
    main()
