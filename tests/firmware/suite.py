"""The tests of the firmware. Each gets an empty Lab and a counter of parts."""

import os
import random
import re
import sys
import threading
import time

from device import BOARDS, HEADERS, TOP, Device, build
from lab import Failed, Headscale, check, icmp, run, udp, udp_echo, wait_for

TESTS = {}


def test(f):
    TESTS[f.__name__] = f
    return f


def tailnet(lab):
    """headscale at 443 and, in the clear, at 80: where a device with one TLS engine does its
    Noise. With it a key for everybody."""
    hs = Headscale(lab)
    lab.process("port80", ["socat", "TCP-LISTEN:80,bind=%s,fork,reuseaddr" % lab.hub,
                           "OPENSSL:%s:443,verify=0" % lab.hub])
    return hs, hs.auth_key("--reusable")


HEAP = re.compile(r"^_*(malloc|calloc|realloc|free|sbrk)(_r)?$")
RAM = {"modem": 65536, "main": 98304}
FLASH = {"modem": 131072, "main": 163840}


def budget(program):
    """The image for the Cortex-M4 with exactly the memory that it may have."""
    return build("mps2-an386", program, name="budget-" + program, RAMLEN=RAM[program])


def firmware(board):
    """The image with lwIP for a board."""
    return budget("main") if board == "mps2-an386" else build(board)


def two_engines():
    """The image without lwIP that has a TLS engine for control and one for the relay."""
    return build("mps2-an386", "modem", name="modem-tls2", DEFINES="-DMAX_TLS=2")


def sections(path):
    """Bytes per section by the linker map."""
    with open(path) as f:
        found = re.findall(r"^(\.text|\.data|\.bss)\s+0x[0-9a-f]+\s+0x([0-9a-f]+)", f.read(), re.M)
    return {name: int(size, 16) for name, size in found}


REPORT = {"report-ms": 1000}                             # says now and then how deep its stack was
STATIC = {"ip": "10.0.2.15", "gateway": "10.0.2.2"}     # of QEMU's user network; saves DHCP


@test
def images(lab, part):
    """What the images take, from the linker map; no allocator is in them."""
    for board in BOARDS:
        with part("%s: it builds" % board):
            image = firmware(board)
        figures(board, image)
    with part("control inside TLS too: it builds"):
        image = two_engines()
    figures("mps2-an386 without lwIP, control inside TLS too", image)
    for program, what in (("modem", "without lwIP"), ("main", "with lwIP")):
        ram, flash = RAM[program], FLASH[program]
        with part("%s: it links into %d KiB of memory" % (what, ram // 1024)):
            image = budget(program)
        taken = figures("mps2-an386 " + what, image, ram)
        with part("%s: no allocator is linked" % what):
            names = run(["arm-none-eabi-nm", image]).stdout.split()
            found = [n for n in names if HEAP.match(n)]
            check(not found, "the image has %s" % found)
        with part("%s: %d KiB of flash are enough" % (what, flash // 1024)):
            check(taken <= flash, "%d are %d too many" % (taken, taken - flash))


def figures(what, image, ram=None):
    """Prints what an image takes and returns its flash."""
    sizes = sections(image[:-4] + ".map")
    flash, static = sizes[".text"] + sizes[".data"], sizes[".data"] + sizes[".bss"]
    rest = "" if ram is None else ", left for the stack %d of %d" % (ram - static, ram)
    print("    %s: flash %d, static memory %d%s" % (what, flash, static, rest))
    return flash


TCP_CLIENT = r"""
import socket, sys
s = socket.create_connection((sys.argv[1], 7), 10)
s.settimeout(20)
sent = bytes(i * 7 & 255 for i in range(int(sys.argv[2])))
got, left = b"", sent
while len(got) < len(sent):
    if left:
        left = left[s.send(left[:1000]):]
    got += s.recv(4000)
s.shutdown(socket.SHUT_WR)
print("same" if got == sent and s.recv(1) == b"" else "differs")
"""


def tcp_echo(go, ip, size=20000):
    """Bytes to the device and back through TCP, and a close from both sides."""
    done = go.run(sys.executable, "-c", TCP_CLIENT, ip, str(size), timeout=60, ok=False)
    check(done.stdout.strip() == "same", "TCP echo: %s %s" % (done.stdout, done.stderr[-300:]))


def answers_through_relay(d, far, part, tcp=True):
    """What a peer that only has relays gets."""
    with part("%s: ping through the relay" % d.host):
        far.wait_peer(d.ip4)
        wait_for("answers", lambda: icmp(far, d.ip4, 3) == 3, 30)
    with part("%s: tailscale ping through the relay" % d.host):
        wait_for("a pong", lambda: "via DERP(lab)" in far.ping(d.ip4, timeout=3), 30)
    with part("%s: UDP echo through the relay" % d.host):
        wait_for("answers", lambda: udp(far, d.ip4, count=3) == 3, 30)
    if tcp:
        with part("%s: TCP echo through the relay" % d.host):
            tcp_echo(far, d.ip4)


def answers_directly(d, near, part, tcp=True):
    """What a peer that uses UDP gets."""
    with part("%s: tailscale ping directly" % d.host):
        near.wait_peer(d.ip4)
        wait_for("a pong from %s" % d.address, lambda: "via %s:" % d.address in near.ping(
            d.ip4, timeout=3), 30, 0.5)
    with part("%s: ping directly" % d.host):
        wait_for("answers", lambda: icmp(near, d.ip4, 3) == 3, 30)
    with part("%s: UDP echo directly" % d.host):
        wait_for("answers", lambda: udp(near, d.ip4, count=3) == 3, 30)
    if tcp:
        with part("%s: TCP echo directly" % d.host):
            tcp_echo(near, d.ip4)
    with part("%s: all of it stayed direct" % d.host):
        check("via %s:" % d.address in near.ping(d.ip4, timeout=3), "the way is another now")


def peers_of(lab, hs, key):
    """An official client that only has relays, and one that uses UDP."""
    far, near = lab.official("far"), lab.official("near", relay_only=False)
    return far.up(hs, key), near.up(hs, key)


@test
def boards(lab, part):
    """Each board joins headscale and answers, through the relay and directly."""
    images = {}
    for board in BOARDS:
        with part("%s: it builds" % board):
            images[board] = firmware(board)
    hs, key = tailnet(lab)
    far, near = peers_of(lab, hs, key)
    for board in BOARDS:
        d = Device(lab, board, images[board], board=board, **REPORT)
        with part("%s: it joins" % board):
            d.start(hs, key).wait_running(60)
        answers_through_relay(d, far, part)
        answers_directly(d, near, part)
        with part("%s: 6 KiB of stack are enough" % board):
            check(0 < d.deepest() <= 6144, "%d" % d.deepest())
        print("    deepest stack: %d" % d.deepest())
        d.power_off()


@test
def modem(lab, part):
    """The device without lwIP, its sockets in a modem: the same, but TCP."""
    with part("it builds"):
        image = budget("modem")
    hs, key = tailnet(lab)
    far, near = peers_of(lab, hs, key)
    d = Device(lab, "gadget", image, program="modem", **REPORT)
    with part("gadget: it joins"):
        d.start(hs, key).wait_running(60)
    answers_through_relay(d, far, part, tcp=False)
    answers_directly(d, near, part, tcp=False)
    with part("gadget: its stack has room in 64 KiB"):
        sizes = sections(image[:-4] + ".map")
        room = RAM["modem"] - sizes[".data"] - sizes[".bss"]
        check(0 < d.deepest() < room, "%d of %d" % (d.deepest(), room))
    print("    deepest stack: %d of %d" % (d.deepest(), room))
    with part("gadget: IPv6 ping"):
        wait_for("answers", lambda: icmp(near, hs.node("gadget")["ip_addresses"][1], 3) == 3, 20)
    d.power_off()
    d = Device(lab, "private", two_engines(), program="modem", **{"control-tls": 1})
    with part("private: it joins, control inside TLS too"):
        d.start(hs, key).wait_running(60)
    with part("private: ping through the relay"):
        far.wait_peer(d.ip4)
        wait_for("answers", lambda: icmp(far, d.ip4, 3) == 3, 30)


@test
def instructions(lab, part):
    """Instructions until it runs, and of a handshake, on the Cortex-M4."""
    image = budget("main")
    hs, key = tailnet(lab)
    far = lab.official("far").up(hs, key)
    udp_echo(lab, far)
    d = Device(lab, "counted", image, call=far.ip4, **STATIC, **{
        "call-after-ms": 4000, "relay-only": 1})
    with part("it joins"):
        d.start(hs, key, icount="shift=0").wait_running(60)
    print("    boot to running: %.1f million instructions" % (d.busy / 1e6))
    with part("a handshake and an answer: at most 8.5 million instructions"):
        ms, busy, stack = d.wait_answered(60)
        print("    handshake, both messages and both data packets: %.2f million" % (busy / 1e6))
        check(busy <= 8500000, "%d" % busy)


class Resets:
    """One device that is cut off at random moments, and what has to hold after each."""

    def __init__(self, lab, d, seed, words):
        self.lab, self.d, self.words = lab, d, words
        self.random = random.Random(seed)
        self.cuts = self.in_flash = self.answers = self.joined = 0
        self.ip4 = None
        self.wrong = []

    def look(self, new=False):
        """What it said since its newest start. Of a device that is new the peer may not have
        heard yet."""
        text = self.d.said()
        m = re.search(r"^running ([\d.]+) ", text, re.M)
        if m:
            self.joined += 1
            self.ip4 = self.ip4 or m.group(1)
            if m.group(1) != self.ip4:
                self.wrong.append("the address was %s and is %s" % (self.ip4, m.group(1)))
        m = re.search(r"^answered ms (\d+) ", text, re.M)
        if m:
            self.answers += 1
            # A handshake that is refused is begun anew after five seconds.
            if int(m.group(1)) >= 4500 and not new:
                self.wrong.append("the first handshake was refused: %s ms" % m.group(1))
        for bad in ("fault", "MALFORMED", "saved state", "flash"):
            if "\n" + bad in text.split("\n", 3)[-1]:
                self.wrong.append("it says " + text[-200:])

    def begin(self):
        """The first start, undisturbed: how long it takes here until a peer has answered."""
        begin = time.monotonic()
        self.d.start(power_fails=0)
        self.d.wait_answered(60)
        self.took = min(time.monotonic() - begin, 4.0)
        self.look(new=True)
        self.d.power_off()

    def cut(self):
        """Runs it for a random while; then it is off, or reset and off a while later."""
        r, d = self.random, self.d
        d.start(power_fails=r.randrange(1, self.words) if r.random() < 0.5 else 0)
        self.wait_while_on(r.uniform(0.05, 1.4 * self.took))
        if r.random() < 0.3:
            self.look()
            if d.reset():
                self.cuts += 1
                self.wait_while_on(r.uniform(0.05, 1.2 * self.took))
        if not d.process.alive():
            if d.process.child.returncode == 77:
                self.in_flash += 1
            else:
                self.wrong.append("it ended with %s" % d.process.child.returncode)
        self.look()
        d.power_off()
        self.cuts += 1

    def wait_while_on(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.d.process.alive():
            time.sleep(0.02)

    def run(self, count):
        try:
            self.begin()
            while self.cuts < count and not self.wrong:
                self.cut()
            self.d.start(power_fails=0)
            self.d.wait_answered(60)
            self.look()
            self.d.power_off()
        except Failed as e:
            self.wrong.append(str(e))


@test
def resets(lab, part):
    """A hundred resets at any moment, some inside a write of the flash."""
    images = {b: firmware(b) for b in ("mps2-an386", "virt")}
    hs, key = tailnet(lab)
    far = lab.official("far").up(hs, key)
    udp_echo(lab, far)
    both = []
    for board, seed, words in (("mps2-an386", 1, 1200), ("virt", 2, 90)):
        d = Device(lab, board, images[board], board=board, call=far.ip4, **STATIC)
        d.settings["control"] = hs.url
        d.settings["authkey"] = lab.write("authkey", key)
        both.append(Resets(lab, d, seed, words))
    threads = [threading.Thread(target=r.run, args=(50,)) for r in both]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for r in both:
        print("    %s: %d resets, %d of them inside a flash write; joined %d times, %d answers" % (
            r.d.host, r.cuts, r.in_flash, r.joined, r.answers))
        with part("%s: the same address after each reset, no handshake refused" % r.d.host):
            check(not r.wrong, "; ".join(r.wrong))
            check(r.cuts >= 50 and r.answers > 10 and r.in_flash > 3, "too few of each")
        with part("%s: headscale knows it once" % r.d.host):
            known = [n for n in hs.nodes() if n["name"].startswith(r.d.host)]
            check(len(known) == 1, "%d entries" % len(known))


@test
def day(lab, part):
    """A day in the firmware's own time, in a minute of ours."""
    image = budget("modem")
    program = lab.folder + "/day"
    run(["cc", "-std=c99", "-O2", "-w", "-I" + HEADERS, "-I" + TOP + "/tests/unit",
         TOP + "/tests/firmware/day.c", "-lbearssl", "-o", program], timeout=300)
    d = Device(lab, "gadget", image, program="modem", control="http://control.test",
               authkey=lab.write("key", "key-1"), lockstep=1, **{"tls-by-modem": 1,
                                                                "report-ms": 3600000})
    d.modem = lab.process("day", [program, d.modem_path(), "24"])
    wait_for("the world is there", lambda: os.path.exists(d.modem_path()))
    with part("24 hours: an echo each hour, losses of both links, keys that expire"):
        d.start(icount="shift=0,sleep=off")
        code = d.modem.wait(200)
        print("    " + d.modem.logged().strip().splitlines()[-2])
        check(code == 0, d.modem.logged()[-500:])
    with part("its memory is as deep at the end as in the first hours"):
        depth = [int(n) for n in re.findall(r"^running .* stack (\d+)$", d.said(), re.M)]
        check(len(depth) > 20 and depth[-1] == depth[len(depth) // 2], str(depth))
        print("    deepest stack: %d" % depth[-1])
