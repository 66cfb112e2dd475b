#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

enum { SESSION = 200000, WORDS = 16384 };

/* What a stream said, as text, to compare cuts. */
typedef struct transcript { char text[WORDS]; size_t len; unsigned oversize; } transcript;

static void say(transcript *t, const char *word, const uint8_t *bytes, size_t len)
{
    size_t i;
    uint32_t sum = 0;
    for (i = 0; i < len; i++) sum = sum * 31u + bytes[i];
    t->len += (size_t)snprintf(t->text + t->len, WORDS - t->len, "%s %zu %08x;", word, len, sum);
    if (t->len >= WORDS) t->len = WORDS - 1;
}

static void say_event(transcript *t, const tn_derp_event *ev)
{
    char word[64];
    snprintf(word, sizeof word, "%d r%u %u %u", (int)ev->kind, ev->reason, ev->in_ms, ev->try_ms);
    say(t, word, ev->data, ev->len);
    if (ev->key != NULL) say(t, "key", ev->key, 32);
}

/* Feeds a stream in pieces: step 0 is random cuts. Each piece is its own memory. */
static tn_derp_kind run(const uint8_t *src, size_t len, size_t step, size_t cap, bool server,
                        transcript *t)
{
    uint8_t      *store = (uint8_t *)malloc(cap == 0 ? 1 : cap);
    tn_derp       d;
    tn_derp_event ev;
    tn_derp_kind  kind = TN_DERP_NONE;
    size_t        at = 0;

    memset(t, 0, sizeof *t);
    tn_derp_start(&d, server);
    while (at < len && kind != TN_DERP_BROKEN) {
        size_t   n = step != 0 ? step : 1 + (size_t)(tn_test_random() % 300), left;
        uint8_t *piece, *p;
        if (n > len - at) n = len - at;
        piece = p = (uint8_t *)malloc(n);
        memcpy(piece, src + at, n);
        left = n;
        while ((kind = tn_derp_next(&d, store, cap, &p, &left, &ev)) > TN_DERP_BROKEN)
            say_event(t, &ev);
        CHECK(kind == TN_DERP_BROKEN || (left == 0 && p == piece + n));
        free(piece);
        at += n;
    }
    t->oversize = d.oversize;
    free(store);
    return kind;
}

/* The same stream in many cuts, with a store that holds all: one transcript. */
static void same_in_any_cut(const uint8_t *src, size_t len, bool server)
{
    static transcript whole, cut;
    int i;
    CHECK(run(src, len, len, 70000, server, &whole) == TN_DERP_NONE);
    CHECK(run(src, len, 1, 70000, server, &cut) == TN_DERP_NONE && strcmp(whole.text, cut.text) == 0);
    for (i = 0; i < 40; i++) {
        CHECK(run(src, len, 0, 70000, server, &cut) == TN_DERP_NONE);
        CHECK(strcmp(whole.text, cut.text) == 0);
    }
}

/* Side 'C' or 'S' of one connection of the recorded file as a byte stream. */
static size_t side_of(const char *text, const char *connection, char side, uint8_t *dst)
{
    char        mark[40], hex[4096];
    const char *at;
    size_t      len = 0;

    snprintf(mark, sizeof mark, "connection: %s\n", connection);
    at = strstr(text, mark);
    CHECK(at != NULL);
    if (at == NULL) return 0;
    at += strlen(mark);
    for (; *at != '\0' && strncmp(at, "connection:", 11) != 0; at = strchr(at, '\n') + 1) {
        const char *v = at + 2, *total;
        size_t      n, all;
        if (at[0] != side || at[1] != ' ') continue;
        v += strcspn(v, " ") + 1;
        if (strncmp(v, "long ", 5) == 0) v += 5;
        n = strcspn(v, " \n");
        memcpy(hex, v, n);
        hex[n] = '\0';
        total  = v[n] == ' ' ? v + n + 7 : NULL;
        n      = tn_test_hex(dst + len, SESSION - len, hex);
        all    = total != NULL ? (size_t)atoi(total) : n;
        for (; n < all; n++) dst[len + n] = (uint8_t)(n - 37);
        len += n;
    }
    return len;
}

static uint8_t stream[SESSION];

static void session_cuts(void)
{
    static const char *const name[3] = { "A", "B", "A2" };
    char *text = tn_test_file("derp-session.txt");
    int   i;
    for (i = 0; i < 3; i++) {
        size_t len = side_of(text, name[i], 'S', stream);
        CHECK(len > 100);
        same_in_any_cut(stream, len, false);
        len = side_of(text, name[i], 'C', stream);
        CHECK(len > 100);
        same_in_any_cut(stream, len, true);
    }
    free(text);
}

/* The recorded login opens from both sides, and the client's half is what we write. */
static void session_login(void)
{
    char         *text = tn_test_file("derp-session.txt");
    uint8_t       server_private[32], server_public[32], a_private[32], a_public[32], *at, frame[256];
    uint8_t       store[TN_DERP_STRADDLE], copy[256], nonce[24];
    size_t        left, len;
    tn_derp       c, s;
    tn_derp_event ev;
    tn_wr         w;

    tn_test_value(text, "server_private", server_private, 32);
    tn_test_value(text, "server_public", server_public, 32);
    tn_test_value(text, "A_node_private", a_private, 32);
    tn_test_value(text, "A_node_public", a_public, 32);
    tn_derp_start(&c, false);
    tn_derp_start(&s, true);

    len = side_of(text, "A", 'C', stream);
    memcpy(copy, stream, TN_DERP_LOGIN_LEN);
    at   = stream;
    left = len;
    CHECK(tn_derp_next(&s, store, sizeof store, &at, &left, &ev) == TN_DERP_CLIENT_INFO);
    CHECK_BYTES(ev.key, a_public, 32);
    CHECK(tn_derp_set_key(&s, server_private, ev.key) && tn_derp_open(&s, &ev));
    CHECK(tn_is((const char *)ev.data, ev.len, "{\"version\":2,\"CanAckPings\":true}"));
    CHECK(tn_derp_next(&s, store, sizeof store, &at, &left, &ev) == TN_DERP_PREFERRED && ev.reason == 1);
    CHECK(tn_derp_next(&s, store, sizeof store, &at, &left, &ev) == TN_DERP_PACKET);
    CHECK(tn_is((const char *)ev.data, ev.len, "hello from A"));

    CHECK(tn_derp_set_key(&c, a_private, server_public));
    memcpy(nonce, copy + 37, 24);
    tn_wr_over(&w, frame, sizeof frame);
    tn_derp_wr_client_info(&c, &w, a_public, nonce);
    CHECK(tn_wr_ok(&w) && tn_wr_len(&w) == TN_DERP_LOGIN_LEN);
    CHECK_BYTES(frame, copy, TN_DERP_LOGIN_LEN);

    left = side_of(text, "A", 'S', stream);
    at   = stream;
    CHECK(tn_derp_next(&c, store, sizeof store, &at, &left, &ev) == TN_DERP_SERVER_KEY);
    CHECK_BYTES(ev.key, server_public, 32);
    CHECK(tn_derp_next(&c, store, sizeof store, &at, &left, &ev) == TN_DERP_SERVER_INFO);
    CHECK(tn_derp_open(&c, &ev) && tn_is((const char *)ev.data, ev.len, "{\"version\":2}"));
    CHECK(tn_is_zero(c.k, 32));
    CHECK(tn_derp_next(&c, store, sizeof store, &at, &left, &ev) == TN_DERP_PACKET && ev.key != NULL);
    CHECK(tn_derp_next(&c, store, sizeof store, &at, &left, &ev) == TN_DERP_PONG);
    CHECK(ev.len == 8 && memcmp(ev.data, "12345678", 8) == 0);
    CHECK(tn_derp_next(&c, store, sizeof store, &at, &left, &ev) == TN_DERP_PONG);
    CHECK(tn_derp_next(&c, store, sizeof store, &at, &left, &ev) == TN_DERP_PEER_GONE && ev.reason == 1);
    CHECK(ev.key[0] == 9 && ev.key[31] == 9);
    CHECK(tn_derp_next(&c, store, sizeof store, &at, &left, &ev) == TN_DERP_PONG);
    CHECK(tn_derp_next(&c, store, sizeof store, &at, &left, &ev) == TN_DERP_PACKET);
    CHECK(tn_derp_next(&c, store, sizeof store, &at, &left, &ev) == TN_DERP_PEER_GONE && ev.reason == 0);
    CHECK(tn_derp_next(&c, store, sizeof store, &at, &left, &ev) == TN_DERP_KEEPALIVE);
    CHECK(tn_derp_next(&c, store, sizeof store, &at, &left, &ev) == TN_DERP_NONE);
    free(text);
}

#define PEER "ad438bfae31f6c093d61d4339255ea798092c9fadd07b97827f4b0ae9dee7c1c"
#define KEY_FRAME "010000002844455250f09f94915869aff450549732cbaaed5e5df9b30a6da31cb0e5742bad5ad4a1a768f1a67b"
#define LOGIN_FRAME "020000006807a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7cc0c1c2c3c4c5c6c7" \
    "c8c9cacbcccdcecfd0d1d2d3d4d5d6d7a8fd2faed495327d6c146c7536fdf228ca7d096319ebc318e8d91282260f1d78718f45" \
    "01182e92e4d481ae858502f80f"
#define INFO_FRAME "0300000035d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeef268562645dcb716f4b001a47572c185f" \
    "0153943559cbacc7b853a0d38f"

static void check_wr(const tn_wr *w, const char *hex)
{
    uint8_t want[256];
    size_t  len = tn_test_hex(want, sizeof want, hex);
    CHECK(tn_wr_ok(w) && tn_wr_len(w) == len && memcmp(w->base, want, len) == 0);
}

/* 13.3: every writer. */
static void writers(void)
{
    uint8_t  b[256], peer[32], server_private[32], server_public[32], client_private[32];
    uint8_t  client_public[32], nonce[24], tx[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
    unsigned i;
    tn_derp  d;
    tn_wr    w;

    tn_test_hex(client_private, 32, "0002030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f60");
    tn_test_hex(server_private, 32, "2022232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f40");
    tn_test_hex(peer, 32, PEER);
    tn_cr_x25519_base(client_public, client_private);
    tn_cr_x25519_base(server_public, server_private);

    tn_wr_over(&w, b, sizeof b); tn_derp_wr_server_key(&w, server_public); check_wr(&w, KEY_FRAME);
    tn_derp_start(&d, false);
    CHECK(tn_derp_set_key(&d, client_private, server_public));
    for (i = 0; i < 24; i++) nonce[i] = (uint8_t)(0xc0 + i);
    tn_wr_over(&w, b, sizeof b); tn_derp_wr_client_info(&d, &w, client_public, nonce);
    check_wr(&w, LOGIN_FRAME);
    tn_derp_start(&d, true);
    CHECK(tn_derp_set_key(&d, server_private, client_public));
    for (i = 0; i < 24; i++) nonce[i] = (uint8_t)(0xd8 + i);
    tn_wr_over(&w, b, sizeof b); tn_derp_wr_server_info(&d, &w, nonce, 0, 0); check_wr(&w, INFO_FRAME);
    tn_wr_over(&w, b, sizeof b); tn_derp_wr_send(&w, peer, "\xde\xad\xbe\xef", 4);
    check_wr(&w, "0400000024" PEER "deadbeef");
    tn_wr_over(&w, b, sizeof b); tn_derp_wr_recv(&w, peer, "\xde\xad\xbe\xef", 4);
    check_wr(&w, "0500000024" PEER "deadbeef");
    tn_wr_over(&w, b, sizeof b); tn_derp_wr_keepalive(&w); check_wr(&w, "0600000000");
    tn_wr_over(&w, b, sizeof b); tn_derp_wr_preferred(&w, true); check_wr(&w, "070000000101");
    tn_wr_over(&w, b, sizeof b); tn_derp_wr_preferred(&w, false); check_wr(&w, "070000000100");
    tn_wr_over(&w, b, sizeof b); tn_derp_wr_peer_gone(&w, peer, 1); check_wr(&w, "0800000021" PEER "01");
    tn_wr_over(&w, b, sizeof b); tn_derp_wr_ping(&w, tx); check_wr(&w, "12000000080102030405060708");
    tn_wr_over(&w, b, sizeof b); tn_derp_wr_pong(&w, tx); check_wr(&w, "13000000080102030405060708");
    tn_wr_over(&w, b, sizeof b); tn_derp_wr_restarting(&w, 1500, 5000);
    check_wr(&w, "1500000008000005dc00001388");
    tn_wr_over(&w, b, sizeof b); tn_derp_wr_health(&w, ""); check_wr(&w, "1400000000");
    tn_wr_over(&w, b, sizeof b); tn_derp_wr_health(&w, "ab"); check_wr(&w, "14000000026162");
}

/* A client's stream: the key frame, then these frames; what comes of the last ones? */
static tn_derp_kind after_key(const char *hex, transcript *t)
{
    uint8_t b[4096];
    size_t  len = tn_test_hex(b, sizeof b, KEY_FRAME);
    len += tn_test_hex(b + len, sizeof b - len, hex);
    return run(b, len, len, TN_DERP_STRADDLE, false, t);
}

static void expect(const char *hex, const char *tail)
{
    static transcript t;
    CHECK(after_key(hex, &t) == TN_DERP_NONE);
    if (strstr(t.text, tail) == NULL) printf("%s\n%s\n", hex, t.text);
    CHECK(strstr(t.text, tail) != NULL);
}

#define KIND(n) ";" #n " r"

static void short_and_unknown(void)
{
    expect("0800000020" PEER, KIND(6) "0 0 0 0");           /* PeerGone without reason */
    expect("080000001f" "438bfae31f6c093d61d4339255ea798092c9fadd07b97827f4b0ae9dee7c1c", KIND(2));
    expect("1500000007000005dc000013", KIND(2));
    expect("1500000009000005dc00001388ff", KIND(10) "0 1500 5000");
    expect("120000000701020304050607", KIND(2));
    expect("1200000009010203040506070809", KIND(7) "0 0 0 8 ");
    expect("050000001f" "438bfae31f6c093d61d4339255ea798092c9fadd07b97827f4b0ae9dee7c1c", KIND(2));
    expect("0500000020" PEER, KIND(5) "0 0 0 0 ");
    expect("060000000101", KIND(11));
    expect("7f00000000", KIND(2));
    expect("0200000000", KIND(2));                          /* a server's business */
    expect("0400000020" PEER, KIND(2));
    expect(KEY_FRAME, KIND(2));                             /* a second key frame */
    expect("0a0000000000000000ff", KIND(2));
}

static void long_frames(void)
{
    static uint8_t    b[120000];
    static transcript t;
    size_t            key = tn_test_hex(b, sizeof b, KEY_FRAME), len, step;

    len = key;                                              /* unknown type, 100 KiB, then a pong */
    tn_test_hex(b + len, 5, "7f00019000");
    len += 5 + 102400;
    len += tn_test_hex(b + len, 13, "13000000080102030405060708");
    for (step = 1; step < len; step = step * 3 + 1) {
        CHECK(run(b, len, step, TN_DERP_STRADDLE, false, &t) == TN_DERP_NONE);
        CHECK(strstr(t.text, KIND(2)) != NULL && strstr(t.text, KIND(8)) != NULL);
    }
    /* a packet at the limit of the straddle buffer, and one byte longer */
    for (step = 0; step < 2; step++) {
        size_t n = TN_DERP_STRADDLE + step;
        len = key;
        b[len] = 5; b[len + 1] = b[len + 2] = 0;
        b[len + 3] = (uint8_t)(n >> 8); b[len + 4] = (uint8_t)n;
        memset(b + len + 5, 7, n);
        len += 5 + n;
        CHECK(run(b, len, len, TN_DERP_STRADDLE, false, &t) == TN_DERP_NONE);
        CHECK(strstr(t.text, KIND(5)) != NULL && t.oversize == 0);  /* whole: no limit */
        CHECK(run(b, len, 100, TN_DERP_STRADDLE, false, &t) == TN_DERP_NONE);
        CHECK((strstr(t.text, KIND(5)) != NULL) == (step == 0) && t.oversize == step);
        CHECK(step == 0 || strstr(t.text, KIND(2)) != NULL);
    }
}

static void fatal(void)
{
    static transcript t;
    uint8_t           b[2048];
    size_t            len;
    CHECK(after_key("0500100001", &t) == TN_DERP_BROKEN);
    CHECK(after_key("0500100000", &t) == TN_DERP_NONE);
    CHECK(after_key("7fffffffff", &t) == TN_DERP_BROKEN);
    len = tn_test_hex(b, sizeof b, KEY_FRAME);              /* wrong magic */
    b[6] ^= 1;
    CHECK(run(b, len, len, 1568, false, &t) == TN_DERP_BROKEN && t.len == 0);
    CHECK(run(b, len, 1, 1568, false, &t) == TN_DERP_BROKEN && t.len == 0);
    len = tn_test_hex(b, sizeof b, KEY_FRAME);              /* 39 bytes */
    b[4] = 39;
    CHECK(run(b, len - 1, len - 1, 1568, false, &t) == TN_DERP_BROKEN);
    len = tn_test_hex(b, sizeof b, KEY_FRAME);              /* 1024 bytes are allowed */
    b[3] = 4; b[4] = 0;
    memset(b + len, 0, 984);
    CHECK(run(b, 1029, 1, 1568, false, &t) == TN_DERP_NONE && strncmp(t.text, "3 r", 3) == 0);
    len = tn_test_hex(b, sizeof b, "0600000000");           /* another first frame */
    CHECK(run(b, len, len, 1568, false, &t) == TN_DERP_BROKEN);
    len = tn_test_hex(b, sizeof b, "485454502f312e312034303420");
    CHECK(run(b, len, len, 1568, false, &t) == TN_DERP_BROKEN);
    len = tn_test_hex(b, sizeof b, "120000000801020304050607081200000000");
    CHECK(run(b, len, len, 1568, true, &t) == TN_DERP_BROKEN);
}

static void wrong_box(void)
{
    uint8_t       private_key[32], other[32], frame[256], store[64], *at;
    size_t        left, i, len;
    tn_derp       d;
    tn_derp_event ev;

    tn_test_hex(private_key, 32, "0002030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f60");
    tn_test_hex(other, 32, PEER);
    for (i = 0; i < 60; i++) {
        len = tn_test_hex(frame, sizeof frame, KEY_FRAME INFO_FRAME);
        if (i < 53) frame[len - 1 - i] ^= 0x10;
        tn_derp_start(&d, false);
        at   = frame;
        left = len;
        CHECK(tn_derp_next(&d, store, sizeof store, &at, &left, &ev) == TN_DERP_SERVER_KEY);
        CHECK(tn_derp_set_key(&d, private_key, i == 53 ? other : ev.key));
        CHECK(tn_derp_next(&d, store, sizeof store, &at, &left, &ev) == TN_DERP_SERVER_INFO);
        if (i == 54) ev.len = 39;
        if (i == 55) ev.len = 0;
        CHECK(tn_derp_open(&d, &ev) == (i > 55));
    }
    memset(other, 0, 32);
    CHECK(!tn_derp_set_key(&d, private_key, other));
}

static void meta_names(void)
{
    uint8_t key[32], want[32];
    tn_test_hex(want, 32, PEER);
    CHECK(tn_derp_meta_key(key, "derpkey" PEER, 71) && memcmp(key, want, 32) == 0);
    CHECK(!tn_derp_meta_key(key, "derpkey" PEER "0", 72));
    CHECK(!tn_derp_meta_key(key, "derpkey" PEER, 70));
    CHECK(!tn_derp_meta_key(key, "derpkex" PEER, 71));
    CHECK(!tn_derp_meta_key(key, "derp.example", 12));
    CHECK(!tn_derp_meta_key(key, "derpkey" "0000000000000000000000000000000000000000000000000000000000000000", 71));
}

static void bucket(void)
{
    tn_derp  d;
    unsigned n = 0;
    uint64_t t;
    tn_derp_start(&d, false);
    CHECK(tn_derp_may_send(&d, 65536, 0));
    tn_derp_limit(&d, 1000, 2000, 10000);
    CHECK(tn_derp_may_send(&d, 1963, 10000));               /* exactly the burst */
    CHECK(!tn_derp_may_send(&d, 0, 10000));
    CHECK(!tn_derp_may_send(&d, 0, 10036) && tn_derp_may_send(&d, 0, 10037));
    CHECK(!tn_derp_may_send(&d, 1964, 900000));             /* more than the burst: never */
    CHECK(tn_derp_may_send(&d, 1963, 900000));
    CHECK(!tn_derp_may_send(&d, 0, 5));                     /* time never goes back */
    for (t = 900000; t < 910000; t++) n += tn_derp_may_send(&d, 63, t) ? 1u : 0u;
    CHECK(n == 99 || n == 100);                             /* 100 bytes each, 10 s */
    tn_derp_limit(&d, 0xffffffffu, 0xffffffffu, 0);
    CHECK(tn_derp_may_send(&d, 65536, UINT64_MAX));
    tn_derp_limit(&d, 0, 5, 0);
    CHECK(tn_derp_may_send(&d, 65536, 0));
    tn_derp_limit(&d, 5, 0, 0);
    CHECK(!tn_derp_may_send(&d, 0, 1000000));
}

static void server_info_limit(void)
{
    uint8_t       b[256], store[8], k[32], nonce[24], *at;
    size_t        left;
    tn_derp       s, c;
    tn_derp_event ev;
    tn_wr         w;
    memset(nonce, 1, 24);
    memset(k, 2, 32);
    tn_derp_start(&s, true);
    tn_derp_start(&c, false);
    memcpy(s.k, k, 32);
    tn_wr_over(&w, b, sizeof b);
    tn_derp_wr_server_key(&w, k);
    tn_derp_wr_server_info(&s, &w, nonce, 4294967295u, 4294967295u);
    CHECK(tn_wr_ok(&w));
    at = b; left = tn_wr_len(&w);
    CHECK(tn_derp_next(&c, store, 8, &at, &left, &ev) == TN_DERP_SERVER_KEY);
    memcpy(c.k, k, 32);
    CHECK(tn_derp_next(&c, store, 8, &at, &left, &ev) == TN_DERP_SERVER_INFO && tn_derp_open(&c, &ev));
    CHECK(tn_is((const char *)ev.data, ev.len, "{\"version\":2,\"TokenBucketBytesPerSecond\":4294967295,"
                                               "\"TokenBucketBytesBurst\":4294967295}"));
}

int main(void)
{
    TEST(session_cuts);
    TEST(session_login);
    TEST(writers);
    TEST(short_and_unknown);
    TEST(long_frames);
    TEST(fatal);
    TEST(wrong_box);
    TEST(meta_names);
    TEST(bucket);
    TEST(server_info_limit);
    CHECK(sizeof(tn_derp) <= 88);
    return tn_test_end();
}
