/* WireGuard: two sessions and a hostile network. The input is a script: who
 * begins, what is sent, lost, repeated, changed, or made up, and how time goes.
 * Toy primitives let it past every tag; mac1 is made right. Checked: no packet
 * is taken twice, keys lie where the state says, nothing is due for ever. */
#define TAILNET_IMPLEMENTATION
#include <stdint.h>
#include <stdlib.h>
#define TAILNET_X25519(out, scalar, point) toy_x25519(out, scalar, point)
#define TAILNET_AEAD_SEAL(key, nonce, ad, ad_len, data, len, tag) toy_seal(tag)
#define TAILNET_AEAD_OPEN(key, nonce, ad, ad_len, data, len, tag) toy_open(tag)
static void toy_x25519(uint8_t *out, const uint8_t *scalar, const uint8_t *point)
{
    unsigned i;                             /* commutes, and is zero now and then */
    for (i = 0; i < 32; i++) out[i] = scalar[i] ^ point[i];
}
static void toy_seal(uint8_t *tag)
{
    unsigned i;
    for (i = 0; i < 16; i++) tag[i] = 0x99;
}
static int toy_open(const uint8_t *tag) { return tag[15] != 0; }
#include "tailnet.h"

enum { BOX = 8, LONGEST = 192 };
typedef struct side {
    tn_wg_device dev;
    tn_wg        wg;
    uint64_t     seen;
    uint8_t      key[32];
    uint32_t     index;
} side;
static side     two[2];
static uint8_t  box[BOX][LONGEST];
static size_t   box_len[BOX];
static unsigned box_at;
static uint64_t now;
static const uint8_t *script;
static size_t   left;

static uint8_t next(void) { return left == 0 ? 0 : (left--, *script++); }
static void    must(bool x) { if (!x) __builtin_trap(); }
static uint8_t *mail(size_t len)
{
    box_at = (box_at + 1) % BOX;
    box_len[box_at] = len;
    return box[box_at];
}

static void initiate(side *s)
{
    uint8_t stamp[12], eph[32];
    size_t  i;
    for (i = 0; i < 32; i++) eph[i] = (uint8_t)(next() + i);
    (void)tn_wg_stamp(&s->dev, now, stamp);
    if (tn_wg_initiate(&s->dev, &s->wg, mail(148), two[s == two].dev.public_key, stamp, eph,
                       ++s->index, now) != TN_WG_OK)
        box_len[box_at] = 0;
}

static void say(side *s, size_t len)
{
    tailnet_crypt work;
    uint8_t      *m = mail(0);
    memset(m, 7, LONGEST);
    if (tn_wg_seal_begin(&s->wg, m, len, 64, now, &work) != TN_WG_OK) return;
    toy_seal(work.data + work.len);
    box_len[box_at] = 32 + work.len;
}

static void take(side *s, uint8_t *msg, size_t len)
{
    tn_wg_type    type = tn_wg_classify(msg, len);
    unsigned      news = 0;
    tailnet_crypt work;
    tn_wg_hello   hello;
    uint8_t       buf[LONGEST], random[56] = {1}, from[6] = {2};

    (void)tn_wg_receiver(msg, len);
    if (type == TN_WG_DATA) {
        memcpy(buf, msg, len);
        if (tn_wg_open_begin(&s->wg, buf, len, now, &work) != TN_WG_OK) return;
        work.ok = toy_open(work.data + work.len);
        if (tn_wg_accept(&s->wg, buf, &work, now, &news) != TN_WG_OK) return;
        must(tn_wg_accept(&s->wg, buf, &work, now, &news) == TN_WG_REPLAYED);
        must(tn_wg_open_begin(&s->wg, buf, len, now, &work) == TN_WG_REPLAYED);
    }
    if (type == TN_WG_COOKIE)
        (void)tn_wg_consume_cookie(&s->wg, two[s == two].dev.public_key, msg, len, now);
    if (type != TN_WG_INITIATION && type != TN_WG_RESPONSE) return;
    tn_cr_mac(msg + len - 32, 16, s->dev.mac1_key, 32, msg, len - 32);
    must(tn_wg_check_mac1(&s->dev, msg, len));
    if (type == TN_WG_RESPONSE) {
        (void)tn_wg_consume_response(&s->dev, &s->wg, msg, len, now, &news);
    } else if (tn_wg_admit(&s->dev, msg, len, from, 6, now) == TN_WG_ANSWER_COOKIE) {
        memcpy(buf, msg, len);
        tn_wg_cookie_reply(&s->dev, mail(64), buf, len, from, 6, random, now);
    } else if (tn_wg_open_initiation(&s->dev, msg, len, &hello) == TN_WG_OK &&
               tn_wg_prove_initiation(&s->dev, &hello, s->seen) == TN_WG_OK) {
        uint64_t before = s->seen;
        random[0] = next();
        if (tn_wg_respond(&s->wg, &hello, mail(92), random, ++s->index, &s->seen, now) != TN_WG_OK)
            box_len[box_at] = 0;
        else
            must(s->seen > before);
    }
}

static void check(side *s)
{
    const tn_wg *w = &s->wg;
    unsigned     news, turns = 0;
    must((w->key[w->current].local != 0) == tn_wg_has_current(w));
    must((w->key[1 - w->current].local != 0) ==
         (w->keys != TN_WG_KEYS_NONE && w->keys != TN_WG_KEYS_CURRENT));
    must(w->attempts <= TN_WG_ATTEMPTS && w->current <= 1);
    must(!tn_wg_can_send(w, now) || tn_wg_has_current(w));
    while (tn_wg_deadline(&s->wg) <= now) {
        must(turns++ < 4);
        news = tn_wg_timers(&s->wg, now);
        must(news != 0);
        if (news & TN_WG_WANT_KEEPALIVE) say(s, 0);
        if (news & TN_WG_WANT_HANDSHAKE) initiate(s);
        if (news & TN_WG_ERASED) must(tn_is_zero(&s->wg, sizeof s->wg));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned i, n;
    script = data;
    left   = size;
    now    = 1000;
    memset(box_len, 0, sizeof box_len);
    for (i = 0; i < 2; i++) {
        memset(two[i].key, (int)i + 0x31, 32);
        tn_wg_device_init(&two[i].dev, two[i].key, 0);
        tn_wg_init(&two[i].wg, now);
        two[i].seen  = 0;
        two[i].index = 0x100 * (i + 1);
    }
    while (left != 0) {
        uint8_t op = next();
        side   *s  = &two[op & 1];
        n          = op >> 4;
        switch (op >> 1 & 7) {
        case 0: now += (uint64_t)next() << n; break;
        case 1: tn_wg_want(&s->wg, now); break;
        case 2: take(s, box[n % BOX], box_len[n % BOX]); break;
        case 3: say(s, n * 5u); break;
        case 4: if (box_len[n % BOX] != 0) box[n % BOX][next() % box_len[n % BOX]] ^= next(); break;
        case 5: if (n == 0) tn_wg_expire(&s->wg);
                else if (n == 1) tn_wg_wipe(&s->wg);
                else take(s, box[box_at], box_len[box_at]);
                break;
        default: {                          /* made up, at its exact size for the sanitizer */
            size_t   len = n == 15 ? 148 : n == 14 ? 92 : n == 13 ? 64 : 16u + n * 4u;
            uint8_t *raw = (uint8_t *)malloc(len);
            if (raw == NULL) return 0;
            for (i = 0; i < len; i++) raw[i] = next();
            take(s, raw, len);
            free(raw);
        }
        }
        check(&two[0]);
        check(&two[1]);
    }
    return 0;
}
