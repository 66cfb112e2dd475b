/* Text forms of keys; the saved blob, whole, damaged, cut, and two of it. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

static void fill(uint8_t *dst, size_t len)
{
    size_t i;
    for (i = 0; i < len; i++) dst[i] = (uint8_t)(tn_test_random() & 0xffu);
}

static bool parses(const char *prefix, const char *text)
{
    uint8_t key[32];
    bool    ok = tn_key_parse(key, prefix, text, strlen(text));
    if (!ok) CHECK(tn_is_zero(key, 32));
    return ok;
}

#define HEX_LOW  "8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f"
#define HEX_63   "f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f"
#define HEX_UP   "8F40C5ADB68F25624AE5B214EA767A6EC94D829D3D7B5E1AD1BA6F3E2138285F"
#define HEX_ZERO "0000000000000000000000000000000000000000000000000000000000000000"

static void texts_parse(void)
{
    static const char *const prefix[6] = { TN_KEY_MACHINE, TN_KEY_NODE,      TN_KEY_DISCO,
                                           TN_KEY_LOCK,    TN_KEY_CHALLENGE, TN_KEY_PRIVATE };
    uint8_t  key[32], want[32];
    char     text[100];
    unsigned i, j;
    tn_test_hex(want, 32, HEX_LOW);
    for (i = 0; i < 6; i++) {
        tn_wr w;
        snprintf(text, sizeof text, "%s%s", prefix[i], HEX_UP);
        CHECK(tn_key_parse(key, prefix[i], text, strlen(text)));
        CHECK_BYTES(key, want, 32);
        tn_wr_over(&w, text, sizeof text);
        tn_key_write(&w, prefix[i], key);
        CHECK(tn_wr_ok(&w) && tn_wr_len(&w) == strlen(prefix[i]) + 64);
        CHECK(memcmp(text + strlen(prefix[i]), HEX_LOW, 64) == 0);
        for (j = 0; j < 6; j++)
            CHECK(tn_key_parse(key, prefix[j], text, tn_wr_len(&w)) == (i == j));
        for (j = 0; j < tn_wr_len(&w); j++) CHECK(!tn_key_parse(key, prefix[i], text, j));
    }
}

static void texts_refuse(void)
{
    CHECK(parses(TN_KEY_NODE, "nodekey:" HEX_ZERO));        /* none, and legal */
    CHECK(parses(TN_KEY_LOCK, "tlpub:" HEX_LOW));
    CHECK(!parses(TN_KEY_NODE, "tlpub:" HEX_LOW));
    CHECK(!parses(TN_KEY_NODE, ""));
    CHECK(!parses(TN_KEY_NODE, HEX_LOW));
    CHECK(!parses(TN_KEY_NODE, "nodekey:"));
    CHECK(!parses(TN_KEY_NODE, "NODEKEY:" HEX_LOW));
    CHECK(!parses(TN_KEY_NODE, "nodekey:" HEX_LOW "0"));
    CHECK(!parses(TN_KEY_NODE, "nodekey:" HEX_LOW "00"));
    CHECK(!parses(TN_KEY_NODE, "nodekey: " HEX_63));
    CHECK(!parses(TN_KEY_NODE, "nodekey:g" HEX_63));
}

static void some_state(tn_key_state *s, uint32_t number)
{
    memset(s, 0, sizeof *s);
    s->number         = number;
    s->stamp_unix_ms  = 1795000000123u;
    s->newest_unix_ms = 1794999999999u;
    fill(s->machine, 192);              /* the six keys lie in a row */
    fill(s->server_id, 16);
    s->has_machine = s->has_node = s->has_trying = s->has_old = s->has_server = s->has_lock = true;
}

static bool same_state(const tn_key_state *a, const tn_key_state *b)
{
    return a->number == b->number && a->has_machine == b->has_machine &&
           a->has_node == b->has_node && a->has_trying == b->has_trying &&
           a->has_old == b->has_old && a->has_server == b->has_server &&
           a->has_lock == b->has_lock && memcmp(a->machine, b->machine, 192) == 0 &&
           memcmp(a->server_id, b->server_id, 16) == 0 && a->stamp_unix_ms == b->stamp_unix_ms &&
           a->newest_unix_ms == b->newest_unix_ms;
}

static void state_round(void)
{
    tn_key_state s, t;
    uint8_t      blob[TAILNET_STATE_SIZE];
    unsigned     which;
    CHECK(offsetof(tn_key_state, lock_seed) - offsetof(tn_key_state, machine) == 160);
    for (which = 0; which < 64; which++) {
        some_state(&s, 7 + which);
        s.has_machine = (which & 1) != 0;
        s.has_node    = (which & 2) != 0;
        s.has_trying  = (which & 4) != 0;
        s.has_old     = (which & 8) != 0;
        s.has_server  = (which & 16) != 0;
        s.has_lock    = (which & 32) != 0;
        memset(blob, 0xee, sizeof blob);
        CHECK(tn_key_state_build(&s, blob, sizeof blob) == TN_KEY_STATE_LEN);
        CHECK(blob[TN_KEY_STATE_LEN] == 0xee);
        if (!s.has_machine) memset(s.machine, 0, 32);
        if (!s.has_node)    memset(s.node, 0, 32);
        if (!s.has_trying)  memset(s.trying, 0, 32);
        if (!s.has_old)     memset(s.old_public, 0, 32);
        if (!s.has_server)  memset(s.server, 0, 32);
        if (!s.has_lock)    memset(s.lock_seed, 0, 32);
        CHECK(tn_key_state_parse(&t, blob, TN_KEY_STATE_LEN));
        CHECK(same_state(&s, &t));
        CHECK(tn_key_state_parse(&t, blob, sizeof blob));       /* a whole flash page */
        CHECK(same_state(&s, &t));
    }
}

static void state_room(void)
{
    tn_key_state s;
    uint8_t      blob[TN_KEY_STATE_LEN];
    some_state(&s, 1);
    memset(blob, 0xee, sizeof blob);
    CHECK(tn_key_state_build(&s, NULL, 0) == TN_KEY_STATE_LEN);
    CHECK(tn_key_state_build(&s, blob, sizeof blob - 1) == TN_KEY_STATE_LEN);
    CHECK(blob[0] == 0xee && blob[sizeof blob - 1] == 0xee);
    CHECK(tn_key_state_build(&s, blob, sizeof blob) == TN_KEY_STATE_LEN);
    CHECK(blob[0] == 'T');
}

/* No flipped bit and no cut gives anything but a refusal and zeroes. */
static void state_damaged(void)
{
    static const tn_key_state zero;
    tn_key_state  s, t;
    uint8_t       blob[TN_KEY_STATE_LEN];
    tailnet_bytes saved[2];
    size_t        i;
    some_state(&s, 1);
    (void)tn_key_state_build(&s, blob, sizeof blob);
    memset(saved, 0, sizeof saved);
    saved[0].data = blob;
    saved[0].size = sizeof blob;
    for (i = 0; i < 8 * sizeof blob; i++) {
        blob[i / 8] ^= (uint8_t)(1u << i % 8);
        memset(&t, 1, sizeof t);
        CHECK(!tn_key_state_parse(&t, blob, sizeof blob));
        CHECK(same_state(&t, &zero));
        CHECK(tn_key_state_choose(&t, saved) == TAILNET_ERR_MALFORMED);
        blob[i / 8] ^= (uint8_t)(1u << i % 8);
    }
    for (i = 1; i < sizeof blob; i++) {
        uint8_t *cut = (uint8_t *)malloc(i);        /* so that the sanitizer sees the end */
        memcpy(cut, blob, i);
        CHECK(!tn_key_state_parse(&t, cut, i));
        saved[0].data = cut;
        saved[0].size = i;
        CHECK(tn_key_state_choose(&t, saved) == TAILNET_ERR_MALFORMED);
        free(cut);
    }
    CHECK(!tn_key_state_parse(&t, NULL, 0));
    CHECK(tn_key_state_parse(&t, blob, sizeof blob));
}

/* A blob of a later version: other length, right checksum. */
static size_t later(uint8_t *dst, unsigned version, size_t len)
{
    tn_key_state s;
    some_state(&s, 99);
    memset(dst, 0x33, len);
    (void)tn_key_state_build(&s, dst, len);
    dst[4] = (uint8_t)(version >> 8);
    dst[5] = (uint8_t)(version & 0xffu);
    dst[6] = (uint8_t)(len >> 8);
    dst[7] = (uint8_t)(len & 0xffu);
    tn_cr_hash(dst + len - 32, dst, len - 32, NULL, 0);
    return len;
}

static void state_versions(void)
{
    tn_key_state  s, t;
    uint8_t       a[400], b[TN_KEY_STATE_LEN];
    tailnet_bytes saved[2];
    memset(saved, 0, sizeof saved);
    saved[0].data = a;
    saved[0].size = later(a, 2, 400);
    CHECK(!tn_key_state_parse(&t, a, 400));
    CHECK(tn_key_state_choose(&t, saved) == TAILNET_ERR_UNSUPPORTED);
    saved[0].size = later(a, 1, 400);           /* our version has one length */
    CHECK(tn_key_state_choose(&t, saved) == TAILNET_ERR_MALFORMED);
    saved[0].size = later(a, 0, TN_KEY_STATE_LEN);
    CHECK(tn_key_state_choose(&t, saved) == TAILNET_ERR_MALFORMED);

    saved[0].size = later(a, 2, 400);
    saved[1].data = b;                          /* damaged beside a later one */
    saved[1].size = sizeof b;
    memset(b, 0x12, sizeof b);
    CHECK(tn_key_state_choose(&t, saved) == TAILNET_ERR_UNSUPPORTED);
    some_state(&s, 3);                          /* ours beside a later one */
    (void)tn_key_state_build(&s, b, sizeof b);
    CHECK(tn_key_state_choose(&t, saved) == TAILNET_OK);
    CHECK(same_state(&s, &t));
}

static void state_choose(void)
{
    static const tn_key_state zero;
    tn_key_state  s[2], t;
    uint8_t       blob[2][TAILNET_STATE_SIZE];
    tailnet_bytes saved[2];
    unsigned      i;

    memset(saved, 0, sizeof saved);
    CHECK(tn_key_state_choose(&t, saved) == TAILNET_ERR_NO_ROUTE);
    for (i = 0; i < 2; i++) {                   /* erased flash is nothing */
        memset(blob[i], i == 0 ? 0xff : 0, sizeof blob[i]);
        saved[i].data = blob[i];
        saved[i].size = sizeof blob[i];
    }
    CHECK(tn_key_state_choose(&t, saved) == TAILNET_ERR_NO_ROUTE);
    for (i = 0; i < 2; i++) {
        some_state(&s[i], 10 + i);
        (void)tn_key_state_build(&s[i], blob[i], sizeof blob[i]);
        CHECK(tn_key_state_choose(&t, saved) == TAILNET_OK);    /* one beside an erased one */
        CHECK(same_state(&t, &s[i]));
    }
    saved[0].data = blob[1];
    saved[1].data = blob[0];
    CHECK(tn_key_state_choose(&t, saved) == TAILNET_OK && same_state(&t, &s[1]));
    blob[1][50] ^= 1;                           /* the newer one is damaged */
    CHECK(tn_key_state_choose(&t, saved) == TAILNET_OK && same_state(&t, &s[0]));
    blob[0][60] ^= 1;
    CHECK(tn_key_state_choose(&t, saved) == TAILNET_ERR_MALFORMED);
    CHECK(same_state(&t, &zero));
}

static void life(void)
{
    tn_key_state s;
    uint8_t      random[64], node[32], pub[32];
    memset(&s, 0, sizeof s);
    fill(random, sizeof random);
    tn_key_state_first(&s, random);
    CHECK(s.has_machine && s.has_node && !s.has_trying && !s.has_old);
    CHECK((s.node[0] & 7) == 0 && (s.node[31] & 0xc0) == 0x40);
    CHECK(memcmp(s.node, s.machine, 32) != 0);
    memcpy(node, s.node, 32);
    tn_cr_x25519_base(pub, node);

    tn_key_state_try(&s, random);
    CHECK(s.has_trying && s.has_old && memcmp(s.node, node, 32) == 0);
    CHECK_BYTES(s.old_public, pub, 32);
    tn_key_state_drop(&s);
    CHECK(!s.has_trying && !s.has_old && tn_is_zero(s.trying, 64));
    tn_key_state_took(&s);                      /* nothing to take */
    CHECK_BYTES(s.node, node, 32);
    tn_key_state_try(&s, random);
    tn_key_state_took(&s);
    CHECK(!s.has_trying && !s.has_old && s.has_node && memcmp(s.node, random + 1, 30) != 0);
    CHECK(memcmp(s.node + 1, random + 1, 30) == 0 && tn_is_zero(s.trying, 64));
}

static void server_changes(void)
{
    static const char a[] = "https://a.example", b[] = "https://b.example";
    tn_key_state s;
    uint8_t      machine[32];
    some_state(&s, 1);
    memset(s.server_id, 0, 16);
    memcpy(machine, s.machine, 32);
    CHECK(tn_key_state_serve(&s, a, sizeof a - 1) && s.has_node && s.has_server);
    CHECK(tn_key_state_serve(&s, a, sizeof a - 1) && s.has_node && s.has_server);
    CHECK(!tn_key_state_serve(&s, b, sizeof b - 1));
    CHECK(!s.has_node && !s.has_server && !s.has_trying && !s.has_old && !s.has_lock);
    CHECK(tn_is_zero(s.node, 160) && s.has_machine && s.stamp_unix_ms != 0);
    CHECK_BYTES(s.machine, machine, 32);
    CHECK(tn_key_state_serve(&s, b, sizeof b - 1));
}

int main(void)
{
    TEST(texts_parse);
    TEST(texts_refuse);
    TEST(state_round);
    TEST(state_room);
    TEST(state_damaged);
    TEST(state_versions);
    TEST(state_choose);
    TEST(life);
    TEST(server_changes);
    return tn_test_end();
}
