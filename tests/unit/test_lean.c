/* Links as a small device has them: control's TLS engine has a smaller buffer than those
 * of relays (TAILNET_CONTROL_RECORD), and there is no AES (TAILNET_TLS_AES 0). The world is
 * that of the link tests. */
#define TAILNET_CONTROL_RECORD 4096
#define TAILNET_TLS_AES        0
#define main main_of_the_link_tests
#include "test_link.c"
#undef main

static tailnet_result try_link(uint8_t purpose, tailnet_link *h)
{
    tailnet_dial dial;
    memset(&dial, 0, sizeof dial);
    dial.host = "relay.example";
    dial.port = 443;
    dial.tls  = true;
    return tn_link_open(&links, &dial, purpose, h);
}

static uint8_t engine_of(tailnet_link h) { return slots[TAILNET_LINK_SLOT(h)].engine; }

/* Relays never get control's engine; control gets its own first. */
static void engines_by_purpose(void)
{
    tailnet_link a, b, c;
    CHECK(tn_link_engines_in(1) == TN_TLS_IN_LEN);
    CHECK(tn_link_engines_in(2) == TN_TLS_IN_LEN + 4096 + 325);
    CHECK(tn_link_engines_in(3) == 2 * TN_TLS_IN_LEN + 4096 + 325);
    fresh();
    CHECK(try_link(TN_LINK_FOR_RELAY, &a) == TAILNET_OK && engine_of(a) == 1);
    CHECK(try_link(TN_LINK_FOR_RELAY, &b) == TAILNET_ERR_AGAIN);
    CHECK(try_link(TN_LINK_FOR_CONTROL, &b) == TAILNET_OK && engine_of(b) == 0);
    CHECK(try_link(TN_LINK_FOR_KEY, &c) == TAILNET_ERR_AGAIN);
    tn_link_close(&links, a, TAILNET_OK);
    poll();
    CHECK(try_link(TN_LINK_FOR_KEY, &c) == TAILNET_OK && engine_of(c) == 1);
    CHECK(tn_link_engine_in_len(&links, &slots[TAILNET_LINK_SLOT(c)]) == TN_TLS_IN_LEN);
    CHECK(tn_link_engine_in_len(&links, &slots[TAILNET_LINK_SLOT(b)]) == 4096 + 325);
    fresh();                                /* a single engine is a whole one         */
    links.engine_count = 1;
    CHECK(try_link(TN_LINK_FOR_CONTROL, &a) == TAILNET_OK && engine_of(a) == 0);
    CHECK(tn_link_engine_in_len(&links, &slots[TAILNET_LINK_SLOT(a)]) == TN_TLS_IN_LEN);
}

/* Through the handshake; then the server may send records of any size. */
static tailnet_link shaken(uint8_t purpose)
{
    br_ssl_engine_context *eng = &servers[0].server.eng;
    tailnet_link           h   = 0;
    fresh();
    CHECK(try_link(purpose, &h) == TAILNET_OK);
    world_server_start(&servers[0], GOOD);
    CHECK(tn_link_tcp_opened(&links, h) == TAILNET_OK);
    run(h, &servers[0], 0);
    CHECK(tn_link_is_open(&links, h));
    eng->max_frag_len          = 16384;     /* like Go: it does not heed what we asked for */
    eng->peer_log_max_frag_len = 0;
    return h;
}

/* Records up to the limit are read; the next longer one that does not fit ends the link,
 * with a number of its own, in control's engine only. */
static void records_by_purpose(void)
{
    static uint8_t data[16384];
    size_t         sizes[] = { 1, 2048, 4096, 4380, 4500, 16384 }, i;
    unsigned       k;
    for (i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 7 + (i >> 8));
    for (k = 0; k < 2; k++) {
        for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            tailnet_link h    = shaken(k == 0 ? TN_LINK_FOR_CONTROL : TN_LINK_FOR_RELAY);
            bool         fits = k == 1 || sizes[i] <= 4400;
            server_says(&servers[0], "x", 1);   /* made ready for the small records still */
            run(h, &servers[0], 0);
            got_len = 0;
            server_says(&servers[0], data, sizes[i]);
            run(h, &servers[0], 2);
            CHECK((gone[TAILNET_LINK_SLOT(h)].link == h) == !fits);
            CHECK(got_len == (fits ? sizes[i] : 0));
            CHECK(!fits || memcmp(got, data, sizes[i]) == 0);
            CHECK(fits || gone[TAILNET_LINK_SLOT(h)].why == TAILNET_ERR_TLS);
            CHECK(fits || gone[TAILNET_LINK_SLOT(h)].detail == TN_TLS_ERR_LARGE);
            if (!tn_test_ok) printf("  purpose %u, %u bytes\n", k, (unsigned)sizes[i]);
        }
    }
}

/* A server that offers all takes ChaCha20; one that has only AES is told no, by TLS. */
static void no_aes(void)
{
    static const uint16_t aes[] = { BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                                    BR_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 };
    tailnet_link h;
    fresh();
    h = open_tls(&servers[0], GOOD, "relay.example", 0);
    CHECK(tn_link_is_open(&links, h));
    CHECK(servers[0].server.eng.session.cipher_suite ==
          BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256);
    fresh();
    h = open_link("relay.example", true, NULL);
    world_server_start(&servers[0], GOOD);
    br_ssl_engine_set_suites(&servers[0].server.eng, aes, 2);
    br_ssl_server_reset(&servers[0].server);
    CHECK(tn_link_tcp_opened(&links, h) == TAILNET_OK);
    run(h, &servers[0], 0);
    CHECK(gone[TAILNET_LINK_SLOT(h)].link == h);
    CHECK(gone[TAILNET_LINK_SLOT(h)].why == TAILNET_ERR_TLS);
    CHECK(gone[TAILNET_LINK_SLOT(h)].detail == BR_ERR_RECV_FATAL_ALERT + 40);
}

int main(void)
{
    world_load();
    TEST(engines_by_purpose);
    TEST(records_by_purpose);
    TEST(no_aes);
    return tn_test_end();
}
