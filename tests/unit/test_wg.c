/* WireGuard: vectors in both roles, every bit flipped, the behaviour of a peer
 * against the paper's tables in virtual time, floods, and two sessions that talk
 * for hours through a bad network. */
#define TAILNET_IMPLEMENTATION
#include <stdint.h>
static void test_x25519(uint8_t out[32], const uint8_t scalar[32], const uint8_t point[32]);
#define TAILNET_X25519(out, scalar, point) test_x25519(out, scalar, point)
#include "tailnet.h"
#include "tn_test.h"

static unsigned multiplications;

static void test_x25519(uint8_t out[32], const uint8_t scalar[32], const uint8_t point[32])
{
    uint8_t g[32];
    multiplications++;
    memcpy(g, point, 32);
    (void)br_ec_c25519_m31.mul(g, 32, scalar, 32, BR_EC_curve25519);
    memcpy(out, g, 32);
}

static void random_bytes(void *dst, size_t len)
{
    uint8_t *p = (uint8_t *)dst;
    while (len-- != 0) *p++ = (uint8_t)(tn_test_random() >> 24);
}

static void crypt_one(tailnet_crypt *w)
{
    uint8_t nonce[12] = {0};
    unsigned i;
    for (i = 0; i < 8; i++) nonce[4 + i] = (uint8_t)(w->counter >> (8 * i));
    if (w->open) w->ok = tn_cr_aead_open(w->key, nonce, NULL, 0, w->data, w->len, w->data + w->len);
    else tn_cr_aead_seal(w->key, nonce, NULL, 0, w->data, w->len, w->data + w->len);
}

/* ---- one end of a tunnel, as the node would run it ---- */

enum { MSG_MAX = 1600, STAGED_MAX = 4, MTU = 1280 };

typedef struct message {
    uint8_t  bytes[MSG_MAX];
    size_t   len;
} message;

typedef struct end {
    tn_wg_device dev;
    tn_wg        wg;
    uint64_t     seen;                      /* the peer entry's stamp */
    uint8_t      peer[32];
    uint8_t      from[6];                   /* our address, as the other sees it */
    uint64_t     unix_ms;
    struct { uint8_t bytes[MTU]; size_t len; } staged[STAGED_MAX];
    unsigned     staged_count;
    message      out[64];
    unsigned     out_count;
    unsigned     initiations, responses, cookies, sealed, keepalives, accepted, gave_up, erased;
    unsigned     news, new_keys;
    uint8_t      last[MSG_MAX];             /* last plaintext taken */
    size_t       last_len;
    tn_wg_verdict verdict;                  /* of the last message in */
} end;

static message *end_out(end *e, size_t len)
{
    message *m = &e->out[e->out_count];
    if (e->out_count < 63) e->out_count++;
    m->len = len;
    return m;
}

static void end_init(end *e, uint8_t name)
{
    uint8_t key[32];
    memset(e, 0, sizeof *e);
    memset(key, name, 32);
    tn_wg_device_init(&e->dev, key, 0);
    e->unix_ms = 1700000000000u;
    memset(e->from, name, 6);
}

static void end_pair(end *a, end *b, uint64_t now)
{
    end_init(a, 0x41);
    end_init(b, 0x42);
    memcpy(a->peer, b->dev.public_key, 32);
    memcpy(b->peer, a->dev.public_key, 32);
    tn_wg_init(&a->wg, now);
    tn_wg_init(&b->wg, now);
}

static uint32_t end_index(end *e)
{
    uint32_t index;
    do index = (uint32_t)tn_test_random();
    while (index == 0 || tn_wg_has_index(&e->wg, index));
    return index;
}

/* Seals one packet, or stages it. */
static void end_send(end *e, const void *data, size_t len, uint64_t now)
{
    message      *m = end_out(e, 0);
    tailnet_crypt work;

    if (len != 0) memcpy(m->bytes + 16, data, len);
    if (tn_wg_seal_begin(&e->wg, m->bytes, len, MTU, now, &work) == TN_WG_OK) {
        crypt_one(&work);
        m->len = 32 + work.len;
        if (len == 0) e->keepalives++;
        else e->sealed++;
        return;
    }
    e->out_count--;
    if (len == 0) return;
    if (e->staged_count == STAGED_MAX) {
        memmove(&e->staged[0], &e->staged[1], sizeof e->staged[0] * (STAGED_MAX - 1));
        e->staged_count--;
    }
    memcpy(e->staged[e->staged_count].bytes, data, len);
    e->staged[e->staged_count++].len = len;
}

static void end_flush(end *e, uint64_t now)
{
    unsigned i, n = e->staged_count;
    e->staged_count = 0;
    for (i = 0; i < n; i++) end_send(e, e->staged[i].bytes, e->staged[i].len, now);
}

static void end_initiate(end *e, uint64_t now)
{
    uint8_t  stamp[12], ephemeral[32];
    message *m = end_out(e, 148);
    random_bytes(ephemeral, 32);
    (void)tn_wg_stamp(&e->dev, e->unix_ms + now, stamp);
    if (tn_wg_initiate(&e->dev, &e->wg, m->bytes, e->peer, stamp, ephemeral, end_index(e), now) ==
        TN_WG_OK)
        e->initiations++;
    else
        e->out_count--;
}

static void end_news(end *e, unsigned news, uint64_t now)
{
    bool sent = false;
    e->news |= news;
    if (news & (TN_WG_ERASED | TN_WG_GAVE_UP)) e->staged_count = 0;
    if (news & TN_WG_ERASED) {
        e->seen = 0;
        e->erased++;
    }
    if (news & TN_WG_GAVE_UP) e->gave_up++;
    if (news & TN_WG_NEW_KEY) {
        e->new_keys++;
        sent = e->staged_count != 0;
        end_flush(e, now);
    }
    if ((news & TN_WG_WANT_KEEPALIVE) != 0 && !sent) end_send(e, NULL, 0, now);
    if (news & TN_WG_WANT_HANDSHAKE) end_initiate(e, now);
}

static void end_poll(end *e, uint64_t now)
{
    unsigned turns = 0;
    while (tn_wg_deadline(&e->wg) <= now && turns++ < 3)
        end_news(e, tn_wg_timers(&e->wg, now), now);
    CHECK(tn_wg_deadline(&e->wg) > now);    /* nothing that is due for ever */
}

static tn_wg_verdict end_initiation(end *e, const uint8_t *msg, size_t len, uint64_t now)
{
    tn_wg_hello   hello;
    uint8_t       ephemeral[32];
    tn_wg_verdict v = tn_wg_open_initiation(&e->dev, msg, len, &hello);

    if (v != TN_WG_OK) return v;
    if (!tn_equal(hello.peer, e->peer, 32)) return TN_WG_UNKNOWN;
    v = tn_wg_prove_initiation(&e->dev, &hello, e->seen);
    if (v != TN_WG_OK) return v;
    if (e->wg.erase_ms == 0) tn_wg_init(&e->wg, now);
    random_bytes(ephemeral, 32);
    v = tn_wg_respond(&e->wg, &hello, end_out(e, 92)->bytes, ephemeral, end_index(e), &e->seen,
                      now);
    if (v == TN_WG_OK) e->responses++;
    else e->out_count--;
    CHECK(tn_is_zero(&hello, sizeof hello));
    return v;
}

static tn_wg_verdict end_data(end *e, const uint8_t *msg, size_t len, uint64_t now)
{
    static uint8_t copy[MSG_MAX];
    tailnet_crypt  work;
    unsigned       news = 0;
    tn_wg_verdict  v;

    memcpy(copy, msg, len);
    v = tn_wg_open_begin(&e->wg, copy, len, now, &work);
    if (v != TN_WG_OK) return v;
    crypt_one(&work);
    v = tn_wg_accept(&e->wg, copy, &work, now, &news);
    if (v != TN_WG_OK) return v;
    e->accepted++;
    e->last_len = work.len;
    memcpy(e->last, work.data, work.len);
    end_news(e, news, now);
    return v;
}

/* A datagram comes in: everything in the order of the document. */
static tn_wg_verdict end_take(end *e, const uint8_t *msg, size_t len, const uint8_t *from,
                              size_t from_len, uint64_t now)
{
    tn_wg_type type  = tn_wg_classify(msg, len);
    uint32_t   index = tn_wg_receiver(msg, len);
    unsigned   news  = 0;
    uint8_t    random[56];
    tn_wg_verdict v;

    switch (type) {
    case TN_WG_OTHER: return TN_WG_MALFORMED;
    case TN_WG_DATA: return end_data(e, msg, len, now);
    case TN_WG_COOKIE: return tn_wg_consume_cookie(&e->wg, e->peer, msg, len, now);
    case TN_WG_INITIATION:
    case TN_WG_RESPONSE: break;
    }
    if (!tn_wg_check_mac1(&e->dev, msg, len)) return TN_WG_FORGED;
    if (type == TN_WG_RESPONSE && !tn_wg_is_pending(&e->wg, index)) return TN_WG_UNKNOWN;
    switch (tn_wg_admit(&e->dev, msg, len, from, from_len, now)) {
    case TN_WG_REFUSE: return TN_WG_TOO_SOON;
    case TN_WG_ADMIT: break;
    case TN_WG_ANSWER_COOKIE:
        random_bytes(random, sizeof random);
        tn_wg_cookie_reply(&e->dev, end_out(e, 64)->bytes, msg, len, from, from_len, random, now);
        e->cookies++;
        return TN_WG_TOO_SOON;
    }
    if (type == TN_WG_INITIATION) return end_initiation(e, msg, len, now);
    v = tn_wg_consume_response(&e->dev, &e->wg, msg, len, now, &news);
    end_news(e, news, now);
    return v;
}

/* Delivers everything that lies in the out boxes until nothing moves. */
static void exchange(end *a, end *b, uint64_t now)
{
    static message box[64];
    unsigned       i, n;
    while (a->out_count + b->out_count != 0) {
        n = a->out_count;
        memcpy(box, a->out, sizeof box[0] * n);
        a->out_count = 0;
        for (i = 0; i < n; i++)
            b->verdict = end_take(b, box[i].bytes, box[i].len, a->from, 6, now);
        n = b->out_count;
        memcpy(box, b->out, sizeof box[0] * n);
        b->out_count = 0;
        for (i = 0; i < n; i++)
            a->verdict = end_take(a, box[i].bytes, box[i].len, b->from, 6, now);
    }
}

/* Runs one end alone to a time; what it sends is thrown away. */
static void run(end *e, uint64_t until)
{
    uint64_t at;
    while ((at = tn_wg_deadline(&e->wg)) <= until) {
        end_poll(e, at);
        e->out_count = 0;
    }
}

/* Runs both to a time over a perfect network. */
static void run_both(end *a, end *b, uint64_t until)
{
    uint64_t at;
    while ((at = tn_min64(tn_wg_deadline(&a->wg), tn_wg_deadline(&b->wg))) <= until) {
        end_poll(a, at);
        end_poll(b, at);
        exchange(a, b, at);
    }
}

static const uint8_t packet[40] = {0x45, 0, 0, 40, 7};

/* a initiates, b responds, both are ready at now. */
static void connect_pair(end *a, end *b, uint64_t now)
{
    end_pair(a, b, now);
    end_send(a, packet, sizeof packet, now);
    end_poll(a, now);
    exchange(a, b, now);
    CHECK(tn_wg_can_send(&a->wg, now) && tn_wg_can_send(&b->wg, now));
    CHECK(a->initiations == 1 && b->responses == 1 && b->accepted == 1);
    CHECK(a->wg.keys == TN_WG_KEYS_CURRENT && b->wg.keys == TN_WG_KEYS_CURRENT);
    CHECK(a->wg.initiator && !b->wg.initiator);
}

/* ---- vectors ---- */

static size_t hex(uint8_t *dst, const char *text) { return tn_test_hex(dst, MSG_MAX, text); }

#define CHECK_HEX(got, text)                             \
    do {                                                 \
        uint8_t want_[MSG_MAX];                          \
        size_t  len_ = hex(want_, text);                 \
        CHECK(len_ != 0);                                \
        CHECK_BYTES(got, want_, len_);                   \
    } while (0)

/* Section 5.4 of the paper: what the compiled-in chain starts from. */
static void chain_start(void)
{
    static const char name[] = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
    static const char id[]   = "WireGuard v1 zx2c4 Jason@zx2c4.com";
    uint8_t           c[32], h[32];
    tn_cr_hash(c, name, strlen(name), NULL, 0);
    tn_cr_hash(h, c, 32, id, strlen(id));
    CHECK_BYTES(c, tn_wg_ck0, 32);
    CHECK_BYTES(h, tn_wg_h0, 32);
}

typedef struct vector {
    uint8_t s_i[32], s_r[32], e_i[32], e_r[32], stamp[12];
    uint32_t index_i, index_r;
    uint8_t initiation[148], response[92];
    uint8_t i_to_r[32], r_to_i[32];
} vector;

/* Both roles of a handshake whose private values are all known. The sessions
 * are left open for data. Mac2 comes from a cookie that the initiator has. */
static void both_roles(const vector *v, end *i, end *r, uint64_t now)
{
    uint8_t       msg[148];
    tn_wg_hello   hello;
    unsigned      news;
    tn_wg_verdict verdict;

    memcpy(i->peer, r->dev.public_key, 32);
    memcpy(r->peer, i->dev.public_key, 32);
    multiplications = 0;
    CHECK(tn_wg_initiate(&i->dev, &i->wg, msg, i->peer, v->stamp, v->e_i, v->index_i, now) ==
          TN_WG_OK);
    CHECK(multiplications == 3);
    CHECK_BYTES(msg, v->initiation, 148);
    CHECK(tn_wg_is_pending(&i->wg, v->index_i) && tn_wg_has_index(&i->wg, v->index_i));

    multiplications = 0;
    CHECK(tn_wg_check_mac1(&r->dev, msg, 148));
    CHECK(multiplications == 0);
    CHECK(tn_wg_open_initiation(&r->dev, msg, 148, &hello) == TN_WG_OK);
    CHECK(multiplications == 1);
    CHECK_BYTES(hello.peer, i->dev.public_key, 32);
    CHECK(tn_wg_prove_initiation(&r->dev, &hello, 0) == TN_WG_OK);
    CHECK(multiplications == 2);
    CHECK(hello.stamp == tn_wg_stamp_value(v->stamp));
    verdict = tn_wg_respond(&r->wg, &hello, msg, v->e_r, v->index_r, &r->seen, now);
    CHECK(verdict == TN_WG_OK && multiplications == 5);
    CHECK(r->seen == tn_wg_stamp_value(v->stamp));
    CHECK_BYTES(msg, v->response, 92);
    CHECK(!tn_wg_can_send(&r->wg, now) && tn_wg_up_ms(&r->wg) == TN_NEVER);

    multiplications = 0;
    CHECK(tn_wg_check_mac1(&i->dev, msg, 92));
    CHECK(tn_wg_receiver(msg, 92) == v->index_i);
    CHECK(tn_wg_consume_response(&i->dev, &i->wg, msg, 92, now, &news) == TN_WG_OK);
    CHECK(multiplications == 2);
    CHECK(news == (TN_WG_NEW_KEY | TN_WG_WANT_KEEPALIVE));
    CHECK(tn_is_zero(&i->wg.pending, sizeof i->wg.pending));
    CHECK_BYTES(i->wg.key[i->wg.current].tx_key, v->i_to_r, 32);
    CHECK_BYTES(i->wg.key[i->wg.current].rx_key, v->r_to_i, 32);
    CHECK(tn_wg_can_send(&i->wg, now) && tn_wg_up_ms(&i->wg) == now);
    CHECK(tn_wg_consume_response(&i->dev, &i->wg, msg, 92, now, &news) == TN_WG_UNKNOWN);
}

/* One data message of a vector, from one end to the other. */
static void data_vector(end *from, end *to, const uint8_t *plain, size_t len, const uint8_t *wire,
                        size_t wire_len, uint64_t now)
{
    from->out_count = 0;
    end_send(from, plain, len, now);
    CHECK(from->out_count == 1 && from->out[0].len == wire_len);
    CHECK_BYTES(from->out[0].bytes, wire, wire_len);
    from->out_count = 0;
    CHECK(end_take(to, wire, wire_len, from->from, 6, now) == TN_WG_OK);
    CHECK(to->last_len == wire_len - 32 && to->last_len >= len);
    if (len != 0) CHECK_BYTES(to->last, plain, len);
    CHECK(tn_is_zero(to->last + len, to->last_len - len));
    CHECK(end_take(to, wire, wire_len, from->from, 6, now) == TN_WG_REPLAYED);
    to->out_count = 0;
}

static vector section5;
static void load_section5(void)
{
    unsigned i;
    memset(&section5, 0, sizeof section5);
    for (i = 0; i < 32; i++) {
        section5.s_i[i] = (uint8_t)i;
        section5.s_r[i] = (uint8_t)(0x20 + i);
        section5.e_i[i] = (uint8_t)(0x40 + i);
        section5.e_r[i] = (uint8_t)(0x60 + i);
    }
    hex(section5.stamp, "4000000065937d2a10000000");
    section5.index_i = 0x11223344;
    section5.index_r = 0x55667788;
    hex(section5.initiation,
        "010000004433221179a631eede1bf9c98f12032cdeadd0e7a079398fc786b88cc846ec89af85a51af0225eb42188"
        "6af8f54fb31289d49dcd82b0f6f3279d40d7cff913fece0c64ad226eef3320755b393b72f16842c8d7ee78a74e93"
        "7effa6a29ff4ecc1fd0178c95f5d08b9d0fb9b205e811eb69d9da650b33c01cf99e5b2d19613199e000000000000"
        "00000000000000000000");
    hex(section5.response,
        "020000008877665544332211675dd574ed7789310b3d2e7681f3790b466c773b1521fecf36577958371ea52fbe5a"
        "f7dc0a0ab7a097fa71e9a02d7065bc898f32a2efdc5a1d2727f36e61494700000000000000000000000000000000");
    hex(section5.i_to_r, "8c467a49ee5feffc8b390fba6ff460b5d66abf66f5e4bf9e0a5612b256498238");
    hex(section5.r_to_i, "eb356022624730ae787d7fccc635655d1b1b1fb7d81f299043b0ce85e3a3a4b4");
}

/* The document's own numbers: handshake, data, cookie. */
static void vectors_document(void)
{
    static end i, r;
    uint8_t    plain[128], wire[128], from[18];
    size_t     len, wire_len;

    load_section5();
    end_init(&i, 1);
    end_init(&r, 2);
    tn_wg_device_init(&i.dev, section5.s_i, 0);
    tn_wg_device_init(&r.dev, section5.s_r, 0);
    CHECK_HEX(r.dev.mac1_key, "027b1cb8c420c32c942bea8ddb43ca7d20779ec4bd55578bfa5c3d7936c91d2f");
    CHECK_HEX(i.dev.mac1_key, "1df93fdc364a0376dfcc880218888973b0e47312db79b658026183918f41ef82");
    both_roles(&section5, &i, &r, 1000);

    len = hex(plain, "45000020000100004001b2596440000164400002080006fa1234000170696e67");
    wire_len = hex(wire, "04000000887766550000000000000000e98e179899fdbf2c2110082a94ee3ee3e63db243c8"
                         "5c32a94f418828421c2c60e0d6d2eab8eceaf60da70b21c95058a3");
    data_vector(&i, &r, plain, len, wire, wire_len, 1000);
    len = hex(plain, "6000000000151140fd7a115ca1e000000000000000000001fd7a115ca1e000000000000000000"
                     "0020fa013880015770468656c6c6f207461696c6e6574");
    wire_len = hex(wire, "04000000887766550100000000000000c8b9010509ac22f227187f90eecce46c38ef5928ee"
                         "1b631c6d59ab8869dd8797f5a91ce23ed02d7574553e8980d7c94c055121f21cea7ae9737e"
                         "abcd8f130c4b0b7a07cd148b435c8ef3b99bce986def");
    data_vector(&i, &r, plain, len, wire, wire_len, 1000);
    len = hex(plain, "45000020000100004001b259644000026440000100000efa1234000170696e67");
    wire_len = hex(wire, "04000000443322110000000000000000a72e5e7cfef5e6d5e45f575d9685cd603130b7b6fe"
                         "7e83f0434e9e1433c4836e2c84da8e7da95d5b7b6398b2dfb9d485");
    data_vector(&r, &i, plain, len, wire, wire_len, 1000);
    wire_len = hex(wire, "0400000044332211010000000000000010c0e13d0bd50917e3ffbcfd43e5f0c5");
    data_vector(&r, &i, plain, 0, wire, wire_len, 1000);

    /* 5.5: the same initiation, answered with a cookie, and again with mac2 */
    {
        uint8_t      random[56], reply[64], again[148];
        tailnet_addr addr;
        unsigned     k;
        for (k = 0; k < 32; k++) random[k] = (uint8_t)(0x80 + k);
        for (k = 0; k < 24; k++) random[32 + k] = (uint8_t)(0xc0 + k);
        memset(&addr, 0, sizeof addr);
        CHECK(tn_addr_parse(&addr, "192.0.2.1:51820", 15));
        CHECK(tn_wg_from_addr(from, &addr) == 6);
        CHECK_HEX(from, "c0000201ca6c");
        tn_wg_cookie_reply(&r.dev, reply, section5.initiation, 148, from, 6, random, 1000);
        CHECK_HEX(reply, "0300000044332211c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7c87f23daa0"
                         "a2e014d4a4395840f52a1f551558c54e19d881914af9d78f400363");
        tn_wg_wipe(&i.wg);
        CHECK(tn_wg_initiate(&i.dev, &i.wg, again, i.peer, section5.stamp, section5.e_i, 0x11223344,
                             1000) == TN_WG_OK);
        CHECK(tn_wg_consume_cookie(&i.wg, i.peer, reply, 64, 1000) == TN_WG_OK);
        CHECK_HEX(i.wg.cookie, "3c2054278c6d0a92489188f57f5d790b");
        CHECK(tn_wg_initiate(&i.dev, &i.wg, again, i.peer, section5.stamp, section5.e_i, 0x11223344,
                             7000) == TN_WG_OK);
        CHECK_BYTES(again, section5.initiation, 132);
        CHECK_HEX(again + 132, "bff54343acc85cb4c0fc00479e6bbc9b");
        CHECK(tn_wg_check_mac2(&r.dev, again, 148, from, 6, 2000));
        from[5] ^= 1;
        CHECK(!tn_wg_check_mac2(&r.dev, again, 148, from, 6, 2000));
    }
}

static uint32_t value_index(const char *text, const char *name)
{
    const char *at = strstr(text, name);
    CHECK(at != NULL);
    return at == NULL ? 0 : (uint32_t)strtoul(at + strlen(name) + 2, NULL, 16);
}

/* Recorded with code that interoperates with tailscaled; cookie in between. */
static void vectors_both_sides(void)
{
    static end    i, r;
    static char   name[128];
    static const char *const data[] = {
        "I_to_R_0_keepalive", "I_to_R_1_icmp_echo_request", "R_to_I_0_icmp_echo_reply",
        "R_to_I_1_keepalive", "I_to_R_2_tsmp_ping", "R_to_I_2_tsmp_pong",
        "I_to_R_3_tsmp_disco_advertisement", "I_to_R_4_1280_bytes"
    };
    static vector v;
    char         *text = tn_test_file("wireguard-both-sides.txt");
    uint8_t       first[148], eph[32], stamp[12], reply[64], want[64], random[56], from[6];
    static uint8_t plain[MSG_MAX], wire[MSG_MAX];
    unsigned      k;

    end_init(&i, 1);
    end_init(&r, 2);
    tn_test_value(text, "initiator_static_private", v.s_i, 32);
    tn_test_value(text, "responder_static_private", v.s_r, 32);
    tn_wg_device_init(&i.dev, v.s_i, 0);
    tn_wg_device_init(&r.dev, v.s_r, 0);
    tn_test_value(text, "initiator_static_public", want, 32);
    CHECK_BYTES(i.dev.public_key, want, 32);
    tn_test_value(text, "responder_static_public", want, 32);
    CHECK_BYTES(r.dev.public_key, want, 32);

    /* the first initiation is answered by a cookie */
    tn_test_value(text, "initiator_ephemeral_private", eph, 32);
    tn_test_value(text, "tai64n", stamp, 12);
    CHECK(tn_wg_initiate(&i.dev, &i.wg, first, r.dev.public_key, stamp, eph,
                         value_index(text, "\ninitiator_index_text"), 1000) == TN_WG_OK);
    CHECK(tn_test_value(text, "initiation", plain, MSG_MAX) == 148);
    CHECK_BYTES(first, plain, 148);
    tn_test_value(text, "cookie_secret", random, 32);
    tn_test_value(text, "cookie_nonce", random + 32, 24);
    CHECK(tn_test_value(text, "cookie_source", from, 6) == 6);
    tn_wg_cookie_reply(&r.dev, reply, first, 148, from, 6, random, 1000);
    CHECK(tn_test_value(text, "cookie_reply", want, 64) == 64);
    CHECK_BYTES(reply, want, 64);
    CHECK(tn_wg_consume_cookie(&i.wg, r.dev.public_key, reply, 64, 1001) == TN_WG_OK);
    tn_test_value(text, "cookie", want, 16);
    CHECK_BYTES(i.wg.cookie, want, 16);

    tn_test_value(text, "initiator_ephemeral_private_2", v.e_i, 32);
    tn_test_value(text, "responder_ephemeral_private", v.e_r, 32);
    tn_test_value(text, "tai64n_2", v.stamp, 12);
    v.index_i = value_index(text, "\ninitiator_index_2_text");
    v.index_r = value_index(text, "\nresponder_index_text");
    tn_test_value(text, "initiation_2_with_mac2", v.initiation, 148);
    tn_test_value(text, "response", v.response, 92);
    tn_test_value(text, "initiator_send_key", v.i_to_r, 32);
    tn_test_value(text, "responder_send_key", v.r_to_i, 32);
    both_roles(&v, &i, &r, 6500);
    CHECK(tn_wg_check_mac2(&r.dev, v.initiation, 148, from, 6, 6500));

    for (k = 0; k < sizeof data / sizeof data[0]; k++) {
        size_t len, wire_len;
        snprintf(name, sizeof name, "%s_plain", data[k]);
        len      = tn_test_value(text, name, plain, MSG_MAX);
        wire_len = tn_test_value(text, data[k], wire, MSG_MAX);
        if (data[k][0] == 'I') data_vector(&i, &r, plain, len, wire, wire_len, 6500);
        else data_vector(&r, &i, plain, len, wire, wire_len, 6500);
    }
    i.wg.key[i.wg.current].tx_counter = ((uint64_t)1 << 32) + 5;
    k = (unsigned)tn_test_value(text, "I_to_R_counter_2^32+5", wire, MSG_MAX);
    data_vector(&i, &r, plain, 0, wire, k, 6500);
    free(text);
}

/* The next line "name: hex" from *at on; moves on. */
static size_t next_value(const char **at, const char *name, uint8_t *dst)
{
    char line[64];
    snprintf(line, sizeof line, "\n%s: ", name);
    *at = strstr(*at, line);
    CHECK(*at != NULL);
    if (*at == NULL) exit(2);
    *at += strlen(line);
    return tn_test_hex(dst, MSG_MAX, *at);
}

/* Data of one part of the live recording: ours is made again, theirs is read. */
static void live_data(end *e, const char *at, const char *stop)
{
    static uint8_t wire[MSG_MAX], plain[MSG_MAX];
    for (;;) {
        const char *in = strstr(at, "\nin: "), *out = strstr(at, "\nout: ");
        size_t      wire_len, len;
        bool        ours;
        if (in != NULL && in >= stop) in = NULL;
        if (out != NULL && out >= stop) out = NULL;
        if (in == NULL && out == NULL) return;
        ours     = in == NULL || (out != NULL && out < in);
        wire_len = next_value(&at, ours ? "out" : "in", wire);
        len      = next_value(&at, ours ? "out_plain" : "in_plain", plain);
        e->out_count = 0;
        if (ours) {
            end_send(e, plain, len, 2000);
            CHECK(e->out_count == 1 && e->out[0].len == wire_len);
            CHECK_BYTES(e->out[0].bytes, wire, wire_len);
        } else {
            CHECK(end_take(e, wire, wire_len, e->from, 6, 2000) == TN_WG_OK);
            CHECK(e->last_len >= len && e->last_len - len < 16);
            CHECK_BYTES(e->last, plain, len);
        }
    }
}

/* Messages exchanged with tailscaled, in both roles. */
static void vectors_live(void)
{
    static end     e;
    char          *text = tn_test_file("wireguard-live.txt");
    const char    *part2 = strstr(text, "# part 2"), *at = text;
    uint8_t        priv[32], eph[32], stamp[12], msg[148], tx[32], rx[32];
    static uint8_t want[MSG_MAX];
    unsigned       news;
    tn_wg_hello    hello;

    next_value(&at, "our_static_private", priv);
    end_init(&e, 1);
    tn_wg_device_init(&e.dev, priv, 0);
    next_value(&at, "peer_static_public", e.peer);
    next_value(&at, "our_ephemeral_private", eph);
    next_value(&at, "tai64n", stamp);
    next_value(&at, "send_key", tx);
    next_value(&at, "receive_key", rx);
    next_value(&at, "out", want);
    CHECK(tn_wg_initiate(&e.dev, &e.wg, msg, e.peer, stamp, eph, 0x11223344, 2000) == TN_WG_OK);
    CHECK_BYTES(msg, want, 148);
    CHECK(next_value(&at, "in", want) == 92);
    CHECK(tn_wg_check_mac1(&e.dev, want, 92));
    CHECK(tn_wg_consume_response(&e.dev, &e.wg, want, 92, 2000, &news) == TN_WG_OK);
    CHECK_BYTES(e.wg.key[e.wg.current].tx_key, tx, 32);
    CHECK_BYTES(e.wg.key[e.wg.current].rx_key, rx, 32);
    live_data(&e, at, part2);

    at = part2;
    tn_wg_wipe(&e.wg);
    next_value(&at, "peer_static_public", e.peer);
    next_value(&at, "our_ephemeral_private", eph);
    next_value(&at, "send_key", tx);
    next_value(&at, "receive_key", rx);
    CHECK(next_value(&at, "in", want) == 148);
    CHECK(tn_wg_check_mac1(&e.dev, want, 148));
    CHECK(tn_wg_open_initiation(&e.dev, want, 148, &hello) == TN_WG_OK);
    CHECK_BYTES(hello.peer, e.peer, 32);
    CHECK(tn_wg_prove_initiation(&e.dev, &hello, 0) == TN_WG_OK);
    CHECK(tn_wg_respond(&e.wg, &hello, msg, eph, 0x55667788, &e.seen, 2000) == TN_WG_OK);
    CHECK_BYTES(e.wg.key[1 - e.wg.current].tx_key, tx, 32);
    CHECK_BYTES(e.wg.key[1 - e.wg.current].rx_key, rx, 32);
    live_data(&e, at, text + strlen(text));
    free(text);
}

/* ---- wrong bytes ---- */

static void remac(const tn_wg_device *to, uint8_t *msg, size_t len)
{
    tn_cr_mac(msg + len - 32, 16, to->mac1_key, 32, msg, len - 32);
}

/* Every length of every type but the right ones is OTHER. */
static void lengths(void)
{
    uint8_t  msg[200];
    size_t   len;
    unsigned type;
    for (type = 0; type < 8; type++) {
        for (len = 0; len <= sizeof msg; len++) {
            tn_wg_type want = TN_WG_OTHER;
            memset(msg, 0x55, sizeof msg);
            memset(msg, 0, 4);
            msg[0] = (uint8_t)type;
            if (type == 1 && len == 148) want = TN_WG_INITIATION;
            if (type == 2 && len == 92) want = TN_WG_RESPONSE;
            if (type == 3 && len == 64) want = TN_WG_COOKIE;
            if (type == 4 && len >= 32) want = TN_WG_DATA;
            CHECK(tn_wg_classify(msg, len) == want);
            CHECK((tn_wg_receiver(msg, len) != 0) == (want > TN_WG_INITIATION));
            msg[1] = 1;
            CHECK(tn_wg_classify(msg, len) == TN_WG_OTHER);
        }
    }
}

/* Every truncation of every message is refused, at no cost, and changes nothing. */
static void truncations(void)
{
    static end i, r, before;
    uint8_t    msg[148], reply[64], random[56] = {0};
    uint8_t   *cut;
    size_t     len;
    unsigned   news;
    tn_wg_hello hello;

    load_section5();
    end_init(&i, 1);
    end_init(&r, 2);
    tn_wg_device_init(&i.dev, section5.s_i, 0);
    tn_wg_device_init(&r.dev, section5.s_r, 0);
    CHECK(tn_wg_initiate(&i.dev, &i.wg, msg, r.dev.public_key, section5.stamp, section5.e_i,
                         section5.index_i, 5) == TN_WG_OK);
    tn_wg_cookie_reply(&r.dev, reply, msg, 148, r.from, 6, random, 5);
    before = i;
    multiplications = 0;
    for (len = 0; len < 148; len++) {       /* exact allocation: the sanitizer watches */
        cut = (uint8_t *)malloc(len + 1);
        memcpy(cut + 1, section5.initiation, len);
        CHECK(!tn_wg_check_mac1(&r.dev, cut + 1, len));
        CHECK(tn_wg_open_initiation(&r.dev, cut + 1, len, &hello) == TN_WG_MALFORMED);
        if (len < 92) {
            memcpy(cut + 1, section5.response, len);
            CHECK(!tn_wg_check_mac1(&i.dev, cut + 1, len));
            CHECK(tn_wg_consume_response(&i.dev, &i.wg, cut + 1, len, 6, &news) ==
                  TN_WG_MALFORMED);
        }
        if (len < 64) {
            memcpy(cut + 1, reply, len);
            CHECK(tn_wg_consume_cookie(&i.wg, r.dev.public_key, cut + 1, len, 6) ==
                  TN_WG_MALFORMED);
        }
        free(cut);
    }
    CHECK(multiplications == 0);
    CHECK(memcmp(&before, &i, sizeof i) == 0);
}

/* 5.6 #2: every bit of an initiation; without mac1, and with mac1 made right. */
static void bits_of_initiation(void)
{
    static end i, r;
    uint8_t    msg[148];
    unsigned   bit;
    tn_wg_hello hello;

    load_section5();
    end_init(&i, 1);
    end_init(&r, 2);
    tn_wg_device_init(&i.dev, section5.s_i, 0);
    tn_wg_device_init(&r.dev, section5.s_r, 0);
    memcpy(r.peer, i.dev.public_key, 32);
    for (bit = 0; bit < 132 * 8; bit++) {
        memcpy(msg, section5.initiation, 148);
        msg[bit / 8] ^= (uint8_t)(1u << bit % 8);
        multiplications = 0;
        CHECK(end_take(&r, msg, 148, i.from, 6, 9) != TN_WG_OK);
        CHECK(multiplications == 0 && r.wg.keys == TN_WG_KEYS_NONE);
        if (bit / 8 < 8 || bit / 8 >= 116) continue;
        remac(&r.dev, msg, 148);
        CHECK(tn_wg_check_mac1(&r.dev, msg, 148));
        if (bit / 8 < 88) {
            CHECK(tn_wg_open_initiation(&r.dev, msg, 148, &hello) == TN_WG_FORGED);
            CHECK(multiplications == 1);
        } else {
            CHECK(tn_wg_open_initiation(&r.dev, msg, 148, &hello) == TN_WG_OK);
            CHECK(tn_wg_prove_initiation(&r.dev, &hello, 0) == TN_WG_FORGED);
            CHECK(multiplications == 2);
        }
        CHECK(tn_is_zero(&hello, sizeof hello));
    }
    /* #3: random mac2, not under load */
    memcpy(msg, section5.initiation, 148);
    random_bytes(msg + 132, 16);
    CHECK(end_take(&r, msg, 148, i.from, 6, 9) == TN_WG_OK);
    /* #1: the same again */
    CHECK(end_take(&r, msg, 148, i.from, 6, 900) == TN_WG_REPLAYED);
}

/* 5.6 #4 and #5: every bit of a response; the right one still works. */
static void bits_of_response(void)
{
    static end i, r, before;
    uint8_t    msg[148];
    unsigned   bit, news;

    load_section5();
    end_init(&i, 1);
    end_init(&r, 2);
    tn_wg_device_init(&i.dev, section5.s_i, 0);
    tn_wg_device_init(&r.dev, section5.s_r, 0);
    CHECK(tn_wg_initiate(&i.dev, &i.wg, msg, r.dev.public_key, section5.stamp, section5.e_i,
                         section5.index_i, 5) == TN_WG_OK);
    before = i;
    for (bit = 0; bit < 76 * 8; bit++) {
        memcpy(msg, section5.response, 92);
        msg[bit / 8] ^= (uint8_t)(1u << bit % 8);
        multiplications = 0;
        CHECK(end_take(&i, msg, 92, r.from, 6, 9) != TN_WG_OK);
        CHECK(multiplications == 0);
        if (bit / 8 < 8 || bit / 8 >= 60) continue;
        remac(&i.dev, msg, 92);
        CHECK(tn_wg_check_mac1(&i.dev, msg, 92));
        CHECK(tn_wg_consume_response(&i.dev, &i.wg, msg, 92, 9, &news) ==
              (bit / 8 < 12 ? TN_WG_UNKNOWN : TN_WG_FORGED));
        CHECK(news == 0);
    }
    CHECK(memcmp(&before.wg, &i.wg, sizeof i.wg) == 0);
    CHECK(end_take(&i, section5.response, 92, r.from, 6, 9) == TN_WG_OK);
    CHECK(i.keepalives == 1 && i.out[0].len == 32);
    CHECK(end_take(&i, section5.response, 92, r.from, 6, 9) == TN_WG_UNKNOWN);
}

/* Every bit of data and cookie messages; the right one still works. */
static void bits_of_the_rest(void)
{
    static end a, b, before;
    message    m, c;
    unsigned   bit;
    uint8_t    random[56];

    connect_pair(&a, &b, 1000);
    end_send(&a, packet, sizeof packet, 1000);
    m = a.out[0];
    a.out_count = 0;
    before = b;
    for (bit = 0; bit < m.len * 8; bit++) {
        message bad = m;
        bad.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK(end_take(&b, bad.bytes, bad.len, a.from, 6, 1001) != TN_WG_OK);
    }
    for (bit = 0; bit < m.len; bit++)
        CHECK(end_take(&b, m.bytes, bit, a.from, 6, 1001) != TN_WG_OK);
    CHECK(memcmp(&before.wg, &b.wg, sizeof b.wg) == 0);
    CHECK(end_take(&b, m.bytes, m.len, a.from, 6, 1001) == TN_WG_OK);

    random_bytes(random, sizeof random);
    end_initiate(&a, 7000);
    m = a.out[0];
    c.len = 64;
    tn_wg_cookie_reply(&b.dev, c.bytes, m.bytes, m.len, a.from, 6, random, 7000);
    before = a;
    for (bit = 0; bit < 64 * 8; bit++) {
        message bad = c;
        bad.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK(end_take(&a, bad.bytes, bad.len, b.from, 6, 7001) != TN_WG_OK);
    }
    CHECK(memcmp(&before.wg, &a.wg, sizeof a.wg) == 0);
    CHECK(end_take(&a, c.bytes, 64, b.from, 6, 7001) == TN_WG_OK);
    CHECK(a.out_count == 1);                /* no immediate resend */
    /* a session that never sent a handshake takes no cookie */
    tn_wg_wipe(&a.wg);
    CHECK(end_take(&a, c.bytes, 64, b.from, 6, 7001) == TN_WG_UNKNOWN);
}

/* 5.6 #6: the points of small order (and their aliases above p). */
static void small_points(void)
{
    static const char *const points[] = {
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000080"
    };
    static end  i, r;
    uint8_t     msg[148], point[32], stamp[12];
    unsigned    k, news;
    tn_wg_hello hello;

    load_section5();
    for (k = 0; k < sizeof points / sizeof points[0]; k++) {
        hex(point, points[k]);
        end_init(&i, 1);
        end_init(&r, 2);
        memcpy(msg, section5.initiation, 148);
        memcpy(msg + 8, point, 32);
        remac(&r.dev, msg, 148);
        multiplications = 0;
        CHECK(tn_wg_open_initiation(&r.dev, msg, 148, &hello) == TN_WG_FORGED);
        CHECK(multiplications == 1);
        /* as the key of a peer: nothing is sent, nothing repeated */
        tn_wg_init(&i.wg, 1000);
        tn_wg_want(&i.wg, 1000);
        CHECK(tn_wg_timers(&i.wg, 1000) == TN_WG_WANT_HANDSHAKE);
        (void)tn_wg_stamp(&i.dev, 1, stamp);
        CHECK(tn_wg_initiate(&i.dev, &i.wg, msg, point, stamp, section5.e_i, 7, 1000) ==
              TN_WG_FORGED);
        CHECK(!tn_wg_has_index(&i.wg, 7) && tn_wg_deadline(&i.wg) == 541000);
        /* in a response */
        CHECK(tn_wg_initiate(&i.dev, &i.wg, msg, r.dev.public_key, stamp, section5.e_i,
                             section5.index_i, 9000) == TN_WG_OK);
        memcpy(msg, section5.response, 92);
        memcpy(msg + 12, point, 32);
        remac(&i.dev, msg, 92);
        CHECK(tn_wg_consume_response(&i.dev, &i.wg, msg, 92, 9000, &news) == TN_WG_FORGED);
        CHECK(tn_wg_is_pending(&i.wg, section5.index_i));
    }
}

/* ---- windows and counters ---- */

static tn_wg_verdict feed(end *e, uint64_t counter)
{
    uint8_t       msg[48] = {4};
    tailnet_crypt work;
    unsigned      news;
    tn_wg_key    *key = &e->wg.key[e->wg.current];
    unsigned      i;
    tn_wg_verdict v;

    for (i = 0; i < 4; i++) msg[4 + i] = (uint8_t)(key->local >> (8 * i));
    for (i = 0; i < 8; i++) msg[8 + i] = (uint8_t)(counter >> (8 * i));
    memset(&work, 0, sizeof work);
    work.key     = key->rx_key;
    work.counter = counter;
    work.data    = msg + 16;
    work.len     = 16;
    crypt_one(&work);
    v = tn_wg_open_begin(&e->wg, msg, sizeof msg, 1000, &work);
    if (v != TN_WG_OK) return v;
    crypt_one(&work);
    CHECK(work.ok);
    return tn_wg_accept(&e->wg, msg, &work, 1000, &news);
}

/* 5.6 #7, and the same with the whole packet path: the window is exactly as
 * wide as it says. */
static void window_width(void)
{
    static end     a, b;
    const uint64_t w = TAILNET_REPLAY_BITS;
    static const uint64_t bases[] = {0, 90031, 200064, 900000, 0xfffffff0u,
                                     ((uint64_t)1 << 32) + 90000, ((uint64_t)1 << 40) + 77,
                                     UINT64_MAX - 60000};
    unsigned       k;

    connect_pair(&a, &b, 1000);
    memset(&b.wg.key[b.wg.current].window, 0, sizeof(tn_wg_window));
    CHECK(feed(&b, 0) == TN_WG_OK && feed(&b, 2) == TN_WG_OK && feed(&b, 1) == TN_WG_OK);
    CHECK(feed(&b, 1) == TN_WG_REPLAYED && feed(&b, 2) == TN_WG_REPLAYED);
    CHECK(feed(&b, w + 2) == TN_WG_OK);
    CHECK(feed(&b, 1) == TN_WG_REPLAYED);   /* too old */
    CHECK(feed(&b, 2) == TN_WG_REPLAYED);   /* seen */
    CHECK(feed(&b, 3) == TN_WG_OK);         /* in the window, new */
    CHECK(feed(&b, 3) == TN_WG_REPLAYED);
    for (k = 1; k < sizeof bases / sizeof bases[0]; k++) {
        uint64_t h = bases[k] + 3 * w;
        CHECK(feed(&b, h) == TN_WG_OK);
        CHECK(feed(&b, h) == TN_WG_REPLAYED);
        CHECK(feed(&b, h - w) == TN_WG_OK);             /* 2,048 behind */
        CHECK(feed(&b, h - w - 1) == TN_WG_REPLAYED);   /* 2,049 behind */
        CHECK(feed(&b, h - 1) == TN_WG_OK);
        CHECK(feed(&b, h + 1) == TN_WG_OK);             /* all move by one */
        CHECK(feed(&b, h) == TN_WG_REPLAYED);
        CHECK(feed(&b, h - w) == TN_WG_REPLAYED);
        CHECK(feed(&b, h - w + 1) == TN_WG_OK);
        CHECK(feed(&b, h + 1 + w) == TN_WG_OK);         /* the old head is the last one */
        CHECK(feed(&b, h + 1) == TN_WG_REPLAYED);
        CHECK(feed(&b, h + 2) == TN_WG_OK);
    }
}

/* A counter out of a thousand different walks, against a plain list. */
static void window_model(void)
{
    enum { N = 20000 };
    static uint8_t      seen[N + 4 * TAILNET_REPLAY_BITS];
    static tn_wg_window win;
    unsigned            walk;

    for (walk = 0; walk < 60; walk++) {
        uint64_t base = walk % 3 == 0 ? 0 : tn_test_random() >> (walk % 40 + 8);
        uint64_t head = 0;
        bool     any  = false;
        unsigned step;
        memset(seen, 0, sizeof seen);
        memset(&win, 0, sizeof win);
        for (step = 0; step < 4000; step++) {
            uint64_t r = tn_test_random(), at;
            bool     want;
            switch (r % 8) {
            case 0:  at = head + r / 8 % 40; break;
            case 1:  at = head + 1; break;
            case 2:  at = head + (r / 8 % 50 == 0 ? r / 400 % (3 * TAILNET_REPLAY_BITS) : 1); break;
            case 3:  at = head - tn_min64(head, TAILNET_REPLAY_BITS - 2 + r / 8 % 5); break;
            default: at = head - tn_min64(head, r / 8 % (TAILNET_REPLAY_BITS + 20)); break;
            }
            if (at >= sizeof seen) break;
            want = !any || at > head || (head - at <= TAILNET_REPLAY_BITS && !seen[at]);
            CHECK(tn_wg_window_new(&win, base + at) == want);
            if (!want) continue;
            tn_wg_window_set(&win, base + at);
            seen[at] = 1;
            if (!any || at > head) head = at;
            any = true;
            CHECK(win.next == base + head + 1);
        }
    }
}

/* 5.6 #8 and #9, and the sender's limits. */
static void counters(void)
{
    static end     a, b, before;
    const uint64_t reject = UINT64_MAX - 8192;  /* 2^64 - 2^13 - 1 */
    message        m;
    unsigned       i;

    connect_pair(&a, &b, 1000);
    before = b;
    CHECK(feed(&b, reject) == TN_WG_REPLAYED);
    CHECK(feed(&b, UINT64_MAX) == TN_WG_REPLAYED);
    CHECK(memcmp(&before.wg, &b.wg, sizeof b.wg) == 0);
    end_send(&a, packet, sizeof packet, 1000);
    m = a.out[0];
    a.out_count = 0;
    for (i = 0; i < 8; i++) m.bytes[8 + i] = (uint8_t)(0x70 + i);
    CHECK(end_take(&b, m.bytes, m.len, a.from, 6, 1000) == TN_WG_FORGED);
    CHECK(memcmp(&before.wg, &b.wg, sizeof b.wg) == 0);
    CHECK(feed(&b, 1) == TN_WG_OK);
    CHECK(feed(&b, reject - 1) == TN_WG_OK);
    CHECK(feed(&b, reject) == TN_WG_REPLAYED);

    /* 2^60 messages: renew, go on; at the limit: stop */
    CHECK(a.wg.initiate_ms == 0);
    a.wg.key[a.wg.current].tx_counter = (uint64_t)1 << 60;
    end_send(&a, packet, sizeof packet, 1000);
    CHECK(a.wg.initiate_ms == 0);
    end_send(&a, packet, sizeof packet, 1000);
    CHECK(a.wg.initiate_ms != 0 && a.out_count == 2);
    b.wg.key[b.wg.current].tx_counter = reject - 1;     /* the responder, too */
    CHECK(tn_wg_can_send(&b.wg, 1000));
    end_send(&b, packet, sizeof packet, 1000);
    CHECK(b.out_count == 1 && b.wg.initiate_ms != 0);
    end_send(&b, packet, sizeof packet, 1000);
    CHECK(b.out_count == 1 && b.staged_count == 1);
    CHECK(!tn_wg_can_send(&b.wg, 1000));
}

/* Padding to 16, never beyond the MTU; a longer packet goes as it is. */
static void padding(void)
{
    static end     a, b;
    uint8_t        buf[1600];
    size_t         len;
    tailnet_crypt  work;

    connect_pair(&a, &b, 1000);
    for (len = 0; len < 1400; len++) {
        size_t want = (len + 15) / 16 * 16;
        if (want > 1276) want = len > 1276 ? len : 1276;
        memset(buf, 0xee, sizeof buf);
        CHECK(tn_wg_seal_begin(&a.wg, buf, len, 1276, 1000, &work) == TN_WG_OK);
        CHECK(work.len == want && work.data == buf + 16 && !work.open);
        CHECK(tn_is_zero(buf + 16 + len, want - len));
        CHECK(buf[16 + want] == 0xee);
        if (len != 0) CHECK(buf[16] == 0xee && buf[16 + len - 1] == 0xee);
    }
}

/* ---- stamps ---- */

static uint64_t stamp_at(tn_wg_device *d, uint64_t unix_ms, uint8_t last[12], bool *save)
{
    uint8_t out[12];
    *save = tn_wg_stamp(d, unix_ms, out);
    CHECK(memcmp(out, last, 12) > 0);
    CHECK(tn_wg_stamp_value(out) > tn_wg_stamp_value(last));
    CHECK((out[9] | out[10] | out[11]) == 0 && out[0] == 0x40);
    CHECK(d->stamp_ms <= d->stamp_saved_ms);
    memcpy(last, out, 12);
    return d->stamp_ms;
}

static void stamps(void)
{
    static tn_wg_device d;
    uint8_t             last[12] = {0}, key[32] = {9}, stamp[12];
    bool                save;
    unsigned            i, saves = 0, boots;
    uint64_t            t = 1763700000123u, kept;

    tn_wg_device_init(&d, key, 0);
    stamp_at(&d, 1704164640268u, last, &save);      /* the document's stamp */
    CHECK(save);
    CHECK_HEX(last, "400000006593" "7d2a0f000000");
    for (i = 0; i < 20000; i++) {           /* a clock that runs, stops, and steps back */
        uint64_t r = tn_test_random();
        t += r % 40;
        if (r >> 32 % 100 == 0) t -= r % 5000;
        stamp_at(&d, t, last, &save);
    }
    /* a week with a clock: one save a day */
    for (i = 0; i < 7 * 24 * 60; i++) {
        t += 60000;
        stamp_at(&d, t, last, &save);
        saves += save;
        if (save) CHECK(d.stamp_saved_ms == t + 86400000u);
    }
    CHECK(saves >= 7 && saves <= 9);
    /* reboots, always from what was last stored: forward only, and no running away */
    for (boots = 0; boots < 50; boots++) {
        kept = d.stamp_saved_ms;
        tn_wg_device_init(&d, key, kept);
        for (i = 0; i < 3; i++) stamp_at(&d, t += 1000, last, &save);
        CHECK(d.stamp_saved_ms < t + 86400000u + 51u * 600000u);
    }
    /* no wall clock at all, and one beyond all reason */
    for (boots = 0; boots < 5; boots++) {
        tn_wg_device_init(&d, key, d.stamp_saved_ms);
        stamp_at(&d, 0, last, &save);
        CHECK(save);
        for (i = 0; i < 30000; i++) {
            stamp_at(&d, i % 2 ? 0 : UINT64_MAX - i, last, &save);
            CHECK(!save);
        }
    }
    CHECK(!tn_wg_stamp_reserve(&d, 0));
    tn_wg_device_init(&d, key, 0);
    CHECK(tn_wg_stamp_reserve(&d, t) && !tn_wg_stamp_reserve(&d, t + 86000000u));
    CHECK(tn_wg_stamp_reserve(&d, t + 86400000u));

    memset(stamp, 0xff, 12);
    CHECK(tn_wg_stamp_value(stamp) == UINT64_MAX);
    memset(stamp, 0, 12);
    CHECK(tn_wg_stamp_value(stamp) == 0);
    stamp[0] = 0x40;
    stamp[10] = 1;
    CHECK(tn_wg_stamp_value(stamp) == 1);
}

/* Old stamps, the same stamp, the flood rule, and a seen stamp that outlives the
 * session. */
static void stamp_replays(void)
{
    static end a, b;
    message    first, second;

    connect_pair(&a, &b, 1000);
    end_initiate(&a, 7000);
    first = a.out[0];
    end_initiate(&a, 13000);
    second = a.out[1];
    CHECK(end_take(&b, second.bytes, 148, a.from, 6, 13000) == TN_WG_OK);
    CHECK(end_take(&b, first.bytes, 148, a.from, 6, 20000) == TN_WG_REPLAYED);
    CHECK(end_take(&b, second.bytes, 148, a.from, 6, 20000) == TN_WG_REPLAYED);
    CHECK(b.responses == 2);
    tn_wg_wipe(&b.wg);                      /* the slot went to another peer */
    CHECK(end_take(&b, first.bytes, 148, a.from, 6, 30000) == TN_WG_REPLAYED);
    CHECK(b.wg.keys == TN_WG_KEYS_NONE);
    end_initiate(&a, 30000);
    first = a.out[2];
    end_initiate(&a, 36000);
    second = a.out[3];
    CHECK(end_take(&b, first.bytes, 148, a.from, 6, 36000) == TN_WG_OK);
    CHECK(end_take(&b, second.bytes, 148, a.from, 6, 36249) == TN_WG_TOO_SOON);
    CHECK(end_take(&b, second.bytes, 148, a.from, 6, 36250) == TN_WG_OK);
    /* initiate itself keeps the 5 s */
    a.out_count = 0;
    end_initiate(&a, 40999);
    CHECK(a.out_count == 0);
    end_initiate(&a, 41000);
    CHECK(a.out_count == 1);
}

/* ---- key slots ---- */

/* The three places of the paper, moved by its rules word for word. */
typedef struct places {
    uint32_t previous, current, next;
} places;

static void places_move(places *p, tn_wg_event event, uint32_t key)
{
    switch (event) {
    case TN_WG_INITIATED:
        if (p->next != 0) {
            p->previous = p->next;
            p->next     = 0;
        } else {
            p->previous = p->current;
        }
        p->current = key;
        break;
    case TN_WG_RESPONDED:
        p->next     = key;
        p->previous = 0;
        break;
    case TN_WG_CONFIRMED:
        p->previous = p->current;
        p->current  = p->next;
        p->next     = 0;
        break;
    }
}

static void places_compare(const tn_wg *wg, const places *p, uint32_t top)
{
    static const uint8_t names[5] = {0, 4, 2, 6, 3};    /* previous 1, current 2, next 4 */
    uint32_t             key;
    CHECK(names[wg->keys] == ((p->previous != 0) | (p->current != 0) << 1 | (p->next != 0) << 2));
    for (key = 1; key <= top; key++) {
        bool lives = key == p->previous || key == p->current || key == p->next;
        CHECK((tn_wg_key_of(wg, key) >= 0) == lives);
        if (key == p->current) CHECK(tn_wg_key_of(wg, key) == wg->current && tn_wg_has_current(wg));
        if (key == p->next) CHECK(tn_wg_key_of(wg, key) == 1 - wg->current && tn_wg_has_next(wg));
    }
}

/* All walks of eight events: the same keys live in the same places, and exactly
 * the arrows of the table are taken. */
static void slot_arrows(void)
{
    uint8_t  seen[5][3];
    uint32_t walk;

    memset(seen, 0xff, sizeof seen);
    for (walk = 0; walk < 6561; walk++) {
        static tn_wg wg;
        tn_wg_noise  n;
        places       p = {0, 0, 0};
        uint32_t     w = walk, key;
        tn_wg_init(&wg, 0);
        memset(&n, 7, sizeof n);
        for (key = 1; key <= 8; key++, w /= 3) {
            tn_wg_event event = (tn_wg_event)(w % 3);
            tn_wg_keys  was   = wg.keys;
            if (event == TN_WG_CONFIRMED) {
                uint8_t       msg[32] = {4};
                tailnet_crypt work;
                unsigned      news;
                if (p.next == 0) break;
                memset(&work, 0, sizeof work);
                msg[4]  = (uint8_t)p.next;
                work.ok = true;
                CHECK(tn_wg_accept(&wg, msg, &work, 10, &news) == TN_WG_OK);
                CHECK(news == TN_WG_NEW_KEY && !wg.initiator);
            } else {
                tn_wg_derive(&wg, event, &n, key, 100 + key, 10);
                CHECK(event == TN_WG_RESPONDED || wg.initiator);
            }
            places_move(&p, event, key);
            places_compare(&wg, &p, key);
            CHECK(wg.keys == (tn_wg_keys)tn_wg_after[was][event]);
            CHECK(seen[was][event] == 0xff || seen[was][event] == wg.keys);
            seen[was][event] = (uint8_t)wg.keys;
        }
    }
    /* the drawing: from, event, to; nothing else happens */
    {
        static const uint8_t drawn[5][3] = {{2, 1, 0xff}, {4, 1, 2}, {4, 3, 0xff}, {4, 3, 4},
                                            {4, 3, 0xff}};
        CHECK(memcmp(seen, drawn, sizeof seen) == 0);
    }
}

/* Data on the previous key, and on next while it waits, is still taken. */
static void old_keys_still_open(void)
{
    static end a, b;
    message    late, early;

    connect_pair(&a, &b, 1000);
    end_send(&a, packet, sizeof packet, 2000);
    late = a.out[0];
    a.out_count = 0;
    tn_wg_want(&a.wg, 122000);
    end_poll(&a, 122000);
    exchange(&a, &b, 122000);
    CHECK(a.wg.keys == TN_WG_KEYS_CURRENT_PREVIOUS && b.wg.keys == TN_WG_KEYS_CURRENT_PREVIOUS);
    CHECK(end_take(&b, late.bytes, late.len, a.from, 6, 122000) == TN_WG_OK);
    CHECK(b.wg.keys == TN_WG_KEYS_CURRENT_PREVIOUS);
    /* the responder goes on with the old key until the new one is confirmed */
    tn_wg_want(&a.wg, 242000);
    end_poll(&a, 242000);
    early = a.out[0];
    a.out_count = 0;
    CHECK(end_take(&b, early.bytes, early.len, a.from, 6, 242000) == TN_WG_OK);
    CHECK(b.wg.keys == TN_WG_KEYS_CURRENT_NEXT);
    early = b.out[0];
    b.out_count = 0;
    end_send(&b, packet, sizeof packet, 242000);
    CHECK(end_take(&a, b.out[0].bytes, b.out[0].len, b.from, 6, 242000) == TN_WG_OK);
    CHECK(b.wg.keys == TN_WG_KEYS_CURRENT_NEXT);
    CHECK(end_take(&a, early.bytes, early.len, b.from, 6, 242001) == TN_WG_OK);
    b.out_count = 0;
    exchange(&a, &b, 242001);
    CHECK(b.wg.keys == TN_WG_KEYS_CURRENT_PREVIOUS && b.wg.initiate_ms == 0);
}

/* ---- behaviour in time, section 5.6 ---- */

/* #10, and: a responder sends nothing before. */
static void responder_waits(void)
{
    static end a, b;
    message    m;

    end_pair(&a, &b, 1000);
    tn_wg_want(&a.wg, 1000);
    end_poll(&a, 1000);
    m = a.out[0];
    a.out_count = 0;
    CHECK(end_take(&b, m.bytes, m.len, a.from, 6, 1000) == TN_WG_OK);
    m = b.out[0];
    b.out_count = 0;
    end_send(&b, packet, sizeof packet, 1000);
    end_poll(&b, 1000);
    CHECK(b.out_count == 0 && b.staged_count == 1);
    CHECK(tn_wg_deadline(&b.wg) == 6000);   /* put off, not forgotten */
    CHECK(end_take(&a, m.bytes, m.len, b.from, 6, 1010) == TN_WG_OK);
    CHECK(a.keepalives == 1);
    m = a.out[0];
    a.out_count = 0;
    CHECK(end_take(&b, m.bytes, m.len, a.from, 6, 1020) == TN_WG_OK);
    CHECK(b.out_count == 1 && b.staged_count == 0 && b.sealed == 1);
    CHECK(b.wg.initiate_ms == 0);
    exchange(&a, &b, 1030);
    CHECK(a.accepted == 1 && memcmp(a.last, packet, sizeof packet) == 0);

    /* the confirmation is lost: after 5 s the responder calls himself */
    end_pair(&a, &b, 1000);
    tn_wg_want(&a.wg, 1000);
    end_poll(&a, 1000);
    m = a.out[0];
    a.out_count = 0;
    CHECK(end_take(&b, m.bytes, m.len, a.from, 6, 1000) == TN_WG_OK);
    end_send(&b, packet, sizeof packet, 1500);
    b.out_count = 0;
    a.out_count = 0;
    end_poll(&b, 6000);
    CHECK(b.initiations == 1);
    exchange(&b, &a, 6000);
    CHECK(memcmp(a.last, packet, sizeof packet) == 0 && tn_wg_can_send(&a.wg, 6000));
}

/* #13 and #14 */
static void passive_keepalive(void)
{
    static end a, b;
    connect_pair(&a, &b, 1000);             /* b has had one data packet */
    CHECK(tn_wg_deadline(&b.wg) == 11000);
    run(&b, 10999);
    CHECK(b.keepalives == 0);
    run_both(&a, &b, 200000);
    CHECK(b.keepalives == 1 && a.keepalives == 0 && a.initiations == 1 && b.initiations == 0);
    CHECK(a.accepted == 1 && a.last_len == 0);
    /* many packets in ten seconds, one keepalive; own data replaces it */
    connect_pair(&a, &b, 1000);
    end_send(&a, packet, sizeof packet, 5000);
    exchange(&a, &b, 5000);
    run_both(&a, &b, 60000);
    CHECK(b.keepalives == 1);
    end_send(&a, packet, sizeof packet, 70000);
    exchange(&a, &b, 70000);
    end_send(&b, packet, sizeof packet, 71000);
    exchange(&a, &b, 71000);
    run_both(&a, &b, 100000);
    CHECK(b.keepalives == 1 && a.keepalives == 1);
}

/* #15: and the answer stops it. */
static void silence(void)
{
    static end a, b;
    uint64_t   at;
    unsigned   k;
    for (k = 0; k < 20; k++) {
        connect_pair(&a, &b, 1000);
        a.news = 0;
        a.wg.silence_ms = 0;
        end_send(&a, packet, sizeof packet, 30000);
        at = tn_wg_deadline(&a.wg);
        CHECK(at >= 45000 && at <= 45333);
        end_send(&a, packet, sizeof packet, 40000);
        CHECK(tn_wg_deadline(&a.wg) == at);
        a.out_count = 0;
        end_poll(&a, at - 1);
        CHECK(a.initiations == 1);
        end_poll(&a, at);
        CHECK(a.initiations == 2 && a.out_count == 1 && (a.news & TN_WG_SILENT) != 0);
    }
    connect_pair(&a, &b, 1000);
    end_send(&b, NULL, 0, 5000);            /* a keepalive is an answer */
    exchange(&a, &b, 5000);
    CHECK(a.wg.silence_ms == 0);
    end_send(&a, NULL, 0, 5000);            /* and awaits none */
    CHECK(a.wg.silence_ms == 0);
    exchange(&a, &b, 5000);
    CHECK(b.wg.keepalive_ms == 0);          /* nor brings one about */
}

/* #16, #17, #18 */
static void rekey_by_age(void)
{
    static end a, b;
    uint64_t   t;

    connect_pair(&a, &b, 1000);
    end_send(&a, packet, sizeof packet, 121000);
    CHECK(a.wg.initiate_ms == 0);           /* exactly 120 s: not yet */
    end_send(&a, packet, sizeof packet, 122000);
    CHECK(a.out_count == 2);                /* goes on the old key */
    CHECK((tn_wg_timers(&a.wg, 122000) & TN_WG_WANT_HANDSHAKE) != 0);
    end_send(&b, packet, sizeof packet, 122000);
    CHECK(b.out_count == 1 && b.wg.initiate_ms == 0);
    a.out_count = 0;

    connect_pair(&a, &b, 1000);             /* 165 s rule of the receiver, once */
    b.out_count = 0;
    end_send(&b, packet, sizeof packet, 166000);
    exchange(&a, &b, 166000);
    CHECK(a.wg.initiate_ms == 0);
    end_send(&b, packet, sizeof packet, 166001);
    exchange(&a, &b, 166001);
    CHECK((tn_wg_timers(&a.wg, 166001) & TN_WG_WANT_HANDSHAKE) != 0);
    CHECK(a.wg.renewed_late);
    a.wg.initiate_ms = 0;
    end_send(&b, packet, sizeof packet, 166002);
    exchange(&a, &b, 166002);
    CHECK(a.wg.initiate_ms == 0);
    end_send(&a, packet, sizeof packet, 166003);    /* the responder does not */
    exchange(&a, &b, 166003);
    CHECK(b.wg.initiate_ms == 0 && !b.wg.renewed_late);

    connect_pair(&a, &b, 1000);
    end_send(&a, packet, sizeof packet, 180999);
    CHECK(a.out_count == 1);
    CHECK(end_take(&b, a.out[0].bytes, a.out[0].len, a.from, 6, 181000) == TN_WG_OK);
    end_send(&a, packet, sizeof packet, 180999);
    CHECK(end_take(&b, a.out[1].bytes, a.out[1].len, a.from, 6, 181001) == TN_WG_EXPIRED);
    a.out_count = 0;
    for (t = 181000; t < 183000; t += 1000) {
        a.out_count = 0;
        end_send(&a, packet, sizeof packet, t);
        CHECK(a.out_count == 0 && a.staged_count != 0);
    }
    end_poll(&a, 183000);
    exchange(&a, &b, 183000);
    CHECK(a.initiations == 2 && a.staged_count == 0 && tn_wg_can_send(&a.wg, 183000));
}

/* #19 */
static void giving_up(void)
{
    static end a, b;
    uint64_t   at = 0, last = 0;
    unsigned   n = 0;

    end_pair(&a, &b, 1000);
    end_send(&a, packet, sizeof packet, 1000);
    while (a.gave_up == 0) {
        at = tn_wg_deadline(&a.wg);
        end_poll(&a, at);
        if (a.initiations == n) break;
        if (n != 0) CHECK(at - last >= 5000 && at - last <= 5333);
        n    = a.initiations;
        last = at;
        CHECK(a.staged_count == 1);
    }
    CHECK(n == 20 && a.gave_up == 1 && a.staged_count == 0);
    CHECK(at >= 101000 && at <= 1000 + 20 * 5333);
    CHECK(tn_wg_deadline(&a.wg) == 541000);
    run(&a, 300000);
    CHECK(a.initiations == 20);
    end_send(&a, packet, sizeof packet, 300000);
    CHECK(tn_wg_deadline(&a.wg) == 300000);
    run(&a, 430000);
    CHECK(a.initiations == 40 && a.gave_up == 2);
    /* traffic keeps the attempt alive */
    end_pair(&a, &b, 1000);
    for (at = 1000; at < 300000; at += 1000) {
        end_send(&a, packet, sizeof packet, at);
        run(&a, at + 999);
    }
    CHECK(a.gave_up == 0 && a.initiations > 54 && a.staged_count == STAGED_MAX);
    /* and at last everything is erased */
    run(&a, 1000000);
    CHECK(a.gave_up == 1 && a.erased == 1 && a.staged_count == 0);
    CHECK(tn_is_zero(&a.wg, sizeof a.wg) && tn_wg_deadline(&a.wg) == TN_NEVER);
}

/* #20: no stall, and one of the two sessions is left after a while. */
static void simultaneous(void)
{
    static end a, b;
    static message ia, ib;
    uint64_t   t;
    unsigned   rounds;

    for (rounds = 0; rounds < 6; rounds++) {
        end_pair(&a, &b, 1000);
        end_send(&a, packet, sizeof packet, 1000);
        end_send(&b, packet, sizeof packet, 1000);
        end_poll(&a, 1000);
        end_poll(&b, 1000);
        ia = a.out[0];
        ib = b.out[0];
        a.out_count = b.out_count = 0;
        CHECK(end_take(&b, ia.bytes, ia.len, a.from, 6, 1050) == TN_WG_OK);
        CHECK(end_take(&a, ib.bytes, ib.len, b.from, 6, 1050) == TN_WG_OK);
        if (rounds % 2 == 0) {
            exchange(&a, &b, 1100);
        } else {                            /* the responses cross on the way as well */
            ia = a.out[0];
            ib = b.out[0];
            a.out_count = b.out_count = 0;
            CHECK(end_take(&b, ia.bytes, ia.len, a.from, 6, 1100) == TN_WG_OK);
            CHECK(end_take(&a, ib.bytes, ib.len, b.from, 6, 1100) == TN_WG_OK);
            exchange(&a, &b, 1150);
        }
        CHECK(a.accepted >= 1 && b.accepted >= 1);
        CHECK(memcmp(a.last, packet, 40) == 0 || a.last_len == 0);
        CHECK(a.sealed == 1 && b.sealed == 1);
        CHECK(tn_wg_can_send(&a.wg, 1150) && tn_wg_can_send(&b.wg, 1150));
        CHECK(a.wg.initiate_ms == 0 && b.wg.initiate_ms == 0);
        for (t = 1200; t < 1000000; t += 100) {
            unsigned before_a = a.accepted, before_b = b.accepted;
            end_send(&a, packet, sizeof packet, t);
            end_send(&b, packet, sizeof packet, t);
            end_poll(&a, t);
            end_poll(&b, t);
            exchange(&a, &b, t);
            CHECK(a.accepted > before_a && b.accepted > before_b);
        }
        CHECK(a.initiations + b.initiations <= 18);
    }
}

/* #21 and what follows: a loaded peer, cookies in both directions. */
static void cookie_life(void)
{
    static end a, b;
    uint8_t    random[56], reply[64];
    message    m;

    end_pair(&a, &b, 1000);
    tn_wg_want(&a.wg, 1000);
    end_poll(&a, 1000);
    CHECK(tn_is_zero(a.out[0].bytes + 132, 16));
    random_bytes(random, 56);
    tn_wg_cookie_reply(&b.dev, reply, a.out[0].bytes, 148, a.from, 6, random, 1000);
    a.out_count = 0;
    CHECK(end_take(&a, reply, 64, b.from, 6, 1100) == TN_WG_OK);
    CHECK(a.out_count == 0 && tn_wg_deadline(&a.wg) >= 6000);
    end_poll(&a, tn_wg_deadline(&a.wg));
    CHECK(a.out_count == 1);
    CHECK(tn_wg_check_mac2(&b.dev, a.out[0].bytes, 148, a.from, 6, 6500));
    CHECK(!tn_wg_check_mac2(&b.dev, a.out[0].bytes, 148, b.from, 6, 6500));
    /* the reply answers one message only: a newer one has another mac1 */
    CHECK(end_take(&a, reply, 64, b.from, 6, 6600) == TN_WG_UNKNOWN);
    /* a response can be answered by a cookie as well; a key's index names it, too */
    CHECK(end_take(&b, a.out[0].bytes, 148, a.from, 6, 6600) == TN_WG_OK);
    m = b.out[0];
    b.out_count = a.out_count = 0;
    tn_wg_cookie_reply(&a.dev, reply, m.bytes, 92, b.from, 6, random, 6600);
    CHECK(end_take(&b, reply, 64, a.from, 6, 6600) == TN_WG_OK);
    CHECK(b.wg.cookie_until_ms == 126600);
    tn_wg_want(&b.wg, 6600);
    end_poll(&b, 126000);
    CHECK(tn_wg_check_mac2(&a.dev, b.out[0].bytes, 148, b.from, 6, 126000));
    end_initiate(&b, 131001);               /* 120 s are over on both sides */
    CHECK(tn_is_zero(b.out[1].bytes + 132, 16));
    CHECK(!tn_wg_check_mac2(&a.dev, b.out[0].bytes, 148, b.from, 6, 126600));
    /* the secret changes with the first reply after 120 s */
    memset(reply, 0, sizeof reply);
    tn_wg_cookie_reply(&a.dev, reply, m.bytes, 92, b.from, 6, random, 126599);
    CHECK(a.dev.cookie_until_ms == 126600);
    random_bytes(random, 56);
    tn_wg_cookie_reply(&a.dev, reply, m.bytes, 92, b.from, 6, random, 126600);
    CHECK(a.dev.cookie_until_ms == 246600);
    CHECK_BYTES(a.dev.cookie_secret, random, 32);
}

/* Attackers with true addresses get cookies, and still only a share. */
static void flood_proven(end *v, uint8_t from[6])
{
    uint64_t t;
    multiplications = 0;
    for (t = 100000; t < 110000; t += 10) {
        uint8_t msg[148], cookie[16];
        random_bytes(msg, sizeof msg);
        memset(msg, 0, 4);
        msg[0] = 1;
        remac(&v->dev, msg, 148);
        from[3] = (uint8_t)(t / 10 % 20);
        if (t < v->dev.cookie_until_ms) {
            tn_cr_mac(cookie, 16, v->dev.cookie_secret, 32, from, 6);
            tn_cr_mac(msg + 132, 16, cookie, 16, msg, 132);
        }
        (void)end_take(v, msg, 148, from, 6, t);
        v->out_count = 0;
    }
    CHECK(multiplications <= 2 * (6 + 30 + 1));
}

/* Data and cookies without an index cost nothing. */
static void flood_unknown(end *v, const uint8_t from[6])
{
    unsigned k;
    multiplications = 0;
    for (k = 0; k < 1000; k++) {
        uint8_t msg[92];
        random_bytes(msg, sizeof msg);
        memset(msg, 0, 4);
        msg[0] = (uint8_t)(2 + k % 3);
        if (msg[0] == 2) remac(&v->dev, msg, 92);
        CHECK(end_take(v, msg, msg[0] == 3 ? 64 : 92, from, 6, 120000) == TN_WG_UNKNOWN);
    }
    CHECK(multiplications == 0);
}

/* A flood from anywhere with a right mac1: the work stays bounded, cookie
 * replies stay bounded, and an honest peer gets through. */
static void flood(void)
{
    static end a, v;
    uint64_t   t, first = 0, second = 0, called = 0;
    bool       asked = false;
    unsigned   spent;
    uint8_t    from[6] = {10, 0, 0, 1, 1, 1};

    end_pair(&a, &v, 1000);
    multiplications = 0;
    for (t = 20000; t < 80000; t++) {
        uint8_t msg[148];
        bool    foul = tn_test_random() % 4 == 0;
        random_bytes(msg, sizeof msg);      /* knows the public key, no more */
        memset(msg, 0, 4);
        msg[0] = 1;
        remac(&v.dev, msg, 148);
        from[2] = (uint8_t)tn_test_random();
        from[3] = (uint8_t)tn_test_random();
        spent = multiplications;
        if (foul) {
            CHECK(end_take(&v, msg, 148, from, 6, t) != TN_WG_OK);
            v.out_count = 0;
        }
        CHECK(multiplications <= spent + 1);
        if (foul) continue;
        if (!asked && t >= 23000) {
            asked = true;
            tn_wg_want(&a.wg, t);
        }
        if (called == 0 && t >= 60000) {    /* now the victim calls */
            called = t;
            tn_wg_wipe(&a.wg);
            tn_wg_init(&v.wg, t);
            tn_wg_want(&v.wg, t);
        }
        end_poll(&a, t);
        end_poll(&v, t);
        exchange(&a, &v, t);
        if (first == 0 && tn_wg_can_send(&a.wg, t)) first = t;
        if (second == 0 && called != 0 && tn_wg_can_send(&v.wg, t)) second = t;
    }
    /* 60 s: 6 in the bucket, three per second, and what the honest one costs */
    CHECK(multiplications <= 6 + 60 * 3 + 40);
    CHECK(v.cookies <= 50 + 60 * 100);
    CHECK(first != 0 && first <= 23000 + 20000);
    CHECK(second == called);                /* responses are not held up */
    printf("flood: %u multiplications and %u cookies in 60 s, the peer waits %u ms\n",
           multiplications, v.cookies, (unsigned)(first - 23000));
    flood_proven(&v, from);
    flood_unknown(&v, from);
}

/* The buckets: limit, limit + 1, refill; one proven source does not use up
 * another one's; forged responses with a right index have a bucket of their own. */
static void buckets(void)
{
    static tn_wg_device d;
    uint8_t             key[32] = {5}, msg[148] = {1}, resp[92] = {2}, cookie[16];
    uint8_t             from[18] = {9}, random[56] = {3}, reply[64];
    uint64_t            full = 0;
    unsigned            i;

    for (i = 0; i < 6; i++) CHECK(tn_wg_take(&full, 1000, 333, 6));
    CHECK(!tn_wg_take(&full, 1000, 333, 6));
    CHECK(!tn_wg_take(&full, 1332, 333, 6));
    CHECK(tn_wg_take(&full, 1333, 333, 6) && !tn_wg_take(&full, 1333, 333, 6));
    full = 0;
    CHECK(tn_wg_take(&full, 0, 10, 1) && !tn_wg_take(&full, 9, 10, 1));
    CHECK(tn_wg_take(&full, 10, 10, 1));

    tn_wg_device_init(&d, key, 0);
    for (i = 0; i < 6; i++)
        CHECK(tn_wg_admit(&d, msg, 148, from, 6, 1000) == TN_WG_ADMIT);
    CHECK(tn_wg_admit(&d, msg, 148, from, 6, 1000) == TN_WG_ANSWER_COOKIE);
    CHECK(tn_wg_admit(&d, msg, 148, from, 6, 1999) == TN_WG_ANSWER_COOKIE);     /* held */
    CHECK(tn_wg_admit(&d, resp, 92, from, 6, 1000) == TN_WG_ADMIT);
    CHECK(tn_wg_admit(&d, msg, 148, from, 6, 2000) == TN_WG_ADMIT);
    for (i = 0; i < 5; i++)
        CHECK(tn_wg_admit(&d, resp, 92, from, 6, 1000) == TN_WG_ADMIT);
    CHECK(tn_wg_admit(&d, resp, 92, from, 6, 2000) == TN_WG_ADMIT);
    CHECK(tn_wg_admit(&d, resp, 92, from, 6, 1999) == TN_WG_ADMIT);
    CHECK(tn_wg_admit(&d, resp, 92, from, 6, 1999) == TN_WG_ADMIT);
    CHECK(tn_wg_admit(&d, resp, 92, from, 6, 1999) == TN_WG_ANSWER_COOKIE);

    /* with a cookie: five at once per source, six at once in all */
    d.loaded_until_ms = 100000;
    tn_wg_cookie_reply(&d, reply, msg, 148, from, 6, random, 50000);
    tn_cr_mac(cookie, 16, d.cookie_secret, 32, from, 6);
    tn_cr_mac(msg + 132, 16, cookie, 16, msg, 132);
    for (i = 0; i < 5; i++)
        CHECK(tn_wg_admit(&d, msg, 148, from, 6, 50000) == TN_WG_ADMIT);
    CHECK(tn_wg_admit(&d, msg, 148, from, 6, 50000) == TN_WG_REFUSE);
    from[5] = 77;                           /* another port is the same source */
    tn_cr_mac(cookie, 16, d.cookie_secret, 32, from, 6);
    tn_cr_mac(msg + 132, 16, cookie, 16, msg, 132);
    CHECK(tn_wg_admit(&d, msg, 148, from, 6, 50000) == TN_WG_REFUSE);
    from[3] = 77;                           /* another address is not */
    tn_cr_mac(cookie, 16, d.cookie_secret, 32, from, 6);
    tn_cr_mac(msg + 132, 16, cookie, 16, msg, 132);
    CHECK(tn_wg_admit(&d, msg, 148, from, 6, 50000) == TN_WG_ADMIT);
    CHECK(tn_wg_admit(&d, msg, 148, from, 6, 50000) == TN_WG_REFUSE);   /* all used up */
    CHECK(tn_wg_admit(&d, msg, 148, from, 6, 50333) == TN_WG_ADMIT);
    /* cookie replies: fifty at once, then one per 10 ms */
    msg[140] ^= 1;
    for (i = 0; i < 50; i++)
        CHECK(tn_wg_admit(&d, msg, 148, from, 6, 60000) == TN_WG_ANSWER_COOKIE);
    CHECK(tn_wg_admit(&d, msg, 148, from, 6, 60000) == TN_WG_REFUSE);
    CHECK(tn_wg_admit(&d, msg, 148, from, 6, 60009) == TN_WG_REFUSE);
    CHECK(tn_wg_admit(&d, msg, 148, from, 6, 60010) == TN_WG_ANSWER_COOKIE);
    /* twenty sources share eight places, the least recent goes */
    for (i = 0; i < 20; i++) {
        from[0] = (uint8_t)i;
        CHECK(tn_wg_take_source(&d, from, 18, 70000));
    }
    for (i = 0; i < 5; i++) (void)tn_wg_take_source(&d, from, 18, 70000);
    CHECK(!tn_wg_take_source(&d, from, 18, 70000));
    from[17] = from[9] = 1;                 /* the same /64 */
    CHECK(!tn_wg_take_source(&d, from, 18, 70000));
    from[7] = 1;
    CHECK(tn_wg_take_source(&d, from, 18, 70000));
}

/* #22: 540 s without a new session. */
static void erasing(void)
{
    static end     a, b;
    static uint8_t keys[4][32];
    unsigned       i, k;

    connect_pair(&a, &b, 1000);
    memcpy(keys[0], a.wg.key[a.wg.current].tx_key, 32);
    memcpy(keys[1], a.wg.key[a.wg.current].rx_key, 32);
    run_both(&a, &b, 540999);
    CHECK(a.erased == 0 && b.erased == 0 && b.keepalives == 1);
    end_initiate(&a, 540999);
    memcpy(keys[2], a.wg.pending.ephemeral, 32);
    memcpy(keys[3], a.wg.pending.ck, 32);
    a.out_count = 0;
    run(&a, 541000);
    run(&b, 541000);
    CHECK(a.erased == 1 && b.erased == 1 && b.seen == 0);
    for (k = 0; k < 4; k++)
        for (i = 0; i + 32 <= sizeof a.wg; i++)
            CHECK(memcmp((const uint8_t *)&a.wg + i, keys[k], 32) != 0);
    CHECK(tn_is_zero(&a.wg, sizeof a.wg) && tn_is_zero(&b.wg, sizeof b.wg));
    CHECK(tn_wg_deadline(&a.wg) == TN_NEVER && tn_wg_timers(&a.wg, TN_NEVER - 1) == 0);
    /* a fresh start on both sides */
    tn_wg_init(&a.wg, 600000);
    end_send(&a, packet, sizeof packet, 600000);
    end_poll(&a, 600000);
    exchange(&a, &b, 600000);
    CHECK(tn_wg_can_send(&b.wg, 600000));
    tn_wg_device_wipe(&a.dev);
    CHECK(tn_is_zero(&a.dev, sizeof a.dev));
}

/* Our own key changes: no more sending, reading goes on, a handshake at once. */
static void own_key(void)
{
    static end a, b;
    uint8_t    key[32];

    connect_pair(&a, &b, 1000);
    end_initiate(&a, 7000);
    memset(key, 0x77, 32);
    tn_wg_device_key(&a.dev, key);
    tn_wg_expire(&a.wg);
    a.out_count = 0;
    CHECK(!tn_wg_can_send(&a.wg, 7001) && tn_is_zero(&a.wg.pending, sizeof a.wg.pending));
    end_send(&b, packet, sizeof packet, 7001);
    CHECK(end_take(&a, b.out[0].bytes, b.out[0].len, b.from, 6, 7001) == TN_WG_OK);
    b.out_count = 0;
    end_send(&a, packet, sizeof packet, 7002);
    CHECK(a.staged_count == 1 && tn_wg_deadline(&a.wg) == 7002);
    memcpy(b.peer, a.dev.public_key, 32);
    b.seen = 0;
    end_poll(&a, 7002);
    exchange(&a, &b, 7002);
    CHECK(tn_wg_can_send(&a.wg, 7002) && a.staged_count == 0);
    CHECK(memcmp(b.last, packet, sizeof packet) == 0);
}

/* The peer lost its memory (but not its clock): 15 s of silence, then it works. */
static void restart(void)
{
    static end a, b;
    uint64_t   t, back = 0;

    connect_pair(&a, &b, 1000);
    tn_wg_wipe(&b.wg);
    b.seen = 0;
    a.wg.silence_ms = 0;
    for (t = 20000; t < 60000; t += 100) {
        end_send(&a, packet, sizeof packet, t);
        end_poll(&a, t);
        end_poll(&b, t);
        exchange(&a, &b, t);
        if (back == 0 && b.accepted > 1) back = t;
    }
    CHECK(back >= 35000 && back <= 35500);
    /* and we restart with a stored stamp: answered at once */
    {
        uint64_t kept = a.dev.stamp_saved_ms;
        uint8_t  key[32];
        memset(key, 0x41, 32);
        tn_wg_device_init(&a.dev, key, kept);
        tn_wg_init(&a.wg, 60000);
        a.unix_ms = 0;                      /* the clock is gone, too */
        end_send(&a, packet, sizeof packet, 60000);
        end_poll(&a, 60000);
        exchange(&a, &b, 60000);
        CHECK(tn_wg_can_send(&a.wg, 60000) && a.staged_count == 0);
    }
}

/* A run goes through collect, crypt, deliver: a confirmation in the middle and
 * a repeated packet in the same run do no harm. */
static void three_passes(void)
{
    static end     a, b;
    static message m[4];
    tailnet_crypt  work[4];
    unsigned       i, news, all = 0;

    end_pair(&a, &b, 1000);
    tn_wg_want(&a.wg, 1000);
    end_poll(&a, 1000);
    CHECK(end_take(&b, a.out[0].bytes, 148, a.from, 6, 1000) == TN_WG_OK);
    CHECK(end_take(&a, b.out[0].bytes, 92, b.from, 6, 1000) == TN_WG_OK);
    a.out_count = 0;
    for (i = 0; i < 3; i++) end_send(&a, packet, sizeof packet, 1000);
    for (i = 0; i < 3; i++) m[i] = a.out[i];
    m[3] = m[1];
    for (i = 0; i < 4; i++)
        CHECK(tn_wg_open_begin(&b.wg, m[i].bytes, m[i].len, 1000, &work[i]) == TN_WG_OK);
    for (i = 0; i < 4; i++) crypt_one(&work[i]);
    for (i = 0; i < 4; i++) {
        CHECK(tn_wg_accept(&b.wg, m[i].bytes, &work[i], 1000, &news) ==
              (i < 3 ? TN_WG_OK : TN_WG_REPLAYED));
        all |= news;
        CHECK((news == TN_WG_NEW_KEY) == (i == 0));
    }
    CHECK(all == TN_WG_NEW_KEY && b.wg.keys == TN_WG_KEYS_CURRENT);
    CHECK(b.wg.rx_bytes == 3 * (32 + 48));
    work[0].ok = false;
    CHECK(tn_wg_accept(&b.wg, m[0].bytes, &work[0], 1000, &news) == TN_WG_FORGED);
    tn_wg_wipe(&b.wg);
    CHECK(tn_wg_accept(&b.wg, m[1].bytes, &work[1], 1000, &news) == TN_WG_UNKNOWN);
}

/* ---- hours on a bad network ---- */

enum { FLIGHT_MAX = 512 };

typedef struct flight {
    uint64_t at;
    end     *to;
    end     *from;
    message  m;
} flight;

typedef struct network {
    flight   in[FLIGHT_MAX];
    unsigned count;
    unsigned loss, again;                   /* per 256 */
    uint64_t delay, jitter;
} network;

static network net;

static void net_one(end *from, end *to, const message *m, uint64_t now)
{
    flight *f;
    if (tn_test_random() % 256 < net.loss || net.count == FLIGHT_MAX) return;
    f       = &net.in[net.count++];
    f->at   = now + net.delay + (net.jitter == 0 ? 0 : tn_test_random() % net.jitter);
    f->to   = to;
    f->from = from;
    f->m.len = m->len;
    memcpy(f->m.bytes, m->bytes, m->len);
}

static void net_collect(end *from, end *to, uint64_t now)
{
    unsigned i;
    for (i = 0; i < from->out_count; i++) {
        net_one(from, to, &from->out[i], now);
        while (tn_test_random() % 256 < net.again) net_one(from, to, &from->out[i], now);
    }
    from->out_count = 0;
}

typedef struct tally {
    uint8_t  got[200000];
    unsigned sent, received;
    uint64_t last_ms, gap_ms;               /* of arrivals while the other one sends */
} tally;

static tally tallies[2];

/* What has arrived by now: every plaintext carries its number. */
static void hours_arrive(end e[2], uint64_t now)
{
    unsigned k;
    for (k = 0; k < net.count;) {
        flight   f = net.in[k];
        tally   *t = &tallies[f.to == &e[1]];
        uint32_t number;
        if (f.at > now) {
            k++;
            continue;
        }
        net.in[k] = net.in[--net.count];
        if (end_take(f.to, f.m.bytes, f.m.len, f.from->from, 6, now) != TN_WG_OK) continue;
        if (tn_wg_classify(f.m.bytes, f.m.len) != TN_WG_DATA || f.to->last_len == 0) continue;
        number = tn_get_u32be(f.to->last);
        CHECK(number < t->sent && f.to->last_len == 48);
        if (number >= sizeof t->got) return;
        CHECK(t->got[number] == 0);
        t->got[number] = 1;
        t->received++;
        if (now > t->last_ms && now - t->last_ms > t->gap_ms) t->gap_ms = now - t->last_ms;
        t->last_ms = now;
    }
}

/* Both send in spells; every plaintext carries its number. Returns nothing, but
 * checks: no number twice, nothing unknown, all gaps below a limit. */
static void hours(uint64_t seed, unsigned loss, unsigned again, uint64_t delay, uint64_t jitter,
                  uint64_t until, uint64_t limit)
{
    static end e[2];
    uint64_t   now = 1000, next[2] = {1000, 1000}, spell[2] = {0, 0};
    unsigned   i, k, handshakes;

    tn_test_seed = seed;
    memset(&net, 0, sizeof net);
    memset(tallies, 0, sizeof tallies);
    net.loss = loss;
    net.again = again;
    net.delay = delay;
    net.jitter = jitter;
    end_pair(&e[0], &e[1], now);
    while (now < until) {
        uint64_t at = tn_min64(next[0], next[1]);
        for (i = 0; i < 2; i++) at = tn_min64(at, tn_wg_deadline(&e[i].wg));
        for (k = 0; k < net.count; k++) at = tn_min64(at, net.in[k].at);
        CHECK(at >= now);
        now = at;
        hours_arrive(e, now);
        for (i = 0; i < 2; i++) {
            end_poll(&e[i], now);
            if (next[i] <= now) {
                uint8_t p[40] = {0};
                tally  *t = &tallies[1 - i];
                if (spell[i] == 0) {        /* a new spell of talking after a rest */
                    spell[i] = 1 + tn_test_random() % 400;
                    t->last_ms = now;
                }
                tn_put_u32be(p, t->sent);
                if (t->sent < sizeof t->got - 1) t->sent++;
                end_send(&e[i], p, sizeof p, now);
                end_poll(&e[i], now);
                spell[i]--;
                next[i] = now + (spell[i] != 0 ? 100 + tn_test_random() % 400
                                               : tn_test_random() % 400000);
            }
            net_collect(&e[i], &e[1 - i], now);
        }
    }
    handshakes = e[0].responses + e[1].responses;
    printf("hours: seed %u, loss %u/256: sent %u, received %u, responses %u, longest wait %u ms\n",
           (unsigned)seed, loss, tallies[0].sent + tallies[1].sent,
           tallies[0].received + tallies[1].received, handshakes,
           (unsigned)(tallies[0].gap_ms > tallies[1].gap_ms ? tallies[0].gap_ms
                                                            : tallies[1].gap_ms));
    for (i = 0; i < 2; i++) {
        CHECK(tallies[i].sent > until / 5000);
        CHECK(tallies[i].gap_ms <= limit);
        CHECK((uint64_t)tallies[i].received * 512 >= (uint64_t)tallies[i].sent * (256 - loss));
        if (loss == 0) CHECK(tallies[i].received + 40 > tallies[i].sent);
    }
    CHECK(handshakes >= until / 600000 && handshakes <= until / 20000);
}

static void hours_clean(void)  { hours(11, 0, 0, 20, 0, 4u * 3600000u, 700); }
static void hours_mixed(void)  { hours(12, 0, 90, 10, 300, 4u * 3600000u, 1500); }
static void hours_lossy(void)  { hours(13, 26, 30, 30, 200, 4u * 3600000u, 25000); }
static void hours_awful(void)  { hours(14, 100, 60, 50, 2000, 4u * 3600000u, 60000); }

int main(void)
{
    TEST(chain_start);
    TEST(vectors_document);
    TEST(vectors_both_sides);
    TEST(vectors_live);
    TEST(lengths);
    TEST(truncations);
    TEST(bits_of_initiation);
    TEST(bits_of_response);
    TEST(bits_of_the_rest);
    TEST(small_points);
    TEST(window_width);
    TEST(window_model);
    TEST(counters);
    TEST(padding);
    TEST(stamps);
    TEST(stamp_replays);
    TEST(slot_arrows);
    TEST(old_keys_still_open);
    TEST(responder_waits);
    TEST(passive_keepalive);
    TEST(silence);
    TEST(rekey_by_age);
    TEST(giving_up);
    TEST(simultaneous);
    TEST(cookie_life);
    TEST(flood);
    TEST(buckets);
    TEST(erasing);
    TEST(own_key);
    TEST(restart);
    TEST(three_passes);
    TEST(hours_clean);
    TEST(hours_mixed);
    TEST(hours_lossy);
    TEST(hours_awful);
    return tn_test_end();
}
