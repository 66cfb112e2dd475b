"""The matrix: every cell is two sites, and in every site live official clients and
nodes of ours. All nodes are in one tailnet and stay up; two nodes that have not talked
yet have no path, so each pair of nodes is one measurement.

Rule: where two official clients get to a direct path, ours does so as well, and no TCP
connection is lost on the way. Times are compared by medians of the same run."""

import concurrent.futures
import itertools
import os
import random
import statistics
import threading
import time

from lab import Failed, Headscale, check
from measure import Measurement
from world import Go, Ours, Router, Site, join_all, wait_all_see

# name: what a router of the site does; "@name" is the same place as another site.
SITES = {
    "none-a": "none", "none-b": "none", "easy-a": "easy", "easy-b": "easy",
    "easy-c": "@easy-a", "hard-a": "hard", "hard-b": "hard", "cgn": "cgn", "blocked": "blocked",
    "only443": "only443", "v6": "v6", "dual": "dual", "timeout30": "timeout30",
}

# cell: sites, and whether a direct path is to be had there at all
CELLS = {
    "none/none": ("none-a", "none-b", True),
    "none/easy": ("none-a", "easy-a", True),
    "easy/easy": ("easy-a", "easy-b", True),
    "none/hard": ("none-b", "hard-a", True),
    "easy/hard": ("easy-b", "hard-a", False),
    "hard/hard": ("hard-a", "hard-b", False),
    "cgn/easy": ("cgn", "easy-a", True),
    "cgn/hard": ("cgn", "hard-b", False),
    "blocked/easy": ("blocked", "easy-b", False),
    "only443/easy": ("only443", "easy-a", False),
    "v6/dual": ("v6", "dual", True),
    "same NAT": ("easy-a", "easy-c", True),
    "timeout30/easy": ("timeout30", "easy-b", True),
}
# kind of pair: letters of (who begins, the other)
PAIRS = {"Go-Go": "GG", "ours>Go": "oG", "Go>ours": "Go", "ours-ours": "oo"}
RATIO = 1.2
ERROR = 0.005                       # of one measurement, on a machine with work to do
RELAY_SECONDS = 7.0                 # how long a relay cell is given to become direct


def build_site(world, name, places):
    kind = SITES[name]
    if kind.startswith("@"):
        return places[kind[1:]]
    if kind in ("none", "v6"):
        return Site(world, name, kind)
    if kind == "cgn":
        return Router(world, name, "easy", outer=Router(world, name + "-isp", "easy"))
    if kind == "dual":
        return Router(world, name, "easy", v6=True)
    if kind == "timeout30":
        return Router(world, name, "easy", udp_timeout=30)
    return Router(world, name, kind)


class Matrix:
    def __init__(self, world, count, cells=None, ours=True):
        self.world, self.count, self.ours = world, count, ours
        self.cells = cells or list(CELLS)
        self.results = {}           # (cell, pair): [Measurement]
        self.claims = []            # what programs say differently from the cable
        self.sites = {}
        self.lock = threading.Condition()
        self.log = open(os.path.join(world.folder, "measured.log"), "w", buffering=1)

    def build(self):
        """Everything up and joined: the control server and all nodes."""
        self.hs = Headscale(self.world, by_name=True)
        key = self.hs.auth_key("--reusable")
        places = {}
        used = [s for s in SITES if any(s in CELLS[c][:2] for c in self.cells)]
        for name in used:
            root = SITES[name][1:] if SITES[name].startswith("@") else name
            for n in (root, name):
                if n not in places:
                    places[n] = build_site(self.world, n, places)
            kinds = (Go, Ours) if self.ours else (Go,)
            self.sites[name] = [
                k(self.world, places[name], "%s-%s%d" % (name, k.letter.lower(), i))
                for k in kinds for i in range(self.count)]
        self.nodes = [n for site in self.sites.values() for n in site]
        join_all(self.nodes, self.hs, key)
        wait_all_see(self.nodes)

    def jobs(self):
        """Every pair of nodes of every cell, once; each side begins half of them."""
        for cell in self.cells:
            a, b, _ = CELLS[cell]
            turns = {}
            for x, y in itertools.product(self.sites[a], self.sites[b]):
                same = x.letter + y.letter
                turn = turns[same] = turns.get(same, -1) + 1
                # Four pairs of a kind are begun from a, b, b, a: each node once.
                first, second = (y, x) if turn % 4 in (1, 2) else (x, y)
                yield cell, first, second

    def run(self, workers):
        """First what only a relay carries, which takes long and says nothing of times, side
        by side; then what is direct within milliseconds, one pair at a time."""
        jobs = list(self.jobs())
        self._run([j for j in jobs if not CELLS[j[0]][2]], workers)
        self._run([j for j in jobs if CELLS[j[0]][2]], 1)

    def _run(self, jobs, workers):
        # The same mix of fresh and idle nodes for all kinds of pairs.
        random.Random(1).shuffle(jobs)
        busy = set()

        def take():
            with self.lock:
                while jobs:
                    for job in jobs:
                        if not busy & set(job[1:]):
                            jobs.remove(job)
                            busy.update(job[1:])
                            return job
                    self.lock.wait()
            return None

        def work():
            for cell, x, y in iter(take, None):
                try:
                    self._measure(cell, x, y)
                finally:
                    with self.lock:
                        busy.difference_update((x, y))
                        self.lock.notify_all()

        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            for f in [pool.submit(work) for _ in range(workers)]:
                f.result()

    def _measure(self, cell, x, y):
        direct = CELLS[cell][2]
        m = Measurement(x, y, limit=12.0 if direct else RELAY_SECONDS, after=1.0)
        try:
            m.run()
        except (Failed, OSError) as e:
            m.tcp, m.lost, m.before = "not measured: %s" % e, 0, 0
        said = [n.path(o)[0] for n, o in ((x, y), (y, x))]
        truth = "direct" if m.direct is not None else "relay"
        if any(s != truth for s in said):
            self.claims.append("%s: %s says %s, %s says %s, on the cable it is %s" % (
                cell, x.host, said[0], y.host, said[1], truth))
        kind = next(k for k, v in PAIRS.items() if v == x.letter + y.letter)
        with self.lock:
            self.results.setdefault((cell, kind), []).append(m)
            print("  %s: %s to %s at %s, direct after %s" % (
                cell, x.host, y.host, time.strftime("%H:%M:%S", time.localtime(
                    time.time() - time.monotonic() + m.begin)),
                [(n.host, round(t - m.begin, 4)) for n, t in m.direct_at.items()]), file=self.log)

    # -- what came of it --

    def table(self):
        """Rows of text; also whether each cell keeps the rule."""
        print("| cell | pair | path | to direct, s | Go-Go's, times | each | first echo, s "
              "| lost before it | after it | TCP kept | longest TCP stall, s |")
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        for cell in self.cells:
            for kind in PAIRS:
                ms = self.results.get((cell, kind))
                if ms:
                    print(self._row(cell, kind, ms), flush=True)

    def _row(self, cell, kind, ms):
        times = sorted(m.direct for m in ms if m.direct is not None)
        answers = sorted(m.answered for m in ms if m.answered is not None)
        path = "direct" if len(times) == len(ms) else "relay" if not times else \
            "direct %d of %d" % (len(times), len(ms))
        kept = sum(1 for m in ms if m.tcp is None)
        go = [m.direct for m in self.results.get((cell, "Go-Go"), []) if m.direct is not None]
        return "| %s | %s | %s | %s | %s | %s | %s | %d | %d of %d | %d of %d | %.2f |" % (
            cell, kind, path, "%.3f" % statistics.median(times) if times else "-",
            "%.1f" % (statistics.median(times) / statistics.median(go)) if times and go else "-",
            " ".join("%.3f" % t for t in times) or "-",
            "%.2f" % statistics.median(answers) if answers else "-",
            sum(m.before for m in ms), sum(m.lost for m in ms),
            sum(len(m.sent_at) for m in ms), kept, len(ms),
            max((m.slow.stall for m in ms if hasattr(m, "slow")), default=0))

    def judge(self, cell, kind):
        """What is wrong with one kind of pair in one cell."""
        ms = self.results.get((cell, kind)) or []
        go = self.results.get((cell, "Go-Go")) or []
        fails = []
        if not ms:
            return ["nothing measured"]
        dead = [m for m in ms if m.answered is None]
        if dead:
            fails.append("%d of %d pairs without any answer" % (len(dead), len(ms)))
        lost = [m.tcp for m in ms if m.tcp]
        if lost:
            fails.append("TCP: " + "; ".join(sorted(set(lost))))
        direct = [m.direct for m in ms if m.direct is not None]
        if go and all(m.direct is not None for m in go) and len(direct) < len(ms):
            fails.append("direct in %d of %d, Go with Go in all" % (len(direct), len(ms)))
        if kind != "Go-Go" and direct and go:
            ours = statistics.median(direct)
            theirs = statistics.median([m.direct for m in go if m.direct is not None] or [ours])
            if ours > RATIO * theirs + ERROR:
                fails.append("%.3f s to direct, Go with Go %.3f s: %.1f times" % (
                    ours, theirs, ours / theirs))
        return fails


def matrix(world, part, options):
    """Every cell, Go with Go, ours with Go from either side, ours with ours."""
    begin = time.monotonic()
    m = Matrix(world, 1 if options.quick else 2, options.cells, ours=not options.go_only)
    with part("all nodes join"):
        m.build()
    print("  %d nodes after %.0f s" % (len(m.nodes), time.monotonic() - begin))
    m.run(options.workers)
    print("  measured after %.0f s" % (time.monotonic() - begin))
    m.table()
    print("\nTime to direct: at most %.1f times that of Go with Go, medians of this run, and "
          "%.0f ms for the error of the measurement." % (RATIO, 1000 * ERROR))
    kinds = [k for k in PAIRS if not options.go_only or k == "Go-Go"]
    for cell in m.cells:
        for kind in kinds:
            with part("%s, %s" % (cell, kind), goes_on=True):
                fails = m.judge(cell, kind)
                check(not fails, ", ".join(fails))
    with part("programs say what is on the cable", goes_on=True):
        check(not m.claims, "; ".join(m.claims[:8]) + " (%d)" % len(m.claims))
