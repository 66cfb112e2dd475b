"""What tailnet.h takes, measured with real compilers, linkers and emulators: flash by
room and by part of BearSSL, RAM by struct and by node, on every processor of the
ledger. tests/tools/size puts it together and holds it to the limits."""

import os
import re
import shlex
import subprocess

import layers
import lib
import stack

OUT = "build/size"


class Machine:
    """A processor: how to compile for it, and, when foreign, which BearSSL and which
    user-mode emulator. macros: what a firmware for it should define."""

    def __init__(self, name, tools, flags=(), bearssl=None, runner=None, macros=(), link=()):
        self.name, self.tools, self.flags, self.runner = name, tools, list(flags), runner
        self.bearssl, self.macros, self.link_flags = bearssl, list(macros), list(link)
        self.key = name.lower().replace(" ", "").replace("+", "plus")

    def tool(self, name):
        return self.tools + name

    def library(self):
        return "build/bearssl-%s/libbearssl.a" % self.bearssl if self.bearssl else "-lbearssl"

    def includes(self):
        return ["-I" + HEADER_FOLDER] + (["-isystem", "build/bearssl-src/inc"]
                                         if self.bearssl else [])


def arm(name, core, *macros):
    return Machine(name, "arm-none-eabi-", ["-mcpu=" + core, "-mthumb"], core, ["qemu-arm"],
                   macros, ["--specs=nano.specs"])


SLOW = "-DTAILNET_SLOW_MULTIPLY"
M4 = arm("Cortex-M4", "cortex-m4")
RISCV = Machine("RISC-V 32", "riscv64-unknown-elf-",
                ["-march=rv32imac", "-mabi=ilp32", "--specs=picolibc.specs"], "rv32imac",
                ["qemu-riscv32"], (), ["-Wl,--defsym=__flash=0x10000",
                                       "-Wl,--defsym=__flash_size=4M",
                                       "-Wl,--defsym=__ram=0x800000",
                                       "-Wl,--defsym=__ram_size=4M"])
# Compiled, not run; its libgcc leaves some functions to the chip's ROM.
XTENSA = Machine("Xtensa", "xtensa-lx106-elf-", [], "xtensa", None, (),
                 ["-Wl,--unresolved-symbols=ignore-all", "-Wl,--noinhibit-exec"])
DEVICES = [arm("Cortex-M0+", "cortex-m0plus", SLOW), arm("Cortex-M3", "cortex-m3", SLOW), M4,
           arm("Cortex-M7", "cortex-m7"), RISCV, XTENSA]
HOSTS = [Machine("x86-64", "", [], None, [])]
HEADER_FOLDER = "."

# max_peers, max_sessions
CASES = [(3, 3), (8, 4), (16, 4), (16, 8), (64, 8)]
# Engines of the library, and links: the modem does TLS; one engine for the first key
# and the relay; control inside TLS for good too.
ENGINES = [(0, 2), (1, 2), (2, 2)]

HEAP = re.compile(r"^_*(malloc|calloc|realloc|free|sbrk|_sbrk|malloc_r|free_r)$")

# Prints numbers without any operating system's help but two calls, so that a
# microcontroller's own build of it runs in an emulator.
NEEDED = r"""
#include "tailnet.h"
static void print(unsigned long n);
static size_t needed(unsigned peers, unsigned sessions, unsigned links, unsigned tls)
{
    static tailnet_desc zero;
    tailnet_desc d = zero;
    d.max_peers = (uint16_t)peers;
    d.max_sessions = (uint16_t)sessions;
    d.max_links = (uint8_t)links;
    d.max_tls = (uint8_t)tls;
    d.tls_by_caller = tls == 0;
    return tailnet_memory_needed(&d);
}
static void all(void)
{
%s
}
#if defined(__arm__) || defined(__riscv)
#  if defined(__arm__)
static long call(long number, long a, long b, long c)
{
    register long r7 __asm__("r7") = number;
    register long r0 __asm__("r0") = a;
    register long r1 __asm__("r1") = b;
    register long r2 __asm__("r2") = c;
    __asm__ volatile("svc #0" : "+r"(r0) : "r"(r7), "r"(r1), "r"(r2) : "memory");
    return r0;
}
enum { WRITE = 4, EXIT = 1 };
#  else
static long call(long number, long a, long b, long c)
{
    register long a7 __asm__("a7") = number;
    register long a0 __asm__("a0") = a;
    register long a1 __asm__("a1") = b;
    register long a2 __asm__("a2") = c;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2) : "memory");
    return a0;
}
enum { WRITE = 64, EXIT = 93 };
#  endif
static void print(unsigned long n)
{
    char text[12];
    int  at = 12;
    text[--at] = '\n';
    do { text[--at] = (char)('0' + n %% 10); n /= 10; } while (n != 0);
    call(WRITE, 1, (long)(text + at), 12 - at);
}
void _start(void);
void _start(void) { all(); call(EXIT, 0, 0, 0); }
#else
#include <stdio.h>
static void print(unsigned long n) { printf("%%lu\n", n); }
int main(void) { all(); return 0; }
#endif
"""


def call(words, **more):
    """A command's output; the end of everything when it fails."""
    done = subprocess.run(words, cwd=lib.TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", **more)
    if lib.verbose():
        print("+ " + shlex.join(words))
    if done.returncode != 0:
        print("+ " + shlex.join(words))
        print("    " + "\n    ".join(done.stdout.splitlines()[-25:]))
        raise SystemExit("size: 0 passed, 1 failed")
    return done.stdout


def symbols(machine, path):
    """(size, kind, name) of every symbol."""
    for line in call([machine.tool("nm"), "-S", path]).splitlines():
        words = line.split()
        if len(words) == 4:
            yield int(words[1], 16), words[2], words[3]
        elif len(words) in (2, 3):
            yield 0, words[-2], words[-1]


# ---- one build -------------------------------------------------------------------------


class Build:
    """The header with some macros on one machine, compiled and linked with all public
    functions as roots: what is in flash then, and how large the structs are."""

    def __init__(self, machine, macros=(), structs=(), flags=()):
        name = re.sub(r"\W+", "", "".join(macros) + "".join(flags))
        self.machine, self.macros = machine, machine.macros + list(macros) + list(flags)
        self.folder = "%s/%s%s" % (OUT, machine.key, "-" + name if name else "")
        os.makedirs(os.path.join(lib.TOP, self.folder), exist_ok=True)
        self._compile(structs)
        self._link()
        self.totals, self.parts = by_object(lib.read(self.folder + "/flash.map"))

    def _compile(self, structs):
        lib.write(self.folder + "/flash.c",
                  '#define TAILNET_IMPLEMENTATION\n#include "tailnet.h"\n' +
                  "".join("const char sizeof_%s[sizeof(%s)] = { 0 };\n" % s for s in structs))
        call([self.machine.tool("gcc")] + self.machine.flags +
             ["-std=c99", "-Os", "-w", "-DNDEBUG", "-ffunction-sections", "-fdata-sections",
              "-fcallgraph-info=su"] + self.macros + self.machine.includes() +
             ["-c", self.folder + "/flash.c", "-o", self.folder + "/flash.o"])
        self.compiled = list(symbols(self.machine, self.folder + "/flash.o"))
        self.structs = {n[len("sizeof_"):]: size for size, _, n in self.compiled
                        if n.startswith("sizeof_")}
        self.roots = sorted(n for _, kind, n in self.compiled
                            if kind == "T" and n.startswith("tailnet_"))

    def _link(self):
        m = self.machine
        if m in HOSTS:
            lib.write(self.folder + "/flash.map", "Linker script and memory map\n")
            return
        call([m.tool("gcc")] + m.flags + m.link_flags +
             ["-nostartfiles", "-Wl,--gc-sections", "-Wl,-Map=%s/flash.map" % self.folder,
              "-Wl,-e,0"] + ["-Wl,-u," + n for n in self.roots] +
             [self.folder + "/flash.o", m.library(), "-o", self.folder + "/flash.elf"])
        self.linked = list(symbols(m, self.folder + "/flash.elf"))

    def together(self):
        return sum(self.totals.values())

    def rooms(self):
        """Bytes of functions and of tables of the header by room."""
        return by_room(self.linked)

    def statics(self):
        """Writable data and heap symbols: there must be none."""
        bad = ["writable data in tailnet.h: " + n for _, kind, n in self.compiled
               if kind in "bBdDC"]
        for size, kind, name in self.linked:
            if HEAP.match(name):
                bad.append("a heap function is linked: %s" % name)
            if kind in "bBdD" and size:
                bad.append("writable data is linked: %s, %d bytes" % (name, size))
        return bad

    def memory(self, cases):
        """tailnet_memory_needed for (peers, sessions, links, engines), with what
        TAILNET_MEMORY_SIZE says."""
        body = "".join("    print(needed%s); print(TAILNET_MEMORY_SIZE%s);\n" % (c, c)
                       for c in cases)
        lib.write(self.folder + "/needed.c", NEEDED % body)
        m = self.machine
        bare = ["-nostartfiles"] if m not in HOSTS else []
        place = ["-Wl,-Ttext=0x10000"] if m.tools.startswith("arm") else []
        call([m.tool("gcc")] + m.flags + ["-std=gnu99", "-Os", "-w", "-fomit-frame-pointer"] +
             m.includes() + bare + place + m.link_flags + ["-Wl,--gc-sections"] +
             [self.folder + "/needed.c", self.folder + "/flash.o", m.library(),
              "-o", self.folder + "/needed"])
        numbers = [int(n) for n in call(m.runner + [self.folder + "/needed"]).split()]
        return {c: (numbers[2 * i], numbers[2 * i + 1]) for i, c in enumerate(cases)}

    def stacks(self):
        """Every public function's deepest way down, deepest first, with the graph and
        what the graph cannot know."""
        folder = os.path.join(lib.TOP, "build/bearssl-%s/o" % self.machine.bearssl)
        graph = stack.load([os.path.join(lib.TOP, self.folder, "flash.ci")] +
                           [os.path.join(folder, n) for n in sorted(os.listdir(folder))
                            if n.endswith(".ci")])
        names = {stack.plain(n) for _, kind, n in self.linked}
        objects = {p[:-2] for p in self.parts} | {"flash", "tailnet"}
        problems, memo, ways = set(), {}, []
        for name in self.roots:
            ways.append((*graph.deepest(name, (names, objects), problems, memo), name))
        return sorted(ways, reverse=True), graph, sorted(problems)


def by_object(text):
    """Bytes of code and constants in a linked program, from the linker's map: of the
    header, of BearSSL (and by object of it), of libc and libgcc."""
    text = text.split("Linker script and memory map", 1)[1]
    totals, parts = {"header": 0, "bearssl": 0, "libc": 0}, {}
    # Long section names stand on a line of their own.
    text = re.sub(r"\n (\.\S+)\n +", r"\n \1 ", text)
    for m in re.finditer(r"^ (\.(?:text|s?rodata|literal|srodata)\S*)\s+0x[0-9a-f]+"
                         r"\s+0x([0-9a-f]+)\s+(\S+)$", text, re.M):
        size, source = int(m.group(2), 16), m.group(3)
        if source.endswith("flash.o"):
            totals["header"] += size
        elif "libbearssl" in source:
            totals["bearssl"] += size
            member = source.split("(")[-1].rstrip(")")
            parts[member] = parts.get(member, 0) + size
        else:
            totals["libc"] += size
    return totals, {p: n for p, n in parts.items() if n}


def room_of(name, prefixes):
    for prefix, room in prefixes:
        if name.startswith(prefix):
            return room
    return "base"


def by_room(found):
    """{room: (code, constants)} of the header's symbols."""
    prefixes = sorted(((p, room) for room, (_, ps) in layers.ROOMS.items() for p in ps
                       if p != "tn_"), key=lambda x: -len(x[0]))
    rooms = {}
    for size, kind, name in found:
        if name.startswith(("tn_", "tailnet_")) and kind in "tTrR":
            room = room_of(name, prefixes)
            code, data = rooms.get(room, (0, 0))
            rooms[room] = (code + size, data) if kind in "tT" else (code, data + size)
    return rooms


# The objects of BearSSL by what they are for.
GROUPS = [
    ("TLS engine and records", r"ssl_|prf"),
    ("certificates (X.509)", r"x509_|skey_|pkey_"),
    ("X25519", r"ec_c25519"),
    ("curves P-256, P-384, P-521", r"ec_"),
    ("ECDSA", r"ecdsa_"),
    ("RSA", r"rsa_"),
    ("big integers", r"i15_|i31_|i32_"),
    ("AES and GHASH", r"aes_|ghash"),
    ("ChaCha20 and Poly1305", r"chacha20|poly1305"),
    ("SHA-2", r"sha|md5|dig_"),
    ("HMAC and DRBG", r"hmac|hkdf|multihash|drbg"),
]


def by_group(parts):
    """Bytes of BearSSL's objects by group."""
    sums = {}
    for name, size in parts.items():
        group = next((g for g, p in GROUPS if re.match(p, name)), "bytes in and out")
        sums[group] = sums.get(group, 0) + size
    return sums


def struct_names():
    """(name, type) of every struct that a device has; a host has more."""
    lib.write(OUT + "/types.c", '#define TAILNET_IMPLEMENTATION\n#include "tailnet.h"\n')
    code = call([M4.tool("gcc")] + M4.flags + ["-E", "-P", "-DNDEBUG", "-w"] + M4.includes() +
                [OUT + "/types.c"])
    names = re.findall(r"^typedef (?:struct|union) (tn_\w+|tailnet_\w+) \{", code, re.M)
    whole = re.findall(r"^struct (tn_\w+|tailnet_\w+) \{", code, re.M)
    return [(n, n) for n in names] + [(n, "struct " + n) for n in whole]


# ---- AVR -------------------------------------------------------------------------------


def avr_rooms():
    """Floors 0 to 2 on a machine with 16-bit int: every function of them, by room, and
    all together. The rest of the header needs BearSSL, which needs 32 bits."""
    text = lib.read(os.path.join(HEADER_FOLDER, "tailnet.h"))
    at = text.index("\n * >>tls", text.index("#ifdef TAILNET_IMPLEMENTATION\n"))
    folder = OUT + "/avr"
    lib.write(folder + "/floors.h", text[:text.rindex("/* ===", 0, at)] + "#endif\n#endif\n")
    lib.write(folder + "/flash.c", "".join(
        "#include <%s.h>\n" % n for n in ("stdbool", "stddef", "stdint", "string", "bearssl")) +
        "#define static static __attribute__((used))\n"
        '#define TAILNET_IMPLEMENTATION\n#include "floors.h"\n')
    call(["avr-gcc", "-mmcu=atmega1284p", "-std=c99", "-Os", "-w", "-DNDEBUG", "-DTAILNET_DNS=1",
          "-DTAILNET_PORTMAP=1", "-DTAILNET_UPNP=1", "-I" + folder, "-isystem",
          "build/bearssl-src/inc", "-c", folder + "/flash.c", "-o", folder + "/flash.o"])
    avr = Machine("AVR", "avr-")
    return by_room(symbols(avr, folder + "/flash.o"))


# ---- what stands beside the library ----------------------------------------------------


LWIP = "build/lwip-2.1-src/src"
# What an application with sockets of its own asks of lwIP.
LWIP_CALLS = """lwip_init netif_add netif_set_up netif_add_ip6_address ethernet_input dhcp_start
    netif_create_ip6_linklocal_address sys_check_timeouts dns_gethostbyname_addrtype
    tcp_new_ip_type tcp_bind tcp_connect tcp_listen_with_backlog tcp_accept tcp_write tcp_output
    tcp_recved tcp_close tcp_abort udp_new_ip_type udp_bind udp_sendto udp_recv""".split()


def lwip(ip6):
    """(flash, RAM) of lwIP with the options of the example firmware and all the calls of
    an application, with or without IPv6, on Cortex-M4."""
    folder = "%s/lwip-%d" % (OUT, ip6)
    lib.write(folder + "/lwipopts.h", '#include "../../../examples/firmware/lwipopts.h"\n'
              "#undef LWIP_IPV6\n#define LWIP_IPV6 %d\n" % ip6)
    sources = [os.path.join(LWIP, sub, n) for sub in ("core", "core/ipv4", "core/ipv6")
               for n in lib.globbed(os.path.join(LWIP, sub), "", ".c")] + [
                   LWIP + "/netif/ethernet.c"]
    gcc = [M4.tool("gcc")] + M4.flags
    out = [os.path.join(folder, os.path.basename(n)[:-2] + ".o") for n in sources]
    for source, made in zip(sources, out):
        call(gcc + ["-Os", "-w", "-std=gnu99", "-DNDEBUG", "-ffunction-sections",
                    "-fdata-sections", "-I" + folder, "-Iexamples/firmware",
                    "-I" + LWIP + "/include", "-c", source, "-o", made])
    call(gcc + ["--specs=nano.specs", "-nostartfiles", "-Wl,--gc-sections", "-Wl,-e,0",
                "-Wl,--unresolved-symbols=ignore-all"] + ["-Wl,-u," + n for n in LWIP_CALLS] +
         out + ["-o", folder + "/lwip.elf"])
    return sections(folder + "/lwip.elf")


def sections(path):
    """(flash, RAM) of a linked program for Cortex-M: what has initial values is in both."""
    text, data, bss = (int(n) for n in call(["arm-none-eabi-size", path]).splitlines()[1]
                       .split()[:3])
    return text + data, data + bss


def firmware(program):
    """(flash, RAM without stack) of a whole example firmware for Cortex-M4."""
    folder = os.path.join(lib.TOP, OUT, "firmware-" + program)
    # What was said to the make that started this (CC=clang) is not meant for this one.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    call(["make", "-s", "-C", "examples/firmware", "BOARD=mps2-an386", "PROGRAM=" + program,
          "HEADERS=" + os.path.abspath(os.path.join(lib.TOP, HEADER_FOLDER)), "OUT=" + folder],
         env=env)
    return sections(folder + "/firmware.elf")


# ---- emulated --------------------------------------------------------------------------


EMULATED = {
    "Cortex-M3": (DEVICES[1], ["qemu-system-arm", "-M", "mps2-an385"], (0, 0x21000000, 16)),
    "Cortex-M4": (M4, ["qemu-system-arm", "-M", "mps2-an386"], (0, 0x21000000, 16)),
    "RISC-V 32": (RISCV, ["qemu-system-riscv32", "-M", "virt", "-bios", "none"],
                  (0x80000000, 0x80400000, 64)),
}


def emulate(name):
    """What tests/emu/measure.c says on a bare machine: {name: number}, and whether all
    of its checks held."""
    machine, board, (flash, ram, ram_mb) = EMULATED[name]
    out = "%s/measure-%s.elf" % (OUT, machine.key)
    # X25519 once more, as BearSSL's other objects are compiled.
    small = "%s/small-%s.o" % (OUT, machine.key)
    call([machine.tool("gcc")] + machine.flags +
         ["-std=gnu99", "-Os", "-w", "-Dbr_ec_c25519_m31=small_c25519_m31",
          "-Ibuild/bearssl-src/inc", "-Ibuild/bearssl-src/src", "-c",
          "build/bearssl-src/src/ec/ec_c25519_m31.c", "-o", small])
    place = {"__flash": hex(flash), "__flash_size": "4M", "__ram": hex(ram),
             "__ram_size": "%dM" % ram_mb, "__stack_size": "64k"}
    call([machine.tool("gcc")] + [f for f in machine.flags if "specs" not in f] +
         ["--specs=picolibc.specs", "--crt0=semihost", "--oslib=semihost", "-std=gnu99", "-Os",
          "-w", "-DNDEBUG", "-DTAILNET_SERVER=1", "-ffunction-sections", "-fdata-sections",
          "-Wl,--gc-sections"] + ["-Wl,--defsym=%s=%s" % p for p in place.items()] +
         machine.macros + machine.includes() +
         ["-Itests/unit", "-Itests/emu", "tests/emu/measure.c", small, machine.library(),
          "-o", out])
    try:
        done = subprocess.run(
            board + ["-nographic", "-icount", "shift=0", "-semihosting-config",
                     "enable=on,target=native", "-kernel", out], cwd=lib.TOP, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=300, errors="replace")
        text, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired:
        text, code = "not done after 300 s\n0 passed, 1 failed", 1
    passed, failed = lib.last_count(text)
    if code != 0 or failed or passed == 0:
        print("    " + "\n    ".join(text.splitlines()[-25:]))
        return {}, passed, max(failed, 1)
    found = re.findall(r"^([\w ]+): (\d+)$", text, re.M)
    return {name: int(number) for name, number in found}, passed, failed
