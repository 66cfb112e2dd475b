#!/bin/sh
# Prints the C tables of the built-in roots for >>tls, and writes tests/vectors/tls/roots.txt,
# against which a test compares them. Needs: openssl, brssl (Debian package bearssl, or BearSSL's
# tools), the Debian package ca-certificates, and tailscale.com v1.102.5 in Go's module cache
# (go mod download tailscale.com@v1.102.5). Run from the project's top folder.
set -e
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
baked="$(go env GOMODCACHE)/tailscale.com@v1.102.5/net/bakedroots/bakedroots.go"
cp /usr/share/ca-certificates/mozilla/ISRG_Root_X1.crt "$dir/x1.pem"
cp /usr/share/ca-certificates/mozilla/ISRG_Root_X2.crt "$dir/x2.pem"
# The Go file holds all four; take the two that Debian does not have yet, by their names.
awk -v dir="$dir" '/BEGIN CERTIFICATE/ { n++; on = 1 }
    on { sub(/^.*-----BEGIN/, "-----BEGIN"); print > (dir "/go" n) }
    /END CERTIFICATE/ { on = 0 }' "$baked"
for f in "$dir"/go*; do
    case $(openssl x509 -in "$f" -noout -subject) in
    *"Root YE"*) cp "$f" "$dir/ye.pem" ;;
    *"Root YR"*) cp "$f" "$dir/yr.pem" ;;
    esac
done
{
    printf '%s' "# Roots of Let's Encrypt as DER in hex: ISRG Root X1, X2 "
    echo '(Debian ca-certificates), Root YE, YR (tailscale.com v1.102.5, net/bakedroots).'
    for n in x1 x2 ye yr; do
        printf '%s: ' $n
        openssl x509 -in "$dir/$n.pem" -outform DER | od -An -v -tx1 | tr -d ' \n'
        echo
    done
} > tests/vectors/tls/roots.txt
for n in x1 x2 ye yr; do
    brssl ta "$dir/$n.pem" 2> /dev/null | awk -v n=$n '
        /TA0_DN\[\]/ { name = "dn"; count = 0 } /TA0_(RSA_N|EC_Q)\[\]/ { name = "key"; count = 0 }
        /RSA_E|br_x509_trust_anchor/ { name = "" }
        name != "" && /0x/ { gsub(/[ \t]/, ""); k = split($0, b, ","); for (i = 1; i <= k; i++)
            if (b[i] != "") all[count++] = tolower(b[i]) }
        name != "" && /};/ { printf "static const uint8_t tn_tls_%s_%s[%d] = {", n, name, count
            for (i = 0; i < count; i++)
                printf "%s%s%s", i % 16 ? " " : "\n    ", all[i], i + 1 < count ? "," : ""
            print "\n};"; name = "" }'
done
