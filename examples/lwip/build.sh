#!/bin/sh
# build.sh [LWIP [OUT]]: lwIP for Linux as OUT/lwip/liblwip.a, and with it echo, dial, http and
# tailnetd in OUT. LWIP is lwIP's source, 2.1 or 2.2 (Debian: apt-get source lwip); OUT: build.
# CC and CFLAGS are obeyed.
set -eu
cd "$(dirname "$0")/../.."

src=${1:-build/lwip-2.1-src}
out=${2:-build}
cc=${CC:-cc}
flags="${CFLAGS:--O2 -g} -ffunction-sections -fdata-sections"
inc="-I. -Iexamples/lwip -isystem $src/src/include"
lib=$out/lwip/liblwip.a

if [ ! -f "$src/src/core/init.c" ]; then
    echo "there is no lwIP source in $src: apt-get source lwip brings it"
    exit 1
fi
mkdir -p "$out/lwip"

# Objects are younger than what they were made of, or made anew.
for file in "$src"/src/core/*.c "$src"/src/core/ipv4/*.c "$src"/src/core/ipv6/*.c \
    "$src"/src/apps/http/httpd.c "$src"/src/apps/http/fs.c examples/lwip/port.c; do
    object=$out/lwip/$(basename "$file" .c).o
    if [ ! -f "$object" ] || [ "$file" -nt "$object" ] ||
        [ examples/lwip/lwipopts.h -nt "$object" ] ||
        [ examples/lwip/arch/cc.h -nt "$object" ]; then
        # shellcheck disable=SC2086
        $cc -std=gnu99 $flags -w $inc -c "$file" -o "$object"
        rm -f "$lib"
    fi
done
[ -f "$lib" ] || ar rcs "$lib" "$out"/lwip/*.o

for name in echo dial http tailnetd; do
    # shellcheck disable=SC2086
    $cc -std=c99 $flags -Wall -Wextra $inc -DTAILNETD_LWIP "examples/$name.c" "$lib" -lbearssl \
        -Wl,--gc-sections -o "$out/$name"
done
