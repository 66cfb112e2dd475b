#!/usr/bin/env python3
"""derpproxy.py LISTEN-PORT RELAY-PORT CERTIFICATE KEY LOG [META]: a TLS server before
a relay that writes down, for each connection, what the client says of its own accord:
one JSON object per line {"from", "before"}. The relay's words are held back
for half a second; "before" is what came until then, decoded as latin-1.

With META the relay's own certificate that tells its key goes out with ours, as the
relay itself sends it; without it the relay looks like an old one."""

import json
import select
import socket
import ssl
import subprocess
import sys
import threading
import time

HUB = "10.99.0.1"
HOLD_S = 0.5


def meta_certificate(port):
    """The last certificate that the relay sends."""
    said = subprocess.run(["openssl", "s_client", "-connect", "%s:%d" % (HUB, port), "-showcerts"],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True).stdout
    last = said.split("-----BEGIN CERTIFICATE-----")[-1].split("-----END CERTIFICATE-----")[0]
    return "-----BEGIN CERTIFICATE-----%s-----END CERTIFICATE-----\n" % last


def server_context(certificate, key, log, meta):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if meta:
        chain = log + ".chain"
        with open(certificate) as f, open(chain, "w") as out:
            out.write(f.read() + meta)
        certificate = chain
    context.load_cert_chain(certificate, key)
    return context


def carry(client, relay):
    """Both ways until one side ends. One thread: a TLS object is no thing for two."""
    while True:
        ready = [s for s in (client, relay) if s.pending()]
        ready = ready or select.select([client, relay], [], [])[0]
        for s in ready:
            data = s.recv(65536)
            if not data:
                return
            (relay if s is client else client).sendall(data)


def serve(client, address, relay_port, log):
    """One connection: listen for a while, then carry everything both ways."""
    any_relay = ssl._create_unverified_context()
    relay = any_relay.wrap_socket(socket.create_connection((HUB, relay_port)))
    before, end = b"", time.monotonic() + HOLD_S
    while time.monotonic() < end:
        client.settimeout(max(0.01, end - time.monotonic()))
        try:
            data = client.recv(65536)
        except (TimeoutError, ssl.SSLWantReadError):
            break
        if not data:
            break
        before += data
        relay.sendall(data)
    client.settimeout(None)
    with open(log, "a") as f:
        f.write(json.dumps({"from": address, "before": before.decode("latin-1")}) + "\n")
    with relay:
        carry(client, relay)


def accept(context, client, address, relay_port, log):
    try:
        serve(context.wrap_socket(client, server_side=True), address, relay_port, log)
    except OSError as e:
        print("%s: %s" % (address, e), flush=True)
    finally:
        client.close()


def main():
    listen, relay, certificate, key, log = sys.argv[1:6]
    meta = meta_certificate(int(relay)) if len(sys.argv) > 6 else None
    context = server_context(certificate, key, log, meta)
    server = socket.create_server((HUB, int(listen)))
    while True:
        client, address = server.accept()
        threading.Thread(target=accept, args=(context, client, address[0], int(relay), log),
                         daemon=True).start()


if __name__ == "__main__":
    main()
