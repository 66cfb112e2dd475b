#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"
#include "tls_world.h"

static world        w;
static tn_rim       rim;
static tn_tls       client;
static tn_tls_check check;
static world_server server;
static uint8_t      client_in[TN_TLS_IN_LEN];

static const int GOOD[]     = { C_GOOD, C_MIDDLE, -2 };
static const int GOOD_RSA[] = { C_GOOD_RSA, -2 };

static void fresh(void)
{
    tailnet_io io;
    memset(&w, 0, sizeof w);
    w.unix_ms = WORLD_NOW_MS;
    world_io(&io, &w);
    CHECK(tn_rim_init(&rim, &io));
}

static tailnet_result begin(const int *chain, const char *host, const char *certificate,
                            size_t in_len)
{
    tn_tls_want want;
    want.host         = host;
    want.certificate  = certificate;
    want.anchors      = certs.anchors;
    want.anchor_count = 2;
    world_server_start(&server, chain);
    return tn_tls_start(&client, &check, &rim, &want, client_in, in_len);
}

/* Lets both sides talk until nothing moves. Returns the client's error. */
static int32_t talk(int cut)
{
    while (world_move(&client, &server.port, cut) | world_move(&server.port, &client, cut)) {}
    return tn_tls_error(&client);
}

static int32_t shake(const int *chain, const char *host, const char *certificate, int cut)
{
    int32_t err;
    if (begin(chain, host, certificate, sizeof client_in) != TAILNET_OK) return -1;
    err = talk(cut);
    CHECK((err == 0) == tn_tls_is_up(&client));
    CHECK((err == 0) == !tn_tls_is_over(&client));
    return err;
}

/* ---- the DER reader ---- */

static void read_der(tn_tls_der *d, const uint8_t *der, size_t len, int cut)
{
    size_t at = 0, n;
    tn_tls_der_start(d);
    for (; at < len; at += n) {
        n = world_cut(cut, len - at);
        tn_tls_der_push(d, der + at, n);
    }
}

static void test_der(void)
{
    static const uint8_t ip4[4] = { 192, 0, 2, 7 };
    static const uint8_t ip6[16] = { 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7 };
    tn_tls_der           d;
    int                  i, cut;
    memset(&d, 0, sizeof d);
    for (cut = 0; cut < 20; cut++) {
        for (i = 0; i < C_COUNT; i++) {
            d.ip_len = 4;
            memcpy(d.ip, ip4, 4);
            read_der(&d, certs.der[i], certs.len[i], cut > 2 ? 2 : cut);
            CHECK(d.phase == TN_TLS_DER_TAG && d.depth == 1 && !d.meta);
            CHECK(d.ip_found == (i == C_ADDRESS || i == C_PINNED));
            CHECK(d.begin_unix_ms == (i == C_FUTURE ? 2524608000000u : 1735689600000u));
        }
        d.ip_len = 16;
        memcpy(d.ip, ip6, 16);
        read_der(&d, certs.der[C_ADDRESS], certs.len[C_ADDRESS], cut > 2 ? 2 : cut);
        CHECK(d.ip_found);
        d.ip[15] = 8;
        read_der(&d, certs.der[C_ADDRESS], certs.len[C_ADDRESS], cut > 2 ? 2 : cut);
        CHECK(!d.ip_found);
        read_der(&d, certs.meta, certs.meta_len, cut > 2 ? 2 : cut);
        CHECK(d.meta && d.meta_key[0] == 0 && d.meta_key[31] == 0x1f);
        CHECK(d.begin_unix_ms == 1798761600000u);
    }
}

static void test_der_meta_names(void)
{
    static const char *const bad[] = {
        "derpkey", "", "derpkey000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1",
        "derpkey000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f0",
        "derpkex000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        "derpkey000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1g"
    };
    tn_tls_der d;
    uint8_t    der[512];
    size_t     i;
    memset(&d, 0, sizeof d);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        read_der(&d, der, world_meta(der, bad[i]), 0);
        CHECK(!d.meta);
    }
}

/* Truncated and damaged certificates: never out of bounds, and damage in front
 * of the names never makes an address appear that was not looked for. */
static void test_der_damage(void)
{
    static uint8_t copy[WORLD_CERT];
    tn_tls_der     d;
    size_t         i, len = certs.len[C_ADDRESS];
    unsigned       v;
    memset(&d, 0, sizeof d);
    d.ip_len = 4;
    memcpy(d.ip, "\xc0\x00\x02\x09", 4);
    for (i = 0; i < len; i++) {
        read_der(&d, certs.der[C_ADDRESS], i, 0);
        CHECK(!d.ip_found && (d.depth > 1 || i < 4 || d.phase != TN_TLS_DER_TAG));
        for (v = 0; v < 256; v += 5) {
            memcpy(copy, certs.der[C_ADDRESS], len);
            copy[i] = (uint8_t)v;
            read_der(&d, copy, len, 0);
            CHECK(d.depth >= 1 && d.depth <= TN_TLS_DER_DEPTH);
        }
    }
}

static void test_der_time(void)
{
    CHECK(tn_tls_der_time((const uint8_t *)"700101000001Z", 13) == 1000);
    CHECK(tn_tls_der_time((const uint8_t *)"490101000000Z", 13) == 2493072000000u);
    CHECK(tn_tls_der_time((const uint8_t *)"500101000000Z", 13) == 0);
    CHECK(tn_tls_der_time((const uint8_t *)"20490101000000Z", 15) == 2493072000000u);
    CHECK(tn_tls_der_time((const uint8_t *)"99991231235959Z", 15) == 253402300799000u);
    CHECK(tn_tls_der_time((const uint8_t *)"20491301000000Z", 15) == 0);
    CHECK(tn_tls_der_time((const uint8_t *)"20490101000000+", 15) == 0);
    CHECK(tn_tls_der_time((const uint8_t *)"2049010100000Z", 14) == 0);
    CHECK(tn_tls_der_time((const uint8_t *)"2049010100a000Z", 15) == 0);
    CHECK(tn_tls_der_time((const uint8_t *)"", 0) == 0);
}

/* ---- handshakes ---- */

static void test_good(void)
{
    static const int meta[] = { C_GOOD, C_MIDDLE, -1, -2 };
    int              cut;
    for (cut = 0; cut < 3; cut++) {
        fresh();
        CHECK(shake(GOOD, "relay.example", NULL, cut) == 0);
        tn_tls_learn(&client, &check);
        CHECK(tn_tls_meta_key(&client) == NULL);
        CHECK(shake(GOOD, "RELAY.example", NULL, cut) == 0);
        CHECK(shake(GOOD, "a.wild.example", NULL, cut) == 0);
        CHECK(shake(GOOD, "front.example", "relay.example", cut) == 0);
        CHECK(strcmp(server.server.eng.server_name, "front.example") == 0);
        CHECK(shake(GOOD_RSA, "relay.example", NULL, cut) == 0);
        CHECK(shake(meta, "relay.example", NULL, cut) == 0);
        tn_tls_learn(&client, &check);
        CHECK(tn_tls_meta_key(&client) != NULL && tn_tls_meta_key(&client)[31] == 0x1f);
    }
}

/* The same inputs give the same bytes: nothing but the rim is random. */
static void test_repeatable(void)
{
    uint8_t first[256];
    size_t  len, again;
    fresh();
    CHECK(begin(GOOD, "relay.example", NULL, sizeof client_in) == TAILNET_OK);
    CHECK(tn_tls_out(&client, &len) != NULL && len <= sizeof first);
    memcpy(first, tn_tls_out(&client, &len), len);
    fresh();
    CHECK(begin(GOOD, "relay.example", NULL, sizeof client_in) == TAILNET_OK);
    CHECK(tn_tls_out(&client, &again) != NULL && again == len);
    CHECK_BYTES(tn_tls_out(&client, &again), first, len);
    CHECK(w.random_calls == 1);
}

static void test_suites(void)
{
    static const uint16_t suites[6] = {
        BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        BR_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        BR_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
    };
    static const uint16_t old = BR_TLS_RSA_WITH_AES_128_GCM_SHA256;
    int                   i;
    for (i = 0; i < 6; i++) {
        fresh();
        begin((i & 1) != 0 ? GOOD_RSA : GOOD, "relay.example", NULL, sizeof client_in);
        br_ssl_engine_set_suites(&server.server.eng, &suites[i], 1);
        CHECK(talk(0) == 0 && tn_tls_is_up(&client));
    }
    begin(GOOD_RSA, "relay.example", NULL, sizeof client_in);
    br_ssl_engine_set_suites(&server.server.eng, &old, 1);
    CHECK(talk(0) != 0 && !tn_tls_is_up(&client));
    begin(GOOD, "relay.example", NULL, sizeof client_in);
    br_ssl_engine_set_versions(&server.server.eng, BR_TLS10, BR_TLS11);
    CHECK(talk(0) != 0 && !tn_tls_is_up(&client));
}

/* Each kind of wrong server is refused, each with its own number. */
static void test_refused(void)
{
    static const int expired[] = { C_EXPIRED, -2 }, future[] = { C_FUTURE, -2 },
                     forged[] = { C_FORGED, -2 }, address[] = { C_ADDRESS, -2 },
                     half[] = { C_GOOD, -2 }, swapped[] = { C_GOOD, C_ROOT_RSA, -2 },
                     meta[] = { -1, -2 }, alone[] = { C_PINNED_NAME, -2 };
    int              cut;
    for (cut = 0; cut < 3; cut++) {
        fresh();
        CHECK(shake(GOOD, "other.example", NULL, cut) == BR_ERR_X509_BAD_SERVER_NAME);
        CHECK(shake(GOOD, "a.b.wild.example", NULL, cut) == BR_ERR_X509_BAD_SERVER_NAME);
        CHECK(shake(GOOD, "relay.example", "other.example", cut) == BR_ERR_X509_BAD_SERVER_NAME);
        CHECK(shake(expired, "relay.example", NULL, cut) == BR_ERR_X509_EXPIRED);
        CHECK(shake(future, "relay.example", NULL, cut) == BR_ERR_X509_EXPIRED);
        CHECK(shake(forged, "relay.example", NULL, cut) == BR_ERR_X509_NOT_TRUSTED);
        CHECK(shake(half, "relay.example", NULL, cut) == BR_ERR_X509_NOT_TRUSTED);
        CHECK(shake(alone, "relay.example", NULL, cut) == BR_ERR_X509_NOT_TRUSTED);
        CHECK(shake(swapped, "relay.example", NULL, cut) == BR_ERR_X509_DN_MISMATCH);
        CHECK(shake(meta, "relay.example", NULL, cut) != 0);
        CHECK(shake(address, "192.0.2.7", NULL, cut) == 0);
        CHECK(server.server.eng.server_name[0] == 0);
        CHECK(shake(address, "2001:db8:0:0::7", NULL, cut) == 0);
        CHECK(shake(address, "192.0.2.8", NULL, cut) == BR_ERR_X509_BAD_SERVER_NAME);
        CHECK(shake(address, "2001:db8::8", NULL, cut) == BR_ERR_X509_BAD_SERVER_NAME);
        CHECK(shake(GOOD, "192.0.2.7", NULL, cut) == BR_ERR_X509_BAD_SERVER_NAME);
        CHECK(shake(GOOD, "192.0.2.7", "relay.example", cut) == 0);
        CHECK(shake(address, "front.example", "192.0.2.7", cut) == 0);
    }
}

static void test_no_anchors(void)
{
    tn_tls_want want;
    fresh();
    begin(GOOD, "relay.example", NULL, sizeof client_in);
    memset(&want, 0, sizeof want);
    want.host = "relay.example";            /* the built-in roots do not know ours */
    CHECK(tn_tls_start(&client, &check, &rim, &want, client_in, sizeof client_in) == TAILNET_OK);
    CHECK(talk(0) == BR_ERR_X509_NOT_TRUSTED);
    begin(GOOD, "relay.example", NULL, sizeof client_in);
    want.anchors = certs.anchors;           /* none at all trusts nobody          */
    CHECK(tn_tls_start(&client, &check, &rim, &want, client_in, sizeof client_in) == TAILNET_OK);
    CHECK(talk(0) == BR_ERR_X509_NOT_TRUSTED);
}

static void test_pins(void)
{
    static const int pinned[] = { C_PINNED, -2 }, meta[] = { C_PINNED, -1, -2 },
                     more[] = { C_PINNED, C_ROOT, -2 }, name[] = { C_PINNED_NAME, -1, -2 },
                     old[] = { C_PINNED_OLD, -2 };
    char             wrong[80];
    int              cut;
    strcpy(wrong, certs.pin[0]);
    wrong[30] = wrong[30] == '0' ? '1' : '0';
    for (cut = 0; cut < 3; cut++) {
        fresh();
        CHECK(shake(pinned, "192.0.2.7", certs.pin[0], cut) == 0);
        CHECK(shake(pinned, "192.0.2.99", certs.pin[0], cut) == 0);  /* no SNI, no name */
        CHECK(shake(meta, "192.0.2.7", certs.pin[0], cut) == 0);
        tn_tls_learn(&client, &check);
        CHECK(tn_tls_meta_key(&client) != NULL);
        CHECK(shake(more, "192.0.2.7", certs.pin[0], cut) == TN_TLS_ERR_PIN_CHAIN);
        CHECK(shake(pinned, "192.0.2.7", wrong, cut) == TN_TLS_ERR_PIN);
        CHECK(shake(GOOD, "relay.example", certs.pin[0], cut) == TN_TLS_ERR_PIN);
        CHECK(shake(name, "relay.example", certs.pin[1], cut) == 0);
        CHECK(shake(name, "other.example", certs.pin[1], cut) == BR_ERR_X509_BAD_SERVER_NAME);
        CHECK(shake(old, "relay.example", certs.pin[2], cut) == BR_ERR_X509_EXPIRED);
    }
    CHECK(begin(pinned, "192.0.2.7", "sha256-raw:", sizeof client_in) == TAILNET_ERR_TLS);
    CHECK(begin(pinned, "192.0.2.7", "sha256-raw:12", sizeof client_in) == TAILNET_ERR_TLS);
    wrong[20] = 'x';
    CHECK(begin(pinned, "192.0.2.7", wrong, sizeof client_in) == TAILNET_ERR_TLS);
    CHECK(begin(pinned, "", NULL, sizeof client_in) == TAILNET_ERR_TLS);
}

/* Without a clock: nothing that ended before the release or before what was
 * learnt; what begins later than that cannot be judged and is taken. */
static void test_no_clock(void)
{
    static const int expired[] = { C_EXPIRED, -2 }, future[] = { C_FUTURE, -2 };
    int              cut;
    for (cut = 0; cut < 3; cut++) {
        fresh();
        w.unix_ms = 0;
        CHECK(shake(GOOD, "relay.example", NULL, cut) == 0);
        CHECK(shake(future, "relay.example", NULL, cut) == 0);
        CHECK(shake(expired, "relay.example", NULL, cut) == BR_ERR_X509_EXPIRED);
        w.unix_ms = 1000;                   /* a clock nobody has set             */
        CHECK(shake(GOOD, "relay.example", NULL, cut) == 0);
        CHECK(shake(future, "relay.example", NULL, cut) == 0);
        tn_rim_learn_time(&rim, 2840140800000u + 1000);    /* 2060, after all of them */
        CHECK(shake(GOOD, "relay.example", NULL, cut) == BR_ERR_X509_EXPIRED);
        CHECK(shake(future, "relay.example", NULL, cut) == BR_ERR_X509_EXPIRED);
    }
}

static void test_random_fails(void)
{
    fresh();
    w.random_fails = true;
    CHECK(begin(GOOD, "relay.example", NULL, sizeof client_in) == TAILNET_ERR_RANDOM);
    w.random_fails = false;
    CHECK(begin(GOOD, "relay.example", NULL, sizeof client_in) == TAILNET_ERR_RANDOM);
    CHECK(rim.random_failed && client.eng == NULL);
}

static void test_long_host(void)
{
    char host[300];
    fresh();
    memset(host, 'a', sizeof host);
    host[299] = '\0';
    CHECK(begin(GOOD, host, NULL, sizeof client_in) == TAILNET_ERR_TLS);
    CHECK(tn_tls_error(&client) == BR_ERR_BAD_PARAM);
    host[255] = '\0';
    CHECK(begin(GOOD, host, NULL, sizeof client_in) == TAILNET_OK);
}

/* ---- data ---- */

static void fill(tn_tls *t, size_t len, uint8_t first)
{
    size_t   room, i;
    uint8_t *at = tn_tls_reserve(t, &room);
    CHECK(at != NULL && room >= len);
    if (at == NULL || room < len) return;
    for (i = 0; i < len; i++) at[i] = (uint8_t)(first + i);
    tn_tls_commit(t, len);
}

static size_t drain(tn_tls *t, uint8_t first, size_t before)
{
    size_t   len, i, all = 0;
    uint8_t *at;
    while ((at = tn_tls_read(t, &len)) != NULL) {
        for (i = 0; i < len; i++)
            if (at[i] != (uint8_t)(first + before + all + i)) tn_test_ok = false;
        len = world_cut(2, len);
        tn_tls_ack(t, len);
        all += len;
    }
    return all;
}

static void test_data(void)
{
    static const size_t sizes[] = { 1, 2, 100, TAILNET_TLS_OUT };
    int                 cut;
    size_t              i;
    for (cut = 0; cut < 3; cut++) {
        fresh();
        CHECK(shake(GOOD, "relay.example", NULL, cut) == 0);
        for (i = 0; i < 4; i++) {
            size_t room;
            fill(&client, sizes[i], 3);
            tn_tls_flush(&client);
            CHECK(tn_tls_reserve(&client, &room) == NULL && room == 0);
            CHECK(talk(cut) == 0);
            CHECK(drain(&server.port, 3, 0) == sizes[i]);
            CHECK(tn_tls_reserve(&client, &room) != NULL && room >= TAILNET_TLS_OUT);
            fill(&server.port, sizes[i], 9);
            tn_tls_flush(&server.port);
            CHECK(talk(cut) == 0);
            CHECK(drain(&client, 9, 0) == sizes[i]);
        }
        tn_tls_flush(&client);              /* nothing in it: no empty record     */
        CHECK(tn_tls_out(&client, &i) == NULL);
    }
}

/* A server that ignores the fragment length we ask for: whole 16 KB records. */
static void test_huge_records(void)
{
    size_t room, len = 16384, got;
    int    cut;
    for (cut = 0; cut < 3; cut++) {
        fresh();
        CHECK(shake(GOOD, "relay.example", NULL, 0) == 0);
        server.server.eng.max_frag_len = 16384;
        server.server.eng.oxb          = server.server.eng.oxa + 16384;
        CHECK(tn_tls_reserve(&server.port, &room) != NULL);
        fill(&server.port, room < len ? room : len, 1);
        tn_tls_flush(&server.port);
        CHECK(talk(cut) == 0);
        got = drain(&client, 1, 0);
        CHECK(got == len);
    }
    fresh();                                /* and an input buffer too small for it */
    CHECK(begin(GOOD, "relay.example", NULL, 6000) == TAILNET_OK);
    CHECK(talk(0) == 0 && tn_tls_is_up(&client));
    server.server.eng.oxb = server.server.eng.oxa + 16384;
    fill(&server.port, len, 1);
    tn_tls_flush(&server.port);
    CHECK(talk(0) == BR_ERR_TOO_LARGE && tn_tls_is_over(&client));
}

static void test_close(void)
{
    int cut;
    for (cut = 0; cut < 3; cut++) {
        fresh();
        CHECK(shake(GOOD, "relay.example", NULL, cut) == 0);
        fill(&server.port, 50, 7);
        tn_tls_close(&server.port);         /* flushes what is open               */
        CHECK(talk(cut) == 0);
        CHECK(!tn_tls_is_over(&client));
        CHECK(drain(&client, 7, 0) == 50);
        CHECK(talk(cut) == 0);
        CHECK(tn_tls_is_over(&client) && tn_tls_error(&client) == 0);
        CHECK(tn_tls_is_over(&server.port) && tn_tls_error(&server.port) == 0);
        CHECK(shake(GOOD, "relay.example", NULL, cut) == 0);
        tn_tls_close(&client);
        CHECK(talk(cut) == 0);
        CHECK(tn_tls_is_over(&client) && tn_tls_is_over(&server.port));
    }
}

/* Every byte of the server's flights damaged in turn: never up, never a crash. */
static void test_tampered(void)
{
    size_t at, moved, len;
    bool   more;
    fresh();
    for (at = 0; at < 1200; at += 7) {
        begin(GOOD, "relay.example", NULL, sizeof client_in);
        moved = 0;
        do {
            const uint8_t *data;
            more = world_move(&client, &server.port, 0);
            data = tn_tls_out(&server.port, &len);
            if (data != NULL) {
                uint8_t copy[4096];
                size_t  n;
                if (len > sizeof copy) len = sizeof copy;
                memcpy(copy, data, len);
                if (at >= moved && at < moved + len) copy[at - moved] ^= 0x20;
                n = world_feed(&client, copy, len);
                moved += n;
                if (n != 0) tn_tls_sent(&server.port, n);
                more |= n != 0;
            }
        } while (more);
        CHECK(at >= moved || !tn_tls_is_up(&client) || tn_tls_is_over(&client));
    }
}

/* The handshake works in bites: no turn is asked for more than one, commit does
 * nothing but hold. */
static void test_bites(void)
{
    size_t         len, room;
    const uint8_t *data;
    uint8_t       *at;
    unsigned       turns = 0;
    fresh();
    begin(GOOD, "relay.example", NULL, sizeof client_in);
    CHECK(world_move(&client, &server.port, 0));
    while (!tn_tls_is_up(&client) && !tn_tls_is_over(&client)) {
        data = tn_tls_out(&server.port, &len);
        if (data != NULL && (at = tn_tls_in_reserve(&client, &room)) != NULL) {
            size_t before = client.held;
            if (room > len) room = len;
            memcpy(at, data, room);
            tn_tls_in_commit(&client, room);
            CHECK(client.held == before + room && tn_tls_waits(&client));
            tn_tls_sent(&server.port, room);
        }
        if (tn_tls_turn(&client)) turns++;
        else if (!world_move(&client, &server.port, 0) && data == NULL) break;
    }
    CHECK(tn_tls_is_up(&client) && turns >= 8);
}

static void test_wipe(void)
{
    fresh();
    CHECK(shake(GOOD, "relay.example", NULL, 0) == 0);
    tn_tls_wipe(&client);
    CHECK(tn_is_zero(&client, sizeof client));
}

/* The built-in table against the certificates it was made from. */
static void test_roots(void)
{
    static const char *const names[TN_TLS_ROOTS] = { "x1", "x2", "ye", "yr" };
    char    *text = tn_test_file("tls/roots.txt");
    unsigned i;
    for (i = 0; i < TN_TLS_ROOTS; i++) {
        br_x509_decoder_context d;
        br_x509_trust_anchor    a;
        const br_x509_pkey     *k;
        unsigned                slot = 0;
        static uint8_t          der[2048];
        size_t                  len = tn_test_value(text, names[i], der, sizeof der);
        certs.dn_len[0] = 0;
        br_x509_decoder_init(&d, world_dn, &slot);
        br_x509_decoder_push(&d, der, len);
        k = br_x509_decoder_get_pkey(&d);
        CHECK(k != NULL);
        if (k == NULL) break;
        tn_tls_root_anchor(&a, &tn_tls_roots[i]);
        CHECK(a.flags == BR_X509_TA_CA && a.pkey.key_type == k->key_type);
        CHECK(a.dn.len == certs.dn_len[0]);
        CHECK_BYTES(a.dn.data, certs.dn[0], a.dn.len);
        if (k->key_type == BR_KEYTYPE_RSA) {
            CHECK(a.pkey.key.rsa.nlen == k->key.rsa.nlen && a.pkey.key.rsa.elen == k->key.rsa.elen);
            CHECK_BYTES(a.pkey.key.rsa.n, k->key.rsa.n, k->key.rsa.nlen);
            CHECK_BYTES(a.pkey.key.rsa.e, k->key.rsa.e, k->key.rsa.elen);
        } else {
            CHECK(a.pkey.key.ec.curve == k->key.ec.curve && a.pkey.key.ec.qlen == k->key.ec.qlen);
            CHECK_BYTES(a.pkey.key.ec.q, k->key.ec.q, k->key.ec.qlen);
        }
    }
    free(text);
}

int main(void)
{
    world_load();
    TEST(test_der);
    TEST(test_der_meta_names);
    TEST(test_der_damage);
    TEST(test_der_time);
    TEST(test_good);
    TEST(test_repeatable);
    TEST(test_suites);
    TEST(test_refused);
    TEST(test_no_anchors);
    TEST(test_pins);
    TEST(test_no_clock);
    TEST(test_random_fails);
    TEST(test_long_host);
    TEST(test_data);
    TEST(test_huge_records);
    TEST(test_close);
    TEST(test_tampered);
    TEST(test_bites);
    TEST(test_wipe);
    TEST(test_roots);
    return tn_test_end();
}
