/* What the tests of TLS and of links share: certificates, a fixed world around
 * a rim, and a TLS server in memory. Include after tailnet.h and tn_test.h. */
#ifndef TLS_WORLD_H
#define TLS_WORLD_H

enum { WORLD_CERT = 1400, WORLD_META_LEN = 160 };

#define WORLD_NOW_MS 1800000000000u         /* January 2027: inside what is valid */

/* ---- the rim's outside ---- */

typedef struct world {
    uint64_t now_ms, unix_ms, seed;
    bool     random_fails;
    unsigned random_calls;
} world;

static uint64_t world_now(void *user) { return ((world *)user)->now_ms; }
static uint64_t world_unix(void *user) { return ((world *)user)->unix_ms; }

static int world_random(void *user, void *dst, size_t size)
{
    world   *w = (world *)user;
    uint8_t *b = (uint8_t *)dst;
    size_t   i;
    w->random_calls++;
    for (i = 0; i < size; i++) {
        w->seed = w->seed * 6364136223846793005u + 1442695040888963407u;
        b[i]    = (uint8_t)(w->seed >> 56);
    }
    return w->random_fails ? -1 : 0;
}

static void world_ip(void *user, tailnet_buf *pkts, size_t count)
{
    (void)user, (void)pkts, (void)count;
}
static int world_open(void *user, tailnet_link link, const tailnet_dial *dial)
{
    (void)user, (void)link, (void)dial;
    return 0;
}
static int32_t world_output(void *user, tailnet_link link, const void *data, size_t size)
{
    (void)user, (void)link, (void)data;
    return (int32_t)size;
}
static void world_close(void *user, tailnet_link link) { (void)user, (void)link; }

static void world_io(tailnet_io *io, world *w)
{
    memset(io, 0, sizeof *io);
    io->user       = w;
    io->now_ms     = world_now;
    io->unix_ms    = world_unix;
    io->random     = world_random;
    io->ip_output  = world_ip;
    io->tcp_open   = world_open;
    io->tcp_output = world_output;
    io->tcp_close  = world_close;
}

/* ---- certificates ---- */

typedef struct world_certs {
    uint8_t              der[13][WORLD_CERT];
    size_t               len[13];
    uint8_t              meta[WORLD_META_LEN * 2];
    size_t               meta_len;
    uint8_t              dn[2][128];
    size_t               dn_len[2];
    br_x509_decoder_context decoder[2];
    br_x509_trust_anchor anchors[2];        /* root, root_rsa                     */
    br_skey_decoder_context ec, rsa;
    char                 pin[3][80];        /* pinned, pinned_name, pinned_old    */
} world_certs;

enum {
    C_ROOT, C_ROOT_RSA, C_MIDDLE, C_GOOD, C_GOOD_RSA, C_ADDRESS, C_EXPIRED, C_FUTURE, C_FORGED,
    C_PINNED, C_PINNED_NAME, C_PINNED_OLD, C_COUNT
};

static world_certs certs;

static void world_dn(void *ctx, const void *buf, size_t len)
{
    unsigned i = *(unsigned *)ctx;
    memcpy(certs.dn[i] + certs.dn_len[i], buf, len);
    certs.dn_len[i] += len;
}

/* A DER element around what is already in tmp. */
static size_t world_tlv(uint8_t *dst, uint8_t tag, const void *body, size_t len)
{
    size_t at = 0;
    dst[at++] = tag;
    if (len >= 128) dst[at++] = 0x81;
    dst[at++] = (uint8_t)len;
    memmove(dst + at, body, len);
    return at + len;
}

/* Something of the outer form of a relay's meta certificate: subject CN is
 * "derpkey" and 64 hex digits. Nobody checks its signature. */
static size_t world_meta(uint8_t *dst, const char *cn)
{
    static const uint8_t start[] = {
        0xa0, 0x03, 0x02, 0x01, 0x02, 0x02, 0x01, 0x02,             /* version, serial */
        0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70,                   /* Ed25519         */
        0x30, 0x00                                                  /* no issuer       */
    };
    static const char dates[] = "\x17\x0d" "270101000000Z" "\x17\x0d" "280101000000Z";
    static const uint8_t oid[] = { 0x06, 0x03, 0x55, 0x04, 0x03 };
    uint8_t a[256], b[256], tbs[256];
    size_t  n, at = sizeof start;
    memcpy(tbs, start, at);
    at += world_tlv(tbs + at, 0x30, dates, sizeof dates - 1);
    memcpy(a, oid, sizeof oid);
    n = sizeof oid + world_tlv(a + sizeof oid, 0x0c, cn, strlen(cn));
    n = world_tlv(b, 0x30, a, n);
    n = world_tlv(a, 0x31, b, n);
    at += world_tlv(tbs + at, 0x30, a, n);
    n = world_tlv(a, 0x30, tbs, at);
    return world_tlv(dst, 0x30, a, n);
}

static void world_load(void)
{
    static const char *const names[C_COUNT] = {
        "root", "root_rsa", "middle", "good", "good_rsa", "numbered", "expired", "future", "forged",
        "pinned", "pinned_name", "pinned_old"
    };
    static const char *const pins[3] = { "pinned_sha256", "pinned_name_sha256",
                                         "pinned_old_sha256" };
    char    *text = tn_test_file("tls/certificates.txt");
    uint8_t  key[2048];
    unsigned i, j;
    for (i = 0; i < C_COUNT; i++)
        certs.len[i] = tn_test_value(text, names[i], certs.der[i], WORLD_CERT);
    for (i = 0; i < 2; i++) {
        br_x509_decoder_init(&certs.decoder[i], world_dn, &i);
        br_x509_decoder_push(&certs.decoder[i], certs.der[i], certs.len[i]);
        certs.anchors[i].dn.data = certs.dn[i];
        certs.anchors[i].dn.len  = certs.dn_len[i];
        certs.anchors[i].flags   = BR_X509_TA_CA;
        certs.anchors[i].pkey    = *br_x509_decoder_get_pkey(&certs.decoder[i]);
    }
    br_skey_decoder_init(&certs.ec);
    br_skey_decoder_push(&certs.ec, key, tn_test_value(text, "leaf_key", key, sizeof key));
    br_skey_decoder_init(&certs.rsa);
    br_skey_decoder_push(&certs.rsa, key, tn_test_value(text, "leaf_rsa_key", key, sizeof key));
    for (i = 0; i < 3; i++) {
        uint8_t hash[32];
        char   *at = certs.pin[i];
        tn_test_value(text, pins[i], hash, 32);
        at += sprintf(at, "sha256-raw:");
        for (j = 0; j < 32; j++) at += sprintf(at, "%02x", hash[j]);
    }
    certs.meta_len = world_meta(certs.meta, "derpkey000102030405060708090a0b0c0d0e0f"
                                            "101112131415161718191a1b1c1d1e1f");
    free(text);
}

/* ---- a TLS server ---- */

typedef struct world_server {
    br_ssl_server_context server;
    tn_tls                port;
    br_x509_certificate   chain[4];
    size_t                chain_len;
    uint8_t               in[BR_SSL_BUFSIZE_INPUT], out[BR_SSL_BUFSIZE_OUTPUT];
} world_server;

static void world_chain_add(world_server *s, uint8_t *der, size_t len)
{
    s->chain[s->chain_len].data     = der;
    s->chain[s->chain_len].data_len = len;
    s->chain_len++;
}

/* list: certificates, -1 the meta certificate, -2 the end. */
static void world_server_start(world_server *s, const int *list)
{
    uint8_t seed[32];
    bool    rsa = list[0] == C_GOOD_RSA;
    memset(s, 0, sizeof *s);
    for (; *list != -2; list++) {
        if (*list == -1) world_chain_add(s, certs.meta, certs.meta_len);
        else world_chain_add(s, certs.der[*list], certs.len[*list]);
    }
    if (rsa) {
        br_ssl_server_init_full_rsa(&s->server, s->chain, s->chain_len, &certs.rsa.key.rsa);
    } else {
        br_ssl_server_init_full_ec(&s->server, s->chain, s->chain_len, BR_KEYTYPE_EC,
                                   &certs.ec.key.ec);
    }
    br_ssl_engine_set_versions(&s->server.eng, BR_TLS12, BR_TLS12);
    br_ssl_engine_set_buffers_bidi(&s->server.eng, s->in, sizeof s->in, s->out, sizeof s->out);
    memset(seed, 0x5a, sizeof seed);
    br_ssl_engine_inject_entropy(&s->server.eng, seed, sizeof seed);
    s->server.eng.rng_os_rand_done = 1;
    br_ssl_server_reset(&s->server);
    tn_tls_attach(&s->port, &s->server.eng);
}

/* Feeds bytes into a port until all are taken or it wants no more. */
static size_t world_feed(tn_tls *t, const uint8_t *src, size_t len)
{
    size_t done = 0, room;
    while (done < len) {
        uint8_t *at;
        while (tn_tls_turn(t)) {}
        at = tn_tls_in_reserve(t, &room);
        if (at == NULL) break;
        if (room > len - done) room = len - done;
        memcpy(at, src + done, room);
        tn_tls_in_commit(t, room);
        done += room;
    }
    while (tn_tls_turn(t)) {}
    return done;
}

/* How bytes are cut: 0 whole, 1 one by one, 2 at random. */
static size_t world_cut(int cut, size_t len)
{
    if (cut == 1 && len > 1) return 1;
    if (cut == 2 && len > 1) return 1 + (size_t)(tn_test_random() % len);
    return len;
}

/* Moves what one side has to say to the other. False: nothing moved. */
static bool world_move(tn_tls *from, tn_tls *to, int cut)
{
    size_t         len, n;
    const uint8_t *data = tn_tls_out(from, &len);
    if (data == NULL) return false;
    n = world_feed(to, data, world_cut(cut, len));
    if (n == 0) return false;
    tn_tls_sent(from, n);
    return true;
}

#endif
