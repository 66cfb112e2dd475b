#!/usr/bin/env python3
"""Plays the modem of modem.c: its sockets on this machine, for the emulated UART.

    modem.py SOCKET [--port N]      waits for QEMU at a UNIX socket:
                                    qemu-system-arm ... -serial stdio -serial unix:SOCKET

The frames are described at the top of modem.c. Without --port any UDP port is used."""

import argparse
import os
import selectors
import socket
import struct


class Connection:
    """One TCP connection of the device, by its channel."""

    def __init__(self, modem, channel, where):
        self.modem, self.channel, self.out, self.up = modem, channel, b"", False
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.connect_ex(where)
        modem.selector.register(self.socket, selectors.EVENT_WRITE, self.ready)

    def ready(self, events):
        """The socket can be read or written."""
        try:
            if events & selectors.EVENT_WRITE:
                self.writable()
            if events & selectors.EVENT_READ:
                data = self.socket.recv(2048)
                if not data:
                    raise OSError
                self.modem.send(b"D", self.channel, data)
        except BlockingIOError:
            pass
        except OSError:
            self.modem.closed(self.channel)

    def writable(self):
        if not self.up:
            error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "")
            self.up = True
            self.modem.send(b"O", self.channel, b"")
        self.out = self.out[self.socket.send(self.out):] if self.out else b""
        self.modem.selector.modify(self.socket, selectors.EVENT_READ |
                                   (selectors.EVENT_WRITE if self.out else 0), self.ready)

    def write(self, data):
        self.out += data
        if self.up:
            self.modem.selector.modify(
                self.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self.ready)

    def close(self):
        self.modem.selector.unregister(self.socket)
        self.socket.close()


class Modem:
    """The frames of one device, and its sockets."""

    def __init__(self, line, port=0):
        self.line, self.port, self.got, self.out = line, port, b"", b""
        self.selector = selectors.DefaultSelector()
        self.connections = {}
        self.udp = None
        line.setblocking(False)
        self.selector.register(line, selectors.EVENT_READ, self.line_ready)

    def run(self):
        """Until the device is gone."""
        while self.line is not None:
            for key, events in self.selector.select():
                # Closed by what came before it in this round.
                if key.fileobj.fileno() >= 0:
                    key.data(events)

    # Towards the device.

    def send(self, kind, channel, data):
        self.out += kind + struct.pack("<BH", channel, len(data)) + data
        self.selector.modify(self.line, selectors.EVENT_READ | selectors.EVENT_WRITE,
                             self.line_ready)

    def line_ready(self, events):
        try:
            if events & selectors.EVENT_WRITE:
                self.out = self.out[self.line.send(self.out):]
                if not self.out:
                    self.selector.modify(self.line, selectors.EVENT_READ, self.line_ready)
            if events & selectors.EVENT_READ:
                data = self.line.recv(65536)
                if not data:
                    raise OSError
                self.got += data
                self.take_frames()
        except BlockingIOError:
            pass
        except OSError:
            self.line = None

    def take_frames(self):
        while len(self.got) >= 4:
            channel, size = struct.unpack_from("<BH", self.got, 1)
            if len(self.got) < 4 + size:
                return
            kind, data = self.got[:1], self.got[4:4 + size]
            self.got = self.got[4 + size:]
            self.take(kind, channel, data)

    # From the device.

    def take(self, kind, channel, data):
        if kind == b"R":
            self.reset()
        elif kind == b"O":
            self.open(channel, data)
        elif kind == b"D" and channel in self.connections:
            self.connections[channel].write(data)
        elif kind == b"C" and channel in self.connections:
            self.connections.pop(channel).close()
        elif kind == b"U" and self.udp and len(data) > 6:
            where = (socket.inet_ntoa(data[:4]), struct.unpack_from("<H", data, 4)[0])
            try:
                self.udp.sendto(data[6:], where)
            except OSError:
                pass                    # loss

    def reset(self):
        for c in self.connections.values():
            c.close()
        self.connections = {}
        if self.udp is None:
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.udp.bind(("0.0.0.0", self.port))
            self.udp.setblocking(False)
            self.selector.register(self.udp, selectors.EVENT_READ, self.datagram)
        self.send(b"N", 0, socket.inet_aton(own_address()) +
                  struct.pack("<H", self.udp.getsockname()[1]))

    def datagram(self, _):
        try:
            data, (ip, port) = self.udp.recvfrom(2048)
        except OSError:
            return
        # A slow line drops what it cannot carry, as a modem would.
        if len(self.out) < 65536:
            self.send(b"U", 0, socket.inet_aton(ip) + struct.pack("<H", port) + data)

    def open(self, channel, data):
        port, ip, name = struct.unpack("<H", data[:2])[0], data[2:6], data[6:].decode()
        try:
            where = socket.inet_ntoa(ip) if any(ip) else socket.gethostbyname(name)
            self.connections[channel] = Connection(self, channel, (where, port))
        except OSError:
            self.send(b"C", channel, b"")

    def closed(self, channel):
        c = self.connections.pop(channel, None)
        if c is not None:
            c.close()
            self.send(b"C", channel, b"")


def own_address():
    """The address that datagrams of this machine come from; nothing is sent for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))
            return s.getsockname()[0]
        except OSError:
            return "0.0.0.0"


def main():
    words = argparse.ArgumentParser(usage=__doc__)
    words.add_argument("socket")
    words.add_argument("--port", type=int, default=0)
    args = words.parse_args()
    if os.path.exists(args.socket):
        os.unlink(args.socket)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.bind(args.socket)
        s.listen(1)
        while True:
            Modem(s.accept()[0], args.port).run()


if __name__ == "__main__":
    main()
