#!/usr/bin/env python3
"""Port mapping with a real router daemon: portmap.c obtains, renews and releases a
mapping by PCP, NAT-PMP and UPnP from miniupnpd.

    portmap.py

Three namespaces: outside 5.5.5.1 (the daemon hands out no ports at addresses that are
not public), the gateway 5.5.5.2 and 192.168.77.1, the device 192.168.77.20. Logs lie in
build/portmap. Ends with "N passed, N failed"."""

import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUT = os.path.join(TOP, "build/portmap")
PROGRAM = os.path.join(OUT, "portmap")
NEEDS = (("miniupnpd", "miniupnpd miniupnpd-nftables"), ("nft", "nftables"), ("ip", "iproute2"),
         ("cc", "gcc"), ("unshare", "util-linux"))
WAN, LAN, PORT = "5.5.5.2", "192.168.77.1", 41641
DEVICE, OTHER = "192.168.77.20", "192.168.77.21"

RULES = """
table inet filter {
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname "lan" accept
        jump miniupnpd
    }
    chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
    chain postrouting {
        type nat hook postrouting priority 100;
        jump postrouting_miniupnpd
        oifname "wan" masquerade
    }
    chain miniupnpd { }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
}
"""
CONFIG = """
ext_ifname=wan
listening_ip=lan
ipv6_disable=yes
enable_natpmp=yes
enable_upnp=yes
http_port=5000
secure_mode=yes
system_uptime=no
uuid=00000000-0000-0000-0000-000000000000
force_igd_desc_v1=%s
allow 1024-65535 192.168.77.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


class Failed(Exception):
    pass


def check(true, why):
    if not true:
        raise Failed(why)


def run(*words, ns=None, data=None):
    words = (["ip", "netns", "exec", ns] if ns else []) + list(words)
    done = subprocess.run(words, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=20)
    check(done.returncode == 0, "%s: %s" % (" ".join(words), done.stdout.strip()))
    return done.stdout


class Daemon:
    def __init__(self, name, igd1=False):
        self.config = os.path.join(OUT, name + ".conf")
        self.log = os.path.join(OUT, name + ".log")
        with open(self.config, "w") as f:
            f.write(CONFIG % ("yes" if igd1 else "no"))
        self.start()

    def start(self):
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", "gateway", "miniupnpd", "-d", "-f", self.config,
                 "-P", "/run/miniupnpd.pid"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + 10
        while "5351" not in run("ss", "-lun", ns="gateway"):
            check(self.process.poll() is None and time.monotonic() < end,
                  "miniupnpd does not start, see " + self.log)
            time.sleep(0.05)

    def stop(self):
        self.process.kill()
        self.process.wait()


def rules():
    """The mappings in the gateway's tables."""
    text = run("nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd", ns="gateway")
    return re.findall(r"dport (\d+) .*dnat ip to ([0-9.]+:\d+)", text)


def forget():
    for chain in ("prerouting_miniupnpd", "postrouting_miniupnpd", "miniupnpd"):
        run("nft", "flush", "chain", "inet", "filter", chain, ns="gateway")


class Device:
    """portmap in the device's namespace, and its lines."""

    def __init__(self, way, own=DEVICE):
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", "device", PROGRAM, LAN, own, str(PORT), way],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines, self.seen = queue.Queue(), []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.strip())

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait(self, pattern, timeout=8.0):
        """The next line like this; its groups."""
        end = time.monotonic() + timeout
        while True:
            try:
                line = self.lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise Failed("no line like '%s'; there were: %s" % (
                    pattern, ", ".join(self.seen[-12:]))) from None
            self.seen.append(line)
            m = re.fullmatch(pattern, line)
            if m:
                return m.groups()

    def stop(self):
        self.process.kill()
        self.process.wait()


def outside(text, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(text.encode(), (WAN, port))


def one_way(way, bit, part, igd1=False):
    """All that one protocol has to show."""
    name = way + ("-igd1" if igd1 else "")
    daemon, device = Daemon(name, igd1), None
    external = {}
    try:
        device = Device(way)

        def obtain():
            services, = device.wait(r"services (\d+)")
            check(int(services) == (8 | bit), "services %s" % services)
            ip, port = device.wait(r"mapped ([0-9.]+):(\d+)")
            check(ip == WAN, "mapped at " + ip)
            external["port"] = int(port)
            check(rules() == [(port, "%s:%d" % (DEVICE, PORT))], "rules: %s" % rules())

        def reach(text="hello"):
            outside(text, external["port"])
            device.wait("got " + text)

        def renew():
            device.say("skip 3600")
            device.wait("state (map|ask)")
            device.wait("state held")
            check(len(rules()) == 1, "rules: %s" % rules())
            reach("renewed")

        def restart():
            daemon.stop()
            forget()
            check(rules() == [], "rules are left")
            daemon.start()
            device.say("skip %d" % (3600 if way == "upnp" else 600))
            device.wait("state (map|ask)")
            device.wait("state held")
            check(rules() == [(str(external["port"]), "%s:%d" % (DEVICE, PORT))], str(rules()))
            reach("again")

        def move():
            device.say("network %d" % (PORT + 1))
            device.wait("lost")
            external["port"] = int(device.wait(r"mapped [0-9.]+:(\d+)")[0])
            check(rules() == [(str(external["port"]), "%s:%d" % (DEVICE, PORT + 1))], str(rules()))
            reach("moved")

        def release():
            device.say("release")
            device.wait("state idle")
            end = time.monotonic() + 3
            while rules() and time.monotonic() < end:
                time.sleep(0.05)
            check(rules() == [], "rules: %s" % rules())

        for what in (obtain, reach, renew, restart, move, release):
            part("%s %s" % (name, what.__name__), what)
    finally:
        for thing in (device, daemon):
            if thing:
                thing.stop()
        forget()


def conflict(part):
    """Another device has our port: UPnP finds a free one."""
    daemon, devices = Daemon("conflict"), []
    try:
        devices.append(Device("pmp", OTHER))
        devices[0].wait("mapped %s:%d" % (WAN, PORT))
        devices.append(Device("upnp"))

        def elsewhere():
            port = int(devices[1].wait(r"mapped [0-9.]+:(\d+)")[0])
            check(port != PORT and len(rules()) == 2, "mapped at the other's port")
            outside("second", port)
            devices[1].wait("got second")
            outside("first", PORT)
            devices[0].wait("got first")

        part("upnp conflict", elsewhere)
    finally:
        for thing in devices + [daemon]:
            thing.stop()
        forget()


def nobody(part):
    """No daemon at all: the machine pauses and says nothing is there."""
    device = Device("pcp")

    def nothing():
        device.wait("state wait")
        check(device.wait(r"services (\d+)")[0] == "8", "a service was found")

    try:
        part("no daemon", nothing)
    finally:
        device.stop()


def lay_out():
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    os.makedirs("/run/netns")
    for ns in ("gateway", "device"):
        run("ip", "netns", "add", ns)
        run("ip", "link", "set", "lo", "up", ns=ns)
    run("ip", "link", "add", "wan", "type", "veth", "peer", "name", "wan", "netns", "gateway")
    run("ip", "link", "add", "lan", "netns", "gateway", "type", "veth", "peer", "name", "lan",
        "netns", "device")
    for ns, dev, address in ((None, "wan", "5.5.5.1/24"), ("gateway", "wan", WAN + "/24"),
                             ("gateway", "lan", LAN + "/24"), ("device", "lan", DEVICE + "/24"),
                             ("device", "lan", OTHER + "/24")):
        run("ip", "address", "add", address, "dev", dev, ns=ns)
        run("ip", "link", "set", dev, "up", ns=ns)
    run("ip", "route", "add", "default", "via", LAN, ns="device")
    run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward", ns="gateway")
    run("nft", "-f", "-", ns="gateway", data=RULES)


def inside():
    count = [0, 0]

    def part(name, what):
        try:
            what()
            count[0] += 1
            print("ok %s" % name, flush=True)
        except Failed as e:
            count[1] += 1
            print("FAILED %s: %s" % (name, e), flush=True)
            raise

    lay_out()
    for test in (lambda: one_way("pcp", 1, part), lambda: one_way("pmp", 2, part),
                 lambda: one_way("upnp", 4, part), lambda: one_way("upnp", 4, part, igd1=True),
                 lambda: conflict(part), lambda: nobody(part)):
        try:
            test()
        except Failed as e:
            if count[1] == 0:
                count[1] += 1
                print("FAILED outside its parts: %s" % e)
    print("portmap: %d passed, %d failed" % tuple(count))
    return 1 if count[1] else 0


def main():
    if "--inside" in sys.argv:
        sys.exit(inside())
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [package for program, package in NEEDS if not shutil.which(program)]
    if missing:
        print("missing; to install:\n    DEBIAN_FRONTEND=noninteractive apt-get install -y " +
              " ".join(missing) + " libbearssl-dev")
        print("portmap: 0 passed, 1 failed")
        sys.exit(1)
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    cc = ["cc", "-std=c99", "-O1", "-g"] + os.environ.get("CFLAGS", "").split()
    subprocess.run(cc + ["-I.", "tests/interop/portmap.c", "-lbearssl", "-o", PROGRAM],
                   cwd=TOP, check=True)
    isolation = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        isolation += ["--user", "--map-root-user"]
    sys.exit(subprocess.run(isolation + [sys.executable, os.path.abspath(__file__), "--inside"],
                            timeout=300).returncode)


if __name__ == "__main__":
    main()
