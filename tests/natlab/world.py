"""Networks for the NAT lab: an internet of one bridge, and sites behind routers.

The bridge (203.0.113.0/24, 2001:db8:113::/64) is the internet: control server, relay
and STUN answer at its first address. A site is a network of nodes behind a router
that does to packets what its kind says. Every node has a namespace of its own."""

import contextlib
import ctypes
import http.client
import json
import os
import socket
import subprocess
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../interop"))

import lab as base                                                      # noqa: E402
from lab import Failed, check, run, wait_for                            # noqa: E402

HUB, HUB6 = "203.0.113.1", "2001:db8:113::1"
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def inside(ns):
    """Sockets that this thread makes meanwhile belong to the namespace."""
    with open("/proc/thread-self/ns/net") as home, open("/run/netns/" + ns) as away:
        check(LIBC.setns(away.fileno(), CLONE_NEWNET) == 0, "cannot enter %s" % ns)
        try:
            yield
        finally:
            check(LIBC.setns(home.fileno(), CLONE_NEWNET) == 0, "cannot leave %s" % ns)


def shell(script, ns=None):
    """Runs lines of shell, all of which have to succeed."""
    run(["sh", "-euc", script], ns=ns)


def create(ns, device, v6, script, where=None):
    """Runs what makes a device in a namespace; without v6 it never speaks IPv6."""
    flag = "sysctl -qw net.ipv6.conf.default.disable_ipv6=%d"
    shell(flag % (0 if v6 else 1), ns)
    shell(script, where)
    shell(flag % 0, ns)


def nft(ns, script):
    words = ["ip", "netns", "exec", ns, "nft", "-f", "-"]
    done = subprocess.run(words, input=script + "\n", text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    check(done.returncode == 0, "nft: %s" % done.stdout)


# What a router does. Unasked packets end at its outer side: otherwise a peer's early
# packet is taken for the router itself, and the NAT would look harder than it is.
STATEFUL = """
table inet gate {
    chain input {
        type filter hook input priority 0;
        iifname "wan" ct state established,related accept
        iifname "wan" meta l4proto { icmp, icmpv6 } accept
        iifname "wan" drop
    }
    chain forward {
        type filter hook forward priority 0;
        %s
        iifname "wan" ct state established,related accept
        iifname "wan" drop
    }
}
"""
MASQUERADE = """
table ip nat {
    chain post {
        type nat hook postrouting priority srcnat;
        oifname "wan" masquerade %s
    }
}
"""
NO_UDP = "meta l4proto udp drop"
ONLY_443 = 'oifname "wan" tcp dport 443 accept; oifname "wan" drop'
RULES = {
    "easy": STATEFUL % "" + MASQUERADE % "",
    "hard": STATEFUL % "" + MASQUERADE % "random,fully-random",
    "blocked": STATEFUL % NO_UDP + MASQUERADE % "",
    "only443": STATEFUL % ONLY_443 + MASQUERADE % "",
}
# An IPv6-only host has a firewall like everybody else, on itself.
HOST_FIREWALL = """
table inet gate {
    chain input {
        type filter hook input priority 0;
        iifname "eth0" ct state established,related accept
        iifname "eth0" meta l4proto icmpv6 accept
        iifname "eth0" drop
    }
}
"""


class World(base.Lab):
    """The internet, and the sites on it."""

    hub, hub6, port = HUB, HUB6, 443

    def __init__(self, folder, stand_in=False):
        super().__init__(folder, stand_in)
        self.next_host, self.next_port, self.next_net = 20, 41700, 1
        self.routers = 0

    def __enter__(self):
        super().__enter__()
        # Ports of a bridge have no words of their own to say.
        shell("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 "
              "net.ipv6.conf.default.disable_ipv6=1")
        # Of the traffic between two nodes on the bridge the filters have nothing to say.
        with contextlib.suppress(Failed):
            shell("sysctl -qw net.bridge.bridge-nf-call-iptables=0")
        return self

    def attach(self, ns, device, v4=True, v6=False):
        """Plugs a namespace into the bridge: its addresses there."""
        n = self.next_host
        self.next_host += 1
        a4, a6 = "203.0.113.%d" % n, "2001:db8:113::%x" % (n + 0x1000)
        create(ns, device, v6, "ip link add b%d type veth peer name %s netns %s\n"
               "ip link set b%d master br0 up" % (n, device, ns, n))
        inner = ["ip link set lo up", "ip link set %s up" % device]
        if v4:
            inner += ["ip address add %s/24 dev %s" % (a4, device),
                      "ip route add default via %s" % HUB]
        if v6:
            inner += ["ip address add %s/64 dev %s nodad" % (a6, device),
                      "ip route add default via %s" % HUB6]
        shell("\n".join(inner), ns)
        return a4, a6

    def node_namespace(self):
        n = self.next_node
        self.next_node += 1
        run(["ip", "netns", "add", "n%d" % n])
        return "n%d" % n

    def namespace(self):
        """A node without a router, as in base.Lab."""
        ns = self.node_namespace()
        return ns, self.attach(ns, "eth0")[0]

    def udp_port(self):
        """A port of its own for every node, so that easy NATs can keep it."""
        self.next_port += 1
        return self.next_port


class Site:
    """Where nodes live: a place without a router. Kind is none, v6 or a kind of
    Router. namespace() gives a place for one more node."""

    def __init__(self, world, name, kind="none"):
        self.world, self.name, self.kind = world, name, kind

    def namespace(self):
        if self.kind != "v6":
            return self.world.namespace()
        ns = self.world.node_namespace()
        address = self.world.attach(ns, "eth0", v4=False, v6=True)[1]
        nft(ns, HOST_FIREWALL)
        return ns, address


class Router:
    """A site behind a NAT of some kind; with `outer`, behind that one as well. With v6
    the network has IPv6 addresses of the internet, behind a firewall."""

    def __init__(self, world, name, kind, outer=None, v6=False, udp_timeout=None):
        self.world, self.name, self.kind, self.v6 = world, name, kind, v6
        self.number = world.next_net
        world.next_net += 1
        self.ns = "r%d" % self.number
        self.hosts = 9
        run(["ip", "netns", "add", self.ns])
        if outer:
            outer.plug(self.ns, "wan")
        else:
            self.address, self.address6 = world.attach(self.ns, "wan", v6=v6)
        shell("""
            ip link set lo up
            # With an address of its own; else it changes with the ports, unknown to the nodes.
            ip link add lan address 02:00:c0:a8:%02x:01 type bridge mcast_snooping 0
            sysctl -qw net.ipv6.conf.lan.disable_ipv6=%d net.ipv6.conf.default.disable_ipv6=1
            ip address add 192.168.%d.1/24 dev lan
            ip link set lan up
            sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
        """ % (self.number, 0 if v6 else 1, self.number), self.ns)
        nft(self.ns, RULES[kind])
        if v6:
            self._route6()
        if udp_timeout:
            shell("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=%d "
                  "net.netfilter.nf_conntrack_udp_timeout_stream=%d" % (
                      udp_timeout, udp_timeout), self.ns)

    def _route6(self):
        """The internet routes a network of IPv6 addresses to us."""
        self.net6 = "2001:db8:%x::" % (0x1000 + self.number)
        shell("ip address add %s1/64 dev lan nodad" % self.net6, self.ns)
        shell("ip route add %s/64 via %s" % (self.net6, self.address6))

    def plug(self, ns, device):
        """Attaches a namespace to the network inside: its address."""
        self.hosts += 1
        address = "192.168.%d.%d" % (self.number, self.hosts)
        create(ns, device, self.v6, """
            ip link add h%d type veth peer name %s netns %s
            ip link set h%d master lan up
        """ % (self.hosts, device, ns, self.hosts), self.ns)
        inner = ["ip link set lo up", "ip link set %s up" % device,
                 "ip address add %s/24 dev %s" % (address, device),
                 "ip route add default via 192.168.%d.1" % self.number]
        if self.v6:
            inner += ["ip address add %s%x/64 dev %s nodad" % (self.net6, self.hosts, device),
                      "ip route add default via %s1" % self.net6]
        shell("\n".join(inner), ns)
        return address

    def namespace(self):
        ns = self.world.node_namespace()
        return ns, self.plug(ns, "eth0")


# ---- nodes ---------------------------------------------------------------------------


class Go(base.GoNode):
    """The official client, asked through its socket rather than by a program."""

    letter = "G"

    def __init__(self, world, place, host, **more):
        self.port = world.udp_port()
        super().__init__(world, host, place=place, port=self.port, **dict(
            {"relay_only": False}, **more))
        self.place = place

    def ask(self, path, method="GET", timeout=10):
        """One request to its local interface."""
        c = http.client.HTTPConnection("local-tailscaled.sock", timeout=timeout)
        c.sock = socket.socket(socket.AF_UNIX)
        c.sock.settimeout(timeout)
        c.sock.connect(self.socket)
        try:
            c.request(method, "/localapi/v0/" + path)
            return c.getresponse().read()
        finally:
            c.close()

    def status(self):
        return json.loads(self.ask("status"))

    def path(self, other):
        """(direct or relay, its address) as it says itself."""
        p = self.peer(other.ip4) or {}
        if p.get("CurAddr"):
            return "direct", p["CurAddr"]
        return ("relay", p.get("Relay")) if p.get("Relay") else ("none", "")


class Ours(base.OurNode):
    """tailnetd with a TUN device, and UDP allowed."""

    letter = "o"

    def __init__(self, world, place, host, **more):
        self.port = world.udp_port()
        super().__init__(world, host, **dict(
            {"tun": "tun0", "relay_only": False, "place": place, "port": self.port}, **more))
        self.place, self.paths = place, {}

    def _take(self, event):
        # One event for each peer whose path changes.
        if event.get("event") == "path":
            with self.lock:
                self.paths[event.get("peer", "").split(".")[0]] = event
        super()._take(event)

    def path(self, other):
        """(direct or relay, its address) as it says itself."""
        if other.host in self.paths:
            p = self.paths[other.host]
            return p.get("path", "none"), p.get("endpoint", "")
        for p in (self.event("paths") or {}).get("peers", []):
            if p.get("name", "").split(".")[0] == other.host:
                return p.get("path", "none"), p.get("endpoint", "")
        return "none", ""


def join_all(nodes, control, key, workers=6):
    """Brings nodes up side by side; the first trouble is raised."""
    left, troubles, lock = list(nodes), [], threading.Lock()

    def work():
        while True:
            with lock:
                if not left or troubles:
                    return
                node = left.pop(0)
            try:
                node.up(control, key)
            except Exception as e:
                troubles.append(e)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if troubles:
        raise troubles[0]


def wait_all_see(nodes, timeout=40):
    """Every node has every other in its list, with the region where it is at home."""
    names = {n.host for n in nodes}

    def seen(node):
        if isinstance(node, Go):
            return {p["DNSName"].split(".")[0]
                    for p in (node.status().get("Peer") or {}).values() if p.get("Relay")}
        return {p.get("name", "").split(".")[0]
                for p in (node.event("peers") or {}).get("peers", []) if p.get("region")}
    for node in nodes:
        wait_for("%s sees all others" % node.host,
                 lambda n=node: names - {n.host} <= seen(n), timeout)
