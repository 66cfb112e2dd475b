/* socks5.h - the words of SOCKS5 (RFC 1928) and of its passwords (RFC 1929): reads what a
 * client says, writes what a server answers. No memory, no sockets; hostile bytes are fine.
 *
 * Every reader gets what has come so far and says how many bytes of it were one whole message,
 * SOCKS5_MORE when it is not whole yet, SOCKS5_BAD when it never will be. */
#ifndef SOCKS5_H
#define SOCKS5_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    SOCKS5_MORE = 0,
    SOCKS5_BAD  = -1,

    SOCKS5_LONGEST = 513,       /* of all messages: a login with two texts of 255 */
    SOCKS5_HEAD    = 22,        /* of an answer, or in front of a datagram, at most */

    /* How to log in. */
    SOCKS5_OPEN = 0, SOCKS5_PASSWORD = 2, SOCKS5_NO_METHOD = 255,

    /* What is wanted. */
    SOCKS5_CONNECT = 1, SOCKS5_BIND = 2, SOCKS5_UDP = 3,

    /* What came of it. */
    SOCKS5_OK           = 0,
    SOCKS5_FAILED       = 1,
    SOCKS5_FORBIDDEN    = 2,
    SOCKS5_NO_NETWORK   = 3,
    SOCKS5_NO_HOST      = 4,
    SOCKS5_REFUSED      = 5,
    SOCKS5_TIMEOUT      = 6,
    SOCKS5_BAD_COMMAND  = 7,
    SOCKS5_BAD_ADDRESS  = 8
};

/* Where to: an address, or a name when family is 0. */
typedef struct socks5_target {
    uint8_t  family;            /* 4, 6, or 0                                  */
    uint8_t  ip[16];
    char     name[256];
    uint16_t port;
} socks5_target;

typedef struct socks5_login {
    char user[256], password[256];
} socks5_login;

/* The first message: which ways to log in the client offers; method is the one to answer,
 * SOCKS5_NO_METHOD when it does not offer what we want. */
static int socks5_read_hello(const uint8_t *at, size_t size, bool want_password, uint8_t *method)
{
    uint8_t wanted = want_password ? SOCKS5_PASSWORD : SOCKS5_OPEN;
    size_t  count;
    *method = SOCKS5_NO_METHOD;
    if (size >= 1 && at[0] != 5) return SOCKS5_BAD;
    if (size < 2 || size - 2 < at[1]) return SOCKS5_MORE;
    count = at[1];
    if (count != 0 && memchr(at + 2, wanted, count) != NULL) *method = wanted;
    return (int)(2 + count);
}

/* A text with its length in front; it may not hold a zero, C would cut it there. */
static int socks5_read_text(const uint8_t *at, size_t size, char *text)
{
    if (size < 1 || size - 1 < at[0]) return SOCKS5_MORE;
    if (memchr(at + 1, 0, at[0]) != NULL) return SOCKS5_BAD;
    memcpy(text, at + 1, at[0]);
    text[at[0]] = '\0';
    return 1 + at[0];
}

static int socks5_read_login(const uint8_t *at, size_t size, socks5_login *out)
{
    int user, password;
    if (size >= 1 && at[0] != 1) return SOCKS5_BAD;
    if (size < 2) return SOCKS5_MORE;
    user = socks5_read_text(at + 1, size - 1, out->user);
    if (user <= 0) return user;
    password = socks5_read_text(at + 1 + user, size - 1 - (size_t)user, out->password);
    return password <= 0 ? password : 1 + user + password;
}

/* Kind, address, port. An unknown kind is SOCKS5_BAD: nobody can tell how long it is. */
static int socks5_read_target(const uint8_t *at, size_t size, socks5_target *out)
{
    size_t len;
    memset(out, 0, sizeof *out);
    if (size < 2) return SOCKS5_MORE;
    if (at[0] == 1 || at[0] == 4) {
        out->family = at[0] == 1 ? 4 : 6;
        len         = at[0] == 1 ? 4 : 16;
        if (size - 1 < len) return SOCKS5_MORE;
        memcpy(out->ip, at + 1, len);
        len += 1;
    } else if (at[0] == 3) {
        int text = socks5_read_text(at + 1, size - 1, out->name);
        if (text <= 0) return text;
        if (text == 1) return SOCKS5_BAD;
        len = 1 + (size_t)text;
    } else {
        return SOCKS5_BAD;
    }
    if (size - len < 2) return SOCKS5_MORE;
    out->port = (uint16_t)((unsigned)at[len] << 8 | at[len + 1]);
    return (int)len + 2;
}

/* The request. When it is SOCKS5_BAD, code is what to answer before hanging up: 0 for bytes
 * that are no SOCKS5 at all. */
static int socks5_read_request(const uint8_t *at, size_t size, uint8_t *command,
                               socks5_target *out, uint8_t *code)
{
    int target;
    *command = *code = 0;
    if (size >= 1 && at[0] != 5) return SOCKS5_BAD;
    if (size >= 4 && at[3] != 1 && at[3] != 3 && at[3] != 4) {
        *code = SOCKS5_BAD_ADDRESS;
        return SOCKS5_BAD;
    }
    if (size < 5) return SOCKS5_MORE;
    *command = at[1];
    target   = socks5_read_target(at + 3, size - 3, out);
    if (target == SOCKS5_BAD) *code = SOCKS5_FAILED;
    return target <= 0 ? target : target + 3;
}

/* What stands in front of a datagram; SOCKS5_BAD also for a piece of a larger one, which
 * nobody has to put together (RFC 1928, section 7). */
static int socks5_read_datagram(const uint8_t *at, size_t size, socks5_target *out)
{
    int target;
    if (size < 4 || at[0] != 0 || at[1] != 0 || at[2] != 0) return SOCKS5_BAD;
    target = socks5_read_target(at + 3, size - 3, out);
    return target <= 0 ? SOCKS5_BAD : target + 3;
}

/* An answer, or with first 0 and code 0 what stands in front of a datagram. family 0 is
 * written as 0.0.0.0. Returns its length, SOCKS5_HEAD at most. */
static size_t socks5_write(uint8_t *out, uint8_t first, uint8_t code, unsigned family,
                           const uint8_t *ip, uint16_t port)
{
    size_t len = family == 6 ? 16 : 4;
    out[0] = first;
    out[1] = code;
    out[2] = 0;
    out[3] = family == 6 ? 4 : 1;
    memset(out + 4, 0, len);
    if (family != 0) memcpy(out + 4, ip, len);
    out[4 + len] = (uint8_t)(port >> 8);
    out[5 + len] = (uint8_t)(port & 255u);
    return len + 6;
}

#endif
