#!/usr/bin/env python3
"""bench: tailnetd and tailscaled side by side, in one run, on this machine.

    bench.py [--stand-in] [--seconds N] [--rounds N] [--only join|relay|direct]

Join time (process start to running) with a table of where it goes, resident
memory, TCP through one relay and over the direct path. Prints; asserts nothing."""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

import lab as lab_module
import run as runner
from lab import Headscale, Iperf, Lab, icmp, wait_for

OUT = os.path.join(lab_module.TOP, "build/interop/bench")


def row(*cells):
    print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)


def head(title, *cells):
    print("\n%s\n" % title)
    row(*cells)
    print("|" + "---|" * len(cells))


def ms(seconds):
    return "%.0f ms" % (seconds * 1000)


def middle(values):
    return statistics.median(values)


# ---- join -------------------------------------------------------------------------------


def join_ours(lab, hs, host):
    """Seconds from process start to running, and the node."""
    node = lab.ours(host)
    key = hs.auth_key()
    if lab.stand_in:
        begin = time.monotonic()
        node.up(hs, key)
        return time.monotonic() - begin, node
    node.start(hs, key).wait_state("running")
    return node.event("state")["at"], node


def join_theirs(lab, hs, host):
    """The same for tailscaled: its process is started by us as well, so from there
    to the end of `tailscale up`, and of that alone."""
    key = hs.auth_key()
    begin = time.monotonic()
    node = lab.official(host)
    wait_for("tailscaled answers", lambda: os.path.exists(node.socket), every=0.01)
    ready = time.monotonic()
    node.up(hs, key)
    return time.monotonic() - begin, time.monotonic() - ready, node


def where_it_goes(lab, node):
    """The steps as tailnetd -v logs them, when it says them with times."""
    if lab.stand_in:
        return
    path = os.path.join(lab.folder, "events-%s.log" % node.host)
    with open(path) as f:
        steps = re.findall(r"^([\d.]+) (\{.*\})$", f.read(), re.M)
    head("Where the join of tailnetd goes", "after", "event")
    for at, event in steps[:14]:
        row(ms(float(at)), event[:90].replace("|", "/"))


def bench_join(lab, hs, rounds):
    ours, theirs, up, nodes = [], [], [], []
    for i in range(rounds):
        seconds, node = join_ours(lab, hs, "ours%d" % i)
        ours.append(seconds)
        nodes.append(node)
        process, alone, other = join_theirs(lab, hs, "go%d" % i)
        theirs.append(process)
        up.append(alone)
        nodes.append(other)
    head("Join: process start to running, %d rounds, local headscale" % rounds, "", "median",
         "fastest", "slowest")
    for name, values in (("tailnetd", ours), ("tailscaled and tailscale up", theirs),
                         ("tailscale up alone", up)):
        row(name, ms(middle(values)), ms(min(values)), ms(max(values)))
    print("\ntailnetd takes %.0f %% of `tailscale up`; wanted: at most 33 %%" % (
        100 * middle(ours) / middle(up)))
    where_it_goes(lab, nodes[0])
    return nodes


# ---- memory -----------------------------------------------------------------------------


def bench_memory(title, ours, theirs):
    head(title, "", "resident", "most so far")
    for name, node in (("tailnetd", ours), ("tailscaled", theirs)):
        row(name, *("%.1f MB" % (node.rss_kb(f) / 1024) for f in ("VmRSS", "VmHWM")))


# ---- TCP through the relay ----------------------------------------------------------------


def per_megabyte(runs):
    """Retransmissions of all runs for each megabyte that arrived."""
    lost, arrived = sum(r.retransmits for r in runs), sum(r.bytes for r in runs) / 1e6
    return "%d (%.1f)" % (lost, lost / arrived) if arrived else "nothing arrived"


def tcp_table(lab, pairs, seconds, rounds):
    """Each pair in turn, so that a busy moment of the machine meets all of them."""
    out, back = {n: [] for n in pairs}, {n: [] for n in pairs}
    for _ in range(rounds):
        for name, (node, far) in pairs.items():
            out[name].append(Iperf(lab, node, far, far.ip4, seconds=seconds))
            back[name].append(Iperf(lab, node, far, far.ip4, seconds=seconds, reverse=True))
    kind = far.run("cat", "/proc/sys/net/ipv4/tcp_congestion_control").stdout.strip()
    head("TCP (%s) through headscale's relay, one stream, %d times %d s" % (kind, rounds, seconds),
         "", "there, median", "back, median", "retransmissions there (for each MB)",
         "retransmissions back (for each MB)")
    for name in pairs:
        row(name, *("%.0f Mbit/s" % middle([r.mbits for r in runs[name]]) for runs in (out, back)),
            per_megabyte(out[name]), per_megabyte(back[name]))


def bench_tcp(lab, hs, seconds, rounds):
    key = hs.auth_key("--reusable")
    far = lab.official("far").up(hs, key)
    far_ours = lab.ours("far-ours", tun="tun0").up(hs, key)
    ours = lab.ours("tun-ours", tun="tun0").up(hs, key)
    theirs = lab.official("tun-go").up(hs, key)
    pairs = {"tailnetd to tailscaled": (ours, far), "tailscaled to tailscaled": (theirs, far),
             "tailnetd to tailnetd": (ours, far_ours)}
    for node, other in pairs.values():
        wait_for("the way is open", lambda a=node, b=other: icmp(a, b.ip4, 2, timeout=3), 30)
    tcp_table(lab, pairs, seconds, rounds)
    bench_memory("Memory after that", ours, theirs)


# ---- TCP over the direct path ---------------------------------------------------------------


def cpu_seconds(node):
    """Processor time of a node's program so far. `ip netns exec` became it."""
    with open("/proc/%d/stat" % node.process.pid()) as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def direct_run(lab, client, server, seconds, reverse):
    before = [cpu_seconds(n) for n in (client, server)]
    done = Iperf(lab, client, server, server.ip4, seconds=seconds, reverse=reverse)
    used = [(cpu_seconds(n) - b) / seconds for n, b in zip((client, server), before)]
    return done, used


def is_direct(pair):
    """Traffic flows, and the first official client of the pair has an address for it."""
    a, b = pair
    if not icmp(a, b.ip4, 2, timeout=3):
        return False
    for node, other in ((a, b), (b, a)):
        if hasattr(node, "cli"):
            return bool((node.peer(other.ip4) or {}).get("CurAddr"))
    return "direct" in json.dumps(a.event("paths") or {})


def bench_direct(lab, hs, seconds):
    key = hs.auth_key("--reusable")
    made = {}
    for name in ("go1", "go2", "go3"):
        made[name] = lab.official(name, relay_only=False).up(hs, key)
    for name in ("our1", "our2", "our3"):
        made[name] = lab.ours(name, tun="tun0", relay_only=False).up(hs, key)
    pairs = {"tailscaled to tailscaled": ("go1", "go2"), "tailnetd to tailnetd": ("our1", "our2"),
             "tailnetd to tailscaled": ("our3", "go3")}
    head("TCP over the direct path, one stream, %d s each way, two processors for all" % seconds,
         "", "there", "back", "processors there: sender, receiver", "and back", "retransmissions")
    for title, names in pairs.items():
        a, b = (made[n] for n in names)
        wait_for("the path of %s is direct" % title, lambda p=(a, b): is_direct(p), 30)
        out, used_out = direct_run(lab, a, b, seconds, False)
        back, used_back = direct_run(lab, a, b, seconds, True)
        row(title, "%.0f Mbit/s" % out.mbits, "%.0f Mbit/s" % back.mbits,
            "%.2f, %.2f" % tuple(used_out), "%.2f, %.2f" % tuple(reversed(used_back)),
            "%d, %d" % (out.retransmits, back.retransmits))
    bench_memory("Memory after that", made["our1"], made["go1"])


def bench(args):
    runner.private_files(OUT)
    with Lab(OUT, args.stand_in) as lab:
        hs = Headscale(lab)
        if args.only in (None, "join"):
            nodes = bench_join(lab, hs, args.rounds)
            time.sleep(2)
            bench_memory("Memory, idle, %d peers" % (len(nodes) - 1), nodes[0], nodes[1])
            for node in nodes:
                node.kill()
        if args.only in (None, "relay"):
            bench_tcp(lab, hs, args.seconds, args.rounds)
        if args.only in (None, "direct"):
            bench_direct(lab, hs, args.seconds)


def main():
    args = argparse.ArgumentParser(usage=__doc__)
    args.add_argument("--stand-in", action="store_true")
    args.add_argument("--seconds", type=int, default=10)
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--only", choices=("join", "relay", "direct"))
    args.add_argument("--inside", action="store_true")
    args = args.parse_args()
    if args.inside:
        return bench(args)
    runner.build()
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    return sys.exit(subprocess.run(runner.isolation() + [sys.executable] + sys.argv +
                                   ["--inside"]).returncode)


main()
