/* The state in flash: a power cut at every byte, wear, and flashes that fail. */
#include "tn_test.h"

#define TAILNET_PLATFORM_LWIP_IMPLEMENTATION
#include "tailnet_platform_lwip.h"

unsigned tests_lwip_rand(void) { return (unsigned)tn_test_random(); }
u32_t    sys_now(void) { return 1; }

static struct {
    uint8_t  bytes[2][TAILNET_LWIP_RECORD];
    unsigned budget;                    /* bytes that may still be erased or written  */
    bool     dead_read[2], rotten;      /* rotten: takes a write and keeps other bytes */
    unsigned reads, writes[2];
} flash;

static int flash_read(void *user, unsigned place, uint32_t offset, void *dst, size_t size)
{
    (void)user;
    flash.reads++;
    if (place > 1 || offset > TAILNET_LWIP_RECORD || size > TAILNET_LWIP_RECORD - offset) abort();
    if (flash.dead_read[place]) return -1;
    memcpy(dst, flash.bytes[place] + offset, size);
    return 0;
}

/* Erases byte by byte, then writes byte by byte, until the power goes. */
static int flash_write(void *user, unsigned place, const void *record, size_t size)
{
    size_t i;
    (void)user;
    if (place > 1 || size > TAILNET_LWIP_RECORD || size % 16 != 0) abort();
    flash.writes[place]++;
    for (i = 0; i < TAILNET_LWIP_RECORD; i++) {
        if (flash.budget == 0) return -1;
        flash.budget--;
        flash.bytes[place][i] = 0xff;
    }
    for (i = 0; i < size; i++) {
        if (flash.budget == 0) return -1;
        flash.budget--;
        flash.bytes[place][i] = ((const uint8_t *)record)[i];
    }
    if (flash.rotten) flash.bytes[place][100] ^= 1;
    return 0;
}

static uint8_t record[TAILNET_LWIP_RECORD];

static void store_begin(tailnet_lwip_store *s)
{
    size_t size = 77;
    memset(&flash, 0xff, sizeof flash.bytes);
    flash.budget = 1u << 30;
    flash.dead_read[0] = flash.dead_read[1] = flash.rotten = false;
    flash.reads = flash.writes[0] = flash.writes[1] = 0;
    memset(s, 0, sizeof *s);
    s->read  = flash_read;
    s->write = flash_write;
    CHECK(tailnet_lwip_store_load(s, record, &size) == TAILNET_OK && size == 0);
}

/* Version number n of a state of size bytes, in the place where save wants it. */
static void state_make(unsigned n, size_t size)
{
    size_t i;
    for (i = 0; i < size; i++) record[TAILNET_LWIP_HEAD + i] = (uint8_t)(n * 31 + i);
}

static tailnet_result state_save(tailnet_lwip_store *s, unsigned n, size_t size)
{
    state_make(n, size);
    return tailnet_lwip_store_save(s, record, size);
}

/* Which version a fresh start finds; 0: none, 999: something else. */
static unsigned state_found(size_t want)
{
    tailnet_lwip_store s;
    size_t             size = 77, i;
    memset(&s, 0, sizeof s);
    s.read  = flash_read;
    s.write = flash_write;
    memset(record, 0xee, sizeof record);
    if (tailnet_lwip_store_load(&s, record, &size) != TAILNET_OK) return 998;
    if (size == 0) return 0;
    if (size != want) return 999;
    for (i = 1; i < size; i++)
        if (record[TAILNET_LWIP_HEAD + i] != (uint8_t)(record[TAILNET_LWIP_HEAD] + i)) return 999;
    for (i = 0; i < 256; i++)
        if ((uint8_t)(i * 31) == record[TAILNET_LWIP_HEAD]) return (unsigned)i;
    return 999;
}

static void test_empty_then_alternating(void)
{
    tailnet_lwip_store s;
    unsigned           n;
    store_begin(&s);
    for (n = 1; n <= 20; n++) {
        CHECK(state_save(&s, n, 280) == TAILNET_OK);
        CHECK(state_found(280) == n);
        CHECK(flash.writes[0] == (n + 1) / 2 && flash.writes[1] == n / 2);
    }
    CHECK(s.writes == 20);
}

/* Sizes at both ends; one byte more is refused and nothing is touched. */
static void test_sizes(void)
{
    tailnet_lwip_store s;
    store_begin(&s);
    CHECK(state_save(&s, 1, 1) == TAILNET_OK && state_found(1) == 1);
    CHECK(state_save(&s, 2, TAILNET_LWIP_STATE) == TAILNET_OK);
    CHECK(state_found(TAILNET_LWIP_STATE) == 2);
    CHECK(tailnet_lwip_store_save(&s, record, TAILNET_LWIP_STATE + 1) == TAILNET_ERR_TOO_BIG);
    CHECK(state_found(TAILNET_LWIP_STATE) == 2);
}

static void test_unchanged_is_not_written(void)
{
    tailnet_lwip_store s;
    size_t             size;
    store_begin(&s);
    CHECK(state_save(&s, 1, 280) == TAILNET_OK);
    CHECK(state_save(&s, 1, 280) == TAILNET_OK);
    CHECK(flash.writes[0] + flash.writes[1] == 1);
    CHECK(tailnet_lwip_store_load(&s, record, &size) == TAILNET_OK && size == 280);
    CHECK(state_save(&s, 1, 280) == TAILNET_OK);
    CHECK(flash.writes[0] + flash.writes[1] == 1);
    CHECK(state_save(&s, 1, 279) == TAILNET_OK);        /* shorter is another state */
    CHECK(flash.writes[0] + flash.writes[1] == 2);
}

/* Whenever the power goes there is the old state or the new one, and the start after that can
 * write again. From an empty flash: none or the first. */
static void test_power_cut_at_every_byte(void)
{
    tailnet_lwip_store s;
    size_t             size;
    unsigned           before, cut, found, wrong = 0, old = 0, fresh = 0;
    for (before = 0; before < 3; before++) {
        for (cut = 0; cut <= 2u * TAILNET_LWIP_RECORD; cut++) {
            unsigned n;
            store_begin(&s);
            for (n = 1; n <= before; n++) CHECK(state_save(&s, n, 280) == TAILNET_OK);
            flash.budget = cut;
            (void)state_save(&s, before + 1, 280);
            flash.budget = 1u << 30;
            found = state_found(280);
            if (found == before) old++;
            else if (found == before + 1) fresh++;
            else wrong++;
            CHECK(tailnet_lwip_store_load(&s, record, &size) == TAILNET_OK);
            CHECK(state_save(&s, before + 2, 280) == TAILNET_OK);
            CHECK(state_found(280) == before + 2);
        }
    }
    CHECK(wrong == 0 && old > 100 && fresh > 0);
}

/* Two cuts one after the other: the one that counts is not touched by the second either. */
static void test_cut_again_and_again(void)
{
    tailnet_lwip_store s;
    size_t             size;
    unsigned           round, good = 1;
    store_begin(&s);
    CHECK(state_save(&s, 1, 280) == TAILNET_OK);
    for (round = 2; round < 200; round++) {
        flash.budget = (unsigned)(tn_test_random() % (3u * TAILNET_LWIP_RECORD));
        if (state_save(&s, round, 280) == TAILNET_OK) good = round;
        flash.budget = 1u << 30;
        {
            unsigned found = state_found(280);
            CHECK(found == good || found == round);
            good = found;
        }
        CHECK(tailnet_lwip_store_load(&s, record, &size) == TAILNET_OK && size == 280);
    }
}

/* Any changed bit of the newest record: the older one counts. */
static void test_every_bit_counts(void)
{
    tailnet_lwip_store s;
    unsigned           bit;
    store_begin(&s);
    CHECK(state_save(&s, 1, 280) == TAILNET_OK);
    CHECK(state_save(&s, 2, 280) == TAILNET_OK);
    for (bit = 0; bit < 8u * (TAILNET_LWIP_HEAD + 280); bit++) {
        flash.bytes[1][bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK(state_found(280) == 1);
        flash.bytes[1][bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    CHECK(state_found(280) == 2);
}

static void test_number_runs_over(void)
{
    tailnet_lwip_store s;
    store_begin(&s);
    s.newest   = 2;
    s.sequence = 0xfffffffeu;
    CHECK(state_save(&s, 1, 280) == TAILNET_OK);        /* number 0xffffffff */
    CHECK(state_save(&s, 2, 280) == TAILNET_OK);        /* number 0          */
    CHECK(state_found(280) == 2);
    CHECK(state_save(&s, 3, 280) == TAILNET_OK);
    CHECK(state_found(280) == 3);
}

static void test_failing_flash(void)
{
    tailnet_lwip_store s;
    size_t             size;
    store_begin(&s);
    CHECK(state_save(&s, 1, 280) == TAILNET_OK);
    flash.rotten = true;
    CHECK(state_save(&s, 2, 280) == TAILNET_ERR_NETWORK);
    CHECK(state_found(280) == 1);
    CHECK(flash.writes[0] == 1 && flash.writes[1] == 1);
    flash.rotten = false;
    CHECK(state_save(&s, 2, 280) == TAILNET_OK);        /* again the same place      */
    CHECK(flash.writes[1] == 2 && state_found(280) == 2);
    flash.dead_read[1] = true;                          /* the newest cannot be read */
    CHECK(state_found(280) == 1);
    flash.dead_read[0] = true;
    CHECK(tailnet_lwip_store_load(&s, record, &size) == TAILNET_OK && size == 0);
}

int main(void)
{
    TEST(test_empty_then_alternating);
    TEST(test_sizes);
    TEST(test_unchanged_is_not_written);
    TEST(test_power_cut_at_every_byte);
    TEST(test_cut_again_and_again);
    TEST(test_every_bit_counts);
    TEST(test_number_runs_over);
    TEST(test_failing_flash);
    return tn_test_end();
}
