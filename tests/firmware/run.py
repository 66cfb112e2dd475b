#!/usr/bin/env python3
"""The firmware of examples/firmware on emulated boards, with headscale and the official
client, in network namespaces of its own.

    run.py [-k WORD] [--list]

Logs of a test lie in build/firmware/log/NAME. Ends with "N passed, N failed"."""

import argparse
import concurrent.futures
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../interop"))
sys.path.insert(0, HERE)

import lab as lab_module                                                 # noqa: E402
import device as device_module                                           # noqa: E402
import suite                                                             # noqa: E402

OUT = os.path.join(device_module.OUT, "log")


def interop():
    """The runner of the interop tests, whose parts and namespaces are used here too."""
    spec = importlib.util.spec_from_file_location("interop_run", HERE + "/../interop/run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runner = interop()


def inside(name):
    parts = runner.Parts()
    folder = os.path.join(OUT, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    runner.private_files(folder)
    try:
        with lab_module.Lab(folder) as lab:
            lab.port = 443
            suite.TESTS[name](lab, parts)
    except runner.suite.Stop:
        pass
    except Exception as e:
        parts.failed += 1
        what = str(e) if isinstance(e, lab_module.Failed) else traceback.format_exc()
        print("  FAILED outside its parts: %s" % what)
    print("%d passed, %d failed" % (parts.passed, parts.failed), flush=True)
    return 1 if parts.failed else 0


def one(name):
    """Runs a test in namespaces of its own: passed, failed."""
    begin = time.monotonic()
    words = runner.isolation() + [sys.executable, os.path.abspath(__file__), "--inside", name]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", timeout=400)
        out = done.stdout
    except subprocess.TimeoutExpired as e:
        out = (e.stdout or b"").decode(errors="replace") + "  FAILED: not done in time\n"
    m = re.search(r"^(\d+) passed, (\d+) failed\s*$", out, re.M)
    passed, failed = (int(m.group(1)), int(m.group(2))) if m else (
        len(re.findall(r"^  ok ", out, re.M)), 1)
    out = re.sub(r"^\d+ passed, \d+ failed\s*$", "", out, flags=re.M).rstrip()
    return name, out, passed, failed, time.monotonic() - begin


def report(result):
    name, out, passed, failed, seconds = result
    print("%s %s: %d passed, %d failed, %.0f s" % (
        "FAILED" if failed else "ok", name, passed, failed, seconds))
    print(out, flush=True)
    if failed:
        print("    its logs: build/firmware/log/%s" % name)


def build_all():
    """All images, before the tests: out here there is a network to fetch sources from. What
    does not build is reported by the tests that want it."""
    try:
        for board in device_module.BOARDS:
            suite.firmware(board)
        suite.budget("modem")
        suite.two_engines()
    except (lab_module.Failed, subprocess.TimeoutExpired) as e:
        print(e)


def main():
    words = argparse.ArgumentParser(usage=__doc__)
    words.add_argument("-k", action="append")
    words.add_argument("--list", action="store_true")
    words.add_argument("--inside")
    args = words.parse_args()
    if args.inside:
        sys.exit(inside(args.inside))
    names = [n for n in suite.TESTS if not args.k or any(k in n for k in args.k)]
    if args.list:
        for n in names:
            print("%-12s %s" % (n, suite.TESTS[n].__doc__.splitlines()[0]))
        return
    why = runner.may_run()
    if why or not names:
        print(why or "no such test; run.py --list names them")
        print("firmware: 0 passed, %d failed" % max(1, len(names)))
        sys.exit(1)
    build_all()
    results = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for result in pool.map(one, names):
            report(result)
            results.append(result)
    passed, failed = sum(r[2] for r in results), sum(r[3] for r in results)
    print("firmware: %d passed, %d failed" % (passed, failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
