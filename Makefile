# tailnet.h: tests, tools and examples. The library itself needs no build.
#
# `make help` lists the targets. Everything that is made goes to build/.
# `make V=1` prints the commands; `make INSTALL=no ...` never installs, it only
# says what is missing.

CC      = cc
CFLAGS  = -O2 -g
WARN    = -Wall -Wextra -Wpedantic -Wconversion -Wshadow
LDLIBS  = -lbearssl
TIME    = 30
SEED    = 1
V       = 0
Q_0     = @
Q_1     =
Q       = $(Q_$(V))
T       = tests/tools
HEADERS = tailnet.h tailnet_platform_posix.h tailnet_platform_lwip.h

.POSIX:
.SUFFIXES:
.PHONY: all check demo test tidy compile unit san arm size fuzz filterdiff interop bench \
	lint examples deps clean help sim natlab portmap broken lwip overlay firmware port packaging

all: check

help: ## this list
	$(Q)sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1	\2/p' Makefile | expand -t 18

demo: ## a control server, a relay and three nodes on this machine, in a minute
	$(Q)$(T)/deps demo
	$(Q)$(MAKE) -s CC=$(CC) V=$(V) build/selfhost build/tailnetd
	$(Q)sh examples/demo.sh

test: ## everything, real peers included; ends with N passed, N failed
	$(Q)$(T)/deps test
	$(Q)$(T)/run test

check: ## tidy, compile matrix, unit tests: what to run before a commit
	$(Q)$(T)/deps check
	$(Q)$(T)/run check

tidy: ## the rules of the code that a script can see
	$(Q)$(T)/tidy

compile: ## compilers, language versions, macros, header twice
	$(Q)$(T)/deps check
	$(Q)$(T)/compile

unit: ## unit tests, with and without assertions
	$(Q)$(T)/deps check
	$(Q)$(T)/unit plain
	$(Q)$(T)/unit ndebug

san: ## unit tests under the address and undefined sanitizers
	$(Q)$(T)/deps check
	$(Q)$(T)/unit san

arm: ## unit tests on a 32-bit and on a big-endian processor, emulated
	$(Q)$(T)/deps cross
	$(Q)$(T)/unit i686
	$(Q)$(T)/unit s390x

size: ## flash, RAM, stack, instructions on seven processors; writes docs/sizes.md
	$(Q)$(T)/deps size
	$(Q)$(T)/size

fuzz: ## every fuzz target for TIME=30 seconds from its corpus
	$(Q)$(T)/deps fuzz
	$(Q)$(T)/fuzz $(TIME)

filterdiff: ## a million packets through our filter and the reference's; SEED=1
	$(Q)$(T)/deps interop
	$(Q)$(T)/filterdiff $(SEED)

interop: ## with headscale, tailscaled and derper on this machine; ARGS="-k name"
	$(Q)$(T)/deps interop
	$(Q)tests/interop/build
	$(Q)tests/interop/run.py $(ARGS)

sim: ## whole tailnets in virtual time, from seeds; ARGS=seeds|matrix|many|big|san|cross
	$(Q)$(T)/deps check
	$(Q)$(T)/sim $(ARGS)

natlab: ## behind real NATs, beside the Go client; ARGS="-k name"
	$(Q)$(T)/deps interop
	$(Q)tests/interop/build
	$(Q)$(MAKE) -s CC=$(CC) V=$(V) build/tailnetd
	$(Q)tests/natlab/run.py $(ARGS)

portmap: ## port mapping with miniupnpd: NAT-PMP, PCP, UPnP
	$(Q)$(T)/deps interop
	$(Q)tests/interop/portmap.py

broken: ## each interop test has to fail when its thing is broken; ARGS="-k name"
	$(Q)$(T)/deps interop
	$(Q)tests/interop/build
	$(Q)tests/interop/broken.py $(ARGS)

lwip: ## tailnet_platform_lwip.h with lwIP 2.1 and 2.2, with and without an OS
	$(Q)$(T)/deps lwip
	$(Q)$(T)/lwip

overlay: ## echo, dial, http, SOCKS5 on lwIP, with the Go client and a browser; ARGS="-k name"
	$(Q)$(T)/deps overlay
	$(Q)tests/interop/build
	$(Q)tests/interop/overlay.py $(ARGS)

firmware: ## bare-metal images in QEMU join headscale, are reset, idle a day; ARGS="-k name"
	$(Q)$(T)/deps firmware
	$(Q)tests/interop/build
	$(Q)tests/firmware/run.py $(ARGS)

port: ## unit tests with more compilers, byte orders, C libraries; ARGS="--all" "m68k"
	$(Q)$(T)/deps port
	$(Q)$(T)/port $(ARGS)

packaging: ## the library laid out for CMake, ESP-IDF, Zephyr, Arduino, PlatformIO, and built
	$(Q)$(T)/deps packaging
	$(Q)$(T)/packaging

bench: ## join time, memory and relay speed, side by side with tailscaled
	$(Q)$(T)/deps interop
	$(Q)tests/interop/build
	$(Q)tests/interop/bench.py $(ARGS)

lint: ## cppcheck, clang-tidy, gcc's analyzer
	$(Q)$(T)/deps lint
	$(Q)$(T)/lint

examples: ## every example program
	$(Q)$(T)/deps examples
	$(Q)$(T)/examples

deps: ## install what make test needs
	$(Q)$(T)/deps test

clean: ## remove build/
	$(Q)chmod -R u+w build 2>/dev/null || true
	$(Q)rm -rf build

build/selfhost: examples/selfhost.c $(HEADERS)
	$(Q)mkdir -p build
	$(Q)$(CC) -std=c99 $(CFLAGS) $(WARN) -I. examples/selfhost.c $(LDLIBS) -o $@

build/two_nodes: tests/interop/two_nodes.c $(HEADERS)
	$(Q)mkdir -p build
	$(Q)$(CC) -std=c99 $(CFLAGS) $(WARN) -I. tests/interop/two_nodes.c $(LDLIBS) -o $@

build/tailnetd: examples/tailnetd.c $(HEADERS)
	$(Q)mkdir -p build
	$(Q)$(CC) -std=c99 $(CFLAGS) $(WARN) -I. examples/tailnetd.c $(LDLIBS) -o $@
