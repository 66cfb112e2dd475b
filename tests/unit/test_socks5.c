/* The SOCKS5 reader of examples/lwip: whole messages, every cut of them, and hostile ones. */
#include "../../examples/lwip/socks5.h"
#include "tn_test.h"

static void hello_offers_methods(void)
{
    static const uint8_t two[] = {5, 2, 0, 2}, none[] = {5, 0}, other[] = {5, 1, 1};
    uint8_t              method;
    CHECK(socks5_read_hello(two, 4, false, &method) == 4 && method == SOCKS5_OPEN);
    CHECK(socks5_read_hello(two, 4, true, &method) == 4 && method == SOCKS5_PASSWORD);
    CHECK(socks5_read_hello(two, 3, true, &method) == SOCKS5_MORE);
    CHECK(socks5_read_hello(two, 1, true, &method) == SOCKS5_MORE);
    CHECK(socks5_read_hello(two, 0, true, &method) == SOCKS5_MORE);
    CHECK(socks5_read_hello(none, 2, false, &method) == 2 && method == SOCKS5_NO_METHOD);
    CHECK(socks5_read_hello(other, 3, false, &method) == 3 && method == SOCKS5_NO_METHOD);
    CHECK(socks5_read_hello((const uint8_t *)"GET / HTTP", 10, false, &method) == SOCKS5_BAD);
    CHECK(socks5_read_hello((const uint8_t *)"\4\1\0\120", 4, false, &method) == SOCKS5_BAD);
}

static void login_has_two_texts(void)
{
    static const uint8_t good[] = {1, 2, 'm', 'e', 3, 'p', 'w', '!'};
    static const uint8_t zero[] = {1, 2, 'm', 0, 1, 'p'}, empty[] = {1, 0, 0};
    socks5_login         login;
    size_t               i;
    CHECK(socks5_read_login(good, sizeof good, &login) == sizeof good);
    CHECK(strcmp(login.user, "me") == 0 && strcmp(login.password, "pw!") == 0);
    for (i = 0; i < sizeof good; i++) CHECK(socks5_read_login(good, i, &login) == SOCKS5_MORE);
    CHECK(socks5_read_login(zero, sizeof zero, &login) == SOCKS5_BAD);
    CHECK(socks5_read_login(empty, 3, &login) == 3 && login.user[0] == '\0');
    CHECK(socks5_read_login((const uint8_t *)"\5\1\0", 3, &login) == SOCKS5_BAD);
}

static void requests_of_all_kinds(void)
{
    static const uint8_t v4[]   = {5, 1, 0, 1, 100, 64, 0, 7, 0x1f, 0x90};
    static const uint8_t name[] = {5, 3, 0, 3, 4, 'h', 'o', 's', 't', 0, 80};
    uint8_t              v6[22] = {5, 1, 0, 4, 0xfd, 0x7a};
    socks5_target        to;
    uint8_t              command, code;
    size_t               i;
    v6[21] = 22;
    CHECK(socks5_read_request(v4, sizeof v4, &command, &to, &code) == sizeof v4);
    CHECK(command == SOCKS5_CONNECT && to.family == 4 && to.ip[3] == 7 && to.port == 8080);
    CHECK(socks5_read_request(v6, sizeof v6, &command, &to, &code) == sizeof v6);
    CHECK(to.family == 6 && to.ip[1] == 0x7a && to.port == 22);
    CHECK(socks5_read_request(name, sizeof name, &command, &to, &code) == sizeof name);
    CHECK(command == SOCKS5_UDP && to.family == 0 && strcmp(to.name, "host") == 0);
    CHECK(to.port == 80);
    for (i = 0; i < sizeof v4; i++)
        CHECK(socks5_read_request(v4, i, &command, &to, &code) == SOCKS5_MORE);
    for (i = 0; i < sizeof v6; i++)
        CHECK(socks5_read_request(v6, i, &command, &to, &code) == SOCKS5_MORE);
    for (i = 0; i < sizeof name; i++)
        CHECK(socks5_read_request(name, i, &command, &to, &code) == SOCKS5_MORE);
}

static void bad_requests_get_a_code(void)
{
    static const uint8_t kind[] = {5, 1, 0, 2, 1}, none[] = {5, 1, 0, 3, 0, 0, 80};
    static const uint8_t zero[] = {5, 1, 0, 3, 2, 'a', 0, 0, 80}, old[] = {4, 1};
    socks5_target        to;
    uint8_t              command, code;
    CHECK(socks5_read_request(kind, 4, &command, &to, &code) == SOCKS5_BAD);
    CHECK(code == SOCKS5_BAD_ADDRESS);
    CHECK(socks5_read_request(none, sizeof none, &command, &to, &code) == SOCKS5_BAD);
    CHECK(code == SOCKS5_FAILED);
    CHECK(socks5_read_request(zero, sizeof zero, &command, &to, &code) == SOCKS5_BAD);
    CHECK(socks5_read_request(old, sizeof old, &command, &to, &code) == SOCKS5_BAD && code == 0);
}

static void the_longest_of_each(void)
{
    uint8_t       login[SOCKS5_LONGEST], request[262];
    socks5_login  words;
    socks5_target to;
    uint8_t       command, code;
    memset(login, 'x', sizeof login);
    login[0] = 1;
    login[1] = login[257] = 255;
    CHECK(socks5_read_login(login, 513, &words) == 513 && strlen(words.password) == 255);
    CHECK(socks5_read_login(login, 512, &words) == SOCKS5_MORE);
    memset(request, 'x', sizeof request);
    memcpy(request, "\5\1\0\3\377", 5);
    CHECK(socks5_read_request(request, 262, &command, &to, &code) == 262);
    CHECK(strlen(to.name) == 255);
}

static void datagrams(void)
{
    static const uint8_t whole[] = {0, 0, 0, 1, 100, 64, 0, 1, 0, 7, 'h', 'i'};
    static const uint8_t piece[] = {0, 0, 1, 1, 100, 64, 0, 1, 0, 7, 'h', 'i'};
    socks5_target        to;
    size_t               i;
    CHECK(socks5_read_datagram(whole, sizeof whole, &to) == 10 && to.port == 7);
    CHECK(socks5_read_datagram(piece, sizeof piece, &to) == SOCKS5_BAD);
    for (i = 0; i < 10; i++) CHECK(socks5_read_datagram(whole, i, &to) == SOCKS5_BAD);
}

static void answers_read_back(void)
{
    static const uint8_t ip[16] = {0xfd, 0x7a, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14};
    uint8_t              out[SOCKS5_HEAD];
    socks5_target        to;
    CHECK(socks5_write(out, 5, SOCKS5_REFUSED, 0, NULL, 0) == 10);
    CHECK_BYTES(out, "\5\5\0\1\0\0\0\0\0\0", 10);
    CHECK(socks5_write(out, 0, 0, 6, ip, 513) == SOCKS5_HEAD);
    CHECK(socks5_read_datagram(out, SOCKS5_HEAD, &to) == SOCKS5_HEAD);
    CHECK(to.family == 6 && to.port == 513);
    CHECK_BYTES(to.ip, ip, 16);
}

/* Random bytes in memory of exactly their size: the sanitizers see a byte too far. */
static void random_bytes_are_harmless(void)
{
    unsigned round;
    for (round = 0; round < 20000; round++) {
        size_t        size = (size_t)(tn_test_random() % 40), i;
        uint8_t      *at   = (uint8_t *)malloc(size + (size == 0));
        socks5_target to;
        socks5_login  login;
        uint8_t       a, b;
        int           n;
        if (at == NULL) return;
        for (i = 0; i < size; i++) at[i] = (uint8_t)(tn_test_random() % 7);
        n = socks5_read_hello(at, size, true, &a);
        CHECK(n <= (int)size);
        n = socks5_read_login(at, size, &login);
        CHECK(n <= (int)size);
        n = socks5_read_request(at, size, &a, &to, &b);
        CHECK(n <= (int)size);
        n = socks5_read_datagram(at, size, &to);
        CHECK(n <= (int)size);
        free(at);
    }
}

int main(void)
{
    TEST(hello_offers_methods);
    TEST(login_has_two_texts);
    TEST(requests_of_all_kinds);
    TEST(bad_requests_get_a_code);
    TEST(the_longest_of_each);
    TEST(datagrams);
    TEST(answers_read_back);
    TEST(random_bytes_are_harmless);
    return tn_test_end();
}
