"""The deepest stack along the call graph, from what gcc writes with
-fcallgraph-info=su (one .ci file beside each object).

gcc cannot see through a pointer to a function. Every such call that can be
reached has to be named in INDIRECT with what may be called; an unnamed one is a
failure, never a guess."""

import os
import re

NODE = re.compile(r'node: \{ title: "([^"]+)" label: "([^"]*)"( shape : ellipse)? \}')
EDGE = re.compile(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"')

# Functions without source here: libc's and libgcc's. Generous.
LEAF = 48

SHA = r"br_sha\d+(small|big)?_(init|update|out|state|set_state)"
RECORDS = r"ssl_rec_(chapol|gcm)\.c:\w+|ssl_engine\.c:clear_\w+"
SIGNATURES = r"br_ecdsa_i\d+_vrfy_asn1|br_rsa_i\d+_pkcs1_vrfy"

# Who may be called through a pointer, by the function that calls: patterns of
# "file.c:function" for static functions and of the name alone for others. Of what
# matches only that counts which is linked.
INDIRECT = [
    # The handshake program: certificates, key exchange, hashes, the PRF.
    (r"br_ssl_hs_(client|server)_run",
     r"flash\.c:tn_tls_x_\w+|br_rsa_i\d+_public|br_ecdsa_i\d+_vrfy_asn1|br_tls12_sha\d+_prf|" +
     SHA + r"|ec_(all|p256)_m\d+\.c:api_\w+"),
    # The record layer: the handshake, then one record's worth of the cipher.
    (r"ssl_engine\.c:jump_handshake", r"br_ssl_hs_(client|server)_run"),
    (r"br_ssl_engine_hs_reset", r"br_ssl_hs_(client|server)_init_main"),
    (r"br_ssl_engine_(recvrec_\w+|sendapp_\w+|flush_record)|"
     r"ssl_engine\.c:(make_ready_\w+|sendpld_\w+|recvpld_\w+)", RECORDS),
    (r"br_ssl_engine_switch_\w+", r"ssl_rec_(chapol|gcm)\.c:\w+_init"),
    (r"ssl_rec_chapol\.c:\w+", r"br_poly1305_\w+_run"),
    (r"br_poly1305_\w+_run", r"br_chacha20_\w+_run"),
    (r"ssl_rec_gcm\.c:\w+", r"br_aes_\w+_ctr_(init|run)|br_ghash_ctmul\w*"),
    (r"br_ssl_engine_compute_master|ssl_engine\.c:compute_key_block", r"br_tls12_sha\d+_prf"),
    # Seeds: the system's are compiled out, ours come from the application.
    (r"br_ssl_engine_init_rand", r"br_hmac_drbg_\w+"),
    # Certificates: the wrapper of the header, BearSSL's decoder, one signature.
    (r"flash\.c:tn_tls_x_\w+", r"x509_minimal\.c:xm_\w+"),
    (r"br_x509_minimal_run|x509_minimal\.c:hash_dn", SHA),
    (r"x509_minimal\.c:verify_signature", SIGNATURES),
    (r"br_ecdsa_i\d+_vrfy_raw", r"ec_(all|p256)_m\d+\.c:api_\w+"),
    # The curve that stands for several chooses the curve's own function.
] + [(r"ec_all_m\d+\.c:api_" + f, r"ec_(p256|prime|c25519)_\w+\.c:api_" + f)
     for f in ("mul", "mulgen", "muladd", "generator", "order", "xoff")] + [
    (r"br_hmac_\w+|hmac\.c:process_key|br_multihash_\w+", SHA),
    # Everything else of ours that calls through a pointer is a callback into the
    # application (the rim, inlined): counted by whoever writes it.
    (r"flash\.c:tn_\w+|tailnet_\w+", r""),
]


# Ways that the graph has and the program never goes: under the first, none of the
# second is called, for the reason. The links' unit tests hold the program to it.
PUBLIC_KEY_WORK = r"flash\.c:tn_tls_x_\w+|br_(ecdsa|rsa)_\w+|ec_\w+\.c:api_\w+"
HANDSHAKE_WORK = (PUBLIC_KEY_WORK + r"|br_ssl_engine_(switch_\w+|compute_master)|"
                  r"ssl_engine\.c:compute_key_block|br_tls12_\w+_prf")
CUTS = [
    # BearSSL's record layer resumes the handshake's program whenever bytes move. On
    # an open link that has nothing left to do: renegotiation is refused
    # (BR_OPT_NO_RENEGOTIATION), and only open links are written to.
    (r"flash\.c:tn_link_(flush|write)", HANDSHAKE_WORK),
    # ">>link: An input call does no public-key work": bytes for a handshake are
    # kept for tailnet_poll.
    (r"tailnet_(tcp_input|tcp_commit|udp_input|ip_input)", PUBLIC_KEY_WORK),
]


class Graph:
    def __init__(self):
        self.own, self.edges, self.dynamic = {}, {}, set()
        self.where = {}                     # title -> the source file's name without .c

    def read(self, path):
        with open(path, errors="replace") as f:
            for line in f:
                m = NODE.search(line)
                if m:
                    self._node(m.group(1), m.group(2), m.group(3))
                    continue
                m = EDGE.search(line)
                if m:
                    self.edges.setdefault(m.group(1), set()).add(m.group(2))

    def _node(self, title, label, external):
        if external and title not in self.own:
            return
        m = re.search(r"\\n(\d+) bytes \((\w+[^)]*)\)", label)
        if m:
            self.own[title] = int(m.group(1))
            if "dynamic" in m.group(2) and "bounded" not in m.group(2):
                self.dynamic.add(title)
            path = re.search(r"\\n([^\\]+):\d+:\d+\\n", label)
            self.where[title] = os.path.basename(path.group(1)).rsplit(".", 1)[0] if path else ""

    def callees(self, title, linked, problems):
        """Titles that a function may call."""
        for target in sorted(self.edges.get(title, ())):
            if target == "__indirect_call":
                pattern = next((t for f, t in INDIRECT if re.fullmatch(f, known(title))), None)
                if pattern is None:
                    problems.add("%s calls through a pointer: name it in tests/tools/stack.py"
                                 % known(title))
                    continue
                for t in sorted(self.own):
                    if pattern and re.fullmatch(pattern, known(t)) and self.is_linked(t, linked):
                        yield t
            else:
                yield target

    def is_linked(self, title, linked):
        names, objects = linked
        return plain(title) in names and self.where[title] in objects

    def deepest(self, title, linked, problems, memo, path=(), cuts=frozenset()):
        """(bytes, chain of titles) of the deepest way down from a function."""
        cuts = cuts | {never for under, never in CUTS if re.fullmatch(under, known(title))}
        if (title, cuts) in memo:
            return memo[title, cuts]
        if title in path:
            problems.add("a loop: %s" % " -> ".join(plain(t) for t in path + (title,)))
            return 0, ()
        if title not in self.own:
            return LEAF, (title,)
        if title in self.dynamic:
            problems.add("%s has a frame of unknown size" % plain(title))
        best = (0, ())
        for callee in self.callees(title, linked, problems):
            if any(re.fullmatch(never, known(callee)) for never in cuts):
                continue
            way = self.deepest(callee, linked, problems, memo, path + (title,), cuts)
            if way[0] > best[0]:
                best = way
        memo[title, cuts] = (self.own[title] + best[0], (title,) + best[1])
        return memo[title, cuts]


def plain(title):
    """The name alone: without the file and without what gcc appends to parts."""
    name = title.split(":")[-1] if ":" in title else title
    return re.sub(r"\.(part|constprop|isra|cold|lto_priv)\.?\d*.*", "", name)


def known(title):
    """file.c:function for static functions, the name for others."""
    return os.path.basename(title.rsplit(":", 1)[0]) + ":" + plain(title) if ":" in title \
        else plain(title)


def load(paths):
    g = Graph()
    for path in paths:
        if os.path.exists(path):
            g.read(path)
    return g
