/* The page of examples/http.c: what others say must not become part of it. */
#define TAILNET_IMPLEMENTATION
#include "../../examples/lwip/status_page.h"
#include "tn_test.h"

static page_text text;

/* What the calls since the last time have put. */
static const char *said(void)
{
    page_bytes(&text, "", 1);
    text.len = 0;
    return text.at != NULL ? text.at : "";
}

static void names_are_only_text(void)
{
    page_safe(&text, "<script>alert('x')</script>");
    CHECK(strcmp(said(), "&#60;script&#62;alert(&#39;x&#39;)&#60;/script&#62;") == 0);
    page_safe(&text, "\" onload=`a` &amp;");
    CHECK(strcmp(said(), "&#34; onload=&#96;a&#96; &#38;amp;") == 0);
    page_safe(&text, "a\nb\x7f\xe2\x80\xae\x01");
    CHECK(strcmp(said(), "a?b?????") == 0);
}

static void a_hostile_peer_stays_in_its_row(void)
{
    tailnet_peer p;
    const char  *row;
    memset(&p, 0, sizeof p);
    p.name = "\"></td></tr></table><img src=x onerror=alert(1)>";
    p.id   = 7;
    page_peer(&text, &p);
    row = said();
    CHECK(strstr(row, "<img") == NULL && strstr(row, "</table>") == NULL);
    CHECK(strstr(row, "\"></td>") == NULL);
    CHECK(strstr(row, "id=\"p7\"") != NULL && strstr(row, "offline") != NULL);
}

static void addresses(void)
{
    static const uint8_t six[][16] = {
        { 0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3 },
        { 0 }, { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 }, { 0xfe, 0x80 },
        { 0, 1, 0, 0, 0, 2, 0, 3, 0, 0, 0, 0, 0, 4, 0, 5 },
        { 0, 1, 0, 2, 0, 3, 0, 4, 0, 0, 0, 5, 0, 6, 0, 7 }
    };
    static const char *const want[] = { "fd7a:115c:a1e0::3", "::", "::1", "fe80::",
                                        "1:0:2:3::4:5", "1:2:3:4:0:5:6:7" };
    tailnet_addr a;
    size_t       i;
    memset(&a, 0, sizeof a);
    for (i = 0; i < 6; i++) {
        a.family = 6;
        memcpy(a.ip, six[i], 16);
        page_addr(&text, &a);
        CHECK(strcmp(said(), want[i]) == 0);
    }
    a.port = 41641;
    page_endpoint(&text, &a);
    CHECK(strcmp(said(), "[1:2:3:4:0:5:6:7]:41641") == 0);
    a.family = 4;
    a.ip[0]  = 100;
    page_endpoint(&text, &a);
    CHECK(strcmp(said(), "100.1.0.2:41641") == 0);
}

static void amounts(void)
{
    static const uint64_t    bytes[] = { 0, 999, 1000, 99999, 100000, 999949, 1000000, 26123456,
                                         UINT64_MAX };
    static const char *const want[]  = { "0 B", "999 B", "1.0 KB", "99.9 KB", "100 KB", "999 KB",
                                         "1.0 MB", "26.1 MB", "18.4 EB" };
    size_t i;
    for (i = 0; i < 9; i++) {
        page_amount(&text, bytes[i]);
        CHECK(strcmp(said(), want[i]) == 0);
        if (!tn_test_ok) printf("%s\n", want[i]);
    }
    page_age(&text, 59);
    CHECK(strcmp(said(), "59 s ago") == 0);
    page_age(&text, UINT32_MAX);
    CHECK(strcmp(said(), "none") == 0);
    page_date(&text, 1795564800000u);
    CHECK(strcmp(said(), "2026-11-25") == 0);
}

int main(void)
{
    TEST(names_are_only_text);
    TEST(a_hostile_peer_stays_in_its_row);
    TEST(addresses);
    TEST(amounts);
    free(text.at);
    return tn_test_end();
}
