"""What the tools of this folder share: a list of jobs, run a few at a time,
counted, and closed by one line "N passed, N failed"."""

import concurrent.futures
import os
import re
import shlex
import subprocess
import sys
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COUNT = re.compile(r"^(?:.*[^\d])?(\d+) passed, (\d+) failed\s*$")

# What our own builds ask of our own code, with gcc and with clang, in C and in C++.
WARN = shlex.split(
    "-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wundef -Wcast-align "
    "-Wcast-qual -Wwrite-strings -Wpointer-arith -Wformat=2 -Wvla -Wdouble-promotion "
    "-Wfloat-equal -Wswitch-enum -Wimplicit-fallthrough -Wredundant-decls "
    "-Wmissing-declarations -Wdate-time -Werror")
WARN_C = shlex.split("-Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition "
                     "-Wbad-function-cast -Wnested-externs")
# Not -Wnull-dereference: it follows values across a call and forgets what was asserted
# there. make lint has gcc's analyzer, which does not.
WARN_GCC = shlex.split("-Wlogical-op -Wduplicated-cond -Wduplicated-branches -Wtrampolines")
WARN_CLANG = shlex.split("-Wcomma -Wconditional-uninitialized -Wassign-enum "
                         "-Wshorten-64-to-32 -Wextra-semi")

# For a test of a few rooms: the others are compiled only as far as it calls them, which
# takes a third of the time. That all of it compiles is what tests/tools/compile sees.
ONLY_USED = "-DTAILNET_STATIC"


def jobs():
    """How many processes at a time: JOBS, or one per processor."""
    return max(1, int(os.environ.get("JOBS") or os.cpu_count() or 1))


def verbose():
    return os.environ.get("V") == "1"


class Job:
    """Commands that run one after the other until one fails. A command is a list
    of words; check may look at all the output and return what is wrong."""

    def __init__(self, name, commands, timeout=900, check=None, counts=False, env=None):
        self.name, self.commands, self.timeout = name, commands, timeout
        self.check, self.counts, self.env = check, counts, env
        self.passed, self.failed, self.why, self.output, self.seconds = 0, 0, "", "", 0.0

    def run(self):
        begin = time.monotonic()
        for words in self.commands:
            if verbose():
                print("+ " + shlex.join(words), flush=True)
            try:
                done = subprocess.run(
                    words, cwd=TOP, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, timeout=self.timeout, errors="replace",
                    env=dict(os.environ, **(self.env or {})))
                self.output += done.stdout
                if done.returncode != 0:
                    self.why = "%s: exit code %d" % (os.path.basename(words[0]), done.returncode)
            except subprocess.TimeoutExpired as e:
                out = e.stdout or b""
                self.output += out.decode(errors="replace") if isinstance(out, bytes) else out
                self.why = "%s: not done after %d s" % (os.path.basename(words[0]), self.timeout)
            except OSError as e:
                self.why = str(e)
            if self.why:
                break
        if not self.why and self.check:
            self.why = self.check(self.output) or ""
        self._count()
        self.seconds = time.monotonic() - begin
        return self

    def _count(self):
        if self.counts:
            self.passed, self.failed = last_count(self.output)
            if not self.why and self.passed + self.failed == 0:
                self.why = "no test was run"
            if self.why and self.failed == 0:
                self.failed = 1
        else:
            self.passed, self.failed = (0, 1) if self.why else (1, 0)


def last_count(text):
    """The last "N passed, N failed" of an output, or 0, 0."""
    for line in reversed(text.splitlines()):
        m = COUNT.match(line)
        if m:
            return int(m.group(1)), int(m.group(2))
    return 0, 0


def in_order(todo):
    """Runs all, some at a time; gives them back in their order as they end."""
    with concurrent.futures.ThreadPoolExecutor(jobs()) as pool:
        yield from pool.map(Job.run, todo)


def say_failure(job):
    if job.failed:
        print("FAILED: %s (%s)" % (job.name, job.why or "%d tests" % job.failed))
        for line in job.output.splitlines()[-40:]:
            print("    " + line)
        sys.stdout.flush()


def run_jobs(title, todo, quiet=True):
    """Runs all, prints what failed, ends the program with the sum."""
    passed = failed = 0
    for job in in_order(todo):
        passed, failed = passed + job.passed, failed + job.failed
        say_failure(job)
        if not job.failed and not quiet:
            print("  %-44s %5.1f s" % (job.name, job.seconds), flush=True)
    if not todo:
        print("%s: there is nothing to run" % title)
        failed = 1
    finish(title, passed, failed)


def finish(title, passed, failed):
    """The last line of every step."""
    print("%s: %d passed, %d failed" % (title, passed, failed))
    sys.exit(1 if failed else 0)


def globbed(folder, start, end):
    """The files of a folder by the beginning and end of their names, sorted."""
    path = os.path.join(TOP, folder)
    names = os.listdir(path) if os.path.isdir(path) else []
    return sorted(n for n in names if n.startswith(start) and n.endswith(end))


def read(path):
    with open(os.path.join(TOP, path), encoding="utf-8", errors="replace") as f:
        return f.read()


def write(path, text):
    path = os.path.join(TOP, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
