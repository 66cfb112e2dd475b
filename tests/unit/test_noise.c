/* The control channel against recorded handshakes, in both roles: every byte,
 * every cut, every forged bit; and the early payload. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

typedef struct vectors {
    char    *text;
    uint8_t  machine[32], server_pub[32], client_eph[32];
    uint8_t  init[101], response[51], h[32], tx[32], rx[32];
    uint16_t version;
} vectors;

static void load(vectors *v, const char *file)
{
    v->text    = tn_test_file(file);
    v->version = (uint16_t)atoi(strstr(v->text, "version: ") + 9);
    CHECK(tn_test_value(v->text, "machine_private", v->machine, 32) == 32);
    CHECK(tn_test_value(v->text, "server_public", v->server_pub, 32) == 32);
    CHECK(tn_test_value(v->text, "client_ephemeral_private", v->client_eph, 32) == 32);
    CHECK(tn_test_value(v->text, "initiation", v->init, 101) == 101);
    CHECK(tn_test_value(v->text, "response", v->response, 51) == 51);
    CHECK(tn_test_value(v->text, "handshake_hash", v->h, 32) == 32);
    CHECK(tn_test_value(v->text, "client_tx_key", v->tx, 32) == 32);
    CHECK(tn_test_value(v->text, "client_rx_key", v->rx, 32) == 32);
}

/* The next record line and the plain line behind it: 'C', 'S', or 0 at the end. */
static char next_record(const char **at, uint8_t *record, size_t *record_len, uint8_t *plain,
                        size_t *plain_len, uint64_t *count)
{
    const char *line = *at;
    *count = UINT64_MAX;
    while (line != NULL && *line != '\0') {
        const char *next = strchr(line, '\n');
        if (strncmp(line, "# record counter ", 17) == 0) *count = (uint64_t)atoi(line + 17);
        if (strncmp(line + 1, "_record: ", 9) == 0) {
            char who    = line[0];
            *record_len = tn_test_hex(record, 4096, line + 10);
            line        = next + 1;
            CHECK(line[0] == who && strncmp(line + 1, "_plain: ", 8) == 0);
            *plain_len = tn_test_hex(plain, 4096, line + 9);
            *at        = strchr(line, '\n');
            if (*at != NULL) (*at)++;
            return who;
        }
        line = next == NULL ? NULL : next + 1;
    }
    return 0;
}

static void open_client(tn_nz *nz, const vectors *v)
{
    uint8_t out[101];
    CHECK(tn_nz_start(nz, v->machine, v->server_pub, v->version, v->client_eph, out));
    CHECK(nz->state == TN_NZ_WAITING);
    CHECK_BYTES(out, v->init, 101);
    CHECK(tn_nz_finish(nz, v->machine, v->response, 51) == TAILNET_OK);
    CHECK(nz->state == TN_NZ_OPEN);
    CHECK_BYTES(nz->h, v->h, 32);
    CHECK_BYTES(nz->tx_key, v->tx, 32);
    CHECK_BYTES(nz->rx_key, v->rx, 32);
    CHECK(tn_is_zero(nz->ck, 32) && tn_is_zero(nz->eph_priv, 32));
}

static void open_server(tn_nz *nz, const vectors *v)
{
    uint8_t  server[32], eph[32], out[51], who[32], pub[32];
    uint16_t version = 0;
    CHECK(tn_test_value(v->text, "server_private", server, 32) == 32);
    CHECK(tn_test_value(v->text, "server_ephemeral_private", eph, 32) == 32);
    CHECK(tn_nz_accept(nz, server, v->init, eph, out, who, &version) == TAILNET_OK);
    CHECK(nz->state == TN_NZ_OPEN && version == v->version);
    CHECK_BYTES(out, v->response, 51);
    tn_cr_x25519_base(pub, v->machine);
    CHECK_BYTES(who, pub, 32);
    CHECK_BYTES(nz->h, v->h, 32);
    CHECK_BYTES(nz->rx_key, v->tx, 32);
    CHECK_BYTES(nz->tx_key, v->rx, 32);
}

static void one_seals(tn_nz *nz, const uint8_t *plain, size_t plain_len, const uint8_t *record,
                      size_t len, uint64_t count)
{
    static uint8_t buf[4096];
    if (count != UINT64_MAX) nz->tx_count = count;
    memcpy(buf + 3, plain, plain_len);
    CHECK(tn_nz_seal(nz, buf, plain_len) == len);
    CHECK_BYTES(buf, record, len);
}

static void one_opens(tn_nz *nz, const uint8_t *plain, size_t plain_len, const uint8_t *record,
                      size_t len, uint64_t count)
{
    uint8_t *buf = (uint8_t *)malloc(len), *text;
    size_t   n;
    if (count != UINT64_MAX) nz->rx_count = count;
    memcpy(buf, record, len);
    CHECK(tn_nz_want(nz, buf, len) == 0 && tn_nz_whole(buf, len) == len);
    CHECK(tn_nz_open(nz, buf, len, &text, &n) == TAILNET_OK && n == plain_len);
    CHECK_BYTES(text, plain, plain_len);
    free(buf);
}

/* Every record of the file, sealed by its sender and opened by its receiver. */
static void all_records(const vectors *v, tn_nz *client, tn_nz *server)
{
    static uint8_t record[4096], plain[4096];
    const char    *at = v->text;
    size_t         len, plain_len;
    uint64_t       count;
    unsigned       seen = 0;
    char           who;
    while ((who = next_record(&at, record, &len, plain, &plain_len, &count)) != 0) {
        seen++;
        if (who == 'C') {
            one_seals(client, plain, plain_len, record, len, count);
            if (server != NULL) one_opens(server, plain, plain_len, record, len, count);
        } else {
            one_opens(client, plain, plain_len, record, len, count);
            if (server != NULL) one_seals(server, plain, plain_len, record, len, count);
        }
    }
    CHECK(seen >= 10);
}

static void client_with_headscale(void)
{
    vectors v;
    tn_nz   nz;
    load(&v, "noise-headscale.txt");
    open_client(&nz, &v);
    all_records(&v, &nz, NULL);
    tn_nz_wipe(&nz);
    CHECK(tn_is_zero(&nz, sizeof nz) && nz.state == TN_NZ_IDLE);
    free(v.text);
}

/* Counters 0, 1, 255, 256 and a record of 4,077 bytes are in this one. */
static void both_roles(void)
{
    vectors v;
    tn_nz   client, server;
    load(&v, "noise-both-sides.txt");
    open_client(&client, &v);
    open_server(&server, &v);
    all_records(&v, &client, &server);
    free(v.text);
}

/* The nonce of counter 256 as the document has it. */
static void nonce_is_big_endian(void)
{
    static const char want_hex[] =
        "04001ce171c8333ebbb1a85928a45af80e8cb07195b13b98e96b85ba10779e";
    vectors  v;
    tn_nz    nz;
    uint8_t  buf[64], want[31];
    load(&v, "noise-both-sides.txt");
    open_client(&nz, &v);
    nz.tx_count = 256;
    memcpy(buf + 3, "nonce-0x0100", 12);
    CHECK(tn_nz_seal(&nz, buf, 12) == 31 && nz.tx_count == 257);
    CHECK(tn_test_hex(want, 31, want_hex) == 31);
    CHECK_BYTES(buf, want, 31);
    tn_nz_nonce(buf, 0x0102030405060708u);
    tn_test_hex(want, 12, "000000000102030405060708");
    CHECK_BYTES(buf, want, 12);
    free(v.text);
}

/* Any flipped bit of the initiation: the server refuses and keeps nothing. */
static void server_refuses(void)
{
    vectors  v;
    tn_nz    nz;
    uint8_t  server[32], eph[32], init[101], out[51], who[32];
    uint16_t version;
    size_t   i;
    load(&v, "noise-both-sides.txt");
    tn_test_value(v.text, "server_private", server, 32);
    memset(eph, 7, 32);
    memset(&nz, 0, sizeof nz);
    for (i = 0; i < 101 * 8; i++) {
        tailnet_result got;
        memcpy(init, v.init, 101);
        init[i / 8] ^= (uint8_t)(1u << i % 8);
        got = tn_nz_accept(&nz, server, init, eph, out, who, &version);
        CHECK(got == (i / 8 >= 2 && i / 8 < 5 ? TAILNET_ERR_MALFORMED : TAILNET_ERR_FORGED));
        CHECK(nz.state == TN_NZ_DEAD && tn_is_zero(nz.ck, 32) && tn_is_zero(nz.rx_key, 32));
    }
    memcpy(init, v.init, 101);          /* an ephemeral key of low order */
    memset(init + 5, 0, 32);
    CHECK(tn_nz_accept(&nz, server, init, eph, out, who, &version) == TAILNET_ERR_FORGED);
    free(v.text);
}

/* A fresh client that waits, and a response with one thing changed. */
static tailnet_result answered(const vectors *v, const uint8_t *msg, size_t len)
{
    tn_nz          nz;
    uint8_t        out[101];
    tailnet_result got;
    CHECK(tn_nz_start(&nz, v->machine, v->server_pub, v->version, v->client_eph, out));
    got = tn_nz_finish(&nz, v->machine, msg, len);
    CHECK(nz.state == (got == TAILNET_OK ? TN_NZ_OPEN : TN_NZ_DEAD));
    if (got != TAILNET_OK) CHECK(tn_is_zero(nz.ck, 32) && tn_is_zero(nz.eph_priv, 32));
    return got;
}

static void client_refuses(void)
{
    vectors v;
    uint8_t msg[60];
    size_t  i;
    load(&v, "noise-both-sides.txt");
    CHECK(answered(&v, v.response, 51) == TAILNET_OK);
    for (i = 0; i < 51 * 8; i++) {
        tailnet_result got;
        memcpy(msg, v.response, 51);
        msg[i / 8] ^= (uint8_t)(1u << i % 8);
        got = answered(&v, msg, 51);
        if (i == 0) CHECK(got == TAILNET_ERR_CONTROL);  /* type 3: an error frame */
        else CHECK(got == (i / 8 < 3 ? TAILNET_ERR_MALFORMED : TAILNET_ERR_FORGED));
    }
    memset(msg, 0, sizeof msg);
    memcpy(msg, v.response, 51);
    for (i = 0; i < 60; i++) {
        if (i == 51) continue;
        CHECK(answered(&v, msg, i) == TAILNET_ERR_MALFORMED);
    }
    msg[2] = 49;                                /* one byte more, said so */
    CHECK(answered(&v, msg, 52) == TAILNET_ERR_MALFORMED);
    msg[2] = 47;
    CHECK(answered(&v, msg, 50) == TAILNET_ERR_MALFORMED);
    memset(v.server_pub, 0, 32);
    {
        tn_nz   nz;
        uint8_t out[101];
        CHECK(!tn_nz_start(&nz, v.machine, v.server_pub, 138, v.client_eph, out));
        CHECK(nz.state == TN_NZ_DEAD);
    }
    free(v.text);
}

static void error_frames(void)
{
    static const uint8_t frame[] = "\x03\x00\x05wrong";
    vectors     v;
    const char *text;
    size_t      len, i;
    tn_nz       nz;
    uint8_t     out[101], other[8];
    load(&v, "noise-both-sides.txt");
    CHECK(answered(&v, frame, 8) == TAILNET_ERR_CONTROL);
    CHECK(tn_nz_error_text(frame, 8, &text, &len) && len == 5 && memcmp(text, "wrong", 5) == 0);
    for (i = 0; i < 8; i++) CHECK(!tn_nz_error_text(frame, i, &text, &len));
    memcpy(other, frame, 8);
    other[0] = 2;
    CHECK(!tn_nz_error_text(other, 8, &text, &len));
    other[0] = 3;
    other[2] = 4;
    CHECK(!tn_nz_error_text(other, 8, &text, &len));
    CHECK(tn_nz_error_text((const uint8_t *)"\x03\x00\x00", 3, &text, &len) && len == 0);
    CHECK(tn_nz_start(&nz, v.machine, v.server_pub, v.version, v.client_eph, out));
    for (i = 0; i < 8; i++) CHECK(tn_nz_want(&nz, frame, i) == (i < 3 ? 3 - i : 8 - i));
    CHECK(tn_nz_want(&nz, frame, 8) == 0 && tn_nz_whole(frame, 8) == 8);
    free(v.text);
}

/* An error frame in the middle of records, and other heads that cannot be. */
static void heads(void)
{
    static const struct { uint8_t type; uint16_t len; bool ok; } head[] = {
        { 4, 16, true }, { 4, 15, false }, { 4, 0, false }, { 4, 4093, true }, { 4, 4094, false },
        { 4, 65535, false }, { 3, 20, false }, { 2, 48, false }, { 1, 96, false }, { 0, 20, false },
        { 255, 20, false }
    };
    vectors  v;
    size_t   i, n;
    uint8_t  buf[4096], *text;
    load(&v, "noise-both-sides.txt");
    for (i = 0; i < sizeof head / sizeof head[0]; i++) {
        tn_nz nz;
        open_client(&nz, &v);
        memset(buf, 0, sizeof buf);
        buf[0] = head[i].type;
        buf[1] = (uint8_t)(head[i].len >> 8);
        buf[2] = (uint8_t)(head[i].len & 0xffu);
        CHECK(tn_nz_want(&nz, buf, 3) == (head[i].ok ? head[i].len : 0u));
        CHECK(tn_nz_whole(buf, 4096) == (head[i].len < 4093 ? head[i].len + 3u : 4096u));
        n = head[i].len + 3u > sizeof buf ? sizeof buf : head[i].len + 3u;
        CHECK(tn_nz_open(&nz, buf, n, &text, &n) ==
              (head[i].ok ? TAILNET_ERR_FORGED : TAILNET_ERR_MALFORMED));
        CHECK(n == 0 && nz.state == TN_NZ_DEAD);
        CHECK(tn_is_zero(nz.tx_key, 32) && tn_is_zero(nz.rx_key, 32));
        CHECK(tn_nz_seal(&nz, buf, 1) == 0);    /* dead for good */
        CHECK(tn_nz_open(&nz, buf, 19, &text, &n) == TAILNET_ERR_MALFORMED);
        CHECK(tn_nz_want(&nz, buf, 3) == 0 && tn_nz_want(&nz, buf, 1) == 2);
    }
    free(v.text);
}

/* Before the handshake nothing can be sealed or opened; no text is too long by
 * one; the last counter is never used. */
static void limits(void)
{
    static uint8_t buf[4200];
    vectors  v;
    tn_nz    nz;
    uint8_t *text;
    size_t   n;
    load(&v, "noise-both-sides.txt");
    memset(&nz, 0, sizeof nz);
    CHECK(tn_nz_seal(&nz, buf, 1) == 0);
    CHECK(tn_nz_open(&nz, buf, 20, &text, &n) == TAILNET_ERR_MALFORMED);
    tn_nz_wipe(&nz);
    CHECK(tn_nz_finish(&nz, v.machine, v.response, 51) == TAILNET_ERR_MALFORMED);
    open_client(&nz, &v);
    CHECK(tn_nz_finish(&nz, v.machine, v.response, 51) == TAILNET_ERR_MALFORMED);
    open_client(&nz, &v);
    CHECK(tn_nz_seal(&nz, buf, 4078) == 0 && nz.tx_count == 0);
    CHECK(tn_nz_seal(&nz, buf, 4077) == 4096 && tn_nz_seal(&nz, buf, 0) == 19);
    nz.tx_count = UINT64_MAX - 1;
    CHECK(tn_nz_seal(&nz, buf, 1) == 20);
    CHECK(tn_nz_seal(&nz, buf, 1) == 0);
    nz.rx_count = UINT64_MAX;
    CHECK(tn_nz_open(&nz, buf, 20, &text, &n) == TAILNET_ERR_MALFORMED);
    CHECK(sizeof(tn_nz) <= 192);
    free(v.text);
}

/* Forged and replayed records, and one cut off or grown by one. */
static void records_forged(void)
{
    static uint8_t record[4096], plain[4096], buf[4096];
    vectors     v;
    const char *at;
    size_t      len, plain_len, n, i;
    uint64_t    count;
    uint8_t    *text;
    tn_nz       nz;
    load(&v, "noise-both-sides.txt");
    at = v.text;
    CHECK(next_record(&at, record, &len, plain, &plain_len, &count) == 'S' && len == 24);
    for (i = 0; i < len * 8; i++) {
        open_client(&nz, &v);
        memcpy(buf, record, len);
        buf[i / 8] ^= (uint8_t)(1u << i % 8);
        CHECK(tn_nz_open(&nz, buf, len, &text, &n) ==
              (i < 24 ? TAILNET_ERR_MALFORMED : TAILNET_ERR_FORGED));
        CHECK(n == 0 && nz.state == TN_NZ_DEAD);
    }
    for (i = 0; i < 40; i++) {
        open_client(&nz, &v);
        memcpy(buf, record, sizeof buf);
        CHECK(tn_nz_open(&nz, buf, i, &text, &n) ==
              (i == len ? TAILNET_OK : TAILNET_ERR_MALFORMED));
    }
    open_client(&nz, &v);
    memcpy(buf, record, len);
    CHECK(tn_nz_open(&nz, buf, len, &text, &n) == TAILNET_OK);
    CHECK(tn_nz_open(&nz, record, len, &text, &n) == TAILNET_ERR_FORGED);   /* again */
    free(v.text);
}

/* A stream of response and records, read with want alone, in pieces as large as
 * most; the plaintext has to come out the same. */
static size_t read_stream(const vectors *v, const uint8_t *stream, size_t len, size_t most,
                          uint8_t *out)
{
    static uint8_t buf[TN_NZ_RECORD_MAX];
    uint8_t  init[101], *text;
    size_t   have = 0, at = 0, total = 0, n;
    tn_nz    nz;
    CHECK(tn_nz_start(&nz, v->machine, v->server_pub, v->version, v->client_eph, init));
    for (;;) {
        size_t want = tn_nz_want(&nz, buf, have);
        if (want == 0) {
            CHECK(tn_nz_whole(buf, have) == have);
            if (nz.state == TN_NZ_WAITING) {
                CHECK(tn_nz_finish(&nz, v->machine, buf, have) == TAILNET_OK);
            } else {
                CHECK(tn_nz_open(&nz, buf, have, &text, &n) == TAILNET_OK);
                memcpy(out + total, text, n);
                total += n;
            }
            have = 0;
            continue;
        }
        if (at == len) break;
        n = most == 0 ? 1 + (size_t)(tn_test_random() % 600) : most;
        if (n > want) n = want;
        if (n > len - at) n = len - at;
        CHECK(have + n <= sizeof buf);
        memcpy(buf + have, stream + at, n);
        have += n;
        at += n;
    }
    CHECK(have == 0);
    return total;
}

static void stream_in_pieces(void)
{
    static uint8_t stream[32768], whole[32768], out[32768], record[4096], plain[4096];
    vectors     v;
    const char *at;
    size_t      len = 51, total, n, plain_len;
    uint64_t    count;
    char        who;
    int         turn;
    load(&v, "noise-headscale.txt");
    memcpy(stream, v.response, 51);
    at = v.text;
    total = 0;
    while ((who = next_record(&at, record, &n, plain, &plain_len, &count)) != 0) {
        if (who != 'S') continue;
        memcpy(stream + len, record, n);
        len += n;
        memcpy(whole + total, plain, plain_len);
        total += plain_len;
    }
    CHECK(read_stream(&v, stream, len, 100000, out) == total && memcmp(out, whole, total) == 0);
    CHECK(read_stream(&v, stream, len, 1, out) == total && memcmp(out, whole, total) == 0);
    for (turn = 0; turn < 20; turn++) {
        memset(out, 0, sizeof out);
        CHECK(read_stream(&v, stream, len, 0, out) == total && memcmp(out, whole, total) == 0);
    }
    free(v.text);
}

/* Feeds data in pieces; gives the result and what HTTP/2 would get. */
static tn_nz_early_result early(const uint8_t *src, size_t len, size_t most, uint8_t *out,
                                size_t *out_len)
{
    tn_nz_early        e;
    tn_nz_early_result got = TN_NZ_EARLY_MORE;
    size_t             at  = 0;
    memset(&e, 0, sizeof e);
    *out_len = 0;
    while (at < len) {
        size_t         n    = most == 0 ? 1 + (size_t)(tn_test_random() % 20) : most;
        const uint8_t *data = src + at;
        if (n > len - at) n = len - at;
        at += n;
        if (got == TN_NZ_EARLY_MORE) {
            got = tn_nz_early_take(&e, &data, &n);
            CHECK(got != TN_NZ_EARLY_MORE || n == 0);
            if (got == TN_NZ_EARLY_NONE) {
                memcpy(out, e.head, 9);
                *out_len = 9;
            }
        }
        if (got != TN_NZ_EARLY_BAD && n != 0) {
            memcpy(out + *out_len, data, n);
            *out_len += n;
        }
    }
    return got;
}

static void early_payload(void)
{
    static const uint8_t settings[] = "\x00\x00\x1e\x04\x00\x00\x00\x00\x00 and what follows";
    static uint8_t with[200], out[200];
    uint8_t        json[100];
    size_t         most, n, len = 0;
    memset(json, '{', sizeof json);
    memcpy(with, "\xff\xff\xff\x54\x53\x00\x00\x00\x5f", 9);
    memcpy(with + 9, json, 95);
    memcpy(with + 104, settings, sizeof settings);
    len = 104 + sizeof settings;
    for (most = 0; most < 130; most++) {
        CHECK(early(with, len, most, out, &n) == TN_NZ_EARLY_SKIPPED);
        CHECK(n == sizeof settings && memcmp(out, settings, n) == 0);
        CHECK(early(settings, sizeof settings, most, out, &n) == TN_NZ_EARLY_NONE);
        CHECK(n == sizeof settings && memcmp(out, settings, n) == 0);
    }
    for (n = 0; n < 104; n++) {
        size_t none;
        CHECK(early(with, n, 0, out, &none) == TN_NZ_EARLY_MORE && none == 0);
    }
    CHECK(early(with, 104, 104, out, &n) == TN_NZ_EARLY_SKIPPED && n == 0);
    with[8] = 0;                                /* length 0: over at once */
    CHECK(early(with, 9, 1, out, &n) == TN_NZ_EARLY_SKIPPED && n == 0);
    with[6] = 1;                                /* 65,536 is the most */
    CHECK(early(with, 9, 1, out, &n) == TN_NZ_EARLY_MORE);
    with[8] = 1;
    CHECK(early(with, 9, 1, out, &n) == TN_NZ_EARLY_BAD);
    memset(with + 5, 0xff, 4);
    CHECK(early(with, 100, 7, out, &n) == TN_NZ_EARLY_BAD && n == 0);
    with[4] = 0x54;                             /* nearly the magic */
    CHECK(early(with, 100, 7, out, &n) == TN_NZ_EARLY_NONE && n == 100);
}

int main(void)
{
    TEST(client_with_headscale);
    TEST(both_roles);
    TEST(nonce_is_big_endian);
    TEST(server_refuses);
    TEST(client_refuses);
    TEST(error_frames);
    TEST(heads);
    TEST(limits);
    TEST(records_forged);
    TEST(stream_in_pieces);
    TEST(early_payload);
    return tn_test_end();
}
