#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

static const char rfc5769_request[] =
    "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74"
    "002400046e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56"
    "781ef2b5b2d3f249c1b571a280280004e57a3bcf";
static const char rfc5769_ip4[] =
    "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220"
    "002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";
static const char rfc5769_ip6[] =
    "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220"
    "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004c8fb0b4c";

static bool is_addr(const tailnet_addr *got, const char *text)
{
    tailnet_addr want;
    return tn_addr_parse(&want, text, strlen(text)) && tn_addr_same(got, &want);
}

/* One message, whole, with every truncation, and with bytes behind it. */
static void check_answer(const char *hex, const char *want)
{
    uint8_t      msg[256], id[12], other[12], got_id[12];
    size_t       len = tn_test_hex(msg, sizeof msg, hex), i;
    tailnet_addr out;

    memcpy(id, msg + 8, 12);
    memcpy(other, id, 12);
    other[11] ^= 1;
    CHECK(tn_stun_parse(msg, len, id, &out) == TAILNET_OK && is_addr(&out, want));
    CHECK(tn_stun_id(msg, len, got_id) && memcmp(got_id, id, 12) == 0);
    CHECK(tn_stun_parse(msg, len, other, &out) == TAILNET_ERR_FORGED);
    for (i = 0; i < len; i++) {
        uint8_t *part = (uint8_t *)malloc(i + 1);
        memcpy(part, msg, i);
        CHECK(tn_stun_parse(part, i, id, &out) == TAILNET_ERR_MALFORMED);
        free(part);
    }
    memset(msg + len, 0xff, 16);
    CHECK(tn_stun_parse(msg, len + 16, id, &out) == TAILNET_OK && is_addr(&out, want));
}

static void answers(void)
{
    check_answer(rfc5769_ip4, "192.0.2.1:32853");
    check_answer(rfc5769_ip6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853");
    check_answer("0101000c2112a4420102030405060708090a0b0c00200008000183bbea12d545", "203.0.113.7:41641");
    check_answer("010100182112a4420102030405060708090a0b0c00200014000283bb0113a9fa0102030405060708090a0b0d",
                 "[2001:db8::1]:41641");
    check_answer("0101000c2112a4420102030405060708090a0b0c80200008000183bbea12d545", "203.0.113.7:41641");
    check_answer("0101000c2112a4420102030405060708090a0b0c000100080001a2a9cb007107", "203.0.113.7:41641");
    /* IPv4 inside IPv6, not XORed */
    check_answer("010100182112a4420102030405060708090a0b0c000100140002a2a900000000000000000000ffffcb007107",
                 "203.0.113.7:41641");
}

/* The fingerprints of RFC 5769 prove the CRC. */
static void fingerprints(void)
{
    static const char *const text[3] = { rfc5769_request, rfc5769_ip4, rfc5769_ip6 };
    int i;
    for (i = 0; i < 3; i++) {
        uint8_t msg[128];
        size_t  len = tn_test_hex(msg, sizeof msg, text[i]);
        CHECK((tn_stun_crc(msg, len - 8) ^ TN_STUN_CRC_XOR) == tn_get_u32be(msg + len - 4));
    }
}

static tailnet_result parse_hex(const char *hex, tailnet_addr *out)
{
    static const uint8_t id[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
    uint8_t msg[128];
    size_t  len = tn_test_hex(msg, sizeof msg, hex);
    return tn_stun_parse(msg, len, id, out);
}

#define HEAD(len) "0101" len "2112a4420102030405060708090a0b0c"

static void bad_answers(void)
{
    tailnet_addr out;
    CHECK(parse_hex(HEAD("000c") "0020000a000183bbea12d545", &out) == TAILNET_ERR_MALFORMED);
    CHECK(parse_hex(HEAD("000c") "00200008000383bbea12d545", &out) == TAILNET_ERR_MALFORMED);
    CHECK(parse_hex(HEAD("000c") "802200087461696c6e6f6465", &out) == TAILNET_ERR_MALFORMED);
    CHECK(parse_hex(HEAD("0010") "00200008000183bbea12d545", &out) == TAILNET_ERR_MALFORMED);
    CHECK(parse_hex(HEAD("0000"), &out) == TAILNET_ERR_MALFORMED);
    CHECK(parse_hex(HEAD("0008") "0020000400018300", &out) == TAILNET_ERR_MALFORMED);
    CHECK(parse_hex("0111000c2112a4420102030405060708090a0b0c00200008000183bbea12d545", &out) ==
          TAILNET_ERR_MALFORMED);
    CHECK(parse_hex("0101000c2112a4430102030405060708090a0b0c00200008000183bbea12d545", &out) ==
          TAILNET_ERR_MALFORMED);
    /* two addresses: the last one; a plain one after it does not count */
    CHECK(parse_hex(HEAD("0024") "00200008000183bbea12d546" "00200008000183bbea12d545"
                    "000100080001a2a9cb007199", &out) == TAILNET_OK);
    CHECK(is_addr(&out, "203.0.113.7:41641"));
    CHECK(parse_hex(HEAD("0018") "000100080001a2a9cb007199" "00200008000183bbea12d545", &out) ==
          TAILNET_OK);
    CHECK(is_addr(&out, "203.0.113.7:41641"));
}

static void requests(void)
{
    uint8_t msg[TN_STUN_REQUEST_LEN + 8], want[64], id[12], got[12];
    tn_wr   w;
    size_t  i;
    int     bit;

    tn_test_hex(id, 12, "0102030405060708090a0b0c");
    CHECK(tn_test_hex(want, sizeof want, "000100142112a4420102030405060708090a0b0c802200087461696c"
                                         "6e6f646580280004b32c370f") == 40);
    tn_wr_over(&w, msg, sizeof msg);
    tn_stun_wr_request(&w, id);
    CHECK(tn_wr_len(&w) == 40);
    CHECK_BYTES(msg, want, 40);
    CHECK(tn_stun_parse_request(msg, 40, got) && memcmp(got, id, 12) == 0);
    memset(msg + 40, 0, 8);
    CHECK(tn_stun_parse_request(msg, 48, got));
    for (i = 0; i < 40; i++) {
        CHECK(!tn_stun_parse_request(msg, i, got));
        for (bit = 0; bit < 8; bit++) {
            msg[i] ^= (uint8_t)(1 << bit);
            CHECK(!tn_stun_parse_request(msg, 40, got));
            msg[i] ^= (uint8_t)(1 << bit);
        }
    }
}

/* What was recorded from real servers. */
static void recorded(void)
{
    char        *text = tn_test_file("stun.txt");
    uint8_t      msg[64], answer[64], id[12];
    tailnet_addr out;
    size_t       len;

    CHECK(tn_stun_parse_request(msg, tn_test_value(text, "request", msg, sizeof msg), id));
    len = tn_test_value(text, "response", answer, sizeof answer);
    CHECK(tn_stun_parse(answer, len, id, &out) == TAILNET_OK && is_addr(&out, "10.10.0.254:41777"));
    CHECK(tn_stun_parse_request(msg, tn_test_value(text, "request6", msg, sizeof msg), id));
    len = tn_test_value(text, "response6", answer, sizeof answer);
    CHECK(tn_stun_parse(answer, len, id, &out) == TAILNET_OK && is_addr(&out, "[::1]:53129"));
    free(text);
}

static void round_trips(void)
{
    int i;
    for (i = 0; i < 2000; i++) {
        uint8_t      msg[64], id[12];
        tailnet_addr in, out;
        tn_wr        w;
        unsigned     k;
        memset(&in, 0, sizeof in);
        for (k = 0; k < 12; k++) id[k] = (uint8_t)tn_test_random();
        in.family = i % 2 == 0 ? 4 : 6;
        in.port   = (uint16_t)tn_test_random();
        for (k = 0; k < tn_ip_len(in.family); k++) in.ip[k] = (uint8_t)tn_test_random();
        tn_wr_over(&w, msg, sizeof msg);
        tn_stun_wr_response(&w, id, &in);
        CHECK(tn_wr_len(&w) == (i % 2 == 0 ? 32u : 44u));
        CHECK(tn_stun_parse(msg, tn_wr_len(&w), id, &out) == TAILNET_OK && tn_addr_same(&in, &out));
    }
}

int main(void)
{
    TEST(answers);
    TEST(fingerprints);
    TEST(bad_answers);
    TEST(requests);
    TEST(recorded);
    TEST(round_trips);
    return tn_test_end();
}
