/* modem_uart.h - bytes to and from the modem. The line has to stop the sender when our ring
 * is full (RTS/CTS): while a signature is computed nobody empties it. */
#ifndef MODEM_UART_H
#define MODEM_UART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void   modem_start(void);
void   modem_write(const void *src, size_t size);       /* waits for the line          */
size_t modem_waiting(void);                             /* bytes that can be read      */
void   modem_read(void *dst, size_t size);              /* waits for them              */
void   modem_listen(bool on);                           /* off: the line waits         */
void   modem_sleep(uint32_t ms);                        /* or until a byte comes       */

#endif
