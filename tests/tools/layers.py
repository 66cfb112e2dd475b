"""Who may call whom (the rooms of tailnet.h and their floors)."""

# Floors, and the prefixes that a room's functions begin with.
ROOMS = {
    "manual": (None, ()), "api-types": (None, ()), "api": (None, ()),
    "config": (0, ("tn_",)),
    "base": (0, ("tn_",)),
    "crypto": (1, ("tn_cr_",)), "rim": (1, ("tn_rim_",)),
    "key": (2, ("tn_key_",)), "json": (2, ("tn_js_",)),
    "http": (2, ("tn_h1_", "tn_h2_", "tn_hp_")), "noise": (2, ("tn_nz_",)),
    "derp": (2, ("tn_derp_",)), "stun": (2, ("tn_stun_",)), "pmp": (2, ("tn_pmp_",)),
    "disco": (2, ("tn_disco_",)), "wg": (2, ("tn_wg_",)), "ip": (2, ("tn_ip_",)),
    "filter": (2, ("tn_flt_",)), "dns": (2, ("tn_dns_",)), "lock": (2, ("tn_tka_",)),
    "tls": (3, ("tn_tls_",)), "link": (3, ("tn_link_",)), "map": (4, ("tn_map_",)),
    "net": (5, ("tn_net_",)), "path": (5, ("tn_path_",)), "relay": (5, ("tn_relay_",)),
    "control": (5, ("tn_ctl_",)), "node": (6, ("tn_node_",)),
    "public": (7, ("tailnet_", "tn_pub_")),
    "history": (None, ()), "licence": (None, ()),
}
# Pairs on one floor of which the second may use the first, each with its reason.
ALLOWED = {
    ("tls", "link"): "a link owns its TLS engine (>>link names >>tls in its banner)",
}


def check(source, say):
    """Calls say(line, what) for every function in the wrong place or name, and
    every call up or sideways."""
    where = {f.name: f for f in source.functions}
    for f in source.functions:
        if f.room is None:
            continue
        if f.room not in ROOMS:
            say(f.first, "room >>%s has no floor in tests/tools/layers.py" % f.room)
            continue
        floor, prefixes = ROOMS[f.room]
        if prefixes and not f.name.startswith(prefixes):
            say(f.first, "%s in >>%s should begin with %s" % (f.name, f.room,
                                                              " or ".join(prefixes)))
        for name in sorted(f.names() & set(where)):
            callee = where[name]
            if callee is f:
                say(f.first, "%s calls itself" % f.name)
            elif callee.first > f.first:
                say(f.first, "%s uses %s, which stands below it" % (f.name, name))
            elif callee.room != f.room and callee.room in ROOMS:
                _across(f, floor, callee, say)


def _across(f, floor, callee, say):
    other = ROOMS[callee.room][0]
    if floor is None or other is None or (callee.room, f.room) in ALLOWED:
        return
    if other > floor:
        say(f.first, "%s (>>%s) calls up to %s (>>%s)" % (f.name, f.room, callee.name, callee.room))
    # Both rooms of floor 0 are one.
    elif other == floor and floor != 0:
        say(f.first, "%s (>>%s) calls sideways to %s (>>%s)" % (
            f.name, f.room, callee.name, callee.room))


def imports_public(source, say):
    """Nothing below the public functions calls one."""
    for f in source.functions:
        if f.room in ("public", None):
            continue
        for name in sorted(f.calls()):
            if name.startswith("tailnet_"):
                say(f.first, "%s calls %s: below floor 7" % (f.name, name))
