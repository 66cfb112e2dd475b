#!/bin/sh
# The demo behind `make demo`: a control server with a relay (build/selfhost) and three nodes
# (build/tailnetd) on this machine. No root, no account, nothing outside 127.0.0.1; certificates
# are made for these few seconds, and nothing is left behind. Ends with 0 only if every step
# happened. KEEP=1 keeps the folder with keys and logs.
set -u
LC_ALL=C
export LC_ALL
cd "$(dirname "$0")/.." || exit 1
bin=${BIN:-build}
dir=$(mktemp -d "${TMPDIR:-/tmp}/tailnet-demo.XXXXXX") || exit 1
pids=

leave() {
    code=$?
    trap - EXIT INT TERM
    exec 5>&- 6>&- 7>&-
    for pid in $pids; do kill "$pid" 2>/dev/null; done
    for pid in $pids; do wait "$pid" 2>/dev/null; done
    if [ "${KEEP:-0}" = 1 ]; then echo "kept: $dir"; else rm -rf "$dir"; fi
    exit $code
}
trap leave EXIT
trap 'exit 130' INT TERM

fail() {
    echo
    echo "FAILED: $*"
    for log in "$dir"/*.err; do
        [ -s "$log" ] && { echo "--- ${log##*/}"; tail -n 5 "$log"; }
    done
    exit 1
}

title() { printf '\n%s\n' "$*"; }
now_ms() { echo $(($(date +%s%N) / 1000000)); }
lines() { wc -l <"$dir/$1.out"; }
ask() { "$bin/selfhost" --ask "$dir/admin" "$@" >"$dir/answer" || fail "selfhost refused: $*"; }

# tell NODE WORDS...: a command to the node's stdin.
tell() {
    node=$1
    shift
    case $node in
    alpha) echo "$@" >&5 ;;
    beta) echo "$@" >&6 ;;
    gamma) echo "$@" >&7 ;;
    esac
}

# found NODE FROM PATTERN: the first line behind line FROM of what the node said.
found() { tail -n +$(($2 + 1)) "$dir/$1.out" | grep -m 1 -e "$3"; }

# wait_for NODE FROM PATTERN MILLISECONDS: waits for it; the line is in $line.
wait_for() {
    end=$(($(now_ms) + $4))
    until line=$(found "$1" "$2" "$3"); do
        [ "$(now_ms)" -lt "$end" ] || return 1
        sleep 0.01
    done
}

# number KEY, word KEY: a member of the object in $line.
number() { printf '%s\n' "$line" | sed -n "s/.*\"$1\":\\([0-9]*\\).*/\\1/p"; }
word() { printf '%s\n' "$line" | sed -n "s/.*\"$1\":\"\\([^\"]*\\)\".*/\\1/p"; }

# milliseconds MICROSECONDS
milliseconds() { printf '%d.%02d' $(($1 / 1000)) $(($1 % 1000 / 10)); }

# start NODE [OPTION]: join, with a key that is good for once.
start() {
    mkfifo "$dir/$1.in"
    echo "demo-key-$1" >"$dir/$1.key"
    began=$(now_ms)
    "$bin/tailnetd" --control "$url" --ca "$dir/ca.pem" --authkey-file "$dir/$1.key" \
        --hostname "$1" --state "$dir/$1.state" --json --control-stdin ${2-} \
        <"$dir/$1.in" >"$dir/$1.out" 2>"$dir/$1.err" &
    pids="$pids $!"
    eval "pid_$1=$!"
}

joined() {
    wait_for "$1" 0 '"state":"running"' 10000 || fail "$1 did not join"
    took=$(($(now_ms) - began))
    printf '   %-6s %-12s %4d ms from start to running\n' "$1" "$(word ip4)" $took
}

# echo_to FROM TO MILLISECONDS: a UDP echo; $us if it came back.
echo_to() {
    from=$(lines "$1")
    tell "$1" udp "$2" 7 "hello-$from"
    wait_for "$1" "$from" '"event":"udp",' "$3" || return 1
    us=$(number us)
}

# ping_to FROM TO
ping_to() {
    from=$(lines "$1")
    tell "$1" ping "$2"
    wait_for "$1" "$from" '"event":"ping","ok":true' 5000 || return 1
    path=$(word path)
}

# stats NODE: the line of its counters.
stats() {
    from=$(lines "$1")
    tell "$1" stats
    wait_for "$1" "$from" '"event":"stats"' 2000 || fail "$1 does not answer"
}

# flows FROM TO WAY: ping and echo have to work, by that way (direct or relay). Two nodes that
# have just met may need a moment to find the direct one.
flows() {
    ping_to "$1" "$2" || fail "$1 cannot ping $2"
    for try in 1 2 3 4 5 6 7 8 9 10; do
        [ "$path" = "$3" ] && break
        sleep 0.2
        ping_to "$1" "$2" || fail "$1 cannot ping $2"
    done
    [ "$path" = "$3" ] || fail "$1 reaches $2 by $path, not by $3"
    echo_to "$1" "$2" 3000 || fail "no echo from $2 to $1"
    printf '   %-5s -> %-5s  ping answered, echo in %s ms, path: %s\n' "$1" "$2" \
        "$(milliseconds "$us")" "$path"
}

certificates() {
    (
        cd "$dir" || exit 1
        for name in ca server; do
            openssl ecparam -name prime256v1 -genkey -noout -out $name.key
        done
        openssl req -x509 -new -key ca.key -days 1 -subj "/CN=demo CA" -out ca.pem \
            -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
        openssl req -new -key server.key -subj /CN=demo -out server.csr
        echo subjectAltName=IP:127.0.0.1 >server.ext
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 \
            -extfile server.ext -out server.pem
    ) >"$dir/openssl.out" 2>"$dir/openssl.err" || fail "openssl made no certificates"
    : >"$dir/openssl.err"
}

# A port that is free: try until selfhost can listen.
serve() {
    for try in 1 2 3 4 5 6 7 8; do
        port=$((20000 + ($$ * 7 + try * 1009) % 20000))
        url=https://127.0.0.1:$port
        "$bin/selfhost" --listen 127.0.0.1:$port --url "$url" --cert "$dir/server.pem" \
            --key "$dir/server.key" --admin "$dir/admin" --authkey demo-key-alpha:once \
            --authkey demo-key-beta:once --authkey demo-key-gamma:once --json \
            >"$dir/selfhost.out" 2>"$dir/selfhost.err" &
        pid_selfhost=$!
        pids="$pids $pid_selfhost"
        wait_for selfhost 0 '"event":"ready"' 1000 && return
    done
    fail "selfhost cannot listen"
}

for program in selfhost tailnetd; do
    [ -x "$bin/$program" ] || fail "$bin/$program is not built: make $bin/$program"
done
echo "tailnet.h: a control server with a relay, and three nodes, on this machine"

certificates
serve
title "1. The server: $url (TLS, Noise, HTTP/2, DERP; certificates made just now)"

title "2. Three nodes join, each with an auth key that is good for once"
start alpha; exec 5>"$dir/alpha.in"; joined alpha
start beta; exec 6>"$dir/beta.in"; joined beta
start gamma "--small --relay-only"; exec 7>"$dir/gamma.in"; joined gamma
for name in alpha beta gamma; do
    for peer in alpha beta gamma; do
        [ $name = $peer ] && continue
        wait_for $name 0 "\"name\":\"$peer\"[^}]*\"online\":true[^}]*\"region\":900" 5000 ||
            fail "$name does not see $peer"
    done
done
echo "   each sees the other two, and at which relay they are"

title "3. WireGuard: alpha and beta directly, gamma (only TCP) through the relay"
flows alpha beta direct
flows beta alpha direct
flows gamma alpha relay
flows beta gamma relay

title "4. A new policy while they run: nobody may begin to talk to alpha"
ask policy only 'alpha>*:*' 'beta>gamma:*' 'gamma>beta:*'
sleep 0.2
flows alpha beta direct
stats alpha
before=$(number dropped_denied)
echo_to beta alpha 1000 && fail "beta reached alpha against the policy"
stats alpha
after=$(number dropped_denied)
[ "$after" -gt "$before" ] || fail "alpha did not refuse the packet"
echo "   beta  -> alpha  refused: alpha dropped $((after - before)) packet(s), no answer in 1 s"

title "5. What a node takes (gamma has the limits of a microcontroller)"
for name in alpha beta gamma; do
    stats $name
    eval "pid=\$pid_$name"
    rss=$(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status")
    heap=$(number heap_calls)
    printf '   %-6s process %5d KB resident, node %7d bytes, heap calls while running: %s\n' \
        $name "$rss" "$(number memory_used)" "$heap"
    [ "${heap:-x}" = 0 ] || fail "$name used the heap"
done

title "6. The server revokes gamma"
flows beta gamma relay
from=$(lines beta)
ask remove gamma
wait_for beta "$from" '"event":"peers"' 3000 || fail "beta is not told that gamma is gone"
case $line in *'"gamma"'*) fail "beta still knows gamma" ;; esac
echo_to beta gamma 1000 && fail "gamma still answers beta"
echo_to gamma beta 1000 && fail "beta still answers gamma"
echo "   beta  -> gamma  nothing comes back"
echo "   gamma -> beta   nothing comes back"
flows alpha beta direct

title "7. They stop"
for name in alpha beta gamma; do tell $name quit; done
for name in alpha beta gamma selfhost; do
    eval "pid=\$pid_$name"
    [ $name = selfhost ] && ask quit
    wait "$pid"
    code=$?
    [ $code = 0 ] || [ $name = gamma ] || fail "$name ended with $code"
done
pids=
echo "   nothing is left running"
