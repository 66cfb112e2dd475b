#!/bin/sh
# Makes tests/vectors/tls/certificates.txt: chains and keys for the TLS tests, as hex of DER.
# Needs openssl 3. The keys are for tests only; dates are fixed, so nothing here ever ages.
# Run from the project's top folder: tests/gen/tls_certs.sh
set -e
out=tests/vectors/tls/certificates.txt
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p tests/vectors/tls

cat > "$dir/ca.cnf" <<EOF
[ca]
default_ca = one
[one]
database = $dir/index
serial = $dir/serial
new_certs_dir = $dir
policy = any
unique_subject = no
[any]
commonName = supplied
[root]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
[server]
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = \${ENV::SAN}
[req]
distinguished_name = dn
prompt = no
[dn]
commonName = \${ENV::CN}
EOF
: > "$dir/index"
echo 1000 > "$dir/serial"

key() { # name, kind
    case $2 in
    rsa) openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$dir/$1.key" ;;
    *) openssl ecparam -genkey -noout -name "$2" -out "$dir/$1.key" ;;
    esac
}

cert() { # name, CN, SAN, key, issuer or self, section, digest, from, to
    CN=$2; SAN=$3; export CN SAN
    openssl req -new -config "$dir/ca.cnf" -key "$dir/$4.key" -out "$dir/$1.csr"
    if [ "$5" = self ]; then by="-selfsign -keyfile $dir/$4.key"
    else by="-cert $dir/$5.pem -keyfile $dir/$5.key"; fi
    openssl ca -batch -notext -config "$dir/ca.cnf" $by -in "$dir/$1.csr" -out "$dir/$1.pem" \
        -extensions "$6" -md "$7" -startdate "$8" -enddate "$9" 2> /dev/null
}

hex() { od -An -v -tx1 | tr -d ' \n'; echo; }
put_cert() { printf '%s: ' "$1"; openssl x509 -in "$dir/$1.pem" -outform DER | hex; }
put_key() { printf '%s_key: ' "$1"; openssl pkey -in "$dir/$1.key" -outform DER | hex; }

from=20250101000000Z
to=20600101000000Z
none=DNS:none.example
key root prime256v1
key middle secp384r1
key root_rsa rsa
key other prime256v1
key leaf prime256v1
key leaf_rsa rsa
cert root     "Test Root"     $none root     self root sha256 $from $to
cert root_rsa "Test Root RSA" $none root_rsa self root sha256 $from $to
cert other    "Test Root"     $none other    self root sha256 $from $to
cert middle   "Test Middle"   $none middle   root root sha384 $from $to
cert good     relay.example "DNS:relay.example,DNS:*.wild.example" \
    leaf middle server sha384 $from $to
cert good_rsa relay.example "DNS:relay.example" leaf_rsa root_rsa server sha256 $from $to
cert numbered numbered "IP:192.0.2.7,IP:2001:db8::7" leaf root server sha256 $from $to
cert expired  relay.example "DNS:relay.example" leaf root server sha256 \
    20250101000000Z 20260101000000Z
cert future   relay.example "DNS:relay.example" leaf root server sha256 20500101000000Z $to
cert forged   relay.example "DNS:relay.example" leaf other server sha256 $from $to
cert pinned   192.0.2.7     "IP:192.0.2.7" leaf self server sha256 $from $to
cert pinned_name relay.example "DNS:relay.example" leaf self server sha256 $from $to
cert pinned_old  relay.example "DNS:relay.example" leaf self server sha256 \
    20250101000000Z 20260101000000Z

{
    made=$(openssl version | cut -d' ' -f1,2)
    echo "# Made by tests/gen/tls_certs.sh with $made. Test keys, of no other use."
    for c in root root_rsa middle good good_rsa numbered expired future forged pinned pinned_name \
        pinned_old; do put_cert $c; done
    put_key leaf
    put_key leaf_rsa
    for c in pinned pinned_name pinned_old; do
        printf '%s_sha256: ' $c
        openssl x509 -in "$dir/$c.pem" -outform DER | openssl dgst -sha256 -binary | hex
    done
} > "$out"
echo "$out: $(wc -c < "$out") bytes"
