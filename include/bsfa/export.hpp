#pragma once

// BSFA_API marks what the shared library exports; everything else is hidden.
#if defined(BSFA_STATIC)
#define BSFA_API
#else
#define BSFA_API __attribute__((visibility("default")))
#endif
