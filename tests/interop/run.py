#!/usr/bin/env python3
"""Interop tests: tailnetd with headscale, the official client, relay and test
control server, as programs, in network namespaces of their own.

    run.py [-k WORD] [--only NAME] [--list] [--stand-in] [--jobs N] [--keep-going]

--stand-in puts the official client in our place: it tests the tests. Logs of a
test lie in build/interop/NAME. Ends with "N passed, N failed"; what is counted
are the parts of the tests."""

import argparse
import concurrent.futures
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import traceback

import lab as lab_module
import tests as suite

TOP = lab_module.TOP
OUT = os.path.join(TOP, "build/interop")
RESOLV = "/etc/resolv.conf"


# ---- inside: one test in its own namespaces --------------------------------------------


class Parts:
    """Counts the named parts of one test; the first that fails ends it, because
    the rest stands on it."""

    def __init__(self):
        self.passed = self.failed = 0

    @contextlib.contextmanager
    def __call__(self, name):
        begin = time.monotonic()
        try:
            yield
        except Exception as e:
            self.failed += 1
            what = str(e) if isinstance(e, lab_module.Failed) else traceback.format_exc()
            print("  FAILED %s: %s" % (name, what), flush=True)
            raise suite.Stop() from None
        self.passed += 1
        print("  ok %-58s %6.1f s" % (name, time.monotonic() - begin), flush=True)


def private_files(folder):
    """An empty /run for namespaces and sockets, /etc/hosts with the server's name."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    os.makedirs("/run/netns")
    hosts = os.path.join(folder, "hosts")
    with open(hosts, "w") as f:
        f.write("127.0.0.1 localhost\n%s %s\n" % (lab_module.HUB, lab_module.CONTROL_NAME))
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)


def inside(name, stand_in):
    parts = Parts()
    folder = os.path.join(OUT, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    private_files(folder)
    try:
        with lab_module.Lab(folder, stand_in) as lab:
            suite.TESTS[name](lab, parts)
    except suite.Stop:
        pass
    except Exception as e:
        parts.failed += 1
        what = str(e) if isinstance(e, lab_module.Failed) else traceback.format_exc()
        print("  FAILED outside its parts: %s" % what)
    print("%d passed, %d failed" % (parts.passed, parts.failed), flush=True)
    return 1 if parts.failed else 0


# ---- outside: all tests -----------------------------------------------------------------


def isolation():
    """The command that gives a test its own namespaces, as root or without."""
    words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return words if os.geteuid() == 0 else words + ["--user", "--map-root-user"]


def may_run():
    """Why the tests cannot run here, or None."""
    probe = subprocess.run(isolation() + ["true"], stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
    if probe.returncode != 0:
        return "network namespaces are not to be had (%s): run as root" % probe.stdout.strip()
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun is not to be opened: run as root, or  chmod 666 /dev/net/tun"
    return None


def one(name, stand_in, script=__file__):
    """Runs a test (of another copy of this script) and returns its output, count and time."""
    words = isolation() + [sys.executable, os.path.abspath(script), "--inside", name]
    begin = time.monotonic()
    try:
        done = subprocess.run(words + (["--stand-in"] if stand_in else []),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace",
                              timeout=suite.TIMEOUT.get(name, 180))
        out = done.stdout
    except subprocess.TimeoutExpired as e:
        out = (e.stdout or b"").decode(errors="replace") + "  FAILED: not done in time\n"
    m = re.search(r"^(\d+) passed, (\d+) failed\s*$", out, re.M)
    passed, failed = (int(m.group(1)), int(m.group(2))) if m else (
        len(re.findall(r"^  ok ", out, re.M)), 1)
    if passed + failed == 0:
        failed = 1
    out = re.sub(r"^\d+ passed, \d+ failed\s*$", "", out, flags=re.M).rstrip()
    return name, out, passed, failed, time.monotonic() - begin


def select(args):
    names = [n for n in suite.TESTS if not args.only or n in args.only]
    names = [n for n in names if not args.k or any(k in n for k in args.k)]
    if args.stand_in:
        names = [n for n in names if n not in suite.NO_STAND_IN]
    if not names:
        sys.exit("no such test; run.py --list names them")
    return names


def report(result):
    name, out, passed, failed, seconds = result
    print("%s %s: %d passed, %d failed, %.0f s" % (
        "FAILED" if failed else "ok", name, passed, failed, seconds))
    print(out, flush=True)
    if failed:
        print("    its logs: build/interop/%s" % name)
    return passed, failed


def build():
    """Our programs, when their sources are there, and nobody brings others."""
    if lab_module.OURS != "build/tailnetd":
        return
    os.makedirs(os.path.join(TOP, "build"), exist_ok=True)
    device = "tests/interop/device.c"
    for source, out, more in (("examples/tailnetd.c", "build/tailnetd", []),
                              ("tests/interop/two_nodes.c", "build/two_nodes", []),
                              (device, "build/device", []),
                              (device, "build/device_lean", ["-DTAILNET_CONTROL_RECORD=6000"])):
        if os.path.exists(os.path.join(TOP, source)):
            done = subprocess.run(["cc", "-std=c99", "-O2", "-g", "-I."] + more + [
                source, "-lbearssl", "-o", out], cwd=TOP)
            if done.returncode != 0:
                print("%s does not build" % source)


def main():
    args = argparse.ArgumentParser(usage=__doc__)
    args.add_argument("-k", action="append")
    args.add_argument("--only", action="append")
    args.add_argument("--list", action="store_true")
    args.add_argument("--stand-in", action="store_true")
    args.add_argument("--jobs", type=int, default=2)
    args.add_argument("--inside")
    args = args.parse_args()
    if args.inside:
        sys.exit(inside(args.inside, args.stand_in))
    if args.list:
        for name, f in suite.TESTS.items():
            print("%-24s %s" % (name, (f.__doc__ or "").splitlines()[0]))
        return
    names = select(args)
    why = may_run()
    if why:
        print(why)
        print("interop: 0 passed, %d failed" % len(names))
        sys.exit(1)
    before = open(RESOLV).read() if os.path.exists(RESOLV) else None
    build()
    passed = failed = 0
    # Those that fill both processors run alone, after the others.
    light = [n for n in names if n not in suite.ALONE]
    with concurrent.futures.ThreadPoolExecutor(max(1, args.jobs)) as pool:
        for result in pool.map(lambda n: one(n, args.stand_in), light):
            p, f = report(result)
            passed, failed = passed + p, failed + f
    for name in [n for n in names if n in suite.ALONE]:
        p, f = report(one(name, args.stand_in))
        passed, failed = passed + p, failed + f
    after = open(RESOLV).read() if os.path.exists(RESOLV) else None
    if before == after:
        passed += 1
    else:
        failed += 1
        print("FAILED %s is not as it was" % RESOLV)
    print("interop: %d passed, %d failed" % (passed, failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
