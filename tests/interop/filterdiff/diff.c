//go:build ignore

/* Reads what filterdiff writes, asks our filter about every packet, and compares.
 * See main.go for where ours differs on purpose, and why that is exact.
 *
 *     filterdiff -seed 1 | diff */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"

#include <stdio.h>
#include <stdlib.h>

enum { RANGES = 512, FLOWS = 512, PEERS = 256, LINE = 8192 };

static tn_flt_range   ranges[2 * RANGES];
static tn_flt_flow    flows[FLOWS];
static tn_flt         flt;
static tn_flt_peer    peers[PEERS];
static char           names[PEERS][LINE];   /* capabilities of each peer          */
static tailnet_addr   self4, self6;
static tailnet_prefix routes[8];
static size_t         route_count;
static unsigned long  passed, failed, seen[256], verdicts[TN_FLT_WHY_COUNT], policies, full;

static const struct { char letter; const char *what; } classes[] = {
    {'=', "the same verdict"},
    {'t', "TCP of no connection of ours, and no rule for its port"},
    {'u', "UDP or SCTP in a flow that the peer began, or whose peer went"},
    {'r', "ICMP echo reply to no request of ours"},
    {'e', "ICMP error about no flow of ours, or of type 12"},
    {'f', "later fragment without a flow or a rule"},
    {'p', "ping by a capability that no rule gives there; ICMPv4 type 18"},
    {'m', "IPv4 header under 20 bytes, TSMP in pieces or from the application, nothing"}
};

static void die(const char *why, const char *line)
{
    printf("%s: %s\n", why, line);
    exit(2);
}

/* Gives every peer the bits of the names that rules know by now. */
static void give_caps(void)
{
    int i;
    for (i = 0; i < PEERS; i++) {
        const char *at = names[i];
        peers[i].caps  = 0;
        while (*at != '\0') {
            size_t len = strcspn(at, " ");
            if (len != 0) peers[i].caps |= tn_flt_cap(&flt, at, len);
            at += len + (at[len] == ' ');
        }
    }
}

static void new_case(bool shields)
{
    int i;
    tn_flt_init(&flt, ranges, RANGES, flows, FLOWS);
    tn_flt_shields(&flt, shields);
    route_count = 0;
    for (i = 0; i < PEERS; i++) {
        memset(&peers[i], 0, sizeof peers[i]);
        peers[i].index = (uint16_t)i;
        names[i][0]    = '\0';
    }
}

/* Rules: begin of a list, rule, source, destination, protocol, obsolete, ends. */
static bool take_rule(char *line)
{
    unsigned first, last;
    int      at;
    switch (line[0]) {
    case 'B':
        tn_flt_local(&flt, &self4, &self6, routes, route_count);
        tn_flt_begin(&flt, true);
        tn_flt_base(&flt);
        policies++;
        return true;
    case 'R': tn_flt_rule_begin(&flt); return true;
    case 's': tn_flt_src(&flt, line + 2, strlen(line + 2)); return true;
    case 'd':
        if (sscanf(line, "d %u %u%n", &first, &last, &at) != 2 || line[at] != ' ')
            die("bad line", line);
        tn_flt_dst(&flt, line + at + 1, strlen(line + at + 1), (uint16_t)first, (uint16_t)last);
        return true;
    case 'p': tn_flt_proto(&flt, atoll(line + 2)); return true;
    case 'b': tn_flt_rule_bad(&flt); return true;
    case 'E': tn_flt_rule_end(&flt); return true;
    case 'X':
        if ((tn_flt_commit(&flt) & TN_FLT_FULL) != 0) full++;
        give_caps();
        return true;
    default: return false;
    }
}

static void take_world(char *line)
{
    unsigned peer, jailed;
    int      at = 0;
    switch (line[0]) {
    case 'C': new_case(line[2] == '1'); return;
    case '4': if (tn_ip_parse(&self4, line + 2, strlen(line + 2))) return; break;
    case '6': if (tn_ip_parse(&self6, line + 2, strlen(line + 2))) return; break;
    case 'r':
        if (route_count == 8) break;
        if (tn_prefix_parse(&routes[route_count++], line + 2, strlen(line + 2))) return;
        break;
    case 'P':
        if (sscanf(line, "P %u %u%n", &peer, &jailed, &at) != 2 || peer >= PEERS) break;
        peers[peer].jailed = jailed != 0;
        strcpy(names[peer], line + at);
        return;
    case 'F':
        if (sscanf(line, "F %u", &peer) != 1) break;
        tn_flt_forget(&flt, (uint16_t)peer);
        return;
    default: break;
    }
    die("bad line", line);
}

static bool own_address(const tailnet_addr *ip)
{
    tailnet_prefix net4, net6;
    if (!tn_prefix_parse(&net4, "100.64.0.0/24", 13)) return false;
    if (!tn_prefix_parse(&net6, "fd7a:115c:a1e0::/120", 20)) return false;
    return tn_prefix_has(&net4, ip) || tn_prefix_has(&net6, ip);
}

/* "i PEER VERDICT CLASS HEX" or "o ...". */
static void take_packet(char *line)
{
    static uint8_t packet[LINE];
    tn_ip_packet   p;
    tn_flt_verdict got;
    tn_flt_why     why;
    tn_flt_peer    who;
    char           want, class_of, letter;
    unsigned       peer;
    int            at = 0;
    size_t         len;

    if (sscanf(line + 2, "%u %c %c%n", &peer, &want, &class_of, &at) != 3 || peer >= PEERS)
        die("bad line", line);
    at += 3;
    len = strlen(line + at) / 2;
    if (!tn_hex_parse(packet, len, line + at, 2 * len)) die("bad hex", line);
    (void)tn_ip_read(&p, packet, len);
    who = peers[peer];                      /* capabilities are those of the peer's  */
    if (!own_address(&p.flow.src)) who.caps = 0;    /* own addresses, not of its network */
    if (line[0] == 'i') got = tn_flt_in(&flt, &p, &who, 1000000, &why);
    else got = tn_flt_out(&flt, &p, &who, 1000000, &why);
    letter = got == TN_FLT_ACCEPT ? 'A' : got == TN_FLT_REJECT ? 'R' : 'D';
    seen[(unsigned char)class_of]++;
    verdicts[why]++;
    if (letter == want) {
        passed++;
    } else if (++failed <= 20) {
        printf("case %lu: %c, not %c (why %d): %s\n", policies, letter, want, (int)why, line);
    }
}

int main(void)
{
    static char line[LINE];
    bool        ended = false;
    size_t      i;

    while (fgets(line, sizeof line, stdin) != NULL) {
        size_t len = strlen(line);
        if (len == 0 || line[len - 1] != '\n') die("line too long", line);
        line[len - 1] = '\0';
        if (line[0] == 'Q') ended = true;
        else if (line[0] == 'i' || line[0] == 'o') take_packet(line);
        else if (!take_rule(line)) take_world(line);
    }
    for (i = 0; i < sizeof classes / sizeof classes[0]; i++)
        printf("%9lu  %s\n", seen[(unsigned char)classes[i].letter], classes[i].what);
    printf("%lu policies; let in by a rule or going out %lu, let in as answers %lu;\n"
           "refused: no rule %lu, not local %lu, shields up or jailed %lu, unreadable %lu\n",
           policies, verdicts[TN_FLT_WHY_OK], verdicts[TN_FLT_WHY_FLOW],
           verdicts[TN_FLT_WHY_NO_RULE], verdicts[TN_FLT_WHY_NOT_LOCAL],
           verdicts[TN_FLT_WHY_SHIELDS],
           verdicts[TN_FLT_WHY_UNKNOWN] + verdicts[TN_FLT_WHY_SHORT]);
    if (!ended || full != 0 || passed == 0) {
        printf("the stream broke off, or rules did not fit\n");
        failed++;
    }
    printf("%lu passed, %lu failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
