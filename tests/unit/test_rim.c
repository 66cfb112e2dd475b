#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

static tn_rim   rim;
static uint64_t now, unix_now;
static unsigned clock_asked, random_asked, calls;
static int      answer;
static bool     guarded;

/* Each callback looks whether the guard is up, and is refused at the door. */
static void look(void)
{
    calls++;
    guarded = rim.inside && !tn_rim_enter(&rim);
}

static uint64_t cb_now(void *user) { (void)user; clock_asked++; CHECK(rim.inside); return now; }
static uint64_t cb_unix(void *user) { (void)user; look(); return unix_now; }
static int cb_random(void *user, void *dst, size_t size)
{
    (void)user;
    look();
    random_asked++;
    memset(dst, 0x5a + (int)random_asked, size);
    return answer;
}
static int cb_udp(void *user, const tailnet_addr *to, tailnet_buf *p, size_t n)
{
    (void)user, (void)to, (void)p, (void)n;
    look();
    return answer;
}
static void cb_ip(void *user, tailnet_buf *p, size_t n) { (void)user, (void)p, (void)n; look(); }
static int cb_open(void *user, tailnet_link l, const tailnet_dial *d)
{
    (void)user, (void)l, (void)d;
    look();
    return answer;
}
static int32_t cb_output(void *user, tailnet_link l, const void *data, size_t size)
{
    (void)user, (void)l, (void)data, (void)size;
    look();
    return answer;
}
static void cb_close(void *user, tailnet_link l) { (void)user, (void)l; look(); }
static int cb_resolve(void *user, uint32_t q, const char *h)
{
    (void)user, (void)q, (void)h;
    look();
    return answer;
}
static void cb_crypt(void *user, tailnet_crypt *work, size_t n)
{
    (void)user, (void)work, (void)n;
    look();
}
static int  cb_keep(void *user, const tailnet_peer *p) { (void)user, (void)p; look(); return answer; }
static void cb_log(void *user, int level, uint32_t code, const char *text)
{
    (void)user, (void)level, (void)code;
    CHECK(text != NULL);
    look();
}

static void required(tailnet_io *io)
{
    memset(io, 0, sizeof *io);
    io->now_ms     = cb_now;
    io->random     = cb_random;
    io->ip_output  = cb_ip;
    io->tcp_open   = cb_open;
    io->tcp_output = cb_output;
    io->tcp_close  = cb_close;
}

static void all(tailnet_io *io)
{
    required(io);
    io->unix_ms    = cb_unix;
    io->udp_output = cb_udp;
    io->resolve    = cb_resolve;
    io->crypt      = cb_crypt;
    io->keep_peer  = cb_keep;
    io->log        = cb_log;
}

static void test_required(void)
{
    tailnet_io io;
    required(&io);
    CHECK(tn_rim_init(&rim, &io));
    required(&io), io.now_ms = NULL;
    CHECK(!tn_rim_init(&rim, &io));
    required(&io), io.random = NULL;
    CHECK(!tn_rim_init(&rim, &io));
    required(&io), io.ip_output = NULL;
    CHECK(!tn_rim_init(&rim, &io));
    required(&io), io.tcp_open = NULL;
    CHECK(!tn_rim_init(&rim, &io));
    required(&io), io.tcp_output = NULL;
    CHECK(!tn_rim_init(&rim, &io));
    required(&io), io.tcp_close = NULL;
    CHECK(!tn_rim_init(&rim, &io));
}

static void test_clock(void)
{
    tailnet_io io;
    required(&io);
    CHECK(tn_rim_init(&rim, &io));
    clock_asked = 0;
    now         = 500;
    CHECK(tn_rim_enter(&rim) && rim.now_ms == 500 && clock_asked == 1);
    now = 400;                              /* a clock that goes back is held     */
    CHECK(tn_rim_enter(&rim) && rim.now_ms == 500);
    now = 501;
    CHECK(tn_rim_enter(&rim) && rim.now_ms == 501 && clock_asked == 3);
}

/* Every callback runs behind the guard, and only then. */
static void test_guard(void)
{
    tailnet_io   io;
    tailnet_addr to;
    tailnet_dial dial;
    uint8_t      b[4];
    memset(&to, 0, sizeof to);
    memset(&dial, 0, sizeof dial);
    all(&io);
    CHECK(tn_rim_init(&rim, &io));
    answer   = 0;
    unix_now = 77;
    calls    = 0;
#define BEHIND(x) guarded = false; CHECK(x); CHECK(guarded && !rim.inside)
    BEHIND(tn_rim_unix_ms(&rim) == 77);
    BEHIND(tn_rim_random(&rim, b, sizeof b));
    BEHIND(tn_rim_udp_output(&rim, &to, NULL, 1));
    BEHIND((tn_rim_ip_output(&rim, NULL, 1), true));
    BEHIND(tn_rim_tcp_open(&rim, 1, &dial));
    BEHIND(tn_rim_tcp_output(&rim, 1, b, 4) == 0);
    BEHIND((tn_rim_tcp_close(&rim, 1), true));
    BEHIND(tn_rim_resolve(&rim, 1, "x"));
    BEHIND(tn_rim_crypt(&rim, NULL, 0));
    BEHIND(tn_rim_keep_peer(&rim, NULL) == 0);
    BEHIND((tn_rim_log(&rim, 0, 1, "x"), true));
    CHECK(calls == 11 && rim.refused == 11);
    answer = -1;
    CHECK(!tn_rim_udp_output(&rim, &to, NULL, 1));
    CHECK(!tn_rim_tcp_open(&rim, 1, &dial));
    CHECK(tn_rim_tcp_output(&rim, 1, b, 4) == -1);
    CHECK(!tn_rim_resolve(&rim, 1, "x"));
    CHECK(tn_rim_keep_peer(&rim, NULL) == -1);
    answer = 4;
    CHECK(tn_rim_tcp_output(&rim, 1, b, 4) == 4);
}

static void test_optional(void)
{
    tailnet_io   io;
    tailnet_addr to;
    memset(&to, 0, sizeof to);
    required(&io);
    CHECK(tn_rim_init(&rim, &io));
    calls = 0;
    CHECK(tn_rim_unix_ms(&rim) == 0);
    CHECK(!tn_rim_udp_output(&rim, &to, NULL, 1));
    CHECK(!tn_rim_resolve(&rim, 1, "x"));
    CHECK(!tn_rim_crypt(&rim, NULL, 0));
    CHECK(tn_rim_keep_peer(&rim, NULL) == 0);
    tn_rim_log(&rim, 0, 1, "x");
    CHECK(calls == 0);
}

static void test_random(void)
{
    tailnet_io io;
    uint8_t    b[4];
    unsigned   i;
    required(&io);
    CHECK(tn_rim_init(&rim, &io));
    answer       = 0;
    random_asked = 0;
    for (i = 0; i < 100; i++) {
        uint64_t v = tn_rim_between(&rim, 1000, 1000 + i);
        CHECK(v >= 1000 && v <= 1000 + i);
    }
    CHECK(tn_rim_between(&rim, 5, 4) == 5);
    (void)tn_rim_between(&rim, 0, UINT32_MAX);
    answer = 1;
    CHECK(!tn_rim_random(&rim, b, sizeof b) && tn_is_zero(b, sizeof b));
    answer       = 0;                       /* too late                           */
    random_asked = 0;
    memset(b, 1, sizeof b);
    CHECK(!tn_rim_random(&rim, b, sizeof b) && tn_is_zero(b, sizeof b));
    CHECK(random_asked == 0 && rim.random_failed);
    CHECK(tn_rim_between(&rim, 3, 9) == 3);
}

static void test_floor(void)
{
    tailnet_io io;
    uint64_t   release = (uint64_t)TAILNET_RELEASE_UNIX * 1000u;
    required(&io);
    CHECK(tn_rim_init(&rim, &io));
    CHECK(tn_rim_unix_floor_ms(&rim) == release);
    tn_rim_learn_time(&rim, 1577836800000u);    /* a server that lives in 2020    */
    CHECK(tn_rim_unix_floor_ms(&rim) == release);
    tn_rim_learn_time(&rim, release + 5);
    tn_rim_learn_time(&rim, release + 4);
    CHECK(tn_rim_unix_floor_ms(&rim) == release + 5);
}

int main(void)
{
    TEST(test_required);
    TEST(test_clock);
    TEST(test_guard);
    TEST(test_optional);
    TEST(test_random);
    TEST(test_floor);
    return tn_test_end();
}
