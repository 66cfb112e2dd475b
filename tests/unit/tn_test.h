/* The tests' own small frame: checks that count, texts of vectors, random cuts.
 *
 * A test file defines functions, calls them from main with TEST(name), and ends
 * with `return tn_test_end();`, which prints "N passed, N failed".
 * Vector files are the text files of tests/vectors: one "name: value" per line,
 * values in hex, or text for names that end in _text. */
#ifndef TN_TEST_H
#define TN_TEST_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef TN_TEST_VECTORS
#define TN_TEST_VECTORS "tests/vectors/"
#endif

static unsigned tn_test_passed, tn_test_failed;
static bool     tn_test_ok;

#define CHECK(x)                                                                       \
    do {                                                                               \
        if (!(x)) {                                                                    \
            tn_test_ok = false;                                                        \
            printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #x);                   \
        }                                                                              \
    } while (0)

#define CHECK_BYTES(got, want, len)                                                    \
    do {                                                                               \
        if (memcmp((got), (want), (len)) != 0) {                                       \
            tn_test_ok = false;                                                        \
            printf("%s:%d: bytes differ: %s and %s\n", __FILE__, __LINE__, #got, #want); \
        }                                                                              \
    } while (0)

/* One named test is one passed or failed, however many checks it makes. */
#define TEST(name)                                                                     \
    do {                                                                               \
        tn_test_ok = true;                                                             \
        name();                                                                        \
        if (tn_test_ok) tn_test_passed++;                                              \
        else { tn_test_failed++; printf("FAILED: %s\n", #name); }                      \
    } while (0)

static inline int tn_test_end(void)
{
    printf("%u passed, %u failed\n", tn_test_passed, tn_test_failed);
    return tn_test_failed == 0 ? 0 : 1;
}

/* A repeatable generator for cuts and properties (splitmix64). */
static uint64_t tn_test_seed = 1;
static inline uint64_t tn_test_random(void)
{
    uint64_t z = (tn_test_seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Hex text to bytes; returns how many, stops at the first that is no hex digit. */
static inline size_t tn_test_hex(uint8_t *dst, size_t cap, const char *text)
{
    size_t n = 0;
    while (n < cap) {
        unsigned v = 0;
        int      i;
        while (*text == ' ' || *text == '\n' || *text == '\r') text++;
        for (i = 0; i < 2; i++) {
            char c = text[i];
            if (c >= '0' && c <= '9') v = v << 4 | (unsigned)(c - '0');
            else if (c >= 'a' && c <= 'f') v = v << 4 | (unsigned)(c - 'a' + 10);
            else if (c >= 'A' && c <= 'F') v = v << 4 | (unsigned)(c - 'A' + 10);
            else return n;
        }
        dst[n++] = (uint8_t)v;
        text += 2;
    }
    return n;
}

/* A whole file of tests/vectors as text. Ends the program when it is missing. */
static inline char *tn_test_file(const char *name)
{
    char   path[512];
    FILE  *f;
    long   size;
    char  *text;
    snprintf(path, sizeof path, "%s%s", TN_TEST_VECTORS, name);
    f = fopen(path, "rb");
    if (f == NULL) {
        printf("cannot read %s (run from the project's top folder)\n", path);
        exit(2);
    }
    fseek(f, 0, SEEK_END);
    size = ftell(f);
    fseek(f, 0, SEEK_SET);
    text = (char *)malloc((size_t)size + 1);
    if (text == NULL || fread(text, 1, (size_t)size, f) != (size_t)size) exit(2);
    text[size] = '\0';
    fclose(f);
    return text;
}

/* The value of the line "name: value" in a vector text as bytes. Returns the
 * length; a missing name is a failed check. */
static inline size_t tn_test_value(const char *text, const char *name, uint8_t *dst, size_t cap)
{
    size_t      len = strlen(name);
    const char *at  = text;
    while (at != NULL && *at != '\0') {
        if (strncmp(at, name, len) == 0 && at[len] == ':') {
            size_t digits = strcspn(at + len + 1, "\n");
            return tn_test_hex(dst, digits / 2 < cap ? digits / 2 : cap, at + len + 1);
        }
        at = strchr(at, '\n');
        if (at != NULL) at++;
    }
    tn_test_ok = false;
    printf("vector %s is missing\n", name);
    return 0;
}

#endif
