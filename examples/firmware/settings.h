/* settings.h - the settings of a device as tailnet.h takes them; see provision.py. */
#ifndef SETTINGS_H
#define SETTINGS_H

#include "board.h"
#include "tailnet.h"

#include <bearssl.h>

/* BearSSL does not write there, but says so nowhere. */
static inline unsigned char *setting_bytes(const char *name, size_t *size)
{
    *size = 0;
    return (unsigned char *)(uintptr_t)board_setting(name, size);
}

/* The certificate authority that may vouch for the servers; without one the built-in ones. */
static inline void settings_anchor(br_x509_trust_anchor *a, tailnet_desc *desc)
{
    const char *curve = board_setting("ca-curve", NULL);
    a->flags   = BR_X509_TA_CA;
    a->dn.data = setting_bytes("ca-name", &a->dn.len);
    if (a->dn.data == NULL) return;
    if (curve != NULL) {
        a->pkey.key_type     = BR_KEYTYPE_EC;
        a->pkey.key.ec.curve = *curve;
        a->pkey.key.ec.q     = setting_bytes("ca-point", &a->pkey.key.ec.qlen);
    } else {
        a->pkey.key_type  = BR_KEYTYPE_RSA;
        a->pkey.key.rsa.n = setting_bytes("ca-modulus", &a->pkey.key.rsa.nlen);
        a->pkey.key.rsa.e = setting_bytes("ca-exponent", &a->pkey.key.rsa.elen);
    }
    desc->trust_anchors      = a;
    desc->trust_anchor_count = 1;
}

static inline void settings_desc(tailnet_desc *desc)
{
    desc->control_url      = board_setting("control", NULL);
    desc->control_key      = board_setting("control-key", NULL);
    desc->auth_key         = board_setting("authkey", NULL);
    desc->prefs.hostname   = board_setting("hostname", NULL);
    desc->prefs.relay_only = board_setting("relay-only", NULL) != NULL;
    desc->prefs.metered    = board_setting("metered", NULL) != NULL;
    desc->control_tls      = board_setting("control-tls", NULL) != NULL;
    desc->tls_by_caller    = board_setting("tls-by-modem", NULL) != NULL;
    desc->os               = "bare metal";
}

#endif
