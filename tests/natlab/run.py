#!/usr/bin/env python3
"""NAT lab: tailnetd and the official client behind routers of all kinds, in network
namespaces of their own.

    run.py [-k WORD] [--not WORD] [--quick] [--go-only] [--cells a,b] [--workers N] [--list]

--quick measures each pair once; --go-only leaves our program out: it tests the lab. Logs
of a test lie in build/natlab/NAME. Prints a line `ok` or `not ok` for everything that is
checked, and at last "N passed, N failed"."""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback

import world as world_module
from lab import Failed

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../interop"))

import matrix                                                           # noqa: E402
import scripts                                                          # noqa: E402

TOP = world_module.base.TOP
OUT = os.path.join(TOP, "build/natlab")
RESOLV = "/etc/resolv.conf"
TESTS = dict({"matrix": matrix.matrix}, **scripts.TESTS)
# The longest first, so that all end about together.
SLOTS = scripts.SLOTS


class Stop(Exception):
    """A part has failed and said so."""


class Parts:
    """Counts the named parts of one test; one that fails ends the test, because the
    rest stands on it, unless it says that it goes on."""

    def __init__(self, test):
        self.test, self.passed, self.failed = test, 0, 0

    @contextlib.contextmanager
    def __call__(self, name, goes_on=False):
        begin = time.monotonic()
        try:
            yield
        except Exception as e:
            self.failed += 1
            what = str(e) if isinstance(e, Failed) else traceback.format_exc()
            print("not ok %s: %s: %s" % (self.test, name, what), flush=True)
            if not goes_on:
                raise Stop() from None
            return
        self.passed += 1
        print("ok %s: %s (%.1f s)" % (self.test, name, time.monotonic() - begin), flush=True)


def private_files(folder):
    """An empty /run, an /etc/hosts with the server's name, a resolv.conf of our own."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    os.makedirs("/run/netns")
    name = world_module.base.CONTROL_NAME
    for path, text in (
            ("/etc/hosts", "127.0.0.1 localhost\n%s %s\n%s %s\n" % (
                world_module.HUB, name, world_module.HUB6, name)),
            (RESOLV, "nameserver %s\noptions timeout:1 attempts:1\n" % world_module.HUB)):
        mine = os.path.join(folder, os.path.basename(path))
        with open(mine, "w") as f:
            f.write(text)
        subprocess.run(["mount", "--bind", mine, path], check=True)


def inside(name, options):
    """One test, in namespaces made for it."""
    parts = Parts(name)
    folder = os.path.join(OUT, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    private_files(folder)
    try:
        with world_module.World(folder) as world:
            TESTS[name](world, parts, options)
    except Stop:
        pass
    except Exception as e:
        parts.failed += 1
        what = str(e) if isinstance(e, Failed) else traceback.format_exc()
        print("not ok %s: outside its parts: %s" % (name, what))
    print("%d passed, %d failed" % (parts.passed, parts.failed), flush=True)
    return 1 if parts.failed else 0


class Runner:
    """Starts tests as programs in fresh namespaces; whatever they leave behind ends
    with the first process of their process namespace, also after ^C."""

    def __init__(self, options, flags):
        self.options, self.flags = options, flags
        self.passed = self.failed = 0
        self.children, self.lock = [], threading.Lock()

    def one(self, name):
        words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                 sys.executable, os.path.abspath(__file__), "--inside", name] + self.flags
        begin = time.monotonic()
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, text=True, errors="replace",
                                 start_new_session=True)
        with self.lock:
            self.children.append(child)
        try:
            out = child.communicate(timeout=scripts.TIMEOUT.get(name, 480))[0]
        except subprocess.TimeoutExpired:
            child.kill()
            out = child.communicate()[0] + "\nnot ok %s: not done in time\n" % name
        self.report(name, out, time.monotonic() - begin)

    def report(self, name, out, seconds):
        m = re.search(r"^(\d+) passed, (\d+) failed\s*$", out, re.M)
        passed, failed = (int(m.group(1)), int(m.group(2))) if m else (
            len(re.findall(r"^ok ", out, re.M)), 1)
        out = re.sub(r"^\d+ passed, \d+ failed\s*$", "", out, flags=re.M).rstrip()
        with self.lock:
            self.passed, self.failed = self.passed + passed, self.failed + max(
                failed, 1 - passed if passed + failed == 0 else failed)
            print("# %s: %d passed, %d failed, %.0f s" % (name, passed, failed, seconds))
            print(out)
            if failed:
                print("# its logs: build/natlab/%s" % name)
            sys.stdout.flush()

    def all(self, names):
        """The matrix alone, as it measures milliseconds; then the slots side by side, each
        of them test after test."""
        def work(mine):
            for name in mine:
                self.one(name)
        work([n for n in names if n == "matrix"])
        slots = [[n for n in slot if n in names] for slot in SLOTS]
        threads = [threading.Thread(target=work, args=(s,)) for s in slots if s]
        for t in threads:
            t.start()
        for t in threads:
            t.join()

    def end(self, *_):
        """^C: the tests end with their namespaces."""
        for child in self.children:
            with contextlib.suppress(OSError):
                child.kill()
        print("natlab: interrupted")
        os._exit(1)


def build():
    os.makedirs(os.path.join(TOP, "build"), exist_ok=True)
    done = subprocess.run(["cc", "-std=c99", "-O2", "-g", "-I.", "examples/tailnetd.c",
                           "-lbearssl", "-o", "build/tailnetd"], cwd=TOP)
    return done.returncode == 0


def read_options():
    args = argparse.ArgumentParser(usage=__doc__)
    args.add_argument("-k", action="append")
    args.add_argument("--not", dest="unwanted")
    args.add_argument("--quick", action="store_true")
    args.add_argument("--go-only", action="store_true")
    args.add_argument("--cells", type=lambda text: text.split(","))
    args.add_argument("--workers", type=int, default=8)
    args.add_argument("--list", action="store_true")
    args.add_argument("--inside")
    return args.parse_args()


def main():
    options = read_options()
    if options.inside:
        sys.exit(inside(options.inside, options))
    if options.list:
        for name, f in TESTS.items():
            print("%-20s %s" % (name, (f.__doc__ or "").splitlines()[0]))
        return
    names = [n for n in TESTS if not options.k or any(k in n for k in options.k)]
    names = [n for n in names if not options.unwanted or options.unwanted not in n]
    if options.go_only:
        names = [n for n in names if n not in scripts.ONLY_OURS]
    if os.geteuid() != 0 or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        print("the NAT lab has to be root, and needs /dev/net/tun\nnatlab: 0 passed, 1 failed")
        sys.exit(1)
    before = open(RESOLV).read() if os.path.exists(RESOLV) else None
    if "TAILNETD" not in os.environ and not options.go_only and not build():
        print("tailnetd does not build\nnatlab: 0 passed, 1 failed")
        sys.exit(1)
    begin = time.monotonic()
    runner = Runner(options, sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, runner.end)
    runner.all(names)
    same = before == (open(RESOLV).read() if os.path.exists(RESOLV) else None)
    print("%s %s is as it was" % ("ok" if same else "not ok", RESOLV))
    print("# %.0f s" % (time.monotonic() - begin))
    print("natlab: %d passed, %d failed" % (runner.passed + same, runner.failed + (not same)))
    sys.exit(1 if runner.failed or not same else 0)


if __name__ == "__main__":
    main()
