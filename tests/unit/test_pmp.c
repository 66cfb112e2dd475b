#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

/* One machine, its clock, and what it last wanted. */
static struct {
    tn_pmp       p;
    uint64_t     now_ms;
    tailnet_addr gateway, own;
    uint8_t      sent[8][TN_PMP_DATAGRAM];
    size_t       len[8];
    tailnet_addr to[8];
    unsigned     count, http;
} w;

static const uint8_t luck[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };

static tailnet_addr addr(const char *text)
{
    tailnet_addr a;
    CHECK(tn_addr_parse(&a, text, strlen(text)));
    return a;
}

/* Everything that is to be done now. */
static void turn(void)
{
    unsigned i;
    w.count = w.http = 0;
    for (i = 0; i < 16; i++) {
        tn_wr       out;
        tn_pmp_want want;
        tn_wr_over(&out, w.sent[w.count], TN_PMP_DATAGRAM);
        want = tn_pmp_step(&w.p, w.now_ms, &out, &w.to[w.count]);
        CHECK(tn_wr_ok(&out));
        if (want == TN_PMP_NOTHING) break;
        w.len[w.count] = tn_wr_len(&out);
        if (want == TN_PMP_SEND && w.count < 7) w.count++;
        if (want == TN_PMP_HTTP) w.http++;
    }
    CHECK(i < 6);
    CHECK(tn_pmp_deadline(&w.p) > w.now_ms);
}

static void at(uint64_t ms)
{
    w.now_ms += ms;
    turn();
}

static void network(const char *gateway, const char *own)
{
    w.gateway = addr(gateway);
    w.own     = addr(own);
    tn_pmp_network(&w.p, &w.gateway, &w.own, luck, w.now_ms);
}

static void begin(void)
{
    memset(&w, 0, sizeof w);
    w.now_ms = 1000000;
    network("192.168.1.1:0", "192.168.1.20:41641");
    turn();
}

static bool from(const char *source, const uint8_t *data, size_t len)
{
    tailnet_addr a = addr(source);
    uint8_t     *copy = (uint8_t *)malloc(len + 1);
    bool         taken;
    memcpy(copy, data, len);
    taken = tn_pmp_input(&w.p, copy, len, &a, w.now_ms);
    free(copy);
    return taken;
}

static void answer(const char *hex)
{
    uint8_t data[128];
    CHECK(from("192.168.1.1:5351", data, tn_test_hex(data, sizeof data, hex)));
}

static bool is_sent(unsigned i, const char *to, const char *hex)
{
    uint8_t      want[128];
    size_t       len = tn_test_hex(want, sizeof want, hex);
    tailnet_addr a   = addr(to);
    return i < w.count && w.len[i] == len && memcmp(w.sent[i], want, len) == 0 &&
           tn_addr_same(&w.to[i], &a);
}

static bool is_external(const char *text)
{
    tailnet_addr got, want;
    if (text == NULL) return !tn_pmp_external(&w.p, &got) && got.family == 0;
    want = addr(text);
    return tn_pmp_external(&w.p, &got) && tn_addr_same(&got, &want);
}

#define GATEWAY  "192.168.1.1:5351"
#define ANNOUNCE "020000000000000000000000000000000000ffffc0a80114"
#define MAP_HEAD "0201000000001c2000000000000000000000ffffc0a80114"
#define NONCE    "0102030405060708090a0b0c"
#define MAP_PCP  MAP_HEAD NONCE "11000000a2a9000000000000000000000000ffff00000000"
#define MAP_PMP  "00010000a2a9000000001c20"
#define TEN0     "00000000000000000000"

/* Answers of a gateway with epoch 100 s; lifetime and addresses by the test. */
#define PCP_HERE(epoch)      "02800000" "00000000" epoch TEN0 "0000"
#define PCP_OK(life, epoch)  "02810000" life epoch TEN0 "0000" NONCE "11000000" "a2a9" "c351" TEN0 "ffff" "c6336407"
#define PMP_HERE(epoch)      "00800000" epoch "c6336407"
#define PMP_OK(life, epoch)  "00810000" epoch "a2a9" "c350" life

/* The vectors of the protocol notes, and where they go. */
static void vectors(void)
{
    begin();
    CHECK(w.count == (sizeof w.p > 200 ? 4u : 2u) && w.http == 0);
    CHECK(is_sent(0, GATEWAY, ANNOUNCE));
    CHECK(is_sent(1, GATEWAY, "0000"));
    CHECK(tn_pmp_deadline(&w.p) == w.now_ms + 250);
    answer(PCP_HERE("00000064"));
    at(250);
    CHECK(w.count == 1 && is_sent(0, GATEWAY, MAP_PCP));
    begin();
    answer(PMP_HERE("00000064"));
    at(250);
    CHECK(w.count == 2 && is_sent(0, GATEWAY, "0000") && is_sent(1, GATEWAY, MAP_PMP));
}

static void without_network(void)
{
    static const uint8_t some[16] = { 0x80 };
    tailnet_addr six = addr("[fe80::1]:0"), none;
    memset(&w, 0, sizeof w);
    turn();
    CHECK(w.count == 0 && tn_pmp_deadline(&w.p) == TN_NEVER && is_external(NULL));
    CHECK(!from(GATEWAY, some, sizeof some) && !from("0.0.0.0:5351", some, sizeof some));
    w.gateway = addr("192.168.1.1:0");
    w.own     = addr("192.168.1.20:41641");
    memset(&none, 0, sizeof none);
    tn_pmp_network(&w.p, NULL, &w.own, luck, 5);
    tn_pmp_network(&w.p, &w.gateway, NULL, luck, 5);
    tn_pmp_network(&w.p, &six, &w.own, luck, 5);
    tn_pmp_network(&w.p, &none, &w.own, luck, 5);
    tn_pmp_network(&w.p, &w.gateway, &w.gateway, luck, 5);      /* port 0 */
    tn_pmp_release(&w.p, 5);
    CHECK(w.p.state == TN_PMP_IDLE && tn_pmp_news(&w.p) == 0 && tn_pmp_services(&w.p) == 0);
    begin();
    tn_pmp_network(&w.p, NULL, NULL, luck, 5);
    CHECK(w.p.state == TN_PMP_IDLE && tn_pmp_deadline(&w.p) == TN_NEVER);
}

static void map_pcp(void)
{
    begin();
    at(249);
    CHECK(w.count == 0 && tn_pmp_services(&w.p) == 0);
    answer(PCP_HERE("00000064"));
    answer(PMP_HERE("00000064"));
    at(1);
    CHECK(tn_pmp_services(&w.p) == (TN_PMP_PROBED | TN_PMP_HAS_PCP | TN_PMP_HAS_PMP));
    CHECK(tn_pmp_news(&w.p) == TN_PMP_NEWS_REPORT && tn_pmp_news(&w.p) == 0);
    CHECK(is_sent(0, GATEWAY, MAP_PCP) && is_external(NULL));
    w.now_ms += 7;
    answer(PCP_OK("00001c20", "00000064"));
    turn();
    CHECK(w.count == 0 && w.p.state == TN_PMP_HELD && is_external("198.51.100.7:50001"));
    CHECK(tn_pmp_news(&w.p) == TN_PMP_NEWS_MAPPING);
    CHECK(tn_pmp_deadline(&w.p) == w.now_ms + 600000);
}

static void map_pmp(int order)
{
    begin();
    answer(PMP_HERE("00000064"));
    at(250);
    CHECK(w.count == 2);
    answer(order == 0 ? PMP_HERE("00000064") : PMP_OK("00001c20", "00000064"));
    turn();
    CHECK(w.count == 0 && is_external(NULL));
    answer(order != 0 ? PMP_HERE("00000064") : PMP_OK("00001c20", "00000064"));
    CHECK(w.p.state == TN_PMP_HELD && is_external("198.51.100.7:50000"));
    CHECK(tn_pmp_news(&w.p) == (TN_PMP_NEWS_MAPPING | TN_PMP_NEWS_REPORT));
}

static void two_answers(void)
{
    map_pmp(0);
    map_pmp(1);
}

/* Nobody answers the mapping: five requests in five seconds, only those open. */
static void repeats(void)
{
    static const unsigned wait[4] = { 250, 500, 1000, 2000 };
    unsigned i;
    begin();
    answer(PCP_HERE("00000064"));
    answer(PMP_HERE("00000064"));
    at(250);
    for (i = 0; i < 4; i++) {
        at(wait[i] - 1);
        CHECK(w.count == 0);
        at(1);
        CHECK(w.count == 1 && is_sent(0, GATEWAY, MAP_PCP));
    }
    at(1249);
    CHECK(w.count == 0);
    at(1);                                  /* on to NAT-PMP */
    CHECK(w.count == 2 && is_sent(1, GATEWAY, MAP_PMP));
    answer(PMP_HERE("00000064"));
    for (i = 0; i < 4; i++) {
        at(wait[i]);
        CHECK(w.count == 1 && is_sent(0, GATEWAY, MAP_PMP));
    }
    at(1250);
    CHECK(w.count == 0 && w.p.state == TN_PMP_WAIT);
    CHECK(tn_pmp_deadline(&w.p) == w.now_ms + 30000);
}

static void back_off(void)
{
    static const unsigned wait_s[8] = { 30, 60, 120, 240, 480, 600, 600, 600 };
    unsigned i;
    begin();
    for (i = 0; i < 8; i++) {
        at(250);
        CHECK(w.count == 0 && tn_pmp_services(&w.p) == TN_PMP_PROBED);
        at(wait_s[i] * 1000u - 1);
        CHECK(w.count == 0);
        at(1);
        CHECK(w.count >= 2 && is_sent(0, GATEWAY, ANNOUNCE));
    }
    CHECK(tn_pmp_news(&w.p) == TN_PMP_NEWS_REPORT);
    map_pcp();
    CHECK(w.p.failures == 0);
}

/* An answer in the state that waits for it: cut short it changes nothing, with
 * bytes behind it it counts. */
static void truncated(bool pcp, bool map, const char *hex)
{
    uint8_t data[128];
    size_t  len = tn_test_hex(data, sizeof data - 8, hex), i;
    tn_pmp  before;
    begin();
    if (map) {
        answer(pcp ? PCP_HERE("00000064") : PMP_HERE("00000064"));
        at(250);
        if (!pcp) answer(PMP_HERE("00000064"));
    }
    before = w.p;
    for (i = 0; i < len; i++) {
        CHECK(from(GATEWAY, data, i));
        CHECK(memcmp(&before, &w.p, sizeof before) == 0);
    }
    memset(data + len, 0xff, 8);
    CHECK(from(GATEWAY, data, len + 8));
    CHECK(memcmp(&before, &w.p, sizeof before) != 0);
    CHECK(w.p.state == (map ? TN_PMP_HELD : TN_PMP_PROBE));
}

static void truncations(void)
{
    truncated(true, false, PCP_HERE("00000064"));
    truncated(true, true, PCP_OK("00001c20", "00000064"));
    truncated(false, false, PMP_HERE("00000064"));
    truncated(false, true, PMP_OK("00001c20", "00000064"));
}

/* Not the gateway, not asked, not ours. */
static void forged(void)
{
    static const char *const bad[] = {
        "01810000" "00001c20" "00000064" TEN0 "0000" NONCE "11000000" "a2a9" "c351" TEN0 "ffff" "c6336407",
        "02010000" "00001c20" "00000064" TEN0 "0000" NONCE "11000000" "a2a9" "c351" TEN0 "ffff" "c6336407",
        "02820000" "00001c20" "00000064" TEN0 "0000" NONCE "11000000" "a2a9" "c351" TEN0 "ffff" "c6336407",
        "02810000" "00001c20" "00000064" TEN0 "0000" "0102030405060708090a0b0d" "11000000" "a2a9" "c351"
            TEN0 "ffff" "c6336407",
        "02810000" "00001c20" "00000064" TEN0 "0000" NONCE "06000000" "a2a9" "c351" TEN0 "ffff" "c6336407",
        "02810000" "00001c20" "00000064" TEN0 "0000" NONCE "11000000" "a2a8" "c351" TEN0 "ffff" "c6336407",
        PMP_HERE("00000064"), PMP_OK("00001c20", "00000064"), PCP_HERE("00000064"),
        "00", "02", "0000", "0001", "ff", ""
    };
    uint8_t data[128];
    size_t  len, i;
    tn_pmp  before;

    begin();
    before = w.p;
    len    = tn_test_hex(data, sizeof data, PCP_HERE("00000064"));
    CHECK(!from("192.168.1.2:5351", data, len) && !from("192.168.1.1:5350", data, len));
    CHECK(!from("[c0a8:101::]:5351", data, len));
    answer(PCP_OK("00001c20", "00000064"));
    answer(PMP_OK("00001c20", "00000064"));
    CHECK(memcmp(&before, &w.p, sizeof before) == 0);
    answer(PCP_HERE("00000064"));
    at(250);
    before = w.p;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        answer(bad[i]);
        CHECK(memcmp(&before, &w.p, sizeof before) == 0);
    }
    answer(PCP_OK("00001c20", "00000064"));
    turn();
    before = w.p;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) answer(bad[i]);
    answer(PCP_OK("00000000", "00000000"));
    answer(PCP_HERE("00000000"));           /* "rebooted", but nobody asked */
    turn();
    CHECK(w.count == 0 && memcmp(&before, &w.p, sizeof before) == 0);
}

/* What the gateway grants: too little, too much, or nonsense. */
static void granted(const char *life, uint64_t renew_s)
{
    uint8_t data[128], out[4];
    size_t  len = tn_test_hex(data, sizeof data, PCP_OK("00000000", "00000064"));
    begin();
    answer(PCP_HERE("00000064"));
    at(250);
    tn_test_hex(out, 4, life);
    memcpy(data + 4, out, 4);
    CHECK(from(GATEWAY, data, len));
    CHECK(w.p.state == (renew_s == 0 ? TN_PMP_WAIT : TN_PMP_HELD));
    if (renew_s != 0) CHECK(w.p.renew_ms == w.now_ms + renew_s * 500);
    if (renew_s != 0) CHECK(w.p.end_ms == w.now_ms + renew_s * 1000);
}

static void odd_address(size_t where, const char *hex, bool good)
{
    uint8_t data[128];
    size_t  len = tn_test_hex(data, sizeof data, PCP_OK("00001c20", "00000064"));
    begin();
    answer(PCP_HERE("00000064"));
    at(250);
    tn_test_hex(data + where, 8, hex);
    CHECK(from(GATEWAY, data, len));
    CHECK(w.p.state == (good ? TN_PMP_HELD : TN_PMP_WAIT));
}

static void grants(void)
{
    granted("00000000", 0);
    granted("0000003b", 0);
    granted("0000003c", 60);
    granted("00001c1f", 7199);
    granted("00001c20", 7200);
    granted("00001c21", 7200);
    granted("ffffffff", 7200);
    odd_address(42, "0000", false);
    odd_address(42, "0001", true);
    odd_address(56, "00000000", false);
    odd_address(56, "7f000001", false);
    odd_address(56, "e0000001", false);
    odd_address(56, "ffffffff", false);
    odd_address(56, "01000000", true);
    odd_address(56, "0a000001", true);
    odd_address(54, "0000", false);         /* IPv6 */
}

/* Half of the life: the same again, and the same port. */
static void renewals(void)
{
    unsigned i;
    map_pcp();
    (void)tn_pmp_news(&w.p);
    for (i = 0; i < 5; i++) {
        at(600000);
        CHECK(w.count == 1 && is_sent(0, GATEWAY, ANNOUNCE));
    }
    at(599999);
    CHECK(w.count == 0);
    at(1);
    CHECK(w.count == 1 && is_sent(0, GATEWAY, MAP_HEAD NONCE "11000000a2a9c351" TEN0 "ffff00000000"));
    answer(PCP_OK("00001c20", "00000e74"));
    turn();
    CHECK(w.p.state == TN_PMP_HELD && tn_pmp_news(&w.p) == 0 && is_external("198.51.100.7:50001"));
    CHECK(w.p.end_ms == w.now_ms + 7200000);
}

/* The gateway is gone: the mapping stays true until its end. */
static void fading(void)
{
    uint64_t end_ms;
    unsigned i;
    map_pmp(0);
    (void)tn_pmp_news(&w.p);
    end_ms = w.p.end_ms;
    for (i = 0; i < 2000 && w.now_ms < end_ms; i++) {
        CHECK(is_external("198.51.100.7:50000") && (tn_pmp_news(&w.p) & TN_PMP_NEWS_MAPPING) == 0);
        w.now_ms = tn_pmp_deadline(&w.p);
        turn();
    }
    CHECK(i > 10 && i < 200 && w.now_ms == end_ms && is_external(NULL));
    CHECK((tn_pmp_news(&w.p) & TN_PMP_NEWS_MAPPING) != 0);
    CHECK((tn_pmp_services(&w.p) & TN_PMP_HAS_PMP) == 0);
}

static void epoch(uint32_t epoch_s, bool rebooted)
{
    uint8_t data[16];
    size_t  len = tn_test_hex(data, sizeof data, PMP_HERE("00000000"));
    map_pmp(0);
    (void)tn_pmp_news(&w.p);
    at(600000);
    CHECK(w.count == 1 && is_sent(0, GATEWAY, "0000"));
    tn_put_u32be(data + 4, epoch_s);
    CHECK(from(GATEWAY, data, len));
    CHECK(w.p.state == (rebooted ? TN_PMP_MAP : TN_PMP_HELD));
    turn();
    CHECK(w.count == (rebooted ? 2u : 0u) && is_external("198.51.100.7:50000"));
    if (!rebooted) return;
    CHECK(is_sent(1, GATEWAY, "00010000a2a9c35000001c20"));
    if ((epoch_s & 1) == 0) {               /* it has the port again */
        answer(PMP_OK("00001c20", "00000003"));
        answer(PMP_HERE("00000003"));
        CHECK(w.p.state == TN_PMP_HELD && tn_pmp_news(&w.p) == 0);
        at(500000);
        CHECK(is_external("198.51.100.7:50000"));
    } else {                                /* it has not, and we believe it in 5 s */
        for (len = 0; len < 20; len++) at(250);
        CHECK(is_external(NULL) && tn_pmp_news(&w.p) == TN_PMP_NEWS_MAPPING);
    }
}

/* 100 s, and 600 s later: at least 100 + 600 * 7 / 8 - 2 = 623 s. */
static void reboots(void)
{
    epoch(700, false);
    epoch(624, false);
    epoch(623, false);
    epoch(622, true);
    epoch(3, true);
    epoch(0, true);
    epoch(0x7fffffff, false);
}

static void address_changes(void)
{
    map_pmp(0);
    (void)tn_pmp_news(&w.p);
    at(600000);
    answer("00800000" "000002bc" "c6336409");
    turn();
    CHECK(w.count == 0 && w.p.state == TN_PMP_HELD && is_external("198.51.100.9:50000"));
    CHECK(tn_pmp_news(&w.p) == TN_PMP_NEWS_MAPPING);
    at(600000);
    answer("00800000" "00000514" "00000000");
    CHECK(is_external("198.51.100.9:50000"));
}

#define GONE_PCP "0201000000000000" TEN0 "ffffc0a80114" NONCE "11000000a2a90000" TEN0 "ffff00000000"

static void network_changes(void)
{
    map_pcp();
    (void)tn_pmp_news(&w.p);
    network("192.168.1.1:0", "192.168.1.20:41641");
    turn();
    CHECK(w.count == 0 && tn_pmp_news(&w.p) == 0);
    network("192.168.1.1:0", "192.168.1.20:41642");     /* another port: gives back */
    CHECK(is_external(NULL) && tn_pmp_news(&w.p) == TN_PMP_NEWS_MAPPING);
    turn();
    CHECK(w.count >= 3 && is_sent(0, GATEWAY, GONE_PCP) && is_sent(1, GATEWAY, ANNOUNCE));
    CHECK(w.p.port == 41642);
    map_pcp();
    network("192.168.1.2:0", "192.168.1.20:41641");
    CHECK(is_external(NULL) && tn_pmp_services(&w.p) == 0);
    CHECK(tn_pmp_news(&w.p) == (TN_PMP_NEWS_MAPPING | TN_PMP_NEWS_REPORT));
    turn();
    CHECK(w.count >= 2 && is_sent(0, "192.168.1.2:5351", ANNOUNCE));
    network("192.168.1.2:0", "192.168.1.21:41641");
    turn();
    CHECK(w.count >= 2 && w.sent[0][23] == 21);
    map_pcp();
    tn_pmp_network(&w.p, NULL, NULL, luck, w.now_ms);
    turn();
    CHECK(w.count == 0 && is_external(NULL) && w.p.state == TN_PMP_IDLE);
}

static void releases(void)
{
    map_pcp();
    tn_pmp_release(&w.p, w.now_ms);
    CHECK(is_external(NULL) && tn_pmp_deadline(&w.p) == 0);
    turn();
    CHECK(w.count == 1 && is_sent(0, GATEWAY, GONE_PCP) && w.p.state == TN_PMP_IDLE);
    tn_pmp_release(&w.p, w.now_ms);
    turn();
    CHECK(w.count == 0);
    map_pmp(1);
    network("192.168.1.1:0", "192.168.1.20:41642");     /* two wishes before a step */
    tn_pmp_release(&w.p, w.now_ms);
    turn();
    CHECK(w.count == 1 && is_sent(0, GATEWAY, "00010000a2a9000000000000"));
    CHECK(w.p.state == TN_PMP_IDLE);
    map_pmp(1);
    tn_pmp_release(&w.p, w.now_ms);
    network("192.168.1.1:0", "192.168.1.20:41641");
    turn();
    CHECK(w.count >= 3 && is_sent(0, GATEWAY, "00010000a2a9000000000000"));
    CHECK(w.p.state == TN_PMP_PROBE);
    begin();                                /* nothing to give back */
    tn_pmp_release(&w.p, w.now_ms);
    turn();
    CHECK(w.count == 0 && w.p.state == TN_PMP_IDLE);
}

/* "No" of one leads to the next. */
static void refusals(void)
{
    begin();
    answer(PCP_HERE("00000064"));
    answer(PMP_HERE("00000064"));
    at(250);
    answer("0281000c" "0000001e" "00000064" TEN0 "0000" NONCE "11000000" "a2a9" "0000" TEN0 "ffff" "00000000");
    turn();
    CHECK(w.count == 2 && is_sent(1, GATEWAY, MAP_PMP));
    answer("00810002" "00000064" "a2a9" "0000" "00000000");
    turn();
    CHECK(w.count == 0 && w.p.state == TN_PMP_WAIT);
    begin();                                /* no address: no WAN just now */
    answer("00800003" "00000064" "00000000");
    answer("02800002" "0000001e" "00000064" TEN0 "0000");
    at(250);
    CHECK(tn_pmp_services(&w.p) == TN_PMP_PROBED && w.p.state == TN_PMP_WAIT);
    begin();
    answer(PMP_HERE("00000064"));
    at(250);
    answer("00800003" "00000064");          /* and without the address field */
    CHECK(w.p.state == TN_PMP_WAIT);
}

#if TAILNET_UPNP
/* ---- UPnP ---- */

static const char found[] =
    "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n"
    "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
    "USN: uuid:8a2c::urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nEXT:\r\n"
    "SERVER: Debian/12 UPnP/1.1 MiniUPnPd/2.3.1\r\n"
    "Location: http://192.168.1.1:5000/rootDesc.xml\r\nOPT: \"http://schemas.upnp.org/upnp/1/0/\"\r\n\r\n";

#define SERVICE(type, url)                                                             \
    "<service><serviceType>urn:schemas-upnp-org:service:" type "</serviceType>\r\n"    \
    "<serviceId>urn:upnp-org:serviceId:X</serviceId><SCPDURL>/x.xml</SCPDURL>"         \
    "<controlURL>" url "</controlURL>\n<eventSubURL>/evt/X</eventSubURL></service>"
#define DESCRIPTION(services)                                                          \
    "<?xml version=\"1.0\"?>\r\n<root xmlns=\"urn:schemas-upnp-org:device-1-0\" configId=\"1\">" \
    "<device><!-- serviceType --><friendlyName>a<b/>c</friendlyName><serviceList>"     \
    SERVICE("Layer3Forwarding:1", "/ctl/L3F") services "</serviceList></device></root>\r\n"
#define BOTH DESCRIPTION(SERVICE("WANIPConnection:2", "/ctl/IPConn") SERVICE("WANPPPConnection:1", "ctl/PPP"))
#define ANSWER(body) "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\n\r\n" body
#define SOAP(body) "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"x\"><s:Body>" body "</s:Body></s:Envelope>"
#define ADDRESS(ip) ANSWER(SOAP("<u:GetExternalIPAddressResponse xmlns:u=\"x\"><NewExternalIPAddress>" ip \
                                "</NewExternalIPAddress></u:GetExternalIPAddressResponse>"))
#define ADDED ANSWER(SOAP("<u:AddPortMappingResponse xmlns:u=\"x\"/>"))
#define FAULT(code) "HTTP/1.1 500 Internal Server Error\r\n\r\n" SOAP("<s:Fault><detail><UPnPError>"  \
                    "<errorCode>" code "</errorCode><errorDescription>x</errorDescription></UPnPError>" \
                    "</detail></s:Fault>")

static int cut;                             /* 0: whole, 1: byte by byte, 2: random */

/* An answer to the open request; is it enough before its end? */
static bool http(const char *text)
{
    size_t len = strlen(text), done = 0;
    CHECK(tn_pmp_http_wanted(&w.p));
    while (done < len) {
        size_t   n = cut == 0 ? len : cut == 1 ? 1 : 1 + tn_test_random() % 40;
        uint8_t *piece;
        bool     enough;
        if (n > len - done) n = len - done;
        piece = (uint8_t *)malloc(n);
        memcpy(piece, text + done, n);
        enough = tn_pmp_http_input(&w.p, piece, n, w.now_ms);
        free(piece);
        CHECK(enough == !tn_pmp_http_wanted(&w.p));
        if (enough) return true;
        done += n;
    }
    return false;
}

/* The request as a text; every window of it must be the same. */
static const char *request(void)
{
    static char text[2048];
    char        part[2048];
    tn_wr       out;
    size_t      total, skip;
    tn_wr_over(&out, text, sizeof text - 1);
    tn_pmp_http_request(&w.p, &out);
    CHECK(tn_wr_ok(&out));
    total       = tn_wr_len(&out);
    text[total] = '\0';
    for (skip = 0; skip < total; skip += 97) {
        tn_wr_window(&out, part, 100, skip);
        tn_pmp_http_request(&w.p, &out);
        CHECK(out.total == total && memcmp(part, text + skip, tn_wr_len(&out)) == 0);
    }
    return text;
}

static bool asks(const char *text) { return w.http == 1 && strstr(request(), text) != NULL; }

static void search(const char *source, const char *text)
{
    CHECK(from(source, (const uint8_t *)text, strlen(text)));
}

/* Up to the description's request. */
static void upnp_begin(void)
{
    tailnet_addr to = addr("192.168.1.1:5000");
    begin();
    search("192.168.1.1:1900", found);
    at(250);
    CHECK(w.count == 0 && asks("GET /rootDesc.xml HTTP/1.1\r\nHost: 192.168.1.1:5000\r\n"));
    CHECK(tn_addr_same(&w.to[0], &to));
    CHECK(tn_pmp_services(&w.p) == (TN_PMP_PROBED | TN_PMP_HAS_UPNP));
}

static void upnp_to_add(void)
{
    upnp_begin();
    CHECK(http(ANSWER(BOTH)));
    turn();
    CHECK(asks("POST /ctl/IPConn HTTP/1.1\r\n"));
    CHECK(asks("SOAPAction: \"urn:schemas-upnp-org:service:WANIPConnection:2#GetExternalIPAddress\"\r\n"));
    CHECK(http(ADDRESS("198.51.100.7")));
    turn();
    CHECK(asks("#AddPortMapping\"\r\n") && is_external(NULL));
}

static void upnp_held(void)
{
    upnp_to_add();
    CHECK(asks("<NewExternalPort>41641</NewExternalPort>"));
    CHECK(asks("<NewInternalPort>41641</NewInternalPort><NewInternalClient>192.168.1.20</"));
    CHECK(asks("<NewLeaseDuration>7200</NewLeaseDuration>"));
    CHECK(http(ADDED));
    turn();
    CHECK(w.http == 0 && w.p.state == TN_PMP_HELD && is_external("198.51.100.7:41641"));
    CHECK(tn_pmp_news(&w.p) == (TN_PMP_NEWS_MAPPING | TN_PMP_NEWS_REPORT));
}

static void upnp_maps(void)
{
    int i;
    for (cut = 0; cut < 2; cut++) upnp_held();
    for (i = 0; i < 50; i++) upnp_held();
    cut = 0;
}

/* The search goes to the gateway and to everybody; what is no gateway's answer
 * from the gateway, or leads elsewhere, is dropped. */
static void upnp_search(void)
{
    static const char *const bad[] = {
        "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:MediaServer:1\r\n"
        "Location: http://192.168.1.1:8200/rootDesc.xml\r\n\r\n",
        "HTTP/1.1 200 OK\r\nLocation: http://192.168.1.2:5000/rootDesc.xml\r\n"
        "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nLocation: /rootDesc.xml\r\n"
        "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nLocation: http://gateway:5000/rootDesc.xml\r\n"
        "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nLocation: http://192.168.1.1:0/rootDesc.xml\r\n"
        "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nLocation: http://192.168.1.1:5000/"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"
        "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    };
    static const char short_form[] =
        "HTTP/1.1 200 OK\nlocation:http://192.168.1.1\nst:urn:schemas-upnp-org:device:InternetGatewayDevice:2\n";
    size_t i;
    begin();
    CHECK(w.count == 4 && memcmp(w.sent[2], w.sent[3], w.len[2]) == 0);
    CHECK(memcmp(w.sent[2], "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n", 49) == 0);
    CHECK(w.to[2].port == 1900 && memcmp(w.to[2].ip, w.gateway.ip, 4) == 0);
    CHECK(w.to[3].port == 1900 && w.to[3].ip[0] == 239 && w.to[3].ip[3] == 250);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        search("192.168.1.1:1900", bad[i]);
        CHECK((w.p.seen & TN_PMP_HAS_UPNP) == 0);
    }
    CHECK(!from("192.168.1.2:1900", (const uint8_t *)found, strlen(found)));
    for (i = 0; i < 12; i++) CHECK(!from("192.168.1.1:1900", (const uint8_t *)found, i));
    for (i = 12; i < 220; i++) {
        CHECK(from("192.168.1.1:1900", (const uint8_t *)found, i));
        CHECK((w.p.seen & TN_PMP_HAS_UPNP) == 0);
    }
    search("192.168.1.1:34567", short_form);
    at(250);
    CHECK(asks("GET / HTTP/1.1\r\nHost: 192.168.1.1:80\r\n"));
}

/* A gateway that takes its time; but nothing begins by itself. */
static void upnp_late(void)
{
    begin();
    at(250);
    CHECK(w.p.state == TN_PMP_WAIT && tn_pmp_services(&w.p) == TN_PMP_PROBED);
    w.now_ms += 900;
    search("192.168.1.1:1900", found);
    CHECK(tn_pmp_services(&w.p) == (TN_PMP_PROBED | TN_PMP_HAS_UPNP));
    turn();
    CHECK(asks("GET /rootDesc.xml"));
    tn_pmp_http_end(&w.p, w.now_ms);
    CHECK(w.p.state == TN_PMP_WAIT);
    search("192.168.1.1:1900", found);
    turn();
    CHECK(w.http == 0 && w.p.state == TN_PMP_WAIT);
    map_pcp();
    search("192.168.1.1:1900", found);
    turn();
    CHECK(w.http == 0 && w.p.state == TN_PMP_HELD);
}

static void description(const char *text, bool good, const char *path)
{
    upnp_begin();
    (void)http(text);
    CHECK(tn_pmp_http_wanted(&w.p) == (w.p.state == TN_PMP_GET));
    tn_pmp_http_end(&w.p, w.now_ms);
    CHECK(w.p.state == (good ? TN_PMP_ASK : TN_PMP_WAIT));
    if (!good) return;
    turn();
    CHECK(asks(path));
}

#define ONE(type, url) ANSWER(DESCRIPTION(SERVICE(type, url)))

static void upnp_descriptions(void)
{
    for (cut = 0; cut < 3; cut++) {
        description(ONE("WANIPConnection:1", "/a"), true, "POST /a HTTP/1.1\r\nHost: 192.168.1.1:5000\r\n");
        description(ONE("WANPPPConnection:1", "a"), true, "POST /a HTTP/1.1\r\n");
        description(ONE("WANPPPConnection:1", "a"), true, "\"urn:schemas-upnp-org:service:WANPPPConnection:1#Get");
        description(ONE("WANIPConnection:1", " \r\n /a?b=c "), true, "POST /a?b=c HTTP/1.1\r\n");
        description(ONE("WANIPConnection:1", "http://192.168.1.1:49152/c"), true,
                    "POST /c HTTP/1.1\r\nHost: 192.168.1.1:49152\r\n");
        description(ONE("WANIPConnection:1", "/a HTTP/1.1\r\nX: y"), true, "POST /aHTTP/1.1X:y HTTP/1.1\r\n");
        description(ONE("WANIPConnection:1", "http://192.168.1.2:5000/c"), false, "");
        description(ONE("WANIPConnection:1", "http://192.168.1.1.evil/c"), false, "");
        description(ONE("WANIPConnection:3", "/a"), false, "");
        description(ONE("WANIPConnection:", "/a"), false, "");
        description(ONE("WANIPConnection:11", "/a"), false, "");
        description(ONE("WANCommonInterfaceConfig:1", "/a"), false, "");
        description(ANSWER(""), false, "");
        description("", false, "");
        description("\r\n\r\n", false, "");
        description("HTTP/1.1 404 Not Found\r\n\r\n" BOTH, false, "");
        description("HTTP/1.1 20\r\n\r\n" BOTH, false, "");
        description("HTTP/1.1 000 No\r\n\r\n" BOTH, false, "");
        description("SPDY 200 OK\r\n\r\n" BOTH, false, "");
        description("HTTP/1.0 200 OK\n\n" BOTH, true, "POST /ctl/IPConn");
    }
    cut = 0;
}

/* A text in chunks of n bytes. */
static void chunked(size_t n)
{
    static const char body[] = BOTH;
    static char       text[8192];
    size_t            at_body, len;
    len = (size_t)sprintf(text, "HTTP/1.1 200 OK\r\nTRANSFER-Encoding:  Chunked\r\n\r\n");
    for (at_body = 0; at_body < strlen(body); at_body += n)
        len += (size_t)sprintf(text + len, "%X\r\n%.*s\r\n",
                               (unsigned)(n < strlen(body) - at_body ? n : strlen(body) - at_body),
                               (int)n, body + at_body);
    sprintf(text + len, "0\r\n\r\n");
    description(text, true, "POST /ctl/IPConn HTTP/1.1\r\n");
}

static void upnp_chunks(void)
{
    size_t n;
    for (cut = 0; cut < 3; cut++)
        for (n = 3; n < 60; n += 7) chunked(n);
    cut = 0;
    chunked(5000);
}

/* Paths at the edge of the space: 126 bytes fit. */
static void upnp_long_path(void)
{
    char     url[200], text[2048];
    unsigned n;
    for (n = 120; n < 135; n++) {
        memset(url, 'x', n);
        url[0] = '/';
        url[n] = '\0';
        sprintf(text, ONE("WANIPConnection:1", "%s"), url);
        description(text, n <= 126, url);
        url[0] = 'x';
        sprintf(text, ONE("WANIPConnection:1", "%s"), url);
        description(text, n <= 126, url);
    }
}

static void endless(const char *begin_text, const char *more)
{
    unsigned i;
    upnp_begin();
    CHECK(!http(begin_text));
    for (i = 0; i < 20000; i++) CHECK(!http(more));
    at(4999);
    CHECK(tn_pmp_http_wanted(&w.p));
    CHECK(!http(more));
    at(1);
    CHECK(!tn_pmp_http_wanted(&w.p) && w.p.state == TN_PMP_WAIT && w.http == 0);
    CHECK(tn_pmp_http_input(&w.p, (const uint8_t *)"x", 1, w.now_ms));
}

/* Input without end: bounded memory, and five seconds. */
static void upnp_endless(void)
{
    endless("HTTP/1.1 200 OK\r\n", "X-Header: abcdefghijklmnopqrstuvwxyz");
    endless("HTTP/1.1 200 OK\r\n", "X-Header: abc\r\n");
    endless(ANSWER(""), "<aaaaaaaaaaaaaaaaaaaaaaaaaa");
    endless(ANSWER(""), "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    endless(ANSWER("<controlURL>"), "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    endless(ANSWER(""), SERVICE("WANIPConnection:9", "/a"));
    endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "fffffffffffffffff");
}

/* The line that is not connected has no address: the other service, next time. */
static void other_line(const char *text)
{
    upnp_begin();
    CHECK(http(ANSWER(BOTH)));
    turn();
    (void)http(text);
    tn_pmp_http_end(&w.p, w.now_ms);
    CHECK(w.p.state == TN_PMP_WAIT && w.p.nth == 1);
    at(30000);
    search("192.168.1.1:1900", found);
    at(250);
    CHECK(http(ANSWER(BOTH)));
    turn();
    CHECK(asks("POST /ctl/PPP HTTP/1.1\r\n") && asks("WANPPPConnection:1#Get"));
    (void)http(text);
    at(60000);
    search("192.168.1.1:1900", found);
    at(250);
    CHECK(!http(ANSWER(BOTH)));             /* there is no third */
    tn_pmp_http_end(&w.p, w.now_ms);
    CHECK(w.p.nth == 0 && w.p.state == TN_PMP_WAIT);
}

static void upnp_other_line(void)
{
    other_line(ADDRESS("0.0.0.0"));
    other_line(ADDRESS(""));
    other_line(ADDRESS("198.51.100.256"));
    other_line(ADDRESS("2001:db8::1"));
    other_line(FAULT("501"));
}

static void upnp_conflicts(void)
{
    upnp_to_add();
    CHECK(http(FAULT("718")));
    turn();
    CHECK(asks("<NewExternalPort>17156</NewExternalPort>"));      /* 0x0304 | 0x4000 */
    CHECK(http(FAULT("725")));
    turn();
    CHECK(asks("<NewExternalPort>17156</NewExternalPort>") && asks("<NewLeaseDuration>0</"));
    CHECK(http(ADDED) && is_external("198.51.100.7:17156"));
    CHECK(w.p.end_ms == w.now_ms + 7200000);
    upnp_to_add();
    CHECK(http(FAULT("718")));
    turn();
    CHECK(http(FAULT("718")));
    turn();
    CHECK(http(FAULT("718")));
    turn();
    CHECK(w.http == 1 && http(FAULT("718")));
    CHECK(w.p.state == TN_PMP_WAIT);
    upnp_to_add();
    CHECK(!http("HTTP/1.1 500 No\r\n\r\n" SOAP("")));
    tn_pmp_http_end(&w.p, w.now_ms);
    CHECK(w.p.state == TN_PMP_WAIT);
    upnp_to_add();
    at(5000);
    CHECK(w.p.state == TN_PMP_WAIT && !tn_pmp_http_wanted(&w.p));
}

static void upnp_renews(void)
{
    unsigned i;
    upnp_held();
    for (i = 0; i < 5; i++) {
        at(600000);
        CHECK(w.count == 0 && w.http == 0 && w.p.state == TN_PMP_HELD);
    }
    at(600000);
    CHECK(w.count == 0 && asks("POST /ctl/IPConn") && asks("#GetExternalIPAddress"));
    CHECK(http(ADDRESS("198.51.100.8")));
    turn();
    CHECK(asks("<NewExternalPort>41641</") && is_external("198.51.100.7:41641"));
    CHECK(http(ADDED) && is_external("198.51.100.8:41641"));
    CHECK(tn_pmp_news(&w.p) == TN_PMP_NEWS_MAPPING);
    at(1);
    for (i = 0; i < 6; i++) at(600000);
    CHECK(w.http == 1);
    tn_pmp_http_end(&w.p, w.now_ms);        /* no slot: asked for again, and still mapped */
    turn();
    CHECK(w.p.state == TN_PMP_WAIT && is_external("198.51.100.8:41641"));
    at(30000);
    CHECK(w.count == 4);
}

static void upnp_releases(void)
{
    upnp_held();
    tn_pmp_release(&w.p, w.now_ms);
    turn();
    CHECK(asks("#DeletePortMapping\"\r\n") && asks("<NewExternalPort>41641</") && is_external(NULL));
    CHECK(http(ANSWER("")) && w.p.state == TN_PMP_IDLE);
    upnp_held();
    tn_pmp_release(&w.p, w.now_ms);
    turn();
    tn_pmp_http_end(&w.p, w.now_ms);
    CHECK(w.p.state == TN_PMP_IDLE);
    upnp_held();
    network("192.168.1.1:0", "192.168.1.20:41642");
    turn();
    CHECK(asks("#DeletePortMapping\"\r\n") && asks("<NewExternalPort>41641</"));
    at(5000);
    CHECK(w.count == 4 && w.p.port == 41642 && w.p.state == TN_PMP_PROBE);
    tn_pmp_release(&w.p, w.now_ms);
    CHECK(w.p.state == TN_PMP_IDLE);
}

/* PCP and NAT-PMP say no, UPnP yes. */
static void upnp_is_last(void)
{
    begin();
    answer(PMP_HERE("00000064"));
    search("192.168.1.1:1900", found);
    search("192.168.1.1:1900", "HTTP/1.1 200 OK\r\nLocation: http://192.168.1.1:1/second\r\n"
           "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n");
    at(250);
    CHECK(w.count == 2 && w.http == 0);
    answer("00810002" "00000064" "a2a9" "0000" "00000000");
    turn();
    CHECK(asks("GET /rootDesc.xml"));
}
#endif

int main(void)
{
    TEST(vectors);
    TEST(without_network);
    TEST(map_pcp);
    TEST(two_answers);
    TEST(repeats);
    TEST(back_off);
    TEST(truncations);
    TEST(forged);
    TEST(grants);
    TEST(renewals);
    TEST(fading);
    TEST(reboots);
    TEST(address_changes);
    TEST(network_changes);
    TEST(releases);
    TEST(refusals);
#if TAILNET_UPNP
    TEST(upnp_maps);
    TEST(upnp_search);
    TEST(upnp_late);
    TEST(upnp_descriptions);
    TEST(upnp_chunks);
    TEST(upnp_long_path);
    TEST(upnp_endless);
    TEST(upnp_other_line);
    TEST(upnp_conflicts);
    TEST(upnp_renews);
    TEST(upnp_releases);
    TEST(upnp_is_last);
#endif
    return tn_test_end();
}
