/* TLS of the server, with the certificates of the unit tests: valid from 2025 to 2060, so that
 * they fit the simulator's time and every clock that drifts in it. Included in front of the
 * server, whose engines must not ask the system for random bytes. */
#ifndef SIM_TLS_H
#define SIM_TLS_H

#include <bearssl.h>

#include "sim_base.h"

#define SIM_CONTROL "control.wild.example"  /* a name that the certificate is good for     */
#define SIM_CERTS   "tests/vectors/tls/certificates.txt"

typedef struct sim_certs {
    bool                 loaded;
    unsigned char        good[1400], middle[1400], root[1400], forged[1400], key[512], dn[128];
    br_x509_certificate  chain[2], bad[1];
    br_x509_trust_anchor anchor;
    size_t               dn_len;
    br_x509_decoder_context decoder;
    br_skey_decoder_context skey;
} sim_certs;

static sim_certs certs;

static unsigned hex_digit(int c) { return (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10); }

/* The bytes of the line "name: hex digits". */
static size_t cert_read(const char *name, unsigned char *dst, size_t cap)
{
    FILE  *f = fopen(SIM_CERTS, "r");
    char   line[4096];
    size_t n = strlen(name), len = 0;
    while (f != NULL && len == 0 && fgets(line, sizeof line, f) != NULL) {
        const char *at = line + n + 1;
        if (strncmp(line, name, n) != 0 || line[n] != ':') continue;
        while (*at == ' ') at++;
        for (; at[0] > ' ' && at[1] > ' ' && len < cap; at += 2)
            dst[len++] = (unsigned char)(hex_digit(at[0]) << 4 | hex_digit(at[1]));
    }
    if (f != NULL) fclose(f);
    if (len == 0) {
        fprintf(stderr, "sim: no %s in %s (run it in the project's top folder)\n", name,
                SIM_CERTS);
        exit(2);
    }
    return len;
}

static void cert_name(void *user, const void *data, size_t len)
{
    (void)user;
    if (certs.dn_len + len > sizeof certs.dn) exit(2);
    memcpy(certs.dn + certs.dn_len, data, len);
    certs.dn_len += len;
}

static void certs_load(void)
{
    size_t n;
    if (certs.loaded) return;
    certs.loaded            = true;
    certs.chain[0].data     = certs.good;
    certs.chain[0].data_len = cert_read("good", certs.good, sizeof certs.good);
    certs.chain[1].data     = certs.middle;
    certs.chain[1].data_len = cert_read("middle", certs.middle, sizeof certs.middle);
    certs.bad[0].data       = certs.forged;
    certs.bad[0].data_len   = cert_read("forged", certs.forged, sizeof certs.forged);
    br_x509_decoder_init(&certs.decoder, cert_name, NULL);
    n = cert_read("root", certs.root, sizeof certs.root);
    br_x509_decoder_push(&certs.decoder, certs.root, n);
    certs.anchor.dn.data = certs.dn;
    certs.anchor.dn.len  = certs.dn_len;
    certs.anchor.flags   = BR_X509_TA_CA;
    certs.anchor.pkey    = *br_x509_decoder_get_pkey(&certs.decoder);
    br_skey_decoder_init(&certs.skey);
    n = cert_read("leaf_key", certs.key, sizeof certs.key);
    br_skey_decoder_push(&certs.skey, certs.key, n);
}

/* Stands for br_ssl_server_reset in the server. */
static void rnd_seed(void *dst, size_t len);

static int sim_server_reset(br_ssl_server_context *s)
{
    unsigned char seed[32];
    rnd_seed(seed, sizeof seed);
    br_ssl_engine_inject_entropy(&s->eng, seed, sizeof seed);
    s->eng.rng_os_rand_done = 1;
    return br_ssl_server_reset(s);
}

#endif
