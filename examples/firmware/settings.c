/* settings.c - the sector that provision.py writes: name, zero, length (two bytes, low
 * first), value, zero; then the next. An empty name ends it. */
#include "board.h"

extern const char _settings[];              /* of the linker script */

const char *board_setting(const char *name, size_t *size)
{
    const char *p = _settings;
    while (*p != '\0' && (unsigned char)*p != 0xff) {
        const char *n    = name;
        bool        same = true;
        size_t      len;
        for (; *p != '\0'; p++) {
            if (*p == *n) n++;
            else          same = false;
        }
        len = (size_t)(unsigned char)p[1] | (size_t)(unsigned char)p[2] << 8;
        p  += 3;
        if (same && *n == '\0') {
            if (size != NULL) *size = len;
            return p;
        }
        p += len + 1;
    }
    return NULL;
}
