"""The interop tests. Each gets an empty Lab and a counter of parts; a part that
fails ends its test. `ours` is tailnetd (or its stand-in), `go` the official
client, `hs` headscale."""

import ipaddress
import json
import os
import re
import signal
import sys
import time

from lab import (CONTROL_NAME, HUB, OPEN_POLICY, OS_NAME, TOP, Flow, Headscale, Iperf, Pki, Relay,
                 TestControl, Wire, break_connections, check, icmp, run, tcp_copy, udp,
                 udp_echo, wait_for)


class Stop(Exception):
    """A part has failed and said so."""


TESTS = {}
ALONE = set()       # these fill both processors: nothing runs beside them
TIMEOUT = {}        # seconds, where 180 is not enough
NO_STAND_IN = set()  # only our program can do these


def test(alone=False, timeout=None, stand_in=True):
    def register(f):
        TESTS[f.__name__] = f
        if alone:
            ALONE.add(f.__name__)
        if timeout:
            TIMEOUT[f.__name__] = timeout
        if not stand_in:
            NO_STAND_IN.add(f.__name__)
        return f
    return register


def pair(lab, part, relay=False, tun="tun0", **more):
    """headscale with an official client and one of ours, joined by key."""
    hs = Headscale(lab, relay=relay, **more)
    key = hs.auth_key("--reusable")
    go, ours = lab.official("go1"), lab.ours("ours", tun=tun)
    with part("both join by key"):
        go.up(hs, key)
        ours.up(hs, key)
        check(ours.ip4 and ours.ip4.startswith("100.64."), "no address of ours: %s" % ours.ip4)
        go.wait_peer(ours.ip4)
    return hs, go, ours


def echoes(node, ip, count=3, within=10.0):
    """UDP echo works within some seconds."""
    wait_for("%s gets UDP echoes from %s" % (node.host, ip),
             lambda: udp(node, ip, count=count, wait=0.5) == count, within)


def silent(node, ip, count=3):
    got = udp(node, ip, count=count, wait=0.7)
    check(got == 0, "%s still gets echoes from %s" % (node.host, ip))


# ---- joining -----------------------------------------------------------------------------


@test()
def join_by_key(lab, part):
    """Join with an auth key; what headscale and the official client show of us."""
    hs = Headscale(lab)
    key = hs.auth_key("--reusable")
    go = lab.official("go1").up(hs, key)
    ours = lab.ours("gadget")
    with part("running with addresses and a name"):
        ours.up(hs, key)
        check(re.match(r"100\.64\.\d+\.\d+$", ours.ip4 or ""), "ip4 is %s" % ours.ip4)
        check((ours.ip6 or "").startswith("fd7a:115c:a1e0:"), "ip6 is %s" % ours.ip6)
    with part("headscale nodes list: name, addresses, online"):
        n = wait_for("headscale has us online", lambda: (
            lambda n: n if n and n.get("online") else None)(hs.node("gadget")))
        check(ours.ip4 in n["ip_addresses"] and ours.ip6 in n["ip_addresses"],
              "headscale has %s" % n["ip_addresses"])
        check(n["name"] == "gadget", "headscale calls us %s" % n["name"])
    with part("tailscale status: name, OS, online, relay"):
        p = go.wait_peer(ours.ip4)
        check(p["HostName"] == "gadget", "HostName is %s" % p["HostName"])
        check(p["DNSName"] == "gadget.lab.test.", "DNSName is %s" % p["DNSName"])
        check(p["OS"] == OS_NAME, "OS is %s" % p["OS"])
        wait_for("the peer knows our relay", lambda: go.peer(ours.ip4)["Relay"] == "lab", 20)
    with part("SIGTERM leaves cleanly and we are shown offline"):
        check(ours.stop() == 0, "exit code %s" % ours.process.child.returncode)
        wait_for("offline", lambda: not go.peer(ours.ip4)["Online"], 30)
        wait_for("headscale has us offline", lambda: not hs.node("gadget").get("online"), 30)


@test()
def join_by_name(lab, part):
    """The control server by a DNS name, certificate checked against it."""
    hs = Headscale(lab, by_name=True)
    with part("running"):
        ours = lab.ours("ours").up(hs, hs.auth_key())
        check(ours.ip4, "no address")


@test()
def join_over_http(lab, part):
    """Control over plain http://: Noise alone protects it; the relay has TLS."""
    relay = Relay(lab)
    hs = Headscale(lab, relay=relay, tls=False)
    key = hs.auth_key("--reusable")
    with part("running"):
        ours = lab.ours("ours").up(hs, key)
    with part("traffic through the relay"):
        go = lab.official("go1").up(hs, key)
        go.wait_peer(ours.ip4)
        echoes(go, ours.ip4, within=20)


@test()
def join_by_login_url(lab, part):
    """No key: a person opens the URL that the node shows."""
    hs = Headscale(lab)
    ours = lab.ours("ours")
    with part("a login URL of the control server is shown"):
        ours.start(hs)
        url = ours.wait_login()
        check(url.startswith(hs.url + "/"), "the URL is %s" % url)
    with part("running once the person has logged in"):
        hs.approve_login(url)
        ours.wait_state("running")
        check(hs.node("ours"), "headscale does not list us")
    with part("a restart needs no login"):
        address = ours.ip4
        ours.stop()
        ours.start()
        ours.wait_state("running")
        check(ours.ip4 == address, "%s became %s" % (address, ours.ip4))


@test(stand_in=False)
def tags_and_ephemeral(lab, part):
    """Asked-for tags are shown; an ephemeral node is gone after its logout."""
    policy = dict(OPEN_POLICY, tagOwners={"tag:sensor": ["lab@"], "tag:attic": ["lab@"]})
    hs = Headscale(lab, policy=policy)
    with part("tags asked for at login"):
        ours = lab.ours("tagged", tags="tag:sensor,tag:attic").start(hs)
        hs.approve_login(ours.wait_login())
        ours.wait_state("running")
        tags = hs.node("tagged").get("tags") or []
        check(sorted(tags) == ["tag:attic", "tag:sensor"], "headscale has %s" % tags)
        ours.stop()
    with part("an ephemeral node is online"):
        once = lab.ours("once", ephemeral=True).up(hs, hs.auth_key("--ephemeral"))
        check(hs.node("once"), "headscale does not list it")
    with part("and gone after its logout"):
        once.stop()
        once.start(extra=["--logout"])
        check(once.process.wait(20) == 0, "logout: exit code %s" % once.process.child.returncode)
        wait_for("headscale has forgotten it", lambda: not hs.node("once"), 20)


@test(stand_in=False)
def logout(lab, part):
    """After --logout the server has our key expired and peers stop talking to us."""
    hs, go, ours = pair(lab, part, tun=None)
    with part("traffic before"):
        echoes(go, ours.ip4)
    with part("tailnetd --logout ends with 0"):
        ours.stop()
        ours.start(extra=["--logout"])
        check(ours.process.wait(20) == 0, "exit code %s" % ours.process.child.returncode)
    with part("headscale has the key expired"):
        n = hs.node("ours")
        check(n and n.get("expiry"), "expiry is %s" % (n and n.get("expiry")))
    with part("the next start asks for a login"):
        ours.control_flags = ["--control", hs.url]
        ours.start()
        ours.wait_login()


# ---- traffic -----------------------------------------------------------------------------


@test()
def pings_and_echoes(lab, part):
    """tailscale ping, ICMP and UDP to a node without a TUN device."""
    hs, go, ours = pair(lab, part, tun=None)
    with part("tailscale ping (disco) through the relay"):
        wait_for("a pong", lambda: "via DERP(lab)" in go.ping(ours.ip4, timeout=3), 20)
    with part("tailscale ping --tsmp"):
        check("via TSMP" in go.ping(ours.ip4, "--tsmp", timeout=5), "no answer")
    with part("ICMP, IPv4"):
        check(icmp(go, ours.ip4, 5) == 5, "echoes are missing")
    with part("ICMP, IPv6"):
        check(icmp(go, ours.ip6, 5) == 5, "echoes are missing")
    with part("ICMP, full size"):
        done = go.run("ping", "-n", "-c", "3", "-i", "0.2", "-M", "do", "-s", "1252", ours.ip4,
                      ok=False)
        check(" 3 received" in done.stdout, done.stdout)
    with part("UDP echo at port 7, IPv4"):
        check(udp(go, ours.ip4, count=20) == 20, "echoes are missing")
    with part("UDP echo at port 7, IPv6"):
        if not lab.stand_in:
            check(udp(go, ours.ip6, count=20) == 20, "echoes are missing")


@test()
def both_ways_through_tun(lab, part):
    """ICMP, UDP and TCP with a TUN device on both sides, both directions."""
    hs, go, ours = pair(lab, part)
    with part("ICMP from the official client"):
        check(icmp(go, ours.ip4, 5) >= 4, "echoes are missing")
    with part("ICMP from us"):
        check(icmp(ours, go.ip4, 5) >= 4, "echoes are missing")
    with part("ICMP from us, IPv6"):
        check(icmp(ours, go.ip6, 5) >= 4, "echoes are missing")
    with part("UDP from us"):
        udp_echo(lab, go, 7007)
        check(udp(ours, go.ip4, 7007, count=20) >= 19, "echoes are missing")
    with part("UDP from the official client"):
        udp_echo(lab, ours, 7007)
        check(udp(go, ours.ip4, 7007, count=20) >= 19, "echoes are missing")
    with part("TCP from us"):
        tcp_copy(lab, ours, go)
    with part("TCP from the official client"):
        tcp_copy(lab, go, ours)


@test()
def a_silent_start(lab, part):
    """The peer talks first: we answer its handshake without having sent a packet."""
    hs, go, ours = pair(lab, part, tun=None)
    with part("the peer knows our relay"):
        wait_for("our relay", lambda: go.peer(ours.ip4)["Relay"], 20)
    with part("the very first packets of the peer come back"):
        begin = time.monotonic()
        check(icmp(go, ours.ip4, 3, timeout=8) >= 2, "echoes are missing")
        # A lost first handshake would be repeated after five seconds.
        check(time.monotonic() - begin < 4.5, "only when the peer had asked again")


@test(alone=True, timeout=600)
def tcp_a_gigabyte(lab, part):
    """iperf3 through TUN and relay, both directions, 1 GB together, no reset."""
    hs, go, ours = pair(lab, part)
    for name, client, server in (("to the official client", ours, go), ("to us", go, ours)):
        with part("540 MB " + name):
            done = Iperf(lab, client, server, server.ip4, megabytes=540, timeout=280)
            print("    %.0f Mbit/s, %d retransmissions" % (done.mbits, done.retransmits))
            check(done.bytes >= 500e6, "%d bytes" % done.bytes)
    with part("echo still works"):
        check(icmp(go, ours.ip4, 3) == 3, "echoes are missing")


# ---- changes in the tailnet ------------------------------------------------------------------


@test()
def peers_come_and_go(lab, part):
    """Peers added, renamed, expired, removed while we run."""
    hs, go, ours = pair(lab, part)
    key = hs.auth_key("--reusable")
    second = lab.official("go2")
    with part("added"):
        check(not ours.sees("go2"), "go2 is there too early")
        second.up(hs, key)
        ours.wait_sees("go2")
        check(icmp(ours, second.ip4, 3) >= 2, "no echo from the new peer")
    with part("renamed"):
        hs.rename("go2", "newname")
        ours.wait_sees("newname")
        check(icmp(ours, second.ip4, 3) >= 2, "no echo after the renaming")
    with part("expired: no traffic either way"):
        hs.expire("go1")
        wait_for("silence", lambda: icmp(ours, go.ip4, 2, timeout=2) == 0, 20)
        # The expired peer is silent by itself: that we know it shows in our list.
        check(lab.stand_in or any(p["expired"] for p in ours.event("peers")["peers"]
                                  if p["name"].startswith("go1")), "not expired in our list")
    with part("removed: gone from the list, no traffic"):
        hs.delete("newname")
        ours.wait_sees("newname", there=False)
        check(icmp(ours, second.ip4, 2, timeout=2) == 0, "a removed peer still answers")


@test(stand_in=False)
def removed_peer_is_refused(lab, part):
    """A peer that was deleted while its packets flow gets no further answer."""
    hs, go, ours = pair(lab, part, tun=None)
    flow = Flow(lab, go, ours.ip4)
    with part("a flow runs"):
        flow.wait_flowing()
    with part("it stops when the peer is deleted"):
        hs.delete("go1")
        flow.wait_dry()


def allow(*rules):
    """A policy of (source, destination, ports) with proto open, by addresses."""
    return {"acls": [{"action": "accept", "src": [s], "dst": ["%s:%s" % (d, p)]}
                     for s, d, p in rules]}


@test(stand_in=False)
def policy_changes_bite(lab, part):
    """A policy change stops a running flow, also one that we answered before. (The
    official client lets a UDP flow go on that it has answered.)"""
    hs, go, ours = pair(lab, part)
    for port in (7, 8):
        udp_echo(lab, ours, port)
    flow = Flow(lab, go, ours.ip4)
    with part("a flow runs under the open policy"):
        flow.wait_flowing()
        check(udp(go, ours.ip4, port=8, count=2) > 0, "another port does not answer")
    with part("it stops when only another port is allowed"):
        hs.policy(allow((go.ip4, ours.ip4, 9), (ours.ip4, go.ip4, "*")))
        flow.wait_dry()
    with part("it runs again when its port is allowed"):
        hs.policy(allow((go.ip4, ours.ip4, 7), (ours.ip4, go.ip4, "*")))
        flow.wait_flowing()
    with part("but nothing else"):
        check(udp(go, ours.ip4, port=8, count=2, wait=0.5) == 0, "a closed port answers")


@test()
def one_way_grant(lab, part):
    """We may talk to the peer, it not to us: answers pass, its own packets do not."""
    hs, go, ours = pair(lab, part)
    udp_echo(lab, go, 7007)
    udp_echo(lab, ours, 7008)
    hs.policy(allow((ours.ip4, go.ip4, "*")))
    with part("theirs to ours is refused"):
        wait_for("no echoes", lambda: udp(go, ours.ip4, 7008, count=2, wait=0.5) == 0, 20)
        silent(go, ours.ip4)
        check(icmp(go, ours.ip4, 2, timeout=2) == 0, "their ping gets an answer")
    with part("ours to theirs"):
        wait_for("echoes", lambda: udp(ours, go.ip4, 7007, count=3, wait=0.5) == 3, 20)
        check(icmp(ours, go.ip4, 3) >= 2, "our ping gets no answer")
    with part("TCP ours to theirs, data in both directions of it"):
        tcp_copy(lab, ours, go, 2)
        check(Iperf(lab, ours, go, go.ip4, seconds=2, reverse=True).bytes > 1e5, "no data")
    with part("and the other way round after the next change"):
        hs.policy(allow((go.ip4, ours.ip4, "*")))
        wait_for("echoes", lambda: udp(go, ours.ip4, 7008, count=3, wait=0.5) == 3, 20)
        wait_for("no echoes", lambda: udp(ours, go.ip4, 7007, count=2, wait=0.5) == 0, 20)


# ---- restarts and broken connections ------------------------------------------------------------


@test()
def restart_with_state(lab, part):
    """Stopped or killed and started again: same address, first handshake taken."""
    hs, go, ours = pair(lab, part, tun="tun0")
    udp_echo(lab, go, 7007)
    if not lab.stand_in:
        udp_echo(lab, ours)
    with part("traffic before"):
        echoes(go, ours.ip4, within=20)
    address = ours.ip4
    for how in ("stop", "kill"):
        with part("same address after %s" % how):
            getattr(ours, how)()
            ours.start()
            ours.wait_state("running")
            check(ours.ip4 == address, "%s became %s" % (address, ours.ip4))
        if lab.stand_in:
            continue                        # says Running before its device works
        with part("our first handshake is accepted at once"):
            begin = time.monotonic()
            check(udp(ours, go.ip4, 7007, count=1, wait=4.5) == 1, "the first packet got no answer")
            took = time.monotonic() - begin
            # A refused first handshake would be repeated after five seconds.
            check(took < 4.5, "the first packet took %.1f s" % took)
        with part("the peer reaches us again"):
            echoes(go, ours.ip4, within=20)


@test(stand_in=False)
def restart_without_state(lab, part):
    """The state is lost: a new machine joins, and traffic flows."""
    hs, go, ours = pair(lab, part, tun=None)
    with part("traffic before"):
        echoes(go, ours.ip4)
    old = ours.ip4
    with part("joins as a new node"):
        ours.kill()
        os.unlink(ours.state_file)
        ours.start(hs, hs.auth_key())
        ours.wait_state("running")
        check(ours.ip4 != old, "the address is the old one")
    with part("traffic with the new node"):
        go.wait_peer(ours.ip4)
        echoes(go, ours.ip4, within=20)
    with part("a damaged state is refused, with a word about it"):
        ours.stop()
        with open(ours.state_file, "r+b") as f:
            f.seek(20)
            byte = f.read(1)
            f.seek(20)
            f.write(bytes([byte[0] ^ 1]))
        ours.start()
        check(ours.process.wait(20) == 2, "exit code %s" % ours.process.child.returncode)
        check("state" in ours.problem_text(), ours.problem_text())


def control_is_back(hs, ours, timeout):
    """A change in the tailnet reaches us."""
    hs.rename("go1", "back")
    ours.wait_sees("back", timeout=timeout)


@test(timeout=300)
def headscale_gone_for_a_minute(lab, part):
    """Traffic between peers goes on without the control server."""
    relay = Relay(lab)
    hs, go, ours = pair(lab, part, relay=relay, tun=None)
    flow = Flow(lab, go, ours.ip4)
    with part("a flow runs"):
        flow.wait_flowing(30)
    with part("and does not stop for a second while headscale is away"):
        begin = time.monotonic()
        hs.restart(gone=60)
        time.sleep(1)
        check(flow.longest_gap(begin) < 2.0, "a gap of %.1f s" % flow.longest_gap(begin))
    with part("afterwards control reaches us again"):
        control_is_back(hs, ours, 90)
        flow.wait_flowing(20)


@test(timeout=240)
def headscale_restarted(lab, part):
    """headscale with the relay in it restarts: both come back."""
    hs, go, ours = pair(lab, part, tun=None)
    flow = Flow(lab, go, ours.ip4)
    with part("a flow runs"):
        flow.wait_flowing()
    with part("it runs again soon after the restart"):
        begin = time.monotonic()
        hs.restart()
        wait_for("the flow comes back", lambda: flow.count(begin + 0.5) >= 10, 60)
        flow.wait_flowing(10)
    with part("and control too"):
        control_is_back(hs, ours, 60)


@test(timeout=240)
def relay_restarted(lab, part):
    """The relay restarts, and again, gone for some seconds."""
    relay = Relay(lab)
    hs, go, ours = pair(lab, part, relay=relay, tun=None)
    flow = Flow(lab, go, ours.ip4)
    with part("a flow runs"):
        flow.wait_flowing(30)
    for gone in (0, 8):
        with part("it runs again after the relay was gone for %d s" % gone):
            begin = time.monotonic()
            relay.restart(gone)
            wait_for("the flow comes back", lambda: flow.count(begin + gone + 0.3) >= 5, 60)
    with part("and stays"):
        time.sleep(1)
        flow.wait_flowing(10)


@test(timeout=400)
def connection_cut_without_fin(lab, part):
    """All our connections go dead without a word; we notice and open new ones."""
    hs, go, ours = pair(lab, part, tun=None)
    flow = Flow(lab, go, ours.ip4)
    with part("a flow runs"):
        flow.wait_flowing()
    with part("it stops when every packet of our connections is dropped"):
        break_connections(ours)
        flow.wait_dry(quiet=1.0)
    with part("and runs again over new connections"):
        flow.wait_flowing(240)
    if lab.stand_in:
        return                              # takes more than five minutes
    with part("control is back as well"):
        control_is_back(hs, ours, 150)


# ---- refusals ------------------------------------------------------------------------------


def refused(ours, words, what):
    """It does not get to run, and says why in words of its own."""
    def said():
        check(ours.state() != "running", "it runs")
        text = ours.problem_text()
        return text if re.search(words, text, re.I) else None
    text = wait_for("a problem about %s" % what, said, 30)
    time.sleep(1)
    check(ours.state() != "running", "it runs")
    check(not re.search(r"tskey|hskey", text), "the problem shows the key: " + text)
    ours.kill()
    return text


@test(stand_in=False)
def wrong_certificates_and_keys(lab, part):
    """Wrong CA, expired, wrong name, wrong control key, wrong auth key."""
    hs = Headscale(lab)
    key = hs.auth_key("--reusable")
    url = hs.url
    said = {}

    def with_cert(name, **more):
        """A second server with another certificate in front of nothing at all."""
        cert, secret = lab.pki.server(name, **more)
        port = 9443 + len(said)
        lab.process("tls-" + name, [
            "socat", "OPENSSL-LISTEN:%d,bind=%s,fork,reuseaddr,cert=%s,key=%s,verify=0" % (
                port, HUB, cert, secret), "OPENSSL:%s:8443,verify=0" % HUB])
        wait_for("socat listens", lambda: ":%d" % port in run(["ss", "-ltn"]).stdout)
        return "https://%s:%d" % (HUB, port)

    with part("wrong CA"):
        other = Pki(os.path.join(lab.folder, "other"))
        ours = lab.ours("a", ca=other.ca).start(url, key)
        said["ca"] = refused(ours, r"trust|issuer|\bCA\b|authority", "the CA")
    with part("expired certificate"):
        ours = lab.ours("b").start(with_cert("old", expired=True), key)
        said["expired"] = refused(ours, r"expired|date|time", "the date")
    with part("wrong name, for an address in the URL"):
        ours = lab.ours("c").start(with_cert("name", alt="DNS:control.lab,IP:10.99.0.2"), key)
        said["name"] = refused(ours, r"name", "the name")
    with part("wrong name, for a name in the URL"):
        wrong = with_cert("name2", alt="DNS:other.lab").replace(HUB, CONTROL_NAME)
        ours = lab.ours("d").start(wrong, key)
        refused(ours, r"name", "the name")
    with part("wrong control key"):
        ours = lab.ours("e", extra=["--control-key", "mkey:" + "42" * 32]).start(url, key)
        said["control key"] = refused(ours, r"control.*key|server.*key", "the control key")
    with part("wrong auth key"):
        bad = key[:-8] + ("AAAAAAAA" if not key.endswith("AAAAAAAA") else "BBBBBBBB")
        ours = lab.ours("f").start(url, bad)
        said["auth key"] = refused(ours, r"auth.?key", "the auth key")
    with part("expired auth key"):
        old = hs.auth_key(expiration="1s")
        time.sleep(2)
        refused(lab.ours("g").start(url, old), r"auth.?key", "the auth key")
    with part("used auth key"):
        once = hs.auth_key()
        lab.ours("h").up(hs, once).stop()
        refused(lab.ours("i").start(url, once), r"auth.?key", "the auth key")
    with part("each has words of its own"):
        words = {k: re.sub(r'"at": *[\d.]+|\d+', "", v) for k, v in said.items()}
        check(len(set(words.values())) == len(words), json.dumps(words))
    with part("with the right ones it still joins"):
        lab.ours("j").up(hs, key)


@test(stand_in=False)
def key_expiry_and_new_login(lab, part):
    """Our own key expires: a login URL is shown, and after it traffic flows again."""
    hs = Headscale(lab)
    go = lab.official("go1").up(hs, hs.auth_key())
    ours = lab.ours("ours").start(hs)
    with part("joined by login"):
        hs.approve_login(ours.wait_login())
        ours.wait_state("running")
        go.wait_peer(ours.ip4)
        echoes(go, ours.ip4)
    with part("expired by the admin: a new login URL"):
        first = ours.url
        hs.expire("ours")
        wait_for("another login URL", lambda: ours.wait_login() != first, 30)
    with part("no traffic meanwhile"):
        silent(go, ours.ip4)
        check(ours.state() == "needs-login", "state is %s" % ours.state())
    with part("running again after the login, same address"):
        before = ours.ip4
        hs.approve_login(ours.url)
        ours.wait_state("running")
        check(ours.ip4 == before, "%s became %s" % (before, ours.ip4))
        echoes(go, ours.ip4, within=20)


@test(stand_in=False)
def exit_codes(lab, part):
    """0 asked to stop, 1 usage, 2 cannot go on."""
    with part("usage"):
        done = run([os.path.join(TOP, "build/tailnetd"), "--no-such-flag"], ok=False)
        check(done.returncode == 1 and done.stderr, "exit code %d" % done.returncode)
    with part("asked to stop while nothing answers"):
        ours = lab.ours("ours").start("https://%s:9" % HUB, "none")
        time.sleep(1)
        check(ours.stop() == 0, "exit code %s" % ours.process.child.returncode)
    with part("SIGINT too"):
        ours.start()
        time.sleep(0.5)
        ours.process.signal(signal.SIGINT)
        check(ours.process.wait(5) == 0, "exit code %s" % ours.process.child.returncode)


@test(stand_in=False)
def two_nodes_in_one_process(lab, part):
    """Two nodes share a process and nothing else, and talk through the relay."""
    hs = Headscale(lab)
    with part("they join and exchange packets"):
        program = os.path.join(TOP, "build/two_nodes")
        check(os.path.exists(program), "build/two_nodes is not built")
        key = lab.write("key", hs.auth_key("--reusable") + "\n")
        done = run([program, hs.url, key, lab.pki.ca], ok=False, timeout=60)
        check(done.returncode == 0, (done.stdout + done.stderr)[-600:])


# ---- the test control server: as the hosted service speaks -----------------------------------


def hosted(lab, part, *flags, key=None):
    control = TestControl(lab, *flags)
    ours = lab.ours("ours", tun=None)
    with part("joins"):
        ours.up(control, key)
        n = wait_for("the server knows us", lambda: control.node("ours"))
    return control, ours, n["Key"]


@test()
def hosted_traffic(lab, part):
    """Join the test control server with a key; traffic through its relay."""
    control, ours, _ = hosted(lab, part, "-authkey", "tskey-auth-lab", key="tskey-auth-lab")
    go = lab.official("go1")
    with part("an official client joins too and sees our relay"):
        go.up(control, "tskey-auth-lab")
        wait_for("the peer", lambda: go.peer(ours.ip4))
        ours.wait_sees("go1")
        n = control.node("ours")
        relay, disco = n.get("HomeDERP"), n.get("DiscoKey")
        check(relay == 1 and disco, "HomeDERP %s, DiscoKey %s" % (relay, disco))
    with part("tailscale ping and echoes"):
        wait_for("a pong", lambda: "via DERP" in go.ping(ours.ip4, timeout=3), 30)
        check(icmp(go, ours.ip4, 3) >= 2, "echoes are missing")


@test(stand_in=False)
def hosted_deltas(lab, part):
    """Injected map messages: patches, removals, online changes, keep-alives."""
    control, ours, key = hosted(lab, part)
    with part("a peer is added"):
        control.ask("fake")
        # The server tells nobody of it before the next change.
        control.ask("rename", node=key, name="renamed")
        wait_for("it is in our list", lambda: (ours.event("peers") or {}).get("peers"))
    with part("our own new name"):
        wait_for("the name", lambda: ours.event("state").get("name") == "renamed")
    with part("a peer by delta"):
        peer = {"ID": 4711, "StableID": "n4711", "Name": "delta.example.ts.net.",
                "Key": "nodekey:" + "11" * 32, "DiscoKey": "discokey:" + "22" * 32,
                "Addresses": ["100.64.99.1/32"], "AllowedIPs": ["100.64.99.1/32"],
                "HomeDERP": 1, "Hostinfo": {}, "MachineAuthorized": True}
        control.ask("raw", {"PeersChanged": [peer]}, node=key)
        ours.wait_sees("delta")
    with part("patched: online"):
        control.ask("raw", {"PeersChangedPatch": [{"NodeID": 4711, "Online": True}]}, node=key)
        wait_for("online", lambda: any(p.get("online") for p in ours.event("peers")["peers"]
                                       if p["name"].startswith("delta")))
    with part("removed"):
        control.ask("raw", {"PeersRemoved": [4711]}, node=key)
        ours.wait_sees("delta", there=False)
    with part("a wire full of keep-alives and unknown members changes nothing"):
        for _ in range(20):
            control.ask("raw", {"KeepAlive": True}, node=key)
        check(ours.state() == "running", "state is %s" % ours.state())


@test(stand_in=False)
def hosted_ping_requests(lab, part):
    """The server's ping requests: visit a URL, answer a request."""
    control, ours, key = hosted(lab, part)
    with part("the URL is visited"):
        control.ask("ping", node=key)
    with part("a second one too"):
        control.ask("ping", node=key)
    with part("c2n /echo is answered over the control connection"):
        answer = control.ask("c2n", node=key, path="/echo")
        check(answer.split("\n")[0] == "200" and "hello" in answer, "the answer was: " + answer)
    with part("c2n of an unknown path gets an honest error"):
        answer = control.ask("c2n", node=key, path="/no/such/thing")
        check(answer.split("\n")[0] in ("400", "404", "501"), "the answer was: " + answer)
    with part("and the stream lives on"):
        control.ask("ping", node=key)
        check(ours.state() == "running", "state is %s" % ours.state())


@test()
def hosted_login(lab, part):
    """Interactive login at the test control server."""
    control = TestControl(lab, "-require-auth")
    ours = lab.ours("ours", tun=None)
    with part("a login URL"):
        ours.start(control)
        url = ours.wait_login()
        check("/auth/" in url, url)
    with part("running after the login"):
        control.ask("auth", url=url)
        ours.wait_state("running")


@test(stand_in=False)
def hosted_expiry(lab, part):
    """Every node key expires: a new login; then all is well again."""
    control = TestControl(lab, "-require-auth")
    ours = lab.ours("ours", tun=None).start(control)
    with part("joined by login"):
        control.ask("auth", url=ours.wait_login())
        ours.wait_state("running")
    with part("expired: a new login URL"):
        first = ours.url
        control.ask("expire", on="true")
        wait_for("another login URL", lambda: ours.wait_login() != first, 30)
    with part("running after the new login"):
        control.ask("expire", on="false")
        control.ask("auth", url=ours.url)
        ours.wait_state("running", 40)


@test(stand_in=False)
def hosted_approval(lab, part):
    """An admin has to approve the machine first."""
    control = TestControl(lab, "-machine-auth")
    ours = lab.ours("ours", tun=None).start(control)
    with part("waits for approval and says so"):
        ours.wait_state("needs-approval")
    with part("running once approved"):
        control.ask("approve", node=control.node("ours")["Key"])
        ours.wait_state("running")


# ---- a small device: one TLS engine, or a small one for control --------------------------------


@test(stand_in=False)
def key_over_tls_then_http(lab, part):
    """One TLS engine: it fetches the server's key and serves the relay; control is Noise
    over HTTP, and nobody else on that port is taken for the server."""
    relay = Relay(lab)
    lab.port = 8082
    hs = Headscale(lab, relay=relay, tls=False, url="https://%s:8443" % HUB)
    lab.tls_proxy(8454, "http://%s:8082" % HUB)
    tls, plain = Wire(lab, 8443, 8454), Wire(lab, 8081, 8082)
    device, go = lab.device(http_port=8081), lab.official("go1")
    with part("runs"):
        device.up(hs, hs.auth_key("--reusable"))
    with part("its key came over TLS, and that connection is over"):
        seen = tls.connections(device.address)
        check(len(seen) == 1 and seen[0]["tls"] and seen[0]["over"], json.dumps(seen))
    with part("control is Noise over HTTP, without a byte of TLS"):
        said = plain.connections(device.address)
        check(len(said) == 1 and not said[0]["over"], json.dumps(said))
        check(said[0]["first"].startswith("POST /ts2021 HTTP/1.1\r\n") and not said[0]["tls"]
              and not said[0]["largest"], said[0]["first"])
    with part("the engine serves the relay: traffic, while control stands"):
        go.up(hs, hs.auth_key())
        go.wait_peer(device.ip4)
        echoes(go, device.ip4, within=20)
        check(not plain.connections(device.address)[0]["over"], "control has gone")
    with part("with its state it asks nobody for the key"):
        device.kill()
        device.start()
        device.wait_state("running")
        echoes(go, device.ip4, within=30)
        check(len(tls.connections(device.address)) == 1, "it asked for the key again")
        check(len(plain.connections(device.address)) == 2, "control goes elsewhere")
    with part("another server on that port is not believed"):
        stranger = TestControl(lab)
        fooled = lab.device(http_port=8080, host="fooled").start(hs, hs.auth_key())
        wait_for("a problem", lambda: (fooled.problem() or {}).get("section") == "noise", 45)
        time.sleep(3)
        check(fooled.state() != "running", "it runs")
        check(not stranger.nodes(), "the stranger knows it: %s" % stranger.nodes())


LONGEST = 4096 + 29     # a Noise frame in a record: explicit nonce, tag, no more


def rules_for(ip, count):
    """A policy that makes the map of one node large."""
    return {"acls": [{"action": "accept", "src": ["100.65.%d.%d" % (i // 250, i % 250 + 1)],
                      "dst": ["%s:%d" % (ip, 1000 + i)]} for i in range(count)]}


def longest_record(wire, device):
    """Of all that the server sent so far; says it."""
    seen = wire.connections(device.address)
    check(seen and all(c["tls"] for c in seen), json.dumps(seen))
    largest = max(c["largest"] for c in seen)
    print("    %d records, %d bytes in %d connections, the longest %d bytes" % (
        sum(c["records"] for c in seen), sum(c["bytes"] for c in seen), len(seen), largest))
    return largest


def refused_record(device):
    """The problem that names the limit."""
    wait_for("a problem", lambda: (device.problem() or {}).get("section") == "tls", 40)
    check(device.problem()["detail"] == 6000, "it says %s" % device.problem())


@test(stand_in=False, timeout=240)
def short_records_direct(lab, part):
    """Control inside TLS with an engine for records of 6,000 bytes: servers with their own
    certificate send no longer ones, however large the map."""
    relay = Relay(lab)
    hs = Headscale(lab, relay=relay)
    wire = Wire(lab, 8450, 8443)
    device, go = lab.device(engines=2, lean=True), lab.official("go1")
    with part("headscale, runs, traffic through the relay"):
        device.up("https://%s:8450" % HUB, hs.auth_key())
        go.up(hs, hs.auth_key())
        go.wait_peer(device.ip4)
        echoes(go, device.ip4, within=20)
    with part("headscale, a map of a megabyte in short records"):
        before = sum(c["records"] for c in wire.connections(device.address))
        hs.policy(rules_for(device.ip4, 6000))
        wait_for("the records", lambda: sum(
            c["records"] for c in wire.connections(device.address)) > before + 20, 40)
        time.sleep(4)
        check(longest_record(wire, device) <= LONGEST, "a record is too long")
        hs.policy(OPEN_POLICY)
        echoes(go, device.ip4, within=40)
        check(len(wire.connections(device.address)) <= 2, "control had to be dialled again")
    with part("test control server, a map of 3,000 peers in short records"):
        control = TestControl(lab, "-tls")
        control.ask("fake", count=3000)
        wire = Wire(lab, 8451, 8080)
        other = lab.device(engines=2, lean=True, host="other")
        other.start("https://%s:8451" % HUB).wait_state("running", 60)
        time.sleep(2)
        check(longest_record(wire, other) <= LONGEST, "a record is too long")
        check(other.state() == "running" and not other.problem(), "it says %s" % other.problem())


@test(stand_in=False, timeout=240)
def long_records_behind_a_proxy(lab, part):
    """Behind Go's reverse proxy records grow up to 16 KB when the map is large. An engine
    for short ones says so and does not hang; a whole one takes them."""
    relay = Relay(lab)
    lab.port = 8082
    hs = Headscale(lab, relay=relay, tls=False, url="https://%s:8443" % HUB)
    lab.tls_proxy(8454, "http://%s:8082" % HUB)
    wire = Wire(lab, 8443, 8454)
    device = lab.device(engines=2, lean=True)
    with part("headscale, runs while the map is small"):
        device.up(hs, hs.auth_key())
        check(longest_record(wire, device) <= 6000, "a record is too long")
    control = TestControl(lab)
    control.ask("fake", count=3000)
    lab.tls_proxy(8455, "http://%s:8080" % HUB)
    wire = Wire(lab, 8451, 8455)
    with part("test control server, a map of 3,000 peers does not fit, and a problem says so"):
        other = lab.device(engines=2, lean=True, host="other")
        other.start("https://%s:8451" % HUB)
        refused_record(other)
        check(longest_record(wire, other) > 6000, "the records are short")
        time.sleep(5)
        check(len(wire.connections(other.address)) <= 3, "it comes again and again")
    with part("a whole engine takes it"):
        whole = lab.device(engines=2, host="whole")
        whole.start("https://%s:8451" % HUB).wait_state("running", 60)
        longest_record(wire, whole)


# ---- relays, names ---------------------------------------------------------------------------


def proxied_relay(lab, relay, meta):
    """Puts derpproxy.py before a relay; returns it and the file with what it hears."""
    log = os.path.join(lab.folder, "heard-%s.json" % ("meta" if meta else "plain"))
    p = lab.process("derpproxy-%s" % ("meta" if meta else "plain"), [
        sys.executable, os.path.join(TOP, "tests/interop/derpproxy.py"), str(relay.port),
        str(relay.port + 10), lab.cert, lab.key, log] + (["meta"] if meta else []))
    wait_for("the proxy listens", lambda: ":%d " % relay.port in run(["ss", "-ltn"]).stdout)
    return p, log


def first_words(log, address, at_least=1):
    """What we said on the newest connection before the relay had said anything."""
    def there():
        if not os.path.exists(log):
            return None
        with open(log) as f:
            said = [e["before"] for e in map(json.loads, f) if e["from"] == address]
        return said if len(said) >= at_least else None
    return wait_for("our connection to the relay", there, 40)[-1]


@test(stand_in=False)
def fast_start(lab, part):
    """A relay whose key is in its certificates gets request and login in one go."""
    relay = Relay(lab, port=8455)
    relay.port = 8445                       # where the proxy before it listens
    proxy, log = proxied_relay(lab, relay, meta=True)
    hs, go, ours = pair(lab, part, relay=relay, tun=None)
    with part("the login comes with the request, before the relay has said a word"):
        said = first_words(log, ours.address)
        head, _, rest = said.partition("\r\n\r\n")
        check(head.startswith("GET /derp HTTP/1.1\r\n"), head)
        check("\r\nDerp-Fast-Start: 1" in head, head)
        # The first frame: type 2, length, our public key, nonce, sealed box.
        check(len(rest) > 5 + 32 + 24 + 16 and rest[0] == "\2", "after it: %d bytes" % len(rest))
    with part("the relay takes it: traffic"):
        echoes(go, ours.ip4, within=20)
    with part("a relay without such a certificate is asked the old way"):
        proxy.kill()
        proxy, log = proxied_relay(lab, relay, meta=False)
        said = first_words(log, ours.address)
        check(said.startswith("GET /derp HTTP/1.1\r\n") and said.endswith("\r\n\r\n"), said)
        check("Fast-Start" not in said, said)
    with part("traffic again"):
        echoes(go, ours.ip4, within=30)


@test(timeout=240, stand_in=False)
def guest_relays(lab, part):
    """Two relays, peers at home at different ones: each is reached at its own."""
    relays = {900: Relay(lab), 901: Relay(lab, region=901, port=8446, stun=3481)}
    hs = Headscale(lab, relay=list(relays.values()))
    key = hs.auth_key("--reusable")
    ours = lab.ours("ours", tun="tun0").up(hs, key)
    home = ours.event("state")["region"]
    check(home in relays, "our home is %s" % home)
    away = 1801 - home
    near, far = lab.official("near"), lab.official("far")
    with part("one peer at home where we are, one elsewhere"):
        for node, region in ((near, home), (far, away)):
            node.up(hs, key)
            node.cli("debug", "force-prefer-derp", str(region))
            node.cli("debug", "restun")
            node.wait_peer(ours.ip4)
        for node, observer, region in ((near, far, home), (far, near, away)):
            wait_for("%s is at home at %d" % (node.host, region), lambda: (
                observer.peer(node.ip4) or {}).get("Relay") == "own%d" % region, 40)
        udp_echo(lab, near, 7007)
        udp_echo(lab, far, 7007)
        udp_echo(lab, ours, 7007)
    with part("we are connected to one relay"):
        check(len(relay_ports(ours)) == 1, "to %s" % relay_ports(ours))
    with part("our first packet to the far one arrives, at its relay"):
        check(udp(ours, far.ip4, 7007, count=3, wait=2.0) >= 2, "echoes are missing")
        check(relay_ports(ours) == {8445, 8446}, "connected to %s" % relay_ports(ours))
    with part("to the near one too"):
        check(udp(ours, near.ip4, 7007, count=3, wait=2.0) >= 2, "echoes are missing")
    with part("both reach us"):
        for node in (near, far):
            wait_for("echoes for " + node.host,
                     lambda: udp(node, ours.ip4, 7007, count=3, wait=0.5) == 3)
    with part("the guest relay restarts: the flow comes back, the other goes on"):
        flow, steady = Flow(lab, ours, far.ip4, 7007), Flow(lab, ours, near.ip4, 7007)
        flow.wait_flowing()
        steady.wait_flowing()
        begin = time.monotonic()
        relays[away].restart(2)
        wait_for("the flow comes back", lambda: flow.count(begin + 2.3) >= 5, 60)
        # Until then it may go through our own relay, where the peer is a guest.
        wait_for("both relays again", lambda: relay_ports(ours) == {8445, 8446}, 30)
        check(steady.longest_gap(begin) < 2.0, "a gap of %.1f s" % steady.longest_gap(begin))


def relay_ports(node):
    """The ports of the relays that a node is connected to."""
    listed = run(["ss", "-tnH", "state", "established"], ns=node.ns).stdout
    ports = {int(line.split()[3].rsplit(":", 1)[1]) for line in listed.splitlines()}
    return ports & {8445, 8446}


@test(stand_in=False)
def magic_dns(lab, part):
    """Our answers to DNS questions, beside those of the official client."""
    # The official client writes /etc/resolv.conf: let it have one of its own.
    own = lab.write("resolv.conf", "nameserver 127.0.0.1\n")
    run(["mount", "--bind", own, "/etc/resolv.conf"])
    hs = Headscale(lab)
    key = hs.auth_key("--reusable")
    go = lab.official("go1")
    ours = lab.ours("ours", tun="tun0", extra=["--dns"])
    with part("both join"):
        go.up(hs, key)
        go.cli("set", "--accept-dns=true")
        ours.up(hs, key)
        go.wait_peer(ours.ip4)
        ours.wait_sees("go1")
    names = ["go1.lab.test", "ours.lab.test", "OURS.Lab.Test", "nobody.lab.test",
             "a.b.ours.lab.test", "lab.test"]
    # What another type than PTR is at such a name, Go takes for no name at all.
    backward = [reverse(ip) for ip in (go.ip4, ours.ip4, go.ip6, ours.ip6, "100.64.77.77",
                                       "fd7a:115c:a1e0::77")]
    for kind, asked, least in (("A", names, 3), ("AAAA", names, 0), ("TXT", names, 0),
                               ("PTR", backward, 4)):
        with part("the same answers for %s" % kind):
            asked = ["%s/%s" % (n, kind) for n in asked]
            theirs, mine = (dns(node, asked) for node in (go, ours))
            for question, a, b in zip(asked, theirs, mine):
                print("    %-40s %s" % (question[-40:], a["code"]))
                check(a == b, "%s: they say %s, we say %s" % (question, a, b))
            good = sum(1 for a in theirs if a["answers"])
            check(good >= least, "only %d questions have answers" % good)


def reverse(ip):
    return ipaddress.ip_address(ip).reverse_pointer


def dns(node, questions):
    """What the resolver of the tailnet says in a node's namespace."""
    done = node.run(sys.executable, os.path.join(TOP, "tests/interop/dnsask.py"),
                    "100.100.100.100", *questions)
    return [json.loads(line) for line in done.stdout.splitlines()]
