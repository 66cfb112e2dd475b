"""One measurement: numbered UDP packets and a slow TCP stream between two nodes, and
beside the nodes, on the cable, what comes in directly.

A direct packet is told by what is on the cable, not by what a program says: WireGuard
data over UDP of exactly the length that our numbered packets have."""

import collections
import contextlib
import ctypes
import errno
import select
import socket
import struct
import threading
import time

from world import Failed, check, inside

GAP = 0.03                          # between numbered packets
FINE_GAP, FINE = 0.002, 0.2         # and in the first moments, where paths are found
TCP_GAP = 0.06
PORT, TCP_PORT = 7300, 7301
ETH_P_ALL = 0x0003
SO_ATTACH_FILTER, SO_TIMESTAMPNS = 26, 35
PACKET_OUTGOING = 4

_sizes, _sizes_lock = collections.deque(range(40)), threading.Lock()


@contextlib.contextmanager
def own_size():
    """A length of UDP payload that no other measurement uses meanwhile."""
    with _sizes_lock:
        n = _sizes.popleft()
    try:
        yield 16 * n + 320 - 28
    finally:
        with _sizes_lock:
            _sizes.append(n)


def wire_sizes(payload):
    """Lengths of the outer IP packet, IPv4 and IPv6: WireGuard pads to 16 bytes, and
    adds 32."""
    inside_size = payload + 28
    outer = (inside_size + 15) // 16 * 16 + 32 + 8
    return outer + 20, outer + 40


def filter_lengths(lengths):
    """A packet filter (classic BPF) that lets only packets of these lengths through."""
    code = [struct.pack("HBBI", 0x80, 0, 0, 0)]                     # ld #len
    for i, n in enumerate(lengths):
        code.append(struct.pack("HBBI", 0x15, len(lengths) - i, 0, n))
    code.append(struct.pack("HBBI", 0x06, 0, 0, 0))
    code.append(struct.pack("HBBI", 0x06, 0, 0, 0x40000))
    return code


class Cable:
    """Packets that arrive at a node's interface; fileno() for select."""

    def __init__(self, ns, device="eth0", lengths=None):
        with inside(ns):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM,
                                        socket.htons(ETH_P_ALL))
            if lengths:
                code = b"".join(filter_lengths(lengths))
                held = bytearray(code)
                buffer = (ctypes.c_char * len(held)).from_buffer(held)
                self.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack(
                    "HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)))
            self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            self.socket.bind((device, ETH_P_ALL))
        self.socket.setblocking(False)

    def fileno(self):
        return self.socket.fileno()

    def packets(self):
        """(outgoing, packet from its IP header on) of what has come since."""
        for outgoing, data, _ in self.timed():
            yield outgoing, data

    def timed(self):
        """The same, and when the kernel saw it, as time.monotonic() has it: how long
        this program was kept from looking is in no figure."""
        while True:
            try:
                data, more, _, where = self.socket.recvmsg(65535, 64)
            except OSError as e:
                if e.errno in (errno.EAGAIN, errno.ENETDOWN):
                    return
                raise
            seconds, nanoseconds = struct.unpack("qq", more[0][2][:16])
            late = time.time() - (seconds + nanoseconds / 1e9)
            yield where[2] == PACKET_OUTGOING, data, time.monotonic() - late

    def close(self):
        self.socket.close()


def udp_payload(packet):
    """(sender, receiver, payload) of a UDP packet, as text and bytes; else None."""
    if packet[0] >> 4 == 4 and packet[9] == 17:
        start, family, a, b = (packet[0] & 15) * 4, socket.AF_INET, packet[12:16], packet[16:20]
    elif packet[0] >> 4 == 6 and packet[6] == 17:
        start, family, a, b = 40, socket.AF_INET6, packet[8:24], packet[24:40]
    else:
        return None
    sport, dport = struct.unpack_from("!HH", packet, start)
    return ((socket.inet_ntop(family, a), sport), (socket.inet_ntop(family, b), dport),
            packet[start + 8:])


class Slow:
    """A slow TCP stream from one node to another; is it still whole?"""

    def __init__(self, x, y, port):
        with inside(y.ns):
            self.listener = socket.create_server((y.ip4, port))
        with inside(x.ns):
            self.out = socket.socket()
        self.listener.setblocking(False)
        self.out.setblocking(False)
        self.taken, self.trouble = None, None
        self.sent = self.got = 0
        self.got_at, self.stall = None, 0.0
        self.target = (y.ip4, port)
        self.next = 0.0

    def step(self, now):
        """Sends what is due and reads what is there; never waits."""
        if self.next == 0.0:
            self.next = self.got_at = now       # connecting counts as a stall
            with contextlib.suppress(BlockingIOError):
                self.out.connect(self.target)
        try:
            if now >= self.next:
                self.next = now + TCP_GAP
                with contextlib.suppress(BlockingIOError):
                    self.sent += self.out.send(bytes((self.sent + i) & 255 for i in range(50)))
            if self.taken is None:
                with contextlib.suppress(BlockingIOError):
                    self.taken = self.listener.accept()[0]
                    self.taken.setblocking(False)
            if self.taken is not None:
                self._read(now)
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EINPROGRESS, errno.ENOTCONN, errno.EPIPE) or (
                    self.taken is not None):
                self.trouble = self.trouble or e.strerror

    def _read(self, now):
        with contextlib.suppress(BlockingIOError):
            data = self.taken.recv(65536)
            if data != bytes((self.got + i) & 255 for i in range(len(data))):
                self.trouble = "bytes differ"
            if not data:
                self.trouble = self.trouble or "closed"
            self.stall = max(self.stall, now - self.got_at)
            self.got, self.got_at = self.got + len(data), now

    def finish(self, timeout=8.0):
        """Everything sent arrives; None, or what is wrong."""
        end = time.monotonic() + timeout
        while not self.trouble and time.monotonic() < end and (
                self.taken is None or self.got < self.sent):
            self.next = end + 1
            self.step(time.monotonic())
            time.sleep(0.02)
        if self.taken is None:
            return "never connected"
        if self.got < self.sent:
            self.trouble = self.trouble or "%d of %d bytes" % (self.got, self.sent)
        return self.trouble

    def close(self):
        for s in (self.listener, self.out, self.taken):
            if s is not None:
                s.close()


class Measurement:
    """Traffic from x to y and its echo. After run():

    direct    seconds from the first packet until packets came directly at both sides,
              or None
    answered  seconds until the first echo, or None
    lost      numbered packets that did not come back, of those sent after the first
              that did
    before    how many were sent before that one and are lost
    tcp       None, or what became of the TCP connection
    """

    def __init__(self, x, y, limit=10.0, after=1.2, tcp=True, port=PORT):
        self.x, self.y, self.limit, self.after, self.port = x, y, limit, after, port
        self.with_tcp = tcp
        self.came, self.back, self.sent_at = {}, {}, []
        self.direct_at = {}
        self.direct = self.answered = self.tcp = None
        self.stop = threading.Event()
        self.ways = {x: [], y: []}      # when a packet came in directly
        self.gone = {x: [], y: []}      # when one left that way
        self.begin, self.new_cables = None, []

    # -- the parts of one turn --

    def _open(self, stack, size):
        self.wire = wire_sizes(size)
        self.text = b"\xa5" * (size - 8)
        with inside(self.y.ns):
            self.far = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self.far.bind((self.y.ip4, self.port))
        with inside(self.x.ns):
            self.near = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self.near.bind((self.x.ip4, 0))
        for s in (self.far, self.near):
            s.setblocking(False)
        self.cables = {}
        for node in (self.x, self.y):
            self.cables[node] = Cable(node.ns, lengths=self.wire)
            stack.callback(self.cables[node].close)
        if self.with_tcp:
            self.slow = Slow(self.x, self.y, self.port + 1)
            stack.callback(self.slow.close)

    def _send(self, now):
        number = len(self.sent_at)
        self.sent_at.append(now)
        with contextlib.suppress(OSError):
            self.near.sendto(struct.pack("!Q", number) + self.text, (self.y.ip4, self.port))

    def _read(self, now):
        with contextlib.suppress(OSError):
            while True:
                data, sender = self.far.recvfrom(2000)
                self.came.setdefault(struct.unpack("!Q", data[:8])[0], now)
                self.far.sendto(data, sender)
        with contextlib.suppress(OSError):
            while True:
                data = self.near.recv(2000)
                self.back.setdefault(struct.unpack("!Q", data[:8])[0], now)
        for node, cable in self.cables.items():
            for outgoing, packet, at in cable.timed():
                udp = udp_payload(packet)
                if udp is None or udp[2][:4] != b"\4\0\0\0":
                    continue
                if outgoing:
                    self.gone[node].append(at)
                else:
                    self.direct_at.setdefault(node, at)
                    self.ways[node].append(at)

    def over(self, now):
        if self.stop.is_set():
            return True
        if len(self.direct_at) == 2 and self.after is not None:
            return now >= max(self.direct_at.values()) + self.after
        return now >= self.begin + self.limit

    def run(self):
        with own_size() as size, contextlib.ExitStack() as stack:
            self._open(stack, size)
            sockets = [self.far, self.near] + list(self.cables.values())
            now = self.begin = due = time.monotonic()
            while not self.over(now):
                if now >= due:
                    self._send(now)
                    due = max(due + (FINE_GAP if now < self.begin + FINE else GAP), now)
                select.select(sockets, [], [], max(0.0, due - time.monotonic()))
                now = time.monotonic()
                self._read(now)
                while self.new_cables:
                    node, cable = self.new_cables.pop()
                    stack.callback(cable.close)
                    sockets.remove(self.cables[node])
                    sockets.append(cable)
                    self.cables[node] = cable
                if self.with_tcp:
                    self.slow.step(now)
            self._drain(sockets)
            if self.with_tcp:
                self.tcp = self.slow.finish()
        self._sum_up()
        return self

    def _drain(self, sockets):
        """What was sent last gets its time to come back."""
        end = time.monotonic() + 0.5
        while time.monotonic() < end and len(self.back) < len(self.sent_at):
            select.select(sockets, [], [], 0.05)
            self._read(time.monotonic())

    def _sum_up(self):
        if len(self.direct_at) == 2:
            self.direct = max(self.direct_at.values()) - self.begin
        if self.back:
            self.answered = min(self.back.values()) - self.begin
            first = min(self.back)
            self.lost = sum(1 for n in range(first, len(self.sent_at)) if n not in self.back)
            self.before = first
        else:
            self.lost = len(self.sent_at)
            self.before = 0

    # -- for scripts that look while it runs --

    def start(self):
        self.thread = threading.Thread(target=self._run_quietly, daemon=True)
        self.thread.start()
        return self

    def _run_quietly(self):
        try:
            self.error = None
            self.run()
        except Exception as e:
            self.error = e

    def end(self):
        self.stop.set()
        self.thread.join(20)
        check(self.error is None, "the flow failed: %s" % self.error)
        return self

    def echoes(self, since, until=None):
        """Times at which echoes came."""
        return sorted(t for t in list(self.back.values())
                      if t >= since and (until is None or t <= until))

    def longest_gap(self, since, until=None):
        until = until or time.monotonic()
        times = [since] + self.echoes(since, until) + [until]
        return max(b - a for a, b in zip(times, times[1:]))

    def direct_since(self, since):
        """The first moment after `since` by which packets came directly both ways."""
        firsts = [next((t for t in list(w) if t >= since), None) for w in self.ways.values()]
        return None if None in firsts else max(firsts)

    def plugged_anew(self, node):
        """The node's interface is another one now: listen there."""
        self.new_cables.append((node, Cable(node.ns, lengths=self.wire)))

    def gone_directly(self, node, since):
        """Packets that a node sent directly since then."""
        return sum(1 for t in list(self.gone[node]) if t >= since)


def bytes_on_wire(node, device="eth0"):
    """Bytes out and in of a node's interface, counted by the kernel."""
    with inside(node.ns):
        with open("/proc/thread-self/net/dev") as f:
            for line in f:
                if line.strip().startswith(device + ":"):
                    words = line.split(":")[1].split()
                    return int(words[8]), int(words[0])
    raise Failed("%s has no %s" % (node.host, device))
