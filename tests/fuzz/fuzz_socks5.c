/* What a SOCKS5 client says, in growing pieces: once it is decided, more bytes change nothing,
 * and before it is whole nothing is decided for good. */
#include "examples/lwip/socks5.h"
#include <stdlib.h>

#define DEMAND(x) do { if (!(x)) abort(); } while (0)

typedef struct words {
    socks5_login  login;
    socks5_target to;
    uint8_t       method, command, code;
} words;

static int read_one(unsigned kind, const uint8_t *at, size_t size, words *w)
{
    memset(w, 0, sizeof *w);
    switch (kind & 3) {
    case 0: return socks5_read_hello(at, size, (kind & 4) != 0, &w->method);
    case 1: return socks5_read_login(at, size, &w->login);
    case 2: return socks5_read_request(at, size, &w->command, &w->to, &w->code);
    default: return socks5_read_datagram(at, size, &w->to);
    }
}

/* The same bytes in memory of exactly that size, so that one too many is seen. */
static int read_copy(unsigned kind, const uint8_t *at, size_t size, words *w)
{
    uint8_t *copy = (uint8_t *)malloc(size == 0 ? 1 : size);
    int      n;
    DEMAND(copy != NULL);
    if (size != 0) memcpy(copy, at, size);
    n = read_one(kind, copy, size, w);
    free(copy);
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    words    whole, part;
    unsigned kind;
    size_t   i;
    int      all, n;
    if (size < 1) return 0;
    kind = data[0];
    data++;
    size--;
    if (size > 600) size = 600;
    all = read_copy(kind, data, size, &whole);
    DEMAND(all >= SOCKS5_BAD && all <= (int)size);
    if (all > 0) DEMAND((kind & 3) == 3 || all <= SOCKS5_LONGEST);
    for (i = 0; i < size; i++) {
        n = read_copy(kind, data, i, &part);
        if ((kind & 3) == 3) continue;          /* a datagram comes whole */
        if (n != SOCKS5_MORE) DEMAND(n == all);
        if (all > 0) DEMAND(n == SOCKS5_MORE ? (int)i < all : (int)i >= all);
    }
    if (all <= 0) return 0;
    DEMAND(read_copy(kind, data, (size_t)all, &part) == all);
    DEMAND(memcmp(&part, &whole, sizeof whole) == 0);
    return 0;
}
