/* The packet filter: the 102 packets of the reference, rule texts, updates of
 * lists, limits, flows; and random rules and packets against a plain evaluator.
 *
 * Rules are written here as "sources > destinations" and perhaps " : protocols";
 * a destination is address@first-last. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

enum { RANGES = 64, FLOWS = 16 };

static tn_flt_range ranges[2 * 512];
static tn_flt_flow  flows[512];
static tn_flt       flt;
static tn_flt_why   why;
static uint64_t     now;

static void addr(tailnet_addr *out, const char *text)
{
    if (!tn_ip_parse(out, text, strlen(text))) abort();
}

/* Cuts the next piece off a text; NULL at its end. */
static char *cut(char **at, char between)
{
    char *piece;
    while (**at == between) (*at)++;
    if (**at == '\0') return NULL;
    piece = *at;
    while (**at != '\0' && **at != between) (*at)++;
    if (**at == between) *(*at)++ = '\0';
    return piece;
}

static void feed_rule(tn_flt *f, const char *text)
{
    char  copy[2048], *word, *rest = copy;
    int   part = 0;
    if (strlen(text) >= sizeof copy) abort();
    strcpy(copy, text);
    tn_flt_rule_begin(f);
    while ((word = cut(&rest, ' ')) != NULL) {
        if (strcmp(word, ">") == 0) part = 1;
        else if (strcmp(word, ":") == 0) part = 2;
        else if (part == 0) tn_flt_src(f, word, strlen(word));
        else if (part == 2) tn_flt_proto(f, atoll(word));
        else {
            char    *at = strrchr(word, '@');
            unsigned first = 0, last = 65535;
            if (at != NULL) {
                *at = '\0';
                if (sscanf(at + 1, "%u-%u", &first, &last) != 2) abort();
            }
            tn_flt_dst(f, word, strlen(word), (uint16_t)first, (uint16_t)last);
        }
    }
    tn_flt_rule_end(f);
}

/* One message of a stream with one list, rules separated by ';'. */
static unsigned feed(tn_flt *f, bool fresh, const char *set, const char *rules)
{
    char copy[8192], *rule, *rest = copy;
    if (strlen(rules) >= sizeof copy) abort();
    strcpy(copy, rules);
    tn_flt_begin(f, fresh);
    if (set == NULL) tn_flt_base(f);
    else tn_flt_set(f, set, strlen(set));
    while ((rule = cut(&rest, ';')) != NULL) feed_rule(f, rule);
    return tn_flt_commit(f);
}

static tailnet_prefix route192;

static void fresh(unsigned range_max, unsigned flow_max)
{
    tailnet_addr s4, s6;
    memset(ranges, 0xee, sizeof ranges);
    memset(flows, 0xee, sizeof flows);
    tn_flt_init(&flt, ranges, (uint16_t)range_max, flows, (uint16_t)flow_max);
    addr(&s4, "100.64.0.10");
    addr(&s6, "fd7a:115c:a1e0::10");
    (void)tn_prefix_parse(&route192, "192.168.7.0/24", 14);
    tn_flt_local(&flt, &s4, &s6, &route192, 1);
    now = 1000000;
}

/* The peer of an address: its number is the end of the address. */
static void peer_of(tn_flt_peer *out, const tailnet_addr *ip)
{
    tailnet_addr capable;
    addr(&capable, "100.64.0.8");
    memset(out, 0, sizeof *out);
    out->index = (uint16_t)(ip->family == 4 ? ip->ip[2] << 8 | ip->ip[3]
                                            : 0x8000 | ip->ip[14] << 8 | ip->ip[15]);
    if (tn_ip_same(ip, &capable)) out->caps = tn_flt_cap(&flt, "ssh", 3);
}

static char letter(tn_flt_verdict v)
{
    return v == TN_FLT_ACCEPT ? 'A' : v == TN_FLT_REJECT ? 'R' : 'D';
}

static char run(const uint8_t *packet, size_t len, char dir)
{
    tn_ip_packet p;
    tn_flt_peer  peer;
    (void)tn_ip_read(&p, packet, len);
    peer_of(&peer, dir == 'i' ? &p.flow.src : &p.flow.dst);
    return letter(dir == 'i' ? tn_flt_in(&flt, &p, &peer, now, &why)
                             : tn_flt_out(&flt, &p, &peer, now, &why));
}

static char run_hex(const char *hex, char dir)
{
    uint8_t packet[256];
    return run(packet, tn_test_hex(packet, sizeof packet, hex), dir);
}

/* A packet by its flow; flags are those of TCP. Echo: 'sport' is the type, and
 * 'dport' the number. */
static size_t make(uint8_t *b, const char *src, unsigned sport, const char *dst, unsigned dport,
                   unsigned protocol, unsigned flags)
{
    tailnet_addr s, d;
    tn_wr        w;
    unsigned     body = protocol == 6 ? 20 : 12;
    addr(&s, src);
    addr(&d, dst);
    tn_wr_over(&w, b, 100);
    if (s.family == 4) {
        tn_wr_u16be(&w, 0x4500);
        tn_wr_u16be(&w, 20 + body);
        tn_wr_u32be(&w, 0);
        tn_wr_u16be(&w, 0x4000u | protocol);
        tn_wr_u16be(&w, 0);
    } else {
        tn_wr_u32be(&w, 0x60000000u);
        tn_wr_u16be(&w, body);
        tn_wr_u16be(&w, protocol << 8 | 64);
    }
    tn_wr_bytes(&w, s.ip, tn_ip_len(s.family));
    tn_wr_bytes(&w, d.ip, tn_ip_len(d.family));
    if (protocol == 1 || protocol == 58) {
        tn_wr_u16be(&w, sport << 8);
        tn_wr_u16be(&w, 0);
        tn_wr_u16be(&w, dport);
        tn_wr_zero(&w, 6);
        return tn_wr_len(&w);
    }
    tn_wr_u16be(&w, sport);
    tn_wr_u16be(&w, dport);
    if (protocol == 6) {
        tn_wr_zero(&w, 8);
        tn_wr_u16be(&w, 0x5000u | flags);
        tn_wr_zero(&w, 6);
    } else {
        tn_wr_zero(&w, 8);
    }
    return tn_wr_len(&w);
}

static char go(char dir, const char *src, unsigned sport, const char *dst, unsigned dport,
               unsigned protocol, unsigned flags)
{
    uint8_t b[100];
    size_t  n = make(b, src, sport, dst, dport, protocol, flags);
    return run(b, n, dir);
}

/* An ICMP error from src to us about the packet that is made of the rest. */
static char error_about(const char *from, const char *to, unsigned type, const char *src,
                        unsigned sport, const char *dst, unsigned dport, unsigned protocol)
{
    uint8_t  b[200], q[100];
    size_t   n, len = make(q, src, sport, dst, dport, protocol, 0);
    unsigned head   = strchr(from, ':') == NULL ? 20 : 40;
    n = make(b, from, type, to, 0, head == 20 ? 1 : 58, 0);
    memcpy(b + head + 8, q, len);
    n = head + 8 + len;
    b[head == 20 ? 2 : 4] = 0;
    b[head == 20 ? 3 : 5] = (uint8_t)(head == 20 ? n : n - 40);
    return run(b, n, 'i');
}

#define S  "100.64.0.10"
#define S6 "fd7a:115c:a1e0::10"
#define A  "100.64.0.1"
#define A6 "fd7a:115c:a1e0::1"
#define B  "100.64.0.2"
#define X  "100.64.9.9"                     /* a stranger                         */
#define X6 "fd7a:115c:a1e0::99"

static const char fixture[] =
    A " " A6 " > " S "@22-22 " S6 "@22-22;"
    B " > " S "@5000-5010 : 17;"
    "100.64.0.3 > " S "@80-80 : 6;"
    "100.64.0.4 > " S "@0-65535;"
    "100.64.0.4 > " S "@0-65535 : 47;"
    "100.64.0.5 > " S "@443-443 : 47;"
    "100.64.0.6 > " S "@38412-38412 : 132;"
    "cap:ssh > " S "@2222-2222 : 6;"
    A " > 192.168.7.0/24@0-65535;"
    "100.64.0.7 > 10.0.0.0/8@0-65535";

/* ---- the reference's packets ---- */

/* Number, direction, verdict of the reference, ours (R: refused with a word to
 * the sender), goes on with the flows of the case before, packet. */
static const struct {
    int         number;
    char        dir, reference, ours;
    bool        goes_on;
    const char *hex;
} cases[] = {
    {1, 'i', 'A', 'A', false,
     "450000280001000040060000644000016440000a9c40001600000000000000005002040000000000"},
    {2, 'i', 'D', 'R', false,
     "450000280001000040060000644000016440000a9c40001700000000000000005002040000000000"},
    {3, 'i', 'D', 'R', false,
     "450000280001000040060000644000026440000a9c40001600000000000000005002040000000000"},
    {4, 'i', 'A', 'R', false,
     "450000280001000040060000644000026440000a0016000900000000000000005012040000000000"},
    {5, 'i', 'A', 'D', false,
     "450000280001000040060000644009096440000a0001000900000000000000005010040000000000"},
    {6, 'i', 'A', 'D', false,
     "450000280001000040060000644009096440000a0001000900000000000000005004040000000000"},
    {7, 'i', 'A', 'D', false,
     "450000280001000040060000644009096440000a0001000900000000000000005000040000000000"},
    {8, 'i', 'D', 'R', false,
     "450000280001000040060000644000026440000a0001001600000000000000005003040000000000"},
    {9, 'i', 'A', 'A', false,
     "450000280001000040060000644000016440000a00010016000000000000000050c2040000000000"},
    {10, 'i', 'D', 'R', false,
     "450000280001000040060000644000026440000a00010016000000000000000050c2040000000000"},
    {11, 'i', 'D', 'D', false,
     "450000280001000040060000644000070a0101010001000900000000000000005010040000000000"},
    {12, 'i', 'D', 'D', false,
     "450000280001000040060000644000070a0101010001005000000000000000005002040000000000"},
    {13, 'i', 'A', 'A', false,
     "45000028000100004006000064400001c0a807090001005000000000000000005002040000000000"},
    {14, 'i', 'D', 'R', false,
     "45000028000100004006000064400002c0a807090001005000000000000000005002040000000000"},
    {15, 'i', 'A', 'A', false,
     "4500001c0001000040110000644000026440000a0001138800080000"},
    {16, 'i', 'A', 'A', false,
     "4500001c0001000040110000644000026440000a0001139200080000"},
    {17, 'i', 'D', 'D', false,
     "4500001c0001000040110000644000026440000a0001139300080000"},
    {18, 'i', 'A', 'A', false,
     "4500001c0001000040110000644000016440000a0001001600080000"},
    {19, 'i', 'D', 'D', false,
     "4500001c0001000040110000644000036440000a0001005000080000"},
    {20, 'i', 'D', 'D', false,
     "4500001c0001000040110000644009096440000a00350fa000080000"},
    {21, 'o', 'A', 'A', true,
     "4500001c00010000401100006440000a644009090fa0003500080000"},
    {22, 'i', 'A', 'A', true,
     "4500001c0001000040110000644009096440000a00350fa000080000"},
    {23, 'i', 'D', 'D', true,
     "4500001c0001000040110000644009096440000a00360fa000080000"},
    {24, 'i', 'D', 'D', true,
     "4500001c0001000040110000644009086440000a00350fa000080000"},
    {25, 'i', 'D', 'D', false,
     "4500001c0001000040110000644009096440000a00350fa000080000"},
    {26, 'i', 'A', 'A', false,
     "4500001c0001000040110000644009096440000a00350fa000080000"},
    {27, 'i', 'A', 'A', false,
     "450000200001000040840000644000066440000a0001960c0000000000000000"},
    {28, 'i', 'D', 'D', false,
     "450000200001000040840000644000016440000a000100160000000000000000"},
    {29, 'i', 'A', 'A', false,
     "4500001c0001000040010000644000016440000a0800000000000000"},
    {30, 'i', 'A', 'A', false,
     "4500001c0001000040010000644000026440000a0800000000000000"},
    {31, 'i', 'D', 'D', false,
     "4500001c0001000040010000644009096440000a0800000000000000"},
    {32, 'i', 'A', 'D', false,
     "4500001c0001000040010000644009096440000a0000000000000000"},
    {33, 'i', 'D', 'D', false,
     "4500001c0001000040010000644009096440000a0001000000000000"},
    {34, 'i', 'A', 'D', false,
     "4500001c0001000040010000644009096440000a0301000000000000"},
    {35, 'i', 'A', 'D', false,
     "4500001c0001000040010000644009096440000a0b00000000000000"},
    {36, 'i', 'D', 'D', false,
     "4500001c0001000040010000644009096440000a0c00000000000000"},
    {37, 'i', 'A', 'D', false,
     "4500001c0001000040010000644009096440000a1200000000000000"},
    {38, 'i', 'D', 'D', false,
     "450000180001000040010000644009096440000a03010000"},
    {39, 'i', 'A', 'A', false,
     "4500001c0001000040010000644000086440000a0800000000000000"},
    {40, 'i', 'A', 'D', false,
     "4500001c000100004001000064400008c0a807090800000000000000"},
    {41, 'i', 'A', 'A', false,
     "6000000000083a40fd7a115ca1e000000000000000000001fd7a115ca1e00000000000000000001080000000"
     "00000000"},
    {42, 'i', 'A', 'D', false,
     "6000000000083a40fd7a115ca1e000000000000000000099fd7a115ca1e00000000000000000001002000000"
     "00000000"},
    {43, 'i', 'D', 'D', false,
     "6000000000083a40fd7a115ca1e000000000000000000099fd7a115ca1e00000000000000000001086000000"
     "00000000"},
    {44, 'i', 'A', 'A', false,
     "450000280001000040060000644000086440000a000108ae00000000000000005002040000000000"},
    {45, 'i', 'D', 'R', false,
     "450000280001000040060000644000016440000a000108ae00000000000000005002040000000000"},
    {46, 'i', 'A', 'A', false,
     "4500001c00010000402f0000644000046440000a0000000000000000"},
    {47, 'i', 'D', 'D', false,
     "4500001c00010000402f0000644000056440000a0000000000000000"},
    {48, 'i', 'D', 'D', false,
     "4500001c0001000040320000644000046440000a0000000000000000"},
    {49, 'i', 'A', 'A', false,
     "4500001d0001000040630000644009096440000a703132333435363738"},
    {50, 'i', 'D', 'D', false,
     "4500001a0001000040630000644009096440000a703132333435"},
    {51, 'i', 'D', 'D', false,
     "4500001d0001200040630000644009096440000a703132333435363738"},
    {52, 'i', 'D', 'D', false,
     "4500001c0001000040020000644009096440000a1600000000000000"},
    {53, 'i', 'D', 'D', false,
     "4500001c000100004011000064400001e00000fb14e914e900080000"},
    {54, 'i', 'D', 'D', false,
     "6000000000081140fd7a115ca1e000000000000000000001ff0200000000000000000000000000fb14e914e9"
     "00080000"},
    {55, 'o', 'D', 'D', false,
     "4500001c00010000401100006440000ae00000fb14e914e900080000"},
    {56, 'i', 'D', 'D', false,
     "4500001c000100004011000064400001a9fe01010001000200080000"},
    {57, 'i', 'D', 'D', false,
     "4500001c000100004011000064400001a9fea9fe0001003500080000"},
    {58, 'o', 'A', 'A', false,
     "4500001c00010000401100006440000aa9fea9fe0001003500080000"},
    {59, 'i', 'D', 'D', false,
     "4500001c000100004011000064400001ffffffff0001000200080000"},
    {60, 'i', 'A', 'A', false,
     "4500002c0001200040110000644000026440000a000113880018000078787878787878787878787878787878"},
    {61, 'i', 'D', 'D', false,
     "450000180001200040110000644000026440000a00011388"},
    {62, 'i', 'D', 'D', false,
     "450000240001200040060000644000016440000a00010016000000000000000050020400"},
    {63, 'i', 'D', 'D', false,
     "4500001c0001000940060000644009096440000a0000000000000000"},
    {64, 'i', 'A', 'D', false,
     "4500001c0001000a40060000644009096440000a0000000000000000"},
    {65, 'i', 'A', 'D', false,
     "4500001c000100b940110000644009090a0101010000000000000000"},
    {66, 'i', 'A', 'A', false,
     "4600002c0001000040060000644000016440000a010101000001001600000000000000005002040000000000"},
    {67, 'i', 'D', 'D', false,
     "4f0000280001000040060000644000016440000a0001001600000000000000005002040000000000"},
    {68, 'i', 'D', 'D', false,
     "4500003c0001000040060000644000016440000a0001001600000000000000005002040000000000"},
    {69, 'i', 'D', 'D', false,
     "450000000001000040060000644000016440000a0001001600000000000000005002040000000000"},
    {70, 'i', 'D', 'D', false,
     "45000014000100004006000064400001644000"},
    {71, 'i', 'D', 'D', false,
     "450000280001000040ff0000644000016440000a0000000000000000000000000000000000000000"},
    {72, 'i', 'D', 'D', false,
     "450000280001000040000000644000016440000a0000000000000000000000000000000000000000"},
    {73, 'i', 'D', 'D', false,
     "55000000000000000000000000000000000000000000000000000000000000000000000000000000"},
    {74, 'i', 'A', 'A', false,
     ""},
    {75, 'i', 'A', 'A', false,
     "6000000000140640fd7a115ca1e000000000000000000001fd7a115ca1e00000000000000000001000010016"
     "00000000000000005002040000000000"},
    {76, 'i', 'D', 'D', false,
     "6000000000140640fd7a115ca1e000000000000000000001fd7a115ca1e00000000000000000001000010017"
     "00000000000000005002040000000000"},
    {77, 'i', 'D', 'D', false,
     "60000000001c0040fd7a115ca1e000000000000000000001fd7a115ca1e00000000000000000001006000104"
     "000000000001001600000000000000005002040000000000"},
    {78, 'i', 'D', 'D', false,
     "60000000001c3c40fd7a115ca1e000000000000000000001fd7a115ca1e00000000000000000001006000104"
     "000000000001001600000000000000005002040000000000"},
    {79, 'i', 'A', 'A', false,
     "6000000000182c40fd7a115ca1e000000000000000000001fd7a115ca1e00000000000000000001011000001"
     "0000000100010016001000007878787878787878"},
    {80, 'i', 'D', 'D', false,
     "6000000000182c40fd7a115ca1e000000000000000000001fd7a115ca1e00000000000000000001011000001"
     "0000000100010017001000007878787878787878"},
    {81, 'i', 'A', 'D', false,
     "6000000000102c40fd7a115ca1e000000000000000000099fd7a115ca1e000000000000000000010110005c8"
     "000000017878787878787878"},
    {82, 'i', 'D', 'D', false,
     "6000000000102c40fd7a115ca1e000000000000000000099fd7a115ca1e00000000000000000001011000048"
     "000000017878787878787878"},
    {83, 'i', 'D', 'D', false,
     "6000000000042c40fd7a115ca1e000000000000000000001fd7a115ca1e00000000000000000001011000001"},
    {84, 'i', 'D', 'D', false,
     "6000000000000640fd7a115ca1e000000000000000000001fd7a115ca1e0000000000000000000"},
    {85, 'i', 'D', 'D', false,
     "6000000000640640fd7a115ca1e000000000000000000001fd7a115ca1e00000000000000000001000010016"
     "00000000000000005002040000000000"},
    {86, 'i', 'D', 'D', false,
     "6000000000003b40fd7a115ca1e000000000000000000001fd7a115ca1e000000000000000000010"},
    {87, 'i', 'A', 'D', false,
     "440000280001000040060000644000016440000a0001001600000000000000005002040000000000"},
    {88, 'i', 'A', 'A', false,
     "4500001c00010000403a0000644000046440000a8000000000000000"},
    {89, 'i', 'D', 'D', false,
     "4500001c00010000403a0000644000016440000a8000000000000000"},
    {90, 'i', 'A', 'A', false,
     "6000000000096340fd7a115ca1e000000000000000000099fd7a115ca1e00000000000000000001070313233"
     "3435363738"},
    {91, 'o', 'A', 'A', false,
     "4500002400012000401100006440000a6440090610040035001000007878787878787878"},
    {92, 'i', 'A', 'A', true,
     "4500001c0001000040110000644009066440000a0035100400080000"},
    {93, 'i', 'A', 'A', false,
     "4500001c000100004011000064400001c0a807ff0001000900080000"},
    {94, 'i', 'A', 'A', false,
     "6000000000081140fd7a115ca1e000000000000000000001fd7a115ca1e00000000000000000001000010016"
     "00080000"},
    {95, 'i', 'A', 'R', false,
     "45000028000100004006000064400909c0a8070900500fa000000000000000005012040000000000"},
    {96, 'i', 'D', 'R', false,
     "450000280001000040060000644000016440000a0001001600000000000000005002040000000000"},
    {97, 'i', 'A', 'D', false,
     "450000280001000040060000644000016440000a0001001600000000000000005010040000000000"},
    {98, 'i', 'D', 'D', false,
     "4500001c0001000040010000644000016440000a0800000000000000"},
    {99, 'i', 'A', 'D', false,
     "4500001c0001000040010000644000016440000a0000000000000000"},
    {100, 'i', 'D', 'D', false,
     "4500001c0001000040110000644000016440000a0001001600080000"},
    {101, 'i', 'D', 'D', false,
     "450000280001000040060000644000016440000a0001001600000000000000005010040000000000"},
    {102, 'i', 'A', 'D', false,
     "4500001c000100b940060000644000016440000a0000000000000000"},};

static void reference_packets(void)
{
    size_t   i;
    unsigned stricter = 0;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int  n = cases[i].number;
        char got;
        if (!cases[i].goes_on) {
            fresh(RANGES, 512);
            (void)feed(&flt, true, "base", fixture);
        }
        if (n >= 96 && n <= 100) tn_flt_shields(&flt, true);
        if (n >= 101) fresh(RANGES, 512);
        if (n >= 101) tn_flt_local(&flt, NULL, NULL, NULL, 0);
        if (n == 25 || n == 26) {           /* a flow, and then 512 or 511 others */
            unsigned port;
            CHECK(go('o', S, 4000, X, 53, 17, 0) == 'A');
            for (port = 1; port <= (n == 25 ? 512u : 511u); port++)
                CHECK(go('o', S, port, X, 5353, 17, 0) == 'A');
        }
        got = run_hex(cases[i].hex, cases[i].dir);
        if (got != cases[i].ours) printf("case %d: %c, not %c\n", n, got, cases[i].ours);
        CHECK(got == cases[i].ours);
        CHECK(!(cases[i].reference == 'D' && got == 'A'));
        stricter += cases[i].reference == 'A' && got != 'A';
    }
    CHECK(stricter == 18);
}

/* What the reference lets in without state passes here when we began it. */
static void answers_pass(void)
{
    fresh(RANGES, FLOWS);
    CHECK(go('i', X, 9, S, 4000, 6, TN_IP_SYN | TN_IP_ACK) == 'R' && why == TN_FLT_WHY_NO_RULE);
    CHECK(go('i', X6, 9, S6, 4000, 6, TN_IP_SYN | TN_IP_ACK) == 'D');
    CHECK(go('o', S, 4000, X, 9, 6, TN_IP_SYN) == 'A');
    CHECK(go('i', X, 9, S, 4000, 6, TN_IP_SYN | TN_IP_ACK) == 'A' && why == TN_FLT_WHY_FLOW);
    CHECK(go('i', X, 9, S, 4000, 6, TN_IP_ACK) == 'A');
    CHECK(go('i', X, 9, S, 4000, 6, TN_IP_RST) == 'A');
    CHECK(go('i', X, 9, S, 4000, 6, TN_IP_SYN) == 'R');     /* SYN needs a rule        */
    CHECK(go('i', X, 9, S, 4001, 6, TN_IP_ACK) == 'D');
    CHECK(go('i', X, 8, S, 4000, 6, TN_IP_ACK) == 'D');
    CHECK(go('i', X, 9, "192.168.7.1", 4000, 6, TN_IP_ACK) == 'D');
    CHECK(go('o', S, 4002, X, 9, 6, TN_IP_ACK) == 'A');     /* not a beginning         */
    CHECK(go('i', X, 9, S, 4002, 6, TN_IP_ACK) == 'D');
    CHECK(go('o', S, 4002, X, 9, 6, TN_IP_SYN | TN_IP_ACK) == 'A');
    CHECK(go('i', X, 9, S, 4002, 6, TN_IP_ACK) == 'D');

    CHECK(go('i', X, 0, S, 7, 1, 0) == 'D');                /* echo                    */
    CHECK(go('o', S, 8, X, 7, 1, 0) == 'A');
    CHECK(go('i', X, 0, S, 7, 1, 0) == 'A');
    CHECK(go('i', X, 0, S, 8, 1, 0) == 'D');
    CHECK(go('i', X, 8, S, 7, 1, 0) == 'D');
    CHECK(go('o', S6, 128, X6, 7, 58, 0) == 'A');
    CHECK(go('i', X6, 129, S6, 7, 58, 0) == 'A');
    CHECK(go('o', S, 1, B, 7, 99, 0) == 'D' && go('i', B, 1, S, 7, 99, 0) == 'A');    /* TSMP */
    CHECK(go('o', S, 0, B, 7, 1, 0) == 'A');                /* our reply begins nothing */
    CHECK(go('i', B, 0, S, 7, 1, 0) == 'D');

    CHECK(go('i', X, 1, S, 2, 132, 0) == 'D');              /* SCTP                    */
    CHECK(go('o', S, 2, X, 1, 132, 0) == 'A');
    CHECK(go('i', X, 1, S, 2, 132, 0) == 'A');
}

static void errors_about_our_flows_pass(void)
{
    fresh(RANGES, FLOWS);
    CHECK(error_about(X, S, 3, S, 4000, X, 53, 17) == 'D');
    CHECK(go('o', S, 4000, X, 53, 17, 0) == 'A');
    CHECK(error_about(X, S, 3, S, 4000, X, 53, 17) == 'A' && why == TN_FLT_WHY_FLOW);
    CHECK(error_about(X, S, 11, S, 4000, X, 53, 17) == 'A');
    CHECK(error_about(X, S, 12, S, 4000, X, 53, 17) == 'A');
    CHECK(error_about(X, S, 5, S, 4000, X, 53, 17) == 'D');     /* redirect              */
    CHECK(error_about(X, S, 3, S, 4001, X, 53, 17) == 'D');
    CHECK(error_about(X, S, 3, S, 4000, X, 53, 6) == 'D');
    CHECK(error_about(B, S, 3, S, 4000, X, 53, 17) == 'D');     /* another peer's word   */
    CHECK(error_about(X, "192.168.7.1", 3, S, 4000, X, 53, 17) == 'D');
    CHECK(go('o', S, 8, X, 7, 1, 0) == 'A');
    CHECK(error_about(X, S, 11, S, 8, X, 7, 1) == 'A');
    CHECK(go('o', S6, 4000, X6, 443, 6, TN_IP_SYN) == 'A');
    CHECK(error_about(X6, S6, 2, S6, 4000, X6, 443, 6) == 'A'); /* packet too big        */
    CHECK(error_about(X6, S6, 2, S6, 4001, X6, 443, 6) == 'D');
    /* Of a connection that a rule let a peer begin, a router may report. */
    (void)feed(&flt, true, NULL, B " > " S "@80-80");
    CHECK(error_about(X, S, 3, S, 80, B, 999, 6) == 'A');
    CHECK(error_about(X, S, 3, S, 81, B, 999, 6) == 'D');
    (void)feed(&flt, true, NULL, "cap:ssh > " S "@80-80");
    CHECK(error_about("100.64.0.8", S, 3, S, 80, B, 999, 6) == 'A');   /* may ping anyway */
    (void)feed(&flt, true, NULL, "");
    CHECK(error_about("100.64.0.8", S, 3, S, 80, B, 999, 6) == 'D');
}

static void fragments_need_a_friend(void)
{
    static const char first4[] = "4500002400012000401100006440090664"  /* X:53 -> S:4000, more */
                                 "40000a00350fa0001000000000000000000000";
    uint8_t b[64];
    size_t  n;
    (void)first4;
    fresh(RANGES, FLOWS);
    n     = make(b, X, 53, S, 4000, 17, 0);
    b[7]  = 185;                            /* a later fragment                   */
    b[6]  = 0;
    CHECK(run(b, n, 'i') == 'D');
    CHECK(go('o', S, 4000, X, 53, 17, 0) == 'A');
    CHECK(run(b, n, 'i') == 'A' && why == TN_FLT_WHY_FLOW);
    now += 301000;
    CHECK(run(b, n, 'i') == 'D');
    (void)feed(&flt, true, NULL, X " > " S "@1-1 : 6");
    CHECK(run(b, n, 'i') == 'A' && why == TN_FLT_WHY_OK);
    tn_flt_shields(&flt, true);
    CHECK(run(b, n, 'i') == 'D' && why == TN_FLT_WHY_SHIELDS);
    n    = make(b, X, 53, "192.168.8.1", 4000, 17, 0);
    b[7] = 185;
    b[6] = 0;
    tn_flt_shields(&flt, false);
    CHECK(run(b, n, 'i') == 'D' && why == TN_FLT_WHY_NOT_LOCAL);
}

/* ---- a change of policy, a peer that goes ---- */

static void policy_bites_in_standing_connections(void)
{
    fresh(RANGES, FLOWS);
    (void)feed(&flt, true, NULL, B " > " S "@22-22");
    CHECK(go('i', B, 999, S, 22, 6, TN_IP_SYN) == 'A');
    CHECK(go('o', S, 22, B, 999, 6, TN_IP_SYN | TN_IP_ACK) == 'A');
    CHECK(go('i', B, 999, S, 22, 6, TN_IP_ACK) == 'A' && why == TN_FLT_WHY_OK);
    CHECK(go('o', S, 22, B, 999, 6, TN_IP_ACK) == 'A');
    (void)feed(&flt, false, NULL, "");
    CHECK(go('i', B, 999, S, 22, 6, TN_IP_ACK) == 'D');
    CHECK(go('o', S, 22, B, 999, 6, TN_IP_ACK) == 'A');     /* sent again, reopens nothing */
    CHECK(go('i', B, 999, S, 22, 6, TN_IP_ACK) == 'D');
    CHECK(go('i', B, 999, S, 22, 6, TN_IP_SYN) == 'R');
}

static void policy_bites_in_udp(void)
{
    int i;
    fresh(RANGES, FLOWS);
    (void)feed(&flt, true, NULL, B " > " S "@5000-5000");
    CHECK(go('o', S, 4000, B, 53, 17, 0) == 'A');           /* ours                    */
    CHECK(go('i', B, 999, S, 5000, 17, 0) == 'A');          /* theirs                  */
    CHECK(go('o', S, 5000, B, 999, 17, 0) == 'A');
    (void)feed(&flt, false, NULL, "");
    CHECK(go('i', B, 53, S, 4000, 17, 0) == 'A' && why == TN_FLT_WHY_FLOW);
    for (i = 0; i < 100; i++) {                             /* our side goes on sending */
        now += 20000;
        CHECK(go('o', S, 5000, B, 999, 17, 0) == 'A');
        CHECK(go('i', B, 999, S, 5000, 17, 0) == 'D');
    }
    now += 302000;                                          /* forgotten: a new flow   */
    CHECK(go('o', S, 5000, B, 999, 17, 0) == 'A');
    CHECK(go('i', B, 999, S, 5000, 17, 0) == 'A');
    /* A flow that we began stays ours, also when a rule lets it in for a while. */
    fresh(RANGES, FLOWS);
    (void)feed(&flt, true, NULL, "* > *");
    CHECK(go('o', S, 4000, B, 53, 17, 0) == 'A');
    CHECK(go('i', B, 53, S, 4000, 17, 0) == 'A');
    (void)feed(&flt, false, NULL, "");
    CHECK(go('i', B, 53, S, 4000, 17, 0) == 'A');
}

static void shields_and_jails(void)
{
    uint8_t      b[100];
    size_t       n = make(b, B, 999, S, 22, 6, TN_IP_SYN);
    tn_ip_packet p;
    tn_flt_peer  jailed;

    fresh(RANGES, FLOWS);
    (void)feed(&flt, true, NULL, "* > *");
    CHECK(tn_ip_read(&p, b, n));
    peer_of(&jailed, &p.flow.src);
    jailed.jailed = true;
    CHECK(run(b, n, 'i') == 'A');
    CHECK(tn_flt_in(&flt, &p, &jailed, now, &why) == TN_FLT_REJECT && why == TN_FLT_WHY_SHIELDS);
    tn_flt_shields(&flt, true);
    CHECK(run(b, n, 'i') == 'R' && why == TN_FLT_WHY_SHIELDS);
    CHECK(go('i', B, 999, S, 22, 6, TN_IP_ACK) == 'D');
    CHECK(go('i', B, 8, S, 1, 1, 0) == 'D' && go('i', B, 1, S, 1, 17, 0) == 'D');
    CHECK(go('o', S, 22, B, 999, 6, TN_IP_SYN) == 'A');
    CHECK(go('i', B, 999, S, 22, 6, TN_IP_ACK) == 'A');     /* may answer              */
    n = make(b, B, 999, S, 22, 6, TN_IP_ACK);
    CHECK(tn_ip_read(&p, b, n) && tn_flt_in(&flt, &p, &jailed, now, &why) == TN_FLT_ACCEPT);
    tn_flt_shields(&flt, false);
    CHECK(go('i', B, 999, S, 23, 6, TN_IP_SYN) == 'A');
}

static void flows_end_with_their_peer(void)
{
    tn_flt_peer  other = {0, 7, false}, b_peer;
    uint8_t      b[100];
    size_t       n = make(b, B, 53, S, 4000, 17, 0);
    tn_ip_packet in, out;
    tailnet_addr ip;
    uint8_t      o[100];

    fresh(RANGES, FLOWS);
    addr(&ip, B);
    peer_of(&b_peer, &ip);
    CHECK(go('o', S, 4000, B, 53, 17, 0) == 'A' && go('o', S, 4000, X, 53, 17, 0) == 'A');
    CHECK(run(b, n, 'i') == 'A');
    tn_flt_forget(&flt, b_peer.index);
    CHECK(run(b, n, 'i') == 'D');
    CHECK(go('i', X, 53, S, 4000, 17, 0) == 'A');
    /* The same address behind another peer: not before we send there. */
    CHECK(go('o', S, 4000, B, 53, 17, 0) == 'A');
    CHECK(tn_ip_read(&in, b, n) && tn_ip_read(&out, o, make(o, S, 4000, B, 53, 17, 0)));
    CHECK(tn_flt_in(&flt, &in, &other, now, &why) == TN_FLT_DROP);
    CHECK(tn_flt_out(&flt, &out, &other, now, &why) == TN_FLT_ACCEPT);
    CHECK(tn_flt_in(&flt, &in, &other, now, &why) == TN_FLT_ACCEPT);
    CHECK(run(b, n, 'i') == 'D');
}

/* ---- the flow table ---- */

static void oldest_flow_makes_room(void)
{
    unsigned i;
    fresh(RANGES, 8);
    for (i = 0; i < 8; i++) CHECK(go('o', S, 1000 + i, X, 53, 17, 0) == 'A');
    CHECK(go('i', X, 53, S, 1000, 17, 0) == 'A');           /* used: now the newest    */
    CHECK(go('o', S, 2000, X, 53, 17, 0) == 'A');
    CHECK(go('i', X, 53, S, 1001, 17, 0) == 'D');
    CHECK(go('i', X, 53, S, 1000, 17, 0) == 'A');
    for (i = 2; i < 8; i++) CHECK(go('i', X, 53, S, 1000 + i, 17, 0) == 'A');
    CHECK(go('i', X, 53, S, 2000, 17, 0) == 'A');
    /* A connection outlives a shower of questions. */
    fresh(RANGES, 8);
    CHECK(go('o', S, 1, X, 443, 6, TN_IP_SYN) == 'A');
    CHECK(go('i', X, 443, S, 1, 6, TN_IP_SYN | TN_IP_ACK) == 'A');
    for (i = 0; i < 1000; i++) CHECK(go('o', S, 1000 + i, X, 53, 17, 0) == 'A');
    CHECK(go('i', X, 443, S, 1, 6, TN_IP_ACK) == 'A');
    CHECK(go('i', X, 443, S, 1, 6, TN_IP_FIN | TN_IP_ACK) == 'A');
    for (i = 0; i < 8; i++) CHECK(go('o', S, 3000 + i, X, 53, 17, 0) == 'A');
    CHECK(go('i', X, 443, S, 1, 6, TN_IP_ACK) == 'D');      /* was closing             */
    CHECK(go('o', S, 1, X, 443, 6, TN_IP_SYN) == 'A');
    CHECK(go('i', X, 443, S, 1, 6, TN_IP_SYN | TN_IP_ACK) == 'A');
    now += 1790000;                         /* but not one that has been silent for long */
    for (i = 0; i < 8; i++) CHECK(go('o', S, 4000 + i, X, 53, 17, 0) == 'A');
    CHECK(go('i', X, 443, S, 1, 6, TN_IP_ACK) == 'A');
    now += 1810000;
    for (i = 0; i < 8; i++) CHECK(go('o', S, 5000 + i, X, 53, 17, 0) == 'A');
    CHECK(go('i', X, 443, S, 1, 6, TN_IP_ACK) == 'D');
    /* No table at all: only rules let in. */
    fresh(RANGES, 0);
    (void)feed(&flt, true, NULL, B " > " S "@5000-5000");
    CHECK(go('o', S, 1, X, 53, 17, 0) == 'A' && go('i', X, 53, S, 1, 17, 0) == 'D');
    CHECK(go('i', B, 1, S, 5000, 17, 0) == 'A');
}

static void peers_cannot_push_out_our_flows(void)
{
    unsigned i, max;
    for (max = 1; max <= 9; max++) {
        unsigned mine = 0;
        fresh(RANGES, max);
        (void)feed(&flt, true, NULL, "* > *");
        for (i = 0; i < 100; i++) CHECK(go('i', B, 1000 + i, S, 53, 17, 0) == 'A');
        for (i = 0; i < max; i++) CHECK(go('o', S, 1000 + i, X, 53, 17, 0) == 'A');
        for (i = 0; i < 100; i++) CHECK(go('i', B, 1000 + i, S, 53, 17, 0) == 'A');
        (void)feed(&flt, true, NULL, "");
        for (i = 0; i < max; i++) mine += go('i', X, 53, S, 1000 + i, 17, 0) == 'A';
        CHECK(mine == max);
    }
    fresh(RANGES, 9);                       /* and hold at most half of a free table */
    (void)feed(&flt, true, NULL, "* > *");
    for (i = 0; i < 100; i++) CHECK(go('i', B, 1000 + i, S, 53, 17, 0) == 'A');
    for (max = 0, i = 0; i < 9; i++) max += flows[i].protocol != 0;
    CHECK(max == 5);
}

static void flows_end_when_idle(void)
{
    fresh(RANGES, FLOWS);
    CHECK(go('o', S, 1, X, 53, 17, 0) == 'A');
    now += 297000;
    CHECK(go('i', X, 53, S, 1, 17, 0) == 'A');
    now += 4000;                            /* what comes in does not keep it     */
    CHECK(go('i', X, 53, S, 1, 17, 0) == 'D');
    CHECK(go('o', S, 7, X, 443, 6, TN_IP_SYN) == 'A');
    now += 241000;
    CHECK(go('i', X, 443, S, 7, 6, TN_IP_SYN | TN_IP_ACK) == 'R');      /* too late      */
    CHECK(go('o', S, 7, X, 443, 6, TN_IP_SYN) == 'A');
    CHECK(go('i', X, 443, S, 7, 6, TN_IP_SYN | TN_IP_ACK) == 'A');
    now += 431000000;                       /* nearly five days of silence        */
    CHECK(go('i', X, 443, S, 7, 6, TN_IP_ACK) == 'A');
    now += 431000000;
    CHECK(go('o', S, 7, X, 443, 6, TN_IP_ACK) == 'A');
    now += 431000000;
    CHECK(go('i', X, 443, S, 7, 6, TN_IP_ACK) == 'A');
    CHECK(go('i', X, 443, S, 7, 6, TN_IP_RST) == 'A');
    now += 230000;
    CHECK(go('i', X, 443, S, 7, 6, TN_IP_ACK) == 'A');
    now += 241000;
    CHECK(go('i', X, 443, S, 7, 6, TN_IP_ACK) == 'D');
    CHECK(go('o', S, 7, X, 443, 6, TN_IP_SYN) == 'A');
    CHECK(go('i', X, 443, S, 7, 6, TN_IP_SYN | TN_IP_ACK) == 'A');
    now += 433000000;
    CHECK(go('i', X, 443, S, 7, 6, TN_IP_ACK) == 'D');
    CHECK(go('o', S, 8, X, 3, 1, 0) == 'A');
    now += 61000;
    CHECK(go('i', X, 0, S, 3, 1, 0) == 'D');
    now = UINT64_MAX;                       /* no end that wraps                  */
    CHECK(go('o', S, 1, X, 53, 17, 0) == 'A' && go('i', X, 53, S, 1, 17, 0) == 'A');
}

/* ---- texts ---- */

static bool text(const char *t, const char *first, const char *last)
{
    tn_flt_range r;
    tailnet_addr a, b;
    memset(&r, 0, sizeof r);
    if (!tn_flt_text(&r, t, strlen(t))) return first == NULL;
    if (first == NULL) return false;
    if (strcmp(first, "*") == 0) return r.family == 0;
    addr(&a, first);
    addr(&b, last);
    return r.family == a.family && memcmp(r.at, a.ip, 16) == 0 && memcmp(r.at + 16, b.ip, 16) == 0;
}

static void reads_texts(void)
{
    static const char *const bad[] = {
        "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "/8", "", "10.0.0", "010.0.0.1", "/", "-",
        "10.0.0.9-10.0.0.1", "10.0.0.1-::1", "1.1.1.1-2.2.2.2-3.3.3.3", "bogus", "**", "1.2.3.4-",
        "-1.2.3.4", "10.0.0.0/08", "10.0.0.0/+8", "10.0.0.0/-8", "10.0.0.0/8/8", "fe80::1%eth0",
        "fd7a::1/64", "::/129", "1.2.3.4/32-1.2.3.5", "cap:x", "10.0.0.0/8 ", "0.0.0.0/00"
    };
    size_t i;
    CHECK(text("100.64.0.1", "100.64.0.1", "100.64.0.1"));
    CHECK(text("fd7a:115c:a1e0::/48", "fd7a:115c:a1e0::", "fd7a:115c:a1e0:ffff:ffff:ffff:ffff:ffff"));
    CHECK(text("100.64.1.5-100.64.1.9", "100.64.1.5", "100.64.1.9"));
    CHECK(text("0.0.0.0-255.255.255.255", "0.0.0.0", "255.255.255.255"));
    CHECK(text("0.0.0.0/0", "0.0.0.0", "255.255.255.255"));
    CHECK(text("10.0.0.0/9", "10.0.0.0", "10.127.255.255"));
    CHECK(text("10.0.0.1/32", "10.0.0.1", "10.0.0.1"));
    CHECK(text("::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
    CHECK(text("2eff::1-2eff::800", "2eff::1", "2eff::800"));
    CHECK(text("::ffff:1.2.3.4", "::ffff:102:304", "::ffff:102:304"));
    CHECK(text("*", "*", "*"));
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (!text(bad[i], NULL, NULL)) printf("%s\n", bad[i]);
        CHECK(text(bad[i], NULL, NULL));
    }
}

static void bad_texts_make_a_rule_narrower(void)
{
    unsigned news;
    fresh(RANGES, FLOWS);
    news = feed(&flt, true, NULL, "bogus " A " > " S "@22-22 nonsense cap:x : 6");
    CHECK(news == (TN_FLT_CHANGED | TN_FLT_TEXT) && flt.texts_skipped == 3);
    CHECK(go('i', A, 1, S, 22, 6, TN_IP_SYN) == 'A' && go('i', B, 1, S, 22, 6, TN_IP_SYN) == 'R');
    news = feed(&flt, true, NULL, "bogus > *");
    CHECK((news & TN_FLT_TEXT) != 0 && flt.now.used == 0);
    news = feed(&flt, true, NULL, "cap: > *");
    CHECK(news == 0 && flt.now.used == 0);
    news = feed(&flt, true, NULL, A " > bogus");
    CHECK((news & TN_FLT_TEXT) != 0 && flt.now.used == 0);
    CHECK(go('i', A, 1, S, 22, 6, TN_IP_SYN) == 'R');
}

static void protocols_of_a_rule(void)
{
    fresh(RANGES, FLOWS);
    (void)feed(&flt, true, NULL, A " > " S "@1-9 : 300");
    CHECK(go('i', A, 1, S, 5, 6, TN_IP_SYN) == 'R' && go('i', A, 1, S, 5, 17, 0) == 'D');
    (void)feed(&flt, true, NULL, A " > " S "@1-9 : 300 17 -1");
    CHECK(go('i', A, 1, S, 5, 6, TN_IP_SYN) == 'R' && go('i', A, 1, S, 5, 17, 0) == 'A');
    (void)feed(&flt, true, NULL, A " > " S "@1-9");
    CHECK(go('i', A, 1, S, 5, 6, TN_IP_SYN) == 'A' && go('i', A, 1, S, 5, 17, 0) == 'A');
    CHECK(go('i', A, 1, S, 5, 132, 0) == 'D');
    (void)feed(&flt, true, NULL, A " > " S "@9-1");
    CHECK(go('i', A, 1, S, 5, 6, TN_IP_SYN) == 'R');
}

/* Any order inside a rule, and rules do not run into each other. */
static void order_does_not_matter(void)
{
    int i;
    for (i = 0; i < 6; i++) {
        int k, parts[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
        fresh(RANGES, FLOWS);
        tn_flt_begin(&flt, true);
        tn_flt_base(&flt);
        feed_rule(&flt, B " > " S "@1-1");
        tn_flt_rule_begin(&flt);
        for (k = 0; k < 3; k++) {
            if (parts[i][k] == 0) tn_flt_src(&flt, A, strlen(A));
            if (parts[i][k] == 1) tn_flt_dst(&flt, S, strlen(S), 2, 2);
            if (parts[i][k] == 2) tn_flt_proto(&flt, 17);
        }
        tn_flt_rule_end(&flt);
        feed_rule(&flt, "100.64.0.3 > " S "@3-3");
        CHECK(tn_flt_commit(&flt) == TN_FLT_CHANGED && flt.now.used == 7);
        CHECK(go('i', A, 9, S, 2, 17, 0) == 'A' && go('i', A, 9, S, 2, 6, TN_IP_SYN) == 'R');
        CHECK(go('i', A, 9, S, 1, 17, 0) == 'D' && go('i', A, 9, S, 3, 17, 0) == 'D');
        CHECK(go('i', B, 9, S, 1, 6, TN_IP_SYN) == 'A' && go('i', B, 9, S, 2, 17, 0) == 'D');
        CHECK(go('i', "100.64.0.3", 9, S, 3, 17, 0) == 'A');
        CHECK(go('i', "100.64.0.3", 9, S, 2, 17, 0) == 'D');
    }
}

static void neighbours_share_a_range(void)
{
    char     rule[2000] = "";
    unsigned i;
    fresh(4, FLOWS);
    for (i = 1; i <= 40; i++) {
        char word[40];
        snprintf(word, sizeof word, "100.64.1.%u fd7a:115c:a1e0::%x ", i * 7 % 41, 0x100 + i);
        strcat(rule, word);
    }
    strcat(rule, "> *");
    /* 40 addresses out of order need a few ranges, in order one. */
    (void)feed(&flt, true, NULL, "100.64.1.1 100.64.1.2 100.64.1.3 100.64.1.0 100.64.1.2 > *");
    CHECK(flt.now.used == 2);
    CHECK(go('i', "100.64.1.0", 1, S, 1, 17, 0) == 'A' && go('i', "100.64.1.3", 1, S, 1, 17, 0) == 'A');
    CHECK(go('i', "100.64.1.4", 1, S, 1, 17, 0) == 'D' && go('i', "100.64.0.255", 1, S, 1, 17, 0) == 'D');
    (void)feed(&flt, true, NULL, "255.255.255.255 0.0.0.0 > *");     /* no neighbours  */
    CHECK(flt.now.used == 3 && go('i', A, 1, S, 1, 17, 0) == 'D');
    (void)feed(&flt, true, NULL, "0.0.0.0/0 1.2.3.4 10.0.0.0/8 ::/0 ::1 > *");
    CHECK(flt.now.used == 3 && go('i', A, 1, S, 1, 17, 0) == 'A' && go('i', A6, 1, S6, 1, 17, 0) == 'A');
    (void)feed(&flt, true, NULL, A " > " S "@1-1 " S "@2-2 100.64.0.11@1-1");
    CHECK(flt.now.used == 3);               /* ports keep them apart              */
    CHECK(go('i', A, 1, S, 2, 17, 0) == 'A');
    fresh(RANGES, FLOWS);
    (void)feed(&flt, true, NULL, rule);
    for (i = 1; i <= 40; i++) {
        char word[40];
        snprintf(word, sizeof word, "100.64.1.%u", i);
        CHECK(go('i', word, 1, S, 1, 17, 0) == 'A');
        snprintf(word, sizeof word, "fd7a:115c:a1e0::%x", 0x100 + i);
        CHECK(go('i', word, 1, S6, 1, 17, 0) == 'A');
    }
    CHECK(go('i', "100.64.1.41", 1, S, 1, 17, 0) == 'D');
    CHECK(go('i', "fd7a:115c:a1e0::129", 1, S6, 1, 17, 0) == 'D');
}

/* ---- lists and messages ---- */

static char may(const char *who) { return go('i', who, 1, S, 5, 17, 0); }

#define R1 "100.64.0.21 > " S
#define R2 "100.64.0.22 > " S
#define R3 "100.64.0.23 > " S
#define R4 "100.64.0.24 > " S

/* Which of the four may? As a text, such as "A.A.". */
static bool are(const char *want)
{
    static const char *const who[] = {"100.64.0.21", "100.64.0.22", "100.64.0.23", "100.64.0.24"};
    int i;
    for (i = 0; i < 4; i++)
        if ((may(who[i]) == 'A') != (want[i] == 'A')) return false;
    return true;
}

static void lists_come_and_go(void)
{
    fresh(RANGES, FLOWS);
    CHECK(are("...."));
    CHECK(feed(&flt, true, "a", R1) == TN_FLT_CHANGED && are("A..."));
    CHECK(feed(&flt, false, "b", R2) == TN_FLT_CHANGED && are("AA.."));
    CHECK(feed(&flt, false, "b", R2) == 0 && are("AA.."));
    tn_flt_begin(&flt, false);
    tn_flt_set_drop(&flt, "a", 1);
    tn_flt_set_drop(&flt, "unknown", 7);
    CHECK(tn_flt_commit(&flt) == TN_FLT_CHANGED && are(".A.."));
    tn_flt_begin(&flt, false);
    tn_flt_set_drop(&flt, "*", 1);
    tn_flt_set(&flt, "c", 1);
    feed_rule(&flt, R3);
    CHECK(tn_flt_commit(&flt) == TN_FLT_CHANGED && are("..A."));
    tn_flt_begin(&flt, false);              /* PacketFilter and "*" in one message */
    tn_flt_base(&flt);
    feed_rule(&flt, R4);
    tn_flt_set_drop(&flt, "*", 1);
    (void)tn_flt_commit(&flt);
    CHECK(are("...."));
    tn_flt_begin(&flt, false);              /* and in the other order             */
    tn_flt_set_drop(&flt, "*", 1);
    tn_flt_base(&flt);
    feed_rule(&flt, R4);
    (void)tn_flt_commit(&flt);
    CHECK(are("...."));
    tn_flt_begin(&flt, false);              /* "*" after a name                   */
    tn_flt_set(&flt, "d", 1);
    feed_rule(&flt, R1);
    tn_flt_set_drop(&flt, "*", 1);
    (void)tn_flt_commit(&flt);
    CHECK(are("A..."));
    CHECK(feed(&flt, false, "*", R2) == 0 && are("A..."));
    CHECK(feed(&flt, false, "d", "") == TN_FLT_CHANGED && are("...."));
    (void)feed(&flt, false, NULL, R4);
    CHECK(are("...A"));
    (void)feed(&flt, false, "base", R3);    /* the same list                      */
    CHECK(are("..A."));
    tn_flt_begin(&flt, false);              /* both: the named one counts         */
    tn_flt_set(&flt, "base", 4);
    feed_rule(&flt, R1);
    tn_flt_base(&flt);
    feed_rule(&flt, R2);
    (void)tn_flt_commit(&flt);
    CHECK(are("A..."));
    tn_flt_begin(&flt, false);
    tn_flt_base(&flt);
    feed_rule(&flt, R2);
    tn_flt_set_drop(&flt, "base", 4);
    (void)tn_flt_commit(&flt);
    CHECK(are("...."));
}

static void a_new_stream_begins_with_nothing(void)
{
    fresh(RANGES, FLOWS);
    (void)feed(&flt, true, "a", R1);
    tn_flt_begin(&flt, true);
    CHECK(are("A...") && tn_flt_is_open(&flt));     /* until the message is complete */
    CHECK(tn_flt_commit(&flt) == TN_FLT_CHANGED && are("....") && !tn_flt_is_open(&flt));
}

static void aborted_messages_leave_no_trace(void)
{
    fresh(RANGES, FLOWS);
    (void)feed(&flt, true, "a", R1 ";" R2);
    tn_flt_begin(&flt, false);
    tn_flt_set_drop(&flt, "*", 1);
    tn_flt_set(&flt, "a", 1);
    feed_rule(&flt, R3);
    tn_flt_rule_begin(&flt);
    tn_flt_src(&flt, "*", 1);
    CHECK(are("AA.."));
    tn_flt_abort(&flt);
    CHECK(are("AA..") && tn_flt_commit(&flt) == 0 && are("AA.."));
    tn_flt_set(&flt, "a", 1);               /* outside of a message: nothing      */
    feed_rule(&flt, R3);
    CHECK(are("AA.."));
    tn_flt_begin(&flt, false);              /* a rule without an end adds nothing */
    tn_flt_set(&flt, "b", 1);
    tn_flt_rule_begin(&flt);
    tn_flt_src(&flt, "*", 1);
    tn_flt_dst(&flt, "*", 1, 0, 65535);
    tn_flt_rule_begin(&flt);
    tn_flt_src(&flt, "100.64.0.23", 11);
    tn_flt_dst(&flt, "*", 1, 0, 65535);
    tn_flt_rule_end(&flt);
    tn_flt_rule_begin(&flt);
    tn_flt_src(&flt, "*", 1);
    tn_flt_dst(&flt, "*", 1, 0, 65535);
    (void)tn_flt_commit(&flt);
    CHECK(are("AAA."));
    tn_flt_begin(&flt, false);              /* rules before any list              */
    feed_rule(&flt, "* > *");
    tn_flt_src(&flt, "*", 1);
    tn_flt_set(&flt, "c", 1);
    tn_flt_src(&flt, "*", 1);
    tn_flt_dst(&flt, "*", 1, 0, 65535);
    (void)tn_flt_commit(&flt);
    CHECK(are("AAA."));
}

static void obsolete_rules_void_all(void)
{
    fresh(RANGES, FLOWS);
    (void)feed(&flt, true, "a", R1);
    tn_flt_begin(&flt, false);
    tn_flt_set(&flt, "b", 1);
    feed_rule(&flt, R2);
    tn_flt_rule_begin(&flt);
    tn_flt_rule_bad(&flt);
    tn_flt_rule_end(&flt);
    CHECK(tn_flt_commit(&flt) == (TN_FLT_CHANGED | TN_FLT_VOID) && are("...."));
    (void)feed(&flt, false, "c", R3);
    CHECK(are("...."));
    (void)feed(&flt, false, "b", R2);
    CHECK(are("AAA."));
    tn_flt_begin(&flt, false);
    tn_flt_base(&flt);
    tn_flt_rule_begin(&flt);
    tn_flt_rule_bad(&flt);
    tn_flt_rule_end(&flt);
    tn_flt_set_drop(&flt, "*", 1);
    (void)tn_flt_commit(&flt);
    (void)feed(&flt, false, "c", R3);
    CHECK(are("..A."));
    tn_flt_begin(&flt, false);              /* one rule is cut: the others stay   */
    tn_flt_set(&flt, "c", 1);
    tn_flt_rule_begin(&flt);
    tn_flt_src(&flt, "100.64.0.21", 11);
    tn_flt_rule_skip(&flt);
    tn_flt_dst(&flt, "*", 1, 0, 65535);
    tn_flt_rule_end(&flt);
    feed_rule(&flt, R4);
    CHECK(tn_flt_commit(&flt) == (TN_FLT_CHANGED | TN_FLT_FULL) && flt.rules_dropped == 1);
    CHECK(are("...A"));
}

static void a_full_arena_drops_whole_rules(void)
{
    unsigned max;
    fresh(0, FLOWS);
    CHECK(feed(&flt, true, NULL, R1) == TN_FLT_FULL && are("...."));
    for (max = 1; max <= 8; max++) {        /* 3 + 2 + 3 ranges                   */
        unsigned news;
        fresh(max, FLOWS);
        news = feed(&flt, true, NULL, R1 " : 17;" R2 ";" R3 " 192.168.7.1");
        CHECK(((news & TN_FLT_FULL) != 0) == (max < 8));
        CHECK(flt.rules_dropped == (max < 2 ? 3 : max < 3 ? 2 : max < 5 ? 2 : max < 8 ? 1 : 0));
        CHECK(are(max < 2 ? "...." : max < 3 ? ".A.." : max < 5 ? "A..." : max < 8 ? "AA.." : "AAA."));
        CHECK(flt.now.used <= max);
        CHECK(max != 8 || flt.now.used == 8);
    }
    fresh(4, FLOWS);                        /* replacing the full table           */
    CHECK(feed(&flt, true, "a", R1 ";" R2) == TN_FLT_CHANGED && are("AA.."));
    CHECK(feed(&flt, false, "b", R3) == TN_FLT_FULL && are("AA.."));
    CHECK(feed(&flt, false, "a", R3 ";" R4) == TN_FLT_CHANGED && are("..AA"));
    CHECK(feed(&flt, true, "b", R1 ";" R2) == TN_FLT_CHANGED && are("AA.."));
}

static void sixteen_lists_fit(void)
{
    char     name[8];
    unsigned i, round;
    fresh(RANGES, FLOWS);
    (void)feed(&flt, true, "base", R4);
    for (i = 1; i < 16; i++) {
        snprintf(name, sizeof name, "n%u", i);
        CHECK(feed(&flt, false, name, R1) == TN_FLT_CHANGED);
    }
    CHECK(feed(&flt, false, "more", R2) == TN_FLT_FULL && are("A..A"));
    CHECK(flt.rules_dropped == 1);
    for (round = 0; round < 100; round++) { /* names of lists that are gone are free */
        snprintf(name, sizeof name, "r%u", round);
        tn_flt_begin(&flt, false);
        tn_flt_set_drop(&flt, round == 0 ? "n3" : name, round == 0 ? 2 : strlen(name));
        (void)tn_flt_commit(&flt);
        snprintf(name, sizeof name, "r%u", round + 1);
        CHECK(feed(&flt, false, name, R3) == TN_FLT_CHANGED && are("A.AA"));
    }
    tn_flt_begin(&flt, false);              /* one goes and one comes at once     */
    tn_flt_set_drop(&flt, "r100", 4);
    tn_flt_set(&flt, "x", 1);
    feed_rule(&flt, R2);
    CHECK((tn_flt_commit(&flt) & TN_FLT_FULL) != 0 && are("A..A"));     /* fails closed  */
    CHECK((feed(&flt, false, "x", R2) & TN_FLT_FULL) == 0 && are("AA.A"));
    CHECK(feed(&flt, false, "base", "") == TN_FLT_CHANGED && are("AA.."));
}

static void capabilities_get_bits(void)
{
    char     name[24];
    unsigned i, news;
    fresh(RANGES, FLOWS);
    CHECK(tn_flt_cap(&flt, "ssh", 3) == 0);
    news = feed(&flt, true, NULL, "cap:ssh cap:https://example.com/cap/x > " S "@22-22 : 6");
    CHECK(news == (TN_FLT_CHANGED | TN_FLT_NEW_CAP) && flt.now.used == 3);
    CHECK(tn_flt_cap(&flt, "ssh", 3) == 1 && tn_flt_cap(&flt, "https://example.com/cap/x", 25) == 2);
    CHECK(tn_flt_cap(&flt, "ss", 2) == 0);
    CHECK(go('i', "100.64.0.8", 1, S, 22, 6, TN_IP_SYN) == 'A' && go('i', A, 1, S, 22, 6, TN_IP_SYN) == 'R');
    CHECK(go('i', "100.64.0.8", 1, S, 22, 47, 0) == 'D');
    CHECK(go('i', "100.64.0.8", 8, S, 1, 1, 0) == 'A');
    (void)feed(&flt, true, NULL, "cap:ssh > * : 47");   /* not for other protocols      */
    CHECK(go('i', "100.64.0.8", 1, S, 22, 47, 0) == 'D');
    CHECK((feed(&flt, true, NULL, "cap:ssh > *") & TN_FLT_NEW_CAP) == 0);
    for (i = 2; i < 34; i++) {
        snprintf(name, sizeof name, "cap:n%u > *", i);
        news = feed(&flt, false, NULL, name);
        CHECK(((news & TN_FLT_NEW_CAP) != 0) == (i < 32) && ((news & TN_FLT_TEXT) != 0) == (i >= 32));
    }
    CHECK(tn_flt_cap(&flt, "n31", 3) == 0x80000000u && tn_flt_cap(&flt, "n32", 3) == 0);
    CHECK(flt.now.used == 0);               /* the last rule had no source left   */
}

static void names_single_addresses(void)
{
    tailnet_addr ip;
    fresh(RANGES, FLOWS);
    (void)feed(&flt, true, NULL, A " 100.64.8.0/23 " A6 " > *;* 10.0.0.0/8 > *");
    addr(&ip, A);
    CHECK(tn_flt_names(&flt, &ip));
    addr(&ip, A6);
    CHECK(tn_flt_names(&flt, &ip));
    addr(&ip, B);
    CHECK(!tn_flt_names(&flt, &ip));
    addr(&ip, "100.64.8.1");
    CHECK(!tn_flt_names(&flt, &ip));
    memset(&ip, 0, sizeof ip);
    CHECK(!tn_flt_names(&flt, &ip));
}

static tailnet_result check(const char *src, const char *dst, unsigned port, unsigned protocol)
{
    tailnet_flow flow;
    tn_flt_peer  peer;
    addr(&flow.src, src);
    addr(&flow.dst, dst);
    flow.dst.port = (uint16_t)port;
    flow.protocol = (uint8_t)protocol;
    peer_of(&peer, &flow.src);
    return tn_flt_check(&flt, &flow, &peer);
}

static void checks_flows(void)
{
    fresh(RANGES, FLOWS);
    CHECK(check(A, S, 22, 6) == TAILNET_ERR_DENIED);
    (void)feed(&flt, true, "base", fixture);
    CHECK(check(A, S, 22, 6) == TAILNET_OK && check(A, S, 23, 6) == TAILNET_ERR_DENIED);
    CHECK(check(A, "10.1.1.1", 22, 6) == TAILNET_ERR_NO_ROUTE);
    CHECK(check(A, S6, 22, 6) == TAILNET_ERR_ARGUMENT && check(A, S, 22, 0) == TAILNET_ERR_ARGUMENT);
    CHECK(check(A, S, 22, 255) == TAILNET_ERR_ARGUMENT);
    CHECK(check(A6, S6, 22, 6) == TAILNET_OK && check(A, S, 0, 1) == TAILNET_OK);
    CHECK(check(X, S, 0, 1) == TAILNET_ERR_DENIED);
    CHECK(check("100.64.0.4", S, 0, 47) == TAILNET_OK && check("100.64.0.5", S, 443, 47) == TAILNET_ERR_DENIED);
    CHECK(check("100.64.0.8", S, 2222, 6) == TAILNET_OK);
    tn_flt_shields(&flt, true);
    CHECK(check(A, S, 22, 6) == TAILNET_ERR_DENIED);
}

static bool local(const char *ip)
{
    tailnet_addr a;
    addr(&a, ip);
    return tn_flt_is_local(&flt, &a);
}

static void an_exit_node_gives_the_internet_only(void)
{
    static const char *const inside[] = {
        "192.168.0.1", "172.31.255.255", "10.9.9.9", "169.254.169.254", "224.0.0.1", "100.100.100.100",
        "127.0.0.1", "0.0.0.0", "fe80::1", "ff02::1", "fd7a:115c:a1e0::99", "::1", "::"
    };
    tailnet_prefix routes[3];
    tailnet_addr   s4;
    size_t         i;

    fresh(RANGES, FLOWS);
    CHECK(local(S) && local(S6) && local("192.168.7.1") && !local("192.168.8.1") && !local("8.8.8.8"));
    addr(&s4, S);
    (void)tn_prefix_parse(&routes[0], "0.0.0.0/0", 9);
    (void)tn_prefix_parse(&routes[1], "::/0", 4);
    (void)tn_prefix_parse(&routes[2], "192.168.7.0/24", 14);
    tn_flt_local(&flt, &s4, NULL, routes, 3);
    for (i = 0; i < sizeof inside / sizeof inside[0]; i++) CHECK(!local(inside[i]));
    CHECK(local("8.8.8.8") && local("2606:4700::1111") && local(S) && local("192.168.7.1"));
    CHECK(local("172.32.0.1") && local("100.128.0.1"));
    tn_flt_local(&flt, NULL, NULL, NULL, 0);
    CHECK(!local(S) && !local(S6) && !local("8.8.8.8"));
}

/* ---- random rules and packets against a plain evaluator ---- */

typedef struct plain_rule {
    int      src_count, dst_count, proto_count;
    struct { unsigned from, to; bool star; } src[6], dst[6];
    unsigned first[6], last[6], proto[4];
} plain_rule;

/* Addresses are 100.64.0.x and fd7a:115c:a1e0::x with small x: hits are common. */
static bool plain_has(const plain_rule *r, bool dst, int i, unsigned x)
{
    if (dst) return r->dst[i].star || (r->dst[i].from <= x && x <= r->dst[i].to);
    return r->src[i].star || (r->src[i].from <= x && x <= r->src[i].to);
}

static bool plain_lets(const plain_rule *r, int count, unsigned src, unsigned dst, unsigned port,
                       unsigned protocol, bool six)
{
    int i, k;
    for (i = 0; i < count; i++) {
        bool s = false, d = false, p = r[i].proto_count == 0 && (protocol == 6 || protocol == 17 ||
                                                               protocol == 1 || protocol == 58);
        bool ping = protocol == (six ? 58u : 1u), whole = protocol == 47 || protocol == (six ? 1u : 58u);
        for (k = 0; k < r[i].proto_count; k++) p = p || r[i].proto[k] == protocol;
        for (k = 0; k < r[i].src_count; k++) s = s || plain_has(&r[i], false, k, src);
        for (k = 0; k < r[i].dst_count; k++) {
            bool ports = ping || (whole ? r[i].first[k] == 0 && r[i].last[k] == 65535
                                        : r[i].first[k] <= port && port <= r[i].last[k]);
            d = d || (ports && plain_has(&r[i], true, k, dst));
        }
        if (s && d && (p || ping)) return true;
    }
    return false;
}

static void plain_text(char *out, size_t cap, const plain_rule *r, int i, bool dst, bool six)
{
    const char *net  = six ? "fd7a:115c:a1e0::" : "100.64.0.";
    unsigned    from = dst ? r->dst[i].from : r->src[i].from, to = dst ? r->dst[i].to : r->src[i].to;
    const char *form = six ? "%s%x" : "%s%u", *range = six ? "%s%x-%s%x" : "%s%u-%s%u";
    if (dst ? r->dst[i].star : r->src[i].star) snprintf(out, cap, "*");
    else if (from == to) snprintf(out, cap, form, net, from);
    else if (from % 4 == 0 && to == from + 3) snprintf(out, cap, six ? "%s%x/126" : "%s%u/30", net, from);
    else snprintf(out, cap, range, net, from, net, to);
}

static unsigned dice(unsigned n) { return (unsigned)(tn_test_random() % n); }

static void plain_make(plain_rule *r)
{
    int k;
    memset(r, 0, sizeof *r);
    r->src_count   = (int)dice(6);
    r->dst_count   = (int)dice(6);
    r->proto_count = dice(3) == 0 ? 1 + (int)dice(3) : 0;
    for (k = 0; k < r->src_count; k++) {
        r->src[k].from = 1 + dice(30);
        r->src[k].to   = r->src[k].from + (dice(2) == 0 ? 0 : dice(5));
        r->src[k].star = dice(20) == 0;
    }
    for (k = 0; k < r->dst_count; k++) {
        r->dst[k].from = 1 + dice(30);
        r->dst[k].to   = r->dst[k].from + (dice(2) == 0 ? 0 : dice(5));
        r->dst[k].star = dice(10) == 0;
        r->first[k]    = dice(3) == 0 ? 0 : dice(10);
        r->last[k]     = dice(2) == 0 ? 65535 : r->first[k] + dice(5);
    }
    for (k = 0; k < r->proto_count; k++) {
        static const unsigned some[] = {6, 17, 1, 58, 132, 47, 300};
        r->proto[k] = some[dice(7)];
    }
}

static void plain_feed(const plain_rule *r, bool six)
{
    char word[120];
    int  k;
    tn_flt_rule_begin(&flt);
    for (k = 0; k < r->proto_count; k++) tn_flt_proto(&flt, (int64_t)r->proto[k]);
    for (k = 0; k < r->src_count; k++) {
        plain_text(word, sizeof word, r, k, false, six);
        tn_flt_src(&flt, word, strlen(word));
    }
    for (k = 0; k < r->dst_count; k++) {
        plain_text(word, sizeof word, r, k, true, six);
        tn_flt_dst(&flt, word, strlen(word), (uint16_t)r->first[k], (uint16_t)r->last[k]);
    }
    tn_flt_rule_end(&flt);
}

static void agrees_with_a_plain_evaluator(void)
{
    static const unsigned protocols[] = {6, 17, 132, 47, 0, 0};
    plain_rule            rules[6];
    tailnet_prefix        all[2];
    unsigned              round, hits = 0;
    int                   i;

    for (round = 0; round < 5000; round++) {
        bool six   = round % 2 != 0;
        int  count = (int)dice(6);
        fresh(200, FLOWS);
        (void)tn_prefix_parse(&all[0], "100.64.0.0/24", 13);
        (void)tn_prefix_parse(&all[1], "fd7a:115c:a1e0::/120", 20);
        tn_flt_local(&flt, NULL, NULL, all, 2);
        tn_flt_begin(&flt, true);
        tn_flt_base(&flt);
        for (i = 0; i < count; i++) {
            plain_make(&rules[i]);
            plain_feed(&rules[i], six);
        }
        CHECK((tn_flt_commit(&flt) & (TN_FLT_FULL | TN_FLT_TEXT | TN_FLT_VOID)) == 0);
        for (i = 0; i < 100; i++) {
            unsigned src = 1 + dice(34), dst = 1 + dice(34), port = dice(15), protocol = protocols[dice(6)];
            char     s[40], d[40];
            bool     want;
            if (protocol == 0) protocol = dice(4) == 0 ? (six ? 1 : 58) : (six ? 58 : 1);
            snprintf(s, sizeof s, six ? "fd7a:115c:a1e0::%x" : "100.64.0.%u", src);
            snprintf(d, sizeof d, six ? "fd7a:115c:a1e0::%x" : "100.64.0.%u", dst);
            want = plain_lets(rules, count, src, dst, port, protocol, six);
            hits += want;
            if (protocol == 1 || protocol == 58) {
                CHECK((go('i', s, six ? 128 : 8, d, 1, protocol, 0) == 'A') == want);
            } else {
                CHECK((go('i', s, 9, d, port, protocol, TN_IP_SYN) == 'A') == want);
                CHECK((go('i', s, 9, d, port, protocol, TN_IP_ACK) == 'A') == want);
            }
        }
    }
    CHECK(hits > 20000 && hits < 400000);
}

int main(void)
{
    TEST(reference_packets);
    TEST(answers_pass);
    TEST(errors_about_our_flows_pass);
    TEST(fragments_need_a_friend);
    TEST(policy_bites_in_standing_connections);
    TEST(policy_bites_in_udp);
    TEST(shields_and_jails);
    TEST(flows_end_with_their_peer);
    TEST(oldest_flow_makes_room);
    TEST(peers_cannot_push_out_our_flows);
    TEST(flows_end_when_idle);
    TEST(reads_texts);
    TEST(bad_texts_make_a_rule_narrower);
    TEST(protocols_of_a_rule);
    TEST(order_does_not_matter);
    TEST(neighbours_share_a_range);
    TEST(lists_come_and_go);
    TEST(a_new_stream_begins_with_nothing);
    TEST(aborted_messages_leave_no_trace);
    TEST(obsolete_rules_void_all);
    TEST(a_full_arena_drops_whole_rules);
    TEST(sixteen_lists_fit);
    TEST(capabilities_get_bits);
    TEST(names_single_addresses);
    TEST(checks_flows);
    TEST(an_exit_node_gives_the_internet_only);
    TEST(agrees_with_a_plain_evaluator);
    return tn_test_end();
}
