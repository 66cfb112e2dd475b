/* reach.h - is there a peer at the other end? Connections to what no peer has or routes would
 * only time out; with this they are refused at once. */
#ifndef REACH_H
#define REACH_H

#include "tailnet_platform_lwip.h"
#include "tailnet_platform_posix.h"

/* Does a peer offer a way to this address, which is not its own? */
static bool reach_routed(const tailnet_node *node, const tailnet_addr *ip)
{
    tailnet_route r;
    size_t        i;
    for (i = 0; tailnet_get_route(node, i, &r); i++) {
        size_t   whole = r.prefix.bits / 8u;
        unsigned mask  = 0xff00u >> r.prefix.bits % 8u & 0xffu;
        /* The range of all tailnets is no peer's. */
        if (r.peer == SIZE_MAX || r.prefix.family != ip->family) continue;
        if (memcmp(r.prefix.ip, ip->ip, whole) != 0) continue;
        if (mask == 0 || ((unsigned)(r.prefix.ip[whole] ^ ip->ip[whole]) & mask) == 0) return true;
    }
    return false;
}

/* The address of who, a name or an address as text, as kind says (TAILNET_LWIP_IP4...). OK;
 * AGAIN: ask again soon; NO_ROUTE. */
static tailnet_result reach_find(tailnet_lwip_overlay *o, tailnet_node *node, const char *who,
                                 uint8_t kind, ip_addr_t *out)
{
    tailnet_result result;
    tailnet_addr   ip;
    size_t         index;
    if (tailnet_posix_addr_parse(&ip, who) && !tailnet_find_peer_by_ip(node, &ip, &index) &&
        !reach_routed(node, &ip)) {
        result = tailnet_fetch_peer(node, who);
        if (result != TAILNET_OK) return result;
    }
    return tailnet_lwip_resolve(o, who, kind, out);
}

#endif
