#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

static uint8_t a_private[32], a_public[32], b_private[32], b_public[32], k[32], tx[12];

static void load_keys(const char *text)
{
    uint8_t want[32];
    tn_test_value(text, "A_private", a_private, 32);
    tn_test_value(text, "A_public", a_public, 32);
    tn_test_value(text, "B_private", b_private, 32);
    tn_test_value(text, "B_public", b_public, 32);
    tn_test_value(text, "shared_K", want, 32);
    tn_test_hex(tx, 12, "0102030405060708090a0b0c");
    CHECK(tn_cr_box_key(k, a_private, b_public));
    CHECK_BYTES(k, want, 32);
    CHECK(tn_cr_box_key(k, b_private, a_public));
    CHECK_BYTES(k, want, 32);
}

/* Copies an exact piece of memory, so that a read behind it is noticed. */
static uint8_t *exactly(const uint8_t *src, size_t len)
{
    uint8_t *p = (uint8_t *)malloc(len == 0 ? 1 : len);
    if (p != NULL && len != 0) memcpy(p, src, len);
    return p;
}

/* The value of a line and no more of it (the next line may begin with hex digits). */
static size_t value(const char *text, const char *name, uint8_t *dst, size_t cap)
{
    char        line[2048], key[32];
    const char *at;
    size_t      len;
    snprintf(key, sizeof key, "\n%s: ", name);
    at = strstr(text, key);
    if (at == NULL) return 0;
    at += strlen(key);
    len = strcspn(at, "\n");
    if (len >= sizeof line) return 0;
    memcpy(line, at, len);
    line[len] = '\0';
    return tn_test_hex(dst, cap, line);
}

/* Every case of part 1 of the file: opens to its text, and the text seals to it. */
static void recorded(void)
{
    char   *text = tn_test_file("disco-packets.txt"), *end, *at;
    uint8_t nonce[24], opened[512], sealed[600], dst[600];
    int     cases = 0;

    load_keys(text);
    end = strstr(text, "# part 2");
    CHECK(end != NULL);
    if (end != NULL) *end = '\0';
    for (at = strstr(text, "\ncase: "); at != NULL; at = strstr(at + 1, "\ncase: "), cases++) {
        bool           from_a  = strncmp(strchr(at + 1, '\n') - 8, "(A to B)", 8) == 0;
        const uint8_t *my      = from_a ? a_public : b_public;
        size_t         n_open  = value(at, "opened", opened, sizeof opened);
        size_t         n_seal  = value(at, "sealed", sealed, sizeof sealed), len = 99, i;
        uint8_t       *packet  = exactly(sealed, n_seal), *plain = NULL;
        tn_wr          w;

        value(at, "nonce", nonce, 24);
        tn_disco_begin(&w, dst, sizeof dst, my, nonce);
        tn_wr_bytes(&w, opened, n_open);
        CHECK(tn_disco_finish(&w, k) == n_seal);
        CHECK_BYTES(dst, sealed, n_seal);
        CHECK(tn_disco_sender(packet, n_seal) != NULL);
        CHECK_BYTES(tn_disco_sender(packet, n_seal), my, 32);
        CHECK(tn_disco_open(k, packet, n_seal, &plain, &len) && len == n_open);
        if (plain != NULL) CHECK_BYTES(plain, opened, n_open);
        free(packet);
        for (i = 0; i < n_seal; i++) {
            packet = exactly(sealed, i);
            CHECK(!tn_disco_open(k, packet, i, &plain, &len));
            free(packet);
        }
        for (i = TN_DISCO_HEAD * 8; i < 8 * n_seal; i++) {
            packet = exactly(sealed, n_seal);
            packet[i / 8] ^= (uint8_t)(1 << i % 8);
            CHECK(!tn_disco_open(k, packet, n_seal, &plain, &len));
            packet[i / 8] ^= (uint8_t)(1 << i % 8);
            CHECK_BYTES(packet, sealed, n_seal);
            free(packet);
        }
    }
    CHECK(cases == 13);
    free(text);
}

/* Part 2: what was exchanged with real nodes opens, and is what it says. */
static void live(void)
{
    char   *text = tn_test_file("disco-packets.txt"), *at = strstr(text, "# part 2");
    uint8_t mine[32], c[32], d[32], keys[2][32], opened[256], sealed[300];
    int     cases = 0;

    value(at, "our_disco_private", mine, 32);
    value(at, "gol2c_disco_public", c, 32);
    value(at, "gol2d_disco_public", d, 32);
    CHECK(tn_cr_box_key(keys[0], mine, c) && tn_cr_box_key(keys[1], mine, d));
    for (at = strstr(at, "\ncase: "); at != NULL; at = strstr(at + 1, "\ncase: "), cases++) {
        size_t       n_open = value(at, "opened", opened, sizeof opened), len = 0;
        size_t       n_seal = value(at, "sealed", sealed, sizeof sealed);
        uint8_t     *plain  = NULL;
        tn_disco_msg m;
        CHECK(tn_disco_open(keys[0], sealed, n_seal, &plain, &len) ||
              tn_disco_open(keys[1], sealed, n_seal, &plain, &len));
        CHECK(len == n_open && memcmp(plain, opened, len) == 0);
        CHECK(tn_disco_parse(plain, len, &m) == TAILNET_OK);
        CHECK(m.type != TN_DISCO_PING || (n_seal == TN_DISCO_PING_LEN && m.node_key != NULL));
        CHECK(m.type != TN_DISCO_PONG || (n_seal == TN_DISCO_PONG_LEN && m.src.family == 4));
        CHECK(m.type != TN_DISCO_CALL || m.count == 1);
    }
    CHECK(cases > 15);
    free(text);
}

static uint8_t buffer[1024];

static tailnet_result parse_hex(const char *hex, tn_disco_msg *m)
{
    return tn_disco_parse(buffer, tn_test_hex(buffer, sizeof buffer, hex), m);
}

static bool is_addr(const tailnet_addr *got, const char *text)
{
    tailnet_addr want;
    return tn_addr_parse(&want, text, strlen(text)) && tn_addr_same(got, &want);
}

#define TX "0102030405060708090a0b0c"
#define NODE "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c"
#define EP4 "00000000000000000000ffffcb007107a2a9"
#define EP6 "20010db8000000000000000000000001a2a9"

static void pings(void)
{
    tn_disco_msg m;
    uint8_t      node[32], whole[64];
    tn_wr        w;

    tn_test_hex(node, 32, NODE);
    CHECK(parse_hex("0100" TX NODE, &m) == TAILNET_OK && m.type == TN_DISCO_PING);
    CHECK(m.tx != NULL && memcmp(m.tx, tx, 12) == 0 && m.node_key != NULL);
    CHECK_BYTES(m.node_key, node, 32);
    CHECK(parse_hex("0107" TX, &m) == TAILNET_OK && m.node_key == NULL);     /* any version */
    CHECK(parse_hex("0100" TX NODE "00000000", &m) == TAILNET_OK && m.node_key != NULL);
    CHECK(parse_hex("0100" TX "0000", &m) == TAILNET_OK && m.node_key == NULL);
    CHECK(parse_hex("01000102030405060708090a0b", &m) == TAILNET_ERR_MALFORMED);
    CHECK(parse_hex("", &m) == TAILNET_ERR_MALFORMED);
    CHECK(parse_hex("01", &m) == TAILNET_ERR_MALFORMED);
    tn_wr_over(&w, whole, sizeof whole);
    tn_disco_wr_ping(&w, tx, node, 3);
    CHECK(tn_wr_len(&w) == 49);
    tn_test_hex(buffer, sizeof buffer, "0100" TX NODE "000000");
    CHECK_BYTES(whole, buffer, 49);
}

static void pongs(void)
{
    tn_disco_msg m;
    uint8_t      whole[64], want[64];
    tailnet_addr src;
    tn_wr        w;

    CHECK(parse_hex("0200" TX EP4, &m) == TAILNET_OK && is_addr(&m.src, "203.0.113.7:41641"));
    CHECK(parse_hex("0205" TX EP6 "ff", &m) == TAILNET_OK && is_addr(&m.src, "[2001:db8::1]:41641"));
    CHECK(parse_hex("0200" TX "00000000000000000000ffffcb007107a2", &m) == TAILNET_ERR_MALFORMED);
    tn_disco_relay_addr(&src, 12);
    tn_wr_over(&w, whole, sizeof whole);
    tn_disco_wr_pong(&w, tx, &src);
    CHECK(tn_wr_len(&w) == 32);
    tn_test_hex(want, sizeof want, "0200" TX "00000000000000000000ffff7f030328000c");
    CHECK_BYTES(whole, want, 32);
    CHECK(tn_addr_parse(&src, "[2001:db8::1]:41641", 19));
    tn_wr_over(&w, whole, sizeof whole);
    tn_disco_wr_pong(&w, tx, &src);
    tn_test_hex(want, sizeof want, "0200" TX EP6);
    CHECK_BYTES(whole, want, 32);
}

static void calls(void)
{
    tn_disco_msg m;
    tailnet_addr list[2], got;
    uint8_t      whole[64];
    tn_wr        w;

    CHECK(parse_hex("0300" EP4 EP6, &m) == TAILNET_OK && m.count == 2);
    CHECK(tn_disco_endpoint(&m, 0, &got) && is_addr(&got, "203.0.113.7:41641"));
    CHECK(tn_disco_endpoint(&m, 1, &got) && is_addr(&got, "[2001:db8::1]:41641"));
    CHECK(!tn_disco_endpoint(&m, 2, &got));
    CHECK(parse_hex("0300", &m) == TAILNET_OK && m.count == 0);
    CHECK(parse_hex("0301" EP4, &m) == TAILNET_OK && m.count == 0);
    CHECK(parse_hex("0300" "0000000000000000000000000000000000", &m) == TAILNET_OK && m.count == 0);
    CHECK(parse_hex("0300" EP4 "00", &m) == TAILNET_OK && m.count == 0);
    tn_addr_parse(&list[0], "203.0.113.7:41641", 17);
    tn_addr_parse(&list[1], "[2001:db8::1]:41641", 19);
    tn_wr_over(&w, whole, sizeof whole);
    tn_disco_wr_call(&w, list, 2);
    CHECK(tn_wr_len(&w) == 38);
    tn_test_hex(buffer, sizeof buffer, "0300" EP4 EP6);
    CHECK_BYTES(whole, buffer, 38);
}

static void others(void)
{
    tn_disco_msg m;
    unsigned     type;
    uint8_t      plain[80], small[TN_DISCO_PLAIN + 13];
    tn_wr        w;
    memset(plain, 0, sizeof plain);
    for (type = 0; type < 256; type++) {
        plain[0] = (uint8_t)type;
        CHECK((tn_disco_parse(plain, sizeof plain, &m) == TAILNET_ERR_UNSUPPORTED) ==
              (type < 1 || type > 3));
    }
    tn_disco_begin(&w, small, sizeof small, a_public, plain);
    tn_disco_wr_ping(&w, tx, NULL, 0);      /* one byte too long */
    CHECK(tn_disco_finish(&w, k) == 0);
}

static tn_disco_class classify(const char *hex, size_t more)
{
    uint8_t       *p;
    size_t         n = tn_test_hex(buffer, sizeof buffer, hex);
    tn_disco_class c;
    memset(buffer + n, 0, more);
    p = exactly(buffer, n + more);
    c = tn_disco_classify(p, n + more);
    free(p);
    return c;
}

#define INITIATION "010000000102030405060708"
#define PING_HEAD "5453f09f92ac64b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d48466"
#define STUN "0101000c2112a4420102030405060708090a0b0c00200008000183bbea12d545"

/* Of a peer relay: not spoken; WireGuard finds no message of its own in it. */
static void through_a_peer_relay(void)
{
    static const char *const text[7] = {
        "00807a110001c800" PING_HEAD, "00007a110001c800" PING_HEAD, "00007a110001c800" INITIATION,
        "00007a120001c800" INITIATION, "01007a120001c800" INITIATION,
        "00007a120001c801" INITIATION, "40007a120001c800" INITIATION
    };
    size_t i;
    for (i = 0; i < 7; i++) CHECK(classify(text[i], 136) == TN_DISCO_IS_WG);
}

static void classes(void)
{
    size_t i;
    CHECK(classify(STUN, 0) == TN_DISCO_IS_STUN);
    CHECK(classify("0111000c2112a4420102030405060708090a0b0c00200008000183bbea12d545", 0) ==
          TN_DISCO_IS_WG);
    CHECK(classify("0101000c2112a4420102030405060708090a0b", 0) == TN_DISCO_IS_WG);
    CHECK(classify(PING_HEAD, 86) == TN_DISCO_IS_DISCO);
    CHECK(classify(PING_HEAD, 0) == TN_DISCO_IS_DISCO);
    tn_test_hex(buffer, sizeof buffer, PING_HEAD);
    CHECK(tn_disco_classify(buffer, 37) == TN_DISCO_IS_WG && tn_disco_sender(buffer, 77) == NULL);
    CHECK(classify(INITIATION, 136) == TN_DISCO_IS_WG);
    CHECK(classify("ff", 0) == TN_DISCO_IS_WG);
    CHECK(classify("", 0) == TN_DISCO_IS_WG);
    for (i = 0; i < 32; i++) {
        uint8_t *p, whole[32];
        tn_test_hex(whole, 32, STUN);
        p = exactly(whole, i);
        CHECK((tn_disco_classify(p, i) == TN_DISCO_IS_STUN) == (i >= 20));
        free(p);
    }
}

int main(void)
{
    TEST(recorded);
    TEST(live);
    TEST(pings);
    TEST(pongs);
    TEST(calls);
    TEST(others);
    TEST(classes);
    TEST(through_a_peer_relay);
    return tn_test_end();
}
