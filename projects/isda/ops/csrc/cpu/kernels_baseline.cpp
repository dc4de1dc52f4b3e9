// For every processor that the compiler knows.

#define ISDA_ARCHITECTURE baseline
#include "kernels_impl.h"
