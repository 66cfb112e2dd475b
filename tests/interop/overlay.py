#!/usr/bin/env python3
"""Overlay: programs that listen and dial on the tailnet without root, on lwIP: echo, dial,
http and tailnetd --socks5, with headscale and the official client as their peers.

    overlay.py [-k WORD] [--list] [--keep-going] [--jobs N]

Every part prints a line. Logs lie in build/interop/overlay-NAME. Ends with "N passed,
N failed". OVERLAY_BIN names another folder than build/overlay for our programs."""

import argparse
import base64
import concurrent.futures
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request

import lab as base
import run as interop
from lab import Failed, check, run, wait_for

TOP = base.TOP
OUT = os.path.join(TOP, "build/interop")
BIN = os.path.join(TOP, os.environ.get("OVERLAY_BIN", "build/overlay"))
MB = 1000000
TESTS = {}
ALONE = {"speed"}               # measures, so nothing else may run
TIMEOUT = 240


def test(f):
    TESTS[f.__name__] = f
    return f


# ---- what runs in a node's namespace: overlay.py --do NAME ARGS --------------------------


def pattern(seed, size):
    """The same bytes for the same seed, on both sides."""
    return random.Random(seed).randbytes(size)


def connect(ip, port, timeout=20):
    s = socket.create_connection((ip, int(port)), timeout)
    s.settimeout(timeout)
    return s


def read_all(s, limit=None):
    got = bytearray()
    while limit is None or len(got) < limit:
        piece = s.recv(65536)
        if not piece:
            break
        got += piece
    return bytes(got)


def do_echo(ip, port, size):
    """One connection: bytes there and back, then both ends."""
    s, data = connect(ip, port), pattern(1, int(size))
    threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR))).start()
    print("same" if read_all(s) == data else "differs")


def do_many(ip, port, count):
    """Many connections open at once; each gets its own bytes back."""
    all_of = [connect(ip, port, 60) for _ in range(int(count))]
    for i, s in enumerate(all_of):
        s.sendall(pattern(i, 3000))
    good = sum(read_all(s, 3000) == pattern(i, 3000) for i, s in enumerate(all_of))
    for s in all_of:
        s.shutdown(socket.SHUT_WR)
    print(good, sum(s.recv(1) == b"" for s in all_of))


def do_stall(ip, port, megabytes, pause):
    """Sends without reading until it is stopped, pauses, then reads everything."""
    s, data = connect(ip, port, 60), pattern(2, int(megabytes) * MB)
    state = {"sent": 0}

    def send():
        for at in range(0, len(data), 65536):
            s.sendall(data[at:at + 65536])
            state["sent"] = at + 65536
        s.shutdown(socket.SHUT_WR)
    threading.Thread(target=send).start()
    time.sleep(float(pause))
    stopped_at = state["sent"]
    print("same" if read_all(s) == data else "differs", stopped_at)


# SOCKS5 by hand, for what curl cannot be made to do.


def socks_hello(proxy, login=None):
    s = connect("127.0.0.1", proxy, 40)
    s.sendall(b"\5\1\2" if login else b"\5\1\0")
    method = s.recv(2)
    if not login or method != b"\5\2":
        return s, method
    user, password = login
    s.sendall(b"\1" + bytes([len(user)]) + user + bytes([len(password)]) + password)
    return s, s.recv(2)


def socks_target(host, port):
    port = struct.pack(">H", int(port))
    for kind, family in ((b"\1", socket.AF_INET), (b"\4", socket.AF_INET6)):
        with contextlib.suppress(OSError):
            return kind + socket.inet_pton(family, host) + port
    return b"\3" + bytes([len(host)]) + host.encode() + port


def socks_answer(s):
    """(code, address, port)"""
    head = read_all_of(s, 4)
    if len(head) < 4:
        return None, None, None
    size = 16 if head[3] == 4 else 4
    rest = read_all_of(s, size + 2)
    family = socket.AF_INET6 if size == 16 else socket.AF_INET
    return head[1], socket.inet_ntop(family, rest[:size]), struct.unpack(">H", rest[size:])[0]


def read_all_of(s, size):
    got = b""
    while len(got) < size and (piece := s.recv(size - len(got))):
        got += piece
    return got


def socks_ask(proxy, command, host, port, login=None):
    """(socket, code, address, port) of a request."""
    s, _ = socks_hello(proxy, login)
    s.sendall(bytes([5, command, 0]) + socks_target(host, port))
    return (s,) + socks_answer(s)


def do_socks_code(proxy, command, host, port):
    begin = time.monotonic()
    print(socks_ask(proxy, int(command), host, port)[1], int(time.monotonic() - begin))


def do_socks_login(proxy, host, port, user, password):
    """What the server thinks of a login, and of none."""
    for login in ((user.encode(), password.encode()), (user.encode(), b"wrong"),
                  (b"x" + user.encode(), password.encode()), None):
        s, said = socks_hello(proxy, login)
        print(said.hex())
        if said == b"\1\0":
            s.sendall(b"\5\1\0" + socks_target(host, port))
            print(socks_answer(s)[0])


def do_socks_hostile(proxy):
    """Bytes that no client sends; each has to end with the connection."""
    talks = (b"GET / HTTP/1.0\r\n\r\n", b"\4\1\0\120\1\2\3\4\0", b"\5\0", b"\5\1\2",
             b"\5\1\0\5\1\0\2zz", b"\5\1\0\5\1\0\3\0\0\7", b"\5\1\0\5\1\0\3\2a\0\0\7",
             b"\5\1\0\4\1", b"\0" * 2000, bytes(range(256)) * 40, b"\5\1\0" + b"\xff" * 4000)
    ended = 0
    for talk in talks:
        s = connect("127.0.0.1", proxy, 5)
        with contextlib.suppress(OSError):
            s.sendall(talk)
        with contextlib.suppress(ConnectionError):
            read_all(s)
        ended += 1
    print(ended, len(talks))


def do_socks_slow(proxy):
    """Who says nothing, or half of it, is let go after ten seconds."""
    silent, half = connect("127.0.0.1", proxy, 20), connect("127.0.0.1", proxy, 20)
    half.sendall(b"\5\3")
    begin = time.monotonic()
    print(silent.recv(1) == b"" and half.recv(1) == b"", int(time.monotonic() - begin))


def do_socks_early(proxy, host, port):
    """All in one piece, data too, before any answer."""
    s = connect("127.0.0.1", proxy)
    s.sendall(b"\5\1\0" + b"\5\1\0" + socks_target(host, port) + b"early")
    head = read_all_of(s, 2 + 10)
    print(head[3] if len(head) > 3 else None, read_all_of(s, 5).decode())


def do_socks_many(proxy, host, port, count):
    """Many streams at once, each with its own bytes."""
    streams = [connect("127.0.0.1", proxy, 60) for _ in range(int(count))]
    for s in streams:
        s.sendall(b"\5\1\0" + b"\5\1\0" + socks_target(host, port))
    for i, s in enumerate(streams):
        if len(read_all_of(s, 12)) == 12:
            s.sendall(pattern(i, 3000))
    good = sum(read_all_of(s, 3000) == pattern(i, 3000) for i, s in enumerate(streams))
    for s in streams:
        s.shutdown(socket.SHUT_WR)
    print(good, sum(s.recv(1) == b"" for s in streams))


def do_socks_copy(proxy, host, port, megabytes, pause):
    """Sends and reads at the same time, after a pause in which nobody reads."""
    s = socks_ask(proxy, 1, host, port)[0]
    data, seen = pattern(8, int(megabytes) * MB), {}
    s.settimeout(60)

    def send():
        for at in range(0, len(data), 1 << 16):
            s.sendall(data[at:at + (1 << 16)])
            seen["sent"] = at + (1 << 16)
        s.shutdown(socket.SHUT_WR)
    threading.Thread(target=send).start()
    time.sleep(float(pause))
    stopped = seen.get("sent", 0)
    print("same" if read_all(s) == data else "differs", stopped)


def do_socks_fetch(proxy, host, port):
    s, total, room = socks_ask(proxy, 1, host, port)[0], 0, bytearray(1 << 20)
    while (n := s.recv_into(room)):
        total += n
    print(total)


def do_socks_reset(proxy, host, port):
    """A connection that the peer tears is torn for the client too."""
    s = socks_ask(proxy, 1, host, port)[0]
    s.sendall(b"x")
    try:
        print("end" if s.recv(10) == b"" else "bytes")
    except ConnectionResetError:
        print("reset")


def do_socks_udp(proxy, host, port):
    """UDP ASSOCIATE: echoes, a piece that is dropped, and the end of the association."""
    s, code, ip, bound = socks_ask(proxy, 3, "0.0.0.0", 0)
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    u.settimeout(3)
    u.connect((ip, bound))
    head, good = b"\0\0\0" + socks_target(host, port), 0
    for i in range(5):
        u.send(head + b"datagram %d" % i)
        got = u.recv(2000)
        good += got.endswith(b"datagram %d" % i) and got[:3] == b"\0\0\0"
    u.send(b"\0\0\1" + head[3:] + b"a piece")
    u.send(b"\0\0")
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.sendto(head + b"a stranger", (ip, bound))
    u.send(head + b"last")
    last = u.recv(2000)
    s.close()
    time.sleep(0.3)
    gone = False
    with contextlib.suppress(TimeoutError):
        try:
            u.send(head + b"late")
            u.recv(2000)
        except ConnectionRefusedError:
            gone = True
    print(code, good, last.endswith(b"last"), gone)


def serve(port, handle, once=False):
    """A TCP server for both families; handle(socket) in a thread for each."""
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", int(port)))
    listener.listen(512)
    while True:
        s, _ = listener.accept()
        if once:
            return handle(s)
        threading.Thread(target=handle, args=(s,), daemon=True).start()


def do_serve(port, kind, *words):
    """echo; both MB: as many bytes sent as read, at the same time; lazy S: reads after
    a while; reset: breaks; count: reads until the end, then says how much and its sum."""
    def echo(s):
        with contextlib.suppress(OSError):
            while (piece := s.recv(65536)):
                s.sendall(piece)
            s.shutdown(socket.SHUT_WR)
            s.close()

    def count(s):
        if kind == "lazy":
            time.sleep(float(words[0]))
        digest, total = hashlib.sha256(), 0
        while (piece := s.recv(1 << 18)):
            digest.update(piece)
            total += len(piece)
        s.sendall(b"%d %s\n" % (total, digest.hexdigest().encode()))
        s.close()

    def both(s):
        data = pattern(4, int(words[0]) * MB)
        threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR))).start()
        digest, total = hashlib.sha256(), 0
        while (piece := s.recv(1 << 18)):
            digest.update(piece)
            total += len(piece)
        print(total, digest.hexdigest(), flush=True)

    def reset(s):
        s.recv(1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
    serve(port, {"echo": echo, "count": count, "lazy": count, "both": both, "reset": reset}[kind])


def do_source(port, megabytes):
    """Sends as many zeros as asked for to whoever connects: for speed."""
    piece = bytes(1 << 18)

    def send(s):
        left = int(megabytes) * MB
        with contextlib.suppress(OSError):
            while left > 0:
                left -= s.send(piece[:left])
            s.shutdown(socket.SHUT_WR)
    serve(port, send)


# ---- a test's world ----------------------------------------------------------------------


class Example:
    """One of our programs as a node in a namespace of its own."""

    def __init__(self, lab, program, host=None, relay_only=False, place=None):
        self.lab, self.host, self.relay_only = lab, host or program, relay_only
        self.program = os.path.join(BIN, program)
        self.ns, self.address = (place.ns, place.address) if place else lab.namespace()
        self.process = self.ip4 = self.ip6 = None
        check(os.path.exists(self.program), "%s is not built" % self.program)

    def env(self, hs, state=True):
        env = {"TAILNET_CONTROL": hs.url, "TAILNET_AUTHKEY": hs.key, "TAILNET_HOSTNAME": self.host,
               "TAILNET_CA": self.lab.pki.ca, "TAILNET_PORT": "41641"}
        if state:
            env["TAILNET_STATE"] = os.path.join(self.lab.folder, self.host + ".state")
        if self.relay_only:
            env["TAILNET_RELAY_ONLY"] = "1"
        return env

    def start(self, hs):
        self.process = self.lab.process(self.host, [self.program], ns=self.ns, env=self.env(hs))
        return self

    def wait(self, hs, timeout=30):
        def there():
            check(self.process.alive(), "%s ended: %s" % (self.host, self.process.logged()[-500:]))
            return re.search(r"^(100\.\S+) %s\." % self.host, self.process.logged(), re.M)
        self.ip4 = wait_for("%s has joined" % self.host, there, timeout).group(1)
        self.ip6 = next(a for a in hs.node(self.host)["ip_addresses"] if ":" in a)
        return self

    def dial(self, hs, *words, stdin=b"", timeout=60):
        """Runs it as dial; the finished process, with bytes."""
        return subprocess.run(["ip", "netns", "exec", self.ns, self.program] + list(words),
                              input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env=dict(os.environ, **self.env(hs)), timeout=timeout)


def do(node, name, *words, timeout=100):
    """Runs one of the do_ functions in a node's namespace; what it printed, as words."""
    done = run([sys.executable, os.path.abspath(__file__), "--do", name] + [str(w) for w in words],
               timeout=timeout, ns=node.ns)
    return done.stdout.split()


def netcat(go, host, port, line):
    """What comes back through `tailscale nc`, which leaves when its stdin ends."""
    words = ["ip", "netns", "exec", go.ns, base.GO + "/tailscale", "--socket=" + go.socket, "nc"]
    with subprocess.Popen(words + [host, str(port)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as child:
        timer = threading.Timer(20, child.kill)
        timer.start()
        child.stdin.write(line)
        child.stdin.flush()
        answer = child.stdout.readline()
        timer.cancel()
        child.kill()
    return answer


def server(lab, node, port, kind, *words, name="serve"):
    """A server in a node's namespace, in the background."""
    p = lab.process("%s-%s-%d" % (name, node.host, port), [
        sys.executable, os.path.abspath(__file__), "--do", name, str(port)] +
        ([kind] if kind else []) + [str(w) for w in words], ns=node.ns)
    wait_for("port %d is open" % port, lambda: ":%d " % port in run(
        ["ss", "-ltn"], ns=node.ns).stdout)
    return p


def world(lab, relay_only=False):
    """headscale with a key, and the official client."""
    hs = base.Headscale(lab)
    hs.key = hs.auth_key("--reusable")
    return hs, lab.official("go1", relay_only=relay_only)


# ---- the tests ---------------------------------------------------------------------------


@test
def listen(lab, part):
    """echo.c, and the official client in front of it"""
    hs, go = world(lab)
    echo = Example(lab, "echo").start(hs)
    with part("all join"):
        go.up(hs, hs.key)
        echo.wait(hs)
        go.wait_peer(echo.ip4)
    with part("tailscale ping, straight"):
        # The first may come before echo is at its relay; tailscale sends each but once.
        wait_for("a straight path", lambda: "via 10.99" in go.ping(echo.ip4, timeout=2), 25)
    with part("ping, IPv4 and IPv6"):
        check(base.icmp(go, echo.ip4) and base.icmp(go, echo.ip6), "no answer")
    for ip in (echo.ip4, echo.ip6):
        with part("UDP and TCP echo, %s" % ip):
            check(base.udp(go, ip) == 5, "UDP echoes are missing")
            check(do(go, "echo", ip, 7, 100000) == ["same"], "TCP echo differs")
    with part("tailscale nc, by name"):
        check(netcat(go, "echo", 7, b"hello\n") == b"hello\n", "it said something else")
    with part("200 connections at once"):
        check(do(go, "many", echo.ip4, 7, 200) == ["200", "200"], "some were not served")
    with part("who does not read stops himself, and loses nothing"):
        same, stopped = do(go, "stall", echo.ip4, 7, 20, 3)
        check(same == "same", "bytes were lost")
        check(int(stopped) < 15 * MB, "it was never stopped")
    with part("a closed port refuses"):
        done = go.run("curl", "-sS", "-m", "10", "http://%s:81/" % echo.ip4, ok=False)
        check(done.returncode == 7, "curl: %d %s" % (done.returncode, done.stderr))
    with part("100 MB there and back"):
        begin = time.monotonic()
        check(do(go, "echo", echo.ip4, 7, 100 * MB) == ["same"], "bytes differ")
        print("     %.0f Mbit/s each way" % (800 / (time.monotonic() - begin)))


@test
def dial(lab, part):
    """dial.c, to servers behind the official client"""
    hs, go = world(lab)
    go.up(hs, hs.key)
    for port, words in ((7, ["echo"]), (8, ["count"]), (9, ["reset"]), (10, ["lazy", 4]),
                        (11, ["both", 100])):
        server(lab, go, port, *words)
    base.udp_echo(lab, go)
    dial = Example(lab, "dial")
    for who, flags in (("go1", []), ("go1.lab.test", []), ("go1", ["-6"]), (go.ip4, []),
                       (go.ip6, [])):
        with part("to %s %s" % (who, " ".join(flags))):
            done = dial.dial(hs, *flags, who, "7", stdin=b"hello " + who.encode())
            check((done.returncode, done.stdout) == (0, b"hello " + who.encode()),
                  "%d %r %r" % (done.returncode, done.stdout, done.stderr))
    with part("the end of stdin goes there, the answer still comes"):
        data = pattern(5, 300000)
        done = dial.dial(hs, "go1", "8", stdin=data)
        want = b"%d %s\n" % (len(data), hashlib.sha256(data).hexdigest().encode())
        check((done.returncode, done.stdout) == (0, want), "%r" % done)
    with part("UDP, both families"):
        for flag in ("-4", "-6"):
            done = dial.dial(hs, "-u", flag, "go1", "7", stdin=b"a datagram")
            check((done.returncode, done.stdout) == (0, b"a datagram"), "%r" % done)
    with part("exit codes and sentences"):
        for words, code, text in ((["go1"], 1, b"usage"), (["go1", "0"], 1, b"usage"),
                                  (["go1", "7x"], 1, b"usage"), (["-x", "go1", "7"], 1, b"usage"),
                                  (["go1", "12"], 2, b"refused"), (["nobody", "7"], 2, b"no peer"),
                                  (["8.8.8.8", "7"], 2, b"no peer"),
                                  (["go1", "9"], 3, b"broke")):
            done = dial.dial(hs, *words, stdin=b"x")
            check(done.returncode == code and text in done.stderr, "%s: %r" % (words, done))
    with part("a server that does not read stops stdin, and loses nothing"):
        data = pattern(6, 10 * MB)
        done = dial.dial(hs, "go1", "10", stdin=data)
        want = b"%d %s\n" % (len(data), hashlib.sha256(data).hexdigest().encode())
        check((done.returncode, done.stdout) == (0, want), "%r" % done)
    with part("a stdout that is not read stops the server, and loses nothing"):
        stalled_reader(dial, hs)
    with part("100 MB both ways at once"):
        both_ways(lab, dial, hs)


def stalled_reader(dial, hs):
    """dial's stdout is a pipe that nobody reads for some seconds."""
    child = subprocess.Popen(["ip", "netns", "exec", dial.ns, dial.program, "go1", "11"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             env=dict(os.environ, **dial.env(hs)))
    child.stdin.close()
    time.sleep(4)
    held = int(run(["ps", "-o", "rss=", "-p", str(child.pid)]).stdout)
    got = child.stdout.read()
    check(child.wait(30) == 0, "exit code %d" % child.returncode)
    check(got == pattern(4, 100 * MB), "bytes differ: %d" % len(got))
    check(held < 30000, "it grew to %d KB" % held)


def both_ways(lab, dial, hs):
    """A file each way through one connection, both checked."""
    data = pattern(7, 100 * MB)
    path, out = lab.write("up", ""), os.path.join(lab.folder, "down")
    with open(path, "wb") as f:
        f.write(data)
    begin = time.monotonic()
    with open(path, "rb") as stdin, open(out, "wb") as stdout:
        done = subprocess.run(["ip", "netns", "exec", dial.ns, dial.program, "go1", "11"],
                              stdin=stdin, stdout=stdout, env=dict(os.environ, **dial.env(hs)),
                              timeout=90)
    seconds = time.monotonic() - begin
    check(done.returncode == 0, "exit code %d" % done.returncode)
    with open(out, "rb") as f:
        check(f.read() == pattern(4, 100 * MB), "what came differs")
    want = "%d %s" % (len(data), hashlib.sha256(data).hexdigest())
    with open(os.path.join(lab.folder, "serve-go1-11.log")) as f:
        check(want in f.read(), "what went differs")
    print("     %.0f Mbit/s each way" % (800 / seconds))


def curl(node, url, *words, proxy="socks5h://127.0.0.1:1080", timeout=30):
    return run(["curl", "-sS", "-m", str(timeout), "-x", proxy] + list(words) + [url],
               ns=node.ns, ok=False, timeout=timeout + 10)


def tailnetd(lab, hs, host, *flags, relay_only=False, program="tailnetd", state="running"):
    """Our daemon with these flags, without a device."""
    program = os.path.relpath(os.path.join(BIN, program), TOP)
    node = base.OurNode(lab, host, relay_only=relay_only, extra=list(flags), program=program)
    node.start(hs, hs.key)
    return node.wait_state(state) if state else node


@test
def socks5(lab, part):
    """tailnetd --socks5, and programs that know nothing of a tailnet"""
    hs, go = world(lab)
    login = lab.write("login", "me:secret\n")
    ours = tailnetd(lab, hs, "ours", "--socks5", "1080", state=None)
    locked = tailnetd(lab, hs, "locked", "--socks5", "0.0.0.0:1080", "--socks5-login", login,
                      state=None)
    with part("all join"):
        go.up(hs, hs.key)
        ours.wait_state("running")
        locked.wait_state("running")
        ours.wait_sees("go1")
    base.udp_echo(lab, go)
    for port, words in ((7, ["echo"]), (9, ["reset"])):
        server(lab, go, port, *words)
    page = lab.write("page.html", "hello from the tailnet\n")
    lab.process("web", [sys.executable, "-m", "http.server", "80", "--bind", "::",
                        "--directory", os.path.dirname(page)], ns=go.ns)
    wait_for("the web server", lambda: ":80 " in run(["ss", "-ltn"], ns=go.ns).stdout)
    slow = lab.process("slow", [sys.executable, os.path.abspath(__file__), "--do", "socks_slow",
                                "1080"], ns=ours.ns)
    for url in ("go1", "go1.lab.test", go.ip4, "[%s]" % go.ip6):
        with part("curl http://%s/" % url):
            done = curl(ours, "http://%s/page.html" % url)
            check(done.stdout == "hello from the tailnet\n", "%d %s" % (
                done.returncode, done.stderr))
    with part("codes of refusal"):
        for command, host, port, code in (
                (1, go.ip4, 12, 5), (1, "nobody", 80, 4), (1, "nobody.lab.test", 80, 4),
                (1, "10.99.0.1", 8443, 3), (1, "8.8.8.8", 53, 3), (1, "127.0.0.1", 22, 3),
                (1, "2001:db8::1", 80, 3), (1, "100.64.77.77", 80, 3), (2, go.ip4, 7, 7),
                (9, go.ip4, 7, 7), (1, go.ip4, 0, 5), (1, ours.ip4, 80, 3)):
            got = do(ours, "socks_code", 1080, command, host, port)
            check(got == [str(code), "0"], "%d %s %d: %s, not %d" % (
                command, host, port, got, code))
    with part("all in one piece, before any answer"):
        check(do(ours, "socks_early", 1080, go.ip4, 7) == ["0", "early"], "not so")
    with part("UDP ASSOCIATE, by address and by name"):
        for who in (go.ip4, go.ip6, "go1"):
            got = do(ours, "socks_udp", 1080, who, 7)
            check(got == ["0", "5", "True", "True"], "%s: %s" % (who, got))
    with part("200 streams at once"):
        check(do(ours, "socks_many", 1080, go.ip4, 7, 200) == ["200", "200"], "some are missing")
    with part("back-pressure both ways, and half-close: 20 MB"):
        same, stopped = do(ours, "socks_copy", 1080, go.ip4, 7, 20, 3)
        check(same == "same", "bytes differ")
        check(int(stopped) < 19 * MB, "nothing was stopped: %s" % stopped)
    with part("100 MB there and back"):
        check(do(ours, "socks_copy", 1080, "go1", 7, 100, 0)[0] == "same", "bytes differ")
    with part("what breaks there breaks here"):
        check(do(ours, "socks_reset", 1080, go.ip4, 9) == ["reset"], "it looked like an end")
    with part("hostile clients"):
        ended, all_of = do(ours, "socks_hostile", 1080)
        check(ended == all_of, "%s of %s ended" % (ended, all_of))
        check(ours.process.alive(), "it is gone")
    with part("silent clients are let go after ten seconds"):
        slow.wait(20)
        got = slow.logged().split()[-2:]
        check(got[0] == "True" and 9 <= int(got[1]) <= 12, "%s" % got)
    with part("user and password"):
        check(do(locked, "socks_login", 1080, go.ip4, 7, "me", "secret") == [
            "0100", "0", "0101", "0101", "05ff"], "not so")
        done = curl(locked, "http://go1/page.html", proxy="socks5h://me:secret@127.0.0.1:1080")
        check(done.stdout == "hello from the tailnet\n", done.stderr)
    with part("it does not open to others without a password"):
        words = [locked.program, "--control", hs.url, "--socks5"]
        for where, why in (("0.0.0.0:1081", "password"), ("nonsense", "ADDRESS:PORT"),
                           ("127.0.0.1:1080", "in use")):
            done = locked.run(*words, where, ok=False)
            check(done.returncode == 2 and why in done.stderr, "%s: %s" % (where, done.stderr))
    with part("it still answers pings and echoes itself"):
        check(base.icmp(go, ours.ip4) and base.udp(go, ours.ip4) == 5, "no")


class Browser:
    """Headless Chromium in a node's namespace, driven over WebDriver."""

    FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--disable-dev-shm-usage", "--proxy-server=socks5://127.0.0.1:1080"]

    def __init__(self, lab, node):
        for program, package in (("chromium", "chromium"), ("chromedriver", "chromium-driver")):
            check(shutil.which(program), "missing: apt-get install " + package)
        self.url = "http://%s:9515" % node.address
        home = os.path.join(lab.folder, "home")
        os.makedirs(home, exist_ok=True)
        self.process = lab.process("chromedriver", [
            shutil.which("chromedriver"), "--port=9515", "--allowed-ips=" + base.HUB,
            "--allowed-origins=*"], ns=node.ns, env={"HOME": home, "TMPDIR": home})
        wait_for("chromedriver listens", lambda: base.listening(node.address, 9515))
        options = {"binary": shutil.which("chromium"),
                   "args": self.FLAGS + ["--user-data-dir=" + os.path.join(home, "profile")]}
        made = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"}}}})
        self.url += "/session/" + made["sessionId"]

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method,
                                         headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as e:
            raise Failed("browser: " + e.read().decode()[:300]) from None

    def open(self, url):
        self.ask("POST", "/url", {"url": url})

    def script(self, text, *words):
        return self.ask("POST", "/execute/sync", {"script": text, "args": list(words)})

    def devtools(self, command, **params):
        return self.ask("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def size(self, width, height, phone=False):
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height,
                      deviceScaleFactor=2 if phone else 1, mobile=phone)

    def scheme(self, name):
        self.devtools("Emulation.setEmulatedMedia",
                      features=[{"name": "prefers-color-scheme", "value": name}])

    def complaints(self):
        return [e["message"] for e in self.ask("POST", "/se/log", {"type": "browser"})
                if e["level"] in ("SEVERE", "WARNING")]

    def picture(self, path):
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        with open(path, "wb") as f:
            f.write(base64.b64decode(shot["data"]))

    def close(self):
        with contextlib.suppress(Failed, OSError):
            self.ask("DELETE", "")


# What a person would see of each peer: name, addresses, and the way to it.
ROWS = """return [...document.querySelectorAll('tbody tr')].map(row => ({
    name: row.querySelector('th').firstChild.data, text: row.innerText,
    way: row.querySelector('.tag').innerText, height: row.getBoundingClientRect().height}))"""

# Whatever sticks out of the window, and text that is too faint (WCAG: 4.5 to 1).
FLAWS = """
const flaws = [], width = innerWidth;
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const light = c => c.slice(0, 3).map(v => v / 255).map(
    v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce(
    (sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e)
    .backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
if (document.documentElement.scrollWidth > width) flaws.push('the page scrolls sideways');
for (const e of document.querySelectorAll('main *')) {
  const box = e.getBoundingClientRect(), style = getComputedStyle(e);
  if (box.width <= 1 || e.closest('thead, .aside') && box.height <= 1) continue;
  if (e.closest('thead') && getComputedStyle(e.closest('thead')).position === 'absolute') continue;
  if (box.right > width + 0.5 || box.left < -0.5) flaws.push(`${e.tagName} sticks out`);
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
  const a = light(rgb(style.color)), b = light(behind(e));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) flaws.push(`${e.tagName} "${e.innerText}" has contrast ${ratio.toFixed(1)}`);
  if (parseFloat(style.fontSize) < 12) flaws.push(`${e.tagName} is too small`);
}
return flaws"""


def row_of(browser, name):
    return next((r for r in browser.script(ROWS) if r["name"] == name), None)


@test
def page(lab, part):
    """http.c in Chromium, which comes through tailnetd --socks5"""
    hs, go = world(lab)
    status = Example(lab, "http", "status").start(hs)
    viewer = tailnetd(lab, hs, "viewer", "--socks5", "1080", "--port", "41641", state=None)
    with part("all join"):
        go.up(hs, hs.key)
        status.wait(hs)
        viewer.wait_state("running")
        viewer.wait_sees("status")
        go.wait_peer(status.ip4)
    with part("without a browser: heads, escapes, what is not there"):
        no_browser(viewer)
    browser = Browser(lab, viewer)
    try:
        page_in(browser, lab, part, status, go, viewer, hs)
    finally:
        browser.close()


def no_browser(viewer):
    done = curl(viewer, "http://status/", "-i")
    for word in ("200 OK", "text/html; charset=utf-8", "default-src 'none'", "nosniff"):
        check(word in done.stdout, "%s is missing in %s" % (word, done.stdout[:900]))
    for path, want in (("/nothing", "404"), ("/%2e%2e/etc/passwd", "404"),
                       ("/" + "x" * 900, "40"), ("/script.js", "200"), ("/?a=<b>", "200")):
        done = curl(viewer, "http://status" + path, "-o", "/dev/null", "-w", "%{http_code}")
        check(done.stdout.startswith(want), "%s: %s %s" % (path, done.stdout, done.stderr))
    done = curl(viewer, "http://status/", "-X", "PUT", "-o", "/dev/null", "-w", "%{http_code}")
    check(done.stdout == "501", "PUT: %s %s" % (done.stdout, done.stderr))


def page_in(browser, lab, part, status, go, viewer, hs):
    def shot(name):
        browser.picture(os.path.join(lab.folder, name + ".png"))
    with part("what a person sees at a desk"):
        browser.size(1280, 800)
        browser.open("http://status/")
        text = browser.script("return document.body.innerText")
        for word in ("status", "lab.test", "running", status.ip4, status.ip6, "connected", "Peers",
                     "2 known", "2 online"):
            check(word in text, "%s is not to be seen in %s" % (word, text))
        check(browser.script("return document.title") == "status.lab.test", "title")
        rows = browser.script(ROWS)
        check([r["name"] for r in rows] == ["go1", "viewer"], "%s" % rows)
        for row, node in zip(rows, (go, viewer)):
            check(node.ip4 in row["text"] and node.ip6 in row["text"], row["text"])
    with part("the way to the viewer becomes direct before one's eyes"):
        browser.script("window.first = document.querySelector('tbody tr'); window.marked = true")
        wait_for("direct", lambda: row_of(browser, "viewer")["way"] == "direct", 20)
        check(viewer.address in row_of(browser, "viewer")["text"], "no address")
    with part("it says live, and stays the same page"):
        wait_for("live", lambda: "live" == browser.script(
            "return document.getElementById('live').innerText"), 5)
        before = browser.script("return document.querySelector('main').innerText")
        wait_for("numbers move", lambda: before != browser.script(
            "return document.querySelector('main').innerText"), 10)
        check(browser.script("return window.marked && window.first.isConnected"), "it was reloaded")
    with part("nothing sticks out, nothing is faint: desk and phone, light and dark"):
        for scheme in ("light", "dark"):
            browser.scheme(scheme)
            for width, height, phone in ((1280, 800, False), (700, 900, False), (360, 740, True)):
                browser.size(width, height, phone)
                flaws = browser.script(FLAWS)
                check(not flaws, "%s at %d: %s" % (scheme, width, "; ".join(flaws[:5])))
                shot("%s-%d" % (scheme, width))
    with part("as a phone's screen reader has it"):
        tree = browser.devtools("Accessibility.getFullAXTree")["nodes"]
        roles = [n["role"]["value"] for n in tree if not n.get("ignored")]
        check(roles.count("row") == 3 and "table" in roles and "status" in roles, "%s" % set(roles))
        check(roles.count("columnheader") == 6 and roles.count("rowheader") == 2, "headers")
    with part("direct, then by relay, when UDP is cut; said aloud too"):
        browser.size(1280, 800)
        flow = base.Flow(lab, go, status.ip4)
        wait_for("direct", lambda: row_of(browser, "go1")["way"] == "direct", 20)
        cut_udp(go, status)
        wait_for("by relay", lambda: row_of(browser, "go1")["way"] == "by relay", 30)
        flow.stop()
        check("go1: by relay" in browser.script("return document.getElementById('told').innerText"),
              "it was not told")
    with part("a peer that comes is there, one that goes is offline"):
        late = tailnetd(lab, hs, "late")
        wait_for("its row", lambda: row_of(browser, "late"), 15)
        late.stop()
        wait_for("offline", lambda: row_of(browser, "late")["way"] == "offline", 20)
        check(browser.script("return window.marked && window.first.isConnected"), "it was reloaded")
    with part("the console is clean"):
        check(not browser.complaints(), "%s" % browser.complaints())
    with part("a server that is gone is told, and found again"):
        status.process.stop()
        live = "return document.getElementById('live').innerText"
        wait_for("no answer", lambda: "no answer" in browser.script(live), 20)
        shot("gone")
        status.start(hs)
        wait_for("live again", lambda: browser.script(live) == "live", 40)


def cut_udp(one, other):
    """Drops UDP between two nodes; the relay is TCP."""
    run(["nft", "add", "table", "ip", "cut"], ns=one.ns)
    for hook, side in (("output", "daddr"), ("input", "saddr")):
        run(["nft", "add chain ip cut %s { type filter hook %s priority 0; }" % (hook, hook)],
            ns=one.ns)
        run(["nft", "add rule ip cut %s ip %s %s udp dport 1-65535 drop" % (
            hook, side, other.address)], ns=one.ns)


@test
def by_relay(lab, part):
    """the same where there is no UDP: back-pressure of a relay's stream"""
    hs, go = world(lab, relay_only=True)
    echo = Example(lab, "echo", relay_only=True).start(hs)
    ours = tailnetd(lab, hs, "ours", "--socks5", "1080", relay_only=True, state=None)
    with part("all join"):
        go.up(hs, hs.key)
        echo.wait(hs)
        ours.wait_state("running")
        ours.wait_sees("echo")
        go.wait_peer(echo.ip4)
    server(lab, go, 7, "echo")
    with part("echo by relay: TCP and UDP, both families"):
        for ip in (echo.ip4, echo.ip6):
            check(do(go, "echo", ip, 7, 300000) == ["same"], "TCP echo differs")
            check(base.udp(go, ip) == 5, "UDP echoes are missing")
    with part("100 streams at once, by SOCKS5"):
        check(do(ours, "socks_many", 1080, "go1", 7, 100) == ["100", "100"], "some are missing")
    with part("3 MB there and back, nobody reads for a while"):
        same, _ = do(ours, "socks_copy", 1080, "go1", 7, 3, 2)
        check(same == "same", "bytes differ")
    with part("ours to ours: SOCKS5 to echo.c"):
        check(do(ours, "socks_copy", 1080, "echo", 7, 1, 0)[0] == "same", "bytes differ")


def fetch(node, host, port, megabytes, proxy=1080):
    """Megabits a second of so many zeros from a source, through SOCKS5."""
    begin = time.monotonic()
    got = do(node, "socks_fetch", proxy, host, port, timeout=120)
    check(got == [str(megabytes * MB)], "%s bytes came" % got)
    return megabytes * 8 / (time.monotonic() - begin)


@test
def speed(lab, part):
    """memory, and bytes through SOCKS5 beside the official client's own"""
    hs, go = world(lab)
    ours = tailnetd(lab, hs, "ours", "--socks5", "1080", state=None)
    plain = tailnetd(lab, hs, "plain", state=None)
    theirs = Proxy(lab, hs)
    with part("all join"):
        go.up(hs, hs.key)
        ours.wait_state("running")
        plain.wait_state("running")
        ours.wait_sees("go1")
        theirs.up(hs)
    size = 150
    server(lab, go, 9, str(size), name="source")
    with part("the same bytes through both proxies"):
        fetch(ours, go.ip4, 9, size)
        fetch(theirs, go.ip4, 9, size)
        mine = max(fetch(ours, go.ip4, 9, size) for _ in range(2))
        other = max(fetch(theirs, go.ip4, 9, size) for _ in range(2))
        print("     tailnetd --socks5 %.0f Mbit/s, tailscaled --socks5-server %.0f Mbit/s: %.2f" % (
            mine, other, mine / other))
        check(mine > 0.25 * other, "it is too slow")
    with part("as small without --socks5 as without lwIP: 3.2 MB at most"):
        kb = plain.rss_kb()
        print("     resident: %d KB; with --socks5, after that: %d KB" % (kb, ours.rss_kb()))
        check(kb <= 3200, "%d KB" % kb)


class Proxy(base.GoNode):
    """The official client without a device, with its own SOCKS5 server."""

    def __init__(self, lab, hs):
        self.lab, self.host = lab, "theirs"
        self.ns, self.address = lab.namespace()
        self.socket = "/run/theirs.sock"
        self.process = lab.process("tailscaled-theirs", [
            base.GO + "/tailscaled", "--tun=userspace-networking", "--socket=" + self.socket,
            "--statedir=" + os.path.join(lab.folder, "theirs"), "--port=41641",
            "--socks5-server=127.0.0.1:1080", "--no-logs-no-support"], ns=self.ns,
            env={"SSL_CERT_FILE": lab.pki.ca, "TS_NO_LOGS_NO_SUPPORT": "true"})

    def up(self, hs):
        return super().up(hs, hs.key)


# ---- one test in its own namespaces, and all of them -------------------------------------


class Stop(Exception):
    """A part has failed and said so."""


class Parts:
    """Counts the parts of a test. One that fails ends the test, unless told to go on."""

    def __init__(self, goes_on):
        self.goes_on, self.passed, self.failed = goes_on, 0, 0

    @contextlib.contextmanager
    def __call__(self, name):
        begin = time.monotonic()
        try:
            yield
        except Exception as e:
            self.failed += 1
            what = str(e) if isinstance(e, Failed) else traceback.format_exc()[-600:]
            print("  FAILED %s: %s" % (name, what), flush=True)
            if not self.goes_on:
                raise Stop() from None
        else:
            self.passed += 1
            print("  ok %-58s %6.1f s" % (name, time.monotonic() - begin), flush=True)


def inside(name, goes_on):
    parts = Parts(goes_on)
    folder = os.path.join(OUT, "overlay-" + name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    interop.private_files(folder)
    try:
        with base.Lab(folder) as lab:
            TESTS[name](lab, parts)
    except Stop:
        pass
    except Exception as e:
        parts.failed += 1
        print("  FAILED outside its parts: %s" % (
            str(e) if isinstance(e, Failed) else traceback.format_exc()))
    print("%d passed, %d failed" % (parts.passed, parts.failed), flush=True)


def one(name, goes_on):
    """Runs a test in fresh namespaces; its name, output, and how many parts passed and failed."""
    words = interop.isolation() + [sys.executable, os.path.abspath(__file__), "--inside", name]
    begin = time.monotonic()
    try:
        out = subprocess.run(words + (["--keep-going"] if goes_on else []), timeout=TIMEOUT,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True).stdout
    except subprocess.TimeoutExpired as e:
        out = (e.stdout or b"").decode(errors="replace") + "  FAILED: not done in time\n"
    m = re.search(r"^(\d+) passed, (\d+) failed$", out, re.M)
    passed, failed = map(int, m.groups()) if m else (len(re.findall("^  ok ", out, re.M)), 1)
    out = re.sub(r"^\d+ passed, \d+ failed\n", "", out, flags=re.M)
    print("overlay %s: %d passed, %d failed, %.0f s\n%s" % (
        name, passed, failed or passed == 0, time.monotonic() - begin, out), end="", flush=True)
    return passed, failed or int(passed == 0)


def build():
    """Our programs, unless somebody brings others."""
    if "OVERLAY_BIN" in os.environ:
        return
    for words in ([os.path.join(TOP, "tests/tools/lwip"), "source", "2.1"],
                  ["sh", os.path.join(TOP, "examples/lwip/build.sh"), "build/lwip-2.1-src", BIN]):
        if subprocess.run(words, cwd=TOP).returncode != 0:
            sys.exit("%s failed\n0 passed, 1 failed" % " ".join(words))


def main():
    args = argparse.ArgumentParser(usage=__doc__)
    args.add_argument("-k", action="append")
    args.add_argument("--list", action="store_true")
    args.add_argument("--keep-going", action="store_true")
    args.add_argument("--jobs", type=int, default=2)
    args.add_argument("--inside")
    args.add_argument("--do", nargs="+")
    args = args.parse_args()
    if args.do:
        globals()["do_" + args.do[0]](*args.do[1:])
        return
    if args.inside:
        inside(args.inside, args.keep_going)
        return
    if args.list:
        for name, f in TESTS.items():
            print("%-12s %s" % (name, f.__doc__))
        return
    why = interop.may_run()
    if why:
        sys.exit("%s\n0 passed, %d failed" % (why, len(TESTS)))
    build()
    names = [n for n in TESTS if not args.k or any(k in n for k in args.k)]
    together = [n for n in names if n not in ALONE]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        done = list(pool.map(lambda n: one(n, args.keep_going), together))
    done += [one(n, args.keep_going) for n in names if n in ALONE]
    failed = sum(f for _, f in done) + (not done)
    print("%d passed, %d failed" % (sum(p for p, _ in done), failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
