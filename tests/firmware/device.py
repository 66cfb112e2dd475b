"""An emulated board: its firmware, its settings, its flash, and what it says."""

import fcntl
import json
import os
import re
import socket
import sys
import time

import lab as lab_module
from lab import Failed, run, wait_for

TOP = lab_module.TOP
FIRMWARE = os.path.join(TOP, "examples/firmware")
sys.path.insert(0, FIRMWARE)
import provision                                                         # noqa: E402

OUT = os.environ.get("FIRMWARE_OUT", os.path.join(TOP, "build/firmware"))
HEADERS = os.environ.get("FIRMWARE_HEADERS", TOP)
BOARDS = ["mps2-an385", "mps2-an386", "mps2-an500", "virt"]

# The address of the settings sector, and the command of the emulator.
SETTINGS = {"virt": 0x80200000}
QEMU_ARM = ["qemu-system-arm", "-M", "{board},memory-backend=flash",
            "-object", "memory-backend-file,id=flash,size=16M,mem-path={flash},share=on",
            "-kernel", "{image}"]
QEMU_RISCV = ["qemu-system-riscv32", "-M", "virt", "-bios", "none", "-m", "16",
              "-global", "virtio-mmio.force-legacy=false",
              "-drive", "if=pflash,unit=1,format=raw,file={flash}",
              "-device", "loader,file={image}"]
NET = {"virt": ["-netdev", "{net},id=n0", "-device", "virtio-net-device,netdev=n0,mac={mac}"]}
NET_ARM = ["-net", "nic,model=lan9118,netdev=n0,macaddr={mac}", "-netdev", "{net},id=n0"]


def build(board, program="main", name=None, **more):
    """The image of a program for a board; more are variables of the Makefile."""
    out = os.path.join(OUT, name or "%s-%s" % (program, board))
    os.makedirs(OUT, exist_ok=True)
    words = ["make", "-s", "-C", FIRMWARE, "BOARD=" + board, "PROGRAM=" + program, "OUT=" + out,
             "HEADERS=" + HEADERS] + ["%s=%s" % pair for pair in more.items()]
    words += os.environ.get("FIRMWARE_MAKE", "").split()
    with open(out + ".lock", "w") as lock:      # tests side by side want the same image
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(words, timeout=600)
    return out + "/firmware.elf"


class Device:
    """One board. Its flash outlives it; its memory does not."""

    def __init__(self, lab, host, image, board="mps2-an386", program="main", ns=None, **settings):
        self.lab, self.host, self.board, self.image = lab, host, board, image
        self.program = program
        self.ns, self.address = ns or lab.namespace()
        self.flash = os.path.join(lab.folder, host + ".flash")
        self.settings = {"hostname": host, **settings}
        if "ca" not in self.settings:
            self.settings["ca"] = lab.pki.ca
        with open(self.flash, "wb") as f:
            f.truncate((16 if board != "virt" else 32) << 20)
        if board == "virt":                     # an erased chip, as it comes from the shop
            with open(self.flash, "r+b") as f:
                for sector in range(2):
                    f.seek(sector * 0x40000)
                    f.write(b"\xff" * 0x40000)
        self.process = self.modem = None
        self.mark = 0

    # Life.

    def words(self, icount=None):
        sector = os.path.join(self.lab.folder, self.host + ".settings")
        with open(sector, "wb") as f:
            f.write(provision.sector(["%s=%s" % p for p in self.settings.items()]))
        mac = "52:54:00:00:00:%02x" % (int(self.address.split(".")[-1]) & 255)
        fill = {"board": self.board, "flash": self.flash, "net": "user", "mac": mac,
                "image": self.image}
        words = [w.format(**fill) for w in (QEMU_RISCV if self.board == "virt" else QEMU_ARM)]
        words += ["-display", "none", "-monitor", "none", "-serial", "stdio",
                  "-semihosting-config", "enable=on,target=native",
                  "-qmp", "unix:%s,server=on,wait=off" % self.qmp_path(), "-device",
                  "loader,file=%s,addr=%#x,force-raw=on" % (
                      sector, SETTINGS.get(self.board, 0x3f0000))]
        if self.program == "modem":
            words += ["-serial", "unix:" + self.modem_path(), "-nic", "none"]
        else:
            words += [w.format(**fill) for w in NET.get(self.board, NET_ARM)]
        return words + (["-icount", icount] if icount else [])

    def qmp_path(self):
        return "/run/%s.qmp" % self.host

    def modem_path(self):
        return "/run/%s.modem" % self.host

    def start(self, control=None, auth_key=None, icount=None, **settings):
        if control is not None:
            self.settings["control"] = control if isinstance(control, str) else control.url
        if auth_key is not None:
            self.settings["authkey"] = self.lab.write(self.host + ".authkey", auth_key)
        self.settings.update({k.replace("_", "-"): v for k, v in settings.items()})
        if self.program == "modem" and self.modem is None:
            self.modem = self.lab.process("modem-" + self.host, [
                sys.executable, FIRMWARE + "/modem.py", self.modem_path()], ns=self.ns)
            wait_for("the modem is there", lambda: os.path.exists(self.modem_path()))
        self.process = self.lab.process("qemu-" + self.host, self.words(icount), ns=self.ns)
        self.mark = 0 if not os.path.exists(self.process.log) else self.begin_of_log()
        return self

    def begin_of_log(self):
        """Where the output of the newest start begins."""
        with open(self.process.log, "rb") as f:
            return f.read().rindex(b"\n# ")

    def power_off(self):
        """No warning, no goodbye: what is in memory is lost."""
        self.process.kill()

    def reset(self):
        """The reset button; memory stays, the program begins anew. False: it is off already."""
        mark = os.path.getsize(self.process.log)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
                s.settimeout(10)
                s.connect(self.qmp_path())
                f = s.makefile("rw")
                f.readline()
                for what in ("qmp_capabilities", "system_reset"):
                    f.write(json.dumps({"execute": what}) + "\n")
                    f.flush()
                    f.readline()
        except OSError:
            return False
        self.mark = mark
        return True

    # What it says.

    def said(self):
        with open(self.process.log, "rb") as f:
            f.seek(self.mark)
            return f.read().decode(errors="replace").replace("\r", "")

    def wait_line(self, pattern, timeout=30):
        """The groups of the first line of this start that matches."""
        def found():
            m = re.search(r"^" + pattern + r"$", self.said(), re.M)
            if m:
                return m
            if not self.process.alive():
                raise Failed("%s ended with %s: %s" % (self.host, self.process.child.returncode,
                                                       self.said()[-400:]))
            return None
        return wait_for("%s says %s; it says %s" % (self.host, pattern, self.said()[-400:]),
                        found, timeout, 0.02)

    def wait_running(self, timeout=30):
        m = self.wait_line(r"running ([\d.]+) ms (\d+) busy (\d+) stack (\d+)", timeout)
        self.ip4, self.ms = m.group(1), int(m.group(2))
        self.busy, self.stack = int(m.group(3)) * 40, int(m.group(4))
        return self

    def wait_answered(self, timeout=20):
        m = self.wait_line(r"answered ms (\d+) busy (\d+) stack (\d+)", timeout)
        return int(m.group(1)), int(m.group(2)) * 40, int(m.group(3))

    def deepest(self):
        """The deepest stack that it has told of."""
        return max([int(n) for n in re.findall(r" stack (\d+)$", self.said(), re.M)] or [0])
