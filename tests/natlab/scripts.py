"""Tests of the NAT lab beside the matrix: modes, changes of the network, relays.

Where it makes sense the same is done to two official clients and to pairs with ours,
in the same run; what they need is printed side by side."""

import collections
import os
import socket
import struct
import sys
import time

from lab import Headscale, Relay, check, icmp, run, wait_for
from measure import Cable, Measurement, bytes_on_wire, udp_payload
from world import (HUB, RULES, Go, Ours, Router, Site, inside, join_all, nft, shell,
                   wait_all_see)

TESTS = {}
TIMEOUT = {}
ONLY_OURS = set()


def test(timeout=None, only_ours=False):
    def register(f):
        TESTS[f.__name__] = f
        if timeout:
            TIMEOUT[f.__name__] = timeout
        if only_ours:
            ONLY_OURS.add(f.__name__)
        return f
    return register


# ---- pairs of nodes ------------------------------------------------------------------


KINDS = {"Go-Go": (Go, Go), "ours-Go": (Ours, Go), "Go-ours": (Go, Ours), "ours-ours": (Ours, Ours)}


def make_pairs(world, options, a, b, kinds=None, **more):
    """[(label, node at a, node at b)]; each pair has nodes of its own."""
    made = []
    for label in kinds or KINDS:
        if options.go_only and label != "Go-Go":
            continue
        x, y = KINDS[label]
        n = len(made)
        name = "%s-%%s%d" % (label.lower().replace("-", ""), world.next_node + n)
        made.append((label, x(world, a, name % "x", **(more if x is Ours else {})),
                     y(world, b, name % "y", **(more if y is Ours else {}))))
    return made


def nodes_of(pairs):
    return [n for p in pairs for n in p[1:]]


def join(world, nodes, **more):
    hs = Headscale(world, by_name=True, **more)
    join_all(nodes, hs, hs.auth_key("--reusable"))
    wait_all_see(nodes)
    return hs


class Flows:
    """A measurement that goes on for every pair, all side by side."""

    def __init__(self, pairs, tcp=True, limit=300.0):
        self.pairs = pairs
        self.flows = {label: Measurement(x, y, limit=limit, after=None, tcp=tcp).start()
                      for label, x, y in pairs}

    def wait_direct(self, since, timeout):
        """Until all pairs are direct, or time is over; {label: seconds or None}."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and not all(
                f.direct_since(since) for k, f in self.flows.items() if k != "relay-only"):
            time.sleep(0.05)
        return {k: (f.direct_since(since) or 0) - since if f.direct_since(since) else None
                for k, f in self.flows.items()}

    def wait_answers(self, timeout=20):
        for label, f in self.flows.items():
            wait_for("%s is answered" % label, lambda f=f: f.back, timeout)

    def gaps(self, since, until=None):
        return {k: f.longest_gap(since, until) for k, f in self.flows.items()}

    def backs(self, since):
        """Seconds until the first echo of a packet that was sent after that moment."""
        back = {}
        for k, f in self.flows.items():
            times = [f.back[n] for n, at in enumerate(list(f.sent_at))
                     if at >= since and n in f.back]
            back[k] = min(times) - since if times else None
        return back

    def end(self):
        for f in self.flows.values():
            f.end()
        return self.flows


def figures(title, values, unit="s"):
    print("  %-46s %s" % (title, "   ".join("%s %s" % (
        k, "-" if v is None else "%.2f %s" % (v, unit)) for k, v in values.items())), flush=True)


BUSY = 0.3      # seconds that a test may lose to others that run beside it


def within(values, limit, what, skip=("Go-Go",)):
    """Every pair with ours keeps to the limit; the official ones are only printed."""
    bad = {k: v for k, v in values.items() if k not in skip and (v is None or v > limit)}
    check(not bad, "%s: %s; at most %.1f s" % (what, ", ".join(
        "%s %s" % (k, "never" if v is None else "%.2f s" % v) for k, v in bad.items()), limit))


def tcp_is_whole(flows, part):
    with part("no TCP connection was lost", goes_on=True):
        bad = {k: f.tcp for k, f in flows.items() if f.tcp}
        check(not bad, str(bad))


# ---- changes of the network --------------------------------------------------------------


@test()
def blocked_silently(world, part, options):
    """The direct way is cut without a word, and opened again."""
    a, b = Router(world, "a", "easy"), Router(world, "b", "easy")
    pairs = make_pairs(world, options, a, b)
    with part("join"):
        join(world, nodes_of(pairs))
    flows = Flows(pairs)
    with part("direct"):
        figures("direct after", flows.wait_direct(time.monotonic(), 15))
        within(flows.wait_direct(0, 0), 1e9, "direct", skip=())
    time.sleep(2)
    with part("the flow goes on over the relay"):
        cut = time.monotonic()
        nft(a.ns, "table inet cut { chain f { type filter hook forward priority -10;"
                  " meta l4proto udp drop; }; }")
        time.sleep(16)
        gaps = flows.gaps(cut)
        figures("longest gap after the cut", gaps)
        within(gaps, 7.5, "longest gap")
    with part("UDP alone is no longer tried with data", goes_on=True):
        late = {k: flows.flows[k].gone_directly(x, cut + 12.5) for k, x, _ in pairs}
        print("  data packets still sent directly 12.5 s after the cut: %s" % late)
        check(all(n == 0 for k, n in late.items() if k != "Go-Go"), str(late))
    with part("direct again"):
        opened = time.monotonic()
        nft(a.ns, "delete table inet cut")
        again = flows.wait_direct(opened, 20)
        figures("direct again after", again)
        within(again, 10.0, "direct again")
        within(flows.gaps(opened), 1.0, "gap while it switches back")
    tcp_is_whole(flows.end(), part)


NEW_ADDRESS = """
ip address flush dev eth0 scope global
sleep 0.3
ip address add 192.168.%d.%d/24 dev eth0
ip route replace default via 192.168.%d.1
"""


def renumber(router, node):
    """Another address in the same network; the moment when it works."""
    router.hosts += 1
    shell(NEW_ADDRESS % (router.number, router.hosts, router.number), node.ns)
    return time.monotonic()


def move(router, node):
    """Out of one network, into another one."""
    shell("ip link delete eth0", node.ns)
    time.sleep(0.3)
    router.plug(node.ns, "eth0")
    return time.monotonic()


def changed(flows, pairs, change, where):
    """Does it to the first node of every pair; seconds until an answer came again."""
    backs, at = {}, {}
    time.sleep(1)
    for label, x, _ in pairs:
        at[label] = change(where, x)
        if change is move:
            flows.flows[label].plugged_anew(x)
    end = time.monotonic() + 12
    while len(backs) < len(at) and time.monotonic() < end:
        time.sleep(0.1)
        backs.update({k: v for k in at if k not in backs
                      for v in [flows.backs(at[k])[k]] if v is not None})
    return {k: backs.get(k) for k in at}


@test()
def network_change(world, part, options):
    """The address of a running node changes: traffic is back in under a second."""
    a, b, c, d = (Router(world, n, "easy") for n in "abcd")
    pairs = make_pairs(world, options, a, b)
    if not options.go_only:
        pairs += [("relay-only", Ours(world, a, "rx", relay_only=True), Go(world, b, "ry"))]
    with part("join"):
        join(world, nodes_of(pairs))
    flows = Flows(pairs)
    with part("a flow runs"):
        flows.wait_direct(time.monotonic(), 12)
        flows.wait_answers()
    for title, change, where in (("another address", renumber, a), ("another router", move, c),
                                 ("a third router", move, d)):
        with part("%s: back in under a second" % title, goes_on=True):
            backs = changed(flows, pairs, change, where)
            figures(title + ": answered again after", backs)
            # Where the official client moves it takes its own time.
            backs.pop("Go-ours", None)
            within(backs, 1.0 + BUSY, "answered again")
    with part("direct again at last", goes_on=True):
        now = time.monotonic()
        again = flows.wait_direct(now - 0.2, 15)
        again.pop("relay-only", None)
        figures("direct again after", again)
        within(again, 15, "direct")
    tcp_is_whole(flows.end(), part)


def forget_connections(ns):
    """Empties a router's table of connections: all NAT mappings are gone."""
    with inside(ns), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as s:
        # IPCTNL_MSG_CT_DELETE without attributes, with NLM_F_REQUEST | NLM_F_ACK
        s.sendto(struct.pack("=IHHIIBBH", 20, 1 << 8 | 2, 5, 1, 0, socket.AF_UNSPEC, 0, 0), (0, 0))
        error = struct.unpack_from("=i", s.recv(4096), 16)[0]
        check(error == 0, "conntrack is not emptied: %s" % os.strerror(-error))


@test()
def nat_rebinding(world, part, options):
    """The NAT forgets its mappings while a flow runs, an easy one and a hard one."""
    easy, hard = Router(world, "easy", "easy"), Router(world, "hard", "hard")
    far, none = Router(world, "far", "easy"), Site(world, "none")
    groups = {"easy": (easy, make_pairs(world, options, easy, far)),
              "hard": (hard, make_pairs(world, options, hard, none))}
    with part("join"):
        join(world, [n for _, pairs in groups.values() for n in nodes_of(pairs)])
    flows = {k: Flows(pairs) for k, (_, pairs) in groups.items()}
    for kind, (router, _) in groups.items():
        with part("%s NAT: the flow goes on" % kind, goes_on=True):
            flows[kind].wait_direct(time.monotonic() - 0.3, 15)
            within(flows[kind].wait_direct(0, 0), 1e9, "direct")
            at = time.monotonic()
            forget_connections(router.ns)
            time.sleep(10)
            gaps = flows[kind].gaps(at)
            figures("%s: longest gap" % kind, gaps)
            within(gaps, 7.5, "longest gap")
            again = flows[kind].wait_direct(at + 9, 12)
            figures("%s: direct again, from 9 s on, after" % kind, again)
            within(again, 12, "direct again")
        tcp_is_whole(flows[kind].end(), part)


def kinds_sent(node, cable, any_port=False):
    """What a node has sent by UDP, from its own port or any: counts by kind."""
    kinds = collections.Counter()
    for out, packet in cable.packets():
        udp = udp_payload(packet) if out else None
        if udp is None or (udp[0][1] != node.port and not any_port):
            continue
        kinds["disco" if udp[2][:6] == b"TS\xf0\x9f\x92\xac" else
              "STUN" if udp[2][4:8] == b"\x21\x12\xa4\x42" else
              "port mapping" if udp[1][1] in (5351, 1900) else "WireGuard"] += 1
    return dict(kinds)


@test(timeout=300)
def idle_and_back(world, part, options):
    """After 45 s without traffic no UDP any more; mappings of 30 s are gone by then, and
    the other side's first packet finds the direct way again."""
    a, b = Router(world, "a", "easy", udp_timeout=30), Router(world, "b", "easy", udp_timeout=30)
    pairs = make_pairs(world, options, a, b)
    with part("join"):
        join(world, nodes_of(pairs))
    flows = Flows(pairs, tcp=False)
    with part("direct"):
        within(flows.wait_direct(time.monotonic(), 15), 15, "direct", skip=())
        flows.end()
    cables = {n: Cable(n.ns) for n in nodes_of(pairs)}
    time.sleep(55)
    for cable in cables.values():
        collections.deque(cable.packets(), 0)
    with part("no UDP while idle", goes_on=True):
        time.sleep(30)
        sent = {n.host: kinds_sent(n, cable) for n, cable in cables.items()}
        print("  UDP packets between 55 and 85 s after the last traffic: %s" % sent)
        # What it asks the router for a port is between the two of them.
        check(not any(set(sent[n.host]) - {"port mapping"} for n in cables
                      if isinstance(n, Ours)), str(sent))
    # Now the other side begins.
    flows = Flows([(label, y, x) for label, x, y in pairs])
    with part("the peer's first packet finds the way", goes_on=True):
        times = flows.wait_direct(time.monotonic(), 20)
        figures("direct after", times)
        within(times, max(8.0, 1.2 * (times.get("Go-Go") or 0)), "direct")
    tcp_is_whole(flows.end(), part)


# ---- modes ---------------------------------------------------------------------------------


def seen_on(cable):
    """What a node sent and got: counts by (protocol, far address and port)."""
    seen = collections.Counter()
    for out, p in cable.packets():
        if p[0] >> 4 == 6:
            seen["IPv6"] += 1
            continue
        if p[0] >> 4 != 4:
            continue                        # ARP
        start = (p[0] & 15) * 4
        far = socket.inet_ntoa(p[16:20] if out else p[12:16])
        ports = struct.unpack_from("!HH", p, start) if p[9] in (6, 17) else (0, 0)
        seen["%s %s:%d" % ({6: "TCP", 17: "UDP", 1: "ICMP"}.get(p[9], p[9]), far,
                           ports[1 if out else 0])] += 1
    return seen


@test(only_ours=True)
def relay_only(world, part, options):
    """With --relay-only nothing but TCP/443 leaves the node, from start to end."""
    a, b = Router(world, "a", "easy"), Router(world, "b", "easy")
    ours, go = Ours(world, a, "ours", relay_only=True), Go(world, b, "go")
    cable = Cable(ours.ns)
    with part("join"):
        join(world, [ours, go])
    with part("traffic both ways"):
        for x, y in ((ours, go), (go, ours)):
            m = Measurement(x, y, limit=4.0).run()
            check(m.answered is not None and m.answered < 2.0, "answered: %s" % m.answered)
            check(m.direct is None and m.tcp is None, "direct %s, TCP %s" % (m.direct, m.tcp))
    with part("nothing but TCP to port 443 on the cable"):
        ours.stop()
        seen = seen_on(cable)
        print("  on the cable: %s" % ", ".join("%s: %d packets" % kv for kv in seen.items()))
        check(set(seen) == {"TCP %s:443" % HUB}, str(dict(seen)))


def second_uplink(node, first, second):
    """A second way out; the routes go on to name the first one."""
    shell("ip route del default", node.ns)
    second.plug(node.ns, "eth1")
    shell("""
        ip route replace default via 192.168.%d.1 dev eth0
        ip route add default via 192.168.%d.1 dev eth1 metric 500
    """ % (first.number, second.number), node.ns)


@test(only_ours=True)
def two_uplinks(world, part, options):
    """Peers are to be had directly only through the uplink that no route names."""
    a, b, far = Router(world, "a", "blocked"), Router(world, "b", "easy"), Site(world, "far")
    both = Ours(world, a, "both", extra=["--uplink", "eth1"])
    routes = Ours(world, a, "routes")
    go, peer = Go(world, far, "go"), Ours(world, far, "peer")
    for node in (both, routes):
        second_uplink(node, a, b)
    cables = {n: Cable(n.ns, "eth1") for n in (both, routes)}
    with part("join"):
        join(world, [both, routes, go, peer])
    for x, y in ((both, go), (peer, both)):
        with part("%s to %s: direct" % (x.host, y.host), goes_on=True):
            begin = time.monotonic()
            m = Measurement(x, y, limit=4.0).run()
            other = y if x is both else x
            print("  %s, first echo after %.3f s" % (both.path(other), m.answered or -1))
            check(both.path(other)[0] == "direct", "%s says %s" % (both.host, both.path(other)))
            check(m.tcp is None and m.lost == 0, "TCP %s, lost %s" % (m.tcp, m.lost))
            sent = kinds_sent(both, cables[both], any_port=True)
            print("  sent through eth1 in %.1f s: %s" % (time.monotonic() - begin, sent))
            check(sent.get("WireGuard", 0) > 50, str(sent))
    with part("without --uplink only the relay is to be had", goes_on=True):
        m = Measurement(routes, go, limit=4.0).run()
        check(routes.path(go)[0] == "relay" and m.tcp is None, str(routes.path(go)))
        check(not kinds_sent(routes, cables[routes], any_port=True), "UDP through eth1")
    with part("the uplink goes: the flow goes on over the relay", goes_on=True):
        m = Measurement(both, go, limit=300.0, after=None).start()
        time.sleep(2)
        gone = time.monotonic()
        shell("ip link set eth1 down", both.ns)
        time.sleep(10)
        m.end()
        print("  longest gap %.2f s" % m.longest_gap(gone))
        check(m.longest_gap(gone) < 7.5 and m.tcp is None, "TCP %s" % m.tcp)


@test(only_ours=True)
def only_443(world, part, options):
    """A network that lets TCP/443 through and nothing else, with UDP allowed to us."""
    a, b = Router(world, "a", "only443"), Router(world, "b", "easy")
    pairs = make_pairs(world, options, a, b, ("Go-Go", "ours-Go", "ours-ours"))
    with part("join"):
        begin = time.monotonic()
        join(world, nodes_of(pairs))
        print("  all joined after %.1f s" % (time.monotonic() - begin))
    with part("the relay carries it"):
        flows = Flows(pairs, limit=6.0)
        time.sleep(5)
        done = flows.end()
        figures("first echo after", {k: f.answered for k, f in done.items()})
        within({k: f.answered for k, f in done.items()}, 2.0, "first echo")
    tcp_is_whole(done, part)


def through_proxy(world, site, name, port, user=None, used=None):
    """A proxy at port, and a node that is to use it."""
    words = [sys.executable, os.path.join(os.path.dirname(__file__), "proxy.py"), HUB, str(port)]
    proxy = world.process("proxy%d" % port, words + ([user] if user else []))
    wait_for("the proxy listens", lambda: ":%d " % port in run(["ss", "-ltn"]).stdout)
    where = "%s%s:%d" % (used + "@" if used else "", HUB, port)
    return proxy, Ours(world, site, name, relay_only=True, extra=["--proxy", where])


@test(only_ours=True)
def http_proxy(world, part, options):
    """Only an HTTP proxy is to be reached: CONNECT for control and relay."""
    RULES["proxy"] = RULES["easy"].replace(
        "type filter hook forward priority 0;", "type filter hook forward priority 0;"
        ' oifname "wan" tcp dport != { 3128, 3129 } drop; meta l4proto != tcp drop;')
    a, b = Router(world, "a", "proxy"), Router(world, "b", "easy")
    go = Go(world, b, "go")
    plain_proxy, plain = through_proxy(world, a, "plain", 3128)
    named_proxy, named = through_proxy(world, a, "named", 3129, "us:secret", "us:secret")
    with part("join through the proxy, without and with a password"):
        hs = join(world, [go, plain, named])
    for proxy, node in ((plain_proxy, plain), (named_proxy, named)):
        with part("%s: traffic both ways" % node.host):
            for x, y in ((node, go), (go, node)):
                m = Measurement(x, y, limit=3.0).run()
                check(m.answered is not None and m.tcp is None,
                      "answered: %s, TCP %s" % (m.answered, m.tcp))
        with part("%s: all of it by CONNECT" % node.host):
            asked = proxy.logged()
            print("  the proxy was asked: %s" % "; ".join(sorted(
                set(line for line in asked.splitlines() if line.startswith("CONNECT")))))
            check("CONNECT" in asked and "refused" not in asked, asked[-400:])
    with part("a wrong password: a problem is told, and no storm of attempts"):
        wrong = Ours(world, a, "wrong", relay_only=True,
                     extra=["--proxy", "us:wrong@%s:3129" % HUB])
        before = named_proxy.logged().count("refused")
        wrong.start(hs, hs.auth_key())
        wait_for("a problem", wrong.problem, 20)
        time.sleep(8)
        tries = named_proxy.logged().count("refused") - before
        print("  %d attempts; it says: %s" % (tries, wrong.problem().get("text")))
        check(1 <= tries <= 8, "%d attempts in some 10 s" % tries)
        check("secret" not in wrong.problem_text() and "us:wrong" not in wrong.problem_text(),
              "the password is shown")


@test(timeout=330)
def idle_budget(world, part, options):
    """Bytes on the wire of nodes that do nothing, per hour."""
    a, b = Router(world, "a", "easy"), Router(world, "b", "easy")
    nodes = {"tailscaled": Go(world, a, "idle-go")}
    if not options.go_only:
        nodes["ours"] = Ours(world, a, "idle-ours")
        nodes["ours, metered"] = Ours(world, a, "idle-metered", extra=["--metered"])
    peers = [Go(world, b, "peer%d" % i) for i in range(2)]
    with part("join"):
        join(world, list(nodes.values()) + peers)
    # What a join brings about is over by then.
    time.sleep(20)
    seconds = 90 if options.quick else 220
    before = {k: bytes_on_wire(n) for k, n in nodes.items()}
    cables = {k: Cable(n.ns) for k, n in nodes.items()}
    time.sleep(seconds)
    rows = {}
    print("| idle node, %d peers, %d s | out, bytes an hour | in, bytes an hour | UDP sent |"
          % (len(nodes) + 1, seconds))
    print("|---|---|---|---|")
    for k, n in nodes.items():
        rows[k] = [(y - x) * 3600 / seconds for x, y in zip(before[k], bytes_on_wire(n))]
        kinds = kinds_sent(n, cables[k], any_port=True)
        print("| %s | %.0f | %.0f | %s |" % (k, rows[k][0], rows[k][1], ", ".join(
            "%d %s" % (v, w) for w, v in sorted(kinds.items())) or "none"))
    # Coming in, the server's news count, which ours reads uncompressed.
    with part("ours sends no more than the official client", goes_on=True):
        check(all(v[0] <= rows["tailscaled"][0] for v in rows.values()), str(rows))
        check(all(v[1] <= 1.5 * rows["tailscaled"][1] for v in rows.values()), str(rows))
    with part("everybody is still there", goes_on=True):
        for k, n in nodes.items():
            check(icmp(peers[0], n.ip4, 3) >= 2, "%s does not answer" % k)


# ---- relays ----------------------------------------------------------------------------------

# STUN works and nothing else by UDP: traffic has to take a relay.
NO_DIRECT = "meta l4proto udp ip daddr != %s ip saddr != %s drop" % (HUB, HUB)


FAR_MS = 80
FAR = """
table ip far {
    chain pre {
        type nat hook prerouting priority dstnat;
        iifname "lan" udp dport %d dnat to %s:%d
    }
}
"""


def relay_sites(world, *far):
    """Two sites that only relays connect. With ports, to each of them the STUN server at
    that port seems to be far away."""
    made = []
    RULES["relayed"] = RULES["easy"].replace(
        "type filter hook forward priority 0;",
        "type filter hook forward priority 0; %s;" % NO_DIRECT)
    for i, port in enumerate(far or (None, None)):
        made.append(Router(world, "relayed%d" % i, "relayed"))
        if port is not None:
            world.process("stun%d" % port, [
                sys.executable, os.path.join(os.path.dirname(__file__), "slow_stun.py"), HUB,
                str(port + 1000), str(FAR_MS)])
            nft(made[-1].ns, FAR % (port, HUB, port + 1000))
    return made


@test(timeout=300)
def relay_dies(world, part, options):
    """The home relay dies while traffic runs through it, and another one is there."""
    a, b = relay_sites(world)
    none = Site(world, "none")
    kinds = ("Go-Go", "ours-Go", "ours-ours")
    pairs = make_pairs(world, options, a, b, kinds)
    direct = make_pairs(world, options, none, none, kinds)
    relays = [Relay(world, 900, 8445, 3480), Relay(world, 901, 8446, 3481)]
    # At first nobody hears the second relay's STUN server, so all are at home at the first.
    nft_here("add table inet far; add chain inet far i { type filter hook input priority 0; };"
             "add rule inet far i udp dport 3481 drop")
    with part("join"):
        join(world, nodes_of(pairs + direct), relay=relays)
    flows, beside = Flows(pairs), Flows(direct)
    with part("flows run"):
        flows.wait_answers()
        beside.wait_direct(time.monotonic(), 15)
        homes = collections.Counter(region_of(n, pairs) for n in nodes_of(pairs))
        check(set(homes) == {900}, "homes: %s" % dict(homes))
    with part("the other relay takes over"):
        nft_here("delete table inet far")
        time.sleep(1)
        died = time.monotonic()
        relays[0].process.kill()
        time.sleep(45)
        gaps = flows.gaps(died)
        figures("longest gap", gaps)
        within(gaps, max(12.0, 1.2 * (gaps.get("Go-Go") or 0)), "longest gap")
        within(flows.backs(time.monotonic() - 3), 1, "flow at the end")
    with part("direct traffic did not notice", goes_on=True):
        gaps = beside.gaps(died)
        figures("direct flows: longest gap", gaps)
        within(gaps, 1.0, "longest gap of the direct flow")
    tcp_is_whole(beside.end(), part)
    flows.end()


def nft_here(script):
    run(["nft", script])


def region_of(node, pairs):
    """Where a node is at home, by the word of an official client."""
    witness = next(n for n in nodes_of(pairs) if isinstance(n, Go))
    p = witness.status()["Self"] if witness is node else witness.peer(node.ip4)
    name = (p or {}).get("Relay") or ""
    return int(name[3:] or 0) if name.startswith("own") else 0


@test(timeout=240)
def relay_moves(world, part, options):
    """The relay of the only region goes to another port: the map says so."""
    a, b = relay_sites(world)
    pairs = make_pairs(world, options, a, b, ("Go-Go", "ours-Go", "ours-ours"))
    old = Relay(world, 900, 8445, 3480)
    with part("join"):
        hs = join(world, nodes_of(pairs), relay=old)
    flows = Flows(pairs)
    with part("a flow runs"):
        flows.wait_answers()
    with part("it goes on through the relay's new place"):
        new = Relay(world, 900, 8447, 3482)
        hs.relays([new])
        moved = time.monotonic()
        hs.restart()
        old.process.kill()
        time.sleep(40)
        gaps = flows.gaps(moved)
        figures("longest gap", gaps)
        within(gaps, max(30.0, 1.2 * (gaps.get("Go-Go") or 0)), "longest gap")
        within(flows.backs(time.monotonic() - 3), 1, "flow at the end")
    flows.end()


@test(timeout=240)
def two_regions(world, part, options):
    """Peers at home in different regions: a guest link to the other's relay."""
    a, b = relay_sites(world, 3481, 3480)
    pairs = make_pairs(world, options, a, b, extra=["--links", "3"])
    relays = [Relay(world, 900, 8445, 3480), Relay(world, 901, 8446, 3481)]
    with part("join"):
        join(world, nodes_of(pairs), relay=relays)
    with part("homes are in different regions"):
        wanted = {n.host: home for _, x, y in pairs for n, home in ((x, 900), (y, 901))}
        homes = {}

        def settled():
            homes.update({n.host: region_of(n, pairs) for n in nodes_of(pairs)})
            return homes == wanted
        try:
            wait_for("homes settle", settled, 30)
        finally:
            print("  homes: %s" % homes)
    for title, turned in (("from here to there", pairs),
                          ("from there to here", [(k, y, x) for k, x, y in pairs])):
        with part("traffic " + title):
            flows = Flows(turned, limit=5.0)
            time.sleep(4)
            done = flows.end()
            answers = {k: f.answered for k, f in done.items()}
            figures("first echo after", answers)
            within(answers, 2.0, "first echo")
            lost = {k: f.lost for k, f in done.items()}
            check(all(n == 0 for k, n in lost.items() if k != "Go-Go"), "lost: %s" % lost)
        tcp_is_whole(done, part)
    with part("after a minute without traffic it works again", goes_on=True):
        time.sleep(10 if options.quick else 75)
        done = Flows(pairs, limit=4.0)
        time.sleep(4)
        answers = {k: f.answered for k, f in done.end().items()}
        figures("first echo after", answers)
        within(answers, 3.0, "first echo")


# Tests that run side by side; in a slot one after the other.
SLOTS = [
    ["relay_only", "two_uplinks", "only_443"],
    ["idle_budget", "relay_moves"],
    ["idle_and_back", "blocked_silently", "network_change", "nat_rebinding", "http_proxy"],
    ["two_regions", "relay_dies"],
]
