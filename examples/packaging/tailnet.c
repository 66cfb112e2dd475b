/* The one file of a project in which the library is compiled. Options of your own, such as
 * TAILNET_DNS, belong into the compiler's flags, so that every file sees the same. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
