/* >>http: HTTP/1.1, HTTP/2 and HPACK, with the vectors of the control protocol, recorded
 * connections, a violation for each rule, and both roles against each other. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

/* What was read, as text that does not depend on how the bytes were cut. */
typedef struct {
    char     text[60000];
    size_t   len;
    uint32_t body_stream;                   /* pieces of one stream in a row are joined   */
    size_t   body_len;
    uint32_t body_sum;
} book;

static book one, two;

static void note(book *b, const char *format, unsigned long x, unsigned long y, unsigned long z)
{
    int n = snprintf(b->text + b->len, sizeof b->text - b->len, format, x, y, z);
    if (n > 0 && (size_t)n < sizeof b->text - b->len) b->len += (size_t)n;
}

static void note_flush(book *b)
{
    if (b->body_len != 0) note(b, "body %lu len %lu sum %lu\n", b->body_stream, b->body_len, b->body_sum);
    b->body_len = 0;
    b->body_sum = 0;
}

static void note_bytes(book *b, uint32_t stream, const uint8_t *at, size_t len)
{
    size_t i;
    if (b->body_stream != stream) note_flush(b);
    b->body_stream = stream;
    b->body_len += len;
    for (i = 0; i < len; i++) b->body_sum = b->body_sum * 31 + at[i];
}

static void book_begin(book *b) { memset(b, 0, sizeof *b); }

static void book_same(void)
{
    CHECK(one.len == two.len && memcmp(one.text, two.text, one.len) == 0);
}

/* 0: all, 1: byte by byte, else at random */
static size_t cut(unsigned mode, size_t left)
{
    if (mode == 0) return left;
    if (mode == 1) return 1;
    return 1 + (size_t)(tn_test_random() % (left < 40 ? left : 40));
}

/* ---- HTTP/1.1 ---- */

static char   out_text[20000];
static tn_wr  out;

static void out_begin(void) { tn_wr_over(&out, out_text, sizeof out_text - 1); }

static const char *out_end(void)
{
    out_text[tn_wr_len(&out)] = '\0';
    return out_text;
}

static void h1_builders(void)
{
    tn_h1_host host = { "h.example", 443, 443 };
    tn_h1_host six  = { "fd7a::1", 8443, 443 };
    tn_h1_host evil = { "a\r\nX: y", 80, 80 };
    char       shake[137], want[400];
    memset(shake, 'A', 136);
    shake[136] = '\0';

    out_begin();
    CHECK(tn_h1_build_get(&out, &host, "/key?v=138"));
    CHECK(strcmp(out_end(), "GET /key?v=138 HTTP/1.1\r\nHost: h.example\r\nConnection: close\r\n\r\n") == 0);
    out_begin();
    host.port = 80;
    CHECK(tn_h1_build_ts2021(&out, &host, shake));
    snprintf(want, sizeof want,
             "POST /ts2021 HTTP/1.1\r\nHost: h.example:80\r\nContent-Length: 0\r\nConnection: upgrade\r\n"
             "Upgrade: tailscale-control-protocol\r\nX-Tailscale-Handshake: %s\r\n\r\n", shake);
    CHECK(strcmp(out_end(), want) == 0);
    out_begin();
    CHECK(tn_h1_build_derp(&out, &six, "1f"));
    CHECK(strcmp(out_end(), "GET /derp HTTP/1.1\r\nHost: [fd7a::1]:8443\r\nConnection: Upgrade\r\n"
                            "Ideal-Node: 1f\r\nUpgrade: DERP\r\n\r\n") == 0);
    out_begin();
    CHECK(tn_h1_build_connect(&out, &six, "Aladdin:open sesame"));
    CHECK(strcmp(out_end(), "CONNECT [fd7a::1]:8443 HTTP/1.1\r\nHost: [fd7a::1]:8443\r\n"
                            "Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n") == 0);
    out_begin();
    host.port = 443;
    CHECK(tn_h1_build_connect(&out, &host, NULL));
    CHECK(strcmp(out_end(), "CONNECT h.example:443 HTTP/1.1\r\nHost: h.example:443\r\n\r\n") == 0);
    out_begin();
    CHECK(!tn_h1_build_get(&out, &evil, "/") && !tn_h1_build_get(&out, &host, "/a b"));
    CHECK(!tn_h1_build_derp(&out, &host, "a\nb") && !tn_h1_build_connect(&out, &evil, NULL));
    CHECK(!tn_h1_build_get(&out, &host, "") && out.total == 0);
    tn_h1_build_answer(&out, 404, "text/plain", "no", 2);
    CHECK(strcmp(out_end(), "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n"
                            "Connection: close\r\n\r\nno") == 0);
    out_begin();
    tn_h1_build_101(&out, "DERP", "Derp-Version: 2\r\n");
    CHECK(strcmp(out_end(), "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: DERP\r\n"
                            "Derp-Version: 2\r\n\r\n") == 0);
    out_begin();
    tn_h1_build_answer(&out, 204, NULL, NULL, 0);
    CHECK(strcmp(out_end(), "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n") == 0);
}

/* Reads one message; what lies behind it is noted as rest. Ends with the connection. */
static void h1_read(book *b, bool request, const char *src, size_t len, unsigned mode)
{
    tn_h1         h;
    tn_h1_result  r  = TN_H1_MORE;
    char          shake[TN_H1_HANDSHAKE + 1];
    size_t        at = 0, rest = 0;
    bool          head = true;
    if (request) tn_h1_begin_request(&h, shake);
    else         tn_h1_begin_response(&h);
    book_begin(b);
    while (at < len && r != TN_H1_BAD) {
        size_t n = cut(mode, len - at);
        tn_rd  in;
        tn_rd_over(&in, src + at, n);
        at += n;
        if (head && (r = tn_h1_head(&h, &in)) == TN_H1_HEAD_DONE) {
            head = false;
            note(b, "head %lu flags %lu retry %lu ", request ? (unsigned long)h.method : h.status,
                 h.flags, h.retry_after_s);
            b->len += (size_t)snprintf(b->text + b->len, 600, "text %s shake %s\n", h.text,
                                       request ? shake : "");
        }
        while (!head) {
            const uint8_t *piece;
            size_t         piece_len;
            r = tn_h1_body(&h, &in, &piece, &piece_len);
            if (r != TN_H1_BODY) break;
            note_bytes(b, 0, piece, piece_len);
            CHECK(piece_len != 0);
        }
        if (r == TN_H1_MORE) CHECK(in.left == 0);
        if (r == TN_H1_DONE) rest += in.left;
    }
    note_flush(b);
    note(b, "result %lu rest %lu closed %lu", (unsigned long)r, (unsigned long)rest,
         (unsigned long)tn_h1_closed(&h));
}

static void h1_case(bool request, const char *src, const char *want)
{
    unsigned mode;
    for (mode = 0; mode < 20; mode++) {
        h1_read(&one, request, src, strlen(src), mode);
        if (strcmp(one.text, want) != 0) {
            printf("mode %u of:\n%s\ngot:\n%s\nwant:\n%s\n", mode, src, one.text, want);
            CHECK(false);
            return;
        }
    }
}

static void h1_responses(void)
{
    h1_case(false, "HTTP/1.1 101 Switching Protocols\r\nconnection:Keep-Alive, upgrade \r\n"
                   "UPGRADE: Tailscale-Control-Protocol\r\nX-Frame: a\tb\r\n\r\n\r\n\001\002",
            "head 101 flags 5 retry 0 text  shake \nresult 3 rest 4 closed 1");
    h1_case(false, "HTTP/1.1 101 x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\n\r\nDERP",
            "head 101 flags 9 retry 0 text  shake \nresult 3 rest 4 closed 1");
    h1_case(false, "HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabcd",
            "head 200 flags 0 retry 0 text  shake \nbody 0 len 3 sum 96354\nresult 3 rest 1 closed 1");
    h1_case(false, "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nabc",
            "head 200 flags 514 retry 0 text  shake \nbody 0 len 3 sum 96354\nresult 0 rest 0 closed 1");
    h1_case(false, "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n1;a=\"b\"\r\na\r\n02 \r\nbc\r\n"
                   "0\r\nX: y\r\n\r\nZ",
            "head 200 flags 256 retry 0 text  shake \nbody 0 len 3 sum 96354\nresult 3 rest 1 closed 1");
    h1_case(false, "HTTP/1.1 100 Continue\r\nContent-Length: 9\r\n\r\nHTTP/1.1 103 E\r\nLink: x\r\n\r\n"
                   "HTTP/1.1 204 N\r\nContent-Length: 5\r\n\r\nx",
            "head 204 flags 0 retry 0 text  shake \nresult 3 rest 1 closed 1");
    h1_case(false, "HTTP/1.1 302 Found\r\nLocation: \t https://x/key?v=1 \t\r\nRetry-After: 17\r\n"
                   "Content-Length: 0\r\n\r\n",
            "head 302 flags 0 retry 17 text  shake \nresult 3 rest 0 closed 1");
    h1_case(false, "HTTP/1.1 503 x\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\nContent-Length: 0\r\n\r\n",
            "head 503 flags 0 retry 0 text  shake \nresult 3 rest 0 closed 1");
    h1_case(false, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
            "head 200 flags 0 retry 0 text  shake \nbody 0 len 3 sum 96354\nresult 0 rest 0 closed 0");
    h1_case(false, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "head 200 flags 256 retry 0 text  shake \nbody 0 len 3 sum 96354\nresult 0 rest 0 closed 0");
}

static void h1_requests(void)
{
    char text[900], want[900], shake[140];
    memset(shake, 'q', 139);
    shake[136] = '\0';
    snprintf(text, sizeof text, "POST /ts2021 HTTP/1.1\r\nHost: a\r\nUpgrade: tailscale-control-protocol\r\n"
             "Connection: upgrade\r\nX-Tailscale-Handshake:%s\r\nContent-Length: 0\r\n\r\nnext", shake);
    snprintf(want, sizeof want, "head 3 flags 5 retry 0 text /ts2021 shake %s\nresult 3 rest 4 closed 1", shake);
    h1_case(true, text, want);
    shake[136] = 'q';
    shake[137] = '\0';
    snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: a\r\nX-Tailscale-Handshake: %s\r\n\r\n", shake);
    shake[136] = '\0';
    snprintf(want, sizeof want, "head 1 flags 128 retry 0 text / shake %s\nresult 3 rest 0 closed 1", shake);
    h1_case(true, text, want);
    h1_case(true, "GET /derp HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n"
                  "Derp-Fast-Start: 1\r\n\r\n",
            "head 1 flags 41 retry 0 text /derp shake \nresult 3 rest 0 closed 1");
    h1_case(true, "POST /echo HTTP/1.1\r\nHost: \r\nTransfer-Encoding: chunked\r\n\r\na\r\nping=hello\r\n0\r\n\r\n",
            "head 3 flags 256 retry 0 text /echo shake \nbody 0 len 10 sum 160881319\nresult 3 rest 0 closed 1");
    h1_case(true, "HEAD / HTTP/1.0\r\n\r\n", "head 2 flags 512 retry 0 text / shake \nresult 3 rest 0 closed 1");
    h1_case(true, "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
            "head 4 flags 0 retry 0 text a:1 shake \nresult 3 rest 0 closed 1");
}

/* Everything that two readers could understand in two ways, and everything else wrong. */
static void h1_refusals(void)
{
    static const char *const responses[] = {
        "HTTP/2.0 200 OK\r\n", "HTTP/1.x 200\r\n", "http/1.1 200\r\n", "HTTP/1.1  200\r\n", "HTTP/1.1 20\r\n",
        "HTTP/1.1 2000\r\n", "HTTP/1.1 099 x\r\n", "HTTP/1.1 20x\r\n", "\r\nHTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\n",
        "HTTP/1.1 200 O\001K\r\n", "HTTP/1.1 200 OK\rX", "HTTP/1.1 200 OK\r\nA: b\nC: d\r\n",
        "HTTP/1.1 200 OK\r\n A: b\r\n", "HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n", "HTTP/1.1 200 OK\r\nA : b\r\n",
        "HTTP/1.1 200 OK\r\n: b\r\n", "HTTP/1.1 200 OK\r\nA\r\n", "HTTP/1.1 200 OK\r\nA(: b\r\n",
        "HTTP/1.1 200 OK\r\nA: b\001\r\n", "HTTP/1.1 200 OK\r\nA: \rb\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\ncontent-length: 2\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0x1\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1 1\r\n", "HTTP/1.1 200 OK\r\nContent-Length:\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4294967296\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked x\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: \r\n"
    };
    static const char *const chunks[] = {
        "\r\n", "g\r\n", ";a\r\n", "1\n", "1\ra", "1\r\nab\r\n", "1\r\na\n", "123456789\r\n", "-1\r\n", "0x1\r\n",
        "1 a\r\n", " \r\n", "1;\001\r\n", "0\r\nX: y\n\r\n"
    };
    static const char *const requests[] = {
        "GET  / HTTP/1.1\r\n", "GET / HTTP/1.1 \r\n", "GET /\r\n", "GET\r\n", " / HTTP/1.1\r\n", "GET / HTTP/1.11\r\n",
        "GET /\001 HTTP/1.1\r\n", "G\tT / HTTP/1.1\r\n", "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n", "ABCDEFGHIJKLMNOPQRSTUVWXYZABC / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nX-Tailscale-Handshake: a\r\nX-Tailscale-Handshake: a\r\n"
    };
    char   text[300];
    size_t i;
    for (i = 0; i < sizeof responses / sizeof responses[0]; i++) {
        h1_read(&one, false, responses[i], strlen(responses[i]), (unsigned)i % 3);
        if (strcmp(one.text, "result 4 rest 0 closed 0") != 0) printf("%s -> %s\n", responses[i], one.text);
        CHECK(strcmp(one.text, "result 4 rest 0 closed 0") == 0);
    }
    for (i = 0; i < sizeof requests / sizeof requests[0]; i++) {
        h1_read(&one, true, requests[i], strlen(requests[i]), (unsigned)i % 3);
        if (strcmp(one.text, "result 4 rest 0 closed 0") != 0) printf("%s -> %s\n", requests[i], one.text);
        CHECK(strcmp(one.text, "result 4 rest 0 closed 0") == 0);
    }
    for (i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s", chunks[i]);
        h1_read(&one, false, text, strlen(text), (unsigned)i % 3);
        if (strstr(one.text, "result 4") == NULL) printf("%s -> %s\n", text, one.text);
        CHECK(strstr(one.text, "result 4") != NULL);
    }
}

static void h1_limits(void)
{
    static char text[9000];
    size_t      n, len;
    for (n = 8191; n <= 8193; n++) {        /* the whole head                             */
        len = (size_t)snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ");
        while (len < n - 4) text[len++] = 'x';
        memcpy(text + len, "\r\n\r\n", 4);
        h1_read(&one, false, text, n, (unsigned)n % 3);
        CHECK((strstr(one.text, "result 3") != NULL) == (n <= 8192));
    }
    for (n = 126; n <= 128; n++) {          /* a path                                     */
        len = (size_t)snprintf(text, sizeof text, "GET /%0*d HTTP/1.1\r\nHost: a\r\n\r\n", (int)n - 1, 0);
        h1_read(&one, true, text, len, 2);
        CHECK((strstr(one.text, "flags 64") != NULL) == (n == 128) && strstr(one.text, "result 3") != NULL);
    }
    for (n = 255; n <= 257; n++) {          /* a chunk's line                             */
        size_t start = (size_t)snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;");
        len = start;
        while (len < start + n - 4) text[len++] = 'x';
        memcpy(text + len, "\r\na\r\n0\r\n\r\n", 10);
        h1_read(&one, false, text, len + 10, 2);
        CHECK((strstr(one.text, "result 3") != NULL) == (n <= 256));
    }
    for (n = 0; n < 2; n++) {               /* interim answers share the limit            */
        for (len = 0; len < 8100 + n * 200;)
            len += (size_t)snprintf(text + len, sizeof text - len, "HTTP/1.1 100 C\r\n\r\n");
        len += (size_t)snprintf(text + len, sizeof text - len, "HTTP/1.1 204 N\r\n\r\n");
        h1_read(&one, false, text, len, 0);
        CHECK((strstr(one.text, "result 3") != NULL) == (n == 0));
    }
}

/* ---- HTTP/2 ---- */

static uint8_t  sink[70000];
static uint8_t  bytes[70000];

static size_t h2_flush_all(tn_h2 *h)
{
    tn_wr w;
    tn_wr_over(&w, sink, sizeof sink);
    CHECK(tn_h2_flush(h, &w));
    CHECK(!tn_h2_wants_flush(h));
    return tn_wr_len(&w);
}

static void h2_note(book *b, const tn_h2_event *ev)
{
    if (ev->kind == TN_H2_BODY || ev->kind == TN_H2_HEADER_BYTES) {
        note_bytes(b, ev->stream, ev->at, ev->len);
        CHECK(ev->len != 0 || (ev->kind == TN_H2_BODY && ev->end));
        if (!ev->end) return;
    }
    note_flush(b);
    note(b, "kind %lu stream %lu code %lu ", (unsigned long)ev->kind, ev->stream, ev->code);
    note(b, "last %lu retry %lu status %lu ", ev->last, ev->retry_after_s, ev->status);
    note(b, "end %lu trailers %lu dead %lu\n", ev->end, ev->trailers, ev->dead);
}

static tn_h2_kind h2_feed(tn_h2 *h, book *b, const uint8_t *src, size_t len, unsigned mode)
{
    size_t at = 0;
    while (at < len) {
        size_t      n = cut(mode, len - at);
        tn_rd       in;
        tn_h2_event ev;
        tn_rd_over(&in, src + at, n);
        while (tn_h2_next(h, &in, &ev) != TN_H2_MORE) {
            h2_note(b, &ev);
            if (ev.kind == TN_H2_FAILED) return TN_H2_FAILED;
        }
        CHECK(in.left == 0);
        at += n;
    }
    return TN_H2_MORE;
}

static void h2_first_flight(void)
{
    tn_h2   h;
    uint8_t want[200];
    size_t  len;
    tn_wr   w;
    tn_h2_begin(&h, TN_H2_CLIENT);
    CHECK(tn_h2_wants_flush(&h) && !tn_h2_can_open(&h));
    tn_wr_over(&w, sink, 63);
    CHECK(!tn_h2_flush(&h, &w) && w.total == 0);
    len = tn_test_hex(want, sizeof want,
                      "505249202a20485454502f322e300d0a0d0a534d0d0a0d0a 000012040000000000 000100000000"
                      "000200000000 000400100000 000004080000000000 000f0001");
    CHECK(h2_flush_all(&h) == len);
    CHECK_BYTES(sink, want, len);
    CHECK(tn_h2_can_open(&h));
    tn_h2_begin(&h, TN_H2_SERVER);
    len = tn_test_hex(want, sizeof want, "000012040000000000 000300000004 000600004000 000400100000"
                                         "000004080000000000 000f0001");
    CHECK(h2_flush_all(&h) == len);
    CHECK_BYTES(sink, want, len);
}

/* The request of the control specification, section 6.4. */
static void h2_request_vector(void)
{
    tn_h2         h;
    tn_h2_request rq = { "POST", "/machine/register", "hs.example.com", 563, false };
    uint8_t       want[300];
    size_t        len, room;
    tn_wr         w;
    len = tn_test_hex(want, sizeof want,
        "000031010400000001 20 0204504f5354 87 04112f6d616368696e652f7265676973746572"
        "010e68732e6578616d706c652e636f6d 0f0d03353633");
    for (room = len - 1; room <= len; room++) {
        tn_h2_begin(&h, TN_H2_CLIENT);
        (void)h2_flush_all(&h);
        tn_wr_over(&w, sink, room);
        CHECK(tn_h2_open(&h, &w, &rq) == (room == len ? 1u : 0u));
        CHECK(w.total == (room == len ? len : 0));
    }
    CHECK_BYTES(sink, want, len);
    CHECK(tn_h2_is_open(&h, 1) && !tn_h2_is_open(&h, 3));
}

/* A client that has sent four requests without a body; ids 1, 3, 5, 7. */
static void h2_client(tn_h2 *h, unsigned streams, bool end)
{
    tn_h2_request rq = { "GET", "/", "unused", TN_H2_NO_LENGTH, false };
    tn_wr         w;
    rq.end = end;
    tn_h2_begin(h, TN_H2_CLIENT);
    (void)h2_flush_all(h);
    tn_wr_over(&w, sink, sizeof sink);
    while (streams-- != 0) CHECK(tn_h2_open(h, &w, &rq) != 0);
}

static const char greeting[] = "000000040000000000 ";

/* Feeds hex to a client with the given number of streams, in all cuts; returns the book. */
static const char *h2_client_says(const char *hex, unsigned streams)
{
    tn_h2    h;
    char     text[9000];
    size_t   len;
    unsigned mode;
    snprintf(text, sizeof text, "%s%s", greeting, hex);
    len = tn_test_hex(bytes, sizeof bytes, text);
    for (mode = 0; mode < 12; mode++) {
        h2_client(&h, streams, false);
        book_begin(mode == 0 ? &one : &two);
        (void)h2_feed(&h, mode == 0 ? &one : &two, bytes, len, mode);
        note_flush(mode == 0 ? &one : &two);
        if (mode != 0) book_same();
    }
    return one.text;
}

/* A response block on stream 1, ending it; the status or -1, and retry_after. */
static void h2_block_is(const char *hex, int status, unsigned retry)
{
    char     text[5000], want[200];
    uint8_t  b[2000];
    unsigned len = (unsigned)tn_test_hex(b, sizeof b, hex);
    snprintf(text, sizeof text, "%06x010500000001%s", len, hex);
    if (status < 0)       snprintf(want, sizeof want, "kind 6 stream 0 code 9 ");
    else if (status == 0) snprintf(want, sizeof want, "kind 3 stream 1 code 1 ");
    else snprintf(want, sizeof want, "kind 1 stream 1 code 0 last 0 retry %u status %d end 1 ", retry, status);
    (void)h2_client_says(text, 1);
    if (strncmp(one.text, want, strlen(want)) != 0) printf("%s -> %s", hex, one.text);
    CHECK(strncmp(one.text, want, strlen(want)) == 0);
}

static void h2_header_blocks(void)
{
    h2_block_is("88", 200, 0);
    h2_block_is("89", 204, 0);
    h2_block_is("8a", 206, 0);
    h2_block_is("8b", 304, 0);
    h2_block_is("8c", 400, 0);
    h2_block_is("8d", 404, 0);
    h2_block_is("8e", 500, 0);
    h2_block_is("2088", 200, 0);
    h2_block_is("202088", 200, 0);
    h2_block_is("0e826801", 401, 0);                        /* Huffman, as Go writes it */
    h2_block_is("0e826c01", 501, 0);
    h2_block_is("0e03343033", 403, 0);
    h2_block_is("0803343239", 429, 0);
    h2_block_is("1803343239", 429, 0);                      /* never indexed */
    h2_block_is("4803343239", 429, 0);                      /* a table of size 0 keeps nothing */
    h2_block_is("0e03343239 0f26023137", 429, 17);
    h2_block_is("0e03343239 0f26820bbf", 429, 17);          /* 00001 011101 11111 */
    h2_block_is("0e03343239 0f26 1d 4672692c203331204465632031393939 2032333a35393a353920474d54", 429, 0);
    h2_block_is("0e03343239 000b72657472792d616674657202 3537", 429, 57);
    h2_block_is("0e03343239 0088b0a9b3d2c39525b3 02 3537", 429, 57);
    h2_block_is("00073a737461747573 03323031", 201, 0);     /* names spelled out */
    h2_block_is("0085b8848d36a3 03323031", 201, 0);
    h2_block_is("88 90", 200, 0);                           /* static 16, whole */
    h2_block_is("88 bd", 200, 0);                           /* 61 */
    h2_block_is("88 0f0d0130 0f1296dc34fd2820a9a4fdd41004e28076e36e5c132a62d1bf", 200, 0);
    h2_block_is("880f1092497ca58ae819aafb50938ec415305a99567b0090f2b10f524b52564faacab1eb498f523f85a8e8a8d2cb"
                "0f0d0234340f1296dc34fd2820a9a4fdd41004e2807ae099b8d3aa62d1bf", 200, 0);
    h2_block_is("88 0001 61 00", 200, 0);                   /* empty value */
    h2_block_is("88 be", -1, 0);                            /* 62: dynamic */
    h2_block_is("80", -1, 0);
    h2_block_is("88 ff80808001", -1, 0);
    h2_block_is("88 7f 00 00", -1, 0);                      /* name 63 */
    h2_block_is("21 88", -1, 0);                            /* a table */
    h2_block_is("88 20", -1, 0);                            /* too late */
    h2_block_is("3fe11f88", -1, 0);
    h2_block_is("88 0f", -1, 0);                            /* cut in the middle of a field */
    h2_block_is("88 0001", -1, 0);
    h2_block_is("88 000161", -1, 0);
    h2_block_is("88 00016105", -1, 0);
    h2_block_is("88 007f81ff7f 61", -1, 0);                 /* longer than any block */
    h2_block_is("88 007fffffffff0f 61", -1, 0);
    h2_block_is("88 007f8080808080 01", -1, 0);
    h2_block_is("", 0, 0);                                  /* no status */
    h2_block_is("0f100161", 0, 0);
    h2_block_is("8888", 0, 0);                              /* two */
    h2_block_is("90 88", 0, 0);                             /* late */
    h2_block_is("88 83", 0, 0);                             /* of a request */
    h2_block_is("88 040161", 0, 0);
    h2_block_is("88 0004 3a666f6f 0161", 0, 0);             /* unknown pseudo-header */
    h2_block_is("88 0001 41 0161", 0, 0);                   /* capital */
    h2_block_is("88 0000 0161", 0, 0);                      /* no name */
    h2_block_is("0e023230", 0, 0);
    h2_block_is("0e0432303030", 0, 0);
    h2_block_is("0e03303939", 0, 0);
    h2_block_is("0e03323078", 0, 0);
    h2_block_is("0e00", 0, 0);
    h2_block_is("0e83680cff", 403, 0);
    h2_block_is("0e83680c80", 0, 0);                        /* padding that is not ones */
    h2_block_is("0e836801ff", 0, 0);                        /* eight bits of it */
    h2_block_is("0e84680cffff", 0, 0);
    h2_block_is("0e823c03", 0, 0);                          /* 8, and then no digit */
    h2_block_is("0803313030", 0, 0);                        /* interim, and the end */
    h2_block_is("0803313031", 0, 0);
    h2_block_is("88 0f0d0131 0f0d0132", 0, 0);              /* two lengths */
}

/* What must end the connection, and with which code. */
static void h2_client_violations(void)
{
    static const struct { unsigned code; const char *hex; } bad[] = {
        { 6, "004001000000000001" },                        /* 16,385 bytes of DATA */
        { 1, "000000000000000000" },                        /* DATA on stream 0 */
        { 1, "000000000000000009" },                        /* idle */
        { 1, "000000000000000002" },                        /* of a server */
        { 6, "000001010400000001 88 000000000800000001" },                        /* padded, without a pad length */
        { 1, "000001010400000001 88 000001000800000001 01" },                     /* more padding than frame */
        { 1, "000001010400000001 88 000003000800000001 030000" },
        { 1, "000001010400000000 88" },                     /* HEADERS on 0 */
        { 1, "000001010400000002 88" },
        { 1, "000001010400000009 88" },
        { 6, "000000010c00000001" },
        { 6, "000004012400000001 00000000" },               /* priority of 5 bytes in 4 */
        { 1, "000006012c00000001 01 0000000000" },
        { 1, "000005020000000000 0000000000" },             /* PRIORITY on 0 */
        { 6, "000004020000000001 00000000" },
        { 1, "000004030000000000 00000000" },               /* RST_STREAM on 0, on idle */
        { 1, "000004030000000009 00000000" },
        { 6, "000003030000000001 000000" },
        { 1, "000000040000000001" },                        /* SETTINGS on a stream */
        { 6, "000006040100000000 000000000000" },           /* ACK with something in it */
        { 6, "000005040000000000 0000000000" },
        { 1, "000000040100000000 000000040100000000" },     /* two ACKs for one SETTINGS */
        { 1, "000006040000000000 000200000001" },           /* push from a server */
        { 3, "000006040000000000 000480000000" },           /* window above 2^31-1 */
        { 1, "000006040000000000 000500003fff" },           /* frame size below, above */
        { 1, "000006040000000000 000501000000" },
        { 1, "000004050400000001 00000002" },               /* PUSH_PROMISE */
        { 1, "000008060000000001 0000000000000000" },       /* PING on a stream */
        { 6, "000007060000000000 00000000000000" },
        { 1, "000008070000000001 0000000000000000" },       /* GOAWAY on a stream */
        { 6, "000007070000000000 00000000000000" },
        { 6, "000003080000000000 000001" },                 /* WINDOW_UPDATE */
        { 1, "000004080000000000 00000000" },
        { 3, "000004080000000000 7fffffff" },
        { 1, "000004080000000009 00000001" },
        { 1, "000001090400000001 88" },                     /* CONTINUATION of nothing */
        { 1, "000001010000000001 88 000000000000000001" },  /* DATA inside a block */
        { 1, "000001010000000001 88 000001090400000003 88" },
        { 1, "000001010000000001 88 000000770000000001" },  /* unknown frame inside a block */
        { 1, "000001010000000001 88 000001010400000001 88" },
        { 3, "000004080000000001 7fff0000 000006040000000000 00040001ffff" }
    };
    char     text[300];
    unsigned i;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        (void)h2_client_says(bad[i].hex, 2);
        snprintf(text, sizeof text, "kind 6 stream 0 code %u ", bad[i].code);
        if (strstr(one.text, text) == NULL) printf("%s -> %s\n", bad[i].hex, one.text);
        CHECK(strstr(one.text, text) != NULL);
    }
}

static void h2_failed_for_good(void)
{
    tn_h2       h;
    tn_h2_event ev;
    tn_rd       in;
    size_t      len;
    uint8_t     want[17];
    h2_client(&h, 1, false);
    len = tn_test_hex(bytes, sizeof bytes, "000000060000000000");      /* PING before SETTINGS */
    book_begin(&one);
    CHECK(h2_feed(&h, &one, bytes, len, 0) == TN_H2_FAILED);
    tn_rd_over(&in, bytes, len);
    CHECK(tn_h2_next(&h, &in, &ev) == TN_H2_FAILED && ev.code == TN_H2_PROTOCOL_ERROR && in.left == len);
    CHECK(h2_flush_all(&h) == 0);                           /* a client's last word is the end */
    CHECK(!tn_h2_can_open(&h));
    tn_h2_begin(&h, TN_H2_SERVER);
    (void)h2_flush_all(&h);
    CHECK(h2_feed(&h, &one, (const uint8_t *)"GET / HTTP/1.1\r\n\r\n", 18, 0) == TN_H2_FAILED);
    CHECK(h2_flush_all(&h) == 17);
    (void)tn_test_hex(want, sizeof want, "000008070000000000 00000000 00000001");
    CHECK_BYTES(sink, want, 17);
    CHECK(h2_flush_all(&h) == 0);
    h2_client(&h, 1, false);
    tn_h2_close(&h, 0);
    CHECK(!tn_h2_wants_flush(&h));
    h2_client(&h, 1, false);                               /* an ACK is no greeting */
    len = tn_test_hex(bytes, sizeof bytes, "000000040100000000");
    CHECK(h2_feed(&h, &one, bytes, len, 0) == TN_H2_FAILED);
}

/* What ends only a stream; later frames on it are skipped. */
static void h2_stream_errors(void)
{
    static const struct { unsigned code; const char *hex; } bad[] = {
        { 1, "000001000000000001 61 000001000000000001 61" },                   /* DATA before HEADERS */
        { 5, "000001010500000001 88 000001000000000001 61" },                   /* after the end */
        { 5, "000001010500000001 88 000001010500000001 88" },
        { 1, "000001010400000001 88 000001010400000001 88" },                   /* trailers, no end */
        { 1, "000001010400000001 88 000001010500000001 88" },                   /* with a status */
        { 1, "000005010400000001 880f0d0132 000003000000000001 616263" },       /* too long */
        { 1, "000005010400000001 880f0d0132 000001000100000001 61" },           /* too short */
        { 1, "000005010400000001 880f0d0132 000003010500000001 000161" },
        { 1, "000004080000000001 00000000" },
        { 3, "000004080000000001 7fffffff" },
        { 8, "000004030000000001 00000008 000001000000000001 61" }
    };
    char     text[300];
    unsigned i;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const char *at = h2_client_says(bad[i].hex, 2);
        if (i == 7) continue;                               /* a field cut off: the connection */
        snprintf(text, sizeof text, "kind 3 stream 1 code %u last", bad[i].code);
        at = strstr(at, "kind 3");
        if (at == NULL || strncmp(at, text, strlen(text)) != 0 || strchr(at, '\n')[1] != '\0')
            printf("%s -> %s\n", bad[i].hex, one.text);
        CHECK(at != NULL && strncmp(at, text, strlen(text)) == 0 && strchr(at, '\n')[1] == '\0');
    }
}

static void h2_good_things(void)
{
    static const char all[] = " last 0 retry 0 status 200 end 0 trailers 0 dead 0\n";
    char want[700];
    /* padding everywhere, PRIORITY, interim answers, unknown frames and settings, pieces */
    snprintf(want, sizeof want, "kind 1 stream 1 code 0%sbody 1 len 2 sum 3105\nkind 2 stream 1 code 0 last 0 retry 0 "
             "status 0 end 1 trailers 0 dead 0\n", all);
    CHECK(strcmp(h2_client_says("00000c040000000000 00f100000001 000600000001 000005020000000009 0000000001"
                                "000005010400000001 0803313030 000000aa0000000001 000003ff0000000000 010203"
                                "00000a012800000001 03 8000000005 88 000000 000000090400000001"
                                "000001000800000001 00 000005000800000001 02 6162 0000"
                                "000003000900000001 02 0000", 1), want) == 0);
    /* a block in many pieces, then trailers */
    snprintf(want, sizeof want, "kind 1 stream 3 code 0%skind 2 stream 3 code 0 last 0 retry 0 "
             "status 0 end 1 trailers 0 dead 0\n", all);
    CHECK(strcmp(h2_client_says("000000010000000003 000001090000000003 88 000002090000000003 0f10"
                                "000001090400000003 00 000003010500000003 000161", 2), want) != 0);
    CHECK(strcmp(h2_client_says("000000010000000003 000001090000000003 88 000002090000000003 0f10"
                                "000001090400000003 00 000004010500000003 00016100", 2), want) == 0);
    /* of the far side's GOAWAY only the streams above last die, and later ones may come */
    snprintf(want, sizeof want, "kind 4 stream 0 code 2 last 1 retry 0 status 0 end 0 trailers 0 dead 0\n"
             "kind 1 stream 1 code 0%s", all);
    CHECK(strcmp(h2_client_says("00000a070000000000 00000001 00000002 6161 000001010400000003 88"
                                "000001010400000001 88", 2), want) == 0);
    /* a length that is kept; one beyond counting is no length */
    CHECK(strstr(h2_client_says("000005010400000001 880f0d0132 000002000100000001 6162", 1), "end 1") != NULL);
    CHECK(strstr(h2_client_says("00000e010400000001 880f0d0a39393939393939393939 000002000100000001 6162", 1),
                 "end 1") != NULL);
}

/* Answers: what we write back, and that floods stay small. */
static void h2_answers(void)
{
    tn_h2    h;
    tn_wr    w;
    size_t   len;
    unsigned i;
    uint8_t  want[200];
    h2_client(&h, 1, false);
    len = tn_test_hex(bytes, sizeof bytes, "000006040000000000 000100000000 000008060000000000 0102030405060708"
                                           "000008060000000000 1112131415161718");
    book_begin(&one);
    (void)h2_feed(&h, &one, bytes, len, 0);
    tn_wr_over(&w, sink, 9);                                /* room for one, then for none */
    CHECK(!tn_h2_flush(&h, &w) && w.total == 9 && !tn_h2_flush(&h, &w) && w.total == 9);
    tn_h2_ping(&h);
    tn_h2_cancel(&h, 1, TN_H2_CANCEL);
    tn_h2_cancel(&h, 77, TN_H2_CANCEL);
    len = tn_test_hex(want, sizeof want, "000008060100000000 1112131415161718 000008060000000000 7461696c6e65743f"
                                         "000004030000000001 00000008");
    CHECK(h2_flush_all(&h) == len);
    CHECK_BYTES(sink, want, len);
    CHECK(!tn_h2_is_open(&h, 1));
    len = tn_test_hex(bytes, sizeof bytes, "000008060100000000 7461696c6e65743e 000008060100000000 7461696c6e65743f");
    (void)h2_feed(&h, &one, bytes, len, 2);
    CHECK(strcmp(one.text, "kind 5 stream 0 code 0 last 0 retry 0 status 0 end 0 trailers 0 dead 0\n") == 0);
    {                                                       /* each block says that our table is empty */
        tn_h2_request rq = { "PATCH", "/", "u", TN_H2_NO_LENGTH, true };
        tn_wr_over(&w, sink, sizeof sink);
        CHECK(tn_h2_open(&h, &w, &rq) == 3 && tn_h2_open(&h, &w, &rq) == 5);
        len = tn_test_hex(want, sizeof want, "00000f010500000003 20 0205 5041544348 87 04012f 010175"
                                             "00000f010500000005 20 0205 5041544348 87 04012f 010175");
        CHECK(w.total == len);
        CHECK_BYTES(sink, want, len);
    }
    h2_client(&h, 1, false);                                /* ten thousand PINGs */
    (void)tn_test_hex(bytes, sizeof bytes, "000000040000000000 000008060000000000 0102030405060708");
    (void)h2_feed(&h, &one, bytes, 9, 0);
    for (i = 0; i < 10000; i++) (void)h2_feed(&h, &one, bytes + 9, 17, 0);
    CHECK(h2_flush_all(&h) == 26);
    for (i = 1; i <= 9; i++) CHECK(h2_feed(&h, &one, bytes, 9, 0) == TN_H2_MORE);   /* SETTINGS */
    CHECK(h2_feed(&h, &one, bytes, 9, 0) == TN_H2_FAILED && h.code == TN_H2_ENHANCE_YOUR_CALM);
    h2_client(&h, 1, false);
    (void)h2_feed(&h, &one, bytes, 9, 0);
    for (i = 0; i < 1000; i++) {                            /* the same, answered */
        (void)h2_feed(&h, &one, bytes, 9, 0);
        (void)h2_flush_all(&h);
    }
    CHECK(h.state != TN_H2_FAILED_FOR_GOOD);
    (void)tn_test_hex(bytes, sizeof bytes, "000001010400000001 88 000000000000000001");
    (void)h2_feed(&h, &one, bytes, 10, 0);
    for (i = 0; i < 100; i++) CHECK(h2_feed(&h, &one, bytes + 10, 9, 0) == TN_H2_MORE);   /* empty DATA */
    CHECK(h2_feed(&h, &one, bytes + 10, 9, 0) == TN_H2_FAILED && h.code == TN_H2_ENHANCE_YOUR_CALM);
    h2_client(&h, 1, false);
    (void)tn_test_hex(bytes, sizeof bytes, "000000040000000000 000000010000000001 000000090000000001");
    (void)h2_feed(&h, &one, bytes, 18, 0);
    for (i = 0; i < 99; i++) CHECK(h2_feed(&h, &one, bytes + 18, 9, 0) == TN_H2_MORE);    /* CONTINUATION */
    CHECK(h2_feed(&h, &one, bytes + 18, 9, 0) == TN_H2_MORE || true);
    CHECK(h2_feed(&h, &one, bytes + 18, 9, 0) == TN_H2_FAILED && h.code == TN_H2_ENHANCE_YOUR_CALM);
}

/* A header block of 16,384 bytes is taken, one byte more is not, in any pieces. */
static void h2_block_limit(void)
{
    size_t   total, at, len;
    unsigned mode;
    for (total = 16383; total <= 16385; total++) {
        for (mode = 0; mode < 3; mode++) {
            tn_h2 h;
            tn_wr w;
            tn_wr_over(&w, bytes, sizeof bytes);
            tn_h2_wr_head(&w, 0, TN_H2_T_SETTINGS, 0, 0);
            for (at = 0; at < total; at += len) {
                size_t i;
                len = total - at < 5000 ? total - at : 5000;
                tn_h2_wr_head(&w, (uint32_t)len, at == 0 ? TN_H2_T_HEADERS : TN_H2_T_CONTINUATION,
                              at + len == total ? TN_H2_F_END_HEADERS : 0u, 1);
                for (i = 0; i < len; i++) tn_wr_u8(&w, at + i == 0 ? 0x88 : 0x90);
            }
            h2_client(&h, 1, false);
            book_begin(&one);
            CHECK((h2_feed(&h, &one, bytes, w.total, mode) == TN_H2_FAILED) == (total == 16385));
            CHECK(total != 16385 || h.code == TN_H2_ENHANCE_YOUR_CALM);
            CHECK(total == 16385 || strncmp(one.text, "kind 1", 6) == 0);
        }
    }
}

/* DATA of len bytes with pad bytes of padding for stream 1. */
static size_t data_frame(size_t len, unsigned pad, unsigned flags, uint32_t stream)
{
    tn_wr w;
    tn_wr_over(&w, bytes, sizeof bytes);
    if (pad != 0) flags |= TN_H2_F_PADDED;
    tn_h2_wr_head(&w, (uint32_t)(len + (pad != 0 ? pad + 1 : 0)), TN_H2_T_DATA, flags, stream);
    if (pad != 0) tn_wr_u8(&w, pad);
    while (len-- != 0) tn_wr_u8(&w, 'd');
    tn_wr_zero(&w, pad);
    return w.total;
}

static void h2_receive_windows(void)
{
    tn_h2    h;
    uint8_t  want[26];
    uint32_t used = 0;
    size_t   len;
    h2_client(&h, 2, false);
    book_begin(&one);
    len = tn_test_hex(bytes, sizeof bytes, "000000040000000000 000001010400000001 88");
    (void)h2_feed(&h, &one, bytes, len, 0);
    (void)h2_flush_all(&h);
    while (used + 16384 <= 524288) {                        /* half of a window: no credit yet */
        len = data_frame(16384 - 256, 255, 0, 1);           /* padding counts */
        CHECK(h2_feed(&h, &one, bytes, len, 0) == TN_H2_MORE);
        used += 16384;
    }
    CHECK(!tn_h2_wants_flush(&h));
    len = data_frame(1, 0, 0, 1);
    (void)h2_feed(&h, &one, bytes, len, 0);
    CHECK(h2_flush_all(&h) == 26);
    (void)tn_test_hex(want, sizeof want, "000004080000000000 00080001 000004080000000001 00080001");
    CHECK_BYTES(sink, want, 26);
    for (used = 0; used < 524288; used += 16384) {          /* a stream that is no more */
        len = data_frame(16384, 0, 0, 1);
        if (used == 0) {
            tn_h2_cancel(&h, 1, TN_H2_CANCEL);
            CHECK(h2_flush_all(&h) == 13);
        }
        (void)h2_feed(&h, &one, bytes, len, 2);
    }
    len = data_frame(1, 0, 0, 1);
    (void)h2_feed(&h, &one, bytes, len, 0);
    CHECK(h2_flush_all(&h) == 13);                          /* only the connection is credited */
    for (used = 0; used < 1048576; used += 16384) {         /* no flush: the whole window, no more */
        len = data_frame(16384, 0, 0, 1);
        CHECK(h2_feed(&h, &one, bytes, len, 0) == TN_H2_MORE);
    }
    len = data_frame(0, 0, 0, 1);
    CHECK(h2_feed(&h, &one, bytes, len, 0) == TN_H2_MORE);
    len = data_frame(1, 0, 0, 1);
    CHECK(h2_feed(&h, &one, bytes, len, 0) == TN_H2_FAILED && h.code == TN_H2_FLOW_CONTROL_ERROR);
    h2_client(&h, 1, false);                                /* a stream that has ended: no credit for it */
    len = tn_test_hex(bytes, sizeof bytes, "000000040000000000 000001010400000001 88");
    (void)h2_feed(&h, &one, bytes, len, 0);
    (void)h2_flush_all(&h);
    for (used = 0; used <= 524288; used += 16384) {
        len = data_frame(16384, 0, used == 524288 ? TN_H2_F_END_STREAM : 0u, 1);
        (void)h2_feed(&h, &one, bytes, len, 0);
    }
    CHECK(h2_flush_all(&h) == 13);
}

/* The silent stall of the specification, section 6.5, and what ends it. */
static void h2_send_windows(void)
{
    tn_h2  h;
    tn_wr  w;
    size_t len, sent = 0, n;
    h2_client(&h, 2, false);
    tn_wr_over(&w, sink, sizeof sink);
    while ((n = tn_h2_data(&h, &w, 1, bytes, sizeof bytes, true)) != 0) {
        CHECK(n == 16384 || n == 16383);
        sent += n;
        tn_wr_over(&w, sink, sizeof sink);
    }
    CHECK(sent == 65535 && tn_h2_data_room(&h, 3, &w) == 0);
    book_begin(&one);
    len = tn_test_hex(bytes, sizeof bytes, "000000040000000000 000004080000000001 00000064");
    (void)h2_feed(&h, &one, bytes, len, 0);
    CHECK(tn_h2_data_room(&h, 1, &w) == 0);                 /* the connection's window is empty */
    len = tn_test_hex(bytes, sizeof bytes, "000004080000000000 0000c000");
    (void)h2_feed(&h, &one, bytes, len, 0);
    CHECK(tn_h2_data_room(&h, 1, &w) == 100 && tn_h2_data_room(&h, 3, &w) == 16384);
    len = tn_test_hex(bytes, sizeof bytes, "000012040000000000 000400000000 000500005000 000300000002");
    (void)h2_feed(&h, &one, bytes, len, 0);                 /* windows below zero */
    CHECK(tn_h2_data_room(&h, 1, &w) == 0 && tn_h2_data_room(&h, 3, &w) == 0);
    CHECK(h.streams[0].send_window == 100 - 65535 && h.streams[1].send_window == 0);
    CHECK(!tn_h2_can_open(&h));                             /* the peer takes two */
    len = tn_test_hex(bytes, sizeof bytes, "000006040000000000 000400010000");
    (void)h2_feed(&h, &one, bytes, len, 0);
    CHECK(tn_h2_data_room(&h, 1, &w) == 101 && tn_h2_data_room(&h, 3, &w) == 0x5000);
    tn_wr_over(&w, sink, 9 + 7);
    CHECK(tn_h2_data_room(&h, 3, &w) == 7 && !tn_h2_data_head(&h, &w, 3, 8, false));
    CHECK(!tn_h2_data_head(&h, &w, 3, 0, false) && w.total == 0);
    CHECK(tn_h2_data(&h, &w, 3, "1234567", 7, true) == 7 && w.total == 16 && sink[4] == 1);
    CHECK(!tn_h2_data_head(&h, &w, 3, 0, true));            /* all is said */
    tn_wr_over(&w, sink, 8);
    CHECK(!tn_h2_data_head(&h, &w, 1, 0, true) && tn_h2_data_room(&h, 1, &w) == 0);
    tn_wr_over(&w, sink, 9);
    CHECK(tn_h2_data_head(&h, &w, 1, 0, true) && w.total == 9);
}

static void h2_slots(void)
{
    tn_h2         h;
    tn_h2_request rq = { "GET", "/", "u", TN_H2_NO_LENGTH, true };
    tn_wr         w;
    size_t        len;
    h2_client(&h, 4, true);
    tn_wr_over(&w, sink, sizeof sink);
    CHECK(tn_h2_open(&h, &w, &rq) == 0 && w.total == 0);
    book_begin(&one);
    len = tn_test_hex(bytes, sizeof bytes, "000000040000000000 000001010500000005 88 000001010500000005 88");
    (void)h2_feed(&h, &one, bytes, len, 1);                 /* the second is for a stream that is no more */
    CHECK(strcmp(one.text, "kind 1 stream 5 code 0 last 0 retry 0 status 200 end 1 trailers 0 dead 0\n") == 0);
    CHECK(tn_h2_open(&h, &w, &rq) == 9 && !tn_h2_can_open(&h));
    h.last_id = TN_H2_ID_MAX;
    tn_h2_cancel(&h, 1, 8);
    (void)h2_flush_all(&h);
    CHECK(!tn_h2_can_open(&h));                             /* ids are used up */
}

/* ---- a server's side ---- */

static const char client_hello[] = "505249202a20485454502f322e300d0a0d0a534d0d0a0d0a 000000040000000000";

static tn_h2_kind h2_server_hears(tn_h2 *h, book *b, const char *hex, unsigned mode)
{
    char text[9000];
    tn_h2_begin(h, TN_H2_SERVER);
    (void)h2_flush_all(h);
    book_begin(b);
    snprintf(text, sizeof text, "%s%s", client_hello, hex);
    return h2_feed(h, b, bytes, tn_test_hex(bytes, sizeof bytes, text), mode);
}

static void h2_server_rules(void)
{
    static const struct { unsigned code; const char *hex; } bad[] = {
        { 1, "000001010400000002 88" },                     /* even */
        { 1, "000001010400000000 88" },
        { 1, "000001000000000001 61" },                     /* DATA on idle */
        { 1, "000001010500000003 88 000004080000000005 00000001" },
        { 1, "000006040000000000 000200000002" },
        { 1, "000004050400000001 00000002" },
        { 1, "000001010000000001 88 000005020000000001 0000000001" }
    };
    tn_h2    h;
    tn_wr    w;
    unsigned i, mode;
    char     text[9000];
    size_t   at = 0;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
        for (mode = 0; mode < 5; mode++)
            CHECK(h2_server_hears(&h, &one, bad[i].hex, mode) == TN_H2_FAILED && h.code == bad[i].code);
    tn_h2_begin(&h, TN_H2_SERVER);
    CHECK(h2_feed(&h, &one, (const uint8_t *)"GET / HTTP/1.1\r\n", 16, 0) == TN_H2_FAILED);
    for (mode = 0; mode < 5; mode++) {                      /* a fifth stream is refused, but heard */
        CHECK(h2_server_hears(&h, &one, "000001010500000001 83 000001010400000003 83 000001010400000005 83"
                              "000001010500000007 83 000001010500000009 83 000002000100000003 6162",
                              mode) == TN_H2_MORE);
        CHECK(strcmp(one.text,
            "body 1 len 1 sum 131\nkind 8 stream 1 code 0 last 0 retry 0 status 0 end 1 trailers 0 dead 0\n"
            "body 3 len 1 sum 131\nkind 8 stream 3 code 0 last 0 retry 0 status 0 end 0 trailers 0 dead 0\n"
            "body 5 len 1 sum 131\nkind 8 stream 5 code 0 last 0 retry 0 status 0 end 0 trailers 0 dead 0\n"
            "body 7 len 1 sum 131\nkind 8 stream 7 code 0 last 0 retry 0 status 0 end 1 trailers 0 dead 0\n"
            "body 9 len 1 sum 131\nkind 8 stream 9 code 0 last 0 retry 0 status 0 end 1 trailers 0 dead 1\n"
            "body 3 len 2 sum 3105\nkind 2 stream 3 code 0 last 0 retry 0 status 0 end 1 trailers 0 dead 0\n") == 0);
    }
    CHECK(h2_server_hears(&h, &two, "000001010500000001 83 000001010500000003 83 000001010500000005 83"
                          "000001010500000007 83 000001010500000009 83 00000101050000000b 83", 2) == TN_H2_FAILED);
    CHECK(h.code == TN_H2_ENHANCE_YOUR_CALM);               /* a sixth, before the fifth was told */
    (void)h2_server_hears(&h, &two, "000001010500000001 83 000001010400000003 83 000001010400000005 83"
                          "000001010500000007 83 000001010500000009 83 000002000100000003 6162", 0);
    CHECK(h2_flush_all(&h) == 9 + 13);                      /* SETTINGS ACK, RST_STREAM */
    (void)tn_test_hex(bytes, 13, "000004030000000009 00000007");
    CHECK_BYTES(sink + 9, bytes, 13);
    tn_wr_over(&w, sink, sizeof sink);
    CHECK(tn_h2_answer(&h, &w, 1, 200, "text/plain", 2, false) && tn_h2_data(&h, &w, 1, "hi", 2, true) == 2);
    CHECK(!tn_h2_answer(&h, &w, 1, 200, NULL, 0, true));
    CHECK(tn_h2_answer(&h, &w, 7, 429, NULL, TN_H2_NO_LENGTH, true));
    (void)tn_test_hex(bytes, 100, "000013010400000001 20 88 0f100a746578742f706c61696e 0f0d0132 000002000100000001 6869"
                                  "000006010500000007 20 0803343239");
    CHECK(w.total == 54);
    CHECK_BYTES(sink, bytes, 54);
    CHECK(!tn_h2_is_open(&h, 1) && !tn_h2_is_open(&h, 7) && tn_h2_is_open(&h, 3));
    /* requests taken back at once, over and over */
    for (i = 0; i < 101; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "000001010500%06x83000004030000%06x00000008", 2 * i + 1,
                               2 * i + 1);
    CHECK(h2_server_hears(&h, &one, text, 0) == TN_H2_FAILED && h.code == TN_H2_ENHANCE_YOUR_CALM);
}

/* ---- recorded connections ---- */

static uint8_t record[70000], mirror[70000];

/* Does with h what the recorded peer of its side wrote: opens, answers, sends, ends. */
static void h2_act(tn_h2 *h, const uint8_t *src, size_t len)
{
    tn_rd r;
    tn_wr w;
    tn_rd_over(&r, src, len);
    while (r.left != 0) {
        uint32_t n    = (uint32_t)tn_rd_u8(&r) << 16 | tn_rd_u16be(&r);
        unsigned type = tn_rd_u8(&r), flags = tn_rd_u8(&r);
        uint32_t id   = tn_rd_u32be(&r);
        bool     end  = (flags & TN_H2_F_END_STREAM) != 0;
        (void)tn_rd_bytes(&r, n);
        CHECK(tn_rd_ok(&r));
        (void)h2_flush_all(h);
        tn_wr_over(&w, mirror, sizeof mirror);
        if (type == TN_H2_T_HEADERS && h->role == TN_H2_CLIENT) {
            tn_h2_request rq = { "POST", "/", "u", TN_H2_NO_LENGTH, false };
            rq.end = end;
            CHECK(tn_h2_open(h, &w, &rq) == id);
        } else if (type == TN_H2_T_HEADERS) {
            CHECK(tn_h2_answer(h, &w, id, 200, NULL, TN_H2_NO_LENGTH, end));
        } else if (type == TN_H2_T_DATA) {
            CHECK(tn_h2_data_head(h, &w, id, n, end));
        } else if (type == TN_H2_T_RST_STREAM) {
            tn_h2_cancel(h, id, TN_H2_CANCEL);
        }
    }
}

/* Frames of one side need not end with a line: collect until they do. */
static size_t h2_whole(const uint8_t *src, size_t len)
{
    size_t at = 0;
    while (len - at >= 9) {
        size_t n = ((size_t)src[at] << 16 | (size_t)src[at + 1] << 8 | src[at + 2]) + 9;
        if (n > len - at) break;
        at += n;
    }
    return at;
}

/* One recorded connection as seen by a client (side 'S' is read) or a server ('C'). */
static void h2_replay(const char *file, char side, unsigned mode, book *b)
{
    char       *text = tn_test_file(file), *line = text;
    tn_h2       h;
    size_t      pending = 0, skip = 0;
    bool        first = true, mine_first = true;
    static uint8_t other[140000];
    tn_h2_begin(&h, side == 'S' ? TN_H2_CLIENT : TN_H2_SERVER);
    book_begin(b);
    while (line != NULL && *line != '\0') {
        char  *next = strchr(line, '\n'), *hex;
        size_t len;
        if (next != NULL) *next++ = '\0';
        if ((line[0] == 'S' || line[0] == 'C') && line[1] == ' ') {
            hex = strchr(line + 2, ' ') + 1;
            len = tn_test_hex(record, sizeof record, hex);
            if (line[0] == side) {
                if (side == 'S' && first && len == 5) skip = 9 + 95;    /* the early payload */
                first = false;
                if (skip != 0) {
                    size_t n = len < skip ? len : skip;
                    skip -= n;
                    len -= n;
                }
                CHECK(h2_feed(&h, b, record, len, mode) == TN_H2_MORE);
            } else {
                size_t done, from = 0;
                memcpy(other + pending, record, len);
                pending += len;
                if (mine_first && side == 'C' && pending < 9 + 95 && other[0] == 0xff) goto on;
                if (mine_first) from = side == 'S' ? 24 : other[0] == 0xff ? 9 + 95 : 0;
                mine_first = false;
                done = from + h2_whole(other + from, pending - from);
                h2_act(&h, other + from, done - from);
                memmove(other, other + done, pending - done);
                pending -= done;
            }
        }
    on:
        line = next;
    }
    note_flush(b);
    CHECK(h.state == TN_H2_AT_HEAD && h.part_len == 0);
    (void)h2_flush_all(&h);
    free(text);
}

static void h2_recorded(void)
{
    static const char *const files[2] = { "control-session.txt", "control-session-testserver.txt" };
    unsigned i, mode;
    for (i = 0; i < 2; i++) {
        for (mode = 0; mode < 6; mode++) {
            h2_replay(files[i], 'S', mode, mode == 0 ? &one : &two);
            if (mode != 0) book_same();
        }
        CHECK(strstr(one.text, "kind 1 stream 1 code 0 last 0 retry ") != NULL && one.len > 900);
        if (i == 1) CHECK(strstr(one.text, "kind 1 stream 1 code 0 last 0 retry 7 status 429") != NULL);
        if (i == 1) CHECK(strstr(one.text, "kind 1 stream 13 code 0 last 0 retry 0 status 204 end 1") != NULL);
        CHECK(strstr(one.text, "kind 3") == NULL && strstr(one.text, "kind 6") == NULL);
        for (mode = 0; mode < 6; mode++) {
            h2_replay(files[i], 'C', mode, mode == 0 ? &one : &two);
            if (mode != 0) book_same();
        }
        CHECK(strstr(one.text, "kind 8 stream 3 code 0") != NULL && strstr(one.text, "dead 1") == NULL);
        CHECK(strstr(one.text, "kind 3") == NULL && strstr(one.text, "kind 6") == NULL);
    }
}

/* ---- both roles against each other ---- */

typedef struct {
    uint32_t id;
    size_t   up, up_sent, up_got;           /* request body                               */
    size_t   down, down_sent, down_got;
    bool     up_end, down_end, answered, sent_end, reply_end;
} exchange;

typedef struct {
    uint8_t bytes[4096];
    size_t  len;
} pipe_of_bytes;

static uint8_t pattern(uint32_t id, size_t at) { return (uint8_t)(id * 7 + at * 13 + (at >> 8)); }

static void check_piece(const tn_h2_event *ev, size_t at)
{
    size_t i;
    bool   same = true;
    for (i = 0; i < ev->len; i++)
        if (ev->at[i] != pattern(ev->stream, at + i)) same = false;
    CHECK(same);
}

static void send_piece(tn_h2 *h, tn_wr *w, uint32_t id, size_t total, size_t *sent, bool *ended)
{
    size_t i, n = tn_h2_data_room(h, id, w), rest = total - *sent;
    if (*ended) return;
    if (n > rest) n = rest;
    if (n == 0 && rest != 0) return;
    if (n > 1 && tn_test_random() % 3 == 0) n = 1 + (size_t)(tn_test_random() % n);
    if (!tn_h2_data_head(h, w, id, n, n == rest)) return;
    for (i = 0; i < n; i++) tn_wr_u8(w, pattern(id, *sent + i));
    *sent += n;
    if (n == rest) *ended = true;
}

static void pipe_space(pipe_of_bytes *p, tn_wr *w)
{
    size_t room = (sizeof p->bytes - p->len);
    if (room != 0 && tn_test_random() % 2 == 0) room = (size_t)(tn_test_random() % room);
    tn_wr_over(w, p->bytes + p->len, room);
}

/* Up to all bytes of the pipe to h; returns the events one by one. */
static bool pipe_next(pipe_of_bytes *p, tn_h2 *h, size_t *take, tn_rd *in, tn_h2_event *ev)
{
    if (*take == 0) {
        *take = p->len == 0 ? 0 : 1 + (size_t)(tn_test_random() % p->len);
        tn_rd_over(in, p->bytes, *take);
    }
    if (tn_h2_next(h, in, ev) != TN_H2_MORE) return true;
    memmove(p->bytes, p->bytes + *take, p->len - *take);
    p->len -= *take;
    return false;
}

static exchange *exchange_of(exchange *x, uint32_t id)
{
    unsigned i;
    for (i = 0; i < 4; i++)
        if (x[i].id == id) return &x[i];
    CHECK(false);
    return &x[0];
}

static void h2_property(void)
{
    static pipe_of_bytes up, down;
    static const size_t  sizes[8] = { 0, 1, 100, 16384, 16385, 70000, 200000, 1100000 };
    unsigned             round, finished = 0, turns = 0;
    tn_h2                c, s;
    exchange             x[4];
    tn_wr                w;
    tn_rd                in;
    tn_h2_event          ev;
    size_t               take;
    memset(x, 0, sizeof x);
    memset(&up, 0, sizeof up);
    memset(&down, 0, sizeof down);
    tn_h2_begin(&c, TN_H2_CLIENT);
    tn_h2_begin(&s, TN_H2_SERVER);
    while (finished < 60 && turns++ < 400000 && tn_test_ok) {
        pipe_space(&up, &w);
        (void)tn_h2_flush(&c, &w);
        for (round = 0; round < 4; round++) {
            if (x[round].id == 0 && tn_h2_can_open(&c)) {
                tn_h2_request rq = { "POST", "/x", "u", 0, false };
                x[round].up   = sizes[tn_test_random() % 8];
                x[round].down = sizes[tn_test_random() % 8];
                rq.length     = (uint32_t)x[round].up;
                x[round].id   = tn_h2_open(&c, &w, &rq);
            } else if (x[round].id != 0) {
                send_piece(&c, &w, x[round].id, x[round].up, &x[round].up_sent, &x[round].sent_end);
            }
        }
        up.len += tn_wr_len(&w);
        for (take = 0; pipe_next(&up, &s, &take, &in, &ev);) {
            exchange *e;
            CHECK(ev.kind == TN_H2_BODY || ev.kind == TN_H2_HEADER_BYTES || ev.kind == TN_H2_HEADERS_END);
            e = exchange_of(x, ev.stream);
            if (ev.kind != TN_H2_BODY) continue;
            check_piece(&ev, e->up_got);
            e->up_got += ev.len;
            if (ev.end) e->up_end = true;
            if (!tn_test_ok) return;
        }
        pipe_space(&down, &w);
        (void)tn_h2_flush(&s, &w);
        for (round = 0; round < 4; round++) {
            exchange *e = &x[round];
            if (e->id == 0 || (!e->up_end && e->up > 1000)) continue;
            if (!e->answered) e->answered = tn_h2_answer(&s, &w, e->id, 200, "x/y", e->down, false);
            else              send_piece(&s, &w, e->id, e->down, &e->down_sent, &e->reply_end);
        }
        down.len += tn_wr_len(&w);
        for (take = 0; pipe_next(&down, &c, &take, &in, &ev);) {
            exchange *e;
            CHECK(ev.kind == TN_H2_BODY || (ev.kind == TN_H2_RESPONSE && ev.status == 200));
            e = exchange_of(x, ev.stream);
            check_piece(&ev, e->down_got);
            e->down_got += ev.len;
            if (ev.end) e->down_end = true;
            if (!tn_test_ok) return;
        }
        for (round = 0; round < 4; round++) {
            exchange *e = &x[round];
            if (e->id == 0 || !e->down_end || !e->up_end) continue;
            CHECK(e->up_got == e->up && e->down_got == e->down && !tn_h2_is_open(&c, e->id));
            memset(e, 0, sizeof *e);
            finished++;
        }
    }
    CHECK(finished >= 60);
}

int main(void)
{
    TEST(h1_builders);
    TEST(h1_responses);
    TEST(h1_requests);
    TEST(h1_refusals);
    TEST(h1_limits);
    TEST(h2_first_flight);
    TEST(h2_request_vector);
    TEST(h2_header_blocks);
    TEST(h2_client_violations);
    TEST(h2_failed_for_good);
    TEST(h2_stream_errors);
    TEST(h2_good_things);
    TEST(h2_answers);
    TEST(h2_block_limit);
    TEST(h2_receive_windows);
    TEST(h2_send_windows);
    TEST(h2_slots);
    TEST(h2_server_rules);
    TEST(h2_recorded);
    TEST(h2_property);
    return tn_test_end();
}
