/* The primitives against the vectors of their documents, of NaCl, and of
 * Project Wycheproof. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"
#include "../vectors/wycheproof_x25519.h"
#include "../vectors/wycheproof_chacha20_poly1305.h"
#include "../vectors/wycheproof_xchacha20_poly1305.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const char ladies[] =
    "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    "sunscreen would be it.";

static bool is_hex(const uint8_t *got, const char *hex)
{
    uint8_t want[2048];
    size_t  len = tn_test_hex(want, sizeof want, hex);
    return len == strlen(hex) / 2 && memcmp(got, want, len) == 0;
}

static void upto(uint8_t *dst, size_t len)      /* 00 01 02 .. */
{
    size_t i;
    for (i = 0; i < len; i++) dst[i] = (uint8_t)(i & 0xffu);
}

/* ---- X25519 ---- */

static void x25519_rfc7748_section_5(void)
{
    uint8_t k[32], u[32], out[32];
    tn_test_hex(k, 32, "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4");
    tn_test_hex(u, 32, "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c");
    CHECK(tn_cr_x25519(out, k, u));
    CHECK(is_hex(out, "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"));
    tn_test_hex(k, 32, "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d");
    tn_test_hex(u, 32, "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493");
    CHECK(tn_cr_x25519(out, k, u));
    CHECK(is_hex(out, "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957"));
}

static void x25519_rfc7748_again_and_again(void)
{
    uint8_t k[32] = { 9 }, u[32] = { 9 }, was[32];
    int     i;
    for (i = 1; i <= 1000; i++) {
        memcpy(was, k, 32);
        CHECK(tn_cr_x25519(k, k, u));           /* out is the scalar: allowed */
        memcpy(u, was, 32);
        if (i == 1)
            CHECK(is_hex(k, "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"));
    }
    CHECK(is_hex(k, "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"));
}

static void x25519_rfc7748_section_6(void)
{
    uint8_t a[32], b[32], pub_a[32], pub_b[32], z[32];
    tn_test_hex(a, 32, "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
    tn_test_hex(b, 32, "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
    tn_cr_x25519_base(pub_a, a);
    tn_cr_x25519_base(pub_b, b);
    CHECK(is_hex(pub_a, "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"));
    CHECK(is_hex(pub_b, "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
    CHECK(tn_cr_x25519(z, a, pub_b));
    CHECK(is_hex(z, "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"));
    memcpy(z, pub_a, 32);
    CHECK(tn_cr_x25519(z, b, z));               /* out is the point: allowed */
    CHECK(is_hex(z, "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"));
    memset(a, 0xff, 32);
    tn_cr_clamp(a);
    CHECK(a[0] == 0xf8 && a[31] == 0x7f && a[1] == 0xff);
    memset(a, 0, 32);
    tn_cr_clamp(a);
    CHECK(a[0] == 0 && a[31] == 0x40);
}

static void x25519_wycheproof(void)
{
    uint8_t  k[32], u[32], out[32], want[32];
    size_t   i;
    unsigned zero = 0;
    for (i = 0; i < COUNT(wycheproof_x25519); i++) {
        bool ok;
        CHECK(tn_test_hex(k, 32, wycheproof_x25519[i].scalar) == 32);
        CHECK(tn_test_hex(u, 32, wycheproof_x25519[i].point) == 32);
        CHECK(tn_test_hex(want, 32, wycheproof_x25519[i].out) == 32);
        ok = tn_cr_x25519(out, k, u);
        if (tn_is_zero(want, 32)) zero++;
        CHECK(ok == !tn_is_zero(want, 32));
        CHECK_BYTES(out, want, 32);
    }
    CHECK(i == 518 && zero > 10);
}

/* ---- BLAKE2s and what is made of it ---- */

/* RFC 7693 appendix E: one hash over many, of all kinds of lengths. */
static void blake2s_rfc7693_self_test(void)
{
    static const size_t out_len[4] = { 16, 20, 28, 32 };
    static const size_t in_len[6]  = { 0, 3, 64, 65, 255, 1024 };
    uint8_t       in[1024], key[32], md[32];
    tn_cr_blake2s all;
    size_t        i, j, n;

    tn_cr_blake2s_init(&all, 32, NULL, 0);
    for (i = 0; i < 4; i++) {
        for (j = 0; j < 6; j++) {
            uint32_t a, b, t;
            unsigned with_key;
            for (with_key = 0; with_key < 2; with_key++) {
                uint8_t *dst  = with_key ? key : in;
                size_t   seed = with_key ? out_len[i] : in_len[j];
                a = 0xDEAD4BADu * (uint32_t)seed;
                b = 1;
                for (n = 0; n < seed; n++) {
                    t = a + b;
                    a = b;
                    b = t;
                    dst[n] = (uint8_t)(t >> 24);
                }
                tn_cr_mac(md, out_len[i], key, with_key ? out_len[i] : 0, in, in_len[j]);
                tn_cr_blake2s_update(&all, md, out_len[i]);
            }
        }
    }
    tn_cr_blake2s_final(&all, md);
    CHECK(is_hex(md, "6a411f08ce25adcdfb02aba641451cec53c598b24f4fc787fbdc88797f4c1dfe"));
    CHECK(tn_is_zero(&all, sizeof all));
}

static void blake2s_vectors(void)
{
    uint8_t in[256], out[32];
    upto(in, 256);
    tn_cr_hash(out, NULL, 0, NULL, 0);
    CHECK(is_hex(out, "69217a3079908094e11121d042354a7c1f55b6482ca1a51e1b250dfd1ed0eef9"));
    tn_cr_hash(out, "abc", 3, NULL, 0);         /* RFC 7693 appendix B */
    CHECK(is_hex(out, "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"));
    tn_cr_hash(out, "a", 1, "bc", 2);
    CHECK(is_hex(out, "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"));
    tn_cr_hash(out, in, 256, NULL, 0);
    CHECK(is_hex(out, "5fdeb59f681d975f52c8e69c5502e02a12a3afcc5836ba58f42784c439228781"));
    tn_cr_mac(out, 16, in, 32, "abc", 3);
    CHECK(is_hex(out, "61ba5f165c194692e09d12520cc4c74a"));
    tn_cr_mac(out, 16, in, 16, "abc", 3);
    CHECK(is_hex(out, "75296c2d2c0f51210b383f386bc8b1ff"));
}

/* Lengths around block boundaries, in every kind of pieces. */
static void blake2s_pieces(void)
{
    static const size_t lens[] = { 0, 1, 63, 64, 65, 127, 128, 129, 192, 300 };
    uint8_t in[300], key[32], whole[32], out[32];
    size_t  i, at, n, key_len, turn;
    upto(in, sizeof in);
    upto(key, sizeof key);
    for (i = 0; i < COUNT(lens); i++) {
        for (key_len = 0; key_len <= 32; key_len += 16) {
            tn_cr_mac(whole, 32, key, key_len, in, lens[i]);
            for (turn = 0; turn < 40; turn++) {
                tn_cr_blake2s b;
                tn_cr_blake2s_init(&b, 32, key, key_len);
                for (at = 0; at < lens[i]; at += n) {
                    n = turn == 0 ? 1 : (size_t)(tn_test_random() % 130);
                    if (n > lens[i] - at) n = lens[i] - at;
                    tn_cr_blake2s_update(&b, in + at, n);
                }
                tn_cr_blake2s_final(&b, out);
                CHECK_BYTES(out, whole, 32);
            }
        }
    }
}

static void hmac_vectors(void)
{
    uint8_t key[100], out[32], again[32];
    upto(key, 100);
    tn_cr_hmac(out, "key", 3, "The quick brown fox jumps over the lazy dog", 43);
    CHECK(is_hex(out, "f93215bb90d4af4c3061cd932fb169fb8bb8a91d0b4022baea1271e1323cd9a0"));
    tn_cr_hmac(out, key, 32, NULL, 0);
    CHECK(is_hex(out, "e2641d24dfa8dd89e8cb77f1cdc77d8c006e5bebdfc4d6a3a3a6f8d5b7586fb0"));
    tn_cr_hmac(out, key, 65, "x", 1);           /* a key longer than a block is hashed */
    tn_cr_hash(again, key, 65, NULL, 0);
    tn_cr_hmac(again, again, 32, "x", 1);
    CHECK_BYTES(out, again, 32);
}

/* KDF with a key of any length: tn_cr_kdf takes 32 bytes, and HMAC pads its
 * key with zeroes, so that a short text and zeroes behind are the same key. */
static void kdf_one(const char *key, const char *input, const char *t0, const char *t1,
                    const char *t2)
{
    uint8_t ck[32], a[32], b[32], c[32];
    memset(ck, 0, 32);
    memcpy(ck, key, strlen(key));
    tn_cr_kdf(a, b, c, ck, input, strlen(input));
    CHECK(is_hex(a, t0) && is_hex(b, t1) && is_hex(c, t2));
    memset(a, 0, 32);
    tn_cr_kdf(a, NULL, NULL, ck, input, strlen(input));
    CHECK(is_hex(a, t0));
    tn_cr_kdf(a, ck, NULL, ck, input, strlen(input));
    CHECK(is_hex(a, t0) && is_hex(ck, t1));
    memset(ck, 0, 32);
    memcpy(ck, key, strlen(key));
    tn_cr_kdf(ck, b, c, ck, input, strlen(input));
    CHECK(is_hex(ck, t0) && is_hex(b, t1) && is_hex(c, t2));
}

static void kdf_vectors(void)
{
    kdf_one("test-key", "test-input",
            "6f0e5ad38daba1bea8a0d213688736f19763239305e0f58aba697f9ffc41c633",
            "df1194df20802a4fe594cde27e92991c8cae66c366e8106aaa937a55fa371e8a",
            "fac6e2745a325f5dc5d11a5b165aad08b0ada28e7b4e666b7c077934a4d76c24");
    kdf_one("wireguard", "wireguard",
            "491d43bbfdaa8750aaf535e334ecbfe5129967cd64635101c566d4caefda96e8",
            "1e71a379baefd8a79aa4662212fcafe19a23e2b609a3db7d6bcba8f560e3d25f",
            "31e1ae48bddfbe5de38f295e5452b1909a1b4e38e183926af3780b0c1e1f0160");
    kdf_one("", "",
            "8387b46bf43eccfcf349552a095d8315c4055beb90208fb1be23b894bc2ed5d0",
            "58a0e5f6faefccf4807bff1f05fa8a9217945762040bcec2f4b4a62bdfe0e86e",
            "0ce6ea98ec548f8e281e93e32db65621c45eb18dc6f0a7ad94178610a2f7338e");
}

/* ---- AEAD ---- */

static void aead_empty(void)
{
    static const uint8_t nonce[12] = { 0 };
    uint8_t key[32], tag[16];
    upto(key, 32);
    tn_cr_aead_seal(key, nonce, NULL, 0, NULL, 0, tag);
    CHECK(is_hex(tag, "10324f800a160bd9a1794255be7ec29d"));
    CHECK(tn_cr_aead_open(key, nonce, NULL, 0, NULL, 0, tag));
    tag[15] ^= 0x80;
    CHECK(!tn_cr_aead_open(key, nonce, NULL, 0, NULL, 0, tag));
}

static void aead_rfc8439(void)                  /* section 2.8.2 */
{
    uint8_t key[32], nonce[12], ad[12], data[114], tag[16];
    size_t  i;
    upto(key, 32);
    for (i = 0; i < 32; i++) key[i] |= 0x80;
    tn_test_hex(nonce, 12, "070000004041424344454647");
    tn_test_hex(ad, 12, "50515253c0c1c2c3c4c5c6c7");
    memcpy(data, ladies, 114);
    tn_cr_aead_seal(key, nonce, ad, 12, data, 114, tag);
    CHECK(is_hex(data, "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
                       "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
                       "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
                       "3ff4def08e4b7a9de576d26586cec64b6116"));
    CHECK(is_hex(tag, "1ae10b594f09e26a7e902ecbd0600691"));
    CHECK(tn_cr_aead_open(key, nonce, ad, 12, data, 114, tag));
    CHECK_BYTES(data, ladies, 114);
}

static void hchacha20_vectors(void)             /* draft-irtf-cfrg-xchacha-03 2.2.1 */
{
    uint8_t key[32], in[16], out[32];
    upto(key, 32);
    tn_test_hex(in, 16, "000000090000004a0000000031415927");
    TAILNET_HCHACHA20(out, key, in);
    CHECK(is_hex(out, "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"));
}

static void xaead_draft(void)                   /* draft-irtf-cfrg-xchacha-03 A.3.1 */
{
    uint8_t key[32], nonce[24], ad[12], data[114], tag[16];
    size_t  i;
    upto(key, 32);
    for (i = 0; i < 32; i++) key[i] |= 0x80;
    for (i = 0; i < 24; i++) nonce[i] = (uint8_t)(0x40 + i);
    tn_test_hex(ad, 12, "50515253c0c1c2c3c4c5c6c7");
    memcpy(data, ladies, 114);
    tn_cr_xaead_seal(key, nonce, ad, 12, data, 114, tag);
    CHECK(is_hex(data, "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb"
                       "731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452"
                       "2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
                       "21f9664c97637da9768812f615c68b13b52e"));
    CHECK(is_hex(tag, "c0875924c1c7987947deafd8780acf49"));
    CHECK(tn_cr_xaead_open(key, nonce, ad, 12, data, 114, tag));
    CHECK_BYTES(data, ladies, 114);
}

/* One vector, both directions. A bad one must not open, and leaves zeroes. */
static void aead_one(bool extended, int valid, const char *const hex[6])
{
    uint8_t key[32], nonce[24], ad[1024], text[1024], cipher[1024], tag[16], got[16];
    size_t  ad_len, len;
    bool    ok;
    CHECK(tn_test_hex(key, 32, hex[0]) == 32);
    CHECK(tn_test_hex(nonce, 24, hex[1]) == (extended ? 24u : 12u));
    ad_len = tn_test_hex(ad, sizeof ad, hex[2]);
    len    = tn_test_hex(text, sizeof text, hex[3]);
    CHECK(tn_test_hex(cipher, sizeof cipher, hex[4]) == len && len < sizeof text);
    CHECK(tn_test_hex(tag, 16, hex[5]) == 16);
    if (valid) {
        uint8_t sealed[1024];
        memcpy(sealed, text, len);
        if (extended) tn_cr_xaead_seal(key, nonce, ad, ad_len, sealed, len, got);
        else          tn_cr_aead_seal(key, nonce, ad, ad_len, sealed, len, got);
        CHECK_BYTES(sealed, cipher, len);
        CHECK_BYTES(got, tag, 16);
    }
    ok = extended ? tn_cr_xaead_open(key, nonce, ad, ad_len, cipher, len, tag)
                  : tn_cr_aead_open(key, nonce, ad, ad_len, cipher, len, tag);
    CHECK(ok == (valid != 0));
    if (ok) CHECK_BYTES(cipher, text, len);
    else    CHECK(tn_is_zero(cipher, len));
}

#define WYCHEPROOF_AEAD(v, extended)                                                      \
    for (i = 0; i < COUNT(v); i++) {                                                      \
        const char *const hex[6] = { v[i].key, v[i].nonce, v[i].ad,                       \
                                     v[i].text, v[i].cipher, v[i].tag };                  \
        aead_one(extended, v[i].valid, hex);                                              \
    }

static void aead_wycheproof(void)
{
    size_t i;
    WYCHEPROOF_AEAD(wycheproof_chacha20_poly1305, false)
    CHECK(i > 200);
}

static void xaead_wycheproof(void)
{
    size_t i;
    WYCHEPROOF_AEAD(wycheproof_xchacha20_poly1305, true)
    CHECK(i > 200);
}

/* ---- Poly1305 and boxes ---- */

static void poly_one(const char *key_hex, const char *data_hex, const char *tag_hex)
{
    uint8_t key[32], data[256], tag[16];
    size_t  len = tn_test_hex(data, sizeof data, data_hex);
    CHECK(tn_test_hex(key, 32, key_hex) == 32);
    tn_cr_poly1305(tag, key, data, len);
    CHECK(is_hex(tag, tag_hex));
}

#define ZEROS "00000000000000000000000000000000"
#define ONES  "ffffffffffffffffffffffffffffffff"
#define ONE   "01000000000000000000000000000000"
#define TWO   "02000000000000000000000000000000"

static void poly1305_rfc8439(void)              /* 2.5.2; A.3 1 and 5 to 9 */
{
    poly_one("85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b",
             "43727970746f6772617068696320466f72756d2052657365617263682047726f7570",
             "a8061dc1305136c6c22b8baf0c0127a9");
    poly_one(ZEROS ZEROS, ZEROS ZEROS ZEROS ZEROS, ZEROS);
    poly_one(TWO ZEROS, ONES, "03000000000000000000000000000000");
    poly_one(TWO ONES, TWO, "03000000000000000000000000000000");
    poly_one(ONE ZEROS, ONES "f0ffffffffffffffffffffffffffffff" "11000000000000000000000000000000",
             "05000000000000000000000000000000");
    poly_one(ONE ZEROS, ONES "fbfefefefefefefefefefefefefefefe" "01010101010101010101010101010101",
             ZEROS);
    poly_one(TWO ZEROS, "fdffffffffffffffffffffffffffffff", "faffffffffffffffffffffffffffffff");
}

/* r is 1 + 2^66: A.3 10 and 11 */
static void poly1305_rfc8439_long(void)
{
    poly_one("01000000000000000400000000000000" ZEROS,
             "e33594d7505e43b900000000000000003394d7505e4379cd0100000000000000" ZEROS ONE,
             "14000000000000005500000000000000");
    poly_one("01000000000000000400000000000000" ZEROS,
             "e33594d7505e43b900000000000000003394d7505e4379cd0100000000000000" ZEROS,
             "13000000000000000000000000000000");
}

/* The tag of an AEAD is a Poly1305 over padded pieces: BearSSL's must be ours,
 * for random bytes and for such as keep the numbers near 2^130. */
static void poly1305_is_bearssl(void)
{
    static const uint8_t nonce[12] = { 0 };
    uint8_t  key[32], one_time[64], message[16 * 70], tag[16], got[16];
    unsigned turn;
    for (turn = 0; turn < 3000; turn++) {
        size_t len = (size_t)(tn_test_random() % 1000), padded, i;
        for (i = 0; i < 32; i++) key[i] = (uint8_t)(tn_test_random() & 0xffu);
        memset(message, 0, sizeof message);
        for (i = 0; i < len; i++)
            message[i] = turn % 3 == 0 ? 0xffu : (uint8_t)(tn_test_random() & 0xffu);
        memset(one_time, 0, sizeof one_time);
        (void)br_chacha20_ct_run(key, nonce, 0, one_time, sizeof one_time);
        padded = (len + 15) / 16 * 16;
        tn_cr_aead_seal(key, nonce, message, len, NULL, 0, tag);
        message[padded]     = (uint8_t)(len & 0xffu);
        message[padded + 1] = (uint8_t)(len >> 8);
        tn_cr_poly1305(got, one_time, message, padded + 16);
        CHECK_BYTES(got, tag, 16);
    }
}

static const char box_text[] =
    "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffc"
    "e5ecbaaf33bd751a1ac728d45e6c61296cdc3c01233561f41db66cce314adb31"
    "0e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde"
    "048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f93776384864"
    "5e0705";
static const char box_sealed[] =
    "f3ffc7703f9400e52a7dfb4b3d3305d9"
    "8e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186a"
    "c0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738"
    "b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da"
    "99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74"
    "e355a5";

static void box_keys(uint8_t k[32], uint8_t nonce[24])
{
    uint8_t a[32], pub_b[32];
    tn_test_hex(a, 32, "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
    tn_test_hex(pub_b, 32, "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
    tn_test_hex(nonce, 24, "69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37");
    CHECK(tn_cr_box_key(k, a, pub_b));
    CHECK(is_hex(k, "1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389"));
}

static void box_nacl(void)
{
    uint8_t k[32], nonce[24], text[131], box[147], out[131];
    box_keys(k, nonce);
    tn_test_hex(text, 131, box_text);
    tn_cr_box_seal(k, nonce, box, text, 131);
    CHECK(is_hex(box, box_sealed));
    CHECK(tn_cr_box_open(k, nonce, out, box, 147));
    CHECK_BYTES(out, text, 131);
    memcpy(box + 16, text, 131);                /* in place, both ways */
    tn_cr_box_seal(k, nonce, box, box + 16, 131);
    CHECK(is_hex(box, box_sealed));
    CHECK(tn_cr_box_open(k, nonce, box + 16, box, 147));
    CHECK_BYTES(box + 16, text, 131);
}

static void box_stream_nacl(void)
{
    tn_cr_salsa20 x;
    uint8_t       k[32], nonce[24], key[32];
    box_keys(k, nonce);
    tn_cr_salsa20_start(&x, k, nonce);
    CHECK(is_hex(x.key, "dc908dda0b9344a953629b733820778880f3ceb421bb61b91cbd4c3e66256ce4"));
    memcpy(key, x.block, 32);
    CHECK(is_hex(x.block, "eea6a7251c1e72916d11c2cb214d3c252539121d8e234e652d651fa4c8cff880"
                          "309e645a74e9e0a60d8243acd9177ab51a1beb8d5a2f5d700c093c5e55855796"));
}

/* Every length, every truncation, every flipped bit. */
static void box_refuses(void)
{
    uint8_t k[32], nonce[24], text[200], box[216], out[200];
    size_t  len, i;
    box_keys(k, nonce);
    for (i = 0; i < sizeof text; i++) text[i] = (uint8_t)(tn_test_random() & 0xffu);
    for (len = 0; len <= 200; len++) {
        tn_cr_box_seal(k, nonce, box, text, len);
        CHECK(tn_cr_box_open(k, nonce, out, box, len + 16));
        CHECK_BYTES(out, text, len);
        if (len != 0) CHECK(!tn_cr_box_open(k, nonce, out, box, len + 15));
    }
    tn_cr_box_seal(k, nonce, box, text, 20);
    memset(out, 0x55, sizeof out);
    for (i = 0; i < 36; i++) CHECK(!tn_cr_box_open(k, nonce, out, box, i));
    for (i = 0; i < 36 * 8; i++) {
        box[i / 8] ^= (uint8_t)(1u << i % 8);
        CHECK(!tn_cr_box_open(k, nonce, out, box, 36));
        box[i / 8] ^= (uint8_t)(1u << i % 8);
    }
    CHECK(out[0] == 0x55 && out[19] == 0x55);   /* untouched by all that */
}

static void box_key_refuses_low_order(void)
{
    uint8_t a[32], pub[32], k[32];
    upto(a, 32);
    memset(pub, 0, 32);
    memset(k, 1, 32);
    CHECK(!tn_cr_box_key(k, a, pub));
    CHECK(tn_is_zero(k, 32));
    pub[0] = 1;
    CHECK(!tn_cr_box_key(k, a, pub));
    tn_test_hex(pub, 32, "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800");
    CHECK(!tn_cr_box_key(k, a, pub));
    tn_test_hex(pub, 32, "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157");
    CHECK(!tn_cr_box_key(k, a, pub));
}

static void sha256_vectors(void)                /* FIPS 180-4 */
{
    uint8_t out[32];
    tn_cr_sha256(out, "abc", 3);
    CHECK(is_hex(out, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
    tn_cr_sha256(out, NULL, 0);
    CHECK(is_hex(out, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"));
}

int main(void)
{
    TEST(x25519_rfc7748_section_5);
    TEST(x25519_rfc7748_again_and_again);
    TEST(x25519_rfc7748_section_6);
    TEST(x25519_wycheproof);
    TEST(blake2s_rfc7693_self_test);
    TEST(blake2s_vectors);
    TEST(blake2s_pieces);
    TEST(hmac_vectors);
    TEST(kdf_vectors);
    TEST(aead_empty);
    TEST(aead_rfc8439);
    TEST(hchacha20_vectors);
    TEST(xaead_draft);
    TEST(aead_wycheproof);
    TEST(xaead_wycheproof);
    TEST(poly1305_rfc8439);
    TEST(poly1305_rfc8439_long);
    TEST(poly1305_is_bearssl);
    TEST(box_nacl);
    TEST(box_stream_nacl);
    TEST(box_refuses);
    TEST(box_key_refuses_low_order);
    TEST(sha256_vectors);
    return tn_test_end();
}
