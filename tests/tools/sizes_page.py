"""docs/sizes.md out of what tests/tools/size measured, and whether the page that is
checked in still says the same."""

import re

import ledger
import stack

# Of these parts the page says only what can be measured again within some percent: the
# emulator's clock ticks every 40 instructions, and the worlds of the unit tests change.
LOOSE = ("## Instructions", "## Stack, painted")
TOLERANCE = 0.03

# Parts of the market: name, machine of the ledger, flash and RAM in KiB.
PARTS = [
    ("RP2040", "Cortex-M0+", 2048, 264), ("STM32F103RE", "Cortex-M3", 512, 64),
    ("STM32F207", "Cortex-M3", 1024, 128), ("nRF52832", "Cortex-M4", 512, 64),
    ("STM32L476", "Cortex-M4", 1024, 128), ("STM32F407", "Cortex-M4", 1024, 192),
    ("nRF52840", "Cortex-M4", 1024, 256), ("STM32F746", "Cortex-M7", 1024, 320),
    ("GD32VF103", "RISC-V 32", 128, 32), ("ESP32-C3", "RISC-V 32", 4096, 400),
]
# With less than that left for the rest, in KiB, it is tight: an IP stack wants more.
TIGHT_FLASH, TIGHT_RAM = 48, 24
DEFAULT = (16, 4, 2, 1)


def table(head, rows):
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(out + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows]) + "\n"


def thousands(n):
    return "{:,}".format(n)


def kib(n):
    return "%.1f KiB" % (n / 1024)


def million(n):
    return "%.2f M" % (n / 1e6) if n >= 1e6 else thousands(n)


def fits(found):
    """The first table: what the usual builds take."""
    rows = []
    for text, build, case, way in found.fits:
        needed = build.memory([case])[case][0]
        rows.append([text, kib(build.together()), kib(needed), kib(way), "**%s**" %
                     kib(needed + way)])
    for text, key in (("example firmware without lwIP (`modem.c`), whole", "modem"),
                      ("example firmware with lwIP (`main.c`), whole", "main")):
        flash, ram = found.firmware[key]
        rows.append([text, kib(flash), kib(ram) + " with its buffers", kib(found.ways[0][0]),
                     "**%s**" % kib(ram + found.ways[0][0])])
    return table(["build, on Cortex-M4", "flash", "memory of the node", "stack", "RAM all in"],
                 rows)


def parts(found):
    """Which chips have room for the complete build, and what is left there."""
    rows = []
    for name, machine, flash, ram in PARTS:
        flash_left = flash * 1024 - found.builds[machine].together()
        ram_left = ram * 1024 - found.all_in
        room = min(flash_left - TIGHT_FLASH * 1024, ram_left - TIGHT_RAM * 1024)
        good = flash_left > 0 and ram_left > 0
        rows.append([name, machine, "%s / %d" % (thousands(flash), ram),
                     "yes" if room > 0 else "tight" if good else "no",
                     kib(flash_left) if good else "", kib(ram_left) if good else ""])
    return table(["part", "core", "its flash / RAM, KiB", "does it fit", "flash left",
                  "RAM left"], rows)


def promise(found, limits):
    return table(["what", "bytes", "limit"], [
        (text, thousands(found.values[key]), thousands(limit)) for text, key, limit in limits])


def memory(found):
    """Peers against who does TLS."""
    heads = ["Cortex-M", "TLS by the caller", "one engine", "two: control inside TLS"]
    rows = []
    for peers, sessions in ledger.CASES:
        row = ["%d peers, %d sessions" % (peers, sessions)]
        for tls, links in ledger.ENGINES:
            needed, macro = found.memories["Cortex-M4"][peers, sessions, links, tls]
            row.append("%s (%s)" % (thousands(needed), thousands(macro)))
        rows.append(row)
    others = [m for m in found.memories if m not in ("Cortex-M0+", "Cortex-M3", "Cortex-M4",
                                                     "Cortex-M7")]
    rows2 = [["%d peers, %d sessions" % c] + [
        thousands(found.memories[m][c[0], c[1], 2, 1][0]) for m in others]
        for c in ledger.CASES]
    return "\n".join([
        "`tailnet_memory_needed`, and in brackets the constant `TAILNET_MEMORY_SIZE` that covers",
        "it; 2 links. The caller (a modem, the TLS of an RTOS) does TLS with",
        "`desc.tls_by_caller`; with one engine the control server's key comes over TLS, control",
        "itself by Noise on port 80, and the engine serves the relay.", "",
        table(heads, rows), "Elsewhere, with one engine:", "",
        table(["limits"] + others, rows2),
        "One more peer: %s bytes; one more session: %s bytes (Cortex-M). Every Cortex-M has the"
        % (thousands(found.values["peer"]), thousands(found.values["session"])),
        "same structs.", "",
        "IPv6: the library has no switch for it. A tailnet gives every node both addresses, and",
        "they are 16 bytes in structs that hold the IPv4 one too. What a device saves without IPv6",
        "is lwIP's: with the options of the example firmware it takes %s bytes of flash and %s of"
        % tuple(thousands(n) for n in found.lwip[0]),
        "RAM, and with LWIP_IPV6=1 %s and %s." % tuple(thousands(n) for n in found.lwip[1]), "",
        "Heap calls: 0. Writable static data: 0."])


def flash_rooms(found):
    machines = [m.name for m in ledger.DEVICES]
    rooms = {m: found.builds[m].rooms() for m in machines}
    order = sorted(rooms["Cortex-M4"], key=lambda r: -sum(rooms["Cortex-M4"][r]))
    rows = [[">>" + r] + [thousands(sum(rooms[m].get(r, (0, 0)))) for m in machines]
            for r in order]
    known = {m: sum(sum(v) for v in rooms[m].values()) for m in machines}
    header = {m: found.builds[m].totals["header"] for m in machines}
    rows.append(["texts and padding"] + [thousands(header[m] - known[m]) for m in machines])
    rows.append(["**tailnet.h**"] + ["**%s**" % thousands(header[m]) for m in machines])
    groups = {m: ledger.by_group(found.builds[m].parts) for m in machines}
    order = sorted(groups["Cortex-M4"], key=lambda g: -groups["Cortex-M4"][g])
    rows += [[g] + [thousands(groups[m].get(g, 0)) for m in machines] for g in order]
    for name, key in (("BearSSL", "bearssl"), ("libc and libgcc", "libc")):
        rows.append(["**%s**" % name] + ["**%s**" % thousands(found.builds[m].totals[key])
                                         for m in machines])
    rows.append(["**together**"] + ["**%s**" % thousands(found.builds[m].together())
                                    for m in machines])
    return table(["room or part"] + machines, rows)


def options(found):
    """What each macro does to flash and memory, on Cortex-M4."""
    plain, rows = found.builds["Cortex-M4"], []
    for text, build in found.options:
        words = " ".join(build.macros)
        case = DEFAULT[:3] + (0 if "NONE" in words else 2 if "RECORD" in words else 1,)
        base = found.memories["Cortex-M4"][case]
        rows.append([text] + ["%+d" % (build.totals[k] - plain.totals[k]) for k in
                              ("header", "bearssl")] +
                    ["%+d" % (build.together() - plain.together()),
                     "%+d" % (build.memory([case])[case][0] - base[0])])
    return table(["macro", "tailnet.h", "BearSSL", "flash in all", "memory, 16 peers"], rows) + (
        "\nTAILNET_CONTROL_RECORD counts where control has an engine of its own (max_tls 2).")


def avr(found):
    rows = [[">>" + r, thousands(code), thousands(data)] for r, (code, data) in
            sorted(found.avr.items(), key=lambda x: -sum(x[1]))]
    rows.append(["**together**", "**%s**" % thousands(sum(c for c, _ in found.avr.values())),
                 "**%s**" % thousands(sum(d for _, d in found.avr.values()))])
    return table(["room", "code", "constants"], rows)


def painted(found):
    rows = []
    static = found.static["Cortex-M4"]
    for name in sorted(static, key=lambda n: -static[n]):
        deep = [(found.measured[m]["stack " + name], found.static[m][name])
                for m in ledger.EMULATED if found.measured[m].get("stack " + name)]
        if deep:
            rows.append(["`%s`" % name] + ["%s of %s" % (thousands(d), thousands(most))
                                           for d, most in deep])
    names = [("joining, control by Noise", "join"), ("a WireGuard handshake", "handshake"),
             ("finding the straight way", "meet"), ("packets of 1,280 bytes, straight",
                                                    "direct 1280"),
             ("packets of 1,280 bytes, by relay", "relay 1280"), ("a map of 51 peers", "map"),
             ("TLS, RSA-2048", "tls rsa"), ("TLS, P-256", "tls p256"),
             ("TLS, P-384 intermediate", "tls p384")]
    return "\n".join([
        table(["function"] + list(ledger.EMULATED), rows),
        table(["while"] + list(ledger.EMULATED),
              [[text] + [thousands(found.measured[m]["deep " + key]) for m in ledger.EMULATED]
               for text, key in names])])


def deepest(found):
    graph, ways = found.graph, found.ways
    chain = [(thousands(graph.own.get(t, stack.LEAF)), "`%s`" % stack.plain(t))
             for t in ways[0][1]]
    return "\n".join([
        table(["function", "bytes"], [("`%s`" % n, thousands(b)) for b, _, n in ways[:8]]),
        "The deepest way:", "", table(["bytes", "function"], chain),
        "With `TAILNET_TLS_NONE`: %s bytes." % thousands(found.ways_modem[0][0])])


INSTRUCTIONS = [
    ("WireGuard handshake, the side that begins", "handshake initiator"),
    ("WireGuard handshake, the side that answers", "handshake responder"),
    ("new keys after two minutes, the side that begins", "rekey initiator"),
    ("handshake and straight path found, both sides' addresses known", "meet initiator"),
    ("join: from `tailnet_up` to running, control by Noise, 1 peer", "join"),
    ("TLS handshake, RSA-2048 certificate", "tls rsa"),
    ("TLS handshake, P-256 certificate", "tls p256"),
    ("TLS handshake, P-256 certificate by a P-384 intermediate", "tls p384"),
    ("longest single `tailnet_poll`: RSA-2048", "tls longest poll rsa"),
    ("longest single `tailnet_poll`: P-256", "tls longest poll p256"),
    ("longest single `tailnet_poll`: P-384", "tls longest poll p384"),
    ("packet of 100 bytes out, straight", "direct 100 out"),
    ("packet of 100 bytes in, straight", "direct 100 in"),
    ("packet of 1,280 bytes out, straight", "direct 1280 out"),
    ("packet of 1,280 bytes in, straight", "direct 1280 in"),
    ("packet of 100 bytes out, by relay (TLS by the caller)", "relay 100 out"),
    ("packet of 100 bytes in, by relay", "relay 100 in"),
    ("packet of 1,280 bytes out, by relay", "relay 1280 out"),
    ("packet of 1,280 bytes in, by relay", "relay 1280 in"),
    ("an hour of idling with a known peer", "idle hour"),
    ("polls in that hour", "idle hour polls"),
]


def instructions(found):
    rows = [[text] + [million(found.measured[m][key]) for m in ledger.EMULATED]
            for text, key in INSTRUCTIONS]
    for text, out in (("each byte more, out", "out"), ("each byte more, in", "in")):
        rows.append([text] + ["%.1f" % ((found.measured[m]["direct 1280 " + out] -
                                         found.measured[m]["direct 100 " + out]) / 1180)
                              for m in ledger.EMULATED])
    for text, key in (("each KiB of a map whose peers are kept", "kept"),
                      ("each KiB of a map whose peers are passed over", "passed")):
        rows.append([text] + [thousands(int(
            1024 * found.measured[m][key + " map cost"] / found.measured[m][key + " map bytes"]))
            for m in ledger.EMULATED])
    return table(["what"] + list(ledger.EMULATED), rows)


def choices(found):
    names = [("X25519, `br_ec_c25519_m31` (the default; loops unrolled but on M3)",
              "x25519 m31"),
             ("the same at `-Os` like the rest of BearSSL", "x25519 small"),
             ("X25519, `br_ec_c25519_m15` (TAILNET_SLOW_MULTIPLY)", "x25519 m15"),
             ("X25519, `br_ec_c25519_i31`", "x25519 i31"),
             ("X25519, `br_ec_c25519_i15`", "x25519 i15"),
             ("1,280 bytes ChaCha20-Poly1305, ctmul (the default)", "aead 1280 ctmul"),
             ("the same, ctmul32 (TAILNET_SLOW_MULTIPLY)", "aead 1280 ctmul32"),
             ("the same, i15", "aead 1280 i15")]
    rows = []
    for text, key in names:
        first = "x25519 m31" if key.startswith("x") else "aead 1280 ctmul"
        got = [found.measured[m] for m in ledger.EMULATED]
        rows.append([text] + ["%s (%.1f)" % (million(g[key]), g[key] / g[first]) for g in got])
    return table(["primitive"] + list(ledger.EMULATED), rows)


def structs(found):
    columns = ["Cortex-M4", "RISC-V 32", "Xtensa", "x86-64"]
    first = found.structs["Cortex-M4"]
    return table(["struct", "Cortex-M", "RISC-V 32", "Xtensa", "x86-64"], [
        ("`%s`" % name, *(thousands(found.structs[m][name]) for m in columns))
        for name in sorted(first, key=lambda n: (-first[n], n)) if first[name] >= 32])


def versions():
    tools = [("Cortex-M", "arm-none-eabi-gcc"), ("RISC-V", "riscv64-unknown-elf-gcc"),
             ("Xtensa", "xtensa-lx106-elf-gcc"), ("AVR", "avr-gcc"), ("x86-64", "gcc")]
    return "Compilers: gcc " + ", ".join("%s (%s)" % (
        ledger.call([t, "-dumpversion"]).strip(), n) for n, t in tools) + "."


def page(found, limits):
    return re.sub(r"\n{3,}", "\n\n", "\n".join([
        "# Sizes", "",
        "Written by `make size` out of real builds and of real nodes that run on emulated",
        "processors: `-Os`, `NDEBUG`, all public functions linked, `--gc-sections`.", "",
        versions(), "",
        "## Does it fit your part?", "",
        "Flash is tailnet.h, the parts of BearSSL it uses, and libc; RAM is the node's memory and",
        "the deepest stack. An IP stack for your own sockets, drivers and the application come on",
        "top, and are there in the last two lines (which link only what they call).", "",
        fits(found), "",
        "The complete build (first line) on some chips, and what is left for the rest of the",
        "firmware; `tight` is less than %d KiB of flash or %d of RAM:" % (TIGHT_FLASH, TIGHT_RAM),
        "", parts(found), "",
        "## The promise, on Cortex-M4", "", promise(found, limits), "",
        "## Memory of a node", "", memory(found), "",
        "## Flash", "",
        "Cortex-M0+ and M3 with `TAILNET_SLOW_MULTIPLY`, because their multiplier is not",
        "constant-time. Xtensa is the lx106 of the ESP8266, compiled and linked, not run; its",
        "libgcc leaves some functions to the chip's ROM.", "",
        flash_rooms(found), "",
        "What macros change, on Cortex-M4:", "", options(found), "",
        "## AVR", "",
        "Compiled, not linked: the rooms that need no 32-bit `int` (floors 0 to 2), every function",
        "of theirs, with the name service and port mapping. The rest needs BearSSL, which needs",
        "32 bits: a part for who builds something else of these rooms, not a node.", "",
        avr(found), "",
        "## Deepest stack, Cortex-M4", "",
        "From `-fcallgraph-info=su` along the call graph; calls through pointers by the table in",
        "`tests/tools/stack.py`. Callbacks into the application come on top.", "",
        deepest(found), "",
        "## Stack, painted", "",
        "What the calls really used in `tests/emu/measure.c` (joins, handshakes, packets, maps,",
        "TLS), on a stack of their own that was painted before, of what the call graph says for",
        "the same processor. Callbacks run elsewhere.", "",
        painted(found), "",
        "## Instructions", "",
        "Counted by QEMU (`-icount`), not cycles: a real part takes more for loads, wait states",
        "and long multiplications. Only the library's own; callbacks are left out. Cortex-M3 with",
        "`TAILNET_SLOW_MULTIPLY`.", "",
        instructions(found), "",
        "BearSSL's `ec_c25519_m31.c` is built with `-O2 -fpeel-loops -fno-inline",
        "-fno-schedule-insns -fno-schedule-insns2` here (`tests/tools/bearssl`): the handshake is",
        "nearly all X25519, five times on each side.", "",
        "Primitives one could choose, and how they compare:", "", choices(found), "",
        "## Structs of 32 bytes and more", "", structs(found)]))


# ---- is the page stale? ------------------------------------------------------------------


def numbers(line):
    return [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", line)]


def close(a, b):
    """Two lines that differ only in numbers, and in those only a little."""
    if re.sub(r"\d[\d,.]*", "0", a) != re.sub(r"\d[\d,.]*", "0", b):
        return False
    pairs = list(zip(numbers(a), numbers(b)))
    return all(abs(x - y) <= TOLERANCE * max(x, y, 1) for x, y in pairs)


def compare(old, new):
    """What the page that is checked in says and is no longer so."""
    other = versions() not in old
    bad, heading = [], ""
    old_lines, new_lines = old.splitlines(), new.splitlines()
    if len(old_lines) != len(new_lines):
        bad.append("docs/sizes.md has other lines than it should")
    for a, b in zip(old_lines, new_lines):
        heading = b if b.startswith("## ") else heading
        # Optimising while linking, the compiler is not the same to the byte in each folder.
        loose = other or heading.startswith(LOOSE) or "example firmware" in b
        if a != b and not (loose and (close(a, b) or a.startswith("Compilers: "))):
            bad.append("docs/sizes.md says  %s\n        and it is  %s" % (a, b))
    return bad[:8] + (["run make size and say why"] if bad else [])
