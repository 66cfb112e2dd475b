/* The JSON reader: RFC 8259 accepted and refused, every text whole, byte by byte
 * and cut at random with the same events; and the writer. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

/* All events of a text as one line of text. */
static char events[1 << 20];

static void note(size_t *at, const char *bytes, size_t len)
{
    if (*at + len >= sizeof events) {
        printf("too many events\n");
        exit(2);
    }
    memcpy(events + *at, bytes, len);
    *at += len;
    events[*at] = '\0';
}

/* mode 0: whole, 1: byte by byte, 2: random pieces. skip: containers under "skip" are left out. */
static tn_js_event run(const char *text, size_t len, int mode)
{
    static const char sign[] = "!-{}[]s#tfn.";
    tn_js       js;
    tn_js_event ev = TN_JS_MORE;
    size_t      from = 0, at = 0;

    tn_js_init(&js);
    events[0] = '\0';
    while (from < len && ev != TN_JS_ERROR) {
        size_t n = mode == 0 ? len : mode == 1 ? 1 : (size_t)(tn_test_random() % 9);
        char  *piece;
        if (n > len - from) n = len - from;
        piece = (char *)malloc(n + 1);          /* so that the sanitizer sees a read too far */
        if (piece == NULL) exit(2);
        memcpy(piece, text + from, n);
        tn_js_feed(&js, piece, n);
        while ((ev = tn_js_next(&js)) > TN_JS_MORE) {
            char num[32];
            if (js.key_len != 0 || (ev != TN_JS_END && js.depth != 0 && js.key_cut)) {
                note(&at, js.key, js.key_len);
                note(&at, js.key_cut ? "~" : "", js.key_cut ? 1 : 0);
                note(&at, ":", 1);
            }
            note(&at, &sign[ev + 1], 1);
            if (ev == TN_JS_STRING || ev == TN_JS_NUMBER) {
                note(&at, js.text, js.text_len);
                if (js.text_cut) note(&at, "~", 1);
            }
            snprintf(num, sizeof num, "/%u ", js.depth);
            note(&at, num, strlen(num));
            if (tn_js_is_key(&js, "skip")) tn_js_skip(&js);
        }
        free(piece);
        from += n;
    }
    if (ev == TN_JS_ERROR) {
        CHECK(tn_js_next(&js) == TN_JS_ERROR);
        tn_js_feed(&js, "1", 1);
        CHECK(tn_js_next(&js) == TN_JS_ERROR);
        note(&at, "!", 1);
        return TN_JS_ERROR;
    }
    tn_js_feed(&js, " ", 1);                    /* a number ends where another byte begins */
    ev = tn_js_next(&js);
    if (ev == TN_JS_NUMBER) ev = tn_js_next(&js);
    if (ev == TN_JS_MORE && tn_js_done(&js)) ev = TN_JS_END;
    return ev;
}

/* The same result for every way of cutting. */
static tn_js_event same(const char *text, size_t len)
{
    static char want[sizeof events];
    tn_js_event ev = run(text, len, 0);
    int         i;
    strcpy(want, events);
    for (i = 1; i < 4; i++) {
        CHECK(run(text, len, i == 1 ? 1 : 2) == ev);
        if (strcmp(want, events) != 0) printf("of %.200s\n", text);
        CHECK(strcmp(want, events) == 0);
    }
    strcpy(events, want);
    return ev;
}

static void accepts(void)
{
    static const char *const texts[] = {
        "0", "-0", "1", "-1", "10", "1.5", "-1.5e10", "1E+2", "1e-2", "0.1", "0e1", "123456789012345678901234567890",
        "true", "false", "null", "\"\"", "\"a\"", " [ ] ", "{}", "[[]]", "[{}]", "{\"a\":[]}", "{\"\":0}",
        "[1,2,3]", "[1 , 2]", "{\"a\":1,\"b\":2}", "{\"a\":1,\"a\":2}", "\t\n\r [\t\n\r 1\t\n\r ]\t\n\r ",
        "[null,true,false]", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\u0000\"", "\"\\uD83D\\uDD11\"",
        "\"\\ud800\"", "\"\\udc00\"", "\"\\ud800\\ud800\\udc00\"", "\"\\ud800a\"", "\"\\ud800\\n\"",
        "\"\xc3\xa9\"", "\"\xe2\x82\xac\"", "\"\xf0\x9f\x94\x91\"", "\"\xff\"", "\"\xc0\x80\"", "\"\x7f\"",
        "{\"a\":{\"b\":{\"c\":[{\"d\":null}]}}}", "[\"a\",\"b\"]", "{\"\\u0061\":1}", "[0,-0,0.0]", "[1e1,1E1]",
        "{\"]\":\"}\",\"[\":\"{\"}", "[\"\\u2028\"]"
    };
    size_t i;
    for (i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (same(texts[i], strlen(texts[i])) != TN_JS_END) {
            printf("refused: %s\n", texts[i]);
            CHECK(false);
        }
    }
}

static void refuses(void)
{
    static const char *const texts[] = {
        "[1,]", "[,1]", "[,]", "[1,,2]", "{\"a\":1,}", "{,}", "{\"a\"}", "{\"a\":}", "{\"a\",1}", "{a:1}", "{1:1}",
        "{'a':1}", "[1 2]", "{\"a\":1 \"b\":2}", "]", "}", "[}", "{]", "[1}", "{\"a\":1]", "[]]", "{}}", "1 2",
        "[] []", "nul1", "nulll", "tru ", "truE", "True", "NaN", "Infinity", "-Infinity", "+1", ".5", "1.", "-", "01",
        "-01", "00", "1.e1", "1e", "1e+", "1e1.5", "--1", "0x10", "1_0", "1a", "\"\\x\"", "\"\\u12g4\"", "\"\\u123\"",
        "\"\\\"", "\"a\nb\"", "\"a\tb\"", "\"\x1f\"", "'a'", "[\"a\"\"b\"]", "//", "[1/**/]", "\xef\xbb\xbf[]", "[1]x",
        "{\"a\":1,,\"b\":2}", "{\"a\"::1}", "{\"a\" \"b\"}", "[true false]", "[nullnull]", "\"\\ud800\\u12\"", "\x0c[]",
        "\"\\U0041\"", "{\"a\":\"b\"", "[", "{", "[[]", "\"abc", "{\"a\":", "tr", "[1,2"
    };
    size_t i;
    for (i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (same(texts[i], strlen(texts[i])) == TN_JS_END) {
            printf("accepted: %s\n", texts[i]);
            CHECK(false);
        }
    }
    CHECK(same("", 0) == TN_JS_MORE);
    CHECK(same("[1\0]", 4) == TN_JS_ERROR);
}

static void list_is(const char *text, const char *want)
{
    same(text, strlen(text));
    if (strcmp(events, want) != 0) printf("got  %s\nwant %s\n", events, want);
    CHECK(strcmp(events, want) == 0);
}

static void lists(void)
{
    list_is("{\"a\":1,\"b\":[2,{\"c\":\"x\"}],\"d\":{}}",
            "{/0 a:#1/1 b:[/1 #2/2 {/2 c:sx/3 }/2 ]/1 d:{/1 }/1 }/0 ./0 ");
    list_is("{\"skip\":{\"x\":[1,{\"y\":\"]}\"}]},\"b\":true}", "{/0 skip:{/1 b:t/1 }/0 ./0 ");
    list_is("{\"skip\":1,\"b\":{\"skip\":[[]],\"z\":null}}", "{/0 skip:#1/1 b:{/1 skip:[/2 z:n/2 }/1 }/0 ./0 ");
    list_is("[{\"k\":1},2]", "[/0 {/1 k:#1/2 }/1 #2/1 ]/0 ./0 ");
    list_is("\"\\u0041\\u00e9\\u20ac\\ud83d\\udd11\"", "sA\xc3\xa9\xe2\x82\xac\xf0\x9f\x94\x91/0 ./0 ");
    /* what Go's decoder makes of it, checked with go1.26 encoding/json rules */
    list_is("\"\\ud83dx\\udd11\"", "s\xef\xbf\xbdx\xef\xbf\xbd/0 ./0 ");
    list_is("\"\\ud83d\\ud83d\\udd11\"", "s\xef\xbf\xbd\xf0\x9f\x94\x91/0 ./0 ");
    list_is("\"\xe2\x82x\xf4\x90\x80\x80\"",
            "s\xef\xbf\xbd\xef\xbf\xbdx\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd/0 ./0 ");
    list_is("\"\xed\xa0\x80\"", "s\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd/0 ./0 ");
    list_is("\"\xe2\xc3\xa9\\ud800\xc3\"", "s\xef\xbf\xbd\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd/0 ./0 ");
    list_is("\"\\ud800\xc3\xa9\"", "s\xef\xbf\xbd\xc3\xa9/0 ./0 ");
}

/* Lengths around each limit; longer is cut, counted, and not an error. */
static void limits(void)
{
    static char text[70000];
    unsigned    i, k;
    for (i = TN_JS_SPACE - 2; i <= TN_JS_SPACE + 2; i++) {
        tn_js js;
        text[0] = '"';
        memset(text + 1, 'x', i);
        strcpy(text + 1 + i, "\"");
        CHECK(same(text, strlen(text)) == TN_JS_END);
        CHECK((strchr(events, '~') != NULL) == (i > TN_JS_SPACE));
        tn_js_init(&js);
        tn_js_feed(&js, text, strlen(text));
        CHECK(tn_js_next(&js) == TN_JS_STRING);
        CHECK(js.cut_count == (i > TN_JS_SPACE ? 1u : 0u) && js.text_cut == (i > TN_JS_SPACE));
    }
    for (i = TN_JS_MAX_KEY - 1; i <= TN_JS_MAX_KEY + 1; i++) {
        strcpy(text, "{\"");
        memset(text + 2, 'k', i);
        strcpy(text + 2 + i, "\":\"v\"}");
        CHECK(same(text, strlen(text)) == TN_JS_END);
        CHECK((strchr(events, '~') != NULL) == (i > TN_JS_MAX_KEY));
    }
    for (i = TN_JS_MAX_DEPTH - 1; i <= TN_JS_MAX_DEPTH + 1; i++) {
        for (k = 0; k < 2; k++) {
            size_t at = 0, n;
            for (n = 0; n < i; n++) at += (size_t)sprintf(text + at, k == 0 ? "[" : "{\"a\":");
            if (k == 1) at += (size_t)sprintf(text + at, "0");
            for (n = 0; n < i; n++) at += (size_t)sprintf(text + at, k == 0 ? "]" : "}");
            CHECK((same(text, at) == TN_JS_END) == (i <= TN_JS_MAX_DEPTH));
        }
    }
    strcpy(text, "{\"skip\":");                /* the limit holds for what is skipped, too */
    memset(text + 8, '[', 60000);
    CHECK(same(text, 60008) == TN_JS_ERROR);
    memset(text, ' ', 60000);
    strcpy(text + 60000, "1");
    CHECK(same(text, 60001) == TN_JS_END);
    memset(text, '9', 60000);
    CHECK(same(text, 60000) == TN_JS_END);
    text[0] = '"';
    memset(text + 1, 'y', 60000);
    CHECK(same(text, 60001) == TN_JS_MORE);
    {
        tn_js js;
        tn_js_init(&js);
        memset(text, '[', 200);
        tn_js_feed(&js, text, 200);
        while (tn_js_next(&js) > TN_JS_MORE) { }
        CHECK(js.error == TN_JS_TOO_DEEP && js.at == TN_JS_MAX_DEPTH + 1);
    }
}

/* Go's decoder: U+FFFD for each byte that begins no whole, shortest, allowed character. */
static size_t go_utf8(char *dst, const uint8_t *b, size_t len)
{
    size_t at = 0, n = 0, i;
    while (at < len) {
        size_t   want = b[at] < 0x80 ? 1u : b[at] >= 0xc2 && b[at] < 0xe0 ? 2u : (b[at] & 0xf0) == 0xe0 ? 3u :
                        b[at] >= 0xf0 && b[at] < 0xf5 ? 4u : 0u;
        uint32_t v    = want == 1 ? b[at] : b[at] & (0x7fu >> want);
        bool     ok   = want != 0 && want <= len - at;
        for (i = 1; ok && i < want; i++) {
            ok = (b[at + i] & 0xc0) == 0x80;
            v  = v << 6 | (b[at + i] & 0x3fu);
        }
        if (want == 3) ok = ok && v >= 0x800 && (v < 0xd800 || v > 0xdfff);
        if (want == 4) ok = ok && v >= 0x10000 && v <= 0x10ffff;
        memcpy(dst + n, ok ? (const char *)b + at : "\xef\xbf\xbd", ok ? want : 3);
        n += ok ? want : 3;
        at += ok ? want : 1;
    }
    return n;
}

/* Characters good and bad, in every mixture, are what Go makes of them. */
static void characters(void)
{
    static const uint8_t edge[] = {
        'a', 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed, 0xee,
        0xef, 0xf0, 0xf1, 0xf3, 0xf4, 0xf5, 0xf7, 0xf8, 0xfb, 0xfc, 0xfe, 0xff
    };
    unsigned i;
    for (i = 0; i < 60000; i++) {
        uint8_t     bytes[16];
        char        want[64], text[20];
        tn_js       js;
        size_t      len = 1 + tn_test_random() % 15, n, k;
        for (k = 0; k < len; k++)
            bytes[k] = i % 2 == 0 ? edge[tn_test_random() % sizeof edge] : (uint8_t)(tn_test_random() | 0x80);
        n       = go_utf8(want, bytes, len);
        text[0] = text[len + 1] = '"';
        memcpy(text + 1, bytes, len);
        tn_js_init(&js);
        tn_js_feed(&js, text, 1 + len / 2);
        CHECK(tn_js_next(&js) == TN_JS_MORE);
        tn_js_feed(&js, text + 1 + len / 2, len + 2 - 1 - len / 2);
        CHECK(tn_js_next(&js) == TN_JS_STRING && js.text_len == n && memcmp(js.text, want, n) == 0);
    }
    for (i = 270; i < 300; i++) {           /* escapes and characters at the end of the space */
        char text[400];
        text[0] = '"';
        memset(text + 1, 'x', i);
        strcpy(text + 1 + i, "\\ud800\\ud83d\\udd11\xff\xe2\x82\xac\"");
        CHECK(same(text, strlen(text)) == TN_JS_END);
    }
}

static void numbers(void)
{
    static const struct { const char *text; bool ok; int64_t v; } rows[] = {
        { "0", true, 0 }, { "-0", true, 0 }, { "9007199254740993", true, 9007199254740993 },
        { "9223372036854775807", true, INT64_MAX }, { "9223372036854775808", false, 0 },
        { "-9223372036854775808", true, INT64_MIN }, { "-9223372036854775809", false, 0 },
        { "1.0", false, 0 }, { "1e3", false, 0 }, { "-1", true, -1 },
        { "99999999999999999999999999", false, 0 }
    };
    size_t i;
    for (i = 0; i < sizeof rows / sizeof *rows; i++) {
        tn_js   js;
        int64_t v = 0;
        char    text[64];
        snprintf(text, sizeof text, "[%s]", rows[i].text);
        tn_js_init(&js);
        tn_js_feed(&js, text, strlen(text));
        CHECK(tn_js_next(&js) == TN_JS_ARRAY);
        CHECK(tn_js_next(&js) == TN_JS_NUMBER);
        CHECK(tn_js_int(&js, &v) == rows[i].ok);
        if (rows[i].ok) CHECK(v == rows[i].v);
        snprintf(text, sizeof text, "{\"%s\":true}", rows[i].text);
        tn_js_init(&js);
        tn_js_feed(&js, text, strlen(text));
        CHECK(tn_js_next(&js) == TN_JS_OBJECT);
        CHECK(tn_js_next(&js) == TN_JS_TRUE);
        CHECK(tn_js_key_int(&js, &v) == rows[i].ok);
        if (rows[i].ok) CHECK(v == rows[i].v);
    }
    {
        int64_t v;
        CHECK(!tn_js_int_text("", 0, &v) && !tn_js_int_text("-", 1, &v) && !tn_js_int_text("+1", 2, &v));
    }
}

static void vector_file(const char *name, unsigned want)
{
    char    *text = tn_test_file(name), *at = text;
    unsigned count = 0;
    while (at != NULL && *at != '\0') {
        char *end = strchr(at, '\n'), *colon = strchr(at, ':');
        if (end != NULL) *end = '\0';
        if (*at != '#' && colon != NULL && colon[1] == ' ' && colon[2] == '{') {
            CHECK(same(colon + 2, strlen(colon + 2)) == TN_JS_END);
            count++;
        }
        at = end == NULL ? NULL : end + 1;
    }
    CHECK(count >= want);
    free(text);
}

static void vectors(void)
{
    vector_file("control-maps.txt", 20);
    vector_file("map-deltas-go.txt", 15);
}

static void write_all(tn_wr *wr)
{
    static const uint8_t key[4] = { 0xde, 0xad, 0xbe, 0xef };
    tn_js_w w;
    tn_js_w_init(&w, wr);
    tn_js_w_object(&w);
    tn_js_w_member(&w, "a", "q\"b\\\n\x01\xc3\xa9");
    tn_js_w_key(&w, "b");
    tn_js_w_array(&w);
    tn_js_w_uint(&w, UINT64_MAX);
    tn_js_w_int(&w, INT64_MIN);
    tn_js_w_object(&w);
    tn_js_w_object_end(&w);
    tn_js_w_array(&w);
    tn_js_w_array_end(&w);
    tn_js_w_null(&w);
    tn_js_w_array_end(&w);
    tn_js_w_member_bool(&w, "c", true);
    tn_js_w_member_uint(&w, "d", 0);
    tn_js_w_member_hex(&w, "k", "nodekey:", key, 4);
    tn_js_w_key(&w, "e");
    tn_js_w_base64(&w, key, 4);
    tn_js_w_object_end(&w);
}

static void writer(void)
{
    static const char want[] =
        "{\"a\":\"q\\\"b\\\\\\u000a\\u0001\xc3\xa9\",\"b\":[18446744073709551615,-9223372036854775808,{},[],null],"
        "\"c\":true,\"d\":0,\"k\":\"nodekey:deadbeef\",\"e\":\"3q2+7w==\"}";
    uint8_t out[400], joined[400];
    tn_wr   wr;
    size_t  step, at, n;
    tn_wr_over(&wr, out, sizeof out);
    write_all(&wr);
    CHECK(tn_wr_ok(&wr) && tn_wr_len(&wr) == strlen(want));
    CHECK_BYTES(out, want, strlen(want));
    CHECK(same(want, strlen(want)) == TN_JS_END);
    for (step = 1; step < 40; step++) {         /* in windows of every size */
        for (at = 0; at < strlen(want); at += n) {
            tn_wr_window(&wr, joined + at, step, at);
            write_all(&wr);
            n = tn_wr_len(&wr);
            CHECK(n != 0);
            if (n == 0) return;
        }
        CHECK(at == strlen(want));
        CHECK_BYTES(joined, want, strlen(want));
    }
}

/* Random bytes of the alphabet of JSON: any cut, same events. */
static void random_texts(void)
{
    static const char alphabet[] = "{}[]:,\"\\u0dD8c3 truefalsn-1.eE\xc3\xa9\xf0\xff";
    char              text[40];
    int               i;
    for (i = 0; i < 60000; i++) {
        size_t n = (size_t)(tn_test_random() % sizeof text), k;
        for (k = 0; k < n; k++) text[k] = alphabet[tn_test_random() % (sizeof alphabet - 1)];
        same(text, n);
    }
}

int main(void)
{
    TEST(accepts);
    TEST(refuses);
    TEST(lists);
    TEST(limits);
    TEST(characters);
    TEST(numbers);
    TEST(vectors);
    TEST(writer);
    TEST(random_texts);
    printf("sizeof tn_js %u\n", (unsigned)sizeof(tn_js));
    return tn_test_end();
}
