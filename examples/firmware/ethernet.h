/* ethernet.h - the network of a board that has lwIP: a netif, and its turn in the loop. */
#ifndef ETHERNET_H
#define ETHERNET_H

#include "lwip/netif.h"

/* For netif_add. ERR_IF: there is no such chip. */
err_t ethernet_init(struct netif *netif);

/* Hands what has arrived to lwIP. To be called in every round of the loop. */
void ethernet_poll(struct netif *netif);

#endif
