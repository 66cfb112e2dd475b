"""A tailnet on one machine: headscale or the test control server, a relay, and
nodes, ours and official ones, each in a network namespace of its own.

run.py starts every test in fresh network, mount and process namespaces, so that
ports are fixed, nothing outside is touched, and whatever a test leaves behind
dies with it. Inside, a bridge (10.99.0.1) plays the internet; control server and
relay listen there; node number n has 10.99.0.(10 + n).
"""

import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GO = os.path.join(TOP, "build/go")
HUB = "10.99.0.1"
CONTROL_NAME = "control.lab"
OS_NAME = "linux"
# Another build of ours than the usual one, for instance a broken one.
OURS = os.environ.get("TAILNETD", "build/tailnetd")


class Failed(Exception):
    """A test's own word that something is not as it should be."""


def check(true, why):
    if not true:
        raise Failed(why)


def wait_for(what, predicate, timeout=20.0, every=0.1):
    """Polls until predicate() is true and returns its value; Failed after timeout."""
    end = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= end:
            raise Failed("waited %g s in vain: %s" % (timeout, what))
        time.sleep(every)


def run(words, timeout=30, ok=True, ns=None, **more):
    """Runs a command to its end and returns it (stdout and stderr as text)."""
    if ns:
        words = ["ip", "netns", "exec", ns] + words
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=timeout, **more)
    if ok and done.returncode != 0:
        raise Failed("%s: exit code %d: %s" % (" ".join(words), done.returncode,
                                               (done.stderr or done.stdout).strip()[-500:]))
    return done


# ---- certificates ---------------------------------------------------------------


class Pki:
    """A throw-away CA in a folder, and server certificates by it."""

    def __init__(self, folder):
        self.folder = folder
        os.makedirs(folder, exist_ok=True)
        self.ca = os.path.join(folder, "ca.pem")
        self.ca_key = os.path.join(folder, "ca.key")
        self._key(self.ca_key)
        run(["openssl", "req", "-x509", "-new", "-key", self.ca_key, "-days", "30",
             "-subj", "/CN=lab CA", "-addext", "basicConstraints=critical,CA:TRUE",
             "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-out", self.ca])

    @staticmethod
    def _key(path):
        run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path])

    def server(self, name, alt=None, expired=False):
        """(certificate, key) for the hub, or for other names, or one of last year."""
        alt = alt or "DNS:%s,IP:%s,IP:127.0.0.1" % (CONTROL_NAME, HUB)
        base = os.path.join(self.folder, name)
        self._key(base + ".key")
        run(["openssl", "req", "-new", "-key", base + ".key", "-subj", "/CN=" + name,
             "-out", base + ".csr"])
        with open(base + ".ext", "w") as f:
            f.write("subjectAltName=%s\nextendedKeyUsage=serverAuth\n" % alt)
        # `openssl ca` takes dates; `openssl x509` only days from today.
        age = datetime.timedelta(days=400 if expired else 1)
        first = datetime.datetime.now(datetime.timezone.utc) - age
        last = first + datetime.timedelta(days=30)
        with open(base + ".cnf", "w") as f:
            f.write("[ca]\ndefault_ca=c\n[c]\ndatabase=%s.db\nnew_certs_dir=%s\nrand_serial=yes\n"
                    "default_md=sha256\npolicy=p\nunique_subject=no\n[p]\ncommonName=supplied\n"
                    % (base, self.folder))
        open(base + ".db", "w").close()
        run(["openssl", "ca", "-batch", "-notext", "-config", base + ".cnf", "-cert", self.ca,
             "-keyfile", self.ca_key, "-in", base + ".csr", "-extfile", base + ".ext",
             "-startdate", first.strftime("%y%m%d%H%M%SZ"),
             "-enddate", last.strftime("%y%m%d%H%M%SZ"), "-out", base + ".pem"])
        return base + ".pem", base + ".key"


# ---- processes and namespaces -----------------------------------------------------


class Process:
    """A program in the background with its output in a file."""

    def __init__(self, lab, name, words, ns=None, env=None, capture=False):
        self.lab, self.name, self.ns = lab, name, ns
        self.words = (["ip", "netns", "exec", ns] if ns else []) + words
        self.log = os.path.join(lab.folder, name + ".log")
        self.env = dict(os.environ, **(env or {}))
        self.capture = capture
        self.child = None

    def start(self):
        with open(self.log, "ab") as log:
            log.write(("\n# %s\n" % " ".join(self.words)).encode())
            log.flush()
            self.child = subprocess.Popen(
                self.words, stdin=subprocess.DEVNULL, stderr=log, env=self.env,
                stdout=subprocess.PIPE if self.capture else log, cwd=TOP)
        return self

    def alive(self):
        return self.child is not None and self.child.poll() is None

    def pid(self):
        return self.child.pid

    def signal(self, number):
        if self.alive():
            self.child.send_signal(number)

    def stop(self, timeout=10):
        """SIGTERM, then the exit code; SIGKILL when it does not leave."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout):
        if self.child is None:
            return None
        try:
            return self.child.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed("%s did not end within %g s" % (self.name, timeout)) from None

    def kill(self):
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                self.child.kill()
            self.child.wait()

    def logged(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    def memory_kb(self, field="VmRSS"):
        """Resident memory now, or with VmHWM the most that it ever was."""
        with open("/proc/%d/status" % self.pid()) as f:
            for line in f:
                if line.startswith(field + ":"):
                    return int(line.split()[1])
        return 0


class Lab:
    """One test's world. `with Lab(folder) as lab:` starts the control server."""

    hub, hub6, port = HUB, None, 8443

    def __init__(self, folder, stand_in=False):
        self.folder = folder
        self.stand_in = stand_in
        self.processes = []
        self.next_node = 1
        self.pki = Pki(os.path.join(folder, "pki"))
        alt = ["DNS:" + CONTROL_NAME, "IP:127.0.0.1", "IP:" + self.hub]
        self.cert, self.key = self.pki.server("server", alt=",".join(
            alt + (["IP:" + self.hub6] if self.hub6 else [])))

    def __enter__(self):
        # A bridge that is the internet of this test.
        run(["ip", "link", "set", "lo", "up"])
        # With an address of its own; else it changes with the ports, unknown to the nodes.
        run(["ip", "link", "add", "br0", "address", "02:00:0a:63:00:01", "type", "bridge"])
        run(["ip", "address", "add", self.hub + "/24", "dev", "br0"])
        if self.hub6:
            run(["ip", "address", "add", self.hub6 + "/64", "dev", "br0", "nodad"])
        run(["ip", "link", "set", "br0", "up"])
        return self

    def __exit__(self, *_):
        for p in reversed(self.processes):
            with contextlib.suppress(Failed, OSError):
                p.kill()

    def process(self, name, words, **more):
        p = Process(self, name, words, **more)
        self.processes.append(p)
        return p.start()

    def namespace(self):
        """A fresh namespace on the bridge: its name and address."""
        n = self.next_node
        self.next_node += 1
        ns, address = "n%d" % n, "10.99.0.%d" % (10 + n)
        run(["ip", "netns", "add", ns])
        run(["ip", "link", "add", "v%d" % n, "type", "veth", "peer", "name", "eth0", "netns", ns])
        run(["ip", "link", "set", "v%d" % n, "master", "br0", "up"])
        run(["ip", "link", "set", "lo", "up"], ns=ns)
        run(["ip", "address", "add", address + "/24", "dev", "eth0"], ns=ns)
        run(["ip", "link", "set", "eth0", "up"], ns=ns)
        run(["ip", "route", "add", "default", "via", HUB], ns=ns)
        return ns, address

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w") as f:
            f.write(text)
        return path

    # The nodes of a test.

    def ours(self, host, **more):
        kind = StandIn if self.stand_in else OurNode
        return kind(self, host, **more)

    def official(self, host, **more):
        return GoNode(self, host, **more)

    def device(self, **more):
        return Device(self, **more)

    def tls_proxy(self, listen, to):
        """Go's reverse proxy with TLS before a server without."""
        self.process("tlsproxy-%d" % listen, [
            GO + "/tlsproxy", "-listen", "%s:%d" % (self.hub, listen), "-to", to,
            "-cert", self.cert, "-key", self.key])
        wait_for("the proxy listens", lambda: listening(self.hub, listen))


# ---- control servers and relays -----------------------------------------------------


HEADSCALE_CONFIG = """\
server_url: {url}
listen_addr: "{listen}:{port}"
metrics_listen_addr: 127.0.0.1:9090
grpc_listen_addr: 127.0.0.1:50443
noise: {{ private_key_path: {dir}/noise_private.key }}
prefixes: {{ v4: 100.64.0.0/10, v6: "fd7a:115c:a1e0::/48", allocation: sequential }}
derp:
  server:
    enabled: {embedded}
    region_id: 999
    region_code: lab
    region_name: Lab
    verify_clients: true
    stun_listen_addr: "{listen}:3478"
    private_key_path: {dir}/derp_private.key
    automatically_add_embedded_derp_region: true
    ipv4: {hub}{ipv6}
  urls: []
  paths: [{paths}]
  auto_update_enabled: false
disable_check_updates: true
database: {{ type: sqlite, sqlite: {{ path: {dir}/db.sqlite, write_ahead_log: true }} }}
{tls}
policy: {{ mode: file, path: {dir}/policy.hujson }}
dns:
  magic_dns: true
  base_domain: lab.test
  override_local_dns: false
  nameservers: {{ global: [] }}
unix_socket: {dir}/hs.sock
unix_socket_permission: "0770"
log: {{ level: debug, format: text }}
logtail: {{ enabled: false }}
"""

RELAY_REGION = """\
  {region}:
    regionid: {region}
    regioncode: own{region}
    regionname: Own {region}
    nodes:
      - name: {region}a
        regionid: {region}
        hostname: {hub}
        ipv4: {hub}
        ipv6: none
        derpport: {port}
        stunport: {stun}
"""


def relay_map(relays):
    """The file that names relays of ours to headscale."""
    return "regions:\n" + "".join(RELAY_REGION.format(
        region=r.region, hub=r.lab.hub, port=r.port, stun=r.stun) for r in relays)


OPEN_POLICY = {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}


class Relay:
    """The official derper as a program of its own, one region with one relay."""

    def __init__(self, lab, region=900, port=8445, stun=3480):
        folder = os.path.join(lab.folder, "derper%d-%d" % (region, port))
        os.makedirs(folder)
        shutil.copy(lab.cert, os.path.join(folder, lab.hub + ".crt"))
        shutil.copy(lab.key, os.path.join(folder, lab.hub + ".key"))
        self.lab, self.region, self.port, self.stun = lab, region, port, stun
        self.process = lab.process("derper%d-%d" % (region, port), [
            GO + "/derper", "-a", "%s:%d" % (lab.hub, port), "-http-port", "-1",
            "-hostname", lab.hub, "-certmode", "manual", "-certdir", folder,
            "-stun-port", str(stun), "-c", os.path.join(folder, "key.json")])
        self.wait_up()

    def wait_up(self):
        wait_for("derper listens", lambda: listening(self.lab.hub, self.port))

    def restart(self, gone=0.0):
        self.process.kill()
        time.sleep(gone)
        self.process.start()
        self.wait_up()


def listening(host, port):
    with contextlib.suppress(OSError):
        socket.create_connection((host, port), 0.5).close()
        return True
    return False


class Headscale:
    """The control server, by default with its own relay built in."""

    def __init__(self, lab, relay=None, cert=None, key=None, by_name=False, tls=True, policy=None,
                 both=False, url=None):
        self.lab = lab
        # The socket's path has to be short.
        self.folder = "/run/headscale"
        os.makedirs(self.folder, exist_ok=True)
        scheme = "https" if tls else "http"
        self.url = "%s://%s%s" % (scheme, CONTROL_NAME if by_name else lab.hub,
                                  "" if lab.port == 443 else ":%d" % lab.port)
        self.url = url or self.url
        paths = self.relays(relay if isinstance(relay, list) else [relay]) if relay else ""
        cert, key = cert or lab.cert, key or lab.key
        self.config = lab.write("headscale.yaml", HEADSCALE_CONFIG.format(
            url=self.url, dir=self.folder, hub=lab.hub, port=lab.port,
            listen="[::]" if lab.hub6 else lab.hub,
            ipv6="\n    ipv6: " + lab.hub6 if lab.hub6 else "",
            embedded="false" if relay and not both else "true", paths=paths,
            tls="tls_cert_path: %s\ntls_key_path: %s" % (cert, key) if tls else ""))
        self.policy(policy or OPEN_POLICY, reload=False)
        self.process = lab.process("headscale", [GO + "/headscale", "-c", self.config, "serve"])
        self.wait_up()
        self.cli("users", "create", "lab")

    def relays(self, relays):
        """Writes the map of relays, read when it starts; the file's name."""
        return self.lab.write("relay.yaml", relay_map(relays))

    def wait_up(self):
        lab = self.lab

        def up():
            check(self.process.alive(), "headscale ended: " + self.process.logged()[-800:])
            return listening(lab.hub, lab.port) and os.path.exists(self.folder + "/hs.sock")
        wait_for("headscale listens", up)

    def restart(self, gone=0.0):
        """Killed, gone for a while, and back with its database."""
        self.process.kill()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.folder + "/hs.sock")
        time.sleep(gone)
        self.process.start()
        self.wait_up()

    def cli(self, *words):
        return run([GO + "/headscale", "-c", self.config] + list(words)).stdout

    def auth_key(self, *flags, expiration="24h"):
        out = self.cli("preauthkeys", "create", "--user", "1", "--expiration", expiration, *flags)
        return out.strip().splitlines()[-1].strip()

    def expire_auth_keys(self):
        for k in json.loads(self.cli("preauthkeys", "list", "-o", "json")):
            self.cli("preauthkeys", "expire", "-i", str(k["id"]))

    def policy(self, policy, reload=True):
        """Writes the policy and tells headscale to read it."""
        with open(self.folder + "/policy.hujson", "w") as f:
            json.dump(policy, f)
        if reload:
            self.process.signal(signal.SIGHUP)

    def nodes(self):
        return json.loads(self.cli("nodes", "list", "-o", "json")) or []

    def node(self, name):
        """The entry of a node by the name that it was given, or None."""
        for n in self.nodes():
            if n.get("given_name") == name or n.get("name") == name:
                return n
        return None

    def node_id(self, name):
        n = self.node(name)
        check(n, "headscale knows no node %s" % name)
        return str(n["id"])

    def rename(self, name, new):
        self.cli("nodes", "rename", "-i", self.node_id(name), new)

    def delete(self, name):
        self.cli("--force", "nodes", "delete", "-i", self.node_id(name))

    def expire(self, name):
        self.cli("nodes", "expire", "-i", self.node_id(name))

    def approve_login(self, url):
        self.cli("auth", "register", "--auth-id", url.rstrip("/").split("/")[-1], "--user", "lab")


class TestControl:
    """The test control server of the tailscale.com module (see peers/testcontrol)."""

    def __init__(self, lab, *flags):
        self.lab = lab
        self.url = "%s://%s:8080" % ("https" if "-tls" in flags else "http", HUB)
        self.process = lab.process("testcontrol", [
            GO + "/testcontrol", "-listen", HUB + ":8080", "-admin", "127.0.0.1:8081",
            "-relay", HUB + ":8444", "-stun", HUB + ":3479", "-cert", lab.cert,
            "-key", lab.key] + list(flags))
        wait_for("testcontrol listens", lambda: listening(HUB, 8080) and listening(HUB, 8444))

    def ask(self, what, body=None, **query):
        """One steering request; returns the answer's text, Failed when refused."""
        url = "http://127.0.0.1:8081/%s?%s" % (what, urllib.parse.urlencode(query))
        data = None if what == "nodes" else json.dumps(body).encode() if body is not None else b""
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as r:
                return r.read().decode()
        except urllib.error.HTTPError as e:
            raise Failed("testcontrol, %s: %s" % (what, e.read().decode().strip())) from None

    def nodes(self):
        return json.loads(self.ask("nodes")) or []

    def node(self, host):
        for n in self.nodes():
            if (n.get("Hostinfo") or {}).get("Hostname") == host:
                return n
        return None


# ---- nodes -------------------------------------------------------------------------


class GoNode:
    """The official client with a TUN device in a namespace of its own."""

    def __init__(self, lab, host, relay_only=True, userspace=False, place=None, port=41641):
        self.lab, self.host = lab, host
        self.ns, self.address = (place or lab).namespace()
        self.state = os.path.join(lab.folder, host)
        os.makedirs(self.state, exist_ok=True)
        self.socket = "/run/%s.sock" % host
        self.tun = "" if userspace else "tailscale0"
        env = {"SSL_CERT_FILE": lab.pki.ca, "TS_NO_LOGS_NO_SUPPORT": "true"}
        if relay_only:
            env["TS_DEBUG_ALWAYS_USE_DERP"] = "1"
        self.process = lab.process("tailscaled-" + host, [
            GO + "/tailscaled", "--tun=" + (self.tun or "userspace-networking"),
            "--statedir=" + self.state, "--socket=" + self.socket, "--port=%d" % port,
            "--no-logs-no-support"], ns=self.ns, env=env)
        self.ip4 = self.ip6 = self.url = None
        self.name = host

    def cli(self, *words, timeout=60, ok=True):
        return run([GO + "/tailscale", "--socket=" + self.socket] + list(words),
                   timeout=timeout, ok=ok, ns=self.ns)

    def up(self, control, auth_key=None, *flags):
        """Joins; --accept-dns=false because it would write /etc/resolv.conf."""
        wait_for("tailscaled answers", lambda: os.path.exists(self.socket))
        words = ["up", "--login-server=" + control.url, "--hostname=" + self.host,
                 "--accept-dns=false", "--netfilter-mode=off", "--timeout=20s"]
        if auth_key:
            words.append("--authkey=" + auth_key)
        # Now and then its login gets stuck until it is asked once more.
        if self.cli(*words, *flags, ok=False).returncode != 0:
            self.cli(*words, *flags)
        self.learn()
        return self

    def learn(self):
        me = self.status()["Self"]
        addresses = me["TailscaleIPs"] or []
        self.ip4 = next((a for a in addresses if "." in a), None)
        self.ip6 = next((a for a in addresses if ":" in a), None)

    def status(self):
        return json.loads(self.cli("status", "--json").stdout)

    def peer(self, ip4):
        """What `tailscale status` says about a peer, or None."""
        for p in (self.status().get("Peer") or {}).values():
            if ip4 in (p.get("TailscaleIPs") or []):
                return p
        return None

    def wait_peer(self, ip4, online=True, timeout=20):
        def there():
            p = self.peer(ip4)
            return p if p and (p.get("Online") or not online) else None
        return wait_for("%s sees %s online" % (self.host, ip4), there, timeout)

    def ping(self, ip, *flags, timeout=20):
        """`tailscale ping`: its output; empty when there was no answer."""
        done = self.cli("ping", "--c=1", "--until-direct=false", "--timeout=%ds" % timeout,
                        *flags, ip, timeout=timeout + 10, ok=False)
        return done.stdout if done.returncode == 0 else ""

    def run(self, *words, timeout=60, ok=True):
        return run(list(words), timeout=timeout, ok=ok, ns=self.ns)

    def stop(self):
        # Told to end while it starts, it sometimes does not.
        with contextlib.suppress(Failed):
            return self.process.stop(10)
        return 0

    def kill(self):
        self.process.kill()

    def rss_kb(self, field="VmRSS"):
        return self.process.memory_kb(field)

    def start(self):
        self.process.start()


class OurNode:
    """build/tailnetd in a namespace of its own, followed by its JSON events."""

    bare = 0                                # 1: the URL comes without the option's name

    def __init__(self, lab, host, tun=None, relay_only=True, ephemeral=False, tags=None,
                 ca="lab", port=None, extra=(), program=OURS, state=None, place=None):
        self.lab, self.host, self.tun = lab, host, tun
        self.ns, self.address = (place or lab).namespace()
        self.state_file = state or os.path.join(lab.folder, host + ".state")
        ca = lab.pki.ca if ca == "lab" else ca
        self.flags = ["--hostname", host, "--state", self.state_file]
        self.flags += ["--ca", ca] if ca else []
        self.flags += ["--tun", tun] if tun else []
        self.flags += ["--relay-only"] if relay_only else []
        self.flags += ["--ephemeral"] if ephemeral else []
        self.flags += ["--tags", tags] if tags else []
        self.flags += ["--port", str(port)] if port else []
        self.flags += list(extra) + ["--json", "-v"]
        self.program = os.path.join(TOP, program)
        self.process = None
        self.events, self.last = [], {}
        self.ip4 = self.ip6 = self.url = self.name = None
        self.lock = threading.Lock()

    def start(self, control=None, auth_key=None, extra=()):
        """Starts it (again). Without a key it will show a login URL."""
        if control is not None:
            words = ["--control", control if isinstance(control, str) else control.url]
            words = words[self.bare:]
            if auth_key:
                words += ["--authkey-file", self.lab.write(self.host + ".authkey", auth_key + "\n")]
            self.control_flags = words
        check(os.path.exists(self.program), "%s is not built" % self.program)
        self.events, self.last = [], {}
        self.begin = time.monotonic()
        words = [self.program] + self.control_flags + self.flags + list(extra)
        self.process = self.lab.process("tailnetd-" + self.host, words, ns=self.ns, capture=True)
        threading.Thread(target=self._follow, args=(self.process,), daemon=True).start()
        return self

    def _follow(self, process):
        with open(os.path.join(self.lab.folder, "events-%s.log" % self.host), "a") as log:
            for line in process.child.stdout:
                text = line.decode(errors="replace")
                log.write("%.3f %s" % (time.monotonic() - self.begin, text))
                log.flush()
                with contextlib.suppress(ValueError):
                    self._take(json.loads(line))

    def _take(self, event):
        event["at"] = time.monotonic() - self.begin
        with self.lock:
            self.events.append(event)
            self.last[event.get("event")] = event

    def event(self, kind):
        with self.lock:
            return self.last.get(kind)

    def state(self):
        said = (self.event("state") or {}).get("state")
        return said and said.lower().replace("_", "-").replace(" ", "-")

    def wait_state(self, state, timeout=30):
        def there():
            if self.state() == state:
                return True
            if not self.process.alive():
                raise Failed("tailnetd ended with %s before it was %s: %s" % (
                    self.process.child.returncode, state, self.problem_text()[-400:]))
            return False
        wait_for("%s is %s (it is %s; %s)" % (self.host, state, self.state(), self.problem_text()),
                 there, timeout, 0.02)
        e = self.event("state")
        if state == "running":
            self.ip4, self.ip6, self.name = e.get("ip4"), e.get("ip6"), e.get("name")
            if self.tun:
                self._wait_device()
        return self

    def _wait_device(self):
        wait_for("%s has its address" % self.tun, lambda: self.ip4 in run(
            ["ip", "-4", "address", "show", "dev", self.tun], ns=self.ns, ok=False).stdout, 10)

    def up(self, control, auth_key=None):
        return self.start(control, auth_key).wait_state("running")

    def wait_login(self, timeout=30):
        e = wait_for("%s shows a login URL" % self.host, lambda: self.event("login"), timeout)
        self.url = e["url"]
        return self.url

    def problem(self):
        return self.event("problem")

    def problem_text(self):
        """Everything that it said about what is wrong."""
        said = json.dumps(self.problem()) if self.problem() else ""
        if self.process and not self.process.alive():
            # Not the line with its options: that has every word that one may look for.
            log = [s for s in self.process.logged().splitlines() if not s.startswith("# ")]
            said += " " + "\n".join(log).strip()[-600:]
        return said

    def sees(self, name):
        """Is a peer of that name in the newest list?"""
        e = self.event("peers") or {}
        return any(name == p.get("name", "").split(".")[0] for p in e.get("peers", []))

    def wait_sees(self, name, there=True, timeout=20):
        wait_for("%s %s %s in its list" % (self.host, "has" if there else "no longer has", name),
                 lambda: self.sees(name) == there, timeout)

    def run(self, *words, timeout=60, ok=True):
        return run(list(words), timeout=timeout, ok=ok, ns=self.ns)

    def stop(self, timeout=10):
        return self.process.stop(timeout)

    def kill(self):
        self.process.kill()

    def rss_kb(self, field="VmRSS"):
        return self.process.memory_kb(field)


class Device(OurNode):
    """build/device (see device.c): our library with the limits of a small device."""

    bare = 1

    def __init__(self, lab, engines=1, http_port=0, lean=False, host="device"):
        super().__init__(lab, host, program="build/device_lean" if lean else "build/device")
        self.lean = lean
        self.sizes = [str(engines), str(http_port)]

    def start(self, control=None, auth_key=None, extra=()):
        if control is not None:
            key = self.lab.write(self.host + ".authkey", (auth_key or "") + "\n")
            self.flags = [key, self.lab.pki.ca, self.state_file] + self.sizes
        return super().start(control, None, extra)


class Wire:
    """wire.py before a server: what connections to it look like from outside."""

    def __init__(self, lab, listen, target):
        self.log = os.path.join(lab.folder, "wire-%d.json" % listen)
        self.process = lab.process("wire-%d" % listen, [
            sys.executable, os.path.join(TOP, "tests/interop/wire.py"), lab.hub, str(listen),
            str(target), self.log])
        wait_for("wire.py listens", lambda: ":%d " % listen in run(["ss", "-ltn"]).stdout)

    def connections(self, address):
        """What came from there so far: the newest line of each connection, in order."""
        newest = {}
        if os.path.exists(self.log):
            with open(self.log) as f:
                for line in f.read().splitlines():
                    entry = json.loads(line)
                    if entry["from"] == address:
                        newest[entry["id"]] = entry
        return [newest[i] for i in sorted(newest)]


class StandIn(GoNode):
    """The official client in our place: tests the tests. What only our program
    has (its events, its built-in echo) is imitated."""

    def __init__(self, lab, host, tun=None, ephemeral=False, tags=None, extra=(), **_):
        super().__init__(lab, host)
        self.tags = tags

    def up(self, control, auth_key=None):
        super().up(control, auth_key, *(["--advertise-tags=" + self.tags] if self.tags else []))
        # Our program answers UDP at port 7 by itself.
        udp_echo(self.lab, self)
        return self

    def start(self, control=None, auth_key=None, extra=()):
        if control is None:
            self.process.start()
        else:
            wait_for("tailscaled answers", lambda: os.path.exists(self.socket))
            words = ["up", "--login-server=" + control.url, "--hostname=" + self.host,
                     "--accept-dns=false", "--netfilter-mode=off"]
            self.upping = self.lab.process("up-" + self.host, [
                GO + "/tailscale", "--socket=" + self.socket] + words +
                (["--authkey=" + auth_key] if auth_key else []), ns=self.ns)
        return self

    def wait_login(self, timeout=30):
        self.url = wait_for("a login URL", lambda: self.status().get("AuthURL"), timeout)
        return self.url

    def wait_state(self, state, timeout=30):
        names = {"running": "Running", "needs-login": "NeedsLogin", "needs-approval":
                 "NeedsMachineAuth"}
        wait_for("state " + state, lambda: os.path.exists(self.socket) and
                 self.status()["BackendState"] == names[state], timeout)
        self.learn()
        return self

    def sees(self, name):
        return any(p.get("DNSName", "").split(".")[0] == name
                   for p in (self.status().get("Peer") or {}).values())

    def wait_sees(self, name, there=True, timeout=20):
        wait_for("%s in the list: %s" % (name, there), lambda: self.sees(name) == there, timeout)


# ---- traffic ------------------------------------------------------------------------


def icmp(node, ip, count=3, timeout=10):
    """How many of count pings came back."""
    done = node.run("ping", "-n", "-i", "0.2", "-c", str(count), "-w", str(timeout), ip, ok=False,
                    timeout=timeout + 5)
    m = re.search(r"(\d+) received", done.stdout)
    return int(m.group(1)) if m else 0


UDP_CLIENT = r"""
import socket, sys, time
ip, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
gap, wait = float(sys.argv[4]), float(sys.argv[5])
s = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(wait)
good = 0
for i in range(count):
    text = b"packet %d of %d" % (i, count)
    try:
        s.sendto(text, (ip, port))
        while True:
            got = s.recv(2000)
            if got == text:
                good += 1
                break
    except OSError:
        pass
    time.sleep(gap)
print(good)
"""


def udp(node, ip, port=7, count=5, gap=0.05, wait=1.0):
    """How many of count datagrams were echoed."""
    done = node.run(sys.executable, "-c", UDP_CLIENT, ip, str(port), str(count), str(gap),
                    str(wait), timeout=count * (gap + wait) + 15)
    return int(done.stdout)


UDP_ECHO = r"""
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", int(sys.argv[1])))
while True:
    text, sender = s.recvfrom(65535)
    try:
        s.sendto(text, sender)
    except OSError:
        pass
"""


def udp_echo(lab, node, port=7):
    """A UDP echo server in a node's namespace."""
    p = lab.process("echo%d-%s" % (port, node.host),
                    [sys.executable, "-c", UDP_ECHO, str(port)], ns=node.ns)
    wait_for("the echo server is there", lambda: ":%d " % port in run(
        ["ss", "-lun"], ns=node.ns).stdout)
    return p


class Flow:
    """UDP echo requests, ten a second, in the background; who answered when."""

    def __init__(self, lab, node, ip, port=7):
        self.process = Process(lab, "flow-%s" % node.host, [
            sys.executable, "-u", "-c", FLOW_CLIENT, ip, str(port)], ns=node.ns, capture=True)
        lab.processes.append(self.process)
        self.begin = time.monotonic()
        self.answers = []
        self.process.start()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self):
        for _ in self.process.child.stdout:
            self.answers.append(time.monotonic())

    def count(self, since):
        return sum(1 for t in list(self.answers) if t >= since)

    def wait_flowing(self, timeout=20):
        """Answers come: three within the last second."""
        wait_for("the flow is answered", lambda: self.count(time.monotonic() - 1) >= 3, timeout)

    def wait_dry(self, timeout=20, quiet=2.0):
        """No answer came for a while."""
        begin = time.monotonic()
        wait_for("the flow stops", lambda: time.monotonic() - begin > quiet and
                 self.count(time.monotonic() - quiet) == 0, timeout)

    def longest_gap(self, since):
        times = [since] + [t for t in list(self.answers) if t >= since] + [time.monotonic()]
        return max(b - a for a, b in zip(times, times[1:]))

    def stop(self):
        self.process.kill()


FLOW_CLIENT = r"""
import socket, sys, threading, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 0))
def listen():
    while True:
        try:
            s.recv(2000)
            print("answer", flush=True)
        except OSError:
            time.sleep(0.05)
threading.Thread(target=listen, daemon=True).start()
while True:
    try:
        s.sendto(b"flow", (sys.argv[1], int(sys.argv[2])))
    except OSError:
        pass
    time.sleep(0.1)
"""


TCP_SINK = r"""
import hashlib, socket, sys
l = socket.create_server((sys.argv[1], int(sys.argv[2])), family=socket.AF_INET)
s, _ = l.accept()
digest, total = hashlib.sha256(), 0
while True:
    got = s.recv(65536)
    if not got:
        break
    digest.update(got)
    total += len(got)
s.sendall(b"%d %s" % (total, digest.hexdigest().encode()))
s.close()
"""

TCP_SOURCE = r"""
import hashlib, random, socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
s.settimeout(60)
left, digest, r = int(sys.argv[3]), hashlib.sha256(), random.Random(7)
total = left
while left:
    piece = r.randbytes(min(left, 50000))
    digest.update(piece)
    s.sendall(piece)
    left -= len(piece)
s.shutdown(socket.SHUT_WR)
answer = b""
while True:
    got = s.recv(200)
    if not got:
        break
    answer += got
print("same" if answer == b"%d %s" % (total, digest.hexdigest().encode()) else "differs", answer)
"""


def tcp_copy(lab, client, server, megabytes=5, port=7100):
    """Bytes through one TCP connection: all arrive, the same, and both ends close."""
    sink = lab.process("sink-" + server.host, [
        sys.executable, "-c", TCP_SINK, server.ip4, str(port)], ns=server.ns)
    wait_for("the sink listens", lambda: ":%d " % port in run(
        ["ss", "-ltn"], ns=server.ns).stdout)
    done = client.run(sys.executable, "-c", TCP_SOURCE, server.ip4, str(port),
                      str(megabytes * 1000000), timeout=100)
    check(done.stdout.startswith("same"), "what arrived differs: " + done.stdout)
    sink.wait(10)


class Iperf:
    """What one iperf3 run came to."""

    def __init__(self, lab, client, server, ip, megabytes=None, seconds=None, reverse=False,
                 timeout=300):
        one = lab.process("iperf-server-" + server.host,
                          ["iperf3", "-s", "-1", "-B", ip, "-p", "5201"], ns=server.ns)
        wait_for("iperf3 listens", lambda: ":5201" in run(["ss", "-ltn"], ns=server.ns).stdout)
        words = ["iperf3", "-c", ip, "-p", "5201", "-J"]
        words += ["-n", "%dM" % megabytes] if megabytes else ["-t", str(seconds)]
        done = client.run(*words, *(["-R"] if reverse else []), timeout=timeout, ok=False)
        one.kill()
        report = json.loads(done.stdout or "{}")
        with open(os.path.join(lab.folder, "iperf3.json"), "a") as f:
            f.write(done.stdout)
        check("error" not in report and "end" in report,
              "iperf3: %s" % report.get("error", done.stderr[-300:]))
        sent, received = report["end"]["sum_sent"], report["end"]["sum_received"]
        self.bytes = received["bytes"]
        self.mbits = received["bits_per_second"] / 1e6
        self.retransmits = sent.get("retransmits", 0)


def break_connections(node, what="tcp"):
    """Every TCP connection that the node has now goes dead without a word: both
    directions are dropped from here on, new connections are not."""
    listed = run(["ss", "-tnH", "state", "established"], ns=node.ns).stdout
    ports = sorted({line.split()[2].rsplit(":", 1)[1] for line in listed.splitlines()
                    if HUB in line.split()[3]})
    check(ports, "%s has no connections to cut" % node.host)
    run(["nft", "add", "table", "ip", "cut"], ns=node.ns)
    for hook, side in (("output", "sport"), ("input", "dport")):
        run(["nft", "add chain ip cut %s { type filter hook %s priority 0; }" % (hook, hook)],
            ns=node.ns)
        run(["nft", "add rule ip cut %s tcp %s { %s } drop" % (hook, side, ", ".join(ports))],
            ns=node.ns)
    return ports
