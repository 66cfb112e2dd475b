#!/usr/bin/env python3
"""Are the interop tests worth anything? Each line of the table breaks one thing in
a copy of the sources; the test that it names has to fail, in the part that it names,
by a check of its own and not because the program crashed.

    broken.py [-k WORD-OR-NUMBER] [--list] [--check] [--from N] [--jobs N] [--top FOLDER]

--check only sees that everything to break is still found in the sources; --top
takes the sources from another folder. What was built, and the logs, lie in
build/broken/NUMBER. Takes about half a minute for each line."""

import argparse
import collections
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import time

import run as runner

TOP = runner.TOP
OUT = os.path.join(TOP, "build/broken")
SOURCES = ("tailnet.h", "tailnet_platform_posix.h", "examples/tailnetd.c")
# Source, program, more words; and the tests that want others than the first.
PROGRAMS = (("examples/tailnetd.c", "build/tailnetd", ()),
            ("tests/interop/two_nodes.c", "build/two_nodes", ()),
            ("tests/interop/device.c", "build/device", ()),
            ("tests/interop/device.c", "build/device_lean", ("-DTAILNET_CONTROL_RECORD=6000",)))
WANTS = {"two_nodes_in_one_process": PROGRAMS[1:2], "key_over_tls_then_http": PROGRAMS[2:3],
         "short_records_direct": PROGRAMS[3:], "long_records_behind_a_proxy": PROGRAMS[2:]}
SIGNALS = r"(ended with|exit code) -(4|6|7|8|11)\b|Assertion|double free|stack smashing"

Row = collections.namedtuple("Row", "test part what edits")
ROWS = []


class NotFound(Exception):
    pass


# ---- how to break a function -----------------------------------------------------------


def body_of(texts, name):
    """The file that defines a function, and where its braces are."""
    found = []
    for path, text in texts.items():
        for m in re.finditer(r"^(?! )[^\n;#{}]*\b%s\([^;{}]*\)\n\{\n" % name, text, re.M):
            found.append((path, m.start(), m.end(), text.index("\n}\n", m.end() - 1) + 1))
    if len(found) != 1:
        raise NotFound("%s is defined %d times" % (name, len(found)))
    return found[0]


def first(name, code):
    """The function begins with this."""
    def edit(texts):
        path, _, begin, _ = body_of(texts, name)
        texts[path] = texts[path][:begin] + "    " + code + "\n" + texts[path][begin:]
    return edit


def swap(name, old, new):
    """In the function, this (a word, or any text; there once) becomes that. Without a
    function: in the whole of the sources."""
    def edit(texts):
        places = [(p, 0, len(t)) for p, t in texts.items()]
        if name:
            path, _, begin, end = body_of(texts, name)
            places = [(path, begin, end)]
        words = r"\b%s\b" % old if re.fullmatch(r"\w+", old) else re.escape(old)
        found = [(p, b + m.start(), b + m.end()) for p, b, e in places
                 for m in re.finditer(words, texts[p][b:e])]
        if len(found) != 1:
            raise NotFound("%s: '%s' is there %d times" % (name, old, len(found)))
        path, begin, end = found[0]
        texts[path] = texts[path][:begin] + new + texts[path][end:]
    return edit


# ---- the table ---------------------------------------------------------------------------


def breaks(test, part, what, *edits):
    ROWS.append(Row(test, part, what, edits))


NO_PEERS_CHANGED = swap(None, 'X("PeersChanged"', 'X("PeersChangef"')
ONLY_FIRST_SELF = first("tn_map_self_end", "if (m->has_self) return;")
NO_DISCO = first("tn_node_disco", "return TAILNET_ERR_FORGED;")
NO_LOGIN_NEWS = swap("tn_ctl_follow", "TN_CTL_NEWS_LOGIN |", "")
NO_FOLLOW_UP = swap("tn_ctl_follow", "tn_ctl_register(c, x);",
                    "tn_ctl_pause(c, x, TAILNET_OK); c->deadline_ms = TN_NEVER;")
NO_LOGOUT = swap("tn_ctl_body_register", "Expiry", "Expury")
NO_SAVE = first("tnp_save", "return;")
NO_HOME = swap("tn_ctl_w_netinfo", "PreferredDERP", "PreferredDARP")
NEVER_GONE = first("tn_map_leave", "return;")
NO_RULES = first("tn_flt_lets", "return true;")
FEW_POLICIES = first("tn_flt_commit", "{ static int news_seen; if (news_seen++ > 1) return 0; }")
NO_RETRY = swap("tn_ctl_pause", "if (wait > 60000u) wait = 60000u;", "wait = 3600000u;")
NO_RELAY_RETRY = first("tn_relay_backoff_ms", "return 3600000u;")
NEVER_EXPIRED = first("tn_node_self_expired", "return false;")
SAME_KEYS = first("tn_key_state_first",
                  "{ static const uint8_t same[64] = {7, 7, 7}; random = same; }")

breaks("join_by_key", "running with addresses and a name",
       "our IPv6 address is not read", swap("tn_map_self_end", "&s->ip6", "&was.ip6"))
breaks("join_by_key", "headscale nodes list", "our name is not told",
       swap("tn_ctl_w_hostinfo", "Hostname", "Hastname"))
breaks("join_by_key", "tailscale status", "our system is not told",
       swap("tn_ctl_w_hostinfo", "OS", "US"))
breaks("join_by_key", "tailscale status", "our home relay is not told", NO_HOME)
breaks("join_by_key", "SIGTERM", "SIGTERM is not heard",
       swap("on_signal", "app.stop = 1;", "return;"))

breaks("join_by_name", "running", "what the resolver says is not used",
       first("tnp_lookup_done", "l->purpose = TNP_FOR_NOBODY; return;"))
breaks("join_by_name", "running", "the certificate is checked against another name",
       swap("tn_tls_check_target", "c->name = name;", 'c->name = "other.lab";'))
breaks("join_over_http", "running", "http:// is taken for https://",
       swap("tn_ctl_url_parse", "t->host_len != 0 &&", "(t->tls = true) && t->host_len != 0 &&"))
breaks("join_over_http", "traffic through the relay", "relays too are spoken to without TLS",
       swap("tn_node_dial_relay", "dial.tls  = true;", "dial.tls = false;"))

breaks("join_by_login_url", "a login URL", "the URL is not announced", NO_LOGIN_NEWS)
breaks("join_by_login_url", "running once", "after the URL nobody asks the server",
       NO_FOLLOW_UP)
breaks("join_by_login_url", "a restart", "the state is not saved", NO_SAVE)
breaks("tags_and_ephemeral", "tags asked for", "tags are not asked for",
       swap("tn_ctl_w_hostinfo", "RequestTags", "RequestBags"))
breaks("tags_and_ephemeral", "and gone", "the logout asks for no expiry", NO_LOGOUT)
breaks("logout", "tailnetd --logout", "the logout is not sent", first("tn_ctl_logout", "return;"))
breaks("logout", "headscale has the key expired", "the logout asks for no expiry", NO_LOGOUT)
breaks("logout", "the next start", "the URL is not announced", NO_LOGIN_NEWS)

breaks("pings_and_echoes", "tailscale ping (disco)", "disco is not answered", NO_DISCO)
breaks("pings_and_echoes", "tailscale ping --tsmp", "TSMP is not answered",
       first("tn_node_pong_inside", "return;"))
breaks("pings_and_echoes", "ICMP, IPv4", "the checksum of IPv4 heads is wrong",
       swap("tnp_ip_header", "tnp_sum(0, out, 20)", "tnp_sum(1, out, 20)"))
breaks("pings_and_echoes", "ICMP, IPv6", "the checksum over IPv6 leaves out the sender",
       swap("tnp_sum_pseudo", "tnp_sum(sum, src->ip, len)", "tnp_sum(sum, src->ip, 4)"))
breaks("pings_and_echoes", "ICMP, full size", "the largest packet is refused",
       swap("tn_node_admit_out", "p.len > n->desc.mtu", "p.len >= n->desc.mtu"))
breaks("pings_and_echoes", "UDP echo at port 7, IPv4", "nobody answers at port 7",
       swap("on_udp", "port == ECHO_PORT", "port == 8"))
breaks("pings_and_echoes", "UDP echo at port 7, IPv6", "UDP over IPv6 is not taken",
       first("tnp_udp_read", "if (k->src.family == 6) return false;"))
breaks("both_ways_through_tun", "ICMP from the official client", "nothing goes to the device",
       first("tnp_io_ip_output", "if (((tailnet_posix *)user)->tun.fd >= 0) return;"))
breaks("both_ways_through_tun", "ICMP from us", "our own pings are not sent",
       first("tn_node_admit_out", "{ const uint8_t *b = pkt->base + pkt->off; "
             "if (b[0] == 0x45 && b[9] == 1 && b[20] == 8) return TAILNET_ERR_DENIED; }"))
breaks("both_ways_through_tun", "ICMP from us, IPv6", "no peer is found by its IPv6 address",
       first("tn_node_find", "if (p->family == 6) return TAILNET_ERR_NO_ROUTE;"))
breaks("both_ways_through_tun", "UDP from us", "UDP is refused",
       first("tn_flt_lets", "if (flow->protocol == 17) return false;"),
       first("tn_flt_answers", "if (p->flow.protocol == 17) return false;"))
breaks("both_ways_through_tun", "UDP from the official client", "UDP is taken as answer only",
       first("tn_flt_lets", "if (flow->protocol == 17) return false;"))
breaks("both_ways_through_tun", "TCP from us", "large packets are not sent",
       swap("tn_node_admit_out", "p.len > n->desc.mtu", "p.len > 1000"))
breaks("both_ways_through_tun", "TCP from the official client", "large packets are not taken",
       swap("tn_node_judge", "if (v == TN_FLT_ACCEPT)", "if (v == TN_FLT_ACCEPT && p.len < 1000)"))
breaks("a_silent_start", "the very first packets", "we answer only whom we called ourselves",
       first("tn_node_respond", "return;"))
breaks("a_silent_start", "the very first packets", "the first handshake is lost",
       first("tn_node_respond", "{ static int calls; if (calls++ == 0) return; }"))
breaks("tcp_a_gigabyte", "540 MB to the official client", "no packet is taken after the 50,000th",
       first("tn_node_judge", "{ static int taken; if (taken++ > 50000) return false; }"))

breaks("peers_come_and_go", "added", "changed peers are not read", NO_PEERS_CHANGED)
breaks("peers_come_and_go", "renamed", "the name of a known peer stays",
       swap("tn_map_store", "if (used) tn_map_link(m, i, false);",
            "if (used) memcpy(neu->name, old->name, sizeof neu->name);\n"
            "    if (used) tn_map_link(m, i, false);"))
breaks("peers_come_and_go", "expired", "peers never expire",
       swap(None, 'X("Expired"', 'X("Expyred"'), swap(None, 'X("KeyExpiry"', 'X("KeyExpyry"'))
breaks("peers_come_and_go", "removed", "peers are never removed", NEVER_GONE)
breaks("removed_peer_is_refused", "it stops", "peers are never removed", NEVER_GONE)
breaks("policy_changes_bite", "it stops", "every packet is let in", NO_RULES)
breaks("policy_changes_bite", "it stops", "a flow that we answered counts as ours",
       swap("tn_flt_note_in", "key.bits |= TN_FLT_THEIRS;", ""))
breaks("policy_changes_bite", "it runs again", "the third policy is not taken", FEW_POLICIES)
breaks("policy_changes_bite", "but nothing else", "ports are not looked at",
       swap("tn_flt_hit", "r->port_first <= port && port <= r->port_last &&",
            "r->port_last != 9 &&"))
breaks("one_way_grant", "theirs to ours", "every packet is let in", NO_RULES)
breaks("one_way_grant", "ours to theirs", "answers are refused",
       first("tn_flt_answers", "return false;"))
breaks("one_way_grant", "TCP ours to theirs", "answers by TCP are refused",
       first("tn_flt_answers", "if (p->flow.protocol == 6) return false;"))
breaks("one_way_grant", "and the other way round", "the third policy is not taken", FEW_POLICIES)

breaks("restart_with_state", "same address after stop", "the state is not saved", NO_SAVE)
breaks("restart_with_state", "our first handshake", "handshakes are dated from the start",
       swap("tn_wg_stamp", "ms = unix_ms;", ";"),
       swap("tn_wg_device_init", "= saved_stamp_ms;\n    dev->stamp_saved_ms", "= 0;\n"
            "    dev->stamp_saved_ms"))
breaks("restart_without_state", "joins as a new node", "new keys are the old ones", SAME_KEYS)
breaks("restart_without_state", "a damaged state", "the state's checksum is not looked at",
       swap("tn_key_state_check", "if (!tn_equal(sum,", "if (false && !tn_equal(sum,"))
breaks("headscale_gone_for_a_minute", "and does not stop", "without control nothing goes",
       first("tn_node_standing", "if (n->up && n->mapped && !tn_ctl_is_up(&n->ctl)) "
             "return TAILNET_STATE_CONNECTING;"))
breaks("headscale_gone_for_a_minute", "afterwards", "control is asked again in an hour", NO_RETRY)
breaks("headscale_restarted", "it runs again", "the relay is dialled again in an hour",
       NO_RELAY_RETRY)
breaks("headscale_restarted", "and control too", "control is asked again in an hour", NO_RETRY)
breaks("relay_restarted", "it runs again after the relay was gone for 0",
       "the relay is dialled again in an hour", NO_RELAY_RETRY)
breaks("connection_cut_without_fin", "and runs again", "a silent relay is waited for forever",
       swap("tn_relay_step_slot", "tn_relay_fail(l, TAILNET_ERR_TIMEOUT,", "(void)(l,"),
       swap("tnp_tcp_options", "TCP_USER_TIMEOUT, 45000", "TCP_USER_TIMEOUT, 3600000"),
       swap("tnp_tcp_options", "TCP_KEEPIDLE, 45", "TCP_KEEPIDLE, 3600"))
breaks("connection_cut_without_fin", "control is back", "a silent control is waited for forever",
       swap("tn_ctl_late", "} else if (c->state != TN_CTL_IDLE) {", "} else if (false) {"),
       swap("tnp_tcp_options", "TCP_USER_TIMEOUT, 45000", "TCP_USER_TIMEOUT, 3600000"),
       swap("tnp_tcp_options", "TCP_KEEPIDLE, 45", "TCP_KEEPIDLE, 3600"))

CERTS = "wrong_certificates_and_keys"
breaks(CERTS, "wrong CA", "every CA is trusted",
       swap("tn_tls_x_end_chain", "return err;",
            "return err == BR_ERR_X509_NOT_TRUSTED ? 0u : err;"))
breaks(CERTS, "expired certificate", "the time is what certificates say themselves",
       swap("tn_tls_check_start", "c->clock = unix_ms >= floor;", "c->clock = false; floor = 0;"))
breaks(CERTS, "wrong name, for an address", "addresses in certificates are not looked at",
       swap("tn_tls_x_end_chain", "&& !c->ip_ok", "&& false"))
breaks(CERTS, "wrong name, for a name", "names in certificates are not looked at",
       swap("tn_tls_x_start_chain", "start_chain(&c->chain.vtable, c->name)",
            "start_chain(&c->chain.vtable, NULL)"))
breaks(CERTS, "wrong control key", "--control-key is not heeded",
       swap("open_node", "= w->control_key;", "= NULL;"))
breaks(CERTS, "wrong auth key", "a refusal of the server is not told",
       first("tn_ctl_refuse", "c->refused = c->slow = true; tn_ctl_pause(c, x, why); "
             "c->deadline_ms = TN_NEVER; return;"))
breaks(CERTS, "each has words", "one sentence for whatever is wrong with a certificate",
       first("tls_sentence", 'return "The certificate has expired, is for another name, or its '
             'CA is not trusted";'))

EXPIRY = "key_expiry_and_new_login"
breaks(EXPIRY, "expired by the admin", "our own expiry is not noticed", NEVER_EXPIRED)
breaks(EXPIRY, "no traffic meanwhile", "an expired node goes on",
       first("tn_node_standing", "if (n->up && n->mapped && n->map.has_self) "
             "return TAILNET_STATE_RUNNING;"))
breaks(EXPIRY, "running again", "sessions begin with the key from before the login",
       swap("tn_node_rekey", "tn_wg_device_key(&n->wg, n->keys.node);", ""))
breaks("exit_codes", "usage", "a wrong option is no error",
       swap("main", "if (!read_arguments(&app.wish, argc, argv)) return 1;",
            "if (!read_arguments(&app.wish, argc, argv)) return 0;"))
breaks("exit_codes", "asked to stop", "leaving without an answer counts as an error",
       first("leave", "if (tailnet_get_state(app.posix.node) == TAILNET_STATE_CONNECTING) "
             "_exit(2);"))
breaks("exit_codes", "SIGINT", "SIGINT is not heard",
       swap("main", "sigaction(SIGINT, &act, NULL);", ""))
breaks("two_nodes_in_one_process", "they join", "both nodes have the same keys", SAME_KEYS)
breaks("two_nodes_in_one_process", "they join", "WireGuard's key is kept outside of the node",
       first("tn_wg_device_key", "{ static uint8_t kept[32]; static int calls; "
             "if (calls++ == 0) memcpy(kept, private_key, 32); private_key = kept; }"))

breaks("hosted_traffic", "an official client", "our home relay is not told", NO_HOME)
breaks("hosted_traffic", "tailscale ping", "disco is not answered", NO_DISCO)
breaks("hosted_deltas", "a peer is added", "peers are not kept",
       first("tn_map_peer_end", "return;"))
breaks("hosted_deltas", "our own new name", "only the first word about us is heard",
       ONLY_FIRST_SELF)
breaks("hosted_deltas", "a peer by delta", "changed peers are not read", NO_PEERS_CHANGED)
breaks("hosted_deltas", "patched", "patches are not read",
       swap(None, 'X("PeersChangedPatch"', 'X("PeersChangedPitch"'))
breaks("hosted_deltas", "removed", "removals are not read",
       swap(None, 'X("PeersRemoved"', 'X("PeersRemaved"'))
breaks("hosted_ping_requests", "the URL is visited", "no URL is visited",
       first("tn_ctl_begin_aux", "return;"))
breaks("hosted_ping_requests", "c2n /echo", "no path is known",
       swap("tn_ctl_body_answer", "tn_ctl_echo(", "0 && tn_ctl_echo("))
breaks("hosted_ping_requests", "c2n of an unknown", "every path is answered with 200",
       swap("tn_ctl_body_answer", "400 Bad Request", "200 OK"))
breaks("hosted_login", "a login URL", "the URL is not announced", NO_LOGIN_NEWS)
breaks("hosted_login", "running after", "after the URL nobody asks the server", NO_FOLLOW_UP)
breaks("hosted_expiry", "expired", "our own expiry is not noticed", NEVER_EXPIRED)
breaks("hosted_approval", "waits for approval", "nobody has to approve",
       swap("tn_map_self_end", "(w->peer.flags & TN_MAP_AUTHORIZED) != 0", "true"))
breaks("hosted_approval", "running once", "only the first word about us is heard",
       ONLY_FIRST_SELF)

breaks("key_over_tls_then_http", "runs", "the HTTP port is not heeded",
       swap("tn_ctl_plain_port", "return d->control_http_port != 0 ||", "return false &&"))
breaks("key_over_tls_then_http", "its key came over TLS", "the key too is fetched in the clear",
       swap("tn_ctl_plain_port", "!c->key_known || ", ""))
breaks("short_records_direct", "headscale, runs", "control's engine is smaller than it should be",
       swap(None, "(TAILNET_CONTROL_RECORD + 325u)", "1500u"))
breaks("long_records_behind_a_proxy", "test control server", "the problem does not name the limit",
       swap("tn_ctl_link_gone", "detail  = TAILNET_CONTROL_RECORD;", ";"))

breaks("fast_start", "the login comes with", "the key in the certificates is not used",
       swap("tn_relay_opened", "meta_key != NULL", "false"))
breaks("guest_relays", "our first packet", "all is sent through our own relay",
       first("tn_relay_route", "region = r->home;"))
breaks("guest_relays", "the guest relay restarts", "the relay is dialled again in an hour",
       NO_RELAY_RETRY)
breaks("magic_dns", "the same answers for A", "the resolver's address is a stranger",
       first("tn_node_is_resolver", "return false;"))
breaks("magic_dns", "the same answers for A", "an unknown name is one without addresses",
       swap("tn_node_dns_look", "d->a.rcode = TN_DNS_NXDOMAIN;", ""))
breaks("magic_dns", "the same answers for PTR", "no name is found by its address",
       first("tn_node_dns_reverse", "return false;"))


# ---- running it ----------------------------------------------------------------------------


def broken_texts(top, row):
    """The sources with one thing broken; NotFound when it is not there any more."""
    texts = {}
    for path in SOURCES:
        with open(os.path.join(top, path)) as f:
            texts[path] = f.read()
    for edit in row.edits:
        edit(texts)
    return texts


def tree(number, texts):
    """A folder that looks like the project to run.py."""
    folder = os.path.join(OUT, "%02d" % number)
    shutil.rmtree(folder, ignore_errors=True)
    for path in ("examples", "tests/interop", "build"):
        os.makedirs(os.path.join(folder, path))
    for name in os.listdir(os.path.join(TOP, "tests/interop")):
        if name.endswith((".py", ".c")):
            shutil.copy(os.path.join(TOP, "tests/interop", name),
                        os.path.join(folder, "tests/interop"))
    os.symlink(os.path.realpath(os.path.join(TOP, "build/go")),
               os.path.join(folder, "build/go"))
    for path, text in texts.items():
        with open(os.path.join(folder, path), "w") as f:
            f.write(text)
    return folder


def compile_in(folder, test):
    """Builds what the test needs; the compiler's words when it does not build."""
    for source, program, more in WANTS.get(test, PROGRAMS[:1]):
        done = subprocess.run(["cc", "-std=c99", "-O1", "-w", "-I.", *more, source, "-lbearssl",
                               "-o", program], cwd=folder, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            return done.stderr
    return None


def verdict(folder, row, out):
    """(Was it noticed as it should be?, what the test said)."""
    m = re.search(r"^  FAILED (.*?): (.*)", out, re.M | re.S)
    if not m:
        return False, "it PASSED all the same"
    part, why = m.group(1), m.group(2).strip()
    said = "%s: %s" % (part, " ".join(why.split())[:220])
    if not part.startswith(row.part):
        return False, "it failed elsewhere: " + said
    if why.startswith("Traceback") and "TimeoutExpired" not in why:
        return False, "the test itself broke: " + said
    logs = why
    for name in os.listdir(os.path.join(folder, "build/interop", row.test)):
        if name.startswith("tailnetd") and name.endswith(".log"):
            with open(os.path.join(folder, "build/interop", row.test, name), errors="replace") as f:
                logs += f.read()
    if re.search(SIGNALS, logs):
        return False, "it crashed: " + said
    return True, said


def one(number, row, top):
    try:
        folder = tree(number, broken_texts(top, row))
    except NotFound as e:
        return False, "not found: %s" % e
    why = compile_in(folder, row.test)
    if why:
        return False, "does not build: " + why[:400]
    out = runner.one(row.test, False, os.path.join(folder, "tests/interop/run.py"))[1]
    good, said = verdict(folder, row, out)
    with open(os.path.join(folder, "said.txt"), "w") as f:
        f.write("%s\n%s\n" % (row.what, out))
    shutil.rmtree(os.path.join(folder, "tests"))
    for _, program, _ in PROGRAMS:
        if os.path.exists(os.path.join(folder, program)):
            os.unlink(os.path.join(folder, program))
    return good, said


def timed(number, row, top, only_check):
    begin = time.monotonic()
    if only_check:
        try:
            broken_texts(top, row)
            noticed, said = True, ""
        except NotFound as e:
            noticed, said = False, str(e)
    else:
        noticed, said = one(number, row, top)
    return number, row, noticed, said, time.monotonic() - begin


def main():
    args = argparse.ArgumentParser(usage=__doc__)
    args.add_argument("-k", action="append")
    args.add_argument("--list", action="store_true")
    args.add_argument("--check", action="store_true")
    args.add_argument("--from", type=int, default=1, dest="begin")
    args.add_argument("--jobs", type=int, default=2)
    args.add_argument("--top", default=TOP)
    args = args.parse_args()
    rows = [(i, r) for i, r in enumerate(ROWS, 1) if i >= args.begin and (
        not args.k or any(k in r.test or k == str(i) for k in args.k))]
    without = set(runner.suite.TESTS) - {r.test for r in ROWS}
    if without:
        print("never broken: " + ", ".join(sorted(without)))
    for row in ROWS:
        if row.test not in runner.suite.TESTS:
            sys.exit("there is no test %s" % row.test)
    if args.list:
        for number, row in rows:
            print("%2d %s [%s] %s" % (number, row.test, row.part, row.what))
        return
    good = bad = 0
    with concurrent.futures.ThreadPoolExecutor(max(1, args.jobs)) as pool:
        for number, row, noticed, said, seconds in pool.map(
                lambda r: timed(r[0], r[1], args.top, args.check), rows):
            good, bad = good + noticed, bad + (not noticed)
            if not args.check or not noticed:
                print("%s %2d %s [%s] %s (%.0f s)\n       %s" % (
                    "ok    " if noticed else "FAILED", number, row.test, row.part, row.what,
                    seconds, said), flush=True)
    print("broken: %d passed, %d failed" % (good, bad))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
