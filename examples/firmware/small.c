/* small.c - the five functions of string.h that BearSSL and tailnet.h call, in 200 bytes.
 * newlib's are made for speed and take a kilobyte, which modem.c has not. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

void *memmove(void *dst, const void *src, size_t size)
{
    uint8_t       *to   = (uint8_t *)dst;
    const uint8_t *from = (const uint8_t *)src;
    if ((uintptr_t)to - (uintptr_t)from < size) {       /* it lies behind: from the end */
        while (size-- != 0) to[size] = from[size];
        return dst;
    }
    if ((((uintptr_t)to | (uintptr_t)from) & 3) == 0) {
        for (; size >= 4; size -= 4, to += 4, from += 4)
            *(uint32_t *)(void *)to = *(const uint32_t *)(const void *)from;
    }
    for (; size != 0; size--) *to++ = *from++;
    return dst;
}

void *memcpy(void *dst, const void *src, size_t size) { return memmove(dst, src, size); }

void *memset(void *dst, int value, size_t size)
{
    uint8_t *to = (uint8_t *)dst;
    while (size-- != 0) *to++ = (uint8_t)value;
    return dst;
}

int memcmp(const void *a, const void *b, size_t size)
{
    const uint8_t *x = (const uint8_t *)a, *y = (const uint8_t *)b;
    for (; size != 0; size--, x++, y++)
        if (*x != *y) return *x < *y ? -1 : 1;
    return 0;
}

size_t strlen(const char *text)
{
    const char *end = text;
    while (*end != '\0') end++;
    return (size_t)(end - text);
}
